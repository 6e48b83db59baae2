"""Vision models of the transformers library: transformers and convolutional networks.

Layers are the outputs of the blocks of a transformer, before any final norm, or the maps of the stages of a
convolutional network. The embeddings are not among them: a class token there is the same for every image. Which of a
model's hidden states are embeddings, which tokens are patches and which is the class token is shown by a pass over two
images that differ everywhere: see `_trace`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repalign.errors import Unavailable, first_line
from repalign.sources import passes
from repalign.sources.hf import load_model, quiet, read_config, refuse_missing, within
from repalign.sources.hub import at, hub_errors
from repalign.sources.image_tokens import Places, class_tokens, token_places, unlike_images
from repalign.sources.model import Batch, Context, Layer, Loaded, LoadedModel, ModelEntry, plain
from repalign.sources.pooling import masked_mean, plain_mean
from repalign.sources.source import Spec

SIDES = ("vision_model", "vision_tower", "visual", "vision_encoder", "image_tower")
OTHERWISE = "name its modules with a torch: spec"


def load(spec: Spec, entry: ModelEntry, context: Context, config: Any) -> HFVision:
    from transformers import AutoModel

    loaded = load_model(AutoModel, spec, context, config, entry.label)
    return HFVision(spec, entry, loaded, config, _processor(spec, context))


def load_classifier(spec: Spec, entry: ModelEntry, context: Context) -> HFVision:
    """A vision model with the head that names a class: its `model` gives `logits`. Unavailable where its files have none."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForImageClassification

    config = read_config(spec, context)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise Unavailable(
            f"model {entry.label}: {type(config).__name__} has no head that names the class of an image",
            expected="a vision model of transformers that classifies images", got=config.model_type,
        )  # fmt: skip
    loaded = load_model(AutoModelForImageClassification, spec, context, config, entry.label)
    refuse_missing(entry.label, loaded.missing)
    return HFVision(spec, entry, loaded, config, _processor(spec, context))


