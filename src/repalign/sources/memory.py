"""Models that are in memory: torch modules, models of the libraries that other sources run, and functions of a batch.

A source wraps an object of its library as it wraps what it loads, so that the numbers are the same. The object runs where it is
and in the dtype that it has, in eval mode, and is given back as it was. Its spec is `memory:` and the name of its class; what
tells its features from others is the revision, a digest of all that it computes with (`identity`).
"""

from __future__ import annotations

import copy
import hashlib
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repalign.dataset import Dataset
from repalign.errors import RepalignError, first_line, is_of
from repalign.models import ModelRecord
from repalign.sources.identity import fingerprint
from repalign.sources.model import (
    ABOUT,
    GENERATED,
    Batch,
    Context,
    Layer,
    Loaded,
    LoadedModel,
    ModelEntry,
    count_parameters,
    out_of_memory,
    own_dtype,
    run_dtype,
    told,
    versions,
    weights_digest,
)
from repalign.sources.pooling import any_pool, same_states
from repalign.sources.source import COUNTED, FILE, SOURCES, Answer, Asked, Facts, Source, Spec, StandIn, no_generation

UNTOLD = "session-"  # how the revision of a model begins whose features cannot be told from those of another
WRAPPED = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
OUTPUT = "output"  # the layer of a function that gives one


@dataclass(frozen=True)
class Model(ModelEntry):
    """A model that is in memory, and all that may be asked of it: `Model(net, modality="image", preprocess=transform)`.

    * The first argument is a torch module; a model of timm, or a `SentenceTransformer`; a pair of a model of transformers or
      open_clip with its processor, tokenizer or transform; or a function that takes a list of texts, images or arrays and
      gives an array (n, d), or several by the name of the layer.
    * `preprocess`: what makes a tensor of one stimulus for a torch module, or the second of a pair.
    * `revision`: a text that stands for what the model computes where that cannot be told from the model itself. Say another
      one when it computes something else. Without one, features of such a model are kept until Python ends.
    * All else is as in `ModelEntry`.
    """

    spec: Any = field(metadata=ABOUT)  # the model as it is given; afterwards `memory:` and its name
    preprocess: Any = field(default=None, repr=False, metadata=ABOUT)  # in the key by the revision that the spec has
    revision: str | None = field(default=None, repr=False, metadata=ABOUT)  # so is this
    model: Any = field(default=None, repr=False, metadata=ABOUT)  # and this

    def __post_init__(self) -> None:
        if self.model is None:
            model, *beside = self.spec if isinstance(self.spec, (tuple, list)) and len(self.spec) == 2 else (self.spec,)
            beside += [] if self.preprocess is None else [self.preprocess]
            if isinstance(model, type) or not callable(model) or len(beside) > 1:
                raise RepalignError(
                    f"this is no model: {repr(self.spec).splitlines()[0][:80]}", got=type(self.spec).__name__,
                    expected="a torch module, a pair of a model and its processor, a SentenceTransformer, or a function of a batch",
                    remedy="pass the object itself; a model that is not in memory has a spec, such as 'hf:org/name'",
                )  # fmt: skip
            model = unwrapped(model)
            name = getattr(model, "__qualname__", type(model).__qualname__).rpartition("<locals>.")[2]
            vars(self).update(model=model, preprocess=next(iter(beside), None), spec=f"memory:{name}")
        super().__post_init__()


def unwrapped(model: Any) -> Any:
    """The module itself: what compiles it or spreads it over processes has hooks of its own. FSDP stays, which must run itself."""
    while is_of(model, "torch", *WRAPPED):
        model = getattr(model, WRAPPED[type(model).__name__])
    return model


def home_of(entry: Model) -> Source:
    """The source that an object is a model of."""
    return next(source for source in SOURCES.values() if source.takes(entry))


# --- for the sources that take objects -----------------------------------------------------------


def tower(entry: Model, side: str) -> Model:
    """One side of a model, with its name and the column that it reads where the entry says neither."""
    name = entry.name or entry.spec.partition(":")[2]
    return replace(entry, modality=entry.modality or side, name=f"{name}-{side}" if entry.modality is None else entry.name)


def of_column(entry: Model, dataset: Dataset, kind: str | None = None) -> Model:
    """An entry that says which column is read: if it says none itself, the only one, or the only one of a kind."""
    columns = [m for m in dataset.modalities if len(dataset.modalities) == 1 or dataset.kind(m) == kind]
    if entry.modality is None and len(columns) != 1:
        there = ", ".join(f"{m} ({dataset.kind(m)})" for m in dataset.modalities)
        raise RepalignError(
            f"model {entry.label}: nothing says what it reads", expected=f"`modality`, a column of the dataset: {there}",
            got="none", remedy='pass repalign.Model(model, modality="image", preprocess=transform), or modality="text"',
        )  # fmt: skip
    return replace(entry, modality=entry.modality or columns[0])


