"""Layers by layers of one pair of models: which are above chance, and which are the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from repalign import text as words
from repalign.comparison.alignment import Alignment, rows_of
from repalign.errors import RepalignError, choose
from repalign.figures import canvas
from repalign.figures.conventions import (
    PLAIN,
    Conventions,
    bar_marks,
    best_pair,
    draws_of,
    scale_of,
    values_of,
    view_for,
)
from repalign.figures.palette import ACCENT, LIGHT_INK, PAPER


@dataclass(frozen=True, eq=False)
class Layers:
    """The pairs of layers of one pair of models as layers by layers arrays, in the order of the layers."""

    layers_x: list[str]
    layers_y: list[str]
    index_x: np.ndarray
    index_y: np.ndarray
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, rows: pd.DataFrame, columns: Iterable[str]) -> Layers:
        """Lay the rows of one pair out; `columns` are columns of the table or views."""
        index_x, row = np.unique(rows["index_x"].to_numpy(int), return_inverse=True)
        index_y, column = np.unique(rows["index_y"].to_numpy(int), return_inverse=True)
        names_x, names_y = np.full(len(index_x), "", object), np.full(len(index_y), "", object)
        names_x[row], names_y[column] = rows["layer_x"].to_numpy(object), rows["layer_y"].to_numpy(object)
        arrays = {name: np.full((len(index_x), len(index_y)), np.nan) for name in columns}
        for name, array in arrays.items():
            array[row, column] = values_of(rows, name)
        return cls([str(n) for n in names_x], [str(n) for n in names_y], index_x, index_y, arrays)

    def place(self, row: Mapping[str, Any]) -> tuple[int, int] | None:
        """Where the pair of layers that a row of scope "max" names lies; None if it names none."""
        i, j = np.searchsorted(self.index_x, row["index_x"]), np.searchsorted(self.index_y, row["index_y"])
        known = i < len(self.index_x) and j < len(self.index_y) and row["index_x"] >= 0
        return (int(i), int(j)) if known else None


@dataclass(frozen=True, eq=False)
class LayerMap(canvas.Cells):
    """Layers of one model by layers of another, one number per pair of layers."""

    title: str
    subtitle: str
    model_x: str
    model_y: str
    lines: list[float]  # places of the thresholds on the colour bar
    marked: np.ndarray  # above chance, family-wise over the pairs of layers
    note: str  # what the marks mean
    best: tuple[int, int] | None  # the best pair of layers of the search
    best_text: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    text: str = ""

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        model_x: str | None = None,
        model_y: str | None = None,
        measure: str | None = None,
        value: str = "statistic",
        conventions: Conventions = PLAIN,
    ) -> LayerMap:
        """The layer map of one pair of models; without names, that of the best aligned pair."""
        pairs, cells, view = rows_of(table, "max", measure), rows_of(table, "cell", measure), view_for("cell", value)
        for side, name in (("model_x", model_x), ("model_y", model_y)):
            if name is not None:
                pairs = pairs.loc[pairs[side] == choose(side, name, dict.fromkeys(pairs[side]))]
        if pairs.empty:
            raise RepalignError(f"{model_x!r} and {model_y!r} were not compared", remedy="try them the other way round")
        row = best_pair(pairs) or pairs.iloc[:1].to_dict("records")[0]
        chosen = cells.loc[(cells["model_x"] == row["model_x"]) & (cells["model_y"] == row["model_y"])]
        laid = Layers.of(chosen, {value, "null_mean", "threshold", "p_stepdown"})
        drawn = int(row["n_draws"]) if value == "p_stepdown" else draws_of(chosen)
        scale = scale_of(value, laid.arrays[value], laid.arrays["null_mean"], drawn, conventions.alpha)
        levels = [(median_threshold(laid.arrays["threshold"]), "median"), (float(row["threshold"]), "search")]
        inside = [(t, f"threshold {words.number(t)} ({of})") for t, of in levels if scale.low < t <= scale.high]
        inside = inside if value == "statistic" else []
        label = conventions.about(str(row["measure"])).label
        return cls(
            laid.layers_x,
            laid.layers_y,
            laid.arrays[value],
            scale,
            bar_marks(scale, value, inside),
            title=f"{row['model_x']} {words.TIMES} {row['model_y']}",
            subtitle=f"{label}, {view.label.lower()}, n = {words.count(int(row['n']))}",
            model_x=row["model_x"],
            model_y=row["model_y"],
            lines=[float(scale.position(t)) for t, _ in inside],
            marked=laid.arrays["p_stepdown"] <= conventions.alpha,
            note=marks_note(laid.arrays["p_stepdown"], conventions.alpha),
            best=laid.place(row),
            best_text=_best_text(row),
        )


def median_threshold(threshold: np.ndarray) -> float:
    """The threshold of a single pair of layers: the median over a layer map; nan if none has one."""
    defined = threshold[np.isfinite(threshold)]
    return float(np.median(defined)) if defined.size else math.nan


def marks_note(stepdown: np.ndarray, alpha: float) -> str:
    """What the marks of a layer map mean and how many there are; says so where there can be none."""
    tests, count = int(np.isfinite(stepdown).sum()), int((stepdown <= alpha).sum())
    if not tests:
        return "Nothing is marked: this result has no p-values over the pairs of layers."
    many = f"{words.count(count) if count else 'none'} of {words.count(tests)} at α = {alpha:g}"
    return f"● marked: above chance, family-wise over the pairs of layers, step-down ({many})."


def _best_text(row: Mapping[str, Any]) -> str:
    if row["index_x"] < 0:
        return "no pair of layers has a defined score"
    where = f"{row['layer_x']} {words.TIMES} {row['layer_y']}"
    chance = f"chance {words.number(row['null_mean'])}, {words.p_sentence(row['pvalue'], int(row['n_draws']))}"
    return f"best: {where}\n{words.number(row['statistic'])} ({chance})"


def shown(
    alignment: Alignment,
    measure: str | None = None,
    *,
    model_x: str | None = None,
    model_y: str | None = None,
    value: str = "statistic",
) -> LayerMap:
    """The layer map of a pair of models of a result, by default of the best aligned, with its table."""
    made = LayerMap.of(alignment.table, model_x, model_y, measure, value, Conventions.of(alignment.run))
    column = value if value != "gain" else "statistic"
    return replace(made, table=alignment.layer_map(made.model_x, made.model_y, measure, column).reset_index())


def draw(made: LayerMap) -> Figure:
    """Layers by layers, first layers at the lower left, those above chance dotted, the best pair framed."""
    n_x, n_y = made.values.shape
    width, height = map(float, np.clip([2.4 + 0.17 * n_y, 2.2 + 0.17 * n_x], [5.6, 4.4], [9.0, 9.0]))
    figure, ((axes,),) = canvas.sheet(width, height, made.title)
    canvas.head(axes, f"{made.subtitle}\n{made.best_text}", width)
    image = canvas.heat(axes, made.values, made.scale)
    axes.invert_yaxis()
    for ticks, names, look in ((axes.set_xticks, made.columns, canvas.TURNED), (axes.set_yticks, made.rows, {})):
        some = range(0, len(names), max(1, round(len(names) / 8)))
        ticks(some, [canvas.plain(words.shorten(names[i], 14)) for i in some], **look)
    canvas.labels(axes, f"layers of {made.model_y}", f"layers of {made.model_x}")
    i, j = np.nonzero(made.marked)
    if len(i):
        # A dot in the ink that stands out from its cell, about a sixth of it in points.
        cell = 72 * min(width / (n_y + 8), height / (n_x + 8))
        inks = [LIGHT_INK[step] for step in made.scale.steps(made.values[i, j])]
        axes.scatter(j, i, s=float(np.clip(cell / 6, 1.2, 3.2)) ** 2, c=inks, linewidths=0, label="above chance")
    if made.best is not None:
        i, j = made.best
        for color, thick in ((PAPER, 3.5), (ACCENT, 1.8)):
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=thick))
    canvas.note(figure, made.note)
    canvas.color_bar(figure, axes, image, made.bar, made.lines)
    return figure
