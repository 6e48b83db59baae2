"""What figures over several runs show, computed once: curves, contrasts of variants, ours beside published values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repalign import text as words
from repalign.figures import palette
from repalign.figures.quantities import vertical_range
from repalign.models import COMPETENCES
from repalign.relate import QUANTITIES, Beside, Contrast, Curve

LABEL = 44  # characters of a line's name
WIDE = 20  # a range of numbers as wide as this has a logarithmic axis
APART = 0.055  # of an axis: ticks nearer to each other than this are not both named
MOST_BANDS = 3  # more lines than this have bars for intervals
CATEGORY, NUMBER = 0.5, 0.03  # how far lines are moved apart: of the distance of categories, of an axis of numbers
MOST_GROUPS = len(palette.FAMILY_LIGHT)


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a curve; x are places on the axis, where intervals are bars moved a little aside for each line."""

    label: str
    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    chance: np.ndarray
    hover: list[str]


@dataclass(frozen=True, eq=False)
class CurveFrame:
    """Lines over a parameter, with their intervals and the chance level of each point."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    y_range: tuple[float, float]
    lines: list[Line]
    numbers: bool
    log: bool
    reverse: bool
    ticks: list[tuple[float, str]]  # none: the backend's own
    bands: bool
    chance: tuple[np.ndarray, np.ndarray] | None  # one level for all lines; None where lines differ, or it is not shown
    each_chance: bool  # every line has a level of its own
    chance_label: str
    note: str


def curve_frame(found: Curve, log: bool | None = None) -> CurveFrame:
    """The lines of a curve; `log` for a logarithmic axis, by default for positive numbers over a wide range."""
    places = list(dict.fromkeys(found.table["x"]))
    if found.numbers:
        places = sorted(places)
        low, high = min(places), max(places)
        log = bool(low > 0 and high >= WIDE * low) if log is None else bool(log)
        at = dict(zip(places, places, strict=True))
        ticks = _ticks(places, log) if found.x not in COMPETENCES else []
    else:
        log, at = False, {name: float(i) for i, name in enumerate(places)}
        ticks = [(at[name], words.shorten(str(name), 24)) for name in places]
    names = found.lines
    bands = found.numbers and len(names) <= MOST_BANDS
    lines = []
    for i, name in enumerate(names):
        aside = 0.0 if bands else (i - (len(names) - 1) / 2) / max(len(names) - 1, 1)
        lines.append(_line(found, name, _moved(at, aside, found.numbers, log)))
    shown = found.relative is None
    levels = found.table.groupby("x")["chance"].agg(["min", "max"])
    alike = bool(np.allclose(levels["min"], levels["max"], rtol=1e-6, atol=1e-12, equal_nan=True))
    order = [p for p in places if np.isfinite(levels.loc[p, "min"])]
    one = np.array([at[p] for p in order], float), np.array([levels.loc[p, "min"] for p in order], float)
    scale = ", log scale" if log else ""
    known = COMPETENCES.get(found.x)
    reverse = bool(known and known.lower_is_better)
    better = " (lower is better; axis reversed)" if reverse else ""
    y_range, cut = _vertical(lines, levels["min"].to_numpy(float) if shown else np.empty(0))
    return CurveFrame(
        title=f"{found.x_label} and {_small(found.quantity)}" if known else f"{found.quantity} by {found.x_label}",
        subtitle=_subtitle(found),
        x_label=f"{found.x_label}{scale}{better}",
        y_label=found.quantity,
        y_range=y_range,
        lines=lines,
        numbers=found.numbers,
        log=log,
        reverse=reverse,
        ticks=ticks,
        bands=bands,
        chance=one if shown and alike and order else None,
        each_chance=shown and not alike,
        chance_label=found.chance_label,
        note=f"{'bands' if bands else 'bars'}: {100 * found.level:g} % intervals{cut}"
        if np.isfinite(found.table["low"].to_numpy(float)).any()
        else "too few models for intervals",
    )



def _vertical(lines: Sequence[Line], chance: np.ndarray) -> tuple[tuple[float, float], str]:
    """The range of the vertical axis, and what to say where intervals go on beyond it."""
    ends = np.concatenate([np.concatenate([line.low, line.high]) for line in lines])
    bottom, top = vertical_range(np.concatenate([*(line.value for line in lines), chance]), ends)
    is_cut = bool((ends < bottom).any() or (ends > top).any())
    return (bottom, top), ", cut at the edge" * is_cut


def _moved(at: Mapping[Any, float], aside: float, numbers: bool, log: bool) -> dict[Any, float]:
    """Places a little to the side, so that the bars of lines do not hide each other; `aside` is from -1/2 to 1/2."""
    if not numbers:
        return {place: x + aside * CATEGORY for place, x in at.items()}
    low, high = min(at.values()), max(at.values())
    if log:
        return {place: x * (high / low) ** (aside * NUMBER) for place, x in at.items()}
    return {place: x + aside * NUMBER * (high - low) for place, x in at.items()}


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _line(found: Curve, name: str, at: Mapping[Any, float]) -> Line:
    rows = found.line(name)
    numbers = {c: rows[c].to_numpy(float) for c in ("value", "low", "high", "chance")}
    label = words.measure_label(name) if found.by == "measure" else name
    hover = [
        f"{label or found.quantity}, {found.x} = {row['x'] if not found.numbers else words.number(row['x'])}: "
        f"{words.interval(row['value'], row['low'], row['high'])}, {found.chance_label} {words.number(row['chance'])}, "
        f"n = {words.count(int(row['n']))}"
        for row in rows.to_dict("records")
    ]
    return Line(words.shorten(label, LABEL), np.array([at[x] for x in rows["x"]], float), hover=hover, **numbers)


def _subtitle(found: Curve) -> str:
    measure = [words.measure_label(found.measure)] if found.measure else []
    models = "n_models" in found.table
    counted, one, more = ("n_models", "model", "models") if models else ("n_pairs", "pair of models", "pairs of models")
    count, n = (_span(found.table[column].tolist()) for column in (counted, "n"))
    thing = one if count == "1" else more
    return "; ".join([*measure, f"{count} {thing} at each point", f"n = {n}"])


def _span(values: Sequence[float]) -> str:
    low, high = int(min(values)), int(max(values))
    return words.count(low) if low == high else f"{words.count(low)} to {words.count(high)}"


def _ticks(places: Sequence[float], log: bool) -> list[tuple[float, str]]:
    """Every measured place, if it has room beside the one before; the last one always."""
    scaled = np.log(places) if log else np.asarray(places, float)
    width = scaled[-1] - scaled[0] or 1.0
    kept = [len(places) - 1]
    for i in range(len(places) - 2, -1, -1):
        if (scaled[kept[-1]] - scaled[i]) / width >= APART:
            kept.append(i)
    if len(kept) > 12:
        return []
    return [(places[i], f"{places[i]:,.10g}".replace("-", "−")) for i in reversed(kept)]


# --- scatters of pairs -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Group:
    """Points of one colour."""

    label: str
    x: np.ndarray
    y: np.ndarray
    hover: list[str]


@dataclass(frozen=True, eq=False)
class Panel:
    """Pairs of models as points: one value across, another one up."""

    heading: str
    x_label: str
    y_label: str
    groups: list[Group]
    chance_x: float  # nan: not shown
    chance_y: float
    diagonal: bool
    limits: tuple[float, float] | None  # of both axes, where they have one scale


@dataclass(frozen=True, eq=False)
class ScatterFrame:
    """Panels beside each other, with one legend."""

    title: str
    subtitle: str
    panels: list[Panel]
    note: str


def contrast_frame(found: Contrast) -> ScatterFrame:
    """Every variant after the first against the first, pair by pair."""
    one_scale = len(found.quantities) == 1
    quantity = QUANTITIES[found.quantities[0]][0].lower() if one_scale else ""
    both = [found.beside(name) for name in found.variants[1:]]
    columns = ["value_first", "value_second", "chance_first", "chance_second"]
    values = np.concatenate([rows[columns].to_numpy(float).ravel() for rows in both])
    limits = _limits(values) if one_scale and values.size else None
    column = _grouping(pd.concat(both))
    panels, ns = [], sorted(set(found.table["n"]))
    for name, rows in zip(found.variants[1:], both, strict=True):
        row = found.differences.set_index("variant").loc[name]
        n = int(row["n_pairs"])
        heading = (
            f"difference {words.interval(row['difference'], row['low'], row['high'])}\n"
            f"Spearman {words.number(row['spearman'])}, {n} pair{'s' * (n != 1)}"
            + (f", {int(row['n_missing'])} missing" if row["n_missing"] else "")
        )
        first, second = (f"{v}, {quantity}" if quantity else v for v in (found.variants[0], name))
        panels.append(
            Panel(
                heading,
                first,
                second,
                _groups(rows, "value_first", "value_second", column, (found.variants[0], name)),
                _level(rows["chance_first"].to_numpy(float)),
                _level(rows["chance_second"].to_numpy(float)),
                one_scale,
                limits,
            )
        )
    measure = f"{words.measure_label(found.measure)}; " if found.measure else ""
    return ScatterFrame(
        title=f"The same pairs of models by {found.column}",
        subtitle=f"{measure}n = {' to '.join(words.count(int(n)) for n in dict.fromkeys((ns[0], ns[-1])))}",
        panels=panels,
        note=f"One point is one pair of models. Dashed: mean chance level{'; line: equal' if one_scale else ''}. "
        f"In brackets: {100 * found.level:g} % interval over models.",
    )


def beside_frame(found: Beside) -> ScatterFrame:
    """Ours against the published values."""
    rows = found.table.loc[found.table["ours"].notna()]
    column = "family" if all(rows["family"].tolist()) else _grouping(rows)
    panel = Panel(
        f"root mean square difference {words.number(found.rmse)}\n"
        f"Pearson {words.number(found.pearson)}, Spearman {words.number(found.spearman)}",
        "published",
        "ours",
        _groups(rows, "published", "ours", column, ("published", "ours")),
        math.nan,
        _level(rows["chance"].to_numpy(float)),
        True,
        _limits(rows[["published", "ours", "chance"]].to_numpy(float).ravel()) if len(rows) else None,
    )
    return ScatterFrame(
        title="Ours beside the published values",
        subtitle=f"{words.measure_label(found.measure)}\n{len(rows)} pairs of models, ours at n = {words.count(found.n_stimuli)}",
        panels=[panel],
        note=f"Published: {found.source}. Dashed: our mean chance level; line: equal.",
    )


def _grouping(rows: pd.DataFrame) -> str | None:
    """The side whose models are colours: that of fewer models, if colours are enough."""
    sizes = {c: len(set(rows[c].tolist())) for c in ("model_y", "model_x")}
    side = min(sizes, key=lambda c: sizes[c])
    return side if sizes[side] <= MOST_GROUPS else None


def _groups(rows: pd.DataFrame, x: str, y: str, column: str | None, told: tuple[str, str]) -> list[Group]:
    out = []
    for label in [None] if column is None else dict.fromkeys(rows[column]):
        some = rows if column is None else rows.loc[rows[column] == label]
        hover = [
            f"{r['model_x']} {words.TIMES} {r['model_y']}: {told[0]} {words.number(r[x])}, {told[1]} {words.number(r[y])}"
            for r in some.to_dict("records")
        ]
        name = "pairs of models" if label is None else words.shorten(str(label), LABEL)
        out.append(Group(name, some[x].to_numpy(float), some[y].to_numpy(float), hover))
    return out


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _level(chance: np.ndarray) -> float:
    defined = chance[np.isfinite(chance)]
    return float(defined.mean()) if len(defined) else math.nan