class HFVision(LoadedModel):
    """Images in, pooled block outputs out."""

    kind = "image"

    def __init__(self, spec: Spec, entry: ModelEntry, loaded: Loaded, config: Any, processor: Any) -> None:
        self.entry, self.processor = entry, processor
        self.device, self.dtype = loaded.device, loaded.dtype
        self.model: nn.Module = _vision_side(loaded.model, config, entry.label)
        missing = within(loaded.model, self.model, loaded.missing)
        for module in self.model.modules():
            config = getattr(module, "config", None)
            if config is not None:  # or the last hidden state may be that behind the final norm
                config.tie_last_hidden_states = False
                if getattr(config, "mask_ratio", None):  # of a masked autoencoder, that trains on the rest of an image
                    config.mask_ratio = 0.0
        self.fed = _named_arguments(self.model)
        every = self._probe(missing)
        self.pooling = self.choose_pooling(self._poolings())
        self.layers = self.choose_layers(every)
        facts = {
            "pooling": self.pooling, "tokens": self._tokens(),
            "class_token": any(p.cls is not None for p in self.places.values()), "last_layer": every[-1].what,
            "preprocessing": plain(self.processor.to_dict()), "input": self.input,
        }  # fmt: skip
        libraries, dtypes = ("transformers", "torchvision", "pillow"), (self.dtype, loaded.stored)
        self.describe(spec, "image", self.model, dtypes, libraries, facts, missing=missing)

    def prepare(self, stimuli: Sequence[Any], where: Sequence[str]) -> list[dict[str, Tensor]]:  # noqa: ARG002
        return [self._inputs(image) for image in stimuli]

    def forward(self, prepared: Sequence[dict[str, Tensor]]) -> Batch:
        """Rows of one size go into one pass, or each alone where the model takes patches of all in a row."""
        shapes = [tuple(x.shape for x in inputs.values()) for inputs in prepared]
        return self.in_passes(prepared, range(len(prepared)) if self.packed else shapes, self._pass)

    def _pass(self, prepared: Sequence[dict[str, Tensor]]) -> Batch:
        inputs = {name: torch.cat([each[name] for each in prepared]) for name in prepared[0]}
        for name, x in inputs.items():
            if name != self.mask:
                self._refuse_padding(name, x)
        hidden = self._run(inputs)
        pooled = {layer.name: self._pool(layer.name, hidden[self.index[layer.name]], inputs) for layer in self.layers}
        return Batch({name: x.to("cpu", torch.float32) for name, x in pooled.items()})

    def _pool(self, name: str, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        places = self.places.get(name)
        if places is None:
            return plain_mean(hidden.permute(0, 3, 1, 2) if self.channels_last[name] else hidden)
        if self.pooling == "cls":
            assert places.cls is not None
            return hidden[:, places.cls].to(torch.float32)
        return masked_mean(hidden, inputs[self.mask]) if self.mask else plain_mean(places.patches(hidden))

    def _poolings(self) -> tuple[str, ...]:
        if not self.places:
            return ("spatial_mean", "mean")
        every = len(self.places) == len(self.index) and all(p.cls is not None for p in self.places.values())
        return ("cls", "mean") if every else ("mean",)

    def _tokens(self) -> str:
        if not self.places:
            return "maps"
        if self.mask:
            return f"those of patches, as {self.mask} says"
        before, after = (sorted({getattr(p, side) for p in self.places.values()}) for side in ("before", "after"))
        behind = f", {' or '.join(map(str, after))} behind" if any(after) else ""
        return f"{' or '.join(map(str, before))} before the patches{behind}, which alone enter a mean"

    def _inputs(self, image: Any) -> dict[str, Tensor]:
        """What the processor makes of one image, of that what the model takes, under the model's names."""
        made = self.processor(images=[image], return_tensors="pt")
        inputs = {}
        for name, x in made.items():
            known = self._known_as(name)
            if known is not None and not isinstance(x, Tensor):
                raise self._refused(f"its processor gives no tensor of {name}", "a tensor", type(x).__name__)
            if known is not None:
                inputs[known] = x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)
            elif isinstance(x, Tensor):
                self._refuse_padding(name, x)
        if not inputs:
            names = f"{', '.join(self.fed)} of {type(self.model).__name__}"
            raise self._refused("its processor gives nothing that its vision side takes", names, ", ".join(made))
        return inputs

    def _known_as(self, name: str) -> str | None:
        """The model's name for what the processor calls so; the pixels are the model's first argument, however named."""
        for known in (name, name.removeprefix("image_")):
            if known in self.fed:
                return known
        return self.fed[0] if name == "pixel_values" else None

    def _refuse_padding(self, name: str, mask: Tensor) -> None:
        """Refuse a mask that leaves parts of an image out of which the layers do not tell where they are."""
        if "mask" in name and not bool(mask.to(torch.bool).all()):
            raise self._refused(
                "its processor pads images, and its layers do not say where", "a mask of the layers' tokens, or no padding",
                f"{name} of shape {tuple(mask.shape)}",
            )  # fmt: skip

    def _run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)  # a masked autoencoder puts the patches into a random order
            hidden = getattr(self.model(**inputs, output_hidden_states=True), "hidden_states", None) or ()
        if any(not isinstance(h, Tensor) for h in hidden):
            return []
        return [h[None] if h.ndim == 2 and self.packed else h for h in hidden]

    @torch.inference_mode()
    def _probe(self, missing: Sequence[str]) -> list[Layer]:
        """Run two images: what the hidden states are, and where the patches stand in them."""
        each = [self._inputs(image) for image in unlike_images()]
        inputs = {name: torch.cat([x[name] for x in each]) for name in each[0]}
        pixels = each[0].get(str(self._known_as("pixel_values")))
        self.input = {name: list(x.shape[1:]) for name, x in each[0].items()}
        if pixels is None or pixels.ndim > 4:
            raise self._refused(
                "it does not read one image at a time", "pixels (images, channels, height, width) from its processor",
                ", ".join(f"{n} {tuple(x.shape)}" for n, x in each[0].items()) + " of one image, as of frames or tiles",
            )  # fmt: skip
        self.packed = pixels.ndim == 2 or len(pixels) != 1
        trace, hidden = self._trace(each[0] if self.packed else inputs)
        if not self.packed and hidden and all(h.ndim == 3 and len(h) == 1 for h in hidden):
            self.packed = True  # patches of all images in a row: the processor puts them so, or here the model does
            trace, hidden = self._trace(each[0])
        if not hidden or any(h.ndim not in (3, 4) for h in hidden):
            raise self._refused(
                f"{type(self.model).__name__} returns hidden states of an unknown form",
                "tokens (b, t, d) or maps (b, d, height, width)", [tuple(h.shape) for h in hidden][:3],
            )  # fmt: skip
        if any(len(h) != (1 if self.packed else 2) for h in hidden):
            raise self._refused(
                "it does not read one image at a time", "one row of hidden states for each image",
                f"{len(hidden[0])} rows for {1 if self.packed else 2}, as of frames or tiles",
            )  # fmt: skip
        refuse_missing(self.entry.label, trace.needed(missing, hidden[-1]))
        return self._layers(trace, hidden, inputs)

    def _trace(self, inputs: Mapping[str, Tensor]) -> tuple[passes.Trace, list[Tensor]]:
        with passes.traced(self.model) as trace:
            return trace, self._run(inputs)

    def _layers(self, trace: passes.Trace, hidden: list[Tensor], inputs: Mapping[str, Tensor]) -> list[Layer]:
        first = 0 if len(hidden) == 1 or self._is_layer(trace, hidden) else 1
        states = hidden[first : -1 if trace.normalises(hidden[-2:]) else None]
        word = "stage" if all(h.ndim == 4 for h in states) else "block"
        every = [Layer(f"{word}.{i}", trace.what(h, i)) for i, h in enumerate(states)]
        self.index = {layer.name: first + i for i, layer in enumerate(every)}
        alike = [n for n, x in inputs.items() if "mask" in n and all(x.shape == h.shape[:2] for h in states)]
        self.mask = alike[0] if alike else None  # says which tokens are patches, and which padding
        maps = {layer.name: h for layer, h in zip(every, states, strict=True) if h.ndim == 4}
        tokens = {layer.name: h for layer, h in zip(every, states, strict=True) if h.ndim == 3}
        self.channels_last = self._channels_last(trace, maps)
        self.places = self._places(trace, tokens, inputs)
        return every

    def _places(self, trace: passes.Trace, tokens: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Places]:
        if self.mask or (self.packed and not class_tokens(self.model)):
            return dict.fromkeys(tokens, Places())
        if self.packed:
            raise self._refused(
                "the class token cannot be told from the patches", "images that go through it side by side",
                "a row of the patches of all images, and a class token",
            )  # fmt: skip
        return token_places(trace, lambda: self._run(inputs), tokens, self.entry.label)

    def _is_layer(self, trace: passes.Trace, hidden: Sequence[Tensor]) -> bool:
        """Whether the first hidden state is the output of a block or stage, and not the embeddings."""
        layer = trace.precedes(hidden[0], hidden[1])
        if layer is None:
            raise self._refused(
                "it cannot be told whether its first hidden state is that of the embeddings",
                "the output of a module, or the input of its first block", trace.what(hidden[0]),
            )  # fmt: skip
        return layer

    def _channels_last(self, trace: passes.Trace, maps: Mapping[str, Tensor]) -> dict[str, bool]:
        """Of each map whether it is (b, h, w, d); one that is as wide as it is deep is as the others are."""
        found = {name: trace.channels_last(x) for name, x in maps.items()}
        told = {last for last in found.values() if last is not None}
        if maps and (not told or (None in found.values() and len(told) > 1)):
            raise self._refused(
                "the channels of its maps cannot be told", "maps that a convolution or a linear layer takes or makes",
                [tuple(x.shape) for x in maps.values()],
            )  # fmt: skip
        return {name: next(iter(told)) if last is None else last for name, last in found.items()}

    def _refused(self, problem: str, expected: object, got: object) -> Unavailable:
        return Unavailable(f"model {self.entry.label}: {problem}", expected=expected, got=got, remedy=OTHERWISE)


