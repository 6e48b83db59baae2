"""Alignment at a large n, where an n x n matrix does not fit: streaming passes, with the cost told before."""

from repalign.large._cost import Plan, matmul_rate, plan
from repalign.large._rows import ArrayRows, Rows, StoredRows, as_rows
from repalign.large.anchors import Anchored, anchored_mutual_knn
from repalign.large.approximate import (
    Approximate,
    ApproximateMutualKNN,
    approximate_mutual_knn,
    approximate_nearest,
)
from repalign.large.gallery import gallery_curve
from repalign.large.streaming import StreamedCKA, StreamedCKAs, stream_cka, stream_cka_all

__all__ = [
    "Anchored",
    "Approximate",
    "ApproximateMutualKNN",
    "ArrayRows",
    "Plan",
    "Rows",
    "StoredRows",
    "StreamedCKA",
    "StreamedCKAs",
    "anchored_mutual_knn",
    "approximate_mutual_knn",
    "approximate_nearest",
    "as_rows",
    "gallery_curve",
    "matmul_rate",
    "plan",
    "stream_cka",
    "stream_cka_all",
]
