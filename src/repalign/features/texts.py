"""Files of text: CSV, TSV and JSONL by the rule of `tables`, and vectors of words as word2vec, fastText and GloVe write them.

A cell of a CSV or TSV is a number only if it is written as one: 7, -0.5, 1e-3, nan, inf; "007" is a text. A column whose cells are
all whole numbers, numbers of which some have a fraction, true or false, or lists in square brackets is read as these, any other as
text. The first column is the index of a frame, or R's names of rows, where the header leaves it without a name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from repalign.errors import RepalignError
from repalign.features.arrays import Array
from repalign.features.columns import Columns, column_block
from repalign.features.rule import Block, Table
from repalign.layers import FEATURES, as_tensor
from repalign.tables import iter_rows

pc: Any = pyarrow.compute  # whose functions no type checker sees: they are made as it is imported
BATCH = 1024  # rows that are Python's objects at a time
INDEX = "__index_level_0__"  # an index without a name, as pandas calls it in a file
WHOLE = r"^-?(0|[1-9][0-9]{0,17})$"  # no zero in front, and within int64
FRACTION = r"(?i)^[+-]?(([0-9]+\.[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[0-9]+e[+-]?[0-9]+|nan|inf|infinity)$"
# A cell that is a fraction; a line of words as `read_words` takes it.
_CELL = re.compile(rb'(?i)(^|[,\t\[])[ "]*[+-]?([0-9]+\.[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?[ "]*([],\t\r\n]|$)')
_LINE = re.compile(rb"(?i)^([0-9]+ [0-9]+|.*( [+-]?[0-9]*\.[0-9]+(e[+-]?[0-9]+)?){2}) *\r?$")
_NUMBER = re.compile(rb"[+-]?[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?", re.I)
_NO_WORDS = "a table of numbers is read as .csv with a header; of an array without words np.save('x.npy', np.loadtxt(path))"


def shows_numbers(path: Path) -> bool:
    """Whether the first lines of a text show numbers with a fraction, as features do, and captions, ids and notes do not."""
    shown = _LINE if path.suffix.lower() == ".txt" else _CELL
    try:
        with path.open("rb") as file:
            return any(shown.search(file.readline(1 << 20)) for _ in range(3))
    except OSError:  # the reader says what is wrong with it
        return True


# --- tables --------------------------------------------------------------------------------------


def read_delimited(path: Path, headers: bool = False) -> Table:
    """A .csv or .tsv with a header; `headers` reads the first rows alone."""
    rows = iter_rows(path)
    names = list(next(rows))
    if len(names) == 1 and re.search(r"[;\t|]", names[0]):
        raise RepalignError(
            f"{path}: one column, {names[0][:60]!r}", expected="commas between the cells of a .csv, tabs between those of a .tsv",
            remedy="write it so: pandas.read_csv(path, sep=';', decimal=',').to_csv('x.csv', index=False)",
        )
    if sum(bool(re.match(FRACTION, name)) for name in names) * 2 > len(names):
        raise RepalignError(
            f"{path}: numbers where the header is expected", expected="a name over every column", got=", ".join(names[:4]),
            remedy="write a line of names above them; or np.save('x.npy', np.loadtxt(path, delimiter=','))",
        )
    parts: list[list[pa.Array]] = [[] for _ in names]
    while batch := list(islice(rows, BATCH)):
        for name, part in zip(names, parts, strict=True):
            part.append(pa.array([row[name] for row in batch], pa.string()))
        if headers:
            break
    if not names or not parts[0]:
        raise RepalignError(f"{path}: no rows", expected="a header, and a row for every stimulus", got=f"{len(names)} columns")
    called = [name or (f"Unnamed: {i}" if i else INDEX) for i, name in enumerate(names)]
    blocks = [_cells(str(path), name, pa.chunked_array(part)) for name, part in zip(called, parts, strict=True)]
    return Columns(str(path), tuple(blocks))


def _cells(what: str, name: str, text: pa.ChunkedArray) -> Block:
    """A column of cells: as the numbers that all of them are, else as the texts that they are; an empty cell is nothing."""
    stripped, n = pc.utf8_trim_whitespace(text), len(text)
    empty = pc.equal(stripped, "")
    there, texts = pc.if_else(empty, None, stripped), pc.if_else(empty, None, text)

    def are(pattern: str) -> pa.ChunkedArray:
        return pc.match_substring_regex(there, pattern)

    def all_of(these: pa.ChunkedArray) -> bool:
        return bool(pc.all(these, min_count=1).as_py())

    def as_written() -> list[Any]:  # ids: 7.0 is a whole number, 1.10 a text
        return (column if all_of(are(r"^-?[0-9]+(\.0*)?$")) else texts).to_pylist()

    column, said = texts, dict[str, Any]()
    whole, fractions = are(WHOLE), are(FRACTION)
    numbers = pc.or_(whole, fractions)
    if all_of(whole):
        column = there.cast(pa.int64())
    elif all_of(numbers):
        column, said = there.cast(pa.float64()), {"values": as_written}
    elif pc.any(fractions).as_py() and pc.mean(numbers.cast(pa.int8())).as_py() > 0.5:
        row = pc.index(numbers, False).as_py()
        said = {"kind": "other", "dtype": f"numbers, but {there[row].as_py()[:20]!r} in row {row}"}
    elif all_of(are("(?i)^(true|false)$")):
        column = pc.equal(pc.utf8_lower(there), "true")
    elif all_of(are(r"(?s)^\[.*\]$")):
        try:
            column = pa.chunked_array([pa.array([None if cell is None else json.loads(cell) for cell in there.to_pylist()])])
        except (ValueError, RecursionError, pa.ArrowException):
            said = {"kind": "other", "dtype": "brackets, but no lists as JSON writes them"}
    block = column_block(name, column.type, n, lambda: column, lambda: column, {})

    def load() -> Any:
        if (hole := pc.index(empty, True).as_py()) >= 0:
            raise RepalignError(
                f"{what}: row {hole} has nothing in column {name!r}", expected="a number in every row of a column of features",
                got="an empty cell", remedy="fill it in, or take the row out of the file",
            )
        return block.load()

    counts = name == INDEX and block.kind == "integer" and block.values() == list(range(n))
    return replace(block, load=load, counts=counts, **said)


def read_jsonl(path: Path, headers: bool = False) -> Table:
    """A .jsonl of records, such as {"id": "a", "embedding": [0.1, 0.2]}; `headers` reads the first rows alone."""
    rows, n = iter_rows(path), 0
    next(rows)
    parts: dict[str, list[list[Any] | pa.Array]] = {}
    while batch := [_record(row, f"{path}: row {n + i}") for i, row in enumerate(islice(rows, BATCH))]:
        for name in dict.fromkeys([*parts, *(name for row in batch for name in row)]):
            values = [row.get(name) for row in batch]
            try:
                part = pa.array(values)
            except (pa.ArrowException, OverflowError, UnicodeError):  # of several kinds
                part = values
            parts.setdefault(name, [pa.nulls(n)] if n else []).append(part)
        n += len(batch)
        if headers:
            break
    if not n:
        raise RepalignError(f"{path}: no rows", expected='a line for each stimulus, {"id": ..., "embedding": [...]}', got="nothing")
    return Columns(str(path), tuple(_values(name, part, n) for name, part in parts.items()))


def _values(name: str, parts: Sequence[Any], n: int) -> Block:
    """A column of JSON: of one kind, or not."""
    try:
        column = pa.concat_tables([pa.table({name: part}) for part in parts], promote_options="permissive").column(0)
    except (pa.ArrowException, TypeError, ValueError):
        held = [v for part in parts for v in (part.to_pylist() if isinstance(part, pa.Array) else part)]
        return Block(name, "other", (n,), "mixed objects", lambda: None, lambda: held, "column")
    return column_block(name, column.type, n, lambda: column, lambda: column, {})


def _record(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A record; of the answer to a request of OpenAI's batches its id and embedding."""
    if not {"custom_id", "response", "error"} <= row.keys():
        return row
    try:
        (held,) = row["response"]["body"]["data"]
        return {"id": row["custom_id"], "embedding": held["embedding"]}
    except (TypeError, KeyError, ValueError) as error:
        raise RepalignError(
            f"{where}: no answer with one embedding", expected="response.body.data with one embedding",
            got=f"error: {row.get('error')}" if row.get("error") else json.dumps(row["response"])[:80],
            remedy="ask again for what failed, with one text in each request",
        ) from error


