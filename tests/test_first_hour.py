"""What a user writes first: many arrays, frames, files and folders at once, and results by the name that was typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import repalign
from repalign import cli
from repalign.errors import RepalignError
from repalign.measures import CKA


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


def test_rooms_are_there_in_a_fresh_session():
    code = "import repalign; print(*(getattr(repalign, n).__name__ for n in ('relate', 'plot', 'aggregate', 'competence')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [f"repalign.{n}" for n in ("relate", "figures", "aggregate", "competence")], done.stderr


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
