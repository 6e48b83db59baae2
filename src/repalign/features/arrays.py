"""Arrays: in memory, of numpy and torch, mappings and lists of them; and in their files (.npy, .npz, .safetensors, .pt, .pth).

Of a file the header is read first, and no pickle.
"""

from __future__ import annotations

import json
import math
import operator
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch
from numpy.lib import format as npy
from torch import Tensor

from repalign.errors import RepalignError, is_of
from repalign.features.columns import from_arrow, from_frame
from repalign.features.rule import NUMBERS, PARTS, PLATONIC, Block, Kind, Reading, Table, apply, names_of, option
from repalign.layers import FEATURES, Pairwise, as_tensor, said

KNOWN_FACTS = ("model", "objective", "modality", "pooling", "source", "published_imagenet_top1")
PICKLED = ("closed", "pickled objects, never loaded")
NAMES = "names"  # an array that names the matrices of a stack
_OF_NUMPY = ("float", "integer", "integer", "boolean", "complex", "text", "text", "time")
_KINDS: dict[str, Kind] = dict(zip("fiubcUSM", _OF_NUMPY, strict=True))

# --- the rule for arrays -------------------------------------------------------------------------


@dataclass(frozen=True)
class Array(Table):
    """One array, with ids from elsewhere if any."""

    form: ClassVar[str] = "array"

    def choose(self, reading: Reading) -> dict[str, list[Block]]:
        block = self.blocks[0]
        if block.kind in ("float", "pairs") or (reading.kind is not None and block.kind in NUMBERS):
            return {block.name: [block]}
        if block.kind == "complex":
            raise RepalignError(f"{self.what}: complex numbers", expected="real features", got=block.label, remedy=PARTS)
        problem, expected = "not an array of numbers", "a float array (n, d)"
        remedy = "convert it to float32 or float64 first"
        if block.kind in NUMBERS:
            problem = "whole numbers or truth values alone are no features"
            remedy = f"convert it to float; or, if these are features, {option('vector', block.name)}"
        raise RepalignError(f"{self.what}: {problem}", expected=expected, got=block.label, remedy=remedy)

    def squares(self, kind: str) -> dict[str, list[Block]]:  # noqa: ARG002
        return {self.blocks[0].name: [self.blocks[0]]}


@dataclass(frozen=True)
class Arrays(Table):
    """Named arrays."""

    form: ClassVar[str] = "arrays"

    def _meant(self) -> list[Block]:
        if self.layers is not None:
            return [self.find(name) for name in self.layers]
        return [b for b in self.blocks if b.place == "array"]

    def choose(self, reading: Reading) -> dict[str, list[Block]]:  # noqa: ARG002
        """The two-dimensional float ones; what has a third axis is never dropped in silence."""
        blocks = self._meant()
        feats = next((b for b in blocks if b.name == PLATONIC and len(b.shape) in (2, 3) and b.kind == "float"), None)
        if feats is not None:
            return {PLATONIC if len(feats.shape) == 3 else FEATURES: [feats]}
        plain = [b for b in blocks if b.kind == "pairs" or b.is_vectors]
        deep = [b for b in blocks if b not in plain and b.kind in ("float", "complex") and len(b.shape) >= 2]
        if deep:
            first = deep[0]
            how = option("vector", plain[0].name if plain else first.name)
            how += " with --axes" if not plain and first.axes is None and len(first.shape) == 3 else ""
            raise RepalignError(
                f"{self.what}: {first.label} is no layer, and may be meant as one",
                expected="real float arrays of two dimensions (n, d), one vector per stimulus", got=names_of(blocks),
                remedy=f"pool the tokens or positions of {first.name} to one vector first; or name what the features are, {how}"
                + ("; or say --rdm or --kernel of a stack (m, n, n)" if first.shape[-1] == first.shape[-2] else ""),
            )
        if not plain:
            raise self.no_features([b for b in blocks if len(b.shape) >= 2], "vector", 2, operator.itemgetter(0))
        return {b.name: [b] for b in plain}

    def squares(self, kind: str) -> dict[str, list[Block]]:
        found = [b for b in self._meant() if b.kind in (*NUMBERS, "complex", "pairs") and len(b.shape) in (2, 3)]
        found = [b for b in found if b.shape[-1] == b.shape[-2] != -1]
        if not found:
            raise RepalignError(
                f"{self.what}: no square array",
                expected=f"{said(kind)} (n, n), one row and one column per stimulus, or a stack (m, n, n)",
                got=names_of(self.blocks) or "nothing",
                remedy="give scipy.spatial.distance.squareform of a condensed form",
            )
        stacks = [b for b in found if len(b.shape) == 3]
        names = [b for b in self.blocks if b.name == NAMES and b.kind == "text" and len(b.shape) == 1]
        if not names or len(stacks) != 1 or names[0].shape[0] != stacks[0].shape[0]:
            names = []
        return {b.name: [b, *names] if b in stacks else [b] for b in found}


