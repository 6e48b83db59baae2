"""The paper's settings and the released code's, on one pair of models: where they differ, and where they must not.

All expected values are computed here with plain numpy from the description of the procedures, not with the package.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import repalign
from repalign.comparison.preprocess import CONCATENATED, PRESETS, Preprocess, Preset, preset
from repalign.null import Permutations

N, K = 60, 10
KNN = "MutualKNN(k=10, similarity='cosine', center=False)"
CKA = "CKA(kernel='linear', estimator='biased', bandwidth=None, epsilon=1e-06)"
PAPER, YEAR_2024, HEAD, HEAD_LIST = "platonic-rep", "platonic-rep-2024", "platonic-rep-head", "platonic-rep-head-list"

# What the description says of each mode: which threshold, of what, and whether all layers in one are a candidate.
MODES = {
    PAPER: ("mean", "all", True), YEAR_2024: ("exact", "all", True),
    HEAD: ("exact", "all", False), HEAD_LIST: ("exact", "layer", False),
}  # fmt: skip

Layers = list[np.ndarray]


# --- the procedures, from their description --------------------------------------------------------


def exact(layers: Layers) -> float:
    """|x| of everything, sorted; the entry at int(.95 count)."""
    values = np.sort(np.abs(np.concatenate([f.ravel() for f in layers])))
    return values[int(0.95 * values.size)]


def mean(layers: Layers) -> float:
    """The .95 quantile of |x| over all entries of a stimulus, averaged over stimuli."""
    return np.quantile(np.abs(np.concatenate(layers, axis=1)), 0.95, axis=1).mean()


def clipped(layers: Layers, mode: str) -> Layers:
    rule, scope, _ = MODES[mode]
    find = {"exact": exact, "mean": mean}[rule]
    thresholds = [find([f]) for f in layers] if scope == "layer" else [find(layers)] * len(layers)
    return [np.clip(f, -t, t) for f, t in zip(layers, thresholds, strict=True)]


def candidates(layers: Layers, mode: str, clip: bool = True) -> Layers:
    layers = clipped(layers, mode) if clip else list(layers)
    if MODES[mode][2]:
        layers = [*layers, np.concatenate(layers, axis=1)]
    return [f / np.linalg.norm(f, axis=1, keepdims=True) for f in layers]


def mutual(a: np.ndarray, b: np.ndarray) -> float:
    def near(f: np.ndarray) -> list[set[int]]:
        s = f @ f.T
        np.fill_diagonal(s, -1e8)
        return [set(row) for row in np.argsort(-s, axis=1)[:, :K].tolist()]

    return float(np.mean([len(p & q) / K for p, q in zip(near(a), near(b), strict=True)]))


def biased_cka(a: np.ndarray, b: np.ndarray) -> float:
    h = np.eye(len(a)) - 1 / len(a)
    hsic = lambda k, l: np.trace(k @ h @ l @ h)  # noqa: E731, E741
    k, l = a @ a.T, b @ b.T  # noqa: E741
    return float(hsic(k, l) / (np.sqrt(hsic(k, k) * hsic(l, l)) + 1e-6))


def expected(x: Layers, y: Layers, mode: str, score=mutual, clip: bool = True) -> np.ndarray:
    a, b = candidates(x, mode, clip), candidates(y, mode, clip)
    return np.array([[score(p, q) for q in b] for p in a])


# --- the same through the package ------------------------------------------------------------------


def compared(x: Layers, y: Layers, mode: str, measure: str = KNN, **changed) -> repalign.Alignment:
    found = preset(mode)
    options = {**vars(found.preprocess), **changed}
    chosen = [m for m in found.measures if repr(m) == measure]
    assert len(chosen) == 1
    return repalign.pair(
        x, y, chosen, null=Permutations(19), preprocess=Preprocess(**options), search=found.search
    )


def cells(result: repalign.Alignment) -> np.ndarray:
    return result.layer_map().to_numpy(float)


# --- data ------------------------------------------------------------------------------------------


def layered(seed: int, noise: tuple[float, ...], scale: tuple[float, ...], width: int = 24) -> Layers:
    """Layers that see one world through noise of their own, each on its own scale."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((N, 6))
    return [
        s * (world @ rng.standard_normal((6, width)) / 6**0.5 + e * rng.standard_normal((N, width)))
        for e, s in zip(noise, scale, strict=True)
    ]


SEVERAL = (layered(1, (1.2, 1.2, 1.2), (1, 1, 1)), layered(2, (1.2, 1.2), (1, 1)))  # side by side their noise averages out
ONE_CLEAR = (layered(1, (0.3, 5, 5), (1, 1, 1)), layered(2, (5, 0.3), (1, 1)))  # one layer knows more than all together
NORMS = (layered(3, (1, 1, 1), (1, 1, 50)), layered(4, (1, 1), (1, 20)))  # layers of very different norm
PAIRS = {"several": SEVERAL, "one clear": ONE_CLEAR, "norms": NORMS}


# --- every cell of every mode ----------------------------------------------------------------------


