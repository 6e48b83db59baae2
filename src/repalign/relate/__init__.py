"""Alignment related to what the models are, to other runs and to published values.

Every analysis gives a `Finding`: a table, a few numbers, and the same in sentences. What is inferred takes models, or
families of models, as its units, on both sides of a pair, and never the pairs (docs/trends.md, relate.md, curves.md).
"""

from __future__ import annotations

from repalign.relate.agreements import Agreement, agreement
from repalign.relate.binning import Bins, bins
from repalign.relate.curves import Contrast, Curve, TrendCurve, contrast, curve, trend_curve
from repalign.relate.factors import Effects, effects
from repalign.relate.finding import Finding
from repalign.relate.jackknife import MIN_MODELS_LINE, MIN_UNITS, Fit
from repalign.relate.maps import ModelMap, model_map
from repalign.relate.permutations import DRAWS
from repalign.relate.replication import Beside, Published, beside, published_points, read_published
from repalign.relate.scores import PARAMETERS, SIDES, Crossed, sides_of, yardstick_label, yardsticks
from repalign.relate.sentences import FEW_MODELS, MIN_MODELS_BAND, QUANTITIES
from repalign.relate.trends import FamilySlope, Trend, TrendInference, infer, trend

__all__ = [
    "DRAWS", "FEW_MODELS", "MIN_MODELS_BAND", "MIN_MODELS_LINE", "MIN_UNITS", "PARAMETERS", "QUANTITIES", "SIDES",
    "Agreement", "Beside", "Bins", "Contrast", "Crossed", "Curve", "Effects", "FamilySlope", "Finding", "Fit", "ModelMap",
    "Published", "Trend", "TrendCurve", "TrendInference", "agreement", "beside", "bins", "contrast", "curve", "effects",
    "infer", "model_map", "published_points", "read_published", "sides_of", "trend", "trend_curve", "yardstick_label",
    "yardsticks",
]  # fmt: skip
