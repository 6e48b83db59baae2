"""Files form by form: what texts, Arrow, HDF5, MATLAB and zarr hold in the wild, and what is refused of it."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pytest
import scipy.io
import scipy.sparse as sp
import torch

import repalign
import test_features as made
import tiny_models as tiny
from repalign import cli
from repalign.errors import RepalignError
from repalign.features import Reading, feature_files, file_widths, read_features, read_file, rule
from repalign.features.files import FORMS, UNREAD
from repalign.sources import ModelEntry, extract
from test_features import IDS, N, X, cellstr, only

h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
CUBE = np.random.default_rng(1).standard_normal((N, 4, 3))


def refused(path: Path, message: str, **said) -> None:
    """The file is refused: the message names it, and is this one."""
    with pytest.raises(RepalignError, match=message) as caught:
        read_file(path, Reading(**said))
    assert path.name in str(caught.value)


def h5(path: Path, **arrays) -> Path:
    with h5py.File(path, "w") as file:
        for name, x in arrays.items():
            file[name.replace("__", "/")] = x
    return path


# --- all of them ---------------------------------------------------------------------------------

WRITERS = {
    ".npy": made.npy_txt, ".npz": made.npz, ".safetensors": made.safetensors, ".pt": made.pt, ".pth": made.pth_tensor,
    ".parquet": made.fixed_lists, ".feather": made.arrow_file, ".arrow": made.arrow_stream, ".jsonl": made.jsonl,
    ".ndjson": made.jsonl, ".csv": made.csv(made.frame_columns, index=False),
    ".tsv": made.csv(made.frame_columns, ".tsv", index=False, sep="\t"), ".h5": made.hdf5, ".hdf5": made.hdf5,
    ".mat": made.mat_5, ".zarr": made.zarr(2, ".zarr"), ".zarr.zip": made.zarr(3, ".zarr.zip"),
    ".vec": made.vec, ".w2v": made.vec, ".glove": made.glove, ".txt": made.glove,
}  # fmt: skip


def write(suffix: str, folder: Path, x: np.ndarray = X, ids: list[str] = IDS, name: str = "a") -> Path:
    path = WRITERS[suffix](folder, name, x, ids, {})
    return path if path.name.endswith(suffix) else path.rename(path.with_suffix(suffix))


@pytest.mark.parametrize("suffix", FORMS)
def test_every_form_gives_what_the_array_gives(suffix, tmp_path):
    found, widths = read_file(write(suffix, tmp_path)), file_widths(write(suffix, tmp_path))
    expected = read_file(made.npy_txt(tmp_path, "b", X, IDS, {}))
    assert found.ids == expected.ids == tuple(IDS) and np.array_equal(only(found), only(expected))
    assert widths == dict.fromkeys(found.layers, X.shape[1])


@pytest.mark.parametrize("suffix", FORMS)
def test_what_is_cut_short_is_refused(suffix, tmp_path):
    """Empty, or its first half: refused by name. A text without a count of rows may end anywhere."""
    path = write(suffix, tmp_path)
    if path.is_dir():
        shutil.rmtree(path)
        path.mkdir()
        return refused(path, "cannot be read")
    data = path.read_bytes()
    path.with_name(path.name + ".ids.txt").unlink(missing_ok=True)
    path.write_bytes(b"")
    refused(path, "cannot be read|no rows|no vectors of words")
    path.write_bytes(data[: len(data) // 2 - 3])
    if suffix in (".csv", ".tsv", ".glove", ".txt"):
        path.write_bytes(data[: data.rindex(b" " if suffix in (".glove", ".txt") else b"," if suffix == ".csv" else b"\t")])
    return refused(path, ".")


@pytest.mark.parametrize("suffix", [*UNREAD, ".xyz", ""])
def test_what_is_not_read_is_told_how_to_convert(suffix, tmp_path):
    path = tmp_path / f"x{suffix.upper()}"
    path.write_bytes(b"x")
    remedy = re.escape(UNREAD.get(suffix, "write it as one of these, for instance np.save"))
    refused(path, rf"not a file of features that can be read\n  expected: \.npy, (.|\n)*\n  do: {remedy}")


def test_a_pickle_is_refused_with_the_reason():
    assert all("runs code" in UNREAD[suffix] for suffix in (".pkl", ".pickle", ".joblib"))


# --- tables of text ------------------------------------------------------------------------------


def text(path: Path, held: str | bytes) -> Path:
    path.write_bytes(held if isinstance(held, bytes) else held.encode())
    return path


def test_decimals_are_read_to_the_last_bit(tmp_path):
    x = np.random.default_rng(0).standard_normal((200, 4)) * 10.0 ** np.arange(-200, 200, 100)
    pd.DataFrame(x).to_csv(tmp_path / "a.csv", index=False)
    assert np.array_equal(only(read_file(tmp_path / "a.csv")), x)
    text(tmp_path / "b.csv", "f0,f1\n0.1000000000000000055511151231257827,2.\n+1e-320,.5\n")
    assert only(read_file(tmp_path / "b.csv")).tolist() == [[0.1, 2.0], [1e-320, 0.5]]


def test_a_csv_as_windows_writes_it(tmp_path):
    found = read_file(text(tmp_path / "a.csv", b'\xef\xbb\xbfid,f0,f1\r\n"a, b",0.5,1e-3\r\n"say ""c""",-.5,nan\r\n\r\n'))
    assert found.ids == ("a, b", 'say "c"') and only(found)[:, 0].tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    ("first", "ids", "could_be"),
    [
        (pd.RangeIndex(3), None, []), ([5, 3, 4], None, ["index"]), (["a", "b", "c"], ("a", "b", "c"), []),
        (["007", "008", "010"], ("007", "008", "010"), []),
    ],
)  # fmt: skip
def test_a_first_column_without_a_name_is_an_index(first, ids, could_be, tmp_path):
    frame = pd.DataFrame(X[:3], index=first)
    frame.to_csv(tmp_path / "a.csv")
    for source in (frame, tmp_path / "a.csv"):
        found = read_features(source)
        assert found.ids == ids and [b.name for b in found.candidates] == could_be and np.array_equal(only(found), X[:3])


