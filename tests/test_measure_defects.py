"""Kernels and subspaces against plain recomputation, and the defects that published code has, one test
each.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from repalign.errors import RepalignError
from repalign.measures import CKA, CKNNA, SVCCA, CKNNAPaper, CKNNAReference, MutualKNN
from repalign.measures.measure import as_features

KERNELS = [
    CKA(),
    CKA(estimator="biased"),
    CKA(kernel="rbf"),
    CKA(kernel="rbf", estimator="biased"),
    CKA(kernel="rbf", bandwidth=2.0),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def related(n: int = 120, dx: int = 20, dy: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    g = rng(seed)
    z = g.standard_normal((n, 6))
    x = z @ g.standard_normal((6, dx)) + 2 * g.standard_normal((n, dx))
    return x, np.tanh(z @ g.standard_normal((6, dy))) + g.standard_normal((n, dy))


def song(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased HSIC of Song et al. 2012, equation 5, as printed."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    ones = np.ones(n)
    total = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return float((total - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3)))


def plain_cka(k: np.ndarray, m: np.ndarray, debiased: bool) -> float:
    n = len(k)
    h = np.eye(n) - 1 / n
    hsic = song if debiased else lambda a, b: float(np.trace(a @ h @ b @ h))
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def rbf(x: np.ndarray, sigma: float | None) -> np.ndarray:
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    if sigma is None:
        sigma = math.sqrt(np.median(squared[~np.eye(len(x), dtype=bool)]))
    return np.exp(-squared / (2 * sigma**2))


# --- CKA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_cka_as_printed(estimator):
    x, y = related()
    debiased = estimator == "debiased"
    assert CKA(estimator=estimator)(x, y) == pytest.approx(plain_cka(x @ x.T, y @ y.T, debiased), abs=1e-12)
    for sigma in (None, 3.0, 100.0):
        measure = CKA(kernel="rbf", estimator=estimator, bandwidth=sigma)
        expected = plain_cka(rbf(x, sigma), rbf(y, sigma), debiased)
        assert measure(x, y) == pytest.approx(expected, abs=1e-9), sigma


def anisotropic(mean_cosine: float, n: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows with one common offset, the usual state of language-model layers."""
    x, y = related(n, 64, 96)
    out = []
    for a in (x, y):
        spread = np.sqrt((a**2).sum(1).mean())
        offset = np.zeros(a.shape[1])
        offset[0] = spread * math.sqrt(mean_cosine / (1 - mean_cosine))
        a = a + offset
        out.append(a / np.linalg.norm(a, axis=1, keepdims=True))
    return out[0], out[1]


