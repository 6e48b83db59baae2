"""Colours as perception has them, as pixels of photos, and how often two of them meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from repalign.dataset import Dataset
from repalign.errors import RepalignError, choose
from repalign.study import Block
from repalign.text import Progress, silent

__all__ = [
    "BASIC", "WORDS", "ColourOptions", "Palette", "cielab", "count_pairs", "dissimilarity", "frequent", "grid_palette",
    "named_colours", "negative_share", "pmi_kernel", "read_photos", "shuffled", "single_words", "word_palette",
]  # fmt: skip

# --- what can be chosen -----------------------------------------------------------------------------


TEMPLATES = ("The color {}.", "This color is {}.", "The color of this thing is {}.")


class ColourOptions(Block):
    """The choices of the colour experiment.

    The paper (appendix D) states `n_pairs`, `radius`, `templates`, `last`, `n_components` and `n_fits`;
    their defaults are its values. It does not state the next ones, and lacks `shuffle`, `k`, `k_words`, `n_draws` and `seed`.

    Parameters
    ----------
    n_pairs : Random pairs of pixels; none for all pairs.
    radius : How far the pixels of a pair may be apart; inf for the whole photo.
    templates : Sentences with {} for the colour word; their representations are averaged.
    last : How many of the last layers are put side by side.
    n_components : Dimensions of the layout.
    n_fits : Random starts of MDS, of which the best is kept.
    size : Photos are averaged down to size x size pixels (32, as CIFAR-10 has them); none for their own size.
    palette : "grid", equal steps of RGB, or "words": every pixel at the colour word that is nearest in CIELAB, which pairs
        pixels with words by id.
    levels : Steps of the grid per channel, at most 16.
    bin_colour : What stands for a bin of the grid: the "mean" of its pixels, or its "centre".
    disc : The norm in which the radius is measured.
    min_count : Colours that are seen less often, as ends of pairs, are left out.
    smoothing : What pairs get that were never seen. "independence" mixes with the product of the marginals, (1 - amount) P +
        amount p p^T, which keeps the marginals and bounds PMI from below at log(amount). "add" adds `amount` to every cell,
        which lifts pairs of rare colours most. "floor" gives them the least PMI seen.
    amount : How much smoothing.
    positive : Set negative PMI to zero.
    largest : The maximum in max K - K is over "all" entries, or over those "off_diagonal".
    mds : "metric" or "nonmetric" (SMACOF), or "classical".
    max_iter : Steps of one fit of MDS, at most.
    shuffle : Pixels are shuffled "within" each photo, or "across" all of them.
    k : Neighbours on the grid.
    k_words : Neighbours among words.
    n_draws : Shuffles of the colours.
    seed : Of everything random.
    """

    n_pairs: PositiveInt | None = 300_000
    radius: float = Field(default=4.0, ge=1)
    templates: tuple[str, ...] = Field(default=TEMPLATES, min_length=1)
    last: PositiveInt = 4
    n_components: PositiveInt = 3
    n_fits: PositiveInt = 1000
    size: int | None = Field(default=32, ge=2)
    palette: Literal["grid", "words"] = "grid"
    levels: int = Field(default=8, ge=2, le=16)
    bin_colour: Literal["mean", "centre"] = "mean"
    disc: Literal["euclidean", "chebyshev"] = "euclidean"
    min_count: PositiveInt = 100
    smoothing: Literal["independence", "add", "floor"] = "independence"
    amount: float = 0.01
    positive: bool = False
    largest: Literal["all", "off_diagonal"] = "all"
    mds: Literal["metric", "nonmetric", "classical"] = "metric"
    max_iter: PositiveInt = 300
    shuffle: Literal["none", "within", "across"] = "none"
    k: PositiveInt = 10
    k_words: PositiveInt = 5
    n_draws: PositiveInt = 999
    seed: int = 0

    @field_validator("templates")
    @classmethod
    def _one_word_in_each(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [t for t in templates if t.count("{}") != 1]:
            raise ValueError(f"each template has one {{}} for the colour word, and {wrong[0]!r} has not")
        return templates

    @field_validator("amount")
    @classmethod
    def _amount_fits(cls, amount: float, info: ValidationInfo) -> float:
        most = {"independence": 1, "add": math.inf}.get(info.data.get("smoothing", "floor"))
        if most is not None and not 0 < amount < most:
            raise ValueError(f"smoothing by {info.data['smoothing']} takes an amount above 0" + " and below 1" * (most == 1))
        return amount

    @property
    def everywhere(self) -> bool:
        """Whether pairs are taken from anywhere in a photo."""
        return math.isinf(self.radius)


# --- perception -------------------------------------------------------------------------------------


# Linear sRGB to XYZ (IEC 61966-2-1, amendment 1); the white point is the image of (1, 1, 1), D65 for the 2 degree observer.
_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
WHITE = _TO_XYZ.sum(axis=1)

# The eleven basic colour terms (Berlin & Kay 1969), and nine more single words that English speakers name freely. The
# paper's twenty words, from naming data that are not public, are not stated.
BASIC = ("black", "white", "grey", "red", "green", "yellow", "blue", "brown", "orange", "pink", "purple")
WORDS = (*BASIC, "beige", "gold", "lavender", "lime", "maroon", "peach", "tan", "teal", "turquoise")


def cielab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB coordinates of sRGB colours.

    L = 116 f(Y/Yn) - 16, a = 500 (f(X/Xn) - f(Y/Yn)), b = 200 (f(Y/Yn) - f(Z/Zn)), with f(t) = t^(1/3) above (6/29)^3 and
    t / (3 (6/29)^2) + 4/29 below, of the XYZ values of the linearised colour, under D65 and the 2 degree observer.

    Shape (..., 3) of sRGB in [0, 1], to (..., 3): L in [0, 100], a and b about [-110, 110]. Euclidean distances of the
    result are the colour difference Delta E*ab of 1976. Raises RepalignError for values outside [0, 1].

    Source: IEC 61966-2-1 (sRGB), CIE 15:2004 (CIELAB).

    >>> [float(v) for v in cielab(np.array([1.0, 0.0, 0.0])).round(2)]
    [53.24, 80.09, 67.2]
    """
    rgb = np.asarray(rgb, float)
    if rgb.shape[-1:] != (3,) or not ((rgb >= 0) & (rgb <= 1)).all():
        raise RepalignError("not sRGB colours", expected="shape (..., 3) with values in [0, 1]", got=f"shape {rgb.shape}")
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _TO_XYZ.T / WHITE
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def named_colours(words: Sequence[str] = WORDS) -> np.ndarray:
    """sRGB in [0, 1] (n, 3) of colour words, as people set them in the xkcd colour survey (954 names, CC0).

    "all" single words of the survey: `single_words()`. Raises RepalignError for a word that is not in it, or twice.
    """
    known = _survey()
    for word in words:
        choose("colour word", word, known)
    if len(set(words)) != len(words):
        raise RepalignError("a colour word stands twice", expected="distinct words", got=sorted(words))
    return np.array([[int(known[w][i : i + 2], 16) / 255 for i in (1, 3, 5)] for w in words])


