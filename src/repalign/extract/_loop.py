"""The one loop: batch -> forward -> pool -> write a part.

A part is a block of rows of the dataset. What is in it depends on the model, the dataset and the part alone, so
that a run that was killed, or spread over workers, ends with the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.extract._base import STORE_DTYPES, Batch, Context, ModelEntry, Source
from repalign.models import Spec, parse_spec
from repalign.progress import Progress, silent
from repalign.store import FeatureStore, Part, StoredRepresentation, Writer

log = logging.getLogger(__name__)

# Scheme of a spec -> the module with `revision(spec, entry)` and `load(spec, entry, context)`. The only list.
SOURCES = {
    "hf": "repalign.extract.hf",
    "timm": "repalign.extract.timm_",
    "st": "repalign.extract.sentence",
    "openclip": "repalign.extract.openclip",
    "torch": "repalign.extract.torch_",
    "array": "repalign.extract.array",
    "toy": "repalign.extract.toy",
}


def choose_device(device: str = "auto") -> str:
    """The device to run on: a GPU if there is one, else the CPU; a named one is taken as it is."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


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
    progress: Progress = silent,
) -> list[StoredRepresentation]:
    """All layers of all models on one dataset, one vector per stimulus, in a store.

    A model that is complete in the store is not loaded; of one that is not, the missing parts are made. `device` and
    `dtype` "auto" are told through `progress`. Code that comes with a model is not run unless `trust_remote_code`.
    With an executor the parts are made there, each worker loading the model once.

    Raises RepalignError: unknown specs, layers or poolings; a stimulus that the model cannot take (the row is named); no
    network; a store that holds another model in the same place.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    entries = [ModelEntry(m) if isinstance(m, str) else m for m in models]
    if batch_size < 1:
        raise RepalignError("batch_size is out of range", expected="at least 1", got=batch_size)
    context = Context(choose_device(device), dtype, trust_remote_code, dataset.ids)
    progress("models", 0, len(entries), f"device {context.device}, dtype {dtype}, batches of {batch_size}")
    out = []
    for done, entry in enumerate(entries):
        job = _Job(dataset, entry, str(store.url), context, batch_size, rows_per_part)
        out.append(_extract_one(job, store, executor, progress))
        progress("models", done + 1, len(entries))
    return out


@dataclass(frozen=True)
class _Job:
    """All that a worker needs to make a part."""

    dataset: Dataset
    entry: ModelEntry
    store: str
    context: Context
    batch_size: int
    rows_per_part: int

    @property
    def spec(self) -> Spec:
        return parse_spec(self.entry.spec)

    @property
    def module(self) -> ModuleType:
        return import_module(SOURCES[self.spec.scheme])


def _extract_one(
    job: _Job, store: FeatureStore, executor: Executor | None, progress: Progress
) -> StoredRepresentation:
    entry, dataset = job.entry, job.dataset
    settings = entry.settings(job.context.dtype)
    revision = job.module.revision(job.spec, entry)
    task = f"extract {entry.label}"
    found = store.find(dataset.fingerprint, str(job.spec), revision, settings)
    if found is not None:
        progress(task, dataset.n, dataset.n, "complete in the store")
        return found.with_record(entry.complete(found.record))
    source = _load(job)
    writer = _writer(job, store, source)
    missing = writer.missing()
    done = dataset.n - sum(p.n for p in missing)
    progress(task, done, dataset.n, f"{len(source.layers)} layers on {job.context.device}")
    column = _column(dataset, source, entry)
    if executor is None:
        runner = _Runner(source, job.batch_size, progress, task)
        for part in missing:
            _make_part(runner, job, column, writer, part)
            done += part.n
            progress(task, done, dataset.n)
    else:
        futures = {executor.submit(_make_part_elsewhere, job, part): part for part in missing}
        for future in as_completed(futures):
            future.result()
            done += futures[future].n
            progress(task, done, dataset.n)
        writer.missing()
    scores, facts = source.summary(writer.extras())
    record = entry.complete(replace(source.record, scores={**source.record.scores, **scores}))
    described = {layer.name: layer.what for layer in source.layers}
    facts = {**source.facts, **facts, "layers": described, "column": column, "store_dtype": entry.store_dtype}
    facts["weights_fingerprint"] = source.weights
    return writer.finish(record, facts)


def _load(job: _Job) -> Source:
    source = job.module.load(job.spec, job.entry, job.context)
    if not source.layers:
        raise RepalignError(f"model {job.entry.label}: no layer to extract", expected="at least one layer", got="none")
    return source


@lru_cache(maxsize=1)
def _load_once(job: _Job) -> Source:
    return _load(job)


def _writer(job: _Job, store: FeatureStore, source: Source) -> Writer:
    revision = job.module.revision(job.spec, job.entry)
    source.record = record = replace(source.record, spec=str(job.spec), revision=revision)
    return store.writer(
        dataset=job.dataset.describe(),
        record=record,
        settings=job.entry.settings(job.context.dtype),
        ids=job.dataset.ids,
        rows_per_part=job.rows_per_part,
    )


def _column(dataset: Dataset, source: Source, entry: ModelEntry) -> str | None:
    """The dataset's column that a model reads: the one named, or the only one of its kind."""
    if source.kind is None:
        return None
    if entry.modality is not None and entry.modality in dataset.modalities:
        column = entry.modality
    else:
        fitting = [m for m in dataset.modalities if dataset.kind(m) == source.kind]
        if len(fitting) != 1:
            raise RepalignError(
                f"model {entry.label} reads {source.kind}: which column of dataset {dataset.name!r}?",
                expected=f"one column of kind {source.kind}, or `modality:` naming one",
                got=", ".join(f"{m} ({dataset.kind(m)})" for m in dataset.modalities),
                remedy=f"add `modality: {fitting[0]}` to the model" if fitting else "use a dataset with that modality",
            )
        column = fitting[0]
    if dataset.kind(column) != source.kind:
        raise RepalignError(
            f"model {entry.label} cannot read column {column!r}",
            expected=f"stimuli of kind {source.kind}",
            got=f"kind {dataset.kind(column)}",
            remedy="name another column in `modality:`",
        )
    return column


