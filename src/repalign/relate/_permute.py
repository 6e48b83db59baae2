"""Permutation tests of a correlation over models: covariates change places, pairs never do.

All schemes are one: the covariate is x = mean of its family + deviation from it; the means change places over
families, the deviations within them. Models as units are families of one.

Source: R. A. Fisher, The Design of Experiments (1935), ch. 3, for the principle; B. Phipson and G. K. Smyth,
Statistical Applications in Genetics and Molecular Biology 9 (2010), article 39, for p = (C + 1)/(K + 1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Enumerated up to this many orders, drawn above.
MOST_ORDERS = 10_000
# A correlation is at most 1, so this is a relative tolerance too.
TIE = 1e-9


@dataclass(frozen=True)
class Permuted:
    """A p-value, the number of possible orders (which may be huge), and whether all of them were visited."""

    pvalue: float
    n_orders: int
    exact: bool


def permutation_test(
    x: np.ndarray, y: np.ndarray, labels: np.ndarray, *, over_families: bool, draws: int, seed: int
) -> Permuted:
    """Two-sided p of Pearson's r of x and y, both (n,), when x is reordered.

    `labels` (n,) are integers 0 ... G - 1, the family of each model. Deviations from the family's mean of x are
    permuted within families and, with `over_families`, the family means over families. Families of equal size make
    the permuted x a reordering of the blocks of x; unequal sizes are why r, which is free of scale, is the statistic.

    p = C / K over all K orders where there are at most 10,000, else (C + 1) / (draws + 1); C counts |r*| >= |r|,
    and a reordered x that is constant counts as weaker. nan where x or y is constant.
    """
    families = int(labels.max()) + 1
    blocks = [np.flatnonzero(labels == g) for g in range(families)]
    mean = np.array([x[block].mean() for block in blocks])
    deviation = x - mean[labels]
    moving = [np.arange(families)] if over_families else [np.array([g]) for g in range(families)]
    n_orders = count_orders(moving) * count_orders(blocks)
    observed = abs(_correlations(x[None], y)[0])
    exact = n_orders <= MOST_ORDERS
    if math.isnan(observed):
        return Permuted(math.nan, n_orders, exact)
    if exact:
        outer, inner = all_orders(moving, families), all_orders(blocks, len(x))
        reordered = (mean[outer][:, None, labels] + deviation[inner][None]).reshape(-1, len(x))
    else:
        rng = np.random.default_rng(seed)
        reordered = mean[some_orders(moving, families, draws, rng)][:, labels]
        reordered += deviation[some_orders(blocks, len(x), draws, rng)]
    as_strong = int((np.abs(_correlations(reordered, y)) >= observed - TIE).sum())
    pvalue = as_strong / n_orders if exact else (as_strong + 1) / (draws + 1)
    return Permuted(pvalue, n_orders, exact)


def _correlations(rows: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of every row with y; nan where one of the two is constant."""
    centred, other = rows - rows.mean(1, keepdims=True), y - y.mean()
    norm = np.sqrt((centred**2).sum(1) * (other @ other))
    flat = norm <= 1e-12 * np.sqrt((rows**2).sum(1) * (y @ y))
    return np.where(flat, math.nan, centred @ other / np.where(flat, 1.0, norm))


def count_orders(blocks: Sequence[np.ndarray]) -> int:
    """How many orders move things within blocks only."""
    return math.prod(math.factorial(len(block)) for block in blocks)


def all_orders(blocks: Sequence[np.ndarray], n: int) -> np.ndarray:
    """All orders of 0 ... n - 1 that move things within blocks only, (K, n)."""
    choices = itertools.product(*(itertools.permutations(block.tolist()) for block in blocks))
    orders = np.empty((count_orders(blocks), n), int)
    flat = np.concatenate(blocks)
    for order, choice in zip(orders, choices, strict=True):
        order[flat] = list(itertools.chain.from_iterable(choice))
    return orders


def some_orders(blocks: Sequence[np.ndarray], n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Random orders of the same kind, (draws, n)."""
    orders = np.tile(np.arange(n), (draws, 1))
    for block in blocks:
        if len(block) > 1:
            orders[:, block] = rng.permuted(orders[:, block], axis=1)
    return orders
