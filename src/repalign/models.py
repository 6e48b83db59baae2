"""Models as records of data: what a model is, never how to run it.

`ModelRecord`; the grammar of spec strings (`parse_spec`, `slug`); the models of published studies
(`known_models`, a CSV file beside this module); competences (`COMPETENCES`).
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from repalign.errors import RepalignError, did_you_mean


@dataclass(frozen=True)
class ModelRecord:
    """One model, as data.

    `spec` is the spec string that loads it, `name` a short label that is unique within a study.
    `revision` is what the spec resolved to (a commit, or a digest of local files). `scores` maps a
    competence ("bits_per_byte", "imagenet_top1", ...) to its value; `lower_is_better` is a fact of the
    competence, not of the record. `factors` are facts of its making that alignment can be related to, numbers or
    words: "training_steps", "width", "run" (the training that it comes from, shared by its checkpoints).
    """

    spec: str
    name: str
    modality: str  # "text", "image", or a name of the user's own
    revision: str | None = None
    family: str | None = None
    objective: str | None = None
    n_parameters: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float | str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON holds it; `factors` stand there only where there are any, as before they were known."""
        data = asdict(self)
        return data if self.factors else {k: v for k, v in data.items() if k != "factors"}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelRecord:
        return cls(**data)


# --- the spec grammar ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scheme:
    """One kind of model source: how its specs are written, with an example."""

    form: str
    example: str
    hub: bool = False  # a name on the hub, with an optional revision, or a local folder


SCHEMES: dict[str, Scheme] = {
    "hf": Scheme("hf:org/name[@revision], or hf:./folder", "hf:bigscience/bloomz-560m@main", hub=True),
    "timm": Scheme("timm:name, or timm:./folder", "timm:vit_base_patch14_dinov2.lvd142m"),
    "st": Scheme("st:name[@revision], or st:./folder", "st:sentence-transformers/all-MiniLM-L6-v2", hub=True),
    "openclip": Scheme("openclip:architecture/pretrained", "openclip:ViT-B-32/laion2b_s34b_b79k"),
    "torch": Scheme(
        "torch:package.module:factory, or torch:path/to/file.py:factory", "torch:./my_model.py:build"
    ),
    "array": Scheme("array:path", "array:features.npy"),
    "toy": Scheme("toy:name", "toy:cnn"),
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_NAME = re.compile(r"[\w.+-]+", re.ASCII)
_LOCAL_START = ("/", "./", "../", "~")


@dataclass(frozen=True)
class Spec:
    """A parsed spec string; `str` gives the string back."""

    scheme: str
    path: str  # all between the scheme and the revision
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.scheme}:{self.path}" + (f"@{self.revision}" if self.revision else "")

    @property
    def is_local(self) -> bool:
        """Whether the path is one of files on this machine."""
        if self.scheme == "torch":
            return self.path.rpartition(":")[0].endswith(".py")
        local = SCHEMES[self.scheme].hub or self.scheme == "timm"
        return self.scheme == "array" or (local and _is_local(self.path))

    def resolve(self, base: Path) -> Spec:
        """The same spec with a relative local path made absolute, starting from the folder `base`."""
        if not self.is_local:
            return self
        path, colon, factory = self.path.rpartition(":") if self.scheme == "torch" else (self.path, "", "")
        absolute = os.path.normpath(Path(base).absolute() / Path(path).expanduser())
        return replace(self, path=f"{absolute}{colon}{factory}")


