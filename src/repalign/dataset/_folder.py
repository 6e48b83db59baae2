"""Folders of images with captions beside them."""

from __future__ import annotations

from pathlib import Path

from repalign.dataset._columns import FileBlob
from repalign.dataset._core import Dataset
from repalign.dataset._rows import Row, assemble, captions_of, check_columns, check_unique
from repalign.errors import RepalignError
from repalign.tables import read_table, split_lines
from repalign.text import Progress

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CAPTION_TABLES = ("captions.jsonl", "captions.csv")
CAPTION_COLUMNS = ("captions", "caption")


def from_folder(folder: Path, on_missing: str, name: str | None, progress: Progress) -> Dataset:
    """See `Dataset.from_folder`."""
    if not folder.is_dir():
        raise RepalignError(
            f"there is no folder {folder}",
            expected="a folder of images",
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
            got=", ".join([*tables, *[str(n) for n in notes[:1]]]),
            remedy="keep one of them in the folder",
        )
    if not images:
        raise RepalignError(
            f"folder {where!r} holds no images",
            expected=f"files that end in {', '.join(IMAGE_SUFFIXES)}",
            got=f"{len(files)} other files",
        )
    by_id = {_stem(p): p for p in images}
    check_unique([_stem(p) for p in images], range(len(images)), f"folder {where!r} (images by name)")
    of_notes = {_stem(p): _captions_of_note(folder / p, where) for p in notes}
    captions = _captions_of_table(folder, tables[0]) if tables else of_notes
    rows = []
    for i, id_ in enumerate(sorted({*by_id, *captions})):
        blob = None
        if id_ in by_id:
            blob = FileBlob(str((folder / by_id[id_]).absolute()), by_id[id_].as_posix())
        rows.append(Row(i, id_, blob, captions.get(id_, ())))
    return assemble(
        rows,
        name=name or where,
        where=f"folder {where!r}",
        source=f"folder {where} (captions: {tables[0] if tables else '.txt files' if notes else 'none'})",
        revision=None,
        with_image=True,
        with_text=bool(tables or notes),
        on_missing=on_missing,
        progress=progress,
    )


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
    check_columns(["image"], table.columns, name)
    column = next((c for c in CAPTION_COLUMNS if c in table.columns), CAPTION_COLUMNS[0])
    check_columns([column], table.columns, name)
    captions: dict[str, tuple] = {}
    for i, cells in enumerate(table.rows):
        image = cells.get("image")
        if not isinstance(image, str) or not image.strip():
            raise RepalignError(
                f"{name}: row {i} names no image", expected="a path in the folder", got=repr(image)
            )
        id_ = _stem(Path(image))
        captions[id_] = (*captions.get(id_, ()), *(captions_of(cells.get(column)) or (None,)))
    return captions
