"""What every experiment is: a function whose arguments are its options, and what it gives."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from repalign.errors import RepalignError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

    from repalign.files import Url

RECORD = "experiment.json"  # in the folder of all that was written: what was asked, and the digests of the files
IS_INPUT = "a model, or a file or folder"
Input = Annotated[str, IS_INPUT]  # a relative path, of its own or in a spec, starts in the folder of the study


@dataclass(frozen=True, eq=False)
class Part:
    """What a page says below its figure, under a heading: sentences, and a table whose columns are named for people."""

    title: str
    text: str
    table: pd.DataFrame | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Found(ABC):
    """What an experiment found.

    table : the main table. tables : further ones, by name. shown : the columns of `table` that a terminal shows; all by default.
    identity : a digest of all that it depends on; "" where that is not known.
    """

    table: pd.DataFrame
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    identity: str = ""
    shown: ClassVar[tuple[str, ...]] = ()

    def is_in(self, folder: Path | Url) -> bool:
        """Whether all that is written of this finding is in a folder, as it was written."""
        from repalign.files import FILES, check_files, read_json

        try:
            record, _ = read_json(folder / RECORD)
            check_files(folder, record.get(FILES, {}), RECORD)
        except RepalignError:
            return False
        return self.identity != "" and record.get("identity") == self.identity

    @property
    @abstractmethod
    def text(self) -> str:
        """The finding in sentences, with n, what chance gives, and what would refute it."""

    @abstractmethod
    def draw(self, **look: Any) -> Axes:
        """The figure. `look` is the axes, size, title, caption and labels that a caller asks for (see `repalign.figures`)."""

    @property
    def answer(self) -> tuple[str, str] | None:
        """The answer in a sentence and what it rests on, for who reads nothing else: they head the page."""
        return None

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that is said, with its tables, where that is too much for one paragraph: a page shows them in place of `text`."""
        return ()

    @property
    def status(self) -> int:
        """What the command ends with: 0, or another number where something that was required does not hold."""
        return 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text})"


@dataclass(frozen=True)
class Experiment:
    """A row of the table of experiments.

    at : The experiment, "file:function" of this room, imported when it is used. Its arguments are the options of its command
        and the fields of its study, and its docstring says what each means. It takes `progress` too, and `executor` where it
        has work for several workers; these are no options.
    asks : The first line of its docstring, for lists of commands, which need no experiment.
    title : Heads the figure. example : The command, as its help shows it.
    needs : What a run needs, in a sentence, told before it starts.
    """

    at: str
    asks: str
    title: str
    example: str
    needs: str

    @property
    def module(self) -> ModuleType:
        """The file of the experiment."""
        return import_module(f"repalign.experiments.{self.at.partition(':')[0]}")

    @property
    def run(self) -> Callable[..., Found]:
        """The experiment itself."""
        return getattr(self.module, self.at.partition(":")[2])

    @property
    def mock(self) -> Callable[[dict[str, Any], Path], dict[str, Any]]:
        """Gives the arguments with tiny stand-ins for models and data, made in a folder: `mock`, beside the experiment."""
        return self.module.mock

    @property
    def extracted(self) -> Callable[..., tuple[Any, list[Any]]] | None:
        """Gives the dataset, and the models that are run on it, of the arguments: `extracted`, beside one that runs some."""
        return getattr(self.module, "extracted", None)

    @property
    def finished(self) -> Callable[..., Found | None]:
        """Gives what the same run found before: `finished`, beside an experiment that keeps it. None: that has to be run."""
        return getattr(self.module, "finished", lambda **_: None)

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The arguments that are options, with their types."""
        parameters = inspect.signature(self.run, eval_str=True).parameters
        return {name: p.replace(kind=p.KEYWORD_ONLY) for name, p in parameters.items() if name not in ("progress", "executor")}

    @property
    def has_workers(self) -> bool:
        """Whether workers may do a part of it: it takes an executor."""
        return "executor" in inspect.signature(self.run).parameters

    def placed(self, given: Mapping[str, Any], base: Path) -> dict[str, Any]:
        """The arguments with every relative path made to start in a folder."""
        from repalign.sources import parse_spec

        def place(value: Any, annotation: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [place(one, annotation) for one in value]
            if isinstance(value, Path) or (isinstance(value, str) and is_path(annotation)):  # as a file has it, a path is a text
                return base / Path(value).expanduser()
            if not isinstance(value, str) or not is_input(annotation):
                return value
            path = base / Path(value).expanduser()
            if path.exists() or ":" not in value:
                return str(path)
            try:
                return str(parse_spec(value).resolve(base))
            except RepalignError:
                return value  # the experiment says what is wrong with it

        return {name: place(value, self.options[name].annotation) for name, value in given.items()}


def is_path(annotation: Any) -> bool:
    """Whether an argument, or each of a list of them, is a path."""
    return annotation is Path or any(map(is_path, get_args(annotation)))


def is_input(annotation: Any) -> bool:
    """Whether an argument, or each of a list of them, is an `Input`."""
    return IS_INPUT in get_args(annotation) or any(map(is_input, get_args(annotation)))


def plain(annotation: Any) -> Any:
    """The type without what marks an `Input`."""
    if not is_input(annotation):
        return annotation
    kinds = get_args(annotation)
    if IS_INPUT in kinds:
        return kinds[0]
    if getattr(annotation, "__origin__", None) is list:
        return list[plain(kinds[0])]  # type: ignore[misc]
    first, *rest = map(plain, kinds)  # a union
    for kind in rest:
        first = first | kind
    return first


def made_up(path: Path, x: np.ndarray) -> str:
    """Write what was made up for a mock run; gives the path as an argument has it."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, x)
    return str(path)


def half_width(values: np.ndarray, level: float = 0.95) -> float:
    """Half of the interval of a mean, by Student's t."""
    from scipy.special import stdtrit

    n = len(values)
    return float(stdtrit(n - 1, (1 + level) / 2)) * float(values.std(ddof=1)) / math.sqrt(n)
