"""One shared space: gaps, cones, retrieval and separability against closed forms, and the shift of two modalities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from repalign import null as nulls
from repalign.errors import RepalignError
from repalign.measures import (
    ConeEffect,
    ModalityGap,
    ModalitySeparability,
    PairedCosine,
    RetrievalRecall,
    cone_effect,
    shift_curve,
)
from repalign.measures.measure import as_features


def clip_like(n: int = 80, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Paired rows around two different centres."""
    rng = np.random.default_rng(seed)
    z, x, y = rng.standard_normal((3, n, d))
    centre = np.zeros(d)
    centre[0] = 3
    return z + 0.3 * x + centre, z + 0.3 * y - 0.5 * centre


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_a_wide_random_layer_narrows_the_cone_as_its_closed_form_says():
    """rho' = (sqrt(1 - rho^2) + (pi - acos rho) rho) / pi through a bias-free ReLU layer, from orthogonal inputs."""
    rng = np.random.default_rng(0)
    x, rho = np.eye(24), 0.0
    assert cone_effect(x) == 0.0
    for _ in range(3):
        x = np.maximum(x @ (rng.standard_normal((x.shape[1], 2048)) * math.sqrt(2 / x.shape[1])), 0)
        rho = (math.sqrt(1 - rho**2) + (math.pi - math.acos(rho)) * rho) / math.pi
        assert cone_effect(x) == pytest.approx(rho, abs=0.02)
    assert rho == pytest.approx(0.604826, abs=1e-6)


def test_a_zero_row_has_no_cosine_with_itself():
    x = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert cone_effect(x) == pytest.approx(2 / 6)  # one pair of six ordered ones has cosine 1, twice
    assert ConeEffect()(x, [[1.0], [2.0]]) == pytest.approx(1 - 2 / 6)
    with pytest.raises(RepalignError, match="too few stimuli"):
        cone_effect([[1.0, 2.0]])


def test_the_gap_splits_paired_distances():
    """2 - 2 s = mean |x_i - y_i|^2 = |gap|^2 + the spread of the differences, on unit rows."""
    x, y = clip_like()
    difference = unit(x) - unit(y)
    spread = ((difference - difference.mean(axis=0)) ** 2).sum(axis=1).mean()
    assert 2 - 2 * PairedCosine()(x, y) == pytest.approx(ModalityGap()(x, y) ** 2 + spread, abs=1e-12)


def test_shifting_closes_the_gap_and_opens_it_again():
    x, y = clip_like()
    curve = shift_curve(x, y, np.linspace(-1, 3, 17))
    assert (np.diff(curve.gaps) < 0).all() and curve.gaps[0] > 0 > curve.gaps[-1]
    assert curve.gaps[4] == pytest.approx(ModalityGap()(x, y), abs=1e-12) and curve.deltas[4] == 0
    swapped = shift_curve(y, x, [0.25])
    assert swapped.gaps[0] == pytest.approx(shift_curve(x, y, [0.25]).gaps[0], abs=1e-12)


def test_the_loss_is_that_of_clip():
    """Cross-entropy of rows and of columns, written out; at the default shift of 0."""
    x, y = clip_like()
    logits = unit(x) @ unit(y).T / 0.07
    rows, columns = (-np.diag(log_softmax(logits, axis=a)).mean() for a in (1, 0))
    assert shift_curve(x, y, [0.0], temperature=0.07).losses[0] == pytest.approx((rows + columns) / 2, abs=1e-12)
    uniform = shift_curve(x, y, [0.0], temperature=1e9).losses[0]
    assert uniform == pytest.approx(math.log(len(x)), abs=1e-6)


def test_the_temperature_decides_whether_the_gap_pays(shared):
    """At 0.01 the loss of the trained model is least near the gap that it has; at 1 it falls as the gap closes."""
    with np.load(shared / "golden/dev/inputs/supplement_clip.npz") as f:
        x, y = f["x"], f["y"]
    deltas = np.array([-0.5, -0.25, 0.0, 0.25, 0.5, 0.75])
    cold, warm = (shift_curve(x, y, deltas, temperature=t).losses for t in (0.01, 1.0))
    assert abs(deltas[cold.argmin()]) <= 0.25
    assert warm.argmin() >= 4 and (np.diff(warm[:5]) < 0).all()


