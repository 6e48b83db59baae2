"""What there is: measures, models, and what is whole in a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from repalign.cli._console import FAILED, bars, err, out
from repalign.errors import RepalignError

if TYPE_CHECKING:
    from repalign.measures import Measure


def measures(name: Annotated[str | None, typer.Argument(help="A measure to explain, or a family.")] = None) -> None:
    """List the measures, all or of one family, or explain one."""
    from inspect import cleandoc

    from repalign.measures import describe, is_group, known_measures, parse_measure

    classes = known_measures()
    if name is not None and not is_group(name):
        measure = parse_measure(name)
        described = describe(type(measure))
        out.print(
            f"[bold]{described['name']}[/]  ({described['family']})", cleandoc(described["doc"]), sep="\n", markup=True
        )
        out.print(f"names: {', '.join(described['aliases'])}")
        out.print(f"needs: {described['needs']}")
        out.print(f"takes: {_takes(measure)}")
        for line in _facts(described):
            out.print(line)
        return
    for family in dict.fromkeys(cls.family for cls in classes if name in (None, "all", cls.family)):
        out.print(f"[bold]{family}[/]")
        for d in (describe(cls) for cls in classes if cls.family == family):
            out.print(f"  [cyan]{d['name']}[/]  {escape(d['summary'])}")
            for line in _facts(d):
                out.print(f"      [dim]{line}[/]")
    out.print("next: repalign measures NAME explains one, repalign pair X Y -m FAMILY uses all of a family")


def _takes(measure: Measure) -> str:
    """What a layer may be given as."""
    words = {"features": "features", "rdm": "dissimilarities as such (RDM, --rdm)", "kernel": "a kernel as such (Kernel, --kernel)"}
    here, elsewhere = ([w for k, w in words.items() if k in ks] for ks in (measure.accepts, measure.takes - measure.accepts))
    return ", or ".join(here) + (f"; with other parameters {' or '.join(elsewhere)}" if elsewhere else "")


def _facts(d: dict[str, Any]) -> list[str]:
    """Range, symmetry and null; what changes nothing; cost."""
    low, high = d["range"]
    symmetric = "symmetric" if d["symmetric"] else "asymmetric"
    kind = "bilinear: " if d["bilinear"] else ""
    return [
        f"{low:g} to {high:g}, {d['direction']}; {symmetric}; {kind}{d['null']}",
        f"unchanged by {', '.join(d['invariances']) or 'nothing'}; cost {d['cost']}",
    ]


def models(name: Annotated[str | None, typer.Argument(help="A set or a model.")] = None) -> None:
    """List the known models and sets; any other model is named by its spec, such as hf:org/name."""
    from repalign.errors import did_you_mean
    from repalign.models import find_model, known_models, model_set
    from repalign.sources import SOURCES

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
        for source in SOURCES.values():
            out.print(f"  {escape(source.form)}   [dim]for example {escape(source.example)}[/]")


def check(
    folder: Annotated[
        str, typer.Argument(help="A feature store, a results folder, or a folder with these, such as runs.", show_default=False)
    ],
    shallow: Annotated[bool, typer.Option("--shallow", help="Of a store sizes and headers only, not every byte.")] = False,
) -> None:
    """Verify stores and results, name what is broken, and say what in stored layers can mislead a measure."""
    from repalign.comparison.check import check as check_folder
    from repalign.comparison.check import find
    from repalign.comparison.doctor import examine, summarise
    from repalign.store import FeatureStore

    with bars() as progress:
        problems = check_folder(folder, deep=not shallow, progress=progress)
    for problem in problems:
        out.print(f"[bold red]broken:[/] {escape(str(problem.path))}: {escape(problem.problem)}")
        out.print(f"  do: {escape(problem.remedy)}")
    if problems:
        err.print(f"{len(problems)} problems")
        raise typer.Exit(FAILED)
    stores, results = ([folder], []) if "://" in folder else find(Path(folder))
    found, findings = [r for store in stores for r in FeatureStore(store).representations()], []
    with bars() as progress:
        for done, r in enumerate(found):
            progress("examine", done, len(found))
            for layer in r.layers:
                x = r.load(layer)
                stored = str(x.dtype).removeprefix("torch.")
                findings += examine(x, model=r.name, layer=layer, stored_dtype=stored, facts=r.facts)
        progress("examine", len(found), len(found))
    for sentence in summarise(findings):
        out.print(f"[yellow]look at:[/] {escape(sentence)}")
    whole = [f"{len(found)} models, {sum(len(r.layers) for r in found)} layers"] if stores else []
    whole += [f"{len(results)} folders of results"] if results else []
    out.print(f"[green]whole:[/] {'; '.join(whole) or folder}")
