"""Curves, contrasts and their intervals: against plain loops, scipy and simulated models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from repalign.errors import RepalignError
from repalign.relate import contrast, curve, trend, trend_curve
from repalign.relate.jackknife import mean_of_pairs

LANGUAGE = ["a", "b", "c", "d", "e"]
VISION = ["p", "q", "r", "s"]
N = 500
MODELS = [
    *({"name": m, "family": "one" if m in "ab" else "two", "n_parameters": 10 ** (8 + i), "scores": {"bits_per_byte": 1 - i / 9}}
      for i, m in enumerate("badce")),
    *({"name": m, "family": m.upper(), "n_parameters": 10 * (i + 1), "scores": {}} for i, m in enumerate(VISION)),
]  # fmt: skip


def knn(k: int, similarity: str = "cosine") -> str:
    return f"MutualKNN(k={k}, similarity={similarity!r}, center=False)"


def rows(
    measure: str, seed: int, x: Sequence[str] = LANGUAGE, y: Sequence[str] = VISION, chance: float = 0.01, **columns
) -> pd.DataFrame:
    """The "max" rows of one made-up run: effects of models on both sides and noise of pairs."""
    rng = np.random.default_rng(seed)
    of = {name: rng.normal(0, 0.02) for name in dict.fromkeys([*x, *y])}
    out = pd.DataFrame(itertools.product(x, y), columns=["model_x", "model_y"])
    score = [0.2 + of[a] + of[b] + rng.normal(0, 0.01) for a, b in zip(out["model_x"], out["model_y"], strict=True)]
    score = np.array(score)
    return out.assign(
        scope="max", measure=measure, n=N, seed=0, statistic=score, null_mean=chance, threshold=chance + 0.01,
        calibrated=(score - chance - 0.01) / (0.99 - chance), search="raw max", **columns,
    )  # fmt: skip


@pytest.fixture(scope="module")
def swept() -> pd.DataFrame:
    """Two measures at several k, in no order, and one without k."""
    parts = [rows(knn(k), k, chance=k / (N - 1)) for k in (20, 5, 100, 10)]
    parts += [rows(f"CKNNA(k={k}, similarity='cosine')", 1000 + k, chance=0.002) for k in (50, 10)]
    return pd.concat([*parts, rows("CKA(kernel='linear', estimator='debiased')", 7)], ignore_index=True)


# --- the interval of a mean over pairs -------------------------------------------------------------


def jackknife(matrix: np.ndarray, units_x: list[list[int]], units_y: list[list[int]], level: float) -> tuple[float, float]:
    """mean -+ t sqrt(V) of a (x, y) matrix with nan, by refitting without each unit; written from docs/trends.md."""
    whole, parts = np.nanmean(matrix), []
    for axis, units in ((0, units_x), (1, units_y)):
        if units:
            left = np.array([np.nanmean(np.delete(matrix, unit, axis)) for unit in units])
            parts.append(((len(units) - 1) / len(units) * ((left - whole) ** 2).sum(), len(units) - 1))
    v = sum(p for p, _ in parts)
    half = stats.t.ppf((1 + level) / 2, v**2 / sum(p**2 / df for p, df in parts)) * math.sqrt(v)
    return whole - half, whole + half


def matrix_of(table: pd.DataFrame, column: str = "statistic") -> np.ndarray:
    return table.pivot(index="model_x", columns="model_y", values=column).reindex(index=LANGUAGE, columns=VISION).to_numpy()


def test_interval_is_the_crossed_jackknife():
    table = rows(knn(10), 3)
    table.loc[2, "statistic"] = np.nan
    found = mean_of_pairs(table, table["statistic"], level=0.9)
    low, high = jackknife(matrix_of(table), [[i] for i in range(5)], [[i] for i in range(4)], 0.9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert (found.n_pairs, found.n_undefined) == (19, 1)
    assert found.units == "5 models of side x and 4 models of side y"


def test_families_are_units_where_there_are_three():
    table, families = rows(knn(10), 3), dict(zip(LANGUAGE, "uuvvw", strict=True)) | dict.fromkeys(VISION, "same")
    found = mean_of_pairs(table, table["statistic"], families)
    low, high = jackknife(matrix_of(table), [[0, 1], [2, 3], [4]], [[i] for i in range(4)], 0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert found.units == "3 families of side x and 4 models of side y"


def test_with_one_partner_it_is_the_t_interval_of_scipy():
    table = rows(knn(10), 3, y=["p"])
    found = mean_of_pairs(table, table["statistic"])
    oracle = stats.ttest_1samp(table["statistic"], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-9)
    assert found.units == "5 models of side x"


def test_two_models_on_each_side_have_no_interval():
    table = rows(knn(10), 3, x=["a", "b"], y=["p", "q"])
    found = mean_of_pairs(table, table["statistic"])
    assert math.isnan(found.low) and math.isnan(found.high) and found.units == ""
    assert found.mean == pytest.approx(table["statistic"].mean())


def test_no_defined_pair_is_undefined():
    table = rows(knn(10), 3)
    found = mean_of_pairs(table, np.full(len(table), np.nan))
    assert math.isnan(found.mean) and (found.n_pairs, found.n_undefined) == (0, 20)


def test_models_on_both_sides_leave_with_all_their_pairs():
    names = ["a", "b", "c", "d"]
    table = rows(knn(10), 3, x=names, y=names)
    table = table[table["model_x"] < table["model_y"]]
    found = mean_of_pairs(table, table["statistic"])
    whole = table["statistic"].mean()
    left = [table.loc[(table["model_x"] != m) & (table["model_y"] != m), "statistic"].mean() for m in names]
    half = stats.t.ppf(0.975, 3) * math.sqrt(3 / 4 * sum((t - whole) ** 2 for t in left))
    assert (found.low, found.high) == pytest.approx((whole - half, whole + half), rel=1e-12)
    assert found.units == "4 models on both sides"


def test_the_interval_covers_the_mean_of_models_like_these():
    """Random models on both sides: the true mean is 0.2. An interval over pairs would cover it far too rarely."""
    runs, covered, naive = 400, 0, 0
    for seed in range(runs):
        table = rows(knn(10), seed, x=[f"x{i}" for i in range(10)], y=[f"y{i}" for i in range(8)])
        score = table["statistic"].to_numpy()
        found = mean_of_pairs(table, score)
        covered += found.low <= 0.2 <= found.high
        naive += abs(score.mean() - 0.2) <= stats.t.ppf(0.975, 79) * score.std(ddof=1) / math.sqrt(80)
    assert 0.92 <= covered / runs <= 0.99 and naive / runs < 0.6


# --- curves ----------------------------------------------------------------------------------------


def test_measures_that_differ_in_k_alone_are_one_line(swept):
    found = curve(swept, "k")
    assert found.lines == ["MutualKNN(similarity='cosine', center=False)", "CKNNA(similarity='cosine')"]
    line = found.line(found.lines[0])
    assert line["x"].tolist() == [5, 10, 20, 100] and found.numbers
    for point in line.itertuples():
        own = swept[swept["measure"] == knn(int(point.x))]
        assert point.value == pytest.approx(own["statistic"].mean())
        assert point.chance == pytest.approx(point.x / (N - 1)) and (point.n, point.n_pairs) == (N, 20)
        oracle = jackknife(matrix_of(own), [[i] for i in range(5)], [[i] for i in range(4)], 0.95)
        assert (point.low, point.high) == pytest.approx(oracle)
    assert found.left_out == ("CKA(kernel='linear', estimator='debiased') (no k)",)
    for said in ("at k = 5 (chance 0.01", "n = 500 stimuli, 20 pairs at every point", "95 % intervals leave out one at a time of "
                 "5 models of side x and 4 models of side y", "Left out: CKA"):  # fmt: skip
        assert said in found.text


def test_a_measure_that_is_not_registered_has_its_parameters_too():
    own = pd.concat([rows("NobodysMeasure(k=4, kind='a')", 1), rows("NobodysMeasure(k=2, kind='a')", 2)])
    found = curve(own, "k")
    assert found.table["x"].tolist() == [2, 4] and found.lines == ["NobodysMeasure(kind='a')"]


def test_a_line_per_model_and_a_chosen_measure(swept):
    found = curve(swept, "k", by="model_y", measure="CKNNA(similarity='cosine')")
    assert found.lines == VISION and found.measure == "CKNNA(similarity='cosine')"
    point = found.line("q").iloc[0]
    own = swept[(swept["measure"] == "CKNNA(k=10, similarity='cosine')") & (swept["model_y"] == "q")]
    assert (point["x"], point["value"]) == (10, pytest.approx(own["statistic"].mean()))
    assert curve(swept, "k", by=None, measure="CKNNA(k=50, similarity='cosine')").measure == "CKNNA(similarity='cosine')"
    assert curve(swept, "k", by=None).measure == "MutualKNN(similarity='cosine', center=False)"


def test_other_parameters_and_rules_among_them_are_categories():
    def cka(bandwidth) -> str:
        return f"CKA(kernel='rbf', estimator='debiased', bandwidth={bandwidth!r}, epsilon=0.0)"

    numbers = pd.concat([rows(cka(2.0), 1), rows(cka(0.5), 2), rows("CKA(kernel='linear')", 3)])
    found = curve(numbers, "bandwidth")
    assert found.table["x"].tolist() == [0.5, 2.0] and found.left_out == ("CKA(kernel='linear') (no bandwidth)",)
    assert found.lines == ["CKA(kernel='rbf', estimator='debiased', epsilon=0.0)"]
    mixed = curve(pd.concat([numbers, rows(cka("median"), 4)]), "bandwidth")
    assert not mixed.numbers and mixed.table["x"].tolist() == ["2.0", "0.5", "median"]


def test_a_column_of_texts_keeps_its_order_and_one_of_numbers_is_sorted():
    parts = [rows(knn(10), i, prompt=p, share=s) for i, (p, s) in enumerate((("none", 0.5), ("long", 0.0), ("a", 1.0)))]
    table = pd.concat(parts)
    assert curve(table, "prompt").table["x"].tolist() == ["none", "long", "a"]
    found = curve(table, "share")
    assert found.table["x"].tolist() == [0.0, 0.5, 1.0]
    assert found.table["value"].tolist() == pytest.approx([parts[i]["statistic"].mean() for i in (1, 0, 2)])
    base = pd.concat([table, rows(knn(10), 9)])
    assert curve(base, "share").left_out == ("20 pairs without share",)


def test_lines_by_family_and_by_any_column(swept):
    found = curve(swept, "k", by="family_x", models=MODELS)
    assert found.lines == ["one", "two"]
    own = swept[(swept["measure"] == knn(5)) & swept["model_x"].isin(["a", "b"])]
    assert found.line("one").iloc[0]["value"] == pytest.approx(own["statistic"].mean())
    assert curve(swept, "k", by="family", models=MODELS).lines == ["P", "Q", "R", "S"]
    both = pd.concat([rows(knn(k), k, variant=v) for k in (5, 10) for v in ("raw", "centred")])
    assert curve(both, "k", by="variant").lines == ["raw", "centred"]


def test_models_on_the_axis():
    table = rows(knn(10), 3)
    found = curve(table, "bits_per_byte", models=MODELS, side="x")
    assert found.table["x"].tolist() == sorted(m["scores"]["bits_per_byte"] for m in MODELS[:5])
    assert found.x_label == "Bits per byte"
    first = table[table["model_x"] == "e"]  # the last in size, the first in bits
    assert found.table["value"].iloc[0] == pytest.approx(first["statistic"].mean())
    oracle = stats.ttest_1samp(first["statistic"], 0).confidence_interval(0.95)
    assert (found.table["low"].iloc[0], found.table["high"].iloc[0]) == pytest.approx((oracle.low, oracle.high))
    fewer = [m if m["name"] != "c" else {**m, "scores": {}} for m in MODELS]
    assert curve(table, "bits_per_byte", models=fewer).left_out == ("c (no bits_per_byte)",)


@pytest.mark.parametrize("value", ["gain", "calibrated"])
def test_other_values_have_chance_at_zero(swept, value):
    found = curve(swept, "k", value=value).line("CKNNA(similarity='cosine')").iloc[0]
    own = swept[swept["measure"] == "CKNNA(k=10, similarity='cosine')"]
    expected = own["calibrated"] if value == "calibrated" else own["statistic"] - own["null_mean"]
    assert found["value"] == pytest.approx(expected.mean()) and found["chance"] == 0


def test_undefined_pairs_are_counted(swept):
    table = swept.copy()
    table.loc[table.index[table["measure"] == knn(5)][:3], "statistic"] = np.nan
    found = curve(table, "k")
    assert found.table.loc[found.table["x"] == 5, ["n_pairs", "n_undefined"]].iloc[0].tolist() == [17, 3]
    assert "3 undefined scores left out of the means." in found.text


def test_relative_to_the_smallest_model_is_a_loop(swept):
    """Figure 10: minus the smallest model with the same partner, over the deviation of all pairs at that k."""
    small = "b"  # the first of MODELS, 10^8
    found = curve(swept, "k", models=MODELS, relative="smallest", by=None)
    for point in found.table.itertuples():
        score = swept[swept["measure"] == knn(int(point.x))].set_index(["model_x", "model_y"])["statistic"]
        lifted = [(score[x, y] - score[small, y]) / score.std(ddof=1) for x in "acde" for y in VISION]
        assert point.value == pytest.approx(np.mean(lifted)) and point.n_pairs == 16
    over = curve(swept[swept["measure"] == knn(5)], "n_parameters", models=MODELS, relative="smallest")
    score = swept[swept["measure"] == knn(5)].set_index(["model_x", "model_y"])["statistic"]
    expected = [np.mean([score[x, y] - score[small, y] for y in VISION]) / score.std(ddof=1) for x in "badce"]
    assert over.table["value"].tolist() == pytest.approx(expected) and over.table["value"].iloc[0] == 0
    assert "held fixed" in over.text


def test_relative_to_the_first_point_is_a_loop(swept):
    found = curve(swept, "k", relative="first").line("MutualKNN(similarity='cosine', center=False)")
    first, last = (swept[swept["measure"] == knn(k)]["statistic"].to_numpy() for k in (5, 100))
    assert found["value"].iloc[0] == 0
    assert found["value"].iloc[-1] == pytest.approx((last - first).mean() / first.std(ddof=1))


def test_repetitions_are_averaged_only_on_request():
    table = pd.concat([rows(knn(10), s, share=0.5, draw=s) for s in (1, 2)])
    with pytest.raises(RepalignError, match=r"a and p stand 2 times at one point(.|\n)*rows that differ in draw(.|\n)*`over`"):
        curve(table, "share")
    found = curve(table, "share", over=["draw"])
    assert found.table["value"].iloc[0] == pytest.approx(table["statistic"].mean())
    assert found.table["n_pairs"].iloc[0] == 20
    with pytest.raises(RepalignError, match=r"no column 'drow'(.|\n)*did you mean 'draw'"):
        curve(table, "share", over=["drow"])
    with pytest.raises(RepalignError, match=r"rows that differ in nothing"):
        curve(pd.concat([table, table]), "share", over=["draw"])


def test_points_that_differ_in_n_are_said_and_never_mixed():
    table = pd.concat([rows(knn(10), 1, share=0.0), rows(knn(10), 2, share=1.0).assign(n=200)])
    assert "Points differ in n (200, 500)" in curve(table, "share").text
    assert "Points differ in n" not in curve(table, "n").text
    mixed = rows(knn(10), 1, share=0.0)
    mixed.loc[0, "n"] = 100
    with pytest.raises(RepalignError, match=r"not compared on equally many stimuli"):
        curve(mixed, "share")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": "kk"}, r"nothing to draw a curve over is called 'kk'"),
        ({"x": "n_parameter"}, r"'n_parameter'(.|\n)*expected: a column of the table, a parameter"),
        ({"x": "k", "value": "statistics"}, r"no value 'statistics'(.|\n)*did you mean 'statistic'"),
        ({"x": "k", "relative": "smalest"}, r"no form relative='smalest'(.|\n)*did you mean 'smallest'"),
        ({"x": "k", "by": "modelx"}, r"no lines by 'modelx'(.|\n)*did you mean 'model_x'"),
        ({"x": "k", "by": "family"}, r"no family is known of p, q, r and others"),
        ({"x": "k", "side": "z"}, r"unknown side 'z'"),
        ({"x": "k", "measure": "CKA()"}, r"lines and points are measures already"),
        ({"x": "k", "by": None, "measure": "RSA"}, r"no measure 'RSA' in the result"),
        ({"x": "k", "relative": "smallest"}, r"which model of side x is the smallest is not known"),
    ],
)
def test_errors_of_curves(swept, options, message):
    with pytest.raises(RepalignError, match=message):
        curve(swept, **options)


def test_a_table_without_pairs_is_refused(swept):
    with pytest.raises(RepalignError, match="no pairs of models"):
        curve(swept.assign(scope="cell"), "k")


# --- the trend at every point ----------------------------------------------------------------------


def test_trend_at_every_k_is_the_trend_of_that_measure(swept):
    found = trend_curve(swept, "k", MODELS, "bits_per_byte", "x")
    assert found.quantity == "Spearman correlation with bits per byte"
    for point in found.table.itertuples():
        name = knn(int(point.x)) if point.line.startswith("Mutual") else f"CKNNA(k={int(point.x)}, similarity='cosine')"
        own = trend(swept, MODELS, "bits_per_byte", "x", name)
        assert (point.value, point.pvalue) == (own.spearman, own.inference.spearman_pvalue)
        assert (point.slope, point.slope_low) == (own.slope, own.inference.slope_interval[0])
        assert (point.n, point.n_models, point.chance) == (N, 5, 0)
    assert "a negative trend is alignment that rises with competence" in found.text and "p = " in found.text
    slopes = trend_curve(swept, "k", MODELS, "bits_per_byte", "x", statistic="slope")
    assert slopes.table["value"].tolist() == found.table["slope"].tolist()


def test_errors_of_trend_curves(swept):
    with pytest.raises(RepalignError, match=r"every point has one model and no trend"):
        trend_curve(swept, "n_parameters", MODELS)
    with pytest.raises(RepalignError, match=r"a trend has no 'pearson'"):
        trend_curve(swept, "k", MODELS, statistic="pearson")
    with pytest.raises(RepalignError, match=r"no model of side x has a 'gsm8k'"):
        trend_curve(swept, "k", MODELS, "gsm8k")


# --- contrasts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variants() -> pd.DataFrame:
    raw = rows(knn(10), 1, variant="raw")
    other = raw.assign(variant="centred", statistic=raw["statistic"] ** 2, null_mean=0.02)
    return pd.concat([raw, other[other["model_x"] != "c"]], ignore_index=True)


def test_a_contrast_is_a_loop_over_pairs(variants):
    found = contrast(variants)
    raw, other = (matrix_of(variants[variants["variant"] == v]) for v in ("raw", "centred"))
    row, difference = found.differences.iloc[0], other - raw
    there = np.isfinite(difference)
    assert row["difference"] == pytest.approx(difference[there].mean()) and row["n_pairs"] == 16
    units = [[0], [1], [2], [3]]
    assert (row["low"], row["high"]) == pytest.approx(jackknife(np.delete(difference, 2, 0), units, units, 0.95))
    assert row["spearman"] == pytest.approx(stats.spearmanr(raw[there], other[there]).statistic)
    assert row["pearson"] == pytest.approx(stats.pearsonr(raw[there], other[there]).statistic)
    assert row["n_missing"] == 4 and found.missing["centred"] == tuple(("c", y) for y in VISION)
    assert "4 pairs with one of the two only: c and p, c and q, c and r, c and s." in found.text
    assert "over the 16 pairs that all have" in found.text and "n = 500 stimuli" in found.text
    both = found.beside("centred")
    assert len(both) == 16 and (both["value_second"] == both["value_first"] ** 2).all()
    assert set(both["chance_second"]) == {0.02}


def test_three_variants_are_held_against_the_first(variants):
    third = variants[variants["variant"] == "raw"].assign(variant="prompt", statistic=0.5)
    found = contrast(pd.concat([variants, third]))
    assert found.variants == ("raw", "centred", "prompt") and found.differences["variant"].tolist() == ["centred", "prompt"]
    assert math.isnan(found.differences["spearman"].iloc[1])  # one of the two is constant


def test_two_values_of_one_run(variants):
    raw = variants[variants["variant"] == "raw"]
    found = contrast(raw, value=("statistic", "calibrated"))
    assert found.variants == ("Score", "Calibrated score")
    assert found.differences["difference"].iloc[0] == pytest.approx((raw["calibrated"] - raw["statistic"]).mean())
    assert found.differences["spearman"].iloc[0] == pytest.approx(1)


def test_two_measures_of_one_run(swept):
    found = contrast(swept[swept["measure"].isin([knn(5), knn(10)])], column="measure")
    assert found.measure is None and set(found.variants) == {knn(5), knn(10)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "varant"}, r"no column 'varant'(.|\n)*did you mean 'variant'"),
        ({"value": "z"}, r"no value 'z' of a pair"),
        ({"value": ("statistic", "gains")}, r"no value 'gains'(.|\n)*did you mean 'gain'"),
        ({"column": "search"}, r"there is one search only"),
        ({"value": ("statistic", "gain")}, r"a and p stand more than once under value Score"),
        ({"measure": "CKA()"}, r"no measure 'CKA\(\)'"),
    ],
)
def test_errors_of_contrasts(variants, options, message):
    with pytest.raises(RepalignError, match=message):
        contrast(variants, **options)


def test_no_common_pair_is_an_error(variants):
    with pytest.raises(RepalignError, match=r"no pair of models has a score under two values of 'variant'(.|\n)*raw: a and p"):
        contrast(variants[(variants["variant"] == "raw") == (variants["model_x"] == "a")])
