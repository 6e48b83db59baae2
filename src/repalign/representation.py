"""A representation: all layers of one model on one dataset, wherever they are kept.

Others are made of it and copy nothing: a sample of its rows, pairs that are broken on purpose, the mean of several. A layer
is read from the representation behind when it is asked for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.layers import FEATURES, Given, Pairwise, kind_of, said
from repalign.models import ModelRecord
from repalign.workers import machine_memory

T = TypeVar("T")
# Bytes of layers and their states that are held at once if nobody says: a quarter of the machine's memory.
DEFAULT_MEMORY = machine_memory() // 4


class Representation(ABC):
    """Layers in order, each an (n, d) array whose row i belongs to `ids[i]`.

    A layer may be an RDM or a kernel (n, n) instead, whose row i and column i belong to `ids[i]`: see `kinds`.
    """

    record: ModelRecord
    name: str  # of the record
    dataset_name: str
    dataset_fingerprint: str
    ids: tuple[str, ...]
    n: int
    layers: tuple[str, ...]
    widths: tuple[int, ...]  # d of each layer, in order, known without reading it
    kinds: Mapping[str, str]  # of each layer: "features", "rdm" or "kernel"
    facts: Mapping[str, Any]  # how it was extracted: pooling, dtype, what counts as a layer, versions

    @property
    @abstractmethod
    def key(self) -> str:
        """A digest of everything that determines the bytes; equal keys mean equal arrays."""

    @abstractmethod
    def load(self, layer: str) -> Given:
        """One layer as an (n, d) tensor in its stored dtype, or as the `RDM` or `Kernel` that it is."""

    def check_layer(self, layer: str) -> None:
        """RepalignError for a layer that is not there."""
        choose("layer", layer, self.layers, f"{self.name}: no layer {layer!r}")


@dataclass(eq=False)
class MemoryRepresentation(Representation):
    """Arrays that are already in memory."""

    record: ModelRecord
    ids: tuple[str, ...]
    arrays: Mapping[str, Given]
    dataset_name: str = "arrays"
    dataset_fingerprint: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name, self.n, self.layers = self.record.name, len(self.ids), tuple(self.arrays)
        self.widths = tuple(x.shape[1] for x in self.arrays.values())
        self.kinds = {name: kind_of(x) for name, x in self.arrays.items()}

    @cached_property
    def key(self) -> str:
        digest = hashlib.sha256()
        for name, array in self.arrays.items():
            x = array.matrix if isinstance(array, Pairwise) else array
            x = x.detach().cpu().contiguous()  # in its own dtype: rounded, other arrays would share a key
            form = f":{array.kind}" if isinstance(array, Pairwise) else ""
            digest.update(f"{name}:{tuple(x.shape)}:{x.dtype}{form}".encode())
            digest.update(x.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def load(self, layer: str) -> Given:
        if layer not in self.arrays:
            self.check_layer(layer)
        return self.arrays[layer]


class RowsRepresentation(Representation):
    """Row i of every layer is row `order[i]` of another representation; of an RDM or a kernel its columns too."""

    def __init__(
        self, base: Representation, order: Sequence[int], ids: tuple[str, ...], dataset_name: str, dataset_fingerprint: str
    ) -> None:
        self.base, self.order = base, tuple(order)
        self.record, self.name, self.facts = base.record, base.name, base.facts
        self.layers, self.widths, self.kinds = base.layers, base.widths, base.kinds
        self.ids, self.n, self.dataset_name, self.dataset_fingerprint = ids, len(ids), dataset_name, dataset_fingerprint

    @cached_property
    def key(self) -> str:
        return _digest(self.base.key, *self.order)

    def load(self, layer: str) -> Given:
        return self.base.load(layer)[torch.tensor(self.order)]


class MeanRepresentation(Representation):
    """Every layer is the mean of that layer over several representations of one model, in float32 or wider."""

    def __init__(self, parts: Sequence[Representation]) -> None:
        first = parts[0]
        self.parts, self.facts = tuple(parts), {**first.facts, "mean_of": len(parts)}
        self.record, self.name, self.ids, self.n = first.record, first.name, first.ids, first.n
        self.layers, self.widths, self.kinds = first.layers, first.widths, first.kinds
        self.dataset_name, self.dataset_fingerprint = first.dataset_name, first.dataset_fingerprint

    @cached_property
    def key(self) -> str:
        return _digest("mean", *(p.key for p in self.parts))

    def load(self, layer: str) -> Tensor:
        first = cast(Tensor, self.parts[0].load(layer))
        total = first.to(torch.float64, copy=True)  # a part in memory is not ours to add to
        for part in self.parts[1:]:
            total += cast(Tensor, part.load(layer))
        return (total / len(self.parts)).to(first.dtype if first.dtype == torch.float64 else torch.float32)


def check_same_dataset(representations: Sequence[Representation]) -> None:
    """Refuse to compare representations of different datasets, naming the field that differs."""
    for first, other in ((representations[0], r) for r in representations[1:]):
        if other.dataset_fingerprint == first.dataset_fingerprint and other.ids == first.ids:
            continue
        if other.n != first.n:
            what, a, b = "n", first.n, other.n
        elif other.ids != first.ids:
            row = next(i for i, (p, q) in enumerate(zip(first.ids, other.ids, strict=True)) if p != q)
            what, a, b = f"id of row {row}", first.ids[row], other.ids[row]
        else:
            what, a, b = "dataset fingerprint", first.dataset_fingerprint[:12], other.dataset_fingerprint[:12]
        raise RepalignError(
            f"{first.name} and {other.name} were extracted on different datasets: {what} differs",
            expected=f"{first.name}: {what} {a} (dataset {first.dataset_name!r})",
            got=f"{other.name}: {what} {b} (dataset {other.dataset_name!r})",
            remedy="extract both models on one dataset; rows are paired by id, never by position",
        )


def sample_rows(representations: Sequence[Representation], n: int, seed: int = 0) -> list[Representation]:
    """The same n rows of every representation, drawn without replacement, in their order.

    They are the first n of a random order of all rows, so that with one seed a smaller sample is part of every larger one
    (as `Dataset.sample`). All representations are of one dataset; RepalignError if not, or if n is out of range.
    """
    check_same_dataset(representations)
    if not representations:
        return []
    first = representations[0]
    check_sample(n, first.n, f"dataset {first.dataset_name!r}")
    if n == first.n:
        return list(representations)
    order = sampled(n, first.n, seed)
    ids, name = tuple(first.ids[i] for i in order), f"{first.dataset_name}, sample of {n}"
    fingerprint = _digest(first.dataset_fingerprint, *order, size=64)
    return [RowsRepresentation(r, order, ids, name, fingerprint) for r in representations]


def sampled(n: int, of: int, seed: int) -> list[int]:
    """The rows of a sample of n."""
    return sorted(_order(of, seed)[:n].tolist())


def check_sample(n: int, of: int, what: str) -> None:
    """Refuse a sample that is empty or larger than what it is drawn from."""
    if not 1 <= n <= of:
        remedy = "ask for fewer rows, or leave `rows` out to use all"
        raise RepalignError(f"{what}: cannot draw {n} rows", expected=f"1 to {of} rows", got=n, remedy=remedy)


def break_pairs(representations: Sequence[Representation], share: float, seed: int = 0) -> list[Representation]:
    """A share of the stimuli has the vectors of another stimulus, in all of these representations the same.

    The first round(share * n) rows of a random order change places in a ring, so that none of them keeps its own and, with
    one seed, what is broken at a smaller share is broken at every larger one. Compared with representations that are left
    as they are, exactly this share of the pairs is wrong. RepalignError for a share outside of [0, 1].
    """
    check_same_dataset(representations)
    if not 0 <= share <= 1:
        raise RepalignError("the share of broken pairs is out of range", expected="0 <= share <= 1", got=share)
    n = representations[0].n if representations else 0
    moved = _order(n, seed)[: round(share * n)]
    if len(moved) < 2:  # one alone has nobody to change places with
        return list(representations)
    order = np.arange(n)
    order[moved] = np.roll(moved, 1)
    name = f"{representations[0].dataset_name}, {share:.4g} of the pairs broken"
    return [RowsRepresentation(r, order.tolist(), r.ids, name, r.dataset_fingerprint) for r in representations]


def mean_of(parts: Sequence[Representation]) -> Representation:
    """The mean of several representations of one model, such as of the captions of one image.

    RepalignError unless they are of one model and one dataset, with the same layers, all of features.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    check_same_dataset(parts)
    for layer in first.layers:
        refuse_mean(f"{first.name}, layer {layer}", first.kinds[layer], len(parts))
    for other in parts[1:]:
        if (other.record.spec, other.layers) != (first.record.spec, first.layers):
            expected, got = (f"{r.record.spec} with {len(r.layers)} layers" for r in (first, other))
            raise RepalignError("a mean is over representations of one model", expected=expected, got=got)
    return MeanRepresentation(parts)


def refuse_mean(what: str, kind: str, count: int) -> None:
    """Refuse the mean over captions of what is given by pairs of stimuli: it is no mean of vectors."""
    if kind != FEATURES and count > 1:
        raise RepalignError(
            f"{what}: a mean is over vectors of features", expected="features for each caption",
            got=f"what is given as {said(kind)}, and {count} captions",
            remedy="compare with one caption, or give the mean RDM or kernel itself",
        )


def _order(n: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).permutation(n)


def _digest(*parts: object, size: int = 16) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:size]


# --- reading ahead -------------------------------------------------------------------------------


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; a thread reads the next one while this one is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item
