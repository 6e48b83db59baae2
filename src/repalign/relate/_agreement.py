"""Agreement of measures: do they rank pairs of models, or of layers, alike?

After Figure 12 of M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis (2024), which prints
Spearman's correlation of every two measures over all pairs of its vision models. Pairs share models: an interval or a p
over pairs counts a model once for every partner. Here intervals leave out models, and p-values move them (Mantel).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.measures import parse_measure
from repalign.models import ModelRecord
from repalign.null import benjamini_hochberg
from repalign.relate._crossed import MIN_UNITS, Crossed, sides_of_units
from repalign.relate._inference import FEW_ORDERS, LEVEL, Jackknife
from repalign.relate._pairs import all_met, facts, families_of, names_of, stimuli
from repalign.relate._permute import MOST_ORDERS, TIE, all_orders, count_orders, some_orders
from repalign.relate._words import p_words, signed

OVER = {"max": "pairs of models", "cell": "pairs of layers"}
ORDERS = ("table", "cluster")
DRAWS = 999
COLUMNS = ["measure_a", "measure_b", "spearman", "low", "high", "df", "pvalue", "p_bh", "n_pairs", "n_left_out"]


@dataclass(frozen=True, eq=False)
class Agreement:
    """Spearman's correlation of every two measures over pairs of models (or layers); distances have their sign turned.

    table : one row per two measures: measure_a, measure_b, spearman; low, high, df, the interval over models of `level`;
        pvalue, two-sided, models changing places (Mantel), and p_bh, adjusted over the rows (Benjamini and Hochberg, false
        discovery rate); n_pairs with both scores, n_left_out with one or none.
    measures : in the order of the figure. distances : those of them whose sign was turned.
    n_models : models compared. unit, n_units : what the interval leaves out one at a time ("model", "family", or
        "family or model" where sides differ); "" and 0 where there are too few.
    n_orders : possible reorderings of the models, all of which were visited if `exact`, else `draws` of `seed`; below 20
        there is no p. n_stimuli : n of every score.
    """

    over: str
    measures: tuple[str, ...]
    distances: tuple[str, ...]
    table: pd.DataFrame
    n_models: int
    unit: str
    n_units: int
    n_orders: int
    exact: bool
    draws: int
    seed: int
    level: float
    n_stimuli: int
    text: str

    def matrix(self, column: str = "spearman") -> pd.DataFrame:
        """Measures by measures of a column of the table; the diagonal is 1 for "spearman", else empty."""
        out = pd.DataFrame(math.nan, index=list(self.measures), columns=list(self.measures))
        for row in self.table.to_dict("records"):
            a, b = row["measure_a"], row["measure_b"]
            out.loc[a, b] = out.loc[b, a] = row[column]
        if column == "spearman":
            for name in self.measures:
                out.loc[name, name] = 1.0
        return out


def agreement(
    table: pd.DataFrame,
    *,
    over: str = "max",
    order: str = "table",
    models: Sequence[Mapping[str, object] | ModelRecord] = (),
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Agreement:
    """Spearman's correlation of every two measures of an alignment over its pairs of models, or of layers.

    Parameters
    ----------
    table : the table of an alignment of two measures or more. The two directions of an asymmetric measure, where models
        were compared among themselves, are averaged.
    over : "max", pairs of models after the search over layers; "cell", pairs of layers of all pairs of models.
    order : of the measures: "table", or "cluster", hierarchical clustering by 1 - rho (average linkage, neighbours as
        close as the tree allows).
    models : records whose families are the units of the interval, where there are three.
    level : of the intervals. draws, seed : random reorderings where there are more than 10,000.

    Notes
    -----
    A pair at which one of two measures is undefined is left out for these two and counted. p: the models of one measure
    change places, both sides apart where two sides were compared; over layers, models of equally many layers only. Null
    hypothesis: which model is which under one measure has nothing to do with which it is under the other. It uses ranks
    given once over all defined pairs of a measure, which are Spearman's where nothing is undefined. Interval: jackknife
    over models (or families) of both sides on Fisher's z, as for trends; none for a perfect order.

    Source: N. Mantel, Cancer Research 27 (1967), 209; for two sides the rows and the columns are permuted apart.

    Raises
    ------
    RepalignError : fewer than two measures; nothing to compare; unknown `over` or `order`.
    """
    for name, known in ((over, OVER), (order, ORDERS)):
        if name not in known:
            raise RepalignError(f"unknown {name!r}", expected=" or ".join(known), got=name, remedy=did_you_mean(name, known))
    rows = table[table["scope"] == over]
    measures = list(dict.fromkeys(rows["measure"]))
    if len(measures) < 2:
        raise RepalignError(
            "agreement is between measures",
            expected=f"rows of scope {over!r} of two measures or more",
            got=", ".join(measures) or "none",
            remedy="compare the models with another measure too",
        )
    distances = tuple(m for m in measures if not parse_measure(m).closer_is_higher)
    grid = _Grid.of(rows, measures, distances)
    values = grid.values()
    families = families_of({str(m["name"]): m for m in map(facts, models)})
    rho, count = _spearman(values)
    low, high, df, unit, n_units = _intervals(grid, values, families, rho, count, level)
    pvalues, n_orders, exact = _mantel(grid, draws, seed)
    upper = list(itertools.combinations(range(len(measures)), 2))
    found = pd.DataFrame(
        [
            {
                "measure_a": measures[i],
                "measure_b": measures[j],
                "spearman": rho[i, j],
                "low": low[i, j],
                "high": high[i, j],
                "df": df[i, j],
                "pvalue": pvalues[i, j],
                "n_pairs": int(count[i, j]),
                "n_left_out": values.shape[1] - int(count[i, j]),
            }
            for i, j in upper
        ],
        columns=COLUMNS,
    )
    found["p_bh"] = benjamini_hochberg(found["pvalue"].to_numpy())
    ordered = _clustered(rho) if order == "cluster" else range(len(measures))
    made = Agreement(
        over=over,
        measures=tuple(measures[i] for i in ordered),
        distances=distances,
        table=found,
        n_models=len(set(grid.rows) | set(grid.columns)),
        unit=unit,
        n_units=n_units,
        n_orders=n_orders,
        exact=exact,
        draws=draws,
        seed=seed,
        level=level,
        n_stimuli=stimuli(rows),
        text="",
    )
    return replace(made, text=_text(made))


# --- scores by model ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Grid:
    """Closeness under every measure, (measures, rows, columns): a row is a model, or one of its layers.

    `row_model` and `column_model` are the model of every row and column, as a place in `rows` and `columns`. Where
    models met among themselves (`both`), rows and columns are the same and the array is symmetric.
    """

    scores: np.ndarray
    rows: list[str]
    columns: list[str]
    row_model: np.ndarray
    column_model: np.ndarray
    both: bool

    @classmethod
    def of(cls, table: pd.DataFrame, measures: Sequence[str], distances: Sequence[str]) -> _Grid:
        both = all_met(table)
        layered = bool((table["scope"] == "cell").all())
        index = [table[f"index_{s}"].to_numpy(int) if layered else np.zeros(len(table), int) for s in "xy"]
        seats = [list(zip(table[f"model_{s}"].astype(str), i, strict=True)) for s, i in zip("xy", index, strict=True)]
        names = [names_of(table, "both")] * 2 if both else [names_of(table, s) for s in "xy"]
        sides = [set(seats[0]) | set(seats[1])] * 2 if both else [set(s) for s in seats]
        places, owners = [], []
        for side, known in zip(sides, names, strict=True):
            at = {name: i for i, name in enumerate(known)}
            ordered = sorted(side, key=lambda seat: (at[seat[0]], seat[1]))
            places.append({seat: k for k, seat in enumerate(ordered)})
            owners.append(np.array([at[name] for name, _ in ordered]))
        i, j = (np.array([place[seat] for seat in s]) for place, s in zip(places, seats, strict=True))
        which = {name: k for k, name in enumerate(measures)}
        m = table["measure"].map(which).to_numpy(int)
        sign = np.where([name in distances for name in measures], -1.0, 1.0)
        score = table["statistic"].to_numpy(float) * sign[m]
        total, count = np.zeros((2, len(measures), len(owners[0]), len(owners[1])))
        kept = np.isfinite(score) & (seats_differ(table) if both else True)
        for a, b in ((i, j), (j, i)) if both else ((i, j),):
            np.add.at(total, (m[kept], a[kept], b[kept]), score[kept])
            np.add.at(count, (m[kept], a[kept], b[kept]), 1.0)
        scores = np.divide(total, count, out=np.full(total.shape, math.nan), where=count > 0)
        return cls(scores, *names, *owners, both)

    @property
    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """The places that stand for pairs: of models among themselves, every pair once."""
        first, second = self.row_model[:, None], self.column_model[None]
        return np.nonzero(first < second if self.both else np.ones(self.scores.shape[1:], bool))

    def values(self) -> np.ndarray:
        """Measures by all pairs, nan where a pair was not compared or is undefined."""
        return self.scores[:, *self.seen]

    def blocks(self) -> list[list[np.ndarray]]:
        """For each side, models that may change places: those of equally many rows."""
        out = []
        for owner in (self.row_model,) if self.both else (self.row_model, self.column_model):
            size = np.bincount(owner)
            out.append([np.flatnonzero(size == s) for s in np.unique(size)])
        return out


def seats_differ(table: pd.DataFrame) -> np.ndarray:
    """Rows of the table that are of two models, not of one with itself."""
    return (table["model_x"].astype(str) != table["model_y"].astype(str)).to_numpy()


def _spearman(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's rho of every two rows over the columns where both are defined, and how many these are.

    nan where one of the two is constant there, or for fewer than three.
    """
    there = np.isfinite(values).astype(float)
    count = there @ there.T
    rho = pd.DataFrame(values.T).corr(method="spearman", min_periods=MIN_UNITS).to_numpy()
    return np.clip(rho, -1.0, 1.0), count


