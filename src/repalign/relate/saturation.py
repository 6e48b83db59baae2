"""Where does a trend end? s(x) = end - c x^-a by least squares, beside the straight line; no number far beyond the models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from repalign.errors import RepalignError

LEAST = 6  # models: three numbers are fitted, and a resample must still hold some
BEYOND = 2.0  # times the best model: as far as the curve is drawn, or told
DRAWS = 999
LEVEL = 0.95
CLEARLY = 2.0  # by which AICc must be smaller for the curve to be told from a straight line
GRID = np.geomspace(0.05, 12, 160)  # of a * ln(largest / smallest x); below, the curve is a straight line on the logarithm


@dataclass(frozen=True, eq=False)
class Saturation:
    """s(x) = end - c z^-a, with z = x, or 1 / x where the lower end is the better one; a > 0 and c > 0.

    `end` is the alignment that the curve goes to, `low` and `high` its 95 % interval, by resampling models: `high` is infinite
    where more than 2.5 % of the resamples do not bend, `unbounded` is their share. `aicc` and `line_aicc` are of the curve and of
    the straight line (the trend's own, on the logarithm or not): `line_does` where the curve is not clearly better. `limit` is the
    x up to which the curve may be read.
    """

    end: float
    low: float
    high: float
    c: float
    a: float
    aicc: float
    line_aicc: float
    unbounded: float
    bends: bool
    n: int
    lower_is_better: bool
    limit: float
    draws: int
    seed: int

    @property
    def line_does(self) -> bool:
        """Whether a straight line does as well."""
        return not self.bends or self.line_aicc - self.aicc < CLEARLY

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The curve at x. RepalignError beyond twice the best model: nothing was seen there."""
        x = np.asarray(x, float)
        far = x < self.limit if self.lower_is_better else x > self.limit
        if far.any():
            sign = ">=" if self.lower_is_better else "<="
            raise RepalignError(
                "the curve is asked for far beyond the models", expected=f"x {sign} {self.limit:g}",
                got=f"{x[far][0]:g}", remedy="no model was seen there; add models",
            )  # fmt: skip
        return self.end - self.c * np.where(self.lower_is_better, 1 / x, x) ** -self.a


def saturation(
    x: ArrayLike, y: ArrayLike, *, log: bool, lower_is_better: bool = False, draws: int = DRAWS, seed: int = 0
) -> Saturation | str:
    """Fit s(x) = end - c x^-a to the points of a trend; or why that cannot be done, in a sentence.

    For each a of a grid, end and c are least squares; the best a is refined by scipy's bounded minimiser. The interval resamples
    models (families are not told apart, so it errs to the narrow where these differ) and fits again. AICc has the residual variance
    as one more number of each.

    Parameters
    ----------
    x, y : of the models; x > 0.
    log : whether the straight line is on log10(x).
    lower_is_better : the better end of x, towards which the curve may saturate.
    draws, seed : resamples of the models.

    >>> x = np.geomspace(1, 100, 12)
    >>> found = saturation(x, 0.5 - 0.3 * x**-0.8, log=True)
    >>> round(found.end, 6), round(found.a, 6), found.line_does
    (0.5, 0.8, False)
    """
    from scipy.optimize import minimize_scalar

    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(np.unique(x)) < LEAST:
        return f"No saturating curve: {len(np.unique(x))} different values, and {LEAST} are needed."
    if not (x > 0).all():
        return "No saturating curve: it needs positive values."
    z = 1 / x if lower_is_better else x
    centre = math.exp(float(np.log(z).mean()))
    z = z / centre
    span = float(np.log(z.max() / z.min()))
    powers = z[:, None] ** -(GRID / span)  # (n, grid)
    error = _fits(powers, y, np.ones((1, len(y))))[0]
    if not np.isfinite(error).any():
        return "No saturating curve: alignment does not rise towards the better end."
    k = int(error[0].argmin())

    def at(exponent: float) -> tuple[float, float, float]:
        some, end, slope = _fits(z[:, None] ** -exponent, y, np.ones((1, len(y))))
        return float(some[0, 0]), float(end[0, 0]), float(slope[0, 0])

    around = GRID[max(k - 1, 0)] / span, GRID[min(k + 1, len(GRID) - 1)] / span
    refined = minimize_scalar(lambda a: at(a)[0], bounds=around, method="bounded", options={"xatol": 1e-10})
    a = float(refined.x) if refined.fun <= error[0, k] else GRID[k] / span
    squares, end, slope = at(a)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=draws).astype(float)
    some, their_ends, _ = _fits(powers, y, weights)
    best = np.where(np.isfinite(some), some, np.inf).argmin(1)
    straight = (best == 0) | ~np.isfinite(some).any(1)
    drawn = np.where(straight, np.inf, their_ends[np.arange(draws), best])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], method="higher")
    line_x = np.log10(x) if log else x
    line = np.polynomial.Polynomial.fit(line_x, y, 1)
    line_squares = float(((line(line_x) - y) ** 2).sum())
    limit = x.min() / BEYOND if lower_is_better else x.max() * BEYOND
    return Saturation(
        end, float(low), float(high), slope * centre**a, a, _aicc(squares, len(x), 3), _aicc(line_squares, len(x), 2),
        float(straight.mean()), k > 0, len(x), lower_is_better, float(limit), draws, seed,
    )  # fmt: skip


def _fits(powers: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[Any, Any, Any]:
    """Weighted least squares of y on 1 and -power, for each row of weights (w, n) and column of powers (n, g): sums of squares (inf
    where the curve would fall), ends, and c, all (w, g)."""
    total = weights.sum(1, keepdims=True)
    mean_p, mean_y = weights @ powers / total, (weights @ y)[:, None] / total
    spread = weights @ powers**2 - total * mean_p**2
    joint = (weights * y) @ powers - total * mean_p * mean_y
    of_y = (weights @ y**2)[:, None] - total * mean_y**2
    slope = -np.divide(joint, spread, out=np.full(spread.shape, np.nan), where=spread > 1e-12 * (weights @ powers**2))
    squares = np.maximum(of_y + slope * joint, 0)
    return np.where(slope > 0, squares, np.inf), mean_y + slope * mean_p, slope


def _aicc(squares: float, n: int, numbers: int) -> float:
    """n ln(squares / n) + 2 p + 2 p (p + 1) / (n - p - 1), with the variance among the p numbers."""
    p = numbers + 1
    return n * math.log(max(squares, 1e-300) / n) + 2 * p + (2 * p * (p + 1) / (n - p - 1) if n > p + 1 else math.inf)
