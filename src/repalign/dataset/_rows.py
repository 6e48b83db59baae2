"""From raw rows to a dataset: the checks that every source of rows goes through."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from repalign.dataset._columns import Blob, Column, EncodedImages, Texts, check_image
from repalign.dataset._core import Dataset, LeftOut
from repalign.errors import RepalignError, did_you_mean
from repalign.tables import bad_text
from repalign.text import Progress

ON_MISSING = ("error", "drop")
SHOWN = 5  # rows that an error names before it only counts


@dataclass(frozen=True)
class Row:
    """One row of a source: where it is there, and what it holds, unchecked."""

    row: int
    id: str
    image: Blob | None = None
    captions: tuple[Any, ...] = ()


def row_id(value: Any, row: int, where: str) -> str:
    """An id as a string. Integers are written in decimal; anything else is an error."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
    elif value is None:
        text = ""
    else:
        raise RepalignError(
            f"{where}: row {row} has an id that is no name",
            expected="a string or an integer",
            got=f"{value!r} ({type(value).__name__})",
            remedy="name the column that holds the ids",
        )
    if not text.strip():
        raise RepalignError(
            f"{where}: row {row} has an empty id",
            expected="an id in every row: pairing is by id",
            got=repr(value),
            remedy="fill the id in, or take the row out of the source",
        )
    if problem := bad_text(text):
        raise RepalignError(
            f"{where}: row {row} has an id with {problem}", expected="an id that is text", remedy="mend the id"
        )
    return text


def number_ids(n: int) -> list[str]:
    """Row numbers as ids: "00000", "00001", ..."""
    return [f"{i:05d}" for i in range(n)]


def check_unique(ids: Sequence[str], rows: Sequence[int], where: str) -> None:
    """Refuse two rows with one id, naming both."""
    seen: dict[str, int] = {}
    for id_, row in zip(ids, rows, strict=True):
        if id_ in seen:
            raise RepalignError(
                f"{where}: rows {seen[id_]} and {row} have the same id {id_!r}",
                expected="every id once: an id names one thing in every modality",
                got=f"{id_!r} twice",
                remedy="make the ids unique, or take one of the two rows out",
            )
        seen[id_] = row


def check_choice(on_missing: str) -> None:
    """Refuse an `on_missing` that is neither "error" nor "drop"."""
    if on_missing not in ON_MISSING:
        raise RepalignError(
            f"on_missing={on_missing!r} is not known",
            expected=" or ".join(repr(c) for c in ON_MISSING),
            got=repr(on_missing),
            remedy=did_you_mean(str(on_missing), ON_MISSING),
        )


def captions_of(value: Any) -> tuple[Any, ...]:
    """The captions of one cell: a string is one, a list is several, None is none."""
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value,)


def clean_captions(captions: tuple[Any, ...]) -> tuple[tuple[str, ...], str | None]:
    """Captions as strings, and why the row cannot be used (None if it can).

    The first caption counts, so it must be there. A later one that is missing leaves ``""`` in its
    place, so that "the third caption" means the same in every row; at the end it is dropped.
    """
    for i, caption in enumerate(captions):
        if caption is not None and not isinstance(caption, str):
            return (), f"caption {i} is no text: {caption!r} ({type(caption).__name__})"
        if caption is not None and (problem := bad_text(caption)):
            return (), f"caption {i} has {problem}"
    kept = ["" if c is None or not c.strip() else c for c in captions]
    while kept and not kept[-1]:
        kept.pop()
    if not captions or not kept or not kept[0]:
        first = captions[0] if captions else None
        return (), f"caption missing: {first!r}"
    return tuple(kept), None


