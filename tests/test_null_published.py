"""The published calibration: bit for bit against the package that its authors released."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch

from repalign import null as nulls
from repalign.comparison import pair
from repalign.errors import RepalignError
from repalign.measures import Measure, MutualKNN, parse_measure

calibrated = pytest.importorskip("calibrated_similarity", reason="calibrated-similarity is a test extra")

N = 80


def planted(seed: int, strength: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(N, 3, generator=g)
    sides = []
    for widths in ((6, 20), (12, 5)):
        sides.append([strength * z @ torch.randn(3, w, generator=g) + torch.randn(N, w, generator=g) for w in widths])
    return sides[0], sides[1]


def called(measure: Measure) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """A measure as their package calls one, thousands of times: what is the same array again is prepared once."""
    prepare = lru_cache(maxsize=8)(measure.prepare)
    return lambda x, y: measure.compare(prepare(x), prepare(y))


def bits(*values: object) -> list[int]:
    """The bit patterns of float32 numbers."""
    return [int(np.float32(float(v)).view(np.uint32)) for v in values]  # type: ignore[arg-type]


@pytest.mark.parametrize("strength, seed", [(0.0, 7), (0.3, 0), (1.0, None)])
def test_algorithms_one_and_two_to_the_bit(strength: float, seed: int | None):
    """The same scores and the same generator give the same score, p and threshold, for cells and for the layers.

    Without a seed a fresh generator of torch is used, as in the published runs.
    """
    x, y = planted(3, strength)
    measure = MutualKNN(k=5)

    def generator() -> torch.Generator:
        return torch.Generator() if seed is None else torch.Generator().manual_seed(seed)

    null = nulls.Aristotelian() if seed is None else nulls.Aristotelian(seed=seed)
    result = pair({str(i): f for i, f in enumerate(x)}, {str(i): f for i, f in enumerate(y)}, [measure], null)
    score, p, tau = calibrated.calibrate_layers(x, y, called(measure), K=200, generator=generator())
    best = result.best().iloc[0]
    assert best["search"] == "raw max" and best["null"] == "aristotelian" and best["n_draws"] == 200
    assert bits(best["calibrated"], best["pvalue"], best["threshold"]) == bits(score, p, tau)
    for i, j in ((0, 0), (1, 1)):
        score, p, tau = calibrated.calibrate(x[i], y[j], called(measure), K=200, generator=generator())
        cells = result.cells()
        cell = cells[(cells["index_x"] == i) & (cells["index_y"] == j)].iloc[0]
        assert bits(cell["calibrated"], cell["pvalue"], cell["threshold"]) == bits(score, p, tau)


def test_their_mean_over_layers_to_the_bit():
    """Their mean is a float32 mean of float32 scores: equal to one unit in the last place."""
    x, y = planted(5, 0.4)
    measure = MutualKNN(k=5)
    score, p, tau = calibrated.calibrate_layers(x, y, called(measure), K=200, agg="mean", generator=torch.Generator())
    named = [{str(i): f for i, f in enumerate(side)} for side in (x, y)]
    best = pair(*named, [measure], nulls.Aristotelian(), search="raw mean").best().iloc[0]
    assert float(p) == np.float32(best["pvalue"])
    assert [best["calibrated"], best["threshold"]] == pytest.approx([float(score), float(tau)], rel=3e-7)


def test_a_score_of_floats_agrees_to_their_precision():
    """CKA of relabelled states and CKA of relabelled arrays differ in the last bits, nothing else does."""
    x, y = planted(9, 0.5)
    measure = parse_measure("CKA(estimator='biased')")
    score, p, tau = calibrated.calibrate(x[0], y[0], called(measure), K=200, generator=torch.Generator())
    best = pair(x[0], y[0], [measure], "aristotelian").best().iloc[0]
    assert [best["calibrated"], best["pvalue"], best["threshold"]] == pytest.approx(
        [float(score), float(p), float(tau)], abs=1e-6
    )


def test_it_takes_the_published_search_alone():
    x, y = planted(1, 0.0)
    with pytest.raises(RepalignError, match="no layer search 'studentised max'(.|\n)*raw max or raw mean"):
        pair(x[0], y[0], ["CKA()"], "aristotelian", search="studentised")
