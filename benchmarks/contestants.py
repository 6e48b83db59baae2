"""What repalign is timed against, written here from the published definitions: the bare limit, plain loops, engines.

Engines hold the relations of all layers of two models, (n, n) each, and relabel those of the second. Their `inner(p)`
gives <A, B[p][:, p]> of all pairs of layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from repalign.null import Cyclic

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
        self.a, self.b = torch.stack(list(a)).flatten(1), list(b)
        self.n = len(b[0])
        self.relabelled = torch.empty(len(b), self.n, self.n)

    def inner(self, p: Tensor) -> Tensor:
        """<A, B[p][:, p]> of all layers, (la, lb)."""
        columns = p.expand(self.n, self.n)
        for matrix, out in zip(self.b, self.relabelled, strict=True):
            torch.gather(matrix.index_select(0, p), 1, columns, out=out)
        return self.a @ self.relabelled.flatten(1).T


class ListEngine:
    """Permutes neighbour lists: those of b are relabelled and looked up in one table of the masks of all layers of a."""

    def __init__(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        self.n = len(a[0])
        self.table = torch.stack(list(a)).flatten(1).T.contiguous()  # (n n, la)
        self.lists = torch.stack([m.nonzero()[:, 1].view(self.n, -1) for m in b])  # (lb, n, k)
        self.starts = torch.arange(len(b)) * self.lists[0].numel()
        self.rows = self.n * torch.arange(self.n)[:, None]

    def inner(self, p: Tensor) -> Tensor:
        """The number of edges that A and the relabelled B share, for all layers, (la, lb)."""
        inverse = torch.empty_like(p)
        inverse[p] = torch.arange(self.n)
        at = inverse[self.lists.index_select(1, p)] + self.rows
        return torch.nn.functional.embedding_bag(at.flatten(), self.table, self.starts, mode="sum").T


Engine = MatrixEngine | ListEngine


def shifted(null: Cyclic, n: int, s: int) -> Tensor:
    """The permutation behind draw s of the cyclic null: sigma(i) -> sigma(i + s)."""
    sigma = null.order(n)
    p = np.empty(n, dtype=np.int64)
    p[sigma] = np.roll(sigma, -s)
    return torch.from_numpy(p)
