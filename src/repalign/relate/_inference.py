"""What a trend over models says about other models: intervals and p-values whose units are models or families.

Pairs share models and models share families, so pairs are not independent. Intervals leave out one unit at a time,
on both sides of the pairs; p-values let the covariates change places over units. docs/trends.md states the null
hypotheses and the coverage that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from repalign.errors import RepalignError
from repalign.relate._crossed import Crossed, Units, shared, sides_of_units
from repalign.relate._fit import Fit, ranks
from repalign.relate._permute import Permuted, permutation_test

LEVEL = 0.95
DRAWS = 9_999
# With fewer orders than this no p-value can reach .05.
FEW_ORDERS = 20


@dataclass(frozen=True)
class FamilySlope:
    """The slope within families (all on their own level), or between the means of families, and its p-value."""

    slope: float
    pvalue: float
    n_models: int
    n_families: int


@dataclass(frozen=True, eq=False)
class TrendInference:
    """What a trend says beyond its own models; numbers are nan where there are too few units.

    `unit` is "model" or "family", `n_units` their number; `partner_unit` and `n_partner_units` the same for the other
    side, None and 0 where the partners are taken as they are (fewer than three, or models that stand on both sides).
    Intervals are of 95 %; `df` are the slope's degrees of freedom. `n_orders` reorderings of the covariate are
    possible, all of which were visited if `exact`, else `draws` random ones from `seed`. `within` and `between` split
    the slope by families, None where families are too few or too small. `method` says how, in a sentence.
    """

    slope: float
    slope_interval: tuple[float, float]
    slope_pvalue: float
    spearman: float
    spearman_interval: tuple[float, float]
    spearman_pvalue: float
    unit: str
    n_units: int
    partner_unit: str | None
    n_partner_units: int
    df: float
    n_orders: int
    exact: bool
    draws: int
    seed: int
    within: FamilySlope | None
    between: FamilySlope | None
    method: str
    lines: Jackknife = field(repr=False)

    def band(self, x: ArrayLike, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """The interval of the line at x for other models with these partners: the jackknife over `unit` alone."""
        return self.lines.interval(lambda fit: fit.predict(x), level, sides=1)[:2]


@dataclass(frozen=True, eq=False)
class Jackknife:
    """An estimate and the same without one unit at a time; one tuple of these for every side that has units.

    An estimate is a `Fit`, or anything that `value` turns into a number or an array; None where there is none.

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

    def interval(
        self, value: Callable[[Any], ArrayLike], level: float = LEVEL, sides: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """value(estimate) -+ t * sqrt(V), and the degrees of freedom; nan where an estimate or its value is missing."""
        from scipy.stats import t

        centre = np.asarray(value(self.full), float)
        parts = [(self._variance(value, refits, centre), len(refits) - 1) for refits in self.refits[:sides]]
        if not parts:
            undefined = np.full(centre.shape, math.nan)
            return undefined, undefined, undefined
        total = np.sum([v for v, _ in parts], axis=0)
        shares = np.sum([v**2 / df for v, df in parts], axis=0)
        least = min(df for _, df in parts)
        df = np.divide(total**2, shares, out=np.full(centre.shape, float(least)), where=shares > 0)
        half = t.ppf((1 + level) / 2, df) * np.sqrt(total)
        return centre - half, centre + half, np.where(np.isnan(half), math.nan, df)

    @staticmethod
    def _variance(value: Callable[[Any], ArrayLike], refits: tuple[Any, ...], centre: np.ndarray) -> np.ndarray:
        if any(fit is None for fit in refits):
            return np.full(centre.shape, math.nan)
        left = np.array([value(fit) for fit in refits if fit is not None], float)
        return (len(left) - 1) / len(left) * ((left - centre) ** 2).sum(0)


def infer(
    scores: Crossed,
    x: ArrayLike,
    families: Mapping[str, str] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> TrendInference | None:
    """Slope and rank correlation of the rows' mean scores on x, with intervals and p-values over models or families.

    Parameters
    ----------
    scores : models by partners.
    x : (rows,) covariate of every row, finite.
    families : the family of a model by its name, rows and partners alike; models without one stand alone.
    draws, seed : random reorderings where there are more than 10,000 possible ones.

    Returns None where no line can be drawn. Raises RepalignError for a covariate of the wrong length or not finite.
    """
    covariate, families = np.asarray(x, float), dict(families or {})
    if covariate.shape != (len(scores.rows),) or not np.isfinite(covariate).all():
        raise RepalignError(
            "the covariate does not fit the models",
            expected=f"{len(scores.rows)} finite numbers",
            got=f"shape {covariate.shape}, {int((~np.isfinite(covariate)).sum())} not finite",
        )
    covariate, scores = covariate[scores.count.sum(1) > 0], scores.defined()
    fit = _refit(scores, covariate, frozenset())
    if fit is None:
        return None
    rows, partners = sides_of_units(scores, families)
    sides = [side for side in (rows, partners) if side is not None] if rows else []
    lines = Jackknife(fit, tuple(tuple(_refit(scores, covariate, u) for u in side.members) for side in sides))
    means, kin, test = scores.means(), _labels(scores.rows, families), _Test(draws, seed)
    labels = kin if rows and rows.kind == "family" else np.arange(len(means))
    slope_test = test(covariate, means, labels)
    low, high, df = (float(v) for v in lines.interval(lambda one: one.slope))
    return TrendInference(
        slope=fit.slope,
        slope_interval=(low, high),
        slope_pvalue=slope_test.pvalue,
        spearman=fit.spearman,
        spearman_interval=_rank_interval(lines),
        spearman_pvalue=test(ranks(covariate), ranks(means), labels).pvalue,
        unit=rows.kind if rows else "model",
        n_units=len(rows) if rows else len(means),
        partner_unit=partners.kind if rows and partners else None,
        n_partner_units=len(partners) if rows and partners else 0,
        df=df,
        n_orders=slope_test.n_orders,
        exact=slope_test.exact,
        draws=draws,
        seed=seed,
        within=_within(covariate, means, kin, test),
        between=_between(covariate, means, kin, test),
        method=_method(scores, families, rows, partners, df, slope_test, draws),
        lines=lines,
    )


def _refit(scores: Crossed, x: np.ndarray, without: frozenset[str]) -> Fit | None:
    means = scores.means(without)
    kept = np.isfinite(means)
    return Fit.of(x[kept], means[kept])


def _labels(names: tuple[str, ...], families: Mapping[str, str]) -> np.ndarray:
    """0 ... G - 1 by family; a model without one is alone."""
    keys = [(families[n], "") if families.get(n) else ("", n) for n in names]
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([order[key] for key in keys])


@dataclass(frozen=True)
class _Test:
    draws: int
    seed: int

    def __call__(self, x: np.ndarray, y: np.ndarray, labels: np.ndarray, over_families: bool = True) -> Permuted:
        return permutation_test(x, y, labels, over_families=over_families, draws=self.draws, seed=self.seed)


def _rank_interval(lines: Jackknife) -> tuple[float, float]:
    """The jackknife on Fisher's z = artanh(rho), back on the scale of rho; nan for a perfect order.

    Without one unit the order may be perfect and z infinite: rho then counts as half a swap of neighbours below 1,
    1 - 6 / (n^3 - n).
    """
    rho = lines.full.spearman
    if math.isnan(rho) or abs(rho) > 1 - 1e-12:
        return math.nan, math.nan

    def z(fit: Fit) -> float:
        most = 1 - 6 / (fit.n**3 - fit.n)
        return math.atanh(min(max(fit.spearman, -most), most)) if math.isfinite(fit.spearman) else math.nan

    low, high, _ = lines.interval(z)
    return float(np.tanh(low)), float(np.tanh(high))


def _family_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels, values) / np.bincount(labels)


def _within(x: np.ndarray, y: np.ndarray, labels: np.ndarray, test: _Test) -> FamilySlope | None:
    """One slope for all families, each on its own level: sum of dx dy over sum of dx^2, d from the family's mean."""
    dx, dy = (v - _family_means(v, labels)[labels] for v in (x, y))
    sizes = np.bincount(labels)
    spread = float(dx @ dx)
    if len(sizes) < 2 or spread <= 1e-24 * float(x @ x) or float(dy @ dy) <= 1e-24 * float(y @ y):
        return None
    found = test(dx, dy, labels, over_families=False)
    if found.n_orders < FEW_ORDERS:
        return None
    several = sizes > 1
    return FamilySlope(float(dx @ dy) / spread, found.pvalue, int(sizes[several].sum()), int(several.sum()))


def _between(x: np.ndarray, y: np.ndarray, labels: np.ndarray, test: _Test) -> FamilySlope | None:
    """The line through the means of the families, each counting once."""
    families = int(labels.max()) + 1
    if families == len(x) or math.factorial(families) < FEW_ORDERS:
        return None
    fit = Fit.of(_family_means(x, labels), _family_means(y, labels))
    if fit is None:
        return None
    found = test(_family_means(x, labels), _family_means(y, labels), np.arange(families))
    return FamilySlope(fit.slope, found.pvalue, len(x), families)


def _method(
    scores: Crossed,
    families: Mapping[str, str],
    rows: Units | None,
    partners: Units | None,
    df: float,
    found: Permuted,
    draws: int,
) -> str:
    """How, in a sentence that ends with a full stop."""
    unit = rows.kind if rows else "model"
    moved = "the families, and of the models within them," if unit == "family" else "the models"
    orders = f"all {found.n_orders:,} reorderings" if found.exact else f"{draws:,} random reorderings"
    tested = f"p compares with {orders} of {moved} over the horizontal axis"
    if rows is None or math.isnan(df):
        return f"The units are models, not pairs: {tested}."
    units = _counted(len(rows), unit)
    if shared(scores, families):
        units += ", on both sides of their pairs"
    elif partners is not None:
        units += f" and {_counted(len(partners), 'partner ' + partners.kind)}"
    else:
        units += ", with these partners only"
    return (
        f"The units are {units}, not pairs: the interval leaves out one at a time "
        f"(t with {df:.1f} degrees of freedom), {tested}."
    )


def _counted(n: int, noun: str) -> str:
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{n} {noun if n == 1 else plural}"
