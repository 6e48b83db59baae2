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
