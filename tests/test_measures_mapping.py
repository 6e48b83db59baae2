"""Facts about measures that predict, align or match that the laws of all measures do not cover."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from sklearn.model_selection import KFold

from repalign.errors import RepalignError
from repalign.measures import (
    VERSA,
    AlignedCosine,
    DirectStitching,
    HardUnitMatching,
    LinearRegression,
    MeanCorrelationCoefficient,
    PairwiseMatching,
    PLSPredictivity,
    RelativeRepresentation,
    RidgePredictivity,
    SoftUnitMatching,
)
from repalign.measures.matching import _transported
from repalign.measures.numerics import regressions as _regressions
from repalign.measures.numerics.regressions import held_out
from repalign.testing import pair


def noise(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


# --- prediction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [10, 20, 50, 100])
def test_chance_of_in_sample_regression_is_d_over_n_less_one(d: int):
    scores = [LinearRegression()(noise(101, d, s), noise(101, 7, 100 + s)) for s in range(10)]
    assert np.mean(scores) == pytest.approx(d / 100, abs=0.025)


def test_held_out_prediction_of_noise_is_near_zero_where_in_sample_is_one():
    x, y = noise(60, 90, 1), noise(60, 12, 2)
    assert LinearRegression()(x, y) == pytest.approx(1)
    assert DirectStitching(folds=None)(x, y) < 1e-20
    for measure in (RidgePredictivity(), PLSPredictivity(components=5), PairwiseMatching(), VERSA()):
        assert abs(measure(x, y)) < 0.15
    assert DirectStitching()(x, y) > 1


def test_the_direction_is_from_x_to_y():
    x = noise(120, 6, 3)
    y = x[:, :2]
    assert LinearRegression()(x, y) == pytest.approx(1) and LinearRegression()(y, x) < 0.6
    assert LinearRegression(predicts="x")(y, x) == pytest.approx(1)
    assert RidgePredictivity()(x, y) > 0.999999 > 0.6 > RidgePredictivity()(y, x)
    assert DirectStitching()(x, y) < 1e-20 < 0.3 < DirectStitching()(y, x)
    assert PairwiseMatching()(x, y) > 0.999999 > 0.6 > PairwiseMatching()(y, x)


def test_stitching_in_sample_is_what_regression_leaves():
    x, y = pair(1)
    assert DirectStitching(folds=None)(x, y) == pytest.approx(1 - LinearRegression()(x, y), abs=1e-12)


def test_an_invertible_map_stitches_without_loss():
    x = noise(200, 20, 5)
    assert DirectStitching()(x, x @ noise(20, 20, 6) + 3) < 1e-20


def test_a_noise_free_linear_target():
    """Ridge finds it; 25 components of 40 do not quite."""
    x = noise(200, 40, 7)
    y = x @ noise(40, 40, 8)
    assert RidgePredictivity()(x, y) > 0.99999
    assert 0.9 < PLSPredictivity()(x, y) < 0.9999
    assert PLSPredictivity(components=40)(x, y) > 0.99999


def test_a_ceiling_bounds_the_square_of_r():
    x, y = pair(2)
    r = RidgePredictivity()(x, y)
    assert RidgePredictivity(ceiling=0.8)(x, y) == pytest.approx(r * r / 0.8)
    assert RidgePredictivity(ceiling=0.8).range == (-1.25, 1.25)
    x, y = noise(60, 90, 1), noise(60, 12, 4)
    r = RidgePredictivity(seed=1)(x, y)
    assert np.sign(RidgePredictivity(seed=1, ceiling=0.5)(x, y)) == np.sign(r)
    for wrong in (0, 1.2, True, "0.5"):
        with pytest.raises(RepalignError, match="ceiling is not a reliability"):
            RidgePredictivity(ceiling=wrong)


def test_units_that_are_constant_are_not_targets():
    x, y = pair(3)
    with_constant = np.hstack([y, np.full((len(y), 1), 0.3)])
    for measure in (RidgePredictivity(), PLSPredictivity(components=3), PairwiseMatching(), HardUnitMatching()):
        assert measure(x, with_constant) == pytest.approx(measure(x, y), abs=1e-12)


def test_a_unit_that_varies_in_training_only_counts_as_not_predicted():
    x, y = pair(4)
    test = next(held_out(len(x), 5, 0))[1].numpy()
    y[test, 0] = 1.0
    value = RidgePredictivity()(x, y)
    assert np.isfinite(value) and -1 < value < 1


def test_folds_are_those_of_scikit_learn():
    for n, folds, seed in ((40, 5, 0), (23, 4, 42)):
        expected = KFold(folds, shuffle=True, random_state=seed).split(np.zeros(n))
        for (train, test), (a, b) in zip(held_out(n, folds, seed), expected, strict=True):
            assert np.array_equal(train, a) and np.array_equal(test, b)


def test_many_layers_at_once_use_one_fit_of_x():
    m = RidgePredictivity(folds=3)
    a, b = ([m.prepare(torch.from_numpy(pair(s)[side])) for s in range(2)] for side in (0, 1))
    assert m.compare_all(a, b).numpy() == pytest.approx(np.array([[m.compare(s, t) for t in b] for s in a]), abs=1e-14)


@pytest.mark.parametrize("shape", [(40, 7, 11), (40, 90, 30)])
def test_the_error_left_out_is_the_same_row_by_row(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    n, dx, dy = shape
    x, y = pair(8, n=n, dx=dx, dy=dy)
    before = RidgePredictivity()(x, y)
    monkeypatch.setattr(_regressions, "SCRATCH_BYTES", 0)
    assert RidgePredictivity()(x, y) == pytest.approx(before, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RidgePredictivity(folds=1), "one fold leaves nothing to train on"),
        (lambda: PairwiseMatching(folds=0), "folds is not a positive whole number"),
        (lambda: DirectStitching(seed=-1), "seed is not a whole number"),
        (lambda: VERSA(standardize="columns"), "unknown standardize 'columns'\n  expected: no, train, fold"),
        (lambda: LinearRegression(predicts="z"), "unknown predicts 'z'"),
    ],
)
def test_parameters_are_checked(make, message: str):
    with pytest.raises(RepalignError, match=message):
        make()


# --- units ----------------------------------------------------------------------------------------


def test_mcc_is_one_for_signed_permutations_and_high_for_rotations():
    """A random rotation of six independent units scores about 0.69: chance is far above 0."""
    x = noise(2000, 6, 9)
    assert MeanCorrelationCoefficient()(x, -2 * x[:, [3, 1, 5, 0, 2, 4]] + 1) == pytest.approx(1)
    rotated = [MeanCorrelationCoefficient()(x, x @ ortho_group.rvs(6, random_state=s)) for s in range(20)]
    assert 0.6 < np.mean(rotated) < 0.75
    assert MeanCorrelationCoefficient(correlation="spearman")(x, x**3) == pytest.approx(1)
    assert MeanCorrelationCoefficient()(x, x**3) < 0.85


def test_hard_matching_keeps_signs():
    x = noise(100, 4, 10)
    assert HardUnitMatching()(x, x) == pytest.approx(1) and HardUnitMatching()(x, -x) < 0.3


def test_transport_between_equal_widths_is_an_assignment():
    x, y = pair(5, dx=9, dy=9)
    assert SoftUnitMatching()(x, y) == pytest.approx(HardUnitMatching()(x, y), abs=1e-12)
    correlations = np.corrcoef(x, y, rowvar=False)[:9, 9:]
    assert _transported(torch.from_numpy(correlations)) == pytest.approx(HardUnitMatching()(x, y), abs=1e-12)


def test_unequal_widths_without_pot_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    x, y = pair(6)
    with pytest.raises(RepalignError, match=r"widths 7 and 11(.|\n)*pip install 'repalign\[transport\]'"):
        SoftUnitMatching()(x, y)
    assert SoftUnitMatching()(x, x) == pytest.approx(1)


# --- cosines of paired rows -----------------------------------------------------------------------


def test_wide_layers_are_rotated_in_the_space_that_they_span():
    x, y = noise(20, 60, 11), noise(20, 35, 12)
    measure = AlignedCosine()
    padded = np.hstack([y, np.zeros((20, 25))])
    u, _, vt = np.linalg.svd(x.T @ padded)
    rotated = x @ u @ vt
    cosines = (rotated * padded).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert measure(x, y) == pytest.approx(cosines.mean(), abs=1e-12)


def test_a_common_direction_is_rotated_onto_the_other_unless_centred():
    x, y = noise(300, 5, 13) + 4, noise(300, 5, 14) - 4
    assert AlignedCosine()(x, y) > 0.9 and abs(AlignedCosine(center=True)(x, y)) < 0.2


def test_relative_representations_need_centring_for_a_shift():
    x = noise(100, 12, 15)
    y = 2.5 * x @ ortho_group.rvs(12, random_state=1)
    for center in (True, False):
        measure = RelativeRepresentation(anchors=30, center=center)
        assert measure(x, y) == pytest.approx(1, abs=1e-12)
        assert (measure(x, y + 1) > 1 - 1e-12) == center


def test_relative_representations_of_unrelated_spaces_are_unrelated():
    assert abs(RelativeRepresentation(anchors=50)(noise(300, 20, 16), noise(300, 30, 17))) < 0.05


def test_anchors_are_rows_by_position_and_seed():
    x, y = pair(7)
    values = {RelativeRepresentation(anchors=5, draws=1, seed=s)(x, y) for s in range(4)}
    assert len(values) == 4
    with pytest.raises(RepalignError, match="expected: n >= 41"):
        RelativeRepresentation(anchors=40)(x, y)
