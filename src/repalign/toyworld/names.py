"""The toy models by name: every run of training as one row of data (`recipe.Recipe`).

A checkpoint on the way is `<name>-step<number>`. Rows without steps are controls and models that are computed, not
trained. Runs that vary one thing at a time are in `factors`.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources

from repalign.errors import RepalignError, did_you_mean
from repalign.toyworld import factors
from repalign.toyworld.recipe import LANGUAGE, UNTRAINED, VISION, Recipe

__all__ = ["LANGUAGE", "NAMES", "RECIPES", "VISION", "Recipe", "find", "revision", "seed"]

_TRAINED = (
    factors.vision(3, "supervised", 400, 3, checkpoints=(50,)),
    factors.vision(8, "supervised", 400, 4, checkpoints=(50,)),
    factors.vision(16, "supervised", 400, 6, checkpoints=(50,)),
    factors.vision(4, "temporal", 400, 6, checkpoints=(50,)),
    factors.vision(16, "temporal", 400, 11, checkpoints=(50,)),
    factors.vision(8, "autoencoder", 300, 4, checkpoints=(40,)),
    factors.vision(8, "augmentation", 300, 7, checkpoints=(40,)),
    factors.language("conv", 8, "next", 1000, 8e-3, 5, checkpoints=(100,)),
    factors.language("conv", 24, "next", 1000, 8e-3, 6, checkpoints=(100,)),
    factors.language("conv", 64, "next", 1000, 4e-3, 11, checkpoints=(100,)),
    factors.language("transformer", 16, "next", 800, 8e-3, 7, checkpoints=(100,)),
    factors.language("transformer", 48, "next", 1000, 5e-3, 17, checkpoints=(100,)),
    factors.language("transformer", 48, "masked", 1000, 5e-3, 17, checkpoints=(100,)),
    factors.language("gru", 32, "next", 1500, 8e-3, 9, checkpoints=(100,)),
    factors.language("cbow", 32, "context", 1000, 1e-2, 3, checkpoints=(100,)),
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
    *(
        Recipe(f"language-svd12-{n}", LANGUAGE, "svd", 12, "cooccurrence", captions=n)
        for n in (200, 1000, 5000, 20000)
    ),
)
RECIPES: dict[str, Recipe] = {r.name: r for r in (*_TRAINED, *_UNTRAINED, *_COMPUTED, *factors.RUNS)}
NAMES: dict[str, Recipe] = {name: r for r in RECIPES.values() for name in r.names}


def find(name: str) -> tuple[Recipe, int]:
    """The recipe of a model and the step of training that the name means; an error that suggests names."""
    if name not in NAMES:
        raise RepalignError(
            f"there is no toy model {name!r}",
            expected="modality-network-objective, such as vision-cnn16-supervised or language-conv24-next",
            got=name,
            remedy=did_you_mean(name, NAMES),
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
