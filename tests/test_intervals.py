"""Intervals over stimuli: the arithmetic by hand, groups, coverage on known populations, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from repalign.comparison.intervals import METHODS, difference_interval, halves, jackknife, score_interval
from repalign.errors import RepalignError
from repalign.measures import CKA, MutualKNN, State
from repalign.measures.measure import Features, Measure
from repalign.models import ModelRecord
from repalign.representation import MemoryRepresentation


class MeanProduct(Measure):
    """mean_i x_i y_i of one feature: a mean over stimuli, for which every formula is known."""

    min_n = 1  # type: ignore[assignment]

    def prepare(self, x: torch.Tensor) -> Features:
        return Features(x)

    def compare(self, a: State, b: State) -> float:
        return float((a.values * b.values).mean())  # type: ignore[attr-defined]


class PairSum(MeanProduct):
    """(mean_i x_i)(mean_i y_i): its expectation is E x E y + Cov / n, so its bias is Cov / n."""

    def compare(self, a: State, b: State) -> float:
        return float(a.values.mean() * b.values.mean())  # type: ignore[attr-defined]


def population(n: int, seed: int, width: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B, C with B and C exchangeable given A."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 3))
    maps = np.random.default_rng(99).standard_normal((2, 3, width))
    noise = rng.standard_normal((3, n, width))
    return z @ maps[0] + noise[0], z @ maps[1] + noise[1], z @ maps[1] + noise[2]


# --- arithmetic ---------------------------------------------------------------------------------


def test_jackknife_by_hand():
    """Scores 1, 2, 6 of three rows, each left out once: mean 3, replicates 4, 3.5, 1.5; variance of a mean 7 / 3."""
    found = score_interval([[1.0], [2.0], [6.0]], [[1.0], [1.0], [1.0]], MeanProduct(), n_groups=3, level=0.9)
    assert found.statistic == 3.0
    assert found.std_error == pytest.approx(math.sqrt(7 / 3), rel=1e-12)
    reach = 2.919985580 * math.sqrt(7 / 3)  # t of 0.95 with 2 degrees of freedom, from a table
    assert (found.low, found.high) == pytest.approx((3 - reach, 3 + reach), rel=1e-8)
    assert (found.n, found.n_units, found.n_replicates, found.df, found.method) == (3, 3, 3, 2, "jackknife")
    assert found.bias == pytest.approx(0, abs=1e-12) and found.pvalue is None


def test_jackknife_of_equal_groups_is_the_textbook_formula():
    rng = np.random.default_rng(0)
    replicates, statistic, n_groups = rng.standard_normal(8), 0.3, 8
    variance, bias = jackknife(statistic, replicates, np.full(8, 70), 80)
    mean = replicates.mean()
    assert variance == pytest.approx((n_groups - 1) / n_groups * ((replicates - mean) ** 2).sum(), rel=1e-12)
    assert bias == pytest.approx((n_groups - 1) * (mean - statistic), rel=1e-12)


def test_jackknife_of_unequal_groups_by_hand():
    """s = 2; leaving out 1, 2, 3 of 6 rows gives 1, 2, 3. h = 6, 3, 2; pseudo-values 7, 2, 1; s_J = 6 - 11/3 = 7/3."""
    variance, bias = jackknife(2.0, np.array([1.0, 2.0, 3.0]), np.array([5, 4, 3]), 6)
    assert variance == pytest.approx((14**2 / 5 + 1**2 / 2 + 4**2 / 1) / 9 / 3, rel=1e-12)
    assert bias == pytest.approx(-1 / 3, rel=1e-12)


def test_jackknife_of_unequal_groups_forgets_a_shift_that_is_linear_in_size():
    """A score that rises with every row that is left out, as mutual k-NN does, has no spread for that reason."""
    n, deleted = 100, np.array([5, 10, 15, 30, 40])
    sizes = n - deleted
    variance, _ = jackknife(0.5, 0.5 + 0.002 * deleted, sizes, n)
    textbook = 4 / 5 * (0.002 * (deleted - deleted.mean()) ** 2).sum() * 0.002
    assert variance < 0.1 * textbook
    flat, bias = jackknife(0.5, np.full(5, 0.5), sizes, n)
    assert flat == pytest.approx(0, abs=1e-20) and bias == pytest.approx(0, abs=1e-12)


def test_halves_by_hand():
    """Two splits of n = 4 with halves (1, 3) and (4, 4): variance (4 + 0) / 2 / 4, bias mean - 2.5."""
    variance, bias = halves(2.5, np.array([1.0, 3.0, 4.0, 4.0]), np.full(4, 2), 4)
    assert variance == pytest.approx(0.5) and bias == pytest.approx(0.5)
    variance, bias = halves(2.0, np.array([1.0, 4.0]), np.array([1, 2]), 3)  # 3^2 * 2 / 9; (-1 * 1/2 + 2 * 2/1) / 2
    assert variance == pytest.approx(2.0) and bias == pytest.approx(1.75)


def test_halves_of_a_mean_give_its_variance():
    """For a mean the average over splits is s^2 / n exactly; 4,000 splits come within 5 %."""
    rng = np.random.default_rng(1)
    x, one = rng.standard_normal((30, 1)), np.ones((30, 1))
    found = score_interval(x, one, MeanProduct(), method="subsample", n_splits=4000)
    assert found.std_error == pytest.approx(x.std(ddof=1) / math.sqrt(30), rel=0.05)
    assert (found.n_replicates, found.df) == (8000, 29)


def test_halves_of_an_odd_number_of_rows():
    """With 3 rows the halves have 1 and 2: (s - s')^2 is scaled by 2 / 9."""
    x = np.array([[1.0], [2.0], [6.0]])
    found = score_interval(x, np.ones((3, 1)), MeanProduct(), method="subsample", n_splits=3000)
    gaps = [a - (9 - a) / 2 for a in (1.0, 2.0, 6.0)]
    assert found.std_error**2 == pytest.approx(np.mean(np.square(gaps)) * 2 / 9, rel=0.05)


def test_bias_of_a_product_of_means():
    """s = mean(x) mean(y) has bias Cov(x, y) / n; delete-one finds the unbiased estimate of it exactly."""
    x, y = np.random.default_rng(2).standard_normal((2, 25, 1))
    y += x
    expected = np.cov(x[:, 0], y[:, 0], ddof=1)[0, 1] / 25
    found = score_interval(x, y, PairSum(), n_groups=25)
    assert found.bias == pytest.approx(expected, rel=1e-9)
    assert found.corrected == pytest.approx(found.statistic - expected, rel=1e-12)
    split = score_interval(x, y, PairSum(), method="subsample", n_splits=4000)
    assert split.bias == pytest.approx(expected, rel=0.1)


def test_against_a_plain_loop_over_the_measure():
    """The replicates of mutual k-NN are the measure itself on the rows that stay (blocks given as groups)."""
    x, y, _ = population(60, 3)
    labels = np.arange(60) % 6
    measure = MutualKNN(k=4)
    replicates = np.array([measure(x[labels != g], y[labels != g]) for g in range(6)])
    found = score_interval(x, y, "mutual_knn(k=4)", groups=labels)
    assert found.statistic == measure(x, y)
    assert found.std_error == pytest.approx(math.sqrt(5 / 6 * ((replicates - replicates.mean()) ** 2).sum()), rel=1e-12)


def test_difference_is_paired_and_its_p_is_of_t():
    a, b, _ = population(80, 4)
    worse = b + 2 * np.random.default_rng(5).standard_normal(b.shape)
    labels, measure = np.arange(80) % 8, CKA()

    def gap(keep: np.ndarray) -> float:
        return measure(a[keep], b[keep]) - measure(a[keep], worse[keep])

    replicates = np.array([gap(labels != g) for g in range(8)])
    error = math.sqrt(7 / 8 * ((replicates - replicates.mean()) ** 2).sum())
    found = difference_interval(a, b, worse, measure, groups=labels)
    statistic = gap(np.ones(80, dtype=bool))
    assert (found.statistic, found.std_error) == pytest.approx((statistic, error), rel=1e-9)
    assert found.pvalue == pytest.approx(2 * stats.t.sf(statistic / error, 7), rel=1e-8)
    swapped = difference_interval(a, worse, b, measure, groups=labels)
    assert (swapped.low, swapped.high, swapped.pvalue) == pytest.approx((-found.high, -found.low, found.pvalue))
    alone = [score_interval(a, y, measure, groups=labels).std_error for y in (b, worse)]
    assert found.std_error < math.hypot(*alone)  # the reference and the stimuli are shared


def test_one_p_and_level_agree():
    """The interval at level 1 - p has 0 as an end."""
    a, b, c = population(80, 6)
    p = difference_interval(a, b, c, "cka").pvalue
    assert p is not None
    found = difference_interval(a, b, c, "cka", level=1 - p)
    assert min(abs(found.low), abs(found.high)) < 1e-9


def test_the_same_side_twice_differs_by_nothing():
    a, b, _ = population(50, 7)
    found = difference_interval(a, b, b, "cka")
    assert (found.statistic, found.low, found.high, found.pvalue) == (0, 0, 0, 1)


# --- groups, inputs ------------------------------------------------------------------------------


class Watch(MeanProduct):
    """Keeps the rows that each subset was made of."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def prepare(self, x: torch.Tensor) -> Features:
        self.seen.append(x[:, 0].numpy().astype(int))
        return super().prepare(x)


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_group_leave_together_and_no_row_comes_twice(method: str):
    labels = np.array(["a", "b", "c", "d", "e"])[np.random.default_rng(8).integers(5, size=40)]
    rows, watch = np.arange(40.0)[:, None], Watch()
    found = score_interval(rows, rows, watch, method=method, groups=labels)
    subsets = watch.seen[2::2]  # the first two are all rows, and each subset is prepared for x and for y
    assert len(subsets) == found.n_replicates and (found.n_units, found.df) == (5, 4)
    for kept in subsets:
        assert len(set(kept)) == len(kept) < 40
        assert set(labels[kept]).isdisjoint(labels[np.setdiff1d(np.arange(40), kept)])


def test_blocks_are_nearly_equal_and_cover_every_row_once():
    rows, watch = np.arange(47.0)[:, None], Watch()
    score_interval(rows, rows, watch, n_groups=10, seed=3)
    left_out = [np.setdiff1d(np.arange(47), kept) for kept in watch.seen[2::2]]
    assert sorted(np.concatenate(left_out)) == list(range(47))
    assert {len(b) for b in left_out} == {4, 5}
    assert left_out[0].tolist() != list(range(0, 47, 10))  # dealt at random


def test_halves_are_complements():
    rows, watch = np.arange(21.0)[:, None], Watch()
    score_interval(rows, rows, watch, method="subsample", n_splits=5)
    subsets = watch.seen[2::2]
    for first, second in zip(subsets[::2], subsets[1::2], strict=True):
        assert sorted([*first, *second]) == list(range(21)) and abs(len(first) - len(second)) == 1


def test_groups_widen_the_interval_where_stimuli_repeat():
    """Five near-copies of each of 40 stimuli are 40 units, not 200: the interval without groups is far too short."""
    a, b, _ = population(40, 9)
    noise = 0.01 * np.random.default_rng(10).standard_normal((2, 200, 6))
    a, b = a.repeat(5, axis=0) + noise[0], b.repeat(5, axis=0) + noise[1]
    with_groups = score_interval(a, b, "cka", groups=np.arange(200) // 5)
    assert with_groups.std_error > 1.4 * score_interval(a, b, "cka").std_error
    assert with_groups.n_units == 40


@pytest.mark.parametrize("method", METHODS)
def test_seed_torch_and_progress(method: str):
    a, b, _ = population(60, 11)
    calls: list[tuple[int, int]] = []
    found = score_interval(
        a, b, "cka", method=method, seed=1, progress=lambda _, done, total: calls.append((done, total))
    )
    assert found == score_interval(torch.from_numpy(a), torch.from_numpy(b), CKA(), method=method, seed=1)
    assert found.std_error != score_interval(a, b, "cka", method=method, seed=2).std_error
    assert calls[0] == (0, found.n_replicates) and calls[-1] == (found.n_replicates, found.n_replicates)


def test_layers_of_representations():
    a, b, c = (torch.from_numpy(x) for x in population(40, 12))
    ids = tuple(f"s{i}" for i in range(40))
    x = MemoryRepresentation(ModelRecord("array:x", "x", "text", None), ids, {"one": a})
    y = MemoryRepresentation(ModelRecord("array:y", "y", "image", None), ids, {"one": b, "two": c})
    assert score_interval((x, "one"), (y, "two"), "cka") == score_interval(a, c, "cka")
    found = difference_interval((x, "one"), (y, "one"), (y, "two"), "cka")
    assert found == difference_interval(a, b, c, "cka")
    with pytest.raises(RepalignError, match="y: no layer 'too'"):
        score_interval((x, "one"), (y, "too"), "cka")
    other = MemoryRepresentation(y.record, ids[::-1], y.arrays)
    with pytest.raises(RepalignError, match="id of row 0 differs"):
        score_interval((x, "one"), (other, "one"), "cka")


def test_a_constant_layer_has_no_interval():
    a, _, _ = population(40, 13)
    found = score_interval(a, np.ones((40, 2)), "cka")
    assert all(math.isnan(v) for v in (found.statistic, found.low, found.high, found.std_error))
    assert math.isnan(difference_interval(a, a, np.ones((40, 2)), "cka").pvalue or 0)


def test_bias_is_not_given_where_k_is_fixed():
    """Fewer rows alone raise mutual k-NN, by more than its standard error: that is the gallery and no bias."""
    a, b, _ = population(100, 14)
    found = score_interval(a, b, "mutual_knn(k=10)")
    assert math.isnan(found.bias) and math.isnan(found.corrected)
    rng = np.random.default_rng(0)
    kept = [rng.permutation(100)[:50] for _ in range(20)]
    assert np.mean([MutualKNN()(a[p], b[p]) for p in kept]) - found.statistic > 2 * found.std_error


# --- coverage ------------------------------------------------------------------------------------


def wilson_99(hits: int, trials: int) -> tuple[float, float]:
    found = stats.binomtest(hits, trials).proportion_ci(0.99, method="wilson")
    return found.low, found.high


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("measure", [CKA(), MutualKNN(k=10)], ids=["cka", "knn"])
def test_coverage_of_a_difference_that_is_zero_by_symmetry(measure: Measure, method: str):
    """120 samples of n = 80: at least the nominal 90 % within Wilson's 99 % interval, and not everything."""
    how = {"method": method, "level": 0.9, "n_groups" if method == "jackknife" else "n_splits": 8}
    found = [difference_interval(*population(80, 1000 + t), measure, **how) for t in range(120)]
    hits = sum(f.low <= 0 <= f.high for f in found)
    assert wilson_99(hits, 120)[1] >= 0.9 and hits < 120
    assert [f.pvalue >= 0.1 for f in found] == [f.low <= 0 <= f.high for f in found]
    spread = np.std([f.statistic for f in found], ddof=1)
    ratio = math.sqrt(np.mean([f.std_error**2 for f in found])) / spread
    assert 0.85 < ratio < 1.75  # never much too short; up to sqrt(2) to 1.5 too wide, see the module


def test_bootstrap_rows_would_bias_mutual_knn():
    """Why rows are never drawn twice: copies are each other's neighbours in both spaces, so independent spaces agree.

    Drawn n times of n, a row comes about twice where it comes at all, and a share near 1 / k of every list is copies.
    """
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 200, 8))
    measure = MutualKNN(k=10)
    drawn = [rng.integers(200, size=200) for _ in range(20)]
    scores = np.array([measure(x[p], y[p]) for p in drawn])
    score, error = measure(x, y), score_interval(x, y, measure).std_error
    assert scores.min() > score + 5 * error
    assert 0.08 < scores.mean() - score < 0.12  # a row's copies: Binomial(n - 1, 1 / n), mean 1 of k = 10


