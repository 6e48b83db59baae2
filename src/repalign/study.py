"""The study file: dataset, models, measures, null. The unit of reproducibility.

A study is a YAML file. It is validated before anything runs; what is wrong is told with the field and its line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from repalign.dataset import Dataset
from repalign.dataset._config import DatasetConfig
from repalign.errors import RepalignError, did_you_mean
from repalign.models import KnownModel, find_model, known_models, model_set, parse_spec
from repalign.progress import Progress, silent

if TYPE_CHECKING:
    from repalign.alignment import Alignment
    from repalign.extract import ModelEntry
    from repalign.measures import Measure
    from repalign.null import Auto, Null
    from repalign.preprocess import Preprocess

Path_ = tuple[str | int, ...]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Block):
    """One model with its options (see `extract.ModelEntry`), or a `set` of known models."""

    spec: str | None = None
    set: str | None = None
    name: str | None = None
    modality: str | None = None
    pooling: str | None = None
    layers: list[int | str] | None = None
    caption: int = Field(default=0, ge=0)
    bos: str = "skip"
    padding: str = "right"
    truncate: bool = False
    store_dtype: str = "float32"
    ids: str | None = None
    family: str | None = None
    objective: str | None = None
    n_parameters: int | None = Field(default=None, ge=0)
    scores: dict[str, float] = Field(default_factory=dict)


class SidesConfig(_Block):
    """Two sides: every model of x against every model of y."""

    x: list[str | ModelConfig] = Field(min_length=1)
    y: list[str | ModelConfig] = Field(min_length=1)


class ExtractConfig(_Block):
    """How models are run."""

    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = Field(default=32, ge=1)
    rows_per_part: int = Field(default=256, ge=1)
    trust_remote_code: bool = False


class NullConfig(_Block):
    """What chance is: `auto`, `permutation`, `cyclic` or `aristotelian`.

    `draws` counts random permutations, `relabellings` multiplies the draws of the cyclic null. `groups` is a table (CSV or
    Parquet) with the columns id and group: stimuli change places `within` their group, or `whole` groups do.
    """

    method: str = "auto"
    draws: int | None = Field(default=None, ge=1)
    relabellings: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0)
    groups: str | None = None
    shuffle: str = "within"


class CeilingsConfig(_Block):
    """What could be reached: `replicates` names pairs of models that are two trainings of one, `split_half` counts
    random halvings of the stimuli."""

    replicates: list[tuple[str, str]] = []
    split_half: int = Field(default=0, ge=0)


class PreprocessConfig(_Block):
    """What is done to all layers before measuring (see `preprocess.Preprocess`)."""

    clip: str | None = None
    quantile: float = Field(default=0.95, gt=0, le=1)
    clip_scope: str = "representation"
    normalize_rows: bool = False
    concatenate: bool = False


class StudyConfig(_Block):
    """The fields of a study file."""

    name: str = Field(min_length=1)
    description: str | None = None
    dataset: DatasetConfig
    models: SidesConfig | list[str | ModelConfig]
    extract: ExtractConfig = ExtractConfig()
    measures: list[str] | None = Field(default=None, min_length=1)
    limit: float | None = Field(default=None, gt=0)
    preset: str | None = None
    preprocess: PreprocessConfig | None = None
    null: NullConfig = NullConfig()
    ceilings: CeilingsConfig = CeilingsConfig()
    search: str | None = None
    alpha: float = Field(default=0.05, gt=0, lt=1)
    store: str | None = None
    results: str | None = None
    report: str | None = None


@dataclass(frozen=True)
class Study:
    """A validated study: what the file says, and what it means."""

    path: Path
    config: StudyConfig
    x: tuple[ModelEntry, ...]
    y: tuple[ModelEntry, ...] | None
    measures: tuple[Measure | str, ...]  # a text stands for a group: "all", or a family
    preprocess: Preprocess
    search: str | None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent

    @property
    def store(self) -> str:
        """Where features are kept: a folder beside the study, or a URL."""
        given = self.config.store
        return given if given is not None and "://" in given else str(self._place(given, "store"))

    @property
    def results(self) -> Path:
        return self._place(self.config.results, "results")

    @property
    def report(self) -> Path:
        return self._place(self.config.report, "report.html")

    def _place(self, given: str | None, default: str) -> Path:
        return (self.base / (f"runs/{self.name}/{default}" if given is None else Path(given).expanduser())).absolute()

    def open_dataset(self, progress: Progress = silent) -> Dataset:
        return self.config.dataset.open(self.base, progress)


@dataclass(frozen=True)
class Plan:
    """What a run would do, told before it starts."""

    n: int
    models: int
    pairs: int
    measures: int
    lines: tuple[str, ...]


def load_study(path: str | Path) -> Study:
    """Read and validate a study file.

    Raises RepalignError that names the file, the line and the field: bad YAML, a field that does not exist (with the
    closest one that does), a value of the wrong kind, an unknown model, measure, preset or option.
    """
    path = Path(path).absolute()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RepalignError(
            f"{path}: the study cannot be read", got=str(error), remedy="check the path; a study is a YAML file"
        ) from error
    data, lines = _parse(text, path)
    where = _Where(path, lines)
    try:
        config = StudyConfig.model_validate(data)
    except ValidationError as error:
        raise where.validation(error) from error
    return _study(config, path, where)


def _study(config: StudyConfig, path: Path, where: _Where) -> Study:
    from repalign.measures import is_group, parse_measure
    from repalign.null import Search, make_null
    from repalign.preprocess import Preprocess
    from repalign.presets import preset

    chosen = None
    if config.preset is not None:
        with where.at("preset"):
            chosen = preset(config.preset)
    measures: list[Measure | str] = [] if chosen is None else list(chosen.measures)
    if config.measures is not None:
        measures = []
        for i, text in enumerate(config.measures):
            with where.at("measures", i):
                measures.append(text if is_group(text) else parse_measure(text))
    elif chosen is None:
        measures = [parse_measure(m) for m in ("MutualKNN(k=10)", "CKA()")]
    with where.at("preprocess"):
        preprocess = Preprocess() if chosen is None else chosen.preprocess
        if config.preprocess is not None:
            preprocess = Preprocess(**config.preprocess.model_dump())
    with where.at("null", "method"):
        make_null(**_null_arguments(config.null))
    search = config.search or (chosen.search if chosen else None)
    with where.at("search"):
        search = None if search is None else str(Search.parse(search))
    sides = config.models
    if isinstance(sides, SidesConfig):
        x, y = (_entries(getattr(sides, s), path.parent, where, ("models", s)) for s in "xy")
    else:
        x, y = _entries(sides, path.parent, where, ("models",)), None
        if len(x) < 2:
            with where.at("models"):
                raise RepalignError("one model has nothing to be compared with", expected="two models or more", got=1)
    names = {e.name or e.spec for e in (*x, *(y or ()))}
    for i, both in enumerate(config.ceilings.replicates):
        for name in both:
            if name not in names:
                with where.at("ceilings", "replicates", i):
                    raise RepalignError(f"the study has no model {name!r}", got=name, remedy=did_you_mean(name, names))
    return Study(path, config, x, y, tuple(measures), preprocess, search)


def _null_arguments(config: NullConfig) -> dict[str, Any]:
    given = {"n_draws": config.draws, "relabellings": config.relabellings, "seed": config.seed}
    return {"method": config.method, **{k: v for k, v in given.items() if v is not None}}


def _null(study: Study, dataset: Dataset) -> Null | Auto:
    from repalign.null import Groups, make_null

    config = study.config.null
    arguments = _null_arguments(config)
    if config.groups is not None:
        arguments["groups"] = Groups.from_file(study.base / config.groups, dataset.ids, config.shuffle)
    return make_null(**arguments)


def _entries(given: Sequence[str | ModelConfig], base: Path, where: _Where, at: Path_) -> tuple[ModelEntry, ...]:
    out: list[ModelEntry] = []
    for i, item in enumerate(given):
        with where.at(*at, i):
            out += _expand(item, base)
    names: dict[str, str] = {}
    for i, entry in enumerate(out):
        if names.setdefault(entry.name or entry.spec, entry.spec) != entry.spec:
            with where.at(*at, min(i, len(given) - 1)):
                raise RepalignError(f"two models are called {entry.name!r}", remedy="give one of them another `name`")
    return tuple(out)


def _expand(item: str | ModelConfig, base: Path) -> list[ModelEntry]:
    """An item of a model list as entries: a spec, the name of a known model, or a set of them."""
    from repalign.extract import ModelEntry

    config = ModelConfig(spec=item) if isinstance(item, str) else item
    if (config.spec is None) == (config.set is None):
        raise RepalignError(
            "a model is named by `spec` or by `set`", expected="one of them", got=config.model_dump_json()
        )
    options = config.model_dump(exclude={"spec", "set"}, exclude_unset=True)
    if config.set is not None:
        found = model_set(config.set, config.modality)
        options.pop("modality", None)
        return [_known_entry(k, options) for k in found]
    assert config.spec is not None
    if ":" not in config.spec:
        sets = {k.model_set for k in known_models()}
        if config.spec in sets:
            return [_known_entry(k, options) for k in model_set(config.spec)]
        return [_known_entry(find_model(config.spec), options)]
    return [ModelEntry(**{**options, "spec": str(parse_spec(config.spec).resolve(base))})]


def _known_entry(known: KnownModel, options: dict[str, Any]) -> ModelEntry:
    from repalign.extract import ModelEntry

    said = {"name": known.name, "family": known.family, "objective": known.objective}
    return ModelEntry(**{**said, **options, "spec": known.spec})


# --- running -----------------------------------------------------------------------------------

FEW = 8  # measures that the plan names one by one


def plan(study: Study, dataset: Dataset) -> Plan:
    """What will be done and what it needs, before it is done."""
    from repalign import null as nulls
    from repalign.measures import Bilinear, parse_measures

    nx, ny = len(study.x), len(study.y or ())
    models = nx + ny
    pairs = nx * ny if study.y is not None else nx * (nx - 1) // 2
    n = dataset.n
    null = _null(study, dataset)
    measures = [m for wanted in study.measures for m in (parse_measures([wanted]) if isinstance(wanted, str) else [wanted])]
    resolved = {m: nulls.resolve(null, m, n) for m in measures}
    by_null = Counter(f"{type(r).__name__.lower()} null, {r.count(n)} draws" for r in resolved.values())
    each = [f"{m!r}: {type(r).__name__.lower()} null, {r.count(n)} draws" for m, r in resolved.items()]
    state = max(8 * n * n if isinstance(m, Bilinear) else 16 * n * n for m in measures)
    lines = [
        f"dataset {dataset.name}: n = {n}, {', '.join(dataset.modalities)}"
        + (f", {len(dataset.left_out)} rows left out" if dataset.left_out else ""),
        f"{models} models, {pairs} pairs of models, {len(measures)} measures",
        *(each if len(each) <= FEW else [f"{count} measures: {null}" for null, count in by_null.items()]),
        f"about {state / 2**20:.0f} MiB of states per layer at most; bounded by a quarter of the memory",
        f"features in {study.store}",
    ]
    return Plan(n, models, pairs, len(measures), tuple(lines))


def run(
    study: Study,
    *,
    progress: Progress = silent,
    executor: Executor | None = None,
    told: Callable[[Plan], None] | None = None,
) -> Alignment:
    """Run a study: dataset, extraction, comparison, report. A run that was killed goes on where it stopped.

    `told` is given the plan before the work starts.
    """
    from repalign.compare import LIMIT, compare
    from repalign.report import write_report

    dataset = study.open_dataset(progress)
    if told is not None:
        told(plan(study, dataset))
    representations = extract_study(study, dataset, progress=progress, executor=executor)
    x, y = representations[: len(study.x)], representations[len(study.x) :]
    entries = (*study.x, *(study.y or ()))
    named = {e.name or e.spec: r for e, r in zip(entries, representations, strict=True)}
    alignment = compare(
        x,
        y if study.y is not None else None,
        study.measures,
        _null(study, dataset),
        search=study.search,
        alpha=study.config.alpha,
        preprocess=study.preprocess,
        results=study.results,
        executor=executor,
        replicates=[(named[a], named[b]) for a, b in study.config.ceilings.replicates],
        split_half=study.config.ceilings.split_half,
        limit=LIMIT if study.config.limit is None else study.config.limit,
        progress=progress,
        describe={
            "name": study.name,
            "dataset": dataset.describe(),
            "study": json.loads(study.config.model_dump_json(exclude_unset=True)),
        },
    )
    write_report(study.results, study.report)
    return alignment


def extract_study(
    study: Study, dataset: Dataset, *, progress: Progress = silent, executor: Executor | None = None
) -> list[Any]:
    """All representations of a study, those of x first."""
    from repalign.extract import extract

    options = study.config.extract
    return extract(
        dataset,
        [*study.x, *(study.y or ())],
        study.store,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        rows_per_part=options.rows_per_part,
        trust_remote_code=options.trust_remote_code,
        executor=executor,
        progress=progress,
    )


# --- lines -------------------------------------------------------------------------------------


class _Where:
    """Tells errors with the line of the field they are about."""

    def __init__(self, path: Path, lines: dict[Path_, int]) -> None:
        self.path = path
        self.lines = lines

    def line(self, location: Path_) -> int:
        """The line of a field, or of the closest one around it."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.lines:
                return self.lines[location[:end]]
        return 1

    @contextmanager
    def at(self, *location: str | int) -> Iterator[None]:
        try:
            yield
        except RepalignError as error:
            raise RepalignError(
                f"{self.path.name}, line {self.line(location)}, {_dotted(location)}: {error}"
            ) from error

    def validation(self, error: ValidationError) -> RepalignError:
        """The first thing that is wrong, with the line; unknown fields first, since they explain others."""
        problems = sorted(error.errors(), key=lambda e: (e["type"] != "extra_forbidden", -len(e["loc"])))
        first = problems[0]
        location = tuple(p for p in first["loc"] if (p in self._keys(first["loc"])))
        head = f"{self.path.name}, line {self.line(location)}, {_dotted(location)}"
        if first["type"] == "extra_forbidden":
            field = str(location[-1])
            known = _fields(location[:-1])
            return RepalignError(f"{head}: there is no field {field!r}", got=field, remedy=did_you_mean(field, known))
        message = first["msg"].removeprefix("Value error, ")
        got = None if isinstance(first["input"], (dict, list)) else repr(first["input"])
        return RepalignError(f"{head}: {message[0].lower()}{message[1:]}", got=got)

    def _keys(self, location: tuple[Any, ...]) -> set[Any]:
        """The parts of pydantic's location that stand in the file; it also names the alternatives of a union."""
        alternatives = {"str", "ModelConfig", "SidesConfig", "list[union[str,ModelConfig]]"}
        return {p for p in location if not (isinstance(p, str) and (p in alternatives or "[" in p))}


