"""A tile: one measure on one pair of models, a pure function of two representations.

What a tile depends on is its key, by which it is found again, so that a tile is never taken for another. Work that tiles share is
done once per layer: states, and whatever a null keeps with them, in a cache that is bounded in bytes.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

import repalign.null as nulls
from repalign.comparison.alignment import TILE_SCHEMA
from repalign.comparison.doctor import Examination
from repalign.comparison.identity import identity
from repalign.comparison.preprocess import Preprocess
from repalign.layers import Given, as_layer
from repalign.measures.measure import Measure, State
from repalign.measures.numerics.precision import sharing
from repalign.representation import Representation
from repalign.text import Progress, silent
from repalign.workers import at_once, each

# Part of every tile's name: raise it when a change of ours moves a number, so that old tiles are not reused. A change of
# the table's columns or of somebody else's code needs no hand: both are in the name by themselves.
FORMULAS = 10
STATES = frozenset({"", "closed"})  # the ways that take prepared states
COPIES, SQUARES = 3, 4  # of float32 features (n, d) and relations (n, n): about what is there while a layer is prepared
GROUPS = 256  # of tiles at most: the files of a run, and what is lost of it when it is killed


@dataclass(frozen=True)
class Settings:
    """Everything but the representations that a score depends on."""

    null: nulls.Null
    search: str
    alpha: float
    preprocess: Preprocess | None = None
    device: str = "cpu"
    way: str = ""  # a name of `ways.WAYS`; "": by prepared states

    def identity(self, measure: Measure) -> str:
        """A digest, of values and code, of what a measure computes under these settings; looked at once."""
        known = self.__dict__.setdefault("_known", {})  # with the measure, so that its id stays its own
        if known.get(id(measure), (None,))[0] is not measure:
            # Tiles say False for "" and Preprocess() for None since before the two had these names.
            parts = (self.null, self.search, self.alpha, self.preprocess or Preprocess(), self.device, self.way or False)
            known[id(measure)] = measure, identity(repr(measure), measure, *parts)
        return known[id(measure)][1]


@dataclass(frozen=True, eq=False)
class Tile:
    """One measure on one pair of models; `streams` says which relabelling each of them gets."""

    x: Representation
    y: Representation
    measure: Measure
    settings: Settings
    streams: nulls.Streams = nulls.ONE_SIDE

    @cached_property
    def key(self) -> str:
        """A digest of all that the rows hold or follow from."""
        facts = [*versions(), [side_of(self.x), side_of(self.y)], self.settings.identity(self.measure), self.streams]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def side_of(r: Representation) -> tuple[object, ...]:
    """What of a representation stands in the rows, or decides over them."""
    return r.key, r.name, r.layers, r.dataset_name, r.dataset_fingerprint, r.n


def versions() -> tuple[object, ...]:
    """What of the program does: the version of its formulas, and the columns."""
    return FORMULAS, _digest(TILE_SCHEMA)


@functools.lru_cache(1)
def _digest(schema: pa.Schema) -> str:
    return hashlib.sha256(str(schema).encode()).hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """The result of a tile: its rows of the table, the null draws of its layer search (K,), and what the run says of its way.

    The rows are those from `start` to `stop` of a table that tiles of one group share: a frame for each of a hundred thousand
    would weigh more than what is in it.
    """

    table: pa.Table | pd.DataFrame
    start: int
    stop: int
    draws: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)
    made: str = ""  # with which threads and processor, as far as it is known

    @property
    def rows(self) -> pd.DataFrame:
        """The row of the layer search, then one for each pair of layers."""
        if isinstance(self.table, pd.DataFrame):
            return self.table.iloc[self.start : self.stop].reset_index(drop=True)
        return self.table.slice(self.start, self.stop - self.start).to_pandas()


def table_of(scored: Sequence[Scored]) -> pa.Table:
    """The rows of some tiles, one after the other."""
    every, at = _in_order(scored)
    return every if at is None else every.take(at)


def as_one(scored: list[Scored]) -> list[Scored]:
    """The same, in the place of those given, with one table of pandas for all.

    Where nothing else holds the tables of groups, a column of theirs goes as soon as that of pandas is there.
    """
    every, at = _in_order(scored)
    ends, none = np.cumsum([one.stop - one.start for one in scored]).tolist(), pd.DataFrame()
    scored[:] = [replace(one, table=none, start=a, stop=b) for one, a, b in zip(scored, [0, *ends], ends, strict=False)]
    columns = {}
    for name in every.column_names:
        column, every = every[name], every.drop_columns(name)
        columns[name] = (column if at is None else column.take(at)).to_pandas()
    table = pd.DataFrame(columns, copy=False)
    scored[:] = [replace(one, table=table) for one in scored]
    return scored


def _in_order(scored: Sequence[Scored]) -> tuple[pa.Table, pa.Array | None]:
    """All tables of some tiles, and where their rows are in these; None for all as they are."""
    tables = {id(one.table): one.table for one in scored}
    begins = dict(zip(tables, np.cumsum([0, *map(len, tables.values())]).tolist(), strict=False))
    starts = np.array([begins[id(one.table)] + one.start for one in scored])
    lengths = np.array([one.stop - one.start for one in scored])
    ends = np.cumsum(lengths)
    at = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1])
    every = pa.concat_tables(tables.values())
    return every, None if len(at) == len(every) and np.array_equal(at, np.arange(len(at))) else pa.array(at)


def groups_of(tiles: Sequence[Tile], most: int = GROUPS) -> list[list[int]]:
    """The places of all tiles, in at most `most` groups: what is computed together, and kept in one file.

    The same for the same list of tiles, wherever it is asked. Up to `most` tiles are a group each. More are put together by
    blocks of models, so that a group of many pairs prepares few models; where there are fewer blocks than groups may be, also
    by measures.
    """
    if len(tiles) <= most:
        return [[i] for i in range(len(tiles))]
    models = {name: i for i, name in enumerate(dict.fromkeys([t.x.name for t in tiles] + [t.y.name for t in tiles]))}
    measures = {of: i for i, of in enumerate(dict.fromkeys(id(t.measure) for t in tiles))}
    ends = np.array([[models[t.x.name], models[t.y.name]] for t in tiles]).T
    kinds = np.array([measures[id(t.measure)] for t in tiles])

    def blocks(count: int) -> np.ndarray:
        """Which pair of blocks each tile is in, of so many blocks of models."""
        a, b = ends * count // len(models)
        return np.unique(a * count + b, return_inverse=True)[1]

    low, high = 1, len(models) + 1  # the most blocks that are not too many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if blocks(middle).max() < most else (low, middle)
    pairs = blocks(low)
    parts = max(1, min(most // (int(pairs.max()) + 1), len(measures)))
    group = pairs * parts + kinds * parts // len(measures)
    order = np.argsort(group, kind="stable")
    found = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((some.tolist() for some in found), key=lambda some: some[0])


def pairs_of(
    x: Sequence[Representation], y: Sequence[Representation] | None, measure: Measure
) -> Iterator[tuple[Representation, Representation, nulls.Streams]]:
    """Pairs of models and their streams: one side is relabelled as a whole; among equals every model has its own."""
    if y is not None:
        for a, b in itertools.product(x, y):
            yield a, b, nulls.ONE_SIDE
        return
    among = itertools.combinations if measure.symmetric else itertools.permutations
    for (i, a), (j, b) in among(enumerate(x, start=1), 2):
        yield a, b, (i, j) if len(x) > 2 else nulls.ONE_SIDE


# --- states, once per layer ----------------------------------------------------------------------


class Cache:
    """Models prepared for all measures of some tiles at once; the least recently used are dropped to keep to `budget` bytes.

    Models go by their names, which are unique within a run: a digest of all numbers of a model in memory would take longer
    than many a comparison.

    examination : looks at every layer that is read.
    progress : called with the number of layers prepared so far.
    rows : these stimuli alone, taken when layers are preprocessed.
    """

    def __init__(
        self, budget: int, tiles: Sequence[Tile] = (), examination: Examination | None = None, progress: Progress = silent,
        rows: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        prepared = [t for t in tiles if t.settings.way in STATES]
        self.budget, self.progress, self.examination, self.rows = budget, progress, examination or Examination(), rows
        self.jobs = list({(id(t.measure), id(t.settings)): (t.measure, t.settings) for t in prepared}.values())
        self.n_layers = sum(len(r.layers) for r in {r.name: r for t in prepared for r in (t.x, t.y)}.values())
        self.done = 0
        self.left = Counter(name for t in prepared for name in {t.x.name, t.y.name})  # tiles that still need a model
        self.entries: OrderedDict[str, dict[int, nulls.Prepared]] = OrderedDict()
        self.nbytes = 0  # of all that is held
        self.per_layer = 0.0  # bytes, of the models seen so far

    def get(self, r: Representation, measure: Measure, settings: Settings) -> nulls.Prepared:
        """The states of all layers of a model, and what the null keeps of them.

        A model is prepared for all jobs at once, layer by layer: one layer's features are in memory at a time. What its layers
        share, a clipping threshold or their concatenation, needs them all at once.
        """
        if r.name not in self.entries:
            # The partner of a model in its tile stays, whatever it weighs.
            while len(self.entries) > 1 and self.nbytes + len(r.layers) * self.per_layer > self.budget:
                self._release(next(iter(self.entries)))
        entry = self.entries.setdefault(r.name, {})
        self.entries.move_to_end(r.name)
        job = next((i for i, (m, how) in enumerate(self.jobs) if m is measure and how is settings), len(self.jobs))
        if job == len(self.jobs):
            self.jobs.append((measure, settings))
        if job in entry:
            return entry[job]
        alike = [how.preprocess == settings.preprocess and how.device == settings.device for _, how in self.jobs]
        states: dict[int, list[State]] = {i: [] for i, same in enumerate(alike) if same and i not in entry}

        def prepared(layer: Given) -> list[State]:
            x = layer.to(settings.device)
            x = x if self.rows is None else x[self.rows.to(settings.device)]
            made = []
            with sharing(x):
                for measure, how in (self.jobs[i] for i in states):
                    made.append(measure.prepare(x))
                    how.null.at_hand(measure, made[-1])
            return made

        def looked_at(stored: tuple[str, Given]) -> list[State]:
            layer = as_layer(stored[1], f"{r.name}, layer {stored[0]}")
            with sharing(layer):
                states = prepared(layer)
                self.examination.look(r, *stored, layer)  # which takes from the products that are there by now
                return states

        read = self.examination.read(r)
        self.progress("prepare layers", min(self.done, self.n_layers), self.n_layers)
        if settings.preprocess is None:
            needed = 4 * max(r.widths) * r.n * COPIES + 4 * r.n * r.n * SQUARES
            layers = each(looked_at, read, at_once(len(r.layers), needed, settings.device))
        else:
            looked = ((name, self.examination.look(r, name, x, as_layer(x, f"{r.name}, layer {name}"))) for name, x in read)
            layers = map(prepared, settings.preprocess({name: x.to(settings.device) for name, x in looked}).values())
        for of_layer in layers:
            for of_job, state in zip(states.values(), of_layer, strict=True):
                of_job.append(state)
            self.done += 1
            self.progress("prepare layers", min(self.done, self.n_layers), self.n_layers)
        self.examination.done(r)
        new = {i: self.jobs[i][1].null.prepare(self.jobs[i][0], of_job) for i, of_job in states.items()}
        entry.update(new)
        self.nbytes += sum(p.nbytes for p in new.values())
        self.per_layer = max(self.per_layer, sum(p.nbytes for p in entry.values()) / max(1, len(r.layers)))
        return entry[job]

    def used(self, tile: Tile) -> None:
        """Release what no other tile needs than this one, which is done."""
        for name in {tile.x.name, tile.y.name} if tile.settings.way in STATES else ():
            self.left[name] -= 1
            if not self.left[name] and name in self.entries:
                self._release(name)

    def _release(self, name: str) -> None:
        self.nbytes -= sum(p.nbytes for p in self.entries.pop(name).values())

    def order(self, tiles: Sequence[Tile]) -> list[int]:
        """Which tile after which, so that models are prepared as rarely as the memory allows.

        As many models of the second side as fit stay, together with one of the first: they are prepared once, and those of the
        first side once per such block.
        """
        first = next((t for t in tiles if t.settings.way in STATES), None)
        if first is not None:
            self.get(first.x, first.measure, first.settings)  # what a layer weighs
        weight = {r.name: self.per_layer * len(r.layers) for t in tiles for r in (t.x, t.y)}
        room = self.budget - max((weight[t.x.name] for t in tiles), default=0)
        block_of: dict[str, int] = {}
        block, held = 0, 0.0
        for name in dict.fromkeys(t.y.name for t in tiles):
            if held and held + weight[name] > room:
                block, held = block + 1, 0.0
            block_of[name] = block
            held += weight[name]
        rank = {name: i for i, name in enumerate(weight)}
        ends = [(t.x.name, t.y.name) for t in tiles]
        return sorted(range(len(tiles)), key=lambda i: (block_of[ends[i][1]], rank[ends[i][0]], rank[ends[i][1]]))
