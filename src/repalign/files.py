"""Files that are there whole or not at all, and that tell when they are not what was written.

A file is written under a temporary name in its own folder, flushed, and renamed; the folder is flushed too, so that the
new name survives a power cut. A writer holds a lock on its temporary file: what a killed process left behind can be told
from what another one is writing at this moment.

The seal of a JSON or Parquet file is the SHA-256 of its own bytes, taken with the seal's 64 digits read as zeros. So
every byte is under the seal, the file needs no companion, and other programs read it as before. A file that says nowhere
that it has a seal was written before there were seals: readers are told so, and decide.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from repalign.errors import RepalignError

if TYPE_CHECKING:
    import pyarrow as pa

try:
    import fcntl
except ImportError:  # Windows: temporary files are told apart by their age alone
    fcntl = None

TEMPORARY = re.compile(r"^\.(?P<name>.+)\.tmp-(?:\d+-)?[0-9a-f]{8}$")
STALE_AFTER = 3600.0  # seconds; only where a lock cannot tell

SEAL = "repalign-seal"
FILES = "files"  # in a sealed JSON file: the SHA-256 of the files beside it of which it speaks
_RULE = (f"{SEAL}-rule", f"{SEAL} is the SHA-256 of this file, with its own 64 digits read as zeros")
_ZEROS = "0" * 64
# In JSON a value follows its key after a colon; in a Parquet footer (Thrift) after its type and its length, 64.
_DIGITS = re.compile(SEAL.encode() + rb'(?:": ?"|\x18\x40)([0-9a-f]{64})')
AGAIN = "run the same command again: this file is made again, and what is whole is kept"


class DamagedError(RepalignError):
    """A file that is not what was written: cut short, changed, or of another run."""

    def __init__(self, path: object, problem: str, *, expected: object = None, got: object = None, remedy: str = AGAIN):
        super().__init__(f"{path} {problem}", expected=expected, got=got, remedy=remedy)
        self.path, self.problem, self.remedy = str(path), problem, remedy


# --- the seal ------------------------------------------------------------------------------------


def seal_json(value: Mapping[str, Any], **how: Any) -> str:
    """A mapping as JSON text with its seal in front; `how` goes to `json.dumps`.

    >>> text = seal_json({"n": 3})
    >>> parse_json(text.encode(), "a.json")
    ({'n': 3}, True)
    """
    how = {"indent": 1, "ensure_ascii": False, **how}
    marks = json.dumps({SEAL: _ZEROS, _RULE[0]: _RULE[1]}, indent=how["indent"])
    text = marks[:-1].rstrip() + ("," if value else "") + json.dumps(value, **how)[1:] + "\n"
    try:
        return _sealed(text.encode("utf-8")).decode("utf-8")
    except UnicodeEncodeError:  # half a surrogate, which only an escape can hold
        return seal_json(value, **{**how, "ensure_ascii": True})


def seal_html(page: str) -> str:
    """A page with its seal in a comment at its end."""
    return _sealed(f'{page.rstrip()}\n<!-- "{SEAL}": "{_ZEROS}" -->\n'.encode()).decode("utf-8")


def parse_json(data: bytes | bytearray, path: object, remedy: str = AGAIN) -> tuple[dict[str, Any], bool]:
    """The mapping of a JSON file, and whether it has a seal. `path` names the file.

    Raises DamagedError where the seal is broken, or the text is no JSON mapping.
    """
    has_seal = check_seal(data, path, remedy)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, "is no JSON", got=_first_line(error), remedy=remedy) from error
    if not isinstance(value, dict):
        raise DamagedError(path, "is no JSON object", got=type(value).__name__, remedy=remedy)
    return {k: v for k, v in value.items() if k not in (SEAL, _RULE[0])}, has_seal


def read_json(path: Path, remedy: str = AGAIN) -> tuple[dict[str, Any], bool]:
    """`parse_json` of a file. Raises DamagedError, also where it cannot be read."""
    return parse_json(read_bytes(path, remedy), path, remedy)


def seal_parquet(table: pa.Table, about: Mapping[str, str] | None = None) -> bytes:
    """A table as a Parquet file with its seal and the texts of `about` in its footer; equal tables give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, sink = table.replace_schema_metadata(None), pa.BufferOutputStream()
    # Without the schema in the footer: it is told by the columns, and would be another place to check.
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({**(about or {}), _RULE[0]: _RULE[1], SEAL: _ZEROS})
    return _sealed(sink.getvalue().to_pybytes())


