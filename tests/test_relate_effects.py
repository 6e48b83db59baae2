"""Several factors at once: against least squares by hand, scipy's tests, and simulations in which pairs share models."""

from __future__ import annotations

import functools
import io
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from repalign import figures
from repalign.errors import RepalignError
from repalign.models import ModelRecord
from repalign.relate import effects
from repalign.relate.permutations import block_orders


def made_table(scores: np.ndarray, one_set: bool = False) -> pd.DataFrame:
    """The "max" rows of scores (models, partners); or of half a square matrix, all models with all others."""
    names, pairs = of_pairs(scores.shape, one_set)
    return names.assign(statistic=scores[pairs])


@functools.cache
def of_pairs(shape: tuple[int, int], one_set: bool) -> tuple[pd.DataFrame, tuple[np.ndarray, ...]]:
    """All of the table but the scores, and where these stand; made once for the hundreds of tables of a simulation."""
    i, j = np.nonzero(np.triu(np.ones(shape), 1) if one_set else np.ones(shape))
    names = {"model_x": [f"m{k}" for k in i], "model_y": [f"{'m' if one_set else 'p'}{k}" for k in j]}
    return pd.DataFrame({**names, "scope": "max", "measure": "CKA()", "n": 100}), (i, j)


def made_records(n: int, **factors: Any) -> list[dict[str, Any]]:
    """Records of models m0 ... with factors, each a sequence over models."""
    return [{"name": f"m{i}", "factors": {k: v[i] for k, v in factors.items() if v[i] is not None}} for i in range(n)]


def made_up(seed: int, n: int = 12, partners: int = 7) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Two numbers that go together, a word of three levels, and scores that depend on the first and the word."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(n)
    b = 0.6 * a + 0.8 * rng.standard_normal(n)
    word = [("red", "green", "blue")[i % 3] for i in range(n)]
    model = 0.3 * a + np.array([0.4 * (w == "red") for w in word]) + 0.2 * rng.standard_normal(n)
    return a, b, word, model[:, None] + rng.standard_normal(partners) + 0.2 * rng.standard_normal((n, partners))


