"""Files that are there whole or not at all, on this machine or any other, and that tell when they are not what was written.

A file is written under a temporary name in its own folder, flushed, and renamed; the folder is flushed too, so that the
new name survives a power cut. A writer holds a lock on its temporary file: what a killed process left behind can be told
from what another one is writing at this moment. An object store has no rename, and shows an object only when it is whole:
there a file is written at once.

The seal of a JSON or Parquet file is the SHA-256 of its own bytes, taken with the seal's 64 digits read as zeros. So
every byte is under the seal, the file needs no companion, and other programs read it as before. A file that says nowhere
that it has a seal was written before there were seals: readers are told so, and decide.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import posixpath
import random
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from repalign.errors import RepalignError

if TYPE_CHECKING:
    import pyarrow as pa

try:
    import fcntl
except ImportError:  # Windows: temporary files are told apart by their age alone
    fcntl = None

log = logging.getLogger(__name__)

Chunk = bytes | bytearray | memoryview
TEMPORARY = re.compile(r"^\.(?P<name>.+)\.tmp-(?:\d+-)?[0-9a-f]{8}$")
STALE_AFTER = 3600.0  # seconds; for folders, and file systems without locks
WAITS = (0.2, 0.8, 3.0, 10.0)  # seconds before a request behind a URL is made again; the libraries' own tries come in addition

SEAL = "repalign-seal"
FILES = "files"  # in a sealed JSON file: the SHA-256 of the files that it speaks of
_RULE = (f"{SEAL}-rule", f"{SEAL} is the SHA-256 of this file, with its own 64 digits read as zeros")
_ZEROS = "0" * 64
FOOTER = 64 * 2**10  # bytes at the end of a Parquet file that are read at once: mostly its whole footer
# In JSON a value follows its key after a colon; in a Parquet footer (Thrift) after its type and its length, 64.
_DIGITS = re.compile(SEAL.encode() + rb'(?:": ?"|\x18\x40)([0-9a-f]{64})')
AGAIN = "run the same command again: this file is made again, and what is whole is kept"


class DamagedError(RepalignError):
    """A file that is not what was written: cut short, changed, or of another run."""

    def __init__(self, path: object, problem: str, *, expected: object = None, got: object = None, remedy: str = AGAIN):
        super().__init__(f"{path} {problem}", expected=expected, got=got, remedy=remedy)
        self.path, self.problem, self.remedy = str(path), problem, remedy


class Unreachable(RepalignError):  # noqa: N818
    """A file of which nothing is known: what lies behind a URL did not answer, or a disk or a server refused to read it."""


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
        return _sealed(bytearray(text, "utf-8")).decode("utf-8")
    except UnicodeEncodeError:  # half a surrogate, which only an escape can hold
        return seal_json(value, **{**how, "ensure_ascii": True})


def seal_html(page: str) -> str:
    """A page with its seal in a comment at its end."""
    return _sealed(bytearray(f'{page.rstrip()}\n<!-- "{SEAL}": "{_ZEROS}" -->\n', "utf-8")).decode("utf-8")


def parse_json(data: bytes | bytearray, path: object, remedy: str = AGAIN) -> tuple[dict[str, Any], bool]:
    """The mapping of a JSON file, and whether it has a seal. `path` names the file.

    Raises DamagedError if the seal is broken, or the text is no JSON mapping.
    """
    has_seal = check_seal(data, path, remedy)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, "is no JSON", got=_first_line(error), remedy=remedy) from error
    if not isinstance(value, dict):
        raise DamagedError(path, "is no JSON object", got=type(value).__name__, remedy=remedy)
    return {k: v for k, v in value.items() if k not in (SEAL, _RULE[0])}, has_seal


def read_json(path: Path | Url, remedy: str = AGAIN) -> tuple[dict[str, Any], bool]:
    """`parse_json` of a file. Raises DamagedError, also if it cannot be read."""
    return parse_json(read_bytes(path, remedy), path, remedy)


def seal_parquet(table: pa.Table, about: Mapping[str, str] | None = None) -> bytearray:
    """A table as a Parquet file with its seal and the texts of `about` in its footer; equal tables give equal bytes."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    _fill_parquet(sink, [table], about)
    return _sealed(bytearray(sink.getvalue()))


