"""Several factors of the models at once: which of them moves alignment, the others held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.relate.findings import Finding
from repalign.relate.jackknife import LEVEL, MIN_MODELS_LINE, Jackknife, labels_of, units_of
from repalign.relate.permutations import DRAWS, TIE, block_orders
from repalign.relate.scores import LOGGED, WORDS, Crossed, Models, Records, names_of, searched, stimuli, yardstick_label

# Shares take a regression for every set of factors.
MOST_FACTORS = 12
# Of an effect that varies this many times as much as it would alone, the text warns.
HIGH_VIF = 5.0
LEVELS = ["factor", "level", "n_models", "effect", "low", "high"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Effects(Finding):
    """Alignment of the models of one side, each the mean over its partners, regressed on several factors at once.

    `table`: one row per factor: factor, label, kind ("number" or "category"), log, df (columns), effect (change of
    alignment per standard deviation of the number) with its interval low and high (nan for a category: see `levels`),
    per_unit (per unit, or tenfold if log), spread (standard deviation over the models of what the factor adds), pvalue,
    partial_r2, share (of R^2) and vif. `levels`: one row per level of a category: factor, level, n_models, effect
    (against the mean of the levels), low, high. `points`: model, unit, alignment, fitted and the factors' values.

    Models that share a `unit` (a "run") count as one: `n_units` of this side and `n_partner_units` of the other, 0 if
    there are too few for intervals. `grouped`: some unit has several models.
    `n` counts models, `n_partners` their partners, `n_stimuli` what they were compared on.
    """

    kind = "effects"
    measure: str
    side: str
    levels: pd.DataFrame
    points: pd.DataFrame
    n_partners: int
    n_stimuli: int
    r2: float
    adjusted_r2: float
    residual_sd: float
    unit: str
    n_units: int
    n_partner_units: int
    grouped: bool

    @property
    def factors(self) -> tuple[str, ...]:
        """The factors, in the order in which they were asked for."""
        return tuple(self.table["factor"])

    @property
    def n(self) -> int:
        """The number of models."""
        return len(self.points)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes effects hard to tell apart."""
        tied = self.table.loc[self.table["vif"] > HIGH_VIF]
        named = ", ".join(f"{label} {vif:.1f}" for label, vif in zip(tied["label"], tied["vif"], strict=True))
        warning = f"Factors go together (variance inflation: {named}): which of them it is can hardly be told."
        return (warning,) if named else ()