def parse_spec(text: str) -> Spec:
    """Parse a model's spec string, `scheme:path[@revision]`; see `SCHEMES` for the forms.

    For hf and st a path that starts with `/`, `./`, `../` or `~` is a local folder, which has no
    revision; anything else is a name on the hub. Raises RepalignError that says the form.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        raise RepalignError(
            f"model spec {text!r} starts with no known scheme",
            expected=f"scheme:path with one of the schemes {', '.join(SCHEMES)}",
            got=f"scheme {scheme!r}" if colon else "no scheme",
            remedy=did_you_mean(scheme, SCHEMES) if colon else _with_scheme(text),
        )
    if SCHEMES[scheme].hub and not _is_local(rest):
        path, at, revision = rest.partition("@")
        if not _HUB_ID.fullmatch(path):
            raise _malformed(text, scheme, f"the name {path!r}", "a local folder starts with ./, ../, / or ~")
        if at and not _REVISION.fullmatch(revision):
            raise _malformed(
                text, scheme, f"the revision {revision!r}", "leave out the @ for the default branch"
            )
        return Spec(scheme, path, revision or None)
    problem = _problem(scheme, rest)
    if problem is not None:
        raise _malformed(text, scheme, *problem)
    return Spec(scheme, rest)


def _problem(scheme: str, path: str) -> tuple[str, str] | None:
    """What is wrong with a path without a revision, and what to do; None if nothing is."""
    if not path:
        return "nothing after the colon", "name the model"
    if scheme == "timm" and _is_local(path):
        return None
    if scheme in ("timm", "toy") and not _NAME.fullmatch(path):
        return f"the name {path!r}", "a name has letters, digits and . _ + - only, and no revision"
    if scheme == "openclip" and not all(_NAME.fullmatch(p) for p in (path.split("/") if "/" in path else "")):
        return f"{path!r}", "name the architecture and the weights"
    if scheme == "openclip" and path.count("/") != 1:
        return f"{path.count('/')} slashes in {path!r}", "put one slash between architecture and weights"
    if scheme == "torch":
        module, colon, factory = path.rpartition(":")
        if not colon or not _DOTTED.fullmatch(factory):
            return (
                f"no factory in {path!r}",
                "put a colon and the name of the function that builds the model last",
            )
        if not module.endswith(".py") and not _DOTTED.fullmatch(module):
            return f"the module {module!r}", "give a module that can be imported, or a file that ends in .py"
    return None


def _malformed(text: str, scheme: str, got: str, remedy: str) -> RepalignError:
    return RepalignError(
        f"model spec {text!r} is not of the form {SCHEMES[scheme].form}",
        expected=f"for example {SCHEMES[scheme].example}",
        got=got,
        remedy=remedy,
    )


def _with_scheme(text: str) -> str:
    """What to write for a spec without a scheme: that of a known model of this name, or hf."""
    names = {known.name.lower(): known.spec for known in known_models()}
    return f"write {names.get(text.lower(), 'hf:' + text)!r}"


def _is_local(path: str) -> bool:
    return path.startswith(_LOCAL_START) or path in (".", "..")


def slug(spec: Spec | str) -> str:
    """A name for files and folders: the readable part of a spec and eight digits of its SHA-256.

    Only letters, digits and ``. _ -`` occur; different specs have different slugs, also where file
    names ignore case. Of a local path only the last part is readable.
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    path = Path(spec.path).name if spec.is_local else spec.path
    text = f"{spec.scheme}-{path}" + (f"-{spec.revision}" if spec.revision else "")
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:80].strip("-.")
    return f"{readable}-{hashlib.sha256(str(spec).encode()).hexdigest()[:8]}"


# --- known models and competences: data ----------------------------------------------------------


@dataclass(frozen=True)
class KnownModel:
    """A model of a published study, a row of `known_models.csv`; what is not known is None.

    `nominal_parameters` is what the authors call the model's size (of vision models what timm's model cards say, the
    count to a tenth of a million). `parameters` are counted on the architecture, tied weights once and with the head
    that the weights file has; `layers` are those that are extracted (the embeddings and every block of a language model,
    every block of a vision model), all of `width`; `image_tokens` are the patches and the class token of one image.
    `bytes_per_parameter` is how the weights lie on the hub; it is from memory, not looked up: half precision for the
    language models but OLMo, single for OLMo and timm. `gated` models need an account on the hub that has been granted
    access.
    `published_as` are its labels in published figures: "bloom-0.56b" is drawn for what the code calls bloomz-560m,
    and "dinov2" alone is the giant (Figure 4).
    """

    spec: str
    name: str
    modality: str
    family: str
    objective: str
    nominal_parameters: int | None
    parameters: int
    layers: int
    width: int
    image_tokens: int | None
    bytes_per_parameter: int
    model_set: str
    gated: bool
    published_as: tuple[str, ...] = ()

    def record(self) -> ModelRecord:
        """The record to start an extraction from."""
        return ModelRecord(
            spec=self.spec,
            name=self.name,
            modality=self.modality,
            family=self.family,
            objective=self.objective,
        )


