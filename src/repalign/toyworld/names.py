"""The toy models by name: every run of training as one row of data.

A name is `modality-network-objective`, as in `vision-cnn16-supervised` or `language-conv24-next`; the number
is the network's width. A checkpoint on the way is `<name>-step<number>`. Rows without steps are controls
and models that are computed, not trained.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

from repalign.errors import RepalignError, did_you_mean

VISION, LANGUAGE = "image", "text"  # modalities, by the dataset's columns


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
    checkpoint: int | None = None  # the step whose weights are kept besides the last
    captions: int = 0  # how many are counted, for a model that only counts
    cost: float = 0.5  # core-seconds for training and scoring, about: what a progress bar goes by

    @property
    def names(self) -> tuple[str, ...]:
        """The models that one run gives: the final one, and its checkpoint."""
        return (self.name,) if self.checkpoint is None else (self.name, f"{self.name}-step{self.checkpoint}")


def _vision(width: int, objective: str, steps: int, checkpoint: int, cost: float) -> Recipe:
    name = f"vision-cnn{width}-{objective}"
    return Recipe(name, VISION, "cnn", width, objective, steps, 2e-3, checkpoint, cost=cost)


def _language(
    family: str, width: int, objective: str, steps: int, rate: float, checkpoint: int, cost: float
) -> Recipe:
    name = f"language-{family}{width}-{objective}"
    return Recipe(name, LANGUAGE, family, width, objective, steps, rate, checkpoint, cost=cost)


_TRAINED = (
    _vision(3, "supervised", 400, 50, 3),
    _vision(8, "supervised", 400, 50, 4),
    _vision(16, "supervised", 400, 50, 6),
    _vision(4, "temporal", 400, 50, 6),
    _vision(16, "temporal", 400, 50, 11),
    _vision(8, "autoencoder", 300, 40, 4),
    _vision(8, "augmentation", 300, 40, 7),
    _language("conv", 8, "next", 1000, 8e-3, 100, 5),
    _language("conv", 24, "next", 1000, 8e-3, 100, 6),
    _language("conv", 64, "next", 1000, 4e-3, 100, 11),
    _language("transformer", 16, "next", 800, 8e-3, 100, 7),
    _language("transformer", 48, "next", 1000, 5e-3, 100, 17),
    _language("transformer", 48, "masked", 1000, 5e-3, 100, 17),
    _language("gru", 32, "next", 1500, 8e-3, 100, 9),
    _language("cbow", 32, "context", 1000, 1e-2, 100, 3),
)
_UNTRAINED = tuple(
    Recipe(f"{'vision' if r.modality == VISION else 'language'}-{r.family}{r.width}-untrained",
           r.modality, r.family, r.width, "untrained")
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
RECIPES: dict[str, Recipe] = {r.name: r for r in (*_TRAINED, *_UNTRAINED, *_COMPUTED)}
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
