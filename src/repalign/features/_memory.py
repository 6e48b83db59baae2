"""What is in memory already as blocks: arrays of numpy and torch, frames, mappings and lists of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.features._columns import from_arrow, from_frame
from repalign.features._table import Block, Kind, Reading, Table
from repalign.layers import Pairwise, as_tensor

FEATURES = "features"  # what the one array of a source is called


def of_object(x: Any, what: str) -> Table:
    """A table of blocks of any object that holds features."""
    frame = of_frame(x, what)
    if frame is not None:
        return frame
    if isinstance(x, Mapping):
        return of_mapping(x, what)
    return of_single(x, what)


def of_frame(x: Any, what: str) -> Table | None:
    """A frame of pandas, or what gives its columns to Arrow; None for anything else."""
    if any(c.__name__ == "DataFrame" and c.__module__.partition(".")[0] == "pandas" for c in type(x).__mro__):
        return from_frame(x, what)
    if hasattr(x, "__arrow_c_stream__") and hasattr(x, "columns"):
        return from_arrow(x, what)
    return None


def of_single(x: Any, what: str) -> Table:
    """One array, a list of layers, or a list of rows; of a structured array its fields."""
    if isinstance(x, (list, tuple)):
        named = bool(x) and (any(isinstance(v, Pairwise) for v in x) or all(of_frame(v, what) is not None for v in x))
        if named:
            return of_mapping({f"layer.{i}": v for i, v in enumerate(x)}, what)
    elif hasattr(x, "to_frame") and getattr(getattr(x, "dtype", None), "kind", "") == "O":  # a pandas series of vectors
        return from_frame(x.to_frame(FEATURES if x.name is None else x.name), what)
    if isinstance(x, np.ndarray) and x.dtype.names:
        import pandas as pd

        fields = {name: list(x[name]) if x[name].ndim > 1 else x[name] for name in x.dtype.names}
        native = {k: v.astype(v.dtype.newbyteorder("=")) if isinstance(v, np.ndarray) else v for k, v in fields.items()}
        return from_frame(pd.DataFrame(native), what)
    return Table(what, "array", (_block(FEATURES, x, what),))


def of_mapping(x: Mapping[Any, Any], what: str) -> Table:
    """Named arrays; one that is a frame brings its ids along."""
    if not x:
        raise RepalignError(f"{what}: an empty mapping", expected="layer names with (n, d) arrays", got="nothing")
    tables = {str(k): of_frame(v, f"{what}, layer {k}") for k, v in x.items()}
    frames = {k: t for k, t in tables.items() if t is not None}
    if frames:
        return _of_frames(x, frames, what)
    return Table(what, "arrays", tuple(_block(str(k), v, what) for k, v in x.items()))


def _of_frames(x: Mapping[Any, Any], frames: Mapping[str, Table], what: str) -> Table:
    """A mapping from layer name to frames: each is one layer, and all name their rows alike."""
    from repalign.features._rule import apply

    blocks, ids, of = [], None, ""
    if len(frames) < len(x):
        other = next(str(k) for k in x if str(k) not in frames)
        raise RepalignError(
            f"{what}: frames and arrays in one mapping", expected="all of one kind", got=f"{other} is no frame",
            remedy="give frames only, or arrays and `ids`",
        )  # fmt: skip
    for name, table in frames.items():
        found = apply(table, Reading())
        if len(found.layers) != 1:
            raise RepalignError(f"{table.what}: not one layer", expected="one (n, d) block", got=", ".join(found.layers))
        layer = next(iter(found.layers.values()))
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
        blocks.append(_of_tensor(name, cast(Tensor, layer)))
    if ids is not None:
        values = list(ids)
        blocks.append(
            Block("the index of the frames", "text", (len(ids),), "text", lambda: None, lambda: values, "beside", says_rows=True)
        )
    return Table(what, "arrays", tuple(blocks))


def scalar(x: Any) -> float:
    """The number in a scalar of any kind."""
    return x.item() if hasattr(x, "item") else x


# --- one array -------------------------------------------------------------------------------------

ARRAY_KINDS: dict[str, Kind] = {"f": "float", "i": "integer", "u": "integer", "b": "boolean", "c": "complex"}
ARRAY_KINDS |= {"U": "text", "S": "text"}


def _block(name: str, x: Any, what: str) -> Block:
    where = what if name == FEATURES else f"{what}, {name}"
    if isinstance(x, Pairwise):
        return Block(name, "pairs", x.shape, type(x).__name__, lambda: x, lambda: [])
    if isinstance(x, (list, tuple)):
        return _of_list(name, list(x), what)
    if isinstance(x, Tensor) and not x.is_complex():
        return _of_tensor(name, as_tensor(x, where))
    if isinstance(x, Tensor):
        return Block(name, "complex", tuple(x.shape), _shown(x.dtype), lambda: as_tensor(x, where), x.tolist)
    if hasattr(x, "tocsr") and hasattr(x, "nnz"):
        as_tensor(x, where)  # says what to do
    if isinstance(x, Mapping):
        return _nested(name, x, what)
    if np.ma.isMaskedArray(x):
        x = as_tensor(x, where).numpy()
    array = x if isinstance(x, np.ndarray) else _asarray(x)
    if array is None:
        return Block(name, "other", (), type(x).__name__, lambda: as_tensor(x, where), lambda: [x])
    kind = ARRAY_KINDS.get(array.dtype.kind, "time" if array.dtype.kind == "M" else "other")
    if array.dtype.kind in "OT" and array.ndim == 1 and len(array) and all(v is None or isinstance(v, str) for v in array):
        kind = "text"
    shown = "text" if kind == "text" else "objects" if array.dtype.kind == "O" else str(array.dtype.newbyteorder("="))
    values = (lambda: np.datetime_as_string(array).tolist()) if kind == "time" else (lambda: array.tolist())
    return Block(name, kind, array.shape, shown, lambda: as_tensor(array, where), values)


def _asarray(x: Any) -> np.ndarray | None:
    """An array of what is one, or gives itself as one; None for anything else."""
    if isinstance(x, (str, bytes)) or x is None:
        return None
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError):
        return None
    return array if array.dtype.kind != "O" or hasattr(x, "__array__") else None


def _of_tensor(name: str, x: Tensor) -> Block:
    kind: Kind = "float" if x.is_floating_point() else "boolean" if x.dtype == torch.bool else "integer"
    return Block(name, kind, tuple(x.shape), _shown(x.dtype), lambda: x, x.tolist)


def _shown(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _of_list(name: str, items: list[Any], what: str) -> Block:
    """A list: texts or numbers (one per row), vectors (a row each), or arrays (n, d), a layer each."""
    if items and all(v is None or isinstance(v, (str, bytes)) for v in items):
        return Block(name, "text", (len(items),), "text", lambda: None, lambda: items)
    for v in items:
        if hasattr(v, "tocsr"):
            as_tensor(v, what)  # says what to do with a sparse one
    arrays = [_array_of(v) for v in items]
    ndims = {-1 if a is None else a.ndim for a in arrays}
    if ndims == {2}:
        return _of_layers(name, [_block(f"{name}, layer.{i}", v, what) for i, v in enumerate(items)])
    where = what if name == FEATURES else f"{what}, {name}"
    if len(ndims) == 1 and -1 not in ndims and len({a.shape for a in arrays if a is not None}) == 1:
        whole = torch.stack([as_tensor(v, where) for v in items]) if isinstance(items[0], Tensor) else np.asarray(items)
        return _block(name, whole, what)
    shown = "rows of unequal length" if ndims == {1} else "a list"
    return Block(name, "float" if ndims == {1} else "other", (len(items), -1) if ndims == {1} else (len(items),), shown,
                 lambda: as_tensor(items, where), lambda: items)  # fmt: skip


def _array_of(x: Any) -> Any:
    if isinstance(x, (np.ndarray, Tensor)):
        return x
    table = of_frame(x, "")
    if table is not None:
        return None
    return _asarray(x)


def _of_layers(name: str, layers: list[Block]) -> Block:
    """A list of (n, d) arrays, which may be of any widths."""
    shapes = {b.shape for b in layers}
    kinds = {b.kind for b in layers}
    kind: Kind = layers[0].kind if len(kinds) == 1 else "other"
    n = layers[0].shape[0]
    return Block(
        name, kind, (len(layers), n, layers[0].shape[1] if len(shapes) == 1 else -1), f"a list of {layers[0].dtype}",
        lambda: [b.load() for b in layers], lambda: [b.name for b in layers], axes="lnd",
    )  # fmt: skip


def _nested(name: str, x: Mapping[Any, Any], what: str) -> Block:
    """A mapping in a mapping: where it holds vectors it may be meant as features, and then counts as such."""
    inner = [_block(f"{name}/{k}", v, what) for k, v in x.items()]
    vectors = [b for b in inner if b.kind in ("float", "complex") and len(b.shape) >= 2]
    shape = (len(x), -1) if vectors else (len(x),)
    kind: Kind = "float" if vectors else "other"

    def load() -> Any:
        raise RepalignError(
            f"{what}: {name} is a mapping of its own",
            expected="arrays (n, d) by name, in one flat mapping",
            got=", ".join(b.told for b in inner[:8]),
            remedy=f"store what is in {name} alone, or its arrays under names of their own",
        )

    return Block(name, kind, shape, f"a mapping of {', '.join(map(str, list(x)[:4]))}", load, lambda: list(x))
