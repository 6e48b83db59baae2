"""Studies, stores and results: run, extract, compare, report, check, store, the demo; and what measures and models there are."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from repalign.cli._commands import importing
from repalign.cli._console import FAILED, MANY_MEASURES, answer, bars, err, out, show_table, tell, write_result, wrote
from repalign.cli._options import Comparing, LocalModels, MeasureNames, OlderThan, OneDataset, Part, Reader, Workers
from repalign.errors import RepalignError, choose, did_you_mean
from repalign.text import MOCK, alike, counted, duration, parameters, size, telling

if TYPE_CHECKING:
    from repalign.comparison.alignment import Alignment
    from repalign.measures import Measure
    from repalign.store import FeatureStore, Kept

FEW = 4  # commands that are named
StudyFile = Annotated[Path, typer.Argument(help="A study file (YAML).")]


# --- studies ---


def init(
    folder: Annotated[Path, typer.Argument()] = Path(), to: Annotated[Path, typer.Option("--out")] = Path("study.yaml")
) -> None:
    """Write a study file, with a comment on every field, for what a folder holds; for the toy world where it holds nothing.

    It looks for files of features, tables of images and texts, folders of images, and models.

    Parameters
    ----------
    folder : The folder to look at.
    to : The study file; what is there already is left as it is.
    """
    from repalign.study.first import write_first

    tell(write_first(folder, to))
    wrote("study", to, f"repalign run {to} --plan")


def _loaded(study: Path, local: list[Path] | None) -> Any:
    with importing():
        from repalign.study import load_study

    loaded = load_study(study)
    return loaded.with_local(*local) if local else loaded


def run(
    study: StudyFile, plan: bool = False, mock: bool = False, local: LocalModels = None, *, workers: Workers, part: Part = None
) -> None:
    """Run a study: dataset, extraction, comparison, figures, report. A killed run goes on where it stopped.

    Parameters
    ----------
    plan : Only say what would be done and what it needs.
    mock : Try it out: tiny stand-ins for the models and a generated dataset; no download.
    """
    loaded = _loaded(study, local)
    with bars() as progress:
        if mock:
            loaded = loaded.mock(progress)
            err.print(f"[bold yellow]{MOCK}[/] All of it is in {escape(str(loaded.folder))}")
        if plan:
            over = workers.count(loaded.cluster) if part is None else part.count
            found = loaded.plan(progress, over, part is None) if over > 1 and loaded.has_workers else loaded.plan(progress)
            out.print(escape("\n".join(found.lines)))
            return
        told = {"progress": progress, "on_plan": lambda plan: tell(plan.lines)}
        with _at_work(loaded, workers) as executor:
            if part is not None:
                left = loaded.share(part, executor=executor, **told)
                _say_left(left, part, "run", study, local)
                if part.index:
                    return
            outcome = loaded.run(executor=executor, **told)
    only = outcome.alignments.get("")  # without variants
    if only is not None and (len(only.measures) <= MANY_MEASURES or not outcome.drawn):
        answer(only)
    elif outcome.alignments:
        _show_variants(outcome.alignments)
    for figure in outcome.drawn:
        out.print(f"[bold]{escape(figure.title)}[/]\n{escape(figure.text)}")
    for model, reason in outcome.skipped:
        err.print(f"[bold yellow]left out:[/] {escape(model)}: {escape(reason)}")
    for what, path in outcome.wrote:
        wrote(what, path)
    if loaded.is_mock:
        out.print(f"[bold yellow]{MOCK}[/]")


@contextmanager
def _at_work(study: Any, workers: Workers) -> Iterator[Any]:
    """The executor for a study, which must have something to do for it."""
    if workers == Workers():
        yield None
        return
    if not study.has_workers:
        remedy = "leave out --jobs and --dask"
        raise RepalignError(f"{study.path}: this kind of study has no work for several workers", remedy=remedy)
    with workers.executor(study.cluster) as executor:
        yield executor


def _say_left(left: Any, part: Any, name: str, of: object, local: list[Path] | None = None) -> None:
    """What is missing after a part of the work, and which command makes it; refused where all of it is to be put together."""
    command = f"repalign {name} {of}" + "".join(f" --local {folder}" for folder in local or ())
    then = command.replace("repalign extract", "repalign run", 1)
    if left and not part.index:
        raise RepalignError(
            f"{left}", expected="all parts, to put them together",
            remedy=f"run the parts that are missing ({command} --part I/N); or {command}, which makes them itself",
        )  # fmt: skip
    if not part.index:
        return
    out.print(f"part {part} is done" + (f"; {escape(str(left))}" if left else "; nothing is missing"))
    if owners := [f"{command} --part {i}/{part.count}" for i in left.shares if i != part.index]:
        out.print(f"made by: {escape('; '.join(owners[:FEW]))}{' ...' if len(owners) > FEW else ''}")
    if left.models:
        out.print(escape(f"then, to compare: {then} --part {part}, or {then}"))
    elif not left:
        out.print(escape(f"next: {then}"))


def _show_variants(alignments: Mapping[str, Alignment]) -> None:
    """A line for each variant and measure."""
    rows = []
    for name, alignment in alignments.items():
        for measure, about in alignment.about.items():
            best = alignment.best(measure)
            means = alike(*(float(best[c].to_numpy(float).mean()) for c in ("statistic", "null_mean")))
            rows.append((escape(name), escape(about.label), str(len(best)), str(best["n"].iloc[0]), *means))
    columns = ("variant", "measure", "pairs", "n", "score", "chance")
    show_table(columns, rows, "mean over pairs of models", words=2)


def extract(study: StudyFile, local: LocalModels = None, *, workers: Workers, part: Part = None) -> None:
    """Extract all models of a study into its store, and compare nothing yet."""
    with importing():
        from repalign.study.alignment import AlignmentStudy

    loaded = _loaded(study, local)
    if not isinstance(loaded, AlignmentStudy):
        raise RepalignError(f"{study}: this study has no models to extract by themselves", remedy=f"repalign run {study}")
    tell(loaded.told_of_local)
    with bars() as progress, _at_work(loaded, workers) as executor:
        if part is not None:
            left = loaded.share(part, compare=False, executor=executor, progress=progress)
            _say_left(left, part, "extract", study, local)
            if part.index:
                return
        found = loaded.extract(progress=progress, executor=executor)
    rows = []
    for r in found:
        widths = " to ".join(map(str, dict.fromkeys((min(r.widths), max(r.widths)))))
        rows.append((escape(r.name), str(len(r.layers)), widths, parameters(r.record.n_parameters)))
    show_table(("model", "layers", "widths", "parameters"), rows, f"n = {found[0].n}")
    wrote("features", loaded.store, f"repalign run {study}")


def report(results: str, to: Annotated[str | None, typer.Option("--out")] = None, static: str | None = None) -> None:
    """Write the report of finished results: one HTML file that needs no network.

    Parameters
    ----------
    results : A results folder, or its URL.
    to : The HTML file, or its URL; by default beside the table.
    static : Also write each figure as SVG and PNG into this folder.
    """
    with importing():
        from repalign.files import place_of
        from repalign.report import write_report

    path = write_report(results, to or place_of(results) / "report.html", static=static)
    wrote("report", path)
    if static is not None:
        wrote("figures", static)


def demo(to: Annotated[Path, typer.Option("--out")] = Path("repalign-demo")) -> None:
    """See it work: train small models on a toy world, compare them, write the report. No network, three minutes.

    Parameters
    ----------
    to : The folder to write into.
    """
    from repalign.study.demo import run_demo

    with bars() as progress:
        alignment = run_demo(to, progress=progress, on_plan=lambda plan: tell(plan.lines))
    answer(alignment)
    wrote("study", to / "study.yaml", f"edit it, then: repalign run {to / 'study.yaml'}")
    wrote("report", (to / "report.html").absolute(), f"open {to / 'report.html'}")


# --- stores and files ---


def compare(
    sources: Annotated[list[str], typer.Argument()], x: list[str] | None = None, y: list[str] | None = None,
    measure: MeasureNames = None, *, how: Comparing, reader: Reader, dataset: OneDataset = None,
    results: str = "repalign-results", workers: Workers, part: Part = None,
) -> None:  # fmt: skip
    """Compare files of features, each a model, or what is in a store: two sides, or all models with each other.

    Rows of files are joined on ids; without any in all of them, row i with row i.

    Parameters
    ----------
    sources : Files of features, or folders of these; or one feature store.
    x : Models of one side, by name (that of a file without its ending); all by default.
    y : Models of the other side.
    results : Where results go: a folder or a URL.
    """
    with importing():
        from repalign.comparison import compare_share, in_memory, model_files
        from repalign.files import place_of

    place, told, folder = ", ".join(sources), {}, place_of(results)
    if len(sources) == 1 and _is_store(sources[0]):
        reader.refuse("files of features")
        models = stored(place, dataset)
    else:
        files = model_files(sources)
        found = reader.read(*files.values())
        tell(found.how)
        models = [in_memory(layers, name, found.ids) for layers, name in zip(found.layers, files, strict=True)]
        told = {"describe": {"how": list(found.how)}}
    left, right = picked(models, x, place), picked(models, y, place) if y else None
    groups = how.grouped(models[0].ids)
    with bars() as progress, workers.executor() as executor:
        at = {"results": folder, "progress": progress, "executor": executor}
        if part is not None:
            from repalign.study.base import Left

            missing, of, owners = compare_share(part, left, right, measure, how.chance(groups), **how.how, **at)
            _say_left(Left((), missing, of, owners), part, "compare", "...")
            if part.index:
                return
        alignment = how.compare(left, right, measure, groups, **at, **told)
    answer(alignment)
    for what, path in write_result(alignment, folder):
        wrote(what, path)


def _is_store(source: str) -> bool:
    """Whether it is an address, or a folder without files of features; what is not there may be either, and is no store."""
    from repalign.features import feature_files, is_features

    path = Path(source)
    return "://" in source or (path.is_dir() and not is_features(path) and not feature_files(path))


def stored(store: str, dataset: str | None) -> list[Any]:
    """What a store holds of one dataset: the only one, or the one of this fingerprint. Equal names are told apart."""
    from repalign.store import FeatureStore

    found = FeatureStore(store).representations()
    prints = {r.dataset_fingerprint: r.dataset_name for r in found}
    chosen = [f for f in prints if f.startswith(dataset or "")]
    if len(chosen) == 1:
        return _told_apart([r for r in found if r.dataset_fingerprint == chosen[0]])
    if dataset is not None:
        remedy = did_you_mean(dataset, prints)
        raise RepalignError(f"{store}: no single dataset {dataset!r}", got=f"{len(chosen)} match", remedy=remedy)
    raise RepalignError(
        f"{store}: which dataset?", expected="one finished dataset, or --dataset with its fingerprint",
        got=", ".join(f"{f[:12]} ({name})" for f, name in prints.items()) or "none",
        remedy="say --dataset FINGERPRINT" if prints else "extract first: repalign extract STUDY",
    )  # fmt: skip


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


def picked(models: list[Any], names: list[str] | None, store: str) -> list[Any]:
    """The models of a store that are called so; all of them if no name is given."""
    known = {r.name: r for r in models}
    return [known[choose("model", name, known, f"{store}: no model {name!r}")] for name in names or known]


def check(folder: str, shallow: bool = False) -> None:
    """Verify stores and results, name what is broken, and say what in stored layers can mislead a measure.

    Parameters
    ----------
    folder : A feature store, a results folder, or a folder with these, such as runs; or its URL.
    shallow : Look at sizes and headers of a store only, not at every byte: nothing is said of what its layers hold.
    """
    from repalign.comparison.check import check as check_folder
    from repalign.comparison.check import find
    from repalign.comparison.doctor import examine, summarise
    from repalign.files import place_of
    from repalign.store import FeatureStore

    with bars() as progress:
        problems = check_folder(folder, deep=not shallow, progress=progress)
    for problem in problems:
        told = f"{problem.path}: {problem.problem}\n  do: {problem.remedy}"
        out.print(f"[bold red]broken:[/] {escape(told)}")
    if problems:
        err.print(counted(len(problems), "problem"))
        raise typer.Exit(FAILED)
    stores, results = find(place_of(folder))
    found, findings = [r for store in stores for r in FeatureStore(store).representations()], []
    read = [] if shallow else found
    with bars() as progress:
        for r in telling(read, "examine", progress):
            for layer in r.layers:
                x = r.load(layer)
                dtype = str(x.dtype).removeprefix("torch.")
                findings += examine(x, model=r.name, layer=layer, stored_dtype=dtype, facts=r.facts)
    for sentence in summarise(findings):
        out.print(f"[yellow]look at:[/] {escape(sentence)}")
    layers = sum(len(r.layers) for r in found)
    whole = [f"{counted(len(found), 'model')}, {counted(layers, 'layer')}"] if stores else []
    whole += [f"{counted(len(results), 'folder')} of results"] if results else []
    out.print(f"[green]whole:[/] {'; '.join(whole) or folder}")


def store(
    folder: Annotated[str, typer.Argument()] = "runs", delete: list[str] | None = None,
    older_than: OlderThan = None, dry_run: bool = False, yes: bool = False,
) -> None:  # fmt: skip
    """List what stores keep of which model, with its size and age; delete it by model or by age.

    What a run may be writing is left alone. What is deleted is extracted anew when a study needs it.

    Parameters
    ----------
    folder : A feature store, or a folder with stores in it; or its URL.
    delete : Delete what is kept of this model, by its name or spec; may be repeated.
    older_than : Delete what was written longer ago, for instance 30d, 12h or 8w; with --delete only of these models.
    dry_run : Say what would be deleted, and delete nothing.
    yes : Delete without asking, as is needed without a terminal.
    """
    from repalign.comparison.check import find
    from repalign.files import place_of
    from repalign.store import FeatureStore

    stores = [FeatureStore(place) for place in find(place_of(folder))[0]]
    if not stores:
        problem, expected = f"{folder}: there is no feature store", "a store, or a folder with one in it, such as runs"
        raise RepalignError(problem, expected=expected, got="none", remedy="name the folder that `repalign run` printed")
    every, now = [(place, one) for place in stores for one in place.contents()], time.time()
    known = {name for _, one in every for name in (one.model, one.spec)}
    for name in delete or ():
        choose("model", name, known, f"{folder}: no model {name!r} is kept")
    is_asked = bool(delete) or older_than is not None
    if not is_asked and (yes or dry_run):
        how = "--yes" if yes else "--dry-run"
        raise RepalignError(f"{how} says how to delete, and nothing is to be deleted", remedy="leave it out")
    chosen = [
        (place, one) for place, one in every
        if (not delete or {one.model, one.spec} & set(delete)) and (older_than is None or now - one.written > older_than)
    ]  # fmt: skip
    for place in stores:
        kept = [one for of, one in chosen if of is place]
        rows = [
            (
                escape(one.model), escape(one.dataset), str(len(one.layers)) if one.layers else "not complete",
                ", ".join(one.dtypes), size(one.nbytes), f"{duration(now - one.written)} ago" + " (at work)" * one.is_live,
            )
            for one in kept
        ]  # fmt: skip
        if is_asked and not rows:
            continue
        title = f"{place.url}: {counted(len(kept), 'extraction')}, {size(sum(one.nbytes for one in kept))}"
        show_table(("model", "data set", "layers", "dtype", "size", "written"), rows, title, words=2)
    if is_asked:
        _delete([(place, one) for place, one in chosen if not one.is_live], dry_run, yes)


def _delete(chosen: list[tuple[FeatureStore, Kept]], dry_run: bool, yes: bool) -> None:
    """Delete what is kept, if the user says so."""
    what = f"{counted(len(chosen), 'extraction')}, {size(sum(one.nbytes for _, one in chosen))}"
    if dry_run or not chosen:
        out.print(f"would delete {what}" if chosen else "nothing to delete")
        return
    if not yes and not sys.stdin.isatty():
        raise RepalignError(f"{what}: nothing is deleted without a word", expected="--yes, where there is no terminal to ask on")
    if not yes and not typer.confirm(f"delete {what}?"):
        out.print("nothing was deleted")
        return
    for place, one in chosen:
        place.delete(one)
    out.print(f"deleted {what}: so much is free again")


# --- what there is ---


D_LLV, LLV = "d_LLV", "log_likelihood_variance_distance"  # of four files, and so no measure of two layers
LLV_TOLD = "The log-likelihood variance distance takes embeddings and unembeddings of each model: repalign closeness."


def measures(name: Annotated[str | None, typer.Argument()] = None) -> None:
    """List the measures, all or of one family, or explain one.

    Parameters
    ----------
    name : A measure to explain, or a family.
    """
    with importing():
        from repalign.measures import describe, is_group, known_measures, parse_measure

    if name is not None and name.lower() in (D_LLV.lower(), LLV):
        from repalign.measures import log_likelihood_variance_distance

        text = inspect.getdoc(log_likelihood_variance_distance) or ""
        out.print(f"[bold]{LLV}[/]  (distribution)", escape(text), LLV_TOLD, sep="\n")
        return
    if name is not None and not is_group(name):
        measure = parse_measure(name)
        d = describe(type(measure))
        out.print(f"[bold]{d['name']}[/]  ({d['family']})", d["doc"], sep="\n", markup=True)
        facts = {"names": ", ".join(d["aliases"]), "needs": d["needs"], "takes": _takes(measure)}
        out.print(*(f"{fact}: {said}" for fact, said in facts.items()), *_facts(d), sep="\n")
        return
    known = [describe(cls) for cls in known_measures()]
    for family in dict.fromkeys(d["family"] for d in known if name in (None, "all", d["family"])):
        out.print(f"[bold]{family}[/]")
        for d in (d for d in known if d["family"] == family):
            out.print(f"  [cyan]{d['name']}[/]  {escape(d['summary'])}")
            for line in _facts(d):
                out.print(f"      [dim]{line}[/]")
        if family == "distribution":
            out.print(f"  [cyan]{D_LLV}[/]  {LLV_TOLD}")
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


def models(name: Annotated[str | None, typer.Argument()] = None) -> None:
    """List the known models and sets; any other model is named by its spec, such as hf:org/name.

    Parameters
    ----------
    name : A set or a model.
    """
    from repalign.models import find_model, known_models, model_set
    from repalign.sources.source import SCHEMES, SOURCES

    known = known_models()
    sets = {k.model_set for k in known}
    if name is not None:
        names = {*sets, *(k.name for k in known), *(k.spec for k in known)}
        choose("model", name, names, f"no known model or set is called {name!r}")
    chosen = known if name is None else model_set(name) if name in sets else [find_model(name)]
    rows = [(k.name, k.spec, k.modality, k.family, k.objective, k.model_set, "yes" if k.gated else "") for k in chosen]
    columns = ("name", "spec", "modality", "family", "objective", "set", "gated")
    show_table(columns, [tuple(map(escape, row)) for row in rows], words=len(columns))
    if name is None:
        out.print("any model is named by a spec:")
        for source in map(SOURCES.__getitem__, SCHEMES):
            out.print(f"  {escape(source.form)}   [dim]for example {escape(source.example)}[/]")
