"""What a source of models is: one object for each scheme of specs, in one table."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from repalign.errors import RepalignError, about, did_you_mean, require
from repalign.layers import KINDS, said
from repalign.models import KnownModel, known_models
from repalign.sources.model import GENERATED, Context, Loaded, LoadedModel, ModelEntry, named_by

if TYPE_CHECKING:
    from repalign.dataset import Dataset
    from repalign.sources.memory import Model
    from repalign.store import StoredRepresentation


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

    def found_in(self, folder: Path) -> Spec | None:
        """A hub's model as a folder of this machine, where `folder` holds its path; None where it does not."""
        there = Path(os.path.normpath(Path(folder).expanduser().absolute() / self.path))
        if self.is_local or self.source.local_part(str(there)) is None or not there.is_dir():
            return None
        return replace(self, path=str(there), revision=None)

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
    if not colon or scheme not in SOURCES:
        names = {known.name.lower(): known.spec for known in known_models()}
        raise RepalignError(
            f"model spec {text!r} starts with no known scheme",
            expected=f"scheme:path with one of the schemes {', '.join(SCHEMES)}",
            got=f"scheme {scheme!r}" if colon else "no scheme",
            remedy=did_you_mean(scheme, SCHEMES) if colon else f"write {names.get(text.lower(), 'hf:' + text)!r}",
        )
    source = SOURCES[scheme]
    with_revision = source.has_revisions and source.local_part(rest) is None
    path, at, revision = rest.partition("@") if with_revision else (rest, "", "")
    problem = source.problem(path) if path else ("nothing after the colon", "name the model")
    if problem is None and at and not _REVISION.fullmatch(revision):
        problem = f"the revision {revision!r}", "leave out the @ for the default branch"
    if problem is None:
        return Spec(scheme, path, revision or None)
    raise RepalignError(
        f"model spec {text!r} is not of the form {source.form}", expected=f"for example {source.example}",
        got=problem[0], remedy=problem[1],
    )  # fmt: skip


def is_local_path(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or path in (".", "..")


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

    kind : of the stimuli that it reads, "text", "image" or "any".
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
    poolings: tuple[str, ...] | None = None  # that may be asked for, where the architecture says more than the source does
    modules: tuple[str, ...] = ()  # whose paths may be asked for as layers beside `names`
    parameters_from: str = UNKNOWN
    layers_from: str = UNKNOWN
    download_from: str = UNKNOWN

    def choose(self, wanted: Sequence[int | str]) -> Facts:
        """Only the layers that the entry asks for; None where it cannot be told how wide they are."""
        if self.widths is None:
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


# --- stand-ins for mock runs ----------------------------------------------------------------------


@dataclass(frozen=True)
class StandIn:
    """A stand-in: its spec, the layers that it has, poolings that it has other ones for, and what there is to say."""

    spec: str
    layers: tuple[str, ...]
    poolings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    n_parameters: int | None = None  # what the real file says of the model
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What a stand-in is made of; `ids` are those of the dataset's stimuli."""

    entry: ModelEntry
    spec: Spec
    name: str
    modality: str
    folder: Path
    ids: tuple[str, ...]
    seed: int


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
    generates: ClassVar[bool] = False  # whether its causal models go on with a text: `pooling: generated`
    measures_bits: ClassVar[bool] = False  # whether its causal models give bits per byte of a corpus: see `competence`
    extra: ClassVar[str] = "models"  # the extra of repalign that installs `packages`, which its models are run by
    packages: ClassVar[tuple[str, ...]] = ()
    # Whether `sink: skip` may give other features than former versions did, and so has another key; but for these modalities.
    may_skip_sinks: ClassVar[bool] = False
    sinkless: ClassVar[tuple[str, ...]] = ()
    is_file: ClassVar[bool] = False  # whether a model is a file of features, which has ids, columns and a kind
    poolings: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # that some of its models have, by the kind of their stimuli

    # Specs.

    def problem(self, path: str) -> tuple[str, str] | None:  # noqa: ARG002
        """What is wrong with a path that is not empty, and what to do about it; None if nothing is."""
        return None

    def local_part(self, path: str) -> str | None:  # noqa: ARG002
        """The beginning of a path that is a file or folder on this machine; None where it is not."""
        return None

    def name(self, spec: Spec, entry: ModelEntry) -> str:
        """What a model is called: what the user calls it, or the last part of its path."""
        return entry.name or spec.path.rstrip("/").rpartition("/")[2] or spec.path

    # Before a model is loaded.

    def modality(self, spec: Spec, entry: ModelEntry) -> str | None:
        """What a model reads, as far as its entry, the table of known models or the source says it."""
        return entry.modality or next((k.modality for k in known_models() if k.spec == str(spec)), None)

    def require(self, entry: ModelEntry) -> None:
        """Refuse a model whose packages are not installed."""
        require(f"model {entry.label}", self.extra, *self.packages)

    def check(self, spec: Spec, entry: ModelEntry) -> None:  # noqa: ARG002
        """Refuse what is known to be wrong with a request before a model is loaded: options, packages, names, files."""
        what = f"{self.scheme}: models"
        if entry.prompt is not None and not self.takes_prompts:
            raise needless_prompt(entry, what)
        if entry.pooling == GENERATED and not self.generates:
            raise no_generation(entry, what)
        if not self.is_file:
            refuse_options_of_files(entry, what)
        if self.packages:
            self.require(entry)

    def reach(self, spec: Spec, entry: ModelEntry) -> None:  # noqa: B027
        """Refuse a model that a run could not have: ask whoever publishes it, or run the user's code. A plan does neither."""

    def check_layers(self, entry: ModelEntry, facts: Facts, wanted: int | str) -> None:
        """Refuse a layer that the model is known to lack."""
        if facts.names and not named_by(wanted, facts.modules):
            entry.named(wanted, facts.names)

    def check_pooling(self, entry: ModelEntry, facts: Facts) -> None:
        """Refuse a pooling that the model, or every model of its kind, is known to lack."""
        known = self.poolings.get(str(facts.kind)) if facts.poolings is None else facts.poolings
        if entry.pooling is not None and known and not set(facts.modules) & set(entry.layers or ()):
            entry.pooled(known)

    def check_data(self, spec: Spec, entry: ModelEntry, facts: Facts, dataset: Dataset) -> None:  # noqa: ARG002
        """Refuse a dataset that has nothing for a model to read."""
        if facts.kind is not None and (facts.kind != "any" or entry.modality is not None):
            with about("modality"):
                column_of(dataset, facts.kind, entry, facts.kind)

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

    # Models that are in memory.

    def takes(self, entry: Model) -> bool:  # noqa: ARG002
        """Whether an object is a model of this source, for which `towers` and `wrap` say what `load` does for a spec."""
        return False

    def towers(self, entry: Model, dataset: Dataset) -> list[Model]:  # noqa: ARG002
        """What an object stands for: one model, or each side of one that reads images and texts. Refuses one that cannot be run."""
        return [entry]

    def wrap(self, spec: Spec, entry: Model, loaded: Loaded) -> LoadedModel:
        """An object, ready for stimuli."""
        raise NotImplementedError

    @contextmanager
    def borrowed(self, entry: ModelEntry) -> Iterator[None]:  # noqa: ARG002
        """As long as a model is held: afterwards an object of the user's is as it was."""
        yield

    # Mock runs.

    @abstractmethod
    def stand_in(self, asked: Asked) -> StandIn:
        """A tiny local model in place of a real one, for mock runs."""

    # Extractions of former versions.

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


def column_of(dataset: Dataset, kind: str, entry: ModelEntry, modality: str) -> str:
    """The dataset's column that a model of this kind reads: the one named, or the only one of its kind."""
    fitting = [m for m in dataset.modalities if kind in ("any", dataset.kind(m))]
    modality = entry.modality or modality
    if modality in fitting:
        return modality
    if kind == "any" or len(fitting) != 1 or entry.modality is not None:
        kinds = "a column of the dataset" if kind == "any" else f"a column of kind {kind}"
        raise RepalignError(
            f"model {entry.label} cannot read column {modality!r} of dataset {dataset.name!r}",
            expected=f"`modality:` naming {kinds}", got=", ".join(f"{m} ({dataset.kind(m)})" for m in dataset.modalities),
            remedy=f"add `modality: {fitting[0]}` to the model" if fitting else "use a dataset with that modality",
        )  # fmt: skip
    return fitting[0]


def needless_prompt(entry: ModelEntry, what: str) -> RepalignError:
    return RepalignError(
        f"model {entry.label}: a prompt does not go with {what}",
        expected="a text model of transformers (hf:) or sentence-transformers (st:)",
        got=f"prompt {entry.prompt!r}", remedy="leave `prompt` out of this model's entry",
    )  # fmt: skip


def no_generation(entry: ModelEntry, what: str) -> RepalignError:
    return RepalignError(
        f"model {entry.label}: {what} go on with no text", got=f"pooling {GENERATED!r}",
        expected="a causal language model of transformers (hf:), which predicts the next token", remedy="choose another `pooling`",
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
        "memory": "repalign.sources.memory:InMemory",
    }  # type: ignore[dict-item]
)
SCHEMES = [scheme for scheme in SOURCES if scheme != "memory"]  # that a spec may be written with; objects are handed over


