"""Curves and scatters of pairs drawn for paper with matplotlib."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from repalign.figures import palette
from repalign.figures.curves import CurveFrame, Line, Panel, ScatterFrame
from repalign.figures.static import INK, MARKERS, MUTED, PAPER, RULE, _figure, _note, _wrap, plain

DASHED = (0, (4, 2.5))


def draw_curve(frame: CurveFrame) -> Figure:
    """Lines with intervals over a parameter; chance is dashed."""
    entries = len(frame.lines) * (len(frame.lines) > 1 or bool(frame.lines[0].label)) + 1
    columns = 1 if max(len(line.label) for line in frame.lines) > 30 else 2 if entries < 7 else 3
    figure, axes = _figure(6.4, 4.2 + 0.16 * np.ceil(entries / columns), frame.title, frame.subtitle)
    axes.set_axisbelow(True)
    axes.grid(color=RULE, linewidth=0.6)
    if frame.log:
        axes.set_xscale("log")
    if frame.chance is not None:
        _chance(axes, frame, *frame.chance)
    for k, line in enumerate(frame.lines):
        _line(axes, frame, line, k)
    if frame.each_chance:
        axes.plot([], [], color=MUTED, linewidth=1.1, linestyle=DASHED, label=f"{frame.chance_label} of each line")
    if frame.ticks:
        turned = not frame.numbers and sum(len(text) for _, text in frame.ticks) > 60
        look = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks([at for at, _ in frame.ticks], [plain(text) for _, text in frame.ticks], **look)
        axes.xaxis.set_minor_locator(NullLocator())
    if not frame.numbers:
        axes.set_xlim(-0.5, max(at for at, _ in frame.ticks) + 0.5)
    axes.set_ylim(frame.y_range)
    if frame.reverse:
        axes.invert_xaxis()
    axes.set_xlabel(plain(f"{frame.x_label}    ({frame.note})"), fontsize=8, color=INK)
    axes.set_ylabel(plain(frame.y_label), fontsize=8, color=INK)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(loc="outside lower left", fontsize=7, frameon=False, ncols=columns)
    return figure


def _chance(axes: Axes, frame: CurveFrame, x: np.ndarray, y: np.ndarray) -> None:
    """The level of all lines: a line over numbers, a piece for every category."""
    look = {"color": MUTED, "linewidth": 1.2, "linestyle": DASHED, "label": frame.chance_label}
    if not frame.numbers:
        axes.hlines(y, x - 0.42, x + 0.42, **look)
    elif len(x) == 1:
        axes.axhline(y[0], **look)
    else:
        axes.plot(x, y, **look)


def _line(axes: Axes, frame: CurveFrame, line: Line, k: int) -> None:
    color = palette.FAMILY_LIGHT[k % len(palette.FAMILY_LIGHT)]
    marker = MARKERS[palette.MARKERS[k % len(palette.MARKERS)]]
    if frame.bands and len(line.x) > 1:
        axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.15, linewidth=0)
    else:
        axes.vlines(line.x, line.low, line.high, color=color, linewidth=1.1, alpha=0.6)
    if frame.each_chance:
        axes.plot(line.x, line.chance, color=color, linewidth=1, linestyle=DASHED if frame.numbers else "none", marker="_",
                  markersize=9 if not frame.numbers or len(line.x) == 1 else 0)  # fmt: skip
    axes.plot(
        line.x,
        line.value,
        color=color,
        linewidth=1.5,
        linestyle="-" if frame.numbers else "none",
        marker=marker,
        markersize=5.5,
        markeredgecolor=PAPER,
        label=plain(line.label) if line.label else "_",
    )


def draw_scatter(frame: ScatterFrame) -> Figure:
    """Pairs of models as points, in panels beside each other; chance is dashed, the diagonal a line."""
    columns = min(3, len(frame.panels))
    rows = -(-len(frame.panels) // columns)
    size = 4.6 if len(frame.panels) == 1 else 3.4
    legend = 1.7 * any(len(panel.groups) > 1 for panel in frame.panels)
    shape = (0.7 + legend + size * columns, 1.0 + (size + 0.5) * rows)
    figure = Figure(figsize=shape, facecolor=PAPER, layout="constrained")
    figure.suptitle(plain(frame.title), x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(frame.panels) :]:
        axes.set_axis_off()
    for k, (axes, panel) in enumerate(zip(grid.flat, frame.panels, strict=False)):
        _panel(axes, panel, _wrap(f"{frame.subtitle}\n{panel.heading}" if k == 0 else panel.heading, 14 * size))
    handles = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _note(figure, frame.note)
    if len(handles) > 1:
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7, frameon=False)
    return figure


def _panel(axes: Axes, panel: Panel, heading: str) -> None:
    axes.set_axisbelow(True)
    axes.grid(color=RULE, linewidth=0.6)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if panel.diagonal:
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=1)
    if np.isfinite(panel.chance_x):
        axes.axvline(panel.chance_x, color=MUTED, linewidth=1, linestyle=DASHED)
    if np.isfinite(panel.chance_y):
        axes.axhline(panel.chance_y, color=MUTED, linewidth=1, linestyle=DASHED)
    for k, group in enumerate(panel.groups):
        axes.plot(
            group.x,
            group.y,
            linestyle="none",
            marker=MARKERS[palette.MARKERS[k % len(palette.MARKERS)]],
            markersize=5.5,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
            color=palette.FAMILY_LIGHT[k % len(palette.FAMILY_LIGHT)],
            label=plain(group.label),
        )
    if panel.limits is not None:
        axes.set_xlim(panel.limits)
        axes.set_ylim(panel.limits)
        axes.set_aspect("equal")
    axes.set_title(plain(heading), loc="left", fontsize=8, color=MUTED, pad=8)
    axes.set_xlabel(plain(_wrap(panel.x_label, 40)), fontsize=8, color=INK)
    axes.set_ylabel(plain(_wrap(panel.y_label, 40)), fontsize=8, color=INK)
