"""The two streams of the command line: progress, tables, and what it says at the end."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from repalign.text import alike, between, counted, duration, number, pace, pvalue

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from repalign.comparison.alignment import Alignment
    from repalign.files import Url
    from repalign.measures import MeasureFacts
    from repalign.text import Progress


class Stream(Console):
    """A stream of the command line. The work goes on, and its files are written, when nobody reads on (`| head`)."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # what Python still holds back for the stream goes there when it ends
        os.close(nowhere)


# A file or a pipe has no width: tables are laid out for a wide one.
out = Stream(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 132)
err = Stream(stderr=True, highlight=False, soft_wrap=True)

ABORTED, TERMINATED, FAILED, BROKEN = 130, 143, 1, 70
EVERY, LONG = 30.0, 5.0  # seconds between lines about a stage; of a stage whose end is told
REMARKS = 6  # of the doctor, printed; the report has all
FEW_PAIRS = 6  # of models: these have their scores one by one below the answer
TOLD_MEASURES = 8  # that the answer compares with one another
MANY_MEASURES = 4  # of one pair of models: more stand in one table


@dataclass
class Bar:
    """Shows progress as bars with a time estimate, on a terminal."""

    bars: Bars
    tasks: dict[str, TaskID] = field(default_factory=dict)

    def __call__(self, task: str, done: float, total: int, note: str | None = None) -> None:
        if note:
            err.print(f"[dim]{escape(task)}: {escape(note)}[/]")
        if total > 0:
            if task not in self.tasks:
                self.tasks[task] = self.bars.add_task(task, total=total)
            self.bars.update(self.tasks[task], completed=done, total=total)


@dataclass
class Stage:
    """A task: what was done when it began and is now, the seconds that went into it, and when it was last told of."""

    first: float
    done: float
    total: int
    told: float
    spent: float = 0.0


@dataclass
class Lines:
    """Tells progress in lines, where there is no terminal: one every `EVERY` seconds, and one when a stage that was long ends.

    Stages take turns, as preparing layers and comparing them do: the time before a call goes to the stage that calls.
    """

    clock: Callable[[], float] = time.monotonic
    stages: dict[str, Stage] = field(default_factory=dict)  # those that have not ended, the one at work last
    last: float = 0.0  # when any of them called
    lock: Any = field(default_factory=RLock)

    def __call__(self, task: str, done: float, total: int, note: str | None = None) -> None:
        if note:
            err.print(f"[dim]{escape(task)}: {escape(note)}[/]")
        if total <= 0:
            return
        with self.lock:
            now, stage = self.clock(), self.stages.pop(task, None)
            if stage is None or done < stage.done:  # it begins, or begins again
                stage, self.last = Stage(done, done, total, now), now
            stage.done, stage.total, stage.spent, self.last = done, total, stage.spent + now - self.last, now
            if done < total:
                self.stages[task] = stage
                self.tell()
            elif stage.spent >= LONG:
                self._line(task, stage, stage.spent, f", in {duration(stage.spent)}")

    def tell(self) -> None:
        """A line about the stage that is at work, if it is time for one."""
        with self.lock:
            now, (task, stage) = self.clock(), next(reversed(self.stages.items()), ("", None))
            if stage is not None and now - stage.told >= EVERY:
                stage.told = now
                self._line(task, stage, stage.spent + now - self.last)

    def keep_telling(self, stop: Event) -> None:
        """Also while a stage is silent, until `stop` is set."""
        while not stop.wait(1):
            self.tell()

    def _line(self, task: str, stage: Stage, seconds: float, end: str = "") -> None:
        told = pace(stage.done, stage.total, stage.done - stage.first, seconds)
        err.print(f"[dim]{escape(task)}: {told}{end}[/]")


