"""Files one by one, rows of several sources, and who reads by the rule: pair, the plan, models of a study, measures."""

from __future__ import annotations

import json
import struct
import uuid
import zipfile
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import save_file

import repalign
import tiny_models as tiny
from repalign.errors import RepalignError
from repalign.features import file_widths, join, read_features, read_file, rule
from repalign.measures import CKA
from repalign.sources import ModelEntry, extract
from repalign.sources import array as reader
from test_features import COLUMNS, FORMS, IDS, ORDER, N, X

# --- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in FORMS if not any(e in name for e in ("frame", "arrow table", "mapping", "structured"))]
)
@pytest.mark.parametrize("ids", [IDS, None])
def test_the_plan_sees_what_is_read(name, ids, tmp_path):
    path = FORMS[name].make(tmp_path, "a", X, ids, {"label": [0, 1] * (N // 2)} if FORMS[name].more else {})
    assert file_widths(path) == {layer: x.shape[1] for layer, x in read_features(path).layers.items()}


def test_a_line_of_ids_ends_at_a_line_feed_only(tmp_path):
    np.save(tmp_path / "x.npy", X[:4])
    odd = ["a\x0cb", "c\u2028d", "e\x1cf", "g\x85h"]
    for end in ("\n", "\r\n"):
        (tmp_path / "x.npy.ids.txt").write_bytes(("\ufeff" + end.join(odd) + end).encode())
        assert read_file(tmp_path / "x.npy").ids == tuple(odd)
    (tmp_path / "x.npy.ids.txt").write_text("a\n\nb\nc\n")
    with pytest.raises(RepalignError, match=r"x\.npy\.ids\.txt: line 2 is empty\n  expected: one id per line"):
        read_file(tmp_path / "x.npy")
    (tmp_path / "x.npy.ids.txt").unlink()
    (tmp_path / "x.npy.ids.json").write_text('{"a": 1}')
    with pytest.raises(RepalignError, match=r"not a list"):
        read_file(tmp_path / "x.npy")


def test_ids_in_two_places_agree_or_are_refused(tmp_path):
    FORMS["npz"].make(tmp_path, "x", X, IDS, {})
    (tmp_path / "x.npz.ids.json").write_text(json.dumps(IDS))
    assert read_file(tmp_path / "x.npz").ids == tuple(IDS)
    (tmp_path / "x.npz.ids.json").write_text(json.dumps(IDS[::-1]))
    with pytest.raises(
        RepalignError, match=r"several things could be its ids, and they differ(.|\n)*ids in x\.npz\.ids\.json"
    ):
        read_file(tmp_path / "x.npz")


def test_layers_of_safetensors_are_in_natural_order_or_in_that_of_its_metadata(tmp_path):
    tensors = {f"block.{i}.{part}": torch.full((4, 2), i) + 0.5 for i in range(12) for part in ("mlp", "attn")}
    save_file(tensors, tmp_path / "a.safetensors")
    expected = [f"block.{i}.{part}" for i in range(12) for part in ("attn", "mlp")]
    assert list(read_file(tmp_path / "a.safetensors").layers) == expected
    save_file(tensors, tmp_path / "b.safetensors", metadata={"layers": '["block.3.mlp", "block.1.attn"]'})
    found = read_file(tmp_path / "b.safetensors")
    assert (
        list(found.layers) == ["block.3.mlp", "block.1.attn"] and "left out: block.0.attn (float32 (4, 2))" in found.how
    )
    save_file(tensors, tmp_path / "c.safetensors", metadata={"layers": '["block.33"]'})
    with pytest.raises(RepalignError, match=r"nothing in it is called 'block\.33'(.|\n)*did you mean"):
        read_file(tmp_path / "c.safetensors")


def test_other_forms_keep_the_order_in_which_they_were_written(tmp_path):
    names = ["layer.10", "layer.2", "first"]
    np.savez(tmp_path / "a.npz", **dict.fromkeys(names, X))
    torch.save({name: torch.tensor(X) for name in names}, tmp_path / "a.pt")
    for source in (tmp_path / "a.npz", tmp_path / "a.pt", dict.fromkeys(names, X)):
        assert list(read_features(source).layers) == names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_half_precision_is_read(dtype, tmp_path):
    x = torch.tensor(X).to(dtype)
    save_file({"a": x}, tmp_path / "a.safetensors")
    torch.save(x, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        (layer,) = read_file(tmp_path / name).layers.values()
        assert torch.equal(layer.float(), x.float())


def test_an_archive_is_told_by_its_headers(tmp_path, monkeypatch):
    """Objects are left out unread, what is no array too; what unpacks to more than fits is refused."""
    np.savez(tmp_path / "a.npz", features=X, config=np.array({"seed": 1}, dtype=object), ids=np.array(IDS))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("readme.txt", "hello")
    found = read_file(tmp_path / "a.npz")
    assert (
        found.ids == tuple(IDS)
        and "left out: config (pickled objects, never loaded ()), readme.txt (no array ())" in found.how
    )
    np.savez(tmp_path / "b.npz", features=X, ids=np.array(IDS, dtype=object))
    with pytest.raises(RepalignError, match=r"the file cannot be read(.|\n)*pickles are never loaded"):
        read_file(tmp_path / "b.npz")
    sp.save_npz(tmp_path / "c.npz", sp.csr_matrix(X))
    with pytest.raises(RepalignError, match=r"c\.npz: a sparse matrix \(12, 3\)\n(.|\n)*load_npz\(path\)\.toarray\(\)"):
        read_file(tmp_path / "c.npz")
    np.savez_compressed(tmp_path / "d.npz", features=np.zeros((4000, 100)))
    monkeypatch.setattr(rule, "available_bytes", lambda: 3_000_000)
    monkeypatch.setattr(np, "load", lambda *a, **k: 1 / 0)  # nothing is unpacked
    with pytest.raises(
        RepalignError, match=r"do not fit in memory\n  expected: at most 0\.003 GB(.|\n)*got: 0\.0032 GB by its header"
    ):
        read_file(tmp_path / "d.npz")


def test_a_small_file_that_claims_much_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**7, 10**7)}, tmp_path / "a.pt")
    with pytest.raises(RepalignError, match="do not fit in memory"):
        read_file(tmp_path / "a.pt")
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9, 10**6], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(RepalignError, match=r"the file cannot be read"):
        read_file(tmp_path / "a.safetensors")


