"""Oracles of the measures on subspaces."""

from __future__ import annotations

import numpy as np

from oracles._tools import Array
from repalign.measures import SVCCA, Measure
from repalign.testing import Case


def svcca(m: Measure, x: Array, y: Array) -> float:
    kept = []
    for a in (x, y):
        a = a - a.mean(axis=0)
        if m.standardize:
            a = a / a.std(axis=0, ddof=1)
        u, s, _ = np.linalg.svd(a, full_matrices=False)
        share = np.cumsum(s**2) / (s**2).sum()
        count = m.components if isinstance(m.components, int) else int(np.searchsorted(share, m.components)) + 1
        kept.append(u[:, :count])
    return float(np.linalg.svd(kept[0].T @ kept[1], compute_uv=False).mean())


CASES = (
    Case(SVCCA(components=4), svcca),
    Case(SVCCA(components=0.9), svcca),
    Case(SVCCA(components=4, standardize=True), svcca),
)
