"""A study of one of `repalign.experiments`: its fields are the experiment's options."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import create_model

from repalign import __version__
from repalign.comparison.alignment import csv_text
from repalign.experiments import EXPERIMENTS, Experiment, Found
from repalign.experiments.base import RECORD
from repalign.files import FILES, file_sha256, read_json, seal_json, write_file
from repalign.study.base import Drawn, OnPlan, Outcome, Plan, Study, StudyBlock
from repalign.study.yaml_lines import Where
from repalign.text import Progress, silent, told_of


@cache
def config_of(name: str) -> type[StudyBlock]:
    """The fields of a study of this experiment."""
    experiment = EXPERIMENTS[name]
    text, told = told_of(experiment.run)
    fields: dict[str, Any] = {
        option: (p.annotation, ... if p.default is p.empty else p.default) for option, p in experiment.options.items()
    }
    fields |= {"experiment": (Literal[name], ...), "question": (str | None, experiment.asks)}
    block = create_model(f"{name.title()}Config", __base__=StudyBlock, **fields)
    said = "".join(f"{option} : {meaning}\n" for option, meaning in {"experiment": f"{name}.", **told}.items())
    block.__doc__ = f"{text}\n\nParameters\n----------\n{said}"
    return block


@dataclass(frozen=True)
class ExperimentStudy(Study):
    """A study that asks one experiment."""

    @classmethod
    def load(cls, path: Path, data: dict[str, Any], where: Where) -> ExperimentStudy:
        return cls(path, where.validate(config_of(data["experiment"]), data))

    @property
    def experiment(self) -> Experiment:
        return EXPERIMENTS[self.config.experiment]

    @property
    def given(self) -> dict[str, Any]:
        """The options, with paths from the folder of the study."""
        return self.experiment.placed({name: getattr(self.config, name) for name in self.experiment.options}, self.base)

    def plan(self, progress: Progress = silent) -> Plan:  # noqa: ARG002
        said = {name: getattr(self.config, name) for name, p in self.experiment.options.items() if p.default is p.empty}
        words = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in said.items()}
        what = ", ".join(f"{name} {word}" for name, word in words.items())
        return Plan((f"{self.config.experiment}: {what}", self.experiment.needs, f"tables, figure and page in {self.folder}"))

    def run(self, *, progress: Progress = silent, executor: Executor | None = None, on_plan: OnPlan = None) -> Outcome:
        if on_plan is not None:
            on_plan(self.plan())
        at = {"progress": progress, **({"executor": executor} if self.has_workers else {})}
        return self.write(self.experiment.run(**self.given, **at))

    @property
    def has_workers(self) -> bool:
        return self.experiment.has_workers

    def write(self, found: Found) -> Outcome:
        """Write what was found: tables as CSV, the figure, the page, and a record of what was asked."""
        name = self.config.experiment
        tables = {f"{table}.csv": rows for table, rows in {name: found.table, **found.tables}.items()}
        for file, rows in tables.items():
            write_file(self.results / file, csv_text(rows))
        drawn = [Drawn(name, self.experiment.title, found.draw().figure, found.table, "" if found.parts else found.text)]
        reports = {file: self.results / file for file in tables}
        page = {"answer": found.answer, "parts": [(part.title, part.text, part.table) for part in found.parts]}
        outcome = Outcome(wrote=(("tables", self.results),))
        outcome = self.show(drawn, outcome, ("figure", self.results / "figures"), self.report, reports, **page)
        pictures = read_json(self.results / "figures/files.json")[0][FILES]
        files = [*tables, "figures/files.json", *(f"figures/{one}" for one in pictures)]
        files += [self.report.name] if self.report.parent == self.results else []
        record = {"experiment": name, "repalign": __version__, "options": self.given, "text": found.text}
        record |= {"identity": found.identity, FILES: {file: file_sha256(self.results / file) for file in files}}
        write_file(self.results / RECORD, seal_json(record, default=str))  # the last: all that it speaks of is there
        return outcome

    def mock(self, progress: Progress = silent) -> ExperimentStudy:  # noqa: ARG002
        return self.mocked(self.experiment.mock(self.given, self.mock_folder))
