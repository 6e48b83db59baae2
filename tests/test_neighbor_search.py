"""The neighbour search: against a plain search, ties, duplicates, self, precision, extreme scales, tiles."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from repalign.errors import RepalignError
from repalign.measures import CKA, CKNNA, LCSKNN, CycleKNN, EditDistanceKNN, MutualKNN
from repalign.measures.numerics import precision as _layer
from repalign.measures.numerics import search as _search
from repalign.measures.numerics.precision import Layer, full_precision, gram, sharing
from repalign.measures.numerics.rows import unit_resolution
from repalign.measures.numerics.search import SIMILARITIES, embed, nearest


def lists(x: np.ndarray | torch.Tensor, k: int, similarity: str = "cosine", **options) -> np.ndarray:
    return nearest(embed(torch.as_tensor(x), similarity, **options), k).numpy()


def plain(x: np.ndarray, k: int, similarity: str = "cosine") -> np.ndarray:
    """By full distance matrices of scipy and a stable sort, the stimulus itself left out."""
    x = x.astype(np.float64)
    distance = {"dot": lambda: -x @ x.T}.get(similarity, lambda: cdist(x, x, similarity))()
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1, kind="stable")[:, :k]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_a_plain_search(similarity, dtype):
    x = (rng().standard_normal((300, 40)) * rng(1).uniform(0.2, 5, (300, 1)) + 0.5).astype(dtype)
    for k in (1, 10, 299):
        np.testing.assert_array_equal(lists(x, k, similarity), plain(x, k, similarity))


def test_centring_is_done_before_cosines():
    x = rng().standard_normal((100, 10)) + 3
    np.testing.assert_array_equal(lists(x, 7, center=True), plain(x - x.mean(0), 7))
    assert (lists(x, 7) != lists(x, 7, center=True)).any()


@pytest.mark.parametrize(
    "measure", [MutualKNN(k=8), CycleKNN(k=8), LCSKNN(k=8), EditDistanceKNN(k=8), CKNNA(k=8)]
)
def test_rescaled_rows_have_the_same_cosine_neighbours(measure):
    x = rng().standard_normal((120, 16))
    y = x + 0.5 * rng(1).standard_normal((120, 16))
    rescaled = y * np.exp(rng(2).uniform(-5, 5, (120, 1)))
    assert measure(x, rescaled) == pytest.approx(measure(x, y), abs=1e-12)
    assert MutualKNN(k=8)(y, rescaled) == 1.0
    assert MutualKNN(k=8, similarity="dot")(y, rescaled) < 0.6


# --- ties --------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_repeated_rows_never_list_themselves_and_tie_by_index(similarity, dtype):
    base = rng().standard_normal((30, 12)).astype(dtype)
    if similarity == "dot":
        base /= np.linalg.norm(base, axis=1, keepdims=True)  # else a longer row may be nearer than a twin
    order = rng(1).permutation(90)
    x = np.repeat(base, 3, axis=0)[order]
    group = (np.arange(90) // 3)[order]
    found = lists(x, 5, similarity)
    assert (found != np.arange(90)[:, None]).all()
    for i in range(90):
        twins = [j for j in range(90) if group[j] == group[i] and j != i]
        assert list(found[i, :2]) == twins  # both twins first, the lower index before the higher
        assert group[found[i, 2]] == group[found[i, 3]] == group[found[i, 4]]
        assert list(found[i, 2:]) == [j for j in range(90) if group[j] == group[found[i, 2]]]


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_ties_do_not_depend_on_the_tiles(rows, monkeypatch):
    """Matrix products round the same row differently in tiles of different size."""
    x = np.repeat(rng().standard_normal((50, 33)), 4, axis=0)[rng(1).permutation(200)].astype(np.float32)
    whole = lists(x, 10)
    monkeypatch.setattr(_search, "SCRATCH_BYTES", rows * 2 * 4 * 200)
    np.testing.assert_array_equal(lists(x, 10), whole)


def test_collinear_rows_tie_by_index():
    """Their cosines are all 1 or -1; rounding, which makes some a little larger, decides nothing."""
    scale = rng().uniform(0.1, 3, 200) * np.where(np.arange(200) % 2, 1, -1)
    found = lists(scale[:, None] * rng(1).standard_normal((1, 50)), 20)
    for i in (0, 5, 199):
        same = [j for j in range(200) if j % 2 == i % 2 and j != i]
        assert list(found[i]) == same[:20]


def test_data_on_a_grid_ties_exactly_in_euclidean_distance():
    """Colours: equal integer distances are equal here, though an inexact mean is taken out first."""
    x = rng().integers(0, 6, (150, 3)).astype(np.float32) + 250
    distance = cdist(x, x, "sqeuclidean")
    np.fill_diagonal(distance, np.inf)
    expected = np.argsort(distance, axis=1, kind="stable")[:, :12]
    np.testing.assert_array_equal(lists(x, 12, "euclidean"), expected)


def test_a_zero_row_is_equally_far_from_all():
    x = rng().standard_normal((20, 5))
    x[[3, 7]] = 0
    found = lists(x, 4)
    assert list(found[3]) == [0, 1, 2, 4]
    assert list(found[7]) == [0, 1, 2, 3]
    assert found.max() < 20 and (found != np.arange(20)[:, None]).all()


# --- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.7, 5.0, 30.0])
def test_float32_lists_are_those_of_float64(offset):
    """Up to a mean cosine of .999, where float32 products alone get lists wrong."""
    x = (rng().standard_normal((512, 64)) + offset).astype(np.float32)
    np.testing.assert_array_equal(lists(x, 10), lists(x.astype(np.float64), 10))
    np.testing.assert_array_equal(lists(x, 10), plain(x, 10))


def test_rows_that_float32_cannot_settle_are_found():
    """Near duplicates, closer than a float32 product can tell apart: decided in float64."""
    base = rng().standard_normal((40, 30))
    near = base + 3e-5 * rng(1).standard_normal((40, 30))
    x = np.concatenate([base, near, base - 9e-5 * rng(2).standard_normal((40, 30))]).astype(np.float32)
    for similarity in ("euclidean", "cosine"):
        np.testing.assert_array_equal(lists(x, 6, similarity), plain(x, 6, similarity))


def test_chains_of_near_ties_within_and_beyond_the_entries_kept(monkeypatch):
    """Groups of 2 to 40 rows closer than float32 can tell: some are settled among the entries kept, some among all."""
    sizes = np.array([2, 3, 9, 12, 19, 20, 40])
    base = np.repeat(rng().standard_normal((7, 64)), sizes, axis=0)
    x = np.concatenate([base + 1e-5 * rng(1).standard_normal(base.shape), rng(2).standard_normal((1900, 64))])
    x = x[rng(3).permutation(len(x))].astype(np.float32)
    used = []
    for name in ("_nearest_of_kept", "_nearest_of_all"):
        plain_one = getattr(_search, name)
        monkeypatch.setattr(_search, name, lambda *a, f=plain_one, n=name: (used.append(n), f(*a))[1])
    np.testing.assert_array_equal(lists(x, 10), plain(x, 10))
    assert used == ["_nearest_of_kept", "_nearest_of_all"]


@pytest.mark.parametrize("center", [False, True])
def test_cosines_from_centred_products_are_as_good_as_their_resolution_says(center):
    """Also at a mean cosine of .97, where they are much better than products of unit rows."""
    for offset in (0.0, 0.5, 5.0):
        x = (rng().standard_normal((300, 768)) * rng(1).uniform(0.5, 2, (300, 1)) + offset).astype(np.float32)
        exact = embed(torch.from_numpy(x).double(), "cosine", center).rows
        values, resolution = Layer(torch.from_numpy(x)).cosines(center)
        error = (values.double() - exact @ exact.T).abs()
        assert bool((error <= resolution[:, None] / 2).all())
        if offset == 5.0 and not center:
            unit = exact.float()
            assert error.mean() <= ((unit @ unit.T).double() - exact @ exact.T).abs().mean()
            assert resolution.max() < unit_resolution(768, torch.float32) / 2


def test_rows_short_beside_the_mean_are_not_made_from_centred_products():
    x = (rng().standard_normal((300, 48)) + 5).astype(np.float32)
    x[7] *= 1e-3
    assert Layer(torch.from_numpy(x)).cosines(False) is None
    np.testing.assert_array_equal(lists(x, 10), plain(x, 10))


def test_measures_share_the_products_of_one_layer(monkeypatch):
    """One Gram matrix for all, and the same states as each on its own; nobody spoils it for the next."""
    x = torch.from_numpy((rng().standard_normal((100, 20)) + 1).astype(np.float32))
    measures = [CKA(), MutualKNN(), CKA(estimator="biased"), MutualKNN(center=True), CKA()]
    alone = [m.prepare(x) for m in measures]
    made = []
    monkeypatch.setattr(_layer, "gram", lambda rows: (made.append(1), gram(rows))[1])
    with sharing(x):
        together = [m.prepare(x) for m in measures]
        assert len(made) == 1
        MutualKNN().prepare(x.clone())  # another tensor
        assert len(made) == 2
    MutualKNN().prepare(x)
    assert len(made) == 3
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.matrix, other.matrix) and one.norm == other.norm


@pytest.mark.parametrize("n", [1, 3, 256, 300])  # rows of 256 are made apart from each other, and brought together
@pytest.mark.parametrize(
    "of",
    [
        *(lambda x: x, lambda x: x.T.contiguous().T, lambda x: x[:, ::2], lambda x: x[::2, 1:], lambda x: x[1:]),
        *(lambda x: (x[:, :1] / 10).expand(-1, 70), lambda x: x[:1].expand(len(x), -1)),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_products_of_rows_with_themselves_are_exactly_symmetric(n, of, threads, monkeypatch):
    """By numpy in one thread, and by tiles in several."""
    monkeypatch.setattr(_layer, "_in_one_thread", lambda: threads == 1)
    monkeypatch.setattr(_layer, "triangle", _layer.triangle if threads > 1 else None)
    rows = of(torch.from_numpy(np.random.default_rng(0).standard_normal((n, 70)).astype(np.float32)))
    found = gram(rows)
    assert found.is_contiguous() and torch.equal(found, found.T) and found.dtype == rows.dtype
    np.testing.assert_allclose(found.double(), rows.double() @ rows.double().T, atol=1e-4)


@pytest.mark.parametrize("of_torch, of_numpy, one", [(1, [1], True), (1, [2], False), (2, [1], False), (1, [], False)])
def test_a_product_takes_one_thread_where_both_libraries_do(of_torch, of_numpy, one, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: of_torch)
    monkeypatch.setattr(_layer, "blas", lambda: SimpleNamespace(info=lambda: [{"num_threads": n} for n in of_numpy]))
    assert _layer._in_one_thread() == one


def test_full_precision_is_counted():
    """Two uses that overlap, as in two threads: the setting comes back only after the last."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        first, second = full_precision(), full_precision()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"
        second.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_reduced_precision_of_the_caller_has_no_effect():
    x = torch.from_numpy((rng().standard_normal((256, 64)) + 2).astype(np.float32))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")  # bfloat16 products on some processors, TF32 on GPUs
        found = lists(x, 10)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found, lists(x, 10))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("scale", [1e160, 1e-160, 1e300, 1e-300])
