"""Summaries of one space as a number each, and measures that compare two spaces by them.

Nothing here needs pairs, or one space, or one width: two spaces with the same summary may be unlike in everything else, and
there is no chance level to hold a difference against.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from repalign.errors import choose
from repalign.layers import FEATURES_OR_RDM, RDM, Given, as_features
from repalign.measures.measure import ISOMETRIES_AND_SCALE, Distance, Summary, as_number, check_flag, parameter
from repalign.measures.numerics.precision import full_precision, gram, layer_of, sum_of_unit_rows
from repalign.measures.numerics.rows import blocks, centred, scaled, unit_rows, widen
from repalign.measures.numerics.search import embed, nearest

# --- summaries of one array -----------------------------------------------------------------------


def magnitude(x: Any) -> float:
    """The length of the mean row of x (n, d): |mean_i x_i|. Source: Wang et al. 2020, as in Klabunde et al. 2025.

    >>> magnitude([[3.0, 0.0], [3.0, 8.0]])
    5.0
    """
    return MagnitudeDifference().statistic(as_features(x))


def concentricity(x: Any) -> float:
    """The mean cosine of the rows of x (n, d) with the mean row, in [-1, 1]; 0 where that vanishes.

    For column-centred rows the mean row is rounding noise, and the number says nothing.
    Source: Wang et al. 2020, as in Klabunde et al. 2025 (arXiv 2305.06329).

    >>> concentricity([[1.0, 0.0], [2.0, 0.0]])
    1.0
    """
    return ConcentricityDifference().statistic(as_features(x))


def uniformity(x: Any, t: float = 2.0, normalize: bool = True, pairs: str = "distinct") -> float:
    """The logarithm of the mean of exp(-t |x_i - x_j|^2) over pairs of rows: 0 if all are alike, lower the more spread.

    Parameters as in `UniformityDifference`. Source: Wang & Isola 2020 (arXiv 2005.10242), equation 2.

    >>> round(uniformity([[1.0, 0.0], [-1.0, 0.0]]), 12)
    -8.0
    """
    measure, x = UniformityDifference(t, normalize, pairs), as_features(x)
    measure.check(len(x))
    return measure.statistic(x)


def participation_ratio(x: Any) -> float:
    """The effective dimension of x (n, d): (sum of l)^2 / sum of l^2 over the eigenvalues l of the covariance.

    In [1, min(n - 1, d)]: the number of dimensions if all have the same variance. nan if all rows are alike.
    Source: Gao et al. 2017; Recanatesi et al. 2022.

    >>> round(participation_ratio([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 12)
    2.0
    """
    return ParticipationRatioDifference().statistic(as_features(x))


def two_nn_dimension(x: Any, discard: float = 0.1) -> float:
    """The intrinsic dimension of x (n, d) from the ratio of the distances to the two nearest neighbours of every row.

    With m_i = r_i2 / r_i1 in increasing order, the slope through the origin of -log(1 - i / n) against log m_i, without the
    largest share `discard`, which noise and borders bend. Repeated rows count once: a distance of 0 says nothing about the
    dimension. nan with fewer than three different rows.

    Source: Facco et al. 2017 (arXiv 1803.06992), the fit with a tenth discarded.

    >>> import numpy as np
    >>> plane = np.random.default_rng(0).standard_normal((500, 2))
    >>> 1.8 < two_nn_dimension(plane @ [[1, 2, 0, 1], [0, 1, 3, 1]]) < 2.2
    True
    """
    measure, x = IntrinsicDimensionDifference(discard), as_features(x)
    measure.check(len(x))
    return measure.statistic(x)


# --- their differences as measures ----------------------------------------------------------------


@dataclass(frozen=True)
class _Difference(Distance):
    """|s(x) - s(y)| of a summary s of one array."""

    family: ClassVar[str] = "statistics"
    paired: ClassVar[bool] = False

    @abstractmethod
    def statistic(self, x: Any) -> float:
        """The summary of one checked layer."""

    def prepare(self, x: Any) -> Summary:
        return Summary(len(x), torch.tensor(self.statistic(x), dtype=torch.float64))

    def compare(self, a: Summary, b: Summary) -> float:
        return float((a.values - b.values).abs())


@dataclass(frozen=True)
class MagnitudeDifference(_Difference):
    """Magnitude difference: by how much the lengths of the mean rows differ.

    s = | |mean x| - |mean y| |, a distance (see `magnitude`).

    Shapes (n, d1) and (m, d2): which row belongs to which does not matter. Range [0, inf), in the unit of the features.
    Invariant to orthogonal maps and column order.

    Source: Wang et al. 2020, as in Klabunde et al. 2025 (arXiv 2305.06329), descriptive statistics.

    >>> MagnitudeDifference()([[3.0, 0.0], [3.0, 8.0]], [[1.0], [3.0]])
    3.0
    """

    cost: ClassVar[str] = "n d per layer, 1 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("magnitude_difference",)
    smallest_n: ClassVar[int] = 1
    unchanged_by: ClassVar[frozenset[str]] = frozenset({"orthogonal", "permutation"})

    def statistic(self, x: Tensor) -> float:
        mean, unit = scaled(_mean(x))
        return float(torch.linalg.vector_norm(mean)) * unit


@dataclass(frozen=True)
class ConcentricityDifference(_Difference):
    """Concentricity difference: by how much the mean cosines of the rows with their mean differ.

    s = |c(X) - c(Y)|, c(X) = (1 / n) sum_i cos(x_i, mean x), a distance (see `concentricity`).

    Shapes (n, d1) and (m, d2): which row belongs to which does not matter. Range [0, 2]. Invariant to orthogonal maps,
    isotropic scale and column order.

    Source: Wang et al. 2020, as in Klabunde et al. 2025 (arXiv 2305.06329), descriptive statistics.

    >>> ConcentricityDifference()([[1.0, 0.0], [2.0, 0.0]], [[1.0], [2.0]])
    0.0
    """

    cost: ClassVar[str] = "n d per layer, 1 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("concentricity_difference",)
    bounds: ClassVar[tuple[float, float]] = (0.0, 2.0)
    smallest_n: ClassVar[int] = 1
    unchanged_by: ClassVar[frozenset[str]] = frozenset({"orthogonal", "isotropic_scale", "permutation"})

    def statistic(self, x: Tensor) -> float:
        return float(sum_of_unit_rows(x)[0] @ unit_rows(_mean(x))[0]) / len(x)


@dataclass(frozen=True)
class UniformityDifference(_Difference):
    """Uniformity difference: by how much the spread of two spaces over the sphere differs.

    s = |u(X) - u(Y)|, u(X) = log mean exp(-t |x_i - x_j|^2) over pairs of unit rows, a distance (see `uniformity`).

    Parameters
    ----------
    t : of the Gaussian, above 0.
    normalize : unit rows (default); False takes the rows as they are.
    pairs : "distinct", pairs of different rows (default), or "all", the n^2 pairs with every row and itself, which cannot
        fall below -log n.

    Shapes (n, d1) and (m, d2): which row belongs to which does not matter. Range [0, inf). Invariant to orthogonal maps and
    column order; with normalize to the scale of every row, without to translations.

    Source: Wang & Isola 2020 (arXiv 2005.10242), equation 2. The code of the ReSi benchmark (Klabunde et al. 2025) is
    normalize=False, pairs="all".

    >>> round(UniformityDifference()([[1.0, 0.0], [-1.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]]), 12)
    4.0
    """

    t: float = parameter(2.0, as_number, lambda v: 0 < v < math.inf, "is not a positive number", "t > 0")
    normalize: bool = parameter(True, check_flag)
    pairs: str = parameter("distinct", choose, ("distinct", "all"))

    cost: ClassVar[str] = "n^2 d per layer, 1 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("uniformity_difference",)

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"orthogonal", "permutation"})
        return common | ({"isotropic_scale", "row_scale"} if self.normalize else {"translation"})

    def statistic(self, x: Tensor) -> float:
        # Differences alone count, and centred rows keep their digits.
        rows, unit = centred(unit_rows(x) if self.normalize else x)[:2]
        n = len(rows)
        squares = rows.square().sum(dim=1)
        rate = self.t * unit * unit
        parts = []
        for block in blocks(n, 4 * 8 * n):
            with full_precision():
                squared = rows[block] @ rows.T
            squared.mul_(-2).add_(squares[block, None]).add_(squares[None, :]).clamp_(min=0)
            squared.diagonal(block.start).fill_(0.0 if self.pairs == "all" else math.inf)
            parts.append(squared.mul_(-rate).flatten().logsumexp(dim=0))
        return float(torch.stack(parts).logsumexp(dim=0)) - math.log(n * n if self.pairs == "all" else n * (n - 1))


@dataclass(frozen=True)
class ParticipationRatioDifference(_Difference):
    """Participation-ratio difference: by how much the effective dimensions of two spaces differ.

    s = |PR(X) - PR(Y)|, PR = (sum of l)^2 / sum of l^2 over the eigenvalues l of the covariance, a distance (see
    `participation_ratio`).

    Shapes (n, d1) and (m, d2): which row belongs to which does not matter. Range [0, inf). Invariant to orthogonal maps,
    isotropic scale, translation and column order. nan if all rows of one side are alike.

    Source: Gao et al. 2017; Recanatesi et al. 2022. Few stimuli bound it: PR is at most n - 1.

    >>> x = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    >>> round(ParticipationRatioDifference()(x, [[1.0], [2.0], [4.0], [3.0]]), 12)
    1.0
    """

    cost: ClassVar[str] = "n d min(n, d) per layer, 1 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("participation_ratio_difference", "effective_dimension_difference")
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES_AND_SCALE

    def statistic(self, x: Tensor) -> float:
        if (layer := layer_of(x)).shared:  # products that others may ask for, too
            square, own = layer.products.gram, layer.products.gram.diagonal().double().sum()
            return float(own) ** 2 / float(torch.linalg.vector_norm(square, dim=1).double().square().sum()) if own > 0 else math.nan
        rows = centred(x).rows
        products = gram(rows.T if rows.shape[1] < rows.shape[0] else rows)
        total = float(rows.square().sum())
        return total**2 / float(products.square().sum()) if total > 0 else math.nan


@dataclass(frozen=True)
class IntrinsicDimensionDifference(_Difference):
    """Intrinsic-dimension difference: by how much the two-nearest-neighbour dimensions of two spaces differ.

    s = |D(X) - D(Y)|, a distance, with D from the ratios of the distances to the two nearest neighbours (see
    `two_nn_dimension`).

    Parameters
    ----------
    discard : the share of the largest ratios that is left out, in [0, 1).

    Shapes (n, d1) and (m, d2): which row belongs to which does not matter. Range [0, inf). Invariant to orthogonal maps,
    isotropic scale, translation and column order. nan with fewer than three different rows on one side.

    Source: Facco et al. 2017 (arXiv 1803.06992).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 2))
    >>> 0.8 < IntrinsicDimensionDifference()(x, x[:, :1]) < 1.2
    True
    """

    discard: float = parameter(0.1, as_number, lambda v: 0 <= v < 1, "is not a share", "0 <= discard < 1")

    cost: ClassVar[str] = "n^2 d per layer, 1 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("intrinsic_dimension_difference", "two_nn_difference")
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM
    smallest_n: ClassVar[int] = 3
    unchanged_by: ClassVar[frozenset[str]] = ISOMETRIES_AND_SCALE

    def statistic(self, x: Given) -> float:
        return _two_nn(x, self.discard)


# --- the formulas ---------------------------------------------------------------------------------


def _mean(x: Tensor) -> Tensor:
    """The mean row (1, d) in float64."""
    if x.device.type == "mps":
        x = widen(x)
    return x.mean(dim=0, keepdim=True, dtype=torch.float64)


def _two_nn(x: Given, discard: float) -> float:
    if len(x) < 3:
        return math.nan
    lists = nearest(embed(x, "euclidean"), 2)
    first, second = _to_neighbors(x, lists).unbind(dim=1)
    if bool((first == 0).any()):
        different = _distinct(x)
        return _two_nn(different, discard) if len(different) < len(x) else math.nan
    n = len(x)
    kept = max(1, min(n - 1, math.floor(n * (1 - discard))))
    ratio = (second / first).log().clamp(min=0).sort().values[:kept]
    place = torch.arange(1, kept + 1, dtype=torch.float64, device=x.device)
    survival = -torch.log1p(-place / n)
    squares = float(ratio.square().sum())
    return float((ratio * survival).sum()) / squares if squares > 0 else math.nan


def _to_neighbors(x: Given, lists: Tensor) -> Tensor:
    """Distances (n, k) from every stimulus to those of its list, in one unit."""
    if isinstance(x, RDM):
        return x.matrix.to(torch.float64).gather(1, lists)
    assert isinstance(x, Tensor)
    rows = centred(x).rows
    return torch.stack([torch.linalg.vector_norm(rows - rows[at], dim=1) for at in lists.T], dim=1)


def _distinct(x: Given) -> Given:
    """One of all stimuli that are alike."""
    if not isinstance(x, RDM):
        assert isinstance(x, Tensor)
        return torch.unique(x, dim=0)
    alike = (x.matrix == 0).to(torch.int8)
    return x[alike.argmax(dim=1) == torch.arange(len(x), device=x.device)]  # the first of each
