"""Curves and scatters of pairs drawn for a notebook with plotly."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from repalign.figures import palette
from repalign.figures.curves import CurveFrame, Line, ScatterFrame
from repalign.figures.interactive import MUTED, RULE, SYMBOLS, _figure, plain

DASHED = {"color": MUTED, "width": 1.2, "dash": "dash"}


def draw_curve(frame: CurveFrame) -> go.Figure:
    """Lines with intervals over a parameter; chance is dashed; everything about a point on hover."""
    figure = _figure(frame.title, frame.subtitle, 760, 520)
    if frame.chance is not None:
        x, y = frame.chance
        figure.add_scatter(x=x, y=y, mode="lines+markers" if len(x) == 1 else "lines", line=DASHED, name=frame.chance_label)
    for k, line in enumerate(frame.lines):
        _line(figure, frame, line, k)
    figure.update_xaxes(title=plain(f"{frame.x_label}    ({frame.note})"), type="log" if frame.log else "linear")
    if frame.ticks:
        figure.update_xaxes(tickvals=[at for at, _ in frame.ticks], ticktext=[plain(text) for _, text in frame.ticks])
    if frame.reverse:
        figure.update_xaxes(autorange="reversed")
    figure.update_yaxes(title=plain(frame.y_label), range=frame.y_range)
    figure.update_layout(legend={"orientation": "h", "y": -0.2})
    return figure


def _line(figure: go.Figure, frame: CurveFrame, line: Line, k: int) -> None:
    color = palette.FAMILY_LIGHT[k % len(palette.FAMILY_LIGHT)]
    bars = None
    if frame.bands:
        shade = {"fill": "toself", "mode": "none", "fillcolor": color, "opacity": 0.15, "hoverinfo": "skip"}
        there = np.isfinite(line.low)
        x, low, high = line.x[there], line.low[there], line.high[there]
        outline = {"x": np.concatenate([x, x[::-1]]), "y": np.concatenate([high, low[::-1]])}
        figure.add_scatter(**outline, **shade, showlegend=False, name="interval")
    else:
        ends = {"array": line.high - line.value, "arrayminus": line.value - line.low, "symmetric": False}
        bars = {**ends, "thickness": 1, "width": 0, "color": color}
    if frame.each_chance:
        dashed = {"color": color, "width": 1, "dash": "dash"}
        name = plain(f"{frame.chance_label}, {line.label}")
        figure.add_scatter(x=line.x, y=line.chance, mode="lines", line=dashed, name=name, showlegend=False)
    figure.add_scatter(
        x=line.x,
        y=line.value,
        error_y=bars,
        mode="lines+markers" if frame.numbers else "markers",
        line={"color": color},
        marker={"size": 8, "symbol": SYMBOLS[palette.MARKERS[k % len(palette.MARKERS)]], "color": color},
        name=plain(line.label or frame.y_label),
        text=[plain(t) for t in line.hover],
        hovertemplate="%{text}<extra></extra>",
    )


def draw_scatter(frame: ScatterFrame) -> go.Figure:
    """Pairs of models as points, in panels beside each other; chance is dashed, the diagonal a line."""
    columns = min(3, len(frame.panels))
    rows = -(-len(frame.panels) // columns)
    headings = [plain(panel.heading).replace("\n", "<br>") for panel in frame.panels]
    figure = make_subplots(rows, columns, subplot_titles=headings)
    dressed = _figure(frame.title, frame.subtitle, 200 + 380 * columns, 190 + 380 * rows).to_dict()["layout"]
    figure.update_layout({key: dressed[key] for key in ("title", "width", "height", "font", "paper_bgcolor", "plot_bgcolor")})
    figure.update_layout(margin={"t": 120, "l": 10, "r": 10, "b": 60})
    figure.update_annotations(font={"size": 11, "color": MUTED})
    named: set[str] = set()
    for i, panel in enumerate(frame.panels):
        row, column = i // columns + 1, i % columns + 1
        place: dict[str, Any] = {"row": row, "col": column}
        for k, group in enumerate(panel.groups):
            look = {
                "size": 8,
                "symbol": SYMBOLS[palette.MARKERS[k % len(palette.MARKERS)]],
                "color": palette.FAMILY_LIGHT[k % len(palette.FAMILY_LIGHT)],
            }
            figure.add_scatter(
                x=group.x, y=group.y, mode="markers", marker=look, name=plain(group.label), legendgroup=group.label,
                showlegend=group.label not in named, text=[plain(t) for t in group.hover],
                hovertemplate="%{text}<extra></extra>", row=row, col=column,
            )  # fmt: skip
            named.add(group.label)
        if panel.diagonal and panel.limits is not None:
            low, high = panel.limits
            line = {"color": MUTED, "width": 1}
            figure.add_shape(type="line", x0=low, y0=low, x1=high, y1=high, line=line, layer="below", row=row, col=column)
        if np.isfinite(panel.chance_x):
            figure.add_vline(panel.chance_x, line=DASHED, **place)
        if np.isfinite(panel.chance_y):
            figure.add_hline(panel.chance_y, line=DASHED, **place)
        limits = list(panel.limits) if panel.limits is not None else None
        figure.update_xaxes(title=plain(panel.x_label), range=limits, row=row, col=column)
        figure.update_yaxes(title=plain(panel.y_label), range=limits, row=row, col=column)
    figure.update_xaxes(automargin=True, gridcolor=RULE, zeroline=False)
    figure.update_yaxes(automargin=True, gridcolor=RULE, zeroline=False)
    figure.add_annotation(
        text=plain(frame.note), x=0, y=0, xref="paper", yref="paper", yshift=-60, xanchor="left", showarrow=False,
        font={"size": 11, "color": MUTED},
    )  # fmt: skip
    return figure
