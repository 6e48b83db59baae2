"""Vision models of the transformers library: transformers and convolutional networks.

Layers of a transformer are its embeddings and the outputs of its blocks, before any final norm; those of a
convolutional network are the embedder's and the stages' maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repalign.errors import RepalignError
from repalign.extract._base import (
    Batch,
    Context,
    Layer,
    ModelEntry,
    Source,
    choose,
    choose_pooling,
    count_parameters,
    torch_dtype,
    versions,
    weights_digest,
)
from repalign.extract._files import hub_errors
from repalign.extract._pool import map_mean, token_pool
from repalign.extract.hf import load_model
from repalign.extract.hf_text import first_tensor, longest_block_list
from repalign.models import ModelRecord, Spec

CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")


class HFVision(Source):
    """Images in, pooled hidden states out."""

    kind = "image"

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context, config: Any) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.entry = entry
        self.device = context.device
        dtype = torch_dtype(context.dtype, getattr(config, "dtype", None), context.device, entry.label)
        model = load_model(AutoModel, spec, context, dtype)
        self.model: nn.Module = getattr(model, "vision_model", model)
        with hub_errors(spec):
            self.processor = AutoImageProcessor.from_pretrained(
                spec.path, revision=spec.revision, trust_remote_code=context.trust_remote_code
            )
        self.dtype = dtype
        self.prefix = self._prefix(getattr(config, "vision_config", None) or config)
        self.blocks = longest_block_list(self.model)
        names, self.is_map = self._probe()
        known = ("spatial_mean", "mean") if self.is_map else (("cls", "mean") if self.prefix else ("mean",))
        self.pooling = choose_pooling(entry.pooling, known[0], known, entry.label)
        chosen = choose([n for n, _ in names], entry.layers, entry.label)
        self.layers = tuple(Layer(n, what) for n, what in names if n in chosen)
        self.positions = {n: i for i, (n, _) in enumerate(names)}
        self.weights = weights_digest(self.model)
        self.record = ModelRecord(
            spec=str(spec),
            name=entry.name or spec.path.rstrip("/").rpartition("/")[2],
            modality="image",
            n_parameters=count_parameters(self.model),
        )
        self.facts = {
            "source": "hf",
            "architecture": type(self.model).__name__,
            "pooling": self.pooling,
            "tokens": "maps, averaged over positions" if self.is_map else f"{self.prefix} before the patches",
            "dtype": str(dtype).removeprefix("torch."),
            "device": context.device,
            "pooled_in": "float32",
            "preprocessing": _plain(self.processor.to_dict()),
            "versions": versions("transformers", "torchvision", "pillow"),
        }

    def _prefix(self, config: Any) -> int:
        """How many tokens stand before the patches: a class token and registers; 0 without a class token."""
        if not any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in self.model.named_parameters()):
            return 0
        return 1 + int(getattr(config, "num_register_tokens", 0) or 0)

    def forward(self, prepared: Sequence[Any]) -> Batch:
        hidden = self._hidden(self._pixels(prepared))
        layers = {}
        for layer in self.layers:
            h = hidden[self.positions[layer.name]]
            pooled = map_mean(h) if self.is_map else token_pool(h, self.pooling, self.prefix)
            layers[layer.name] = pooled.to("cpu", torch.float32)
        return Batch(layers)

    def _pixels(self, images: Sequence[Any]) -> Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels.to(self.device, self.dtype)

    def _hidden(self, pixels: Tensor) -> list[Tensor]:
        """Hidden states, with the last one taken from the last block itself where the model puts a norm behind it."""
        seen: list[Tensor] = []
        hook = None
        if self.blocks is not None:
            hook = self.blocks[-1].register_forward_hook(lambda _m, _i, out: seen.append(first_tensor(out)))
        try:
            hidden = list(self.model(pixel_values=pixels, output_hidden_states=True).hidden_states)
        finally:
            if hook is not None:
                hook.remove()
        if seen and seen[-1].shape == hidden[-1].shape and hidden[-1].ndim == 3:
            hidden[-1] = seen[-1]
        return hidden

    def _probe(self) -> tuple[list[tuple[str, str]], bool]:
        from PIL import Image

        with torch.inference_mode():
            hidden = self._hidden(self._pixels([Image.new("RGB", (64, 64), (90, 120, 150))]))
        if hidden[-1].ndim not in (3, 4):
            raise RepalignError(
                f"model {self.entry.label}: hidden states of an unknown form",
                expected="tokens (b, t, d) or maps (b, d, h, w)",
                got=f"shape {tuple(hidden[-1].shape)}",
            )
        is_map = hidden[-1].ndim == 4
        word, count = ("stage" if is_map else "block"), len(hidden) - 1
        names = [("embeddings", f"embeddings, before the first {word}")]
        names += [(f"{word}.{i}", f"output of {word} {i + 1} of {count}, before any final norm") for i in range(count)]
        return names, is_map


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """What of an image processor's settings JSON can hold."""
    keep = (str, int, float, bool, list, dict, type(None))
    return {k: v for k, v in sorted(settings.items()) if isinstance(v, keep)}
