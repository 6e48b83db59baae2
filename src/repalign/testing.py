"""The laws that every measure is held to, ours and yours: `check_measure(measure, oracle=...)` runs them all.

A law is a function of a `Case`, which says what a measure claims beyond its class: an independent oracle, whether a
representation has the best score with itself, which data suit it. It raises AssertionError, and says what it saw.

    from repalign.testing import check_measure
    check_measure(MyMeasure(), oracle=lambda measure, x, y: ...)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from repalign.errors import RepalignError
from repalign.layers import FEATURES, KINDS, RDM, Kernel, Pairwise
from repalign.measures.measure import Bilinear, Measure, State, as_features
from repalign.measures.registry import read_call

Array = np.ndarray
N = 40


def pair(seed: int = 0, n: int = N, dx: int = 7, dy: int = 11, offset: float = 1.0) -> tuple[Array, Array]:
    """Two related spaces of different width with non-zero means, without ties."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 5))
    x = z @ rng.standard_normal((5, dx)) + 0.6 * rng.standard_normal((n, dx)) + offset
    y = np.tanh(z @ rng.standard_normal((5, dy))) + 0.5 * rng.standard_normal((n, dy)) - offset
    return x, y


def rotation(d: int, seed: int = 5) -> Array:
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


TRANSFORMATIONS: dict[str, Callable[[Array], Array]] = {
    "orthogonal": lambda x: x @ rotation(x.shape[1]),
    "isotropic_scale": lambda x: 3.7 * x,
    "translation": lambda x: x + np.linspace(-4, 6, x.shape[1]),
    "row_scale": lambda x: x * np.random.default_rng(1).uniform(0.2, 5, (len(x), 1)),
    "row_shift": lambda x: x + np.random.default_rng(1).uniform(-3, 3, (len(x), 1)),
    "column_scale": lambda x: x * np.random.default_rng(4).uniform(0.2, 5, x.shape[1]),
    "permutation": lambda x: x[:, ::-1],
    "invertible": lambda x: (x @ (np.eye(x.shape[1]) + 0.6 * np.random.default_rng(2).standard_normal((x.shape[1],) * 2))),
}


@dataclass(frozen=True)
class Case:
    """A measure, and what it claims beyond its class.

    oracle : an independent float64 form, (measure, x, y) -> score.
    perfect : a representation has the best score, s_max, with itself.
    insensitive : transformations that are no invariance, but need not change the score.
    constant : "nan" where a constant representation has no score; "defined" where it has one.
    noise : "nan" where a space of unrelated columns may have no score; "defined" where it has one.
    tolerance : of the comparison with the oracle, in units of max(1, |score|), with its reason next to the case.
    data : the pair that the laws look at, as `pair`.
    trials : trials of the Type-I law.
    """

    measure: Measure
    oracle: Callable[[Any, Array, Array], float] | None = None
    perfect: bool = True
    insensitive: frozenset[str] = field(default_factory=frozenset)
    constant: str = "nan"
    noise: str = "defined"
    tolerance: float = 1e-10
    data: Callable[..., tuple[Array, Array]] = pair
    trials: int = 100

    def pair(self, seed: int = 0, **shape: Any) -> tuple[Array, Array]:
        """Data for this measure; of one width where it needs that."""
        if self.measure.equal_widths:
            shape["dy"] = shape.setdefault("dx", 7)
        return self.data(seed, **shape)


def check_measure(measure: Measure, oracle: Callable[[Any, Array, Array], float] | None = None, **claims: Any) -> None:
    """Hold a measure to every law; claims are those of `Case`.

    Raises AssertionError, with the name of the law and what was seen.
    """
    case = Case(measure, oracle, **claims)
    for name, law in LAWS.items():
        try:
            law(case)
        except Exception as error:
            raise AssertionError(f"{measure!r} breaks the law {name!r}: {error}") from error


def _close(got: float, expected: float, tolerance: float, what: str) -> None:
    both_nan = math.isnan(got) and math.isnan(expected)
    allowed = tolerance * max(1.0, abs(expected))
    assert both_nan or abs(got - expected) <= allowed, f"{what}: got {got!r}, expected {expected!r} within {allowed:.1e}"


def _within(case: Case, value: float, what: str) -> None:
    low, high = case.measure.range
    slack = 1e-12 * max(1.0, abs(value))
    assert low - slack <= value <= high + slack, f"{what}: {value!r} is outside of [{low}, {high}]"


def _score(measure: Measure) -> Callable[[Array, Array], float]:
    """The measure, where its call does more than to prepare both and compare them; else the same, every array prepared once."""
    if type(measure).__call__ is not Measure.__call__:
        return measure
    kept: dict[int, tuple[Array, State]] = {}  # with the array, so that its id stays its own

    def state(x: Array) -> State:
        if id(x) not in kept:
            kept[id(x)] = x, measure.prepare(as_features(x))
        return kept[id(x)][1]

    return lambda x, y: measure.compare(state(x), state(y))