# --- intervals ---------------------------------------------------------------------------------


def _intervals(
    grid: _Grid, values: np.ndarray, families: Mapping[str, str], rho: np.ndarray, count: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str, int]:
    """The jackknife on Fisher's z; without a unit the order may be perfect, and rho then counts as half a swap below."""
    undefined = np.full(rho.shape, math.nan)
    ones = np.ones((len(grid.rows), len(grid.columns)))
    rows, columns = sides_of_units(Crossed(tuple(grid.rows), tuple(grid.columns), ones, ones), families)
    if rows is None:
        return undefined, undefined, undefined, "", 0
    i, j = grid.seen
    first, second = np.array(grid.rows)[grid.row_model[i]], np.array(grid.columns)[grid.column_model[j]]

    def without(unit: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
        gone = list(unit)
        return _spearman(values[:, ~(np.isin(first, gone) | np.isin(second, gone))])

    def z(found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        n = np.maximum(found[1], MIN_UNITS)
        most = 1 - 6 / (n**3 - n)
        return np.arctanh(np.clip(found[0], -most, most))

    sides = [side for side in (rows, columns) if side is not None]
    lines = Jackknife((rho, count), tuple(tuple(without(u) for u in side.members) for side in sides))
    low, high, df = lines.interval(z, level)
    perfect = np.abs(rho) > 1 - 1e-12
    low, high, df = (np.where(perfect, math.nan, v) for v in (np.tanh(low), np.tanh(high), df))
    return low, high, df, " or ".join(sorted({side.kind for side in sides})), sum(map(len, sides))


# --- p-values ----------------------------------------------------------------------------------


def _mantel(grid: _Grid, draws: int, seed: int) -> tuple[np.ndarray, int, bool]:
    """Two-sided p of every two measures, the models of the second changing places; the number of orders."""
    blocks = grid.blocks()
    n_orders = math.prod(map(count_orders, blocks))
    exact = n_orders <= MOST_ORDERS
    if n_orders < FEW_ORDERS:
        return np.full((len(grid.scores),) * 2, math.nan), n_orders, exact
    there = np.isfinite(grid.scores)
    ranked = np.zeros(grid.scores.shape)
    i, j = grid.seen
    for k, (score, mask) in enumerate(zip(grid.scores, there, strict=True)):
        kept = mask[i, j]
        ranked[k, i[kept], j[kept]] = _centred_ranks(score[i[kept], j[kept]])
        if grid.both:
            ranked[k, j[kept], i[kept]] = ranked[k, i[kept], j[kept]]
    own, mask = ranked[:, i, j], there[:, i, j].astype(float)
    observed = np.abs(_correlations(own, mask, own, mask))
    larger, visited = np.zeros(observed.shape, int), 0
    for rows, columns in _orders(grid, blocks, exact, draws, seed):
        a, b = rows[i], columns[j]
        moved = np.abs(_correlations(own, mask, ranked[:, a, b], there[:, a, b].astype(float)))
        larger += ~(moved < observed - TIE)
        visited += 1
    p = larger / n_orders if exact else (larger + 1) / (visited + 1)
    return np.where(np.isnan(observed), math.nan, np.triu(p, 1) + np.triu(p, 1).T), n_orders, exact


def _centred_ranks(score: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    ranks = rankdata(score)
    return ranks - ranks.mean() if ranks.size else ranks


def _correlations(a: np.ndarray, mask_a: np.ndarray, b: np.ndarray, mask_b: np.ndarray) -> np.ndarray:
    """Pearson's r of every row of a with every row of b where both are defined; a and b are 0 where they are not."""
    if mask_a.all() and mask_b.all():
        norm = np.sqrt(np.outer((a**2).sum(1), (b**2).sum(1)))
        top = a @ b.T
    else:
        n = np.maximum(mask_a @ mask_b.T, 1.0)
        sum_a, sum_b = a @ mask_b.T, mask_a @ b.T
        top = a @ b.T - sum_a * sum_b / n
        spread_a, spread_b = a**2 @ mask_b.T - sum_a**2 / n, mask_a @ (b**2).T - sum_b**2 / n
        norm = np.sqrt(np.maximum(spread_a, 0) * np.maximum(spread_b, 0))
    return np.divide(top, norm, out=np.full(top.shape, math.nan), where=norm > TIE)


def _orders(
    grid: _Grid, blocks: Sequence[Sequence[np.ndarray]], exact: bool, draws: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Orders of the rows and of the columns, models moving with all their layers."""
    sides = (grid.row_model,) if grid.both else (grid.row_model, grid.column_model)
    of_rows = [[np.flatnonzero(owner == model) for model in range(owner.max() + 1)] for owner in sides]
    if exact:
        chosen = itertools.product(*(all_orders(b, len(m)) for b, m in zip(blocks, of_rows, strict=True)))
    else:
        rng = np.random.default_rng(seed)
        chosen = zip(*(some_orders(b, len(m), draws, rng) for b, m in zip(blocks, of_rows, strict=True)), strict=True)
    for orders in chosen:
        moved = [np.concatenate([m[k] for k in order]) for m, order in zip(of_rows, orders, strict=True)]
        yield moved[0], moved[-1]


# --- order and words ---------------------------------------------------------------------------


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


def _text(made: Agreement) -> str:
    known = made.table[made.table["spearman"].notna()].sort_values("spearman", kind="stable")
    pairs = int(made.table["n_pairs"].max())
    out = f"{len(made.measures)} measures over {pairs:,} {OVER[made.over]} of {made.n_models} models, n = {made.n_stimuli:,}"
    if known.empty:
        return f"{out}: no two measures have a correlation."
    if len(known) == 1:
        out += f": Spearman of {_pair_words(known.iloc[0], made.level)}."
    else:
        ends = f"most alike {_pair_words(known.iloc[-1], made.level)}; least {_pair_words(known.iloc[0], made.level)}"
        out += f": median Spearman {signed(float(known['spearman'].median()))}; {ends}."
    units = made.unit.replace("family", "families").replace("model", "models")
    how = f"leave out one of {made.n_units} {units} at a time"
    out += f" Intervals {how}; " if made.unit else " Too few models for an interval; "
    if made.n_orders < FEW_ORDERS:
        out += f"no p, for {made.n_orders} reordering{'s' * (made.n_orders != 1)} of the models are too few."
    else:
        orders = f"all {made.n_orders:,}" if made.exact else f"{made.draws:,} random"
        out += f"p moves models, not pairs (Mantel, {orders} reorderings)."
    if made.distances:
        out += f" Distances with their sign turned: {', '.join(made.distances)}."
    lost = int((made.table["n_left_out"] > 0).sum())
    if lost:
        most = int(made.table["n_left_out"].max())
        out += f" Pairs without both scores are left out: up to {most:,}, for {lost} of {len(made.table)} pairs of measures."
    return out


def _pair_words(row: pd.Series, level: float) -> str:
    known = not math.isnan(row["low"])
    interval = f"{100 * level:g} % interval {signed(row['low'])} to {signed(row['high'])}, " if known else ""
    return f"{row['measure_a']} and {row['measure_b']}, {signed(row['spearman'])} ({interval}{p_words(row['pvalue'])})"
