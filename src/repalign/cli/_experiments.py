"""A command for each experiment, made of the experiment's own arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from repalign.cli._commands import Row
from repalign.cli._console import bars, out, print_json, show_table, tell, write_csv, wrote
from repalign.cli._options import AsJson, Workers
from repalign.errors import RepalignError
from repalign.experiments import EXPERIMENTS
from repalign.experiments.base import Experiment, plain
from repalign.text import number, pvalue

if TYPE_CHECKING:
    from repalign.experiments import Found
    from repalign.files import Url


@dataclass(frozen=True)
class Output:
    """Where the finding of an experiment goes.

    Parameters
    ----------
    to : Write all tables, the figure and a page into this folder or URL.
    csv : Write the table here, for instance table.csv.
    """

    to: Annotated[str | None, typer.Option("--out")] = None
    csv: Path | None = None
    as_json: AsJson = False


def command_of(name: str, experiment: Experiment) -> Callable[..., None]:
    """The command that runs an experiment and shows its finding."""
    options = experiment.options

    def command(output: Output, workers: Workers | None = None, **given: Any) -> None:
        if (found := experiment.finished(**given)) is not None:
            tell(["all is in the store, and nothing that it depends on has changed: nothing is run"])
        else:
            _tell_cost(experiment, given)
            with bars() as progress, nullcontext() if workers is None else workers.executor() as executor:
                found = experiment.run(**given, progress=progress, **({} if workers is None else {"executor": executor}))
        if output.csv is not None:
            write_csv(output.csv, found.table)
        files = [] if output.to is None else _written(name, found, given, output.to)
        if output.as_json:
            print_json(found.table.to_dict("records"))
        else:
            _show(name, found)
            if output.csv is not None:
                wrote("table", output.csv)
            for what, path in files:
                wrote(what, path)
        if found.status:
            raise typer.Exit(found.status)

    shared = {"output": Output, **({"workers": Workers} if experiment.has_workers else {})}
    of_shared = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=cls) for name, cls in shared.items()]
    own = [p.replace(annotation=plain(p.annotation)) for p in options.values()]
    command.__name__, command.__doc__ = name.replace("_", "-"), experiment.run.__doc__
    command.__signature__ = inspect.Signature([*own, *of_shared])  # type: ignore[attr-defined]
    return command


def _tell_cost(experiment: Experiment, given: dict[str, Any]) -> None:
    """Before models are run: what is downloaded and how long they take. What is wrong with the arguments the experiment tells."""
    if experiment.extracted is None:
        return
    from repalign.store import FeatureStore
    from repalign.study.needs import estimate

    store, device = given.get("store"), {name: given[name] for name in ("device",) if name in given}
    with suppress(RepalignError):
        dataset, entries = experiment.extracted(**given)
        needs = estimate(dataset, entries, measures=(), store=None if store is None else FeatureStore(store), **device)
        tell(needs.lines())


def _show(name: str, found: Found) -> None:
    from pandas.api.types import is_numeric_dtype

    table = found.table[list(found.shown)] if found.shown else found.table
    texts = [c for c in table.columns if not is_numeric_dtype(table[c])]
    columns = [*texts, *(c for c in table.columns if c not in texts)]
    rows = [tuple(_cell(c, row[c]) for c in columns) for row in table.to_dict("records")]
    show_table([c.replace("_", " ") for c in columns], rows, name, words=len(texts))
    out.print(escape(found.text))


def _cell(column: str, value: Any) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return escape(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    return pvalue(value) if column == "p" or column.startswith("p_") else number(value)


def _written(name: str, found: Found, given: dict[str, Any], out: str) -> tuple[tuple[str, Path | Url], ...]:
    """Everything that a study of it would write, in one folder; what is there already is not written again."""
    from repalign.files import place_of

    folder = place_of(out).absolute()
    if found.is_in(folder):
        return ("tables", folder), ("figure", folder / "figures"), ("report", folder / "report.html")
    from repalign.study.experiment import ExperimentStudy, config_of

    places = {"results": str(folder), "report": str(folder / "report.html")}
    config = config_of(name)(name=name, experiment=name, **given, **places)
    return ExperimentStudy(Path.cwd() / f"{name}.yaml", config).write(found).wrote


def adapt(adapter: Path, vectors: str, to: Path, model: str = "", layer: str | None = None, id: str | None = None) -> None:
    """Map vectors of a new embedding model into the space of the old one, with the adapter of `repalign migrate`.

    Parameters
    ----------
    adapter : The file that `repalign migrate --adapter` wrote.
    vectors : Vectors of the new model, such as queries: a file of features, or STORE#MODEL.
    to : Write the mapped vectors here, as a .npy file of float32; ids go beside it.
    model : What made the vectors: refused if the adapter is of another model.
    layer : Which layer, where the file has several; last is the last one.
    id : The column that names the rows.
    """
    from repalign.experiments.adapters import adapt_file

    found, n, sidecar = adapt_file(adapter, vectors, to, model=model, layer=layer, id=id)
    new, old = found.widths
    out.print(escape(f"{n:,} vectors of {new} dimensions, mapped to {old} ({found.kind}, fitted on {found.pairs:,} pairs)"))
    wrote("vectors", to)
    if sidecar is not None:
        wrote("ids", sidecar)


# A command for each experiment, which is imported once its command is asked for, and one that uses what they write.
PANEL = "Ask other questions"
ROWS = (
    *(
        Row(name.replace("_", "-"), partial(command_of, name, one), one.asks, one.example, PANEL, is_late=True)
        for name, one in EXPERIMENTS.items()
    ),
    Row.of(adapt, "repalign adapt adapter.safetensors new_queries.parquet mapped.npy", PANEL),
)
