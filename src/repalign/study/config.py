"""The fields of a study file."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from repalign.dataset._config import DatasetConfig


class Block(BaseModel):
    """A mapping of the file: no field but those that it has."""

    model_config = ConfigDict(extra="forbid", frozen=True)


LONGEST = 200  # bytes of a name that is a folder's: file systems take 255, and a mock's name is longer
STORE = "store"  # the folder beside those of the studies, which their features share


def _check_name(name: str) -> str:
    """A study's name is that of the folder in which it writes, below `runs/`."""
    parts = re.split(r"[/\\]", name)
    if any(ord(c) < 32 or ord(c) == 127 for c in name) or not name.strip():
        raise ValueError("the name of a study is a folder's: it has no control characters, and is not blank")
    if Path(name).is_absolute() or PureWindowsPath(name).drive or any(p.strip() in ("", ".", "..") for p in parts):
        raise ValueError("the name of a study is a folder's inside `runs/`: it is not absolute, and has no `.` or `..` in it")
    if max(len(p.encode()) for p in parts) > LONGEST:
        raise ValueError(f"the name of a study is a folder's: it has {LONGEST} bytes at most")
    if parts[0].casefold() == STORE:
        raise ValueError(f"`runs/{STORE}` is where the features of all studies are kept: give the study another name")
    return name


def _check_place(place: str | None) -> str | None:
    """A path, or a URL, whose parts a file system takes."""
    if place is not None and max(len(p.encode()) for p in place.split("/")) > 255:
        raise ValueError("a part of this path is longer than a file's name can be (255 bytes)")
    return place


Name = Annotated[str, Field(min_length=1), AfterValidator(_check_name)]
Place = Annotated[str | None, AfterValidator(_check_place)]


class ModelOptions(Block):
    """How a model is to be read (see `extract.ModelEntry`); for one model, or for all of a side."""

    modality: str | None = None
    pooling: str | None = None
    layers: list[int | str] | None = None
    caption: int = Field(default=0, ge=0)
    prompt: str | None = None
    sink: str = "skip"
    padding: str = "right"
    truncate: bool = False
    store_dtype: str = "float32"
    ids: str | None = None
    rows: bool = False
    id: str | None = None
    features: str | list[str] | None = None
    vector: str | None = None
    axes: str | None = None
    kind: str | None = None


class ModelConfig(ModelOptions):
    """One model with its options, or a `set` of known models."""

    spec: str | None = None
    set: str | None = None
    name: str | None = None
    family: str | None = None
    objective: str | None = None
    n_parameters: int | None = Field(default=None, ge=0)
    scores: dict[str, float] = Field(default_factory=dict)
    factors: dict[str, float | str] = Field(default_factory=dict)


class SideOptions(Block):
    """Options of all models of a side; what a model says itself counts more."""

    x: ModelOptions = ModelOptions()
    y: ModelOptions = ModelOptions()


class SidesConfig(Block):
    """Two sides: every model of x against every model of y."""

    x: list[str | ModelConfig] = Field(min_length=1)
    y: list[str | ModelConfig] = Field(min_length=1)
    options: SideOptions = SideOptions()


class ExtractConfig(Block):
    """How models are run; `on_unavailable: skip` leaves out models that are gated or not there, and says so."""

    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = Field(default=32, ge=1)
    rows_per_part: int = Field(default=256, ge=1)
    trust_remote_code: bool = False
    on_unavailable: Literal["error", "skip"] = "error"


class NullConfig(Block):
    """What chance is: `auto`, `permutation`, `cyclic` or `aristotelian`.

    `draws` counts random permutations, `relabellings` multiplies the draws of the cyclic null. `groups` is a table (CSV, TSV,
    JSONL or Parquet) with the columns id and group: stimuli change places `within` their group, or `whole` groups do.
    """

    method: str = "auto"
    draws: int | None = Field(default=None, ge=1)
    relabellings: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0)
    groups: str | None = None
    shuffle: str = "within"


class CeilingsConfig(Block):
    """What could be reached: `replicates` names pairs of models that are two trainings of one, `split_half` counts
    random halvings of the stimuli."""

    replicates: list[tuple[str, str]] = []
    split_half: int = Field(default=0, ge=0)


class PreprocessConfig(Block):
    """What is done to all layers before measuring (see `preprocess.Preprocess`)."""

    clip: str | None = None
    quantile: float = Field(default=0.95, gt=0, le=1)
    clip_scope: str = "representation"
    normalize_rows: bool = False
    concatenate: bool = False


class RowsConfig(Block):
    """Compare on a random sample of the rows: models are run on all, once (`representation.sample_rows`)."""

    n: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


class BrokenConfig(Block):
    """A share of the stimuli of side x has the vectors of others (`representation.break_pairs`)."""

    share: float = Field(ge=0, le=1)
    seed: int = Field(default=0, ge=0)


class CaptionsConfig(Block):
    """How many captions of each stimulus the models of a side are averaged over."""

    x: int = Field(default=1, ge=1)
    y: int = Field(default=1, ge=1)


class BitsConfig(Block):
    """Bits per byte of a corpus, for every causal model of the hub or of a folder (see `competence.BitsProtocol`).

    `corpus` is a file, or `hub:org/name`. They are computed once and kept beside the results.
    """

    corpus: str
    column: str | None = None
    documents: str | None = None
    split: str | None = None
    revision: str | None = None
    context: int | None = Field(default=None, ge=2)
    stride: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=8, ge=1)


class CompetenceConfig(Block):
    """How good the models are, beside what their records say.

    `lm_eval`: result files of lm-evaluation-harness, or folders of them; `timm`: timm's result tables; `csv`: tables with a
    column `model` and one column per score. `bits_per_byte`: computed here.
    """

    lm_eval: list[str] = []
    timm: list[str] = []
    csv: list[str] = []
    bits_per_byte: BitsConfig | None = None

    @field_validator("lm_eval", "timm", "csv", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class AlignmentConfig(Block):
    """A study that compares models on a dataset."""

    name: Name
    description: str | None = None
    dataset: DatasetConfig
    models: SidesConfig | list[str | ModelConfig]
    extract: ExtractConfig = ExtractConfig()
    captions: CaptionsConfig = CaptionsConfig()
    competence: CompetenceConfig = CompetenceConfig()
    rows: RowsConfig | None = None
    broken_pairs: BrokenConfig | None = None
    measures: list[str] | None = Field(default=None, min_length=1)
    limit: float | None = Field(default=None, gt=0)
    preset: str | None = None
    preprocess: PreprocessConfig | None = None
    null: NullConfig = NullConfig()
    ceilings: CeilingsConfig = CeilingsConfig()
    search: str | None = None
    alpha: float = Field(default=0.05, gt=0, lt=1)
    variants: dict[str, dict[str, Any] | None] = {}
    sweep: dict[str, list[Any] | dict[Any, Any]] = {}
    figures: list[dict[str, dict[str, Any] | None]] = []
    published: str | None = None
    store: Place = None
    results: Place = None
    report: Place = None
