"""What a source of models is (`Source`, one for each scheme of specs), what a user asks of a model (`ModelEntry`), and what is
known of it before (`Facts`) and after (`LoadedModel`) it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from repalign.errors import RepalignError, Unavailable, did_you_mean
from repalign.errors import choose as choose_name
from repalign.layers import FEATURES, KINDS, said
from repalign.models import ModelRecord, known_models
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from repalign.sources.standins import Asked, StandIn
    from repalign.store import StoredRepresentation

STORE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
RUN_DTYPES = {**STORE_DTYPES, "bfloat16": torch.bfloat16}
CHOICES: dict[str, tuple[str | None, ...]] = {
    "sink": ("skip", "keep"),
    "padding": ("right", "left", "none"),
    "store_dtype": tuple(STORE_DTYPES),
    "ids": (None, "rows"),
    "kind": (None, FEATURES, *KINDS),
}
SPREAD = {"auto": "if needed", "sharded": "always"}  # over all GPUs, by the device that is asked for; others: "never"
DIGEST_BYTES = 2**28
LEFT_OUT = "left out"  # the fact of a first token that does not enter the mean
CAPTION = "{caption}"  # where a prompt takes the text in
NO_BOS = "all; the tokenizer adds no beginning-of-sequence token"  # the tokens of a mean that has such a model's sink in it


# --- specs ---------------------------------------------------------------------------------------

_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
NAME = re.compile(r"[\w.+-]+", re.ASCII)


@dataclass(frozen=True)
class Spec:
    """A parsed spec string; `str` gives the string back."""

    scheme: str
    path: str  # all between the scheme and the revision
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.scheme}:{self.path}" + (f"@{self.revision}" if self.revision else "")

    @property
    def source(self) -> Source:
        return SOURCES[self.scheme]

    @property
    def file(self) -> Path | None:
        """The file or folder on this machine that the spec names; None where it names something else."""
        local = self.source.local_part(self.path)
        return None if local is None else Path(local)

    @property
    def is_local(self) -> bool:
        return self.file is not None

    def resolve(self, base: Path) -> Spec:
        """The same spec with a relative local path made absolute, starting from the folder `base`."""
        local = self.source.local_part(self.path)
        if local is None:
            return self
        return replace(self, path=os.path.normpath(Path(base).absolute() / Path(local).expanduser()) + self.path[len(local) :])

    @property
    def slug(self) -> str:
        """A name for files and folders: the readable part of the spec and eight digits of its SHA-256.

        Only letters, digits and ``. _ -`` occur; different specs have different slugs, also where file names ignore case. Of
        a local path only the last part is readable.
        """
        path = Path(self.path).name if self.is_local else self.path
        text = f"{self.scheme}-{path}" + (f"-{self.revision}" if self.revision else "")
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:80].strip("-.")
        return f"{readable}-{hashlib.sha256(str(self).encode()).hexdigest()[:8]}"


def parse_spec(text: str) -> Spec:
    """Parse a model's spec string, `scheme:path[@revision]`; each source in `SOURCES` says the form of its own.

    Where a source knows local folders, a path that starts with `/`, `./`, `../` or `~` is one, and has no revision.
    Raises RepalignError that says the form.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SOURCES:
        return SOURCES[scheme].parse(rest)
    names = {known.name.lower(): known.spec for known in known_models()}
    raise RepalignError(
        f"model spec {text!r} starts with no known scheme",
        expected=f"scheme:path with one of the schemes {', '.join(SOURCES)}",
        got=f"scheme {scheme!r}" if colon else "no scheme",
        remedy=did_you_mean(scheme, SOURCES) if colon else f"write {names.get(text.lower(), 'hf:' + text)!r}",
    )


