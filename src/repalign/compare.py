"""All layers of many models against all layers of many others, each against chance.

Work is done once per layer (states, and whatever the null keeps beside them), held in a cache bounded in
bytes; a tile is one measure on one pair of models, a pure function of two representations, and the unit of
resume. What a tile depends on is in its file's name, so that a tile is never taken for another.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from repalign import ceilings
from repalign import null as nulls
from repalign.alignment import Alignment, as_table, read_tile, write_text, write_tile
from repalign.doctor import examine
from repalign.errors import RepalignError
from repalign.measures import parse_measure
from repalign.measures._base import Measure, State, as_features
from repalign.models import COMPETENCES, ModelRecord
from repalign.preprocess import Preprocess
from repalign.progress import Progress, silent
from repalign.representation import MemoryRepresentation, Representation, check_same_dataset

log = logging.getLogger(__name__)

Look = Callable[[Representation, str, Tensor, torch.dtype], None]

# Part of every tile's name: raise it when a change moves a number, so that old tiles are not reused.
TILE_VERSION = 2

DEFAULT_MEASURES = ("MutualKNN(k=10)", "CKA()")

LIBRARIES = ("numpy", "scipy", "torch", "transformers", "timm", "sentence-transformers", "safetensors", "pyarrow")


@dataclass(frozen=True)
class Settings:
    """Everything but the representations that a score depends on."""

    null: nulls.Null
    search: str
    alpha: float
    preprocess: Preprocess
    device: str


@dataclass(frozen=True, eq=False)
class Tile:
    """One measure on one pair of models; `streams` says which relabelling each of them gets."""

    x: Representation
    y: Representation
    measure: Measure
    settings: Settings
    streams: nulls.Streams = nulls.ONE_SIDE

    @property
    def key(self) -> str:
        facts = [
            TILE_VERSION,
            self.x.key,
            self.y.key,
            self.x.name,
            self.y.name,
            repr(self.measure),
            repr(self.settings),
            self.streams,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


@dataclass(frozen=True, eq=False)
class Scored:
    """What a tile gives: its rows of the table, and the null draws of its layer search (K,)."""

    rows: pd.DataFrame
    draws: np.ndarray


# --- the public door ---------------------------------------------------------------------------


def compare(
    x: Sequence[Representation],
    y: Sequence[Representation] | None = None,
    measures: Sequence[Measure | str] = DEFAULT_MEASURES,
    null: nulls.Null | nulls.Auto | str = "auto",
    *,
    search: str | None = None,
    alpha: float = 0.05,
    preprocess: Preprocess | None = None,
    results: str | Path | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    memory: int | None = None,
    replicates: Sequence[tuple[Representation, Representation]] = (),
    split_half: int = 0,
    progress: Progress = silent,
    describe: Mapping[str, Any] | None = None,
) -> Alignment:
    """Compare every layer of every model of `x` with every layer of every model of `y`.

    Parameters
    ----------
    x, y : representations of one dataset. Without `y`, all models of `x` against each other.
    measures : measures or their names, for instance ``MutualKNN(k=10)`` or ``"CKA()"``.
    null : a null or its name; "auto" takes closed-form moments for every cell of a bilinear measure and the exact
        cyclic group for the search over its layers (n >= 200), and 199 random permutations otherwise.
    search : how the layers are searched, for instance "studentised" (default), "raw" (the published maximum),
        "studentised top-5", "matching" (see `null.Search`).
    alpha : level of the threshold, and so of the calibrated score.
    preprocess : applied to all layers of a model before measuring; nothing by default.
    results : a folder. Finished tiles are kept there, so that a killed run resumes with the missing ones.
    executor : any `concurrent.futures.Executor`; tiles are then computed there.
    memory : bytes for prepared states; a quarter of the machine's by default.
    replicates : pairs of two trainings of one model; their alignment stands in the run's `ceilings`.
    split_half : this many random halvings of the stimuli per pair of models, for the same (`ceilings.split_half`).
    describe : extra entries for the run's description (`name`, `study`, `dataset`, `warnings`).

    Returns
    -------
    Alignment, saved in `results` if given.

    Raises
    ------
    RepalignError : datasets differ, names repeat, a measure is unknown or undefined at this n, or a layer
        holds NaN; the message names the model and the layer.
    """
    x = list(x)
    y = None if y is None else list(y)
    everything = [*x, *(y or ()), *(r for both in replicates for r in both)]
    if not x or y == []:
        raise RepalignError("nothing to compare", expected="at least one model on each side", got="none")
    check_same_dataset(everything)
    _check_names(everything)
    measures = [parse_measure(m) if isinstance(m, str) else m for m in measures]
    null = nulls.make_null(null) if isinstance(null, str) else null
    n = everything[0].n
    for measure in measures:
        measure.check_n(n, f"dataset {everything[0].dataset_name!r}")
    how = _layer_search(search, null)
    folder = None if results is None else Path(results)
    examination = Examination(everything, folder)

    def settings(measure: Measure) -> Settings:
        return Settings(nulls.resolve(null, measure, n), how, alpha, preprocess or Preprocess(), device)

    tiles = [Tile(a, b, m, settings(m), streams) for m in measures for a, b, streams in _pairs(x, y, m)]
    if not tiles:
        raise RepalignError("nothing to compare", expected="two models, or one on each side", got=f"{len(x)} model")
    budget = default_memory() if memory is None else memory
    scored = _run_tiles(tiles, folder, executor, budget, progress, examination)
    table = _across_pairs(tiles, scored)
    run = _describe(x, y, tiles, null, examination.findings(progress), table, describe or {})
    twins = [Tile(a, b, m, settings(m)) for m in measures for a, b in replicates]
    run["ceilings"] = [
        *_seed_to_seed(twins, _run_tiles(twins, folder, executor, budget, progress, examination) if twins else []),
        *_split_halves(tiles if split_half else [], split_half, folder, progress),
    ]
    alignment = Alignment(table, run, _search_draws(tiles, scored))
    if folder is not None:
        alignment.save(folder)
    return alignment


def _layer_search(search: str | None, null: nulls.Null | nulls.Auto) -> str:
    """The search in full words: the studentised maximum, or the first that the null allows."""
    allowed = None if isinstance(null, nulls.Auto) else null.searches
    if search is None:
        return allowed[0] if allowed else str(nulls.Search())
    how = str(nulls.Search.parse(search))
    if allowed and how not in allowed:
        raise RepalignError(
            f"null {null.method!r} has no layer search {how!r}", expected=" or ".join(allowed), got=search
        )
    return how


def pair(
    x: Any,
    y: Any,
    measures: Sequence[Measure | str] | Measure | str = DEFAULT_MEASURES,
    null: nulls.Null | nulls.Auto | str = "auto",
    *,
    names: tuple[str, str] = ("x", "y"),
    ids: Sequence[str] | None = None,
    **options: Any,
) -> Alignment:
    """Compare two models given as arrays: row i of both is the same stimulus.

    `x` and `y` are (n, d) arrays (numpy or torch), or mappings from layer name to such arrays, or lists of them.
    `options` go to `compare`.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((300, 20))
    >>> result = pair(x, x @ rng.standard_normal((20, 30)), measures=["CKA()"])
    >>> bool(result.best()["pvalue"][0] < 0.01)
    True
    """
    if isinstance(measures, (str, Measure)):
        measures = [measures]
    both = [_from_arrays(arrays, name, ids) for arrays, name in zip((x, y), names, strict=True)]
    return compare([both[0]], [both[1]], measures, null, **options)


def _from_arrays(arrays: Any, name: str, ids: Sequence[str] | None) -> MemoryRepresentation:
    if isinstance(arrays, Mapping):
        layers = {str(k): as_features(v, f"{name}, layer {k}") for k, v in arrays.items()}
    elif isinstance(arrays, (list, tuple)) and arrays and np.ndim(arrays[0]) == 2:
        layers = {f"layer.{i}": as_features(v, f"{name}, layer {i}") for i, v in enumerate(arrays)}
    else:
        layers = {"features": as_features(arrays, name)}
    counts = {len(v) for v in layers.values()}
    if len(counts) != 1:
        raise RepalignError(
            f"{name}: layers of different row counts", expected="one n for all layers of a model", got=sorted(counts)
        )
    n = counts.pop()
    given = tuple(map(str, ids)) if ids is not None else tuple(map(str, range(n)))
    if len(given) != n or len(set(given)) != n:
        raise RepalignError(
            f"{name}: ids do not fit", expected=f"{n} distinct ids", got=f"{len(given)} ids, {len(set(given))} distinct"
        )
    record = ModelRecord(spec=f"array:{name}", name=name, modality="array")
    fingerprint = hashlib.sha256("\n".join(given).encode()).hexdigest() if ids is not None else f"rows:{n}"
    return MemoryRepresentation(record, given, layers, dataset_fingerprint=fingerprint)


# --- tiles -------------------------------------------------------------------------------------


def _pairs(
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


def _run_tiles(
    tiles: Sequence[Tile],
    folder: Path | None,
    executor: Executor | None,
    budget: int,
    progress: Progress,
    examination: Examination,
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
            path = _tile_path(folder, tiles[i])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tile(scored.rows, scored.draws, path)
        done[i] = scored
        progress("compare", len(done), len(tiles))

    if executor is None:
        jobs = {repr(t.measure): (t.measure, t.settings) for t in (tiles[i] for i in missing)}
        cache = Cache(budget, list(jobs.values()), examination.look)
        for i in in_blocks([tiles[i] for i in missing], cache):
            keep(missing[i], compute_tile(tiles[missing[i]], cache))
    else:
        futures = {executor.submit(_compute_elsewhere, tiles[i], budget): i for i in missing}
        for future in as_completed(futures):
            keep(futures[future], future.result())
    return [done[i] for i in range(len(tiles))]


def compute_tile(tile: Tile, cache: Cache | None = None) -> Scored:
    """Scores, draws and what follows for one tile: a pure function of the two representations."""
    cache = Cache(default_memory()) if cache is None else cache
    measure, settings = tile.measure, tile.settings
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
    closed_form = by == nulls.Moments.method
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


def _tile_path(folder: Path, tile: Tile) -> Path:
    return folder / "tiles" / f"{tile.key}.parquet"


def _read_tile(folder: Path, tile: Tile) -> Scored | None:
    path = _tile_path(folder, tile)
    if not path.is_file():
        return None
    try:
        return Scored(*read_tile(path))
    except (pa.ArrowException, OSError) as error:
        log.warning("%s: a tile cannot be read (%s); it is computed again", path, error)
        return None


# --- work once per layer -----------------------------------------------------------------------


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
        name = _job_name(measure, settings)
        if name not in entry:
            jobs = self.jobs if any(_job_name(*j) == name for j in self.jobs) else [(measure, settings)]
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


def _job_name(measure: Measure, settings: Settings) -> str:
    return f"{measure!r} {settings!r}"


def _prepare(
    representation: Representation, jobs: Sequence[tuple[Measure, Settings]], look: Look | None
) -> dict[str, nulls.Prepared]:
    """States of every layer for every job, layer by layer: one layer's features are in memory at a time.

    What a representation's layers share, a clipping threshold or their concatenation, needs them all at once.
    """
    device, preprocess = jobs[0][1].device, jobs[0][1].preprocess

    def loaded(name: str) -> Tensor:
        stored = representation.load(name)
        features = as_features(stored, f"{representation.name}, layer {name}")
        if look is not None:
            look(representation, name, features, stored.dtype)
        return features.to(device)

    layers: Iterable[Tensor] = (loaded(name) for name in representation.layers)
    if not preprocess.is_identity:
        layers = preprocess({name: loaded(name) for name in representation.layers}).values()
    states: list[list[State]] = [[] for _ in jobs]
    for x in layers:
        for (measure, _), found in zip(jobs, states, strict=True):
            found.append(measure.prepare(x))
    return {
        _job_name(measure, settings): settings.null.prepare(measure, found)
        for (measure, settings), found in zip(jobs, states, strict=True)
    }


def in_blocks(tiles: Sequence[Tile], cache: Cache) -> Iterator[int]:
    """Order tiles so that models are prepared as rarely as the memory allows.

    As many models of the second side as fit stay, beside one of the first: they are prepared once, and those of the
    first side once per such block.
    """
    if not tiles:
        return
    first = tiles[0]
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


_process_caches: dict[int, Cache] = {}


def _compute_elsewhere(tile: Tile, budget: int) -> Scored:
    """One tile in a worker, which keeps its own cache from tile to tile."""
    cache = _process_caches.setdefault(os.getpid(), Cache(budget))
    return compute_tile(tile, cache)


def default_memory() -> int:
    """A quarter of the machine's memory."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 4


