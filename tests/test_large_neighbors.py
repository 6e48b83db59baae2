"""Mutual k-NN at a large n: anchors and gallery curves against the exact measure and plain searches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from repalign.comparison import (
    ArrayRows,
    anchored_mutual_knn,
    gallery_curve,
)
from repalign.comparison.anchors import common, nearest_of, sample, wilson
from repalign.errors import RepalignError
from repalign.measures import MutualKNN
from repalign.measures.numerics import search as _search
from repalign.measures.numerics.search import SIMILARITIES, Best, embed, nearest
from repalign.models import ModelRecord
from repalign.representation import MemoryRepresentation
from repalign.store import FeatureStore


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pair(n: int, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two noisy views (float32) of one latent space, of different widths and about different means."""
    latent = rng(seed).standard_normal((n, 6))
    return tuple(  # type: ignore[return-value]
        (
            latent @ rng(seed + d).standard_normal((6, d)) + noise * rng(seed + d + 1).standard_normal((n, d)) + mean
        ).astype("f4")
        for d, mean in ((24, 1.0), (17, 0.0))
    )


def plain(x: np.ndarray, k: int, similarity: str = "cosine") -> np.ndarray:
    x = x.astype(np.float64)
    distance = {"dot": lambda: -x @ x.T}.get(similarity, lambda: cdist(x, x, similarity))()
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1, kind="stable")[:, :k]


# --- the best of a matrix in tiles ---------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 3, 19])
@pytest.mark.parametrize("side", [1, 7, 64, 300])
@pytest.mark.parametrize("transposed", [False, True])
def test_best_of_tiles_is_a_sort(m, side, transposed):
    matrix = torch.from_numpy(rng().standard_normal((40, 300)))
    best = Best.of(40, m, matrix)
    for column in range(0, 300, side):
        tile = matrix[:, column : column + side]
        best.offer(0, tile.T.contiguous().T if transposed else tile.contiguous(), column)
    expected = matrix.sort(dim=1, descending=True)
    assert torch.equal(best.values, expected.values[:, :m])
    assert torch.equal(best.indices, expected.indices[:, :m])


def test_best_of_equal_and_rising_entries():
    best = Best.of(2, 3, torch.zeros(1))
    best.offer(0, torch.full((2, 5), 2.0), 0)
    assert best.values.tolist() == [[2.0] * 3] * 2 and all(len(set(row)) == 3 for row in best.indices.tolist())
    for column in range(5, 50):
        best.offer(1, torch.tensor([[float(column)]]), column)
    assert best.values[1].tolist() == [49, 48, 47] and best.indices[1].tolist() == [49, 48, 47]
    assert best.values[0].tolist() == [2.0] * 3


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("picked", [0, 10**9])
@pytest.mark.parametrize("side", [13, 64])
def test_exact_search_by_any_tiles_and_either_way_to_settle_ties(similarity, picked, side, monkeypatch):
    """Near ties are settled from the entries kept (0) or from all rows (10^9): the same lists."""
    base = rng().integers(-3, 4, (60, 5)).astype(np.float32)
    x = np.concatenate([base, base[::2], base + np.float32(1e-6)])[rng(1).permutation(150)]
    expected = nearest(embed(torch.from_numpy(x).to(torch.float64), similarity), 9)
    monkeypatch.setattr(_search, "PICKED", picked)
    monkeypatch.setattr(_search, "SCRATCH_BYTES", side * side * 16)
    assert torch.equal(nearest(embed(torch.from_numpy(x), similarity), 9), expected)


# --- anchors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_neighbours_of_some_rows(similarity, dtype):
    x = pair(400)[0].astype(dtype)
    which = torch.tensor([399, 0, 17, 230])
    found = nearest_of(ArrayRows(x), which, 7, similarity, block=33)
    expected = plain(x, 7, similarity)[which.numpy()]
    np.testing.assert_array_equal(np.sort(found.indices), np.sort(expected))
    assert not found.is_constant


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block", [1, 37, 4096])
def test_all_rows_as_anchors_are_the_measure(similarity, block):
    x, y = pair(300)
    x[200:] = x[:100]  # ties at the k-th neighbour, settled in float64 by the lower index
    y[250:] *= 3
    r = anchored_mutual_knn(x, y, 5, similarity, n_anchors=10**6, block=block)
    assert r.statistic == pytest.approx(MutualKNN(k=5, similarity=similarity)(x, y), abs=1e-15)
    assert r.low == pytest.approx(r.statistic) and r.high == pytest.approx(r.statistic)
    assert (r.n, r.n_anchors, r.k, r.chance) == (300, 300, 5, 5 / 299)
    assert r.corrected == pytest.approx((r.statistic - 5 / 299) / (1 - 5 / 299))
    assert "300 anchors among n = 300 rows" in r.method


