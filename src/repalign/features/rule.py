"""The one rule: which blocks of a source are layers, which one names the rows, and what is left out.

Every form of features becomes a `Table` of named blocks, nothing loaded yet. Two-dimensional float blocks are layers, and so
are the float columns of a table together. What could be meant as a feature and is not plainly one (a mask, a third axis, a
whole number among numbered columns) is refused with the words that settle it; what is left out stands in `how`.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.features.ids import as_texts, distinct, tells_apart
from repalign.layers import FEATURES, KINDS, Given, Pairwise, kind_of, said

# "pairs": an RDM or a kernel; "closed": bytes and pickles, which are not looked into.
Kind = Literal["float", "integer", "boolean", "complex", "text", "time", "pairs", "other", "closed"]
NUMBERS = ("float", "integer", "boolean")

UNNAMED_INDEX = "index"  # what the index of a frame is called that has no name
PLATONIC = "feats"  # platonic-rep's files: the layers of a model, (n, layers, d) or a list of (n, d)
AXES = {"nld": "(n, layers, d)", "lnd": "(layers, n, d)"}
PARTS = "put real and imaginary parts side by side, np.concatenate([x.real, x.imag], axis=-1), or take abs(x)"
ROUNDING = 1e-5  # of the largest entry: matrices that were computed in float32, and once rounded to print

# "id", "ids", "ID", "image_id", "stimulus ids", "imageId", "sample_uid"; not "valid", "grid" or "centroid".
_EXACT = re.compile(r"ids?", re.I)
_ENDS = re.compile(r"(.*[\W_])?(ids?|uids?|uuids?|guids?)|.*[a-z](Ids?|IDs?)", re.S)


# --- a source, and what is said of it ------------------------------------------------------------


@dataclass(eq=False)
class Block:
    """One named thing of a file or an object.

    `shape` is its whole shape; -1 stands for lengths that differ from row to row, and is "?" in `shown`. `load` gives the
    numbers as a tensor, `values` a list of the values of its rows (None for a row without one). `place` is "index" for the
    index of a frame and "beside" for ids that are no array or column: metadata, a sidecar file, an argument. `says_rows`: it
    is there to say which row is which. `counts`: an index that only numbers the rows from 0. `label` is its name in errors
    and sentences, with what it is. `id_tier` says how surely it is called an id: 0 for ids that are declared or called just
    so, 1 for names that end in it.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Any]
    values: Callable[[], Sequence[Any]]
    place: Literal["array", "column", "index", "beside"] = "array"
    axes: str | None = None  # of three dimensions, if the form says which is which
    nbytes: int = 0
    says_rows: bool = False
    counts: bool = False

    def __post_init__(self) -> None:
        name, flat = self.name, len(self.shape) == 1
        self.shown = str(tuple(self.shape)).replace("-1", "?")
        self.is_scalars = self.place == "column" and flat  # one value per row
        self.is_vectors = self.kind == "float" and len(self.shape) == 2 and -1 not in self.shape  # all of one length
        self.label = name if self.place == "beside" else f"{name} ({self.dtype}{'' if self.is_scalars else f' {self.shown}'})"
        if self.place == "index":
            self.label = f"the index{'' if name == UNNAMED_INDEX else f' {name}'} ({self.dtype})"
        self.id_tier: int | None = None
        if flat and self.kind not in ("boolean", "complex"):
            tier = 0 if self.says_rows else id_tier(name)
            self.id_tier = None if tier and self.place == "index" else tier


def id_tier(name: str) -> int | None:
    """How surely ids are called so: 0 for id itself, 1 for a name that ends in it, None for others."""
    return 0 if _EXACT.fullmatch(name) else 1 if _ENDS.fullmatch(name) or _ENDS.fullmatch(name.lower()) else None


