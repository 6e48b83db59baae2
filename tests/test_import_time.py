"""`import repalign` and `repalign --help` are quick: under a second, the best of three."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest


@pytest.mark.parametrize("arguments", [["-c", "import repalign"], ["-m", "repalign", "--help"]], ids=["import", "help"])
def test_under_a_second(arguments: list[str]):
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        best = min(best, time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert best < 1.0
