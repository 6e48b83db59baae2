"""Comparing at a large n: linear CKA in feature space, graphs without n x n matrices, and what does not fit."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from repalign import null as nulls
from repalign.comparison import anchored_mutual_knn, compare, pair, ways
from repalign.comparison.ways import check_memory, way_of
from repalign.errors import RepalignError
from repalign.measures import CKA, MutualKNN, parse_measure
from repalign.measures.measure import GraphRelation, Relation


def layers(seed: int, n: int = 150) -> dict[str, np.ndarray]:
    z = np.random.default_rng(0).standard_normal((n, 4))
    rng = np.random.default_rng(seed)
    return {f"l{d}": z @ rng.standard_normal((4, d)) * (d > 6) + rng.standard_normal((n, d)) for d in (5, 12, 30)}


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setitem(ways.ABOVE, "streamed", 100)


@pytest.mark.parametrize("measure", ["CKA()", "CKA(estimator='biased')"])
def test_streamed_scores_and_moments_are_those_of_the_dense_form(measure: str, monkeypatch):
    dense = pair(layers(1), layers(2), [measure])
    monkeypatch.setitem(ways.ABOVE, "streamed", 100)
    streamed = pair(layers(1), layers(2), [measure])
    a, b = dense.cells(), streamed.cells()
    closed = (a["null"] == "moments").to_numpy()  # the others are judged by draws, for their skewness
    assert 3 <= closed.sum() < len(a)
    assert b["statistic"].to_numpy() == pytest.approx(a["statistic"].to_numpy(), rel=1e-6, abs=1e-9)
    for column in ("null_mean", "null_std", "z"):
        assert b[column].to_numpy()[closed] == pytest.approx(a[column].to_numpy()[closed], rel=1e-6, abs=1e-9)
    assert set(b["null"]) == {"bound"} and (b["n_draws"] == 0).all()
    assert b["pvalue"].to_numpy() == pytest.approx(1 / (1 + np.maximum(b["z"], 0) ** 2))
    assert (b["pvalue"] >= a["pvalue"] - 1e-12)[closed].all()
    assert ((b["calibrated"] > 0) == (b["pvalue"] < 0.05)).all()
    best, other = streamed.best().iloc[0], dense.best().iloc[0]
    assert (best["layer_x"], best["layer_y"]) == (other["layer_x"], other["layer_y"])
    cell = b[(b["layer_x"] == best["layer_x"]) & (b["layer_y"] == best["layer_y"])].iloc[0]
    assert best["pvalue"] == pytest.approx(min(1.0, 9 / (1 + cell["z"] ** 2))) and np.isnan(best["p_maxt"])
    assert best["null_mean"] == pytest.approx(cell["null_mean"] + cell["null_std"] * 8**0.5)
    assert best["z"] == pytest.approx((best["statistic"] - best["null_mean"]) / best["null_std"])
    assert streamed.run["null"]["by_measure"][b["measure"][0]] == {"method": "bound", "n_draws": 0}


def test_graphs_have_moments_at_any_n(small_limit):
    found = pair(layers(1), layers(2), ["MutualKNN(k=3)"])
    assert set(found.cells()["null"]) == {"moments"} and found.best()["null"][0] == "permutation"


def test_shared_entries_are_counted_the_same_both_ways():
    """Three neighbours of 150: entry by entry; fifteen of 150 in two layers: by looking up."""
    rng = np.random.default_rng(3)
    for k in (3, 15):
        graphs = [
            GraphRelation(torch.from_numpy(rng.permuted(np.tile(np.arange(150), (150, 1)), axis=1)[:, :k].copy()))
            for _ in range(4)
        ]
        weighted = [GraphRelation(g.indices, torch.from_numpy(rng.standard_normal((150, k)))) for g in graphs]
        for some in (graphs, weighted):
            found = Relation.inner_all(some[:2], some[2:])
            plain = [[float((a.matrix.double() * b.matrix.double()).sum()) for b in some[2:]] for a in some[:2]]
            assert found.numpy() == pytest.approx(np.array(plain), abs=1e-9)


def test_what_does_not_fit_is_told_before_anything_is_read(monkeypatch):
    rbf = parse_measure("CKA(kernel='rbf')")
    with pytest.raises(RepalignError, match="at n = 1,000,000 does not fit the memory(.|\n)*7450.6 GiB(.|\n)*streamed, MutualKNN"):
        check_memory(rbf, 10**6, 2**34)
    check_memory(MutualKNN(k=3), 10**6, 2**34)
    check_memory(rbf, 10**4, 2**34)
    with monkeypatch.context() as small:
        small.setattr(importlib.import_module("repalign.comparison.compare"), "DEFAULT_MEMORY", 1000)
        with pytest.raises(RepalignError, match="at n = 150 does not fit the memory"):
            pair(layers(1), layers(2), [rbf], memory=1000)
        found = pair(layers(1), layers(2), ["kernel", MutualKNN(k=3)], memory=1000)  # of a group it is left out
        assert "does not fit the memory" in {e["measure"]: e["reason"] for e in found.run["left_out"]}[repr(parse_measure("CKA()"))]


def test_a_search_that_needs_draws_is_refused(small_limit):
    with pytest.raises(RepalignError, match="the layer search studentised rows needs draws"):
        pair(layers(1), layers(2), ["CKA()"], search="rows")


def test_a_streamed_run_resumes(small_limit, tmp_path):
    from repalign.models import ModelRecord
    from repalign.representation import MemoryRepresentation

    sides = []
    for i in (1, 2, 3):
        arrays = {k: torch.from_numpy(v) for k, v in layers(i).items()}
        record = ModelRecord(f"array:m{i}", f"m{i}", "array")
        sides.append(MemoryRepresentation(record, tuple(map(str, range(150))), arrays, "noise", "f"))
    first = compare(sides, measures=["CKA()", MutualKNN(k=3)], results=tmp_path)
    again = compare(sides, measures=["CKA()", MutualKNN(k=3)], results=tmp_path)
    assert first.table.equals(again.table) and len(first.best("MutualKNN(k=3, similarity='cosine', center=False)")) == 3
    assert parse_measure("CKA()").dense and not MutualKNN(k=3).dense


# --- one table of ways ---------------------------------------------------------------------------

KNN = MutualKNN(k=5)


@dataclass(frozen=True)
class Renamed(CKA):
    """A measure of somebody's own, which may compute anything."""


