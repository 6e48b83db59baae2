"""Measures that pair single units (columns) of two spaces: hard, soft and held-out matching of correlations.

A unit is a column without its mean at norm 1, so that products of units are Pearson correlations. A constant unit has no
correlation with anything and is left out.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from repalign.errors import choose, require
from repalign.measures.measure import Features, Measure, parameter
from repalign.measures.numerics.precision import full_precision
from repalign.measures.numerics.regressions import HeldOut, held_out
from repalign.measures.numerics.rows import centred, column_norms, largest_along, power_of_two, widen


@dataclass(frozen=True)
class _UnitMatching(Measure):
    """A measure of units: nan where one side has none."""

    family: ClassVar[str] = "matching"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    unchanged_by: ClassVar[frozenset[str]] = frozenset({"isotropic_scale", "translation", "column_scale", "permutation"})

    def prepare(self, x: Tensor) -> Features:
        return Features(_units(x))

    def compare(self, a: Features, b: Features) -> float:
        return self._score(a.values, b.values) if a.width and b.width else math.nan

    @abstractmethod
    def _score(self, a: Tensor, b: Tensor) -> float:
        """The score of two sets of units (n, d1) and (n, d2)."""


@dataclass(frozen=True)
class HardUnitMatching(_UnitMatching):
    """Hard unit matching: the mean correlation of units under the best one-to-one assignment.

    s = max over one-to-one maps m of (1 / min(d1, d2)) sum_i corr(x_i, y_m(i)), Pearson, signs kept.

    Shapes (n, d1) and (n, d2); units of the wider side stay unmatched. Range [-1, 1]. Chance is far above 0, since the
    best of many correlations is chosen; it grows with the widths and falls with n. Invariant to translation, a positive
    scale of every unit and the order of units; not to rotation: that is its point. Constant units are left out; nan if
    all are constant.

    Source: Li et al. 2016 (arXiv 1511.07543), bipartite matching; `HardCorrelationMatch` of ReSi (Klabunde et al. 2024),
    which counts a constant unit as correlation 0 where ours leaves it out. See `MeanCorrelationCoefficient` for absolute
    correlations.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 6))
    >>> round(HardUnitMatching()(x, 2 * x[:, ::-1] + 1), 12)
    1.0
    """

    cost: ClassVar[str] = "n d per layer, n d^2 + d^3 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("hard_unit_matching", "hard_correlation_match", "hard_matching")

    def _score(self, a: Tensor, b: Tensor) -> float:
        return _assigned(_product(a, b))


@dataclass(frozen=True)
class MeanCorrelationCoefficient(_UnitMatching):
    """Mean correlation coefficient (MCC): hard matching of units by absolute correlations.

    s = max over one-to-one maps m of (1 / min(d1, d2)) sum_i |corr(x_i, y_m(i))|. It is 1 when the units agree up to
    order, shift and signed scale, which is what identifiability promises.

    Parameters
    ----------
    correlation : "pearson", or "spearman" (of ranks, ties averaged).

    Shapes (n, d1) and (n, d2). Range [0, 1]. Chance is far above 0 (a random rotation of six independent units scores
    0.69), so read it with its null. Invariant to translation, scale of every unit and their order. Constant units are
    left out; nan if all are constant.

    Source: Hyvarinen & Morioka 2016 (arXiv 1605.06336); Khemakhem et al. 2020 (arXiv 2002.11537).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 6))
    >>> round(MeanCorrelationCoefficient()(x, 1 - 2 * x[:, ::-1]), 12)
    1.0
    """

    correlation: str = parameter("pearson", choose, ("pearson", "spearman"))

    cost: ClassVar[str] = "n d per layer (n d log n for ranks), n d^2 + d^3 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("mean_correlation_coefficient", "mcc")
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def prepare(self, x: Tensor) -> Features:
        return super().prepare(_ranks(x) if self.correlation == "spearman" else x)

    def _score(self, a: Tensor, b: Tensor) -> float:
        return _assigned(_product(a, b).abs())


@dataclass(frozen=True)
class SoftUnitMatching(_UnitMatching):
    """Soft unit matching: every unit is matched, the mass of one to several of the other side if widths differ.

    transport: s = max over couplings P of sum_ij P_ij corr(x_i, y_j), where P has uniform marginals 1/d1 and 1/d2.
    best: s = the mean over units of their best partner's correlation, averaged over both sides.

    Parameters
    ----------
    form : "transport" (optimal transport over units), or "best" (partners may be shared).

    Shapes (n, d1) and (n, d2). Range [-1, 1]; chance far above 0. At equal widths transport equals `HardUnitMatching`.
    Invariant to translation, a positive scale of every unit and their order. Constant units are left out; nan if all are
    constant. Raises RepalignError for transport between unequal widths where the package POT is not installed.

    Source: Khosla & Williams 2024 (arXiv 2311.09466), soft matching: 1 minus its transport cost with cost 1 - corr;
    `SoftCorrelationMatch` of ReSi (Klabunde et al. 2024) is "best". Published code gives a meaningless 1 where a constant
    unit makes correlations nan.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 6))
    >>> round(SoftUnitMatching()(x, np.hstack([x, x])), 12)
    1.0
    """

    form: str = parameter("transport", choose, ("transport", "best"))

    cost: ClassVar[str] = "n d per layer, n d^2 + d^3 per pair (n d^2 for form='best')"
    aliases: ClassVar[tuple[str, ...]] = ("soft_unit_matching", "soft_matching")

    def _score(self, a: Tensor, b: Tensor) -> float:
        correlations = _product(a, b)
        if self.form == "best":
            return float((correlations.amax(dim=1).mean() + correlations.amax(dim=0).mean()) / 2)
        if a.shape[1] == b.shape[1]:
            return _assigned(correlations)  # an optimal coupling of equal marginals is a permutation
        return _transported(correlations)


@dataclass(frozen=True)
class PairwiseMatching(HeldOut, _UnitMatching):
    """Held-out pairwise matching: each unit of Y is predicted by the unit of X that correlates best in training.

    s = mean over folds and units j of Y of corr(x_m(j), y_j) on the held-out rows, where m(j) maximises the correlation on
    the training rows. X, the first argument, predicts Y; units of X may be used several times or not at all.

    Parameters
    ----------
    folds : held-out folds of the rows, drawn by `seed` (the split of scikit-learn's shuffled KFold).
    seed : of the folds.

    Shapes (n, d1) and (n, d2). Range [-1, 1], chance 0. Not symmetric. Invariant to translation, a positive scale of every
    unit of either side and their order. A unit of X that is constant on the training rows is not chosen while another is
    there; a correlation that is undefined on the held-out rows counts 0; units of Y that are constant overall are left
    out. nan if one side has constant units only. Raises RepalignError unless n >= 2 folds.

    Source: `pairwisematching` of NeuroAIMetrics, which computes in float32.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 6))
    >>> round(PairwiseMatching()(x, x[:, :3]), 12)
    1.0
    """

    cost: ClassVar[str] = "n d per layer, folds n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("pairwise_matching",)
    symmetric: ClassVar[bool] = False

    def _score(self, a: Tensor, b: Tensor) -> float:
        total = 0.0
        for train, test in held_out(len(a), self.folds, self.seed):
            partner = _product(_normalised(a[train]), _normalised(b[train])).argmax(dim=0)
            total += float((_normalised(a[test])[:, partner] * _normalised(b[test])).sum(dim=0).mean())
        return total / self.folds


def _units(x: Tensor) -> Tensor:
    """Columns of x (n, d) without their means at norm 1, in float64; constant ones left out."""
    rows = centred(x).rows
    largest = largest_along(rows, 0)[0]
    if not bool(largest.all()):
        rows, largest = rows[:, largest > 0], largest[largest > 0]
    return _unit_columns(rows, largest)


def _normalised(columns: Tensor) -> Tensor:
    """Columns without their means at norm 1; a constant one is zero."""
    centre = columns - columns[:1]
    centre -= centre.mean(dim=0)
    centre[:, (columns == columns[:1]).all(dim=0)] = 0
    return _unit_columns(centre, largest_along(centre, 0)[0])


def _unit_columns(columns: Tensor, largest: Tensor) -> Tensor:
    """Columns, which are changed, at norm 1, of which these are the largest entries."""
    columns /= power_of_two(largest)  # so that squares neither overflow nor vanish
    norms = column_norms(columns)
    return columns.div_(torch.where(norms > 0, norms, 1.0))


def _ranks(x: Tensor) -> Tensor:
    """The ranks in every column, ties averaged."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(x.cpu().numpy(), axis=0)).to(widen(x[:1]).device)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Correlations of all units (d1, d2)."""
    with full_precision():
        return (a.T @ b).clamp(-1, 1)


def _assigned(closeness: Tensor) -> float:
    """The mean under the best one-to-one assignment."""
    from scipy.optimize import linear_sum_assignment

    values = closeness.cpu().numpy()
    return float(values[linear_sum_assignment(values, maximize=True)].mean())


def _transported(closeness: Tensor) -> float:
    """The largest mean under a coupling with uniform marginals."""
    import numpy as np

    widths = f"transport between layers of widths {closeness.shape[0]} and {closeness.shape[1]}"
    require(widths, "transport", "ot", otherwise=", or use SoftUnitMatching(form='best')")
    import ot

    cost = 1 - closeness.cpu().numpy()
    mine, theirs = (np.full(size, 1 / size) for size in cost.shape)
    least: Any = ot.emd2(mine, theirs, cost, numItermax=10**7)
    return float(1 - least)
