"""Random permutations, for every measure: ours, restricted to groups on request, and those of the published calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from repalign.errors import RepalignError
from repalign.measures.measure import SCRATCH_BYTES, Measure, State
from repalign.null.calibration import Calibration, step_down
from repalign.null.groups import Groups
from repalign.null.null import ONE_SIDE, Found, Null, Prepared, Search, Streams

# What torch.Generator() starts from when nothing is said: the published runs gave no seed.
TORCH_DEFAULT_SEED = 67280421310721
_SMALLEST_ROOM = np.float32(1e-12)


@dataclass(frozen=True)
class Permutations(Null):
    """Random permutations, drawn once from a seed and shared by all layers, models and measures.

    K = `n_draws` independent uniform permutations, of all stimuli or, with `groups`, of those that the groups allow.
    Valid for every measure; the p-value's floor is 1 / (K + 1).
    """

    name: ClassVar[str] = "permutation"
    help: ClassVar[str] = "random permutations, for every measure"
    meaning: ClassVar[str] = "random permutations of the pairing, one for all layers of a pair of models"
    n_draws: int = 199
    seed: int = 0
    groups: Groups | None = None

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
        some = some.to(b[0].device)
        scores = measure.closeness_all(a, [s.permute(p) for p in some for s in b]).numpy()
        out[start : start + chunk] = scores.reshape(len(a), len(some), len(b)).swapaxes(0, 1)
    return out


@dataclass(frozen=True)
class Aristotelian(Permutations):
    """Algorithms 1 and 2 of Groeger, Wen, Brbic 2026 (arXiv 2602.14486), as their package computes them.

    K = 200 permutations of torch.randperm from one generator, s_max = 1 for every measure, all in float32, draws
    compared without a tolerance, and the raw maximum over layers. Given the same scores and the same generator, p-value,
    threshold and calibrated score are theirs to the bit. For new work use the default: ties by rounding can decide this
    p-value, and the raw maximum favours the layers with the highest chance level.
    """

    name: ClassVar[str] = "aristotelian"
    help: ClassVar[str] = "the calibration of Groeger, Wen and Brbić 2026, as published"
    meaning: ClassVar[str] = "the published calibration: random permutations, compared in float32 without a tolerance"
    searches: ClassVar[tuple[str, ...] | None] = ("raw max", "raw mean")
    n_draws: int = 200
    seed: int = TORCH_DEFAULT_SEED

    def check_groups(self, groups: Groups) -> None:
        raise RepalignError(
            "the published null is over all permutations", expected="no groups", got=repr(groups),
            remedy="use null='permutation' with these groups",
        )  # fmt: skip

    def permutations(self, n: int, stream: int = 1) -> np.ndarray:
        if stream == 0:
            return super().permutations(n, stream)
        generator = torch.Generator().manual_seed(self.seed if stream == 1 else self.seed + stream)
        return torch.stack([torch.randperm(n, generator=generator) for _ in range(self.n_draws)]).numpy()

    def judge_cells(
        self, measure: Measure, a: Prepared, b: Prepared, observed: np.ndarray, draws: np.ndarray, alpha: float  # noqa: ARG002
    ) -> tuple[Calibration, np.ndarray]:
        return published(observed, draws, alpha), np.full(observed.shape, self.name, dtype=object)

    def judge_search(
        self, measure: Measure, observed: np.ndarray, draws: np.ndarray, search: Search, alpha: float  # noqa: ARG002
    ) -> Found:
        overall = np.nan_to_num(observed, nan=-np.inf)
        lost = np.nan_to_num(draws, nan=np.inf)
        best, null = search.aggregated(overall[None])[0], search.aggregated(lost)
        i, j = (int(v) for v in np.unravel_index(np.argmax(overall), observed.shape))
        flat = step_down(overall.ravel(), lost.reshape(len(draws), -1)).reshape(observed.shape)
        return Found(i, j, published(best, null, alpha), null, np.where(np.isnan(observed), np.nan, flat))


def published(observed: np.ndarray | float, draws: np.ndarray, alpha: float, s_max: float = 1.0) -> Calibration:
    """Algorithm 1 in float32: tau is the ceil((1 - alpha)(K + 1))-th of draws and score, p adds one to both counts."""
    score, null = np.asarray(observed, np.float32), np.asarray(draws, np.float32)
    count = len(null) + 1
    pool = np.sort(np.concatenate([score[None], null]), axis=0)
    tau = pool[min(max(math.ceil((1 - alpha) * count) - 1, 0), count - 1)]
    p = (np.float32(1) + (null >= score).sum(axis=0).astype(np.float32)) / np.float32(count)
    room = np.maximum(np.float32(s_max) - tau, _SMALLEST_ROOM)
    calibrated = np.clip((score - tau) / room, np.float32(0), np.float32(1))
    mean, std = null.mean(axis=0, dtype=np.float64), null.std(axis=0, dtype=np.float64)
    found = Calibration.of(np.asarray(observed, float), mean, std, p, tau)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(std > 0, (score - mean) / std, np.nan)  # nan, as the calibrated score, where the score is
    return replace(found, z=z, calibrated=calibrated.astype(float))
