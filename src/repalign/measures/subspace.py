"""Measures that compare the subspaces which leading components span: SVCCA, Grassmann distance, eigenspace overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures.measure import Bilinear, DenseRelation, Features, Measure, Relation, State
from repalign.measures.numerics.checks import as_count, check_choice, check_flag
from repalign.measures.numerics.precision import centred, gram
from repalign.measures.numerics.sharing import layer_of
from repalign.measures.numerics.spectrum import Spectrum, basis, frobenius, left_singular, rows_of, spectrum

Components = int | float | None


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
        object.__setattr__(self, "components", checked_components(self.components))

    @property
    def invariances(self) -> frozenset[str]:
        common = frozenset({"isotropic_scale", "translation", "permutation"})
        return common | ({"column_scale"} if self.standardize else {"orthogonal"})

    @property
    def min_n(self) -> int:
        return least_n(self.components)

    def prepare(self, x: Tensor) -> Features:
        self.check_n(len(x))
        found = standardized_spectrum(x) if self.standardize else layer_of(x).spectrum
        return Features(leading(found, self.components).contiguous())

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


@dataclass(frozen=True)
class GrassmannDistance(Measure):
    """Distance on the Grassmannian: how far the leading subspaces of two layers are turned against each other.

    With theta_i the principal angles between the spans of the leading principal components, cos theta_i the singular
    values of U_X^T U_Y as in SVCCA, s is, by `form`,
    "arc": sqrt(sum theta_i^2), the length of the shortest path; "chordal": sqrt(sum sin^2 theta_i);
    "largest": max theta_i.

    Parameters
    ----------
    components : how many (a whole number), the share of variance to keep, in (0, 1), or None for all directions in
        which the features vary at all (the numerical rank).
    form : "arc" (default), "chordal" or "largest".

    Shapes (n, d1) and (n, d2). Range [0, sqrt(c) pi / 2] with c the smaller count of the two (chordal: sqrt(c);
    largest: pi / 2); 0 is best, and reached whenever one span holds the other, so only for equal counts is it a
    distance in the strict sense. With None and n - 1 <= d it is 0 for anything. Invariant to orthogonal maps,
    isotropic scale, translation and column order; with None to every invertible linear map. nan for a constant
    representation.
    Raises RepalignError unless n >= components + 2.

    Source: Edelman, Arias and Smith 1998; Ye and Lim 2016 for unequal dimensions. Angles
    near 0 come from their sines, as in Knyazev and Argentati 2002, and keep all their digits.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 20))
    >>> GrassmannDistance(components=5)(x, 1 - 2 * x) < 1e-12
    True
    """

    components: int | float | None = 10
    form: str = "arc"

    family: ClassVar[str] = "subspace"
    cost: ClassVar[str] = "n d min(n, d) per layer, n c^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("grassmann_distance", "grassmann")
    symmetric: ClassVar[bool] = True
    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        if self.components is not None:
            object.__setattr__(self, "components", checked_components(self.components))
        check_choice("form", self.form, tuple(ANGLE_SUMS))

    @property
    def range(self) -> tuple[float, float]:
        if self.form == "largest":
            return (0.0, math.pi / 2)
        count = self.components if isinstance(self.components, int) else math.inf
        return (0.0, math.sqrt(count) * (math.pi / 2 if self.form == "arc" else 1.0))

    @property
    def invariances(self) -> frozenset[str]:
        return span_invariances(self.components) | {"translation"}

    @property
    def min_n(self) -> int:
        return least_n(self.components)

    def prepare(self, x: Tensor) -> Features:
        self.check_n(len(x))
        if self.components is None:
            return Features(basis(rows_of(x)))
        return Features(leading(layer_of(x).spectrum, self.components).contiguous())

    def compare(self, a: State, b: State) -> float:
        wide, narrow = cast(Features, a).values, cast(Features, b).values
        if wide.shape[1] < narrow.shape[1]:
            wide, narrow = narrow, wide
        if narrow.shape[1] == 0:
            return math.nan
        overlap = wide.T @ narrow
        cosines = torch.linalg.svdvals(overlap)
        sines = torch.linalg.svdvals(narrow - wide @ overlap).flip(0)  # ascending, as the angles are
        small = cosines**2 > 0.5
        angles = torch.where(small, sines.clamp(max=1).asin(), cosines.clamp(max=1).acos())
        return float(ANGLE_SUMS[self.form](angles))


ANGLE_SUMS: dict[str, Callable[[Tensor], Tensor]] = {
    "arc": torch.linalg.vector_norm,
    "chordal": lambda angles: torch.linalg.vector_norm(angles.sin()),
    "largest": torch.amax,
}


@dataclass(frozen=True)
class EigenspaceOverlap(Bilinear):
    """Eigenspace overlap: the shared part of the spans of two layers, over the larger of their dimensions.

    s = |U_X^T U_Y|_F^2 / max(r_X, r_Y), with U the left singular vectors, r_X and r_Y of them: the mean squared cosine
    of the principal angles where both dimensions are equal.

    Parameters
    ----------
    components : None for every direction up to the numerical rank, how many (a whole number), or the share of the
        sum of squares to keep, in (0, 1).
    center : take off the column means first. Without it (default, as published) the mean direction counts.

    Shapes (n, d1) and (n, d2). Range [0, 1]. Two random subspaces of dimension r score r / n, and with d >= n all
    scores are 1. Invariant to orthogonal maps, isotropic scale and column order; with center to translation; with all
    components to every invertible linear map. nan for a constant representation.
    Raises RepalignError unless n >= components + 2.

    Source: May et al. 2019 (arXiv 1909.01264). The outside implementation that we know divides by the
    larger number of features instead, which is the same at full rank and cannot reach 1 when n < d. With `components`
    and `center` it is the similarity of matrices index (Indahl et al. 2018, orthogonal projection).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 20))
    >>> round(EigenspaceOverlap()(x, x[:, :5]), 12)
    0.25
    """

    components: int | float | None = None
    center: bool = False

    family: ClassVar[str] = "subspace"
    cost: ClassVar[str] = "n d min(n, d) + n^2 r per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("eigenspace_overlap", "eos")
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.components is not None:
            object.__setattr__(self, "components", checked_components(self.components))
        check_flag("center", self.center)

    @property
    def invariances(self) -> frozenset[str]:
        return span_invariances(self.components) | ({"translation"} if self.center else frozenset())

    @property
    def min_n(self) -> int:
        return least_n(self.components)

    def prepare(self, x: Tensor) -> DenseRelation:
        self.check_n(len(x))
        if self.components is None:
            return projection(basis(rows_of(x, self.center)), x.dtype)
        found = layer_of(x).spectrum if self.center else spectrum(x, center=False)
        return projection(leading(found, self.components), x.dtype)

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        shared, ranks = shared_dimensions(super().scale(inner, a, b), a, b)
        return shared / torch.maximum(*ranks)


def projection(vectors: Tensor, dtype: torch.dtype) -> DenseRelation:
    """U U^T (n, n) for orthonormal U (n, r) as a relation of unit norm; its own norm is sqrt(r)."""
    rank = vectors.shape[1]
    return DenseRelation((gram(vectors) / math.sqrt(max(rank, 1))).to(dtype), math.sqrt(rank))


def shared_dimensions(
    inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """|U_X^T U_Y|_F^2 of projections, from their inner product at unit norm, and the dimensions of both sides."""
    r, q = (torch.tensor([round(s.norm**2) for s in side], dtype=torch.float64) for side in (a, b))
    return inner * (r[:, None] * q[None, :]).sqrt(), (r[:, None], q[None, :])


def span_invariances(components: Components) -> frozenset[str]:
    """What leaves the span of the leading components alone; the span of all of them survives more."""
    common = frozenset({"orthogonal", "isotropic_scale", "permutation"})
    return common | {"column_scale", "invertible"} if components is None else common


def checked_components(components: int | float) -> int | float:
    """A count of components as an int, or a share of variance in (0, 1)."""
    if not isinstance(components, float):
        return as_count("components", components)
    if not 0 < components < 1:
        raise RepalignError(
            "components is neither a count nor a share",
            expected="a whole number >= 1, or a share of variance in (0, 1)",
            got=repr(components),
        )
    return components


def least_n(components: Components) -> int:
    """With n = components + 1 stimuli both sides span everything; one more is the least that says something."""
    return components + 2 if isinstance(components, int) else 3


def leading(found: Spectrum, components: Components) -> Tensor:
    """The singular vectors (n, c) to the largest values: `components` of them, or the fewest with that share."""
    vectors, values, _ = found
    if components is None:
        return vectors
    if isinstance(components, int):
        return vectors[:, :components]
    share = (values * values).cumsum(0) / (values * values).sum()
    return vectors[:, : int((share < components).sum()) + 1]


def standardized_spectrum(x: Tensor) -> Spectrum:
    """The spectrum of the features at unit variance each; constant features stay zero."""
    features, unit, *_ = centred(x)
    deviation = features.std(dim=0)
    features = features / torch.where(deviation > 0, deviation, 1.0)
    vectors, values = left_singular(features)
    rank = int((values > torch.finfo(x.dtype).eps * frobenius(features)).sum())
    return Spectrum(vectors[:, :rank], values[:rank], unit)


def _padded(states: Sequence[Features]) -> Tensor:
    """All bases as one (l, n, r) tensor; columns of zeros add singular values of zero."""
    most = max(1, *(s.values.shape[1] for s in states))
    pad = [torch.nn.functional.pad(s.values, (0, most - s.values.shape[1])) for s in states]
    return torch.stack(pad)


def _counts(states: Sequence[State]) -> Tensor:
    return torch.tensor([cast(Features, s).values.shape[1] for s in states], dtype=torch.float64)


MEASURES = (SVCCA, GrassmannDistance, EigenspaceOverlap)
