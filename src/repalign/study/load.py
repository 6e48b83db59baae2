"""From a study file to a validated study: what it extends, its variants, and what every field means."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repalign.errors import RepalignError, choose, did_you_mean
from repalign.models import KnownModel, find_model, known_models, model_set
from repalign.sources import parse_spec
from repalign.study.base import Study
from repalign.study.config import AlignmentConfig, ModelConfig, ModelOptions, SidesConfig
from repalign.study.lines import Location, Where, read
from repalign.study.paths import rooted

if TYPE_CHECKING:
    from repalign.comparison.preprocess import Preprocess
    from repalign.measures import Measure
    from repalign.sources import ModelEntry

ENTRY_POINTS = "repalign.experiments"  # the group in which packages announce experiments: name = module:class
MOST_VARIANTS = 1000
MOST_FILES = 100  # that one study extends, each counted as often as it is named
# What a variant cannot change: these are of the study as a whole.
WHOLE = ("name", "description", "variants", "sweep", "figures", "published", "store", "results", "report", "competence")


@dataclass(frozen=True)
class Variant:
    """One run of a study of alignment, with every field decided.

    `name` is "" where the study has no variants; `factors` are the swept values by name. A text among the measures stands
    for a group: "all", or a family.
    """

    name: str
    factors: Mapping[str, Any]
    config: AlignmentConfig
    x: tuple[ModelEntry, ...]
    y: tuple[ModelEntry, ...] | None
    measures: tuple[Measure | str, ...]
    preprocess: Preprocess
    search: str | None

    @property
    def every_measure(self) -> list[Measure]:
        """The measures with those of its groups."""
        from repalign.measures import parse_measures

        return [m for w in self.measures for m in (parse_measures([w]) if isinstance(w, str) else [w])]


def load_study(path: str | Path) -> Study:
    """Read and validate a study file.

    `extends: other.yaml` (or a list of files, of which later ones count more) takes the fields of other studies; those that
    stand here replace them, whole. Relative paths start from the folder of the file in which they stand.

    Raises RepalignError that names the file, the line and the field: bad YAML, a field that does not exist (with the closest
    one that does), a value of the wrong kind, an unknown model, measure, preset or option.
    """
    path = Path(path).absolute()
    data, where = _extended(path)
    with where.at("experiment"):
        experiment = _experiment(data.get("experiment", "alignment"))
    return experiment.load(path, data, where)


def _experiment(name: Any) -> type[Study]:
    """The kind of study that a name stands for: alignment, or one that an installed package announces."""
    from repalign.study.alignment import AlignmentStudy

    if name == "alignment":
        return AlignmentStudy
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    choose("experiment", str(name), ["alignment", *points])
    try:
        return points[name].load()
    except Exception as error:  # another package's code
        raise RepalignError(
            f"the experiment {name!r} cannot be loaded", expected=f"a subclass of repalign.study.Study at {points[name].value}",
            got=f"{type(error).__name__}: {error}", remedy="mend or remove the package that announces it",
        ) from error  # fmt: skip


def _extended(
    path: Path, below: tuple[Path, ...] = (), counter: Iterator[int] | None = None
) -> tuple[dict[str, Any], Where]:
    """The data of a file over those of the file that it extends, and the lines of its own."""
    counter = counter or itertools.count(1)
    if next(counter) > MOST_FILES:
        raise RepalignError(f"the study extends more than {MOST_FILES} files", got=path.name, remedy="extend fewer")
    data, where = read(path)
    if "extends" not in data:
        return data, where
    out: dict[str, Any] = {}
    with where.at("extends"):
        others = data.pop("extends")
        for other in others if isinstance(others, list) else [others]:
            if not isinstance(other, str):
                raise RepalignError("a study extends files", expected="a path, or a list of paths", got=other)
            found = (path.parent / Path(other).expanduser()).resolve()
            if found in (*below, path.resolve()):
                raise RepalignError("a study extends itself", got=other, remedy="name another file")
            out |= rooted(_extended(found, (*below, path.resolve()), counter)[0], found.parent)
    for key in ("store", "results", "report"):
        out.pop(key, None)  # where things go is each file's own
    return {**out, **data}, where


# --- variants ------------------------------------------------------------------------------------


def read_variants(data: dict[str, Any], config: AlignmentConfig, path: Path, where: Where) -> Iterator[Variant]:
    """The study's runs: every named variant under every combination of swept values; itself if there are none."""
    base = {k: v for k, v in data.items() if k not in ("variants", "sweep")}
    swept = [_values(field, values) for field, values in config.sweep.items()]
    seen: set[str] = set()
    empty = next((field for field, values in config.sweep.items() if not values), None)
    if empty is not None:
        with where.at("sweep"):
            raise RepalignError(f"{empty} is swept over no value", expected="a list of values", got="an empty one")
    number = len(config.variants or [""]) * math.prod(map(len, swept))
    if number > MOST_VARIANTS:
        with where.at("sweep" if swept else "variants"):
            raise RepalignError(
                f"{number:,} variants are more than one study runs",
                expected=f"{MOST_VARIANTS:,} at most",
                got=" x ".join([f"{len(config.variants)} variants"] * bool(config.variants) + [
                    f"{len(values)} values of {field}" for field, values in config.sweep.items()
                ]),
                remedy="sweep fewer fields or values in one file, and extend it by others",
            )  # fmt: skip
    for name, changes in (config.variants or {"": {}}).items():
        for combination in itertools.product(*swept):
            factors = {field.rpartition(".")[2]: label for field, label, _ in combination}
            label = ", ".join(filter(None, [name, *(f"{f} {v}" for f, v in factors.items())]))
            here = where if not label else _Inside(where, label)
            at = ("variants", name) if name else ("sweep",) if swept else ()
            with here.at(*at):
                if label.lower() in seen:  # folders are named after them, and some file systems ignore case
                    raise RepalignError("two variants have one name", got=label, remedy="give one of them another")
                changed = _changed(base, {**(changes or {}), **{field: value for field, _, value in combination}})
            seen.add(label.lower())
            yield _variant(label, factors, here.validate(AlignmentConfig, changed), path, here)


