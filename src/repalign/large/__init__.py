"""Alignment at a large n, where an n x n matrix does not fit: streaming passes, with the cost told before."""

from repalign.large._cost import Plan, matmul_rate, plan
from repalign.large._rows import ArrayRows, Rows, StoredRows, as_rows
from repalign.large.streaming import StreamedCKA, StreamedCKAs, stream_cka, stream_cka_all

__all__ = [
    "ArrayRows",
    "Plan",
    "Rows",
    "StoredRows",
    "StreamedCKA",
    "StreamedCKAs",
    "as_rows",
    "matmul_rate",
    "plan",
    "stream_cka",
    "stream_cka_all",
]
