"""A path or an address: where it leads, and what is written there, on this machine or any other."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from repalign.errors import RepalignError
from repalign.files.local import Chunk, LocalFiles, cannot_read, temporary_name
from repalign.files.remote import SECRET, RemoteFiles, refuse_memory, without_secrets

Files = LocalFiles | RemoteFiles


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
        if SECRET.search(given):
            raise RepalignError(
                f"{without_secrets(given)}: credentials have no place in an address", expected="an address without them",
                got="a password, key or signature in it",
                remedy="give them in the environment (AWS_ACCESS_KEY_ID and so on), or in ~/.config/fsspec",
            )  # fmt: skip
        return Url(given.rstrip("/"))
    path = Path(given.removeprefix("file://")).expanduser()
    return path if base is None else (base / path).absolute()


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
        refuse_memory(self.text)
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


def seen_from(path: Path | Url, folder: Path | Url) -> str:
    """The way from a folder to a file, with forward slashes, so that both can be moved together; whole, where there is none."""
    if isinstance(path, Path) and isinstance(folder, Path):
        return Path(os.path.relpath(path, folder)).as_posix()
    here, _, inside = str(path).partition("://")
    there, _, start = str(folder).partition("://")
    if (
        isinstance(path, Path)
        or isinstance(folder, Path)
        or (here, inside.split("/")[0]) != (there, start.split("/")[0])
    ):
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


def _refuse_address(path: Path) -> None:
    """Refuse what was a URL before it was a path: `Path("s3://a")` is the folder `s3:`."""
    if scheme := next((p for p in path.parts if re.fullmatch(r"[A-Za-z][\w+.-]+:", p)), None):
        raise RepalignError(f"{path}: this cannot be behind a URL", expected="a path", got=f"an address of {scheme}//")


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


def write_file(path: Path | Url, *chunks: Chunk | str) -> None:
    """Make or replace a file, and its folder if there is none; text in UTF-8. RepalignError if it cannot be written."""
    data = [chunk.encode("utf-8") if isinstance(chunk, str) else chunk for chunk in chunks]
    if isinstance(path, Path):
        _refuse_address(path)
    files = open_files(path.parent) if isinstance(path, Url) else LocalFiles(path.parent)  # errors say the path as it is given
    files.write(path.name, *data)
