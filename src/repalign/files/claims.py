"""Claims: what several runs on one folder, which know nothing of one another, have at hand, so that they share the work.

Work leaves whole files or none, so what is done twice is only a waste of time. That is why a claim needs no lock.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from repalign.errors import RepalignError
from repalign.files.local import LocalFiles, temporary_name
from repalign.files.places import Files

log = logging.getLogger(__name__)

CLAIMS = "claims"  # the folder of claims, in a store or beside results
LEASE = 30.0  # seconds without a sign of life until a claim is void
LONG_AGO = 3600.0  # seconds: clocks of machines differ by less


@dataclass
class _Other:
    """Another run: what it last told, and when that was new, by our own clock that never jumps."""

    told: dict[str, Any]
    since: float


@dataclass
class Claims:
    """What this run has at hand, told to other runs on the same folder, and what they have: so that they share the work.

    A run keeps one small file, `claims/RUN.json`, with the keys of what it is at. It is renewed as long as the run lives. A claim
    is void when its file has not changed for `lease` seconds, as the one who waits counts them, so that no clock needs to agree
    with another; or when it is known that its process has ended. A run that is alone writes it beside the work, once a second and
    only if something has changed. Once another run is seen, a claim is written first, and of two that claim the same the run with
    the lesser name goes on. No lock is held: at worst work is done twice, with the same result.

    Without `files` everything is free.
    """

    files: Files | None
    lease: float = LEASE
    beat: ClassVar[float] = 1.0  # seconds between two looks at the claims of others
    run: str = field(default_factory=lambda: f"{int(time.time()):x}-{secrets.token_hex(4)}")
    others: dict[str, _Other] = field(default_factory=dict)
    mine: set[str] = field(default_factory=set)
    _told: frozenset[str] | None = None  # what our file says; None: there is none
    _told_at: float = 0.0
    _count: int = 0
    _lock: Any = field(default_factory=threading.RLock, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)

    def __enter__(self) -> Claims:
        self.look()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._told is not None and self.files is not None:
            with suppress(RepalignError, OSError):
                self.files.remove(self._name(self.run))
                if isinstance(self.files, LocalFiles):
                    (self.files.root / CLAIMS).rmdir()  # if it is empty

    def take(self, keys: Sequence[str]) -> bool:
        """Whether the keys are free; they are claimed then."""
        if self.files is None or not keys:
            return True
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, daemon=True)
            self._thread.start()
        if not self.others:  # no lock: the thread may be waiting for a slow folder
            self.mine.update(keys)
            return True
        with self._lock:
            self.look()
            if self._held(keys):
                return False
            self.mine.update(keys)
            self._tell()
            self.look()
            if any(run < self.run for run in self._held(keys)):
                self.give(keys)
                return False
            return True

    def give(self, keys: Sequence[str]) -> None:
        """What is made, or not to be made, is claimed no longer."""
        self.mine.difference_update(keys)

    def look(self) -> None:
        """See what others have at hand; void claims are removed."""
        if self.files is None:
            return
        with self._lock:
            there = self.files.listing(CLAIMS)
            runs = {name.removesuffix(".json") for name in there if name.endswith(".json")} - {self.run}
            for run in runs | self.others.keys():
                told, now = self._read(run) if run in runs else None, time.monotonic()
                if told is None:
                    self.others.pop(run, None)
                    continue
                if run not in self.others or self.others[run].told != told:
                    self.others[run] = _Other(told, now)
                if self._is_void(self.others[run], now):
                    del self.others[run]
                    with suppress(RepalignError, OSError):
                        self.files.remove(self._name(run))

    def _held(self, keys: Sequence[str]) -> list[str]:
        """The other runs that have any of these at hand."""
        return [run for run, other in self.others.items() if not set(keys).isdisjoint(other.told["keys"])]

    def _is_void(self, other: _Other, now: float) -> bool:
        told = other.told
        if told["host"] == socket.gethostname() and not _is_alive(told["pid"]):
            return True
        return now - other.since > self.lease or time.time() - told["until"] > LONG_AGO

    def _read(self, run: str) -> dict[str, Any] | None:
        assert self.files is not None
        try:
            told = json.loads(bytes(self.files.read(self._name(run))))
            return {"keys": list(told["keys"]), "host": str(told["host"]), "pid": int(told["pid"]),
                    "until": float(told["until"]), "count": told["count"]}  # fmt: skip
        except (OSError, RepalignError, ValueError, KeyError, TypeError):  # it has gone, or is no claim
            return None

    def _tell(self) -> None:
        assert self.files is not None
        self._count, mine = self._count + 1, self.mine.copy()
        about = {"run": self.run, "host": socket.gethostname(), "pid": os.getpid(), "keys": sorted(mine),
                 "until": time.time() + self.lease, "count": self._count}  # fmt: skip
        try:
            self._put(json.dumps(about).encode())
        except (RepalignError, OSError) as error:  # others then do the same work: no reason to stop
            log.info("a claim could not be written: %s", error)
            return
        self._told, self._told_at = frozenset(mine), time.monotonic()

    def _put(self, data: bytes) -> None:
        """Whole or not at all. On a disk without a flush, which costs more than all the rest: a power cut ends this run too."""
        if not isinstance(self.files, LocalFiles):
            assert self.files is not None
            self.files.write(self._name(self.run), data)
            return
        path = self.files.root / self._name(self.run)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(temporary_name(path.name))
        unfinished.write_bytes(data)
        unfinished.replace(path)

    def _live(self) -> None:
        while not self._stop.wait(self.beat):
            with self._lock, suppress(Exception):  # a folder that does not answer: the work goes on without claims
                if self._told != self.mine or time.monotonic() - self._told_at > self.lease / 3:
                    self._tell()
                self.look()

    @staticmethod
    def _name(run: str) -> str:
        return f"{CLAIMS}/{run}.json"


def _is_alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
