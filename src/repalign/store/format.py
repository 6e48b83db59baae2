"""The files of an extraction: parts, which hold the features, and the manifest, which says that all parts are there.

A part is a block of rows of every layer in one safetensors file whose bytes follow from its content. It carries its own
proof: the digest of each tensor stands in the header, and so does the digest of the header, taken with its own 64 digits
read as zeros. So a reader of one layer checks just the bytes that it reads, and a cut or a flipped bit anywhere is named.
The manifest is sealed as a whole (`repalign.files`), since nothing else covers what it says besides its parts (scores,
facts). `docs/store.md` has the format on a page.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.files import Chunk, DamagedError, Files, Unreachable, check_seal
from repalign.models import ModelRecord

FORMAT = 1  # of parts, and of the store as a whole
MANIFEST = "manifest.json"
MANIFEST_FORMAT = 2  # 1 had no seal: it is read, and held to its parts alone
KIND = "repalign extraction"
PART = re.compile(r"^part-\d{5,}\.safetensors$")
DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
LAYER, EXTRA = "layer:", "extra:"
AGAIN = "run the extraction again: parts that are whole are kept, and the manifest is written anew"

_ZEROS = "0" * 64
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # quotes inside strings are escaped: it matches once
_DEEPEST = 100  # levels of JSON: whatever walks through a header or a manifest needs no bound of its own
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors format
_FIRST, _AT_ONCE = 1 << 16, 1 << 24  # bytes: what is read to find a header; a part that is read in one piece

# The fields in which all files of one folder agree, and what each file must hold: no later use meets another type.
IDENTITY = ("format", "dataset_fingerprint", "spec", "revision", "settings")
_TEXT = (str, NoneType)
_HEADER = {
    "spec": str, "dataset_fingerprint": str, "revision": _TEXT, "settings": dict, "extraction": dict, "versions": dict,
    "layers": [str], "extras": [str], "n": int, "rows": [int], "ids": [str], "sha256": dict,
}  # fmt: skip
_RECORD = {
    "spec": str, "name": str, "modality": str, "revision": _TEXT, "family": _TEXT, "objective": _TEXT,
    "n_parameters": (int, NoneType), "scores": {...: (int, float)},
}  # fmt: skip
_MANIFEST = {
    "dataset": {"fingerprint": str}, "record": _RECORD, "settings": dict, "facts": dict, "extraction": dict, "versions": list,
    "layers": [{"name": str, "width": int, "dtype": str}], "extras": [str], "n": int, "ids": [str],
    "parts": [{"file": str, "rows": [int], "size": int, "sha256": str, "header_sha256": str}],
}  # fmt: skip


@dataclass(eq=False)
class BrokenError(Exception):
    """A file that cannot be used: what is wrong with it, in words that follow its name."""

    problem: str
    expected: str | None = None
    got: str | None = None

    def __str__(self) -> str:
        details = [f"{k} {v}" for k, v in (("expected", self.expected), ("got", self.got)) if v]
        return f"{self.problem} ({', '.join(details)})" if details else self.problem


# --- JSON that is held to a form -----------------------------------------------------------------


def canonical(value: object, what: str) -> str:
    """JSON with sorted keys, no spaces, ASCII only: equal values give equal text."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RepalignError(
            f"{what} cannot be written as JSON: {error}",
            expected="text, finite numbers, true, false, null, lists and dictionaries of these",
        ) from error


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text. ValueError if it is none, or has more levels than any file of a store."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("too many levels") from error
    level = [value]
    for _ in range(_DEEPEST):
        outer = (x.values() if isinstance(x, dict) else x for x in level if isinstance(x, (dict, list)))
        level = [inner for values in outer for inner in values]
        if not level:
            return value
    raise ValueError(f"more than {_DEEPEST} levels")


