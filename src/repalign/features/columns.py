"""Tables of columns: .parquet, .feather and .arrow, frames of pandas, and whatever else gives its columns to Arrow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as t
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.features.ids import as_texts
from repalign.features.rule import UNNAMED_INDEX, Block, Kind, Reading, Table, listed, names_of, option, parts_of
from repalign.layers import FEATURES, KINDS, as_tensor, said

_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64", "string": "text", "large_string": "text"}
_UNNAMED = re.compile(r"__index_level_(\d+)__")  # how pandas writes an index without a name


# --- the rule for columns ------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns(Table):
    """Columns, and the index of a frame."""

    form: ClassVar[str] = "columns"

    def squares(self, kind: str) -> dict[str, list[Block]]:
        raise RepalignError(
            f"{self.what}: a table of columns where {said(kind)} is meant", expected="an array (n, n) or (m, n, n)",
            got=listed([b.name for b in self.blocks]),
            remedy="give the numbers as an array, with the ids of its rows beside it: .npz with the arrays "
            f"{kind} and ids; in Python repalign.{KINDS[kind].__name__}(frame.to_numpy())",
        )

    def choose(self, reading: Reading) -> dict[str, list[Block]]:
        """Columns of float lists, one layer each; else all float columns as one layer, if they plainly belong together."""
        columns = [b for b in self.blocks if b.place == "column" and not (isinstance(reading.id, str) and b.name == reading.id)]
        columns = [b for b in columns if not (b.kind == "float" and b.id_tier is not None)]
        vectors = [b for b in columns if b.is_vectors]
        deep = [b for b in columns if b not in vectors and b.kind in ("float", "complex") and len(b.shape) >= 2]
        scalars = [b for b in columns if b.kind == "float" and b.is_scalars]
        numbered = families([b.name for b in scalars])
        if deep and not vectors:
            raise RepalignError(
                f"{self.what}: {deep[0].label} holds no vectors of one length",
                expected="a list of d numbers in every row", got=names_of(deep),
                remedy="pool tokens or positions to one vector per row, or name what the features are (--vector, --features)",
            )
        if vectors and (numbered or deep):
            other = deep[0].label if deep else f"the columns {listed(numbered[0])}"
            raise RepalignError(
                f"{self.what}: which are the features?",
                expected="columns of vectors, or one numbered set of float columns",
                got=f"{names_of(vectors)} and {other}",
                remedy=f"say {option('vector', vectors[0].name)}, or --features with a pattern of columns",
            )
        if vectors:
            return {b.name: [b] for b in vectors}
        if not scalars:
            raise self.no_features(columns, "features", 1, pattern_of)
        if doubtful := _doubtful(columns, scalars, numbered):
            sure = [b.name for b in scalars if b not in doubtful]
            pattern = pattern_of(numbered[0] if numbered else [b.name for b in scalars])
            raise RepalignError(
                f"{self.what}: which columns are the features?",
                expected="float columns that belong together, and no other number that could be one of them",
                got=f"{listed(sure)} (float) and {names_of(doubtful)}",
                remedy=f"say them by a pattern, for instance {option('features', pattern)}",
            )
        return {FEATURES: scalars}


def _doubtful(columns: Sequence[Block], scalars: Sequence[Block], numbered: Sequence[Sequence[str]]) -> list[Block]:
    """Float columns that may not be features, or other columns that may be; `numbered` are names that differ in a number."""
    counted = {name for names in numbered for name in names}
    apart = [b for b in scalars if b.name not in counted]
    if len(numbered) > 1 or (numbered and apart):
        return apart or [b for b in scalars if b.name in numbered[1]]
    rest = [b for b in columns if b.kind != "float" and len(b.shape) == 1]
    if numbered:
        return [b for b in rest if stem(b.name) in {stem(name) for name in counted}]
    # Columns with a name each: a whole number may well be one of them.
    return [b for b in rest if b.kind in ("integer", "boolean", "other", "complex") and b.id_tier is None]


def stem(name: str) -> str:
    """A name without its last number: columns that count one thing share it."""
    return re.sub(r"\d+(?=\D*$)", "#", name)


def families(names: Sequence[str]) -> list[list[str]]:
    """Names that differ in their last number only, two or more."""
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(stem(name), []).append(name)
    return [alike for alike in by_stem.values() if len(alike) > 1]


def pattern_of(names: Sequence[str]) -> str:
    """A pattern of these columns, as an example."""
    if families(names):
        return stem(names[0]).replace("#", "*")
    return ",".join(names[:6]) + (",..." if len(names) > 6 else "")


# --- readers -------------------------------------------------------------------------------------


def read_parquet(path: Path, headers: bool = False) -> Table:
    """A .parquet file; `headers` takes the widths of lists from the first row alone."""
    file = pq.ParquetFile(path)

    def column(name: str) -> pa.ChunkedArray:
        return file.read(columns=[name]).column(name)

    def first(name: str) -> pa.ChunkedArray:
        rows = next(file.iter_batches(batch_size=1, columns=[name]))
        return pa.chunked_array([rows.column(0)])

    return _of_schema(str(path), file.schema_arrow, file.metadata.num_rows, column, first if headers else column)


@dataclass(frozen=True, eq=False)
class Pieces:
    """A column of vectors (n, width) of a .parquet file, and the column that names its rows: read piece by piece, never held."""

    path: Path
    vector: str
    id: str
    n: int
    width: int

    @property
    def name(self) -> str:
        return str(self.path)

    def pieces(self, size: int) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Ids and vectors (size, width), in the order of the file. Raises RepalignError for a row without an id or a vector."""
        start = 0
        # Buffered, else a row group, often a million vectors, is in memory at once; not pre-buffered, else all that was read stays.
        with pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=size, columns=[self.id, self.vector]):
                part = pa.Table.from_batches([batch])
                ids, n = part.column(self.id), len(batch)
                kind = _NAMES.get(str(ids.type), str(ids.type))
                yield as_texts(ids.to_pylist(), self.name, self.id, kind, start), _numbers(part.column(self.vector), n, self.vector)
                start += n

    def blocks(self, size: int) -> Iterator[Tensor]:
        """The vectors alone."""
        for _, vectors in self.pieces(size):
            yield vectors


