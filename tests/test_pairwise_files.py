"""RDMs and kernels in files: read, kept in a store, compared from a study, on the command line, and in mock runs."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

from repalign import RDM, cli
from repalign.comparison import compare
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.features import read_features
from repalign.measures import MEASURES
from repalign.representation import sample_rows
from repalign.sources import ModelEntry, extract, facts_of
from repalign.sources.standins import stand_in
from repalign.store import FeatureStore
from repalign.study import load_study

N = 26
RNG = np.random.default_rng(0)
Z = RNG.standard_normal((N, 4))
A, B = (squareform(pdist(Z + 0.7 * RNG.standard_normal(Z.shape))) for _ in range(2))
STACK = np.stack([A, B])
K = A @ A
IDS = [f"s{i:02d}" for i in range(N)]


def kinds(r):
    """The kinds of all layers of a representation."""
    return set(r.kinds.values())


def rsa(a: np.ndarray, b: np.ndarray) -> float:
    return spearmanr(squareform(a, checks=False), squareform(b, checks=False))[0]


# --- forms ----------------------------------------------------------------------------------------


def _npy(path: Path, array: np.ndarray) -> Path:
    np.save(path / "x.npy", array)
    return path / "x.npy"


def _npz(path: Path, **arrays: object) -> Path:
    np.savez(path / "x.npz", **arrays)  # type: ignore[arg-type]
    return path / "x.npz"


def _pt(path: Path, held: object) -> Path:
    torch.save(held, path / "x.pt")
    return path / "x.pt"


def _safe(path: Path, tensors: dict[str, np.ndarray], **metadata: str) -> Path:
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path / "x.safetensors", metadata=metadata)
    return path / "x.safetensors"


FORMS = {
    "npy": (lambda p: _npy(p, A), ["rdm"], None),
    "npy, float16": (lambda p: _npy(p, A.astype(np.float16)), ["rdm"], None),
    "npy, big-endian": (lambda p: _npy(p, A.astype(">f8")), ["rdm"], None),
    "npy, whole numbers": (lambda p: _npy(p, np.round(100 * A).astype(np.int32)), ["rdm"], None),
    "npy, stack": (lambda p: _npy(p, STACK), ["rdm.0", "rdm.1"], None),
    "npz, as on the bed": (lambda p: _npz(p, rdm=STACK, names=["it", "v1"]), ["it", "v1"], None),
    "npz, a stack without names": (lambda p: _npz(p, rdm=STACK), ["rdm.0", "rdm.1"], None),
    "npz, other names": (lambda p: _npz(p, rdm=STACK, names=["a", "b", "c"]), ["rdm.0", "rdm.1"], None),
    "npz, ids": (lambda p: _npz(p, rdm=A, ids=IDS), ["rdm"], IDS),
    "npz, several": (lambda p: _npz(p, it=A, people=STACK, names=["p", "q"], ids=IDS), ["it", "people.p", "people.q"], IDS),
    "npz, beside features": (lambda p: _npz(p, it=A, vectors=Z, subject=np.arange(N)), ["it"], None),
    "pt": (lambda p: _pt(p, torch.from_numpy(A)), ["rdm"], None),
    "pt, named": (lambda p: _pt(p, {"it": torch.from_numpy(A), "ids": IDS, "epoch": 3}), ["it"], IDS),
    "safetensors": (lambda p: _safe(p, {"it": A, "v1": B}), ["it", "v1"], None),
    "safetensors, ours": (
        lambda p: _safe(p, {"v1": B, "it": A}, layers='["it"]', ids=json.dumps(IDS)), ["it"], IDS,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("write", "names", "ids"), FORMS.values(), ids=FORMS)
def test_forms_of_files(tmp_path, write, names, ids):
    path = write(tmp_path)
    found = read_features(path, kind="rdm")
    assert list(found.layers) == names and found.ids == (None if ids is None else tuple(ids)) and found.n == N
    first = found.layers[names[0]]
    assert isinstance(first, RDM) and first.shape == (N, N) and "an RDM" in found.how
    unit = 100 if "int32" in str(np.load(path).dtype if path.suffix == ".npy" else "") else 1
    np.testing.assert_allclose(first.matrix / unit, A, atol=6e-3)
    (facts,) = facts_of([ModelEntry(f"array:{path}", kind="rdm")])
    assert facts.names == tuple(names) and facts.widths == (N,) * len(names)
    if "vectors" in found.how:
        assert "left out: vectors" in found.how and "subject" in found.how


NOT_SUCH = {
    "condensed": (lambda p: _npy(p, squareform(A)), "x.npy: the condensed form(.|\n)*squareform"),
    "features": (lambda p: _npy(p, Z), r"x.npy: not square(.|\n)*got: shape \(26, 4\)"),
    "no square array": (lambda p: _npz(p, v=squareform(A), x=Z), r"no square array(.|\n)*v \(float64 \(325,\)\)"),
    "asymmetric": (lambda p: _npz(p, it=A, v1=np.triu(B)), "x.npz, v1: not symmetric"),
    "one of a stack": (lambda p: _npz(p, rdm=np.stack([A, K]), names=["it", "v1"]), "rdm, v1: a stimulus has a dissimilarity"),
    "twice the same name": (lambda p: _npz(p, rdm=STACK, names=["it", "it"]), "names do not fit"),
    "ids that do not fit": (lambda p: _npz(p, rdm=A, ids=IDS[:-1]), "ids do not fit the rows"),
    "two sizes": (lambda p: _npz(p, a=A, b=A[:9, :9]), "layers of different row counts"),
    "complex": (lambda p: _npz(p, it=A.astype(complex)), "complex numbers"),
}


@pytest.mark.parametrize(("write", "words"), NOT_SUCH.values(), ids=NOT_SUCH)
def test_files_of_something_else_are_refused(tmp_path, write, words):
    with pytest.raises(RepalignError, match=words):
        read_features(write(tmp_path), kind="rdm")


def test_what_the_caller_says_has_to_go_together(tmp_path):
    frame = pytest.importorskip("pandas").DataFrame(A, columns=[f"c{i}" for i in range(N)])
    frame.to_parquet(tmp_path / "x.parquet")
    for said, words in (
        ({"kind": "rdm"}, r"a table of columns where an RDM(.|\n)*frame.to_numpy"),
        ({"kind": "rdms"}, "unknown kind 'rdms'(.|\n)*rdm"),
        ({"kind": "kernel", "axes": "lnd"}, "axes and kind 'kernel' do not go together"),
        ({"kind": "rdm", "features": "c*"}, "features and kind 'rdm'"),
    ):
        with pytest.raises(RepalignError, match=words):
            read_features(tmp_path / "x.parquet", **said)
    with pytest.raises(RepalignError, match="x: an RDM, and said to be a Kernel"):
        read_features(RDM(A), kind="kernel")
    several = _npz(tmp_path, it=A, v1=B)
    assert list(read_features(several, kind="rdm", vector="v1").layers) == ["v1"]
    assert read_features({"it": RDM(A), "ids": IDS}).ids == tuple(IDS)
    assert read_features(A, kind="rdm").layers["rdm"].kind == "rdm"
    with pytest.raises(RepalignError, match="square and symmetric(.|\n)*--rdm or --kernel"):
        read_features(A)
    with pytest.raises(RepalignError, match="--rdm or --kernel of a stack"):
        read_features(_npz(tmp_path, rdm=STACK, names=["it", "v1"]))
    assert read_features(A, kind="features").layers["features"].shape == (N, N)


# --- a store --------------------------------------------------------------------------------------


@pytest.fixture
def data() -> Dataset:
    """Stimuli of which the files have more, in another order."""
    ids = IDS[3:][::-1]
    return Dataset.from_arrays({"image": np.zeros((len(ids), 1), np.float32)}, ids)


def test_a_store_keeps_what_it_is_and_joins_rows_and_columns(tmp_path, data):
    order = np.random.default_rng(1).permutation(N)
    there = np.ix_(order, order)
    np.savez(tmp_path / "a.npz", rdm=A[there], ids=np.array(IDS)[order])
    np.savez(tmp_path / "b.npz", rdm=STACK[:, ::-1, ::-1], names=["first", "second"], ids=IDS[::-1])
    np.savez(tmp_path / "k.npz", k=K, ids=IDS)
    options = {"modality": "image", "store_dtype": "float64"}
    entries = [
        ModelEntry(f"array:{tmp_path}/{name}.npz", kind=kind, **options)
        for name, kind in (("a", "rdm"), ("b", "rdm"), ("k", "kernel"))
    ]
    with ThreadPoolExecutor(2) as pool:
        extract(data, entries, str(tmp_path / "store"), rows_per_part=7, executor=pool)
    a, b, k = (next(r for r in FeatureStore(tmp_path / "store").representations() if r.name == name) for name in "abk")
    rows = [IDS.index(i) for i in data.ids]
    here = np.ix_(rows, rows)
    assert kinds(a) == kinds(b) == {"rdm"} and kinds(k) == {"kernel"} and a.facts["kind"] == a.manifest["settings"]["kind"] == "rdm"
    assert np.array_equal(a.load("rdm").matrix, A[here]) and np.array_equal(b.load("second").matrix, B[here])
    np.testing.assert_allclose(k.load("k").matrix, K[here], rtol=1e-12)
    assert a.widths == (len(rows),) and b.layers == ("first", "second")
    cells = compare([a], [b], ["RSA()"]).table.query("scope == 'cell'")
    assert list(cells["statistic"]) == pytest.approx([1.0, rsa(A[here], B[here])], abs=1e-9)
    few = sample_rows([a, b], 12, seed=1)
    at = np.ix_(*[[IDS.index(i) for i in few[0].ids]] * 2)
    assert compare(few[:1], few[1:], ["RSA(comparison='pearson')"]).table["statistic"].iloc[2] == pytest.approx(
        np.corrcoef(squareform(A[at]), squareform(B[at]))[0, 1], abs=1e-9
    )
    with pytest.raises(RepalignError, match="k, layer k: RSA"):
        compare([a], [k], ["RSA()"])
    again = extract(data, entries[:1], str(tmp_path / "store"), rows_per_part=7)[0]
    assert again.key == a.key and kinds(again) == {"rdm"}


def test_the_same_file_read_as_another_kind_is_another_extraction(tmp_path, data):
    np.savez(tmp_path / "k.npz", k=np.corrcoef(Z), ids=IDS)
    keys = set()
    for kind in ("kernel", "features"):
        found = extract(data, [ModelEntry(f"array:{tmp_path}/k.npz", modality="image", kind=kind)], tmp_path / "store")[0]
        assert kinds(found) == {kind}
        keys.add(found.key)
    assert len(keys) == 2
    assert "kind" not in ModelEntry("array:x.npy").settings("auto")  # extractions from before keep their key


def test_entries_that_cannot_be_such_are_refused_before_any_work(tmp_path, data):
    with pytest.raises(RepalignError, match="an RDM does not come from hf: models"):
        extract(data, [ModelEntry("hf:gpt2", kind="rdm")], tmp_path / "store")
    with pytest.raises(RepalignError, match="unknown kind 'dissimilarity'"):
        ModelEntry("array:x.npy", kind="dissimilarity")
    assert not (tmp_path / "store").exists()


STUDY = """
name: brain
dataset: {{arrays: {{image: stimuli.npy}}, row_ids: ids.txt}}
models:
  x: [{{spec: "array:brain.npz", name: brain, modality: image, kind: rdm, store_dtype: float64}}]
  y: [{{spec: "array:model.npz", name: model, modality: image}}]
