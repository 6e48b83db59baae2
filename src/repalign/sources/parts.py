"""What a worker does: it loads a model, once in a process, runs the rows of some parts, and writes them.

What is in a part depends on the model, the dataset and the part alone.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from repalign.dataset import KINDS, Dataset
from repalign.errors import RepalignError, Unavailable, first_line
from repalign.models import ModelRecord
from repalign.sources.model import STORE_DTYPES, library_errors, merged, out_of_memory
from repalign.sources.pooling import FIRST, LONGEST, per_row
from repalign.sources.source import Spec, column_of
from repalign.store import Part, Writer
from repalign.text import Progress
from repalign.workers import computing

if TYPE_CHECKING:
    from repalign.sources.model import Batch, Context, LoadedModel, ModelEntry

log = logging.getLogger(__name__)

BATCH_SIZE = "batch_size"  # how many rows at most were run together with this one


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


Told = tuple[ModelRecord, dict[str, Any]]  # what there is to say of a model once it is loaded: its record and its facts


@dataclass(frozen=True)
class Job:
    """All that a worker needs to make a part; plain data."""

    dataset: Dataset
    entry: ModelEntry
    spec: Spec
    location: Spec  # the spec with its path absolute
    context: Context
    batch_size: int


# --- a loaded model, one per process -------------------------------------------------------------


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


def _loaded(job: Job, rows: Rows) -> _Loaded:
    at, entry = job.context, job.entry
    key = repr((entry, at.revision, at.device, at.dtype, job.dataset.fingerprint))  # equal keys: one model serves both jobs
    with _loading:
        if key in _models:
            return _models[key]
        forget()  # first, so that two models are never in memory at once
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


def forget() -> None:
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
class Rows:
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


def make_parts(job: Job, writer: Writer, parts: Sequence[Part], rows: Rows | None = None) -> tuple[Told, list[str]]:
    """Run the rows of some parts and write them: what there is to say of the model, and notes where `rows` tell nothing here."""
    notes: list[str] = []

    def hear(task: str, done: float, total: int, note: str | None = None) -> None:  # noqa: ARG001
        notes.extend([note] if note else [])

    rows = rows or Rows(hear, f"extract {job.entry.label}", 0, 0)
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


def _batches(job: Job, loaded: _Loaded, part: Part, rows: Rows) -> Iterator[tuple[list[int], Batch]]:
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


def _prepared(job: Job, loaded: _Loaded, absolute: Sequence[int]) -> list[Any]:
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
