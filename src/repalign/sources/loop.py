"""The one loop: batch -> forward -> pool -> write a part.

A part is a block of rows of the dataset. What is in it depends on the model, the dataset and the part alone, so
that a run that was killed, or spread over workers, ends with the same bytes.
"""

from __future__ import annotations

import atexit
import gc
import logging
import math
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repalign.dataset import KINDS, Dataset
from repalign.errors import RepalignError, Unavailable, choose
from repalign.models import ModelRecord
from repalign.sources.memory import UNTOLD, Model, home_of
from repalign.sources.model import (
    SPREAD,
    STORE_DTYPES,
    Batch,
    Context,
    LoadedModel,
    ModelEntry,
    Pending,
    Skipped,
    first_line,
    library_errors,
    merged,
    out_of_memory,
)  # fmt: skip
from repalign.sources.passes import FIRST, LONGEST, per_row
from repalign.sources.source import Spec, as_asked_today, column_of, parse_spec
from repalign.store import FeatureStore, Part, StoredRepresentation, Writer
from repalign.text import Progress, silent
from repalign.workers import Claims, Share, Task, computing, count_of, work

log = logging.getLogger(__name__)

BATCH_SIZE = "batch_size"  # how many rows at most were run together with this one
ON_UNAVAILABLE = ("error", "skip")
TURNS = 4  # tasks for every worker, where parts of one model go together: it is loaded less often, and none waits long at the end
NOT_KEPT = "kept until Python ends, not in the store: nothing tells what it computes; give it a `revision` that does"


