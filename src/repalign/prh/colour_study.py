"""A study of colour: pixels of photos and words of text models, against perception."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from repalign.dataset import DatasetConfig
from repalign.errors import RepalignError, did_you_mean
from repalign.study import Drawn, ExtractConfig, ModelConfig, Outcome, Plan, Study, StudyBlock, Where, entries
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from repalign.dataset import Dataset
    from repalign.prh.colour import ColourOptions
    from repalign.sources import ModelEntry


class ColourConfig(StudyBlock):
    """A study of colour: co-occurrence of pixels in photos, words in text models, against perception (see `repalign.prh.colour`).

    `options` are those of `repalign.prh.colour.ColourOptions`; `words` are "twenty", "all", or a list of names of the xkcd survey.
    """

    experiment: Literal["colour"]
    dataset: DatasetConfig
    models: list[str | ModelConfig] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)
    words: Literal["twenty", "all"] | list[str] = "twenty"
    extract: ExtractConfig = ExtractConfig()


@dataclass(frozen=True)
class ColourStudy(Study):
    """The experiment of `repalign.prh.colour` on a dataset's photos and some text models."""

    models: tuple[ModelEntry, ...]
    options: ColourOptions
    words: tuple[str, ...]

    @classmethod
    def load(cls, path: Path, data: dict[str, Any], where: Where) -> ColourStudy:
        from repalign.prh.colour import WORDS, named_colours, single_words

        config = where.validate(ColourConfig, data)
        with where.at("options"):
            options = _options(config.options)
        words = {"twenty": WORDS, "all": tuple(single_words())}.get(str(config.words)) or tuple(config.words)
        with where.at("words"):
            named_colours(words)
        return cls(path, config, entries(config.models, path.parent, where, ("models",)), options, tuple(words))

    def plan(self, progress: Progress = silent) -> Plan:
        try:
            return self._plan(_told(self.config.dataset.open(self.base, progress)))
        except RepalignError as error:
            return self._plan(f"the photos are not there yet ({str(error).splitlines()[0]})")

    def _plan(self, photos: str) -> Plan:
        pairs = "all pairs" if self.options.n_pairs is None else f"{self.options.n_pairs:,} pairs"
        return Plan((
            f"{photos}; {pairs} of pixels within a radius of {self.options.radius:g}",
            f"{len(self.words)} colour words in {len(self.options.templates)} sentences each, {len(self.models)} text models",
            f"{self.options.n_fits:,} random starts for every layout, {self.options.n_draws:,} relabellings for every p-value",
            "some minutes on two cores beside the extraction of the text models, under 2 GiB of memory",
            f"tables and figures in {self.folder}",
        ))  # fmt: skip

    def run(
        self,
        *,
        progress: Progress = silent,
        executor: Executor | None = None,  # noqa: ARG002
        on_plan: Callable[[Plan], None] | None = None,
    ) -> Outcome:
        from repalign.figures import write_figures
        from repalign.prh.colour import draw, run_colour
        from repalign.report import write_study_page

        photos, extraction = self.config.dataset.open(self.base, progress), self.config.extract
        if on_plan is not None:
            on_plan(self._plan(_told(photos)))
        result = run_colour(
            photos,
            self.models,
            self.options,
            self.results,
            words=self.words,
            progress=progress,
            device=extraction.device,
            dtype=extraction.dtype,
            batch_size=extraction.batch_size,
        )
        shown = (
            ("layouts", "CIELAB, and each layout moved onto it", draw.draw_layouts, result.layouts),
            ("controls", "Agreement with CIELAB by radius, and with shuffled pixels", draw.draw_controls, result.controls),
            ("words", "Every layer against CIELAB and pixels", draw.draw_words, result.scores),
        )
        drawn = [Drawn(name, title, figure(result), table, "") for name, title, figure, table in shown]
        figures = self.folder / "figures"
        pictures = write_figures(drawn, figures, self.is_mock)
        page = write_study_page(
            self.report, self.name, self.config.description, drawn, pictures, {}, is_mock=self.is_mock
        )
        return Outcome(drawn=tuple(drawn), wrote=(("tables", self.results), ("figures", figures), ("report", page)))

    def mock(self, progress: Progress = silent) -> ColourStudy:
        """On a few generated pictures, with stand-ins for the text models and few draws."""
        from repalign.study.mock import SIZE, StandIns, generated_table

        folder = self.runs / f"{self.name}-mock"
        table = generated_table(folder / "data", [self.config.dataset], SIZE, 1)
        dataset = DatasetConfig(table=str(table), id="id", image=self.config.dataset.image or "image")
        data = dataset.open(self.base)
        made = StandIns(folder / "models", progress)
        changes = {"name": f"{self.name}-mock", "dataset": dataset, "results": None, "report": None}
        return replace(
            self,
            config=self.config.model_copy(update=changes),
            models=tuple(made.of(e, data, "text") for e in self.models),
            options=replace(self.options, n_pairs=20_000, n_fits=4, n_draws=19, min_count=10, k=3),
            is_mock=True,
        )


def _told(photos: Dataset) -> str:
    return f"photos of {photos.name}: n = {photos.n}"


def _options(given: dict[str, Any]) -> ColourOptions:
    """Options from the file; "inf" stands for no limit of the radius."""
    from repalign.prh.colour import ColourOptions

    known = {f.name for f in fields(ColourOptions)}
    for name in given:
        if name not in known:
            raise RepalignError(f"no colour option {name!r}", got=name, remedy=did_you_mean(name, known))
    chosen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if chosen.get("radius") == "inf":  # YAML writes it .inf
        chosen["radius"] = float("inf")
    return ColourOptions(**chosen)
