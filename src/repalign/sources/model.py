"""What a user asks of a model (`ModelEntry`), where it is run (`Context`), and a model that is loaded (`LoadedModel`)."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from repalign.errors import RepalignError, Unavailable, choose, did_you_mean, first_line, version_of
from repalign.layers import FEATURES, KINDS
from repalign.models import ModelRecord
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from repalign.sources.source import Spec

STORE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
RUN_DTYPES = {**STORE_DTYPES, "bfloat16": torch.bfloat16}
DTYPES = ("auto", "stored", "float32", "bfloat16", "float16", "float64")  # that one may ask for
CHOICES: dict[str, tuple[str | None, ...]] = {
    "sink": ("skip", "keep"), "padding": ("right", "left", "none"), "store_dtype": tuple(STORE_DTYPES),
    "ids": (None, "rows"), "kind": (None, FEATURES, *KINDS),
}  # fmt: skip
SPREAD = {"auto": "if needed", "sharded": "always"}  # over all GPUs, by the device that is asked for; others: "never"
DIGEST_BYTES = 2**28
HOUSE = str(Path(__file__).parents[1])  # where the code of this package is
GENERATED = "generated"  # the pooling over what a language model goes on with
CAPTION = "{caption}"  # where a prompt takes the text in
NO_BOS = "all; the tokenizer adds no beginning-of-sequence token"  # the tokens of a mean that has such a model's sink in it


# --- what a user asks ----------------------------------------------------------------------------

# Whether a field of `ModelEntry` is part of an extraction's key. One that says nothing is, where it differs from its
# default: so a new option never makes features pass for others, and extractions from before it keep their key.
IN_KEY = "in_key"
ALWAYS, ABOUT = {IN_KEY: "always"}, {IN_KEY: "about the model, not its features"}


@dataclass(frozen=True)
class ModelEntry:
    """One model and all that a user may ask of it.

    * `spec`: the spec string; `name`: a short label.
    * `modality`: the dataset's column to read, needed where the model does not say it (torch, array).
    * `pooling`: how the tokens or positions of a layer become one vector, such as "mean", "last", "cls",
      "spatial_mean"; None takes the source's default. "generated", of a causal language model of transformers: the text is gone
      on with by the likeliest `tokens`, and the vector is the mean of the states that chose them.
    * `layers`: names, patterns of names (in "blocks.*.attn" a star stands for what is between two dots) or indices (negative
      ones count from the end); None takes all.
    * `caption`: which of several captions, from 0.
    * `sink`: "skip" leaves the first token of a text out of the mean of a causal model where it is a sink (a
      beginning-of-sequence token always, a first word if the model uses it as one), "keep" counts it. Such a token has
      little but a large norm, which then rules the mean: see docs/tokens.md. A text of one token keeps it.
    * `padding`: the side on which texts are padded, or "none" for batches of texts of one length.
    * `truncate`: cut what is longer than the model's context instead of refusing it.
    * `store_dtype`: of the stored features, "float32", "float16" or "float64".
    * `ids`: "rows" says that the rows of an array without ids are in the dataset's order; `rows`: true says so of one with ids.
    * `id`, `features`, `vector`, `axes`: of an array's file, which column names the rows, which columns or which block are the
      features, and which of three dimensions counts the layers (see `features.Reading`).
    * `kind`: of an array's file, "rdm" or "kernel": its square arrays are dissimilarities or kernels, whose rows and columns are
      joined to the dataset together; "features": a square symmetric array holds features after all.
    * `prompt`: a text that every caption is put into, where `{caption}` stands in it; for text models of transformers and
      sentence-transformers. With `pooling: last` the vector is that of the token that follows all of it. Bits per byte
      of the captions are not computed then.
    * `family`, `objective`, `n_parameters`, `scores`, `factors`: go into the record, over what the source finds.
    """

    spec: str = field(metadata=ABOUT)  # it stands in the key by itself
    name: str | None = field(default=None, metadata=ABOUT)
    modality: str | None = field(default=None, metadata=ALWAYS)
    pooling: str | None = field(default=None, metadata=ALWAYS)
    layers: tuple[int | str, ...] | None = field(default=None, metadata=ALWAYS)
    caption: int = field(default=0, metadata=ALWAYS)
    sink: str = field(default="skip", metadata=ALWAYS)
    padding: str = field(default="right", metadata=ALWAYS)
    truncate: bool = field(default=False, metadata=ALWAYS)
    store_dtype: str = field(default="float32", metadata=ALWAYS)
    ids: str | None = field(default=None, metadata=ALWAYS)
    rows: bool = False
    id: str | None = None
    features: str | tuple[str, ...] | None = None
    vector: str | None = None
    axes: str | None = None
    kind: str | None = None
    prompt: str | None = None
    tokens: int | None = None
    family: str | None = field(default=None, metadata=ABOUT)
    objective: str | None = field(default=None, metadata=ABOUT)
    n_parameters: int | None = field(default=None, metadata=ABOUT)
    scores: Mapping[str, float] = field(default_factory=dict, metadata=ABOUT)
    factors: Mapping[str, float | str] = field(default_factory=dict, metadata=ABOUT)
    label: str = field(init=False, repr=False, metadata=ABOUT)  # what errors call it

    def __post_init__(self) -> None:
        layers = (self.layers,) if isinstance(self.layers, str) else self.layers
        given = {"features": self.features, "layers": layers}
        several = {k: v if v is None or isinstance(v, str) else tuple(v) for k, v in given.items()}
        vars(self).update(label=self.name or self.spec, **several)
        label = f"model {self.label}"
        for option, known in CHOICES.items():
            value = getattr(self, option)
            if value not in known:
                choose(option, value, [k for k in known if k], f"{label}: unknown {option} {value!r}")
        if self.layers == ():
            raise RepalignError(f"{label}: an empty list of layers", remedy="name layers, or leave `layers` out for all of them")
        if self.caption < 0:
            raise RepalignError(f"{label}: caption is out of range", expected=">= 0", got=self.caption)
        if (self.tokens is None) == (self.pooling == GENERATED) or (self.tokens is not None and self.tokens < 1):
            raise RepalignError(
                f"{label}: `tokens` says how many tokens `pooling: {GENERATED}` goes on with, and goes with nothing else",
                expected="a number, at least 1, with it; none without it", got=f"pooling {self.pooling}, tokens {self.tokens}",
                remedy=f"write pooling: {GENERATED} and tokens: 32, or neither",
            )  # fmt: skip
        if self.prompt is not None and self.prompt.count(CAPTION) != 1:
            raise RepalignError(
                f"{label}: the prompt does not say where the caption goes", expected=f"a text with {CAPTION} in it, once",
                got=f"{self.prompt!r}, with {self.prompt.count(CAPTION)}",
            )  # fmt: skip

    def prompted(self, caption: str) -> str:
        """The text that the model reads for a caption. Braces in either are texts like any other."""
        return caption if self.prompt is None else self.prompt.replace(CAPTION, caption)

    def named(self, wanted: int | str, names: Sequence[str]) -> list[str]:
        """The layers that are asked for by a name, a pattern or an index, of a model that has these. RepalignError if none is."""
        last = len(names) - 1
        if not isinstance(wanted, int) or isinstance(wanted, bool):
            if found := named_by(wanted, names):
                return found
            expected = f"one of {last + 1} layers, from {names[0]!r} to {names[-1]!r}, a pattern or an index"
            remedy = did_you_mean(str(wanted), names)
            raise RepalignError(f"model {self.label}: no layer {wanted!r}", expected=expected, got=wanted, remedy=remedy)
        if not -last - 1 <= wanted <= last:
            raise RepalignError(
                f"model {self.label}: no layer {wanted}", expected=f"an index from {-last - 1} to {last}", got=wanted,
                remedy=f"the layers are {names[0]} (0) to {names[-1]} ({last})",
            )  # fmt: skip
        return [names[wanted]]

    def pooled(self, known: Sequence[str]) -> str:
        """The pooling that is asked for, of a model that has these. RepalignError if it has not."""
        return choose("pooling", str(self.pooling), known, f"model {self.label}: pooling {self.pooling!r} does not apply")

    def settings(self, dtype: str) -> dict[str, Any]:
        """The requested options that determine the features; what the store's extraction hash covers.

        They are read off the fields: a field that does not say that it is `ABOUT` the model is among them, those that
        were there from the beginning `ALWAYS`, others where they are set. `sink` has the name `bos` of former versions
        wherever that gave the same numbers (see `as_asked_today`).
        """
        said: dict[str, Any] = {}
        for option in fields(self):
            value, rule = getattr(self, option.name), option.metadata
            if rule == ALWAYS or (rule != ABOUT and value != option.default):
                said[option.name] = list(value) if isinstance(value, tuple) else value
        from repalign.sources.source import SOURCES

        source = SOURCES.get(self.spec.partition(":")[0])
        if self.sink == "keep" or source is None or not source.may_skip_sinks or self.modality in source.sinkless:
            said["bos"] = said.pop("sink")
        return {**said, "dtype": dtype}

    def complete(self, record: ModelRecord) -> ModelRecord:
        """The record with what the user says of the model put over what the source found."""
        said = {f: v for f in ("name", "family", "objective", "n_parameters") if (v := getattr(self, f)) is not None}
        scores, factors = {**record.scores, **self.scores}, {**record.factors, **self.factors}
        return replace(record, **said, scores=scores, factors=factors)


# --- a loaded model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skipped:
    """A model that was left out because it is unavailable: see `errors.Unavailable`."""

    spec: str
    name: str
    reason: str  # with what to do about it, in one line


@dataclass(frozen=True)
class Pending:
    """A model of which parts are still missing, which are of other shares of the work."""

    spec: str
    name: str
    missing: int  # parts
    parts: int  # in all
    shares: tuple[int, ...]  # by whom they are to be made, counted from 1; empty where nothing was shared out


@dataclass(frozen=True)
class Context:
    """Where and how models are run, and what a source may need besides."""

    device: str
    dtype: str  # "auto", "stored" or one of RUN_DTYPES
    trust_remote_code: bool = False
    dataset_ids: tuple[str, ...] = ()  # for sources that bring ids of their own
    revision: str = ""  # what the spec was resolved to
    progress: Progress = silent
    spread: str = "never"  # over all GPUs: "never", "if needed" or "always"


@dataclass(frozen=True)
class Layer:
    """One layer: its name, and in words what it is."""

    name: str
    what: str


@dataclass(frozen=True)
class Batch:
    """What a forward pass gives: (b, d) per layer on the CPU, and numbers per stimulus in float64.

    Layers are float32; a source that reads a file may give float64.
    """

    layers: dict[str, Tensor]
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A module with its weights, ready to be run, wherever it came from."""

    model: Any
    dtype: torch.dtype  # what it is run in
    stored: torch.dtype | None = None  # what most of its weights are stored in
    missing: Sequence[str] = ()  # weights that its files lack, and that are random now
    places: Mapping[str, Any] | None = None  # the device of each of its parts, where they were put there one by one

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the embeddings, or of the first weight; the CPU where there is none."""
        try:
            return self.model.get_input_embeddings().weight.device
        except (AttributeError, NotImplementedError):  # no such thing, as in vision models
            return next((x.device for x in tensors_of(self.model)), torch.device("cpu"))


def ready(model: nn.Module, stored: torch.dtype | None, context: Context, label: str) -> Loaded:
    """A module of files in eval mode, in the dtype and on the device that it is to be run in and on."""
    dtype = run_dtype(context.dtype, stored, context.device, label)
    return Loaded(model.eval().to(context.device, dtype), dtype, stored)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def own_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of the first weight that has digits behind the point."""
    return next((x.dtype for x in tensors_of(module) if x.is_floating_point()), torch.float32)