def test_a_sparse_tensor_in_a_file_is_refused_without_a_warning(tmp_path):
    torch.save(torch.tensor(X).to_sparse(), tmp_path / "a.pt")
    with pytest.raises(RepalignError, match=r"a sparse matrix \(12, 3\)\n(.|\n)*to_dense"):
        read_file(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "held", [[torch.tensor(X)] * 2, {"feats": [torch.tensor(X)] * 2, "ids": IDS, "loss": torch.zeros(N)}]
)
def test_lists_of_layers_in_files_of_torch(held, tmp_path):
    torch.save(held, tmp_path / "a.pt")
    found = read_file(tmp_path / "a.pt")
    assert list(found.layers) == ["layer.0", "layer.1"] and all(
        torch.equal(x, torch.tensor(X)) for x in found.layers.values()
    )
    assert isinstance(held, list) or (found.ids == tuple(IDS) and "left out: loss" in found.how)


FRAME = pd.DataFrame(X, columns=COLUMNS)


@pytest.mark.parametrize(
    "start", [FRAME.iloc[2:], FRAME[X[:, 0] > 0], FRAME.sample(frac=1, random_state=0), FRAME.iloc[::-1]]
)
def test_an_index_of_pandas_is_never_a_feature(start, tmp_path):
    start.to_parquet(tmp_path / "a.parquet")
    for source in (start, tmp_path / "a.parquet"):
        found = read_features(source)
        assert np.array_equal(found.layers["features"].numpy(), start.to_numpy()) and "left out: the index" in found.how
        with pytest.raises(RepalignError, match=r"the index \(int64\)(.|\n)*--id index"):
            join([found, read_features(FRAME.iloc[: len(start)])])
        joined = join([read_features(s, id="index") for s in (source, FRAME)])
        assert torch.equal(joined.layers[0]["features"], joined.layers[1]["features"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            pd.date_range("2020-01-01", periods=2, freq="500ms", unit="ns"),
            ("2020-01-01T00:00:00", "2020-01-01T00:00:00.5"),
        ),
        (
            pd.date_range("2020-01-01", periods=2, freq="500ms", unit="ms"),
            ("2020-01-01T00:00:00", "2020-01-01T00:00:00.5"),
        ),
        (np.array([7.0, 8.0]), ("7", "8")),
        (pd.Categorical(["b", "a"]), ("b", "a")),
        (np.array(["b", "a"], dtype=object), ("b", "a")),
        (np.array([2**63 + 1, 2**63 + 2], dtype=np.uint64), ("9223372036854775809", "9223372036854775810")),
    ],
)
def test_ids_of_every_kind(values, expected, tmp_path):
    frame = FRAME.iloc[:2].assign(id=values)
    frame.to_parquet(tmp_path / "a.parquet")
    assert read_features(frame).ids == read_features(tmp_path / "a.parquet").ids == expected


