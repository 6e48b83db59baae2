"""What docs/architecture.md says under "Adding things", done word for word in a copy of the program, and run.

The page is applied as it stands: a file that it gives whole is written, a line that it changes must be in the file once. All
additions stand in one copy, where one process runs the commands and another the tests that guard a half-done addition.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import wave
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from repalign.comparison import Preprocess, pair
from repalign.comparison.alignment import COLUMNS, Alignment
from repalign.sources import ModelEntry, extract
from repalign.study import config as blocks
from repalign.study import load_study
from repalign.study.base import Block

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
ADDITIONS = (
    "A measure", "A source of models", "A kind of stimulus", "A null", "A figure", "A field of study files",
    "A column of the result",
)  # fmt: skip
BLOCK = re.compile(r"^(New file|In) `([^`]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", flags=re.M | re.S)
STEPS = [step.groups() for step in BLOCK.finditer(PAGE)]

# What a run writes, by the names that the page uses.
WRITTEN = ("runs/store/", "results/findings/", "results/tiles/", "figures/", ".parquet", ".json", ".html")

# Runs commands one after the other in one process, so that torch is loaded once; prints what each said, and its status.
COMMANDS = """
import contextlib, io, json, sys, warnings
warnings.simplefilter("error")
from repalign.cli import main
told = {}
for name, words in json.loads(sys.argv[1]).items():
    sys.argv, out, err, status = ["repalign", *words], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
    told[name] = status, out.getvalue(), err.getvalue()
import oracles, repalign.testing
from repalign.comparison import Alignment
from repalign.measures import MEASURES
(case,) = (c for c in oracles.CASES if type(c.measure).__name__ == "CauchyCKA")
assert type(case.measure) in MEASURES and case.oracle is not None
repalign.testing.check_measure(case.measure, case.oracle)
told["before"] = 0, "", str(Alignment.load("before").table["n_cells"].isna().all())
print(json.dumps(told))
"""

# Tests of the copy that ask whether an addition is whole.
GUARDS = (
    "test_measure_names.py::test_no_measure_is_forgotten",
    "test_null_exact.py::test_every_null_is_exact[shifts]",
    "test_null_exact.py::test_every_null_is_told_of",
    "test_models.py::test_every_scheme_and_every_example_is_parsed",
    "test_dataset.py::test_every_kind_is_made_up_read_named_and_distorted[audio]",
    "test_dataset.py::test_every_kind_of_files_is_checked_and_read_from_folders_and_the_hub[audio]",
    "test_dataset_distort.py::test_the_page_tells_kinds_and_captions_as_they_are",
    "test_figure_kinds.py::test_every_kind_has_a_case_and_is_told_of",
    "test_figure_kinds.py::test_a_kind_is_drawn_with_a_table_and_a_text[spread]",
    "test_adding.py::test_every_field_of_a_study_is_read_and_told",
    "test_adding.py::test_every_column_of_the_result_is_filled",
    "test_architecture.py::test_the_stated_order_names_every_module",
    "test_architecture.py::test_imports_run_one_way",
    "test_architecture.py::test_measures_stand_alone",
)

LETTERS = """
name: letters
dataset: {table: texts.csv, id: id, text: text}
models: ["letters:aeiou", {spec: "letters:rstln", name: consonants}, {spec: "letters:etaoin", layers: [large]}]
measures: ["CKA()"]
figures: [{spread: {steps: 2, color: red}}]
"""
# A model of sounds: how loud they are in eight parts of time.
EARS = """
from types import SimpleNamespace
import torch

def parts(samples):
    return torch.from_numpy(samples[:800].reshape(8, 100)).square().mean(1).sqrt()

def build():
    torch.manual_seed(0)
    return SimpleNamespace(module=torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh()), preprocess=parts, modality="audio")
