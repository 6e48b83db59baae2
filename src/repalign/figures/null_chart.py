"""Scores against chance: every pair of models beside what the same search gives when the pairing is broken.

`null_chart.html` draws it in the report, where it fits any width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from repalign import text as words
from repalign.comparison.alignment import Alignment
from repalign.comparison.conventions import Conventions, Pairs
from repalign.figures import canvas
from repalign.figures.palette import ACCENT, FAINT, INK, MUTED, PAPER, SCORE

MOST_DRAWN = 200  # pairs on one figure
COLUMNS = ["model_x", "model_y", "n", "statistic", "null_mean", "null_std", "threshold", "calibrated", "pvalue", "p_maxt"]


@dataclass(frozen=True, eq=False)
class NullChart:
    """Every pair of models: its score beside what chance gives to the same search; the highest score first."""

    title: str
    about: Pairs
    pairs: list[tuple[str, str]]
    observed: np.ndarray
    null_mean: np.ndarray
    null_std: np.ndarray
    threshold: np.ndarray
    found: np.ndarray
    n_undefined: int
    ceilings: list[tuple[float, str]]  # at the same n, with their source
    text: str  # the best pair
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    @classmethod
    def of(cls, pairs: Pairs) -> NullChart:
        """The scores of one measure, and the ceilings at their n."""
        rows = pairs.rows.assign(found=pairs.found)
        rows = rows.loc[rows["statistic"].notna()].sort_values("statistic", ascending=False, kind="stable")
        return cls(
            f"Score against chance: {pairs.about.label}", pairs,
            list(zip(rows["model_x"], rows["model_y"], strict=True)),
            *(rows[c].to_numpy(float) for c in ("statistic", "null_mean", "null_std", "threshold")),
            found=rows["found"].to_numpy(bool), n_undefined=len(pairs.rows) - len(rows),
            ceilings=[(c.statistic, c.source(pairs.n)) for c in pairs.seeds if c.n == pairs.n], text=pairs.text,
        )  # fmt: skip

    def ends(self, few: int) -> NullChart:
        """The chart of the highest and the lowest scores, `few` of each, where there are more."""
        n = len(self.observed)
        if n <= 2 * few:
            return self
        arrays = {k: np.concatenate([v[:few], v[-few:]]) for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        text = f"{self.text} Of {n:,} pairs the {few} highest and the {few} lowest scores."
        return replace(self, **arrays, pairs=[*self.pairs[:few], *self.pairs[-few:]], text=text)

    def tracks(self, most: int) -> dict[str, object]:
        """The report's chart: every place on it in per cent of its width, of the first `most` pairs."""
        mean, sd = self.null_mean, self.null_std
        ends = np.concatenate([self.observed, mean - sd, mean + sd, self.threshold, [v for v, _ in self.ceilings]])
        low, high = float(ends.min()), float(ends.max())
        margin = (high - low) or abs(low) or 1.0
        low, high = low - 0.02 * margin, high + 0.12 * margin  # room for the number beside the last dot
        marks = canvas.ticks(low, high, 6)
        along = {
            "score": self.observed, "mean": mean, "left": mean - sd, "right": mean + sd, "threshold": self.threshold,
            "reach": np.minimum(self.threshold, self.observed), "end": np.max([self.observed, self.threshold, mean + sd], 0),
            "ceilings": np.array([v for v, _ in self.ceilings]), "ticks": np.array([t for t, _ in marks]),
        }  # fmt: skip
        whole = ("ceilings", "ticks")
        along = {k: values if k in whole else values[:most] for k, values in along.items()}
        at = {k: [f"{100 * (v - low) / (high - low):.2f}%" for v in values] for k, values in along.items()}
        numbers = list(zip(self.observed, mean, sd, self.threshold, strict=True))[:most]
        rows = [
            {"x": x, "y": y, "found": above, "at": {k: at[k][i] for k in along if k not in whole},
             "score": words.number(score), "chance": f"{words.number(m)} ± {words.number(s)}", "threshold": words.number(t)}
            for i, ((x, y), above, (score, m, s, t)) in enumerate(zip(self.pairs[:most], self.found[:most], numbers, strict=True))
        ]  # fmt: skip
        return {"rows": rows, "ticks": list(zip(at["ticks"], (text for _, text in marks), strict=True)), "ceilings": at["ceilings"]}


def shown(alignment: Alignment, measure: str | None = None) -> NullChart:
    """The scores of a result, with their table."""
    measure = measure or alignment.measures[0]
    made = NullChart.of(Pairs.of(alignment.table, measure, Conventions.of(alignment.run)))
    return replace(made.ends(MOST_DRAWN // 2), table=alignment.best(measure)[COLUMNS])


def draw(made: NullChart, **look: Unpack[canvas.Look]) -> Axes:
    """One row per pair: its score, and the mean, one standard deviation and the threshold of chance."""
    rows = np.arange(len(made.observed))
    names = canvas.called(*zip(*made.pairs, strict=True), look=look)
    wide = 7.5 + 2 * canvas.beyond(names.values())
    _, ((axes,),) = canvas.sheet(wide, 1.8 + 0.2 * len(rows), made.title, above=made.about.heading, rules="x", **look)
    ends = made.null_mean - made.null_std, made.null_mean + made.null_std
    axes.hlines(rows, *ends, color=FAINT, linewidth=5, alpha=0.5)
    axes.plot(made.null_mean, rows, "|", color=MUTED, markersize=7, label="chance: mean ± sd")
    axes.plot(made.threshold, rows, "|", color=ACCENT, markersize=9, markeredgewidth=1.6, label="threshold")
    for k, (ceiling, _) in enumerate(made.ceilings):
        axes.axvline(ceiling, color=INK, linewidth=1, linestyle="--", label="_" * (k > 0) + "ceiling: two trainings")
    for there, label, fill in ((made.found, "above chance", SCORE), (~made.found, "not above chance", PAPER)):
        dots = {"color": SCORE, "markersize": 5, "markerfacecolor": fill, "label": f"score, {label}"}
        axes.plot(made.observed[there], rows[there], "o", **dots)
    canvas.rows(axes, [f"{names[x]} {words.TIMES} {names[y]}" for x, y in made.pairs], fontsize=7)
    if canvas.has_caption(look):  # not below everything: the legend is there
        axes.set_xlabel(canvas.plain(made.about.note, 90), fontsize=7, color=MUTED, loc="left")
    canvas.legend_below(axes, 5)
    return axes
