"""The toy world: scenes of two objects, whose latents are known and whose image and caption are partial views.

A scene has four latents: palette and family are angles, depth and layout lie in [0, 1]. Every attribute of
the two objects is a noisy function of one latent, and every latent shows in at least two attributes, which
is what gives neighbourhoods a meaning. Background, brightness, gradient and pixel noise belong to the image
alone; synonyms, the order of the objects and rounding to the text alone.

All randomness is PCG64 with one stream for each purpose, drawn row by row: the first scenes of a larger
sample are the smaller sample, and what a caption names changes neither its scene nor its image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repalign.errors import RepalignError
from repalign.toyworld import captions, render

TURN = 2 * np.pi
LATENTS = ("palette", "family", "depth", "layout")


@dataclass(frozen=True)
class World:
    """What the world is made of; the numbers that a scene depends on beside its seed.

    The offsets of object B are small enough that the words of A and B, added up, still point where the
    latent does: with a quarter turn between the shapes, counts of words would lose the family.
    """

    hue_concentration: float = 12.0  # of the von Mises distribution of both hues
    hue_offset: float = TURN / 6  # of object B's hue from the palette
    shape_sharpness: float = 8.0  # of the softmax over the directions of the shapes
    shape_offset: float = TURN / 8  # of object B's family from the scene's
    side_noise: float = 0.1
    height_noise: float = 0.07
    size_noise: float = 0.1
    side_share: float = 0.45  # of the width that each object may lie in
    frame_step: float = 0.04  # how far position and size move between two frames


WORLD = World()


@dataclass(frozen=True)
class Attributes:
    """What the two objects of each scene are, A in column 0 and B in column 1; all of shape (n, 2).

    `hue` in radians in [0, 2 pi), `shape` an index into `render.SHAPES`; x (left to right), y (top to
    bottom) and `size` in [0, 1].
    """

    hue: np.ndarray
    shape: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray


@dataclass(frozen=True)
class Scenes:
    """Scenes and their two views. `latents` has the columns of `LATENTS`, angles in [0, 2 pi)."""

    images: np.ndarray  # (n, 32, 32, 3) uint8
    captions: list[str]
    latents: np.ndarray  # (n, 4) float64
    attributes: Attributes

    def __len__(self) -> int:
        return len(self.captions)


def sample(n: int, seed: int, detail: int = captions.FULL) -> Scenes:
    """n scenes with an image and a caption each: a function of `seed`, `detail` and the row alone.

    `detail` from 1 to 10 is how many attributes a caption names, in the order of `captions.ORDER`: first
    those of object A, then those of object B. Raises RepalignError for values out of range.
    """
    _check_count(n, seed)
    if isinstance(detail, bool) or detail not in range(1, captions.FULL + 1):
        raise RepalignError(
            "toy world: the detail of captions is out of range",
            expected=f"a whole number from 1 to {captions.FULL}, how many attributes a caption names", got=detail
        )
    latents, attributes = content(n, seed)
    named = np.broadcast_to(captions.first_named(detail), (n, 2, len(captions.KINDS)))
    tokens = captions.write(attributes, named, stream(seed, "words"))
    images = render.draw(attributes, stream(seed, "picture"), stream(seed, "pixels"))
    return Scenes(images, captions.decode(tokens), latents, attributes)


def content(n: int, seed: int, world: World = WORLD) -> tuple[np.ndarray, Attributes]:
    """Latents (n, 4) and the attributes that follow from them, without any view of the scene."""
    latents = stream(seed, "latents").random((n, 4)) * (TURN, TURN, 1, 1)
    palette, family, depth, layout = latents.T[:, :, None]  # (n, 1) each
    hue = stream(seed, "hue").vonmises(0.0, world.hue_concentration, (n, 2))
    hue = (palette + np.array([0, world.hue_offset]) + hue) % TURN
    noise = stream(seed, "geometry").standard_normal((n, 3, 2))
    side = np.clip(layout + world.side_noise * noise[:, 0], 0, 1)
    return latents, Attributes(
        hue=hue,
        shape=_shapes(family + np.array([0, world.shape_offset]), world.shape_sharpness, stream(seed, "shape")),
        x=world.side_share * side + np.array([0, 1 - world.side_share]),
        y=np.clip(depth + world.height_noise * noise[:, 1], 0, 1),
        size=np.clip(depth + world.size_noise * noise[:, 2], 0, 1),
    )


def frames(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, Attributes]:
    """Two frames of each scene and the attributes of the first.

    In the second frame the objects have moved and grown or shrunk a little; hues and shapes are the
    same; the background and the noise are new.
    """
    _, first = content(n, seed)
    step = WORLD.frame_step * stream(seed, "step").standard_normal((n, 3, 2))
    moved = (np.clip(getattr(first, k) + step[:, i], 0, 1) for i, k in enumerate(("x", "y", "size")))
    second = Attributes(first.hue, first.shape, *moved)
    return (
        render.draw(first, stream(seed, "picture"), stream(seed, "pixels")),
        render.draw(second, stream(seed, "second picture"), stream(seed, "second pixels")),
        first,
    )


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The stream of random numbers for one purpose; streams of different purposes are independent."""
    key = int.from_bytes(purpose.encode(), "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, key])))


def _check_count(n: int, seed: int) -> None:
    """Refuse a number of scenes or a seed that is no whole number in range."""
    for what, value, least in (("number of scenes", n, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise RepalignError(
                f"toy world: the {what} is out of range", expected=f"a whole number, at least {least}", got=value
            )


def _shapes(angle: np.ndarray, sharpness: float, rng: np.random.Generator) -> np.ndarray:
    """Draw shape indices: softmax over the shapes' directions of sharpness cos(angle - direction)."""
    direction = TURN * np.arange(len(render.SHAPES)) / len(render.SHAPES)
    weight = np.exp(sharpness * (np.cos(angle[..., None] - direction) - 1))  # (n, 2, 8)
    share = np.cumsum(weight, axis=-1)
    drawn = rng.random(angle.shape)[..., None] * share[..., -1:]
    return (drawn >= share).sum(axis=-1)
