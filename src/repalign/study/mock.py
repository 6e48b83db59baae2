"""A study tried out: tiny stand-ins for its models, a generated dataset of the same form, and every other line as it is.

At most `MODELS` models of a side are run. What a mock finds is a mistake in the file, a measure that the number of stimuli
forbids, a figure that cannot be drawn, a library that is missing. Its numbers mean nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repalign.dataset import DatasetConfig
from repalign.errors import RepalignError
from repalign.files import write_text
from repalign.measures import Group, Measure
from repalign.sources import parse_spec
from repalign.study.base import STORE
from repalign.study.config import CompetenceConfig, RunConfig
from repalign.study.load import Variant
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from repalign.dataset import Dataset
    from repalign.sources import ModelEntry
    from repalign.study.alignment import AlignmentStudy

SIZE = 208  # stimuli, if all measures allow it: at 200 and more most nulls are closed forms
LEAST = 12  # stimuli of a sample
MODELS = 6  # of a side that are run
LIMIT = 5.0  # seconds for a measure of a group
TOKENS = 2000  # of the corpus that bits per byte are measured on
OPTIONS = ("sample", "distort", "on_missing")  # of a dataset, which a generated one takes as well


def mock_study(study: AlignmentStudy, progress: Progress = silent) -> AlignmentStudy:
    """The study with stand-ins, in a folder of its own beside the real one's."""
    folder = study.runs / f"{study.name}-mock"
    study = replace(study, variants=_fewer_neighbors(study.variants))
    n = _size(study.variants)
    table = generated_table(folder / "data", [v.config.dataset for v in study.variants], n, _captions(study))
    scale = n / max([_asked(v) for v in study.variants if _asked(v)], default=n)
    opened: dict[str, Dataset] = {}
    variants, models = [], StandIns(folder / "models", progress)
    for variant in study.variants:
        dataset = _same_form(variant.config.dataset, table, n, scale)
        key = dataset.model_dump_json()
        if key not in opened:
            opened[key] = dataset.open(study.base)
        data = opened[key]
        x, y = (
            None if side is None else tuple(models.of(e, _modality(e, data), data.ids) for e in few(side))
            for side in (variant.x, variant.y)
        )
        assert x is not None
        names = {e.label for e in (*x, *(y or ()))}
        config = variant.config.model_copy(update=_changed(variant.config, dataset, data.ids, names, folder, n, scale))
        variants.append(replace(variant, config=config, x=x, y=y))
    competence = _competence(study, folder, sorted({e.label for v in variants for e in (*v.x, *(v.y or ()))}), table)
    whole = study.config.model_copy(
        update={
            "name": f"{study.name}-mock", "competence": competence, "published": None, "results": None,
            "store": str(folder / STORE),  # not among the features of real models
            "report": None, "figures": [_figure(item) for item in study.config.figures],
        }
    )  # fmt: skip
    return replace(study, config=whole, variants=tuple(variants), is_mock=True)


# --- the dataset ---------------------------------------------------------------------------------


def _size(variants: Sequence[Variant]) -> int:
    """The smallest number of stimuli that every measure of every variant allows."""
    return max([SIZE, *(m.min_n for v in variants for m in v.every_measure)])