def choose_device(device: str = "auto") -> str:
    """The device to run on: of "auto" a CUDA GPU, else an Apple GPU (mps), else the CPU; "sharded" is all CUDA GPUs.

    A named one is taken as it is. RepalignError if it cannot be used.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "sharded":
        if torch.cuda.is_available():
            return "cuda"
        raise RepalignError(
            "device 'sharded' cannot be used", expected="GPUs to spread a model over", got="none that torch can use",
            remedy="say `device: auto` to take GPUs where there are some, and the CPU elsewhere",
        )  # fmt: skip
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RepalignError(
            f"device {device!r} cannot be used", got=first_line(error),
            expected="auto, cpu, mps, sharded, cuda or cuda:0 and so on, on a machine that has it",
            remedy="say `device: auto` to take a GPU where there is one",
        ) from error  # fmt: skip
    return device


def extract(
    dataset: Dataset, models: Any, store: FeatureStore | str | None = None, *, device: str = "auto",
    dtype: str = "auto", batch_size: int = 32, rows_per_part: int = 256, trust_remote_code: bool = False,
    executor: Executor | None = None, share: Share | None = None, on_unavailable: str = "error", progress: Progress = silent,
) -> list[Any]:  # fmt: skip
    """All layers of all models on one dataset, one vector per stimulus, in a store.

    `models` are specs ("hf:org/name"), `ModelEntry`, and models in memory, as they are or as a `Model` that says more: torch
    modules, pairs of a model and its processor, a SentenceTransformer, functions of a batch. Without a store features are kept
    in a folder that is removed when Python ends, and those of a function that has no `revision` always are.

    A model that is complete in the store is not run; of one that is not, the missing parts are made. Code that comes
    with a model is not run unless `trust_remote_code`. With an executor the parts are made there; the bytes are the same. Several
    calls on one store share the work: what another run has begun comes last, and is made here only if that run has ended.
    What was chosen of the following is told through `progress` and stored.

    * `device`: "auto" is a GPU where there is one, and several for a text model of transformers whose weights take more
      than 0.8 of the free memory of the first; "sharded" spreads such models over all GPUs and runs others on the
      first; "cpu", "mps" (an Apple GPU), "cuda:0" and so on are one device. How a model was spread does not enter the
      extraction hash.
    * `dtype`: "auto" is what the weights are stored in on a CUDA GPU, and float32 elsewhere; "stored" is what they are
      stored in anywhere; or "float32", "bfloat16", "float16", "float64" (not on an Apple GPU). Pooling is in float32 always.
    * A model in memory runs where it is and in the dtype that it has; where a device or dtype is named that is another one, a
      copy of it does. It runs in this process, whatever the executor.
    * `share`: of all parts of all models make those of one share only (see `workers.Share`), and wait for nothing. A model that
      lacks parts of other shares then is a `Pending` in the list.
    * `on_unavailable`: "error", or "skip": a model that cannot be loaded for a reason of its own (gated, gone, in no cache
      and out of reach, without safetensors weights or a tokenizer, broken, too large, in need of a package or an
      architecture that is not installed) is left out with one line, and a `Skipped` stands in its place in the list.

    Returns a list with a StoredRepresentation, or a Skipped, for each model, in their order; for both sides of a model in memory
    that reads images and texts, where its processor does and the dataset has both.

    Raises RepalignError: unknown specs, layers or poolings; a stimulus that a model cannot take (the row is named);
    weights that fit no memory; hidden states that are not finite; a store that holds another model in the same place;
    and, with "error", its subclass Unavailable.
    """
    store = session_store() if store is None else store if isinstance(store, FeatureStore) else FeatureStore(store)
    entries = entries_of(models, dataset)
    if batch_size < 1:
        raise RepalignError("batch_size is out of range", expected="at least 1", got=batch_size)
    choose("on_unavailable", on_unavailable, ON_UNAVAILABLE)
    specs = [parse_spec(entry.spec) for entry in entries]
    for entry, spec in zip(entries, specs, strict=True):  # what is wrong with the request is told before any work
        with suppress(*([] if on_unavailable == "error" else [Unavailable])):
            spec.source.check(spec, entry)
    spread = SPREAD.get(device, "never")
    context = Context(choose_device(device), dtype, trust_remote_code, dataset.ids, spread=spread)
    skips = on_unavailable == "skip"
    out: list[StoredRepresentation | Skipped | Pending | None] = [None] * len(entries)
    refused: RepalignError | None = None
    makings: dict[tuple[str, str], _Making] = {}  # by their place: what is asked for twice is made once
    for i, (entry, spec) in enumerate(zip(entries, specs, strict=True)):
        try:
            spec.source.check(spec, entry)
            with library_errors(entry.label, "finding its revision"):
                at = replace(context, revision=spec.source.revision(spec, entry))
            location = spec if executor is None else spec.resolve(Path.cwd())  # a worker may have another working folder
            found = _begun(_Job(dataset, entry, spec, location, at, batch_size), store, rows_per_part, progress)
        except RepalignError as error:
            if not skips or not isinstance(error, Unavailable):
                refused = error  # what stands before it is made
                break
            out[i] = left_out(entry, error, f"extract {entry.label}", progress, dataset.n)
            continue
        if isinstance(found, StoredRepresentation):
            out[i] = found
        else:
            making = makings.setdefault((found.store.url, found.writer.folder), found)
            making.at.append((i, found.job))
            each = len(making.writer.parts)
            making.start, making.total = making.at[0][0] * each, len(entries) * each
    try:
        for making, answer in _made(list(makings.values()), store, executor, share, skips):
            for i, job in making.at:
                out[i] = answer if isinstance(answer, Skipped) or job is making.job else _again(job, making, answer)
    finally:
        _forget()
    if refused is not None:
        raise refused
    return out


def entries_of(models: Any, dataset: Dataset) -> list[ModelEntry]:
    """What is asked of each model that is named or given; those in memory that have no name are told apart by numbers."""
    given = [models] if isinstance(models, (str, ModelEntry)) or callable(models) else models
    entries: list[ModelEntry] = []
    for one in given:
        entry = one if isinstance(one, ModelEntry) else ModelEntry(one) if isinstance(one, str) else Model(one)
        entries += home_of(entry).towers(entry, dataset) if isinstance(entry, Model) else [entry]
    labels = Counter[str]()
    for i, entry in enumerate(entries):
        labels[entry.label] += 1
        if isinstance(entry, Model) and entry.name is None and labels[entry.label] > 1:
            entries[i] = replace(entry, name=f"{entry.spec.partition(':')[2]}-{labels[entry.label]}")
    return entries


def left_out(entry: ModelEntry, error: Unavailable, task: str, progress: Progress, n: int = 0) -> Skipped:
    """The record of a model that is unavailable."""
    _warn(progress, task, n, n, f"left out: {error.reason}")
    return Skipped(entry.spec, entry.label, error.reason)


def _warn(progress: Progress, task: str, done: int, n: int, note: str) -> None:
    """Tell something in one line: as a warning where nobody listens to the progress."""
    log.log(logging.WARNING if progress is silent else logging.INFO, "%s: %s", task, note)
    progress(task, done, n, note)


@cache
def session_store() -> FeatureStore:
    """A store in a folder that is removed when Python ends."""
    folder = tempfile.mkdtemp(prefix="repalign-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return FeatureStore(folder)


@dataclass(frozen=True)
class _Job:
    """All that a worker needs to make a part; plain data."""

    dataset: Dataset
    entry: ModelEntry
    spec: Spec
    location: Spec  # the spec with its path absolute
    context: Context
    batch_size: int


@dataclass(eq=False)
class _Making:
    """A model whose features are not complete in the store."""

    job: _Job
    store: FeatureStore
    writer: Writer
    missing: list[Part]
    rows: _Rows
    at: list[tuple[int, _Job]] = field(default_factory=list)  # where in the list of models it was asked for, and how
    start: int = 0  # where its parts begin among those of all models, complete or not, of which there are `total`
    total: int = 0
    left: int = 0  # parts of it that this call has still to make
    told: Told | None = None
    heard: list[str] = field(default_factory=list)
    lost: Unavailable | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is an object of this process."""
        return isinstance(self.job.entry, Model)


