"""What a study of alignment would do, and what it needs, told before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from repalign.errors import RepalignError
from repalign.study.base import Plan
from repalign.study.load import Variant
from repalign.study.members import Inputs, captioned

if TYPE_CHECKING:
    from repalign.dataset import Dataset
    from repalign.null import Null
    from repalign.study.alignment import AlignmentStudy

FEW = 8  # measures, and variants, that the plan names one by one
ASSUMED = 1024  # stimuli of a dataset that cannot be opened yet: the paper's number


def plan(study: AlignmentStudy, source: Inputs) -> Plan:
    """The dataset, the comparisons, and an estimate of downloads, disk, memory and time."""
    lines: list[str] = []
    datasets = _Planned(source, lines)
    first = datasets.of(study.variants[0])
    if not lines:
        lost = f", {len(first.left_out)} rows left out" if first.left_out else ""
        lines.append(f"dataset {first.name}: n = {first.n}, {', '.join(first.modalities)}{lost}")
    for variant in study.variants[:FEW]:
        lines += _compared(study, variant, datasets)
    if len(study.variants) > FEW:
        lines.append(f"and {len(study.variants) - FEW} more variants")
    lines += _missing_files(study)
    lines += _estimated(study, datasets)
    return Plan((*lines, f"features in {study.store}"))


class _Planned:
    """The datasets of the variants; in the place of one that cannot be opened yet, one of the toy world, and a line."""

    def __init__(self, source: Inputs, lines: list[str]) -> None:
        self.source, self.lines = source, lines
        self.assumed: Dataset | None = None

    def of(self, variant: Variant) -> Dataset:
        from repalign.dataset import Dataset

        if self.assumed is not None:
            return self.assumed
        try:
            return self.source.dataset(variant)
        except RepalignError as error:
            self.assumed = Dataset.toy(ASSUMED)
            why = str(error).splitlines()[0]
            self.lines.append(
                f"the dataset cannot be opened yet ({why}); below it is taken for {ASSUMED:,} captioned images, and its own "
                "download is not counted"
            )
            return self.assumed

    def null(self, study: AlignmentStudy, variant: Variant) -> Null:
        """The null of a variant; without its groups where the stimuli are not known."""
        return variant.null if self.assumed is not None else variant.null_of(self.of(variant).ids[: self.n(variant)], study.base)

    def n(self, variant: Variant) -> int:
        """How many stimuli a variant compares."""
        rows, sample = variant.config.rows, variant.config.dataset.sample
        if rows is not None:
            return rows.n
        return sample.n if self.assumed is not None and sample is not None else self.of(variant).n


def _compared(study: AlignmentStudy, variant: Variant, datasets: _Planned) -> list[str]:
    """What one run compares, and the draws behind each measure's chance level."""

    n = datasets.n(variant)
    nx, ny = len(variant.x), len(variant.y or ())
    pairs = nx * ny if variant.y is not None else nx * (nx - 1) // 2
    measures = variant.every_measure
    counts = f"{nx + ny} models, {pairs} pairs of models, {len(measures)} measures"
    if variant.name:
        return [f"variant {variant.name}: n = {n}, {counts}"]
    null = datasets.null(study, variant)
    told = {m: (r := null.resolve(m, n), r.count(n)) for m in measures}
    each = [f"{m!r}: {type(r).__name__.lower()} null, {draws} draws" for m, (r, draws) in told.items()]
    if len(each) > FEW:
        by_null = Counter(f"{type(r).__name__.lower()} null, {draws} draws" for r, draws in told.values())
        each = [f"{count} measures: {what}" for what, count in by_null.items()]
    return [counts, *each]


def _missing_files(study: AlignmentStudy) -> Iterator[str]:
    """Files of scores that the study names and that are not there yet."""
    given = study.config.competence
    for path in [*given.lm_eval, *given.timm, *given.csv]:
        if not (study.base / path).exists():
            yield f"warning: {path} is not there yet; the run needs it for the scores of models"


def _estimated(study: AlignmentStudy, datasets: _Planned) -> list[str]:
    """Downloads, disk, memory and time: every model once for each dataset, every variant compared once."""
    from repalign.estimate import Comparison, Estimate, estimate
    from repalign.measures import Group

    options, found, rows, seen = study.config.extract, dict[tuple, Estimate](), [], set[tuple[str, str]]()
    comparisons: list[Comparison] = []
    for variant in study.variants:
        dataset, n = datasets.of(variant), datasets.n(variant)
        x = captioned(variant.x, variant.config.captions.x)
        y = None if variant.y is None else captioned(variant.y, variant.config.captions.y)
        named = [(dataset.fingerprint, repr(e)) for e in (*x, *(y or ()))]
        if datasets.assumed is not None:  # whose one caption stands for any
            x = [replace(e, caption=0) for e in x]
            y = None if y is None else [replace(e, caption=0) for e in y]
        key = (dataset.fingerprint, n, variant.measures, variant.preprocess, repr(x), repr(y), variant.config.null)
        if key not in found:
            rates = next((e.rates for e in found.values()), None)
            measures = [m.name if isinstance(m, Group) else m for m in variant.measures]
            found[key] = estimate(
                dataset, x, y, measures, datasets.null(study, variant), store=study.store, n_compared=n, rates=rates,
                preprocess=variant.preprocess, device=options.device, dtype=options.dtype, batch_size=options.batch_size,
            )  # fmt: skip
        comparisons.append(found[key].comparison)
        rows.append(found[key].table[[name not in seen for name in named]])
        seen |= set(named)
    table = pd.concat(rows, ignore_index=True)
    fetched = table["model"].duplicated()  # weights are downloaded once, however often a model is run
    table.loc[fetched & table["download_bytes"].notna(), "download_bytes"] = 0
    last = next(reversed(found.values()))
    warnings = tuple({w.partition(" about ")[0]: w for e in found.values() for w in e.warnings}.values())  # one for each need
    return replace(last, table=table, comparison=Comparison.together(comparisons), warnings=warnings).lines()
