"""A tile: one measure on one pair of models, a pure function of two representations, and the unit of resume.

What a tile depends on is in its file's name and in the file, so that a tile is never taken for another. Work that tiles share is
done once per layer: states, and whatever a null keeps with them, in a cache that is bounded in bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repalign import null as nulls
from repalign.comparison.alignment import TILE_SCHEMA, read_tile
from repalign.comparison.doctor import examine
from repalign.comparison.identity import identity
from repalign.comparison.preprocess import Preprocess
from repalign.files import DamagedError, read_json, seal_json, write_file
from repalign.layers import Given
from repalign.measures.measure import Measure, State, as_layer
from repalign.measures.numerics.precision import sharing
from repalign.representation import Representation
from repalign.text import Progress, silent

log = logging.getLogger(__name__)

# Part of every tile's name: raise it when a change of ours moves a number, so that old tiles are not reused. A change of
# the table's columns or of somebody else's code needs no hand: both are in the name by themselves.
FORMULAS = 5
STATES = frozenset({"", "closed"})  # the ways that take prepared states


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
        """A digest, of values and code, of what a measure computes under these settings."""
        # Tiles say False for "" and Preprocess() for None since before the two had these names.
        parts = (self.null, self.search, self.alpha, self.preprocess or Preprocess(), self.device, self.way or False)
        return identity(repr(measure), measure, *parts)


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
        sides = [(r.key, r.name, r.layers, r.dataset_name, r.dataset_fingerprint, r.n) for r in (self.x, self.y)]
        columns = hashlib.sha256(str(TILE_SCHEMA).encode()).hexdigest()
        facts = [FORMULAS, columns, sides, self.settings.identity(self.measure), self.streams]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


@dataclass(frozen=True, eq=False)
class Scored:
    """The result of a tile: its rows of the table, the null draws of its layer search (K,), and what the run says of its way."""

    rows: pd.DataFrame
    draws: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)


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


class Examination:
    """The doctor's findings on every layer, which is looked at once: when it is read for the measures, or at the end.

    found : findings by a representation's key and by layer; kept in the folder of the tiles, if there is one.
    """

    def __init__(self, models: Sequence[Representation] = (), folder: Path | None = None) -> None:
        self.models = {r.key: r for r in models}
        self.paths = {} if folder is None else {key: folder / "findings" / f"{key}.json" for key in self.models}
        self.found: dict[str, dict[str, list[dict[str, Any]]]] = {
            key: kept(path, key) or {} for key, path in self.paths.items() if path.is_file()
        }

    def read(self, r: Representation) -> Iterator[Given]:
        """All layers, checked and, unless that was done, examined.

        Each is read while the one before is worked on: reading and digests leave the arithmetic units idle.
        """
        key = r.key
        found = self.found.setdefault(key, {})
        with ThreadPoolExecutor(1) as reader:
            waiting = reader.submit(r.load, r.layers[0])
            for name, following in zip(r.layers, [*r.layers[1:], None], strict=True):
                stored = waiting.result()
                if following is not None:
                    waiting = reader.submit(r.load, following)
                layer = as_layer(stored, f"{r.name}, layer {name}")
                if name not in found:
                    dtype = r.facts.get("store_dtype") or str(stored.dtype).removeprefix("torch.")
                    told = examine(layer, model=r.name, layer=name, stored_dtype=dtype, facts=r.facts)
                    found[name] = [asdict(f) for f in told]
                    if key in self.paths and len(found) == len(r.layers):
                        keep(self.paths[key], key, found)
                yield layer

    def all(self, progress: Progress) -> list[dict[str, Any]]:
        """All findings, model by model; what nobody has looked at is looked at now."""
        unseen = [r for key, r in self.models.items() if len(self.found.get(key, {})) < len(r.layers)]
        for done, r in enumerate(unseen):
            progress("examine", done, len(unseen))
            for _ in self.read(r):
                pass
        if unseen:
            progress("examine", len(unseen), len(unseen))
        for key, path in self.paths.items():
            if not path.is_file():  # what workers with a disk of their own have found
                keep(path, key, self.found[key])
        return [{**f, "model": r.name} for key, r in self.models.items() for layer in r.layers for f in self.found[key][layer]]


class Cache:
    """Models prepared for all measures of some tiles at once; the least recently used are dropped to keep to `budget` bytes.

    examination : looks at every layer that is read.
    progress : called with the number of layers prepared so far.
    """

    def __init__(
        self, budget: int, tiles: Sequence[Tile] = (), examination: Examination | None = None, progress: Progress = silent
    ) -> None:
        prepared = [t for t in tiles if t.settings.way in STATES]
        self.budget, self.progress, self.examination = budget, progress, examination or Examination()
        self.jobs = list({(id(t.measure), id(t.settings)): (t.measure, t.settings) for t in prepared}.values())
        self.n_layers = sum(len(r.layers) for r in {r.key: r for t in prepared for r in (t.x, t.y)}.values())
        self.done = 0
        self.entries: OrderedDict[str, dict[int, nulls.Prepared]] = OrderedDict()
        self.nbytes = 0  # of all that is held
        self.per_layer = 0.0  # bytes, of the models seen so far

    def get(self, r: Representation, measure: Measure, settings: Settings) -> nulls.Prepared:
        """The states of all layers of a model, and what the null keeps of them.

        A model is prepared for all jobs at once, layer by layer: one layer's features are in memory at a time. What its layers
        share, a clipping threshold or their concatenation, needs them all at once.
        """
        if r.key not in self.entries:
            # The partner of a model in its tile stays, whatever it weighs.
            while len(self.entries) > 1 and self.nbytes + len(r.layers) * self.per_layer > self.budget:
                self.nbytes -= sum(p.nbytes for p in self.entries.popitem(last=False)[1].values())
        entry = self.entries.setdefault(r.key, {})
        self.entries.move_to_end(r.key)
        job = next((i for i, (m, how) in enumerate(self.jobs) if m is measure and how is settings), len(self.jobs))
        if job == len(self.jobs):
            self.jobs.append((measure, settings))
        if job in entry:
            return entry[job]
        alike = [how.preprocess == settings.preprocess and how.device == settings.device for _, how in self.jobs]
        states: dict[int, list[State]] = {i: [] for i, same in enumerate(alike) if same and i not in entry}
        layers: Iterable[Any] = (x.to(settings.device) for x in self.examination.read(r))
        if settings.preprocess is not None:
            layers = settings.preprocess(dict(zip(r.layers, layers, strict=True))).values()
        for x in layers:
            self.progress("prepare layers", min(self.done, self.n_layers), self.n_layers)
            with sharing(x):
                for i, of_job in states.items():
                    of_job.append(self.jobs[i][0].prepare(x))
            self.done += 1
        self.progress("prepare layers", min(self.done, self.n_layers), self.n_layers)
        new = {i: self.jobs[i][1].null.prepare(self.jobs[i][0], of_job) for i, of_job in states.items()}
        entry.update(new)
        self.nbytes += sum(p.nbytes for p in new.values())
        self.per_layer = max(self.per_layer, sum(p.nbytes for p in entry.values()) / max(1, len(r.layers)))
        return entry[job]

    def order(self, tiles: Sequence[Tile]) -> list[int]:
        """Which tile after which, so that models are prepared as rarely as the memory allows.

        As many models of the second side as fit stay, together with one of the first: they are prepared once, and those of the
        first side once per such block.
        """
        first = next((t for t in tiles if t.settings.way in STATES), None)
        if first is not None:
            self.get(first.x, first.measure, first.settings)  # what a layer weighs
        weight = {r.key: self.per_layer * len(r.layers) for t in tiles for r in (t.x, t.y)}
        room = self.budget - max((weight[t.x.key] for t in tiles), default=0)
        block_of: dict[str, int] = {}
        block, held = 0, 0.0
        for key in dict.fromkeys(t.y.key for t in tiles):
            if held and held + weight[key] > room:
                block, held = block + 1, 0.0
            block_of[key] = block
            held += weight[key]
        rank = {key: i for i, key in enumerate(weight)}
        ends = [(t.x.key, t.y.key) for t in tiles]
        return sorted(range(len(tiles)), key=lambda i: (block_of[ends[i][1]], rank[ends[i][0]], rank[ends[i][1]]))


# --- what is kept in a folder --------------------------------------------------------------------


def kept(path: Path, key: str) -> Any:
    """Read what `keep` wrote under this key; None, with a warning in the log, if the file is damaged."""
    try:
        entry, has_seal = read_json(path)
    except DamagedError as error:
        log.warning("%s %s; it is made again", path, error.problem)
        return None
    return entry.get("value") if has_seal and entry.get("key") == key else None


def keep(path: Path, key: str, value: Any) -> None:
    """Write a sealed value next to the tiles of a run, with its key."""
    write_file(path, seal_json({"key": key, "value": value}, indent=None))


def kept_tile(path: Path, key: str) -> Scored | None:
    """A finished tile of an earlier run; None, with a warning in the log if its file is damaged."""
    try:
        return Scored(*read_tile(path, key))
    except DamagedError as error:
        log.warning("%s %s; the tile is computed again", path, error.problem)
        return None
