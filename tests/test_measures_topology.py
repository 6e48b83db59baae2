"""Facts about topological measures that the laws of all measures do not cover; bars by hand; traps of other code."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from repalign.errors import RepalignError
from repalign.measures import (
    CKA,
    IMD,
    RTD,
    MTopDiv,
    PersistenceDistance,
    RTDLite,
    TotalPersistenceDifference,
    relative_to_null,
)
from repalign.measures.topology import bars, cross_barcode, distances, length, spanning_tree
from repalign.testing import pair, rotation


def loops(matrix: np.ndarray) -> float:
    """The total length of one-dimensional bars by the textbook reduction of the boundary matrix."""
    n = len(matrix)
    simplices = [(0.0, (i,)) for i in range(n)]
    simplices += [(matrix[e], e) for e in itertools.combinations(range(n), 2)]
    simplices += [(max(matrix[a, b], matrix[a, c], matrix[b, c]), (a, b, c)) for a, b, c in itertools.combinations(range(n), 3)]
    simplices.sort(key=lambda s: (s[0], len(s[1]), s[1]))
    place = {s: i for i, (_, s) in enumerate(simplices)}
    columns: dict[int, set[int]] = {}
    total = 0.0
    for value, simplex in simplices:
        if len(simplex) == 1:
            continue
        column = {place[f] for f in itertools.combinations(simplex, len(simplex) - 1)}
        while column and max(column) in columns:
            column ^= columns[max(column)]
        if column:
            low = max(column)
            columns[low] = column
            if len(simplex) == 3:
                total += value - simplices[low][0]
    return total


@pytest.mark.parametrize("form", ["min", "max"])
@pytest.mark.parametrize("seed", range(3))
def test_bars_of_the_published_matrix_by_hand(seed: int, form: str):
    """The whole 2n x 2n matrix, no triangle of it left out."""
    x, y = pair(seed, n=9)
    v, w = (distances(torch.from_numpy(a)).matrix.numpy() for a in (x, y))
    found = []
    for a, b in ((v, w), (w, v)):
        cross, own = (a, np.minimum(a, b)) if form == "min" else (np.maximum(a, b), b)
        found.append(loops(np.block([[0 * a, cross], [cross, own]])))
    assert RTD(form=form).directions(x, y) == pytest.approx(tuple(found), rel=1e-5, abs=1e-6)
    assert sum(found) > 0.1


def test_persistence_of_a_cloud_by_hand():
    x, _ = pair(4, n=16, dx=2)
    matrix = distances(torch.from_numpy(x)).matrix.numpy()
    assert length(bars(matrix)) == pytest.approx(loops(matrix), rel=1e-5) and loops(matrix) > 0.01


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_divergences(seed: int):
    """Per direction RTD is at least RTD-Lite, and the max form at least the min form; directions differ."""
    x, y = pair(seed)
    low, high, lite = RTD().directions(x, y), RTD(form="max").directions(x, y), RTDLite().directions(x, y)
    assert all(h >= m - 1e-5 and m >= t - 1e-5 for h, m, t in zip(high, low, lite, strict=True))
    assert abs(low[0] - low[1]) > 0.1
    assert sum(low) / 2 == pytest.approx(RTD()(x, y)) and sum(lite) / 2 == pytest.approx(RTDLite()(x, y))


@pytest.mark.parametrize("measure", [RTD(), RTDLite()], ids=repr)
def test_a_rotated_scaled_shifted_space_is_at_zero(measure):
    x, _ = pair(5)
    assert measure(x, 3.7 * x @ rotation(x.shape[1]) + 5) == pytest.approx(0, abs=1e-5)


def test_a_tree_keeps_edges_of_length_zero():
    """A sparse graph reads the distance 0 of duplicates as no edge, and its tree is too heavy."""
    x = np.random.default_rng(0).standard_normal((60, 5))
    x[1] = x[0]
    matrix = cdist(x, x)
    assert spanning_tree(matrix) == pytest.approx(spanning_tree(matrix[1:, 1:]))
    assert minimum_spanning_tree(matrix).sum() > spanning_tree(matrix) + 0.5


def test_duplicates_are_at_distance_zero_in_float32():
    x = np.random.default_rng(1).standard_normal((50, 30)).astype(np.float32) + 100
    x[7] = x[3]
    matrix = distances(torch.from_numpy(x)).matrix.numpy()
    assert matrix[3, 7] == 0 and np.count_nonzero(matrix == 0) == 52


def test_the_quantile_is_over_all_entries_with_the_diagonal():
    x, _ = pair(6)
    assert np.quantile(distances(torch.from_numpy(x)).matrix.numpy(), 0.9) == pytest.approx(1)


@pytest.mark.slow
def test_rtd_lite_has_no_limit_at_4096_rows():
    x = np.random.default_rng(2).standard_normal((4200, 3))
    assert RTDLite()(x, 2 * x) == pytest.approx(0, abs=1e-6)


def test_sets_of_rows_are_drawn_only_where_there_are_more():
    x, y = pair(7)
    assert RTD(rows=40, trials=1)(x, y) == RTD(rows=40, trials=10, seed=5)(x, y) == RTD()(x, y)
    some = {RTD(rows=15, trials=2, seed=s)(x, y) for s in range(3)}
    assert len(some) == 3 and max(some) < RTD()(x, y)  # it grows with the rows
    assert RTD(rows=15, trials=2)(x, x) == pytest.approx(0, abs=1e-5)


def test_raw_values_grow_with_n_and_ratios_do_not():
    def independent(n: int):
        rng = np.random.default_rng(3)
        return rng.random((n, 10)), rng.random((n, 10))

    few, many = (relative_to_null(RTDLite(), *independent(n)) for n in (50, 200))
    assert many.statistic > 3 * few.statistic
    assert few.ratio == pytest.approx(1, abs=0.1) and many.ratio == pytest.approx(1, abs=0.1)
    assert few.pvalue > 0.05


def test_the_ratio_falls_from_unpaired_to_same():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((200, 10))
    ratios = [
        relative_to_null(RTDLite(), x, x @ rotation(10) + s * rng.standard_normal(x.shape)).ratio
        for s in (0, 0.3, 1, 3, 100)
    ]
    assert ratios[0] == pytest.approx(0, abs=1e-6) and ratios[:4] == sorted(ratios[:4])
    assert 0.3 < ratios[1] < 0.7 < ratios[2] and ratios[-1] == pytest.approx(1, abs=0.08)


def test_relative_to_null_takes_similarities_too_and_refuses_unpaired_measures():
    x, y = pair(8)
    found = relative_to_null(CKA(), x, y, n_draws=39, seed=2)
    assert found.pvalue == 1 / 40 and found.statistic == pytest.approx(CKA()(x, y), rel=1e-12)
    assert found == relative_to_null(CKA(), x, y, n_draws=39, seed=2)
    with pytest.raises(RepalignError, match="does not look at the pairing"):
        relative_to_null(IMD(), x, y)
    with pytest.raises(RepalignError, match="different numbers of rows"):
        relative_to_null(RTDLite(), x, y[:-1])
    assert math.isnan(relative_to_null(RTDLite(), np.ones((20, 2)), y[:20]).pvalue)


def test_divergence_of_clouds_needs_no_pairs():
    x, y = pair(9, dy=7)
    measure = MTopDiv()
    assert measure(x, y[::-1]) == pytest.approx(measure(x, y)) and measure(x, y[:30]) > 0
    assert measure(x, x) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("measure", [PersistenceDistance(max_n=30), MTopDiv(max_n=30)], ids=repr)
def test_too_many_rows_are_refused_not_sampled(measure):
    x, _ = pair(10)
    with pytest.raises(RepalignError, match=r"too many stimuli(.|\n)*n <= 30(.|\n)*n = 40"):
        measure(x, x)


@pytest.mark.parametrize("package", ["ripser", "persim"])
def test_a_missing_package_is_named_with_the_remedy(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    x, y = pair(11)
    told = rf"topological measures: {package} is not installed(.|\n)*pip install 'repalign\[topology\]'"
    with pytest.raises(RepalignError, match=told):
        PersistenceDistance()(x, y)
    assert RTDLite()(x, y) > 0 and TotalPersistenceDifference()(x, y) > 0


def test_homology_is_checked():
    for cls, value in itertools.product((PersistenceDistance, TotalPersistenceDifference), (2, True)):
        with pytest.raises(RepalignError, match="homology is neither 0 nor 1"):
            cls(homology=value)


def test_total_persistence_of_components_is_the_weight_of_the_tree():
    x, y = pair(12)
    trees = [length(bars(distances(torch.from_numpy(a)).matrix.numpy(), 0)) for a in (x, y)]
    assert TotalPersistenceDifference()(x, y) == pytest.approx(abs(trees[0] - trees[1]), rel=1e-5)


def test_one_bar_only_from_the_two_clusters():
    one = 1 - np.eye(6)
    two = np.where(np.arange(6)[:, None] // 2 == np.arange(6) // 2, one, 2.5)
    assert length(cross_barcode(two, one)) == pytest.approx(2 * 1.5)  # (clusters - 1) (between - within)