def test_a_shift_needs_a_gap_pairs_and_one_space():
    x, y = clip_like()
    with pytest.raises(RepalignError, match="there is no gap to move along"):
        shift_curve(x, x, [0.0])
    with pytest.raises(RepalignError, match="one space"):
        shift_curve(x, y[:, :5], [0.0])
    with pytest.raises(RepalignError, match="different numbers of rows"):
        shift_curve(x, y[:-1], [0.0])
    with pytest.raises(RepalignError, match="temperature is not above 0"):
        shift_curve(x, y, [0.0], temperature=0.0)


# --- retrieval ------------------------------------------------------------------------------------


def test_ties_count_with_the_chance_of_a_place():
    """A gallery of one row and its copies: k / n for every query, in exact arithmetic, whatever the order."""
    gallery = np.tile([[1.0, 2.0]], (6, 1))
    gallery[5] = [-1.0, 1.0]
    queries = np.random.default_rng(0).standard_normal((6, 2)) * 0.01 + [1.0, 2.0]
    # Five tie for the first places, the sixth is last: five hits of chance 2/5, and none.
    assert RetrievalRecall(k=2)(queries, gallery) == pytest.approx(5 * 0.4 / 6, abs=1e-12)
    assert RetrievalRecall(k=5)(queries, gallery) == pytest.approx(5 / 6, abs=1e-12)
    assert RetrievalRecall(k=6)(queries, gallery) == 1.0
    p = np.random.default_rng(1).permutation(6)
    assert RetrievalRecall(k=2)(queries[p], gallery[p]) == pytest.approx(5 * 0.4 / 6, abs=1e-12)


def test_draws_of_a_null_are_scores_of_relabelled_arrays():
    """One product serves all relabellings; they must be what one by one would give, in every direction."""
    x, y = clip_like(40)
    every = np.stack([np.random.default_rng(s).permutation(40) for s in range(7)])
    for direction in ("x to y", "y to x", "both"):
        measure = RetrievalRecall(k=3, direction=direction)
        a, b = ([measure.prepare(as_features(z)) for z in (s, s[:, ::-1].copy())] for s in (x, y))
        # A side that has been relabelled already, as in a study where all models meet.
        a[0] = a[0].permute(torch.from_numpy(every[0]))
        found = nulls.permuted_scores(measure, a, b, every)
        for k, p in enumerate(every):
            assert found[k, 0, 0] == pytest.approx(measure(x[every[0]], y[p]), abs=1e-12)
            assert found[k, 1, 1] == pytest.approx(measure(x[:, ::-1], y[p][:, ::-1]), abs=1e-12)


# --- separability ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["logistic", "gap"])
def test_separability_from_one_distribution_to_two(method: str):
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 150, 6))
    y = y[:90]
    shift = np.array([1.0, 0, 0, 0, 0, 0])
    measure = ModalitySeparability(method=method)
    apart = [measure(x + s * shift, y - s * shift) for s in (0.0, 0.7, 8.0)]
    assert apart[0] == pytest.approx(0.5, abs=0.1) and 0.6 < apart[1] < 0.99 and apart[2] == 1.0
    p = rng.permutation(150)
    assert measure((x + 0.7 * shift)[p], y - 0.7 * shift) == apart[1]


def test_separability_sees_what_the_means_do_not():
    """A held-out set against itself is told wrong, not right: the row held out trains the other side."""
    x = np.random.default_rng(5).standard_normal((60, 4))
    assert ModalitySeparability()(x, x) <= 0.5
    with pytest.raises(RepalignError, match="one fold leaves nothing to train on"):
        ModalitySeparability(folds=1)
    with pytest.raises(RepalignError, match="seed is not a whole number"):
        ModalitySeparability(seed=-1)
    with pytest.raises(RepalignError, match="too few stimuli"):
        ModalitySeparability()(x, x[:4])