def alone(entry: Model, lacks: str, pair: str) -> RepalignError:
    return RepalignError(
        f"model {entry.label}: {lacks} is not there", expected=f"a pair, {pair}", got=told(entry.preprocess)[:80],
        remedy=f"pass [{pair}], in a list; or repalign.Model(model, preprocess=..., layers=...), with a function that makes a "
        "tensor of one stimulus, to read modules by their names",
    )  # fmt: skip


def refuse_company(beside: Mapping[str, Tensor], alone: Mapping[str, Tensor], dtype: torch.dtype, entry: ModelEntry) -> None:
    """Refuse a model that gives the last of several stimuli, (b, d) by layer, another vector than where it is alone, (1, d)."""
    for layer, x in alone.items():
        if layer not in beside or not (same_states([beside[layer][-1:]], [x], dtype) or bool(x.isnan().any())):
            raise RepalignError(
                f"model {entry.label}, layer {layer}: a stimulus has another vector beside others than alone",
                expected="a first axis that counts stimuli, which do not meet; and the same vector at every call",
                got="stimuli that meet, as where the axis of tokens is the first, or random numbers",
                remedy="turn the axes (batch_first=True), or pass a function of a batch that calls the model as it has to be",
            )


# --- the source ----------------------------------------------------------------------------------


