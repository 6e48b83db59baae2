"""Linear maps, unit matching and aligned cosines against numbers of outside implementations on fixed inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from golden_tools import Golden
from repalign.measures import (
    VERSA,
    AlignedCosine,
    HardUnitMatching,
    LinearRegression,
    MeanCorrelationCoefficient,
    PairwiseMatching,
    PLSPredictivity,
    RidgePredictivity,
    SoftUnitMatching,
)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared)


# The held-out records: scikit-learn's KFold(5, shuffle=True, random_state=42), held-out rows standardised by themselves.
HELD_OUT = {"seed": 42, "standardize": "fold"}


@pytest.mark.parametrize(
    ("name", "ours", "matched"),
    [
        ("linear_regression", lambda r: LinearRegression(predicts="x"), 26),
        ("linear_predictivity", lambda r: RidgePredictivity(**HELD_OUT), 12),
        ("pls_predictivity", lambda r: PLSPredictivity(**HELD_OUT), 10),
        ("versa", lambda r: VERSA(**HELD_OUT), 12),
        ("pairwise_matching", lambda r: PairwiseMatching(seed=42), 14),
        ("hard_correlation_match", lambda r: HardUnitMatching(), 6),
        ("soft_correlation_match", lambda r: SoftUnitMatching(form="best"), 6),
        ("soft_matching", lambda r: SoftUnitMatching(), 12),
        (
            "mean_correlation_coefficient",
            lambda r: MeanCorrelationCoefficient(correlation=r["parameters"]["correlation"]),
            12,
        ),
        ("aligned_cosine", lambda r: AlignedCosine(r["parameters"]["alignment"], r["parameters"]["centred"]), 14),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_golden(golden: Golden, name: str, ours, matched: int):
    golden.check(name, ours, matched)


def test_where_sources_raise_for_deficient_rank_ours_is_defined(golden: Golden):
    """The reference inverts a matrix root; scikit-learn's PLS refuses more components than columns."""
    found = golden.case("degenerate")
    assert LinearRegression(predicts="x")(found["x"], found["y"]) == pytest.approx(0.662543496927, abs=1e-9)
    assert PLSPredictivity()(found["x"], found["y"]) == pytest.approx(PLSPredictivity(components=24)(found["x"], found["y"]))


def test_the_constant_units_of_the_degenerate_case_are_left_out(golden: Golden):
    """Sources give nan, raise, or score a meaningless 1 there."""
    x, y = golden.case("degenerate")["x"], golden.case("degenerate")["y"]
    kept = [a[:, np.ptp(a, axis=0) > 0] for a in (x, y)]
    assert [a.shape[1] for a in kept] != [x.shape[1], y.shape[1]]
    for measure in (HardUnitMatching(), SoftUnitMatching(), MeanCorrelationCoefficient()):
        assert measure(x, y) == pytest.approx(measure(*kept), abs=1e-9)
        assert 0 < measure(x, y) < 1
