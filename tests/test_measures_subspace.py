"""What is special about measures on subspaces and covariances: identities, ranks, small angles, chance levels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from repalign import null as nulls
from repalign.errors import RepalignError
from repalign.measures import (
    CCA,
    CKA,
    ENSD,
    GULP,
    PWCCA,
    SVCCA,
    EigenspaceOverlap,
    GrassmannDistance,
    Measure,
    RiemannianDistance,
    SquaredCCA,
)
from repalign.measures.measure import Bilinear, as_features
from repalign.measures.numerics.precision import basis, rows_of, sharing, spectrum
from repalign.testing import pair


def noise(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


# --- identities -----------------------------------------------------------------------------------


def test_cca_is_svcca_of_all_components():
    x, y = pair(0)
    assert CCA()(x, y) == pytest.approx(SVCCA(components=11)(x, y), abs=1e-12)


def test_chordal_distance_counts_what_squared_cca_leaves():
    x, y = pair(1)
    chordal = GrassmannDistance(components=None, form="chordal")(x, y)
    assert chordal**2 == pytest.approx(7 * (1 - SquaredCCA()(x, y)), abs=1e-12)


def test_squared_cca_and_centred_eigenspace_overlap_differ_by_their_denominators():
    x, y = pair(2)
    assert 11 * EigenspaceOverlap(center=True)(x, y) == pytest.approx(7 * SquaredCCA()(x, y), abs=1e-12)


def test_gulp_without_ridge_is_a_sum_over_canonical_correlations():
    x, y = pair(3)
    assert GULP(ridge=0.0)(x, y) == pytest.approx(7 + 11 - 2 * 7 * SquaredCCA()(x, y), abs=1e-10)


def test_gulp_with_a_large_ridge_compares_linear_kernels():
    x, y = pair(4)
    kernels = [a @ a.T / np.trace(a @ a.T) for a in (x - x.mean(0), y - y.mean(0))]
    ridge = 1e6
    assert ridge**2 * GULP(ridge=ridge)(x, y) == pytest.approx(np.sum((kernels[0] - kernels[1]) ** 2), rel=1e-5)


def test_ensd_is_cka_times_effective_dimensions():
    x, y = pair(5)
    sizes = math.sqrt(ENSD()(x, x) * ENSD()(y, y))
    assert ENSD()(x, y) == pytest.approx(sizes * CKA(estimator="biased")(x, y), rel=1e-12)


def test_ensd_of_equal_variances_counts_them():
    x = np.linalg.qr(noise(60, 9) - noise(60, 9).mean(axis=0))[0]
    assert ENSD()(x, x) == pytest.approx(9)
    assert ENSD()(x[:, :6], x[:, 4:]) == pytest.approx(2)  # columns 4 and 5 are shared


def test_riemannian_distance_of_commuting_kernels():
    """Kernels with the same eigenvectors: the logarithms of the ratios of eigenvalues."""
    q = np.linalg.qr(noise(30, 4) - noise(30, 4).mean(axis=0))[0]
    s, t = np.array([4.0, 3, 2, 1]), np.array([1.0, 1, 5, 2])
    k, p = (0.8 * 30 * v / v.sum() + 0.2 for v in (s, t))
    found = RiemannianDistance(shrinkage=0.2)(q * np.sqrt(s), q * np.sqrt(t))
    assert found == pytest.approx(np.linalg.norm(np.log(k / p)), rel=1e-10)


@pytest.mark.parametrize("n", [12, 60])  # below and above d1 + d2, where another way is taken
def test_riemannian_distance_does_not_depend_on_the_way(n: int):
    x, y = pair(6, n=n)
    wide = [np.hstack([a, np.zeros((n, n))]) @ np.linalg.qr(noise(n + a.shape[1], n + a.shape[1]))[0] for a in (x, y)]
    assert RiemannianDistance()(*wide) == pytest.approx(RiemannianDistance()(x, y), rel=1e-9)


DISTANCES = [
    GrassmannDistance(components=4),
    GrassmannDistance(components=4, form="chordal"),
    GrassmannDistance(components=4, form="largest"),
    RiemannianDistance(),
]


@pytest.mark.parametrize("measure", DISTANCES, ids=repr)
def test_triangle_inequality(measure: Measure):
    arrays = [a for s in range(3) for a in pair(s)]
    for x, y, z in itertools.permutations(arrays, 3):
        assert measure(x, z) <= measure(x, y) + measure(y, z) + 1e-9


def test_the_root_of_gulp_obeys_the_triangle_inequality_and_the_square_does_not():
    line = np.outer(noise(40, 1), [1.0, 0]) + np.outer(noise(40, 1, 1), [0, 1.0])
    x, y, z = (line * [1, w] for w in (0.0, 0.5, 1.0))
    root = [math.sqrt(GULP()(a, b)) for a, b in ((x, z), (x, y), (y, z))]
    assert root[0] <= root[1] + root[2]
    assert any(
        GULP(ridge=1.0)(a, c) > GULP(ridge=1.0)(a, b) + GULP(ridge=1.0)(b, c)
        for a, b, c in itertools.permutations([x, y, z])
    )


# --- ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "measure",
    [CCA(), SquaredCCA(), PWCCA(weights="sample_l1"), EigenspaceOverlap(), GrassmannDistance(None), GULP(ridge=0.0)],
    ids=repr,
)
def test_directions_of_rounding_do_not_count(measure: Measure, dtype: type):
    """20 columns of rank 4: sources count 20 directions, of which 16 are noise."""
    low, y = noise(60, 4), noise(60, 9, 1)
    spread = (low @ noise(4, 20, 2)).astype(dtype)
    assert measure(spread, y) == pytest.approx(measure(low, y), abs=1e-5)


@pytest.mark.parametrize("measure", [CCA(), SquaredCCA(), PWCCA(), PWCCA(weights="sample_l1")], ids=repr)
def test_with_few_stimuli_everything_correlates_perfectly(measure: Measure):
    """n - 1 <= d: 1 whatever the data, and not a hair more or less; the docstring says so."""
    assert measure(noise(20, 30), noise(20, 4, 1)) == pytest.approx(1.0, abs=1e-12)
    assert measure(noise(40, 12), noise(40, 11, 1)) < 0.9
    assert "n - 1 <= d on either side" in type(measure).__doc__


def test_canonical_correlations_that_must_be_one_are():
    """r_X + r_Y - (n - 1) of them, at n = 20 with 12 columns each: 5 of 12."""
    x, y = noise(20, 12), noise(20, 12, 1)
    cosines = np.linalg.svd(basis(rows_of(as_features(x))).T @ basis(rows_of(as_features(y))), compute_uv=False)
    assert np.sum(cosines > 1 - 1e-12) == 5


def test_the_quick_basis_and_the_singular_vectors_span_the_same():
    for n, d in ((50, 8), (50, 49), (50, 50), (20, 50)):
        x = as_features(noise(n, d) + 3)
        quick, vectors = basis(rows_of(x)), spectrum(x).vectors
        assert quick.shape == vectors.shape == (n, min(n - 1, d))
        assert torch.allclose(quick @ quick.T, vectors @ vectors.T, atol=1e-10)


def test_a_basis_is_not_taken_from_a_column_that_repeats_another():
    x = noise(50, 8)
    x[:, 5] = x[:, 2]
    for center in (True, False):
        assert basis(rows_of(as_features(x), center)).shape == (50, 7)


def test_a_rogue_dimension_leaves_the_other_directions():
    x, y = noise(80, 6), noise(80, 5, 1)
    rogue = np.hstack([x, 1e4 * noise(80, 1, 2)]).astype(np.float32)
    assert basis(rows_of(as_features(rogue))).shape == (80, 7)
    assert CCA()(rogue, y) == pytest.approx(CCA()(rogue.astype(np.float64), y), abs=1e-4)


def test_measures_of_one_layer_share_its_spectrum():
    x = as_features(noise(60, 20))
    measures = [
        SVCCA(components=5),
        GrassmannDistance(components=5),
        EigenspaceOverlap(components=5, center=True),
        CCA(ridge=0.1),
    ]
    alone = [m.prepare(x) for m in measures]
    with sharing(x):
        for m, state in zip(measures, alone, strict=True):
            assert m.compare(state, m.prepare(x)) == m.compare(state, state)


# --- digits ---------------------------------------------------------------------------------------


def test_small_angles_keep_their_digits():
    """Two planes an angle of 1e-9 apart: from the cosine alone it would be 0 or 2e-8."""
    q = np.linalg.qr(noise(40, 3) - noise(40, 3).mean(axis=0))[0]
    x, y = q[:, :2], np.stack([q[:, 0], q[:, 1] * math.cos(1e-9) + q[:, 2] * math.sin(1e-9)], axis=1)
    for form in ("arc", "chordal", "largest"):
        assert GrassmannDistance(components=None, form=form)(x, y) == pytest.approx(1e-9, rel=1e-5)


def test_right_angles():
    q = np.linalg.qr(noise(40, 4) - noise(40, 4).mean(axis=0))[0]
    distances = [GrassmannDistance(None, form)(q[:, :2], q[:, 2:]) for form in ("arc", "chordal", "largest")]
    assert distances == pytest.approx([math.pi / math.sqrt(2), math.sqrt(2), math.pi / 2])


@pytest.mark.parametrize("measure", [CCA(ridge=0.1), PWCCA(ridge=0.1)], ids=repr)
def test_a_ridge_is_in_the_unit_of_the_features(measure: Measure):
    x, y = pair(8)
    same = type(measure)(ridge=measure.ridge * 1e-6)
    assert same(x * 1e-3, y * 1e-3) == pytest.approx(measure(x, y), rel=1e-9)
    assert measure(x, y) < type(measure)()(x, y)
    assert measure(x * 1e160, y * 1e160) == pytest.approx(type(measure)()(x, y), rel=1e-9)
    assert measure(x * 1e-160, y) == pytest.approx(0, abs=1e-100)


# --- projection weighting -------------------------------------------------------------------------


def test_pwcca_weighs_by_the_first_array():
    """A loud shared direction of x, quiet in y: high from x, low from y."""
    shared, rest = noise(400, 1), noise(400, 3, 1)
    x = np.hstack([10 * shared, rest])
    y = np.hstack([shared, 10 * noise(400, 3, 2)])
    assert PWCCA()(x, y) > 0.7 > 0.4 > PWCCA()(y, x)
    assert CCA()(x, y) == pytest.approx(CCA()(y, x), abs=1e-12)


def test_pwcca_is_invariant_to_linear_maps_of_the_second_array_only():
    x, y = pair(9)
    z = y @ noise(11, 11) + 4
    assert PWCCA()(x, z) == pytest.approx(PWCCA()(x, y), abs=1e-10)
    assert abs(PWCCA()(x @ noise(7, 7), y) - PWCCA()(x, y)) > 1e-3


def test_sample_weights_are_nearly_no_weights():
    x, y = pair(10, n=200)
    assert PWCCA(weights="sample_l1")(x, y) == pytest.approx(CCA()(x, y), rel=2e-2)


# --- chance ---------------------------------------------------------------------------------------


def test_chance_level_of_squared_cca_has_a_closed_form():
    x, y, n = noise(24, 5), noise(24, 7, 1), 24
    measure = SquaredCCA()
    null = nulls.Moments(nulls.Permutations(9))
    a, b = (null.prepare(measure, [measure.prepare(as_features(z))]) for z in (x, y))
    cells = null.judge(measure, a, b).cells
    assert float(np.ravel(cells.null_mean)[0]) == pytest.approx(5 * 7 / (n - 1) / 5, rel=1e-9)


def test_a_bilinear_distance_has_exact_moments():
    """GULP over all 120 relabellings: mean and deviation of its closeness as the closed form has them."""
    x, y = noise(5, 3), noise(5, 2, 1)
    measure, null = GULP(), nulls.Moments(nulls.Permutations(9))
    every = [measure(x, y[list(p)]) for p in itertools.permutations(range(5))]
    a, b = (null.prepare(measure, [measure.prepare(as_features(z))]) for z in (x, y))
    mean, deviation, skewness = (float(m[0, 0]) for m in null.moments(measure, a, b))
    centred = np.mean(every) - every
    assert (mean, deviation) == pytest.approx((-np.mean(every), np.std(every)), rel=1e-9)
    assert skewness == pytest.approx(np.mean(centred**3) / np.std(every) ** 3, rel=1e-6)


@pytest.mark.parametrize("null", [nulls.Permutations(99), nulls.Cyclic(1), nulls.Moments(nulls.Cyclic(1))], ids=repr)
@pytest.mark.parametrize("measure", [GULP(), RiemannianDistance(), GrassmannDistance(4)], ids=repr)
def test_every_null_takes_a_small_distance_for_alignment(measure: Measure, null: nulls.Null):
    """A null that looked at the distance itself would give p = 1 to what is aligned."""
    if not isinstance(measure, Bilinear):
        null = nulls.Permutations(99)
    x, y = pair(12, n=100)
    for other, low, high in ((y, 0, 0.02), (noise(100, 9), 0.02, 1)):
        a, b = (null.prepare(measure, [measure.prepare(as_features(z))]) for z in (x, other))
        judged = null.judge(measure, a, b)
        for p in (judged.cells.pvalue[0, 0], judged.found.calibration.pvalue):
            assert low <= p <= high
        assert float(judged.cells.statistic[0, 0]) == pytest.approx(measure(x, other))


@pytest.mark.parametrize("null", [nulls.Permutations(9), nulls.Cyclic(1), nulls.Moments(nulls.Cyclic(1))], ids=repr)
@pytest.mark.parametrize("measure", [CKA(), SquaredCCA(), GULP(), CCA()], ids=repr)
def test_layers_of_different_precision_meet(measure: Measure, null: nulls.Null):
    """One side stored in float32, the other in float64, or both on one side."""
    x, y = pair(11, n=30)
    assert measure(x.astype(np.float32), y) == pytest.approx(measure(x, y), abs=1e-4)
    assert measure(x, y.astype(np.float32)) == pytest.approx(measure(x, y), abs=1e-4)
    if not isinstance(measure, Bilinear):
        null = nulls.Permutations(9)
    found = []
    for wide in ((x, x, y), (x, x.astype(np.float32), y.astype(np.float32))):
        states = [measure.prepare(as_features(a)) for a in wide]
        judged = null.judge(measure, null.prepare(measure, states[:2]), null.prepare(measure, states[2:]))
        found.append(judged.cells.pvalue.ravel())
    assert found[1] == pytest.approx(found[0], abs=1e-3)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CCA(ridge=-1), "ridge is not a number >= 0"),
        (lambda: GULP(ridge=math.inf), "ridge is not a number >= 0"),
        (lambda: PWCCA(weights="google"), "unknown weights 'google'"),
        (lambda: GrassmannDistance(form="arcs"), "unknown form 'arcs'(.|\n)*did you mean 'arc'"),
        (lambda: GrassmannDistance(components=0), "components is not a positive whole number"),
        (lambda: EigenspaceOverlap(components=1.0), "components is neither a count nor a share"),
        (lambda: EigenspaceOverlap(center=1), "center is neither True nor False"),
        (lambda: RiemannianDistance(shrinkage=0), "shrinkage leaves no distance"),
        (lambda: RiemannianDistance(shrinkage=1.5), "shrinkage is not a share"),
    ],
)
def test_bad_parameters_are_refused(make, message: str):
    with pytest.raises(RepalignError, match=message):
        make()
