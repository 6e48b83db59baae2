"""What every kind of study shares: the blocks of its file, its folders, and that it can be planned, run and tried out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field

from repalign.dataset.config import Block as OfDataset
from repalign.errors import RepalignError
from repalign.figures.kinds import Drawn, write_figures
from repalign.files import Url, place_of
from repalign.report import write_study_page
from repalign.sources import Pending
from repalign.text import Progress, counted, named, silent
from repalign.workers import Share

if TYPE_CHECKING:
    import pandas as pd

    from repalign.comparison.alignment import Alignment
    from repalign.study.yaml_lines import Where

LONGEST = 200  # bytes of a name that is a folder's: file systems take 255, and a mock's name is longer
RUNS = "runs"  # the folder in which a study writes, beside its file
STORE = "store"  # the folder beside those of the studies, which their features share


# --- fields of every study file ------------------------------------------------------------------


class Block(OfDataset):
    """A mapping of a study file that does not change."""

    model_config = ConfigDict(frozen=True)


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
    """A path, or a URL without credentials in it, whose parts a file system takes."""
    if place is not None:
        place_of(place)
    if place is not None and max(len(p.encode()) for p in place.split("/")) > 255:
        raise ValueError("a part of this path is longer than a file's name can be (255 bytes)")
    return place


Name = Annotated[str, Field(min_length=1), AfterValidator(_check_name)]
Place = Annotated[str | None, AfterValidator(_check_place)]


class ClusterConfig(Block):
    """What each job of `--dask slurm`, `pbs` or `lsf` asks its queue for; one job is one worker (docs/scale.md).

    Parameters
    ----------
    workers : How many jobs are submitted.
    cores : Cores of a job: a worker does one task at a time with all of them.
    memory : Memory of a job, such as 16GB.
    walltime : The time limit of a job, such as 04:00:00. What is finished by then is kept.
    queue : The queue, or partition.
    account : The account, or project, that pays.
    options : More lines for the head of the job, such as "--gres=gpu:1".
    setup : Commands before the worker starts, such as "source venv/bin/activate".
    """

    workers: int = Field(ge=1)
    cores: int = Field(default=1, ge=1)
    memory: str = "16GB"
    walltime: str = "04:00:00"
    queue: str | None = None
    account: str | None = None
    options: list[str] = Field(default_factory=list)
    setup: list[str] = Field(default_factory=list)


class StudyBlock(Block):
    """The fields of a study of any kind.

    Parameters
    ----------
    name : The name of the study, and of its folder in `runs/`; by default that of the file, without its ending.
    question : What the study asks; it stands above the answer on its pages. By default "Do better models agree more?", or what
        its models allow to ask.
    description : What the study is about, in a sentence or two; it stands on the study's page.
    out : A folder or an fsspec URL for all that is written: OUT/store, OUT/NAME/results and so on; by default runs.
    results : The folder of the results, or an fsspec URL; by default OUT/NAME/results.
    report : The HTML file of the report, or its fsspec URL; by default OUT/NAME/report.html.
    cluster : What jobs ask a queue for, where the study is run with `--dask slurm`, `pbs` or `lsf`.
    """

    name: Name = ""  # `load_study` gives the default, of which it knows the file
    question: str | None = None
    description: str | None = None
    out: Place = None
    results: Place = None
    report: Place = None
    cluster: ClusterConfig | None = None


# --- what a study tells and gives ----------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a run would do and need, told before it starts. `table`: what each model needs, if models are run."""

    lines: tuple[str, ...]
    table: pd.DataFrame | None = field(default=None, compare=False)


