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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from repalign import null as nulls
from repalign.alignment import SCHEMA, Alignment, as_table, write_table, write_text
from repalign.doctor import examine
from repalign.errors import RepalignError, did_you_mean
from repalign.measures import parse_measure
from repalign.measures._base import Measure, as_features
from repalign.models import COMPETENCES, ModelRecord
from repalign.preprocess import Preprocess
from repalign.progress import Progress, silent
from repalign.representation import MemoryRepresentation, Representation, check_same_dataset

log = logging.getLogger(__name__)

# Part of every tile's name: raise it when a change moves a number, so that old tiles are not reused.
TILE_VERSION = 1

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
    """One measure on one pair of models."""

    x: Representation
    y: Representation
    measure: Measure
    settings: Settings

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
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


# --- the public door ---------------------------------------------------------------------------


def compare(
    x: Sequence[Representation],
    y: Sequence[Representation] | None = None,
    measures: Sequence[Measure | str] = DEFAULT_MEASURES,
    null: nulls.Null | nulls.Auto | str = "auto",
    *,
    search: str = "studentised",
    alpha: float = 0.05,
    preprocess: Preprocess | None = None,
    results: str | Path | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    memory: int | None = None,
    progress: Progress = silent,
    describe: Mapping[str, Any] | None = None,
) -> Alignment:
    """Compare every layer of every model of `x` with every layer of every model of `y`.

    Parameters
    ----------
    x, y : representations of one dataset. Without `y`, all models of `x` against each other.
    measures : measures or their names, for instance ``MutualKNN(k=10)`` or ``"CKA()"``.
    null : a null or its name; "auto" takes the exact cyclic group for bilinear measures at n >= 200 and
        199 random permutations otherwise.
    search : "studentised" (default) or "raw": how the best pair of layers is found (see `null.search_layers`).
    alpha : level of the threshold, and so of the calibrated score.
    preprocess : applied to all layers of a model before measuring; nothing by default.
    results : a folder. Finished tiles are kept there, so that a killed run resumes with the missing ones.
    executor : any `concurrent.futures.Executor`; tiles are then computed there.
    memory : bytes for prepared states; a quarter of the machine's by default.
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
    everything = x if y is None else [*x, *y]
    if not everything or y == []:
        raise RepalignError("nothing to compare", expected="at least one model on each side", got="none")
    check_same_dataset(everything)
    _check_names(everything)
    measures = [parse_measure(m) if isinstance(m, str) else m for m in measures]
    null = nulls.make_null(null) if isinstance(null, str) else null
    n = everything[0].n
    for measure in measures:
        measure.check_n(n, f"dataset {everything[0].dataset_name!r}")
    if search not in nulls.SEARCHES:
        raise RepalignError(f"unknown layer search {search!r}", got=search, remedy=did_you_mean(search, nulls.SEARCHES))
    folder = None if results is None else Path(results)
    findings = _findings(everything, folder, progress)

    def settings(measure: Measure) -> Settings:
        return Settings(nulls.resolve(null, measure, n), search, alpha, preprocess or Preprocess(), device)

    tiles = [Tile(a, b, m, settings(m)) for m in measures for a, b in _pairs(x, y, m)]
    if not tiles:
        raise RepalignError("nothing to compare", expected="two models, or one on each side", got=f"{len(x)} model")
    budget = _default_memory() if memory is None else memory
    frames = _run_tiles(tiles, folder, executor, budget, progress)
    table = _adjust(pd.concat(frames, ignore_index=True))
    run = _describe(x, y, tiles, null, findings, table, describe or {})
    alignment = Alignment(table, run)
    if folder is not None:
        alignment.save(folder)
    return alignment


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
) -> Iterator[tuple[Representation, Representation]]:
    if y is not None:
        return itertools.product(x, y)
    return itertools.combinations(x, 2) if measure.symmetric else itertools.permutations(x, 2)


def _run_tiles(
    tiles: Sequence[Tile], folder: Path | None, executor: Executor | None, budget: int, progress: Progress
) -> list[pd.DataFrame]:
    """Compute the tiles that are not there yet, keep each as soon as it is done, return all in order."""
    done: dict[int, pd.DataFrame] = {}
    for i, tile in enumerate(tiles):
        kept = None if folder is None else _read_tile(folder, tile)
        if kept is not None:
            done[i] = kept
    missing = [i for i in range(len(tiles)) if i not in done]
    progress("compare", len(done), len(tiles), None if not done else f"{len(done)} of {len(tiles)} tiles were there")

    def keep(i: int, frame: pd.DataFrame) -> None:
        if folder is not None:
            path = _tile_path(folder, tiles[i])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(frame, path)
        done[i] = frame
        progress("compare", len(done), len(tiles))

    if executor is None:
        cache = _Cache(budget)
        for i in _in_blocks(missing, tiles, budget, cache):
            keep(i, compute_tile(tiles[i], cache))
    else:
        futures = {executor.submit(_compute_elsewhere, tiles[i], budget): i for i in missing}
        for future in as_completed(futures):
            keep(futures[future], future.result())
    return [done[i] for i in range(len(tiles))]


def compute_tile(tile: Tile, cache: _Cache | None = None) -> pd.DataFrame:
    """Scores, draws and what follows for one tile: a pure function of the two representations."""
    cache = _Cache(_default_memory()) if cache is None else cache
    measure, settings = tile.measure, tile.settings
    a, b = cache.get(tile.x, measure, settings), cache.get(tile.y, measure, settings)
    observed = measure.compare_all(a.states, b.states).numpy()
    judged = settings.null.judge(measure, a, b, observed, how=settings.search, alpha=settings.alpha)
    common = {
        "dataset": tile.x.dataset_name,
        "dataset_fingerprint": tile.x.dataset_fingerprint,
        "n": tile.x.n,
        "model_x": tile.x.name,
        "model_y": tile.y.name,
        "measure": repr(measure),
        "seed": settings.null.seed,
    }
    names_x, names_y = _layer_names(tile.x, settings.preprocess), _layer_names(tile.y, settings.preprocess)

    def row(scope: str, by: str, i: int, j: int, values: nulls.Calibration, at: tuple[int, ...]) -> dict[str, Any]:
        where = {"index_x": i, "index_y": j, "layer_x": names_x[i] if i >= 0 else None}
        where["layer_y"] = names_y[j] if j >= 0 else None
        numbers = {f: float(np.asarray(getattr(values, f))[at]) for f in nulls.Calibration.__dataclass_fields__}
        chance = {"null": by, "n_draws": 0 if by == nulls.Moments.method else judged.n_draws}
        search = settings.search if scope == "max" else None
        return {**common, "scope": scope, **where, **numbers, **chance, "search": search}

    found = judged.search
    rows = [row("max", judged.search_by, found.layer_x, found.layer_y, found.calibration, ())]
    rows += [
        row("cell", str(judged.cells_by[i, j]), i, j, judged.cells, (i, j)) for i, j in np.ndindex(*observed.shape)
    ]
    return as_table(rows)


def _layer_names(representation: Representation, preprocess: Preprocess) -> list[str]:
    return preprocess.layer_names(representation.layers)


def _tile_path(folder: Path, tile: Tile) -> Path:
    return folder / "tiles" / f"{tile.key}.parquet"


def _read_tile(folder: Path, tile: Tile) -> pd.DataFrame | None:
    path = _tile_path(folder, tile)
    if not path.is_file():
        return None
    try:
        return pq.read_table(path, schema=SCHEMA).to_pandas()
    except (pa.ArrowException, OSError) as error:
        log.warning("%s: a tile cannot be read (%s); it is computed again", path, error)
        return None


# --- work once per layer -----------------------------------------------------------------------


class _Cache:
    """Prepared models, the least recently used dropped when `budget` bytes are passed."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.entries: OrderedDict[tuple[str, str, str], nulls.Prepared] = OrderedDict()

    def get(self, representation: Representation, measure: Measure, settings: Settings) -> nulls.Prepared:
        key = (representation.key, repr(measure), repr(settings))
        if key in self.entries:
            self.entries.move_to_end(key)
            return self.entries[key]
        prepared = _prepare(representation, measure, settings)
        self.entries[key] = prepared
        # The two models of a tile stay, whatever they weigh.
        while len(self.entries) > 2 and sum(p.nbytes for p in self.entries.values()) > self.budget:
            self.entries.popitem(last=False)
        return prepared


