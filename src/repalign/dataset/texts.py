"""Captions: one or several texts of each row."""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from repalign.dataset.columns import Cells, Checked, Distortion, Draw, Wanted, ring, stream, uniform
from repalign.errors import RepalignError, choose
from repalign.tables import bad_text, read_table, split_lines
from repalign.text import Progress

if TYPE_CHECKING:
    from repalign.toyworld.world import Attributes

# What a caption goes on with when the scene has no more to say than the words that are asked for.
MORE = (
    "as somebody who stood near the place saw it on a quiet day and told it to a friend "
    "who wrote it down word by word and kept the page"
)
TABLES = ("captions.jsonl", "captions.csv")  # of a folder
COLUMNS = ("captions", "caption")  # of such a table
SUFFIX = ".txt"
_WORD = re.compile(r"(\s*)(\S+)")


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


# --- distortions: words -> the same number of words, None for one that is left out --------------------------


def _words(words: Sequence[str], amount: float, draw: Draw, vocabulary: Vocabulary) -> list[str | None]:
    """Each word with probability a is replaced by a word drawn from all captions (which may be the same one)."""
    u = uniform(draw(2 * len(words))).tolist()
    chances, picks = u[: len(words)], u[len(words) :]
    return [vocabulary.pick(p) if c < amount else w for w, c, p in zip(words, chances, picks, strict=True)]


def _order(words: Sequence[str], amount: float, draw: Draw, vocabulary: Vocabulary) -> list[str | None]:  # noqa: ARG001
    """A share a of the words change places in a ring."""
    out: list[str | None] = list(words)
    for here, there in ring(len(words), amount, draw):
        out[here] = words[there]
    return out


def _drop(words: Sequence[str], amount: float, draw: Draw, vocabulary: Vocabulary) -> list[str | None]:  # noqa: ARG001
    """Each word is left out with probability a; where all would be, the last one to go stays."""
    u = uniform(draw(len(words)))
    last = int(u.argmax())
    return [w if chance >= amount or i == last else None for i, (w, chance) in enumerate(zip(words, u, strict=True))]


def rewrite(caption: str, change: Callable[[Sequence[str]], Sequence[str | None]]) -> str:
    """The caption with its words changed and its white space kept; a word is what stands between white space."""
    found = _WORD.findall(caption)
    if not found:
        return caption
    kept = [(gap, word) for (gap, _), word in zip(found, change([w for _, w in found]), strict=True) if word is not None]
    tail = caption[len(caption.rstrip()) :]
    return found[0][0] + kept[0][1] + "".join(gap + word for gap, word in kept[1:]) + tail


DISTORTIONS = {"words": _words, "order": _order, "drop": _drop}


