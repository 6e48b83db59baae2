"""Alignment related to what the models are, to other runs and to published values.

Every analysis gives a `Finding`: a table, a few numbers, and the same in sentences. What is inferred takes models, or
families of models, as its units, on both sides of a pair, and never the pairs (docs/trends.md, relate.md, curves.md).
"""

from __future__ import annotations

from repalign.relate import story
from repalign.relate.agreements import Agreement, agreement
from repalign.relate.binning import Bins, bins
from repalign.relate.curves import Contrast, Curve, TrendCurve, contrast, curve, trend_curve
from repalign.relate.factors import Effects, effects
from repalign.relate.findings import FEW_MODELS, MIN_MODELS_BAND, QUANTITIES, Finding
from repalign.relate.jackknife import MIN_MODELS_LINE, MIN_UNITS, Fit, ModelDifference, difference_of_models
from repalign.relate.maps import ModelMap, model_map
from repalign.relate.matched import Matched, matched
from repalign.relate.permutations import DRAWS
from repalign.relate.replication import Beside, Published, beside, published_points, read_published
from repalign.relate.scores import PARAMETERS, SIDES, Crossed, sides_of, yardstick_label, yardsticks
from repalign.relate.trends import FamilySlope, Trend, TrendInference, infer, trend
from repalign.relate.verdict import SideVerdict, Verdict, verdict

__all__ = [
    "DRAWS", "FEW_MODELS", "MIN_MODELS_BAND", "MIN_MODELS_LINE", "MIN_UNITS", "PARAMETERS", "QUANTITIES", "SIDES", "Agreement",
    "Beside", "Bins", "Contrast", "Crossed", "Curve", "Effects", "FamilySlope", "Finding", "Fit", "Matched", "ModelDifference",
    "ModelMap", "Published", "SideVerdict", "Trend", "TrendCurve", "TrendInference", "Verdict", "agreement", "beside", "bins",
    "contrast", "curve", "difference_of_models", "effects", "infer", "matched", "model_map", "published_points", "read_published",
    "sides_of", "story", "trend", "trend_curve", "verdict", "yardstick_label", "yardsticks",
]  # fmt: skip