@contextmanager
def bars() -> Iterator[Progress]:
    if not err.is_terminal:
        lines, stop = Lines(), Event()
        Thread(target=lines.keep_telling, args=(stop,), daemon=True).start()
        try:
            yield lines
        finally:
            stop.set()
        return
    from rich import progress  # here: no help text needs it, and it takes a while

    counts, times = progress.MofNCompleteColumn(), (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
    columns = progress.TextColumn("{task.description}"), progress.BarColumn(), counts, *times
    with progress.Progress(*columns, console=err, transient=False) as bars:
        yield Bar(bars)


# --- tables, rows, sentences ---


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", words: int = 1) -> None:
    """Print rows of text with markup. The first columns hold `words`, which may be folded; the others hold numbers."""
    table = Table(title=escape(title) or None, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for column in columns[:words]:
        table.add_column(escape(column), overflow="fold")
    for column in columns[words:]:
        table.add_column(escape(column), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def marked(about: MeasureFacts) -> str:
    """The name of a measure for people; one that is lower for closer spaces is marked as a distance."""
    return escape(about.label) + ("" if about.closer_is_higher else " [dim](distance)[/]")


def print_json(rows: list[dict[str, Any]]) -> None:
    """Rows as JSON, all digits kept; what is undefined is null."""
    told = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]
    out.print_json(json.dumps(told, allow_nan=False))


def write_csv(path: Path, rows: pd.DataFrame | list[dict[str, Any]]) -> None:
    import pandas as pd

    from repalign.comparison.alignment import csv_text
    from repalign.files import write_file

    write_file(path, csv_text(pd.DataFrame(rows)))


def wrote(what: str, path: Path | Url | str, then: str | None = None) -> None:
    out.print(f"{what}: [bold]{escape(str(path))}[/]")
    then = f"open {path}" if then is None and isinstance(path, Path) and path.suffix == ".html" else then
    if then:
        out.print(f"next: {escape(then)}")


def write_result(alignment: Alignment, folder: Path | Url) -> list[tuple[str, Path | Url]]:
    """Write the table of a result as CSV, its figures and its report into the folder that it is saved in; what there is now."""
    from repalign.report import write_report

    tables = [("table", folder / "results.parquet"), ("table", alignment.to_csv(folder / "results.csv"))]
    page = write_report(folder, folder / "report.html", alignment=alignment, static=folder / "figures")
    return [*tables, ("figures", folder / "figures"), ("report", page)]


def tell(sentences: Iterable[str]) -> None:
    """What was read or is planned, beside the result: a dim line each."""
    for sentence in sentences:
        err.print(f"[dim]{escape(sentence)}[/]")


# --- an alignment ---


def answer(alignment: Alignment) -> None:
    """The answer of a result in about ten lines, in the words of its report; scores one by one only of a few pairs."""
    from repalign.comparison.doctor import Finding, summarise
    from repalign.relate import story, verdict

    found = [verdict(alignment.table, alignment.run, measure) for measure in alignment.measures[:TOLD_MEASURES]]
    name = alignment.run.get("name") or found[0].pairs.rows["dataset"].iloc[0]
    out.print(f"[bold]{escape(str(name))}[/]: {escape(story.compared(found[0]))}, {escape(found[0].pairs.about.label)}")
    first, *rest = story.lines(found[0], found[1:])
    out.print(f"  [bold]{escape(first)}[/]")
    for line in rest:
        out.print(f"  {escape(line)}")
    if len(found[0].pairs.rows) <= FEW_PAIRS:
        show(alignment)
        return
    remarks = [Finding(**f) for f in alignment.run.get("findings", []) if f["severity"] != "note"]
    for sentence in summarise([f for f in remarks if f.severity == "serious"]):
        out.print(f"[yellow]look at:[/] {escape(sentence)}")
    if remarks:
        out.print(f"[dim]{counted(len(remarks), 'remark')} on layers: see the models in the report[/]")
    _warn(alignment)


def show(alignment: Alignment, limit: int = 40) -> None:
    """The best pair of layers of every pair of models, with n and the chance level beside each score; then the remarks."""
    from repalign.comparison.conventions import VIEWS, Conventions, Pairs, text_of
    from repalign.comparison.doctor import Finding, summarise

    conventions, measures, about = Conventions.of(alignment.run), alignment.measures, alignment.about
    if len(measures) > MANY_MEASURES and len(alignment.best(measures[0])) == 1:
        _show_measures(alignment)
        measures = ()
    for measure in measures:
        best, pairs, rows = alignment.best(measure), Pairs.of(alignment.table, measure, conventions), []
        shown = {"statistic": "score", "null_mean": "chance"}
        if not pairs.blind:  # else none of these could find anything
            shown |= {"calibrated": "calibrated", "pvalue": "p"}
        if not pairs.blind and pairs.tests > 1:  # of one pair the same again
            shown[pairs.rule] = VIEWS[pairs.rule].label
        shown = {c: name for c, name in shown.items() if best[c].notna().any()}
        top = best.head(limit)
        texts = {c: [text_of(c, value, pairs.draws) for value in top[c]] for c in shown}
        both = alike(*top["statistic"], *top["null_mean"])  # for they are compared with one another
        if not any(value and not text.strip("−0.e") for value, text in zip(top["statistic"], both, strict=False)):
            texts |= {"statistic": both[: len(top)]} | ({"null_mean": both[len(top) :]} if "null_mean" in shown else {})
        for row, *cells in zip(top.to_dict("records"), *texts.values(), strict=True):
            ends = (f"{escape(row[f'model_{s}'])} [dim]{escape('[' + str(row[f'layer_{s}']) + ']')}[/]" for s in "xy")
            rows.append((*ends, *cells))
        title = f"{about[measure].label}, n = {int(best['n'].iloc[0])}"
        show_table(("x [layer]", "y [layer]", *shown.values()), rows, title, words=2)
        how = ""
        if measure in alignment.run.get("ways", {}):
            how = _way(alignment, best.iloc[0].to_dict())
        elif pairs.draws:
            how = f"; the smallest possible is {pvalue(1 / (pairs.draws + 1))}"
        said = f"no p: {pairs.blind}" if pairs.blind else f"p of the best pair of layers, the search counted in{how}"
        out.print(f"[dim]{escape(said)}[/]")
        if len(best) > limit:
            out.print(f"[dim]... and {len(best) - limit} more pairs of models in the table[/]")
    findings = [Finding(**f) for f in alignment.run.get("findings", [])]
    told = summarise([f for f in findings if f.severity != "note"])
    for sentence in told[:REMARKS]:
        out.print(f"[yellow]look at:[/] {escape(sentence)}")
    if len(told) > REMARKS:
        out.print(f"[dim]... and {len(told) - REMARKS} more remarks in the report[/]")
    _warn(alignment)


def _warn(alignment: Alignment) -> None:
    """What a reader of the result must know, and the measures that were left out."""
    for sentence in alignment.run.get("warnings", []):
        out.print(f"[yellow]note:[/] {escape(sentence)}")
    if left_out := alignment.run.get("left_out"):
        for reason, names in by_reason(left_out).items():
            out.print(f"[yellow]left out:[/] {escape(', '.join(names))}: {escape(reason)}")


def _way(alignment: Alignment, row: Mapping[str, Any]) -> str:
    """How a score at large n was computed, and its chance known without draws."""
    method, found = alignment.run["ways"][row["measure"]]["method"], estimate_of(alignment, row)
    ends = f"; {found['level']:.0%} interval of the estimate {between(found['low'], found['high'])}" if found else ""
    return f"; {method}{ends}"


def estimate_of(alignment: Alignment, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The interval of a score that is an estimate from anchors; None of any other."""
    found = alignment.run.get("ways", {}).get(row["measure"], {}).get("intervals", ())
    ends = ("model_x", "model_y", "layer_x", "layer_y")
    return next((one for one in found if all(one[name] == row[name] for name in ends)), None)


def _show_measures(alignment: Alignment) -> None:
    """One pair of models under many measures: a row each, by family."""
    from repalign.comparison.conventions import Conventions

    best, rows, family, alpha = alignment.best().to_dict("records"), [], None, Conventions.of(alignment.run).alpha
    for row in best:
        about = alignment.about[row["measure"]]
        if about.family != family:
            family = about.family
            rows.append([f"[bold]{family}[/]"])
        ends = (escape(str(row[side])) if row[side] is not None else "-" for side in ("layer_x", "layer_y"))
        numbers = (*alike(row["statistic"], row["null_mean"]), number(row["z"]))
        draws = int(row["n_draws"])
        p = "" if draws and 1 / (draws + 1) > alpha * (1 + 1e-9) else pvalue(row["pvalue"], draws)  # one that could find nothing
        rows.append([f"  {marked(about)}", *ends, *numbers, p])
    title = f"{best[0]['model_x']} and {best[0]['model_y']}, n = {int(best[0]['n'])}"
    show_table(("measure", "x layer", "y layer", "score", "chance", "z", "p"), rows, title, words=3)
    out.print("[dim]each at its best pair of layers, the search counted in p; z > 0 is closer than chance[/]")


def by_reason(left_out: list[dict[str, str]]) -> dict[str, list[str]]:
    """Names of measures that were left out for one reason; times stand behind the names."""
    out: dict[str, list[str]] = {}
    for entry in left_out:
        name = entry["measure"].partition("(")[0]
        slow = re.fullmatch(r"would take about (.+?) \(limit (.+?)\)(.*)", entry["reason"])
        reason = f"longer than {slow[2]}{slow[3]}" if slow else entry["reason"].replace(name, "it")
        out.setdefault(reason, []).append(f"{name} ({slow[1]})" if slow else name)
    return out