def test_extreme_scales(similarity, scale):
    x = rng().standard_normal((60, 8))
    np.testing.assert_array_equal(lists(x * scale, 5, similarity), lists(x, 5, similarity))


def test_rows_of_very_different_scale():
    x = rng().standard_normal((60, 8))
    exponents = np.linspace(-150, 150, 60)[:, None]
    np.testing.assert_array_equal(lists(x * 10.0**exponents, 5), lists(x, 5))


@pytest.mark.parametrize("offset", [1e4, 1e8])
def test_euclidean_neighbours_survive_an_offset(offset):
    x = np.round(rng().standard_normal((100, 6)) * 2**20) / 2**20  # the sum with the offset is exact
    np.testing.assert_array_equal(lists(x + offset, 5, "euclidean"), lists(x, 5, "euclidean"))


def test_half_precision_is_stored_not_multiplied():
    """bfloat16 features are widened first: the lists are those of the stored values in float64."""
    x = torch.from_numpy((rng().standard_normal((200, 64)) + 3).astype(np.float32)).to(torch.bfloat16)
    y = torch.from_numpy(rng(1).standard_normal((200, 30)))
    assert MutualKNN()(x, y) == MutualKNN()(x.to(torch.float64), y)


# --- the border --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [20, 21, 1000])
def test_k_not_below_n_is_refused(k):
    x = rng().standard_normal((20, 4))
    with pytest.raises(RepalignError, match=rf"k = {k} neighbours among n = 20 stimuli\n  expected: k <= 19"):
        lists(x, k)
    with pytest.raises(RepalignError, match=rf"too few stimuli for MutualKNN\(k={k}(.|\n)*n >= {k + 1}"):
        MutualKNN(k=k)(x, x)


