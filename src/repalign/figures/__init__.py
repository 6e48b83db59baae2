"""Figures: one function each, from an alignment to a figure, without any input or output.

What a figure shows is computed once (`frames`); it is drawn for paper (`backend="matplotlib"`, the default, a
`matplotlib.figure.Figure`) or for a notebook (`backend="plotly"`, a `plotly.graph_objects.Figure`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from repalign.comparison.alignment import Alignment, is_mock
from repalign.errors import RepalignError, did_you_mean
from repalign.figures import curves, factors, frames, layers
from repalign.figures import models as over_models
from repalign.figures.conventions import PLAIN, Reading
from repalign.models import ModelRecord
from repalign.relate import (
    PARAMETERS,
    Agreement,
    Beside,
    Bins,
    Contrast,
    Curve,
    Effects,
    ModelMap,
    Published,
    published_points,
)
from repalign.relate import trend as relate_trend

BACKENDS = {"matplotlib": "repalign.figures.static", "plotly": "repalign.figures.interactive"}
CURVES = {name: f"{module}_curves" for name, module in BACKENDS.items()}
MODELS = {name: f"{module}_models" for name, module in BACKENDS.items()}
EFFECTS = {name: f"{module}_effects" for name, module in BACKENDS.items()}

__all__ = [
    "BACKENDS",
    "agreement",
    "beside",
    "bins",
    "contrast",
    "curve",
    "effects",
    "layer_map",
    "matrix",
    "model_map",
    "null",
    "trend",
]


def matrix(
    alignment: Alignment | pd.DataFrame,
    *,
    measure: str | None = None,
    value: str = "statistic",
    backend: str = "matplotlib",
) -> Any:
    """Models by models: score, chance level, calibrated score or p of every pair.

    `value` is a key of `views.VIEWS`: statistic, gain, null_mean, calibrated, pvalue, p_maxt, p_holm, p_bh, p_by.
    Colour starts at the chance level; a circle marks pairs that are not above chance after adjustment.
    """
    table, _, reading = _parts(alignment)
    return _drawn(backend, "matrix", frames.matrix_frame(table, measure, value, reading), table)


def layer_map(
    alignment: Alignment | pd.DataFrame,
    model_x: str | None = None,
    model_y: str | None = None,
    *,
    measure: str | None = None,
    value: str = "statistic",
    backend: str = "matplotlib",
) -> Any:
    """Layers by layers of one pair of models; the best aligned pair by default.

    A dot marks cells above chance, family-wise over the pairs of layers; a frame the best cell of the layer search.
    `value` is one of statistic, gain, null_mean, calibrated, pvalue, p_stepdown.
    """
    table, _, reading = _parts(alignment)
    frame = layers.layer_map_frame(table, model_x, model_y, measure, value, reading)
    return _drawn(backend, "layer_map", frame, table)


def null(alignment: Alignment | pd.DataFrame, *, measure: str | None = None, backend: str = "matplotlib") -> Any:
    """Every pair of models: its score beside the mean, spread and threshold of its null."""
    table, _, reading = _parts(alignment)
    return _drawn(backend, "null", frames.null_frame(table, measure, reading), table)


def trend(
    alignment: Alignment | pd.DataFrame,
    against: str = PARAMETERS,
    side: str = "x",
    *,
    measure: str | None = None,
    models: Sequence[Mapping[str, Any] | ModelRecord] | None = None,
    published: Published | None = None,
    backend: str = "matplotlib",
    **options: Any,
) -> Any:
    """Alignment of the models of one side against parameters or a score, with the fitted line and band.

    `models` is needed with a bare table; `options` go to `repalign.relate.trend`. `published` lays published scores with
    the same partners over ours, hollow and grey.
    """
    table, run, _ = _parts(alignment)
    records = list(run.get("models") or []) if models is None else models
    found = relate_trend(table, records, against, side, measure, **options)
    laid = None
    if published is not None:
        pairs = table.loc[(table["scope"] == "max") & (table["measure"] == found.measure)]
        columns = {"x": ["model_y"], "y": ["model_x"], "both": ["model_x", "model_y"]}[side]
        laid = published_points(found, published, list(dict.fromkeys(name for c in columns for name in pairs[c])))
    return _drawn(backend, "trend", frames.trend_frame(found, int(table["n"].to_numpy()[0]), published=laid), table)


def curve(found: Curve, *, log: bool | None = None, backend: str = "matplotlib") -> Any:
    """Alignment, or a trend, over a parameter, from `relate.curve` or `relate.trend_curve`; chance is dashed.

    `log`: a logarithmic axis; by default for positive numbers over a wide range.
    """
    return _backend(backend, CURVES).draw_curve(curves.curve_frame(found, log))


def contrast(found: Contrast, *, backend: str = "matplotlib") -> Any:
    """The same pairs of models under each variant against the first one, from `relate.contrast`."""
    return _backend(backend, CURVES).draw_scatter(curves.contrast_frame(found))


def beside(found: Beside, *, backend: str = "matplotlib") -> Any:
    """Our scores against published ones, with the diagonal, from `relate.beside`."""
    return _backend(backend, CURVES).draw_scatter(curves.beside_frame(found))


def effects(found: Effects, *, backend: str = "matplotlib") -> Any:
    """Several factors at once, from `relate.effects`: the effect and interval of each, its share and its p."""
    return _backend(backend, EFFECTS).draw_effects(factors.effects_frame(found))


def bins(found: Bins, *, backend: str = "matplotlib") -> Any:
    """Alignment within bins of competence, from `relate.bins`: the interval over models, the standard error over pairs
    and chance; for models among themselves also the matrix of bins."""
    return _backend(backend, MODELS).draw_bins(over_models.bins_frame(found))


def model_map(found: ModelMap, *, colour: str = "objective", backend: str = "matplotlib") -> Any:
    """Models in a plane, from `relate.model_map`; `colour` is a column of its table: a kind, a size or a score."""
    return _backend(backend, MODELS).draw_model_map(over_models.map_frame(found, colour))


def agreement(found: Agreement, *, backend: str = "matplotlib") -> Any:
    """Measures by measures, from `relate.agreement`: Spearman's correlation; a circle marks those that chance gives."""
    return _backend(backend, MODELS).draw_agreement(over_models.agreement_frame(found))


def _parts(alignment: Alignment | pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any], Reading]:
    if isinstance(alignment, pd.DataFrame):
        return alignment, {}, PLAIN
    return alignment.table, alignment.run, Reading.of(alignment.run)



def _drawn(backend: str, kind: str, frame: Any, table: pd.DataFrame) -> Any:
    """A figure of a result, which says so where the result is of a mock run."""
    module = _backend(backend)
    figure = getattr(module, f"draw_{kind}")(frame)
    return module.stamp(figure) if is_mock(table) else figure


def _backend(name: str, modules: Mapping[str, str] = BACKENDS) -> Any:
    if name not in BACKENDS:
        raise RepalignError(f"no backend {name!r} draws figures", got=name, remedy=did_you_mean(name, BACKENDS))
    return importlib.import_module(modules[name])
