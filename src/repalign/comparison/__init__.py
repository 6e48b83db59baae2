"""All layers of many models against all layers of others, each number with its chance level."""

from repalign.comparison.alignment import Alignment
from repalign.comparison.anchors import Anchored, anchored_mutual_knn, gallery_curve
from repalign.comparison.compare import (
    DEFAULT_MEASURES,
    compare,
    compare_share,
    default_measures,
    in_memory,
    model_files,
    pair,
)
from repalign.comparison.preprocess import Preprocess, preset
from repalign.comparison.streaming import (
    ArrayRows,
    Rows,
    StoredRows,
    StreamedCKA,
    StreamedCKAs,
    as_rows,
    stream_cka,
    stream_cka_all,
)
from repalign.comparison.tiles import Cache, Scored, Settings, Tile
from repalign.comparison.ways import Plan, compute_tile, matmul_rate, plan
from repalign.representation import DEFAULT_MEMORY

__all__ = [
    "DEFAULT_MEASURES", "DEFAULT_MEMORY", "Alignment", "Anchored", "ArrayRows", "Cache", "Plan", "Preprocess", "Rows",
    "Scored", "Settings", "StoredRows", "StreamedCKA", "StreamedCKAs", "Tile", "anchored_mutual_knn", "as_rows", "compare",
    "compare_share", "compute_tile", "default_measures", "gallery_curve", "in_memory", "matmul_rate", "model_files", "pair",
    "plan", "preset", "stream_cka", "stream_cka_all",
]
