"""The models of the demo, and how to train many models side by side."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from repalign.text import Progress, silent
from repalign.toyworld import models, names
from repalign.toyworld.names import RECIPES, Recipe

VISION = (
    "vision-cnn3-supervised",
    "vision-cnn16-supervised",
    "vision-cnn4-temporal",
    "vision-cnn16-temporal",
    "vision-cnn8-autoencoder",
    "vision-cnn8-augmentation",
)
LANGUAGE = (
    "language-conv8-next",
    "language-conv24-next",
    "language-conv64-next",
    "language-transformer16-next",
    "language-transformer48-next",
    "language-gru32-next",
)


def _untrained(trained: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{name.rpartition('-')[0]}-untrained" for name in trained))


def _with_checkpoints(trained: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for final in trained for name in RECIPES[final].names)


# Names by what they are for; the untrained networks are the twins of the trained ones in all but weights.
DEMO: dict[str, dict[str, tuple[str, ...]]] = {
    "image": {
        "trained": VISION,
        "checkpoints": tuple(n for n in _with_checkpoints(VISION) if n not in VISION),
        "untrained": _untrained(VISION),
        "controls": ("vision-pixels",),
    },
    "text": {
        "trained": LANGUAGE,
        "checkpoints": tuple(n for n in _with_checkpoints(LANGUAGE) if n not in LANGUAGE),
        "untrained": _untrained(LANGUAGE),
        "controls": ("language-bag",),
    },
}
DEMO_NAMES: tuple[str, ...] = tuple(n for side in DEMO.values() for group in side.values() for n in group)


def train_roster(
    wanted: Iterable[str] = DEMO_NAMES,
    cache: Path | None = None,
    workers: int = 2,
    progress: Progress = silent,
) -> list[str]:
    """Train the models that the cache does not hold, in that many processes; the names of the runs trained.

    The progress task is "training toy models"; its units are tenths of a core-second, as the recipes estimate them.
    With one worker nothing but the calling process runs.
    """
    missing = {names.find(n)[0].name for n in wanted if not models.is_cached(n, cache)}
    runs = sorted((RECIPES[n] for n in missing), key=lambda r: (-r.cost, r.name))
    board = _Board(runs, progress)
    if workers <= 1 or len(runs) <= 1:
        for recipe in runs:
            models.load(recipe.name, cache, board.follow(recipe.name))
            board.finish(recipe.name)
    else:
        _in_processes(runs, cache, min(workers, len(runs)), board)
    return [r.name for r in runs]


class _Board:
    """What is done of all runs, by their estimated cost."""

    def __init__(self, runs: list[Recipe], progress: Progress) -> None:
        self.cost = {r.name: round(10 * r.cost) for r in runs}
        self.share = dict.fromkeys(self.cost, 0.0)
        self.progress = progress
        self.tell()

    def tell(self, note: str | None = None) -> None:
        done = sum(int(self.cost[n] * share) for n, share in self.share.items())
        if self.cost:
            self.progress("training toy models", done, sum(self.cost.values()), note)

    def advance(self, run: str, share: float) -> None:
        self.share[run] = min(share, 0.99)
        self.tell()

    def finish(self, run: str) -> None:
        self.share[run] = 1.0
        self.tell(f"trained {run}" if RECIPES[run].steps else None)

    def follow(self, run: str) -> Progress:
        def report(task: str, done: int, total: int, note: str | None = None) -> None:  # noqa: ARG001
            self.advance(run, done / total)

        return report


def _in_processes(runs: list[Recipe], cache: Path | None, workers: int, board: _Board) -> None:
    context = multiprocessing.get_context("spawn")
    channel = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(channel,))
    try:
        waiting: dict[Future[None], str] = {pool.submit(_work, r.name, cache): r.name for r in runs}
        while waiting:
            finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while not channel.empty():
                board.advance(*channel.get())
            for future in finished:
                run = waiting.pop(future)
                future.result()
                board.finish(run)
    finally:
        pool.shutdown(cancel_futures=True)
        channel.close()


_channel: Any = None  # in a worker: where it reports to


def _begin(channel: Any) -> None:
    global _channel
    _channel = channel


def _work(run: str, cache: Path | None) -> None:
    """Train one run in a worker, reporting every twentieth of it."""
    told = 0.0

    def report(task: str, done: int, total: int, note: str | None = None) -> None:  # noqa: ARG001
        nonlocal told
        if done / total >= told + 0.05:
            told = done / total
            _channel.put((run, told))

    models.load(run, cache, report)
