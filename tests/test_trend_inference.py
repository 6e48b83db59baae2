"""Trend inference: refits, enumerations and simulations that respect that pairs share models and models families."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from alignment_table import CKA, KNN, LANGUAGE, make_run, make_table
from repalign.errors import RepalignError
from repalign.relate import Crossed, infer, trend
from repalign.relate.jackknife import ranks

ROWS, PARTNERS = tuple("abcdefghijkl"), tuple(f"p{j}" for j in range(17))


def crossed(scores: np.ndarray, rows: tuple[str, ...] | None = None) -> Crossed:
    """A full table of scores, (models, partners)."""
    rows = rows or ROWS[: len(scores)]
    return Crossed(rows, PARTNERS[: scores.shape[1]], scores, np.ones(scores.shape))


def in_families(*sizes: int) -> dict[str, str]:
    return dict(zip(ROWS, (f"F{f}" for f, size in enumerate(sizes) for _ in range(size)), strict=False))


def made_up(seed: int, n: int = 7, partners: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    scores = 0.4 * x[:, None] + rng.standard_normal((n, 1)) + rng.standard_normal((n, partners))
    return x, scores


def refits(x, scores, rows, columns):
    """Slope and rank correlation without each group of rows or columns, by scipy."""
    out = []
    for gone in rows:
        keep = np.setdiff1d(np.arange(len(x)), gone)
        out.append((x[keep], scores[keep].mean(1)))
    for gone in columns:
        out.append((x, np.delete(scores, gone, axis=1).mean(1)))
    return np.array([(stats.linregress(a, b).slope, stats.spearmanr(a, b).statistic, len(a)) for a, b in out])


def jackknife(full: float, rows: np.ndarray, columns: np.ndarray) -> tuple[float, float, float]:
    """The interval from two sets of refits, written out."""
    v = [(len(t) - 1) / len(t) * sum((u - full) ** 2 for u in t) for t in (rows, columns)]
    df = sum(v) ** 2 / (v[0] ** 2 / (len(rows) - 1) + v[1] ** 2 / (len(columns) - 1))
    half = stats.t.ppf(0.975, df) * math.sqrt(sum(v))
    return full - half, full + half, df


# --- intervals against plain refits ------------------------------------------------------------


def test_intervals_leave_out_models_on_both_sides():
    x, scores = made_up(1)
    found = infer(crossed(scores), x)
    assert found is not None and (found.unit, found.n_units) == ("model", 7)
    assert (found.partner_unit, found.n_partner_units) == ("model", 5)
    left = refits(x, scores, [[i] for i in range(7)], [[j] for j in range(5)])
    low, high, df = jackknife(stats.linregress(x, scores.mean(1)).slope, left[:7, 0], left[7:, 0])
    np.testing.assert_allclose((*found.slope_interval, found.df), (low, high, df))
    z = np.arctanh(left[:, 1])
    low, high, _ = jackknife(np.arctanh(stats.spearmanr(x, scores.mean(1)).statistic), z[:7], z[7:])
    np.testing.assert_allclose(found.spearman_interval, np.tanh([low, high]))


def test_intervals_leave_out_whole_families_on_both_sides():
    x, scores = made_up(2, n=9, partners=6)
    families = in_families(4, 3, 2) | {"p0": "V", "p1": "V", "p2": "W", "p3": "W"}  # p4, p5 alone
    found = infer(crossed(scores), x, families)
    assert found is not None and (found.unit, found.n_units) == ("family", 3)
    assert (found.partner_unit, found.n_partner_units) == ("family", 4)
    left = refits(x, scores, [[0, 1, 2, 3], [4, 5, 6], [7, 8]], [[0, 1], [2, 3], [4], [5]])
    low, high, df = jackknife(found.slope, left[:3, 0], left[3:, 0])
    np.testing.assert_allclose((*found.slope_interval, found.df), (low, high, df))


def test_a_model_is_one_unit_in_all_its_pairs_where_all_met_all():
    rng = np.random.default_rng(3)
    x, n = rng.standard_normal(6), 6
    scores = rng.standard_normal((n, n)) + x[:, None] + x
    pairs = pd.DataFrame(
        [(ROWS[i], ROWS[j], scores[i, j]) for i, j in itertools.combinations(range(n), 2)],
        columns=["model_x", "model_y", "statistic"],
    )
    found = infer(Crossed.of(pairs, "both", ROWS[:n]), x)
    assert found is not None and (found.unit, found.n_units, found.partner_unit) == ("model", 6, None)
    assert "on both sides of their pairs" in found.method

    def slope(kept):
        means = [np.mean([scores[min(i, j), max(i, j)] for j in kept if j != i]) for i in kept]
        return stats.linregress(x[list(kept)], means).slope

    full = slope(range(n))
    left = np.array([slope([i for i in range(n) if i != gone]) for gone in range(n)])
    half = stats.t.ppf(0.975, n - 1) * math.sqrt((n - 1) / n * ((left - full) ** 2).sum())
    np.testing.assert_allclose((found.slope, *found.slope_interval, found.df), (full, full - half, full + half, n - 1))


def test_a_family_on_both_sides_is_one_unit():
    x, scores = made_up(4, n=6, partners=4)
    families = in_families(2, 2, 2) | {"p0": "F0", "p1": "F1", "p2": "F2", "p3": "F2"}
    found = infer(crossed(scores), x, families)
    assert found is not None and (found.unit, found.n_units, found.partner_unit) == ("family", 3, None)
    left = []
    for rows, columns in (([0, 1], [0]), ([2, 3], [1]), ([4, 5], [2, 3])):
        keep = np.setdiff1d(np.arange(6), rows)
        left.append(stats.linregress(x[keep], np.delete(scores, columns, 1)[keep].mean(1)).slope)
    half = stats.t.ppf(0.975, 2) * math.sqrt(2 / 3 * sum((t - found.slope) ** 2 for t in left))
    np.testing.assert_allclose(found.slope_interval, (found.slope - half, found.slope + half))


def test_two_partners_are_taken_as_they_are():
    x, scores = made_up(5, partners=2)
    found = infer(crossed(scores), x)
    assert found is not None and found.partner_unit is None and found.n_partner_units == 0
    assert found.df == pytest.approx(6) and "with these partners only" in found.method


def test_the_band_is_the_interval_of_the_intercept_after_moving_the_origin():
    x, scores = made_up(6)
    found = infer(crossed(scores), x)
    assert found is not None
    low, high = found.band([-1.0, 0.3], level=0.9)
    means = scores.mean(1)
    for k, x0 in enumerate((-1.0, 0.3)):
        full = stats.linregress(x - x0, means).intercept
        left = [stats.linregress(np.delete(x, i) - x0, np.delete(means, i)).intercept for i in range(7)]
        half = stats.t.ppf(0.95, 6) * math.sqrt(6 / 7 * sum((t - full) ** 2 for t in left))
        assert (low[k], high[k]) == pytest.approx((full - half, full + half))


def test_undefined_pairs_leave_the_means_of_the_rest():
    x, scores = made_up(7)
    pairs = pd.DataFrame(
        [(ROWS[i], PARTNERS[j], scores[i, j]) for i in range(7) for j in range(5)],
        columns=["model_x", "model_y", "statistic"],
    )
    pairs.loc[[3, 17], "statistic"] = np.nan
    table = pairs.pivot(index="model_x", columns="model_y", values="statistic")
    seen = Crossed.of(pairs, "x")
    np.testing.assert_allclose(seen.means(), table.mean(axis=1))
    np.testing.assert_allclose(seen.means(frozenset({"p3"})), table.drop(columns="p3").mean(axis=1))
    np.testing.assert_allclose(Crossed.of(pairs, "y").means(), table.mean(axis=0))
    found = infer(seen, x)
    assert found is not None and found.slope == pytest.approx(stats.linregress(x, table.mean(axis=1)).slope)


def test_models_and_partners_without_any_score_are_no_units():
    x, scores = made_up(13)
    empty = Crossed(ROWS[:8], PARTNERS[:6], np.pad(scores, ((0, 1), (0, 1))), np.pad(np.ones((7, 5)), ((0, 1), (0, 1))))
    found, plain = infer(empty, np.append(x, 3.0)), infer(crossed(scores), x)
    assert found is not None and plain is not None and found.method == plain.method
    assert (found.slope_interval, found.slope_pvalue) == (plain.slope_interval, plain.slope_pvalue)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_ranks_are_scipys_with_ties_infinities_and_nan(n: int):
    rng = np.random.default_rng(n)
    for x in (rng.standard_normal(n), rng.integers(0, 4, n) / 3, np.full(n, 2.0), np.where(rng.random(n) < 0.4, -np.inf, 1.0)):
        np.testing.assert_array_equal(ranks(x), stats.rankdata(x))
        x[n // 2] = np.nan
        np.testing.assert_array_equal(ranks(x), stats.rankdata(x))
    assert len(ranks([])) == 0


# --- p-values against enumerations -------------------------------------------------------------


def test_p_over_models_is_scipys_permutation_test():
    x, scores = made_up(8, n=6)
    found, means = infer(crossed(scores), x), scores.mean(1)
    assert found is not None and found.exact and found.n_orders == 720 and "all 720 reorderings" in found.method
    for p, statistic in ((found.slope_pvalue, stats.pearsonr), (found.spearman_pvalue, stats.spearmanr)):
        oracle = stats.permutation_test(
            (x,), lambda a, s=statistic: abs(s(a, means).statistic), permutation_type="pairings", n_resamples=np.inf,
            alternative="greater", vectorized=False,
        )  # fmt: skip
        assert p == pytest.approx(oracle.pvalue, abs=1e-12)


def enumerate_families(x, y, blocks, over: bool) -> float:
    """All orders of family means (if `over`) times all orders within families, by plain loops."""
    means = [x[b].mean() for b in blocks]
    observed, hits, count = abs(stats.pearsonr(x, y).statistic), 0, 0
    inside = [list(itertools.permutations(x[b] - x[b].mean())) for b in blocks]
    for order in itertools.permutations(means) if over else [means]:
        for choice in itertools.product(*inside):
            new = np.concatenate([m + np.array(d) for m, d in zip(order, choice, strict=True)])
            hits += abs(np.corrcoef(new, y)[0, 1]) >= observed - 1e-9
            count += 1
    return hits / count


def test_p_over_families_and_within_them_is_the_enumeration():
    x, scores = made_up(9, n=6)
    blocks = [np.arange(3), np.array([3, 4]), np.array([5])]
    found, means = infer(crossed(scores), x, in_families(3, 2, 1)), scores.mean(1)
    assert found is not None and found.unit == "family" and found.n_orders == 6 * 12 and found.exact
    assert found.slope_pvalue == pytest.approx(enumerate_families(x, means, blocks, over=True))
    ranked = stats.rankdata(x), stats.rankdata(means)
    assert found.spearman_pvalue == pytest.approx(enumerate_families(*ranked, blocks, over=True))
    assert found.within is None and found.between is None  # 12 and 6 orders: no p below .05


def test_within_and_between_families():
    x, scores = made_up(10, n=9)
    sizes, means = (4, 2, 2, 1), scores.mean(1)
    blocks = np.split(np.arange(9), np.cumsum(sizes)[:-1])
    found = infer(crossed(scores), x, in_families(*sizes))
    assert found is not None and found.within is not None and found.between is not None
    dx, dy = (np.concatenate([v[b] - v[b].mean() for b in blocks]) for v in (x, means))
    assert found.within.slope == pytest.approx(stats.linregress(dx, dy).slope)
    assert found.within.pvalue == pytest.approx(enumerate_families(dx, dy, blocks, over=False))
    assert (found.within.n_models, found.within.n_families) == (8, 3)
    fx, fy = (np.array([v[b].mean() for b in blocks]) for v in (x, means))
    assert found.between.slope == pytest.approx(stats.linregress(fx, fy).slope)
    assert found.between.pvalue == pytest.approx(enumerate_families(fx, fy, [np.array([i]) for i in range(4)], True))


def test_random_reorderings_agree_with_all_of_them_and_never_give_zero():
    x, scores = made_up(11, n=8)
    found, means = infer(crossed(scores), x, draws=4999, seed=1), scores.mean(1)
    assert found is not None and not found.exact and "4,999 random reorderings" in found.method
    every = np.array(list(itertools.permutations(x - x.mean()))) @ (means - means.mean())
    exact = (np.abs(every) >= abs((x - x.mean()) @ (means - means.mean())) - 1e-12).mean()
    assert abs(found.slope_pvalue - exact) < 4 * math.sqrt(exact * (1 - exact) / 4999) + 1 / 5000
    again = infer(crossed(scores), x, draws=4999, seed=1)
    assert again is not None and again.slope_pvalue == found.slope_pvalue
    perfect = infer(crossed(np.arange(12.0)[:, None] + np.zeros(3)), np.arange(12.0), draws=99)
    assert perfect is not None and perfect.slope_pvalue == 0.01


# --- simulations -------------------------------------------------------------------------------


def wilson(hits: int, n: int, z: float = 2.5758) -> tuple[float, float]:
    interval = stats.binomtest(hits, n).proportion_ci(2 * stats.norm.cdf(z) - 1, method="wilson")
    return interval.low, interval.high


def simulate(rng, sizes, slope: float, family: float, spread: float = 0.3):
    """Model, family, partner and pair effects; slopes that differ between partner families with sd `spread`.

    The covariate has a family part of the same share as alignment.
    """
    labels, n = np.repeat(np.arange(len(sizes)), sizes), sum(sizes)
    share = math.sqrt(0.5) if family else 0.0
    x = share * rng.standard_normal(len(sizes))[labels] + math.sqrt(1 - share**2) * rng.standard_normal(n)
    model = family * rng.standard_normal(len(sizes))[labels] + 0.7 * rng.standard_normal(n)
    kin = np.arange(17) % 5
    each = slope + spread * rng.standard_normal(5)[kin]
    return x, model[:, None] + rng.standard_normal(17) + x[:, None] * each + 0.7 * rng.standard_normal((n, 17))


PARTNER_KIN = {p: f"V{j % 5}" for j, p in enumerate(PARTNERS)}
RUNS = 300
DESIGNS = {"12 models": ((1,) * 12, 0.0), "6 families of 2": ((2,) * 6, 1.0), "3 families": ((5, 3, 4), 1.0)}


@pytest.mark.parametrize("design", DESIGNS)
def test_without_a_trend_five_in_a_hundred_reject_but_pairs_reject_far_more_often(design):
    (sizes, family), runs, rng = DESIGNS[design], RUNS, np.random.default_rng(20)
    families = in_families(*sizes) | PARTNER_KIN if family else PARTNER_KIN
    by_permutation = by_rank = by_interval = by_pairs = 0
    for run in range(runs):
        x, scores = simulate(rng, sizes, 0.0, family, spread=0.0)
        found = infer(crossed(scores), x, families, draws=199, seed=run)
        assert found is not None
        by_permutation += found.slope_pvalue <= 0.05
        by_rank += found.spearman_pvalue <= 0.05
        by_interval += not found.slope_interval[0] <= 0 <= found.slope_interval[1]
        by_pairs += stats.pearsonr(np.repeat(x, 17), scores.ravel()).pvalue <= 0.05
    for hits in (by_permutation, by_rank):
        low, high = wilson(hits, runs)
        assert low <= 0.05 <= high, hits / runs
    assert wilson(by_interval, runs)[0] <= 0.05
    assert by_pairs / runs > 3 * 0.05


@pytest.mark.parametrize("design", DESIGNS)
def test_the_interval_covers_a_trend(design):
    """Within Wilson's 99 % range of .95; three families err to the wide, never to the narrow."""
    (sizes, family), runs, rng = DESIGNS[design], RUNS, np.random.default_rng(21)
    families = in_families(*sizes) | PARTNER_KIN if family else PARTNER_KIN
    covered = 0
    for run in range(runs):
        x, scores = simulate(rng, sizes, 0.5, family)
        found = infer(crossed(scores), x, families, draws=1, seed=run)
        assert found is not None
        covered += found.slope_interval[0] <= 0.5 <= found.slope_interval[1]
    low, high = wilson(covered, runs)
    assert high >= 0.95 and (low <= 0.95 or design == "3 families"), covered / runs


