"""Agreement of measures, or of data sets: do they rank pairs of models, or of layers, alike?

After Figure 12 of M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis (2024), which prints
Spearman's correlation of every two measures over all pairs of its vision models. Pairs share models: an interval or a p
over pairs counts a model once for every partner. Here intervals leave out models, and p-values move them (Mantel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from repalign.comparison.alignment import Alignment, rows_of
from repalign.errors import RepalignError, choose
from repalign.measures import facts_of
from repalign.null import benjamini_hochberg
from repalign.relate.findings import OVER, Finding
from repalign.relate.jackknife import LEVEL, MIN_MODELS_LINE, MIN_UNITS, Jackknife, ranks, units_of
from repalign.relate.permutations import FEW_ORDERS, TIE, Orders
from repalign.relate.scores import PAIR, Crossed, Models, Records, all_met, names_of, stimuli

ORDERS = ("table", "cluster")
DRAWS = 999
MEASURE = "measure"
BLOCK = 2**16  # ranks of reordered pairs that are looked at at once: they stay in the processor's cache


@dataclass(frozen=True, eq=False, kw_only=True)
class Agreement(Finding):
    """Spearman's correlation of every two measures over pairs of models (or layers); distances have their sign turned.

    Or, `across` data sets or other runs, of every two of these under one measure: then all below is of them.

    table : one row per two measures: measure_a, measure_b (or dataset_a, dataset_b and so on), spearman; low, high, df, the
        interval over models of `level`; pvalue, two-sided, models changing places (Mantel), and p_bh, adjusted over the rows
        (Benjamini and Hochberg, false discovery rate); n_pairs with both scores, n_left_out with one or none.
    names : the measures in the order of the figure. distances : the measures whose sign was turned.
    n_models : models compared. unit, n_units : what the interval leaves out one at a time ("model", "family", or
        "family or model" if sides differ); "" and 0 if there are too few.
    n_orders : possible reorderings of the models, all of which were visited if `exact`, else `draws` of `seed`; below 20
        there is no p. n_stimuli, n_most : n of the scores; that of the data set with most stimuli.
    """

    kind = "agreement"
    over: str
    across: str
    names: tuple[str, ...]
    distances: tuple[str, ...]
    n_models: int
    unit: str
    n_units: int
    n_orders: int
    exact: bool
    n_stimuli: int
    n_most: int

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures, if they are what is compared."""
        return self.names if self.across == MEASURE else ()

    @property
    def things(self) -> str:
        """What is compared, in words."""
        return {"dataset": "data sets"}.get(self.across, f"{self.across}s")

    @property
    def counted_n(self) -> str:
        return f"n = {self.n_stimuli:,}" + (f" to {self.n_most:,}" if self.n_most > self.n_stimuli else "")

    def matrix(self, column: str = "spearman") -> pd.DataFrame:
        """Measures by measures of a column of the table; the diagonal is 1 for "spearman", else empty."""
        names, across = list(self.names), self.across
        half = self.table.pivot(index=f"{across}_a", columns=f"{across}_b", values=column).reindex(index=names, columns=names)
        own = 1.0 if column == "spearman" else math.nan
        return half.fillna(half.T).where(~np.eye(len(names), dtype=bool), own).rename_axis(index=None, columns=None)