@pytest.mark.parametrize("mean_cosine", [0.0, 0.74, 0.97, 0.999])
def test_unbiased_cka_of_anisotropic_features_is_right_in_both_precisions(mean_cosine):
    """An absolute 1e-6 in the denominator pulls small kernels towards 0; the true value does not move."""
    x, y = anisotropic(mean_cosine)
    assert (x @ x.T).mean() == pytest.approx(mean_cosine, abs=0.02)
    true = plain_cka(*((a - a.mean(0)) @ (a - a.mean(0)).T for a in (x, y)), debiased=True)
    assert CKA()(x, y) == pytest.approx(true, abs=1e-10)
    assert CKA()(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(true, abs=1e-4)
    if mean_cosine == 0.999:
        assert CKA(epsilon=1e-6)(x, y) < 0.1 * true


@pytest.mark.parametrize("measure", [*KERNELS[:4], SVCCA(components=4)], ids=repr)
def test_a_common_offset_costs_no_digits(measure):
    """x + 1e8: code that forms a Gram matrix of raw features returns .0014 for .59."""
    x, y = related()
    x = np.round(x * 2**20) / 2**20  # the sum is exact
    assert measure(x + 1e8, y) == pytest.approx(measure(x, y), abs=1e-7)


@pytest.mark.parametrize("scale", [1e300, 1e-300])
@pytest.mark.parametrize(
    "measure",
    [*KERNELS[:4], CKNNA(), CKNNAPaper(), CKNNAReference(), SVCCA(), SVCCA(standardize=True)],
    ids=repr,
)
def test_extreme_scales_neither_overflow_nor_vanish(measure, scale):
    x, y = related()
    assert measure(x * scale, y) == pytest.approx(measure(x, y), abs=1e-9)
    assert measure(y, x * scale) == pytest.approx(measure(y, x), abs=1e-9)


def test_a_fixed_bandwidth_keeps_its_unit():
    """Doubling data and sigma changes nothing; at a sigma far above all distances the kernel is linear."""
    x, y = related()
    small, large = CKA(kernel="rbf", bandwidth=3.0), CKA(kernel="rbf", bandwidth=6.0)
    assert large(2 * x, 2 * y) == pytest.approx(small(x, y), abs=1e-12)
    assert large(x, y) != pytest.approx(small(x, y), abs=1e-3)
    wide = CKA(kernel="rbf", bandwidth=1e9)
    assert wide(x, y) == pytest.approx(CKA()(x, y), abs=1e-9)
    assert wide(x * 1e-100, y) == pytest.approx(CKA()(x, y), abs=1e-9)
    assert math.isfinite(CKA(kernel="rbf", bandwidth=1.0, estimator="biased")(x * 1e160, y))


def test_negative_debiased_cka_stays_negative():
    """Neither clipped at 0 nor lost: half of all unrelated pairs are below chance."""
    pairs = [(rng(s).standard_normal((64, 200)), rng(s + 99).standard_normal((64, 200))) for s in range(20)]
    scores = [CKA()(x, y) for x, y in pairs]
    assert min(scores) < -0.01 < 0.01 < max(scores)


def test_biased_cka_of_noise_is_near_one_and_debiased_near_zero():
    x, y = rng().standard_normal((64, 8192)), rng(1).standard_normal((64, 8192))
    assert CKA(estimator="biased")(x, y) > 0.99
    assert abs(CKA()(x, y)) < 0.05


def test_epsilon_is_added_in_the_unit_of_the_features():
    x, y = related()
    hsic = [song(a @ b.T, c @ d.T) for a, b, c, d in ((x, x, y, y), (x, x, x, x), (y, y, y, y))]
    expected = hsic[0] / (math.sqrt(hsic[1] * hsic[2]) + 5.0)
    assert CKA(epsilon=5.0)(x, y) == pytest.approx(expected, abs=1e-10)
    assert 0 < CKA(epsilon=1e-6)(x * 1e-160, y) < 1e-200  # vanishes, as with the reference
    assert math.isnan(CKA(epsilon=1e-6)(np.ones((10, 3)), y[:10]))


@pytest.mark.parametrize("measure", [*KERNELS, CKNNA(k=5), CKNNAPaper(k=5), SVCCA(components=3)], ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_representation_is_undefined_and_a_tiny_one_is_not(measure, dtype):
    x, y = related()
    for constant in (0.0, 0.1, -12345.678, 1e30, rng(5).standard_normal(7)):
        flat = np.tile(np.asarray(constant, dtype), (120, 7 // np.size(constant)))
        assert math.isnan(measure(flat, y.astype(dtype)))
        assert math.isnan(measure(y.astype(dtype), flat))
        assert math.isnan(measure(flat, flat))
    if dtype is np.float64 and measure != KERNELS[-1]:
        tiny = 5 + 1e-6 * x
        assert measure(tiny, tiny) == pytest.approx(1.0, abs=1e-6)


def test_equidistant_stimuli_have_no_debiased_kernel():
    """One-hot rows: what U-centring leaves is rounding, not a score."""
    y = related(40)[1]
    for dtype in (np.float32, np.float64):
        assert math.isnan(CKA()(np.eye(40, dtype=dtype), y.astype(dtype)))
        assert math.isnan(CKA(kernel="rbf")(np.eye(40, dtype=dtype) * 3, y.astype(dtype)))
    assert 0 < CKA(estimator="biased")(np.eye(40), y) < 1


def test_a_median_of_zero_is_no_bandwidth():
    x = np.zeros((30, 2))
    x[0] = 1
    assert math.isnan(CKA(kernel="rbf")(x, related(30)[1]))
    assert math.isfinite(CKA(kernel="rbf", estimator="biased", bandwidth=1.0)(x, related(30)[1]))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_debiased_cka_needs_four_stimuli(n):
    x = rng().standard_normal((n, 5))
    with pytest.raises(RepalignError, match=r"too few stimuli for CKA\((.|\n)*n >= 4"):
        CKA()(x, x)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kernel": "rfb"}, "unknown kernel 'rfb'(.|\n)*did you mean 'rbf'"),
        ({"estimator": "unbiased"}, "unknown estimator 'unbiased'(.|\n)*did you mean 'biased' or 'debiased'"),
        ({"bandwidth": 1.0}, "a linear kernel has no bandwidth"),
        ({"kernel": "rbf", "bandwidth": "mean"}, "unknown bandwidth 'mean'(.|\n)*did you mean 'median'"),
        ({"kernel": "rbf", "bandwidth": 0.0}, "bandwidth is not a positive number or a rule"),
        ({"kernel": "rbf", "bandwidth": True}, "bandwidth is not a positive number or a rule"),
        ({"epsilon": -1e-6}, "epsilon is not a number >= 0"),
    ],
)
def test_bad_parameters_of_cka(bad, message):
    with pytest.raises(RepalignError, match=message):
        CKA(**bad)


# --- CKNNA -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 60, 120])
def test_corrected_cknna(k):
    """Works on its default, is 1 for X with itself, symmetric and at most 1; the released code fails each."""
    x, y = related()
    measure = CKNNA(k=k)
    assert measure(x, x) == pytest.approx(1.0, abs=1e-12)
    assert measure(x, y) == pytest.approx(measure(y, x), abs=1e-12)
    assert abs(measure(x, y)) <= 1
    assert -1 <= CKNNA()(x, y) <= 1
    assert CKNNAPaper(k=k)(x, y) <= 1


def test_cknna_is_cka_at_k_equal_to_n():
    x, y = (a + 2.0 for a in related())
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y)]
    cka = CKA(estimator="biased")(*unit)
    assert CKNNA(k=120)(x, y) == pytest.approx(cka, abs=1e-12)
    assert abs(CKNNAPaper(k=120)(x, y) - cka) > 1e-4  # row centring does not have this limit
    released = CKNNAReference(k=120, estimator="biased", epsilon=0.0)
    assert released(x, y) == pytest.approx(cka, abs=1e-12)
    assert CKNNAReference(k=120, epsilon=0.0)(x, y) == pytest.approx(CKA()(*unit), abs=1e-12)


