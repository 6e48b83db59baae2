"""The study file: what is right runs, what is wrong is told with field and line."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from repalign.errors import RepalignError
from repalign.sources.toy import Toy
from repalign.study import load_study

GOOD = """\
name: pairs
dataset:
  arrays: {thing: thing.npy}
  row_ids: ids.txt
models:
  x:
    - {spec: "array:x.npy", name: mine, modality: thing, ids: rows, family: f, scores: {probe_accuracy: 0.5}}
  y:
    - {spec: "array:y.npy", name: theirs, modality: thing, ids: rows}
measures: ["CKA()", "MutualKNN(k=5)"]
null: {method: permutation, draws: 19, seed: 3}
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 8))
    np.save(tmp_path / "thing.npy", np.arange(60.0)[:, None])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x @ rng.standard_normal((8, 12)) + 0.2 * rng.standard_normal((60, 12)))
    (tmp_path / "ids.txt").write_text("\n".join(f"s{i}" for i in range(60)))
    (tmp_path / "study.yaml").write_text(GOOD)
    return tmp_path


def changed(folder, old: str, new: str):
    assert old in GOOD
    path = folder / "changed.yaml"
    path.write_text(GOOD.replace(old, new))
    return path


def test_a_study_runs_and_says_what_it_was(folder):
    told = []
    result = load_study(folder / "study.yaml").run(on_plan=told.append).alignment
    best = result.best("CKA(kernel='linear', estimator='debiased', bandwidth=None, epsilon=0.0)").iloc[0]
    assert (best.model_x, best.model_y, best.n, best.n_draws, best.seed) == ("mine", "theirs", 60, 19, 3)
    assert best.pvalue == 0.05 and best.statistic > 0.5
    assert (folder / "runs/pairs/results/results.parquet").is_file()
    assert (folder / "runs/pairs/report.html").is_file()
    models = {m["name"]: m for m in result.run["models"]}
    assert models["mine"]["scores"] == {"probe_accuracy": 0.5} and models["mine"]["family"] == "f"
    assert result.run["study"]["name"] == "pairs" and result.run["dataset"]["n"] == 60
    assert any("1 pair of models" in line for line in told[0].lines)


def test_a_study_under_another_name_extracts_nothing_again(tmp_path, monkeypatch):
    """Features are found by what was asked for, of which the name of the study and of its file are no part."""
    passes, forward = [], Toy.forward
    monkeypatch.setattr(Toy, "forward", lambda model, rows: passes.append(len(rows)) or forward(model, rows))
    text = (
        "name: {}\ndataset: {{toy: {{n: 40}}}}\nmodels: {{x: ['toy:vision-pixels'], y: ['toy:language-bag']}}\n"
        "measures: ['MutualKNN(k=5)']\nnull: {{method: permutation, draws: 19}}\n"
    )
    path, other = tmp_path / "study.yaml", tmp_path / "renamed.yaml"
    path.write_text(text.format("before"))
    first = load_study(path).run().alignment
    assert sum(passes) == 80 and (tmp_path / "runs/store").is_dir()
    passes.clear()
    other.write_text(text.format("after"))
    again = load_study(other).run().alignment
    assert passes == []
    pd.testing.assert_frame_equal(first.table, again.table)
    assert not (tmp_path / "runs/after/store").exists() and (tmp_path / "runs/after/results/results.parquet").is_file()


