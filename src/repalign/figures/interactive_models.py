"""Bins, the map of models and the agreement of measures drawn for a notebook with plotly."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import plotly.graph_objects as go

from repalign.figures.interactive import (
    ACCENT,
    COLORS,
    MUTED,
    PAPER,
    RULE,
    SCORE,
    SYMBOLS,
    _figure,
    _heat,
    _hover,
    _name_axes,
    plain,
)
from repalign.figures.labels import place_labels
from repalign.figures.models import BinsFrame, HeatFrame, MapFrame

# Of a name in pixels: a browser's fonts are not known here, and these are wide ones.
LETTER, LINE = 6.2, 14
MARK = 10


def _lines(text: str, width: float, letter: float) -> str:
    """Text in lines that fit a width in pixels."""
    characters = max(30, int(width / letter))
    return "<br>".join(plain(line) for part in text.split("\n") for line in textwrap.wrap(part, characters))


def _titled(title: str, subtitle: str, width: float, height: float) -> go.Figure:
    """A figure whose subtitle keeps within it, with room above for all its lines."""
    figure = _figure(title, "", width, height)
    small = _lines(subtitle, width - 20, 6.4)
    text = f"<b>{plain(title)}</b><br><span style='font-size:12px;color:{MUTED}'>{small}</span>"
    title_at = {"text": text, "y": 1, "yanchor": "top", "pad": {"t": 18}}
    figure.update_layout(title=title_at, margin={"t": 72 + 18 * small.count("<br>")})
    return figure


def _under(text: str, width: float) -> dict[str, Any]:
    """The title of an axis: small and no wider than it."""
    return {"text": _lines(text, width, 5.8), "font": {"size": 11, "color": MUTED}}


def draw_bins(frame: BinsFrame) -> go.Figure:
    """One point per bin with two error bars and its chance level; the matrix of bins beside it."""
    count = len(frame.ticks)
    wide = frame.between is not None
    own = 160 + 95 * count
    figure = _titled(frame.title, frame.subtitle, own + (280 + 60 * count if wide else 0), 520)
    rows, x = frame.rows, list(range(count))
    mean = rows["alignment"]
    figure.add_scatter(
        x=x, y=rows["chance"], mode="markers", name="chance",
        marker={"symbol": "line-ew-open", "size": 26, "color": ACCENT, "line": {"width": 2}},
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=mean, mode="markers", name="± standard error over pairs", hoverinfo="skip",
        marker={"size": 8, "symbol": "square", "color": "#9dbdcc"},
        error_y={"array": rows["se"], "thickness": 14, "width": 0, "color": "#9dbdcc"},
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=mean, mode="markers", name=f"mean over pairs, {frame.interval}",
        marker={"size": 9, "color": SCORE, "line": {"color": PAPER, "width": 1}},
        error_y={"array": rows["high"] - mean, "arrayminus": mean - rows["low"], "thickness": 1.3, "width": 0},
    )  # fmt: skip
    figure.update_xaxes(tickvals=x, ticktext=[plain(t).replace("\n", "<br>") for t in frame.ticks], range=[-0.6, count - 0.4])
    figure.update_xaxes(title=_under(frame.x_label, own))
    figure.update_yaxes(title=plain(frame.y_label), range=frame.y_range)
    if frame.between is not None:
        right = frame.between
        heat = _heat(right, right.names, right.names, _hover(right.names, right.names, right.hover))
        figure.add_trace(heat.update(xaxis="x2", yaxis="y2"))
        names = {"tickvals": x, "ticktext": [plain(n) for n in right.names], "showgrid": False, "zeroline": False}
        under = _under(right.x_label, 60 * count + 100)
        figure.update_layout(
            xaxis={"domain": [0, 0.48]},
            xaxis2={"domain": [0.6, 1], "anchor": "y2", "automargin": True, "title": under, **names},
            yaxis2={"anchor": "x2", "autorange": "reversed", "automargin": True, **names},
        )
        _cell_texts(figure, right, "x2", "y2")
    figure.update_layout(legend={"orientation": "h", "y": -0.35})
    return figure


def draw_agreement(frame: HeatFrame) -> go.Figure:
    """Measures by measures; the interval, p and the pairs of a cell on hover."""
    n, longest = len(frame.names), max(map(len, frame.names))
    size = 50 * n + 7 * longest
    figure = _titled(frame.title, frame.subtitle, 200 + size, 200 + size)
    figure.add_trace(_heat(frame, frame.names, frame.names, _hover(frame.names, frame.names, frame.hover)))
    _cell_texts(figure, frame, "x", "y")
    _name_axes(figure, frame.names, frame.names, top_down=True)
    figure.update_xaxes(title=_under(frame.note, 50 * n))
    return figure


def _cell_texts(figure: go.Figure, frame: HeatFrame, x: str, y: str) -> None:
    inks = frame.inks(undefined=MUTED)
    for (i, j), text in np.ndenumerate(frame.texts):
        look = {"size": 11, "color": inks[i, j]}
        figure.add_annotation(x=j, y=i, xref=x, yref=y, text=text, showarrow=False, font=look)


def draw_model_map(frame: MapFrame) -> go.Figure:
    """One point per model with its name where there is room for it; everything about a model on hover."""
    crowd = float(np.clip(len(frame.names) / 30, 1, 2.2)) ** 0.5
    width, height = 760 * crowd, 680 * crowd
    figure = _titled(frame.title, frame.subtitle, width, height)
    margin = {"l": 20, "r": 120 if frame.scale is not None else 20, "t": figure.layout.margin.t, "b": 120}
    size = np.array([width - margin["l"] - margin["r"], height - margin["t"] - margin["b"]])
    low, high = frame.points.min(0), frame.points.max(0)
    pixels = float((0.78 * size / np.maximum(high - low, 1e-12)).min())  # per unit, the same along both axes
    centre = (low + high) / 2
    at = (frame.points - centre) * pixels + size / 2
    sizes = np.array([[LETTER * len(name), LINE] for name in frame.names])
    places = place_labels(at, sizes, 0.7 * MARK, (0.0, 0.0, *size))
    for group in frame.groups:
        marker = {"size": MARK, "symbol": SYMBOLS[group.marker], "color": group.color or None}
        if not group.color and frame.scale is not None and frame.values is not None:
            bar = {
                "tickvals": [place for place, _ in frame.bar],
                "ticktext": [plain(text) for _, text in frame.bar],
                "title": {"text": plain(frame.color_label).replace(" ", "<br>") + "<br> ", "font": {"size": 11}},
                "thickness": 12,
                "outlinewidth": 0,
                "len": 0.7,
            }
            color = frame.scale.position(frame.values[group.rows])
            line = {"color": MUTED, "width": 0.8}
            marker |= {"color": color, "colorscale": COLORS, "cmin": 0, "cmax": 1, "colorbar": bar, "line": line}
        figure.add_scatter(
            x=frame.points[group.rows, 0],
            y=frame.points[group.rows, 1],
            text=[plain(frame.names[i]) if places[i] else "" for i in group.rows],
            textposition=[places[i] or "top center" for i in group.rows],
            textfont={"size": 10},
            customdata=[plain(frame.hover[i]) for i in group.rows],
            hovertemplate="%{customdata}<extra></extra>",
            mode="markers+text",
            name=plain(group.label),
            marker=marker,
            showlegend=frame.scale is None or bool(group.color),
        )
    frameline = {"showgrid": False, "showticklabels": False, "showline": True, "linecolor": RULE, "mirror": True}
    half = size / 2 / pixels
    figure.update_xaxes(range=[centre[0] - half[0], centre[0] + half[0]], automargin=False, **frameline)
    figure.update_yaxes(
        range=[centre[1] - half[1], centre[1] + half[1]], scaleanchor="x", automargin=False, **frameline
    )
    unnamed = places.count(None)
    room = f" {unnamed} name{'s have' if unnamed > 1 else ' has'} no room here." if unnamed else ""
    figure.update_xaxes(title=_under(frame.note + room, size[0]))
    figure.update_layout(margin=margin, legend={"orientation": "h", "y": -0.1})
    return figure
