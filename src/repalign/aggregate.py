"""Data that are not one vector per stimulus: feature maps of convolutions, grids of patches, several captions per image.

Grids of patches have numbers of their own, `spatial_self_similarity` and `patch_alignment`. Every other function gives what
`compare.pair` and every measure take, an (n, d) array, and where one stimulus has several rows also their groups, for a null
that moves whole stimuli (`null.Groups.of(groups, "whole")`). All layers of a model side by side are
`Preprocess(concatenate=True)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.measures import RSA, MutualKNN
from repalign.measures.measure import GraphRelation, Measure, as_features
from repalign.measures.numerics.precision import full_precision
from repalign.measures.numerics.rows import unit_rows

MAP_FORMS = ("flatten", "mean", "max", "samples")
PART_FORMS = ("mean", "pairs")


class Pooled(NamedTuple):
    """Features (n, d), and the stimulus of each row, 0, 1, ..., where a stimulus has several."""

    features: Tensor
    groups: np.ndarray | None = None


def feature_maps(x: np.ndarray | Tensor, form: str = "flatten") -> Pooled:
    """Feature maps (n, channels, height, width, ...) as rows.

    "flatten": channels and positions side by side, (n, channels x positions): position by position the same place of the
    image. "mean", "max": pooled over positions, (n, channels). "samples": every position a row, (n x positions, channels),
    with the stimulus of each row as its group: rows of one image are alike, and only a null of whole groups is valid.

    Raises RepalignError unless x has a channel and at least one more dimension.

    >>> feature_maps(np.zeros((5, 8, 3, 3)), "samples").features.shape
    torch.Size([45, 8])
    """
    choose("form", form, MAP_FORMS)
    maps = torch.as_tensor(x)
    if maps.ndim < 3 or 0 in maps.shape:
        raise RepalignError(
            "not feature maps",
            expected="an array (n, channels, height, width): a row per stimulus, positions last", got=f"shape {tuple(maps.shape)}",
            remedy="features of shape (n, d) need no form; compare them as they are",
        )  # fmt: skip
    by_position = maps.flatten(2)  # (n, c, p)
    if form == "flatten":
        return Pooled(as_features(by_position.flatten(1)))
    if form == "samples":
        n, _, p = by_position.shape
        return Pooled(as_features(by_position.swapaxes(1, 2).flatten(0, 1)), np.repeat(np.arange(n), p))
    wide = by_position.to(torch.float64 if by_position.dtype == torch.float64 else torch.float32)
    return Pooled(as_features(wide.mean(dim=2) if form == "mean" else wide.amax(dim=2)))


class PatchAlignment(NamedTuple):
    """Of patches within an image: the mean score of two models, of each image (b,), and what the places alone give.

    `places` is the mean score of x on an image and y on the next one: where a patch is, and not what it shows, is the same.
    """

    score: float
    places: float
    scores: np.ndarray


def spatial_self_similarity(maps: np.ndarray | Tensor, near: float, far: float) -> float:
    """How much more alike patches are that are near one another: LDS, local against distant similarity.

    s = mean over images of (E[K_pq | 0 < D_pq < near] - E[K_pq | D_pq >= far]), with K the cosine of two patches of one image and
    D the distance of their places, rows plus columns.

    maps (b, height, width, d). Range [-2, 2], 0 for maps without any structure in space. `near` above 1, `far` at least `near`.
    A patch of zeros has the cosine 0 with every other. A patch is not beside itself: the paper's page does not say.

    Source: J. Singh et al., What matters for representation alignment: global information or spatial structure? (2025), arXiv
    2512.10794.

    Raises RepalignError: no such maps, distances that no two patches have.

    >>> halves = np.zeros((1, 16, 16, 2))
    >>> halves[:, :, :8, 0] = halves[:, :, 8:, 1] = 1
    >>> round(spatial_self_similarity(halves, near=4, far=8), 6)
    0.557668
    """
    grids, (height, width) = _grids(maps)
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    apart = (place[:, None] - place[None]).abs().sum(dim=2)  # (p, p)
    some = (apart > 0) & (apart < near), apart >= far
    if not near <= far or not all(bool(s.any()) for s in some):
        raise RepalignError(
            "no patches are so near, or so far", expected=f"1 < near <= far <= {height + width - 2}, the longest way",
            got=f"near={near}, far={far}, a grid of {height} x {width}",
        )  # fmt: skip
    weight = some[0].double() / some[0].sum() - some[1].double() / some[1].sum()
    with full_precision():
        each = [float((weight * (units @ units.T)).sum()) for units in map(unit_rows, grids)]
    return float(np.mean(each))


def patch_alignment(x: np.ndarray | Tensor, y: np.ndarray | Tensor, measure: Measure | None = None) -> PatchAlignment:
    """Whether two models see the same structure within an image: a measure over its patches, the mean over images.

    x (b, height, width, d1) and y (b, height, width, d2), of the same images on one grid. By default `RSA("cosine")`: the
    correlation of the two tables of patch-to-patch similarities. Compare the score with `places`: neighbouring patches are alike
    in all models, so a score alone is above 0 of itself. An image at which the measure is undefined is left out of the means.

    Raises RepalignError: no such maps, other images or grids, a single image.

    >>> x = np.random.default_rng(0).standard_normal((4, 5, 5, 8))
    >>> found = patch_alignment(x, 2 * x)
    >>> round(found.score, 9), abs(found.places) < 0.1
    (1.0, True)
    """
    measure = RSA(dissimilarity="cosine") if measure is None else measure
    (a, one), (b, other) = _grids(x), _grids(y)
    if len(a) != len(b) or one != other or len(a) < 2:
        raise RepalignError(
            "the patches do not belong together", expected="the same images, two or more, on one grid: (b, height, width, d)",
            got=f"shapes {tuple(np.shape(x))} and {tuple(np.shape(y))}", remedy="scale one of the two grids to the other's size",
        )  # fmt: skip
    states = [measure.prepare(g) for g in a], [measure.prepare(g) for g in b]
    scores = [np.array([float(measure.compare(*both)) for both in zip(states[0], side, strict=True)])
              for side in (states[1], [*states[1][1:], states[1][0]])]  # fmt: skip
    return PatchAlignment(_mean(scores[0]), _mean(scores[1]), scores[0])


def _grids(maps: np.ndarray | Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Maps (b, h, w, d) as (b, h w, d), and h and w."""
    grids = torch.as_tensor(maps)
    if grids.ndim != 4 or 0 in grids.shape:
        raise RepalignError(
            "no grids of patches", expected="an array (images, height, width, d)", got=f"shape {tuple(grids.shape)}",
            remedy="maps of convolutions (b, d, height, width) are moved: np.moveaxis(maps, 1, -1); of tokens take the patches "
            "alone, and reshape them",
        )  # fmt: skip
    as_features(grids.flatten(0, 2), "maps")  # finite numbers
    return grids.flatten(1, 2), (grids.shape[1], grids.shape[2])