def _values(field: str, given: Sequence[Any] | Mapping[Any, Any]) -> list[tuple[str, Any, Any]]:
    """The values of a swept field with their labels: a mapping says them, a list is labelled by its values."""
    pairs = given.items() if isinstance(given, Mapping) else [(v, v) for v in given]
    return [(field, label, value) for label, value in pairs]


def _changed(data: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The data with some fields replaced; `a.b` is field b of block a, whose other fields stay."""
    out = copy.deepcopy(data)
    for field, value in changes.items():
        first, *rest = str(field).split(".")
        if first in WHOLE:
            raise RepalignError(
                f"a variant cannot change {first!r}", expected="fields of one run, such as measures or preset", got=field
            )
        block: Any = out
        for part in [first, *rest][:-1]:
            inner = block.get(part)
            if inner is None:
                inner = block[part] = {}
            if not isinstance(inner, dict):
                raise RepalignError(f"{field}: {part} is no block of fields", got=type(inner).__name__)
            block = inner
        block[[first, *rest][-1]] = copy.deepcopy(value)
    return out


class _Inside(Where):
    """The lines of a study's fields, for errors about one of its variants."""

    def __init__(self, where: Where, label: str) -> None:
        super().__init__(where.path, where.lines)
        self.label = label

    def head(self, location: Location) -> str:
        return f"{super().head(location)} (variant {self.label})"


# --- what the fields mean ------------------------------------------------------------------------


def _variant(name: str, factors: Mapping[str, Any], config: AlignmentConfig, path: Path, where: Where) -> Variant:
    from repalign.comparison.preprocess import Preprocess
    from repalign.comparison.presets import preset
    from repalign.measures import is_group, parse_measure
    from repalign.null import Search, make_null

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
        make_null(**null_arguments(config))
    search = config.search or (chosen.search if chosen else None)
    with where.at("search"):
        search = None if search is None else str(Search.parse(search))
    x, y = _sides(config, path.parent, where)
    if config.broken_pairs is not None and y is None:
        with where.at("broken_pairs"):
            raise RepalignError("pairs are broken between two sides", expected="models: {x: ..., y: ...}", got="one list")
    names = {e.name or e.spec for e in (*x, *(y or ()))}
    for i, both in enumerate(config.ceilings.replicates):
        for one in both:
            if one not in names:
                with where.at("ceilings", "replicates", i):
                    raise RepalignError(f"the study has no model {one!r}", got=one, remedy=did_you_mean(one, names))
    return Variant(name, factors, config, x, y, tuple(measures), preprocess, search)


def null_arguments(config: AlignmentConfig) -> dict[str, Any]:
    """What `null.make_null` takes, but for the groups, which need the dataset's ids."""
    null = config.null
    given = {"n_draws": null.draws, "relabellings": null.relabellings, "seed": null.seed}
    return {"name": null.method, **{k: v for k, v in given.items() if v is not None}}


def _sides(
    config: AlignmentConfig, base: Path, where: Where
) -> tuple[tuple[ModelEntry, ...], tuple[ModelEntry, ...] | None]:
    sides = config.models
    if isinstance(sides, SidesConfig):
        x = entries(sides.x, base, where, ("models", "x"), sides.options.x)
        return x, entries(sides.y, base, where, ("models", "y"), sides.options.y)
    both = entries(sides, base, where, ("models",))
    if len(both) < 2:
        with where.at("models"):
            raise RepalignError("one model has nothing to be compared with", expected="two models or more", got=1)
    return both, None


def entries(
    given: Sequence[str | ModelConfig],
    base: Path,
    where: Where,
    at: tuple[str, ...],
    options: ModelOptions | None = None,
) -> tuple[ModelEntry, ...]:
    """A list of models as entries of the extraction; `options` are those of the whole side."""
    shared = {} if options is None else options.model_dump(exclude_unset=True)
    out: list[ModelEntry] = []
    for i, item in enumerate(given):
        with where.at(*at, i):
            out += _expand(item, base, shared)
    names: dict[str, str] = {}
    for i, entry in enumerate(out):
        if names.setdefault(entry.name or entry.spec, entry.spec) != entry.spec:
            with where.at(*at, min(i, len(given) - 1)):
                raise RepalignError(f"two models are called {entry.name!r}", remedy="give one of them another `name`")
    return tuple(out)


def _expand(item: str | ModelConfig, base: Path, shared: Mapping[str, Any]) -> list[ModelEntry]:
    """An item of a model list as entries: a spec, the name of a known model, or a set of them."""
    from repalign.sources import ModelEntry

    config = ModelConfig(spec=item) if isinstance(item, str) else item
    if (config.spec is None) == (config.set is None):
        raise RepalignError(
            "a model is named by `spec` or by `set`", expected="one of them", got=config.model_dump_json()
        )
    options = {**shared, **config.model_dump(exclude={"spec", "set"}, exclude_unset=True)}
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
    from repalign.sources import ModelEntry

    said = {"name": known.name, "family": known.family, "objective": known.objective}
    return ModelEntry(**{**said, **options, "spec": known.spec})
