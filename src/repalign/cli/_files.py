"""What two or three files of features are asked: how close, which is closer, and how the score moves with n."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from repalign.cli._commands import importing
from repalign.cli._console import (
    bars,
    estimate_of,
    marked,
    out,
    print_json,
    show,
    show_table,
    tell,
    write_csv,
    write_result,
    wrote,
)
from repalign.cli._options import (
    AsJson,
    Comparing,
    FeatureFile,
    GroupsFile,
    IntervalMethod,
    MeasureNames,
    OtherFile,
    Reader,
)
from repalign.errors import choose
from repalign.text import alike, between, number, pvalue

if TYPE_CHECKING:
    from repalign.comparison.alignment import Alignment

SeedNumber = Annotated[int, typer.Option(help="Seed of what is drawn at random, for instance 7.")]
FIXED = "layers are taken as fixed: after a search for the best pair of layers an interval is centred too high"


def pair(
    x: FeatureFile, y: OtherFile, measure: MeasureNames = None, *, how: Comparing, interval: IntervalMethod = None,
    to: Annotated[str | None, typer.Option("--out")] = None, csv: Path | None = None, reader: Reader, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare two files of features. Rows are joined on ids; without any in both files, row i with row i.

    Dissimilarities and kernels are marked as such: --rdm, --kernel, or --kind once for each file.

    The command says what it reads, how it pairs rows and what it leaves out; what could mean two things is refused.

    Large n changes how scores are computed, and the command says so: linear CKA reads the rows in a stream above 8,192,
    mutual k-NN is exact but without draws above 20,000, and an estimate from 2,000 anchors above 200,000.

    Parameters
    ----------
    to : Also write the result into this folder or URL: the table as Parquet and CSV, the report, and the figures.
    csv : Also write the table here, for instance table.csv.
    """
    with importing():
        from repalign.comparison import in_memory
        from repalign.comparison.intervals import CHOICES, with_intervals

    if interval is not None:
        choose("--interval", interval, CHOICES)
    found = reader.read(x, y)
    names = (x.stem, y.stem) if x.stem != y.stem else (str(x), str(y))
    if not as_json:
        tell(found.how)
    one, other = (in_memory(layers, name, found.ids) for layers, name in zip(found.layers, names, strict=True))
    groups = how.grouped(one.ids)
    with bars() as progress:
        told = {"how": list(found.how)}
        alignment = how.compare([one], [other], measure, groups, describe=told, progress=progress)
        if interval is not None:
            alignment = with_intervals(alignment, one, other, interval, how.chance(groups), progress=progress)
    if as_json:
        print_json(_rows_of(alignment))
    else:
        show(alignment)
        if interval is not None:
            _show_intervals(alignment)
    files = [] if csv is None else [("table", alignment.to_csv(csv))]
    if to is not None:
        files += write_result(alignment, alignment.save(to))
    for what, path in () if as_json else files:
        wrote(what, path)


def _rows_of(alignment: Alignment) -> list[dict[str, Any]]:
    """The best pairs of layers as the result has them, with intervals if there are any: over stimuli, or of an estimate."""
    best, ways = alignment.best(), alignment.run["ways"]
    how = [*alignment.run["how"], *(f"{measure}: {way['method']}" for measure, way in ways.items())]
    if "intervals" in alignment.run:
        over = {one["measure"]: one for one in alignment.run["intervals"]}
        for name, field in (("interval", "method"), ("interval_statistic", "statistic"), ("low", "low"), ("high", "high")):
            best[name] = [over.get(measure, {}).get(field) for measure in best["measure"]]
    elif any("intervals" in way for way in ways.values()):
        ends = [estimate_of(alignment, row) or {} for row in best.to_dict("records")]
        best = best.assign(low=[e.get("low") for e in ends], high=[e.get("high") for e in ends])
    return [{**row, "how": how} for row in best.to_dict("records")]


def _show_intervals(alignment: Alignment) -> None:
    over = {one["measure"]: one for one in alignment.run["intervals"]}
    for row in alignment.best().to_dict("records"):
        label, one = escape(alignment.about[row["measure"]].label), over.get(row["measure"])
        if one is None:
            out.print(f"{label}: no interval, the score is undefined")
            continue
        where = escape(f"{row['model_x']} [{row['layer_x']}], {row['model_y']} [{row['layer_y']}]")
        out.print(f"{label}, {where}: {number(one['statistic'])}, n = {row['n']}")
        blocks = f"{one['n_replicates']} {'blocks' if one['method'] == 'jackknife' else 'halves'}"
        out.print(f"  95 % interval over stimuli: {between(one['low'], one['high'])} ({one['method']}, {blocks})")
    out.print(f"[dim]{FIXED}[/]")