OnPlan = Callable[[Plan], object] | None  # receives the plan before the work starts


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run gave: a result per variant (one called "" without variants), figures, models left out, files written."""

    alignments: Mapping[str, Alignment] = field(default_factory=dict)
    drawn: tuple[Drawn, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    wrote: tuple[tuple[str, Path | Url], ...] = ()

    @property
    def alignment(self) -> Alignment:
        """The result of the first variant, or the only one."""
        return next(iter(self.alignments.values()))


@dataclass(frozen=True)
class Left:
    """What a study lacks before its results can be put together: models with missing parts, and groups of comparisons."""

    models: tuple[Pending, ...] = ()
    groups: int = 0
    of: int = 0
    shares: tuple[int, ...] = ()  # by whom what is missing is to be made, counted from 1

    def __bool__(self) -> bool:
        return bool(self.models or self.groups)

    def __str__(self) -> str:
        if self.models:
            told = [f"{m.missing} of {m.parts} of model {m.name}" for m in self.models]
            return f"parts of extraction are missing: {named(told)}"
        return f"{self.groups} of {counted(self.of, 'group')} of comparisons {'is' if self.groups == 1 else 'are'} missing"


@dataclass(frozen=True)
class Study(ABC):
    """A validated study: the file, and what it says; `is_mock` if models and data are stand-ins."""

    path: Path
    config: Any  # a StudyBlock
    is_mock: bool = field(default=False, kw_only=True)
    name: str = field(init=False)
    base: Path = field(init=False)  # where relative paths start
    runs: Path | Url = field(init=False)  # of all studies of files in one folder, and the features that they share
    folder: Path | Url = field(init=False)  # of everything of this study that the file does not place elsewhere
    results: Path | Url = field(init=False)
    report: Path | Url = field(init=False)
    cluster: ClusterConfig | None = field(init=False)

    def __post_init__(self) -> None:
        base, config = self.path.parent, self.config
        runs = place_of(config.out or RUNS, base)
        own = runs / config.name
        found = {"runs": runs, "folder": own, "results": own / "results", "report": own / "report.html"}
        found |= {what: place_of(given, base) for what in ("results", "report") if (given := getattr(config, what)) is not None}
        vars(self).update(name=config.name, base=base, cluster=config.cluster, **found)

    @property
    def mock_folder(self) -> Path:
        """Where the mock of this study writes: on this machine, wherever the study does."""
        return (self.base / RUNS / f"{self.name}-mock").absolute()

    def show(
        self, drawn: Sequence[Drawn], outcome: Outcome, figures: tuple[str, Path | Url], page: Path | Url,
        reports: Mapping[str, Path | Url], **more: Any,
    ) -> Outcome:  # fmt: skip
        """Write every figure with its table, and the page that shows them; what is written is added to the outcome.

        `figures` are the folder of the figures and what to call it, `reports` the full reports to which the page leads, `more` what
        else `write_study_page` takes.
        """
        pictures = write_figures(drawn, figures[1], self.is_mock)
        about = (page, self.name, self.config.description, drawn, pictures, reports, outcome.skipped)
        write_study_page(*about, question=self.config.question, is_mock=self.is_mock, **more)
        wrote = (*outcome.wrote, *([figures] if drawn else ()), ("report", page))
        return replace(outcome, drawn=tuple(drawn), wrote=wrote)

    @classmethod
    @abstractmethod
    def load(cls, path: Path, data: dict[str, Any], where: Where) -> Study:
        """The study of a file's data. `where` validates a `Block`, and keeps mistakes with their place: `load_study` tells them."""

    def look(self) -> None:  # noqa: B027
        """Keep in the `where` of `load` what is wrong beyond what that has found; called if it has found something."""

    def with_local(self, *folders: Path) -> Study:
        """The same study with models of the hub read from folders that hold their paths: FOLDER/org/name for hf:org/name.

        The first folder that holds a model counts. RepalignError for a folder that holds none of the study's models.
        """
        raise RepalignError(
            f"{self.name}: only a study that compares models reads some of them from {', '.join(map(str, folders))}",
            got=f"experiment {self.config.experiment!r}", remedy="leave --local out, and name the folders in the study",
        )  # fmt: skip

    @abstractmethod
    def plan(self, progress: Progress = silent) -> Plan:
        """What a run would do and what it needs. No model is run. RepalignError for what is known to be wrong with it."""

    @abstractmethod
    def run(self, *, progress: Progress = silent, executor: Executor | None = None, on_plan: OnPlan = None) -> Outcome:
        """Run the study. A killed run resumes where it stopped. `on_plan` receives the plan before the work starts."""

    def share(
        self, share: Share, *, compare: bool = True, executor: Executor | None = None, progress: Progress = silent,  # noqa: ARG002
        on_plan: OnPlan = None,  # noqa: ARG002
    ) -> Left:  # fmt: skip
        """Do one share of the work, wait for nothing, and say what is missing then.

        A share is of the parts of extraction first. When no part of any share is missing it is one of the comparisons, unless
        these are not wanted. RepalignError for a study whose work cannot be shared out.
        """
        raise RepalignError(f"{self.path}: this kind of study has no work to share out", remedy="leave out --part")

    @property
    def has_workers(self) -> bool:
        """Whether the executor of `run` has anything to do."""
        return False

    def mocked(self, changes: Mapping[str, Any], **own: Any) -> Self:
        """The study under the name and in the folder of its mock, with changes in what its file says and in fields of its own."""
        places = {"name": f"{self.name}-mock", "out": None, "results": None, "report": None}
        return replace(self, config=self.config.model_copy(update={**places, **changes}), is_mock=True, **own)

    @abstractmethod
    def mock(self, progress: Progress = silent) -> Study:
        """The same study with tiny stand-ins for models and a generated dataset of the same form, in a folder of its own."""
