"""Summaries of one space, and distances between two clouds, against outside numbers."""

from __future__ import annotations

import pytest

from golden_tools import Golden, Score
from repalign.measures import (
    BuresWasserstein,
    ConcentricityDifference,
    EnergyDistance,
    MagnitudeDifference,
    SlicedWasserstein,
    UniformityDifference,
    participation_ratio,
)


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared)


def ours(record: dict) -> Score:
    makers = {
        "magnitude_difference": lambda p: MagnitudeDifference(),
        "concentricity_difference": lambda p: ConcentricityDifference(),
        "uniformity_difference": lambda p: UniformityDifference(t=p["t"], normalize=False, pairs="all"),
        "participation_ratio": lambda p: lambda x, _: participation_ratio(x),
        "energy_distance": lambda p: EnergyDistance(),
        "bures_wasserstein": lambda p: BuresWasserstein(),
        "sliced_wasserstein": lambda p: SlicedWasserstein(projections=p["projections"], seed=p["seed"]),
    }
    return makers[record["measure"]](record["parameters"])


MATCHED = {
    "magnitude_difference": 7,
    "concentricity_difference": 7,
    "uniformity_difference": 14,
    "participation_ratio": 14,
    "energy_distance": 3,
    "bures_wasserstein": 2,
    "sliced_wasserstein": 3,
}


@pytest.mark.parametrize("measure", MATCHED)
def test_golden(measure: str, golden: Golden):
    golden.check(measure, ours, MATCHED[measure])


def test_unit_rows_are_the_default(golden: Golden):
    """The records of unit rows are those of our default, but for the pairs of a row with itself."""
    records = [r for r in golden.of("uniformity_difference") if r["parameters"]["normalise"] == "l2_rows"]
    for record in records:
        arrays = [golden.case(record["case"])[s] for s in "xy"]
        value = UniformityDifference(pairs="all")(*arrays)
        assert value == pytest.approx(float(record["value"]), abs=1e-10)
    assert len(records) == 7


def test_the_comparison_can_fail(golden: Golden):
    with pytest.raises(AssertionError, match="dev-"):
        golden.check("uniformity_difference", lambda r: UniformityDifference(normalize=False, pairs="distinct"), 14)
