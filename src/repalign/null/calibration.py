"""P-values, thresholds and calibrated scores: of one score from its draws or moments, and of many at once.

Sources: Groeger, Wen, Brbic 2026 (arXiv 2602.14486), algorithm 1; Westfall & Young 1993 for the step-down p-values and the
maximum over pairs of models. Ties are decided with a tolerance everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from repalign.errors import RepalignError

__all__ = [
    "TIE_TOLERANCE", "Calibration", "adjusted", "benjamini_hochberg", "benjamini_yekutieli", "calibrate", "calibrate_by_moments",
    "holm", "max_t", "pvalue", "snap_ties", "step_down", "threshold",
]  # fmt: skip

# Draws closer to the observed score than this share of the scale count as equal to it. Float rounding is
# below 1e-6 of the largest score in float32; a null's standard deviation is some hundred times larger.
TIE_TOLERANCE = 1e-6
BLOCK = 2**17  # draws of many scores that are worked on at once: they stay in the processor's cache
MANY = 256  # draws of a score, from which on a step of Python for each score costs less than it saves
# A smaller p in closed form must not be owed to one stimulus in its place.
SMALL_P = 0.01
Array = np.ndarray | float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Scores held against chance: float64 arrays, all of the shape of the statistic.

    `statistic` observed score; `null_mean`, `null_std` of the draws; `z` = (statistic - mean) / std;
    `pvalue` = (1 + #{draw >= observed}) / (K + 1); `threshold` = the ceil((1 - alpha)(K + 1))-th smallest of
    the K draws and the observed score; `calibrated` = max((s - threshold) / (s_max - threshold), 0), so that
    calibrated > 0 exactly where pvalue <= alpha; nan where s_max is infinite. Undefined scores (nan) are nan
    throughout, and so is what is not given.
    """

    statistic: np.ndarray
    null_mean: np.ndarray
    null_std: np.ndarray
    z: np.ndarray
    pvalue: np.ndarray
    threshold: np.ndarray
    calibrated: np.ndarray

    @classmethod
    def of(
        cls, statistic: Array, null_mean: Array = np.nan, null_std: Array = np.nan, pvalue: Array = np.nan,
        threshold: Array = np.nan, s_max: float = np.inf,
    ) -> Calibration:  # fmt: skip
        """All of it, with z and the calibrated score, which follow from the rest; s_max is the largest score."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(null_std > 0, (statistic - null_mean) / null_std, np.nan)
            room = s_max - threshold
            gain = np.clip((statistic - threshold) / room, 0.0, 1.0)
        # Nothing above the threshold is attainable when the threshold is the maximum itself.
        # No scale of 0 to 1 without a largest score.
        calibrated = np.where(statistic > threshold, np.where(room > 0, gain, 1.0), 0.0) if np.isfinite(s_max) else np.nan
        found = {"null_mean": null_mean, "null_std": null_std, "z": z, "pvalue": pvalue, "threshold": threshold}
        undefined, found = np.isnan(statistic), {"statistic": statistic, **found, "calibrated": calibrated}
        return cls(**{name: np.where(undefined, np.nan, np.asarray(v, float)) for name, v in found.items()})

    def at(self, where: Any) -> Calibration:
        """That of some of the scores, by an index of numpy."""
        return Calibration(**{name: values[where] for name, values in vars(self).items()})

    def in_direction_of(self, measure: Any) -> Calibration:
        """What was said of closeness in the measure's own direction, or back again."""
        return replace(self, **{name: measure.closeness(getattr(self, name)) for name in ("statistic", "null_mean", "threshold")})


