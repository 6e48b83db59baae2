"""Representational similarity analysis: identities, ties, awkward rows, and what peers get wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, rankdata, spearmanr

from repalign.errors import RepalignError
from repalign.measures import CKA, RSA, RSAKendall, RSMNormDifference, SigmoidRSA, TopologicalRSA
from repalign.measures.numerics.distances import (
    DISSIMILARITIES,
    average_ranks,
    dense_ranks,
    dissimilarities,
    squared_distances,
)
from repalign.measures.numerics.rows import centred
from repalign.measures.rdm import COMPARISONS, geo_topological_transform, geodesic_distances
from repalign.testing import pair

X, Y = pair(31)


def labels(n: int = 40, classes: int = 5) -> np.ndarray:
    """One-hot classes in an awkward unit and with an offset: two dissimilarities, at any rounding."""
    return 0.1 * np.eye(classes)[np.arange(n) % classes] + 0.7


# --- identities -----------------------------------------------------------------------------------


def test_whitened_cosine_of_squared_distances_is_biased_linear_cka():
    measure = RSA(dissimilarity="sqeuclidean", comparison="whitened_cosine")
    assert measure(X, Y) == pytest.approx(CKA(estimator="biased")(X, Y), abs=1e-13)


def test_spearman_sees_the_order_alone():
    scores = [RSA(dissimilarity=d)(X, Y) for d in ("euclidean", "sqeuclidean", "gaussian")]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-13)


@pytest.mark.parametrize("dissimilarity", DISSIMILARITIES)
def test_topological_rsa_of_everything_is_spearman(dissimilarity):
    spearman = RSA(dissimilarity=dissimilarity)(X, Y)
    assert TopologicalRSA(0.0, 1.0, dissimilarity)(X, Y) == pytest.approx(spearman, abs=1e-13)
    assert SigmoidRSA(1e-4, 0.5, dissimilarity)(X, Y) == pytest.approx(spearman, abs=1e-7)
    assert TopologicalRSA(0.0, 1.0, dissimilarity, ranked=False)(X, Y) == pytest.approx(
        RSA(dissimilarity, "pearson")(X, Y), abs=1e-12
    )


def test_all_pairs_are_used_at_any_n():
    """A peer draws 8,192 pairs from the global random state above n = 181."""
    x, y = pair(3, n=400)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    assert RSA("euclidean")(x, y) == pytest.approx(spearmanr(pdist(x), pdist(y)).statistic, abs=1e-12)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


# --- ties -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dissimilarity", ["euclidean", "sqeuclidean", "gaussian", "cosine", "correlation", "mahalanobis"])
def test_classes_as_a_space_have_two_dissimilarities(dissimilarity):
    """Rounding must not part what is equal: half of the model's pairs would get ranks at random."""
    model = labels()
    apart = pdist(np.eye(5)[np.arange(40) % 5]) > 0
    v = dissimilarities(torch.from_numpy(Y), dissimilarity)
    w = squareform(v.matrix.numpy(), checks=False)
    assert RSA(dissimilarity)(model, Y) == pytest.approx(spearmanr(apart, w).statistic, abs=1e-12)
    assert RSAKendall(dissimilarity, tau="b")(model, Y) == pytest.approx(kendalltau(apart, w).statistic, abs=1e-12)
    product = np.sign(apart[:, None] * 1.0 - apart[None]) * np.sign(w[:, None] - w[None])
    assert RSAKendall(dissimilarity)(model, Y) == pytest.approx(product.sum() / len(w) / (len(w) - 1), abs=1e-12)


def test_rho_a_is_the_mean_of_rho_over_all_ways_to_break_ties():
    x, y = labels(4, 2), np.array([[0.0], [5], [1], [7]])
    v, w = pdist(x).round(9), rankdata(pdist(y))
    broken = {tuple(np.lexsort((order, v)).argsort()) for order in itertools.permutations(range(6))}
    rho = np.mean([spearmanr(ranks, w).statistic for ranks in broken])
    assert RSA("euclidean", "rho_a")(x, y) == pytest.approx(rho, abs=1e-12)
    assert abs(rho) < abs(RSA("euclidean", "spearman")(x, y))


