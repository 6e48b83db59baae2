"""Tiles computed here or by workers, in groups: each kept as soon as it is done, all given in order."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from repalign.comparison.doctor import APART, Examination
from repalign.comparison.kept import Kept, name_of
from repalign.comparison.tiles import Cache, Scored, Tile, as_one, groups_of
from repalign.comparison.ways import WAYS, Judged, judged_tile, matmul_rate, scored_of
from repalign.files import place_of
from repalign.measures.measure import Measure, counting
from repalign.text import Progress, silent
from repalign.workers import Claims, Share, Task, computing, count_of, memory_of
from repalign.workers import work as do

TILE_SECONDS = 0.1  # of a tile whose measure was not tried, and of every other besides: it matters where some take minutes
TURNS = 8  # jobs for every worker
TELL_EVERY = 0.2  # seconds, within a tile


def run_tiles(
    tiles: Sequence[Tile], kept: Kept | None, executor: Executor | None, budget: int, progress: Progress,
    examination: Examination, seconds: Mapping[Measure, float] = MappingProxyType({}),
) -> list[Scored]:  # fmt: skip
    """Compute the tiles that are not there yet, keep each group as soon as it is done, return all in order.

    `seconds` that measures take, as far as they are known: a tile of a slow one is more of the work than that of another.
    """
    done = {} if kept is None else dict(kept.find(tiles))
    work = _Work(tiles, seconds, progress)
    work.add(*done, note=f"{len(done)} of {len(tiles)} parts were done in an earlier run, and are taken" if done else None)
    groups = list(missing_of(groups_of(tiles), done).values())
    missing = [tiles[i] for group in groups for i in group]
    if any(t.settings.way for t in missing) and progress is not silent:
        rate = matmul_rate()
        for measure in dict.fromkeys(t.measure for t in missing if t.settings.way):  # what they will cost, before it is paid
            some = [t for t in missing if t.measure is measure]
            progress(f"plan for {measure!r}", 0, 0, WAYS[some[0].settings.way].plan(some, rate))
    # Those of a measure in one array: many small ones would lie between what is freed, which then is not given back.
    count = Counter(id(t.measure) for t in missing)
    draws: dict[tuple[int, int], Iterator[np.ndarray]] = {}  # rows, by measure and number of draws
    for group, some in _computed(tiles, groups, kept, executor, budget, progress, examination, work):
        for i, one in zip(group, some, strict=True):
            place = id(tiles[i].measure), len(one.draws)
            if place not in draws:
                draws[place] = iter(np.empty((count[place[0]], place[1])))
            own = next(draws[place])
            own[:] = one.draws
            done[i] = replace(one, draws=own)
        work.add(*group)
    return as_one([done.pop(i) for i in range(len(tiles))])


def run_share(
    share: Share, tiles: Sequence[Tile], kept: Kept, executor: Executor | None, budget: int, progress: Progress,
    examination: Examination,
) -> tuple[list[int], int]:  # fmt: skip
    """Compute and keep those groups of a share that are not there: the places of the groups that are missing then, of how many."""
    every = groups_of(tiles)
    missing, count = missing_of(every, {i for i, _ in kept.find(tiles)}), len(every)
    own = [[tiles[i] for i in missing[k]] for k in share.of(count) if k in missing]
    of, starts = [t for some in own for t in some], itertools.accumulate(map(len, own), initial=0)
    work = _Work(of, {}, progress)
    places = [list(range(start, start + len(some))) for start, some in zip(starts, own, strict=False)]
    for group, _ in _computed(of, places, kept, executor, budget, progress, examination, work):
        work.add(*group)
    there = kept.names()
    return [k for k, group in missing.items() if name_of([tiles[i] for i in group]) not in there], count


def _computed(
    tiles: Sequence[Tile], groups: Sequence[list[int]], kept: Kept | None, executor: Executor | None, budget: int,
    progress: Progress, examination: Examination, told: _Work,
) -> Iterator[tuple[list[int], list[Scored]]]:  # fmt: skip
    """Groups of tiles, here or in workers, each with its rows as soon as they are there; what another run is at comes last."""
    of = [[tiles[i] for i in group] for group in groups]
    names = [name_of(some) if kept is not None else "" for some in of]
    jobs: list[list[int]]  # places among the groups
    if executor is None:
        cache = Cache(budget, [t for some in of for t in some], examination, progress)
        jobs = [[k] for k in _in_order(tiles, groups, cache)]
    else:
        # A job is a run of groups that share models, with a cache of its own that ends with it; there are a few for every worker,
        # so that none waits long for the last.
        order = sorted(range(len(groups)), key=lambda k: (of[k][0].x.name, of[k][0].y.name))
        length = max(1, len(order) // (TURNS * count_of(executor)))
        jobs = [order[start : start + length] for start in range(0, len(order), length)]

    looks = len(examination.models) <= APART

    def here(k: int) -> tuple[list[list[Scored]], dict[str, Any]]:
        return [compute_group(of[k], cache, kept, progress, lambda j: told.within(groups[k][j]))], {}

    def task(job: list[int]) -> Task:
        first, last = of[job[0]][0], of[job[-1]][-1]
        what = f"{first.measure!r} of {first.x.name} and {first.y.name}"
        what += "" if first is last else f" to {last.measure!r} of {last.x.name} and {last.y.name}"
        keys = tuple(names[k] for k in job) if kept is not None else ()
        if executor is None:
            return Task(what, here, (job[0],), keys, about=job)
        return Task(what, compute_groups, ([of[k] for k in job], memory_of(executor, budget), kept, looks), keys, about=job)

    with Claims(None if kept is None or not groups else kept.files) as claims:

        def needless(task: Task) -> bool:
            return bool(claims.others) and kept is not None and all(kept.holds(of[k]) for k in task.about)

        with closing(do([task(job) for job in jobs], executor, claims, needless)) as finished:
            for one, future in finished:
                if future is not None:
                    scored, found = future.result()
                else:  # another run has computed them; what cannot be read of it is computed again
                    assert kept is not None
                    read = [dict(kept.find(of[k])) for k in one.about]
                    whole = all(len(some) == len(of[k]) for k, some in zip(one.about, read, strict=True))
                    if whole:
                        scored, found = [[some[j] for j in range(len(some))] for some in read], {}
                    else:
                        scored, found = compute_groups([of[k] for k in one.about], budget, kept)
                examination.found.update(found)
                for k, some in zip(one.about, scored, strict=True):
                    if executor is not None and kept is not None and not kept.holds(of[k]):  # a worker with a disk of its own
                        kept.write(of[k], some)
                    yield groups[k], some


def missing_of(groups: Sequence[list[int]], done: Container[int]) -> dict[int, list[int]]:
    """Of `groups_of` all tiles, by their places, the tiles that are not done.

    So whoever works on the same tiles has the same groups, whatever was done when it began.
    """
    left = ((k, [i for i in group if i not in done]) for k, group in enumerate(groups))
    return {k: group for k, group in left if group}


def compute_group(
    tiles: Sequence[Tile], cache: Cache, kept: Kept | None = None, progress: Progress = silent,
    within: Callable[[int], Callable[[int], None]] | None = None,
) -> list[Scored]:  # fmt: skip
    """Compute a group of tiles, and keep it.

    `within` gives, for the place of a tile in the group, what is told of the pairs of layers that were just compared.
    """
    judged: dict[int, Judged] = {}
    for k in cache.order(tiles) if len(tiles) > 1 else (0,):  # whatever the order, the same table
        with nullcontext() if within is None else counting(within(k)):
            judged[k] = judged_tile(tiles[k], cache, progress)
        cache.used(tiles[k])
    made = ", ".join(f"{name} {value}" for name, value in computing(tiles[0].settings.device).items())
    scored = scored_of([judged[k] for k in range(len(tiles))], made)
    if kept is not None:
        kept.write(tiles, scored)
    return scored


def compute_groups(
    groups: Sequence[Sequence[Tile]], budget: int, kept: Kept | None, looks: bool = True
) -> tuple[list[list[Scored]], dict[str, Any]]:  # fmt: skip
    """Some groups in a worker, with one cache, and the doctor's findings on their layers if it `looks`."""
    tiles = [t for group in groups for t in group]
    folder = None if kept is None or not looks else place_of(kept.files.root)
    examination = Examination([r for t in tiles for r in (t.x, t.y)], folder, looks=looks)
    cache = Cache(budget, tiles, examination)
    return [compute_group(group, cache, kept) for group in groups], {k: v for k, v in examination.found.items() if v}


