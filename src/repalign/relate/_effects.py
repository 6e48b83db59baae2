"""Several factors at once: which of them moves alignment, the others held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError
from repalign.models import ModelRecord
from repalign.relate._crossed import Crossed, Units, sides_of_units
from repalign.relate._effects_words import sentences
from repalign.relate._factors import Factor, inflation, make, refuse_confounded, values_of
from repalign.relate._inference import DRAWS, LEVEL, Jackknife
from repalign.relate._pairs import LOGGED, facts, names_of, searched, stimuli, word
from repalign.relate._permute import TIE

SIDES = ("x", "y", "both")
# Of an effect that varies this many times as much as it would alone, the text warns.
HIGH_VIF = 5.0


@dataclass(frozen=True, eq=False)
class Effects:
    """Alignment of the models of one side, each the mean over its partners, regressed on several factors at once.

    `table`: one row per factor: factor, label, kind ("number" or "category"), log, df (columns), effect (change of
    alignment per standard deviation of the number) with its interval low and high (nan for a category: see `levels`),
    per_unit (per unit, or tenfold if log), spread (standard deviation over the models of what the factor adds), pvalue,
    partial_r2, share (of R^2) and vif. `levels`: one row per level of a category: factor, level, n_models, effect
    (against the mean of the levels), low, high. `points`: model, unit, alignment, fitted and the factors' values.

    Models that share a `unit` (a "run") count as one: `n_units` of this side and `n_partner_units` of the other, 0 where
    there are too few for intervals. `grouped`: some unit has several models.
    `n` counts models, `n_partners` their partners, `n_stimuli` what they were compared on.
    """

    measure: str
    side: str
    factors: tuple[str, ...]
    n: int
    n_partners: int
    n_stimuli: int
    r2: float
    adjusted_r2: float
    residual_sd: float
    table: pd.DataFrame
    levels: pd.DataFrame
    points: pd.DataFrame
    level: float
    unit: str
    n_units: int
    n_partner_units: int
    grouped: bool
    draws: int
    seed: int
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    text: str = ""


def effects(
    table: pd.DataFrame,
    models: Sequence[Mapping[str, Any] | ModelRecord],
    factors: Sequence[str],
    side: str = "x",
    measure: str | None = None,
    *,
    log: Collection[str] = LOGGED,
    categories: Collection[str] = (),
    unit: str = "run",
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Effects:
    """Which of several factors moves alignment, each with the others held.

    y = mean + sum over factors of X_f b_f + rest, by least squares over models; y is a model's mean over its partners.
    Numbers are in standard deviations over the models, words as deviations from the mean of their levels.

    * Intervals leave out one unit at a time, on both sides of the pairs, and fit again (`relate.infer`'s jackknife).
    * p of a factor, two-sided: F of its columns against F where what the other factors leave over changes places over
      units (Freedman & Lane 1983), p = (C + 1) / (draws + 1). Where a unit has several models, its left-overs change
      place as a whole, with units of as many models, and their sign together (Winkler et al. 2014), which takes them
      as symmetric.
    * partial R^2: of what the others leave, the share that the factor takes. share: its part of R^2, averaged over all
      orders in which factors may enter (Lindeman, Merenda & Gold 1980); shares sum to R^2.
    * vif: how much the variance of its effect grows because factors go together (Fox & Monette 1992).

    Parameters
    ----------
    table : the table of an alignment; its "max" rows (layer search) of `measure` are used.
    models : records of the models. One that lacks a factor is left out, and told.
    factors : "n_parameters", "family", "objective", "modality", and names of `scores` and `factors`; at most 12.
    side : "x", "y", or "both" where all models were compared with all others.
    measure : the first of the table by default.
    log : numbers on log10. categories : numbers to be taken as words.
    unit : a factor whose value makes several models one unit; those without it stand alone.
    level, draws, seed : of the intervals; of the random orders.

    Returns effects without intervals (nan) where a side's models make fewer than three units, or where an effect cannot
    be told without one of the units.

    Raises
    ------
    RepalignError : unknown side, measure or factor; one that does not vary; factors that say the same; too few models.
    """
    if side not in SIDES:
        raise RepalignError(f"no side {side!r}", expected="x, y or both", got=side)
    pairs = searched(table, measure)
    records = {m["name"]: m for m in map(facts, models)}
    values, names, left_out = values_of(records, names_of(pairs, side), factors, categories, log)
    every = Crossed.of(pairs, side, names)
    scores = every.defined()
    left_out += tuple(f"{n} (no defined score)" for n in every.rows if n not in scores.rows)
    kept = [names.index(n) for n in scores.rows]
    made = [make(f, [values[f][i] for i in kept], f in log) for f in factors]
    refuse_confounded(made)
    runs = {name: label for name, record in records.items() if (label := word(record, unit))}
    y, design = scores.means(), _design(made)
    fit = _Fit.of(design, y)
    rows, partners = sides_of_units(scores, runs)
    low, high = _intervals(made, design, scores, rows, partners, fit, level)
    labels = _labels(scores.rows, runs)
    grouped = len(np.unique(labels)) < len(labels)
    orders, signs = _orders(labels, draws, seed)
    tests = [_tested(design, y, own, orders, signs) for own in _own(made)]
    told, levels = _rows(made, fit, low, high)
    found = pd.DataFrame(told).assign(
        pvalue=[p for p, _ in tests], partial_r2=[r for _, r in tests], share=_shares(made, y), vif=inflation(made)
    )
    n, p = design.shape
    points = {"model": scores.rows, "unit": [runs.get(m, m) for m in scores.rows], "alignment": y}
    points |= {"fitted": design @ fit.coefficients, **{f.name: f.values for f in made}}
    result = Effects(
        measure=str(pairs["measure"].iloc[0]),
        side=side,
        factors=tuple(factors),
        n=n,
        n_partners=len(scores.columns),
        n_stimuli=stimuli(pairs),
        r2=fit.r2,
        adjusted_r2=1 - (1 - fit.r2) * (n - 1) / (n - p),
        residual_sd=math.sqrt(fit.rest / (n - p)),
        table=found,
        levels=pd.DataFrame(levels, columns=["factor", "level", "n_models", "effect", "low", "high"]),
        points=pd.DataFrame(points),
        level=level,
        unit=unit if grouped else "model",
        n_units=len(rows) if rows else 0,
        n_partner_units=len(partners) if rows and partners else 0,
        grouped=grouped,
        draws=draws,
        seed=seed,
        left_out=left_out,
        warnings=_warnings(found),
    )
    return replace(result, text=sentences(result))


def _rows(
    factors: Sequence[Factor], fit: _Fit, low: np.ndarray, high: np.ndarray
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for every factor, and one for every level of those that have levels; the ends are one per contrast."""
    rows, levels, at = [], [], 0
    for f, own in zip(factors, _own(factors), strict=True):
        told, here = f.contrasts @ fit.coefficients[own], slice(at, at + len(f.contrasts))
        at = here.stop
        row = {"factor": f.name, "label": f.label, "kind": f.kind, "log": f.log, "df": f.n_columns}
        if f.levels:
            row |= dict.fromkeys(("effect", "low", "high", "per_unit"), math.nan)
            for one, effect, lo, hi in zip(f.levels, told, low[here], high[here], strict=True):
                count = sum(str(v) == one for v in f.values)
                levels.append({"factor": f.name, "level": one, "n_models": count, "effect": effect, "low": lo, "high": hi})
        else:
            row |= {"effect": told[0], "low": low[here][0], "high": high[here][0], "per_unit": told[0] / f.sd}
        rows.append({**row, "spread": float((f.columns @ fit.coefficients[own]).std())})
    return rows, levels


# --- least squares -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Fit:
    """Least squares of y on a design; `rest` is the residual sum of squares. r2 is nan where y is constant."""

    coefficients: np.ndarray
    rest: float
    r2: float

    @classmethod
    def of(cls, design: np.ndarray, y: np.ndarray) -> _Fit:
        coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
        rest = float(((y - design @ coefficients) ** 2).sum())
        total = float(((y - y.mean()) ** 2).sum())
        flat = total <= 1e-24 * max(float(y @ y), 1e-300)
        return cls(coefficients, rest, math.nan if flat else 1 - rest / total)


def _design(factors: Sequence[Factor]) -> np.ndarray:
    return np.hstack([np.ones((len(factors[0].columns), 1)), *(f.columns for f in factors)])


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
    r2: dict[tuple[int, ...], float] = {(): 0.0}
    for size in range(1, k + 1):
        for some in itertools.combinations(range(k), size):
            r2[some] = _Fit.of(_design([factors[i] for i in some]), y).r2
    shares = []
    for i in range(k):
        others = [j for j in range(k) if j != i]
        part = 0.0
        for size in range(k):
            weight = 1 / (k * math.comb(k - 1, size))
            for some in itertools.combinations(others, size):
                part += weight * (r2[tuple(sorted((*some, i)))] - r2[some])
        shares.append(part)
    return shares


# --- what is inferred ----------------------------------------------------------------------------


def _intervals(
    factors: Sequence[Factor], design: np.ndarray, scores: Crossed, rows: Units | None, partners: Units | None,
    fit: _Fit, level: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Ends of the interval of every effect that is told, in the order of the factors and their contrasts."""
    contrasts = []
    for f, own in zip(factors, _own(factors), strict=True):
        padded = np.zeros((len(f.contrasts), design.shape[1]))
        padded[:, own] = f.contrasts
        contrasts.append(padded)
    told = np.vstack(contrasts)  # (effects, columns of the design)
    sides = [side for side in (rows, partners) if side is not None] if rows else []
    refits = tuple(tuple(_without(design, told, scores, unit) for unit in side.members) for side in sides)
    low, high, _ = Jackknife(told @ fit.coefficients, refits).interval(np.asarray, level)
    return low, high


def _without(design: np.ndarray, told: np.ndarray, scores: Crossed, unit: frozenset[str]) -> np.ndarray:
    """The effects without one unit; nan for those that cannot be told then."""
    means = scores.means(unit)
    kept = np.isfinite(means)
    inverse = np.linalg.pinv(design[kept], rcond=1e-10)
    told_from = told @ (inverse @ design[kept])
    possible = np.abs(told_from - told).max(1) < 1e-6
    return np.where(possible, told @ (inverse @ means[kept]), math.nan)


def _labels(names: Sequence[str], runs: Mapping[str, str]) -> np.ndarray:
    """0 ... G - 1 by unit; a model without one is alone."""
    keys = [("", runs[n]) if n in runs else (n, "") for n in names]
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([order[key] for key in keys])


def _orders(labels: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random orders of the models, (draws, n), and the signs that go with them.

    Units change places with units of as many models, each as a whole; units of several models change sign too.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == g) for g in range(int(labels.max()) + 1)]
    orders, signs = np.empty((draws, len(labels)), int), np.ones((draws, len(labels)))
    for size in {len(m) for m in members}:
        alike = np.array([m for m in members if len(m) == size])  # (units, size)
        places = rng.permuted(np.tile(np.arange(len(alike)), (draws, 1)), axis=1)
        orders[:, alike] = alike[places]
        if size > 1:
            signs[:, alike] = rng.choice([-1.0, 1.0], (draws, len(alike), 1))
    return orders, signs


def _tested(
    design: np.ndarray, y: np.ndarray, own: np.ndarray, orders: np.ndarray, signs: np.ndarray
) -> tuple[float, float]:
    """p of the columns `own` with the others held, and their partial R^2; nan where y follows from the others.

    F is monotone in SS / rest, SS what the columns take of the residuals of the others, so that ratio is compared.

    Source: D. Freedman and D. Lane, Journal of Business and Economic Statistics 1 (1983), 292-298; A. M. Winkler et al.,
    NeuroImage 92 (2014), 381-397, for it among other schemes, and for whole blocks that change places or signs.
    """
    others = np.delete(design, own, axis=1)
    basis = np.linalg.qr(others)[0]
    left = y - basis @ (basis.T @ y)
    columns = np.linalg.qr(design[:, own] - basis @ (basis.T @ design[:, own]))[0]
    if float(left @ left) <= 1e-20 * max(float(y @ y), 1e-300):
        return math.nan, math.nan

    def ratio(rows: np.ndarray) -> np.ndarray:
        taken = ((rows @ columns) ** 2).sum(-1)
        rest = (rows**2).sum(-1) - ((rows @ basis) ** 2).sum(-1)
        return taken / rest  # SS / (SS + rest of the full model)

    observed = float(ratio(left))
    as_strong = int((ratio(left[orders] * signs) >= observed - TIE).sum())
    return (as_strong + 1) / (len(orders) + 1), observed


def _warnings(found: pd.DataFrame) -> tuple[str, ...]:
    out, tied = [], found.loc[found["vif"] > HIGH_VIF]
    if not tied.empty:
        named = ", ".join(f"{label} {vif:.1f}" for label, vif in zip(tied["label"], tied["vif"], strict=True))
        out.append(f"Factors go together (variance inflation: {named}): which of them it is can hardly be told.")
    return tuple(out)
