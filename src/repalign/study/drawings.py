"""Figures that only studies draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def draw_gallery(curve: pd.DataFrame) -> Any:
    """Mutual k-NN over the number of stimuli: k fixed and k a share of n, each with its chance level dashed."""
    from matplotlib.figure import Figure

    from repalign.figures.static import ACCENT, INK, MUTED, PAPER, RULE, SCORE

    figure = Figure(figsize=(6.4, 3.8), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot()
    names = {"fixed": f"{curve['k'].iloc[0]} neighbours", "share": "a share of the stimuli as neighbours"}
    for (mode, rows), colour in zip(curve.groupby("mode", sort=False), (SCORE, ACCENT), strict=True):
        spread = rows["std"].fillna(0)
        axes.errorbar(rows["n"], rows["statistic"], yerr=spread, color=colour, marker="o", label=names[str(mode)])
        axes.plot(rows["n"], rows["chance"], color=colour, linestyle="--", linewidth=1)
    axes.plot([], [], color=MUTED, linestyle="--", linewidth=1, label="chance")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(curve["n"])), [f"{n:,}" for n in sorted(set(curve["n"]))])
    axes.minorticks_off()
    axes.set_xlabel("stimuli, n", color=INK)
    axes.set_ylabel("mutual k-NN", color=INK)
    axes.set_ylim(bottom=0)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    axes.legend(frameon=False, fontsize=8)
    return figure
