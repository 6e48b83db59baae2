"""The feature store, on bytes: the format, what is refused, what is found when a file is broken."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors
import safetensors.torch
import torch

from repalign import files
from repalign.errors import RepalignError
from repalign.files import LocalFiles
from repalign.models import ModelRecord
from repalign.store import FeatureStore, Kept, Part, Problem, StoredRepresentation, Writer, check, extraction_hash
from repalign.store.format import BrokenError, verify

FINGERPRINT = "ab" * 32
DATASET = {"name": "birds", "fingerprint": FINGERPRINT, "n": 5}
IDS = ("wren", "robin", "gull", "owl", "rook")
RECORD = ModelRecord("hf:org/name", "name", "text", "c0ffee")
SETTINGS = {"pooling": "mean", "layers": None}
HEADER = {"weights_fingerprint": "w1", "versions": {"torch": "2.15.0"}}
FOLDER = f"{FINGERPRINT[:16]}/hf-org-name/{extraction_hash(FINGERPRINT, 'hf:org/name', 'c0ffee', SETTINGS)}"


def features(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "embeddings": torch.randn(5, 3, generator=g),
        "block.0": torch.randn(5, 4, generator=g).to(torch.float16),
    }


EXTRAS = {"nll": torch.arange(5, dtype=torch.float64) / 3}


def open_writer(
    url: object, record: ModelRecord = RECORD, rows_per_part: int = 2, **kwargs: object
) -> Writer:
    given: dict = {"dataset": DATASET, "settings": SETTINGS, "ids": IDS} | kwargs
    return FeatureStore(str(url)).writer(record=record, rows_per_part=rows_per_part, **given)


def write_part(
    writer: Writer, part: Part, x: dict[str, torch.Tensor] | None = None, **kwargs: object
) -> None:
    rows = slice(part.start, part.stop)
    extras = {k: v[rows] for k, v in EXTRAS.items()}
    given: dict = {"extras": extras, "header": HEADER} | kwargs
    writer.write(part, {k: v[rows] for k, v in (x or features()).items()}, **given)


def fill(url: object, record: ModelRecord = RECORD, **kwargs: object) -> StoredRepresentation:
    writer = open_writer(url, record, **kwargs)
    for part in writer.missing():
        write_part(writer, part)
    return writer.finish(record, {"pooling": "mean"})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def on_write(monkeypatch: pytest.MonkeyPatch, write) -> None:
    """`write(handle, chunk)` in the place of every write of a chunk."""
    opened = Path.open

    class Handle:
        def __init__(self, handle) -> None:
            self.handle = handle

        def write(self, chunk) -> None:
            write(self.handle, chunk)

        def __enter__(self):
            return self

        def __exit__(self, *error: object) -> None:
            self.handle.close()

        def __getattr__(self, name: str):
            return getattr(self.handle, name)

    def open_(path: Path, mode: str = "r", *args, **kwargs):
        handle = opened(path, mode, *args, **kwargs)
        return Handle(handle) if mode == "r+b" else handle

    monkeypatch.setattr(Path, "open", open_)


def message(expected: str):
    """The whole text of the error, not a part of it."""
    return pytest.raises(RepalignError, match=f"^{re.escape(expected)}$")


# ---- the format -------------------------------------------------------------------------------------


def test_a_part_on_bytes(tmp_path: Path) -> None:
    """Every byte of a file, put together here from the safetensors specification and docs/store.md."""
    record = ModelRecord("toy:a", "a", "text", None)
    writer = open_writer(tmp_path, record, settings={"b": 1, "a": None}, ids=("x", "é"), rows_per_part=2)
    layers = {"z": torch.tensor([[1.0, -2.0], [0.5, 0.0]]), "a/b": torch.tensor([[1.0], [2.0]]).bfloat16()}
    writer.write(
        Part(0, 0, 2),
        layers,
        {"nll": torch.tensor([0.25, 3.0])},
        {"weights_fingerprint": "w", "versions": {"torch": "2"}},
    )

    nll = struct.pack("<2d", 0.25, 3.0)
    z = struct.pack("<4f", 1.0, -2.0, 0.5, 0.0)
    ab = bytes.fromhex("803f 0040")  # bfloat16: the upper half of the float32 1.0 and 2.0
    digests = {
        "extra:nll": hashlib.sha256(nll).hexdigest(),
        "layer:a/b": hashlib.sha256(ab).hexdigest(),
        "layer:z": hashlib.sha256(z).hexdigest(),
    }
    header = (
        f'{{"dataset_fingerprint":"{FINGERPRINT}","extraction":{{"weights_fingerprint":"w"}},"extras":["nll"],'
        f'"format":1,"ids":["x","\\u00e9"],"layers":["z","a/b"],"n":2,"revision":null,"rows":[0,2],'
        f'"settings":{{"a":null,"b":1}},"sha256":{json.dumps(digests, separators=(",", ":"))},'
        f'"spec":"toy:a","versions":{{"torch":"2"}}}}'
    )
    index = (
        f'{{"__metadata__":{{"repalign":{json.dumps(header)},"sha256":"{"0" * 64}"}},'
        '"extra:nll":{"data_offsets":[0,16],"dtype":"F64","shape":[2]},'
        '"layer:a/b":{"data_offsets":[32,36],"dtype":"BF16","shape":[2,1]},'
        '"layer:z":{"data_offsets":[16,32],"dtype":"F32","shape":[2,2]}}'
    )
    index += " " * (-len(index) % 8)
    head = struct.pack("<Q", len(index)) + index.encode()
    head = head.replace(b"0" * 64, hashlib.sha256(head).hexdigest().encode())
    (file,) = tmp_path.rglob("part-*")
    assert file.read_bytes() == head + nll + z + ab


def test_file_names(tmp_path: Path) -> None:
    fill(tmp_path)
    assert list(tree(tmp_path)) == [
        f"{FOLDER}/manifest.json",
        f"{FOLDER}/part-00000.safetensors",
        f"{FOLDER}/part-00001.safetensors",
        f"{FOLDER}/part-00002.safetensors",
        "repalign-store.json",
    ]
    marker = (tmp_path / "repalign-store.json").read_bytes()
    assert marker == b'{"format":1,"kind":"repalign feature store"}\n'


def test_the_extraction_hash_is_that_of_the_documented_text() -> None:
    text = (
        f'{{"dataset_fingerprint":"{FINGERPRINT}","revision":"c0ffee",'
        '"settings":{"layers":[1,"é"],"pooling":"mean"},"spec":"hf:org/name"}'
    ).replace("é", "\\u00e9")
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    settings = {"pooling": "mean", "layers": (1, "é")}
    assert extraction_hash(FINGERPRINT, "hf:org/name", "c0ffee", settings) == expected


def test_name_and_scores_are_not_part_of_the_extraction_hash(tmp_path: Path) -> None:
    other = ModelRecord("hf:org/name", "mine", "text", "c0ffee", "family", "mlm", 7, {"bits_per_byte": 1.0})
    assert open_writer(tmp_path, RECORD).folder == open_writer(tmp_path, other).folder


def test_the_manifest_in_full(tmp_path: Path) -> None:
    rep = fill(tmp_path)
    manifest = json.loads((tmp_path / FOLDER / "manifest.json").read_bytes())
    parts = manifest.pop("parts")
    seal = {field: manifest[field] for field in ("repalign-seal", "repalign-seal-rule")}
    assert manifest == {
        "format": 2,
        "kind": "repalign extraction",
        **seal,
        "dataset": DATASET,
        "record": RECORD.to_dict(),
        "settings": SETTINGS,
        "facts": {"pooling": "mean"},
        "extraction": {"weights_fingerprint": "w1"},
        "versions": [{"torch": "2.15.0"}],
        "layers": [
            {"name": "embeddings", "width": 3, "dtype": "F32"},
            {"name": "block.0", "width": 4, "dtype": "F16"},
        ],
        "extras": ["nll"],
        "n": 5,
        "ids": list(IDS),
    }
    for i, (part, rows) in enumerate(zip(parts, ([0, 2], [2, 4], [4, 5]), strict=True)):
        data = (tmp_path / FOLDER / f"part-{i:05d}.safetensors").read_bytes()
        assert part["file"] == f"part-{i:05d}.safetensors" and part["rows"] == rows
        assert part["size"] == len(data) and part["sha256"] == hashlib.sha256(data).hexdigest()
        assert f'"sha256":"{part["header_sha256"]}"'.encode() in data
    assert rep.manifest == manifest | {"parts": parts}


def test_same_content_same_bytes(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    fill(tmp_path / "b", settings=dict(reversed(SETTINGS.items())), dataset=dict(reversed(DATASET.items())))
    writer = open_writer(tmp_path / "c")
    for part in reversed(writer.parts):  # the order of writing leaves no trace
        write_part(writer, part)
    writer.finish(RECORD, {"pooling": "mean"})
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c")


NAMES = [
    "a b",
    "a/b",
    "../x",
    "",
    "é 漢字 🦆",
    'quo"te',
    "back\\slash",
    "new\nline",
    "nul\0",
    "__metadata__",
    ".",
]
NAMES += ["layer:x", "extra:nll", '"sha256":"' + "0" * 64 + '"', "0" * 64, "x" * 3000]


@pytest.mark.parametrize("name", [n for n in NAMES if n])
def test_any_text_names_a_layer(tmp_path: Path, name: str) -> None:
    writer = open_writer(tmp_path)
    x = {"first": torch.randn(5, 2), name: torch.randn(5, 3), "last": torch.randn(5, 1)}
    for part in writer.missing():
        write_part(writer, part, x)
    rep = writer.finish(RECORD, {})
    assert rep.layers == ("first", name, "last")
    assert torch.equal(rep.load(name), x[name])
    assert check(tmp_path) == []
    with safetensors.safe_open(tmp_path / FOLDER / "part-00001.safetensors", "pt") as f:
        assert torch.equal(f.get_tensor(f"layer:{name}"), x[name][2:4])


def test_safetensors_reads_a_part_in_three_lines(tmp_path: Path) -> None:
    """The last lines of the block of docs/store.md, as they stand there, on the part that they name."""
    fill(tmp_path, rows_per_part=5)
    page = (Path(__file__).parents[1] / "docs" / "store.md").read_text()
    (lines,) = re.findall(r"^with safe_open.*?(?=```)", page, re.DOTALL | re.MULTILINE)
    assert lines.count("\n") == 3
    names: dict = {"safe_open": safetensors.safe_open, "json": json, "model": SimpleNamespace(path=tmp_path / FOLDER)}
    exec(lines, names)
    header, layers = names["header"], names["layers"]
    assert list(layers) == ["embeddings", "block.0"]
    assert header["ids"] == list(IDS) and header["rows"] == [0, 5]
    assert all(torch.equal(x, features()[name]) for name, x in layers.items())
    assert layers["block.0"].dtype == torch.float16
    assert torch.equal(safetensors.torch.load_file(tmp_path / FOLDER / "part-00000.safetensors")["extra:nll"], EXTRAS["nll"])
    for field in (*header, *json.loads((tmp_path / FOLDER / "manifest.json").read_text())):
        assert f"`{field}`" in page  # every field is explained


def test_tensors_start_at_multiples_of_their_item_size(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    x = {"h": torch.ones(5, 3).half(), "d": torch.ones(5, 3).double(), "f": torch.ones(5, 3)}
    write_part(writer, writer.parts[2], x)  # one row: odd sizes
    data = (tmp_path / FOLDER / "part-00002.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    index = json.loads(data[8 : 8 + length])
    size = {"F64": 8, "F32": 4, "F16": 2}
    assert all(v["data_offsets"][0] % size[v["dtype"]] == 0 for k, v in index.items() if k != "__metadata__")


# ---- reading ----------------------------------------------------------------------------------------


def test_other_numbers_under_the_same_settings_have_another_key(tmp_path: Path) -> None:
    """As when the features are made anew on a machine that rounds otherwise: what was computed of them is not theirs."""
    writer = open_writer(tmp_path / "a")
    for part in writer.parts:
        write_part(writer, part, features(seed=1))
    other, first = writer.finish(RECORD, {"pooling": "mean"}), fill(tmp_path / "b")
    assert other.folder == first.folder and other.key != first.key
    assert first.key == fill(tmp_path / "c").key == first.with_record(replace(RECORD, name="mine")).key


@pytest.mark.parametrize("rows_per_part", [1, 2, 5, 256])
def test_round_trip(tmp_path: Path, rows_per_part: int) -> None:
    rep = fill(tmp_path, rows_per_part=rows_per_part)
    for again in (rep, *FeatureStore(tmp_path).representations(), pickle.loads(pickle.dumps(rep))):
        assert again.layers == ("embeddings", "block.0") and again.widths == (3, 4)
        assert again.ids == IDS and again.n == 5 and again.extras == ("nll",)
        assert again.record == RECORD and again.name == "name"
        assert again.dataset_name == "birds" and again.dataset_fingerprint == FINGERPRINT
        assert again.facts == {"pooling": "mean"}
        assert again.key == rep.key != FOLDER[-16:] and again.path == str(tmp_path / FOLDER)
        for layer, x in features().items():
            assert torch.equal(again.load(layer), x) and again.load(layer).dtype == x.dtype == again.dtype(
                layer
            )
        assert torch.equal(again.extra("nll"), EXTRAS["nll"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_come_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    x = torch.tensor([[0.0, -0.0, info.max], [info.tiny, info.min, info.eps]] * 3, dtype=dtype)[:5]
    writer = open_writer(tmp_path)
    for part in writer.missing():
        write_part(writer, part, {"x": x, "strided": x.repeat(1, 2)[:, ::2]})
    rep = writer.finish(RECORD, {})
    as_bytes = rep.load("x").view(torch.uint8)
    assert torch.equal(as_bytes, x.view(torch.uint8))
    assert torch.equal(rep.load("strided"), x.repeat(1, 2)[:, ::2])


@pytest.mark.parametrize("rows_per_part", [1, 2, 5])
@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 6])
def test_blocks_of_rows(tmp_path: Path, rows_per_part: int, block: int) -> None:
    rep = fill(tmp_path, rows_per_part=rows_per_part)
    got = list(rep.iter_rows("block.0", block))
    assert [first for first, _ in got] == list(range(0, 5, block))
    assert [len(x) for _, x in got] == [min(block, 5 - first) for first, _ in got]
    assert torch.equal(torch.cat([x for _, x in got]), features()["block.0"])


def test_unknown_layers_and_extras(tmp_path: Path) -> None:
    rep = fill(tmp_path)
    with message(
        "name: no layer 'blok.0'\n  expected: embeddings, block.0\n  got: 'blok.0'\n  do: did you mean 'block.0'?"
    ):
        rep.load("blok.0")
    with message(
        "name: no extra 'nl' is stored\n  expected: nll\n  got: 'nl'\n  do: did you mean 'nll'?"
    ):
        rep.extra("nl")
    with message("a block has at least one row\n  expected: block >= 1\n  got: 0"):
        next(rep.iter_rows("block.0", 0))


def test_one_layer_is_read_without_the_others(tmp_path: Path) -> None:
    rep = fill(tmp_path)
    path = tmp_path / FOLDER / "part-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the last byte belongs to block.0, the narrower type
    path.write_bytes(data)
    assert torch.equal(rep.load("embeddings"), features()["embeddings"])
    with pytest.raises(RepalignError, match=r"is corrupt: layer:block\.0 is not what was written"):
        rep.load("block.0")


def test_with_record(tmp_path: Path) -> None:
    rep = fill(tmp_path)
    other = rep.with_record(ModelRecord("hf:org/name", "mine", "text", "c0ffee", scores={"top1": 0.5}))
    assert other.name == "mine" and other.record.scores == {"top1": 0.5} and other.key == rep.key
    assert torch.equal(other.load("block.0"), rep.load("block.0")) and rep.name == "name"
    with message(
        f"{rep.path} is of another model: revision differs\n  expected: revision c0ffee\n  got: revision x"
    ):
        rep.with_record(ModelRecord("hf:org/name", "mine", "text", "x"))


# ---- several extractions in one store ------------------------------------------------------------------


def test_many_models_and_datasets(tmp_path: Path) -> None:
    records = [ModelRecord(f"hf:org/m{i}", f"m{i}", "text", "r") for i in range(3)]
    for record in records:
        fill(tmp_path, record)
    fill(tmp_path, records[0], settings={"pooling": "last"})
    fill(tmp_path, records[0], dataset=DATASET | {"fingerprint": "cd" * 32})
    open_writer(tmp_path, ModelRecord("hf:org/unfinished", "u", "text"))
    store = FeatureStore(tmp_path)
    assert len(store.representations()) == 5
    assert [r.name for r in store.representations(FINGERPRINT)] == ["m0", "m0", "m1", "m2"]
    assert [r.dataset_fingerprint for r in store.representations("cd" * 32)] == ["cd" * 32]
    assert store.representations("ab" * 8) == []  # a prefix is not a fingerprint
    found = store.find(FINGERPRINT, "hf:org/m0", "r", {"pooling": "last"})
    assert found is not None and found.manifest["settings"] == {"pooling": "last"}
    assert store.find(FINGERPRINT, "hf:org/m0", "other", {"pooling": "last"}) is None
    assert check(tmp_path) == []


def test_specs_that_share_a_slug_do_not_share_a_folder(tmp_path: Path) -> None:
    a, b = ModelRecord("hf:a/b", "a", "text"), ModelRecord("hf:a-b", "b", "text")
    fill(tmp_path, a)
    fill(tmp_path, b)
    store = FeatureStore(tmp_path)
    assert {r.folder.split("/")[1] for r in store.representations()} == {"hf-a-b"}
    assert {r.record.spec for r in store.representations()} == {"hf:a/b", "hf:a-b"}


@pytest.mark.parametrize("spec", ["array:/a/../b c.npy", "toy:..", ":", "hf:" + "x" * 500, "hf:漢字"])
def test_any_spec_has_a_folder_inside_the_store(tmp_path: Path, spec: str) -> None:
    fill(tmp_path / "store", ModelRecord(spec, "m", "text"))
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert all(
        len(name.split("/")) == 4 for name in tree(tmp_path / "store") if name != "repalign-store.json"
    )
    assert [r.record.spec for r in FeatureStore(tmp_path / "store").representations()] == [spec]


# --- what is kept, and how it goes ---------------------------------------------------------------


OLD = ModelRecord("hf:org/old", "old", "text", "c0ffee")


def aged(url: Path, kept: Kept, days: float) -> None:
    for path in (url / kept.folder).iterdir():
        os.utime(path, (0, time.time() - 86_400 * days))


def test_a_store_says_what_it_keeps(tmp_path: Path) -> None:
    fill(tmp_path)
    unfinished = open_writer(tmp_path, OLD)
    write_part(unfinished, unfinished.parts[0])
    whole, part = FeatureStore(tmp_path).contents()
    assert (whole.model, whole.spec, whole.dataset, whole.dtypes) == ("name", "hf:org/name", "birds", ("F32", "F16"))
    assert whole.layers == ("embeddings", "block.0") and not whole.is_live and 0 <= time.time() - whole.written < 60
    assert whole.nbytes == sum(p.stat().st_size for p in (tmp_path / whole.folder).iterdir())
    assert (part.model, part.layers, part.is_live) == ("hf:org/old", (), True)  # it may be at work
    aged(tmp_path, part, 1 / 23)  # an hour and a bit
    assert not FeatureStore(tmp_path).contents()[1].is_live


def test_what_is_deleted_is_gone_at_once_and_the_rest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, OLD)
    kept = tree(tmp_path)
    fill(tmp_path)
    store = FeatureStore(tmp_path)
    one = store.contents()[0]
    with monkeypatch.context() as cut_off:  # killed before a byte of the parts is removed
        cut_off.setattr("repalign.files.local.shutil.rmtree", lambda *_, **__: None)
        store.delete(one)
    assert [c.model for c in store.contents()] == ["old"] and not check(tmp_path)
    assert len(list(tmp_path.glob(".removed.tmp-*/part-*"))) == 3
    os.utime(next(tmp_path.glob(".removed.tmp-*")), (0, time.time() - 4000))
    fill(tmp_path)  # the next writer takes what is left
    assert not list(tmp_path.glob(".removed.tmp-*"))
    store.delete(store.contents()[0])
    assert tree(tmp_path) == kept


def test_a_deletion_that_is_refused_leaves_what_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest goes first: parts without one pass for nothing, and the next extraction finds them."""
    fill(tmp_path)
    before, store = tree(tmp_path), FeatureStore(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as locked:
        locked.setattr(Path, "rename", refuse)
        with pytest.raises(RepalignError, match="cannot be removed: Permission denied"):
            store.delete(store.contents()[0])
    assert store.find(FINGERPRINT, RECORD.spec, RECORD.revision, SETTINGS) is None
    writer = open_writer(tmp_path)
    assert writer.missing() == []
    writer.finish(RECORD, {"pooling": "mean"})
    assert tree(tmp_path) == before


def test_what_a_run_may_be_writing_is_not_deleted(tmp_path: Path) -> None:
    """Between two parts, and within one: a part's temporary file is held by its writer."""
    writer, store = open_writer(tmp_path), FeatureStore(tmp_path)
    write_part(writer, writer.parts[0])
    (one,) = store.contents()
    with pytest.raises(RepalignError, match=r"hf:org/name in .* may be at work(.|\n)*wait for an hour"):
        store.delete(one)
    for part in writer.parts[1:]:
        write_part(writer, part)
    writer.finish(RECORD, {"pooling": "mean"})
    (one,) = store.contents()
    with pytest.raises(RepalignError, match="may be at work"), files.replacing(tmp_path / one.folder / "part-00000.safetensors"):
        store.delete(one)
    assert not check(tmp_path)


def test_an_empty_store(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "new")
    assert store.representations() == [] and not (tmp_path / "new").exists()
    assert store.find(FINGERPRINT, "hf:a/b", None, {}) is None
    with message(
        f"there is no feature store at {tmp_path / 'new'}\n"
        "  expected: a folder with a repalign-store.json in it"
    ):
        check(tmp_path / "new")
    open_writer(tmp_path / "new")
    assert check(tmp_path / "new") == [] and list(tree(tmp_path / "new")) == ["repalign-store.json"]


# ---- opening what is no store --------------------------------------------------------------------------


def test_a_folder_with_other_things_is_no_store(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.txt", "d.txt"):
        (tmp_path / name).touch()
    text = (
        f"{tmp_path} is not a feature store: it holds other things and no repalign-store.json\n"
        "  expected: a store, or an empty or new folder\n  got: a.txt, b.txt, c.txt ...\n"
        "  do: name another folder"
    )
    for opens in (FeatureStore, check):
        with message(text):
            opens(tmp_path)


def test_a_store_that_another_run_is_just_making_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its marker comes after it was looked for, or what the other run claims is there before its marker."""

    def looked(store: FeatureStore) -> bool:
        store.files.write("repalign-store.json", b'{"format":1,"kind":"repalign feature store"}')
        return False

    (tmp_path / "claimed/claims").mkdir(parents=True)
    FeatureStore(tmp_path / "claimed")
    monkeypatch.setattr(FeatureStore, "is_there", property(looked))
    FeatureStore(tmp_path / "marked")


def test_a_file_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.touch()
    with message(f"{path} is a file\n  expected: a folder"):
        FeatureStore(path)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_a_store_of_another_format(tmp_path: Path, version: object) -> None:
    fill(tmp_path)
    (tmp_path / "repalign-store.json").write_text(json.dumps({"format": version}))
    with message(
        f"{tmp_path} is a feature store of another format\n  expected: format 1\n  got: format {version}\n"
        "  do: install a repalign that knows this format (a newer one, if the number is higher)"
    ):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
def test_a_marker_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "repalign-store.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        RepalignError, match=r"repalign-store\.json is not the marker of a feature store\n  exp"
    ):
        FeatureStore(tmp_path)


def test_an_unknown_file_system() -> None:
    with pytest.raises(
        RepalignError, match=r"^nosuchfs://x cannot be opened: .*\n  expected: a local path, or"
    ):
        FeatureStore("nosuchfs://x")


# ---- what may be written -------------------------------------------------------------------------------


def _nan(value: float) -> torch.Tensor:
    x = torch.ones(2, 3)
    x[1, 2] = value
    return x


REFUSED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "rows": (
        {"a": torch.ones(3, 3)},
        "name, layer 'a': wrong number of rows for part-00001.safetensors\n"
        "  expected: 2 rows (2 to 3)\n  got: 3 rows",
    ),
    "dimensions": (
        {"a": torch.ones(2, 3, 4)},
        "name, layer 'a': a layer has two dimensions\n  expected: shape (rows, d), d > 0\n  got: (2, 3, 4)",
    ),
    "width": (
        {"a": torch.ones(2, 0)},
        "name, layer 'a': a layer has two dimensions\n  expected: shape (rows, d), d > 0\n  got: (2, 0)",
    ),
    "dtype": (
        {"a": torch.ones(2, 3, dtype=torch.int64)},
        "name, layer 'a': this dtype is not stored\n"
        "  expected: float16, bfloat16, float32, float64\n  got: int64",
    ),
    "nan": (
        {"ok": torch.ones(2, 3), "a": _nan(float("nan"))},
        "name, layer 'a': the row of id 'owl' (row 3) is NaN\n  expected: finite numbers\n"
        "  got: 1 of 2 rows with NaN or infinity\n"
        "  do: run the model in float32, or in bfloat16 in place of float16, which ends at 65,504; then look at its input. "
        "In a file of features mend the row, or leave the stimulus out of the dataset",
    ),
    "infinite": (
        {"a": _nan(float("-inf")).half()},
        "name, layer 'a': the row of id 'owl' (row 3) is infinite\n  expected: finite numbers\n"
        "  got: 1 of 2 rows with NaN or infinity\n"
        "  do: run the model in float32, or in bfloat16 in place of float16, which ends at 65,504; then look at its input. "
        "In a file of features mend the row, or leave the stimulus out of the dataset",
    ),
    "no layer": ({}, "name: part-00001.safetensors has no layer\n  expected: at least one layer"),
    "no name": ({"": torch.ones(2, 3)}, "name: '' is not a name\n  expected: text that is not empty"),
    "surrogate": (
        {"\ud800": torch.ones(2, 3)},
        "name: the name '\\ud800' is not valid text: surrogates not allowed",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_layers(tmp_path: Path, case: str) -> None:
    layers, text = REFUSED[case]
    writer = open_writer(tmp_path)
    with message(text):
        writer.write(writer.parts[1], layers, {}, HEADER)
    assert list(tree(tmp_path)) == ["repalign-store.json"]


def test_refused_extras_and_headers(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    part, layers = writer.parts[0], {"a": torch.ones(2, 3)}
    with message(
        "name: the extra 'nll' of part-00000.safetensors has the wrong shape\n"
        "  expected: (2,), one number per row\n  got: (2, 1)"
    ):
        writer.write(part, layers, {"nll": torch.ones(2, 1)}, HEADER)
    with message(
        "name: the header of part-00000.safetensors has no weights_fingerprint\n"
        "  expected: a digest of the loaded weights, as text"
    ):
        writer.write(part, layers, {}, {"versions": {}})
    with pytest.raises(
        RepalignError, match=r"^name: the header of part-00000\.safetensors cannot be written as JS"
    ):
        writer.write(part, layers, {}, HEADER | {"x": {1, 2}})
    assert list(tree(tmp_path)) == ["repalign-store.json"]


def test_extras_may_be_nan_and_are_float64(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, rows_per_part=5)
    x = torch.tensor([1, 2, 3, 4, 5], dtype=torch.int64)
    y = torch.tensor([float("nan")] * 5)
    writer.write(writer.parts[0], {"a": torch.ones(5, 1)}, {"count": x, "nothing": y}, HEADER)
    rep = writer.finish(RECORD, {})
    assert rep.extra("count").dtype == torch.float64 and rep.extra("count").tolist() == [1, 2, 3, 4, 5]
    assert bool(rep.extra("nothing").isnan().all())


DISAGREE: dict[str, tuple[dict[str, torch.Tensor], dict, str]] = {
    "missing": (
        {"embeddings": torch.ones(5, 3)},
        {},
        "layer 'block.0' is missing\n"
        '  expected: 2 layers: ["embeddings", "block.0"]\n  got: 1 layers: ["embeddings"]',
    ),
    "extra": (
        features() | {"new": torch.ones(5, 1)},
        {},
        "layer 'new' is not in the other parts\n"
        '  expected: 2 layers: ["embeddings", "block.0"]\n  got: 3 layers: ["embeddings", "block.0", "new"]',
    ),
    "order": (
        dict(reversed(features().items())),
        {},
        "the layers are in another order\n"
        '  expected: 2 layers: ["embeddings", "block.0"]\n  got: 2 layers: ["block.0", "embeddings"]',
    ),
    "width": (
        features() | {"block.0": torch.ones(5, 9).half()},
        {},
        "layer 'block.0' differs\n  expected: width 4, F16\n  got: width 9, F16",
    ),
    "dtype": (
        features() | {"block.0": torch.ones(5, 4)},
        {},
        "layer 'block.0' differs\n  expected: width 4, F16\n  got: width 4, F32",
    ),
    "extras": (
        features(),
        {"extras": {}},
        'extras differs\n  expected: extras ["nll"]\n  got: extras []\n'
        "  do: delete {folder} and run the extraction again",
    ),
    "weights": (
        features(),
        {"header": HEADER | {"weights_fingerprint": "w2"}},
        "extraction.weights_fingerprint differs\n"
        "  expected: extraction.weights_fingerprint w1\n  got: extraction.weights_fingerprint w2\n"
        "  do: delete {folder} and run the extraction again",
    ),
}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("case", DISAGREE)
def test_parts_agree(tmp_path: Path, case: str, fresh: bool) -> None:
    """Whether the first part was written by this writer or lies on disk."""
    x, kwargs, text = DISAGREE[case]
    writer = open_writer(tmp_path)
    write_part(writer, writer.parts[1])
    before = tree(tmp_path)
    if fresh:
        writer = open_writer(tmp_path)
    folder = tmp_path / FOLDER
    with message(
        "name: part-00002.safetensors does not agree with "
        f"{folder}/part-00001.safetensors: {text.replace('{folder}', str(folder))}"
    ):
        write_part(writer, writer.parts[2], x, **kwargs)
    assert tree(tmp_path) == before


def test_parts_written_elsewhere_are_held_to_each_other_in_the_end(tmp_path: Path) -> None:
    """Two machines that start at once see no part of the other."""
    writer = open_writer(tmp_path / "a")
    write_part(writer, writer.parts[0])
    write_part(writer, writer.parts[1])
    other = open_writer(tmp_path / "b")
    write_part(other, other.parts[2], header=HEADER | {"weights_fingerprint": "w2"})
    name = f"{FOLDER}/part-00002.safetensors"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(
        RepalignError, match=r"part-00002\.safetensors does not agree with .*weights_fingerprint d"
    ):
        writer.finish(RECORD, {})
    assert FeatureStore(tmp_path / "a").representations() == []


def test_extras_are_read_before_the_manifest_is_written(tmp_path: Path) -> None:
    """Bits per byte is a sum over all rows, goes into the record, and so comes before `finish`."""
    for part in open_writer(tmp_path).parts:
        writer = open_writer(tmp_path)  # each part by another writer, as in a cluster
        with pytest.raises(RepalignError, match=rf"^name: {3 - part.index} of 3 parts are missing in "):
            writer.extras()
        write_part(writer, part)
    extras = open_writer(tmp_path).extras()
    assert list(extras) == ["nll"] and torch.equal(extras["nll"], EXTRAS["nll"])
    assert FeatureStore(tmp_path).representations() == []


def test_other_library_versions_are_recorded_not_refused(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    for part in writer.parts:
        versions = {"torch": "2.15.0" if part.index < 2 else "2.16.0"}
        write_part(writer, part, header=HEADER | {"versions": versions})
    rep = writer.finish(RECORD, {})
    assert rep.manifest["versions"] == [{"torch": "2.15.0"}, {"torch": "2.16.0"}]
    assert check(tmp_path) == []


def test_finish_needs_all_parts_and_the_same_model(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    write_part(writer, writer.parts[1])
    with message(
        f"name: 2 of 3 parts are missing in {tmp_path / FOLDER}\n"
        "  got: no part-00000.safetensors, part-00002.safetensors\n  do: write the missing parts, then finish"
    ):
        writer.finish(RECORD, {})
    with message(
        "the record of x is of another extraction: the field 'spec' differs\n"
        "  expected: spec hf:org/name\n  got: spec hf:org/other\n"
        "  do: finish with the record that the writer was opened with"
    ):
        writer.finish(ModelRecord("hf:org/other", "x", "text", "c0ffee"), {})
    for part in writer.missing():
        write_part(writer, part)
    with pytest.raises(
        RepalignError, match=r"^the manifest of hf:org/name cannot be written as JSON: Out of range"
    ):
        writer.finish(RECORD, {"loss": float("nan")})
    assert not (tmp_path / FOLDER / "manifest.json").exists()
    done = ModelRecord("hf:org/name", "x", "text", "c0ffee", n_parameters=3, scores={"bits_per_byte": 2.5})
    assert writer.finish(done, {}).record == done


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"dataset": {"name": "birds"}}, "the description of the dataset has no fingerprint"),
        (
            {"dataset": {"fingerprint": "../../../../../x"}},
            "the description of the dataset has no fingerprint",
        ),
        ({"rows_per_part": 0}, "a part has at least one row\n  expected: rows_per_part >= 1\n  got: 0"),
        ({"ids": ()}, "the dataset 'birds' cannot be stored by its ids\n  expected: at least one id, each"),
        ({"ids": ("a", "b", "a")}, "the dataset 'birds' cannot .*\n.*\n  got: 3 ids, 2 different$"),
        ({"ids": (1, 2)}, "the dataset 'birds' cannot be stored by its ids\n.*all of them text"),
        (
            {"settings": {"x": object()}},
            "the settings of hf:org/name cannot be written as JSON: Object of type",
        ),
        (
            {"dataset": DATASET | {"x": {1}}},
            "the description of the dataset 'birds' cannot be written as JSON",
        ),
    ],
)
def test_refused_writers(tmp_path: Path, kwargs: dict, text: str) -> None:
    with pytest.raises(RepalignError, match=f"^{text}"):
        open_writer(tmp_path, **kwargs)
    assert list(tmp_path.iterdir()) == []


# ---- broken files --------------------------------------------------------------------------------------


def _lengths(data: bytes) -> dict[str, int]:
    (header,) = struct.unpack("<Q", data[:8])
    return {
        "nothing": 0,
        "in the length": 7,
        "after the length": 8,
        "in the header": 8 + header // 2,
        "header less one": 7 + header,
        "header alone": 8 + header,
        "in the payload": (8 + header + len(data)) // 2,
        "less one": len(data) - 1,
    }


def _cut(path: Path, where: str) -> tuple[int, int]:
    data = path.read_bytes()
    keep = _lengths(data)[where]
    path.write_bytes(data[:keep])
    return keep, len(data)


CUTS = list(_lengths(struct.pack("<Q", 8) + b" " * 16))


@pytest.mark.parametrize("where", CUTS)
def test_a_part_that_is_cut_short(tmp_path: Path, where: str) -> None:
    before = fill(tmp_path), tree(tmp_path)
    rep = before[0]
    path = tmp_path / FOLDER / "part-00001.safetensors"
    keep, size = _cut(path, where)
    (header,) = struct.unpack("<Q", before[1][f"{FOLDER}/part-00001.safetensors"][:8])
    expected = f"{size:,} bytes"
    if keep < 8:
        expected = "at least 8 bytes"
    elif keep < 8 + header:
        expected = f"more than {8 + header:,} bytes"

    with message(
        f"name: {path} is cut short\n  expected: {expected}\n  got: {keep:,} bytes\n"
        f"  do: look at the whole store with `repalign check {tmp_path}`, delete that part and run the "
        "extraction again: only what is missing is computed"
    ):
        rep.load("block.0")
    assert (
        check(tmp_path)
        == check(tmp_path, deep=False)
        == [
            Problem(
                str(path),
                f"is cut short (expected {expected}, got {keep:,} bytes)",
                "delete it and run the extraction again: only what is missing is computed",
            )
        ]
    )
    _heal(tmp_path, before[1], ["part-00001.safetensors"])


def _heal(folder: Path, before: dict[str, bytes], broken: list[str]) -> None:
    """Running again finds that it is not complete, writes what is broken, and ends with the same bytes."""
    store = FeatureStore(folder)
    assert store.find(FINGERPRINT, RECORD.spec, RECORD.revision, SETTINGS) is None
    writer = open_writer(folder)
    missing = writer.missing()
    assert [part.file for part in missing] == broken
    for part in missing:
        write_part(writer, part)
    writer.finish(RECORD, {"pooling": "mean"})
    assert tree(folder) == before and check(folder) == []


def test_a_missing_part(tmp_path: Path) -> None:
    rep, before = fill(tmp_path), tree(tmp_path)
    path = tmp_path / FOLDER / "part-00002.safetensors"
    path.unlink()
    with pytest.raises(
        RepalignError, match=rf"^name: {re.escape(str(path))} is missing\n  do: look at the whole"
    ):
        rep.load("block.0")
    again = "run the extraction again: only what is missing is computed"
    assert check(tmp_path) == [Problem(str(path), "is missing, but the manifest lists it", again)]
    _heal(tmp_path, before, ["part-00002.safetensors"])


def test_bytes_after_the_end(tmp_path: Path) -> None:
    rep, before = fill(tmp_path), tree(tmp_path)
    path = tmp_path / FOLDER / "part-00000.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(
        RepalignError, match=f"bytes after its end\n  expected: {size:,} bytes\n  got: {size + 1:,} "
    ):
        rep.load("block.0")
    _heal(tmp_path, before, ["part-00000.safetensors"])


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    fill(tmp_path)
    folder = LocalFiles(tmp_path)
    name = f"{FOLDER}/part-00001.safetensors"
    path = tmp_path / name
    data = path.read_bytes()
    assert verify(folder, name).file_sha256 == hashlib.sha256(data).hexdigest()
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        with pytest.raises(
            BrokenError, match=r"^(is corrupt|is cut short|has a header that is not repalign's)"
        ):
            verify(folder, name)


def test_a_flipped_bit_is_named_and_mended(tmp_path: Path) -> None:
    rep, before = fill(tmp_path), tree(tmp_path)
    path = tmp_path / FOLDER / "part-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 128
    path.write_bytes(data)
    was = hashlib.sha256(features()["block.0"][2:4].numpy().tobytes()).hexdigest()
    now = hashlib.sha256(data[-16:]).hexdigest()
    text = "is corrupt: layer:block.0 is not what was written"
    with pytest.raises(
        RepalignError, match=rf"^name: {re.escape(str(path))} {text}\n  expected: {was}\n  got: {now}"
    ):
        rep.load("block.0")
    (problem,) = check(tmp_path)
    assert problem.path == str(path) and problem.problem == f"{text} (expected {was}, got {now})"
    assert check(tmp_path, deep=False) == []  # the size is right
    writer = open_writer(tmp_path)
    assert [part.index for part in writer.missing()] == [1]
    write_part(writer, writer.parts[1])
    writer.finish(RECORD, {"pooling": "mean"})
    assert tree(tmp_path) == before


def test_a_header_that_is_not_ours(tmp_path: Path) -> None:
    rep = fill(tmp_path)
    path = tmp_path / FOLDER / "part-00001.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2)}, path)
    with pytest.raises(RepalignError, match="has a header that is not repalign's"):
        rep.load("block.0")
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"x" * 100)
    with pytest.raises(
        RepalignError, match=r"is corrupt\n  expected: a safetensors header\n  got: a header of 1,099"
    ):
        rep.load("block.0")


def test_a_whole_part_that_is_not_the_one_of_the_manifest(tmp_path: Path) -> None:
    """Right in itself, of the right size, but other numbers."""
    fill(tmp_path)
    writer = open_writer(tmp_path / "other")
    write_part(writer, writer.parts[0], features(seed=1))
    name = f"{FOLDER}/part-00000.safetensors"
    (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    (rep,) = FeatureStore(tmp_path).representations()
    with pytest.raises(RepalignError, match=rf"^name: .*{name} is not the part of which the manifest speaks"):
        rep.load("block.0")
    (problem,) = [p for p in check(tmp_path) if p.path.endswith("manifest.json")]
    assert problem.problem.startswith("does not agree with part-00000.safetensors: header_sha256 is ")


# ---- files of something else in the folder --------------------------------------------------------------


OTHERS: dict[str, tuple[dict, str, str]] = {
    "revision": ({"record": ModelRecord("hf:org/name", "n", "text", "beef")}, "c0ffee", "beef"),
    "spec": ({"record": ModelRecord("hf:org/eman", "n", "text", "c0ffee")}, "hf:org/name", "hf:org/eman"),
    "settings.pooling": ({"settings": SETTINGS | {"pooling": "last"}}, "mean", "last"),
    "settings.bos": ({"settings": SETTINGS | {"bos": "skip"}}, "(absent)", "skip"),
    "dataset_fingerprint": ({"dataset": DATASET | {"fingerprint": "cd" * 32}}, FINGERPRINT, "cd" * 32),
    "ids": ({"ids": ("wren", "robin", "gull", "owl", "crow")}, '["rook"]', '["crow"]'),
}


@pytest.mark.parametrize("field", OTHERS)
def test_a_part_of_another_extraction(tmp_path: Path, field: str) -> None:
    kwargs, expected, got = OTHERS[field]
    other = open_writer(tmp_path / "other", **kwargs)
    for part in other.parts:
        write_part(other, part)
    folder = tmp_path / "store" / FOLDER
    folder.mkdir(parents=True)
    (tmp_path / "store" / "repalign-store.json").write_text('{"format":1,"kind":"repalign feature store"}\n')
    source = tmp_path / "other" / other.folder / "part-00002.safetensors"
    (folder / "part-00002.safetensors").write_bytes(source.read_bytes())
    with pytest.raises(RepalignError) as caught:
        open_writer(tmp_path / "store").missing()
    assert str(caught.value).startswith(
        f"{folder}/part-00002.safetensors is of another extraction: the field {field!r} differs\n"
        f"  expected: {field} {expected}\n  got: {field} {got}\n  do: "
    )
    if field != "ids":
        problems = [p.problem for p in check(tmp_path / "store") if p.path.endswith(".safetensors")]
        assert problems == [f"is of another extraction: it belongs in {other.folder}"]


def test_a_manifest_of_another_model(tmp_path: Path) -> None:
    """A folder copied under the name of another one."""
    other = fill(tmp_path / "other", ModelRecord("hf:org/eman", "eman", "text", "c0ffee"))
    folder = tmp_path / "store" / FOLDER
    folder.mkdir(parents=True)
    (tmp_path / "store" / "repalign-store.json").write_text('{"format":1,"kind":"repalign feature store"}')
    (folder / "manifest.json").write_bytes((Path(other.path) / "manifest.json").read_bytes())
    text = (
        f"{folder}/manifest.json is of another extraction: the field 'spec' differs\n"
        "  expected: spec hf:org/name\n  got: spec hf:org/eman\n"
        f"  do: move {folder} away or delete it, and run the extraction again"
    )
    store = FeatureStore(tmp_path / "store")
    with message(text):
        open_writer(tmp_path / "store").missing()
    with message(text):
        store.find(FINGERPRINT, RECORD.spec, RECORD.revision, SETTINGS)
    first = check(tmp_path / "store")[0]
    assert first.path == f"{folder}/manifest.json"
    assert first.problem == f"is of another extraction: it belongs in {other.folder}"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": 1}', "\xff"])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    fill(tmp_path)
    path = tmp_path / FOLDER / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    store = FeatureStore(tmp_path)
    with pytest.raises(RepalignError, match=rf"^{re.escape(str(path))} is not a manifest of a feature store: "):
        store.representations()
    assert store.find(FINGERPRINT, "hf:org/name", "c0ffee", SETTINGS) is None  # it is written anew
    (problem,) = check(tmp_path)
    assert problem.path == str(path) and problem.problem.startswith("is not a manifest: ")


def test_other_rows_per_part(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, rows_per_part=2)
    write_part(writer, writer.parts[0])
    folder = tmp_path / FOLDER
    with message(
        f"{folder}/part-00000.safetensors is of another extraction: the field 'rows' differs\n"
        "  expected: rows [0, 4]\n  got: rows [0, 2]\n"
        f"  do: use the rows per part that this store was begun with, or delete {folder}"
    ):
        open_writer(tmp_path, rows_per_part=4).missing()
    write_part(writer, writer.parts[2])
    with message(
        f"{folder}/part-00002.safetensors is not one of the 2 parts\n"
        "  expected: parts of 4 rows up to part-00001.safetensors\n  got: part-00002.safetensors\n"
        f"  do: use the rows per part that this store was begun with, or delete {folder}"
    ):
        open_writer(tmp_path, rows_per_part=4).missing()


# ---- check ---------------------------------------------------------------------------------------------


def test_check_names_what_is_not_complete(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    for part in writer.parts[:2]:
        write_part(writer, part)
    remedy = "run the extraction again: it resumes; or delete the folder"
    text = "is not complete: there is no manifest.json, 4 of 5 rows are there"
    assert check(tmp_path) == [Problem(str(tmp_path / FOLDER), text, remedy)]
    assert FeatureStore(tmp_path).representations() == []
    for path in (tmp_path / FOLDER).iterdir():
        path.unlink()
    text = "is not complete: there is no manifest.json, no part is whole"
    assert check(tmp_path) == [Problem(str(tmp_path / FOLDER), text, remedy)]


def test_check_names_files_that_do_not_belong(tmp_path: Path) -> None:
    fill(tmp_path)
    names = [
        "notes.txt",
        f"{FINGERPRINT[:16]}/a.npy",
        f"{FINGERPRINT[:16]}/hf-org-name/b.pt",
        f"{FOLDER}/c.json",
    ]
    for name in names:
        (tmp_path / name).touch()
    problems = check(tmp_path)
    assert sorted(p.path for p in problems) == sorted(str(tmp_path / name) for name in names)
    assert {(p.problem, p.remedy) for p in problems} == {
        ("does not belong in a feature store", "move it out of the store; repalign does not read it")
    }
    assert str(problems[0]).startswith(
        f"{problems[0].path} does not belong in a feature store\n  do: move it"
    )


TAMPERED = {
    "rows": (lambda m: m["parts"][1].update(rows=[2, 3]), "rows.* is "),
    "ids": (lambda m: m["ids"].reverse(), "ids is "),
    "n": (lambda m: m.update(n=6), "n is 6 here and 5 in the part"),
    "width": (lambda m: m["layers"][1].update(width=5), "layers is "),
    "dtype": (lambda m: m["layers"][1].update(dtype="BF16"), "layers is "),
    "extras": (lambda m: m.update(extras=[]), "extras is "),
    "weights": (
        lambda m: m["extraction"].update(weights_fingerprint="x"),
        "extraction.weights_fingerprint is x here and w1 in the part",
    ),
    "size": (lambda m: m["parts"][0].update(size=1), r"size is 1 here and \d+ in the part"),
    "sha256": (lambda m: m["parts"][0].update(sha256="0"), "sha256 is 0 here and [0-9a-f]{64} in the part"),
    "seal": (
        lambda m: m["parts"][0].update(header_sha256="0"),
        "header_sha256 is 0 here and [0-9a-f]{64} in",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_check_holds_the_manifest_to_the_parts(tmp_path: Path, case: str) -> None:
    tamper, text = TAMPERED[case]
    fill(tmp_path)
    path = tmp_path / FOLDER / "manifest.json"
    manifest = json.loads(path.read_bytes())
    tamper(manifest)
    path.write_text(json.dumps(manifest))
    problems = check(tmp_path)
    assert problems and {p.path for p in problems} == {str(path)}
    assert re.match(rf"does not agree with part-0000\d\.safetensors: {text}", problems[0].problem)


def test_check_sees_parts_that_the_manifest_leaves_out(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / FOLDER / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["parts"][1]
    path.write_text(json.dumps(manifest))
    assert [(Path(p.path).name, p.problem) for p in check(tmp_path)] == [
        ("part-00001.safetensors", "is not in the manifest"),
        ("manifest.json", "does not cover its rows: n is 5, 5 ids, parts [[0, 2], [4, 5]]"),
    ]


def test_check_sees_a_renamed_folder(tmp_path: Path) -> None:
    fill(tmp_path)
    folder = tmp_path / FOLDER
    folder.rename(folder.with_name("0" * 16))
    assert {p.problem for p in check(tmp_path)} == {f"is of another extraction: it belongs in {FOLDER}"}


def test_check_tells_how_far_it_is(tmp_path: Path) -> None:
    fill(tmp_path)
    fill(tmp_path, ModelRecord("hf:x", "x", "text"))
    calls = []

    def progress(task: str, done: int, total: int, note: str | None = None) -> None:
        calls.append((task, done, total, note))

    check(tmp_path, progress=progress)
    assert calls == [(f"checking {tmp_path}", done, 6, None) for done in range(7)]


# ---- temporary files, full disks -----------------------------------------------------------------------


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    open_writer(tmp_path)
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    left = folder / ".part-00000.safetensors.tmp-123-0a1b2c3d"
    left.write_bytes(b"half")
    at_root = tmp_path / ".repalign-store.json.tmp-123-0a1b2c3d"
    at_root.write_bytes(b"")
    halves = [p for p in check(tmp_path) if ".tmp-" in p.path]
    assert halves == [
        Problem(str(path), "is a half-written file of a run that was cut off", "delete it")
        for path in (at_root, left)
    ]
    fill(tmp_path)
    assert not left.exists() and not at_root.exists() and check(tmp_path) == []


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    live = folder / ".part-00000.safetensors.tmp-123-0a1b2c3d"
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'xb'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); "
        "sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(live)], stdin=pipe, stdout=pipe) as other:
        assert other.stdout and other.stdin
        other.stdout.readline()
        assert len(writer.missing()) == 3 and live.exists()
        assert [p for p in check(tmp_path) if p.path == str(live)] == []
        other.stdin.close()
        other.wait()
    assert len(writer.missing()) == 3 and not live.exists()


def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.local, "fcntl", None)
    writer = open_writer(tmp_path)
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    young, old = (folder / f".part-00000.safetensors.tmp-123-0000000{i}" for i in (0, 1))
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    writer.missing()
    assert young.exists() and not old.exists()


def test_a_swept_temporary_file_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep may come between the creation of the file and its lock."""
    writer = open_writer(tmp_path)
    sweeps, lock = [2], files.local.lock

    def swept_first(handle) -> bool | None:
        if sweeps[0]:
            sweeps[0] -= 1
            Path(handle.name).unlink(missing_ok=True)
        return lock(handle)

    monkeypatch.setattr(files.local, "lock", swept_first)
    write_part(writer, writer.parts[0])
    assert [part.index for part in open_writer(tmp_path).missing()] == [1, 2]
    sweeps[0] = 100
    with pytest.raises(
        RepalignError, match=r"part-00001\.safetensors: the temporary file was removed three times"
    ):
        write_part(writer, writer.parts[1])


def test_a_sweep_spares_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer(tmp_path)
    written: list[str] = []

    def write(handle, chunk) -> None:
        handle.write(chunk)
        LocalFiles(tmp_path).sweep(FOLDER)
        written.append(handle.name)

    on_write(monkeypatch, write)
    write_part(writer, writer.parts[0])
    assert len(set(written)) == 1 and len(written) == 4  # the header and three tensors, written once


def test_the_manifest_speaks_of_the_files_that_are_there(tmp_path: Path) -> None:
    """Another process has replaced a part by one with slightly other numbers since this one checked it."""
    writer = open_writer(tmp_path)
    for part in writer.parts:
        write_part(writer, part)
    write_part(open_writer(tmp_path), writer.parts[0], features(seed=1))
    rep = writer.finish(RECORD, {})
    assert check(tmp_path) == []
    assert torch.equal(rep.load("block.0")[:2], features(seed=1)["block.0"][:2])


@pytest.mark.parametrize("target", ["part-00001.safetensors", "manifest.json"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    writer = open_writer(tmp_path)
    for part in writer.parts if target == "manifest.json" else writer.parts[:1]:
        write_part(writer, part)
    before = tree(tmp_path)

    def half_then_full(handle, chunk) -> None:
        handle.write(chunk[: len(chunk) // 2])
        raise OSError(28, "No space left on device")

    on_write(monkeypatch, half_then_full)
    path = re.escape(str(tmp_path / FOLDER / target))
    folder = re.escape(str(tmp_path / FOLDER))
    text = (
        rf"^{path} cannot be written: the disk is full\n  expected: room for [\d,]+ bytes\n"
        rf"  got: [\d,]+ bytes free in {folder}\n"
        r"  do: free some space and run again: what is finished is kept$"
    )
    with pytest.raises(RepalignError, match=text):
        if target == "manifest.json":
            writer.finish(RECORD, {})
        else:
            write_part(writer, writer.parts[1])
    assert tree(tmp_path) == before  # no half file, and no temporary one
    monkeypatch.undo()
    fill(tmp_path)
    assert check(tmp_path) == []


def test_a_write_that_the_system_refuses_half_way(tmp_path: Path) -> None:
    """A real error of the kernel in the middle of a write: a limit on the size of files."""
    code = (
        "import resource, sys; sys.path[:0] = sys.argv[2:]; from repalign.files import LocalFiles\n"
        "from pathlib import Path; from repalign.errors import RepalignError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: LocalFiles(Path(sys.argv[1])).write('a/b', b'x' * 900, b'y' * 900)\n"
        "except RepalignError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *sys.path], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(f"{tmp_path / 'a/b'} cannot be written: File too large\n  do: ")
    assert tree(tmp_path) == {}


def test_a_part_rewritten_with_other_numbers_withdraws_the_manifest(tmp_path: Path) -> None:
    fill(tmp_path)
    manifest = tmp_path / FOLDER / "manifest.json"
    writer = open_writer(tmp_path)
    write_part(writer, writer.parts[0])  # the same bytes: still complete
    assert manifest.exists() and check(tmp_path) == []
    write_part(writer, writer.parts[0], features(seed=1))
    assert not manifest.exists() and FeatureStore(tmp_path).representations() == []
    writer.finish(RECORD, {})
    assert check(tmp_path) == []


# ---- URLs ----------------------------------------------------------------------------------------------


def test_a_url_holds_the_same_bytes(tmp_path: Path) -> None:
    import fsspec

    fill(tmp_path)
    url = "memory://test_a_url/store"
    rep = fill(url)
    fs = fsspec.filesystem("memory")
    root = "/test_a_url/store"
    remote = {p.removeprefix(root + "/"): fs.cat_file(p) for p in fs.find(root)}
    assert remote == tree(tmp_path)
    assert rep.path == f"{url}/{FOLDER}" and check(url) == []
    assert torch.equal(FeatureStore(url + "/").representations()[0].load("block.0"), features()["block.0"])
    assert [len(x) for _, x in rep.iter_rows("block.0", 3)] == [3, 2]

    name = f"{root}/{FOLDER}/part-00001.safetensors"
    fs.pipe_file(name, remote[f"{FOLDER}/part-00001.safetensors"][:-5])
    with pytest.raises(RepalignError, match=rf"^name: {url}/{FOLDER}/part-00001\.safetensors is cut short\n"):
        FeatureStore(url).representations()[0].load("block.0")
    assert [p.path for p in check(url)] == [f"{url}/{FOLDER}/part-00001.safetensors"]
    fs.rm_file(f"{root}/{FOLDER}/manifest.json")
    writer = open_writer(url)
    assert [part.index for part in writer.missing()] == [1]
    write_part(writer, writer.parts[1])
    writer.finish(RECORD, {"pooling": "mean"})
    assert {p.removeprefix(root + "/"): fs.cat_file(p) for p in fs.find(root)} == tree(tmp_path)


def test_a_url_that_is_no_store() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/test_no_store/x.txt", b"")
    with pytest.raises(
        RepalignError, match=r"^memory://test_no_store is not a feature store: it holds other things"
    ):
        FeatureStore("memory://test_no_store")
    with pytest.raises(RepalignError, match=r"^there is no feature store at memory://test_nothing"):
        check("memory://test_nothing")


def test_file_urls_are_local_paths(tmp_path: Path) -> None:
    fill(f"file://{tmp_path}/s")
    assert check(tmp_path / "s") == []


# ---- no pickle, and the seal ---------------------------------------------------------------------------


def test_the_seal_is_found_where_names_imitate_it(tmp_path: Path) -> None:
    imitation = '"sha256":"' + "0" * 64 + '"'
    writer = open_writer(tmp_path, settings={imitation: imitation})
    write_part(writer, writer.parts[0], {imitation: torch.ones(5, 1)}, header=HEADER | {"x": imitation})
    data = (tmp_path / writer.folder / "part-00000.safetensors").read_bytes()
    head = data[: 8 + int.from_bytes(data[:8], "little")]
    (seal,) = re.findall(rb'"sha256":"([0-9a-f]{64})"', head)
    assert hashlib.sha256(head.replace(seal, b"0" * 64)).hexdigest().encode() == seal


def test_no_pickle_in_the_store() -> None:
    sources = Path(str(sys.modules["repalign.store"].__file__)).parent.glob("*.py")
    for source in sources:
        assert not re.search(r"\bpickle\b|torch\.(load|save)\b|np\.load", source.read_text()), source
