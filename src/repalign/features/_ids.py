"""Which block names the rows, and its values as texts: no null, no duplicate, nothing rounded."""

from __future__ import annotations

import datetime
import numbers
import re
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from repalign.errors import RepalignError
from repalign.features._table import Block, Reading, Table, listed, option

# "id", "ids", "ID", "image_id", "stimulus ids", "imageId", "sample_uid"; not "valid", "grid" or "centroid".
_EXACT = re.compile(r"ids?", re.I)
_ENDS = re.compile(r"(.*[\W_])?(ids?|uids?|uuids?|guids?)|.*[a-z](Ids?|IDs?)", re.S)
NEARLY_ALL = 0.8  # of the rows have a value of their own
_MANTISSA = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24}


def name_tier(block: Block) -> int | None:
    """How surely a block is called an id: 0 for ids that are declared or called just so, 1 for names that end in it."""
    if len(block.shape) != 1 or block.kind in ("boolean", "complex"):
        return None
    if block.says_rows or _EXACT.fullmatch(block.name):
        return 0
    if block.place != "index" and (_ENDS.fullmatch(block.name) or _ENDS.fullmatch(block.name.lower())):
        return 1
    return None


def choose_ids(table: Table, reading: Reading, features: Sequence[Block]) -> tuple[tuple[str, ...] | None, str, list[Block]]:
    """The ids, where they come from in words, and the blocks that they are; None where nothing is called so."""
    if reading.rows:
        return None, "rows by position, as asked", []
    if isinstance(reading.id, str):
        block = table.find(reading.id)
        return texts(block, table.what), f"ids: {block.told}", [block]
    if reading.id is not None:
        given = as_texts(list(reading.id), table.what, "ids")
        return given, "ids: as given", []
    others = [b for b in table.blocks if b not in features]
    for tier in (0, 1):
        found = [b for b in others if name_tier(b) == tier]
        if not found:
            continue
        if len(found) > 1 and tier == 1:  # what repeats cannot name the rows
            found = [b for b in found if _distinct(b)] or found
        if len(found) > 1:
            read = [texts(b, table.what) for b in found]
            if any(r != read[0] for r in read[1:]):
                raise RepalignError(
                    f"{table.what}: several things could be its ids, and they differ",
                    expected="one that names the rows",
                    got="; ".join(b.told for b in found),
                    remedy=f"say which, for instance {option('id', found[0].name)}; or --rows (rows=True) for row by row",
                )
        return texts(found[0], table.what), f"ids: {found[0].told}", found
    return None, "", []


def candidates(table: Table, n: int, used: Sequence[Block]) -> list[Block]:
    """What is not called an id and could be one: nearly a value of its own in every row; an index that no longer counts."""
    there = [b for b in table.blocks if b.shape[:1] == (n,) and n > 1 and b not in used and not b.counts]
    open_ = [b for b in there if len(b.shape) == 1 and b.kind not in ("boolean", "complex", "closed")]
    return [b for b in there if b.place == "index" or (b in open_ and _tells_apart(b))]


def _tells_apart(block: Block) -> bool:
    """Whether rows can be told by the values; an odd null or duplicate is a fault of an id, not a sign that it is none."""
    try:
        values = [v for v in block.values() if v is not None and v is not _null() and v == v]
        whole = block.kind != "float" or all(float(v).is_integer() for v in values)
        return whole and len(set(values)) >= NEARLY_ALL * block.shape[0]
    except (TypeError, ValueError):  # arrays, lists and mappings in cells are no ids
        return False


def _distinct(block: Block) -> bool:
    values = block.values()
    try:
        return all(v is not None for v in values) and len(set(values)) == len(values)
    except TypeError:  # what cannot be hashed is no id
        return False


def texts(block: Block, what: str) -> tuple[str, ...]:
    """The values of a block as ids; RepalignError names the row of a null, a duplicate, or of what is no name."""
    if len(block.shape) != 1:
        raise RepalignError(
            f"{what}: {block.told} cannot name the rows", expected="one value per row", got=f"shape {block.shape}"
        )
    return as_texts(block.values(), what, block.name, block.dtype)


