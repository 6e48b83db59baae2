"""Feature maps and several captions per image, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repalign.aggregate import feature_maps, parts, sets_mutual_knn
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
