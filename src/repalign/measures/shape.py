"""Measures on shapes, features up to rotation: shape metrics, Bures, covariance of partial least squares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from repalign.measures.numerics.checks import as_share
from repalign.measures.numerics.shape import (
    Shape,
    ShapeMeasure,
    angle,
    at_unit_norm,
    shape_invariances,
    shape_of,
    size_and_shape,
)
from repalign.measures.numerics.sharing import layer_of


@dataclass(frozen=True)
class ShapeMetric(ShapeMeasure):
    """Generalised shape metric, in radians: angular Procrustes after partial whitening.

    s = arccos(|X'^T Y'|_* / (|X'|_F |Y'|_F)), where X' has the centred features' singular values s_i replaced by
    alpha s_i + 1 - alpha. alpha = 1 leaves them: angular Procrustes. alpha = 0 whitens: at equal ranks the arc cosine
    of the mean canonical correlation.

    Parameters
    ----------
    alpha : from 0 (whitened) to 1 (as they are, the default).

    Shapes (n, d1) and (n, d2). Range [0, pi / 2]; 0 is best. With alpha = 0 and n - 1 <= d on both sides it is 0 for
    anything. Invariant to orthogonal maps, translation and column order; to isotropic scale for alpha = 1 and 0 alone,
    because between them s_i is added to a number; for alpha = 0 to every invertible linear map. nan if either is
    constant.

    Source: Williams et al. 2021 (arXiv 2110.14739). Their code gives directions without variance an
    eigenvalue of 1e-7 and counts them; here they do not count. It also rescales to the total variance of before,
    which leaves the angle as it is.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> ShapeMetric(alpha=0.0)(x, x @ np.triu(np.ones((8, 8)))) < 1e-12
    True
    """

    alpha: float = 1.0

    family: ClassVar[str] = "shape"
    cost: ClassVar[str] = "n d min(n, d) per layer, n d^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("shape_metric", "linear_shape_metric")
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.pi / 2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", as_share("alpha", self.alpha))

    @property
    def invariances(self) -> frozenset[str]:
        if self.alpha == 0:
            return shape_invariances(True, True) | {"column_scale", "invertible"}
        return shape_invariances(self.alpha == 1, True)

    def prepare(self, x: Tensor) -> Shape:
        if self.alpha == 1:
            return shape_of(x)
        vectors, values, unit = layer_of(x).spectrum
        scale = max(self.alpha * unit, 1 - self.alpha)  # so that squares neither overflow nor vanish
        whitened = vectors * (self.alpha * values * (unit / scale) + (1 - self.alpha) / scale)
        return at_unit_norm(whitened, scale, x.shape[1])

    def _score(self, chord: float, a: Shape, b: Shape) -> float:  # noqa: ARG002
        return angle(chord)


@dataclass(frozen=True)
class NormalisedBures(ShapeMeasure):
    """Normalised Bures similarity: the fidelity of two kernels, and the cosine of angular Procrustes.

    s = |X^T Y|_* / (|X|_F |Y|_F) on centred features, |.|_* the sum of singular values. With kernels K = X X^T,
    |X^T Y|_* = tr (K^(1/2) L K^(1/2))^(1/2).

    Shapes (n, d1) and (n, d2). Range [0, 1]; high for unrelated layers once d is of the order of n. Invariant to
    orthogonal maps, isotropic scale, translation and column order. nan if either is constant.

    Source: Tang et al. 2020 (arXiv 2003.11498). From singular values, not from square roots of eigenvalues
    of a product of kernels, which are off by 1e-7.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(NormalisedBures()(x, 5 - 2 * x), 12)
    1.0
    """

    family: ClassVar[str] = "shape"
    aliases: ClassVar[tuple[str, ...]] = ("normalised_bures", "normalized_bures", "nbs")
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def invariances(self) -> frozenset[str]:
        return shape_invariances(True, True)

    def _score(self, chord: float, a: Shape, b: Shape) -> float:  # noqa: ARG002
        return 1 - chord * chord / 2


@dataclass(frozen=True)
class BuresDistance(ShapeMeasure):
    """Bures distance between the centred linear kernels of two layers, per feature.

    s = sqrt(tr K + tr L - 2 tr (K^(1/2) L K^(1/2))^(1/2)), K = X X^T / d1, L = Y Y^T / d2 of centred features: the
    Procrustes distance of X / sqrt(d1) and Y / sqrt(d2).

    Shapes (n, d1) and (n, d2). Range [0, inf); 0 is best; in the unit of the features and growing with sqrt(n).
    Invariant to orthogonal maps, translation and column order. nan if either is constant.

    Source: Bhatia, Jain and Lim 2019 (arXiv 1712.01504); rsatoolbox reports the square.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> BuresDistance()(x, 5 - x) < 1e-12
    True
    """

    family: ClassVar[str] = "shape"
    aliases: ClassVar[tuple[str, ...]] = ("bures_distance", "bures")
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    @property
    def invariances(self) -> frozenset[str]:
        return shape_invariances(False, True)

    def _score(self, chord: float, a: Shape, b: Shape) -> float:
        return size_and_shape(chord, a.norm / math.sqrt(a.width), b.norm / math.sqrt(b.width))


@dataclass(frozen=True)
class PLSCovariance(ShapeMeasure):
    """Mean covariance along the directions of partial least squares (its SVD form).

    s = |X^T Y|_* / ((n - 1) min(d1, d2)) on centred features: the mean singular value of their cross-covariance.

    Shapes (n, d1) and (n, d2). Range [0, inf), in the product of the units of both, so only a chance level gives it
    meaning; `NormalisedBures` is the same sum over the norms of both sides. Invariant to orthogonal maps, translation
    and column order. nan if either is constant.

    Source: McIntosh et al. 1996; mean over min(d1, d2) as in the code released with Raghu et al. 2017 (arXiv
    1706.05806), which refuses d1 > d2.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> bool(np.isclose(PLSCovariance()(x, x), x.var(axis=0, ddof=1).mean()))
    True
    """

    family: ClassVar[str] = "shape"
    aliases: ClassVar[tuple[str, ...]] = ("pls_covariance", "pls_svd")
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    @property
    def invariances(self) -> frozenset[str]:
        return shape_invariances(False, True)

    def _score(self, chord: float, a: Shape, b: Shape) -> float:
        cosine = 1 - chord * chord / 2
        return cosine * a.norm * b.norm / ((a.n - 1) * min(a.width, b.width))


MEASURES = (ShapeMetric, NormalisedBures, BuresDistance, PLSCovariance)
