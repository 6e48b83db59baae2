"""Columns of stimuli: what a kind of stimuli is, and the two forms that most kinds have, files and arrays.

A column holds the stimuli of one modality, read when asked for, with a digest of the content of each. It is plain data
(paths, strings, arrays), so that it can be sent to another process. A kind of stimuli is a subclass, which also says how raw
cells become such a column, how a stimulus is distorted and how one is made up; it has a file of its own and a row of
`kinds.KINDS`, and nothing else names it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from repalign.errors import RepalignError
from repalign.tables import bad_text, is_missing
from repalign.text import Progress

if TYPE_CHECKING:
    import numpy as np

    from repalign.dataset.texts import Vocabulary
    from repalign.toyworld.world import Attributes

# --- distortions ---------------------------------------------------------------------------------

# A kind of distortion is a function of a stimulus, an amount a in (0, 1] and the stimulus's own stream of random numbers. The
# stream does not depend on the kind or the amount: what is changed at a small amount is changed at every larger one, by the
# same draw. Which there are is said by each kind of stimuli.

# n -> the first n numbers of a stimulus's stream, uniform on 0 .. 2**64 - 1
Draw = Callable[[int], "np.ndarray"]


@dataclass(frozen=True)
class Distortion:
    """A distortion of a modality: the kind, its amount from 0 (nothing) to 1, and the seed of its random numbers."""

    kind: str
    amount: float
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.amount:g}"


def stream(*key: str | int) -> Draw:
    """The random numbers that belong to a key (seed, id, modality and, for a caption, its index).

    They are the raw output of numpy's PCG64, which every version of numpy gives alike, seeded with the first 16 bytes of
    the SHA-256 of the key as JSON.
    """
    import numpy as np

    sha = hashlib.sha256(json.dumps(key, ensure_ascii=False).encode()).digest()
    seed = int.from_bytes(sha[:16], "little")
    return lambda n: np.random.PCG64(seed).random_raw(n)


def uniform(raw: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from the upper 53 bits."""
    return (raw >> 11) * 2.0**-53


def share(n: int, amount: float) -> int:
    """A share of n items as a whole number, halves upward."""
    return math.floor(amount * n + 0.5)


def first(n: int, m: int, draw: Draw) -> list[int]:
    """The first m of n items in the stimulus's random order."""
    return draw(n).argsort(kind="stable")[:m].tolist()


def ring(n: int, amount: float, draw: Draw) -> list[tuple[int, int]]:
    """Pairs (place, whose item it takes): a share of n items moves on by one in a random ring, so that each of them moves.

    One item alone cannot change places: if the share comes to one, two do.
    """
    m = share(n, amount)
    chosen = first(n, max(m, 2), draw) if m and n > 1 else []
    return list(zip(chosen, chosen[-1:] + chosen[:-1], strict=True))


# --- columns -------------------------------------------------------------------------------------

# A raw cell as a column keeps it, and why it cannot be used (None if it can).
Checked = tuple[Any, str | None]


@dataclass(frozen=True)
class Wanted:
    """Stimuli that a mock run makes up: of one column, one for each scene, their files in a folder."""

    folder: Path
    column: str
    scenes: Attributes
    seed: int
    several: int = 1  # stimuli of a row, where the kind has several
    unequal: bool = False  # whether they differ in size


class Column(ABC):
    """The stimuli of one modality. `digests[i]` is a SHA-256 of the content of row i.

    The class says of its kind: `kind`, its name in study files and arguments; `plural`, the word in sentences; `distortions`,
    by name a function of stimulus, amount and random numbers.
    """

    kind: ClassVar[str]
    plural: ClassVar[str]
    several: ClassVar[bool] = False  # whether a row has several stimuli, of which a model reads one (`caption`)
    distortions: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    digests: tuple[str, ...]
    vocabulary: Vocabulary | None = None  # of captions: what takes the place of a word that is replaced

    @abstractmethod
    def read(self, row: int) -> Any:
        """The stimulus of one row."""

    @abstractmethod
    def take(self, rows: Sequence[int]) -> Column:
        """The same column with these rows, in this order."""

    @classmethod
    def distort(cls, stimulus: Any, how: Distortion, vocabulary: Vocabulary | None, *key: str) -> Any:  # noqa: ARG003
        """One stimulus, distorted; `key` (id and modality) names it, and so its random numbers."""
        return cls.distortions[how.kind](stimulus, how.amount, stream(how.seed, *key))


