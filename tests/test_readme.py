"""The README is run: its two commands are what CI runs, its Python is executed, its links and tree exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_two_commands_are_word_for_word_what_ci_runs():
    commands = [line for block in blocks("sh")[:2] for line in block.splitlines() if line.strip()]
    assert commands == [
        "python -m pip install . && repalign demo",
        "python -m pip install '.[test]' && python -m pytest",
    ]
    ci = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert [line for line in ci if line.startswith("python -m pip")] == commands


def test_the_quickstart_runs():
    (quickstart,) = blocks("python")
    assert len([line for line in quickstart.splitlines() if line.strip()]) <= 20
    exec(compile(quickstart, "README.md", "exec"), {})


def test_the_example_study_is_valid(tmp_path):
    from repalign.study import load_study

    path = tmp_path / "study.yaml"
    path.write_text(blocks("yaml")[0])
    assert load_study(path).name == "photos-and-captions"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_linked_files_exist(target):
    assert (ROOT / target).exists()


def test_the_tree_names_every_module():
    """Each file of the package stands in the tree with a gloss, and the tree names nothing that is not there."""
    tree = next(block for block in blocks("text") if "src/repalign/" in block)
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    source = ROOT / "src/repalign"
    there = {p.name for p in source.iterdir() if not p.name.startswith("_")} | {"__init__.py"}
    assert named == there


def test_no_placeholder_is_left():
    assert not re.search(r"@[A-Z]+@", README)
