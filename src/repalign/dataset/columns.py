"""Columns of stimuli: the kinds there are, how each is checked, read and distorted, and how raw rows become columns.

A column holds the stimuli of one modality, read when asked for, with a digest of the content of each. It is plain data
(paths, strings, arrays), so that it can be sent to another process. A new kind is a column, a check of raw cells, and an
entry of `KINDS`; the sources name its column as they name `image` and `text`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from repalign.dataset.distortions import CAPTIONS, IMAGES, Distortion, Vocabulary, distort_captions, distort_image
from repalign.errors import RepalignError, choose, did_you_mean
from repalign.tables import bad_text
from repalign.text import Progress

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

# A raw cell as a column keeps it, and why it cannot be used (None if it can).
Checked = tuple[Any, str | None]


class Column(ABC):
    """The stimuli of one modality. `digests[i]` is a SHA-256 of the content of row i."""

    kind: str  # of `KINDS`: what `read` returns
    digests: tuple[str, ...]

    @abstractmethod
    def read(self, row: int) -> Any:
        """The stimulus of one row."""

    @abstractmethod
    def take(self, rows: Sequence[int]) -> Column:
        """The same column with these rows, in this order."""


@dataclass(frozen=True)
class Texts(Column):
    """All captions of each row. The digest covers the captions of a row as a JSON list in UTF-8.

    `whole` is the column that this one was taken from, so that all subsets of a dataset have one vocabulary.
    """

    kind: ClassVar[str] = "text"
    captions: tuple[tuple[str, ...], ...]
    whole: Texts | None = field(default=None, repr=False, compare=False)

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        try:
            return tuple(hashlib.sha256(json.dumps(list(c), ensure_ascii=False).encode()).hexdigest() for c in self.captions)
        except UnicodeEncodeError as error:  # of captions that came without a table
            bad = ((row, problem) for row, c in enumerate(self.captions) for problem in map(bad_text, c) if problem)
            row, problem = next(bad)
            text = f"row {row} has a caption with {problem}"
            raise RepalignError(text, expected="text", remedy="mend the caption") from error

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of all captions, also of rows that were not taken."""
        if self.whole is not None:
            return self.whole.vocabulary
        return Vocabulary.of(c for captions in self.captions for c in captions)

    def read(self, row: int) -> tuple[str, ...]:
        return self.captions[row]

    def take(self, rows: Sequence[int]) -> Texts:
        return Texts(tuple(self.captions[r] for r in rows), self.whole or self)

    def __getstate__(self) -> dict[str, Any]:
        """A part that is sent to another process takes the vocabulary of the whole along, not the whole."""
        if self.whole is None:
            return self.__dict__
        return {**self.__dict__, "vocabulary": self.vocabulary, "whole": None}


@dataclass(frozen=True)
class Blob:
    """The bytes of one image file. `label` is its path as the user's table or folder names it."""

    path: str
    label: str

    def read(self) -> bytes:
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class EncodedImages(Column):
    """Images as files. The digest covers the bytes of the file; pixels are decoded on reading."""

    kind: ClassVar[str] = "image"
    blobs: tuple[Blob, ...]
    digests: tuple[str, ...]

    def read(self, row: int) -> Image:
        blob = self.blobs[row]
        try:
            data = blob.read()
        except OSError as error:
            raise RepalignError(
                f"image {blob.label!r} can no longer be read",
                expected="the file that was there when the dataset was opened", got=error,
                remedy="put the file back, or open the dataset again",
            ) from error
        if (digest := hashlib.sha256(data).hexdigest()) != self.digests[row]:
            raise RepalignError(
                f"image {blob.label!r} has changed since the dataset was opened",
                expected=f"bytes with SHA-256 {self.digests[row][:12]}", got=digest[:12],
                remedy="open the dataset again: its fingerprint is a new one",
            )
        return decode_rgb(data)

    def take(self, rows: Sequence[int]) -> EncodedImages:
        return EncodedImages(tuple(self.blobs[r] for r in rows), tuple(self.digests[r] for r in rows))