@dataclass(frozen=True)
class Table(ABC):
    """The blocks of a source, in its order, with what the source says of the model."""

    form: ClassVar[str]  # "array", "arrays" or "columns"
    what: str  # the source in errors and sentences: a path, or the name of an argument
    blocks: tuple[Block, ...]
    layers: tuple[str, ...] | None = None  # which blocks are layers, in order, if the form has a word for it
    facts: Mapping[str, Any] = field(default_factory=dict)
    n_parameters: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    disk_bytes: int | None = None  # of a file; what it unpacks to is checked against memory before it is read

    @abstractmethod
    def choose(self, reading: Reading) -> dict[str, list[Block]]:
        """The layers by the rule of this form: one block each, or all columns of one layer."""

    @abstractmethod
    def squares(self, kind: str) -> dict[str, list[Block]]:
        """The blocks that are square, each with the block that names its matrices, if any."""

    def find(self, name: str) -> Block:
        """The block of that name; the index of a frame may be called "index"."""
        known = [b.name for b in self.blocks]
        choose("name", name, known, f"{self.what}: nothing in it is called {name!r}")
        return self.blocks[known.index(name)]

    def no_features(self, others: Sequence[Block], how: str, ndim: int, show: Callable[[list[str]], str]) -> RepalignError:
        """The error for a source without any layer; `others` may be meant, and `how` with what `show` makes of them says so."""
        named = [b.name for b in others if b.kind in NUMBERS and len(b.shape) == ndim and b.id_tier is None]
        remedy = "convert what is meant to a float array (n, d)"
        vectors = {b.shape for b in self.blocks if b.kind == "float" and len(b.shape) == 1 and b.place == "array"}
        if any(b.kind == "complex" for b in others):
            remedy = PARTS
        elif named:
            remedy = f"whole numbers and truth values are no features unless you say so: {option(how, show(named))}"
        elif len(vectors) == 1:
            remedy += "; of a vector for each id make a frame, pandas.DataFrame.from_dict(x, orient='index')"
        return RepalignError(
            f"{self.what}: no two-dimensional block of floats: no layer",
            expected="a float array (n, d), a column of float lists, or float columns",
            got=names_of(self.blocks) or "nothing", remedy=remedy,
        )


@dataclass(frozen=True)
class Reading:
    """A caller's words about one source; for the rest the rule decides, or asks.

    * `id`: the name of the column, array or index that names the rows, or the ids themselves, one per row.
    * `rows`: pair by position, whatever ids there are.
    * `features`: glob patterns (one, several, or one text with commas) of the columns that are the features.
    * `vector`: the name of the list column or array that holds the features, whatever it looks like.
    * `axes`: of three dimensions, "nld" for (n, layers, d) or "lnd" for (layers, n, d).
    * `kind`: "rdm" or "kernel" says that square arrays are dissimilarities or kernels; "features" that a square symmetric
      array does hold features.
    * `n`: how many stimuli there are, if the caller knows.
    """

    id: str | Sequence[Any] | None = None
    rows: bool = False
    features: str | Sequence[str] | None = None  # kept as the patterns, none if nothing is said
    vector: str | None = None
    axes: str | None = None
    kind: str | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        out = "leave one out"
        if self.id is not None and self.rows:
            raise RepalignError("ids and rows are two ways to pair", expected="one of them", got="both", remedy=out)
        if self.features is not None and self.vector is not None:
            expected = "features, a pattern of columns, or vector, the name of one block"
            raise RepalignError("features and vector both say what the features are", expected=expected, got="both", remedy=out)
        if self.axes is not None:
            choose("axes", self.axes, AXES)
        if self.kind is not None:
            choose("kind", self.kind, (FEATURES, *KINDS))
        if self.kind in KINDS and (self.features is not None or self.axes is not None):
            raise RepalignError(
                f"{'features' if self.axes is None else 'axes'} and kind {self.kind!r} do not go together",
                expected="square arrays (n, n) or (m, n, n)", got="both",
                remedy="leave one out; vector names the array that is meant",
            )
        globs = self.features.split(",") if isinstance(self.features, str) else self.features or ()
        object.__setattr__(self, "features", tuple(filter(None, map(str.strip, globs))))


