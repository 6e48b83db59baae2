"""The fields of a study file that compares models: what one run is of, and what is of the study as a whole."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BeforeValidator, Field, WithJsonSchema, create_model

from repalign.dataset import DatasetConfig
from repalign.sources.model import ABOUT, ModelEntry
from repalign.study.base import Block, Place, StudyBlock

ONE_OR_SEVERAL = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Paths = Annotated[
    list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value), WithJsonSchema(ONE_OR_SEVERAL)
]

# All that may be asked of a model, whichever it is; where YAML has lists for tuples, or a bound tells the mistake in its words.
_HINTS = get_type_hints(ModelEntry) | {
    "layers": list[int | str] | None, "features": str | list[str] | None, "caption": Annotated[int, Field(ge=0)],
}  # fmt: skip
_ASKED: Any = {f.name: (_HINTS[f.name], f.default) for f in fields(ModelEntry) if f.metadata != ABOUT}
_Options: Any = create_model("_Options", __base__=Block, **_ASKED)


class ModelOptions(_Options):
    """How a model is read: for one model, or for all models of a side (see `sources.ModelEntry`).

    Parameters
    ----------
    modality : What the model reads, such as image or text. Needed only where neither the model nor its side says it.
    pooling : How the many vectors of one stimulus become one: mean, last, cls, spatial_mean, generated (the mean over what a
        language model goes on with) and others; the source has a default.
    tokens : How many tokens `pooling: generated` goes on with.
    layers : Layers to keep, by name or index; negative ones count from the end. All layers by default.
    caption : Which of several captions a text model reads, from 0.
    prompt : A text around every caption, such as "An image of {caption}".
    sink : skip leaves the first token of a text out of a mean where it is a sink (a token with a huge norm and little meaning);
        keep counts it.
    padding : Where texts of a batch are padded: right, left, or none (batches of texts of one length).
    truncate : Cut texts that are longer than the model's context. They are an error otherwise.
    store_dtype : Precision of stored features: float32, float16 or float64.
    ids : rows, for an array without ids: row i belongs to stimulus i of the data set.
    rows : Pair the rows of an array by position, although it has ids.
    id : Of an array: the column or array that names its rows.
    features : Of an array: the columns that are the features, such as "emb_*".
    vector : Of an array: the block that is the layer.
    axes : Of an array with three dimensions: nld or lnd, for stimuli (n), layers (l), width (d).
    kind : Of an array: rdm or kernel, if it holds dissimilarities or a kernel; features, if a symmetric array holds features
        after all.
    """


class ModelConfig(ModelOptions):
    """One model with its options, or a `set` of known models.

    Parameters
    ----------
    spec : Where the model is: scheme:path, such as hf:org/name or array:file.npy.
    set : A set of known models, in place of `spec` (see `repalign models`).
    name : What the model is called in tables and figures.
    family : Models of one family count as one unit in trends.
    objective : How it was trained, such as contrastive or untrained.
    n_parameters : Its number of parameters, where the source does not know it.
    scores : How good it is, by the name of a benchmark, such as {hellaswag: 0.31}.
    factors : What else may matter, such as {width: 768}; figures and trends can use it.
    """

    spec: str | None = None
    set: str | None = None
    name: str | None = None
    family: str | None = None
    objective: str | None = None
    n_parameters: int | None = Field(default=None, ge=0)
    scores: dict[str, float] = Field(default_factory=dict)
    factors: dict[str, float | str] = Field(default_factory=dict)


class SideOptions(Block):
    """Options of all models of a side; what a model says itself goes first.

    Parameters
    ----------
    x : Options of the models of x.
    y : Options of the models of y.
    """

    x: ModelOptions = ModelOptions()
    y: ModelOptions = ModelOptions()


class SidesConfig(Block):
    """Two sides: every model of x is compared with every model of y.

    Parameters
    ----------
    x : Models of the first side.
    y : Models of the second side.
    options : Options of all models of a side.
    """

    x: list[str | ModelConfig] = Field(min_length=1)
    y: list[str | ModelConfig] = Field(min_length=1)
    options: SideOptions = SideOptions()


class ExtractConfig(Block):
    """How models are run.

    Parameters
    ----------
    device : auto, cpu, cuda, cuda:1, mps (an Apple GPU), or sharded (one model over all CUDA GPUs).
    dtype : Precision in which models run: auto, stored (that of the weights), float32, bfloat16 or float16.
    batch_size : Stimuli that a model reads at once.
    rows_per_part : Stimuli per file of the store; a killed run repeats at most one such part.
    trust_remote_code : Run code that comes with a model of the hub.
    on_unavailable : error, or skip: leave out models that are gated or cannot be found, and say so in the report.
    """

    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = Field(default=32, ge=1)
    rows_per_part: int = Field(default=256, ge=1)
    trust_remote_code: bool = False
    on_unavailable: Literal["error", "skip"] = "error"


class NullConfig(Block):
    """What chance is.

    Parameters
    ----------
    method : auto, or the name of a null: permutation, cyclic, aristotelian.
    draws : Number of random shuffles.
    relabellings : Multiplies the shuffles of the cyclic null, for smaller p-values.
    seed : Of the random shuffles.
    groups : A table (CSV, TSV, JSONL or Parquet) with the columns id and group: stimuli that belong together.
    shuffle : within shuffles stimuli inside their group; whole shuffles whole groups.
    """

    method: str = "auto"
    draws: int | None = Field(default=None, ge=1)
    relabellings: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0)
    groups: str | None = None
    shuffle: str = "within"


class CeilingsConfig(Block):
    """What could be reached at best.

    Parameters
    ----------
    replicates : Pairs of models, by name, that are two trainings of one model.
    split_half : How often the stimuli are halved at random to test the choice of layers.
    """

    replicates: list[tuple[str, str]] = Field(default_factory=list)
    split_half: int = Field(default=0, ge=0)


class PreprocessConfig(Block):
    """What is done to all layers before they are measured (see `comparison.Preprocess`).

    Parameters
    ----------
    clip : Clip outlying values: exact or mean, which differ in how the threshold is found.
    quantile : Share of values below the threshold; 1 clips nothing.
    clip_scope : representation: one threshold for all layers of a model; layer: one for each.
    normalize_rows : Divide every row by its length.
    concatenate : Add a last layer, all layers side by side.
    """

    clip: str | None = None
    quantile: float = Field(default=0.95, gt=0, le=1)
    clip_scope: str = "representation"
    normalize_rows: bool = False
    concatenate: bool = False


class RowsConfig(Block):
    """Compare on a random sample of the rows; models still run on all rows, once.

    Parameters
    ----------
    n : Number of rows.
    seed : Of the sample.
    """

    n: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


class BrokenConfig(Block):
    """Break some pairs on purpose: their stimuli in x get the vectors of other stimuli.

    Parameters
    ----------
    share : Share of the stimuli, from 0 to 1.
    seed : Of the choice.
    """

    share: float = Field(ge=0, le=1)
    seed: int = Field(default=0, ge=0)


class CaptionsConfig(Block):
    """How many captions of each stimulus are averaged.

    Parameters
    ----------
    x : Captions per stimulus for models of x.
    y : Captions per stimulus for models of y.
    """

    x: int = Field(default=1, ge=1)
    y: int = Field(default=1, ge=1)


class BitsConfig(Block):
    """Bits per byte of a text corpus, for every causal language model; computed once and kept (see `competence.BitsProtocol`).

    Parameters
    ----------
    corpus : A file, or hub:org/name.
    column : The column of a table that holds the texts.
    documents : The text that separates documents in a plain file.
    split : Of a data set on the hub.
    revision : Of a data set on the hub.
    context : Tokens that a model sees at once.
    stride : How far the window of tokens moves on.
    max_tokens : Stop after the document in which this many tokens are reached.
    batch_size : Windows that a model reads at once.
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
    """How good the models are, in addition to their own `scores`.

    Parameters
    ----------
    lm_eval : Result files of lm-evaluation-harness, or folders of them.
    timm : Result tables of timm.
    csv : Tables with a column `model` and a column for each score.
    bits_per_byte : Bits per byte, computed here.
    published : Scores that others have published and that come with repalign; those of files count more.
    """

    lm_eval: Paths = Field(default_factory=list)
    timm: Paths = Field(default_factory=list)
    csv: Paths = Field(default_factory=list)
    bits_per_byte: BitsConfig | None = None
    published: bool = False


