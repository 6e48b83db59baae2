"""The kernel family and distance correlation against numbers of outside implementations on fixed inputs.

CKA with the linear and RBF kernels, and CKNNA, are in test_golden_measures.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from golden_tools import Golden, Score, off_by
from repalign.measures import (
    CKA,
    HSIC,
    RV,
    AngularCKA,
    DependentColumnsCKA,
    DistanceCorrelation,
    SquaredDistanceCorrelation,
    SquaredDistanceCovariance,
)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared)


def hsic(record: dict) -> Score:
    p = record["parameters"]
    if p["unbiased"]:
        return HSIC()
    return HSIC(estimator="trace" if "no division" in p["scale"] else "biased")


def distance_correlation(record: dict) -> Score:
    p = record["parameters"]
    estimator = "debiased" if p["unbiased"] else "biased"
    if p["squared"]:
        return SquaredDistanceCorrelation(estimator, p["exponent"])
    return DistanceCorrelation(p["exponent"])


def distance_covariance(record: dict) -> Score:
    p = record["parameters"]
    return SquaredDistanceCovariance("debiased" if p["unbiased"] else "biased", p["exponent"])


def half_of_the_median(record: dict) -> Score | None:
    """Each side divided by its own sigma, half the root of the median over all n^2 squared distances."""
    if record["parameters"].get("sigma") != "median heuristic B, fraction 0.5":
        return None

    def in_sigmas(a: np.ndarray) -> np.ndarray:
        squared = ((a[:, None] - a[None]) ** 2).sum(axis=-1)
        return a / (0.5 * math.sqrt(np.median(squared)))

    return lambda x, y: CKA(kernel="rbf", estimator="biased", bandwidth=1.0)(in_sigmas(x), in_sigmas(y))


def dependent_columns(record: dict) -> Score | None:
    """The source adds 1e-8, in the unit of features divided by sqrt(d); where it returns 0 we have no score."""
    if record["value"] == "0.0":
        return None
    return lambda x, y: DependentColumnsCKA(epsilon=1e-8)(*(a / math.sqrt(a.shape[1]) for a in (x, y)))


@pytest.mark.parametrize(
    ("measure", "ours", "matched"),
    [
        ("cka", half_of_the_median, 7),
        ("cka_lange", lambda _: RV(modified=True), 7),
        ("rv_coefficient", lambda _: RV(), 14),
        ("rv2_coefficient", lambda _: RV(modified=True), 7),
        ("hsic", hsic, 21),
        ("angular_cka", lambda _: AngularCKA(), 7),
        ("cka_dependent_columns", dependent_columns, 6),
        ("distance_correlation", distance_correlation, 35),
        ("distance_covariance", distance_covariance, 14),
    ],
)
def test_golden(golden: Golden, measure: str, ours, matched: int):
    golden.check(measure, ours, matched)


def test_where_the_source_returns_0_there_is_no_score(golden: Golden):
    undefined = [r for r in golden.of("cka_dependent_columns") if r["value"] == "0.0"]
    assert [r["case"] for r in undefined] == ["independent_heavy"]
    assert math.isnan(DependentColumnsCKA()(*golden.arrays(undefined[0])))


def test_the_comparison_can_fail(golden: Golden):
    """Each form misses the numbers of the form beside it."""
    for name, wrong in (("rv2_coefficient", RV()), ("cka_dependent_columns", CKA()), ("cka_lange", CKA())):
        records = [r for r in golden.of(name) if r["case"] != "rotation_scale"]
        assert all(off_by(wrong(*golden.arrays(r)), float(r["value"]), r["tolerance"]) > 1 for r in records), name
