"""How large a stand-in is: depth, width and seed, which follow from the model's name alone.

Larger models have larger stand-ins where their size is known, so that what a table or a trend shows is in the usual order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from repalign.models import known_models
from repalign.standins.folders import seed_of

HEADS = 4
DEPTHS = (2, 5)
WIDTHS = (16, 48)  # multiples of 8: heads of an even number of features, as rotary positions need
INNER = (24, 120)  # of the two layers behind attention; its steps are fine, so that no two sizes are one
KNOWN_SIZES = {"text": (8.5, 11.0), "image": (6.7, 9.2)}  # log10 of parameters: what counts as small and as large


@dataclass(frozen=True)
class Shape:
    """Blocks, features, features inside of a block, and the seed of the weights."""

    depth: int
    width: int
    inner: int
    seed: int

    @property
    def n_parameters(self) -> int:
        """Numbers in the blocks: 4 d^2 of attention and 2 d m behind it, each."""
        return self.depth * (4 * self.width**2 + 2 * self.width * self.inner)


def level_of(name: str) -> float:
    """How large a model is among its like, from 0 to 1: from its parameters where it is known, else from its name's digest."""
    known = next((k for k in known_models() if name in (k.name, k.spec)), None)
    if known is None:
        return seed_of("level", name) % 1000 / 999
    low, high = KNOWN_SIZES[known.modality]
    return min(1.0, max(0.0, (math.log10(known.parameters) - low) / (high - low)))


def shape_of(name: str, seed: int) -> Shape:
    """The shape of the stand-in of a model of this name."""
    level = level_of(name)
    return Shape(
        depth=_between(level, DEPTHS),
        width=8 * _between(level, (WIDTHS[0] // 8, WIDTHS[1] // 8)),
        inner=_between(level, INNER),
        seed=seed_of("weights", name, seed),
    )


def _between(level: float, ends: tuple[int, int]) -> int:
    return ends[0] + round(level * (ends[1] - ends[0]))