def write_parquet(path: Path | Url, parts: Iterable[pa.Table]) -> str:
    """Write the parts of a table, one after the other, as one sealed Parquet file; its SHA-256.

    On this machine neither the table nor the file is ever all in memory. RepalignError if the file cannot be written.
    """
    if isinstance(path, Url):
        import pyarrow as pa

        data = seal_parquet(pa.concat_tables(parts))
        write_file(path, data)
        return hashlib.sha256(data).hexdigest()
    with replacing(path) as temporary:
        _fill_parquet(str(temporary), parts)
        digest = file_sha256(temporary)  # with zeros in the place of the seal
        with temporary.open("r+b") as handle:
            handle.seek(-8, os.SEEK_END)
            start = handle.seek(-8 - int.from_bytes(handle.read(4), "little"), os.SEEK_END)
            handle.seek(start + next(_DIGITS.finditer(handle.read())).start(1))
            handle.write(digest.encode())
    return file_sha256(path)


def _fill_parquet(sink: Any, parts: Iterable[pa.Table], about: Mapping[str, str] | None = None) -> None:
    """A table in parts, with a place for the seal."""
    import pyarrow.parquet as pq

    tables = (table.replace_schema_metadata(None) for table in parts)
    first = next(tables)
    # Without the schema in the footer: it is told by the columns, and would be another place to check.
    with pq.ParquetWriter(sink, first.schema, compression="zstd", store_schema=False) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)
        writer.add_key_value_metadata({**(about or {}), _RULE[0]: _RULE[1], SEAL: _ZEROS})


def read_parquet(path: Path | Url, remedy: str = AGAIN) -> tuple[pa.Table, dict[str, str], bool]:
    """`parse_parquet` of a file. Raises DamagedError, also if it cannot be read."""
    return parse_parquet(read_bytes(path, remedy), path, remedy)


def parse_parquet(data: bytes | bytearray, path: object, remedy: str = AGAIN) -> tuple[pa.Table, dict[str, str], bool]:
    """The table of a Parquet file, the texts about it, and whether it has a seal. `path` names the file.

    Raises DamagedError if the seal is broken, or this is no Parquet table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    has_seal = check_seal(data, path, remedy)
    try:
        table = pq.read_table(pa.BufferReader(data))
        about = _texts(table.schema.metadata)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise DamagedError(path, "is no Parquet table", got=_first_line(error), remedy=remedy) from error
    return table.replace_schema_metadata(None), about, has_seal


def parquet_about(files: Files, name: str, size: int) -> dict[str, str]:
    """The texts about the table of a Parquet file of `size` bytes, from its footer alone, which no seal vouches for.

    Raises DamagedError if it has none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = f"{files.root}/{name}"
    try:
        end = files.read(name, max(0, size - FOOTER), size)
        length = int.from_bytes(end[-8:-4], "little") + 8
        if len(end) < length <= size:
            end = files.read(name, size - length, size)
        # A file of a footer alone is as good to a reader that asks for no column.
        return _texts(pq.read_metadata(pa.BufferReader(b"PAR1" + end[-length:])).metadata)
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        raise DamagedError(path, "is no Parquet table", got=_first_line(error)) from error


