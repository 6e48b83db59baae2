"""The search over pairs of layers: which aggregate, its own null from the same draws, and a p-value per layer pair.

Layers differ in their chance level, so the largest raw score is mostly that of the pair of layers with the highest
chance level, in the data and in every draw. Studentised, all cells speak in units of their own null.

Sources: Groeger, Wen, Brbic 2026 (arXiv 2602.14486), algorithm 2 (the raw maximum); Westfall & Young 1993 for the
step-down p-values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from repalign.errors import RepalignError, did_you_mean
from repalign.null.calibration import TIE_TOLERANCE, Calibration, calibrate, least_tie, snap_ties

SCALES = ("studentised", "raw")
AGGREGATES = ("max", "mean", "top-k", "rows", "columns", "matching")

Cells = tuple[np.ndarray, np.ndarray]  # row and column indices


@dataclass(frozen=True)
class Search:
    """How the layers of two models are searched.

    scale : "studentised", (T - mean) / sd of each cell over its draws and the observed score, or "raw".
    aggregate : "max", the best cell; "mean" of all cells; "top-k", the mean of the `k` best; "rows", the mean over the
        layers of x of their best partner; "columns", the same for the layers of y; "matching", the mean over the best
        one-to-one matching of layers (Hungarian algorithm).

    >>> str(Search.parse("studentised")), str(Search.parse("raw top-5"))
    ('studentised max', 'raw top-5')
    """

    scale: str = "studentised"
    aggregate: str = "max"
    k: int = 1

    @classmethod
    def parse(cls, text: str | Search) -> Search:
        """From words: "studentised", "raw", "studentised top-5", "raw rows", "matching"."""
        if isinstance(text, Search):
            return text
        words = text.split()
        scale = words.pop(0) if words and words[0] in SCALES else SCALES[0]
        name = " ".join(words) or "max"
        top = re.fullmatch(r"top-([1-9]\d*)", name)
        if top:
            return cls(scale, "top-k", int(top[1]))
        if name not in AGGREGATES or name == "top-k":
            raise RepalignError(
                f"unknown layer search {text!r}",
                expected="'studentised' or 'raw', and one of max, mean, top-5 (any number), rows, columns, matching",
                got=text,
                remedy=did_you_mean(text, (*SCALES, *(a for a in AGGREGATES if a != "top-k"), "top-5")),
            )
        return cls(scale, name)

    def __str__(self) -> str:
        return f"{self.scale} {f'top-{self.k}' if self.aggregate == 'top-k' else self.aggregate}"

    def chosen(self, scores: np.ndarray) -> Cells:
        """The cells of one (la, lb) matrix over which the aggregate is the mean; first in row order among equals."""
        la, lb = scores.shape
        if self.aggregate == "mean":
            return tuple(np.indices(scores.shape).reshape(2, -1))  # type: ignore[return-value]
        if self.aggregate == "rows":
            return np.arange(la), scores.argmax(axis=1)
        if self.aggregate == "columns":
            return scores.argmax(axis=0), np.arange(lb)
        if self.aggregate == "matching":
            from scipy.optimize import linear_sum_assignment

            return linear_sum_assignment(scores, maximize=True)
        count = min(self.k if self.aggregate == "top-k" else 1, scores.size)
        best = np.argsort(-scores, axis=None, kind="stable")[:count]
        return np.unravel_index(best, scores.shape)  # type: ignore[return-value]

    def aggregated(self, scores: np.ndarray) -> np.ndarray:
        """The aggregate of every matrix of a stack (K, la, lb): (K,)."""
        if self.aggregate == "matching":
            return np.array([s[self.chosen(s)].mean() for s in scores])
        if self.aggregate == "top-k":
            flat = scores.reshape(len(scores), -1)
            count = min(self.k, flat.shape[1])
            return np.partition(flat, flat.shape[1] - count, axis=1)[:, -count:].mean(axis=1)
        simple: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "max": lambda s: s.max(axis=(1, 2)),
            "mean": lambda s: s.mean(axis=(1, 2)),
            "rows": lambda s: s.max(axis=2).mean(axis=1),
            "columns": lambda s: s.max(axis=1).mean(axis=1),
        }
        return simple[self.aggregate](scores)


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found, and what chance gives to the same search.

    `layer_x`, `layer_y` index the best of the chosen cells (-1 where no score is defined). `calibration` is of the
    search as a whole: its statistic is the mean raw score over the chosen cells (for "max" the score at the best cell),
    and its null is told in the same unit. `draws` (K,) are that null. `stepdown` (la, lb) is the step-down family-wise
    p-value of every cell.
    """

    layer_x: int
    layer_y: int
    calibration: Calibration
    draws: np.ndarray
    stepdown: np.ndarray