class LoadedModel(ABC):
    """A model in memory, or a file of features: stimuli in, one vector per stimulus and layer out."""

    kind: str | None = None  # of the stimuli: "text", "image", "any"; None: it reads row numbers
    shown_first: ClassVar[int] = 0  # stimuli that `settle` is shown before all others are run
    sorts: ClassVar[bool] = False  # whether stimuli have lengths, and batches are to hold those of like length
    entry: ModelEntry
    record: ModelRecord
    layers: tuple[Layer, ...]
    facts: dict[str, Any]  # how the features come about; goes into every part
    weights: str  # a digest of the loaded weights
    placed: Mapping[str, str] = MappingProxyType({})  # `device` and `device_map` of a model on several devices

    def prepare(self, stimuli: Sequence[Any], where: Sequence[str]) -> list[Any]:  # noqa: ARG002
        """Each stimulus as `forward` takes it; `where` names each row for errors."""
        return list(stimuli)

    def settle(self, prepared: Sequence[Any]) -> None:  # noqa: B027
        """Decide what can only be told from the stimuli: called once, before `forward`, with the first of the dataset."""

    def length(self, prepared: Any) -> int:  # noqa: ARG002
        """How long a prepared stimulus is."""
        return 0

    @abstractmethod
    def forward(self, prepared: Sequence[Any]) -> Batch:
        """One pass over a batch."""

    # What sources share.

    def in_passes(self, prepared: Sequence[Any], alike: Sequence[Any], run: Callable[[list[Any]], Batch]) -> Batch:
        """One batch of all, run in passes of those whose entry of `alike` is the same."""
        groups: dict[Any, list[int]] = {}
        for i, key in enumerate(alike):
            groups.setdefault(key, []).append(i)
        return merged(((rows, run([prepared[i] for i in rows])) for rows in groups.values()), len(prepared))

    def describe(
        self, spec: Spec, modality: str, model: nn.Module, dtypes: tuple[torch.dtype, torch.dtype | None], libraries: Sequence[str],
        facts: Mapping[str, Any], *, missing: Sequence[str] = (), weights: str | None = None, **record: Any,
    ) -> None:  # fmt: skip
        """Say of a model that torch runs what it is, and how its features come about.

        `dtypes` are the one that it runs in and the one that its weights are stored in, `libraries` are those that the features
        depend on, `missing` are weights that its files lack, `record` are further fields of the model's record.
        """
        record = {"n_parameters": count_parameters(model), **record}
        self.record = ModelRecord(str(spec), spec.source.name(spec, self.entry), modality, **record)
        self.weights = weights_digest(model, missing) if weights is None else weights
        runs_in, stored = (None if dtype is None else str(dtype).removeprefix("torch.") for dtype in dtypes)
        self.facts = {
            "source": spec.scheme, "architecture": type(model).__name__, **facts, "dtype": runs_in,
            "stored_dtype": stored or "unknown", "pooled_in": "float32", "versions": versions(*libraries),
        }  # fmt: skip

    def choose_layers(self, every: Sequence[Layer]) -> tuple[Layer, ...]:
        """The layers that the entry asks for, in depth order; indices may be negative. RepalignError for what is not there."""
        if self.entry.layers is None:
            return tuple(every)
        names = [layer.name for layer in every]
        chosen = {name for wanted in self.entry.layers for name in self.entry.named(wanted, names)}
        return tuple(layer for layer in every if layer.name in chosen)

    def choose_pooling(self, known: Sequence[str]) -> str:
        """The pooling to use, by default the first of those that the model has."""
        return known[0] if self.entry.pooling is None else self.entry.pooled(known)

    def too_long(self, row: str, most: int, got: int) -> RepalignError:
        return RepalignError(
            f"model {self.entry.label}: {row} is longer than the model's context", expected=f"at most {most} tokens",
            got=f"{got} tokens", remedy="set `truncate: true` on the model, or leave the row out of the dataset",
        )  # fmt: skip

    def text_facts(self) -> dict[str, Any]:
        """What becomes of texts that are too long, which caption is read, and the prompt, if any, that it stands in."""
        prompt = {} if self.entry.prompt is None else {"captions_stand_in": self.entry.prompt}
        return {"too_long": "cut" if self.entry.truncate else "refused", "caption": self.entry.caption, **prompt}


