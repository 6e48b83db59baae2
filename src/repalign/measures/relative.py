"""A score in units of what unpaired rows score, which makes unbounded distances readable."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from repalign.errors import RepalignError
from repalign.measures.measure import Measure, as_count, as_seed


class Relative(NamedTuple):
    """A score against what it is for unpaired rows."""

    statistic: float
    null_mean: float
    ratio: float  # statistic / null_mean: of a distance 0 for the same space, about 1 for unpaired ones
    pvalue: float
    n_draws: int
    seed: int


def relative_to_null(measure: Measure, x: Any, y: Any, n_draws: int = 20, seed: int = 0) -> Relative:
    """A score divided by its mean over random relabellings of the rows of y, which makes distances readable.

    RTD and its kin are unbounded and grow with n: a ratio of 0 says that the spaces are the same, about 1 that the pairing
    of rows says nothing. p = (1 + draws that are at least as close) / (n_draws + 1).

    Raises RepalignError for a measure that does not look at the pairing.

    >>> import numpy as np
    >>> from repalign.measures import RTDLite
    >>> x = np.random.default_rng(0).standard_normal((60, 5))
    >>> near = x + 0.1 * np.random.default_rng(1).standard_normal((60, 5))
    >>> relative_to_null(RTDLite(), x, near).ratio < 0.5
    True
    """
    if not measure.paired:
        raise RepalignError(
            f"{measure!r} does not look at the pairing of rows",
            expected="a measure whose score changes when rows are relabelled", got="paired = False",
            remedy="compare its score with that of two halves of one space instead",
        )  # fmt: skip
    n_draws, seed = as_count("n_draws", n_draws), as_seed("seed", seed)
    x, y = measure.checked(x, y)
    a, b = measure.prepare(x), measure.prepare(y)
    generator = np.random.Generator(np.random.PCG64(seed))
    statistic = measure.compare(a, b)
    draws = []
    for _ in range(n_draws):
        p = torch.from_numpy(generator.permutation(len(x))).to(y.device)
        draws.append(measure.compare(a, b.permute(p)))
    null = np.array(draws)
    mean = float(null.mean())
    tie = 1e-12 * float(np.abs(null).max())
    closer = null >= statistic - tie if measure.closer_is_higher else null <= statistic + tie
    pvalue = math.nan if math.isnan(statistic) else (1 + int(closer.sum())) / (n_draws + 1)
    return Relative(statistic, mean, statistic / mean if mean else math.nan, pvalue, n_draws, seed)
