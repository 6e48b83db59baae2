"""The trend: points from the table, the line, and what is inferred from it; the same at every point of a curve.

One point is one model of one side: its alignment averaged over the models of the other side. The line is ordinary
least squares over these points, which for complete data is the line over all pairs. What is inferred from it takes
models, or families of models, as its units, on both sides of a pair, and never the pairs (docs/trends.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from repalign.errors import RepalignError, did_you_mean
from repalign.models import RELEASED
from repalign.relate import sentences
from repalign.relate.findings import Against, Fitted
from repalign.relate.jackknife import LEVEL, MIN_MODELS_LINE, Fit, Jackknife, labels_of, ranks, said_by, units_of
from repalign.relate.permutations import DRAWS, FEW_ORDERS, FamilyOrders, family_means
from repalign.relate.saturation import Saturation, saturation
from repalign.relate.scores import (
    LOGGED,
    PARAMETERS,
    Crossed,
    Models,
    Records,
    described,
    names_of,
    partners_of,
    searched,
)

NOTHING = (math.nan, math.nan)
NEARLY_PERFECT = 0.9  # a rank correlation that one swap in the order moves far on Fisher's scale


@dataclass(frozen=True)
class FamilySlope:
    """The slope within families (all on their own level), or between the means of families, and its p-value."""

    slope: float
    pvalue: float
    n_models: int
    n_families: int


@dataclass(frozen=True, eq=False)
class TrendInference:
    """What a trend says beyond its own models; numbers are nan for too few units.

    `unit` is "model" or "family", `n_units` their number; `partner_unit` and `n_partner_units` the same for the other
    side, None and 0 if the partners are taken as they are (fewer than three) or are one set of units with the models
    (`one_set`). Intervals are of 95 %; `df` are the slope's degrees of freedom. `n_orders` reorderings of the covariate
    are possible, all of which were visited if `exact`, else `draws` random ones from `seed`. `within` and `between`
    split the slope by families, None if families are too few or too small. `method` says how, in a sentence.
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
    one_set: bool
    df: float
    n_orders: int
    exact: bool
    draws: int
    seed: int
    within: FamilySlope | None
    between: FamilySlope | None
    lines: Jackknife = field(repr=False)

    @property
    def method(self) -> str:
        """How it was inferred, in a sentence."""
        return sentences.method(self)

    @property
    def says(self) -> str:
        """What the interval says that the answer rests on: "more", "less", "open", or "" without one.

        That of the rank correlation, which one model far away does not spoil; where the order is nearly perfect it is wide or
        undefined, and that of the slope speaks (docs/trends.md).
        """
        return said_by(*(self.slope_interval if self.by_line else self.spearman_interval))

    @property
    def by_line(self) -> bool:
        """Whether the answer rests on the interval of the slope."""
        return abs(self.spearman) >= NEARLY_PERFECT or math.isnan(self.spearman_interval[0])

    def band(self, x: ArrayLike, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """The interval of the line at x for other models with these partners: the jackknife over `unit` alone."""
        return self.lines.interval(lambda fit: fit.predict(x), level, sides=1)[:2]


def infer(
    scores: Crossed, x: ArrayLike, families: Mapping[str, str] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> TrendInference | None:
    """Slope and rank correlation of the rows' mean scores on x, with intervals and p-values over models or families.

    Parameters
    ----------
    scores : models by partners.
    x : (rows,) covariate of every row, finite.
    families : the family of a model by its name, rows and partners alike; models without one stand alone.
    draws, seed : random reorderings if there are more than 10,000 possible ones.

    Returns None if no line can be drawn. Raises RepalignError for a covariate of the wrong length or not finite.
    """
    covariate, families = np.asarray(x, float), families or {}
    if covariate.shape != (len(scores.rows),) or not np.isfinite(covariate).all():
        raise RepalignError(
            "the covariate does not fit the models", expected=f"{len(scores.rows)} finite numbers",
            got=f"shape {covariate.shape}, {int((~np.isfinite(covariate)).sum())} not finite",
        )  # fmt: skip
    covariate, scores = covariate[scores.count.sum(1) > 0], scores.defined()
    # A line needs three models without any one unit; partners are only averaged over.
    units = units_of(families, scores.rows, scores.columns, least=(MIN_MODELS_LINE, 0))
    rows, partners = units[0], units[1] if units[0] and len(units) > 1 else None
    lines = Jackknife.over((rows, partners), partial(_refit, scores, covariate))
    fit = lines.full
    if fit is None:
        return None
    means, kin = scores.means(), labels_of(scores.rows, families)
    # One set of orders for both p-values: the slope's and the rank correlation's differ in nothing but the ranks.
    orders = FamilyOrders.of(kin if rows and rows.kind == "family" else np.arange(len(means)), draws, seed)
    low, high, df = lines.interval(lambda one: one.slope)
    return TrendInference(
        slope=fit.slope, slope_interval=(low, high), slope_pvalue=orders.pvalue(covariate, means),
        spearman=fit.spearman, spearman_interval=lines.rank_interval(lambda one: (one.spearman, one.n))[:2],
        spearman_pvalue=orders.pvalue(ranks(covariate), ranks(means)),
        unit=rows.kind if rows else "model", n_units=len(rows) if rows else len(means),
        partner_unit=partners.kind if partners else None, n_partner_units=len(partners) if partners else 0,
        one_set=len(units) == 1, df=df, n_orders=orders.orders.n, exact=orders.orders.exact, draws=draws, seed=seed,
        within=_within(covariate, means, kin, draws, seed), between=_between(covariate, means, kin, draws, seed), lines=lines,
    )  # fmt: skip


def _refit(scores: Crossed, x: np.ndarray, without: frozenset[str]) -> Fit | None:
    means = scores.means(without)
    kept = np.isfinite(means)
    return Fit.of(x[kept], means[kept])


def _within(x: np.ndarray, y: np.ndarray, labels: np.ndarray, draws: int, seed: int) -> FamilySlope | None:
    """One slope for all families, each on its own level: sum of dx dy over sum of dx^2, d from the family's mean."""
    dx, dy = (v - family_means(v, labels)[labels] for v in (x, y))
    sizes, spread = np.bincount(labels), float(dx @ dx)
    if len(sizes) < 2 or spread <= 1e-24 * float(x @ x) or float(dy @ dy) <= 1e-24 * float(y @ y):
        return None
    found = FamilyOrders.of(labels, draws, seed, over=False)
    if found.orders.n < FEW_ORDERS:
        return None
    several = sizes > 1
    return FamilySlope(float(dx @ dy) / spread, found.pvalue(dx, dy), int(sizes[several].sum()), int(several.sum()))


def _between(x: np.ndarray, y: np.ndarray, labels: np.ndarray, draws: int, seed: int) -> FamilySlope | None:
    """The line through the means of the families, each counting once."""
    means = family_means(x, labels), family_means(y, labels)
    families, fit = len(means[0]), Fit.of(*means)
    if families == len(x) or math.factorial(families) < FEW_ORDERS or fit is None:
        return None
    return FamilySlope(fit.slope, FamilyOrders.of(np.arange(families), draws, seed).pvalue(*means), len(x), families)


# --- the trend -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Trend(Against, Fitted):
    """Alignment of the models of one side against their size or competence.

    `table`, also called `points`: one row per model with the columns model, family, x (in its own unit), alignment
    (mean over the partners), spread (their standard deviation), chance (mean chance level), n_partners, n_undefined.
    `fit` is over log10(x) if `log`; `inference` has its intervals and p-values over models or families. Both are
    None if no line can be drawn; `slope`, `intercept`, `r` and `spearman` are then nan. `families` has a fit for every
    family of three models or more. `saturation`, where it was asked for, is a curve that ends, or why there is none. `text` says
    all that in sentences.
    """

    kind = "trend"
    log: bool
    inference: TrendInference | None = None
    families: Mapping[str, Fit] = field(default_factory=dict)
    saturation: Saturation | str | None = None

    @property
    def points(self) -> pd.DataFrame:
        """One row per model."""
        return self.table

    @property
    def n(self) -> int:
        """The number of models with a point."""
        return len(self.table)

    @property
    def has_band(self) -> bool:
        """Whether there are enough models, or families, for an interval."""
        return self.inference is not None and not math.isnan(self.inference.df)

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The line at x, x in its own unit; nan without a fit."""
        u = scaled(x, self.log)
        return self.fit.predict(u) if self.fit else np.full(u.shape, math.nan)

    def band(self, x: ArrayLike, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the interval of the line at x, for other models with these partners; else nan."""
        u = scaled(x, self.log)
        nothing = np.full(u.shape, math.nan)
        return self.inference.band(u, level) if self.inference else (nothing, nothing)


def scaled(x: ArrayLike, log: bool) -> np.ndarray:
    """x as the line takes it."""
    return np.log10(np.asarray(x, float)) if log else np.asarray(x, float)


def trend(
    table: pd.DataFrame, models: Models, against: str = PARAMETERS, side: str = "x", measure: str | None = None, *,
    log: bool | None = None, lower_is_better: bool | None = None, label: str | None = None, saturating: bool = False,
    draws: int = DRAWS, seed: int = 0,
) -> Trend:  # fmt: skip
    """Relate the alignment of the models of one side to their parameters or one of their scores.

    Parameters
    ----------
    table : the table of an alignment; its "max" rows (layer search) of `measure` are used.
    models : records of the models, as in the run's description.
    against : "n_parameters", the name of a score, or of a factor that is a number.
    side : "x" or "y"; "both" if all models were compared with all others.
    measure : the first of the table by default.
    log : fit on log10; by default for parameters, width and training steps.
    lower_is_better, label : facts of a score that `COMPETENCES` does not know.
    saturating : fit a curve that ends, too (`relate.saturation`), and say whether a straight line does as well.
    draws, seed : random reorderings for the p-values, if there are more than 10,000 possible ones.

    Raises
    ------
    RepalignError : unknown side or measure, or no model of this side has such a number.
    """
    pairs, measure = searched(table, measure, side)
    records = Records.of(models)
    log = against in LOGGED if log is None else log
    points, left_out = _points(pairs, records, against, side, log)
    if points.empty:
        known = records.known(names_of(pairs, side), "scores", "factors")
        raise RepalignError(
            f"no model of side {side} has {'a positive' if log else 'a'} {against!r}",
            expected="n_parameters or a score of at least one model", got=against, remedy=did_you_mean(against, known),
        )  # fmt: skip
    x, y, families = scaled(points["x"], log), points["alignment"].to_numpy(float), {}
    for family, rows in points.groupby("family", sort=False):
        fit = Fit.of(x[rows.index], y[rows.index]) if family and len(rows) < len(points) else None
        if fit is not None:
            families[str(family)] = fit
    bent: Saturation | str | None = None
    if saturating:
        bent = "No saturating curve: a year is no quantity with a zero." if against == RELEASED else None
    scores, (label, lower) = Crossed.of(pairs, side, points["model"].tolist()), described(against, label, lower_is_better)
    if saturating and bent is None:
        bent = saturation(points["x"], y, log=log, lower_is_better=lower, seed=seed)
    return Trend(
        measure=measure, table=points, left_out=left_out, draws=draws, seed=seed, fit=Fit.of(x, y),
        against=against, label=label, side=side, log=log, lower_is_better=lower, n_stimuli=int(pairs["n"].iloc[0]),
        inference=infer(scores, x, records.families, draws=draws, seed=seed), families=families, saturation=bent,
    )  # fmt: skip


def _points(
    pairs: pd.DataFrame, records: Records, against: str, side: str, log: bool
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One row per model that has the number and a defined score, and why others are left out."""
    rows, left_out = [], []
    for name, found in partners_of(pairs, side, ("statistic", "null_mean")).items():
        x, scores = records.number(name, against), found["statistic"].to_numpy(float)
        defined = np.isfinite(scores)
        if x is None or (log and x <= 0):
            left_out.append(f"{name} (no {against})")
        elif not defined.any():
            left_out.append(f"{name} (no defined score)")
        else:
            spread = float(scores[defined].std(ddof=1)) if defined.sum() > 1 else math.nan
            chance = float(found["null_mean"].to_numpy(float)[defined].mean())
            mean, n = float(scores[defined].mean()), int(defined.sum())
            rows.append((name, records.families.get(name, ""), x, mean, spread, chance, n, len(scores) - n))
    columns = ["model", "family", "x", "alignment", "spread", "chance", "n_partners", "n_undefined"]
    return pd.DataFrame(rows, columns=columns), tuple(left_out)
