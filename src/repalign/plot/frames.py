"""What each figure shows, computed once from the table; the backends only draw it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.plot import palette, words
from repalign.plot.views import (
    ALPHA,
    P_VIEWS,
    Scale,
    View,
    best_pair,
    draws_of,
    found,
    found_note,
    heading,
    row_of,
    rows_of,
    scale_of,
    text_of,
    values_of,
    view_of,
)  # fmt: skip
from repalign.relate import Trend

# --- matrix of models --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grid:
    """Models by models: which row of the pairs each cell shows (-1: none), and whether mirrored."""

    rows: list[str]
    columns: list[str]
    index: np.ndarray
    mirrored: np.ndarray


def grid_of(pairs: pd.DataFrame) -> Grid:
    """Place the pairs of models in a matrix; if all met all, half a matrix is mirrored into a whole one."""
    x, y = list(dict.fromkeys(pairs["model_x"])), list(dict.fromkeys(pairs["model_y"]))
    square = bool(set(x) & set(y))
    rows = columns = list(dict.fromkeys([*x, *y]))
    if not square:
        rows, columns = x, y
    at_row, at_column = ({name: i for i, name in enumerate(names)} for names in (rows, columns))
    index = np.full((len(rows), len(columns)), -1)
    mirrored = np.zeros(index.shape, bool)
    for k, (a, b) in enumerate(zip(pairs["model_x"], pairs["model_y"], strict=True)):
        index[at_row[a], at_column[b]] = k
    if square:
        mirrored = (index < 0) & (index.T >= 0)
        index = np.where(mirrored, index.T, index)
    return Grid(rows, columns, index, mirrored)


@dataclass(frozen=True, eq=False)
class MatrixFrame:
    """Models by models, one number per pair."""

    title: str
    subtitle: str
    view: View
    rows: list[str]
    columns: list[str]
    values: np.ndarray  # (rows, columns); nan where undefined or not compared
    texts: np.ndarray  # the same as strings; "" where not compared
    found: np.ndarray  # above chance after adjustment
    scale: Scale
    chance: tuple[float, float]  # lowest and highest chance level
    note: str

    @property
    def labels(self) -> np.ndarray:
        """The texts, with a circle at pairs that are not above chance."""
        bare = self.found | np.isin(self.texts, ["", words.UNDEFINED])
        return np.where(bare, self.texts, "○ " + self.texts)

    def inks(self, undefined: str) -> np.ndarray:
        """The colour of the text of every cell on light paper."""
        steps = self.scale.steps(self.values)
        inks = np.array([*(palette.ink_on(c) for c in palette.LIGHT), undefined])
        return inks[steps]  # -1 takes the last


def matrix_frame(
    table: pd.DataFrame, measure: str | None = None, value: str = "statistic", alpha: float = ALPHA
) -> MatrixFrame:
    """The matrix of models for one measure and one view."""
    pairs, view = rows_of(table, "max", measure), view_of(value)
    if pairs.empty:
        raise RepalignError("the table has no pairs of models", expected="rows of scope 'max'", got="none")
    grid = grid_of(pairs)
    draws = draws_of(pairs)
    flat, significant = values_of(pairs, value), found(pairs, alpha)
    there = grid.index >= 0
    values = np.where(there, flat[grid.index], np.nan)
    texts = np.array([text_of(value, v, draws) for v in flat], dtype=object)[grid.index]
    chance = pairs["null_mean"].to_numpy(float)
    level = chance[np.isfinite(chance)]
    span = (float(level.min()), float(level.max())) if level.size else (math.nan, math.nan)
    label = words.measure_label(str(pairs["measure"].iloc[0]))
    return MatrixFrame(
        title=f"{label}: {view.label.lower() if value not in P_VIEWS else view.label}",
        subtitle=heading(pairs),
        view=view,
        rows=grid.rows,
        columns=grid.columns,
        values=values,
        texts=np.where(there, texts, ""),
        found=np.where(there, significant[grid.index], False),
        scale=scale_of(value, flat, chance, draws, alpha),
        chance=span,
        note=found_note(pairs, alpha),
    )


# --- layers by layers --------------------------------------------------------------------------


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
    best: tuple[int, int] | None  # the cell that the layer search chose
    best_text: str
    chance: float  # mean over the cells
    threshold: float  # of the layer search: what the best of all cells must pass


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one pair of models as layers by layers arrays, in the order of the layers."""

    layers_x: list[str]
    layers_y: list[str]
    index_x: np.ndarray
    index_y: np.ndarray
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, rows: pd.DataFrame, columns: Sequence[str]) -> Cells:
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
    alpha: float = ALPHA,
) -> LayerMapFrame:
    """The layer map of one pair of models; without names, that of the best aligned pair."""
    pairs, cells, view = rows_of(table, "max", measure), rows_of(table, "cell", measure), view_of(value)
    if view.pairs_only:
        raise RepalignError(
            f"{value!r} is adjusted over pairs of models", expected="a number of a single cell", got=value,
            remedy="use pvalue",
        )  # fmt: skip
    for side, name in (("model_x", model_x), ("model_y", model_y)):
        known = list(dict.fromkeys(pairs[side]))
        if name is not None and name not in known:
            raise RepalignError(f"no {side} {name!r} in the result", got=name, remedy=did_you_mean(name, known))
        pairs = pairs.loc[pairs[side] == name] if name is not None else pairs
    if pairs.empty:
        raise RepalignError(f"{model_x!r} and {model_y!r} were not compared", remedy="try them the other way round")
    row = best_pair(pairs) or row_of(pairs, pairs.index[0])
    chosen = cells.loc[(cells["model_x"] == row["model_x"]) & (cells["model_y"] == row["model_y"])]
    laid = Cells.of(chosen, [value, "null_mean"])
    chance = laid.arrays["null_mean"][np.isfinite(laid.arrays["null_mean"])]
    draws = int(row["n_draws"])
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
        scale=scale_of(value, laid.arrays[value], laid.arrays["null_mean"], draws_of(chosen), alpha),
        best=laid.place(row),
        best_text=_best_text(row, draws),
        chance=float(chance.mean()) if chance.size else math.nan,
        threshold=float(row["threshold"]),
    )


