"""What a study compares: every dataset opened once, every model run on it once, whatever the number of variants."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repalign.comparison.alignment import MOCK_OF
from repalign.errors import RepalignError
from repalign.layers import KINDS
from repalign.representation import break_pairs, check_sample, mean_of, refuse_mean, sample_rows
from repalign.study.competence import Competence
from repalign.study.load import Variant
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from repalign.dataset import Dataset
    from repalign.representation import Representation
    from repalign.sources import ModelEntry


@dataclass(frozen=True)
class Members:
    """The representations of one variant; the models that had to be left out, with the reason; warnings."""

    x: list[Representation]
    y: list[Representation] | None
    skipped: dict[str, str]
    warnings: list[str]

    @property
    def everything(self) -> list[Representation]:
        return [*self.x, *(self.y or ())]


def captioned(side: Sequence[ModelEntry], captions: int) -> list[ModelEntry]:
    """The entries of a side for so many captions of each stimulus, those of one model together."""
    return [replace(e, caption=e.caption + c) for e in side for c in range(captions)]


@dataclass
class Source:
    """Datasets and representations of the variants of a study, each made once.

    `competence` says how good the models are; that goes into their records. With `is_mock` the datasets say so in their
    names.
    """

    base: Path
    store: str
    progress: Progress = silent
    executor: Executor | None = None
    competence: Competence | None = None
    is_mock: bool = False
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
        """Refuse before any work: measures that so few stimuli or the kinds of files forbid, a sample larger than the dataset."""
        _check_kinds(variant)
        dataset, rows = self.dataset(variant), variant.config.rows
        where = f"{variant.name}: dataset {dataset.name!r}" if variant.name else f"dataset {dataset.name!r}"
        if rows is not None:
            check_sample(rows.n, dataset.n, where)
        for measure in variant.measures:
            if not isinstance(measure, str):
                measure.check_n(dataset.n if rows is None else rows.n, where)

    def members(self, variant: Variant) -> Members:
        """What a variant compares: extracted, averaged over captions, sampled, and with its pairs broken."""
        config, skipped = variant.config, {}
        x = self._side(variant, variant.x, config.captions.x, skipped)
        y = None if variant.y is None else self._side(variant, variant.y, config.captions.y, skipped)
        if not x or y == [] or (y is None and len(x) < 2):
            raise RepalignError(
                "there is nothing left to compare: models are not available",
                expected="one model of each side, or two of one list",
                got="; ".join(f"{name}: {reason}" for name, reason in skipped.items()),
            )
        warnings = [f"model {name} was left out: {reason}" for name, reason in skipped.items()]
        warnings += self._unscored([*x, *(y or ())])
        if config.rows is not None:
            both = sample_rows([*x, *(y or ())], config.rows.n, config.rows.seed)
            x, y = both[: len(x)], None if y is None else both[len(x) :]
        if config.broken_pairs is not None and config.broken_pairs.share:
            x = break_pairs(x, config.broken_pairs.share, config.broken_pairs.seed)
            warnings.append(f"{config.broken_pairs.share:.4g} of the pairs are broken on purpose")
        return Members(x, y, skipped, warnings)

    def _side(
        self, variant: Variant, side: Sequence[ModelEntry], captions: int, skipped: dict[str, str]
    ) -> list[Representation]:
        """The models of a side, each averaged over its captions; those that are not available go to `skipped`."""
        from repalign.sources import Skipped

        found = iter(self._extract(variant, captioned(side, captions)))
        out = []
        for entry in side:
            parts = [next(found) for _ in range(captions)]
            missing = next((p for p in parts if isinstance(p, Skipped)), None)
            if missing is None:
                out.append(mean_of(parts))
            else:
                skipped[entry.label] = missing.reason
        return out

    def _extract(self, variant: Variant, entries: Sequence[ModelEntry]) -> list[Any]:
        from repalign.sources import extract

        dataset, options = self.dataset(variant), variant.config.extract
        at = f"{dataset.fingerprint} {options.model_dump_json()}"
        keys = [f"{at} {entry!r}" for entry in entries]
        missing = {key: entry for key, entry in zip(keys, entries, strict=True) if key not in self._found}
        found = extract(
            dataset,
            list(missing.values()),
            self.store,
            executor=self.executor,
            progress=self.progress,
            **options.model_dump(exclude_unset=True),
        )
        scored = map(self._scored, missing.values(), found)
        self._found |= dict(zip(missing, scored, strict=True))
        return [self._found[key] for key in keys]

    def _scored(self, entry: ModelEntry, found: Any) -> Any:
        from repalign.sources import Skipped

        if isinstance(found, Skipped) or self.competence is None or not self.competence.is_asked:
            return found
        return found.with_record(self.competence.record(entry, found))

    def _unscored(self, representations: Sequence[Representation]) -> list[str]:
        """A warning about models that the study's files do not know, where they know others."""
        names = {score.name for score in self.competence.files} if self.competence is not None else set()
        without = [r.name for r in representations if not names & set(r.record.scores)]
        if not names or not without:
            return []
        return [f"the study's competence files say nothing of {', '.join(without)}"]


def _check_kinds(variant: Variant) -> None:
    """Refuse what is asked of a model that is given as an RDM or a kernel, by the model's name."""
    sides = ((variant.x, variant.config.captions.x), (variant.y or (), variant.config.captions.y))
    for entry, captions in ((e, captions) for side, captions in sides for e in side):
        if entry.kind not in KINDS:
            continue
        refuse_mean(entry.label, str(entry.kind), captions)
        variant.preprocess.check({f"model {entry.label}": str(entry.kind)})
        for measure in variant.measures:
            if not isinstance(measure, str):
                measure.check_takes(str(entry.kind), f"model {entry.label}")