class RunConfig(Block):
    """One run: what is compared with what, and how. A variant of the study may change any of these fields.

    Parameters
    ----------
    dataset : The stimuli that all models see. Studies of files alone need none: their rows are paired on ids, or by position.
    models : The models: two sides x and y, or one list (all with each other).
    extract : How models are run.
    captions : How many captions of each stimulus are averaged.
    rows : Compare on a random sample of the rows.
    broken_pairs : Break a share of the pairs on purpose.
    measures : Measures by name, such as "CKA()"; a family ("kernel") or "all" stands for all of its measures that apply.
    limit : Seconds that one measure may take. What would take longer is shuffled less or left out, and the report says so.
        By default 30 for measures of a family or of "all", and none for those that are named; 0 is no limit.
    preset : Published settings by name, such as platonic-rep.
    preprocess : What is done to all layers before they are measured.
    null : What chance is.
    ceilings : What could be reached at best.
    search : How the best pair of layers is searched: studentised (by distance from chance) or raw, and of what: max, mean,
        top-5, rows, columns, matching.
    device : Where models are compared: cpu, cuda, cuda:1, or auto (a CUDA GPU where there is one).
    alpha : The level of tests and thresholds.
    """

    dataset: DatasetConfig | None = None
    models: SidesConfig | list[str | ModelConfig]
    extract: ExtractConfig = ExtractConfig()
    captions: CaptionsConfig = CaptionsConfig()
    rows: RowsConfig | None = None
    broken_pairs: BrokenConfig | None = None
    measures: list[str] | None = Field(default=None, min_length=1)
    limit: float | None = Field(default=None, ge=0)
    preset: str | None = None
    preprocess: PreprocessConfig | None = None
    null: NullConfig = NullConfig()
    ceilings: CeilingsConfig = CeilingsConfig()
    search: str | None = None
    device: str = "cpu"
    alpha: float = Field(default=0.05, gt=0, lt=1)


