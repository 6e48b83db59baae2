"""How good models are: bits per byte of a corpus, probes on a store, scores of others for a result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from repalign.cli._console import bars, out, print_json, show_table, write_csv, wrote
from repalign.cli._options import AsJson, OneDataset
from repalign.cli._studies import picked, stored
from repalign.errors import RepalignError, Unavailable, choose
from repalign.text import counted, number

if TYPE_CHECKING:
    from repalign.competence import Corpus
    from repalign.competence.bits import Bits

def bits(
    model: str, corpus: str, column: str | None = None, documents: str | None = None, split: str | None = None,
    context: int | None = None, stride: int | None = None, bos: str = "tokenizer", bos_in: str = "first",
    joined: bool = False, first_token_bytes: str = "count", max_tokens: int | None = None, batch_size: int = 8,
    dtype: str = "auto", device: str = "auto", on_unavailable: str = "error",
    to: Annotated[Path | None, typer.Option("--out")] = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Bits per byte of a causal language model on a corpus, every token scored once in sliding windows.

    Parameters
    ----------
    model : A causal language model, hf:org/name or hf:./folder.
    corpus : Text: a table (.jsonl .csv .tsv .parquet), any other file in UTF-8, or hub:org/dataset.
    column : The column of a table or hub dataset; text by default.
    documents : Documents of a text file: whole (the default), lines, or the text between, such as '<|endoftext|>'.
    split : The split of a hub dataset; train by default.
    context : Tokens seen at once; the model's limit, at most 2048, by default.
    stride : Tokens by which the window moves on; half the context by default.
    bos : BOS before a document: tokenizer, always or never.
    bos_in : BOS in the first window of a document, or in every.
    joined : Let context run across documents.
    first_token_bytes : Bytes of a first token without BOS: count or leave_out.
    max_tokens : Stop after the document that reaches so many tokens.
    batch_size : Windows that run together.
    dtype : auto, stored (as the weights are), float32, bfloat16, float16, float64.
    device : auto, cpu, cuda, cuda:1, mps, ..., or sharded (over all CUDA GPUs).
    on_unavailable : A gated or missing model: error, or skip (say so in a line and end well).
    to : Write the result here (JSON); a killed run goes on from it.
    """
    from repalign.competence import BitsProtocol, bits_per_byte
    from repalign.sources import ModelEntry
    from repalign.sources.loop import ON_UNAVAILABLE, left_out

    across = "joined" if joined else "separate"
    protocol = BitsProtocol(context, stride, bos, bos_in, across, first_token_bytes, max_tokens)
    opened = _corpus(corpus, column, documents, split)
    choose("--on-unavailable", on_unavailable, ON_UNAVAILABLE)
    with bars() as progress:
        try:
            how = {"batch_size": batch_size, "dtype": dtype, "device": device, "progress": progress}
            found = bits_per_byte(model, opened, protocol, state=to, **how)
        except Unavailable as error:
            if on_unavailable == "error":
                raise
            left_out(ModelEntry(model), error, "bits per byte", progress)
            if as_json:
                print_json([])
            return
    if as_json:
        row = {"model": found.record.spec, "revision": found.record.revision, **found.scores}
        print_json([row | {c: getattr(found, c) for c in ("n_documents", "n_tokens", "n_bytes", "protocol")}])
        return
    _show_bits(found)
    if to is not None:
        wrote("result", to)


def _show_bits(found: Bits) -> None:
    out.print(f"[bold]{escape(found.record.name)}[/]: {found.bits_per_byte:.6f} bits per byte")
    out.print(f"{found.bits_per_char:.6f} bits per character, {found.nats_per_token:.6f} nats per token")
    sizes = counted(found.n_bytes, "byte"), counted(found.n_documents, "document")
    out.print(f"{counted(found.n_tokens, 'token')} scored, {', '.join(sizes)}")
    context, stride, documents, first = (found.protocol[c] for c in ("context", "stride", "documents", "first_token"))
    how = f"context {context}, stride {stride}, documents {documents}, first token {first}, {found.facts['dtype']}"
    out.print(f"[dim]{how}[/]")


def _corpus(given: str, column: str | None, documents: str | None, split: str | None) -> Corpus:
    """The corpus that the words describe; an option that it would not use is refused."""
    from repalign.competence.corpus import FORMATS, HUB, named_corpus

    hub, table = given.startswith(HUB), Path(given).suffix in FORMATS
    for option, value, used in (
        ("column", column, hub or table), ("documents", documents, not hub and not table), ("split", split, hub),
    ):  # fmt: skip
        if value is not None and not used:
            raise RepalignError(f"--{option} says nothing of {given}", got=value, remedy="leave it out")
    return named_corpus(given, column, documents=documents, split=split)


