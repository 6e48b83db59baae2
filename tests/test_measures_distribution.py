"""Distributions over labels: closed forms, extremes and forms of the same distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from repalign.errors import RepalignError
from repalign.measures import (
    Disagreement,
    JensenShannon,
    KLDivergence,
    LogitDistance,
    accuracy_difference,
    embedding_svd_distance,
    log_likelihood_variance_distance,
)

EVERY = [KLDivergence(), JensenShannon(), Disagreement(), LogitDistance(), LogitDistance(squared=False)]


def logits(seed: int = 0, n: int = 30, c: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = 2 * rng.standard_normal((n, c))
    return x, x + rng.standard_normal((n, c))


def log_probabilities(x: np.ndarray) -> np.ndarray:
    return x - np.logaddexp.reduce(x, axis=1, keepdims=True)


@pytest.mark.parametrize("measure", EVERY, ids=repr)
def test_logits_and_log_probabilities_are_the_same(measure):
    x, y = logits()
    value = measure(x, y)
    assert value > 0.05
    assert measure(log_probabilities(x), y) == pytest.approx(value, rel=1e-12)
    assert measure(x, log_probabilities(y)) == pytest.approx(value, rel=1e-12)


def test_gaussian_like_closed_form_of_two_labels():
    """One binary label with p = 1/4 against 1/2, from the definition."""
    x, y = [[0.0, math.log(3)]], [[7.0, 7.0]]
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert KLDivergence()(x, y) == pytest.approx(expected, abs=1e-15)
    entropy = {p: -p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in (0.25, 0.375, 0.5)}
    expected = entropy[0.375] - (entropy[0.25] + entropy[0.5]) / 2
    assert JensenShannon()(x, y) == pytest.approx(expected, abs=1e-15)
    assert LogitDistance()(x, y) == pytest.approx(math.log(3) ** 2 / 2, abs=1e-15)


def test_the_divergence_of_a_mixture_is_bounded_and_the_other_is_not():
    """Certain and opposite predictions: one bit, and as many nats as the logits are apart."""
    x, y = np.array([[1000.0, 0.0]]), np.array([[0.0, 1000.0]])
    assert JensenShannon()(x, y) == 1.0
    assert KLDivergence()(x, y) == pytest.approx(1000.0)
    assert KLDivergence()(x * 1e200, y * 1e200) == pytest.approx(1e203)
    assert JensenShannon()(x * 1e200, x * 1e200) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_bounds_between_the_divergences(seed: int):
    """Jensen-Shannon is at most a quarter of the symmetrised divergence; disagreement is a metric."""
    x, y = logits(seed)
    z = logits(seed + 50)[0]
    symmetrised = KLDivergence()(x, y) + KLDivergence()(y, x)
    assert JensenShannon()(x, y) * math.log(2) <= symmetrised / 4 + 1e-12
    for metric in (Disagreement(), LogitDistance(squared=False)):
        assert metric(x, z) <= metric(x, y) + metric(y, z) + 1e-12


def test_a_nearly_equal_pair_has_a_small_divergence_not_noise():
    """To second order, half the variance of the change of logits under p."""
    x, _ = logits()
    change = 1e-5 * np.random.default_rng(8).standard_normal(x.shape)
    p = np.exp(log_probabilities(x))
    variance = (p * change**2).sum(axis=1) - (p * change).sum(axis=1) ** 2
    assert KLDivergence()(x, x + change) == pytest.approx(variance.mean() / 2, rel=1e-3)


def test_ties_go_to_the_lower_label():
    assert Disagreement()([[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]) == 0.0
    assert Disagreement()([[1.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]) == 1.0


def test_other_label_sets_are_refused():
    x, y = logits()
    for measure in EVERY:
        with pytest.raises(RepalignError, match="one space(.|\n)*widths 6 and 5"):
            measure(x, y[:, :5])


# --- functions of embeddings and unembeddings -----------------------------------------------------


def models(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s) for s in [(60, 2), (6, 2), (60, 2), (6, 2)]]


def test_the_distance_takes_the_best_of_the_samples_and_the_labels():
    f, g, f2, g2 = models()
    found = log_likelihood_variance_distance(f, g, f2, g2, samples=20, seed=3)
    assert len(found.rows) == 3 and len(set(found.rows)) == 3
    again = log_likelihood_variance_distance(f, g, f2, g2, rows=found.rows)
    assert again == found
    for pivot in range(6):
        for left_out in set(range(6)) - {pivot}:
            fixed = log_likelihood_variance_distance(f, g, f2, g2, rows=found.rows, pivot=pivot, left_out=left_out)
            assert fixed.labels >= found.labels - 1e-15
            assert (fixed.pivot, fixed.left_out) == (pivot, left_out)
    assert log_likelihood_variance_distance(f, g, f2, g2, samples=20, seed=3) == found
    assert log_likelihood_variance_distance(f, g, f2, g2, samples=20, seed=4).rows != found.rows


def test_predictions_fix_embeddings_up_to_a_linear_map_and_no_more():
    """An invertible map of both changes nothing; one of the embeddings alone does."""
    f, g, _, _ = models()
    a = np.array([[2.0, 1.0], [0.5, -1.0]])
    same = f @ np.linalg.inv(a).T, g @ a
    assert log_likelihood_variance_distance(f, g, *same, rows=(0, 1, 2)).distance < 1e-12
    assert embedding_svd_distance(f, g, *same, pivot=0) < 1e-12
    assert log_likelihood_variance_distance(f, g, f @ a, g, rows=(0, 1, 2)).distance > 0.1


def test_the_closeness_of_models_says_what_does_not_fit():
    f, g, f2, g2 = models()
    with pytest.raises(RepalignError, match=r"too few labels(.|\n)*at least d \+ 2 = 4 labels(.|\n)*3 labels"):
        log_likelihood_variance_distance(f, g[:3], f2, g2[:3], rows=(0, 1, 2))
    with pytest.raises(RepalignError, match=r"too few inputs for so many disjoint samples\n  expected: n >= 3 \* samples"):
        log_likelihood_variance_distance(f, g, f2, g2)
    with pytest.raises(RepalignError, match="f and g do not fit(.|\n)*widths 2 and 1"):
        log_likelihood_variance_distance(f, g[:, :1], f2, g2)
    with pytest.raises(RepalignError, match="g and g2 have different numbers of rows"):
        log_likelihood_variance_distance(f, g, f2, g2[:5])
    with pytest.raises(RepalignError, match="pivot is not a label"):
        log_likelihood_variance_distance(f, g, f2, g2, rows=(0, 1, 2), pivot=6)
    with pytest.raises(RepalignError, match="the pivot is left out"):
        log_likelihood_variance_distance(f, g, f2, g2, rows=(0, 1, 2), pivot=1, left_out=1)
    with pytest.raises(RepalignError, match="rows are not different inputs"):
        log_likelihood_variance_distance(f, g, f2, g2, rows=(0, 1, 1))
    with pytest.raises(RepalignError, match="embeddings of different widths"):
        embedding_svd_distance(f, g, f2[:, :1], g2[:, :1], pivot=0)
    with pytest.raises(RepalignError, match="too few labels for the SVD distance"):
        embedding_svd_distance(f, g[:2], f2, g2[:2], pivot=0)


def test_accuracy_needs_a_label_for_every_row():
    x, y = logits()
    labels = x.argmax(axis=1)
    assert accuracy_difference(x, y, labels) == pytest.approx(Disagreement()(x, y), abs=1e-15)
    with pytest.raises(RepalignError, match="x and labels have different numbers of rows"):
        accuracy_difference(x, y, labels[:-1])
