"""A folder behind an fsspec URL: an object store, a server, the memory of this process.

An object store has no rename, and shows an object only when it is whole: there a file is written at once. Requests that fail
for a moment are made again. What a message says holds no credential.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from repalign.errors import RepalignError, first_line
from repalign.files.local import STALE_AFTER, TEMPORARY, Chunk, Unreachable, temporary_name

log = logging.getLogger(__name__)

WAITS = (
    0.2,
    0.8,
    3.0,
    10.0,
)  # seconds before a request behind a URL is made again; the libraries' own tries come in addition
_PASSING = re.compile(
    r"\b(429|50[0234])\b|slow ?down|too many requests|throttl|request rate|time(d|s)?[ -]?out|connection|broken pipe|"
    "temporar|internal ?error|unavailable|try again|incomplete ?read", re.I
)  # fmt: skip
_LASTING = (PermissionError, IsADirectoryError, NotADirectoryError, ImportError, NotImplementedError)
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "az", "abfs": "az", "abfss": "az"}
# user:password@, and what signs an address
SECRET = re.compile(
    r"(?<=://)[^/@:\s]*:(?!\d+/)[^@\s]+(?=@)|(?<=[?&])((x-amz-)?(sig|signature|credential|security-token|token)=[^&\s]*)",
    re.I,
)
_SECRET_NAMES = re.compile("SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING|CREDENTIAL", re.I)


def without_secrets(text: str) -> str:
    """A text without the credentials of addresses in it, and of the environment."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    return SECRET.sub("***", text)


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
                f"{self.root} cannot be opened: {error}",
                expected="a local path, or a URL that fsspec knows",
                remedy="install the file system's own package"
                + (f": pip install 'repalign[{extra}]'" if extra else ""),
            ) from error

    @property
    def _renames(self) -> bool:
        """Whether a file can be renamed at one stroke. In an object store it is copied, and is whole as soon as it is there."""
        from fsspec.spec import AbstractFileSystem

        fs = self._fs.fs
        return type(fs).mv is not AbstractFileSystem.mv and not fs.async_impl

    def __getstate__(self) -> dict[str, Any]:
        """Sent to another process: refused for the memory of this one, where nothing that is written comes back."""
        refuse_memory(self.root)
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
                log.info("%s/%s cannot be %s at the moment (%s); again in %.1f s", self.root, name, what, first_line(error), wait)
                time.sleep(wait * random.uniform(0.5, 1.0))  # not all workers at once
        raise AssertionError

    def _unreachable(self, what: str, name: str, error: Exception, passing: bool = False) -> Unreachable:
        said = without_secrets(first_line(error))
        remedy = "see that this place is there and that your credentials may use it; then run the same command again: it resumes"
        return Unreachable(
            f"{self.root}/{name}".rstrip("/") + f" cannot be {what}: {said}",
            got=f"the same {len(WAITS) + 1} times" if passing else None,
            remedy="run the same command again later: what is finished is kept" if passing else remedy,
        )

    def size(self, name: str) -> int | None:
        try:
            about = self._ask(
                "read", name, lambda fs: (fs.fs.invalidate_cache(), fs.info(name))[1]
            )  # others write here
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


def refuse_memory(url: str) -> None:
    """Refuse to send the memory of this process to another one, where nothing that is written comes back."""
    if re.search(r"(^|::)memory://", url):
        raise RepalignError(
            f"{url} is in the memory of this process: no other process can read or write it",
            expected="a folder or a URL that all workers reach",
            got="workers in other processes",
            remedy="put the store into a folder; or use threads, or no executor",
        )