def test_cknna_as_printed():
    """Equations 16 to 18 with double centring (default) and with row centring (paper)."""
    x, y = related(60)
    kernels, masks = [], []
    for a in (x, y):
        u = a / np.linalg.norm(a, axis=1, keepdims=True)
        k = u @ u.T
        order = np.argsort(-(k - 2 * np.eye(60)), axis=1, kind="stable")[:, :7]
        mask = np.zeros((60, 60))
        np.put_along_axis(mask, order, 1, axis=1)
        kernels.append(k)
        masks.append(mask)
    for measure, double in ((CKNNA(k=7), True), (CKNNAPaper(k=7), False)):
        centred = [k - k.mean(1, keepdims=True) for k in kernels]
        if double:
            centred = [k - k.mean(0, keepdims=True) for k in centred]
        (mk, ml), (k, m) = masks, centred
        expected = (mk * ml * k * m).sum() / math.sqrt((mk * k * k).sum() * (ml * m * m).sum())
        assert measure(x, y) == pytest.approx(expected, abs=1e-12)


def test_released_cknna_departs_as_documented():
    x, y = related()
    released = CKNNAReference()
    assert released(x, x) < 1
    assert released(x, y) != released(y, x)
    assert CKNNAReference(epsilon=0.0)(x, x) == pytest.approx(1.0, abs=1e-12)
    assert released.s_max == 1.0