def probe(
    store: str, labels: Path, models: Annotated[list[str] | None, typer.Option("--model")] = None,
    layers: Annotated[list[str] | None, typer.Option("--layer")] = None,
    kind: Annotated[str, typer.Option("--probe")] = "linear", label: str = "label", k: int = 20,
    m: Annotated[int, typer.Option("-m", "--per-class")] = 5, test: float = 0.2, seed: int = 0,
    dataset: OneDataset = None, csv: Annotated[Path | None, typer.Option("--csv")] = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Probe every layer: how well labels are read off on held-out stimuli, beside the commonest class.

    Parameters
    ----------
    store : A feature store.
    labels : A table with the columns id and label.
    models : A model; may be repeated; all by default.
    layers : A layer; may be repeated; all by default.
    kind : linear, few-shot or knn.
    label : The column of labels.
    k : Neighbours of knn.
    m : Training stimuli per class of few-shot.
    test : Share of held-out stimuli.
    seed : Seed of the split, folds and draws.
    csv : Write all layers of all models here.
    """
    from repalign.competence import FewShotProbe, KNNProbe, LinearProbe, Split, best_layer, read_labels
    from repalign.competence import probe as run

    made = {"linear": LinearProbe, "few-shot": lambda: FewShotProbe(m=m), "knn": lambda: KNNProbe(k=k)}
    choose("--probe", kind, made)
    if "://" not in store and not Path(store).exists():
        raise RepalignError(f"there is no store {store}", remedy="name the folder that `repalign run` printed")
    probed, split, found = picked(stored(store, dataset), models, store), Split(test, seed), []
    with bars() as progress:
        for r in probed:
            y = read_labels(labels, r.ids, label)
            found.append(run(r, y, made[kind](), split=split, layers=layers, seed=seed, progress=progress))
    rows = [record.to_dict() for records in found for record in records]
    if csv is not None:
        write_csv(csv, rows)
    if as_json:
        print_json(rows)
        return
    # The few-shot probe has no validation within the training stimuli: all of its layers are shown.
    shown = [r for records in found for r in (records if kind == "few-shot" or len(records) == 1 else [best_layer(records)])]
    cells = [(escape(r.model), escape(r.layer), number(r.accuracy), number(r.chance), str(r.n_test)) for r in shown]
    show_table(("model", "layer", "accuracy", "chance", "n held out"), cells, words=2)
    if len(shown) < len(rows):
        out.print("[dim]the layer that is best within the training stimuli; --csv or --json for all layers[/]")
    if csv is not None:
        wrote("table", csv)


def vtab(
    study: Path, tasks: Annotated[list[str] | None, typer.Option("--task")] = None, tables: Path | None = None, n: int = 5000,
    seed: int = 0, csv: Path | None = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Probe the vision models of a study on the tasks of VTAB, and count which they solve.

    Images come from the hub, where a copy of a task is known (15 of 19), or from tables of your own. What cannot be had is named.

    Parameters
    ----------
    study : A study file.
    tasks : A task, such as dtd; may be repeated; all 19 by default.
    tables : A folder with TASK.csv of your own (columns id, image, label), which go before the hub.
    n : Images of each task, at most.
    seed : Of the samples and probes.
    csv : Write the counts here; by default data/vtab.csv beside the study. All accuracies go beside it.
    """
    from repalign.study import load_study
    from repalign.study.alignment import AlignmentStudy
    from repalign.study.vtab import vtab as run

    loaded = load_study(study)
    if not isinstance(loaded, AlignmentStudy):
        raise RepalignError(f"{study} compares no models", expected="a study with models", got=type(loaded).__name__)
    with bars() as progress:
        found = run(loaded, tasks, tables=tables, n=n, seed=seed, progress=progress)
    written = found.write(csv or loaded.base / "data" / "vtab.csv")
    if as_json:
        print_json(found.table.to_dict("records"))
        return
    show_table(("model", "tasks solved"), [(escape(m), f"{k} of {len(found.tasks)}") for m, k in found.counts.items()], words=1)
    out.print(escape(found.text))
    for what, path in zip(("counts", "accuracies"), written, strict=True):
        wrote(what, path)


def import_(
    results: str, file: Path, columns: Annotated[list[str] | None, typer.Option("--column")] = None,
    overwrite: bool = False,
) -> None:  # fmt: skip
    """Give the models of a result scores that others measured, for its trends and its report.

    Parameters
    ----------
    results : A results folder, or its URL.
    file : Results of lm-evaluation-harness (.json or a folder), or a CSV with a column model.
    columns : A column of the CSV, COLUMN or COLUMN=SCORE; may be repeated; all by default.
    overwrite : Replace scores that the models have.
    """
    from repalign.comparison.alignment import RUN_FILE, Alignment
    from repalign.competence import add_scores, read_lm_eval, read_scores
    from repalign.files import place_of

    is_table = file.suffix == ".csv"
    if columns and not is_table:
        raise RepalignError("--column is of a CSV file", got=str(file), remedy="leave it out")
    wanted = {c.partition("=")[0]: c.partition("=")[2] or c for c in columns} if columns else None
    scores = read_scores(file, wanted) if is_table else read_lm_eval(file)
    changed, joined = add_scores(Alignment.load(results), scores, overwrite=overwrite)
    changed.save_run(results)
    names = dict.fromkeys(s.name for s in scores)
    out.print(f"{len(joined.records) - len(joined.without)} of {len(joined.records)} models: {escape(', '.join(names))}")
    for line in (*joined.sizes, *([f"without: {', '.join(joined.without)}"] if joined.without else ())):
        out.print(f"[dim]{escape(line)}[/]")
    wrote("run", place_of(results) / RUN_FILE, f"repalign report {results}")