# --- what a score is ------------------------------------------------------------------------------


def agrees_with_its_oracle(case: Case) -> None:
    if case.oracle is None:
        return
    for seed in range(3):
        x, y = case.pair(seed)
        _close(case.measure(x, y), case.oracle(case.measure, x, y), case.tolerance, f"seed {seed}")


def wide_layers_agree_with_the_oracle(case: Case) -> None:
    x, y = case.pair(7, n=14, dx=30, dy=25)
    if case.oracle is not None and case.measure.min_n <= 14:
        _close(case.measure(x, y), case.oracle(case.measure, x, y), 10 * case.tolerance, "n = 14, widths 30 and 25")


def states_obey_the_law_of_permutation(case: Case) -> None:
    """compare(prepare(x), prepare(y).permute(p)) == compare(prepare(x), prepare(y[p])), and p matters."""
    m = case.measure
    x, y = case.pair(1)
    p = np.random.default_rng(9).permutation(len(x))
    a, b = m.prepare(as_features(x)), m.prepare(as_features(y))
    permuted = m.compare(a, b.permute(torch.from_numpy(p)))
    _close(permuted, m(x, y[p]), 1e-12 if case.tolerance <= 1e-9 else case.tolerance, "prepared, then permuted")
    same = abs(permuted - m.compare(a, b)) <= 1e-6
    assert same != m.paired, f"paired is {m.paired}, and relabelling {'changes nothing' if same else 'changes the score'}"


def pairs_of_stimuli_are_relabelled_with_rows_and_columns(case: Case) -> None:
    """The law of permutation for whatever else than features the measure accepts: an RDM, a kernel."""
    m = case.measure
    p = np.random.default_rng(9).permutation(N)
    for kind in m.accepts - {FEATURES}:
        x, y = (_by_pairs(z, kind) for z in case.pair(1))
        permuted = m.compare(m.prepare(x), m.prepare(y).permute(torch.from_numpy(p)))
        there = KINDS[kind](y.matrix[p][:, p])
        _close(permuted, m(x, there), 1e-12 if case.tolerance <= 1e-9 else case.tolerance, f"{kind}, prepared, then permuted")


def _by_pairs(x: Array, kind: str) -> Pairwise:
    """Euclidean distances, or products, of the rows."""
    return RDM(np.linalg.norm(x[:, None] - x, axis=2)) if kind == RDM.kind else Kernel(x @ x.T)


def all_pairs_at_once_are_the_pairs_one_by_one(case: Case) -> None:
    m = case.measure
    a = [m.prepare(as_features(case.pair(s)[0])) for s in range(3)]
    b = [m.prepare(as_features(case.pair(s)[1])) for s in range(2)]
    found = m.compare_all(a, b)
    assert found.dtype == torch.float64 and tuple(found.shape) == (3, 2), f"{found.dtype} of shape {tuple(found.shape)}"
    for i, s in enumerate(a):
        for j, t in enumerate(b):
            _close(float(found[i, j]), m.compare(s, t), 1e-12 if case.tolerance <= 1e-9 else case.tolerance, f"{i}, {j}")


def asymmetry(case: Case, seeds: Sequence[int] = range(6)) -> float:
    """The largest difference between (x, y) and (y, x) over some pairs."""
    score = _score(case.measure)
    values = [(score(x, y), score(y, x)) for x, y in map(case.pair, seeds)]
    return max(abs(p - q) / max(1.0, abs(p)) for p, q in values)


def symmetric_exactly_where_it_says_so(case: Case) -> None:
    found = asymmetry(case)
    if "symmetry" not in case.insensitive:
        claimed = type(case.measure).symmetric
        allowed = 1e-12 if case.tolerance <= 1e-9 else case.tolerance
        assert (found <= allowed) == claimed, f"symmetric is {claimed}, and (x, y), (y, x) differ by {found:.1e}"


def each_declared_invariance_holds(case: Case) -> None:
    score, (x, y) = _score(case.measure), case.pair(2)
    before = score(x, y)
    for name in case.measure.invariances:
        _close(score(TRANSFORMATIONS[name](x), y), before, max(1e-9, 10 * case.tolerance), name)


def what_is_not_declared_changes_the_score(case: Case) -> None:
    score, (x, y) = _score(case.measure), case.pair(2)
    before = score(x, y)
    others = set(TRANSFORMATIONS) - set(case.measure.invariances)
    changed = {n for n in others if not abs(score(TRANSFORMATIONS[n](x), y) - before) <= 1e-7}
    assert changed, f"none of {sorted(others)} changes the score"
    silent = others - changed - case.insensitive
    assert not silent, f"{sorted(silent)} change nothing and are not declared"


