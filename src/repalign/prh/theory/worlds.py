"""Worlds of discrete events whose co-occurrence is known, and what a modality sees of them.

Source: Huh, Cheung, Wang, Isola 2024, section 4.1. Natural logarithms throughout: PMI and information are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from repalign.errors import RepalignError

__all__ = [
    "Representability", "World", "circle", "cooccurrence", "embedding", "mixed", "proposition_f1", "representability", "ring",
    "torus",
]  # fmt: skip

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class World:
    """N discrete events z and how probable it is that two of them co-occur.

    joint: array of shape (N, N), P(z_a, z_b): positive, symmetric, sum 1 (float64). A zero would make PMI minus
    infinity, so it is refused: mix in some independence (`mixed`) or smooth the counts (`sample`).
    """

    joint: Array
    name: str = "world"

    def __post_init__(self) -> None:
        p = np.asarray(self.joint, dtype=np.float64)
        if p.ndim != 2 or p.shape[0] != p.shape[1] or len(p) < 2:
            raise RepalignError(f"the joint of {self.name}", expected="shape (N, N), N >= 2", got=f"shape {p.shape}")
        if not np.isfinite(p).all() or p.min() <= 0:
            raise RepalignError(
                f"the joint of {self.name} has pairs that never co-occur: PMI is undefined there",
                expected="finite probabilities above 0",
                got=f"{int((~(p > 0)).sum())} of {p.size} entries are not above 0",
                remedy="mix in independence (mixed(joint, 1e-3)) or smooth the counts",
            )
        if abs(p.sum() - 1) > 1e-9 or np.abs(p - p.T).max() > 1e-12:
            got = f"sum {p.sum():.6g}, largest asymmetry {np.abs(p - p.T).max():.2g}"
            remedy = "World(joint + joint.T) / sum"
            raise RepalignError(f"the joint of {self.name}", expected="symmetric, sum 1", got=got, remedy=remedy)
        object.__setattr__(self, "joint", p)

    @property
    def n_events(self) -> int:
        return len(self.joint)

    @cached_property
    def marginal(self) -> Array:
        """P(z), shape (N,)."""
        return self.joint.sum(axis=1)

    @cached_property
    def independent(self) -> Array:
        """P(z_a) P(z_b), shape (N, N): where negatives come from."""
        return np.outer(self.marginal, self.marginal)

    @cached_property
    def pmi(self) -> Array:
        """K_PMI(a, b) = log P(a, b) / (P(a) P(b)), shape (N, N), in nats."""
        return np.log(self.joint / self.independent)

    @property
    def entropy(self) -> float:
        """H(Z) = -sum P log P, in nats."""
        return float(-(self.marginal * np.log(self.marginal)).sum())

    @property
    def information(self) -> float:
        """I = sum P(a, b) K_PMI(a, b), in nats: what one event says about another that co-occurs with it."""
        return float((self.joint * self.pmi).sum())

    def view(self, labels: Sequence[int] | np.ndarray, name: str = "view") -> World:
        """The world that a modality sees: event z is observed as the symbol labels[z].

        labels: (N,) integers 0 .. M - 1, each used. All different (M = N): a bijective view, the same world under
        other names. Otherwise the view is lossy, and the co-occurrence of symbols is the sum over their events.
        """
        one_hot = self._one_hot(labels)
        return World(one_hot.T @ self.joint @ one_hot, name)

    def lifted(self, kernel: Array, labels: Sequence[int] | np.ndarray) -> Array:
        """A kernel (M, M) between symbols of a view, as a kernel (N, N) between the events behind them."""
        self._one_hot(labels)
        a = np.asarray(labels)
        return kernel[a[:, None], a]

    def _one_hot(self, labels: Sequence[int] | np.ndarray) -> Array:
        a = np.asarray(labels)
        if a.shape != (self.n_events,) or a.dtype.kind not in "iu" or set(a.tolist()) != set(range(int(a.max()) + 1)):
            raise RepalignError(
                f"the labels of a view of {self.name}",
                expected=f"{self.n_events} integers from 0 on, none left out",
                got=f"shape {a.shape}, dtype {a.dtype}, {len(set(a.ravel().tolist()))} different ones",
            )
        return np.eye(int(a.max()) + 1)[a]

    def sample(self, n_pairs: int, *, seed: int, smoothing: float = 0.5) -> World:
        """The world as n_pairs independent co-occurring pairs show it.

        Counts over ordered pairs are drawn from the joint, made symmetric, and `smoothing` is added to every entry of
        the (N, N) table before it is normalised (0.5: Jeffreys' prior; the paper does not speak of finite samples).
        """
        if n_pairs < 1 or smoothing <= 0:
            raise RepalignError("a sample of a world", expected="n_pairs >= 1, smoothing > 0", got=f"{n_pairs}, {smoothing}")
        drawn = np.random.default_rng(seed).multinomial(n_pairs, self.joint.ravel() / self.joint.sum())
        counts = drawn.reshape(self.joint.shape).astype(np.float64)
        counts = (counts + counts.T) / 2 + smoothing
        return World(counts / counts.sum(), f"{self.name}, {n_pairs} pairs")


def cooccurrence(transition: Array, window: int) -> Array:
    """P_coor(a, b) proportional to the sum over |t - t'| <= window of P(Z_t = a, Z_t' = b), shape (N, N), sum 1.

    transition: (N, N), rows sum to 1, of a stationary chain. It must be reversible: otherwise the two directions of
    time differ and their mean is taken (the sum runs over both). The term t = t' is counted, once, as the paper's sum
    has it. Errors: a matrix that is no transition matrix; window < 1; a chain without a single stationary law.
    """
    t = np.asarray(transition, dtype=np.float64)
    square = t.ndim == 2 and t.shape[0] == t.shape[1]
    if not square or t.min() < 0 or np.abs(t.sum(axis=1) - 1).max() > 1e-9 or window < 1:
        raise RepalignError("a chain of events", expected="rows that sum to 1 and window >= 1", got=f"{t.shape}, {window}")
    values, vectors = np.linalg.eig(t.T)
    one = np.flatnonzero(np.abs(values - 1) < 1e-9)
    if len(one) != 1:
        raise RepalignError("a chain of events", expected="one stationary law", got=f"{len(one)}", remedy="connect its parts")
    law = np.abs(np.real(vectors[:, one[0]]))
    flow = np.diag(law / law.sum())
    ahead = sum((flow @ np.linalg.matrix_power(t, k) for k in range(1, window + 1)), np.zeros_like(t))
    total = flow + ahead + ahead.T
    total = (total + total.T) / 2
    return total / total.sum()


def mixed(joint: Array, share: float) -> Array:
    """(1 - share) P(a, b) + share P(a) P(b): the same marginals, and no pair that never co-occurs."""
    marginal = joint.sum(axis=1)
    return (1 - share) * joint + share * np.outer(marginal, marginal)


# --- worlds ----------------------------------------------------------------------------------------


def circle(n: int = 12, kappa: float = 2.0) -> World:
    """Events at n even angles of a circle, P proportional to exp(kappa cos(difference of angles)).

    Marginals are uniform and K_PMI = kappa cos(difference) - log(mean exp(kappa cos)): up to that constant it is the
    inner product of f(z) = sqrt(kappa) (cos, sin), so d = 2 is exact. HKH has two eigenvalues kappa n / 2, others 0.
    """
    return _normalised(kappa * _cosines(n), f"circle of {n}")


def torus(n: tuple[int, int] = (8, 8), kappa: tuple[float, float] = (2.0, 1.0)) -> World:
    """Events with two independent properties, each a circle: event i * n[1] + j has the properties i and j.

    K_PMI is the sum of the two circles', so d = 4 is exact; a view may see one property, or either coarsely.
    """
    first = np.kron(kappa[0] * _cosines(n[0]), np.ones((n[1], n[1])))
    second = np.kron(np.ones((n[0], n[0])), kappa[1] * _cosines(n[1]))
    return _normalised(first + second, f"torus of {n[0]} x {n[1]}")


def ring(n: int = 12, stay: float = 0.5, window: int = 3, mixing: float = 1e-3) -> World:
    """A walk on a ring: it stays with probability `stay`, else one step to either side; co-occurrence within `window`.

    `mixing` is the share of independence without which far events never co-occur. Its K_PMI is not positive
    semidefinite with any constant unless it mixes much: no f with <f, f> = K_PMI + c exists.
    """
    if n < 3 or not 0 <= stay < 1 or not 0 < mixing <= 1:
        raise RepalignError("a ring", expected="n >= 3, 0 <= stay < 1, 0 < mixing <= 1", got=f"n={n}, stay={stay}, mixing={mixing}")
    eye = np.eye(n)
    step = (np.roll(eye, 1, axis=0) + np.roll(eye, -1, axis=0)) / 2
    return World(mixed(cooccurrence(stay * eye + (1 - stay) * step, window), mixing), f"ring of {n}, mixing {mixing:g}")


def _cosines(n: int) -> Array:
    angle = 2 * np.pi * np.arange(n) / n
    return np.cos(angle[:, None] - angle[None, :])


def _normalised(logits: Array, name: str) -> World:
    p = np.exp(logits - logits.max())
    p = (p + p.T) / 2
    return World(p / p.sum(), name)


# --- can a kernel be an inner product? --------------------------------------------------------------


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
