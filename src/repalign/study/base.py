"""What every study is, whatever it studies: it can be planned, run, and tried out with stand-ins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repalign.text import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

    from repalign.comparison.alignment import Alignment
    from repalign.study.lines import Where


@dataclass(frozen=True)
class Plan:
    """What a run would do and need, told before it starts."""

    lines: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Drawn:
    """One figure of a study: a file's name, a heading, the figure (matplotlib), what it shows as a table, and in words."""

    name: str
    title: str
    figure: Any
    table: pd.DataFrame
    text: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run gave: a result per variant (one called "" without variants), figures, models left out, files written."""

    alignments: Mapping[str, Alignment] = field(default_factory=dict)
    drawn: tuple[Drawn, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    wrote: tuple[tuple[str, Path], ...] = ()

    @property
    def alignment(self) -> Alignment:
        """The result of the first variant, or the only one."""
        return next(iter(self.alignments.values()))


@dataclass(frozen=True)
class Study(ABC):
    """A validated study: the file, and what it says; `is_mock` where models and data are stand-ins."""

    path: Path
    config: Any
    is_mock: bool = field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent

    @property
    def folder(self) -> Path:
        """Where everything of this study is kept that the file does not place elsewhere."""
        return self.runs / self.name

    @property
    def runs(self) -> Path:
        """The folder of all studies of files in one folder, and of the features that they share."""
        return (self.base / "runs").absolute()

    @property
    def results(self) -> Path:
        return self.place(self.config.results, "results")

    @property
    def report(self) -> Path:
        return self.place(self.config.report, "report.html")

    def place(self, given: str | None, default: str) -> Path:
        """A path of the file, or the default inside the study's folder."""
        return self.folder / default if given is None else (self.base / Path(given).expanduser()).absolute()

    @classmethod
    @abstractmethod
    def load(cls, path: Path, data: dict[str, Any], where: Where) -> Study:
        """The study of a file's data. `where` tells errors with the line of their field, and validates a `Block`."""

    @abstractmethod
    def plan(self, progress: Progress = silent) -> Plan:
        """What a run would do and what it needs. Nothing but the dataset is opened."""

    @abstractmethod
    def run(
        self,
        *,
        progress: Progress = silent,
        executor: Executor | None = None,
        told: Callable[[Plan], None] | None = None,
    ) -> Outcome:
        """Run the study. A run that was killed goes on where it stopped; `told` is given the plan before the work starts."""

    @abstractmethod
    def mock(self, progress: Progress = silent) -> Study:
        """The same study with tiny stand-ins for models and a generated dataset of the same form, in a folder of its own."""
