"""What is special about measures on shapes: identities, cancellation, sizes, padding, the triangle inequality."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from repalign.errors import RepalignError
from repalign.measures import (
    CCA,
    AngularProcrustes,
    BuresDistance,
    HeldOutProcrustes,
    Measure,
    NormalisedBures,
    PermutationProcrustes,
    PLSCovariance,
    Procrustes,
    ShapeMetric,
)
from repalign.testing import pair, rotation


def noise(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


# --- identities -----------------------------------------------------------------------------------


def test_one_rotation_gives_all_shape_measures():
    x, y = pair(0)
    angle, cosine = AngularProcrustes()(x, y), NormalisedBures()(x, y)
    assert cosine == pytest.approx(math.cos(angle), abs=1e-12)
    assert Procrustes()(x, y) == pytest.approx(2 * math.sin(angle / 2), abs=1e-12)
    assert Procrustes(squared=True)(x, y) == pytest.approx(2 - 2 * cosine, abs=1e-12)
    assert ShapeMetric()(x, y) == AngularProcrustes()(x, y)


def test_disparity_of_scipy_is_a_function_of_the_cosine():
    from scipy.spatial import procrustes

    x, y = pair(1, dx=9, dy=9)
    assert 1 - NormalisedBures()(x, y) ** 2 == pytest.approx(procrustes(x, y)[2], abs=1e-12)


def test_whitened_shapes_are_canonical_correlations():
    x, y = pair(2, dx=8, dy=8)
    assert ShapeMetric(alpha=0.0)(x, y) == pytest.approx(math.acos(CCA()(x, y)), abs=1e-10)
    x, y = pair(2)  # unequal ranks: each side has its own length
    assert ShapeMetric(alpha=0.0)(x, y) == pytest.approx(math.acos(7 * CCA()(x, y) / math.sqrt(7 * 11)), abs=1e-10)


def test_sizes_and_shapes():
    """The law of cosines, from sizes and the angle of shapes."""
    x, y = pair(3)
    p, q = (np.linalg.norm(a - a.mean(axis=0)) for a in (x, y))
    expected = math.sqrt(p * p + q * q - 2 * p * q * NormalisedBures()(x, y))
    assert Procrustes(normalized=False)(x, y) == pytest.approx(expected, rel=1e-12)
    assert BuresDistance()(x * math.sqrt(7), y * math.sqrt(11)) == pytest.approx(expected, rel=1e-12)
    assert PLSCovariance()(x, y) == pytest.approx(p * q * NormalisedBures()(x, y) / (39 * 7), rel=1e-12)
    assert Procrustes(normalized=False)(x, 3 * x) == pytest.approx(2 * p, rel=1e-12)


def test_rotations_never_do_worse_than_permutations():
    for seed in range(5):
        x, y = pair(seed)
        assert AngularProcrustes()(x, y) <= PermutationProcrustes()(x, y)
    shuffled = x[:, np.random.default_rng(0).permutation(7)]
    assert PermutationProcrustes()(x, shuffled) < 1e-12
    assert PermutationProcrustes()(x, x @ rotation(7)) > 0.1


def test_permutations_cannot_turn_a_sign():
    x = noise(50, 1)
    assert PermutationProcrustes()(x, -x) == pytest.approx(math.pi)
    assert AngularProcrustes()(x, -x) < 1e-12


def test_padding_is_with_columns_of_zeros():
    x, y = pair(4)
    wide = np.hstack([x, np.zeros((40, 4))])
    for measure in (Procrustes(), Procrustes(normalized=False), PermutationProcrustes(), ShapeMetric(alpha=0.5)):
        assert measure(wide, y) == pytest.approx(measure(x, y), abs=1e-12)


def test_wide_layers_go_through_their_square_factor():
    x, y = pair(5, n=20, dx=50, dy=6)
    for measure in (Procrustes(), Procrustes(center=False), PLSCovariance(), BuresDistance(), AngularProcrustes()):
        assert measure.prepare(torch_of(x)).values.shape == (20, 19 if measure.center else 20)
        by_hand = np.linalg.qr((x - x.mean(0)).T if getattr(measure, "center", True) else x.T)[1].T
        if not isinstance(measure, PLSCovariance | BuresDistance):  # these count the columns
            assert measure(by_hand, y) == pytest.approx(measure(x, y), abs=1e-10)


def torch_of(x: np.ndarray):
    from repalign.measures.measure import as_features

    return as_features(x)


DISTANCES = [
    Procrustes(),
    Procrustes(normalized=False),
    AngularProcrustes(),
    ShapeMetric(alpha=0.0),
    ShapeMetric(alpha=0.5),
    PermutationProcrustes(),
    PermutationProcrustes(form="distance"),
    BuresDistance(),
]


@pytest.mark.parametrize("measure", DISTANCES, ids=repr)
def test_triangle_inequality(measure: Measure):
    arrays = [a for s in range(2) for a in pair(s)] + [np.hstack(pair(0))]
    for x, y, z in itertools.permutations(arrays, 3):
        assert measure(x, z) <= measure(x, y) + measure(y, z) + 1e-9


def test_the_square_is_no_distance():
    x = noise(50, 2)
    line = [x * [1, w] for w in (0.0, 0.5, 1.0)]
    squares = [Procrustes(squared=True)(*p) for p in ((line[0], line[2]), (line[0], line[1]), (line[1], line[2]))]
    assert squares[0] > squares[1] + squares[2]


# --- digits ---------------------------------------------------------------------------------------

ZERO = [*DISTANCES, Procrustes(squared=True), Procrustes(center=False)]


@pytest.mark.parametrize("measure", ZERO, ids=repr)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_layer_is_nowhere_but_at_itself(measure: Measure, dtype: type):
    """From squared norms in float32 a peer has 0.9993 where 1 is due; and none of ours comes out nan."""
    x = (noise(60, 30) + 5).astype(dtype)
    assert 0 <= measure(x, x) <= 1e-12 * np.linalg.norm(x)


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_small_distances_keep_their_digits(delta: float):
    """One more column, orthogonal to the rest: the angle is that of a right triangle."""
    q = np.linalg.qr(noise(50, 4) - noise(50, 4).mean(axis=0))[0]
    x, y = q[:, :3], q * [1, 1, 1, delta * math.sqrt(3)]
    for measure in (AngularProcrustes(), PermutationProcrustes(), ShapeMetric()):
        assert measure(x @ rotation(3) if measure != PermutationProcrustes() else x, y) == pytest.approx(
            math.atan(delta), rel=1e-6
        )
    assert Procrustes(normalized=False)(x, y) == pytest.approx(delta * math.sqrt(3), rel=1e-6)


def test_the_two_ways_to_a_chord_meet():
    """Just above and just below the squared chord where the rotation itself is looked for."""
    x, e = noise(50, 6), noise(50, 6, 1)
    for delta in (0.9e-3, 1.1e-3):
        y = x + delta * e / np.linalg.norm(e) * np.linalg.norm(x)
        u, _, vt = np.linalg.svd((x - x.mean(0)).T @ (y - y.mean(0)))
        by_hand = np.linalg.norm(unit(x) @ u @ vt - unit(y))
        assert Procrustes()(x, y) == pytest.approx(by_hand, rel=1e-8)


def unit(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=0)) / np.linalg.norm(x - x.mean(axis=0))


def test_sizes_neither_overflow_nor_vanish():
    x, y = pair(6)
    for scale in (1e160, 1e-160):
        assert Procrustes(normalized=False)(x * scale, y * scale) == pytest.approx(
            Procrustes(normalized=False)(x, y) * scale, rel=1e-9
        )
        assert BuresDistance()(x * scale, y * scale) == pytest.approx(BuresDistance()(x, y) * scale, rel=1e-9)
        assert PermutationProcrustes()(x * scale, y) == pytest.approx(PermutationProcrustes()(x, y), rel=1e-9)
    assert ShapeMetric(alpha=0.5)(x * 1e160, y * 1e160) == pytest.approx(ShapeMetric()(x, y), rel=1e-9)
    assert ShapeMetric(alpha=0.5)(x * 1e-160, y * 1e-160) == pytest.approx(ShapeMetric(alpha=0.0)(x, y), rel=1e-9)


def test_unrelated_shapes_come_closer_as_they_grow_wider():
    """pi / 2 is not the chance level: 1.40, 0.96 and 0.32 rad are known for n = 200."""
    found = [AngularProcrustes()(noise(200, d), noise(200, d, 1)) for d in (10, 100, 1000)]
    assert found == pytest.approx([1.40, 0.96, 0.32], abs=0.05)  # another draw


def test_held_out_unrelated_shapes_stay_at_a_right_angle():
    found = [HeldOutProcrustes()(noise(200, d), noise(200, d, 1)) for d in (10, 100, 1000)]
    assert found == pytest.approx([math.pi / 2] * 3, abs=0.1)


def test_held_out_rows_tell_nothing_to_the_rotation():
    """With as many columns as training rows the fit in sample is perfect, and the held-out angle is not."""
    x, y = noise(20, 30), noise(20, 30, 1)
    assert ShapeMetric(alpha=0.0)(x, y) < 1e-6 < 1 < HeldOutProcrustes(folds=2)(x, y)
    z, q = noise(300, 5), rotation(12)[:5]
    related = z @ q + 0.3 * noise(300, 12, 2), z @ rotation(9)[:5] + 0.3 * noise(300, 9, 3)
    assert HeldOutProcrustes()(*related) == pytest.approx(AngularProcrustes()(*related), abs=0.05)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Procrustes(normalized=1), "normalized is neither True nor False"),
        (lambda: AngularProcrustes(center=None), "center is neither True nor False"),
        (lambda: ShapeMetric(alpha=1.1), "alpha is not a share(.|\n)*0 <= alpha <= 1"),
        (lambda: ShapeMetric(alpha=True), "alpha is not a share"),
        (lambda: HeldOutProcrustes(folds=1), "one fold leaves nothing to train on"),
        (lambda: HeldOutProcrustes()(noise(9, 3), noise(9, 3)), "expected: n >= 10"),
        (lambda: PermutationProcrustes(form="angular"), "unknown form 'angular'"),
    ],
)
def test_bad_parameters_are_refused(make, message: str):
    with pytest.raises(RepalignError, match=message):
        make()