def _mean(scores: np.ndarray) -> float:
    there = scores[np.isfinite(scores)]
    return float(there.mean()) if len(there) else float("nan")


def parts(
    x: np.ndarray | Tensor, captions: np.ndarray | Tensor, owner: Sequence[int], form: str = "mean"
) -> tuple[Pooled, Pooled]:
    """One row per stimulus on one side, several on the other, made comparable row by row.

    x (n, d1); captions (m, d2): row r belongs to stimulus `owner[r]` in 0 ... n - 1.
    "mean": every stimulus has the mean of its captions, n rows. "pairs": every caption with its image, m rows on both
    sides, with their stimuli as groups; an image stands there once per caption, and is its own nearest neighbour.
    (`sets_mutual_knn` is the third way: two stimuli are as near as their nearest captions.)

    Raises RepalignError if a stimulus has no caption, or an owner is no stimulus.
    """
    choose("form", form, PART_FORMS)
    images, texts, of = _owned(x, captions, owner)
    if form == "pairs":
        return Pooled(images[of], of.numpy()), Pooled(texts, of.numpy())
    total = texts.new_zeros(len(images), texts.shape[1], dtype=torch.float64).index_add_(0, of, texts.to(torch.float64))
    mean = total / torch.bincount(of, minlength=len(images))[:, None]
    return Pooled(images), Pooled(mean.to(texts.dtype))


def sets_mutual_knn(
    x: np.ndarray | Tensor, captions: np.ndarray | Tensor, owner: Sequence[int], measure: MutualKNN | None = None
) -> float:
    """Mutual k-NN of stimuli that have one row on one side and a set of rows on the other.

    Two stimuli are as similar as the two most similar of their captions, S_ij = max cos(a, b) over captions a of i and b
    of j: a set is near another if it says one thing alike. Arguments as in `parts`.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((30, 4))
    >>> sets_mutual_knn(x, np.repeat(x, 2, axis=0), np.repeat(np.arange(30), 2), MutualKNN(k=5))
    1.0
    """
    measure = MutualKNN() if measure is None else measure
    images, texts, of = _owned(x, captions, owner)
    measure.check(len(images))
    if measure.similarity != "cosine" or measure.center:
        expected = "MutualKNN(k=...) with its other defaults"
        raise RepalignError("sets are compared by cosine", expected=expected, got=repr(measure))
    units, n = unit_rows(texts), len(images)
    nearest = torch.empty(n, measure.k, dtype=torch.int64)
    for i in range(n):
        with full_precision():
            best = (units[of == i] @ units.T).amax(dim=0)  # (m,)
        similarity = torch.full((n,), -torch.inf, dtype=torch.float64).scatter_reduce_(0, of, best, "amax")
        similarity[i] = -torch.inf
        # Entries that rounding cannot tell apart go by index, as everywhere.
        nearest[i] = torch.argsort((similarity * 2**40).round(), descending=True, stable=True)[: measure.k]
    return measure.compare(measure.prepare(images), GraphRelation(nearest))


def _owned(x: np.ndarray | Tensor, captions: np.ndarray | Tensor, owner: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    images, texts = as_features(x, "x"), as_features(captions, "captions")
    of = torch.as_tensor(np.asarray(owner))
    n = len(images)
    if of.shape != (len(texts),) or of.dtype.is_floating_point or bool(((of < 0) | (of >= n)).any()):
        raise RepalignError(
            "owners do not fit the captions",
            expected=f"{len(texts)} whole numbers from 0 to {n - 1}, the stimulus of every caption",
            got=f"shape {tuple(of.shape)}, {of.dtype}, {of.min()} to {of.max()}" if of.numel() else "none",
        )
    bare = torch.nonzero(torch.bincount(of.to(torch.int64), minlength=n) == 0).flatten()
    if len(bare):
        raise RepalignError(
            "stimuli without a caption", expected="at least one caption of every stimulus",
            got=f"{len(bare)} of {n} without, the first is stimulus {int(bare[0])}", remedy="leave these stimuli out on both sides",
        )  # fmt: skip
    return images, texts, of.to(torch.int64)