@dataclass(frozen=True)
class Found:
    """The layers and ids of one source, as they were read."""

    layers: dict[str, Given]  # each (n, d) in its own dtype, or an RDM or a Kernel
    n: int
    ids: tuple[str, ...] | None
    how: str = ""  # one sentence: what the features are, what names the rows, what was left out
    facts: Mapping[str, Any] = field(default_factory=dict)
    n_parameters: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    what: str = "x"
    candidates: tuple[Block, ...] = ()  # what is not called an id and could be one; none if the caller said `rows`
    by_rows: bool = False


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Names in a sentence: all of a few, else the first and the last."""
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:3])} ... {names[-1]} ({len(names)})"


def names_of(blocks: Sequence[Block]) -> str:
    """Blocks in a sentence."""
    return listed([b.label for b in blocks])


def option(name: str, value: str) -> str:
    """An option as a user gives it: on the command line, in Python, in a study file."""
    python = f"ids={value!r}" if name == "id" else f"repalign.read_features(x, {name}={value!r})"
    quoted = shlex.quote(value)
    return f"--{name} {quoted} (in Python {python}, in a study `{name}: {quoted}`)"


# --- the rule ------------------------------------------------------------------------------------


def apply(table: Table, reading: Reading) -> Found:
    """Load the layers and ids that the rule finds in a table."""
    parts = parts_of(table, reading)
    chosen = [b for part in parts.values() for b in part]
    if table.disk_bytes is not None:  # a small archive may unpack to any size
        could = [b for b in table.blocks if len(b.shape) == 1 and b.kind in ("text", "integer", "time")]
        needed = sum(b.nbytes or 4 * math.prod(max(s, 1) for s in b.shape) for b in {*chosen, *could})
        if needed > (there := available_bytes()):
            raise RepalignError(
                f"{table.what}: its arrays do not fit in memory", expected=f"at most {there / 1e9:.3g} GB, which are free",
                got=f"{needed / 1e9:.3g} GB by its header, {table.disk_bytes / 1e9:.3g} GB on disk",
                remedy="store fewer layers or stimuli in one file",
            )
    named = _choose_ids(table, reading, chosen)
    layers, words = _load(table, parts, reading, reading.n if named[0] is None else len(named[0]))
    return _found(table, reading, chosen, named, {name: len(x) for name, x in layers.items()}, layers, words)


def rows_of(table: Table, reading: Reading) -> Found:
    """What `apply` finds of the rows, and no layer: only what is square is loaded, which may be dissimilarities or a kernel."""
    parts = parts_of(table, reading)
    chosen = [b for part in parts.values() for b in part]
    named = _choose_ids(table, reading, chosen)
    n_ids = reading.n if named[0] is None else len(named[0])
    if square := {k: part for k, part in parts.items() if part[0].shape[-1:] == part[0].shape[-2:-1]}:
        _load(table, square, reading, n_ids)
    counts = {name: _count(table, part[0], reading, n_ids) for name, part in parts.items()}
    return _found(table, reading, chosen, named, counts, {}, "")


def _count(table: Table, block: Block, reading: Reading, n_ids: int | None) -> int:
    """How many rows the layers of a block have, by its shape."""
    if reading.kind in KINDS or block.kind == "pairs":
        return block.shape[-1]
    return block.shape[1 if len(block.shape) == 3 and axes_of(table, block, reading, n_ids) == "lnd" else 0]


def _found(
    table: Table, reading: Reading, chosen: Sequence[Block], named: tuple[tuple[str, ...] | None, str, list[Block]],
    counts: Mapping[str, int], layers: dict[str, Given], words: str,
) -> Found:  # fmt: skip
    """What is found of layers with these numbers of rows; refused where they differ, or do not go with the ids."""
    ids, by, of = named
    n = next(iter(counts.values()))
    if any(count != n for count in counts.values()):
        raise RepalignError(
            f"{table.what}: layers of different row counts", expected="one n for all layers of a model",
            got=", ".join(f"{name}: {count}" for name, count in list(counts.items())[:8]),
            remedy="leave out what is no layer, or name the one that is (--vector NAME, vector=)",
        )
    if ids is not None and len(ids) != n:
        got = f"{len(ids)} ids, {len(set(ids))} distinct"
        raise RepalignError(f"{table.what}: ids do not fit the rows", expected=f"{n} distinct ids", got=got)
    candidates: list[Block] = []
    if ids is None and not reading.rows and n > 1:
        # What is not called an id and could be one: a value of its own in nearly every row; an index that no longer counts.
        there = [b for b in table.blocks if b.shape[:1] == (n,) and b not in chosen and not b.counts]
        candidates = [b for b in there if b.place == "index" or tells_apart(b.values, b.kind, b.shape)]
    left = [b for b in table.blocks if b not in chosen and b not in of and not b.counts]
    sentences = [words, by, f"left out: {names_of(left)}" if left else ""]
    how = f"{table.what}: " + "; ".join(s for s in sentences if s)
    about = (table.facts, table.n_parameters, table.scores, table.what)
    return Found(layers, n, ids, how, *about, tuple(candidates), reading.rows)


def parts_of(table: Table, reading: Reading) -> dict[str, list[Block]]:
    """The layers before they are loaded, by the caller's word or by the rule: one block each, or all columns of one layer."""
    names = [b.name for b in table.blocks if b.place in ("array", "column")]
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise RepalignError(f"{table.what}: two things in it are called {twice!r}", expected="every name once", got=listed(names))
    if reading.vector is not None:
        block = table.find(reading.vector)
        if block.kind not in (*NUMBERS, "complex", "pairs") or len(block.shape) < 2:
            raise RepalignError(
                f"{table.what}: {block.label} holds no vectors", expected="a list column or an array (n, d)",
                got=f"shape {block.shown}",
                remedy=f"for single columns {option('features', reading.vector)}",
            )
        return {reading.vector: [block]}
    if reading.kind in KINDS:
        return table.squares(str(reading.kind))
    return _by_pattern(table, reading) if reading.features else table.choose(reading)


