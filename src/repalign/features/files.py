"""Files of features: the table of all forms, what is read of each, and what to do with the forms that are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from repalign.errors import RepalignError, first_line
from repalign.features.arrays import ids_block, listed_ids, of_object, read_npy, read_npz, read_safetensors, read_torch
from repalign.features.columns import Pieces, parquet_pieces, read_ipc, read_parquet
from repalign.features.containers import read_hdf5, read_matlab, read_zarr
from repalign.features.rule import Found, Reading, Table, apply, axes_of, parts_of, rows_of
from repalign.features.texts import read_delimited, read_jsonl, read_words, shows_numbers
from repalign.files import path_bytes
from repalign.layers import FEATURES, KINDS
from repalign.tables import id_lines

# What reads a form: the blocks of a file, nothing of them loaded; the second argument asks for what its header says alone.
FORMS: dict[str, Callable[[Path, bool], Table]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".parquet": read_parquet,
    ".feather": read_ipc,
    ".arrow": read_ipc,
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".mat": read_matlab,
    ".zarr": read_zarr,
    ".zarr.zip": read_zarr,
    ".vec": read_words,
    ".w2v": read_words,
    ".glove": read_words,
    ".txt": read_words,
    ".pt": read_torch,
    ".pth": read_torch,
}
SUFFIXES = tuple(FORMS)
FOLDERS = (".zarr",)  # a folder that is one file of features
TEXTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt")  # which may as well hold captions, groups or notes

_PICKLE = "a pickle runs code when it is loaded, so none ever is; of an array in one that you trust np.save('x.npy', {})"
_FRAME = "pandas.{}.to_parquet('x.parquet')"
UNREAD = {
    ".pkl": _PICKLE.format("pickle.load(open(path, 'rb'))"),
    ".pickle": _PICKLE.format("pickle.load(open(path, 'rb'))"),
    ".joblib": _PICKLE.format("joblib.load(path)"),
    ".ckpt": "torch.save(torch.load(path, weights_only=True), 'x.pt')",
    ".bin": "of word2vec: gensim.models.KeyedVectors.load_word2vec_format(path, binary=True).save_word2vec_format('x.vec'); "
    "of plain numbers: np.save('x.npy', np.fromfile(path, 'float32').reshape(n, d))",
    ".xlsx": _FRAME.format("read_excel(path)"),
    ".xls": _FRAME.format("read_excel(path)"),
    ".json": "of a list of records: pandas.DataFrame(json.load(open(path))).to_parquet('x.parquet')",
    ".db": _FRAME.format("read_sql('SELECT * FROM name', sqlite3.connect(path))"),
    ".sqlite": _FRAME.format("read_sql('SELECT * FROM name', sqlite3.connect(path))"),
    ".rds": "in R: arrow::write_parquet(as.data.frame(readRDS(path)), 'x.parquet')",
    ".rdata": "in R: load(path); arrow::write_parquet(as.data.frame(name), 'x.parquet'), with the name of what it holds",
    ".rda": "in R: load(path); arrow::write_parquet(as.data.frame(name), 'x.parquet'), with the name of what it holds",
    ".h5ad": "anndata.read_h5ad(path).to_df().to_parquet('x.parquet')",
    ".tfrecord": "parse its examples by tensorflow and write their vectors: np.save('x.npy', np.stack(vectors))",
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz"), "unpack it and give what is in it"),
}


def read_features(source: Any, reading: Reading | None = None, *, name: str = "x", **said: Any) -> Found:
    """Layers and ids of a file or an object of any form; `said` are the fields of `Reading`.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"f0": [0.1, 0.2], "f1": [1.0, 3.0], "label": [1, 1]}, index=["a", "b"])
    >>> found = read_features(frame)
    >>> found.ids, found.how
    (('a', 'b'), 'x: features: 2 columns f0, f1; ids: the index (text); left out: label (int64)')

    Raises RepalignError, which names the source and the block, for whatever the rule does not settle.
    """
    reading = Reading(**said) if reading is None else reading
    if isinstance(source, Found):
        if reading != Reading():
            raise RepalignError(f"{source.what}: it has been read", remedy="say what it is to `read_features`, at once")
        return source
    if isinstance(source, (str, Path)):
        return read_file(source, reading)
    try:
        return apply(of_object(source, name), reading)
    except RepalignError:
        raise
    except Exception as error:  # of numpy, torch, pandas and Arrow, each with kinds of its own
        raise RepalignError(
            f"{name}: it cannot be read as features",
            expected="arrays of numpy or torch, frames, mappings or lists of these",
            got=f"{type(source).__name__}: {first_line(error)}",
            remedy="convert it to a float array (n, d)",
        ) from error


def read_file(path: str | Path, reading: Reading = Reading()) -> Found:  # noqa: B008  (frozen)
    """Layers and ids of a file in any of the forms; no pickle is ever loaded."""
    with _broken(Path(path)):
        return apply(_table_of_file(Path(path)), reading)


def file_pieces(source: Any, layer: str | None = None, id: str | None = None) -> Pieces | None:
    """A .parquet file whose vectors and ids are read piece by piece (`Pieces`); None for all else, which is read as a whole."""
    path = Path(source) if isinstance(source, (str, Path)) else Path()
    if suffix_of(path) != ".parquet" or not path.is_file() or any(beside.is_file() for beside in sidecars(path)):
        return None
    with _broken(path):
        return parquet_pieces(path, layer, id)


def file_rows(path: str | Path, reading: Reading = Reading()) -> Found:  # noqa: B008
    """What `read_file` would give without a layer: how many rows there are, and their ids. A header is enough, if there is one."""
    path = Path(path)
    with _broken(path):
        return rows_of(_table_of_file(path, headers=suffix_of(path) not in TEXTS), reading)


@contextmanager
def _broken(path: Path) -> Iterator[None]:
    """One error for whatever a library raises of a broken file, and the file in every error."""
    try:
        yield
    except RepalignError as error:
        if path.name in str(error):
            raise
        raise RepalignError(f"{path}: {error}") from error
    except Exception as error:  # each library raises its own kinds for a broken file
        torch_too = ", nor are numpy arrays in a file of torch: make them tensors" if path.suffix.lower() in (".pt", ".pth") else ""
        raise RepalignError(
            f"{path}: the file cannot be read", expected=f"a whole {suffix_of(path)} file of numbers",
            got=re.sub(r"\x1b\[\d*m", "", first_line(error)),
            remedy=f"write it again; object arrays and pickles are never loaded{torch_too}",
        ) from error


def file_widths(path: str | Path, reading: Reading = Reading()) -> dict[str, int]:  # noqa: B008
    """The width of every layer that `read_file` would give, from the file's header; of a form without one from its first rows."""
    table, out = _table_of_file(Path(path), headers=True), {}
    parts = parts_of(table, reading)
    for name, part in parts.items():
        shape = part[0].shape
        if reading.kind in KINDS:
            called = str(reading.kind) if name == FEATURES else name
            names = [f"{called}.{i}" for i in range(shape[0])] if len(shape) == 3 else [called]
            if len(part) > 1 and len(shape) == 3:  # which names its matrices
                names = [str(v) if len(parts) == 1 else f"{called}.{v}" for v in part[1].values()]
            out |= dict.fromkeys(names, shape[-1])
        elif part[0].is_scalars:
            out[name] = len(part)
        elif len(shape) == 3:
            count = shape[1] if axes_of(table, part[0], reading, None) == "nld" else shape[0]
            out |= {f"layer.{i}": shape[2] for i in range(count)}
        else:
            out[name] = shape[1]
    return out


