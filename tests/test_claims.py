"""The page of claims: every command that it names exists, every study and option too, and README leads there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer.main

from repalign.cli import app
from repalign.study import load_study

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/claims.md").read_text("utf-8")
HEAD = ["claim", "command", "what would refute it", "what small models say"]


def rows() -> list[list[str]]:
    """The rows of the two tables of claims."""
    out, inside = [], False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        inside = (inside or cells[:1] == ["claim"]) and bool(cells)
        if inside and cells != HEAD and not line.startswith("| ---"):
            out.append([cell.strip("| ") for cell in cells])
    return out


COMMANDS = sorted({row[1].strip("`") for row in rows()})


def test_every_claim_has_a_command_what_refutes_it_and_what_was_found():
    found = rows()
    assert len(found) >= 30 and all(len(row) == 4 and all(row) for row in found), [row for row in found if len(row) != 4]
    assert all(re.fullmatch(r"`repalign [^`]+`", row[1]) for row in found)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_its_options_exist(command):
    words = shlex.split(command)[1:]
    here: click.Command = typer.main.get_command(app)
    while isinstance(here, click.Group):
        assert words and words[0] in here.commands, command
        here, words = here.commands[words[0]], words[1:]
    options = {name for p in here.params for name in p.opts}
    assert {w for w in words if w.startswith("--")} <= options, command
    needed = [p for p in here.params if isinstance(p, click.Argument) and p.required]
    assert len([w for w in words if not w.startswith("-")]) >= len(needed), command


@pytest.mark.parametrize("study", [c.split()[2] for c in COMMANDS if c.startswith("repalign run ")])
def test_every_study_is_there_and_right(study):
    # That it passes --plan and --mock is tested in test_studies, which goes through the whole folder.
    assert (ROOT / study).parent == ROOT / "studies" and load_study(ROOT / study).name


def test_all_studies_but_the_example_stand_in_the_page_or_extend_one_that_does():
    named = {Path(c.split()[2]).name for c in COMMANDS if c.startswith("repalign run ")}
    others = {p.name for p in (ROOT / "studies").glob("*.yaml")} - named
    assert others == {"example.yaml", "cross_modal_test.yaml", "caption_density.yaml"}


def test_what_is_linked_is_there_and_readme_leads_here():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    assert "(docs/claims.md)" in (ROOT / "README.md").read_text("utf-8")
