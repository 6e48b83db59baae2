"""A folder of this machine, whose files are there whole or not at all.

A file is written under a temporary name in its own folder, flushed, and renamed; the folder is flushed too, so that the
new name survives a power cut. A writer holds a lock on its temporary file: what a killed process left behind can be told
from what another one is writing at this moment.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from repalign.errors import RepalignError

try:
    import fcntl
except ImportError:  # Windows: temporary files are told apart by their age alone
    fcntl = None

log = logging.getLogger(__name__)
Chunk = bytes | bytearray | memoryview
TEMPORARY = re.compile(r"^\.(?P<name>.+)\.tmp-(?:\d+-)?[0-9a-f]{8}$")
STALE_AFTER = 3600.0  # seconds; for folders, and file systems without locks


class Unreachable(RepalignError):  # noqa: N818
    """A file of which nothing is known: what lies behind a URL did not answer, or a disk or a server refused to read it."""


def cannot_write(target: object, error: OSError, size: int | None = None) -> RepalignError:
    """The error for a file that the system did not let us write, with a remedy."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return RepalignError(
            f"{target} cannot be written: {error.strerror or error}",
            remedy="choose another folder, or mend this one; then run the same command: it resumes",
        )
    folder = next(p for p in Path(str(target)).absolute().parents if p.exists())
    return RepalignError(
        f"{target} cannot be written: the disk is full",
        expected=None if size is None else f"room for {size:,} bytes",
        got=f"{shutil.disk_usage(folder).free:,} bytes free in {folder}",
        remedy="free some space and run again: what is finished is kept",
    )


def cannot_read(target: object, error: OSError) -> Unreachable:
    """The error for a file or folder that the system did not let us read, or remove."""
    remedy = "see that it may be read; then run the same command again: it resumes"
    return Unreachable(f"{target} cannot be read: {error.strerror or error}", remedy=remedy)


def temporary_name(name: str) -> str:
    """`a/part` -> `a/.part.tmp-<pid>-<8 random hex digits>`."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}.{last}.tmp-{os.getpid()}-{secrets.token_hex(4)}"


def lock(handle: IO[bytes]) -> bool | None:
    """Lock an open file for as long as it is open. False: another process has it; None: no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


@contextmanager
def replacing(path: Path, size: int | None = None) -> Iterator[Path]:
    """A temporary path in the folder of `path`, which it replaces on success; on any failure it is removed.

    Raises RepalignError for what the system refuses at any step; it names `size`, the bytes to be written, if the disk is full.
    """
    handle, is_there = None, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            temporary = path.with_name(temporary_name(path.name))
            handle = temporary.open("xb")
            # A sweep may take the file between its creation and its lock; it holds the lock while it does.
            if lock(handle) is not False and temporary.exists():
                break
            handle.close()
        else:
            raise RepalignError(
                f"{path}: the temporary file was removed three times while it was written",
                remedy="see that no other program cleans this folder",
            )
        yield temporary
        os.fsync(handle.fileno())
        temporary.replace(path)
        is_there = True
        if os.name == "posix":  # the rename survives a power cut only if the folder is flushed too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise cannot_write(path, error, size) from error
    finally:
        if handle is not None:
            handle.close()
            if not is_there:
                with suppress(OSError):  # what cannot be removed now a sweep will take
                    temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class LocalFiles:
    """A folder of this machine. Names are relative, with forward slashes."""

    root: Path

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None if there is no such file."""
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise cannot_read(self.root / name, error) from error

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        """The bytes of a file, or of a stretch of it; fewer if it is shorter. FileNotFoundError if there is no such file."""
        try:
            with (self.root / name).open("rb") as handle:
                handle.seek(start)
                if stop is None:
                    return bytearray(handle.read())
                data = bytearray(stop - start)
                return data[: handle.readinto(data)]
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            raise cannot_read(self.root / name, error) from error

    def write(self, name: str, *chunks: Chunk) -> None:
        """Make or replace a file, whole or not at all, and its folder if there is none. RepalignError if that cannot be done."""
        with replacing(self.root / name, sum(map(len, chunks))) as temporary, temporary.open("r+b") as handle:
            for chunk in chunks:
                handle.write(chunk)

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if it is not there."""
        try:
            (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.root / name, error) from error

    def listing(self, folder: str = "") -> dict[str, int | None]:
        """Names in a folder, sorted: bytes of a file, None for a folder. Empty if there is no such folder."""
        found: dict[str, int | None] = {}
        try:
            for path in sorted((self.root / folder).iterdir()):
                size = None if path.is_dir() else self.size(f"{folder}/{path.name}" if folder else path.name)
                if path.is_dir() or size is not None:  # else it was removed in the meantime
                    found[path.name] = size
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise cannot_read(self.root / folder, error) from error
        return found

    def modified(self, name: str) -> float:
        """When a file was written, in the seconds of `time.time`; 0 if it is not there."""
        try:
            return (self.root / name).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return 0.0
        except OSError as error:
            raise cannot_read(self.root / name, error) from error

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it: at once, under a temporary name, which a sweep takes if this is cut off."""
        aside = self.root / temporary_name("removed")
        try:
            (self.root / name).rename(aside)
        except OSError as error:
            raise RepalignError(f"{self.root / name} cannot be removed: {error.strerror or error}") from error
        shutil.rmtree(aside, ignore_errors=True)

    def sweep(self, folder: str = "") -> None:
        """Remove the temporary files and folders that killed writers left in a folder."""
        try:
            names = os.listdir(self.root / folder)  # noqa: PTH208  (names are enough)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise cannot_read(self.root / folder, error) from error
        for name in filter(TEMPORARY.match, names):
            if self.is_abandoned(f"{folder}/{name}" if folder else name, remove=True):
                log.info("removed %s, left by a run that was cut off", self.root / folder / name)

    def is_abandoned(self, name: str, *, remove: bool = False) -> bool:
        """Whether nobody is writing this temporary file any more; `remove` takes it away while no writer can begin."""
        path, is_folder = self.root / name, (self.root / name).is_dir()
        try:
            with nullcontext() if is_folder else path.open("r+b") as handle:  # a folder cannot be locked
                locked = None if handle is None else lock(handle)
                abandoned = time.time() - path.stat().st_mtime > STALE_AFTER if locked is None else locked
                if abandoned and remove:
                    shutil.rmtree(path, ignore_errors=True) if is_folder else path.unlink()
                return abandoned
        except OSError:  # gone in the meantime, or not ours
            return False


def made_once(folder: Path, write: Callable[[Path], object]) -> Path:
    """The folder; `write` fills it if it is not there.

    Of two processes that write at once the first to finish wins: both must write the same content.
    """
    unfinished = folder.with_name(temporary_name(folder.name))
    try:
        if folder.is_dir():
            return folder
        LocalFiles(folder.parent).sweep()
        unfinished.mkdir(parents=True)
        write(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
