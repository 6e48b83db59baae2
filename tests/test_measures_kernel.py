"""Kernels, HSIC, RV, the angle of CKA, dependent columns and distance correlation: identities, limits, undefined cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from repalign import null as nulls
from repalign.errors import RepalignError
from repalign.measures import (
    CKA,
    HSIC,
    RSA,
    RV,
    AngularCKA,
    Bilinear,
    DependentColumnsCKA,
    DistanceCorrelation,
    SquaredDistanceCorrelation,
    SquaredDistanceCovariance,
    TopologicalRSA,
    as_features,
    parse_measure,
)
from repalign.testing import pair

X, Y = pair(21)


# --- identities and limits ------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_kernels_at_a_wide_bandwidth(estimator):
    """Polynomials become linear; exp(-D / sigma) becomes 1 - D / sigma, and CKA of it distance correlation."""
    linear = CKA(estimator=estimator)(X, Y)
    for kernel in ("quadratic", "cubic", "rbf"):
        assert CKA(kernel, estimator, 1e7)(X, Y) == pytest.approx(linear, abs=1e-9), kernel
    distances = SquaredDistanceCorrelation(estimator)(X, Y)
    assert CKA("laplacian", estimator, 1e8)(X, Y) == pytest.approx(distances, abs=1e-6)


@pytest.mark.parametrize("kernel, power", [("quadratic", 2), ("cubic", 3)])
def test_polynomials_at_a_narrow_bandwidth_are_powers(kernel, power):
    def cka(a: np.ndarray, b: np.ndarray) -> float:
        h = np.eye(40) - 1 / 40
        a, b = (h @ ((z - z.mean(0)) @ (z - z.mean(0)).T) ** power @ h for z in (a, b))
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))

    measure = CKA(kernel, "biased", bandwidth=1e-6)
    assert measure(X, Y) == pytest.approx(cka(X, Y), abs=1e-9)
    for scale in (1e150, 1e-150, 1e300):  # a fixed bandwidth has a unit, but nothing overflows
        assert math.isfinite(measure(X * scale, Y)) and math.isfinite(CKA(kernel)(X * scale, Y))


def test_rv_is_biased_linear_cka_and_cka_is_normalised_hsic():
    assert RV()(X, Y) == CKA(estimator="biased")(X, Y)
    for kernel in ("linear", "rbf", "cubic"):
        h = HSIC(kernel)
        cka = CKA(kernel)(X, Y)
        assert h(X, Y) / math.sqrt(h(X, X) * h(Y, Y)) == pytest.approx(cka, abs=1e-12)
    assert HSIC(estimator="trace")(X, Y) == pytest.approx(39**2 * HSIC(estimator="biased")(X, Y), rel=1e-13)


def test_the_angle_is_exact_near_0_and_obeys_the_triangle_inequality():
    """arccos of a CKA of 1 - 1e-16 is 1e-8, and a peer returns nan."""
    d = AngularCKA()
    assert math.cos(d(X, Y)) == pytest.approx(CKA(estimator="biased")(X, Y), abs=1e-14)
    assert d(X, X) == 0
    small = 1e-10 * np.random.default_rng(0).standard_normal(X.shape)
    assert 1e-12 < d(X, X + small) < 1e-9
    spaces = [pair(s)[0] for s in range(5)]
    for a, b, c in itertools.permutations(spaces, 3):
        assert d(a, c) <= d(a, b) + d(b, c)


def test_distance_correlation_with_squared_distances_is_linear_cka():
    """At exponent 2 the double-centred squared distances are -2 X X^T."""
    linear = CKA(estimator="biased")(X, Y)
    assert SquaredDistanceCorrelation("biased", 2)(X, Y) == pytest.approx(linear, abs=1e-13)
    assert DistanceCorrelation(2)(X, Y) ** 2 == pytest.approx(linear, abs=1e-13)


def test_distance_correlation_sees_what_linear_cka_does_not():
    x = np.linspace(-1, 1, 100)[:, None]
    assert abs(CKA()(x, x**2)) < 0.02 < 0.2 < SquaredDistanceCorrelation()(x, x**2)


def test_debiased_forms_do_not_grow_with_the_width_and_biased_ones_do():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 8192)), rng.standard_normal((64, 8192))
    assert DistanceCorrelation()(x, y) > 0.99 and abs(SquaredDistanceCorrelation()(x, y)) < 0.05
    assert RV()(x, y) > 0.99 and 0.5 < RV(modified=True)(x, y) < 0.8  # RV2 grows too, later


# --- undefined ------------------------------------------------------------------------------------


def test_dependent_columns_without_dependence_have_no_score():
    """The source returns 0, which reads as a score."""
    rng = np.random.default_rng(3)
    assert math.isnan(DependentColumnsCKA()(rng.standard_normal((40, 1)), Y))
    unrelated = np.linalg.qr(rng.standard_normal((40, 20)))[0]
    assert math.isnan(DependentColumnsCKA()(unrelated, Y))


def test_dependent_columns_correct_for_columns_that_were_not_sampled():
    """The score of a few of many noisy columns stays near that of all, where CKA falls."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((300, 4))
    x, y = (z @ rng.standard_normal((4, 2000)) + rng.standard_normal((300, 2000)) for _ in range(2))
    few = x[:, :20], y[:, :20]
    assert CKA()(*few) < 0.85 * CKA()(x, y)
    assert DependentColumnsCKA()(*few) == pytest.approx(DependentColumnsCKA()(x, y), abs=0.12)