def _in_order(tiles: Sequence[Tile], groups: Sequence[list[int]], cache: Cache) -> list[int]:
    """Which group after which, by their places, so that models are prepared as rarely as the memory allows."""
    if len(groups) < 2:
        return list(range(len(groups)))
    of = [(k, i) for k, group in enumerate(groups) for i in group]
    return list(dict.fromkeys(of[j][0] for j in cache.order([tiles[i] for _, i in of])))


class _Work:
    """Tells how much of some tiles is done, in tiles of their mean cost, and within a tile by the pairs of layers compared."""

    def __init__(self, tiles: Sequence[Tile], seconds: Mapping[Measure, float], progress: Progress) -> None:
        count = Counter(t.measure for t in tiles)
        each = [TILE_SECONDS + seconds.get(t.measure, 0.0) / count[t.measure] for t in tiles]
        self.tiles, self.progress, self.count, self.done, self.told = tiles, progress, 0, 0.0, 0.0
        mean = sum(each) / max(1, len(tiles))
        self.shares = [s / mean for s in each]

    def add(self, *finished: int, note: str | None = None) -> None:
        self.count += len(finished)
        self.done += sum(self.shares[i] for i in finished)
        self._tell(note=note)

    def within(self, i: int) -> Callable[[int], None]:
        """To be called with the number of pairs of layers of tile i that have just been compared, under every draw."""
        tile, compared = self.tiles[i], 0
        total = len(tile.x.layers) * len(tile.y.layers) * (1 + tile.settings.null.count(tile.x.n))

        def count(more: int) -> None:
            nonlocal compared
            compared += more
            if time.monotonic() - self.told > TELL_EVERY:
                self._tell(self.shares[i] * min(0.99, compared / total))  # its rows are still to be made

        return count

    def _tell(self, more: float = 0.0, note: str | None = None) -> None:
        self.told, n = time.monotonic(), len(self.tiles)
        done = n if self.count == n else round(self.done + more, 3)
        self.progress("compare", done, n, note)
