"""Tables: CSV, TSV, JSONL and Parquet, with the same content giving the same dataset."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repalign.dataset._columns import Blob, FileBlob
from repalign.dataset._core import Dataset
from repalign.dataset._rows import (
    Row,
    assemble,
    cells_to_captions,
    check_asked,
    check_columns,
    number_ids,
    row_id,
    text_columns,
)
from repalign.errors import RepalignError, did_you_mean
from repalign.progress import Progress


@dataclass(frozen=True)
class Table:
    """The columns of a table and its rows in order; a cell that is absent is None."""

    columns: list[str]
    rows: list[dict[str, Any]]


def from_table(
    path: Path,
    id: str | None,
    image: str | None,
    text: str | Sequence[str] | None,
    root: str | Path | None,
    on_missing: str,
    name: str | None,
    progress: Progress,
) -> Dataset:
    """See `Dataset.from_table`."""
    texts, where = text_columns(text), path.name
    check_asked(image, texts, where)
    asked = [c for c in (id, image, *texts) if c is not None]
    table = read_table(path, asked)
    check_columns(asked, table.columns, where)
    folder = path.parent if root is None else Path(root).expanduser()
    numbers = number_ids(len(table.rows))
    rows = [
        Row(
            row=i,
            id=numbers[i] if id is None else row_id(cells.get(id), i, where),
            image=None if image is None else image_file(cells.get(image), folder, i, where),
            captions=cells_to_captions([cells.get(t) for t in texts], texts, i, where) if texts else (),
        )
        for i, cells in enumerate(table.rows)
    ]
    if len(texts) == 1 and not any(isinstance(cells.get(texts[0]), list) for cells in table.rows):
        rows = merge_captions(rows, where)
    named = [f"{k}={v}" for k, v in (("id", id), ("image", image), ("text", ",".join(texts))) if v]
    return assemble(
        rows,
        name=name or path.stem,
        where=where,
        source=f"table {path.name} ({', '.join(named)})",
        revision=None,
        with_image=image is not None,
        with_text=bool(texts),
        on_missing=on_missing,
        progress=progress,
    )


def image_file(cell: Any, folder: Path, row: int, where: str) -> Blob | None:
    """The image that a cell names, relative to a folder; None for an empty cell."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    if not isinstance(cell, str) or "://" in cell:
        raise RepalignError(
            f"{where}: row {row} names no image file",
            expected="a path, relative to the table's folder or to `root`",
            got=repr(cell)[:80],
            remedy="download the images first; a table that holds image bytes is read by `hub:`",
        )
    return FileBlob(path=str((folder / cell).absolute()), label=cell)


def merge_captions(rows: Sequence[Row], where: str) -> list[Row]:
    """Rows with one caption each, merged by id in the order in which they come."""
    merged: dict[str, Row] = {}
    for r in rows:
        first = merged.get(r.id)
        if first is None:
            merged[r.id] = r
            continue
        if first.image != r.image:
            raise RepalignError(
                f"{where}: rows {first.row} and {r.row} have the same id {r.id!r} but name different images",
                expected=f"{_label(first.image)}, as in row {first.row}",
                got=_label(r.image),
                remedy="give different things different ids",
            )
        merged[r.id] = Row(first.row, first.id, first.image, (*_padded(first), *_padded(r)))
    return list(merged.values())


def _label(blob: Blob | None) -> str:
    return "no image" if blob is None else blob.label


def _padded(row: Row) -> tuple[Any, ...]:
    return row.captions or (None,)  # an empty cell keeps its place among the captions of an id


# --- the formats ---------------------------------------------------------------------------------


def read_table(path: Path, columns: Sequence[str]) -> Table:
    """Read a table by its suffix; `columns` are those that are needed, for formats that can choose."""
    readers = {
        ".csv": lambda: _read_csv(path, ","),
        ".tsv": lambda: _read_csv(path, "\t"),
        ".jsonl": lambda: _read_jsonl(path),
        ".parquet": lambda: _read_parquet(path, columns),
    }
    if path.suffix.lower() not in readers:
        raise RepalignError(
            f"{path.name}: a table of unknown format",
            expected=f"a file that ends in {', '.join(readers)}",
            got=path.suffix or "no suffix",
            remedy=did_you_mean(path.suffix.lower(), readers),
        )
    if not path.is_file():
        raise RepalignError(
            f"there is no table {path}",
            expected="a file",
            got="a folder" if path.is_dir() else "nothing by that name",
            remedy="check the path; in a study file it starts from the study file's folder",
        )
    try:
        return readers[path.suffix.lower()]()
    except (OSError, UnicodeDecodeError) as error:
        raise RepalignError(
            f"{path.name} cannot be read", expected="a readable file in UTF-8", got=error
        ) from error


def _read_csv(path: Path, delimiter: str) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                twice = next(c for c in header if header.count(c) > 1)
                raise RepalignError(
                    f"{path.name}: the column {twice!r} is there twice", remedy="rename one of the two"
                )
            rows = []
            for cells in reader:
                if not cells:  # a blank line
                    continue
                if len(cells) != len(header):
                    raise RepalignError(
                        f"{path.name}: row {len(rows)} (line {reader.line_num}) does not fit the header",
                        expected=f"{len(header)} cells: {', '.join(header)}",
                        got=f"{len(cells)} cells",
                        remedy="put cells that hold the separator or a line break in double quotes",
                    )
                rows.append(dict(zip(header, cells, strict=True)))
        except csv.Error as error:
            raise RepalignError(
                f"{path.name}: line {reader.line_num} is not valid CSV", expected="RFC 4180", got=error
            ) from error
    return Table(header, rows)


def _read_jsonl(path: Path) -> Table:
    columns: dict[str, None] = {}
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            raise RepalignError(
                f"{path.name}: row {len(rows)} (line {number}) is not valid JSON", got=error
            ) from error
        if not isinstance(cells, dict):
            raise RepalignError(
                f"{path.name}: row {len(rows)} (line {number}) is no JSON object",
                expected='one object per line, such as {"id": ..., "caption": ...}',
                got=line[:60],
            )
        columns |= dict.fromkeys(cells)
        rows.append(cells)
    return Table(list(columns), rows)


def _read_parquet(path: Path, columns: Sequence[str]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        present = pq.read_schema(path).names
        wanted = [c for c in columns if c in present]
        rows = pq.read_table(path, columns=wanted).to_pylist()
    except pa.ArrowException as error:
        raise RepalignError(f"{path.name} is not a readable Parquet file", got=error) from error
    return Table(list(present), rows)