def _fields(location: Path_) -> list[str]:
    """The fields that a block of the file may have."""
    blocks: dict[str, type[BaseModel]] = {
        "dataset": DatasetConfig,
        "extract": ExtractConfig,
        "null": NullConfig,
        "preprocess": PreprocessConfig,
    }
    if not location:
        return list(StudyConfig.model_fields)
    if location[0] == "models":
        return list((SidesConfig if len(location) == 1 else ModelConfig).model_fields)
    return list(blocks.get(str(location[0]), StudyConfig).model_fields)


def _dotted(location: Sequence[str | int]) -> str:
    out = ""
    for part in location:
        out += f"[{part}]" if isinstance(part, int) else (f".{part}" if out else str(part))
    return out or "the file"


def _parse(text: str, path: Path) -> tuple[dict[str, Any], dict[Path_, int]]:
    """The file's data, and the line of every field. Refuses a field that stands twice, which YAML would not."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines: dict[Path_, int] = {}
        if node is not None:
            _walk(node, (), lines, path)
        data = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise RepalignError(
            f"{path.name}{line}: this is not YAML",
            got=str(getattr(error, "problem", None) or error).splitlines()[0],
            remedy="look at indentation, colons and quotes; a spec or a measure is safest in quotation marks",
        ) from error
    if not isinstance(data, dict) or node is None:
        raise RepalignError(f"{path.name}: a study is a mapping of fields", got=type(data).__name__)
    return data, lines


def _walk(node: yaml.Node, location: Path_, lines: dict[Path_, int], path: Path) -> None:
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                key.tag = "tag:yaml.org,2002:str"  # `null:` is a field of a study, not YAML's nothing
            inner = (*location, key.value)
            if inner in lines:
                raise RepalignError(
                    f"{path.name}, line {key.start_mark.line + 1}: {_dotted(inner)} stands twice",
                    got=f"first on line {lines[inner]}",
                    remedy="remove one of them",
                )
            lines[inner] = key.start_mark.line + 1
            _walk(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(value, (*location, i), lines, path)
