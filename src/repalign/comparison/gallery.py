"""Gallery-size curves: the mutual k-NN score of the very same two spaces as the number of stimuli grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from repalign.comparison.anchors import corrected
from repalign.errors import RepalignError
from repalign.layers import Given, kind_of
from repalign.measures import MutualKNN
from repalign.measures.measure import GraphRelation, as_count, as_layer, check_paired
from repalign.representation import Representation, check_same_dataset
from repalign.text import Progress, silent

FIXED, SHARE = "fixed", "share"


def gallery_curve(
    x: Any,
    y: Any,
    k: int = 10,
    share: float | None = None,
    sizes: Sequence[int] | None = None,
    repeats: int = 5,
    seed: int = 0,
    similarity: str = "cosine",
    *,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Mutual k-NN at gallery sizes n_j, once with k fixed and once with k a share of n_j.

    x, y : arrays (n, d1) and (n, d2), an `RDM` or a `Kernel`, or pairs (representation, layer).
    sizes : by default the powers of two from 10 k to n (n itself if there is none).
    share : k / n_j in the second mode, rounded to at least one neighbour; by default the one that gives k at the
        smallest size.
    repeats : random orders of the stimuli, each of which gives nested subsets, its first n_j (drawn without
        replacement). At n_j = n there is one subset only.

    With k fixed the score of two noisy views of one space falls as n grows: the k nearest lie ever closer together, and
    noise reorders them. With k a share of n it stays about level, at a coarser grain.

    Columns n, k, mode ("fixed" or "share"), statistic (mean over repeats), std (over repeats, nan for one), chance
    k / (n - 1), corrected (statistic - chance) / (1 - chance), n_repeats.

    Raises RepalignError for sizes that do not lie above k and up to n, a share not in (0, 1), or unpaired rows.
    """
    k, repeats = as_count("k", k), as_count("repeats", repeats)
    first, second = _layers(x, y)
    for layer, name in ((first, "x"), (second, "y")):
        MutualKNN(k=k, similarity=similarity).check_takes(kind_of(layer), name)
    n = len(first)
    sizes = _sizes(n, k, sizes)
    shares = _shares(sizes, k, share)
    scores: dict[tuple[int, str], list[float]] = {}
    progress("gallery sizes", 0, repeats * len(sizes))
    for repeat in range(repeats):
        order = torch.from_numpy(np.random.default_rng([seed, repeat]).permutation(n))
        for j, (size, many) in enumerate(zip(sizes, shares, strict=True)):
            if size < n or repeat == 0:
                measure = MutualKNN(k=max(k, many), similarity=similarity)
                states = [measure.prepare(f[order[:size]]) for f in (first, second)]
                scores.setdefault((size, FIXED), []).append(_score(k, similarity, states))
                scores.setdefault((size, SHARE), []).append(_score(many, similarity, states))
            progress("gallery sizes", repeat * len(sizes) + j + 1, repeats * len(sizes))
    rows = [
        _row(size, used, mode, scores[size, mode])
        for mode, counts in ((FIXED, [k] * len(sizes)), (SHARE, shares))
        for size, used in zip(sizes, counts, strict=True)
    ]
    return pd.DataFrame(rows)


def _layers(x: Any, y: Any) -> tuple[Given, Given]:
    pairs = [s for s in (x, y) if isinstance(s, tuple) and isinstance(s[0], Representation)]
    check_same_dataset([representation for representation, _ in pairs])
    first, second = (
        as_layer(s[0].load(s[1]) if isinstance(s, tuple) else s, name) for s, name in ((x, "x"), (y, "y"))
    )
    check_paired(len(first), len(second))
    return first, second


def _sizes(n: int, k: int, sizes: Sequence[int] | None) -> list[int]:
    if sizes is None:
        sizes = [2**j for j in range(n.bit_length()) if 10 * k <= 2**j <= n] or [n]
    found = sorted({as_count("sizes", s) for s in sizes})
    if not found or found[0] <= k or found[-1] > n:
        raise RepalignError(
            "gallery sizes out of range",
            expected=f"k = {k} < size <= n = {n}",
            got=", ".join(map(str, found)) or "no size",
            remedy="use a smaller k, other sizes or more stimuli",
        )
    return found


def _shares(sizes: list[int], k: int, share: float | None) -> list[int]:
    """k at each size, a share of it."""
    share = k / sizes[0] if share is None else share
    if not 0 < share < 1:
        raise RepalignError("a share of the stimuli is a number between 0 and 1", expected="0 < share < 1", got=share)
    return [min(size - 1, max(1, round(share * size))) for size in sizes]


def _score(k: int, similarity: str, states: list[GraphRelation]) -> float:
    """The k nearest are the first k of more."""
    a, b = (replace(s, indices=s.indices[:, :k].contiguous()) for s in states)
    return MutualKNN(k=k, similarity=similarity).compare(a, b)


def _row(n: int, k: int, mode: str, scores: list[float]) -> dict[str, Any]:
    mean, chance = float(np.mean(scores)), k / (n - 1)
    std = float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")
    return {
        "n": n,
        "k": k,
        "mode": mode,
        "statistic": mean,
        "std": std,
        "chance": chance,
        "corrected": corrected(mean, chance),
        "n_repeats": len(scores),
    }
