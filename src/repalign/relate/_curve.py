"""Alignment as a function of a parameter: one mean over pairs of models for every value of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.models import ModelRecord
from repalign.relate._axis import GROUP, LINE, NOT_AN_AXIS, Axis, X, axis_label, axis_of
from repalign.relate._curve_words import curve_sentences
from repalign.relate._inference import LEVEL
from repalign.relate._means import mean_of_pairs
from repalign.relate._pairs import PARAMETERS, facts, families_of, names_of, stimuli
from repalign.relate._pairs import value as number_of

# What a curve shows: its name on the axis, and what it is where there is nothing but chance.
QUANTITIES = {
    "statistic": ("Score", "chance"),
    "gain": ("Score above chance", "chance"),
    "calibrated": ("Calibrated score", "threshold"),
}
RELATIVE = ("smallest", "first")
FAMILIES = {"family": "model_y", "family_x": "model_x", "family_y": "model_y"}

# Columns that a run finds out; all others say what was run.
_RESULTS = (
    *("layer_x", "index_x", "layer_y", "index_y", "statistic", "null_mean", "null_std", "z", "pvalue", "threshold"),
    *("calibrated", "p_stepdown", "p_maxt", "p_holm", "p_bh", "p_by", "n_draws"),
)


@dataclass(frozen=True, eq=False)
class Curve:
    """Alignment over a parameter; `table` has all that a figure shows, `text` says it in sentences.

    `table`: one row per point with the columns line, x, value, low, high (the interval), chance, n (stimuli), n_pairs and
    n_undefined; of a mean also units, what the interval leaves out one at a time; of a trend n_models, pvalue and, each
    with interval and p, slope and spearman. `numbers`: x is a number (ascending), else a category in the order given.
    `quantity` names the value, `chance_label` what it is without alignment. `measure` is the measure of all lines, None
    where lines are measures.
    """

    x: str
    x_label: str
    numbers: bool
    by: str | None
    measure: str | None
    quantity: str
    chance_label: str
    level: float
    table: pd.DataFrame
    left_out: tuple[str, ...] = ()
    relative: str | None = None
    text: str = ""

    @property
    def lines(self) -> list[str]:
        """The lines in order of appearance; one called "" where `by` is None."""
        return list(dict.fromkeys(self.table["line"]))

    def line(self, name: str) -> pd.DataFrame:
        """The points of one line."""
        return self.table.loc[self.table["line"] == name].reset_index(drop=True)


def curve(
    table: pd.DataFrame,
    x: str,
    *,
    by: str | None = "measure",
    value: str = "statistic",
    models: Sequence[Mapping[str, Any] | ModelRecord] = (),
    side: str = "x",
    measure: str | None = None,
    over: Sequence[str] = (),
    relative: str | None = None,
    level: float = LEVEL,
) -> Curve:
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
    measure : where lines are not measures: the one of all lines, by default the first. A repr, with or without the
        parameter that is x.
    over : columns of repetitions, such as a seed. Without it a pair may stand once at a point of a line.
    relative : None; "smallest": the value minus that of the smallest model of `side` with the same partner, over the
        standard deviation of the values of all pairs at the same setting (everything but the models; Huh et al. 2024,
        Figure 10, does not say which deviation it takes); "first": minus the value of the same pair at the first x, over
        the standard deviation there. Reference and deviation are held fixed in the interval.
    level : of the intervals, which leave out one model or family at a time on both sides (docs/trends.md).

    Returns
    -------
    Curve : intervals are nan where neither side has three models. They say what the mean is over models like these.

    Raises
    ------
    RepalignError : an unknown name; a pair that stands several times at a point; several n at a point; no pairs.

    Source: Huh et al. 2024 (arXiv 2405.07987), Figures 9 and 10.
    """
    if value not in QUANTITIES:
        raise RepalignError(f"no value {value!r} of a pair", got=value, remedy=did_you_mean(value, QUANTITIES))
    if relative is not None and relative not in RELATIVE:
        raise RepalignError(f"no form relative={relative!r}", got=relative, remedy=did_you_mean(relative, RELATIVE))
    records = {m["name"]: m for m in map(facts, models)}
    axis, measure = lines_of(table, x, by, records, side, measure, over)
    rows = axis.rows.assign(**valued(axis.rows, value))
    if relative is not None:
        rows = _relative(rows, axis, by, relative, records, side)
    kin, points = families_of(records), []
    for line, place, found in at_points(rows, axis):
        mean = mean_of_pairs(found, found["_value"], kin, level)
        chance = found.loc[found["_value"].notna(), "_chance"]
        points.append(
            {
                "line": line,
                "x": place,
                "value": mean.mean,
                "low": mean.low,
                "high": mean.high,
                "chance": float(chance.mean()) if len(chance) else math.nan,
                "n": stimuli(found),
                "n_pairs": len(found.loc[found["_value"].notna()].groupby(["model_x", "model_y"])),
                "n_undefined": mean.n_undefined,
                "units": mean.units(),
            }
        )
    quantity, chance_label = QUANTITIES[value]
    if relative is not None:
        quantity = f"{quantity}, from the {'smallest model' if relative == 'smallest' else 'first point'}, in sd"
    points = pd.DataFrame(points)
    made = Curve(
        x, axis_label(x), axis.numbers, by, measure, quantity, chance_label, level, points, axis.left_out, relative
    )
    return replace(made, text=curve_sentences(made))