def parquet_pieces(path: Path, layer: str | None = None, id: str | None = None) -> Pieces | None:
    """A .parquet file as pieces; None where it has several layers and none is named, or more or less than one column of ids.

    layer : the column of vectors, also of whole numbers, or "last"; by default the only one. id : the column that names the rows.
    """
    table = read_parquet(path, headers=True)
    try:
        parts = parts_of(table, Reading(id=id, vector=None if layer == "last" else layer))
    except RepalignError:
        return None  # who reads it as a whole says what is wrong
    wanted = list(parts)[-1] if layer == "last" or (layer is None and len(parts) == 1) else layer
    named = [b for b in table.blocks if b.name == id] or [b for b in table.blocks if b.id_tier == 0]
    named = named or [b for b in table.blocks if b.id_tier == 1 and [b] not in parts.values()]
    vectors = parts[wanted][0] if wanted in parts else None
    if vectors is None or len(vectors.shape) != 2 or -1 in vectors.shape or len(named) != 1 or named[0].place != "column":
        return None
    return Pieces(path, vectors.name, named[0].name, *vectors.shape)


def read_ipc(path: Path, headers: bool = False) -> Table:
    """A .feather or .arrow, as a file or a stream of Arrow's format; only the columns that are asked for are unpacked."""
    with path.open("rb") as file:
        start = file.read(6)
    if start[:4] == b"FEA1":
        raise RepalignError(
            f"{path}: version 1 of Feather, which is no longer written", expected="version 2",
            remedy="pyarrow.feather.write_feather(pyarrow.feather.read_table(path), path)",
        )

    def opened(*fields: int) -> Any:
        options = pa.ipc.IpcReadOptions(included_fields=list(fields))
        source = pa.memory_map(str(path))
        return (pa.ipc.open_file if start == b"ARROW1" else pa.ipc.open_stream)(source, options=options)

    def batches(*fields: int) -> Iterator[pa.RecordBatch]:
        reader = opened(*fields)
        return map(reader.get_batch, range(reader.num_record_batches)) if start == b"ARROW1" else iter(reader)

    def column(name: str) -> pa.ChunkedArray:
        return opened(schema.get_field_index(name)).read_all().column(name)

    def first(name: str) -> pa.ChunkedArray:
        rows = next((b for b in batches(schema.get_field_index(name)) if b.num_rows), None)
        return column(name) if rows is None else pa.chunked_array([rows.column(0).slice(0, 1)])

    schema = opened().schema
    n = sum(batch.num_rows for batch in batches(0))
    return _of_schema(str(path), schema, n, column, first if headers else column)


