"""Alignment within and between bins of competence: do better models agree more with one another?

After Figure 2 (left) of M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis (2024): models are
binned by the share of VTAB tasks that they solve, and the alignment within a bin is the mean over its pairs of models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.models import COMPETENCES, ModelRecord
from repalign.relate._crossed import MIN_UNITS, Units, units_of
from repalign.relate._inference import DRAWS, LEVEL, Jackknife
from repalign.relate._pairs import all_met, facts, families_of, names_of, scores_of, searched, stimuli, value
from repalign.relate._permute import TIE
from repalign.relate._words import noun, p_words, signed

ALL_PARTNERS = -1
# Draws that are judged together: rows of a (draws, models) array.
CHUNK = 2_000

COLUMNS = [
    "bin_x", "bin_y", "label_x", "label_y", "n_models_x", "n_models_y", "n_pairs", "n_missing", "alignment", "chance",
    "se", "low", "high", "df", "unit", "n_units",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Bins:
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
        pair (`ends`, their numbers); with its interval, and p for models whose competences change places.
    left_out : models without this competence, or outside the edges. n_stimuli : n of every score.
    """

    measure: str
    against: str
    label: str
    side: str
    lower_is_better: bool
    level: float
    edges: tuple[float, ...]
    labels: tuple[str, ...]
    models: pd.DataFrame
    table: pd.DataFrame
    ends: tuple[int, int] | None
    difference: float
    difference_interval: tuple[float, float]
    pvalue: float
    draws: int
    seed: int
    n_stimuli: int
    left_out: tuple[str, ...]
    text: str

    @property
    def n(self) -> int:
        """The number of models in bins."""
        return len(self.models)

    @property
    def within(self) -> pd.DataFrame:
        """One row per bin: the alignment within it, or with all partners."""
        own = (self.table["bin_x"] == self.table["bin_y"]) | (self.table["bin_y"] == ALL_PARTNERS)
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
    table: pd.DataFrame,
    models: Sequence[Mapping[str, Any] | ModelRecord],
    against: str,
    *,
    side: str = "both",
    measure: str | None = None,
    bins: int | Sequence[float] = 5,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
    label: str | None = None,
    lower_is_better: bool | None = None,
) -> Bins:
    """Mean alignment of models within bins of a competence, and between bins.

    Parameters
    ----------
    table : the table of an alignment; its "max" rows (layer search) of `measure` are used.
    models : records of the models, as in the run's description.
    against : "n_parameters" or the name of a score; models without it are left out and named.
    side : "both" where models were compared among themselves; "x" or "y" where two sides were: bins of that side, each
        against all models of the other.
    measure : the first of the table by default.
    bins : a number of bins with equally many models, as far as ties allow; or their edges, ascending: the paper's are
        0, 20, 40, 60, 80, 100 % of VTAB's tasks. A bin holds [edge, next edge), the last one its upper edge too.
    level : of the intervals. draws, seed : random reorderings for the p-value.
    label, lower_is_better : facts of a score that `COMPETENCES` does not know.

    Notes
    -----
    With t(-u) the mean without unit u (a model, or a family where there are three), the interval is the jackknife's,
    t -+ quantile * sqrt((G - 1)/G * sum of (t(-u) - t)^2), summed over the two bins, or over bin and partners; see
    `relate.TrendInference`. It needs three units in every bin that it speaks of.

    Raises
    ------
    RepalignError : unknown side, measure or competence; a side that the table does not have; bad edges or counts.
    """
    pairs = searched(table, measure)
    _check_side(side, pairs)
    records = {m["name"]: m for m in map(facts, models)}
    names = names_of(pairs, side)
    known = COMPETENCES.get(against)
    if lower_is_better is None:
        lower_is_better = known.lower_is_better if known else False
    x = {name: v for name in names if (v := value(records.get(name, {}), against)) is not None}
    if not x:
        scores = dict.fromkeys(key for r in records.values() for key in (r.get("scores") or {}))
        raise RepalignError(
            f"no model of side {side} has a {against!r}",
            expected="n_parameters or a score of at least one model",
            got=against,
            remedy=did_you_mean(against, ["n_parameters", *scores]),
        )
    edges = _edges(bins, np.array(list(x.values())), against)
    place = _places(x, edges, lower_is_better)
    left_out = [f"{name} (no {against})" for name in names if name not in x]
    left_out += [f"{name} (outside the edges)" for name in x if name not in place]
    if not place:
        raise RepalignError(
            f"no model has a {against!r} within the edges",
            expected=f"values in {edges[0]:g} to {edges[-1]:g}",
            got=f"{min(x.values()):g} to {max(x.values()):g}",
            remedy="give edges in the unit of the score",
        )
    kin = families_of(records)
    labels = _labels(edges, lower_is_better)
    data = _Data.of(pairs, side, list(place), kin, level)
    inside = [np.flatnonzero([place[name] == b for name in data.rows]) for b in range(len(labels))]
    found = _table(data, inside, labels)
    ends = _ends(found)
    difference, low, high = _difference(data, inside, ends)
    pvalue = _pvalue(data, inside, ends, difference, draws, seed)
    points = pd.DataFrame(
        [{"model": n, "family": kin.get(n, ""), "x": x[n], "bin": b} for n, b in place.items()],
        columns=["model", "family", "x", "bin"],
    )
    made = Bins(
        measure=str(pairs["measure"].iloc[0]),
        against=against,
        label=label or (known.label if known else against.replace("_", " ").capitalize()),
        side=side,
        lower_is_better=lower_is_better,
        level=level,
        edges=tuple(float(e) for e in edges),
        labels=labels,
        models=points,
        table=found,
        ends=ends,
        difference=difference,
        difference_interval=(low, high),
        pvalue=pvalue,
        draws=draws,
        seed=seed,
        n_stimuli=stimuli(pairs),
        left_out=tuple(left_out),
        text="",
    )
    return replace(made, text=_text(made))


