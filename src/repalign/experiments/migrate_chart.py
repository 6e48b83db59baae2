"""The figure of a change of embedding models: what each adapter keeps, the same over anchors, and the map of thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from repalign.experiments.adapters import NONE
from repalign.experiments.migrate_numbers import TODAY
from repalign.figures import canvas
from repalign.figures.palette import ACCENT, FAINT, INK, MUTED, RULE, SCORE, family
from repalign.text import number

if TYPE_CHECKING:
    from repalign.experiments.migrate import Migration

MEASURED = {"cosine": "cosine", "dot": "dot product", "euclidean": "distance"}


def draw(found: Migration, **look: Unpack[canvas.Look]) -> Axes:
    """Three axes; the first is given."""
    rows = found.table.to_dict("records")
    called = canvas.called([r["adapter"] for r in rows], look=look, what="words")
    chance = f"dotted: chance {number(found.chance)}"
    above = (f"{found.q:,} queries, {found.m:,} anchors, k = {found.k}; {chance}", "the same over the anchors", "thresholds")
    _, grid = canvas.sheet(11.4, 3.9, f"Verdict: {found.verdict}", 1, [1.25, 1, 1], above=above, room=3.6, **look)
    first, second, third = grid.flat
    for i, row in enumerate(rows):
        first.barh(i, row["kept"], height=0.55, color=FAINT if row["adapter"] in (TODAY, NONE) else SCORE)
        first.plot([row["kept_low"], row["kept_high"]], [i, i], color=INK, linewidth=2)
        first.annotate(number(row["kept"]), (max(row["kept_high"], 0), i), xytext=(4, 0), textcoords="offset points",
                       va="center", fontsize=8, color=INK)  # fmt: skip
    first.axvline(found.chance, color=MUTED, linewidth=1, linestyle=":")
    first.set_yticks(range(len(rows)), [canvas.plain(called[r["adapter"]]) for r in rows])
    first.set_ylim(len(rows) - 0.4, -0.6)
    first.set_xlim(0, 1.12)
    canvas.labels(first, "share of the new answers that is kept")
    curve = found.tables["curve"]
    for j, (name, some) in enumerate(curve.groupby("adapter", sort=False)):
        color, marker = family(j)
        second.plot(some["anchors"], some["kept"], color=color, marker=marker, markersize=4, label=canvas.plain(called[name]))
        second.fill_between(some["anchors"], some["kept_low"], some["kept_high"], color=color, alpha=0.15, linewidth=0)
    sizes = sorted(set(curve["anchors"]))
    second.set_xscale("log")
    second.set_xticks(sizes, [f"{m:,}" for m in sizes], rotation=45)
    second.xaxis.set_minor_locator(NullLocator())
    second.set_ylim(0, 1.02)
    second.grid(color=RULE, linewidth=0.6)
    canvas.labels(second, "anchors, log scale", "share kept")
    second.legend(fontsize=7, frameon=False, loc="best")
    line, marks = found.tables["threshold_line"], found.tables["thresholds"]
    third.plot(line["old"], line["new"], color=SCORE, linewidth=1.5, label="as many pairs pass")
    ends = [float(line[["old", "new"]].to_numpy().min()), float(line[["old", "new"]].to_numpy().max())]
    third.plot(ends, ends, color=MUTED, linewidth=1, linestyle=canvas.DASHED, label="the same number")
    third.plot(marks["old"], marks["new"], "o", color=ACCENT, markersize=5, label="that were asked for")
    third.legend(fontsize=7, frameon=False, loc="upper left")
    third.grid(color=RULE, linewidth=0.6)
    canvas.labels(third, f"{MEASURED[found.metric]}, old", f"{MEASURED[found.metric]}, new")
    return first
