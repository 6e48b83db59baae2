"""Measures of one shared space against scipy and scikit-learn, and against the notebooks of the modality gap."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from golden_tools import Golden, Score
from repalign.measures import ModalityGap, PairedCosine, RetrievalRecall, cone_effect, shift_curve


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared)


def elsewhere(record: dict) -> bool:
    """Feature files of the notebooks, which are not among the shared inputs."""
    return record["case"].startswith("recipe:")


def ours(record: dict) -> Score | None:
    p = record["parameters"]
    if elsewhere(record):
        return None
    makers = {
        "modality_gap": lambda: ModalityGap(),
        "paired_cosine": lambda: PairedCosine(),
        "cone_effect": lambda: lambda x, _: cone_effect(x),
        "retrieval_recall": lambda: RetrievalRecall(k=p["k"]),
        "modality_gap_shifted": lambda: lambda x, y: float(shift_curve(x, y, [p["delta"]]).gaps[0]),
    }
    return makers[record["measure"]]()


MATCHED = {
    "modality_gap": 3,
    "paired_cosine": 3,
    "cone_effect": 14,
    "retrieval_recall": 12,
    "modality_gap_shifted": 7,
}
ELSEWHERE = {"modality_gap": 8, "paired_cosine": 8, "cone_effect": 16, "retrieval_recall": 8, "modality_gap_shifted": 0}


@pytest.mark.parametrize("measure", MATCHED)
def test_golden(measure: str, golden: Golden):
    golden.check(measure, ours, MATCHED[measure])
    assert sum(map(elsewhere, golden.of(measure))) == ELSEWHERE[measure]


def test_recall_is_the_exact_share(golden: Golden):
    checked = 0
    for record in golden.of("retrieval_recall"):
        if not elsewhere(record):
            value = RetrievalRecall(k=record["parameters"]["k"])(*golden.arrays(record))
            assert value == pytest.approx(float(Fraction(record["value_exact"])), abs=1e-12)
            checked += 1
    assert checked == 12


def test_both_directions_are_the_two_records(golden: Golden):
    """Queries x and queries y of the same input."""
    x, y = (golden.case("supplement_clip")[s] for s in "xy")
    one, other = RetrievalRecall()(x, y), RetrievalRecall(direction="y to x")(x, y)
    assert other == RetrievalRecall()(y, x)
    assert RetrievalRecall(direction="both")(x, y) == pytest.approx((one + other) / 2, abs=1e-15)


def test_the_comparison_can_fail(golden: Golden):
    """Means of raw rows instead of unit rows; one retrieved more."""
    raw = {"modality_gap": lambda r: lambda x, y: float(np.linalg.norm(2 * x.mean(axis=0) - 2 * y.mean(axis=0)))}
    with pytest.raises(AssertionError, match="dev-"):
        golden.check("modality_gap", lambda r: None if elsewhere(r) else raw["modality_gap"](r), 3)
    with pytest.raises(AssertionError, match="dev-"):
        golden.check(
            "retrieval_recall",
            lambda r: None if elsewhere(r) else RetrievalRecall(k=r["parameters"]["k"] + 1),
            12,
        )
