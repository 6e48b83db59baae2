"""What the toy models are trained on: an objective is a network with its heads, its batches and its loss.

All objectives draw fresh scenes from seeds that follow from the name of the run, so no model sees a scene
of another, none sees one twice, and none sees one of a dataset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from repalign.toyworld import captions, names, render, world
from repalign.toyworld.networks import ConvNet, Language, after_start, pixels
from repalign.toyworld.recipe import LANGUAGE, Recipe

BATCH = 128
TEMPERATURE = 0.2  # of the contrastive objectives
MASKED_SHARE = 0.3


class Objective(nn.Module):
    """A network and what is trained with it. `batches` gives tuples that `loss` takes."""

    block = 16 * BATCH  # scenes that are made at a time

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def batches(self, run: str, steps: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of a run, in order; the seed of each block follows from the run's name."""
        for start in range(0, steps * BATCH, self.block):
            n = min(self.block, steps * BATCH - start)
            arrays = [torch.from_numpy(a) for a in self.make(n, names.seed(run, "training", start))]
            yield from zip(*(a.split(BATCH) for a in arrays), strict=True)

    def make(self, n: int, seed: int) -> tuple[np.ndarray, ...]:
        raise NotImplementedError

    def loss(self, *batch: Tensor) -> Tensor:
        raise NotImplementedError


# --- vision ------------------------------------------------------------------------------------

VALUES = {"hue": (0, 1, 2, 3), "side": (4, 5), "height": (6, 7), "size": (8, 9)}  # columns of what is regressed on


class Supervised(Objective):
    """Attributes of both objects: squared error of hue (as cosine and sine), position and size; entropy of shape.

    Of the attributes only those of `tasks` are asked for, each with the weight that it has among all five.
    """

    def __init__(self, network: ConvNet, tasks: Sequence[str] = captions.KINDS) -> None:
        super().__init__(network)
        self.asked = [c for kind, columns in VALUES.items() if kind in tasks for c in columns]
        self.asks_shape = "shape" in tasks
        self.values = nn.Linear(network.d, 2 * 5)
        self.shapes = nn.Linear(network.d, 2 * len(render.SHAPES))

    def make(self, n: int, seed: int) -> tuple[np.ndarray, ...]:
        _, a = world.content(n, seed)
        values = [
            np.cos(a.hue),
            np.sin(a.hue),
            *(3.4 * (v - 0.5) for v in (a.x, a.y, a.size)),
        ]  # unit variance, about
        return _picture(a, seed), np.concatenate(values, axis=1).astype(np.float32), a.shape

    def loss(self, images: Tensor, values: Tensor, shapes: Tensor) -> Tensor:
        top = self.network(pixels(images))["dense"]
        loss = top.new_zeros(())
        if self.asked:
            share = len(self.asked) / values.shape[1]
            loss = share * F.mse_loss(self.values(top)[:, self.asked], values[:, self.asked])
        if self.asks_shape:
            entropy = F.cross_entropy(self.shapes(top).view(len(top) * 2, -1), shapes.flatten())
            loss = loss + 0.5 * entropy
        return loss


