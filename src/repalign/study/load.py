"""From a study file to a validated study: what it extends, its kind, its variants, and what every field means."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from repalign.comparison import DEFAULT_MEASURES, Preprocess, preset
from repalign.errors import RepalignError, choose
from repalign.experiments import EXPERIMENTS
from repalign.measures import Group, Measure, parse_wanted
from repalign.models import find_model, known_models, model_set
from repalign.null import Auto, Groups, Null, Search, make_null
from repalign.representation import sampled
from repalign.sources import ModelEntry, Spec, parse_spec
from repalign.sources.source import SCHEMES, is_local_path
from repalign.study.base import Study
from repalign.study.config import AlignmentConfig, ModelConfig, ModelOptions, RunConfig, SidesConfig
from repalign.study.yaml_lines import Mark, Where, read
from repalign.study.yaml_words import Location

ENTRY_POINTS = "repalign.experiments"  # the group in which packages announce experiments: name = module:class
ALIGNMENT = EntryPoint("alignment", "repalign.study.alignment:AlignmentStudy", ENTRY_POINTS)  # the default
OURS = (ALIGNMENT, *(EntryPoint(name, "repalign.study.experiment:ExperimentStudy", ENTRY_POINTS) for name in EXPERIMENTS))
MOST_VARIANTS = 1000
MOST_FILES = 100  # that one study extends, each counted as often as it is named
# Fields that hold a path, or a list or mapping of paths. In a file that another extends they start from its folder.
PATHS = (
    ("dataset", "table"), ("dataset", "folder"), ("dataset", "root"), ("dataset", "arrays"), ("dataset", "ids"),
    ("dataset", "row_ids"), ("null", "groups"), ("competence", "lm_eval"), ("competence", "timm"), ("competence", "csv"),
    ("competence", "bits_per_byte", "corpus"), ("published",),
)  # fmt: skip
LISTS = (("dataset", "ids"), ("dataset", "row_ids"))  # a path as a text; as a list these are ids


def load_study(path: str | Path) -> Study:
    """Read and validate a study file.

    `extends: other.yaml` (or a list of files, of which later ones count more) takes the fields of other studies; those that
    stand here replace them, whole. Relative paths start from the folder of the file in which they stand. A study without a
    `name` is called as its file.

    Raises RepalignError with all that is wrong, each with the file, the line and the field: bad YAML, a field that does not
    exist (with the closest one that does), a value of the wrong kind, an unknown model, measure, preset or option. Where there
    is something, what only a look at models and data tells (see `before`) is told with it.
    """
    path = Path(path).absolute()
    data, where = read(path)
    if "extends" in data:
        data = _extended(path, data, where, itertools.count(2))  # this file is the first
        if not where.is_right("extends"):
            where.refuse()
    data.setdefault("name", path.stem)
    name = str(data.get("experiment", ALIGNMENT.name))
    points = {point.name: point for point in (*entry_points(group=ENTRY_POINTS), *OURS)}
    with where.at("experiment"):
        point = points[choose("experiment", name, points)]
        try:
            experiment: type[Study] = point.load()
        except Exception as error:  # another package's code
            raise RepalignError(
                f"the experiment {name!r} cannot be loaded", expected=f"a subclass of repalign.study.Study at {point.value}",
                got=f"{type(error).__name__}: {error}", remedy="mend or remove the package that announces it",
            ) from error  # fmt: skip
    if not where.is_right("experiment"):
        where.refuse()
    study = experiment.load(path, data, where)
    if where.found:
        study.look()
        where.refuse()
    return study


# --- files that extend others --------------------------------------------------------------------


def _extended(
    path: Path, data: dict[str, Any], where: Where, counter: Iterator[int], below: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """The data of a file over those of the files that it extends, whose places are among its own from then on."""
    out: dict[str, Any] = {}
    marks: dict[Location, Mark] = {}
    others = data.pop("extends")
    for other in others if isinstance(others, list) else [others]:
        with where.at("extends"):
            if not isinstance(other, str):
                raise RepalignError("a study extends files", expected="a path, or a list of paths", got=other)
            found = (path.parent / Path(other).expanduser()).resolve()
            if found in (*below, path.resolve()):
                raise RepalignError("a study extends itself", got=other, remedy="name another file")
            if next(counter) > MOST_FILES:
                raise RepalignError(f"the study extends more than {MOST_FILES} files", got=found.name, remedy="extend fewer")
            its, there = read(found, where.found)
            if "extends" in its:
                its = _extended(found, its, there, counter, (*below, path.resolve()))
            out |= _rooted(its, found.parent)
            marks = _taken(marks, out.keys() - its.keys()) | _taken(there.marks, its)
    for key in ("name", "out", "store", "results", "report"):
        out.pop(key, None)  # where things go is each file's own
    where.marks.update(_taken(marks, out.keys() - data.keys()))
    return {**out, **data}


def _taken(marks: Mapping[Location, Mark], fields: Collection[str]) -> dict[Location, Mark]:
    """The places of some fields of a file, and of all in them."""
    return {at: mark for at, mark in marks.items() if at[:1] and at[0] in fields}


def _rooted(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """The data of a file with its relative paths, and those of its models' specs, made absolute.

    What is no path or spec stays as it is: the validation tells what is wrong with it.
    """

    def path(value: Any, is_list: bool) -> Any:
        if isinstance(value, dict):
            return {k: path(v, False) for k, v in value.items()}
        if isinstance(value, list):
            return value if is_list else [path(v, False) for v in value]
        return str(base / Path(value).expanduser()) if isinstance(value, str) and not value.startswith("hub:") else value

    def spec(value: Any) -> Any:
        try:
            return str(parse_spec(value).resolve(base)) if isinstance(value, str) and ":" in value else value
        except RepalignError:
            return value

    def models(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: spec(v) if k == "spec" else models(v) for k, v in value.items()}
        return [spec(v) if isinstance(v, str) else models(v) for v in value] if isinstance(value, list) else value

    def run(block: dict[str, Any]) -> dict[str, Any]:
        for place in PATHS:
            block = _changed(block, place, lambda value, at=place: path(value, at in LISTS))
        return {**block, "models": models(block["models"])} if "models" in block else block

    def at(field: str, value: Any) -> Any:
        """The value of a field that a variant or a sweep names with its place, as `models.x`."""
        names, block = str(field).split("."), value
        for name in reversed(names):
            block = {name: block}
        return functools.reduce(lambda inner, name: inner[name], names, run(block))

    def swept(field: str, values: Any) -> Any:
        if isinstance(values, dict):
            return {label: at(field, value) for label, value in values.items()}
        found = [at(field, value) for value in values] if isinstance(values, list) else values
        return values if found == values else dict(zip(map(str, values), found, strict=True))  # called as in its file

    if (experiment := EXPERIMENTS.get(str(data.get("experiment")))) is not None:
        own = {name: value for name, value in data.items() if name in experiment.options}
        return {**data, **experiment.placed(own, base)}
    named, sweep = data.get("variants"), data.get("sweep")
    if isinstance(named, dict):
        named = {k: {f: at(f, v) for f, v in one.items()} if isinstance(one, dict) else one for k, one in named.items()}
    if isinstance(sweep, dict):
        sweep = {f: swept(f, values) for f, values in sweep.items()}
    return {**run(data), **{k: v for k, v in (("variants", named), ("sweep", sweep)) if k in data}}


def _changed(block: Any, place: Sequence[str], change: Callable[[Any], Any]) -> Any:
    """A block with the value at a place of it changed, if there is one; the given block stays as it is."""
    if not place:
        return change(block)
    if not isinstance(block, dict) or place[0] not in block:
        return block
    return {**block, place[0]: _changed(block[place[0]], place[1:], change)}


# --- variants ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One run of a study of alignment, with every field decided but what needs the dataset: the null has no groups yet.

    `name` is "" in a study without variants; `factors` are the swept values by name. A `Group` among the measures stands for
    those of its measures that apply.
    """

    name: str
    factors: Mapping[str, Any]
    config: RunConfig
    x: tuple[ModelEntry, ...]
    y: tuple[ModelEntry, ...] | None
    measures: tuple[Measure | Group, ...]
    preprocess: Preprocess
    null: Null
    search: str | None
    where: Where = field(repr=False, compare=False)
    places: Mapping[Any, Location] = field(repr=False, compare=False)  # in the file, of measures, and of models by side and label

    sides: tuple[tuple[ModelEntry, ...], ...] = field(init=False)
    captioned: tuple[list[list[ModelEntry]], ...] = field(init=False)  # of each side and model, an entry for each caption
    named: list[Measure] = field(init=False)  # the measures that are named one by one
    every_measure: list[Measure] = field(init=False)  # with those of groups

    def __post_init__(self) -> None:
        every = dict.fromkeys(m for w in self.measures for m in ([w] if isinstance(w, Measure) else w.members))
        named = [m for m in self.measures if isinstance(m, Measure)]
        sides = (self.x,) if self.y is None else (self.x, self.y)
        captions = (self.config.captions.x, self.config.captions.y)
        captioned = (
            [[replace(e, caption=e.caption + c) for c in range(count)] for e in side]
            for side, count in zip(sides, captions, strict=False)
        )
        vars(self).update(sides=sides, captioned=tuple(captioned), named=named, every_measure=list(every))

    def compared(self, ids: Sequence[str]) -> tuple[str, ...]:
        """The stimuli that are compared, of those of the dataset."""
        rows = self.config.rows
        return tuple(ids) if rows is None else tuple(ids[i] for i in sampled(rows.n, len(ids), rows.seed))

    def null_of(self, ids: Sequence[str], base: Path) -> Null:
        """The null with the groups of these stimuli, whose file's path starts from `base`."""
        config = self.config.null
        if config.groups is None:
            return self.null
        return replace(self.null, groups=Groups.from_file(base / config.groups, ids, config.shuffle))  # type: ignore[type-var]


