"""What every form of features is turned into before the rule looks at it: a table of named blocks, nothing loaded yet."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from repalign.errors import RepalignError, did_you_mean
from repalign.layers import FEATURES, KINDS

# "pairs": an RDM or a kernel; "closed": bytes and pickles, which are not looked into.
Kind = Literal["float", "integer", "boolean", "complex", "text", "time", "pairs", "other", "closed"]
Form = Literal["array", "arrays", "columns"]  # one array, named arrays, or a table of columns

UNNAMED_INDEX = "index"  # what the index of a frame is called that has no name
AXES = {"nld": "(n, layers, d)", "lnd": "(layers, n, d)"}


@dataclass(frozen=True, eq=False)
class Block:
    """One named thing of a file or an object.

    `shape` is its whole shape; -1 stands for lengths that differ from row to row. `load` gives the numbers as a tensor,
    `values` a list of what stands in its rows (None where nothing does). `place` is "index" for the index of a frame and
    "beside" for ids that are no array or column: metadata, a sidecar file, an argument. `says_rows`: such a thing is there to
    say which row is which. `counts`: an index that only numbers the rows from 0.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Any]
    values: Callable[[], Sequence[Any]]
    place: Literal["array", "column", "index", "beside"] = "array"
    axes: str | None = None  # of three dimensions, where the form says which is which
    nbytes: int = 0
    says_rows: bool = False
    counts: bool = False

    @property
    def told(self) -> str:
        """The block in an error or in a sentence: its name and what it is."""
        if self.place == "beside":
            return self.name
        if self.place == "index":
            return f"the index{'' if self.name == UNNAMED_INDEX else f' {self.name}'} ({self.dtype})"
        shape = "" if self.place == "column" and len(self.shape) == 1 else f" {shown_shape(self.shape)}"
        return f"{self.name} ({self.dtype}{shape})"


@dataclass(frozen=True)
class Table:
    """The blocks of a source, in its order, with what the source says of the model."""

    what: str  # the source in errors and sentences: a path, or the name of an argument
    form: Form
    blocks: tuple[Block, ...]
    layers: tuple[str, ...] | None = None  # which blocks are layers, in order, where the form has a word for it
    facts: Mapping[str, Any] = field(default_factory=dict)
    n_parameters: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    disk_bytes: int | None = None  # of a file; what it unpacks to is checked against memory before it is read

    def find(self, name: str) -> Block:
        """The block of that name; the index of a frame may be called "index"."""
        named = [b for b in self.blocks if b.name == name]
        if not named:
            known = [b.name for b in self.blocks]
            raise RepalignError(
                f"{self.what}: nothing in it is called {name!r}",
                expected="the name of a column, an array or the index",
                got=listed(known) or "no names",
                remedy=did_you_mean(name, known),
            )
        return named[0]


@dataclass(frozen=True)
class Reading:
    """What a caller says of one source; where nothing is said the rule decides, or asks.

    * `id`: the name of the column, array or index that names the rows, or the ids themselves, one per row.
    * `rows`: pair by position, whatever ids there are.
    * `features`: glob patterns (one, several, or one text with commas) of the columns that are the features.
    * `vector`: the name of the list column or array that holds the features, whatever it looks like.
    * `axes`: of three dimensions, "nld" for (n, layers, d) or "lnd" for (layers, n, d).
    * `kind`: "rdm" or "kernel" says that square arrays are dissimilarities or kernels; "features" that a square symmetric
      array does hold features.
    * `n`: how many stimuli there are, where the caller knows.
    """

    id: str | Sequence[Any] | None = None
    rows: bool = False
    features: str | Sequence[str] | None = None
    vector: str | None = None
    axes: str | None = None
    kind: str | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if self.id is not None and self.rows:
            raise RepalignError(
                "ids and rows are two ways to pair", expected="one of them", got="both", remedy="leave one out"
            )
        if self.features is not None and self.vector is not None:
            raise RepalignError(
                "features and vector both say what the features are",
                expected="features, a pattern of columns, or vector, the name of one block",
                got="both",
                remedy="leave one out",
            )
        if self.axes is not None and self.axes not in AXES:
            raise RepalignError(
                f"unknown axes {self.axes!r}",
                expected=" or ".join(f"{k} for {v}" for k, v in AXES.items()),
                got=self.axes,
                remedy=did_you_mean(str(self.axes), AXES),
            )
        if self.kind not in (None, FEATURES, *KINDS):
            known = [FEATURES, *KINDS]
            raise RepalignError(
                f"unknown kind {self.kind!r}",
                expected=" or ".join(known),
                got=self.kind,
                remedy=did_you_mean(str(self.kind), known),
            )
        if self.by_pairs and (self.features is not None or self.axes is not None):
            raise RepalignError(
                f"{'features' if self.axes is None else 'axes'} and kind {self.kind!r} do not go together",
                expected="square arrays (n, n) or (m, n, n)",
                got="both",
                remedy="leave one out; vector names the array that is meant",
            )

    @property
    def by_pairs(self) -> bool:
        """Whether it is said that the arrays are square ones, of pairs of stimuli."""
        return self.kind in KINDS

    @property
    def patterns(self) -> list[str]:
        """The globs of `features`."""
        given = self.features.split(",") if isinstance(self.features, str) else list(self.features or ())
        return [p.strip() for p in given if p.strip()]


def shown_shape(shape: Sequence[int]) -> str:
    inner = ", ".join("?" if s < 0 else str(s) for s in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Names in a sentence: all of a few, else the first and the last."""
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:3])} ... {names[-1]} ({len(names)})"


def option(name: str, value: str) -> str:
    """How a user says something about a source, in the three places where it can be said."""
    python = f"ids={value!r}" if name == "id" else f"repalign.read_features(x, {name}={value!r})"
    quoted = shlex.quote(value)
    return f"--{name} {quoted} (in Python {python}, in a study `{name}: {quoted}`)"
