"""A study of colour: pixels of photos and words of text models, against perception."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from repalign.dataset import DatasetConfig
from repalign.errors import RepalignError
from repalign.prh.colour.colours import WORDS, ColourOptions, named_colours, single_words
from repalign.study import Drawn, ExtractConfig, ModelConfig, OnPlan, Outcome, Plan, Study, StudyBlock, Where, entries
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from repalign.sources import ModelEntry


class ColourConfig(StudyBlock):
    """A study of colour: pixels in photos, words in text models, against perception (see `repalign.prh.colour`).

    Parameters
    ----------
    experiment : colour.
    dataset : The photos.
    models : Text models that read colour words.
    options : Choices of the experiment (see `repalign.prh.colour.ColourOptions`).
    words : Colour words: "twenty", "all", or a list of names of the xkcd survey.
    extract : How models are run.
    """

    experiment: Literal["colour"]
    dataset: DatasetConfig
    models: list[str | ModelConfig] = Field(default_factory=list)
    options: ColourOptions = ColourOptions()
    words: Literal["twenty", "all"] | list[str] = "twenty"
    extract: ExtractConfig = ExtractConfig()


@dataclass(frozen=True)
class ColourStudy(Study):
    """The experiment of `repalign.prh.colour` on a dataset's photos and some text models."""

    models: tuple[ModelEntry, ...]
    words: tuple[str, ...]

    @classmethod
    def load(cls, path: Path, data: dict[str, Any], where: Where) -> ColourStudy:
        config = where.validate(ColourConfig, data)
        words = {"twenty": WORDS, "all": tuple(single_words())}.get(str(config.words)) or tuple(config.words)
        with where.at("words"):
            named_colours(words)
        return cls(path, config, entries(config.models, path.parent, where, ("models",)), tuple(words))

    def plan(self, progress: Progress = silent) -> Plan:
        try:
            photos = self.config.dataset.open(self.base, progress)
            return self._plan(f"photos of {photos.name}: n = {photos.n}")
        except RepalignError as error:
            return self._plan(f"the photos are not there yet ({str(error).splitlines()[0]})")

    def _plan(self, photos: str) -> Plan:
        options = self.config.options
        pairs = "all pairs" if options.n_pairs is None else f"{options.n_pairs:,} pairs"
        return Plan((
            f"{photos}; {pairs} of pixels within a radius of {options.radius:g}",
            f"{len(self.words)} colour words in {len(options.templates)} sentences each, {len(self.models)} text models",
            f"{options.n_fits:,} random starts for every layout, {options.n_draws:,} relabellings for every p-value",
            "some minutes on two cores beside the extraction of the text models, under 2 GiB of memory",
            f"tables and figures in {self.folder}",
        ))  # fmt: skip

    def run(self, *, progress: Progress = silent, executor: Executor | None = None, on_plan: OnPlan = None) -> Outcome:
        del executor  # one process does it
        from repalign.prh.colour import draw, run_colour

        photos = self.config.dataset.open(self.base, progress)
        if on_plan is not None:
            on_plan(self._plan(f"photos of {photos.name}: n = {photos.n}"))
        how = self.config.extract.model_dump(include={"device", "dtype", "batch_size"})
        words, options = self.words, self.config.options
        result = run_colour(photos, self.models, options, self.results, words=words, progress=progress, **how)
        shown = (
            ("layouts", "CIELAB, and each layout moved onto it", draw.draw_layouts, result.layouts),
            ("controls", "Agreement with CIELAB by radius, and with shuffled pixels", draw.draw_controls, result.controls),
            ("words", "Every layer against CIELAB and pixels", draw.draw_words, result.scores),
        )
        drawn = [Drawn(name, title, figure(result), table, "") for name, title, figure, table in shown]
        outcome = Outcome(wrote=(("tables", self.results),))
        return self.show(drawn, outcome, ("figures", self.folder / "figures"), self.report, {})

    def mock(self, progress: Progress = silent) -> ColourStudy:
        """On a few generated pictures, with stand-ins for the text models and few draws."""
        from repalign.study.mock import SIZE, StandIns, generated_table

        folder = self.mock_folder
        table = generated_table(folder / "data", [self.config.dataset], SIZE, 1)
        dataset = DatasetConfig(table=str(table), id="id", image=self.config.dataset.image or "image")
        data = dataset.open(self.base)
        made = StandIns(folder / "models", progress)
        few = {"n_pairs": 20_000, "n_fits": 4, "n_draws": 19, "min_count": 10, "k": 3}
        options = self.config.options.model_copy(update=few)
        models = tuple(made.of(e, data, "text") for e in self.models)
        return self.mocked({"dataset": dataset, "options": options}, models=models)