def check_types(value: Any, form: Any, where: str = "") -> None:
    """ValueError, naming the field, unless a value has a form: a type, a list of one form, or fields with forms (...: any)."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'it'} is {shown(value)}, not an object")
        for field, inner in (dict.fromkeys(value, form[...]) if ... in form else form).items():
            at = f"{where}.{field}" if where else field
            if field not in value:
                raise ValueError(f"{at} is missing")
            check_types(value[field], inner, at)
    elif isinstance(form, list):
        check_types(value, list, where)
        if isinstance(form[0], type) and not all(type(v) is form[0] for v in value):  # in one go: there are many ids
            raise ValueError(f"{where} is {shown(value)}, not a list of {form[0].__name__}")
        for i, item in enumerate(value) if isinstance(form[0], dict) else ():
            check_types(item, form[0], f"{where}[{i}]")
    elif not isinstance(value, form) or isinstance(value, bool):
        raise ValueError(f"{where} is {shown(value)}")


def shown(value: object) -> str:
    """A value of a header in a message: short enough for a line."""
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 200 else f"{text[:200]}..."


# --- what names an extraction --------------------------------------------------------------------


def extraction_hash(dataset_fingerprint: str, spec: str, revision: str | None, settings: Mapping[str, Any]) -> str:
    """16 hex digits that name an extraction.

    The first half of the SHA-256 of `{"dataset_fingerprint":...,"revision":...,"settings":...,"spec":...}`
    as JSON with sorted keys, no spaces and ASCII only. Name, family, scores and the rest of the record
    do not enter: they say what the model is, not what its features are.
    """
    return identify(dataset_fingerprint, spec, revision, settings)[1].rpartition("/")[2]


def identify(
    dataset_fingerprint: str, spec: str, revision: str | None, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """The fields of `IDENTITY` as they come back from JSON, and the folder.

    The folder is `<dataset fingerprint[:16]>/<model slug>/<extraction hash>`. The slug is for people: what is not a letter,
    digit, dot, _ or - becomes one hyphen.
    """
    named = dict(zip(IDENTITY[1:], (dataset_fingerprint, spec, revision, settings), strict=True))
    text = canonical(named, f"the settings of {spec}")
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", spec).strip("-.")[:80] or "model"
    folder = f"{dataset_fingerprint[:16]}/{slug}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return {"format": FORMAT, **json.loads(text)}, folder


def identity_of(file: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that a manifest or the header of a part states; a manifest is of parts of this format."""
    if "dataset_fingerprint" in file:
        return {field: file.get(field) for field in IDENTITY}
    record = file["record"]
    values = (FORMAT, file["dataset"]["fingerprint"], record["spec"], record["revision"], file["settings"])
    return dict(zip(IDENTITY, values, strict=True))


def sees_the_same(manifest: Mapping[str, Any], dataset: Mapping[str, Any]) -> bool:
    """Whether the model of a manifest would read of a dataset, as `Dataset.describe` has it, the very stimuli that it has read.

    True also where other columns differ: a noise on images changes nothing that a language model reads. Columns of the same
    names and kinds are asked for, since by these a model finds its own. Manifests of before do not say what was seen.
    """
    theirs, column = manifest["dataset"], manifest["facts"].get("column")
    if theirs["fingerprint"] == dataset["fingerprint"]:
        return True
    if not theirs.get("seen") or theirs.get("kinds") != dataset.get("kinds"):
        return False
    return column in theirs["seen"] and theirs["seen"][column] == dataset["seen"].get(column)


def difference(expected: object, got: object, field: str = "") -> tuple[str, object, object] | None:
    """The first field, as a dotted path, in which two JSON values differ; None if they are equal."""
    if not isinstance(expected, dict) or not isinstance(got, dict):
        return None if expected == got else (field, expected, got)
    for key in sorted({*expected, *got}):
        inner = f"{field}.{key}" if field else key
        if key not in expected or key not in got:
            return inner, expected.get(key, "(absent)"), got.get(key, "(absent)")
        found = difference(expected[key], got[key], inner)
        if found:
            return found
    return None


def refuse_other(
    path: str, expected: Mapping[str, Any], got: Mapping[str, Any], *, folder: str = "", remedy: str | None = None
) -> None:
    """RepalignError, naming the file and the field, if the file is of another extraction than others of its folder."""
    remedy = remedy or f"move {folder} away or delete it, and run the extraction again"
    if found := difference(dict(expected), dict(got)):
        field, a, b = found
        problem = f"{path} is of another extraction: the field {field!r} differs"
        raise RepalignError(problem, expected=f"{field} {shown(a)}", got=f"{field} {shown(b)}", remedy=remedy)


