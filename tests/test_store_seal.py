"""The seal of a manifest: whatever bytes it holds, it is read as it was written or refused, and `check` names it."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch

from repalign.errors import RepalignError
from repalign.files import LocalFiles
from repalign.models import ModelRecord
from repalign.store import FeatureStore, check
from repalign.store.format import read_manifest

FINGERPRINT = "cd" * 32
IDS = ("a", "b", "c", "d", "e", "f")
X = torch.arange(18, dtype=torch.float32).reshape(6, 3)
RECORD = ModelRecord("toy:net", "net", "image", "r1", n_parameters=1000, scores={"bits_per_byte": 2.81})
SETTINGS = {"pooling": "mean"}
GIVEN = {"dataset": {"name": "d", "fingerprint": FINGERPRINT}, "record": RECORD, "settings": SETTINGS, "ids": IDS}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    fill(tmp_path)
    return next(tmp_path.rglob("manifest.json"))


def fill(url: Path) -> None:
    writer = FeatureStore(url).writer(**GIVEN, rows_per_part=2)
    for part in writer.missing():
        writer.write(part, {"x": X[part.start : part.stop]}, header={"weights_fingerprint": "w", "note": "n"})
    writer.finish(RECORD, {"pooled_in": "float32"})


def store_of(manifest: Path) -> Path:
    return manifest.parents[3]


def used(manifest: Path) -> tuple[torch.Tensor, dict]:
    """Everything that a user may take from it."""
    (r,) = FeatureStore(store_of(manifest)).representations()
    blocks = torch.cat([block for _, block in r.iter_rows("x", 4)])
    assert torch.equal(blocks, r.load("x"))
    return blocks, {"record": r.record, "facts": dict(r.facts), "ids": r.ids, "layers": r.layers, "n": r.n}


def test_every_flipped_byte_is_found(manifest: Path) -> None:
    data = manifest.read_bytes()
    files, folder = LocalFiles(store_of(manifest)), str(manifest.parent.relative_to(store_of(manifest)))
    for at in range(0, len(data), 3):
        manifest.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        try:
            found = read_manifest(files, folder)
        except RepalignError:
            continue
        assert found is not None and found.flaw is not None, f"byte {at} of {len(data)}"
    manifest.write_bytes(data)
    assert used(manifest)[1]["record"] == RECORD and check(store_of(manifest)) == []


def formats(manifest: Path) -> list[dict]:
    """The manifest as it is, and as it was before it had a seal."""
    new = json.loads(manifest.read_bytes())
    return [new, {k: v for k, v in new.items() if k != "kind" and "seal" not in k} | {"format": 1}]


def places(value: object, at: tuple = ()) -> list[tuple]:
    """Where every value stands, to three levels."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [p for k, v in inner for p in places(v, (*at, k)) if len(p) <= 3]


DEEP = "[" * 90 + "]" * 90
ODD = [None, True, -1, 1.5, "", "x", [], {}, [[0, 1]], json.loads(DEEP)]


@pytest.mark.parametrize("sealed", [True, False])
def test_no_value_of_any_field_is_a_way_past_the_check(manifest: Path, sealed: bool) -> None:
    said = formats(manifest)[0 if sealed else 1]
    free = {("dataset",), ("facts",), ("versions",), ("settings",), ("record",)}  # which no part states, but spec and so on
    for i, at in enumerate(places(said)):
        for odd in ODD[i % 3 :: 3]:
            changed = copy.deepcopy(said)
            block: object = changed
            for key in at[:-1]:
                block = block[key]  # type: ignore[index]
            if block[at[-1]] == odd and type(block[at[-1]]) is type(odd):  # type: ignore[index]
                continue
            block[at[-1]] = odd  # type: ignore[index]
            manifest.write_text(json.dumps(changed))
            problems = check(store_of(manifest), deep=False)
            assert problems, (at, odd)
            if not sealed and (at[:1] in free or at[-1] in ("sha256", "format")):
                continue
            with pytest.raises(RepalignError):
                used(manifest)