def test_duplicates_beyond_what_is_kept_tie_by_index():
    x = np.repeat(rng().standard_normal((4, 30)).astype("f4"), 50, axis=0)[rng(1).permutation(200)]
    found = nearest_of(ArrayRows(x), torch.arange(200), 10, "cosine", block=16)
    np.testing.assert_array_equal(np.sort(found.indices), np.sort(nearest(embed(torch.from_numpy(x), "cosine"), 10)))


def test_near_duplicates_are_settled_in_float64():
    base = rng().standard_normal((100, 20))
    x = np.concatenate([base + 3e-5 * rng(s).standard_normal((100, 20)) for s in range(1, 9)]).astype("f4")
    found = nearest_of(ArrayRows(x), torch.arange(0, 800, 9), 3, "cosine", block=100)
    np.testing.assert_array_equal(np.sort(found.indices), np.sort(plain(x, 3)[::9]))


def test_rows_come_from_memory_maps_stores_and_half_precision(tmp_path):
    x, y = (torch.from_numpy(f).to(torch.float16) for f in pair(200))
    expected = anchored_mutual_knn(x, y, n_anchors=60, seed=3)
    mapped = np.memmap(tmp_path / "x", np.float16, "w+", shape=(200, 24))
    mapped[:] = x.numpy()
    store, ids = FeatureStore(str(tmp_path / "store")), [str(i) for i in range(200)]
    record = ModelRecord("toy:y", "y", "text", None)
    dataset = {"name": "d", "fingerprint": "f" * 64, "n": 200}
    writer = store.writer(dataset=dataset, record=record, settings={}, ids=ids, rows_per_part=70)
    for part in writer.missing():
        writer.write(part, {"last": y[part.start : part.stop]}, header={"weights_fingerprint": "w"})
    stored = writer.finish(record, {})
    found = anchored_mutual_knn(mapped, (stored, "last"), n_anchors=60, seed=3, block=64)
    assert found == expected
    assert found.n_anchors == 60 and found.low < found.statistic < found.high


@pytest.mark.parametrize(("noise", "anchors"), [(0.3, 40), (2.0, 120), (8.0, 250)])
def test_the_interval_covers_the_exact_score(noise, anchors):
    """1,000 samples: the share that covers is within the Wilson 99.9 % interval of .95 or above it."""
    n, k = 600, 10
    lists = [torch.from_numpy(plain(f, k)) for f in pair(n, noise)]
    overlap = common(*lists).to(torch.float64) / k
    exact = float(overlap.mean())
    x, y = pair(n, noise)
    assert exact == pytest.approx(MutualKNN(k=k)(x, y), abs=1e-12)
    covered, means = 0, []
    for seed in range(1000):
        drawn = overlap[sample(n, anchors, seed)]
        low, high = wilson(float(drawn.mean()), float(drawn.var()), anchors, n, 0.95)
        covered += low <= exact <= high
        means.append(float(drawn.mean()))
    assert 0.925 < covered / 1000 < 0.99
    spread = math.sqrt(float(overlap.var()) * (1 - anchors / n) / anchors / 1000)
    assert abs(np.mean(means) - exact) < 4 * spread  # unbiased
    result = anchored_mutual_knn(x, y, k, n_anchors=anchors, seed=5)
    drawn = overlap[sample(n, anchors, 5)]
    assert result.statistic == pytest.approx(float(drawn.mean()), abs=1e-12)
    assert (result.low, result.high) == pytest.approx(
        wilson(float(drawn.mean()), float(drawn.var()), anchors, n, 0.95), abs=1e-12
    )


def test_a_sample_of_the_gallery_would_be_another_score():
    """Why all rows are searched: the score of a sub-sample is that of a smaller n."""
    x, y = pair(1200)
    exact, few = MutualKNN()(x, y), MutualKNN()(x[:150], y[:150])
    r = anchored_mutual_knn(x, y, n_anchors=150)
    assert r.low <= exact <= r.high < few


def test_an_interval_without_a_match_is_not_a_point():
    """No match in 100 of 10,000 anchors: an upper bound, not certainty."""
    low, high = wilson(0.0, 0.0, 100, 10_000, 0.95)
    assert low == 0 and 0.03 < high < 0.05


def test_constant_layers_are_undefined():
    x, y = np.full((40, 3), 0.1, np.float32), pair(40)[1]
    for similarity in SIMILARITIES:
        r = anchored_mutual_knn(x, y, similarity=similarity, n_anchors=10)
        assert math.isnan(r.statistic) and math.isnan(r.low) and math.isnan(r.corrected)