def assemble(
    rows: Sequence[Row],
    *,
    name: str,
    where: str,
    source: str,
    revision: str | None,
    with_image: bool,
    with_text: bool,
    on_missing: str,
    progress: Progress,
) -> Dataset:
    """Check every row and make the dataset; `where` names the source in errors."""
    check_choice(on_missing)
    for r in rows:
        row_id(r.id, r.row, where)
    check_unique([r.id for r in rows], [r.row for r in rows], where)
    if not rows:
        raise RepalignError(f"{where} has no rows", expected="at least one row", got="none")
    left_out: list[LeftOut] = []
    captions: dict[int, tuple[str, ...]] = {}
    if with_text:
        bad = []
        for r in rows:
            captions[r.row], reason = clean_captions(r.captions)
            if reason:
                bad.append(LeftOut(r.id, r.row, reason))
        rows = _without(rows, bad, where, on_missing)
        left_out += bad
    digests: dict[int, str] = {}
    if with_image:
        bad = []
        for r, (digest, reason) in zip(rows, _check_images(rows, progress), strict=True):
            digests[r.row] = digest
            if reason:
                bad.append(LeftOut(r.id, r.row, reason))
        rows = _without(rows, bad, where, on_missing)
        left_out += bad
    columns: dict[str, Column] = {}
    if with_image:
        blobs = tuple(r.image for r in rows if r.image is not None)
        columns["image"] = EncodedImages(blobs, tuple(digests[r.row] for r in rows))
    if with_text:
        columns["text"] = Texts(tuple(captions[r.row] for r in rows))
    return Dataset(
        name=name,
        ids=tuple(r.id for r in rows),
        columns=columns,
        source=source,
        revision=revision,
        left_out=tuple(sorted(left_out, key=lambda x: x.row)),
    )


def _check_images(rows: Sequence[Row], progress: Progress) -> list[tuple[str, str | None]]:
    def check(row: Row) -> tuple[str, str | None]:
        return ("", "no image named") if row.image is None else check_image(row.image)

    results = []
    progress("check images", 0, len(rows))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding leaves the interpreter lock
        for result in pool.map(check, rows):
            results.append(result)
            progress("check images", len(results), len(rows))
    return results


def _without(rows: Sequence[Row], bad: Sequence[LeftOut], where: str, on_missing: str) -> Sequence[Row]:
    """The rows without the bad ones, or an error that names them."""
    if not bad:
        return rows
    if on_missing == "error":
        named = "; ".join(f"row {b.row} (id {b.id!r}): {b.reason}" for b in bad[:SHOWN])
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise RepalignError(
            f"{where}: {len(bad)} of {len(rows)} rows cannot be used: {named}{more}",
            expected="a readable stimulus of every modality in every row",
            remedy='mend the rows, or pass on_missing="drop" to leave them out of every modality',
        )
    gone = {b.row for b in bad}
    kept = [r for r in rows if r.row not in gone]
    if not kept:
        raise RepalignError(
            f"{where}: no row can be used",
            expected="at least one row with every modality",
            got=f"row {bad[0].row} (id {bad[0].id!r}): {bad[0].reason}",
        )
    return kept


def check_columns(asked: Sequence[str], present: Sequence[str], where: str) -> None:
    """Refuse a column that is not there."""
    for column in asked:
        if column not in present:
            raise RepalignError(
                f"{where} has no column {column!r}",
                expected=f"one of its columns: {', '.join(present)}",
                got=column,
                remedy=did_you_mean(column, present),
            )


def text_columns(text: str | Sequence[str] | None) -> list[str]:
    """The names of the text columns, as a list."""
    return [] if text is None else [text] if isinstance(text, str) else list(text)


def check_asked(image: str | None, text: Sequence[str], where: str) -> None:
    """Refuse a source for which neither an image nor a text column is named."""
    if image is None and not text:
        raise RepalignError(
            f"{where}: no column of stimuli is named",
            expected="image=, text= or both",
            got="neither",
            remedy="name the column that holds the image or the captions",
        )


def cells_to_captions(cells: Sequence[Any], names: Sequence[str], row: int, where: str) -> tuple[Any, ...]:
    """The captions of one row: of one column a string or a list, of several columns a string each."""
    if len(cells) == 1:
        return captions_of(cells[0])
    for cell, name in zip(cells, names, strict=True):
        if isinstance(cell, list):
            raise RepalignError(
                f"{where}: row {row}, column {name!r} holds a list",
                expected="one caption per column where several text columns are named",
                got=f"a list of {len(cell)}",
                remedy=f"name {name!r} alone",
            )
    return tuple(cells)
