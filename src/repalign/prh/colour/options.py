"""Every choice of the colour experiment, in one value that is stored with the result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from repalign.errors import RepalignError

TEMPLATES = ("The color {}.", "This color is {}.", "The color of this thing is {}.")
CHOICES = {
    "palette": ("grid", "words"),
    "bin_colour": ("mean", "centre"),
    "disc": ("euclidean", "chebyshev"),
    "shuffle": ("none", "within", "across"),
    "smoothing": ("independence", "add", "floor"),
    "largest": ("all", "off_diagonal"),
    "mds": ("metric", "nonmetric", "classical"),
}


@dataclass(frozen=True)
class ColourOptions:
    """The choices of the colour experiment.

    Stated by the paper (appendix D); the defaults are its values:

    * `n_pairs` : random pairs of pixels, or None for all pairs; `radius` in pixels, inf for the whole photo.
    * `templates` : sentences with {} for the colour word; their representations are averaged.
    * `last` : how many of the last layers are concatenated. `n_components` : dimensions of the layout.
    * `n_fits` : random starts of MDS, of which the best is kept.

    Not stated:

    * `size` : photos are averaged down to size x size pixels (32, as CIFAR-10 has them), or None for their own size.
    * `palette` : "grid", equal steps of RGB with `levels` per channel (at most 16), or "words", every pixel at the colour
      word that is nearest in CIELAB, which pairs pixels with words by id. `bin_colour` : what stands for a bin of the
      grid, the "mean" of its pixels or its "centre".
    * `disc` : the norm of the radius. `min_count` : colours seen less often, as ends of pairs, are left out.
    * `smoothing` : what pairs that were never seen get. "independence" mixes with the product of the marginals,
      (1 - amount) P + amount p p^T, which keeps the marginals and bounds PMI from below at log(amount); "add" adds
      `amount` to every cell, which lifts pairs of rare colours most; "floor" gives them the least PMI seen.
    * `positive` : negative PMI to zero. `largest` : the maximum in max K - K is over "all" entries, or "off_diagonal".
    * `mds` : "metric" or "nonmetric" (SMACOF), or "classical"; `max_iter` per fit.

    What the paper lacks:

    * `shuffle` : pixels change places "within" each photo, or "across" all of them.
    * `k` neighbours on the grid, `k_words` among words; `n_draws` permutations of the colours; `seed` of everything.
    """

    n_pairs: int | None = 300_000
    radius: float = 4.0
    templates: tuple[str, ...] = TEMPLATES
    last: int = 4
    n_components: int = 3
    n_fits: int = 1000
    size: int | None = 32
    palette: str = "grid"
    levels: int = 8
    bin_colour: str = "mean"
    disc: str = "euclidean"
    min_count: int = 100
    smoothing: str = "independence"
    amount: float = 0.01
    positive: bool = False
    largest: str = "all"
    mds: str = "metric"
    max_iter: int = 300
    shuffle: str = "none"
    k: int = 10
    k_words: int = 5
    n_draws: int = 999
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", tuple(self.templates))
        for name, known in CHOICES.items():
            self._check(name, getattr(self, name) in known, " or ".join(map(repr, known)))
        self._check("templates", self.templates and all(t.count("{}") == 1 for t in self.templates), "one {} in each")
        self._check("levels", 2 <= self.levels <= 16, "2 to 16")
        self._check("radius", self.radius >= 1, "at least 1 pixel; inf for the whole photo")
        self._check("n_pairs", self.n_pairs is None or self.n_pairs >= 1, "at least 1, or None for all pairs")
        self._check("size", self.size is None or self.size >= 2, "at least 2, or None")
        self._check("amount", self.smoothing == "floor" or self.amount > 0, "above 0")
        self._check("amount", self.smoothing != "independence" or self.amount < 1, "below 1")
        for name in ("last", "n_components", "n_fits", "max_iter", "min_count", "k", "k_words", "n_draws"):
            self._check(name, getattr(self, name) >= 1, "at least 1")

    def _check(self, name: str, right: object, expected: str) -> None:
        if not right:
            raise RepalignError(f"colour option {name!r} is out of range", expected=expected, got=getattr(self, name))

    @property
    def everywhere(self) -> bool:
        """Whether pairs are taken from anywhere in a photo."""
        return math.isinf(self.radius)
