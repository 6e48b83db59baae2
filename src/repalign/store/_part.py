"""A part: a block of rows of every layer in one safetensors file whose bytes follow from its content.

The file carries its own proof. The digest of each tensor stands in the header, and the digest of the
header stands in the header too, taken with its own 64 digits read as zeros. So a reader that wants
one layer checks just the bytes that it reads, and a cut or a flipped bit anywhere is named.
`docs/store.md` has the format on a page.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.store._files import Chunk, Files

FORMAT = 1
DTYPES: dict[torch.dtype, str] = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
LAYER, EXTRA = "layer:", "extra:"

_ZEROS = "0" * 64
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # quotes inside strings are escaped: it matches once
_DEEPEST = 100  # levels of JSON: whatever walks through a header or a manifest needs no bound of its own
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors format


class BrokenError(Exception):
    """A part that cannot be used: what is wrong with it, in words that follow the name of the file."""

    def __init__(self, problem: str, expected: str | None = None, got: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.expected, self.got = problem, expected, got

    def __str__(self) -> str:
        details = [f"{k} {v}" for k, v in (("expected", self.expected), ("got", self.got)) if v]
        return f"{self.problem} ({', '.join(details)})" if details else self.problem


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the file, and the digest of its bytes."""

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
    sha256: str
    size: int  # of the whole file

    @property
    def layers(self) -> list[tuple[str, int, str]]:
        """(name, width, dtype) of each layer, in order."""
        entries = [(name, self.entries[LAYER + name]) for name in self.header["layers"]]
        return [(name, e.shape[1], DTYPES[e.dtype]) for name, e in entries]


@dataclass(frozen=True)
class Verified:
    """A part of which every byte has been checked."""

    head: Head
    sha256: str  # of the file


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
    """What a text in JSON holds. ValueError for what is none, and for more levels than any file of a store has."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("too many levels") from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError(f"more than {_DEEPEST} levels")


def encode(
    header: Mapping[str, Any], layers: Mapping[str, Tensor], extras: Mapping[str, Tensor]
) -> list[Chunk]:
    """The bytes of a part, in pieces: first the header, then each tensor."""
    tensors = {EXTRA + k: v for k, v in extras.items()} | {LAYER + k: v for k, v in layers.items()}
    # Wide types first, so that every tensor starts at a multiple of its item size. The sort is stable.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    data = {name: _bytes_of(tensors[name]) for name in names}
    index: dict[str, Any] = {}
    offset = 0
    for name in names:
        stop = offset + len(data[name])
        shape = list(tensors[name].shape)
        index[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    digests = {name: hashlib.sha256(chunk).hexdigest() for name, chunk in data.items()}
    text = canonical({**header, "sha256": digests}, "the header of a part")
    index["__metadata__"] = {"repalign": text, "sha256": _ZEROS}
    body = canonical(index, "the header of a part").encode()
    body += b" " * (-len(body) % 8)
    head = struct.pack("<Q", len(body)) + body
    digest = hashlib.sha256(head).hexdigest()
    return [_SEAL.sub(f'"sha256":"{digest}"'.encode(), head), *data.values()]


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def described(chunks: Sequence[Chunk]) -> Verified:
    """What a part is once these pieces of `encode` are written."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return Verified(_parse_head(bytes(chunks[0]), sum(len(c) for c in chunks)), digest.hexdigest())


def read_head(files: Files, name: str) -> Head:
    """The header of a part, checked against its digest and against the size of the file."""
    size = files.size(name)
    if size is None:
        raise BrokenError("is missing")
    if size < 8:
        raise BrokenError("is cut short", "at least 8 bytes", f"{size:,} bytes")
    length: int = struct.unpack("<Q", _read(files, name, 0, 8))[0]
    if length > _LONGEST_HEADER:
        raise BrokenError("is corrupt", "a safetensors header", f"a header of {length:,} bytes")
    if 8 + length > size:
        raise BrokenError("is cut short", f"more than {8 + length:,} bytes", f"{size:,} bytes")
    return _parse_head(bytes(_read(files, name, 0, 8 + length)), size)