def _by_pattern(table: Table, reading: Reading) -> dict[str, list[Block]]:
    columns = [b for b in table.blocks if b.place == "column" and b.name != reading.id]
    fitting = {p: [b for b in columns if b.name == p or fnmatchcase(b.name, p)] for p in reading.features or ()}
    asked = ", ".join(fitting)
    found = [b for b in columns if any(b in named for named in fitting.values())]
    found = [b for b in found if b.id_tier is None or b.name in fitting]  # '*' means no ids
    missing = [p for p, named in fitting.items() if not named]
    if missing or not found:
        raise RepalignError(
            f"{table.what}: no column is called {(missing or [asked])[0]!r}",
            expected="a pattern of columns that hold numbers", got=listed([b.name for b in columns]) or "no columns",
            remedy=None if columns else "arrays are named with --vector (vector=)",
        )
    for b in found:
        if b.kind not in NUMBERS or len(b.shape) != 1:
            raise RepalignError(
                f"{table.what}: {b.label} is no column of numbers, and {asked!r} names it",
                expected="columns of one number per row", got=b.label,
                remedy="a narrower pattern; a column of lists is named with --vector (vector=)",
            )
    return {FEATURES: found}


def _choose_ids(table: Table, reading: Reading, chosen: Sequence[Block]) -> tuple[tuple[str, ...] | None, str, list[Block]]:
    """The ids, their origin in words, and the blocks that hold them; None if nothing is called an id."""

    if reading.rows:
        return None, "rows by position, as asked", []
    if isinstance(reading.id, str):
        found = [table.find(reading.id)]
    elif reading.id is not None:
        return as_texts(list(reading.id), table.what, "ids"), "ids: as given", []
    else:
        tiers = [[b for b in table.blocks if b not in chosen and b.id_tier == tier] for tier in (0, 1)]
        found = tiers[0] or tiers[1]
        if len(found) > 1 and not tiers[0]:  # what repeats cannot name the rows
            found = [b for b in found if distinct(b.values())] or found
    if not found:
        return None, "", []
    for b in found:
        if len(b.shape) != 1:
            problem = f"{table.what}: {b.label} cannot name the rows"
            raise RepalignError(problem, expected="one value per row", got=f"shape {b.shape}")
    read = [as_texts(b.values(), table.what, b.name, b.dtype) for b in found]
    if any(r != read[0] for r in read):
        raise RepalignError(
            f"{table.what}: several things could be its ids, and they differ", expected="one that names the rows",
            got="; ".join(b.label for b in found),
            remedy=f"say which, for instance {option('id', found[0].name)}; or --rows (rows=True) for row by row",
        )
    return read[0], f"ids: {found[0].label}", found


# --- loading -------------------------------------------------------------------------------------


def _load(table: Table, parts: Mapping[str, list[Block]], reading: Reading, n_ids: int | None) -> tuple[dict[str, Given], str]:
    """The layers by name, and what they are in words."""
    layers: dict[str, Given] = {}
    words = []
    for name, part in parts.items():
        first = part[0]
        if first.is_scalars:
            columns = [b.load() for b in part]
            layers[name] = torch.stack([x if x.is_floating_point() else x.to(torch.float64) for x in columns], dim=1)
            names = [b.name for b in part]
            ends = ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} ... {names[-1]}"
            words.append(f"features: {len(part)} columns {ends}")
            continue
        x = first.load()
        if isinstance(x, Pairwise) or reading.kind in KINDS:
            where = table.what if name == FEATURES else f"{table.what}, {name}"
            inner = _pairs(x, part, reading.kind, where, name, len(parts) == 1)
            layers |= inner
            alone = first.shown if name == FEATURES else first.label
            more = f", {len(inner)} layers" if len(inner) > 1 else ""
            words.append(f"{said(kind_of(next(iter(inner.values()))))}: {alone}{more}")
        elif isinstance(x, list):
            layers |= {f"layer.{i}": layer for i, layer in enumerate(x)}
        elif x.ndim == 3:
            axes = axes_of(table, first, reading, n_ids)
            stack = x.unbind(1 if axes == "nld" else 0)
            layers |= {f"layer.{i}": layer for i, layer in enumerate(stack)}
            words.append(f"{first.label} read as {AXES[axes]}: {len(stack)} layers")
        else:
            layers[name] = x
    chosen = [b for part in parts.values() for b in part]
    if not words:
        alone = chosen[0].label if table.form != "array" else f"{chosen[0].dtype} {chosen[0].shown}"
        words.append(f"layers: {listed(list(layers))}" if len(layers) > 1 else f"features: {alone}")
    sure = reading.vector is not None or reading.kind is not None or bool(reading.features)
    for name, x in layers.items():
        if isinstance(x, Tensor):
            where = f"{table.what}, layer {name}"
            if x.ndim != 2 or 0 in x.shape:
                raise RepalignError(
                    f"{where}: not (n, d)", expected="two dimensions, one row per stimulus", got=f"shape {tuple(x.shape)}",
                    remedy="pool or flatten each stimulus to one vector; for one feature use shape (n, 1)",
                )
            if not x.is_floating_point():  # features by the caller's word
                x = layers[name] = x.to(torch.float64)
            elif x.element_size() == 1:
                x = layers[name] = x.to(torch.float32)
            if not sure and x.shape[0] == x.shape[1]:
                block = chosen[0].name if len(chosen) == 1 else name
                _refuse_unmarked(x, where if len(layers) > 1 else table.what, block)
    return layers, "; ".join(words)


