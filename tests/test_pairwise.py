"""RDMs and kernels given as such: the border, the measures that take them, and that rows and columns stay together."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, pearsonr, spearmanr

from repalign import RDM, Kernel, pair
from repalign import null as nulls
from repalign.errors import RepalignError
from repalign.measures import CKA, HSIC, MEASURES, RSA, Bilinear, parse_measure
from repalign.measures.measure import as_layer
from repalign.testing import pair as related

N = 30
UPPER = np.triu_indices(N, 1)


def of_distances(metric: str = "euclidean"):
    return lambda x: RDM(squareform(pdist(x, metric)))


def centred_gram(x: np.ndarray) -> np.ndarray:
    c = x - x.mean(axis=0)
    return c @ c.T


def products(x: np.ndarray) -> Kernel:
    return Kernel(x @ x.T)


def mahalanobis(x: np.ndarray) -> RDM:
    return RDM(squareform(pdist(x, "mahalanobis", VI=np.linalg.inv(np.cov(x.T)))))


def gaussian(x: np.ndarray) -> RDM:
    squared = squareform(pdist(x, "sqeuclidean"))
    return RDM(1 - np.exp(-squared / squared.mean()))


# A measure, and how features are given as what it makes of them: by scipy or numpy, never by ours.
OWN = [
    *((f"RSA(dissimilarity='{d}')", of_distances(d)) for d in ("euclidean", "sqeuclidean", "cosine", "correlation", "cityblock")),
    ("RSA(dissimilarity='mahalanobis')", mahalanobis),
    ("RSA(dissimilarity='gaussian')", gaussian),
    *(
        (f"RSA(dissimilarity='euclidean', comparison='{c}')", of_distances())
        for c in ("pearson", "rho_a", "cosine", "whitened_cosine", "whitened_pearson")
    ),
    ("RSAKendall()", of_distances("correlation")),
    ("RSAKendall(tau='b')", of_distances("correlation")),
    ("RSMNormDifference()", of_distances()),
    ("RSMNormDifference(norm='frobenius', dissimilarity='cosine')", of_distances("cosine")),
    ("TopologicalRSA()", of_distances()),
    ("TopologicalRSA(geodesic=True, lower=0)", of_distances()),
    ("SigmoidRSA()", of_distances()),
    ("SquaredDistanceCorrelation()", of_distances()),
    ("SquaredDistanceCorrelation(estimator='biased', exponent=1.5)", of_distances()),
    ("DistanceCorrelation()", of_distances()),
    ("SquaredDistanceCovariance()", of_distances()),
    ("CKA(kernel='rbf')", of_distances()),
    ("CKA(kernel='laplacian', estimator='biased', bandwidth=2.0)", of_distances()),
    ("HSIC(kernel='rbf')", of_distances()),
    ("AngularCKA(kernel='rbf')", of_distances()),
    ("CKA()", products),
    ("CKA(estimator='biased', epsilon=1e-3)", products),
    ("HSIC()", products),
    ("RV()", products),
    ("RV(modified=True)", lambda x: Kernel(centred_gram(x))),  # without its diagonal a Gram matrix depends on the origin
    ("AngularCKA()", products),
    ("CKNNA(k=4)", products),
    ("CKNNA(k=4, similarity='dot')", products),
    ("CKNNAPaper(k=4)", products),
    ("CKNNAPaper(k=4, similarity='dot')", products),
    ("CKNNAReference(k=4)", products),
    ("CKNNAReference(k=4, similarity='dot', estimator='biased')", products),
    *(
        (text, made)
        for name in ("MutualKNN", "CycleKNN", "LCSKNN", "EditDistanceKNN", "JaccardKNN", "RankSimilarity", "JointRankJaccard")
        for text, made in ((f"{name}(k=4)", of_distances("cosine")), (f"{name}(k=4)", products))
    ),
    ("MutualKNN(k=4, similarity='euclidean')", of_distances()),
    ("MutualKNN(k=4, similarity='euclidean')", products),
    ("MutualKNN(k=4, similarity='dot')", products),
    ("MutualKNN(k=4, similarity='dot', center=True)", products),
    ("MutualKNN(k=4, center=True)", products),
    ("MultiScaleKNN(k=(2, 5))", of_distances("cosine")),
    ("MultiScaleKNN(k=(2, 5))", products),
    ("InformationImbalance(k=4)", of_distances()),
    ("InformationImbalance(k=4, similarity='cosine')", products),
    ("SecondOrderCosine(k=4)", of_distances("cosine")),
    ("SecondOrderCosine(k=4)", products),
    ("SecondOrderCosine(k=4, center=True)", products),
    ("SoftKNN(perplexity=4)", of_distances("cosine")),
    ("SoftKNN(perplexity=4, similarity='euclidean')", of_distances()),
    ("SoftKNN(perplexity=4)", products),
    ("SoftKNN(perplexity=4, similarity='euclidean')", products),
    ("SoftKNN(perplexity=4, similarity='dot', center=True)", products),
    ("IntrinsicDimensionDifference()", of_distances()),
    ("IMD()", of_distances()),
    ("IMD()", products),
    ("TotalPersistenceDifference()", of_distances()),
    ("RTDLite()", of_distances()),
    ("RTD()", of_distances()),
    ("RTD(rows=20, trials=2)", of_distances()),
    ("PersistenceDistance()", of_distances()),
]
NAMED = [f"{text} {'kernel' if made is products else 'pairs'}" for text, made in OWN]
by_measure = pytest.mark.parametrize(("text", "made"), OWN, ids=NAMED)


def needs_ripser(text: str) -> None:
    if text.startswith(("RTD(", "PersistenceDistance")):
        pytest.importorskip("ripser")
        pytest.importorskip("persim")


def close(got: float, expected: float, text: str) -> None:
    tolerance = 1e-5 if text.startswith(("RTD(", "PersistenceDistance")) else 1e-9  # single precision of the package
    assert got == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_every_measure_that_takes_pairs_stands_in_the_table():
    tried = {(type(parse_measure(text)), made(related(n=8)[0]).kind) for text, made in OWN}
    assert tried == {(cls, kind) for cls in MEASURES for kind in cls.takes - {"features"}}


@by_measure
def test_features_and_what_they_are_by_pairs_score_the_same(text, made):
    needs_ripser(text)
    m = parse_measure(text)
    x, y = related(3, n=N)
    expected = m(x, y)
    assert not math.isnan(expected)
    for a, b in ((made(x), made(y)), (x, made(y)), (made(x), y)):
        close(m(a, b), expected, text)


@by_measure
def test_rows_and_columns_are_relabelled_together(text, made):
    """compare(prepare(x), prepare(y).permute(p)) == compare(prepare(x), prepare(y[p])), y[p] the rows and columns p."""
    needs_ripser(text)
    m = parse_measure(text)
    if "trials" in text:
        m = replace(m, rows=N)  # sets of rows are drawn by position, and a relabelling draws others
    x, y = (made(a) for a in related(4, n=N))
    p = np.random.default_rng(5).permutation(N)
    there = type(y)(y.matrix.numpy()[np.ix_(p, p)])
    assert torch.equal(there.matrix, y[torch.from_numpy(p)].matrix) and torch.equal(there.matrix, y[list(p)].matrix)
    state = m.prepare(y).permute(torch.from_numpy(p))
    close(m.compare(m.prepare(x), state), m(x, there), text)
    if m.paired:
        assert m(x, there) != pytest.approx(m(x, y), rel=1e-6)


@by_measure
def test_stimuli_that_are_all_alike_have_the_score_of_constant_features(text, made):
    m, (x, y) = parse_measure(text), related(3, n=N)
    alike = RDM(np.zeros((N, N))) if made(y).kind == "rdm" else Kernel(np.full((N, N), 7.0))
    needs_ripser(text)
    assert m(alike, made(y)) == pytest.approx(m(np.full_like(x, 1.3), y), nan_ok=True)


@pytest.mark.parametrize(("text", "made"), [(t, f) for t, f in OWN if not t.startswith(("RTD", "Persistence"))])
def test_p_is_that_of_the_features(text, made):
    x, y = related(6, n=24)
    null = "auto" if isinstance(parse_measure(text), Bilinear) else nulls.Permutations(19, seed=3)
    a, b = pair(x, y, text, null).table, pair(made(x), made(y), text, null).table
    assert set(b["layer_x"]) == {made(x).kind} and list(a["null"]) == list(b["null"])
    columns = ["statistic", "null_mean", "null_std", "z", "pvalue", "threshold", "calibrated"]
    np.testing.assert_allclose(b[columns].to_numpy(float), a[columns].to_numpy(float), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("text", "made"), [("RSA()", of_distances("correlation")), ("CKA()", products), ("MutualKNN(k=4)", products)]
)
def test_the_cyclic_null_is_that_of_the_features(text, made):
    x, y = related(8, n=211)
    a, b = (pair(*both, text, nulls.Cyclic(seed=2)).table for both in ((x, y), (made(x), made(y))))
    columns = ["statistic", "null_mean", "pvalue", "threshold", "calibrated"]
    np.testing.assert_allclose(b[columns].to_numpy(float), a[columns].to_numpy(float), rtol=1e-6, atol=1e-9)
    assert set(b["null"]) == {"cyclic"}


# --- oracles --------------------------------------------------------------------------------------


def two_rdms(seed: int = 0, n: int = N, noise: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Dissimilarities that are no distances: nothing but symmetric, with some ties."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 5))
    found = [squareform(pdist(z + noise * rng.standard_normal(z.shape)) ** 2.5) for _ in range(2)]
    found[0] = np.round(found[0], 0)
    return found[0], found[1]


def test_rsa_is_the_correlation_of_the_upper_triangles():
    a, b = two_rdms()
    u, v = a[UPPER], b[UPPER]
    for text, expected in (
        ("RSA()", spearmanr(u, v)[0]),
        ("RSA(comparison='pearson')", pearsonr(u, v)[0]),
        ("RSA(comparison='cosine')", u @ v / np.linalg.norm(u) / np.linalg.norm(v)),
        ("RSAKendall(tau='b')", kendalltau(u, v)[0]),
        ("RSAKendall()", np.mean([np.sign((u[i] - u[j]) * (v[i] - v[j])) for i, j in itertools.combinations(range(len(u)), 2)])),
    ):
        assert parse_measure(text)(RDM(a), RDM(b)) == pytest.approx(expected, abs=1e-12), text
    assert pair(RDM(a), RDM(b), "RSA()").best()["statistic"][0] == pytest.approx(spearmanr(u, v)[0], abs=1e-9)


def test_neighbours_are_those_of_least_dissimilarity_and_largest_product():
    a, b = two_rdms(1)
    b[3, 7] = b[7, 3] = 0  # alike, and no neighbour is lost to it

    def lists(order: np.ndarray) -> list[set[int]]:
        return [set([j for j in np.argsort(row, kind="stable") if j != i][:5]) for i, row in enumerate(order)]

    expected = np.mean([len(p & q) / 5 for p, q in zip(lists(a), lists(b), strict=True)])
    assert parse_measure("MutualKNN(k=5)")(RDM(a), RDM(b)) == pytest.approx(expected, abs=1e-12)
    k = np.corrcoef(np.random.default_rng(2).standard_normal((N, 12)))
    expected = np.mean([len(p & q) / 5 for p, q in zip(lists(-k), lists(b), strict=True)])
    assert parse_measure("MutualKNN(k=5, similarity='dot')")(Kernel(k), Kernel(9 - b)) == pytest.approx(
        np.mean([len(p & q) / 5 for p, q in zip(lists(-k), lists(b), strict=True)]), abs=1e-12
    )
    assert parse_measure("MutualKNN(k=5)")(Kernel(k), RDM(b)) == pytest.approx(expected, abs=1e-12)


def test_cka_of_kernels_that_are_not_positive():
    rng = np.random.default_rng(0)
    k, ell = (m + m.T + 9 * np.eye(12) for m in rng.standard_normal((2, 12, 12)))
    centre = np.eye(12) - 1 / 12
    p, q = centre @ k @ centre, centre @ ell @ centre
    expected = (p * q).sum() / np.linalg.norm(p) / np.linalg.norm(q)
    assert CKA(estimator="biased")(Kernel(k), Kernel(ell)) == pytest.approx(expected, abs=1e-12)
    assert HSIC(estimator="trace")(Kernel(k), Kernel(3 * ell)) == pytest.approx(3 * (p * q).sum(), rel=1e-12)
    shift = rng.standard_normal(12)  # what centring takes off
    moved = Kernel(k + 1e3 * (shift[:, None] + shift) + 1e4)
    assert CKA()(moved, Kernel(ell)) == pytest.approx(CKA()(Kernel(k), Kernel(ell)), abs=1e-9)


@pytest.mark.parametrize("text", ["RSA(comparison='pearson')", "SquaredDistanceCorrelation()", "MutualKNN(k=2)", "RSAKendall()"])
def test_the_null_is_exact_over_all_relabellings(text):
    m = parse_measure(text)
    a, b = (RDM(d) for d in two_rdms(3, n=5))
    every = np.array(list(itertools.permutations(range(5))))
    scores = nulls.permuted_scores(m, [m.prepare(a)], [m.prepare(b)], every)[:, 0, 0]
    by_hand = [m(a, RDM(b.matrix.numpy()[np.ix_(p, p)])) for p in every]
    np.testing.assert_allclose(scores, by_hand, atol=1e-12)
    p = (scores[None, :] >= scores[:, None] - 1e-12).mean(axis=1)
    for alpha in np.arange(1, 21) / 20:
        assert np.mean(p <= alpha + 1e-12) <= alpha + 1e-12
    if isinstance(m, Bilinear):
        null = nulls.Moments(nulls.Permutations(1))
        found = null.moments(m, *(null.prepare(m, [m.prepare(d)]) for d in (a, b)))
        mean, std, skewness = (float(v[0, 0]) for v in found)
        assert (mean, std) == pytest.approx((scores.mean(), scores.std()), abs=1e-9)
        assert skewness == pytest.approx(((scores - scores.mean()) ** 3).mean() / scores.std() ** 3, abs=1e-7)


# --- the border -----------------------------------------------------------------------------------

GOOD = squareform(np.arange(1.0, 7.0))  # (4, 4)


def changed(i: int, j: int, value: float, both: bool = True) -> np.ndarray:
    out = GOOD.copy()
    out[i, j] = value
    if both:
        out[j, i] = value
    return out


REFUSED = [
    (RDM, np.arange(6.0), ["condensed form, the pairs (i < j) of 4 stimuli", "squareform(array)"]),
    (RDM, np.arange(7.0), ["not square", "shape (7,)"]),
    (RDM, np.ones((2, 6)), ["not square", "of rows in condensed form give", "features (n, d) are given as they are"]),
    (Kernel, np.arange(6.0), ["condensed form", "Kernel(scipy.spatial.distance.squareform"]),
    (RDM, np.ones((3, 4, 5)), ["not square", "shape (3, 4, 5)"]),
    (RDM, np.zeros((0, 0)), ["not square"]),
    (RDM, np.float64(3), ["not square"]),
    (RDM, changed(0, 1, np.nan), ["NaN or infinite values", "2 entries, the first in row 0, column 1"]),
    (Kernel, changed(2, 1, np.inf), ["NaN or infinite values", "leave these stimuli out"]),
    (RDM, GOOD + np.diag([np.nan] * 4), ["4 entries", "np.fill_diagonal(array, 0)"]),
    (RDM, changed(2, 1, 7.0, both=False), ["not symmetric", "in row 1, column 2", "(a + a.T) / 2"]),
    (Kernel, np.eye(4) + np.triu(GOOD), ["not symmetric"]),
    (RDM, changed(3, 1, -2.0), ["below zero", "-2 in row 1, column 3", "Kernel(array)"]),
    (RDM, 6 - GOOD, ["dissimilarity from itself", "6 in row 0, column 0", "repalign.Kernel(array)"]),
    (Kernel, GOOD, ["dissimilarities, not a kernel", "repalign.RDM(array)"]),
    (Kernel, np.diag([1.0, -3, 2]), ["below zero", "-3 in row 1"]),
    (RDM, GOOD.astype(complex), ["complex numbers"]),
    (RDM, np.array([["a", "b"], ["c", "d"]]), ["not an array of numbers"]),
    (RDM, torch.from_numpy(GOOD).to_sparse(), ["a sparse matrix (4, 4)"]),
    (RDM, np.stack([GOOD, changed(0, 1, -9.0)]), ["RDM, matrix 1: a dissimilarity is below zero"]),
]


@pytest.mark.parametrize(("form", "array", "words"), REFUSED, ids=lambda v: v[0][:30] if isinstance(v, list) else "")
def test_what_is_no_such_matrix_is_refused(form, array, words):
    with pytest.raises(RepalignError) as caught:
        form(array)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("names", "got"), [(["a"], "1 names"), (["a", "a"], "1 different"), (["a", "b", "c"], "3 names")]
)
def test_names_fit_the_stack(names, got):
    with pytest.raises(RepalignError, match=got):
        RDM(np.stack([GOOD, GOOD]), names=names)


def test_rounding_is_mended_and_the_array_left_alone():
    rough = GOOD + 1e-6 * np.triu(GOOD) + 1e-4 * np.eye(4)
    rough[0, 1] = rough[1, 0] = -1e-6
    before = rough.copy()
    mended = RDM(rough).matrix
    assert np.array_equal(rough, before) and torch.equal(mended, mended.T) and not mended.diagonal().any()
    assert float(mended.min()) == 0 and float(mended[2, 3]) == pytest.approx(GOOD[2, 3] * (1 + 5e-7), abs=1e-12)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((60, 40)).astype(np.float32))
    by_product = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist")
    assert by_product.diagonal().any()
    RDM(by_product)
    Kernel(np.corrcoef(x))


@pytest.mark.parametrize(
    ("given", "dtype"),
    [(np.float16, torch.float32), (np.float32, torch.float32), (np.int8, torch.float64), (np.uint16, torch.float64),
     (">f4", torch.float32), (">f8", torch.float64), (bool, torch.float64), (np.longdouble, torch.float64)],
)  # fmt: skip
def test_numbers_are_converted_as_those_of_features(given, dtype):
    array = (GOOD > 2) if given is bool else GOOD
    found = RDM(array.astype(given))
    assert found.dtype == dtype and torch.equal(found.matrix.double(), torch.from_numpy(array.astype(float)))
    assert RDM(torch.from_numpy(GOOD).to(torch.bfloat16)).dtype == torch.float32
    assert RDM(GOOD.tolist()).dtype == torch.float64


def test_a_stack_is_several_layers():
    stack = RDM(np.stack([GOOD, 2 * GOOD]), names=np.array(["a", "b"]))
    layers = stack.layers()
    assert list(layers) == ["a", "b"] and len(stack) == 4 and torch.equal(layers["b"].matrix, 2 * layers["a"].matrix)
    assert list(RDM(np.stack([GOOD, GOOD])).layers()) == ["rdm.0", "rdm.1"] and list(Kernel(np.eye(3)).layers()) == ["kernel"]
    with pytest.raises(RepalignError, match="several layers where one is needed"):
        as_layer(stack)
    with pytest.raises(RepalignError, match="given twice"):
        RDM(stack)
    with pytest.raises(TypeError, match="takes stimuli"):
        stack[0]
    assert stack[1:].shape == (2, 3, 3) and stack[np.array([True, False, True, False])].shape == (2, 2, 2)
    again = pickle.loads(pickle.dumps(stack))
    assert torch.equal(again.matrix, stack.matrix) and again.names == stack.names


# --- a published set ------------------------------------------------------------------------------

BED = {
    "models": {"animacy": 0.588189, "FaceBodyManmadeNatobj": 0.405282, "monkeyIT": 0.438924, "EVA": 0.354166, "HMAX": 0.221733,
               "V1": 0.039265, "Silhouette": 0.124677, "RADON": 0.061208},
    "v1_hmax": {"V1model": 0.039265, "HMAXnatImPatch": 0.101214},
}  # fmt: skip


def test_ninety_two_images(shared):
    """Kriegeskorte et al. 2008: Spearman with the mean of eight brain RDMs, as the set's README has it."""

    def read(name):
        with np.load(shared / "bed/rdm_92images" / f"{name}.npz", allow_pickle=False) as file:
            return file["rdm"].astype(float), [str(n) for n in file["names"]]

    brains, _ = read("brain")
    mean = RDM(brains.mean(axis=0))
    for file, expected in BED.items():
        stack, names = read(file)
        cells = pair(mean, RDM(stack, names=names), "RSA()", nulls.Permutations(9)).table.query("scope == 'cell'")
        found = dict(zip(cells["layer_y"], cells["statistic"], strict=True))
        assert found == pytest.approx(expected, abs=1e-6)
    judged = RDM(read("behaviour")[0].mean(axis=0))
    assert RSA()(mean, judged) == pytest.approx(0.392394, abs=1e-6)
    assert RSA()(RDM(brains[0]), RDM(brains[1])) == pytest.approx(0.277002, abs=1e-6)  # one person, two sessions
