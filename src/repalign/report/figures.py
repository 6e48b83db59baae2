"""Every figure of a result as SVG and PNG files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

from repalign import figures
from repalign import text as words
from repalign.comparison.alignment import Alignment
from repalign.errors import RepalignError
from repalign.figures.quantities import measures_of, rows_of
from repalign.relate import MIN_MODELS_LINE, sides_of, yardsticks
from repalign.text import Progress, silent

# Text stays text, and the same figure gives the same bytes.
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "repalign"}
MATRICES = ("statistic", "calibrated", "pvalue")


def write_figures(alignment: Alignment, folder: Path, progress: Progress = silent) -> list[Path]:
    """Write all figures into a folder and return their paths, two per figure."""
    written: list[Path] = []
    jobs = list(_jobs(alignment))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for done, (name, draw, options) in enumerate(jobs):
            progress("figures", done, len(jobs))
            figure = draw(alignment, **options)
            path = _free(folder, name, written)
            with matplotlib.rc_context(SETTINGS):
                figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
                figure.savefig(path.with_suffix(".png"), dpi=200, metadata={"Software": None})
            written += [path.with_suffix(".svg"), path.with_suffix(".png")]
    except OSError as error:
        raise RepalignError(
            f"{folder}: figures cannot be written", got=str(error), remedy="choose another folder"
        ) from error
    progress("figures", len(jobs), len(jobs))
    return written


def _jobs(alignment: Alignment) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, function and options of every figure."""
    table, run = alignment.table, alignment.run
    models = list(run.get("models") or [])
    for measure in measures_of(table):
        label, pairs = words.measure_label(measure), rows_of(table, "max", measure)
        for value in MATRICES:
            yield f"matrix-{value}-{label}", figures.matrix, {"measure": measure, "value": value}
        yield f"chance-{label}", figures.null, {"measure": measure}
        defined = pairs.loc[pairs["statistic"].notna()]
        for side in sides_of(run):
            names = [*defined["model_x"]] * (side != "y") + [*defined["model_y"]] * (side != "x")
            for against in yardsticks(models, names, at_least=MIN_MODELS_LINE):
                options = {"measure": measure, "side": side, "against": against}
                yield f"trend-{side}-{against}-{label}", figures.trend, options
        for x, y in zip(pairs["model_x"], pairs["model_y"], strict=True):
            yield f"layers-{x}-{y}-{label}", figures.layer_map, {"model_x": x, "model_y": y, "measure": measure}


def _free(folder: Path, name: str, taken: list[Path]) -> Path:
    """A file name of plain characters that no other figure has; without an ending."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:120]
    path, k = folder / f"{plain}.svg", 2
    while path in taken:
        path, k = folder / f"{plain}-{k}.svg", k + 1
    return path
