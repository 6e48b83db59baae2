"""Effects of several factors drawn for paper with matplotlib."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from repalign.figures import palette
from repalign.figures.factors import EffectsFrame
from repalign.figures.static import INK, MUTED, PAPER, RULE, _figure, _note, plain


def draw_effects(frame: EffectsFrame) -> Figure:
    """A point and its interval per row, zero as a line, share and p at the right."""
    rows = np.arange(len(frame.effect))
    figure, axes = _figure(7.2, 1.7 + 0.24 * len(rows), frame.title, frame.subtitle)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.axvline(0, color=MUTED, linewidth=1)
    for factor in np.unique(frame.factors)[1::2]:
        here = rows[frame.factors == factor]
        axes.axhspan(here[0] - 0.5, here[-1] + 0.5, color=RULE, alpha=0.35, linewidth=0)
    colors = [palette.FAMILY_LIGHT[k % len(palette.FAMILY_LIGHT)] for k in frame.factors]
    axes.hlines(rows, frame.low, frame.high, colors=colors, linewidth=2)
    axes.scatter(frame.effect, rows, s=38, c=colors, edgecolors=PAPER, linewidths=0.8, zorder=3)
    for row, remark in zip(rows, frame.remarks, strict=True):
        place = {"xycoords": axes.get_yaxis_transform(), "va": "center", "annotation_clip": False}
        axes.annotate(plain(remark), (1.01, row), fontsize=7.5, color=INK, **place)
    axes.set_yticks(rows, [plain(label) for label in frame.labels])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(plain(frame.x_label), fontsize=8, color=INK)
    _note(figure, frame.note)
    return figure
