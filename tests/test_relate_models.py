"""Analyses over models: bins by hand, the plane against scikit-learn, measures against scipy; what must be refused."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from alignment_table import CKA, CONSTANT, KNN, LANGUAGE, VISION, make_run, make_table
from model_tables import ANGLE, against, among, records, symmetric, three
from repalign.comparison.alignment import Alignment
from repalign.errors import RepalignError
from repalign.relate import agreement, agreements, bins, maps, model_map

# --- bins --------------------------------------------------------------------------------------


def test_bins_by_hand():
    s = np.arange(36, dtype=float).reshape(6, 6)
    s = (s + s.T) / 20
    chance = s / 10
    found = bins(among(s, chance=chance), records([5, 19.9, 20, 100, 45, 80]), "vtab_solved", bins=[0, 20, 40, 60, 80, 100])
    assert found.models["bin"].tolist() == [0, 0, 1, 4, 2, 4] and found.n == 6 and found.n_stimuli == 500
    within = found.within.set_index("label_x")
    assert list(within.index) == ["0 to 20", "20 to 40", "40 to 60", "60 to 80", "80 to 100"]
    assert within["n_models_x"].tolist() == [2, 1, 1, 0, 2] and within["n_pairs"].tolist() == [1, 0, 0, 0, 1]
    assert within.loc["0 to 20", "alignment"] == s[0, 1] and within.loc["80 to 100", "alignment"] == s[3, 5]
    assert within.loc["80 to 100", "chance"] == pytest.approx(s[3, 5] / 10)
    matrix = found.matrix()
    between = [s[i, j] for i in (0, 1) for j in (3, 5)]
    assert matrix.loc["0 to 20", "80 to 100"] == matrix.loc["80 to 100", "0 to 20"] == pytest.approx(np.mean(between))
    cell = found.table[(found.table["bin_x"] == 0) & (found.table["bin_y"] == 4)].iloc[0]
    assert (cell["n_pairs"], cell["n_missing"]) == (4, 0)
    assert cell["se"] == pytest.approx(stats.sem(between))
    assert math.isnan(matrix.loc["60 to 80", "60 to 80"]) and math.isnan(within.loc["20 to 40", "alignment"])
    assert found.difference == pytest.approx(s[3, 5] - s[0, 1]) and found.ends == (0, 4)
    assert math.isnan(found.difference_interval[0]) and "no interval" in found.text


def test_the_interval_within_a_bin_leaves_out_one_model():
    s = symmetric(np.random.default_rng(0), 7)
    found = bins(among(s), records(range(7)), "vtab_solved", bins=[0, 10], level=0.9)
    (row,) = found.table.to_dict("records")
    upper = np.triu_indices(7, 1)
    left = [np.delete(np.delete(s, i, 0), i, 1)[np.triu_indices(6, 1)].mean() for i in range(7)]
    half = stats.t.ppf(0.95, 6) * math.sqrt(6 / 7 * sum((v - s[upper].mean()) ** 2 for v in left))
    assert (row["low"], row["high"]) == pytest.approx((s[upper].mean() - half, s[upper].mean() + half))
    assert (row["n_units"], row["unit"], row["df"]) == (7, "model", 6)
    assert found.ends is None and math.isnan(found.pvalue) and "only the bin 0 to 10 has pairs" in found.text


def test_between_bins_both_sides_are_left_out():
    s = symmetric(np.random.default_rng(1), 9)
    found = bins(among(s), records([1] * 4 + [11] * 5), "vtab_solved", bins=[0, 10, 20])
    row = found.table[(found.table["bin_x"] == 0) & (found.table["bin_y"] == 1)].iloc[0]
    part = s[:4, 4:]
    a = [np.delete(part, i, 0).mean() for i in range(4)]
    b = [np.delete(part, j, 1).mean() for j in range(5)]
    v = [(len(t) - 1) / len(t) * sum((u - part.mean()) ** 2 for u in t) for t in (a, b)]
    df = sum(v) ** 2 / (v[0] ** 2 / 3 + v[1] ** 2 / 4)
    assert row["high"] - row["alignment"] == pytest.approx(stats.t.ppf(0.975, df) * math.sqrt(sum(v)))
    low, high = found.difference_interval
    assert low < found.difference < high


def test_families_are_units_where_there_are_three():
    s = symmetric(np.random.default_rng(2), 8)
    models = records(range(8), families=["A", "A", "B", "B", "C", "C", "", ""])
    found = bins(among(s), models, "vtab_solved", bins=[0, 10])
    assert found.table.loc[0, "unit"] == "family" and found.table.loc[0, "n_units"] == 5
    assert "p takes models as exchangeable" in found.text


def test_lower_is_better_turns_the_bins():
    s = symmetric(np.random.default_rng(3), 8)
    worse = bins(among(s), records(range(8), "bits_per_byte"), "bits_per_byte", bins=2)
    better = bins(among(s), records(range(8)), "vtab_solved", bins=2)
    assert worse.lower_is_better and worse.labels == better.labels[::-1]
    assert worse.difference == pytest.approx(-better.difference)
    np.testing.assert_allclose(worse.matrix().to_numpy(), better.matrix().to_numpy()[::-1, ::-1])


def test_a_number_of_bins_has_equally_many_models():
    s = symmetric(np.random.default_rng(4), 20)
    found = bins(among(s), records(np.random.default_rng(5).permutation(20) ** 3), "vtab_solved")
    assert found.models["bin"].value_counts().tolist() == [4] * 5
    tied = bins(among(s), records([0] * 12 + list(range(1, 9))), "vtab_solved", bins=4)
    assert len(tied.labels) == 2 and tied.models["bin"].value_counts().sort_index().tolist() == [15, 5]


@pytest.mark.parametrize("side", ["x", "y"])
def test_bins_of_one_side_meet_all_of_the_other(side):
    s = np.random.default_rng(6).random((6, 4))
    table = against(s)
    if side == "y":
        table = table.rename(columns={"model_x": "model_y", "model_y": "model_x"})
    found = bins(table, records([0, 1, 2, 10, 11, 12]), "vtab_solved", side=side, bins=[0, 5, 20])
    assert found.within["alignment"].tolist() == pytest.approx([s[:3].mean(), s[3:].mean()])
    assert found.within["label_y"].tolist() == ["all partners"] * 2 and found.within["n_models_y"].tolist() == [4, 4]
    assert found.within["n_pairs"].tolist() == [12, 12] and found.within["low"].notna().all()
    assert "all partners" in found.text and found.matrix().shape == (2, 1)


def test_undefined_pairs_are_counted_and_models_left_out_named():
    s = symmetric(np.random.default_rng(7), 6)
    s[0, 1] = s[1, 0] = math.nan
    values = [0, 1, 2, 3, 4, 200]
    found = bins(among(s), [*records(values)[:4], records(values)[5]], "vtab_solved", bins=[0, 10])
    assert (found.table.loc[0, "n_pairs"], found.table.loc[0, "n_missing"]) == (5, 1)
    assert found.left_out == ("m04 (no vtab_solved)", "m05 (outside the edges)")
    assert found.table.loc[0, "alignment"] == pytest.approx(np.nanmean(s[:4, :4][np.triu_indices(4, 1)]))


def test_both_directions_of_an_asymmetric_measure_count_once():
    s = symmetric(np.random.default_rng(8), 5)
    forth = among(s)
    back = forth.rename(columns={"model_x": "model_y", "model_y": "model_x"}).assign(statistic=forth["statistic"] + 2)
    found = bins(pd.concat([forth, back]), records(range(5)), "vtab_solved", bins=[0, 10])
    assert found.table.loc[0, "n_pairs"] == 10
    assert found.table.loc[0, "alignment"] == pytest.approx(s[np.triu_indices(5, 1)].mean() + 1)


def test_p_of_bins_moves_models():
    """All orders enumerated: six models in two bins of three."""
    s = symmetric(np.random.default_rng(9), 6)

    def gap(order) -> float:
        t = s[np.ix_(order, order)]
        up = np.triu_indices(3, 1)
        return abs(t[3:, 3:][up].mean() - t[:3, :3][up].mean())

    gaps = np.array([gap(list(order)) for order in itertools.permutations(range(6))])
    exact = (gaps >= gap(range(6)) - 1e-12).mean()
    found = bins(among(s), records(range(6)), "vtab_solved", bins=2, draws=19_999, seed=3)
    assert found.pvalue == pytest.approx(exact, abs=0.015)
    again = bins(among(s), records(range(6)), "vtab_solved", bins=2, draws=19_999, seed=3)
    assert again.pvalue == found.pvalue


def test_p_of_bins_holds_its_level_and_the_intervals_of_models_cover():
    """With effects of models, t intervals over pairs hold the truth too rarely; those over models do."""
    rng, runs = np.random.default_rng(10), 250
    small, models, pairs = 0, 0, 0
    for _ in range(runs):
        found = bins(among(symmetric(rng, 20, 0.7, 0.7)), records(range(20)), "vtab_solved", bins=2, draws=99)
        small += found.pvalue <= 0.05
        row = found.within.iloc[0]
        models += row["low"] <= 0 <= row["high"]
        half = stats.t.ppf(0.975, row["n_pairs"] - 1) * row["se"]
        pairs += abs(row["alignment"]) <= half
    assert stats.binomtest(small, runs, 0.05).pvalue > 0.001
    assert models / runs > 0.9 and pairs / runs < 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": "x"}, "bin all models together"),
        ({"side": "z"}, "unknown side 'z'"),
        ({"bins": [0, 0, 1]}, "do not ascend"),
        ({"bins": [1]}, "do not ascend"),
        ({"bins": 0}, "no bins"),
        ({"bins": [50, 60]}, "within the edges"),
        ({"measure": "CKAA()"}, "no measure 'CKAA\\(\\)'"),
    ],
)
def test_bins_refuse(options, message):
    with pytest.raises(RepalignError, match=message):
        bins(among(np.ones((4, 4))), records(range(4)), "vtab_solved", **options)


def test_bins_refuse_what_no_model_has_or_all_have_alike():
    table = among(np.ones((4, 4)))
    with pytest.raises(RepalignError, match="has a 'vtab_solve'.*\n.*\n.*\n.*'vtab_solved'"):
        bins(table, records(range(4)), "vtab_solve")
    with pytest.raises(RepalignError, match="all models have the same 'vtab_solved'"):
        bins(table, records([3] * 4), "vtab_solved")
    with pytest.raises(RepalignError, match="bin one side, each against all of the other"):
        bins(make_table(layers=(1, 1)), make_run()["models"], "n_parameters")
    mixed = pd.concat([table, among(np.ones((4, 4)), n=600)])
    with pytest.raises(RepalignError, match="equally many stimuli"):
        bins(mixed, records(range(4)), "vtab_solved")


# --- map ---------------------------------------------------------------------------------------


def test_the_plane_is_scikit_learns():
    from sklearn.manifold import smacof

    z = np.random.default_rng(0).standard_normal((9, 6))
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1)
    found = model_map(among(np.exp(-apart)), records(range(9)), draws=0, seed=3)
    plane, raw = smacof(apart, n_components=2, n_init=8, max_iter=300, eps=1e-6, random_state=3)
    oracle = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    points = found.table[["x", "y"]].to_numpy()
    spread = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.testing.assert_allclose(spread, oracle, atol=1e-10)
    np.testing.assert_allclose(found.distances.to_numpy(), apart, atol=1e-12)
    upper = np.triu_indices(9, 1)
    assert found.stress == pytest.approx(math.sqrt(raw / (oracle[upper] ** 2).sum()))
    assert found.faithfulness == pytest.approx(stats.spearmanr(oracle[upper], apart[upper]).statistic)
    assert math.isnan(found.chance) and math.isnan(found.pvalue)
    once, _ = smacof(apart, n_components=2, n_init=1, max_iter=300, eps=1e-6, random_state=3)
    assert not np.allclose(np.linalg.norm(once[:, None] - once[None], axis=-1), oracle, atol=1e-3)  # starts matter
    assert points.mean(0) == pytest.approx([0, 0]) and points[:, 0].std() > points[:, 1].std()


def test_what_lies_in_a_plane_is_found_again():
    z = np.random.default_rng(1).random((12, 2))
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1)
    found = model_map(among(1 - apart / 2), records(range(12)), distance="one-minus", draws=39)
    assert found.stress < 0.02 and found.faithfulness > 0.99 and found.violations == 0
    assert found.pvalue == pytest.approx(1 / 40) and found.chance < found.faithfulness
    assert found.n_triangles == 220 and "none violate" in found.text and "n = 500" in found.text
    again = model_map(among(1 - apart / 2), records(range(12)), distance="one-minus", draws=0)
    pd.testing.assert_frame_equal(found.table, again.table)


def test_distances_without_structure_are_no_better_than_chance(monkeypatch):
    """p of the map is that of its own null: small in few of many structureless tables."""
    monkeypatch.setattr(maps, "STARTS", 1)  # p is of maps of one start each; this is the one that is shown
    rng = np.random.default_rng(2)
    p = [model_map(among(rng.uniform(0.1, 1, (6, 6))), [], draws=9, seed=i).pvalue for i in range(50)]
    assert np.mean(np.array(p) <= 0.1) <= 0.28 and min(p) >= 0.1


def test_triangles_that_fail_are_counted():
    s = np.full((5, 5), 0.6)
    s[0, 1] = s[1, 0] = 0.0  # 0-1 is 1, both others .4: 0.8 < 1 for each of the three remaining models
    found = model_map(among(s), [], distance="one-minus", draws=0)
    assert found.violations == pytest.approx(3 / 10) and "30 % violate" in found.text


def test_the_table_has_all_that_a_colour_needs():
    models = records([1, 2, 3, 4, 5], families=["A", "A", "B", "B", "C"])
    models[0] |= {"n_parameters": 7_000, "scores": {"vtab_solved": 1.0, "x": 4.0}}
    found = model_map(among(symmetric(np.random.default_rng(3), 5, 0.02, 0.02) + 0.5), models[:4], draws=0)
    assert list(found.table.columns) == [
        "model", "modality", "family", "objective", "n_parameters", "x", "y", "vtab_solved", "score x"
    ]  # fmt: skip
    assert found.table["family"].tolist() == ["A", "A", "B", "B", ""]
    assert found.table["n_parameters"].tolist()[0] == 7000 and math.isnan(found.table["vtab_solved"].tolist()[4])


def test_models_with_undefined_scores_are_left_out():
    s = symmetric(np.random.default_rng(4), 7, 0.02, 0.02) + 0.5
    s[3, :5] = s[:5, 3] = s[0, 6] = s[6, 0] = math.nan
    found = model_map(among(s), [], draws=0)
    assert found.left_out == ("m03", "m06") and found.n == 5 and "Left out, for undefined scores: m03, m06" in found.text


def test_a_measure_that_is_a_distance_is_taken_as_it_is():
    z = np.random.default_rng(5).standard_normal((6, 2)) / 3
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1)
    found = model_map(among(apart, ANGLE), [], draws=0)
    assert found.distance == "score" and found.stress < 0.02
    with pytest.raises(RepalignError, match="is a distance: lower is closer"):
        model_map(among(apart, ANGLE), [], distance="-log")
    with pytest.raises(RepalignError, match="is no distance: higher is closer"):
        model_map(among(apart), [], distance="score")


def test_maps_refuse():
    s = np.full((5, 5), 0.5)
    for bad, message in ((0.0, "undefined for 1 pair of models"), (-0.2, "scores above 0"), (1.2, "negative for 1 pair")):
        worse = s.copy()
        worse[1, 3] = worse[3, 1] = bad
        with pytest.raises(RepalignError, match=message):
            model_map(among(worse), [])
    negative = s.copy()
    negative[1, 3] = negative[3, 1] = -0.2
    assert model_map(among(negative), [], distance="one-minus", draws=0).distances.loc["m01", "m03"] == 1.2
    with pytest.raises(RepalignError, match="compare them as one set of models"):
        model_map(against(s), [])
    with pytest.raises(RepalignError, match="too few models"):
        model_map(among(s[:3, :3]), [])
    with pytest.raises(RepalignError, match="at the same place"):
        model_map(among(np.ones((4, 4))), [])
    for option in ({"method": "tsne"}, {"distance": "cosine"}):
        with pytest.raises(RepalignError, match="tsne|cosine"):
            model_map(among(s), [], **option)


def test_equal_distances_have_no_rank():
    found = model_map(among(np.full((4, 4), 0.5)), [], draws=3)
    assert math.isnan(found.faithfulness) and math.isnan(found.pvalue) and "undefined" in found.text


@pytest.fixture
def one_thread():
    """torch on one thread: numba, which UMAP runs on, would give the whole process as many as there are cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_search():
    """UMAP's library of approximate neighbours as plain Python: maps do not need it, and numba compiles it for 17 s at first."""
    import numba

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", True)
        import pynndescent  # noqa: F401


