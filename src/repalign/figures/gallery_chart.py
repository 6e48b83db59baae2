"""Mutual k-NN as the number of stimuli grows: k fixed, and k a share of n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import pandas as pd
from matplotlib.axes import Axes

from repalign import text as words
from repalign.comparison import gallery_curve
from repalign.comparison.alignment import Alignment
from repalign.figures import canvas
from repalign.figures.palette import ACCENT, INK, MUTED, RULE, SCORE
from repalign.representation import Representation


@dataclass(frozen=True, eq=False)
class Gallery:
    """The curve of two layers, as `repalign.comparison.gallery_curve` gives it, and the same in words."""

    table: pd.DataFrame
    text: str


def shown(
    alignment: Alignment, representations: Mapping[str, Representation], *, k: int = 10, share: float | None = None,
    sizes: Sequence[int] | None = None, repeats: int = 5, seed: int = 0,
) -> Gallery:  # fmt: skip
    """The curve of the best aligned layers of a result."""
    best = alignment.best(alignment.measures[0]).iloc[0]
    ends = [(best[f"model_{side}"], best[f"layer_{side}"]) for side in "xy"]
    x, y = ((representations[model], layer) for model, layer in ends)
    curve = gallery_curve(x, y, k, share, sizes, repeats, seed)
    fixed, shared = (curve.loc[curve["mode"] == mode] for mode in ("fixed", "share"))

    def span(rows: pd.DataFrame, column: str) -> str:
        return " to ".join(words.number(rows[column].iloc[i]) for i in (0, -1))

    told = " and ".join(f"{model} [{layer}]" for model, layer in ends)
    part = f"{shared['k'].iloc[0] / shared['n'].iloc[0]:.1%} of the stimuli as neighbours give {span(shared, 'statistic')}"
    text = f"{told}: from n = {fixed['n'].iloc[0]} to {fixed['n'].iloc[-1]}, {k} neighbours give {span(fixed, 'statistic')} "
    return Gallery(curve, f"{text}(chance {span(fixed, 'chance')}); {part}.")


def draw(found: Gallery, **look: Unpack[canvas.Look]) -> Axes:
    """A line for k fixed and one for k a share of n, each with its chance level dashed."""
    curve = found.table
    names = {"fixed": f"{curve['k'].iloc[0]} neighbours", "share": "a share of the stimuli as neighbours"}
    labels = canvas.called(names.values(), look=look, what="words")
    _, ((axes,),) = canvas.sheet(6.4, 3.8, "Mutual k-NN by the number of stimuli", **look)
    for (mode, rows), color in zip(curve.groupby("mode", sort=False), (SCORE, ACCENT), strict=True):
        sd = rows["std"].fillna(0)
        axes.errorbar(rows["n"], rows["statistic"], yerr=sd, color=color, marker="o", label=labels[names[str(mode)]])
        axes.plot(rows["n"], rows["chance"], color=color, linestyle="--", linewidth=1)
    axes.plot([], [], color=MUTED, linestyle="--", linewidth=1, label="chance")
    axes.set_xscale("log", base=2)
    sizes = sorted(set(curve["n"]))
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    canvas.labels(axes, "stimuli, n", "mutual k-NN")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(True)
        axes.spines[side].set_color(RULE)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return axes
