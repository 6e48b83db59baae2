"""Alignment within and between bins of competence: do better models agree more with one another?

After Figure 2 (left) of M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis (2024): models are
binned by the share of VTAB tasks that they solve, and the alignment within a bin is the mean over its pairs of models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.relate.findings import Against
from repalign.relate.jackknife import LEVEL, MIN_UNITS, Jackknife, Units, units_of
from repalign.relate.permutations import DRAWS, TIE, Orders
from repalign.relate.scores import Crossed, Models, Records, all_met, described, names_of, other_side, searched, stimuli

ALL_PARTNERS = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class Bins(Against):
    """Mean alignment within bins of competence, and between them; bins go from the least competent to the most.

    table : one row per bin and bin (side "both": bin_x <= bin_y, the same bin twice is the alignment within it), or
        per bin with bin_y = -1, "all partners" (sides "x" and "y"). Columns: bin_x, bin_y, label_x, label_y;
        n_models_x, n_models_y; n_pairs with a score and n_missing without; alignment, the mean over these pairs, and
        chance, the mean of their chance levels; se = sd / sqrt(n_pairs), the paper's standard error, which takes pairs
        as independent; low, high, df, the interval of `level` that does not, with the `unit` and the `n_units` that it
        leaves out one at a time.
    models : model, family, x (the competence) and bin of every model.
    edges : ascending; bin i of `labels` holds [edge, next edge), the last edge included.
    difference : alignment within the most competent bin minus that within the least competent, of the bins that have a
        pair (`ends`, their numbers; None unless two have); with its interval, and p for models whose competences change places.
    left_out : models without this competence, or outside the edges. n_stimuli : n of every score.
    """

    kind = "bins"
    edges: tuple[float, ...]
    labels: tuple[str, ...]
    models: pd.DataFrame
    ends: tuple[int, int] | None
    difference: float
    difference_interval: tuple[float, float]
    pvalue: float

    @property
    def n(self) -> int:
        """The number of models in bins."""
        return len(self.models)

    @property
    def within(self) -> pd.DataFrame:
        """One row per bin: the alignment within it, or with all partners."""
        own = (self.table["bin_y"] == ALL_PARTNERS) | (self.table["bin_x"] == self.table["bin_y"])
        return self.table.loc[own].reset_index(drop=True)

    def matrix(self, column: str = "alignment") -> pd.DataFrame:
        """Bins by bins (or bins by "all partners") of a column of the table."""
        wide = self.table.pivot(index="label_x", columns="label_y", values=column)
        order = list(self.labels)
        if self.side != "both":
            return wide.reindex(index=order)
        wide = wide.reindex(index=order, columns=order)
        return wide.where(wide.notna(), wide.T)


def bins(
    table: pd.DataFrame, models: Models, against: str, *, side: str = "both", measure: str | None = None,
    bins: int | Sequence[float] = 5, level: float = LEVEL, draws: int = DRAWS, seed: int = 0,
    label: str | None = None, lower_is_better: bool | None = None,
) -> Bins:  # fmt: skip
    """Mean alignment of models within bins of a competence, and between bins.

    Parameters
    ----------
    table : the table of an alignment; its "max" rows (layer search) of `measure` are used.
    models : records of the models, as in the run's description.
    against : "n_parameters" or the name of a score; models without it are left out and named.
    side : "both" if models were compared among themselves; "x" or "y" if two sides were: bins of that side, each
        against all models of the other.
    measure : the first of the table by default.
    bins : a number of bins with equally many models, as far as ties allow; or their edges, ascending: the paper's are
        0, 20, 40, 60, 80, 100 % of VTAB's tasks. A bin holds [edge, next edge), the last one its upper edge too.
    level : of the intervals. draws, seed : random reorderings for the p-value.
    label, lower_is_better : facts of a score that `COMPETENCES` does not know.

    Notes
    -----
    With t(-u) the mean without unit u (a model, or a family if there are three), the interval is the jackknife's,
    t -+ quantile * sqrt((G - 1)/G * sum of (t(-u) - t)^2), summed over the two bins, or over bin and partners; see
    `relate.TrendInference`. It needs three units in every bin that it speaks of.

    Raises
    ------
    RepalignError : unknown side, measure or competence; a side that the table does not have; bad edges or counts.
    """
    pairs, measure = searched(table, measure, side)
    _check_side(side, pairs)
    records, names, (label, lower) = Records.of(models), names_of(pairs, side), described(against, label, lower_is_better)
    x = {name: v for name in names if (v := records.number(name, against)) is not None}
    if not x:
        raise RepalignError(
            f"no model of side {side} has a {against!r}", expected="n_parameters or a score of at least one model",
            got=against, remedy=did_you_mean(against, records.known(records, "scores")),
        )  # fmt: skip
    edges = _edges(bins, np.array(list(x.values())), against)
    place = _places(x, edges, lower)
    if not place:
        raise RepalignError(
            f"no model has a {against!r} within the edges", expected=f"values in {edges[0]:g} to {edges[-1]:g}",
            got=f"{min(x.values()):g} to {max(x.values()):g}", remedy="give edges in the unit of the score",
        )  # fmt: skip
    families, labels = records.families, _labels(edges, lower)
    data = _Data.of(pairs, side, list(place), families, level)
    inside = [np.flatnonzero([b == i for b in place.values()]) for i in range(len(labels))]
    full = [i for i, own in enumerate(inside) if not math.isnan(data.mean(own, data.partners(own)))]
    ends = (full[0], full[-1]) if len(full) > 1 else None
    difference, low, high = _difference(data, [inside[e] for e in ends]) if ends else (math.nan,) * 3
    members = [(n, families.get(n, ""), x[n], b) for n, b in place.items()]
    left_out = [f"{name} (no {against})" for name in names if name not in x]
    left_out += [f"{name} (outside the edges)" for name in x if name not in place]
    return Bins(
        measure=measure, table=_table(data, inside, labels), left_out=tuple(left_out), level=level, draws=draws, seed=seed,
        against=against, label=label, side=side, lower_is_better=lower, n_stimuli=stimuli(pairs),
        edges=tuple(map(float, edges)), labels=labels, ends=ends, difference=difference, difference_interval=(low, high),
        models=pd.DataFrame(members, columns=["model", "family", "x", "bin"]),
        pvalue=_pvalue(data, [len(inside[e]) for e in ends], difference, draws, seed) if ends else math.nan,
    )  # fmt: skip


def _check_side(side: str, pairs: pd.DataFrame) -> None:
    among = all_met(pairs)
    if among != (side == "both"):
        raise RepalignError(
            "models were compared among themselves" if among else "models of one side were compared with another side",
            expected='side="both"' if among else 'side="x" or side="y"', got=f"side={side!r}",
            remedy='bin all models together with side="both"' if among else "bin one side, each against all of the other",
        )  # fmt: skip


# --- bins --------------------------------------------------------------------------------------


def _edges(bins: int | Sequence[float], x: np.ndarray, against: str) -> np.ndarray:
    if isinstance(bins, (int, np.integer)):
        if bins < 1:
            raise RepalignError("no bins", expected="a number of at least 1, or edges", got=bins)
        edges = np.unique(np.quantile(x, np.linspace(0, 1, int(bins) + 1)))
        if len(edges) < 2:
            same = f"all models have the same {against!r}"
            raise RepalignError(same, expected="values that differ", got=f"{x[0]:g}", remedy="give edges")
        return edges
    edges = np.asarray(bins, float)
    if edges.ndim != 1 or len(edges) < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise RepalignError("the edges of the bins do not ascend", expected="two numbers or more, ascending", got=bins)
    return edges


def _places(x: Mapping[str, float], edges: np.ndarray, lower_is_better: bool) -> dict[str, int]:
    """The bin of every model within the edges, 0 the least competent."""
    last, out = len(edges) - 2, {}
    for name, v in x.items():
        if edges[0] <= v <= edges[-1]:
            i = min(int(np.searchsorted(edges, v, side="right")) - 1, last)
            out[name] = last - i if lower_is_better else i
    return out


def _labels(edges: np.ndarray, lower_is_better: bool) -> tuple[str, ...]:
    """Distinct: with as many digits as tell the edges apart, and at least three."""
    digits = next(d for d in range(3, 18) if len({f"{e:.{d}g}" for e in edges}) == len(edges))
    words = [f"{e:.{digits}g}".replace("-", "−") for e in edges]
    labels = [f"{a} to {b}" for a, b in itertools.pairwise(words)]
    return tuple(labels[::-1] if lower_is_better else labels)


# --- means and intervals -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Data:
    """Scores and chance levels, rows by columns; rows are the binned models, columns these again or all partners."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    scores: np.ndarray
    chance: np.ndarray
    both: bool
    families: Mapping[str, str]
    level: float

    @classmethod
    def of(cls, pairs: pd.DataFrame, side: str, rows: Sequence[str], families: Mapping[str, str], level: float) -> _Data:
        both = side == "both"
        columns = rows if both else names_of(pairs, other_side(side))
        scores, chance = (Crossed.of(pairs, side, rows, columns, c).scores() for c in ("statistic", "null_mean"))
        chance = np.where(np.isfinite(scores), chance, math.nan)
        return cls(tuple(rows), tuple(columns), scores, chance, both, families, level)

    def partners(self, a: np.ndarray) -> np.ndarray:
        """Of a bin by itself: its own models, or all of the other side."""
        return a if self.both else np.arange(len(self.columns))

    def mean(self, a: np.ndarray, b: np.ndarray, without: frozenset[str] = frozenset()) -> float:
        """The mean score of rows a with columns b; a bin with itself has every pair twice, which changes no mean."""
        a = a[[self.rows[i] not in without for i in a]]
        b = b[[self.columns[j] not in without for j in b]]
        part = self.scores[np.ix_(a, b)]
        part = part[np.isfinite(part)]
        return float(part.mean()) if part.size else math.nan

    def interval(
        self, bins: Sequence[np.ndarray], least: int, estimate: Callable[[frozenset[str]], float]
    ) -> tuple[float, float, float, tuple[Units, ...]]:
        """The jackknife of an estimate about some bins, its degrees of freedom, and the units; nan and () for too few units.

        Units are of the bins, and of the partners if these are other models and at least three.
        """
        groups = [[self.rows[i] for i in b] for b in bins]
        if not self.both and len(self.columns) >= MIN_UNITS:
            groups.append(list(self.columns))
        found = units_of(self.families, *groups, least=[least] * len(groups))
        units = tuple(u for u in found if u is not None)
        if len(units) < len(found):
            return math.nan, math.nan, math.nan, ()
        return (*Jackknife.over(units, estimate).interval(float, self.level), units)


