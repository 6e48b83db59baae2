"""A study that compares models: every model is run once, and every variant is one comparison."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from repalign import comparison
from repalign.comparison.alignment import SCHEMA, TABLE_FILE
from repalign.comparison.check import VARIANTS_FILE
from repalign.comparison.tiles import GROUPS
from repalign.comparison.ways import way_of
from repalign.comparison.work import TURNS as JOBS
from repalign.dataset import Dataset
from repalign.errors import NotHere, RepalignError
from repalign.figures import kinds
from repalign.files import FILES, Url, file_sha256, place_of, seal_parquet, seen_from, write_file
from repalign.null import Null
from repalign.report import write_report
from repalign.representation import Representation
from repalign.sources import ModelEntry, parse_spec
from repalign.sources.loop import TURNS
from repalign.store import FeatureStore
from repalign.study import before
from repalign.study.base import STORE, Left, OnPlan, Outcome, Plan, Study
from repalign.study.config import AlignmentConfig, CompetenceConfig
from repalign.study.load import Variant, read_variants
from repalign.study.members import Competence, Inputs, Members
from repalign.study.needs import Needs, estimate
from repalign.study.yaml_lines import Where
from repalign.text import Progress, counted, duration, silent, size
from repalign.workers import Share, count_of, sent_bytes

LONGEST = 80  # characters of a folder's name, without a digest
# Names that are taken among results, or by Windows; and those that look as if a digest stood in them.
_TAKEN = re.compile(r"tiles|.*\.(parquet|json|html)|(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_WITH_DIGEST = re.compile(r"-[0-9a-f]{8}$")


@dataclass(frozen=True)
class AlignmentStudy(Study):
    """Models on a dataset, layer by layer, under one setting or several."""

    variants: tuple[Variant, ...]
    where: Where = field(kw_only=True, repr=False, compare=False)
    local: Mapping[str, str] = field(default_factory=dict, kw_only=True)  # hub specs of models read from a folder, by name

    @classmethod
    def load(cls, path: Path, data: dict[str, Any], where: Where) -> AlignmentStudy:
        data.pop("experiment", None)
        data = where.mended(AlignmentConfig, data)
        config = AlignmentConfig.model_validate(data)
        variants = tuple(read_variants(data, config, path.parent, where))
        sure = where.is_right("measures") and where.is_right("variants") and where.is_right("sweep")
        measures = list(dict.fromkeys(repr(m) for v in variants for m in v.every_measure))
        for i, item in enumerate(config.figures):
            with where.at("figures", i):
                kinds.check(item, *(([v.name for v in variants], measures) if sure else ()))
        return cls(path, config, variants, where=where)

    def with_local(self, *folders: Path) -> AlignmentStudy:
        local: dict[str, str] = {}
        study = self
        for folder in folders:
            found = dict(local)
            study = replace(study, variants=tuple(_from_folder(v, folder, found) for v in study.variants))
            if found == local:
                raise _holds_none(self, folder)
            local = found
        return replace(study, local=local)

    @property
    def told_of_local(self) -> tuple[str, ...]:
        """What was read from where in the place of models of the hub."""
        found = {e.label: parse_spec(e.spec).path for v in self.variants for side in v.sides for e in side if e.label in self.local}
        return tuple(f"{name}: {path} in the place of {self.local[name]}" for name, path in found.items())

    def look(self) -> None:
        before.look(self, self._inputs(silent), self.where, is_plan=True)

    def _inputs(self, progress: Progress, executor: Executor | None = None) -> Inputs:
        return Inputs(self.base, self.store, progress, executor, self.is_mock)

    def _ready(self, progress: Progress, executor: Executor | None = None, *, is_plan: bool = False) -> Inputs:
        """What the study compares, once nothing is known to be wrong: RepalignError with all that is."""
        inputs = self._inputs(progress, executor)
        before.look(self, inputs, self.where, is_plan=is_plan)
        self.where.refuse()
        return inputs

    @property
    def x(self) -> tuple[ModelEntry, ...]:
        """The models of side x, of the first variant."""
        return self.variants[0].x

    @property
    def y(self) -> tuple[ModelEntry, ...] | None:
        return self.variants[0].y

    @property
    def store(self) -> str:
        """Where features are kept: a folder or a URL that the file names, or one for all studies of this folder.

        A store in the study's own folder, as each had before they shared one, stays in use.
        """
        given, own = self.config.store, self.folder / STORE
        if given is not None:
            return str(place_of(given, self.base))
        return str(own if isinstance(own, Path) and own.is_dir() else self.runs / STORE)

    def results_of(self, variant: Variant) -> Path | Url:
        """Where the result of a variant is kept: a folder of its own among the results, if there are several.

        One that was kept under its readable name alone stays there, where no other variant means that folder.
        """
        if not variant.name:
            return self.results
        folder, before = self.results / folder_name(variant.name), self.results / _readable(variant.name)
        if isinstance(before, Url):  # no version before that wrote there
            return folder
        others = {_readable(v.name).lower() for v in self.variants if v.name != variant.name}
        if before.is_dir() and before.name.lower() not in others and not folder.exists() and not _TAKEN.fullmatch(before.name):
            return before
        return folder

    def open_dataset(self, progress: Progress = silent) -> Dataset:
        """The stimuli of the first variant."""
        return self._inputs(progress).dataset(self.variants[0])

    def plan(self, progress: Progress = silent, over: int = 1, is_sent: bool = False) -> Plan:
        """As of any study; for work that is shared out over so many workers, to whom it is sent or who read it themselves."""
        return _plan(self, self._ready(progress, is_plan=True), over, is_sent)

    def extract(self, *, progress: Progress = silent, executor: Executor | None = None) -> list[Representation]:
        """All representations of all variants, in the store, comparing none."""
        inputs = self._ready(progress, executor)
        inputs.gather(self.variants)
        return list({r.key: r for v in self.variants for r in inputs.members(v).everything}.values())

    @property
    def has_workers(self) -> bool:
        return True

    def share(
        self, share: Share, *, compare: bool = True, executor: Executor | None = None, progress: Progress = silent,
        on_plan: OnPlan = None,
    ) -> Left:  # fmt: skip
        inputs = self._ready(progress, executor)
        if on_plan is not None:
            on_plan(_plan(self, inputs, share.count))
        if pending := inputs.gather(self.variants, share):
            return Left(tuple(pending), shares=tuple(sorted({i for one in pending for i in one.shares})))
        missing, total, owners = 0, 0, set[int]()
        for variant in self.variants if compare else ():
            given, options = self._asked(variant, inputs.members(variant), inputs, self.results_of(variant))
            lacks, of, shares = comparison.compare_share(share, *given, **options)
            missing, total, owners = missing + lacks, total + of, owners | set(shares)
        return Left((), missing, total, tuple(sorted(owners)))

    def run(self, *, progress: Progress = silent, executor: Executor | None = None, on_plan: OnPlan = None) -> Outcome:
        config = self.config
        inputs = self._ready(progress, executor)
        if config.competence != CompetenceConfig():
            kept = self.folder / "competence"
            inputs.competence = Competence(config.competence, self.base, kept, config.extract, progress)
        if on_plan is not None:
            on_plan(_plan(self, inputs, count_of(executor), executor is not None))
        inputs.gather(self.variants)  # all models first, so that workers have no pause between variants
        representations, alignments, reports, skipped, pairs = {}, {}, {}, {}, []
        for variant in self.variants:
            found = inputs.members(variant)
            representations[variant.name] = {r.name: r for r in found.everything}
            skipped |= found.skipped
            folder = self.results_of(variant)
            given, options = self._asked(variant, found, inputs, folder)
            made = alignments[variant.name] = comparison.compare(*given, **options)
            reports[variant.name] = folder / "report.html" if variant.name else self.report
            write_report(folder, reports[variant.name], alignment=made)
            swept = {name: value for name, value in variant.factors.items() if name not in SCHEMA.names}
            pairs.append(made.table.loc[made.table["scope"] == "max"].assign(variant=variant.name, **swept))
        is_one = not self.variants[0].name
        wrote = (("table", self.results / "results.parquet"), ("report", self.report)) if is_one else ()
        outcome = Outcome(alignments, skipped=tuple(skipped.items()), wrote=wrote)
        if not config.figures and len(self.variants) == 1:
            return outcome
        table = pd.concat(pairs, ignore_index=True)
        published = None if config.published is None else self.base / config.published
        drawn = kinds.Results(alignments, table, representations, published).draw(config.figures, progress)
        if is_one:
            page, reports = self.report.with_name("figures.html"), {"all layers, all models": self.report}
        else:
            page, folders = self.report, [self.results_of(variant) for variant in self.variants]
            outcome = replace(outcome, wrote=(("table", write_combined(table, self.results / VARIANTS_FILE, folders)),))
        return self.show(drawn, outcome, ("figures", self.folder / "figures"), page, reports)

    def _asked(
        self, variant: Variant, found: Members, inputs: Inputs, folder: Path | Url
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
        """What `compare` is given for a variant."""
        whole = self.config.model_dump(mode="json", exclude_unset=True, exclude={"variants", "sweep"})
        config, first, dataset = variant.config, found.x[0], inputs.dataset(variant)
        how = [] if config.dataset is not None else [dataset.source, *(r.facts["read"] for r in found.everything)]
        how += self.told_of_local
        named = {key: r for r in found.everything for key in (r.record.spec, r.name, self.local.get(r.name, r.name))}
        replicates = [both for both in config.ceilings.replicates if not found.skipped.keys() & set(both)]
        given = found.x, found.y, variant.measures, variant.null_of(first.ids, self.base)
        described = {
            "name": f"{self.name}: {variant.name}" if variant.name else self.name,
            "dataset": {**dataset.describe(), "n": first.n, "name": first.dataset_name},
            **({"how": how} if how else {}),
            "study": {**whole, **config.model_dump(mode="json", exclude_unset=True)},
            "warnings": found.warnings,
        }  # fmt: skip
        return given, {
            "search": variant.search, "alpha": config.alpha, "preprocess": variant.preprocess, "results": folder,
            "executor": inputs.executor, "device": config.device, "replicates": [(named[a], named[b]) for a, b in replicates],
            "split_half": config.ceilings.split_half, "limit": config.limit, "progress": inputs.progress, "describe": described,
        }  # fmt: skip

    def mock(self, progress: Progress = silent) -> AlignmentStudy:
        from repalign.study.mock import mock_study

        return mock_study(self, progress)


# --- the plan ------------------------------------------------------------------------------------

FEW = 8  # measures, and variants, that the plan names one by one
ASSUMED = 1024  # stimuli of a dataset that cannot be opened yet: the paper's number


def _plan(study: AlignmentStudy, inputs: Inputs, over: int = 1, is_sent: bool = False) -> Plan:
    """The dataset, the comparisons, and an estimate of downloads, disk, memory and time."""
    is_known = True
    try:
        datasets = [inputs.dataset(variant) for variant in study.variants]
        lost = f", {len(datasets[0].left_out)} rows left out" if datasets[0].left_out else ""
        what = ", ".join(datasets[0].modalities) or datasets[0].source
        lines = [f"dataset {datasets[0].name}: n = {datasets[0].n}, {what}{lost}"]
    except NotHere as error:
        is_known, datasets = False, [Dataset.toy(ASSUMED)] * len(study.variants)
        lines = [
            f"the dataset cannot be opened yet ({str(error).splitlines()[0]}); below it is taken for {ASSUMED:,} captioned "
            "images, and its own download is not counted"
        ]
    runs = []
    for variant, dataset in zip(study.variants, datasets, strict=True):
        given = variant.config.dataset
        sample = variant.config.rows or (None if is_known or given is None else given.sample)
        n = dataset.n if sample is None else sample.n
        if len(runs) < FEW:
            null = variant.null
            if is_known and variant.config.null.groups is not None:
                with suppress(NotHere):  # nor are the groups
                    null = variant.null_of(variant.compared(dataset.ids), study.base)
            lines += _compared(variant, n, null)
        runs.append((variant, dataset, n))
    if len(runs) > FEW:
        lines.append(f"and {len(runs) - FEW} more variants")
    given = study.config.competence
    for path in [*given.lm_eval, *given.timm, *given.csv]:
        if not (study.base / path).exists():
            lines.append(f"warning: {path} is not there yet; the run needs it for the scores of models")
    needs = _needs(inputs, runs, is_known)
    shared = [] if over == 1 else [_shared_out(needs, runs, over, is_sent)]
    return Plan((*lines, *study.told_of_local, *needs.lines(), *shared, f"features in {study.store}"), needs.table)


def _holds_none(study: AlignmentStudy, folder: Path) -> RepalignError:
    specs = [parse_spec(e.spec) for v in study.variants for side in v.sides for e in side]
    paths = [str(folder / spec.path) for spec in specs if not spec.is_local]
    return RepalignError(
        f"{folder} holds none of the study's models", got="other paths" if folder.is_dir() else "no such folder",
        expected=f"a folder such as {paths[0]}" if paths else "a study with models of the hub",
        remedy="name the folder above their paths, or leave --local out",
    )  # fmt: skip


def _from_folder(variant: Variant, folder: Path, local: dict[str, str]) -> Variant:
    """A variant with the models that the folder holds read from there, under their names; `local` is told which."""
    sides, places = [], dict(variant.places)
    for name, side in zip("xy", variant.sides, strict=False):
        entries = []
        for entry in side:
            spec = parse_spec(entry.spec)
            found = spec.found_in(folder)
            if found is not None:
                was, entry = entry, replace(entry, spec=str(found), name=spec.source.name(spec, entry))
                local[entry.label] = str(spec)
                places[name, entry.label] = places.get((name, was.label), ("models",))
            entries.append(entry)
        sides.append(tuple(entries))
    return replace(variant, x=sides[0], y=sides[1] if len(sides) == 2 else None, places=places)


def _compared(variant: Variant, n: int, null: Null) -> list[str]:
    """What one run compares, and the draws behind each measure's chance level."""
    nx, ny, measures = len(variant.x), len(variant.y or ()), variant.every_measure
    pairs = nx * ny if variant.y is not None else nx * (nx - 1) // 2
    counts = f"{counted(nx + ny, 'model')}, {counted(pairs, 'pair')} of models, {counted(len(measures), 'measure')}"
    if variant.name:
        return [f"variant {variant.name}: n = {n}, {counts}"]
    drawn = {}
    for measure in measures:
        way, judge = way_of(measure, null, n, plain=variant.preprocess.is_identity, search=variant.search or "studentised")
        drawn[measure] = f"{type(judge).__name__.lower()} null, {0 if way.by else judge.count(n)} draws"
    if len(drawn) <= FEW:
        return [counts, *(f"{m!r}: {how}" for m, how in drawn.items())]
    return [counts, *(f"{count} measures: {how}" for how, count in Counter(drawn.values()).items())]