def _fewer_neighbors(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The variants with every k smaller in proportion, where some k is too large for the stimuli of a mock."""
    most = max([m.n_neighbors for v in variants for m in v.measures if isinstance(m, Measure)], default=0)
    if most < SIZE:
        return tuple(variants)

    def fewer(wanted: Measure | Group) -> Measure | Group:
        return wanted.with_neighbors(SIZE / (2 * most)) if isinstance(wanted, Measure) else wanted

    return tuple(replace(v, measures=tuple(dict.fromkeys(map(fewer, v.measures)))) for v in variants)


def _figure(item: dict[str, Any]) -> dict[str, Any]:
    """A figure of the file without the sizes of galleries, which are larger than a mock's."""
    return {kind: {k: v for k, v in (options or {}).items() if (kind, k) != ("gallery", "sizes")} for kind, options in item.items()}


def _asked(variant: Variant) -> int:
    """How many stimuli a variant is on, as far as its file says; 0 if it does not."""
    rows, sample = variant.config.rows, variant.config.dataset.sample
    return rows.n if rows is not None else sample.n if sample is not None else 0


def _captions(study: AlignmentStudy) -> int:
    """How many captions of a stimulus a column has: one where several columns are the captions."""
    if any(isinstance(v.config.dataset.text, list) for v in study.variants):
        return 1
    several = [max(v.config.captions.x, v.config.captions.y) for v in study.variants]
    later = [e.caption for v in study.variants for e in (*v.x, *(v.y or ()))]
    return max([*several, *(c + max(several) for c in later)])


def generated_table(folder: Path, configs: Sequence[DatasetConfig], n: int, captions: int) -> Path:
    """A table with every column that some variant reads."""
    from repalign.sources.standins import write_dataset

    columns: dict[str, str] = {}
    for config in configs:
        columns |= dict.fromkeys(_image_columns(config), "image") | dict.fromkeys(_text_columns(config), "text")
    return write_dataset(folder, columns, n, captions=captions)


def _image_columns(config: DatasetConfig) -> list[str]:
    if config.kind in ("toy", "arrays"):
        return []
    return [config.image] if config.image else ["image"] if config.kind == "folder" else []


def _text_columns(config: DatasetConfig) -> list[str]:
    if config.kind in ("toy", "arrays"):
        return []
    text = [config.text] if isinstance(config.text, str) else list(config.text or ())
    return text or (["text"] if config.kind == "folder" else [])


def _same_form(config: DatasetConfig, table: Path, n: int, scale: float) -> DatasetConfig:
    """The block of a variant's dataset, reading the generated table; samples are smaller in proportion."""
    data: dict[str, Any] = {o: getattr(config, o) for o in OPTIONS if o in config.model_fields_set}
    if config.sample is not None:
        data["sample"] = {"n": _scaled(config.sample.n, n, scale), "seed": config.sample.seed}
    if config.kind == "toy":
        return DatasetConfig.model_validate({**data, "toy": {**config.toy.model_dump(), "n": n}})  # type: ignore[union-attr]
    if config.kind == "arrays":
        raise RepalignError(
            "a dataset of arrays has no stand-in", expected="a dataset of images or texts", got=sorted(config.arrays or {}),
            remedy="run the study itself: arrays need no download",
        )  # fmt: skip
    columns = {"image": next(iter(_image_columns(config)), None), "text": config.text or next(iter(_text_columns(config)), None)}
    return DatasetConfig.model_validate({**data, "table": str(table), "id": "id", **{k: v for k, v in columns.items() if v}})


def _scaled(asked: int, n: int, scale: float) -> int:
    return min(n, max(LEAST, round(asked * scale)))


def _changed(
    config: RunConfig,
    dataset: DatasetConfig,
    ids: Sequence[str],
    names: Collection[str],
    folder: Path,
    n: int,
    scale: float,
) -> dict[str, Any]:
    """What else of a variant has to fit the smaller dataset, and the models that are run."""
    replicates = [both for both in config.ceilings.replicates if set(both) <= set(names)]
    ceilings = config.ceilings.model_copy(update={"replicates": replicates})
    out: dict[str, Any] = {"dataset": dataset, "limit": LIMIT, "ceilings": ceilings}
    if config.rows is not None:
        out["rows"] = config.rows.model_copy(update={"n": _scaled(config.rows.n, n, scale)})
    if config.null.groups is not None:
        groups = folder / "groups.csv"
        write_text(groups, "id,group\n" + "".join(f"{id_},{i % 4}\n" for i, id_ in enumerate(ids)))
        out["null"] = config.null.model_copy(update={"groups": str(groups)})
    return out


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
        self.made: dict[str, ModelEntry] = {}
        self.told: set[tuple[str, str]] = set()

    def of(self, entry: ModelEntry, modality: str, ids: Sequence[str]) -> ModelEntry:
        from repalign.sources.standins import stand_in

        key = f"{entry!r} {modality} {hash(tuple(ids))}"
        if key not in self.made:
            self.made[key], notes = stand_in(entry, modality, self.folder, ids=ids)
            for note in notes:
                if (entry.label, note) not in self.told:
                    self.told.add((entry.label, note))
                    self.progress("stand-ins", len(self.made), 0, f"{entry.label}: {note}")
        return self.made[key]


def _modality(entry: ModelEntry, data: Dataset) -> str:
    """What a model reads, as far as its entry, its source or its name says it."""
    spec = parse_spec(entry.spec)
    return spec.source.modality(spec, entry) or data.modalities[0]


def _competence(study: AlignmentStudy, folder: Path, names: Sequence[str], table: Path) -> CompetenceConfig:
    """Scores of every name that the study's figures ask for, made up; bits per byte measured on the captions."""
    import pandas as pd

    from repalign.sources.standins import stand_in_scores

    given, out = study.config.competence, {}
    wanted = sorted(set(_yardsticks(study.config.figures)) - {"n_parameters"})
    if wanted and (given.lm_eval or given.timm or given.csv):
        path = folder / "scores.csv"
        scores = stand_in_scores(wanted, names, seed=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, pd.DataFrame(scores).rename_axis("model").reset_index().to_csv(index=False, lineterminator="\n"))
        out["csv"] = [str(path)]
    if given.bits_per_byte is not None:
        column = next((c for v in study.variants for c in _text_columns(v.config.dataset)), "text")
        corpus = given.bits_per_byte.model_copy(
            update={"corpus": str(table), "column": column, "split": None, "revision": None, "documents": None,
                    "max_tokens": TOKENS, "context": None, "stride": None}
        )  # fmt: skip
        out["bits_per_byte"] = corpus
    return CompetenceConfig(**out)


def _yardsticks(figures: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The scores that figures draw against."""
    for item in figures:
        for options in item.values():
            against = (options or {}).get("against", [])
            yield from [against] if isinstance(against, str) else against
