"""Shared neighbours, their ranks, several k, and neighbours by degrees: identities, limits and awkward inputs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.manifold._utils import _binary_search_perplexity

from repalign import null as nulls
from repalign.errors import RepalignError
from repalign.measures import (
    InformationImbalance,
    JaccardKNN,
    JointRankJaccard,
    MultiScaleKNN,
    MutualKNN,
    RankSimilarity,
    SecondOrderCosine,
    SoftKNN,
    parse_measure,
)
from repalign.measures.measure import Bilinear, as_features
from repalign.measures.soft_neighbors import entropic_affinities
from repalign.null.cyclic import units
from repalign.testing import pair

BED = Path(__file__).resolve().parents[2] / "shared/bed"


def test_jaccard_is_a_function_of_the_overlap_row_by_row():
    """With one neighbour each both are the same share; with all neighbours both are 1."""
    x, y = pair(30, n=60)
    assert JaccardKNN(k=1)(x, y) == MutualKNN(k=1)(x, y)
    assert JaccardKNN(k=59)(x, y) == 1.0
    overlap = MutualKNN(k=7)(x, y)
    assert overlap / 2 < JaccardKNN(k=7)(x, y) < overlap


def test_rank_similarity_of_lists_by_hand():
    """Points on a line. Row 0 has the lists (1, 2) and (2, 1): (1/2 + ... ) / (1 + 1/2)."""
    x = np.array([[0.0], [1.0], [2.1], [50.0]])
    y = np.array([[0.0], [2.1], [1.0], [50.0]])  # 1 and 2 change places
    # ranks (1, 2) and (2, 1), each 2 / (2 * 3); rows 1 and 2: (0, 2) or (2, 0) against the other; row 3: (2, 1), (1, 2).
    swapped = 2 * (2 / (2 * 3)) / 1.5
    lists_x, lists_y = ([(1, 2), (0, 2), (1, 0), (2, 1)], [(2, 1), (2, 0), (0, 1), (1, 2)])
    expected = np.mean([1.0 if a == b else swapped for a, b in zip(lists_x, lists_y, strict=True)])
    assert RankSimilarity(k=2, similarity="euclidean")(x, y) == pytest.approx(expected, abs=1e-15)
    assert JointRankJaccard(k=2, similarity="euclidean")(x, y) == pytest.approx(expected, abs=1e-15)


def test_the_joint_measure_is_the_product_row_by_row_and_not_of_the_means():
    x, y = pair(31, n=80)
    product = JaccardKNN(k=6)(x, y) * RankSimilarity(k=6)(x, y)
    assert abs(JointRankJaccard(k=6)(x, y) - product) > 1e-3


def test_many_scales_are_mutual_knn_at_each():
    x, y = pair(32, n=90)
    measure = MultiScaleKNN(k=(20, 3, 7, 7))
    assert measure.k == (3, 7, 20)
    curve = measure.curve(x, y)
    assert curve == {k: pytest.approx(MutualKNN(k=k)(x, y), abs=1e-12) for k in (3, 7, 20)}
    assert measure(x, y) == pytest.approx(np.mean(list(curve.values())), abs=1e-12)
    assert MultiScaleKNN(k=5)(x, y) == pytest.approx(MutualKNN(k=5)(x, y), abs=1e-12)
    assert parse_measure(repr(measure)) == measure == MultiScaleKNN(k=[7, 3, 20])


def test_many_scales_are_refused_without_a_whole_number():
    with pytest.raises(RepalignError, match="no k\n  expected: one whole number or several"):
        MultiScaleKNN(k=())
    with pytest.raises(RepalignError, match=r"k is not a positive whole number\n  expected: k >= 1\n  got: 2\.5"):
        MultiScaleKNN(k=(1, 2.5))
    with pytest.raises(RepalignError, match="n >= 8"):
        MultiScaleKNN(k=(2, 7))(*pair(0, n=7))


def test_second_order_cosine_of_repeated_rows():
    """Rows whose neighbours are all copies are at distance 0 in both spaces: alike; in one space alone: not."""
    rng = np.random.default_rng(0)
    groups = np.repeat(rng.standard_normal((5, 4)), 4, axis=0)
    measure = SecondOrderCosine(k=3)
    assert measure(groups, np.repeat(rng.standard_normal((5, 6)), 4, axis=0)) == pytest.approx(1.0, abs=1e-12)
    near = np.repeat(rng.standard_normal((5, 6)), 4, axis=0) + 1e-3 * rng.standard_normal((20, 6))
    assert measure(groups, near) == 0.0
    both = groups.astype(np.float32), np.repeat(rng.standard_normal((5, 6)), 4, axis=0).astype(np.float32)
    assert measure(*both) == pytest.approx(1.0, abs=1e-6)


# --- neighbours by degrees ------------------------------------------------------------------------


def test_affinities_are_those_of_t_sne():
    """scikit-learn's search works on squared distances in float32 and stops at 1e-5 of the entropy."""
    x = np.random.default_rng(1).standard_normal((70, 5))
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    theirs = _binary_search_perplexity(squared.astype(np.float32), 12.0, 0)
    similarity = torch.from_numpy(-squared / 2).fill_diagonal_(-np.inf)
    ours = entropic_affinities(similarity, 12.0, torch.zeros(70, dtype=torch.float64)).numpy()
    assert np.abs(ours - theirs).max() < 1e-4
    entropy = -(ours * np.log(np.where(ours > 0, ours, 1))).sum(axis=1)
    assert np.exp(entropy) == pytest.approx(np.full(70, 12.0), rel=1e-11)
    assert ours.sum(axis=1) == pytest.approx(np.ones(70), abs=1e-12)


