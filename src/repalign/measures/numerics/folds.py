"""Held-out folds of the rows, by position and a seed: the same rows are held out for every pair of layers."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures.numerics.checks import as_count


def held_out(n: int, folds: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training and held-out rows of every fold; those of scikit-learn's KFold(folds, shuffle=True, random_state=seed)."""
    order = np.arange(n)
    np.random.RandomState(seed).shuffle(order)
    for part in np.array_split(order, folds):
        mask = np.zeros(n, dtype=bool)
        mask[part] = True
        yield torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))


def as_folds(value: Any) -> int:
    """A whole number >= 2."""
    count = as_count("folds", value)
    if count < 2:
        raise RepalignError(
            "one fold leaves nothing to train on", expected="folds >= 2", got=repr(value), remedy="use 5 folds"
        )
    return count


def as_seed(value: Any) -> int:
    """A whole number in [0, 2^32), of any integer type, as an int."""
    try:
        seed = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        seed = -1
    if not 0 <= seed < 2**32:
        raise RepalignError("seed is not a whole number", expected="0 <= seed < 2**32", got=repr(value))
    return seed
