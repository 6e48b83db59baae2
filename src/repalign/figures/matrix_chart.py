"""Models by models: score, chance level, calibrated score or p of every pair."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from repalign import text as words
from repalign.comparison.alignment import Alignment
from repalign.comparison.conventions import Conventions, Pairs, scale_of, text_of, view_for
from repalign.figures import canvas


@dataclass(frozen=True, eq=False)
class Matrix(canvas.Cells):
    """Models by models, one number per pair; if all met all, half a matrix is mirrored into a whole one."""

    title: str
    index: np.ndarray  # which row of the pairs each cell shows, -1 for none
    mirrored: np.ndarray
    texts: np.ndarray  # the values; "" where not compared
    labels: np.ndarray  # the same with a circle at pairs that are not above chance
    found: np.ndarray  # above chance after adjustment
    chance: tuple[float, float]  # lowest and highest chance level
    pairs: Pairs
    text: str  # the best pair
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    @classmethod
    def of(cls, pairs: Pairs, value: str = "statistic") -> Matrix:
        """The matrix of some pairs in one view."""
        view, given = view_for("max", value), pairs.rows
        rows, columns = list(dict.fromkeys(given["model_x"])), list(dict.fromkeys(given["model_y"]))
        square = bool(set(rows) & set(columns))
        if square:
            rows = columns = list(dict.fromkeys([*rows, *columns]))
        index = np.full((len(rows), len(columns)), -1)
        for k, (a, b) in enumerate(zip(given["model_x"], given["model_y"], strict=True)):
            index[rows.index(a), columns.index(b)] = k
        mirrored = (index < 0) & (index.T >= 0) if square else np.zeros(index.shape, bool)
        index = np.where(mirrored, index.T, index) if square else index
        there, flat, chance = index >= 0, given[value].to_numpy(float), given["null_mean"].to_numpy(float)
        texts = np.where(there, np.array([text_of(value, v, pairs.draws) for v in flat], dtype=object)[index], "")
        above, level = there & pairs.found[index], chance[np.isfinite(chance)]
        return cls(
            rows, columns, np.where(there, flat[index], np.nan),
            scale_of(value, flat, chance, pairs.draws, pairs.alpha),
            title=f"{view.label}: {pairs.about.label}", index=index,
            mirrored=mirrored, texts=texts,
            labels=np.where(above | np.isin(texts, ["", words.UNDEFINED]), texts, "○ " + texts), found=above,
            chance=(float(level.min()), float(level.max())) if level.size else (math.nan, math.nan), pairs=pairs,
            text=pairs.text,
        )  # fmt: skip


def shown(alignment: Alignment, measure: str | None = None, *, value: str = "statistic") -> Matrix:
    """The matrix of a result, with what it shows as a table."""
    made = Matrix.of(Pairs.of(alignment.table, measure, Conventions.of(alignment.run)), value)
    return replace(made, table=alignment.matrix(measure, value).reset_index())


def draw(made: Matrix, **look: Unpack[canvas.Look]) -> Axes:
    """Models by models with the number in every cell."""
    about = {"above": made.pairs.heading, "below": made.pairs.note}
    names = canvas.called(made.rows, made.columns, look=look)
    shown = replace(made, rows=[names[r] for r in made.rows], columns=[names[c] for c in made.columns])
    width, height = 2.6 + 0.55 * len(made.columns), 2.3 + 0.36 * len(made.rows)
    width, height = width + canvas.beyond(shown.rows), height + 0.7 * canvas.beyond(shown.columns)
    figure, ((axes,),) = canvas.sheet(width, height, made.title, **about, **look)
    canvas.draw_cells(figure, axes, shown, made.labels)
    return axes
