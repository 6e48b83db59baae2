"""Models by models: score, chance level, calibrated score or p of every pair."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from repalign import text as words
from repalign.comparison.alignment import Alignment, rows_of
from repalign.errors import RepalignError
from repalign.figures import canvas
from repalign.figures.conventions import (
    P_VIEWS,
    PLAIN,
    Conventions,
    bar_marks,
    best_text,
    draws_of,
    found,
    found_note,
    heading,
    scale_of,
    text_of,
    values_of,
    view_for,
)


@dataclass(frozen=True, eq=False)
class Matrix(canvas.Cells):
    """Models by models, one number per pair; if all met all, half a matrix is mirrored into a whole one."""

    title: str
    subtitle: str
    index: np.ndarray  # which row of the pairs each cell shows, -1 for none
    mirrored: np.ndarray
    texts: np.ndarray  # the values; "" where not compared
    labels: np.ndarray  # the same with a circle at pairs that are not above chance
    found: np.ndarray  # above chance after adjustment
    chance: tuple[float, float]  # lowest and highest chance level
    note: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    text: str = ""

    @classmethod
    def of(
        cls, table: pd.DataFrame, measure: str | None = None, value: str = "statistic", conventions: Conventions = PLAIN
    ) -> Matrix:
        """The matrix of models for one measure and one view."""
        pairs, view = rows_of(table, "max", measure), view_for("max", value)
        if pairs.empty:
            raise RepalignError("the table has no pairs of models", expected="rows of scope 'max'", got="none")
        rows, columns, index, mirrored = _placed(pairs)
        draws, there = draws_of(pairs), index >= 0
        flat, chance = values_of(pairs, value), pairs["null_mean"].to_numpy(float)
        texts = np.where(there, np.array([text_of(value, v, draws) for v in flat], dtype=object)[index], "")
        above = there & found(pairs, conventions.alpha)[index]
        level = chance[np.isfinite(chance)]
        scale = scale_of(value, flat, chance, draws, conventions.alpha)
        label = conventions.about(str(pairs["measure"].iloc[0])).label
        return cls(
            rows,
            columns,
            np.where(there, flat[index], np.nan),
            scale,
            bar_marks(scale, value),
            title=f"{label}: {view.label.lower() if value not in P_VIEWS else view.label}",
            subtitle=heading(pairs, conventions),
            index=index,
            mirrored=mirrored,
            texts=texts,
            labels=np.where(above | np.isin(texts, ["", words.UNDEFINED]), texts, "○ " + texts),
            found=above,
            chance=(float(level.min()), float(level.max())) if level.size else (math.nan, math.nan),
            note=found_note(pairs, conventions),
        )


def _placed(pairs: pd.DataFrame) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Rows, columns, which row of the pairs each cell shows, and which cells are mirrored."""
    rows, columns = list(dict.fromkeys(pairs["model_x"])), list(dict.fromkeys(pairs["model_y"]))
    square = bool(set(rows) & set(columns))
    if square:
        rows = columns = list(dict.fromkeys([*rows, *columns]))
    index = np.full((len(rows), len(columns)), -1)
    for k, (a, b) in enumerate(zip(pairs["model_x"], pairs["model_y"], strict=True)):
        index[rows.index(a), columns.index(b)] = k
    mirrored = (index < 0) & (index.T >= 0) if square else np.zeros(index.shape, bool)
    return rows, columns, np.where(mirrored, index.T, index) if square else index, mirrored


def shown(alignment: Alignment, measure: str | None = None, *, value: str = "statistic") -> Matrix:
    """The matrix of a result, with what it shows as a table and the best pair in words."""
    made = Matrix.of(alignment.table, measure, value, Conventions.of(alignment.run))
    table = alignment.matrix(measure, value if value != "gain" else "statistic").reset_index()
    return replace(made, table=table, text=best_text(rows_of(alignment.table, "max", measure)))


def draw(made: Matrix) -> Figure:
    """Models by models with the number in every cell."""
    n_rows, n_columns = made.values.shape
    width = 2.6 + 0.55 * n_columns
    figure, ((axes,),) = canvas.sheet(width, 2.3 + 0.36 * n_rows, made.title)
    canvas.head(axes, made.subtitle, width)
    canvas.draw_cells(figure, axes, made, made.labels)
    canvas.note(figure, made.note)
    return figure