# --- what is said ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    return make_run()["models"]


def test_the_text_says_units_and_p(models):
    found = trend(make_table(), models, "n_parameters", "y", KNN)
    one = found.inference
    assert one is not None and (one.unit, one.n_units, one.partner_unit, one.n_partner_units) == (
        "family",
        4,
        "model",
        5,
    )
    assert f"p = {one.slope_pvalue:.2g}; r =" in found.text and one.method in found.text
    assert "The units are 4 families and 5 partner models, not pairs" in found.text
    assert "Between the means of 4 families" in found.text
    assert found.slope == one.slope and found.spearman == one.spearman


def test_few_families_are_a_warning_and_one_family_is_not(models):
    text = trend(make_table(), models, "n_parameters", "x", KNN).text
    assert "Families are too few" in text and "p is too small" in text
    single = [{**m, "family": "one"} for m in models]
    assert "Families are too few" not in trend(make_table(), single, "n_parameters", "x", KNN).text
    none = [{**m, "family": None} for m in models]
    found = trend(make_table(), none, "n_parameters", "x", KNN)
    assert found.inference is not None and found.inference.unit == "model" and "amil" not in found.text


def test_three_models_have_a_p_and_no_interval(models):
    found = trend(make_table(LANGUAGE[:3], layers=(2, 2)), models, "n_parameters", "x", KNN).inference
    assert found is not None and math.isnan(found.df) and all(map(math.isnan, found.slope_interval))
    assert found.slope_pvalue in (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1) and "interval" not in found.method