BYTES = {
    "nothing": b"",
    "zeros": b"\0" * 400,
    "no text": b"\xff\xfe{}",
    "no object": b"null",
    "a list": b"[1, 2]",
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 60_000 + b"1" + b"}" * 60_000,
    "deep in a field": b'{"format": 2, "settings": ' + b"[" * 500 + b"]" * 500 + b"}",
    "a long number": b'{"format": ' + b"9" * 10_000 + b"}",
    "format 99": b'{"format": 99, "kind": "repalign extraction"}',
    "format true": b'{"format": true}',
}


@pytest.mark.parametrize("case", BYTES)
def test_check_does_not_die_of_any_bytes(manifest: Path, case: str) -> None:
    manifest.write_bytes(BYTES[case])
    (problem,) = check(store_of(manifest))
    assert problem.path == str(manifest) and problem.remedy
    with pytest.raises(RepalignError, match="manifest.json is"):
        FeatureStore(store_of(manifest)).representations()


def test_every_cut_is_named(manifest: Path) -> None:
    data = manifest.read_bytes()
    for stop in range(0, len(data), 41):
        manifest.write_bytes(data[:stop])
        assert [p.path for p in check(store_of(manifest), deep=False)] == [str(manifest)]


EDITS = {
    "a score": (lambda m: m["record"]["scores"].update(bits_per_byte=1.0), "record, facts"),
    "parameters": (lambda m: m["record"].update(n_parameters=1), "record, facts"),
    "a fact": (lambda m: m["facts"].update(pooled_in="float16"), "record, facts"),
    "the first part left out": (lambda m: m["parts"].pop(0), r"does not cover its rows: n is 6, 6 ids, parts \[\[2, 4\]"),
    "the last part left out": (lambda m: m["parts"].pop(), "does not cover its rows"),
    "a part twice": (lambda m: m["parts"].insert(1, m["parts"][0]), "does not cover its rows"),
    "parts in another order": (lambda m: m["parts"].reverse(), "does not cover its rows"),
    "fewer rows": (lambda m: (m.update(n=4, ids=m["ids"][:4]), m["parts"].pop()), "(n|ids), which is"),
    "an id": (lambda m: m["ids"].__setitem__(3, "z"), "ids, which is"),
    "a width": (lambda m: m["layers"][0].update(width=1), "layers, which is"),
    "the weights": (lambda m: m["extraction"].update(weights_fingerprint="v"), "extraction.weights_fingerprint, which is v here"),
    "files exchanged": (
        lambda m: [p.update(file=f"part-0000{1 - i}.safetensors") for i, p in enumerate(m["parts"][:2])], "rows, which is",
    ),
    "the seal taken out": (lambda m: [m.pop(k) for k in ("repalign-seal", "repalign-seal-rule")], "of format 2, with no seal"),
    "format 1 with a seal": (lambda m: m.update(format=1), "is not what was written"),
}  # fmt: skip


@pytest.mark.parametrize("case", EDITS)
def test_an_edit_is_refused_with_file_and_field(manifest: Path, case: str) -> None:
    edit, words = EDITS[case]
    said = json.loads(manifest.read_bytes())
    edit(said)
    manifest.write_text(json.dumps(said, sort_keys=True, indent=1) + "\n")
    assert check(store_of(manifest))
    (r,) = FeatureStore(store_of(manifest)).representations()
    assert r.record.scores == {} and r.name == "net"  # what the edit may have changed is not passed on
    for use in (lambda: r.load("x"), lambda: r.ids, lambda: r.facts, lambda: r.extra("e"), lambda: next(r.iter_rows("x", 1))):
        with pytest.raises(RepalignError, match=rf"net/.*/manifest\.json (.|\n)*{words}(.|\n)*do: run the extraction again"):
            use()


PARTS_STATE = ["the first part left out", "the last part left out", "a part twice", "parts in another order", "fewer rows",
               "an id", "a width", "the weights", "files exchanged"]  # fmt: skip


@pytest.mark.parametrize("case", PARTS_STATE)
def test_a_manifest_without_a_seal_is_held_to_its_parts(manifest: Path, case: str) -> None:
    said = formats(manifest)[1]
    EDITS[case][0](said)
    manifest.write_text(json.dumps(said))
    assert {p.problem for p in check(store_of(manifest))} != {"has no seal: a repalign before it knew seals wrote it"}
    with pytest.raises(RepalignError, match="manifest"):
        used(manifest)