@pytest.mark.parametrize("perplexity", [1.0001, 2.0, 97.0, 98.9])
def test_every_perplexity_is_reached(perplexity: float):
    """From nearly one neighbour to nearly all, with scales from 1e-6 to 1e6 among the rows."""
    rng = np.random.default_rng(2)
    s = torch.from_numpy(rng.standard_normal((40, 100)) ** 3 * 10.0 ** rng.uniform(-6, 6, (40, 1)))
    s[:, 0] = -torch.inf
    p = entropic_affinities(s, perplexity, torch.zeros(40, dtype=torch.float64)).numpy()
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)
    assert entropy == pytest.approx(np.full(40, np.log(perplexity)), abs=1e-9)
    assert (p[:, 0] == 0).all()


def test_more_ties_than_the_perplexity_share_alike():
    s = torch.tensor([[-torch.inf, 3.0, 3.0, 3.0, 1.0, 0.0]], dtype=torch.float64)
    p = entropic_affinities(s, 2.0, torch.zeros(1, dtype=torch.float64))
    assert p.tolist() == [[0.0, 1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]]


def test_duplicates_and_zero_rows_have_soft_neighbours():
    x, y = pair(33, n=60)
    x[10:20] = x[0]
    x[30] = 0
    value = SoftKNN(perplexity=5)(x, y)
    assert 0 < value < 1
    assert SoftKNN(perplexity=5)(x, x) == pytest.approx(1.0, abs=1e-12)


def test_soft_neighbours_of_unrelated_spaces_overlap_by_chance():
    """About the mean of p times the mean of q: far below the score of related spaces, and the null says so."""
    measure = SoftKNN(perplexity=8)
    assert isinstance(measure, Bilinear)
    rng = np.random.default_rng(3)
    x, noise = rng.standard_normal((2, 150, 6))
    null = nulls.Permutations(99)
    related, unrelated = (
        null.judge(measure, *(null.prepare(measure, [measure.prepare(as_features(a))]) for a in (x, z))).cells
        for z in (x + 0.5 * noise, noise)
    )
    assert related.pvalue[0, 0] == 0.01 and related.statistic[0, 0] > 3 * unrelated.statistic[0, 0]
    assert unrelated.pvalue[0, 0] > 0.05


@pytest.mark.parametrize("perplexity", [1, 0.5, float("inf"), True, "10"])
def test_a_perplexity_is_a_number_above_one(perplexity):
    with pytest.raises(RepalignError, match="perplexity is not a number above 1"):
        SoftKNN(perplexity=perplexity)


# --- information imbalance ------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "there", "back"), [(1, 0.2120, 0.7168), (10, 0.37007, 0.716045)])
def test_imbalance_is_that_of_dadapy(k, there, back):
    """DADApy 0.3.4 on 200 points in three dimensions, and their first column alone."""
    x = np.random.default_rng(0).standard_normal((200, 3))
    measure = InformationImbalance(k=k)
    assert measure(x, x[:, :1]) == pytest.approx(there, abs=1e-6)
    assert measure(x[:, :1], x) == pytest.approx(back, abs=1e-6)
    assert measure(x, x) == pytest.approx((k + 1) / 200, abs=1e-6)


@pytest.mark.skipif(not BED.is_dir(), reason="the test bed is not beside the project")
def test_imbalance_of_the_bed():
    small, large, words = (
        load_file(BED / f"features/{file}.safetensors")[layer]
        for file, layer in (
            ("mobilenet_v1_025", "L5_AvgPool_1a"), ("mobilenet_v1_075", "L5_AvgPool_1a"), ("glove50_captions", "L1_captions5_mean")
        )
    )  # fmt: skip
    measure = InformationImbalance()
    assert [measure(small, large), measure(large, small)] == pytest.approx([0.079222, 0.057500], abs=2e-6)
    assert [measure(large, words), measure(words, large)] == pytest.approx([0.564946, 0.470936], abs=2e-6)


def test_chance_of_the_imbalance_is_one_whatever_the_hubs():
    """The mean is exact, in both directions, and so is the spread: all 720 relabellings of six points say so."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((6, 2)), rng.standard_normal((6, 40)) + 3 * rng.standard_normal((6, 1))
    measure, null = InformationImbalance(k=2), nulls.Moments()
    for one, other in ((x, y), (y, x)):
        a, b = (null.prepare(measure, [measure.prepare(as_features(side))]) for side in (one, other))
        mean, sd, skewness = (float(m[0, 0]) for m in null.moments(measure, a, b))
        orders = map(torch.tensor, itertools.permutations(range(6)))
        every = np.array([measure.compare(a.states[0], b.states[0].permute(p)) for p in orders])
        assert -mean == pytest.approx(1, abs=1e-6) and every.mean() == pytest.approx(1, abs=1e-6)
        assert sd == pytest.approx(every.std(), rel=1e-4)
        assert -skewness == pytest.approx(((every - 1) ** 3).mean() / every.std() ** 3, abs=1e-3)


def test_cyclic_draws_of_the_imbalance_are_its_scores_of_shifted_rows():
    x, y = pair(33, n=24)
    measure, null = InformationImbalance(k=3), nulls.Cyclic(seed=4, relabellings=2)
    a, b = (null.prepare(measure, [measure.prepare(as_features(side))]) for side in (x, y))
    observed, draws = null.scored(measure, a, b)
    assert -observed[0, 0] == pytest.approx(measure(x, y), abs=1e-6)
    order, step = null.order(24), units(24, 2)[1]
    inverse = np.argsort(order)
    maps = [(h * np.arange(24) + s) % 24 for h in (1, step) for s in range(24)]
    by_hand = sorted(measure(x, y[order[m][inverse]]) for m in maps)
    assert sorted([-observed[0, 0], *-draws[:, 0, 0]]) == pytest.approx(by_hand, abs=1e-5)