def from_arrow(table: Any, what: str) -> Table:
    """Anything that gives its columns to Arrow, such as a frame of polars."""
    table = table if isinstance(table, pa.Table) else pa.table(table)
    return _of_schema(what, table.schema, table.num_rows, table.column, table.column)


def _of_schema(what: str, schema: pa.Schema, n: int, column: Callable[[str], Any], first: Callable[[str], Any]) -> Table:
    """The columns of a schema, and the index that pandas wrote: into a column, or as a range that is no column."""
    index: dict[str, bool] = {}  # columns that are an index, with whether it had a name
    ranges = []
    for entry in json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", ()):
        if isinstance(entry, str):
            index[entry] = not _UNNAMED.fullmatch(entry)
        elif entry.get("kind") == "range" and n:
            ranges.append(range_block(entry["start"], entry["step"], n, entry.get("name")))
    blocks = [column_block(f.name, f.type, n, lambda f=f: column(f.name), lambda f=f: first(f.name), index) for f in schema]
    return Columns(what, (*blocks, *ranges))


def from_frame(frame: pd.DataFrame, what: str) -> Table:
    """A frame of pandas; its index is a block of its own."""
    n = len(frame)
    blocks = []
    for i, name in enumerate(map(str, frame.columns)):
        series = frame.iloc[:, i]
        if isinstance(series.dtype, pd.SparseDtype):
            got, remedy = str(series.dtype), "frame.sparse.to_dense()"
            raise RepalignError(f"{what}: column {name} is sparse", expected="dense columns", got=got, remedy=remedy)
        blocks.append(_of_series(series, name, n))
    for level in range(frame.index.nlevels):
        values = frame.index.get_level_values(level)
        name = values.name
        if isinstance(values, pd.RangeIndex) and frame.index.nlevels == 1:
            blocks.append(range_block(values.start, values.step, n, name))
        else:
            called = _index_name(level) if name is None else str(name)
            blocks.append(_of_series(values.to_series(index=range(n)), called, n, {called: name is not None}))
    return Columns(what, tuple(blocks))


def _index_name(level: int) -> str:
    """The name of a level of an index that has none."""
    return f"{UNNAMED_INDEX}.{level}" if level else UNNAMED_INDEX


def range_block(start: int, step: int, n: int, name: Any) -> Block:
    def values() -> list[int]:
        return list(range(start, start + step * n, step))

    return Block(
        UNNAMED_INDEX if name is None else str(name), "integer", (n,), "int64", lambda: as_tensor(np.array(values())), values,
        "index", says_rows=name is not None, counts=name is None and (start, step) == (0, 1),
    )  # fmt: skip


def _of_series(series: pd.Series, name: str, n: int, index: Mapping[str, bool] | None = None) -> Block:
    """A column, or with `index` a level of the index."""
    if series.dtype.kind == "c":
        return Block(name, "complex", (n,), str(series.dtype), series.to_numpy, lambda: [str(v) for v in series], "column")
    try:
        if isinstance(series.dtype, np.dtype) and not series.dtype.isnative:
            series = series.astype(series.dtype.newbyteorder("="))
        vectors = series.dtype == object and any(hasattr(v, "__array__") for v in series)
        array = pa.array([_cell(v) for v in series] if vectors else series, from_pandas=True)
        column = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    except (pa.ArrowException, RepalignError, TypeError, ValueError, OverflowError):  # values of several kinds in one column
        place = "column" if index is None else "index"
        return Block(name, "other", (n,), "mixed objects", lambda: None, series.tolist, place, says_rows=index is not None)
    return column_block(name, column.type, n, lambda: column, lambda: column, index or {})


def _cell(value: Any) -> Any:
    """A vector in a cell in the machine's byte order; of more dimensions lists of lists, which Arrow takes."""
    if not hasattr(value, "__array__"):
        return value
    array = as_tensor(value).cpu()
    return array.numpy() if array.ndim == 1 and array.dtype != torch.bfloat16 else array.tolist()


