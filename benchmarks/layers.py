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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from repalign.measures import CKA, Bilinear, MutualKNN
from repalign.null import Cyclic, Moments, calibrate_by_moments, search_layers

K = 10
RUNS = 3

T = TypeVar("T")
Score = Callable[[Tensor, Tensor], float]
Layers = Sequence[Tensor]


def features(layers: int, n: int, d: int, seed: int) -> list[Tensor]:
    """Layers (n, d) of Gaussian noise in which a latent, common to all models, is ever louder."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 16, generator=torch.Generator().manual_seed(99))
    return [
        torch.randn(n, d, generator=generator) + shared @ torch.randn(16, d, generator=generator) * (0.2 + 0.1 * i)
        for i in range(layers)
    ]


def timed(task: Callable[[], T], runs: int = RUNS) -> tuple[T, float]:
    """The result, and the shortest of some runs: what the machine can do when nothing else is on it."""
    best = float("inf")
    for _ in range(runs - 1):
        best = min(best, clock(task)[1])
    result, seconds = clock(task)
    return result, min(best, seconds)


def clock(task: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = task()
    return result, time.perf_counter() - start


# --- the limit ---------------------------------------------------------------------------------


def centred_gram(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x @ x.T


def neighbour_lists(x: Tensor, k: int = K) -> Tensor:
    x = torch.nn.functional.normalize(x, dim=1)
    return (x @ x.T).fill_diagonal_(-torch.inf).topk(k, dim=1).indices


# --- the plain loop ----------------------------------------------------------------------------


def plain_mutual_knn(x: Tensor, y: Tensor, k: int = K) -> float:
    """Normalise, Gram, full sort and masks, for one pair of layers."""
    masks = []
    for f in (x, y):
        f = torch.nn.functional.normalize(f, dim=1)
        s = f @ f.T
        s.fill_diagonal_(-1e8)
        nearest = s.argsort(dim=1, descending=True)[:, :k]
        masks.append(torch.zeros_like(s).scatter_(1, nearest, 1.0))
    return float((masks[0] * masks[1]).sum(dim=1).mean() / k)


def plain_debiased_cka(x: Tensor, y: Tensor, *, as_written: bool = True) -> float:
    """Song et al. 2012, equation 5, for each of the three terms, for one pair of layers.

    `as_written` forms 1' K L 1 from the matrix product K L, as the formula reads and the reference code does; without
    it, from row sums, which is the best that a single pair can do.
    """
    k, l = ((f - f.mean(0)) @ (f - f.mean(0)).T for f in (x, y))  # noqa: E741
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        m = len(a)
        through = (a @ b).sum() if as_written else (a.sum(0) * b.sum(1)).sum()
        return (a * b.T).sum() + a.sum() * b.sum() / ((m - 1) * (m - 2)) - 2 * through / (m - 2)

    return float(hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt())


def plain_cka(x: Tensor, y: Tensor) -> float:
    """Biased linear CKA from Gram matrices that every inner product builds again, as the package's README has it."""
    x, y = x - x.mean(0), y - y.mean(0)

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return ((a @ a.T) * (b @ b.T)).sum()

    return float(inner(x, y) / (inner(x, x) * inner(y, y)).sqrt())


def spread(la: int, lb: int, pairs: int) -> list[tuple[int, int]]:
    """So many cells of an (la, lb) table, evenly spread in row order, or all of them."""
    count = min(pairs, la * lb)
    return [divmod(i * la * lb // count, lb) for i in range(count)]


def loop(score: Score, x: Layers, y: Layers, cells: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array([score(x[i], y[j]) for i, j in cells])


# --- direct engines ----------------------------------------------------------------------------


class MatrixEngine:
    """Permutes relations: rows and columns of all (n, n) matrices of b gathered, one product for all cells."""

    def __init__(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        self.a, self.b = torch.stack(list(a)).flatten(1), torch.stack(list(b))

    def inner(self, p: Tensor) -> Tensor:
        """<A, B[p][:, p]> of all layers, (la, lb)."""
        return self.a @ self.b.index_select(1, p).index_select(2, p).flatten(1).T


class ListEngine:
    """Permutes neighbour lists: those of b are relabelled and looked up in one table of the masks of all layers of a."""

    def __init__(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        masks = torch.stack(list(a))
        self.table = masks.flatten(1).T.to(torch.uint8).contiguous()  # (n n, la)
        self.n = masks.shape[1]
        k = int(b[0][0].sum())
        self.lists = torch.stack([m.nonzero()[:, 1].view(self.n, k) for m in b])  # (lb, n, k)

    def inner(self, p: Tensor) -> Tensor:
        """The number of edges that A and the relabelled B share, for all layers, (la, lb)."""
        inverse = torch.empty_like(p)
        inverse[p] = torch.arange(self.n)
        at = inverse[self.lists.index_select(1, p)] + self.n * torch.arange(self.n)[:, None]
        hits = self.table.index_select(0, at.flatten()).view(len(self.lists), -1, self.table.shape[1])
        return hits.sum(dim=1, dtype=torch.int32).T.float()


Engine = MatrixEngine | ListEngine


def shifted(null: Cyclic, n: int, s: int) -> Tensor:
    """The permutation behind draw s of the cyclic null: sigma(i) -> sigma(i + s)."""
    sigma = null.order(n)
    p = np.empty(n, dtype=np.int64)
    p[sigma] = np.roll(sigma, -s)
    return torch.from_numpy(p)


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
    return Ours(steps, ([t.dense() for t in a], [t.dense() for t in b]), observed, draws)


def limit(bare: Callable[[Tensor], Tensor], x: Layers, y: Layers, runs: int = RUNS) -> float:
    """Seconds of what cannot be left out."""
    return timed(lambda: [bare(f) for f in (*x, *y)], runs)[1]


def direct(engine: Engine, count: int, runs: int = RUNS, null: Cyclic | None = None) -> tuple[np.ndarray, float]:
    """The inner products of cyclic draws 1 to `count`, (count, la, lb), and seconds of one draw."""
    n = engine.n if isinstance(engine, ListEngine) else engine.b.shape[1]
    permutations = [shifted(null or Cyclic(), n, s) for s in range(1, count + 1)]
    found, seconds = timed(lambda: torch.stack([engine.inner(p) for p in permutations]), runs)
    return found.numpy(), seconds / count


def package_draw(score: Score, x: Layers, y: Layers, cells: int = 2, draws: int = 1) -> float:
    """Seconds of one draw of all cells by calibrated-similarity, from a few draws of cells x cells."""
    from calibrated_similarity import calibrate_layers

    x_few, y_few = list(x[:cells]), list(y[:cells])
    _, seconds = timed(lambda: calibrate_layers(x_few, y_few, score, K=draws), runs=2)
    return seconds / (draws + 1) / (len(x_few) * len(y_few)) * len(x) * len(y)


# --- the report --------------------------------------------------------------------------------


def against_engines(contest: Contest, found: Ours, count: int) -> None:
    for name, kind in contest.engines.items():
        inner, per_draw = direct(kind(*found.relations), count)
        theirs = inner * contest.unit(len(found.relations[0][0]))
        rate = len(found.draws) / found.drawing
        print(
            f"  direct engine, {name:<16} {1 / per_draw:8.1f} draws a second; repalign {rate:.0f}: {rate * per_draw:.0f} times"
            f" (largest difference {np.abs(theirs - found.draws[:count]).max():.1e})"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--permutations", type=int, default=3, help="draws of the direct engines")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of layers that the plain loop is timed on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report(args.layers, args.n, args.d, args.permutations, args.pairs, threads=args.threads)


if __name__ == "__main__":
    main()