# --- chance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "measure",
    [
        HSIC(),
        HSIC("rbf", "trace"),
        SquaredDistanceCovariance(),
        SquaredDistanceCorrelation(),
        DependentColumnsCKA(),
        CKA("cubic"),
        RV(modified=True),
        RSA("euclidean"),
        RSA("euclidean", "rho_a"),
        RSA("euclidean", "whitened_pearson"),
        TopologicalRSA(),
    ],
    ids=repr,
)
def test_closed_form_moments_are_those_of_all_relabellings(measure: Bilinear):
    x, y = (a + 5 * np.random.default_rng(2).standard_normal((6, 1)) for a in pair(2, n=6))
    states = [measure.prepare(as_features(a)) for a in (x, y)]
    null = nulls.Moments(nulls.Permutations(9))
    mean, sd, _ = null.moments(measure, *(null.prepare(measure, [s]) for s in states))
    p = [torch.tensor(p) for p in itertools.permutations(range(6))]
    every = measure.compare_all(states[:1], [states[1].permute(q) for q in p])[0].numpy()
    assert np.isfinite(every).all()
    scale = max(1.0, np.abs(every).max())
    assert mean[0, 0] == pytest.approx(every.mean(), abs=1e-11 * scale)
    assert sd[0, 0] == pytest.approx(every.std(), abs=1e-10 * scale)


# --- parameters -----------------------------------------------------------------------------------


def test_names_of_the_field():
    assert parse_measure("cka_laplacian") == CKA("laplacian", "biased")
    assert parse_measure("rv2") == parse_measure("cka_lange") == RV(modified=True)
    assert parse_measure("dcor(exponent=0.5)") == DistanceCorrelation(0.5)
    assert repr(DistanceCorrelation(1)) == "DistanceCorrelation(exponent=1.0)"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CKA("polynomial"), "unknown kernel 'polynomial'\n  expected: linear, rbf, laplacian, quadratic, cubic"),
        (lambda: CKA("cubic", bandwidth="median"), "unknown bandwidth 'median'\n  expected: variance"),
        (lambda: CKA("laplacian", bandwidth="variance"), "unknown bandwidth 'variance'\n  expected: median, median_all, "),
        (lambda: HSIC(bandwidth=1.0), "a linear kernel has no bandwidth"),
        (lambda: HSIC(estimator="debiased"), "unknown estimator 'debiased'\n  expected: unbiased, biased, trace"),
        (lambda: AngularCKA("rbf", bandwidth=-1.0), "bandwidth is not a positive number or a rule"),
        (lambda: DistanceCorrelation(0), "exponent is out of range\n  expected: 0 < exponent <= 2"),
        (lambda: SquaredDistanceCorrelation("unbiased"), "unknown estimator 'unbiased'"),
        (lambda: SquaredDistanceCovariance(exponent=2.5), "exponent is out of range"),
        (lambda: RV(modified=1), "modified is neither True nor False"),
        (lambda: DependentColumnsCKA(epsilon=-1), "epsilon is not a number >= 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(RepalignError, match=message):
        make()
