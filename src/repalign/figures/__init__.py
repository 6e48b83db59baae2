"""Figures: one function each, which draws a result or a finding of `repalign.relate` and returns its axes, several as a list.

All of them take `ax`, `figsize`, `title`, `caption` and `labels` (`canvas.Look`). The figure of axes is their `.figure`.
`FIGURES` has every kind that a study file may ask for (`repalign.figures.kinds`); `write_figures` writes their files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import pandas as pd
from matplotlib.axes import Axes

from repalign.comparison.alignment import Alignment, is_mock
from repalign.figures import canvas, layer_map_chart, matrix_chart, null_chart, trend_chart
from repalign.figures.agreement_chart import draw as agreement
from repalign.figures.bins_chart import draw as bins
from repalign.figures.curve_chart import draw as curve
from repalign.figures.effects_chart import draw as effects
from repalign.figures.gallery_chart import draw as gallery
from repalign.figures.kinds import FIGURES, Drawn, Figure, write_figures
from repalign.figures.map_chart import draw as model_map
from repalign.figures.matched_chart import draw as matched
from repalign.figures.pairs_chart import beside, contrast
from repalign.models import ModelRecord
from repalign.relate import PARAMETERS, Published
from repalign.relate import trend as find_trend

__all__ = [
    "FIGURES", "Drawn", "Figure", "agreement", "beside", "bins", "contrast", "curve", "effects", "gallery", "layer_map",
    "matched", "matrix", "model_map", "null", "trend", "write_figures",
]  # fmt: skip

Result = Alignment | pd.DataFrame  # a bare table has the conventions of PLAIN


def matrix(alignment: Result, *, measure: str | None = None, value: str = "statistic", **look: Unpack[canvas.Look]) -> Axes:
    """Models by models: score, chance level, calibrated score or p of every pair.

    `value` is statistic, gain, null_mean, calibrated, pvalue, p_maxt, p_holm, p_bh or p_by. Colour starts at the chance
    level; a circle marks pairs that are not above chance after adjustment.
    """
    result = _result(alignment)
    return _stamped(matrix_chart.draw(matrix_chart.shown(result, measure, value=value), **look), result)


def layer_map(
    alignment: Result, model_x: str | None = None, model_y: str | None = None, *, measure: str | None = None,
    value: str = "statistic", depth: str = "layers", **look: Unpack[canvas.Look],
) -> Axes:  # fmt: skip
    """Layers by layers of one pair of models; the best aligned pair by default.

    A dot marks pairs of layers above chance, family-wise over all of them; a frame the best of the layer search.
    `value` is one of statistic, gain, null_mean, calibrated, pvalue, p_stepdown. `depth` is what the axes say: the names of the
    "layers", or their "relative" depth, from 0 for the first that is compared to 1 for the last.
    """
    result = _result(alignment)
    found = layer_map_chart.shown(result, measure, model_x=model_x, model_y=model_y, value=value)
    return _stamped(layer_map_chart.draw(found, depth=depth, **look), result)


def null(alignment: Result, *, measure: str | None = None, **look: Unpack[canvas.Look]) -> Axes:
    """Every pair of models: its score beside the mean, spread and threshold of its null."""
    result = _result(alignment)
    return _stamped(null_chart.draw(null_chart.shown(result, measure), **look), result)


def trend(
    alignment: Result, against: str = PARAMETERS, side: str = "x", *, measure: str | None = None,
    models: Sequence[Mapping[str, Any] | ModelRecord] | None = None, published: Published | None = None,
    **options: Any,
) -> Axes:  # fmt: skip
    """Alignment of the models of one side against parameters or a score, with the fitted line and band.

    `models` is needed with a bare table; `options` are those of `repalign.relate.trend` and of `canvas.Look`. `published` lays
    published scores with the same partners over ours, hollow and grey.
    """
    result = _result(alignment)
    records = list(result.run.get("models") or []) if models is None else models
    look: Any = {name: options.pop(name) for name in canvas.Look.__annotations__ if name in options}
    found = find_trend(result.table, records, against, side, measure, **options)
    return _stamped(trend_chart.draw(found, table=result.table, published=published, **look), result)


def _result(alignment: Result) -> Alignment:
    return alignment if isinstance(alignment, Alignment) else Alignment(alignment)


def _stamped(axes: Axes, result: Alignment) -> Axes:
    """The figure of a mock run says so."""
    if is_mock(result.table):
        canvas.stamp(axes)
    return axes