def effects(
    table: pd.DataFrame, models: Models, factors: Sequence[str], side: str = "x", measure: str | None = None, *,
    log: Collection[str] = LOGGED, categories: Collection[str] = (), unit: str = "run",
    level: float = LEVEL, draws: int = DRAWS, seed: int = 0,
) -> Effects:  # fmt: skip
    """Which of several factors moves alignment, each with the others held.

    y = mean + sum over factors of X_f b_f + rest, by least squares over models; y is a model's mean over its partners.
    Numbers are in standard deviations over the models, words as deviations from the mean of their levels.

    * Intervals leave out one unit at a time, on both sides of the pairs, and fit again (`relate.infer`'s jackknife).
    * p of a factor, two-sided: F of its columns against F when what the other factors leave over changes places over
      units (Freedman & Lane 1983), p = (C + 1) / (draws + 1). If a unit has several models, its left-overs change
      place as a whole, with units of as many models, and their sign together (Winkler et al. 2014), which takes them
      as symmetric.
    * partial R^2: of what the others leave, the share that the factor takes. share: its part of R^2, averaged over all
      orders in which factors may enter (Lindeman, Merenda & Gold 1980); shares sum to R^2.
    * vif: how much the variance of its effect grows because factors go together (Fox & Monette 1992).

    Parameters
    ----------
    table : the table of an alignment; its "max" rows (layer search) of `measure` are used.
    models : records of the models. One that lacks a factor is left out, and named.
    factors : "n_parameters", "family", "objective", "modality", and names of `scores` and `factors`; at most 12.
    side : "x", "y", or "both" if all models were compared with all others.
    measure : the first of the table by default.
    log : numbers on log10. categories : numbers to be taken as words.
    unit : a factor whose value makes several models one unit; those without it stand alone.
    level, draws, seed : of the intervals; of the random orders.

    Returns effects without intervals (nan) if a side's models make fewer than three units, or if an effect cannot
    be told without one of the units.

    Raises
    ------
    RepalignError : unknown side, measure or factor; one that does not vary; factors that say the same; too few models.
    """
    from scipy.linalg import block_diag

    pairs, measure = searched(table, measure, side)
    records = Records.of(models)
    values, names, left_out = _values(records, names_of(pairs, side), factors, categories, log)
    every = Crossed.of(pairs, side, names)
    scores = every.defined()
    left_out += [f"{n} (no defined score)" for n in every.rows if n not in scores.rows]
    kept = [names.index(n) for n in scores.rows]
    made = [Factor.of(f, [values[f][i] for i in kept], f in log) for f in factors]
    _refuse_confounded(made)
    runs = {name: label for name in records if (label := records.word(name, unit))}
    y, design = scores.means(), _design(made)
    (n, p), (coefficients, rest, r2) = design.shape, _least_squares(design, y)
    units = units_of(runs, scores.rows, scores.columns, least=(MIN_MODELS_LINE, 0))
    sides = [side for side in units if side is not None] if units[0] else []
    contrasts = np.asarray(block_diag(np.empty((0, 1)), *(f.contrasts for f in made)))  # (effects, columns of the design)
    low, high, _ = Jackknife.over(sides, partial(_without, design, contrasts, scores)).interval(np.asarray, level)
    labels = labels_of(scores.rows, runs)
    grouped = len(np.unique(labels)) < n
    spreads = [float((design[:, own] @ coefficients[own]).std()) for own in _own(made)]
    orders, signs = block_orders(labels, draws, seed)
    tests = [_tested(design, y, own, orders, signs) for own in _own(made)]
    more = np.column_stack([tests, _shares(made, y), _inflation(made)])
    found, levels = _rows(made, spreads, np.column_stack([contrasts @ coefficients, low, high]), more)
    points = {"model": scores.rows, "unit": [runs.get(m, m) for m in scores.rows], "alignment": y}
    points |= {"fitted": design @ coefficients, **{f.name: f.values for f in made}}
    return Effects(
        measure=measure, left_out=tuple(left_out), level=level, draws=draws, seed=seed, side=side,
        table=found, levels=levels, points=pd.DataFrame(points), n_partners=len(scores.columns), n_stimuli=stimuli(pairs),
        r2=r2, adjusted_r2=1 - (1 - r2) * (n - 1) / (n - p), residual_sd=math.sqrt(rest / (n - p)),
        unit=unit if grouped else "model", n_units=len(sides[0]) if sides else 0,
        n_partner_units=len(sides[1]) if len(sides) > 1 else 0, grouped=grouped,
    )  # fmt: skip


