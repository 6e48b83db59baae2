"""A made-up result with the structure of a real one, for tests of what only reads the table and the run."""

# ruff: noqa: E501  (data in rows)

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from repalign.comparison.alignment import COLUMNS

N = 1024
KNN = "MutualKNN(k=10, similarity='cosine', center=False)"
CKA = "CKA(kernel='linear', estimator='debiased')"

LANGUAGE = [("bloom-560m", "BLOOM", 5.6e8, 0.97), ("bloom-1b7", "BLOOM", 1.7e9, 0.84), ("bloom-7b1", "BLOOM", 7.1e9, 0.76),
            ("openllama-3b", "LLaMA", 3.4e9, 0.64), ("llama-13b", "LLaMA", 1.3e10, 0.57)]  # fmt: skip
VISION = [("vit-tiny-in21k", "ImageNet-21k", 5.7e6, 75.5), ("vit-large-in21k", "ImageNet-21k", 3.0e8, 85.0),
          ("mae-base", "MAE", 8.6e7, 83.6), ("dinov2-small", "DINOv2", 2.2e7, 81.1),
          ("dinov2-giant", "DINOv2", 1.1e9, 86.5), ("clip-large", "CLIP", 3.0e8, 86.6)]  # fmt: skip
BLIND = "mae-base"  # aligned with nothing: its pairs stay at chance
CONSTANT = ("openllama-3b", "dinov2-small")  # this pair is undefined under CKA