def _named_arguments(model: nn.Module) -> list[str]:
    """The arguments of a model's pass by their names; the pixels, where it passes on what it is given."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = inspect.signature(model.forward).parameters.values()
    return [p.name for p in given if p.kind not in variadic] or ["pixel_values"]


def _vision_side(model: Any, config: Any, label: str) -> nn.Module:
    if getattr(config, "vision_config", None) is None:
        return model
    side = next((s for name in SIDES if isinstance(s := getattr(model, name, None), nn.Module)), None)
    if side is None:  # under another name, with the configuration of that side
        kind = type(config.vision_config)
        side = next((s for s in model.children() if type(getattr(s, "config", None)) is kind), None)
    if side is None:
        raise Unavailable(
            f"model {label}: {type(model).__name__} has no vision side that is known",
            expected=f"a module {', '.join(SIDES[:-1])} or {SIDES[-1]}, or one that has the vision_config",
            got=", ".join(n for n, _ in model.named_children()), remedy=OTHERWISE,
        )  # fmt: skip
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
            raise no_processor(spec, first_line(error)) from error


def no_processor(spec: Spec, got: str) -> Unavailable:
    return Unavailable(
        f"model {spec}: its image processor cannot be loaded",
        expected="preprocessor_config.json beside the model: it says size, mean and standard deviation", got=got,
        remedy="save it there with processor.save_pretrained(folder)",
    )  # fmt: skip