# --- factors as columns of a design --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of n models.

    A number x has one column, (x - mean) / sd over the models, x on log10 if `log`. Words of L levels have L - 1 columns:
    1 at the level, -1 at the last one, so that the effects of the L levels sum to 0. `contrasts` (effects, columns) turn
    the coefficients of the columns into effects: of one sd, or of every level.
    """

    name: str
    log: bool
    values: tuple[Any, ...]  # of the models
    levels: tuple[str, ...]  # () for a number
    sd: float  # of a number, on log10 if `log`; nan for words
    columns: np.ndarray
    contrasts: np.ndarray

    @classmethod
    def of(cls, name: str, values: Sequence[Any], log: bool) -> Factor:
        """A factor from the values of the models. Raises RepalignError if all models have the same, or none shares one."""
        if len(set(values)) < 2:
            raise RepalignError(
                f"all models have the same {name!r}", got=values[0] if values else "no model",
                expected="two values or more among the models that have all factors",
                remedy="leave this factor out, or another one that few models have",
            )  # fmt: skip
        if all(isinstance(v, float) for v in values):
            x = np.log10(values) if log else np.array(values, float)
            sd = float(x.std())
            return cls(name, log, tuple(values), (), sd, ((x - x.mean()) / sd)[:, None], np.ones((1, 1)))
        levels = _in_order(values)
        if len(levels) > len(values) // 2 + 1:
            raise RepalignError(
                f"{name!r} tells almost every model from every other", expected="a word that models share, or a number",
                got=f"{len(levels)} words for {len(values)} models",
            )  # fmt: skip
        sums = np.vstack([np.eye(len(levels) - 1), -np.ones(len(levels) - 1)])
        at = [levels.index(str(v)) for v in values]
        return cls(name, False, tuple(values), levels, math.nan, sums[at], sums)

    @property
    def n_columns(self) -> int:
        return self.columns.shape[1]


def _in_order(values: Sequence[Any]) -> tuple[str, ...]:
    """Words as they come, numbers among themselves from the smallest."""
    words = tuple(dict.fromkeys(map(str, values)))
    try:
        return tuple(sorted(words, key=float))
    except ValueError:
        return words


def _values(
    records: Records, names: Sequence[str], factors: Sequence[str], categories: Collection[str], log: Collection[str]
) -> tuple[dict[str, list[Any]], list[str], list[str]]:
    """The values of every factor for the models that have all of them, these models, and why others are left out.

    Raises RepalignError for a factor that is asked for twice, too many of them, or one that no model has.
    """
    if not 1 <= len(factors) <= MOST_FACTORS or len(set(factors)) < len(factors):
        asked = ", ".join(factors) or "none"
        raise RepalignError("these factors make no regression", expected=f"1 to {MOST_FACTORS} different names", got=asked)
    found = {f: {name: _value(records, name, f, f in categories) for name in names} for f in factors}
    for f, given in found.items():
        if all(v is None for v in given.values()):
            raise RepalignError(
                f"no model of this side has a factor {f!r}", expected="a number or a word of at least two models", got=f,
                remedy=did_you_mean(f, [*records.known(names, "factors", "scores"), *WORDS]),
            )  # fmt: skip
        if f in log:
            given |= {name: None for name, v in given.items() if isinstance(v, float) and v <= 0}
    lacking = {name: [f for f in factors if found[f][name] is None] for name in names}
    left_out = [f"{name} (no {'positive ' * (f[0] in log)}{f[0]})" for name, f in lacking.items() if f]
    there = [name for name in names if not lacking[name]]
    return {f: [found[f][name] for name in there] for f in factors}, there, left_out


def _value(records: Records, name: str, key: str, category: bool) -> float | str | None:
    """A number, unless it is asked for as a word; else a word. None if there is neither."""
    number = records.number(name, key)
    if category or number is None:
        return records.word(name, key) or (None if number is None else f"{number:g}")
    return number


def _refuse_confounded(factors: Sequence[Factor]) -> None:
    """Refuse factors of which one follows from the others, and name those that are in it."""

    def rank(some: Sequence[Factor]) -> int:
        return int(np.linalg.matrix_rank(_design(some, n)))

    n, wanted = len(factors[0].columns), 1 + sum(f.n_columns for f in factors)
    if n <= wanted:
        raise RepalignError(
            "too few models for these factors", got=f"{n} models that have all of them", remedy="take fewer factors",
            expected=f"more than {wanted} models, one coefficient each for the mean and {wanted - 1} columns",
        )  # fmt: skip
    full = rank(factors)
    if full < wanted:
        tied = [f.name for f in factors if rank([g for g in factors if g is not f]) + f.n_columns > full]
        raise RepalignError(
            "factors cannot be told apart: one follows from the others", remedy="leave one of them out",
            expected="models that differ in one while the others stay", got=f"{' and '.join(tied)} say the same of these models",
        )  # fmt: skip


def _inflation(factors: Sequence[Factor]) -> list[float]:
    """How much less sure each effect is because factors go together: det(R_f) det(R_rest) / det(R), to the power 1/columns.

    R are correlation matrices of columns. For a number it is the variance inflation factor; 1 if nothing goes together.

    Source: J. Fox and G. Monette, Journal of the American Statistical Association 87 (1992), 178-183.
    """
    # det(R_rest) / det(R) is the determinant of the factor's block of the inverse of R (Jacobi).
    r = np.atleast_2d(np.corrcoef(_design(factors)[:, 1:], rowvar=False))
    inverse, blocks = np.linalg.inv(r), [np.ix_(own - 1, own - 1) for own in _own(factors)]
    together = [float(np.linalg.det(r[block]) * np.linalg.det(inverse[block])) for block in blocks]
    return [det ** (1 / f.n_columns) for det, f in zip(together, factors, strict=True)]


def _rows(
    factors: Sequence[Factor], spreads: Sequence[float], ends: np.ndarray, more: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row for every factor, and one for every level of those that have levels.

    `ends` are effect, low and high of all contrasts, (contrasts, 3); `more` the last columns of the factors, (factors, 4).
    """
    rows, levels = [], []
    for f, spread, last in zip(factors, spreads, more, strict=True):
        here, ends = np.split(ends, [len(f.contrasts)])
        shown = (*here[0], here[0, 0] / f.sd)
        if f.levels:
            counts = [sum(str(v) == one for v in f.values) for one in f.levels]
            levels += [(f.name, one, count, *row) for one, count, row in zip(f.levels, counts, here, strict=True)]
            shown = (math.nan,) * 4
        kind = "category" if f.levels else "number"
        rows.append((f.name, yardstick_label(f.name), kind, f.log, f.n_columns, *shown, spread, *last))
    columns = ["factor", "label", "kind", "log", "df", "effect", "low", "high", "per_unit", "spread"]
    columns += ["pvalue", "partial_r2", "share", "vif"]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(levels, columns=LEVELS)


