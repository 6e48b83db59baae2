"""Datasets of files: a table (CSV, TSV, JSONL, Parquet), or a folder of images with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repalign.dataset.columns import (
    Blob,
    Loaded,
    Row,
    assemble,
    captions_in,
    check_columns,
    check_unique,
    named_columns,
    row_id,
)
from repalign.errors import RepalignError
from repalign.tables import bad_text, read_table, split_lines
from repalign.text import Progress, silent

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CAPTION_TABLES = ("captions.jsonl", "captions.csv")
CAPTION_COLUMNS = ("captions", "caption")


def from_table(
    path: str | Path,
    *,
    id: str | None = "id",
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    root: str | Path | None = None,
    on_missing: str = "error",
    name: str | None = None,
    progress: Progress = silent,
) -> Loaded:
    """A CSV, TSV, JSONL or Parquet table with a column of ids and columns named by the caller.

    `image` is a column of paths, relative to the table's folder or to `root`; `text` a column
    of strings or of lists of strings, or several columns of strings. Rows with the same id are
    merged into several captions if each holds one caption and all name the same image.
    With `id=None` the ids are row numbers. Equal content gives the same fingerprint in every format.
    """
    path = Path(path)
    where = path.name
    texts, named = named_columns(id, image, text, where)
    asked = [c for c in (id, image, *texts) if c is not None]
    table = read_table(path, asked)
    check_columns(asked, table.columns, where)
    folder = path.parent if root is None else Path(root).expanduser()
    rows = []
    for i, cells in enumerate(table.rows):
        raw: dict[str, Any] = {}
        if image is not None:
            raw["image"] = _image_file(cells.get(image), folder, i, where)
        if texts:
            raw["text"] = captions_in([cells.get(t) for t in texts], texts, i, where)
        rows.append(Row(i, f"{i:05d}" if id is None else row_id(cells.get(id), i, where), raw))
    if len(texts) == 1 and not any(isinstance(cells.get(texts[0]), list) for cells in table.rows):
        rows = _merge_captions(rows, where)
    return assemble(rows, name or path.stem, where, f"table {where} ({named})", None, on_missing, progress)


def _image_file(cell: Any, folder: Path, row: int, where: str) -> Blob | None:
    """The image that a cell names, relative to a folder; None for an empty cell."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    if not isinstance(cell, str) or "://" in cell:
        raise RepalignError(
            f"{where}: row {row} names no image file", expected="a path, relative to the table's folder or to `root`",
            got=repr(cell)[:80], remedy="download the images first; a table that holds image bytes is read by `hub:`",
        )
    if problem := bad_text(cell):
        raise RepalignError(f"{where}: row {row} names an image by {problem}", expected="a path", remedy="mend the path")
    return Blob(path=str((folder / cell).absolute()), label=cell)


def _merge_captions(rows: Sequence[Row], where: str) -> list[Row]:
    """Rows with one caption each, merged by id in the order in which they come."""
    merged: dict[str, Row] = {}
    for r in rows:
        first = merged.setdefault(r.id, r)
        if first is r:
            continue
        images = [row.cells.get("image") for row in (first, r)]
        if images[0] != images[1]:
            expected, got = ("no image" if blob is None else blob.label for blob in images)
            raise RepalignError(
                f"{where}: rows {first.row} and {r.row} have the same id {r.id!r} but name different images",
                expected=f"{expected}, as in row {first.row}", got=got, remedy="give different things different ids",
            )
        # An empty cell keeps its place among the captions of an id.
        captions = (*(first.cells["text"] or (None,)), *(r.cells["text"] or (None,)))
        merged[r.id] = Row(first.row, first.id, {**first.cells, "text": captions})
    return list(merged.values())


def from_folder(
    path: str | Path, *, on_missing: str = "error", name: str | None = None, progress: Progress = silent
) -> Loaded:
    """A folder of images, subfolders included, in the order of their ids.

    The id of an image is its path in the folder without the suffix. Captions are either in a file
    `name.txt` beside `name.jpg`, one per line, or in one `captions.jsonl` or `captions.csv` at the
    top with the columns `image` (path in the folder) and `caption` or `captions`. A folder
    without any captions is a dataset of images alone.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RepalignError(
            f"there is no folder {folder}", expected="a folder of images",
            got="a file" if folder.exists() else "nothing by that name",
            remedy="check the path; in a study file it starts from the study file's folder",
        )
    where = folder.resolve().name
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    files = [p for p in files if not any(part.startswith(".") for part in p.parts)]
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    notes = [p for p in files if p.suffix.lower() == ".txt"]
    tables = [t for t in CAPTION_TABLES if (folder / t).is_file()]
    if len(tables) + bool(notes) > 1:
        raise RepalignError(
            f"folder {where!r} has captions in more than one form",
            expected="one captions.jsonl, or one captions.csv, or a .txt file beside each image",
            got=", ".join([*tables, *[str(n) for n in notes[:1]]]), remedy="keep one of them in the folder",
        )
    if not images:
        expected, got = f"files that end in {', '.join(IMAGE_SUFFIXES)}", f"{len(files)} other files"
        raise RepalignError(f"folder {where!r} holds no images", expected=expected, got=got)
    check_unique([_stem(p) for p in images], range(len(images)), f"folder {where!r} (images by name)")
    blobs = {_stem(p): Blob(str((folder / p).absolute()), p.as_posix()) for p in images}
    captions = _captions_of_table(folder, tables[0]) if tables else {_stem(p): _captions_of_note(folder / p, where) for p in notes}
    rows = []
    for i, id_ in enumerate(sorted({*blobs, *captions})):
        texts = {"text": captions.get(id_, ())} if tables or notes else {}
        rows.append(Row(i, id_, {"image": blobs.get(id_), **texts}))
    source = f"folder {where} (captions: {tables[0] if tables else '.txt files' if notes else 'none'})"
    return assemble(rows, name or where, f"folder {where!r}", source, None, on_missing, progress)


def _stem(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _captions_of_note(path: Path, where: str) -> tuple[str, ...]:
    try:
        lines = split_lines(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise RepalignError(f"folder {where!r}: {path.name} is no text in UTF-8", got=error) from error
    return tuple(line.strip() for line in lines if line.strip())


def _captions_of_table(folder: Path, name: str) -> dict[str, tuple]:
    table = read_table(folder / name)
    column = next((c for c in CAPTION_COLUMNS if c in table.columns), CAPTION_COLUMNS[0])
    check_columns(["image", column], table.columns, name)
    captions: dict[str, tuple] = {}
    for i, cells in enumerate(table.rows):
        image = cells.get("image")
        if not isinstance(image, str) or not image.strip():
            raise RepalignError(f"{name}: row {i} names no image", expected="a path in the folder", got=repr(image))
        id_ = _stem(Path(image))
        captions[id_] = (*captions.get(id_, ()), *(captions_in([cells.get(column)], [column], i, name) or (None,)))
    return captions
