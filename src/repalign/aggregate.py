"""Data that are not one vector per stimulus: feature maps of convolutions, several captions per image.

Each function gives what `compare.pair` and every measure take, an (n, d) array, and where one stimulus has several rows
also their groups, for a null that moves whole stimuli (`null.Groups.of(groups, "whole")`). All layers of a model side by
side are `Preprocess(concatenate=True)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.measures import MutualKNN
from repalign.measures.measure import GraphRelation, as_features
from repalign.measures.numerics.precision import full_precision, unit_rows

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