def test_k_equal_to_n_minus_one_holds_everybody_else():
    found = lists(rng().standard_normal((12, 4)), 11)
    assert [set(row) for row in found] == [set(range(12)) - {i} for i in range(12)]


@pytest.mark.parametrize("k", [0, -1, 2.5, True, "10"])
def test_k_must_be_a_count(k):
    with pytest.raises(RepalignError, match=r"k is not a positive whole number\n  expected: k >= 1"):
        MutualKNN(k=k)


def test_unknown_similarity_is_corrected():
    with pytest.raises(RepalignError, match=r"unknown similarity 'cosin'(.|\n)*did you mean 'cosine'"):
        MutualKNN(similarity="cosin")
    with pytest.raises(RepalignError, match="no effect on Euclidean distances"):
        MutualKNN(similarity="euclidean", center=True)


@pytest.mark.parametrize(
    "measure", [MutualKNN(k=3), CycleKNN(k=3), LCSKNN(k=3), EditDistanceKNN(k=3), CKNNA(k=3)]
)
def test_a_constant_representation_has_no_neighbours(measure):
    x, y = np.full((20, 4), 0.1, np.float32), rng().standard_normal((20, 5))
    for pair in ((x, y), (y, x), (x, x), (np.zeros((20, 2)), y)):
        assert np.isnan(measure(*pair))


