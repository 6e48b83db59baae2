"""Every measure against numbers that outside implementations gave on fixed inputs.

`golden/dev/values.json` has one record per number, with its tolerance and where it comes from; each record
is mapped to one of our measures, and how many are mapped is asserted, so that a mapping cannot match none.
`published/reference_metrics_golden.json` has the values of the reference code on a seeded input (float32).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from repalign.measures import (
    CKA,
    CKNNA,
    LCSKNN,
    SVCCA,
    CKNNAPaper,
    CKNNAReference,
    CycleKNN,
    EditDistanceKNN,
    Measure,
    MutualKNN,
)
from repalign.measures.measure import Relation, as_features

Arrays = tuple[np.ndarray, np.ndarray]
Score = Callable[[np.ndarray, np.ndarray], float]


# --- from a record to a measure ----------------------------------------------------------------


def epsilon_of(record: dict) -> float:
    """What the source adds to its denominator where it is large enough to be seen."""
    return (
        1e-6 if record["measure"] == "cknna" or record["source"].startswith("minyoungg/platonic-rep") else 0.0
    )


def ours(record: dict, epsilon: float) -> Score | None:
    """Our measure for a golden record, or None where we have none of that definition."""
    p, name = record["parameters"], record["measure"]
    make = {
        "mutual_knn": mutual_knn,
        "cycle_knn": lambda p: CycleKNN(k=p["k"], similarity="dot"),
        "lcs_knn": lambda p: LCSKNN(k=p["k"], similarity="dot", normalized=False),
        "edit_distance_knn": lambda p: EditDistanceKNN(k=p["k"], similarity="dot"),
        "cka": lambda p: cka(p, epsilon),
        "rv_coefficient": lambda _: CKA(estimator="biased"),
        "angular_cka": lambda _: lambda x, y: math.acos(CKA(estimator="biased")(x, y)),
        "hsic": hsic,
        "svcca": svcca,
    }
    if name == "cknna":
        estimator = "unbiased" if p["unbiased"] else "biased"
        return lambda x, y: CKNNAReference(
            k=len(x) - 1 if p["k"] == "n-1" else p["k"],
            similarity="dot",
            estimator=estimator,
            epsilon=epsilon,
        )(x, y)
    return make[name](p) if name in make else None


def mutual_knn(p: dict) -> Measure:
    return MutualKNN(k=p["k"], similarity=p.get("neighbours", "dot"))


def cka(p: dict, epsilon: float) -> Measure | None:
    rules = {
        "median heuristic A": "median_all_lower",
        "median heuristic B, fraction 1.0": "median_all",
        "median heuristic C": "median",  # the same without repeated rows
    }
    estimator = "debiased" if p["unbiased"] else "biased"
    if p["kernel"] == "linear":
        return CKA(estimator=estimator, epsilon=epsilon)
    bandwidth = rules.get(p["sigma"], p["sigma"])
    if isinstance(bandwidth, str) and bandwidth not in rules.values():
        return None  # heuristic B with a fraction of the median: give a number instead
    return CKA(kernel="rbf", estimator=estimator, bandwidth=bandwidth, epsilon=epsilon)


def hsic(p: dict) -> Score:
    """HSIC is the inner product of two relations with their norms put back: a check of the norms."""
    measure = CKA(estimator="debiased" if p["unbiased"] else "biased")

    def score(x: np.ndarray, y: np.ndarray) -> float:
        n = len(x)
        a, b = measure.prepare(as_features(x)), measure.prepare(as_features(y))
        product = float(Relation.inner_all([a], [b])) * a.norm * b.norm
        if p["unbiased"]:
            return product / (n * (n - 3))
        return product if "no division" in p["scale"] else product / (n - 1) ** 2

    return score


def svcca(p: dict) -> Measure | None:
    if "ridge" in p or "seeds" in p:
        return None  # another formula: a ridge in the covariances; a random SVD
    return SVCCA(components=p["components"], standardize=p["scaling"].startswith("z-score"))


NORMALISE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda a: a,
    "l2_rows": lambda a: a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12),
    "centre_columns": lambda a: a - a.mean(axis=0),
}

# How many records of each measure are matched.
MATCHED = {
    "mutual_knn": 42,
    "cycle_knn": 62,
    "lcs_knn": 24,
    "edit_distance_knn": 24,
    "cka": 207,
    "rv_coefficient": 14,
    "angular_cka": 7,
    "hsic": 21,
    "cknna": 116,
    "svcca": 23,
}


@pytest.fixture(scope="module")
def records(shared: Path) -> list[dict]:
    everything = json.loads((shared / "golden/dev/values.json").read_text())
    return [
        r
        for r in everything
        if r["testable"] in ("yes", "loose") and r["value"] is not None and not r.get("expected_to_differ")
    ]


@pytest.fixture(scope="module")
def arrays(shared: Path) -> Callable[[str], Arrays]:
    loaded: dict[str, Arrays] = {}

    def load(case: str) -> Arrays:
        if case not in loaded:
            with np.load(shared / f"golden/dev/inputs/{case}.npz") as f:
                loaded[case] = f["x"], f["y"]
        return loaded[case]

    return load


def off_by(value: float, expected: float, tolerance: dict) -> float:
    """How far off, in units of what is allowed: above 1 is a failure."""
    return abs(value - expected) / max(tolerance["atol"], tolerance["rtol"] * abs(expected))


def evaluate(record: dict, arrays: Callable[[str], Arrays], epsilon: float) -> float | None:
    score = ours(record, epsilon)
    if score is None or is_other_definition(record):
        return None
    x, y = (NORMALISE[record["parameters"]["normalise"]](a) for a in arrays(record["case"]))
    if record["parameters"].get("order") == "y,x":
        x, y = y, x
    return score(x, y)


def is_other_definition(record: dict) -> bool:
    """Heuristic C drops the zero distances between repeated rows; our median keeps them."""
    return record["parameters"].get("sigma") == "median heuristic C" and record["case"] == "degenerate"


@pytest.mark.parametrize("measure", MATCHED)
def test_golden(measure, records, arrays):
    failures, matched = [], 0
    for record in (r for r in records if r["measure"] == measure):
        value = evaluate(record, arrays, epsilon_of(record))
        if value is None:
            continue
        matched += 1
        if not off_by(value, float(record["value"]), record["tolerance"]) <= 1:
            failures.append((record["id"], record["case"], value, record["value"], record["source"]))
        exact = record.get("value_exact")
        if exact is not None and measure in ("mutual_knn", "cycle_knn"):
            assert value == pytest.approx(float(Fraction(exact)), abs=1e-12), record
    assert not failures
    assert matched == MATCHED[measure]


def test_golden_without_epsilon(records, arrays):
    """The same formulas without the constant in the denominator."""
    matched: Counter[str] = Counter()
    for record in records:
        if "value_without_epsilon" not in record or record["measure"] not in ("cka", "cknna"):
            continue
        value = evaluate(record, arrays, 0.0)
        assert value is not None
        assert off_by(value, float(record["value_without_epsilon"]), record["tolerance"]) <= 1, record
        matched[record["measure"]] += 1
    assert matched == {"cka": 63, "cknna": 116}


def test_golden_svcca_with_a_ridge(records, arrays):
    """A ridge of 1e-6 in the covariances can only lower a canonical correlation, and here by little."""
    matched = 0
    for record in records:
        p = record["parameters"]
        if record["measure"] != "svcca" or "ridge" not in p:
            continue
        value = SVCCA(components=p.get("components", p.get("variance_kept")))(*arrays(record["case"]))
        expected = float(record["value"])
        if record["case"] == "degenerate" and "components" in p:
            # x has rank 5: the source divides the five correlations by the ten components asked for.
            expected *= 2
        assert 0 <= value - expected < 5e-4, record
        matched += 1
    assert matched == 14


def test_the_comparison_can_fail(records, arrays):
    """A slightly wrong measure fails on most records: the tolerances are not so wide that anything passes."""
    checked = failed = 0
    for record in records:
        if record["measure"] == "cka" and record["parameters"]["unbiased"]:
            wrong = {**record, "parameters": {**record["parameters"], "unbiased": False}}
            value = evaluate(wrong, arrays, 0.0)
            checked += 1
            failed += value is not None and off_by(value, float(record["value"]), record["tolerance"]) > 1
    assert (checked, failed) == (89, 80)  # both forms are 1 for the exact rotation, nine times


# --- the reference code on a seeded input ------------------------------------------------------


def recipe(offset: float = 0.0) -> Arrays:
    g = np.random.Generator(np.random.PCG64(0))
    z = g.standard_normal((200, 16))
    w1, w2 = g.standard_normal((16, 64)), g.standard_normal((16, 96))
    x = z @ w1 / 4 + 0.5 * g.standard_normal((200, 64))
    y = np.tanh(z @ w2 / 4) + 0.5 * g.standard_normal((200, 96))
    x, y = (x + offset).astype(np.float32), (y + offset).astype(np.float32)
    return tuple(a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))  # type: ignore[return-value]


def published_score(name: str) -> Score | None:
    """The measure that a line of `reference_metrics_golden.json` names."""
    head, _, last = name.rpartition("k=")
    k = int(last) if last.isdigit() else 0
    head = head.strip()
    named: dict[str, Score] = {
        "cka ip": CKA(estimator="biased", epsilon=1e-6),
        "cka rbf sigma=1": CKA(kernel="rbf", bandwidth=1.0, estimator="biased", epsilon=1e-6),
        "unbiased_cka ip": CKA(epsilon=1e-6),
        "unbiased_cka rbf": CKA(kernel="rbf", bandwidth=1.0, epsilon=1e-6),
        "svcca exact (mean singular values of U1^T U2)": SVCCA(standardize=True),
        "fraction of mutual-NN (i,j) that are reciprocal (j,i)": reciprocal_share,
    }
    by_k: dict[str, Callable[[int], Score]] = {
        "mutual_knn": lambda k: MutualKNN(k=k),
        "cycle_knn(x,y)": lambda k: CycleKNN(k=k),
        "cycle_knn(y,x)": lambda k: lambda x, y: CycleKNN(k=k)(y, x),
        "lcs_knn": lambda k: LCSKNN(k=k, normalized=False),
        "edit_distance_knn": lambda k: EditDistanceKNN(k=k),
        "cknna(x,y) unbiased": lambda k: CKNNAReference(k=k),
        "cknna(y,x) unbiased": lambda k: lambda x, y: CKNNAReference(k=k)(y, x),
        "cknna(x,y) biased": lambda k: CKNNAReference(k=k, estimator="biased"),
        "cknna(x,x) unbiased": lambda k: lambda x, _: CKNNAReference(k=k)(x, x),
        "cknna(x,x) biased": lambda k: lambda x, _: CKNNAReference(k=k, estimator="biased")(x, x),
        "cknna paper eq16-18 row-centred": lambda k: CKNNAPaper(k=k),
        "cknna paper eq16-18 double-centred": lambda k: CKNNA(k=k),
    }
    return named.get(name) or (by_k[head](k) if head in by_k else None)


def reciprocal_share(x: np.ndarray, y: np.ndarray) -> float:
    measure = MutualKNN(k=10)
    both = measure.prepare(as_features(x)).matrix * measure.prepare(as_features(y)).matrix
    return float((both * both.T).sum() / both.sum())


def test_published_values_of_the_reference_code(shared):
    published = json.loads((shared / "published/reference_metrics_golden.json").read_text())
    x, y = recipe()
    unmatched = []
    for name, expected in published.items():
        score = published_score(name)
        if score is None:
            unmatched.append(name)
            continue
        # The reference computed in float32; its worst sum here loses five digits.
        assert score(x, y) == pytest.approx(expected, abs=1e-5), name
    assert unmatched == ["svcca seed=0", "svcca seed=1", "svcca seed=2"]  # a random SVD: not one number
    assert len(published) == 57


# k: mutual k-NN, CKNNA reference unbiased, reference biased, paper, double centred
COMMON_OFFSET = {
    5: (0.2770, 0.2420, 0.5327, 0.2972, 0.3072),
    10: (0.3375, 0.3021, 0.4390, 0.3681, 0.3745),
    50: (0.5737, 0.6075, 0.6214, 0.6215, 0.5990),
    199: (1.0000, 0.6794, 1.0621, 0.6171, 0.6801),
}


@pytest.mark.parametrize("k", COMMON_OFFSET)
def test_reference_values_with_a_common_offset(k):
    """The same data plus 2 (mean cosine .77); the biased reference form exceeds 1 at k = n - 1."""
    x, y = recipe(offset=2.0)
    measures = (
        MutualKNN(k=k),
        CKNNAReference(k=k),
        CKNNAReference(k=k, estimator="biased"),
        CKNNAPaper(k=k),
        CKNNA(k=k),
    )
    values = [m(x, y) for m in measures]
    # four printed digits; the reference's float32 and its epsilon move the second column by up to 2e-4
    assert values == pytest.approx(COMMON_OFFSET[k], abs=2e-4)


def test_self_test_of_the_reference_code():
    """Its own check: independent Gaussians (64, 8192), unit rows, k = 10, torch seed 0, to three digits."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(64, 8192, generator=generator) for _ in range(2))
    values = {
        "cycle": CycleKNN()(x, y),
        "mutual": MutualKNN()(x, y),
        "lcs": LCSKNN(normalized=False)(x, y),
        "edit": EditDistanceKNN()(x, y),
        "cka": CKA(estimator="biased", epsilon=1e-6)(unit(x), unit(y)),
        "unbiased": CKA(epsilon=1e-6)(unit(x), unit(y)),
        "cknna": CKNNAReference()(x, y),
    }
    expected = {"cycle": 0.781, "mutual": 0.147, "lcs": 1.094, "edit": 0.019}
    expected |= {"cka": 0.992, "unbiased": -0.025, "cknna": 0.095}
    assert values == pytest.approx(expected, abs=5.1e-4)


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=1)