# --- the kind ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts(Cells):
    """All captions of each row. The digest covers the captions of a row as a JSON list in UTF-8.

    `whole` is the column that this one was taken from, so that all subsets of a dataset have one vocabulary.
    """

    kind: ClassVar[str] = "text"
    plural: ClassVar[str] = "captions"
    several: ClassVar[bool] = True
    distortions: ClassVar[Mapping[str, Any]] = DISTORTIONS
    captions: tuple[tuple[str, ...], ...]
    whole: Texts | None = field(default=None, repr=False, compare=False)

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        try:
            return tuple(hashlib.sha256(json.dumps(list(c), ensure_ascii=False).encode()).hexdigest() for c in self.captions)
        except UnicodeEncodeError as error:  # of captions that came without a table
            bad = ((row, problem) for row, c in enumerate(self.captions) for problem in map(bad_text, c) if problem)
            row, problem = next(bad)
            text = f"row {row} has a caption with {problem}"
            raise RepalignError(text, expected="text", remedy="mend the caption") from error

    @cached_property
    def vocabulary(self) -> Vocabulary:  # type: ignore[override]
        """The words of all captions, also of rows that were not taken."""
        if self.whole is not None:
            return self.whole.vocabulary
        return Vocabulary.of(c for captions in self.captions for c in captions)

    def read(self, row: int) -> tuple[str, ...]:
        return self.captions[row]

    def take(self, rows: Sequence[int]) -> Texts:
        return Texts(tuple(self.captions[r] for r in rows), self.whole or self)

    def __getstate__(self) -> dict[str, Any]:
        """A part that is sent to another process takes the vocabulary of the whole along, not the whole."""
        if self.whole is None:
            return self.__dict__
        return {**self.__dict__, "vocabulary": self.vocabulary, "whole": None}

    @classmethod
    def cell(
        cls, values: Sequence[Any], names: Sequence[str], row: int, where: str, folder: Path  # noqa: ARG003
    ) -> tuple[Any, ...] | list[Any]:
        """The captions of one row: of one column a string or a list (None is none), of several columns a string each."""
        if len(values) == 1:
            (cell,) = values
            return () if cell is None else list(cell) if isinstance(cell, list | tuple) else (cell,)
        for value, name in zip(values, names, strict=True):
            if isinstance(value, list):
                raise RepalignError(
                    f"{where}: row {row}, column {name!r} holds a list",
                    expected="one caption per column where several text columns are named", got=f"a list of {len(value)}",
                    remedy=f"name {name!r} alone",
                )
        return list(values)

    @classmethod
    def beside(
        cls, folder: Path, files: Sequence[Path], where: str, kinds: Sequence[str]
    ) -> tuple[dict[str, tuple[Any, ...]] | None, str]:
        """The captions of a folder by the path of what they are of, without its suffix, and in words where they are.

        They are in text files, or in one table, whose column of files is called as one of the `kinds` of them; None if
        there is neither.
        """
        notes = [p for p in files if p.suffix.lower() == SUFFIX]
        tables = [t for t in TABLES if (folder / t).is_file()]
        if len(tables) + bool(notes) > 1:
            raise RepalignError(
                f"folder {where!r} has captions in more than one form",
                expected=f"one {', or one '.join(TABLES)}, or a {SUFFIX} file beside each {kinds[0]}",
                got=", ".join([*tables, *[str(n) for n in notes[:1]]]), remedy="keep one of them in the folder",
            )
        if tables:
            return _of_table(folder / tables[0], kinds), f"captions: {tables[0]}"
        if notes:
            return {p.with_suffix("").as_posix(): _of_note(folder / p, where) for p in notes}, f"captions: {SUFFIX} files"
        return None, "captions: none"

    @classmethod
    def checked(cls, cells: Sequence[Any], progress: Progress) -> list[Checked]:  # noqa: ARG003
        """The captions of every row as strings.

        The first caption of a row counts, so it must be there. A later one that is missing leaves ``""`` in its
        place, so that "the third caption" means the same in every row; at the end it is dropped.
        """
        out: list[Checked] = []
        for captions in (cell or () for cell in cells):
            kept, why = [], None
            for i, caption in enumerate("" if c is None else c for c in captions):
                if not isinstance(caption, str):
                    why = why or f"caption {i} is no text: {caption!r} ({type(caption).__name__})"
                elif problem := bad_text(caption):
                    why = why or f"caption {i} has {problem}"
                kept.append(caption if str(caption).strip() else "")
            while kept and not kept[-1]:
                kept.pop()
            if why is None and (not kept or not kept[0]):
                why = f"caption missing: {captions[0] if captions else None!r}"
            out.append((tuple(kept), why))
        return out

    @classmethod
    def distort(cls, stimulus: Sequence[str], how: Distortion, vocabulary: Vocabulary | None, *key: str) -> tuple[str, ...]:
        """The captions of a row, each with random numbers of its own; `vocabulary` is where replacements come from."""
        draws = [stream(how.seed, *key, index) for index in range(len(stimulus))]
        change = DISTORTIONS[how.kind]
        return tuple(rewrite(c, lambda w, d=d: change(w, how.amount, d, vocabulary)) for c, d in zip(stimulus, draws, strict=True))

    @classmethod
    def made_up(cls, wanted: Wanted) -> list[str] | list[list[str]]:
        """A string of each row, or a list of so many different ones; awkward ones in some rows."""
        column = wanted.column
        written = (write_captions(wanted.scenes, wanted.seed, column, number) for number in range(wanted.several))
        rows = [list(row) for row in zip(*written, strict=True)]
        for number, change in ((1, _quoted), (2, _foreign), (3, _short if words_of(column) is None else str)):
            if number < len(rows):
                rows[number][0] = change(rows[number][0])
        if len(rows) > 5:
            rows[5] = list(rows[0])
        rows = [distinct(row) for row in rows]
        return rows if wanted.several > 1 else [row[0] for row in rows]


