"""The fields of a study file that compares models: what one run is of, and what is of the study as a whole."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from repalign.dataset import DatasetConfig
from repalign.study.base import Block, Place, StudyBlock


class ModelOptions(Block):
    """How a model is to be read (see `sources.ModelEntry`); for one model, or for all of a side."""

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
    """What chance is: the name of a null (see `repalign.null.NULLS`).

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

    replicates: list[tuple[str, str]] = Field(default_factory=list)
    split_half: int = Field(default=0, ge=0)


class PreprocessConfig(Block):
    """What is done to all layers before measuring (see `comparison.Preprocess`)."""

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
    """How good the models are, in addition to what their records say.

    `lm_eval`: result files of lm-evaluation-harness, or folders of them; `timm`: timm's result tables; `csv`: tables with a
    column `model` and one column per score. `bits_per_byte`: computed here.
    """

    lm_eval: list[str] = Field(default_factory=list)
    timm: list[str] = Field(default_factory=list)
    csv: list[str] = Field(default_factory=list)
    bits_per_byte: BitsConfig | None = None

    @field_validator("lm_eval", "timm", "csv", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class RunConfig(Block):
    """One run: what is compared with what, and how. A variant of the study may change any of these fields."""

    dataset: DatasetConfig
    models: SidesConfig | list[str | ModelConfig]
    extract: ExtractConfig = ExtractConfig()
    captions: CaptionsConfig = CaptionsConfig()
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


class AlignmentConfig(StudyBlock, RunConfig):
    """A study that compares models on a dataset: its run, its variants, and what is of the study as a whole."""

    competence: CompetenceConfig = CompetenceConfig()
    variants: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    sweep: dict[str, list[Any] | dict[Any, Any]] = Field(default_factory=dict)
    figures: list[dict[str, dict[str, Any] | None]] = Field(default_factory=list)
    published: str | None = None
    store: Place = None