def search_layers(
    observed: np.ndarray,
    draws: np.ndarray,
    *,
    how: Search | str = "studentised",
    alpha: float = 0.05,
    s_max: float = 1.0,
) -> Found:
    """Search the layer pairs and hold the result against the same search in every draw.

    observed (la, lb), draws (K, la, lb), one relabelling of the stimuli per draw for all cells. Studentised, mean and sd
    of a cell are taken over the draws *and* the observed score, so that the observed score is treated as every draw is
    and the test stays exact. Layers whose scores are all undefined are left out.
    """
    search = Search.parse(how)
    defined = ~np.isnan(observed)
    rows, columns = np.flatnonzero(defined.any(axis=1)), np.flatnonzero(defined.any(axis=0))
    stepdown = np.full(observed.shape, np.nan)
    if not len(rows):
        nothing = np.full(len(draws), np.nan)
        return Found(-1, -1, calibrate(math.nan, nothing, alpha=alpha, s_max=s_max), nothing, stepdown)
    within = np.ix_(rows, columns)
    scores, values, unit = _on_one_scale(observed[within], draws[:, rows][:, :, columns], search.scale)
    stepdown[within] = np.where(
        defined[within], step_down(scores.ravel(), values.reshape(len(values), -1)).reshape(scores.shape), np.nan
    )
    chosen = search.chosen(scores)
    best = int(np.argmax(scores[chosen]))
    i, j = int(rows[chosen[0][best]]), int(columns[chosen[1][best]])
    # An affine map with a positive slope: the p-value is that of the aggregate, the unit that of the raw scores.
    raw, aggregate = float(observed[within][chosen].mean()), search.aggregated(scores[None])[0]
    in_units = raw + float(unit[chosen].mean()) * (search.aggregated(values) - aggregate)
    return Found(i, j, calibrate(raw, in_units, alpha=alpha, s_max=s_max), in_units, stepdown)


def _on_one_scale(observed: np.ndarray, draws: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observed scores and draws as the search sees them, and the raw size of one unit of each cell.

    An undefined score is below all others, an undefined draw of a defined score above all others.
    """
    undefined = np.isnan(observed)
    draws = snap_ties(observed, draws)
    if scale == "raw":
        unit = np.ones_like(observed)
    else:
        pool = len(draws) + 1
        mean = (np.nansum(draws, axis=0) + observed) / pool
        draws -= mean
        observed = observed - mean
        sd = np.sqrt((np.nansum(np.square(draws), axis=0) + observed**2) / pool)
        largest = np.abs(mean) + np.nanmax(np.abs(draws), axis=0, initial=0.0)
        varies = sd > TIE_TOLERANCE * largest
        unit = np.where(varies, sd, 0.0)
        # A score that no relabelling changes says nothing: it stands at its mean.
        draws *= np.where(varies, 1 / np.where(varies, sd, 1.0), 0.0)
        observed = np.where(varies, observed / np.where(varies, sd, 1.0), 0.0)
    lost = np.isnan(draws)
    if lost.any():
        draws[lost] = np.inf
    if undefined.any():
        draws[:, undefined] = -np.inf
    return np.where(undefined, -np.inf, observed), draws, unit


def step_down(observed: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Westfall and Young's step-down p-values of M scores (M,) with joint draws (K, M).

    In decreasing order of the observed scores, p_j = (1 + #{draws with max over the scores not yet stepped past >=
    observed_j}) / (K + 1), made monotone. The family-wise error is held at any level if all hypotheses are true, and
    for any subset that is true as long as its scores have the law that the draws give them (subset pivotality).
    A draw of one score may equal another score in exact arithmetic: ties are decided with a tolerance, as everywhere.
    Undefined draws count as exceedances.
    """
    draws = np.where(np.isnan(draws), np.inf, draws)
    order = np.argsort(observed, kind="stable")
    running = np.maximum.accumulate(draws[:, order], axis=1)
    p = (1 + (running >= least_tie(observed, draws)[order]).sum(axis=0)) / (len(draws) + 1)
    out = np.empty(len(observed))
    out[order] = np.maximum.accumulate(p[::-1])[::-1]
    return out
