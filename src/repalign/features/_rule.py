"""The one rule: which blocks of a table are layers, which one names the rows, and what is left out, in words.

Two-dimensional float blocks are layers, and so are the float columns of a table together. What could be meant as a feature
and is not plainly one (a mask, a third axis, a whole number among numbered columns) is refused with the words that settle it;
what is left out stands in `how`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.features._ids import candidates, choose_ids, name_tier, names_of
from repalign.features._matrix import as_pairs, layer_names, layers_of, refuse_unmarked_matrix, square_blocks
from repalign.features._table import AXES, Block, Reading, Table, listed, option, shown_shape
from repalign.layers import Given, Pairwise, kind_of, said

COLUMNS = "features"  # the layer that float columns are together
PARTS = "put real and imaginary parts side by side, np.concatenate([x.real, x.imag], axis=-1), or take abs(x)"
PLATONIC = "feats"  # platonic-rep's files: the layers of a model, (n, layers, d) or a list of (n, d)


@dataclass(frozen=True)
class Found:
    """What was read of one source."""

    layers: dict[str, Given]  # each (n, d) in its own dtype, or an RDM or a Kernel
    ids: tuple[str, ...] | None
    how: str = ""  # one sentence: what the features are, what names the rows, what was left out
    facts: Mapping[str, Any] = field(default_factory=dict)
    n_parameters: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    what: str = "x"
    candidates: tuple[Block, ...] = ()  # what is not called an id and could be one; none where the caller said `rows`
    by_rows: bool = False

    @property
    def n(self) -> int:
        return len(next(iter(self.layers.values())))


@dataclass(frozen=True)
class Choice:
    """The layers of a table before they are loaded: one block each, or all columns of one layer, or a stack of layers."""

    parts: dict[str, list[Block]]
    forced: bool  # the caller said that these are the features

    @property
    def blocks(self) -> list[Block]:
        return [b for part in self.parts.values() for b in part]


def apply(table: Table, reading: Reading) -> Found:
    """Load the layers and ids that the rule finds in a table."""
    _refuse_twins(table)
    choice = choose(table, reading)
    _check_memory(table, choice.blocks)
    ids, said, of = choose_ids(table, reading, choice.blocks)
    layers, words = _load(table, choice, reading, reading.n if ids is None else len(ids))
    n = _rows(table, layers, ids)
    could_be = [] if ids is not None or reading.rows else candidates(table, n, choice.blocks)
    left = [b for b in table.blocks if b not in choice.blocks and b not in of and not b.counts]
    sentences = [words, said, f"left out: {names_of(left)}" if left else ""]
    how = f"{table.what}: " + "; ".join(s for s in sentences if s)
    return Found(
        layers, ids, how, table.facts, table.n_parameters, table.scores, table.what, tuple(could_be), reading.rows
    )


def widths(table: Table, reading: Reading) -> dict[str, int]:
    """The width of every layer that the rule finds, from the shapes alone."""
    choice, out = choose(table, reading), {}
    for name, part in choice.parts.items():
        if reading.by_pairs:
            named = layer_names(part, str(reading.kind), len(choice.parts) == 1, COLUMNS)
            out |= dict.fromkeys(named, part[0].shape[-1])
        elif _is_scalars(part):
            out[name] = len(part)
        elif len(part[0].shape) == 3:
            axis = "nld".index("l") if _axes(table, part[0], reading, None) == "nld" else 0
            out |= {f"layer.{i}": part[0].shape[2] for i in range(part[0].shape[axis])}
        else:
            out[name] = part[0].shape[1]
    return out


def _refuse_twins(table: Table) -> None:
    names = [b.name for b in table.blocks if b.place in ("array", "column")]
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise RepalignError(f"{table.what}: two things in it are called {twice!r}", expected="every name once", got=listed(names))


# --- which blocks are layers -----------------------------------------------------------------------


def choose(table: Table, reading: Reading) -> Choice:
    """Which blocks are the layers, by the caller's word or by the rule."""
    if reading.vector is not None:
        return _by_name(table, reading.vector)
    if reading.by_pairs:
        return Choice(square_blocks(table, str(reading.kind)), True)
    if reading.patterns:
        return _by_pattern(table, reading)
    if table.form == "array":
        block = next(b for b in table.blocks if b.place == "array")
        if reading.kind is None or block.kind not in ("float", "integer", "boolean"):
            _refuse_single(table, block)
        return Choice({block.name: [block]}, reading.kind is not None)
    chosen = _of_columns(table, reading) if table.form == "columns" else _of_arrays(table)
    return Choice(chosen, reading.kind is not None)