# --- in memory -----------------------------------------------------------------------------------


def of_object(x: Any, what: str) -> Table:
    """Any object that holds features: frames, mappings, lists, arrays."""
    if isinstance(x, np.ndarray) and not x.dtype.names:
        return Array(what, (_block(FEATURES, x, what),))
    if (frame := _of_frame(x, what)) is not None:
        return frame
    if isinstance(x, (list, tuple)) and x:
        if any(isinstance(v, Pairwise) for v in x) or all(_of_frame(v, what) is not None for v in x):
            x = {f"layer.{i}": v for i, v in enumerate(x)}
    elif hasattr(x, "to_frame") and getattr(getattr(x, "dtype", None), "kind", "") == "O":  # a pandas series of vectors
        return from_frame(x.to_frame(FEATURES if x.name is None else x.name), what)
    if isinstance(x, Mapping):
        return _of_mapping(x, what)
    if isinstance(x, np.ndarray):
        fields = {name: list(x[name]) if x[name].ndim > 1 else x[name] for name in x.dtype.names}
        native = {k: v.astype(v.dtype.newbyteorder("=")) if isinstance(v, np.ndarray) else v for k, v in fields.items()}
        return from_frame(pd.DataFrame(native), what)
    return Array(what, (_block(FEATURES, x, what),))


def _of_frame(x: Any, what: str) -> Table | None:
    """A frame of pandas, or what gives its columns to Arrow; None for anything else."""
    if is_of(x, "pandas", "DataFrame"):
        return from_frame(x, what)
    if hasattr(x, "__arrow_c_stream__") and hasattr(x, "columns"):
        return from_arrow(x, what)
    return None


def _of_mapping(x: Mapping[Any, Any], what: str) -> Table:
    """Named arrays; one that is a frame brings its ids along."""
    if not x:
        raise RepalignError(f"{what}: an empty mapping", expected="layer names with (n, d) arrays", got="nothing")
    frames = {str(k): _of_frame(v, f"{what}, layer {k}") for k, v in x.items()}
    if all(t is None for t in frames.values()):
        return Arrays(what, tuple(_block(str(k), v, what) for k, v in x.items()))
    blocks, ids, of = [], None, ""
    for name, table in frames.items():  # each is one layer, and all name their rows alike
        if table is None:
            got, remedy = f"{name} is no frame", "give frames only, or arrays and `ids`"
            raise RepalignError(f"{what}: frames and arrays in one mapping", expected="all of one kind", got=got, remedy=remedy)
        found = apply(table, Reading())
        if len(found.layers) != 1:
            raise RepalignError(f"{table.what}: not one layer", expected="one (n, d) block", got=", ".join(found.layers))
        layer = cast(Tensor, next(iter(found.layers.values())))
        if found.candidates or (of and (found.ids is None) != (ids is None)):
            raise RepalignError(
                f"{what}: not all its frames name their rows",
                expected="a text or named index, or a column id, in every frame",
                got=f"{name}: {'no ids' if found.ids is None else 'ids'}; {of or name}: {'no ids' if ids is None else 'ids'}",
            )
        if ids is not None and found.ids is not None and found.ids != ids:
            row_of = {id_: row for row, id_ in enumerate(found.ids)}
            if set(row_of) != set(ids):
                raise RepalignError(f"{what}: {of} and {name} have other ids", expected="the same ids in all frames")
            layer = layer[torch.tensor([row_of[i] for i in ids])]
        ids, of = (found.ids, name) if not of else (ids, of)
        blocks.append(_tensor(name, layer, what))
    return Arrays(what, (*blocks, *([] if ids is None else [ids_block("the index of the frames", list(ids))])))


def _block(name: str, x: Any, what: str) -> Block:
    """One array of a mapping, or the only one; what it holds is said, not judged."""
    where = what if name == FEATURES else f"{what}, {name}"
    if isinstance(x, Pairwise):
        return Block(name, "pairs", x.shape, type(x).__name__, lambda: x, list)
    if isinstance(x, (list, tuple)):
        return list_block(name, list(x), what)
    if isinstance(x, Tensor):
        return _tensor(name, x if x.is_complex() else as_tensor(x, where), where)
    if isinstance(x, Mapping):
        return _nested(name, x, what)
    if (hasattr(x, "tocsr") and hasattr(x, "nnz")) or np.ma.isMaskedArray(x):
        x = as_tensor(x, where).numpy()  # of what is sparse or masked it says what to do
    array = x if isinstance(x, np.ndarray) else _asarray(x)
    if array is None:
        return Block(name, "other", (), type(x).__name__, lambda: as_tensor(x, where), lambda: [x])
    texts = array.ndim == 1 and len(array) and array.dtype.kind in "OT" and all(v is None or isinstance(v, str) for v in array)
    return numpy_block(name, array.shape, array.dtype, lambda: array, where, ("text", "text") if texts else ("other", "objects"))


