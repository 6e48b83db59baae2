"""A tile: one measure on one pair of models, a pure function of two representations, and the unit of resume.

What a tile depends on is in its file's name and in the file, so that a tile is never taken for another.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from repalign import null as nulls
from repalign.comparison.alignment import TILE_SCHEMA, as_table, read_tile, write_tile
from repalign.comparison.cache import Cache, Look, Settings, default_memory, in_blocks
from repalign.comparison.streamed import METHOD as STREAMED
from repalign.comparison.streamed import judge as judge_streamed
from repalign.files import DamagedError, read_json, seal_json, write_text
from repalign.measures import CKA
from repalign.measures.measure import Measure
from repalign.representation import Representation
from repalign.text import Progress

log = logging.getLogger(__name__)

# Part of every tile's name: raise it when a change of ours moves a number, so that old tiles are not reused. A change of
# the table's columns or of somebody else's code needs no hand: both are in the name by themselves.
FORMULAS = 5


def schema_digest(schema: pa.Schema) -> str:
    """What follows from the names and types of a table's columns."""
    return hashlib.sha256(str(schema).encode()).hexdigest()


SCHEMA_DIGEST = schema_digest(TILE_SCHEMA)


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
        facts = [FORMULAS, SCHEMA_DIGEST, sides, self.settings.identity(self.measure), self.streams]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


@dataclass(frozen=True, eq=False)
class Scored:
    """What a tile gives: its rows of the table, and the null draws of its layer search (K,)."""

    rows: pd.DataFrame
    draws: np.ndarray


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


def run_tiles(
    tiles: Sequence[Tile],
    folder: Path | None,
    executor: Executor | None,
    budget: int,
    progress: Progress,
    look: Look,
) -> list[Scored]:
    """Compute the tiles that are not there yet, keep each as soon as it is done, return all in order."""
    done: dict[int, Scored] = {}
    for i, tile in enumerate(tiles):
        kept = None if folder is None else _read_tile(folder, tile)
        if kept is not None:
            done[i] = kept
    missing = [i for i in range(len(tiles)) if i not in done]
    progress("compare", len(done), len(tiles), None if not done else f"{len(done)} of {len(tiles)} tiles were there")

    def keep(i: int, scored: Scored) -> None:
        if folder is not None:
            write_tile(scored.rows, scored.draws, _tile_path(folder, tiles[i]), tiles[i].key)
        done[i] = scored
        progress("compare", len(done), len(tiles))

    if executor is None:
        jobs = {
            t.settings.identity(t.measure): (t.measure, t.settings)
            for t in (tiles[i] for i in missing)
            if not t.settings.streamed
        }
        cache = Cache(budget, list(jobs.values()), look)
        for i in in_blocks([tiles[i] for i in missing], cache):
            keep(missing[i], compute_tile(tiles[missing[i]], cache))
    else:
        futures = {executor.submit(_compute_elsewhere, tiles[i], budget): i for i in missing}
        try:
            for future in as_completed(futures):
                keep(futures[future], future.result())
        finally:  # after an error nobody waits for the others; what is kept is there when the run goes on
            for future in futures:
                future.cancel()
    return [done[i] for i in range(len(tiles))]


def compute_tile(tile: Tile, cache: Cache | None = None) -> Scored:
    """Scores, draws and what follows for one tile: a pure function of the two representations."""
    measure, settings = tile.measure, tile.settings
    if settings.streamed:
        assert isinstance(measure, CKA)
        judged = judge_streamed(tile.x, tile.y, measure, settings)
        return Scored(_rows(tile, judged), judged.found.draws)
    cache = Cache(default_memory()) if cache is None else cache
    a, b = cache.get(tile.x, measure, settings), cache.get(tile.y, measure, settings)
    judged = settings.null.judge(measure, a, b, how=settings.search, alpha=settings.alpha, streams=tile.streams)
    return Scored(_rows(tile, judged), judged.found.draws)


def _rows(tile: Tile, judged: nulls.Judgement) -> pd.DataFrame:
    """The row of the layer search, then one row per cell."""
    found, preprocess = judged.found, tile.settings.preprocess
    names_x, names_y = (np.array([*preprocess.layer_names(r.layers), None], dtype=object) for r in (tile.x, tile.y))
    shape = judged.cells.statistic.shape
    i, j = (
        np.concatenate([[best], cells.ravel()])
        for best, cells in zip((found.layer_x, found.layer_y), np.indices(shape), strict=True)
    )
    by = np.concatenate([[judged.search_by], judged.cells_by.ravel()])
    closed_form = np.isin(by, [nulls.Moments.name, STREAMED])
    is_max = np.arange(len(i)) == 0
    numbers = {
        f: np.concatenate([np.ravel(getattr(found.calibration, f)), getattr(judged.cells, f).ravel()])
        for f in nulls.Calibration.__dataclass_fields__
    }
    return as_table(
        {
            "dataset": tile.x.dataset_name,
            "dataset_fingerprint": tile.x.dataset_fingerprint,
            "n": tile.x.n,
            "model_x": tile.x.name,
            "layer_x": names_x[i],  # -1, no layer, is the None at the end
            "index_x": i,
            "model_y": tile.y.name,
            "layer_y": names_y[j],
            "index_y": j,
            "measure": repr(tile.measure),
            "scope": np.where(is_max, "max", "cell"),
            **numbers,
            "p_stepdown": np.concatenate([[np.nan], found.stepdown.ravel()]),
            "null": by,
            "n_draws": np.where(closed_form, 0, judged.n_draws),
            "seed": tile.settings.null.seed,
            "search": np.where(is_max, np.array(str(judged.search), dtype=object), None),
        },
        len(i),
    )


def kept(path: Path, key: str) -> Any:
    """What `keep` wrote under this key; None, with a warning in the log, where it is not that any more."""
    if not path.is_file():
        return None
    try:
        told, has_seal = read_json(path)
    except DamagedError as error:
        log.warning("%s %s; it is made again", path, error.problem)
        return None
    return told.get("value") if has_seal and told.get("key") == key else None


def keep(path: Path, key: str, value: Any) -> None:
    """Write what was made for a run beside its tiles, sealed, with what it depends on."""
    write_text(path, seal_json({"key": key, "value": value}, indent=None))


def _tile_path(folder: Path, tile: Tile) -> Path:
    return folder / "tiles" / f"{tile.key}.parquet"


def _read_tile(folder: Path, tile: Tile) -> Scored | None:
    path = _tile_path(folder, tile)
    if not path.is_file():
        return None
    try:
        return Scored(*read_tile(path, tile.key))
    except DamagedError as error:
        log.warning("%s %s; the tile is computed again", path, error.problem)
        return None


_process_caches: dict[int, Cache] = {}


def _compute_elsewhere(tile: Tile, budget: int) -> Scored:
    """One tile in a worker, which keeps its own cache from tile to tile."""
    cache = _process_caches.setdefault(os.getpid(), Cache(budget))
    return compute_tile(tile, cache)
