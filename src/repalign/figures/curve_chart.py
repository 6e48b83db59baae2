"""Alignment, or a trend, over a parameter: lines with their intervals and the chance level of each point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from repalign import text as words
from repalign.comparison.conventions import vertical_range
from repalign.errors import RepalignError
from repalign.figures import canvas
from repalign.figures.palette import MUTED, PAPER, family
from repalign.measures import facts_of
from repalign.models import COMPETENCES
from repalign.relate import Curve

WIDE = 20  # a range of numbers as wide as this has a logarithmic axis
APART = 0.055  # of an axis: ticks nearer to each other than this are not both named
MOST_TICKS = 12  # measured places that are named; of more the axis has ticks of its own
MOST_BANDS = 3  # more lines than this have bars for intervals
CATEGORY, NUMBER = 0.5, 0.03  # how far lines are moved apart: of the distance of categories, of an axis of numbers


def draw(found: Curve, *, log: bool | None = None, **look: Unpack[canvas.Look]) -> Axes:
    """Lines over a parameter, from `relate.curve` or `relate.trend_curve`; chance is dashed.

    `log`: a logarithmic axis; by default for positive numbers over a wide range.
    """
    places = list(dict.fromkeys(found.table["x"]))
    places = sorted(places) if found.numbers else places
    if log is None or not found.numbers:
        log = bool(found.numbers and places[0] > 0 and places[-1] >= WIDE * places[0])
    if log and places[0] <= 0:
        raise RepalignError("a logarithmic axis has positive numbers only", got=places[0], remedy="leave log out")
    at = {p: float(p) if found.numbers else float(i) for i, p in enumerate(places)}
    sides = [[line for line in found.lines if line], [] if found.numbers else list(map(str, places))]
    of_measures = found.by == "measure"  # of whose categories, if it has some, none has another name
    called = {"": ""} | canvas.called(*sides[: 2 - of_measures], look=look, what="measures" if of_measures else "names")
    names = [called[line] for line in found.lines]
    entries = len(names) * (len(names) > 1 or bool(names[0])) + 1
    columns = 1 if max(map(len, names)) > 30 else 2 if entries < 7 else 3
    known = COMPETENCES.get(found.x)
    quantity = f"{found.quantity[:1].lower()}{found.quantity[1:]}"
    title = f"{found.x_label} and {quantity}" if known else f"{found.quantity} by {found.x_label}"
    height = 4.2 + 0.16 * np.ceil(entries / columns)
    _, ((axes,),) = canvas.sheet(6.4, height, title, above=_subtitle(found), **look)
    canvas.rule(axes)
    axes.set_xscale("log" if log else "linear")
    by_place = found.table.groupby("x")["chance"]
    lowest, highest = (pd.Series(some, dtype=float).reindex(places) for some in (by_place.min(), by_place.max()))
    shows = found.relative is None
    alike = bool(np.allclose(lowest, highest, rtol=1e-6, atol=1e-12, equal_nan=True))
    if shows and alike:
        _chance(axes, found, at, lowest.dropna())
    bands = found.numbers and len(names) <= MOST_BANDS
    for k, name in enumerate(found.lines):
        aside = 0.0 if bands else (k - (len(names) - 1) / 2) / max(len(names) - 1, 1)
        moved = _moved(at, aside, found.numbers, log)
        _line(axes, found, found.line(name), moved, k, names[k], bands, shows and not alike)
    if shows and not alike:
        label = f"{found.chance_label} of each line"
        axes.plot([], [], color=MUTED, linewidth=1.1, linestyle=canvas.DASHED, label=label)
    ends = found.table[["low", "high"]].to_numpy(float).ravel()
    values = found.table["value"].to_numpy(float)
    values = np.concatenate([values, lowest.to_numpy(float)]) if shows else values
    bottom, top = vertical_range(values, ends)
    axes.set_ylim(bottom, top)
    _ticks(axes, found, at, log, called)
    reverse = bool(known and known.lower_is_better)
    if reverse:
        axes.invert_xaxis()
    note = f"{'bands' if bands else 'bars'}: {100 * found.level:g} % intervals"
    note += ", cut at the edge" * bool((ends < bottom).any() or (ends > top).any())
    note = note if np.isfinite(ends).any() else "too few models for intervals"
    better = " (lower is better; axis reversed)" if reverse else ""
    canvas.labels(axes, f"{found.x_label}{', log scale' if log else ''}{better}    ({note})", found.quantity)
    if axes.get_legend_handles_labels()[0]:
        canvas.legend_below(axes, columns)
    return axes


def _subtitle(found: Curve) -> str:
    measure = [facts_of(found.measure).label] if found.measure else []
    noun, counted = ("model", "n_models") if "n_models" in found.table else ("pair of models", "n_pairs")
    count, n = (words.span(found.table[column]) for column in (counted, "n"))
    noun = noun if count == "1" else noun.replace("pair", "pairs") if " " in noun else f"{noun}s"
    return "; ".join([*measure, f"{count} {noun} at each point", f"n = {n}"])


def _moved(at: Mapping[Any, float], aside: float, numbers: bool, log: bool) -> dict[Any, float]:
    """Places a little to the side, so that the bars of lines do not hide each other; `aside` is from -1/2 to 1/2."""
    low, high = min(at.values()), max(at.values())
    if numbers and log:
        return {place: x * (high / low) ** (aside * NUMBER) for place, x in at.items()}
    shift = aside * (NUMBER * (high - low) if numbers else CATEGORY)
    return {place: x + shift for place, x in at.items()}


def _chance(axes: Axes, found: Curve, at: Mapping[Any, float], levels: pd.Series) -> None:
    """One level of all lines: a line over numbers, a piece for every category."""
    look: Any = {"color": MUTED, "linewidth": 1.2, "linestyle": canvas.DASHED, "label": found.chance_label}
    x, y = np.array([at[p] for p in levels.index], float), levels.to_numpy(float)
    if not len(x):
        return
    if not found.numbers:
        axes.hlines(y, x - 0.42, x + 0.42, **look)
    elif len(x) == 1:
        axes.axhline(y[0], **look)
    else:
        axes.plot(x, y, **look)


def _line(
    axes: Axes, found: Curve, rows: pd.DataFrame, at: Mapping[Any, float], k: int, label: str, bands: bool, chance: bool
) -> None:
    color, marker = family(k)
    x = np.array([at[place] for place in rows["x"]], float)
    if bands and len(x) > 1:
        axes.fill_between(x, rows["low"].to_numpy(float), rows["high"].to_numpy(float), color=color, alpha=0.15, linewidth=0)
    else:
        axes.vlines(x, rows["low"], rows["high"], color=color, linewidth=1.1, alpha=0.6)
    if chance:  # of this line, as a dash where there is no line
        size = 9 if not found.numbers or len(x) == 1 else 0
        style: Any = canvas.DASHED if found.numbers else "none"
        axes.plot(x, rows["chance"].to_numpy(float), color=color, linewidth=1, linestyle=style, marker="_", markersize=size)
    style = "-" if found.numbers else "none"
    look = {"color": color, "linewidth": 1.5, "linestyle": style, "marker": marker, "markersize": 5.5}
    axes.plot(x, rows["value"].to_numpy(float), **look, markeredgecolor=PAPER, label=canvas.plain(label) or "_")


def _ticks(axes: Axes, found: Curve, at: Mapping[Any, float], log: bool, called: Mapping[str, str]) -> None:
    """Categories all; of numbers every measured place, if it has room beside the one after; the last one always."""
    if not found.numbers:
        texts = [called.get(str(name), str(name)) for name in at]
        look = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, texts)) > 60 else {}
        axes.set_xticks(list(at.values()), [canvas.plain(text) for text in texts], **look)
        axes.set_xlim(-0.5, len(at) - 0.5)
    elif found.x not in COMPETENCES:
        places = list(at.values())
        scaled = np.log(places) if log else np.asarray(places)
        width, kept = scaled[-1] - scaled[0] or 1.0, [len(places) - 1]
        for i in range(len(places) - 2, -1, -1):
            if (scaled[kept[-1]] - scaled[i]) / width >= APART:
                kept.append(i)
        if len(kept) <= MOST_TICKS:
            shown = [places[i] for i in reversed(kept)]
            axes.set_xticks(shown, [f"{place:,.10g}".replace("-", "−") for place in shown])
            axes.xaxis.set_minor_locator(NullLocator())
