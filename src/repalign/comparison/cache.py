"""Work once per layer: models prepared for all measures at once, in a cache that is bounded in bytes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch

from repalign import null as nulls
from repalign.comparison.identity import identity
from repalign.comparison.preprocess import Preprocess
from repalign.layers import Given
from repalign.measures.measure import Measure, State, as_layer
from repalign.measures.numerics.precision import sharing
from repalign.representation import Representation

Look = Callable[[Representation, str, Given, torch.dtype], None]


@dataclass(frozen=True)
class Settings:
    """Everything but the representations that a score depends on."""

    null: nulls.Null
    search: str
    alpha: float
    preprocess: Preprocess
    device: str
    streamed: bool = False  # through feature space, without states

    def identity(self, measure: Measure) -> str:
        """What a measure under these settings computes, as a digest of values and code; worked out once for each."""
        known: list[tuple[Measure, str]] = self.__dict__.setdefault("_known", [])
        found = next((told for m, told in known if m is measure), None)
        if found is None:
            found = identity(repr(measure), measure, *(getattr(self, f.name) for f in fields(self)))
            known.append((measure, found))
        return found


class Pair(Protocol):
    """What the order of work looks at."""

    x: Representation
    y: Representation
    measure: Measure
    settings: Settings


class Cache:
    """Models prepared for all measures of a run at once; the least recently used are dropped to keep to `budget` bytes.

    jobs : measures with their settings; a model is read once for all of them.
    look : called with every layer as it is read.
    """

    def __init__(self, budget: int, jobs: Sequence[tuple[Measure, Settings]] = (), look: Look | None = None) -> None:
        self.look = look
        self.budget = budget
        self.jobs = list(jobs)
        self.entries: OrderedDict[str, dict[str, nulls.Prepared]] = OrderedDict()
        self.per_layer = 0.0  # bytes, of the models seen so far

    def get(self, representation: Representation, measure: Measure, settings: Settings) -> nulls.Prepared:
        entry = self.entries.get(representation.key)
        if entry is None:
            self._make_room(len(representation.layers))
            entry = self.entries[representation.key] = {}
        self.entries.move_to_end(representation.key)
        name = settings.identity(measure)
        if name not in entry:
            jobs = self.jobs if any(how.identity(m) == name for m, how in self.jobs) else [(measure, settings)]
            entry.update(_prepare(representation, jobs, self.look))
            held = sum(p.nbytes for p in entry.values())
            self.per_layer = max(self.per_layer, held / max(1, len(representation.layers)))
        return entry[name]

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for entry in self.entries.values() for p in entry.values())

    def _make_room(self, n_layers: int) -> None:
        # The partner of a model in its tile stays, whatever it weighs.
        while len(self.entries) > 1 and self.nbytes + n_layers * self.per_layer > self.budget:
            self.entries.popitem(last=False)


def _prepare(
    representation: Representation, jobs: Sequence[tuple[Measure, Settings]], look: Look | None
) -> dict[str, nulls.Prepared]:
    """States of every layer for every job, layer by layer: one layer's features are in memory at a time.

    What a representation's layers share, a clipping threshold or their concatenation, needs them all at once.
    """
    device, preprocess = jobs[0][1].device, jobs[0][1].preprocess

    def checked(name: str, stored: Given) -> Any:
        layer = as_layer(stored, f"{representation.name}, layer {name}")
        if look is not None:
            look(representation, name, layer, stored.dtype)
        return layer.to(device)

    layers: Iterable[Any] = (checked(name, stored) for name, stored in _one_ahead(representation))
    if not preprocess.is_identity:
        layers = preprocess(dict(zip(representation.layers, layers, strict=True))).values()
    states: list[list[State]] = [[] for _ in jobs]
    for x in layers:
        with sharing(x):
            for (measure, _), found in zip(jobs, states, strict=True):
                found.append(measure.prepare(x))
    return {
        settings.identity(measure): settings.null.prepare(measure, found)
        for (measure, settings), found in zip(jobs, states, strict=True)
    }


def _one_ahead(representation: Representation) -> Iterator[tuple[str, Given]]:
    """Read each layer while the one before is worked on: reading and digests leave the arithmetic units idle."""
    names = representation.layers
    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(representation.load, names[0])
        for name, following in zip(names, [*names[1:], None], strict=True):
            ready = waiting.result()
            if following is not None:
                waiting = reader.submit(representation.load, following)
            yield name, ready


def in_blocks(tiles: Sequence[Pair], cache: Cache) -> Iterator[int]:
    """Order tiles so that models are prepared as rarely as the memory allows.

    As many models of the second side as fit stay, beside one of the first: they are prepared once, and those of the
    first side once per such block.
    """
    if not tiles:
        return
    first = next((t for t in tiles if not t.settings.streamed), None)
    if first is not None:
        cache.get(first.x, first.measure, first.settings)
    weight = {r.key: cache.per_layer * len(r.layers) for t in tiles for r in (t.x, t.y)}
    room = cache.budget - max(weight[t.x.key] for t in tiles)
    block_of: dict[str, int] = {}
    block, held = 0, 0.0
    for key in dict.fromkeys(t.y.key for t in tiles):
        if held and held + weight[key] > room:
            block, held = block + 1, 0.0
        block_of[key] = block
        held += weight[key]
    rank = {key: i for i, key in enumerate(dict.fromkeys(r.key for t in tiles for r in (t.x, t.y)))}
    yield from sorted(
        range(len(tiles)), key=lambda i: (block_of[tiles[i].y.key], rank[tiles[i].x.key], rank[tiles[i].y.key])
    )


def default_memory() -> int:
    """A quarter of the machine's memory."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 4