def _by_name(table: Table, name: str) -> Choice:
    block = table.find(name)
    if block.kind not in ("float", "integer", "boolean", "complex", "pairs") or len(block.shape) < 2:
        raise RepalignError(
            f"{table.what}: {block.told} holds no vectors",
            expected="a list column or an array (n, d)",
            got=f"shape {shown_shape(block.shape)}",
            remedy=f"for single columns {option('features', name)}",
        )
    return Choice({name: [block]}, True)


def _by_pattern(table: Table, reading: Reading) -> Choice:
    columns = [b for b in table.blocks if b.place == "column" and b.name != reading.id]
    fitting = {p: [b for b in columns if b.name == p or fnmatchcase(b.name, p)] for p in reading.patterns}
    asked = ", ".join(reading.patterns)
    found = [b for b in columns if any(b in named for named in fitting.values())]
    found = [b for b in found if name_tier(b) is None or b.name in reading.patterns]  # '*' means no ids
    missing = [p for p, named in fitting.items() if not named]
    if missing or not found:
        raise RepalignError(
            f"{table.what}: no column is called {(missing or [asked])[0]!r}",
            expected="a pattern of columns that hold numbers",
            got=listed([b.name for b in columns]) or "no columns",
            remedy=None if columns else "arrays are named with --vector (vector=)",
        )
    for b in found:
        if b.kind not in ("float", "integer", "boolean") or len(b.shape) != 1:
            raise RepalignError(
                f"{table.what}: {b.told} is no column of numbers, and {asked!r} names it",
                expected="columns of one number per row",
                got=b.told,
                remedy="a narrower pattern; a column of lists is named with --vector (vector=)",
            )
    return Choice({COLUMNS: found}, True)


def _refuse_single(table: Table, block: Block) -> None:
    """Refuse one array that plainly holds something else than features."""
    if block.kind in ("float", "pairs"):
        return
    if block.kind == "complex":
        raise RepalignError(f"{table.what}: complex numbers", expected="real features", got=block.told, remedy=PARTS)
    if block.kind in ("integer", "boolean"):
        raise RepalignError(
            f"{table.what}: whole numbers or truth values alone are no features",
            expected="a float array (n, d)",
            got=block.told,
            remedy=f"convert it to float; or, if these are features, {option('vector', block.name)}",
        )
    raise RepalignError(
        f"{table.what}: not an array of numbers", expected="a float array (n, d)", got=block.told,
        remedy="convert it to float32 or float64 first",
    )  # fmt: skip


def _of_arrays(table: Table) -> dict[str, list[Block]]:
    """Named arrays: the two-dimensional float ones; what has a third axis is never dropped in silence."""
    blocks = [b for b in table.blocks if b.place == "array"]
    if table.layers is not None:
        blocks = [table.find(name) for name in table.layers]
    feats = next((b for b in blocks if b.name == PLATONIC and len(b.shape) in (2, 3) and b.kind == "float"), None)
    if feats is not None:
        return {PLATONIC if len(feats.shape) == 3 else COLUMNS: [feats]}
    plain = [b for b in blocks if b.kind == "pairs" or (b.kind == "float" and len(b.shape) == 2 and -1 not in b.shape)]
    deep = [b for b in blocks if b not in plain and b.kind in ("float", "complex") and len(b.shape) >= 2]
    if deep:
        first = deep[0]
        said = option("vector", plain[0].name if plain else first.name)
        said += " with --axes" if not plain and first.axes is None and len(first.shape) == 3 else ""
        raise RepalignError(
            f"{table.what}: {first.told} is no layer, and may be meant as one",
            expected="real float arrays of two dimensions (n, d), one vector per stimulus",
            got=names_of(blocks),
            remedy=f"pool the tokens or positions of {first.name} to one vector first; or name what the features are, {said}"
            + ("; or say --rdm or --kernel of a stack (m, n, n)" if first.shape[-1] == first.shape[-2] else ""),
        )
    if not plain:
        raise _no_features(table, [b for b in blocks if len(b.shape) >= 2], "vector")
    return {b.name: [b] for b in plain}


