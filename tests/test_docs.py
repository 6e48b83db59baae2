"""The examples in docstrings are run."""

from __future__ import annotations

import csv
import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(SOURCE.rglob("*.py"))
    if ">>>" in path.read_text("utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str):
    results = doctest.testmod(import_module(name))
    assert results.attempted > 0 and results.failed == 0


def test_every_measure_has_an_example():
    from repalign.measures import MEASURES

    assert all(">>>" in (cls.__doc__ or "") for cls in MEASURES)


CHOOSING = (ROOT / "docs/choosing.md").read_text("utf-8")


def test_choosing_names_what_there_is():
    """Every measure that the page writes as a call is read back, with its parameters."""
    from repalign.measures import parse_measure

    calls = set(re.findall(r"`([A-Z]\w+\([^`]*\))`", CHOOSING))
    assert len(calls) >= 20
    for call in calls:
        parse_measure(call)


def test_numbers_that_choosing_states():
    import numpy as np

    from repalign.measures import CKA, LinearRegression

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 1000)), rng.standard_normal((200, 1000))
    assert CKA(estimator="biased")(x, y) == pytest.approx(0.83, abs=0.01)
    assert CKA()(x, y) == pytest.approx(0, abs=0.03)
    assert LinearRegression()(x[:, :20], y[:, :20]) == pytest.approx(20 / 199, abs=0.02)


def test_the_cost_table_names_every_measure():
    from repalign.measures import MEASURES

    page = (ROOT / "docs/measures.md").read_text("utf-8")
    missing = [cls.__name__ for cls in MEASURES if f"| {cls.__name__} |" not in page]
    assert not missing


def test_the_readme_counts_measures_and_families():
    from repalign.measures import MEASURES

    said = re.search(r"(\d+) measures in (\d+) families", (ROOT / "README.md").read_text("utf-8"))
    assert said and said.groups() == (str(len(MEASURES)), str(len({cls.family for cls in MEASURES})))


PICTURED = [p for p in sorted((ROOT / "docs").rglob("*.md")) if re.search(r"\]\((\.\./)?images/", p.read_text("utf-8"))]


@pytest.mark.parametrize("page", PICTURED, ids=lambda p: p.name)
def test_every_figure_is_made_by_a_command_of_its_page(page):
    """A command of ours, a program of the repository, or a block of the page itself."""
    makes = r"repalign (run|demo|[a-z]+ \S+)[^\n]*|python (benchmarks|examples)/\w+\.py|savefig\(|The block above draws"
    assert re.search(makes, page.read_text("utf-8"))


def test_the_glossary_explains_each_word_once():
    """The words of the experiments, too; no form leads to two terms."""
    with (ROOT / "src/repalign/report/glossary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    forms = [form.lower() for row in rows for form in (row["term"], *filter(None, row["forms"].split("|")))]
    assert len(forms) == len(set(forms)) and all(row["meaning"].endswith(".") and row["of"] in ("", "pages") for row in rows)
    asked = "causal inner product, logit lens, noise ceiling, perceptual score, information imbalance, hubs, stitching, ica, mcc"
    assert set(asked.split(", ")) <= set(forms)
