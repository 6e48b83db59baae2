"""Contrastive learners with a known optimum: the whole population is the batch, so that nothing is left to chance.

A critic g(a, b) scores a pair of events. A learner sees positives drawn from the co-occurrence P(a, b) and negatives
from P(a) P(b); the losses below are expectations over all pairs, in closed form, in float64.
Source: Huh et al. 2024, section 4.2 and appendix F.1 (eqs. 20-30).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial
from typing import Literal

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.prh.theory.worlds import Array, World

__all__ = ["CRITICS", "BinaryNCE", "InfoNCE", "Learned", "learn"]

Critic = Literal["tied", "towers", "free"]
POLISHED = 400  # parameters up to which the gradient's zero is looked for: the cost grows with their cube
CRITICS: tuple[Critic, ...] = ("tied", "towers", "free")


class Objective(ABC):
    """A loss over the critic's table g, shape (N, N)."""

    @abstractmethod
    def loss(self, g: Array, world: World) -> tuple[float, Array]:
        """The expected loss in nats, and its gradient (N, N)."""

    @abstractmethod
    def optimum(self, world: World) -> Array:
        """A table that minimises it over all tables."""


@dataclass(frozen=True)
class BinaryNCE(Objective):
    """Is the pair a positive or a negative? A share p_pos of what the learner sees is positive.

    L = p_pos E_P[-log s(g)] + (1 - p_pos) E_PxP[-log s(-g)], s the logistic function; its only optimum is
    g = K_PMI + log(p_pos / (1 - p_pos)) (eqs. 20-25). p_pos is between 0 and 1; 1/2 makes the constant zero.
    """

    p_pos: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.p_pos < 1:
            raise RepalignError("the share of positives", expected="0 < p_pos < 1", got=self.p_pos)

    @property
    def constant(self) -> float:
        """log(p_pos / (1 - p_pos)), what stands beside K_PMI at the optimum."""
        return float(np.log(self.p_pos / (1 - self.p_pos)))

    def loss(self, g: Array, world: World) -> tuple[float, Array]:
        positive, negative = self.p_pos * world.joint, (1 - self.p_pos) * world.independent
        value = (positive * np.logaddexp(0, -g) + negative * np.logaddexp(0, g)).sum()
        share = 0.5 * (1 + np.tanh(g / 2))  # s(g), without overflow
        return float(value), negative * share - positive * (1 - share)

    def optimum(self, world: World) -> Array:
        return world.pmi + self.constant


@dataclass(frozen=True)
class InfoNCE(Objective):
    """Which of K + 1 candidates co-occurs with a? One does, K are drawn from P; the scores are g / temperature.

    L = E[log(1 + sum_k exp((g(a, b_k) - g(a, b)) / temperature))]; every optimum is
    g = temperature (K_PMI + c(a)), any constant per row (eqs. 26-30, there with temperature 1).
    n_negatives: K; the expectation is exact, over all multisets of K events, so K is small. None is the limit of
    many: L - log K tends to E_P[-g / temperature] + E_a log E_b exp(g / temperature), whose minimum is minus the
    information I of the world.
    """

    temperature: float = 1.0
    n_negatives: int | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0 or (self.n_negatives is not None and self.n_negatives < 1):
            raise RepalignError(
                "InfoNCE", expected="temperature > 0 and n_negatives >= 1 or None",
                got=f"{self.temperature}, {self.n_negatives}",
            )  # fmt: skip

    def loss(self, g: Array, world: World) -> tuple[float, Array]:
        scores = g / self.temperature
        value, gradient = (self._limit if self.n_negatives is None else self._exact)(scores, world)
        return value, gradient / self.temperature

    @staticmethod
    def _limit(s: Array, world: World) -> tuple[float, Array]:
        top = s.max(axis=1, keepdims=True)
        weights = world.marginal * np.exp(s - top)
        total = weights.sum(axis=1, keepdims=True)
        value = (world.marginal * (np.log(total) + top)[:, 0]).sum() - (world.joint * s).sum()
        return float(value), world.marginal[:, None] * weights / total - world.joint

    def _exact(self, s: Array, world: World) -> tuple[float, Array]:
        counts, chance = multisets(world.marginal, int(self.n_negatives or 1))  # (M, N), (M,)
        e = np.exp(s - s.max(axis=1, keepdims=True))  # (N, N)
        others = e @ counts.T  # (N, M): sum over the negatives
        total = e[:, :, None] + others[:, None, :]  # (N, N, M)
        value = (world.joint[:, :, None] * chance * (np.log(total) - np.log(e)[:, :, None])).sum()
        inverse = chance / total
        own = world.joint * (e * inverse.sum(axis=2) - 1)
        drawn = np.einsum("ab,abm,mc->ac", world.joint, inverse, counts, optimize=True) * e
        return float(value), own + drawn

    def optimum(self, world: World) -> Array:
        return self.temperature * world.pmi


def multisets(marginal: Array, k: int) -> tuple[Array, Array]:
    """All multisets of k events as counts (M, N), and their probabilities (M,) when events are drawn independently."""
    counts, orders = _multisets(len(marginal), k)
    return counts, orders * np.prod(marginal**counts, axis=1)


