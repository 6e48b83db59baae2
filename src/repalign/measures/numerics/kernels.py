"""Kernels of one layer and their centring: what CKA, HSIC and their kin prepare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import FEATURES, RDM, Given, Kernel
from repalign.measures.measure import DenseRelation, Relation
from repalign.measures.numerics.checks import check_choice
from repalign.measures.numerics.distances import between_rows
from repalign.measures.numerics.precision import centred, gram, scaled
from repalign.measures.numerics.sharing import layer_of

KERNELS = ("linear", "rbf", "laplacian", "quadratic", "cubic")

# Rules for sigma^2 from the squared distances (n, n), zero diagonal included.
BANDWIDTHS: dict[str, Callable[[np.ndarray], float]] = {
    "median": lambda squared: float(np.median(squared[np.triu_indices(len(squared), 1)])),
    "median_all": lambda squared: float(np.median(squared)),
    "median_all_lower": lambda squared: float(np.sort(squared, axis=None)[(squared.size - 1) // 2]),
}
# The rules that a kernel knows, its default first.
RULES: dict[str, tuple[str, ...]] = {
    "linear": (),
    "rbf": tuple(BANDWIDTHS),
    "laplacian": tuple(BANDWIDTHS),
    "quadratic": ("variance",),
    "cubic": ("variance",),
}

# What changes no kernel but by one factor.
ISOMETRIES = frozenset({"orthogonal", "translation", "permutation"})

# A relation whose norm is below this many roundings of what it was computed from has vanished.
RESIDUE = 16


def checked_bandwidth(kernel: str, bandwidth: float | str | None) -> float | str | None:
    """None for a linear kernel; else a positive float or a rule, by default the first one of the kernel."""
    check_choice("kernel", kernel, KERNELS)
    rules = RULES[kernel]
    if not rules:
        if bandwidth is not None:
            raise RepalignError(
                "a linear kernel has no bandwidth",
                expected="bandwidth=None with kernel='linear'",
                got=f"bandwidth={bandwidth!r}",
                remedy="use kernel='rbf', or leave bandwidth out",
            )
        return None
    if bandwidth is None:
        return rules[0]
    if isinstance(bandwidth, str):
        return check_choice("bandwidth", bandwidth, rules)
    if not isinstance(bandwidth, (int, float)) or isinstance(bandwidth, bool) or not 0 < bandwidth < math.inf:
        raise RepalignError(
            "bandwidth is not a positive number or a rule",
            expected=f"sigma > 0, or one of {', '.join(rules)}",
            got=repr(bandwidth),
        )
    return float(bandwidth)


def takes_of(kernel: str) -> frozenset[str]:
    """What else a layer may be given as: the kernel of a linear measure itself, or the distances of one that is made of them."""
    by_pairs = {"linear": {Kernel.kind}, "rbf": {RDM.kind}, "laplacian": {RDM.kind}}
    return frozenset({FEATURES, *by_pairs.get(kernel, ())})


def kernel_relation(x: Given, kernel: str, bandwidth: float | str | None, debiased: bool) -> DenseRelation:
    """The centred kernel of a layer (n, d) at unit norm: double centred, or U-centred with zero diagonal (debiased).

    `norm` is that of the centred kernel in the unit of the features, 0 if it vanishes.
    """
    if kernel == "linear" and isinstance(x, Tensor):
        layer = layer_of(x)
        matrix, unit = layer.gram.clone(), layer.centred.unit * layer.centred.unit
        size = float(matrix.diagonal().sum(dtype=torch.float64))  # the trace bounds its rounding
    else:
        matrix, unit = _kernel(x, kernel, bandwidth)
        size = float(torch.linalg.vector_norm(matrix))
    floor = RESIDUE * torch.finfo(matrix.dtype).eps * size
    if debiased:
        u_centre(matrix)
    elif kernel != "linear" or isinstance(x, Kernel):  # the Gram matrix of centred rows is so already
        double_centre(matrix)
    relation = DenseRelation.of(matrix.to(x.dtype), floor=floor)
    return relation if relation.norm == 0 else replace(relation, norm=in_range(relation.norm * unit))


class _Scaled(NamedTuple):
    """A matrix in float64, and the unit that was divided out."""

    matrix: Tensor
    unit: float


def _kernel(x: Given, kernel: str, bandwidth: float | str | None) -> _Scaled:
    """The kernel (n, n) before it is centred, up to a constant."""
    if isinstance(x, Kernel):
        return _Scaled(*scaled(x.matrix))
    return _of_products(x, kernel, bandwidth) if kernel in _POLYNOMIALS else _of_distances(x, kernel, bandwidth)


def _of_distances(x: Given, kernel: str, bandwidth: float | str | None) -> _Scaled:
    """k(D / sigma) - 1 (n, n); all zero if sigma is.

    The constant -1 drops out in centring, and keeps the digits of kernels that are nearly constant.
    """
    squared, unit = between_rows(x)
    rule = BANDWIDTHS.get(str(bandwidth))
    sigma = math.sqrt(rule(squared.cpu().numpy())) if rule else float(bandwidth or 0) / unit
    if sigma == 0:
        return _Scaled(torch.zeros_like(squared), 1.0)
    distances = squared.sqrt_().div_(sigma)
    exponents = distances.neg_() if kernel == "laplacian" else distances.square_().div_(-2)
    return _Scaled(*scaled(exponents.expm1_()))


# (1 + t)^p - 1 = t (a + b t + c t^2), by name.
_POLYNOMIALS = {"quadratic": (2.0, 1.0, 0.0), "cubic": (3.0, 3.0, 1.0)}


def _of_products(x: Given, kernel: str, bandwidth: float | str | None) -> _Scaled:
    """(1 + c_i . c_j / sigma^2)^p - 1 (n, n) for the centred rows c; all zero if sigma is.

    With g = 1 / sigma^2 in the unit of the rows, g or g^p is divided out, so that no scale overflows or vanishes.
    """
    assert isinstance(x, Tensor)
    features, unit, *_ = centred(x)
    matrix = gram(features)
    if isinstance(bandwidth, str):
        variance = float(matrix.diagonal().mean())
        g = 1 / variance if variance > 0 else 0.0
    else:
        ratio = unit / (bandwidth or 1.0)
        g = ratio * ratio
    a, b, c = _POLYNOMIALS[kernel]
    if g <= 1:
        return _Scaled(matrix * ((c * g * g * matrix + b * g) * matrix + a), g)
    h = 1 / g
    if kernel == "quadratic":
        return _Scaled(matrix * (b * matrix + a * h), g * g)
    return _Scaled(matrix * ((c * matrix + b * h) * matrix + a * h * h), g * g * g)


def double_centre(matrix: Tensor) -> None:
    """H A H of a symmetric matrix in place, sums in float64."""
    rows = matrix.mean(dim=1, dtype=torch.float64)
    shift = (rows - rows.mean() / 2).to(matrix.dtype)
    matrix.sub_(shift[:, None]).sub_(shift[None, :])


def u_centre(matrix: Tensor) -> None:
    """U-centring of a symmetric matrix in place (Szekely & Rizzo 2014): zero diagonal, off-diagonal row sums 0."""
    n = len(matrix)
    matrix.fill_diagonal_(0)
    rows = matrix.sum(dim=1, dtype=torch.float64) / (n - 2)
    shift = (rows - rows.sum() / (2 * (n - 1))).to(matrix.dtype)
    matrix.sub_(shift[:, None]).sub_(shift[None, :]).fill_diagonal_(0)


def norm_products(a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
    """|A_l| |B_m| in the unit of the features, (la, lb)."""
    first, second = (torch.tensor([s.norm for s in states], dtype=torch.float64) for states in (a, b))
    return first[:, None] * second[None, :]


def in_range(norm: float) -> float:
    """A norm in the unit of the features, kept positive and finite: 0 means that the kernel vanished."""
    limits = torch.finfo(torch.float64)
    return min(max(norm, limits.tiny), limits.max)