def _parse_head(head: bytes, size: int) -> Head:
    digest = _check_seal(head)
    try:
        index = parse_json(head[8:])
        header = parse_json(index.pop("__metadata__")["repalign"])
        entries = {
            tensor: Entry(
                dtype=TORCH_DTYPES[item["dtype"]],
                shape=tuple(item["shape"]),
                start=len(head) + item["data_offsets"][0],
                stop=len(head) + item["data_offsets"][1],
                sha256=header["sha256"][tensor],
            )
            for tensor, item in index.items()
        }
        _check_header(header, entries)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BrokenError("has a header that is not repalign's") from error
    expected = max((e.stop for e in entries.values()), default=len(head))
    if size != expected:
        what = "is cut short" if size < expected else "has bytes after its end"
        raise BrokenError(what, f"{expected:,} bytes", f"{size:,} bytes")
    return Head(header, entries, digest, size)


def _check_header(header: dict[str, Any], entries: Mapping[str, Entry]) -> None:
    """ValueError, KeyError or TypeError unless a header has its fields, and describes the tensors that are there."""
    first, last = header["rows"]
    rows = last - first
    texts = (header["spec"], header["dataset_fingerprint"], *header["ids"], *header["layers"], *header["extras"])
    if not all(isinstance(text, str) for text in texts) or not isinstance(header["n"], int):
        raise TypeError("texts and numbers")
    if not isinstance(header["settings"], dict) or not isinstance(header["extraction"], dict):
        raise TypeError("settings and extraction")
    if len(header["ids"]) != rows or header.get("revision", "") not in (None, str(header.get("revision"))):
        raise ValueError("ids and revision")
    if not isinstance(header["versions"], dict):
        raise TypeError("versions")
    names = [LAYER + name for name in header["layers"]] + [EXTRA + name for name in header["extras"]]
    if sorted(names) != sorted(entries):
        raise ValueError("tensors")
    for name, entry in entries.items():
        if entry.shape != (rows, *entry.shape[1:]) or len(entry.shape) != (2 if name.startswith(LAYER) else 1):
            raise ValueError(name)
        if entry.start < 0 or entry.stop - entry.start != math.prod(entry.shape) * entry.dtype.itemsize:
            raise ValueError(name)


def _read(files: Files, name: str, start: int, stop: int) -> bytearray:
    try:
        data = files.read(name, start, stop)
    except FileNotFoundError as error:
        raise BrokenError("is missing") from error
    except OSError as error:
        raise RepalignError(f"{files.path(name)} cannot be read: {error.strerror or error}") from error
    if len(data) != stop - start:
        raise BrokenError("is cut short", f"{stop - start:,} bytes from {start:,} on", f"{len(data):,} bytes")
    return data


def _check_seal(head: bytes) -> str:
    """The digest in a header, which must be that of the header with the digits read as zeros."""
    seals = _SEAL.findall(head)
    if len(seals) != 1:
        raise BrokenError("has a header that is not repalign's")
    stated = seals[0].decode()
    found = hashlib.sha256(_SEAL.sub(f'"sha256":"{_ZEROS}"'.encode(), head)).hexdigest()
    if found != stated:
        raise BrokenError("is corrupt: the header is not the one that was written", stated, found)
    return stated


def read_tensor(files: Files, name: str, head: Head, tensor: str) -> Tensor:
    """One tensor of a part, checked against its digest."""
    entry = head.entries[tensor]
    data = _read_checked(files, name, tensor, entry)
    return torch.frombuffer(data, dtype=entry.dtype).reshape(entry.shape)


def _read_checked(files: Files, name: str, tensor: str, entry: Entry) -> bytearray:
    data = _read(files, name, entry.start, entry.stop)
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise BrokenError(f"is corrupt: {tensor} is not what was written", entry.sha256, found)
    return data


def verify(files: Files, name: str) -> Verified:
    """Read a whole part and check every byte of it, one tensor in memory at a time."""
    head = read_head(files, name)
    ordered = sorted(head.entries.items(), key=lambda item: item[1].start)
    position = ordered[0][1].start if ordered else head.size
    whole = hashlib.sha256(_read(files, name, 0, position))
    for tensor, entry in ordered:
        if entry.start != position:
            raise BrokenError(f"is corrupt: {tensor} does not start where the tensor before it ends")
        whole.update(_read_checked(files, name, tensor, entry))
        position = entry.stop
    return Verified(head, whole.hexdigest())