def test_an_index_that_was_named_by_pandas_is_left_out(tmp_path):
    found = read_file(text(tmp_path / "a.csv", "Unnamed: 0,f0,f1\n0,0.5,1.5\n1,0.25,2.5\n"))
    assert only(found).shape == (2, 2) and "left out: Unnamed: 0 (int64)" in found.how


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["001", "002"], ("001", "002")), (["1", "2"], ("1", "2")), (["1.0", "2.0"], ("1", "2")),
        (["1.1", "1.10"], ("1.1", "1.10")),
        (["1e5", "2e7"], ("1e5", "2e7")), (["0x1A", "0x1B"], ("0x1A", "0x1B")), (["9" * 25, "8" * 25], ("9" * 25, "8" * 25)),
        (["nan", "NA"], ("nan", "NA")), (["1.5", "None"], ("1.5", "None")),
    ],
)  # fmt: skip
def test_ids_of_a_csv_are_what_is_written(written, expected, tmp_path):
    found = read_file(text(tmp_path / "a.csv", "id,f0,f1\n" + "".join(f"{i},0.5,{k}.5\n" for k, i in enumerate(written))))
    assert found.ids == expected


WHICH = r"which columns are the features\?"
CSVS = {
    "an empty cell": ("id,f0,f1\na,0.5,1.5\nb,,2.5\n", r"a\.csv: row 1 has nothing in column 'f0'"),
    "blanks in a cell": ("id,f0,f1\na,0.5,1.5\nb, ,2.5\n", r"row 1 has nothing in column 'f0'"),
    "no id": ("id,f0,f1\na,0.5,1.5\n,1.5,2.5\n", r"row 1 has no id in id"),
    "a word among numbers": ("f0,f1\n.5,1.5\nNA,.5\n1.5,2\n", rf"{WHICH}(.|\n)*f1 \(float\) and f0 \(numbers, but 'NA' in row 1\)"),
    "a word among named numbers": ("age,height\n0.5,1.5\n1.5,?\n2.5,2\n", rf"{WHICH}(.|\n)*height \(numbers, but '\?' in row 1\)"),
    "a whole column": ("id,f0,f1\na,0.5,3\nb,1.5,4\n", rf"{WHICH}(.|\n)*f0 \(float\) and f1 \(int64\)"),
    "truth values": ("a,b\n0.5,True\n1.5,False\n", rf"{WHICH}(.|\n)*b \(bool\)"),
    "whole numbers alone": ("id,a\n1,3\n2,4\n", r"no layer\n(.|\n)*--features a "),
    "no rows": ("id,f0,f1\n", r"no rows\n  expected: a header, and a row for every stimulus\n  got: 3 columns"),
    "nothing": ("", r"no rows"),
    "a name twice": ("id,f0,f0\na,0.5,1.5\n", r"the column 'f0' is there twice"),
    "a row too short": ("id,f0,f1\na,0.5,1.5\nb,0.5\n", r"row 1 \(line 3\) does not fit the header"),
    "an open quotation": ('f0,f1,text\n0.5,1.5,"open\n0.5,2.5,b\n', r"line 3 is not valid CSV"),
    "no header": ("0.5,1.5\n0.25,0.75\n", r"numbers where the header is expected\n(.|\n)*np\.loadtxt"),
    "semicolons": ("id;f0\na;0,5\n", r"one column, 'id;f0'\n(.|\n)*sep=';', decimal=','"),
    "lists as numpy shows them": ('id,e\na,"[0.5 1.\n 2.5]"\nb,"[1.5 2. 3.]"\n', r"e \(brackets, but no lists as JSON writes"),
    "Latin-1": ("id,f0\n\xe9,0.5\n".encode("latin-1"), r"line 2 is not in UTF-8"),
}


