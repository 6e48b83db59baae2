"""Rows of several sources that belong together: by ids, or by position where nothing names them or the caller says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from repalign.errors import RepalignError
from repalign.features._ids import loose, names_of, shown_ids
from repalign.features._rule import Found
from repalign.features._table import option
from repalign.layers import Given


@dataclass(frozen=True)
class Joined:
    """The layers of every source with paired rows."""

    layers: tuple[dict[str, Given], ...]
    ids: tuple[str, ...] | None  # None where rows are paired by position
    how: tuple[str, ...]  # how the rows are paired, then a sentence for every source

    @property
    def n(self) -> int:
        return len(next(iter(self.layers[0].values())))


def join(sources: Sequence[Found]) -> Joined:
    """The rows whose id all sources have, in the order of the first; or row i with row i.

    Rows are paired by position where no source has anything that could be an id, where what could be one says the same in
    every row, or where the caller says `rows`. Raises RepalignError for everything else.
    """
    said = tuple(s.how for s in sources)
    if all(s.ids is not None for s in sources):
        layers, ids, how = _on_ids(sources)
        return Joined(layers, ids, (how, *said))
    _check_nameless(sources)
    counts = [s.n for s in sources]
    if len(set(counts)) > 1:
        raise RepalignError(
            f"{' and '.join(s.what for s in sources)} have different numbers of rows",
            expected=f"row i of {'both' if len(sources) == 2 else 'all'} describing the same stimulus",
            got=", ".join(f"n = {c}" for c in counts),
            remedy="give every file ids, for instance a column id, an array ids, or FILE.ids.txt with one id per line",
        )
    how = "row i of one is paired with row i of the other"
    agreed = [s.candidates for s in sources if s.candidates]
    why = "as asked" if any(s.by_rows for s in sources) else "nothing names the rows"
    if agreed and not any(s.by_rows for s in sources):
        why = f"{agreed[0][0].told} says the same in every row"
    return Joined(tuple(dict(s.layers) for s in sources), None, (f"{how}: {why}", *said))


def _on_ids(sources: Sequence[Found]) -> tuple[tuple[dict[str, Given], ...], tuple[str, ...], str]:
    row_of = [{id_: row for row, id_ in enumerate(s.ids or ())} for s in sources]
    ids = tuple(id_ for id_ in row_of[0] if all(id_ in rows for rows in row_of))
    _check_written_alike(sources, row_of, ids)
    if not ids:
        raise RepalignError(
            f"{' and '.join(s.what for s in sources)} have no id in common",
            expected=f"ids such as {next(iter(row_of[0]))!r}",
            got=" and ".join(repr(next(iter(rows))) for rows in row_of[1:]),
            remedy="name the column that all have (--id NAME, ids=), or pair row by row (--rows, rows=True)",
        )
    layers = []
    for source, rows in zip(sources, row_of, strict=True):
        index = torch.tensor([rows[id_] for id_ in ids])
        same = torch.equal(index, torch.arange(source.n))
        layers.append({name: x if same else x[index.to(x.device)] for name, x in source.layers.items()})
    alone = [s.n - len(ids) for s in sources]
    left = f"{', '.join(map(str, alone[:-1]))} and {alone[-1]} rows have no partner and are left out"
    return tuple(layers), ids, f"joined on {len(ids)} ids; {left}"


def _check_written_alike(sources: Sequence[Found], row_of: Sequence[dict[str, int]], common: Sequence[str]) -> None:
    """Refuse ids without a partner that differ from another's in the way they are written only: '007' and '7', 'A' and 'a'."""
    known = set(common)
    first = {loose(i): i for i in row_of[0] if i not in known}
    for source, rows in zip(sources[1:], row_of[1:], strict=True):
        twins = [(first[loose(i)], i) for i in rows if i not in known and loose(i) in first]
        twins = [(a, b) for a, b in twins if a != b]
        if twins:
            raise RepalignError(
                f"{sources[0].what} and {source.what}: {len(twins)} ids differ only in how they are written",
                expected="one way to write an id",
                got=", ".join(f"{a!r} and {b!r}" for a, b in twins[:3]),
                remedy="write them alike; or leave these rows out of one file, if they are not the same stimuli",
            )


def _check_nameless(sources: Sequence[Found]) -> None:
    """Refuse to pair by position what some source could name otherwise."""
    if all(s.by_rows for s in sources):
        return
    named = [s for s in sources if s.ids is not None]
    could = [s for s in sources if s.candidates]
    if not named and (not could or (len(could) == len(sources) and _agree(sources))):
        return
    without = [s for s in sources if s.ids is None]
    columns = next((s.candidates[0].name for s in without if s.candidates), None)
    got = [f"{s.what}: {len(s.ids or ())} ids ({shown_ids(s.ids or ())})" for s in named]
    got += [f"{s.what}: {f'which could be ids: {names_of(s.candidates)}' if s.candidates else 'no ids'}" for s in without]
    remedy = "give it ids: an array or column `id`, FILE.ids.txt with a line each, in Python {'x': array, 'ids': ids}"
    remedy = remedy if columns is None else f"say {option('id', columns)}"
    raise RepalignError(
        f"{' and '.join(s.what for s in sources)}: which row belongs to which?",
        expected="ids in all of them, or in none",
        got="; ".join(got),
        remedy=f"{remedy}; or --rows (rows=True) if row i of all is the same stimulus",
    )


def _agree(sources: Sequence[Found]) -> bool:
    """Whether a block of one name says the same in every row of all sources, and is no mere counter."""
    for block in sources[0].candidates:
        others = [next((c for c in s.candidates if c.name == block.name), None) for s in sources[1:]]
        if any(c is None for c in others):
            return False
        read = [list(b.values()) for b in [block, *(c for c in others if c)]]
        numbers = read[0] if block.kind == "integer" and len(block.shape) == 1 and None not in read[0] else []
        counts = bool(numbers) and all(b - a == 1 for a, b in pairwise(numbers))
        if counts or any(r != read[0] for r in read[1:]):
            return False
    return all({c.name for c in s.candidates} == {c.name for c in sources[0].candidates} for s in sources)