def read_parquet(path: Path, remedy: str = AGAIN) -> tuple[pa.Table, dict[str, str], bool]:
    """A table, the texts about it, and whether it has a seal. Raises DamagedError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = read_bytes(path, remedy)
    has_seal = check_seal(data, path, remedy)
    try:
        table = pq.read_table(pa.BufferReader(data))
        about = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise DamagedError(path, "is no Parquet table", got=_first_line(error), remedy=remedy) from error
    own = {k: v for k, v in about.items() if k not in (SEAL, _RULE[0])}
    return table.replace_schema_metadata(None), own, has_seal


def check_seal(data: bytes | bytearray, path: object, remedy: str = AGAIN) -> bool:
    """Whether the bytes of a file carry a seal. Raises DamagedError where the seal is not that of these bytes."""
    found = list(_DIGITS.finditer(data))
    if not found and SEAL.encode() not in data:
        return False
    if len(found) != 1:
        raise DamagedError(path, "is not what was written: its seal is damaged", remedy=remedy)
    stated, is_now = found[0][1].decode(), _digest(data, *found[0].span(1))
    if stated != is_now:
        problem = "is not what was written"
        raise DamagedError(path, problem, expected=f"seal {stated}", got=f"seal {is_now}", remedy=remedy)
    return True


def _sealed(data: bytes) -> bytes:
    start, stop = next(_DIGITS.finditer(data)).span(1)
    sealed = data[:start] + _digest(data, start, stop).encode() + data[stop:]
    check_seal(sealed, "a file that is being written")  # a text that looks like a second seal is told now
    return sealed


def _digest(data: bytes | bytearray, start: int, stop: int) -> str:
    digest = hashlib.sha256(memoryview(data)[:start])
    digest.update(_ZEROS.encode())
    digest.update(memoryview(data)[stop:])
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# --- whole or not at all -------------------------------------------------------------------------


def read_bytes(path: Path, remedy: str = AGAIN) -> bytes:
    """The bytes of a file. Raises DamagedError where they cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(path, "cannot be read", got=error.strerror or str(error), remedy=remedy) from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` gives it."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def check_files(folder: Path, stated: Mapping[str, str], index: str = "run.json", remedy: str = AGAIN) -> None:
    """Hold files to the digests that a sealed file beside them states. Raises DamagedError for the first that differs."""
    for name, digest in stated.items():
        data = read_bytes(folder / name, remedy)
        got = hashlib.sha256(data).hexdigest()
        if got == digest:
            continue
        whole = check_seal(data, folder / name, remedy)  # damaged, or of another run?
        raise DamagedError(
            folder / name,
            f"is not the file of which {index} speaks" + (": a run was stopped while it wrote" if whole else ""),
            expected=f"SHA-256 {digest}",
            got=got,
            remedy=remedy,
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Make or replace a file, and its folder where there is none. RepalignError where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


class replacing:  # noqa: N801  (a context manager that reads as a verb)
    """A temporary path beside `path`, which it replaces on success; on any failure it is removed.

    Raises RepalignError for what the system refuses, at whatever step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                self.temporary = self.path.with_name(temporary_name(self.path.name))
                self.handle = self.temporary.open("xb")
                # A sweep may take the file between its creation and its lock; it holds the lock while it does.
                if lock(self.handle) is not False and self.temporary.exists():
                    return self.temporary
                self.handle.close()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                os.fsync(self.handle.fileno())
                self.temporary.replace(self.path)
                sync_folder(self.path.parent)
        except OSError as failed:
            raise cannot_write(self.path, failed) from failed
        finally:
            self.handle.close()
            self.temporary.unlink(missing_ok=True)  # not there any more where it was renamed
        if isinstance(error, OSError):
            raise cannot_write(self.path, error) from error


def temporary_name(name: str) -> str:
    """`a/part` -> `a/.part.tmp-<pid>-<8 random hex digits>`."""
    folder, _, last = name.rpartition("/")
    return f"{folder}{'/' if folder else ''}.{last}.tmp-{os.getpid()}-{secrets.token_hex(4)}"


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.match(path.name):
            is_abandoned(path, remove=True)


def is_abandoned(path: Path, *, remove: bool = False) -> bool:
    """Whether nobody is writing this temporary file any more; `remove` takes it away while no writer can begin."""
    try:
        with path.open("r+b") as handle:
            locked = lock(handle)
            abandoned = time.time() - path.stat().st_mtime > STALE_AFTER if locked is None else locked
            if abandoned and remove:
                path.unlink()
            return abandoned
    except OSError:  # gone in the meantime, or not ours
        return False


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


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where folders can be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(target: Path, error: OSError, size: int | None = None) -> RepalignError:
    """What the system said when a file was written, and what to do about it."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return RepalignError(
            f"{target} cannot be written: {error.strerror or error}",
            remedy="choose another folder, or mend this one; then run the same command: it resumes",
        )
    folder = next(p for p in target.absolute().parents if p.exists())
    return RepalignError(
        f"{target} cannot be written: the disk is full",
        expected=None if size is None else f"room for {size:,} bytes",
        got=f"{shutil.disk_usage(folder).free:,} bytes free in {folder}",
        remedy="free some space and run again: what is finished is kept",
    )
