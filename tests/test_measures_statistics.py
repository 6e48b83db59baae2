"""Summaries of one space and distances between clouds: closed forms, known dimensions and what is undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from repalign.errors import RepalignError
from repalign.measures import (
    BuresWasserstein,
    ConcentricityDifference,
    EnergyDistance,
    IntrinsicDimensionDifference,
    MagnitudeDifference,
    ParticipationRatioDifference,
    SlicedWasserstein,
    UniformityDifference,
    concentricity,
    cone_effect,
    magnitude,
    participation_ratio,
    two_nn_dimension,
    uniformity,
)

rng = np.random.default_rng


def test_differences_are_those_of_the_functions():
    x, y = rng(0).standard_normal((50, 6)) + 1, rng(1).standard_normal((40, 9))
    for measure, summary in [
        (MagnitudeDifference(), magnitude),
        (ConcentricityDifference(), concentricity),
        (UniformityDifference(), uniformity),
        (ParticipationRatioDifference(), participation_ratio),
        (IntrinsicDimensionDifference(), two_nn_dimension),
    ]:
        assert measure(x, y) == pytest.approx(abs(summary(x) - summary(y)), abs=1e-14)


def test_concentricity_and_the_mean_of_all_cosines():
    """On unit rows the mean cosine with the mean row is the length of that row, and its square the mean of all cosines."""
    x = rng(2).standard_normal((30, 5)) + 1
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert concentricity(x) == pytest.approx(magnitude(x), abs=1e-14)
    assert magnitude(x) ** 2 == pytest.approx((1 + 29 * cone_effect(x)) / 30, abs=1e-14)


def test_rows_that_cancel_have_no_direction():
    assert concentricity([[1.0, 0.0], [-1.0, 0.0]]) == 0.0
    assert magnitude([[1e300, 1e300], [1e300, 1e300]]) == pytest.approx(math.sqrt(2) * 1e300)
    assert concentricity([[1e-300, 0.0], [1e-300, 0.0]]) == 1.0


def test_uniformity_of_far_points_neither_vanishes_nor_overflows():
    """exp(-2 * 100^2) is 0 in floating point; its logarithm is -20,000."""
    x = [[0.0], [100.0]]
    assert uniformity(x, normalize=False) == pytest.approx(-20_000)
    assert uniformity(x, normalize=False, pairs="all") == pytest.approx(math.log(0.5))
    assert uniformity([[3.0, 1.0]] * 4) == 0.0
    with pytest.raises(RepalignError, match="t is not a positive number"):
        uniformity(x, t=0.0)


def test_uniformity_on_a_circle_has_a_closed_form():
    """The mean of exp(-2 t (1 - cos a)) over all angles is exp(-2 t) I_0(2 t)."""
    from scipy.special import i0

    angles = 2 * np.pi * np.arange(500) / 500
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert uniformity(circle, pairs="all") == pytest.approx(math.log(math.exp(-4) * i0(4.0)), abs=1e-12)


@pytest.mark.parametrize("shape", [(200, 20), (20, 200)])
def test_participation_ratio_counts_dimensions(shape):
    """n - 1 equal eigenvalues, or d of them, and one number for both ways to the products."""
    q = np.linalg.qr(rng(3).standard_normal((max(shape), min(shape))))[0]
    x = q if shape[0] > shape[1] else q.T
    x = x - x.mean(axis=0) if shape[0] < shape[1] else np.linalg.qr(q - q.mean(axis=0))[0]
    assert participation_ratio(5 + 3 * x) == pytest.approx(min(shape) - (shape[0] < shape[1]), abs=0.2)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    assert participation_ratio(x) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-12)
    assert math.isnan(participation_ratio(np.ones((5, 3))))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_dimension_of_a_cube_in_a_wide_space(d: int):
    """Borders cost some of it, the more the higher the dimension."""
    x = rng(4).uniform(size=(1500, d)) @ np.linalg.qr(rng(5).standard_normal((20, d)))[0].T
    assert two_nn_dimension(x) == pytest.approx(d, rel=0.15)


def test_repeated_rows_count_once():
    x = rng(6).standard_normal((80, 3))
    again = np.concatenate([x, x[:30], x[:5]])
    assert two_nn_dimension(again) == pytest.approx(two_nn_dimension(x), rel=1e-12)
    assert math.isnan(two_nn_dimension([[1.0], [1.0], [2.0], [2.0]]))
    assert math.isnan(IntrinsicDimensionDifference()(x, np.ones((9, 2))))
    # Equal steps have ratios of 1 at all but the ends: no slope to speak of, and no number either.
    assert not two_nn_dimension(np.arange(20.0)[:, None]) < 100
    with pytest.raises(RepalignError, match="discard is not a share"):
        two_nn_dimension(x, discard=1.0)


# --- clouds ---------------------------------------------------------------------------------------


def test_energy_distance_sees_what_moments_do_not():
    """Two clouds of one mean and covariance: four corners, and a cross."""
    corners = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    cross = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]) * math.sqrt(2)
    assert BuresWasserstein()(corners, cross) == pytest.approx(0.0, abs=1e-7)
    assert EnergyDistance()(corners, cross) > 0.05


def test_a_common_offset_costs_energy_distance_nothing():
    x, y = rng(7).standard_normal((30, 4)).round(3), rng(8).standard_normal((35, 4)).round(3)
    assert EnergyDistance()(x + 2.0**27, y + 2.0**27) == pytest.approx(EnergyDistance()(x, y), abs=1e-6)
    assert EnergyDistance()(x, x[::-1]) == pytest.approx(0.0, abs=1e-12)


def test_energy_distance_on_a_line_is_twice_cramers():
    from scipy.stats import energy_distance

    x, y = rng(9).standard_normal(40), rng(10).standard_normal(25) + 1
    assert EnergyDistance()(x[:, None], y[:, None]) == pytest.approx(energy_distance(x, y) ** 2, abs=1e-12)


def test_bures_wasserstein_of_gaussians_in_one_dimension():
    """sqrt((m - m')^2 + (s - s')^2)."""
    x, y = rng(11).standard_normal((50, 1)), 3 * rng(12).standard_normal((80, 1)) + 2
    expected = math.hypot(x.mean() - y.mean(), x.std() - y.std())
    assert BuresWasserstein()(x, y) == pytest.approx(expected, abs=1e-12)
    assert BuresWasserstein()(x, x + 5) == pytest.approx(5.0, abs=1e-12)
    assert BuresWasserstein()([[1.0, 2.0]], [[4.0, 6.0]]) == pytest.approx(5.0, abs=1e-12)


@pytest.mark.parametrize("widths", [(10, 40, 25), (10, 40, 9), (60, 5, 8)])
def test_bures_wasserstein_below_full_rank(widths):
    """Fewer points than dimensions on either side: a commuting pair, whose distance is that of the roots."""
    d, n, m = widths
    basis = np.linalg.qr(rng(13).standard_normal((d, d)))[0]

    def cloud(count: int, values: np.ndarray) -> np.ndarray:
        """Points whose covariance has these eigenvalues along the basis."""
        rank = min(count - 1, d)
        free = np.linalg.qr(np.column_stack([np.ones(count), rng(14).standard_normal((count, rank))]))[0][:, 1:]
        return math.sqrt(count) * free * np.sqrt(values[:rank]) @ basis[:, :rank].T

    first, second = np.linspace(1, 3, d), np.linspace(4, 1, d)
    x, y = cloud(n, first), cloud(m, second)
    s, t = (np.where(np.arange(d) < c - 1, v, 0) for c, v in ((n, first), (m, second)))
    expected = math.sqrt(((np.sqrt(s) - np.sqrt(t)) ** 2).sum())
    assert BuresWasserstein()(x, y) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("n, m", [(6, 4), (5, 5), (3, 7)])
def test_sliced_wasserstein_of_unequal_counts(n: int, m: int):
    """On a line there is one direction; repeating every point changes no distribution."""
    x, y = rng(15).standard_normal((n, 1)), rng(16).standard_normal((m, 1)) + 1
    same = SlicedWasserstein()(np.repeat(x, m, axis=0), np.repeat(y, n, axis=0))
    assert SlicedWasserstein()(x, y) == pytest.approx(same, abs=1e-14)
    assert SlicedWasserstein()(x, np.repeat(x, 3, axis=0)) == pytest.approx(0.0, abs=1e-14)


def test_sliced_wasserstein_of_a_shift():
    """|u . shift|^2 has the mean |shift|^2 / d over directions; the exact distance is |shift|."""
    x, shift = rng(17).standard_normal((40, 8)), np.arange(8.0)
    expected = math.sqrt((shift**2).sum() / 8)
    assert SlicedWasserstein(projections=4000)(x, x + shift) == pytest.approx(expected, rel=0.05)
    with pytest.raises(RepalignError, match="seed is not a whole number"):
        SlicedWasserstein(seed=-1)