def _table(data: _Data, inside: Sequence[np.ndarray], labels: Sequence[str]) -> pd.DataFrame:
    rows = []
    for i, a in enumerate(inside):
        for j in range(i, len(inside)) if data.both else [ALL_PARTNERS]:
            b, label = (inside[j], labels[j]) if data.both else (data.partners(a), "all partners")
            rows.append({"bin_x": i, "bin_y": j, "label_x": labels[i], "label_y": label, **_cell(data, a, b, i == j)})
    return pd.DataFrame(rows)


def _cell(data: _Data, a: np.ndarray, b: np.ndarray, within: bool) -> dict[str, Any]:
    """One bin with itself, with another, or with all partners."""
    part, chance = data.scores[np.ix_(a, b)], data.chance[np.ix_(a, b)]
    if within:
        upper = np.triu_indices(len(a), 1)
        part, chance = part[upper], chance[upper]
    defined, chance = part[np.isfinite(part)], chance[np.isfinite(chance)]
    n, low, high, df, units = defined.size, math.nan, math.nan, math.nan, ()
    if n:
        bins = [a] if within or not data.both else [a, b]
        low, high, df, units = data.interval(bins, 2 if within else 1, lambda gone: data.mean(a, b, gone))
    return {
        "n_models_x": len(a), "n_models_y": len(b), "n_pairs": n, "n_missing": part.size - n,
        "alignment": float(defined.mean()) if n else math.nan,
        "chance": float(chance.mean()) if chance.size else math.nan,
        "se": float(defined.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        "low": low, "high": high, "df": df,
        "unit": units[0].kind if units else "", "n_units": sum(map(len, units)),
    }  # fmt: skip


# --- the two ends ------------------------------------------------------------------------------


def _difference(data: _Data, ends: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Alignment within the most competent of two bins minus that within the least, and its interval."""

    def estimate(gone: frozenset[str]) -> float:
        low, high = (data.mean(b, data.partners(b), gone) for b in ends)
        return high - low

    low, high, *_ = data.interval(ends, 2 if data.both else 1, estimate)
    return estimate(frozenset()), low, high


def _pvalue(data: _Data, sizes: Sequence[int], difference: float, draws: int, seed: int) -> float:
    """Two-sided: models change places over all bins; (C + 1)/(K + 1), draws without a difference counting as larger."""
    there = np.isfinite(data.scores)
    total, count = np.where(there, data.scores, 0.0), there.astype(float)
    if not data.both:
        total, count = total.sum(1), count.sum(1)
    # Never all orders: most of them only exchange models within a bin, and change nothing.
    orders = Orders.of([[np.arange(len(data.rows))]], draws, seed, most=0)
    means = []
    for some in (orders.each[0][:, : sizes[0]], orders.each[0][:, sizes[0] : sum(sizes)]):
        member = np.zeros((draws, len(data.rows)))
        np.put_along_axis(member, some, 1.0, axis=1)
        top, bottom = ((member @ m * member).sum(1) if data.both else member @ m for m in (total, count))
        means.append(np.divide(top, bottom, out=np.full(draws, math.nan), where=bottom > 0))
    gap = np.abs(means[1] - means[0])
    return float(orders.pvalue(int((~(gap < abs(difference) - TIE * max(1.0, abs(difference)))).sum())))
