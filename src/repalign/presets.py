"""Named sets of measures with their preprocessing, for numbers that are comparable with others'."""

from __future__ import annotations

from dataclasses import dataclass

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
from repalign.preprocess import Preprocess


@dataclass(frozen=True)
class Preset:
    """Measures, what is done to the layers before, and how the best pair of layers is found."""

    name: str
    measures: tuple[Measure, ...]
    preprocess: Preprocess
    search: str
    summary: str


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
            "platonic-rep-head",
            _REFERENCE,
            Preprocess(clip="exact", normalize_rows=True),
            "raw",
            "the released code as it is now: exact clipping, no concatenation, raw maximum",
        ),
    )
}


def preset(name: str) -> Preset:
    """A preset by name.

    "platonic-rep" gives the paper's own numbers: clipping by the mean of the per-stimulus .95 quantiles over
    all layers, rows of unit norm, all layers concatenated as one more candidate, and the maximum over layer
    pairs of the score itself. SVCCA is the exact form of what the reference draws at random.

    Raises RepalignError for an unknown name.
    """
    if name not in PRESETS:
        raise RepalignError(f"unknown preset {name!r}", got=name, remedy=did_you_mean(name, PRESETS))
    return PRESETS[name]
