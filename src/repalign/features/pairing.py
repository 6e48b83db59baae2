"""How rows of several sources pair: by the ids that all have, or, where nothing could name them, by position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from repalign.errors import RepalignError
from repalign.features.rule import Found, names_of, option
from repalign.layers import Given


@dataclass(frozen=True)
class Joined:
    """The layers of every source with paired rows."""

    layers: tuple[dict[str, Given], ...]
    ids: tuple[str, ...] | None  # None if rows are paired by position
    how: tuple[str, ...]  # how the rows are paired, then a sentence for every source

    @property
    def n(self) -> int:
        return len(next(iter(self.layers[0].values())))


def join(sources: Sequence[Found]) -> Joined:
    """The rows whose id all sources have, in the order of the first; or row i with row i.

    Rows are paired by position if no source has anything that could be an id, if what could be one says the same in
    every row, or if the caller says `rows`. Raises RepalignError for everything else.
    """
    sentences = tuple(s.how for s in sources)
    if all(s.ids is not None for s in sources):
        ids, rows, how = match([(s.what, s.ids or ()) for s in sources])
        layers = []
        for source, index in zip(sources, map(torch.tensor, rows), strict=True):
            same = torch.equal(index, torch.arange(source.n))
            layers.append({name: x if same else x[index.to(x.device)] for name, x in source.layers.items()})
        return Joined(tuple(layers), ids, (how, *sentences))
    could, by_rows = [s.candidates for s in sources if s.candidates], [s.by_rows for s in sources]
    agreed = len(could) == len(sources) and all(s.ids is None for s in sources) and agree(could)
    if not all(by_rows) and not agreed and (could or any(s.ids is not None for s in sources)):
        raise _which_row(sources)
    if len({s.n for s in sources}) > 1:
        raise RepalignError(
            f"{' and '.join(s.what for s in sources)} have different numbers of rows",
            expected=f"row i of {'both' if len(sources) == 2 else 'all'} describing the same stimulus",
            got=", ".join(f"n = {s.n}" for s in sources),
            remedy="give every file ids, for instance a column id, an array ids, or FILE.ids.txt with one id per line",
        )
    why = f"{could[0][0].label} says the same in every row" if could else "nothing names the rows"
    how = f"row i of one is paired with row i of the other: {'as asked' if any(by_rows) else why}"
    return Joined(tuple(dict(s.layers) for s in sources), None, (how, *sentences))


def _which_row(sources: Sequence[Found]) -> RepalignError:
    """The error for rows that would be paired by position although a source may name them."""
    without = [s for s in sources if s.ids is None]
    columns = next((s.candidates[0].name for s in without if s.candidates), None)
    named = [(s.what, s.ids) for s in sources if s.ids is not None]
    got = [f"{what}: {len(ids)} ids ({', '.join(map(repr, ids[:3]))}{' ...' * (len(ids) > 3)})" for what, ids in named]
    got += [f"{s.what}: {f'which could be ids: {names_of(s.candidates)}' if s.candidates else 'no ids'}" for s in without]
    remedy = "give it ids: an array or column `id`, FILE.ids.txt with a line each, in Python {'x': array, 'ids': ids}"
    remedy = remedy if columns is None else f"say {option('id', columns)}"
    return RepalignError(
        f"{' and '.join(s.what for s in sources)}: which row belongs to which?",
        expected="ids in all of them, or in none", got="; ".join(got),
        remedy=f"{remedy}; or --rows (rows=True) if row i of all is the same stimulus",
    )


def agree(candidates: Sequence[Sequence[Any]]) -> bool:
    """Whether the blocks of one name say the same in every row of all sources, and none is a mere counter."""
    first = {block.name: block for block in candidates[0]}
    if any({block.name for block in others} != set(first) for others in candidates):
        return False
    for name, block in first.items():
        read = [list(b.values()) for others in candidates for b in others if b.name == name]
        numbers = read[0] if block.kind == "integer" and len(block.shape) == 1 and None not in read[0] else []
        counts = bool(numbers) and all(b - a == 1 for a, b in pairwise(numbers))
        if counts or any(r != read[0] for r in read):
            return False
    return True


def match(sources: Sequence[tuple[str, Sequence[str]]]) -> tuple[tuple[str, ...], list[list[int]], str]:
    """The ids that all sources (name, ids) have, in the order of the first; their rows in each source; and how in words."""
    row_of = [{id_: row for row, id_ in enumerate(ids)} for _, ids in sources]
    common = tuple(id_ for id_ in row_of[0] if all(id_ in rows for rows in row_of))
    known = set(common)
    first = {_loose(i): i for i in row_of[0] if i not in known}
    for (what, _), rows in zip(sources[1:], row_of[1:], strict=True):
        # Ids without a partner that differ from another's in the way they are written only: '007' and '7', 'A' and 'a'.
        twins = [(first[_loose(i)], i) for i in rows if i not in known and _loose(i) in first]
        twins = [(a, b) for a, b in twins if a != b]
        if twins:
            raise RepalignError(
                f"{sources[0][0]} and {what}: {len(twins)} ids differ only in how they are written",
                expected="one way to write an id", got=", ".join(f"{a!r} and {b!r}" for a, b in twins[:3]),
                remedy="write them alike; or leave these rows out of one file, if they are not the same stimuli",
            )
    if not common:
        raise RepalignError(
            f"{' and '.join(what for what, _ in sources)} have no id in common",
            expected=f"ids such as {next(iter(row_of[0]))!r}",
            got=" and ".join(repr(next(iter(rows))) for rows in row_of[1:]),
            remedy="name the column that all have (--id NAME, ids=), or pair row by row (--rows, rows=True)",
        )
    alone = [str(len(ids) - len(common)) for _, ids in sources]
    left = f"{', '.join(alone[:-1])} and {alone[-1]} rows have no partner and are left out"
    rows = [[of[id_] for id_ in common] for of in row_of]
    return common, rows, f"joined on {len(common)} ids; {left}"


def _loose(id_: str) -> str:
    """An id without what is easily written in two ways: case, zeros in front, a fraction of zero."""
    text = id_.strip().casefold()
    number = re.fullmatch(r"([+-]?)0*(\d+)(?:\.0*)?", text)
    return f"{number[1].replace('+', '')}{number[2]}" if number else text