def scores_stay_within_the_range(case: Case) -> None:
    score = _score(case.measure)
    for seed in range(12):
        x, y = case.pair(seed, n=max(16, case.measure.min_n), dx=3 + seed, dy=2 + seed)
        _within(case, score(x, y), f"seed {seed}")
        z = np.random.default_rng(seed).standard_normal((len(x), x.shape[1] if case.measure.equal_widths else 40))
        value = score(x, z)
        if case.noise == "defined" or not math.isnan(value):
            _within(case, value, f"seed {seed} against noise")


def a_space_with_itself(case: Case) -> None:
    x, _ = case.pair(3)
    value = float(case.measure.closeness_all(*([case.measure.prepare(as_features(x))] for _ in range(2)))[0, 0])
    if case.perfect:
        _close(value, case.measure.s_max, max(1e-9, case.tolerance), "x with itself")
    else:
        most = case.measure.s_max
        assert value <= most + 1e-12 * max(1.0, abs(value)), f"x with itself: {value!r} is above {most!r}"


# --- precision and forms of input -----------------------------------------------------------------


def float32_agrees_with_float64(case: Case) -> None:
    for offset in (0.0, 1.0, 12.0):  # mean cosine up to above 0.97
        x, y = (a.astype(np.float32) for a in case.pair(4, n=96, offset=offset))
        wide = case.measure(x.astype(np.float64), y.astype(np.float64))
        _close(case.measure(x, y), wide, 1e-4, f"offset {offset}")


def half_precision_is_stored_never_multiplied(case: Case) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x, y = (torch.from_numpy(a).to(dtype) for a in case.pair(5))
        _close(case.measure(x, y), case.measure(x.float(), y.float()), 0.0, str(dtype))


def forms_of_the_same_array_give_the_same_score_and_are_left_alone(case: Case) -> None:
    x, y = case.pair(6)
    before = x.copy(), y.copy()
    value = case.measure(x, y)
    assert isinstance(value, float), f"a score of type {type(value).__name__}"
    _close(case.measure(torch.from_numpy(x), torch.from_numpy(y)), value, 0.0, "as tensors")
    wide = np.asfortranarray(np.concatenate([x, x], axis=1))[:, : x.shape[1]]  # not contiguous
    _close(case.measure(wide, y.tolist()), value, 0.0, "not contiguous, and as lists")
    assert np.array_equal(x, before[0]) and np.array_equal(y, before[1]), "the arrays were changed"


def a_second_pair_never_gets_the_first_pairs_score(case: Case) -> None:
    first, second = case.pair(7), case.pair(8)
    values = [case.measure(*first), case.measure(*second)]
    assert values[0] != values[1], f"two pairs score {values[0]!r}"
    assert values == [case.measure(*first), case.measure(*second)], "the second call gives other scores"


def the_repr_is_the_identity(case: Case) -> None:
    name, given = read_call(repr(case.measure))
    again = type(case.measure)(**given)
    assert name == type(case.measure).__name__, f"the name of {type(case.measure)!r} is {name}"
    assert again == case.measure and hash(again) == hash(case.measure), f"read back as {again!r}"
    try:
        case.measure.some_field = 3  # type: ignore[attr-defined]
    except AttributeError:
        return
    raise AssertionError("a measure can be changed: make it a frozen dataclass")


# --- awkward inputs -------------------------------------------------------------------------------


def a_constant_representation_has_no_score(case: Case) -> None:
    score, (x, y) = _score(case.measure), case.pair(9)
    for constant in (np.full_like(x, 0.1), np.zeros_like(x), np.tile(x[:1], (len(x), 1))):
        for value in (score(constant, y), score(y, constant)):
            assert math.isnan(value) == (case.constant == "nan"), f"{value!r} for rows of {constant[0, 0]!r}"


def degenerate_but_defined_inputs_give_a_finite_score(case: Case) -> None:
    score, (x, y) = _score(case.measure), case.pair(10)
    duplicated, zero_row, constant_column = x.copy(), x.copy(), x.copy()
    duplicated[5:9] = duplicated[0:4]
    zero_row[3] = 0
    constant_column[:, 2] = 4.0
    for name, awkward in (("duplicates", duplicated), ("a zero row", zero_row), ("a constant column", constant_column)):
        value = score(awkward, y)
        assert math.isfinite(value), f"{name}: {value!r}"
        if case.perfect:
            state = [case.measure.prepare(as_features(awkward))]
            own = float(case.measure.closeness_all(state, state)[0, 0])
            _close(own, case.measure.s_max, max(1e-9, case.tolerance), f"{name}, with itself")


def one_feature(case: Case) -> None:
    x, y = case.pair(11, dx=1)
    value = case.measure(x, y)
    if not math.isnan(value):
        _within(case, value, "one feature")


