"""Cosines of paired rows after two spaces are made comparable: by an alignment of axes, or by common anchors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from repalign.measures.measure import Features, Measure, State
from repalign.measures.numerics.checks import as_count, check_choice, check_flag
from repalign.measures.numerics.folds import as_seed
from repalign.measures.numerics.precision import centred, full_precision, scaled, unit_rows


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

    alignment: str = "orthogonal"
    center: bool = False

    family: ClassVar[str] = "mapping"
    cost: ClassVar[str] = "n d min(n, d) per layer, n r^2 + r^3 per pair with r = min(n, d); d for r with permutations"
    aliases: ClassVar[tuple[str, ...]] = ("aligned_cosine", "aligned_cosine_similarity")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        check_choice("alignment", self.alignment, ("orthogonal", "permutation"))
        check_flag("center", self.center)

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"isotropic_scale", "permutation"}) | ({"translation"} if self.center else set())
        return common | {"orthogonal"} if self.alignment == "orthogonal" else common

    def prepare(self, x: Tensor) -> Features:
        self.check_n(len(x))
        rows = centred(x).rows if self.center else scaled(x)[0]
        constant = bool((x == x[:1]).all())
        if self.alignment == "orthogonal" and rows.shape[1] > rows.shape[0]:
            rows = torch.linalg.qr(rows.T, mode="r").R.T  # the same rows in coordinates of the space that they span
        return Features(rows, 0.0 if constant else 1.0)

    def compare(self, a: State, b: State) -> float:
        first, second = cast(tuple[Features, Features], (a, b))
        if not first.norm or not second.norm:
            return math.nan
        with full_precision():
            x, y = self._aligned(first.values, second.values, first.values.T @ second.values)
        lengths = torch.linalg.vector_norm(first.values, dim=1) * torch.linalg.vector_norm(second.values, dim=1)
        there = lengths > 0
        cosines = (x * y).sum(dim=1)[there] / lengths[there]
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
class RelativeRepresentation(Measure):
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

    anchors: int = 100
    draws: int = 5
    seed: int = 0
    center: bool = True

    family: ClassVar[str] = "mapping"
    cost: ClassVar[str] = "n d per layer, draws n anchors d per pair"
    aliases: ClassVar[tuple[str, ...]] = ("relative_representation", "relative_representations")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchors", as_count("anchors", self.anchors))
        object.__setattr__(self, "draws", as_count("draws", self.draws))
        object.__setattr__(self, "seed", as_seed(self.seed))
        check_flag("center", self.center)

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"orthogonal", "isotropic_scale", "permutation"})
        return common | ({"translation"} if self.center else {"row_scale"})

    @property
    def min_n(self) -> int:
        return self.anchors + 1

    def prepare(self, x: Tensor) -> Features:
        self.check_n(len(x))
        rows = centred(x).rows if self.center else unit_rows(x)
        return Features(rows, 0.0 if bool((x == x[:1]).all()) else 1.0)

    def compare(self, a: State, b: State) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    def compare_all(self, a: Sequence[State], b: Sequence[State]) -> Tensor:
        first, second = cast(Sequence[Features], a), cast(Sequence[Features], b)
        out = torch.zeros(len(a), len(b), dtype=torch.float64)
        for chosen, others in self._drawn(first[0].n):
            left = [self._relative(s, chosen, others) for s in first]
            for j, t in enumerate(second):
                right = self._relative(t, chosen, others)
                for i, rows in enumerate(left):
                    cosines = (rows * right).sum(dim=1)[rows.any(dim=1) & right.any(dim=1)]
                    out[i, j] += float(cosines.mean().clamp(-1, 1)) / self.draws  # the mean of no rows is nan
        defined = torch.tensor([s.norm > 0 for s in first])[:, None] & torch.tensor([t.norm > 0 for t in second])
        return torch.where(defined, out, math.nan)

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


MEASURES = (AlignedCosine, RelativeRepresentation)
