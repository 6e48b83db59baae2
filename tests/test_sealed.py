"""Files that tell when they are not what was written, and files that are there whole or not at all."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repalign import files
from repalign.errors import RepalignError
from repalign.files import DamagedError, parse_json, read_json, read_parquet, seal_json, seal_parquet, write_file

TABLE = pa.table({"name": ["a", "β", None], "value": [1.0, float("nan"), -3e300], "n": [1, 2, None]})
VALUES = {
    "a list and a number": {"a": [1, 2.5, None], "b": {"c": "text"}},
    "no entry": {},
    "texts that look like a seal": {"a": f'"repalign-seal": "{"0" * 64}"', "repalign": f"repalign-seal{'f' * 64}"},
    "other scripts": {"層": "α\u2028\n\x00"},
    "half a surrogate": {"a": "\ud800"},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("how", [{}, {"indent": None}, {"sort_keys": True, "ensure_ascii": True}], ids=str)
def test_json_comes_back_and_other_readers_see_it(value, how, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(seal_json(value, **how), "utf-8")
    assert read_json(path) == (value, True)
    assert value.items() <= json.loads(path.read_text("utf-8")).items()


def test_parquet_comes_back_and_other_readers_see_it(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(seal_parquet(TABLE, {"key": "κ"}))
    table, about, has_seal = read_parquet(path)
    assert has_seal and about == {"key": "κ"} and table.to_pydict().keys() == TABLE.to_pydict().keys()
    assert pq.read_table(path).column("name").to_pylist() == ["a", "β", None]
    assert seal_parquet(TABLE, {"key": "κ"}) == path.read_bytes()  # equal tables, equal bytes
    assert seal_parquet(TABLE, {"key": "λ"}) != path.read_bytes()


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_any_flipped_bit_and_any_cut_is_found(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    data = seal_json(VALUES["a list and a number"]).encode() if kind == "json" else seal_parquet(TABLE)
    read = read_json if kind == "json" else read_parquet
    rng = random.Random(0)
    places = rng.sample(range(8 * len(data)), 400)
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=f"a.{kind} is (not what was written|no )"):
            read(path)
    for stop in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:stop])
        with pytest.raises(DamagedError):
            read(path)
    path.write_bytes(data + b" ")
    with pytest.raises(DamagedError):
        read(path)
    path.write_bytes(data)
    assert read(path)[-1]


def test_what_has_no_seal_is_read_and_told(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    pq.write_table(TABLE, tmp_path / "a.parquet")
    assert read_json(tmp_path / "a.json") == ({"a": 1}, False)
    assert read_parquet(tmp_path / "a.parquet")[2] is False


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is no JSON"),
        (b"[1]", "is no JSON object"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is no JSON"),
        (seal_json({"a": 1}).replace("repalign-seal", "repalign-sael", 1).encode(), "its seal is damaged"),
        ((seal_json({"a": 1}) * 2).encode(), "its seal is damaged"),
        (seal_json({"a": 1}).replace('"a": 1', '"a": 2').encode(), r"is not what was written\n  expected: seal "),
    ],
)  # fmt: skip
def test_no_bytes_are_too_bad(data, problem):
    with pytest.raises(DamagedError, match=f"^a.json .*{problem}"):
        parse_json(data, "a.json")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DamagedError, match=f"^{tmp_path} cannot be read\n  got: Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace", "mkdir"])
def test_a_refused_step_is_told_and_leaves_nothing(step, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(5, "Input/output error")

    class Refusing(io.FileIO):
        write = refuse

    opened = Path.open
    write_file(tmp_path / "a/b.json", b"before")
    if step == "write":
        step, refuse = "open", lambda path, mode: Refusing(path, "r+") if mode == "r+b" else opened(path, mode)
    monkeypatch.setattr(os if step == "fsync" else Path, step, refuse)
    with pytest.raises(RepalignError, match=r"b\.json cannot be written: Input/output error\n  do: "):
        write_file(tmp_path / "a/b.json", b"after")
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    assert (tmp_path / "a/b.json").read_bytes() == b"before"


def test_a_folder_is_made_once_and_whole(tmp_path):
    made = files.made_once(tmp_path / "a/b", lambda folder: (folder / "x").write_text("1"))
    assert made == tmp_path / "a/b" and (made / "x").read_text() == "1"
    assert files.made_once(made, lambda folder: (folder / "x").write_text("2")) == made  # it is there: not written again
    assert (made / "x").read_text() == "1"

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(RepalignError, match=r"c cannot be written: the disk is full\n  got: [\d,]+ bytes free in "):
        files.made_once(tmp_path / "a/c", fail)
    old = tmp_path / "a/.d.tmp-12-0a1b2c3d"
    old.mkdir()
    os.utime(old, (0, 0))
    files.made_once(tmp_path / "a/d", lambda folder: files.made_once(tmp_path / "a/d", lambda f: (f / "first").touch()))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b", "d"] and (tmp_path / "a/d/first").exists()


def test_only_what_nobody_writes_is_swept(tmp_path):
    left, old, other = (tmp_path / n for n in (".a.tmp-12-0a1b2c3d", ".a.tmp-0a1b2c3d", ".a.tmp-x"))
    for path in (left, old, other):
        path.touch()
    with files.replacing(tmp_path / "b") as live:
        live.write_bytes(b"half")
        files.LocalFiles(tmp_path).sweep()
        assert live.exists() and other.exists() and not left.exists() and not old.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.tmp-x", "b"]
    files.LocalFiles(tmp_path / "nowhere").sweep()
