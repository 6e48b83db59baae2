"""Held-out folds of the rows, by position and a seed: the same rows are held out for every pair of layers.

Regressions from training rows to held-out rows, fitted to x once and used for every y: least squares, ridge, PLS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repalign.measures.measure import Measure, as_folds, as_seed, parameter
from repalign.measures.numerics.precision import full_precision
from repalign.measures.numerics.rows import SCRATCH_BYTES, largest_along


def held_out(n: int, folds: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training and held-out rows of every fold; those of scikit-learn's KFold(folds, shuffle=True, random_state=seed)."""
    order = np.arange(n)
    np.random.RandomState(seed).shuffle(order)
    for part in np.array_split(order, folds):
        mask = np.zeros(n, dtype=bool)
        mask[part] = True
        yield torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))


# Takes the targets of the training rows (without their mean) to predictions of the held-out rows (without an offset).
Predictor = Callable[[Tensor], Tensor]

ALPHAS = tuple(10.0**e for e in range(-8, 9))
# scikit-learn's rule for the end of the power iteration: the squared change of the weights, and the most steps.
POWER_TOLERANCE, POWER_STEPS = 1e-6, 500


@dataclass(frozen=True)
class HeldOut(Measure):
    """A measure that is fitted to some stimuli and judged on the others, fold by fold."""

    folds: int = parameter(5, as_folds)
    seed: int = parameter(0, as_seed)

    @property
    def min_n(self) -> int:
        return 2 * self.folds


def least_squares(train: Tensor, test: Tensor) -> Tensor:
    """The matrix (rows of test, rows of train) that takes centred targets in training to predictions, with an offset."""
    mean = train.mean(dim=0)
    vectors, values, axes = decomposed(train - mean)
    with full_precision():
        return ((test - mean) @ axes / values) @ vectors.T


def decomposed(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (n, r), s (r,), V (d, r) of rows = U diag(s) V^T, with the directions that are above rounding."""
    vectors, values, axes = torch.linalg.svd(rows, full_matrices=False)
    rank = int((values > torch.finfo(rows.dtype).eps * max(rows.shape) * values[0]).sum())
    rank = min(rank, len(rows) - 1)
    return vectors[:, :rank], values[:rank], axes[:rank].T


def ridge(train: Tensor, test: Tensor) -> Predictor:
    """Ridge regression with an offset, its alpha by leave-one-out error summed over all targets.

    With train = U diag(s) V^T, b = U^T y and D = alpha / (s^2 + alpha), the residual of row i left out is
    (y_i - U_i b + U_i D b) / c_i with c_i = 1 - 1/n - sum_j U_ij^2 (1 - D_j). Its sum of squares over all targets needs
    b b^T and the weighted Gram matrix of U alone, which is made once for all targets; where 17 of them would not fit the
    scratch memory the sum is taken row by row.
    """
    n = len(train)
    vectors, values, axes = decomposed(train)
    alphas = torch.tensor(ALPHAS, dtype=train.dtype, device=train.device)
    damped = alphas[:, None] / (values**2 + alphas[:, None])  # (alphas, r)
    complete = vectors.shape[1] == n - 1  # then every target is fitted, and the rest is rounding
    outside = 0 if complete else 1 - 1 / n - vectors.square().sum(dim=1, keepdim=True)
    weights = (vectors.square() @ damped.T + outside).pow(-2).T  # (alphas, n): 1 / c_i^2
    fits = 8 * len(weights) * vectors.shape[1] ** 2 <= SCRATCH_BYTES
    with full_precision():
        grams = [(vectors * w[:, None]).T @ vectors for w in weights] if fits else None
        coordinates = (test @ axes) * values

    def predict(y: Tensor) -> Tensor:
        with full_precision():
            b = vectors.T @ y
            if grams is None:
                rows = ((vectors * d) @ b for d in damped)
                errors = torch.stack([w @ e.square().sum(dim=1) for w, e in zip(weights, rows, strict=True)])
            else:
                squares = b @ b.T
                errors = torch.stack([(squares * g).mv(d) @ d for g, d in zip(grams, damped, strict=True)])
            if not complete:
                rest = y - vectors @ b
                cross = vectors * (rest @ b.T)  # (n, r)
                errors += weights @ rest.square().sum(dim=1) + 2 * ((weights @ cross) * damped).sum(dim=1)
            best = int(errors.argmin())
            return (coordinates / (values**2 + alphas[best])) @ b

    return predict


def pls(train: Tensor, test: Tensor, y: Tensor, components: int) -> Tensor:
    """Predictions of the test rows by PLS2 regression, through the cross-covariance alone (Dayal & MacGregor 1997)."""
    with full_precision():
        cross = train.T @ y  # (d, t), deflated component by component
        whole = float(torch.linalg.vector_norm(cross))
        loadings, rotations = [], []
        out = torch.zeros(len(test), y.shape[1], dtype=y.dtype, device=y.device)
        for _ in range(min(components, train.shape[1], len(train) - 1)):
            if not float(torch.linalg.vector_norm(cross)) > 1e-12 * whole:
                break
            direction = _leading(cross)
            rotation = direction.clone()
            for p, r in zip(loadings, rotations, strict=True):
                rotation -= (p @ direction) * r
            scores = train @ rotation
            length = scores @ scores
            loadings.append(train.T @ scores / length)
            rotations.append(rotation)
            shares = cross.T @ rotation / length
            cross -= length * torch.outer(loadings[-1], shares)
            out += torch.outer(test @ rotation, shares)
        return out


def _leading(cross: Tensor) -> Tensor:
    """The leading left singular vector of cross (d, t), by the power iteration that scikit-learn does on scores."""
    largest = largest_along(cross, 0)[0]
    start = cross[:, int((largest > torch.finfo(cross.dtype).eps * largest.amax()).to(torch.int8).argmax())]
    weights = start / torch.linalg.vector_norm(start)
    if cross.shape[1] == 1:
        return weights
    for _ in range(POWER_STEPS):
        previous, weights = weights, cross @ (cross.T @ weights)
        weights = weights / torch.linalg.vector_norm(weights)
        change = weights - previous
        if float(change @ change) < POWER_TOLERANCE:
            break
    return weights
