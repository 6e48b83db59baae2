"""Models of the toy world: `toy:name`; trained on the spot the first time, then kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from repalign.errors import RepalignError
from repalign.models import ModelRecord
from repalign.sources.model import Batch, Context, Layer, LoadedModel, ModelEntry, versions
from repalign.sources.source import COUNTED, KNOWN, NAME, Answer, Asked, Facts, Source, Spec, StandIn
from repalign.toyworld import captions, models, networks, recipes, render

STATISTICS = "language-svd12-200"  # what stands in for models that are counted, not trained: it is made in no time


class Toy(LoadedModel):
    """Scenes or captions of the toy world in, pooled layers out."""

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context) -> None:
        self.entry, self.model = entry, models.load(spec.path, progress=context.progress)
        self.kind = self.model.modality
        self.layers = self.choose_layers([Layer(n, f"layer {n}, mean over positions or words") for n in self.model.layers])
        self.weights = self.model.weights
        self.record = ModelRecord(
            str(spec), spec.source.name(spec, entry), self.model.modality, family=self.model.family,
            objective=self.model.objective, n_parameters=self.model.n_parameters, scores=dict(self.model.scores),
            factors=self.model.factors,
        )  # fmt: skip
        self.facts = {"source": "toy", "pooling": "mean", "pooled_in": "float32", "versions": versions()}

    def forward(self, prepared: Sequence[Any]) -> Batch:
        found = self.model.forward(list(prepared))
        return Batch({layer.name: found[layer.name].to(torch.float32) for layer in self.layers})


class Toys(Source):
    """`toy:` models. The toy world says what is known of them."""

    scheme, form, example = "toy", "toy:name", "toy:cnn"

    def problem(self, path: str) -> tuple[str, str] | None:
        if NAME.fullmatch(path):
            return None
        return f"the name {path!r}", "a name has letters, digits and . _ + - only, and no revision"

    def modality(self, spec: Spec, entry: ModelEntry) -> str | None:  # noqa: ARG002
        return recipes.find(spec.path)[0].modality

    def check(self, spec: Spec, entry: ModelEntry) -> None:
        super().check(spec, entry)
        recipes.find(spec.path)

    def revision(self, spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG002
        return models.revision(spec.path)

    def facts(self, spec: Spec, entry: ModelEntry, answer: Answer | None = None) -> Facts:  # noqa: ARG002
        """The network built and run on one stimulus; what training takes is in its recipe."""
        try:
            recipe, _ = recipes.find(spec.path)
        except RepalignError:
            return Facts()
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            network = networks.build(recipe)
        if isinstance(network, networks.Words):
            layers = networks.caption_vectors(network, torch.ones(1, captions.LENGTH, dtype=torch.int64))
        else:
            layers = networks.image_vectors(network, torch.zeros(1, render.SIDE, render.SIDE, 3, dtype=torch.uint8))
        count = sum(w.numel() for w in network.state_dict().values())
        return Facts(
            kind=recipe.modality, parameters=count, widths=tuple(x.shape[1] for x in layers.values()), names=tuple(layers),
            stored=torch.float32, file_bytes=4 * count, download_bytes=0,
            flops=2.0 * count * (render.SIDE**2 if recipe.modality == recipes.VISION else captions.LENGTH),
            work=0.0 if models.is_cached(spec.path) else recipe.cost,
            parameters_from=COUNTED, layers_from=COUNTED, download_from=KNOWN,
        )  # fmt: skip

    load = Toy

    def stand_in(self, asked: Asked) -> StandIn:
        """Itself if it needs no training, else the untrained one of its kind and nearest width."""
        recipe, _ = recipes.find(asked.spec.path)  # RepalignError for an unknown name, with those that are like it
        like = [r for r in recipes.RECIPES.values() if r.family == recipe.family and r.objective == recipes.UNTRAINED]
        if recipe.family == "svd":
            recipe = recipes.RECIPES[STATISTICS]
        elif recipe.steps:
            recipe = min(like, key=lambda r: (abs(r.width - recipe.width), r.width))
        with torch.random.fork_rng(devices=[]):
            return StandIn(f"toy:{recipe.name}", networks.build(recipe).layers)  # type: ignore[arg-type]