@pytest.mark.parametrize("data", PAIRS)
@pytest.mark.parametrize("mode", MODES)
def test_every_cell_is_that_of_the_description(mode, data):
    x, y = PAIRS[data]
    for measure, score in ((KNN, mutual), (CKA, biased_cka)):
        result, oracle = compared(x, y, mode, measure), expected(x, y, mode, score)
        np.testing.assert_allclose(cells(result), oracle, atol=1e-9)
        best = result.best().iloc[0]
        assert best["statistic"] == pytest.approx(oracle.max(), abs=1e-9)
        assert (best["index_x"], best["index_y"]) == np.unravel_index(oracle.argmax(), oracle.shape)


# --- difference one: all layers in one, as a candidate ----------------------------------------------


def test_the_concatenated_candidate_wins_in_one_and_is_absent_in_the_other():
    paper, head = compared(*SEVERAL, YEAR_2024), compared(*SEVERAL, HEAD)
    assert cells(paper).shape == (4, 3) and cells(head).shape == (3, 2)
    best = paper.best().iloc[0]
    assert (best["layer_x"], best["layer_y"]) == (CONCATENATED, CONCATENATED)
    assert CONCATENATED not in {*head.table["layer_x"], *head.table["layer_y"]}
    np.testing.assert_array_equal(cells(paper)[:-1, :-1], cells(head))  # nothing else differs
    assert best["statistic"] > head.best()["statistic"].iloc[0] + 0.03


def test_both_give_one_number_where_the_concatenated_candidate_is_not_the_best():
    paper, head = (compared(*ONE_CLEAR, mode).best().iloc[0] for mode in (YEAR_2024, HEAD))
    assert (paper["layer_x"], paper["layer_y"]) == (head["layer_x"], head["layer_y"]) == ("layer.0", "layer.1")
    assert paper["statistic"] == head["statistic"]


@pytest.mark.parametrize("data", PAIRS)
def test_without_clipping_the_layers_themselves_are_equal_in_all_modes(data):
    x, y = PAIRS[data]
    plain = expected(x, y, HEAD, clip=False)
    for mode, (_, _, concatenated) in MODES.items():
        for change in ({"clip": None}, {"quantile": 1.0}):
            found = cells(compared(x, y, mode, **change))
            np.testing.assert_allclose(found[:3, :2], plain, atol=1e-12)
            assert found.shape == ((4, 3) if concatenated else (3, 2))


# --- difference two: the threshold ------------------------------------------------------------------


def test_the_three_thresholds_of_layers_of_different_norm():
    """One threshold for all leaves the small layers alone and clips 15 % of the large one; a list clips 5 % of each."""
    x = layered(5, (1, 1, 1), (1, 1, 50), width=200)
    cut = {m: [float((a != b).mean()) for a, b in zip(clipped(x, m), x, strict=True)] for m in MODES}
    for mode in (PAPER, YEAR_2024, HEAD):
        assert cut[mode] == pytest.approx([0, 0, 0.15], abs=0.01)
    assert cut[HEAD_LIST] == pytest.approx([0.05, 0.05, 0.05], abs=0.002)
    for mode, oracle in cut.items():
        only_clip = Preprocess(**{**vars(preset(mode).preprocess), "normalize_rows": False, "concatenate": False})
        made = only_clip({str(i): torch.from_numpy(f) for i, f in enumerate(x)})
        assert [float((made[str(i)].numpy() != f).mean()) for i, f in enumerate(x)] == oracle


def test_a_list_of_layers_moves_the_small_layers_and_one_tensor_does_not():
    x, y = NORMS
    plain, tensor, as_list = expected(x, y, HEAD, clip=False), cells(compared(*NORMS, HEAD)), cells(compared(*NORMS, HEAD_LIST))
    np.testing.assert_allclose(tensor[:2, 0], plain[:2, 0], atol=1e-12)  # no entry of these layers is beyond the threshold
    assert (tensor[2] != plain[2]).any() and (tensor[:, 1] != plain[:, 1]).any()
    assert (as_list[:2, 0] != plain[:2, 0]).any()


def test_the_mean_threshold_and_the_exact_one_are_two_numbers_and_move_the_clipped_layer_alone():
    x, y = NORMS
    assert mean(x) != pytest.approx(exact(x), rel=1e-3)
    paper, code = cells(compared(x, y, PAPER)), cells(compared(x, y, YEAR_2024))
    np.testing.assert_array_equal(paper[:2, 0], code[:2, 0])
    by_cka = [cells(compared(x, y, mode, CKA)) for mode in (PAPER, YEAR_2024)]
    assert (np.abs(by_cka[0] - by_cka[1])[2] > 1e-6).all()  # the large layer, with every layer of y
    np.testing.assert_allclose(by_cka[0][:2, 0], by_cka[1][:2, 0], atol=1e-12)


