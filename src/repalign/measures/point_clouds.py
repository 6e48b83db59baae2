"""Distances between two clouds of points in one space: unpaired, and 0 only if the clouds, or their moments, are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repalign.measures.measure import Distance, Features, Summary, as_count, as_seed, parameter
from repalign.measures.numerics.precision import full_precision
from repalign.measures.numerics.rows import blocks, centred, widen

# Squared distances below this share of their terms have lost digits to cancellation and are computed again.
_CANCELLATION = 1e-6


@dataclass(frozen=True)
class _Cloud(Distance):
    """A distance between two clouds."""

    family: ClassVar[str] = "statistics"
    paired: ClassVar[bool] = False
    equal_widths: ClassVar[bool] = True
    smallest_n: ClassVar[int] = 1


@dataclass(frozen=True)
class EnergyDistance(_Cloud):
    """Energy distance between two clouds: 0 only if their distributions are the same.

    s = 2 E|x - y| - E|x - x'| - E|y - y'|, means over all pairs, every point with itself included; its root is a metric.

    Shapes (n, d) and (m, d): which row belongs to which does not matter. Range [0, inf), in the unit of the features.
    Moving or rotating both clouds alike changes nothing.

    Source: Szekely & Rizzo 2013; the V-statistic, as in dcor's `energy_distance`.

    >>> EnergyDistance()([[0.0], [2.0]], [[1.0], [1.0]])
    1.0
    """

    cost: ClassVar[str] = "n^2 d per layer, n^2 d per pair"
    aliases: ClassVar[tuple[str, ...]] = ("energy_distance",)

    def prepare(self, x: Tensor) -> Features:
        rows = widen(x)
        return Features(rows, norm=_mean_distance(rows, rows))

    def compare(self, a: Features, b: Features) -> float:
        value = 2 * _mean_distance(a.values, b.values) - a.norm - b.norm
        return max(0.0, value)  # rounding alone takes it below 0


def _mean_distance(x: Tensor, y: Tensor) -> float:
    """The mean of |x_i - y_j|, from products of rows relative to the mean of x, in blocks."""
    centre = x.mean(dim=0)
    x, y = x - centre, y - centre
    of_x, of_y = x.square().sum(dim=1), y.square().sum(dim=1)
    total = 0.0
    for block in blocks(len(x), 4 * 8 * len(y)):
        terms = of_x[block, None] + of_y[None, :]
        with full_precision():
            squared = torch.addmm(terms, x[block], y.T, alpha=-2)
        i, j = torch.nonzero(squared < _CANCELLATION * terms, as_tuple=True)
        for part in range(0, len(i), 2**16):
            p, q = i[part : part + 2**16], j[part : part + 2**16]
            squared[p, q] = (x[block.start + p] - y[q]).square().sum(dim=1)
        total += float(squared.clamp_(min=0).sqrt_().sum())
    return total / (len(x) * len(y))


@dataclass(frozen=True)
class BuresWasserstein(_Cloud):
    """Bures-Wasserstein (Frechet) distance: between Gaussians with the means and covariances of two clouds.

    s^2 = |m_x - m_y|^2 + tr(S_x) + tr(S_y) - 2 tr((S_x^(1/2) S_y S_x^(1/2))^(1/2)), covariances divided by n.

    Shapes (n, d) and (m, d): which row belongs to which does not matter. Range [0, inf), in the unit of the features; a
    difference below 1e-8 of the spread is rounding. Moving or rotating both clouds alike changes nothing.

    Source: Dowson & Landau 1982; as the Frechet inception distance Heusel et al. 2017 (arXiv 1706.08500), which is its
    square with covariances divided by n - 1. The last trace is taken as the nuclear norm of S_x^(1/2) S_y^(1/2), which needs
    no root of a nearly singular matrix.

    >>> BuresWasserstein()([[0.0], [2.0]], [[3.0], [7.0]])
    4.123105625617661
    """

    cost: ClassVar[str] = "n d min(n, d) per layer, min(n, d)^3 + d min(n, d)^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("bures_wasserstein", "frechet_distance")

    def prepare(self, x: Tensor) -> Summary:
        """A factor R (r, d) of the covariance R^T R, and the mean below it."""
        features, unit, *_ = centred(x)
        mean = widen(x).mean(dim=0, keepdim=True)
        factor = features * (unit / math.sqrt(len(x)))
        if len(x) > x.shape[1]:
            factor = torch.linalg.qr(factor, mode="r").R
        return Summary(len(x), torch.cat([factor, mean]))

    def compare(self, a: Summary, b: Summary) -> float:
        (x, mean_x), (y, mean_y) = ((s.values[:-1], s.values[-1]) for s in (a, b))
        with full_precision():
            common = torch.linalg.svdvals(x @ y.T).sum()
        spread = x.square().sum() + y.square().sum() - 2 * common
        # Rounding alone takes it below 0.
        return math.sqrt(max(0.0, float((mean_x - mean_y).square().sum() + spread)))


@dataclass(frozen=True)
class SlicedWasserstein(_Cloud):
    """Sliced 2-Wasserstein distance between two clouds: over random directions, between their sorted projections.

    s^2 = mean over directions u of the squared 2-Wasserstein distance of the numbers u . x_i and u . y_j, which pairs them in
    order of size: the exact distance of two clouds needs an assignment of n^3 steps.

    Parameters
    ----------
    projections : how many directions, uniform on the sphere.
    seed : of the directions, the same for both clouds and for every pair of one width.

    Shapes (n, d) and (m, d): which row belongs to which does not matter. Range [0, inf), in the unit of the features; about
    1 / sqrt(d) of the distance in all directions.

    Source: Bonneel et al. 2015; with a seed, the number of POT's `sliced_wasserstein_distance`.

    >>> SlicedWasserstein()([[0.0], [2.0]], [[3.0], [1.0]])
    1.0
    """

    projections: int = parameter(200, as_count)
    seed: int = parameter(0, as_seed)

    cost: ClassVar[str] = "n (d + log n) projections per layer, n projections per pair"
    aliases: ClassVar[tuple[str, ...]] = ("sliced_wasserstein",)

    def prepare(self, x: Tensor) -> Projected:
        import numpy as np

        rows = widen(x)
        directions = torch.from_numpy(np.random.RandomState(self.seed).normal(size=(x.shape[1], self.projections)))
        directions /= torch.linalg.vector_norm(directions, dim=0)
        with full_precision():
            projected = rows @ directions.to(rows.device)
        return Projected(len(x), projected.sort(dim=0).values, x.shape[1])

    def compare(self, a: Projected, b: Projected) -> float:
        x, y = a.values, b.values
        n, m = len(x), len(y)
        if n == m:
            return math.sqrt(float((x - y).square().mean()))
        # Both quantile functions are steps; where either has one, in units of 1 / (n m).
        steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
        share = steps.diff(prepend=steps.new_zeros(1)).to(torch.float64) / (n * m)
        squared = (x[(steps - 1) // m] - y[(steps - 1) // n]).square().mean(dim=1)
        return math.sqrt(float(share @ squared))


@dataclass(frozen=True, eq=False)
class Projected(Summary):
    """Projections (n, directions), each column sorted, of rows of this width."""

    columns: int

    @property
    def width(self) -> int:
        return self.columns
