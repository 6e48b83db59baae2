"""A made-up result of many models against each other, with one layer each: what only reads the table and the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from alignment_table import CKA, KNN
from repalign.comparison.alignment import COLUMNS

DRAWS, N = 199, 200


def made(count: int, families: int = 12, measures: tuple[str, ...] = (KNN, CKA)) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and the run of `count` models in families, or of none where `families` is 0; those of a family agree more."""
    rng = np.random.default_rng(0)
    names = np.array([f"model-{i:03d}" for i in range(count)])
    family = rng.integers(max(1, families), size=count)
    x, y = np.triu_indices(count, 1)
    frames = []
    for measure in measures:
        good, noise = rng.random(count), 0.03 * rng.standard_normal(len(x))
        score = 0.1 + 0.3 * (family[x] == family[y]) + 0.2 * good[x] * good[y] + noise
        best = pd.DataFrame({
            "dataset": "made", "dataset_fingerprint": "ab" * 32, "n": N, "model_x": names[x], "layer_x": "last", "index_x": 0,
            "model_y": names[y], "layer_y": "last", "index_y": 0, "measure": measure, "scope": "max", "statistic": score,
            "null_mean": 0.05, "null_std": 0.02, "z": (score - 0.05) / 0.02, "threshold": 0.09,
            "pvalue": np.where(score > 0.09, 1 / (DRAWS + 1), 0.4), "calibrated": np.clip((score - 0.09) / 0.91, 0, 1),
            "null": "cyclic", "n_draws": DRAWS, "seed": 0, "search": "studentised max",
        })  # fmt: skip
        adjusted = dict.fromkeys(("p_maxt", "p_holm", "p_bh", "p_by"), best["pvalue"])
        cells = best.assign(scope="cell", null="moments", n_draws=0, search=None, p_stepdown=best["pvalue"])
        frames.append(pd.concat([best.assign(**adjusted, p_stepdown=np.nan), cells]).sort_index(kind="stable"))
    models = [
        {
            "spec": f"hf:example/{name}", "name": name, "modality": "text", "family": f"family {f}" if families else None,
            "n_parameters": int(10 ** (6 + 4 * i / count)), "scores": {}, "layers": ["last"], "widths": [64], "facts": {},
        }
        for i, (name, f) in enumerate(zip(names.tolist(), family.tolist(), strict=True))
    ]  # fmt: skip
    run = {
        "name": f"{count} models", "models": models, "sides": {"x": names.tolist(), "y": names.tolist()},
        "measures": list(measures),
        "dataset": {"name": "made", "n": N, "fingerprint": "ab" * 32}, "alpha": 0.05, "search": "studentised max",
        "null": {"method": "auto", "seed": 0, "relabelled": "every model", "groups": None}, "warnings": [], "findings": [],
    }  # fmt: skip
    return pd.concat(frames, ignore_index=True).reindex(columns=list(COLUMNS)), run