@pytest.mark.parametrize(
    "measure, null, n, asked, name",
    [
        (CKA(), nulls.Auto(), 8_192, {}, ""), (CKA(), nulls.Auto(), 8_193, {}, "streamed"),
        (CKA(), nulls.Auto(), 10**6, {"plain": False}, ""), (CKA(), nulls.Cyclic(), 10**6, {}, ""),
        (CKA(kernel="rbf"), nulls.Auto(), 10**6, {}, ""), (CKA(epsilon=1e-6), nulls.Auto(), 10**6, {}, ""),
        (Renamed(), nulls.Auto(), 10**6, {}, ""),
        (KNN, nulls.Auto(), 20_000, {}, ""), (KNN, nulls.Auto(), 20_001, {}, "closed"),
        (KNN, nulls.Auto(), 20_001, {"search": "raw"}, "closed"), (KNN, nulls.Auto(), 20_001, {"search": "rows"}, ""),
        (KNN, nulls.Auto(groups=nulls.Groups.of([*range(100_001)] * 2, "whole")), 200_002, {}, ""),
        (KNN, nulls.Permutations(), 10**6, {}, ""),
        (KNN, nulls.Auto(), 200_000, {}, "closed"), (KNN, nulls.Auto(), 200_001, {}, "anchored"),
        (KNN, nulls.Auto(), 200_001, {"plain": False}, "closed"),
        (MutualKNN(k=5, center=True), nulls.Auto(), 200_001, {}, "closed"),
        (parse_measure("CKNNA()"), nulls.Auto(), 10**6, {}, ""), (parse_measure("Procrustes()"), nulls.Auto(), 10**6, {}, ""),
    ],
)  # fmt: skip
def test_which_way_is_taken(measure, null, n, asked, name):
    assert way_of(measure, null, n, **asked)[0].name == name


def test_closed_forms_are_those_of_any_n(monkeypatch):
    """Cells as by moments at any n; the search over them without a draw: p, threshold and chance level of the search."""
    dense = pair(layers(1), layers(2), [KNN])
    monkeypatch.setitem(ways.ABOVE, "closed", 149)
    told = []
    closed = pair(layers(1), layers(2), [KNN], progress=lambda task, done, total, note=None: told.append((task, note)))
    a, b, best = dense.cells(), closed.cells(), closed.best().iloc[0]
    by_law = (a["null"] == "moments").to_numpy()
    assert by_law.sum() >= 3 and (b["n_draws"] == 0).all() and set(b["null"]) <= {"moments", "bound"}
    for column in ("statistic", "null_mean", "null_std", "z", "pvalue", "threshold", "calibrated"):
        np.testing.assert_allclose(b[column][by_law], a[column][by_law], rtol=1e-12)
    assert ((b["calibrated"] > 0) == (b["pvalue"] <= 0.05)).all() and (b["pvalue"][~by_law] >= 1 / 2000).all()
    cell = b[(b["layer_x"] == best["layer_x"]) & (b["layer_y"] == best["layer_y"])].iloc[0]
    assert best["pvalue"] == pytest.approx(min(1.0, 9 * cell["pvalue"])) and best["n_draws"] == 0 and best["null"] == cell["null"]
    assert (best["calibrated"] > 0) == (best["pvalue"] <= 0.05) and best["threshold"] > cell["threshold"]
    assert closed.run["null"]["by_measure"][repr(KNN)] == {"method": "moments", "n_draws": 0}
    assert closed.run["ways"][repr(KNN)]["method"].startswith("mutual k-NN, all n = 150 rows, exact cosine neighbours by tiles")
    # 150^2 (5 + 12 + 30) twice, told before it is done.
    (plan,) = [note for task, note in told if task == f"plan for {KNN!r}"]
    assert plan.startswith("exact tiles: 2.1e+06 multiply-adds, ") and plan.endswith(" multiply-adds a second")
    assert [task for task, _ in told].index(f"plan for {KNN!r}") < [task for task, _ in told].index("prepare layers")


