"""Distortions of one stimulus, given its random numbers. Which there are is said by each kind of stimuli.

A kind of distortion is a function of a stimulus, an amount a in (0, 1] and the stimulus's own stream of random numbers. The
stream does not depend on the kind or the amount: what is changed at a small amount is changed at every larger one, by the
same draw.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# n -> the first n numbers of a stimulus's stream, uniform on 0 .. 2**64 - 1
Draw = Callable[[int], "np.ndarray"]


@dataclass(frozen=True)
class Distortion:
    """A distortion of a modality: the kind, its amount from 0 (nothing) to 1, and the seed of its random numbers."""

    kind: str
    amount: float
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.amount:g}"


def stream(*key: str | int) -> Draw:
    """The random numbers that belong to a key (seed, id, modality and, for a caption, its index).

    They are the raw output of numpy's PCG64, which every version of numpy gives alike, seeded with the first 16 bytes of
    the SHA-256 of the key as JSON.
    """
    import numpy as np

    sha = hashlib.sha256(json.dumps(key, ensure_ascii=False).encode()).digest()
    seed = int.from_bytes(sha[:16], "little")
    return lambda n: np.random.PCG64(seed).random_raw(n)


def uniform(raw: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from the upper 53 bits."""
    return (raw >> 11) * 2.0**-53


# --- which items: the first of a random order that is the same at every amount ---------------------------


def share(n: int, amount: float) -> int:
    """A share of n items as a whole number, halves upward."""
    return math.floor(amount * n + 0.5)


def first(n: int, m: int, draw: Draw) -> list[int]:
    """The first m of n items in the stimulus's random order."""
    return draw(n).argsort(kind="stable")[:m].tolist()


def ring(n: int, amount: float, draw: Draw) -> list[tuple[int, int]]:
    """Pairs (place, whose item it takes): a share of n items moves on by one in a random ring, so that each of them moves.

    One item alone cannot change places: if the share comes to one, two do.
    """
    m = share(n, amount)
    chosen = first(n, max(m, 2), draw) if m and n > 1 else []
    return list(zip(chosen, chosen[-1:] + chosen[:-1], strict=True))