def _asarray(x: Any) -> np.ndarray | None:
    """An array of what is one, or gives itself as one; None for anything else."""
    if isinstance(x, (str, bytes)) or x is None:
        return None
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError):
        return None
    return array if array.dtype.kind != "O" or hasattr(x, "__array__") else None


def numpy_block(
    name: str, shape: tuple[int, ...], dtype: np.dtype, get: Callable[[], np.ndarray], where: str, objects: tuple[Kind, str]
) -> Block:
    """An array of numpy; `objects` is what an array of Python's objects is."""
    kind, shown = objects
    if dtype.kind not in "OT":
        kind = _KINDS.get(dtype.kind, "other")
        shown = "text" if kind == "text" else str(dtype.newbyteorder("="))
    values = (lambda: np.datetime_as_string(get()).tolist()) if dtype.kind == "M" else (lambda: get().tolist())
    nbytes = math.prod(shape) * max(dtype.itemsize, 1)
    return Block(name, kind, shape, shown, lambda: as_tensor(get(), where), values, nbytes=nbytes)


def _tensor(name: str, x: Tensor, where: str) -> Block:
    kind: Kind = "float" if x.is_floating_point() else "boolean" if x.dtype == torch.bool else "integer"
    dtype = str(x.dtype).removeprefix("torch.")
    return Block(name, "complex" if x.is_complex() else kind, tuple(x.shape), dtype, lambda: as_tensor(x, where), x.tolist)


def ids_block(name: str, values: Sequence[str]) -> Block:
    """Ids that are no array: of metadata, a sidecar file or frames."""
    return Block(name, "text", (len(values),), "text", lambda: None, lambda: values, "beside", says_rows=True)


def listed_ids(name: str, text: str) -> Block:
    """Ids that are written down in a list of JSON."""
    values = json.loads(text)
    if not isinstance(values, list):
        raise RepalignError(f"{name}: not a list", expected='a JSON list such as ["a", "b"]', got=type(values).__name__)
    return ids_block(name, values)


def list_block(name: str, items: list[Any], what: str) -> Block:
    """A list: texts or numbers (one per row), vectors (a row each), or arrays (n, d), a layer each."""
    if items and all(v is None or isinstance(v, (str, bytes)) for v in items):
        return Block(name, "text", (len(items),), "text", lambda: None, lambda: items)
    for v in items:
        if hasattr(v, "tocsr"):
            as_tensor(v, what)  # says what to do with a sparse one
    arrays = [v if isinstance(v, Tensor) else None if _of_frame(v, "") is not None else _asarray(v) for v in items]
    ndims = {-1 if a is None else a.ndim for a in arrays}
    if ndims == {2}:  # (n, d) arrays, which may be of any widths
        layers = [_block(f"{name}, layer.{i}", v, what) for i, v in enumerate(items)]
        first = layers[0]
        shape = (len(layers), first.shape[0], first.shape[1] if len({b.shape for b in layers}) == 1 else -1)
        return Block(
            name, first.kind if len({b.kind for b in layers}) == 1 else "other", shape, f"a list of {first.dtype}",
            lambda: [b.load() for b in layers], lambda: [b.name for b in layers], axes="lnd",
        )  # fmt: skip
    where = what if name == FEATURES else f"{what}, {name}"
    if len(ndims) == 1 and -1 not in ndims and len({a.shape for a in arrays if a is not None}) == 1:
        tensors = isinstance(items[0], Tensor)
        return _block(name, torch.stack([as_tensor(v, where) for v in items]) if tensors else np.asarray(items), what)
    kind, shape, shown = "other", (len(items),), "a list"
    if ndims == {1}:
        kind, shape, shown = "float", (len(items), -1), "rows of unequal length"
    return Block(name, kind, shape, shown, lambda: as_tensor(items, where), lambda: items)


