"""Image models of timm: every architecture that timm can give intermediates for, else modules by path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    torch_dtype,
    versions,
    weights_digest,
)
from repalign.extract._files import folder_revision, hub_errors, hub_revision
from repalign.extract._hooks import module_names, outputs_of
from repalign.extract._pool import any_pool, map_mean, token_pool
from repalign.models import ModelRecord, Spec


def revision(spec: Spec, entry: ModelEntry) -> str:
    if spec.is_local:
        return folder_revision(Path(spec.path), spec)
    hub_id = _pretrained_hub_id(spec, entry)
    return hub_revision(Spec("hf", hub_id)) if hub_id else f"timm-{versions('timm')['timm']}"


def load(spec: Spec, entry: ModelEntry, context: Context) -> Source:
    return TimmVision(spec, entry, context)


def _pretrained_hub_id(spec: Spec, entry: ModelEntry) -> str | None:
    import timm

    try:
        config = timm.get_pretrained_cfg(spec.path)
    except RuntimeError:
        config = None
    if config is None:
        raise RepalignError(
            f"model {entry.label}: timm has no pretrained model {spec.path!r}",
            got=spec.path,
            remedy=did_you_mean(spec.path, timm.list_pretrained()),
        )
    return config.hf_hub_id


class TimmVision(Source):
    """Images in, pooled block outputs (before the final norm) out."""

    kind = "image"

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context) -> None:
        import timm

        self.entry = entry
        self.device = context.device
        name = f"local-dir:{spec.path}" if spec.is_local else spec.path
        with hub_errors(spec):
            model = timm.create_model(name, pretrained=True)
        dtype = torch_dtype(context.dtype, next(model.parameters()).dtype, context.device, entry.label)
        self.model: Any = model.eval().to(context.device, dtype)
        self.dtype = dtype
        config = timm.data.resolve_model_data_config(self.model)
        self.transform = timm.data.create_transform(**config, is_training=False)
        self.size = tuple(config["input_size"])
        self.by_path = entry.layers is not None and all(isinstance(w, str) and "." in w for w in entry.layers)
        self.by_path = self.by_path and not all(str(w).startswith("block.") for w in entry.layers or ())
        if not self.by_path and not hasattr(self.model, "forward_intermediates"):
            raise RepalignError(
                f"model {entry.label}: timm gives no intermediates for {type(model).__name__}",
                expected="module paths in `layers:`",
                got=entry.layers or "none",
                remedy=f"name modules, for instance layers: {[n for n, _ in model.named_children()][:3]}",
            )
        self._name_layers()
        self.weights = weights_digest(self.model)
        self.record = ModelRecord(
            spec=str(spec),
            name=entry.name or spec.path.rstrip("/").rpartition("/")[2],
            modality="image",
            n_parameters=count_parameters(self.model),
        )
        self.facts = {
            "source": "timm",
            "architecture": type(model).__name__,
            "pooling": self.pooling,
            "dtype": str(dtype).removeprefix("torch."),
            "device": context.device,
            "pooled_in": "float32",
            "preprocessing": {k: v if isinstance(v, (str, float, int)) else str(v) for k, v in sorted(config.items())},
            "versions": versions("timm", "torchvision", "pillow"),
        }

    def _name_layers(self) -> None:
        if self.by_path:
            names = module_names(self.model, self.entry.layers, self.entry.label)
            self.pooling = self.entry.pooling
            self.layers = tuple(Layer(n, f"output of module {n}") for n in names)
            return
        with torch.inference_mode():
            states, prefixes = self._intermediates(torch.zeros(1, *self.size, device=self.device, dtype=self.dtype))
        self.tokens = prefixes is not None
        known = ("cls", "mean") if self.tokens and prefixes[0].shape[1] else ("spatial_mean", "mean")
        self.pooling = choose_pooling(self.entry.pooling, known[0], known, self.entry.label)
        names = [f"block.{i}" for i in range(len(states))]
        chosen = choose(names, self.entry.layers, self.entry.label)
        what = "output of block {} of {}, before the final norm"
        self.layers = tuple(Layer(n, what.format(i + 1, len(names))) for i, n in enumerate(names) if n in chosen)
        self.positions = {n: i for i, n in enumerate(names)}

    def _intermediates(self, pixels: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
        """Maps (b, d, h, w) or patch tokens of every block, and the tokens before the patches if there are any."""
        if getattr(self.model, "num_prefix_tokens", 0):
            pairs = self.model.forward_intermediates(
                pixels, norm=False, intermediates_only=True, return_prefix_tokens=True, output_fmt="NLC"
            )
            return [p for p, _ in pairs], [t for _, t in pairs]
        return list(self.model.forward_intermediates(pixels, norm=False, intermediates_only=True)), None

    def forward(self, prepared: Sequence[Any]) -> Batch:
        pixels = torch.stack([self.transform(image) for image in prepared]).to(self.device, self.dtype)
        if self.by_path:
            with outputs_of(self.model, [layer.name for layer in self.layers]) as found:
                self.model(pixels)
            layers = {n.name: any_pool(found[n.name], self.pooling, n.name) for n in self.layers}
        else:
            states, prefixes = self._intermediates(pixels)
            layers = {}
            for layer in self.layers:
                i = self.positions[layer.name]
                if self.pooling == "cls":
                    assert prefixes is not None
                    layers[layer.name] = prefixes[i][:, 0].to(torch.float32)
                else:
                    layers[layer.name] = map_mean(states[i]) if states[i].ndim == 4 else token_pool(states[i], "mean", 0)
        return Batch({name: x.to("cpu", torch.float32) for name, x in layers.items()})
