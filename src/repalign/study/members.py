"""What a study compares: every dataset opened once, every model run on it once, whatever the number of variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repalign.comparison.alignment import MOCK_OF
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.features import join
from repalign.files import Url
from repalign.representation import Representation, break_pairs, mean_of, sample_rows
from repalign.sources import ModelEntry, Pending, Skipped, extract, parse_spec
from repalign.sources.array import as_read, rows_of
from repalign.study.config import CompetenceConfig, ExtractConfig
from repalign.study.load import Variant
from repalign.text import Progress, silent
from repalign.workers import Share

if TYPE_CHECKING:
    from repalign.competence import Score

# Why a causal model may have no bits of the stimuli; it still has those of a corpus.
OTHER_TEXTS = ("texts stand in a prompt", "the model goes on with the texts")


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
    _datasets: dict[str, tuple[Dataset, bool]] = field(default_factory=dict)
    _found: dict[str, Any] = field(default_factory=dict)

    def dataset(self, variant: Variant) -> Dataset:
        """The stimuli of a variant; without a dataset those that all its files have, by the one rule of `features.join`."""
        return self._opened(variant)[0]

    def captioned(self, variant: Variant) -> list[list[list[ModelEntry]]]:
        """Of each side and model an entry for each caption, as it is read."""
        return [[[self.as_read(variant, e) for e in several] for several in side] for side in variant.captioned]

    def as_read(self, variant: Variant, entry: ModelEntry) -> ModelEntry:
        """An entry with what a file need not say in this study."""
        dataset, by_position = self._opened(variant)
        return as_read(entry, dataset, of_sides=variant.y is not None, by_position=by_position)

    def _opened(self, variant: Variant) -> tuple[Dataset, bool]:
        """The stimuli, and whether files are paired by position for want of ids."""
        config, files = variant.config.dataset, [e for side in variant.sides for e in side]
        key = repr(files) if config is None else config.model_dump_json()
        if key not in self._datasets:
            by_position = False
            if config is None:
                found = [rows_of(e) for e in files]
                joined = join(found)
                by_position = joined.ids is None
                ids = joined.ids or tuple(map(str, range(found[0].n)))
                dataset = Dataset("arrays", ids, {}, joined.how[0])
            else:
                dataset = config.open(self.base, self.progress)
            dataset = replace(dataset, name=MOCK_OF + dataset.name) if self.is_mock else dataset
            self._datasets[key] = dataset, by_position
        return self._datasets[key]

    def members(self, variant: Variant) -> Members:
        """What a variant compares: extracted, averaged over captions, sampled, and with its pairs broken."""
        config, skipped = variant.config, {}
        self.gather([variant])
        sides = [self._side(variant, side, skipped) for side in self.captioned(variant)]
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

    def gather(self, variants: Sequence[Variant], share: Share | None = None) -> list[Pending]:
        """Extract every model of all variants, or a share of that; what still lacks parts is given."""
        wanted: dict[str, tuple[Variant, dict[str, ModelEntry]]] = {}
        for variant in variants:
            about = self._about(variant)
            entries = {f"{about} {e!r}": e for side in self.captioned(variant) for several in side for e in several}
            new = {key: e for key, e in entries.items() if key not in self._found}
            wanted.setdefault(about, (variant, {}))[1].update(new)
        for variant, new in wanted.values():
            how = variant.config.extract.model_dump(exclude_unset=True)
            made = extract(
                self.dataset(variant), list(new.values()), self.store, executor=self.executor, share=share,
                progress=self.progress, **how,
            )  # fmt: skip
            for (key, entry), one in zip(new.items(), made, strict=True):
                is_scored = self.competence is not None and not isinstance(one, (Skipped, Pending))
                self._found[key] = self.competence.scored(entry, one) if is_scored else one
        return [one for one in self._found.values() if isinstance(one, Pending)]

    def _about(self, variant: Variant) -> str:
        """The stimuli that models of a variant see, and how they are run."""
        return f"{self.dataset(variant).fingerprint} {variant.config.extract.model_dump_json()}"

    def _side(self, variant: Variant, side: list[list[ModelEntry]], skipped: dict[str, str]) -> list[Representation]:
        """The models of a side, each averaged over its captions; those that are not available go to `skipped`."""
        about, out = self._about(variant), []
        for several in side:
            parts = [self._found[f"{about} {e!r}"] for e in several]
            missing = next((p for p in parts if isinstance(p, Skipped)), None)
            if missing is None:
                out.append(mean_of(parts))
            else:
                skipped[several[0].label] = missing.reason
        return out


def read_file_scores(kind: str, path: Path) -> list[Score]:
    """The scores of one file, or folder, of a kind that the competence block names."""
    from repalign.competence import read_lm_eval, read_scores, read_timm

    return {"lm_eval": read_lm_eval, "timm": read_timm, "csv": read_scores}[kind](path)


class Competence:
    """The scores that a study's competence block asks for. `folder` keeps what was measured, so that it is measured once."""

    def __init__(
        self, config: CompetenceConfig, base: Path, folder: Path | Url, extraction: ExtractConfig, progress: Progress = silent
    ) -> None:
        self.config, self.base, self.folder = config, base, folder
        self.extraction, self.progress = extraction, progress

    @cached_property
    def files(self) -> list[Score]:
        """The scores of all files, of whichever models."""
        return [
            s for kind in ("lm_eval", "timm", "csv") for path in getattr(self.config, kind)
            for s in read_file_scores(kind, self.base / path)
        ]  # fmt: skip

    def scored(self, entry: ModelEntry, representation: Any) -> Any:
        """A stored representation with every score that is known of its model in its record."""
        from repalign.competence import img_size_of, join_scores, published_scores

        own = representation.record
        if self.config.published:
            known = [s for s in published_scores() if s.name not in own.scores]  # what the study says of its models counts more
            representation = representation.with_record(join_scores([own], known, missing="skip").records[0])
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
        causal = isinstance(found, Mapping) or str(found).endswith(OTHER_TEXTS)
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