def _pairs(x: Any, part: Sequence[Block], kind: str | None, where: str, name: str, alone: bool) -> dict[str, Pairwise]:
    """The layers of a block of RDMs or kernels, named after the block, if it has a name, and after its matrices.

    `alone`: no other block is a layer, so that names of matrices need no more.
    """
    if not isinstance(x, Pairwise):
        x = KINDS[str(kind)](x, part[1].values() if len(part) > 1 else None, where=where)
    if kind not in (None, x.kind):
        raise RepalignError(f"{where}: {said(x.kind)}, and said to be {said(str(kind))}", remedy="say one of them")
    name = x.kind if name == FEATURES else name
    inner = x.layers(name)
    return inner if alone or not x.names else {f"{name}.{n}": layer for n, layer in inner.items()}


def _refuse_unmarked(x: Tensor, where: str, name: str) -> None:
    """Refuse an array (n, n) that is symmetric but for rounding: dissimilarities or a kernel that nobody said they are."""
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    rounding = max(ROUNDING, 4 * torch.finfo(x.dtype).eps) * float(wide.abs().nan_to_num(0.0, 0.0, 0.0).max())
    if len(x) < 3 or not torch.allclose(wide, wide.T, rtol=0.0, atol=rounding, equal_nan=True):
        return
    diagonal = x.diagonal().to(torch.float64)
    constant = bool((diagonal == diagonal[0]).all())
    raise RepalignError(
        f"{where}: square and symmetric, which dissimilarities (RDM) and kernels are and features are not",
        expected="features, one vector per stimulus; or a matrix that is said to be one",
        got=f"shape {tuple(x.shape)}" + (f", {float(diagonal[0]):g} on the diagonal" if constant else ""),
        remedy="say --rdm or --kernel (in Python repalign.RDM(array) or repalign.Kernel(array), in a study `kind: rdm`); "
        f"if its rows are features, {option('vector', name)}",
    )


def axes_of(table: Table, block: Block, reading: Reading, n_ids: int | None) -> str:
    """The meaning of three axes: as the form or the caller says, else as the number of ids leaves it."""
    axes = block.axes or ("nld" if table.form == "arrays" and block.name == PLATONIC else reading.axes)
    if axes is not None:
        return axes
    first, second, third = block.shape
    stimuli = {"nld": first, "lnd": second}
    possible = [a for a, n in stimuli.items() if n > 1]  # one stimulus is no reading
    if n_ids is not None:
        possible = [a for a in possible if stimuli[a] == n_ids] or possible
    if len(possible) == 1:
        return possible[0]
    raise RepalignError(
        f"{table.what}: {block.label} can be read in two ways",
        expected="(n, d); or three dimensions, and a word on which one counts the stimuli",
        got=f"{first} stimuli of {second} layers, or {second} stimuli of {first} layers",
        remedy="say --axes nld for (n, layers, d) or --axes lnd for (layers, n, d) (in Python a mapping from layer name to "
        "(n, d) arrays, in a study `axes: nld`), or give as many ids as there are stimuli; pool tokens to one vector first"
        + ("; or say --rdm or --kernel of a stack (m, n, n)" if second == third else ""),
    )


def available_bytes() -> int:
    """Memory that is free on this machine, as far as it says so."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
