"""The layer search on layers that differ in their chance level: the raw maximum is blind, the studentised one is not."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from repalign.measures import CKA, MutualKNN
from repalign.null import Cyclic, Groups, Moments, Permutations, calibrate

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs/calibration.md").read_text("utf-8")

N, ALPHA = 128, 0.05
ATTAINABLE = 6 / 128  # the largest multiple of 1/128 that is not above 0.05
SIGNAL = 0.5


@pytest.fixture(scope="module")
def script():
    """The benchmark of the document, imported from its file."""
    spec = importlib.util.spec_from_file_location("layer_search", ROOT / "benchmarks/layer_search.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["layer_search"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["layer_search"]


def contestants(script, measure: CKA):
    """Raw maximum, studentised maximum and smallest p of one measure."""
    chosen = [c for c in script.CONTESTANTS if c.measure == measure]
    return sorted(chosen, key=lambda c: ("raw", "studentised", "cell").index(c.how))


@pytest.fixture(scope="module")
def rates(script):
    """400 trials without signal and 60 with one; layers of 32, 64 and 256 columns, n = 128; biased CKA."""
    return script.simulate(
        script.widths_world((32, 64, 256), N),
        (0.0, SIGNAL),
        lambda s: 400 if s == 0 else 60,
        contestants(script, CKA(estimator="biased")),
        seed=(7,),
    )


def test_the_raw_maximum_does_not_see_the_aligned_pair(rates):
    raw = [c.how for c in rates.contestants].index("raw")
    assert rates.right[1][raw] <= 0.05
    assert rates.rejected[1][raw] <= 0.15


def test_the_studentised_maximum_finds_the_aligned_pair(rates):
    ours = [c.how for c in rates.contestants].index("studentised")
    assert rates.rejected[1][ours] >= 0.9
    assert rates.right[1][ours] >= 0.9


def holds(rate: float, trials: int) -> bool:
    """Is the attainable level within the Wilson 99 % interval of the rate?"""
    interval = binomtest(round(rate * trials), trials).proportion_ci(0.99, method="wilson")
    return interval.low <= ATTAINABLE <= interval.high


def test_without_signal_both_searches_have_the_attainable_size(rates):
    size = dict(zip([c.how for c in rates.contestants], rates.rejected[0], strict=True))
    assert holds(size["raw"], 400) and holds(size["studentised"], 400)


def test_the_smallest_p_of_nine_cells_has_not(rates):
    size = dict(zip([c.how for c in rates.contestants], rates.rejected[0], strict=True))
    assert size["cell"] > 0.2
    assert not holds(size["cell"], 400)


def test_debiased_cka_finds_it_either_way(script):
    """Its chance mean and sd are those of every other cell, so that raw and studentised are nearly one search."""
    rates = script.simulate(
        script.widths_world((32, 64, 256), N), (SIGNAL,), lambda _: 20, contestants(script, CKA()), seed=(8,)
    )
    assert min(rates.right[0]) >= 0.9


def test_the_spectra_decide_the_chance_level_too(script):
    world = script.spectra_world((1.5, 0.75, 0.25), 128, N)
    rates = script.simulate(world, (SIGNAL,), lambda _: 20, contestants(script, CKA(estimator="biased")), seed=(9,))
    assert rates.right[0][0] <= 0.05
    assert rates.right[0][1] >= 0.9


def moments_of(measure, x, y):
    null = Moments(Cyclic(0))
    a, b = (null.prepare(measure, [measure.prepare(f) for f in layers]) for layers in (x, y))
    mean, sd, _ = null.moments(measure, a, b)
    return mean, sd


def effective_dimension(features) -> float:
    eigenvalues = np.linalg.eigvalsh(np.cov(features.double().numpy(), rowvar=False))
    return eigenvalues.sum() ** 2 / np.square(eigenvalues).sum()


def test_the_chance_levels_that_the_document_states(script):
    """Biased CKA: sqrt(ED_x ED_y) / (n - 1). Debiased: 0, with sd sqrt(2 / (n (n - 3))). Mutual k-NN: k / (n - 1)."""
    x, y = script.widths_world((8, 64, 256), N).draw(0.5, np.random.default_rng(3))
    x, y = [f.double() for f in x], [f.double() for f in y]
    ed_x, ed_y = (np.array([effective_dimension(f) for f in layers]) for layers in (x, y))
    mean, sd = moments_of(CKA(estimator="biased"), x, y)
    assert mean == pytest.approx(np.sqrt(np.outer(ed_x, ed_y)) / (N - 1), rel=1e-9)
    assert sd.max() > 1.5 * sd.min()
    mean, sd = moments_of(CKA(), x, y)
    assert np.abs(mean).max() < 1e-12
    assert sd == pytest.approx(np.full((3, 3), math.sqrt(2 / (N * (N - 3)))), rel=1e-9)
    mean, _ = moments_of(MutualKNN(k=10), x, y)
    assert mean == pytest.approx(np.full((3, 3), 10 / (N - 1)), rel=1e-12)


def test_two_captions_of_one_image_tie_with_every_shuffle_within_the_image(script):
    """x says nothing of which caption is which, so every draw equals the score and p is 1, not a matter of rounding."""
    rng = np.random.default_rng(4)
    images, captions = np.repeat(rng.standard_normal((40, 24)), 2, axis=0), rng.standard_normal((80, 24))
    measure = CKA(estimator="biased")
    null = Permutations(199, seed=0, groups=Groups.of(np.repeat(np.arange(40), 2), "within"))
    for dtype in (np.float32, np.float64):
        a, b = (
            null.prepare(measure, [measure.prepare(script.torch.from_numpy(f.astype(dtype)))])
            for f in (images, captions)
        )
        assert calibrate(*null.scored(measure, a, b)).pvalue.item() == 1.0


def test_the_figures_and_pages_of_the_document_are_there():
    for target in re.findall(r"!?\[[^]]*\]\((?!http)([^)#]+)\)", DOCUMENT):
        assert (ROOT / "docs" / target).exists(), target


def test_the_document_names_every_contestant_of_the_script(script):
    assert all(DOCUMENT.count(f"| {c.label} |") == 2 for c in script.CONTESTANTS)
