"""A source of models that a stranger adds: one file and one row, as docs/architecture.md says, and a study runs with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import repalign

LETTERS = '''
"""Counts of letters: `letters:alphabet`."""

import torch

from repalign.models import ModelRecord
from repalign.sources import Batch, Facts, Layer, LoadedModel, Source, StandIn


class Letters(Source):
    scheme, form, example = "letters", "letters:alphabet", "letters:abc"

    def problem(self, path):
        return None if path.isalpha() else (repr(path), "name letters, such as abc")

    def modality(self, spec, entry):
        return "text"

    def revision(self, spec, entry):
        return "1"

    def facts(self, spec, entry, answer=None):
        width = len(spec.path)
        return Facts(
            kind="text", parameters=width, widths=(width, width), names=("small", "large"), file_bytes=0, download_bytes=0,
            parameters_from="known", layers_from="known", download_from="known",
        )

    def load(self, spec, entry, context):
        return Counts(spec, entry)

    def stand_in(self, asked):
        return StandIn("letters:ae", ("small", "large"))


class Counts(LoadedModel):
    kind = "text"

    def __init__(self, spec, entry):
        self.entry, self.alphabet = entry, spec.path
        self.layers = self.choose_layers([Layer("small", "counts"), Layer("large", "counts without case")])
        self.weights = "none"
        self.record = ModelRecord(str(spec), spec.source.name(spec, entry), "text", n_parameters=len(spec.path))
        self.facts = {"source": "letters", **self.text_facts()}

    def forward(self, prepared):
        counts = torch.tensor([[float(t.count(c)) for c in self.alphabet] for t in prepared])
        wide = torch.tensor([[float(t.lower().count(c)) for c in self.alphabet] for t in prepared])
        both = {"small": counts, "large": wide}
        return Batch({layer.name: both[layer.name] for layer in self.layers})
'''
STUDY = """
name: letters
dataset: {table: texts.csv, id: id, text: text}
models: ["letters:aeiou", {spec: "letters:rstln", name: consonants}, {spec: "letters:etaoin", layers: [large]}]
measures: ["CKA()"]
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the program with the file and the row."""
    home = tmp_path_factory.mktemp("house")
    package = home / "src" / "repalign"
    shutil.copytree(Path(repalign.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "sources" / "letters.py").write_text(LETTERS)
    table = package / "sources" / "source.py"
    row, own = '        "toy": "repalign.sources.toy:Toys",\n', '        "letters": "repalign.sources.letters:Letters",\n'
    assert table.read_text("utf-8").count(row) == 1
    table.write_text(table.read_text("utf-8").replace(row, row + own), "utf-8")
    words = "a quick brown fox jumps over one lazy dog while seven small stones lie still by the river".split()  # noqa: SIM905
    texts = [" ".join(words[(i * k) % len(words)] for k in range(1, 9)) for i in range(40)]
    lines = [f"t{i},{text.title() if i % 3 else text}" for i, text in enumerate(texts)]
    (home / "texts.csv").write_text("\n".join(["id,text", *lines]) + "\n")
    (home / "study.yaml").write_text(STUDY)
    return home


def run(house: Path, *arguments: str, fails: bool = False) -> str:
    environment = {**os.environ, "PYTHONPATH": str(house / "src"), "COLUMNS": "200"}
    command = [sys.executable, "-W", "error", "-m", "repalign", *arguments]
    done = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_study_runs_with_a_source_of_ones_own(house):
    planned = run(house, "run", "study.yaml", "--plan")
    assert "3 models" in planned and "not known" not in planned  # each fact of the new source is used
    run(house, "run", "study.yaml", "--mock")
    run(house, "run", "study.yaml")
    manifests = [json.loads(p.read_text()) for p in house.rglob("manifest.json") if "mock" not in str(p)]
    found = {m["record"]["name"]: m for m in manifests}
    assert set(found) == {"aeiou", "consonants", "etaoin"}
    assert {m["facts"]["source"] for m in manifests} == {"letters"} and list(found["etaoin"]["facts"]["layers"]) == ["large"]
    mocked = [json.loads(p.read_text()) for p in house.rglob("manifest.json") if "mock" in str(p)]
    assert mocked and all(m["record"]["spec"] == "letters:ae" for m in mocked)


def test_its_form_is_told_and_what_it_has_not_is_refused(house):
    told = run(house, "models")
    assert "letters:alphabet" in told
    (house / "wrong.yaml").write_text(STUDY.replace("letters:aeiou", "letters:a1"))
    assert "is not of the form letters:alphabet" in run(house, "run", "wrong.yaml", fails=True)
    (house / "prompt.yaml").write_text(STUDY.replace('"letters:aeiou"', '{spec: "letters:aeiou", prompt: "so: {caption}"}'))
    assert "a prompt does not go with letters: models" in run(house, "run", "prompt.yaml", fails=True)