@pytest.mark.parametrize("what", CSVS)
def test_a_csv_is_refused(what, tmp_path):
    held, message = CSVS[what]
    refused(text(tmp_path / "a.csv", held), message)


def test_lists_in_cells_are_vectors(tmp_path):
    """As the table of embeddings that pandas writes of OpenAI's answers."""
    frame = pd.DataFrame({"embedding": X.tolist(), "n_tokens": range(N)}, index=IDS)
    frame.to_csv(tmp_path / "a.csv")
    found = read_file(tmp_path / "a.csv")
    assert found.ids == tuple(IDS) and np.array_equal(only(found), X) and "left out: n_tokens (int64)" in found.how


def test_nan_and_infinity_are_numbers_which_measures_refuse(tmp_path):
    text(tmp_path / "a.csv", "f0,f1\n" + "0.5,1.5\n" * 9 + "nan,-Infinity\n")
    assert np.isnan(only(read_file(tmp_path / "a.csv"))[9, 0])
    with pytest.raises(RepalignError, match=r"NaN or infinite values\n(.|\n)*the first is row 9"):
        repalign.pair(tmp_path / "a.csv", X[:10], "CKA()")


def test_jsonl_of_embeddings(tmp_path):
    lines = [{"id": 7, "embedding": [0.5, 1]}, {"id": 8, "embedding": [1, 2], "text": "more"}]
    found = read_file(text(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n"))
    assert found.ids == ("7", "8") and only(found).tolist() == [[0.5, 1], [1, 2]] and "left out: text (text)" in found.how
    answers = [
        {"id": f"batch_{i}", "custom_id": i, "response": {"body": {"data": [{"index": 0, "embedding": v}]}}, "error": None}
        for i, v in zip(IDS, X.tolist(), strict=True)
    ]
    path = text(tmp_path / "b.jsonl", "".join(json.dumps(line) + "\n" for line in answers))
    assert read_file(path).ids == tuple(IDS) and np.array_equal(only(read_file(path)), X)
    answers[3] |= {"response": None, "error": {"code": "limit"}}
    refused(text(path, "".join(json.dumps(line) + "\n" for line in answers)), r"row 3: no answer with one embedding(.|\n)*'limit'")


JSONLS = {
    "a broken line": ('{"id": 1, "embedding": [0.5]}\n{"id": 2, "embed\n', r"a\.jsonl: row 1 \(line 2\) is not valid JSON"),
    "no record": ("[0.5, 1.5]\n", r"row 0 \(line 1\) is no JSON object"),
    "other lengths": ('{"id": 1, "e": [0.5, 1]}\n{"id": 2, "e": [2]}\n', r"e \(float64 \(2, \?\)\) holds no vectors of one length"),
    "nothing": ("\n", "no rows"),
    "an id twice": ('{"id": 1, "e": [0.5]}\n{"id": "1", "e": [0.5]}\n', r"rows 0 and 1 have the same id '1'"),
}


@pytest.mark.parametrize("what", JSONLS)
def test_a_jsonl_is_refused(what, tmp_path):
    held, message = JSONLS[what]
    refused(text(tmp_path / "a.jsonl", held), message)


def test_many_rows_are_read_in_batches(tmp_path):
    x = np.random.default_rng(0).standard_normal((2500, 2))
    x[:1100] = np.round(x[:1100] * 10)  # lists of whole numbers in the first of them
    lines = [{"id": i, "v": [int(a) if a.is_integer() else a for a in v]} for i, v in enumerate(x.tolist())]
    found = read_file(text(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert np.array_equal(only(found), x) and found.ids == tuple(map(str, range(2500)))
    pd.DataFrame(x).assign(id=range(2500)).to_csv(tmp_path / "a.csv", index=False)
    assert np.array_equal(only(read_file(tmp_path / "a.csv")), x)
    assert file_widths(tmp_path / "a.csv") == {"features": 2}


# --- vectors of words ----------------------------------------------------------------------------


def test_words_may_hold_blanks(tmp_path):
    """As in GloVe of 840 billion tokens: numbers are counted from the end."""
    held = "the 0.5 -1e-3\n. . . 1.5 2\nat name@domain.com 3 4.5\n1 5 6\n0.5 7 8\n"
    found = read_file(text(tmp_path / "a.txt", held))
    ids = ("the", ". . .", "at name@domain.com", "1", "0.5")
    assert found.ids == ids and only(found)[1].tolist() == [1.5, 2]
    found = read_file(text(tmp_path / "b.txt", "the 0.5 1\n\x85 1 2\n\xa0 3 4\n"))  # of Twitter; the second is no line end
    assert found.ids == ("the", r"\x85", r"\xa0")
    assert read_file(text(tmp_path / "a.vec", f"5 2\n{held}".replace("\n", " \r\n"))).ids == ids


WORDS = {
    "a word twice": ("a 0.5 1\nb 1 2\na 3 4\n", r"rows 0 and 2 have the same id 'a' in words"),
    "too few numbers": ("a 0.5 1\nb 1\nc 1 2\n", r"line 2 is no word with 2 numbers"),
    "too many numbers": ("a 0.5 1\nb 1 2 3\nc 1 2\n", r"line 2 is no word with 2 numbers"),
    "no number": ("a 0.5 1\nb 1 x\nc 1 2\n", r"line 2 is no word with 2 numbers(.|\n)*got: 'b 1 x'"),
    "fewer than it says": ("3 2\na 0.5 1\nb 1 2\n", r"not all its words\n  expected: 3 words, as the first line says\n  got: 2"),
    "an array without words": ("0.5 1.5\n1.5 2.5\n", r"every line begins with a number\n(.|\n)*np\.loadtxt"),
    "prose": ("some notes\nof mine\n", r"line 1 is no word with 1 numbers"),
    "Latin-1": ("a 0.5 1\n\xe9 1 2\n".encode("latin-1"), r"line 2 is no word"),
}


@pytest.mark.parametrize("what", WORDS)
def test_words_are_refused(what, tmp_path):
    held, message = WORDS[what]
    refused(text(tmp_path / "a.txt", held), message)


# --- Arrow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["lz4", "uncompressed"])
def test_a_feather_is_read_by_columns(compression, tmp_path):
    table = pa.table({"id": pa.array(IDS).dictionary_encode(), "v": X.tolist(), "label": [0] * N})
    feather.write_feather(table, tmp_path / "a.feather", compression=compression)
    found = read_file(tmp_path / "a.feather")
    assert found.ids == tuple(IDS) and np.array_equal(only(found), X) and "left out: label (int64)" in found.how
    pd.DataFrame(X, columns=list("abc"), index=IDS).to_feather(tmp_path / "b.feather")  # the index as pandas writes it
    assert read_file(tmp_path / "b.feather").ids == tuple(IDS)


def test_an_arrow_that_is_not_read(tmp_path):
    refused(text(tmp_path / "a.feather", b"FEA1" + bytes(20)), r"version 1 of Feather(.|\n)*write_feather")
    held = pa.Table.from_arrays([pa.array([0.5]), pa.array([1.5])], names=["a", "a"])
    with pa.ipc.new_file(tmp_path / "a.arrow", held.schema) as file:
        file.write_table(held)
    refused(tmp_path / "a.arrow", "two things in it are called 'a'")


# --- HDF5 ----------------------------------------------------------------------------------------


def test_every_dataset_is_an_array(tmp_path):
    path = h5(
        tmp_path / "a.h5", layer_10=X, layer_2=X.astype(">f8"), deep__er__half=X.astype(np.float16), mean=1.5, losses=X[:, 0],
        labels=np.arange(N) % 3, ids=IDS, seen=np.ones(N, bool), nothing=h5py.Empty("f8"), far=h5py.ExternalLink("b.h5", "x"),
    )
    found = read_file(path)
    assert list(found.layers) == ["deep/er/half", "layer_2", "layer_10"] and found.ids == tuple(IDS)
    assert [str(x.dtype) for x in found.layers.values()] == ["torch.float16", "torch.float64", "torch.float64"]
    assert all(np.array_equal(x.numpy(), X.astype(x.numpy().dtype)) for x in found.layers.values())
    left = "far (what is in another file ()), labels (int64 (12,)), losses (float64 (12,)), mean (float64 ())"
    assert found.how.endswith(f"left out: {left}, nothing (empty ()), seen (bool (12,))")
    assert file_widths(path) == dict.fromkeys(found.layers, 3)


def test_hdf5_by_the_rule(tmp_path):
    refused(h5(tmp_path / "a.h5", a=X, b=X + 1j), r"b \(complex128 \(12, 3\)\) is no layer")
    refused(h5(tmp_path / "b.h5", a=CUBE, ids=IDS), r"a \(float64 \(12, 4, 3\)\) is no layer\b(.|\n)*--axes")
    stack = read_file(tmp_path / "b.h5", Reading(vector="a"))
    assert list(stack.layers) == [f"layer.{i}" for i in range(4)] and np.array_equal(stack.layers["layer.1"].numpy(), CUBE[:, 1])
    assert file_widths(tmp_path / "b.h5", Reading(vector="a", axes="nld")) == dict.fromkeys(stack.layers, 3)
    refused(h5(tmp_path / "c.h5", a=np.arange(36).reshape(N, 3)), r"no layer(.|\n)*--vector a ")
    refused(h5(tmp_path / "d.h5", a=X, b=X[:5]), "layers of different row counts")
    ragged = np.array([X[0], X[0, :2]], dtype=object)
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file.create_dataset("a", data=ragged, dtype=h5py.vlen_dtype(np.float64))
    refused(tmp_path / "e.h5", r"a \(rows of unequal length \(2, \?\)\) is no layer")


def test_what_was_never_written_is_no_layer(tmp_path):
    """A library reads zeros where a run was stopped before it wrote."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (N, 3), "f8", chunks=(5, 3))[:5] = X[:5]
        file.create_dataset("y", (N, 3), "f8")
    refused(tmp_path / "a.h5", "x: 2 of its 3 parts were never written", vector="x")
    refused(tmp_path / "a.h5", "y: 1 of its 1 parts were never written", vector="y")
    path = write(".zarr", tmp_path)
    (path / "layer" / "1.0").unlink()
    refused(path, "layer: 1 of its 3 parts were never written")


def test_what_is_compressed_is_held_to_memory_by_its_header(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.zeros((4000, 100)), compression="gzip")
    zarr.create_array(tmp_path / "a.zarr", data=np.ones((4000, 100)))
    monkeypatch.setattr(rule, "available_bytes", lambda: 3_000_000)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *a: 1 / 0)  # nothing is unpacked
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda *a: 1 / 0)
    for name in ("a.h5", "a.zarr"):
        refused(tmp_path / name, r"do not fit in memory\n  expected: at most 0\.003 GB(.|\n)*got: 0\.0032 GB by its header")


def test_frames_of_pandas_in_hdf5_are_told_apart(tmp_path):
    with h5py.File(h5(tmp_path / "a.h5", df__block0_values=X), "a") as file:
        file["df"].attrs["pandas_type"] = "frame"
    refused(tmp_path / "a.h5", r"a frame that pandas wrote, df\n(.|\n)*pandas\.read_hdf\(path, 'df'\)")


# --- MATLAB --------------------------------------------------------------------------------------


def test_both_versions_of_matlab_give_the_same(tmp_path):
    (tmp_path / "5").mkdir()
    whole = np.arange(36.0).reshape(N, 3)  # packed as bytes in version 5
    more = {"label": [float(i % 3) for i in range(N)], "caption": [f"a {i % 2}" for i in range(N)], "seen": [True] * N}
    for x in (X, whole, X.astype(np.float32)):
        old, new = (read_file(f(to, "a", x, IDS, more)) for f, to in ((made.mat_5, tmp_path / "5"), (made.mat_7_3, tmp_path)))
        assert old.ids == new.ids == tuple(IDS) and old.how.partition(": ")[2] == new.how.partition(": ")[2]
        assert "left out: caption (text (12,)), label (float64 (12,)), seen (bool (12,))" in new.how
        for found in (old, new):
            (layer,) = found.layers.values()
            assert layer.dtype == torch.from_numpy(x).dtype and np.array_equal(layer.numpy(), x)
    shutil.copy(tmp_path / "a.mat", tmp_path / "a.h5")  # a copy under another name is turned round too
    assert np.array_equal(only(read_file(tmp_path / "a.h5")), X.astype(np.float32))


def test_ids_of_matlab(tmp_path):
    ids = ["a", "bb", *(f"c{i:02d}" for i in range(10))]
    for held in (cellstr(ids), cellstr(ids).T, np.array(ids)):  # a cell either way; a char array, whose rows end in blanks
        scipy.io.savemat(tmp_path / "a.mat", {"x": X, "ids": held})
        assert read_file(tmp_path / "a.mat").ids == tuple(ids)
    scipy.io.savemat(tmp_path / "a.mat", {"x": X, "id": np.arange(1.0, N + 1)[None]})
    assert read_file(tmp_path / "a.mat").ids == tuple(map(str, range(1, N + 1)))
    with h5py.File(made.mat_7_3(tmp_path, "b", X, None, {}), "a") as file:  # a char array of 7.3
        rows = np.array([list(map(ord, i.ljust(3))) for i in ids], np.uint16)
        file.create_dataset("ids", data=rows.T).attrs["MATLAB_class"] = np.bytes_("char")
    assert read_file(tmp_path / "b.mat").ids == tuple(ids)
    with h5py.File(made.mat_7_3(tmp_path, "c", X, None, {}), "a") as file:  # ["a"; "b"], of which only MATLAB knows
        file.create_dataset("ids", data=np.zeros((6, 1), np.uint32)).attrs["MATLAB_class"] = np.bytes_("string")
    refused(tmp_path / "c.mat", r"c\.mat, ids: an object, which MATLAB alone reads; of texts store cellstr\(x\)")


def test_doubles_that_matlab_packs_as_bytes_are_features(tmp_path):
    """MATLAB stores whole doubles as bytes, which SciPy's writer does not."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    x = np.arange(6.0).reshape(3, 2)
    flags, dims = element(6, struct.pack("<II", 6, 0)), element(5, struct.pack("<ii", 3, 2))  # class double
    data = element(14, flags + dims + element(1, b"x") + element(2, x.T.astype(np.uint8).tobytes()))
    text(tmp_path / "a.mat", b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + data)
    assert scipy.io.loadmat(tmp_path / "a.mat")["x"].dtype == np.uint8
    assert np.array_equal(only(read_file(tmp_path / "a.mat")), x)


def test_what_matlab_holds_beside_arrays(tmp_path):
    held = {"x": X, "s": {"a": X}, "empty": np.zeros((0, 3)), "note": "hello", "codes": np.ones((N, 3), np.int8)}
    scipy.io.savemat(tmp_path / "a.mat", held)
    left = read_file(tmp_path / "a.mat").how.partition("left out: ")[2]
    assert re.fullmatch(r"codes \(int8 .*\), empty \(empty .*\), note \(text .*\), s \(a struct, .*'-struct'.*\)", left)
    with h5py.File(made.mat_7_3(tmp_path, "b", X, IDS, {}), "a") as file:
        file["s/a"] = X.T
        file["s"].attrs["MATLAB_class"] = np.bytes_("struct")
        file["e"] = np.array([0, 3], np.uint64)
        file["e"].attrs.update({"MATLAB_class": np.bytes_("double"), "MATLAB_empty": np.uint8(1)})
    assert re.search(r"left out: e \(empty .*\), s \(a struct, .*'-struct'.*\)$", read_file(tmp_path / "b.mat").how)
    for x, message in (
        (sp.csr_matrix(X), r"x: a sparse matrix \(12, 3\)\n(.|\n)*x = full\(x\)"), (X + 1j, "x: complex numbers"),
        (CUBE, r"x \(float64 \(12, 4, 3\)\) is no layer"), ({"a": X}, r"no layer\n(.|\n)*'-struct'"),
    ):  # fmt: skip
        scipy.io.savemat(tmp_path / "c.mat", {"x": x})
        refused(tmp_path / "c.mat", message)
    layers = np.empty((1, 2), object)
    layers[0] = [X, X[:, :2]]
    scipy.io.savemat(tmp_path / "d.mat", {"layers": layers})
    found = read_file(tmp_path / "d.mat", Reading(vector="layers"))
    assert [x.shape[1] for x in found.layers.values()] == [3, 2]
    for vectors in (np.arange(24.0).reshape(N, 2), X, X + 1j):  # a cell of vectors
        scipy.io.savemat(tmp_path / "d.mat", {"v": cellstr(list(map(list, vectors))), "ids": cellstr(IDS)})
        if not np.iscomplexobj(vectors):
            assert np.array_equal(only(read_file(tmp_path / "d.mat")), vectors)
    refused(tmp_path / "d.mat", "cannot be read(.|\n)*imaginary part")
    h5(tmp_path / "e.mat", x=X)
    refused(tmp_path / "e.mat", r"x is not of MATLAB\n(.|\n)*call the file x\.h5")


# --- zarr ----------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("repalign-was-here"),))


@pytest.mark.parametrize("codecs", [["pickle"], ["vlen-utf8", "pickle"], ["pickle", "vlen-utf8"]])
def test_no_codec_that_runs_code_is_run(codecs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)  # as it was by default
    path = write(".zarr", tmp_path)
    about = json.loads((path / "ids" / ".zarray").read_text())
    about |= {"filters": [{"id": codec} for codec in codecs], "compressor": None, "chunks": [N]}
    (path / "ids" / ".zarray").write_text(json.dumps(about))
    for chunk in (path / "ids").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps([Evil(), "|O", [N]]))
    refused(path, "pickles are never loaded|pickled objects, which are never loaded")
    assert not Path("repalign-was-here").exists()


def test_one_array_without_a_group(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=X, chunks=(2, 3), shards=(6, 3))
    assert np.array_equal(read_file(tmp_path / "a.zarr").layers["features"].numpy(), X)
    zarr.create_array(tmp_path / "b.zarr", data=CUBE)
    refused(tmp_path / "b.zarr", "can be read in two ways")
    assert len(read_file(tmp_path / "b.zarr", Reading(axes="nld")).layers) == 4
    refused(text(tmp_path / "c.zarr", "x"), "there is no such file\n  got: a file, where this form is a folder")
    with zipfile.ZipFile(tmp_path / "d.zarr.zip", "w") as archive:
        archive.writestr("readme", "x")
    refused(tmp_path / "d.zarr.zip", "cannot be read")
    refused(text(tmp_path / "e.zarr.zip", "x"), "cannot be read")


# --- who reads them ------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A folder with a model in a file of each of five forms, the rows of each in another order; and files that are none."""
    folder = tmp_path / "models"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for name, suffix in zip("abcde", (".csv", ".h5", ".zarr", ".mat", ".txt"), strict=True):
        order = rng.permutation(N)
        write(suffix, folder, X[order], [IDS[i] for i in order], name)
    text(folder / "captions.csv", "id,caption\na,costs 0.5 more\n")
    text(folder / "groups.tsv", "id\tgroup\na\t1\n")
    text(folder / "texts.jsonl", '{"id": 1, "caption": "a 1.5 b"}\n')
    text(folder / "README.txt", "Vectors of version 0.5\n")
    text(folder / "x.npy.ids.txt", "a\nb\n")
    return folder


def test_a_folder_of_mixed_forms_is_compared(mixed, tmp_path):
    assert [p.name for p in feature_files(mixed)] == ["a.csv", "b.h5", "c.zarr", "d.mat", "e.txt"]
    found = repalign.compare(mixed, measures="cka")
    assert found.rows("max")["statistic"].tolist() == pytest.approx([1] * 10) and "joined on 12 ids" in found.run["how"][0]
    layered = repalign.compare({"all": mixed, "one": mixed / "c.zarr"}, measures="cka")
    assert layered.layer_map().index.tolist() == list("abcde") and layered.layer_map().columns.tolist() == ["layer"]


def test_the_command_line_takes_a_zarr(mixed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(mixed)
    monkeypatch.setattr("repalign.report.write_report", lambda *a, **k: None)
    for arguments in (["pair", "a.csv", "c.zarr"], ["compare", "c.zarr", "b.h5", "--results", str(tmp_path / "out")]):
        monkeypatch.setattr("sys.argv", ["repalign", *arguments, "-m", "CKA()"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        assert not end.value.code and "joined on 12 ids" in told.out + told.err


def test_a_folder_is_a_model_of_a_study(tmp_path):
    """What it was read from is told by the bytes of all its files."""
    data = tiny.dataset(tmp_path / "data")
    ids = list(tiny.IDS)
    x = np.random.default_rng(0).standard_normal((len(ids), 3))
    path = write(".zarr", tmp_path, x, ids)
    entry = ModelEntry(f"array:{path}", modality="image", store_dtype="float64")
    first = extract(data, [entry], tmp_path / "s")[0]
    assert torch.equal(first.load("layer"), torch.tensor(x)) and first.name == "a"
    again = extract(data, [entry], tmp_path / "s")[0]
    assert again.record.revision == first.record.revision
    shutil.rmtree(path)
    write(".zarr", tmp_path, x + 1, ids)
    other = extract(data, [entry], tmp_path / "s")[0]
    assert other.record.revision != first.record.revision and torch.equal(other.load("layer"), torch.tensor(x + 1))
    shutil.rmtree(path)
    with pytest.raises(RepalignError, match=r"there is no file .*a\.zarr"):
        extract(data, [entry], tmp_path / "s")
