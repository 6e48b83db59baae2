"""Names beside points, moved so that they hide neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

RULE = "#b9bdc3"
NEAR, STEPS = 5.0, 14  # points from a marker's centre to its name, and how many times farther it may go
LEADER = 2.0  # names farther away than this many times NEAR have a line to their point
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
MARKER = 4.0  # points, half the side of a marker


def spread(figure: Figure, axes: Axes, names: Sequence[Annotation]) -> None:
    """Put every name at the first place near its point that is free; where none is, at the one that hides least.

    The places are tried in a fixed order from near to far, points from left to right, so a figure is always the same.
    """
    if not names:
        return
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    frame = axes.get_window_extent()
    points = axes.transData.transform([note.xy for note in names])
    drawn = [np.column_stack(line.get_data()) for line in axes.lines if line.get_marker() not in ("", "None", None)]
    marked = axes.transData.transform(np.concatenate([d for d in drawn if len(d)])) if any(map(len, drawn)) else points
    side = 2 * MARKER * unit
    taken = [Bbox.from_bounds(x - side / 2, y - side / 2, side, side) for x, y in marked]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    for k in np.argsort(points[:, 0], kind="stable"):
        note, (x, y) = names[k], points[k]
        size = note.get_window_extent().size + unit  # a point of room
        best, least = None, np.inf
        for step in range(1, STEPS + 1):
            for right, up in DIRECTIONS:
                away = np.array([right, up]) * NEAR * unit * step
                corner = np.array([x, y]) + away - np.array([(1 - right) / 2, (1 - up) / 2]) * size
                box = Bbox.from_bounds(*corner, *size)
                hidden = sum(_overlap(box, other) for other in taken) + 4 * _outside(box, frame)
                if hidden < least:
                    best, least = (corner - (x, y), step, box), hidden
            if least == 0:
                break
        assert best is not None  # an overlap is finite
        offset, step, box = best
        note.set_position(tuple(offset / unit))
        note.set_horizontalalignment("left")
        note.set_verticalalignment("bottom")
        note.set_in_layout(False)
        taken.append(box)
        if step > LEADER:
            centre = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            to = axes.transData.inverted().transform(centre)
            axes.plot([note.xy[0], to[0]], [note.xy[1], to[1]], color=RULE, linewidth=0.6, zorder=0.5, label="_")
            note.set_zorder(5)


def _overlap(a: Bbox, b: Bbox) -> float:
    """The area that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Bbox, frame: Bbox) -> float:
    """The area of a box that is not within the frame."""
    return box.width * box.height - _overlap(box, frame)
