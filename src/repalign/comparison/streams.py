"""Rows of a layer in blocks: what everything in this package reads, wherever the layer is kept."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import FEATURES
from repalign.representation import Representation
from repalign.store import StoredRepresentation

T = TypeVar("T")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@runtime_checkable
class Rows(Protocol):
    """One layer that is read in order, block by block; each call of `blocks` starts again at row 0."""

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    @property
    def n(self) -> int:
        """The number of rows."""
        ...

    @property
    def width(self) -> int:
        """The number of features d."""
        ...

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Tensors (size, d) of a floating dtype, the last one shorter, n rows in all."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """An array (n, d): a numpy array or memory map, of which only blocks are read, or a tensor."""

    array: Any
    name: str = "array"

    def __post_init__(self) -> None:
        array = self.array
        if not isinstance(array, Tensor | np.ndarray) or (
            isinstance(array, np.ndarray) and array.dtype.kind not in "fiub"
        ):
            raise RepalignError(
                f"{self.name}: not an array of numbers",
                expected="a numpy array, a memory map or a tensor of shape (n, d)",
                got=f"{type(array).__name__} {getattr(array, 'dtype', '')}".strip(),
            )
        if array.ndim != 2 or 0 in array.shape:
            raise RepalignError(
                f"{self.name}: wrong shape",
                expected="two dimensions (n, d): one row per stimulus, one column per feature",
                got=f"shape {tuple(array.shape)}",
            )

    @property
    def n(self) -> int:
        return self.array.shape[0]

    @property
    def width(self) -> int:
        return self.array.shape[1]

    def blocks(self, size: int) -> Iterator[Tensor]:
        for start in range(0, self.n, size):
            piece = self.array[start : start + size]
            if isinstance(piece, np.ndarray):  # a copy: a memory map is read here, and may be read-only or byte-swapped
                piece = torch.from_numpy(np.array(piece, dtype=piece.dtype.newbyteorder("="), order="C"))
            yield piece.detach() if piece.dtype in FLOATS else piece.to(torch.float64)


@dataclass(frozen=True, eq=False)
class StoredRows:
    """A layer of a stored representation: one block and one part are in memory at a time."""

    representation: StoredRepresentation
    layer: str

    def __post_init__(self) -> None:
        self.representation.check_layer(self.layer)

    @property
    def name(self) -> str:
        return f"{self.representation.name}, layer {self.layer!r}"

    @property
    def n(self) -> int:
        return self.representation.n

    @property
    def width(self) -> int:
        return self.representation.width(self.layer)

    def blocks(self, size: int) -> Iterator[Tensor]:
        for _, rows in self.representation.iter_rows(self.layer, size):
            yield rows


def as_rows(source: Any, layer: str | None = None, *, name: str = "array") -> Rows:
    """Rows of an array, of a layer of a representation, or `source` itself if it is `Rows` already.

    A stored representation is read in blocks; any other is asked for the whole layer (`load`), once.
    Raises RepalignError for anything else, and if a representation comes without a layer.
    """
    if isinstance(source, Representation):
        if layer is None:
            raise RepalignError(
                f"{source.name}: no layer is named",
                expected=f"(representation, layer), with one of {len(source.layers)} layers",
                got="a representation alone",
                remedy=f"for instance the last one, {source.layers[-1]!r}" if source.layers else None,
            )
        if source.kind(layer) != FEATURES:
            raise RepalignError(
                f"{source.name}, layer {layer!r}: rows of features are read here",
                expected="a layer of features (n, d)",
                got=f"a layer given as {source.kind(layer)}",
                remedy="compare it with repalign.compare, which takes RDMs and kernels",
            )
        if isinstance(source, StoredRepresentation):
            return StoredRows(source, layer)
        return ArrayRows(source.load(layer), f"{source.name}, layer {layer!r}")
    if not isinstance(source, Tensor | np.ndarray) and isinstance(source, Rows):
        return source
    return ArrayRows(source, name)


def in_step(rows: list[Rows], n: int, size: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Blocks of several layers side by side: (first row, one tensor (rows, d) per layer).

    Raises RepalignError, naming the layer, if one yields other shapes than it declares.
    """
    readers = [r.blocks(size) for r in rows]
    for start in range(0, n, size):
        blocks = [next(reader, None) for reader in readers]
        for source, block in zip(rows, blocks, strict=True):
            shape = (min(size, n - start), source.width)
            got = None if block is None else tuple(block.shape)
            if got != shape:
                raise RepalignError(
                    f"{source.name}: its blocks are out of step at row {start:,}",
                    expected=f"shape {shape}",
                    got="no more rows" if got is None else f"shape {got}",
                )
        yield start, blocks  # type: ignore[misc]


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; a thread reads the next one while this one is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item