def read_variants(data: Mapping[str, Any], config: AlignmentConfig, base: Path, where: Where) -> Iterator[Variant]:
    """The study's runs: every named variant under every combination of swept values; itself if there are none.

    None of those that are wrong: `where` keeps why.
    """
    run = {k: v for k, v in data.items() if k in RunConfig.model_fields}
    if not config.variants and not config.sweep:
        yield _variant("", {}, where.validate(RunConfig, run), base, where)
        return
    # The values of a swept field with their labels and places: a mapping says them, a list is labelled by its values.
    pairs = {
        f: [(k, one, str(k)) for k, one in v.items()] if isinstance(v, Mapping) else [(one, one, i) for i, one in enumerate(v)]
        for f, v in config.sweep.items()
    }
    swept = [[(f, *one) for one in some] for f, some in pairs.items()]
    if not _is_a_possible_number(config, where):
        return
    ends = [str(field).split(".") for field in pairs]  # a field is called by its last part, or by two where that is not enough
    lasts = Counter(parts[-1] for parts in ends)
    called = [parts[-1] if lasts[parts[-1]] == 1 else "_".join(parts[-2:]) for parts in ends]
    seen: set[str] = set()
    for name, changes in (config.variants or {"": {}}).items():
        for combination in itertools.product(*swept):
            factors = dict(zip(called, (label for _, label, _, _ in combination), strict=True))
            label = ", ".join(filter(None, [name, *(f"{f} {v}" for f, v in factors.items())]))
            said = {field: (value, ("variants", name, field)) for field, value in (changes or {}).items()}
            said |= {field: (value, ("sweep", field, at)) for field, _, value, at in combination}
            here = where.variant_of(label, {tuple(str(field).split(".")): at for field, (_, at) in said.items()})
            changed, made = run, None
            with here.at(*(("variants", name) if name else ("sweep",))):
                if label.lower() in seen:  # folders are named after them, and some file systems ignore case
                    raise RepalignError("two variants have one name", got=label, remedy="give one of them another")
                for field, (value, _) in said.items():
                    changed = _with(changed, str(field), value)
                made = changed
            seen.add(label.lower())
            if made is not None:
                yield _variant(label, factors, here.validate(RunConfig, made), base, here)


