"""Tables: CSV, TSV, JSONL and Parquet, with the same content giving the same dataset."""

from __future__ import annotations

from collections.abc import Sequence
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
from repalign.errors import RepalignError
from repalign.tables import bad_text, read_table
from repalign.text import Progress


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
    if problem := bad_text(cell):
        raise RepalignError(f"{where}: row {row} names an image by {problem}", expected="a path", remedy="mend the path")
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
