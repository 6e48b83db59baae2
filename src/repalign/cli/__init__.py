"""The command line: parses, calls, says where it wrote and what to run next."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
from typing import Annotated, Any

import typer
from rich.markup import escape

from repalign.cli._commands import Row, group
from repalign.cli._competence import bits, import_, probe, vtab
from repalign.cli._console import ABORTED, BROKEN, FAILED, TERMINATED, err, out, show
from repalign.cli._experiments import PANEL, ROWS
from repalign.cli._files import curve, difference, pair
from repalign.cli._studies import check, compare, demo, extract, init, measures, models, report, run, store
from repalign.errors import RepalignError

__all__ = ["app", "err", "main", "out", "show"]

# The commands in the order of the help, under what a person wants, each with an example.
COMMANDS: dict[str, tuple[Any, ...]] = {
    "Start": (
        (demo, "repalign demo --out my-demo"),
        (init, "repalign init photos --out photos.yaml"),
    ),
    "Compare files of features": (
        (pair, "repalign pair clip.npy dino.npy --measure 'MutualKNN(k=10)' --interval auto --out clip-dino"),
        (compare, "repalign compare clip.npy dino.npz mine.parquet --measure 'CKA()'"),
        (difference, "repalign difference mine.npy clip.npy dino.npy --measure 'CKA()'"),
        (curve, "repalign curve clip.npy dino.npy --k 10 --csv curve.csv"),
    ),
    "Run studies of models": (
        (run, "repalign run studies/example.yaml"),
        (extract, "repalign extract studies/example.yaml"),
        (report, "repalign report runs/photos/results --out report.html --static figures"),
    ),
    PANEL: ROWS,
    "See what there is": (
        (measures, "repalign measures MutualKNN"),
        (models, "repalign models prh-val"),
        (store, "repalign store runs --older-than 30d --dry-run"),
        (check, "repalign check runs"),
    ),
}
OF_COMPETENCE = (
    (bits, "repalign competence bits hf:bigscience/bloomz-560m corpus.jsonl --context 1024 --out bits.json"),
    (probe, "repalign competence probe runs/store labels.csv --probe knn --k 20 --csv probes.csv"),
    (vtab, "repalign competence vtab studies/vision_78.yaml --task dtd --task pets"),
    (import_, "repalign competence import runs/photos/results results-imagenet.csv --column top1=imagenet_top1"),
)


app = group(
    tuple(row if isinstance(row, Row) else Row.of(*row, panel=panel) for panel, rows in COMMANDS.items() for row in rows),
    name="repalign", help="Do two models put the same things close together, and is that more than chance?",
    epilog="Start with: repalign demo", context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(
    group(
        tuple(Row.of(*row) for row in OF_COMPETENCE), name="competence",
        help="How good models are: bits per byte of any text, probes on their layers, scores of benchmarks.",
    ),
    rich_help_panel=PANEL,
)  # fmt: skip


def _terminated(signal: int, frame: Any) -> None:  # noqa: ARG001
    """As a batch system asks when the time of a job is over: what is open is closed, as after an error."""
    sys.exit(TERMINATED)


def main() -> None:
    """Run the command line; a failure is one message and a status, never a traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except RepalignError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(FAILED)
    except SystemExit as stop:
        if stop.code in (ABORTED, TERMINATED):  # an interrupt, as typer tells it
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


class _Told(logging.Handler):
    """Prints a warning of repalign's own log as a line on the error stream. Other libraries keep to errors."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(f"[yellow]note:[/] {escape(record.getMessage())}")


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    if version:
        from repalign import __version__

        out.print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.fail("Missing command.")
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    ours = logging.getLogger("repalign")
    ours.handlers = [] if verbose else [_Told(logging.WARNING)]
    ours.propagate = verbose
    ours.setLevel(logging.INFO if verbose else logging.WARNING)