def snap_ties(observed: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Set draws that equal the observed score up to rounding to it exactly.

    Where relabelling leaves a score mathematically unchanged, rounding must not decide the p-value.
    """
    return _snapped(observed, draws, TIE_TOLERANCE * _largest(observed, draws, np.isfinite(draws)))


def _largest(observed: np.ndarray, draws: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The largest size of each observed score and of those of its draws that are known."""
    return np.maximum(np.abs(observed), np.abs(draws).max(axis=0, initial=0.0, where=known))


def _snapped(observed: np.ndarray, draws: np.ndarray, tie: np.ndarray) -> np.ndarray:
    apart = draws - observed
    return np.where(np.abs(apart, out=apart) <= tie, observed, draws)


def pvalue(observed: Array, draws: np.ndarray) -> np.ndarray:
    """Right-tailed add-one p-value, (1 + #{draw >= observed}) / (K + 1), draws along axis 0.

    Ties are decided with a scale-aware tolerance and count as exceedances; so do undefined draws.
    """
    return calibrate(observed, draws).pvalue


def threshold(observed: Array, draws: np.ndarray, alpha: float) -> np.ndarray:
    """The order statistic of rank ceil((1 - alpha)(K + 1)) among the draws and the observed score."""
    return calibrate(observed, draws, alpha=alpha).threshold


def calibrate(observed: Array, draws: np.ndarray, *, alpha: float = 0.05, s_max: float = 1.0) -> Calibration:
    """Everything that draws say about observed scores; draws has one more, leading, axis."""
    observed, draws = np.asarray(observed, float), np.asarray(draws, float)
    if not 0 < alpha < 1:
        raise RepalignError("alpha is out of range", expected="0 < alpha < 1", got=alpha)
    if draws.shape[1:] != observed.shape or len(draws) < 1:
        wanted = f"shape (K, {', '.join(map(str, observed.shape))}) with K >= 1"
        raise RepalignError("draws do not fit the observed scores", expected=wanted, got=f"shape {draws.shape}")
    known = np.isfinite(draws)
    if known.all():  # the same to the last digit, without a mask
        mean, std = draws.mean(axis=0), draws.std(axis=0)
    else:
        none = ~known.any(axis=0)
        pool = np.where(none, 0.0, np.where(known, draws, np.nan))
        mean, std = (np.where(none, np.nan, moment(pool, axis=0)) for moment in (np.nanmean, np.nanstd))
    # Where all draws are the same up to rounding there is no spread to count in.
    tie = TIE_TOLERANCE * _largest(observed, draws, known)
    std = np.where(std > tie, std, 0.0 * std)
    snapped = _snapped(observed, draws, tie)
    pool = np.concatenate([snapped, observed[None]])
    pool = np.where(np.isnan(pool), np.inf, pool)  # undefined draws count as exceedances here too
    rank = math.ceil((1 - alpha) * len(pool))
    p = (1 + (~(snapped < observed)).sum(axis=0)) / len(pool)  # undefined draws are no smaller than anything
    return Calibration.of(observed, mean, std, p, np.partition(pool, rank - 1, axis=0)[rank - 1], s_max)


def calibrate_by_moments(
    observed: np.ndarray, mean: np.ndarray, std: np.ndarray, skewness: np.ndarray, kurtosis: np.ndarray | None = None,
    rest: np.ndarray | None = None, kept: tuple[np.ndarray, np.ndarray] | None = None, step: np.ndarray | float = 0.0, *,
    alpha: Array = 0.05, s_max: float = 1.0,
) -> Calibration:  # fmt: skip
    """The same from the moments of the null, by the Pearson type III law (a shifted gamma).

    pvalue = P(G >= z) and threshold = mean + std * G^-1(1 - alpha), G of mean 0, variance 1 and this skewness. Where the
    null's `kurtosis` (0 for a normal law) is larger than that of G, 1.5 skewness^2, G is the gamma law of that kurtosis: tails
    are what p-values are about. `rest` is what of the kurtosis no law explains: all of it may be one rare large value, so
    that p is at least rest / z^4 (Markov's inequality). `kept`, (shift, spread) of shape (m, ...) each in units of `std`, are
    those of laws where one stimulus stays in its place: a p below .01 must be so small by all of them. `step` is that between
    two scores where they are counts: z is taken half a step lower. A null without spread gives p = 1: the pairing does not
    matter to the score.
    """
    if kurtosis is not None:
        skewness = np.where(kurtosis > 1.5 * skewness**2, np.sqrt(np.maximum(kurtosis, 0) / 1.5), skewness)
    rest = np.zeros_like(skewness) if rest is None else np.maximum(rest, 0.0)
    # Where the score is the same under every relabelling up to rounding there is no spread to count in.
    std = np.where(std > TIE_TOLERANCE * np.maximum(np.abs(observed), np.abs(mean)), std, 0.0 * std)
    spread, centre = std > 0, mean + 0.5 * np.asarray(step)
    z = np.where(spread, (observed - centre) / np.where(spread, std, 1.0), 0.0)
    shift, spreads = kept if kept is not None else (np.zeros((0, *np.shape(std))),) * 2
    nearest = np.minimum(z, ((z - shift) / np.where(spreads > 0, spreads, 1.0)).min(axis=0, initial=np.inf))
    upper_tail, quantile = pearson3(skewness)
    tail = upper_tail(np.nan_to_num(z))
    tail = np.where(tail < SMALL_P, np.minimum(upper_tail(np.nan_to_num(nearest)), SMALL_P), tail)
    # No relabelling test gives p = 0: far beyond its support the law underflows.
    tail = np.maximum(tail, np.finfo(float).tiny)
    tail = np.maximum(tail, np.minimum(1.0, rest / np.where(z > 0, z, np.inf) ** 4))
    least = quantile(1 - alpha)
    by_all = np.maximum(least, (shift + np.where(spreads > 0, spreads, 1.0) * least).max(axis=0, initial=-np.inf))
    least = np.where(alpha < SMALL_P, by_all, least)
    tau = centre + std * np.maximum(least, (rest / alpha) ** 0.25)
    # At the threshold itself rounding must not part the p-value from the gate.
    p = np.where(observed > tau, np.minimum(tail, alpha), np.maximum(tail, np.nextafter(alpha, 1)))
    p = np.where(np.isnan(observed), np.nan, np.where(spread, p, 1.0))
    return Calibration.of(observed, mean, std, p, np.where(spread, tau, np.maximum(tau, observed)), s_max)


def pearson3(skewness: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[float], np.ndarray]]:
    """Pearson's type III law with mean 0 and variance 1: P(Z >= z) of z, and the z with P(Z <= z) = p of p.

    A gamma law of shape 4 / skewness^2, shifted and scaled, or the normal one. As `scipy.stats.pearson3`, without the half second
    that importing `scipy.stats` takes.
    """
    from scipy.special import gammainc, gammaincc, gammaincinv, ndtr, ndtri

    skewed = np.abs(skewness) >= 1.6e-5  # below, digits cancel
    scale = 2 / np.where(skewed, skewness, 1.0)
    shape, right = scale * scale, scale > 0
    x = lambda z: np.maximum(scale * z + shape, 0.0)  # noqa: E731
    above = lambda z: np.where(right, gammaincc(shape, x(z)), gammainc(shape, x(z)))  # noqa: E731
    least = lambda p: (gammaincinv(shape, np.where(right, p, 1 - p)) - shape) / scale  # noqa: E731
    return lambda z: np.where(skewed, above(z), ndtr(-z)), lambda p: np.where(skewed, least(p), ndtri(p))


