"""Every form of features under one rule: forms x contents, then what is refused, form by form."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from safetensors.torch import save_file

from repalign.errors import RepalignError
from repalign.features import join, read_features

N, D = 12, 3
X = np.random.default_rng(0).standard_normal((N, D))
IDS = [f"s{i:02d}" for i in range(N)]
ORDER = np.random.default_rng(1).permutation(N)
COLUMNS = [f"f{i}" for i in range(D)]

# --- forms: each writes features (n, d), ids (or none), and other things of one value per row ---------------------


@dataclass(frozen=True)
class Form:
    """A way to hold features; `more` says whether it can hold anything beside them, `nulls` whether an id may be missing."""

    make: Callable[[Path, str, np.ndarray, Any, dict[str, Any]], Any]
    more: bool = True
    nulls: bool = True


def named_arrays(x, ids, more) -> dict[str, np.ndarray]:
    return {"layer": x, **more, **({} if ids is None else {"ids": np.array(ids)})}


def npy_txt(folder, name, x, ids, more):
    np.save(folder / f"{name}.npy", x)
    if ids is not None:
        (folder / f"{name}.npy.ids.txt").write_text("".join(f"{i}\n" for i in ids))
    return folder / f"{name}.npy"


def npy_json(folder, name, x, ids, more):
    np.save(folder / f"{name}.npy", x)
    if ids is not None:
        (folder / f"{name}.npy.ids.json").write_text(json.dumps(ids))
    return folder / f"{name}.npy"


def npz(folder, name, x, ids, more):
    np.savez(folder / f"{name}.npz", **named_arrays(x, ids, {k: np.array(v) for k, v in more.items()}))
    return folder / f"{name}.npz"


def pt(folder, name, x, ids, more):
    held = {"layer": torch.from_numpy(x.copy()), **more, **({} if ids is None else {"ids": list(ids)})}
    torch.save(held, folder / f"{name}.pt")
    return folder / f"{name}.pt"


def pth_tensor(folder, name, x, ids, more):
    torch.save(torch.from_numpy(x.copy()), folder / f"{name}.pth")
    if ids is not None:
        (folder / f"{name}.pth.ids.json").write_text(json.dumps(ids))
    return folder / f"{name}.pth"


def safetensors(folder, name, x, ids, more):
    save_file(
        {"layer": torch.from_numpy(x.copy())}, folder / f"{name}.safetensors",
        metadata=None if ids is None else {"ids": json.dumps(ids)},
    )  # fmt: skip
    return folder / f"{name}.safetensors"


def columns(x, ids, more) -> pd.DataFrame:
    frame = pd.DataFrame(x, columns=COLUMNS[: x.shape[1]]).assign(**more)
    return frame if ids is None else frame.assign(image_id=ids)


def frame_columns(folder, name, x, ids, more):
    return columns(x, ids, more)


def frame_index(folder, name, x, ids, more):
    return columns(x, None, more).set_index(pd.Index(range(len(x)) if ids is None else ids, name=ids and "stimulus"))


def frame_lists(folder, name, x, ids, more):
    frame = pd.DataFrame({"layer": list(x), **more})
    return frame if ids is None else frame.assign(ID=ids)


def written(make):
    def write(folder, name, x, ids, more):
        make(folder, name, x, ids, more).to_parquet(folder / f"{name}.parquet")
        return folder / f"{name}.parquet"

    return write


def fixed_lists(folder, name, x, ids, more):
    flat = pa.array(x.ravel())
    held = {"layer": pa.FixedSizeListArray.from_arrays(flat, x.shape[1]), **more, **({} if ids is None else {"id": ids})}
    pq.write_table(pa.table(held), folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def categories(folder, name, x, ids, more):
    frame = columns(x, None, more)
    return frame if ids is None else frame.assign(sample_id=pd.Categorical(ids))


def arrow(folder, name, x, ids, more):
    return pa.Table.from_pandas(columns(x, ids, more), preserve_index=False)


def numpy_mapping(folder, name, x, ids, more):
    return {"layer": x, **more, **({} if ids is None else {"ids": np.array(ids, dtype=object)})}


def torch_mapping(folder, name, x, ids, more):
    return {"layer": torch.from_numpy(x.copy()), **more, **({} if ids is None else {"image_ids": list(ids)})}


def mapping_of_frames(folder, name, x, ids, more):
    return {"layer": frame_index(folder, name, x, ids, {})}


def list_of_frames(folder, name, x, ids, more):
    return [frame_columns(folder, name, x, ids, {})]


def structured(folder, name, x, ids, more):
    fields = [(c, x.dtype) for c in COLUMNS] + ([] if ids is None else [("id", "O")])
    out = np.zeros(len(x), dtype=fields)
    for i, c in enumerate(COLUMNS):
        out[c] = x[:, i]
    if ids is not None:
        out["id"] = ids
    return out


def arrow_file(folder, name, x, ids, more):
    frame_columns(folder, name, x, ids, more).to_feather(folder / f"{name}.feather")
    return folder / f"{name}.feather"


def arrow_stream(folder, name, x, ids, more):
    table = pa.Table.from_pandas(frame_lists(folder, name, x, ids, more), preserve_index=False)
    with pa.ipc.new_stream(folder / f"{name}.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=5)
    return folder / f"{name}.arrow"


def csv(make, suffix=".csv", **how):
    def write(folder, name, x, ids, more):
        make(folder, name, x.astype(np.float64), ids, more).to_csv(folder / f"{name}{suffix}", **how)
        return folder / f"{name}{suffix}"

    return write


def jsonl(folder, name, x, ids, more):
    rows = [{"embedding": v.tolist(), **{k: np.asarray(w)[i].item() for k, w in more.items()}} for i, v in enumerate(x)]
    if ids is not None:
        rows = [{"id": id_, **row} for id_, row in zip(ids, rows, strict=True)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / f"{name}.jsonl"


def vec(folder, name, x, ids, more):
    ids = range(len(x)) if ids is None else ids
    lines = [f"{x.shape[0]} {x.shape[1]}", *(" ".join([str(i), *map(repr, v.tolist())]) + " " for i, v in zip(ids, x, strict=True))]
    (folder / f"{name}.vec").write_text("\n".join(lines) + "\n")
    return folder / f"{name}.vec"


def glove(folder, name, x, ids, more):
    path = vec(folder, name, x, ids, more).rename(folder / f"{name}.txt")
    path.write_text(path.read_text().partition("\n")[2].replace(" \n", "\n"))
    return path


def hdf5(folder, name, x, ids, more):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / f"{name}.h5", "w") as file:
        for key, v in named_arrays(x, ids, {k: np.array(v) for k, v in more.items()}).items():
            file[f"model/{key}" if key == "layer" else key] = v.tolist() if v.dtype.kind == "U" else v
    return folder / f"{name}.h5"


def zarr(format_, ending):
    def write(folder, name, x, ids, more):
        zarr = pytest.importorskip("zarr")
        root = zarr.open_group(folder / f"{name}.zarr", mode="w", zarr_format=format_)
        for key, v in named_arrays(x, ids, {k: np.array(v) for k, v in more.items()}).items():
            v = v.astype(np.dtypes.StringDType()) if v.dtype.kind == "U" else v
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of texts, which format 3 does not have yet
                root.create_array(key, data=v, chunks=(5, *v.shape[1:]))
        if ending == ".zarr":
            return folder / f"{name}.zarr"
        return Path(shutil.make_archive(str(folder / f"{name}.zarr"), "zip", folder / f"{name}.zarr"))

    return write


def cellstr(ids) -> np.ndarray:
    out = np.empty((len(ids), 1), object)
    out[:, 0] = ids
    return out


def mat_5(folder, name, x, ids, more):
    held = {"layer": x, **{k: cellstr(v) if isinstance(v[0], str) else np.array(v)[:, None] for k, v in more.items()}}
    if ids is not None:
        held["ids"] = cellstr(ids) if isinstance(ids[0], str) else np.array(ids, float)[:, None]
    scipy.io.savemat(folder / f"{name}.mat", held, do_compression=True)
    return folder / f"{name}.mat"


def mat_7_3(folder, name, x, ids, more):
    """As MATLAB writes it: HDF5 after 512 bytes of its own, axes turned round, cells as references."""
    h5py = pytest.importorskip("h5py")
    classes = {"f8": "double", "f4": "single", "b1": "logical", "i8": "int64"}

    def put(file, at, value):
        if isinstance(value, list):
            refs = [put(file, f"#refs#/{at}{i}", v).ref for i, v in enumerate(value)]
            item, kind = file.create_dataset(at, data=np.array([refs], h5py.ref_dtype), dtype=h5py.ref_dtype), "cell"
        elif isinstance(value, str):
            item, kind = file.create_dataset(at, data=np.array([ord(c) for c in value], np.uint16)[:, None]), "char"
            if not value:
                del file[at]
                item = file.create_dataset(at, data=np.zeros(2, np.uint64))
                item.attrs["MATLAB_empty"] = np.uint8(1)
        else:
            kind = classes[value.dtype.str[1:]]
            item = file.create_dataset(at, data=value.astype(np.uint8 if kind == "logical" else value.dtype).T, chunks=True)
        item.attrs["MATLAB_class"] = np.bytes_(kind)
        return item

    with h5py.File(folder / f"{name}.mat", "w", userblock_size=512) as file:
        put(file, "layer", x.astype(np.float32) if x.dtype == np.float16 else x)
        for k, v in more.items():
            put(file, k, v if isinstance(v[0], str) else np.array(v)[:, None])
        if ids is not None:
            put(file, "ids", list(ids) if isinstance(ids[0], str) else np.array(ids, float)[:, None])
    with (folder / f"{name}.mat").open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return folder / f"{name}.mat"


FORMS = {
    "npy, ids.txt": Form(npy_txt, more=False, nulls=False),
    "npy, ids.json": Form(npy_json, more=False),
    "npz": Form(npz, nulls=False),
    "pt": Form(pt),
    "pth, one tensor": Form(pth_tensor, more=False),
    "safetensors": Form(safetensors, more=False),
    "parquet, columns": Form(written(frame_columns)),
    "parquet, index": Form(written(frame_index)),
    "parquet, lists": Form(written(frame_lists)),
    "parquet, fixed lists": Form(fixed_lists),
    "parquet, categories": Form(written(categories)),
    "frame, columns": Form(frame_columns),
    "frame, index": Form(frame_index),
    "frame, lists": Form(frame_lists),
    "arrow table": Form(arrow),
    "feather": Form(arrow_file),
    "arrow stream": Form(arrow_stream),
    "csv": Form(csv(frame_columns, index=False)),
    "csv, lists": Form(csv(lambda *a: frame_lists(*a).assign(layer=lambda f: [str(v.tolist()) for v in f["layer"]]), index=False)),
    "tsv": Form(csv(frame_columns, ".tsv", index=False, sep="\t")),
    "jsonl": Form(jsonl),
    "h5": Form(hdf5, nulls=False),
    "zarr 2": Form(zarr(2, ".zarr"), nulls=False),
    "zarr 3": Form(zarr(3, ".zarr"), nulls=False),
    "zarr, zip": Form(zarr(3, ".zarr.zip"), nulls=False),
    "mat 5": Form(mat_5, nulls=False),
    "mat 7.3": Form(mat_7_3, nulls=False),
    "mapping of numpy": Form(numpy_mapping),
    "mapping of torch": Form(torch_mapping),
    "mapping of frames": Form(mapping_of_frames, more=False),
    "list of frames": Form(list_of_frames, more=False),
    "structured array": Form(structured, more=False),
}


@pytest.fixture(params=FORMS)
def form(request) -> Form:
    return FORMS[request.param]


@pytest.fixture
def make(form, tmp_path):
    """`make(x, ids, name="a", **more)` in the form at hand."""

    def made(x: np.ndarray = X, ids: Any = IDS, name: str = "a", **more: Any) -> Any:
        return form.make(tmp_path, name, x, ids, more)

    return made


def only(found) -> np.ndarray:
    (layer,) = found.layers.values()
    return layer.to(torch.float64).numpy()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ">f4"])
def test_numbers_and_ids_are_read_as_they_are(make, dtype):
    if dtype == ">f4" and make.__closure__ is None:
        pytest.skip("no byte order")
    x = X.astype(dtype)
    try:
        source = make(x)
    except (ValueError, TypeError, NotImplementedError, pa.ArrowException):  # torch and Arrow write no such numbers
        assert dtype == ">f4"
        pytest.skip("this form has one byte order")
    found = read_features(source)
    assert found.ids == tuple(IDS) and np.array_equal(only(found), x.astype(np.float64))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [(list(range(N)), [str(i) for i in range(N)]), ([f"{i:03d}" for i in range(N)], [f"{i:03d}" for i in range(N)])],
    ids=["whole numbers", "texts with zeros in front"],
)
def test_ids_are_texts(make, ids, expected):
    assert read_features(make(ids=ids)).ids == tuple(expected)


def test_another_order_is_joined(make):
    both = [read_features(make()), read_features(make(X[ORDER], [IDS[i] for i in ORDER], "b"))]
    found = join(both)
    assert found.ids == tuple(IDS) and all(np.array_equal(next(iter(side.values())).numpy(), X) for side in found.layers)
    assert found.how[0] == "joined on 12 ids; 0 and 0 rows have no partner and are left out"


def test_common_ids_are_kept_and_the_others_counted(make):
    found = join([read_features(make()), read_features(make(X[ORDER[:7]], [IDS[i] for i in ORDER[:7]], "b"))])
    kept = sorted(ORDER[:7])
    assert found.ids == tuple(IDS[i] for i in kept)
    assert all(np.array_equal(next(iter(side.values())).numpy(), X[kept]) for side in found.layers)
    assert found.how[0] == "joined on 7 ids; 5 and 0 rows have no partner and are left out"


def test_what_is_beside_is_left_out_and_named(form, make):
    if not form.more:
        pytest.skip("nothing stands beside")
    found = read_features(make(label=[i % 2 for i in range(N)], caption=["a dog", "a cat"] * (N // 2), seen=[True] * N))
    assert np.array_equal(only(found), X) and found.ids == tuple(IDS)
    assert all(word in found.how.partition("left out: ")[2] for word in ("label", "caption", "seen")), found.how


def test_ids_that_repeat_are_refused(make):
    with pytest.raises(RepalignError, match="rows 0 and 2 have the same id 's00'"):
        read_features(make(ids=[IDS[0], IDS[1], *IDS[:1], *IDS[3:]]))


@pytest.mark.parametrize("nothing", [None, float("nan"), "", "  "])
def test_an_id_that_is_missing_is_refused(form, make, nothing):
    if not form.nulls and not isinstance(nothing, str):
        pytest.skip("no null in this form")
    ids = [*IDS[:4], nothing, *IDS[5:]]
    try:
        source = make(ids=ids)
    except pa.ArrowException:
        pytest.skip("a NaN among texts cannot be written")
    with pytest.raises(RepalignError, match=r"row 4 has no id|line 5 is empty"):
        read_features(source)


def test_blanks_around_an_id_are_refused(make):
    with pytest.raises(RepalignError, match="row 3 has an id with blanks around it"):
        read_features(make(ids=[*IDS[:3], " s03", *IDS[4:]]))


def test_ids_on_one_side_alone_are_refused(make):
    with pytest.raises(RepalignError, match=r"which row belongs to which\?\n  expected: ids in all of them, or in none"):
        join([read_features(make()), read_features(make(ids=None, name="b"))])
    by_rows = join([read_features(make(name="c"), rows=True), read_features(make(ids=None, name="d"), rows=True)])
    assert by_rows.ids is None and by_rows.how[0] == "row i of one is paired with row i of the other: as asked"


def test_rows_are_paired_where_nothing_names_them(make):
    found = join([read_features(make(ids=None)), read_features(make(ids=None, name="b"))])
    assert found.ids is None and "nothing names the rows" in found.how[0]


def test_what_could_be_an_id_is_asked_for(form, make):
    if not form.more:
        pytest.skip("nothing stands beside")
    first = make(ids=None, pk=list(range(100, 100 + N)))
    second = make(X[ORDER], None, "b", pk=(ORDER + 100).tolist())
    with pytest.raises(RepalignError, match=r"which row belongs to which\?(.|\n)*pk \(int64(.|\n)*--id pk .*; or --rows"):
        join([read_features(first), read_features(second)])
    found = join([read_features(first, id="pk"), read_features(second, id="pk")])
    assert all(np.array_equal(next(iter(side.values())).numpy(), X) for side in found.layers)


def test_nothing_that_is_called_otherwise_is_taken(make):
    with pytest.raises(RepalignError, match="nothing in it is called 'no_such'"):
        read_features(make(), id="no_such")