def column_block(
    name: str, type_: pa.DataType, n: int, get: Callable[[], Any], first: Callable[[], Any], index: Mapping[str, bool]
) -> Block:
    """A column of Arrow; `first` gives as much of it as tells the lengths of lists."""
    def storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
        return pa.chunked_array([c.storage for c in column.chunks], type=column.type.storage_type)

    if isinstance(type_, pa.FixedShapeTensorType):
        return Block(
            name, _kind(type_.value_type), (n, *type_.shape), _NAMES.get(str(type_.value_type), str(type_.value_type)),
            lambda: _numbers(storage(get()), n, name).reshape(n, *type_.shape), lambda: get().to_pylist(), "column",
        )  # fmt: skip
    if isinstance(type_, pa.BaseExtensionType) and not pa.types.is_fixed_size_binary(type_.storage_type):
        return column_block(name, type_.storage_type, n, lambda: storage(get()), lambda: storage(first()), index)
    if pa.types.is_dictionary(type_):
        plain = type_.value_type
        return column_block(name, plain, n, lambda: get().cast(plain), lambda: first().cast(plain), index)
    level = _UNNAMED.fullmatch(name)
    inner, shape = _inner(type_, n, first)
    kind, named = _kind(inner), index.get(name, level is None)
    is_index = name in index or level is not None
    says = is_index and len(shape) == 1 and (named or kind in ("text", "time"))
    return Block(
        _index_name(int(level[1])) if level else name, kind, shape, _NAMES.get(str(inner), str(inner)),
        lambda: _numbers(get(), n, name), lambda: get().to_pylist(), "index" if is_index else "column", says_rows=says,
    )  # fmt: skip


def _kind(type_: pa.DataType) -> Kind:
    tests: dict[Kind, tuple[Callable[[Any], bool], ...]] = {
        "float": (t.is_floating,), "integer": (t.is_integer,), "boolean": (t.is_boolean,), "time": (t.is_timestamp, t.is_date),
        "text": (t.is_string, t.is_large_string, t.is_string_view, lambda type_: "uuid" in str(type_)),
        "closed": (t.is_binary, t.is_large_binary, t.is_fixed_size_binary),
    }  # fmt: skip
    return next((kind for kind, any_of in tests.items() if any(test(type_) for test in any_of)), "other")


def _is_list(type_: pa.DataType) -> bool:
    return t.is_list(type_) or t.is_large_list(type_) or t.is_fixed_size_list(type_)


def _inner(type_: pa.DataType, n: int, get: Callable[[], Any]) -> tuple[pa.DataType, tuple[int, ...]]:
    """The type within lists, and the shape: -1 if the lengths of rows differ; a missing list has no length."""
    shape, column = [n], None
    while _is_list(type_):
        if getattr(type_, "list_size", 0):
            shape.append(type_.list_size)
        else:
            column = get() if column is None else column
            lengths = pc.call_function("list_value_length", [column]).drop_null().unique().to_pylist()
            shape.append(lengths[0] if len(lengths) == 1 else -1)
        type_ = type_.value_type
        if _is_list(type_):
            column = pc.call_function("list_flatten", [get() if column is None else column])
    return type_, tuple(shape)


def _numbers(column: pa.ChunkedArray, n: int, name: str) -> Tensor:
    """A column of numbers (n,) or of lists of one length (n, d, ...); nulls become NaN, which no measure takes."""
    array = column.combine_chunks()
    array = array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)
    if not _is_list(array.type):
        return as_tensor(array.to_numpy(zero_copy_only=False))
    there = ~np.asarray(array.is_null())
    flat = array.filter(array.is_valid()) if array.null_count else array
    shape: list[int] = [len(flat)]
    while _is_list(flat.type):
        lengths = pc.call_function("list_value_length", [flat]).unique().to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise RepalignError(
                f"column {name}: lists of different lengths", expected="a list of d numbers in every row",
                got=f"lengths {', '.join(map(str, lengths[:8]))}",
                remedy="pool tokens or positions to one vector per row",
            )
        shape.append(lengths[0])
        flat = flat.flatten()
    found = flat.to_numpy(zero_copy_only=False).reshape(shape)
    if not there.all():
        whole = np.full((n, *shape[1:]), np.nan, dtype=found.dtype if found.dtype.kind == "f" else np.float64)
        whole[there] = found
        found = whole
    return as_tensor(found)
