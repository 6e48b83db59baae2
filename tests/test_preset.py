"""The preset of the reference code: its eight metrics on its own preparation, end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repalign.comparison.preprocess import PRESETS, Preprocess, preset
from repalign.errors import RepalignError
from repalign.measures import CKA, LCSKNN, SVCCA, CKNNAReference, CycleKNN, EditDistanceKNN, MutualKNN

# The reference's values on unit rows (no clipping there), k = 10; SVCCA with an exact decomposition.
REFERENCE = (0.3615, 0.980, 2.315, 0.0625, 0.726403, 0.694209, 0.380417, 0.701842)


def recipe() -> tuple[torch.Tensor, torch.Tensor]:
    g = np.random.Generator(np.random.PCG64(0))
    z = g.standard_normal((200, 16))
    w1, w2 = g.standard_normal((16, 64)), g.standard_normal((16, 96))
    x = z @ w1 / 4 + 0.5 * g.standard_normal((200, 64))
    y = np.tanh(z @ w2 / 4) + 0.5 * g.standard_normal((200, 96))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


def test_the_eight_metrics():
    assert preset("platonic-rep").measures == (
        MutualKNN(k=10),
        CycleKNN(k=10),
        LCSKNN(k=10, normalized=False),
        EditDistanceKNN(k=10),
        CKA(estimator="biased", epsilon=1e-6),
        CKA(estimator="debiased", epsilon=1e-6),
        CKNNAReference(k=10, epsilon=1e-6),
        SVCCA(components=10, standardize=True),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_reference_values_through_the_preset(name):
    """Without outliers to clip, the preset gives the reference's numbers from raw features."""
    found = preset(name)
    without_clip = Preprocess(**{**vars(found.preprocess), "clip": None})
    x, y = recipe()
    layers_x, layers_y = without_clip({"only": x}), without_clip({"only": y})
    scores = [m(layers_x["only"], layers_y["only"]) for m in found.measures]
    assert scores == pytest.approx(REFERENCE, abs=1.5e-6)


def test_raw_features_would_give_other_numbers():
    """The test above can fail: dot-product metrics of raw rows are not those of unit rows."""
    x, y = recipe()
    assert CKA(estimator="biased", epsilon=1e-6)(x, y) != pytest.approx(REFERENCE[4], abs=1e-3)


def plain_reference(x: np.ndarray, y: np.ndarray, k: int = 10) -> tuple[float, tuple[int, int]]:
    """The published procedure for stacks (n, layers, d): clip, add all layers in one, normalise, best mutual
    k-NN.
    """

    def prepare(f: np.ndarray) -> list[np.ndarray]:
        t = np.quantile(np.abs(f).reshape(len(f), -1), 0.95, axis=1).mean()
        f = np.clip(f, -t, t)
        stack = [f[:, i] for i in range(f.shape[1])] + [f.reshape(len(f), -1)]
        return [a / np.linalg.norm(a, axis=1, keepdims=True) for a in stack]

    def neighbours(a: np.ndarray) -> list[set[int]]:
        s = a @ a.T
        np.fill_diagonal(s, -np.inf)
        return [set(row) for row in np.argsort(-s, axis=1)[:, :k].tolist()]

    lists_x, lists_y = ([neighbours(a) for a in prepare(f)] for f in (x, y))
    scores = {
        (i, j): np.mean([len(s & t) for s, t in zip(p, q, strict=True)]) / k
        for i, p in enumerate(lists_x)
        for j, q in enumerate(lists_y)
    }
    best = max(scores, key=lambda pair: scores[pair])
    return scores[best], best


def test_a_stack_of_layers_is_prepared_as_published():
    g = np.random.default_rng(5)
    z = g.standard_normal((80, 8))

    def stack(noise: tuple[float, ...]) -> np.ndarray:
        each = [z @ g.standard_normal((8, 20)) + s * g.standard_normal((80, 20)) for s in noise]
        return np.stack(each, axis=1)

    x, y = stack((4, 2, 1)), stack((3, 1))
    x[3, 1, 4] = 300.0
    expected, where = plain_reference(x, y)
    found = preset("platonic-rep")
    sides = [found.preprocess({str(i): torch.from_numpy(f[:, i]) for i in range(f.shape[1])}) for f in (x, y)]
    measure = found.measures[0]
    scores = measure.compare_all(*([measure.prepare(a) for a in side.values()] for side in sides)).numpy()
    assert scores.shape == (4, 3)
    assert scores.max() == pytest.approx(expected, abs=1e-12)
    assert np.unravel_index(scores.argmax(), scores.shape) == where


def test_both_presets_say_what_they_are():
    assert preset("platonic-rep").preprocess == Preprocess(clip="mean", normalize_rows=True, concatenate=True)
    assert preset("platonic-rep-head").preprocess == Preprocess(clip="exact", normalize_rows=True)
    assert all(p.search == "raw" and p.summary for p in map(preset, PRESETS))


def test_unknown_preset_is_corrected():
    with pytest.raises(
        RepalignError, match=r"unknown preset 'platonic_rep'(.|\n)*did you mean 'platonic-rep'"
    ):
        preset("platonic_rep")