def test_ranks_of_tied_numbers_are_those_of_scipy():
    values = np.random.default_rng(0).integers(0, 30, 500) * 0.1
    jitter = values * (1 + 1e-13 * np.random.default_rng(1).standard_normal(500))
    assert np.array_equal(average_ranks(jitter), rankdata(values))
    assert np.array_equal(dense_ranks(jitter), rankdata(values, "dense") - 1)
    assert np.array_equal(average_ranks(np.array([3.0, 3.0 + 1e-9, 1.0])), [2, 3, 1])


# --- distances keep their digits ------------------------------------------------------------------


def clustered(share_near: float) -> np.ndarray:
    """Pairs far apart, and clusters of radius 1e-7 around 40 points."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((40, 6))
    near = rng.random(300) < share_near
    which = np.where(near, rng.integers(0, 2, 300), rng.integers(0, 40, 300))
    return centres[which] + 1e-7 * rng.standard_normal((300, 6))


@pytest.mark.parametrize("share_near", [0.0, 0.8])  # few pairs by their differences, or all
def test_near_duplicates_keep_their_digits_and_duplicates_are_at_distance_0(share_near):
    """From products alone a distance of 1e-7 has an error of 1e-8, and that of a duplicate is up to 1e-8."""
    x = clustered(share_near)
    x[7] = x[3]
    features, unit, *_ = centred(torch.from_numpy(x))
    squared = squared_distances(features)
    found = squared.sqrt().numpy() * unit
    exact = squareform(pdist(x))
    assert np.abs(found - exact).max() < 1e-14 * np.abs(x).max() * 40
    off = exact > 0
    assert (np.abs(found - exact)[off] / exact[off]).max() < 1e-8  # the rounding of the rows themselves
    assert found[3, 7] == found[7, 3] == 0 and not found.diagonal().any()
    assert np.allclose(found, found.T, rtol=1e-12, atol=0)
    others = np.delete(np.arange(300), [3, 7])
    assert np.allclose(found[3, others], found[7, others], rtol=1e-12, atol=0)  # tied, for a rank


def test_a_shift_of_every_row_costs_correlation_no_digits():
    shifted = X + 1e8 * np.random.default_rng(0).standard_normal((40, 1))
    assert RSA()(shifted, Y) == pytest.approx(RSA()(X, Y), abs=1e-6)


# --- rows without a direction, spaces without geometry --------------------------------------------


@pytest.mark.parametrize("dissimilarity, row", [("correlation", 0.3), ("correlation", 0.0), ("cosine", 0.0)])
def test_a_row_without_a_direction_is_at_1_from_every_other(dissimilarity, row):
    """rsatoolbox raises, thingsvision returns nan."""
    x = X.copy()
    x[4] = x[9] = row
    matrix = dissimilarities(torch.from_numpy(x), dissimilarity).matrix.numpy()
    assert np.array_equal(matrix[4], np.arange(40) != 4) and np.array_equal(matrix[:, 9], np.arange(40) != 9)
    others = np.delete(np.arange(40), [4, 9])
    clean = squareform(pdist(x[others], dissimilarity))
    assert np.allclose(matrix[np.ix_(others, others)], clean, rtol=0, atol=1e-13)
    assert math.isfinite(RSA(dissimilarity)(x, Y))


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_equidistant_stimuli_have_no_correlation(comparison):
    value = RSA("euclidean", comparison)(np.eye(40) * 0.3, Y)
    assert math.isnan(value) == (comparison not in ("cosine", "whitened_cosine"))
    assert math.isnan(RSAKendall("euclidean")(np.eye(40), Y))
    assert math.isnan(TopologicalRSA()(np.eye(40), Y)) and math.isnan(SigmoidRSA()(np.eye(40), Y))


def test_mahalanobis_needs_more_stimuli_than_dimensions():
    """Whitened, n points in n - 1 dimensions are the corners of a regular simplex."""
    measure = RSA("mahalanobis", "pearson")
    rng = np.random.default_rng(0)
    assert math.isnan(measure(rng.standard_normal((40, 39)), Y)) and math.isnan(measure(rng.standard_normal((40, 90)), Y))
    narrow = rng.standard_normal((40, 5))
    wide = narrow @ rng.standard_normal((5, 60))  # of rank 5: the same whitened stimuli
    assert measure(wide, Y) == pytest.approx(measure(narrow, Y), abs=1e-10)


# --- topology -------------------------------------------------------------------------------------


def test_edges_of_length_0_are_edges():
    """A graph library loses the closest pair: its path, of two other edges, then has .75 instead of 0."""
    lengths = squareform([0.0, 0.25, 0.9, 0.5, 0.9, 0.9])  # 0-1, 0-2, 0-3, 1-2, 1-3, 2-3
    expected = squareform([0.0, 0.25, 0.9, 0.25, 0.9, 0.9])
    assert np.allclose(geodesic_distances(lengths), expected, rtol=0, atol=1e-15)


def test_stimuli_that_no_path_joins_are_one_cut_edge_further_apart():
    lengths = squareform([0.2, 1.0, 1.0, 1.0, 1.0, 0.7])  # 0-1 and 2-3, nothing between
    expected = squareform([0.2, 1.7, 1.7, 1.7, 1.7, 0.7])
    assert np.allclose(geodesic_distances(lengths), expected, rtol=0, atol=1e-15)


def test_the_transform_leaves_its_input_alone():
    """rsatoolbox overwrites the dissimilarities that it is given."""
    values = np.array([4.0, 1, 3, 2])
    assert geo_topological_transform(values, 0, 1, ranked=False) == pytest.approx([1, 0, 2 / 3, 1 / 3])
    assert np.array_equal(values, [4, 1, 3, 2])


def test_topology_forgets_geometry_and_the_other_way_round():
    """Distances stretched beyond the upper threshold change nothing with ranked=False as long as the quantiles stay."""
    v = np.sort(np.random.default_rng(0).random(100))
    far = np.where(v > np.quantile(v, 0.9), v**2 + 5, v)
    cut = [geo_topological_transform(a, 0.2, 0.8, ranked=False) for a in (v, far)]
    assert np.allclose(*cut, rtol=0, atol=1e-15)


# --- norms ----------------------------------------------------------------------------------------


def test_the_norm_of_the_difference_is_a_distance_in_the_unit_of_the_features():
    z = np.random.default_rng(8).standard_normal((40, 4))
    for norm in ("spectral", "frobenius"):
        d = RSMNormDifference(norm=norm)
        assert d(2 * X, 2 * Y) == pytest.approx(2 * d(X, Y), rel=1e-12)
        assert d(X, Y) <= d(X, z) + d(z, Y) and d(X, X) == 0
    assert RSMNormDifference()(X, Y) < RSMNormDifference(norm="frobenius")(X, Y)


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RSA("euclid"), "unknown dissimilarity 'euclid'(.|\n)*did you mean 'euclidean'"),
        (lambda: RSA(comparison="kendall"), "unknown comparison 'kendall'"),
        (lambda: RSAKendall(tau="c"), "unknown tau 'c'\n  expected: a, b"),
        (lambda: RSMNormDifference(norm="nuclear"), "unknown norm 'nuclear'"),
        (lambda: TopologicalRSA(0.8, 0.2), "expected: 0 <= lower < upper <= 1\n  got: lower=0.8, upper=0.2"),
        (lambda: TopologicalRSA(0.5, 0.5), "the levels of the quantiles are out of order"),
        (lambda: TopologicalRSA(0.2, 1.1), "upper is not a share\n  expected: 0 <= upper <= 1"),
        (lambda: TopologicalRSA(geodesic=1), "geodesic is neither True nor False"),
        (lambda: SigmoidRSA(alpha=0), "alpha is out of range\n  expected: 0 < alpha"),
        (lambda: SigmoidRSA(beta=2.0), "beta is out of range\n  expected: 0 <= beta <= 1\n  got: 2.0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(RepalignError, match=message):
        make()