# --- parts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """The place of a tensor in the file, and the digest of its bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    sha256: str


@dataclass(frozen=True)
class Head:
    """The checked header of a part."""

    header: dict[str, Any]
    entries: dict[str, Entry]
    layers: list[tuple[str, int, str]]  # (name, width, dtype) of each, in order
    sha256: str
    size: int  # of the whole file
    file_sha256: str = ""  # if every byte of the file has been checked


def encode(
    header: Mapping[str, Any], layers: Mapping[str, Tensor], extras: Mapping[str, Tensor]
) -> tuple[list[Chunk], Head]:
    """The bytes of a part, in pieces: first the header, then each tensor; and the part that they are once written."""
    tensors = {EXTRA + k: v for k, v in extras.items()} | {LAYER + k: v for k, v in layers.items()}
    # Wide types first, so that every tensor starts at a multiple of its item size. The sort is stable.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    flat = {name: x.detach().cpu().contiguous().flatten() for name, x in tensors.items()}
    data = {name: x.view(torch.uint8).numpy().data for name, x in flat.items()}
    index: dict[str, Any] = {}
    start = 0
    for name, x in tensors.items():
        stop = start + len(data[name])
        index[name] = {"dtype": DTYPES[x.dtype], "shape": list(x.shape), "data_offsets": [start, stop]}
        start = stop
    digests = {name: hashlib.sha256(chunk).hexdigest() for name, chunk in data.items()}
    text = canonical({**header, "sha256": digests}, "the header of a part")
    index["__metadata__"] = {"repalign": text, "sha256": _ZEROS}
    body = canonical(index, "the header of a part").encode()
    body += b" " * (-len(body) % 8)
    head = struct.pack("<Q", len(body)) + body
    head = _SEAL.sub(f'"sha256":"{hashlib.sha256(head).hexdigest()}"'.encode(), head)
    whole = hashlib.sha256(head)
    for chunk in data.values():
        whole.update(chunk)
    return [head, *data.values()], replace(_parse_head(head, len(head) + start), file_sha256=whole.hexdigest())


def read_head(files: Files, name: str, size: int | None = None) -> Head:
    """The header of a part, checked against its digest and against the size of the file, as a listing says it or the file."""
    size = files.size(name) if size is None else size
    if size is None:
        raise BrokenError("is missing")
    if size < 8:
        raise BrokenError("is cut short", "at least 8 bytes", f"{size:,} bytes")
    start = _read(files, name, 0, min(size, _FIRST))  # more than the length: behind a URL every request takes its time
    length: int = struct.unpack("<Q", start[:8])[0]
    if length > _LONGEST_HEADER:
        raise BrokenError("is corrupt", "a safetensors header", f"a header of {length:,} bytes")
    if 8 + length > size:
        raise BrokenError("is cut short", f"more than {8 + length:,} bytes", f"{size:,} bytes")
    if 8 + length > len(start):
        start += _read(files, name, len(start), 8 + length)
    return _parse_head(bytes(start[: 8 + length]), size)


