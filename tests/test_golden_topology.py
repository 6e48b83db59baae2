"""Topological measures against numbers of outside implementations on fixed inputs, and closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from golden_tools import Golden, off_by
from repalign.measures import IMD, RTD, MTopDiv, PersistenceDistance, RTDLite, TotalPersistenceDifference
from repalign.measures.measure import as_features
from repalign.measures.topology import bars, between_diagrams, cross_barcode, distances, length


class Arrays(Golden):
    """The records on stored arrays; those of a recipe are built by the tests below."""

    def of(self, measure: str) -> list[dict]:
        return [r for r in super().of(measure) if not r["case"].startswith("recipe")]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Arrays(shared)


def rtd(record: dict):
    measure = RTD(form=record["parameters"]["form"])
    both = record["parameters"]["direction"] == "mean of both"
    return measure if both else lambda x, y: measure.directions(x, y)[0]


def rtd_lite(record: dict):
    direction = record["parameters"]["direction"]
    return RTDLite() if direction == "mean of both" else lambda x, y: RTDLite().directions(x, y)[direction != "x to y"]


def total_persistence(record: dict):
    measure = TotalPersistenceDifference(homology=record["parameters"]["homology"])
    return lambda x, y: float(measure.prepare(as_features(x)).values[0])


@pytest.mark.parametrize(
    ("name", "ours", "matched"),
    [
        ("rtd", rtd, 35),
        ("rtd_lite", rtd_lite, 27),
        ("mtopdiv", lambda r: MTopDiv(), 4),
        ("total_persistence", total_persistence, 33),
        ("sliced_wasserstein_h1", lambda r: PersistenceDistance(), 7),
        ("wasserstein_h1", lambda r: PersistenceDistance(metric="wasserstein"), 7),
        ("bottleneck_h1", lambda r: PersistenceDistance(metric="bottleneck"), 7),
        ("imd", lambda r: IMD() if r["parameters"]["trace"] == "exact eigenvalues" else None, 6),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_golden(golden: Golden, name: str, ours, matched: int, monkeypatch):
    """Records of one direction, of the other and of their mean need the same bars, which take nearly all of the time."""
    found: dict[tuple[bytes, int], np.ndarray] = {}

    def once(matrix: np.ndarray, homology: int = 1) -> np.ndarray:
        key = matrix.tobytes(), homology
        if key not in found:
            found[key] = bars(matrix, homology)
        return found[key].copy()

    monkeypatch.setattr("repalign.measures.topology.bars", once)
    golden.check(name, ours, matched)


# --- records whose arrays are built from a recipe ------------------------------------------------------


def scaled(x: np.ndarray) -> np.ndarray:
    found = distances(torch.from_numpy(x))
    assert found.norm > 0
    return found.matrix.numpy()


def uniform() -> tuple[np.ndarray, np.ndarray]:
    state = np.random.RandomState(0)
    return state.rand(50, 3), state.rand(50, 4)


def rings(k: int) -> np.ndarray:
    """Five rings of 100 points, the first k of radius 1."""
    angle = 2 * np.pi * np.arange(100) / 100
    others = [1 + (2 + j) / 8 if j % 2 == 0 else 1 - (1 + j) / 8 for j in range(5 - k)]
    return np.concatenate([r * np.stack([np.cos(angle), np.sin(angle)], axis=1) for r in [1.0] * k + others])


def ring_trees(k: int) -> float:
    """RTD-Lite of rings, from distances by differences."""
    v, w = (cdist(a, a) / np.quantile(cdist(a, a), 0.9) for a in (rings(1), rings(k)))
    # One is added to all edges: the graph would read the zeros of duplicate points as no edge.
    tree = [float(minimum_spanning_tree(m + 1).sum()) - (len(m) - 1) for m in (v, w, np.minimum(v, w))]
    return (tree[0] + tree[1]) / 2 - tree[2]


def circle(n: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def clusters() -> tuple[np.ndarray, np.ndarray]:
    """All at distance 1; two clusters of five at distance 3."""
    one = 1 - np.eye(10)
    two = np.where(np.arange(10)[:, None] // 5 == np.arange(10) // 5, one, 3.0)
    return one, two


def recipe(record: dict) -> float | None:
    """Our value of a record without stored arrays; None where it takes minutes."""
    text, p = record["case"], record["parameters"]
    if "RandomState(0)" in text:
        x, y = uniform()
    elif "rings" in text:
        x, y = rings(1), rings(int(text[-2]))
    elif "distance matrices" in text:
        one, two = clusters()
        return length(cross_barcode(*((two, one) if p["direction"] == "B to A" else (one, two))))
    elif "circle" in text:
        n = int(text.split(":")[1].split()[0])
        found = bars(cdist(circle(n), circle(n)))
        return float(found[np.diff(found, axis=1).argmax(), int(p["output"] == "death")])
    elif "diagrams" in text:
        second = np.zeros((0, 2)) if text.endswith("[]") else np.array([[0.0, 2.0]])
        return between_diagrams(np.array([[0.0, 1.0]]), second, record["measure"].removesuffix("_h1"))
    else:
        return None
    if record["measure"] == "rtd_lite":
        return RTDLite()(x, y)
    if "rings" in text:
        return None
    found = cross_barcode(*((scaled(x), scaled(y)) if p["direction"] == "P to Q" else (scaled(y), scaled(x))))
    lengths = np.diff(found, axis=1)
    how = p.get("bars", "sum")
    return float(lengths.sum() if how == "sum" else (lengths > 0).sum() if how.startswith("number") else lengths.max())


def test_recipes(shared: Path):
    """The rings of RTD (12 records: two minutes) and its thousand points (two minutes) are left out."""
    matched = 0
    for record in Golden(shared).records:
        known = ("rtd", "rtd_lite", "persistence_h1", "sliced_wasserstein_h1", "wasserstein_h1", "bottleneck_h1")
        if record["measure"] in known and record["case"].startswith("recipe"):
            value = recipe(record)
            if value is not None:
                matched += 1
                # The source's distances come from dot products, which on rings costs it up to two of its tolerances.
                allowed = 2 if record["measure"] == "rtd_lite" and "rings" in record["case"] else 1
                assert off_by(value, float(record["value"]), record["tolerance"]) <= allowed, record
    assert matched == 25 and RTDLite()(rings(1), rings(3)) == pytest.approx(ring_trees(3), rel=1e-10)


def test_published_directions_of_rtd_lite_on_rings():
    assert RTDLite().directions(rings(1), rings(2)) == pytest.approx((5.843162, 3.944284), abs=1e-6)


def test_published_means_on_uniform_points():
    x, y = uniform()
    assert RTD()(x, y) == pytest.approx(5.492226593, rel=1e-6)
    assert RTDLite()(x, y) == pytest.approx(2.492057469, abs=1e-9)
    assert [np.quantile(cdist(a, a), 0.9) for a in (x, y)] == pytest.approx([0.972593627, 1.135563999])


@pytest.mark.slow
def test_one_direction_of_the_first_batch_of_the_readme_example():
    """The first of ten batches of 500 of 1,000 uniform points: 605 bars, 34.94390518 with ripser."""
    state = np.random.RandomState(7)
    x, y = state.rand(1000, 2), state.rand(1000, 2)
    order = np.arange(1000)
    state.shuffle(order)
    v, w = scaled(x[order[:500]]), scaled(y[order[:500]])
    found = cross_barcode(v, w)
    assert len(found) == 605
    assert length(found) == pytest.approx(34.94390518, rel=1e-6)


def test_closed_forms():
    one, two = clusters()
    assert cross_barcode(two, one) == pytest.approx(np.array([[1.0, 3.0]]))
    assert not len(cross_barcode(one, two))
    exact = math.sqrt(2) / math.pi
    assert between_diagrams(np.array([[0.0, 1.0]]), np.zeros((0, 2)), "sliced_wasserstein", 2000) == pytest.approx(
        exact, rel=1e-3
    )
