"""Files of named arrays as blocks, their headers read first: .npy, .npz, .safetensors, .pt; and the ids that lie beside them."""

from __future__ import annotations

import json
import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

from repalign.errors import RepalignError, did_you_mean
from repalign.features._columns import read_parquet
from repalign.features._memory import ARRAY_KINDS, FEATURES, of_mapping, of_single, scalar
from repalign.features._rule import Found, apply, widths
from repalign.features._table import Block, Kind, Reading, Table
from repalign.layers import as_tensor

SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet", ".pt", ".pth")
KNOWN_FACTS = ("model", "objective", "modality", "pooling", "source", "published_imagenet_top1")


def read_file(path: str | Path, reading: Reading = Reading()) -> Found:  # noqa: B008  (frozen)
    """Layers and ids of a file in any of the forms; no pickle is ever loaded."""
    path = Path(path)
    return _told(path, lambda: apply(_table(path), reading))


def file_widths(path: str | Path, reading: Reading = Reading()) -> dict[str, int]:  # noqa: B008
    """The width of every layer that `read_file` would give, from the file's header (of lists in a .parquet: its first row)."""
    return widths(_table(Path(path), headers=True), reading)


def sidecars(path: Path) -> tuple[Path, Path]:
    """Where the ids of a file that holds none may lie."""
    return path.with_name(path.name + ".ids.txt"), path.with_name(path.name + ".ids.json")


def _table(path: Path, headers: bool = False) -> Table:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RepalignError(
            f"{path}: not a file of features that can be read",
            expected=", ".join(SUFFIXES),
            got=path.suffix or "no suffix",
            remedy=did_you_mean(path.suffix, SUFFIXES),
        )
    if not path.is_file():
        raise RepalignError(f"{path}: there is no such file", remedy="check the path")
    if suffix == ".parquet":
        table = read_parquet(path, headers)
    elif suffix in (".pt", ".pth"):
        table = _pt(path, headers)
    else:
        table = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}[suffix](path)
    beside = _beside(path)
    blocks = table.blocks if beside is None else (*table.blocks, beside)
    return replace(table, blocks=blocks, disk_bytes=path.stat().st_size)


def _told(path: Path, read: Any) -> Any:
    try:
        return read()
    except RepalignError:
        raise
    except Exception as error:  # each library raises its own kinds for a broken file
        raise RepalignError(
            f"{path}: the file cannot be read",
            expected=f"a whole {path.suffix} file of numbers",
            got=re.sub(r"\x1b\[\d*m", "", (str(error).splitlines() or [type(error).__name__])[0])[:200],
            remedy="write it again; object arrays and pickles are never loaded"
            + (", nor are numpy arrays in a file of torch: make them tensors" if path.suffix.lower() in (".pt", ".pth") else ""),
        ) from error


# --- one reader per form ---------------------------------------------------------------------------


def _npy(path: Path) -> Table:
    with path.open("rb") as file:
        shape, dtype = _npy_header(file)
    if dtype.names:
        return of_single(np.load(path, allow_pickle=False), str(path))
    block = _numpy_block(FEATURES, shape, dtype, lambda: np.load(path, allow_pickle=False))
    if block.kind in ("other", "closed"):
        block.load()  # says what it is that is never loaded
    return Table(str(path), "array", (block,))


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _npz(path: Path) -> Table:
    blocks = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            with archive.open(member) as file:
                if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
                    blocks.append(Block(name, "closed", (), "no array", lambda: None, list))
                    continue
            with archive.open(member) as file:
                shape, dtype = _npy_header(file)
            blocks.append(_numpy_block(name, shape, dtype, lambda name=name: _from_npz(path, name)))
    if {"indptr", "indices", "data", "shape", "format"} <= {b.name for b in blocks}:
        shape = tuple(_from_npz(path, "shape").tolist())
        raise RepalignError(
            f"{path}: a sparse matrix {shape}",
            expected="a dense array (n, d)",
            got="a file of scipy.sparse.save_npz",
            remedy="np.save('dense.npy', scipy.sparse.load_npz(path).toarray()), where (n, d) fits in memory",
        )
    return Table(str(path), "arrays", tuple(blocks))