def _parse_head(head: bytes, size: int) -> Head:
    seals = _SEAL.findall(head)
    if len(seals) != 1:
        raise BrokenError("has a header that is not repalign's")
    stated = seals[0].decode()
    found = hashlib.sha256(_SEAL.sub(f'"sha256":"{_ZEROS}"'.encode(), head)).hexdigest()
    if found != stated:
        raise BrokenError("is corrupt: the header is not the one that was written", stated, found)
    try:
        index = parse_json(head[8:])
        header = parse_json(index.pop("__metadata__")["repalign"])
        check_types(header, _HEADER)
        entries = {
            tensor: Entry(
                TORCH_DTYPES[item["dtype"]], tuple(item["shape"]), *(len(head) + at for at in item["data_offsets"]),
                sha256=header["sha256"][tensor],
            )
            for tensor, item in index.items()
        }  # fmt: skip
        rows = header["rows"][1] - header["rows"][0]
        names = [LAYER + name for name in header["layers"]] + [EXTRA + name for name in header["extras"]]
        if rows < 1 or len(header["rows"]) != 2 or len(header["ids"]) != rows or sorted(names) != sorted(entries):
            raise ValueError("rows, ids and tensors")
        for name, entry in entries.items():
            if entry.shape != (rows, *entry.shape[1:]) or len(entry.shape) != (2 if name.startswith(LAYER) else 1):
                raise ValueError(name)
            if entry.start < 0 or entry.stop - entry.start != math.prod(entry.shape) * entry.dtype.itemsize:
                raise ValueError(name)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BrokenError("has a header that is not repalign's") from error
    expected = max((e.stop for e in entries.values()), default=len(head))
    if size != expected:
        what = "is cut short" if size < expected else "has bytes after its end"
        raise BrokenError(what, f"{expected:,} bytes", f"{size:,} bytes")
    described = [(name, entries[LAYER + name]) for name in header["layers"]]
    return Head(header, entries, [(name, e.shape[1], DTYPES[e.dtype]) for name, e in described], stated, size)


def _read(files: Files, name: str, start: int, stop: int) -> bytearray:
    try:
        data = files.read(name, start, stop)
    except FileNotFoundError as error:
        raise BrokenError("is missing") from error
    except OSError as error:
        raise RepalignError(f"{files.root}/{name} cannot be read: {error.strerror or error}") from error
    if len(data) != stop - start:
        raise BrokenError("is cut short", f"{stop - start:,} bytes from {start:,} on", f"{len(data):,} bytes")
    return data


def read_tensor(files: Files, name: str, head: Head, tensor: str) -> Tensor:
    """One tensor of a part, checked against its digest."""
    entry = head.entries[tensor]
    data = _read(files, name, entry.start, entry.stop)
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise BrokenError(f"is corrupt: {tensor} is not what was written", entry.sha256, found)
    return torch.frombuffer(data, dtype=entry.dtype).reshape(entry.shape)


@dataclass(frozen=True)
class _Held:
    """One file that has been read, with as much of `Files` as reading takes."""

    root: object
    data: bytearray

    def size(self, name: str) -> int:  # noqa: ARG002
        return len(self.data)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:  # noqa: ARG002
        return self.data[start:stop]


def verify(files: Files, name: str, size: int | None = None) -> Head:
    """Read a whole part and check every byte of it, a large one with one tensor in memory at a time."""
    size = files.size(name) if size is None else size
    if size is not None and size <= _AT_ONCE:
        files = _Held(files.root, _read(files, name, 0, size))  # type: ignore[assignment]
    head = read_head(files, name, size)
    ordered = sorted(head.entries.items(), key=lambda item: item[1].start)
    position = ordered[0][1].start if ordered else head.size
    whole = hashlib.sha256(_read(files, name, 0, position))
    for tensor, entry in ordered:
        if entry.start != position:
            raise BrokenError(f"is corrupt: {tensor} does not start where the tensor before it ends")
        whole.update(read_tensor(files, name, head, tensor).flatten().view(torch.uint8).numpy().data)
        position = entry.stop
    return replace(head, file_sha256=whole.hexdigest())


# --- the manifest --------------------------------------------------------------------------------


class NewerFormat(RepalignError):  # noqa: N818
    """A manifest that this version does not know: it is not written over."""


@dataclass(frozen=True)
class Manifest:
    """The fields of a manifest, each of its type; and the flaw, if any, for which it is not believed."""

    data: dict[str, Any]
    flaw: BrokenError | None


