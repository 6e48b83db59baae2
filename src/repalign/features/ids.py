"""Ids as texts: no null, no duplicate, nothing rounded; which values could be ids, and which rows they join."""

from __future__ import annotations

import datetime
import numbers
import re
import sys
import uuid
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from repalign.errors import RepalignError

NEARLY_ALL = 0.8  # of the rows have a value of their own
_MANTISSA = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24}
_OTHER = "name another column (--id NAME, ids=)"


def as_texts(values: Sequence[Any], what: str, name: str, dtype: str = "", start: int = 0) -> tuple[str, ...]:
    """Values as ids: whole numbers in decimal (also those that are stored as floats), times in ISO form, texts as they are.

    start : the row of the first of them.

    Raises RepalignError, naming the row, for a null, a duplicate, or what is no name.
    """
    out = tuple(_text(v, f"{what}: row {row} has {{}} in {name}", dtype) for row, v in enumerate(values, start))
    seen: dict[str, int] = {}
    for row, id_ in enumerate(out, start):
        if seen.setdefault(id_, row) != row:
            raise RepalignError(
                f"{what}: rows {seen[id_]} and {row} have the same id {id_!r} in {name}: ids do not fit the rows",
                expected=f"{len(out)} distinct ids", got=f"{len(out)} ids, {len(set(out))} distinct",
                remedy="name another column that tells the rows apart (--id NAME, ids=), or make these distinct",
            )
    return out


def _text(value: Any, where: str, dtype: str) -> str:
    """One value as an id; `where` has a place for what is wrong with it."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = where.format("an id that is no text")
            raise RepalignError(problem, expected="text, or bytes in UTF-8", got=repr(value[:40])) from error
    if _is_null(value) or (isinstance(value, str) and not value.strip()):
        raise RepalignError(
            where.format("no id"),
            expected="an id in every row: a null names nothing, and is not joined with other nulls", got="nothing",
            remedy=f"fill it in or leave the row out; or {_OTHER}",
        )
    if isinstance(value, str):
        if value != value.strip():
            raise RepalignError(
                where.format("an id with blanks around it"), expected="ids that other files can be joined on",
                got=repr(value), remedy="strip the ids: 'a ' and 'a' are two texts",
            )
        return str(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        number = float(value)
        if number.is_integer() and abs(number) < _MANTISSA.get(dtype, 2**53):
            return str(int(number))
        raise RepalignError(
            where.format("an id that is no whole number"),
            expected="a text or a whole number that is stored without rounding",
            got=f"{value!r}" + (f" ({dtype})" if dtype else ""), remedy=f"store ids as text or integers, or {_OTHER}",
        )
    if hasattr(value, "isoformat"):
        # Of a time, digits of a second without the zeros at their end, then the zone: as many as it has, whatever its unit.
        text, ends = value.isoformat(), re.compile(r"\.(\d*?)0*(?=\D|$)")
        return ends.sub(lambda end: f".{end[1]}" if end[1] else "", text, count=1) if isinstance(value, datetime.datetime) else text
    if isinstance(value, uuid.UUID):
        return str(value)
    got = f"{str(value)[:40]} ({type(value).__name__})"
    raise RepalignError(where.format("an id that is no name"), expected="a text or a whole number", got=got, remedy=_OTHER)


def _is_null(value: Any) -> bool:
    pandas = sys.modules.get("pandas")  # only if it is loaded can its NA be a value
    return value is None or (pandas is not None and value is pandas.NA) or bool(value != value)


def tells_apart(values: Callable[[], Sequence[Any]], kind: str, shape: Sequence[int]) -> bool:
    """Whether rows can be told by values; an odd null or duplicate is a fault of an id, not a sign that it is none."""
    if len(shape) != 1 or kind in ("boolean", "complex", "closed"):
        return False
    try:
        there = [v for v in values() if not _is_null(v)]
        whole = kind != "float" or all(float(v).is_integer() for v in there)
        return whole and len(set(there)) >= NEARLY_ALL * shape[0]
    except (TypeError, ValueError):  # arrays, lists and mappings in cells are no ids
        return False


def distinct(values: Sequence[Any]) -> bool:
    """Whether every row has a value, and no two are the same."""
    try:
        return all(v is not None for v in values) and len(set(values)) == len(values)
    except TypeError:  # what cannot be hashed is no id
        return False


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
