"""Whole studies: run, extract, report, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from repalign.cli._console import bars, out, show, told, wrote

StudyFile = Annotated[Path, typer.Argument(help="A study file (YAML).", show_default=False)]


def run(
    study: StudyFile,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done and what it needs.")] = False,
) -> None:
    """Run a study: dataset, extraction, comparison, report. A killed run goes on where it stopped."""
    from repalign import study as studies

    loaded = studies.load_study(study)
    if plan:
        for line in studies.plan(loaded, loaded.open_dataset()).lines:
            out.print(escape(line))
        return
    with bars() as progress:
        alignment = studies.run(loaded, progress=progress, told=told)
    show(alignment)
    wrote("table", loaded.results / "results.parquet")
    wrote("report", loaded.report, f"open {loaded.report}")


def extract(study: StudyFile) -> None:
    """Extract all models of a study into its store, and compare nothing yet."""
    from repalign import study as studies

    loaded = studies.load_study(study)
    dataset = loaded.open_dataset()
    with bars() as progress:
        found = studies.extract_study(loaded, dataset, progress=progress)
    table = Table(title=f"{dataset.name}, n = {dataset.n}", title_justify="left", header_style="bold")
    for column in ("model", "layers", "widths", "parameters"):
        table.add_column(column)
    for r in found:
        widths = sorted(set(r.widths))
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
    from repalign.demo import run_demo

    with bars() as progress:
        alignment, findings = run_demo(to, progress=progress, plan=told)
    show(alignment, limit=12)
    for line in findings:
        out.print(escape(line))
    wrote("study", to / "study.yaml", f"edit it, then: repalign run {to / 'study.yaml'}")
    wrote("report", (to / "report.html").absolute(), f"open {to / 'report.html'}")
