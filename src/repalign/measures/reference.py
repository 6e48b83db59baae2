"""Forms of the reference code (minyoungg/platonic-rep) that no corrected measure gives, for its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures._base import Measure, Neighbors, State
from repalign.measures._search import full_precision, neighbors, unit_rows, unit_scale


@dataclass(frozen=True)
class CKNNAReference(Measure):
    """CKNNA as the reference code computes it: HSIC of masked, uncentred cosine kernels. Slightly asymmetric.

    With directed masks M_K, M_L of the k nearest neighbours and M their product,
    h(M K, M L) / (sqrt(h(M_K K, M_K K) h(M_L L, M_L L)) + epsilon), h the unbiased HSIC (`unbiased=True`; the diagonal is
    left out of masks) or tr(P H Q H) (`unbiased=False`; the diagonal may be its own neighbour, and the value can exceed 1).

    Departures from `CKNNA`: centring happens after masking; only reciprocal neighbours count in the trace term; the masks
    are not symmetric, hence neither is the score; epsilon makes CKNNA(X, X) < 1. Kept for reproduction only.

    Source: Huh et al. 2024, released code at dcd76ba; rows are normalised there by the caller, here by the measure.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 4))
    >>> CKNNAReference(k=5)(x, x) < 1.0
    True
    """

    k: int = 10
    unbiased: bool = True
    epsilon: float = 1e-6

    family: ClassVar[str] = "kernel"
    aliases: ClassVar[tuple[str, ...]] = ("cknna_reference",)
    symmetric: ClassVar[bool] = False
    invariances: ClassVar[frozenset[str]] = frozenset({"orthogonal", "isotropic_scale", "row_scale", "permutation"})
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise RepalignError("k is out of range", expected="a whole number k >= 1", got=self.k)

    @property
    def min_n(self) -> int:
        return max(4, self.k + 1 if self.unbiased else self.k)

    @property
    def s_max(self) -> float:
        return 1.0

    def prepare(self, x: Tensor) -> Neighbors:
        z = unit_rows(unit_scale(x))
        indices = neighbors(z, self.k, keep_self=not self.unbiased)
        with full_precision():
            values = (z.double() @ z.double().T).gather(1, indices)
        state = Neighbors(indices, values)
        return Neighbors(indices, values, norm=self._hsic(*self._masked(state, state)))

    def compare(self, a: State, b: State) -> float:
        assert isinstance(a, Neighbors) and isinstance(b, Neighbors)
        own = a.norm * b.norm
        if not own >= 0:
            return math.nan
        below = math.sqrt(own) + self.epsilon
        return self._hsic(*self._masked(a, b)) / below if below > 0 else math.nan

    def _masked(self, a: Neighbors, b: Neighbors) -> tuple[Tensor, Tensor]:
        """M K and M L, dense, with M the product of the two masks."""
        both = torch.zeros(2, a.n, a.n, dtype=torch.float64, device=a.indices.device)
        mask = torch.zeros(2, a.n, a.n, dtype=torch.bool, device=a.indices.device)
        for side, state in enumerate((a, b)):
            assert state.values is not None
            both[side].scatter_(1, state.indices, state.values)
            mask[side].scatter_(1, state.indices, True)
        shared = mask[0] & mask[1]
        return both[0] * shared, both[1] * shared

    def _hsic(self, p: Tensor, q: Tensor) -> float:
        n = len(p)
        trace = float((p * q.T).sum())
        sums = float(p.sum() * q.sum())
        through = float(p.sum(dim=0) @ q.sum(dim=1))  # 1' P Q 1
        if self.unbiased:
            total = trace + sums / ((n - 1) * (n - 2)) - 2 * through / (n - 2)
            return total / (n * (n - 3))
        back = float(q.sum(dim=0) @ p.sum(dim=1))  # 1' Q P 1
        return trace - (through + back) / n + sums / n**2
