"""The figures of the colour experiment, drawn from a result alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repalign.figures.canvas import plain, sheet
from repalign.figures.palette import ACCENT, INK, MUTED, PAPER, RULE, SCORE
from repalign.prh.colour.run import ColourResult

_SHUFFLES = {"none": "photos", "within": "pixels shuffled within each photo", "across": "pixels shuffled across photos"}
_INKS = {"none": INK, "within": SCORE, "across": ACCENT}


def draw_layouts(result: ColourResult, *, labels: int = 30) -> Figure:
    """CIELAB and every layout moved onto it, each colour in its own colour; words are named where there are few."""
    spaces = list(result.run["spaces"])
    rows = -(-(len(spaces) + 1) // 3)
    figure = Figure(figsize=(9.6, 3.3 * rows + 0.3), facecolor=PAPER, layout="constrained")
    figure.suptitle("Layouts of colours, moved onto CIELAB", x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    for place, name in enumerate(["CIELAB", *spaces], start=1):
        table = result.layouts[result.layouts["space"] == (spaces[0] if name == "CIELAB" else name)]
        axes: Any = figure.add_subplot(rows, 3, place, projection="3d")
        kind = "cielab" if name == "CIELAB" else "layout"
        points = table[[f"a_{kind}", f"b_{kind}", f"L_{kind}"]].to_numpy()
        rgb = table[["r_srgb", "g_srgb", "b_srgb"]].to_numpy()
        axes.scatter(*points.T, c=rgb, s=18, edgecolors=RULE, linewidths=0.4, depthshade=False)
        if name != "CIELAB" and len(table) <= labels:
            for word, point in zip(table["id"], points, strict=True):
                axes.text(*point, f" {word}", fontsize=5, color=MUTED)
        if name == "CIELAB":
            head = f"CIELAB, the colours of {spaces[0]}\nn = {len(table)}"
        else:
            fit = result.run["spaces"][name]["layout"]
            head = f"{name}, {fit['layer']}, n = {len(table)}\ndisparity {fit['disparity']:.2f}, stress {fit['stress']:.2f}"
        axes.set_title(plain(head), fontsize=8, color=INK)
        for ticks in (axes.set_xticks, axes.set_yticks, axes.set_zticks):
            ticks([])
        for label, put in (("a", axes.set_xlabel), ("b", axes.set_ylabel), ("L", axes.set_zlabel)):
            put(label, fontsize=7, color=MUTED, labelpad=-12)
    return figure


def draw_controls(result: ColourResult) -> Figure:
    """Agreement of pixels with CIELAB by radius, and with shuffled pixels; chance by relabelling as a band."""
    table = result.controls[result.controls["layer_y"] == "cielab"]
    measures = list(dict.fromkeys(table["measure"]))
    title = "Pixels against CIELAB: how near must two pixels be?"
    figure, (panels,) = sheet(4.2 * len(measures), 3.4, title, widths=[1] * len(measures))
    radii = sorted(set(table["radius"]))
    for axes, measure in zip(panels, measures, strict=True):
        for shuffle, rows in table[table["measure"] == measure].groupby("shuffle", sort=False):
            at = [radii.index(r) for r in rows["radius"]]
            axes.plot(at, rows["statistic"], "o-", color=_INKS[str(shuffle)], markersize=5, label=_SHUFFLES[str(shuffle)])
        chance = table[table["measure"] == measure].sort_values("radius").drop_duplicates("radius")
        low, high = chance["null_mean"] - 2 * chance["null_std"], chance["null_mean"] + 2 * chance["null_std"]
        axes.fill_between(range(len(radii)), low, high, color=RULE, label="colours relabelled: mean ± 2 sd")
        axes.set_xticks(range(len(radii)), ["photo" if np.isinf(r) else f"{r:g}" for r in radii])
        axes.set_xlabel("radius in pixels", fontsize=8, color=INK)
        _finish(axes, f"{measure}, n about {int(chance['n'].median())}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4, fontsize=7, frameon=False)
    return figure


def draw_words(result: ColourResult) -> Figure:
    """Agreement of every layer of each model, and of the spelling, with CIELAB and with pixels by word."""
    table, others = result.scores, ("perception", "pixels by word")
    names = [s for s in result.run["spaces"] if s not in ("pixels", "pixels by word")]
    measures = [m for m in dict.fromkeys(table["measure"]) if ((table["measure"] == m) & table["space_x"].isin(names)).any()]
    measures = [m for m in measures if m != "Procrustes"]
    title = "Colour words: every layer against perception and pixels"
    figure, panels = sheet(3.4 * len(names), 2.6 * len(measures) + 0.6, title, len(measures), [1] * len(names))
    for row, measure in zip(panels, measures, strict=True):
        for axes, name in zip(row, names, strict=True):
            for other, ink in zip(others, (INK, ACCENT), strict=True):
                rows, layers = _of(table, measure, name, other)
                axes.plot(range(len(rows)), rows["statistic"], "o-", color=ink, markersize=4, label=_AGAINST[other])
                gate = f"its 5% threshold, n = {rows['n'].iloc[0]}"
                axes.plot(range(len(rows)), rows["threshold"], "_", color=ink, markersize=9, label=gate)
            axes.set_xticks(range(len(layers)), [plain(x) for x in layers], rotation=45, ha="right", rotation_mode="anchor")
            _finish(axes, f"{name}: {measure}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4, fontsize=7, frameon=False)
    return figure


_AGAINST = {"perception": "against CIELAB", "pixels by word": "against pixels by word"}


def _of(table: Any, measure: str, name: str, other: str) -> tuple[Any, list[str]]:
    of, side = table[table["measure"] == measure], "x" if other == "perception" else "y"
    against = of["layer_y"] == "cielab" if side == "x" else of["space_x"] == other
    rows = of[(of[f"space_{side}"] == name) & against]
    return rows, list(rows[f"layer_{side}"])


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(plain(title), fontsize=8, color=INK, loc="left")
    axes.tick_params(labelsize=7)
    axes.axhline(0, color=RULE, linewidth=0.8, zorder=0)