def named_by(wanted: int | str, names: Iterable[str]) -> list[str]:
    """The names that a name or a pattern stands for, in their order; a star stands for what is between two dots.

    >>> named_by("blocks.*", ["stem", "blocks.0", "blocks.0.attn", "blocks.1"])
    ['blocks.0', 'blocks.1']
    """
    parts = str(wanted).split(".")
    split = ((name, name.split(".")) for name in names)
    return [name for name, own in split if name == wanted or (len(own) == len(parts) and all(map(fnmatchcase, own, parts)))]


def weights_digest(module: nn.Module, without: Sequence[str] = ()) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of parameters and buffers in the order of names.

    `without` leaves out those that were not in the model's file and are random. Weights on any devices come to the CPU
    piece by piece, at most `DIGEST_BYTES` at once.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor) or name in without:
            continue
        sha.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        for piece in bytes_of(tensor):
            sha.update(piece)
    return sha.hexdigest()


def bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().contiguous().flatten()
    for piece in flat.split(max(1, DIGEST_BYTES // flat.itemsize)) if flat.numel() else ():
        yield piece.to("cpu").view(torch.uint8).numpy().data


def count_parameters(module: nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(p.numel() for p in module.parameters())


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the libraries that the features depend on."""
    return {package: version_of(package) or "not installed" for package in ("repalign", "torch", *packages)}


def run_dtype(asked: str, stored: torch.dtype | None, device: str, label: str) -> torch.dtype:
    """The dtype to run in.

    "auto" is the dtype that the weights are stored in on a CUDA GPU, and float32 on the CPU and on Apple GPUs; "stored" is that
    of the weights anywhere. Where it is not known what they are stored in, both are float32.
    """
    choose("dtype", asked, DTYPES, f"model {label}: unknown dtype {asked!r}")
    own = asked == "stored" or device.startswith("cuda")
    dtype = RUN_DTYPES.get(asked) or (stored if own and stored is not None else torch.float32)
    if dtype == torch.float64 and device.startswith("mps"):
        raise RepalignError(
            f"model {label}: an Apple GPU does not compute in float64", expected="float32, bfloat16 or float16 on mps",
            got=f"dtype {asked}", remedy="say `device: cpu`, or `dtype: float32`",
        )  # fmt: skip
    return dtype


def refuse_infinite(x: Tensor, where: str, dtype: torch.dtype) -> None:
    """Refuse hidden states that are not finite; `where` names model, layer and row."""
    if bool(torch.isfinite(x).all()):
        return
    small, name = dtype == torch.float16, str(dtype).removeprefix("torch.")
    raise (RepalignError if small else Unavailable)(
        f"{where}: its hidden states are not finite in {name}",
        expected="numbers up to 65,504, which is all that float16 holds" if small else "numbers",
        got="infinity or NaN",
        remedy="use `dtype: bfloat16`, or float32" if small else "check that the model's files are whole",
    )


def told(thing: Any) -> str:
    """An object in words: its own where they say what it is, else its name."""
    text = repr(thing)
    return getattr(thing, "__qualname__", type(thing).__qualname__) if " at 0x" in text else text


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them; what it does not is told as text."""
    return json.loads(json.dumps(dict(settings), default=str, sort_keys=True))



def merged(pieces: Iterable[tuple[Sequence[int], Batch]], n: int) -> Batch:
    """Batches of some of n rows each as one, each row in its place."""
    out = Batch({}, {})
    for rows, batch in pieces:
        for whole, part in ((out.layers, batch.layers), (out.extras, batch.extras)):
            for name, x in part.items():
                if name not in whole:
                    whole[name] = x.new_empty((n, *x.shape[1:]))
                whole[name][rows] = x
    return out


def no_modality(entry: ModelEntry, scheme: str, expected: str | None = None) -> RepalignError:
    return RepalignError(
        f"model {entry.label}: {scheme} models do not say which modality they read",
        expected=expected or "the dataset's column, for instance text or image", got="none",
        remedy="add `modality: image` (or text) to the model's entry",
    )  # fmt: skip


# --- what libraries raise ------------------------------------------------------------------------


@contextmanager
def library_errors(label: str, doing: str, kind: type[RepalignError] = RepalignError, *, alone: bool = False) -> Iterator[None]:
    """Tell what a library raises inside the block as one error of `kind`: the model, what was being done, what to do.

    What this package raises passes as it is: its messages, and its own faults, which need their traceback. The innermost
    frame says whose an error is. A memory that runs out passes too, as the loop takes smaller batches then; of a model that
    is loaded, `alone`, it is the end.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RepalignError):
            raise
        if out_of_memory(error):
            if not alone:
                raise
            raise kind(
                f"model {label}: the memory ran out while it was loaded", got=first_line(error),
                remedy="see that nothing else uses the device, take a smaller dtype, or spread it with `device: sharded`",
            ) from error  # fmt: skip
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        file, line = ("", 0) if frame is None else (frame.tb_frame.f_code.co_filename, frame.tb_lineno)
        if file.startswith(HOUSE):
            raise
        raise kind(
            f"model {label}: {doing} failed in its library: {type(error).__name__}: {first_line(error)}",
            expected="a model that the installed libraries run as they are asked to",
            got=f"{type(error).__name__} in {'/'.join(Path(file).parts[-3:])}, line {line}",
            remedy="check that its files are whole and that the libraries know it, or upgrade them; modules of any model can be "
            "read by a torch: spec, whose function builds it and feeds it",
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device or of the machine ran out."""
    signs = ("out of memory", "can't allocate memory", "not enough memory")
    by_name = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
    return by_name or isinstance(error, (torch.OutOfMemoryError, MemoryError))