def the_smallest_n_and_one_below(case: Case) -> None:
    n = case.measure.min_n
    x, y = case.pair(12, n=n)
    value = case.measure(x, y)
    assert isinstance(value, float)
    if n > 1:
        _refused(case, (x[:-1], y[:-1]), "too few stimuli for", f"expected: n >= {n}\n  got: n = {n - 1}")


def non_finite_entries_are_refused_and_the_row_named(case: Case) -> None:
    for value in (np.nan, np.inf, -np.inf):
        x, y = case.pair(13)
        y[6, 1] = value
        _refused(case, (x, y), "y: NaN or infinite values", "1 of 40 rows", "first is row 6")


def different_row_counts_are_refused(case: Case) -> None:
    x, y = case.pair(14)
    if case.measure.paired:
        _refused(case, (x, y[:-1]), "different numbers of rows", "n = 40 and n = 39")
    else:
        assert math.isfinite(case.measure(x, y[:-1])), "unpaired, and refuses different numbers of rows"


def different_widths_are_refused_where_one_space_is_needed(case: Case) -> None:
    x, y = pair(14)
    if case.measure.equal_widths:
        _refused(case, (x, y), "one space", "widths 7 and 11")


def wrong_shapes_and_kinds_are_refused(case: Case) -> None:
    x, y = case.pair(15)
    for wrong in (x[:, 0], x[None], x[:0], np.full((N, 2), "a"), x.astype(complex)):
        _refused(case, (wrong, y), "x: wrong shape|x: not an array of numbers|x: complex numbers")


def _refused(case: Case, arrays: tuple[Any, Any], *words: str) -> None:
    try:
        value = case.measure(*arrays)
    except RepalignError as error:
        said = str(error)
        missing = [w for w in words if not any(part in said for part in w.split("|"))]
        assert not missing, f"the error does not say {missing}: {said}"
        return
    raise AssertionError(f"not refused ({words[0]}), but scored {value!r}")


def a_huge_offset_costs_no_digits_where_translation_is_free(case: Case) -> None:
    if "translation" in case.measure.invariances:
        x, y = case.pair(16)
        _close(case.measure(x + 1e8, y), case.measure(x, y), 1e-5, "x + 1e8")


def extreme_scales_neither_overflow_nor_vanish(case: Case) -> None:
    if "isotropic_scale" in case.measure.invariances:
        score, (x, y) = _score(case.measure), case.pair(17)
        for scale in (1e160, 1e-160):
            _close(score(x * scale, y), score(x, y), max(1e-9, 10 * case.tolerance), f"x * {scale:g}")


# --- chance ---------------------------------------------------------------------------------------


def independent_spaces_are_found_as_rarely_as_the_level_says(case: Case) -> None:
    """Random permutations at the .05 level on independent Gaussian spaces; the bound is exceeded once in 1,000 runs.

    Four spaces a side all meet. The test is exact for every fixed x and for every fixed y, so that two trials are uncorrelated
    and the count has the binomial's variance, as of spaces that meet once.
    """
    from scipy.stats import binom

    from repalign import null as nulls

    m = case.measure
    if not m.paired or not case.trials:
        return
    n, found = max(16, m.min_n), []
    for block in range(math.ceil(case.trials / 16)):
        rng, null = np.random.default_rng([7, block]), nulls.Permutations(19, seed=block)
        sides = [[rng.standard_normal((n, width)) for _ in range(4)] for width in (6, 6 if m.equal_widths else 20)]
        a, b = (null.prepare(m, [m.prepare(as_features(z)) for z in side]) for side in sides)
        found += nulls.pvalue(*null.scored(m, a, b)).ravel().tolist()
    rejected = sum(p <= 0.05 for p in found[: case.trials])
    most = int(binom.ppf(0.999, case.trials, 0.05))
    assert rejected <= most, f"{rejected} of {case.trials} independent pairs are found at .05, more than {most}"


def a_bilinear_measure_gives_relations(case: Case) -> None:
    """Its score is an affine function of <A, B>, closer the larger that is, which moments and the cyclic null build on."""
    if not isinstance(case.measure, Bilinear):
        return
    x, y = case.pair(21)
    a, b = ([case.measure.prepare(as_features(z))] for z in (x, y))
    ends = [float(case.measure.scale(torch.full((1, 1), v, dtype=torch.float64), a, b)[0, 0]) for v in (0.0, 1.0, 0.25)]
    _close(ends[2], 0.75 * ends[0] + 0.25 * ends[1], 1e-12, "scale is not affine")
    assert case.measure.closeness(ends[1] - ends[0]) > 0, "a larger inner product is not closer"


# Every public function above that takes a case alone.
LAWS: dict[str, Callable[[Case], None]] = {
    name: law
    for name, law in list(globals().items())
    if inspect.isfunction(law) and not name.startswith("_") and list(inspect.signature(law).parameters) == ["case"]
}
