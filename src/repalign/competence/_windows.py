"""Sliding windows over a stream of tokens: every token that is to be scored is scored in exactly one window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Window:
    """Token ids that go through the model together, and the places of those that are scored."""

    ids: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass
class Windows:
    """Cuts a stream into windows of at most `context` tokens that move on by `stride`.

    A window scores what the one before has not scored, so that a scored token sees all of the stream before it, or at
    least `context - stride` tokens. `lead` is put in front of every window but does not belong to the stream.
    """

    context: int
    stride: int
    lead: tuple[int, ...] = ()
    held: list[int] = field(default_factory=list)  # from the first token of the next window on
    due: list[bool] = field(default_factory=list)  # which of them are still to be scored

    def add(self, ids: Sequence[int], scored: Sequence[bool]) -> list[Window]:
        """The windows that are full with these tokens; one that is only just full waits for `end`."""
        self.held += ids
        self.due += scored
        out = []
        while len(self.held) > self._size:
            out += self._window()
            del self.held[: self.stride], self.due[: self.stride]
        return out

    def end(self) -> list[Window]:
        """The last window of the stream; a new stream begins."""
        out = self._window()
        self.held, self.due = [], []
        return out

    @property
    def _size(self) -> int:
        return self.context - len(self.lead)

    def _window(self) -> list[Window]:
        ids, due = self.held[: self._size], self.due[: self._size]
        self.due[: self._size] = [False] * len(due)
        if not any(due):
            return []
        shift = len(self.lead)
        return [Window((*self.lead, *ids), tuple(shift + i for i, d in enumerate(due) if d))]

    def state(self) -> dict[str, Any]:
        return {"held": list(self.held), "due": [int(d) for d in self.due]}

    def restore(self, state: dict[str, Any]) -> None:
        self.held, self.due = list(state["held"]), [bool(d) for d in state["due"]]