def _from_npz(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        return file[name]


# What a header says is there; objects are pickles, which are never loaded.
_KINDS: dict[str, Kind] = {**ARRAY_KINDS, "O": "closed", "M": "time"}


def _numpy_block(name: str, shape: tuple[int, ...], dtype: np.dtype, get: Any) -> Block:
    kind = _KINDS.get(dtype.kind, "other")
    shown = {"O": "pickled objects, never loaded", "U": "text", "S": "text"}.get(dtype.kind, str(dtype.newbyteorder("=")))
    values = (lambda: np.datetime_as_string(get()).tolist()) if kind == "time" else (lambda: get().tolist())
    return Block(
        name, kind, shape, shown, lambda: as_tensor(get(), name), values, nbytes=math.prod(shape) * max(dtype.itemsize, 1)
    )


def _safetensors(path: Path) -> Table:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        blocks = [_safe_block(path, name, file.get_slice(name)) for name in sorted(file.keys(), key=natural)]
    facts = {k: metadata[k] for k in KNOWN_FACTS if k in metadata}
    scores = {}
    if "published_imagenet_top1" in facts:
        try:
            scores["imagenet_top1"] = float(facts["published_imagenet_top1"])
        except ValueError:
            facts["imagenet_top1"] = "not a number in the file's metadata"
    if "ids" in metadata:
        blocks.append(listed_ids("ids of the metadata", json.loads(metadata["ids"])))
    layers = None
    if "layers" in metadata:
        layers = tuple(map(str, json.loads(metadata["layers"])))
    return Table(str(path), "arrays", tuple(blocks), layers, facts, scores=scores)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by in which numbers count as numbers: layer.2 before layer.10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(p), p) if p.isdigit() else (0, 0, p) for p in parts]


def _safe_block(path: Path, name: str, at: Any) -> Block:
    code, shape = at.get_dtype(), tuple(at.get_shape())
    by_code: dict[str, Kind] = {"F": "float", "B": "float", "C": "complex"}
    kind: Kind = "boolean" if code == "BOOL" else by_code.get(code[0], "integer")

    def load() -> Any:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return as_tensor(file.get_tensor(name), name)

    shown = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint", "C": "complex"}
    prefix = code.rstrip("0123456789")
    dtype = f"{shown[prefix]}{code[len(prefix) :]}" if prefix in shown else code.lower()
    return Block(name, kind, shape, dtype, load, lambda: load().tolist())


def _pt(path: Path, headers: bool) -> Table:
    mapped = headers and zipfile.is_zipfile(path)  # files of torch before 1.6 cannot be mapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse tensors, which are refused below
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(held, Mapping):
        return of_single(held, str(path))
    table = of_mapping(held, str(path))
    if "feats" not in held:
        return table
    bits, count = held.get("bpb"), held.get("num_params")
    scores = {} if bits is None else {"bits_per_byte": float(torch.as_tensor(bits, dtype=torch.float64).mean())}
    said = [b for b in table.blocks if b.name not in ("bpb", "num_params")]
    return Table(
        str(path), "arrays", tuple(said), None, {"source": "platonic-rep"}, None if count is None else int(scalar(count)), scores
    )


# --- ids beside a file -----------------------------------------------------------------------------


def listed_ids(name: str, values: Any) -> Block:
    """Ids that are written down in a list of JSON."""
    if not isinstance(values, list):
        raise RepalignError(f"{name}: not a list", expected='a JSON list such as ["a", "b"]', got=type(values).__name__)
    return Block(name, "text", (len(values),), "text", lambda: None, lambda: values, "beside", says_rows=True)


def _beside(path: Path) -> Block | None:
    from repalign.dataset._rows import id_lines

    text, listed = sidecars(path)
    if text.is_file():
        return listed_ids(f"ids in {text.name}", id_lines(text.read_bytes().decode("utf-8-sig"), text.name))
    if listed.is_file():
        return listed_ids(f"ids in {listed.name}", json.loads(listed.read_text("utf-8-sig")))
    return None