@dataclass(frozen=True, eq=False)
class Arrays(Column):
    """One array per row, cut from an array of shape (n, ...).

    The digest is the SHA-256 of dtype and shape (as text) and of the values, little-endian, in C order.
    """

    kind: ClassVar[str] = "array"
    array: np.ndarray

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        little = self.array.astype(self.array.dtype.newbyteorder("<"), copy=False)
        head = f"{little.dtype.str} {self.array.shape[1:]} ".encode()
        return tuple(hashlib.sha256(head + x.tobytes()).hexdigest() for x in little)

    def read(self, row: int) -> Any:
        return self.array[row]

    def take(self, rows: Sequence[int]) -> Arrays:
        return replace(self, array=self.array[list(rows)])


class Pixels(Arrays):
    """Images as one uint8 array of shape (n, height, width, 3). The digest covers the pixels."""

    kind: ClassVar[str] = "image"

    def read(self, row: int) -> Image:
        from PIL import Image

        return Image.fromarray(self.array[row])


def decode_rgb(data: bytes) -> Image:
    """The first frame of an image file as 8-bit RGB, upright.

    An EXIF orientation is applied, since whoever wrote the caption saw the picture upright.
    Transparent pixels are laid over white: the colour stored under them is arbitrary.
    16-bit greyscale is scaled to 8 bits; other deep formats have no defined white and are refused.

    Raises ValueError for a mode without a meaning in RGB, and what Pillow raises for broken files.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            return Image.fromarray(np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode!r} have no defined range")
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, rgba).convert("RGB")
        return image.convert("RGB")


def _check_images(blobs: Sequence[Blob | None], progress: Progress) -> list[Checked]:
    """Image files with their digests, each read and decoded once."""
    out = []
    progress("check images", 0, len(blobs))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding leaves the interpreter lock
        for checked in pool.map(_check_image, blobs):
            out.append(checked)
            progress("check images", len(out), len(blobs))
    return out


def _check_image(blob: Blob | None) -> Checked:
    from PIL import Image

    if blob is None:
        return None, "no image named"
    try:
        data = blob.read()
    except FileNotFoundError:
        return None, f"image file not found: {blob.label!r}"
    except OSError as error:
        return None, f"image file cannot be read: {blob.label!r} ({error})"
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # checksums, which decoding ignores
        decode_rgb(data)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        # the message of an unidentified file holds the address of a buffer, which is of no use to anybody
        why = "not an image format that Pillow knows" if "identify" in str(error) else str(error)
        return None, f"image cannot be decoded: {blob.label!r} ({why})"
    return (blob, hashlib.sha256(data).hexdigest()), None


def _check_captions(captions: Sequence[Any]) -> Checked:
    """The captions of a row as strings.

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
    if not kept or not kept[0]:
        return (), f"caption missing: {captions[0] if captions else None!r}"
    return tuple(kept), None


