"""Approximate neighbours, by choice: a navigable small-world graph (usearch) whose recall is measured here.

Source of the method: Malkov & Yashunin 2020 (IEEE TPAMI 42:824). Exact search (`MutualKNN`, `anchored_mutual_knn`) is
the default everywhere; this is for lists of all rows where n^2 products are too many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.large._cost import BLOCK
from repalign.large._queries import nearest_of, read_checked
from repalign.large._rows import Rows, as_rows
from repalign.large.anchors import common, corrected, paired_rows, sample, wilson
from repalign.measures._checks import as_count, check_choice
from repalign.measures._numeric import unit_rows
from repalign.measures._search import SIMILARITIES
from repalign.progress import Progress, silent

LEVEL = 0.95  # confidence of the interval for recall


@dataclass(frozen=True, eq=False)
class Approximate:
    """Approximate neighbour lists, and how good they are.

    indices : (n, k), nearest first, the row itself left out.
    recall : share of the exact k nearest that the lists hold, on `n_checked` rows; low, high: its 95 % interval.
    checked, exact : those rows (n_checked,), and their exact neighbours (n_checked, k), in order of similarity but for
        near ties.
    is_constant : all rows are alike, so that the lists mean nothing.
    """

    indices: Tensor
    recall: float
    low: float
    high: float
    n_checked: int
    checked: Tensor
    exact: Tensor
    is_constant: bool
    method: str


@dataclass(frozen=True)
class ApproximateMutualKNN:
    """Mutual k-NN from approximate lists.

    statistic : the score of the lists; nan if all rows of one side are alike.
    recall_x, recall_y : measured recall of both sides.
    bias : mean of (overlap of the lists - overlap of the exact neighbours) / k on the checked rows.
    chance : k / (n - 1). n, k, n_checked : rows, neighbours, rows whose exact neighbours were computed.
    """

    statistic: float
    recall_x: float
    recall_y: float
    bias: float
    chance: float
    n: int
    k: int
    n_checked: int
    method: str

    @property
    def corrected(self) -> float:
        """(statistic - chance) / (1 - chance)."""
        return corrected(self.statistic, self.chance)


def approximate_nearest(
    x: Any,
    k: int = 10,
    similarity: str = "cosine",
    *,
    n_checked: int = 500,
    seed: int = 0,
    connectivity: int = 16,
    expansion: int = 128,
    threads: int = 0,
    block: int = BLOCK,
    progress: Progress = silent,
) -> Approximate:
    """The k nearest of every row, approximately, with the recall measured against exact search on a random sample.

    x : `Rows`, an array (n, d) or a pair (representation, layer), read in blocks; the index holds all rows in float32.
    connectivity, expansion : links per row, and candidates that are kept while building and searching; more of either
        raises recall and time.
    threads : 0 for all cores. With more than one, lists differ a little from run to run; the recall is of this run.

    Raises RepalignError if the library is missing, unless n > k >= 1, and at a row that is not finite.
    """
    k, n_checked = as_count("k", k), as_count("n_checked", n_checked)
    check_choice("similarity", similarity, SIMILARITIES)
    index_class = _index_class()
    rows = as_rows(*x) if isinstance(x, tuple) else as_rows(x, name="x")
    rows, _ = paired_rows(rows, rows, k)
    checked = sample(rows.n, n_checked, seed)
    truth = nearest_of(rows, checked, k, similarity, block=block, progress=progress)
    index = index_class(
        ndim=rows.width,
        metric="l2sq" if similarity == "euclidean" else "ip",
        dtype="f32",
        connectivity=connectivity,
        expansion_add=expansion,
        expansion_search=max(expansion, k + 1),
    )
    indices = _searched(index, rows, k, similarity, threads, block, progress)
    hits = common(indices[checked], truth.indices).to(torch.float64) / k
    recall = float(hits.mean())
    low, high = wilson(recall, float(hits.var()) if len(hits) > 1 else 1.0, len(hits), rows.n, LEVEL)
    method = (
        f"approximate {similarity} neighbours (usearch, connectivity {connectivity}, expansion {expansion}), recall "
        f"{recall:.4f} [{low:.4f}, {high:.4f}] on {len(checked):,} of {rows.n:,} rows"
    )
    return Approximate(indices, recall, low, high, len(checked), checked, truth.indices, truth.is_constant, method)


def approximate_mutual_knn(
    x: Any, y: Any, k: int = 10, similarity: str = "cosine", **options: Any
) -> ApproximateMutualKNN:
    """Mutual k-NN of approximate lists, with their recall and the bias of the score on the checked rows.

    x, y as in `anchored_mutual_knn`; `options` are those of `approximate_nearest`. Lists of recall r on both sides lose
    matches, so the score is mostly too low.

    Raises RepalignError as `approximate_nearest` does, and if row counts or datasets differ.
    """
    left, right = paired_rows(x, y, as_count("k", k))
    a, b = (approximate_nearest(rows, k, similarity, **options) for rows in (left, right))
    statistic = float(common(a.indices, b.indices).sum()) / (k * left.n)
    on_checked = common(a.indices[a.checked], b.indices[b.checked]).sum() - common(a.exact, b.exact).sum()
    undefined = a.is_constant or b.is_constant
    return ApproximateMutualKNN(
        statistic=math.nan if undefined else statistic,
        recall_x=a.recall,
        recall_y=b.recall,
        bias=math.nan if undefined else float(on_checked) / (k * a.n_checked),
        chance=k / (left.n - 1),
        n=left.n,
        k=k,
        n_checked=a.n_checked,
        method=f"mutual k-NN of two sets of lists: x: {a.method}; y: {b.method}",
    )


def _index_class() -> Any:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise RepalignError(
            "approximate search needs the library usearch, which is not installed",
            expected="usearch",
            got="no such module",
            remedy="pip install 'repalign[ann]', or use anchored_mutual_knn, which needs nothing",
        ) from error
    return Index


def _searched(index: Any, rows: Rows, k: int, similarity: str, threads: int, block: int, progress: Progress) -> Tensor:
    """Fill the index, then look every row up; the row itself is taken out by its index."""
    origin, task = None, f"approximate neighbours in {rows.name}"
    progress(task, 0, 2 * rows.n)
    for start, features in read_checked(rows, block):
        if origin is None and similarity == "euclidean":
            origin = features.to(torch.float64).mean(dim=0)  # distances stay, their digits are not lost to an offset
        keys = np.arange(start, start + len(features))
        index.add(keys, _vectors(features, similarity, origin), threads=threads)
        progress(task, start + len(features), 2 * rows.n)
    found = torch.empty(rows.n, k, dtype=torch.int64)
    for start, features in read_checked(rows, block):
        matches = index.search(_vectors(features, similarity, origin), k + 1, threads=threads)
        fewest = int(np.min(matches.counts)) if len(features) > 1 else len(matches.keys)
        if fewest <= k:
            raise RepalignError(
                f"{rows.name}: the approximate search found too few neighbours of a row from {start:,} on",
                expected=f"{k + 1}, the row itself included",
                got=fewest,
                remedy="raise `expansion` or `connectivity`",
            )
        keys = torch.from_numpy(matches.keys.astype(np.int64)).reshape(len(features), -1)
        own = torch.arange(start, start + len(features))[:, None]
        kept = (keys == own).to(torch.int8).argsort(dim=1, stable=True)  # the row itself goes last, else the farthest
        found[start : start + len(features)] = keys.gather(1, kept[:, :k])
        progress(task, rows.n + start + len(features), 2 * rows.n)
    return found


def _vectors(features: Tensor, similarity: str, origin: Tensor | None) -> np.ndarray:
    if similarity == "cosine":
        features = unit_rows(features)
    elif origin is not None:
        features = features.to(torch.float64) - origin
    return features.to(torch.float32).numpy()
