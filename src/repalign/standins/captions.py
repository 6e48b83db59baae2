"""Captions of scenes: of full length, or of a given number of words, and some that are awkward on purpose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import cycle, islice

from repalign.toyworld import captions as toy
from repalign.toyworld.world import Attributes, stream

# What a caption goes on with when the scene has no more to say than the words that are asked for.
MORE = (
    "as somebody who stood near the place saw it on a quiet day and told it to a friend "
    "who wrote it down word by word and kept the page"
)


def words_of(column: str) -> int | None:
    """How many words the captions of a column have: the number in its name, None if there is none.

    >>> words_of("caption_20"), words_of("text")
    (20, None)
    """
    found = re.search(r"\d+", column)
    return int(found[0]) or None if found else None


def write_captions(attributes: Attributes, seed: int, column: str, number: int) -> list[str]:
    """Caption `number` of a column for every scene, of the length that the column's name asks for."""
    n, length = len(attributes.hue), words_of(column)
    rng = stream(seed, f"stand-in {column} {number}")
    detail = toy.FULL if length is None else _detail(length)
    named = toy.some_named(n, rng) if number else None  # later captions leave some of the attributes out
    if named is None or length is not None:
        named = toy.first_named(detail)[None].repeat(n, axis=0)
    return [_sentence(text.split(), length) for text in toy.decode(toy.write(attributes, named, rng))]


def make_awkward(captions: list[list[str]], counted: bool) -> None:
    """Put the things into some rows that a parser stumbles over; `captions` are rows of captions.

    Row 1 has quotation marks, row 2 letters beyond ASCII, row 3 a first caption of two words (unless the words are
    `counted`), and row 5 the captions of row 0.
    """
    for row, change in ((1, _quoted), (2, _foreign), (3, None if counted else _short)):
        if row < len(captions) and change is not None:
            captions[row][0] = change(captions[row][0])
    if len(captions) > 5:
        captions[5] = list(captions[0])


def distinct(captions: Sequence[str]) -> list[str]:
    """The captions of one row; one that says the same as an earlier one says it again, in other words."""
    out: list[str] = []
    for caption in captions:
        while caption in out:
            caption = f"Again, {caption[0].lower()}{caption[1:]}"
        out.append(caption)
    return out


def _detail(length: int) -> int:
    """The most attributes that a caption of this many words can name: 1 + d words for d <= 5, else d + 3."""
    return min(toy.FULL, max(1, length - 3 if length >= 9 else min(length - 1, 5)))


def _sentence(words: list[str], length: int | None) -> str:
    """Words of the toy world as a sentence; the full stop is no word."""
    words = [w for w in words if w != "."]
    if length is not None:
        words = [*words, *islice(cycle(MORE.split()), max(0, length - len(words)))][:length]
    text = " ".join(words)
    return f"{text[0].upper()}{text[1:]}."


def _quoted(caption: str) -> str:
    first, *rest = caption.split(" ")
    return " ".join([f'"{first}"', *rest[:-1], *(f"'{w}'" for w in rest[-1:])])


def _foreign(caption: str) -> str:
    first, *rest = caption.split(" ")
    return " ".join([first, *(["naïve-Ωmega-世界"] if rest else []), *rest[1:]])


def _short(caption: str) -> str:
    return f"{' '.join(caption.split(' ')[:2]).rstrip('.')}."
