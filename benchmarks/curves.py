"""Curves of the time of an all-layers comparison, over the number of stimuli and over the number of layers.

Debiased CKA and mutual k-NN of two models, d = 768, two panels each: the limit (one Gram matrix per layer, with neighbour
lists for k-NN), all of repalign with n - 1 exact draws, direct engines for as many draws, and the plain loop for the
observed scores alone. Engines and loop are extrapolated from a few draws and a few pairs of layers. The contestants are
those of `layers.py`; points go to a table.

    python benchmarks/curves.py --out docs/images --csv docs/performance.csv --threads 2

With the tables of `neighbors.py`, `streaming.py` and `paper_grid.py` it draws those beside each other instead.

    python benchmarks/curves.py --out docs/images --neighbors neighbors.csv --streaming streaming.csv --grid grid.csv
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from contestants import features, loop, spread, timed
from layers import CONTESTS, Contest, direct, limit, ours

from repalign.figures import palette
from repalign.figures.palette import INK, MUTED, PAPER, RULE, SCORE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = (128, 256, 512, 1024, 2048)
LAYERS = (2, 4, 8, 16, 32)
AXES = {
    "n": ("stimuli n, 12 x 12 layers", "Time against the number of stimuli"),
    "layers": ("layers of each model, n = 1,024", "Time against the number of layers"),
}
# Label, colour, line and marker of every contestant; engines that only one measure has share a colour.
LINES = {
    "plain loop": ("plain loop, observed scores alone", MUTED, ":", "x"),
    "relations": ("direct engine, relations", palette.FAMILY_LIGHT[1], "--", "s"),
    "masks": ("direct engine, masks", palette.FAMILY_LIGHT[1], "--", "s"),
    "lists": ("direct engine, lists", palette.FAMILY_LIGHT[4], "--", "^"),
    "repalign": ("repalign, everything", SCORE, "-", "o"),
    "limit": ("Gram matrices (and lists) alone", INK, "-", "None"),
}


def point(contest: Contest, layers: int, n: int, d: int, *, pairs: int = 3, draws: int = 8) -> dict[str, object]:
    """Seconds of every contestant at one size; the direct engines and repalign make n - 1 draws of all cells."""
    x, y = features(layers, n, d, 1), features(layers, n, d, 2)
    runs = 3 if layers * n <= 16_384 else 2
    least = limit(contest.bare, x, y, runs)
    found = ours(contest.measure, x, y, runs)
    least = min(least, limit(contest.bare, x, y, runs))
    cells = spread(layers, layers, pairs)
    _, seconds = timed(lambda: loop(contest.plain, x, y, cells), runs)
    row = {"measure": contest.name, "layers": layers, "n": n, "d": d, "draws": len(found.draws)}
    row |= {"limit": least, "repalign": found.seconds, "plain loop": seconds / len(cells) * layers**2}
    return row | {e: direct(contest, e, found, draws, runs).seconds(len(found.draws)) for e in contest.engines}


def curves(sizes: Sequence[int], layers: Sequence[int], base: tuple[int, int, int]) -> Iterator[dict[str, object]]:
    """One row per measure and point; `curve` names the axis. `base` is (layers, n, d) where they are not varied."""
    n_layers, n, d = base
    for contest in CONTESTS:
        for size in sizes:
            yield {"curve": "n", **point(contest, n_layers, size, d)}
        for count in layers:
            yield {"curve": "layers", **point(contest, count, n, d)}


def draw(table: pd.DataFrame, axis: str, path: Path) -> None:
    """Seconds against one axis, both logarithmic, one panel per measure."""
    from matplotlib.figure import Figure

    label, title = AXES[axis]
    table = table[table["curve"] == axis]
    measures = list(dict.fromkeys(table["measure"]))
    figure = Figure(figsize=(9, 4.2), facecolor=PAPER, layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        some = table[table["measure"] == measure]
        for name, (words, color, line, marker) in LINES.items():
            if name in some and some[name].notna().all():
                axes.plot(
                    some[axis],
                    some[name],
                    line,
                    color=color,
                    marker=marker,
                    markersize=4.5,
                    linewidth=2.4 if name == "repalign" else 1.3,
                    label=words,
                )
        style(axes, some[axis], measure, label)
        axes.set_ylim(top=20 * axes.get_ylim()[1])  # room for the legend
        axes.legend(fontsize=7, frameon=False, loc="upper left")
    panels[0].set_ylabel("seconds", fontsize=8, color=MUTED)
    save(figure, f"{title}: observed scores and n - 1 exact draws", path)


SCALE = {
    "neighbors": ("mutual 10-NN, exact", "n", "stimuli n"),
    "streaming": ("linear CKA, streamed from the store", "n", "stimuli n"),
    "grid": ("the paper's grid, both measures", "layers", "layers of all models, n = 1,024"),
}


def draw_scale(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Seconds of repalign and of the bare matrix products at scale, one panel per benchmark."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), facecolor=PAPER, layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        title, axis, label = SCALE[name]
        if "what" in table:
            table = table[table["what"].str.startswith("exact")]
        table = table.sort_values(axis)
        axes.plot(table[axis], table["products"], "-", color=INK, linewidth=1.3, label="matrix products alone")
        if "plain loop" in table:
            words, color, line, marker = LINES["plain loop"]
            axes.plot(table[axis], table["plain loop"], line, color=color, marker=marker, markersize=4.5, label=words)
        axes.plot(table[axis], table["seconds"], "-o", color=SCORE, markersize=4.5, linewidth=2.4, label="repalign")
        style(axes, table[axis], title, label)
        axes.set_ylim(top=12 * axes.get_ylim()[1])
        axes.legend(fontsize=7, frameon=False, loc="upper left")
    panels[0].set_ylabel("seconds", fontsize=8, color=MUTED)
    save(figure, "Time at scale, beside the matrix products that cannot be left out", path)


def style(axes: Axes, at: pd.Series, title: str, label: str) -> None:
    axes.set(xscale="log", yscale="log")
    values = sorted(set(at))
    labelled = [v for v, following in zip(values, [*values[1:], math.inf], strict=True) if following > 1.7 * v]
    axes.set_xticks(labelled, [f"{v:,}" for v in labelled])
    axes.minorticks_off()
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, labelsize=8, colors=INK, labelleft=True)
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    axes.set_xlabel(label, fontsize=8, color=MUTED)


def save(figure: Figure, title: str, path: Path) -> None:
    from PIL import Image

    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--csv", type=Path, help="where to write the points")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name in SCALE:
        parser.add_argument(f"--{name}", type=Path, help=f"the table of {name}: draw what there is, measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tables = {name: pd.read_csv(getattr(args, name)) for name in SCALE if getattr(args, name)}
    if tables:
        draw_scale(tables, args.out / "performance_scale.png")
        return
    rows = []
    for row in curves(args.sizes, args.layers, (12, 1024, 768)):
        rows.append(row)
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    table = pd.DataFrame(rows)
    if args.csv:
        table.to_csv(args.csv, index=False, float_format="%.4g")
    for axis in AXES:
        if (table["curve"] == axis).any():
            draw(table, axis, args.out / f"performance_{axis}.png")


if __name__ == "__main__":
    main()
