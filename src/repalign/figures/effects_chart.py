"""What moves alignment: the effect of each of several factors, its interval, its share and its p."""

from __future__ import annotations

from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from repalign import text as words
from repalign.figures import canvas
from repalign.figures.palette import MUTED, PAPER, RULE, family
from repalign.measures import facts_of
from repalign.relate import Effects


def draw(found: Effects, **look: Unpack[canvas.Look]) -> Axes:
    """A point and its interval per number and per level of a category, from `relate.effects`; the largest share first.

    Effects are changes of alignment: of one standard deviation of a number, or of a level against the mean of its levels.
    """
    labels, factors, ends, remarks = [], [], [], []
    names = canvas.called([*found.table["label"], *found.levels["level"]], look=look, what="words")
    for k, row in enumerate(found.table.sort_values("share", ascending=False, kind="stable").to_dict("records")):
        levels = [{**row, "level": f"{names[row['label']]}{', log' if row['log'] else ''}, per sd"}]
        if row["kind"] != "number":
            own = found.levels.loc[found.levels["factor"] == row["factor"]].to_dict("records")
            levels = [{**one, "level": f"{names[row['label']]}: {names[one['level']]}"} for one in own]
        labels += [one["level"] for one in levels]
        factors += [k] * len(levels)
        ends += [(one["effect"], one["low"], one["high"]) for one in levels]
        p = words.pvalue(row["pvalue"], found.draws)
        remarks.append(f"share {100 * row['share']:.0f} %, p {p if p[:1] in '≤<–' else f'= {p}'}")
    rows, (effect, low, high) = np.arange(len(labels)), np.array(ends, float).T
    over = f"{words.counted(found.n, 'model')}, each the mean over {words.counted(found.n_partners, 'partner')}"
    units = words.plural(found.unit)
    bars = f"Bars: {100 * found.level:g} % intervals over {units}." if found.n_units else f"Too few {units} for intervals."
    _, ((axes,),) = canvas.sheet(
        7.2, 1.7 + 0.24 * len(rows), "What moves alignment",
        above=f"{facts_of(found.measure).label}; n = {found.n_stimuli:,}; {over}",
        below=" ".join([f"{bars} Shares sum to R² = {100 * found.r2:.0f} %.", *found.warnings]), rules="x", **look,
    )  # fmt: skip
    axes.axvline(0, color=MUTED, linewidth=1)
    colors = [family(k)[0] for k in factors]
    axes.hlines(rows, low, high, colors=colors, linewidth=2)
    axes.scatter(effect, rows, s=38, c=colors, edgecolors=PAPER, linewidths=0.8, zorder=3)
    for k, remark in enumerate(remarks):  # beside the first row of a factor; every second factor is shaded
        first, last = factors.index(k), len(factors) - 1 - factors[::-1].index(k)
        canvas.at_end(axes, remark, first)
        if k % 2:
            axes.axhspan(first - 0.5, last + 0.5, color=RULE, alpha=0.35, linewidth=0)
    canvas.rows(axes, labels)
    canvas.labels(axes, "Change of alignment, the other factors held")
    return axes
