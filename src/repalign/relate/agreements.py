"""Agreement of measures: do they rank pairs of models, or of layers, alike?

After Figure 12 of M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis (2024), which prints
Spearman's correlation of every two measures over all pairs of its vision models. Pairs share models: an interval or a p
over pairs counts a model once for every partner. Here intervals leave out models, and p-values move them (Mantel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, choose
from repalign.measures import facts_of
from repalign.null import benjamini_hochberg
from repalign.relate.jackknife import LEVEL, MIN_MODELS_LINE, MIN_UNITS, Jackknife, ranks, units_of
from repalign.relate.permutations import FEW_ORDERS, TIE, Orders, blocks_of
from repalign.relate.scores import Crossed, Models, Records, all_met, names_of, stimuli
from repalign.relate.sentences import OVER, Finding

ORDERS = ("table", "cluster")
DRAWS = 999


@dataclass(frozen=True, eq=False, kw_only=True)
class Agreement(Finding):
    """Spearman's correlation of every two measures over pairs of models (or layers); distances have their sign turned.

    table : one row per two measures: measure_a, measure_b, spearman; low, high, df, the interval over models of `level`;
        pvalue, two-sided, models changing places (Mantel), and p_bh, adjusted over the rows (Benjamini and Hochberg, false
        discovery rate); n_pairs with both scores, n_left_out with one or none.
    measures : in the order of the figure. distances : the measures whose sign was turned.
    n_models : models compared. unit, n_units : what the interval leaves out one at a time ("model", "family", or
        "family or model" if sides differ); "" and 0 if there are too few.
    n_orders : possible reorderings of the models, all of which were visited if `exact`, else `draws` of `seed`; below 20
        there is no p. n_stimuli : n of every score.
    """

    kind = "agreement"
    over: str
    measures: tuple[str, ...]
    distances: tuple[str, ...]
    n_models: int
    unit: str
    n_units: int
    n_orders: int
    exact: bool
    n_stimuli: int

    def matrix(self, column: str = "spearman") -> pd.DataFrame:
        """Measures by measures of a column of the table; the diagonal is 1 for "spearman", else empty."""
        names = list(self.measures)
        half = self.table.pivot(index="measure_a", columns="measure_b", values=column).reindex(index=names, columns=names)
        own = 1.0 if column == "spearman" else math.nan
        return half.fillna(half.T).where(~np.eye(len(names), dtype=bool), own).rename_axis(index=None, columns=None)


def agreement(
    table: pd.DataFrame, *, over: str = "max", order: str = "table", models: Models = (),
    level: float = LEVEL, draws: int = DRAWS, seed: int = 0,
) -> Agreement:  # fmt: skip
    """Spearman's correlation of every two measures of an alignment over its pairs of models, or of layers.

    Parameters
    ----------
    table : the table of an alignment of two measures or more. The two directions of an asymmetric measure, if models
        were compared among themselves, are averaged.
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
    RepalignError : fewer than two measures; nothing to compare; unknown `over` or `order`.
    """
    choose("scope", over, OVER)
    choose("order", order, ORDERS)
    rows = table.loc[table["scope"] == over]
    measures = list(dict.fromkeys(rows["measure"]))
    if len(measures) < 2:
        raise RepalignError(
            "agreement is between measures", expected=f"rows of scope {over!r} of two measures or more",
            got=", ".join(measures) or "none", remedy="compare the models with another measure too",
        )  # fmt: skip
    sign = {m: 1.0 if facts_of(m).closer_is_higher else -1.0 for m in measures}
    grid = _Grid.of(rows, sign)
    values = grid.scores[:, *grid.seen]  # measures by pairs, nan if a pair was not compared or is undefined
    rho, count = _spearman(values)
    low, high, df, unit, n_units = _intervals(grid, values, Records.of(models).families, (rho, count), level)
    pvalues, orders = _mantel(grid, draws, seed)
    i, j = np.triu_indices(len(measures), 1)
    left_out, p = values.shape[1] - count[i, j].astype(int), pvalues[i, j]
    found = {
        "measure_a": [measures[a] for a in i], "measure_b": [measures[b] for b in j], "spearman": rho[i, j],
        "low": low[i, j], "high": high[i, j], "df": df[i, j], "pvalue": p, "p_bh": benjamini_hochberg(p),
        "n_pairs": count[i, j].astype(int), "n_left_out": left_out,
    }  # fmt: skip
    return Agreement(
        measure=None, table=pd.DataFrame(found), level=level, draws=draws, seed=seed, over=over,
        measures=tuple(measures[k] for k in (_clustered(rho) if order == "cluster" else range(len(measures)))),
        distances=tuple(m for m in measures if sign[m] < 0), n_models=len({name for side in grid.models for name in side}),
        unit=unit, n_units=n_units, n_orders=orders.n, exact=orders.exact, n_stimuli=stimuli(rows),
    )  # fmt: skip


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
    observed, larger = np.abs(_correlations(own, mask, own, mask)), 0
    members = [blocks_of(owner) for owner in owners]
    for each in zip(*orders.each, strict=True):
        moved = [np.concatenate([rows[k] for k in order]) for rows, order in zip(members, each, strict=True)]
        a, b = moved[0][i], moved[-1][j]
        other = np.abs(_correlations(own, mask, ranked[:, a, b], there[:, a, b].astype(float)))
        larger = larger + ~(other < observed - TIE)
    p = np.triu(orders.pvalue(larger), 1)
    return np.where(np.isnan(observed), math.nan, p + p.T), orders


def _correlations(a: np.ndarray, mask_a: np.ndarray, b: np.ndarray, mask_b: np.ndarray) -> np.ndarray:
    """Pearson's r of every row of a with every row of b where both are defined; a and b are 0 where they are not."""
    if mask_a.all() and mask_b.all():
        norm, top = np.sqrt(np.outer((a**2).sum(1), (b**2).sum(1))), a @ b.T
    else:
        n = np.maximum(mask_a @ mask_b.T, 1.0)
        sum_a, sum_b = a @ mask_b.T, mask_a @ b.T
        top = a @ b.T - sum_a * sum_b / n
        spread_a, spread_b = a**2 @ mask_b.T - sum_a**2 / n, mask_a @ (b**2).T - sum_b**2 / n
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