def plateau(seed: int, layers: int) -> Layers:
    """Every stimulus has the same absolute values, in an order and with signs of its own; the .95 quantile is a plateau."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.uniform(0.1, 1, 40 * layers - 5 * layers), np.full(4 * layers, 2.0), np.full(layers, 9.0)])
    rows = np.stack([rng.permutation(values) * rng.choice([-1, 1], values.size) for _ in range(N)])
    rows[:, :10] = np.abs(rows[:, :10]) * np.sign(np.random.default_rng(7).standard_normal((N, 10)))  # what models share
    return np.split(rows, layers, axis=1)


def test_equal_thresholds_give_equal_cells():
    x, y = plateau(1, 3), plateau(2, 2)
    assert mean(x) == pytest.approx(exact(x)) == 2.0 and mean(y) == pytest.approx(exact(y)) == 2.0
    paper, code, head = (cells(compared(x, y, mode)) for mode in (PAPER, YEAR_2024, HEAD))
    np.testing.assert_array_equal(paper, code)
    np.testing.assert_array_equal(paper[:-1, :-1], head)


# --- difference three: the maximum starts at 0 -------------------------------------------------------


def debiased_cka(a: np.ndarray, b: np.ndarray) -> float:
    def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
        k, l, m = k - np.diag(np.diag(k)), l - np.diag(np.diag(l)), len(k)  # noqa: E741
        mixed = 2 * k.sum(0) @ l.sum(0) / (m - 2)
        return ((k * l).sum() + k.sum() * l.sum() / ((m - 1) * (m - 2)) - mixed) / (m * (m - 3))

    k, l = a @ a.T, b @ b.T  # noqa: E741
    return float(hsic(k, l) / (np.sqrt(hsic(k, k) * hsic(l, l)) + 1e-6))


DEBIASED = "CKA(kernel='linear', estimator='debiased', bandwidth=None, epsilon=1e-06)"


def unrelated() -> tuple[Layers, Layers]:
    """Wide noise at small n, the first seed where every score is negative."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x, y = ([rng.standard_normal((12, 400)) for _ in range(2)] for _ in range(2))
        if (expected(x, y, PAPER, debiased_cka) < 0).all():
            return x, y
    raise AssertionError("no seed")


@pytest.mark.parametrize("mode", [PAPER, HEAD])
def test_scores_that_are_never_positive(mode):
    x, y = unrelated()
    oracle, result = expected(x, y, mode, debiased_cka), compared(x, y, mode, DEBIASED)
    np.testing.assert_allclose(cells(result), oracle, atol=1e-7)
    best = result.best().iloc[0]
    assert best["statistic"] == pytest.approx(oracle.max(), abs=1e-7) and best["statistic"] < 0  # ours: the true maximum
    assert best["layer_x"] and best["layer_y"]
    assert Preset.best(cells(result)) == (0.0, None)  # the code's


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([[0.1, 0.3], [0.3, 0.2]], (0.3, (0, 1))),  # strictly larger: the first of equals stays
        ([[np.nan, -0.1], [0.02, np.nan]], (0.02, (1, 0))),
        ([[np.nan, np.nan]], (0.0, None)),
        ([[0.0, 0.0]], (0.0, None)),
        (np.empty((0, 3)), (0.0, None)),
    ],
)
def test_the_maximum_of_the_code(scores, told):
    assert Preset.best(scores) == told


def test_where_a_score_is_positive_both_maxima_are_one():
    for data in PAIRS.values():
        for mode in MODES:
            result = compared(*data, mode)
            best = result.best().iloc[0]
            assert Preset.best(cells(result)) == (best["statistic"], (best["index_x"], best["index_y"]))


# --- not followed: bfloat16 --------------------------------------------------------------------------


def test_bfloat16_is_not_followed():
    """Where all rows point one way, half precision loses the neighbours; the preset has those of float64."""
    rng = np.random.default_rng(0)
    x, y = ([f + 20 * rng.standard_normal(f.shape[1]) for f in layers] for layers in SEVERAL)
    oracle = expected(x, y, HEAD)
    found = cells(compared([f.astype(np.float32) for f in x], [f.astype(np.float32) for f in y], HEAD))
    np.testing.assert_allclose(found, oracle, atol=1.01 / (N * K))

    def coarse(f: np.ndarray) -> np.ndarray:
        made = torch.from_numpy(f).to(torch.bfloat16)
        return (made @ made.T).float().numpy()

    def near(f: np.ndarray) -> list[set[int]]:
        s = coarse(f)
        np.fill_diagonal(s, -1e8)
        return [set(row) for row in np.argsort(-s, axis=1, kind="stable")[:, :K].tolist()]

    lists_x, lists_y = ([near(f) for f in candidates(side, HEAD)] for side in (x, y))
    half = np.array([[np.mean([len(p & q) / K for p, q in zip(a, b, strict=True)]) for b in lists_y] for a in lists_x])
    assert (np.abs(half - oracle) > 0.02).all()


def test_the_modes_of_this_page_are_all_there_are():
    assert set(MODES) == set(PRESETS)
    for name, (rule, scope, concatenated) in MODES.items():
        found = preset(name).preprocess
        assert (found.clip, found.clip_scope == "layer", found.concatenate) == (rule, scope == "layer", concatenated)
        assert found.normalize_rows and found.quantile == 0.95 and preset(name).search == "raw"
