"""Columns whose stimuli are distorted when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from repalign.dataset._columns import Column, Texts
from repalign.dataset._distortions import IMAGE, TEXT, Distortion, Vocabulary, rewrite, stream

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Distorted(Column):
    """A column with a distortion of every row; the digest of a row follows from what it was and what is done to it."""

    base: Column
    distortion: Distortion
    modality: str
    ids: tuple[str, ...]

    @cached_property
    def digests(self) -> tuple[str, ...]:  # type: ignore[override]
        how = [self.distortion.kind, self.distortion.amount, self.distortion.seed, *self._pool()]
        given = (json.dumps(["repalign-distort-1", d, *how], separators=(",", ":")) for d in self.base.digests)
        return tuple(hashlib.sha256(g.encode()).hexdigest() for g in given)

    def _pool(self) -> list[str]:
        """The digest of what else enters the stimuli, if anything does."""
        return []

    def take(self, rows: Sequence[int]) -> Distorted:
        return replace(self, base=self.base.take(rows), ids=tuple(self.ids[r] for r in rows))


@dataclass(frozen=True, eq=False)
class DistortedImages(Distorted):
    """Images that are distorted at the size at which they are stored."""

    kind: ClassVar[str] = "image"

    def read(self, row: int) -> Image:
        import numpy as np
        from PIL import Image

        how = self.distortion
        pixels = np.asarray(self.base.read(row))
        return Image.fromarray(IMAGE[how.kind](pixels, how.amount, stream(how.seed, self.ids[row], self.modality)))


@dataclass(frozen=True, eq=False)
class DistortedTexts(Distorted):
    """Captions, each with random numbers of its own. `vocabulary` is where replacements come from."""

    kind: ClassVar[str] = "text"
    vocabulary: Vocabulary

    def read(self, row: int) -> tuple[str, ...]:
        captions = self.base.read(row)
        return tuple(self._caption(caption, row, index) for index, caption in enumerate(captions))

    def _caption(self, caption: str, row: int, index: int) -> str:
        how = self.distortion
        draw = stream(how.seed, self.ids[row], self.modality, index)
        return rewrite(caption, lambda words: TEXT[how.kind](words, how.amount, draw, self.vocabulary))

    def _pool(self) -> list[str]:
        return [self.vocabulary.digest] if self.distortion.kind == "words" else []


def distorted(column: Column, distortion: Distortion, modality: str, ids: tuple[str, ...]) -> Distorted:
    """A column of images or captions, distorted."""
    common: dict[str, Any] = {"base": column, "distortion": distortion, "modality": modality, "ids": ids}
    return DistortedTexts(**common, vocabulary=column.vocabulary) if isinstance(column, Texts) else DistortedImages(**common)
