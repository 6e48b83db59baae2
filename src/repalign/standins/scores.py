"""Scores that files would give of stand-ins: made up, in the range of the real ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repalign.models import COMPETENCES
from repalign.standins.folders import seed_of
from repalign.standins.shapes import level_of, shape_of

# The worst and the best of a scale, by its unit; a scale of the user's own is taken for one of shares.
SCALES: dict[str, tuple[float, float]] = {
    "bit/byte": (1.6, 0.6),
    "bit/character": (1.6, 0.6),
    "bit/word": (9.0, 4.0),
    "bit/token": (6.0, 2.0),
    "nat/token": (4.0, 1.5),
    "%": (20.0, 90.0),
    "share": (0.2, 0.9),
}
OWN_SCALES: dict[str, tuple[float, float]] = {"perplexity": (60.0, 5.0), "vtab_solved": (0.0, 19.0)}
NOISE = 0.04  # standard deviation, in units of the scale


def stand_in_scores(names: Sequence[str], models: Sequence[str], seed: int = 0) -> dict[str, dict[str, float]]:
    """Scores by the name of the score, then by the model's label: what a study's files would say.

    They get better with the size of the stand-in, up to noise: bits per byte fall and accuracies, in [0, 1], rise. A name
    that is in no list of competences gets shares. `n_parameters` is about that of the stand-in's blocks.
    """
    return {name: {model: _score(name, model, seed) for model in models} for name in names}


def _score(name: str, model: str, seed: int) -> float:
    if name == "n_parameters":
        return float(shape_of(model, seed).n_parameters)
    known = COMPETENCES.get(name)
    worst, best = OWN_SCALES.get(name) or SCALES.get(known.unit if known else "share", SCALES["share"])
    rng = np.random.Generator(np.random.PCG64(seed_of("score", name, model, seed)))
    quality = min(1.0, max(0.0, level_of(model) + NOISE * rng.standard_normal()))
    value = worst + quality * (best - worst)
    return float(round(value)) if name == "vtab_solved" else round(value, 4)
