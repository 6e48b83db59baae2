"""Permutation tests over models: covariates change places over units, pairs never do.

docs/trends.md states the null hypotheses and how often they are rejected without cause.

Source: R. A. Fisher, The Design of Experiments (1935), ch. 3, for the principle; B. Phipson and G. K. Smyth,
Statistical Applications in Genetics and Molecular Biology 9 (2010), article 39, for p = (C + 1)/(K + 1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 9_999
# With fewer orders than this no p-value can reach .05.
FEW_ORDERS = 20
# Enumerated up to this many orders, drawn above.
MOST_ORDERS = 10_000
# A correlation is at most 1, so this is a relative tolerance too.
TIE = 1e-9


@dataclass(frozen=True, eq=False)
class Orders:
    """Orders of things that move within their blocks only, on one or several sides that move at once.

    `n` are possible; `each` side has an array (orders, things). All of them were made if `exact`, else random ones.
    """

    n: int
    exact: bool
    each: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, sides: Sequence[Sequence[np.ndarray]], draws: int, seed: int, most: int | None = None) -> Orders:
        """All orders if there are at most `most` (10,000), else random ones; a side is a list of blocks of places."""
        n = math.prod(math.factorial(len(block)) for blocks in sides for block in blocks)
        if n <= (MOST_ORDERS if most is None else most):
            chosen = list(itertools.product(*(list(_every(blocks)) for blocks in sides)))
            return cls(n, True, tuple(map(np.array, zip(*chosen, strict=True))))
        rng, each = np.random.default_rng(seed), []
        for blocks in sides:
            orders = np.tile(np.arange(sum(map(len, blocks))), (draws, 1))
            for block in blocks:
                if len(block) > 1:
                    orders[:, block] = rng.permuted(orders[:, block], axis=1)
            each.append(orders)
        return cls(n, False, tuple(each))

    def pvalue(self, as_strong: Any) -> Any:
        """C / K if all K orders were visited, else (C + 1) / (K + 1); C orders were as strong as what was observed."""
        return as_strong / self.n if self.exact else (as_strong + 1) / (len(self.each[0]) + 1)


def _every(blocks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    flat = np.concatenate(blocks)
    for choice in itertools.product(*(itertools.permutations(block.tolist()) for block in blocks)):
        order = np.empty(len(flat), int)
        order[flat] = list(itertools.chain.from_iterable(choice))
        yield order


def blocks_of(labels: np.ndarray) -> list[np.ndarray]:
    """The places of every label, 0 ... G - 1."""
    return [np.flatnonzero(labels == g) for g in range(int(labels.max()) + 1)]


def block_orders(labels: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random orders of the models, (draws, n), and the signs that go with them.

    Units change places with units of as many models, each as a whole; units of several models change sign too.
    """
    rng, members = np.random.default_rng(seed), blocks_of(labels)
    orders, signs = np.empty((draws, len(labels)), int), np.ones((draws, len(labels)))
    for size in {len(m) for m in members}:
        alike = np.array([m for m in members if len(m) == size])  # (units, size)
        places = rng.permuted(np.tile(np.arange(len(alike)), (draws, 1)), axis=1)
        orders[:, alike] = alike[places]
        if size > 1:
            signs[:, alike] = rng.choice([-1.0, 1.0], (draws, len(alike), 1))
    return orders, signs


def family_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean of every family."""
    return np.bincount(labels, values) / np.bincount(labels)


@dataclass(frozen=True, eq=False)
class FamilyOrders:
    """Reorderings of a covariate over models, whose family is one of `labels` (n,), integers 0 ... G - 1.

    The covariate is the mean of its family plus the deviation from it: the means change places over families (if `over`),
    the deviations within them. Models as units are families of one. Families of equal size make this a reordering of the
    blocks of x; unequal sizes are why r, which is free of scale, is the statistic.
    """

    labels: np.ndarray
    orders: Orders

    @classmethod
    def of(cls, labels: np.ndarray, draws: int, seed: int, over: bool = True) -> FamilyOrders:
        """All orders of the means and the deviations, or random ones."""
        blocks = blocks_of(labels)
        places = np.arange(len(blocks))
        return cls(labels, Orders.of([[places] if over else list(places[:, None]), blocks], draws, seed))

    def pvalue(self, x: np.ndarray, y: np.ndarray) -> float:
        """Two-sided p of Pearson's r of x and y, both (n,), when x is reordered; nan if x or y is constant.

        C counts |r*| >= |r|, and a reordered x that is constant counts as weaker.
        """
        observed = abs(_correlations(x[None], y)[0])
        if math.isnan(observed):
            return math.nan
        means, (over, within) = family_means(x, self.labels), self.orders.each
        moved = means[over][:, self.labels] + (x - means[self.labels])[within]
        return float(self.orders.pvalue(int((np.abs(_correlations(moved, y)) >= observed - TIE).sum())))


def _correlations(rows: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of every row with y; nan if one of the two is constant."""
    centred, other = rows - rows.mean(1, keepdims=True), y - y.mean()
    norm = np.sqrt((centred**2).sum(1) * (other @ other))
    flat = norm <= 1e-12 * np.sqrt((rows**2).sum(1) * (y @ y))
    return np.where(flat, math.nan, centred @ other / np.where(flat, 1.0, norm))