def test_relative_paths_start_from_the_study(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    study = load_study(folder / "study.yaml")
    assert study.x[0].spec == f"array:{folder / 'x.npy'}"
    assert any("1 pair of models" in line for line in study.plan().lines)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("measures:", "mesures:", r"line 10, mesures: there is no field 'mesures'(.|\n)*did you mean 'measures'"),
        ("row_ids:", "row_idz:", r"line 4, dataset.row_idz: there is no field(.|\n)*did you mean 'row_ids'"),
        ("seed: 3", "sed: 3", r"line 11, null.sed: there is no field 'sed'(.|\n)*did you mean 'seed'"),
        ("ids: rows, family", "idz: rows, family", r"line 7, models.x\[0\].idz: there is no field 'idz'"),
        ("draws: 19", "draws: many", r"line 11, null.draws: the wrong kind of value\n  expected: a whole number(.|\n)*'many'"),
        ("draws: 19", "draws: 0", r"line 11, null.draws: out of range\n  expected: a number greater than or equal to 1"),
        ("draws: 19", "draws: yes", r"line 11, null.draws: the wrong kind of value\n  expected: a whole number\n  got: true"),
        ("name: theirs", "name: theirs, scores: {a: off}", r"line 9, models.y\[0\].scores.a: the wrong kind(.|\n)*a number"),
        ("method: permutation", "method: permute", r"line 11, null.method: unknown null 'permute'(.|\n)*'permutation'"),
        ('"CKA()"', '"CKAA()"', r"line 10, measures\[0\]: unknown measure 'CKAA'(.|\n)*did you mean 'CKA'"),
        ("MutualKNN(k=5)", "MutualKNN(kk=5)", r"line 10, measures\[1\]: (.|\n)*'kk'(.|\n)*'k'"),
        ("array:x.npy", "arry:x.npy", r"line 7, models.x\[0\]: model spec 'arry:x.npy'(.|\n)*did you mean 'array'"),
        ("array:x.npy", "bloomz-560mm", r"line 7, models.x\[0\]: no known model(.|\n)*did you mean 'bloomz-560m'"),
        ("ids: rows, family", "ids: row, family", r"line 7, models.x\[0\]: (.|\n)*unknown ids 'row'(.|\n)*'rows'"),
        ("name: theirs", "name: theirs, caption: -1", r"line 9, models.y\[0\].caption: out of range\n  expected: a number greater"),
        ("measures:", "preset: platonic\nmeasures:", r"line 10, preset: (.|\n)*did you mean 'platonic-rep'"),
        ("measures:", "search: maxx\nmeasures:", r"line 10, search: unknown layer search 'maxx'"),
        ("measures:", "preprocess: {clip: exakt}\nmeasures:", r"line 10, preprocess: (.|\n)*'exakt'(.|\n)*'exact'"),
        ("null:", "name: twice\nnull:", r"line 11: name stands twice(.|\n)*first on line 1"),
        ("models:", "models: [", r"changed.yaml, line \d+: this is not YAML"),
    ],
)
def test_what_is_wrong_is_told_with_field_and_line(folder, old, new, message):
    with pytest.raises(RepalignError, match=message):
        load_study(changed(folder, old, new))


def test_names_must_differ_and_files_must_exist(folder):
    double = '  y:\n    - {spec: "array:x.npy", name: theirs, modality: thing, ids: rows}\n'
    with pytest.raises(RepalignError, match=r"two models are called 'theirs'"):
        load_study(changed(folder, "  y:\n", double))
    with pytest.raises(RepalignError, match="the study cannot be read"):
        load_study(folder / "nothing.yaml")
    gone = load_study(changed(folder, "array:x.npy", "array:gone.npy"))
    with pytest.raises(RepalignError, match="there is no file"):
        gone.run()


def test_sets_and_known_models_expand(folder):
    one = '    - {spec: "array:y.npy"'
    study = load_study(changed(folder, one, "    - {set: prh-val, modality: image}\n" + one))
    assert study.y is not None and len(study.y) == 18
    assert study.y[0].spec.startswith("timm:") and study.y[0].family
    mine = '{spec: "array:x.npy", name: mine, modality: thing, ids: rows, family: f, scores: {probe_accuracy: 0.5}}'
    known = load_study(changed(folder, mine, "llama-7b"))
    assert known.x[0].spec.startswith("hf:huggyllama/llama-7b") and known.x[0].name == "llama-7b"
    ours = load_study(changed(folder, mine, "{spec: llama-7b, name: ours, family: own}")).x[0]  # the file's word counts more
    assert (ours.spec, ours.name, ours.family, ours.objective) == (known.x[0].spec, "ours", "own", "next word")


def test_captions_are_counted_from_the_one_that_a_model_names(folder):
    study = load_study(changed(folder, "ids: rows, family", "ids: rows, caption: 2, family"))
    assert [e.caption for e in study.variants[0].captioned[0][0]] == [2]
    (folder / "changed.yaml").write_text((folder / "changed.yaml").read_text() + "captions: {x: 3}\n")
    x, y = load_study(folder / "changed.yaml").variants[0].captioned
    assert [[e.caption for e in side[0]] for side in (x, y)] == [[2, 3, 4], [0]]