def agreement(
    table: pd.DataFrame | Mapping[str, Alignment | str | Path], *, over: str = "max", across: str | None = None,
    measure: str | None = None, order: str = "table", models: Models = (), level: float = LEVEL, draws: int = DRAWS,
    seed: int = 0,
) -> Agreement:  # fmt: skip
    """Spearman's correlation of every two measures of an alignment, or of data sets, over pairs of models, or of layers.

    Parameters
    ----------
    table : the table of an alignment of two measures or more. The two directions of an asymmetric measure, if models
        were compared among themselves, are averaged. Or results by the names of their data sets, as they are or their folders:
        do other data rank the same models alike?
    across : what is compared: "measure"; "dataset", where results are given; or a column that tells runs apart, such as
        "variant" of a study's.
    measure : across data sets and the like, whose scores; the first by default.
    over : "max", pairs of models after the search over layers; "cell", pairs of layers of all pairs of models.
    order : of the measures: "table", or "cluster", hierarchical clustering by 1 - rho (average linkage, neighbours as
        close as the tree allows).
    models : records whose families are the units of the interval, if there are three.
    level : of the intervals. draws, seed : random reorderings if there are more than 10,000.

    Notes
    -----
    A pair at which one of two measures is undefined is left out for these two and counted. p: the models of one measure
    change places, both sides apart if two sides were compared; over layers, models of equally many layers only. Null
    hypothesis: which model is which under one measure has nothing to do with which it is under the other. It uses ranks
    given once over all defined pairs of a measure, which are Spearman's if nothing is undefined. Interval: jackknife
    over models (or families) of both sides on Fisher's z, as for trends; none for a perfect order.

    Source: N. Mantel, Cancer Research 27 (1967), 209; for two sides the rows and the columns are permuted apart.

    Raises
    ------
    RepalignError : fewer than two measures, or data sets; no pair of models in common; unknown names; a pair that one data set
        has twice.
    """
    choose("scope", over, OVER)
    choose("order", order, ORDERS)
    across = across or ("dataset" if isinstance(table, Mapping) else MEASURE)
    rows = _rows(_of_results(table, across) if isinstance(table, Mapping) else table, over, across, measure)
    measures = list(dict.fromkeys(rows[across]))
    if len(measures) < 2:
        raise RepalignError(
            f"agreement is between {across}s", expected=f"rows of scope {over!r} of two {across}s or more",
            got=", ".join(measures) or "none", remedy=f"compare the models with another {across} too",
        )  # fmt: skip
    sign = {m: 1.0 if facts_of(m).closer_is_higher else -1.0 for m in dict.fromkeys(rows["measure"])}
    grid = _Grid.of(rows.assign(measure=rows[across]), sign if across == MEASURE else dict.fromkeys(measures, 1.0))
    values = grid.scores[:, *grid.seen]  # measures by pairs, nan if a pair was not compared or is undefined
    rho, count = _spearman(values)
    compared = values.shape[1] if across == MEASURE else _n_compared(rows, over, grid.both)
    sizes = [stimuli(rows)] if across == MEASURE else [stimuli(some) for _, some in rows.groupby(across)]
    if across != MEASURE and not np.triu(count, 1).any():
        raise RepalignError(
            f"no two {across}s have a pair of models in common", expected="the same models, by name, under each",
            got=f"{compared:,} pairs, each under one of {', '.join(measures)}",
            remedy="give models the same `name` in all of them",
        )  # fmt: skip
    low, high, df, unit, n_units = _intervals(grid, values, Records.of(models).families, (rho, count), level)
    pvalues, orders = _mantel(grid, draws, seed)
    i, j = np.triu_indices(len(measures), 1)
    left_out, p = compared - count[i, j].astype(int), pvalues[i, j]
    found = {
        f"{across}_a": [measures[a] for a in i], f"{across}_b": [measures[b] for b in j], "spearman": rho[i, j],
        "low": low[i, j], "high": high[i, j], "df": df[i, j], "pvalue": p, "p_bh": benjamini_hochberg(p),
        "n_pairs": count[i, j].astype(int), "n_left_out": left_out,
    }  # fmt: skip
    return Agreement(
        measure=None if across == MEASURE else next(iter(sign)), table=pd.DataFrame(found), level=level, draws=draws,
        seed=seed, over=over, across=across, n_stimuli=min(sizes), n_most=max(sizes),
        names=tuple(measures[k] for k in (_clustered(rho) if order == "cluster" else range(len(measures)))),
        distances=tuple(m for m in sign if sign[m] < 0 and across == MEASURE),
        n_models=len({name for side in grid.models for name in side}),
        unit=unit, n_units=n_units, n_orders=orders.n, exact=orders.exact,
    )  # fmt: skip


def _of_results(results: Mapping[str, Alignment | str | Path], across: str) -> pd.DataFrame:
    """One table of several results, whose names are in the column `across`."""
    made = {str(name): r if isinstance(r, Alignment) else Alignment.load(r) for name, r in results.items()}
    return pd.concat([r.table.assign(**{across: name}) for name, r in made.items()] or [pd.DataFrame()], ignore_index=True)


