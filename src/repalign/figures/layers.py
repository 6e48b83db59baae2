"""What a layer map shows: layers of one model by layers of another, which cells are above chance, and the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repalign import text as words
from repalign.errors import RepalignError, did_you_mean
from repalign.figures.conventions import PLAIN, Reading
from repalign.figures.quantities import (
    Scale,
    View,
    bar_marks,
    best_pair,
    draws_of,
    row_of,
    rows_of,
    scale_of,
    values_of,
    view_for,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class LayerMapFrame:
    """Layers of one model by layers of another, one number per pair of layers."""

    title: str
    subtitle: str
    view: View
    model_x: str
    model_y: str
    layers_x: list[str]
    layers_y: list[str]
    values: np.ndarray  # (layers of x, layers of y)
    scale: Scale
    bar: list[tuple[float, str]]  # marks of the colour bar: place in [0, 1], words
    lines: list[float]  # places of the thresholds on it
    marked: np.ndarray  # above chance, family-wise over the pairs of layers
    note: str  # what the marks mean
    hover: np.ndarray  # every cell in words
    best: tuple[int, int] | None  # the best cell of the layer search
    best_text: str
    chance: float  # mean over the cells
    cell_threshold: float  # median over the cells, each on its own
    threshold: float  # of the layer search


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one pair of models as layers by layers arrays, in the order of the layers."""

    layers_x: list[str]
    layers_y: list[str]
    index_x: np.ndarray
    index_y: np.ndarray
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, rows: pd.DataFrame, columns: Iterable[str]) -> Cells:
        """Lay the rows of one pair out; `columns` are columns of the table or views."""
        index_x, row = np.unique(rows["index_x"].to_numpy(int), return_inverse=True)
        index_y, column = np.unique(rows["index_y"].to_numpy(int), return_inverse=True)
        names_x, names_y = np.full(len(index_x), "", object), np.full(len(index_y), "", object)
        names_x[row], names_y[column] = rows["layer_x"].to_numpy(object), rows["layer_y"].to_numpy(object)
        arrays = {}
        for name in columns:
            arrays[name] = np.full((len(index_x), len(index_y)), np.nan)
            arrays[name][row, column] = values_of(rows, name)
        return cls([str(n) for n in names_x], [str(n) for n in names_y], index_x, index_y, arrays)

    def place(self, found: Mapping[str, Any]) -> tuple[int, int] | None:
        """Where the cell that a row of scope "max" names lies; None if it names none."""
        i, j = (
            np.searchsorted(self.index_x, found["index_x"]),
            np.searchsorted(self.index_y, found["index_y"]),
        )
        known = i < len(self.index_x) and j < len(self.index_y) and found["index_x"] >= 0
        return (int(i), int(j)) if known else None


def layer_map_frame(
    table: pd.DataFrame,
    model_x: str | None = None,
    model_y: str | None = None,
    measure: str | None = None,
    value: str = "statistic",
    reading: Reading = PLAIN,
) -> LayerMapFrame:
    """The layer map of one pair of models; without names, that of the best aligned pair."""
    pairs, cells, view = rows_of(table, "max", measure), rows_of(table, "cell", measure), view_for("cell", value)
    for side, name in (("model_x", model_x), ("model_y", model_y)):
        known = list(dict.fromkeys(pairs[side]))
        if name is not None and name not in known:
            raise RepalignError(f"no {side} {name!r} in the result", got=name, remedy=did_you_mean(name, known))
        pairs = pairs.loc[pairs[side] == name] if name is not None else pairs
    if pairs.empty:
        raise RepalignError(f"{model_x!r} and {model_y!r} were not compared", remedy="try them the other way round")
    row = best_pair(pairs) or row_of(pairs, pairs.index[0])
    chosen = cells.loc[(cells["model_x"] == row["model_x"]) & (cells["model_y"] == row["model_y"])]
    laid = Cells.of(chosen, {value, "statistic", "null_mean", "threshold", "pvalue", "p_stepdown"})
    chance, draws = mean_chance(laid.arrays["null_mean"]), int(row["n_draws"])
    cell_draws = draws_of(chosen)
    drawn = draws if value == "p_stepdown" else cell_draws
    scale = scale_of(value, laid.arrays[value], laid.arrays["null_mean"], drawn, reading.alpha)
    cell_threshold = median_threshold(laid.arrays["threshold"])
    thresholds = [(cell_threshold, "median"), (float(row["threshold"]), "search")] if value == "statistic" else []
    inside = [(t, f"threshold {words.number(t)} ({of})") for t, of in thresholds if scale.low < t <= scale.high]
    label = words.measure_label(str(row["measure"]))
    return LayerMapFrame(
        title=f"{row['model_x']} {words.TIMES} {row['model_y']}",
        subtitle=f"{label}, {view.label.lower()}, n = {words.count(int(row['n']))}",
        view=view,
        model_x=row["model_x"],
        model_y=row["model_y"],
        layers_x=laid.layers_x,
        layers_y=laid.layers_y,
        values=laid.arrays[value],
        scale=scale,
        bar=bar_marks(scale, value, inside),
        lines=[float(scale.position(t)) for t, _ in inside],
        marked=laid.arrays["p_stepdown"] <= reading.alpha,
        note=marks_note(laid.arrays["p_stepdown"], reading.alpha),
        hover=_cell_words(laid, cell_draws, draws),
        best=laid.place(row),
        best_text=_best_text(row, draws),
        chance=chance,
        cell_threshold=cell_threshold,
        threshold=float(row["threshold"]),
    )


def mean_chance(null_mean: np.ndarray) -> float:
    """The chance level of a layer map: the mean over its cells; nan if none has one."""
    defined = null_mean[np.isfinite(null_mean)]
    return float(defined.mean()) if defined.size else math.nan


def median_threshold(threshold: np.ndarray) -> float:
    """The threshold of a single cell: the median over a layer map; nan if none has one."""
    defined = threshold[np.isfinite(threshold)]
    return float(np.median(defined)) if defined.size else math.nan


def marks_note(stepdown: np.ndarray, alpha: float) -> str:
    """What the marks of a layer map mean and how many there are; says so where there can be none."""
    tests, count = int(np.isfinite(stepdown).sum()), int((stepdown <= alpha).sum())
    if not tests:
        return "Nothing is marked: this result has no p-values over the pairs of layers."
    many = f"{words.count(count) if count else 'none'} of {words.count(tests)} at α = {alpha:g}"
    return f"● marked: above chance, family-wise over the pairs of layers, step-down ({many})."


def _cell_words(laid: Cells, cell_draws: int, draws: int) -> np.ndarray:
    """Score, chance level and p-values of every cell."""

    def told(score: float, chance: float, p: float, stepdown: float) -> str:
        text = f"{words.number(score)}, chance {words.number(chance)}, {words.p_sentence(p, cell_draws)}"
        return f"{text}, step-down {words.p_sentence(stepdown, draws)}" if math.isfinite(stepdown) else text

    columns = (laid.arrays[c] for c in ("statistic", "null_mean", "pvalue", "p_stepdown"))
    return np.vectorize(told, otypes=[object])(*columns)


def _best_text(row: Mapping[str, Any], draws: int) -> str:
    if row["index_x"] < 0:
        return "no pair of layers has a defined score"
    where = f"{row['layer_x']} {words.TIMES} {row['layer_y']}"
    chance = f"chance {words.number(row['null_mean'])}, {words.p_sentence(row['pvalue'], draws)}"
    return f"best: {where}\n{words.number(row['statistic'])} ({chance})"