def _phi(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


def make_table(
    language: Sequence[tuple] = LANGUAGE,
    vision: Sequence[tuple] = VISION,
    layers: tuple[int, int] = (7, 5),
    n_draws: int = 1023,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores that rise with size and depth, chance 10/1023 for mutual k-NN, a blind model, an undefined pair."""
    return _made(tuple(language), tuple(vision), layers, n_draws, seed).copy()


@functools.cache  # most tests want the same
def _made(language: tuple, vision: tuple, layers: tuple[int, int], n_draws: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frames = []
    for measure, (x, _, px, _), (y, _, py, _) in itertools.product((KNN, CKA), language, vision):
        frames.append(_pair(rng, measure, (x, px, layers[0]), (y, py, layers[1]), n_draws))
    table = pd.concat(frames, ignore_index=True)
    for _, rows in table[table["scope"] == "max"].groupby("measure"):
        p = rows["pvalue"].dropna().sort_values()
        m = len(p)
        holm = np.minimum(np.maximum.accumulate(p.to_numpy() * np.arange(m, 0, -1)), 1)
        bh = np.minimum(np.minimum.accumulate((p.to_numpy() * m / np.arange(1, m + 1))[::-1])[::-1], 1)
        table.loc[p.index, "p_holm"], table.loc[p.index, "p_bh"] = holm, bh
        table.loc[p.index, "p_by"] = np.minimum(bh * (1 / np.arange(1, m + 1)).sum(), 1)
        table.loc[p.index, "p_maxt"] = _joint(p, n_draws)
    cells = table[table["scope"] == "cell"]
    for _, p in cells.groupby(["measure", "model_x", "model_y"])["pvalue"]:
        defined = p.dropna().sort_values()
        table.loc[defined.index, "p_stepdown"] = _joint(defined, n_draws)
    return table.reindex(columns=list(COLUMNS))


def _joint(p: pd.Series, n_draws: int) -> np.ndarray:
    """What joint draws of dependent tests could give for sorted p: between p and Holm's, in whole ranks, monotone."""
    rank, left = np.rint(p.to_numpy() * (n_draws + 1)), np.arange(len(p), 0, -1)
    grown = np.where(rank > 1, np.ceil(rank * (1 + 0.2 * (left - 1))), 1)  # what no draw reaches stays at the floor
    return np.minimum(np.maximum.accumulate(grown), n_draws + 1) / (n_draws + 1)


def _pair(rng: np.random.Generator, measure: str, x: tuple, y: tuple, n_draws: int) -> pd.DataFrame:
    (model_x, params_x, lx), (model_y, params_y, ly) = x, y
    chance, sd = (10 / (N - 1), 0.00125) if measure == KNN else (0.0, 0.004)
    strength = 0.02 * math.log10(params_x / 1e8) + 0.015 * math.log10(params_y / 1e6)
    strength *= 0.0 if model_y == BLIND else (1.0 if measure == KNN else 2.5)
    depth = np.outer(np.linspace(0.2, 1, lx) ** 1.5, np.sin(np.linspace(0.3, 2.4, ly)))
    score = chance + strength * depth + sd * rng.standard_normal((lx, ly))
    if measure == CKA and (model_x, model_y) == CONSTANT:
        score[:] = np.nan
    elif measure == KNN:
        score[0, 0] = np.nan  # one constant layer: one cell without a score in every pair
    a, b = np.unravel_index(np.nanargmax(score), score.shape) if not np.isnan(score).all() else (-1, -1)
    i, j = np.indices(score.shape).reshape(2, -1)
    cell = np.arange(score.size + 1) > 0  # the search is the first row
    statistic = np.concatenate([[score[a, b]], score.ravel()])
    null_mean, null_std = np.where(cell, chance, chance + 2.2 * sd), np.where(cell, sd, 0.45 * sd)
    threshold = np.where(cell, chance + 1.66 * sd, chance + 3.1 * sd)
    undefined, z, k = np.isnan(statistic), (statistic - null_mean) / null_std, n_draws + 1
    gain = (statistic - threshold) / (1 - threshold)
    index = {"x": np.concatenate([[a], i]), "y": np.concatenate([[b], j])}
    out = pd.DataFrame({
        "scope": np.where(cell, "cell", "max"), "statistic": statistic, "z": z,
        **{name: np.where(undefined, np.nan, v) for name, v in
           (("null_mean", null_mean), ("null_std", null_std), ("threshold", threshold), ("calibrated", gain.clip(0)))},
        "pvalue": [np.nan if np.isnan(one) else max(1, math.ceil(_phi(one) * k)) / k for one in z],
        **{f"index_{side}": index[side] for side in "xy"}, "model_x": model_x, "model_y": model_y,
        **{f"layer_{side}": [None if i < 0 else f"layer.{i}" for i in index[side]] for side in "xy"},
    })  # fmt: skip
    return out.assign(
        dataset="wit_1024", dataset_fingerprint="ab" * 32, n=N, measure=measure, p_holm=np.nan, p_bh=np.nan,
        p_by=np.nan, p_maxt=np.nan, p_stepdown=np.nan,
        null="cyclic", n_draws=n_draws, seed=0, search=np.where(cell, None, "studentised max"),
    )  # fmt: skip


def make_run(
    language: Sequence[tuple] = LANGUAGE, vision: Sequence[tuple] = VISION, layers: tuple[int, int] = (7, 5)
) -> dict[str, Any]:
    """The run's description that belongs to `make_table`."""

    def model(entry: tuple, modality: str, score: str, n_layers: int) -> dict[str, Any]:
        name, family, params, value = entry
        return {
            "spec": f"hf:example/{name}", "name": name, "modality": modality, "revision": "0123456789abcdef" * 2,
            "family": family, "objective": "next word" if modality == "text" else "classification",
            "n_parameters": int(params), "scores": {score: value}, "layers": [f"layer.{i}" for i in range(n_layers)],
            "widths": [768] * n_layers, "facts": {"pooling": "mean", "dtype": "float32", "tokens": "all valid tokens"},
        }  # fmt: skip

    return {
        "repalign": "0.1.0",
        "versions": {"torch": "2.15.0", "transformers": "5.23.0", "timm": None},
        "name": "images-and-captions",
        "study": None,
        "dataset": {
            "name": "wit_1024", "source": "hub", "revision": "wit_1024", "n": N, "fingerprint": "ab" * 32,
            "modalities": ["image", "text"], "captions_per_image": {"min": 1, "max": 5}, "left_out": [{"id": "r17", "row": 17, "reason": "empty caption"}],
        },
        "models": [*(model(m, "text", "bits_per_byte", layers[0]) for m in language),
                   *(model(m, "image", "imagenet_top1", layers[1]) for m in vision)],
        "sides": {"x": [m[0] for m in language], "y": [m[0] for m in vision]},
        "measures": [KNN, CKA],
        "null": {"method": "cyclic", "seed": 0, "by_measure": {m: {"method": "cyclic", "n_draws": 1023} for m in (KNN, CKA)},
                 "relabelled": "one side", "groups": None},
        "search": "studentised max",
        "alpha": 0.05,
        "preprocess": None,
        "findings": [
            {"model": "llama-13b", "layer": f"layer.{i}", "code": "wide", "severity": "warning",
             "message": "n = 1,024 rows for 5,120 features: biased CKA is high by chance; use the debiased one."}
            for i in range(3)
        ] + [{"model": "mae-base", "layer": "layer.0", "code": "duplicates", "severity": "note",
              "message": "12 rows are exact copies of another row: neighbours among them are decided by index."}],
        "warnings": [f"{CKA}: undefined for 1 of 30 pairs of models (a constant layer?)"],
        "competences": {"bits_per_byte": {"label": "Bits per byte", "lower_is_better": True},
                        "imagenet_top1": {"label": "ImageNet top-1 accuracy", "lower_is_better": False}},
    }  # fmt: skip
