"""Oracles of the measures of distributions over labels."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from oracles._tools import Array
from repalign.measures import Disagreement, JensenShannon, KLDivergence, LogitDistance, Measure
from repalign.testing import Case


def kl(m: Measure, x: Array, y: Array) -> float:
    return float(entropy(softmax(x, axis=1), softmax(y, axis=1), axis=1).mean())


def jsd(m: Measure, x: Array, y: Array) -> float:
    return float((jensenshannon(softmax(x, axis=1), softmax(y, axis=1), base=2, axis=1) ** 2).mean())


def disagreement(m: Measure, x: Array, y: Array) -> float:
    return float(np.mean([list(a).index(max(a)) != list(b).index(max(b)) for a, b in zip(x, y, strict=True)]))


def logit_distance(m: Measure, x: Array, y: Array) -> float:
    """From log-probabilities, which give the same."""
    p, q = (log_softmax(a, axis=1) for a in (x, y))
    squared = ((p - p.mean(axis=1, keepdims=True) - q + q.mean(axis=1, keepdims=True)) ** 2).sum(axis=1).mean()
    return float(squared if m.squared else np.sqrt(squared))


def two_models(seed: int = 0, n: int = 40, dx: int = 7, dy: int = 7, offset: float = 1.0) -> tuple[Array, Array]:
    """Logits of two models that mostly predict the same label."""
    rng = np.random.default_rng(seed)
    x = 2 * rng.standard_normal((n, dx)) + np.linspace(0, offset, dx)
    return x, x + rng.standard_normal((n, dx))


CASES = (
    Case(KLDivergence(), kl, constant="defined"),
    # The root is taken and squared again in the oracle.
    Case(JensenShannon(), jsd, constant="defined", tolerance=1e-9),
    Case(Disagreement(), disagreement, constant="defined", data=two_models),
    Case(LogitDistance(), logit_distance, constant="defined"),
    Case(LogitDistance(squared=False), logit_distance, constant="defined"),
)
