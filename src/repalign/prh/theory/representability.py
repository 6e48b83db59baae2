"""Can a kernel be an inner product at all: <f, f> = K + c with some constant c?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repalign.errors import RepalignError
from repalign.prh.theory.world import Array

TOLERANCE = 1e-9  # relative to the largest eigenvalue in absolute value: float64 with a margin of 1e6


@dataclass(frozen=True)
class Representability:
    """What the spectrum of a kernel K, shape (N, N), says about f with <f(a), f(b)> = K(a, b) + c.

    lambda_min, lambda_max: eigenvalues of the centred kernel HKH, the direction of the constant vector left out.
    smallest_constant: the least c for which K + c 11' is positive semidefinite, infinity where there is none.
    rank: dimensions of f at that constant, 0 where there is none. sufficient: whether the conditions of the paper's
    Proposition F.1 hold (they are sufficient, not necessary).
    """

    lambda_min: float
    lambda_max: float
    smallest_constant: float
    rank: int
    sufficient: bool

    @property
    def exists(self) -> bool:
        return bool(np.isfinite(self.smallest_constant))


def representability(kernel: Array) -> Representability:
    """Whether f exists, for which constants, and in how many dimensions.

    With Q an orthonormal basis of what is orthogonal to 1, M = Q'KQ, v = Q'K1 / sqrt(N) and s = 1'K1 / N, K + c 11' is
    positive semidefinite if and only if M is, v lies in the range of M, and c >= (v' M^+ v - s) / N (Schur complement).
    M has the eigenvalues of HKH. lambda_min >= 0 alone is necessary; it suffices where it is above zero, or where the
    rows of K have equal sums (v = 0), as in worlds that look the same from every event.
    Zero is |lambda| <= 1e-9 of the largest |lambda|. Error: a kernel that is not a finite symmetric matrix.
    """
    k = np.asarray(kernel, dtype=np.float64)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or not np.isfinite(k).all() or np.abs(k - k.T).max() > 1e-9:
        raise RepalignError("a kernel", expected="a finite symmetric matrix (N, N)", got=f"shape {k.shape}")
    n = len(k)
    one = np.full((n, 1), 1 / np.sqrt(n))
    q = np.linalg.qr(np.hstack([one, np.eye(n)[:, : n - 1]]))[0][:, 1:]  # (N, N - 1)
    values, vectors = np.linalg.eigh(q.T @ k @ q)
    zero = TOLERANCE * max(np.abs(values).max(), np.abs(k).max())
    across = vectors.T @ (q.T @ k @ one)[:, 0]
    positive = values > zero
    constant = np.inf
    if values[0] >= -zero and np.abs(across[~positive]).max(initial=0.0) <= np.sqrt(TOLERANCE) * np.abs(k).max():
        constant = float(((across[positive] ** 2 / values[positive]).sum() - (one.T @ k @ one).item()) / n)
    rank = int(positive.sum()) if np.isfinite(constant) else 0
    return Representability(float(values[0]), float(values[-1]), constant, rank, proposition_f1(k))


def proposition_f1(kernel: Array) -> bool:
    """Whether K_PMI fulfils Proposition F.1 of Huh et al. 2024.

    With log rho the least and log rho + delta the largest entry off the diagonal: the largest is at most 0, and every
    entry of the diagonal is at least N delta + log rho.
    """
    n = len(kernel)
    off = kernel[~np.eye(n, dtype=bool)]
    low, high = off.min(), off.max()
    return bool(high <= 0 and np.diag(kernel).min() >= n * (high - low) + low)


def embedding(kernel: Array, constant: float | None = None) -> Array:
    """f, shape (N, rank), with <f(a), f(b)> = K(a, b) + constant; the smallest constant if none is given.

    Exact, from the eigenvectors; f is unique up to a rotation. Error: no such f exists.
    """
    found = representability(kernel)
    c = found.smallest_constant if constant is None else constant
    slack = TOLERANCE * max(np.abs(kernel).max(), abs(c) if np.isfinite(c) else 1.0)
    if c < found.smallest_constant - slack or not found.exists:
        raise RepalignError(
            "this kernel is no inner product with that constant",
            expected="a constant of at least "
            f"{found.smallest_constant:.6g}" if found.exists else "a positive semidefinite centred kernel",
            got=f"{c:.6g}" if found.exists else f"its smallest eigenvalue is {found.lambda_min:.6g}",
            remedy="a larger constant" if found.exists else "two towers, <f(a), h(b)>, represent any kernel",
        )  # fmt: skip
    values, vectors = np.linalg.eigh(kernel + c)
    kept = values > TOLERANCE * np.abs(values).max()
    return vectors[:, kept] * np.sqrt(values[kept])
