"""Before work: what is wrong with a study, as far as it can be told without running a model.

Every mistake is kept with its place in the file (`Where.at`), and all are told at once. What depends on something that is
wrong itself is not looked at: the rows of files where the dataset cannot be opened, the layers of a model that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repalign.comparison.applicable import possible_way, search_of
from repalign.errors import NotHere, RepalignError, Unavailable, choose
from repalign.files import place_of, refuse_unwritable
from repalign.layers import FEATURES, KINDS
from repalign.relate import read_published
from repalign.representation import DEFAULT_MEMORY, check_sample, refuse_mean
from repalign.sources import ModelEntry, Spec, choose_device, facts_of, parse_spec
from repalign.sources.model import DTYPES, library_errors
from repalign.store import FeatureStore
from repalign.study.load import Variant
from repalign.study.members import Inputs, read_file_scores
from repalign.study.yaml_lines import Where
from repalign.study.yaml_words import Location
from repalign.tables import refuse_missing
from repalign.text import counted

if TYPE_CHECKING:
    from repalign.dataset import Dataset
    from repalign.study.alignment import AlignmentStudy


def look(study: AlignmentStudy, inputs: Inputs, where: Where, *, is_plan: bool) -> None:
    """Keep in `where` all that is wrong. A plan does without files that are yet to come, and asks no hub for its models."""
    config = study.config
    yet_to_come = suppress(*([NotHere] if is_plan else []))  # data that is not on this machine yet
    for what, folder in (("name", study.folder), ("results", study.results), ("report", study.report.parent)):
        if what == "name" or getattr(config, what) is not None:
            with where.at("out" if what == "name" and config.out is not None else what):
                refuse_unwritable(folder)
    with where.at("store"):
        if not FeatureStore(study.store).is_there and config.store is not None:
            refuse_unwritable(place_of(study.store))
    for kind in ("lm_eval", "timm", "csv"):
        for i, path in enumerate(getattr(config.competence, kind)):
            with where.at("competence", kind, i), yet_to_come:
                refuse_missing(study.base / path)
                read_file_scores(kind, study.base / path)
    bits = config.competence.bits_per_byte
    if bits is not None and ":" not in bits.corpus:
        with where.at("competence", "bits_per_byte", "corpus"), yet_to_come:
            refuse_missing(study.base / Path(bits.corpus).expanduser())
    if config.published is not None:
        with where.at("published"), yet_to_come:
            refuse_missing(study.base / config.published)
            read_published(study.base / config.published)
    looked: dict[str, bool] = {}
    for variant in study.variants:
        _Run(variant, inputs, is_plan, yet_to_come, looked).look()


class _Run:
    """One variant, looked at part by part; `looked` says of each model, of all variants, whether it is there."""

    def __init__(self, variant: Variant, inputs: Inputs, is_plan: bool, yet_to_come: Any, looked: dict[str, bool]) -> None:
        self.variant, self.inputs, self.is_plan, self.yet_to_come, self.looked = variant, inputs, is_plan, yet_to_come, looked
        self.where, self.config = variant.where, variant.config
        self.skips = self.config.extract.on_unavailable == "skip"

    def look(self) -> None:
        for device, *place in ((self.config.device, "device"), (self.config.extract.device, "extract", "device")):
            with self.where.at(*place):
                choose_device(device)
        with self.where.at("extract", "dtype"):
            choose("dtype", self.config.extract.dtype, DTYPES)
        there = [one for one in self._models() if self._once(self._is_there, *one, self.skips)]
        dataset = self._dataset()
        for one in there:
            self._once(self._look_at, *one, dataset)
        self._measures(dataset)
        if self.config.null.groups is not None and dataset is not None and self.where.is_right("null"):
            with self.where.at("null", "groups"), self.yet_to_come:
                self.variant.null_of(self.variant.compared(dataset.ids), self.inputs.base)

    def _once(self, look: Callable[..., bool], at: Location, entry: ModelEntry, spec: Spec, given: Any) -> bool:
        """What a look at a model says, the same for all variants that read the same in one way."""
        key = repr((look.__name__, entry, given, self.variant.y is None, self.config.captions))
        if key not in self.looked:
            self.looked[key] = look(at, entry, spec, given)
        return self.looked[key]

    # --- models ---

    def _models(self) -> Iterator[tuple[Location, ModelEntry, Spec]]:
        for name, side in zip("xy", self.variant.sides, strict=False):
            for entry in side:
                yield self.variant.places.get((name, entry.label), ("models",)), entry, parse_spec(entry.spec)

    def _is_there(self, at: Location, entry: ModelEntry, spec: Spec, skips: bool) -> bool:
        """Whether there is such a model, as far as it can be told; of one that is left out nothing else is asked."""
        with self.where.at(*at, "spec"):
            try:
                spec.source.check(spec, entry)
                if not self.is_plan:
                    with library_errors(entry.label, "finding its revision"):
                        spec.source.reach(spec, entry)
                return True
            except Unavailable:
                if not skips:
                    raise
        return False

    def _look_at(self, at: Location, entry: ModelEntry, spec: Spec, dataset: Dataset | None) -> bool:
        """Layers, pooling, captions, and what of the dataset a model reads."""
        (facts,) = facts_of([replace(entry, layers=None)], patience=0)
        for i, wanted in enumerate(entry.layers or ()):
            with self.where.at(*at, "layers", i):
                spec.source.check_layers(entry, facts, wanted)
        with self.where.at(*at, "pooling"):
            spec.source.check_pooling(entry, facts)
        captions = getattr(self.config.captions, "y" if at[:2] == ("models", "y") else "x")
        if captions > 1:
            with self.where.at(*at, "kind"):
                refuse_mean(entry.label, str(entry.kind or FEATURES), captions)
        if dataset is None:
            return True
        with self.where.at(*at):
            spec.source.check_data(spec, self.inputs.as_read(self.variant, entry), facts, dataset)
        counts = dataset.describe()["captions_per_image"]
        if facts.kind == "text" and counts and entry.caption + captions > counts["min"]:
            with self.where.at(*(("captions", "y" if at[:2] == ("models", "y") else "x") if captions > 1 else (*at, "caption"))):
                raise RepalignError(
                    f"model {entry.label} reads caption {entry.caption + captions - 1}, counted from 0",
                    expected="captions that every stimulus has", got=f"stimuli with {counted(counts['min'], 'caption')}",
                    remedy="ask for fewer captions, or leave such rows out of the dataset",
                )  # fmt: skip
        return True

    # --- stimuli and measures ---

    def _dataset(self) -> Dataset | None:
        """The stimuli; None where they are not there, or depend on what is wrong."""
        if not self.where.is_right("dataset") or (self.config.dataset is None and not self.where.is_right("models")):
            return None
        with self.where.at("dataset"):
            reads = next((e.label for _, e, spec in self._models() if not spec.source.is_file), None)
            if self.config.dataset is None and reads is not None:
                raise RepalignError(
                    f"model {reads} reads stimuli, and the study has no dataset", expected="a field `dataset`",
                    remedy="add one, such as dataset: {table: pairs.csv, id: id, image: image, text: caption}; files of features "
                    "(array:) alone need none",
                )  # fmt: skip
        with self.where.at(*(("dataset",) if self.config.dataset is not None else ("models",))), self.yet_to_come:
            return self.inputs.dataset(self.variant) if self.where.is_right("dataset") else None
        return None

    def _measures(self, dataset: Dataset | None) -> None:
        """The number of stimuli, and what is given by pairs, as measures, search and preprocessing take them."""
        variant, where, rows = self.variant, self.where, self.config.rows
        what = f"dataset {dataset.name!r}" if dataset is not None else "the study"
        what = f"{variant.name}: {what}" if variant.name else what
        with where.at("rows"):
            if rows is not None and dataset is not None:
                check_sample(rows.n, dataset.n, what)
        n = rows.n if rows is not None else dataset.n if dataset is not None else None
        kinds = {f"model {e.label}": str(e.kind) for side in variant.sides for e in side if e.kind in KINDS}
        with where.at("preprocess"):
            variant.preprocess.check(kinds)
        search = "studentised"
        with where.at("search"):
            search = search_of(variant.null, variant.search)
        plain, memory = variant.preprocess.is_identity and not kinds, 4 * DEFAULT_MEMORY
        for measure in variant.named:
            with where.at(*variant.places.get(measure, ("measures",))):
                measure.check(measure.min_n if n is None else n, what, kinds)
                if n is not None:
                    possible_way(measure, variant.null, n, plain=plain, search=search, memory=memory)
        if n is not None and self.config.ceilings.split_half and where.is_right("measures"):
            with where.at("ceilings", "split_half"):
                for measure in variant.named:
                    measure.check(n // 2, f"half of {what}", kinds)
