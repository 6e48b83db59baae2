"""The mean over pairs of models, with an interval that knows that pairs share models on both sides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from repalign.relate._crossed import Crossed, Units, shared, units_of
from repalign.relate._inference import LEVEL, Jackknife

UNITS = {"model": "models", "family": "families"}


@dataclass(frozen=True)
class PairMean:
    """The mean over the defined pairs, its interval, and how many units of each side it leaves out in turn.

    `unit_x` and `unit_y` are "model", "family", or None where a side has fewer than three units and is taken as it is;
    both None: no interval, nan. Where a model or a family stands on both sides, its pairs are one unit, told as x.
    """

    mean: float
    low: float
    high: float
    n_pairs: int
    n_undefined: int
    unit_x: str | None
    n_units_x: int
    unit_y: str | None
    n_units_y: int
    one_set: bool  # models of the two sides are one set of units

    def units(self) -> str:
        """What was left out in turn, in words; "" without an interval."""
        sides = ((self.unit_x, self.n_units_x, "x"), (self.unit_y, self.n_units_y, "y"))
        if self.one_set:
            return f"{self.n_units_x} {UNITS[self.unit_x]} on both sides" if self.unit_x else ""
        return " and ".join(f"{n} {UNITS[unit]} of side {side}" for unit, n, side in sides if unit)


def mean_of_pairs(
    pairs: pd.DataFrame, values: ArrayLike, families: Mapping[str, str] | None = None, level: float = LEVEL
) -> PairMean:
    """Mean of `values`, one per row of `pairs` (columns model_x, model_y), with the crossed jackknife of docs/trends.md.

    mean -+ t * sqrt(V), V summed over the sides that have at least three units; nan where no side has.
    """
    families, numbers = dict(families or {}), np.asarray(values, float)
    scores = Crossed.of(pairs.assign(statistic=numbers), "x").defined()
    defined = int(np.isfinite(numbers).sum())
    undefined = len(numbers) - defined
    if not defined:
        return PairMean(math.nan, math.nan, math.nan, 0, undefined, None, 0, None, 0, False)
    one_set = shared(scores, families)
    x, y = _units(scores, families, one_set)
    sides = [side for side in (x, y) if side is not None]
    jackknife = Jackknife(_mean(scores), tuple(tuple(_mean(scores, u) for u in side.members) for side in sides))
    low, high, _ = jackknife.interval(float, level)
    (kind_x, n_x), (kind_y, n_y) = ((side.kind, len(side)) if side else (None, 0) for side in (x, y))
    return PairMean(
        float(jackknife.full), float(low), float(high), defined, undefined, kind_x, n_x, kind_y, n_y, one_set
    )


def _units(scores: Crossed, families: Mapping[str, str], one_set: bool) -> tuple[Units | None, Units | None]:
    rows, columns = frozenset(scores.rows), frozenset(scores.columns)
    if one_set:
        return units_of((*scores.rows, *scores.columns), families, rows, columns, least=1), None
    return units_of(scores.rows, families, rows, least=1), units_of(scores.columns, families, columns, least=1)


def _mean(scores: Crossed, without: frozenset[str] = frozenset()) -> float | None:
    """The mean over the pairs that are left; None if there are none."""
    rows = np.array([name not in without for name in scores.rows])
    columns = np.array([name not in without for name in scores.columns])
    left = np.ix_(rows, columns)
    count = scores.count[left].sum()
    return float(scores.total[left].sum() / count) if count else None