def _check_side(side: str, pairs: pd.DataFrame) -> None:
    if side not in ("x", "y", "both"):
        raise RepalignError(f"no side {side!r}", expected="x, y or both", got=side)
    among = all_met(pairs)
    if among != (side == "both"):
        raise RepalignError(
            "models were compared among themselves" if among else "models of one side were compared with another side",
            expected='side="both"' if among else 'side="x" or side="y"',
            got=f"side={side!r}",
            remedy='bin all models together with side="both"' if among else "bin one side, each against all of the other",
        )


# --- bins --------------------------------------------------------------------------------------


def _edges(bins: int | Sequence[float], x: np.ndarray, against: str) -> np.ndarray:
    if isinstance(bins, (int, np.integer)):
        if bins < 1:
            raise RepalignError("no bins", expected="a number of at least 1, or edges", got=bins)
        edges = np.unique(np.quantile(x, np.linspace(0, 1, int(bins) + 1)))
        if len(edges) < 2:
            raise RepalignError(
                f"all models have the same {against!r}", expected="values that differ", got=f"{x[0]:g}", remedy="give edges"
            )
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

    rows: list[str]
    columns: list[str]
    scores: np.ndarray
    chance: np.ndarray
    both: bool
    families: Mapping[str, str]
    level: float

    @classmethod
    def of(cls, pairs: pd.DataFrame, side: str, rows: list[str], families: Mapping[str, str], level: float) -> _Data:
        columns = rows if side == "both" else names_of(pairs, "y" if side == "x" else "x")
        scores = scores_of(pairs, side, rows, columns)
        chance = scores_of(pairs, side, rows, columns, "null_mean")
        return cls(rows, columns, scores, np.where(np.isfinite(scores), chance, math.nan), side == "both", families, level)

    @property
    def partners(self) -> np.ndarray:
        return np.arange(len(self.columns))

    def mean(self, a: np.ndarray, b: np.ndarray, without: frozenset[str] = frozenset()) -> float:
        """The mean score of rows a with columns b; a bin with itself has every pair twice, which changes no mean."""
        a = a[[self.rows[i] not in without for i in a]]
        b = b[[self.columns[j] not in without for j in b]]
        part = self.scores[np.ix_(a, b)]
        part = part[np.isfinite(part)]
        return float(part.mean()) if part.size else math.nan

    def units(self, bins: Sequence[np.ndarray], least: int) -> tuple[Units, ...]:
        """The units of some bins, and of the partners where these are others and three; () where there are too few.

        Families that stand in several bins, or on both sides, are one unit in all of them.
        """
        groups = [[self.rows[i] for i in b] for b in bins]
        needed = [least] * len(groups)
        if not self.both and len(self.columns) >= MIN_UNITS:
            groups, needed = [*groups, self.columns], [*needed, 1]
        kin = [{self.families[n] for n in g if self.families.get(n)} for g in groups]
        if len(set().union(*kin)) < sum(map(len, kin)):
            together = [name for group in groups for name in group]
            found = [units_of(together, self.families, *map(frozenset, groups), least=max(needed))]
        else:
            found = [
                units_of(g, self.families, frozenset(g), least=k) for g, k in zip(groups, needed, strict=True)
            ]
        return () if None in found else tuple(u for u in found if u is not None)


