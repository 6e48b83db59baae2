"""Distortions of one image or one caption, given its random numbers.

A kind of distortion is a function of a stimulus, an amount a in (0, 1] and the stimulus's own stream of random numbers. The
stream does not depend on the kind or the amount: what is changed at a small amount is changed at every larger one, by the
same draw.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

PATCH = 16  # pixels along the edge of a patch
GREY = 128

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


def _uniform(raw: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from the upper 53 bits."""
    return (raw >> 11) * 2.0**-53


# --- images: (height, width, 3) of uint8 -> the same -------------------------------------------------


def _noise(pixels: np.ndarray, amount: float, draw: Draw) -> np.ndarray:
    """(1 - a) x + a u with u uniform on the integers 0 to 255, drawn for every pixel and channel."""
    import numpy as np

    u = draw(math.ceil(pixels.size / 8)).astype("<u8").view(np.uint8)[: pixels.size]
    return _mix(pixels, u.reshape(pixels.shape), amount)


def _blur(pixels: np.ndarray, amount: float, draw: Draw) -> np.ndarray:  # noqa: ARG001
    """Gaussian blur with a standard deviation of a times a quarter of the shorter side (Pillow's three box filters)."""
    import numpy as np
    from PIL import Image, ImageFilter

    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(amount * min(pixels.shape[:2]) / 4))
    return np.asarray(blurred)


def _grey(pixels: np.ndarray, amount: float, draw: Draw) -> np.ndarray:  # noqa: ARG001
    """(1 - a) x + a y with the luma y = .299 R + .587 G + .114 B (Rec. 601)."""
    import numpy as np
    from PIL import Image

    return _mix(pixels, np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None], amount)


def _patches(pixels: np.ndarray, amount: float, draw: Draw) -> np.ndarray:
    """A share a of the whole patches change places in a ring; what is left at the right and below stays."""
    edge = _edge(pixels)
    rows, columns = pixels.shape[0] // edge, pixels.shape[1] // edge
    out = pixels.copy()
    for here, there in _ring(rows * columns, amount, draw):
        out[_patch(here, columns, edge)] = pixels[_patch(there, columns, edge)]
    return out


def _occlude(pixels: np.ndarray, amount: float, draw: Draw) -> np.ndarray:
    """A share a of the patches, cut ones at the border included, are mid-grey."""
    edge = _edge(pixels)
    rows, columns = (math.ceil(size / edge) for size in pixels.shape[:2])
    out = pixels.copy()
    for patch in _first(rows * columns, _share(rows * columns, amount), draw):
        out[_patch(patch, columns, edge)] = GREY
    return out


def _mix(x: np.ndarray, y: np.ndarray, amount: float) -> np.ndarray:
    import numpy as np

    return np.rint((1 - amount) * x + amount * y).astype(np.uint8)


def _edge(pixels: np.ndarray) -> int:
    """The edge of a patch in pixels: 16, or half the shorter side of an image that is smaller than 32."""
    return min(PATCH, max(1, min(pixels.shape[:2]) // 2))


def _patch(index: int, columns: int, edge: int) -> tuple[slice, slice]:
    row, column = divmod(index, columns)
    return slice(row * edge, (row + 1) * edge), slice(column * edge, (column + 1) * edge)


# --- captions: words -> the same number of words, None for one that is left out --------------------------


def _words(words: Sequence[str], amount: float, draw: Draw, vocabulary: Vocabulary) -> list[str | None]:
    """Each word with probability a is replaced by a word drawn from all captions (which may be the same one)."""
    u = _uniform(draw(2 * len(words))).tolist()
    chances, picks = u[: len(words)], u[len(words) :]
    return [vocabulary.pick(p) if c < amount else w for w, c, p in zip(words, chances, picks, strict=True)]


def _order(words: Sequence[str], amount: float, draw: Draw, vocabulary: Vocabulary) -> list[str | None]:  # noqa: ARG001
    """A share a of the words change places in a ring."""
    out: list[str | None] = list(words)
    for here, there in _ring(len(words), amount, draw):
        out[here] = words[there]
    return out


def _drop(words: Sequence[str], amount: float, draw: Draw, vocabulary: Vocabulary) -> list[str | None]:  # noqa: ARG001
    """Each word is left out with probability a; where all would be, the last one to go stays."""
    u = _uniform(draw(len(words)))
    last = int(u.argmax())
    return [w if chance >= amount or i == last else None for i, (w, chance) in enumerate(zip(words, u, strict=True))]


_WORD = re.compile(r"(\s*)(\S+)")


def rewrite(caption: str, change: Callable[[Sequence[str]], Sequence[str | None]]) -> str:
    """The caption with its words changed and its white space kept; a word is what stands between white space."""
    found = _WORD.findall(caption)
    if not found:
        return caption
    kept = [(gap, word) for (gap, _), word in zip(found, change([w for _, w in found]), strict=True) if word is not None]
    tail = caption[len(caption.rstrip()) :]
    return found[0][0] + kept[0][1] + "".join(gap + word for gap, word in kept[1:]) + tail


@dataclass(frozen=True)
class Vocabulary:
    """All words of some captions in alphabetical order, with their counts."""

    words: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, captions: Iterable[str]) -> Vocabulary:
        found = Counter(word for caption in captions for _, word in _WORD.findall(caption))
        return cls(tuple(sorted(found)), tuple(found[w] for w in sorted(found)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ``[words, counts]`` as JSON."""
        return hashlib.sha256(json.dumps([self.words, self.counts], ensure_ascii=False).encode()).hexdigest()

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.counts))

    def pick(self, u: float) -> str:
        """The word at the share u in [0, 1) of all words: a uniform u draws a word as often as it is used."""
        return self.words[bisect_right(self._ends, int(u * self._ends[-1]))]


# --- which items: the first of a random order that is the same at every amount ---------------------------


def _share(n: int, amount: float) -> int:
    """A share of n items as a whole number, halves upward."""
    return math.floor(amount * n + 0.5)


def _first(n: int, m: int, draw: Draw) -> list[int]:
    """The first m of n items in the stimulus's random order."""
    return draw(n).argsort(kind="stable")[:m].tolist()


def _ring(n: int, amount: float, draw: Draw) -> list[tuple[int, int]]:
    """Pairs (place, whose item it takes): a share of n items moves on by one in a random ring, so that each of them moves.

    One item alone cannot change places: if the share comes to one, two do.
    """
    m = _share(n, amount)
    chosen = _first(n, max(m, 2), draw) if m and n > 1 else []
    return list(zip(chosen, chosen[-1:] + chosen[:-1], strict=True))


# --- the kinds of distortion by name, and one stimulus ---------------------------------------------------

IMAGES = {"noise": _noise, "blur": _blur, "patches": _patches, "grey": _grey, "occlude": _occlude}
CAPTIONS = {"words": _words, "order": _order, "drop": _drop}


def distort_image(image: Image, how: Distortion, vocabulary: Vocabulary | None, *key: str) -> Image:  # noqa: ARG001
    """An image, at the size at which it is stored; `key` names the stimulus."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(IMAGES[how.kind](np.asarray(image), how.amount, stream(how.seed, *key)))


def distort_captions(captions: Sequence[str], how: Distortion, vocabulary: Vocabulary, *key: str) -> tuple[str, ...]:
    """The captions of a row, each with random numbers of its own; `vocabulary` is where replacements come from."""
    draws = [stream(how.seed, *key, index) for index in range(len(captions))]
    change = CAPTIONS[how.kind]
    return tuple(rewrite(c, lambda w, d=d: change(w, how.amount, d, vocabulary)) for c, d in zip(captions, draws, strict=True))
