"""What a source of representations is, and what a user may ask of it."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repalign.errors import RepalignError, Unavailable, did_you_mean
from repalign.layers import FEATURES, KINDS, said
from repalign.models import ModelRecord, Spec
from repalign.sources.trace import images_shown
from repalign.text import Progress, silent

STORE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
RUN_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
CHOICES: dict[str, tuple[str | None, ...]] = {
    "sink": ("skip", "keep"),
    "padding": ("right", "left", "none"),
    "store_dtype": tuple(STORE_DTYPES),
    "ids": (None, "rows"),
    "kind": (None, FEATURES, *KINDS),
}
DIGEST_BYTES = 2**28
HOUSE = str(Path(__file__).parents[1])  # where the code of this package is
LEFT_OUT = "left out"  # the fact of a first token that does not enter the mean
CAPTION = "{caption}"  # where a prompt takes the text in
NO_BOS = "all; the tokenizer adds no beginning-of-sequence token"  # the tokens of a mean that has such a model's sink in it


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
        if self.features is not None and not isinstance(self.features, str):
            object.__setattr__(self, "features", tuple(self.features))
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        for option, known in CHOICES.items():
            value = getattr(self, option)
            if value not in known:
                raise RepalignError(
                    f"model {self.label}: unknown {option} {value!r}",
                    expected=" or ".join(repr(k) for k in known if k),
                    got=value,
                    remedy=did_you_mean(str(value), [k for k in known if k]),
                )
        if self.layers == ():
            raise RepalignError(
                f"model {self.label}: an empty list of layers",
                remedy="name layers, or leave `layers` out for all of them",
            )
        if self.caption < 0:
            raise RepalignError(f"model {self.label}: caption is out of range", expected=">= 0", got=self.caption)
        if self.prompt is not None and self.prompt.count(CAPTION) != 1:
            raise RepalignError(
                f"model {self.label}: the prompt does not say where the caption goes",
                expected=f"a text with {CAPTION} in it, once",
                got=f"{self.prompt!r}, with {self.prompt.count(CAPTION)}",
            )

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
        if self.sink == "keep" or not self._may_pool_texts:
            said["bos"] = said.pop("sink")
        return {**said, "dtype": dtype}

    def former_settings(self, dtype: str) -> dict[str, Any]:
        """The settings under which former versions stored what may be the same features."""
        said = self.settings(dtype)
        return {k: v for k, v in said.items() if k != "sink"} | {"bos": self.sink}

    @property
    def _may_pool_texts(self) -> bool:
        scheme = self.spec.partition(":")[0]
        return scheme in ("hf", "st") or (scheme == "openclip" and self.modality != "image")

    def complete(self, record: ModelRecord) -> ModelRecord:
        """The record with what the user says of the model put over what the source found."""
        said = {f: getattr(self, f) for f in ("name", "family", "objective", "n_parameters")}
        said = {f: v for f, v in said.items() if v is not None}
        return replace(
            record,
            **said,
            scores={**record.scores, **self.scores},
            factors={**record.factors, **self.factors},
        )


def as_asked_today(spec: str, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stored extraction in today's words.

    Former versions left out a beginning-of-sequence token (`bos: skip`), and nothing where the tokenizer adds none. Only
    what was pooled so that this token does not matter, or without it, is what `sink: skip` gives. Of images only
    what their facts show to be right is reused (see `images_shown`).
    """
    same = spec.startswith("hf:") and settings.get("bos") == "skip" and facts.get("tokens") != NO_BOS
    return {k: v for k, v in settings.items() if k != "bos"} | {"sink": "skip"} if same and images_shown(facts) else dict(settings)


@dataclass(frozen=True)
class Skipped:
    """A model that was left out because it is not to be had here and now: see `errors.Unavailable`."""

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


class Source(ABC):
    """A loaded model, or a file of features: stimuli in, one vector per stimulus and layer out."""

    kind: ClassVar[str | None] = None  # of the stimuli: "text", "image", "any"; None: it reads row numbers
    sorts: ClassVar[bool] = False  # whether stimuli have lengths, and batches are to hold those of like length
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


# --- what sources share ------------------------------------------------------------------------


@contextmanager
def library_errors(label: str, doing: str, kind: type[RepalignError] = RepalignError) -> Iterator[None]:
    """Tell what a library raises inside the block as one error of `kind`: the model, what was being done, what to do.

    What this package raises passes as it is: its messages, and its own faults, which need their traceback. The innermost
    frame says whose an error is. A memory that runs out passes too: the loop takes smaller batches then.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RepalignError) or out_of_memory(error):
            raise
        file, line = _raised_at(error)
        if file.startswith(HOUSE):
            raise
        said = (str(error).strip().splitlines() or [""])[0][:300]
        raise kind(
            f"model {label}: {doing} failed in its library: {type(error).__name__}: {said}",
            expected="a model that the installed libraries run as they are asked to",
            got=f"{type(error).__name__} in {'/'.join(Path(file).parts[-3:])}, line {line}",
            remedy="check that its files are whole and that the libraries know it, or upgrade them; modules of any model can be "
            "read by a torch: spec, whose function builds it and feeds it",
        ) from error


@contextmanager
def loading(label: str, kind: type[RepalignError]) -> Iterator[None]:
    """`library_errors` around the loading of a model and its first pass, where a memory that runs out is the end."""
    try:
        with library_errors(label, "loading it, or its first pass,", kind):
            yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise kind(
            f"model {label}: the memory ran out while it was loaded",
            got=str(error).strip().partition("\n")[0][:300] or type(error).__name__,
            remedy="see that nothing else uses the device, take a smaller dtype, or spread it with `device: sharded`",
        ) from error


def _raised_at(error: BaseException) -> tuple[str, int]:
    """File and line of the innermost Python frame that an error comes from."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return ("", 0) if frame is None else (frame.tb_frame.f_code.co_filename, frame.tb_lineno)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device or of the machine ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    signs = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)


