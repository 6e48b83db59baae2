"""Runs that vary one thing at a time: capacity, training length, number of tasks, detail of captions, simplicity.

Each is a base with one change, so that alignment can be related to what changed (docs/studies/toy_world.md).

* capacity: the width of each kind of network, for every objective;
* training length: checkpoints of one run, on the way of its one schedule of learning rates;
* tasks: supervision on 1, 2 or 3 of the five attributes, each attribute equally often at each number;
* detail: every training caption names as many attributes, which ones is drawn anew for each caption;
* simplicity, by two handles: weight decay (small weights) and noise on the weights (few bits in the weights: a fit
  that survives it has a short description and lies in a flat place; Hinton & van Camp 1993, An 1996). Neither is
  simplicity itself: both also slow training down, and much of either is just a worse fit;
* seeds: the same training with other scenes and another start, which gives the level of noise and a ceiling.
"""

from __future__ import annotations

from typing import Any

from repalign.toyworld import captions
from repalign.toyworld.recipe import LANGUAGE, VISION, Recipe, name_of

TASKS = (1, 2, 3)  # all five are the base
DETAILS = (1, 3, 6, 10)
NOISES = (0.1, 0.3, 0.6)
VISION_STEPS = (25, 50, 100, 200)  # of 400
LANGUAGE_STEPS = (50, 100, 200, 500)  # of 1,000


def vision(width: int, objective: str, steps: int, cost: float, **changes: Any) -> Recipe:
    return _recipe(VISION, "cnn", width, objective, steps, 2e-3, cost, **changes)


def language(family: str, width: int, objective: str, steps: int, rate: float, cost: float, **changes: Any) -> Recipe:
    return _recipe(LANGUAGE, family, width, objective, steps, rate, cost, **changes)


def _recipe(
    modality: str, family: str, width: int, objective: str, steps: int, rate: float, cost: float,
    *, seed: int = 0, checkpoints: tuple[int, ...] = (), **changes: Any,
) -> Recipe:  # fmt: skip
    name = name_of(modality, family, width, objective, seed=seed, **changes)
    return Recipe(name, modality, family, width, objective, steps, rate, checkpoints, cost=cost, **changes)


def rotations(count: int) -> tuple[tuple[str, ...], ...]:
    """The five sets of `count` attributes that follow each other on a circle: each attribute is in `count` of them."""
    kinds = captions.ORDER
    return tuple(tuple(kinds[(i + j) % len(kinds)] for j in range(count)) for i in range(len(kinds)))


def _supervised(**changes: Any) -> Recipe:
    return vision(8, "supervised", 400, 4, **changes)


def _next(**changes: Any) -> Recipe:
    return language("conv", 24, "next", 1000, 8e-3, 6, **changes)


_VISION = (
    vision(4, "supervised", 400, 4),
    vision(32, "supervised", 400, 15),
    vision(8, "temporal", 400, 8, checkpoints=VISION_STEPS),
    vision(4, "autoencoder", 300, 3),
    vision(16, "autoencoder", 300, 6),
    vision(4, "augmentation", 300, 5),
    vision(16, "augmentation", 300, 11),
    *(_supervised(seed=seed, checkpoints=VISION_STEPS) for seed in (1, 2, 3)),
    vision(16, "supervised", 400, 6, seed=1),
    vision(16, "temporal", 400, 11, seed=1),
    vision(8, "autoencoder", 300, 4, seed=1),
    vision(8, "augmentation", 300, 7, seed=1),
    *(_supervised(tasks=kinds) for count in TASKS for kinds in rotations(count)),
    *(_supervised(decay=decay, seed=seed) for decay in (0.0, 0.3, 1.0, 3.0) for seed in (0, 1)),
    *(_supervised(noise=noise, seed=seed) for noise in NOISES for seed in (0, 1)),
    vision(8, "temporal", 400, 8, decay=1.0),
    vision(8, "temporal", 400, 8, noise=0.3),
)
_LANGUAGE = (
    language("conv", 4, "next", 1000, 8e-3, 5),
    language("conv", 14, "next", 1000, 8e-3, 6),
    language("conv", 40, "next", 1000, 6e-3, 8),
    language("transformer", 32, "next", 1000, 6e-3, 12),
    language("transformer", 16, "masked", 1000, 8e-3, 8),
    language("transformer", 32, "masked", 1000, 6e-3, 12),
    language("gru", 16, "next", 1500, 8e-3, 7),
    language("gru", 64, "next", 1500, 5e-3, 15),
    language("cbow", 8, "context", 1000, 1e-2, 3),
    language("cbow", 64, "context", 1000, 1e-2, 4),
    *(_next(seed=seed, checkpoints=LANGUAGE_STEPS) for seed in (1, 2, 3)),
    language("conv", 64, "next", 1000, 4e-3, 11, seed=1),
    language("transformer", 48, "next", 1000, 5e-3, 17, seed=1),
    language("gru", 32, "next", 1500, 8e-3, 9, seed=1),
    language("cbow", 32, "context", 1000, 1e-2, 3, seed=1),
    *(_next(detail=detail, seed=seed) for detail in DETAILS for seed in (0, 1, 2)),
    *(_next(decay=decay, seed=seed) for decay in (0.0, 0.1, 0.3, 1.0) for seed in (0, 1)),
    *(_next(noise=noise, seed=seed) for noise in NOISES for seed in (0, 1)),
)
RUNS: tuple[Recipe, ...] = (*_VISION, *_LANGUAGE)
