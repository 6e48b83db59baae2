"""Random permutations, for every measure; restricted to groups on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from repalign.errors import RepalignError
from repalign.measures.measure import SCRATCH_BYTES, Measure, State
from repalign.null.groups import Groups
from repalign.null.null import ONE_SIDE, Null, Prepared, Streams, device_of


@dataclass(frozen=True)
class Permutations(Null):
    """Random permutations, drawn once from a seed and shared by all layers, models and measures.

    K = `n_draws` independent uniform permutations, of all stimuli or, with `groups`, of those that the groups allow.
    Valid for every measure; the p-value's floor is 1 / (K + 1).
    """

    name: ClassVar[str] = "permutation"
    n_draws: int = 199
    seed: int = 0
    groups: Groups | None = None

    def __post_init__(self) -> None:
        if self.n_draws < 1:
            raise RepalignError("a null without draws", expected="n_draws >= 1", got=self.n_draws)

    def count(self, n: int) -> int:  # noqa: ARG002
        return self.n_draws

    def permutations(self, n: int, stream: int = 1) -> np.ndarray:
        """The permutations of one stream, (K, n); those of stream 0 change nothing."""
        if stream == 0:
            return np.tile(np.arange(n), (self.n_draws, 1))
        # The first stream is the seed's own: one pair of models is relabelled alike alone and among others.
        generator = np.random.Generator(np.random.PCG64(self.seed if stream == 1 else [self.seed, stream]))
        if self.groups is None:
            return np.stack([generator.permutation(n) for _ in range(self.n_draws)])
        self.groups.check_n(n)
        return np.stack([self.groups.permutation(generator) for _ in range(self.n_draws)])

    def draws(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> np.ndarray:
        x, y = (self.permutations(a.n, s) for s in streams)
        relative = y if streams[0] == 0 else np.take_along_axis(y, np.argsort(x, axis=1), axis=1)
        return permuted_scores(measure, a.states, b.states, relative)


def permuted_scores(measure: Measure, a: Sequence[State], b: Sequence[State], permutations: np.ndarray) -> np.ndarray:
    """Scores of a with b relabelled by each of K given permutations (K, n): (K, la, lb) float64.

    Several relabellings of all layers of b go through one comparison, as many as fit the scratch memory.
    """
    out = np.empty((len(permutations), len(a), len(b)))
    chunk = max(1, SCRATCH_BYTES // max(1, sum(s.nbytes for s in b)))
    for start in range(0, len(permutations), chunk):
        some = torch.from_numpy(np.ascontiguousarray(permutations[start : start + chunk], dtype=np.int64))
        some = some.to(device_of(b[0]))
        scores = measure.closeness_all(a, [s.permute(p) for p in some for s in b]).numpy()
        out[start : start + chunk] = scores.reshape(len(a), len(some), len(b)).swapaxes(0, 1)
    return out
