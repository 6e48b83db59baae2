"""Tables that people have, read by one rule: CSV, TSV, JSONL and Parquet.

* A cell is its text as it is. An empty cell, null, and NaN in a column of numbers hold nothing; no word
  means nothing: NA, None, null and nan are names like others (of Namibia, of "no object").
* CSV follows RFC 4180: a cell that holds a comma, a quotation mark or a line end stands in quotation marks, and each mark
  in it twice. TSV has no quoting: a row is a line, a cell is what stands between tabs, and a quotation mark is itself.
* A file is UTF-8, with or without a byte order mark; lines end in LF or CR LF; blank lines are none.
* Every row has as many cells as the header, no two columns have one name, and blanks around a name do not count.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repalign.errors import NotHere, RepalignError, choose, is_of, nearby

LONGEST = 1 << 30  # characters of a cell: a document is longer than the 131,072 that Python's reader takes by default


@dataclass(frozen=True)
class Table:
    """The columns of a table and its rows in order; a cell that is absent is None."""

    columns: list[str]
    rows: list[dict[str, Any]]


def refuse_missing(path: Path, what: str = "file") -> None:
    """Refuse a file, or a folder, that is not there; NotHere where its folder is not there either, which is yet to be made."""
    if path.exists():
        return
    error, got = (RepalignError, "nothing by that name") if path.parent.is_dir() else (NotHere, f"no folder {path.parent}")
    raise error(f"there is no {what} {path}", expected=f"a {what}", got=got, remedy=nearby(path))


def read_table(path: Path, columns: Sequence[str] = (), what: str | None = None) -> Table:
    """Read a table by its suffix; `columns` are those that are needed, for formats that can choose; all without.

    Raises RepalignError: no such file, an unknown format, what is no table of that format (with its row and line); it says
    `what` was to be read.
    """
    try:
        rows = iter_rows(path, columns)
        header = next(rows)
        found = list(rows)
    except RepalignError as error:
        raise error if what is None else RepalignError(f"{path}: {what} cannot be read: {error}") from error
    return Table(list(header) or list(dict.fromkeys(c for row in found for c in row)), found)


def iter_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a table one by one, and before them one with the names of the columns (none of JSONL)."""
    suffix = choose("format", path.suffix.lower(), FORMATS, f"{path.name}: a table of unknown format")
    refuse_missing(path, "table")
    if not path.is_file():
        raise RepalignError(f"there is no table {path}", expected="a file", got="a folder")
    try:
        if suffix == ".parquet":
            yield from _parquet(path, columns)
        else:
            read, ends = TEXTS[suffix]
            with path.open(encoding="utf-8-sig", newline=ends) as file:
                yield from read(file, path.name)
    except UnicodeDecodeError as error:
        raise _no_utf8(path) from error
    except OSError as error:
        raise RepalignError(f"{path.name} cannot be read", expected="a readable file", got=error) from error


def table_of(given: Any) -> Table | None:
    """A table in memory: a frame of pandas, what gives Arrow its columns (polars, DuckDB), or mappings, a row each; else None."""
    if is_of(given, "pandas", "DataFrame"):
        columns, cells = list(given.columns), given.astype(object).where(given.notna(), None).to_numpy()
        rows: Any = [dict(zip(columns, row, strict=True)) for row in cells]
    elif isinstance(given, (list, tuple)) and given and all(isinstance(row, Mapping) for row in given):
        columns, rows = list(dict.fromkeys(column for row in given for column in row)), given
    elif hasattr(given, "__arrow_c_stream__"):
        import pyarrow as pa

        table = pa.table(given)
        columns, rows = table.column_names, table.to_pylist()
    else:
        return None
    names = list(_columns([str(c) for c in columns], type(given).__name__))
    return Table(names, [{str(c): cell for c, cell in row.items()} for row in rows])


def is_missing(cell: Any) -> bool:
    """Whether a cell holds nothing: it is absent or blank, or no number in a column of numbers."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell))


def bad_text(text: str) -> str | None:
    """Why a text can be no id, label, path or caption, or None: half of a pair of surrogates, or a NUL."""
    if "\0" in text:
        return f"a NUL character: {text[:60]!r}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        return f"half a character, {text[error.start]!r}, which UTF-8 cannot hold: {around!r}"
    return None


def column_of(table: Table, name: str, where: str, what: str) -> list[str]:
    """A column that must have a text in every row, such as ids: text as it stands, integers in decimal."""
    out = []
    for row, cells in enumerate(table.rows):
        cell = cells.get(name)
        text = cell if isinstance(cell, str) else str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else None
        problem = f"{cell!r} ({type(cell).__name__})" if text is None else bad_text(text)
        if is_missing(cell) or problem:
            raise RepalignError(
                f"{where}: row {row} has no {what} in column {name!r}", expected="a text or an integer in every row",
                got="nothing" if is_missing(cell) else problem, remedy="fill it in, or take the row out of the table",
            )
        assert text is not None
        out.append(text)
    return out


def split_lines(text: str) -> list[str]:
    """Lines that end in LF or CR LF and nowhere else: a form feed or U+2028 is part of a line."""
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.removesuffix("\r") for line in lines]


def id_lines(text: str, where: str) -> list[str]:
    """The ids of a file: one id per line; lines end at a line feed only, and none but the last may be empty."""
    lines = split_lines(text)
    while lines and not lines[-1].strip():
        lines.pop()
    empty = next((number for number, line in enumerate(lines, start=1) if not line.strip()), None)
    if empty is not None:
        raise RepalignError(
            f"{where}: line {empty} is empty", expected="one id per line", got=f"{len(lines)} lines",
            remedy="write the id that is missing, or take the line out",
        )
    return lines


# --- the formats ---------------------------------------------------------------------------------


def csv_rows(lines: Iterator[str], where: str, **how: Any) -> Iterator[dict[str, Any]]:
    """The rows of CSV text, the names of the columns first; `how` goes to `csv.reader`."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader(lines, strict=True, **how)
    try:
        cells = ((reader.line_num, row) for row in reader if row)  # a blank line is no row
        yield from _fitted(cells, where, "put cells that hold the separator or a line break in double quotes")
    except csv.Error as error:
        raise RepalignError(
            f"{where}: line {reader.line_num} is not valid CSV",
            expected="RFC 4180: a cell with a quotation mark stands in quotation marks, and the mark twice", got=error,
        ) from error