class Cells(Column):
    """A column that comes from tables, folders and the hub: made of the tuple of its checked cells."""

    @classmethod
    @abstractmethod
    def cell(cls, values: Sequence[Any], names: Sequence[str], row: int, where: str, folder: Path) -> Any:
        """The raw cell of one row: what stands in the columns that are named. Paths start from `folder`.

        Where a row has several stimuli, a tuple is one of them, and a list all of the row.
        """

    @classmethod
    def hub_cells(cls, data: Any, names: Sequence[str], ids: Sequence[str], where: str) -> list[Any]:  # noqa: ARG003
        """The raw cells of all rows of a dataset of the `datasets` library."""
        columns = [data.select_columns([name])[:][name] for name in names]
        return [cls.cell(values, names, i, where, Path()) for i, values in enumerate(zip(*columns, strict=True))]

    @classmethod
    def beside(
        cls, folder: Path, files: Sequence[Path], where: str, kinds: Sequence[str]  # noqa: ARG003
    ) -> tuple[Mapping[str, Any] | None, str]:
        """Of a folder with files of some kinds, the cells that other files hold of them, and in words where; None if none do.

        They go by the path of the file that they are of, without its suffix.
        """
        return None, ""

    @classmethod
    @abstractmethod
    def checked(cls, cells: Sequence[Any], progress: Progress) -> list[Checked]:
        """Every raw cell as the column keeps it, or why it cannot be used."""

    @classmethod
    @abstractmethod
    def made_up(cls, wanted: Wanted) -> Sequence[Any]:
        """Cells of a table for a mock run, each a view of its scene."""


# --- stimuli that are files ----------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """The bytes of one file. `label` is its path as the user's table or folder names it."""

    path: str
    label: str
    digest: str = ""  # of the bytes, once they have been looked at

    def read(self) -> bytes:
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class HubBlob(Blob):
    """One file of a `datasets.Dataset`, whose rows stay on disk (memory-mapped) until they are read; `path` is its column."""

    table: Any = None  # datasets.Dataset with this column alone, undecoded
    row: int = 0

    def read(self) -> bytes:
        cell = self.table[self.row][self.path]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise OSError("the cell is empty")
        if cell["bytes"] is not None:
            return cell["bytes"]
        return Path(cell["path"]).read_bytes()


