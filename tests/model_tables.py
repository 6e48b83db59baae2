"""Tables of models compared among themselves, or with partners, from plain arrays of scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from alignment_table import CKA, KNN

ANGLE = "AngularCKA()"


def names(n: int, side: str = "m") -> list[str]:
    return [f"{side}{i:02d}" for i in range(n)]


def among(scores: np.ndarray, measure: str = CKA, chance: float | np.ndarray = 0.01, n: int = 500) -> pd.DataFrame:
    """The table of models compared among themselves, from a symmetric array."""
    i, j = np.triu_indices(len(scores), 1)
    return _table(names(len(scores)), i, names(len(scores)), j, measure, n, scores, np.broadcast_to(chance, scores.shape)[i, j])


def against(scores: np.ndarray, measure: str = CKA, n: int = 500) -> pd.DataFrame:
    """The table of two sides, from an array of models by partners."""
    i, j = np.indices(scores.shape).reshape(2, -1)
    return _table(names(scores.shape[0]), i, names(scores.shape[1], "p"), j, measure, n, scores, 0.01)


def _table(x: list[str], i: np.ndarray, y: list[str], j: np.ndarray, measure: str, n: int, scores: np.ndarray, level: Any) -> Any:
    return pd.DataFrame(
        {"scope": "max", "measure": measure, "model_x": [x[k] for k in i], "model_y": [y[k] for k in j], "n": n,
         "index_x": 0, "index_y": 0, "statistic": scores[i, j], "null_mean": level}
    )  # fmt: skip


def symmetric(rng: np.random.Generator, n: int, models: float = 1.0, pairs: float = 1.0) -> np.ndarray:
    """Effects of models and noise of pairs."""
    a, e = models * rng.standard_normal(n), pairs * rng.standard_normal((n, n))
    return a[:, None] + a[None] + (e + e.T) / math.sqrt(2)


def records(values, key: str = "vtab_solved", families=None) -> list[dict]:
    families = families or [""] * len(values)
    return [
        {"name": f"m{i:02d}", "family": f, "objective": "classification", "modality": "image", "scores": {key: float(v)}}
        for i, (v, f) in enumerate(zip(values, families, strict=True))
    ]


def three(rng: np.random.Generator, n: int) -> tuple[list[np.ndarray], pd.DataFrame]:
    """Three measures of models among themselves, the third a distance."""
    base = symmetric(rng, n)
    scores = [base, base + symmetric(rng, n), -base + 2 * symmetric(rng, n)]
    table = pd.concat([among(s, m) for s, m in zip(scores, (KNN, CKA, ANGLE), strict=True)])
    return scores, table
