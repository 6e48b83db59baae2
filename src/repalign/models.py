"""Models as records of data: what a model is, never how to run it (that is `repalign.sources`).

`ModelRecord`; the models of published studies (`known_models`, a CSV file beside this module); competences (`COMPETENCES`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from repalign.errors import RepalignError, choose, did_you_mean


@dataclass(frozen=True)
class ModelRecord:
    """One model, as data.

    `spec` is the spec string that loads it, `name` a short label that is unique within a study.
    `revision` is what the spec resolved to (a commit, or a digest of local files). `scores` maps a
    competence ("bits_per_byte", "imagenet_top1", ...) to its value; `lower_is_better` is a fact of the
    competence, not of the record. `factors` are facts of its making that alignment can be related to, numbers or
    words: "training_steps", "width", "released" (a year, see `year_of`), "run" (the training that it comes from, shared by its
    checkpoints). The `objective` "untrained" marks random weights, "none" raw input without a network (`training_of`).
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


# What records call networks with random weights, and inputs that no network has seen (pixels, bags of words).
RANDOM, NO_NETWORK = ("untrained", "random"), "none"


def training_of(record: Mapping[str, Any]) -> str:
    """What the record of a model says of its training: "untrained", "none" (raw input) or, if it says neither, "trained"."""
    objective = str(record.get("objective") or "").casefold()
    if objective == NO_NETWORK:
        return objective
    return "untrained" if objective in RANDOM or (record.get("factors") or {}).get("training_steps") == 0 else "trained"


RELEASED = "released"


def year_of(month: str) -> float:
    """A month, YYYY-MM, as a number of years: its middle.

    >>> year_of("2022-10")
    2022.7917
    """
    year, _, rest = month.partition("-")
    if not (len(year) == 4 and year.isdigit() and rest.isdigit() and 1 <= int(rest) <= 12):
        raise RepalignError("no month", expected="YYYY-MM", got=month)
    return round(int(year) + (int(rest) - 0.5) / 12, 4)


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
    and "dinov2" alone is the giant (Figure 4). `released` is the month in which the weights became public (of OpenLLaMA, the
    last ones; of fine-tuned CLIP, timm 0.8); None where it is not known for sure.
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
    released: str | None = None

    @property
    def factors(self) -> dict[str, float | str]:
        """What its record has among its factors: the year of its release, as a number."""
        return {} if self.released is None else {RELEASED: year_of(self.released)}

    def record(self) -> ModelRecord:
        """The record to start an extraction from."""
        about = {"family": self.family, "objective": self.objective, "factors": self.factors}
        return ModelRecord(self.spec, self.name, self.modality, **about)


@cache
def known_models() -> tuple[KnownModel, ...]:
    """The models of The Platonic Representation Hypothesis: sets "prh-val" and "prh-test".

    Names from the paper's code (`tasks.py`); families and objectives from its Figures 2 and 3. OpenLLaMA's main branches hold
    pickled weights alone: their revisions are those that add the same weights as safetensors.
    """
    text = resources.files("repalign").joinpath("known_models.csv").read_text(encoding="utf-8")
    whole = ("nominal_parameters", "parameters", "layers", "width", "image_tokens", "bytes_per_parameter")
    out = []
    for row in csv.DictReader(text.splitlines()):
        said: dict[str, Any] = {**row, **{name: int(row[name]) if row[name] else None for name in whole}}
        said |= {"gated": row["gated"] == "yes", "published_as": tuple(filter(None, row["published_as"].split("|")))}
        said["released"] = row["released"] or None
        out.append(KnownModel(**said))
    return tuple(out)


def find_model(name_or_spec: str) -> KnownModel:
    """A known model by its name or its spec."""
    for known in known_models():
        if name_or_spec in (known.name, known.spec):
            return known
    names = [k.spec if ":" in name_or_spec else k.name for k in known_models()]
    raise RepalignError(
        f"no known model is called {name_or_spec!r}", expected="a name or spec that `repalign models` lists", got=name_or_spec,
        remedy=did_you_mean(name_or_spec, names) + " Any other model is named by its spec, such as hf:org/name.",
    )  # fmt: skip


def published_model(label: str) -> KnownModel | None:
    """The known model that a published figure labels so, or None; case, spaces, `-` and `_` do not count.

    >>> published_model("bloom 0.56b").name
    'bloomz-560m'
    """
    return _published().get(_plain(label))


@cache
def _published() -> dict[str, KnownModel]:
    return {_plain(label): known for known in known_models() for label in (known.name, known.spec, *known.published_as)}


def _plain(label: str) -> str:
    return re.sub(r"[\s_-]+", "", label.casefold())


def model_set(name: str, modality: str | None = None) -> list[KnownModel]:
    """The models of a set ("prh-val": 12 language and 17 vision models; "prh-test": 8 language models)."""
    choose("model set", name, sorted({k.model_set for k in known_models()}), f"there is no model set {name!r}")
    return [k for k in known_models() if k.model_set == name and modality in (None, k.modality)]


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
        Competence("truthfulqa_mc2", "TruthfulQA accuracy (MC2)", "share", False),
        Competence("n_parameters", "Parameters", "", False),
    )
}


def competence(name: str) -> Competence:
    """A competence by name."""
    return COMPETENCES[choose("competence", name, COMPETENCES, f"no competence is called {name!r}")]