class Contrast(Objective):
    """Two views of each scene must find each other in the batch (InfoNCE, both ways)."""

    def __init__(self, network: ConvNet) -> None:
        super().__init__(network)
        self.project = nn.Sequential(nn.Linear(network.d, 64), nn.ReLU(), nn.Linear(64, 32))

    def views(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def loss(self, *batch: Tensor) -> Tensor:
        both = torch.cat(self.views(*batch))
        found = F.normalize(self.project(self.network(both)["dense"]), dim=1)
        one, two = found.chunk(2)
        logits = one @ two.T / TEMPERATURE
        same = torch.arange(len(one))
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


class Temporal(Contrast):
    """The views are two frames of a scene: the objects moved a little, the background is another."""

    block = 8 * BATCH

    def make(self, n: int, seed: int) -> tuple[np.ndarray, ...]:
        first, second, _ = world.frames(n, seed)
        return first, second

    def views(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return pixels(first), pixels(second)


class Augmentation(Contrast):
    """The views are one image, twice cropped, mirrored and recoloured at random."""

    def make(self, n: int, seed: int) -> tuple[np.ndarray, ...]:
        return (_picture(world.content(n, seed)[1], seed),)

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels(images)
        return augment(x), augment(x)


class Autoencoder(Objective):
    """The image from the dense layer by a linear map, in squared error."""

    def __init__(self, network: ConvNet) -> None:
        super().__init__(network)
        self.decode = nn.Linear(network.d, 3 * render.SIDE**2)

    make = Augmentation.make

    def loss(self, images: Tensor) -> Tensor:
        x = pixels(images)
        return F.mse_loss(self.decode(self.network(x)["dense"]), x.flatten(1))


def augment(x: Tensor) -> Tensor:
    """Random crops of 60 to 100 % of the side, mirroring, and a random turn of hue: (b, 3, h, w) as it comes."""
    b = len(x)
    scale = 0.6 + 0.4 * torch.rand(b)
    mirror = torch.where(torch.rand(b) < 0.5, -1.0, 1.0)
    shift = (1 - scale)[:, None] * (2 * torch.rand(b, 2) - 1)
    zero = torch.zeros(b)
    theta = torch.stack([scale * mirror, zero, shift[:, 0], zero, scale, shift[:, 1]], dim=1).view(b, 2, 3)
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), padding_mode="reflection",
                      align_corners=False)  # fmt: skip
    turn = 2 * math.pi * torch.rand(b)
    return torch.einsum("bij,bjhw->bihw", _about_grey(turn), x) * (0.7 + 0.6 * torch.rand(b, 1, 1, 1))


def _about_grey(angle: Tensor) -> Tensor:
    """Rotations (b, 3, 3) of colour space about its grey axis."""
    k = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * torch.eye(3) + sin * cross + (1 - cos) * k


def _picture(attributes: world.Attributes, seed: int) -> np.ndarray:
    return render.draw(attributes, world.stream(seed, "picture"), world.stream(seed, "pixels"))


# --- language ----------------------------------------------------------------------------------


class Words(Objective):
    """An objective on captions that name `detail` attributes each, or the usual mixture."""

    block = 64 * BATCH
    network: Language

    def __init__(self, network: Language, detail: int | None = None) -> None:
        super().__init__(network)
        self.detail = detail

    def make(self, n: int, seed: int) -> tuple[np.ndarray, ...]:
        return (training_captions(n, seed, self.detail),)


class NextWord(Words):
    """Each word from those before it."""

    def loss(self, tokens: Tensor) -> Tensor:
        before = after_start(tokens)[:, :-1]
        return _entropy(self.network.predict(before), tokens, tokens != captions.PAD)


class MaskedWord(Words):
    """Words that are masked, from all others."""

    def loss(self, tokens: Tensor) -> Tensor:
        hidden = (torch.rand(tokens.shape) < MASKED_SHARE) & (tokens != captions.PAD)
        shown = tokens.masked_fill(hidden, captions.MASK)
        return _entropy(self.network.predict(shown), tokens, hidden)


class ContextWord(Words):
    """Each word from its neighbours."""

    def loss(self, tokens: Tensor) -> Tensor:
        return _entropy(self.network.predict(tokens), tokens, tokens != captions.PAD)


def training_captions(n: int, seed: int, detail: int | None = None) -> np.ndarray:
    """Captions to learn from, as word numbers (n, 14)."""
    _, attributes = world.content(n, seed)
    named = captions.some_named(n, world.stream(seed, "named"), detail)
    return captions.write(attributes, named, world.stream(seed, "words"))


def _entropy(logits: Tensor, tokens: Tensor, where: Tensor) -> Tensor:
    return F.cross_entropy(logits[where], tokens[where])


OBJECTIVES: dict[str, type[Objective]] = {
    "supervised": Supervised,
    "temporal": Temporal,
    "autoencoder": Autoencoder,
    "augmentation": Augmentation,
    "next": NextWord,
    "masked": MaskedWord,
    "context": ContextWord,
}


def objective_of(recipe: Recipe, network: nn.Module) -> Objective:
    """The objective of a recipe around its network."""
    kind = OBJECTIVES[recipe.objective]
    if recipe.modality == LANGUAGE:
        return kind(network, recipe.detail)  # type: ignore[call-arg]
    if recipe.tasks:
        return kind(network, recipe.tasks)  # type: ignore[call-arg]
    return kind(network)