def test_rows_alike_as_far_as_float64_can_tell_have_none_either():
    """Cosines that differ by 1e-20: without this two such layers would agree on the tie rule, and score 1."""
    x, y = (1 + 1e-10 * rng(s).standard_normal((50, 8)) for s in (0, 1))
    assert np.isnan(MutualKNN(k=5)(x, y)) and np.isnan(CKNNA(k=5)(x, y))
    assert MutualKNN(k=5, center=True)(x, y) < 0.4
    assert MutualKNN(k=5, similarity="euclidean")(x, y) < 0.4


# --- order of the lists ------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_edit_distance_and_subsequence_against_rapidfuzz(k):
    from rapidfuzz.distance import LCSseq, Levenshtein

    x = rng().standard_normal((80, 6))
    y = x + rng(1).standard_normal((80, 6))
    pairs = list(zip(lists(x, k).tolist(), lists(y, k).tolist(), strict=True))
    lcs = np.mean([LCSseq.similarity(a, b) for a, b in pairs])
    edit = np.mean([Levenshtein.distance(a, b) for a, b in pairs])
    assert LCSKNN(k=k, normalized=False)(x, y) == pytest.approx(lcs, abs=1e-12)
    assert LCSKNN(k=k)(x, y) == pytest.approx(lcs / k, abs=1e-12)
    assert EditDistanceKNN(k=k)(x, y) == pytest.approx(1 - edit / k, abs=1e-12)


@pytest.mark.parametrize(
    "measure", [CycleKNN(k=4), LCSKNN(k=4), EditDistanceKNN(k=4), MutualKNN(k=4), CKNNA(k=4)]
)
def test_many_layers_in_tight_memory_are_the_pairs(measure, monkeypatch):
    layers = [rng(i).standard_normal((50, 5 + i)) for i in range(5)]
    states = [measure.prepare(torch.from_numpy(x)) for x in layers]
    expected = [[measure(x, y) for y in layers[2:]] for x in layers[:2]]
    monkeypatch.setattr("repalign.measures.numerics.rows.SCRATCH_BYTES", 4000)
    found = measure.compare_all(states[:2], states[2:])
    assert found.dtype == torch.float64 and found.device.type == "cpu"
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_cycle_direction():
    """x's lists lead back: j must be near i in y, the second argument, and i near j in x, the first."""
    x, y = rng().standard_normal((40, 3)), rng(1).standard_normal((40, 3))
    in_x, in_y = plain(x, 2), plain(y, 2)
    expected = np.mean([any(i in in_x[j] for j in in_y[i]) for i in range(40)])
    backwards = np.mean([any(i in in_y[j] for j in in_x[i]) for i in range(40)])
    assert expected != backwards
    assert CycleKNN(k=2)(x, y) == pytest.approx(expected, abs=1e-12)
    assert CycleKNN(k=2)(y, x) == pytest.approx(backwards, abs=1e-12)


# --- another device ----------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("tf32", ["highest", "high"])
def test_lists_are_the_same_on_a_gpu(tf32):
    x = torch.from_numpy((rng().standard_normal((1000, 300)) + 1).astype(np.float32)).repeat(2, 1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(tf32)
        for similarity in SIMILARITIES:
            np.testing.assert_array_equal(
                nearest(embed(x.cuda(), similarity), 10).cpu(), lists(x, 10, similarity)
            )
    finally:
        torch.set_float32_matmul_precision(before)
