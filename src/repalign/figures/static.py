"""Frames drawn for paper with matplotlib: object interface only, no window, no global state."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from repalign import text as words
from repalign.figures import palette
from repalign.figures.frames import MatrixFrame, NullFrame, TrendFrame
from repalign.figures.layers import LayerMapFrame
from repalign.figures.quantities import Scale
from repalign.figures.static_labels import spread
from repalign.text import shorten

INK, MUTED, RULE, PAPER = "#20242a", "#6b7078", "#d8d5cc", "#ffffff"
ACCENT, SCORE = "#d1495b", "#1f608b"
UNDEFINED_COLOR = "#ececec"
MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "cross": "X",
    "down": "v",
    "plus": "P",
    "star": "*",
}
CMAP = ListedColormap(list(palette.LIGHT)).with_extremes(bad=UNDEFINED_COLOR)


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _figure(width: float, height: float, title: str, subtitle: str) -> tuple[Figure, Axes]:
    """A figure with a title block of fixed height above one pair of axes."""
    figure = Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_title(plain(_wrap(subtitle, 14 * width)), loc="left", fontsize=8, color=MUTED, pad=10)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes



def stamp(figure: Figure) -> Figure:
    """Write across a figure that it is of a mock run; once, however often it is asked."""
    if not any(text.get_gid() == "mock" for text in figure.texts):
        look = {"ha": "center", "va": "center", "rotation": 25, "fontweight": "bold", "color": ACCENT, "alpha": 0.4}
        width, height = figure.get_size_inches()
        size = float(min(26, 3.0 * width, 6.0 * height))
        figure.text(0.5, 0.5, words.MOCK_STAMP, gid="mock", fontsize=size, zorder=10, **look)
    return figure


def _wrap(text: str, characters: float) -> str:
    return "\n".join(textwrap.fill(line, max(30, int(characters))) for line in text.splitlines())


def _note(figure: Figure, text: str) -> None:
    """What the marks mean, below everything, as wide as the figure."""
    note = plain(_wrap(text, 17 * figure.get_figwidth()))
    figure.supxlabel(note, x=0.01, ha="left", fontsize=7, color=MUTED)


def _heat(axes: Axes, values: np.ndarray, scale: Scale) -> Any:
    place = scale.position(values)
    return axes.imshow(place, cmap=CMAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")


def _color_bar(
    figure: Figure, axes: Axes, image: Any, marks: Sequence[tuple[float, str]], lines: Sequence[float] = ()
) -> None:
    """A colour bar whose ticks are the marks, each a place in [0, 1] and its words, and lines across it."""
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=28, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_ticks([p for p, _ in marks], labels=[plain(t) for _, t in marks])
    bar.ax.tick_params(labelsize=7, length=2, colors=INK)
    for place in lines:
        bar.ax.axhline(place, color=ACCENT, linewidth=1.2)


def draw_matrix(frame: MatrixFrame) -> Figure:
    """Models by models with the number in every cell."""
    n_rows, n_columns = frame.values.shape
    figure, axes = _figure(2.6 + 0.55 * n_columns, 2.3 + 0.36 * n_rows, frame.title, frame.subtitle)
    image = _heat(axes, frame.values, frame.scale)
    axes.set_xticks(
        range(n_columns), [plain(c) for c in frame.columns], rotation=45, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks(range(n_rows), [plain(r) for r in frame.rows])
    axes.set_xticks(np.arange(n_columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n_rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    inks = frame.inks(undefined=MUTED)
    for (i, j), text in np.ndenumerate(frame.labels):
        axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=inks[i, j])
    _note(figure, frame.note)
    _color_bar(figure, axes, image, frame.bar)
    return figure


def draw_layer_map(frame: LayerMapFrame) -> Figure:
    """Layers by layers, first layers at the lower left, cells above chance dotted, the best one framed."""
    n_x, n_y = frame.values.shape
    width, height = np.clip([2.4 + 0.17 * n_y, 2.2 + 0.17 * n_x], [5.6, 4.4], [9.0, 9.0])
    figure, axes = _figure(float(width), float(height), frame.title, f"{frame.subtitle}\n{frame.best_text}")
    image = _heat(axes, frame.values, frame.scale)
    axes.invert_yaxis()
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    for ticks, names, look in ((axes.set_xticks, frame.layers_y, turned), (axes.set_yticks, frame.layers_x, {})):
        shown = range(0, len(names), max(1, round(len(names) / 8)))
        ticks(shown, [plain(shorten(names[i], 14)) for i in shown], **look)
    axes.set_xlabel(plain(f"layers of {frame.model_y}"), fontsize=8, color=INK)
    axes.set_ylabel(plain(f"layers of {frame.model_x}"), fontsize=8, color=INK)
    _dots(axes, frame, 72 * min(float(width) / (n_y + 8), float(height) / (n_x + 8)))
    if frame.best is not None:
        i, j = frame.best
        for color, thick in ((PAPER, 3.5), (ACCENT, 1.8)):
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=thick))
    _note(figure, frame.note)
    _color_bar(figure, axes, image, frame.bar, frame.lines)
    return figure


def _dots(axes: Axes, frame: LayerMapFrame, cell: float) -> None:
    """A dot in every marked cell, in the ink that stands out from it; `cell` is about its size in points."""
    i, j = np.nonzero(frame.marked)
    if len(i):
        inks = [palette.ink_on(palette.LIGHT[step]) for step in frame.scale.steps(frame.values[i, j])]
        axes.scatter(j, i, s=float(np.clip(cell / 6, 1.2, 3.2)) ** 2, c=inks, linewidths=0, label="above chance")


def draw_null(frame: NullFrame) -> Figure:
    """One row per pair: its score, and the mean, one standard deviation and the threshold of chance."""
    rows = np.arange(len(frame.observed))
    figure, axes = _figure(7.5, 1.8 + 0.2 * len(rows), frame.title, frame.subtitle)
    axes.hlines(
        rows,
        frame.null_mean - frame.null_std,
        frame.null_mean + frame.null_std,
        color="#9aa0a8",
        linewidth=5,
        alpha=0.6,
    )
    axes.plot(frame.null_mean, rows, "|", color=MUTED, markersize=7, label="chance: mean ± sd")
    axes.plot(frame.threshold, rows, "|", color=ACCENT, markersize=9, markeredgewidth=1.6, label="threshold")
    for k, (ceiling, _) in enumerate(frame.ceilings):
        axes.axvline(ceiling, color=INK, linewidth=1, linestyle="--", label="_" * (k > 0) + "ceiling: two trainings")
    above, below = frame.found, ~frame.found
    axes.plot(frame.observed[above], rows[above], "o", color=SCORE, markersize=5, label="score, above chance")
    axes.plot(
        frame.observed[below],
        rows[below],
        "o",
        color=SCORE,
        markersize=5,
        markerfacecolor=PAPER,
        label="score, not above chance",
    )
    axes.set_yticks(rows, [plain(t) for t in frame.labels], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    # Not below everything: the legend is there.
    axes.set_xlabel(plain(_wrap(frame.note, 90)), fontsize=7, color=MUTED, loc="left")
    figure.legend(loc="outside lower left", fontsize=7, frameon=False, ncols=5)
    return figure


def draw_trend(frame: TrendFrame) -> Figure:
    """One point per model with its name, the fitted line and its interval."""
    figure, axes = _figure(6.4, 4.6, frame.title, frame.subtitle)
    axes.set_axisbelow(True)
    axes.grid(color=RULE, linewidth=0.6)
    if frame.trend.log:
        axes.set_xscale("log")
    if frame.trend.has_band:
        axes.fill_between(
            frame.curve_x,
            frame.low,
            frame.high,
            color="#9aa0a8",
            alpha=0.25,
            linewidth=0,
            label=frame.band_label,
        )
    if frame.trend.fit is not None:
        axes.plot(frame.curve_x, frame.curve, color=MUTED, linewidth=1.3)
    points = frame.trend.points
    for k, family in enumerate(frame.families):
        rows = points.loc[points["family"] == family]
        axes.plot(
            rows["x"].to_numpy(),
            rows["alignment"].to_numpy(),
            linestyle="none",
            markersize=7,
            markeredgecolor=PAPER,
            marker=MARKERS[palette.MARKERS[k % len(palette.MARKERS)]],
            color=palette.FAMILY_LIGHT[k % len(palette.FAMILY_LIGHT)],
            label=plain(family or "no family"),
        )
    if frame.published is not None:
        at = (frame.published[c].to_numpy(float) for c in ("x", "alignment"))
        look = {"markerfacecolor": "none", "markeredgecolor": "#8a9099", "markersize": 7, "linestyle": "none"}
        axes.plot(*at, marker="o", label="published" + " (none of these pairs)" * frame.published.empty, **look)
    names = [
        axes.annotate(plain(name), (x, y), xytext=(6, 4), textcoords="offset points", fontsize=7, color=INK)
        for name, x, y in zip(points["model"], points["x"], points["alignment"], strict=True)
    ]
    axes.margins(x=0.12)
    axes.set_ylim(frame.y_range)
    if frame.trend.lower_is_better:
        axes.invert_xaxis()
    axes.set_xlabel(plain(frame.x_label), fontsize=8, color=INK)
    axes.set_ylabel(frame.y_label, fontsize=8, color=INK)
    axes.legend(fontsize=7, frameon=False, loc="best")
    spread(figure, axes, names)
    return figure
