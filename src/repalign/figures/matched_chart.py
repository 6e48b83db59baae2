"""Differences within pairs of models of one side, before the same partners."""

from __future__ import annotations

from typing import Unpack

from matplotlib.axes import Axes

from repalign import text as words
from repalign.figures import canvas
from repalign.figures.palette import MUTED, PAPER, family
from repalign.measures import facts_of
from repalign.relate import Matched
from repalign.relate.matched import OVERALL


def draw(found: Matched, **look: Unpack[canvas.Look]) -> Axes:
    """A point and its interval for each pair, and above them a diamond for all pairs of a question, from `relate.matched`."""
    rows = found.table.to_dict("records")
    models = dict.fromkeys(name for row in rows for name in (row["first"], row["second"]) if name != OVERALL)
    names = canvas.called(found.questions, models, look=look)
    labels = [
        f"{names[row['question']]}: all {words.counted(row['n_pairs'], 'pair')}" if row["first"] == OVERALL
        else f"{names[row['first']]} − {names[row['second']]}" for row in rows
    ]  # fmt: skip
    units = sorted({(row["unit"], row["n_units"]) for row in rows if row["unit"]})
    bars = "; ".join(f"{n} {'families' if kind == 'family' else 'models'} of partners" for kind, n in units)
    below = f"Bars: {100 * found.level:g} % intervals over {bars}." if bars else "Too few partners for intervals."
    if found.left_out:
        below += f" Not there: {', '.join(found.left_out)}."
    _, ((axes,),) = canvas.sheet(
        8.4 + canvas.beyond(labels), 1.7 + 0.26 * len(rows), "The same partners before two models",
        above=f"{facts_of(found.measure).label}; n = {found.n_stimuli:,}; first minus second", below=below, rules="x", **look,
    )  # fmt: skip
    axes.axvline(0, color=MUTED, linewidth=1)
    for at, row in enumerate(rows):
        color, overall = family(found.questions.index(row["question"]))[0], row["first"] == OVERALL
        axes.hlines(at, row["low"], row["high"], colors=color, linewidth=2.6 if overall else 1.4)
        axes.plot(row["difference"], at, marker="D" if overall else "o", markersize=7 if overall else 5.5, color=color,
                  markeredgecolor=PAPER)  # fmt: skip
        told = words.interval(row["difference"], row["low"], row["high"]) if overall else words.number(row["difference"])
        canvas.at_end(axes, told, at)
    canvas.rows(axes, labels)
    canvas.labels(axes, "Difference of alignment")
    return axes
