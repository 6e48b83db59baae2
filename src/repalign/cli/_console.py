"""The two streams of the command line: progress, tables, and what it says at the end."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from repalign.text import number, pvalue

if TYPE_CHECKING:
    import pandas as pd

    from repalign.comparison.alignment import Alignment

# A file or a pipe has no width: tables are laid out for a wide one.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 132)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ABORTED, FAILED, BROKEN = 130, 1, 70
REMARKS = 6  # of the doctor, printed; the report has all
MANY_MEASURES = 4  # of one pair of models: more stand in one table


class Reporter:
    """Shows progress as bars with a time estimate on a terminal, as plain lines elsewhere."""

    def __init__(self, bars: Bars | None) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.shown: dict[str, int] = {}

    def __call__(self, task: str, done: int, total: int, note: str | None = None) -> None:
        if note:
            err.print(f"[dim]{escape(task)}: {escape(note)}[/]")
        if total <= 0:
            return
        if self.bars is not None:
            if task not in self.tasks:
                self.tasks[task] = self.bars.add_task(task, total=total)
            self.bars.update(self.tasks[task], completed=done, total=total)
        elif done == total and self.shown.get(task) != total:
            err.print(f"[dim]{escape(task)}: {done} of {total}[/]")
        self.shown[task] = done


@contextmanager
def bars() -> Iterator[Reporter]:
    if not err.is_terminal:
        yield Reporter(None)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=err, transient=False) as bars:
        yield Reporter(bars)


def _ends(row: Any) -> list[tuple[str, str]]:
    return [(escape(row.model_x), str(row.layer_x)), (escape(row.model_y), str(row.layer_y))]


def show(alignment: Alignment, limit: int = 40) -> None:
    """The best pair of layers of every pair of models, with n and the chance level beside each score."""
    from repalign.figures.conventions import ALPHA, VIEWS, adjustment, draws_of, text_of

    alpha = float(alignment.run.get("alpha") or ALPHA)
    if len(alignment.measures) > MANY_MEASURES and len(alignment.best(alignment.measures[0])) == 1:
        _show_measures(alignment)
        _show_remarks(alignment)
        return
    for measure in alignment.measures:
        best = alignment.best(measure)
        adjusted, draws = adjustment(best, alpha), draws_of(best)  # the p that decides over pairs of models
        n = int(best["n"].iloc[0])
        table = Table(title=f"{measure}, n = {n}", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("x [layer]", overflow="fold")
        table.add_column("y [layer]", overflow="fold")
        for column in ("score", "chance", "calibrated", "p", VIEWS[adjusted].label):
            table.add_column(column, justify="right", no_wrap=True)
        row: Any
        for row in best.head(limit).itertuples():
            x, y = (f"{m} [dim]{escape(f'[{layer}]')}[/]" for m, layer in _ends(row))
            table.add_row(
                x, y, number(row.statistic), number(row.null_mean), number(row.calibrated),
                text_of("pvalue", row.pvalue, draws), text_of(adjusted, getattr(row, adjusted), draws),
            )  # fmt: skip
        out.print(table)
        out.print(f"[dim]p of the best pair of layers, the search counted in{escape(_how_judged(alignment, best))}[/]")
        if len(best) > limit:
            out.print(f"[dim]... and {len(best) - limit} more pairs of models in the table[/]")
    _show_remarks(alignment)


def _how_judged(alignment: Alignment, best: pd.DataFrame) -> str:
    """The smallest p that the draws can give, or how chance is known without draws."""
    way = alignment.run.get("ways", {}).get(best["measure"].iloc[0])
    if way is None:
        draws = int(best["n_draws"].iloc[0])
        return f"; the smallest possible is {pvalue(1 / (draws + 1))}" if draws else ""
    ends = estimate_interval(alignment, best.iloc[0].to_dict())
    between = f"{number(ends['low'])} to {number(ends['high'])}" if ends else ""
    return f"; {way['method']}" + (f"; {ends['level']:.0%} interval of the estimate {between}" if ends else "")


def estimate_interval(alignment: Alignment, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The interval of a score that is an estimate from anchors; None of any other."""
    found = alignment.run.get("ways", {}).get(row["measure"], {}).get("intervals", ())
    ends = ("model_x", "model_y", "layer_x", "layer_y")
    return next((one for one in found if all(one[name] == row[name] for name in ends)), None)


def _show_measures(alignment: Alignment) -> None:
    """One pair of models under many measures: a row each, by family."""
    from repalign.measures import parse_measure

    best = alignment.best()
    first = best.iloc[0]
    title = f"{first['model_x']} and {first['model_y']}, n = {int(first['n'])}"
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for column in ("measure", "x layer", "y layer"):
        table.add_column(column, overflow="fold")
    for column in ("score", "chance", "z", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    family = None
    for row in best.to_dict("records"):
        measure = parse_measure(row["measure"])
        if measure.family != family:
            family = measure.family
            table.add_row(f"[bold]{family}[/]")
        name = type(measure).__name__ + ("" if measure.closer_is_higher else " [dim](distance)[/]")
        ends = (escape(str(row[side])) if row[side] is not None else "-" for side in ("layer_x", "layer_y"))
        numbers = (number(row[c]) for c in ("statistic", "null_mean", "z"))
        table.add_row(f"  {name}", *ends, *numbers, pvalue(row["pvalue"], int(row["n_draws"])))
    out.print(table)
    out.print("[dim]each at its best pair of layers, the search counted in p; z > 0 is closer than chance[/]")


def _by_reason(left_out: list[dict[str, str]]) -> dict[str, list[str]]:
    """Names of measures that were left out for one reason; times stand behind the names."""
    out: dict[str, list[str]] = {}
    for entry in left_out:
        name = entry["measure"].partition("(")[0]
        slow = re.fullmatch(r"would take about (.+?) \(limit (.+?)\)(.*)", entry["reason"])
        reason = f"longer than {slow[2]}{slow[3]}" if slow else entry["reason"].replace(name, "it")
        out.setdefault(reason, []).append(f"{name} ({slow[1]})" if slow else name)
    return out


def _show_remarks(alignment: Alignment) -> None:
    from repalign.comparison.doctor import Finding, summarise

    findings = [Finding(**f) for f in alignment.run.get("findings", [])]
    told = summarise([f for f in findings if f.severity != "note"])
    for sentence in told[:REMARKS]:
        out.print(f"[yellow]look at:[/] {escape(sentence)}")
    if len(told) > REMARKS:
        out.print(f"[dim]... and {len(told) - REMARKS} more remarks in the report[/]")
    for sentence in alignment.run.get("warnings", []):
        out.print(f"[yellow]note:[/] {escape(sentence)}")
    for reason, names in _by_reason(alignment.run.get("left_out", [])).items():
        out.print(f"[yellow]left out:[/] {escape(', '.join(names))}: {escape(reason)}")


def print_json(rows: list[dict[str, Any]]) -> None:
    """Rows as JSON, all digits kept; what is undefined is null."""
    told = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]
    out.print_json(json.dumps(told, allow_nan=False))


def wrote(what: str, path: Path | str, then: str | None = None) -> None:
    out.print(f"{what}: [bold]{escape(str(path))}[/]")
    if then:
        out.print(f"next: {escape(then)}")


def tell(sentences: Iterable[str]) -> None:
    """What was read, beside the result: a dim line each."""
    for sentence in sentences:
        err.print(f"[dim]{escape(sentence)}[/]")


def told(plan: Any) -> None:
    for line in plan.lines:
        err.print(f"[dim]{escape(line)}[/]")