def choose(layers: Sequence[Layer], wanted: Sequence[int | str] | None, label: str) -> tuple[Layer, ...]:
    """The chosen layers, in depth order; indices may be negative. RepalignError for what is not there."""
    if wanted is None:
        return tuple(layers)
    names = [layer.name for layer in layers]
    chosen: set[str] = set()
    for w in wanted:
        if isinstance(w, int) and not isinstance(w, bool):
            if not -len(names) <= w < len(names):
                raise RepalignError(
                    f"model {label}: no layer {w}",
                    expected=f"an index from {-len(names)} to {len(names) - 1}",
                    got=w,
                    remedy=f"the layers are {names[0]} (0) to {names[-1]} ({len(names) - 1})",
                )
            chosen.add(names[w])
        elif w in names:
            chosen.add(w)
        else:
            raise RepalignError(
                f"model {label}: no layer {w!r}",
                expected=f"one of {len(names)} layers, from {names[0]!r} to {names[-1]!r}, or an index",
                got=w,
                remedy=did_you_mean(str(w), names),
            )
    return tuple(layer for layer in layers if layer.name in chosen)


def choose_pooling(asked: str | None, known: Sequence[str], label: str) -> str:
    """The pooling to use, by default the first of those that the model has."""
    pooling = known[0] if asked is None else asked
    if pooling not in known:
        raise RepalignError(
            f"model {label}: pooling {pooling!r} does not apply",
            expected=f"one of {', '.join(known)}",
            got=pooling,
            remedy=did_you_mean(pooling, known),
        )
    return pooling


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
    if asked not in RUN_DTYPES:
        known = ["auto", "stored", *RUN_DTYPES]
        raise RepalignError(
            f"model {label}: unknown dtype {asked!r}",
            expected=", ".join(known),
            got=asked,
            remedy=did_you_mean(asked, known),
        )
    return RUN_DTYPES[asked]


def run_facts(dtype: torch.dtype, stored: torch.dtype | None, *packages: str) -> dict[str, Any]:
    """The facts that every model that is run has to state."""
    return {
        "dtype": shown_dtype(dtype),
        "stored_dtype": "unknown" if stored is None else shown_dtype(stored),
        "pooled_in": "float32",
        "versions": versions(*packages),
    }


def shown_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def prompt_facts(entry: ModelEntry) -> dict[str, Any]:
    """What a model that takes prompts has to state besides, where it has one."""
    return {} if entry.prompt is None else {"captions_stand_in": entry.prompt}


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


def refuse_kind(entry: ModelEntry, what: str) -> None:
    """Refuse a model that is run of which something is said that only a file of features has."""
    if entry.kind in KINDS:
        raise RepalignError(
            f"model {entry.label}: {said(str(entry.kind))} does not come from {what}",
            expected="a file (array:path) of square arrays", got=f"kind {entry.kind!r}",
            remedy="leave `kind` out of this model's entry: measures make dissimilarities and kernels of its features",
        )  # fmt: skip
    for option in ("rows", "id", "features", "vector", "axes"):
        if getattr(entry, option):
            raise RepalignError(f"model {entry.label}: {what} have no `{option}`", expected="a file (array:path), or none said")


def refuse_prompt(entry: ModelEntry, what: str) -> None:
    """Refuse a prompt of a model that does not read text by a tokenizer of its own."""
    if entry.prompt is not None:
        raise RepalignError(
            f"model {entry.label}: a prompt does not go with {what}",
            expected="a text model of transformers (hf:) or sentence-transformers (st:)",
            got=f"prompt {entry.prompt!r}",
            remedy="leave `prompt` out of this model's entry",
        )


def token_facts(entry: ModelEntry, pooling: str, causal: bool, is_sink: bool) -> dict[str, Any]:
    """Whether tokens see only those before them, and what a mean does with the first one of each text."""
    if pooling != "mean":
        return {"causal": causal}
    return {"causal": causal, "first_token": LEFT_OUT if causal and is_sink and entry.sink == "skip" else "counts"}


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them; what it does not is told as text."""
    return json.loads(json.dumps(dict(settings), default=str, sort_keys=True))


def short_name(spec: Spec) -> str:
    """A label for a model whose user gave none: the last part of its path."""
    return spec.path.rstrip("/").rpartition("/")[2] or spec.path


def no_modality(
    label: str, scheme: str, expected: str = "the dataset's column, for instance text or image"
) -> RepalignError:
    return RepalignError(
        f"model {label}: {scheme} models do not say which modality they read",
        expected=expected,
        got="none",
        remedy="add `modality: image` (or text) to the model's entry",
    )


def merged(pieces: list[tuple[list[int], Batch]]) -> Batch:
    """Batches of some rows each as one batch of all rows in order."""
    order = torch.tensor([row for rows, _ in pieces for row in rows]).argsort()
    parts = [batch for _, batch in pieces]
    layers = {n: torch.cat([p.layers[n] for p in parts])[order] for n in parts[0].layers}
    return Batch(layers, {n: torch.cat([p.extras[n] for p in parts])[order] for n in parts[0].extras})
