"""Intervals that know that pairs share models: the units, and the jackknife over them, on both sides of the pairs.

Pairs share models and models share families, so pairs are not independent. docs/trends.md states the coverage that was
measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from repalign.relate.scores import Crossed

LEVEL = 0.95
# Two units have one difference, and so say nothing about how much units differ.
MIN_UNITS = 3
# A line through two points fits always.
MIN_MODELS_LINE = 3


# --- the line and the two correlations -----------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Least squares y = intercept + slope * x over n points, with Pearson's and Spearman's correlation.

    Correlations are nan if one of the two variables is constant.
    """

    slope: float
    intercept: float
    r: float
    spearman: float
    n: int

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike) -> Fit | None:
        """Fit y on x; None for fewer than three points or if all x are equal."""
        a, b = np.asarray(x, float), np.asarray(y, float)
        n = len(a)
        spread = float(((a - a.mean()) ** 2).sum()) if n else 0.0
        if n < MIN_MODELS_LINE or spread <= 1e-24 * max(1.0, float((a**2).sum())):
            return None
        slope = float(((a - a.mean()) * (b - b.mean())).sum() / spread)
        return cls(slope, float(b.mean() - slope * a.mean()), pearson(a, b), spearman(a, b), n)

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The line at x."""
        return self.intercept + self.slope * np.asarray(x, float)


def ranks(x: ArrayLike) -> np.ndarray:
    """Ranks from 1 of a vector, ties sharing their mean rank; all nan if one of them is. As `scipy.stats.rankdata`, faster."""
    values = np.asarray(x, float)
    if np.isnan(values).any():
        return np.full(values.shape, math.nan)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(values)])  # of ties, most of them of one
    ends, out = np.append(starts[1:], len(values)), np.empty(len(values))
    out[order] = np.repeat((starts + 1 + ends) / 2, ends - starts)
    return out


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two vectors; nan if one of them is constant."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm > 0 else math.nan


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of the ranks."""
    return pearson(ranks(x), ranks(y))


# --- units ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Units:
    """What is taken as drawn independently: single models, or families of them."""

    kind: str  # "model" or "family"
    members: tuple[frozenset[str], ...]

    def __len__(self) -> int:
        return len(self.members)


def units_of(families: Mapping[str, str], *groups: Sequence[str], least: Sequence[int]) -> tuple[Units | None, ...]:
    """The units of some groups of models that can be left out one at a time, one entry per group.

    If a model or a family stands in several groups, its members are one unit in all of them, and there is one entry.
    Units are families, else models, else None: there must be at least three, and of every group the `least` number of
    models must be left without any one of them. A model without a family is a unit of its own.
    """
    kin = [{_kin(name, families) for name in group} for group in groups]
    wanted = list(zip(groups, least, strict=True))
    if len(set().union(*kin)) < sum(map(len, kin)):
        return (_largest([name for group in groups for name in group], families, wanted),)
    return tuple(_largest(group, families, [(group, k)]) for group, k in wanted)


def _kin(name: str, families: Mapping[str, str]) -> tuple[str, str]:
    family = families.get(name) or ""
    return family, "" if family else name


def _largest(names: Sequence[str], families: Mapping[str, str], wanted: Sequence[tuple[Sequence[str], int]]) -> Units | None:
    single = {name: [name] for name in names}
    together: dict[tuple[str, str], list[str]] = {}
    for name in single:
        together.setdefault(_kin(name, families), []).append(name)
    kinds = {"family": together} if len(together) < len(single) else {}
    for kind, members in {**kinds, "model": single}.items():
        units = Units(kind, tuple(map(frozenset, members.values())))
        if len(units) >= MIN_UNITS and all(len(set(some) - u) >= k for u in units.members for some, k in wanted):
            return units
    return None


def labels_of(names: Sequence[str], families: Mapping[str, str]) -> np.ndarray:
    """0 ... G - 1 by family; a model without one is alone."""
    keys = [_kin(name, families) for name in names]
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([order[key] for key in keys])