def _nested(name: str, x: Mapping[Any, Any], what: str) -> Block:
    """A mapping in a mapping: if it holds vectors it may be meant as features, and then counts as such."""
    inner = [_block(f"{name}/{k}", v, what) for k, v in x.items()]
    vectors = any(b.kind in ("float", "complex") and len(b.shape) >= 2 for b in inner)

    def load() -> Any:
        raise RepalignError(
            f"{what}: {name} is a mapping of its own", expected="arrays (n, d) by name, in one flat mapping",
            got=", ".join(b.label for b in inner[:8]),
            remedy=f"store what is in {name} alone, or its arrays under names of their own",
        )

    kind, shape = ("float", (len(x), -1)) if vectors else ("other", (len(x),))
    return Block(name, kind, shape, f"a mapping of {', '.join(map(str, list(x)[:4]))}", load, lambda: list(x))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by in which numbers count as numbers: layer.2 before layer.10."""
    return [(1, int(p), p) if p.isdigit() else (0, 0, p) for p in re.split(r"(\d+)", name)]


# --- in files ------------------------------------------------------------------------------------


def _header(name: str, file: Any, get: Callable[[], np.ndarray]) -> tuple[Block, np.dtype]:
    """An array of numpy in a file, from its header; objects are pickles, which are never loaded."""
    version = npy.read_magic(file)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    return numpy_block(name, shape, dtype, get, name, PICKLED), dtype


def read_npy(path: Path, headers: bool = False) -> Table:  # noqa: ARG001  (all is in headers)
    def get() -> np.ndarray:
        return np.load(path, allow_pickle=False)

    with path.open("rb") as file:
        block, dtype = _header(FEATURES, file, get)
        if not dtype.hasobject and (there := path.stat().st_size) < (whole := file.tell() + block.nbytes):
            raise ValueError(f"it ends after {there:,} of {whole:,} bytes")
    if dtype.names:
        return of_object(get(), str(path))
    if block.kind in ("other", "closed"):
        block.load()  # says what it is that is never loaded
    return Array(str(path), (block,))


def read_npz(path: Path, headers: bool = False) -> Table:  # noqa: ARG001  (all is in headers)
    def get(name: str) -> np.ndarray:
        with np.load(path, allow_pickle=False) as held:
            return held[name]

    blocks = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            with archive.open(member) as file:
                if file.peek(len(npy.MAGIC_PREFIX))[: len(npy.MAGIC_PREFIX)] == npy.MAGIC_PREFIX:
                    blocks.append(_header(name, file, lambda name=name: get(name))[0])
                else:
                    blocks.append(Block(name, "closed", (), "no array", lambda: None, list))
    if {"indptr", "indices", "data", "shape", "format"} <= {b.name for b in blocks}:
        raise RepalignError(
            f"{path}: a sparse matrix {tuple(get('shape').tolist())}", expected="a dense array (n, d)",
            got="a file of scipy.sparse.save_npz",
            remedy="np.save('dense.npy', scipy.sparse.load_npz(path).toarray()), where (n, d) fits in memory",
        )
    return Arrays(str(path), tuple(blocks))


def read_safetensors(path: Path, headers: bool = False) -> Table:  # noqa: ARG001  (all is in headers)
    from safetensors import safe_open

    def load(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return as_tensor(file.get_tensor(name), name)

    blocks = []
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        for name in sorted(file.keys(), key=natural):  # a file has no order of its own
            at = file.get_slice(name)
            code, shape = at.get_dtype(), tuple(at.get_shape())
            kinds: dict[str, Kind] = {"F": "float", "B": "float", "C": "complex"}
            kind: Kind = "boolean" if code == "BOOL" else kinds.get(code[0], "integer")
            shown = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint", "C": "complex"}
            prefix = code.rstrip("0123456789")
            dtype = f"{shown[prefix]}{code[len(prefix) :]}" if prefix in shown else code.lower()
            blocks.append(Block(name, kind, shape, dtype, lambda n=name: load(n), lambda n=name: load(n).tolist()))
    facts = {k: metadata[k] for k in KNOWN_FACTS if k in metadata}
    scores = {}
    if "published_imagenet_top1" in facts:
        try:
            scores["imagenet_top1"] = float(facts["published_imagenet_top1"])
        except ValueError:
            facts["imagenet_top1"] = "not a number in the file's metadata"
    if "ids" in metadata:
        blocks.append(listed_ids("ids of the metadata", metadata["ids"]))
    layers = tuple(map(str, json.loads(metadata["layers"]))) if "layers" in metadata else None
    return Arrays(str(path), tuple(blocks), layers, facts, scores=scores)


def read_torch(path: Path, headers: bool = False) -> Table:
    mapped = headers and zipfile.is_zipfile(path)  # files of torch before 1.6 cannot be mapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse tensors, which are refused below
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    table = of_object(held, str(path))
    if not isinstance(held, Mapping) or PLATONIC not in held:
        return table
    bits, count = held.get("bpb"), held.get("num_params")
    scores = {} if bits is None else {"bits_per_byte": float(torch.as_tensor(bits, dtype=torch.float64).mean())}
    blocks = tuple(b for b in table.blocks if b.name not in ("bpb", "num_params"))
    parameters = None if count is None else int(count.item() if hasattr(count, "item") else count)
    return Arrays(str(path), blocks, None, {"source": "platonic-rep"}, parameters, scores)