def _best_text(row: Mapping[str, Any], draws: int) -> str:
    if row["index_x"] < 0:
        return "no pair of layers has a defined score"
    where = f"{row['layer_x']} {words.TIMES} {row['layer_y']}"
    chance = f"chance {words.number(row['null_mean'])}, {words.p_sentence(row['pvalue'], draws)}"
    return f"best: {where}\n{words.number(row['statistic'])} ({chance})"


# --- observed against chance -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NullFrame:
    """Every pair of models: its score beside what chance gives to the same search; highest score first."""

    title: str
    subtitle: str
    pairs: list[tuple[str, str]]
    observed: np.ndarray
    null_mean: np.ndarray
    null_std: np.ndarray
    threshold: np.ndarray
    found: np.ndarray
    n_undefined: int
    note: str

    @property
    def labels(self) -> list[str]:
        """The pairs as one string each."""
        return [f"{x} {words.TIMES} {y}" for x, y in self.pairs]


def null_frame(table: pd.DataFrame, measure: str | None = None, alpha: float = ALPHA) -> NullFrame:
    """Observed scores against the mean, the spread and the threshold of their null."""
    pairs = rows_of(table, "max", measure)
    pairs = pairs.assign(found=found(pairs, alpha))
    shown = pairs.loc[pairs["statistic"].notna()].sort_values("statistic", ascending=False, kind="stable")
    return NullFrame(
        title=f"{words.measure_label(str(pairs['measure'].iloc[0]))}: score against chance",
        subtitle=heading(pairs),
        pairs=list(zip(shown["model_x"], shown["model_y"], strict=True)),
        observed=shown["statistic"].to_numpy(float),
        null_mean=shown["null_mean"].to_numpy(float),
        null_std=shown["null_std"].to_numpy(float),
        threshold=shown["threshold"].to_numpy(float),
        found=shown["found"].to_numpy(bool),
        n_undefined=len(pairs) - len(shown),
        note=found_note(pairs, alpha),
    )


# --- trend -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TrendFrame:
    """One point per model, families told apart, the line and its interval."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    trend: Trend
    families: list[str]  # in order of appearance; a family's place is its colour and its marker
    curve_x: np.ndarray
    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray


def trend_frame(trend: Trend, n: int, points: int = 60) -> TrendFrame:
    """What the scatter of a trend shows; n is the number of stimuli."""
    x = trend.points["x"].to_numpy(float)
    grid = np.geomspace(x.min(), x.max(), points) if trend.log else np.linspace(x.min(), x.max(), points)
    low, high = trend.band(grid)
    better = " (lower is better; axis reversed)" if trend.lower_is_better else ""
    scale = ", log scale" if trend.log else ""
    models = f"{trend.n} model{'s' * (trend.n != 1)}"
    partners = max(trend.points["n_partners"].tolist())
    chance = float(trend.points["chance"].to_numpy().mean())
    over = f"each the mean over {partners} partner{'s' * (partners != 1)}"
    return TrendFrame(
        title=f"{trend.label} and alignment",
        subtitle=f"{words.measure_label(trend.measure)}; {models}, {over}; n = {words.count(n)}",
        x_label=f"{trend.label}{scale}{better}",
        y_label=f"Alignment (chance {words.number(chance)})",
        trend=trend,
        families=list(dict.fromkeys(trend.points["family"])),
        curve_x=grid,
        curve=trend.predict(grid),
        low=low,
        high=high,
    )
