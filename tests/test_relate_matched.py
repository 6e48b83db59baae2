"""Matched pairs of models: a loop over partners, the jackknife by hand, what is left out, what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from repalign.errors import RepalignError
from repalign.relate import matched

FAMILIES = {f"l{i}": f"family {i // 2}" for i in range(8)}
RECORDS = [{"name": n, "family": f} for n, f in FAMILIES.items()] + [{"name": n, "family": n[0]} for n in ("a1", "a2", "b1", "b2")]


def scores(effect: float = 0.1, seed: int = 0, noise: float = 0.01) -> pd.DataFrame:
    """Eight language models of four families by two matched pairs; a agrees more by `effect`, more so with later families."""
    rng, rows = np.random.default_rng(seed), []
    for i, x in enumerate(FAMILIES):
        for y in ("a1", "a2", "b1", "b2"):
            value = 0.3 + 0.05 * i + effect * (y[0] == "a") * (1 + 0.2 * (i // 2)) + noise * rng.standard_normal()
            rows.append({"scope": "max", "measure": "M()", "model_x": x, "model_y": y, "statistic": value, "null_mean": 0.0,
                         "n": 100})  # fmt: skip
    return pd.DataFrame(rows)


def test_differences_are_means_over_the_same_partners_and_intervals_leave_out_families():
    table = scores()
    found = matched(table, RECORDS, {"a or b": [["a1", "b1"], ["a2", "b2"]]})
    wide = table.pivot(index="model_x", columns="model_y", values="statistic")
    gaps = ((wide["a1"] - wide["b1"]) + (wide["a2"] - wide["b2"])) / 2
    row = found.overall("a or b")
    assert row["difference"] == pytest.approx(gaps.mean()) and (row["n_pairs"], row["n_partners"]) == (2, 8)
    assert row["score_first"] - row["score_second"] == pytest.approx(gaps.mean())
    left = np.array([gaps[[FAMILIES[x] != f for x in gaps.index]].mean() for f in dict.fromkeys(FAMILIES.values())])
    half = t.ppf(0.975, 3) * np.sqrt(3 / 4 * ((left - gaps.mean()) ** 2).sum())
    assert (row["low"], row["high"]) == pytest.approx((gaps.mean() - half, gaps.mean() + half))
    assert (row["unit"], row["n_units"]) == ("family", 4)
    first = found.table.iloc[1]
    assert (first["first"], first["second"], first["difference"]) == ("a1", "b1", pytest.approx((wide["a1"] - wide["b1"]).mean()))
    assert "4 families of partners" in found.text and "2 pairs of models, 8 partners" in found.text


def test_no_difference_is_found_in_few_of_many_tables():
    """Families differ in their gaps: a 95 % interval over four of them misses 0 in about one of twenty."""
    rng, missed = np.random.default_rng(1), 0
    for seed in range(200):
        table = scores(effect=0, seed=seed)
        levels = rng.standard_normal(4) * 0.05
        at = table["model_x"].map(lambda x: levels[int(x[1:]) // 2]) * (table["model_y"].str[0] == "a")
        row = matched(table.assign(statistic=table["statistic"] + at), RECORDS, [["a1", "b1"]]).overall("first minus second")
        missed += row["low"] > 0 or row["high"] < 0
    assert 2 <= missed <= 22  # 10 is the aim; Wilson, 99 %


def test_missing_models_are_named_undefined_scores_left_out_and_few_partners_have_no_interval():
    table = scores()
    table.loc[(table["model_x"] == "l0") & (table["model_y"] == "a1"), "statistic"] = np.nan
    found = matched(table, RECORDS, {"q": [["a1", "b1"], ["gone", "b1"]]})
    assert found.left_out == ("gone and b1 (q)",) and "Left out: gone and b1 (q)" in found.text
    assert found.overall("q")["n_partners"] == 7 and found.overall("q")["n_pairs"] == 1
    few = matched(table.loc[table["model_x"].isin(["l1", "l2"])], RECORDS, [["a1", "b1"]])
    assert np.isnan(few.overall(few.questions[0])["low"]) and "too few partners for an interval" in few.text


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([["a1"]], "no pair of models"), ([["a1", "a1"]], "no pair of models"), (["a1"], "no pair of models"),
        ([["c", "d"]], "has scores(.|\n)*got: c and d"), ([], "has scores"),
    ],
)  # fmt: skip
def test_what_is_refused(pairs, message):
    with pytest.raises(RepalignError, match=message):
        matched(scores(), RECORDS, pairs)
