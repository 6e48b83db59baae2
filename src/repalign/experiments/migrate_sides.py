"""What a change of embedding models is judged on: vectors of today, anchors in both models, queries; read, and paired by id.

Old vectors in a Parquet file are never held: they go by piece by piece, once to find the anchors and once as they are searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.experiments.retrieval import Array, Grades, Vectors, held_out, own_rows, read_vectors, remarks, unit
from repalign.text import named

if TYPE_CHECKING:
    from torch import Tensor

    from repalign.comparison.streaming import Rows
    from repalign.features.columns import Pieces

FEWEST_ANCHORS = 8
PIECE = 8192  # rows of a file that are in memory at a time


@dataclass(frozen=True, eq=False)
class Sides:
    """What is compared: the vectors of today, the anchors in both models, the queries in both.

    everything : all old vectors (n, d_old), an array or `Rows`. old, new : the anchors, (m, d_old) and (m, d_new). queries_old may
    be missing. own_everything, own : where queries are rows of these themselves, -1 where they are none. grades : of answers among
    the anchors, if some are judged.
    """

    everything: Array | Rows
    old: Array
    new: Array
    queries_old: Array | None
    queries_new: Array
    metric: str = "cosine"
    own_everything: np.ndarray | None = None
    own: np.ndarray | None = None
    ids: tuple[str, ...] | None = None
    query_ids: tuple[str, ...] | None = None
    grades: Grades | None = None

    @property
    def n(self) -> int:
        """How many old vectors there are."""
        return len(self.everything) if isinstance(self.everything, np.ndarray) else self.everything.n

    @property
    def seen(self) -> tuple[Array, Array]:
        """The anchors as a search by this metric sees them, new and old: what adapters are fitted on."""
        return (unit(self.new), unit(self.old)) if self.metric == "cosine" else (self.new, self.old)


@dataclass(frozen=True, eq=False)
class Without:
    """`Rows` that some rows are left out of."""

    rows: Rows
    gone: np.ndarray

    @property
    def name(self) -> str:
        return self.rows.name

    @property
    def n(self) -> int:
        return self.rows.n - len(self.gone)

    @property
    def width(self) -> int:
        return self.rows.width

    def blocks(self, size: int) -> Iterator[Tensor]:
        import torch

        start = 0
        for block in self.rows.blocks(size):
            here = self.gone[(self.gone >= start) & (self.gone < start + len(block))] - start
            stay = torch.ones(len(block), dtype=torch.bool)
            stay[torch.from_numpy(here)] = False
            start += len(block)
            yield block[stay]


@dataclass(frozen=True, eq=False)
class _Index:
    """The old vectors, and those of them that are anchors: `old` and `new` in the order of the index, their ids and rows.

    own_rows : where in the index queries (q, d) of these ids stand, as `retrieval.own_rows` says it.
    """

    everything: Array | Rows
    old: Array
    new: Array
    ids: tuple[str, ...] | None
    rows: np.ndarray
    own_rows: Callable[[Array, Sequence[str] | None], np.ndarray | None]
    without: int  # new vectors that have no old one


def read_sides(
    old: Any, new: Any, queries_old: Any, queries_new: Any, layer: str | None, id: str | None, k: int, metric: str, seed: int
) -> tuple[Sides, list[str]]:
    """The sides of the comparison from what was given, and what is to be told of them."""
    if queries_old is not None and queries_new is None:
        raise RepalignError("queries in the old model alone tell nothing of the new one", expected="queries_new too, or neither",
                            got="queries_old", remedy="give --queries-new")  # fmt: skip
    index, notes = _read_index(old, new, layer, id), []
    if index.without:
        notes.append(f"{index.without:,} new vectors have no old one by their id, and are left out.")
    if queries_new is None:
        sides = _held_out(index, metric, seed)
        notes.append(f"No queries were given: {len(sides.queries_new):,} anchors are held out as queries. Real queries may be "
                     "unlike them.")  # fmt: skip
    else:
        given = {"the new queries": queries_new, **({} if queries_old is None else {"the old queries": queries_old})}
        read = read_vectors(given, layer, id)
        q_new, q_old = read.arrays[0], None if queries_old is None else read.arrays[1]
        if q_old is None:
            notes.append("There are no queries in the old model: what today's answers are, and fidelity to them, is left out.")
        _refuse_widths(index, q_old, q_new)
        own = own_rows(q_new, read.ids, index.new, index.ids)
        if own is not None:
            notes.append(f"{int((own >= 0).sum()):,} queries are vectors of the index: each is left out of its own answers.")
        own_everything = None if q_old is None else index.own_rows(q_old, read.ids)
        sides = Sides(index.everything, index.old, index.new, q_old, q_new, metric, own_everything, own, index.ids, read.ids)
    m, q = len(sides.old), len(sides.queries_new)
    if m < FEWEST_ANCHORS or m <= k or q < 2 or k < 1:
        raise RepalignError("too few vectors", expected=f"{max(FEWEST_ANCHORS, k + 1)} anchors in both models, k of 1 or more, "
                            "and two queries", got=f"{m:,} anchors, k = {k}, {q:,} queries")  # fmt: skip
    notes += [*remarks("Old vectors", sides.old, metric), *remarks("New vectors", sides.new, metric)]
    if sides.n > m:
        notes.append(f"What is new is searched among the {m:,} anchors alone: the other {sides.n - m:,} have no new vectors.")
    return sides, notes


def _held_out(index: _Index, metric: str, seed: int) -> Sides:
    """Some anchors as queries, which then are no rows of the index."""
    stay, out = held_out(len(index.old), seed)
    gone, whole = index.rows[out], index.everything
    rest = np.delete(whole, gone, axis=0) if isinstance(whole, np.ndarray) else Without(whole, np.sort(gone))
    ids, query_ids = (None if index.ids is None else tuple(index.ids[i] for i in some) for some in (stay, out))
    old, new = index.old, index.new
    return Sides(rest, old[stay], new[stay], old[out], new[out], metric, None, None, ids, query_ids)


def _refuse_widths(index: _Index, q_old: Array | None, q_new: Array) -> None:
    for what, x, y in (("old", index.old, q_old), ("new", index.new, q_new)):
        if y is not None and x.shape[1] != y.shape[1]:
            raise RepalignError(f"the {what} queries and the {what} vectors are of different widths", expected=f"{x.shape[1]}",
                                got=f"{y.shape[1]}", remedy="give vectors of one model for each")  # fmt: skip


# --- the index -------------------------------------------------------------------------------------


def _read_index(old: Any, new: Any, layer: str | None, id: str | None) -> _Index:
    from repalign.features import file_pieces

    pieces, sample = file_pieces(old, layer, id), None
    if pieces is not None:
        sample = read_vectors({"the new sample": new}, layer, id)
    if pieces is not None and sample is not None and sample.ids is not None:
        return _from_pieces(pieces, sample)
    everything = read_vectors({"the old vectors": old}, layer, id)
    pairs = read_vectors({"the old vectors": old, "the new sample": new}, layer, id)
    rows, (a, b) = everything.arrays[0], pairs.arrays
    if pairs.ids is None:
        at = np.arange(len(a))
    else:
        row_of = {one: i for i, one in enumerate(everything.ids or ())}
        at = np.array([row_of[one] for one in pairs.ids])
    count = len(a) if sample is None else len(sample.arrays[0])
    return _Index(rows, a, b, pairs.ids, at, lambda q, ids: own_rows(q, ids, rows, everything.ids), count - len(a))


def _from_pieces(pieces: Pieces, sample: Vectors) -> _Index:
    """One pass over a file: its vectors with the ids of the sample, and that no id is there twice."""
    from repalign.features.pairing import match

    (new,), wanted = sample.arrays, {one: i for i, one in enumerate(sample.ids or ())}
    ids, vectors, rows, start = [], [], [], 0
    hashes, first = np.empty(pieces.n, dtype=np.int64), ()  # 8 bytes of each id, in place of the id
    for names, block in pieces.pieces(PIECE):
        first = first or names
        hashes[start : start + len(names)] = [hash(one) for one in names]
        here = [i for i, one in enumerate(names) if one in wanted]
        ids += [names[i] for i in here]
        vectors.append(block[here].double().numpy())
        rows += [start + i for i in here]
        start += len(names)
    if (twice := start - len(np.unique(hashes))) > 0:
        raise RepalignError(f"{pieces.name}: ids do not fit the rows", expected=f"{start:,} distinct ids in column {pieces.id}",
                            got=f"{twice:,} that are there twice", remedy="make them distinct, or name another column")  # fmt: skip
    if not ids:
        match([(pieces.name, first), ("the new sample", sample.ids or ())])
    old = np.concatenate(vectors)
    if not np.isfinite(old).all():
        raise RepalignError(f"{pieces.name}: NaN or infinite values", expected="every entry finite", got="vectors of anchors "
                            f"{named([one for one, x in zip(ids, old, strict=True) if not np.isfinite(x).all()], 3)}")  # fmt: skip

    def own(queries: Array, query_ids: Sequence[str] | None) -> np.ndarray | None:
        asked = {one: i for i, one in enumerate(query_ids or ())}
        if query_ids is None or queries.shape[1] != pieces.width:
            return None
        out, at = np.full(len(queries), -1), 0
        for names, block in pieces.pieces(PIECE):
            for i, one in enumerate(names):
                if (q := asked.get(one)) is not None and np.array_equal(block[i].double().numpy(), queries[q]):
                    out[q] = at + i
            at += len(names)
        return out if (out >= 0).any() else None

    at = [wanted[one] for one in ids]
    return _Index(pieces, old, new[at], tuple(ids), np.array(rows), own, len(new) - len(ids))


# --- tables beside the vectors ---------------------------------------------------------------------


def read_columns(path: Path, columns: Sequence[str], what: str) -> tuple[list[str], ...]:
    """Columns of texts of a table. Raises RepalignError where one is missing or has an empty cell."""
    from repalign.tables import column_of, read_table

    table = read_table(path, columns, what)
    for name in columns:
        choose("column", name, table.columns, f"{path}: no column {name!r}")
    return tuple(column_of(table, name, str(path), name) for name in columns)


def read_groups(path: Path, query_ids: Sequence[str] | None) -> list[str]:
    """The group of each query, of a table with the columns query and group. RepalignError for queries without one."""
    _need_ids(path, query_ids, "groups need the ids of queries")
    group_of: Mapping[str, str] = dict(zip(*read_columns(path, ("query", "group"), "groups"), strict=True))
    if without := [one for one in query_ids or () if one not in group_of]:
        raise RepalignError(f"{path}: {len(without):,} queries have no group", expected="a row for each query",
                            got=f"none for {named(without, 3)}")  # fmt: skip
    return [group_of[one] for one in query_ids or ()]


def read_positives(path: Path, ids: Sequence[str] | None) -> np.ndarray:
    """Pairs of anchors (p, 2) that mean the same, of a table with the columns a and b; pairs that are no anchors are left out."""
    _need_ids(path, ids, "positives need the ids of vectors")
    row_of = {one: i for i, one in enumerate(ids or ())}
    pairs = list(zip(*read_columns(path, ("a", "b"), "positives"), strict=True))
    found = [(row_of[a], row_of[b]) for a, b in pairs if a in row_of and b in row_of and a != b]
    if not found:
        raise RepalignError(f"{path}: no pair of it is among the anchors", expected=f"ids such as {(ids or ('',))[0]!r}",
                            got=f"{len(pairs):,} pairs")  # fmt: skip
    return np.array(found)


def _need_ids(path: Path, ids: Sequence[str] | None, problem: str) -> None:
    if ids is None:
        raise RepalignError(f"{path}: {problem}", expected="files with a column id", got="rows without ids")