def _is_a_possible_number(config: AlignmentConfig, where: Where) -> bool:
    """Whether there are variants, and not too many: else `where` keeps what is wrong."""
    counts = {"variants": len(config.variants)} if config.variants else {}
    for swept, values in config.sweep.items():
        counts[f"values of {swept}"] = len(values)
        if not values:
            empty = RepalignError(f"{swept} is swept over no value", expected="a list of values", got="an empty one")
            where.keep(("sweep",), empty)
    number = math.prod(counts.values())
    if number > MOST_VARIANTS:
        with where.at("sweep" if config.sweep else "variants"):
            raise RepalignError(
                f"{number:,} variants are more than one study runs", expected=f"{MOST_VARIANTS:,} at most",
                got=" x ".join(f"{count} {what}" for what, count in counts.items()),
                remedy="sweep fewer fields or values in one file, and extend it by others",
            )  # fmt: skip
    return 0 < number <= MOST_VARIANTS


def _with(run: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """The data of a run with one field replaced; `a.b` is field b of block a, whose other fields stay."""
    first, *rest = field.split(".")
    if first in AlignmentConfig.model_fields.keys() - RunConfig.model_fields.keys():
        raise RepalignError(
            f"a variant cannot change {first!r}", expected="fields of one run, such as measures or preset", got=field
        )

    def placed(block: Any, place: list[str], name: str) -> Any:
        if not place:
            return value
        if not isinstance(block, dict | None):
            raise RepalignError(f"{field}: {name} is no block of fields", got=type(block).__name__)
        return {**(block or {}), place[0]: placed((block or {}).get(place[0]), place[1:], place[0])}

    return {**run, first: placed(run.get(first), rest, first)}


# --- what the fields mean ------------------------------------------------------------------------


def _variant(name: str, factors: Mapping[str, Any], config: RunConfig, base: Path, where: Where) -> Variant:
    """A run of its fields. What a wrong one means is left out, or taken for its default: it is not run."""
    chosen, preprocess, search, null = None, Preprocess(), None, Auto()
    with where.at("preset"):
        chosen = None if config.preset is None else preset(config.preset)
    measures = _measures(config, chosen, where)
    with where.at("preprocess"):
        preprocess = Preprocess() if chosen is None else chosen.preprocess
        if config.preprocess is not None:
            preprocess = Preprocess(**config.preprocess.model_dump())
    said = {"n_draws": config.null.draws, "relabellings": config.null.relabellings, "seed": config.null.seed}
    parameters: dict[str, Any] = {k: v for k, v in said.items() if v is not None}
    if config.null.groups is not None:  # they need the dataset's ids: see `Variant.null_of`
        parameters["groups"] = None
    with where.at("null", "method"):
        null = make_null(config.null.method, **parameters)
    with where.at("search"):
        search = config.search or (chosen.search if chosen else None)
        search = None if search is None else str(Search.parse(search))
    sides = _sides(config, base, where)
    places = {**measures, **{(s, entry.label): at for s, side in zip("xy", sides, strict=False) for at, entry in side}}
    x, *others = (tuple(entry for _, entry in side) for side in sides)
    y = others[0] if others else None
    names = {e.name or e.spec for e in (*x, *(y or ()))}
    for i, both in enumerate(config.ceilings.replicates if where.is_right("models") else ()):
        with where.at("ceilings", "replicates", i):
            for one in both:
                choose("model", one, names, f"the study has no model {one!r}")
    return Variant(name, factors, config, x, y, tuple(measures), preprocess, null, search, where, places)


def _measures(config: RunConfig, chosen: Any, where: Where) -> dict[Measure | Group, Location]:
    """What is measured, each with its place: what the run names, or a preset, or the default."""
    if chosen is not None and not config.measures:
        return dict.fromkeys(chosen.measures, ("preset",))
    out: dict[Measure | Group, Location] = {}
    for i, text in enumerate(config.measures or DEFAULT_MEASURES):
        with where.at("measures", i):
            out.setdefault(parse_wanted(text), ("measures", i))
    return out


def _sides(config: RunConfig, base: Path, where: Where) -> list[list[tuple[Location, ModelEntry]]]:
    """The models of two sides, or of one list, each with its place."""
    if isinstance(config.models, SidesConfig):
        given, options = config.models, config.models.options
        sides = [
            list(_placed(given.x, base, where, ("models", "x"), options.x)),
            list(_placed(given.y, base, where, ("models", "y"), options.y)),
        ]
    else:
        sides = [list(_placed(config.models, base, where, ("models",)))]
        with where.at("models"):
            if len(sides[0]) < 2 and where.is_right("models"):
                raise RepalignError("one model has nothing to be compared with", expected="two models or more", got=len(sides[0]))
        with where.at("broken_pairs"):
            if config.broken_pairs is not None:
                raise RepalignError("pairs are broken between two sides", expected="models: {x: ..., y: ...}", got="one list")
    _refuse_twins([one for side in sides for one in side], where)
    return sides


def entries(given: Sequence[str | ModelConfig], base: Path, where: Where, at: tuple[str, ...]) -> tuple[ModelEntry, ...]:
    """A list of models, at this place of the file, as entries of the extraction."""
    found = list(_placed(given, base, where, at))
    _refuse_twins(found, where)
    return tuple(entry for _, entry in found)


def _placed(
    given: Sequence[str | ModelConfig], base: Path, where: Where, at: tuple[str, ...], options: ModelOptions | None = None
) -> Iterator[tuple[Location, ModelEntry]]:
    """A list of models as entries, each with its place; `options` are those of the whole side."""
    shared = {} if options is None else options.model_dump(exclude_unset=True)
    with where.at("models", "options", at[-1]):
        ModelEntry(f"of side {at[-1]}", **shared)
    if not where.is_right("models", "options", at[-1]):
        shared = {}
    for i, item in enumerate(given):
        config, found = ModelConfig(spec=item) if isinstance(item, str) else item, []
        about = {**shared, **config.model_dump(exclude={"spec", "set"}, exclude_unset=True)}
        with where.at(*at, i):
            if config.spec is None and config.set is None and not where.is_right(*at, i):
                continue  # it was meant by what is wrong
            if (config.spec is None) == (config.set is None):
                said = config.model_dump_json(exclude_unset=True)
                raise RepalignError("a model is named by `spec` or by `set`", expected="one of them", got=said)
            if config.spec is not None and ":" in config.spec:
                spec = parse_spec(config.spec)
                _refuse_unmarked(spec.path, spec, base)
                found = [ModelEntry(**{**about, "spec": str(spec.resolve(base))})]
            else:
                _refuse_unmarked(config.spec or "", None, base)
                found = _known_entries(config, about)
        for entry in found:
            yield (*at, i), entry


def _refuse_unmarked(path: str, spec: Spec | None, base: Path) -> None:
    """Refuse what may be the name of a published model, and is a path too: of a scheme, or without any."""
    there = base / Path(path).expanduser()
    if path and spec is None and there.exists():
        scheme = "hf" if there.is_dir() else "array"
        path = f"./{path}" if scheme == "hf" and not is_local_path(path) else path
        raise RepalignError(
            f"{path!r} is a {'folder' if scheme == 'hf' else 'file'}, and a model is named by a scheme and a path",
            expected=f"one of {', '.join(SCHEMES)}, a colon and the path", got=path, remedy=f"did you mean \"{scheme}:{path}\"?",
        )  # fmt: skip
    if spec is not None and spec.source.published and not spec.is_local and spec.revision is None and there.is_dir():
        other = f"{spec}@main" if spec.source.has_revisions else "another name for the folder"
        raise RepalignError(
            f"model {spec}: there is a folder {path} beside the study, and the hub may have a model of this name",
            expected="a word on which of them is meant", got=str(spec),
            remedy=f"did you mean ./{path}? Write \"{spec.scheme}:./{path}\" for the folder; for the hub's model, {other}",
        )  # fmt: skip


def _refuse_twins(placed: Sequence[tuple[Location, ModelEntry]], where: Where) -> None:
    """Refuse two models, or one that is read in two ways, under one name: results go by names."""
    names: dict[str, ModelEntry] = {}
    for at, entry in placed:
        spec = parse_spec(entry.spec)
        name = spec.source.name(spec, entry)
        first = names.setdefault(name, entry)
        with where.at(*at):
            if (first.spec, first.settings("")) != (entry.spec, entry.settings("")):
                got = first.spec if first.spec == entry.spec else f"{first.spec} and {entry.spec}"
                raise RepalignError(f"two models are called {name!r}", got=got, remedy="give one of them another `name`")


def _known_entries(config: ModelConfig, about: dict[str, Any]) -> list[ModelEntry]:
    """A known model by its name, or a set of them, as entries; what the file says `about` them counts more."""
    if config.set is not None:
        known = model_set(config.set, config.modality)
        about = {k: v for k, v in about.items() if k != "modality"}
    elif config.spec in {k.model_set for k in known_models()}:
        known = model_set(config.spec)
    else:
        known = (find_model(str(config.spec)),)
    out = []
    for k in known:
        said = {"name": k.name, "family": k.family, "objective": k.objective, **about}
        out.append(ModelEntry(**{**said, "spec": k.spec, "factors": {**k.factors, **said.get("factors", {})}}))
    return out