@dataclass(frozen=True)
class HeldBlob(Blob):
    """The bytes of a file, in memory."""

    data: bytes = field(default=b"", repr=False)

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class Files(Cells):
    """Stimuli as files. The digest covers the bytes of the file, which are decoded on reading.

    A kind says which files are its own, by `suffixes` in small letters, and which feature of the `datasets` library.
    """

    suffixes: ClassVar[tuple[str, ...]]
    feature: ClassVar[str]
    noun: ClassVar[str]  # of one of its files in sentences
    whole: ClassVar[set[str]]  # digests of what could be decoded in this process: the variants of a study share their files
    blobs: tuple[Blob, ...]

    def __init_subclass__(cls) -> None:
        cls.whole = set()
        if "noun" not in vars(cls):
            cls.noun = f"{cls.kind} file"

    @staticmethod
    @abstractmethod
    def decode(data: bytes) -> Any:
        """The stimulus that a file holds. Raises ValueError, OSError or EOFError for a broken one."""

    @classmethod
    def verify(cls, data: bytes) -> None:
        """Raise what `decode` raises for a broken file."""
        cls.decode(data)

    @classmethod
    def look(cls, blob: Blob) -> tuple[Any, str]:
        """What `decode` takes of a file, and the SHA-256 of its bytes."""
        data = blob.read()
        return data, hashlib.sha256(data).hexdigest()

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(blob.digest for blob in self.blobs)

    def read(self, row: int) -> Any:
        blob = self.blobs[row]
        try:
            data, digest = self.look(blob)
        except OSError as error:
            raise RepalignError(
                f"{self.kind} {blob.label!r} can no longer be read",
                expected="the file that was there when the dataset was opened", got=error,
                remedy="put the file back, or open the dataset again",
            ) from error
        if digest != blob.digest:
            raise RepalignError(
                f"{self.kind} {blob.label!r} has changed since the dataset was opened",
                expected=f"bytes with SHA-256 {blob.digest[:12]}", got=digest[:12],
                remedy="open the dataset again: its fingerprint is a new one",
            )
        return self.decode(data)

    def take(self, rows: Sequence[int]) -> Files:
        return replace(self, blobs=tuple(self.blobs[r] for r in rows))

    @classmethod
    def cell(cls, values: Sequence[Any], names: Sequence[str], row: int, where: str, folder: Path) -> Blob | None:  # noqa: ARG003
        """The file that a cell names, relative to a folder, or whose bytes it holds; None for an empty cell."""
        path = os.fspath(values[0]) if isinstance(values[0], os.PathLike) else values[0]
        if isinstance(path, Mapping) and {*path} == {"bytes", "path"}:  # as the `datasets` library has it
            path = path["bytes"] or path["path"]
        if isinstance(path, bytes):
            return HeldBlob("", f"{cls.kind} in memory", data=path)
        if is_missing(path):
            return None
        if not isinstance(path, str) or "://" in path:
            raise RepalignError(
                f"{where}: row {row} names no {cls.noun}", got=repr(path)[:80],
                expected="a path, relative to the table's folder or to `root`",
                remedy=f"download the {cls.plural} first; a table that holds their bytes is read by `hub:`",
            )
        if problem := bad_text(path):
            raise RepalignError(f"{where}: row {row} names its {cls.kind} by {problem}", expected="a path", remedy="mend the path")
        return Blob(str((folder / path).absolute()), path)

    @classmethod
    def hub_cells(cls, data: Any, names: Sequence[str], ids: Sequence[str], where: str) -> list[Any]:
        (name,) = names
        feature = data.features[name]
        undecoded = cls.undecoded(feature)
        if undecoded is None:
            raise RepalignError(
                f"{where}: column {name!r} holds no {cls.plural}", expected=f"a column of the feature type {cls.feature}",
                got=str(feature), remedy="name another column; for paths in a table use `table:` (Dataset.from_table)",
            )
        table = data.select_columns([name]).cast_column(name, undecoded)
        return [HubBlob(name, f"{name} of {id_}", table=table, row=i) for i, id_ in enumerate(ids)]

    @classmethod
    def undecoded(cls, feature: Any) -> Any:
        """The feature type of the `datasets` library under which such a column gives its files; None where it holds none."""
        import datasets

        kind = getattr(datasets, cls.feature)
        return kind(decode=False) if isinstance(feature, kind) or is_files(feature) else None

    @classmethod
    def checked(cls, cells: Sequence[Blob | None], progress: Progress) -> list[Checked]:
        """Files with their digests, each read once, and decoded where no file of the same bytes has been."""
        out: list[Checked] = []
        progress(f"check {cls.plural}", 0, len(cells))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding leaves the interpreter lock
            for one in pool.map(cls._checked, cells):
                out.append(one)
                progress(f"check {cls.plural}", len(out), len(cells))
        return out

    @classmethod
    def _checked(cls, blob: Blob | None) -> Checked:
        if blob is None:
            return None, f"no {cls.kind} named"
        try:
            data, digest = cls.look(blob)
        except FileNotFoundError:
            return None, f"{cls.noun} not found: {blob.label!r}"
        except (OSError, ValueError) as error:
            return None, f"{cls.noun} cannot be read: {blob.label!r} ({error})"
        try:
            if digest not in cls.whole:
                cls.verify(data)
        except (OSError, ValueError, EOFError) as error:
            return None, f"{cls.kind} cannot be decoded: {blob.label!r} ({error})"
        cls.whole.add(digest)
        return replace(blob, digest=digest), None


def is_files(feature: Any) -> bool:
    """Whether a feature type of the `datasets` library is the plain form of files: their bytes and paths."""
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


# --- stimuli that are arrays ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Arrays(Column):
    """One array per row, cut from an array of shape (n, ...).

    The digest is the SHA-256 of dtype and shape (as text) and of the values, little-endian, in C order.
    """

    kind: ClassVar[str] = "array"
    plural: ClassVar[str] = "arrays"
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