# --- the kinds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of stimuli.

    `check` looks at the raw cells of a source, and `column` makes a column of those that can be used; without them the kind
    does not come from tables. `distort` (stimulus, distortion, vocabulary, id and modality) changes one stimulus.
    """

    name: str
    plural: str  # in sentences
    check: Callable[[Sequence[Any], Progress], list[Checked]] | None = None
    column: Callable[[Sequence[Any]], Column] | None = None
    distortions: tuple[str, ...] = ()
    distort: Callable[..., Any] | None = None

    def problem(self, distortion: Any) -> tuple[str, str] | None:
        """The problem with a name of a distortion, and the remedy; None if it is a distortion of this kind."""
        if distortion in self.distortions:
            return None
        whose = next((kind.plural for kind in KINDS.values() if distortion in kind.distortions), None)
        problem = f"{distortion!r} is no distortion of {self.plural}" + (f" but of {whose}" if whose else "")
        return problem, did_you_mean(str(distortion), self.distortions)


TEXT = Kind(
    "text", "captions", lambda cells, _: list(map(_check_captions, cells)), lambda kept: Texts(tuple(kept)),
    tuple(CAPTIONS), distort_captions,
)  # fmt: skip
IMAGE = Kind(
    "image", "images", _check_images, lambda kept: EncodedImages(*zip(*kept, strict=True)), tuple(IMAGES), distort_image
)
ARRAY = Kind("array", "arrays")
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (TEXT, IMAGE, ARRAY)}
DISTORTIONS: Mapping[str, tuple[str, ...]] = {kind.name: kind.distortions for kind in (IMAGE, TEXT)}


@dataclass(frozen=True, eq=False)
class Distorted(Column):
    """A column with a distortion of every row; the digest of a row follows from what it was and what is done to it."""

    base: Column
    distortion: Distortion
    modality: str
    ids: tuple[str, ...]
    vocabulary: Vocabulary | None = None  # of captions

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.base.kind

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        how = [self.distortion.kind, self.distortion.amount, self.distortion.seed]
        if self.distortion.kind == "words":  # which takes others from elsewhere
            assert self.vocabulary is not None
            how.append(self.vocabulary.digest)
        given = (json.dumps(["repalign-distort-1", d, *how], separators=(",", ":")) for d in self.base.digests)
        return tuple(hashlib.sha256(g.encode()).hexdigest() for g in given)

    def read(self, row: int) -> Any:
        distort = KINDS[self.kind].distort
        assert distort is not None
        return distort(self.base.read(row), self.distortion, self.vocabulary, self.ids[row], self.modality)

    def take(self, rows: Sequence[int]) -> Distorted:
        return replace(self, base=self.base.take(rows), ids=tuple(self.ids[r] for r in rows))


def distorted(column: Column, how: Distortion, modality: str, ids: tuple[str, ...], where: str) -> Column:
    """A column with a distortion, itself if the amount is 0; `where` names it in the error for one that it cannot have."""
    kind = KINDS[column.kind]
    if kind.distort is None:
        raise RepalignError(
            f"{where} cannot be distorted", expected=f"stimuli of kind {' or '.join(DISTORTIONS)}",
            got=f"kind {kind.name}", remedy="change the arrays before the dataset is made of them",
        )
    if wrong := kind.problem(how.kind):
        expected = ", ".join(kind.distortions)
        raise RepalignError(f"{where}: {wrong[0]}", expected=expected, got=repr(how.kind), remedy=wrong[1])
    if isinstance(how.amount, bool) or not isinstance(how.amount, int | float) or not 0 <= how.amount <= 1:
        problem = f"{where}: the amount of {how.kind} is out of range"
        raise RepalignError(problem, expected="a number from 0 (nothing) to 1", got=repr(how.amount))
    if isinstance(how.seed, bool) or not isinstance(how.seed, int) or how.seed < 0:
        raise RepalignError(f"{where}: the seed is none", expected="a whole number, at least 0", got=repr(how.seed))
    if how.amount == 0:
        return column
    if isinstance(column, Distorted):
        raise RepalignError(
            f"{where} is distorted already", expected="stimuli as they were", got=column.distortion,
            remedy="distort the dataset that this one was made from",
        )
    vocabulary = column.vocabulary if isinstance(column, Texts) else None
    return Distorted(column, replace(how, amount=float(how.amount)), modality, ids, vocabulary)


# --- from raw rows to columns --------------------------------------------------------------------

SHOWN = 5  # rows that an error names before it only counts


@dataclass(frozen=True)
class Row:
    """One row of a source: its number there, and its raw cells by kind, unchecked."""

    row: int
    id: str
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """A row that is in no modality of the dataset, and why. `row` counts from 0 in the source."""

    id: str
    row: int
    reason: str


class Loaded(NamedTuple):
    """The fields of a `Dataset`, as a source gives them."""

    name: str
    ids: tuple[str, ...]
    columns: Mapping[str, Column]
    source: str
    revision: str | None = None
    left_out: tuple[LeftOut, ...] = ()


def assemble(
    rows: Sequence[Row], name: str, where: str, source: str, revision: str | None, on_missing: str, progress: Progress
) -> Loaded:
    """Check every row and make the columns of its cells; `where` names the source in errors."""
    choose("on_missing", on_missing, ("error", "drop"), f"on_missing={on_missing!r} is not known")
    for r in rows:
        row_id(r.id, r.row, where)
    check_unique([r.id for r in rows], [r.row for r in rows], where)
    if not rows:
        raise RepalignError(f"{where} has no rows", expected="at least one row", got="none")
    left_out: list[LeftOut] = []
    usable: dict[str, dict[int, Any]] = {}
    for kind in (k for k in KINDS.values() if k.name in rows[0].cells):
        assert kind.check is not None
        checked = kind.check([r.cells[kind.name] for r in rows], progress)
        usable[kind.name] = {r.row: value for r, (value, _) in zip(rows, checked, strict=True)}
        bad = [LeftOut(r.id, r.row, why) for r, (_, why) in zip(rows, checked, strict=True) if why is not None]
        if bad and on_missing == "error":
            named = "; ".join(f"row {b.row} (id {b.id!r}): {b.reason}" for b in bad[:SHOWN])
            more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            raise RepalignError(
                f"{where}: {len(bad)} of {len(rows)} rows cannot be used: {named}{more}",
                expected="a readable stimulus of every modality in every row",
                remedy='mend the rows, or pass on_missing="drop" to leave them out of every modality',
            )
        gone = {b.row for b in bad}
        rows = [r for r in rows if r.row not in gone]
        left_out += bad
        if not rows:
            got = f"row {bad[0].row} (id {bad[0].id!r}): {bad[0].reason}"
            raise RepalignError(f"{where}: no row can be used", expected="at least one row with every modality", got=got)
    columns = {name: KINDS[name].column([values[r.row] for r in rows]) for name, values in sorted(usable.items())}
    return Loaded(
        name, tuple(r.id for r in rows), columns, source, revision, tuple(sorted(left_out, key=lambda x: x.row))
    )


def row_id(value: Any, row: int, where: str) -> str:
    """An id as a string. Integers are written in decimal; anything else is an error."""
    if value is not None and (not isinstance(value, str | int) or isinstance(value, bool)):
        raise RepalignError(
            f"{where}: row {row} has an id that is no name", expected="a string or an integer",
            got=f"{value!r} ({type(value).__name__})", remedy="name the column that holds the ids",
        )
    text = "" if value is None else str(value)
    if not text.strip():
        raise RepalignError(
            f"{where}: row {row} has an empty id", expected="an id in every row: pairing is by id", got=repr(value),
            remedy="fill the id in, or take the row out of the source",
        )
    if problem := bad_text(text):
        expected, remedy = "an id that is text", "mend the id"
        raise RepalignError(f"{where}: row {row} has an id with {problem}", expected=expected, remedy=remedy)
    return text


def check_unique(ids: Sequence[str], rows: Sequence[int], where: str) -> None:
    """Refuse two rows with one id, naming both."""
    seen: dict[str, int] = {}
    for id_, row in zip(ids, rows, strict=True):
        if id_ in seen:
            raise RepalignError(
                f"{where}: rows {seen[id_]} and {row} have the same id {id_!r}",
                expected="every id once: an id names one thing in every modality", got=f"{id_!r} twice",
                remedy="make the ids unique, or take one of the two rows out",
            )
        seen[id_] = row


def named_columns(id: str | None, image: str | None, text: str | Sequence[str] | None, where: str) -> tuple[list[str], str]:
    """The text columns as a list, and what is named in words. Refuses to name neither images nor texts."""
    texts = [] if text is None else [text] if isinstance(text, str) else list(text)
    if image is None and not texts:
        raise RepalignError(
            f"{where}: no column of stimuli is named", expected="image=, text= or both", got="neither",
            remedy="name the column that holds the image or the captions",
        )
    return texts, ", ".join(f"{k}={v}" for k, v in (("id", id), ("image", image), ("text", ",".join(texts))) if v)


def check_columns(asked: Sequence[str | None], present: Sequence[str], where: str) -> None:
    """Refuse a column that is not there."""
    for column in asked:
        if column is not None:
            choose("column", column, present, f"{where} has no column {column!r}")


def captions_in(cells: Sequence[Any], names: Sequence[str], row: int, where: str) -> tuple[Any, ...]:
    """The captions of one row: of one column a string or a list (None is none), of several columns a string each."""
    if len(cells) == 1:
        (cell,) = cells
        return () if cell is None else tuple(cell) if isinstance(cell, list | tuple) else (cell,)
    for cell, name in zip(cells, names, strict=True):
        if isinstance(cell, list):
            raise RepalignError(
                f"{where}: row {row}, column {name!r} holds a list",
                expected="one caption per column where several text columns are named", got=f"a list of {len(cell)}",
                remedy=f"name {name!r} alone",
            )
    return tuple(cells)