def is_local_path(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or path in (".", "..")


# --- what a user asks ----------------------------------------------------------------------------

# Whether a field of `ModelEntry` is part of an extraction's key. One that says nothing is, where it differs from its
# default: so a new option never makes features pass for others, and extractions from before it keep their key.
ALWAYS, ABOUT = "always", "about the model, not its features"


def _option(default: Any, in_key: str | None = None) -> Any:
    return field(default=default, metadata={"in_key": in_key})


@dataclass(frozen=True)
class ModelEntry:
    """One model and all that a user may ask of it.

    * `spec`: the spec string; `name`: a short label.
    * `modality`: the dataset's column to read, needed where the model does not say it (torch, array).
    * `pooling`: how the tokens or positions of a layer become one vector, such as "mean", "last", "cls",
      "spatial_mean"; None takes the source's default.
    * `layers`: names or indices (negative ones count from the end); None takes all.
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

    spec: str = field(metadata={"in_key": ABOUT})  # it stands in the key by itself
    name: str | None = _option(None, ABOUT)
    modality: str | None = _option(None, ALWAYS)
    pooling: str | None = _option(None, ALWAYS)
    layers: tuple[int | str, ...] | None = _option(None, ALWAYS)
    caption: int = _option(0, ALWAYS)
    sink: str = _option("skip", ALWAYS)
    padding: str = _option("right", ALWAYS)
    truncate: bool = _option(False, ALWAYS)
    store_dtype: str = _option("float32", ALWAYS)
    ids: str | None = _option(None, ALWAYS)
    rows: bool = False
    id: str | None = None
    features: str | tuple[str, ...] | None = None
    vector: str | None = None
    axes: str | None = None
    kind: str | None = None
    prompt: str | None = None
    family: str | None = _option(None, ABOUT)
    objective: str | None = _option(None, ABOUT)
    n_parameters: int | None = _option(None, ABOUT)
    scores: Mapping[str, float] = field(default_factory=dict, metadata={"in_key": ABOUT})
    factors: Mapping[str, float | str] = field(default_factory=dict, metadata={"in_key": ABOUT})

    def __post_init__(self) -> None:
        label = f"model {self.label}"
        for several in ("features", "layers"):
            value = getattr(self, several)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, several, tuple(value))
        for option, known in CHOICES.items():
            value = getattr(self, option)
            if value not in known:
                choose_name(option, value, [k for k in known if k], f"{label}: unknown {option} {value!r}")
        if self.layers == ():
            raise RepalignError(f"{label}: an empty list of layers", remedy="name layers, or leave `layers` out for all of them")
        if self.caption < 0:
            raise RepalignError(f"{label}: caption is out of range", expected=">= 0", got=self.caption)
        if self.prompt is not None and self.prompt.count(CAPTION) != 1:
            raise RepalignError(
                f"{label}: the prompt does not say where the caption goes", expected=f"a text with {CAPTION} in it, once",
                got=f"{self.prompt!r}, with {self.prompt.count(CAPTION)}",
            )  # fmt: skip

    @property
    def label(self) -> str:
        return self.name or self.spec

    def prompted(self, caption: str) -> str:
        """The text that the model reads for a caption. Braces in either are texts like any other."""
        return caption if self.prompt is None else self.prompt.replace(CAPTION, caption)

    def settings(self, dtype: str) -> dict[str, Any]:
        """The requested options that determine the features; what the store's extraction hash covers.

        They are read off the fields: a field that does not say that it is `ABOUT` the model is among them, those that
        were there from the beginning `ALWAYS`, others where they are set. `sink` has the name `bos` of former versions
        wherever that gave the same numbers (see `as_asked_today`).
        """
        said: dict[str, Any] = {}
        for option in fields(self):
            value, rule = getattr(self, option.name), option.metadata.get("in_key")
            if rule == ALWAYS or (rule != ABOUT and value != option.default):
                said[option.name] = list(value) if isinstance(value, tuple) else value
        source = SOURCES.get(self.spec.partition(":")[0])
        if self.sink == "keep" or source is None or not source.may_skip_sinks(self):
            said["bos"] = said.pop("sink")
        return {**said, "dtype": dtype}

    def former_settings(self, dtype: str) -> dict[str, Any]:
        """The settings under which former versions stored what may be the same features."""
        return {k: v for k, v in self.settings(dtype).items() if k != "sink"} | {"bos": self.sink}

    def complete(self, record: ModelRecord) -> ModelRecord:
        """The record with what the user says of the model put over what the source found."""
        said = {f: v for f in ("name", "family", "objective", "n_parameters") if (v := getattr(self, f)) is not None}
        scores, factors = {**record.scores, **self.scores}, {**record.factors, **self.factors}
        return replace(record, **said, scores=scores, factors=factors)


def as_asked_today(spec: str, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stored extraction in today's words.

    Former versions left out a beginning-of-sequence token (`bos: skip`), and nothing where the tokenizer adds none. Only
    what was pooled so that this token does not matter, or without it, is what `sink: skip` gives.
    """
    source = SOURCES.get(spec.partition(":")[0])
    same = source is not None and settings.get("bos") == "skip" and source.skipped_sinks_before(facts)
    return {k: v for k, v in settings.items() if k != "bos"} | {"sink": "skip"} if same else dict(settings)


# --- what is known of a model before it is loaded ------------------------------------------------

# Where a number comes from.
KNOWN = "known"  # the table of known models, or a recipe of the toy world
MEASURED = "measured"  # an extraction in the store, or a rate that was measured
COUNTED = "counted"  # the architecture, built without weights
FILE = "file"  # a file on this machine: its header, its configuration, the entry of the study
HUB = "hub"  # what the hub says
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Facts:
    """A model before it is loaded; None is what is not known.

    kind : of the stimuli that it reads, "text" or "image".
    parameters : with the heads that the weights file has.
    widths : d of every layer as extracted, `names` their names where they are known.
    stored : the dtype of the weights. file_bytes : what loading reads. download_bytes : what has to be fetched first.
    tokens : of one image. flops : of one stimulus, where they were counted on the architecture.
    work : core-seconds beside the forward passes, such as training a toy model.
    """

    kind: str | None = None
    parameters: int | None = None
    widths: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    stored: torch.dtype | None = None
    file_bytes: int | None = None
    download_bytes: int | None = None
    tokens: int | None = None
    flops: float | None = None
    work: float = 0.0
    reads_array: bool = False  # a file of features: nothing is run
    parameters_from: str = UNKNOWN
    layers_from: str = UNKNOWN
    download_from: str = UNKNOWN

    def choose(self, wanted: Sequence[int | str] | None) -> Facts:
        """Only the layers that the entry asks for; None where it cannot be told how wide they are."""
        if wanted is None or self.widths is None:
            return self
        count, names = len(self.widths), self.names or ()
        place: dict[int | str, int] = {**{i: i % count for i in range(-count, count)}, **{name: i for i, name in enumerate(names)}}
        places = [place.get(w) for w in wanted]
        if None not in places:
            kept = sorted({p for p in places if p is not None})
            chosen = None if self.names is None else tuple(names[i] for i in kept)
            return replace(self, widths=tuple(self.widths[i] for i in kept), names=chosen)
        if len(set(self.widths)) == 1 and len(places) <= count:
            return replace(self, widths=self.widths[: len(places)], names=None)
        return replace(self, widths=None, names=None, layers_from=UNKNOWN)


Repository = tuple[str, str | None]  # on the hub: name and revision


@dataclass(frozen=True)
class Answer:
    """What the hub says of a repository."""

    weights_bytes: int | None  # of the safetensors files that are loaded
    parameters: int | None
    config: Mapping[str, Any] | None


# --- a loaded model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skipped:
    """A model that was left out because it is unavailable: see `errors.Unavailable`."""

    spec: str
    name: str
    reason: str  # with what to do about it, in one line


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


class LoadedModel(ABC):
    """A model in memory, or a file of features: stimuli in, one vector per stimulus and layer out."""

    kind: str | None = None  # of the stimuli: "text", "image", "any"; None: it reads row numbers
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

    def choose_layers(self, every: Sequence[Layer]) -> tuple[Layer, ...]:
        """The layers that the entry asks for, in depth order; indices may be negative. RepalignError for what is not there."""
        if self.entry.layers is None:
            return tuple(every)
        label, names, chosen = f"model {self.entry.label}", [layer.name for layer in every], set[str]()
        for w in self.entry.layers:
            if isinstance(w, int) and not isinstance(w, bool):
                if not -len(names) <= w < len(names):
                    raise RepalignError(
                        f"{label}: no layer {w}", expected=f"an index from {-len(names)} to {len(names) - 1}", got=w,
                        remedy=f"the layers are {names[0]} (0) to {names[-1]} ({len(names) - 1})",
                    )  # fmt: skip
                chosen.add(names[w])
            elif w in names:
                chosen.add(w)
            else:
                expected = f"one of {len(names)} layers, from {names[0]!r} to {names[-1]!r}, or an index"
                raise RepalignError(f"{label}: no layer {w!r}", expected=expected, got=w, remedy=did_you_mean(str(w), names))
        return tuple(layer for layer in every if layer.name in chosen)

    def choose_pooling(self, known: Sequence[str]) -> str:
        """The pooling to use, by default the first of those that the model has."""
        asked = known[0] if self.entry.pooling is None else self.entry.pooling
        return choose_name("pooling", asked, known, f"model {self.entry.label}: pooling {asked!r} does not apply")

    def too_long(self, row: str, most: int, got: int) -> RepalignError:
        return RepalignError(
            f"model {self.entry.label}: {row} is longer than the model's context", expected=f"at most {most} tokens",
            got=f"{got} tokens", remedy="set `truncate: true` on the model, or leave the row out of the dataset",
        )  # fmt: skip

    def token_facts(self, pooling: str, causal: bool, is_sink: bool) -> dict[str, Any]:
        """Whether tokens see only those before them, and what a mean does with the first one of each text."""
        if pooling != "mean":
            return {"causal": causal}
        left_out = causal and is_sink and self.entry.sink == "skip"
        return {"causal": causal, "first_token": LEFT_OUT if left_out else "counts"}

    def text_facts(self) -> dict[str, Any]:
        """What becomes of texts that are too long, which caption is read, and the prompt, if any, that it stands in."""
        prompt = {} if self.entry.prompt is None else {"captions_stand_in": self.entry.prompt}
        return {"too_long": "cut" if self.entry.truncate else "refused", "caption": self.entry.caption, **prompt}


def run_facts(dtype: torch.dtype, stored: torch.dtype | None, *packages: str) -> dict[str, Any]:
    """The facts that every model that is run has to state."""
    stated = "unknown" if stored is None else shown_dtype(stored)
    return {"dtype": shown_dtype(dtype), "stored_dtype": stated, "pooled_in": "float32", "versions": versions(*packages)}


def shown_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
        flat = tensor.detach().contiguous().flatten()
        if flat.numel():
            for piece in flat.split(max(1, DIGEST_BYTES // flat.itemsize)):
                sha.update(piece.to("cpu").view(torch.uint8).numpy().data)
    return sha.hexdigest()


def count_parameters(module: nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(p.numel() for p in module.parameters())


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the libraries that the features depend on."""
    out = {}
    for package in ("repalign", "torch", *packages):
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "not installed"
    return out


def run_dtype(asked: str, stored: torch.dtype | None, device: str, label: str) -> torch.dtype:
    """The dtype to run in.

    "auto" is the dtype that the weights are stored in on a GPU, and float32 on the CPU; "stored" is that of the weights
    anywhere. Where it is not known what they are stored in, both are float32.
    """
    if asked in ("auto", "stored"):
        own = asked == "stored" or device.startswith("cuda")
        return stored if own and stored is not None else torch.float32
    known = ("auto", "stored", "float32", "bfloat16", "float16", "float64")
    return RUN_DTYPES[choose_name("dtype", asked, known, f"model {label}: unknown dtype {asked!r}")]


def refuse_infinite(x: Tensor, where: str, dtype: str) -> None:
    """Refuse hidden states that are not finite; `where` names model, layer and row."""
    if bool(torch.isfinite(x).all()):
        return
    small = dtype == "float16"
    raise (RepalignError if small else Unavailable)(
        f"{where}: its hidden states are not finite in {dtype}",
        expected="numbers up to 65,504, which is all that float16 holds" if small else "numbers",
        got="infinity or NaN",
        remedy="use `dtype: bfloat16`, or float32" if small else "check that the model's files are whole",
    )


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them; what it does not is told as text."""
    return json.loads(json.dumps(dict(settings), default=str, sort_keys=True))


# --- a source ------------------------------------------------------------------------------------


class Source(ABC):
    """Models of one scheme: how their specs are written, what is known before they are loaded, and how they are loaded.

    A new one is a subclass in a file of its own and a row of `SOURCES`.
    """

    scheme: ClassVar[str]
    form: ClassVar[str]  # how a spec is written
    example: ClassVar[str]
    has_revisions: ClassVar[bool] = False  # whether @revision may stand behind a path that is not local
    published: ClassVar[bool] = False  # others made the models: one that does not load is `Unavailable`, not a user's mistake
    takes_prompts: ClassVar[bool] = False  # whether its text models read captions in a prompt
    measures_bits: ClassVar[bool] = False  # whether its causal models give bits per byte of a corpus: see `competence`
    is_file: ClassVar[bool] = False  # whether a model is a file of features, which has ids, columns and a kind

    # Specs.

    def problem(self, path: str) -> tuple[str, str] | None:
        """What is wrong with a path, and what to do about it; None if nothing is."""
        return None if path else ("nothing after the colon", "name the model")

    def local_part(self, path: str) -> str | None:  # noqa: ARG002
        """The beginning of a path that is a file or folder on this machine; None where it is not."""
        return None

    def parse(self, text: str) -> Spec:
        """All behind `scheme:` as a spec. RepalignError, with the form, where it is none."""
        with_revision = self.has_revisions and self.local_part(text) is None
        path, at, revision = text.partition("@") if with_revision else (text, "", "")
        problem = self.problem(path)
        if problem is None and at and not _REVISION.fullmatch(revision):
            problem = f"the revision {revision!r}", "leave out the @ for the default branch"
        if problem is None:
            return Spec(self.scheme, path, revision or None)
        raise RepalignError(
            f"model spec {f'{self.scheme}:{text}'!r} is not of the form {self.form}", expected=f"for example {self.example}",
            got=problem[0], remedy=problem[1],
        )  # fmt: skip

    def name(self, spec: Spec, entry: ModelEntry) -> str:
        """What a model is called: what the user calls it, or the last part of its path."""
        return entry.name or spec.path.rstrip("/").rpartition("/")[2] or spec.path

    # Before a model is loaded.

    def modality(self, spec: Spec, entry: ModelEntry) -> str | None:
        """What a model reads, as far as its entry, the table of known models or the source says it."""
        return entry.modality or next((k.modality for k in known_models() if k.spec == str(spec)), None)

    def check(self, entry: ModelEntry) -> None:
        """Refuse an entry that says what no model of this source has."""
        what = f"{self.scheme}: models"
        if entry.prompt is not None and not self.takes_prompts:
            refuse_prompt(entry, what)
        if not self.is_file:
            refuse_options_of_files(entry, what)

    @abstractmethod
    def revision(self, spec: Spec, entry: ModelEntry) -> str:
        """What a spec means now: a commit, or a digest of files. Features of another revision are others."""

    @abstractmethod
    def facts(self, spec: Spec, entry: ModelEntry, answer: Answer | None = None) -> Facts:
        """What is known of a model without loading a weight; `answer` is what the hub says of `repository`, if it was asked."""

    def repository(self, spec: Spec) -> Repository | None:  # noqa: ARG002
        """Where on the hub a model's weights are; None if they are not there."""
        return None

    # Loading and running it.

    @abstractmethod
    def load(self, spec: Spec, entry: ModelEntry, context: Context) -> LoadedModel:
        """The model, ready for stimuli."""

    @abstractmethod
    def stand_in(self, asked: Asked) -> StandIn:
        """A tiny local model in place of a real one, for mock runs."""

    # Extractions of former versions.

    def may_skip_sinks(self, entry: ModelEntry) -> bool:  # noqa: ARG002
        """Whether `sink: skip` may give other features than former versions did, and so has another key."""
        return False

    def skipped_sinks_before(self, facts: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether these facts of a former version's extraction under `bos: skip` show the features of `sink: skip`."""
        return False

    def refuse_outdated(self, spec: Spec, entry: ModelEntry, stored: StoredRepresentation) -> None:  # noqa: B027
        """Raise RepalignError for an extraction by a former version that took something else for the layers."""


class Sources(UserDict[str, Source]):
    """Sources by their scheme. A row is a source, or "module:class" of one, which is imported when it is first asked for."""

    def __getitem__(self, scheme: str) -> Source:
        row: Any = self.data[scheme]
        if isinstance(row, str):
            module, _, name = row.partition(":")
            row = self.data[scheme] = getattr(import_module(module), name)()
        return row


def refuse_prompt(entry: ModelEntry, what: str) -> None:
    if entry.prompt is not None:
        raise RepalignError(
            f"model {entry.label}: a prompt does not go with {what}",
            expected="a text model of transformers (hf:) or sentence-transformers (st:)",
            got=f"prompt {entry.prompt!r}", remedy="leave `prompt` out of this model's entry",
        )  # fmt: skip


def refuse_options_of_files(entry: ModelEntry, what: str) -> None:
    """Refuse what only a file of features has."""
    if entry.kind in KINDS:
        raise RepalignError(
            f"model {entry.label}: {said(str(entry.kind))} does not come from {what}",
            expected="a file (array:path) of square arrays", got=f"kind {entry.kind!r}",
            remedy="leave `kind` out of this model's entry: measures make dissimilarities and kernels of its features",
        )  # fmt: skip
    for option in ("rows", "id", "features", "vector", "axes"):
        if getattr(entry, option):
            raise RepalignError(f"model {entry.label}: {what} have no `{option}`", expected="a file (array:path), or none said")


def outdated(entry: ModelEntry, what: str, stored: StoredRepresentation) -> RepalignError:
    return RepalignError(
        f"model {entry.label}: a former version stored {what}", expected="features of this version", got=stored.path,
        remedy="remove that folder, and extract again",
    )  # fmt: skip


def no_modality(entry: ModelEntry, scheme: str, expected: str | None = None) -> RepalignError:
    return RepalignError(
        f"model {entry.label}: {scheme} models do not say which modality they read",
        expected=expected or "the dataset's column, for instance text or image", got="none",
        remedy="add `modality: image` (or text) to the model's entry",
    )  # fmt: skip


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


# One row for each scheme, in the order in which they are listed to the user.
SOURCES = Sources(
    {
        "hf": "repalign.sources.hf:Transformers",
        "timm": "repalign.sources.timm:Timm",
        "st": "repalign.sources.st:SentenceTransformers",
        "openclip": "repalign.sources.openclip:OpenCLIP",
        "torch": "repalign.sources.torch:TorchModules",
        "array": "repalign.sources.array:Arrays",
        "toy": "repalign.sources.toy:Toys",
    }  # type: ignore[dict-item]
)
