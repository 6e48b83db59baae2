"""Trends: the fit against scipy, the points against a loop, the wording against few models."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from alignment_table import CKA, CONSTANT, KNN, LANGUAGE, VISION, make_run, make_table
from repalign.errors import RepalignError
from repalign.models import ModelRecord
from repalign.relate import Finding, Fit, sentences, sides_of, trend, yardsticks


@pytest.fixture(scope="module")
def table():
    return make_table()


@pytest.fixture(scope="module")
def models():
    return make_run()["models"]


def test_fit_matches_scipy():
    rng = np.random.default_rng(1)
    x = rng.standard_normal(12)
    y = 0.3 * x + rng.standard_normal(12)
    fit, oracle = Fit.of(x, y), stats.linregress(x, y)
    assert fit is not None
    np.testing.assert_allclose([fit.slope, fit.intercept, fit.r], [oracle.slope, oracle.intercept, oracle.rvalue])
    assert fit.spearman == pytest.approx(stats.spearmanr(x, y).statistic)


def test_points_are_means_over_the_other_side(table, models):
    found = trend(table, models, "n_parameters", "x", KNN)
    rows = table[(table["scope"] == "max") & (table["measure"] == KNN)]
    for point, (name, family, size, _) in zip(found.points.itertuples(), LANGUAGE, strict=True):
        scores = [r.statistic for r in rows.itertuples() if r.model_x == name]
        assert (point.model, point.family, point.x, point.n_partners) == (name, family, size, len(VISION))
        assert point.alignment == pytest.approx(sum(scores) / len(VISION))
        assert point.spread == pytest.approx(stats.tstd(scores))
    oracle = stats.linregress(np.log10(found.points["x"]), found.points["alignment"])
    assert found.slope == pytest.approx(oracle.slope)
    assert found.predict(1e9) == pytest.approx(oracle.intercept + 9 * oracle.slope)
    low, high = found.band(1e9)
    assert low < found.predict(1e9) < high


def test_side_y_against_a_score_is_linear_and_knows_the_better_end(table, models):
    found = trend(table, models, "imagenet_top1", "y", KNN)
    assert not found.log and not found.lower_is_better and found.label == "ImageNet top-1 accuracy"
    assert list(found.points["model"]) == [m[0] for m in VISION]
    assert trend(table, models, "bits_per_byte", "x").lower_is_better


def test_families_of_three_have_their_own_fit(table, models):
    found = trend(table, models, "n_parameters", "x", KNN)
    assert set(found.families) == {"BLOOM"} and found.families["BLOOM"].n == 3
    bloom = found.points[found.points["family"] == "BLOOM"]
    assert found.families["BLOOM"].slope == pytest.approx(
        stats.linregress(np.log10(bloom["x"]), bloom["alignment"]).slope
    )
    assert "Within BLOOM:" in found.text


def test_undefined_scores_are_left_out_of_the_mean_and_said(table, models):
    found = trend(table, models, "n_parameters", "x", CKA)
    point = found.points.set_index("model").loc[CONSTANT[0]]
    assert (point["n_partners"], point["n_undefined"]) == (len(VISION) - 1, 1)
    assert f"{CONSTANT[0]}: 1 of 6 partners undefined" in found.text


def test_wording_with_few_models(models):
    for count, expected in (
        (2, "too few for a line"),
        (3, "fewer than 4 models: no interval"),
        (4, "95 % interval"),
    ):
        found = trend(make_table(LANGUAGE[:count], layers=(2, 2)), models, "n_parameters", "x", KNN)
        assert expected in found.text and f"{count} models" in found.text
        assert found.has_band == (count >= 4)
        assert bool(np.isnan(found.band(1e9)[0])) == (count < 4)
        assert math.isnan(found.slope) == (count < 3)


def test_models_without_the_number_are_named(table, models):
    fewer = [{**m, "n_parameters": None} if m["name"] == "bloom-1b7" else m for m in models]
    found = trend(table, fewer, "n_parameters", "x")
    assert found.n == 4 and found.left_out == ("bloom-1b7 (no n_parameters)",) and "Left out: bloom-1b7" in found.text


def test_equal_sizes_give_no_line(table, models):
    same = [{**m, "n_parameters": 7} for m in models]
    found = trend(table, same, "n_parameters", "x")
    assert found.fit is None and "all have the same parameters" in found.text


def test_constant_alignment_has_undefined_correlation():
    fit = Fit.of([1, 2, 3, 4], [0.5, 0.5, 0.5, 0.5])
    assert fit is not None and fit.slope == 0 and math.isnan(fit.r)


def test_all_against_all_uses_both_ends_of_a_pair(table, models):
    three = [m[0] for m in LANGUAGE[:3]]
    rows = table[(table["scope"] == "max") & (table["measure"] == KNN)].head(3).copy()
    rows["model_x"], rows["model_y"] = [three[0], three[0], three[1]], [three[1], three[2], three[2]]
    rows["statistic"] = [0.1, 0.2, 0.4]
    found = trend(rows, models, "n_parameters", "both")
    np.testing.assert_allclose(found.points["alignment"], [0.15, 0.25, 0.3])
    assert sides_of({"sides": {"x": three, "y": three}}) == ("both",)
    assert sides_of(make_run()) == ("x", "y")


def test_yardsticks_and_records(table, models):
    records = [ModelRecord(**{k: m[k] for k in ModelRecord.__dataclass_fields__ if k in m}) for m in models]
    assert yardsticks(records, [m[0] for m in LANGUAGE]) == ["n_parameters", "bits_per_byte"]
    assert trend(table, records).text == trend(table, models).text


def test_factors_that_are_numbers_are_yardsticks_on_request(table, models):
    factors = [{"width": 2.0**i, "run": f"r{i}", "tasks": 3.0} for i in range(len(models))]
    made = [{**m, "factors": f} for m, f in zip(models, factors, strict=True)]
    assert yardsticks(made, [m[0] for m in LANGUAGE]) == ["n_parameters", "bits_per_byte"]
    assert yardsticks(made, [m[0] for m in LANGUAGE], factors=True) == ["n_parameters", "bits_per_byte", "width", "tasks"]
    found = trend(table, made, "width")
    assert found.log and found.label == "Width" and found.points["x"].tolist() == [1, 2, 4, 8, 16]
    with pytest.raises(RepalignError, match="no model of side x has a positive 'widht'(?s:.*)did you mean 'width'"):
        trend(table, made, "widht", log=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": "z"}, r"unknown side 'z'"),
        ({"measure": "RSA"}, r"no measure 'RSA'(.|\n)*choose one of: CKA"),
        (
            {"against": "bits_per_bite"},
            r"no model of side x has a 'bits_per_bite'(.|\n)*did you mean 'bits_per_byte'",
        ),
    ],
)
def test_errors(table, models, options, message):
    with pytest.raises(RepalignError, match=message):
        trend(table, models, **options)


def test_a_table_without_pairs_is_an_error(table, models):
    with pytest.raises(RepalignError, match="nothing to show(?s:.*)rows of scope 'max'"):
        trend(table[table["scope"] == "cell"], models)


def test_every_kind_of_finding_has_its_sentences():
    def kinds(cls: type) -> set[str]:
        return {getattr(cls, "kind", None)} | {k for below in cls.__subclasses__() for k in kinds(below)}

    assert kinds(Finding) - {None} == set(sentences.OF)


def test_a_finding_is_a_frozen_value_with_its_table_and_text(table, models):
    found = trend(table, models, "n_parameters", "x", KNN)
    assert found.table is found.points and found.measure == KNN and found.n_stimuli == table["n"].iloc[0]
    assert " ".join(sentences.trend(found)) == found.text
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.slope = 0.0


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "high", None])
def test_what_is_no_finite_number_is_no_yardstick(value):
    from repalign.relate.scores import Records

    records = Records.of([{"name": "a", "scores": {"s": value, "t": 2}}])
    assert records.number("a", "s") is None and records.number("a", "t") == 2.0


def test_a_mean_whose_units_leave_no_pair_behind_has_no_interval():
    from repalign.relate.jackknife import mean_of_pairs

    pairs = pd.DataFrame([(f"x{i}", f"y{j}") for i in range(3) for j in range(3)], columns=["model_x", "model_y"])
    alone = np.where((pairs["model_x"] == "x0") & (pairs["model_y"] == "y0"), 0.5, np.nan)
    found = mean_of_pairs(pairs, alone)
    assert found.mean == 0.5 and found.n_pairs == 1 and np.isnan(found.low) and np.isnan(found.high)


def test_a_trend_against_the_year_of_release_has_plain_years_and_says_per_year(table, models):
    from repalign.figures.trend_chart import TrendChart

    dates = ["2022-11", 2023.0, "2023-06", 2023.5, "2024-04"]  # months and numbers of years alike
    dated = [m | {"factors": {"released": d}} for m, d in zip(models, dates, strict=False)]
    found = trend(table, dated, "released")
    assert found.points["x"].tolist() == [2022.875, 2023.0, 2023.4583, 2023.5, 2024.2917] and not found.log
    assert found.label == "Year of release" and "per year (" in found.text and "per unit" not in found.text
    chart = TrendChart.of(found)
    assert chart.x_label == "Year of release" and all("," not in text for _, text in chart.x_ticks)
    assert {"2023", "2024"} <= {text.removesuffix(".0") for _, text in chart.x_ticks}
    with pytest.raises(RepalignError, match="no month"):
        trend(table, [m | {"factors": {"released": "autumn"}} for m in models], "released")
