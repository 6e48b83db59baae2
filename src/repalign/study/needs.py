"""What a study needs before it runs: downloads, disk, memory and time, per model and in sum. No weight is loaded.

The facts of models come from their sources, the time of a forward pass from the machine's rate of matrix products, the time
and memory of comparing from a trial of the comparison on random layers. How far off this was: docs/estimates.md.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import repalign.null as nulls
from repalign import comparison
from repalign.comparison import Preprocess, Settings
from repalign.comparison.applicable import LIMIT, Taken, trial
from repalign.comparison.tiles import STATES
from repalign.comparison.ways import way_of
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.measures import Bilinear, Group, Measure, parse_wanted
from repalign.models import ModelRecord
from repalign.representation import MemoryRepresentation
from repalign.sources import Facts, ModelEntry, choose_device, facts_of, parse_spec
from repalign.sources.hub import file_of, hub_cache
from repalign.sources.model import STORE_DTYPES, run_dtype
from repalign.sources.source import FILE, MEASURED, UNKNOWN, as_asked_today
from repalign.store import FeatureStore
from repalign.text import duration, named, size

START_SECONDS = 4.0  # to import torch, transformers and timm and to open a dataset, once a run
EFFICIENCY = {"cpu": 0.7, "cuda": 0.3, "mps": 0.3}  # of the rate of a matrix product, in a forward pass; on a GPU an assumption
BLOCK_SECONDS = 1.2e-3  # of each block of each batch beside its products: most of what tiny models take
BUILD_SECONDS = 0.5  # to build a model and to probe it once
FILE_BYTES = 3e8  # a second, read from a plain solid-state disk with its digest taken
TOKENS_PER_WORD = 1.4  # of English text, for tokenizers of some ten thousand tokens
CAPTIONS, IMAGES, SIDE = 500, 8, 224  # whose mean length is taken; that are read for the time of one, and scaled to so many pixels
ENTRY_SECONDS = 5e-9  # of every number of a layer: read from the store, checked, and looked at by the doctor
TILE_SECONDS = 8e-3  # to write the rows of a pair of models under one measure
TRIAL_SECONDS, GROUP_TRIAL_SECONDS = 0.5, 0.01  # for a trial; for that of a measure of a group, which are many
SMALLEST, LAYERS = 256, 6  # stimuli of the first trial (below, little grows), and most layers of each of its two models
# How what a trial measures grows with twice the stimuli: seconds of a layer, of a pair of layers, of a pair of models, bytes.
GROWTH = np.array([4.0, 4.0, 2.0, 4.0])
PROCESS_BYTES = int(7e8)  # the libraries, and what they hold
LONG = 3  # measures whose cost is told one by one
COPIES = 6  # of the draws of one pair of models, while they are judged
NAMES = {"feature_bytes": "features", "download_bytes": "downloads"}


@dataclass(frozen=True)
class Comparing:
    """Seconds, bytes and pairs of layers of comparing; `left_out` are measures whose time is not known, `long` take long."""

    seconds: float
    memory_bytes: int
    layer_pairs: int
    left_out: tuple[str, ...] = ()
    long: tuple[Taken, ...] = ()


@dataclass(frozen=True, eq=False)
class Needs:
    """What a study needs before it runs.

    table : a row per model; `width` is that of the widest layer. What is not known is missing, and in no
        sum. The columns `*_from` say where a number comes from: "known" (the table of known models, or a recipe), "measured"
        (an extraction in the store), "counted" (the architecture, built without weights), "file", "hub" or "unknown".
        `complete`: the model is in the store and costs nothing.
    warnings : what is short, naming the model.
    """

    table: pd.DataFrame
    comparing: tuple[Comparing, ...]  # of each run of the study
    device: str
    warnings: tuple[str, ...] = ()

    running: Any = field(init=False)  # the table of pandas: the rows of models that are to be run
    seconds: float = field(init=False)  # in all, without the time of downloads
    compare_bytes: int = field(init=False)  # the memory of comparing: runs follow one another

    def __post_init__(self) -> None:
        running: Any = self.table[~self.table["complete"]]
        seconds = START_SECONDS + float(running["seconds"].sum()) + sum(c.seconds for c in self.comparing)
        vars(self).update(running=running, seconds=seconds, compare_bytes=max((c.memory_bytes for c in self.comparing), default=0))

    def lines(self) -> list[str]:
        """All of it in sentences, for the terminal."""
        running, left_out = self.running, dict.fromkeys(name for c in self.comparing for name in c.left_out)
        download, memory = int(running["download_bytes"].sum()), running["memory_bytes"].fillna(0)
        out, there = [], len(self.table) - len(running)
        if there:
            out.append(f"{there} of {len(self.table)} models are complete in the store and cost nothing")
        if len(running):
            largest = f"{size(int(memory.max()))}, for {running.loc[memory.idxmax(), 'model']}"
            for what, column, much in (
                ("downloads", "download_bytes", size(download) if download else ""),
                ("features on disk", "feature_bytes", size(int(running["feature_bytes"].sum()))),
                (f"memory on {self.device} while models run", "memory_bytes", largest),
                ("running models", "seconds", duration(float(running["seconds"].sum()))),
            ):
                unknown = running.loc[running[column].isna(), "model"].tolist()
                lost = f"; not known and not counted: {named(unknown)}" if unknown else ""
                out.append(f"{what}: " + (f"{_about(much)}{lost}" if len(unknown) < len(running) else "not known"))
        if not self.comparing:
            return [*out, *(f"warning: {w}" for w in self.warnings)]
        lost = self.table.loc[self.table["layers"].isna(), "model"].tolist()
        out.append(
            f"comparing {sum(c.layer_pairs for c in self.comparing):,} pairs of layers: "
            f"{_about(duration(sum(c.seconds for c in self.comparing)))} and {size(self.compare_bytes)} of memory"
            + (f"; without the layers, which are not known, of {named(lost)}" if lost else "")
        )
        for one in sorted((t for c in self.comparing for t in c.long), key=lambda t: -t.seconds)[:LONG]:
            out.append(one.sentence(sum(c.seconds for c in self.comparing)))
        if left_out:
            out.append(f"not known and not counted: the time of {named(list(left_out))}")
        out.append(f"in all {_about(duration(self.seconds))}" + (" and the downloads" if download else ""))
        return [*out, *(f"warning: {w}" for w in self.warnings)]


def _about(much: str) -> str:
    return f"about {much}" if much[:1].isdigit() else much or "none"


def estimate(
    dataset: Dataset, x: Sequence[ModelEntry | str], y: Sequence[ModelEntry | str] | None = None,
    measures: Sequence[Measure | Group | str] = comparison.DEFAULT_MEASURES, null: nulls.Null | str = "auto", *,
    store: FeatureStore | None = None, preprocess: Preprocess | None = None, n_compared: int | None = None,
    device: str = "auto", dtype: str = "auto", batch_size: int = 32, limit: float | None = None,
) -> Needs:  # fmt: skip
    """What extracting these models and comparing them needs; nothing is loaded, trained or downloaded for it.

    x, y : the models of both sides, as `extract` takes them; without y those of x are compared with one another.
    measures, null, preprocess, limit : as `compare` takes them; without a measure it is extracting alone that is told.
    store : what is complete there costs nothing.
    n_compared : how many of the stimuli are compared, all by default.
    device, dtype, batch_size : as `extract` takes them.

    The hub is asked, for three seconds at most, about models that no table and no file tells of; not where its client is
    offline (HF_HUB_OFFLINE). Raises RepalignError for a malformed spec, an unknown measure or null, and a device that is not
    there.
    """
    models = [(side, ModelEntry(m) if isinstance(m, str) else m) for side, some in (("x", x), ("y", y or ())) for m in some]
    # What an extraction depends on, but for the revision, which only the hub or the files' bytes could tell.
    keys = [json.dumps([str(parse_spec(e.spec)), e.settings(dtype)], sort_keys=True) for _, e in models]
    place, done = choose_device(device), {} if store is None else _complete(store, dataset)
    found = iter(facts_of([e for (_, e), key in zip(models, keys, strict=True) if key not in done]))
    image_seconds = functools.cache(functools.partial(_image_seconds, dataset))  # of a column, the same for all models
    facts = [done.get(key) or next(found) for key in keys]
    rows, seen = [], set[str]()
    for (side, entry), key, fact in zip(models, keys, facts, strict=True):
        complete, spec, layers = key in done or key in seen, parse_spec(entry.spec), fact.widths  # on both sides: made once
        asked = entry, fact, dataset, batch_size, dtype, place, image_seconds
        download, memory, seconds = (0, 0, 0.0) if complete else _costs(*asked)
        if entry.spec in seen and download is not None:
            download = 0
        seen |= {key, entry.spec}
        rows.append({
            "model": spec.source.name(spec, entry), "side": side, "parameters": fact.parameters,
            "layers": None if layers is None else len(layers), "width": max(layers) if layers else None,
            "download_bytes": download, "memory_bytes": memory,
            "feature_bytes": None if layers is None else dataset.n * sum(layers) * STORE_DTYPES[entry.store_dtype].itemsize,
            "seconds": seconds, "complete": complete,
            **{f"{what}_from": getattr(fact, f"{what}_from") for what in ("parameters", "layers", "download")},
        })  # fmt: skip
    sides = [[f.widths for (at, _), f in zip(models, facts, strict=True) if at == side and f.widths] for side in "xy"]
    wanted = [parse_wanted(m) if isinstance(m, str) else m for m in measures]
    compared = [] if not wanted else [comparing(
        sides[0], None if y is None else sides[1], n_compared or dataset.n, wanted,
        nulls.make_null(null) if isinstance(null, str) else null, preprocess or Preprocess(), limit,
    )]  # fmt: skip
    whole = ("parameters", "layers", "width", "download_bytes", "memory_bytes", "feature_bytes")
    table = pd.DataFrame(rows).astype({**dict.fromkeys(whole, "Int64"), "seconds": "float64"})
    needs = Needs(table, tuple(compared), place)
    return replace(needs, warnings=tuple(_shortages(needs, None if store is None else str(store.url))))


# --- running models ------------------------------------------------------------------------------

def _complete(store: FeatureStore, dataset: Dataset) -> dict[str, Facts]:
    """The facts of all extractions of a dataset, or of what a model reads of it, that are whole, by their identity."""
    out = {}
    for r in store.whole(dataset.describe()):
        spec, settings = r.manifest["record"]["spec"], r.manifest["settings"]
        if store.find(r.dataset_fingerprint, spec, r.record.revision, settings) is not None:
            count = r.record.n_parameters
            origin = {"parameters_from": UNKNOWN if count is None else MEASURED, "layers_from": MEASURED, "download_from": FILE}
            facts = Facts(parameters=count, widths=r.widths, names=r.layers, download_bytes=0, **origin)
            out[json.dumps([spec, as_asked_today(spec, settings, r.facts)], sort_keys=True)] = facts
    return out


def _costs(
    entry: ModelEntry, facts: Facts, dataset: Dataset, batch_size: int, dtype: str, place: str,
    image_seconds: Callable[[str | None], float],
) -> tuple[int | None, int | None, float | None]:
    """Bytes of download, bytes of memory and seconds of running a model over a dataset; None is what is not known.

    A stimulus of t tokens takes the operations that were counted, or 2 P t for P parameters and 4 t^2 d for the attention of
    every layer. Memory is for the weights in the dtype of the run and for the hidden states of a batch.
    """
    run, widths = run_dtype(dtype, facts.stored, place, entry.label), facts.widths or ()
    written = dataset.n * sum(widths) * STORE_DTYPES["float32"].itemsize / FILE_BYTES
    if facts.reads_array:
        held = facts.file_bytes
        return facts.download_bytes, held, None if held is None else held / FILE_BYTES + written
    tokens = facts.tokens if facts.kind == "image" else _tokens(entry, dataset) if facts.kind == "text" else None
    tokens = tokens + (entry.tokens or 1) - 1 if tokens is not None else None  # with those that are generated
    memory, seconds, operations = None, None, facts.flops
    if facts.parameters is not None:
        memory = facts.parameters * run.itemsize + int(batch_size * (tokens or 1) * sum(widths) * run.itemsize)
        if operations is None and tokens is not None:
            operations = 2.0 * facts.parameters * tokens + 4.0 * tokens**2 * sum(widths)
    if operations is not None:
        each = operations / (EFFICIENCY[torch.device(place).type] * _products(place, run))
        each += image_seconds(entry.modality) if facts.kind == "image" else 0.0
        blocks = math.ceil(dataset.n / batch_size) * len(widths) * BLOCK_SECONDS
        loading = BUILD_SECONDS + (facts.file_bytes or 0) / FILE_BYTES
        seconds = loading + dataset.n * each + blocks + facts.work + written
    return facts.download_bytes, memory, seconds


@functools.cache
def _products(device: str, dtype: torch.dtype) -> float:
    """Operations of matrix products a second on this machine; a multiply-add is two."""
    return 2 * comparison.matmul_rate(device, seconds=0.2, dtype=dtype)


def _sample(dataset: Dataset, named: str | None, kind: str, most: int) -> list[Any]:
    """Some stimuli of the column that a model reads: the one named, or the only one of its kind."""
    fitting = [m for m in dataset.modalities if dataset.kind(m) == kind]
    column = named if named in fitting else fitting[0] if len(fitting) == 1 else None
    return [] if column is None else dataset.stimuli(column, range(0, dataset.n, max(1, dataset.n // most)))


def _tokens(entry: ModelEntry, dataset: Dataset) -> float | None:
    """Mean tokens of the captions that a model reads; by its tokenizer if that is on this machine."""
    captions = _sample(dataset, entry.modality, "text", CAPTIONS)
    texts = [entry.prompted(c[min(entry.caption, len(c) - 1)]) for c in captions]
    if not texts:
        return None
    file = file_of(parse_spec(entry.spec), "tokenizer.json")
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return float(np.mean([len(e.ids) for e in tokenizer.encode_batch(texts)]))
    except Exception:  # the library raises plain Exception for a file that is not there, or that it does not know
        return TOKENS_PER_WORD * float(np.mean([len(t.split()) for t in texts]))


def _image_seconds(dataset: Dataset, named: str | None) -> float:
    """Seconds to read, decode and scale one image, measured on a few."""
    start, images = time.perf_counter(), []
    with contextlib.suppress(RepalignError):  # an image that has gone: the run will say so
        images = [np.asarray(i.resize((SIDE, SIDE))) for i in _sample(dataset, named, "image", IMAGES)]
    return (time.perf_counter() - start) / max(1, len(images))


# --- comparing -----------------------------------------------------------------------------------


def comparing(
    x: Sequence[Sequence[int]], y: Sequence[Sequence[int]] | None, n: int, measures: Sequence[Measure | Group],
    null: nulls.Null, preprocess: Preprocess, limit: float | None = None,
) -> Comparing:  # fmt: skip
    """What comparing takes of models whose layers have these widths; without y all models of x with one another.

    What is tried is what `compare` does, on random layers of the mean width; where the prepared models of one side do not fit
    the memory, models of the other are prepared more than once, which is not counted.
    """
    if preprocess.concatenate:
        x, y = ([(*w, sum(w)) for w in side] if side is not None else None for side in (x, y))
    models = [*x, *(y or ())]
    pairs = [(a, b) for a in x for b in y] if y is not None else [(a, b) for i, a in enumerate(x) for b in x[i + 1 :]]
    layers, cells = sum(map(len, models)), sum(len(a) * len(b) for a, b in pairs)
    if not cells:
        return Comparing(0.0, PROCESS_BYTES, 0)
    width, widest = round(sum(map(sum, models)) / layers), max(d for w in models for d in w)
    named = dict.fromkeys(m for m in measures if isinstance(m, Measure))
    every = dict.fromkeys([*named, *(m for g in measures if isinstance(g, Group) for m in g.members)])
    jobs: dict[str, dict[Measure, Settings]] = {}  # of bilinear measures, by way: they share one Gram matrix of every layer
    for measure in every:
        if isinstance(measure, Bilinear) and n >= measure.min_n:
            way, used = way_of(measure, null, n, plain=preprocess.is_identity)
            alone = None if preprocess.is_identity else replace(preprocess, concatenate=False)
            jobs.setdefault(way.name, {})[measure] = Settings(used, "studentised", 0.05, alone, way=way.name)
    layer, cell, pair, held = sum((_trial(tuple(some.items()), n, width) for some in jobs.values()), np.zeros(4))
    seconds = ENTRY_SECONDS * n * sum(map(sum, models)) + layers * layer + cells * cell + len(pairs) * pair
    left_out, long, few = [], [], isinstance(null, nulls.Auto)
    for measure in (m for m in every if not any(m in some for some in jobs.values())):
        try:
            sides = (models, models) if measure.equal_widths else (x, y or x)
            # The geometric mean of the widths: one layer of raw pixels must not pass for the width of all.
            usual = [round(math.exp(np.mean([math.log(d) for w in side for d in w]))) for side in sides]
            x_, y_ = (torch.randn(n, d, generator=torch.Generator().manual_seed(0)) for d in usual)
            cost = trial(measure, x_, y_, TRIAL_SECONDS if measure in named else GROUP_TRIAL_SECONDS)
            taken = cost.taken(measure, layers, cells, null.resolve(measure, n).count(n), few)
            most = LIMIT if limit is None else limit or math.inf
            if limit is None and measure in named:
                long += [taken] * (taken.seconds > LIMIT)
                most = math.inf
            seconds += taken.within(most) or 0.0
        except RepalignError:  # not defined on such layers, or by a library that is not installed
            left_out.append(repr(measure))
    seconds += len(pairs) * (len(every) - len(left_out)) * TILE_SECONDS
    two = max(len(a) + len(b) for a, b in pairs)
    # Layers that share a threshold, or are concatenated, are in memory together.
    whole = widest if preprocess.is_identity else max(map(sum, models))
    states = min(layers * held, max(comparison.DEFAULT_MEMORY, two * held)) + two / 2 * held  # and a model on its way there
    draws = COPIES * 8 * n * max(len(a) * len(b) for a, b in pairs)
    memory = PROCESS_BYTES + int(states + 4 * n * (2 * widest + whole) + draws)
    return Comparing(seconds, memory, cells, tuple(left_out), tuple(long))


@functools.lru_cache(maxsize=256)  # the variants of a study have much in common
def _trial(settings: tuple[tuple[Measure, Settings], ...], n: int, width: int) -> np.ndarray:
    """What bilinear measures together take for a layer, a pair of layers and a pair of models, and the bytes they hold of a layer.

    Tried at two sizes, and on ever more stimuli while the next trial takes less than `TRIAL_SECONDS`; then all grows as it is
    known to. Above `SMALLEST` one size is enough where it takes long: hardly anything of that does not grow.
    """
    jobs, before = dict(settings), None
    growth = GROWTH if settings[0][1].way in STATES else np.full(4, 2.0)  # what is streamed grows with n, not n^2
    size = min(n, max([SMALLEST, *(m.min_n for m in jobs)]))
    start = time.perf_counter()
    first = _timed(jobs, size, width, 1)  # which may have to load a library: that is little beside what takes long
    begun = time.perf_counter() - start
    layers = LAYERS if begun < LAYERS * TRIAL_SECONDS else 2
    while True:
        start = time.perf_counter()
        if before is not None or begun < 2 * TRIAL_SECONDS:
            first, begun = _timed(jobs, size, width, 1), 0.0
        prepare, many, held = _timed(jobs, size, width, layers)
        spent, cell = begun + time.perf_counter() - start, (many - first[1]) / (layers**2 - 1)
        now = np.maximum([prepare / (2 * layers), cell, first[1] - cell, held / (2 * layers)], 0)
        if size == n or ((before is not None or size > SMALLEST) and spent * growth[0] > TRIAL_SECONDS):
            # What does not grow with the stimuli is in both trials, and so not in their difference.
            step = np.maximum(now - (now / growth if before is None else before), 0)
            return now + step * growth * (growth ** math.log2(n / size) - 1) / (growth - 1)
        size, before = min(2 * size, n), now


def _timed(jobs: Mapping[Measure, Settings], n: int, width: int, layers: int) -> tuple[float, float, int]:
    """Seconds of preparing two models, seconds of comparing them, and the bytes that are held of them."""
    random, ids = torch.Generator().manual_seed(0), tuple(map(str, range(n)))
    arrays = [{str(i): torch.randn(n, width, generator=random) for i in range(layers)} for _ in "xy"]
    x, y = (MemoryRepresentation(ModelRecord("array:", name, "array"), ids, a) for name, a in zip("xy", arrays, strict=True))
    tiles = [comparison.Tile(x, y, measure, how) for measure, how in jobs.items()]
    cache, first, then, begun = None, [], [], time.perf_counter()
    # The shorter of two: one interruption would be taken for work. What takes long is tried once.
    while cache is None or (len(first) < 2 and time.perf_counter() - begun < TRIAL_SECONDS / 4):
        cache = comparison.Cache(comparison.DEFAULT_MEMORY, tiles)
        for spent in (first, then):  # the first time all is prepared
            start = time.perf_counter()
            for tile in tiles:
                comparison.compute_tile(tile, cache)
            spent.append(time.perf_counter() - start)
    return min(first) - min(then), min(then), cache.nbytes


# --- what is short -------------------------------------------------------------------------------


def disk_of(path: Path) -> tuple[int, int]:
    """The file system of a folder, which need not be there yet: a number that tells it apart, and its free bytes."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return there.stat().st_dev, shutil.disk_usage(there).free


