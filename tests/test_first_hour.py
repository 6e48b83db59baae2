"""What a user writes first: many arrays, frames, files and folders at once, and results by the name that was typed."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import repalign
from repalign import cli
from repalign.errors import RepalignError
from repalign.measures import CKA

pytestmark = pytest.mark.usefixtures("plain_pictures")


@pytest.fixture
def several(tmp_path: Path) -> dict[str, np.ndarray]:
    """Three models of one world, also as files in a folder."""
    rng = np.random.default_rng(3)
    world = rng.standard_normal((60, 5))
    widths = {"a": 4, "b": 3, "c": 6}
    arrays = {name: world @ rng.standard_normal((5, d)) + rng.standard_normal((60, d)) for name, d in widths.items()}
    (tmp_path / "files").mkdir()
    for name, x in arrays.items():
        np.save(tmp_path / "files" / f"{name}.npy", x)
    return arrays


def test_many_arrays_files_and_folders_give_one_table(several, tmp_path):
    want = [CKA()(several[a], several[b]) for a, b in ("ab", "ac", "bc")]
    files = sorted((tmp_path / "files").iterdir())
    for given in (several, {k: pd.DataFrame(v) for k, v in several.items()}, files, tmp_path / "files", [str(tmp_path / "files")]):
        found = repalign.compare(given, measures="cka")
        pairs = found.rows("max", "cka")
        assert (pairs["model_x"] + pairs["model_y"]).tolist() == ["ab", "ac", "bc"]
        np.testing.assert_allclose(pairs["statistic"], want, rtol=1e-9)
        assert found.run["how"][0] == "row i of one is paired with row i of the other: nothing names the rows"
    sided = repalign.compare({"a": several["a"]}, {"b": several["b"], "c": [several["c"], several["c"][:, :2]]}, measures="cka")
    np.testing.assert_allclose(sided.matrix("CKA()").to_numpy()[0, 0], want[0], rtol=1e-9)
    assert sided.layer_map("a", "c").columns.tolist() == ["layer.0", "layer.1"]
    folder = repalign.compare({"all": tmp_path / "files", "a": several["a"]}, measures="cka")
    assert folder.layer_map().index.tolist() == ["a", "b", "c"] and folder.layer_map().loc["a", "features"] == pytest.approx(1)


def test_rows_of_many_are_joined_on_their_ids(several):
    ids = [f"s{i}" for i in range(60)]
    frames = {k: pd.DataFrame(v, index=ids) for k, v in several.items()}
    frames["b"] = frames["b"].sample(frac=1, random_state=0).iloc[5:]
    found = repalign.compare(frames, measures="cka")
    kept = [i for i in range(60) if ids[i] in set(frames["b"].index)]
    assert found.rows("max")["n"].tolist() == [55] * 3
    np.testing.assert_allclose(found.matrix().loc["a", "b"], CKA()(several["a"][kept], several["b"][kept]), rtol=1e-9)


NONE, NO_LIST = "nothing to compare", "no list of models"
X = np.ones((20, 2)) * np.arange(20)[:, None]


@pytest.mark.parametrize(
    "given, problem",
    [([], NONE), ({}, NONE), ({"a": X}, NONE), ([1, 2], NO_LIST), ([X], NO_LIST), ("nowhere", "no such file or folder")],
)
def test_what_is_no_list_of_models_is_refused(given, problem):
    with pytest.raises(RepalignError, match=problem):
        repalign.compare(given)


def test_results_go_by_the_name_that_was_typed(several):
    found = repalign.compare(several, measures=["mutual_knn(k=3)", "mutual_knn(k=5)", "cka", "biased_cka"])
    third, fifth, cka, biased = found.measures
    names = {"cka": cka, "CKA()": cka, CKA(): cka, "biased_cka": biased, "mutual_knn(k=5)": fifth, third: third}
    for asked, meant in {**names, "Mutual k-NN (k = 3, cosine)": third}.items():
        assert found.best(asked)["measure"].unique().tolist() == [meant] and found.matrix(asked).equals(found.matrix(meant))
    with pytest.raises(RepalignError, match=r"'mutual_knn' means several measures(.|\n)*k=3(.|\n)*k=5"):
        found.best("mutual_knn")
    with pytest.raises(RepalignError, match="no measure 'rsa' in the result"):
        found.layer_map(measure="rsa")
    assert repalign.figures.matrix(found, measure="mutual_knn(k=3)").axes


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `repalign ...` here, in this process; (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["repalign", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def test_files_and_folders_on_the_command_line(several, tmp_path, command):
    """Every file is a model; table, figures and report lie in one folder."""
    status, out, err = command("compare", "files", "-m", "cka", "--x", "a", "--y", "b", "--y", "c")
    assert status == 0 and "a [features]" in out and "row i of one is paired with row i of the other" in err
    made = tmp_path / "repalign-results"
    assert {"results.parquet", "run.json", "report.html"} <= {p.name for p in made.iterdir()}
    assert list((made / "figures").glob("*.svg"))
    found = repalign.Alignment.load(made)
    np.testing.assert_allclose(found.matrix("cka").loc["a", "c"], CKA()(several["a"], several["c"]), rtol=1e-9)
    assert found.matrix("cka").shape == (1, 2)


def test_what_cannot_be_compared_is_told_on_the_command_line(several, tmp_path, command):
    (tmp_path / "empty").mkdir()
    for words, problem in (
        (("files", "--x", "d"), "no model 'd'"),
        (("files/a.npy", "file/b.npy"), "there is no such file or folder"),
        (("empty", "--rows"), "--rows is said of files of features"),
        (("files/a.npy",), "nothing to compare"),
    ):
        status, _, err = command("compare", *words)
        assert status and problem in err and "Traceback" not in err


# --- twelve jobs of a first hour: each from an empty folder, in at most six lines or two commands --------------------

IDS = [f"photo-{i}" for i in range(60)]
STUDY = """
name: first
models: ["array:a.npy", "array:b.npy"]
measures: ["cka"]
"""


def features(folder: Path) -> dict[str, np.ndarray]:
    """Five models of one world as .npy, the same as .npz of two layers each, one as HDF5 and one as CSV with ids."""
    rng = np.random.default_rng(0)
    world = rng.standard_normal((60, 4))
    arrays = {name: world @ rng.standard_normal((4, 6)) + 0.5 * rng.standard_normal((60, 6)) for name in "abcde"}
    (folder / "layered").mkdir()
    for name, x in arrays.items():
        np.save(folder / f"{name}.npy", x)
        np.savez(folder / "layered" / f"{name}.npz", early=x[:, :2], late=x)
    pd.DataFrame(arrays["b"], columns=[f"f{i}" for i in range(6)], index=pd.Index(IDS, name="id"))[::-1].to_csv(folder / "b.csv")
    h5py = pytest.importorskip("h5py", reason="needs the extra repalign[files]")
    with h5py.File(folder / "a.h5", "w") as file:
        file["late"], file["ids"] = arrays["a"], np.array(IDS, dtype="S")
    return arrays


def in_memory(folder: Path) -> dict[str, object]:
    """A module, a CLIP with its processor, a SentenceTransformer and a frame of captions."""
    import torch
    import transformers as hf
    from sentence_transformers import SentenceTransformer

    import tiny_models as tiny

    tiny.clip(folder / "clip")
    parts = hf.CLIPImageProcessor.from_pretrained(folder / "clip"), hf.AutoTokenizer.from_pretrained(folder / "clip")
    torch.manual_seed(0)
    return {
        "net": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)),
        "transform": lambda image: torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1) / 255,
        "clip": hf.CLIPModel.from_pretrained(folder / "clip"),
        "processor": hf.CLIPProcessor(image_processor=parts[0], tokenizer=parts[1]),
        "encoder": SentenceTransformer(
            str(tiny.sentence_transformer(folder / "st", tiny.bert(folder / "bert", pooler=True))), device="cpu"
        ),
        "captions": pd.DataFrame({"caption": list(tiny.CAPTIONS), "label": range(len(tiny.CAPTIONS))}),
    }


FRAMES = """
frame_a, frame_b = pd.DataFrame(a, index=ids), pd.DataFrame(b, index=ids)[::-1]
result = repalign.pair(frame_a, frame_b, "cka")
print(result)
"""
MODULE = """
data = repalign.Dataset.toy(40)
models = repalign.extract(data, [repalign.Model(net, modality="image", preprocess=transform)])
result = repalign.compare(models, repalign.extract(data, ["toy:vision-pixels"]), "cka")
print(result.layer_map())
"""
CLIP = """
data = repalign.Dataset.toy(40)
result = repalign.compare(repalign.extract(data, [(clip, processor)]), measures="mutual_knn(k=5)")
print(result)
"""
CAPTIONS = """
data = repalign.Dataset.from_table(captions, text="caption")
(found,) = repalign.extract(data, [encoder])
print(found.load(found.layers[-1]).shape)
"""
LATEX = """
result = repalign.compare({"a": a, "b": b}, {"c": c}, "cka")
print(result.to_latex("table.tex"))
"""
AXES = """
import matplotlib.pyplot as plt
result = repalign.compare({"a": a, "b": b}, {"c": c}, "cka")
figure, grid = plt.subplots(1, 2, figsize=(8, 3))
axes = repalign.figures.matrix(result, ax=grid[1], title="CKA", labels={"a": "Ours"})
figure.savefig("figure.svg")
"""


@pytest.mark.parametrize(
    "code, made, said",
    [
        (FRAMES, features, "x [features]"), (MODULE, in_memory, "layer_y"), (CLIP, in_memory, "CLIPModel-text"),
        (CAPTIONS, in_memory, "torch.Size"), (LATEX, features, r"\toprule"), (AXES, features, ""),
    ],
    ids=["two frames", "a module", "a CLIP", "captions", "LaTeX", "axes"],
)  # fmt: skip
def test_a_job_in_six_lines(code, made, said, tmp_path, monkeypatch, capsys):
    assert len(code.strip().splitlines()) <= 6
    monkeypatch.chdir(tmp_path)
    names = {"repalign": repalign, "pd": pd, "np": np, "ids": IDS, **made(tmp_path)}
    exec(code, names)
    assert said in capsys.readouterr().out
    if code is FRAMES:
        np.testing.assert_allclose(names["result"].matrix().to_numpy(), CKA()(names["a"], names["b"]), rtol=1e-9)
    if code is LATEX:
        assert r"\bottomrule" in (tmp_path / "table.tex").read_text()
    if code is AXES:
        assert names["axes"] is names["grid"][1] and "Ours" in (tmp_path / "figure.svg").read_text()


RENAMED = STUDY.replace("first", "second")
TWO_MISTAKES = STUDY.replace("b.npy", "z.npy").replace("cka", "kca")
FILES = {"study.yaml": STUDY, "renamed.yaml": RENAMED, "mistaken.yaml": TWO_MISTAKES}
JOBS = {
    "five files": [("compare", "a.npy", "b.npy", "c.npy", "d.npy", "e.npy")],
    "a folder of layers": [("compare", "layered")],
    "HDF5 and CSV": [("pair", "a.h5", "b.csv", "-m", "cka")],
    "two mistakes": [("run", "mistaken.yaml")],
    "a renamed study": [("run", "study.yaml"), ("run", "renamed.yaml")],
    "what a pair leaves behind": [("pair", "a.npy", "b.npy", "--out", "kept"), ("report", "kept")],
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_in_two_commands(name, tmp_path, command):
    arrays = features(tmp_path)
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    before = {p.name for p in tmp_path.iterdir()}
    said = [command(*words) for words in JOBS[name]]
    assert len(said) <= 2 and not any("Traceback" in out + err for _, out, err in said)
    status, out, err = said[-1]
    if name == "two mistakes":
        assert status == 1 and "z.npy" in err and "kca" in err and before == {p.name for p in tmp_path.iterdir()}
        return
    assert status == 0, err
    if name == "HDF5 and CSV":
        assert "joined on 60 ids" in err and f"{CKA()(arrays['a'], arrays['b']):.3g}"[:4] in out
    elif name == "a renamed study":
        assert (tmp_path / "runs/second/report.html").is_file()
    elif name == "what a pair leaves behind":
        assert {"report.html", "results.parquet"} <= {p.name for p in (tmp_path / "kept").iterdir()}
    else:
        assert repalign.Alignment.load(tmp_path / "repalign-results").matrix("cka").loc["a", "b"] > 0


@pytest.mark.parametrize("words", [w for jobs in JOBS.values() for w in jobs], ids=" ".join)
def test_whatever_is_misspelt_is_told_without_a_traceback(words, tmp_path, command):
    """Each of the first words in turn with a letter twice, a letter less, and gone."""
    features(tmp_path)
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    for i, word in enumerate(words[:3]):
        for other in (word[:1] + word, word[:-1], None):
            changed = [*words[:i], *([] if other is None else [other]), *words[i + 1 :]]
            status, out, err = command(*changed)
            assert "Traceback" not in out + err and (status in (0, 1, 2)), changed
            assert status == 0 or err.strip() or out.strip(), changed


def test_a_log_has_the_time_left(several, tmp_path, command, monkeypatch):
    """Without a terminal there is a line for what takes long; here every look at the clock is half a minute later."""
    from repalign.cli import _console

    clock = iter(range(0, 10**6, 31))
    monkeypatch.setattr(_console.Lines, "keep_telling", lambda *_: None)
    monkeypatch.setattr(_console, "Lines", functools.partial(_console.Lines, lambda: next(clock)))
    status, _, err = command("compare", "files", "-m", "cka")
    assert status == 0 and re.search(r"compare: \d of 3, .+ an? (minute|second|hour), about .+ left", err), err