def _begun(job: _Job, store: FeatureStore, rows_per_part: int, progress: Progress) -> StoredRepresentation | _Making:
    """What is complete in the store; or what is to be made."""
    entry, n = job.entry, job.dataset.n
    task = f"extract {entry.label}"
    if isinstance(entry, Model) and job.context.revision.startswith(UNTOLD) and store is not session_store():
        _warn(progress, task, 0, n, NOT_KEPT)
        store = session_store()
    found = _stored(job, store)
    if found is not None:
        progress(task, n, n, "complete in the store")
        return found.with_record(entry.complete(found.record))
    writer = store.writer(
        dataset=job.dataset.describe(), settings=entry.settings(job.context.dtype), ids=job.dataset.ids,
        record=ModelRecord(str(job.spec), entry.label, entry.modality or "unknown", job.context.revision),  # until it is loaded
        rows_per_part=rows_per_part,
    )  # fmt: skip
    missing = writer.missing()
    if missing and (found := _taken(job, store, writer)) is not None:
        progress(task, n, n, "taken from the store: it has read the same stimuli of another dataset")
        return found
    return _Making(job, store, writer, missing, _Rows(progress, task, n - sum(p.n for p in missing), n))


def _again(job: _Job, making: _Making, made: StoredRepresentation | Pending) -> StoredRepresentation | Pending:
    """What was made for one entry, for another that asks for the same."""
    if isinstance(made, Pending):
        return replace(made, name=job.entry.label)
    found = _stored(job, making.store)
    assert found is not None
    return found.with_record(job.entry.complete(found.record))


