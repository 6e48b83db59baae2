"""Whole studies: run, extract, report, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from repalign.cli._console import MANY_MEASURES, bars, err, out, show, told, wrote
from repalign.text import number

if TYPE_CHECKING:
    from repalign.study import Outcome

StudyFile = Annotated[Path, typer.Argument(help="A study file (YAML).", show_default=False)]


def run(
    study: StudyFile,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done and what it needs.")] = False,
    mock: Annotated[
        bool, typer.Option("--mock", help="Try it out: tiny stand-ins for the models and a generated dataset; no download.")
    ] = False,
) -> None:
    """Run a study: dataset, extraction, comparison, figures, report. A killed run goes on where it stopped."""
    from repalign.study import load_study
    from repalign.text import MOCK

    loaded = load_study(study)
    with bars() as progress:
        if mock:
            loaded = loaded.mock(progress)
            err.print(f"[bold yellow]{MOCK}[/] All of it is in {escape(str(loaded.folder))}")
        if plan:
            for line in loaded.plan(progress).lines:
                out.print(escape(line))
            return
        outcome = loaded.run(progress=progress, on_plan=told)
    _show(outcome)
    for what, path in outcome.wrote:
        wrote(what, path, f"open {path}" if path.suffix == ".html" else None)
    if loaded.is_mock:
        out.print(f"[bold yellow]{MOCK}[/]")


def _show(outcome: Outcome) -> None:
    """The result of a study without variants; of others, and of many measures, a line for each; what each figure says."""
    from repalign.measures import facts_of

    if list(outcome.alignments) == [""] and (len(outcome.alignment.measures) <= MANY_MEASURES or not outcome.drawn):
        show(outcome.alignment)
    elif outcome.alignments:
        table = Table(title="mean over pairs of models", title_justify="left", header_style="bold")
        for column in ("variant", "measure", "pairs", "n", "score", "chance"):
            table.add_column(column)
        for name, alignment in outcome.alignments.items():
            for measure in alignment.measures:
                rows = alignment.best(measure)
                score, chance = (number(float(rows[c].to_numpy(float).mean())) for c in ("statistic", "null_mean"))
                table.add_row(escape(name), facts_of(measure).label, str(len(rows)), str(rows["n"].iloc[0]), score, chance)
        out.print(table)
    for one in outcome.drawn:
        out.print(f"[bold]{escape(one.title)}[/]\n{escape(one.text)}")
    for model, reason in outcome.skipped:
        err.print(f"[bold yellow]left out:[/] {escape(model)}: {escape(reason)}")


def extract(study: StudyFile) -> None:
    """Extract all models of a study into its store, and compare nothing yet."""
    from repalign.errors import RepalignError
    from repalign.study import load_study
    from repalign.study.alignment import AlignmentStudy

    loaded = load_study(study)
    if not isinstance(loaded, AlignmentStudy):
        raise RepalignError(f"{study}: this study has no models to extract by themselves", remedy=f"repalign run {study}")
    with bars() as progress:
        found = loaded.extract(progress=progress)
    table = Table(title=f"n = {found[0].n}", title_justify="left", header_style="bold")
    for column in ("model", "layers", "widths", "parameters"):
        table.add_column(column)
    for r in found:
        widths = sorted({r.load(layer).shape[1] for layer in r.layers})
        shown = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        table.add_row(escape(r.name), str(len(r.layers)), shown, f"{r.record.n_parameters or '-'}")
    out.print(table)
    wrote("features", loaded.store, f"repalign run {study}")


def report(
    results: Annotated[Path, typer.Argument(help="A results folder.", show_default=False)],
    to: Annotated[Path | None, typer.Option("--out", help="The HTML file; by default beside the table.")] = None,
    static: Annotated[Path | None, typer.Option(help="Also write each figure as SVG and PNG into this folder.")] = None,
) -> None:
    """Write the report of finished results: one HTML file that needs no network."""
    from repalign.report import write_report

    path = write_report(results, to or results / "report.html", static=static)
    wrote("report", path, f"open {path}")
    if static is not None:
        wrote("figures", static)


def demo(
    to: Annotated[Path, typer.Option("--out", help="The folder to write into.")] = Path("repalign-demo"),
) -> None:
    """See it work: train small models on a toy world, compare them, write the report. No network, three minutes."""
    from repalign.study.demo import run_demo

    with bars() as progress:
        alignment, findings = run_demo(to, progress=progress, on_plan=told)
    show(alignment, limit=12)
    for line in findings:
        out.print(escape(line))
    wrote("study", to / "study.yaml", f"edit it, then: repalign run {to / 'study.yaml'}")
    wrote("report", (to / "report.html").absolute(), f"open {to / 'report.html'}")