def _of_columns(table: Table, reading: Reading) -> dict[str, list[Block]]:
    """Columns: those of float lists, one layer each; else all float columns as one layer, where they plainly belong together."""
    columns = [b for b in table.blocks if b.place == "column"]
    if isinstance(reading.id, str):
        columns = [b for b in columns if b.name != reading.id]
    columns = [b for b in columns if not (b.kind == "float" and len(b.shape) == 1 and name_tier(b) is not None)]
    vectors = [b for b in columns if b.kind == "float" and len(b.shape) == 2 and -1 not in b.shape]
    deep = [b for b in columns if b not in vectors and b.kind in ("float", "complex") and len(b.shape) >= 2]
    scalars = [b for b in columns if b.kind == "float" and len(b.shape) == 1]
    families = _families(scalars)
    if deep and not vectors:
        raise RepalignError(
            f"{table.what}: {deep[0].told} holds no vectors of one length",
            expected="a list of d numbers in every row",
            got=names_of(deep),
            remedy="pool tokens or positions to one vector per row, or name what the features are (--vector, --features)",
        )
    if vectors and (families or deep):
        other = f"{deep[0].told}" if deep else f"the columns {listed(families[0])}"
        raise RepalignError(
            f"{table.what}: which are the features?",
            expected="columns of vectors, or one numbered set of float columns",
            got=f"{names_of(vectors)} and {other}",
            remedy=f"say {option('vector', vectors[0].name)}, or --features with a pattern of columns",
        )
    if vectors:
        return {b.name: [b] for b in vectors}
    if not scalars:
        raise _no_features(table, columns, "features")
    _refuse_mixed_columns(table, columns, scalars, families)
    return {COLUMNS: scalars}


def _refuse_mixed_columns(table: Table, columns: Sequence[Block], scalars: Sequence[Block], families: list[list[str]]) -> None:
    """Refuse float columns of which some may not be features, and other columns that may be."""
    numbered = {name for family in families for name in family}
    stems = {_stem(name) for name in numbered}
    apart = [b for b in scalars if b.name not in numbered]
    if len(families) > 1 or (families and apart):
        raise _which_columns(table, scalars, families, apart or [b for b in scalars if b.name in families[1]])
    rest = [b for b in columns if b.kind != "float" and len(b.shape) == 1]
    doubtful = [b for b in rest if _stem(b.name) in stems]
    if not families:  # columns with a name each: a whole number may well be one of them
        doubtful = [b for b in rest if b.kind in ("integer", "boolean", "other", "complex") and name_tier(b) is None]
    if doubtful:
        raise _which_columns(table, scalars, families, doubtful)


def _which_columns(
    table: Table, scalars: Sequence[Block], families: list[list[str]], doubtful: Sequence[Block]
) -> RepalignError:
    pattern = _glob(families[0]) if families else _pattern([b.name for b in scalars])
    sure = [b.name for b in scalars if b not in doubtful]
    return RepalignError(
        f"{table.what}: which columns are the features?",
        expected="float columns that belong together, and no other number that could be one of them",
        got=f"{listed(sure)} (float) and {names_of(doubtful)}",
        remedy=f"say them by a pattern, for instance {option('features', pattern)}",
    )