# --- rows of several sources -------------------------------------------------------------------------


def with_ids(ids, x=X, name="id"):
    return (
        FRAME.iloc[: len(ids)].assign(**{name: ids})
        if x is X
        else pd.DataFrame(x, columns=COLUMNS).assign(**{name: ids})
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [("007", "7"), ("7.0", "7"), ("A", "a"), ("+7", "7"), ("IMG.JPG", "img.jpg")],
)
def test_ids_that_are_written_in_two_ways_are_not_passed_over(one, other):
    rest = [f"s{i}" for i in range(4)]
    with pytest.raises(
        RepalignError, match=r"1 ids differ only in how they are written\n  expected: one way to write an id"
    ):
        join([read_features(with_ids([*rest, one])), read_features(with_ids([*rest, other]))])


def test_what_says_the_same_in_every_row_needs_no_name():
    captions = [f"a dog, {i}" for i in range(N)]
    found = join([read_features(with_ids(captions, name="caption")), read_features(with_ids(captions, name="caption"))])
    assert found.ids is None and "caption (text) says the same in every row" in found.how[0]
    for other in (captions[::-1], [*captions[:-1], "a cat"]):
        with pytest.raises(RepalignError, match="which row belongs to which"):
            join([read_features(with_ids(captions, name="caption")), read_features(with_ids(other, name="caption"))])


def test_a_mere_counter_is_no_evidence():
    """Row numbers agree whatever the order was before: the user says that they are meant."""
    both = [with_ids(list(range(N)), x, "row") for x in (X, X[ORDER])]
    with pytest.raises(RepalignError, match=r"row \(int64\)(.|\n)*--id row"):
        join([read_features(s) for s in both])
    assert join([read_features(s, id="row") for s in both]).n == N


def _uuids(n):
    return [uuid.UUID(int=int(i)) for i in ORDER[:n]]