class AlignmentConfig(StudyBlock, RunConfig):
    """A study that compares models on a data set.

    Parameters
    ----------
    competence : How good the models are, from files or computed here.
    variants : Named changes of fields, each a run of its own. Models run once for all variants.
    sweep : A field and its values: a run for every value.
    figures : Pictures with their tables, such as {trend: {against: n_parameters}}.
    published : A table of published values, drawn beside ours.
    store : The folder of extracted features; by default one for all studies beside this file.
    """

    competence: CompetenceConfig = CompetenceConfig()
    variants: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    sweep: dict[str, list[Any] | dict[Any, Any]] = Field(default_factory=dict)
    figures: list[dict[str, dict[str, Any] | None]] = Field(default_factory=list)
    published: str | None = None
    store: Place = None


def schema() -> dict[str, Any]:
    """The JSON schema of a study file that compares models: editors complete and check fields by it."""
    found = AlignmentConfig.model_json_schema()
    found["properties"]["extends"] = {**ONE_OR_SEVERAL, "description": "Study files whose fields this one takes over."}
    found["properties"]["experiment"] = {"type": "string", "description": "The kind of study; alignment by default."}
    found.pop("required")  # what a study extends may bring anything
    found["properties"]["name"].pop("default")  # that of the file
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "A study of repalign"}