def _no_features(table: Table, others: Sequence[Block], how: str) -> RepalignError:
    ndim = 2 if how == "vector" else 1
    named = [b.name for b in others if b.kind in ("integer", "boolean") and len(b.shape) == ndim and name_tier(b) is None]
    remedy = "convert what is meant to a float array (n, d)"
    vectors = {b.shape for b in table.blocks if b.kind == "float" and len(b.shape) == 1 and b.place == "array"}
    if len(vectors) == 1:
        remedy += "; of a vector for each id make a frame, pandas.DataFrame.from_dict(x, orient='index')"
    if any(b.kind == "complex" for b in others):
        remedy = PARTS
    elif named:
        value = named[0] if how == "vector" else _pattern(named)
        remedy = f"whole numbers and truth values are no features unless you say so: {option(how, value)}"
    return RepalignError(
        f"{table.what}: no two-dimensional block of floats: no layer",
        expected="a float array (n, d), a column of float lists, or float columns",
        got=names_of(table.blocks) or "nothing",
        remedy=remedy,
    )


def _stem(name: str) -> str:
    """A name without its last number: columns that count one thing share it."""
    return re.sub(r"\d+(?=\D*$)", "#", name)


def _families(columns: Sequence[Block]) -> list[list[str]]:
    """Names that differ in their last number only, two or more."""
    return _families_of([b.name for b in columns])


def _families_of(names: Sequence[str]) -> list[list[str]]:
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(_stem(name), []).append(name)
    return [alike for alike in by_stem.values() if len(alike) > 1]


def _pattern(names: Sequence[str]) -> str:
    """A pattern of these columns, as an example."""
    if _families_of(names):
        return _glob(names)
    return ",".join(names[:6]) + (",..." if len(names) > 6 else "")


def _glob(names: Sequence[str]) -> str:
    """A pattern that fits these names."""
    return _stem(names[0]).replace("#", "*")


# --- loading ---------------------------------------------------------------------------------------


def _load(table: Table, choice: Choice, reading: Reading, n_ids: int | None) -> tuple[dict[str, Given], str]:
    layers: dict[str, Given] = {}
    words = []
    for name, part in choice.parts.items():
        if _is_scalars(part):
            layers[name] = torch.stack([_floating(b.load()) for b in part], dim=1)
            names = [b.name for b in part]
            ends = ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} ... {names[-1]}"
            words.append(f"features: {len(part)} columns {ends}")
            continue
        x = part[0].load()
        if isinstance(x, Pairwise) or reading.by_pairs:
            where = table.what if name == COLUMNS else f"{table.what}, {name}"
            inner = layers_of(as_pairs(x, part, reading.kind, where), name, len(choice.parts) == 1, COLUMNS)
            layers |= inner
            first = said(kind_of(next(iter(inner.values()))))
            alone = f"{shown_shape(part[0].shape)}" if name == COLUMNS else part[0].told
            words.append(f"{first}: {alone}" + (f", {len(inner)} layers" if len(inner) > 1 else ""))
            continue
        if isinstance(x, list):
            layers |= {f"layer.{i}": _floating(layer) for i, layer in enumerate(x)}
            continue
        x = _floating(x)
        if x.ndim == 3:
            axes = _axes(table, part[0], reading, n_ids)
            stack = x.unbind(1) if axes == "nld" else x.unbind(0)
            layers |= {f"layer.{i}": layer for i, layer in enumerate(stack)}
            words.append(f"{part[0].told} read as {AXES[axes]}: {len(stack)} layers")
        else:
            layers[name] = x
    if not words:
        first = choice.blocks[0]
        alone = f"{first.dtype} {shown_shape(first.shape)}" if table.form == "array" else first.told
        words.append(f"layers: {listed(list(layers))}" if len(layers) > 1 else f"features: {alone}")
    for name, x in layers.items():
        if not isinstance(x, Pairwise):
            _check_layer(x, name, table.what, len(layers) == 1, choice)
    return layers, "; ".join(words)


