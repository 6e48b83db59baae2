"""What questions about a vector index share: vectors and queries by id, exact lists, what lists have in common, intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repalign.errors import RepalignError, choose

if TYPE_CHECKING:
    from repalign.comparison.streaming import Rows

Array = np.ndarray[Any, np.dtype[np.float64]]
Lists = np.ndarray[Any, np.dtype[np.int64]]  # (queries, k) rows of an index, nearest first

METRICS = ("cosine", "dot", "euclidean")
LEVEL, RESAMPLES = 0.95, 2000
MOST = 2_000_000  # numbers of a block of work
HELD_OUT, MOST_HELD_OUT = 0.3, 1000  # of the vectors, which serve as queries where there are none


@dataclass(frozen=True, eq=False)
class Gallery:
    """Vectors (n, d) that are searched, exactly, in blocks."""

    rows: Array
    metric: str = "cosine"

    def __post_init__(self) -> None:
        choose("metric", self.metric, METRICS)

    @cached_property
    def blocks(self) -> Rows:
        """As `Rows`; in single precision where it holds every number."""
        import torch

        from repalign.comparison.streaming import ArrayRows

        narrow = self.rows.astype(np.float32)
        return ArrayRows(torch.from_numpy(narrow if np.array_equal(narrow, self.rows) else self.rows), "the index")

    def nearest(self, queries: Array, k: int, own: Sequence[int] | None = None) -> Lists:
        """The k nearest rows (q, k) to each query (q, d), nearest first, ties by lower index.

        own : the row that each query is, which is left out; -1 for those that are none.

        >>> Gallery(np.eye(3)).nearest(np.array([[3.0, 2.0, 1.0]]), 2).tolist()
        [[0, 1]]
        """
        if not 1 <= k < len(self.rows):
            raise RepalignError(f"k = {k} neighbours among {len(self.rows):,} vectors", expected=f"1 to {len(self.rows) - 1}",
                                got=k, remedy="take a smaller k, or more vectors")  # fmt: skip
        return self.ordered(nearest_in(self.blocks, queries, k, self.metric, own), queries)

    def ordered(self, lists: Lists, queries: Array) -> Lists:
        """The rows of each list by their similarity to the query in double precision, nearest first, ties by lower index."""
        out = np.empty_like(lists)
        step = max(1, MOST // (lists.shape[1] * self.rows.shape[1]))
        for start in range(0, len(lists), step):
            block, rows = lists[start : start + step], self.rows[lists[start : start + step]]
            similarity = np.einsum("qkd,qd->qk", rows, queries[start : start + step])
            squared = np.einsum("qkd,qkd->qk", rows, rows)
            if self.metric == "cosine":
                similarity /= np.sqrt(np.maximum(squared, 1e-300))
            elif self.metric == "euclidean":
                similarity -= squared / 2
            size = np.maximum(np.abs(similarity).max(1, keepdims=True), 1e-300)
            order = np.lexsort((block, -np.round(similarity / size, 12)), axis=1)
            out[start : start + step] = np.take_along_axis(block, order, axis=1)
        return out


def nearest_in(rows: Rows, queries: Array, k: int, metric: str, own: Sequence[int] | None = None) -> Lists:
    """The k nearest of rows (n, d) to each query (q, d), as sets (q, k): exact, in one pass over blocks of the rows.

    own : the row that each query is, which is left out; -1 for those that are none.
    """
    import torch

    from repalign.comparison.anchors import nearest_of

    if queries.shape[1] != rows.width:
        raise RepalignError("queries and index are of different widths", expected=rows.width, got=queries.shape[1])
    dtype = torch.float64 if next(rows.blocks(1)).dtype == torch.float64 else torch.float32
    which = torch.full((len(queries),), -1) if own is None else torch.as_tensor(own)
    asked = torch.from_numpy(np.ascontiguousarray(queries)).to(dtype)
    return nearest_of(rows, which, k, metric, queries=asked).indices.numpy()


def in_common(a: Lists, b: Lists) -> Array:
    """The share of each list (q, k) that the other has too, (q,).

    >>> in_common(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 5]])).tolist()
    [1.0, 0.5]
    """
    both = np.sort(np.concatenate([a, b], axis=1), axis=1)
    return (both[:, 1:] == both[:, :-1]).sum(1) / a.shape[1]


def resampled(values: Array, seed: int = 0, resamples: int = RESAMPLES) -> Array:
    """Means (resamples, c) of each column of values (q, c) over queries drawn with replacement, the same draws for all columns."""
    q, generator = len(values), np.random.default_rng(seed)
    means, step = np.empty((resamples, values.shape[1])), max(1, MOST // q)
    columns = np.ascontiguousarray(values.T)
    for start in range(0, resamples, step):
        drawn = generator.integers(q, size=(min(step, resamples - start), q))
        for c, column in enumerate(columns):
            means[start : start + step, c] = column[drawn].mean(1)
    return means


def bounds(values: Array, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> tuple[Array, Array]:
    """The ends of an interval for the mean of each column of values (q, c): percentiles of `resampled`.

    Of paired values give the differences as a column.

    >>> low, high = bounds(np.arange(400.0)[:, None] % 2)
    >>> bool(0.44 < low[0] < 0.46 and 0.54 < high[0] < 0.56)
    True
    """
    return ends(resampled(values, seed, resamples), level)


def ends(means: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """Percentiles of each column that leave out as much on both sides."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def unit(x: Array) -> Array:
    """Rows of length 1; those of zeros stay.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)


# --- vectors by id ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Vectors:
    """Paired vectors: arrays (n, d), one of each source, their ids, and what was read in sentences."""

    arrays: tuple[Array, ...]
    ids: tuple[str, ...] | None
    how: tuple[str, ...]


def read_vectors(sources: Mapping[str, Any], layer: str | None = None, id: str | None = None) -> Vectors:
    """Vectors of files, stores or memory, paired by id; row by row only if nothing names them. `id` : the column of ids.

    layer : a name may be that of whole numbers too, such as codes of int8, which are vectors by that word.
    """
    from repalign.experiments.inputs import LAST, read_inputs
    from repalign.features import read_features

    def read(name: str, x: Any) -> Any:
        said = {} if id is None else {"id": id}
        if layer not in (None, LAST):
            with suppress(RepalignError):  # it is no block of this source: one of several layers in one, or of a store
                return read_features(x, name=name, vector=layer, **said)
        return read_features(x, name=name, **said) if said else x

    try:
        found = read_inputs({name: read(name, x) for name, x in sources.items()}, None if layer is None else [layer])
    except RepalignError as error:
        if "--vector" not in str(error):  # an option that others have
            raise
        told = re.sub(r"--vector (\S+) \(in Python [^`]*`[^`]*`\)", r"--layer \1", str(error))
        raise RepalignError(told) from error
    return Vectors(found.arrays, found.ids, found.how)


def remarks(name: str, x: Array, metric: str) -> list[str]:
    """What in vectors can mislead a search, in sentences."""
    out, norms = [], np.linalg.norm(x, axis=1)
    if zeros := int((norms == 0).sum()):
        out.append(f"{name}: {zeros:,} of {len(x):,} vectors are all zero, and are near nothing.")
    if metric == "dot" and norms.max() > 1.01 * max(float(norms.min()), 1e-300):
        out.append(f"{name}: lengths are {norms.min():.3g} to {norms.max():.3g}, and the dot product prefers the long ones.")
    if twice := len(x) - len({hash(row.tobytes()) for row in x}):
        out.append(f"{name}: {twice:,} of {len(x):,} vectors are copies of others; of copies the first counts as the nearest.")
    return out


def held_out(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stay in the index, and rows that serve as queries, where no queries are given."""
    count = min(MOST_HELD_OUT, round(HELD_OUT * n))
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[count:]), np.sort(order[:count])


