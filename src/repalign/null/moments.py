"""Closed-form moments for every cell, a sampler for the search over layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from repalign.errors import RepalignError
from repalign.measures._base import Measure, State
from repalign.moments import central_moments, moment_sums
from repalign.null.base import ONE_SIDE, Judgement, Null, Prepared, Streams, must_be_bilinear
from repalign.null.calibration import Calibration, calibrate, calibrate_by_moments
from repalign.null.groups import Groups
from repalign.null.search import Search, search_layers

# Where the Pearson type III law is not trusted.
MOMENTS_MIN_N = 20
MOMENTS_MAX_SKEWNESS = 1.0


@dataclass(frozen=True)
class Moments(Null):
    """Closed-form moments for every cell of a bilinear measure; `sampler` draws for the search over layers.

    Mean, standard deviation and skewness over all n! relabellings are exact (`repalign.moments`); p-value and threshold
    follow from the Pearson type III law. Where that law is known to be poor (n < 20, or |skewness| > 1: at skewness 2
    its .99 quantile is some 6 % off) a cell is judged by the sampler's draws instead, and the result says so.
    """

    method: ClassVar[str] = "moments"
    sampler: Null

    def __post_init__(self) -> None:
        if self.sampler.groups is not None:
            raise RepalignError(
                "closed-form moments are over all relabellings",
                expected="a null without groups",
                got=repr(self.sampler.groups),
                remedy="use null='permutation' with these groups",
            )

    @property
    def seed(self) -> int:  # type: ignore[override]
        return self.sampler.seed

    @property
    def groups(self) -> Groups | None:  # type: ignore[override]
        return None

    def count(self, n: int) -> int:
        return self.sampler.count(n)

    def prepare(self, measure: Measure, states: Sequence[State]) -> Prepared:
        must_be_bilinear(measure, "closed-form moments do not apply")
        inner = self.sampler.prepare(measure, states)
        sums = np.stack([moment_sums(s) for s in states])  # type: ignore[arg-type]
        return Prepared(inner.states, (inner, sums), inner.extra_bytes + sums.nbytes)

    def draws(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> np.ndarray:
        return self.sampler.draws(measure, a.extra[0], b.extra[0], streams)

    def scored(
        self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.sampler.scored(measure, a.extra[0], b.extra[0], streams)

    def joint(self, observed: np.ndarray, draws: np.ndarray, streams: Sequence[Streams], n: int) -> np.ndarray:
        return self.sampler.joint(observed, draws, streams, n)

    def moments(self, measure: Measure, a: Prepared, b: Prepared) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, standard deviation and skewness of the closeness, each (la, lb)."""
        bilinear = must_be_bilinear(measure, "closed-form moments do not apply")
        symmetric = all(s.symmetric for s in (*a.states, *b.states))  # type: ignore[attr-defined]
        mean, sd, skewness = central_moments(a.extra[1], b.extra[1], a.n, symmetric)

        def score(inner: np.ndarray) -> np.ndarray:
            return bilinear.closeness_scale(torch.from_numpy(inner), a.states, b.states).numpy()  # type: ignore[arg-type]

        return score(mean), score(mean + sd) - score(mean), skewness

    def judge(
        self,
        measure: Measure,
        a: Prepared,
        b: Prepared,
        *,
        how: Search | str = "studentised",
        alpha: float = 0.05,
        streams: Streams = ONE_SIDE,
    ) -> Judgement:
        observed, draws = self.scored(measure, a, b, streams)
        mean, sd, skewness = self.moments(measure, a, b)
        cells = calibrate_by_moments(observed, mean, sd, skewness, alpha=alpha, s_max=measure.s_max)
        poor = (np.abs(skewness) > MOMENTS_MAX_SKEWNESS) | (a.n < MOMENTS_MIN_N)
        if poor.any():
            drawn = calibrate(observed[poor], draws[:, poor], alpha=alpha, s_max=measure.s_max)
            for name in Calibration.__dataclass_fields__:
                getattr(cells, name)[poor] = getattr(drawn, name)
        return Judgement(
            cells=cells,
            cells_by=np.where(poor, self.sampler.method, self.method),
            found=search_layers(observed, draws, how=how, alpha=alpha, s_max=measure.s_max),
            search=Search.parse(how),
            search_by=self.sampler.method,
            n_draws=len(draws),
        )
