"""Tables of columns as blocks: .parquet files, frames of pandas, and whatever else gives its columns to Arrow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.features._table import UNNAMED_INDEX, Block, Kind, Table
from repalign.layers import as_tensor

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64", "string": "text", "large_string": "text"}
_UNNAMED = re.compile(r"__index_level_(\d+)__")  # how pandas writes an index without a name


def read_parquet(path: Path, headers: bool = False) -> Table:
    """A .parquet file; `headers` takes the widths of lists from the first row alone."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    schema, n = file.schema_arrow, file.metadata.num_rows

    def column(name: str) -> pa.ChunkedArray:
        return file.read(columns=[name]).column(name)

    def first(name: str) -> pa.ChunkedArray:
        import pyarrow as pa

        rows = next(file.iter_batches(batch_size=1, columns=[name]))
        return pa.chunked_array([rows.column(0)])

    index, ranges = _pandas_index(schema.metadata, n)
    blocks = [
        _block(f.name, f.type, n, lambda name=f.name: column(name), (lambda name=f.name: first(name)) if headers else None, index)
        for f in schema
    ]
    return Table(str(path), "columns", (*blocks, *ranges))


def from_frame(frame: pd.DataFrame, what: str) -> Table:
    """A frame of pandas; its index is a block of its own."""
    import pandas as pd

    n = len(frame)
    names = [str(c) for c in frame.columns]
    blocks = []
    for i, name in enumerate(names):
        series = frame.iloc[:, i]
        if isinstance(series.dtype, pd.SparseDtype):
            raise RepalignError(
                f"{what}: column {name} is sparse", expected="dense columns", got=str(series.dtype),
                remedy="frame.sparse.to_dense()",
            )  # fmt: skip
        blocks.append(_of_series(series, name, n))
    for level in range(frame.index.nlevels):
        values = frame.index.get_level_values(level)
        name = values.name
        if isinstance(values, pd.RangeIndex) and frame.index.nlevels == 1:
            blocks.append(_range(values.start, values.step, n, name))
            continue
        shown = _index_name(level) if name is None else str(name)
        blocks.append(_of_series(values.to_series(index=range(n)), shown, n, {shown: name is not None}))
    return Table(what, "columns", tuple(blocks))


def from_arrow(table: Any, what: str) -> Table:
    """Anything that gives its columns to Arrow, such as a frame of polars."""
    import pyarrow as pa

    table = table if isinstance(table, pa.Table) else pa.table(table)
    index, ranges = _pandas_index(table.schema.metadata, table.num_rows)
    blocks = [
        _block(f.name, f.type, table.num_rows, lambda name=f.name: table.column(name), None, index) for f in table.schema
    ]
    return Table(what, "columns", (*blocks, *ranges))


def _pandas_index(metadata: Mapping[bytes, bytes] | None, n: int) -> tuple[dict[str, bool], list[Block]]:
    """The columns that pandas wrote an index into, with whether it had a name, and the index that is no column."""
    said = json.loads((metadata or {}).get(b"pandas", b"{}"))
    index: dict[str, bool] = {}
    ranges = []
    for entry in said.get("index_columns", ()):
        if isinstance(entry, str):
            index[entry] = not _UNNAMED.fullmatch(entry)
        elif entry.get("kind") == "range" and n:
            ranges.append(_range(entry["start"], entry["step"], n, entry.get("name")))
    return index, ranges


def _index_name(level: int) -> str:
    """What a level of an index without a name is called."""
    return f"{UNNAMED_INDEX}.{level}" if level else UNNAMED_INDEX


def _range(start: int, step: int, n: int, name: Any) -> Block:
    def values() -> list[int]:
        return list(range(start, start + step * n, step))

    return Block(
        UNNAMED_INDEX if name is None else str(name), "integer", (n,), "int64", lambda: as_tensor(np.array(values())), values,
        place="index", says_rows=name is not None, counts=name is None and (start, step) == (0, 1),
    )  # fmt: skip


def _of_series(series: pd.Series, name: str, n: int, index: Mapping[str, bool] | None = None) -> Block:
    import pyarrow as pa

    if series.dtype.kind == "c":
        return Block(name, "complex", (n,), str(series.dtype), series.to_numpy, lambda: [str(v) for v in series], "column")
    try:
        array = pa.chunked_array([_arrow(series)])
    except (pa.ArrowException, RepalignError, TypeError, ValueError, OverflowError):  # values of several kinds in one column
        place = "column" if index is None else "index"
        return Block(name, "other", (n,), "mixed objects", lambda: None, series.tolist, place, says_rows=index is not None)
    return _block(name, array.type, n, lambda: array, None, index or {})


