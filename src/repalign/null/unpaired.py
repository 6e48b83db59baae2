"""No null: for scores that do not know which row belongs to which, so that no relabelling changes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from repalign.measures.measure import Measure
from repalign.null.base import ONE_SIDE, Judgement, Null, Prepared, Streams
from repalign.null.calibration import Calibration
from repalign.null.groups import Groups
from repalign.null.search import Found, Search


@dataclass(frozen=True)
class Unpaired(Null):
    """Scores without a chance level: mean, z, p-value, threshold and calibrated score are nan.

    A measure of two unpaired summaries gives the same number for every relabelling; a p-value of 1 would be read as
    "not aligned", which nothing says.
    """

    method: ClassVar[str] = "none"
    seed: int = 0
    groups: Groups | None = None

    def count(self, n: int) -> int:  # noqa: ARG002
        return 0

    def draws(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> np.ndarray:  # noqa: ARG002
        return np.empty((0, len(a.states), len(b.states)))

    def judge(
        self,
        measure: Measure,
        a: Prepared,
        b: Prepared,
        *,
        how: Search | str = "studentised",
        alpha: float = 0.05,  # noqa: ARG002
        streams: Streams = ONE_SIDE,
    ) -> Judgement:
        observed, draws = self.scored(measure, a, b, streams)
        best = (-1, -1)
        if not np.isnan(observed).all():
            best = tuple(int(i) for i in np.unravel_index(np.nanargmax(observed), observed.shape))
        top = np.asarray(observed[best] if best[0] >= 0 else np.nan)
        found = Found(*best, _bare(top), draws.reshape(0), np.full_like(observed, np.nan))
        by = np.full(observed.shape, self.method, dtype=object)
        return Judgement(_bare(observed), by, found, Search.parse(how), self.method, 0)


def _bare(observed: np.ndarray) -> Calibration:
    nothing = (np.full_like(observed, np.nan) for _ in range(6))
    return Calibration(observed, *nothing)