# --- least squares -------------------------------------------------------------------------------


def _least_squares(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Coefficients, the residual sum of squares, and R^2, nan if y is constant."""
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    rest, total = float(((y - design @ coefficients) ** 2).sum()), float(((y - y.mean()) ** 2).sum())
    flat = total <= 1e-24 * max(float(y @ y), 1e-300)
    return coefficients, rest, math.nan if flat else 1 - rest / total


def _design(factors: Sequence[Factor], n: int | None = None) -> np.ndarray:
    return np.hstack([np.ones((n or len(factors[0].columns), 1)), *(f.columns for f in factors)])


def _own(factors: Sequence[Factor]) -> list[np.ndarray]:
    """Which columns of the design are each factor's."""
    ends = 1 + np.cumsum([f.n_columns for f in factors])
    return [np.arange(end - f.n_columns, end) for f, end in zip(factors, ends, strict=True)]


def _shares(factors: Sequence[Factor], y: np.ndarray) -> list[float]:
    """Each factor's part of R^2: what it adds to those before it, averaged over all orders of the factors.

    Source: R. H. Lindeman, P. F. Merenda and R. Z. Gold, Introduction to Bivariate and Multivariate Analysis (1980);
    U. Groemping, Journal of Statistical Software 17 (2006), issue 1.
    """
    k = len(factors)
    sets = [some for size in range(k + 1) for some in itertools.combinations(range(k), size)]
    r2 = {some: _least_squares(_design([factors[i] for i in some]), y)[2] if some else 0.0 for some in sets}
    shares = [0.0] * k
    for some in sets:
        for i in set(range(k)) - set(some):
            more = r2[tuple(sorted((*some, i)))] - r2[some]
            shares[i] += more / (k * math.comb(k - 1, len(some)))
    return shares


# --- what is inferred ----------------------------------------------------------------------------


def _without(design: np.ndarray, contrasts: np.ndarray, scores: Crossed, unit: frozenset[str]) -> np.ndarray:
    """The effects without one unit; nan for effects that cannot be told then."""
    means = scores.means(unit)
    kept = np.isfinite(means)
    inverse = np.linalg.pinv(design[kept], rcond=1e-10)
    possible = np.abs(contrasts @ (inverse @ design[kept]) - contrasts).max(1) < 1e-6
    return np.where(possible, contrasts @ (inverse @ means[kept]), math.nan)


def _tested(
    design: np.ndarray, y: np.ndarray, own: np.ndarray, orders: np.ndarray, signs: np.ndarray
) -> tuple[float, float]:
    """p of the columns `own` with the others held, and their partial R^2; nan if y follows from the others.

    F is monotone in SS / rest, SS what the columns take of the residuals of the others, so that ratio is compared.

    Source: D. Freedman and D. Lane, Journal of Business and Economic Statistics 1 (1983), 292-298; A. M. Winkler et al.,
    NeuroImage 92 (2014), 381-397, for it among other schemes, and for whole blocks that change places or signs.
    """
    basis = np.linalg.qr(np.delete(design, own, axis=1))[0]
    left = y - basis @ (basis.T @ y)
    columns = np.linalg.qr(design[:, own] - basis @ (basis.T @ design[:, own]))[0]
    if float(left @ left) <= 1e-20 * max(float(y @ y), 1e-300):
        return math.nan, math.nan

    def ratio(rows: np.ndarray) -> np.ndarray:
        taken = ((rows @ columns) ** 2).sum(-1)
        return taken / ((rows**2).sum(-1) - ((rows @ basis) ** 2).sum(-1))  # SS / (SS + rest of the full model)

    observed = float(ratio(left))
    as_strong = int((ratio(left[orders] * signs) >= observed - TIE).sum())
    return (as_strong + 1) / (len(orders) + 1), observed