def _shared_out(needs: Needs, runs: Sequence[tuple[Variant, Dataset, int]], over: int, is_sent: bool) -> str:
    """What the work is that `over` workers share: hours of each kind, files, and the bytes that are sent to them."""
    parts, models = int(needs.running["parts"].sum()), len(needs.running)
    pairs = [len(v.x) * len(v.y) if v.y is not None else len(v.x) * (len(v.x) - 1) // 2 for v, _, _ in runs]
    groups = [min(GROUPS, many * len(v.every_measure)) for (v, _, _), many in zip(runs, pairs, strict=True)]
    comparing, running = sum(c.seconds for c in needs.comparing), float(needs.running["seconds"].sum())
    said = f"{over} workers share {duration(running)} of running models on {needs.device} and {duration(comparing)} of comparing "
    said += f"on a CPU, as {counted(parts, 'part')} and {counted(sum(groups), 'group')} of comparisons: "
    said += f"at best {duration(needs.seconds / over)} in all"
    said += f"; files: {parts + models:,} in the store, {sum(groups):,} beside the results"
    if is_sent:  # with a task of extraction the data set, with one of comparing the description of its models
        stimuli = max(sent_bytes(dataset) for _, dataset, _ in runs)
        ids = max(sent_bytes(dataset.ids) for _, dataset, _ in runs)
        tasks = min(parts, TURNS * over) * stimuli + sum(min(many, JOBS * over) for many in groups) * 2 * ids
        said += f"; sent to workers: about {size(tasks)}, and features by the store"
    return said


def _needs(inputs: Inputs, runs: Sequence[tuple[Variant, Dataset, int]], is_known: bool) -> Needs:
    """What all runs need: every model is run once for all datasets that are the same to it, every variant compared once."""
    parts, compared, kept = {}, [], FeatureStore(inputs.store)
    for variant, dataset, n in runs:
        config = variant.config
        captioned = inputs.captioned(variant) if is_known else variant.captioned
        x, *y = ([e for several in side for e in several] for side in captioned)
        options = {
            **config.extract.model_dump(include={"device", "dtype", "batch_size"}), "preprocess": variant.preprocess,
            "n_compared": n, "limit": config.limit,
        }  # fmt: skip
        key = repr((dataset.fingerprint, x, y, variant.measures, variant.null, options))
        if key not in parts:
            found = estimate(dataset, x, y[0] if y else None, variant.measures, variant.null, store=kept, **options)
            entries = [f"{_seen(dataset, e)} {e!r}" for side in (x, *y) for e in side]
            several = math.ceil(dataset.n / config.extract.rows_per_part)
            parts[key] = replace(found, table=found.table.assign(entry=entries, parts=several))
        compared += parts[key].comparing
    last, every = next(reversed(parts.values())), pd.concat([part.table for part in parts.values()])
    table = every.drop_duplicates("entry").drop(columns="entry").reset_index(drop=True)
    fetched = table["model"].duplicated()  # weights are downloaded once, however often a model is run
    table.loc[fetched & table["download_bytes"].notna(), "download_bytes"] = 0
    warnings = {w.partition(" about ")[0]: w for part in parts.values() for w in part.warnings}  # one for each need
    return replace(last, table=table, comparing=tuple(compared), warnings=tuple(warnings.values()))


def _seen(dataset: Dataset, entry: ModelEntry) -> str:
    """What a model reads of a dataset, as far as that is known before it is loaded."""
    spec = parse_spec(entry.spec)
    return dataset.seen.get(spec.source.modality(spec, entry) or "", dataset.fingerprint)


# --- files and folders ---------------------------------------------------------------------------


def write_combined(table: pd.DataFrame, path: Path | Url, of: Sequence[Path | Url]) -> Path | Url:
    """Write the table of all variants as a sealed Parquet file that states the digests of the results it is made `of`."""
    files = [folder / TABLE_FILE for folder in of]
    stated = {seen_from(file, path.parent): file_sha256(file) for file in files}
    about = {FILES: json.dumps(stated, sort_keys=True)}
    write_file(path, seal_parquet(pa.Table.from_pandas(table, preserve_index=False), about))
    return path


def folder_name(variant: str) -> str:
    """A variant's name as a folder's: itself where any file system takes it, else its readable part and a digest.

    Different names have different folders, but for upper and lower case, which a study refuses to tell names apart by.

    >>> folder_name("few-draws"), folder_name("share 0.5")
    ('few-draws', 'share-0.5-e0f73578')
    """
    readable = _readable(variant)
    taken = _TAKEN.fullmatch(variant) or _WITH_DIGEST.search(variant)
    if readable == variant and len(variant) <= LONGEST and not taken:
        return variant
    digest = hashlib.sha256(variant.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{readable[:LONGEST]}-{digest}"


def _readable(variant: str) -> str:
    """The name as folders were called before they had digests."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", variant).strip("-.") or "variant"
