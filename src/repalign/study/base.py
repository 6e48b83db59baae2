"""What every kind of study shares: the blocks of its file, its folders, and that it can be planned, run and tried out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from repalign.figures.kinds import Drawn
from repalign.text import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

    from repalign.comparison.alignment import Alignment
    from repalign.study.yaml_lines import Where

LONGEST = 200  # bytes of a name that is a folder's: file systems take 255, and a mock's name is longer
STORE = "store"  # the folder beside those of the studies, which their features share


# --- fields of every study file ------------------------------------------------------------------


class Block(BaseModel):
    """A mapping of the file: no field but those that it has."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_name(name: str) -> str:
    """A study's name is that of the folder in which it writes, below `runs/`."""
    parts = re.split(r"[/\\]", name)
    if any(ord(c) < 32 or ord(c) == 127 for c in name) or not name.strip():
        raise ValueError("the name of a study is a folder's: it has no control characters, and is not blank")
    if Path(name).is_absolute() or PureWindowsPath(name).drive or any(p.strip() in ("", ".", "..") for p in parts):
        raise ValueError("the name of a study is a folder's inside `runs/`: it is not absolute, and has no `.` or `..` in it")
    if max(len(p.encode()) for p in parts) > LONGEST:
        raise ValueError(f"the name of a study is a folder's: it has {LONGEST} bytes at most")
    if parts[0].casefold() == STORE:
        raise ValueError(f"`runs/{STORE}` is where the features of all studies are kept: give the study another name")
    return name


def _check_place(place: str | None) -> str | None:
    """A path, or a URL, whose parts a file system takes."""
    if place is not None and max(len(p.encode()) for p in place.split("/")) > 255:
        raise ValueError("a part of this path is longer than a file's name can be (255 bytes)")
    return place


Name = Annotated[str, Field(min_length=1), AfterValidator(_check_name)]
Place = Annotated[str | None, AfterValidator(_check_place)]


class StudyBlock(Block):
    """The fields of a study of any kind, whatever it studies; `description` goes onto its page."""

    name: Name
    description: str | None = None
    results: Place = None
    report: Place = None


# --- what a study tells and gives ----------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a run would do and need, told before it starts. `table`: what each model needs, if models are run."""

    lines: tuple[str, ...]
    table: pd.DataFrame | None = field(default=None, compare=False)


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
    """A validated study: the file, and what it says; `is_mock` if models and data are stand-ins."""

    path: Path
    config: Any  # a StudyBlock
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
        on_plan: Callable[[Plan], None] | None = None,
    ) -> Outcome:
        """Run the study. A killed run resumes where it stopped. `on_plan` receives the plan before the work starts."""

    @abstractmethod
    def mock(self, progress: Progress = silent) -> Study:
        """The same study with tiny stand-ins for models and a generated dataset of the same form, in a folder of its own."""
