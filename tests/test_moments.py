"""Closed-form moments against enumeration of every permutation, Monte Carlo, and published closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import graph_table
from repalign.measures import CKA, PWCCA, RSA, InformationImbalance, MutualKNN
from repalign.measures.measure import DenseRelation, GraphRelation, Relation
from repalign.null import Cyclic, Moments, Permutations
from repalign.null import graph_sums as room
from repalign.null import moments as law
from repalign.null.graph_sums import four_moments, in_place, shapes, sums_and_leverage
from repalign.null.moments import Closed


@pytest.fixture(autouse=True)
def _graphs_as_lists(monkeypatch):
    """Graphs of few vertices have too many edges for lists of them to pay: the tests hold the lists to enumeration."""
    monkeypatch.setattr(room, "SPARSE", 0)


@pytest.mark.parametrize(("n", "k"), [(7, 2), (40, 9), (60, 59), (150, 31)])
@pytest.mark.parametrize("weighted", [False, True])
def test_graphs_of_many_edges_are_the_same_as_matrices(n, k, weighted, monkeypatch):
    rng = np.random.default_rng(k)
    indices = torch.from_numpy(np.stack([rng.permutation([j for j in range(n) if j != i])[:k] for i in range(n)]))
    values = torch.from_numpy(rng.standard_normal((n, k))) if weighted else None
    some = GraphRelation(indices, values)
    lists = sums_and_leverage(some)
    monkeypatch.setattr(room, "SPARSE", 5)
    with monkeypatch.context() as without:
        without.delattr(room, "Sparse")
        matrices = sums_and_leverage(some)
    for a, b in zip(lists, matrices, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-11 * np.abs(a).max())
    monkeypatch.setattr(room.Dense, "__init__", None)  # one edge is not too many
    sums_and_leverage(GraphRelation(indices[:, :1]))


@pytest.mark.parametrize("few", [0, 10**9])  # places that were written are cleared, or all
@pytest.mark.parametrize("rows", [1, 7, 39])
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_of_rows_give_the_sums_of_all(rows, weighted, few, monkeypatch):
    rng = np.random.default_rng(rows)
    indices = torch.from_numpy(np.stack([rng.permutation([j for j in range(1, 40) if j != i])[:5] for i in range(40)]))
    indices[1:, 0] = 0  # a hub, where all edges of one block meet
    some = GraphRelation(indices, torch.from_numpy(rng.standard_normal((40, 5))) if weighted else None)
    whole = sums_and_leverage(some)
    monkeypatch.setattr(room, "CYCLE_ENTRIES", rows * 40)
    monkeypatch.setattr(room, "FEW", few)
    for a, b in zip(sums_and_leverage(some), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * np.abs(b).max())


def heaviest(leverage: np.ndarray) -> list[int]:
    """The stimuli of one relation that `in_place` tries, in its order."""
    return np.argpartition(-leverage[0, 6], room.HEAVIEST - 1)[: room.HEAVIEST].tolist()


def moment_sums(relation: Relation) -> np.ndarray:
    return sums_and_leverage(relation)[0]


def relation(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    if kind in ("graph", "weighted graph"):  # directed, no loops, two edges from every vertex
        a = np.zeros((n, n))
        for i in range(n):
            to = rng.choice([j for j in range(n) if j != i], 2, replace=False)
            a[i, to] = 1.0 if kind == "graph" else rng.standard_normal(2)
        return a
    if kind == "directed":
        return rng.standard_normal((n, n))
    a = rng.standard_normal((n, n))
    a = a + a.T
    if kind == "centred":
        h = np.eye(n) - 1 / n
        a = h @ a @ h
    if kind == "hollow":
        np.fill_diagonal(a, 0.0)
    return a


def dense(matrix: np.ndarray, symmetric: bool) -> DenseRelation:
    return DenseRelation(torch.from_numpy(matrix), 1.0, symmetric)


def graph(matrix: np.ndarray) -> GraphRelation:
    """The same relation as a graph of k edges per row."""
    k = int((matrix != 0).sum(1).max())
    indices = torch.from_numpy(np.argsort(matrix == 0, axis=1, kind="stable")[:, :k].copy())
    return GraphRelation(indices, torch.from_numpy(np.take_along_axis(matrix, indices.numpy(), axis=1)))


def moments(a: list[np.ndarray], b: list[np.ndarray], symmetric: bool, sparse: bool = False) -> tuple[np.ndarray, ...]:
    def stored(m: np.ndarray) -> Relation:
        return graph(m) if sparse else dense(m, symmetric)

    sums = (np.stack([moment_sums(stored(m)) for m in side]) for side in (a, b))
    return four_moments(*sums, len(a[0]), symmetric)[:4]


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("kind", ["symmetric", "centred", "hollow", "directed", "graph", "weighted graph"])
def test_equal_enumeration_of_all_permutations(kind, n):
    rng = np.random.default_rng(n)
    a, b = ([relation(kind, n, rng) for _ in range(count)] for count in (2, 3))
    every = [np.ix_(p, p) for p in itertools.permutations(range(n))]
    t = np.array([[[(s * r[p]).sum() for r in b] for s in a] for p in every])
    mean, sd, skew, kurtosis = moments(a, b, kind in ("symmetric", "centred", "hollow"), sparse="graph" in kind)
    assert mean == pytest.approx(t.mean(0), abs=1e-12)
    assert sd == pytest.approx(t.std(0), rel=1e-9, abs=1e-7)
    defined = t.std(0) > 1e-9
    standard = ((t - t.mean(0)) ** 3).mean(0)[defined] / t.std(0)[defined] ** 3
    assert skew[defined] == pytest.approx(standard, abs=1e-8)
    fourth = ((t - t.mean(0)) ** 4).mean(0)[defined] / t.std(0)[defined] ** 4 - 3
    assert kurtosis[defined] == pytest.approx(fourth, abs=1e-8)


@pytest.mark.parametrize("symmetric, counts", [(True, [2, 7, 23, 79]), (False, [2, 11, 52, 296])])
def test_all_multigraphs_are_told_apart(symmetric, counts):
    """OEIS A007717 and A052171: multigraphs, and directed ones, with 1 to 4 edges, loops, and no vertex alone."""
    assert [len(shapes(order, symmetric).vertices) for order in (1, 2, 3, 4)] == counts


def test_the_table_of_graphs_follows_from_nothing():
    with np.load(graph_table.PATH, allow_pickle=False) as kept:
        derived = graph_table.table()
        assert set(kept.files) == set(derived)
        for name, values in derived.items():
            assert np.array_equal(kept[name], values), name


@pytest.mark.parametrize("kind", ["symmetric", "directed", "graph", "weighted graph", "plain graph"])
def test_sums_of_connected_graphs_equal_sums_over_all_indices(kind):
    """Every one of them, by a product over its edges for all values of its vertices."""
    n, rng = 5, np.random.default_rng(3)
    symmetric, plain = kind == "symmetric", kind == "plain graph"
    a = relation("graph" if plain else kind, n, rng)
    if "graph" in kind:
        a[2] = 0.0
        a[2, [2, 4]] = 1.0 if kind != "weighted graph" else (0.7, -1.3)  # a loop
        edges = graph(a)
        stored = room.Sparse(GraphRelation(edges.indices, None) if plain else edges)
        a = stored.power(room.FORTH).toarray()
    else:  # as a graph of all edges: nothing is taken off
        edges = GraphRelation(torch.arange(n).expand(n, n), torch.from_numpy(a))
        stored = (room.Symmetric if symmetric else room.Dense)(edges)
        assert np.array_equal(stored.power(room.FORTH), a)
    graphs, found = graph_table.connected_graphs(symmetric), room.connected_sums(stored)[0]
    assert len(graphs) == len(found) == (95 if symmetric else 426)
    for one, total in zip(graphs, found, strict=True):
        number: dict[int, int] = {}
        ends = [number.setdefault(v, len(number)) for edge in one for v in edge]
        operands = [part for u, v in zip(ends[::2], ends[1::2], strict=True) for part in (a, [u, v])]
        assert total == pytest.approx(np.einsum(*operands, []) if one else total, rel=1e-9, abs=1e-9), one


@pytest.mark.parametrize("n", [60, 300])
def test_spectra_explain_the_kurtosis_of_gaussian_data_and_not_that_of_outliers(n):
    """Whatever the spectrum, to order 1 / n; a shared outlier leaves an excess of some 3 / n (width ratio)^4."""
    rng = np.random.default_rng(n)

    def of(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        kernels = [(v - v.mean(0)) @ (v - v.mean(0)).T for v in (x, y)]
        found = four_moments(*(moment_sums(dense(k, True))[None] for k in kernels), n, True)
        return float(found.kurtosis[0, 0]), float(found.of_spectra[0, 0])

    for decay in (0.0, 0.25, 0.5):
        x, y = rng.standard_normal((2, n, 24)) / np.arange(1, 25) ** decay
        kurtosis, of_spectra = of(x, y)
        assert kurtosis == pytest.approx(of_spectra, abs=0.01 + 8 * of_spectra / n)
    x, y = rng.standard_normal((2, n, 24))
    x[3] *= 10
    y[3] *= 10
    kurtosis, of_spectra = of(x, y)
    assert kurtosis > of_spectra + 1


def test_a_graph_and_its_dense_matrix_have_the_same_moments():
    rng = np.random.default_rng(5)
    for kind in ("graph", "weighted graph"):
        a, b = [relation(kind, 40, rng)], [relation(kind, 40, rng), relation(kind, 40, rng)]
        for one, other in zip(moments(a, b, False, sparse=True), moments(a, b, False), strict=True):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


def test_nothing_cancels_in_single_precision():
    """A biased kernel's mean score is some hundred times its spread: float32 keeps four digits of sd and skewness."""
    rng = np.random.default_rng(6)
    kernels = []
    for d in (256, 900):
        x = rng.standard_normal((300, d))
        x -= x.mean(0)
        kernels.append(x @ x.T / np.linalg.norm(x @ x.T))
    single = [np.stack([moment_sums(dense(k.astype(np.float32), True))]) for k in kernels]
    double = moments(kernels[:1], kernels[1:], True)
    assert double[0][0, 0] > 50 * double[1][0, 0]
    for one, other in zip(four_moments(*single, 300, True)[:4], double, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_symmetric_relations_may_be_treated_as_directed():
    rng = np.random.default_rng(0)
    a, b = [relation("centred", 30, rng)], [relation("centred", 30, rng)]
    for one, other in zip(moments(a, b, True), moments(a, b, False), strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


def test_mean_of_a_linear_kernel_is_the_effective_dimension_formula():
    """E[CKA] = sqrt(ED_x ED_y) / (n - 1) with ED = tr(K)^2 / tr(K^2), for any data."""
    rng = np.random.default_rng(1)
    n, kernels = 200, []
    for d in (16, 300):
        x = rng.standard_t(3, (n, d))
        x -= x.mean(0)
        kernels.append(x @ x.T)
    mean = moments(kernels[:1], kernels[1:], True)[0]
    frobenius = math.prod(np.linalg.norm(k) for k in kernels)
    expected = math.prod(np.trace(k) / np.linalg.norm(k) for k in kernels) / (n - 1)
    assert mean[0, 0] / frobenius == pytest.approx(expected, rel=1e-12)


def test_friedman_rafsky_moments_of_neighbour_graphs():
    """Mean k / (n - 1) and the 1983 variance, n = 1024, k = 10: sd .001255 (independent anchors give .00097)."""
    rng = np.random.default_rng(2)
    n, k, graphs = 1024, 10, []
    for _ in range(2):
        x = rng.standard_normal((n, 256))
        s = x @ x.T
        np.fill_diagonal(s, -np.inf)
        g = np.zeros((n, n))
        np.put_along_axis(g, np.argsort(-s, axis=1)[:, :k], 1.0, axis=1)
        graphs.append(g)
    mean, sd, skew = (m[0, 0] for m in moments(graphs[:1], graphs[1:], False, sparse=True)[:3])
    facts = []
    for g in graphs:
        rec, out, into = (g * g.T).sum(), g.sum(1), g.sum(0)
        m = g.sum()
        tail, head, th = (out**2).sum() - m, (into**2).sum() - m, (out * into).sum() - rec
        facts.append((m, rec, tail, head, th, m * m - m - rec - tail - head - 2 * th))
    (m, rec, tail, head, th, dis), (m2, rec2, tail2, head2, th2, dis2) = facts
    second = (m * m2 + rec * rec2) / math.perm(n, 2) + (tail * tail2 + head * head2 + 2 * th * th2) / math.perm(n, 3)
    second += dis * dis2 / math.perm(n, 4)
    assert mean == pytest.approx(n * k * k / (n - 1), rel=1e-12)
    assert sd == pytest.approx(math.sqrt(second - mean**2), rel=1e-8)
    assert sd / (n * k) == pytest.approx(0.00125, abs=0.00006)
    assert 0.05 < skew < 0.4


def test_a_score_that_does_not_depend_on_the_pairing_has_no_spread():
    ones = np.ones((9, 9))
    mean, sd, skew, _ = moments([ones], [relation("symmetric", 9, np.random.default_rng(0))], True)
    assert sd[0, 0] == 0.0 and skew[0, 0] == 0.0 and np.isfinite(mean).all()


def samples(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "t3":
        return rng.standard_t(3, (n, 12))
    if kind == "low rank":
        return rng.standard_normal((n, 2)) @ rng.standard_normal((2, 12))
    x = rng.standard_normal((n, 12))
    if kind == "duplicated":
        x[n // 2 :] = x[: n - n // 2]
    return x


@pytest.mark.parametrize("n", [20, 60, 200])
def test_agree_with_200000_random_permutations(n: int):
    """Mean, sd and skewness of biased and debiased CKA and mutual k-NN within four standard errors.

    Data of four kinds against the same y under the same permutations: each kind has 200,000 of its own scores.
    """
    from repalign.measures import parse_measure
    from repalign.measures.measure import as_features

    rng = np.random.default_rng(n)
    count, kinds = 200_000, ("gaussian", "t3", "low rank", "duplicated")
    measures = [parse_measure(m) for m in ("CKA(estimator='biased')", "CKA()", "MutualKNN(k=3)")]
    xs, y = [samples(kind, n, rng) for kind in kinds], samples("gaussian", n, rng)
    states = [[m.prepare(as_features(a)) for a in (*xs, y)] for m in measures]  # of y the last
    left, right = torch.from_numpy(np.concatenate([x - x.mean(0) for x in xs], 1)), torch.from_numpy(y - y.mean(0))
    a, b = left.square().unflatten(1, (len(kinds), -1)).sum(2), right.square().sum(1)
    edges = states[2][-1].matrix.nonzero().numpy()
    # The edges that two graphs share are counted for all kinds at once, in sixteen bits of a number for each.
    bits = 16 * np.arange(len(kinds))
    graphs = sum(s.matrix.numpy().astype(np.int64).reshape(-1) << bit for s, bit in zip(states[2], bits, strict=False))
    draws = np.empty((3, len(kinds), count))
    for start in range(0, count, 4000):
        p = rng.permuted(np.tile(np.arange(n), (4000, 1)), axis=1)
        now = np.s_[start : start + 4000]
        cross = (left.T @ right[torch.from_numpy(p)]).square().unflatten(1, (len(kinds), -1)).sum((2, 3))
        # <K, L> of two U-centred kernels from features: |X'Y|^2 - n / (n - 2) sum a_i b_i + sum a sum b / ((n - 1)(n - 2)).
        hollow = cross - n / (n - 2) * (b[p] @ a) + a.sum(0) * b.sum() / ((n - 1) * (n - 2))
        shared = graphs[p[:, edges[:, 0]] * n + p[:, edges[:, 1]]].sum(1)
        draws[0, :, now], draws[1, :, now] = cross.T, hollow.T
        draws[2, :, now] = shared >> bits[:, None] & 0xFFFF
    for measure, i in itertools.product(range(3), range(len(kinds))):
        t, s = draws[measure, i], (states[measure][i], states[measure][-1])
        t = t if measure == 2 else t / (s[0].norm * s[1].norm)
        mean, sd, skew = (v[0, 0] for v in four_moments(*(moment_sums(q)[None] for q in s), n, s[0].symmetric)[:3])
        z = (t - t.mean()) / t.std()
        told = kinds[i], measures[measure]
        assert mean == pytest.approx(t.mean(), abs=4 * sd / count**0.5), told
        # Delta method: the influence of a draw on the sd and on the skewness.
        assert sd == pytest.approx(t.std(), abs=4 * sd * ((z**2 - 1) / 2).std() / count**0.5), told
        influence = z**3 - 3 * z - 1.5 * (z**3).mean() * (z**2 - 1)
        assert skew == pytest.approx((z**3).mean(), abs=4 * influence.std() / count**0.5), told


@pytest.mark.parametrize("kind", ["symmetric", "centred", "hollow", "directed", "graph", "weighted graph"])
def test_the_mean_with_one_stimulus_in_its_place_equals_enumeration(kind):
    n = 6
    rng = np.random.default_rng(n)
    a, b = (relation(kind, n, rng) for _ in range(2))
    every = np.array(list(itertools.permutations(range(n))))
    scores = (a * b[every[:, :, None], every[:, None, :]]).sum((1, 2))
    stored = [graph(m) if "graph" in kind else dense(m, kind != "directed") for m in (a, b)]
    one, other = (sums_and_leverage(s)[1][None] for s in stored)
    found = in_place(one, other, np.array([[scores.std()]]), n)
    which = heaviest(one) + heaviest(other)
    for k, shift in zip(which, found.shift[:, 0, 0], strict=True):
        expected = (scores[every[:, k] == k].mean() - scores.mean()) / scores.std()
        assert shift == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("times", [1.0, 4.0, 20.0])
def test_the_spread_with_one_stimulus_in_its_place_is_that_of_relabellings(times):
    n, rng = 50, np.random.default_rng(3)
    a, b = (relation("hollow", n, rng) for _ in range(2))
    for m in (a, b):
        m[4], m[:, 4] = m[4] * times, m[:, 4] * times
    p = rng.permuted(np.tile(np.arange(n), (4000, 1)), axis=1)
    rows = np.arange(len(p))
    at = (p == 4).argmax(axis=1)
    p[rows, at], p[:, 4] = p[:, 4].copy(), 4
    sd = four_moments(*(moment_sums(dense(m, True))[None] for m in (a, b)), n, True).sd
    one, other = (sums_and_leverage(dense(m, True))[1][None] for m in (a, b))
    found = in_place(one, other, sd, n)
    which = heaviest(one) + heaviest(other)
    true = np.std([(a * b[q][:, q]).sum() for q in p]) / sd[0, 0]
    if times > 1:
        assert 4 in which
        assert found.spread[which.index(4), 0, 0] == pytest.approx(true, rel=0.1)
    else:  # nobody is out: nobody's place matters
        assert found.spread[:, 0, 0] == pytest.approx(np.ones(len(which)), abs=0.15)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("n", [20, 23, 300])
def test_the_rows_of_a_narrow_layer_give_the_sums_of_its_kernel(estimator, n):
    """Closed walks are counted in feature space where a layer is narrow, also after a relabelling; no number changes by it."""
    generator = torch.Generator().manual_seed(n)
    measure = CKA(estimator=estimator)
    wide, narrow = (measure.prepare(torch.randn(n, d, generator=generator, dtype=torch.float64) + 3) for d in (n, 4))
    assert wide.factor is None and narrow.factor is not None
    for relation in (narrow, narrow.permute(torch.randperm(n, generator=generator))):
        found, plain = (sums_and_leverage(r)[0] for r in (relation, replace(relation, factor=None)))
        np.testing.assert_allclose(found, plain, rtol=1e-11, atol=1e-12 * np.abs(plain).max())
    assert Cyclic().prepare(measure, [narrow]).states[0].factor is None


@pytest.mark.parametrize("measure", [CKA(), MutualKNN(k=5), InformationImbalance(), RSA()], ids=repr)
def test_sums_are_made_once_while_a_layer_is_at_hand(measure, monkeypatch):
    x = [torch.randn(40, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    null, made = Moments(Cyclic()), []
    expected = null.prepare(measure, [measure.prepare(layer) for layer in x]).of_law
    monkeypatch.setattr(law, "sums_and_leverage", lambda relation: (made.append(1), sums_and_leverage(relation))[1])
    states = [measure.prepare(layer) for layer in x]
    for state in states:
        null.at_hand(measure, state)
    at_hand = len(made)
    found = null.prepare(measure, states).of_law
    assert len(made) == at_hand == len(x) * len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_nothing_is_made_at_hand_of_a_measure_without_relations_or_where_sums_may_not_be_asked_for():
    measure, x = MutualKNN(k=5), torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    for null, other in ((Moments(Cyclic()), PWCCA()), (Closed(Cyclic()), measure), (Cyclic(), measure), (Permutations(9), measure)):
        state = other.prepare(x)
        null.at_hand(other, state)
        assert "sums" not in vars(state)
