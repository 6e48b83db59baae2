"""The measures on shapes against numbers of outside implementations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from golden_tools import Golden, Score, off_by
from repalign.measures import (
    AngularProcrustes,
    BuresDistance,
    HeldOutProcrustes,
    NormalisedBures,
    PermutationProcrustes,
    Procrustes,
    ShapeMetric,
)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared)


def centre(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0)


def test_procrustes(golden: Golden):
    def ours(record: dict) -> Score:
        form, normalise = record["parameters"]["form"], record["parameters"]["normalise"]
        if form == "disparity":
            return lambda x, y: 1 - NormalisedBures()(x, y) ** 2
        if form == "score":  # asymmetric, and not scale-free: a function of the size-and-shape distance
            sizes = Procrustes(normalized=False)
            return lambda x, y: 1 - sizes(x, y) / (np.linalg.norm(centre(y)) + 1e-8)
        return Procrustes(
            normalized="unit Frobenius" in normalise, center=normalise != "none", squared=form == "squared distance"
        )

    golden.check("procrustes", ours, 70)


def test_angular_procrustes(golden: Golden):
    def ours(record: dict) -> Score:
        p = record["parameters"]
        measure = AngularProcrustes(center=p.get("centred", True))
        return measure if p["units"] == "radians" else lambda x, y: 1 - 2 / math.pi * measure(x, y)

    golden.check("angular_procrustes", ours, 27)


def test_permutation_procrustes(golden: Golden):
    def ours(record: dict) -> Score:
        p = record["parameters"]
        return PermutationProcrustes(form="angle" if p["score"] == "angular" else "distance", center=p["centred"])

    golden.check("permutation_procrustes", ours, 28)


def size_after_whitening(x: np.ndarray, width: int, alpha: float) -> float:
    """The norm of partly whitened features as the source has it.

    It restores the total variance over all directions up to the common width, among them those without variance, to
    which it gives an eigenvalue of 1e-7.
    """
    there = np.zeros(width)
    values = np.linalg.svd(centre(x), compute_uv=False) ** 2
    there[: len(values)] = np.where(values > 1e-9, values, 0)
    floored = np.maximum(there, 1e-7)
    factors = alpha + (1 - alpha) / np.sqrt(floored)
    return math.sqrt((there * factors**2).sum() * floored.sum() / (floored * factors**2).sum())


def test_linear_shape_metric(golden: Golden):
    """The angle is ours; the Euclidean form follows from it and from the source's sizes."""

    def ours(record: dict) -> Score:
        alpha = record["parameters"]["alpha"]
        if record["parameters"]["score"] == "angular":
            return ShapeMetric(alpha=alpha)

        def euclidean(x: np.ndarray, y: np.ndarray) -> float:
            width = max(x.shape[1], y.shape[1])
            p, q = (size_after_whitening(a, width, alpha) for a in (x, y))
            return math.sqrt(p * p + q * q - 2 * p * q * math.cos(ShapeMetric(alpha=alpha)(x, y)))

        return euclidean

    golden.check("linear_shape_metric", ours, 28)


def test_held_out_procrustes(golden: Golden):
    """The source first takes the wider side to as many principal components as the narrower side has columns."""
    measure = HeldOutProcrustes(folds=5, seed=42)

    def score(x: np.ndarray, y: np.ndarray) -> float:
        width = min(*x.shape, y.shape[1])
        return measure(*(leading(a, width) if a.shape[1] > width else a for a in (x, y)))

    golden.check("cv_linear_shape_metric", lambda record: score, 8)


def leading(x: np.ndarray, count: int) -> np.ndarray:
    u, s, _ = np.linalg.svd(centre(x), full_matrices=False)
    return u[:, :count] * s[:count]


def test_bures(golden: Golden):
    golden.check("normalised_bures", lambda record: NormalisedBures(), 21)
    golden.check("bures_distance_squared", lambda record: lambda x, y: BuresDistance()(x, y) ** 2, 7)


def test_the_comparison_can_fail(golden: Golden):
    """Features that were not centred fail on every input whose mean is not 0."""
    records = [r for r in golden.of("angular_procrustes") if r["parameters"].get("centred", True)]
    values = [AngularProcrustes(center=False)(*golden.arrays(r)) for r in records]
    failed = [off_by(v, float(r["value"]), r["tolerance"]) > 1 for v, r in zip(values, records, strict=True)]
    assert sum(failed) == len(failed) - 2  # an exact rotation without a shift stays one
