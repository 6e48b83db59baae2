"""Every block of the pages does what it says: Python runs as printed, study files are valid, commands are known.

The Python blocks of a page run in order, in one session that starts in an empty folder, as a reader would type them.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[1]
# "Adding things" in architecture.md is done word for word, in a copy of the program, by tests/test_adding.py.
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.name != "architecture.md"]


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of one language, as they stand there."""
    found: list[str] = []
    parser = CodeBlockParser(language, evaluator=lambda example: found.append(str(example.parsed)))
    for example in Sybil([parser]).parse(page).examples():
        example.evaluate()
    return found


def having(language: str) -> Any:
    pages = [p for p in PAGES if blocks(p, language)]
    return pytest.mark.parametrize("page", pages, ids=lambda p: str(p.relative_to(ROOT)))


@functools.cache
def ran(page: str) -> tuple[dict[str, Any], str]:
    """The names that a page leaves, and what it printed."""
    import matplotlib.pyplot as plt

    from repalign import measures

    document = Sybil([PythonCodeBlockParser()]).parse(ROOT / page)
    before, printed, registered = Path.cwd(), io.StringIO(), dict(measures.registry._registered)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        os.chdir(folder)
        try:
            for example in document.examples():
                example.evaluate()
        finally:
            os.chdir(before)
            plt.close("all")
            measures.registry._registered.clear()
            measures.registry._registered.update(registered)
    return document.namespace, printed.getvalue()


@having("python")
def test_python_runs_as_printed(page):
    ran(str(page.relative_to(ROOT)))


@having("yaml")
def test_study_files_are_valid(page, tmp_path):
    """A block that is a part of a study file is completed with what every study needs."""
    import yaml

    from repalign.study import load_study

    (tmp_path / "studies").symlink_to(ROOT / "studies")
    for block in blocks(page, "yaml"):
        said = yaml.safe_load(block)
        whole = {"name": "part", "dataset": {"toy": {"n": 64}}, "models": {"x": ["toy:language-bag"], "y": ["toy:vision-pixels"]}}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(said if {"extends", "experiment"} & said.keys() else {**whole, **said}))
        load_study(tmp_path / "study.yaml")


@having("sh")
def test_commands_are_known(page):
    """Every `repalign ...` line names a command and options that exist."""
    import typer

    from repalign.cli import app

    known: Any = typer.main.get_command(app)
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        for words in re.findall(r"(?:^|&& |; )\s*repalign( [^&;|#]*)", line):
            command, arguments = known, shlex.split(words)
            while commands := getattr(command, "commands", None):
                assert (arguments[:1] and arguments[0] in commands) or "--help" in arguments, line
                command = commands[arguments.pop(0)] if arguments[0] in commands else None
            options = {name for p in getattr(command, "params", ()) for name in (*p.opts, *p.secondary_opts)} | {"--help"}
            unknown = [a for a in arguments if re.match(r"--?[a-z]", a) and a.partition("=")[0] not in options]
            assert not unknown, f"{page.name}: {line}"


# --- what single pages promise -------------------------------------------------------------------


def test_the_readme_shows_what_its_block_prints():
    _, printed = ran("README.md")
    assert printed.strip() == blocks(ROOT / "README.md", "text")[0].strip()


def test_the_examples_of_training_are_short():
    """The Trainer of transformers, Lightning, and CKNNA as REPA has it: at most 15 lines each. All are run: Lightning's by
    tests/test_track_lightning.py, the others above."""
    page = ROOT / "docs/tracking.md"
    found = [*blocks(page, "python"), *blocks(page, "py")]
    for what in ("from transformers import", "lightning.Trainer(", "CKNNAReference("):
        (block,) = [one for one in found if what in one]
        assert len(block.splitlines()) <= 15, what


def test_the_page_of_curves_says_what_its_dashed_line_is():
    there, _ = ran("docs/curves.md")
    knn, cknna = there["over_k"].lines
    line = there["over_k"].line(knn)
    assert (knn, cknna) == ("MutualKNN(similarity='cosine', center=False)", "CKNNA(similarity='cosine')")
    np.testing.assert_allclose(line["chance"], line["x"] / 299, rtol=1e-2)  # k / (n - 1)
    assert line["value"].is_monotonic_increasing and len(there["axes"].figure.axes) == 1


def test_the_page_of_relate_finds_what_was_put_in():
    there, _ = ran("docs/relate.md")
    assert there["binned"].pvalue < 0.05 and there["binned"].within["n_models_x"].tolist() == [4, 4]
    assert there["placed"].n == 8 and len(there["agreed"].table) == 3 and len(there["figures"]) == 3


def test_the_page_of_features_joins_and_leaves_out():
    there, told = ran("docs/features.md")
    assert float(there["result"].best()["statistic"].iloc[0]) == pytest.approx(1) or "RDM" in told
    for said in ("joined on 300 ids; 0 and 0 rows", "features: 8 columns 0, 1 ... 7", "left out: score"):
        assert said in told
    assert re.search(r"0 +(anna|ben|cleo) +features +0\.\d", told) and re.search(r"all\.anna +rdm +1\.0", told)
    assert re.search(r"kernel +kernel +0\.\d", told)
    assert there["same"].best()["statistic"].tolist() == pytest.approx([1]) and there["same"].table["n"].iloc[0] == 300


def test_the_measure_of_ones_own_is_held_to_all_laws():
    from repalign.testing import LAWS

    there, _ = ran("docs/choosing.md")
    assert f"# {len(LAWS)} laws" in "".join(blocks(ROOT / "docs/choosing.md", "python"))
    assert repr(there["CauchyCKA"]()) == "CauchyCKA(estimator='debiased')"
