"""Frames drawn for a notebook with plotly."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from repalign import text as words
from repalign.figures import palette
from repalign.figures.frames import MatrixFrame, NullFrame, TrendFrame
from repalign.figures.layers import LayerMapFrame

INK, MUTED, RULE, PAPER = "#20242a", "#6b7078", "#e4e1d8", "#ffffff"
ACCENT, SCORE = "#d1495b", "#1f608b"
SYMBOLS = {
    "circle": "circle",
    "square": "square",
    "triangle": "triangle-up",
    "diamond": "diamond",
    "cross": "x",
    "down": "triangle-down",
    "plus": "cross",
    "star": "star",
}
COLORS = [[i / (palette.STEPS - 1), c] for i, c in enumerate(palette.LIGHT)]


def plain(text: str) -> str:
    """Text that plotly does not take for markup."""
    return html.escape(text, quote=False)


def _figure(title: str, subtitle: str, width: float, height: float) -> go.Figure:
    figure = go.Figure()
    small = f"<span style='font-size:12px;color:{MUTED}'>{plain(subtitle)}</span>"
    figure.update_layout(
        title={"text": f"<b>{plain(title)}</b><br>{small}", "x": 0.01, "font": {"size": 16}},
        width=width,
        height=height,
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        margin={"t": 80, "l": 10, "r": 10, "b": 10},
        font={"family": "system-ui, sans-serif", "color": INK, "size": 12},
    )
    figure.update_xaxes(automargin=True, gridcolor=RULE, zeroline=False)
    figure.update_yaxes(automargin=True, gridcolor=RULE, zeroline=False)
    return figure


def _heat(frame: MatrixFrame | LayerMapFrame, x: Sequence[str], y: Sequence[str], text: np.ndarray) -> go.Heatmap:
    return go.Heatmap(
        z=frame.scale.position(frame.values),
        x=list(range(len(x))),
        y=list(range(len(y))),
        zmin=0,
        zmax=1,
        colorscale=COLORS,
        customdata=text,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        colorbar={
            "tickvals": [place for place, _ in frame.bar],
            "ticktext": [plain(words).replace("\n", "<br>") for _, words in frame.bar],
            "ticks": "inside",
            "ticklen": 12,
            "tickcolor": ACCENT,
            "thickness": 12,
            "outlinewidth": 0,
            "len": 0.8,
        },
    )


def _hover(rows: Sequence[str], columns: Sequence[str], texts: np.ndarray) -> np.ndarray:
    """What the pointer shows at each cell."""
    names = [[f"{plain(r)} × {plain(c)}: " for c in columns] for r in rows]
    return np.array(names, dtype=object) + texts


def _name_axes(figure: go.Figure, x: Sequence[str], y: Sequence[str], top_down: bool) -> None:
    for update, names in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        step = 1 if top_down else max(1, round(len(names) / 12))
        at = list(range(0, len(names), step))
        update(tickvals=at, ticktext=[plain(names[i]) for i in at], showgrid=False)
    if top_down:
        figure.update_yaxes(autorange="reversed")



def stamp(figure: go.Figure) -> go.Figure:
    """Write across a figure that it is of a mock run."""
    return figure.add_annotation(
        text=words.MOCK_STAMP, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, textangle=-25, opacity=0.4,
        font={"size": 28, "color": ACCENT},
    )  # fmt: skip


def draw_matrix(frame: MatrixFrame) -> go.Figure:
    """Models by models with the number in every cell; everything about a pair on hover."""
    n_rows, n_columns = frame.values.shape
    figure = _figure(frame.title, frame.subtitle, 320 + 58 * n_columns, 240 + 34 * n_rows)
    hover = _hover(frame.rows, frame.columns, frame.texts)
    figure.add_trace(_heat(frame, frame.columns, frame.rows, hover))
    inks = frame.inks(undefined=MUTED)
    for (i, j), text in np.ndenumerate(frame.labels):
        if text:
            figure.add_annotation(x=j, y=i, text=text, showarrow=False, font={"size": 11, "color": inks[i, j]})
    _name_axes(figure, frame.columns, frame.rows, top_down=True)
    figure.update_xaxes(title={"text": plain(frame.note), "font": {"size": 11, "color": MUTED}})
    return figure


def draw_layer_map(frame: LayerMapFrame) -> go.Figure:
    """Layers by layers, first layers at the lower left, cells above chance dotted, the best one framed."""
    n_x, n_y = frame.values.shape
    figure = _figure(
        frame.title,
        f"{frame.subtitle}; {frame.best_text.replace(chr(10), ', ')}",
        max(520, 200 + 18 * n_y),
        max(420, 160 + 18 * n_x),
    )
    hover = _hover(frame.layers_x, frame.layers_y, frame.hover)
    figure.add_trace(_heat(frame, frame.layers_y, frame.layers_x, hover))
    i, j = np.nonzero(frame.marked)
    if len(i):
        inks = [palette.ink_on(palette.LIGHT[step]) for step in frame.scale.steps(frame.values[i, j])]
        dots = {"size": 4, "color": inks}
        figure.add_scatter(x=j, y=i, mode="markers", marker=dots, hoverinfo="skip", name="marked", showlegend=False)
    if frame.best is not None:
        i, j = frame.best
        figure.add_shape(
            type="rect", x0=j - 0.5, x1=j + 0.5, y0=i - 0.5, y1=i + 0.5, line={"color": ACCENT, "width": 2}
        )
    _name_axes(figure, frame.layers_y, frame.layers_x, top_down=False)
    note = f"<span style='font-size:11px;color:{MUTED}'>{plain(frame.note)}</span>"
    figure.update_xaxes(title=f"{plain(f'layers of {frame.model_y}')}<br>{note}")
    figure.update_yaxes(title=plain(f"layers of {frame.model_x}"))
    return figure


def draw_null(frame: NullFrame) -> go.Figure:
    """One row per pair: its score, and the mean, one standard deviation and the threshold of chance."""
    figure = _figure(frame.title, frame.subtitle, 860, 220 + 20 * len(frame.observed))
    rows, labels = list(range(len(frame.observed))), [plain(t) for t in frame.labels]
    figure.add_scatter(
        x=frame.null_mean,
        y=rows,
        error_x={"array": frame.null_std, "thickness": 4, "width": 0, "color": "#b9bdc3"},
        mode="markers",
        marker={"symbol": "line-ns-open", "color": MUTED, "size": 8},
        name="chance: mean ± sd",
    )
    figure.add_scatter(
        x=frame.threshold,
        y=rows,
        mode="markers",
        name="threshold",
        marker={"symbol": "line-ns-open", "color": ACCENT, "size": 10, "line": {"width": 2}},
    )
    figure.add_scatter(
        x=frame.observed,
        y=rows,
        mode="markers",
        name="score (hollow: not above chance)",
        marker={
            "color": [SCORE if f else PAPER for f in frame.found],
            "size": 8,
            "line": {"color": SCORE, "width": 1.5},
        },
    )
    for ceiling, source in frame.ceilings:
        text = plain(f"ceiling ({source})")
        figure.add_vline(ceiling, line={"color": INK, "width": 1, "dash": "dash"}, annotation_text=text)
    figure.update_yaxes(tickvals=rows, ticktext=labels, autorange="reversed", showgrid=False)
    figure.update_xaxes(title={"text": plain(frame.note), "font": {"size": 11, "color": MUTED}})
    figure.update_layout(legend={"orientation": "h", "y": -0.12})
    return figure


def draw_trend(frame: TrendFrame) -> go.Figure:
    """One point per model with its name, the fitted line and its interval."""
    figure = _figure(frame.title, frame.subtitle, 760, 520)
    if frame.trend.has_band:
        outline = (
            np.concatenate([frame.curve_x, frame.curve_x[::-1]]),
            np.concatenate([frame.high, frame.low[::-1]]),
        )
        figure.add_scatter(
            x=outline[0],
            y=outline[1],
            fill="toself",
            mode="none",
            fillcolor="rgba(120,126,134,.2)",
            name=frame.band_label,
            hoverinfo="skip",
        )
    if frame.trend.fit is not None:
        figure.add_scatter(
            x=frame.curve_x,
            y=frame.curve,
            mode="lines",
            line={"color": MUTED, "width": 1.5},
            name="line",
            showlegend=False,
        )
    points = frame.trend.points
    for k, family in enumerate(frame.families):
        rows = points.loc[points["family"] == family]
        figure.add_scatter(
            x=rows["x"],
            y=rows["alignment"],
            text=[plain(m) for m in rows["model"]],
            mode="markers+text",
            textposition="top center",
            name=plain(family or "no family"),
            marker={
                "size": 10,
                "symbol": SYMBOLS[palette.MARKERS[k % len(palette.MARKERS)]],
                "color": palette.FAMILY_LIGHT[k % len(palette.FAMILY_LIGHT)],
            },
        )
    if frame.published is not None:
        figure.add_scatter(
            x=frame.published["x"],
            y=frame.published["alignment"],
            text=[plain(t) for t in frame.published["point"]],
            mode="markers",
            name="published" + " (none of these pairs)" * frame.published.empty,
            marker={"size": 10, "symbol": "circle-open", "color": "#8a9099"},
        )
    figure.update_xaxes(title=plain(frame.x_label), type="log" if frame.trend.log else "linear")
    if frame.trend.lower_is_better:
        figure.update_xaxes(autorange="reversed")
    figure.update_yaxes(title=frame.y_label, range=frame.y_range)
    return figure