def _check_layer(x: Tensor, name: str, what: str, alone: bool, choice: Choice) -> None:
    """Refuse what is not (n, d), and a matrix of pairs of stimuli of which nobody said that it holds features."""
    if x.ndim != 2 or 0 in x.shape:
        raise RepalignError(
            f"{what}, layer {name}: not (n, d)",
            expected="two dimensions, one row per stimulus",
            got=f"shape {tuple(x.shape)}",
            remedy="pool or flatten each stimulus to one vector; for one feature use shape (n, 1)",
        )
    if not choice.forced:
        block = choice.blocks[0].name if len(choice.blocks) == 1 else name
        refuse_unmarked_matrix(x, what if alone else f"{what}, layer {name}", block)


def _is_scalars(part: Sequence[Block]) -> bool:
    """Whether a layer is made of columns of one number per row."""
    return part[0].place == "column" and len(part[0].shape) == 1


def _floating(x: Tensor) -> Tensor:
    """Numbers as floats: whole ones that are features by the caller's word in float64, those of eight bits in float32."""
    if x.is_floating_point():
        return x if x.element_size() > 1 else x.to(torch.float32)
    return x.to(torch.float64)


def _axes(table: Table, block: Block, reading: Reading, n_ids: int | None) -> str:
    """Which axis of three counts the stimuli: what the form or the caller says, else what the number of ids leaves."""
    said = block.axes or ("nld" if table.form == "arrays" and block.name == PLATONIC else reading.axes)
    if said is not None:
        return said
    first, second, third = block.shape
    stimuli = {"nld": first, "lnd": second}
    possible = [a for a, n in stimuli.items() if n > 1]  # one stimulus is no reading
    if n_ids is not None:
        possible = [a for a in possible if stimuli[a] == n_ids] or possible
    if len(possible) == 1:
        return possible[0]
    raise RepalignError(
        f"{table.what}: {block.told} can be read in two ways",
        expected="(n, d); or three dimensions of which it is said which one counts the stimuli",
        got=f"{first} stimuli of {second} layers, or {second} stimuli of {first} layers",
        remedy="say --axes nld for (n, layers, d) or --axes lnd for (layers, n, d) (in Python a mapping from layer name to "
        "(n, d) arrays, in a study `axes: nld`), or give as many ids as there are stimuli; pool tokens to one vector first"
        + ("; or say --rdm or --kernel of a stack (m, n, n)" if second == third else ""),
    )


def _rows(table: Table, layers: Mapping[str, Given], ids: Sequence[str] | None) -> int:
    counts = sorted({len(x) for x in layers.values()})
    if len(counts) != 1:
        raise RepalignError(
            f"{table.what}: layers of different row counts",
            expected="one n for all layers of a model",
            got=", ".join(f"{name}: {len(x)}" for name, x in list(layers.items())[:8]),
            remedy="leave out what is no layer, or name the one that is (--vector NAME, vector=)",
        )
    if ids is not None and len(ids) != counts[0]:
        raise RepalignError(
            f"{table.what}: ids do not fit the rows",
            expected=f"{counts[0]} distinct ids",
            got=f"{len(ids)} ids, {len(set(ids))} distinct",
        )
    return counts[0]


def _check_memory(table: Table, layers: Sequence[Block]) -> None:
    """Refuse a file whose numbers do not fit in memory: a small archive may unpack to any size."""
    if table.disk_bytes is None:
        return
    named = [b for b in table.blocks if len(b.shape) == 1 and b.kind in ("text", "integer", "time")]
    needed = sum(b.nbytes or 4 * math.prod(max(s, 1) for s in b.shape) for b in {*layers, *named})
    there = available_bytes()
    if needed > there:
        raise RepalignError(
            f"{table.what}: its arrays do not fit in memory",
            expected=f"at most {there / 1e9:.3g} GB, which are free",
            got=f"{needed / 1e9:.3g} GB by its header, {table.disk_bytes / 1e9:.3g} GB on disk",
            remedy="store fewer layers or stimuli in one file",
        )


def available_bytes() -> int:
    """Memory that is free on this machine, as far as it says so."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