def facts_of(entries: Sequence[ModelEntry], patience: float = 3.0) -> list[Facts]:
    """What is known of every model before it is loaded.

    Those of published studies are in a table; files on this machine are read; of the rest the hub is asked, all at once, and
    what it does not answer within `patience` seconds is not known.
    """
    specs = [parse_spec(e.spec) for e in entries]
    table = {k.spec: k for k in known_models()}
    repositories = {s: s.source.repository(s) for s in specs if str(s) not in table and s.source.published}
    answers: dict[Repository, Answer] = {}
    if any(repositories.values()):
        from repalign.sources.hub import ask_hub

        answers = ask_hub([r for r in repositories.values() if r is not None], patience)
    out = []
    for entry, spec in zip(entries, specs, strict=True):
        known, repository = table.get(str(spec)), repositories.get(spec)
        answer = None if repository is None else answers.get(repository)
        try:
            facts = spec.source.facts(spec, entry, answer) if known is None else _known(spec, known)
        except ImportError:  # the run will name the extra that is missing; until then nothing is known
            facts = Facts()
        if facts.parameters is None and entry.n_parameters is not None:
            facts = replace(facts, parameters=entry.n_parameters, parameters_from=FILE)
        out.append(facts if entry.layers is None else facts.choose(entry.layers))
    return out


def _known(spec: Spec, known: KnownModel) -> Facts:
    from repalign.sources.hub import cached_weights

    repository = spec.source.repository(spec)
    size = known.parameters * known.bytes_per_parameter
    there = repository is not None and cached_weights(repository) is not None
    blocks = [f"block.{i}" for i in range(known.layers - (known.modality == "text"))]  # of text the embeddings come first
    return Facts(
        kind=known.modality, parameters=known.parameters, widths=(known.width,) * known.layers, file_bytes=size,
        names=("embeddings", *blocks) if known.modality == "text" else tuple(blocks),
        stored={2: torch.float16, 4: torch.float32}[known.bytes_per_parameter], download_bytes=0 if there else size,
        tokens=known.image_tokens, parameters_from=KNOWN, layers_from=KNOWN, download_from=FILE if there else KNOWN,
    )  # fmt: skip