def free_gpu(device: str) -> float:
    """Free memory of the GPUs that models run on; infinite without one of its own: an Apple GPU uses that of the machine."""
    if not device.startswith("cuda"):
        return math.inf
    chosen = range(torch.cuda.device_count()) if device == "cuda" else [torch.device(device).index or 0]
    return sum(torch.cuda.mem_get_info(i)[0] for i in chosen)


def _shortages(needs: Needs, store: str | None) -> Iterator[str]:
    """What is short, with the models that need most of it, and what to do."""
    running, machine, free = needs.running.fillna(0), 4 * comparison.DEFAULT_MEMORY, free_gpu(needs.device)
    for there, what, remedy in (
        (free, f"GPU memory and {size(free)} are free", "or a smaller batch_size, or more GPUs (device: sharded)"),
        (machine, f"memory and the machine has {size(machine)}", "(bfloat16), or leave such models out"),
    ):
        large = running[running["memory_bytes"] > there].sort_values("memory_bytes", ascending=False)
        if len(large):
            first, *rest = large["model"]
            others = f" (too much for {named(rest)} as well)" if rest else ""
            yield f"{first} needs about {size(large['memory_bytes'].iloc[0])} of {what}{others}: use a smaller dtype {remedy}"
    if needs.compare_bytes > machine:
        yield (
            f"comparing needs about {size(needs.compare_bytes)} of memory and the machine has {size(machine)}: "
            "use fewer stimuli, or measures that are streamed (CKA() and MutualKNN at large n)"
        )
    places = {} if store is None or "://" in store else {"feature_bytes": Path(store)}
    if running["download_bytes"].any():
        places["download_bytes"] = hub_cache()
    disks = {column: disk_of(path) for column, path in places.items()}
    for device, free in dict(disks.values()).items():  # downloads and features may have to share one
        here = [column for column, (other, _) in disks.items() if other == device]
        parts = running.melt("model", here, "what", "bytes").sort_values("bytes", ascending=False, kind="stable")
        if (total := parts["bytes"].sum()) > free:
            what = " and ".join(NAMES[c] for c in here if running[c].any())
            largest = [f"{m} ({size(b)})" for m, b in zip(parts["model"], parts["bytes"], strict=True) if b][:3]
            there = f"{size(free)} are free at {places[here[-1]]}"
            yield f"{what} need about {size(total)} and {there}; the largest: {named(largest)}"
