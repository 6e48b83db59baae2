"""All layers against all layers of two models: repalign beside its rivals, in one process on the same data.

Debiased CKA and mutual k-NN, observed scores and n - 1 exact draws of every cell. Each stands beside

* the limit: what cannot be left out, one Gram matrix per layer, and for k-NN the k largest entries of its rows;
* direct engines: all layers prepared once; per permutation the relations of one side are relabelled for all its layers
  and one product gives all cells. For k-NN also an engine that relabels lists alone;
* calibrated-similarity from PyPI, with plain callables on a few cells, extrapolated to all;
* the plain loop over pairs of layers, on a sample of them, extrapolated: every pair normalises, builds its Gram matrices
  and sorts its neighbours again.

Ratios are the result; the rate of the machine's matrix product stands beside them. Every timing is the shortest of some
runs. The draws of the engines are compared with repalign's.

    python benchmarks/layers.py --layers 12 --n 1024 --d 768 --threads 2
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from contestants import (
    RUNS,
    Engine,
    K,
    Layers,
    ListEngine,
    MatrixEngine,
    Score,
    centred_gram,
    clock,
    features,
    loop,
    neighbour_lists,
    plain_cka,
    plain_debiased_cka,
    plain_mutual_knn,
    shifted,
    spread,
    timed,
)
from torch import Tensor

import repalign
from repalign.measures import CKA, Bilinear, MutualKNN
from repalign.null import Cyclic, Moments, calibrate_by_moments, search_layers

# --- who meets whom ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Contest:
    """A measure of repalign, and what it is held against.

    `unit` turns an inner product of the engines' relations into a score, given n.
    """

    name: str
    measure: Bilinear
    bare: Callable[[Tensor], Tensor]
    plain: Score
    engines: dict[str, type[Engine]]
    callables: dict[str, Score]
    unit: Callable[[int], float]


FRUGAL = functools.partial(plain_debiased_cka, as_written=False)
CONTESTS = (
    Contest(
        "debiased CKA",
        CKA(),
        centred_gram,
        plain_debiased_cka,
        {"relations": MatrixEngine},
        {"its README's linear CKA": plain_cka, "debiased CKA by row sums": FRUGAL},
        lambda n: 1.0,  # noqa: ARG005
    ),
    Contest(
        f"mutual {K}-NN",
        MutualKNN(k=K),
        neighbour_lists,
        plain_mutual_knn,
        {"masks": MatrixEngine, "lists": ListEngine},
        {"mutual k-NN": plain_mutual_knn},
        lambda n: 1 / (n * K),
    ),
)


@dataclass(frozen=True, eq=False)
class Ours:
    """All that repalign does for two models, step by step in seconds, and what came out."""

    steps: dict[str, float]
    relations: tuple[list[Tensor], list[Tensor]]  # (n, n) of each layer
    observed: np.ndarray  # (la, lb)
    draws: np.ndarray  # (K, la, lb)

    @property
    def seconds(self) -> float:
        return sum(self.steps.values())

    @property
    def drawing(self) -> float:
        """Seconds of the observed scores and all draws, spectra included."""
        return self.steps["spectra"] + self.steps["scores and draws"]


def ours(measure: Bilinear, x: Layers, y: Layers, runs: int = RUNS, seed: int = 0) -> Ours:
    """Prepare, moments and p-value of every cell, spectra, scores with all draws, studentised search with step-down."""
    cyclic = Cyclic(seed)
    by_moments = Moments(cyclic)
    steps = {}
    (a, b), steps["prepare"] = timed(lambda: ([measure.prepare(f) for f in x], [measure.prepare(f) for f in y]), runs)
    (p, q), steps["spectra"] = timed(lambda: (cyclic.prepare(measure, a), cyclic.prepare(measure, b)), runs)
    (observed, draws), steps["scores and draws"] = timed(lambda: cyclic.scored(measure, p, q), runs)
    (r, s), together = timed(lambda: (by_moments.prepare(measure, a), by_moments.prepare(measure, b)), runs)

    def cells() -> object:
        return calibrate_by_moments(observed, *by_moments.moments(measure, r, s), alpha=0.05, s_max=measure.s_max)

    steps["moments"] = max(0.0, together - steps["spectra"]) + timed(cells, runs)[1]
    steps["search and step-down"] = timed(lambda: search_layers(observed, draws), runs)[1]
    return Ours(steps, ([t.matrix for t in a], [t.matrix for t in b]), observed, draws)


def limit(bare: Callable[[Tensor], Tensor], x: Layers, y: Layers, runs: int = RUNS) -> float:
    """Seconds of what cannot be left out."""
    return timed(lambda: [bare(f) for f in (*x, *y)], runs)[1]


@dataclass(frozen=True, eq=False)
class Direct:
    """A direct engine: seconds to set it up and of one draw, and the scores of the first cyclic draws (few, la, lb)."""

    setup: float
    per_draw: float
    scores: np.ndarray

    def seconds(self, draws: int) -> float:
        return self.setup + draws * self.per_draw


def direct(contest: Contest, name: str, found: Ours, count: int, runs: int = RUNS) -> Direct:
    """Set an engine up with the relations of all layers, and let it make cyclic draws 1 to `count`."""
    engine, setup = timed(lambda: contest.engines[name](*found.relations), runs)
    permutations = [shifted(Cyclic(), engine.n, s) for s in range(1, count + 1)]
    inner, seconds = timed(lambda: torch.stack([engine.inner(p) for p in permutations]), runs)
    return Direct(setup, seconds / count, inner.numpy() * contest.unit(engine.n))


def package_draw(score: Score, x: Layers, y: Layers, cells: int = 2, draws: int = 1) -> float:
    """Seconds of one draw of all cells by calibrated-similarity, from a few draws of cells x cells."""
    from calibrated_similarity import calibrate_layers

    x_few, y_few = list(x[:cells]), list(y[:cells])
    _, seconds = timed(lambda: calibrate_layers(x_few, y_few, score, K=draws), runs=2)
    return seconds / (draws + 1) / (len(x_few) * len(y_few)) * len(x) * len(y)


# --- the report --------------------------------------------------------------------------------


def against_engines(contest: Contest, found: Ours, count: int) -> None:
    """Draws a second, what is done once per layer left out; and all draws with it."""
    draws, mine = len(found.draws), found.steps["scores and draws"]
    for name in contest.engines:
        theirs = direct(contest, name, found, count)
        rate = draws / mine
        whole = theirs.seconds(draws)
        print(
            f"  direct engine, {name:<9} {1 / theirs.per_draw:9.1f} draws a second; repalign {rate:.0f}:"
            f" {rate * theirs.per_draw:.0f} times (largest difference"
            f" {np.abs(theirs.scores - found.draws[:count]).max():.1e})"
        )
        print(
            f"    {draws} draws, set-up and spectra included {whole:.2f} s; repalign {found.drawing:.3f} s:"
            f" {whole / found.drawing:.0f} times"
        )


def against_package(contest: Contest, found: Ours, x: Layers, y: Layers) -> None:
    if importlib.util.find_spec("calibrated_similarity") is None:
        print("  calibrated-similarity is not installed (pip install calibrated-similarity): left out")
        return
    each = found.seconds / len(found.draws)
    for name, score in contest.callables.items():
        seconds = package_draw(score, x, y)
        print(
            f"  calibrated-similarity, {name}: {seconds:.2f} s for a draw of all cells; {seconds / each:.0f} times repalign's"
        )


def against_loop(contest: Contest, found: Ours, x: Layers, y: Layers, pairs: int) -> None:
    """The plain loop gives observed scores alone; so does repalign by preparing and comparing."""
    compare = timed(lambda: contest.measure.compare_all(*([contest.measure.prepare(f) for f in s] for s in (x, y))))[1]
    cells = spread(len(x), len(y), pairs)
    theirs, seconds = timed(lambda: loop(contest.plain, x, y, cells), runs=1)
    share = len(x) * len(y) / len(cells)
    mine = np.array([found.observed[cell] for cell in cells])
    print(
        f"  plain loop, scores only {share * seconds:10.2f} s from {len(cells)} pairs; repalign {compare:.2f} s:"
        f" {share * seconds / compare:.0f} times faster"
    )
    print(f"    largest difference    {np.abs(mine - theirs).max():10.1e}")
    if contest.plain is plain_debiased_cka:
        rest = share * timed(lambda: loop(FRUGAL, x, y, cells), runs=1)[1]
        print(f"  loop with row sums      {rest:10.2f} s; repalign {rest / compare:.0f} times faster than that")


def report(layers: int, n: int, d: int, count: int, pairs: int, *, threads: int) -> None:
    """Run every contest and print its ratios."""
    x, y = features(layers, n, d, 1), features(layers, n, d, 2)
    x[0] @ x[0].T  # warm up
    grams = limit(lambda f: f @ f.T, x, y)
    rate = 2 * 2 * layers * n**2 * d / grams / 1e9
    print(f"{layers} x {layers} layers, n = {n}, d = {d}, {threads} threads, float32")
    print(f"the {2 * layers} Gram products alone: {grams:.3f} s ({rate:.0f} GFLOP/s)")
    total = bare = 0.0
    for contest in CONTESTS:
        least = limit(contest.bare, x, y)
        found = ours(contest.measure, x, y)
        least = min(least, limit(contest.bare, x, y))  # on either side of ours: what the machine gives may drift
        total, bare = total + found.seconds, bare + least
        print(f"\n{contest.measure!r}")
        print(f"  the limit               {least:10.3f} s")
        for step, seconds in found.steps.items():
            print(f"    {step:<22}{seconds:10.3f} s")
        print(
            f"  repalign, all of it     {found.seconds:10.3f} s with {len(found.draws)} exact null draws:"
            f" {found.seconds / least:.2f} times the limit, {found.seconds / grams:.2f} times the Gram products"
        )
        against_engines(contest, found, count)
        against_package(contest, found, x, y)
        against_loop(contest, found, x, y, pairs)
    print(f"\nboth measures: repalign {total:.3f} s, the limit {bare:.3f} s: {total / bare:.2f} times")
    in_memory(x, y)


def in_memory(x: Layers, y: Layers, runs: int = RUNS) -> None:
    """`repalign.pair` on arrays, all of it from the check of the arrays to the table, in turn with the limit of both measures."""
    sides = [{f"layer {i}": f.numpy() for i, f in enumerate(side)} for side in (x, y)]
    measures = [repr(contest.measure) for contest in CONTESTS]
    least, found = float("inf"), dict.fromkeys(("cyclic", "auto"), float("inf"))
    for _ in range(runs):
        least = min(least, sum(limit(contest.bare, x, y, 1) for contest in CONTESTS))
        for null in found:
            found[null] = min(found[null], clock(lambda null=null: repalign.pair(*sides, measures, null=null))[1])
    print(f"\nrepalign.pair on arrays, both measures; the limit {least:.3f} s")
    for null, seconds in found.items():
        print(f"  null={null!r:<12}{seconds:22.3f} s: {seconds / least:.2f} times the limit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--permutations", type=int, default=10, help="draws of the direct engines")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of layers that the plain loop is timed on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report(args.layers, args.n, args.d, args.permutations, args.pairs, threads=args.threads)


if __name__ == "__main__":
    main()
