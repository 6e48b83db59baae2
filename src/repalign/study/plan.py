"""What a study of alignment would do, and what it needs, told before it starts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from repalign.study.base import Plan
from repalign.study.load import Variant
from repalign.study.representations import Source

if TYPE_CHECKING:
    from repalign.study.alignment import AlignmentStudy

FEW = 8  # measures, and variants, that the plan names one by one


def plan(study: AlignmentStudy, source: Source) -> Plan:
    """The dataset, the comparisons, and an estimate of downloads, disk, memory and time."""
    dataset = source.dataset(study.variants[0])
    lines = [
        f"dataset {dataset.name}: n = {dataset.n}, {', '.join(dataset.modalities)}"
        + (f", {len(dataset.left_out)} rows left out" if dataset.left_out else "")
    ]
    shown = study.variants[:FEW]
    for variant in shown:
        lines += _compared(study, variant, source)
    if len(study.variants) > FEW:
        lines.append(f"and {len(study.variants) - FEW} more variants")
    lines += [*_estimated(study, source), f"features in {study.store}"]
    return Plan(tuple(lines))


def _compared(study: AlignmentStudy, variant: Variant, source: Source) -> list[str]:
    """What one run compares, and the draws behind each measure's chance level."""
    from repalign import null as nulls
    from repalign.measures import parse_measures
    from repalign.study.alignment import null_of

    dataset, rows = source.dataset(variant), variant.config.rows
    n = dataset.n if rows is None else rows.n
    nx, ny = len(variant.x), len(variant.y or ())
    pairs = nx * ny if variant.y is not None else nx * (nx - 1) // 2
    measures = [m for w in variant.measures for m in (parse_measures([w]) if isinstance(w, str) else [w])]
    counts = f"{nx + ny} models, {pairs} pairs of models, {len(measures)} measures"
    if variant.name:
        return [f"variant {variant.name}: n = {n}, {counts}"]
    null = null_of(variant, study.base, dataset.ids[:n])
    told = {m: (r := nulls.resolve(null, m, n), r.count(n)) for m in measures}
    each = [f"{m!r}: {type(r).__name__.lower()} null, {draws} draws" for m, (r, draws) in told.items()]
    if len(each) > FEW:
        by_null = Counter(f"{type(r).__name__.lower()} null, {draws} draws" for r, draws in told.values())
        each = [f"{count} measures: {what}" for what, count in by_null.items()]
    return [counts, *each]


def _estimated(study: AlignmentStudy, source: Source) -> list[str]:
    return []
