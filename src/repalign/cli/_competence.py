"""How good models are: bits per byte of a corpus, probes on a store, scores of others for a result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from repalign.cli._compare import OneDataset, stored
from repalign.cli._console import bars, out, print_json, wrote
from repalign.cli._options import AsJson
from repalign.errors import RepalignError, Unavailable, did_you_mean
from repalign.text import number

if TYPE_CHECKING:
    from repalign.competence import Corpus

PROBES = ("linear", "few-shot", "knn")

app = typer.Typer(
    name="competence",
    help="How good models are: bits per byte of any text, probes on their layers, scores of benchmarks.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command(epilog="Example: repalign competence bits hf:bigscience/bloomz-560m corpus.jsonl --context 1024 --out bits.json")
def bits(
    model: Annotated[str, typer.Argument(help="A causal language model, hf:org/name or hf:./folder.", show_default=False)],
    corpus: Annotated[
        str,
        typer.Argument(
            help="Text: a table (.jsonl .csv .tsv .parquet), any other file in UTF-8, or hub:org/dataset.", show_default=False
        ),
    ],
    column: Annotated[str | None, typer.Option(help="The column of a table or hub dataset; text without.")] = None,
    documents: Annotated[
        str | None,
        typer.Option(help="Documents of a text file: whole (the default), lines, or the text between, such as '<|endoftext|>'."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of a hub dataset; train without.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens seen at once; the model's limit, at most 2048, without.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens by which the window moves on; half the context without.")] = None,
    bos: Annotated[str, typer.Option(help="BOS before a document: tokenizer, always or never.")] = "tokenizer",
    bos_in: Annotated[str, typer.Option(help="BOS in the first window of a document, or in every.")] = "first",
    joined: Annotated[bool, typer.Option("--joined", help="Let context run across documents.")] = False,
    first_token_bytes: Annotated[str, typer.Option(help="Bytes of a first token without BOS: count or leave_out.")] = "count",
    max_tokens: Annotated[int | None, typer.Option(help="Stop after the document that reaches so many tokens.")] = None,
    batch_size: Annotated[int, typer.Option(help="Windows run together.")] = 8,
    dtype: Annotated[str, typer.Option(help="auto, stored (as the weights are), float32, bfloat16, float16, float64.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ..., or sharded (over all GPUs).")] = "auto",
    on_unavailable: Annotated[
        str, typer.Option(help="A gated or missing model: error, or skip (say so in a line and end well).")
    ] = "error",
    to: Annotated[Path | None, typer.Option("--out", help="Write the result here (JSON); a killed run goes on from it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Bits per byte of a causal language model on a corpus, every token scored once in sliding windows."""
    from repalign.competence import BitsProtocol, bits_per_byte
    from repalign.sources import ModelEntry
    from repalign.sources.loop import ON_UNAVAILABLE, left_out

    how = "joined" if joined else "separate"
    protocol = BitsProtocol(context, stride, bos, bos_in, how, first_token_bytes, max_tokens)
    opened = _corpus(corpus, column, documents, split)
    if on_unavailable not in ON_UNAVAILABLE:
        raise RepalignError(
            f"unknown --on-unavailable {on_unavailable!r}",
            expected=" or ".join(ON_UNAVAILABLE),
            remedy=did_you_mean(on_unavailable, ON_UNAVAILABLE),
        )
    with bars() as progress:
        try:
            found = bits_per_byte(
                model, opened, protocol, state=to, batch_size=batch_size, dtype=dtype, device=device, progress=progress
            )
        except Unavailable as error:
            if on_unavailable == "error":
                raise
            left_out(ModelEntry(model), error, "bits per byte", progress)
            if as_json:
                print_json([])
            return
    row: dict[str, Any] = {
        "model": found.record.spec, "revision": found.record.revision, **found.scores, "n_documents": found.n_documents,
        "n_tokens": found.n_tokens, "n_bytes": found.n_bytes, "protocol": found.protocol,
    }  # fmt: skip
    if as_json:
        print_json([row])
        return
    out.print(f"[bold]{escape(found.record.name)}[/]: {found.bits_per_byte:.6f} bits per byte")
    out.print(f"{found.bits_per_char:.6f} bits per character, {found.nats_per_token:.6f} nats per token")
    out.print(f"{found.n_tokens:,} tokens scored, {found.n_bytes:,} bytes, {found.n_documents:,} documents")
    p = found.protocol
    out.print(
        f"[dim]context {p['context']}, stride {p['stride']}, documents {p['documents']}, first token {p['first_token']}, "
        f"{found.facts['dtype']}[/]"
    )
    if to is not None:
        wrote("result", to)


def _corpus(given: str, column: str | None, documents: str | None, split: str | None) -> Corpus:
    """The corpus that the words describe; an option that it would not use is refused."""
    from repalign.competence.corpus import HUB, TABLES, named_corpus

    hub, table = given.startswith(HUB), Path(given).suffix in TABLES
    for option, value, used in (
        ("column", column, hub or table), ("documents", documents, not hub and not table), ("split", split, hub),
    ):  # fmt: skip
        if value is not None and not used:
            raise RepalignError(f"--{option} says nothing of {given}", got=value, remedy="leave it out")
    return named_corpus(given, column, documents=documents, split=split)


