"""The examples in docstrings are run."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
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
