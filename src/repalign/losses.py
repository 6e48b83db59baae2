"""Alignment as a loss: differentiable forms of some measures, for a batch while a model trains. Each is 1 - similarity.

A measure returns a number; these return a tensor that gradients flow through. They are computed in float32 or better, whatever
autocast says, and hold no state. Scores of small batches are noisy: follow training by a measure on a fixed set.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.layers import check_paired
from repalign.measures.soft_neighbors import entropic_affinities

__all__ = ["cka", "gathered", "projected_cosine", "relational", "soft_knn"]

ESTIMATORS = ("debiased", "biased")


def cka(x: Tensor, y: Tensor, *, estimator: str = "debiased", dist: bool = False) -> Tensor:
    """1 - linear CKA of two batches (n, d1) and (n, d2): 1 - <K, L> / (|K| |L|), K and L their centred Gram matrices.

    Parameters
    ----------
    estimator : "debiased": U-centred (Song et al. 2012), as `CKA()`; unrelated batches give 1. "biased": double centred; unrelated
        batches of 32 rows of 256 columns give about .11.
    dist : gather the batches of all processes first (see `gathered`).

    Shapes (n, d1) and (n, d2), n >= 4 (biased: 2). Range [0, 2], biased [0, 1].
    Raises RepalignError for batches that do not pair, too few rows, and rows that are all alike, which have no kernel.

    >>> x = torch.randn(16, 8, dtype=torch.float64, requires_grad=True)
    >>> cka(x, 3 * x).item() < 1e-12
    True
    """
    choose("estimator", estimator, ESTIMATORS)
    unbiased = estimator == "debiased"
    with _in_full(x):
        x, y = _batches(x, y, 4 if unbiased else 2, dist)
        one, other = (_gram(v, unbiased) for v in (x, y))
        inner = _u_centred if unbiased else _plain
        sizes = [inner(k, k) for k in (one, other)]
        for size, v in zip(sizes, (x, y), strict=True):  # of a constant batch rounding is left
            _refuse_constant(size.item() > (100 * torch.finfo(v.dtype).eps * v.detach().square().sum().item()) ** 2, v)
        return 1 - inner(one, other) / (sizes[0].sqrt() * sizes[1].sqrt())


def soft_knn(x: Tensor, y: Tensor, *, perplexity: float = 10.0, dist: bool = False) -> Tensor:
    """1 - `SoftKNN(perplexity)`: the mean cosine between the neighbour distributions of each row in two batches.

    The inverse temperature of each row keeps the perplexity; the gradient knows of it (implicit differentiation). A row that more
    rows tie for the nearest place of than the perplexity has no gradient.

    Shapes (n, d1) and (n, d2), n > perplexity + 1. Range [0, 1].
    Raises RepalignError for batches that do not pair, too few rows, a perplexity that is not above 1, and rows that are all alike.

    >>> x = torch.randn(32, 8, dtype=torch.float64, requires_grad=True)
    >>> soft_knn(x, 3 * x, perplexity=5).item() < 1e-12
    True
    """
    if not 1 < perplexity < math.inf:
        raise RepalignError("perplexity is not a number above 1", expected="perplexity > 1", got=perplexity)
    with _in_full(x):
        x, y = _batches(x, y, math.floor(perplexity) + 2, dist)
        p, q = (_affinities(_cosines(v), perplexity) for v in (x.double(), y.double()))
        return (1 - torch.nn.functional.cosine_similarity(p, q, dim=1, eps=0.0).mean()).to(x.dtype)


def relational(x: Tensor, y: Tensor, *, dist: bool = False) -> Tensor:
    """1 - the mean, over rows i, of Pearson's correlation of cos(x_i, x_j) and cos(y_i, y_j) over the other rows j.

    It asks that every row has the same relations to the others in both batches, and nothing of where the rows are.

    Shapes (n, d1) and (n, d2), n >= 4. Range [0, 2].
    Raises RepalignError for batches that do not pair, too few rows, and rows that are all alike.

    >>> x = torch.randn(16, 8, dtype=torch.float64, requires_grad=True)
    >>> relational(x, 3 * x).item() < 1e-12
    True
    """
    with _in_full(x):
        x, y = _batches(x, y, 4, dist)
        rows = [_without_diagonal(_cosines(v)) for v in (x, y)]
        rows = [v - v.mean(dim=1, keepdim=True) for v in rows]
        return 1 - torch.nn.functional.cosine_similarity(*rows, dim=1).mean()


def projected_cosine(x: Tensor, y: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """1 - the mean cosine of head(x) and y, over rows, or over the patches of every image: the loss of REPA (Yu et al. 2024).

    Shapes (..., d1) and (..., d2), with head from d1 to d2. Range [0, 2].
    Raises RepalignError where head(x) and y have different shapes.

    >>> x = torch.randn(4, 16, 8)
    >>> projected_cosine(x, 2 * x, lambda v: v).item() < 1e-6
    True
    """
    projected = head(x)
    if projected.shape != y.shape:
        raise RepalignError("the head's output does not fit", expected=tuple(y.shape), got=tuple(projected.shape))
    with _in_full(x):
        return 1 - torch.nn.functional.cosine_similarity(_at_least_float(projected), _at_least_float(y), dim=-1).mean()


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks, with the gradient to each: alone where there is one process.

    Every process then computes the loss of the whole batch. The gradient of x is summed over processes, so that what
    DistributedDataParallel makes of it, the mean, is that of one process with all rows. Each process must hold as many rows.

    Raises RepalignError where they do not.
    """
    import torch.distributed as distributed

    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_gather

    sizes: list[int] = [0] * distributed.get_world_size()
    distributed.all_gather_object(sizes, len(x))
    if len(set(sizes)) > 1:
        raise RepalignError("processes hold different numbers of rows", expected="as many each, such as drop_last=True", got=sizes)
    return torch.cat(all_gather(x))


