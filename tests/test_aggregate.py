"""Feature maps and several captions per image, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repalign.aggregate import feature_maps, parts, patch_alignment, sets_mutual_knn, spatial_self_similarity
from repalign.errors import RepalignError
from repalign.measures import CKA, MutualKNN
from repalign.null import Groups


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_forms_of_feature_maps():
    x = rng().standard_normal((6, 4, 3, 2))
    assert np.array_equal(feature_maps(x).features, x.reshape(6, 24))
    assert feature_maps(x, "mean").features.numpy() == pytest.approx(x.mean(axis=(2, 3)))
    assert np.array_equal(feature_maps(x, "max").features, x.max(axis=(2, 3)))
    samples = feature_maps(x, "samples")
    assert np.array_equal(samples.features, np.stack([x[i, :, a, b] for i in range(6) for a in range(3) for b in range(2)]))
    assert list(samples.groups) == [i for i in range(6) for _ in range(6)]
    assert Groups.of(samples.groups, "whole").equal_size == 6


def test_half_precision_maps_are_pooled_in_float32():
    x = torch.full((3, 1, 64, 64), 1000.0, dtype=torch.float16)
    assert feature_maps(x, "mean").features.tolist() == [[1000.0]] * 3


def test_what_are_no_feature_maps():
    with pytest.raises(RepalignError, match=r"not feature maps(.|\n)*shape \(5, 3\)"):
        feature_maps(np.zeros((5, 3)))
    with pytest.raises(RepalignError, match=r"unknown form 'flat'(.|\n)*did you mean 'flatten'"):
        feature_maps(np.zeros((5, 3, 2)), "flat")


OWNER = np.array([2, 0, 1, 1, 3, 0, 4, 2, 2])


def test_means_and_pairs_of_captions():
    x, captions = rng().standard_normal((5, 3)), rng(1).standard_normal((9, 4))
    images, means = parts(x, captions, OWNER)
    assert np.array_equal(images.features, x) and means.groups is None
    expected = np.stack([captions[i == OWNER].mean(axis=0) for i in range(5)])
    assert means.features.numpy() == pytest.approx(expected)
    images, texts = parts(x, captions, OWNER, "pairs")
    assert np.array_equal(images.features, x[OWNER]) and np.array_equal(texts.features, captions)
    assert list(images.groups) == list(OWNER) == list(texts.groups)


def test_sets_are_as_near_as_their_nearest_members():
    n, m = 25, 60
    owner = np.concatenate([np.arange(n), rng(2).integers(n, size=m - n)])
    x, captions = rng().standard_normal((n, 6)), rng(1).standard_normal((m, 5))
    unit = captions / np.linalg.norm(captions, axis=1, keepdims=True)
    similarity = np.array(
        [[-np.inf if i == j else (unit[owner == i] @ unit[owner == j].T).max() for j in range(n)] for i in range(n)]
    )
    own = x / np.linalg.norm(x, axis=1, keepdims=True) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    np.fill_diagonal(own, -np.inf)
    lists = [set(np.argsort(-s)[:4]) for s in similarity], [set(np.argsort(-s)[:4]) for s in own]
    expected = np.mean([len(a & b) / 4 for a, b in zip(*lists, strict=True)])
    assert sets_mutual_knn(x, captions, owner, MutualKNN(k=4)) == pytest.approx(expected, abs=1e-12)


def test_one_caption_each_is_the_measure_itself():
    x, y = rng().standard_normal((30, 6)), rng(1).standard_normal((30, 5))
    order = rng(2).permutation(30)
    assert sets_mutual_knn(x, y[order], order, MutualKNN(k=5)) == MutualKNN(k=5)(x, y)
    _, means = parts(x, y[order], order)
    assert CKA()(x, means.features) == pytest.approx(CKA()(x, y))


def test_owners_that_do_not_fit_are_refused():
    x, captions = rng().standard_normal((5, 3)), rng(1).standard_normal((9, 4))
    for wrong in (OWNER[:-1], OWNER + 1, OWNER.astype(float)):
        with pytest.raises(RepalignError, match="owners do not fit the captions(.|\n)*9 whole numbers from 0 to 4"):
            parts(x, captions, wrong)
    with pytest.raises(RepalignError, match="without a caption(.|\n)*the first is stimulus 3"):
        parts(x, captions, np.where(OWNER == 3, 0, OWNER))
    with pytest.raises(RepalignError, match="sets are compared by cosine"):
        sets_mutual_knn(x, captions, OWNER, MutualKNN(k=2, similarity="dot"))


# --- grids of patches ----------------------------------------------------------------------------


def halves(b: int = 1) -> np.ndarray:
    maps = np.zeros((b, 16, 16, 2))
    maps[:, :, :8, 0] = maps[:, :, 8:, 1] = 1
    return maps


def test_golden_local_against_distant_similarity():
    assert spatial_self_similarity(halves(), near=4, far=8) == pytest.approx(0.557668, abs=5e-7)
    assert spatial_self_similarity(np.ones((2, 16, 16, 3)), near=4, far=8) == pytest.approx(0, abs=1e-12)
    noise = rng().standard_normal((1, 16, 16, 32))
    assert spatial_self_similarity(noise, near=4, far=8) == pytest.approx(-0.003453, abs=2e-6)


def test_local_similarity_by_every_pair():
    maps, near, far = rng(3).standard_normal((3, 4, 5, 6)), 3, 5
    places = [(r, c) for r in range(4) for c in range(5)]
    each = []
    for image in maps:
        close, distant = [], []
        for p in places:
            for q in places:
                d = abs(p[0] - q[0]) + abs(p[1] - q[1])
                cosine = image[p] @ image[q] / np.linalg.norm(image[p]) / np.linalg.norm(image[q])
                close += [cosine] if 0 < d < near else []
                distant += [cosine] if d >= far else []
        each.append(np.mean(close) - np.mean(distant))
    assert spatial_self_similarity(maps, near, far) == pytest.approx(np.mean(each), abs=1e-12)
    assert spatial_self_similarity(3 * maps, near, far) == pytest.approx(np.mean(each), abs=1e-12)


def test_patches_within_an_image_by_hand():
    from scipy.stats import spearmanr

    x, y = rng(4).standard_normal((3, 4, 4, 6)), rng(5).standard_normal((3, 4, 4, 5))
    y[..., :3] += 2 * x[..., :3]

    def cosines(image: np.ndarray) -> np.ndarray:
        flat = image.reshape(16, -1) / np.linalg.norm(image.reshape(16, -1), axis=1, keepdims=True)
        return (flat @ flat.T)[np.triu_indices(16, 1)]

    found = patch_alignment(x, y)
    expected = [spearmanr(cosines(a), cosines(b))[0] for a, b in zip(x, y, strict=True)]
    elsewhere = [spearmanr(cosines(x[i]), cosines(y[(i + 1) % 3]))[0] for i in range(3)]
    assert found.scores == pytest.approx(expected, abs=1e-9) and found.score == pytest.approx(np.mean(expected), abs=1e-9)
    assert found.places == pytest.approx(np.mean(elsewhere), abs=1e-9)
    assert patch_alignment(x, y, CKA()).scores[1] == pytest.approx(CKA()(x[1].reshape(16, -1), y[1].reshape(16, -1)))


def test_places_alone_are_told():
    """What both models see is where a patch is: the score is high, and so is what places give."""
    where = np.stack(np.meshgrid(range(6), range(6), indexing="ij"), axis=-1)[None].repeat(4, axis=0).astype(float)
    x, y = (where - 2.5 + 0.3 * rng(s).standard_normal(where.shape) for s in (0, 1))
    found = patch_alignment(x, y)
    assert found.score > 0.6 and found.places > 0.6
    assert np.isnan(patch_alignment(np.ones((2, 3, 3, 4)), np.ones((2, 3, 3, 4))).score)


def test_what_are_no_grids():
    with pytest.raises(RepalignError, match="no grids of patches(.|\n)*moveaxis"):
        spatial_self_similarity(np.ones((4, 16, 3)), 4, 8)
    for near, far in ((1, 8), (8, 4), (4, 31)):
        with pytest.raises(RepalignError, match="no patches are so near, or so far(.|\n)*far <= 30"):
            spatial_self_similarity(halves(), near, far)
    with pytest.raises(RepalignError, match="finite"):
        spatial_self_similarity(np.where(halves() > 0, np.nan, halves()), 4, 8)
    for other in (halves(3), halves(2)[:, :8]):
        with pytest.raises(RepalignError, match="the patches do not belong together"):
            patch_alignment(halves(2), other)