@cache
def _known() -> tuple[KnownModel, ...]:
    text = resources.files("repalign").joinpath("known_models.csv").read_text(encoding="utf-8")
    return tuple(
        KnownModel(
            spec=row["spec"],
            name=row["name"],
            modality=row["modality"],
            family=row["family"],
            objective=row["objective"],
            nominal_parameters=int(row["nominal_parameters"]) if row["nominal_parameters"] else None,
            parameters=int(row["parameters"]),
            layers=int(row["layers"]),
            width=int(row["width"]),
            image_tokens=int(row["image_tokens"]) if row["image_tokens"] else None,
            bytes_per_parameter=int(row["bytes_per_parameter"]),
            model_set=row["model_set"],
            gated=row["gated"] == "yes",
            published_as=tuple(filter(None, row["published_as"].split("|"))),
        )
        for row in csv.DictReader(text.splitlines())
    )


def known_models() -> list[KnownModel]:
    """The models of The Platonic Representation Hypothesis: sets "prh-val" and "prh-test".

    Names from the paper's code (`tasks.py`); families and objectives from its Figures 2 and 3. OpenLLaMA's main branches hold
    pickled weights alone: their revisions are those that add the same weights as safetensors.
    """
    return list(_known())


def find_model(name_or_spec: str) -> KnownModel:
    """A known model by its name or its spec."""
    for known in _known():
        if name_or_spec in (known.name, known.spec):
            return known
    names = [k.spec if ":" in name_or_spec else k.name for k in _known()]
    raise RepalignError(
        f"no known model is called {name_or_spec!r}",
        expected="a name or spec that `repalign models` lists",
        got=name_or_spec,
        remedy=did_you_mean(name_or_spec, names)
        + " Any other model is named by its spec, such as hf:org/name.",
    )


def published_model(label: str) -> KnownModel | None:
    """The known model that a published figure labels so, or None; case, spaces, `-` and `_` do not count.

    >>> published_model("bloom 0.56b").name
    'bloomz-560m'
    """
    return _published().get(_plain(label))


@cache
def _published() -> dict[str, KnownModel]:
    return {_plain(label): known for known in _known() for label in (known.name, known.spec, *known.published_as)}


def _plain(label: str) -> str:
    return re.sub(r"[\s_-]+", "", label.casefold())


def model_set(name: str, modality: str | None = None) -> list[KnownModel]:
    """The models of a set ("prh-val": 12 language and 17 vision models; "prh-test": 8 language models)."""
    names = {k.model_set for k in _known()}
    if name not in names:
        raise RepalignError(
            f"there is no model set {name!r}",
            expected=f"one of {', '.join(sorted(names))}",
            got=name,
            remedy=did_you_mean(name, names),
        )
    return [k for k in _known() if k.model_set == name and modality in (None, k.modality)]


@dataclass(frozen=True)
class Competence:
    """How good a model is, by one yardstick: what the number means and which end is the better one."""

    name: str
    label: str
    unit: str
    lower_is_better: bool


COMPETENCES: dict[str, Competence] = {
    c.name: c
    for c in (
        Competence("bits_per_byte", "Bits per byte", "bit/byte", True),
        Competence("bits_per_char", "Bits per character", "bit/character", True),
        Competence("bits_per_word", "Bits per word", "bit/word", True),
        Competence("bits_per_token", "Bits per token", "bit/token", True),
        Competence("nats_per_token", "Nats per token", "nat/token", True),
        Competence("perplexity", "Perplexity per token", "", True),
        Competence("imagenet_top1", "ImageNet top-1 accuracy", "%", False),
        Competence("probe_accuracy", "Linear probe accuracy", "share", False),
        Competence("few_shot_accuracy", "Few-shot probe accuracy", "share", False),
        Competence("knn_accuracy", "k-NN probe accuracy", "share", False),
        Competence("vtab_solved", "VTAB tasks solved", "", False),
        Competence("hellaswag", "HellaSwag accuracy", "share", False),
        Competence("gsm8k", "GSM8K accuracy", "share", False),
        Competence("n_parameters", "Parameters", "", False),
    )
}


def competence(name: str) -> Competence:
    """A competence by name."""
    if name not in COMPETENCES:
        raise RepalignError(
            f"no competence is called {name!r}",
            expected="the name of a competence whose better end is known",
            got=name,
            remedy=did_you_mean(name, COMPETENCES),
        )
    return COMPETENCES[name]
