"""Representations made of others: some of their rows, pairs broken on purpose, the mean of several.

Nothing is copied: a layer is read from the representation behind when it is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import FEATURES, Given, said
from repalign.models import ModelRecord
from repalign.representation import Representation, check_same_dataset


@dataclass(frozen=True, eq=False)
class RowsRepresentation(Representation):
    """Row i of every layer is row `order[i]` of another representation; of an RDM or a kernel its columns too."""

    base: Representation
    order: tuple[int, ...]
    ids: tuple[str, ...]
    dataset_name: str
    dataset_fingerprint: str

    @property
    def record(self) -> ModelRecord:  # type: ignore[override]
        return self.base.record

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.base.layers

    @property
    def facts(self) -> Mapping[str, Any]:  # type: ignore[override]
        return self.base.facts

    @property
    def key(self) -> str:
        return _digest(self.base.key, *self.order)

    def load(self, layer: str) -> Given:
        return self.base.load(layer)[torch.tensor(self.order)]

    def kind(self, layer: str) -> str:
        return self.base.kind(layer)


@dataclass(frozen=True, eq=False)
class MeanRepresentation(Representation):
    """Every layer is the mean of that layer over several representations of one model, in float32 or wider."""

    parts: tuple[Representation, ...]

    @property
    def record(self) -> ModelRecord:  # type: ignore[override]
        return self.parts[0].record

    @property
    def ids(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.parts[0].ids

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.parts[0].layers

    @property
    def facts(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {**self.parts[0].facts, "mean_of": len(self.parts)}

    @property
    def dataset_name(self) -> str:  # type: ignore[override]
        return self.parts[0].dataset_name

    @property
    def dataset_fingerprint(self) -> str:  # type: ignore[override]
        return self.parts[0].dataset_fingerprint

    @property
    def key(self) -> str:
        return _digest("mean", *(p.key for p in self.parts))

    def load(self, layer: str) -> Tensor:
        first = cast(Tensor, self.parts[0].load(layer))
        total = first.to(torch.float64, copy=True)  # a part in memory is not ours to add to
        for part in self.parts[1:]:
            total += cast(Tensor, part.load(layer))
        return (total / len(self.parts)).to(first.dtype if first.dtype == torch.float64 else torch.float32)


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
    order = tuple(sorted(_order(first.n, seed)[:n].tolist()))
    ids, name = tuple(first.ids[i] for i in order), f"{first.dataset_name}, sample of {n}"
    fingerprint = _digest(first.dataset_fingerprint, *order, size=64)
    return [RowsRepresentation(r, order, ids, name, fingerprint) for r in representations]


def check_sample(n: int, of: int, what: str) -> None:
    """Refuse a sample that is empty or larger than what it is drawn from."""
    if not 1 <= n <= of:
        raise RepalignError(
            f"{what}: cannot draw {n} rows", expected=f"1 to {of} rows", got=n,
            remedy="ask for fewer rows, or leave `rows` out to use all",
        )  # fmt: skip


def break_pairs(representations: Sequence[Representation], share: float, seed: int = 0) -> list[Representation]:
    """A share of the stimuli has the vectors of another stimulus, in all of these representations the same.

    The first round(share * n) rows of a random order change places in a ring, so that none of them keeps its own and, with
    one seed, what is broken at a smaller share is broken at every larger one. Compared with representations that are left
    as they are, exactly this share of the pairs is wrong. RepalignError for a share outside of [0, 1].
    """
    check_same_dataset(representations)
    if not 0 <= share <= 1:
        raise RepalignError("the share of broken pairs is out of range", expected="0 <= share <= 1", got=share)
    if not representations:
        return []
    first = representations[0]
    count = round(share * first.n)
    if count < 2:  # one alone has nobody to change places with
        return list(representations)
    moved = _order(first.n, seed)[:count]
    order = np.arange(first.n)
    order[moved] = np.roll(moved, 1)
    name = f"{first.dataset_name}, {share:.4g} of the pairs broken"
    places = tuple(order.tolist())
    return [RowsRepresentation(r, places, r.ids, name, r.dataset_fingerprint) for r in representations]


def mean_of(parts: Sequence[Representation]) -> Representation:
    """The mean of several representations of one model, such as of the captions of one image.

    RepalignError unless they are of one model and one dataset, with the same layers, all of features.
    """
    check_same_dataset(parts)
    first = parts[0]
    for layer in first.layers:
        refuse_mean(f"{first.name}, layer {layer}", first.kind(layer), len(parts))
    for other in parts[1:]:
        if (other.record.spec, other.layers) != (first.record.spec, first.layers):
            raise RepalignError(
                "a mean is over representations of one model",
                expected=f"{first.record.spec} with {len(first.layers)} layers",
                got=f"{other.record.spec} with {len(other.layers)} layers",
            )
    return first if len(parts) == 1 else MeanRepresentation(tuple(parts))


def refuse_mean(what: str, kind: str, count: int) -> None:
    """Refuse a mean over captions of what is given by pairs of stimuli: it is no mean of vectors."""
    if kind != FEATURES and count > 1:
        raise RepalignError(
            f"{what}: a mean is over vectors of features",
            expected="features for each caption",
            got=f"what is given as {said(kind)}, and {count} captions",
            remedy="compare with one caption, or give the mean RDM or kernel itself",
        )


def _order(n: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).permutation(n)


def _digest(*parts: object, size: int = 16) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:size]