def fitted(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Coefficients with an intercept first, residual sum of squares, R^2."""
    design = np.column_stack([np.ones(len(y)), x])
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    rest = ((y - design @ coefficients) ** 2).sum()
    return coefficients, rest, 1 - rest / ((y - y.mean()) ** 2).sum()


def dummies(word: list[str]) -> np.ndarray:
    return np.array([[w == level for level in dict.fromkeys(word)] for w in word], float)


# --- the fit -----------------------------------------------------------------------------------


def test_effects_are_those_of_least_squares():
    a, b, word, scores = made_up(0)
    y = scores.mean(1)
    found = effects(made_table(scores), made_records(12, a=a, b=b, word=word), ["a", "b", "word"], draws=99)
    za, zb = ((v - v.mean()) / v.std() for v in (a, b))
    coefficients, rest, r2 = fitted(np.column_stack([za, zb, dummies(word)[:, 1:]]), y)
    table = found.table.set_index("factor")
    np.testing.assert_allclose(table.loc[["a", "b"], "effect"], coefficients[1:3])
    np.testing.assert_allclose(table.loc["a", "per_unit"], coefficients[1] / a.std())
    np.testing.assert_allclose((found.r2, found.residual_sd), (r2, math.sqrt(rest / 7)))
    assert found.adjusted_r2 == pytest.approx(1 - (1 - r2) * 11 / 7)
    level = np.array([0, *coefficients[3:]])  # against the first
    np.testing.assert_allclose(found.levels["effect"], level - level.mean())
    assert found.levels["level"].tolist() == ["red", "green", "blue"] and found.levels["n_models"].tolist() == [4, 4, 4]
    assert table["kind"].tolist() == ["number", "number", "category"] and table["df"].tolist() == [1, 1, 2]
    np.testing.assert_allclose(found.points["alignment"], y)
    assert table.loc["word", "spread"] == pytest.approx(np.std([level[("red", "green", "blue").index(w)] for w in word]))


def test_partial_r2_and_shares_are_what_leaving_out_and_adding_say():
    a, b, _, scores = made_up(1)
    y = scores.mean(1)
    found = effects(made_table(scores), made_records(12, a=a, b=b), ["a", "b"], draws=99).table.set_index("factor")
    (_, rest_a, r2_a), (_, rest_b, r2_b), (_, rest, r2) = (fitted(x, y) for x in (a, b, np.column_stack([a, b])))
    np.testing.assert_allclose(found["partial_r2"], [1 - rest / rest_b, 1 - rest / rest_a])
    np.testing.assert_allclose(found["share"], [(r2_a + r2 - r2_b) / 2, (r2_b + r2 - r2_a) / 2])
    np.testing.assert_allclose(found["vif"], 1 / (1 - np.corrcoef(a, b)[0, 1] ** 2))


def test_shares_sum_to_r2_and_inflation_is_1_where_nothing_goes_together():
    rng = np.random.default_rng(2)
    grid = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (0, 1, 2)], float)
    scores = grid @ [0.3, 0.0, 0.5] + rng.standard_normal(12)
    records = made_records(12, x=grid[:, 0], y=grid[:, 1], z=[f"level {v:g}" for v in grid[:, 2]])
    found = effects(made_table(np.tile(scores[:, None], 3)), records, ["x", "y", "z"], draws=99)
    assert found.table["share"].sum() == pytest.approx(found.r2)
    np.testing.assert_allclose(found.table["vif"], 1)
    alone = [fitted(x, scores)[2] for x in (grid[:, 0], grid[:, 1], dummies(grid[:, 2].tolist())[:, 1:])]
    np.testing.assert_allclose(found.table["share"], alone)
    assert not found.warnings


def test_numbers_are_on_log10_where_asked_and_may_be_words():
    rng = np.random.default_rng(3)
    width = [2.0, 4.0, 8.0, 16.0] * 3
    scores = np.log10(width)[:, None] * 0.1 + 0.01 * rng.standard_normal((12, 4))
    table, records = made_table(scores), made_records(12, width=width, other=rng.standard_normal(12))
    found = effects(table, records, ["width"], draws=99)
    row = found.table.iloc[0]
    slope = stats.linregress(np.log10(width), scores.mean(1)).slope
    assert row.log and row.per_unit == pytest.approx(slope) and row.effect == pytest.approx(slope * np.log10(width).std())
    plain = effects(table, records, ["width"], log=(), draws=99).table.iloc[0]
    assert not plain.log and plain.per_unit == pytest.approx(stats.linregress(width, scores.mean(1)).slope)
    words = effects(table, records, ["width"], categories=["width"], draws=99)
    assert words.levels["level"].tolist() == ["2", "4", "8", "16"] and words.table["df"].tolist() == [3]
    means = scores.mean(1).reshape(3, 4).mean(0)
    np.testing.assert_allclose(words.levels["effect"], means - means.mean())


def test_records_give_size_family_and_objective_too():
    rng = np.random.default_rng(4)
    records = [
        ModelRecord(f"toy:m{i}", f"m{i}", "text", family="AB"[i % 2], objective="xyz"[i % 3], n_parameters=10 ** (i % 4 + 1))
        for i in range(12)
    ]
    factors = ["n_parameters", "family", "objective"]
    found = effects(made_table(rng.standard_normal((12, 4))), records, factors, draws=99)
    assert found.table["label"].tolist() == ["Parameters", "Family", "Objective"]
    assert found.levels["level"].tolist() == ["A", "B", "x", "y", "z"] and found.n == 12


# --- intervals and p -----------------------------------------------------------------------------


def test_intervals_leave_out_models_and_partners_one_at_a_time():
    a, b, _, scores = made_up(5, n=9, partners=6)
    found = effects(made_table(scores), made_records(9, a=a, b=b), ["a", "b"], draws=99)
    z = np.column_stack([(v - v.mean()) / v.std() for v in (a, b)])  # in the sd of all models, also without one
    full = fitted(z, scores.mean(1))[0][1:]
    rows = [fitted(np.delete(z, i, 0), np.delete(scores, i, 0).mean(1))[0][1:] for i in range(9)]
    columns = [fitted(z, np.delete(scores, j, 1).mean(1))[0][1:] for j in range(6)]
    v = [(len(t) - 1) / len(t) * ((np.array(t) - full) ** 2).sum(0) for t in (rows, columns)]
    df = (v[0] + v[1]) ** 2 / (v[0] ** 2 / 8 + v[1] ** 2 / 5)
    half = stats.t.ppf(0.975, df) * np.sqrt(v[0] + v[1])
    np.testing.assert_allclose(found.table["low"], full - half)
    np.testing.assert_allclose(found.table["high"], full + half)
    assert (found.n_units, found.n_partner_units, found.unit, found.grouped) == (9, 6, "model", False)
    assert "leave out one of 9 models and 6 of the partners" in found.text


def test_models_of_one_run_are_left_out_together_on_both_sides():
    a, b, _, scores = made_up(6, n=9, partners=6)
    runs = [None, None, None, *"uuu", *"vvv"]
    records = [*made_records(9, a=a, b=b, run=runs), *({"name": f"p{j}", "factors": {"run": "wwwxyz"[j]}} for j in range(6))]
    found = effects(made_table(scores), records, ["a"], draws=99)
    z = (a - a.mean()) / a.std()
    full = fitted(z, scores.mean(1))[0][1]
    gone = ([[0], [1], [2], [3, 4, 5], [6, 7, 8]], [[0, 1, 2], [3], [4], [5]])
    rows = [fitted(np.delete(z, g), np.delete(scores, g, 0).mean(1))[0][1] for g in gone[0]]
    columns = [fitted(z, np.delete(scores, g, 1).mean(1))[0][1] for g in gone[1]]
    v = [(len(t) - 1) / len(t) * sum((u - full) ** 2 for u in t) for t in (rows, columns)]
    df = sum(v) ** 2 / (v[0] ** 2 / 4 + v[1] ** 2 / 3)
    assert found.table["high"].iloc[0] - full == pytest.approx(stats.t.ppf(0.975, df) * math.sqrt(sum(v)))
    assert (found.unit, found.n_units, found.n_partner_units, found.grouped) == ("run", 5, 4, True)
    assert "99 random orders and signs of whole runs of what the other factors leave over" in found.text
    apart = effects(made_table(scores), records, ["a"], unit="none", draws=99)
    assert (apart.unit, apart.n_units, apart.grouped) == ("model", 9, False)


def test_where_all_met_all_a_model_leaves_both_its_places():
    rng = np.random.default_rng(7)
    x, noise = rng.standard_normal(8), rng.standard_normal((8, 8))
    scores = x[:, None] + x + noise + noise.T
    found = effects(made_table(scores, one_set=True), made_records(8, x=x), ["x"], side="both", draws=99)
    z, off = (x - x.mean()) / x.std(), ~np.eye(8, dtype=bool)

    def slope(kept: np.ndarray) -> float:
        means = [scores[i, kept & off[i]].mean() for i in np.flatnonzero(kept)]
        return fitted(z[kept], np.array(means))[0][1]

    full = slope(np.ones(8, bool))
    left = [slope(np.arange(8) != i) for i in range(8)]
    half = stats.t.ppf(0.975, 7) * math.sqrt(7 / 8 * sum((t - full) ** 2 for t in left))
    row = found.table.iloc[0]
    assert (row.effect, row.high) == (pytest.approx(full), pytest.approx(full + half))
    assert (found.n, found.n_partners, found.n_units, found.n_partner_units) == (8, 8, 8, 0)


def test_the_p_of_one_number_is_the_permutation_test_of_the_correlation():
    a, _, _, scores = made_up(8)
    y = scores.mean(1) + 0.4 * np.random.default_rng(9).standard_normal(12)
    table = made_table(np.tile(y[:, None], 3))
    found = effects(table, made_records(12, a=a), ["a"], draws=9999).table["pvalue"].iloc[0]
    oracle = stats.permutation_test(
        (a,), lambda v, axis: stats.pearsonr(v, y, axis=axis).statistic ** 2, permutation_type="pairings", n_resamples=9999,
        vectorized=True, alternative="greater", rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    assert 0.01 < oracle < 0.9 and found == pytest.approx(oracle, abs=4 * math.sqrt(2 * 0.25 / 9999))


def test_the_p_of_a_word_is_near_that_of_analysis_of_variance_where_noise_is_normal():
    rng = np.random.default_rng(10)
    word = ["a", "b", "c"] * 12
    y = np.array([0.5 * (w == "a") for w in word]) + rng.standard_normal(36)
    found = effects(made_table(np.tile(y[:, None], 3)), made_records(36, w=word), ["w"], draws=4999).table["pvalue"].iloc[0]
    oracle = stats.f_oneway(*(y[[i for i, w in enumerate(word) if w == level]] for level in "abc")).pvalue
    assert 0.01 < oracle < 0.9 and found == pytest.approx(oracle, abs=0.04)


def drawn(seed: int, runs: int, each: int, partners: int = 6) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """A factor with an effect, one without that goes together with it, effects of runs, models, partners and pairs."""
    rng = np.random.default_rng(seed)
    n = runs * each
    run = np.repeat(np.arange(runs), each)
    real = np.repeat(rng.standard_normal(runs), each)
    idle = 0.6 * real + 0.8 * np.repeat(rng.standard_normal(runs), each)
    model = real + np.repeat(rng.standard_normal(runs), each) * (each > 1) + (0.3 if each > 1 else 1) * rng.standard_normal(n)
    scores = model[:, None] + rng.standard_normal(partners) + 0.5 * rng.standard_normal((n, partners))
    return made_table(scores), made_records(n, real=real, idle=idle, run=[f"r{i}" for i in run] if each > 1 else [None] * n)


@pytest.mark.parametrize(("runs", "each"), [(14, 1), (14, 3)])
def test_p_of_a_factor_without_effect_is_uniform_although_pairs_share_models(runs, each):
    simulations = 300
    found, naive = [], []
    for seed in range(simulations):
        table, records = drawn(seed, runs, each)
        p = effects(table, records, ["real", "idle"], draws=199, seed=seed).table["pvalue"]
        found.append((p[0], p[1]))
        by_pair = [records[int(m[1:])]["factors"] for m in table["model_x"]]
        design = np.column_stack([np.ones(len(table)), [f["real"] for f in by_pair], [f["idle"] for f in by_pair]])
        naive.append(ordinary_p(design, table["statistic"].to_numpy())[2])
    real, idle = np.array(found).T
    assert stats.kstest(idle, stats.uniform.cdf).pvalue > 0.01
    assert 0.02 <= (idle <= 0.05).mean() <= 0.085  # 300 of a share of .05: 3 standard errors are .038
    assert (real <= 0.05).mean() > 0.4
    assert (np.array(naive) <= 0.05).mean() > 0.2  # what pairs as units would have said


def ordinary_p(design: np.ndarray, y: np.ndarray) -> np.ndarray:
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    df = len(y) - design.shape[1]
    variance = ((y - design @ coefficients) ** 2).sum() / df * np.linalg.inv(design.T @ design).diagonal()
    return 2 * stats.t.sf(np.abs(coefficients) / np.sqrt(variance), df)


def test_units_change_places_with_units_of_their_size_and_signs_as_a_whole():
    labels = np.array([0, 1, 1, 2, 3, 3, 4, 5, 5, 5])
    orders, signs = block_orders(labels, 500, 0)
    assert (np.sort(orders, axis=1) == np.arange(10)).all()
    assert (np.isin(orders[:, [0, 3, 6]], [0, 3, 6])).all() and (signs[:, [0, 3, 6]] == 1).all()
    assert len(np.unique(orders[:, [0, 3, 6]], axis=0)) == 6
    assert {tuple(row) for row in orders[:, [1, 2, 4, 5]]} == {(1, 2, 4, 5), (4, 5, 1, 2)}
    assert (orders[:, 7:] == [7, 8, 9]).all()
    assert len({tuple(row) for row in signs[:, [1, 4, 7]]}) == 8
    assert (signs[:, [1, 4, 7, 7]] == signs[:, [2, 5, 8, 9]]).all()


# --- edges ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_p_and_text_says_the_rest():
    a, b, word, scores = made_up(11)
    arguments = (made_table(scores), made_records(12, a=a, b=b, word=word), ["a", "word"])
    one, two = effects(*arguments, draws=99, seed=5), effects(*arguments, draws=99, seed=5)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.text == two.text and one.text.startswith("Alignment of 12 models, each the mean over 7 partners, on 2 factors")
    assert "99 random orders of what the other factors leave over" in one.text and "share" in one.text


def test_models_without_a_factor_are_left_out_and_told():
    a, b, _, scores = made_up(12)
    records = made_records(12, a=[None, *a[1:]], width=[1.0, 0.0, *np.exp(b[2:])])
    scores[2] = np.nan
    scores[3, 0] = np.nan
    found = effects(made_table(scores), records, ["a", "width"], draws=99)
    assert found.left_out == ("m0 (no a)", "m1 (no positive width)", "m2 (no defined score)") and found.n == 9
    assert "Left out: m0 (no a), m1" in found.text
    assert found.points["alignment"].iloc[0] == pytest.approx(np.nanmean(scores[3]))


def test_factors_that_go_together_are_warned_of_and_the_same_ones_refused():
    rng = np.random.default_rng(13)
    a = rng.standard_normal(12)
    near = a + 0.1 * rng.standard_normal(12)
    word = ["x" if v > 0 else "y" for v in a]
    table, records = made_table(rng.standard_normal((12, 4))), made_records(12, a=a, near=near, twice=2 * a, word=word, other=word)
    found = effects(table, records, ["a", "near"], draws=99)
    assert found.table["vif"].min() > 5 and "Factors go together (variance inflation: A " in found.text
    with pytest.raises(RepalignError, match=r"cannot be told apart.*\n.*\n  got: a and twice say the same"):
        effects(table, records, ["a", "twice"], draws=99)
    with pytest.raises(RepalignError, match="got: word and other say the same"):
        effects(table, records, ["a", "word", "other"], draws=99)


def test_a_level_with_one_model_has_an_effect_and_no_interval():
    a, _, _, scores = made_up(14)
    records = made_records(12, a=a, word=["rare", *["x", "y"] * 5, "x"])
    found = effects(made_table(scores), records, ["a", "word"], draws=99)
    assert found.levels["effect"].notna().all() and found.levels["low"].isna().all()
    assert found.table["low"].notna().tolist() == [True, False]


def test_alignment_that_is_the_same_everywhere_has_no_p():
    a, b, _, _ = made_up(15)
    found = effects(made_table(np.full((12, 4), 0.5)), made_records(12, a=a, b=b), ["a", "b"], draws=99)
    assert math.isnan(found.r2) and found.table[["pvalue", "partial_r2", "share"]].isna().all(axis=None)
    np.testing.assert_allclose(found.table["effect"], 0, atol=1e-12)
    assert "account for nothing" in found.text and "p undefined" in found.text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"side": "z"}, "unknown side 'z'\n  expected: x, y, both"),
        ({"measure": "CKB()"}, r"no measure 'CKB\(\)' in the result"),
        ({"factors": ["widht"]}, r"no model of this side has a factor 'widht'(?s:.*)did you mean 'width'"),
        ({"factors": ["a"], "side": "y"}, "no model of this side has a factor 'a'"),
        ({"factors": []}, "make no regression\n  expected: 1 to 12 different names\n  got: none"),
        ({"factors": ["a", "a"]}, "make no regression"),
        ({"factors": ["same"]}, "all models have the same 'same'"),
        ({"factors": ["own"]}, "'own' tells almost every model from every other\n.*\n  got: 12 words for 12 models"),
        ({"factors": ["a", "four"]}, "too few models for these factors\n  expected: more than 3.*\n  got: 3 models"),
    ],
)
def test_what_makes_no_sense_is_refused(change, text):
    a, b, _, scores = made_up(16)
    records = made_records(
        12, a=a, width=np.exp(b), same=[1.0] * 12, own=[f"w{i}" for i in range(12)], four=[1.0, 2.0, 4.0, *[None] * 9]
    )
    with pytest.raises(RepalignError, match=text):
        effects(made_table(scores), records, **{"factors": ["a"], "draws": 9, **change})


def test_few_models_have_no_interval():
    rng = np.random.default_rng(17)
    found = effects(made_table(rng.standard_normal((3, 4))), made_records(3, a=[1.0, 2.0, 4.0]), ["a"], draws=99)
    assert found.table["low"].isna().all() and found.n_units == 0 and "too few units for intervals" in found.text


# --- the figure ------------------------------------------------------------------------------------


def test_the_figure_shows_the_table():
    a, b, word, scores = made_up(18)
    found = effects(made_table(scores), made_records(12, a=a, b=b, word=word), ["b", "a", "word"], draws=99)
    figure = figures.effects(found).figure
    figure.savefig(io.BytesIO(), format="png")
    (axes,) = figure.axes
    order = found.table.sort_values("share", ascending=False)["factor"].tolist()
    labels = {"a": ["A, per sd"], "b": ["B, per sd"], "word": ["Word: red", "Word: green", "Word: blue"]}
    assert [t.get_text() for t in axes.get_yticklabels()] == [label for f in order for label in labels[f]]
    by_factor = found.table.set_index("factor")
    rows = pd.concat([found.levels if f == "word" else by_factor.loc[[f]] for f in order])
    bars, dots = axes.collections
    np.testing.assert_allclose([path.vertices[:, 0] for path in bars.get_paths()], rows[["low", "high"]])
    np.testing.assert_allclose(dots.get_offsets(), np.column_stack([rows["effect"], range(len(rows))]))
    at = 0
    for f, remark in zip(order, axes.texts, strict=True):  # beside the first row of each factor
        assert f"share {100 * by_factor.loc[f, 'share']:.0f} %" in remark.get_text() and remark.xy[1] == at
        assert len({tuple(color) for color in dots.get_facecolors()[at : at + len(labels[f])]}) == 1
        at += len(labels[f])
