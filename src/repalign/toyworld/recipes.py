"""A recipe: one run of training as a row of data, and the name that follows from it.

A name is `modality-network-objective`, as in `vision-cnn16-supervised` or `language-conv24-next`; the number is the
network's width. What differs from the usual way of training stands behind it: `-hue+height` (the attributes that
supervision names), `-detail3` (how many attributes each training caption names), `-decay0.3`, `-noise0.3`, `-seed1`
(another training of the same model). Seeds follow from the name, so a row may be added and no other changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from repalign.errors import RepalignError, did_you_mean
from repalign.toyworld import captions

VISION, LANGUAGE = "image", "text"  # modalities, by the dataset's columns
WEIGHT_DECAY = 0.01
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Recipe:
    """One model: what it is and how it comes about."""

    name: str
    modality: str
    family: str  # of the network
    width: int
    objective: str
    steps: int = 0
    rate: float = 0.0  # largest learning rate
    checkpoints: tuple[int, ...] = ()  # the steps whose weights are kept besides the last
    captions: int = 0  # how many are counted, for a model that only counts
    cost: float = 0.5  # core-seconds for training and scoring, about: what a progress bar goes by
    tasks: tuple[str, ...] = ()  # the attributes that supervision names; () stands for all five
    detail: int | None = None  # how many attributes each training caption names; None: the usual mixture
    decay: float = WEIGHT_DECAY  # decoupled, of AdamW: weights shrink by rate * decay in each step
    noise: float = 0.0  # on the weights while gradients are taken, in units of each tensor's root mean square

    @property
    def names(self) -> tuple[str, ...]:
        """The models that one run gives: the final one, and its checkpoints."""
        return (self.name, *(f"{self.name}-step{step}" for step in self.checkpoints))

    def factors(self, step: int) -> dict[str, float | str]:
        """What was done to the model, as numbers and words that alignment can be related to.

        * `run`: the training that it comes from; checkpoints of one run share it.
        * `width` and `training_steps`: of a network, 0 steps where it is untrained.
        * `weight_decay` and `weight_noise`: of a trained network.
        * `tasks`: how many attributes supervision names, of 5; only for supervised vision.
        * `caption_detail`: how many attributes a training caption names, of 10, on average; only for language.
        """
        out: dict[str, float | str] = {"run": self.name}
        if self.steps or self.objective == UNTRAINED:
            out |= {"width": float(self.width), "training_steps": float(step)}
        if self.steps:
            out |= {"weight_decay": self.decay, "weight_noise": self.noise}
            if self.objective == "supervised":
                out["tasks"] = float(len(self.tasks or captions.KINDS))
            if self.modality == LANGUAGE:
                out["caption_detail"] = captions.MIXED_DETAIL if self.detail is None else float(self.detail)
        return out


def name_of(
    modality: str, family: str, width: int, objective: str, *, tasks: Sequence[str] = (), detail: int | None = None,
    decay: float = WEIGHT_DECAY, noise: float = 0.0, seed: int = 0,
) -> str:  # fmt: skip
    """The name of a run, which says all that differs from the usual."""
    parts = ["vision" if modality == VISION else "language", f"{family}{width}", objective]
    parts += ["+".join(tasks)] if tasks else []
    parts += [f"detail{detail}"] if detail is not None else []
    parts += [f"decay{decay:g}"] if decay != WEIGHT_DECAY else []
    parts += [f"noise{noise:g}"] if noise else []
    parts += [f"seed{seed}"] if seed else []
    return "-".join(parts)


# --- runs that vary one thing at a time -------------------------------------------------------------


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


# --- all models by name -----------------------------------------------------------------------------



_TRAINED = (
    vision(3, "supervised", 400, 3, checkpoints=(50,)),
    vision(8, "supervised", 400, 4, checkpoints=(50,)),
    vision(16, "supervised", 400, 6, checkpoints=(50,)),
    vision(4, "temporal", 400, 6, checkpoints=(50,)),
    vision(16, "temporal", 400, 11, checkpoints=(50,)),
    vision(8, "autoencoder", 300, 4, checkpoints=(40,)),
    vision(8, "augmentation", 300, 7, checkpoints=(40,)),
    language("conv", 8, "next", 1000, 8e-3, 5, checkpoints=(100,)),
    language("conv", 24, "next", 1000, 8e-3, 6, checkpoints=(100,)),
    language("conv", 64, "next", 1000, 4e-3, 11, checkpoints=(100,)),
    language("transformer", 16, "next", 800, 8e-3, 7, checkpoints=(100,)),
    language("transformer", 48, "next", 1000, 5e-3, 17, checkpoints=(100,)),
    language("transformer", 48, "masked", 1000, 5e-3, 17, checkpoints=(100,)),
    language("gru", 32, "next", 1500, 8e-3, 9, checkpoints=(100,)),
    language("cbow", 32, "context", 1000, 1e-2, 3, checkpoints=(100,)),
)
_UNTRAINED = tuple(
    Recipe(f"{'vision' if r.modality == VISION else 'language'}-{r.family}{r.width}-untrained",
           r.modality, r.family, r.width, UNTRAINED)
    for r in _TRAINED
    if r.objective != "masked"
)  # fmt: skip
_COMPUTED = (
    Recipe("vision-pixels", VISION, "pixels", 0, "none", cost=2),
    Recipe("language-bag", LANGUAGE, "bag", 0, "none"),
    *(Recipe(f"language-svd12-{n}", LANGUAGE, "svd", 12, "cooccurrence", captions=n) for n in (200, 1000, 5000, 20000)),
)
RECIPES: dict[str, Recipe] = {r.name: r for r in (*_TRAINED, *_UNTRAINED, *_COMPUTED, *RUNS)}
NAMES: dict[str, Recipe] = {name: r for r in RECIPES.values() for name in r.names}


def find(name: str) -> tuple[Recipe, int]:
    """The recipe of a model and the step of training that the name means; an error that suggests names."""
    if name not in NAMES:
        raise RepalignError(
            f"there is no toy model {name!r}",
            expected="modality-network-objective, such as vision-cnn16-supervised or language-conv24-next", got=name,
            remedy=did_you_mean(name, NAMES)
        )
    step = re.search(r"-step(\d+)$", name)
    return NAMES[name], int(step[1]) if step else NAMES[name].steps


@cache
def revision() -> str:
    """What the weights of all toy models follow from: 12 digits of the SHA-256 of this package's source.

    A change to the world, a recipe or the training gives another revision, so that no cached model can
    pass for one that today's code would train.
    """
    sha = hashlib.sha256()
    package = resources.files("repalign.toyworld")
    for file in sorted(package.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".py"):
            text = file.read_text(encoding="utf-8")
            sha.update(f"{file.name}:{len(text)}:{text}".encode())
    return sha.hexdigest()[:12]


def seed(*parts: str | int) -> int:
    """A seed of 64 bits that follows from the parts alone, and that no small seed of a user collides with."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") | 1 << 63