@functools.lru_cache(maxsize=8)  # a learner asks for the same ones in every step
def _multisets(n: int, k: int) -> tuple[Array, Array]:
    """All multisets of k out of n events as counts (M, N), and in how many orders each can be drawn (M,)."""
    size = factorial(n + k - 1) // factorial(k) // factorial(n - 1)
    if size > 5000:
        raise RepalignError(
            f"InfoNCE with {k} negatives out of {n} events", expected="at most 5000 multisets", got=size,
            remedy="take fewer negatives, or n_negatives=None for the limit of many",
        )  # fmt: skip
    drawn = np.array(list(combinations_with_replacement(range(n), k)))
    counts = np.stack([(drawn == event).sum(axis=1) for event in range(n)], axis=1).astype(np.float64)
    orders = np.array([factorial(k) / np.prod([factorial(int(c)) for c in row]) for row in counts])
    for array in (counts, orders):
        array.flags.writeable = False  # whoever asks next has the same arrays
    return counts, orders


# --- learning --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Learned:
    """What a learner arrived at.

    kernel: (N, N), the critic g with its bias. f: (N, d), h: (N, d) of the second tower, None where there is none.
    loss, best_loss: nats, here and at the optimum over all tables; gap is their difference. gradient: the largest
    entry of the gradient in the parameters, from which one sees whether it has converged.
    """

    kernel: Array
    f: Array | None
    h: Array | None
    bias: float
    loss: float
    best_loss: float
    gradient: float

    @property
    def gap(self) -> float:
        return self.loss - self.best_loss

    def error(self, target: Array, *, up_to: Literal["nothing", "constant", "row"] = "nothing") -> float:
        """max |g - target|, after the mean difference (of the table, or of every row) has been taken away."""
        difference = self.kernel - target
        if up_to == "constant":
            difference = difference - difference.mean()
        elif up_to == "row":
            difference = difference - difference.mean(axis=1, keepdims=True)
        return float(np.abs(difference).max())


def learn(
    world: World, objective: Objective, critic: Critic = "tied", d: int = 2, *, bias: bool = True, seed: int = 0,
    starts: int = 3, max_steps: int = 20000, polish: bool = True,
) -> Learned:  # fmt: skip
    """Minimise the population loss over the critic, by L-BFGS from `starts` random beginnings; the lowest is kept.

    critic: "tied" is <f(a), f(b)> (+ b), the paper's; "towers" <f(a), h(b)> (+ b), as in CLIP; "free" any table (N, N).
    d: dimensions of f, ignored by no critic but "free", which has none. bias: whether the scalar b is learned (the
    paper has none: its c must then come from f, which only a positive one can).
    polish: the loss in float64 is flat to 1e-16 around its minimum, so that a pair of probability 1e-5 is known to 1e-5
    only; the zero of the gradient is sharper, and up to 400 parameters it is looked for from there (Levenberg-Marquardt).
    The problem in f is not convex, so the gap is an upper bound of the smallest one; it is of no consequence where
    the gap is zero. Deterministic for a given seed.
    """
    from scipy.optimize import least_squares, minimize

    choose("critic", critic, CRITICS)
    if d < 1 or starts < 1:
        raise RepalignError("a learner", expected="d >= 1 and starts >= 1", got=f"d={d}, starts={starts}")
    n = world.n_events
    rng = np.random.default_rng(seed)
    size = {"tied": n * d, "towers": 2 * n * d, "free": n * n}[critic]

    def evaluate(parameters: Array) -> tuple[float, Array]:
        value, slope = objective.loss(_table(parameters, critic, n, d), world)
        gradient = np.zeros_like(parameters)
        if critic == "free":
            gradient[:size] = slope.ravel()
        else:
            f, h = _towers(parameters, critic, n, d)
            into_f, into_h = slope @ h, slope.T @ f
            gradient[:size] = (into_f + into_h if critic == "tied" else np.stack([into_f, into_h])).ravel()
        gradient[size] = slope.sum() if bias else 0.0
        return value, gradient

    options = {"maxiter": max_steps, "maxfun": 2 * max_steps, "maxcor": 50, "ftol": 0.0, "gtol": 1e-13, "maxls": 60}
    best = None
    for _ in range(1 if critic == "free" else starts):
        begin = np.append(rng.standard_normal(size) / np.sqrt(d), 0.0)
        found = minimize(evaluate, begin, jac=True, method="L-BFGS-B", options=options)
        if best is None or found.fun < best.fun:
            best = found
    assert best is not None
    x, (loss, gradient) = best.x, evaluate(best.x)
    if polish and len(x) <= POLISHED:

        def slope(p: Array) -> Array:
            return evaluate(p)[1]

        def bend(p: Array) -> Array:
            """The Hessian, by central differences of the gradient."""
            steps = 1e-5 * np.eye(len(p))
            return np.stack([(slope(p + e) - slope(p - e)) / 2e-5 for e in steps], axis=1)

        tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "max_nfev": 15}
        closer = least_squares(slope, x, jac=bend, method="lm", **tight).x  # type: ignore[arg-type]
        lower, flatter = evaluate(closer)
        if lower <= loss + 1e-12 and np.abs(flatter).max() < np.abs(gradient).max():
            x, loss, gradient = closer, lower, flatter
    f, h = (None, None) if critic == "free" else _towers(x, critic, n, d)
    return Learned(
        _table(x, critic, n, d), f, None if critic == "tied" else h, float(x[size]), loss,
        objective.loss(objective.optimum(world), world)[0], float(np.abs(gradient).max()),
    )  # fmt: skip


def _towers(parameters: Array, critic: Critic, n: int, d: int) -> tuple[Array, Array]:
    f = parameters[: n * d].reshape(n, d)
    return f, f if critic == "tied" else parameters[n * d : 2 * n * d].reshape(n, d)


def _table(parameters: Array, critic: Critic, n: int, d: int) -> Array:
    if critic == "free":
        return parameters[:-1].reshape(n, n) + parameters[-1]
    f, h = _towers(parameters, critic, n, d)
    return f @ h.T + parameters[-1]
