"""Columns of a dataset: one stimulus per row, read when asked for, with a digest of its content.

A column is plain data (paths, strings, arrays), so that it can be sent to another process.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from repalign.dataset._distortions import Vocabulary
from repalign.errors import RepalignError
from repalign.tables import bad_text

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class Column(ABC):
    """The stimuli of one modality. `digests[i]` is a SHA-256 of the content of row i."""

    kind: ClassVar[str]  # "text", "image" or "array": what `read` returns
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.digests)

    @abstractmethod
    def read(self, row: int) -> Any:
        """The stimulus of one row."""

    @abstractmethod
    def take(self, rows: Sequence[int]) -> Column:
        """The same column with these rows, in this order."""


@dataclass(frozen=True)
class Texts(Column):
    """All captions of each row. The digest of a row is that of its captions as a JSON list in UTF-8.

    `whole` is the column that this one was taken from, so that all subsets of a dataset have one vocabulary.
    """

    kind: ClassVar[str] = "text"
    captions: tuple[tuple[str, ...], ...]
    whole: Texts | None = field(default=None, repr=False, compare=False)

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(_sha256(_as_json(c, row)) for row, c in enumerate(self.captions))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of all captions, those of rows that were not taken included."""
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


def _as_json(captions: tuple[str, ...], row: int) -> bytes:
    try:
        return json.dumps(list(captions), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # of captions that came without a table
        problem = next(filter(None, map(bad_text, captions)), error)
        raise RepalignError(f"row {row} has a caption with {problem}", expected="text", remedy="mend the caption") from error


class Blob(Protocol):
    """Where the bytes of one image file are."""

    @property
    def label(self) -> str:
        """What to call the image in an error."""
        ...

    def read(self) -> bytes: ...


@dataclass(frozen=True)
class FileBlob:
    """An image file. `label` is its path as the user's table or folder names it."""

    path: str
    label: str

    def read(self) -> bytes:
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class EncodedImages(Column):
    """Images as files. The digest of a row is that of the file's bytes; pixels are decoded on reading."""

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
                expected="the file that was there when the dataset was opened",
                got=error,
                remedy="put the file back, or open the dataset again",
            ) from error
        if (digest := _sha256(data)) != self.digests[row]:
            raise RepalignError(
                f"image {blob.label!r} has changed since the dataset was opened",
                expected=f"bytes with SHA-256 {self.digests[row][:12]}",
                got=digest[:12],
                remedy="open the dataset again: its fingerprint is a new one",
            )
        return decode_rgb(data)

    def take(self, rows: Sequence[int]) -> EncodedImages:
        return EncodedImages(tuple(self.blobs[r] for r in rows), tuple(self.digests[r] for r in rows))


@dataclass(frozen=True, eq=False)
class Pixels(Column):
    """Images as one uint8 array of shape (n, height, width, 3). The digest is that of the pixels."""

    kind: ClassVar[str] = "image"
    array: np.ndarray

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(array_digest(a) for a in self.array)

    def read(self, row: int) -> Image:
        from PIL import Image

        return Image.fromarray(self.array[row])

    def take(self, rows: Sequence[int]) -> Pixels:
        return Pixels(self.array[list(rows)])


@dataclass(frozen=True, eq=False)
class Arrays(Column):
    """One array per row, cut from an array of shape (n, ...). The digest covers dtype, shape and values."""

    kind: ClassVar[str] = "array"
    array: np.ndarray

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(array_digest(a) for a in self.array)

    def read(self, row: int) -> np.ndarray:
        return self.array[row]

    def take(self, rows: Sequence[int]) -> Arrays:
        return Arrays(self.array[list(rows)])


def array_digest(array: Any) -> str:
    """SHA-256 of dtype and shape (as text) and of the values, little-endian, in C order."""
    import numpy as np

    x = np.asarray(array)
    x = np.ascontiguousarray(x.astype(x.dtype.newbyteorder("<"), copy=False))
    return _sha256(f"{x.dtype.str} {np.shape(array)} ".encode() + x.tobytes())


def decode_rgb(data: bytes) -> Image:
    """The first frame of an image file as 8-bit RGB, upright.

    An EXIF orientation is applied, since whoever wrote the caption saw the picture upright.
    Transparent pixels are laid over white: the colour stored under them is arbitrary.
    16-bit greyscale is scaled to 8 bits; other deep formats have no defined white and are refused.

    Raises ValueError for a mode without a meaning in RGB, and what Pillow raises for broken files.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            return Image.fromarray(_eight_bits(image)).convert("RGB")
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode!r} have no defined range")
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, rgba).convert("RGB")
        return image.convert("RGB")


def _eight_bits(image: Image) -> np.ndarray:
    import numpy as np

    return np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)


def check_image(blob: Blob) -> tuple[str, str | None]:
    """Read and decode one image file: its digest, and why it cannot be used (None if it can)."""
    from PIL import Image

    try:
        data = blob.read()
    except FileNotFoundError:
        return "", f"image file not found: {blob.label!r}"
    except OSError as error:
        return "", f"image file cannot be read: {blob.label!r} ({error})"
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # checksums, which decoding ignores
        decode_rgb(data)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        # the message of an unidentified file holds the address of a buffer, which is of no use to anybody
        why = "not an image format that Pillow knows" if "identify" in str(error) else str(error)
        return "", f"image cannot be decoded: {blob.label!r} ({why})"
    return _sha256(data), None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
