"""How often colours stand near each other in photos: photos to palette, palette to counts of pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.prh.colour.cielab import cielab
from repalign.prh.colour.options import ColourOptions
from repalign.text import Progress, silent


@dataclass(frozen=True, eq=False)
class Palette:
    """The colours that pixels are counted as: `ids` (m), their `rgb` in [0, 1] (m, 3), and each photo as indices (h, w)."""

    ids: tuple[str, ...]
    rgb: np.ndarray
    indices: tuple[np.ndarray, ...]


def read_photos(
    dataset: Dataset, size: int | None = 32, column: str = "image", *, progress: Progress = silent
) -> list[np.ndarray]:
    """The photos of a dataset as uint8 arrays (h, w, 3), averaged down to size x size pixels unless `size` is None."""
    from PIL import Image

    out = []
    progress("photos", 0, dataset.n)
    for start in range(0, dataset.n, 64):
        rows = range(start, min(start + 64, dataset.n))
        for image in dataset.stimuli(column, list(rows)):
            rgb = image.convert("RGB")
            out.append(np.asarray(rgb if size is None else rgb.resize((size, size), Image.Resampling.BOX)))
        progress("photos", len(out), dataset.n)
    return out


def shuffled(photos: Sequence[np.ndarray], how: str, seed: int) -> list[np.ndarray]:
    """Control: the same pixels in other places, "within" each photo (its histogram stays) or "across" all; or "none"."""
    if how == "none":
        return list(photos)
    generator = np.random.default_rng([seed, 1])
    flat = [p.reshape(-1, 3) for p in photos]
    if how == "within":
        moved = [generator.permutation(p) for p in flat]
    else:
        mixed = generator.permutation(np.concatenate(flat))
        moved = np.split(mixed, np.cumsum([len(p) for p in flat])[:-1])
    return [m.reshape(p.shape) for m, p in zip(moved, photos, strict=True)]


def grid_palette(photos: Sequence[np.ndarray], levels: int, bin_colour: str = "mean") -> Palette:
    """Pixels on a grid of levels^3 equal steps of RGB; a bin is named by its three steps, from 0."""
    pixels = np.concatenate([p.reshape(-1, 3) for p in photos])
    step = pixels.astype(np.int64) * levels // 256
    index = (step[:, 0] * levels + step[:, 1]) * levels + step[:, 2]
    bins = np.stack(np.unravel_index(np.arange(levels**3), (levels,) * 3), axis=1)
    rgb = (bins + 0.5) / levels
    if bin_colour == "mean":
        count = np.bincount(index, minlength=levels**3)
        sums = np.stack([np.bincount(index, pixels[:, c], levels**3) for c in range(3)], axis=1)
        rgb = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None] / 255, rgb)
    return Palette(tuple("-".join(map(str, b)) for b in bins), rgb, _as_photos(index, photos))


def word_palette(photos: Sequence[np.ndarray], words: Sequence[str], rgb: np.ndarray) -> Palette:
    """Every pixel at the colour word that is nearest in CIELAB (Delta E*ab)."""
    from scipy.spatial import KDTree

    pixels = np.concatenate([p.reshape(-1, 3) for p in photos])
    different, place = np.unique(pixels, axis=0, return_inverse=True)
    _, nearest = KDTree(cielab(rgb)).query(cielab(different / 255))
    return Palette(tuple(words), np.asarray(rgb, float), _as_photos(nearest[place.reshape(-1)], photos))


def _as_photos(index: np.ndarray, photos: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    sizes = np.cumsum([p.shape[0] * p.shape[1] for p in photos])[:-1]
    return tuple(i.reshape(p.shape[:2]) for i, p in zip(np.split(index, sizes), photos, strict=True))


def offsets(radius: float, disc: str = "euclidean") -> np.ndarray:
    """All steps (dy, dx) but (0, 0) that are no longer than the radius; with each its opposite."""
    reach = math.floor(radius)
    steps = np.stack(np.meshgrid(*2 * [np.arange(-reach, reach + 1)], indexing="ij"), axis=-1).reshape(-1, 2)
    length = np.abs(steps).max(axis=1) if disc == "chebyshev" else np.hypot(*steps.T)
    return steps[(length > 0) & (length <= radius)]


def count_pairs(palette: Palette, options: ColourOptions, *, progress: Progress = silent) -> np.ndarray:
    """Counts C (m, m), symmetric: how often two colours are the two ends of a pair of pixels, in either order.

    A pair is two different pixels of one photo at most `radius` apart. All pairs are taken (`n_pairs` None), or a random
    sample with replacement in which every pair is equally likely. Every pair counts once in each order, so that the
    counts sum to twice the number of pairs.
    """
    m = len(palette.ids)
    if options.n_pairs is not None:
        return _sampled(palette.indices, m, options, progress)
    return _everywhere(palette.indices, m) if options.everywhere else _all_pairs(palette.indices, m, options, progress)


def _tally(a: np.ndarray, b: np.ndarray, m: int) -> np.ndarray:
    counts = np.bincount(a.ravel() * m + b.ravel(), minlength=m * m).reshape(m, m)
    return counts + counts.T


def _everywhere(photos: Sequence[np.ndarray], m: int) -> np.ndarray:
    """All pairs of different pixels of a photo, from its histogram h: h h^T - diag(h)."""
    h = np.stack([np.bincount(p.ravel(), minlength=m) for p in photos])  # (photos, m)
    return h.T @ h - np.diag(h.sum(axis=0))


def _all_pairs(photos: Sequence[np.ndarray], m: int, options: ColourOptions, progress: Progress) -> np.ndarray:
    steps = [(int(y), int(x)) for y, x in offsets(options.radius, options.disc) if (y, x) > (0, 0)]  # one of each two
    counts = np.zeros((m, m), dtype=np.int64)
    stacks = [np.stack([p for p in photos if p.shape == s]) for s in sorted({p.shape for p in photos})]
    progress("pairs", 0, len(steps))
    for done, (dy, dx) in enumerate(steps, start=1):
        for stack in stacks:
            h, w = stack.shape[1:]
            if dy < h and abs(dx) < w:
                first = stack[:, : h - dy, max(0, -dx) : w - max(0, dx)]
                second = stack[:, dy:, max(0, dx) : w - max(0, -dx)]
                counts += _tally(first, second, m)
        progress("pairs", done, len(steps))
    return counts


def _sampled(photos: Sequence[np.ndarray], m: int, options: ColourOptions, progress: Progress) -> np.ndarray:
    """A pixel and a step are drawn uniformly; those that leave the photo are drawn again, so pairs are equally likely."""
    generator = np.random.default_rng([options.seed, 2])
    flat = np.concatenate([p.ravel() for p in photos])
    shapes = np.array([p.shape for p in photos])
    area = shapes.prod(axis=1)
    if area.max() < 2:
        raise RepalignError("photos of one pixel have no pairs", expected="two pixels or more", got="1 pixel")
    start = np.cumsum(area) - area
    reach = int(shapes.max())
    steps = None if options.everywhere else offsets(min(options.radius, 2 * reach), options.disc)
    wanted = int(options.n_pairs or 0)
    counts, done = np.zeros((m, m), dtype=np.int64), 0
    progress("pairs", 0, wanted)
    while done < wanted:
        size = 2 * (wanted - done) + 64
        if steps is None:  # a photo by its number of pairs, then two different pixels of it
            weight = area.astype(float) * (area - 1)
            photo = generator.choice(len(area), size, p=weight / weight.sum())
            first = generator.integers(area[photo])
            second = (first + 1 + generator.integers(area[photo] - 1)) % area[photo]
        else:
            pixel = generator.integers(len(flat), size=size)
            photo = np.searchsorted(start, pixel, side="right") - 1
            first = pixel - start[photo]
            y, x = np.divmod(first, shapes[photo, 1])
            step = steps[generator.integers(len(steps), size=size)]
            y, x = y + step[:, 0], x + step[:, 1]
            inside = (y >= 0) & (y < shapes[photo, 0]) & (x >= 0) & (x < shapes[photo, 1])
            photo, first, second = photo[inside], first[inside], (y * shapes[photo, 1] + x)[inside]
        keep = slice(0, wanted - done)
        a, b = flat[start[photo] + first][keep], flat[start[photo] + second][keep]
        counts += _tally(a, b, m)
        done += len(a)
        progress("pairs", done, wanted)
    return counts