# --- errors --------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((30, 3))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "jacknife"}, r"(?s)unknown method 'jacknife'.*did you mean 'jackknife'"),
        ({"method": "bootstrap"}, "unknown method 'bootstrap'"),
        ({"level": 95}, r"(?s)level is not a probability.*got: 95"),
        ({"n_groups": 1}, r"(?s)n_groups is not a count.*2 or more.*got: 1"),
        ({"n_groups": 2.5}, "n_groups is not a count"),
        ({"method": "subsample", "n_splits": 0}, r"(?s)n_splits is not a count.*1 or more"),
        ({"method": "subsample", "n_groups": 5}, r"(?s)method 'subsample' has no n_groups.*got: n_groups=5"),
        ({"n_splits": 5}, "method 'jackknife' has no n_splits"),
        ({"groups": [1, 2]}, r"(?s)groups do not fit the stimuli.*30 labels.*got: 2"),
        ({"groups": ["a"] * 30}, r"(?s)one unit has no spread.*30 rows in one"),
        ({"groups": [*range(29), None]}, r"(?s)a row has no group.*nothing in row 29"),
        ({"groups": np.r_[np.nan, np.arange(29.0)]}, r"(?s)a row has no group.*nothing in row 0"),
    ],
)
def test_parameters_that_are_refused(how: dict, message: str):
    with pytest.raises(RepalignError, match=message):
        score_interval(X, X, "cka", **how)


def test_inputs_that_are_refused():
    with pytest.raises(RepalignError, match=r"(?s)reference and second have different numbers of rows.*30 and n = 29"):
        difference_interval(X, X, X[:29], "cka")
    with pytest.raises(RepalignError, match="y: NaN or infinite values"):
        score_interval(X, np.full((30, 2), np.nan), "cka")
    with pytest.raises(RepalignError, match="unknown measure 'ckaa'"):
        score_interval(X, X, "ckaa")
    with pytest.raises(
        RepalignError, match=r"(?s)a subset is too small for MutualKNN\(k=15.*16 rows or more.*got: 15 rows"
    ):
        score_interval(X, X, MutualKNN(k=15), method="subsample")
    with pytest.raises(RepalignError, match="x: too few stimuli for MutualKNN"):
        score_interval(X, X, MutualKNN(k=30))