def own_rows(queries: Array, ids: Sequence[str] | None, index: Array, index_ids: Sequence[str] | None) -> np.ndarray | None:
    """Where in the index each query stands that is one of its rows, by id and vector; -1 for the others. None if none is."""
    if ids is None or index_ids is None or queries.shape[1] != index.shape[1]:
        return None
    row = {one: i for i, one in enumerate(index_ids)}
    own = np.array([row.get(one, -1) for one in ids])
    own[~((index[own] == queries).all(1))] = -1  # two files may number their rows alike
    return own if (own >= 0).any() else None


def rank_biased_overlap(a: Lists, b: Lists, p: float = 0.9) -> Array:
    """RBO_ext of two ranked lists for each query, (q,): 1 for equal lists, and the first places count most.

    With X_d the entries that the first d of both have in common and depth k:
    X_k / k p^k + (1 - p) / p sum_d X_d / d p^d (Webber, Moffat and Zobel 2010, equation 32, for lists of one length).

    >>> rank_biased_overlap(np.array([[1, 2, 3]]), np.array([[1, 2, 3]])).round(12).tolist()
    [1.0]
    """
    k, out = a.shape[1], np.empty(len(a))
    depths = np.arange(1, k + 1)
    weights = (1 - p) / p * p**depths / depths
    weights[-1] += p**k / k
    step, place = max(1, MOST // k**2), np.maximum(depths[:, None], depths[None, :]) - 1
    for start in range(0, len(a), step):
        same = a[start : start + step, :, None] == b[start : start + step, None, :]
        query, i, j = np.nonzero(same)
        deepest = np.zeros((len(same), k))
        np.add.at(deepest, (query, place[i, j]), 1)
        out[start : start + step] = deepest.cumsum(1) @ weights
    return out


# --- judged answers --------------------------------------------------------------------------------

Grades = Sequence[Mapping[int, float]]  # for each query the grades of rows of the index


def read_grades(path: Path, queries: Sequence[str] | None, rows: Sequence[str] | None) -> Grades:
    """The grades of a table with the columns query, id and grade, as rows of the index; of what is not in the index none.

    Raises RepalignError where queries or vectors have no ids, for a grade that is no number or below 0, and if nothing is graded.
    """
    from repalign.tables import read_table

    names = ("query", "id", "grade")
    table = read_table(path, names, "grades")
    for name in names:
        choose("column", name, table.columns, f"{path}: no column {name!r}")
    if queries is None or rows is None:
        raise RepalignError(f"{path}: grades need ids", expected="ids of queries and of vectors", got="rows without ids",
                            remedy="give files with a column id")  # fmt: skip
    row_of, query_of = ({one: i for i, one in enumerate(ids)} for ids in (rows, queries))
    out: list[dict[int, float]] = [{} for _ in queries]
    for number, row in enumerate(table.rows):
        try:
            grade = float(row["grade"])
        except (TypeError, ValueError):
            grade = math.nan
        if not 0 <= grade < math.inf:
            raise RepalignError(f"{path}: row {number} has no grade", expected="a number, 0 or more", got=row["grade"])
        query, at = query_of.get(str(row["query"])), row_of.get(str(row["id"]))
        if query is not None and at is not None:
            out[query][at] = grade
    if not any(grade > 0 for one in out for grade in one.values()):
        raise RepalignError(f"{path}: no answer to these queries is graded above 0", expected=f"queries such as {queries[0]!r} and "
                            f"ids such as {rows[0]!r}", got=f"{len(table.rows):,} rows")  # fmt: skip
    return out


def ndcg(lists: Lists, grades: Grades) -> Array:
    """nDCG of lists (q, k): sum of grade / log2(1 + place), over that of the best order; nan for a query without a good answer.

    >>> float(ndcg(np.array([[0, 1]]), [{1: 1.0}])[0].round(4))
    0.6309
    """
    k = lists.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))
    gains = np.array([[of.get(int(row), 0.0) for row in some] for some, of in zip(lists, grades, strict=True)])
    best = np.array([sum(g * w for g, w in zip(sorted(of.values(), reverse=True), discount, strict=False)) for of in grades])
    return np.divide(gains @ discount, best, out=np.full(len(lists), np.nan), where=best > 0)


def reciprocal_rank(lists: Lists, grades: Grades) -> Array:
    """1 / place of the first answer that is graded above 0, 0 if none is in the list; nan for a query without a good answer.

    >>> reciprocal_rank(np.array([[0, 1]]), [{1: 1.0}]).tolist()
    [0.5]
    """
    good = np.array([[of.get(int(row), 0.0) > 0 for row in some] for some, of in zip(lists, grades, strict=True)])
    known = np.array([any(grade > 0 for grade in of.values()) for of in grades])
    found = np.where(good.any(1), 1 / (1 + good.argmax(1)), 0.0)
    return np.where(known, found, np.nan)
