"""Scenes as captions: "a small red circle upper left and a big blue box lower right ."

Each attribute is rounded to a word after a little noise, each word has two synonyms, the objects come in
either order. What is not named is left out; an object of unnamed shape is a "thing".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from repalign.errors import RepalignError, did_you_mean

if TYPE_CHECKING:
    from repalign.toyworld.world import Attributes

# Attributes in the order in which a caption speaks of them; each class of each attribute by two names.
WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "size": (("tiny", "wee"), ("small", "little"), ("big", "large"), ("huge", "giant")),
    "hue": (
        ("red", "scarlet"), ("tangerine", "rusty"), ("yellow", "golden"), ("lime", "chartreuse"), ("green", "verdant"),
        ("jade", "mint"), ("cyan", "turquoise"), ("sky", "cerulean"), ("blue", "sapphire"), ("violet", "purple"),
        ("magenta", "fuchsia"), ("pink", "rose"),
    ),
    "shape": (
        ("bar", "plank"), ("square", "box"), ("circle", "disc"), ("triangle", "wedge"), ("pillar", "column"),
        ("cross", "plus"), ("star", "spark"), ("diamond", "rhombus"),
    ),
    "height": (("top", "topmost"), ("upper", "high"), ("lower", "low"), ("bottom", "lowest")),
    "side": (("leftmost", "westmost"), ("left", "west"), ("middle", "central"), ("right", "east"), ("rightmost", "eastmost")),
}  # fmt: skip
KINDS = tuple(WORDS)
ORDER = ("shape", "hue", "height", "side", "size")  # in which growing detail names them, A's before B's
FULL = 2 * len(KINDS)  # attributes of a full caption
ROUNDING_NOISE = 0.03  # standard deviation, of sizes, heights and sides, in [0, 1]
HUE_NOISE = 0.08  # radians
SECOND_NAME = 0.25  # how often a class goes by the second of its names
FULL_SHARE = 0.7  # of the captions that models are usually trained on; the others name 1 to 9 attributes
MIXED_DETAIL = FULL_SHARE * FULL + (1 - FULL_SHARE) * FULL / 2  # attributes that these name on average

PAD, START, MASK = 0, 1, 2
_FUNCTION_WORDS = ("a", "and", "with", "thing", ".")
_NAMES = (word for classes in WORDS.values() for pair in classes for word in pair)
VOCABULARY: tuple[str, ...] = ("<pad>", "<start>", "<mask>", *_FUNCTION_WORDS, *_NAMES)
INDEX = {word: i for i, word in enumerate(VOCABULARY)}
_FIRST = {kind: INDEX[WORDS[kind][0][0]] for kind in KINDS}
LENGTH = 2 * (1 + len(KINDS)) + 2  # words of a full caption: both articles, the joint and the full stop


def classes(attributes: Attributes) -> np.ndarray:
    """The class of each attribute as a caption without noise names it: (n, 2, 5), in the order of KINDS."""
    return _round(attributes, np.zeros((len(attributes.hue), 2, len(KINDS))))


def first_named(detail: int) -> np.ndarray:
    """Which attributes a caption of this detail names: (2, 5) bool."""
    named = np.zeros((2, len(KINDS)), bool)
    for i in range(detail):
        named[i // len(ORDER), KINDS.index(ORDER[i % len(ORDER)])] = True
    return named


def some_named(n: int, rng: np.random.Generator, detail: int | None = None) -> np.ndarray:
    """What training captions name: (n, 2, 5) bool.

    Attributes at random, `detail` of them; by default all ten with probability `FULL_SHARE`, else 1 to 9.
    """
    size = np.full(n, detail)
    if detail is None:
        size = np.where(rng.random(n) < FULL_SHARE, FULL, rng.integers(1, FULL, n))
    rank = np.argsort(np.argsort(rng.random((n, FULL)), axis=1), axis=1)
    return (rank < size[:, None]).reshape(n, 2, len(KINDS))


def write(attributes: Attributes, named: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Captions as word numbers, padded at the end with PAD: (n, 14). `named` (n, 2, 5) says what they name."""
    n = len(attributes.hue)
    chance = rng.random((n, 2 * FULL + 2))  # one draw, so that the first rows do not depend on n
    noise = 12**0.5 * (chance[:, FULL + 2 :] - 0.5).reshape(n, 2, len(KINDS))
    synonym = (chance[:, :FULL] < SECOND_NAME).reshape(n, 2, len(KINDS))
    first = np.array([_FIRST[kind] for kind in KINDS])
    words = first + 2 * _round(attributes, noise) + synonym  # (n, 2, 5)
    words = np.where(named, words, PAD)
    shape = words[:, :, KINDS.index("shape")]
    shape[shape == PAD] = INDEX["thing"]
    phrases = np.concatenate([np.full((n, 2, 1), INDEX["a"]), words], axis=2)
    spoken_of = np.logical_or.reduce(named, axis=2)  # (n, 2)
    phrases *= spoken_of[:, :, None]
    swap = chance[:, FULL] < 0.5
    phrases[swap] = phrases[swap, ::-1]
    joint = np.where(chance[:, FULL + 1] < 0.5, INDEX["and"], INDEX["with"]) * spoken_of.all(axis=1)
    stop = np.full((n, 1), INDEX["."])
    row = np.concatenate([phrases[:, 0], joint[:, None], phrases[:, 1], stop], axis=1)
    packed = np.argsort(row == PAD, axis=1, kind="stable")
    return np.take_along_axis(row, packed, axis=1).astype(np.int64)


