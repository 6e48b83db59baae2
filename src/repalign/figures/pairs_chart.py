"""Pairs of models as points, one value across and another one up: under two variants, or ours and published ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from repalign import text as words
from repalign.figures import canvas
from repalign.figures.palette import FAMILY_LIGHT, MUTED, PAPER, family
from repalign.measures import facts_of
from repalign.relate import QUANTITIES, Beside, Contrast


@dataclass(frozen=True, eq=False)
class Panel:
    """One scatter of pairs of models: of what against what, and in which quantity; `groups` are points (n, 2) by their name."""

    heading: str
    x: str
    y: str
    quantity: str
    groups: dict[str, np.ndarray]
    chance: tuple[float, float]  # across and up; nan is not shown
    limits: tuple[float, float] | None  # of both axes, if they have one scale; then equal values have a line


def contrast(found: Contrast, **look: Unpack[canvas.Look]) -> Axes | list[Axes]:
    """The same pairs of models under each variant against the first one, from `relate.contrast`."""
    one_scale = len(found.quantities) == 1
    measure = f"{facts_of(found.measure).label}; " if found.measure else ""
    note = f"One point is one pair of models. Dashed: mean chance level{'; line: equal' if one_scale else ''}. "
    note += f"In brackets: {100 * found.level:g} % interval over models."
    subtitle = f"{measure}n = {words.span(found.table['n'])}"
    return _draw(f"The same pairs of models by {found.column}", subtitle, list(_contrasts(found)), note, look)


def _contrasts(found: Contrast) -> Iterator[Panel]:
    """Every variant after the first against the first, pair by pair."""
    quantity = f", {QUANTITIES[found.quantities[0]][0].lower()}" if len(found.quantities) == 1 else ""
    both = {name: found.beside(name) for name in found.variants[1:]}
    every = pd.concat(both.values())
    values = every[["value_first", "value_second", "chance_first", "chance_second"]].to_numpy(float)
    column = _grouping(every)
    for name, rows in both.items():
        row = found.differences.set_index("variant").loc[name]
        missing = f", {int(row['n_missing'])} missing" if row["n_missing"] else ""
        related = f"Spearman {words.number(row['spearman'])}, {words.counted(int(row['n_pairs']), 'pair')}{missing}"
        yield Panel(
            f"difference {words.interval(row['difference'], row['low'], row['high'])}\n{related}",
            found.variants[0], name, quantity, _groups(rows, "value_first", "value_second", column),
            (_level(rows["chance_first"].to_numpy(float)), _level(rows["chance_second"].to_numpy(float))),
            _limits(values) if quantity and values.size else None,
        )  # fmt: skip


def beside(found: Beside, **look: Unpack[canvas.Look]) -> Axes | list[Axes]:
    """Our scores against published ones, from `relate.beside`."""
    rows = found.table.loc[found.table["ours"].notna()]
    related = f"Pearson {words.number(found.pearson)}, Spearman {words.number(found.spearman)}"
    panel = Panel(
        f"root mean square difference {words.number(found.rmse)}\n{related}",
        "published", "ours", "",
        _groups(rows, "published", "ours", "family" if all(rows["family"].tolist()) else _grouping(rows)),
        (math.nan, _level(rows["chance"].to_numpy(float))),
        _limits(rows[["published", "ours", "chance"]].to_numpy(float)) if len(rows) else None,
    )  # fmt: skip
    subtitle = f"{facts_of(str(found.measure)).label}\n{len(rows)} pairs of models, ours at n = {found.n_stimuli:,}"
    note = f"Published: {found.source}. Dashed: our mean chance level; line: equal."
    return _draw("Ours beside the published values", subtitle, [panel], note, look)


def _grouping(rows: pd.DataFrame) -> str | None:
    """The side whose models are colours: that of fewer models, if colours are enough."""
    sizes = {c: len(set(rows[c].tolist())) for c in ("model_y", "model_x")}
    side = min(sizes, key=lambda c: sizes[c])
    return side if sizes[side] <= len(FAMILY_LIGHT) else None


def _groups(rows: pd.DataFrame, x: str, y: str, column: str | None) -> dict[str, np.ndarray]:
    if column is None:
        return {"pairs of models": rows[[x, y]].to_numpy(float)}
    by_name = rows.groupby(column, sort=False)
    return {str(name): some[[x, y]].to_numpy(float) for name, some in by_name}


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _level(chance: np.ndarray) -> float:
    defined = chance[np.isfinite(chance)]
    return float(defined.mean()) if len(defined) else math.nan


def _draw(title: str, subtitle: str, panels: list[Panel], note: str, look: canvas.Look) -> Axes | list[Axes]:
    """Panels beside each other with one legend."""
    ends, groups = [name for panel in panels for name in (panel.x, panel.y)], [name for panel in panels for name in panel.groups]
    names = canvas.called(ends, groups, look=look)
    panels = [replace(p, x=names[p.x], y=names[p.y], groups={names[k]: points for k, points in p.groups.items()}) for p in panels]
    columns = min(3, len(panels))
    rows, size = -(-len(panels) // columns), 4.6 if len(panels) == 1 else 3.4
    legend = 1.7 * any(len(panel.groups) > 1 for panel in panels)
    first, *others = (panel.heading for panel in panels)
    figure, grid = canvas.sheet(
        0.7 + legend + size * columns, 1.0 + (size + 0.5) * rows, title, rows, [1] * columns,
        above=[f"{subtitle}\n{first}", *others], room=size, below=note, panels=len(panels), **look,
    )  # fmt: skip
    drawn = list(grid.flat[: len(panels)])
    for axes, panel in zip(drawn, panels, strict=True):
        _panel(axes, panel)
    handles = {label: handle for axes in drawn for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(handles) > 1:
        place, where = (figure, "outside right upper") if isinstance(figure, canvas.Sheet) else (drawn[-1], "best")
        place.legend(handles.values(), handles.keys(), loc=where, fontsize=7, frameon=False)
    return canvas.one_or_all(drawn)


def _panel(axes: Axes, panel: Panel) -> None:
    canvas.rule(axes)
    for level, line in zip(panel.chance, (axes.axvline, axes.axhline), strict=True):
        if np.isfinite(level):
            line(level, color=MUTED, linewidth=1, linestyle=canvas.DASHED)
    for k, (name, points) in enumerate(panel.groups.items()):
        color, marker = family(k)
        look = {"color": color, "marker": marker, "markersize": 5.5, "markeredgecolor": PAPER, "markeredgewidth": 0.6}
        axes.plot(*points.T, linestyle="none", label=canvas.plain(name), **look)
    if panel.limits is not None:
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=1)
        axes.set_xlim(panel.limits)
        axes.set_ylim(panel.limits)
        axes.set_aspect("equal")
    canvas.labels(axes)
    axes.set_xlabel(canvas.plain(panel.x + panel.quantity, 40))
    axes.set_ylabel(canvas.plain(panel.y + panel.quantity, 40))
