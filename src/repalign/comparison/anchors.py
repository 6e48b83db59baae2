"""Mutual k-NN at any n from a sample of anchor rows, each searched against all rows.

The score is a mean over rows, s = (1 / n) sum_i |N_X(i) & N_Y(i)| / k. A simple random sample of rows whose neighbours
are taken among all n therefore estimates it without bias, at the gallery size n; a sample of the gallery would not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repalign.comparison.cost import BLOCK
from repalign.comparison.queries import nearest_of
from repalign.comparison.streams import Rows, as_rows
from repalign.errors import RepalignError, choose
from repalign.measures.measure import as_count, check_paired
from repalign.measures.numerics.search import SIMILARITIES
from repalign.representation import Representation, check_same_dataset
from repalign.text import Progress, silent


@dataclass(frozen=True)
class Anchored:
    """Mutual k-NN of two layers, estimated from anchors.

    statistic : mean overlap of the anchors; nan if all rows of one side are alike.
    low, high : interval for the exact score at this n, at confidence `level`.
    chance : expected score under a random pairing of the rows, k / (n - 1), exactly.
    n, n_anchors, k, seed : rows, anchors, neighbours, and the seed of the sample.
    method : what was computed, in a sentence.
    """

    statistic: float
    low: float
    high: float
    level: float
    chance: float
    n: int
    n_anchors: int
    k: int
    seed: int
    method: str

    @property
    def corrected(self) -> float:
        """(statistic - chance) / (1 - chance): 0 at chance, 1 for equal neighbours."""
        return corrected(self.statistic, self.chance)


def corrected(statistic: float, chance: float) -> float:
    """(s - chance) / (1 - chance); nan where chance is 1."""
    return (statistic - chance) / (1 - chance) if chance < 1 else math.nan


def anchored_mutual_knn(
    x: Any,
    y: Any,
    k: int = 10,
    similarity: str = "cosine",
    n_anchors: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    *,
    block: int = BLOCK,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Anchored:
    """Mutual k-NN of two layers at any n: n_anchors rows, drawn without replacement, searched against all n.

    x, y : `Rows`, arrays (n, d1) and (n, d2) (numpy, memory maps, tensors), or pairs (representation, layer). They are
    read in blocks, once per side, and once more where near ties need float64. With n_anchors >= n every row is an
    anchor and the result is that of `MutualKNN(k, similarity)`.

    The interval is Wilson's, with the sample's variance in the place of a proportion's: all s with
    |m - s| <= t sqrt(f v s (1 - s) / a), a anchors of mean m and variance V, v = min(1, V / (m (1 - m))) (1 if m is 0
    or 1), f = 1 - a / n for sampling without replacement, t Student's quantile with a - 1 degrees of freedom.

    Raises RepalignError unless n > k >= 1, n_anchors >= 2 and 0 < level < 1, if row counts or datasets differ, or at a
    row that is not finite.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 8))
    >>> r = anchored_mutual_knn(x, 3 * x, n_anchors=50)
    >>> r.statistic, round(r.chance, 4), r.n
    (1.0, 0.02, 500)
    """
    k, n_anchors = as_count("k", k), as_count("n_anchors", n_anchors)
    choose("similarity", similarity, SIMILARITIES)
    if n_anchors < 2 or not 0 < level < 1:
        raise RepalignError(
            "an interval needs two anchors and a level between 0 and 1",
            expected="n_anchors >= 2 and 0 < level < 1",
            got=f"n_anchors = {n_anchors}, level = {level}",
        )
    left, right = paired_rows(x, y, k)
    n = left.n
    anchors = sample(n, n_anchors, seed)
    found = [
        nearest_of(r, anchors, k, similarity, block=block, device=device, progress=progress) for r in (left, right)
    ]
    method = f"mutual k-NN, {len(anchors):,} anchors among n = {n:,} rows, exact {similarity} neighbours, seed {seed}"
    if any(f.is_constant for f in found):
        statistic = low = high = math.nan
    else:
        overlap = common(found[0].indices, found[1].indices).to(torch.float64)
        statistic = float(overlap.sum()) / (k * len(anchors))
        low, high = wilson(statistic, float(overlap.var()) / k**2, len(anchors), n, level)
    return Anchored(statistic, low, high, level, k / (n - 1), n, len(anchors), k, seed, method)


def sample(n: int, size: int, seed: int) -> Tensor:
    """`size` of n rows without replacement, in order; all of them if size >= n."""
    drawn = np.random.default_rng(seed).choice(n, size=min(size, n), replace=False, shuffle=False)
    return torch.from_numpy(np.sort(drawn))


def common(a: Tensor, b: Tensor) -> Tensor:
    """How many entries two lists (r, k) of distinct indices have in common, per row."""
    both = torch.cat([a, b], dim=1).sort(dim=1).values
    return (both[:, 1:] == both[:, :-1]).sum(dim=1)


def paired_rows(x: Any, y: Any, k: int) -> tuple[Rows, Rows]:
    """Both sides as rows, once they are known to describe the same stimuli, more than k of them."""
    left, right = (as_rows(*s) if isinstance(s, tuple) else as_rows(s, name=name) for s, name in ((x, "x"), (y, "y")))
    check_same_dataset([s[0] for s in (x, y) if isinstance(s, tuple) and isinstance(s[0], Representation)])
    check_paired(left.n, right.n, left.name, right.name)
    if left.n <= k:
        raise RepalignError(
            f"{left.name}: too few stimuli for k = {k} neighbours",
            expected=f"n >= {k + 1}",
            got=f"n = {left.n}",
            remedy="use more stimuli, or a smaller k",
        )
    return left, right


def wilson(mean: float, variance: float, size: int, n: int, level: float) -> tuple[float, float]:
    """The interval of `anchored_mutual_knn` for a mean of `size` of n values in [0, 1]."""
    from scipy.stats import t

    spread = min(1.0, variance / (mean * (1 - mean))) if 0 < mean < 1 else 1.0
    c = float(t.ppf((1 + level) / 2, size - 1)) ** 2 * (1 - size / n) * spread / size
    middle, half = mean + c / 2, math.sqrt(c * mean * (1 - mean) + c * c / 4)
    return max(0.0, (middle - half) / (1 + c)), min(1.0, (middle + half) / (1 + c))