# --- what stands beside the scores -------------------------------------------------------------


def _check_names(representations: Sequence[Representation]) -> None:
    seen: dict[str, Representation] = {}
    for r in representations:
        other = seen.setdefault(r.name, r)
        if other.key != r.key:
            raise RepalignError(
                f"two models are called {r.name!r}",
                expected="one name per model",
                got=f"{other.record.spec} and {r.record.spec}",
                remedy="give one of them another `name`",
            )


def _seed_to_seed(tiles: Sequence[Tile], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """The layer search between two trainings of one model: what two models that differ by chance alone reach."""
    return [
        _ceiling("seed to seed", tile, statistic=float(s.rows["statistic"].iloc[0]), n=tile.x.n)
        for tile, s in zip(tiles, scored, strict=True)
    ]


def _split_halves(
    tiles: Sequence[Tile], n_splits: int, folder: Path | None, progress: Progress
) -> list[dict[str, Any]]:
    """Layers chosen on one half of the stimuli and scored on the other, kept beside the tiles."""
    out = []
    for done, tile in enumerate(tiles):
        progress("ceilings", done, len(tiles))
        path = None if folder is None else folder / "ceilings" / f"{tile.key}-{n_splits}.json"
        if path is not None and path.is_file():
            out.append(json.loads(path.read_text("utf-8")))
            continue
        null = tile.settings.null
        groups = None if null.groups is None else null.groups.labels
        found = ceilings.split_half(
            tile.x,
            tile.y,
            tile.measure,
            n_splits=n_splits,
            seed=null.seed,
            groups=groups,
            preprocess=tile.settings.preprocess,
        )
        told = {"statistic": found.statistic, "selected": found.selected, "reliability": found.reliability}
        told = {k: None if np.isnan(v) else v for k, v in told.items()}
        out.append(_ceiling("split half", tile, n=found.n_half, n_splits=n_splits, **told))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(out[-1]))
    if tiles:
        progress("ceilings", len(tiles), len(tiles))
    return out


