"""Models of the toy world: `toy:name`; trained on the spot the first time, then kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from repalign.models import ModelRecord, Spec
from repalign.sources.source import Batch, Context, Layer, ModelEntry, Source, choose, versions


def revision(spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG001
    from repalign.toyworld import models

    return models.revision(spec.path)


def load(spec: Spec, entry: ModelEntry, context: Context) -> Source:
    return Toy(spec, entry, context)


class Toy(Source):
    """Scenes or captions of the toy world in, pooled layers out."""

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context) -> None:
        from repalign.toyworld import models

        self.model = models.load(spec.path, progress=context.progress)
        self.kind = self.model.modality  # type: ignore[misc]
        every = [Layer(n, f"layer {n}, mean over positions or words") for n in self.model.layers]
        self.layers = choose(every, entry.layers, entry.label)
        self.weights = self.model.weights
        self.record = ModelRecord(
            spec=str(spec),
            name=entry.name or spec.path,
            modality=self.model.modality,
            family=self.model.family,
            objective=self.model.objective,
            n_parameters=self.model.n_parameters,
            scores=dict(self.model.scores),
            factors=self.model.factors,
        )
        self.facts = {"source": "toy", "pooling": "mean", "pooled_in": "float32", "versions": versions()}

    def forward(self, prepared: Sequence[Any]) -> Batch:
        found = self.model.forward(list(prepared))
        return Batch({layer.name: found[layer.name].to(torch.float32) for layer in self.layers})