def test_the_example_study_is_valid_and_plans():
    from pathlib import Path

    study = load_study(Path(__file__).parents[1] / "studies/example.yaml")
    assert any("9 pairs of models" in line for line in study.plan().lines)


# --- models of the hub that lie in a folder ---------------------------------------------------------

ON_THE_HUB = """\
dataset: {folder: images}
models:
  x: [{spec: "timm:tiny_cnn.a", family: f, scores: {top1: 60}}]
  y: ["timm:tiny_cnn.b"]
measures: ["CKA()"]
null: {method: permutation, draws: 19}
ceilings: {replicates: [["timm:tiny_cnn.a", "timm:tiny_cnn.b"]]}
variants: {all: {}, half: {rows: {n: 12}}}
"""


@pytest.fixture
def on_the_hub(tmp_path):
    """A study of two models that are not on this machine by their names, and the folder that holds one of them."""
    pytest.importorskip("timm")
    from PIL import Image

    import tiny_models

    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"images/{i:02d}.png")
    tiny_models.timm_cnn(tmp_path / "here/tiny_cnn.a")
    tiny_models.timm_cnn(tmp_path / "here/tiny_cnn.b")
    (tmp_path / "zoo.yaml").write_text(ON_THE_HUB)
    return tmp_path


def test_models_of_the_hub_are_read_from_a_folder_under_their_names(on_the_hub):
    study = load_study(on_the_hub / "zoo.yaml").with_local(on_the_hub / "here")
    place = on_the_hub / "here/tiny_cnn.a"
    told = f"tiny_cnn.a: {place} in the place of timm:tiny_cnn.a"
    assert told in study.plan().lines
    assert [e.label for v in study.variants for e in (*v.x, *v.y)] == ["tiny_cnn.a", "tiny_cnn.b"] * 2
    assert study.mock().run().alignments["all"].run.get("how") is None  # stand-ins are in the place of both
    for alignment in study.run().alignments.values():
        mine, theirs = alignment.run["models"]
        assert (mine["name"], mine["spec"], mine["family"], mine["scores"]) == ("tiny_cnn.a", f"timm:{place}", "f", {"top1": 60})
        assert theirs["name"] == "tiny_cnn.b" and told in alignment.run["how"]
        assert alignment.run["ceilings"][0]["model_y"] == "tiny_cnn.b"  # the file names both by their specs


def test_what_the_folder_lacks_stays_on_the_hub(on_the_hub):
    shutil.rmtree(on_the_hub / "here/tiny_cnn.b")
    study = load_study(on_the_hub / "zoo.yaml").with_local(on_the_hub / "here")
    assert study.local == {"tiny_cnn.a": "timm:tiny_cnn.a"} and study.y[0].spec == "timm:tiny_cnn.b"
    tiny = on_the_hub / "there/tiny_cnn.b"
    shutil.copytree(on_the_hub / "here/tiny_cnn.a", tiny)
    both = load_study(on_the_hub / "zoo.yaml").with_local(on_the_hub / "here", on_the_hub / "there")
    assert both.local == {name: f"timm:{name}" for name in ("tiny_cnn.a", "tiny_cnn.b")} and both.y[0].spec == f"timm:{tiny}"


def test_a_folder_without_any_of_the_models_is_refused(on_the_hub, folder):
    study = load_study(on_the_hub / "zoo.yaml")
    with pytest.raises(RepalignError, match=r"images holds none of the study's models\n  expected: .*images.tiny_cnn.a"):
        study.with_local(on_the_hub / "images")
    with pytest.raises(RepalignError, match="got: no such folder"):
        study.with_local(on_the_hub / "nowhere")
    with pytest.raises(RepalignError, match="expected: a study with models of the hub"):
        load_study(folder / "study.yaml").with_local(on_the_hub / "here")
    (folder / "theory.yaml").write_text("experiment: self_consuming\n")
    with pytest.raises(RepalignError, match="only a study that compares models"):
        load_study(folder / "theory.yaml").with_local(on_the_hub / "here")
