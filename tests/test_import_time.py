"""`import repalign` and `repalign --help` are quick: under a second of processor time, the best of three."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest


def processor_seconds() -> float:
    """Of all children so far: a busy machine makes the clock run, not these."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@pytest.mark.parametrize("arguments", [["-c", "import repalign"], ["-m", "repalign", "--help"]], ids=["import", "help"])
def test_under_a_second(arguments: list[str]):
    best = float("inf")
    for _ in range(3):
        before = processor_seconds()
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        best = min(best, processor_seconds() - before)
        assert done.returncode == 0, done.stderr
    assert best < 1.0
