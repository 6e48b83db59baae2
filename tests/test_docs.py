"""The examples in docstrings are run."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = [
    "repalign.measures",
    "repalign.measures.kernel",
    "repalign.measures.neighbors",
    "repalign.measures.reference",
    "repalign.measures.subspace",
    "repalign.compare",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str):
    results = doctest.testmod(import_module(name))
    assert results.attempted > 0 and results.failed == 0


def test_every_measure_has_an_example():
    from repalign.measures import MEASURES

    assert all(">>>" in (cls.__doc__ or "") for cls in MEASURES)
