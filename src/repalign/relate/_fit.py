"""The least-squares line and the two correlations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# A line through two points fits always.
MIN_MODELS_LINE = 3


@dataclass(frozen=True)
class Fit:
    """Least squares y = intercept + slope * x over n points, with Pearson's and Spearman's correlation.

    Correlations are nan where one of the two variables is constant.
    """

    slope: float
    intercept: float
    r: float
    spearman: float
    n: int

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike) -> Fit | None:
        """Fit y on x; None for fewer than three points or where all x are equal."""
        a, b = np.asarray(x, float), np.asarray(y, float)
        n = len(a)
        spread = float(((a - a.mean()) ** 2).sum()) if n else 0.0
        if n < MIN_MODELS_LINE or spread <= 1e-24 * max(1.0, float((a**2).sum())):
            return None
        slope = float(((a - a.mean()) * (b - b.mean())).sum() / spread)
        intercept = float(b.mean() - slope * a.mean())
        return cls(slope, intercept, pearson(a, b), pearson(ranks(a), ranks(b)), n)

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The line at x."""
        return self.intercept + self.slope * np.asarray(x, float)


def ranks(x: ArrayLike) -> np.ndarray:
    """Ranks from 1, ties sharing their mean rank."""
    _, place, count = np.unique(np.asarray(x, float), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two vectors; nan where one of them is constant."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm > 0 else math.nan