def _make_part_elsewhere(job: _Job, part: Part) -> None:
    source = _load_once(job)
    writer = _writer(job, FeatureStore(job.store), source)
    _make_part(_Runner(source, job.batch_size, silent, ""), job, _column(job.dataset, source, job.entry), writer, part)


def _make_part(runner: _Runner, job: _Job, column: str | None, writer: Writer, part: Part) -> None:
    rows = range(part.start, part.stop)
    where = [f"row {r} (id {job.dataset.ids[r]!r})" for r in rows]
    stimuli = list(rows) if column is None else job.dataset.stimuli(column, rows)
    if column is not None and job.dataset.kind(column) == "text":
        stimuli = [_caption(s, job.entry, w) for s, w in zip(stimuli, where, strict=True)]
    batch = runner.run(stimuli, where)
    dtype = STORE_DTYPES[job.entry.store_dtype]
    layers = {name: x.to(dtype) for name, x in batch.layers.items()}
    header: dict[str, Any] = {"weights_fingerprint": runner.source.weights}
    header["versions"] = runner.source.facts.get("versions", {})
    header |= {k: v for k, v in runner.source.facts.items() if k not in ("versions", "device")}
    writer.write(part, layers, batch.extras, header)


def _caption(captions: tuple[str, ...], entry: ModelEntry, where: str) -> str:
    if entry.caption >= len(captions) or not captions[entry.caption].strip():
        raise RepalignError(
            f"model {entry.label}: {where} has no caption {entry.caption}",
            expected="a caption that is not empty",
            got=f"{len(captions)} captions",
            remedy="choose another caption, or leave such rows out of the dataset with on_missing: drop",
        )
    return captions[entry.caption]


class _Runner:
    """Runs a source over stimuli in batches that fit the memory."""

    def __init__(self, source: Source, batch_size: int, progress: Progress, task: str) -> None:
        self.source = source
        self.batch_size = batch_size
        self.progress = progress
        self.task = task

    def run(self, stimuli: Sequence[Any], where: Sequence[str]) -> Batch:
        """All stimuli, longest first, in the order in which they came."""
        prepared = self.source.prepare(stimuli, where)
        lengths = self.source.lengths(prepared)
        order = list(range(len(prepared)))
        if lengths is not None:
            order.sort(key=lambda i: -lengths[i])  # stable; the longest batch comes first, so memory fails early
        pieces: list[tuple[list[int], Batch]] = []
        start = 0
        while start < len(order):
            rows = order[start : start + self.batch_size]
            try:
                with torch.inference_mode():
                    pieces.append((rows, self.source.forward([prepared[i] for i in rows])))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self._halve(len(rows), error)
                continue
            start += len(rows)
        return _gather(pieces, len(order))

    def _halve(self, tried: int, error: BaseException) -> None:
        if tried == 1:
            raise RepalignError(
                f"{self.task}: one stimulus does not fit the memory",
                got=str(error).splitlines()[0][:200],
                remedy="use a smaller dtype (dtype: bfloat16), another device, or fewer layers",
            ) from error
        self.batch_size = max(1, tried // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        note = f"{self.task}: a batch of {tried} does not fit the memory; going on with {self.batch_size}"
        log.warning(note)
        self.progress(self.task, 0, 0, note)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(sign in str(error).lower() for sign in ("out of memory", "can't allocate memory", "not enough memory"))


def _gather(pieces: list[tuple[list[int], Batch]], n: int) -> Batch:
    def together(field: str) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for rows, batch in pieces:
            for name, x in getattr(batch, field).items():
                if name not in out:
                    out[name] = x.new_empty((n, *x.shape[1:]))
                out[name][rows] = x
        return out

    return Batch(together("layers"), together("extras"))
