"""Layers by layers of one pair of models: which are above chance, and which are the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from repalign import text as words
from repalign.comparison.alignment import Alignment, rows_of
from repalign.comparison.conventions import Conventions, Pairs, scale_of, view_for
from repalign.errors import choose
from repalign.figures import canvas
from repalign.figures.palette import ACCENT, LIGHT_INK, PAPER

RELATIVE = ("0", "0.25", "0.5", "0.75", "1")  # of the first layer, and so on to the last


@dataclass(frozen=True, eq=False)
class Layers:
    """The pairs of layers of one pair of models as layers by layers arrays, in the order of the layers.

    best : the place of the pair of layers that the search chose; None if it chose none. threshold : of a single pair of
    layers, the median over the map; nan if none has one. note : what the marks mean and how many there are.
    """

    layers_x: list[str]
    layers_y: list[str]
    arrays: Mapping[str, np.ndarray]
    best: tuple[int, int] | None
    threshold: float
    note: str

    @classmethod
    def of(cls, rows: pd.DataFrame, chosen: Mapping[str, Any], values: Mapping[str, np.ndarray], alpha: float) -> Layers:
        """Lay out the cells `rows` of one pair of models, and `values`, numbers by name, one for each of these rows.

        `chosen` is the row of scope "max" of the same pair.
        """
        index_x, row = np.unique(rows["index_x"].to_numpy(int), return_inverse=True)
        index_y, column = np.unique(rows["index_y"].to_numpy(int), return_inverse=True)
        names_x, names_y = np.full(len(index_x), "", object), np.full(len(index_y), "", object)
        names_x[row], names_y[column] = rows["layer_x"].to_numpy(object), rows["layer_y"].to_numpy(object)
        arrays = {name: np.full((len(index_x), len(index_y)), np.nan) for name in values}
        for name, array in arrays.items():
            array[row, column] = values[name]
        i, j = np.searchsorted(index_x, chosen["index_x"]), np.searchsorted(index_y, chosen["index_y"])
        best = (int(i), int(j)) if i < len(index_x) and j < len(index_y) and chosen["index_x"] >= 0 else None
        levels, stepdown = rows["threshold"].dropna(), rows["p_stepdown"].to_numpy(float)
        tests, count = int(np.isfinite(stepdown).sum()), int((stepdown <= alpha).sum())
        note = "Nothing is marked: this result has no p-values over the pairs of layers."
        if tests:
            many = f"{format(count, ',') if count else 'none'} of {words.counted(tests, 'pair')} of layers"
            note = f"● above chance: {many} ({100 * alpha:g} % level, corrected for {tests:,} tests)."
        median = float(levels.median()) if len(levels) else math.nan
        return cls(list(map(str, names_x)), list(map(str, names_y)), arrays, best, median, note)


@dataclass(frozen=True, eq=False)
class LayerMap(canvas.Cells):
    """Layers of one model by layers of another, one number per pair of layers."""

    subtitle: str
    model_x: str
    model_y: str
    lines: list[float]  # places of the thresholds on the colour bar
    marked: np.ndarray  # above chance, family-wise over the pairs of layers
    note: str  # what the marks mean
    best: tuple[int, int] | None  # the best pair of layers of the search
    best_text: str
    table: pd.DataFrame
    text: ClassVar[str] = ""


def _best_text(row: Mapping[str, Any]) -> str:
    if row["index_x"] < 0:
        return "no pair of layers has a defined score"
    where = f"{row['layer_x']} {words.TIMES} {row['layer_y']}"
    chance = f"chance {words.number(row['null_mean'])}, {words.p_sentence(row['pvalue'], int(row['n_draws']))}"
    return f"best: {where}\n{words.number(row['statistic'])} ({chance})"


def shown(
    alignment: Alignment, measure: str | None = None, *, model_x: str | None = None, model_y: str | None = None,
    value: str = "statistic",
) -> LayerMap:  # fmt: skip
    """The layer map of a pair of models of a result, by default of the best aligned, with its table."""
    table, view = alignment.table, view_for("cell", value)
    pairs = rows_of(table, "max", measure)
    for side, name in (("model_x", model_x), ("model_y", model_y)):
        if name is not None:
            pairs = pairs.loc[pairs[side] == choose(side, name, dict.fromkeys(pairs[side]))]
    found = Pairs.of(pairs, None, Conventions.of(alignment.run))
    row = found.best or found.rows.iloc[0].to_dict()
    x, y, measure = row["model_x"], row["model_y"], str(row["measure"])
    cells = rows_of(table, "cell", measure)
    cells = cells.loc[(cells["model_x"] == x) & (cells["model_y"] == y)]
    cells = cells.assign(gain=cells["statistic"] - cells["null_mean"])
    laid = Layers.of(cells, row, {c: cells[c].to_numpy(float) for c in (value, "null_mean", "p_stepdown")}, found.alpha)
    draws = int(row["n_draws"]) if value == "p_stepdown" else min(cells["n_draws"].tolist(), default=0)
    scale = scale_of(value, laid.arrays[value], laid.arrays["null_mean"], draws, found.alpha)
    levels = [(laid.threshold, "median"), (float(row["threshold"]), "search")] if value == "statistic" else []
    levels = [(level, of) for level, of in levels if scale.low < level <= scale.high]
    inside = [(float(scale.position(level)), f"threshold {words.number(level)} ({of})") for level, of in levels]
    return LayerMap(
        laid.layers_x, laid.layers_y, laid.arrays[value], replace(scale, marks=[*scale.marks, *inside]),
        subtitle=f"{found.about.label}, {view.label.lower()}, n = {int(row['n']):,}",
        model_x=x, model_y=y, lines=[place for place, _ in inside], marked=laid.arrays["p_stepdown"] <= found.alpha,
        note=laid.note, best=laid.best, best_text=_best_text(row),
        table=alignment.layer_map(x, y, measure, value).reset_index(),
    )  # fmt: skip


def draw(made: LayerMap, *, depth: str = "layers", **look: Unpack[canvas.Look]) -> Axes:
    """Layers by layers, first layers at the lower left, those above chance dotted, the best pair framed.

    depth : what the axes say: the names of the "layers", or their "relative" depth, from 0 for the first that is compared to 1
        for the last.
    """
    choose("depth", depth, ("layers", "relative"))
    n_x, n_y = made.values.shape
    width, height = map(float, np.clip([2.4 + 0.17 * n_y, 2.2 + 0.17 * n_x], [5.6, 4.4], [9.0, 9.0]))
    about = {"above": f"{made.subtitle}\n{made.best_text}", "below": made.note}
    names = canvas.called([made.model_x], [made.model_y], look=look)
    x, y = names[made.model_x], names[made.model_y]
    figure, ((axes,),) = canvas.sheet(width, height, f"{x} {words.TIMES} {y}", **about, **look)
    image = axes.imshow(made.scale.position(made.values), **canvas.COLOURED, aspect="auto", interpolation="nearest")
    axes.invert_yaxis()
    for ticks, layers, turned in ((axes.set_xticks, made.columns, canvas.TURNED), (axes.set_yticks, made.rows, {})):
        if depth == "relative" and len(layers) > 1:
            ticks(np.linspace(0, len(layers) - 1, len(RELATIVE)), RELATIVE)
            continue
        some, short = range(0, len(layers), max(1, round(len(layers) / 8))), words.readable(layers, length=14)
        ticks(some, [canvas.plain(short[layers[i]]) for i in some], **turned)
    of = "relative depth in" if depth == "relative" else "layers of"
    canvas.labels(axes, f"{of} {y}", f"{of} {x}")
    i, j = np.nonzero(made.marked)
    if len(i):
        # A dot in the ink that stands out from its cell, about a sixth of it in points.
        width, height = canvas.inches(axes)
        cell = 72 * min(width / (n_y + 8), height / (n_x + 8))
        inks = [LIGHT_INK[step] for step in made.scale.steps(made.values[i, j])]
        axes.scatter(j, i, s=float(np.clip(cell / 6, 1.2, 3.2)) ** 2, c=inks, linewidths=0, label="above chance")
    if made.best is not None:
        i, j = made.best
        for color, thick in ((PAPER, 3.5), (ACCENT, 1.8)):
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=thick))
    canvas.color_bar(figure, axes, image, made.scale.marks, made.lines)
    return axes