@pytest.mark.parametrize("way, measure, above", [("closed", KNN, 0.8), ("streamed", CKA(), 3.0)])
def test_the_chance_level_of_a_search_without_draws_is_the_least_that_holds(way, measure, above, monkeypatch):
    """Of the largest of nine unrelated scores: what draws give, or a little more, and not what chance gives to one cell."""
    sides = [{f"l{d}": np.random.default_rng([s, d]).standard_normal((150, d)) for d in (5, 12, 30)} for s in (1, 2)]
    drawn = pair(*sides, [measure], nulls.Permutations(999)).best().iloc[0]
    monkeypatch.setitem(ways.ABOVE, way, 100)
    found = pair(*sides, [measure])
    best = found.best().iloc[0]
    assert found.run["ways"][repr(measure)]["way"] == way and found.cells()["null_mean"].max() < drawn["null_mean"]
    assert drawn["null_mean"] < best["null_mean"] < drawn["null_mean"] + above * drawn["null_std"]
    assert best["pvalue"] >= drawn["pvalue"] - 0.03


def test_one_pair_of_layers_has_the_chance_of_its_cell_in_every_way(monkeypatch):
    x, y = layers(1)["l30"], layers(2)["l30"]
    for name, measure in (("streamed", CKA()), ("closed", KNN), ("anchored", KNN)):
        with monkeypatch.context() as small:
            small.setitem(ways.ABOVE, name, 100)
            small.setattr(ways, "ANCHORS", 60)
            found = pair(x, y, [measure])
        assert found.run["ways"][repr(measure)]["way"] == name
        (cell,), (best,) = (f.to_dict("records") for f in (found.cells(), found.best()))
        for column in ("statistic", "null_mean", "null_std", "z", "pvalue", "threshold", "calibrated"):
            assert best[column] == pytest.approx(cell[column], nan_ok=True), (name, column)


def test_anchors_give_an_interval_and_a_bound(monkeypatch, tmp_path):
    monkeypatch.setitem(ways.ABOVE, "anchored", 100)
    monkeypatch.setattr(ways, "ANCHORS", 60)
    found = pair(layers(1), layers(2), [KNN], nulls.Auto(seed=3), results=tmp_path)
    chance, told = 5 / 149, found.run["ways"][repr(KNN)]
    ends = {(e["layer_x"], e["layer_y"]): (e["low"], e["high"]) for e in told["intervals"]}
    for row in found.cells().itertuples():
        alone = anchored_mutual_knn(layers(1)[row.layer_x], layers(2)[row.layer_y], 5, n_anchors=60, seed=3)
        assert (row.statistic, *ends[row.layer_x, row.layer_y]) == (alone.statistic, alone.low, alone.high)
        assert row.null_mean == pytest.approx(chance) and row.null == "bound" and np.isnan(row.z)
        assert row.pvalue == pytest.approx(min(1.0, chance / row.statistic) if row.statistic else 1.0)  # Markov
        assert row.threshold == pytest.approx(chance / 0.05) and (row.calibrated > 0) == (row.pvalue < 0.05)
    best = found.best().iloc[0]
    assert best.statistic == found.cells()["statistic"].max() and best.null_mean == pytest.approx(9 * chance)
    assert best.pvalue == pytest.approx(min(1.0, 9 * chance / best.statistic))
    assert best.threshold == pytest.approx(9 * chance / 0.05)
    assert "60 anchors among n = 150 rows" in told["method"]
    again = pair(layers(1), layers(2), [KNN], nulls.Auto(seed=3), results=tmp_path)
    assert again.run["ways"] == found.run["ways"] and again.table.equals(found.table)


def test_what_is_asked_of_the_null_is_honoured_at_any_n(monkeypatch):
    for name in ways.ABOVE:
        monkeypatch.setitem(ways.ABOVE, name, 100)
    whole = nulls.Groups.of(np.arange(150) // 2, "whole")
    for null, search in ((nulls.Permutations(19), None), (nulls.Auto(groups=whole), None), ("auto", "rows")):
        found = pair(layers(1), layers(2), [KNN], null, search=search)
        assert found.best()["null"][0] == "permutation" and found.best()["p_maxt"].notna().all() and not found.run["ways"]
    found = pair(layers(1), layers(2), ["CKA()"], nulls.Permutations(19))
    assert set(found.table["null"]) == {"permutation"}
