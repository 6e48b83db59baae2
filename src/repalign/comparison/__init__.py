"""All layers of many models against all layers of others, each number with its chance level."""

from repalign.comparison.alignment import Alignment
from repalign.comparison.anchors import Anchored, anchored_mutual_knn
from repalign.comparison.cache import Cache, Settings, default_memory
from repalign.comparison.compare import DEFAULT_MEASURES, LIMIT, compare, default_measures, in_memory, pair
from repalign.comparison.cost import Plan, matmul_rate, plan
from repalign.comparison.gallery import gallery_curve
from repalign.comparison.preprocess import Preprocess
from repalign.comparison.presets import preset
from repalign.comparison.streaming import StreamedCKA, StreamedCKAs, stream_cka, stream_cka_all
from repalign.comparison.streams import ArrayRows, Rows, StoredRows, as_rows
from repalign.comparison.tiles import Scored, Tile, compute_tile

__all__ = [
    "DEFAULT_MEASURES",
    "LIMIT",
    "Alignment",
    "Anchored",
    "ArrayRows",
    "Cache",
    "Plan",
    "Preprocess",
    "Rows",
    "Scored",
    "Settings",
    "StoredRows",
    "StreamedCKA",
    "StreamedCKAs",
    "Tile",
    "anchored_mutual_knn",
    "as_rows",
    "compare",
    "compute_tile",
    "default_measures",
    "default_memory",
    "gallery_curve",
    "in_memory",
    "matmul_rate",
    "pair",
    "plan",
    "preset",
    "stream_cka",
    "stream_cka_all",
]
