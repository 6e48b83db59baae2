"""The one loop over models: what is in the store is taken, and what is missing is made, part by part.

A part is a block of rows of the dataset (`parts.py` makes it). What is in it depends on the model, the dataset and the part
alone, so that a run that was killed, or spread over workers, ends with the same bytes.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from repalign.dataset import Dataset
from repalign.errors import RepalignError, Unavailable, choose
from repalign.files.claims import Claims
from repalign.models import ModelRecord
from repalign.sources.memory import UNTOLD, Model, home_of
from repalign.sources.model import SPREAD, Context, ModelEntry, Pending, Skipped, library_errors
from repalign.sources.parts import Job, Rows, Told, choose_device, forget, make_parts, summary
from repalign.sources.source import as_asked_today, parse_spec
from repalign.store import FeatureStore, Part, StoredRepresentation, Writer
from repalign.text import Progress, silent
from repalign.workers import Share, Task, count_of, work

log = logging.getLogger(__name__)

ON_UNAVAILABLE = ("error", "skip")
TURNS = 4  # tasks for every worker, where parts of one model go together: it is loaded less often, and none waits long at the end
NOT_KEPT = "kept until Python ends, not in the store: nothing tells what it computes; give it a `revision` that does"


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
            job, is_here = Job(dataset, entry, spec, location, at, batch_size), executor is None or isinstance(entry, Model)
            found = _begun(job, store, rows_per_part, progress, is_here)
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
        forget()
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


@dataclass(eq=False)
class _Making:
    """A model whose features are not complete in the store."""

    job: Job
    store: FeatureStore
    writer: Writer
    missing: list[Part]
    rows: Rows
    is_here: bool  # made in this process: without workers all are, and objects of this process always
    at: list[tuple[int, Job]] = field(default_factory=list)  # where in the list of models it was asked for, and how
    start: int = 0  # where its parts begin among those of all models, complete or not, of which there are `total`
    total: int = 0
    left: int = 0  # parts of it that this call has still to make
    told: Told | None = None
    heard: list[str] = field(default_factory=list)
    lost: Unavailable | None = None


def _begun(
    job: Job, store: FeatureStore, rows_per_part: int, progress: Progress, is_here: bool
) -> StoredRepresentation | _Making:
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
    return _Making(job, store, writer, missing, Rows(progress, task, n - sum(p.n for p in missing), n), is_here)


def _again(job: Job, making: _Making, made: StoredRepresentation | Pending) -> StoredRepresentation | Pending:
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
    everything = sum(len(making.missing) for making in makings)
    for making in makings:
        job, writer, mine = making.job, making.writer, None if share is None else share.of(making.total)
        parts = [part for part in making.missing if mine is None or making.start + part.index in mine]
        making.left = len(parts)
        together = 1 if making.is_here else min(max(1, everything // (TURNS * count_of(executor))), max(1, len(parts)))
        for some in (parts[i : i + together] for i in range(0, len(parts), together)):
            called = f"part {some[0].index + 1}" if len(some) == 1 else f"parts {some[0].index + 1} to {some[-1].index + 1}"
            keys = tuple(f"{writer.folder}/{part.file}" for part in some) if making.store is store else ()
            what = f"model {job.entry.label}, {called} of {len(writer.parts)}"
            tasks.append(_task(making, what, tuple(some), keys))
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
                    _told(making, some, future, skips)
                if not making.left:
                    yield making, _finished(making, executor, share, skips)


def _task(making: _Making, what: str, parts: tuple[Part, ...], keys: tuple[str, ...] = ()) -> Task:
    """The task of making some parts. One that is done here tells of its rows one by one."""
    given = (making.job, making.writer, parts, *([making.rows] if making.is_here else []))
    return Task(what, make_parts, given, keys, making.is_here, (making, parts))


def _told(making: _Making, some: Sequence[Part], future: Future[Any] | None, skips: bool) -> None:
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
    if future is None or not making.is_here:  # else it has told of its rows one by one
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
            ((_, answer),) = work([_task(making, f"model {job.entry.label}", ())], executor)
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
        if making.is_here:
            forget()


def _stored(job: Job, store: FeatureStore) -> StoredRepresentation | None:
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


def _taken(job: Job, store: FeatureStore, writer: Writer) -> StoredRepresentation | None:
    """What the model has made of the same stimuli in another dataset, such as one of which another column is distorted."""
    for twin in store.twins(writer.dataset, str(job.spec), job.context.revision, writer.settings):
        with suppress(RepalignError):  # an outdated one is made anew
            job.spec.source.refuse_outdated(job.spec, job.entry, twin)
            if writer.take(twin):
                return writer.finish(job.entry.complete(twin.record), twin.facts)
    return None
