"""A study tried out: tiny stand-ins for its models, a generated dataset of the same form, and every other line as it is.

At most `MODELS` models of a side are run, with at most `DRAWS` random shuffles. What a mock finds is a mistake in the file, a
measure that the number of stimuli forbids, a figure that cannot be drawn, a library that is missing. Its numbers mean nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from repalign.dataset import CELLS, GIVEN, IN_CELLS, Dataset, DatasetConfig
from repalign.errors import RepalignError
from repalign.files import write_file
from repalign.measures import Measure
from repalign.models import RELEASED
from repalign.null import Auto, Permutations
from repalign.relate import PARAMETERS
from repalign.sources import ModelEntry, parse_spec
from repalign.sources.array import as_read
from repalign.sources.standins import stand_in, stand_in_scores, write_dataset
from repalign.study.base import STORE
from repalign.study.config import CompetenceConfig, RunConfig
from repalign.study.load import Variant
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from repalign.study.alignment import AlignmentStudy

SIZE = 208  # stimuli, if all measures allow it: at 200 and more most nulls are closed forms
LEAST = 12  # stimuli of a sample
MODELS = 6  # of a side that are run
DRAWS = 19  # random shuffles at most: as many as a p of 0.05 needs
LIMIT = 5.0  # seconds for a measure of a group, where none is named: a limit holds for those too
TOKENS = 2000  # of the corpus that bits per byte are measured on
TEXT = "text"  # what bits per byte are measured on
OPTIONS = ("sample", "distort", "on_missing")  # of a dataset, which a generated one takes as well


def mock_study(study: AlignmentStudy, progress: Progress = silent) -> AlignmentStudy:
    """The study with stand-ins, in a folder of its own beside the real one's."""
    folder = study.mock_folder
    study = replace(study, variants=_fewer_neighbors(study.variants))
    n = max([SIZE, *(m.min_n for v in study.variants for m in v.every_measure)])
    configs = [v.config.dataset for v in study.variants if v.config.dataset is not None]
    table = generated_table(folder / "data", configs, n, _captions(study, configs))
    samples = [*(v.config.rows for v in study.variants), *(c.sample for c in configs)]
    smaller = _Smaller(table, folder, n, n / max((s.n for s in samples if s is not None), default=n))
    opened: dict[str, Dataset] = {}
    variants, models = [], StandIns(folder / "models", progress)
    for variant in study.variants:
        dataset = None if variant.config.dataset is None else smaller.dataset(variant.config.dataset)
        key = repr(dataset)
        data = opened[key] = opened.get(key) or (_rows(n) if dataset is None else dataset.open(study.base))
        sided = variant.y is not None
        x, *y = (tuple(models.of(as_read(e, data, of_sides=sided), data) for e in few(side)) for side in variant.sides)
        config = smaller.run(variant, dataset, data.ids, {e.label for side in (x, *y) for e in side})
        null = variant.null  # the cyclic one draws none
        null = replace(null, n_draws=min(null.n_draws, DRAWS)) if isinstance(null, (Auto, Permutations)) else null
        variants.append(replace(variant, config=config, x=x, y=y[0] if y else None, null=null))
    names = sorted({e.label for v in variants for side in v.sides for e in side})
    changes = {
        "competence": _competence(study, configs, folder, names, table), "published": None,
        "store": str(folder / STORE),  # not among the features of real models
        "figures": [_figure(item) for item in study.config.figures],
    }  # fmt: skip
    return study.mocked(changes, variants=tuple(variants), local={})


# --- the dataset ---------------------------------------------------------------------------------