# --- intervals -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Jackknife:
    """An estimate and the same without one unit at a time; one tuple of these for every side that has units.

    An estimate is a `Fit`, or anything that `value` turns into a number or an array; None if there is none.

    V = sum over sides of (G - 1)/G * sum over units of (t(-u) - t)^2: the delete-one-cluster variance CV3 of every
    side, added. A pair's own noise counts on both sides, so the sum errs to the wide. Degrees of freedom are
    Satterthwaite's, V^2 / sum of V_side^2 / (G - 1), so at least the smallest G - 1.

    Source: R. M. Bell and D. F. McCaffrey, Survey Methodology 28 (2002), for CR3; A. C. Cameron, J. B. Gelbach and
    D. L. Miller, Journal of Business and Economic Statistics 29 (2011), for sums over crossed clusters (they subtract
    the pairs' own term, which can make V negative; it is kept here); P. M. Aronow, C. Samii and V. A. Assenova,
    Political Analysis 23 (2015), for pairs within one set of models.
    """

    full: Any
    refits: tuple[tuple[Any, ...], ...]

    @classmethod
    def over(cls, sides: Sequence[Units | None], estimate: Callable[[frozenset[str]], Any]) -> Jackknife:
        """`estimate`, which gets the models to leave out, for none of them and for each unit of every side."""
        return cls(estimate(frozenset()), tuple(tuple(map(estimate, side.members)) for side in sides if side))

    def interval(self, value: Callable[[Any], ArrayLike], level: float = LEVEL, sides: int | None = None) -> tuple[Any, Any, Any]:
        """value(estimate) -+ t * sqrt(V), and the degrees of freedom; nan if an estimate or its value is missing."""
        from scipy.stats import t

        centre = np.asarray(value(self.full), float)
        parts = [(self._variance(value, refits, centre), len(refits) - 1) for refits in self.refits[:sides]]
        if not parts:
            nothing = np.full(centre.shape, math.nan)[()]
            return nothing, nothing, nothing
        total = np.sum([v for v, _ in parts], axis=0)
        shares = np.sum([v**2 / df for v, df in parts], axis=0)
        least = float(min(df for _, df in parts))
        df = np.divide(total**2, shares, out=np.full(centre.shape, least), where=shares > 0)
        half = t.ppf((1 + level) / 2, df) * np.sqrt(total)
        return (centre - half)[()], (centre + half)[()], np.where(np.isnan(half), math.nan, df)[()]

    def rank_interval(self, rank: Callable[[Any], tuple[Any, Any]], level: float = LEVEL) -> tuple[Any, Any, Any]:
        """The interval of rank correlations, on Fisher's z = artanh(rho) and back, and the degrees of freedom.

        `rank` gives rho and the number of ranks; nan for a perfect order. Without one unit the order may be perfect and z
        infinite: rho then counts as half a swap of neighbours below 1, 1 - 6 / (n^3 - n).
        """

        def z(estimate: Any) -> np.ndarray:
            rho, n = rank(estimate)
            n = np.maximum(n, MIN_UNITS)
            most = 1 - 6 / (n**3 - n)
            return np.arctanh(np.clip(rho, -most, most))

        low, high, df = self.interval(z, level)
        imperfect = np.abs(rank(self.full)[0]) <= 1 - 1e-12  # nan is not
        low, high, df = (np.where(imperfect, v, math.nan)[()] for v in (np.tanh(low), np.tanh(high), df))
        return low, high, df

    @staticmethod
    def _variance(value: Callable[[Any], ArrayLike], refits: tuple[Any, ...], centre: np.ndarray) -> np.ndarray:
        if any(fit is None for fit in refits):
            return np.full(centre.shape, math.nan)
        left = np.array([value(fit) for fit in refits], float)
        return (len(left) - 1) / len(left) * ((left - centre) ** 2).sum(0)


def said_by(low: float, high: float) -> str:
    """What an interval says: "more" above 0, "less" below, "open" around it; "" where there is none."""
    return "more" if low > 0 else "less" if high < 0 else "open" if low <= high else ""