def _ceiling(kind: str, tile: Tile, **numbers: Any) -> dict[str, Any]:
    return {"kind": kind, "measure": repr(tile.measure), "model_x": tile.x.name, "model_y": tile.y.name, **numbers}


class Examination:
    """The doctor's look at every layer, once: while it is in memory for the measures, or afterwards.

    Findings are kept beside the tiles.
    """

    def __init__(self, representations: Sequence[Representation], folder: Path | None) -> None:
        self.representations = list({r.key: r for r in representations}.values())
        self.folder = folder
        self.seen: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for r in self.representations:
            path = self._path(r)
            if path is not None and path.is_file():
                self.seen[r.key] = json.loads(path.read_text("utf-8"))

    def look(self, r: Representation, layer: str, x: Tensor, dtype: torch.dtype) -> None:
        """Examine one layer, x, stored in this dtype, unless that was done."""
        layers = self.seen.setdefault(r.key, {})
        if layer in layers:
            return
        stored = r.facts.get("store_dtype") or str(dtype).removeprefix("torch.")
        layers[layer] = [asdict(f) for f in examine(x, model=r.name, layer=layer, stored_dtype=stored)]
        path = self._path(r)
        if path is not None and len(layers) == len(r.layers):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(layers, ensure_ascii=False))

    def findings(self, progress: Progress) -> list[dict[str, Any]]:
        """All findings, model by model in their order; what nobody has looked at is looked at now."""
        missing = [
            (r, layer) for r in self.representations for layer in r.layers if layer not in self.seen.get(r.key, {})
        ]
        for done, (r, layer) in enumerate(missing):
            progress("examine", done, len(missing))
            stored = r.load(layer)
            self.look(r, layer, stored, stored.dtype)
        if missing:
            progress("examine", len(missing), len(missing))
        return [
            {**f, "model": r.name} for r in self.representations for layer in r.layers for f in self.seen[r.key][layer]
        ]

    def _path(self, r: Representation) -> Path | None:
        return None if self.folder is None else self.folder / "findings" / f"{r.key}.json"