def single_words() -> tuple[str, ...]:
    """All names of the survey that are one word."""
    return tuple(sorted(w for w in _survey() if w.isalpha()))


def _survey() -> dict[str, str]:
    from matplotlib.colors import XKCD_COLORS

    return {name.removeprefix("xkcd:"): str(value) for name, value in XKCD_COLORS.items()}


# --- pixels, and pairs of them ----------------------------------------------------------------------


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


# --- pointwise mutual information -------------------------------------------------------------------


def frequent(counts: np.ndarray, min_count: int) -> np.ndarray:
    """Indices of the colours that are the end of at least `min_count` pairs."""
    return np.flatnonzero(counts.sum(axis=1) >= min_count)


def pmi_kernel(counts: np.ndarray, smoothing: str = "independence", amount: float = 0.01, positive: bool = False) -> np.ndarray:
    """Pointwise mutual information K_ij = log(P_ij / (p_i p_j)) of symmetric counts (m, m), in nats.

    P are the counts over their sum and p its marginals; smoothing as in `ColourOptions`. Raises RepalignError unless the
    counts are symmetric and every colour has one.

    Source: Huh et al. 2024 (arXiv 2405.07987), section 4.2; positive PMI: Church & Hanks 1990, Levy & Goldberg 2014.

    >>> pmi_kernel(np.array([[1, 1], [1, 1]])).round(12).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    c = np.asarray(counts, float)
    if c.ndim != 2 or c.shape[0] != c.shape[1] or not np.array_equal(c, c.T) or not (c.sum(axis=1) > 0).all() or (c < 0).any():
        raise RepalignError(
            "counts that give no PMI", expected="a symmetric matrix (m, m), not negative, every colour in some pair",
            got=f"shape {c.shape}", remedy="leave rare colours out with a larger min_count",
        )  # fmt: skip
    if smoothing == "add":
        c = c + amount
    joint = c / c.sum()
    marginal = joint.sum(axis=1)
    ratio = joint / np.outer(marginal, marginal)
    if smoothing == "independence":
        ratio = (1 - amount) * ratio + amount
    elif smoothing == "floor":
        ratio = np.where(ratio > 0, ratio, ratio[ratio > 0].min())
    kernel = np.log(ratio)
    return np.maximum(kernel, 0.0) if positive else kernel


def dissimilarity(kernel: np.ndarray, largest: str = "all") -> np.ndarray:
    """D = max K - K, the maximum over all entries or those off the diagonal; a colour is at distance 0 from itself."""
    off = ~np.eye(len(kernel), dtype=bool)
    top = kernel.max() if largest == "all" else kernel[off].max()
    return np.where(off, top - kernel, 0.0)


def negative_share(kernel: np.ndarray) -> float:
    """How far a kernel is from one of inner products up to a constant: sum of |negative| over sum of |all| eigenvalues of
    H K H, H = I - 11^T / n. 0 exactly where some constant makes K + C positive semidefinite; nan for a constant kernel.
    """
    centred = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
    values = np.linalg.eigvalsh(centred)
    total = np.abs(values).sum()
    return float(-values[values < 0].sum() / total) if total > 1e-12 * max(1.0, np.abs(kernel).sum()) else math.nan


def kernel_of(counts: np.ndarray, options: ColourOptions) -> tuple[np.ndarray, np.ndarray]:
    """The colours that are frequent enough, as indices, and their PMI kernel."""
    kept = frequent(counts, options.min_count)
    while len(kept):  # a colour may have met only such as are left out
        inner = counts[np.ix_(kept, kept)]
        alone = inner.sum(axis=1) == 0
        if not alone.any():
            break
        kept = kept[~alone]
    if len(kept) < 4:
        raise RepalignError(
            "too few colours", expected="at least 4 colours that are frequent enough", got=len(kept),
            remedy="use more photos or pairs, a smaller min_count, or fewer levels",
        )  # fmt: skip
    return kept, pmi_kernel(inner, options.smoothing, options.amount, options.positive)
