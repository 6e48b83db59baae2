"""A representation: all layers of one model on one dataset, wherever they are kept."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from repalign.errors import RepalignError, did_you_mean
from repalign.layers import FEATURES, Given, Pairwise, kind_of
from repalign.models import ModelRecord


class Representation(ABC):
    """Layers in order, each an (n, d) array whose row i belongs to `ids[i]`.

    A layer may be an RDM or a kernel (n, n) instead, whose row i and column i belong to `ids[i]`: see `kind`.
    """

    record: ModelRecord
    dataset_name: str
    dataset_fingerprint: str
    ids: tuple[str, ...]
    layers: tuple[str, ...]
    facts: Mapping[str, Any]  # how it was extracted: pooling, dtype, what counts as a layer, versions

    @property
    def n(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        return self.record.name

    @property
    @abstractmethod
    def key(self) -> str:
        """A digest of everything that determines the bytes; equal keys mean equal arrays."""

    @abstractmethod
    def load(self, layer: str) -> Given:
        """One layer as an (n, d) tensor in its stored dtype, or as the `RDM` or `Kernel` that it is."""

    def kind(self, layer: str) -> str:  # noqa: ARG002
        """What a layer is given as, without reading it: "features", "rdm" or "kernel"."""
        return FEATURES

    @property
    def kinds(self) -> set[str]:
        """What the layers are given as."""
        return {self.kind(layer) for layer in self.layers}

    def check_layer(self, layer: str) -> None:
        if layer not in self.layers:
            raise RepalignError(
                f"{self.name}: no layer {layer!r}",
                expected=f"one of {len(self.layers)} layers",
                got=layer,
                remedy=did_you_mean(layer, self.layers),
            )


@dataclass(frozen=True, eq=False)
class MemoryRepresentation(Representation):
    """Arrays that are already in memory."""

    record: ModelRecord
    ids: tuple[str, ...]
    arrays: Mapping[str, Given]
    dataset_name: str = "arrays"
    dataset_fingerprint: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.arrays)

    @property
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
        self.check_layer(layer)
        return self.arrays[layer]

    def kind(self, layer: str) -> str:
        self.check_layer(layer)
        return kind_of(self.arrays[layer])


def check_same_dataset(representations: Sequence[Representation]) -> None:
    """Refuse to compare representations of different datasets, naming the field that differs."""
    if not representations:
        return
    first = representations[0]
    for other in representations[1:]:
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
