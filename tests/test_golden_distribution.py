"""Measures of distributions over labels against outside numbers, and the published table of the closeness of models."""

from __future__ import annotations

import re

import numpy as np
import pytest

from golden_tools import Golden, Score, off_by
from repalign.measures import (
    Disagreement,
    JensenShannon,
    KLDivergence,
    LogitDistance,
    accuracy_difference,
    embedding_svd_distance,
    log_likelihood_variance_distance,
)

Four = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared)


def drawn(pair: str) -> Four:
    """The two models of a record that is given as a recipe."""
    rng = np.random.default_rng(0)
    f, g, a, f2, g2 = (rng.standard_normal(s) for s in [(400, 3), (6, 3), (3, 3), (400, 3), (6, 3)])
    pairs = {
        "(F,G) - (F2,G2)": (f, g, f2, g2),
        "(F,G) - (F A^-T, G A)": (f, g, f @ np.linalg.inv(a).T, g @ a),
        "(F,G) - (F, G + 1.7)": (f, g, f, g + 1.7),
        "(F,G) - (F + 0.1 F2, G)": (f, g, f + 0.1 * f2, g),
    }
    return pairs[pair]


def four(record: dict, golden: Golden) -> Four:
    """Embeddings and unembeddings of both models."""
    if record["case"].startswith("recipe:"):
        return drawn(record["parameters"]["pair"])
    case = golden.case(record["case"])
    return case["x"], case["gx"], case["y"], case["gy"]


def logits(record: dict, golden: Golden) -> tuple[np.ndarray, np.ndarray]:
    if record["case"] == "supplement_logits":
        x, y = (golden.case(record["case"])[s] for s in "xy")
        return (y, x) if record["parameters"].get("direction") == "y to x" else (x, y)
    f, g, f2, g2 = four(record, golden)
    return f @ g.T, f2 @ g2.T


MEASURES: dict[str, tuple[Score, int]] = {
    "kl_divergence": (KLDivergence(), 8),
    "jsd": (JensenShannon(), 1),
    "disagreement": (Disagreement(), 1),
    "logit_distance": (LogitDistance(), 6),
}


@pytest.mark.parametrize("name", MEASURES)
def test_golden(name: str, golden: Golden):
    measure, count = MEASURES[name]
    records = golden.of(name)
    assert len(records) == count
    for record in records:
        value = measure(*logits(record, golden))
        assert off_by(value, float(record["value"]), record["tolerance"]) <= 1, (record["id"], value, record["value"])


def test_golden_accuracy(golden: Golden):
    (record,) = golden.of("absolute_accuracy_difference")
    case = golden.case("supplement_logits")
    value = accuracy_difference(case["x"], case["y"], case["labels"])
    assert off_by(value, float(record["value"]), record["tolerance"]) <= 1
    assert value == pytest.approx(0.05, abs=1e-12)


def test_golden_log_likelihood_variance(golden: Golden):
    """All seven records: the pivot and the left-out label are found, not given."""
    records = golden.of("log_likelihood_variance_distance")
    assert len(records) == 7
    for record in records:
        p = record["parameters"]
        assert re.match("rows 0..3", p["inputs"])
        found = log_likelihood_variance_distance(*four(record, golden), rows=range(4), weight=p["weight"])
        value = {"T1 (labels)": found.labels, "T2 (inputs)": found.inputs}.get(p.get("term", ""), found.distance)
        expected = float(record["value"])
        assert off_by(value, expected, record["tolerance"]) <= 1, (record["id"], value, expected)
        if expected > 1e-9:
            assert (found.pivot, found.left_out) == (p["pivot_label"], p["left_out_label"])


# pair: distance, labels, inputs, pivot, left out, KL, squared logit distance, largest SVD distance of the embeddings
TABLE = {
    "(F,G) - (F2,G2)": (1.52349674264, 1.20908305529, 1.52349674264, 4, 1, 1.36094239605, 24.3922396327, 0.964831490),
    "(F,G) - (F + 0.1 F2, G)": (
        0.37772472163, 0.09645751449, 0.37772472163, 2, 5, 0.00698417669, 0.13280426962, 0.005405110065
    ),
}  # fmt: skip


@pytest.mark.parametrize("pair", TABLE)
def test_closeness_of_two_drawn_models(pair: str):
    distance, labels, inputs, pivot, left_out, kl, logit, svd = TABLE[pair]
    f, g, f2, g2 = drawn(pair)
    found = log_likelihood_variance_distance(f, g, f2, g2, rows=range(4))
    assert found[:3] == pytest.approx((distance, labels, inputs), rel=1e-10)
    assert (found.pivot, found.left_out) == (pivot, left_out)
    x, y = f @ g.T, f2 @ g2.T
    assert KLDivergence()(x, y) == pytest.approx(kl, rel=1e-9)
    assert LogitDistance()(x, y) == pytest.approx(logit, rel=1e-9)
    value = embedding_svd_distance(f, g, f2, g2, pivot=pivot, left_out=left_out)
    assert value == pytest.approx(svd, rel=1e-8)
    assert value <= 2 * 3 * distance  # theorem 4.7


@pytest.mark.parametrize("pair", ["(F,G) - (F A^-T, G A)", "(F,G) - (F, G + 1.7)"])
def test_equal_distributions_of_two_drawn_models(pair: str):
    f, g, f2, g2 = drawn(pair)
    assert log_likelihood_variance_distance(f, g, f2, g2, rows=range(4)).distance < 1e-12
    assert KLDivergence()(f @ g.T, f2 @ g2.T) < 1e-14
    assert LogitDistance()(f @ g.T, f2 @ g2.T) < 1e-24