# --- vectors of words ----------------------------------------------------------------------------


def read_words(path: Path, headers: bool = False) -> Table:  # noqa: ARG001  (its first line is all that is read here)
    """A word and its numbers on each line, with blanks between; before them "count width", or nothing (GloVe).

    Numbers are taken from the end of the line: a word may hold blanks. Words are the ids.
    """
    with path.open("rb") as file:
        start = list(islice(file, 10))
        head = re.fullmatch(rb"([0-9]+) ([0-9]+)", start[0].strip()) if start else None
        n = sum(1 for line in (*start, *file) if line.strip()) - bool(head)
    widths = Counter(len(line.rstrip().split(b" ")) - 1 for line in start).most_common(1)  # a word with blanks makes one more
    d = int(head[2]) if head else widths[0][0] if widths else 0
    if not n or d < 1:
        raise RepalignError(
            f"{path}: no vectors of words", expected="a word and its numbers on each line, with blanks between",
            got=repr(start[0][:60].decode(errors="replace")) if start else "an empty file",
            remedy=_NO_WORDS,
        )
    if head and int(head[1]) != n:
        expected, got = f"{int(head[1])} words, as the first line says", f"{n}"
        raise RepalignError(f"{path}: not all its words", expected=expected, got=got, remedy="get the file again: it is cut short")

    @cache
    def held() -> tuple[list[str], np.ndarray]:
        return _words(path, n, d, bool(head))

    features = Block(FEATURES, "float", (n, d), "float64", lambda: as_tensor(held()[1]), list, nbytes=8 * n * d)
    words = Block("words", "text", (n,), "text", lambda: None, lambda: held()[0], "beside", says_rows=True)
    return Array(str(path), (features, words))


def _words(path: Path, n: int, d: int, head: bool) -> tuple[list[str], np.ndarray]:
    """The words and their numbers (n, d)."""
    words, out = [], np.empty((n, d))
    with path.open("rb") as file:
        lines = ((number, line.rstrip(b" \r\n")) for number, line in enumerate(file, start=1) if line.strip())
        for row, (number, line) in enumerate(islice(lines, int(head), None)):
            word, *numbers = line.rsplit(b" ", d)
            longer = b" " in word and _NUMBER.fullmatch(word.rpartition(b" ")[2])
            try:
                out[row] = np.array([float(v) for v in numbers]).reshape(d)  # also where one number would fill a row
                name = word.decode()
                words.append(name if name == name.strip() else repr(name)[1:-1])  # a blank of another kind is a word of GloVe
            except ValueError:
                longer = True
            if longer:
                raise RepalignError(
                    f"{path}: line {number} is no word with {d} numbers", expected="blanks between them, and the word in UTF-8",
                    got=repr(line[:60].decode(errors="replace")), remedy=_NO_WORDS,
                )
    if all(re.match(FRACTION, word) for word in words):
        problem = f"{path}: every line begins with a number"
        raise RepalignError(problem, expected="words", got=", ".join(words[:3]), remedy=_NO_WORDS)
    return words, out