def _n_compared(rows: pd.DataFrame, over: str, both: bool) -> int:
    """How many pairs have a row under some data set; a pair in its two directions is one."""
    ends = [list(zip(rows[f"model_{s}"], rows[f"index_{s}"] if over == "cell" else rows["scope"], strict=True)) for s in "xy"]
    pairs = {frozenset(pair) if both else pair for pair in zip(*ends, strict=True) if pair[0][0] != pair[1][0]}
    return len(pairs)


def _rows(table: pd.DataFrame, over: str, across: str, measure: str | None) -> pd.DataFrame:
    """What is compared: the rows of a scope; across anything but measures, those of one measure."""
    choose("column", across, map(str, table.columns), f"no column {across!r} tells runs apart")
    if across == MEASURE:
        if measure is not None:
            raise RepalignError("agreement of measures is of all of them", expected="no `measure`", got=measure)
        return table.loc[table["scope"] == over]
    rows = rows_of(table, over, measure)
    rows = rows.loc[rows["measure"] == rows["measure"].iloc[0]].assign(**{across: rows[across].astype(str)})
    twice = rows.loc[rows.duplicated([across, *PAIR, *[c for c in ("index_x", "index_y") if over == "cell"]])]
    if not twice.empty:
        first = twice.iloc[0]
        raise RepalignError(
            f"{first['model_x']} and {first['model_y']} stand more than once under {across} {first[across]}",
            expected=f"one row for each pair of models and {across}", got=f"{len(twice)} rows too many",
            remedy="take the rows of one setting, or another column that tells runs apart",
        )  # fmt: skip
    return rows


# --- scores by model ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Grid:
    """Closeness under every measure, (measures, rows, columns): a row is a model, or one of its layers.

    `models` are the names of both sides, `owners` the model of every row and every column, as a place among the names.
    If models met among themselves (`both`), rows and columns are the same and the array is symmetric.
    """

    scores: np.ndarray
    models: tuple[list[str], ...]
    owners: tuple[np.ndarray, ...]
    both: bool

    @classmethod
    def of(cls, table: pd.DataFrame, sign: Mapping[str, float]) -> _Grid:
        both = all_met(table)
        models = tuple(names_of(table, "both" if both else side) for side in "xy")
        seats = table.loc[table["model_x"] != table["model_y"]]
        for side in "xy":
            layer = seats[f"index_{side}"] if (seats["scope"] == "cell").all() else [0] * len(seats)
            seats = seats.assign(**{f"model_{side}": list(zip(seats[f"model_{side}"], layer, strict=True))})
        every = [set(seats["model_x"]), set(seats["model_y"])]
        every = [every[0] | every[1]] * 2 if both else every
        places = [{name: i for i, name in enumerate(names)} for names in models]
        rows, columns = (sorted(s, key=lambda seat, at=at: (at[seat[0]], seat[1])) for s, at in zip(every, places, strict=True))
        owners = tuple(np.array([at[name] for name, _ in s]) for s, at in zip((rows, columns), places, strict=True))
        by_measure, side = seats.groupby("measure", sort=False), "both" if both else "x"
        scores = [s * Crossed.of(by_measure.get_group(m), side, rows, columns).scores() for m, s in sign.items()]
        return cls(np.array(scores), models, owners, both)

    @property
    def seen(self) -> tuple[np.ndarray, ...]:
        """The places that stand for pairs: of models among themselves, every pair once."""
        first, second = self.owners[0][:, None], self.owners[1][None]
        return np.nonzero(first < second if self.both else np.ones(self.scores.shape[1:], bool))


