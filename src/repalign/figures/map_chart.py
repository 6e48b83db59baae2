"""The map of models: points that are near each other where models are aligned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from repalign import text as words
from repalign.comparison.conventions import Scale
from repalign.errors import choose
from repalign.figures import canvas
from repalign.figures.palette import FAINT, MUTED, PAPER, RULE, family
from repalign.measures import facts_of
from repalign.models import COMPETENCES
from repalign.relate import PARAMETERS, ModelMap, yardstick_label

POINT = 7.0  # diameter in points
DISTANCES = {"-log": "−log(alignment)", "one-minus": "1 − alignment", "score": "the measure"}


@dataclass(frozen=True, eq=False)
class Group:
    """Models of one colour and marker; `scale` is of a number, and gives each model its colour."""

    label: str
    rows: np.ndarray  # places in the table
    color: str
    marker: str
    scale: Scale | None = None


def draw(found: ModelMap, *, colour: str = "objective", **look: Unpack[canvas.Look]) -> Axes:
    """Models in a plane, from `relate.model_map`, each with its name if there is room; equal lengths are equal distances.

    `colour` is a column of its table: a kind, a size or a score.
    """
    known = [c for c in found.table.columns if c not in ("model", "x", "y")]
    values: Any = found.table[choose("colour", colour, known, f"the models have no {colour!r}")]
    groups = list((_by_number if pd.api.types.is_numeric_dtype(values) else _by_kind)(values, colour))
    crowd = float(np.clip(found.n / 30, 1, 2.2)) ** 0.5
    title = f"Map of {words.counted(found.n, 'model')} by {facts_of(found.measure).label}"
    failed = "none" if found.violations == 0 else f"{words.number(100 * found.violations)} %"
    note = "Only distances have a meaning, not the axes. "
    note += f"Of {found.n_triangles:,} triangles of models, {failed} violate the triangle inequality."
    note += f" Left out, for undefined scores: {', '.join(found.left_out)}." if found.left_out else ""
    names = canvas.called(found.table["model"], (g.label for g in groups if g.scale is None), look=look)
    figure, ((axes,),) = canvas.sheet(6.6 * crowd, 5.6 * crowd, title, above=_subtitle(found), below=note, **look)
    points = found.table[["x", "y"]].to_numpy(float)
    for group in groups:
        dots: Any = {"s": POINT**2, "marker": group.marker, "linewidths": 0.8}
        xy = points[group.rows].T
        if group.scale is None:
            axes.scatter(*xy, color=group.color, edgecolors=PAPER, label=canvas.plain(names[group.label]), **dots)
            continue
        place = group.scale.position(values.to_numpy(float)[group.rows])
        image = axes.scatter(*xy, c=place, **canvas.COLOURED, edgecolors=MUTED, label="_", **dots)
        bar = canvas.color_bar(figure, axes, image, group.scale.marks)
        bar.set_ylabel(canvas.plain(group.label), fontsize=7, color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(RULE)
    axes.margins(0.14)
    axes.set_aspect("equal", adjustable="datalim")
    if any(group.scale is None for group in groups):
        columns = max(1, min(4, int(110 / (6 + max(len(g.label) for g in groups)))))
        below: Any = {"loc": "upper left", "bbox_to_anchor": (0, -0.01), "borderaxespad": 0.2}
        axes.legend(fontsize=7, frameon=False, ncols=columns, **below)
    canvas.name_points(axes, [names[m] for m in found.table["model"]], points, POINT, note=note, caption=look.get("caption"))
    return axes


def _subtitle(found: ModelMap) -> str:
    method = "Metric MDS" if found.method == "mds" else "UMAP"
    stress = "" if math.isnan(found.stress) else f"stress-1 {words.number(found.stress)}, "
    chance = f" (without structure {words.number(found.chance)}, {words.p_sentence(found.pvalue)})" if found.draws else ""
    faithful = f"rank correlation of distances {words.number(found.faithfulness)}{chance}"
    return f"{method} of {DISTANCES[found.distance]}; n = {found.n_stimuli:,}; {stress}{faithful}"


def _by_kind(values: pd.Series, column: str) -> Iterator[Group]:
    for k, kind in enumerate(dict.fromkeys(sorted(values.tolist(), key=lambda v: v == ""))):
        color, marker = family(k) if kind else (FAINT, "o")
        yield Group(kind or f"no {column}", np.flatnonzero(values == kind), color, marker)


def _by_number(values: pd.Series, column: str) -> Iterator[Group]:
    """Those that have the number, then those that have not."""
    known = COMPETENCES.get(column)
    label, there = known.label if known else yardstick_label(column), np.isfinite(values.to_numpy(float))
    turned = bool(known and known.lower_is_better)
    low, high = (float(values[there].min()), float(values[there].max())) if there.any() else (0.0, 0.0)
    written = words.parameters if column == PARAMETERS else words.number
    worse, better = (high, low) if turned else (low, high)
    marks = [(0.0, written(worse)), (1.0, written(better))][: 1 + (low < high)]
    scale = Scale(worse, better, column == PARAMETERS and low > 0, marks)
    yield Group(label + " (lower is better)" * turned, np.flatnonzero(there), "", "o", scale)
    if not there.all():
        yield Group(f"no {label}", np.flatnonzero(~there), FAINT, "s")
