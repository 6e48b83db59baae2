"""Comparing what is in a store, or two files of features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from repalign.cli._console import bars, estimate_interval, out, print_json, show, tell, wrote
from repalign.cli._options import (
    AsJson,
    AxesWord,
    ByRows,
    Draws,
    FeatureFile,
    FeaturePatterns,
    GivenKernel,
    GivenRDM,
    GroupsFile,
    IdName,
    KindWords,
    Limit,
    MeasureNames,
    Memory,
    NullName,
    Relabellings,
    SearchWords,
    Seed,
    Shuffle,
    VectorName,
    chosen_null,
    groups_of,
    ids_or_rows,
    kinds_said,
    read_files,
    readings,
    size_in_bytes,
)
from repalign.errors import RepalignError
from repalign.text import number

if TYPE_CHECKING:
    from repalign.comparison.alignment import Alignment
    from repalign.comparison.intervals import Interval

OneDataset = Annotated[str | None, typer.Option(help="Fingerprint (or its start) where the store has several datasets.")]
FIXED = "layers are taken as fixed: after a search for the best pair of layers an interval is centred too high"


def compare(
    store: Annotated[str, typer.Argument(help="A feature store.", show_default=False)],
    x: Annotated[list[str] | None, typer.Option(help="Models of one side, by name; all without.")] = None,
    y: Annotated[list[str] | None, typer.Option(help="Models of the other side.")] = None,
    measure: MeasureNames = None,
    null: NullName = None,
    draws: Draws = None,
    relabellings: Relabellings = None,
    groups: GroupsFile = None,
    shuffle: Shuffle = None,
    search: SearchWords = None,
    memory: Memory = None,
    limit: Limit = None,
    seed: Seed = None,
    dataset: OneDataset = None,
    results: Annotated[Path, typer.Option(help="Where results go.")] = Path("repalign-results"),
) -> None:
    """Compare what is in a store: two sides, or all models with each other."""
    from repalign.comparison import LIMIT
    from repalign.comparison import compare as compare_all
    from repalign.report import write_report

    budget = size_in_bytes(memory)
    models = stored(store, dataset)
    sides = [_pick(models, names) for names in (x, y)] if y else [_pick(models, x), None]
    chance = chosen_null(null, draws, relabellings, groups_of(groups, shuffle, models[0].ids), seed)
    with bars() as progress:
        alignment = compare_all(
            sides[0] or [],
            sides[1],
            measure or None,
            chance,
            search=search,
            memory=budget,
            limit=LIMIT if limit is None else limit,
            results=results,
            progress=progress,
        )
    write_report(results, results / "report.html")
    show(alignment)
    wrote("table", results / "results.parquet")
    wrote("report", results / "report.html", f"open {results / 'report.html'}")


def stored(store: str, dataset: str | None) -> list[Any]:
    """What a store holds of one dataset: the only one, or that of this fingerprint. Equal names are told apart."""
    from repalign.errors import did_you_mean
    from repalign.store import FeatureStore

    found = FeatureStore(store).representations()
    prints = {r.dataset_fingerprint: r.dataset_name for r in found}
    if dataset is not None:
        chosen = [f for f in prints if f.startswith(dataset)]
        if len(chosen) != 1:
            raise RepalignError(
                f"{store}: no single dataset {dataset!r}",
                got=f"{len(chosen)} match",
                remedy=did_you_mean(dataset, prints),
            )
        return _told_apart([r for r in found if r.dataset_fingerprint == chosen[0]])
    if len(prints) != 1:
        named = ", ".join(f"{f[:12]} ({name})" for f, name in prints.items()) or "none"
        raise RepalignError(
            f"{store}: which dataset?",
            expected="one finished dataset, or --dataset with its fingerprint",
            got=named,
            remedy="extract first: repalign extract STUDY" if not prints else "say --dataset FINGERPRINT",
        )
    return _told_apart(found)


def _told_apart(found: list[Any]) -> list[Any]:
    """Representations under names that differ: one model that was read in several ways is named with what differs."""
    out = []
    for r in found:
        others = [o for o in found if o.name == r.name and o is not r]
        settings = r.manifest["settings"]
        said = [f"{k} {v}" for k, v in settings.items() if any(o.manifest["settings"].get(k) != v for o in others)]
        name = f"{r.name} ({', '.join(said) or r.key[:8]})"
        out.append(r.with_record(replace(r.record, name=name)) if others else r)
    twice = {r.name for r in out if [o.name for o in out].count(r.name) > 1}  # another revision, read in the same way
    return [r.with_record(replace(r.record, name=f"{r.name} {r.key[:8]}")) if r.name in twice else r for r in out]


def _pick(models: list[Any], names: list[str] | None) -> list[Any]:
    from repalign.errors import did_you_mean

    known = {r.name: r for r in models}
    for name in names or ():
        if name not in known:
            raise RepalignError(f"the store has no model {name!r}", got=name, remedy=did_you_mean(name, known))
    return [known[n] for n in names] if names else models


def pair(
    x: FeatureFile,
    y: Annotated[Path, typer.Argument(help="Features of the other.", show_default=False)],
    measure: MeasureNames = None,
    null: NullName = None,
    draws: Draws = None,
    relabellings: Relabellings = None,
    groups: GroupsFile = None,
    shuffle: Shuffle = None,
    search: SearchWords = None,
    memory: Memory = None,
    limit: Limit = None,
    seed: Seed = None,
    interval: Annotated[
        bool, typer.Option("--interval", help="Also the 95 % interval over stimuli at the best pair of layers.")
    ] = False,
    id: IdName = None,
    rows: ByRows = False,
    features: FeaturePatterns = None,
    vector: VectorName = None,
    axes: AxesWord = None,
    rdm: GivenRDM = False,
    kernel: GivenKernel = False,
    kind: KindWords = None,
    as_json: AsJson = False,
) -> None:
    """Compare two files of features. Rows are joined on ids; without any in both files, row i with row i.

    Dissimilarities and kernels are marked as such: --rdm, --kernel, or --kind once for each file.

    What is read, how rows are paired and what is left out is told; what could be meant otherwise is refused.

    At large n the cost is told first: linear CKA streams over the rows above 8,192 of them,
    mutual k-NN goes by exact tiles without draws above 20,000, and by 2,000 anchors above 200,000.
    """
    from repalign.comparison import LIMIT, in_memory
    from repalign.comparison import compare as compare_all

    budget = size_in_bytes(memory)
    found = read_files((x, y), readings(2, id, rows, features, vector, axes, kinds_said(rdm, kernel, kind)))
    (left, right), ids, n = found.layers, found.ids, found.n
    names = (x.stem, y.stem) if x.stem != y.stem else (str(x), str(y))
    if not as_json:
        tell(found.how)
    labels = groups_of(groups, shuffle, ids_or_rows(ids, n))
    chance = chosen_null(null, draws, relabellings, labels, seed)
    with bars() as progress:
        sides = [in_memory(layers, name, ids) for layers, name in zip((left, right), names, strict=True)]
        alignment = compare_all(
            sides[:1],
            sides[1:],
            measure or None,
            chance,
            describe={"how": list(found.how)},
            search=search,
            memory=budget,
            limit=LIMIT if limit is None else limit,
            progress=progress,
        )
        # Whole groups change places because their stimuli are not independent: they leave the sample together too.
        units = labels.labels if labels is not None and labels.shuffle == "whole" else None
        around = None
        if interval:
            from repalign.comparison.intervals import best_intervals

            around = best_intervals(alignment, left, right, groups=units, seed=seed or 0, progress=progress)
    if as_json:
        print_json(_rows_of(alignment, around))
        return
    show(alignment)
    if around is not None:
        _show_intervals(alignment, around)


def _rows_of(alignment: Alignment, around: list[Interval | None] | None) -> list[dict[str, Any]]:
    """The best pairs of layers as the result has them, with intervals if there are any: over stimuli, or of an estimate."""
    best, ways = alignment.best(), alignment.run["ways"]
    how = [*alignment.run["how"], *(f"{measure}: {way['method']}" for measure, way in ways.items())]
    if around is not None:
        for name, field in (("interval_statistic", "statistic"), ("low", "low"), ("high", "high")):
            best[name] = [None if i is None else getattr(i, field) for i in around]
    elif any("intervals" in way for way in ways.values()):
        ends = [estimate_interval(alignment, row) or {} for row in best.to_dict("records")]
        best = best.assign(low=[e.get("low") for e in ends], high=[e.get("high") for e in ends])
    return [{**row, "how": how} for row in best.to_dict("records")]


def _show_intervals(alignment: Alignment, around: list[Interval | None]) -> None:
    for row, found in zip(alignment.best().to_dict("records"), around, strict=True):
        if found is None:
            out.print(f"{escape(row['measure'])}: no interval, the score is undefined")
            continue
        where = escape(f"{row['model_x']} [{row['layer_x']}], {row['model_y']} [{row['layer_y']}]")
        ends = f"{number(found.low)} to {number(found.high)}"
        out.print(f"{escape(row['measure'])}, {where}: {number(found.statistic)}, n = {found.n}")
        out.print(f"  95 % interval over stimuli: {ends} ({found.method}, {found.n_replicates} blocks)")
    out.print(f"[dim]{FIXED}[/]")
