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


def test_it_fits_a_page():
    assert len(README.splitlines()) <= 120


def test_no_placeholder_is_left():
    assert not re.search(r"@[A-Z]+@", README)


def test_the_conda_recipe_needs_what_the_package_needs():
    import tomllib

    import yaml

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    recipe = yaml.safe_load((ROOT / "recipe/recipe.yaml").read_text("utf-8"))
    names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}  # as conda has them
    wanted = {f"{names.get(name, name)} >={version}" for name, version in (d.split(">=") for d in project["dependencies"])}
    assert set(recipe["requirements"]["run"]) == wanted | {f"python {project['requires-python']}"}
    assert recipe["package"]["version"] == project["version"]
    assert project["version"] in (ROOT / "CITATION.cff").read_text("utf-8")
