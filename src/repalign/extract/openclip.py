"""OpenCLIP models: the blocks and the shared embedding of the image or the text side (`modality:` says which)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from repalign.errors import RepalignError, did_you_mean
from repalign.extract._base import (
    Batch,
    Context,
    Layer,
    ModelEntry,
    Source,
    choose,
    choose_pooling,
    count_parameters,
    no_modality,
    torch_dtype,
    versions,
    weights_digest,
)
from repalign.extract._files import hub_errors
from repalign.extract._hooks import outputs_of
from repalign.extract._pool import any_pool
from repalign.models import ModelRecord, Spec

EMBEDDING = "embedding"


def revision(spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG001
    return f"open_clip-{versions('open_clip_torch')['open_clip_torch']}"


def load(spec: Spec, entry: ModelEntry, context: Context) -> Source:
    return OpenCLIP(spec, entry, context)


class OpenCLIP(Source):
    """Images or texts in; block outputs and the embedding in the shared space out."""

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise RepalignError(
                f"model {entry.label}: OpenCLIP is not installed",
                remedy="python -m pip install 'repalign[openclip]'",
            ) from error
        if entry.modality not in ("image", "text"):
            raise no_modality(entry.label, "openclip")
        self.entry, self.device = entry, context.device
        self.kind = entry.modality  # type: ignore[misc]
        architecture, _, pretrained = spec.path.partition("/")
        if architecture not in open_clip.list_models():
            remedy = did_you_mean(architecture, open_clip.list_models())
            raise RepalignError(f"model {entry.label}: no OpenCLIP architecture {architecture!r}", remedy=remedy)
        with hub_errors(spec):
            model, _, self.transform = open_clip.create_model_and_transforms(architecture, pretrained=pretrained)
        dtype = torch_dtype(context.dtype, next(model.parameters()).dtype, context.device, entry.label)
        self.model: Any = model.eval().to(context.device, dtype)
        self.dtype = dtype
        self.tokenizer = open_clip.get_tokenizer(architecture)
        side: Any = self.model.visual if self.kind == "image" else self.model
        blocks = side.transformer.resblocks
        self.root = "visual.transformer.resblocks" if self.kind == "image" else "transformer.resblocks"
        self.pooling = choose_pooling(entry.pooling, "cls" if self.kind == "image" else "mean", ("cls", "mean"), entry.label)
        names = [f"block.{i}" for i in range(len(blocks))] + [EMBEDDING]
        chosen = choose(names, entry.layers, entry.label)
        what = {n: f"output of block {i + 1} of {len(blocks)}" for i, n in enumerate(names[:-1])}
        self.layers = tuple(Layer(n, what.get(n, "the embedding in the shared space")) for n in chosen)
        self.weights = weights_digest(self.model)
        self.record = ModelRecord(
            spec=str(spec),
            name=entry.name or f"{architecture}-{self.kind}",
            modality=self.kind,
            objective="contrastive, image and text",
            n_parameters=count_parameters(self.model),
        )
        self.facts = {
            "source": "openclip",
            "pooling": self.pooling,
            "dtype": str(dtype).removeprefix("torch."),
            "device": context.device,
            "pooled_in": "float32",
            "versions": versions("open_clip_torch", "torchvision", "pillow"),
        }

    def forward(self, prepared: Sequence[Any]) -> Batch:
        paths = {layer.name: f"{self.root}.{layer.name[6:]}" for layer in self.layers if layer.name != EMBEDDING}
        with outputs_of(self.model, list(paths.values())) as found:
            if self.kind == "image":
                pixels = torch.stack([self.transform(image) for image in prepared])
                embedding = self.model.encode_image(pixels.to(self.device, self.dtype))
            else:
                embedding = self.model.encode_text(self.tokenizer(list(prepared)).to(self.device))
        layers = {n: any_pool(found[path], self.pooling, n) for n, path in paths.items()}
        if any(layer.name == EMBEDDING for layer in self.layers):
            layers[EMBEDDING] = embedding
        return Batch({layer.name: layers[layer.name].to("cpu", torch.float32) for layer in self.layers})
