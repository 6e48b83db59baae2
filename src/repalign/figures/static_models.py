"""Bins, the map of models and the agreement of measures drawn for paper with matplotlib."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repalign.figures.labels import PLACES, place_labels, steps_of
from repalign.figures.models import BinsFrame, HeatFrame, MapFrame
from repalign.figures.static import (
    ACCENT,
    CMAP,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    RULE,
    SCORE,
    _color_bar,
    _figure,
    _heat,
    _note,
    _wrap,
    plain,
)

NAME_SIZE = 7
POINT = 7.0  # diameter in points


def draw_bins(frame: BinsFrame) -> Figure:
    """One point per bin with two error bars and its chance level; beside it the matrix of bins."""
    wide = frame.between is not None
    count = len(frame.ticks)
    own = max(4.2, 1.4 + 0.85 * count)
    figure, axes = _figure(own + (2.6 + 0.62 * count if wide else 0), 4.4, frame.title, frame.subtitle)
    if frame.between is not None:
        axes.remove()
        left, right = figure.subplots(1, 2, width_ratios=[own, 1.8 + 0.62 * count])
        for one in (left, right):
            one.tick_params(length=0, labelsize=8, colors=INK)
            for spine in one.spines.values():
                spine.set_visible(False)
        left.set_title(plain(_wrap(frame.subtitle, 14 * own)), loc="left", fontsize=8, color=MUTED, pad=10)
        _heat_cells(figure, right, frame.between)
        axes = left
    _errors(axes, frame)
    figure.legend(loc="outside lower left", fontsize=7, frameon=False, ncols=4)
    return figure


def _errors(axes: Axes, frame: BinsFrame) -> None:
    rows, x = frame.rows, np.arange(len(frame.ticks))
    mean, se = rows["alignment"].to_numpy(float), rows["se"].to_numpy(float)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.vlines(x, rows["low"], rows["high"], color=SCORE, linewidth=1.1, label=frame.interval)
    axes.vlines(x, mean - se, mean + se, color=SCORE, linewidth=13, alpha=0.3, label="± standard error over pairs")
    axes.plot(x, mean, "o", color=SCORE, markersize=4.5, label="mean over pairs")
    axes.hlines(rows["chance"], x - 0.3, x + 0.3, color=ACCENT, linewidth=1.3, linestyle=(0, (4, 2.5)), label="chance")
    axes.set_xticks(x, [plain(t) for t in frame.ticks], fontsize=7)
    axes.set_xlim(-0.6, len(x) - 0.4)
    axes.set_ylim(frame.y_range)
    axes.set_xlabel(plain(_wrap(frame.x_label, 100)), fontsize=7, color=MUTED)
    axes.set_ylabel(plain(frame.y_label), fontsize=8, color=INK)


def draw_agreement(frame: HeatFrame) -> Figure:
    """Measures by measures with the correlation in every cell."""
    n = len(frame.names)
    longest = max(map(len, frame.names))
    size = 0.5 * n + 0.075 * longest
    width = max(6.2, 1.3 + size)
    figure, axes = _figure(width, max(3.6, 1.2 + size), frame.title, "")
    # The subtitle begins where the cells do, after the names.
    subtitle = plain(_wrap(frame.subtitle, 14 * (width - 0.075 * longest)))
    axes.set_title(subtitle, loc="left", fontsize=8, color=MUTED, pad=10)
    _note(figure, frame.note)
    _heat_cells(figure, axes, frame)
    return figure


def _heat_cells(figure: Figure, axes: Axes, frame: HeatFrame) -> None:
    image = _heat(axes, frame.values, frame.scale)
    names = [plain(name) for name in frame.names]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    edges = np.arange(len(names) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    inks = frame.inks(undefined=MUTED)
    for (i, j), text in np.ndenumerate(frame.texts):
        axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=inks[i, j])
    if frame.x_label:
        axes.set_xlabel(plain(frame.x_label), fontsize=7, color=MUTED)
    _color_bar(figure, axes, image, frame.bar)


def draw_model_map(frame: MapFrame) -> Figure:
    """One point per model with its name where there is room for it; equal lengths are equal distances."""
    crowd = float(np.clip(len(frame.names) / 30, 1, 2.2))
    figure, axes = _figure(6.6 * crowd**0.5, 5.6 * crowd**0.5, frame.title, frame.subtitle)
    for group in frame.groups:
        xy = frame.points[group.rows]
        look = {"s": POINT**2, "marker": MARKERS[group.marker], "linewidths": 0.8, "label": plain(group.label)}
        if frame.scale is None or frame.values is None or group.color:
            axes.scatter(*xy.T, color=group.color, edgecolors=PAPER, **look)
        else:
            place = frame.scale.position(frame.values[group.rows])
            image = axes.scatter(*xy.T, c=place, cmap=CMAP, vmin=0, vmax=1, edgecolors=MUTED, **look)
            _color_bar(figure, axes, image, frame.bar)
            figure.axes[-1].set_ylabel(plain(frame.color_label), fontsize=7, color=MUTED)
            image.set_label("_" + group.label)  # the bar says it
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(RULE)
    axes.margins(0.14)
    axes.set_aspect("equal", adjustable="datalim")
    _note(figure, frame.note)
    if frame.scale is None or len(frame.groups) > 1:
        columns = max(1, min(4, int(110 / (6 + max(len(g.label) for g in frame.groups)))))
        axes.legend(
            fontsize=7, frameon=False, ncols=columns, loc="upper left", bbox_to_anchor=(0, -0.01), borderaxespad=0.2
        )
    unnamed = _names(figure, axes, frame)
    if unnamed:
        _note(figure, f"{frame.note} {unnamed} name{'s have' if unnamed > 1 else ' has'} no room here.")
    return figure


def _names(figure: Figure, axes: Axes, frame: MapFrame) -> int:
    """Put names beside points; how many have no room. The layout must stand, for room is measured in pixels."""
    look = {"textcoords": "offset points", "fontsize": NAME_SIZE, "color": INK}
    texts = [axes.annotate(plain(n), xy, xytext=(0, 0), **look) for n, xy in zip(frame.names, frame.points, strict=True)]
    for text in texts:
        text.set_in_layout(False)
    figure.draw_without_rendering()
    area = axes.get_window_extent()
    extents = [text.get_window_extent() for text in texts]
    # Hinting makes letters a little wider or narrower at another resolution.
    sizes = 1.04 * np.array([[e.width, e.height] for e in extents])
    at = axes.transData.transform(frame.points)
    pixel = 72 / figure.dpi
    radius = 0.62 * POINT / pixel
    places = place_labels(at, sizes, radius, (area.x0, area.y0, area.x1, area.y1))
    offsets = dict(zip(PLACES, steps_of(radius * pixel).tolist(), strict=True))
    for text, place in zip(texts, places, strict=True):
        if place is None:
            text.remove()
            continue
        across, up = PLACES[place]
        text.set_position(offsets[place])
        text.set_horizontalalignment({1: "left", 0: "center", -1: "right"}[across])
        text.set_verticalalignment({1: "bottom", 0: "center", -1: "top"}[up])
    return places.count(None)