def _arrow(series: pd.Series) -> pa.Array:
    import pyarrow as pa

    if isinstance(series.dtype, np.dtype) and not series.dtype.isnative:
        series = series.astype(series.dtype.newbyteorder("="))
    if series.dtype == object and any(hasattr(v, "__array__") for v in series):
        found = pa.array([_cell(v) for v in series], from_pandas=True)
    else:
        found = pa.array(series, from_pandas=True)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def _cell(value: Any) -> Any:
    """A vector in a cell in the machine's byte order; of more dimensions lists of lists, which Arrow takes."""
    if not hasattr(value, "__array__"):
        return value
    array = as_tensor(value).cpu()
    return array.numpy() if array.ndim == 1 and array.dtype != torch.bfloat16 else array.tolist()


def _block(
    name: str,
    type_: pa.DataType,
    n: int,
    get: Callable[[], pa.ChunkedArray],
    first: Callable[[], pa.ChunkedArray] | None,
    index: Mapping[str, bool],
) -> Block:
    import pyarrow as pa

    if isinstance(type_, pa.FixedShapeTensorType):
        return Block(
            name, _kind(type_.value_type), (n, *type_.shape), _NAMES.get(str(type_.value_type), str(type_.value_type)),
            lambda: _numbers(_storage(get()), n, name).reshape(n, *type_.shape), lambda: get().to_pylist(), "column",
        )  # fmt: skip
    if isinstance(type_, pa.BaseExtensionType) and not pa.types.is_fixed_size_binary(type_.storage_type):
        return _block(name, type_.storage_type, n, lambda: _storage(get()), first and (lambda: _storage(first())), index)
    if pa.types.is_dictionary(type_):
        decoded = type_.value_type
        return _block(name, decoded, n, lambda: get().cast(decoded), first and (lambda: first().cast(decoded)), index)
    level = _UNNAMED.fullmatch(name)
    is_index = name in index or level is not None
    kind, shape = _kind(type_), (n,)
    inner = type_
    while _is_list(inner):
        inner = inner.value_type
    if _is_list(type_):
        kind = _kind(inner)
        shape = _list_shape(type_, n, first or get)
    named = index.get(name, level is None)
    says = is_index and len(shape) == 1 and (named or kind in ("text", "time"))
    return Block(
        _index_name(int(level[1])) if level else name, kind, shape, _NAMES.get(str(inner), str(inner)),
        lambda: _numbers(get(), n, name), lambda: get().to_pylist(), "index" if is_index else "column", says_rows=says,
    )  # fmt: skip


def _kind(type_: pa.DataType) -> Kind:
    import pyarrow.types as t

    tests: list[tuple[Kind, Sequence[Callable[[Any], bool]]]] = [
        ("float", (t.is_floating,)),
        ("integer", (t.is_integer,)),
        ("boolean", (t.is_boolean,)),
        ("text", (t.is_string, t.is_large_string, t.is_string_view, lambda type_: "uuid" in str(type_))),
        ("closed", (t.is_binary, t.is_large_binary, t.is_fixed_size_binary)),
        ("time", (t.is_timestamp, t.is_date)),
    ]
    for kind, any_of in tests:
        if any(test(type_) for test in any_of):
            return kind
    return "other"


def _is_list(type_: pa.DataType) -> bool:
    import pyarrow.types as t

    return t.is_list(type_) or t.is_large_list(type_) or t.is_fixed_size_list(type_)


def _list_shape(type_: pa.DataType, n: int, get: Callable[[], pa.ChunkedArray]) -> tuple[int, ...]:
    """(n, d, ...), with -1 where the lengths of rows differ; a missing list has no length."""
    import pyarrow.compute as pc

    shape, column = [n], None
    while _is_list(type_):
        if type_.list_size if hasattr(type_, "list_size") else 0:
            shape.append(type_.list_size)
        else:
            column = get() if column is None else column
            lengths = pc.call_function("list_value_length", [column]).drop_null().unique().to_pylist()
            shape.append(lengths[0] if len(lengths) == 1 else -1)
        type_ = type_.value_type
        if _is_list(type_):
            column = pc.call_function("list_flatten", [get() if column is None else column])
    return tuple(shape)


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    return pa.chunked_array([c.storage for c in column.chunks], type=column.type.storage_type)


def _numbers(column: pa.ChunkedArray, n: int, name: str) -> Tensor:
    """A column of numbers (n,) or of lists of one length (n, d, ...); nulls become NaN, which no measure takes."""
    import pyarrow as pa
    import pyarrow.compute as pc

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
                f"column {name}: lists of different lengths",
                expected="a list of d numbers in every row",
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
