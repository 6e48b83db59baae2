"""Cosines of paired rows after two spaces are made comparable: by an alignment of axes, or by common anchors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from repalign.errors import choose
from repalign.measures.measure import Batched, Features, Measure, as_count, as_seed, check_flag, parameter
from repalign.measures.numerics.precision import full_precision
from repalign.measures.numerics.rows import centred, is_constant, scaled, unit_rows


@dataclass(frozen=True)
class AlignedCosine(Measure):
    """Aligned cosine: the mean cosine of paired rows after the best rotation, or reordering, of the features.

    s = mean_i cos(Q^T x_i, y_i), where the narrower side is padded with zeros and Q maximises tr(Q^T X^T Y) over
    orthogonal maps, or over permutations. Rows that are zero on either side are left out.

    Parameters
    ----------
    alignment : "orthogonal" (Procrustes) or "permutation" (of features, by linear assignment).
    center : subtract the column means first. Without it a common direction of each side is rotated onto the other and
        gives a high score to unrelated spaces.

    Shapes (n, d1) and (n, d2). Range [-1, 1]. Chance is above 0 and near 1 for d >= n, where a rotation fits anything.
    Invariant to isotropic scale and the order of features of X and Y; to rotation of both for "orthogonal"; with center to
    translation. nan for a constant representation.

    Source: `AlignedCosineSimilarity` of ReSi (Klabunde et al. 2024; Hamilton et al. 2016), which does not centre.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 3))
    >>> round(AlignedCosine()(x, 2 * x[:, [2, 0, 1]]), 12)
    1.0
    """

    alignment: str = parameter("orthogonal", choose, ("orthogonal", "permutation"))
    center: bool = parameter(False, check_flag)

    family: ClassVar[str] = "mapping"
    cost: ClassVar[str] = "n d min(n, d) per layer, n r^2 + r^3 per pair with r = min(n, d); d for r with permutations"
    aliases: ClassVar[tuple[str, ...]] = ("aligned_cosine", "aligned_cosine_similarity")
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"isotropic_scale", "permutation"}) | ({"translation"} if self.center else set())
        return common | {"orthogonal"} if self.alignment == "orthogonal" else common

    def prepare(self, x: Tensor) -> Features:
        rows = centred(x).rows if self.center else scaled(x)[0]
        if self.alignment == "orthogonal" and rows.shape[1] > rows.shape[0]:
            rows = torch.linalg.qr(rows.T, mode="r").R.T  # the same rows in coordinates of the space that they span
        return Features(rows, 0.0 if is_constant(x) else 1.0)

    def compare(self, a: Features, b: Features) -> float:
        if not a.norm or not b.norm:
            return math.nan
        with full_precision():
            x, y = self._aligned(a.values, b.values, a.values.T @ b.values)
        lengths = torch.linalg.vector_norm(a.values, dim=1) * torch.linalg.vector_norm(b.values, dim=1)
        cosines = (x * y).sum(dim=1)[lengths > 0] / lengths[lengths > 0]
        return float(cosines.mean().clamp(-1, 1))

    def _aligned(self, x: Tensor, y: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides in the common coordinates."""
        if self.alignment == "orthogonal":
            left, _, right = torch.linalg.svd(cross, full_matrices=False)
            return x @ left, y @ right.T
        from scipy.optimize import linear_sum_assignment

        mine, partner = linear_sum_assignment(cross.cpu().numpy(), maximize=True)
        return x[:, torch.from_numpy(mine)], y[:, torch.from_numpy(partner)]


@dataclass(frozen=True)
class RelativeRepresentation(Batched):
    """Relative representations: every stimulus by its cosines to common anchors, compared across the two spaces.

    r(x)_j = cos(x - c, a_j - c) with anchors a_j, which are the same stimuli in both spaces, and c their mean.
    s = the mean over draws of anchors, and over the other stimuli i, of cos(r(x)_i, r(y)_i).

    Parameters
    ----------
    anchors : how many stimuli of the data serve as anchors (500 for images and 768 for text in the
        authors' code).
    draws : how often anchors are drawn; the score depends on them, so the mean of several is given.
    seed : of the draws.
    center : subtract the mean of the anchors first; without it the score is not invariant to translation, and a common
        direction of all rows makes it high.

    Shapes (n, d1) and (n, d2). Range [-1, 1]; chance is above 0 without center. Invariant to orthogonal maps and isotropic
    scale, with center also to translation. Rows whose cosines vanish on a side are left out. nan for a constant
    representation, and where no row is left. Raises RepalignError unless n > anchors.

    Source: Moschella et al. 2023 (arXiv 2209.15430), which does not centre.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 3))
    >>> round(RelativeRepresentation(anchors=10)(x, 2 * x[:, [2, 0, 1]] + 1), 12)
    1.0
    """

    anchors: int = parameter(100, as_count)
    draws: int = parameter(5, as_count)
    seed: int = parameter(0, as_seed)
    center: bool = parameter(True, check_flag)

    family: ClassVar[str] = "mapping"
    cost: ClassVar[str] = "n d per layer, draws n anchors d per pair"
    aliases: ClassVar[tuple[str, ...]] = ("relative_representation", "relative_representations")
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"orthogonal", "isotropic_scale", "permutation"})
        return common | ({"translation"} if self.center else {"row_scale"})

    @property
    def min_n(self) -> int:
        return self.anchors + 1

    def prepare(self, x: Tensor) -> Features:
        rows = centred(x).rows if self.center else unit_rows(x)
        return Features(rows, 0.0 if is_constant(x) else 1.0)

    def compare_all(self, a: Sequence[Features], b: Sequence[Features]) -> Tensor:
        out = torch.zeros(len(a), len(b), dtype=torch.float64)
        for chosen, others in self._drawn(a[0].n):
            left = [self._relative(s, chosen, others) for s in a]
            for j, t in enumerate(b):
                right = self._relative(t, chosen, others)
                for i, rows in enumerate(left):
                    cosines = (rows * right).sum(dim=1)[rows.any(dim=1) & right.any(dim=1)]
                    out[i, j] += float(cosines.mean().clamp(-1, 1)) / self.draws  # the mean of no rows is nan
        return self.scale(out, a, b)

    def _drawn(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions of the anchors, and of the other rows, for every draw."""
        generator = np.random.Generator(np.random.PCG64(self.seed))
        for _ in range(self.draws):
            order = torch.from_numpy(generator.permutation(n))
            yield order[: self.anchors], order[self.anchors :]

    def _relative(self, state: Features, anchors: Tensor, others: Tensor) -> Tensor:
        """Unit relative rows (n - anchors, anchors)."""
        rows, fixed = state.values[others], state.values[anchors]
        if self.center:
            mean = fixed.mean(dim=0)
            rows, fixed = unit_rows(rows - mean), unit_rows(fixed - mean)
        with full_precision():
            return unit_rows(rows @ fixed.T)
