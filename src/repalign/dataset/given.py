"""Stimuli that a user's own function is given as they are: files of any sort by their paths, and the values of cells.

Sounds, films, molecules, spectra: the user names the modality of such a column (`files: {audio: clip}`,
`values: {molecule: smiles}`), and nothing here opens them. The digest of a file covers its bytes, that of a value the value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from repalign.dataset.columns import Blob, Cells, Checked, Files, Wanted, is_files
from repalign.tables import bad_text, is_missing
from repalign.text import Progress

SCENE = ".scene"  # how the made-up files of a mock run end, which hold numbers in JSON


class GivenFiles(Files):
    """Files of any sort: each by its path, or as bytes where a frame or a data set of the hub holds them."""

    kind: ClassVar[str] = "file"
    plural: ClassVar[str] = "files"
    noun: ClassVar[str] = "file"
    suffixes = ()
    feature = "Audio, Video or another that has files"

    @staticmethod
    def decode(data: Any) -> Any:
        return data

    @classmethod
    def look(cls, blob: Blob) -> tuple[Any, str]:
        """The path with a digest that is taken piece by piece: a film may be larger than the memory."""
        if type(blob) is not Blob:
            return super().look(blob)
        with Path(blob.path).open("rb") as file:
            return blob.path, hashlib.file_digest(file, "sha256").hexdigest()

    @classmethod
    def undecoded(cls, feature: Any) -> Any:
        return replace(feature, decode=False) if hasattr(feature, "decode") else feature if is_files(feature) else None

    @classmethod
    def made_up(cls, wanted: Wanted) -> list[str]:
        """Files, by their names in the folder, of the numbers that made each scene."""
        folder = wanted.folder / f"files-{len(list(wanted.folder.iterdir()))}"  # a column's name need not be one of a folder
        folder.mkdir()
        made = [folder / f"{i:05d}{SCENE}" for i in range(len(wanted.scenes.hue))]
        for path, numbers in zip(made, Values.made_up(wanted), strict=True):
            path.write_text(json.dumps(numbers), encoding="utf-8")
        return [path.relative_to(wanted.folder).as_posix() for path in made]


@dataclass(frozen=True)
class Held:
    """A value, the digest of it, which tells it from others, and why it cannot be used (None if it can)."""

    value: Any = field(compare=False)
    digest: str
    why: str | None = None

    @property
    def label(self) -> str:
        return repr(self.value)[:60]


@dataclass(frozen=True)
class Values(Cells):
    """Values of cells: texts, numbers, lists and mappings of them, bytes, arrays."""

    kind: ClassVar[str] = "value"
    plural: ClassVar[str] = "values"
    held: tuple[Held, ...]

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(one.digest for one in self.held)

    def read(self, row: int) -> Any:
        return self.held[row].value

    def take(self, rows: Sequence[int]) -> Values:
        return replace(self, held=tuple(self.held[r] for r in rows))

    @classmethod
    def cell(cls, values: Sequence[Any], names: Sequence[str], row: int, where: str, folder: Path) -> Held:  # noqa: ARG003
        (value,) = values
        if is_missing(value):
            return Held(value, "", f"value missing: {value!r}")
        if isinstance(value, str) and (problem := bad_text(value)):
            return Held(value, "", f"a value has {problem}")
        try:
            return Held(value, hashlib.sha256(_told(value)).hexdigest())
        except (TypeError, ValueError) as error:
            return Held(value, "", f"nothing tells one {type(value).__name__} from another: {error}")

    @classmethod
    def checked(cls, cells: Sequence[Held], progress: Progress) -> list[Checked]:  # noqa: ARG003
        return [(held, held.why) for held in cells]

    @classmethod
    def made_up(cls, wanted: Wanted) -> list[list[float]]:
        """The numbers that made each scene, in a list."""
        import numpy as np

        scenes = wanted.scenes
        numbers = np.hstack([np.cos(scenes.hue), np.sin(scenes.hue), scenes.shape, scenes.x, scenes.y, scenes.size])
        return [[round(float(x), 4) for x in row] for row in numbers]


def _told(value: Any) -> bytes:
    """What stands for a value: bytes and arrays for themselves, all else by its JSON, in which nested ones have a digest."""
    import numpy as np

    if isinstance(value, bytes):
        return b"bytes " + value
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return _told(value.tolist())
        little = value.astype(value.dtype.newbyteorder("<"), copy=False)
        return f"array {little.dtype.str} {little.shape} ".encode() + little.tobytes()

    def nested(inner: Any) -> Any:
        if isinstance(inner, np.generic):
            return inner.item()
        if isinstance(inner, bytes | np.ndarray):
            return {"sha256": hashlib.sha256(_told(inner)).hexdigest()}
        raise TypeError(f"it has no JSON, and holds a {type(inner).__name__}")

    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=nested)
    return b"json " + text.encode("utf-8", "surrogatepass")
