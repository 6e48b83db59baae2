"""How far single stimuli are out, and what the law over relabellings is where one of them stays in its place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# So many of the heaviest stimuli of either relation are tried: one may be far out in both and the farthest in neither.
HEAVIEST = 4


class InPlace(NamedTuple):
    """The law over the relabellings that leave one stimulus in its place, in units of the sd over all; (m, la, lb) each."""

    shift: np.ndarray  # its mean, less the mean over all
    spread: np.ndarray  # its sd


def in_place(one: np.ndarray, other: np.ndarray, sd: np.ndarray, n: int) -> InPlace:
    """For all pairs of relations from what `GraphSums.leverage` says of both, (la, 5, n) and (lb, 5, n), and the sd of T.

    With stimulus k in its place, d its diagonal entry, r and c the sums of its row and column elsewhere, all less their means,

        E[T | k] - E[T] = n / (n - 1) d d' + (r r' + c c') / (n - 1) + (r + c) (r' + c') / ((n - 1) (n - 2)).

    The variance is to leading order that of the relations without k, and that of the sum over its own row and column,
    (|row| |row'| + |column| |column'|)^2 / (n - 2) with centred rows (at most that where a row is unlike its column).
    """
    one_heavy, other_heavy = _heaviest(one), _heaviest(other)
    shift, spread = np.empty((2, one_heavy.shape[1] + other_heavy.shape[1], len(one), len(other)))
    one_share, other_share = _shares(one), _shares(other)
    right = np.arange(len(other))[:, None]
    unit = np.where(sd > 0, sd, np.inf)
    for i, (left, heavy) in enumerate(zip(one, one_heavy, strict=True)):
        which = np.concatenate([np.broadcast_to(heavy, (len(other), len(heavy))), other_heavy], axis=1)  # (lb, m)
        d, r, c, rows, columns = left[:, which]
        d2, r2, c2, rows2, columns2 = (other[right, part, which] for part in range(5))
        moved = d * d2 * n + r * r2 + c * c2 + (r + c) * (r2 + c2) / (n - 2)
        shift[:, i] = (moved / (n - 1) / unit[i][:, None]).T
        own = (np.sqrt(rows * rows2) + np.sqrt(columns * columns2)) ** 2 / (n - 2)
        rest = (1 - one_share[i][which]) * (1 - other_share[right, which]) * (n / (n - 1)) ** 2  # of n - 1 stimuli
        spread[:, i] = np.sqrt(rest + own / unit[i][:, None] ** 2).T
    return InPlace(shift, spread)


def _shares(leverage: np.ndarray) -> np.ndarray:
    """The part of the squares of a relation that stands in the row and the column of every stimulus, (l, n)."""
    squares = leverage[:, 3] + leverage[:, 4]
    total = leverage[:, 3].sum(axis=1, keepdims=True)
    return np.minimum(1.0, squares / np.where(total > 0, total, np.inf))


def _heaviest(leverage: np.ndarray) -> np.ndarray:
    """The stimuli that are farthest out by their own entry and sums, or by their squares, (l, m)."""
    moves = leverage[:, 0] ** 2 * leverage.shape[2] + leverage[:, 1] ** 2 + leverage[:, 2] ** 2
    total = moves.sum(axis=1, keepdims=True)
    weight = _shares(leverage) + moves / np.where(total > 0, total, np.inf)
    some = min(HEAVIEST, weight.shape[1])
    return np.argpartition(-weight, some - 1, axis=1)[:, :some]
