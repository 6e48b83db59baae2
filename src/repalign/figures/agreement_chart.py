"""Measures by measures, or data sets by data sets: how far they rank pairs of models alike."""

from __future__ import annotations

from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from repalign import text as words
from repalign.comparison.conventions import ALPHA, Scale
from repalign.figures import canvas
from repalign.measures import labels_of
from repalign.relate import Agreement


def draw(found: Agreement, **look: Unpack[canvas.Look]) -> Axes:
    """Spearman's correlation in every cell, from `relate.agreement`; a circle marks those that chance gives."""
    labels = canvas.called(found.names, look=look, what="measures" if found.measures else "words")
    names = list(labels.values())
    rho, p = found.matrix().to_numpy(float), found.matrix("p_bh").to_numpy(float)
    texts = np.full(rho.shape, "1", object)
    for i, j in np.argwhere(~np.eye(len(names), dtype=bool)):
        bare = words.UNDEFINED if np.isnan(rho[i, j]) else f"{rho[i, j]:.2f}".replace("-", "−")
        texts[i, j] = f"○ {bare}" if p[i, j] > ALPHA else bare
    longest = max(map(len, names))
    size = 0.5 * len(names) + 0.075 * longest
    width = max(6.2, 1.3 + size)
    over, most = ("models", "layers")[found.over != "max"], int(np.nanmax(found.matrix("n_pairs").to_numpy(float)))
    counted = f"{most:,} pairs of {over} of {words.counted(found.n_models, 'model')}"
    of = f" of {labels_of([found.measure])[found.measure]}" if found.measure else ""
    subtitle = f"Spearman’s correlation{of} over {counted}; {found.counted_n}"
    note = "no p: too few reorderings of the models."
    if np.isfinite(p).any():
        note = f"○ not above chance: models are shuffled (Mantel); at most {100 * ALPHA:g} % of the others are false alarms."
    if found.distances:
        note += f" Sign turned, so that higher is closer: {', '.join(labels[m] for m in found.distances)}."
    about = {"above": subtitle, "room": width - 0.075 * longest, "below": note}  # above, it begins after the names
    figure, ((axes,),) = canvas.sheet(width, max(3.6, 1.2 + size), f"Do {found.things} agree?", **about, **look)
    scale = Scale(0.0, 1.0, marks=[(0.0, "≤ 0"), (0.5, "0.5"), (1.0, "1")])
    canvas.draw_cells(figure, axes, canvas.Cells(names, names, rho, scale), texts)
    return axes