def _fewer_neighbors(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The variants with every k smaller in proportion, where some k is too large for the stimuli of a mock."""
    most = max([m.n_neighbors for v in variants for m in v.named], default=0)
    if most < SIZE:
        return tuple(variants)
    share = SIZE / (2 * most)
    fewer = [[m.with_neighbors(share) if isinstance(m, Measure) else m for m in v.measures] for v in variants]
    return tuple(replace(v, measures=tuple(dict.fromkeys(some))) for v, some in zip(variants, fewer, strict=True))


def _figure(item: dict[str, Any]) -> dict[str, Any]:
    """A figure of the file without the sizes of galleries, which are larger than a mock's, and with few maps of chance."""
    given = {kind: options or {} for kind, options in item.items()}
    fewer = {kind: {k: v for k, v in own.items() if (kind, k) != ("gallery", "sizes")} for kind, own in given.items()}
    if "map" in fewer:
        fewer["map"].setdefault("draws", DRAWS)
    return fewer


def _rows(n: int) -> Dataset:
    """What files of features alone are of."""
    return Dataset("rows", tuple(f"row-{i:05d}" for i in range(n)), {}, "generated")


def _captions(study: AlignmentStudy, configs: Sequence[DatasetConfig]) -> int:
    """How many captions of a stimulus a column has: one where several columns are the captions."""
    if any(len(config.columns.get(kind, ())) > 1 for config in configs for kind in IN_CELLS):
        return 1
    several = max(count for v in study.variants for count in (v.config.captions.x, v.config.captions.y))
    return several + max(e.caption for v in study.variants for side in v.sides for e in side)


def generated_table(folder: Path, configs: Sequence[DatasetConfig], n: int, captions: int) -> Path:
    """A table with every column that some variant reads."""
    named = [(column, kind) for config in configs for kind, some in _columns(config).items() for column in some]
    # The last of a column counts: a cell that names a file, a text or an image is a value too.
    columns = dict(sorted(named, key=lambda pair: 0 if pair[1] in IN_CELLS else -[*CELLS].index(pair[1])))
    return write_dataset(folder, columns, n, captions=captions)


def _columns(config: DatasetConfig) -> dict[str, list[str]]:
    """The columns of a dataset by the kind of their stimuli; of a folder, which names none, one of each kind."""
    return {kind: [kind] for kind in IN_CELLS} if config.kind == "folder" else config.columns


@dataclass(frozen=True)
class _Smaller:
    """What a variant asks, for a generated table of n stimuli; samples are smaller by `scale`."""

    table: Path
    folder: Path
    n: int
    scale: float

    def _scaled(self, asked: int) -> int:
        return min(self.n, max(LEAST, round(asked * self.scale)))

    def dataset(self, config: DatasetConfig) -> DatasetConfig:
        """The block of a dataset of the same form."""
        data: dict[str, Any] = {o: getattr(config, o) for o in OPTIONS if o in config.model_fields_set}
        if config.sample is not None:
            data["sample"] = {"n": self._scaled(config.sample.n), "seed": config.sample.seed}
        if config.toy is not None:
            return DatasetConfig.model_validate({**data, "toy": {**config.toy.model_dump(), "n": self.n}})
        if config.arrays is not None:
            raise RepalignError(
                "a dataset of arrays has no stand-in", got=sorted(config.arrays),
                expected=f"a dataset of {' or '.join(kind.plural for kind in IN_CELLS.values())}",
                remedy="run the study itself: arrays need no download",
            )  # fmt: skip
        named = {kind: some for kind, some in _columns(config).items() if kind in IN_CELLS}
        columns: dict[str, Any] = {kind: some if len(some) > 1 else some[0] for kind, some in named.items()}
        columns |= {option: getattr(config, option) for option in GIVEN}
        return DatasetConfig.model_validate({**data, **columns, "table": str(self.table), "id": "id"})

    def run(self, variant: Variant, dataset: DatasetConfig | None, ids: Sequence[str], names: Collection[str]) -> RunConfig:
        """The block of a variant on this dataset, with the models of these names."""
        config, limit = variant.config, None if variant.named else LIMIT
        replicates = [both for both in config.ceilings.replicates if set(both) <= set(names)]
        ceilings = config.ceilings.model_copy(update={"replicates": replicates})
        out: dict[str, Any] = {"dataset": dataset, "limit": limit, "ceilings": ceilings}
        if config.rows is not None:
            out["rows"] = config.rows.model_copy(update={"n": self._scaled(config.rows.n)})
        if config.null.groups is not None:
            groups = self.folder / "groups.csv"
            write_file(groups, "id,group\n" + "".join(f"{id_},{i % 4}\n" for i, id_ in enumerate(ids)))
            out["null"] = config.null.model_copy(update={"groups": str(groups)})
        return config.model_copy(update=out)


# --- models and what is known of them ------------------------------------------------------------


def few(side: Sequence[ModelEntry]) -> list[ModelEntry]:
    """Some models of a side, spread over its families, in the side's order."""
    families: dict[str | None, list[int]] = {}
    for i, entry in enumerate(side):
        families.setdefault(entry.family, []).append(i)
    turns = itertools.zip_longest(*families.values())
    chosen = [i for turn in turns for i in turn if i is not None][:MODELS]
    return [side[i] for i in sorted(chosen)]


class StandIns:
    """Stand-ins by entry, and what had to be changed of each, told once."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self.made: dict[tuple[str, tuple[str, ...]], ModelEntry] = {}
        self.notes: set[str] = set()

    def of(self, entry: ModelEntry, data: Dataset, modality: str | None = None) -> ModelEntry:
        """What stands in for a model on this dataset; without `modality` it reads what its source says, or the first column."""
        key, spec = (repr(entry), data.ids), parse_spec(entry.spec)
        if key not in self.made:
            modality = modality or spec.source.modality(spec, entry) or next(iter(data.modalities), "array")
            self.made[key], notes = stand_in(entry, modality, self.folder, ids=data.ids)
            for note in [f"{entry.label}: {note}" for note in notes]:
                if note not in self.notes:
                    self.notes.add(note)
                    self.progress("stand-ins", len(self.made), 0, note)
        return self.made[key]


def _competence(
    study: AlignmentStudy, configs: Sequence[DatasetConfig], folder: Path, names: Sequence[str], table: Path
) -> CompetenceConfig:
    """Scores of every name that the study's figures ask for, made up; bits per byte measured on the captions."""
    given, out = study.config.competence, {}
    against = [(o or {}).get("against", []) for item in study.config.figures for o in item.values()]
    wanted = sorted({name for some in against for name in ([some] if isinstance(some, str) else some)} - {PARAMETERS, RELEASED})
    if wanted and (given.lm_eval or given.timm or given.csv or given.published):
        path = folder / "scores.csv"
        scores = stand_in_scores(wanted, names, seed=0)
        write_file(path, pd.DataFrame(scores).rename_axis("model").reset_index().to_csv(index=False, lineterminator="\n"))
        out["csv"] = [str(path)]
    if given.bits_per_byte is not None:
        column = next((c for config in configs for c in _columns(config).get(TEXT, ())), TEXT)
        corpus = given.bits_per_byte.model_copy(
            update={"corpus": str(table), "column": column, "split": None, "revision": None, "documents": None,
                    "max_tokens": TOKENS, "context": None, "stride": None}
        )  # fmt: skip
        out["bits_per_byte"] = corpus
    return CompetenceConfig(**out)
