"""Many tests at once: family-wise error and false discovery rate over the pairs of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from repalign.null.calibration import TIE_TOLERANCE, snap_ties
from repalign.null.search import step_down


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (family-wise error, any dependence); nan stays nan and is not counted."""

    def adjust(q: np.ndarray) -> np.ndarray:
        order = np.argsort(q, kind="stable")
        stepped = np.maximum.accumulate(q[order] * np.arange(len(q), 0, -1))
        out = np.empty_like(q)
        out[order] = np.minimum(stepped, 1.0)
        return out

    return _over_defined(p, adjust)


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values (false discovery rate, independent or positively dependent tests).

    nan stays nan and is not counted.
    """
    from scipy.stats import false_discovery_control

    return _over_defined(p, lambda q: false_discovery_control(q, method="bh"))


def benjamini_yekutieli(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Benjamini-Yekutieli adjusted p-values (false discovery rate, any dependence); nan stays nan, not counted."""
    from scipy.stats import false_discovery_control

    return _over_defined(p, lambda q: false_discovery_control(q, method="by"))


def _over_defined(p: Sequence[float] | np.ndarray, adjust: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    p = np.asarray(p, float)
    out = np.full(p.shape, np.nan)
    defined = ~np.isnan(p)
    if defined.any():
        out[defined] = adjust(p[defined])
    return out


def max_t(observed: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Step-down maxT p-values over pairs of models (family-wise error), from joint draws.

    observed (P,), draws (P, K): draw k is one relabelling of all models. Every pair is studentised over its draws and
    the observed score, so that pairs with more layers or wider nulls do not decide the maximum. It knows how the pairs
    depend on each other, which Holm's rule does not. nan stays nan and is not counted; undefined draws (nan or infinite)
    count as exceedances.
    """
    out = np.full(observed.shape, np.nan)
    defined = ~np.isnan(observed)
    if not defined.any():
        return out
    scores, values = observed[defined], snap_ties(observed[defined], draws[defined].T)
    lost = ~np.isfinite(values)
    pool = np.concatenate([np.where(lost, np.nan, values), scores[None]])
    mean, sd = np.nanmean(pool, axis=0), np.nanstd(pool, axis=0)
    varies = sd > TIE_TOLERANCE * np.nanmax(np.abs(pool), axis=0)
    unit = np.where(varies, sd, 1.0)
    standard = np.where(varies, (np.where(lost, 0.0, values) - mean) / unit, 0.0)
    out[defined] = step_down(np.where(varies, (scores - mean) / unit, 0.0), np.where(lost, np.inf, standard))
    return out


def multiplicity_warning(n_draws: int, n_tests: int, alpha: float) -> str | None:
    """A sentence where this many draws can never satisfy Holm over this many tests; else None."""
    needed = math.ceil(n_tests / alpha - 1e-9) - 1
    if n_draws >= needed:
        return None
    return (
        f"{n_draws} draws give p >= {1 / (n_draws + 1):.2g}: Holm over {n_tests} pairs at alpha = {alpha:g} can reject "
        f"nothing with fewer than {needed} draws. Use more draws, or read the maxT or Benjamini-Hochberg column."
    )
