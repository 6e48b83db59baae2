"""The command line: parses, calls, says where it wrote and what to run next."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from typing import Annotated

import typer
from rich.markup import escape

from repalign.cli._arrays import curve, difference
from repalign.cli._compare import compare, pair
from repalign.cli._competence import app as competence
from repalign.cli._console import ABORTED, BROKEN, FAILED, err, out, show
from repalign.cli._lists import check, measures, models
from repalign.cli._study import demo, extract, report, run
from repalign.errors import RepalignError

__all__ = ["app", "err", "main", "out", "show"]

app = typer.Typer(
    name="repalign",
    help="Do two models put the same things close together, and is that more than chance?",
    epilog="Start with: repalign demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

# The commands in the order of the help, each with its example.
COMMANDS = (
    (run, "repalign run studies/example.yaml"),
    (extract, "repalign extract studies/example.yaml"),
    (compare, "repalign compare runs/store --x bloomz-560m --y vit-base --measure 'CKA()'"),
    (report, "repalign report runs/photos/results --out report.html --static figures"),
    (pair, "repalign pair clip.npy dino.npy --measure 'MutualKNN(k=10)' --interval"),
    (difference, "repalign difference mine.npy clip.npy dino.npy --measure 'CKA()'"),
    (curve, "repalign curve clip.npy dino.npy --k 10 --csv curve.csv"),
    (measures, "repalign measures MutualKNN"),
    (models, "repalign models prh-val"),
    (check, "repalign check runs"),
    (demo, "repalign demo --out my-demo"),
)
for _command, _example in COMMANDS:
    app.command(epilog=f"Example: {_example}")(_command)
app.add_typer(competence)


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


class _Told(logging.Handler):
    """What the user should know of repalign's own log: a line on the error stream. Other libraries keep to errors."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(f"[yellow]note:[/] {escape(record.getMessage())}")


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
    ours = logging.getLogger("repalign")
    ours.handlers = [] if verbose else [_Told(logging.WARNING)]
    ours.propagate = verbose
    ours.setLevel(logging.INFO if verbose else logging.WARNING)
