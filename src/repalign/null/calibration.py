"""What draws say about a score: p-value, threshold, calibrated score. The one place where they are made.

Source: Groeger, Wen, Brbic 2026 (arXiv 2602.14486), algorithm 1; ties are decided with a tolerance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repalign.errors import RepalignError
from repalign.measures.measure import Measure

# Draws closer to the observed score than this share of the scale count as equal to it. Float rounding is
# below 1e-6 of the largest score in float32; a null's standard deviation is some hundred times larger.
TIE_TOLERANCE = 1e-6
# A smaller p in closed form must not be owed to one stimulus in its place.
SMALL_P = 0.01
_NOTHING: Any = np.nan


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What chance says about scores of any shape: float64 arrays, all of the shape of the statistic.

    `statistic` observed score; `null_mean`, `null_std` of the draws; `z` = (statistic - mean) / std;
    `pvalue` = (1 + #{draw >= observed}) / (K + 1); `threshold` = the ceil((1 - alpha)(K + 1))-th smallest of
    the K draws and the observed score; `calibrated` = max((s - threshold) / (s_max - threshold), 0), so that
    calibrated > 0 exactly where pvalue <= alpha; nan where s_max is infinite. Undefined scores (nan) are nan
    throughout, and so is what is not given.
    """

    statistic: np.ndarray
    null_mean: np.ndarray = _NOTHING
    null_std: np.ndarray = _NOTHING
    z: np.ndarray = _NOTHING
    pvalue: np.ndarray = _NOTHING
    threshold: np.ndarray = _NOTHING
    calibrated: np.ndarray = _NOTHING

    def __post_init__(self) -> None:
        undefined = np.isnan(self.statistic)
        for name, values in vars(self).items():
            object.__setattr__(self, name, np.where(undefined, np.nan, np.asarray(values, float)))

    def told_by(self, measure: Measure) -> Calibration:
        """The same in the measure's own direction, from what chance says about its closeness."""
        turned = ("statistic", "null_mean", "threshold")
        return replace(self, **{name: measure.closeness(getattr(self, name)) for name in turned})


