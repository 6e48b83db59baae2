"""Files of a store: one small interface over a local folder and over any fsspec URL.

A file is there whole or not at all, as `repalign.files` has it.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

from repalign.errors import RepalignError
from repalign.files import (
    STALE_AFTER,
    TEMPORARY,
    cannot_write,
    is_abandoned,
    lock,
    sync_folder,
    temporary_name,
)

log = logging.getLogger(__name__)

Chunk = bytes | bytearray | memoryview


class Files(Protocol):
    """What a store needs of a file system. Names are relative, with forward slashes."""

    def path(self, name: str = "") -> str: ...

    def exists(self) -> bool:
        """Whether the root is there."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None if there is no such file."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytearray: ...

    def write(self, name: str, chunks: Sequence[Chunk]) -> None:
        """Make or replace a file, whole or not at all. RepalignError if that cannot be done."""
        ...

    def remove(self, name: str) -> None: ...

    def listing(self, folder: str = "") -> dict[str, int | None]:
        """Names in a folder, sorted: bytes of a file, None for a folder. Empty if there is no such folder."""
        ...

    def is_stale(self, name: str) -> bool:
        """Whether nobody is writing this temporary file any more."""
        ...


def open_files(url: str | os.PathLike[str]) -> Files:
    """The files under a local path or an fsspec URL such as `s3://bucket/folder`.

    A relative path starts from the working folder of now, wherever the files are sent: a worker has another one.
    """
    text = os.fspath(url)
    if text.startswith("file://"):
        return LocalFiles(Path(text.removeprefix("file://")).absolute())
    if "://" in text:
        return RemoteFiles(text.rstrip("/"))
    return LocalFiles(Path(text).expanduser().absolute())


def sweep(files: Files, folder: str) -> None:
    """Remove the temporary files that killed writers left in a folder."""
    for name in files.listing(folder):
        full = f"{folder}/{name}" if folder else name
        if TEMPORARY.match(name) and files.is_stale(full):
            log.info("removing %s, left by a run that was cut off", files.path(full))
            files.remove(full)


@dataclass(frozen=True)
class LocalFiles:
    """A folder of this machine."""

    root: Path

    def path(self, name: str = "") -> str:
        return str(self.root / name) if name else str(self.root)

    def exists(self) -> bool:
        if self.root.exists() and not self.root.is_dir():
            raise RepalignError(f"{self.root} is a file", expected="a folder, which is the feature store")
        return self.root.is_dir()

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        with (self.root / name).open("rb") as handle:
            handle.seek(start)
            if stop is None:
                return bytearray(handle.read())
            data = bytearray(stop - start)
            return data[: handle.readinto(data)]

    def write(self, name: str, chunks: Sequence[Chunk]) -> None:
        target = self.root / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(3):
                if self._write_once(target, self.root / temporary_name(name), chunks):
                    return
        except OSError as error:
            raise cannot_write(target, error, sum(len(c) for c in chunks)) from error
        raise RepalignError(
            f"{target}: the temporary file was removed three times while it was written",
            remedy="see that no other program cleans this folder",
        )

    def _write_once(self, target: Path, temporary: Path, chunks: Iterable[Chunk]) -> bool:
        """False if a sweep took the temporary file between its creation and its lock."""
        try:
            with temporary.open("xb") as handle:
                lock(handle)
                for chunk in chunks:
                    _write(handle, chunk)
                handle.flush()
                os.fsync(handle.fileno())
                try:
                    temporary.replace(target)
                except FileNotFoundError:
                    return False
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
        return True

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def listing(self, folder: str = "") -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        try:
            for path in sorted((self.root / folder).iterdir()):
                size = None if path.is_dir() else self.size(f"{folder}/{path.name}" if folder else path.name)
                if path.is_dir() or size is not None:  # else it was removed in the meantime
                    found[path.name] = size
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return found

    def is_stale(self, name: str) -> bool:
        return is_abandoned(self.root / name)


def _write(handle: IO[bytes], chunk: Chunk) -> None:
    handle.write(chunk)


@dataclass(frozen=True)
class RemoteFiles:
    """A folder behind an fsspec URL."""

    url: str

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise RepalignError(
                f"{self.url} cannot be opened: {error}",
                expected="a local path, or a URL that fsspec knows",
                remedy="install the file system's own package (s3fs, gcsfs, adlfs, ...)",
            ) from error

    def _full(self, name: str) -> tuple[Any, str]:
        fs, root = self._opened
        return fs, f"{root.rstrip('/')}/{name}" if name else root

    def path(self, name: str = "") -> str:
        return f"{self.url}/{name}" if name else self.url

    def __getstate__(self) -> dict[str, Any]:
        """Sent to another process: refused for the memory of this one, where nothing that is written comes back."""
        if re.search(r"(^|::)memory://", self.url):
            raise RepalignError(
                f"{self.url} is in the memory of this process: no other process can read or write it",
                expected="a folder or a URL that all workers reach",
                got="workers in other processes",
                remedy="put the store into a folder; or use threads, or no executor",
            )
        return {"url": self.url}  # each process opens it for itself

    def exists(self) -> bool:
        fs, root = self._full("")
        fs.invalidate_cache()
        return bool(fs.exists(root))

    def size(self, name: str) -> int | None:
        fs, path = self._full(name)
        fs.invalidate_cache()
        try:
            return int(fs.info(path)["size"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        fs, path = self._full(name)
        return bytearray(fs.cat_file(path, start=start, end=stop))

    def write(self, name: str, chunks: Sequence[Chunk]) -> None:
        fs, path = self._full(name)
        _, temporary = self._full(temporary_name(name))
        try:
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(temporary, b"".join(chunks))
            fs.mv(temporary, path)
        except OSError as error:
            raise RepalignError(
                f"{self.path(name)} cannot be written: {error}",
                remedy="mend the cause and run again: the parts that are finished are kept",
            ) from error

    def remove(self, name: str) -> None:
        fs, path = self._full(name)
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            log.debug("%s was removed by another process", path)

    def listing(self, folder: str = "") -> dict[str, int | None]:
        fs, path = self._full(folder)
        fs.invalidate_cache()
        try:
            items = fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        sizes = {
            item["name"].rstrip("/").rpartition("/")[2]: None if item["type"] == "directory" else item["size"]
            for item in items
        }
        return dict(sorted(sizes.items()))

    def is_stale(self, name: str) -> bool:
        fs, path = self._full(name)
        try:
            return time.time() - fs.modified(path).timestamp() > STALE_AFTER
        except (FileNotFoundError, NotImplementedError):
            return False
