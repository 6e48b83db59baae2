"""All layers against all layers: repalign beside a plain per-pair loop, in one process on the same data.

The plain loop is written here from the published definitions, as the reference code does it: every pair of
layers normalises, builds its Gram matrices and sorts its neighbours again. The machine's matrix-product rate
stands beside, so that ratios mean the same on another machine.

    python benchmarks/layers.py --layers 12 --n 1024 --d 768
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch
from torch import Tensor

from repalign import null as nulls
from repalign.measures import CKA, MutualKNN


def features(layers: int, n: int, d: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 16, generator=torch.Generator().manual_seed(99))
    return [
        torch.randn(n, d, generator=generator) + shared @ torch.randn(16, d, generator=generator) * (0.2 + 0.1 * i)
        for i in range(layers)
    ]


def plain_mutual_knn(x: Tensor, y: Tensor, k: int = 10) -> float:
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


def timed(task, repeat: int = 3):
    """The result, and the shortest of some runs: what the machine can do when nothing else is on it."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        result = task()
        best = min(best, time.perf_counter() - start)
    return result, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x, y = features(args.layers, args.n, args.d, 1), features(args.layers, args.n, args.d, 2)
    x[0] @ x[0].T  # warm up
    _, grams = timed(lambda: [f @ f.T for f in (*x, *y)])
    flops = 2 * 2 * args.layers * args.n**2 * args.d
    print(f"{args.layers} x {args.layers} layers, n = {args.n}, d = {args.d}, {args.threads} threads, float32")
    print(f"the {2 * args.layers} Gram products alone: {grams:.3f} s ({flops / grams / 1e9:.0f} GFLOP/s)")
    by_row_sums = functools.partial(plain_debiased_cka, as_written=False)
    for measure, plain, frugal in (
        (MutualKNN(k=10), plain_mutual_knn, None),
        (CKA(), plain_debiased_cka, by_row_sums),
    ):
        (a, b), prepare = timed(lambda m=measure: ([m.prepare(f) for f in x], [m.prepare(f) for f in y]))
        ours, compare = timed(lambda m=measure, a=a, b=b: m.compare_all(a, b).numpy())
        theirs, loop = timed(lambda p=plain: np.array([[p(f, g) for g in y] for f in x]))
        null = nulls.Cyclic()

        def chance(m=measure, a=a, b=b, null=null):
            return null.draws(m, null.prepare(m, a), null.prepare(m, b))

        draws, cyclic = timed(chance)
        total = prepare + compare
        rest = timed(lambda p=frugal: [[p(f, g) for g in y] for f in x])[1] if frugal else None
        print(f"\n{measure!r}")
        print(f"  plain loop            {loop:8.2f} s")
        print(
            f"  repalign              {total:8.2f} s   {loop / total:6.0f} times faster, {total / grams:.1f} x the Gram products"
        )
        if rest is not None:
            print(f"  loop with row sums    {rest:8.2f} s   repalign {rest / total:.0f} times faster than that")
        print(
            f"  + {len(draws)} exact null draws {cyclic:8.2f} s   {(total + cyclic) / grams:.1f} x the Gram products in all"
        )
        print(f"  largest difference    {np.abs(ours - theirs).max():8.1e}")


if __name__ == "__main__":
    main()