def _across_pairs(tiles: Sequence[Tile], scored: Sequence[Scored]) -> pd.DataFrame:
    """The whole table, with p-values adjusted over the pairs of models of each measure."""
    table = pd.concat([s.rows for s in scored], ignore_index=True)
    is_max = table["scope"] == "max"  # one row per tile, in order
    for measure in dict.fromkeys(repr(t.measure) for t in tiles):
        which = [i for i, t in enumerate(tiles) if repr(t.measure) == measure]
        at = table.index[is_max & (table["measure"] == measure)]
        p, observed = (table.loc[at, c].to_numpy() for c in ("pvalue", "statistic"))
        null, streams = tiles[which[0]].settings.null, [tiles[i].streams for i in which]
        draws = null.joint(observed, np.stack([scored[i].draws for i in which]), streams, tiles[which[0]].x.n)
        table.loc[at, "p_maxt"] = nulls.max_t(observed, draws)
        table.loc[at, "p_holm"] = nulls.holm(p)
        table.loc[at, "p_bh"] = nulls.benjamini_hochberg(p)
        table.loc[at, "p_by"] = nulls.benjamini_yekutieli(p)
    return table


def _search_draws(tiles: Sequence[Tile], scored: Sequence[Scored]) -> pd.DataFrame:
    """The null draws of every layer search, one row per tile."""
    names = [(repr(t.measure), t.x.name, t.y.name) for t in tiles]
    frame = pd.DataFrame(names, columns=["measure", "model_x", "model_y"])
    return frame.assign(draws=[s.draws for s in scored])