measures: {measures}
{more}
"""


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "stimuli.npy", np.zeros((N, 1), np.float32))
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    np.savez(tmp_path / "brain.npz", rdm=STACK, names=["it", "v1"], ids=IDS)
    np.savez(tmp_path / "model.npz", features=Z[::-1], ids=IDS[::-1])
    return tmp_path


def study(folder: Path, measures: str, more: str = "") -> Path:
    (folder / "study.yaml").write_text(STUDY.format(measures=measures, more=more))
    return folder / "study.yaml"


def test_a_study_of_a_brain_and_a_model(folder, call):
    measures = "[\"RSA(dissimilarity='euclidean')\", SquaredDistanceCorrelation()]"
    alignment = load_study(study(folder, measures)).run().alignment
    cells = alignment.table.query("scope == 'cell' and measure.str.startswith('RSA')", engine="python")
    expected = [rsa(d, squareform(pdist(Z.astype(np.float32)))) for d in STACK]
    assert list(cells["layer_x"]) == ["it", "v1"] and list(cells["statistic"]) == pytest.approx(expected, abs=1e-6)
    status, out, _ = call("extract", folder / "study.yaml")
    assert status == 0 and "26" in out
    for more, words in (
        ("preprocess: {normalize_rows: true, concatenate: true}", "model brain: features alone can be prepared"),
        ("captions: {x: 2}", "brain: a mean is over vectors of features"),
    ):
        with pytest.raises(RepalignError, match=words):
            load_study(study(folder, measures, more)).run()


def test_a_study_refuses_before_anything_is_read(folder):
    with pytest.raises(RepalignError, match=r"model brain: CKA\(kernel='linear'(.|\n)*does not take an RDM"):
        load_study(study(folder, "[RSA(), CKA()]")).run()
    assert not list(folder.rglob("manifest.json"))

@pytest.mark.parametrize("kind", ["rdm", "kernel"])
def test_a_stand_in_is_of_the_same_kind(folder, kind):
    np.savez(folder / "k.npz", k=np.stack([K, K]), ids=IDS)
    file = "brain.npz" if kind == "rdm" else "k.npz"
    asked = ModelEntry(f"array:{folder / file}", modality="image", kind=kind)
    made, notes = stand_in(asked, "image", folder / "models", ids=IDS)
    assert made.kind == kind and not notes
    data = Dataset.from_arrays({"image": np.zeros((N, 1), np.float32)}, IDS)
    found = extract(data, [made], folder / "mock")[0]
    assert kinds(found) == {kind} and found.layers == (("it", "v1") if kind == "rdm" else ("k.0", "k.1"))


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `repalign ...` in this process; (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["repalign", *map(str, arguments)])
        monkeypatch.setattr(cli.out, "width", 160)
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        streams = capsys.readouterr()
        assert "Traceback" not in streams.out + streams.err
        return status, streams.out, streams.err

    return run


def test_pair_on_the_command_line(call, tmp_path):
    np.save(tmp_path / "a.npy", A)
    np.savez(tmp_path / "b.npz", rdm=B[3:, 3:], ids=IDS[3:])
    np.save(tmp_path / "z.npy", Z)
    np.save(tmp_path / "c.npy", B)
    a, b, c, z = (tmp_path / name for name in ("a.npy", "b.npz", "c.npy", "z.npy"))
    for options, first, second, expected in (
        (["--rdm"], a, c, rsa(A, B)),
        (["--kind", "rdm"], a, c, rsa(A, B)),
        (["--kind", "rdm", "--kind", "features"], a, z, rsa(A, squareform(pdist(Z)))),
        (["--kind", "features", "--kind", "rdm"], z, a, rsa(A, squareform(pdist(Z)))),
    ):
        status, out, err = call("pair", first, second, *options, "-m", "RSA(dissimilarity='euclidean')", "--json")
        assert status == 0, err
        row = json.loads(out)[0]
        assert row["statistic"] == pytest.approx(expected, abs=1e-9) and any("an RDM" in line for line in row["how"])
    status, _, err = call("pair", a, b, "--rdm")
    assert status == 1 and "ids in all of them, or in none" in err
    (tmp_path / "a.npy.ids.txt").write_text("\n".join(IDS))
    status, out, err = call("pair", a, b, "--rdm", "--json", "--interval", "jackknife")
    rows = {row["measure"].partition("(")[0]: row for row in json.loads(out)}
    assert set(rows) == {"MutualKNN", "RSA"} and rows["RSA"]["n"] == N - 3 and rows["RSA"]["low"] < rows["RSA"]["statistic"]
    assert rows["RSA"]["statistic"] == pytest.approx(rsa(A[3:, 3:], B[3:, 3:]), abs=1e-9)


def test_what_the_command_line_refuses(call, tmp_path):
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "k.npy", K)
    a, k = tmp_path / "a.npy", tmp_path / "k.npy"
    for arguments, words in (
        (("pair", a, a), "square and symmetric"),
        (("pair", a, k, "--rdm"), "k.npy: a stimulus has a dissimilarity from itself"),
        (("pair", a, k, "--kernel"), "a.npy: dissimilarities, not a kernel"),
        (("pair", a, k, "--rdm", "--kernel"), "--rdm and --kernel both say what the files hold"),
        (("pair", a, k, "--kind", "rdm", "--kind", "kernel", "--kind", "rdm"), "--kind is said 3 times"),
        (("pair", a, k, "--kind", "rdm", "--kind", "kernel", "-m", "RSA()"), "k, layer kernel: RSA"),
        (("pair", a, a, "--rdm", "-m", "CKA()"), "a.npy, layer rdm: CKA"),
        (("difference", a, a, a, "--rdm", "-m", "CKA()"), "a.npy: CKA"),
    ):
        status, _, err = call(*arguments)
        assert status == 1 and words in err, (arguments, err)


def test_difference_and_curve_take_them(call, tmp_path):
    for name, array in {"a": A, "b": B, "z": Z}.items():
        np.save(tmp_path / f"{name}.npy", array)
    files = [tmp_path / f"{name}.npy" for name in "abz"]
    status, out, err = call("difference", *files, "--kind", "rdm", "--kind", "rdm", "--kind", "features", "--json")
    assert status == 0, err
    found = {row["measure"].partition("(")[0]: row for row in json.loads(out)}
    assert set(found) == {"MutualKNN", "RSA"} and found["RSA"]["score_a"] == pytest.approx(rsa(A, B), abs=1e-9)
    status, out, _ = call("curve", files[0], files[1], "--rdm", "--k", 2)
    assert status == 0 and "mutual k-NN" in out


def test_the_listing_says_what_a_measure_takes(call):
    for name, said in (
        ("RSA", "takes: features, or dissimilarities as such (RDM, --rdm)"),
        ("CKA", "takes: features, or a kernel as such (Kernel, --kernel); with other parameters dissimilarities"),
        ("CKA(kernel='rbf')", "takes: features, or dissimilarities as such"),
        ("MutualKNN", "takes: features, or dissimilarities as such (RDM, --rdm), or a kernel as such"),
        ("Procrustes", "takes: features\n"),
    ):
        status, out, _ = call("measures", name)
        assert status == 0 and said in out, out


# --- the pages ------------------------------------------------------------------------------------

PAGES = Path(__file__).resolve().parents[1] / "docs"


def test_the_page_lists_what_every_measure_takes():
    section = (PAGES / "choosing.md").read_text("utf-8").split("## When there are no features")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (RDM|Kernel) \| ([\w, ]+) \|", section, flags=re.M)
    listed = {(name, kind.lower()) for kind, names in rows for name in names.split(", ")}
    assert listed == {(cls.__name__, kind) for cls in MEASURES for kind in cls.takes - {"features"}}