def _spearman(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's rho of every two rows over the columns where both are defined, and how many these are.

    nan if one of the two is constant there, or for fewer than three.
    """
    there = np.isfinite(values).astype(float)
    rho = pd.DataFrame(values.T).corr(method="spearman", min_periods=MIN_UNITS).to_numpy()
    return np.clip(rho, -1.0, 1.0), there @ there.T


# --- inference ---------------------------------------------------------------------------------


def _intervals(
    grid: _Grid, values: np.ndarray, families: Mapping[str, str], full: tuple[np.ndarray, np.ndarray], level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str, int]:
    """The intervals of all correlations, the units that they leave out, and how many these are."""
    units = units_of(families, *grid.models, least=(MIN_MODELS_LINE, 0))
    sides = [side for side in units if side is not None] if units[0] else []
    first, second = (np.array(names)[o[at]] for names, o, at in zip(grid.models, grid.owners, grid.seen, strict=True))

    def without(unit: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
        gone = list(unit)
        return _spearman(values[:, ~(np.isin(first, gone) | np.isin(second, gone))]) if gone else full

    low, high, df = Jackknife.over(sides, without).rank_interval(lambda found: found, level)
    return low, high, df, " or ".join(sorted({side.kind for side in sides})), sum(map(len, sides))


def _mantel(grid: _Grid, draws: int, seed: int) -> tuple[np.ndarray, Orders]:
    """Two-sided p of every two measures, the models of the second changing places with all their layers."""
    owners = grid.owners[:1] if grid.both else grid.owners
    sizes = [np.bincount(owner) for owner in owners]
    # Models of equally many rows may change places.
    orders = Orders.of([[np.flatnonzero(size == s) for s in np.unique(size)] for size in sizes], draws, seed)
    if orders.n < FEW_ORDERS:
        return np.full((len(grid.scores),) * 2, math.nan), orders
    there, ranked = np.isfinite(grid.scores), np.zeros(grid.scores.shape)
    i, j = grid.seen
    for rank, score, mask in zip(ranked, grid.scores, there, strict=True):
        kept = mask[i, j]
        a, b = i[kept], j[kept]
        rank[a, b] = ranks(score[a, b]) - (len(a) + 1) / 2
        if grid.both:
            rank[b, a] = rank[a, b]
    own, mask = ranked[:, i, j], there[:, i, j].astype(float)
    observed = np.abs(_correlations(own, mask, own, mask))
    starts, larger = [np.cumsum(size) - size for size in sizes], 0
    few = max(1, BLOCK // own.size)
    for some in (slice(at, at + few) for at in range(0, len(orders.each[0]), few)):
        # The rows of a model lie side by side, and those of the model in its place are as many.
        moved = [
            start[each[some][:, owner]] + np.arange(len(owner)) - start[owner]
            for start, owner, each in zip(starts, owners, orders.each, strict=True)
        ]
        a, b = moved[0][:, i], moved[-1][:, j]
        others = (np.moveaxis(values[:, a, b], 0, 1) for values in (ranked, there.astype(float)))
        larger = larger + (~(np.abs(_correlations(own, mask, *others)) < observed - TIE)).sum(axis=0)
    p = np.triu(orders.pvalue(larger), 1)
    return np.where(np.isnan(observed), math.nan, p + p.T), orders


def _correlations(a: np.ndarray, mask_a: np.ndarray, b: np.ndarray, mask_b: np.ndarray) -> np.ndarray:
    """Pearson's r of every row of a with every row of b, one array or a stack, where both are defined; they are 0 where not."""
    other, mask_other = b.swapaxes(-1, -2), mask_b.swapaxes(-1, -2)
    if mask_a.all() and mask_b.all():
        norm, top = np.sqrt((a**2).sum(-1)[:, None] * (b**2).sum(-1)[..., None, :]), a @ other
    else:
        n = np.maximum(mask_a @ mask_other, 1.0)
        sum_a, sum_b = a @ mask_other, mask_a @ other
        top = a @ other - sum_a * sum_b / n
        spread_a, spread_b = a**2 @ mask_other - sum_a**2 / n, mask_a @ other**2 - sum_b**2 / n
        norm = np.sqrt(np.maximum(spread_a, 0) * np.maximum(spread_b, 0))
    return np.divide(top, norm, out=np.full(top.shape, math.nan), where=norm > TIE)


def _clustered(rho: np.ndarray) -> list[int]:
    """The leaves of the tree of average linkage by 1 - rho; an undefined rho counts as 0."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(rho) < 3:
        return list(range(len(rho)))
    apart = 1 - np.nan_to_num(rho)
    np.fill_diagonal(apart, 0.0)
    tree = linkage(squareform((apart + apart.T) / 2, checks=False), "average", optimal_ordering=True)
    return leaves_list(tree).tolist()
