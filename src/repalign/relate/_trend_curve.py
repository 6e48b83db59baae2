"""Does a trend exist at every value of a parameter? The trend over models, fitted at each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.models import ModelRecord
from repalign.relate._axis import axis_label
from repalign.relate._curve import Curve, at_points, lines_of
from repalign.relate._curve_words import trend_sentences
from repalign.relate._inference import DRAWS, LEVEL
from repalign.relate._pairs import PARAMETERS, facts, stimuli
from repalign.relate._trend import Trend, trend
from repalign.relate._words import noun

STATISTICS = {"spearman": "Spearman correlation", "slope": "Slope"}


def trend_curve(
    table: pd.DataFrame,
    x: str,
    models: Sequence[Mapping[str, Any] | ModelRecord],
    against: str = PARAMETERS,
    side: str = "x",
    *,
    by: str | None = "measure",
    statistic: str = "spearman",
    measure: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    **options: Any,
) -> Curve:
    """The trend of alignment with a competence of the models of one side, as a function of `x`.

    Parameters
    ----------
    table, x, by, measure : as for `curve`; x is a column or a parameter of the measures.
    models, against, side, draws, seed : as for `trend`; `options` (log, lower_is_better, label) go to it as well.
    statistic : which number is the curve's value: "spearman", which can be compared between scores of different scale, or
        "slope", in score per unit of the competence.

    Returns
    -------
    Curve : intervals and p are those of `trend` at each point; 0, no trend, stands as chance. With a competence of which
        lower is better (bits per byte), alignment that rises with competence is a negative trend.

    Raises
    ------
    RepalignError : as `curve` and `trend` do; x that is a number of the models.
    """
    if statistic not in STATISTICS:
        raise RepalignError(f"a trend has no {statistic!r}", got=statistic, remedy=did_you_mean(statistic, STATISTICS))
    axis, measure = lines_of(table, x, by, {m["name"]: m for m in map(facts, models)}, side, measure)
    if axis.kind == "model":
        raise RepalignError(
            f"{x!r} is a number of the models, so every point has one model and no trend",
            expected="a column of the table or a parameter of its measures",
            got=x,
            remedy=f"use relate.trend(table, models, {x!r}, {side!r})",
        )
    points, found = [], None
    for line, place, rows in at_points(axis.rows, axis):
        found = trend(rows, models, against, side, draws=draws, seed=seed, **options)
        points.append({"line": line, "x": place, **_point(found, statistic), "n": stimuli(rows), "n_pairs": len(rows)})
    assert found is not None  # an axis has rows
    label = f"{STATISTICS[statistic]} with {noun(found.label)}"
    made = Curve(
        x, axis_label(x), axis.numbers, by, measure, label, "no trend", LEVEL, pd.DataFrame(points), axis.left_out
    )
    better = ", lower is better: a negative trend is alignment that rises with competence"
    what = f"alignment against {noun(found.label)} of side {side}{better if found.lower_is_better else ''}"
    return replace(made, text=trend_sentences(made, what if measure is None else f"{measure}; {what}"))


def _point(found: Trend, statistic: str) -> dict[str, Any]:
    nothing = (math.nan, math.nan)
    one = found.inference
    numbers = {
        "slope": (found.slope, one.slope_interval if one else nothing, one.slope_pvalue if one else math.nan),
        "spearman": (found.spearman, one.spearman_interval if one else nothing, one.spearman_pvalue if one else math.nan),
    }
    value, (low, high), pvalue = numbers[statistic]
    out = {"value": value, "low": low, "high": high, "pvalue": pvalue, "chance": 0.0}
    for name, (number, ends, p) in numbers.items():
        out |= {name: number, f"{name}_low": ends[0], f"{name}_high": ends[1], f"{name}_pvalue": p}
    undefined = int(found.points["n_undefined"].to_numpy().sum())
    return {**out, "n_models": found.n, "n_undefined": undefined}