def _jackknife(estimate: Any, units: tuple[Units, ...], level: float) -> tuple[float, float, float]:
    """The interval of estimate(without) and its degrees of freedom; nan without units."""
    lines = Jackknife(estimate(frozenset()), tuple(tuple(estimate(u) for u in side.members) for side in units))
    low, high, df = lines.interval(lambda t: t, level)
    return float(low), float(high), float(df)


def _table(data: _Data, inside: Sequence[np.ndarray], labels: Sequence[str]) -> pd.DataFrame:
    rows = []
    for i, a in enumerate(inside):
        for j, b in enumerate(inside if data.both else [data.partners]):
            if data.both and j < i:
                continue
            rows.append(_cell(data, a, b, i == j and data.both))
            other = (j, labels[j]) if data.both else (ALL_PARTNERS, "all partners")
            rows[-1] |= {"bin_x": i, "bin_y": other[0], "label_x": labels[i], "label_y": other[1]}
    return pd.DataFrame(rows, columns=COLUMNS)


def _cell(data: _Data, a: np.ndarray, b: np.ndarray, within: bool) -> dict[str, Any]:
    """One bin with itself, with another, or with all partners."""
    part, level = data.scores[np.ix_(a, b)], data.chance[np.ix_(a, b)]
    if within:
        upper = np.triu_indices(len(a), 1)
        part, level = part[upper], level[upper]
    defined, level = part[np.isfinite(part)], level[np.isfinite(level)]
    n = defined.size
    bins = [a] if within or not data.both else [a, b]
    units = data.units(bins, 2 if within else 1) if n else ()
    low, high, df = _jackknife(lambda gone: data.mean(a, b, gone), units, data.level) if units else (math.nan,) * 3
    return {
        "n_models_x": len(a),
        "n_models_y": len(b),
        "n_pairs": n,
        "n_missing": part.size - n,
        "alignment": float(defined.mean()) if n else math.nan,
        "chance": float(level.mean()) if level.size else math.nan,
        "se": float(defined.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        "low": low,
        "high": high,
        "df": df,
        "unit": units[0].kind if units else "",
        "n_units": sum(map(len, units)),
    }


# --- the two ends ------------------------------------------------------------------------------


def _ends(table: pd.DataFrame) -> tuple[int, int] | None:
    """The least and the most competent bin that have a score; None unless they are two."""
    own = (table["bin_x"] == table["bin_y"]) | (table["bin_y"] == ALL_PARTNERS)
    full = table.loc[own & (table["n_pairs"] > 0), "bin_x"].tolist()
    return (full[0], full[-1]) if len(full) > 1 else None


def _difference(
    data: _Data, inside: Sequence[np.ndarray], ends: tuple[int, int] | None
) -> tuple[float, float, float]:
    if ends is None:
        return math.nan, math.nan, math.nan
    least, most = (inside[e] for e in ends)

    def estimate(gone: frozenset[str]) -> float:
        high, low = (data.mean(b, b if data.both else data.partners, gone) for b in (most, least))
        return high - low

    units = data.units([least, most], 2 if data.both else 1)
    low, high, _ = _jackknife(estimate, units, data.level) if units else (math.nan,) * 3
    return estimate(frozenset()), low, high


def _pvalue(
    data: _Data,
    inside: Sequence[np.ndarray],
    ends: tuple[int, int] | None,
    difference: float,
    draws: int,
    seed: int,
) -> float:
    """Two-sided: models change places over all bins; (C + 1)/(K + 1), draws without a difference counting as larger."""
    if ends is None:
        return math.nan
    there = np.isfinite(data.scores)
    total, count = np.where(there, data.scores, 0.0), there.astype(float)
    if not data.both:
        total, count = total.sum(1), count.sum(1)
    rng = np.random.default_rng(seed)
    sizes = [len(inside[e]) for e in ends]
    larger = 0
    for start in range(0, draws, CHUNK):
        orders = rng.permuted(np.tile(np.arange(len(data.rows)), (min(CHUNK, draws - start), 1)), axis=1)
        means = []
        for some in (orders[:, : sizes[0]], orders[:, sizes[0] : sum(sizes)]):
            member = np.zeros(orders.shape)
            np.put_along_axis(member, some, 1.0, axis=1)
            top, bottom = ((member @ m * member).sum(1) if data.both else member @ m for m in (total, count))
            means.append(np.divide(top, bottom, out=np.full(len(member), math.nan), where=bottom > 0))
        gap = np.abs(means[1] - means[0])
        larger += int((~(gap < abs(difference) - TIE * max(1.0, abs(difference)))).sum())
    return (larger + 1) / (draws + 1)


# --- words -------------------------------------------------------------------------------------


def _text(made: Bins) -> str:
    alignment = f"alignment ({made.measure}, n = {made.n_stimuli:,}{'' if made.side == 'both' else ', all partners'})"
    out = []
    if made.ends is None:
        only = made.within.loc[made.within["n_pairs"] > 0]
        found = "no bin has a pair with a score"
        if len(only):
            row = only.iloc[0]
            found = f"only the bin {row['label_x']} has pairs, and its {alignment} is {_cell_words(made, row)}"
        out.append(f"Of {made.n} model{'s' * (made.n != 1)} by {noun(made.label)}, {found}.")
    else:
        least, most = (made.within.loc[made.within["bin_x"] == e].iloc[0] for e in made.ends)
        low, high = made.difference_interval
        interval = f"{100 * made.level:g} % interval {signed(low)} to {signed(high)}"
        out.append(
            f"By {noun(made.label)}, {alignment} of the most competent bin ({most['label_x']}) is "
            f"{_cell_words(made, most)}; of the least ({least['label_x']}) it is {_cell_words(made, least)}."
        )
        out.append(
            f"Difference {signed(made.difference)} ({'no interval' if math.isnan(low) else interval}; "
            f"{p_words(made.pvalue)} from {made.draws:,} reorderings of the {made.n} models over the bins)."
        )
    units = sorted(set(made.table["unit"]) - {""})
    if units:
        out.append(f"Intervals leave out one {' or '.join(units)} at a time, not one pair.")
    families = [f for f in made.models["family"] if f]
    if len(set(families)) < len(families):
        out.append("p takes models as exchangeable: where families differ for other reasons, it is too small.")
    if made.left_out:
        out.append(f"Left out: {', '.join(made.left_out)}.")
    return " ".join(out)


def _cell_words(made: Bins, row: pd.Series) -> str:
    """ "0.31 (95 % interval 0.28 to 0.34, chance 0.01; 12 models, 66 pairs)"."""
    n, pairs = int(row["n_models_x"]), int(row["n_pairs"])
    known = not math.isnan(row["low"])
    interval = f"{100 * made.level:g} % interval {row['low']:.3g} to {row['high']:.3g}" if known else "no interval"
    counted = f"{n} model{'s' * (n != 1)}, {pairs} pair{'s' * (pairs != 1)}"
    return f"{row['alignment']:.3g} ({interval}, chance {row['chance']:.3g}; {counted})".replace("-", "−")