def test_what_anchors_refuse():
    x, y = pair(30)
    with pytest.raises(RepalignError, match=r"too few stimuli for k = 30 neighbours\n  expected: n >= 31"):
        anchored_mutual_knn(x, y, k=30)
    with pytest.raises(RepalignError, match=r"different numbers of rows(.|\n)*n = 30 and n = 29"):
        anchored_mutual_knn(x, y[:29])
    with pytest.raises(RepalignError, match=r"two anchors and a level(.|\n)*n_anchors = 1, level = 0.95"):
        anchored_mutual_knn(x, y, n_anchors=1)
    with pytest.raises(RepalignError, match=r"unknown similarity 'cosin'(.|\n)*did you mean 'cosine'"):
        anchored_mutual_knn(x, y, similarity="cosin")
    x[21, 3] = np.inf
    with pytest.raises(RepalignError, match=r"y: NaN or infinite(.|\n)*the first is row 21"):
        anchored_mutual_knn(y, x, n_anchors=2, block=8, seed=1)
    one, two = (
        MemoryRepresentation(
            ModelRecord(f"toy:{s}", s, "text", None), tuple(s + str(i) for i in range(30)), {"l": torch.from_numpy(y)}
        )
        for s in "ab"
    )
    with pytest.raises(RepalignError, match="a and b were extracted on different datasets: id of row 0"):
        anchored_mutual_knn((one, "l"), (two, "l"))


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_rows_whose_products_would_overflow_are_refused(similarity):
    x = pair(60)[0]
    x[50] *= 1e18
    with pytest.raises(RepalignError, match=r"differ too much in size(.|\n)*in the block from row 40 on"):
        nearest_of(ArrayRows(x), torch.arange(20), 5, similarity, block=20)
    found = nearest_of(ArrayRows(x), torch.arange(20), 5, "cosine", block=20)
    np.testing.assert_array_equal(np.sort(found.indices), np.sort(plain(x, 5)[:20]))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("scale", [1e30, 1e-36])
def test_one_extreme_scale_changes_nothing(similarity, scale):
    x = pair(90)[0]
    found = nearest_of(ArrayRows(x * np.float32(scale)), torch.arange(90), 5, similarity, block=20)
    near = nearest_of(ArrayRows((x * np.float32(scale)).astype("f8")), torch.arange(90), 5, similarity, block=20)
    assert torch.equal(found.indices.sort().values, near.indices.sort().values)


def test_progress_is_told():
    calls = []
    x, y = pair(100)
    anchored_mutual_knn(x, y, n_anchors=20, block=40, progress=lambda *a, **_: calls.append(a[:3]))
    task = "neighbours in x"
    assert [c for c in calls if c[0] == task] == [(task, d, 100) for d in (0, 40, 80, 100)]


# --- gallery size --------------------------------------------------------------------------------


def test_with_k_fixed_the_score_falls_and_with_a_share_it_does_not():
    x, y = pair(2048, 0.5)
    curve = gallery_curve(x, y, k=10, repeats=3)
    fixed, share = (curve[curve["mode"] == mode] for mode in ("fixed", "share"))
    assert list(fixed.n) == list(share.n) == [128, 256, 512, 1024, 2048]
    assert list(share.k) == [10, 20, 40, 80, 160] and set(fixed.k) == {10}
    assert (np.diff(fixed.corrected) < 0).all()
    assert fixed.corrected.iloc[-1] < 0.75 * fixed.corrected.iloc[0]
    assert share.corrected.max() - share.corrected.min() < 0.1 * share.corrected.mean()
    assert list(curve.n_repeats) == [3, 3, 3, 3, 1] * 2
    assert curve["std"].isna().sum() == 2


def test_a_curve_is_the_measure_at_its_subsets():
    x, y = pair(120)
    curve = gallery_curve(x, y, k=4, share=0.1, sizes=[120, 30, 60], repeats=2, seed=7, similarity="euclidean")
    orders = [rng([7, r]).permutation(120) for r in range(2)]
    for row in curve.itertuples():
        measure = MutualKNN(k=int(row.k), similarity="euclidean")
        scores = [measure(x[o[: row.n]], y[o[: row.n]]) for o in orders]
        assert row.statistic == pytest.approx(np.mean(scores), abs=1e-12)
        if row.n < 120:
            assert row.std == pytest.approx(np.std(scores, ddof=1), abs=1e-12)
        assert row.chance == row.k / (row.n - 1)
        assert row.corrected == pytest.approx((row.statistic - row.chance) / (1 - row.chance))
    assert list(curve.n) == [30, 60, 120] * 2 and list(curve.k) == [4, 4, 4, 3, 6, 12]


def test_what_curves_refuse():
    x, y = pair(40)
    with pytest.raises(RepalignError, match=r"gallery sizes out of range\n  expected: k = 10 < size <= n = 40"):
        gallery_curve(x, y, sizes=[10, 20])
    with pytest.raises(RepalignError, match="gallery sizes out of range"):
        gallery_curve(x, y, sizes=[41])
    with pytest.raises(RepalignError, match=r"a share of the stimuli(.|\n)*got: 1.5"):
        gallery_curve(x, y, share=1.5)
