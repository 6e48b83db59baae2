"""Exact neighbours of a few rows among all rows of a layer that is read in blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from repalign.comparison.cost import BLOCK
from repalign.comparison.streams import ArrayRows, Rows, ahead
from repalign.errors import RepalignError
from repalign.measures.numerics.precision import full_precision, power_of_two, unit_resolution, unit_rows
from repalign.measures.numerics.search import Best, first_with_ties
from repalign.text import Progress, silent

# Rows of smaller norm may hold numbers so small that single precision has lost some of their digits.
_TINY = 1e-30

# Products of larger rows could overflow in single precision.
_HUGE = 1e15


@dataclass(frozen=True, eq=False)
class Found:
    """The k nearest of some rows; `is_constant` if all rows of the layer are alike, so that they mean nothing."""

    indices: Tensor  # (a, k) int64, on the CPU
    is_constant: bool


def nearest_of(
    rows: Rows,
    which: Tensor,
    k: int,
    similarity: str,
    *,
    block: int = BLOCK,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Found:
    """The k nearest (as a set, ties by lower index) of the rows `which` (a,) among all n rows, themselves left out.

    One pass with products in float32 (float64 for float64 features) keeps the best k + 1 of each. Rows whose k-th and
    next are closer than rounding can tell apart are searched again in a second, float64 pass. Memory: the a rows, a
    block of rows, and a x block products.
    """
    space = _Space(similarity, taken(rows, which).to(device))
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
    out: list[Tensor] = []
    order = which.argsort()
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
                )
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
            f"{name}: NaN or infinite values",
            expected="every entry finite",
            got=f"{int((~finite).sum())} rows with non-finite entries{at}",
            remedy="look for overflow in half precision, or leave these stimuli out of the dataset",
        )
    return features
