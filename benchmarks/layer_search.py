"""Which pair of layers is aligned? Searches over layers, held to the truth where the truth is known.

Two models of five layers each, n = 256 stimuli. All layers are independent of one another, except that one pair, the first
layer of both, shares four dimensions. With G, E, U matrices of independent standard normal numbers, U (n, 4) common to the
two models, s the signal (the correlation of the shared dimensions):

* "widths": layers of 32, 64, 128, 512 and 1,024 columns, X = G; in both first layers (32 columns) the first four
  columns are 2 (sqrt(s) U + sqrt(1 - s) E).
* "spectra": layers of 256 columns, column i of variance i^-a with a = 1.5, 1, 0.75, 0.5 and 0.25, as the spectra of
  network layers decay; in both first layers (a = 1.5) the first four columns of G are sqrt(s) U + sqrt(1 - s) E.

A search rejects if its p-value is at most 0.05, and is right if it rejects and names the pair of first layers. It is
given n - 1 = 255 exact cyclic draws, so that its attainable level is 12 / 256 = 0.0469. Prints the tables of
docs/calibration.md and draws its figure.

    python benchmarks/layer_search.py --trials 1000 --figure docs/images/layer_search.png
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from repalign.figures.palette import ACCENT, INK, MUTED, PAPER, RULE, SCORE
from repalign.measures import CKA, Bilinear, MutualKNN
from repalign.null import Cyclic, calibrate, search_layers

ALPHA = 0.05
N = 256
WIDTHS = (32, 64, 128, 512, 1024)
EXPONENTS = (1.5, 1.0, 0.75, 0.5, 0.25)
SIGNALS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
N_SHARED = 4
RIGHT = (0, 0)

Layers = list[torch.Tensor]


@dataclass(frozen=True)
class World:
    """Two models of which one pair of layers is aligned: `draw(signal, rng)` gives the layers of both."""

    name: str
    title: str
    draw: Callable[[float, np.random.Generator], tuple[Layers, Layers]]


def shared_columns(signal: float, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two (n, 4) arrays of standard normal columns, column j of one correlated with column j of the other by `signal`."""
    common, x, y = rng.standard_normal((3, n, N_SHARED), dtype=np.float32)
    own, shared = math.sqrt(1 - signal), math.sqrt(signal) * common
    return shared + own * x, shared + own * y


def two_models(
    signal: float, rng: np.random.Generator, scales: Sequence[np.ndarray], loud: float, n: int
) -> tuple[Layers, Layers]:
    """Gaussian layers with the given standard deviations of their columns; four columns of the first are shared."""
    models: tuple[Layers, Layers] = ([], [])
    for layers, shared in zip(models, shared_columns(signal, n, rng), strict=True):
        for index, scale in enumerate(scales):
            features = rng.standard_normal((n, len(scale)), dtype=np.float32)
            if index == 0:
                features[:, :N_SHARED] = loud * shared
            layers.append(torch.from_numpy(features * scale))
    return models


def widths_world(widths: Sequence[int] = WIDTHS, n: int = N) -> World:
    scales = [np.ones(d, dtype=np.float32) for d in widths]
    return World("widths", "layers of different widths", lambda s, rng: two_models(s, rng, scales, 2.0, n))


def spectra_world(exponents: Sequence[float] = EXPONENTS, d: int = 256, n: int = N) -> World:
    scales = [(np.arange(1, d + 1) ** (-a / 2)).astype(np.float32) for a in exponents]
    return World("spectra", "layers of one width, different spectra", lambda s, rng: two_models(s, rng, scales, 1.0, n))


@dataclass(frozen=True)
class Contestant:
    """A measure, a way to search, and how its line is drawn.

    how="cell" takes the smallest p-value of any cell at its word, and names that cell (the largest z among equals).
    """

    label: str
    measure: Bilinear
    how: str
    color: str
    line: str
    marker: str
    size: float
    width: float = 1.2


BIASED, DEBIASED, KNN = CKA(estimator="biased"), CKA(), MutualKNN(k=10)
CONTESTANTS = (
    Contestant("biased CKA, raw maximum (published)", BIASED, "raw", ACCENT, "-", "s", 6, 2.2),
    Contestant("biased CKA, studentised maximum", BIASED, "studentised", SCORE, "-", "o", 9, 4.5),
    Contestant("biased CKA, smallest p of any cell", BIASED, "cell", MUTED, ":", "x", 5),
    Contestant("debiased CKA, raw maximum", DEBIASED, "raw", "#a67c00", "--", "^", 6),
    Contestant("debiased CKA, studentised maximum", DEBIASED, "studentised", "#a67c00", "-", "v", 4),
    Contestant("mutual 10-NN, raw maximum", KNN, "raw", "#007a5a", "--", "D", 6),
    Contestant("mutual 10-NN, studentised maximum", KNN, "studentised", "#007a5a", "-", "d", 4),
)
QUANTITIES = {
    "rejected": "rejects (black line: the attainable level)",
    "right": "rejects and names the right pair",
}