def test_released_cknna_without_shared_neighbours_is_zero():
    """No pair is a neighbour in both spaces."""
    angles = np.arange(12) * 2 * np.pi / 12
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    y = x[(5 * np.arange(12)) % 12]
    assert MutualKNN(k=2)(x, y) == 0.0
    assert CKNNAReference(k=2)(x, y) == 0.0
    assert CKNNA(k=2)(x, y) == 0.0


# --- SVCCA -------------------------------------------------------------------------------------


def test_svcca_of_x_with_itself_is_one_and_always_the_same():
    """Published code gives .87, and another value on the next call."""
    x, y = related()
    for measure in (SVCCA(), SVCCA(standardize=True), SVCCA(components=0.9)):
        assert measure(x, x) == pytest.approx(1.0, abs=1e-12)
        assert measure(x, y) == measure(x, y)
    q = np.linalg.qr(rng(3).standard_normal((20, 20)))[0]
    assert SVCCA()(x, x @ q) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("dx", "dy"), [(20, 30), (200, 30), (200, 300)])
def test_svcca_is_mean_cca_of_principal_components(dx, dy):
    """By scikit-learn's PCA and the canonical correlations of its scores."""
    from sklearn.decomposition import PCA

    x, y = related(90, dx, dy)
    bases = [np.linalg.qr(PCA(6, svd_solver="full").fit_transform(a))[0] for a in (x, y)]
    expected = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()
    assert SVCCA(components=6)(x, y) == pytest.approx(expected, abs=1e-10)


def test_svcca_share_of_variance_is_the_smallest_count_that_reaches_it():
    x = rng().standard_normal((100, 12)) * np.array([10, 5, 3] + [0.1] * 9)
    state = SVCCA(components=0.9).prepare(as_features(x))
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    count = state.values.shape[1]
    assert values[:count].sum() >= 0.9 * values.sum() > values[: count - 1].sum()


def test_svcca_counts_no_direction_that_is_rounding():
    """Rank 3 stored in float32: the fourth singular value is what storing left, not structure."""
    y = related(100)[1]
    low = rng().standard_normal((100, 3)) @ rng(1).standard_normal((3, 40)) + 7
    for dtype in (np.float32, np.float64):
        assert SVCCA().prepare(as_features(low.astype(dtype))).values.shape == (100, 3)
    assert SVCCA()(low, y) == pytest.approx(SVCCA()(low.astype(np.float32), y), abs=1e-5)


def test_svcca_refuses_too_few_stimuli():
    x = rng().standard_normal((11, 40))
    with pytest.raises(RepalignError, match=r"too few stimuli for SVCCA\(components=10(.|\n)*n >= 12"):
        SVCCA()(x, x)
    assert 0 <= SVCCA()(*(rng(s).standard_normal((12, 40)) for s in (1, 2))) < 1


@pytest.mark.parametrize("bad", [0, -3, 1.0, 0.0, 1.5, True, "10"])
def test_bad_components(bad):
    message = "neither a count nor a share" if isinstance(bad, float) else "not a positive whole number"
    with pytest.raises(RepalignError, match=f"components is {message}"):
        SVCCA(components=bad)


def test_layers_of_different_rank_in_one_comparison():
    """Padding to one width must not change a score."""
    layers = [related(60, d, 5, seed=d)[0] for d in (2, 7, 40)]
    measure = SVCCA(components=6)
    states = [measure.prepare(as_features(x)) for x in (*layers, np.ones((60, 3)))]
    found = measure.compare_all(states, states)
    for i, x in enumerate(layers):
        for j, y in enumerate(layers):
            assert float(found[i, j]) == pytest.approx(measure(x, y), abs=1e-12)
    assert torch.isnan(found[3]).all() and torch.isnan(found[:, 3]).all()