def decode(tokens: np.ndarray) -> list[str]:
    """The captions of word numbers."""
    return [" ".join(VOCABULARY[t] for t in row if t != PAD) for row in tokens.tolist()]


def encode(texts: Sequence[str]) -> np.ndarray:
    """The word numbers of captions, padded at the end to the longest: (n, longest).

    Raises RepalignError that names the caption and the first word which the toy world does not have.
    """
    rows = []
    for i, text in enumerate(texts):
        words = text.split()
        if len(words) > LENGTH:
            raise RepalignError(
                f"toy model: caption {i} of the batch, {text[:80]!r}, is longer than any of the toy world",
                expected=f"at most {LENGTH} words", got=f"{len(words)} words",
                remedy="toy models read the captions of the toy world only"
            )
        unknown = next((w for w in words if w not in INDEX or INDEX[w] <= MASK), None)
        if unknown is not None or not words:
            raise RepalignError(
                f"toy model: caption {i} of the batch, {text[:80]!r}, is not of the toy world",
                expected="words of the toy world, separated by blanks",
                got=repr(unknown) if words else "no words",
                remedy="toy models read the captions of the toy world only"
                + (f"; {did_you_mean(unknown, VOCABULARY[MASK + 1 :])}" if unknown is not None else ""),
            )
        rows.append([INDEX[w] for w in words])
    out = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _round(attributes: Attributes, noise: np.ndarray) -> np.ndarray:
    """Classes (n, 2, 5) of attributes to which `noise` (n, 2, 5) of unit variance has been added."""
    found = np.empty(noise.shape, np.int64)
    for i, kind in enumerate(KINDS):
        number = len(WORDS[kind])
        if kind == "hue":
            turn = (attributes.hue + HUE_NOISE * noise[:, :, i]) / (2 * np.pi)
            found[:, :, i] = np.rint(number * turn).astype(np.int64) % number
        elif kind == "shape":
            found[:, :, i] = attributes.shape
        else:
            value = {"size": attributes.size, "height": attributes.y, "side": attributes.x}[kind]
            level = np.floor(number * (value + ROUNDING_NOISE * noise[:, :, i])).astype(np.int64)
            found[:, :, i] = np.clip(level, 0, number - 1)
    return found
