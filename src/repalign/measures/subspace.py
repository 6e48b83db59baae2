"""Measures that compare the subspaces which the features span: SVCCA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures._base import Features, Measure, State
from repalign.measures._checks import as_count, check_flag
from repalign.measures._numeric import centred


@dataclass(frozen=True)
class SVCCA(Measure):
    """Singular-vector CCA: the mean canonical correlation of the leading principal components.

    s = mean of the singular values of U_X^T U_Y, with U the left singular vectors of the centred features to
    their largest singular values, found by an exact SVD in float64. The same numbers come out every time.

    Parameters
    ----------
    components : how many (a whole number), or the share of variance to keep, in (0, 1): then the smallest
        count that reaches it, on each side by itself. A side of lower rank gives what it has; the mean runs
        over the smaller count of the two.
    standardize : divide every column by its standard deviation first, as the reference code does. Not
        invariant to orthogonal maps then.

    Shapes (n, d1) and (n, d2). Range [0, 1]. The floor is high: two random subspaces score about
    sqrt(components / n), and with a share of variance and d >= n both span nearly everything and score near
    1. Invariant to orthogonal maps (unless standardize), isotropic scale, translation and column order. nan
    for a constant representation.
    Raises RepalignError unless n >= components + 2 (at n = components + 1 both sides span everything).

    Source: Raghu et al. 2017 (arXiv 1706.05806); Huh et al. 2024 (arXiv 2405.07987), appendix B. The
    reference code takes a randomised SVD and adds noise, so that it returns another value each time and less
    than 1 for X with itself.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 20))
    >>> round(SVCCA(components=5)(x, 1 - 2 * x), 12)
    1.0
    """

    components: int | float = 10
    standardize: bool = False

    family: ClassVar[str] = "subspace"
    cost: ClassVar[str] = "n d min(n, d) per layer, n c^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("svcca",)
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_flag("standardize", self.standardize)
        if isinstance(self.components, float):
            if not 0 < self.components < 1:
                raise RepalignError(
                    "components is neither a count nor a share",
                    expected="a whole number >= 1, or a share of variance in (0, 1)",
                    got=repr(self.components),
                )
        else:
            object.__setattr__(self, "components", as_count("components", self.components))

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"isotropic_scale", "translation", "permutation"})
        return common | ({"column_scale"} if self.standardize else {"orthogonal"})

    @property
    def min_n(self) -> int:
        return self.components + 2 if isinstance(self.components, int) else 3

    def prepare(self, x: Tensor) -> Features:
        self.check_n(len(x))
        features, unit, *_ = centred(x)
        # Singular values below the rounding of the stored features say nothing about them.
        rounding = torch.finfo(x.dtype).eps * _frobenius(x / unit)
        if self.standardize:
            deviation = features.std(dim=0)
            features = features / torch.where(deviation > 0, deviation, 1.0)
            rounding = torch.finfo(x.dtype).eps * _frobenius(features)
        vectors, values = _left_singular(features)
        return Features(vectors[:, : self._count(values, rounding)].contiguous())

    def _count(self, values: Tensor, rounding: float) -> int:
        """How many of the descending singular values to keep."""
        rank = int((values > rounding).sum())
        if isinstance(self.components, int):
            return min(self.components, rank)
        share = (values * values).cumsum(0) / (values * values).sum().clamp_min(
            torch.finfo(values.dtype).tiny
        )
        return min(int((share < self.components).sum()) + 1, rank)

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        left, right = _padded(cast(Sequence[Features], a)), _padded(cast(Sequence[Features], b))
        r, q = left.shape[2], right.shape[2]
        overlap = left.permute(0, 2, 1).flatten(0, 1) @ right.permute(1, 0, 2).flatten(1)
        overlap = overlap.view(len(a), r, len(b), q).permute(0, 2, 1, 3)  # (la, lb, r, q)
        total = torch.linalg.svdvals(overlap).sum(dim=-1).cpu()
        counts = torch.minimum(_counts(a)[:, None], _counts(b)[None, :])
        return torch.where(counts > 0, total / counts, math.nan)


def _frobenius(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _left_singular(x: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values of x (n, d); of wide x through its triangular factor."""
    if x.shape[1] > x.shape[0]:
        x = torch.linalg.qr(x.T, mode="r").R.T
    vectors, values, _ = torch.linalg.svd(x, full_matrices=False)
    return vectors, values


def _padded(states: Sequence[Features]) -> Tensor:
    """All bases as one (l, n, r) tensor; columns of zeros add singular values of zero."""
    most = max(1, *(s.values.shape[1] for s in states))
    pad = [torch.nn.functional.pad(s.values, (0, most - s.values.shape[1])) for s in states]
    return torch.stack(pad)


def _counts(states: Sequence[State]) -> Tensor:
    return torch.tensor([cast(Features, s).values.shape[1] for s in states], dtype=torch.float64)
