"""Vision models of the transformers library: transformers and convolutional networks.

Layers are the outputs of the blocks of a transformer, before any final norm, or the maps of the stages of a
convolutional network. The embeddings are not among them: a class token there is the same for every image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repalign.errors import RepalignError, Unavailable
from repalign.extract._base import (
    Batch,
    Context,
    Layer,
    ModelEntry,
    Source,
    choose,
    choose_pooling,
    count_parameters,
    plain,
    run_facts,
    short_name,
    weights_digest,
)
from repalign.extract._files import at, first_line, hub_errors
from repalign.extract._pool import map_mean, token_mean
from repalign.extract._trace import needed_but_missing, traced
from repalign.extract.hf import load_model, quiet, refuse_missing, within
from repalign.models import ModelRecord, Spec

CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")


class HFVision(Source):
    """Images in, pooled block outputs out."""

    kind = "image"

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context, config: Any) -> None:
        from transformers import AutoModel

        self.entry = entry
        loaded = load_model(AutoModel, spec, context, config, entry.label)
        self.device, self.dtype = loaded.device, loaded.dtype
        self.model: nn.Module = _vision_side(loaded.model, config, entry.label)
        missing = within(loaded.model, self.model, loaded.missing)
        for module in self.model.modules():
            config = getattr(module, "config", None)
            if config is not None:  # or the last hidden state may be that behind the final norm
                config.tie_last_hidden_states = False
        self.processor = _processor(spec, context)
        every = self._probe(missing)
        known = ("spatial_mean", "mean") if self.is_map else (("cls", "mean") if self.prefix else ("mean",))
        self.pooling = choose_pooling(entry.pooling, known, entry.label)
        self.places = {layer.name: i for i, layer in enumerate(every, start=1)}
        self.layers = choose(every, entry.layers, entry.label)
        self.weights = weights_digest(self.model, missing)
        self.record = ModelRecord(
            spec=str(spec),
            name=entry.name or short_name(spec),
            modality="image",
            n_parameters=count_parameters(self.model),
        )
        self.facts = {
            "source": "hf",
            "architecture": type(self.model).__name__,
            "pooling": self.pooling,
            "tokens": "maps" if self.is_map else f"{self.prefix} before the patches, which alone enter a mean",
            "last_layer": every[-1].what,
            "preprocessing": plain(self.processor.to_dict()),
            **run_facts(self.dtype, loaded.stored, "transformers", "torchvision", "pillow"),
        }

    def forward(self, prepared: Sequence[Any]) -> Batch:
        hidden = self._run(self._pixels(prepared)).hidden_states
        layers = {layer.name: self._pool(hidden[self.places[layer.name]]) for layer in self.layers}
        return Batch({name: x.to("cpu", torch.float32) for name, x in layers.items()})

    def _pool(self, hidden: Tensor) -> Tensor:
        if self.is_map:
            return map_mean(hidden)
        return hidden[:, 0].to(torch.float32) if self.pooling == "cls" else token_mean(hidden, self.prefix)

    def _pixels(self, images: Sequence[Any]) -> Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels.to(self.device, self.dtype)

    def _run(self, pixels: Tensor) -> Any:
        return self.model(pixel_values=pixels, output_hidden_states=True)

    @torch.inference_mode()
    def _probe(self, missing: Sequence[str]) -> list[Layer]:
        """Run one image: what the hidden states are, and how many tokens stand before the patches."""
        from PIL import Image

        pixels = self._pixels([Image.linear_gradient("L").convert("RGB")])
        with traced(self.model) as trace:
            hidden = self._run(pixels).hidden_states
        forms = {h.ndim for h in hidden or ()}
        if forms not in ({3}, {4}):
            raise RepalignError(
                f"model {self.entry.label}: {type(self.model).__name__} returns hidden states of an unknown form",
                expected="tokens (b, t, d) or maps (b, d, height, width)",
                got=[tuple(h.shape) for h in hidden or ()][:3],
                remedy="name its modules with a torch: spec",
            )
        refuse_missing(self.entry.label, needed_but_missing(trace, missing, hidden[-1]))
        self.is_map = forms == {4}
        self.prefix = 0 if self.is_map else self._count_prefix(pixels, hidden[-1])
        word = "stage" if self.is_map else "block"
        return [Layer(f"{word}.{i}", trace.what(h, i)) for i, h in enumerate(hidden[1:])]

    def _count_prefix(self, pixels: Tensor, hidden: Tensor) -> int:
        """How many tokens (the class token, registers) stand before those of the patches."""
        if not any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in self.model.named_parameters()):
            return 0
        size = getattr(self.model.config, "patch_size", None)
        high, wide = (size, size) if isinstance(size, int) else tuple(size or (0, 0))
        patches = (pixels.shape[2] // high) * (pixels.shape[3] // wide) if high and wide else 0
        prefix = hidden.shape[1] - patches
        if not patches or prefix < 1:
            raise RepalignError(
                f"model {self.entry.label}: the class token cannot be told from the patches",
                expected=f"{patches} patches and at least one token before them",
                got=f"{hidden.shape[1]} tokens",
                remedy="name its modules with a torch: spec",
            )
        return prefix


def _vision_side(model: Any, config: Any, label: str) -> nn.Module:
    if getattr(config, "vision_config", None) is None:
        return model
    side = getattr(model, "vision_model", None) or getattr(model, "vision_tower", None)
    if side is None:
        raise RepalignError(
            f"model {label}: {type(model).__name__} has no vision side that is known",
            expected="a module vision_model or vision_tower",
            got=", ".join(n for n, _ in model.named_children()),
            remedy="name its modules with a torch: spec",
        )
    return side


def _processor(spec: Spec, context: Context) -> Any:
    from transformers import AutoImageProcessor

    with hub_errors(spec), quiet():
        try:
            return AutoImageProcessor.from_pretrained(
                spec.path, trust_remote_code=context.trust_remote_code, **at(spec, context.revision)
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not spec.is_local:
                raise
            raise Unavailable(
                f"model {spec}: its image processor cannot be loaded",
                expected="preprocessor_config.json beside the model: it says size, mean and standard deviation",
                got=first_line(error),
                remedy="save it there with processor.save_pretrained(folder)",
            ) from error
