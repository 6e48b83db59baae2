"""From counts of pairs to the kernel that the hypothesis speaks of: pointwise mutual information."""

from __future__ import annotations

import math

import numpy as np

from repalign.errors import RepalignError
from repalign.prh.colour.options import ColourOptions


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