def _describe(
    x: Sequence[Representation],
    y: Sequence[Representation] | None,
    tiles: Sequence[Tile],
    null: nulls.Null | nulls.Auto,
    findings: list[dict[str, Any]],
    table: pd.DataFrame,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    models = {r.name: r for r in (x if y is None else [*x, *y])}
    first, settings = x[0], tiles[0].settings
    measures = list(dict.fromkeys(repr(t.measure) for t in tiles))
    by_measure = {repr(t.measure): t.settings.null for t in tiles}
    warnings = list(extra.get("warnings", ()))
    for measure, pairs in table[table["scope"] == "max"].groupby("measure", sort=False):
        sentence = nulls.multiplicity_warning(int(pairs["n_draws"].iloc[0]), len(pairs), settings.alpha)
        if sentence is not None:
            warnings.append(f"{measure}: {sentence}")
        undefined = int(pairs["statistic"].isna().sum())
        if undefined:
            warnings.append(f"{measure}: undefined for {undefined} of {len(pairs)} pairs of models (a constant layer?)")
    return {
        "repalign": _version("repalign"),
        "versions": {name: _version(name) for name in LIBRARIES},
        "name": extra.get("name"),
        "study": extra.get("study"),
        "dataset": extra.get("dataset")
        or {"name": first.dataset_name, "n": first.n, "fingerprint": first.dataset_fingerprint, "left_out": []},
        "models": [
            {
                **r.record.to_dict(),
                "layers": settings.preprocess.layer_names(r.layers),
                "widths": [int(w) for w in _widths(r)],
                "facts": dict(r.facts),
            }
            for r in models.values()
        ],
        "sides": {"x": [r.name for r in x], "y": [r.name for r in (x if y is None else y)]},
        "measures": measures,
        "null": {
            "method": null.method,
            "seed": null.seed,
            "by_measure": {m: {"method": v.method, "n_draws": v.count(first.n)} for m, v in by_measure.items()},
            "relabelled": "one side" if tiles[0].streams == nulls.ONE_SIDE else "every model",
            "groups": None if null.groups is None else _groups(null.groups),
        },
        "search": settings.search,
        "alpha": settings.alpha,
        "preprocess": None if settings.preprocess.is_identity else asdict(settings.preprocess),
        "findings": findings,
        "warnings": warnings,
        "competences": {c.name: {"label": c.label, "lower_is_better": c.lower_is_better} for c in COMPETENCES.values()},
    }


def _groups(groups: nulls.Groups) -> dict[str, Any]:
    return {"shuffle": groups.shuffle, "n_groups": len(groups.members), "digest": groups.digest}


def _widths(r: Representation) -> list[int]:
    known = getattr(r, "widths", None)
    return list(known) if known else [r.load(layer).shape[1] for layer in r.layers]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
