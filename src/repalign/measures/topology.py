"""Topological divergences of two spaces of the same stimuli: RTD, RTD-Lite, MTopDiv, and how to read them.

They are distances that grow with n, so a raw value says nothing alone: `relative_to_null` gives it in units of what
unpaired spaces of the same shape score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import FEATURES_OR_RDM, Given
from repalign.measures.measure import Features, Measure, State
from repalign.measures.numerics.checks import as_count, check_choice
from repalign.measures.numerics.folds import as_seed
from repalign.measures.numerics.persistence import Distances, Whole, bars, distances, length, spanning_tree
from repalign.measures.numerics.precision import widen

# Distances below this share of their mean count as 0, as in the reference code.
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class _Divergence(Measure):
    """Mean of two directions; a distance without an upper bound."""

    family: ClassVar[str] = "topology"
    symmetric: ClassVar[bool] = True
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)
    takes: ClassVar[frozenset[str]] = FEATURES_OR_RDM

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"orthogonal", "isotropic_scale", "translation", "permutation"})

    def directions(self, x: Any, y: Any) -> tuple[float, float]:
        """The divergence from x to y, and from y to x, of which the score is the mean."""
        x, y = self.checked(x, y)
        return self._both(self.prepare(x), self.prepare(y))

    def compare(self, a: State, b: State) -> float:
        return sum(self._both(a, b)) / 2

    def _both(self, a: State, b: State) -> tuple[float, float]:
        raise NotImplementedError


@dataclass(frozen=True)
class RTD(_Divergence):
    """Representation topology divergence: loops that close at one scale in one space and later in the other.

    s = (RTD_1(X, Y) + RTD_1(Y, X)) / 2, with RTD_1 the sum of the lengths of the one-dimensional persistence bars of the
    2n x 2n matrix [[0, W_X], [W_X, min(W_X, W_Y)]], W the Euclidean distances over their 0.9 quantile (of all n^2 entries).

    Parameters
    ----------
    form : "min" as above, or "max": [[0, max(W_X, W_Y)], [max(W_X, W_Y), W_Y]] (a loss in RTD-AE); on our
        test data never below the other.
    rows : above this n, the mean over `trials` random sets of so many rows, the same in both spaces, each with its own
        quantile; at or below it, one computation over all rows.
    trials : random sets of rows where n > rows.
    seed : of the random sets.

    Shapes (n, d1) and (n, d2). Range [0, inf), 0 for equal distances up to scale. It grows with n (with `rows` at most):
    values of different n or rows are never compared; `relative_to_null` puts them in proportion. Invariant to orthogonal
    maps, isotropic scale and translation. Single precision: relative error about 1e-6. nan where the 0.9 quantile of the
    distances is 0. Raises RepalignError without the package ripser (pip install 'repalign[topology]').

    Source: Barannikov et al. 2022 (arXiv 2201.00058), with the batches and the 0.9 quantile of their code.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((30, 5))
    >>> RTD()(x, 1 - 2 * x) < 1e-6
    True
    """

    form: str = "min"
    rows: int = 500
    trials: int = 10
    seed: int = 0

    cost: ClassVar[str] = "n^2 d per layer; trials times some seconds per pair at 500 rows, about rows^3"
    aliases: ClassVar[tuple[str, ...]] = ("rtd",)

    def __post_init__(self) -> None:
        check_choice("form", self.form, ("min", "max"))
        object.__setattr__(self, "rows", as_count("rows", self.rows))
        object.__setattr__(self, "trials", as_count("trials", self.trials))
        object.__setattr__(self, "seed", as_seed(self.seed))

    def prepare(self, x: Given) -> Distances | Whole:
        """Distances of all rows, or, where sets of rows have to be drawn first, the layer."""
        self.check_n(len(x))
        return Whole(x) if len(x) > self.rows else Distances(distances(x), len(x))

    def _both(self, a: State, b: State) -> tuple[float, float]:
        found = []
        for first, second in zip(self._batches(a), self._batches(b), strict=True):
            if first is None or second is None:
                return math.nan, math.nan
            found.append([length(cross_barcode(*pair, self.form)) for pair in ((first, second), (second, first))])
        forward, backward = np.mean(found, axis=0)
        return float(forward), float(backward)

    def _batches(self, state: State) -> Iterator[np.ndarray | None]:
        """Distances of every set of rows."""
        if isinstance(state, Distances):
            yield state.numpy()
            return
        generator = np.random.Generator(np.random.PCG64(self.seed))
        for _ in range(self.trials):
            chosen = torch.from_numpy(generator.choice(state.n, self.rows, replace=False))
            found = distances(cast(Whole, state).layer[chosen])
            yield None if found is None else found.cpu().numpy()


def cross_barcode(first: np.ndarray, second: np.ndarray, form: str = "min") -> np.ndarray:
    """The one-dimensional bars (birth, death) of `RTD`, from one matrix of distances (n, n) to another.

    One triangle of the cross block is left at infinity, the W_+ of the paper: the same bars from fewer simplices. The last
    point of the first block then sees all others; the most central stimulus there ends the filtration soonest.
    """
    cross, own = (first, np.minimum(first, second)) if form == "min" else (np.maximum(first, second), second)
    n, central = len(first), int(cross.max(axis=1).argmin())
    order = np.append(np.delete(np.arange(n), central), central)
    cross, own = cross[np.ix_(order, order)], own[np.ix_(order, order)]
    matrix = np.full((2 * n, 2 * n), np.inf)
    matrix[:n, :n] = 0
    rows, columns = np.triu_indices(n)
    matrix[n + rows, columns] = matrix[columns, n + rows] = cross[rows, columns]
    matrix[n:, n:] = own
    matrix[matrix < _NEGLIGIBLE * float(first.mean())] = 0
    return bars(matrix)


@dataclass(frozen=True)
class RTDLite(_Divergence):
    """RTD-Lite: what the spanning tree of two spaces together saves on the tree of each, the H0 part of RTD.

    s = (T(W_X) + T(W_Y)) / 2 - T(min(W_X, W_Y)), T the weight of a minimum spanning tree, W as in `RTD`.

    Shapes (n, d1) and (n, d2). Range [0, inf), 0 for equal distances up to scale; on our test data never above `RTD`.
    It grows with n:
    values of different n are never compared; `relative_to_null` puts them in proportion. Invariant to orthogonal maps,
    isotropic scale and translation. nan where the 0.9 quantile of the distances is 0.

    Source: Tulchinskii et al. 2025 (arXiv 2503.11910). The reference code fails for n > 4,096, and in float32 loses digits
    to distances from dot products. Trees are dense: duplicates are edges of weight 0, which sparse graphs read as none.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((30, 5))
    >>> RTDLite()(x, 1 - 2 * x) < 1e-9
    True
    """

    cost: ClassVar[str] = "n^2 d per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("rtd_lite",)

    def prepare(self, x: Given) -> Distances:
        self.check_n(len(x))
        matrix = distances(x)
        return Distances(matrix, len(x), 0.0 if matrix is None else spanning_tree(matrix.cpu().numpy()))

    def _both(self, a: State, b: State) -> tuple[float, float]:
        first, second = cast(tuple[Distances, Distances], (a, b))
        wx, wy = first.numpy(), second.numpy()
        if wx is None or wy is None:
            return math.nan, math.nan
        together = spanning_tree(np.minimum(wx, wy))
        # The tree of the minimum is never heavier; below 0 is rounding.
        return max(first.tree - together, 0.0), max(second.tree - together, 0.0)


@dataclass(frozen=True)
class MTopDiv(Measure):
    """Manifold topology divergence: loops of one cloud that the other, in the same space, does not fill.

    s = sum of the lengths of the one-dimensional persistence bars of [[0, D(X, Y)], [D(Y, X), D(Y, Y)]], D the Euclidean
    distances as they are. X is the first argument; it need not have as many rows as Y.

    Parameters
    ----------
    max_n : more rows than this are refused rather than sampled.

    Shapes (n1, d) and (n2, d). Range [0, inf), 0 for X = Y; it grows with n and with the unit of the space. Not symmetric.
    Invariant to nothing that is done to one side alone, but the order of its rows. Single precision.
    Raises RepalignError without the package ripser (pip install 'repalign[topology]').

    Source: Barannikov et al. 2021 (arXiv 2106.04024), over all rows instead of random batches.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((30, 5))
    >>> MTopDiv()(x, x)
    0.0
    """

    max_n: int = 1000

    family: ClassVar[str] = "topology"
    cost: ClassVar[str] = "n d per layer; up to a minute per pair at n = 1,000, about n^3"
    aliases: ClassVar[tuple[str, ...]] = ("mtopdiv",)
    symmetric: ClassVar[bool] = False
    closer_is_higher: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    equal_widths: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_n", as_count("max_n", self.max_n))

    def prepare(self, x: Tensor) -> Features:
        self.check_n(len(x))
        check_size(self, len(x))
        return Features(widen(x))

    def compare(self, a: State, b: State) -> float:
        from scipy.spatial.distance import cdist

        first, second = (s.values.cpu().numpy() for s in cast(tuple[Features, Features], (a, b)))
        cross = cdist(first, second)
        return length(bars(np.block([[np.zeros((len(first), len(first))), cross], [cross.T, cdist(second, second)]])))


def check_size(measure: Any, n: int) -> None:
    """Refuse more rows than `max_n`: a persistence computation grows faster than n^2."""
    if n > measure.max_n:
        raise RepalignError(
            f"too many stimuli for {measure!r}",
            expected=f"n <= {measure.max_n}",
            got=f"n = {n}",
            remedy="choose a subset of the stimuli yourself, or raise max_n and wait",
        )


class Relative(NamedTuple):
    """A score against what it is for unpaired rows."""

    statistic: float
    null_mean: float
    ratio: float  # statistic / null_mean: of a distance 0 for the same space, about 1 for unpaired ones
    pvalue: float
    n_draws: int
    seed: int


def relative_to_null(measure: Measure, x: Any, y: Any, n_draws: int = 20, seed: int = 0) -> Relative:
    """A score divided by its mean over random relabellings of the rows of y, which makes distances readable.

    RTD and its kin are unbounded and grow with n: a ratio of 0 says that the spaces are the same, about 1 that the pairing
    of rows says nothing. p = (1 + draws that are at least as close) / (n_draws + 1).

    Raises RepalignError for a measure that does not look at the pairing.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((60, 5))
    >>> near = x + 0.1 * np.random.default_rng(1).standard_normal((60, 5))
    >>> relative_to_null(RTDLite(), x, near).ratio < 0.5
    True
    """
    if not measure.paired:
        raise RepalignError(
            f"{measure!r} does not look at the pairing of rows",
            expected="a measure whose score changes when rows are relabelled",
            got="paired = False",
            remedy="compare its score with that of two halves of one space instead",
        )
    n_draws, seed = as_count("n_draws", n_draws), as_seed(seed)
    x, y = measure.checked(x, y)
    a, b = measure.prepare(x), measure.prepare(y)
    generator = np.random.Generator(np.random.PCG64(seed))
    statistic = measure.compare(a, b)
    draws = []
    for _ in range(n_draws):
        p = torch.from_numpy(generator.permutation(len(x))).to(y.device)
        draws.append(measure.compare(a, b.permute(p)))
    null = np.array(draws)
    mean = float(null.mean())
    tie = 1e-12 * float(np.abs(null).max())
    closer = null >= statistic - tie if measure.closer_is_higher else null <= statistic + tie
    pvalue = math.nan if math.isnan(statistic) else (1 + int(closer.sum())) / (n_draws + 1)
    return Relative(statistic, mean, statistic / mean if mean else math.nan, pvalue, n_draws, seed)


MEASURES = (RTD, RTDLite, MTopDiv)
