"""What the stimuli of a dataset ask of a model: tokens of its captions, seconds to read its images."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.sources import ModelEntry, parse_spec
from repalign.sources.hub import file_of

TOKENS_PER_WORD = 1.4  # of English text, for tokenizers of some ten thousand tokens
CAPTIONS = 500  # of which the mean length is taken
IMAGES = 8  # that are read for the time of one
SIDE = 224  # pixels that they are scaled to


@dataclass
class Stimuli:
    """The columns of a dataset as models see them; what is found is found once."""

    dataset: Dataset
    _seconds: dict[str, float | None] = field(default_factory=dict)

    def column(self, entry: ModelEntry, kind: str) -> str | None:
        """The column that a model reads: the one named, or the only one of its kind."""
        fitting = [m for m in self.dataset.modalities if self.dataset.kind(m) == kind]
        if entry.modality in fitting:
            return entry.modality
        return fitting[0] if len(fitting) == 1 else None

    def tokens(self, entry: ModelEntry) -> float | None:
        """Mean tokens of the captions that a model reads; by its tokenizer where that is on this machine."""
        column = self.column(entry, "text")
        if column is None:
            return None
        rows = range(0, self.dataset.n, max(1, self.dataset.n // CAPTIONS))
        every = [c[entry.caption] for c in self.dataset.stimuli(column, rows) if entry.caption < len(c)]
        texts = [entry.prompted(c) for c in every]
        if not texts:
            return None
        counted = _tokenized(entry, texts)
        return counted or TOKENS_PER_WORD * float(np.mean([len(t.split()) for t in texts]))

    def image_seconds(self, entry: ModelEntry) -> float | None:
        """Seconds to read, decode and scale one image, measured on a few."""
        column = self.column(entry, "image")
        if column is None:
            return None
        if column not in self._seconds:
            self._seconds[column] = self._read(column)
        return self._seconds[column]

    def _read(self, column: str) -> float | None:
        from PIL import Image

        spent = []
        for row in range(0, self.dataset.n, max(1, self.dataset.n // IMAGES)):
            start = time.perf_counter()
            try:
                image = self.dataset.stimuli(column, [row])[0]
            except RepalignError:  # an image that has gone: the run will say so
                return None
            np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
            spent.append(time.perf_counter() - start)
        return float(np.median(spent))


def _tokenized(entry: ModelEntry, texts: list[str]) -> float | None:
    """Mean tokens by the model's own tokenizer, or None where it is not on this machine."""
    path = file_of(parse_spec(entry.spec), "tokenizer.json")
    if path is None:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # the library raises plain Exception for files that it does not know
        return None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return float(np.mean([len(e.ids) for e in tokenizer.encode_batch(texts)]))
