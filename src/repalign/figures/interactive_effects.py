"""Effects of several factors drawn for a notebook with plotly."""

from __future__ import annotations

import plotly.graph_objects as go

from repalign.figures import palette
from repalign.figures.factors import EffectsFrame
from repalign.figures.interactive import INK, MUTED, _figure, plain


def draw_effects(frame: EffectsFrame) -> go.Figure:
    """A point and its interval per row, zero as a line, share and p at the right; the numbers on hover."""
    rows = list(range(len(frame.effect)))
    figure = _figure(frame.title, frame.subtitle, 860, 210 + 28 * len(rows))
    figure.add_vline(0, line={"color": MUTED, "width": 1})
    for k in dict.fromkeys(frame.factors.tolist()):
        here = frame.factors == k
        color = palette.FAMILY_LIGHT[k % len(palette.FAMILY_LIGHT)]
        figure.add_scatter(
            x=frame.effect[here],
            y=[row for row in rows if here[row]],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (frame.high - frame.effect)[here],
                "arrayminus": (frame.effect - frame.low)[here],
                "thickness": 2,
                "width": 0,
            },
            mode="markers",
            marker={"size": 10, "color": color},
            text=[plain(frame.hover[row]) for row in rows if here[row]],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    for row, remark in zip(rows, frame.remarks, strict=True):
        if remark:
            figure.add_annotation(
                x=1, xref="paper", y=row, text=plain(remark), showarrow=False, xanchor="left",
                font={"size": 11, "color": INK},
            )  # fmt: skip
    figure.update_yaxes(
        tickvals=rows, ticktext=[plain(label) for label in frame.labels], range=[len(rows) - 0.4, -0.6], showgrid=False
    )
    note = f"<span style='font-size:11px;color:{MUTED}'>{plain(frame.note)}</span>"
    figure.update_xaxes(title=f"{plain(frame.x_label)}<br>{note}")
    figure.update_layout(margin={"r": 150})
    return figure