# --- many scores at once -------------------------------------------------------------------------


def step_down(observed: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Westfall and Young's step-down p-values of M scores (M,) with joint draws (K, M).

    In decreasing order of the observed scores, p_j = (1 + #{draws with max over the scores not yet stepped past >=
    observed_j}) / (K + 1), made monotone. The family-wise error is held at any level if all hypotheses are true, and
    for any subset that is true as long as its scores have the law that the draws give them (subset pivotality).
    A draw of one score may equal another score in exact arithmetic: ties are decided with a tolerance, as everywhere.
    Undefined draws count as exceedances.
    """
    # Where the draws of a score lie side by side, all are looked at as they are.
    blocks = [draws] if draws.flags.f_contiguous else [draws[at] for at in _few(len(draws), len(observed))]
    return _stepped(observed, blocks, max((_size(v) for v in blocks), default=0.0))


def _stepped(observed: np.ndarray, blocks: Iterable[np.ndarray], largest: float) -> np.ndarray:
    """The same from some draws at a time, of which no finite one is larger."""
    tie = TIE_TOLERANCE * max(_size(observed), largest)  # a draw of any score may be held against any score
    order, n_draws = np.argsort(observed, kind="stable"), 0
    least, count = (observed - tie)[order], np.zeros(len(observed), int)
    for some in blocks:
        values = np.ascontiguousarray(some.T)  # a step then takes all draws
        if np.isnan(values.sum()):
            values = np.where(np.isnan(values), np.inf, values)
        count += _reached(values, order, least)
        n_draws += len(some)
    p = (1 + count) / (n_draws + 1)
    out = np.empty(len(observed))
    out[order] = np.maximum.accumulate(p[::-1])[::-1]
    return out


def _reached(values: np.ndarray, order: np.ndarray, least: np.ndarray) -> np.ndarray:
    """In how many draws (M, k) the largest of the first so many in this order is at least `least`, (M,)."""
    if values.shape[1] < MANY:
        running = values[order]
        return (np.maximum.accumulate(running, axis=0, out=running) >= least[:, None]).sum(axis=1)
    running, count = np.full(values.shape[1], -np.inf), np.empty(len(order), int)
    for i, j in enumerate(order):  # row by row numpy takes a tenth of the time that `accumulate` takes
        count[i] = np.count_nonzero(np.maximum(running, values[j], out=running) >= least[i])
    return count


def _few(n_draws: int, scores: int) -> list[slice]:
    """Some draws at a time: all of them would be held twice."""
    few = max(1, BLOCK // max(1, scores))
    return [slice(start, start + few) for start in range(0, n_draws, few)]


def _size(values: np.ndarray) -> float:
    """The largest size of those that are finite."""
    ends = values.max(initial=0.0), values.min(initial=0.0)
    return max(ends[0], -ends[1]) if np.isfinite(ends).all() else float(np.abs(values).max(initial=0.0, where=np.isfinite(values)))


def max_t(observed: np.ndarray, draws: np.ndarray | Callable[[slice], Iterable[np.ndarray]]) -> np.ndarray:
    """Step-down maxT p-values over pairs of models (family-wise error), from joint draws.

    observed (P,), draws (P, K), or what gives, for some of the K, blocks of these pairs in their order, which are never all
    there at once: draw k is one relabelling of all models. Every pair is studentised over its draws and the observed score, so
    that pairs with more layers or wider nulls do not decide the maximum. It knows how the pairs depend on each other, which
    Holm's rule does not. nan stays nan and is not counted; undefined draws (nan or infinite) count as exceedances.
    """
    blocks = draws if callable(draws) else lambda at: [draws[:, at]]
    out, defined = np.full(observed.shape, np.nan), ~np.isnan(observed)
    if not defined.any():
        return out
    units, largest, stop, n_draws = [], 0.0, 0, 0
    for block in blocks(slice(None)):
        start, stop, n_draws = stop, stop + len(block), block.shape[1]
        here = defined[start:stop]
        units.append((here, _Units(observed[start:stop][here], block[here].T)))
        largest = max(largest, _size(units[-1][1].of(block[here].T)))
    scores = np.concatenate([unit.of(unit.scores) for _, unit in units])
    each = (
        np.concatenate([unit.of(block[here].T) for (here, unit), block in zip(units, blocks(at), strict=True)], axis=1)
        for at in _few(n_draws, len(scores))
    )
    out[defined] = _stepped(scores, each, largest)
    return out


class _Units:
    """The units of scores (p,) and their draws (K, p): the spread of both, from their mean."""

    def __init__(self, scores: np.ndarray, draws: np.ndarray) -> None:
        self.scores, self.tie = scores, TIE_TOLERANCE * _largest(scores, draws, np.isfinite(draws))
        values = _snapped(scores, draws, self.tie)
        pool = np.concatenate([np.where(np.isfinite(values), values, np.nan), scores[None]])
        self.mean, sd = np.nanmean(pool, axis=0), np.nanstd(pool, axis=0)
        self.varies = sd > TIE_TOLERANCE * np.nanmax(np.abs(pool), axis=0)
        self.unit = np.where(self.varies, sd, 1.0)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Scores or draws in these units; inf for an undefined one."""
        values = _snapped(self.scores, values, self.tie)
        known = np.isfinite(values)
        return np.where(known, np.where(self.varies, (np.where(known, values, 0.0) - self.mean) / self.unit, 0.0), np.inf)


def adjusted(p: Sequence[float] | np.ndarray, rule: str) -> np.ndarray:
    """Adjusted p-values; nan stays nan and is not counted.

    rule : "holm", Holm's step-down, holds the family-wise error under any dependence; "bh", Benjamini and Hochberg's, the
        false discovery rate of independent or positively dependent tests; "by", Benjamini and Yekutieli's, under any dependence.
    """
    p = np.asarray(p, float)
    out, defined = np.full(p.shape, np.nan), ~np.isnan(p)
    order = np.argsort(p[defined], kind="stable")
    q, ranks = p[defined][order], np.arange(1, len(order) + 1)
    if rule == "holm":
        stepped = np.maximum.accumulate(q * ranks[::-1])
    else:
        dependence = (1 / ranks).sum() if rule == "by" else 1.0
        stepped = np.minimum.accumulate((q * len(q) / ranks * dependence)[::-1])[::-1]
    out[defined] = np.minimum(stepped, 1.0)[np.argsort(order)]
    return out


holm, benjamini_hochberg, benjamini_yekutieli = (partial(adjusted, rule=rule) for rule in ("holm", "bh", "by"))
