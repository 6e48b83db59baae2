"""The published calibration, to the bit: for comparison with papers that used it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from repalign.errors import RepalignError
from repalign.measures.measure import Measure
from repalign.null.calibration import Calibration
from repalign.null.null import Prepared
from repalign.null.permutation import Permutations
from repalign.null.search import Found, Search, step_down

# What torch.Generator() starts from when nothing is said: the published runs gave no seed.
TORCH_DEFAULT_SEED = 67280421310721
_SMALLEST_ROOM = np.float32(1e-12)


@dataclass(frozen=True)
class Aristotelian(Permutations):
    """Algorithms 1 and 2 of Groeger, Wen, Brbic 2026 (arXiv 2602.14486), as their package computes them.

    K = 200 permutations of torch.randperm from one generator, s_max = 1 for every measure, all in float32, draws
    compared without a tolerance, and the raw maximum over layers. Given the same scores and the same generator, p-value,
    threshold and calibrated score are theirs to the bit. For new work use the default: ties by rounding can decide this
    p-value, and the raw maximum favours the layers with the highest chance level.
    """

    name: ClassVar[str] = "aristotelian"
    searches: ClassVar[tuple[str, ...] | None] = ("raw max", "raw mean")
    n_draws: int = 200
    seed: int = TORCH_DEFAULT_SEED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups is not None:
            raise RepalignError(
                "the published null is over all permutations",
                expected="no groups",
                got=repr(self.groups),
                remedy="use null='permutation' with these groups",
            )

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
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(std > 0, (score - mean) / std, np.nan)
    return Calibration(
        statistic=np.asarray(observed, float), null_mean=mean, null_std=std, z=z, pvalue=p, threshold=tau, calibrated=calibrated
    )
