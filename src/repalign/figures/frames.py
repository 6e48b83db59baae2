"""What each figure shows, computed once from the table; the backends only draw it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from repalign import text as words
from repalign.errors import RepalignError
from repalign.figures import palette
from repalign.figures.conventions import PLAIN, Reading
from repalign.figures.quantities import (
    P_VIEWS,
    Scale,
    View,
    bar_marks,
    draws_of,
    found,
    found_note,
    heading,
    rows_of,
    scale_of,
    text_of,
    values_of,
    vertical_range,
    view_for,
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
    bar: list[tuple[float, str]]  # marks of the colour bar: place in [0, 1], words
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
    table: pd.DataFrame, measure: str | None = None, value: str = "statistic", reading: Reading = PLAIN
) -> MatrixFrame:
    """The matrix of models for one measure and one view."""
    pairs, view = rows_of(table, "max", measure), view_for("max", value)
    if pairs.empty:
        raise RepalignError("the table has no pairs of models", expected="rows of scope 'max'", got="none")
    grid = grid_of(pairs)
    draws = draws_of(pairs)
    flat, significant = values_of(pairs, value), found(pairs, reading.alpha)
    there = grid.index >= 0
    values = np.where(there, flat[grid.index], np.nan)
    texts = np.array([text_of(value, v, draws) for v in flat], dtype=object)[grid.index]
    chance = pairs["null_mean"].to_numpy(float)
    level = chance[np.isfinite(chance)]
    span = (float(level.min()), float(level.max())) if level.size else (math.nan, math.nan)
    label = words.measure_label(str(pairs["measure"].iloc[0]))
    scale = scale_of(value, flat, chance, draws, reading.alpha)
    return MatrixFrame(
        title=f"{label}: {view.label.lower() if value not in P_VIEWS else view.label}",
        subtitle=heading(pairs, reading),
        view=view,
        rows=grid.rows,
        columns=grid.columns,
        values=values,
        texts=np.where(there, texts, ""),
        found=np.where(there, significant[grid.index], False),
        scale=scale,
        bar=bar_marks(scale, value),
        chance=span,
        note=found_note(pairs, reading),
    )


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
    ceilings: list[tuple[float, str]]  # at the same n, with their source
    note: str

    @property
    def labels(self) -> list[str]:
        """The pairs as one string each."""
        return [f"{x} {words.TIMES} {y}" for x, y in self.pairs]


def null_frame(table: pd.DataFrame, measure: str | None = None, reading: Reading = PLAIN) -> NullFrame:
    """Observed scores against the mean, the spread and the threshold of their null, and the ceilings at this n."""
    pairs = rows_of(table, "max", measure)
    pairs = pairs.assign(found=found(pairs, reading.alpha))
    name, n = str(pairs["measure"].iloc[0]), int(pairs["n"].iloc[0])
    shown = pairs.loc[pairs["statistic"].notna()].sort_values("statistic", ascending=False, kind="stable")
    return NullFrame(
        title=f"{words.measure_label(name)}: score against chance",
        subtitle=heading(pairs, reading),
        pairs=list(zip(shown["model_x"], shown["model_y"], strict=True)),
        observed=shown["statistic"].to_numpy(float),
        null_mean=shown["null_mean"].to_numpy(float),
        null_std=shown["null_std"].to_numpy(float),
        threshold=shown["threshold"].to_numpy(float),
        found=shown["found"].to_numpy(bool),
        n_undefined=len(pairs) - len(shown),
        ceilings=[(c.statistic, c.source(n)) for c in reading.seeds(name) if c.n == n],
        note=found_note(pairs, reading),
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
    low: np.ndarray  # of the interval, cut at the ends of y_range
    high: np.ndarray
    y_range: tuple[float, float]  # of the picture
    is_cut: bool  # whether the interval goes on beyond it
    published: pd.DataFrame | None = None  # published points: point, x, alignment

    @property
    def band_label(self) -> str:
        """What the band is, and whether the picture shows all of it."""
        return "95 % interval of the line" + ", cut at the edge" * self.is_cut


def trend_frame(trend: Trend, n: int, points: int = 60, published: pd.DataFrame | None = None) -> TrendFrame:
    """What the scatter of a trend shows; n is the number of stimuli."""
    x = trend.points["x"].to_numpy(float)
    grid = np.geomspace(x.min(), x.max(), points) if trend.log else np.linspace(x.min(), x.max(), points)
    low, high = trend.band(grid)
    laid = np.empty(0) if published is None else published["alignment"].to_numpy(float)
    shown = np.concatenate([trend.points["alignment"].to_numpy(float), laid, trend.predict(grid)])
    bottom, top = vertical_range(shown, np.concatenate([low, high]))
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
        low=np.clip(low, bottom, top),
        high=np.clip(high, bottom, top),
        y_range=(bottom, top),
        is_cut=bool((low < bottom).any() or (high > top).any()),
        published=published,
    )
