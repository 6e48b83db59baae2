"""The layer search: aggregates, step-down p-values and what stands across pairs, each against a plain form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from repalign import null as nulls
from repalign.errors import RepalignError

SEARCHES = [
    f"{scale} {aggregate}"
    for scale in nulls.SCALES
    for aggregate in ("max", "mean", "top-3", "rows", "columns", "matching")
]


def plain_aggregate(s: np.ndarray, aggregate: str) -> float:
    """The aggregates as one would write them on paper."""
    la, lb = s.shape
    if aggregate == "max":
        return s.max()
    if aggregate == "mean":
        return s.mean()
    if aggregate == "top-3":
        return float(np.mean(sorted(s.ravel())[-3:]))
    if aggregate == "rows":
        return float(np.mean([max(row) for row in s]))
    if aggregate == "columns":
        return float(np.mean([max(column) for column in s.T]))
    small = min(la, lb)
    if la > lb:
        s = s.T
    return max(
        float(np.mean([s[i, j] for i, j in enumerate(p)])) for p in itertools.permutations(range(max(la, lb)), small)
    )


def plain_studentised(observed: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """z of the observed matrix, then of every draw."""
    pool = np.concatenate([observed[None], draws])
    return (pool - pool.mean(axis=0)) / pool.std(axis=0)


@pytest.mark.parametrize("how", SEARCHES)
def test_aggregates_equal_their_definitions(how: str):
    rng = np.random.default_rng(4)
    scale, aggregate = how.split()
    for shape in ((3, 4), (4, 2), (1, 1)):
        unit = rng.uniform(0.1, 2, shape)
        draws = rng.standard_normal((60, *shape)) * unit + rng.standard_normal(shape)
        observed = draws[0] + 1.2 * unit
        found = nulls.search_layers(observed, draws[1:], how=how)
        pool = (
            plain_studentised(observed, draws[1:])
            if scale == "studentised"
            else np.concatenate([observed[None], draws[1:]])
        )
        if aggregate == "top-3" and pool[0].size < 3:
            values = pool.reshape(len(pool), -1).mean(axis=1)
        else:
            values = np.array([plain_aggregate(s, aggregate) for s in pool])
        assert found.calibration.pvalue == (values >= values[0]).mean()
        # Told in the unit of the raw scores: an increasing affine map of the aggregate.
        slope = np.polyfit(values[1:], found.draws, 1)
        assert slope[0] > 0
        assert found.draws == pytest.approx(np.polyval(slope, values[1:]), abs=1e-9)
        assert found.calibration.statistic == pytest.approx(np.polyval(slope, values[0]), abs=1e-9)
        chosen = nulls.Search.parse(how).chosen(pool[0])
        assert found.calibration.statistic == pytest.approx(observed[chosen].mean(), abs=1e-12)
        assert pool[0][chosen].max() == pytest.approx(pool[0][found.layer_x, found.layer_y])


def test_step_down_equals_its_definition():
    """Romano and Wolf 2005, algorithm 4.1, written as the loop over hypotheses."""
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((199, 12)) + rng.standard_normal((199, 1))
    observed = rng.standard_normal(12) * 2
    order = np.argsort(-observed)
    p, largest = np.empty(12), 0.0
    for step, j in enumerate(order):
        remaining = draws[:, order[step:]].max(axis=1)
        largest = max(largest, (1 + (remaining >= observed[j]).sum()) / 200)
        p[j] = largest
    assert nulls.step_down(observed, draws) == pytest.approx(p)
    single = [(1 + (draws.max(axis=1) >= o).sum()) / 200 for o in observed]
    assert (nulls.step_down(observed, draws) <= single).all() and (nulls.step_down(observed, draws) < single).any()


def test_step_down_of_the_best_cell_is_the_p_of_the_search():
    rng = np.random.default_rng(2)
    draws = rng.standard_normal((99, 3, 5))
    observed = rng.standard_normal((3, 5)) + 0.7
    for how in ("studentised", "raw"):
        found = nulls.search_layers(observed, draws, how=how)
        assert found.stepdown[found.layer_x, found.layer_y] == found.calibration.pvalue == found.stepdown.min()


@pytest.mark.parametrize("how", ["studentised", "raw"])
def test_the_statistic_of_the_maximum_is_the_score_of_its_cell(how: str):
    rng = np.random.default_rng(5)
    observed, draws = rng.standard_normal((3, 5)), rng.standard_normal((99, 3, 5))
    found = nulls.search_layers(observed, draws, how=how)
    assert found.calibration.statistic == observed[found.layer_x, found.layer_y]
    assert how == "studentised" or found.calibration.statistic == observed.max()


def test_step_down_holds_the_family_wise_error_and_finds_more_than_one():
    """Some cells carry signal, the others do not: false findings come in no more than alpha of the trials."""
    rng = np.random.default_rng(3)
    false, found = 0, 0.0
    for _ in range(600):
        common = rng.standard_normal((40, 1, 1))  # one orbit: exchangeable draws with dependent cells
        pool = 0.6 * common + rng.standard_normal((40, 3, 4))
        observed = pool[0].copy()
        observed[0] += 4.0
        p = nulls.search_layers(observed, pool[1:], how="raw").stepdown
        false += bool((p[1:] <= 0.05).any())
        found += float((p[0] <= 0.05).mean()) / 600
    assert false / 600 <= 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5
    assert found > 0.5


@pytest.mark.parametrize("how", SEARCHES)
def test_undefined_layers_are_left_out(how: str):
    rng = np.random.default_rng(5)
    draws, observed = rng.standard_normal((50, 4, 3)), rng.standard_normal((4, 3))
    plain = nulls.search_layers(observed[1:], draws[:, 1:], how=how)
    draws[:, 0], observed[0] = np.nan, np.nan
    found = nulls.search_layers(observed, draws, how=how)
    assert found.calibration.pvalue == plain.calibration.pvalue and found.layer_x == plain.layer_x + 1
    assert np.isnan(found.stepdown[0]).all() and np.array_equal(found.stepdown[1:], plain.stepdown)
    nothing = nulls.search_layers(np.full((2, 2), np.nan), np.full((9, 2, 2), np.nan), how=how)
    assert (nothing.layer_x, nothing.layer_y) == (-1, -1) and np.isnan(nothing.calibration.pvalue)


def test_a_cell_that_no_relabelling_changes_is_never_chosen_for_its_rounding():
    rng = np.random.default_rng(6)
    draws = rng.standard_normal((80, 1, 2))
    draws[:, 0, 1] = 0.9 * (1 + 1e-9 * rng.standard_normal(80))
    found = nulls.search_layers(np.array([[2.0, 0.9 * (1 + 5e-9)]]), draws)
    assert (found.layer_x, found.layer_y) == (0, 0) and found.stepdown[0, 1] == 1.0



@pytest.mark.parametrize("rounding", [-1e-9, 0.0, 1e-9])
def test_step_down_counts_a_draw_that_equals_another_score_up_to_rounding(rounding):
    """Draws of one score are held against another, which they equal in exact arithmetic: rounding must not decide."""
    observed = np.array([2.0, 1.0])
    draws = np.array([[0.0, 2.0 * (1 + rounding)], [1.0 * (1 + rounding), 0.0], [0.5, 0.5], [0.0, 0.0]])
    # Of five: for 2.0 the draw of the second score that equals it; for 1.0 alone that same draw, 2 >= 1.
    assert nulls.step_down(observed, draws).tolist() == [2 / 5, 2 / 5]
    # The scale is that of the largest of all, scores or draws: 1e-7 is a tie with 0 where another score is 1.
    assert nulls.step_down(np.array([1.0, 1e-7]), np.zeros((3, 2))).tolist() == [1 / 4, 1.0]
    assert nulls.step_down(np.array([1e-7, 0.0]), np.array([[0.0, 1.0], [0.0, 0.0]])).tolist() == [1.0, 1.0]
    # A tie of the lower score with its own draw counts too.
    assert nulls.step_down(observed, np.array([[0.0, 1.0 * (1 + rounding)], [0.0, 0.0]])).tolist() == [1 / 3, 2 / 3]


@pytest.mark.parametrize("text", ["maxx", "studentised best", "top-0", "top-k", "raw raw"])
def test_unknown_searches_are_told(text: str):
    with pytest.raises(RepalignError, match="unknown layer search(.|\n)*top-5"):
        nulls.Search.parse(text)


def test_searches_have_one_name():
    assert str(nulls.Search.parse("matching")) == "studentised matching"
    assert nulls.Search.parse(str(nulls.Search("raw", "top-k", 7))) == nulls.Search("raw", "top-k", 7)


# --- across pairs of models ----------------------------------------------------------------------


def test_max_t_equals_the_loop_over_pairs():
    rng = np.random.default_rng(8)
    draws = rng.standard_normal((6, 300)) * rng.uniform(0.01, 9, (6, 1)) + rng.standard_normal((6, 1))
    observed = draws[:, 0] + 2 * draws.std(axis=1)
    observed[3] = np.nan
    keep = [0, 1, 2, 4, 5]
    z = plain_studentised(observed[keep], draws[keep].T)
    order = np.argsort(-z[0])
    expected, largest = np.full(6, np.nan), 0.0
    for step, j in enumerate(order):
        largest = max(largest, (1 + (z[1:, order[step:]].max(axis=1) >= z[0, j]).sum()) / 301)
        expected[keep[j]] = largest
    assert nulls.max_t(observed, draws) == pytest.approx(expected, nan_ok=True)


def test_max_t_is_sharper_than_holm_where_pairs_depend_on_each_other():
    rng = np.random.default_rng(9)
    draws = rng.standard_normal(999) + 0.05 * rng.standard_normal((30, 999))
    observed = np.full(30, 2.4)
    p = [float(nulls.pvalue(o, d)) for o, d in zip(observed, draws, strict=True)]
    assert nulls.max_t(observed, draws).max() <= 0.05 < nulls.holm(p).min()


def test_benjamini_yekutieli_by_hand():
    """p_(i) m c(m) / i with c(3) = 1 + 1/2 + 1/3, made monotone from above."""
    factor = 3 * (1 + 1 / 2 + 1 / 3)
    expected = [0.01 * factor, 0.03 * factor / 2, np.nan, min(1.0, 0.2 * factor / 3)]
    assert nulls.benjamini_yekutieli([0.01, 0.03, np.nan, 0.2]) == pytest.approx(expected, nan_ok=True)
