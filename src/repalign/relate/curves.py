"""Several runs: alignment, or a trend of it, as a function of a parameter; the same pairs of models under variants.

A curve runs over a column of the table, a parameter of the measures, or a number of the models of a side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, choose, did_you_mean
from repalign.measures import MeasureFacts, facts_of, measure_among
from repalign.models import COMPETENCES
from repalign.relate.findings import QUANTITIES, Finding, noun
from repalign.relate.jackknife import LEVEL, MIN_MODELS_LINE, mean_of_pairs, pearson, spearman
from repalign.relate.permutations import DRAWS
from repalign.relate.scores import PAIR, PARAMETERS, Models, Records, names_of, other_side, pairs_of, searched, stimuli
from repalign.relate.trends import NOTHING, Trend, trend

RELATIVE = ("smallest", "first")
STATISTICS = {"spearman": "Spearman correlation", "slope": "Slope"}
FAMILIES = {"family": "model_y", "family_x": "model_x", "family_y": "model_y"}
# What a curve adds to the rows that it takes from the table.
X, LINE, GROUP = "_x", "_line", "_group"
NOT_AN_AXIS = (*PAIR, "scope")
# Columns that a run finds out; all others say what was run.
RESULTS = (
    *("layer_x", "index_x", "layer_y", "index_y", "statistic", "null_mean", "null_std", "z", "pvalue", "threshold"),
    *("calibrated", "p_stepdown", "p_maxt", "p_holm", "p_bh", "p_by", "n_draws"),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve(Finding):
    """Alignment over a parameter; `table` has all that a figure shows, `text` says it in sentences.

    `table`: one row per point with the columns line, x, value, low, high (the interval), chance, n (stimuli), n_pairs and
    n_undefined; of a mean also units, what the interval leaves out one at a time; of a trend n_models, pvalue and, each
    with interval and p, slope and spearman. `numbers`: x is a number (ascending), else a category in the order given.
    `quantity` names the value, `chance_label` what it is without alignment. `measure` is the measure of all lines, None
    if lines are measures. `about` says which trend the values are of.
    """

    kind: ClassVar[str] = "curve"
    x: str
    x_label: str
    numbers: bool
    by: str | None
    quantity: str
    chance_label: str
    relative: str | None = None

    @property
    def lines(self) -> list[str]:
        """The lines in order of appearance; one called "" if `by` is None."""
        return list(dict.fromkeys(self.table["line"]))

    def line(self, name: str) -> pd.DataFrame:
        """The points of one line."""
        return self.table.loc[self.table["line"] == name].reset_index(drop=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class TrendCurve(Curve):
    """A trend over a parameter: a curve whose values are Spearman correlations or slopes, of the trend that `about` names."""

    kind: ClassVar[str] = "trend_curve"
    about: str


def curve(
    table: pd.DataFrame, x: str, *, by: str | None = "measure", value: str = "statistic", models: Models = (),
    side: str = "x", measure: str | None = None, over: Sequence[str] = (), relative: str | None = None, level: float = LEVEL,
) -> Curve:  # fmt: skip
    """Mean alignment over pairs of models as a function of `x`, one line for every value of `by`.

    Parameters
    ----------
    table : "max" rows (layer searches) of one or several runs; further columns say what differs between the runs.
    x : a column ("share", "n"); a parameter of the measures ("k": measures are one line if they differ in k alone); or
        "n_parameters" or a score of the models of `side`.
    by : "measure"; "model_x" or "model_y"; "family" (of model_y; "family_x" of model_x), from `models`; any other column;
        or None for one line.
    value : "statistic"; "gain", score minus its chance level; "calibrated".
    models : records, for families and for x that is a number of the models.
    side : the side whose models x and `relative` are about.
    measure : if lines are not measures: the one of all lines, by default the first. A repr, with or without the
        parameter that is x.
    over : columns of repetitions, such as a seed. Without it a pair may stand once at a point of a line.
    relative : None; "smallest": the value minus that of the smallest model of `side` with the same partner, over the
        standard deviation of the values of all pairs at the same setting (everything but the models; Huh et al. 2024,
        Figure 10, does not say which deviation it takes); "first": minus the value of the same pair at the first x, over
        the standard deviation there. Reference and deviation are held fixed in the interval.
    level : of the intervals, which leave out one model or family at a time on both sides (docs/trends.md).

    Returns
    -------
    Curve : intervals are nan if neither side has three models. They say what the mean is over models like these.

    Raises
    ------
    RepalignError : an unknown name; a pair that stands several times at a point; several n at a point; no pairs.

    Source: Huh et al. 2024 (arXiv 2405.07987), Figures 9 and 10.
    """
    choose("value", value, QUANTITIES, f"no value {value!r} of a pair")
    if relative is not None:
        choose("form", relative, RELATIVE, f"no form relative={relative!r}")
    records = Records.of(models)
    axis, measure = _axis(table, x, by, records, side, measure, over)
    rows, families = axis.rows.assign(**valued(axis.rows, value)), records.families
    if relative is not None:
        rows = _relative(rows, axis, by, relative, records, side)
    points = []
    for line, place, found in axis.points(rows):
        mean = mean_of_pairs(found, found["_value"], families, level)
        defined = found.loc[found["_value"].notna()]
        points.append({
            "line": line, "x": place, "value": mean.mean, "low": mean.low, "high": mean.high,
            "chance": float(defined["_chance"].mean()), "n": stimuli(found),
            "n_pairs": len(defined.drop_duplicates(PAIR)), "n_undefined": mean.n_undefined, "units": mean.units,
        })  # fmt: skip
    quantity, chance_label = QUANTITIES[value]
    if relative is not None:
        quantity = f"{quantity}, from the {'smallest model' if relative == 'smallest' else 'first point'}, in sd"
    return Curve(
        measure=measure, table=pd.DataFrame(points), left_out=axis.left_out, level=level, x=x, x_label=_label(x),
        numbers=axis.numbers, by=by, quantity=quantity, chance_label=chance_label, relative=relative,
    )  # fmt: skip


def trend_curve(
    table: pd.DataFrame, x: str, models: Models, against: str = PARAMETERS, side: str = "x", *,
    by: str | None = "measure", statistic: str = "spearman", measure: str | None = None,
    draws: int = DRAWS, seed: int = 0, **options: Any,
) -> TrendCurve:  # fmt: skip
    """The trend of alignment with a competence of the models of one side, as a function of `x`.

    Parameters
    ----------
    table, x, by, measure : as for `curve`; x is a column or a parameter of the measures.
    models, against, side, draws, seed : as for `trend`; `options` (log, lower_is_better, label) go to it as well.
    statistic : which number is the curve's value: "spearman", which can be compared between scores of different scale, or
        "slope", in score per unit of the competence.

    Returns
    -------
    TrendCurve : intervals and p are those of `trend` at each point; 0, no trend, stands as chance. If the lower end of
        a competence is the better one (bits per byte), alignment that rises with competence is a negative trend.

    Raises
    ------
    RepalignError : as `curve` and `trend` do; x that is a number of the models.
    """
    choose("statistic", statistic, STATISTICS, f"a trend has no {statistic!r}")
    axis, measure = _axis(table, x, by, Records.of(models), side, measure)
    if axis.kind == "model":
        raise RepalignError(
            f"{x!r} is a number of the models, so every point has one model and no trend", got=x,
            expected="a column of the table or a parameter of its measures",
            remedy=f"use relate.trend(table, models, {x!r}, {side!r})",
        )  # fmt: skip
    points, one = [], None
    for line, place, rows in axis.points(axis.rows):
        one = trend(rows, models, against, side, draws=draws, seed=seed, **options)
        points.append({"line": line, "x": place, **_trend_point(one, statistic), "n": stimuli(rows), "n_pairs": len(rows)})
    assert one is not None  # an axis has rows
    better = ", lower is better: a negative trend is alignment that rises with competence" * one.lower_is_better
    return TrendCurve(
        measure=measure, table=pd.DataFrame(points), left_out=axis.left_out, draws=draws, seed=seed, x=x, x_label=_label(x),
        numbers=axis.numbers, by=by, quantity=f"{STATISTICS[statistic]} with {noun(one.label)}", chance_label="no trend",
        about=f"alignment against {noun(one.label)} of side {side}{better}",
    )  # fmt: skip


def _trend_point(found: Trend, statistic: str) -> dict[str, Any]:
    numbers = {}
    for name in ("slope", "spearman"):
        low, high = getattr(found.inference, f"{name}_interval", NOTHING)
        numbers[name] = (getattr(found, name), low, high, getattr(found.inference, f"{name}_pvalue", math.nan))
    out = {**dict(zip(("value", "low", "high", "pvalue"), numbers[statistic], strict=True)), "chance": 0.0}
    for name, own in numbers.items():
        out |= zip((name, f"{name}_low", f"{name}_high", f"{name}_pvalue"), own, strict=True)
    return {**out, "n_models": found.n, "n_undefined": sum(found.points["n_undefined"].tolist())}


def _label(name: str) -> str:
    """An axis for people: a competence by its label, anything else as words."""
    return COMPETENCES[name].label if name in COMPETENCES else name.replace("_", " ")


def valued(rows: pd.DataFrame, value: str) -> dict[str, np.ndarray]:
    """The value of every pair and what it is by chance, as the columns `_value` and `_chance`."""
    score, chance = rows["statistic"].to_numpy(float), rows["null_mean"].to_numpy(float)
    if value == "statistic":
        return {"_value": score, "_chance": chance}
    numbers = score - chance if value == "gain" else rows["calibrated"].to_numpy(float)
    return {"_value": numbers, "_chance": np.zeros(len(rows))}


# --- the axis and the lines ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Axis:
    """The rows that have a place on the axis (column `X`) and a line (`LINE`).

    `GROUP` is the measure without the axis' parameter. `kind` is "column", "parameter" or "model". Places are numbers,
    ascending, else texts in the order of the table.
    """

    kind: str
    numbers: bool
    values: list[Any]  # the places in order
    rows: pd.DataFrame
    left_out: tuple[str, ...]

    def points(self, rows: pd.DataFrame) -> Iterator[tuple[str, Any, pd.DataFrame]]:
        """Line, place and rows of every point, lines in order of appearance and places in the order of the axis."""
        groups = dict(list(rows.groupby([LINE, X], sort=False)))
        for line in dict.fromkeys(rows[LINE]):
            for place in self.values:
                if (line, place) in groups:
                    yield line, place, groups[(line, place)]


def _axis(
    table: pd.DataFrame, x: str, by: str | None, records: Records, side: str, measure: str | None, over: Sequence[str] = ()
) -> tuple[_Axis, str | None]:
    """The rows of a curve with their place and their line, and the measure of all lines if there is one."""
    choose("side", side, ("x", "y"))
    pairs = pairs_of(table)
    kind, given, groups, left_out = _places(pairs, x, records, side)
    rows = pairs.assign(**{X: pd.Series(given, dtype=object), GROUP: groups}).loc[[not _missing(v) for v in given]]
    if rows.empty:
        raise RepalignError(f"no pair of models has a value of {x!r}", expected="numbers or texts", got="none")
    numbers = all(isinstance(v, Real) and not isinstance(v, (bool, np.bool_)) for v in rows[X])
    rows = rows.assign(**{X: [float(v) if numbers else str(v) for v in rows[X]]})
    values = rows[X].unique().tolist()
    if "measure" in (by, x):
        if measure is not None:
            raise RepalignError("lines and points are measures already", got=f"measure={measure!r}", remedy="leave it out")
    else:
        without = dict(zip(rows["measure"], rows[GROUP], strict=True))
        known = dict.fromkeys([*without.values(), *without])
        asked = next(iter(known)) if measure is None else measure_among(measure, list(known))
        measure = without.get(asked, asked)
        rows = rows.loc[rows[GROUP] == measure]
    rows = rows.assign(**{LINE: _lines(rows, by, records)})
    _once(rows, over)
    return _Axis(kind, numbers, sorted(values) if numbers else values, rows, left_out), measure


def _places(pairs: pd.DataFrame, x: str, records: Records, side: str) -> tuple[str, list[Any], list[str], tuple[str, ...]]:
    """What kind of thing `x` is, its value and the measure without it for every pair, and what has no value.

    Raises RepalignError for a name that is neither a column, nor a parameter of a measure, nor a number of a model.
    """
    texts = pairs["measure"].tolist()
    if x in pairs.columns and x not in NOT_AN_AXIS:
        given = pairs[x].tolist()
        missing = sum(map(_missing, given))
        return "column", given, texts, (f"{missing} pair{'s' * (missing != 1)} without {x}",) if missing else ()
    known = {text: facts_of(text) for text in dict.fromkeys(texts)}
    if any(x in m.parameters for m in known.values()):
        left_out = tuple(f"{text} (no {x})" for text, m in known.items() if m.parameters.get(x) is None)
        without = {text: _without(m, x) if x in m.parameters else text for text, m in known.items()}
        return "parameter", [known[text].parameters.get(x) for text in texts], [without[text] for text in texts], left_out
    places = {name: records.number(name, x) for name in names_of(pairs, side)}
    if any(place is not None for place in places.values()):
        left_out = tuple(f"{name} (no {x})" for name, place in places.items() if place is None)
        return "model", [places[name] for name in pairs[f"model_{side}"]], texts, left_out
    columns = [c for c in pairs.columns if c not in NOT_AN_AXIS]
    known = [*columns, *(key for m in known.values() for key in m.parameters), *records.known(records, "scores")]
    raise RepalignError(
        f"nothing to draw a curve over is called {x!r}", got=x,
        expected="a column of the table, a parameter of its measures, or a number of its models",
        remedy=did_you_mean(x, known),
    )  # fmt: skip


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, Real) and math.isnan(value))


def _without(measure: MeasureFacts, name: str) -> str:
    """The text of a measure without one parameter."""
    given = ", ".join(f"{key}={value!r}" for key, value in measure.parameters.items() if key != name)
    return f"{measure.name}({given})"


def _lines(rows: pd.DataFrame, by: str | None, records: Records) -> list[str]:
    if by is None:
        return [""] * len(rows)
    if by == "measure":
        return rows[GROUP].tolist()
    columns = [c for c in rows.columns if c not in (X, GROUP, "scope")]
    if by in columns:
        return [str(v) for v in rows[by]]
    choose("line", by, [*columns, *FAMILIES], f"there are no lines by {by!r}")
    names, families = rows[FAMILIES[by]], records.families
    without = sorted({name for name in names if not families.get(name)})
    if without:
        raise RepalignError(
            f"no family is known of {', '.join(without[:3])}{' and others' if len(without) > 3 else ''}",
            expected="a record with a family for every model", got=f"{len(without)} models without one",
            remedy="give models=, the records of the run, with families",
        )  # fmt: skip
    return [families[name] for name in names]


def _once(rows: pd.DataFrame, over: Sequence[str]) -> None:
    """A pair stands once at a point of a line: runs that differ are averaged only if that is asked for."""
    for column in over:
        choose("column", column, [c for c in rows.columns if not c.startswith("_")], f"no column {column!r}")
    keys = [LINE, X, *PAIR, *over]
    twice = rows.loc[rows.duplicated(keys, keep=False)]
    if twice.empty:
        return
    _, same = next(iter(twice.groupby(keys, sort=False, dropna=False)))
    settings = [c for c in same.columns if c not in (*RESULTS, *NOT_AN_AXIS, X, LINE, GROUP)]
    differ = [c for c in settings if same[c].astype(str).nunique() > 1]
    raise RepalignError(
        f"{' and '.join(same[PAIR].iloc[0])} stand {len(same)} times at one point of a line",
        expected="one row per pair of models and point", got=f"rows that differ in {', '.join(differ) or 'nothing'}",
        remedy="take one of them, use `by`, or name columns of repetitions in `over`" if differ else "drop the copies",
    )  # fmt: skip


# --- relative values -----------------------------------------------------------------------------


def _relative(rows: pd.DataFrame, axis: _Axis, by: str | None, relative: str, records: Records, side: str) -> pd.DataFrame:
    """Values and chance minus those of the reference, over the standard deviation of the pairs at the same setting."""
    setting = [GROUP] if by is None or by in (*FAMILIES, *PAIR) else [GROUP, LINE]
    if relative == "first" and axis.kind != "model":
        place = pd.Series([axis.values.index(v) for v in rows[X]], rows.index)
        reference = rows.loc[place == place.groupby([rows[key] for key in setting]).transform("min")]
        keys, spread = [*setting, *PAIR], reference.groupby(setting)["_value"].std(ddof=1)
    else:
        is_reference = rows[f"model_{side}"] == _reference(rows, relative, records, side)
        reference = rows.loc[is_reference]
        setting = setting if axis.kind == "model" else [*setting, X]
        keys, spread = [*setting, f"model_{other_side(side)}"], rows.groupby(setting)["_value"].std(ddof=1)
        if axis.kind != "model":  # the others, from the smallest
            rows = rows.loc[~is_reference]
    base = reference.groupby(keys)["_value"].mean()
    rows = rows.join(base.to_frame("_base"), on=keys).join(spread.where(spread > 0).to_frame("_sd"), on=setting)
    return rows.assign(**{c: (rows[c] - rows["_base"]) / rows["_sd"] for c in ("_value", "_chance")})


def _reference(rows: pd.DataFrame, relative: str, records: Records, side: str) -> str:
    """The smallest model of a side, or the one that is first on an axis of models."""
    if relative == "first":
        return str(rows.sort_values(X, kind="stable")[f"model_{side}"].iloc[0])
    names = names_of(rows, side)
    sizes = {name: size for name in names if (size := records.number(name, PARAMETERS)) is not None}
    if not sizes:
        raise RepalignError(
            f"which model of side {side} is the smallest is not known", expected="n_parameters of at least one of them",
            got=f"{len(names)} models without it", remedy="give models=, the records of the run",
        )  # fmt: skip
    return min(sizes, key=lambda name: sizes[name])


# --- contrasts -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Contrast(Finding):
    """Pairs of models under several variants; `table` and `differences` have all that a figure shows, `text` says it.

    `table`: one row per pair of models, variant and quantity: model_x, model_y, variant, value, chance, n. `differences`:
    one row per variant after the first: variant, difference (mean of value minus the value of the first variant, over the
    pairs that have both), low, high, spearman and pearson (of the two values over pairs), n_pairs, n_missing (pairs that
    have one of the two only), units. `missing` names these pairs by variant.
    """

    kind = "contrast"
    column: str
    quantities: tuple[str, ...]
    variants: tuple[str, ...]
    differences: pd.DataFrame
    missing: Mapping[str, tuple[tuple[str, str], ...]]

    def beside(self, variant: str) -> pd.DataFrame:
        """The pairs that have both: model_x, model_y, first and second value, and both chance levels."""
        return _joined(self.table, self.variants[0], variant, "inner")


def contrast(
    table: pd.DataFrame, *, column: str = "variant", value: str | tuple[str, str] = "statistic",
    measure: str | None = None, models: Models = (), level: float = LEVEL,
) -> Contrast:  # fmt: skip
    """Hold the same pairs of models under different variants against one another.

    Parameters
    ----------
    table : "max" rows (layer searches) of several runs, told apart by `column`.
    column : what differs: "variant", "search", "measure", or any other column. The first value is the one that all others
        are held against.
    value : "statistic", "gain" (score minus chance) or "calibrated"; or two of them, which are then contrasted within the
        rows of one run, and `column` is not looked at.
    measure : the first by default; not if the column is "measure".
    models : records; with families the interval leaves out families if it can.
    level : of the interval of the mean difference, which leaves out one model or family at a time on both sides.

    Raises
    ------
    RepalignError : unknown names; fewer than two variants; a pair that is given twice under a variant; no pair in common.
    """
    quantities = [value] if isinstance(value, str) else list(value)
    for name in quantities:
        choose("value", name, QUANTITIES, f"no value {name!r} of a pair")
    several = len(quantities) > 1
    if column == "measure" and not several:
        pairs, measure = pairs_of(table), None
    else:
        pairs, measure = searched(table, measure)
    if several:
        column = "value"
        long = pd.concat([_long(pairs, QUANTITIES[q][0], q) for q in quantities], ignore_index=True)
    else:
        choose("column", column, map(str, pairs.columns), f"no column {column!r} tells runs apart")
        long = _long(pairs, [str(v) for v in pairs[column]], quantities[0])
    variants = list(dict.fromkeys(long["variant"]))
    if len(variants) < 2:
        raise RepalignError(
            f"there is one {column} only", expected="two or more, to hold them against one another", got=", ".join(variants),
            remedy="give the rows of several runs, or two values such as value=('statistic', 'calibrated')",
        )  # fmt: skip
    one = "choose one run's rows" if several else "choose the rows of one measure and one setting"
    refuse_twice(long, one, ["variant"], column)
    families = Records.of(models).families
    found = {name: _difference(long, variants[0], name, families, level) for name in variants[1:]}
    differences = pd.DataFrame([{"variant": name, **row} for name, (row, _) in found.items()])
    if not any(differences["n_pairs"].tolist()):
        raise RepalignError(
            f"no pair of models has a score under two values of {column!r}",
            expected=f"the same models under {variants[0]} and another one", got="; ".join(_first_pairs(long, variants[:2])),
        )  # fmt: skip
    return Contrast(
        measure=measure, table=long, level=level, column=column, quantities=tuple(quantities), variants=tuple(variants),
        differences=differences, missing={name: lacking for name, (_, lacking) in found.items()},
    )  # fmt: skip


def _long(pairs: pd.DataFrame, variant: Any, value: str) -> pd.DataFrame:
    found = valued(pairs, value)
    return pairs[PAIR].assign(variant=variant, value=found["_value"], chance=found["_chance"], n=pairs["n"].to_numpy())


def refuse_twice(pairs: pd.DataFrame, remedy: str, by: Sequence[str] = (), named: str = "") -> None:
    """Refuse a pair of models that stands more than once, in all or under one value of the columns `by`."""
    twice = pairs.loc[pairs.duplicated([*PAIR, *by])]
    if not twice.empty:
        x, y, *value = twice[[*PAIR, *by]].iloc[0]
        where = " ".join(["under", named, *value]) if by else "in the table"
        raise RepalignError(
            f"{x} and {y} stand more than once {where}", expected=f"one row per pair of models{' and variant' * bool(by)}",
            got=f"{len(twice)} rows too many", remedy=remedy,
        )  # fmt: skip


def _joined(long: pd.DataFrame, first: str, second: str, how: Any) -> pd.DataFrame:
    """The pairs of two variants, with the values, chance levels and n of both."""
    sides = [long.loc[(long["variant"] == v) & long["value"].notna()].drop(columns="variant") for v in (first, second)]
    return sides[0].merge(sides[1], on=PAIR, how=how, suffixes=("_first", "_second"), sort=False)


def _difference(
    long: pd.DataFrame, first: str, second: str, families: Mapping[str, str], level: float
) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """One variant against the first: the mean difference over pairs that have both, and the pairs that have one."""
    joined = _joined(long, first, second, "outer")
    a, b = (joined[f"value_{which}"].to_numpy(float) for which in ("first", "second"))
    both = np.isfinite(a) & np.isfinite(b)
    mean = mean_of_pairs(joined.loc[both], (b - a)[both], families, level)
    lacking = tuple((str(x), str(y)) for x, y in joined.loc[~both, PAIR].to_numpy())
    related = both.sum() >= MIN_MODELS_LINE
    return {
        "difference": mean.mean, "low": mean.low, "high": mean.high,
        "spearman": spearman(a[both], b[both]) if related else math.nan,
        "pearson": pearson(a[both], b[both]) if related else math.nan,
        "n_pairs": mean.n_pairs, "n_missing": len(lacking), "units": mean.units,
    }, lacking  # fmt: skip


def _first_pairs(long: pd.DataFrame, variants: Sequence[str]) -> Iterator[str]:
    for variant in variants:
        rows = long.loc[(long["variant"] == variant) & long["value"].notna()].head(2)
        yield f"{variant}: {', '.join(f'{x} and {y}' for x, y in rows[PAIR].to_numpy()) or 'none defined'}"