def test_the_inference_sees_the_same_means_as_the_points(models):
    """Undefined pairs and models without the number included."""
    fewer = [{**m, "n_parameters": None} if m["name"] == "bloom-1b7" else m for m in models]
    for side in ("x", "y"):
        found = trend(make_table(), fewer, "n_parameters", side, CKA)
        assert found.fit is not None and found.inference is not None
        assert found.inference.slope == pytest.approx(found.fit.slope, rel=1e-12)
        assert found.inference.spearman == pytest.approx(found.fit.spearman, rel=1e-12)


def test_a_family_that_holds_all_the_spread_leaves_no_interval(models):
    sizes = {"bloom-560m": 5, "bloom-1b7": 5, "bloom-7b1": 5, "openllama-3b": 5, "llama-13b": 9}
    same = [{**m, "n_parameters": sizes.get(m["name"], m["n_parameters"])} for m in models]
    found = trend(make_table(), same, "n_parameters", "x", KNN)
    assert "no interval: without one model all have the same parameters" in found.text
    away = abs(found.points["alignment"] - found.points["alignment"].mean())
    assert not found.has_band and found.inference is not None
    assert found.inference.slope_pvalue == pytest.approx((away >= away.iloc[-1]).mean())


def test_a_perfect_order_has_no_interval_of_the_rank_correlation():
    x, _ = made_up(12)
    found = infer(crossed(x[:, None] ** 3 + np.zeros(4)), x)
    assert found is not None and found.spearman == pytest.approx(1) and all(map(math.isnan, found.spearman_interval))


def test_constant_alignment_has_no_p():
    found = infer(crossed(np.full((5, 3), 0.25)), np.arange(5.0))
    assert found is not None and found.slope == 0 and math.isnan(found.slope_pvalue)
    assert infer(crossed(np.zeros((5, 3))), np.ones(5)) is None


@pytest.mark.parametrize("x", [np.arange(4.0), np.array([0, 1, np.nan, 3, 4])])
def test_a_covariate_that_does_not_fit_is_refused(x):
    with pytest.raises(RepalignError, match=r"does not fit the models(.|\n)*5 finite numbers"):
        infer(crossed(np.zeros((5, 3))), x)
