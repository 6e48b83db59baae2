"""How long work reports on itself: a callback, so that the library itself never prints."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on: `task` is a short name, `done` of `total` units are finished.

    A callback is called with done=0 when a task starts and with done=total when it ends.
    `note` carries a sentence that a person should see (a halved batch, a skipped file).
    """

    def __call__(self, task: str, done: int, total: int, note: str | None = None) -> None: ...


def silent(task: str, done: int, total: int, note: str | None = None) -> None:
    """The default: report nothing."""