@app.command(epilog="Example: repalign competence probe runs/store labels.csv --probe knn --k 20 --csv probes.csv")
def probe(
    store: Annotated[str, typer.Argument(help="A feature store.", show_default=False)],
    labels: Annotated[Path, typer.Argument(help="A table with the columns id and label.", show_default=False)],
    models: Annotated[list[str] | None, typer.Option("--model", help="A model of the store; may be repeated; all without.")] = None,
    layers: Annotated[list[str] | None, typer.Option("--layer", help="A layer; may be repeated; all without.")] = None,
    kind: Annotated[str, typer.Option("--probe", help=f"{', '.join(PROBES)}.")] = "linear",
    label: Annotated[str, typer.Option(help="The column of labels.")] = "label",
    k: Annotated[int, typer.Option(help="Neighbours of knn.")] = 20,
    m: Annotated[int, typer.Option("-m", "--per-class", help="Training stimuli per class of few-shot.")] = 5,
    test: Annotated[float, typer.Option(help="Share of held-out stimuli.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the split, folds and draws.")] = 0,
    dataset: OneDataset = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write all layers of all models here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Probe every layer: how well labels are read off on held-out stimuli, beside the commonest class."""
    import pandas as pd

    from repalign.competence import FewShotProbe, KNNProbe, LinearProbe, Split, best_layer, read_labels
    from repalign.competence import probe as run

    made = {"linear": LinearProbe, "few-shot": lambda: FewShotProbe(m=m), "knn": lambda: KNNProbe(k=k)}
    if kind not in made:
        raise RepalignError(f"unknown --probe {kind!r}", got=kind, remedy=did_you_mean(kind, PROBES))
    if "://" not in store and not Path(store).exists():
        raise RepalignError(f"there is no store {store}", remedy="name the folder that `repalign run` printed")
    held = stored(store, dataset)
    known = [r.name for r in held]
    for name in models or ():
        if name not in known:
            raise RepalignError(f"{store}: no model {name!r}", got=name, remedy=did_you_mean(name, known))
    found = []
    with bars() as progress:
        for r in held:
            if not models or r.name in models:
                y = read_labels(labels, r.ids, label)
                found.append(run(r, y, made[kind](), split=Split(test, seed), layers=layers, seed=seed, progress=progress))
    rows = [record.to_dict() for records in found for record in records]
    if csv is not None:
        from repalign.comparison.alignment import csv_text
        from repalign.files import write_text

        write_text(csv, csv_text(pd.DataFrame(rows)))
    if as_json:
        print_json(rows)
        return
    chosen = [best_layer(records) if kind != "few-shot" and len(records) > 1 else None for records in found]
    table = Table(header_style="bold", box=box.SIMPLE_HEAD)
    for name in ("model", "layer", "accuracy", "chance", "n held out"):
        table.add_column(name, overflow="fold", justify="left" if name in ("model", "layer") else "right")
    for records, best in zip(found, chosen, strict=True):
        for r in [best] if best is not None else records:
            table.add_row(escape(r.model), escape(r.layer), number(r.accuracy), number(r.chance), str(r.n_test))
    out.print(table)
    if any(chosen):
        out.print("[dim]the layer that is best within the training stimuli; --csv or --json for all layers[/]")
    if csv is not None:
        wrote("table", csv)


@app.command(
    "import",
    epilog="Example: repalign competence import runs/photos/results results-imagenet.csv --column top1=imagenet_top1",
)
def import_(
    results: Annotated[Path, typer.Argument(help="A results folder.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(
            help="Results of lm-evaluation-harness (.json or a folder), or a CSV with a column model.", show_default=False
        ),
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="A column of the CSV, COLUMN or COLUMN=SCORE; may be repeated; all without."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace scores that the models have.")] = False,
) -> None:
    """Give the models of a result scores that others measured, for its trends and its report."""
    from repalign.comparison.alignment import RUN_FILE, Alignment
    from repalign.competence import add_scores, read_lm_eval, read_scores

    is_table = file.suffix == ".csv"
    if columns and not is_table:
        raise RepalignError("--column is of a CSV file", got=str(file), remedy="leave it out")
    wanted = {c.partition("=")[0]: c.partition("=")[2] or c for c in columns} if columns else None
    scores = read_scores(file, wanted) if is_table else read_lm_eval(file)
    changed, joined = add_scores(Alignment.load(results), scores, overwrite=overwrite)
    changed.save_run(results)
    names = dict.fromkeys(s.name for s in scores)
    out.print(f"{len(joined.records) - len(joined.without)} of {len(joined.records)} models: {escape(', '.join(names))}")
    for line in joined.sizes:
        out.print(f"[dim]{escape(line)}[/]")
    if joined.without:
        out.print(f"[dim]without: {escape(', '.join(joined.without))}[/]")
    wrote("run", results / RUN_FILE, f"repalign report {results}")