def _texts(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """What a footer says of its table, without what belongs to the seal."""
    about = {k.decode(): v.decode() for k, v in (metadata or {}).items()}
    return {k: v for k, v in about.items() if k not in (SEAL, _RULE[0])}


def check_seal(data: bytes | bytearray, path: object, remedy: str = AGAIN) -> bool:
    """Whether the bytes of a file carry a seal. Raises DamagedError if the seal is not the one of these bytes."""
    found = list(_DIGITS.finditer(data))
    if not found and SEAL.encode() not in data:
        return False
    if len(found) != 1:
        raise DamagedError(path, "is not what was written: its seal is damaged", remedy=remedy)
    stated, (start, stop) = found[0][1].decode(), found[0].span(1)
    digest = hashlib.sha256(memoryview(data)[:start])  # in three pieces, so that a large file is not copied
    digest.update(_ZEROS.encode())
    digest.update(memoryview(data)[stop:])
    if stated != digest.hexdigest():
        seals = {"expected": f"seal {stated}", "got": f"seal {digest.hexdigest()}"}
        raise DamagedError(path, "is not what was written", **seals, remedy=remedy)
    return True


def _sealed(data: bytearray) -> bytearray:
    """The bytes with their digest in the place of the zeros of the first seal, in place."""
    start, stop = next(_DIGITS.finditer(data)).span(1)
    data[start:stop] = hashlib.sha256(data).hexdigest().encode()
    check_seal(data, "a file that is being written")  # a text that looks like a second seal is told now
    return data


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# --- whole or not at all -------------------------------------------------------------------------


def read_bytes(path: Path | Url, remedy: str = AGAIN) -> bytes:
    """The bytes of a file. Raises DamagedError if they cannot be read, Unreachable where no answer came from a URL."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(path, "cannot be read", got=error.strerror or str(error), remedy=remedy) from error


def refuse_unwritable(folder: Path | Url) -> None:
    """Refuse a folder that cannot be made, or written into. Nothing is left behind."""
    if isinstance(folder, Url):
        files, probe = open_files(folder), temporary_name("probe")
        files.write(probe, b"")
        files.remove(probe)
        return
    _refuse_address(folder)
    try:
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        if not there.is_dir():
            raise NotADirectoryError(0, f"{there} is a file")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise RepalignError(
            f"{folder} cannot be written", expected="a folder, or a place where one can be made",
            got=error.strerror or str(error), remedy="name another folder, or see that this one may be written",
        ) from error  # fmt: skip


def file_sha256(path: Path | Url) -> str:
    """The SHA-256 of a file of any size, as `sha256sum` gives it. Raises DamagedError if it cannot be read."""
    if isinstance(path, Url):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(path, "cannot be read", got=error.strerror or str(error)) from error


def path_sha256(path: Path, files: Iterable[Path] | None = None) -> str:
    """The SHA-256 of a file; of a folder over the names and digests of its files, all of them or `files`."""
    if not path.is_dir():
        return file_sha256(path)
    sha = hashlib.sha256()
    for file in sorted(path.rglob("*") if files is None else files):
        if file.is_file():
            sha.update(f"{file.relative_to(path).as_posix()}:{file_sha256(file)}\n".encode())
    return sha.hexdigest()


def path_bytes(path: Path) -> int:
    """The size of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def check_files(folder: Path | Url, stated: Mapping[str, str], index: str = "run.json", remedy: str = AGAIN) -> None:
    """Hold files to the digests that a sealed file in their folder states. Raises DamagedError for the first that differs."""
    for name, digest in stated.items():
        data = read_bytes(folder / name, remedy)
        got = hashlib.sha256(data).hexdigest()
        if got != digest:
            whole = check_seal(data, folder / name, remedy)  # damaged, or of another run?
            problem = f"is not the file of which {index} speaks" + (": a run was stopped while it wrote" if whole else "")
            raise DamagedError(folder / name, problem, expected=f"SHA-256 {digest}", got=got, remedy=remedy)


def _refuse_address(path: Path) -> None:
    """Refuse what was a URL before it was a path: `Path("s3://a")` is the folder `s3:`."""
    if scheme := next((p for p in path.parts if re.fullmatch(r"[A-Za-z][\w+.-]+:", p)), None):
        raise RepalignError(f"{path}: this cannot be behind a URL", expected="a path", got=f"an address of {scheme}//")


def write_file(path: Path | Url, *chunks: Chunk | str) -> None:
    """Make or replace a file, and its folder if there is none; text in UTF-8. RepalignError if it cannot be written."""
    data = [chunk.encode("utf-8") if isinstance(chunk, str) else chunk for chunk in chunks]
    if isinstance(path, Url):
        open_files(path.parent).write(path.name, *data)
        return
    _refuse_address(path)
    with replacing(path, sum(map(len, data))) as temporary, temporary.open("r+b") as handle:
        for chunk in data:
            handle.write(chunk)


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


def cannot_write(target: object, error: OSError, size: int | None = None) -> RepalignError:
    """The error for a file that the system did not let us write, with a remedy."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return RepalignError(
            f"{target} cannot be written: {error.strerror or error}",
            remedy="choose another folder, or mend this one; then run the same command: it resumes",
        )
    folder = next(p for p in Path(str(target)).absolute().parents if p.exists())
    return RepalignError(
        f"{target} cannot be written: the disk is full", expected=None if size is None else f"room for {size:,} bytes",
        got=f"{shutil.disk_usage(folder).free:,} bytes free in {folder}",
        remedy="free some space and run again: what is finished is kept",
    )


def cannot_read(target: object, error: OSError) -> Unreachable:
    """The error for a file or folder that the system did not let us read, or remove."""
    remedy = "see that it may be read; then run the same command again: it resumes"
    return Unreachable(f"{target} cannot be read: {error.strerror or error}", remedy=remedy)


# --- a folder of this machine or of any other ----------------------------------------------------


def place_of(text: str | os.PathLike[str] | Url, base: Path | None = None) -> Path | Url:
    """Where a path or URL leads: a `Url` for any address of fsspec but file://, else a path, which starts at `base`.

    Raises RepalignError for an address with a password or key in it, which would end in files and messages.

    >>> place_of("s3://bucket/runs") / "results"
    Url('s3://bucket/runs/results')
    >>> place_of("file:///tmp/runs").name
    'runs'
    """
    if isinstance(text, Url):
        return text
    given = os.fspath(text)
    if "://" in given and not given.startswith("file://"):
        if _SECRET.search(given):
            raise RepalignError(
                f"{without_secrets(given)}: credentials have no place in an address", expected="an address without them",
                got="a password, key or signature in it",
                remedy="give them in the environment (AWS_ACCESS_KEY_ID and so on), or in ~/.config/fsspec",
            )  # fmt: skip
        return Url(given.rstrip("/"))
    path = Path(given.removeprefix("file://")).expanduser()
    return path if base is None else (base / path).absolute()


# user:password@, and what signs an address
_SECRET = re.compile(
    r"(?<=://)[^/@:\s]*:(?!\d+/)[^@\s]+(?=@)|(?<=[?&])((x-amz-)?(sig|signature|credential|security-token|token)=[^&\s]*)",
    re.I,
)
_SECRETS = re.compile("SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING|CREDENTIAL", re.I)


def without_secrets(text: str) -> str:
    """A text without the credentials of addresses in it, and of the environment."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRETS.search(name):
            text = text.replace(value, "***")
    return _SECRET.sub("***", text)


def seen_from(path: Path | Url, folder: Path | Url) -> str:
    """The way from a folder to a file, with forward slashes, so that both can be moved together; whole, where there is none."""
    if isinstance(path, Path) and isinstance(folder, Path):
        return Path(os.path.relpath(path, folder)).as_posix()
    here, _, inside = str(path).partition("://")
    there, _, start = str(folder).partition("://")
    if isinstance(path, Path) or isinstance(folder, Path) or (here, inside.split("/")[0]) != (there, start.split("/")[0]):
        return str(path)
    return posixpath.relpath(inside, start)


def walk(folder: Path | Url) -> Iterator[tuple[Path | Url, list[str], list[str]]]:
    """As `os.walk`, of a folder behind a URL too: all of it is then asked for at once."""
    if isinstance(folder, Path):

        def refuse(error: OSError) -> None:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise cannot_read(folder, error) from error

        yield from ((Path(place), inside, names) for place, inside, names in os.walk(folder, onerror=refuse))
        return
    folders: dict[str, tuple[set[str], list[str]]] = {"": (set(), [])}
    for name in open_files(folder).tree():
        above, _, last = name.rpartition("/")
        folders.setdefault(above, (set(), []))[1].append(last)
        while above:
            above, _, own = above.rpartition("/")
            folders.setdefault(above, (set(), []))[0].add(own)
    waiting = [""]
    while waiting:
        at = waiting.pop()
        inside, names = sorted(folders[at][0]), sorted(folders[at][1])
        yield folder / at if at else folder, inside, names  # who walks may take folders away
        waiting += [f"{at}/{name}".lstrip("/") for name in reversed(inside)]


@dataclass(frozen=True, order=True)
class Url:
    """A file or folder behind an fsspec URL, with as much of a `Path` as results ask for."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Url({self.text!r})"

    def __truediv__(self, name: str) -> Url:
        scheme, _, inside = self.text.partition("://")
        return Url(f"{scheme}://{posixpath.normpath(f'{inside}/{name}')}")

    def __getstate__(self) -> dict[str, Any]:
        _refuse_memory(self.text)
        return {"text": self.text}

    @property
    def parent(self) -> Url:
        above = self.text.rpartition("/")[0]
        return self if above.endswith("/") else Url(above)

    @property
    def name(self) -> str:
        return self.text.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def with_name(self, name: str) -> Url:
        return self.parent / name

    def with_suffix(self, suffix: str) -> Url:
        return self.parent / PurePosixPath(self.name).with_suffix(suffix).name

    def absolute(self) -> Url:
        return self

    resolve = absolute

    def is_file(self) -> bool:
        return open_files(self.parent).size(self.name) is not None

    def is_dir(self) -> bool:
        return bool(open_files(self).listing())

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[Url]:
        return (self / name for name in open_files(self).listing())

    def read_bytes(self) -> bytes:
        return bytes(open_files(self.parent).read(self.name))

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.text)
        open_files(self.parent).remove(self.name)


def open_files(folder: str | os.PathLike[str] | Url) -> Files:
    """The files under a local path or an fsspec URL such as `s3://bucket/folder`.

    A relative path starts from the working folder of now, wherever the files are sent: a worker has another one.
    """
    place = place_of(folder)
    if isinstance(place, Url):
        return RemoteFiles(place.text)
    root = place.absolute()
    if root.exists() and not root.is_dir():
        raise RepalignError(f"{root} is a file", expected="a folder")
    return LocalFiles(root)


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
        """Make or replace a file, whole or not at all. RepalignError if that cannot be done."""
        write_file(self.root / name, *chunks)

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


_PASSING = re.compile(
    r"\b(429|50[0234])\b|slow ?down|too many requests|throttl|request rate|time(d|s)?[ -]?out|connection|broken pipe|"
    "temporar|internal ?error|unavailable|try again|incomplete ?read", re.I
)  # fmt: skip
_LASTING = (PermissionError, IsADirectoryError, NotADirectoryError, ImportError, NotImplementedError)
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "az", "abfs": "az", "abfss": "az"}


def is_passing(error: BaseException) -> bool:
    """Whether an error of a file system may be gone in a moment: it is asked to slow down, or a connection was cut."""
    if isinstance(error, _LASTING):
        return False
    busy = (errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, getattr(errno, "EREMOTEIO", errno.EAGAIN))
    if isinstance(error, (ConnectionError, TimeoutError)) or getattr(error, "errno", None) in busy:
        return True
    return bool(_PASSING.search(f"{type(error).__name__} {getattr(error, 'status', '')} {error}"))


@dataclass(frozen=True)
class RemoteFiles:
    """As `LocalFiles`, behind an fsspec URL.

    What may pass (a server that asks to slow down, a connection that is cut) is tried again, with growing waits, a few times.
    All that then fails is `Unreachable`, but for a file that is not there.
    """

    root: str

    @cached_property
    def _fs(self) -> Any:
        """The files below the URL; names are relative."""
        import fsspec
        from fsspec.implementations.dirfs import DirFileSystem

        try:
            fs, root = fsspec.core.url_to_fs(self.root)
            return DirFileSystem(root.rstrip("/") or root, fs)
        except (ImportError, ValueError) as error:
            extra = EXTRAS.get(re.split("://|::", self.root)[0])
            raise RepalignError(
                f"{self.root} cannot be opened: {error}", expected="a local path, or a URL that fsspec knows",
                remedy="install the file system's own package" + (f": pip install 'repalign[{extra}]'" if extra else ""),
            ) from error

    @property
    def _renames(self) -> bool:
        """Whether a file can be renamed at one stroke. In an object store it is copied, and is whole as soon as it is there."""
        from fsspec.spec import AbstractFileSystem

        fs = self._fs.fs
        return type(fs).mv is not AbstractFileSystem.mv and not fs.async_impl

    def __getstate__(self) -> dict[str, Any]:
        """Sent to another process: refused for the memory of this one, where nothing that is written comes back."""
        _refuse_memory(self.root)
        return {"root": self.root}  # each process opens it for itself

    def _ask(self, what: str, name: str, request: Callable[[Any], Any]) -> Any:
        """What a request gives, tried again where its error may pass. Raises FileNotFoundError, else Unreachable."""
        for wait in (*WAITS, None):
            try:
                return request(self._fs)
            except (FileNotFoundError, NotADirectoryError, RepalignError):
                raise
            except Exception as error:
                passing = is_passing(error)
                if wait is None or not passing:
                    raise self._unreachable(what, name, error, passing) from error
                log.info("%s/%s cannot be %s at the moment (%s); again in %.1f s", self.root, name, what, _first_line(error), wait)
                time.sleep(wait * random.uniform(0.5, 1.0))  # not all workers at once
        raise AssertionError

    def _unreachable(self, what: str, name: str, error: Exception, passing: bool = False) -> Unreachable:
        said = without_secrets(_first_line(error))
        remedy = "see that this place is there and that your credentials may use it; then run the same command again: it resumes"
        return Unreachable(
            f"{self.root}/{name}".rstrip("/") + f" cannot be {what}: {said}",
            got=f"the same {len(WAITS) + 1} times" if passing else None,
            remedy="run the same command again later: what is finished is kept" if passing else remedy,
        )

    def size(self, name: str) -> int | None:
        try:
            about = self._ask("read", name, lambda fs: (fs.fs.invalidate_cache(), fs.info(name))[1])  # others write here
            return None if about["type"] == "directory" else int(about["size"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        try:  # a stretch even where it is all of it: one request, where some ask for the size first
            return bytearray(self._ask("read", name, lambda fs: fs.cat_file(name, start=start, end=stop)))
        except Unreachable as error:
            if re.search(r"InvalidRange|\b416\b|not satisfiable", str(error.__cause__)):  # the file ends before it
                return bytearray()
            raise

    def write(self, name: str, *chunks: Chunk) -> None:
        data = b"".join(chunks)

        def put(fs: Any) -> None:
            if not self._renames:
                fs.pipe_file(name, data)
                return
            temporary = temporary_name(name)
            try:
                fs.makedirs(name.rpartition("/")[0], exist_ok=True)
                fs.pipe_file(temporary, data)
                fs.mv(temporary, name)
            except BaseException:
                with suppress(Exception):
                    fs.rm_file(temporary)
                raise

        try:
            self._ask("written", name, put)
        except OSError as error:  # no such bucket
            raise self._unreachable("written", name, error) from error

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # another process removed it
            self._ask("removed", name, lambda fs: fs.rm_file(name))

    def listing(self, folder: str = "") -> dict[str, int | None]:
        try:
            items = self._ask("listed", folder, lambda fs: (fs.fs.invalidate_cache(), fs.ls(folder, detail=True))[1])
        except (FileNotFoundError, NotADirectoryError):
            return {}
        inside = (i for i in items if i["name"].strip("/") != folder.strip("/"))  # of a file some list itself
        names = {i["name"].rstrip("/").rpartition("/")[2]: None if i["type"] == "directory" else i["size"] for i in inside}
        return dict(sorted(names.items()))

    def tree(self) -> dict[str, int]:
        """Bytes of every file of all folders, by its name."""
        try:
            found = self._ask("listed", "", lambda fs: (fs.fs.invalidate_cache(), fs.find("", detail=True))[1])
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {name.lstrip("/"): about["size"] for name, about in sorted(found.items())}

    def modified(self, name: str) -> float:
        try:
            return self._ask("read", name, lambda fs: fs.modified(name)).timestamp()
        except FileNotFoundError:
            return 0.0
        except Unreachable as error:
            if isinstance(error.__cause__, NotImplementedError):  # a file system without times
                return 0.0
            raise

    def remove_folder(self, name: str) -> None:
        try:
            self._ask("removed", name, lambda fs: fs.rm(name, recursive=True))
        except FileNotFoundError as error:
            raise self._unreachable("removed", name, error) from error

    def sweep(self, folder: str = "") -> None:
        for name in self.listing(folder) if self._renames else ():  # else nothing is ever written under another name
            full = f"{folder}/{name}" if folder else name
            if TEMPORARY.match(name) and self.is_abandoned(full):
                log.info("removing %s, left by a run that was cut off", f"{self.root}/{full}")
                self.remove(full)

    def is_abandoned(self, name: str) -> bool:
        return 0.0 < self.modified(name) < time.time() - STALE_AFTER


def _refuse_memory(url: str) -> None:
    """Refuse to send the memory of this process to another one, where nothing that is written comes back."""
    if re.search(r"(^|::)memory://", url):
        raise RepalignError(
            f"{url} is in the memory of this process: no other process can read or write it",
            expected="a folder or a URL that all workers reach", got="workers in other processes",
            remedy="put the store into a folder; or use threads, or no executor",
        )


Files = LocalFiles | RemoteFiles