def trial(
    x: Layers, y: Layers, seed: int, contestants: Sequence[Contestant] = CONTESTANTS
) -> list[tuple[bool, tuple[int, int]]]:
    """For each contestant: does it reject, and which pair of layers does it name?"""
    null = Cyclic(seed)
    out: dict[Contestant, tuple[bool, tuple[int, int]]] = {}
    for measure in dict.fromkeys(c.measure for c in contestants):
        a, b = (null.prepare(measure, [measure.prepare(f) for f in layers]) for layers in (x, y))
        observed, draws = null.scored(measure, a, b)
        for contestant in (c for c in contestants if c.measure == measure):
            if contestant.how == "cell":
                cells = calibrate(observed, draws, alpha=ALPHA)
                smallest = cells.pvalue == cells.pvalue.min()
                best = np.unravel_index(np.where(smallest, cells.z, -np.inf).argmax(), observed.shape)
                out[contestant] = bool(cells.pvalue.min() <= ALPHA), (int(best[0]), int(best[1]))
            else:
                found = search_layers(observed, draws, how=contestant.how, alpha=ALPHA)
                out[contestant] = bool(found.calibration.pvalue <= ALPHA), (found.layer_x, found.layer_y)
    return [out[c] for c in contestants]


@dataclass
class Rates:
    """Shares of trials: rejected, and rejected with the right pair of layers named; (signals, contestants)."""

    signals: Sequence[float]
    contestants: Sequence[Contestant]
    trials: list[int] = field(default_factory=list)
    rejected: list[list[float]] = field(default_factory=list)
    right: list[list[float]] = field(default_factory=list)


def simulate(
    world: World,
    signals: Sequence[float],
    trials: Callable[[float], int],
    contestants: Sequence[Contestant] = CONTESTANTS,
    seed: Sequence[int] = (0,),
) -> Rates:
    """Run the trials of one world; trial t of signal i has its own data and its own draws."""
    rates = Rates(signals, contestants)
    for i, signal in enumerate(signals):
        rng = np.random.Generator(np.random.PCG64([*seed, i]))
        count = trials(signal)
        results = [trial(*world.draw(signal, rng), seed=t, contestants=contestants) for t in range(count)]
        rates.trials.append(count)
        rates.rejected.append([float(np.mean([r[c][0] for r in results])) for c in range(len(contestants))])
        rates.right.append(
            [float(np.mean([r[c][0] and r[c][1] == RIGHT for r in results])) for c in range(len(contestants))]
        )
    return rates


def attainable(n: int = N) -> float:
    """The size of an exact test at level ALPHA with n - 1 draws: floor(ALPHA n) / n."""
    return math.floor(ALPHA * n) / n


def table(world: World, rates: Rates) -> str:
    """Rejected / right in per cent, a row per contestant and a column per signal, in Markdown."""
    head = ["", *(f"s = {s:g}" for s in rates.signals)]
    rows = [head, ["---"] * len(head)]
    for c, contestant in enumerate(rates.contestants):
        cells = [
            f"{100 * rejected[c]:.1f}" if signal == 0 else f"{100 * rejected[c]:.0f} / {100 * right[c]:.0f}"
            for signal, rejected, right in zip(rates.signals, rates.rejected, rates.right, strict=True)
        ]
        rows.append([contestant.label, *cells])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{world.name}: {world.title}; trials {', '.join(map(str, rates.trials))}\n\n{lines}\n"


def draw(worlds: Sequence[World], all_rates: Sequence[Rates], path: Path) -> None:
    """Both shares against the signal, one column of panels per world."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(9, 6.6), facecolor=PAPER, layout="constrained")
    panels = figure.subplots(len(QUANTITIES), len(worlds), sharex=True, sharey=True, squeeze=False)
    for column, (world, rates) in enumerate(zip(worlds, all_rates, strict=True)):
        for row, (quantity, words) in enumerate(QUANTITIES.items()):
            axes, values = panels[row, column], np.array(getattr(rates, quantity))
            for c, contestant in enumerate(rates.contestants):
                axes.plot(
                    rates.signals,
                    values[:, c],
                    contestant.line,
                    color=contestant.color,
                    marker=contestant.marker,
                    markersize=contestant.size,
                    markerfacecolor=contestant.color if contestant.line == "-" else PAPER,
                    linewidth=contestant.width,
                    label=contestant.label,
                    clip_on=False,
                    zorder=3,
                )
            if quantity == "rejected":
                axes.axhline(attainable(), color=INK, linewidth=0.8, zorder=1)
            axes.grid(axis="y", color=RULE, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.spines["bottom"].set_color(RULE)
            axes.tick_params(length=0, labelsize=8, colors=INK, labelleft=column == 0, labelbottom=True)
            axes.set_yticks(np.linspace(0, 1, 5), [f"{p} %" for p in (0, 25, 50, 75, 100)])
            axes.set_xticks(rates.signals, [f"{s:g}" for s in rates.signals])
            axes.set_title(words if row else f"{world.title}\n{words}", loc="left", fontsize=9, color=INK)
    for axes in panels[-1]:
        axes.set_xlabel("signal: correlation of the four shared dimensions", fontsize=8, color=MUTED)
    figure.suptitle("Which layers are aligned? (n = 256)", x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False, ncols=3)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="at no signal; a fifth of it at each signal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="where to draw the figure (PNG)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    worlds = (widths_world(), spectra_world())

    def trials(signal: float) -> int:
        return args.trials if signal == 0 else max(1, args.trials // 5)

    every = []
    for w, world in enumerate(worlds):
        every.append(simulate(world, SIGNALS, trials, seed=(args.seed, w)))
        print(table(world, every[-1]))
    print(f"attainable level {attainable():.4f}; {time.process_time() - start:.0f} s of one core")
    if args.figure:
        draw(worlds, every, args.figure)


if __name__ == "__main__":
    main()
