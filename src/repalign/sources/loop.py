"""The one loop: batch -> forward -> pool -> write a part.

A part is a block of rows of the dataset. What is in it depends on the model, the dataset and the part alone, so
that a run that was killed, or spread over workers, ends with the same bytes.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from repalign.dataset import Dataset
from repalign.errors import RepalignError, Unavailable, did_you_mean
from repalign.models import ModelRecord, Spec, parse_spec
from repalign.sources.extras import BATCH_SIZE, per_row, summary
from repalign.sources.files import first_line
from repalign.sources.placement import SPREAD
from repalign.sources.source import (
    STORE_DTYPES,
    Batch,
    Context,
    ModelEntry,
    Skipped,
    Source,
    as_asked_today,
    library_errors,
    loading,
    out_of_memory,
    refuse_infinite,
    refuse_kind,
    refuse_prompt,
)
from repalign.store import FeatureStore, Part, StoredRepresentation, Writer
from repalign.text import Progress, silent

log = logging.getLogger(__name__)

# Scheme of a spec -> the module with `revision(spec, entry)` and `load(spec, entry, context)`.
SOURCES = {
    "hf": "repalign.sources.hf",
    "timm": "repalign.sources.timm",
    "st": "repalign.sources.st",
    "openclip": "repalign.sources.openclip",
    "torch": "repalign.sources.torch",
    "array": "repalign.sources.array",
    "toy": "repalign.sources.toy",
}
PROMPTED = ("hf", "st")  # schemes whose text models take a prompt
PUBLISHED = ("hf", "timm", "st", "openclip")  # schemes of models that others made, which may fail for reasons of their own
SETTLE = 16  # texts that a model is shown before all others: enough to tell a sink, which is there in every text
ON_UNAVAILABLE = ("error", "skip")


def choose_device(device: str = "auto") -> str:
    """The device to run on: a GPU if there is one, else the CPU; "sharded" is all GPUs; a named one is taken as it is."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "sharded":
        if torch.cuda.is_available():
            return "cuda"
        raise RepalignError(
            "device 'sharded' cannot be used",
            expected="GPUs to spread a model over",
            got="none that torch can use",
            remedy="say `device: auto` to take GPUs where there are some, and the CPU elsewhere",
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RepalignError(
            f"device {device!r} cannot be used",
            expected="auto, cpu, sharded, cuda or cuda:0 and so on, on a machine that has it",
            got=first_line(error),
            remedy="say `device: auto` to take a GPU where there is one",
        ) from error
    return device


def extract(
    dataset: Dataset,
    models: Sequence[ModelEntry | str],
    store: FeatureStore | str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 32,
    rows_per_part: int = 256,
    trust_remote_code: bool = False,
    executor: Executor | None = None,
    on_unavailable: str = "error",
    progress: Progress = silent,
) -> list[Any]:
    """All layers of all models on one dataset, one vector per stimulus, in a store.

    A model that is complete in the store is not run; of one that is not, the missing parts are made. Code that comes
    with a model is not run unless `trust_remote_code`. With an executor the parts are made there, and each worker loads
    the model once; the bytes are the same. What was chosen of the following is told through `progress` and stored.

    * `device`: "auto" is a GPU where there is one, and several for a text model of transformers whose weights take more
      than 0.8 of the free memory of the first; "sharded" spreads such models over all GPUs and runs others on the
      first; "cpu", "cuda:0" and so on are one device. How a model was spread does not enter the extraction hash.
    * `dtype`: "auto" is what the weights are stored in on a GPU, and float32 on the CPU; "stored" is what they are
      stored in anywhere; or "float32", "bfloat16", "float16", "float64". Pooling is in float32 always.
    * `on_unavailable`: "error", or "skip": a model that cannot be loaded for a reason of its own (gated, gone, in no cache
      and out of reach, without safetensors weights or a tokenizer, broken, too large, in need of a package or an
      architecture that is not installed) is left out with one line, and a `Skipped` stands in its place in the list.

    Returns a list with a StoredRepresentation, or a Skipped, for each model, in their order.

    Raises RepalignError: unknown specs, layers or poolings; a stimulus that a model cannot take (the row is named);
    weights that fit no memory; hidden states that are not finite; a store that holds another model in the same place;
    and, with "error", its subclass Unavailable.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    entries = [ModelEntry(m) if isinstance(m, str) else m for m in models]
    if batch_size < 1:
        raise RepalignError("batch_size is out of range", expected="at least 1", got=batch_size)
    if on_unavailable not in ON_UNAVAILABLE:
        raise RepalignError(
            f"unknown on_unavailable {on_unavailable!r}",
            expected=" or ".join(ON_UNAVAILABLE),
            got=on_unavailable,
            remedy=did_you_mean(str(on_unavailable), ON_UNAVAILABLE),
        )
    specs = [_checked_spec(entry) for entry in entries]  # what is wrong with the request is told before any work
    context = Context(
        choose_device(device), dtype, trust_remote_code, dataset.ids, spread=SPREAD.get(device, "never")
    )
    out: list[StoredRepresentation | Skipped] = []
    try:
        for entry, spec in zip(entries, specs, strict=True):
            try:
                job = _job(dataset, entry, spec, store, context, batch_size, rows_per_part)
                out.append(_extract_one(job, store, executor, progress))
            except Unavailable as error:
                if on_unavailable == "error":
                    raise
                out.append(left_out(entry, error, f"extract {entry.label}", progress, dataset.n))
        return out
    finally:
        _forget()


def left_out(entry: ModelEntry, error: Unavailable, task: str, progress: Progress, n: int = 0) -> Skipped:
    """The record of a model that is not to be had, told in one line: a warning where nobody listens to the progress."""
    log.log(logging.WARNING if progress is silent else logging.INFO, "%s: left out: %s", task, error.reason)
    progress(task, n, n, f"left out: {error.reason}")
    return Skipped(entry.spec, entry.label, error.reason)


def _checked_spec(entry: ModelEntry) -> Spec:
    spec = parse_spec(entry.spec)
    if spec.scheme != "array":
        refuse_kind(entry, f"{spec.scheme}: models")
    if spec.scheme not in PROMPTED:
        refuse_prompt(entry, f"{spec.scheme}: models")
    return spec


@dataclass(frozen=True)
class _Job:
    """All that a worker needs to make a part; plain data."""

    dataset: Dataset
    entry: ModelEntry
    spec: Spec
    location: Spec  # the spec with its path absolute: a worker may have another working folder
    revision: str
    store: FeatureStore
    context: Context
    batch_size: int
    rows_per_part: int

    @property
    def module(self) -> ModuleType:
        return import_module(SOURCES[self.spec.scheme])

    @property
    def failure(self) -> type[RepalignError]:
        """What a model that does not load is: not to be had, or the user's own code or file, which is to be mended."""
        return Unavailable if self.spec.scheme in PUBLISHED else RepalignError

    @property
    def settings(self) -> dict[str, Any]:
        return self.entry.settings(self.context.dtype)

    @property
    def key(self) -> str:
        """Equal keys mean that one loaded model serves both jobs."""
        return repr((self.entry, self.revision, self.context.device, self.context.dtype, self.dataset.fingerprint))


@dataclass(frozen=True)
class _Told:
    """What a worker found out about the model."""

    record: ModelRecord
    facts: dict[str, Any]


def _job(
    dataset: Dataset,
    entry: ModelEntry,
    spec: Spec,
    store: FeatureStore,
    context: Context,
    batch_size: int,
    rows_per_part: int,
) -> _Job:
    with library_errors(entry.label, "finding its revision"):
        revision = import_module(SOURCES[spec.scheme]).revision(spec, entry)
    location = spec.resolve(Path.cwd())
    return _Job(dataset, entry, spec, location, revision, store, context, batch_size, rows_per_part)


def _extract_one(job: _Job, store: FeatureStore, executor: Executor | None, progress: Progress) -> StoredRepresentation:
    """One model: found in the store, or its missing parts made and its manifest written."""
    entry, n = job.entry, job.dataset.n
    task = f"extract {entry.label}"
    found = _stored(job, store)
    if found is not None:
        progress(task, n, n, "complete in the store")
        return found.with_record(entry.complete(found.record))
    writer = _writer(job, store)
    missing = writer.missing()
    rows = _Rows(progress, task, n - sum(p.n for p in missing), n)
    if executor is None:
        told = [_make_part(job, part, writer, rows) for part in missing]
    else:
        told = []
        futures = {executor.submit(_make_part_elsewhere, job, part): part for part in missing}
        try:
            for future in as_completed(futures):
                told.append(future.result())
                rows.advance(futures[future].n)
        except BaseException:  # an interrupt too: what has not begun is not begun any more
            for future in futures:
                future.cancel()
            raise
    # A run that was killed between its last part and the manifest has none to make, and still has to say.
    what = told[0] if told else _told(job, _loaded(job, rows))
    scores, facts = summary(writer.extras(), entry.caption)
    record = replace(what.record, scores={**what.record.scores, **scores})
    return writer.finish(entry.complete(record), {**what.facts, **facts})


def _stored(job: _Job, store: FeatureStore) -> StoredRepresentation | None:
    """The complete extraction that is asked for, of this version or of a former one."""
    found = store.find(job.dataset.fingerprint, str(job.spec), job.revision, job.settings)
    if found is not None:
        if hasattr(job.module, "refuse_outdated"):
            job.module.refuse_outdated(job.spec, job.entry, found)
        return found
    former = job.entry.former_settings(job.context.dtype)
    if former == job.settings:
        return None
    before = store.find(job.dataset.fingerprint, str(job.spec), job.revision, former)
    if before is None or as_asked_today(str(job.spec), former, before.facts) != job.settings:
        return None
    try:
        if hasattr(job.module, "refuse_outdated"):
            job.module.refuse_outdated(job.spec, job.entry, before)
    except RepalignError:  # it is made again, under today's key
        return None
    return before


def _writer(job: _Job, store: FeatureStore) -> Writer:
    modality = job.entry.modality or "unknown"  # the loaded model says it, in the manifest
    return store.writer(
        dataset=job.dataset.describe(),
        record=ModelRecord(str(job.spec), job.entry.label, modality, job.revision),
        settings=job.settings,
        ids=job.dataset.ids,
        rows_per_part=job.rows_per_part,
    )


# --- a loaded model, one per process -------------------------------------------------------------


@dataclass
class _Loaded:
    """A source in memory, and the batch size that it has been found to take."""

    source: Source
    column: str | None
    batch_size: int
    lock: threading.Lock  # forward passes of threads that share a model go one after another


_models: dict[str, _Loaded] = {}
_loading = threading.Lock()


def _loaded(job: _Job, rows: _Rows) -> _Loaded:
    with _loading:
        if job.key not in _models:
            _clear()  # first, so that two models are never in memory at once
            context = replace(job.context, revision=job.revision, progress=rows.progress)
            with loading(job.entry.label, job.failure):
                source = job.module.load(job.location, job.entry, context)
            column = _column(job.dataset, source, job.entry)
            made = _Loaded(source, column, job.batch_size, threading.Lock())
            if source.kind == "text":
                with library_errors(job.entry.label, "a forward pass over the first texts"):
                    source.settle(_prepared(job, made, range(min(SETTLE, job.dataset.n))))
            _models[job.key] = made
            where = source.placed.get("device", job.context.device)
            if "read" in source.facts:  # of a file of features: what was taken of it, and what was left out
                rows.note(source.facts["read"])
            rows.note(f"{len(source.layers)} layers, {source.facts.get('dtype', 'as stored')}, on {where}")
        return _models[job.key]


def _forget() -> None:
    with _loading:
        _clear()


def _clear() -> None:
    """Let models go. One that is spread over devices refers to itself: without collection it stays in their memory.

    A collection takes up to a second; where nothing but the main memory is held, Python's own turn comes soon enough.
    """
    spread = any(m.source.placed for m in _models.values())
    if _models:
        _models.clear()
        if spread or torch.cuda.is_available():
            gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _told(job: _Job, loaded: _Loaded) -> _Told:
    source = loaded.source
    record = replace(source.record, spec=str(job.spec), revision=job.revision)
    facts = {
        **source.facts,
        "layers": {layer.name: layer.what for layer in source.layers},
        "column": loaded.column,
        "device": job.context.device,
        **source.placed,
        "store_dtype": job.entry.store_dtype,
        "weights_fingerprint": source.weights,
    }
    return _Told(record, facts)


def _column(dataset: Dataset, source: Source, entry: ModelEntry) -> str | None:
    """The dataset's column that a model reads: the one named, or the only one of its kind."""
    if source.kind is None:
        return None
    fitting = [m for m in dataset.modalities if source.kind in ("any", dataset.kind(m))]
    modality = entry.modality or source.record.modality
    if modality in fitting:
        return modality
    if source.kind == "any" or len(fitting) != 1 or entry.modality in dataset.modalities:
        kinds = "a column of the dataset" if source.kind == "any" else f"a column of kind {source.kind}"
        raise RepalignError(
            f"model {entry.label} cannot read column {modality!r} of dataset {dataset.name!r}",
            expected=f"`modality:` naming {kinds}",
            got=", ".join(f"{m} ({dataset.kind(m)})" for m in dataset.modalities),
            remedy=f"add `modality: {fitting[0]}` to the model" if fitting else "use a dataset with that modality",
        )
    return fitting[0]


# --- one part ------------------------------------------------------------------------------------


class _Rows:
    """Tells how many rows of a model are done."""

    def __init__(self, progress: Progress, task: str, done: int, n: int) -> None:
        self.progress, self.task, self.done, self.n = progress, task, done, n
        progress(task, done, n)

    def advance(self, rows: int) -> None:
        self.done += rows
        self.progress(self.task, self.done, self.n)

    def note(self, text: str) -> None:
        log.info("%s: %s", self.task, text)
        self.progress(self.task, self.done, self.n, text)


def _make_part_elsewhere(job: _Job, part: Part) -> _Told:
    writer = _writer(job, job.store)
    return _make_part(job, part, writer, _Rows(silent, f"extract {job.entry.label}", 0, job.dataset.n))


def _make_part(job: _Job, part: Part, writer: Writer, rows: _Rows) -> _Told:
    """Run the rows of a part and write them."""
    loaded = _loaded(job, rows)
    batch = _gather(list(_batches(job, loaded, part, rows)), part.n)
    dtype = STORE_DTYPES[job.entry.store_dtype]
    facts = dict(loaded.source.facts)
    header: dict[str, Any] = {
        "weights_fingerprint": loaded.source.weights,
        "versions": {**facts.pop("versions", {}), "device": job.context.device, **loaded.source.placed},
        **facts,
    }
    writer.write(part, {name: x.to(dtype) for name, x in batch.layers.items()}, batch.extras, header)
    return _told(job, loaded)


def _batches(job: _Job, loaded: _Loaded, part: Part, rows: _Rows) -> Iterator[tuple[list[int], Batch]]:
    """The part in batches, each with its rows counted from the part's start."""
    order = list(range(part.n))
    ready: dict[int, Any] = {}
    if loaded.source.sorts:  # the longest first, so that memory runs out early if it does
        ready = dict(zip(order, _prepared(job, loaded, range(part.start, part.stop)), strict=True))
        order.sort(key=lambda i: -loaded.source.length(ready[i]))
    while order:
        now = order[: loaded.batch_size]
        prepared = [ready[i] for i in now] if ready else _prepared(job, loaded, [part.start + i for i in now])
        batch, problem = _forward(loaded, prepared, job.entry.label)
        if batch is None:
            _halve(loaded, len(now), problem, rows)
            continue
        _refuse_infinite(job, loaded, batch, [part.start + i for i in now])
        if loaded.column is not None:
            batch.extras.update(per_row(**{BATCH_SIZE: [loaded.batch_size] * len(now)}))
        yield now, batch
        order = order[len(now) :]
        rows.advance(len(now))


def _prepared(job: _Job, loaded: _Loaded, absolute: Sequence[int]) -> list[Any]:
    """The stimuli of some rows, as the model takes them."""
    where = [f"row {r} (id {job.dataset.ids[r]!r})" for r in absolute]
    if loaded.column is None:
        return loaded.source.prepare(absolute, where)
    told = f"preparing {where[0]}" + (f" to {where[-1]}" if len(where) > 1 else "")
    stimuli = job.dataset.stimuli(loaded.column, absolute)
    if job.dataset.kind(loaded.column) == "text":
        stimuli = [job.entry.prompted(_caption(s, job.entry, w)) for s, w in zip(stimuli, where, strict=True)]
    with library_errors(job.entry.label, told):
        return loaded.source.prepare(stimuli, where)


def _caption(captions: tuple[str, ...], entry: ModelEntry, where: str) -> str:
    there = entry.caption < len(captions)
    if not there or not captions[entry.caption].strip():
        raise RepalignError(
            f"model {entry.label}: {where} has {'an empty' if there else 'no'} caption {entry.caption}",
            expected="a caption that is not empty",
            got=repr(captions[entry.caption]) if there else f"{len(captions)} captions, counted from 0",
            remedy="choose another caption, or leave such rows out of the dataset",
        )
    return captions[entry.caption]


def _forward(loaded: _Loaded, prepared: Sequence[Any], label: str) -> tuple[Batch | None, str]:
    """One pass, or None and what was said if it does not fit the memory.

    The error is let go here: as long as it is held, so is the memory of the pass that failed.
    """
    try:
        with loaded.lock, torch.inference_mode(), library_errors(label, "a forward pass"):
            return loaded.source.forward(prepared), ""
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not out_of_memory(error):
            raise
        return None, first_line(error)


def _refuse_infinite(job: _Job, loaded: _Loaded, batch: Batch, rows: Sequence[int]) -> None:
    """Refuse features that the dtype of a run was too small for; the store refuses what is not finite in others."""
    dtype = loaded.source.facts.get("dtype")
    if dtype != "float16" or all(bool(x.isfinite().all()) for x in batch.layers.values()):
        return
    for name, x in batch.layers.items():
        for i, row in enumerate(rows):
            where = f"model {job.entry.label}, layer {name}, row {row} (id {job.dataset.ids[row]!r})"
            refuse_infinite(x[i], where, dtype)


def _halve(loaded: _Loaded, tried: int, problem: str, rows: _Rows) -> None:
    if tried == 1:
        raise RepalignError(
            f"{rows.task}: one stimulus does not fit the memory",
            got=problem,
            remedy="use a smaller dtype (bfloat16), another device, or fewer layers",
        )
    loaded.batch_size = tried // 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    note = f"a batch of {tried} does not fit the memory; going on with batches of {loaded.batch_size}"
    rows.note(note)


def _gather(pieces: Sequence[tuple[list[int], Batch]], n: int) -> Batch:
    """Batches as one, each row in its place."""

    def together(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        out = {name: x.new_empty((n, *x.shape[1:])) for name, x in batches[0].items()}
        for (rows, _), batch in zip(pieces, batches, strict=True):
            for name, x in batch.items():
                out[name][rows] = x
        return out

    return Batch(together([b.layers for _, b in pieces]), together([b.extras for _, b in pieces]))
