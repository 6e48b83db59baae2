"""The figure of concepts: their directions held against each other, and the offset of each beside its two chance levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import numpy as np
from matplotlib.axes import Axes

from repalign import text as words
from repalign.comparison.conventions import Scale
from repalign.experiments.concept_numbers import ROUNDING, off_diagonal, random_cosine
from repalign.experiments.concepts import DIRECTION, NOTHING, PAIRING
from repalign.figures import canvas
from repalign.figures.palette import MUTED, PAPER, RULE, family

if TYPE_CHECKING:
    from repalign.experiments.concepts import Concepts

ENDS = 1.96  # standard deviations of a null on either side of its mean, as it is drawn
MARKS = {
    PAIRING: {"marker": "o", "full": True, "label": "offset: one direction, and it is the pairing"},
    DIRECTION: {"marker": "o", "full": False, "label": "offset: one direction, shuffled partners have it too"},
    NOTHING: {"marker": "X", "full": False, "label": "offset: no more than turned pairs"},
}


def draw(found: Concepts, **look: Unpack[canvas.Look]) -> Axes | list[Axes]:
    """|cos| of the concepts' directions, and beside it each one's offset: two axes; of one concept the offset alone."""
    table, record = found.table, found.record
    names = table["concept"].tolist()
    called = canvas.called(names, look=look)
    shown = [called[name] for name in names]
    count, several = len(names), len(names) > 1
    cells = 0.62 + 0.42 * count
    widths = (cells, 3.0) if several else (1,)
    above = (
        [_heading(found) + _bracketed(found), "offset: mean cosine between\nthe pairs’ differences"]
        if several
        else [_heading(found)]
    )
    width = 3.6 + (cells if several else 2.4) + canvas.beyond(shown)
    _, grid = canvas.sheet(
        width, 2.6 + 0.34 * count + 0.6 * several, "Directions of concepts", 1, widths, above=above,
        room=0.75 * width if several else 0, **look,
    )  # fmt: skip
    axes = list(grid.flat)
    if several:
        _matrix(axes[0], found, shown, random_cosine(record["width"]))
    _offsets(axes[-1], found, [] if several else shown)
    return axes[0]


def _heading(found: Concepts) -> str:
    by = "causal inner product" if found.record["metric"] == "causal" else "Euclidean inner product"
    return f"{found.what}; {by}; {words.span(found.table['n'].tolist())} pairs each"


def _bracketed(found: Concepts) -> str:
    overlap = found.tables["overlap"].drop(columns="concept").to_numpy(float)
    return "\nin brackets: concepts that share words" * bool((np.abs(off_diagonal(overlap)) > ROUNDING).any())


def _matrix(axes: Axes, found: Concepts, shown: list[str], chance: float) -> None:
    values = np.abs(found.tables["matrix"].drop(columns="concept").to_numpy(float))
    overlap = np.abs(found.tables["overlap"].drop(columns="concept").to_numpy(float)) > ROUNDING
    texts = np.array([[f"{v:.2f}".removeprefix("0") for v in row] for row in values], dtype=object)
    texts = np.where(overlap, np.char.add(np.char.add("(", texts.astype(str)), ")"), texts)
    np.fill_diagonal(values, np.nan)  # with itself
    np.fill_diagonal(texts, "")
    free = np.where(overlap, np.nan, values)
    high = max(float(np.nanmax(free if np.isfinite(free).any() else values)), chance)  # what shares words may go beyond
    marks = [(0.0, f"random {words.number(chance)}"), (1.0, words.number(high))][: 1 + (high > chance)]
    cells = canvas.Cells(shown, shown, values, Scale(chance, high, marks=marks))
    canvas.draw_cells(canvas.sheet_of(axes), axes, cells, texts)
    axes.set_xlabel("|cos| of two directions", fontsize=8)


def _offsets(axes: Axes, found: Concepts, shown: list[str]) -> None:
    """A row for each concept, as in the matrix: turned pairs as a band, shuffled partners as a line, and the offset."""
    table, at = found.table, np.arange(len(found.table))
    color = family(0)[0]
    canvas.rule(axes, "x")
    spread = ENDS * table["flip_sd"].to_numpy(float)
    axes.barh(at, 2 * spread, left=-spread, height=0.62, color=RULE, label=f"turned pairs: 0 ± {ENDS} sd")
    mean, sd = (table[f"shuffled_{what}"].to_numpy(float) for what in ("mean", "sd"))
    axes.hlines(at, mean - ENDS * sd, mean + ENDS * sd, color=MUTED, linewidth=1.1)
    label = f"shuffled partners: mean ± {ENDS} sd"
    axes.plot(mean, at, color=MUTED, linestyle="none", marker="|", markersize=9, markeredgewidth=1.6, label=label)
    for kind, look in MARKS.items():
        some = (table["found"] == kind).to_numpy()
        if some.any():
            fill = color if look["full"] else PAPER
            axes.plot(
                table["offset"].to_numpy(float)[some], at[some], linestyle="none", marker=look["marker"], markersize=6.5,
                markerfacecolor=fill, markeredgecolor=color, markeredgewidth=1.3, label=look["label"],
            )  # fmt: skip
    axes.set_ylim(len(at) - 0.5, -0.5)
    axes.set_yticks(at if shown else [], [canvas.plain(name) for name in shown] if shown else [])
    canvas.labels(axes, "offset, at most 1")
    canvas.legend_below(axes, 2)
