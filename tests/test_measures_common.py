"""What every measure must do, over the one list of measures; a measure without an oracle fails here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from measure_oracles import CASES, Case
from repalign.errors import RepalignError
from repalign.measures import MEASURES, SVCCA, MutualKNN, as_features, parse_measure

N = 40
every = pytest.mark.parametrize("case", CASES, ids=lambda c: repr(c.measure))


def pair(seed: int = 0, n: int = N, dx: int = 7, dy: int = 11, offset: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Two related spaces of different width with non-zero means, without ties."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 5))
    x = z @ rng.standard_normal((5, dx)) + 0.6 * rng.standard_normal((n, dx)) + offset
    y = np.tanh(z @ rng.standard_normal((5, dy))) + 0.5 * rng.standard_normal((n, dy)) - offset
    return x, y


def rotation(d: int, seed: int = 5) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


TRANSFORMATIONS = {
    "orthogonal": lambda x: x @ rotation(x.shape[1]),
    "isotropic_scale": lambda x: 3.7 * x,
    "translation": lambda x: x + np.linspace(-4, 6, x.shape[1]),
    "row_scale": lambda x: x * np.random.default_rng(1).uniform(0.2, 5, (len(x), 1)),
    "permutation": lambda x: x[:, ::-1],
    "invertible": lambda x: (
        x @ (np.eye(x.shape[1]) + 0.6 * np.random.default_rng(2).standard_normal((x.shape[1],) * 2))
    ),
}


def test_every_measure_has_an_oracle():
    assert {type(c.measure) for c in CASES} == set(MEASURES)


@every
def test_agrees_with_its_oracle(case: Case):
    for seed in range(3):
        x, y = pair(seed)
        assert case.measure(x, y) == pytest.approx(case.oracle(case.measure, x, y), abs=1e-10)


@every
def test_wide_layers_agree_with_the_oracle(case: Case):
    x, y = pair(7, n=14, dx=30, dy=25)
    if case.measure.min_n <= 14:
        assert case.measure(x, y) == pytest.approx(case.oracle(case.measure, x, y), abs=1e-9)


@every
def test_the_law_of_permuted_states(case: Case):
    m = case.measure
    x, y = pair(1)
    p = np.random.default_rng(9).permutation(N)
    a, b = m.prepare(as_features(x)), m.prepare(as_features(y))
    permuted = m.compare(a, b.permute(torch.from_numpy(p)))
    assert permuted == pytest.approx(m(x, y[p]), abs=1e-12)
    assert permuted != pytest.approx(m.compare(a, b), abs=1e-6)


@every
def test_all_pairs_at_once_are_the_pairs_one_by_one(case: Case):
    m = case.measure
    a = [m.prepare(as_features(pair(s)[0])) for s in range(3)]
    b = [m.prepare(as_features(pair(s)[1])) for s in range(2)]
    assert m.compare_all(a, b).numpy() == pytest.approx(np.array([[m.compare(s, t) for t in b] for s in a]), abs=1e-12)


def asymmetry(case: Case) -> float:
    values = [(case.measure(x, y), case.measure(y, x)) for x, y in map(pair, range(6))]
    return max(abs(p - q) for p, q in values)


@every
def test_symmetric_exactly_where_it_says_so(case: Case):
    assert (asymmetry(case) < 1e-12) == type(case.measure).symmetric or _coincides(case)


def _coincides(case: Case) -> bool:
    # The biased reference form differs by its masks only where neighbours differ at the diagonal.
    return repr(case.measure).startswith("CKNNAReference") and "biased" in case.measure.estimator


def test_the_test_of_symmetry_can_fail():
    asymmetric = next(c for c in CASES if type(c.measure).__name__ == "CycleKNN")
    assert asymmetry(asymmetric) > 0.01


@every
def test_each_declared_invariance_holds(case: Case):
    x, y = pair(2)
    before = case.measure(x, y)
    for name in case.measure.invariances:
        assert case.measure(TRANSFORMATIONS[name](x), y) == pytest.approx(before, abs=1e-9), name


@every
def test_what_is_not_declared_changes_the_score(case: Case):
    x, y = pair(2)
    before = case.measure(x, y)
    others = set(TRANSFORMATIONS) - set(case.measure.invariances)
    changed = {n for n in others if abs(case.measure(TRANSFORMATIONS[n](x), y) - before) > 1e-7}
    assert changed, others
    assert changed >= others - {"isotropic_scale", "orthogonal"}, others - changed


@every
def test_scores_stay_within_the_range(case: Case):
    low, high = case.measure.range
    for seed in range(12):
        x, y = pair(seed, n=16, dx=3 + seed, dy=2 + seed)
        assert low - 1e-12 <= case.measure(x, y) <= high + 1e-12
        z = np.random.default_rng(seed).standard_normal((16, 40))
        assert low - 1e-12 <= case.measure(x, z) <= high + 1e-12


@every
def test_identical_input(case: Case):
    x, _ = pair(3)
    value = case.measure(x, x)
    if case.perfect:
        assert value == pytest.approx(case.measure.s_max, abs=1e-9)
    else:
        assert value <= case.measure.s_max


@every
@pytest.mark.parametrize("offset", [0.0, 1.0, 12.0])  # mean cosine up to above 0.97
def test_float32_agrees_with_float64(case: Case, offset: float):
    x, y = (a.astype(np.float32) for a in pair(4, n=96, offset=offset))
    if offset == 12.0:
        z = x / np.linalg.norm(x, axis=1, keepdims=True)
        assert (z @ z.T).mean() > 0.97
    wide = case.measure(x.astype(np.float64), y.astype(np.float64))
    assert case.measure(x, y) == pytest.approx(wide, abs=1e-4)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_never_multiplied(case: Case, dtype: torch.dtype):
    x, y = (torch.from_numpy(a).to(dtype) for a in pair(5))
    assert case.measure(x, y) == case.measure(x.float(), y.float())


@every
def test_forms_of_the_same_array_give_the_same_score_and_are_left_alone(case: Case):
    x, y = pair(6)
    before = x.copy(), y.copy()
    value = case.measure(x, y)
    assert value == case.measure(torch.from_numpy(x), torch.from_numpy(y))
    wide = np.asfortranarray(np.concatenate([x, x], axis=1))[:, : x.shape[1]]  # not contiguous
    assert value == case.measure(wide, y.tolist())
    assert isinstance(value, float)
    assert np.array_equal(x, before[0]) and np.array_equal(y, before[1])


@every
def test_a_second_pair_never_gets_the_first_pairs_score(case: Case):
    first, second = pair(7), pair(8)
    values = [case.measure(*first), case.measure(*second)]
    assert values[0] != values[1] and values == [case.measure(*first), case.measure(*second)]


@every
def test_the_repr_is_the_identity(case: Case):
    assert parse_measure(repr(case.measure)) == case.measure
    assert hash(parse_measure(repr(case.measure))) == hash(case.measure)
    with pytest.raises(AttributeError):
        case.measure.k = 3  # type: ignore[misc]


# --- awkward inputs ------------------------------------------------------------------------------


@every
def test_a_constant_representation_has_no_score(case: Case):
    x, y = pair(9)
    for constant in (np.full_like(x, 0.1), np.zeros_like(x), np.tile(x[:1], (N, 1))):
        assert math.isnan(case.measure(constant, y)), constant[0, 0]
        assert math.isnan(case.measure(y, constant))


@every
def test_degenerate_but_defined_inputs_give_a_finite_score(case: Case):
    x, y = pair(10)
    duplicated, zero_row, constant_column = x.copy(), x.copy(), x.copy()
    duplicated[5:9] = duplicated[0:4]
    zero_row[3] = 0
    constant_column[:, 2] = 4.0
    for awkward in (duplicated, zero_row, constant_column):
        assert math.isfinite(case.measure(awkward, y))
        if case.perfect:
            assert case.measure(awkward, awkward) == pytest.approx(case.measure.s_max, abs=1e-9)


@every
def test_one_feature(case: Case):
    x, y = pair(11, dx=1)
    value = case.measure(x, y)
    low, high = case.measure.range
    assert math.isnan(value) or low - 1e-12 <= value <= high + 1e-12


@every
def test_the_smallest_n_and_one_below(case: Case):
    n = case.measure.min_n
    x, y = pair(12, n=n)
    value = case.measure(x, y)
    assert isinstance(value, float)
    if n > 1:
        with pytest.raises(RepalignError, match=rf"too few stimuli for (.|\n)*expected: n >= {n}\n  got: n = {n - 1}"):
            case.measure(x[:-1], y[:-1])


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_entries_are_refused_and_the_row_named(case: Case, value: float):
    x, y = pair(13)
    y[6, 1] = value
    with pytest.raises(RepalignError, match=r"y: NaN or infinite values(.|\n)*1 of 40 rows(.|\n)*first is row 6"):
        case.measure(x, y)


@every
def test_different_row_counts_are_refused(case: Case):
    x, y = pair(14)
    with pytest.raises(RepalignError, match="different numbers of rows(.|\n)*n = 40 and n = 39"):
        case.measure(x, y[:-1])


@every
def test_wrong_shapes_and_kinds_are_refused(case: Case):
    x, y = pair(15)
    for wrong in (x[:, 0], x[None], x[:0], np.full((N, 2), "a"), x.astype(complex)):
        with pytest.raises(RepalignError, match="x: (wrong shape|not an array of numbers)"):
            case.measure(wrong, y)


@every
def test_a_huge_offset_costs_no_digits_where_translation_is_free(case: Case):
    if "translation" in case.measure.invariances:
        x, y = pair(16)
        assert case.measure(x + 1e8, y) == pytest.approx(case.measure(x, y), abs=1e-5)


@every
@pytest.mark.parametrize("scale", [1e160, 1e-160])
def test_extreme_scales_neither_overflow_nor_vanish(case: Case, scale: float):
    if "isotropic_scale" in case.measure.invariances:
        x, y = pair(17)
        assert case.measure(x * scale, y) == pytest.approx(case.measure(x, y), abs=1e-9)


def test_k_may_be_all_others_but_not_all():
    x, y = pair(18)
    assert MutualKNN(k=N - 1)(x, y) == 1.0
    with pytest.raises(RepalignError, match=f"expected: n >= {N + 1}"):
        MutualKNN(k=N)(x, y)


def test_svcca_of_a_space_with_itself_is_one_on_every_call():
    """A peer gives 0.87, and another value on the next call."""
    x, _ = pair(19)
    assert [SVCCA(components=5)(x, x) for _ in range(2)] == pytest.approx([1.0, 1.0], abs=1e-12)


@pytest.mark.gpu
@every
def test_another_device_gives_the_same_score(case: Case):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    x, y = (torch.from_numpy(a).float() for a in pair(20))
    assert case.measure(x.cuda(), y.cuda()) == pytest.approx(case.measure(x, y), abs=1e-5)