def lines_of(
    table: pd.DataFrame,
    x: str,
    by: str | None,
    records: Mapping[str, Mapping[str, Any]],
    side: str,
    measure: str | None,
    over: Sequence[str] = (),
) -> tuple[Axis, str | None]:
    """The rows of a curve with their place (`X`) and line (`LINE`), and the measure of all lines if there is one."""
    if side not in ("x", "y"):
        raise RepalignError(f"no side {side!r}", expected="x or y", got=side)
    pairs = table.loc[table["scope"] == "max"].reset_index(drop=True)
    if pairs.empty:
        raise RepalignError("the table has no pairs of models", expected="rows of scope 'max'", got="none")
    axis = axis_of(pairs, x, records, side)
    if by != "measure" and x != "measure":
        axis, measure = _of_measure(axis, measure)
    elif measure is not None:
        raise RepalignError("lines and points are measures already", got=f"measure={measure!r}", remedy="leave it out")
    axis = axis.narrowed(axis.rows.assign(**{LINE: _lines(axis.rows, by, records)}))
    _once(axis.rows, over)
    return axis, measure


def valued(rows: pd.DataFrame, value: str) -> dict[str, np.ndarray]:
    """The value of every pair and what it is by chance, as the columns `_value` and `_chance`."""
    score, chance = rows["statistic"].to_numpy(float), rows["null_mean"].to_numpy(float)
    if value == "statistic":
        return {"_value": score, "_chance": chance}
    numbers = score - chance if value == "gain" else rows["calibrated"].to_numpy(float)
    return {"_value": numbers, "_chance": np.zeros(len(rows))}


def at_points(rows: pd.DataFrame, axis: Axis) -> Iterator[tuple[str, Any, pd.DataFrame]]:
    """Line, place and rows of every point, lines in order of appearance and places in the order of the axis."""
    groups = dict(list(rows.groupby([LINE, X], sort=False)))
    for line in dict.fromkeys(rows[LINE]):
        for place in axis.values:
            if (line, place) in groups:
                yield line, place, groups[(line, place)]


def _of_measure(axis: Axis, measure: str | None) -> tuple[Axis, str]:
    """The rows of one measure, without the parameter that is x."""
    groups = dict(zip(axis.rows["measure"], axis.rows[GROUP], strict=True))
    known = dict.fromkeys([*groups.values(), *groups])
    chosen = next(iter(known)) if measure is None else measure
    if chosen not in known:
        raise RepalignError(f"no measure {chosen!r} in the table", got=chosen, remedy=did_you_mean(chosen, known))
    chosen = groups.get(chosen, chosen)
    return axis.narrowed(axis.rows.loc[axis.rows[GROUP] == chosen]), chosen


