"""Measures on subspaces: do the leading directions of two representations span the same space of stimuli?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures._base import Features, Measure, State
from repalign.measures.kernel import centred_features


@dataclass(frozen=True)
class SVCCA(Measure):
    """Mean canonical correlation of the leading principal components. Exact and deterministic.

    With U_X, U_Y the left singular vectors of the centred arrays, cut to their leading ones, the mean singular value of
    U_X' U_Y over min(r_X, r_Y). Range [0, 1]; symmetric; SVCCA(X, X) = 1. The chance level is high: some r / n for squared
    correlations, so read it beside its null.

    Parameters: `components`, the number kept (at most the numerical rank; then the mean is over fewer), or `variance`, the
    share of the sum of squared singular values to be reached (Raghu et al. 2017 use 0.99); give one. `standardize` divides
    columns by their standard deviation first, as the reference code does; it breaks the invariance to orthogonal maps.

    Raises RepalignError unless n > components. A constant representation has no score: nan. Source: Raghu et al. 2017;
    Huh et al. 2024, appendix A. The reference code uses a randomised SVD, scikit-learn's iterative CCA and added noise,
    and so gives another value on every call (0.87 for X with itself).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 20))
    >>> round(SVCCA()(x, x), 12)
    1.0
    """

    components: int | None = 10
    variance: float | None = None
    standardize: bool = False

    family: ClassVar[str] = "subspace"
    aliases: ClassVar[tuple[str, ...]] = ("svcca",)
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if (self.components is None) == (self.variance is None):
            raise RepalignError(
                "SVCCA keeps either a number of components or a share of variance",
                expected="one of components=..., variance=...",
                got=f"components={self.components}, variance={self.variance}",
                remedy="for a share write SVCCA(components=None, variance=0.99)",
            )
        if self.components is not None and (isinstance(self.components, bool) or self.components < 1):
            raise RepalignError("components is out of range", expected="a whole number >= 1", got=self.components)
        if self.variance is not None and not 0 < self.variance <= 1:
            raise RepalignError("variance is out of range", expected="0 < variance <= 1", got=self.variance)

    @property
    def min_n(self) -> int:
        return 2 if self.components is None else self.components + 1

    @property
    def invariances(self) -> frozenset[str]:
        same = {"isotropic_scale", "translation", "permutation"}
        return frozenset(same if self.standardize else same | {"orthogonal"})

    def prepare(self, x: Tensor) -> Features:
        xc, _ = centred_features(x)
        wide = xc.double()
        if self.standardize:
            deviation = wide.std(dim=0)
            wide = wide / torch.where(deviation > 0, deviation, 1.0)
        u, s, _ = torch.linalg.svd(wide, full_matrices=False)
        # numpy's rank rule, at the precision that the data came in
        rank = int((s > s[0] * max(wide.shape) * torch.finfo(x.dtype).eps).sum()) if float(s[0]) > 0 else 0
        if self.components is not None:
            keep = min(self.components, rank)
        else:
            assert self.variance is not None
            share = (s**2).cumsum(0) / (s**2).sum()
            keep = min(rank, int((share < self.variance - 1e-12).sum()) + 1)
        return Features(u[:, :keep].contiguous())

    def compare(self, a: State, b: State) -> float:
        assert isinstance(a, Features) and isinstance(b, Features)
        if 0 in (a.values.shape[1], b.values.shape[1]):
            return math.nan
        return min(1.0, float(torch.linalg.svdvals(a.values.T @ b.values).mean()))
