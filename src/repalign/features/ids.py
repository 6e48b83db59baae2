"""Ids as texts: no null, no duplicate, nothing rounded; and which values could be ids."""

from __future__ import annotations

import datetime
import numbers
import re
import sys
import uuid
from collections.abc import Callable, Sequence
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
