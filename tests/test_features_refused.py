"""What is not plainly features is refused with the words that settle it; what the caller says is done."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import save_file

import repalign
from repalign.errors import RepalignError
from repalign.features import read_features

RNG = np.random.default_rng(0)
N = 12
X, CUBE = RNG.standard_normal((N, 3)), RNG.standard_normal((N, 4, 3))
IDS = [f"s{i:02d}" for i in range(N)]
WHOLE = RNG.integers(0, 9, (N, 3))


def frame(**more) -> pd.DataFrame:
    return pd.DataFrame({**{f"f{i}": X[:, i] for i in range(3)}, **more})


def ragged(dtype) -> list:
    return [np.arange(1, i % 3 + 2, dtype=dtype) for i in range(N)]


REFUSED = {
    # --- what may be a feature and is not plainly one
    "a whole number among numbered columns": (
        frame(f3=range(N)),
        r"which columns are the features\?(.|\n)*got: f0, f1, f2 \(float\) and f3 \(int64\)\n  do: .*--features 'f\*'",
    ),
    "a text among numbered columns": (frame(f3=["1.5"] * N), r"and f3 \(text\)"),
    "a truth value among numbered columns": (frame(f3=[True] * N), r"and f3 \(bool\)"),
    "a float that is not numbered": (frame(score=X[:, 0]), r"got: f0, f1, f2 \(float\) and score \(float64\)"),
    "two numbered sets": (frame(g0=X[:, 0], g1=X[:, 1]), r"and g0 \(float64\), g1 \(float64\)"),
    "two layers in numbered columns": (
        pd.DataFrame({f"l{i}_d{j}": X[:, j] for i in range(2) for j in range(3)}),
        r"--features 'l0_d\*'",
    ),
    "whole numbers among columns with names": (
        pd.DataFrame({"age": X[:, 0], "height": X[:, 1], "children": range(N)}),
        r"got: age, height \(float\) and children \(int64\)",
    ),
    "whole numbers alone": (
        pd.DataFrame(WHOLE, columns=list("abc")),
        r"no two-dimensional block of floats: no layer\n(.|\n)*--features a,b,c ",
    ),
    "vectors and numbered columns": (
        frame(v=list(X)),
        r"which are the features\?(.|\n)*got: v \(float64 \(12, 3\)\) and the columns f0, f1, f2\n  do: say --vector v ",
    ),
    "lists of different lengths": (
        pd.DataFrame({"v": ragged(float)}),
        r"v \(float64 \(12, \?\)\) holds no vectors of one length",
    ),
    "lists of different lengths beside vectors": (
        pd.DataFrame({"v": list(X), "w": ragged(float)}),
        r"which are the features\?(.|\n)*--vector v ",
    ),
    "matrices in cells": (pd.DataFrame({"v": list(CUBE)}), r"v \(float64 \(12, 4, 3\)\) holds no vectors"),
    "lists of whole numbers": (pd.DataFrame({"v": WHOLE.tolist()}), r"no layer\n(.|\n)*got: v \(int64 \(12, 3\)\)"),
    "tokens and their mask": (
        {"last_hidden_state": CUBE, "attention_mask": WHOLE},
        r"last_hidden_state \(float64 \(12, 4, 3\)\) is no layer, and may be meant as one\n(.|\n)*pool the tokens",
    ),
    "tokens and a layer": (
        {"last_hidden_state": CUBE, "pooler_output": X},
        r"name what the features are, --vector pooler_output ",
    ),
    "a list of layers under a name": (
        {"hidden_states": [X, X]},
        r"hidden_states \(a list of float64 \(2, 12, 3\)\) is no layer(.|\n)*--vector hidden_states ",
    ),
    "a mapping in a mapping": ({"model": {"layer.0": X}, "ids": IDS}, r"model \(a mapping of layer.0"),
    "layers of other rows": (
        {"a": X, "weight": X[:5]},
        r"layers of different row counts\n(.|\n)*got: a: 12, weight: 5",
    ),
    "one feature each by name": ({"f0": X[:, 0], "f1": X[:, 1]}, r"no two-dimensional block of floats"),
    "whole numbers in an array": (
        WHOLE,
        r"whole numbers or truth values alone are no features\n(.|\n)*--vector features ",
    ),
    "truth values in an array": (X > 0, r"whole numbers or truth values alone"),
    "a matrix that relates stimuli": (
        X @ X.T,
        r"square and symmetric, which dissimilarities \(RDM\) and kernels are"
        r"(.|\n)*--rdm or --kernel(.|\n)*kind: rdm(.|\n)*--vector features ",
    ),
    "such a matrix in float16": (
        1 - np.corrcoef(X).astype(np.float16),
        r"square and symmetric(.|\n)*0 on the diagonal",
    ),
    "such a matrix as a tensor by name": ({"a": torch.tensor(X @ X.T)}, r"square and symmetric(.|\n)*--vector a "),
    # --- three dimensions
    "three dimensions of which nothing is said": (
        CUBE,
        r"can be read in two ways\n(.|\n)*got: 12 stimuli of 4 layers, or 4 stimuli of 12 layers\n  do: say --axes nld",
    ),
    "three dimensions in torch": (torch.tensor(CUBE), r"can be read in two ways"),
    "four dimensions": (CUBE[:, :, :, None], r"layer features: not \(n, d\)"),
    "a list of three dimensions": ([CUBE, CUBE], r"not \(n, d\)\n(.|\n)*got: shape \(2, 12, 4, 3\)"),
    "one dimension": (X[:, 0], r"got: shape \(12,\)\n  do: .*for one feature use shape \(n, 1\)"),
    "no dimension": (np.float64(1), r"got: shape \(\)"),
    "no rows": (X[:0], r"got: shape \(0, 3\)"),
    "nothing": (None, r"not an array of numbers"),
    "no layers": ([], r"not an array of numbers"),
    "an empty mapping": ({}, r"an empty mapping"),
    "an empty frame": (pd.DataFrame(), r"no layer"),
    # --- what is no dense array of real numbers
    "scipy.sparse": (sp.csr_matrix(X), r"x: a sparse matrix \(12, 3\)\n(.|\n)*x\.toarray\(\)(.|\n)*TruncatedSVD"),
    "scipy.sparse by name": ({"a": X, "b": sp.coo_array(X)}, r"x, b: a sparse matrix \(12, 3\)"),
    "scipy.sparse in a list": ([sp.csr_array(X)] * 2, r"a sparse matrix \(12, 3\)"),
    "torch.sparse": (torch.tensor(X).to_sparse(), r"a sparse matrix \(12, 3\)\n(.|\n)*x\.to_dense\(\)"),
    "torch.sparse by name": ({"a": torch.tensor(X).to_sparse()}, r"x, a: a sparse matrix \(12, 3\)"),
    "a sparse frame": (pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(X)), r"column 0 is sparse\n(.|\n)*to_dense"),
    "complex": (X + 1j, r"complex numbers\n(.|\n)*\[x\.real, x\.imag\]"),
    "complex in torch": (torch.tensor(X + 1j), r"complex numbers"),
    "complex beside real": ({"a": X, "b": X + 1j}, r"b \(complex128 \(12, 3\)\) is no layer, and may be meant as one"),
    "complex columns": (
        pd.DataFrame({f"f{i}": X[:, i] + 1j for i in range(3)}),
        r"no layer\n(.|\n)*real and imaginary parts",
    ),
    "masked": (np.ma.masked_less(X, 0), r"entries are masked"),
    "masked by name": ({"a": np.ma.masked_less(X, 0)}, r"x, a: \d+ entries are masked"),
    "objects": (np.array([[1, "a"]] * N, dtype=object), r"not an array of numbers"),
    "texts": (np.array([["a", "b"]] * N), r"not an array of numbers\n(.|\n)*got: features \(text \(12, 2\)\)"),
    "rows of different lengths": ([[1.0, 2.0], [1.0]], r"not an array\n  expected: rows of equal length"),
    "no data": (torch.empty(3, 4, device="meta"), r"a tensor without data"),
    # --- names
    "two columns of one name": (pd.DataFrame(X, columns=list("aab")), r"two things in it are called 'a'"),
    "two keys of one name": ({1: X, "1": X + 1}, r"two things in it are called '1'"),
    # --- ids
    "two ids that differ": (
        frame(image_id=range(N), caption_id=range(5, N + 5)),
        r"several things could be its ids, and they differ\n(.|\n)*got: image_id \(int64\); caption_id \(int64\)\n  do: say which",
    ),
    "a column and an index that differ": (frame(id=IDS).rename_axis("row"), r"several things could be its ids"),
    "two levels of an index": (
        frame().set_index([pd.Index(IDS, name="a"), pd.Index(range(N), name="b")]),
        r"the index a \(text\); the index b \(int64\)",
    ),
    "an id that repeats": (
        frame(image_id=[i // 2 for i in range(N)]),
        r"rows 0 and 1 have the same id '0' in image_id",
    ),
    "an index that repeats": (frame().set_index(pd.Index(["a"] * N)), r"rows 0 and 1 have the same id 'a' in index"),
    "a null in an index": (frame().set_index(pd.Index([None, *IDS[1:]])), r"row 0 has no id"),
    "a null among whole numbers": (frame(id=pd.array([None, *range(1, N)], dtype="Int64")), r"row 0 has no id"),
    "a time that is none": (frame(id=[pd.NaT, *pd.date_range("2020", periods=N - 1)]), r"row 0 has no id"),
    "a null in a list of ids": ({"a": X, "ids": [*IDS[:-1], None]}, r"row 11 has no id"),
    "NA among objects": ({"a": X, "ids": np.array([*IDS[:-1], pd.NA], dtype=object)}, r"row 11 has no id"),
    "fractions as ids": (
        frame(id=np.arange(N) / 2),
        r"row 1 has an id that is no whole number in id\n(.|\n)*got: 0\.5",
    ),
    "ids that float32 has rounded": (
        frame(id=np.arange(2**24, 2**24 + N, dtype=np.float32)),
        r"stored without rounding",
    ),
    "ids that bfloat16 has rounded": (
        {"a": torch.tensor(X), "ids": torch.arange(256.0, 256 + 2 * N, 2).to(torch.bfloat16)},
        r"row 0 has an id that is no whole number in ids\n(.|\n)*stored without rounding\n  got: 256\.0 \(bfloat16\)",
    ),
    "bytes that are no text": (
        {"a": X, "ids": np.array([b"\xff\xfe" + bytes([i]) for i in range(1, N + 1)])},
        r"row 0 has an id that is no text",
    ),
    "fewer ids than rows": (
        {"a": X, "ids": IDS[:-1]},
        r"ids do not fit the rows\n  expected: 12 distinct ids\n  got: 11 ids",
    ),
    # --- frames by layer
    "frames and arrays": ({"a": frame(), "b": X}, r"frames and arrays in one mapping"),
    "frames with other ids": (
        {"a": frame(id=IDS), "b": frame(id=[f"t{i}" for i in range(N)])},
        r"a and b have other ids",
    ),
    "frames with and without ids": ({"a": frame(id=IDS), "b": frame()}, r"not all its frames name their rows"),
    "frames with a shuffled index": (
        {"a": frame(), "b": frame().sample(frac=1, random_state=0)},
        r"not all its frames name their rows",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_memory(what):
    source, message = REFUSED[what]
    with pytest.raises(RepalignError, match=message) as caught:
        read_features(source)
    assert "\n  expected: " in str(caught.value)
    with pytest.raises(RepalignError, match=message):
        repalign.pair(source, X, ["CKA()"], names=("x", "y"))


NOT_WRITTEN = {"an empty frame", "a sparse frame", "complex columns", "two columns of one name", "matrices in cells"}
WRITABLE = [w for w, (source, _) in REFUSED.items() if isinstance(source, pd.DataFrame) and w not in NOT_WRITTEN]


@pytest.mark.parametrize("what", WRITABLE)
def test_refused_in_parquet(what, tmp_path):
    source, message = REFUSED[what]
    source.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(RepalignError, match=message):
        read_features(tmp_path / "x.parquet")


def is_plain(array) -> bool:
    return isinstance(array, np.ndarray) and not np.ma.isMaskedArray(array) and array.dtype != object


ARRAYS = [what for what, (source, _) in REFUSED.items() if is_plain(source)]
MAPPINGS = [
    what
    for what, (source, _) in REFUSED.items()
    if isinstance(source, dict)
    and source
    and all(is_plain(v) for v in source.values())
    and what != "two keys of one name"
]


@pytest.mark.parametrize("what", [*ARRAYS, *MAPPINGS])
def test_refused_in_files_of_arrays(what, tmp_path):
    source, message = REFUSED[what]
    named = source if isinstance(source, dict) else {"features": source}
    written = []
    if isinstance(source, np.ndarray):
        np.save(tmp_path / "x.npy", source)
        written.append("x.npy")
    else:
        np.savez(tmp_path / "x.npz", **named)
        written.append("x.npz")
    if all(v.dtype.kind in "fiubc" for v in named.values()):
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in named.items()}
        torch.save(tensors["features"] if isinstance(source, np.ndarray) else tensors, tmp_path / "x.pt")
        written.append("x.pt")
        if isinstance(source, dict) and "complex" not in what:
            save_file(tensors, tmp_path / "x.safetensors")
            written.append("x.safetensors")
    for name in written:
        with pytest.raises(RepalignError, match=message.replace("x, ", ".*")):
            read_features(tmp_path / name)


# --- what the caller says ---------------------------------------------------------------------------

SAID = {
    "columns by a pattern": (frame(pk=range(N)), {"features": "f[01]"}, X[:, :2]),
    "patterns, and a whole number by name": (
        frame(n=range(N)),
        {"features": "f*,n"},
        np.column_stack([X, np.arange(N)]),
    ),
    "a list of patterns": (frame(n=range(N)), {"features": ["f0", "f2"]}, X[:, [0, 2]]),
    "all columns but the ids": (frame(id=IDS, n=range(N)), {"features": "*"}, np.column_stack([X, np.arange(N)])),
    "a column of vectors": (frame(v=list(2 * X)), {"vector": "v"}, 2 * X),
    "a column of whole numbers": (pd.DataFrame({"v": WHOLE.tolist()}), {"vector": "v"}, WHOLE),
    "an array by name": ({"h": CUBE, "p": X}, {"vector": "p"}, X),
    "an array of whole numbers": (WHOLE, {"vector": "features"}, WHOLE),
    "a symmetric matrix": (X @ X.T, {"vector": "features"}, X @ X.T),
    "its kind": (X @ X.T, {"kind": "features"}, X @ X.T),
}


@pytest.mark.parametrize("what", SAID)
def test_what_is_said_is_done(what):
    source, said, expected = SAID[what]
    (layer,) = read_features(source, **said).layers.values()
    assert np.array_equal(layer.numpy(), expected)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"id": "idz"}, r"nothing in it is called 'idz'(.|\n)*did you mean 'id'"),
        ({"vector": "f0"}, r"f0 \(float64\) holds no vectors\n(.|\n)*--features f0"),
        ({"features": "g*"}, r"no column is called 'g\*'\n(.|\n)*got: f0, f1, f2, id, caption"),
        ({"features": "f*,score"}, r"no column is called 'score'"),
        ({"features": "f*,caption"}, r"caption \(text\) is no column of numbers, and 'f\*, caption' names it"),
        ({"id": "id", "rows": True}, r"ids and rows are two ways to pair"),
        ({"features": "f*", "vector": "f0"}, r"features and vector both say what the features are"),
        ({"axes": "ndl"}, r"unknown axes 'ndl'"),
        ({"kind": "rdms"}, r"unknown kind 'rdms'"),
    ],
)
def test_what_cannot_be_done_is_told(said, message):
    with pytest.raises(RepalignError, match=message):
        read_features(frame(id=IDS, caption=["a"] * N), **said)


@pytest.mark.parametrize(
    ("source", "said", "axis"),
    [
        (CUBE, {"axes": "nld"}, 1),
        (CUBE.swapaxes(0, 1), {"axes": "lnd"}, 0),
        (CUBE, {"id": IDS}, 1),
        (CUBE.swapaxes(0, 1), {"id": IDS}, 0),
        (list(CUBE.swapaxes(0, 1)), {}, 0),
        ({"h": CUBE, "ids": IDS}, {"vector": "h"}, 1),
        ({"feats": CUBE}, {}, 1),
        (CUBE[:, :1], {}, 1),
        (CUBE[:, :1].swapaxes(0, 1), {}, 0),
    ],
)
def test_three_dimensions_where_something_settles_them(source, said, axis):
    array = np.asarray(next(iter(source.values())) if isinstance(source, dict) else source)
    found = read_features(source, **said)
    assert list(found.layers) == [f"layer.{i}" for i in range(array.shape[axis])]
    assert all(np.array_equal(x.numpy(), array.take(i, axis)) for i, x in enumerate(found.layers.values()))
