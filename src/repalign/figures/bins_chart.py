"""Alignment within bins of competence; for models among themselves also the matrix of bins."""

from __future__ import annotations

import math
from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from repalign import text as words
from repalign.comparison.conventions import Scale, vertical_range
from repalign.figures import canvas
from repalign.figures.palette import ACCENT, MUTED, SCORE
from repalign.measures import facts_of
from repalign.relate import PARAMETERS, Bins


def draw(found: Bins, **look: Unpack[canvas.Look]) -> Axes | list[Axes]:
    """Bins from the least competent to the most, from `relate.bins`: the mean, its interval over models, its standard
    error over pairs, and chance."""
    of_all, names = found.side == "both", [_span(found, label, b) for b, label in enumerate(found.labels)]
    names = list(canvas.called(names, look=look, what="words").values())
    measure = facts_of(found.measure)
    closer = measure.closer_is_higher
    title = f"{found.label} and alignment {'within bins' if of_all else 'with the other side'}"
    own, widths = max(4.2, 1.4 + 0.85 * len(names)), [1.0]
    wide = of_all and len(names) > 1
    if wide:
        widths = [own, 1.8 + 0.62 * len(names)]
    subtitle = f"{measure.label}; {words.counted(found.n, 'model')}; n = {found.n_stimuli:,}"
    if found.ends is not None:
        gap = words.interval(found.difference, *found.difference_interval)
        p = words.p_sentence(found.pvalue, found.draws)
        subtitle += f"\nmost minus least competent: {gap}, {p}"
    width = own + wide * (2.6 + 0.62 * len(names))
    figure, ((axes, *right),) = canvas.sheet(width, 4.4, title, 1, widths, above=subtitle, room=own, **look)
    _means(axes, found, names, closer)
    for matrix in right:
        canvas.draw_cells(figure, matrix, *_between(found, names, closer))
        matrix.set_xlabel("within a bin on the diagonal, between bins off it", fontsize=7, color=MUTED)
    canvas.legend_below(axes, 4)
    return canvas.one_or_all([axes, *right])


def _span(found: Bins, label: str, b: int) -> str:
    if found.against != PARAMETERS:
        return label
    return " to ".join(words.parameters(edge) for edge in found.edges[b : b + 2])


def _means(axes: Axes, found: Bins, names: list[str], closer: bool) -> None:
    rows, x = found.within, np.arange(len(names))
    mean, se = rows["alignment"].to_numpy(float), rows["se"].to_numpy(float)
    ends = rows[["low", "high"]].to_numpy(float)
    bottom, top = vertical_range(rows[["alignment", "chance"]].to_numpy(float).ravel(), ends.ravel())
    units = "families" if "family" in set(rows["unit"]) else "models"
    cut = ", cut at the edge" * bool((ends < bottom).any() or (ends > top).any())
    interval = f"{100 * found.level:g} % interval over {units}{cut}"
    canvas.rule(axes, "y")
    axes.vlines(x, *ends.T, color=SCORE, linewidth=1.1, label=interval)
    axes.vlines(x, mean - se, mean + se, color=SCORE, linewidth=13, alpha=0.3, label="± standard error over pairs")
    axes.plot(x, mean, "o", color=SCORE, markersize=4.5, label="mean over pairs")
    dash = {"color": ACCENT, "linewidth": 1.3, "linestyle": canvas.DASHED, "label": "chance"}
    axes.hlines(rows["chance"], x - 0.3, x + 0.3, **dash)
    counts = zip(names, rows["n_models_x"].tolist(), rows["n_pairs"].tolist(), strict=True)
    ticks = [f"{name}\n{words.counted(m, 'model')}\n{words.counted(p, 'pair')}" for name, m, p in counts]
    axes.set_xticks(x, [canvas.plain(t) for t in ticks], fontsize=7)
    axes.set_xlim(-0.6, len(x) - 0.4)
    axes.set_ylim(bottom, top)
    better = ", lower is better" if found.lower_is_better else ""
    few = "; fewer than three models have no interval" if rows["low"].isna().to_numpy().any() else ""
    canvas.labels(axes, y=f"Mean score{'' if closer else ' (lower is closer)'}")
    about = f"{found.label}{better}: bins from the least to the most competent{few}"
    axes.set_xlabel(canvas.plain(about, 100), fontsize=7, color=MUTED)


def _between(found: Bins, names: list[str], closer: bool) -> tuple[canvas.Cells, np.ndarray]:
    """Bins by bins, from chance to the score that is closest."""
    values, chance = found.matrix().to_numpy(float), found.table["chance"].to_numpy(float)
    level = float(np.nanmean(chance)) if np.isfinite(chance).any() else math.nan
    defined = values[np.isfinite(values)]
    top = float((defined.max() if closer else defined.min()) if defined.size else level)
    start = level if math.isfinite(level) else top
    end = max(top, start) if closer else min(top, start)
    scale = Scale(start, end, marks=[(0.0, f"chance {words.number(start)}"), (1.0, words.number(end))])
    texts = np.array([[words.number(v) for v in row] for row in values], dtype=object)
    return canvas.Cells(names, names, values, scale), texts