# --- parts -----------------------------------------------------------------------------------------


def _in_full(x: Tensor) -> torch.autocast:
    """No autocast: sums over a batch lose digits in half precision."""
    return torch.autocast(x.device.type, enabled=False)


def _at_least_float(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _batches(x: Tensor, y: Tensor, least: int, dist: bool) -> tuple[Tensor, Tensor]:
    for name, v in (("x", x), ("y", y)):
        if v.ndim != 2:
            raise RepalignError(f"{name} is no batch of vectors", expected="(n, d)", got=tuple(v.shape),
                                remedy="take the mean over patches or tokens first")  # fmt: skip
    check_paired(len(x), len(y))
    x, y = (_at_least_float(gathered(v) if dist else v) for v in (x, y))
    if len(x) < least:
        raise RepalignError("too few rows for this loss", expected=f"n >= {least}", got=f"n = {len(x)}")
    return x, y.to(x.dtype) if x.dtype == torch.float64 else y.to(torch.promote_types(x.dtype, y.dtype))


def _gram(x: Tensor, unbiased: bool) -> Tensor:
    """The Gram matrix of centred rows; with a zero diagonal if it is to be U-centred.

    No offset changes a U-centred matrix, so no gradient goes through the mean there.
    """
    x = x - (x.detach() if unbiased else x).mean(dim=0)
    gram = x @ x.T
    return gram.fill_diagonal_(0.0) if unbiased else gram


def _plain(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    return (k * l).sum()


def _u_centred(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """<K, L> of the U-centred matrices, n (n - 3) times the unbiased HSIC of Song et al. 2012, equation 5, from row sums alone."""
    n, rows, others = len(k), k.sum(dim=1), l.sum(dim=1)
    return (k * l).sum() - 2 / (n - 2) * (rows * others).sum() + rows.sum() * others.sum() / ((n - 1) * (n - 2))


def _refuse_constant(holds: bool, what: Tensor) -> None:
    if not holds:
        raise RepalignError("the rows of a batch are all alike", expected="rows that differ", got=f"n = {len(what)}",
                            remedy="leave such a batch out of the loss")  # fmt: skip


def _cosines(x: Tensor) -> Tensor:
    """Cosines of all rows; a row of zeros has cosine 0 with all."""
    size = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit = x / torch.where(size > 0, size, 1.0)
    cosines = unit @ unit.T
    _refuse_constant(bool(cosines.detach().min() < 1 - 100 * torch.finfo(x.dtype).eps), x)
    return cosines


def _without_diagonal(matrix: Tensor) -> Tensor:
    n = len(matrix)
    return matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)


def _affinities(similarity: Tensor, perplexity: float) -> Tensor:
    """Rows p (n, n - 1) of affinities of this perplexity, with their gradient.

    p_j is proportional to exp(b s_j). Where s moves, b moves so that the entropy H stays: with w_j = p_j (log p_j + H),
    db = -b sum_j w_j ds_j / sum_j w_j s_j.
    """
    s = _without_diagonal(similarity)
    fixed = s.detach()
    slack = torch.full_like(fixed[:, 0], 4 * torch.finfo(fixed.dtype).eps)
    p = entropic_affinities(fixed, perplexity, slack)
    log_p = torch.where(p > 0, p, 1.0).log()
    mean, entropy = (p * fixed).sum(1, keepdim=True), -(p * log_p).sum(1, keepdim=True)
    variance = (p * (fixed - mean) ** 2).sum(1, keepdim=True)
    moves = (variance > 0) & (entropy - math.log(perplexity)).abs().le(1e-6)  # else so many are tied that b is infinite
    b = torch.where(moves, (p * log_p * (fixed - mean)).sum(1, keepdim=True) / torch.where(moves, variance, 1.0), 0.0)
    weight = p * (log_p + entropy)
    whole = (weight * fixed).sum(1, keepdim=True)
    b = b - b * (weight * (s - fixed)).sum(1, keepdim=True) / torch.where(whole.abs() > 0, whole, 1.0)
    return torch.where(moves, torch.softmax(b * s, dim=1), p)