@pytest.mark.slow
def test_umap_keeps_clusters_apart_and_leaves_torch_its_threads(one_thread, no_search):
    rng = np.random.default_rng(6)
    z = np.concatenate([rng.normal(c, 0.05, (10, 3)) for c in (0.0, 1.0, 2.0)])
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1)
    found = model_map(among(np.exp(-apart)), records(range(30)), method="umap", draws=19)
    assert torch.get_num_threads() == 1
    points = found.table[["x", "y"]].to_numpy()
    spread = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(30)
    assert (spread.argmin(1) // 10 == np.arange(30) // 10).all()
    assert found.pvalue == 0.05 and math.isnan(found.stress) and found.text.startswith("UMAP of 30 models")
    again = model_map(among(np.exp(-apart)), records(range(30)), method="umap", draws=0)
    pd.testing.assert_frame_equal(found.table, again.table)
    assert np.isfinite(model_map(among(np.exp(-apart[:4, :4])), [], method="umap", draws=0).table["x"]).all()


def test_without_umap_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(RepalignError, match="pip install 'repalign\\[map\\]'"):
        model_map(among(np.full((4, 4), 0.5)), [], method="umap")


# --- agreement ---------------------------------------------------------------------------------


def test_agreement_is_scipys_with_distances_turned():
    scores, table = three(np.random.default_rng(0), 8)
    found = agreement(table)
    upper = np.triu_indices(8, 1)
    for (i, j), row in zip(itertools.combinations(range(3), 2), found.table.to_dict("records"), strict=True):
        a, b = ((-1 if k == 2 else 1) * scores[k][upper] for k in (i, j))
        assert row["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)
        assert (row["n_pairs"], row["n_left_out"]) == (28, 0)
    assert found.distances == (ANGLE,) and f"sign turned: {ANGLE}" in found.text
    matrix = found.matrix()
    assert (np.diag(matrix) == 1).all() and (matrix == matrix.T).all().all() and found.n_models == 8


def test_undefined_pairs_are_left_out_pairwise():
    scores, _ = three(np.random.default_rng(1), 7)
    scores[0][0, 1] = scores[1][2, 3] = scores[1][0, 1] = math.nan
    table = pd.concat([among(s, m) for s, m in zip(scores, (KNN, CKA, ANGLE), strict=True)])
    found = agreement(table)
    assert found.table["n_pairs"].tolist() == [19, 20, 19] and found.table["n_left_out"].tolist() == [2, 1, 2]
    upper = np.triu_indices(7, 1)
    a, b = scores[0][upper], scores[1][upper]
    oracle = stats.spearmanr(a, b, nan_policy="omit").statistic
    assert found.table.loc[0, "spearman"] == pytest.approx(oracle) and "up to 2" in found.text


def test_the_mantel_p_is_an_enumeration(monkeypatch):
    scores, table = three(np.random.default_rng(2), 5)
    found = agreement(table)
    upper = np.triu_indices(5, 1)

    def rho(order) -> float:
        return abs(stats.spearmanr(scores[0][upper], scores[1][np.ix_(order, order)][upper]).statistic)

    every = np.array([rho(list(order)) for order in itertools.permutations(range(5))])
    assert found.exact and found.n_orders == 120 and "all 120 reorderings" in found.text
    assert found.table.loc[0, "pvalue"] == pytest.approx((every >= rho(range(5)) - 1e-9).mean())
    monkeypatch.setattr(agreements, "BLOCK", 100)  # three orders at a time
    assert agreement(table).table.equals(found.table)


def test_two_sides_move_apart():
    rng = np.random.default_rng(3)
    a = rng.standard_normal((4, 3))
    b = a + rng.standard_normal((4, 3))
    found = agreement(pd.concat([against(a, KNN), against(b, CKA)]))

    def rho(rows, columns) -> float:
        return abs(stats.spearmanr(a.ravel(), b[np.ix_(rows, columns)].ravel()).statistic)

    orders = itertools.product(itertools.permutations(range(4)), itertools.permutations(range(3)))
    every = np.array([rho(list(r), list(c)) for r, c in orders])
    assert found.n_orders == 144 and found.n_models == 7
    assert found.table.loc[0, "pvalue"] == pytest.approx((every >= rho(range(4), range(3)) - 1e-9).mean())


def test_random_orders_come_near_the_enumeration(monkeypatch):
    from repalign.relate import permutations

    _, table = three(np.random.default_rng(4), 6)
    exact = agreement(table).table["pvalue"]
    monkeypatch.setattr(permutations, "MOST_ORDERS", 10)
    found = agreement(table, draws=4_000, seed=1)
    assert not found.exact and "4,000 random reorderings" in found.text
    np.testing.assert_allclose(found.table["pvalue"], exact, atol=0.03)
    assert agreement(table, draws=4_000, seed=1).table.equals(found.table)


def test_the_mantel_p_is_uniform_where_the_naive_p_is_not():
    rng, runs = np.random.default_rng(5), 300
    naive, mantel = [], []
    upper = np.triu_indices(12, 1)
    for i in range(runs):
        a, b = symmetric(rng, 12, 1.0, 0.5), symmetric(rng, 12, 1.0, 0.5)
        found = agreement(pd.concat([among(a, KNN), among(b, CKA)]), draws=99, seed=i)
        mantel.append(found.table.loc[0, "pvalue"])
        naive.append(stats.spearmanr(a[upper], b[upper]).pvalue)
    assert stats.kstest(np.array(mantel) - 0.005, "uniform").pvalue > 0.01
    assert stats.kstest(naive, "uniform").pvalue < 1e-6 and np.mean(np.array(naive) <= 0.05) > 0.2


def test_intervals_leave_out_models_of_both_sides():
    rng = np.random.default_rng(6)
    a = rng.standard_normal((6, 5))
    b = a + rng.standard_normal((6, 5))
    (row,) = agreement(pd.concat([against(a, KNN), against(b, CKA)])).table.to_dict("records")
    z = math.atanh(stats.spearmanr(a.ravel(), b.ravel()).statistic)
    parts = []
    for axis, size in ((0, 6), (1, 5)):
        left = [
            math.atanh(stats.spearmanr(np.delete(a, i, axis).ravel(), np.delete(b, i, axis).ravel()).statistic)
            for i in range(size)
        ]
        parts.append(((size - 1) / size * sum((v - z) ** 2 for v in left), size - 1))
    total = sum(v for v, _ in parts)
    df = total**2 / sum(v**2 / d for v, d in parts)
    half = stats.t.ppf(0.975, df) * math.sqrt(total)
    assert (row["low"], row["high"], row["df"]) == pytest.approx((math.tanh(z - half), math.tanh(z + half), df))


def test_data_sets_rank_the_same_models_alike_or_not(tmp_path):
    """Results by the names of their data sets, in memory and from a folder; a distance turns nothing."""
    rng = np.random.default_rng(9)
    a = symmetric(rng, 7)
    b, c = a + 0.5 * symmetric(rng, 7), symmetric(rng, 7)
    two = pd.concat([against(rng.standard_normal((3, 3)), KNN), against(rng.standard_normal((3, 3)), ANGLE)])
    tables = {"photos": among(a, ANGLE, n=300), "drawings": among(b, ANGLE, n=1000), "noise": among(c, ANGLE)}
    made = {name: Alignment(table, {}) for name, table in tables.items()}
    found = agreement(made)
    upper = np.triu_indices(7, 1)
    for (x, y), row in zip(itertools.combinations((a, b, c), 2), found.table.to_dict("records"), strict=True):
        assert row["spearman"] == pytest.approx(stats.spearmanr(x[upper], y[upper]).statistic)
    assert list(found.table[["dataset_a", "dataset_b"]].iloc[0]) == ["photos", "drawings"]
    assert found.names == ("photos", "drawings", "noise") and found.measures == () and found.measure == ANGLE
    assert found.distances == () and (found.n_stimuli, found.n_most) == (300, 1000)
    assert found.text.startswith("3 data sets over 21 pairs of models of 7 models, n = 300 to 1,000: median Spearman")
    assert found.table["pvalue"].iloc[0] < 0.05 < found.table["pvalue"].iloc[1] and found.unit == "model"
    assert found.matrix().loc["photos", "drawings"] == found.table["spearman"].iloc[0]
    # the same by a column of one table, of one of its measures
    joined = pd.concat([t.assign(variant=name) for name, t in tables.items()] + [two.assign(variant=name) for name in tables])
    again = agreement(joined.loc[~joined["model_y"].str.startswith("p")], across="variant", measure=ANGLE)
    assert again.table.drop(columns=["variant_a", "variant_b"]).equals(found.table.drop(columns=["dataset_a", "dataset_b"]))
    whole = {"one": Alignment(make_table(seed=1), make_run()), "two": make_table(seed=2)}
    folder = Alignment(whole["two"], make_run()).save(tmp_path / "two")
    (row,) = agreement({"one": whole["one"], "two": folder}, measure="CKA").table.to_dict("records")
    scores = [t[(t["scope"] == "max") & (t["measure"] == CKA)]["statistic"] for t in (whole["one"].table, whole["two"])]
    assert row["spearman"] == pytest.approx(stats.spearmanr(*scores, nan_policy="omit").statistic) and row["n_left_out"] == 1


def test_models_that_one_data_set_lacks_are_left_out():
    rng = np.random.default_rng(10)
    a, b = symmetric(rng, 6), symmetric(rng, 8)
    (row,) = agreement({"few": Alignment(among(a), {}), "many": Alignment(among(b), {})}).table.to_dict("records")
    upper = np.triu_indices(6, 1)
    assert row["spearman"] == pytest.approx(stats.spearmanr(a[upper], b[upper]).statistic)
    assert (row["n_pairs"], row["n_left_out"]) == (15, 13)


def test_what_cannot_be_held_against_one_another():
    one = among(symmetric(np.random.default_rng(11), 5))
    other = one.assign(model_x="other " + one["model_x"], model_y="other " + one["model_y"])
    with pytest.raises(RepalignError, match="no two datasets have a pair of models in common(.|\n)*20 pairs, each under one"):
        agreement({"a": Alignment(one, {}), "b": Alignment(other, {})})
    with pytest.raises(RepalignError, match="agreement is between datasets(.|\n)*got: a\n"):
        agreement({"a": Alignment(one, {})})
    with pytest.raises(RepalignError, match="m00 and m01 stand more than once under variant a"):
        agreement(pd.concat([one.assign(variant=v) for v in "aab"]), across="variant")
    with pytest.raises(RepalignError, match="no column 'varant' tells runs apart(.|\n)*did you mean 'variant'"):
        agreement(one.assign(variant="a"), across="varant")
    with pytest.raises(RepalignError, match="agreement of measures is of all of them"):
        agreement(one, measure=CKA)


def test_layers_move_with_their_models():
    table = make_table()
    found = agreement(table, over="cell")
    rows = table[table["scope"] == "cell"].pivot(
        index=["model_x", "index_x", "model_y", "index_y"], columns="measure", values="statistic"
    )
    oracle = stats.spearmanr(rows[KNN], rows[CKA], nan_policy="omit").statistic
    assert found.table.loc[0, "spearman"] == pytest.approx(oracle)
    pairs = len(LANGUAGE) * len(VISION)
    assert found.table.loc[0, "n_pairs"] == (pairs - 1) * 34  # one cell of every pair, and a whole pair, are undefined
    assert found.n_orders == math.factorial(5) * math.factorial(6) and "pairs of layers of 11 models" in found.text


def test_models_of_other_depths_do_not_change_places():
    rng = np.random.default_rng(7)
    rows = []
    for measure in (KNN, CKA):
        for i, depth in enumerate((2, 2, 3, 3, 3)):
            for k, j in itertools.product(range(depth), range(4)):
                rows.append({"scope": "cell", "measure": measure, "model_x": f"m{i}", "model_y": f"p{j}", "index_x": k,
                             "index_y": 0, "n": 9, "statistic": rng.standard_normal(), "null_mean": 0})  # fmt: skip
    found = agreement(pd.DataFrame(rows), over="cell")
    assert found.n_orders == 2 * 6 * 24 and found.table.loc[0, "n_pairs"] == 13 * 4


def test_measures_are_ordered_by_clusters():
    rng = np.random.default_rng(8)
    a, b = symmetric(rng, 10), symmetric(rng, 10)
    noise = [0.05 * symmetric(rng, 10) for _ in range(2)]
    every = [a, b, a + noise[0], b + noise[1]]
    known = [KNN, CKA, "RV()", "SVCCA()"]
    table = pd.concat([among(s, m) for s, m in zip(every, known, strict=True)])
    assert agreement(table).measures == tuple(known)
    ordered = agreement(table, order="cluster").measures
    beside = {frozenset(ordered[:2]), frozenset(ordered[2:])}
    assert beside == {frozenset((KNN, "RV()")), frozenset((CKA, "SVCCA()"))}


def test_degenerate_agreements():
    rng = np.random.default_rng(9)
    s = symmetric(rng, 6)
    perfect = agreement(pd.concat([among(s, KNN), among(np.exp(s), CKA)])).table.iloc[0]
    assert perfect["spearman"] == pytest.approx(1) and math.isnan(perfect["low"]) and perfect["pvalue"] == 1 / 720
    flat = agreement(pd.concat([among(s, KNN), among(np.ones((6, 6)), CKA)]))
    assert math.isnan(flat.table.loc[0, "spearman"]) and math.isnan(flat.table.loc[0, "pvalue"])
    assert "no two measures have a correlation" in flat.text
    few = agreement(pd.concat([among(s[:3, :3], KNN), among(s.T[:3, :3] + 1, CKA)]))
    assert few.n_orders == 6 and math.isnan(few.table.loc[0, "pvalue"]) and "too few" in few.text
    assert few.unit == "" and math.isnan(few.table.loc[0, "low"])


def test_families_are_the_units_of_agreement():
    _, table = three(np.random.default_rng(10), 8)
    found = agreement(table, models=records(range(8), families=["A", "A", "B", "B", "C", "C", "D", "D"]))
    assert (found.unit, found.n_units) == ("family", 4) and "leave out one of 4 families" in found.text


def test_agreement_refuses():
    with pytest.raises(RepalignError, match="between measures"):
        agreement(among(np.ones((4, 4))))
    for option in ({"over": "layers"}, {"order": "size"}):
        with pytest.raises(RepalignError, match="unknown (scope 'layers'|order 'size')"):
            agreement(make_table(layers=(1, 1)), **option)


def test_the_constant_pair_is_said():
    found = agreement(make_table())
    assert found.table.loc[0, "n_left_out"] == 1 and CONSTANT[0] in {m[0] for m in LANGUAGE}
    assert "left out: up to 1, for 1 of 1 pairs of measures" in found.text
