"""The scores that a study's competence block asks for: from files, and measured on a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from repalign.models import ModelRecord
from repalign.sources import parse_spec
from repalign.study.config import BitsConfig, CompetenceConfig, ExtractConfig
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from repalign.competence import Corpus, Score
    from repalign.representation import Representation
    from repalign.sources import ModelEntry

PROMPTED = "texts stand in a prompt"  # why a causal model may have no bits of the stimuli; it still has those of a corpus


class Competence:
    """What files and the corpus say of models. `folder` keeps what was measured, so that it is measured once."""

    def __init__(
        self, config: CompetenceConfig, base: Path, folder: Path, extraction: ExtractConfig, progress: Progress = silent
    ) -> None:
        self.config, self.base, self.folder = config, base, folder
        self.extraction, self.progress = extraction, progress

    @property
    def is_asked(self) -> bool:
        return bool(self.files or self.config.bits_per_byte)

    @cached_property
    def files(self) -> list[Score]:
        """The scores of all files, of whichever models."""
        from repalign.competence import read_lm_eval, read_scores, read_timm

        readers = {"lm_eval": read_lm_eval, "timm": read_timm, "csv": read_scores}
        return [s for kind, read in readers.items() for path in getattr(self.config, kind) for s in read(self.base / path)]

    def record(self, entry: ModelEntry, representation: Representation) -> ModelRecord:
        """The record of a model with every score that is known of it."""
        from repalign.competence import img_size_of, join_scores

        scores = [*self.files, *self._bits(entry, representation)]
        if not scores:
            return representation.record
        record, size = representation.record, img_size_of(representation.facts)
        sizes = {} if size is None else {record.name: size}
        joined = join_scores([record], scores, missing="skip", overwrite=True, img_sizes=sizes)
        for line in joined.sizes:
            self.progress("competence", 0, 0, line)
        return joined.records[0]

    def _bits(self, entry: ModelEntry, representation: Representation) -> list[Score]:
        """Bits per byte of the corpus; of causal language models only, and the extraction has found out which are."""
        from repalign.competence import BitsProtocol, Score, bits_per_byte

        config, told = self.config.bits_per_byte, representation.facts.get("bits_per_byte")
        # A definition where the extraction computed them for the stimuli; else a sentence that says why not.
        causal = isinstance(told, Mapping) or PROMPTED in str(told)
        if config is None or not parse_spec(entry.spec).source.measures_bits or not causal:
            return []
        found = bits_per_byte(
            entry.spec,
            self._corpus(config),
            BitsProtocol(context=config.context, stride=config.stride, max_tokens=config.max_tokens),
            state=self.folder / f"{parse_spec(entry.spec).slug}.json",
            batch_size=config.batch_size,
            device=self.extraction.device,
            dtype=self.extraction.dtype,
            trust_remote_code=self.extraction.trust_remote_code,
            progress=self.progress,
        )
        return [Score(entry.spec, "bits_per_byte", found.bits_per_byte, config.corpus)]

    def _corpus(self, config: BitsConfig) -> Corpus:
        from repalign.competence.corpus import HUB, named_corpus

        name = config.corpus if config.corpus.startswith(HUB) else str(self.base / Path(config.corpus).expanduser())
        return named_corpus(name, config.column, documents=config.documents, split=config.split, revision=config.revision)