"""
SOUNDS = """
name: sounds
store: sounds-store
dataset: {table: sounds.csv, id: id, audio: clip, text: text, distort: {audio: {kind: hiss, amount: 0.01}}}
models: {x: ["torch:./ears.py:build"], y: ["letters:aeiou", "letters:rstln"]}
measures: ["CKA()"]
"""
# What is wrong with it, and what is said.
WRONG = {
    "a1": ("letters:aeiou", "letters:a1", "is not of the form letters:alphabet"),
    "prompt": ('"letters:aeiou"', '{spec: "letters:aeiou", prompt: "so: {caption}"}', "a prompt does not go with letters: models"),
    "option": ("steps:", "step:", "figure spread has no option 'step'"),
    "kind": ("text: text}", "txt: text}", "line 3, dataset.txt: there is no field 'txt'[^!]*did you mean 'text'"),
    "field": ("measures:", "leave_out: [consonant]\nmeasures:", r"line 5, leave_out\[0\]: the study has no model 'consonant'"),
}


def applied(file: str, hunks: str, text: str) -> str:
    """A file's text with the lines of a block changed; what goes or stays must be there once."""
    for hunk in hunks.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        assert {line[0] for line in lines} <= set(" +-"), f"{file}: no form of a change:\n{hunk}"
        before, after = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
        assert text.count(before) == 1, f"{file}: the page speaks of lines that are there {text.count(before)} times:\n{before}"
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the program with everything that the page adds, data, and a result of the program before."""
    home = tmp_path_factory.mktemp("house")
    for part in ("src", "tests", "docs", "studies"):  # with compiled files, which fit as long as times are kept
        shutil.copytree(ROOT / part, home / part)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, home)
    for what, name, block in STEPS:
        path = home / name
        assert path.is_file() == (what == "In"), f"{what} {name}"
        path.write_text(block if what == "New file" else applied(name, block, path.read_text("utf-8")), "utf-8")
    words = "a quick brown fox jumps over one lazy dog while seven small stones lie still by the river".split()  # noqa: SIM905
    texts = [" ".join(words[(i * k) % len(words)] for k in range(1, 9)) for i in range(40)]
    lines = [f"t{i},{text.title() if i % 3 else text}" for i, text in enumerate(texts)]
    (home / "texts.csv").write_text("\n".join(["id,text", *lines]) + "\n")
    studies = {"letters": LETTERS, **{name: LETTERS.replace(old, new) for name, (old, new, _) in WRONG.items()}}
    (home / "ears.py").write_text(EARS)
    (home / "clips").mkdir()
    for i, text in enumerate(texts):
        samples = np.sin(np.outer(1 + np.arange(8), np.arange(800) / 9)).T @ [text.count(c) for c in "aeiourst"]
        with wave.open(str(home / f"clips/t{i}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((samples * 500).astype("<i2").tobytes())
        (home / f"clips/t{i}.txt").write_text(text)
    (home / "sounds.csv").write_text("id,clip,text\n" + "".join(f"t{i},clips/t{i}.wav,{text}\n" for i, text in enumerate(texts)))
    studies["sounds"] = SOUNDS
    of_folder = SOUNDS.replace("table: sounds.csv, id: id, audio: clip, text: text", "folder: clips")
    studies["folder"] = of_folder.replace("sounds", "folder")
    studies["without"] = LETTERS.replace("name: letters", "name: without\nleave_out: [consonants]")
    for name, text in studies.items():
        (home / f"{name}.yaml").write_text(text)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3))
    for name, array in {"x": x, "y": x @ rng.standard_normal((3, 4))}.items():
        np.save(home / f"{name}.npy", array)
    pair(x, x + 1, "CKA()", "permutation").save(home / "before")
    return home


def started(house: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(house / "src"), str(house / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "HF_HUB_OFFLINE": "1", **more}
    given = {"cwd": house, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, *arguments], **given)


@pytest.fixture(scope="module")
def told(house) -> dict[str, tuple[int, str, str]]:
    """The status of every command in the copy, its output, and what it said beside."""
    commands = {
        "measures": ["measures", "kernel"],
        "cauchy": ["pair", "x.npy", "y.npy", "-m", "CauchyCKA()", "--json"],
        "models": ["models"],
        "plan": ["run", "letters.yaml", "--plan"],
        "mock": ["run", "letters.yaml", "--mock"],
        "run": ["run", "letters.yaml"],
        **{f"{name} {how}": ["run", f"{name}.yaml", *([f"--{how}"] if how else [])] for name in ("sounds", "folder")
           for how in ("plan", "mock", "")},
        "shifts": ["pair", "x.npy", "y.npy", "-m", "CKA()", "--null", "shifts", "--draws", "59", "--json"],
        "shift": ["pair", "x.npy", "y.npy", "--null", "shift"],
        "without": ["run", "without.yaml"],
        **{name: ["run", f"{name}.yaml"] for name in WRONG},
    }
    done = started(house, "-c", COMMANDS, json.dumps(commands))
    said, _ = done.communicate(timeout=300)
    assert done.returncode == 0, said
    return json.loads(said.splitlines()[-1])


def test_the_page_has_every_addition():
    page = PAGE[PAGE.index("## Adding things") :]
    titles = re.findall(r"^### (.+)$", page, flags=re.M)
    assert titles == [*ADDITIONS, "Other things"]
    assert len(STEPS) == len(re.findall(r"^```(python|diff)$", page, flags=re.M)), "a block without the name of its file"


def test_the_page_names_what_is_there():
    """Files, and what stands behind the name of a file, a module or a class; of the tables and sentences, not the blocks."""
    text = re.sub(r"^```.*?^```", "", BLOCK.sub("", PAGE), flags=re.M | re.S)
    names = [name for quoted in re.findall(r"`([^`\n]+)`", text) for name in re.findall(r"[A-Za-z_][\w./]*", quoted)]
    source = ROOT / "src/repalign"
    code = "\n".join(p.read_text("utf-8") for p in source.rglob("*.py"))
    defined = {*re.findall(r"\b(?:def|class) (\w+)", code), *re.findall(r"^(\w+)\b.*=", code, flags=re.M)}
    for name in {n for n in names if n.endswith((".py", "/"))}:
        places = [source, ROOT, ROOT / "tests", source / "study", source / "runs"]
        assert any((place / name).exists() for place in places) or name in WRITTEN, name
    for name in {n for n in names if re.fullmatch(r"\w+(\.\w+)+", n) and not n.endswith((".py", *WRITTEN, ".experiments"))}:
        assert name.rpartition(".")[2] in defined, name


@pytest.mark.slow
def test_what_guards_a_half_done_addition_passes(house):
    tests = [f"tests/{test}" for test in GUARDS]
    done = started(house, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *tests, PYTHONDONTWRITEBYTECODE="1")
    said, _ = done.communicate(timeout=300)
    assert done.returncode == 0 and "skipped" not in said, said


def test_the_measure_is_listed_and_obeys_the_laws(told):
    assert "CauchyCKA" in told["measures"][1]
    (row,) = json.loads(told["cauchy"][1])
    assert row["measure"].startswith("CauchyCKA(") and 0 < row["statistic"] < 1 and row["pvalue"] < 0.05


def test_the_source_is_planned_tried_out_and_run(house, told):
    assert "letters:alphabet" in told["models"][1]
    assert [told[name][0] for name in ("plan", "mock", "run")] == [0, 0, 0], told["mock"][2] + told["run"][2]
    assert "3 models" in told["plan"][1] and "not known" not in told["plan"][1]  # each fact of the new source is used
    manifests = [json.loads(p.read_text()) for p in (house / "runs/store").rglob("manifest.json")]
    found = {m["record"]["name"]: m for m in manifests}
    assert set(found) == {"aeiou", "consonants", "etaoin"}
    assert {m["facts"]["source"] for m in manifests} == {"letters"} and list(found["etaoin"]["facts"]["layers"]) == ["large"]
    mocked = [json.loads(p.read_text()) for p in (house / "runs/letters-mock").rglob("manifest.json")]
    assert mocked and all(m["record"]["spec"] == "letters:ae" for m in mocked)


@pytest.mark.parametrize("name", ["sounds", "folder"])
def test_a_study_of_the_new_kind_is_planned_tried_out_and_run(house, told, name):
    """Of a table and of a folder; the mock run makes sounds up, in the columns that the study names."""
    for how in ("plan", "mock", ""):
        assert told[f"{name} {how}"][0] == 0, told[f"{name} {how}"][2]
    assert "2 pairs of models" in told[f"{name} plan"][1]
    real, mocked = (pd.read_parquet(house / f"runs/{n}/results/results.parquet") for n in (name, f"{name}-mock"))
    assert {*real["model_x"]} == {*mocked["model_x"]} == {"build"} and real["statistic"].nunique() > 1
    for store in (f"{name}-store", f"runs/{name}-mock"):
        manifests = [json.loads(p.read_text()) for p in (house / store).rglob("manifest.json")]
        assert {m["record"]["modality"]: m["facts"]["column"] for m in manifests} == {"audio": "audio", "text": "text"}
    assert len([*(house / f"runs/{name}-mock/data").rglob("*.wav")]) == 208


@pytest.mark.parametrize("name", WRONG)
def test_what_an_addition_does_not_know_is_refused(told, name):
    status, _, said = told[name]
    assert status == 1 and re.search(WRONG[name][2], said), said


def test_the_null_is_taken_by_its_name(told):
    (row,) = json.loads(told["shifts"][1])
    assert (row["null"], row["n_draws"]) == ("shifts", 59) and row["pvalue"] < 0.1
    assert told["shift"][0] == 1 and "did you mean 'shifts'" in told["shift"][2]


def test_the_figure_is_drawn_with_its_table(house, told):
    folder = house / "runs/letters/figures"
    assert sorted(p.name for p in folder.glob("01*")) == ["01-spread.csv", "01-spread.png", "01-spread.svg"]
    assert pd.read_csv(folder / "01-spread.csv")["pairs"].sum() == 3 and "3 pairs of models." in told["run"][1]
    assert "Spread of scores, CKA" in (house / "runs/letters/figures.html").read_text("utf-8")


def test_the_field_changes_a_run(house, told):
    assert told["without"][0] == 0, told["without"][2]
    table = pd.read_parquet(house / "runs/without/results/results.parquet")
    assert {*table["model_x"], *table["model_y"]} == {"aeiou", "etaoin"}


def test_the_column_is_filled_and_results_from_before_are_read(house, told):
    table = pd.read_parquet(house / "runs/letters/results/results.parquet")
    layers = table["model_y"].map({"aeiou": 2, "consonants": 2, "etaoin": 1}) * table["model_x"].map({"aeiou": 2, "consonants": 2})
    assert (table["n_cells"] == layers).all()
    assert told["before"][2] == "True"


# --- what is half done is found -------------------------------------------------------------------

ALL = """
name: everything
description: every field
dataset: {arrays: {thing: x.npy}, row_ids: ids.txt}
models:
  x: [{spec: "array:x.npy", name: a}, {spec: "array:x.npy", name: b, layers: [0]}]
  y: [{spec: "array:x.npy", name: c, caption: 0}]
  options: {x: {modality: thing, ids: rows}, y: {modality: thing, ids: rows}}
