"""Type-I error: for unrelated spaces, p <= .05 comes as often as it may, for every measure of the list."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from repalign import null as nulls
from repalign.measures import MEASURES, Measure

PAIRS, N, DRAWS, ALPHA = 2000, 96, 19, 0.05


@pytest.fixture(autouse=True)
def _one_thread():
    """Thousands of tiny products: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wilson(successes: int, trials: int, z: float = 2.5758) -> tuple[float, float]:
    """The Wilson score interval, 99 % by default."""
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return middle - half, middle + half


def test_the_interval_is_wilsons():
    assert wilson(10, 100, 1.959964) == pytest.approx((0.0552, 0.1744), abs=1e-4)


def trials(measure: Measure, d: int, seed: int) -> tuple[int, float]:
    """How many of PAIRS independent pairs are rejected, and the share that may be.

    A p-value comes from DRAWS random permutations of prepared states. Under the null the observed score and the draws
    are exchangeable, so the attainable level of a pair is the share of them that would be rejected in the observed
    one's place: alpha for continuous scores, less where scores are counts with exact ties.
    """
    generator = torch.Generator().manual_seed(seed)
    rejected, attainable = 0, 0.0
    for _ in range(PAIRS):
        a, b = (measure.prepare(torch.randn(N, d, generator=generator)) for _ in range(2))
        relabelled = [b.permute(torch.randperm(N, generator=generator)) for _ in range(DRAWS)]
        scores = measure.compare_all([a], [b, *relabelled]).numpy()[0]
        rejected += bool(nulls.pvalue(scores[0], scores[1:]) <= ALPHA)
        tie = nulls.TIE_TOLERANCE * np.abs(scores).max()
        in_its_place = (scores[None, :] >= scores[:, None] - tie).sum(axis=1) / len(scores)
        attainable += float(np.mean(in_its_place <= ALPHA)) / PAIRS
    return rejected, attainable


@pytest.mark.slow
@pytest.mark.parametrize("d", [48, 192])
@pytest.mark.parametrize("cls", MEASURES, ids=lambda c: c.__name__)
def test_type_one_error(cls: type[Measure], d: int):
    rejected, attainable = trials(cls(), d, seed=d)
    low, high = wilson(rejected, PAIRS)
    assert attainable <= ALPHA + 1e-9
    assert low <= attainable <= high, (rejected / PAIRS, attainable)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["moments", "cyclic"])
@pytest.mark.parametrize("name", ["CKA()", "MutualKNN(k=10)"])
def test_type_one_error_without_random_draws(name: str, method: str):
    """The closed form and the cyclic group, n = 96: the same share, within the same interval."""
    from repalign.measures import parse_measure

    measure = parse_measure(name)
    null = nulls.Cyclic(seed=3)
    chosen = nulls.Moments(null) if method == "moments" else null
    generator = torch.Generator().manual_seed(17)
    rejected = 0
    for _ in range(PAIRS):
        a, b = (chosen.prepare(measure, [measure.prepare(torch.randn(N, 48, generator=generator))]) for _ in range(2))
        judged = chosen.judge(measure, a, b, how="raw", alpha=ALPHA)
        rejected += bool(judged.cells.pvalue[0, 0] <= ALPHA)
    attainable = ALPHA if method == "moments" else math.floor(ALPHA * N) / N
    low, high = wilson(rejected, PAIRS)
    assert low <= attainable
    assert high >= attainable or name.startswith("Mutual"), rejected / PAIRS
