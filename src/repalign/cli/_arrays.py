"""What else two or three files of features can be asked: which is closer, and how the score moves with n."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from repalign.cli._console import bars, out, print_json, tell, wrote
from repalign.cli._options import (
    AsJson,
    AxesWord,
    ByRows,
    FeatureFile,
    FeaturePatterns,
    GivenKernel,
    GivenRDM,
    GroupsFile,
    IdName,
    KindWords,
    MeasureNames,
    VectorName,
    groups_of,
    ids_or_rows,
    kinds_said,
    one_layer,
    read_files,
    readings,
)
from repalign.errors import RepalignError
from repalign.text import number, pvalue

SeedNumber = Annotated[int, typer.Option(help="Seed of what is drawn at random, for instance 7.")]


def difference(
    ref: Annotated[Path, typer.Argument(help="Features of the model that is asked about.", show_default=False)],
    a: Annotated[Path, typer.Argument(help="Features of one candidate.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Features of the other.", show_default=False)],
    measure: MeasureNames = None,
    layers: Annotated[
        tuple[str, str, str] | None,
        typer.Option(help="A layer of each file, for instance --layers layer.7 layer.11 features."),
    ] = None,
    groups: GroupsFile = None,
    seed: SeedNumber = 0,
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
    """Is REF closer to A than to B? Both scores, their difference, its 95 % interval over stimuli and its p.

    Rows are joined on ids; without any in the three files, by row.
    With --groups, stimuli of one group leave the sample together.
    """
    from repalign.comparison import default_measures
    from repalign.comparison.intervals import difference_interval
    from repalign.layers import kind_of
    from repalign.measures import parse_measure

    joined = read_files((ref, a, b), readings(3, id, rows, features, vector, axes, kinds_said(rdm, kernel, kind)))
    files, ids = joined.layers, joined.ids
    names = layers or (None, None, None)
    reference, first, second = (one_layer(f, p, n) for f, p, n in zip(files, (ref, a, b), names, strict=True))
    n, kinds = len(reference), {kind_of(x) for x in (reference, first, second)}
    parsed = [parse_measure(m) for m in measure or default_measures(kinds)]
    units = None if groups is None else groups_of(groups, "within", ids_or_rows(ids, n))
    scored = []
    with bars() as progress:
        for m in parsed:
            found = difference_interval(
                reference, first, second, m, groups=units and units.labels, seed=seed, names=(str(ref), str(a), str(b)),
                progress=progress,
            )  # fmt: skip
            assert found.scores is not None
            scored.append(
                {
                    "measure": repr(m), "n": n, "score_a": found.scores[0], "score_b": found.scores[1],
                    "difference": found.statistic, "low": found.low, "high": found.high,
                    "pvalue": found.pvalue, "level": found.level, "method": found.method, "n_units": found.n_units,
                }
            )  # fmt: skip
    if as_json:
        print_json([{**row, "how": list(joined.how)} for row in scored])
        return
    tell(joined.how)
    _show_differences(scored, ref, a, b)


def _show_differences(rows: list[dict[str, Any]], ref: Path, a: Path, b: Path) -> None:
    from repalign.measures import parse_measure

    title = escape(f"{ref.name} with A = {a.name} and with B = {b.name}, n = {rows[0]['n']}")
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("measure", overflow="fold")
    for column in ("with A", "with B", "difference", "95 % interval", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        ends = f"{number(row['low'])} to {number(row['high'])}"
        numbers = (number(row[c]) for c in ("score_a", "score_b", "difference"))
        mark = "" if parse_measure(row["measure"]).closer_is_higher else " [dim](distance)[/]"
        table.add_row(escape(row["measure"]) + mark, *numbers, ends, pvalue(row["pvalue"]))
    out.print(table)
    out.print("[dim]interval over stimuli (jackknife), p two-sided; layers are taken as fixed[/]")


def curve(
    x: FeatureFile,
    y: Annotated[Path, typer.Argument(help="Features of the other.", show_default=False)],
    k: Annotated[int, typer.Option("--k", help="Neighbours in the first mode, for instance 10.")] = 10,
    share: Annotated[
        float | None,
        typer.Option(help="k / n in the second mode, for instance 0.01; without, as at the smallest n."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Random orders of the stimuli, for instance 5.")] = 5,
    layers: Annotated[
        tuple[str, str] | None, typer.Option(help="A layer of each file, for instance --layers layer.7 features.")
    ] = None,
    seed: SeedNumber = 0,
    csv: Annotated[Path | None, typer.Option(help="Also write the table here, for instance curve.csv.")] = None,
    id: IdName = None,
    rows: ByRows = False,
    features: FeaturePatterns = None,
    vector: VectorName = None,
    axes: AxesWord = None,
    rdm: GivenRDM = False,
    kernel: GivenKernel = False,
    kind: KindWords = None,
) -> None:
    """Mutual k-NN as the number of stimuli grows (n = 2^j), with k fixed and with k a share of n.

    With k fixed the score of the very same two spaces falls as n grows:
    scores at different n do not compare.
    """
    from repalign.comparison import gallery_curve

    joined = read_files((x, y), readings(2, id, rows, features, vector, axes, kinds_said(rdm, kernel, kind)))
    names = layers or (None, None)
    both = [one_layer(f, p, n) for f, p, n in zip(joined.layers, (x, y), names, strict=True)]
    with bars() as progress:
        found = gallery_curve(both[0], both[1], k, share, repeats=repeats, seed=seed, progress=progress)
    tell(joined.how)
    _show_curve(found, f"{x.name}, {y.name}: mutual k-NN (cosine)")
    if csv is not None:
        try:
            found.to_csv(csv, index=False)
        except OSError as error:
            raise RepalignError(f"{csv}: the table cannot be written", got=str(error)) from error
        wrote("table", csv)


def _show_curve(found: Any, title: str) -> None:
    said = {"fixed": "k fixed", "share": "k a share of n"}
    for mode in dict.fromkeys(found["mode"]):
        rows = found[found["mode"] == mode]
        table = Table(
            title=escape(f"{title}, {said[mode]}"), title_justify="left", header_style="bold", box=box.SIMPLE_HEAD
        )
        for column in ("n", "k", "score", "sd over repeats", "chance", "corrected"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows.itertuples():
            numbers = (row.statistic, row.std, row.chance, row.corrected)
            table.add_row(f"{row.n:,}", str(row.k), *map(number, numbers))
        out.print(table)
    out.print("[dim]corrected = (score - chance) / (1 - chance), chance = k / (n - 1)[/]")
