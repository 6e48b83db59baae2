"""Representational similarity analysis against numbers of outside implementations on fixed inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from golden_tools import Arrays, Golden, Score, off_by
from repalign.measures import RSA, Measure, RSAKendall, RSMNormDifference, SigmoidRSA, TopologicalRSA
from repalign.measures.rdm import geo_topological_transform

DISSIMILARITIES = {
    "squared_euclidean": "sqeuclidean",
    "gaussian, D divided by its mean over all n^2 entries": "gaussian",
}


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared)


def dissimilarity(record: dict) -> str:
    name = record["parameters"]["dissimilarity"]
    return DISSIMILARITIES.get(name, name)


def rsa(record: dict) -> Score | None:
    d, comparison = dissimilarity(record), record["parameters"]["comparison"]
    if comparison == "neg_riemannian":
        return None  # a search over two scales: another measure
    if comparison.startswith("kendall_tau"):
        return RSAKendall(d, tau=comparison[-1])
    if comparison == "l2_norm_of_difference":  # of the upper triangles: every pair once
        return lambda x, y: RSMNormDifference(d, norm="frobenius")(x, y) / np.sqrt(2)
    return RSA(d, comparison)


def transformed(record: dict) -> Measure:
    p = record["parameters"]
    if p.get("transform") == "sigmoid":
        return SigmoidRSA(p["alpha"], p["beta"], dissimilarity(record))
    return TopologicalRSA(p["lower"], p["upper"], dissimilarity(record), ranked=p["ranked_first"])


def recipe() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 5)), rng.normal(size=(20, 5))
    return {"X": x, "Y": y, "Z": x + 0.3 * rng.normal(size=(20, 5))}


def arrays(golden: Golden, record: dict) -> Arrays:
    if "pair" not in record["parameters"]:
        return golden.arrays(record)
    first, second = record["parameters"]["pair"].split("-")
    return recipe()[first], recipe()[second]


def test_rsa(golden: Golden):
    golden.check("rsa", rsa, 200)


def test_rsm_norm_difference(golden: Golden):
    golden.check("rsm_norm_difference", lambda r: RSMNormDifference(norm=r["parameters"]["norm"]), 7)


def test_topological_rsa(golden: Golden):
    records = golden.of("topological_rsa")
    off = {r["id"]: off_by(transformed(r)(*arrays(golden, r)), float(r["value"]), r["tolerance"]) for r in records}
    assert max(off.values()) <= 1, off
    assert len(records) == 64


def test_geo_topological_transform(golden: Golden):
    records = golden.of("geo_topological_transform")
    for values in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 100]):
        found = geo_topological_transform(np.array(values, dtype=float), 0.25, 0.75)
        for r in records:
            assert off_by(found[r["parameters"]["index"]], float(r["value"]), r["tolerance"]) <= 1
    assert len(records) == 6


def test_ranks_of_tied_dissimilarities_are_near_the_numbers_that_rounding_decided(golden: Golden):
    """Repeated rows tie dissimilarities; sources part them by rounding and so part with each other, by up to 2e-5."""
    x, y = (golden.case("degenerate")[name] for name in "xy")
    for d, low, high in (("euclidean", 0.621797, 0.621801), ("correlation", 0.599570, 0.599576)):
        assert low < RSA(d)(x, y) < high, d
    assert RSA("cosine")(x, y) == pytest.approx(0.641457, abs=5e-6)


def test_the_comparison_can_fail(golden: Golden):
    """Each form misses the numbers of the form beside it."""
    for comparison, wrong in (("pearson", "cosine"), ("whitened_cosine", "cosine"), ("whitened_pearson", "pearson")):
        records = [r for r in golden.of("rsa") if r["parameters"]["comparison"] == comparison]
        records = [r for r in records if r["case"] != "rotation_scale"]
        assert records
        for r in records:
            value = RSA(dissimilarity(r), wrong)(*golden.arrays(r))
            assert off_by(value, float(r["value"]), r["tolerance"]) > 1, r