def _of_note(path: Path, where: str) -> tuple[str, ...]:
    try:
        lines = split_lines(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise RepalignError(f"folder {where!r}: {path.name} is no text in UTF-8", got=error) from error
    return tuple(line.strip() for line in lines if line.strip())


def _of_table(path: Path, kinds: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    table = read_table(path)
    file = next((kind for kind in kinds if kind in table.columns), kinds[0])
    column = next((c for c in COLUMNS if c in table.columns), COLUMNS[0])
    for needed in (file, column):
        choose("column", needed, table.columns, f"{path.name} has no column {needed!r}")
    captions: dict[str, tuple[Any, ...]] = {}
    for i, cells in enumerate(table.rows):
        name = cells.get(file)
        if not isinstance(name, str) or not name.strip():
            raise RepalignError(f"{path.name}: row {i} names no {file}", expected="a path in the folder", got=repr(name))
        id_ = Path(name).with_suffix("").as_posix()
        captions[id_] = (*captions.get(id_, ()), *(Texts.cell([cells.get(column)], [column], i, path.name, path) or (None,)))
    return captions


# --- captions that are made up, for mock runs -----------------------------------------------------


def words_of(column: str) -> int | None:
    """How many words the captions of a column have: the number in its name, None if there is none.

    >>> words_of("caption_20"), words_of("text")
    (20, None)
    """
    found = re.search(r"\d+", column)
    return int(found[0]) or None if found else None


def write_captions(attributes: Attributes, seed: int, column: str, number: int) -> list[str]:
    """Caption `number` of a column for every scene, of the length that the column's name asks for."""
    from repalign.toyworld import captions as toy
    from repalign.toyworld import world

    n, length = len(attributes.hue), words_of(column)
    rng = world.stream(seed, f"stand-in {column} {number}")
    named = toy.some_named(n, rng) if number else None  # later captions leave some of the attributes out
    if named is None or length is not None:
        # The most attributes that a caption of so many words can name: d of them take 1 + d words for d <= 5, else d + 3.
        detail = min(toy.FULL, max(1, (length - 3 if length >= 9 else min(length - 1, 5)))) if length else toy.FULL
        named = toy.first_named(detail)[None].repeat(n, axis=0)
    out = []
    for text in toy.decode(toy.write(attributes, named, rng)):
        words = [w for w in text.split() if w != "."]  # the full stop is no word
        if length is not None:
            words = [*words, *islice(cycle(MORE.split()), max(0, length - len(words)))][:length]
        sentence = " ".join(words)
        out.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return out


def distinct(captions: Sequence[str]) -> list[str]:
    """The captions of one row; one that says the same as an earlier one says it again, in other words."""
    out: list[str] = []
    for caption in captions:
        while caption in out:
            caption = f"Again, {caption[0].lower()}{caption[1:]}"
        out.append(caption)
    return out


def _short(caption: str) -> str:
    return f"{' '.join(caption.split(' ')[:2]).rstrip('.')}."


def _quoted(caption: str) -> str:
    first, *rest = caption.split(" ")
    return " ".join([f'"{first}"', *rest[:-1], *(f"'{w}'" for w in rest[-1:])])


def _foreign(caption: str) -> str:
    first, *rest = caption.split(" ")
    return " ".join([first, *(["naïve-Ωmega-世界"] if rest else []), *rest[1:]])
