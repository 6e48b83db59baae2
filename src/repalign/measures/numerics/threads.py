"""Several layers at once, each in a thread of its own: what is not a matrix product then takes all cores, too."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T, R = TypeVar("T"), TypeVar("R")

_lock = threading.Lock()
_depth = 0
_saved = 1


@contextmanager
def _threads_each(count: int) -> Iterator[None]:
    """Operations of torch on a CPU take `count` threads each, in this thread and in those that ask for it within.

    Torch has one setting for the thread that sets it and for all products, so uses are counted: the first one in saves the
    number of threads, the last one out restores it.
    """
    global _depth, _saved
    with _lock:
        if _depth == 0:
            _saved = torch.get_num_threads()
        _depth += 1
    torch.set_num_threads(count)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                torch.set_num_threads(_saved)


def each(work: Callable[[T], R], layers: Iterable[T], at_once: int) -> Iterator[R]:
    """`work` of every layer, in their order, `at_once` at a time but not more than torch has threads.

    A layer has many passes over few megabytes, which one core does as soon as two, and few products. So a thread for a layer
    is sooner done than all threads for each operation. Layers are taken from their iterator as they are needed, in the calling
    thread.
    """
    threads = torch.get_num_threads()
    at_once = min(at_once, threads)
    if at_once < 2:
        yield from map(work, layers)
        return
    waiting: deque[Future[R]] = deque()
    own = threads // at_once
    with _threads_each(own), ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(own,)) as pool:
        for layer in layers:
            waiting.append(pool.submit(contextvars.copy_context().run, work, layer))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