measures: ["CKA()"]
null: {method: permutation, draws: 9, seed: 1, groups: groups.csv, shuffle: within}
rows: {n: 24, seed: 1}
broken_pairs: {share: 0.1, seed: 1}
ceilings: {replicates: [[a, b]], split_half: 1}
competence: {csv: scores.csv}
figures: [{matrix: {}}]
"""


def test_every_field_of_a_study_is_read_and_told(tmp_path, monkeypatch):
    """A field that nothing reads does nothing; one that the example does not name is not found by who looks for it."""
    read: set[tuple[type, str]] = set()
    get = Block.__getattribute__

    def seen(self: Block, name: str) -> object:
        read.add((type(self), name))
        return get(self, name)

    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((40, 3)))
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(40))))
    (tmp_path / "groups.csv").write_text("id,group\n" + "".join(f"{i},{i % 2}\n" for i in range(40)))
    (tmp_path / "scores.csv").write_text("model,vtab_solved\na,0.5\nb,0.6\nc,0.7\n")
    (tmp_path / "study.yaml").write_text(ALL)
    monkeypatch.setattr(Block, "__getattribute__", seen)
    assert load_study(tmp_path / "study.yaml").run().drawn
    # Given on whole, by the names of arguments; bits of a corpus need a model of the hub, and are read in one place.
    passed = {
        blocks.ExtractConfig: {*inspect.signature(extract).parameters},
        blocks.PreprocessConfig: {f.name for f in fields(Preprocess)},
        blocks.ModelOptions: {f.name for f in fields(ModelEntry) if f.init},
        blocks.ModelConfig: {"set", *(f.name for f in fields(ModelEntry) if f.init)},
        blocks.BitsConfig: set(re.findall(r"config\.(\w+)", (Path(blocks.__file__).parent / "members.py").read_text("utf-8"))),
    }
    example = (ROOT / "studies/example.yaml").read_text("utf-8")
    named = [value for name, value in vars(blocks).items() if inspect.isclass(value) and not name.startswith("_")]
    ours = [cls for cls in named if issubclass(cls, Block) and cls is not Block]  # `_Options` is checked as `ModelOptions`
    for cls in ours:
        known = passed.get(cls) or {name for kind, name in read if issubclass(cls, kind) or issubclass(kind, cls)}
        assert cls.model_fields.keys() - known == set(), f"fields of {cls.__name__} that no run reads"
    shown = {*blocks.AlignmentConfig.model_fields, *blocks.NullConfig.model_fields, *blocks.PreprocessConfig.model_fields}
    untold = {name for name in shown if not re.search(rf"\b{name}\b", example)}
    assert untold == set(), "fields that studies/example.yaml does not name"


def test_every_column_of_the_result_is_filled():
    rng = np.random.default_rng(0)
    x = {str(i): rng.standard_normal((30, 4)) for i in range(2)}
    found: Alignment = pair(x, x, "CKA()", "permutation")
    assert [c for c in COLUMNS if found.table[c].isna().all()] == []