def _tsv(lines: Iterator[str], where: str) -> Iterator[dict[str, Any]]:
    def cells() -> Iterator[tuple[int, list[str]]]:
        for number, line in enumerate(lines, start=1):
            text = line.removesuffix("\n").removesuffix("\r")
            if "\r" in text:
                raise RepalignError(f"{where}: line {number} has a line break in a cell", expected="a row on each line", remedy=TSV)
            if text.strip("\t "):
                yield number, text.split("\t")

    rows = _fitted(cells(), where, TSV)
    yield next(rows)
    for row, found in enumerate(rows):
        for column, cell in found.items():
            inner = cell[1:-1]  # of a cell as CSV writes one with quotation marks: each of them twice, within two more
            if cell[:1] == cell[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
                raise RepalignError(
                    f"{where}: row {row}, column {column!r} is quoted as in CSV, which a TSV is not",
                    expected="the text as it is", got=cell[:60], remedy=TSV,
                )
        yield found


TEXT = "see that the file is text in UTF-8, and whole"
TSV = "a TSV has no quoting, one row on each line and tabs between cells: write cells that hold more as CSV or JSONL"


def _fitted(rows: Iterator[tuple[int, list[str]]], where: str, remedy: str) -> Iterator[dict[str, Any]]:
    """Rows of cells, with the line on which each ends, under the names of the first."""
    _, first = next(rows, (0, []))
    header = [name.strip() for name in first]
    if any("\0" in name for name in header):
        raise RepalignError(f"{where}: the header holds a NUL character", expected="text", remedy=TEXT)
    yield _columns(header, where)
    for number, (line, cells) in enumerate(rows):
        if len(cells) != len(header):
            raise RepalignError(
                f"{where}: row {number} (line {line}) does not fit the header",
                expected=f"{len(header)} cells: {', '.join(header)}", got=f"{len(cells)} cells", remedy=remedy,
            )
        nul = next((name for name, cell in zip(header, cells, strict=True) if "\0" in cell), None)
        if nul is not None:
            at = f"{where}: row {number} (line {line}), column {nul!r}"
            raise RepalignError(f"{at} holds a NUL character", expected="text", remedy=TEXT)
        yield dict(zip(header, cells, strict=True))


def _columns(names: Sequence[str], where: str) -> dict[str, Any]:
    """The row before the first, which names the columns; no name may be there twice."""
    if len(set(names)) < len(names):
        twice = next(c for c in names if names.count(c) > 1)
        raise RepalignError(f"{where}: the column {twice!r} is there twice", remedy="rename one of the two")
    return dict.fromkeys(names)


def _jsonl(lines: Iterator[str], where: str) -> Iterator[dict[str, Any]]:
    yield {}
    filled = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    for row, (number, line) in enumerate(filled):
        at = f"{where}: row {row} (line {number})"
        try:
            cells = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise RepalignError(f"{at} is not valid JSON", got=error) from error
        if not isinstance(cells, dict):
            form = 'one object per line, such as {"id": ..., "caption": ...}'
            raise RepalignError(f"{at} is no JSON object", expected=form, got=line[:60])
        yield cells


def _once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return found


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            yield _columns(present, path.name)
            wanted = [c for c in columns if c in present] if columns else present
            start = 0
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                yield from _batch(batch, start, path)
                start += batch.num_rows
    except pa.ArrowException as error:
        raise RepalignError(f"{path.name} is not a readable Parquet file", got=error) from error


def _batch(batch: Any, start: int, path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        for name in batch.schema.names:
            for i, cell in enumerate(batch.column(name)):
                try:
                    cell.as_py()
                except UnicodeDecodeError:
                    at = f"{path.name}: row {start + i}, column {name!r}"
                    raise RepalignError(f"{at} is no text in UTF-8", got=error) from error
        raise


def _no_utf8(path: Path) -> RepalignError:
    """The error for a file that is not in UTF-8, with the line where that begins."""
    data, at = path.read_bytes(), 0
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return RepalignError(f"{path.name} is in UTF-16", expected="a file in UTF-8", remedy="save it as UTF-8")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        at = error.start
    line = data.count(b"\n", 0, at) + 1
    place = at - data.rfind(b"\n", 0, at) - 1
    return RepalignError(
        f"{path.name} cannot be read: line {line} is not in UTF-8", expected="a readable file in UTF-8",
        got=f"byte {data[at]:#04x} at place {place} of the line", remedy="save it as UTF-8 (it may be in Latin-1 or Windows-1252)",
    )


# What reads it, and what ends its lines.
TEXTS = {".csv": (csv_rows, ""), ".tsv": (_tsv, "\n"), ".jsonl": (_jsonl, "\n"), ".ndjson": (_jsonl, "\n")}
FORMATS = (*TEXTS, ".parquet")