def snap_ties(observed: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Set draws that equal the observed score up to rounding to it exactly.

    Where relabelling leaves a score mathematically unchanged, rounding must not decide the p-value.
    """
    scale = np.maximum(np.abs(observed), _largest(draws))
    return np.where(np.abs(draws - observed) <= TIE_TOLERANCE * scale, observed, draws)



def _largest(draws: np.ndarray) -> np.ndarray:
    """The largest size of the draws of each score; undefined ones (nan or infinite) have none."""
    return np.abs(draws).max(axis=0, initial=0.0, where=np.isfinite(draws))


def least_tie(observed: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The least value that counts as equal to each of M scores (M,), where a draw of any may be held against any."""
    sizes = (np.abs(v).max(initial=0.0, where=np.isfinite(v)) for v in (observed, draws))
    return observed - TIE_TOLERANCE * max(sizes)


def pvalue(observed: np.ndarray | float, draws: np.ndarray) -> np.ndarray:
    """Right-tailed add-one p-value, (1 + #{draw >= observed}) / (K + 1), draws along axis 0.

    Ties are decided with a scale-aware tolerance and count as exceedances; so do undefined draws.
    """
    observed, draws = np.asarray(observed, float), np.asarray(draws, float)
    exceed = ~(snap_ties(observed, draws) < observed)
    p = (1 + exceed.sum(axis=0)) / (len(draws) + 1)
    return np.where(np.isnan(observed), np.nan, p)


def threshold(observed: np.ndarray | float, draws: np.ndarray, alpha: float) -> np.ndarray:
    """The order statistic of rank ceil((1 - alpha)(K + 1)) among the draws and the observed score."""
    observed, draws = np.asarray(observed, float), np.asarray(draws, float)
    pool = np.concatenate([snap_ties(observed, draws), observed[None]])
    pool = np.where(np.isnan(pool), np.inf, pool)  # undefined draws count as exceedances here too
    rank = math.ceil((1 - alpha) * len(pool))
    tau = np.partition(pool, rank - 1, axis=0)[rank - 1]
    return np.where(np.isnan(observed), np.nan, tau)


def calibrate(
    observed: np.ndarray | float, draws: np.ndarray, *, alpha: float = 0.05, s_max: float = 1.0
) -> Calibration:
    """Everything that draws say about observed scores; draws has one more, leading, axis."""
    observed, draws = np.asarray(observed, float), np.asarray(draws, float)
    if not 0 < alpha < 1:
        raise RepalignError("alpha is out of range", expected="0 < alpha < 1", got=alpha)
    if draws.shape[1:] != observed.shape or len(draws) < 1:
        raise RepalignError(
            "draws do not fit the observed scores",
            expected=f"shape (K, {', '.join(map(str, observed.shape))}) with K >= 1",
            got=f"shape {draws.shape}",
        )
    mean, std = _nan_moment(draws, np.nanmean), _nan_moment(draws, np.nanstd)
    tau = threshold(observed, draws, alpha)
    # Where all draws are the same up to rounding there is no spread to count in.
    scale = np.maximum(np.abs(observed), _largest(draws))
    std = np.where(std > TIE_TOLERANCE * scale, std, 0.0 * std)
    return _assemble(observed, mean, std, pvalue(observed, draws), tau, s_max)


def calibrate_by_moments(
    observed: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    skewness: np.ndarray,
    *,
    kurtosis: np.ndarray | None = None,
    rest: np.ndarray | None = None,
    kept: tuple[np.ndarray, np.ndarray] | None = None,
    step: np.ndarray | float = 0.0,
    alpha: float = 0.05,
    s_max: float = 1.0,
) -> Calibration:
    """The same from the moments of the null, by the Pearson type III law (a shifted gamma).

    pvalue = P(G >= z) and threshold = mean + std * G^-1(1 - alpha), G of mean 0, variance 1 and this skewness. Where the
    null's `kurtosis` (0 for a normal law) is larger than that of G, 1.5 skewness^2, G is the gamma law of that kurtosis: tails
    are what p-values are about. `rest` is what of the kurtosis no law explains: all of it may be one rare large value, so
    that p is at least rest / z^4 (Markov's inequality). `kept`, (shift, spread) of shape (m, ...) each in units of `std`, are
    those of laws where one stimulus stays in its place: a p below .01 must be so small by all of them. `step` is that between
    two scores where they are counts: z is taken half a step lower. A null without spread gives p = 1: the pairing does not
    matter to the score.
    """
    from scipy.stats import pearson3

    if kurtosis is not None:
        skewness = np.where(kurtosis > 1.5 * skewness**2, np.sqrt(np.maximum(kurtosis, 0) / 1.5), skewness)
    rest = np.zeros_like(skewness) if rest is None else np.maximum(rest, 0.0)
    # Where the score is the same under every relabelling up to rounding there is no spread to count in.
    std = np.where(std > TIE_TOLERANCE * np.maximum(np.abs(observed), np.abs(mean)), std, 0.0 * std)
    spread, centre = std > 0, mean + 0.5 * np.asarray(step)
    z = np.where(spread, (observed - centre) / np.where(spread, std, 1.0), 0.0)
    shift, spreads = kept if kept is not None else (np.zeros((0, *np.shape(std))),) * 2
    nearest = np.minimum(z, ((z - shift) / np.where(spreads > 0, spreads, 1.0)).min(axis=0, initial=np.inf))
    tail = pearson3.sf(np.nan_to_num(z), skewness)
    tail = np.where(tail < SMALL_P, np.minimum(pearson3.sf(np.nan_to_num(nearest), skewness), SMALL_P), tail)
    # No relabelling test gives p = 0: far beyond its support the law underflows.
    tail = np.maximum(tail, np.finfo(float).tiny)
    tail = np.maximum(tail, np.minimum(1.0, rest / np.where(z > 0, z, np.inf) ** 4))
    least = pearson3.ppf(1 - alpha, skewness)
    if alpha < SMALL_P:
        least = np.maximum(least, (shift + np.where(spreads > 0, spreads, 1.0) * least).max(axis=0, initial=-np.inf))
    tau = centre + std * np.maximum(least, (rest / alpha) ** 0.25)
    # At the threshold itself rounding must not part the p-value from the gate.
    p = np.where(observed > tau, np.minimum(tail, alpha), np.maximum(tail, np.nextafter(alpha, 1)))
    p = np.where(np.isnan(observed), np.nan, np.where(spread, p, 1.0))
    return _assemble(observed, mean, std, p, np.where(spread, tau, np.maximum(tau, observed)), s_max)


def _assemble(
    observed: np.ndarray, mean: np.ndarray, std: np.ndarray, p: np.ndarray, tau: np.ndarray, s_max: float
) -> Calibration:
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(std > 0, (observed - mean) / std, np.nan)
        room = s_max - tau
        gain = np.clip((observed - tau) / room, 0.0, 1.0)
    # Nothing above the threshold is attainable when the threshold is the maximum itself.
    # No scale of 0 to 1 without a largest score.
    calibrated = np.where(observed > tau, np.where(room > 0, gain, 1.0), 0.0) if np.isfinite(s_max) else np.nan
    return Calibration(
        statistic=observed, null_mean=mean, null_std=std, z=z, pvalue=p, threshold=tau, calibrated=calibrated
    )


def _nan_moment(draws: np.ndarray, moment: Any) -> np.ndarray:
    """A moment over the defined draws of axis 0; nan, without a warning, where there is none."""
    known = np.isfinite(draws)
    empty = ~known.any(axis=0)
    return np.where(empty, np.nan, moment(np.where(empty, 0.0, np.where(known, draws, np.nan)), axis=0))