def _made(
    makings: Sequence[_Making], store: FeatureStore, executor: Executor | None, share: Share | None, skips: bool
) -> Iterator[tuple[_Making, StoredRepresentation | Skipped | Pending]]:
    """Make what is missing, all of it or a share, and say of each model what it has become."""
    tasks = []
    for making in makings:
        job, writer, mine = making.job, making.writer, None if share is None else share.of(making.total)
        parts = [part for part in making.missing if mine is None or making.start + part.index in mine]
        making.left = len(parts)
        length = 1
        if executor is not None and not making.is_here:
            everything = sum(len(m.missing) for m in makings)
            length = min(max(1, everything // (TURNS * count_of(executor))), max(1, len(parts)))
        for some in (parts[i : i + length] for i in range(0, len(parts), length)):
            called = f"part {some[0].index + 1}" if len(some) == 1 else f"parts {some[0].index + 1} to {some[-1].index + 1}"
            tasks.append(Task(
                f"model {job.entry.label}, {called} of {len(writer.parts)}", _make_parts, (job, writer, tuple(some)),
                tuple(f"{writer.folder}/{part.file}" for part in some) if making.store is store else (), making.is_here,
                (making, some),
            ))  # fmt: skip
    here = {making for making in makings if executor is None or making.is_here}
    tasks = [replace(t, args=(*t.args, t.about[0].rows)) if t.about[0] in here else t for t in tasks]
    with Claims(store.files if makings else None) as claims:

        def needless(task: Task) -> bool:
            making, some = task.about
            names = [f"{making.writer.folder}/{part.file}" for part in some]
            return making.lost is not None or (bool(claims.others) and all(making.store.files.size(name) for name in names))

        for making in makings:
            if not making.left:
                yield making, _finished(making, executor, share, skips)
        with closing(work(tasks, executor, claims, needless)) as done:
            for task, future in done:
                making, some = task.about
                making.left -= len(some)
                if making.lost is None:
                    _told(making, some, future, making in here, skips)
                if not making.left:
                    yield making, _finished(making, executor, share, skips)


def _told(making: _Making, some: Sequence[Part], future: Future[Any] | None, is_here: bool, skips: bool) -> None:
    """Take what came of some parts; None: another run has made them."""
    try:
        told, notes = (None, ()) if future is None else future.result()
    except Unavailable as error:
        if not skips:
            raise
        making.lost = error
        return
    making.told = told or making.told
    for note in notes:
        if note not in making.heard:  # every worker says it
            making.heard.append(note)
            making.rows.tell(note=note)
    if future is None or not is_here:  # else it has told of its rows one by one
        making.rows.tell(sum(part.n for part in some))


def _finished(
    making: _Making, executor: Executor | None, share: Share | None, skips: bool
) -> StoredRepresentation | Skipped | Pending:
    """The manifest of a model, of which this call has made all that it was to make; or what it still lacks."""
    job, writer, rows = making.job, making.writer, making.rows
    try:
        if making.lost is not None:
            raise making.lost
        if share is not None:
            there = making.store.files.listing(writer.folder)
            missing = [part for part in writer.parts if not there.get(part.file)] or writer.missing()
            if missing:
                owners = share.owners([making.start + part.index for part in missing], making.total)
                return Pending(str(job.spec), job.entry.label, len(missing), len(writer.parts), owners)
        # Another run may have finished it.
        if making.told is None and writer.is_finished and (found := _stored(job, making.store)) is not None:
            return found.with_record(job.entry.complete(found.record))
        # A run that was killed between its last part and the manifest has none to make, and still has to say.
        if making.told is None:
            ask = Task(f"model {job.entry.label}", _make_parts, (job, writer, ()), is_here=making.is_here)
            ask = replace(ask, args=(*ask.args, rows)) if executor is None or making.is_here else ask
            ((_, answer),) = work([ask], executor)
            assert answer is not None
            making.told, _ = answer.result()
        assert making.told is not None
        record, facts = making.told
        if extras := writer.extras():
            scores, more = summary(extras, job.entry.caption)
            record, facts = replace(record, scores={**record.scores, **scores}), {**facts, **more}
        if len(sizes := facts.get("rows_by_batch_size", ())) > 1:
            facts = {**facts, "mixed": f"batch_size {', '.join(sizes)}"}
        made = writer.finish(job.entry.complete(record), facts)
        if "mixed" in made.facts:
            rows.tell(note=f"its parts come from several settings ({made.facts['mixed']}): the last digits differ between them")
        return made
    except Unavailable as error:
        if not skips:
            raise
        return left_out(job.entry, error, rows.task, rows.progress, rows.n)
    finally:
        if executor is None or making.is_here:
            _forget()


def _stored(job: _Job, store: FeatureStore) -> StoredRepresentation | None:
    """The complete extraction that is asked for, of this version or of a former one."""
    today = job.entry.settings(job.context.dtype)
    former = {k: v for k, v in today.items() if k != "sink"} | {"bos": job.entry.sink}  # where they may be the same features
    for settings in (today,) if former == today else (today, former):
        found = store.find(job.dataset.fingerprint, str(job.spec), job.context.revision, settings)
        if found is None or (settings is former and as_asked_today(str(job.spec), former, found.facts) != today):
            continue
        try:
            job.spec.source.refuse_outdated(job.spec, job.entry, found)
        except RepalignError:
            if settings is today:
                raise
            continue  # it is made again, under today's key
        return found
    return None


def _taken(job: _Job, store: FeatureStore, writer: Writer) -> StoredRepresentation | None:
    """What the model has made of the same stimuli in another dataset, such as one of which another column is distorted."""
    for twin in store.twins(writer.dataset, str(job.spec), job.context.revision, writer.settings):
        with suppress(RepalignError):  # an outdated one is made anew
            job.spec.source.refuse_outdated(job.spec, job.entry, twin)
            if writer.take(twin):
                return writer.finish(job.entry.complete(twin.record), twin.facts)
    return None


# --- a loaded model, one per process -------------------------------------------------------------


Told = tuple[ModelRecord, dict[str, Any]]  # what there is to say of a model once it is loaded: its record and its facts


@dataclass
class _Loaded:
    """A model in memory, the column that it reads, and the batch size that it has been found to take."""

    model: LoadedModel
    column: str | None
    batch_size: int
    lock: threading.Lock  # forward passes of threads that share a model go one after another
    told: Told = field(init=False)
    give_back: Callable[[], None] = field(init=False)  # leaves an object of the user's as it was


_models: dict[str, _Loaded] = {}
_loading = threading.RLock()


def _loaded(job: _Job, rows: _Rows) -> _Loaded:
    at, entry = job.context, job.entry
    key = repr((entry, at.revision, at.device, at.dtype, job.dataset.fingerprint))  # equal keys: one model serves both jobs
    with _loading:
        if key in _models:
            return _models[key]
        _forget()  # first, so that two models are never in memory at once
        source, context = job.spec.source, replace(at, progress=rows.progress)
        kind = Unavailable if source.published else RepalignError
        with ExitStack() as borrowed:  # what is begun and fails is given back at once
            borrowed.enter_context(source.borrowed(entry))
            with library_errors(entry.label, "loading it, or its first pass,", kind, alone=True):
                model = source.load(job.location, entry, context)
            column = None if model.kind is None else column_of(job.dataset, model.kind, entry, model.record.modality)
            made = _Loaded(model, column, job.batch_size, threading.Lock())
            if model.shown_first:
                with library_errors(entry.label, "a forward pass over the first stimuli"):
                    model.settle(_prepared(job, made, range(min(model.shown_first, job.dataset.n))))
            made.give_back = borrowed.pop_all().close
        facts = {
            **model.facts, "layers": {layer.name: layer.what for layer in model.layers}, "column": column,
            "device": at.device, **model.placed, "store_dtype": entry.store_dtype, "weights_fingerprint": model.weights,
        }  # fmt: skip
        made.told = replace(model.record, spec=str(job.spec), revision=at.revision), facts
        _models[key] = made
        if "read" in model.facts:  # of a file of features: what was taken of it, and what was left out
            rows.tell(note=model.facts["read"])
        where = model.placed.get("device", at.device)
        rows.tell(note=f"{len(model.layers)} layers, {model.facts.get('dtype', 'as stored')}, on {where}")
        return made


def _forget() -> None:
    """Release models. One that is spread over devices refers to itself: without collection it stays in their memory.

    A collection takes up to a second; where nothing but the main memory is held, Python's own turn comes soon enough.
    """
    with _loading:
        spread, any_held = any("device_map" in m.model.placed for m in _models.values()), bool(_models)
        for held in _models.values():
            held.give_back()
        _models.clear()
        if any_held and (spread or choose_device() != "cpu"):
            gc.collect()
            _release()


def _release() -> None:
    """Give the memory of GPUs that torch holds without using it back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


# --- one part ------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """Tells how many rows of a model are done."""

    progress: Progress
    task: str
    done: int
    n: int

    def tell(self, more: int = 0, note: str | None = None) -> None:
        """More rows are done; or there is something to say."""
        self.done += more
        if note is not None:
            log.info("%s: %s", self.task, note)
        self.progress(self.task, self.done, self.n, note)


def _make_parts(job: _Job, writer: Writer, parts: Sequence[Part], rows: _Rows | None = None) -> tuple[Told, list[str]]:
    """Run the rows of some parts and write them: what there is to say of the model, and notes where `rows` tell nothing here."""
    notes: list[str] = []

    def hear(task: str, done: float, total: int, note: str | None = None) -> None:  # noqa: ARG001
        notes.extend([note] if note else [])

    rows = rows or _Rows(hear, f"extract {job.entry.label}", 0, 0)
    rows.tell()
    loaded = _loaded(job, rows)
    for part in parts:
        batch = merged(_batches(job, loaded, part, rows), part.n)
        dtype, model = STORE_DTYPES[job.entry.store_dtype], loaded.model
        facts = dict(model.facts)
        versions = {**facts.pop("versions", {}), "device": job.context.device, **computing(job.context.device), **model.placed}
        header = {"weights_fingerprint": model.weights, "versions": versions, **facts}
        writer.write(part, {name: x.to(dtype) for name, x in batch.layers.items()}, batch.extras, header)
    return loaded.told, notes


def _batches(job: _Job, loaded: _Loaded, part: Part, rows: _Rows) -> Iterator[tuple[list[int], Batch]]:
    """The part in batches, each with its rows counted from the part's start."""
    order, model, label = list(range(part.n)), loaded.model, job.entry.label
    ready: dict[int, Any] = {}
    if model.sorts:  # the longest first, so that memory runs out early if it does
        ready = dict(zip(order, _prepared(job, loaded, range(part.start, part.stop)), strict=True))
        order.sort(key=lambda i: -model.length(ready[i]))
    while order:
        now = order[: loaded.batch_size]
        prepared, problem, batch = [part.start + i for i in now], "", None  # of a file the rows themselves
        if loaded.column is not None:
            prepared = [ready[i] for i in now] if ready else _prepared(job, loaded, prepared)
        try:
            with loaded.lock, torch.inference_mode(), library_errors(label, "a forward pass"):
                batch = model.forward(prepared)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not out_of_memory(error):
                raise
            problem = first_line(error)  # not the error itself: as long as it is held, so is the memory of its pass
        if batch is None and len(now) == 1:
            raise RepalignError(
                f"{rows.task}: one stimulus does not fit the memory", got=problem,
                remedy="use a smaller dtype (bfloat16), another device, or fewer layers",
            )  # fmt: skip
        if batch is None:
            loaded.batch_size = len(now) // 2
            _release()
            note = f"a batch of {len(now)} does not fit the memory; going on with batches of {loaded.batch_size}"
            rows.tell(note=note)
            continue
        if loaded.column is not None:
            batch.extras.update(per_row(**{BATCH_SIZE: [loaded.batch_size] * len(now)}))
        yield now, batch
        order = order[len(now) :]
        rows.tell(len(now))


def _prepared(job: _Job, loaded: _Loaded, absolute: Sequence[int]) -> list[Any]:
    """The stimuli of some rows, as the model takes them."""
    assert loaded.column is not None
    where = [f"row {r} (id {job.dataset.ids[r]!r})" for r in absolute]
    told = f"preparing {where[0]}" + (f" to {where[-1]}" if len(where) > 1 else "")
    stimuli = job.dataset.stimuli(loaded.column, absolute)
    if KINDS[job.dataset.kind(loaded.column)].several:
        stimuli = [job.entry.prompted(_caption(s, job.entry, w)) for s, w in zip(stimuli, where, strict=True)]
    with library_errors(job.entry.label, told):
        return loaded.model.prepare(stimuli, where)


def _caption(captions: tuple[str, ...], entry: ModelEntry, where: str) -> str:
    there = entry.caption < len(captions)
    if there and captions[entry.caption].strip():
        return captions[entry.caption]
    raise RepalignError(
        f"model {entry.label}: {where} has {'an empty' if there else 'no'} caption {entry.caption}",
        expected="a caption that is not empty",
        got=repr(captions[entry.caption]) if there else f"{len(captions)} captions, counted from 0",
        remedy="choose another caption, or leave such rows out of the dataset",
    )


# --- what all rows say ---------------------------------------------------------------------------


def summary(extras: Mapping[str, Tensor], caption: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The scores and facts that the extras of all rows give, whoever computed them."""
    facts: dict[str, Any] = {}
    if BATCH_SIZE in extras:
        sizes, counts = extras[BATCH_SIZE].unique(return_counts=True)
        facts["rows_by_batch_size"] = {str(int(s)): int(c) for s, c in zip(sizes, counts, strict=True)}
    if "cut" in extras:
        facts["texts_cut"] = int(extras["cut"].sum())
    if "tokens_counted" in extras:
        facts["texts_of_one_token"] = int((extras["tokens_valid"] == 1).sum())
        layers = [name.removeprefix(FIRST) for name in extras if name.startswith(FIRST)]
        facts["token_norms"] = {layer: _norms(extras, layer) for layer in layers}
    if "nats" not in extras:
        return {}, facts
    scores, facts["bits_per_byte"] = _bits(extras, caption)
    return scores, facts


def _norms(extras: Mapping[str, Tensor], layer: str) -> dict[str, float]:
    """Means over the texts that have another token to compare with.

    One of c tokens that is r times as long as the mean of the others has the share r / (r + c - 1) of all their norms.
    """
    longest = extras[LONGEST + layer]
    share = longest / (longest + extras["tokens_counted"] - 1)
    told = {"first": extras[FIRST + layer], "longest": longest, "share": share}
    return {name: float(x.nanmean()) for name, x in told.items() if not bool(x.isnan().all())}


def _bits(extras: Mapping[str, Tensor], caption: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Bits per byte and per character and nats per token over all texts, and their definition."""
    total = {name: float(extras[name].sum()) for name in ("nats", "tokens", "bytes", "chars")}
    scored, n_bos = int((extras["bytes"] > 0).sum()), int(extras["bos"].sum())
    if not scored or not total["tokens"]:
        return {}, {"texts": 0}
    bits = total["nats"] / math.log(2)
    found = {
        "bits_per_byte": bits / total["bytes"],
        "bits_per_char": bits / total["chars"],
        "nats_per_token": total["nats"] / total["tokens"],
    }
    definition = {
        "formula": "nats of all tokens after the first given one, over all texts / ln 2 / UTF-8 bytes (or characters)",
        "texts": scored, "text": f"caption {caption} of each row; texts that were cut are left out",
        "bos": "in all texts" if n_bos == scored else f"in {n_bos} of {scored} texts",
        "first_token": "scored after BOS" if n_bos == scored else "not scored", "first_token_bytes": "count", **total,
    }  # fmt: skip
    return found, definition
