"""Comparing at a large n: linear CKA in feature space, graphs without n x n matrices, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repalign import null as nulls
from repalign.comparison import compare, pair
from repalign.comparison.streamed import check_memory
from repalign.errors import RepalignError
from repalign.measures import MutualKNN, parse_measure
from repalign.measures.measure import GraphRelation, Relation


def layers(seed: int, n: int = 150) -> dict[str, np.ndarray]:
    z = np.random.default_rng(0).standard_normal((n, 4))
    rng = np.random.default_rng(seed)
    return {f"l{d}": z @ rng.standard_normal((4, d)) * (d > 6) + rng.standard_normal((n, d)) for d in (5, 12, 30)}


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(nulls, "CYCLIC_MAX_N", 100)


@pytest.mark.parametrize("measure", ["CKA()", "CKA(estimator='biased')"])
def test_streamed_scores_and_moments_are_those_of_the_dense_form(measure: str, monkeypatch):
    dense = pair(layers(1), layers(2), [measure])
    monkeypatch.setattr(nulls, "CYCLIC_MAX_N", 100)
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
    assert best["pvalue"] == pytest.approx(min(1.0, 9 / (1 + best["z"] ** 2))) and np.isnan(best["p_maxt"])
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
            plain = [[float((a.dense().double() * b.dense().double()).sum()) for b in some[2:]] for a in some[:2]]
            assert found.numpy() == pytest.approx(np.array(plain), abs=1e-9)


def test_what_does_not_fit_is_told_before_anything_is_read():
    rbf = parse_measure("CKA(kernel='rbf')")
    with pytest.raises(RepalignError, match="at n = 1,000,000 does not fit the memory(.|\n)*7450.6 GiB(.|\n)*streamed, MutualKNN"):
        check_memory(rbf, 10**6, 2**34)
    check_memory(MutualKNN(k=3), 10**6, 2**34)
    check_memory(rbf, 10**4, 2**34)


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
