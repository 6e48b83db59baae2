"""What a study compares: every dataset opened once, every model run on it once, whatever the number of variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repalign.comparison.alignment import MOCK_OF
from repalign.errors import RepalignError
from repalign.layers import FEATURES, KINDS
from repalign.representation import break_pairs, check_sample, mean_of, refuse_mean, sample_rows
from repalign.sources import parse_spec
from repalign.study.config import CompetenceConfig, ExtractConfig
from repalign.study.load import Variant
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from repalign.competence import Score
    from repalign.dataset import Dataset
    from repalign.representation import Representation
    from repalign.sources import ModelEntry

PROMPTED = "texts stand in a prompt"  # why a causal model may have no bits of the stimuli; it still has those of a corpus


@dataclass(frozen=True)
class Members:
    """The representations of one variant; the models that had to be left out, with the reason; warnings."""

    x: list[Representation]
    y: list[Representation] | None
    everything: list[Representation]  # of both sides
    skipped: dict[str, str]
    warnings: list[str]


@dataclass
class Inputs:
    """Datasets and representations of the variants of a study, each made once.

    `competence` says how good the models are; that goes into their records. With `is_mock` the datasets say so in their
    names.
    """

    base: Path
    store: str
    progress: Progress = silent
    executor: Executor | None = None
    is_mock: bool = False
    competence: Competence | None = None
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _found: dict[str, Any] = field(default_factory=dict)

    def dataset(self, variant: Variant) -> Dataset:
        config = variant.config.dataset
        key = config.model_dump_json()
        if key not in self._datasets:
            opened = config.open(self.base, self.progress)
            self._datasets[key] = replace(opened, name=MOCK_OF + opened.name) if self.is_mock else opened
        return self._datasets[key]

    def check(self, variant: Variant) -> None:
        """Refuse before any work what this number of stimuli or the kinds of the files forbid, by the name of the model."""
        config, dataset = variant.config, self.dataset(variant)
        where = f"{variant.name}: dataset {dataset.name!r}" if variant.name else f"dataset {dataset.name!r}"
        if config.rows is not None:
            check_sample(config.rows.n, dataset.n, where)
        kinds = {f"model {e.label}": str(e.kind) for side in variant.sides for e in side if e.kind in KINDS}
        for measure in variant.named:
            measure.check(dataset.n if config.rows is None else config.rows.n, where, kinds)
        variant.preprocess.check(kinds)
        for side, captions in zip(variant.sides, (config.captions.x, config.captions.y), strict=False):
            for entry in side:
                refuse_mean(entry.label, str(entry.kind or FEATURES), captions)

    def members(self, variant: Variant) -> Members:
        """What a variant compares: extracted, averaged over captions, sampled, and with its pairs broken."""
        config, skipped = variant.config, {}
        sides = [self._side(variant, side, skipped) for side in variant.captioned]
        x, y = sides[0], sides[1] if len(sides) == 2 else None
        if not x or y == [] or (y is None and len(x) < 2):
            raise RepalignError(
                "there is nothing left to compare: models are not available",
                expected="one model of each side, or two of one list",
                got="; ".join(f"{name}: {reason}" for name, reason in skipped.items()),
            )
        warnings = [f"model {name} was left out: {reason}" for name, reason in skipped.items()]
        if self.competence is not None:
            warnings += self.competence.missing([*x, *(y or ())])
        if config.rows is not None:
            both = sample_rows([*x, *(y or ())], config.rows.n, config.rows.seed)
            x, y = both[: len(x)], None if y is None else both[len(x) :]
        if config.broken_pairs is not None and config.broken_pairs.share:
            x = break_pairs(x, config.broken_pairs.share, config.broken_pairs.seed)
            warnings.append(f"{config.broken_pairs.share:.4g} of the pairs are broken on purpose")
        return Members(x, y, [*x, *(y or ())], skipped, warnings)

    def _side(self, variant: Variant, side: list[list[ModelEntry]], skipped: dict[str, str]) -> list[Representation]:
        """The models of a side, each averaged over its captions; those that are not available go to `skipped`."""
        from repalign.sources import Skipped, extract

        dataset, options = self.dataset(variant), variant.config.extract
        about, how = f"{dataset.fingerprint} {options.model_dump_json()}", options.model_dump(exclude_unset=True)
        new = {f"{about} {e!r}": e for several in side for e in several if f"{about} {e!r}" not in self._found}
        made = extract(dataset, list(new.values()), self.store, executor=self.executor, progress=self.progress, **how)
        for (key, entry), one in zip(new.items(), made, strict=True):
            is_scored = self.competence is not None and not isinstance(one, Skipped)
            self._found[key] = self.competence.scored(entry, one) if is_scored else one
        out = []
        for several in side:
            parts = [self._found[f"{about} {e!r}"] for e in several]
            missing = next((p for p in parts if isinstance(p, Skipped)), None)
            if missing is None:
                out.append(mean_of(parts))
            else:
                skipped[several[0].label] = missing.reason
        return out


class Competence:
    """The scores that a study's competence block asks for. `folder` keeps what was measured, so that it is measured once."""

    def __init__(
        self, config: CompetenceConfig, base: Path, folder: Path, extraction: ExtractConfig, progress: Progress = silent
    ) -> None:
        self.config, self.base, self.folder = config, base, folder
        self.extraction, self.progress = extraction, progress

    @cached_property
    def files(self) -> list[Score]:
        """The scores of all files, of whichever models."""
        from repalign.competence import read_lm_eval, read_scores, read_timm

        readers = {"lm_eval": read_lm_eval, "timm": read_timm, "csv": read_scores}
        return [s for kind, read in readers.items() for path in getattr(self.config, kind) for s in read(self.base / path)]

    def scored(self, entry: ModelEntry, representation: Any) -> Any:
        """A stored representation with every score that is known of its model in its record."""
        from repalign.competence import img_size_of, join_scores

        scores = [*self.files, *self._bits(entry, representation)]
        if not scores:
            return representation
        record, size = representation.record, img_size_of(representation.facts)
        sizes = {} if size is None else {record.name: size}
        joined = join_scores([record], scores, missing="skip", overwrite=True, img_sizes=sizes)
        for line in joined.sizes:
            self.progress("competence", 0, 0, line)
        return representation.with_record(joined.records[0])

    def missing(self, representations: Sequence[Representation]) -> list[str]:
        """A warning about models of which the files say nothing, if they say something of others."""
        names = {score.name for score in self.files}
        without = [r.name for r in representations if not names & set(r.record.scores)]
        return [f"the study's competence files say nothing of {', '.join(without)}"] if names and without else []

    def _bits(self, entry: ModelEntry, representation: Representation) -> list[Score]:
        """Bits per byte of the corpus; of causal language models only, and the extraction has found out which are."""
        from repalign.competence import BitsProtocol, Score, bits_per_byte
        from repalign.competence.corpus import HUB, named_corpus

        config, found = self.config.bits_per_byte, representation.facts.get("bits_per_byte")
        # A definition if the extraction computed them for the stimuli; else a sentence that says why not.
        causal = isinstance(found, Mapping) or PROMPTED in str(found)
        if config is None or not parse_spec(entry.spec).source.measures_bits or not causal:
            return []
        path = config.corpus if config.corpus.startswith(HUB) else str(self.base / Path(config.corpus).expanduser())
        about = {"documents": config.documents, "split": config.split, "revision": config.revision}
        bits = bits_per_byte(
            entry.spec, named_corpus(path, config.column, **about),
            BitsProtocol(context=config.context, stride=config.stride, max_tokens=config.max_tokens),
            state=self.folder / f"{parse_spec(entry.spec).slug}.json", batch_size=config.batch_size, progress=self.progress,
            **self.extraction.model_dump(include={"device", "dtype", "trust_remote_code"}),
        )  # fmt: skip
        return [Score(entry.spec, "bits_per_byte", bits.bits_per_byte, config.corpus)]