def difference(
    ref: Path, a: Path, b: OtherFile, measure: MeasureNames = None, layers: tuple[str, str, str] | None = None,
    groups: GroupsFile = None, interval: IntervalMethod = "auto", seed: SeedNumber = 0, *, reader: Reader, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Is REF closer to A than to B? Both scores, their difference, its 95 % interval over stimuli and its p.

    Rows are joined on ids; without any in the three files, by row.
    With --groups, stimuli of one group leave the sample together.

    Parameters
    ----------
    ref : Features of the model that is asked about.
    a : Features of one candidate.
    layers : A layer of each file, such as --layers layer.7 layer.11 features.
    """
    with importing():
        from repalign.comparison import default_measures
    from repalign.comparison.alignment import about_of
    from repalign.comparison.intervals import difference_interval
    from repalign.layers import kind_of
    from repalign.measures import parse_measure

    (x, y, other), joined = reader.read_layers((ref, a, b), layers)
    measures = [parse_measure(m) for m in measure or default_measures({kind_of(layer) for layer in (x, y, other)})]
    units = Comparing(groups=groups).grouped(joined.ids or tuple(map(str, range(joined.n))))
    labels, names = units and units.labels, (str(ref), str(a), str(b))
    with bars() as progress:
        found = [
            difference_interval(x, y, other, m, method=interval, groups=labels, seed=seed, names=names, progress=progress)
            for m in measures
        ]
    scored = [
        {
            "measure": repr(m), "n": joined.n, "score_a": i.scores[0], "score_b": i.scores[1], "difference": i.statistic,
            "low": i.low, "high": i.high, "pvalue": i.pvalue, "level": i.level, "method": i.method, "n_units": i.n_units,
            "how": list(joined.how),
        }
        for m, i in zip(measures, found, strict=True) if i.scores is not None
    ]  # fmt: skip
    if as_json:
        print_json(scored)
        return
    tell(joined.how)
    rows, about = [], about_of({}, [row["measure"] for row in scored])
    for row in scored:
        numbers = (*alike(row["score_a"], row["score_b"]), number(row["difference"]))
        rows.append((marked(about[row["measure"]]), *numbers, between(row["low"], row["high"]), pvalue(row["pvalue"])))
    title = f"{ref.name} with A = {a.name} and with B = {b.name}, n = {joined.n}"
    show_table(("measure", "with A", "with B", "difference", "95 % interval", "p"), rows, title)
    methods = " and ".join(dict.fromkeys(row["method"] for row in scored))
    out.print(f"[dim]interval over stimuli ({methods}), p two-sided; layers are taken as fixed[/]")


def curve(
    x: FeatureFile, y: OtherFile, k: int = 10, share: float | None = None, repeats: int = 5,
    layers: tuple[str, str] | None = None, seed: SeedNumber = 0, csv: Path | None = None, *, reader: Reader,
) -> None:  # fmt: skip
    """Mutual k-NN as the number of stimuli grows (n = 2^j), with k fixed and with k a share of n.

    With k fixed the score of the very same two spaces falls as n grows:
    do not compare scores at different n.

    Parameters
    ----------
    k : Neighbours in the first mode, for instance 10.
    share : k / n in the second mode, for instance 0.01; by default as at the smallest n.
    repeats : Random orders of the stimuli, for instance 5.
    layers : A layer of each file, for instance --layers layer.7 features.
    csv : Also write the table here, for instance curve.csv.
    """
    with importing():
        from repalign.comparison import gallery_curve

    (left, right), joined = reader.read_layers((x, y), layers)
    with bars() as progress:
        found = gallery_curve(left, right, k, share, repeats=repeats, seed=seed, progress=progress)
    tell(joined.how)
    for mode, said in (("fixed", "k fixed"), ("share", "k a share of n")):
        rows = [
            (f"{row['n']:,}", str(row["k"]), *(number(row[c]) for c in ("statistic", "std", "chance", "corrected")))
            for row in found.to_dict("records") if row["mode"] == mode
        ]
        columns = ("n", "k", "score", "sd over repeats", "chance", "corrected")
        show_table(columns, rows, f"{x.name}, {y.name}: mutual k-NN (cosine), {said}", words=0)
    out.print("[dim]corrected = (score - chance) / (1 - chance), chance = k / (n - 1)[/]")
    if csv is not None:
        write_csv(csv, found)
        wrote("table", csv)
