"""Mutual k-NN at any n from a sample of anchor rows, and as n grows.

The score is a mean over rows, s = (1 / n) sum_i |N_X(i) & N_Y(i)| / k. A simple random sample of rows whose neighbours
are taken among all n therefore estimates it without bias, at the gallery size n; a sample of the gallery would not,
because scores change with n (`gallery_curve`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repalign.comparison.streaming import BLOCK, ArrayRows, Rows, paired_layers, paired_rows
from repalign.errors import RepalignError, choose
from repalign.measures.measure import GraphRelation, as_count
from repalign.measures.numerics.precision import full_precision
from repalign.measures.numerics.rows import power_of_two, unit_resolution, unit_rows
from repalign.measures.numerics.search import SIMILARITIES, Best, first_with_ties
from repalign.representation import Representation, ahead
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from repalign.measures.neighbors import MutualKNN

# Rows of smaller norm may hold numbers so small that single precision has lost some of their digits.
_TINY = 1e-30
# Products of larger rows could overflow in single precision.
_HUGE = 1e15


@dataclass(frozen=True)
class Anchored:
    """Mutual k-NN of two layers, estimated from anchors.

    statistic : mean overlap of the anchors; nan if all rows of one side are alike.
    low, high : interval for the exact score at this n, at confidence `level`.
    chance : expected score under a random pairing of the rows, k / (n - 1), exactly.
    n, n_anchors, k, seed : rows, anchors, neighbours, and the seed of the sample.
    method : what was computed, in a sentence.
    """

    statistic: float
    low: float
    high: float
    level: float
    chance: float
    n: int
    n_anchors: int
    k: int
    seed: int
    method: str

    @property
    def corrected(self) -> float:
        """(statistic - chance) / (1 - chance): 0 at chance, 1 for equal neighbours."""
        return corrected(self.statistic, self.chance)


def corrected(statistic: float, chance: float) -> float:
    """(s - chance) / (1 - chance); nan where chance is 1."""
    return (statistic - chance) / (1 - chance) if chance < 1 else math.nan


def anchored_mutual_knn(
    x: Any, y: Any, k: int = 10, similarity: str = "cosine", n_anchors: int = 2000, seed: int = 0, level: float = 0.95,
    *, block: int = BLOCK, device: str | torch.device = "cpu", progress: Progress = silent,
) -> Anchored:  # fmt: skip
    """Mutual k-NN of two layers at any n: n_anchors rows, drawn without replacement, searched against all n.

    x, y : `Rows`, arrays (n, d1) and (n, d2) (numpy, memory maps, tensors), or pairs (representation, layer). They are
        read in blocks, once per side, and once more where near ties need float64. With n_anchors >= n every row is an
        anchor and the result equals `MutualKNN(k, similarity)`.

    The interval is Wilson's, with the sample's variance in the place of a proportion's: all s with
    |m - s| <= t sqrt(f v s (1 - s) / a), a anchors of mean m and variance V, v = min(1, V / (m (1 - m))) (1 if m is 0
    or 1), f = 1 - a / n for sampling without replacement, t Student's quantile with a - 1 degrees of freedom.

    Raises RepalignError unless n > k >= 1, n_anchors >= 2 and 0 < level < 1, if row counts or datasets differ, or at a
    row that is not finite.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 8))
    >>> r = anchored_mutual_knn(x, 3 * x, n_anchors=50)
    >>> r.statistic, round(r.chance, 4), r.n
    (1.0, 0.02, 500)
    """
    return anchored_all([x], [y], k, similarity, n_anchors, seed, level, block=block, device=device, progress=progress)[0][0]


def anchored_all(
    xs: Representation | Sequence[Any], ys: Representation | Sequence[Any], k: int, similarity: str = "cosine",
    n_anchors: int = 2000, seed: int = 0, level: float = 0.95, *, block: int = BLOCK, device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[list[Anchored]]:  # fmt: skip
    """`anchored_mutual_knn` of all layers of x with all of y; the neighbours of each layer are searched for once."""
    k, n_anchors = as_count("k", k), as_count("n_anchors", n_anchors)
    choose("similarity", similarity, SIMILARITIES)
    if n_anchors < 2 or not 0 < level < 1:
        raise RepalignError(
            "an interval needs two anchors and a level between 0 and 1", expected="n_anchors >= 2 and 0 < level < 1",
            got=f"n_anchors = {n_anchors}, level = {level}",
        )  # fmt: skip
    sides = paired_rows(xs, ys)
    first, n = sides[0][0].name, sides[0][0].n
    if n <= k:
        raise RepalignError(
            f"{first}: too few stimuli for k = {k} neighbours", expected=f"n >= {k + 1}", got=f"n = {n}",
            remedy="use more stimuli, or a smaller k",
        )  # fmt: skip
    anchors = sample(n, n_anchors, seed)
    a, b = ([nearest_of(r, anchors, k, similarity, block=block, device=device, progress=progress) for r in s] for s in sides)
    method = f"mutual k-NN, {len(anchors):,} anchors among n = {n:,} rows, exact {similarity} neighbours, seed {seed}"

    def of(one: Found, other: Found) -> Anchored:
        statistic = low = high = math.nan
        if not (one.is_constant or other.is_constant):
            overlap = common(one.indices, other.indices).to(torch.float64)
            statistic = float(overlap.sum()) / (k * len(anchors))
            low, high = wilson(statistic, float(overlap.var()) / k**2, len(anchors), n, level)
        return Anchored(statistic, low, high, level, k / (n - 1), n, len(anchors), k, seed, method)

    return [[of(one, other) for other in b] for one in a]


def sample(n: int, size: int, seed: int) -> Tensor:
    """`size` of n rows without replacement, in order; all of them if size >= n."""
    drawn = np.random.default_rng(seed).choice(n, size=min(size, n), replace=False, shuffle=False)
    return torch.from_numpy(np.sort(drawn))


def common(a: Tensor, b: Tensor) -> Tensor:
    """How many entries two lists (r, k) of distinct indices have in common, per row."""
    both = torch.cat([a, b], dim=1).sort(dim=1).values
    return (both[:, 1:] == both[:, :-1]).sum(dim=1)


def wilson(mean: float, variance: float, size: int, n: int, level: float) -> tuple[float, float]:
    """The interval of `anchored_mutual_knn` for a mean of `size` of n values in [0, 1]."""
    from scipy.stats import t

    spread = min(1.0, variance / (mean * (1 - mean))) if 0 < mean < 1 else 1.0
    c = float(t.ppf((1 + level) / 2, size - 1)) ** 2 * (1 - size / n) * spread / size
    middle, half = mean + c / 2, math.sqrt(c * mean * (1 - mean) + c * c / 4)
    return max(0.0, (middle - half) / (1 + c)), min(1.0, (middle + half) / (1 + c))


# --- exact neighbours of a few rows among all rows of a layer that is read in blocks -------------


@dataclass(frozen=True, eq=False)
class Found:
    """The k nearest of some rows; `is_constant` if all rows of the layer are alike, so that they mean nothing."""

    indices: Tensor  # (a, k) int64, on the CPU
    is_constant: bool


def nearest_of(
    rows: Rows, which: Tensor, k: int, similarity: str, *, queries: Tensor | None = None, block: int = BLOCK,
    device: str | torch.device = "cpu", progress: Progress = silent,
) -> Found:  # fmt: skip
    """The k nearest (as a set, ties by lower index) of the rows `which` (a,) among all n rows, themselves left out.

    queries : points (a, d) that are searched for in place of the rows `which`, which still are left out: -1 where there is none.

    One pass with products in float32 (float64 for float64 features) keeps the best k + 1 of each. Rows whose k-th and
    next are closer than rounding can tell apart are searched again in a second, float64 pass. Memory: the a rows, a
    block of rows, and a x block products.
    """
    space = _Space(similarity, (taken(rows, which) if queries is None else queries).to(device))
    which = which.to(device)
    task = f"neighbours in {rows.name}"
    progress(task, 0, rows.n)
    best = Best.of(len(which), k + 1, space.queries.to(space.dtype))
    for start, features in read_checked(rows, block, device):
        with full_precision():
            best.offer(0, space.similarity(which, start, features, space.dtype), start)
        progress(task, start + len(features), rows.n)
    gap = best.values[:, k - 1] - best.values[:, k]
    again = torch.nonzero(gap <= space.resolution(space.dtype)).flatten()
    found = best.indices[:, :k].clone()
    if len(again):
        progress(task, rows.n, rows.n, f"{len(again)} rows have near ties: one more pass, in float64")
        found[again] = _settled(rows, space.of(again), which[again], k, block, device)
    return Found(found.cpu(), space.is_constant)


def taken(rows: Rows, which: Tensor) -> Tensor:
    """The rows `which`, (a, d): float64 stays, all else is float32."""
    if isinstance(rows, ArrayRows):
        at = which.to(rows.array.device) if isinstance(rows.array, Tensor) else which.numpy()
        picked = ArrayRows(rows.array[at], rows.name)
        return _checked(next(picked.blocks(len(which))), rows.name, None)
    out, order = [], which.argsort()
    ordered = which[order]
    for start, features in read_checked(rows, BLOCK):
        inside = (ordered >= start) & (ordered < start + len(features))
        out.append(features[ordered[inside] - start])
    return torch.cat(out)[order.argsort()]


class _Space:
    """Queries, and how blocks of features become comparable with them."""

    def __init__(self, similarity: str, queries: Tensor) -> None:
        self.kind, self.dtype = similarity, queries.dtype
        wide = queries.to(torch.float64)
        # Euclidean distances do not change with the origin, but their digits do; any point amid the rows will do.
        self.origin = wide.mean(dim=0) if similarity == "euclidean" else None
        if self.origin is not None:
            wide = wide - self.origin
        self.scale = 1.0 if similarity == "cosine" else float(power_of_two(wide.abs().amax()))
        self.queries = unit_rows(wide) if similarity == "cosine" else wide / self.scale
        self.largest = 1.0 if similarity == "cosine" else 0.0  # norm of all rows seen
        self.first: Tensor | None = None
        self.is_constant = True

    def of(self, some: Tensor) -> _Space:
        """The same space for some of the queries."""
        other = copy.copy(self)
        other.queries = self.queries[some]
        return other

    def similarity(self, which: Tensor, start: int, features: Tensor, dtype: torch.dtype) -> Tensor:
        """(a, b) values that order the rows `start`... of a block for each query; -inf at the query itself."""
        self._look(features)
        mapped = self._mapped(features, dtype)
        product = self.queries.to(dtype) @ mapped.to(dtype).T
        if self.kind != "cosine":
            squared = (mapped * mapped).sum(dim=1)
            self.largest = max(self.largest, math.sqrt(float(squared.max())))
            if self.largest > _HUGE:
                raise RepalignError(
                    "the rows differ too much in size for a search by blocks",
                    expected=f"norms up to {_HUGE:.0e} times the largest of the rows that are searched for",
                    got=f"{self.largest:.1e} times, in the block from row {start:,} on",
                    remedy="look for a faulty row, or use similarity='cosine'",
                )  # fmt: skip
            if self.kind == "euclidean":
                product -= (0.5 * squared).to(dtype)
        own = torch.nonzero((which >= start) & (which < start + len(features))).flatten()
        product[own, which[own] - start] = -math.inf
        return product

    def resolution(self, dtype: torch.dtype) -> Tensor:
        """Differences of similarity that `dtype` cannot tell from rounding, per query (a,)."""
        norms = torch.linalg.vector_norm(self.queries, dim=1)
        size = norms * self.largest + (self.largest**2 if self.kind == "euclidean" else 0.0)
        return unit_resolution(self.queries.shape[1], dtype) * size

    def _mapped(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        """Features of the space (b, d): float32 where nothing is lost by it, else float64."""
        if self.kind != "cosine":
            features = features.to(torch.float64)
            return (features if self.origin is None else features - self.origin) / self.scale
        if features.dtype == torch.float32:
            norms = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=torch.float64)
            if float(norms.min()) > _TINY:
                return features.to(dtype) / norms.to(dtype)
        return unit_rows(features)

    def _look(self, features: Tensor) -> None:
        """Whether a row differs from the first, as `Embedded.is_constant`; one block tells, but for constant layers."""
        if not self.is_constant:
            return
        rows = unit_rows(features) if self.kind == "cosine" else features
        self.first = rows[0].clone() if self.first is None else self.first
        limit = unit_resolution(rows.shape[1], torch.float64) if self.kind == "cosine" else 0.0
        self.is_constant = bool(((rows - self.first).to(torch.float64) ** 2).sum(dim=1).max() <= limit)


def _settled(rows: Rows, space: _Space, which: Tensor, k: int, block: int, device: str | torch.device) -> Tensor:
    """The k nearest of the rows `which` in float64, entries that float64 cannot tell apart by lower index."""
    slack = space.resolution(torch.float64)[:, None]
    values = space.queries.new_full((len(which), k), -math.inf)
    indices = torch.zeros(len(which), k, dtype=torch.int64, device=which.device)
    for start, features in read_checked(rows, block, device):
        similarity = space.similarity(which, start, features, torch.float64)
        most = min(similarity.shape[1], int((similarity >= values[:, -1:] - slack).sum(dim=1).max()))
        top = similarity.topk(most, dim=1)
        values = torch.cat([values, top.values], dim=1)
        indices = torch.cat([indices, top.indices + start], dim=1)
        values, indices = first_with_ties(values, indices, slack, k)
    return indices


def read_checked(rows: Rows, block: int, device: str | torch.device = "cpu") -> Iterator[tuple[int, Tensor]]:
    """(first row, block of features) with float64 as it is and all else in float32, checked."""
    start = 0
    for features in ahead(rows.blocks(block)):
        yield start, _checked(features, rows.name, start).to(device)
        start += len(features)


def _checked(features: Tensor, name: str, start: int | None) -> Tensor:
    features = features if features.dtype == torch.float64 else features.to(torch.float32)
    if math.isfinite(float(features.sum(dtype=torch.float64))):
        return features
    finite = torch.isfinite(features).all(dim=1)
    if not bool(finite.all()):
        at = "" if start is None else f", the first is row {start + int(torch.nonzero(~finite)[0])}"
        raise RepalignError(
            f"{name}: NaN or infinite values", expected="every entry finite",
            got=f"{int((~finite).sum())} rows with non-finite entries{at}",
            remedy="look for overflow in half precision, or leave these stimuli out of the dataset",
        )  # fmt: skip
    return features


# --- the same two spaces at more and more stimuli ------------------------------------------------

FIXED, SHARE = "fixed", "share"


def gallery_curve(
    x: Any, y: Any, k: int = 10, share: float | None = None, sizes: Sequence[int] | None = None, repeats: int = 5,
    seed: int = 0, similarity: str = "cosine", *, progress: Progress = silent,
) -> pd.DataFrame:  # fmt: skip
    """Mutual k-NN at gallery sizes n_j, once with k fixed and once with k a share of n_j.

    x, y : arrays (n, d1) and (n, d2), an `RDM` or a `Kernel`, or pairs (representation, layer).
    sizes : by default the powers of two from 10 k to n (n itself if there is none).
    share : k / n_j in the second mode, rounded to at least one neighbour; by default the one that gives k at the
        smallest size.
    repeats : random orders of the stimuli, each of which gives nested subsets, its first n_j (drawn without
        replacement). At n_j = n there is one subset only.

    With k fixed the score of two noisy views of one space falls as n grows: the k nearest lie ever closer together, and
    noise reorders them. With k a share of n it stays about level, at a coarser grain.

    Columns n, k, mode ("fixed" or "share"), statistic (mean over repeats), std (over repeats, nan for one), chance
    k / (n - 1), corrected (statistic - chance) / (1 - chance), n_repeats.

    Raises RepalignError for sizes that do not lie above k and up to n, a share not in (0, 1), or unpaired rows.
    """
    from repalign.measures.neighbors import MutualKNN

    k, repeats = as_count("k", k), as_count("repeats", repeats)
    first, second = paired_layers((x, y), "xy", MutualKNN(k=1, similarity=similarity))  # `_sizes` holds k against n
    n = len(first)
    sizes = _sizes(n, k, sizes)
    shares = _shares(sizes, k, share)
    scores: dict[tuple[int, str], list[float]] = {}
    progress("gallery sizes", 0, repeats * len(sizes))
    for repeat in range(repeats):
        order = torch.from_numpy(np.random.default_rng([seed, repeat]).permutation(n))
        for j, (size, many) in enumerate(zip(sizes, shares, strict=True)):
            if size < n or repeat == 0:
                measure = MutualKNN(k=max(k, many), similarity=similarity)
                states = [measure.prepare(f[order[:size]]) for f in (first, second)]
                scores.setdefault((size, FIXED), []).append(_score(measure, k, states))
                scores.setdefault((size, SHARE), []).append(_score(measure, many, states))
            progress("gallery sizes", repeat * len(sizes) + j + 1, repeats * len(sizes))
    rows = [
        _row(size, used, mode, scores[size, mode])
        for mode, counts in ((FIXED, [k] * len(sizes)), (SHARE, shares))
        for size, used in zip(sizes, counts, strict=True)
    ]
    return pd.DataFrame(rows)


def _sizes(n: int, k: int, sizes: Sequence[int] | None) -> list[int]:
    if sizes is None:
        sizes = [2**j for j in range(n.bit_length()) if 10 * k <= 2**j <= n] or [n]
    found = sorted({as_count("sizes", s) for s in sizes})
    if not found or found[0] <= k or found[-1] > n:
        raise RepalignError(
            "gallery sizes out of range", expected=f"k = {k} < size <= n = {n}", got=", ".join(map(str, found)) or "no size",
            remedy="use a smaller k, other sizes or more stimuli",
        )  # fmt: skip
    return found


def _shares(sizes: list[int], k: int, share: float | None) -> list[int]:
    """k at each size, a share of it."""
    share = k / sizes[0] if share is None else share
    if not 0 < share < 1:
        raise RepalignError("a share of the stimuli is a number between 0 and 1", expected="0 < share < 1", got=share)
    return [min(size - 1, max(1, round(share * size))) for size in sizes]


def _score(measure: MutualKNN, k: int, states: list[GraphRelation]) -> float:
    """The k nearest are the first k of more."""
    a, b = (replace(s, indices=s.indices[:, :k].contiguous()) for s in states)
    return replace(measure, k=k).compare(a, b)


def _row(n: int, k: int, mode: str, scores: list[float]) -> dict[str, Any]:
    mean, chance = float(np.mean(scores)), k / (n - 1)
    std = float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")
    row = {"n": n, "k": k, "mode": mode, "statistic": mean, "std": std, "chance": chance}
    return {**row, "corrected": corrected(mean, chance), "n_repeats": len(scores)}
