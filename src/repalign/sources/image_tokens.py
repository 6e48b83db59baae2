"""The tokens of an image in a layer: which are patches, which is the class token, and the vector that they become."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repalign.errors import Unavailable
from repalign.sources.model import Layer
from repalign.sources.passes import Trace, traced
from repalign.sources.pooling import plain_mean

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls_embedding", "cls_emb")


def class_tokens(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are a class token by their names, in the trunk or in a head."""
    named = model.named_parameters()
    return [p for name, p in named if any(part in CLASS_TOKENS for part in name.split(".")[-2:])]


@dataclass(frozen=True)
class Places:
    """Where an image's tokens stand in a layer: how many are before and after the patches, and which is the class token."""

    before: int = 0
    after: int = 0
    cls: int | None = None

    def patches(self, x: Tensor) -> Tensor:
        """A layer's tokens without those that are no patches: (b, t, d) -> (b, t - before - after, d)."""
        return x[:, self.before : x.shape[1] - self.after]


def token_places(trace: Trace, again: Callable[[], Any], states: Mapping[str, Tensor], label: str) -> dict[str, Places]:
    """Where the tokens stand in each of the states (b, t, d) by layer that a traced pass over unlike images gave.

    What stands at a position when the tokens first come together, before any of them has seen another, shows what it is:
    the class token and registers are the same for all images, patches are not; and the class token is the one that moves
    when the model's parameter of that name does, for which `again` makes the pass once more. Where several move, none of
    them is the class token. Raises RepalignError where this tells no patches from other tokens.
    """
    moved = []
    for parameter in class_tokens(trace.model):
        with _changed(parameter), traced(trace.model, marks=False) as other:
            again()
        moved.append(other)
    shapes = {tuple(x.shape) for x in states.values()}
    known = {shape: _places(_first(trace, shape), [_first(t, shape) for t in moved], label) for shape in shapes}
    return {layer: known[tuple(x.shape)] for layer, x in states.items()}


# A layer of an image model: its patches (b, t, d), or a map (b, d, h, w), and the tokens before the patches.
State = tuple[Tensor, Tensor | None]


def image_layers(
    trace: Trace, again: Callable[[], Any], states: Sequence[State], label: str, library: str
) -> tuple[list[Layer], dict[str, Places], tuple[str, ...]]:
    """The layers that a library gives for images, where the tokens stand in them, and the poolings that all of them have.

    What the library calls tokens before the patches has to be what the pass shows to be none of the image.
    """
    whole = [patches if before is None else torch.cat([before, patches], dim=1) for patches, before in states]
    maps = all(x.ndim == 4 for x in whole)
    layers = [Layer(f"{'stage' if maps else 'block'}.{i}", trace.what(x, i)) for i, x in enumerate(whole)]
    tokens = {layer.name: x for layer, x in zip(layers, whole, strict=True) if x.ndim == 3}
    places = token_places(trace, again, tokens, label)
    for layer, (_, before) in zip(layers, states, strict=True):
        given, shown = 0 if before is None else before.shape[1], places.get(layer.name)
        if shown is not None and (shown.before != given or shown.after):
            raise Unavailable(
                f"model {label}, layer {layer.name}: the patches cannot be told from other tokens",
                expected=f"{given} tokens before them, as {library} says",
                got=f"{shown.before} before and {shown.after} behind that are the same for all images",
                remedy="name its modules in `layers:` if it is one of timm, or with a torch: spec",
            )  # fmt: skip
    has_class = all(layer.name in places and places[layer.name].cls is not None for layer in layers)
    return layers, places, ("cls", "mean") if has_class else ("spatial_mean", "mean") if maps else ("mean",)


def pool_image(state: State, places: Places | None, pooling: str | None) -> Tensor:
    """The vector of each image: its class token, or the mean over its patches or positions."""
    patches, before = state
    if pooling == "cls":
        assert before is not None and places is not None and places.cls is not None
        return before[:, places.cls].to(torch.float32)
    return plain_mean(patches)


def _first(trace: Trace, shape: tuple[int, ...]) -> Tensor | None:
    """The first tensor of as many tokens, of any width: layers inside a block may be wider."""
    return next((x for s, x in trace.tokens.items() if s[:2] == shape[:2]), None)


def _places(first: Tensor | None, moved: Sequence[Tensor | None], label: str) -> Places:
    def untold(got: str) -> Unavailable:
        return Unavailable(
            f"model {label}: the class token cannot be told from the patches", got=got,
            expected="tokens that are the same for every image, if any, before those of the patches",
            remedy="name its modules with a torch: spec",
        )  # fmt: skip

    if first is None:
        raise untold("no module is given tokens like those of its layers")
    differ = _differ(first[0], first[1])
    if not bool(differ.any()):  # hardly anything of the image is left, as in models of random weights
        differ = (first[0] != first[1]).any(dim=-1)
    patches = differ.nonzero().flatten().tolist()
    before, end = min(patches, default=0), max(patches, default=0) + 1
    if len(patches) != end - before:
        raise untold(f"{len(patches)} of {len(first[0])} tokens are of the image, but not one after another")
    found = {i for x in moved if x is not None for i in _differ(first[0], x[0]).nonzero().flatten().tolist()}
    if found & set(patches):
        raise untold("its class token enters after the patches have seen one another")
    return Places(before, len(first[0]) - end, found.pop() if len(found) == 1 else None)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Which tokens differ by more than rounding: (t, d), (t, d) -> (t,)."""
    rounding = min(8 * torch.finfo(a.dtype).eps, 0.01)
    a, b = a.to(torch.float32), b.to(torch.float32)
    return (a - b).norm(dim=-1) > rounding * torch.maximum(a.norm(dim=-1), b.norm(dim=-1))


@contextmanager
def _changed(parameter: nn.Parameter) -> Iterator[None]:
    """A parameter with other values, and afterwards with its own to the last bit."""
    own = parameter.data.clone()
    step = torch.linspace(-1, 1, own.numel(), device=own.device).reshape(own.shape).to(own.dtype)
    try:
        parameter.data.add_(step * (1 + own.abs().max()))
        yield
    finally:
        parameter.data.copy_(own)


def unlike_images() -> list[Any]:
    """Two pictures that differ in every patch, of the fields of colour that models see best."""
    from PIL import Image

    rng = np.random.default_rng(0)
    fields = [rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(2)]
    return [Image.fromarray(x).resize((320, 240), Image.Resampling.NEAREST) for x in fields]


def images_shown(facts: Mapping[str, Any]) -> bool:
    """Whether the facts of an extraction of images by transformers show its layers and tokens to be right; True of texts.

    Former versions could leave out the first stage, take the last axis of a map for its positions, a register for the
    class token, and the number of tokens from a size: what they took is right where the first layer is the first block,
    and at most the class token is before the patches.
    """
    if "class_token" in facts or "preprocessing" not in facts:
        return True
    first = str(next(iter(facts["layers"].values()))) if facts.get("layers") else ""
    alone = str(facts.get("tokens")).startswith(("0 before", "1 before"))
    return alone and re.match(r"output of ([^\W\d]\w*\.)+0 \(", first) is not None