def _lines(rows: pd.DataFrame, by: str | None, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if by is None:
        return [""] * len(rows)
    if by == "measure":
        return rows[GROUP].tolist()
    if by in FAMILIES and by not in rows.columns:
        names, families = rows[FAMILIES[by]], families_of(records)
        without = sorted({name for name in names if not families.get(name)})
        if without:
            raise RepalignError(
                f"no family is known of {', '.join(without[:3])}{' and others' if len(without) > 3 else ''}",
                expected="a record with a family for every model",
                got=f"{len(without)} models without one",
                remedy="give models=, the records of the run, with families",
            )
        return [families[name] for name in names]
    columns = [c for c in rows.columns if c not in (X, LINE, GROUP, "scope")]
    if by not in columns:
        known = [*columns, *FAMILIES]
        raise RepalignError(f"there are no lines by {by!r}", got=by, remedy=did_you_mean(by, known))
    return [str(v) for v in rows[by]]


def _once(rows: pd.DataFrame, over: Sequence[str]) -> None:
    """A pair stands once at a point of a line: runs that differ are averaged only where that is asked for."""
    missing = [c for c in over if c not in rows.columns]
    if missing:
        known = [c for c in rows.columns if not c.startswith("_")]
        raise RepalignError(f"no column {missing[0]!r}", got=missing[0], remedy=did_you_mean(missing[0], known))
    keys = [LINE, X, "model_x", "model_y", *over]
    twice = rows.loc[rows.duplicated(keys, keep=False)]
    if twice.empty:
        return
    _, same = next(iter(twice.groupby(keys, sort=False, dropna=False)))
    settings = [c for c in same.columns if c not in (*_RESULTS, *NOT_AN_AXIS, X, LINE, GROUP)]
    differ = [c for c in settings if same[c].astype(str).nunique() > 1]
    first = same.iloc[0]
    raise RepalignError(
        f"{first['model_x']} and {first['model_y']} stand {len(same)} times at one point of a line",
        expected="one row per pair of models and point",
        got=f"rows that differ in {', '.join(differ)}" if differ else "rows that differ in nothing",
        remedy="take one of them, use `by`, or name columns of repetitions in `over`" if differ else "drop the copies",
    )


def _relative(
    rows: pd.DataFrame,
    axis: Axis,
    by: str | None,
    relative: str,
    records: Mapping[str, Mapping[str, Any]],
    side: str,
) -> pd.DataFrame:
    """Values and chance minus those of the reference, over the standard deviation of the pairs at the same setting."""
    mine, partner = f"model_{side}", f"model_{'y' if side == 'x' else 'x'}"
    setting = [GROUP] if by is None or by in (*FAMILIES, "model_x", "model_y") else [GROUP, LINE]
    if relative == "first" and axis.kind != "model":
        place = pd.Series([axis.values.index(v) for v in rows[X].tolist()], rows.index)
        reference = rows.loc[place == place.groupby([rows[key] for key in setting]).transform("min")]
        keys, spread = [*setting, "model_x", "model_y"], reference.groupby(setting)["_value"].std(ddof=1)
    else:
        name = _reference(rows, relative, records, side)
        reference = rows.loc[rows[mine] == name]
        setting = setting if axis.kind == "model" else [*setting, X]
        keys, spread = [*setting, partner], rows.groupby(setting)["_value"].std(ddof=1)
        if axis.kind != "model":  # the others, from the smallest
            rows = rows.loc[rows[mine] != name]
    base = reference.groupby(keys)["_value"].mean()
    rows = rows.join(base.to_frame("_base"), on=keys).join(spread.where(spread > 0).to_frame("_sd"), on=setting)
    return rows.assign(**{c: (rows[c] - rows["_base"]) / rows["_sd"] for c in ("_value", "_chance")})


def _reference(rows: pd.DataFrame, relative: str, records: Mapping[str, Mapping[str, Any]], side: str) -> str:
    """The smallest model of a side, or the one that is first on an axis of models."""
    if relative == "first":
        return str(rows.sort_values(X, kind="stable")[f"model_{side}"].iloc[0])
    sizes = {name: number_of(records.get(name, {}), PARAMETERS) for name in names_of(rows, side)}
    known = {name: size for name, size in sizes.items() if size is not None}
    if not known:
        raise RepalignError(
            f"which model of side {side} is the smallest is not known",
            expected="n_parameters of at least one of them",
            got=f"{len(sizes)} models without it",
            remedy="give models=, the records of the run",
        )
    return min(known, key=lambda name: known[name])