def read_manifest(files: Files, folder: str) -> Manifest | None:
    """The manifest of a folder, or None if there is none. RepalignError if the file is no manifest, or of a newer format."""
    name = f"{folder}/{MANIFEST}"
    try:
        raw = bytes(files.read(name))
        data = parse_json(raw)
        check_types(data, {"format": int})
        if data["format"] in (1, MANIFEST_FORMAT):  # else told below, with a remedy of its own
            check_types(data, _MANIFEST)
            if data.get("kind", KIND) != KIND:
                raise ValueError(f"kind is {shown(data['kind'])}, not {KIND}")
            record = data["record"]
            ModelRecord(**record)
            check_types(record.get("factors", {}), {...: (int, float, str)}, "record.factors")  # written only if there are any
            for i, layer in enumerate(data["layers"]):
                if layer["dtype"] not in TORCH_DTYPES or layer["width"] < 1:
                    raise ValueError(f"layers[{i}] is {shown(layer)}")
            for i, part in enumerate(data["parts"]):
                if not PART.match(part["file"]) or len(part["rows"]) != 2:
                    raise ValueError(f"parts[{i}] is {shown(part)}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, OSError) as error:
        problem = f"{files.root}/{name} is not a manifest of a feature store: {type(error).__name__}: {error}"
        raise RepalignError(problem, remedy=AGAIN) from error
    if data["format"] not in (1, MANIFEST_FORMAT):
        raise NewerFormat(
            f"{files.root}/{name} is a manifest of another format", expected=f"format 1 or {MANIFEST_FORMAT}",
            got=f"format {data['format']}",
            remedy="install a repalign that knows this format (a newer one, if the number is higher)",
        )
    flaw, n, ids, rows = None, data["n"], data["ids"], [part["rows"] for part in data["parts"]]
    covered = [0, *(stop for _, stop in rows)] == [*(start for start, _ in rows), n]
    try:
        has_seal = check_seal(raw, MANIFEST)
        if has_seal != (data["format"] == MANIFEST_FORMAT):
            flaw = BrokenError(f"is not what was written: of format {data['format']}, with {'a' if has_seal else 'no'} seal")
    except DamagedError as error:
        flaw = BrokenError(error.problem)
    if not covered or n != len(ids) or len(set(ids)) != n or any(start >= stop for start, stop in rows):
        flaw = BrokenError(f"does not cover its rows: n is {n}, {len(set(ids))} ids, parts {shown(rows)}")
    return Manifest(data, flaw)


def readable(files: Files, folder: str) -> tuple[dict[str, Any] | None, str | None]:
    """The fields of the manifest of a folder, or None; and why not, if there is one that cannot be believed.

    For those who write one anew. RepalignError for a manifest of a newer format.
    """
    try:
        manifest = read_manifest(files, folder)
        if manifest is not None and manifest.flaw is not None:
            raise refusal(files, folder, manifest)
    except (NewerFormat, Unreachable):
        raise
    except RepalignError as error:
        return None, str(error).splitlines()[0]
    return None if manifest is None else manifest.data, None


def refusal(files: Files, folder: str, manifest: Manifest) -> RepalignError:
    """The error for a manifest with a flaw: file, what is wrong, and the field, as far as the parts tell it."""
    where = "one of record, facts, dataset or versions, which its parts do not state"
    for part in manifest.data["parts"]:
        try:
            found = disagreement(manifest.data, part, read_head(files, f"{folder}/{part['file']}"))
        except (BrokenError, RepalignError):
            continue  # the manifest is what is spoken of here
        if found:
            field, here, there = found
            where = f"{field}, which is {shown(here)} here and {shown(there)} in {part['file']}"
            break
    return RepalignError(f"{files.root}/{folder}/{MANIFEST} {manifest.flaw}; the field: {where}", remedy=AGAIN)


def disagreement(manifest: Mapping[str, Any], part: Mapping[str, Any], head: Head) -> tuple[str, object, object] | None:
    """The first field in which a manifest and the sealed header of one of its parts differ: (field, here, there)."""
    start, stop = part["rows"]
    says = {
        **identity_of(manifest),
        "rows": [start, stop],
        "n": manifest["n"],
        "ids": manifest["ids"][start:stop],
        "extras": manifest["extras"],
        "extraction": manifest["extraction"],
        "layers": [[layer["name"], layer["width"], layer["dtype"]] for layer in manifest["layers"]],
        "size": part["size"],
        "header_sha256": part["header_sha256"],
    }
    shows = {**head.header, "layers": [list(layer) for layer in head.layers], "size": head.size, "header_sha256": head.sha256}
    # In this order: the first difference is the one that explains the others.
    return next(filter(None, (difference(says[field], shows.get(field), field) for field in says)), None)