def _prepare(representation: Representation, measure: Measure, settings: Settings) -> nulls.Prepared:
    layers = {
        name: as_features(representation.load(name), f"{representation.name}, layer {name}").to(settings.device)
        for name in representation.layers
    }
    states = [measure.prepare(x) for x in _preprocessed(layers, settings.preprocess).values()]
    return settings.null.prepare(measure, states)


def _preprocessed(layers: dict[str, Tensor], preprocess: Preprocess) -> dict[str, Tensor]:
    return layers if preprocess.is_identity else preprocess(layers)


def _in_blocks(missing: Sequence[int], tiles: Sequence[Tile], budget: int, cache: _Cache) -> Iterator[int]:
    """Order tiles so that the models of a block of pairs fit the cache together: each is prepared once per block."""
    for _, group in itertools.groupby(missing, key=lambda i: repr(tiles[i].measure)):
        block = list(group)
        first = tiles[block[0]]
        prepared = cache.get(first.x, first.measure, first.settings)
        per_layer = max(1, prepared.nbytes // max(1, len(first.x.layers)))
        weights = [per_layer * len(r.layers) for i in block for r in (tiles[i].x, tiles[i].y)]
        models = max(1, int(budget // (2 * max(weights))))
        order_x = {k: rank for rank, k in enumerate(dict.fromkeys(tiles[i].x.key for i in block))}
        order_y = {k: rank for rank, k in enumerate(dict.fromkeys(tiles[i].y.key for i in block))}

        def place(i: int, x: dict[str, int] = order_x, y: dict[str, int] = order_y, m: int = models) -> tuple[int, ...]:
            a, b = x[tiles[i].x.key], y[tiles[i].y.key]
            return a // m, b // m, a, b

        yield from sorted(block, key=place)


_process_caches: dict[int, _Cache] = {}


def _compute_elsewhere(tile: Tile, budget: int) -> pd.DataFrame:
    """One tile in a worker, which keeps its own cache from tile to tile."""
    cache = _process_caches.setdefault(os.getpid(), _Cache(budget))
    return compute_tile(tile, cache)


def _default_memory() -> int:
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


def _findings(
    representations: Sequence[Representation], folder: Path | None, progress: Progress
) -> list[dict[str, Any]]:
    """The doctor's look at every layer, once; kept beside the tiles."""
    unique = list({r.key: r for r in representations}.values())
    out: list[dict[str, Any]] = []
    for done, r in enumerate(unique):
        progress("examine", done, len(unique))
        path = None if folder is None else folder / "findings" / f"{r.key}.json"
        if path is not None and path.is_file():
            found = json.loads(path.read_text("utf-8"))
        else:
            found = []
            for layer in r.layers:
                x = r.load(layer)
                stored = r.facts.get("store_dtype") or str(x.dtype).removeprefix("torch.")
                found += [asdict(f) for f in examine(x, model=r.name, layer=layer, stored_dtype=stored)]
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(found, ensure_ascii=False))
        out += [{**f, "model": r.name} for f in found]
    progress("examine", len(unique), len(unique))
    return out


def _adjust(table: pd.DataFrame) -> pd.DataFrame:
    """Add Holm's and Benjamini-Hochberg's p-values over the pairs of models of each measure."""
    table = table.copy()
    for _, rows in table[table["scope"] == "max"].groupby("measure", sort=False):
        p = rows["pvalue"].to_numpy()
        table.loc[rows.index, "p_holm"] = nulls.holm(p)
        table.loc[rows.index, "p_bh"] = nulls.benjamini_hochberg(p)
    return table


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
                "layers": _layer_names(r, settings.preprocess),
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
        },
        "search": settings.search,
        "alpha": settings.alpha,
        "preprocess": None if settings.preprocess.is_identity else asdict(settings.preprocess),
        "findings": findings,
        "warnings": warnings,
        "competences": {c.name: {"label": c.label, "lower_is_better": c.lower_is_better} for c in COMPETENCES.values()},
    }


def _widths(r: Representation) -> list[int]:
    known = getattr(r, "widths", None)
    return list(known) if known else [r.load(layer).shape[1] for layer in r.layers]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