class InMemory(Source):
    """`memory:` models, which Python code hands over; functions of a batch are its own."""

    scheme, form = "memory", "memory:Name (an object in memory, given to extract in Python)"
    example = "memory:ResNet"
    takes_prompts = generates = True

    def check(self, spec: Spec, entry: ModelEntry) -> None:
        super().check(spec, entry)
        home = home_of(_given(entry))
        if entry.pooling == GENERATED and home is not self and not home.generates:
            raise no_generation(entry, f"{home.scheme}: models")
        if entry.pooling == GENERATED and home is self:
            raise no_generation(entry, "functions")

    def revision(self, spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG002
        """A digest of the weights, and of all else that can be told; else of the weights and what the entry says of the rest."""
        model, module = _given(entry), _module(entry)
        found = fingerprint(module, model.preprocess) if module is model.model else None  # what a function does is not told
        if found is None and model.revision is None:
            return UNTOLD + uuid.uuid4().hex[:16]
        return "memory-" + hashlib.sha256(f"{found or weights_digest(module)}:{model.revision}".encode()).hexdigest()[:16]

    def facts(self, spec: Spec, entry: ModelEntry, answer: Answer | None = None) -> Facts:  # noqa: ARG002
        count = count_parameters(_module(entry)) or None
        return Facts(parameters=count, parameters_from=COUNTED, download_bytes=0, download_from=FILE)

    def load(self, spec: Spec, entry: ModelEntry, context: Context) -> LoadedModel:
        model = _given(entry)
        loaded = _placed(model, context)
        made = home_of(model).wrap(spec, model, loaded)
        made.placed = {"device": str(loaded.device) if model.model is _module(model) else "its own device"}
        return made

    def takes(self, entry: Model) -> bool:  # noqa: ARG002
        return True  # a function: it is the last in the table

    def towers(self, entry: Model, dataset: Dataset) -> list[Model]:
        return [of_column(entry, dataset)]

    def wrap(self, spec: Spec, entry: Model, loaded: Loaded) -> LoadedModel:  # noqa: ARG002
        return Function(spec, entry, entry.model)

    @contextmanager
    def borrowed(self, entry: ModelEntry) -> Iterator[None]:
        """In eval mode; then with the attributes, buffers and hooks that it had, and its configuration as that was."""
        modules = list(_module(entry).modules())
        configs = {id(c): c for m in modules if is_of(c := vars(m).get("config"), "transformers")}
        own = [part for m in modules for part in (vars(m), *(v for v in vars(m).values() if isinstance(v, dict)))]
        held = [*own, *map(vars, configs.values())]
        kept = [(part, dict(part)) for part in held]
        try:
            for m in modules:
                m.training = False
            yield
        finally:
            for part, was in kept:
                part.clear()
                part.update(was)

    def stand_in(self, asked: Asked) -> StandIn:
        raise _no_object(asked.entry)


def _given(entry: ModelEntry) -> Model:
    if isinstance(entry, Model):
        return entry
    raise _no_object(entry)


def _module(entry: ModelEntry) -> nn.Module:
    """The torch module that is given; an empty one in the place of a function."""
    model = _given(entry).model
    return model if isinstance(model, nn.Module) else nn.Module()


def _no_object(entry: ModelEntry) -> RepalignError:
    return RepalignError(
        f"model {entry.label}: it is not in memory here", expected="repalign.Model(model), or the model itself, given to extract",
        got=f"the name {entry.spec!r}", remedy="give a spec that it is loaded by, such as hf:./folder or torch:./file.py:function",
    )  # fmt: skip


def _placed(entry: Model, context: Context) -> Loaded:
    """An object where it is and as it is; a copy of it, where a device or a dtype is named that is another one."""
    model = entry.model
    if model is not _module(entry):
        return Loaded(model, torch.float32)
    own = own_dtype(model)
    dtype = own if context.dtype == "auto" else run_dtype(context.dtype, own, context.device, entry.label)
    here = Loaded(model, own, own)
    device = torch.device(context.device) if context.spread == "never" else here.device  # one that is named
    moved = device.type != here.device.type or device.index not in (None, here.device.index)
    if not moved and dtype == own:
        return here
    return Loaded(copy.deepcopy(model).to(device, dtype), dtype, own)


# --- functions of a batch ------------------------------------------------------------------------


class Function(LoadedModel):
    """Stimuli in a list in; an array, or several by name, out."""

    kind = "any"
    shown_first = 2  # which tell its layers

    def __init__(
        self, spec: Spec, entry: ModelEntry, function: Callable[[list[Any]], Any], weights: str = "none", **facts: Any
    ) -> None:
        self.entry, self.function, self.weights, self.layers = entry, function, weights, ()
        self.widths: dict[str, int] = {}
        self.record = ModelRecord(str(spec), spec.source.name(spec, entry), str(entry.modality))
        self.facts = {
            "source": spec.scheme, "architecture": told(function), "pooling": entry.pooling or "as the function gives it",
            "dtype": "as given", **facts, "versions": versions(),
        }  # fmt: skip

    def settle(self, prepared: Sequence[Any]) -> None:
        found, alone = self._called(prepared), self._called(prepared[-1:])
        refuse_company(found, alone, torch.float16, self.entry)  # what answers over a network is not exact
        self.layers = self.choose_layers([Layer(name, "as the function gives it") for name in found])

    def forward(self, prepared: Sequence[Any]) -> Batch:
        found = self._called(prepared)
        return Batch({layer.name: found[layer.name] for layer in self.layers})

    def _called(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """What the function gives for some stimuli, by layer: (b, d)."""
        try:
            with torch.inference_mode(False), torch.no_grad():
                given = self.function(list(prepared))
        except Exception as error:
            if isinstance(error, RepalignError) or out_of_memory(error):
                raise
            raise RepalignError(
                f"model {self.entry.label}: the function fails: {type(error).__name__}: {first_line(error)}",
                expected="a function that takes a list of stimuli and gives an array, a row for each",
                got=f"{place_of(error, self.function)}, given {len(prepared)} stimuli of column {self.entry.modality}, the first "
                f"{repr(prepared[0])[:80]}",
            ) from error  # fmt: skip
        found = {str(name): x for name, x in given.items()} if isinstance(given, Mapping) else {OUTPUT: given}
        if self.layers and (lost := [layer.name for layer in self.layers if layer.name not in found]):
            raise RepalignError(
                f"model {self.entry.label}: the function gives other layers for other stimuli", expected=lost[0],
                got=", ".join(found), remedy="give the same layers for every batch",
            )  # fmt: skip
        return {name: self._layer(x, f"model {self.entry.label}, layer {name}", len(prepared)) for name, x in found.items()}

    def _layer(self, x: Any, where: str, n: int) -> Tensor:
        try:
            tensor = x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
            if tensor.is_complex():
                raise TypeError("complex numbers")
        except (TypeError, ValueError) as error:
            raise RepalignError(
                f"{where}: the function gives no array", expected="an array or a tensor (n, d) of numbers, or several by name",
                got=f"{type(x).__name__}: {first_line(error)}",
            ) from error  # fmt: skip
        if tensor.ndim == 0 or len(tensor) != n:
            raise RepalignError(
                f"{where}: not one row for each of the stimuli that the function is given", expected=f"({n}, d)",
                got=f"shape {tuple(tensor.shape)}",
            )  # fmt: skip
        vectors = any_pool(tensor, self.entry.pooling, where)
        if vectors.shape[1] != self.widths.setdefault(where, vectors.shape[1]):
            raise RepalignError(
                f"{where}: the function gives vectors of another length for other stimuli", got=f"{vectors.shape[1]} numbers",
                expected=f"{self.widths[where]} numbers, as for the first", remedy="take a mean over what differs",
            )  # fmt: skip
        return vectors


def place_of(error: BaseException, function: Any) -> str:
    """The line at which a function fails: the last one of its own file."""
    file, line = getattr(getattr(function, "__code__", None), "co_filename", None), ""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in frames:
        if frame.filename == file or (file is None and frame is frames[-1]):
            line = f"line {frame.lineno} of {Path(frame.filename).name}"
    return line or f"an error in {told(function)}"
