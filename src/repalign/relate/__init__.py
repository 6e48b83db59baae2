"""Alignment related to what the models are: trends against size and competence.

One point is one model of one side: its alignment averaged over the models of the other side. The line is ordinary
least squares over these points, which for complete data is the line over all pairs. What is inferred from it takes
models, or families of models, as its units, on both sides of a pair, and never the pairs (docs/trends.md).
"""

from __future__ import annotations

from repalign.relate._agreement import Agreement, agreement
from repalign.relate._beside import Beside, beside, published_points
from repalign.relate._bins import Bins, bins
from repalign.relate._contrast import Contrast, contrast
from repalign.relate._crossed import MIN_UNITS, Crossed
from repalign.relate._curve import QUANTITIES, Curve, curve
from repalign.relate._effects import Effects, effects
from repalign.relate._fit import MIN_MODELS_LINE, Fit
from repalign.relate._inference import DRAWS, FamilySlope, TrendInference, infer
from repalign.relate._map import ModelMap, model_map
from repalign.relate._published import Published, read_published
from repalign.relate._trend import (
    PARAMETERS,
    SIDES,
    Trend,
    sides_of,
    trend,
    yardstick_label,
    yardsticks,
)
from repalign.relate._trend_curve import trend_curve
from repalign.relate._words import FEW_MODELS, MIN_MODELS_BAND

__all__ = [
    "DRAWS",
    "FEW_MODELS",
    "MIN_MODELS_BAND",
    "MIN_MODELS_LINE",
    "MIN_UNITS",
    "PARAMETERS",
    "QUANTITIES",
    "SIDES",
    "Agreement",
    "Beside",
    "Bins",
    "Contrast",
    "Crossed",
    "Curve",
    "Effects",
    "FamilySlope",
    "Fit",
    "ModelMap",
    "Published",
    "Trend",
    "TrendInference",
    "agreement",
    "beside",
    "bins",
    "contrast",
    "curve",
    "effects",
    "infer",
    "model_map",
    "published_points",
    "read_published",
    "sides_of",
    "trend",
    "trend_curve",
    "yardstick_label",
    "yardsticks",
]