@dataclass(frozen=True)
class PairMean:
    """The mean over the defined pairs and its interval, nan if neither side has three units.

    `units` says what was left out in turn, "" without an interval.
    """

    mean: float
    low: float
    high: float
    n_pairs: int
    n_undefined: int
    units: str


def mean_of_pairs(
    pairs: pd.DataFrame, values: ArrayLike, families: Mapping[str, str] | None = None, level: float = LEVEL
) -> PairMean:
    """Mean of `values`, one per row of `pairs` (columns model_x, model_y), with the crossed jackknife of docs/trends.md.

    mean -+ t * sqrt(V), V summed over the sides that have at least three units; a side of fewer is taken as it is. If a
    model or a family stands on both sides, all its pairs are one unit.
    """
    numbers = np.asarray(values, float)
    scores = Crossed.of(pairs.assign(statistic=numbers), "x").defined()
    n_pairs = int(np.isfinite(numbers).sum())
    sides = units_of(families or {}, scores.rows, scores.columns, least=(1, 1)) if n_pairs else ()
    mean = Jackknife.over(sides, scores.mean)
    low, high, _ = mean.interval(lambda one: math.nan if one is None else one, level)
    where = [" on both sides"] if len(sides) == 1 else [" of side x", " of side y"]
    units = [f"{len(u)} {'families' if u.kind == 'family' else 'models'}{w}" for u, w in zip(sides, where, strict=False) if u]
    full = math.nan if mean.full is None else mean.full
    return PairMean(full, float(low), float(high), n_pairs, len(numbers) - n_pairs, " and ".join(units))


def over_partners(
    partners: Sequence[str], values: np.ndarray, families: Mapping[str, str], level: float = LEVEL
) -> tuple[float, float, str, int]:
    """The interval of the mean of `values`, one per partner, without one family of partners at a time, or one partner where there
    are fewer than three families; what is left out, "" without an interval, and how many of these there are."""
    (units,) = units_of(families, partners, least=(1,))
    left = Jackknife.over((units,), lambda without: values[[name not in without for name in partners]].mean())
    low, high, _ = left.interval(lambda mean: mean, level)
    return float(low), float(high), units.kind if units else "", len(units) if units else 0


@dataclass(frozen=True)
class ModelDifference:
    """Mean score of some models minus that of others with the same partners, and its interval, nan for fewer than three units.

    `scores` are the two means; `unit` is what was left out in turn, "family" or "model" of the partners, "" without an interval.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, float]
    difference: float
    low: float
    high: float
    unit: str
    n_units: int
    n_partners: int


def difference_of_models(
    pairs: pd.DataFrame, side: str, first: Sequence[str], second: Sequence[str], families: Mapping[str, str] | None = None,
    level: float = LEVEL,
) -> ModelDifference | None:  # fmt: skip
    """How much more the models `first` of a side agree with their partners than the models `second`.

    d_j is the mean score with partner j of the first models minus that of the second; the difference is the mean of d_j over the
    partners that both met. Its interval leaves out one family of partners at a time, or one partner where there are fewer than
    three families: mean -+ t(G - 1) * sqrt((G - 1)/G * sum over units of (mean without it - mean)^2). It holds for partners like
    these and for these very models. None without such partners.
    """
    scores = Crossed.of(pairs, side, [*first, *second])
    one, other = np.split(scores.scores(), [len(first)])
    both = np.isfinite(one).any(0) & np.isfinite(other).any(0)
    if not both.any():
        return None
    partners = [name for name, there in zip(scores.columns, both, strict=True) if there]
    means = np.nanmean(one[:, both], 0), np.nanmean(other[:, both], 0)
    gaps = means[0] - means[1]
    return ModelDifference(
        tuple(first), tuple(second), (float(means[0].mean()), float(means[1].mean())), float(gaps.mean()),
        *over_partners(partners, gaps, families or {}, level), len(partners),
    )  # fmt: skip