def suffix_of(path: Path) -> str:
    """The ending of a file's name that says its form: the longest that is known, else the last."""
    name = path.name.lower()
    return max((s for s in (*FORMS, *UNREAD) if name.endswith(s)), key=len, default=path.suffix.lower())


def is_features(path: Path) -> bool:
    """Whether there is a file by this path, or a folder in a form that is one."""
    return path.is_dir() if suffix_of(path) in FOLDERS else path.is_file()


def feature_files(folder: Path) -> list[Path]:
    """The files of a folder that may hold features, by name; a text only if its first lines show numbers."""
    there = sorted(p for p in folder.iterdir() if suffix_of(p) in FORMS and is_features(p) and not p.name.startswith("."))
    return [p for p in there if suffix_of(p) not in TEXTS or shows_numbers(p)]


def sidecars(path: Path) -> tuple[Path, Path]:
    """The files with the ids of a file that holds none: `FILE.ids.txt` and `FILE.ids.json`."""
    return path.with_name(path.name + ".ids.txt"), path.with_name(path.name + ".ids.json")


def _table_of_file(path: Path, headers: bool = False) -> Table:
    """The blocks of a file and of its sidecar; `headers` reads nothing that a header does not say."""
    suffix = suffix_of(path)
    if suffix not in FORMS:
        raise RepalignError(
            f"{path}: not a file of features that can be read", expected=", ".join(FORMS), got=suffix or "no ending",
            remedy=UNREAD.get(suffix, "write it as one of these, for instance np.save('x.npy', array) with an array (n, d)"),
        )
    if not is_features(path):
        got = None if not path.exists() else "a folder" if path.is_dir() else "a file, where this form is a folder"
        raise RepalignError(f"{path}: there is no such file", got=got, remedy="check the path")
    table = FORMS[suffix](path, headers)
    text, listing = sidecars(path)
    beside = []
    if text.is_file():
        beside = [ids_block(f"ids in {text.name}", id_lines(text.read_bytes().decode("utf-8-sig"), text.name))]
    elif listing.is_file():
        beside = [listed_ids(f"ids in {listing.name}", listing.read_text("utf-8-sig"))]
    return replace(table, blocks=(*table.blocks, *beside), disk_bytes=path_bytes(path))
