"""The command line: parses, calls, says where it wrote and what to run next."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from repalign.errors import RepalignError

if TYPE_CHECKING:
    from repalign.alignment import Alignment

app = typer.Typer(
    name="repalign",
    help="Do two models put the same things close together, and is that more than chance?",
    epilog="Start with: repalign demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
# A file or a pipe has no width: tables are laid out for a wide one.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 132)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ABORTED, FAILED, BROKEN = 130, 1, 70
REMARKS = 6  # of the doctor, printed; the report has all


def main() -> None:
    """Run the command line; a failure is one message and a status, never a traceback."""
    try:
        app()
    except RepalignError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(FAILED)
    except SystemExit as stop:
        if stop.code == ABORTED:  # an interrupt, as typer tells it
            err.print("stopped; what is finished is kept: the same command goes on from here")
        raise
    except Exception as error:
        if os.environ.get("REPALIGN_DEBUG"):
            raise
        with tempfile.NamedTemporaryFile("w", prefix="repalign-", suffix=".log", delete=False) as log:
            log.write(traceback.format_exc())
        first = (str(error).splitlines() or [""])[0]
        err.print(f"[bold red]unexpected error:[/] {type(error).__name__}: {escape(first)}")
        err.print(f"  details: {log.name} (set REPALIGN_DEBUG=1 to see them here)")
        sys.exit(BROKEN)


def _print_version(asked: bool) -> None:
    if asked:
        from repalign import __version__

        out.print(__version__)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
]


@app.callback()
def _options(
    version: Version = False,  # noqa: ARG001
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")


# --- progress and tables -----------------------------------------------------------------------


class _Reporter:
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
def _progress() -> Iterator[_Reporter]:
    if not err.is_terminal:
        yield _Reporter(None)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=err, transient=False) as bars:
        yield _Reporter(bars)


def _ends(row: Any) -> list[tuple[str, str]]:
    return [(escape(row.model_x), str(row.layer_x)), (escape(row.model_y), str(row.layer_y))]


def _p(p: float) -> str:
    return "-" if p != p else f"{p:.2g}"


def _number(x: float) -> str:
    return "-" if x != x else f"{x:.3f}" if abs(x) >= 0.1 else f"{x:.4f}"


def show(alignment: Alignment, limit: int = 40) -> None:
    """The best pair of layers of every pair of models, with n and the chance level beside each score."""
    from repalign.plot.reading import ALPHA
    from repalign.plot.views import VIEWS, adjustment

    alpha = float(alignment.run.get("alpha") or ALPHA)
    for measure in alignment.measures:
        best = alignment.best(measure)
        adjusted = adjustment(best, alpha)  # the p that decides over pairs of models
        n = int(best["n"].iloc[0])
        table = Table(title=f"{measure}, n = {n}", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("x [layer]", overflow="fold")
        table.add_column("y [layer]", overflow="fold")
        for column in ("score", "chance", "calibrated", "p", VIEWS[adjusted].label):
            table.add_column(column, justify="right", no_wrap=True)
        for row in best.head(limit).itertuples():
            x, y = (f"{m} [dim]{escape(f'[{layer}]')}[/]" for m, layer in _ends(row))
            table.add_row(
                x, y, _number(row.statistic), _number(row.null_mean), _number(row.calibrated),
                _p(row.pvalue), _p(getattr(row, adjusted)),
            )  # fmt: skip
        out.print(table)
        floor = 1 / (int(best["n_draws"].iloc[0]) + 1)
        out.print(f"[dim]p of the best pair of layers, the search counted in; the smallest possible is {floor:.2g}[/]")
        if len(best) > limit:
            out.print(f"[dim]... and {len(best) - limit} more pairs of models in the table[/]")
    _show_remarks(alignment)


def _show_remarks(alignment: Alignment) -> None:
    from repalign.doctor import Finding, summarise

    findings = [Finding(**f) for f in alignment.run.get("findings", [])]
    told = summarise([f for f in findings if f.severity != "note"])
    for sentence in told[:REMARKS]:
        out.print(f"[yellow]look at:[/] {escape(sentence)}")
    if len(told) > REMARKS:
        out.print(f"[dim]... and {len(told) - REMARKS} more remarks in the report[/]")
    for sentence in alignment.run.get("warnings", []):
        out.print(f"[yellow]note:[/] {escape(sentence)}")


def _wrote(what: str, path: Path | str, then: str | None = None) -> None:
    out.print(f"{what}: [bold]{escape(str(path))}[/]")
    if then:
        out.print(f"next: {escape(then)}")


def _told(plan: Any) -> None:
    for line in plan.lines:
        err.print(f"[dim]{escape(line)}[/]")


# --- commands ----------------------------------------------------------------------------------

StudyFile = Annotated[Path, typer.Argument(help="A study file (YAML).", show_default=False)]
MeasureNames = Annotated[
    list[str] | None,
    typer.Option("--measure", "-m", help="A measure, for instance 'MutualKNN(k=10)'; may be repeated."),
]
Draws = Annotated[int | None, typer.Option(help="Random permutations instead of the exact null.")]
Seed = Annotated[int, typer.Option(help="Seed of the null.")]


@app.command(epilog="Example: repalign run studies/example.yaml")
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
    with _progress() as progress:
        alignment = studies.run(loaded, progress=progress, told=_told)
    show(alignment)
    _wrote("table", loaded.results / "results.parquet")
    _wrote("report", loaded.report, f"open {loaded.report}")


@app.command(epilog="Example: repalign extract studies/example.yaml")
def extract(study: StudyFile) -> None:
    """Extract all models of a study into its store, and compare nothing yet."""
    from repalign import study as studies

    loaded = studies.load_study(study)
    dataset = loaded.open_dataset()
    with _progress() as progress:
        found = studies.extract_study(loaded, dataset, progress=progress)
    table = Table(title=f"{dataset.name}, n = {dataset.n}", title_justify="left", header_style="bold")
    for column in ("model", "layers", "widths", "parameters"):
        table.add_column(column)
    for r in found:
        widths = sorted(set(r.widths))
        shown = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        table.add_row(escape(r.name), str(len(r.layers)), shown, f"{r.record.n_parameters or '-'}")
    out.print(table)
    _wrote("features", loaded.store, f"repalign run {study}")


@app.command(epilog="Example: repalign compare runs/photos/store --x bloomz-560m --y vit-base --measure 'CKA()'")
def compare(
    store: Annotated[str, typer.Argument(help="A feature store.", show_default=False)],
    x: Annotated[list[str] | None, typer.Option(help="Models of one side, by name; all without.")] = None,
    y: Annotated[list[str] | None, typer.Option(help="Models of the other side.")] = None,
    measure: MeasureNames = None,
    draws: Draws = None,
    seed: Seed = 0,
    dataset: Annotated[str | None, typer.Option(help="Fingerprint (or its start) where the store has several.")] = None,
    results: Annotated[Path, typer.Option(help="Where results go.")] = Path("repalign-results"),
) -> None:
    """Compare what is in a store: two sides, or all models with each other."""
    from repalign.compare import DEFAULT_MEASURES
    from repalign.compare import compare as compare_all
    from repalign.report import write_report

    models = _stored(store, dataset)
    sides = [_pick(models, names) for names in (x, y)] if y else [_pick(models, x), None]
    with _progress() as progress:
        alignment = compare_all(
            sides[0] or [],
            sides[1],
            measure or DEFAULT_MEASURES,
            _null(draws, seed),
            results=results,
            progress=progress,
        )
    write_report(results, results / "report.html")
    show(alignment)
    _wrote("table", results / "results.parquet")
    _wrote("report", results / "report.html", f"open {results / 'report.html'}")


def _stored(store: str, dataset: str | None) -> list[Any]:
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
        return [r for r in found if r.dataset_fingerprint == chosen[0]]
    if len(prints) != 1:
        named = ", ".join(f"{f[:12]} ({name})" for f, name in prints.items()) or "none"
        raise RepalignError(
            f"{store}: which dataset?",
            expected="one finished dataset, or --dataset with its fingerprint",
            got=named,
            remedy="extract first: repalign extract STUDY" if not prints else "say --dataset FINGERPRINT",
        )
    return found


def _pick(models: list[Any], names: list[str] | None) -> list[Any]:
    from repalign.errors import did_you_mean

    known = {r.name: r for r in models}
    for name in names or ():
        if name not in known:
            raise RepalignError(f"the store has no model {name!r}", got=name, remedy=did_you_mean(name, known))
    return [known[n] for n in names] if names else models


def _null(draws: int | None, seed: int) -> Any:
    from repalign.null import make_null

    return make_null("auto", seed=seed) if draws is None else make_null("permutation", n_draws=draws, seed=seed)


@app.command(epilog="Example: repalign report runs/photos/results --out report.html --static figures")
def report(
    results: Annotated[Path, typer.Argument(help="A results folder.", show_default=False)],
    to: Annotated[Path | None, typer.Option("--out", help="The HTML file; by default beside the table.")] = None,
    static: Annotated[Path | None, typer.Option(help="Also write each figure as SVG and PNG into this folder.")] = None,
) -> None:
    """Write the report of finished results: one HTML file that needs no network."""
    from repalign.report import write_report

    path = write_report(results, to or results / "report.html", static=static)
    _wrote("report", path, f"open {path}")
    if static is not None:
        _wrote("figures", static)


@app.command(epilog="Example: repalign pair clip.npy dino.npy --measure 'MutualKNN(k=10)'")
def pair(
    x: Annotated[
        Path, typer.Argument(help="Features of one model (.npy .npz .safetensors .parquet .pt).", show_default=False)
    ],
    y: Annotated[Path, typer.Argument(help="Features of the other.", show_default=False)],
    measure: MeasureNames = None,
    draws: Draws = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows of the result as JSON.")] = False,
) -> None:
    """Compare two files of features. Rows are joined on ids where both files have them, else row i with row i."""
    from repalign.compare import DEFAULT_MEASURES
    from repalign.compare import pair as compare_pair
    from repalign.extract.array import join_files

    left, right, ids, how = join_files(x, y)
    names = (x.stem, y.stem) if x.stem != y.stem else (str(x), str(y))
    with _progress() as progress:
        alignment = compare_pair(
            left, right, measure or DEFAULT_MEASURES, _null(draws, seed), names=names, ids=ids, progress=progress
        )
    if as_json:
        rows = alignment.best()
        out.print_json(json.dumps(json.loads(rows.to_json(orient="records"))))
        return
    err.print(f"[dim]{escape(how)}[/]")
    show(alignment)


@app.command(epilog="Example: repalign measures MutualKNN")
def measures(name: Annotated[str | None, typer.Argument(help="Explain this one.")] = None) -> None:
    """List the measures, or explain one."""
    from inspect import cleandoc

    from repalign.measures import MEASURES, describe, parse_measure

    if name is not None:
        described = describe(type(parse_measure(name)))
        out.print(
            f"[bold]{described['name']}[/]  ({described['family']})", cleandoc(described["doc"]), sep="\n", markup=True
        )
        out.print(f"names: {', '.join(described['aliases'])}")
        out.print(f"null: {described['null']}")
        return
    for family in dict.fromkeys(cls.family for cls in MEASURES):
        out.print(f"[bold]{family}[/]")
        for d in (describe(cls) for cls in MEASURES if cls.family == family):
            low, high = d["range"]
            facts = [f"{low:g} to {high:g}", "symmetric" if d["symmetric"] else "asymmetric", d["null"]]
            out.print(f"  [cyan]{d['name']}[/]  {escape(d['summary'])}")
            out.print(f"      {'; '.join(facts)}; unchanged by {', '.join(d['invariances'])}")
    out.print("next: repalign measures NAME explains one")


@app.command(epilog="Example: repalign models prh-val")
def models(name: Annotated[str | None, typer.Argument(help="A set or a model.")] = None) -> None:
    """List the known models and sets; any other model is named by its spec, such as hf:org/name."""
    from repalign.errors import did_you_mean
    from repalign.models import SCHEMES, find_model, known_models, model_set

    known = known_models()
    sets = {k.model_set for k in known}
    names = {*sets, *(k.name for k in known), *(k.spec for k in known)}
    if name is not None and name not in names:
        raise RepalignError(f"no known model or set is called {name!r}", got=name, remedy=did_you_mean(name, names))
    chosen = known if name is None else model_set(name) if name in sets else [find_model(name)]
    table = Table(header_style="bold")
    for column in ("name", "spec", "modality", "family", "objective", "set", "gated"):
        table.add_column(column)
    for k in chosen:
        cells = (k.name, k.spec, k.modality, k.family, k.objective, k.model_set, "yes" if k.gated else "")
        table.add_row(*map(escape, cells))
    out.print(table)
    if name is None:
        out.print("any model is named by a spec:")
        for scheme in SCHEMES.values():
            out.print(f"  {escape(scheme.form)}   [dim]for example {escape(scheme.example)}[/]")


@app.command(epilog="Example: repalign check runs/photos/store")
def check(
    store: Annotated[str, typer.Argument(help="A feature store.", show_default=False)],
    shallow: Annotated[bool, typer.Option("--shallow", help="Sizes and headers only, not every byte.")] = False,
) -> None:
    """Verify a store, name what is broken, and say what in its layers can mislead a measure."""
    from repalign.doctor import examine, summarise
    from repalign.store import FeatureStore
    from repalign.store import check as check_store

    if "://" not in store and not Path(store).exists():
        raise RepalignError(f"there is no store {store}", remedy="name the folder that `repalign run` printed")
    with _progress() as progress:
        problems = check_store(store, deep=not shallow, progress=progress)
    for problem in problems:
        out.print(f"[bold red]broken:[/] {escape(str(problem.path))}: {escape(problem.problem)}")
        out.print(f"  do: {escape(problem.remedy)}")
    found = [] if problems else FeatureStore(store).representations()
    findings = []
    with _progress() as progress:
        for done, r in enumerate(found):
            progress("examine", done, len(found))
            for layer in r.layers:
                x = r.load(layer)
                findings += examine(x, model=r.name, layer=layer, stored_dtype=str(x.dtype).removeprefix("torch."))
        progress("examine", len(found), len(found))
    for sentence in summarise(findings):
        out.print(f"[yellow]look at:[/] {escape(sentence)}")
    if problems:
        err.print(f"{len(problems)} problems")
        raise typer.Exit(FAILED)
    out.print(f"[green]whole:[/] {len(found)} models, {sum(len(r.layers) for r in found)} layers")


@app.command(epilog="Example: repalign demo --out my-demo")
def demo(
    to: Annotated[Path, typer.Option("--out", help="The folder to write into.")] = Path("repalign-demo"),
) -> None:
    """See it work: train small models on a toy world, compare them, write the report. No network, three minutes."""
    from repalign.demo import run_demo

    with _progress() as progress:
        alignment, told = run_demo(to, progress=progress, plan=_told)
    show(alignment, limit=12)
    for line in told:
        out.print(escape(line))
    _wrote("study", to / "study.yaml", f"edit it, then: repalign run {to / 'study.yaml'}")
    _wrote("report", (to / "report.html").absolute(), f"open {to / 'report.html'}")
