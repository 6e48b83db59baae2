"""RDMs and kernels through pair and compare: forms of a model, what refuses them, samples, intervals, keys, findings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

import repalign
from repalign import RDM, Kernel, Preprocess, pair
from repalign import null as nulls
from repalign.comparison import Settings, Tile, compare, stream_cka_all
from repalign.comparison.ceilings import split_half
from repalign.comparison.doctor import examine
from repalign.comparison.intervals import difference_interval, score_interval
from repalign.comparison.ways import ABOVE
from repalign.errors import RepalignError
from repalign.measures import CKA, RSA, RTD, describe, parse_measure
from repalign.measures.measure import as_layer
from repalign.measures.relative import relative_to_null
from repalign.models import ModelRecord
from repalign.representation import MemoryRepresentation, break_pairs, mean_of, sample_rows
from repalign.testing import pair as related

N = 30


def two_rdms(seed: int = 0, n: int = N, noise: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Dissimilarities that are no distances: nothing but symmetric, with some ties."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 5))
    found = [squareform(pdist(z + noise * rng.standard_normal(z.shape)) ** 2.5) for _ in range(2)]
    found[0] = np.round(found[0], 0)
    return found[0], found[1]


def test_forms_of_a_model_and_how_its_layers_are_called():
    x, _ = related(n=N)
    a, b = two_rdms()
    forms = [  # what is given, the names of its layers, and which of them is the RDM a
        (RDM(a), ["rdm"], 0),
        (RDM(a, names="it"), ["it"], 0),
        (RDM(np.stack([a, b])), ["rdm.0", "rdm.1"], 0),
        (RDM(np.stack([b, a]), names=["s1", "s2"]), ["s1", "s2"], 1),
        ({"v1": x, "it": RDM(a)}, ["v1", "it"], 1),
        ({"it": RDM(np.stack([a, b]), names=["s1", "s2"]), "v1": x}, ["it.s1", "it.s2", "v1"], 0),
        ({"it": RDM(np.stack([b, a]))}, ["it.0", "it.1"], 1),
        ([RDM(a), x], ["layer.0", "layer.1"], 0),
        ([x, RDM(a)], ["layer.0", "layer.1"], 1),
        ([x, RDM(np.stack([b, a]))], ["layer.0", "layer.1.0", "layer.1.1"], 2),
    ]
    for given, names, at in forms:
        found = pair(given, RDM(b), "RSA()")
        cells = found.table[found.table["scope"] == "cell"]
        assert list(cells["layer_x"]) == names, names
        assert cells["statistic"].iloc[at] == pytest.approx(RSA()(RDM(a), RDM(b)), abs=1e-9)


def test_a_measure_that_does_not_take_it_says_so_with_model_and_layer():
    x, _ = related(n=N)
    a, _ = two_rdms()
    with pytest.raises(RepalignError) as caught:
        pair({"v1": x, "it": RDM(a)}, x, "CKA()", names=("brain", "model"))
    said = str(caught.value)
    assert "brain, layer it: CKA(kernel='linear'" in said and "does not take an RDM" in said
    assert "CKA with other parameters takes an RDM" in said and "RSA, RSAKendall" in said and "Procrustes" not in said
    for text, layer, got in (
        ("RSA()", Kernel(np.eye(N)), "a Kernel"),
        ("Procrustes()", RDM(a), "an RDM"),
        ("CKA(kernel='cubic')", Kernel(np.eye(N)), "a Kernel"),
        ("MutualKNN(center=True)", RDM(a), "an RDM"),
        ("MutualKNN(similarity='dot')", RDM(a), "an RDM"),
        ("SecondOrderCosine(center=True)", RDM(a), "an RDM"),
    ):
        for call in (lambda t=text, z=layer: parse_measure(t)(z, x), lambda t=text, z=layer: pair(x, z, t)):
            with pytest.raises(RepalignError, match=f"does not take {got}"):
                call()
    for call in (
        lambda: score_interval(x, RDM(a), "CKA()"),
        lambda: relative_to_null(CKA(), x, RDM(a)),
        lambda: RTD().directions(x, Kernel(np.eye(N))),
        lambda: split_half(memory(x), memory(RDM(a)), "CKA()"),
    ):
        with pytest.raises(RepalignError, match="does not take"):
            call()
    with pytest.raises(RepalignError, match="dissimilarities where features are needed"):
        repalign.measures.uniformity(RDM(a))  # type: ignore[attr-defined]
    assert "rdm" in describe(RSA)["takes"] and describe(CKA)["takes"] == ["features", "kernel"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_unmarked_dissimilarities_are_no_features_of_a_measure(dtype):
    a, b = (np.round(10 * d).astype(dtype) for d in two_rdms())
    x, _ = related(n=N)
    for call in (lambda: RSA()(a, b), lambda: CKA()(x, b), lambda: relative_to_null(RSA(), a, x), lambda: RTD().directions(a, x)):
        with pytest.raises(RepalignError, match=r"dissimilarities where features are meant(.|\n)*repalign.RDM"):
            call()
    for features in (a[:, :-1], np.eye(N), a - 1.0, np.triu(a)):  # what only looks a little like them is compared
        assert not math.isnan(CKA(estimator="biased")(features, x))


def test_the_run_says_what_the_layers_are():
    a, b = two_rdms()
    x, _ = related(n=N)
    run = pair({"it": RDM(a), "v1": x}, RDM(np.stack([a, b])), "RSA()", nulls.Permutations(3)).run
    assert [m["facts"] for m in run["models"]] == [{"kinds": {"it": "rdm"}}, {"kinds": {"rdm.0": "rdm", "rdm.1": "rdm"}}]
    assert run["models"][0]["widths"] == [N, x.shape[1]]


def test_ids_name_rows_and_columns():
    a, b = two_rdms(4)
    ids = [f"s{i}" for i in range(N)]
    there = np.random.default_rng(1).permutation(N)
    frame = pytest.importorskip("pandas").DataFrame(related(n=N)[0], index=ids)
    moved = {"it": RDM(b[np.ix_(there, there)]), "ids": [ids[i] for i in there]}
    for other, expected in ((moved, RSA()(RDM(a), RDM(b))), (frame, RSA()(RDM(a), frame.to_numpy()))):
        found = pair({"v1": RDM(a), "ids": ids}, other, "RSA()", nulls.Permutations(3))
        assert found.best()["statistic"][0] == pytest.approx(expected, abs=1e-9) and "joined on 30 ids" in found.run["how"][0]
    assert pair(RDM(a), RDM(b), "RSA()", nulls.Permutations(3), ids=ids).table["dataset_fingerprint"][0] != f"rows:{N}"
    with pytest.raises(RepalignError, match="ids do not fit the rows"):
        pair(RDM(a), RDM(b), "RSA()", ids=ids[:-1])


def test_of_a_group_what_does_not_take_it_is_left_out_with_the_reason():
    a, b = (RDM(d) for d in two_rdms())
    found = pair(a, b, ["rdm", "kernel"], nulls.Permutations(3))
    done = {text.partition("(")[0] for text in found.run["measures"]}
    assert done == {"RSA", "RSAKendall", "RSMNormDifference", "TopologicalRSA", "SigmoidRSA",
                    "SquaredDistanceCorrelation", "DistanceCorrelation", "SquaredDistanceCovariance"}  # fmt: skip
    reasons = {e["measure"].partition("(")[0]: e["reason"] for e in found.run["left_out"]}
    assert "does not take an RDM" in reasons["CKA"] and "x, layer rdm" in reasons["RV"] and not set(reasons) & done


def memory(*layers, name: str = "m") -> MemoryRepresentation:
    arrays = {f"l{i}": as_layer(v) for i, v in enumerate(layers)}
    ids = tuple(f"s{i}" for i in range(len(arrays["l0"])))
    return MemoryRepresentation(ModelRecord(f"array:{name}", name, "text"), ids, arrays, "data", "f")


def test_what_is_prepared_from_features_alone_is_refused():
    a, _ = two_rdms()
    x, _ = related(n=N)
    for word, value in (("clip", "exact"), ("normalize_rows", True), ("concatenate", True)):
        preprocess = Preprocess(**{word: value})
        for call in (
            lambda p=preprocess: pair(x, {"v1": x, "it": RDM(a)}, "RSA()", preprocess=p),
            lambda p=preprocess: split_half(memory(x), memory(RDM(a), name="y"), "RSA()", preprocess=p),
        ):
            with pytest.raises(RepalignError, match=rf"y, layer (it|l0): features alone can be prepared(.|\n)*got: {word}"):
                call()
    with pytest.raises(RepalignError, match="m, layer l1: a mean is over vectors"):
        mean_of([memory(x, RDM(a)), memory(x, RDM(a))])
    with pytest.raises(RepalignError, match="rows of features are read here"):
        stream_cka_all(memory(RDM(a)), memory(x))


def test_a_kernel_is_not_streamed_as_features_are(monkeypatch):
    monkeypatch.setitem(ABOVE, "streamed", 20)
    x, y = related(n=N)
    assert set(pair(x, y, "CKA()").table["null"]) == {"bound"}
    found = pair(Kernel(x @ x.T), y, "CKA()").table
    assert "bound" not in set(found["null"]) and found["statistic"][0] == pytest.approx(CKA()(x, y), abs=1e-9)


def test_samples_broken_pairs_halves_and_subsets_take_rows_and_columns():
    a, b = two_rdms(2, n=60)
    x, y = memory(RDM(a), name="x"), memory(RDM(b), name="y")
    small = sample_rows([x, y], 25, seed=1)
    rows = np.array([int(i[1:]) for i in small[0].ids])
    for r, d in zip(small, (a, b), strict=True):
        assert r.kinds["l0"] == "rdm" and np.array_equal(r.load("l0").matrix, d[np.ix_(rows, rows)])
    expected = spearmanr(squareform(a[np.ix_(rows, rows)]), squareform(b[np.ix_(rows, rows)]))[0]
    assert compare(small[:1], small[1:], ["RSA()"]).best()["statistic"][0] == pytest.approx(expected, abs=1e-9)
    broken = break_pairs([x], 0.5, seed=2)[0].load("l0").matrix.numpy()
    order = [int(np.flatnonzero((np.sort(row) == np.sort(a, axis=1)).all(axis=1))[0]) for row in broken]
    assert sorted(order) == list(range(60)) and order != list(range(60)) and np.array_equal(broken, a[np.ix_(order, order)])

    kept = np.random.default_rng(0)
    found = split_half(x, y, "RSA()", n_splits=3, seed=0)
    halves = []
    for _ in range(3):
        chosen = np.isin(np.arange(60), kept.permutation(60)[:30])
        for h in map(np.flatnonzero, (chosen, ~chosen)):
            halves.append(spearmanr(squareform(a[np.ix_(h, h)]), squareform(b[np.ix_(h, h)]))[0])
    assert found.statistic == pytest.approx(np.mean(halves), abs=1e-9)
    around = score_interval(RDM(a), (y, "l0"), "RSA()", n_groups=6)
    assert around.low < around.statistic < around.high
    assert around.statistic == pytest.approx(RSA()(RDM(a), RDM(b)), abs=1e-9)
    assert difference_interval(RDM(a), RDM(b), RDM(a), "RSA()", n_groups=6).statistic < 0


def test_the_same_numbers_in_another_form_are_another_layer():
    a, _ = two_rdms()
    k = np.corrcoef(a)
    d = np.round(1 - k, 12)
    forms = [memory(torch.from_numpy(k)), memory(Kernel(k)), memory(RDM(d)), memory(torch.from_numpy(d))]
    assert torch.equal(forms[2].load("l0").matrix, forms[3].load("l0"))
    assert len({f.key for f in forms}) == 4
    settings = Settings(nulls.Permutations(9), "raw max", 0.05, Preprocess(), "cpu")
    assert len({Tile(f, forms[0], CKA(), settings).key for f in forms}) == 4


def test_the_doctor_looks_at_pairs():
    def codes(layer):
        return {f.code: f.severity for f in examine(layer, model="m", layer="l", k=10)}

    a, b = two_rdms()
    assert codes(RDM(b)) == {}
    group = np.arange(N) < 12
    assert codes(RDM((group[:, None] != group).astype(float))) == {"duplicates": "warning", "tied-pairs": "note"}
    assert codes(RDM(np.zeros((5, 5)))) == codes(Kernel(np.ones((5, 5)))) == {"constant": "serious"}
    assert codes(Kernel(np.corrcoef(a))) == {} and codes(Kernel(a + 1e3 * np.eye(N))) == {}
    assert codes(Kernel(a + np.eye(N))) == {"indefinite": "warning"}
    found = pair(RDM(b), RDM(np.zeros((N, N))), "RSA()")
    assert [f["code"] for f in found.run["findings"]] == ["constant"] and math.isnan(found.best()["statistic"][0])