def test_a_manifest_from_before_the_seal_is_read_and_sealed_on_request(manifest: Path) -> None:
    sealed, before = manifest.read_bytes(), used(manifest)
    manifest.write_text(json.dumps(formats(manifest)[1], sort_keys=True, indent=1) + "\n")
    after = used(manifest)
    assert torch.equal(before[0], after[0]) and before[1] == after[1]
    assert FeatureStore(store_of(manifest)).find(FINGERPRINT, RECORD.spec, RECORD.revision, SETTINGS) is not None
    (problem,) = check(store_of(manifest))
    assert "has no seal" in problem.problem and "delete this file and run the extraction again" in problem.remedy
    manifest.unlink()
    fill(store_of(manifest))
    assert manifest.read_bytes() == sealed and check(store_of(manifest)) == []


HEADERS = {
    "layers null": {"layers": None}, "a layer that is not there": {"layers": ["y"]}, "rows text": {"rows": "02"},
    "rows of another length": {"rows": [0, 3]}, "no ids": {"ids": []}, "n text": {"n": "6"}, "extras a number": {"extras": 1},
    "settings a list": {"settings": []}, "no versions": {"versions": None},
    "deep": {"extraction": json.loads("[" * 300 + "]" * 300)},
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_check_does_not_die_of_a_header_that_somebody_sealed(manifest: Path, case: str) -> None:
    part = manifest.with_name("part-00000.safetensors")
    data = part.read_bytes()
    stop = 8 + int.from_bytes(data[:8], "little")
    index = json.loads(data[8:stop])
    index["__metadata__"]["repalign"] = json.dumps(json.loads(index["__metadata__"]["repalign"]) | HEADERS[case])
    index["__metadata__"]["sha256"] = "0" * 64
    body = json.dumps(index, separators=(",", ":")).encode()
    head = len(body).to_bytes(8, "little") + body
    part.write_bytes(head.replace(b"0" * 64, hashlib.sha256(head).hexdigest().encode()) + data[stop:])
    assert ("part-00000.safetensors", "has a header that is not repalign's") in [
        (Path(p.path).name, p.problem) for p in check(store_of(manifest))
    ]


@pytest.mark.parametrize("broken", [b"", b"null", None])
def test_the_next_extraction_mends_a_broken_manifest(manifest: Path, broken: bytes | None) -> None:
    whole, parts = manifest.read_bytes(), {p: p.stat().st_ino for p in manifest.parent.glob("part-*")}
    manifest.write_bytes(whole.replace(b"2.81", b"1.81") if broken is None else broken)
    assert FeatureStore(store_of(manifest)).find(FINGERPRINT, RECORD.spec, RECORD.revision, SETTINGS) is None
    assert FeatureStore(store_of(manifest)).whole({"fingerprint": FINGERPRINT}) == []
    fill(store_of(manifest))
    assert len(FeatureStore(store_of(manifest)).whole({"fingerprint": FINGERPRINT})) == 1
    assert manifest.read_bytes() == whole and {p: p.stat().st_ino for p in manifest.parent.glob("part-*")} == parts


def test_a_newer_manifest_is_not_written_over(manifest: Path) -> None:
    newer = b'{"format": 3, "kind": "repalign extraction"}'
    manifest.write_bytes(newer)
    for use in (lambda: fill(store_of(manifest)), FeatureStore(store_of(manifest)).representations):
        with pytest.raises(RepalignError, match=r"of another format\n  expected: format 1 or 2\n  got: format 3\n  do: install"):
            use()
    assert manifest.read_bytes() == newer


@pytest.mark.parametrize(
    "text", ['{"format":1}', '{"format":1,"kind":"something else"}', '{"format":1,"kind":null}', "[" * 100_000, "1", '"format"']
)
def test_the_marker_says_what_kind_of_folder_it_is(manifest: Path, text: str) -> None:
    (store_of(manifest) / "repalign-store.json").write_text(text)
    with pytest.raises(RepalignError, match=r"repalign-store\.json is not the marker of a feature store"):
        check(store_of(manifest))
