"""Scenes as images: 32 x 32 RGB, anti-aliased from signed distances.

Per pixel only sums, products, square roots, minima and maxima in float32 are taken, which IEEE 754 fixes
to the last bit; trigonometry is per scene and in float64. Images are therefore the same on all machines
but for the rare last digit of a cosine that falls on a rounding boundary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from repalign.toyworld.world import Attributes

SIDE = 32
MARGIN = 5.0  # px between the edge and the outermost centre of an object
RADIUS = (3.3, 6.3)  # px, of the smallest and the largest object
OBJECT_COLOUR = (0.85, 0.95)  # saturation and value
BACKGROUND_SATURATION = 0.3
BRIGHTNESS = (0.4, 0.7)  # of the background at its middle
GRADIENT = 0.1  # largest change of brightness from the middle to an edge
PIXEL_NOISE = 0.03
CHUNK = 128  # scenes at a time, so that the work stays in the processor's cache


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Four points: the line from (1.25, 0) to (.35, .35), mirrored into all octants."""
    longer, shorter = np.maximum(u, v), np.minimum(u, v)
    return (0.35 * (longer - 1.25) + 0.9 * shorter) / 0.9657


# Distance to the outline of each shape in units of the object's radius, from |x| and |y| and signed y.
# The order is the circle on which the latent `family` lies, and neighbours are alike: from wide to full to
# tall to thin and back to wide.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "bar": lambda u, v, _: np.maximum(u - 1.15, v - 0.55),
    "square": lambda u, v, _: np.maximum(u, v) - 0.9,
    "circle": lambda u, v, _: np.sqrt(u * u + v * v) - 1.0,
    "triangle": lambda u, _, y: np.maximum(y - 0.9, 0.8944 * u - 0.4472 * y - 0.4),
    "pillar": lambda u, v, _: np.maximum(u - 0.5, v - 1.15),
    "cross": lambda u, v, _: np.minimum(np.maximum(u - 0.9, v - 0.3), np.maximum(u - 0.3, v - 1.1)),
    "star": lambda u, v, _: _star(u, v),
    "diamond": lambda u, v, _: 0.5547 * (1.0 * u + 1.5 * v - 1.25),
}
_OUTLINES = tuple(SHAPES.values())


def draw(
    attributes: Attributes, picture: np.random.Generator, pixels: np.random.Generator
) -> np.ndarray:  # (n, 32, 32, 3) uint8
    """Images of scenes; `picture` decides backgrounds and `pixels` the noise, neither looks at a scene."""
    n = len(attributes.hue)
    nuisance = picture.random((n, 4))
    images = np.empty((n, SIDE, SIDE, 3), np.uint8)
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        image = _background(nuisance[rows])
        for which in (1, 0):  # A is drawn over B
            colour = rgb(attributes.hue[rows, which], *OBJECT_COLOUR)[:, :, None, None].astype(np.float32)
            part = {f.name: getattr(attributes, f.name)[rows, which] for f in fields(attributes)}
            cover = _coverage(part["shape"], *centre(part["x"], part["y"]), radius(part["size"]))
            image += cover[:, None] * (colour - image)
        image += _noise(image.shape, pixels)
        np.clip(image, 0, 1, out=image)
        images[rows] = (image * np.float32(255) + np.float32(0.5)).astype(np.uint8).transpose(0, 2, 3, 1)
    return images


def centre(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of objects in pixels, from positions in [0, 1]."""
    span = SIDE - 1 - 2 * MARGIN
    return MARGIN + span * x, MARGIN + span * y


def radius(size: np.ndarray) -> np.ndarray:
    """Radii of objects in pixels, from sizes in [0, 1]."""
    return RADIUS[0] + (RADIUS[1] - RADIUS[0]) * size


def rgb(hue: np.ndarray, saturation: float | np.ndarray, value: float | np.ndarray) -> np.ndarray:
    """Colours (n, 3) in [0, 1] from hues in radians, by the hexagon of HSV."""
    sector = (np.asarray(hue)[:, None] * (6 / (2 * np.pi)) + [5, 3, 1]) % 6
    chroma = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return np.reshape(value, (-1, 1)) * (1 - np.reshape(saturation, (-1, 1)) * chroma)


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Uniform noise in 256 steps of standard deviation PIXEL_NOISE: a byte each, six times as fast as normal."""
    return (rng.integers(0, 256, shape, np.uint8) - np.float32(127.5)) * np.float32(PIXEL_NOISE * 12**0.5 / 256)


def _background(nuisance: np.ndarray) -> np.ndarray:
    """(n, 3, 32, 32): one hue, a brightness, and a gradient of brightness in some direction."""
    hue, bright, along, across = nuisance.T
    colour = rgb(2 * np.pi * hue, BACKGROUND_SATURATION, 1.0)[:, :, None, None].astype(np.float32)
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    low, high = BRIGHTNESS
    middle, right, down = (
        a.astype(np.float32)[:, None, None]
        for a in (low + (high - low) * bright, GRADIENT * (along - 0.5), GRADIENT * (across - 0.5))
    )
    light = middle + 2 * right * ramp[None, None, :] + 2 * down * ramp[None, :, None]
    return colour * light[:, None]


def _coverage(shape: np.ndarray, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """(n, 32, 32): the share of each pixel that an object covers, from the distance to its outline."""
    x, y, r = (a.astype(np.float32)[:, None, None] for a in (x, y, r))
    pixel = np.arange(SIDE, dtype=np.float32)
    right = (pixel[None, None, :] - x) / r
    down = (pixel[None, :, None] - y) / r
    distance = np.empty((len(shape), SIDE, SIDE), np.float32)
    for index, outline in enumerate(_OUTLINES):
        rows = np.flatnonzero(shape == index)
        distance[rows] = outline(np.abs(right[rows]), np.abs(down[rows]), down[rows])
    return np.clip(np.float32(0.5) - distance * r, 0, 1)
