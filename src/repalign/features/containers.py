"""Files that hold arrays by name, in groups: HDF5, .mat of MATLAB in either of its formats, zarr.

A name is a path, "a/b". Neither format has an order: names are sorted with their numbers as numbers. What lies in another file is
left out, and a layer of which parts were never written is refused, since a library would read them as zeros.

MATLAB knows no one-dimensional array: one of size 1 x n or n x 1 is read as (n,), and cells of texts and the rows of a char array
as texts. Version 7.3 is HDF5 with all axes turned round, 5 is read by SciPy; both give the same.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from repalign.errors import RepalignError, require
from repalign.features.arrays import Array, Arrays, list_block, natural, numpy_block
from repalign.features.rule import Block, Table
from repalign.layers import FEATURES

CLOSED = ("closed", "objects, never loaded")
ELSEWHERE = "what is in another file"
HDF5 = b"\x89HDF\r\n\x1a\n"  # what an HDF5 file begins with; one of MATLAB after 512 bytes of its own


# --- HDF5 ----------------------------------------------------------------------------------------


def read_hdf5(path: Path, headers: bool = False) -> Table:  # noqa: ARG001  (all is in headers)
    """An .h5 or .hdf5: every dataset is an array."""
    require(str(path), "files", "h5py")
    import h5py

    found: dict[str, Any] = {}
    blocks = []
    with h5py.File(path) as file:
        file.visititems(found.__setitem__)
        file.visititems_links(lambda name, link: found.setdefault(name, link) and None)
        if any("MATLAB_class" in getattr(item, "attrs", ()) for item in found.values()):
            return _matlab_7_3(path, file)
        for name in sorted(found, key=natural):
            item = found[name]
            if "pandas_type" in getattr(item, "attrs", ()):
                raise RepalignError(
                    f"{path}: a frame that pandas wrote, {name}", expected="arrays by name", got="the parts of a frame",
                    remedy=f"pandas.read_hdf(path, {name!r}).to_parquet('x.parquet')",
                )
            if isinstance(item, h5py.ExternalLink):
                blocks.append(Block(name, "closed", (), ELSEWHERE, lambda: None, list))
            elif isinstance(item, h5py.Dataset):
                blocks.append(_dataset(path, name, item))
    return Arrays(str(path), tuple(blocks))


def _dataset(path: Path, name: str, item: Any) -> Block:
    import h5py

    is_text = h5py.check_string_dtype(item.dtype) is not None
    inner = None if is_text else h5py.check_vlen_dtype(item.dtype)
    if item.shape is None or item.is_virtual or item.external:
        return Block(name, "closed", (), "empty" if item.shape is None else ELSEWHERE, lambda: None, list)

    def get() -> np.ndarray:
        with h5py.File(path) as file:
            held: Any = file[name]
            return (held.asstr("utf-8") if is_text else held)[()]

    def parts() -> tuple[int, int]:
        with h5py.File(path) as file:
            held: Any = file[name]
            if held.chunks is None:
                return min(held.id.get_storage_size(), 1), 1
            return held.id.get_num_chunks(), math.prod(-(-s // c) for s, c in zip(held.shape, held.chunks, strict=True))

    if inner is not None and inner.kind == "f":
        return Block(name, "float", (*item.shape, -1), "rows of unequal length", lambda: None, list)
    return _stored(path, name, item.shape, item.dtype, get, parts, is_text)


def _stored(
    path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, get: Callable[[], np.ndarray],
    parts: Callable[[], tuple[int, int]], is_text: bool,
) -> Block:  # fmt: skip
    """An array that is stored in parts, of which `parts` says how many are there, and how many there should be."""
    where = str(path) if name == FEATURES else f"{path}, {name}"
    block = numpy_block(name, shape, dtype, get, where, ("text", "text") if is_text else CLOSED)

    def load() -> Any:
        there, whole = parts()
        if there < whole and 0 not in shape:
            raise RepalignError(
                f"{where}: {whole - there} of its {whole} parts were never written, and would be read as zeros",
                expected="every part of the array", got=f"{there} parts",
                remedy="write it again, to its end; zarr leaves out parts of zeros unless they are asked for: "
                "zarr.config.set({'array.write_empty_chunks': True})",
            )
        return block.load()

    return replace(block, load=load)


# --- zarr ----------------------------------------------------------------------------------------


def read_zarr(path: Path, headers: bool = False) -> Table:  # noqa: ARG001  (all is in headers)
    """A .zarr folder or .zarr.zip, of format 2 or 3: one array, or groups of arrays."""
    require(str(path), "files", "zarr")
    import zarr

    with _opened(path) as root:
        if isinstance(root, zarr.Array):
            return Array(str(path), (_array(path, FEATURES, root),))
        found = {name: item for name, item in root.members(max_depth=None) if isinstance(item, zarr.Array)}
        return Arrays(str(path), tuple(_array(path, name, found[name]) for name in sorted(found, key=natural)))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import zarr
    import zarr.storage

    if path.is_dir():
        yield zarr.open(path, mode="r")
        return
    store = zarr.storage.ZipStore(path, mode="r")
    root = zarr.open(store, mode="r")
    with closing(store):
        yield root


def _array(path: Path, name: str, item: Any) -> Block:
    if "pickle" in {getattr(codec, "codec_id", None) for codec in (*item.filters, *item.compressors)}:
        problem = f"{path}, {name}: pickled objects, which are never loaded"
        raise RepalignError(problem, expected="numbers or texts", got="the codec pickle", remedy="write them as numbers or texts")

    def at(root: Any) -> Any:
        return root if isinstance(root, type(item)) else root[name]

    def get() -> np.ndarray:
        with _opened(path) as root:
            return np.asarray(at(root)[...])

    def parts() -> tuple[int, int]:
        with _opened(path) as root:
            return at(root).nchunks_initialized, at(root).nchunks

    return _stored(path, name, item.shape, item.dtype, get, parts, item.dtype.kind == "T")


# --- MATLAB --------------------------------------------------------------------------------------

_NUMBERS = {"double": np.dtype(np.float64), "single": np.dtype(np.float32), "logical": np.dtype(bool)}
_NUMBERS |= {f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
_STRUCT = "a struct, whose fields save(..., '-struct', name) stores as arrays"
_OBJECT = "an object, which MATLAB alone reads; of texts store cellstr(x)"


def read_matlab(path: Path, headers: bool = False) -> Table:  # noqa: ARG001  (all but cells is in headers)
    """A .mat of version 7.3, which is HDF5, or of one before."""
    with path.open("rb") as file:
        start = file.read(520)
    if HDF5 in (start[:8], start[512:]):
        require(str(path), "files", "h5py")
        import h5py

        with h5py.File(path) as held:
            return _matlab_7_3(path, held)
    from scipy.io import loadmat, whosmat

    def get(name: str, kind: str) -> np.ndarray:
        # Numbers come as they were packed, such as uint8 for 1.0; those in cells as what they are, unless they are complex.
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            return loadmat(str(path), variable_names=[name], mat_dtype=kind == "cell")[name]

    held = sorted(whosmat(str(path)), key=lambda one: natural(one[0]))
    return Arrays(str(path), tuple(_variable(path, n, kind, shape, lambda n=n, kind=kind: get(n, kind)) for n, shape, kind in held))


def _matlab_7_3(path: Path, file: Any) -> Table:
    import h5py

    def get(name: str) -> np.ndarray:
        with h5py.File(path) as file:
            return _value(file, file[name])

    blocks = []
    for name in sorted((n for n in file if not n.startswith("#")), key=natural):
        item = file[name]
        kind = "sparse" if "MATLAB_sparse" in item.attrs else _class(item)
        if not kind:
            raise RepalignError(
                f"{path}: {name} is not of MATLAB", expected="variables as save(..., '-v7.3') writes them", got="plain HDF5",
                remedy="call the file x.h5: so it is read as it stands, and no axes are turned round",
            )
        shape = (1, 1)
        if isinstance(item, h5py.Dataset):
            shape = tuple(map(int, item[()] if "MATLAB_empty" in item.attrs else item.shape[::-1]))
        blocks.append(_variable(path, name, kind, shape, lambda n=name: get(n)))
    return Arrays(str(path), tuple(blocks))


def _class(item: Any) -> str:
    """The class of a variable of version 7.3; nothing where MATLAB did not write it."""
    said = item.attrs.get("MATLAB_class", "")
    return said.decode() if isinstance(said, bytes) else str(said)


def _value(file: Any, item: Any) -> np.ndarray:
    """A value of version 7.3 as SciPy gives those before: of a char array its rows as texts, of a cell its values."""
    kind = _class(item)
    if "MATLAB_empty" in item.attrs or kind == "struct":
        return np.empty(0, str if kind == "char" else float)
    held = item[()].T
    if kind == "char":
        return np.array([row.astype("<u2").tobytes().decode("utf-16-le") for row in held])
    if kind == "cell":
        out = np.empty(held.size, object)
        out[:] = [_value(file, file[ref]) for ref in held.ravel()]
        return out
    return held["real"] + 1j * held["imag"] if held.dtype.names == ("real", "imag") else held


def _variable(path: Path, name: str, kind: str, shape: tuple[int, ...], get: Callable[[], np.ndarray]) -> Block:
    """A variable of MATLAB, of its class and shape there; `get` gives it as SciPy does."""
    where, size = f"{path}, {name}", _size(shape)

    def refuse() -> Any:
        raise RepalignError(f"{where}: {told}", expected="a full array of numbers, a char array or a cell of texts", remedy=remedy)

    told, remedy = _STRUCT if kind == "struct" else _OBJECT, "convert it in MATLAB, and save it again"
    if 0 in shape:
        return Block(name, "closed", (), "empty", lambda: None, list)
    if kind in _NUMBERS:
        def numbers() -> np.ndarray:
            x = get()
            return (x if np.iscomplexobj(x) else x.astype(_NUMBERS[kind], copy=False)).reshape(size)

        return numpy_block(name, size, _NUMBERS[kind], numbers, where, CLOSED)
    if kind == "char":
        rows = () if shape[0] == 1 else (shape[0],)
        return Block(name, "text", rows, "text", lambda: None, lambda: [text.rstrip(" ") for text in get().tolist()])
    if kind == "cell" and len(size) < 2:
        return list_block(name, [_held(x) for x in get().ravel()], str(path))
    if kind == "sparse":
        told, remedy = f"a sparse matrix {shape}", f"in MATLAB {name} = full({name}), where it fits in memory; and save it again"
        return Block(name, "float", shape, "sparse", refuse, refuse)
    return Block(name, "closed", (1,), told, refuse, refuse)


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the second axis that MATLAB gives a vector, and without both of one number."""
    return tuple(s for s in shape if s != 1) if len(shape) == 2 else shape


def _held(x: np.ndarray) -> Any:
    """What is in a place of a cell: a text, a number, a vector or an array."""
    if x.dtype.kind == "U":
        return "".join(x.tolist()) if x.size < 2 else x
    return x.reshape(_size(x.shape))
