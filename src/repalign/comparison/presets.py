"""Named sets of measures with their preprocessing, for numbers that are comparable with others'."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from repalign.comparison.preprocess import Preprocess
from repalign.errors import RepalignError, did_you_mean
from repalign.measures import (
    CKA,
    LCSKNN,
    SVCCA,
    CKNNAReference,
    CycleKNN,
    EditDistanceKNN,
    Measure,
    MutualKNN,
)


@dataclass(frozen=True)
class Preset:
    """Measures, what is done to the layers before, and how the best pair of layers is found."""

    name: str
    measures: tuple[Measure, ...]
    preprocess: Preprocess
    search: str
    summary: str

    @staticmethod
    def best(scores: ArrayLike) -> tuple[float, tuple[int, int] | None]:
        """What the reference code returns for the scores of all pairs of layers, (layers of x, layers of y).

        Its maximum starts at 0 without a place and moves to what is strictly larger: where no score is positive, or all
        are undefined, the answer is (0.0, None). Results of `compare` have the true maximum and its layers instead.

        >>> Preset.best([[-0.2, -0.1]]), Preset.best([[0.1, 0.3]])
        ((0.0, None), (0.3, (0, 1)))
        """
        found = np.asarray(scores, float)
        kept = np.where(found > 0, found, -math.inf)
        at = int(kept.argmax()) if kept.size else 0
        if not kept.size or not math.isfinite(kept.flat[at]):
            return 0.0, None
        i, j = divmod(at, found.shape[1])
        return float(found[i, j]), (i, j)


_REFERENCE = (
    MutualKNN(k=10),
    CycleKNN(k=10),
    LCSKNN(k=10, normalized=False),
    EditDistanceKNN(k=10),
    CKA(estimator="biased", epsilon=1e-6),
    CKA(estimator="debiased", epsilon=1e-6),
    CKNNAReference(k=10),
    SVCCA(components=10, standardize=True),
)

PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset(
            "platonic-rep",
            _REFERENCE,
            Preprocess(clip="mean", normalize_rows=True, concatenate=True),
            "raw",
            "the paper's numbers: clipped at the .95 quantile, unit rows, concatenated layers, raw maximum",
        ),
        Preset(
            "platonic-rep-2024",
            _REFERENCE,
            Preprocess(clip="exact", normalize_rows=True, concatenate=True),
            "raw",
            "the library as released until July 2024: exact clipping, concatenated layers, raw maximum",
        ),
        Preset(
            "platonic-rep-head",
            _REFERENCE,
            Preprocess(clip="exact", normalize_rows=True),
            "raw",
            "the released code as it is now: exact clipping, no concatenation, raw maximum",
        ),
        Preset(
            "platonic-rep-head-list",
            _REFERENCE,
            Preprocess(clip="exact", clip_scope="layer", normalize_rows=True),
            "raw",
            "the same, given a list of layers (of several widths) and not one tensor: a threshold for every layer",
        ),
    )
}


def preset(name: str) -> Preset:
    """A preset by name.

    "platonic-rep" gives the paper's own numbers: clipping by the mean of the per-stimulus .95 quantiles over
    all layers, rows of unit norm, all layers concatenated as one more candidate, and the maximum over layer
    pairs of the score itself. SVCCA is the exact form of what the reference draws at random.

    "platonic-rep-2024" is the library's entry point until commit 4dd084e (2024-07-29): one exact threshold. Its command
    line has "platonic-rep" as its default. "platonic-rep-head" is the library's entry point after April 2025, where
    concatenation was removed, and "platonic-rep-head-list" the same for a list of layers.

    Not followed: the entry point casts features to bfloat16 before products and sorting, here everything is computed in
    float32 or wider; and its maximum starts at 0 (`Preset.best`).

    Raises RepalignError for an unknown name.
    """
    if name not in PRESETS:
        raise RepalignError(f"unknown preset {name!r}", got=name, remedy=did_you_mean(name, PRESETS))
    return PRESETS[name]