def as_texts(values: Sequence[Any], what: str, name: str, dtype: str = "") -> tuple[str, ...]:
    """Values as ids: whole numbers in decimal (also those that are stored as floats), times in ISO form, texts as they are."""
    out = tuple(_text(v, row, what, name, dtype) for row, v in enumerate(values))
    seen: dict[str, int] = {}
    for row, id_ in enumerate(out):
        if seen.setdefault(id_, row) != row:
            raise RepalignError(
                f"{what}: rows {seen[id_]} and {row} have the same id {id_!r} in {name}: ids do not fit the rows",
                expected=f"{len(out)} distinct ids",
                got=f"{len(out)} ids, {len(set(out))} distinct",
                remedy="name another column that tells the rows apart (--id NAME, ids=), or make these distinct",
            )
    return out


def _text(value: Any, row: int, what: str, name: str, dtype: str) -> str:
    where = f"{what}: row {row} has {{}} in {name}"
    if isinstance(value, str):
        if not value.strip():
            raise _no_id(where)
        if value != value.strip():
            raise RepalignError(
                where.format("an id with blanks around it"),
                expected="ids that other files can be joined on",
                got=repr(value),
                remedy="strip the ids: 'a ' and 'a' are two texts",
            )
        return str(value)
    if isinstance(value, bytes):
        try:
            return _text(value.decode("utf-8"), row, what, name, dtype)
        except UnicodeDecodeError as error:
            raise RepalignError(
                where.format("an id that is no text"), expected="text, or bytes in UTF-8", got=repr(value[:40])
            ) from error
    if value is None or value is _null() or value != value:
        raise _no_id(where)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        number = float(value)
        if number.is_integer() and abs(number) < _MANTISSA.get(dtype, 2**53):
            return str(int(number))
        raise RepalignError(
            where.format("an id that is no whole number"),
            expected="a text or a whole number that is stored without rounding",
            got=f"{value!r}" + (f" ({dtype})" if dtype else ""),
            remedy="store ids as text or integers, or name another column (--id NAME, ids=)",
        )
    if hasattr(value, "isoformat"):
        return iso(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    raise RepalignError(
        where.format("an id that is no name"),
        expected="a text or a whole number",
        got=f"{str(value)[:40]} ({type(value).__name__})",
        remedy="name another column (--id NAME, ids=)",
    )


def _null() -> Any:
    pandas = sys.modules.get("pandas")  # only then can there be one
    return getattr(pandas, "NA", _MISSING)


_MISSING = object()


def _no_id(where: str) -> RepalignError:
    return RepalignError(
        where.format("no id"),
        expected="an id in every row: a null names nothing, and is not joined with other nulls",
        got="nothing",
        remedy="fill it in or leave the row out; or name another column (--id NAME, ids=)",
    )


def iso(value: Any) -> str:
    """A time or a date in ISO form, to as many digits as it has, whatever unit it is stored in."""
    if isinstance(value, datetime.datetime):
        text = value.isoformat()
        head, dot, rest = text.partition(".")
        if dot:  # digits of a second without the zeros at their end, then the zone
            digits = re.match(r"\d+", rest)
            assert digits is not None
            kept = digits[0].rstrip("0")
            text = head + (f".{kept}" if kept else "") + rest[digits.end() :]
        return text
    return value.isoformat()


def loose(id_: str) -> str:
    """An id without what is easily written in two ways: case, zeros in front, a fraction of zero."""
    text = id_.strip().casefold()
    number = re.fullmatch(r"([+-]?)0*(\d+)(?:\.0*)?", text)
    return f"{number[1].replace('+', '')}{number[2]}" if number else text


def shown_ids(ids: Sequence[str], limit: int = 3) -> str:
    return ", ".join(map(repr, ids[:limit])) + (" ..." if len(ids) > limit else "")


def names_of(blocks: Sequence[Block]) -> str:
    return listed([b.told for b in blocks])