COULD_BE = {
    "a text": [f"t{i}" for i in ORDER],
    "a whole number": ORDER + 100,
    "a text with a null": [None, *(f"t{i}" for i in ORDER[1:])],
    "a text with a duplicate": ["t1", "t1", *(f"t{i}x" for i in ORDER[2:])],
    "whole numbers stored as floats": (ORDER + 100.0).tolist(),
    "whole numbers with a hole": [None, *(ORDER[1:] + 100)],
    "times": pd.date_range("2020-01-01", periods=N)[ORDER],
    "dates": [d.date() for d in pd.date_range("2020-01-01", periods=N)[ORDER]],
    "decimals": [Decimal(int(i)) for i in ORDER],
    "uuids": _uuids(N),
    "categories": pd.Categorical([f"t{i}" for i in ORDER]),
}
COULD_NOT = {
    "classes": ["cat", "dog"] * (N // 2),
    "labels": [0, 1, 2] * (N // 3),
    "truth values": [True] * N,
    "losses": X[:, 0].tolist(),
    "bytes": [bytes([i]) for i in range(N)],
    "mappings": [{"a": i} for i in range(N)],
    "nothing": [None] * N,
}


@pytest.mark.parametrize("what", [*COULD_BE, *COULD_NOT])
def test_what_could_be_an_id_and_what_could_not(what, tmp_path):
    """Under a name that says nothing, beside a column of vectors; in memory and in a file."""
    frame = pd.DataFrame({"v": list(X), "thing": COULD_BE.get(what, COULD_NOT.get(what))})
    frame.to_parquet(tmp_path / "a.parquet")
    for source in (frame, tmp_path / "a.parquet"):
        found = read_features(source)
        assert found.ids is None and list(found.layers) == ["v"] and "left out: thing (" in found.how
        assert [b.name for b in found.candidates] == (["thing"] if what in COULD_BE else [])


PAIRED = FRAME.set_index(pd.Index([(i, i + 1) for i in range(N)], tupleize_cols=False))


@pytest.mark.parametrize(
    "start", [pd.concat([FRAME[:6], FRAME[6:].reset_index(drop=True)]), FRAME.set_index(X[:, 0]), PAIRED]
)
def test_an_index_that_no_longer_counts_is_asked_about(start):
    """Also one that repeats, or of fractions: rows were moved. Equal in both, it settles the matter."""
    with pytest.raises(RepalignError, match=r"which could be ids: the index \((int64|float64)\)"):
        join([read_features(start), read_features(FRAME)])
    assert "the index" in join([read_features(start), read_features(2 * start)]).how[0]


def test_three_sources_are_joined_by_one_rule(tmp_path):
    found = join(
        [
            read_features(with_ids(IDS)),
            read_features(with_ids([IDS[i] for i in ORDER], X[ORDER])),
            read_features(with_ids(IDS[:5])),
        ]
    )
    assert found.n == 5 and found.how[0] == "joined on 5 ids; 7, 7 and 0 rows have no partner and are left out"
    assert all(torch.equal(side["features"], torch.tensor(X[:5])) for side in found.layers)


def test_a_join_of_files_says_how(tmp_path):
    paths = [FORMS["npz"].make(tmp_path, name, X, IDS, {"label": np.zeros(N, int)}) for name in "ab"]
    found = join([read_file(path) for path in paths])
    left, right = found.layers
    how = "; ".join(found.how)
    assert torch.equal(left["layer"], right["layer"]) and found.ids == tuple(IDS)
    assert how.startswith("joined on 12 ids") and how.count("left out: label (int64 (12,))") == 2


# --- who reads by the rule ---------------------------------------------------------------------------


def statistic(*arguments, **options) -> float:
    return float(repalign.pair(*arguments, ["CKA()"], **options).best()["statistic"].iloc[0])


def test_pair_joins_and_says_how(tmp_path):
    a, b = with_ids(IDS), with_ids([IDS[i] for i in ORDER], X[ORDER], "image_id")
    assert statistic(a, b) == pytest.approx(1)
    assert statistic(a.rename(columns={"id": "pk"}), b.rename(columns={"image_id": "pk"}), ids="pk") == pytest.approx(1)
    a.to_parquet(tmp_path / "a.parquet")
    result = repalign.pair(tmp_path / "a.parquet", read_features(b.assign(label=1), id="image_id"), ["CKA()"])
    assert float(result.best()["statistic"].iloc[0]) == pytest.approx(1) and result.run["dataset"]["n"] == N
    assert result.run["how"][0].startswith("joined on 12 ids") and "left out: label (int64)" in result.run["how"][2]
    by_rows = statistic(a, b, rows=True)
    assert by_rows == pytest.approx(CKA()(X, X[ORDER])) and by_rows < 0.9
    assert statistic(X, X[ORDER], ids=IDS) == pytest.approx(by_rows)  # ids of the rows of both
    with pytest.raises(RepalignError, match="it has been read"):
        repalign.pair(read_features(a), b, ids="id")


def test_a_measure_by_itself_takes_the_same_arrays():
    expected = CKA()(X, X[:, :2])
    for array in (X.astype(">f8"), X[::-1].copy()[::-1], np.ma.array(X), X.astype(np.longdouble), X.tolist()):
        assert CKA()(array, X[:, :2]) == pytest.approx(expected)
    frozen = X.copy()
    frozen.flags.writeable = False
    assert CKA()(frozen, X[:, :2]) == pytest.approx(expected)
    for array, message in ((torch.tensor(X + 1j), "x: complex numbers"), (sp.csr_array(X), "x: a sparse matrix")):
        with pytest.raises(RepalignError, match=message):
            CKA()(array, X)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


def test_models_of_a_study_say_the_same_words(data, tmp_path):
    n, ids = len(tiny.IDS), list(tiny.IDS)
    x, cube = np.random.default_rng(0).standard_normal((n, 3)), np.random.default_rng(1).standard_normal((3, n, 2))
    frame = pd.DataFrame(x, columns=COLUMNS).assign(pk=ids, v=list(2 * x))
    frame.iloc[::-1].reset_index(drop=True).to_parquet(tmp_path / "a.parquet")
    np.save(tmp_path / "b.npy", cube)

    told = []

    told = []

    def run(name, **said):
        entry = ModelEntry(f"array:{tmp_path / name}", modality="image", store_dtype="float64", **said)
        return extract(data, [entry], tmp_path / "s", progress=lambda *a: told.append(a))[0]

    assert torch.equal(run("a.parquet", id="pk", features="f*").load("features"), torch.tensor(x))
    assert torch.equal(run("a.parquet", id="pk", vector="v").load("v"), torch.tensor(2 * x))
    turned = run("a.parquet", rows=True, vector="v")
    assert torch.equal(turned.load("v"), torch.tensor(2 * x[::-1].copy())) and "by position" in turned.facts["read"]
    assert any("left out: f0 (float64)" in str(note[-1]) for note in told)
    layers = run("b.npy", ids="rows", axes="lnd")
    assert layers.layers == ("layer.0", "layer.1", "layer.2") and torch.equal(
        layers.load("layer.2"), torch.tensor(cube[2])
    )
    assert run("b.npy", ids="rows").layers == layers.layers  # as many stimuli as the dataset has
    with pytest.raises(RepalignError, match=r"which are the features\?(.|\n)*`vector: v`"):
        run("a.parquet", id="pk")
    with pytest.raises(
        RepalignError,
        match=r"a\.parquet says no ids\n(.|\n)*pk \(text\) could be\n  do: say `id: pk`, or say `ids: rows`",
    ):
        run("a.parquet", vector="v")


def test_what_an_earlier_rule_read_is_not_taken_from_a_store(data, tmp_path, monkeypatch):
    """Features that a store holds of a file are those of the rule that read it: an index was once a feature."""
    FORMS["npz"].make(tmp_path, "x", np.ones((len(tiny.IDS), 2)), list(tiny.IDS), {})
    entry = [ModelEntry(f"array:{tmp_path / 'x.npz'}", modality="image")]
    now = extract(data, entry, tmp_path / "s")[0].record.revision
    assert extract(data, entry, tmp_path / "s")[0].record.revision == now
    monkeypatch.setattr(reader, "RULE", "features 0")
    assert extract(data, entry, tmp_path / "s")[0].record.revision != now


class Columns:
    """A table that is no frame of pandas and gives its columns to Arrow, as frames of polars do."""

    def __init__(self, table):
        self.columns, self.table = table.column_names, table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("hole", ["a vector", "a number of a vector", "a number of a column"])
def test_a_hole_stays_in_its_row_and_is_refused_by_measures(hole, tmp_path):
    vectors = [v.tolist() for v in X]
    frame = pd.DataFrame({"id": IDS, "v": [*vectors[:5], None, *vectors[6:]]})
    if hole == "a number of a vector":
        frame["v"] = [*vectors[:5], [None, *vectors[5][1:]], *vectors[6:]]
    if hole == "a number of a column":
        frame = FRAME.assign(id=IDS, f1=pd.array([*X[:5, 1], None, *X[6:, 1]], dtype="Float64"))
    frame.to_parquet(tmp_path / "a.parquet")
    for source in (frame, tmp_path / "a.parquet"):
        (layer,) = read_features(source).layers.values()
        kept = [i for i in range(N) if i != 5]
        assert np.array_equal(layer.numpy()[kept], X[kept]) and bool(torch.isnan(layer[5]).any())
        with pytest.raises(RepalignError, match=r"x(, layer v)?: NaN or infinite values\n(.|\n)*the first is row 5"):
            repalign.pair(source, with_ids(IDS), ["CKA()"])


def test_a_table_of_another_library_gives_its_columns():
    found = read_features(Columns(pa.table({"id": IDS, "v": X.tolist(), "label": [0] * N})))
    assert (
        found.ids == tuple(IDS)
        and np.array_equal(found.layers["v"].numpy(), X)
        and "left out: label (int64)" in found.how
    )


def test_an_entry_that_says_nothing_of_its_file_keeps_its_key():
    plain = ModelEntry("array:x.npy", ids="rows").settings("float32")
    assert set(plain) == {
        "modality", "pooling", "layers", "caption", "bos", "padding", "truncate", "store_dtype", "ids", "dtype"
    }  # fmt: skip
    said = ModelEntry("array:x.npy", id="pk", features=["f*"], axes="nld", rows=True).settings("float32")
    assert {k: v for k, v in said.items() if k not in plain} == {
        "id": "pk",
        "features": ["f*"],
        "axes": "nld",
        "rows": True,
    }


@pytest.mark.parametrize("said", [{"id": "pk"}, {"rows": True}, {"features": "f*"}, {"vector": "v"}, {"axes": "nld"}])
def test_what_only_a_file_has_is_not_said_of_a_model(said, data, tmp_path):
    with pytest.raises(RepalignError, match=r"model timm:resnet18: timm: models have no `\w+`\n  expected: a file \(array:path\)"):
        extract(data, [ModelEntry("timm:resnet18", **said)], tmp_path / "s")
