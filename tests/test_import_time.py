"""`import repalign` and `repalign --help` take under a second of processor time, the best of three; `pair` leaves much out."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
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


def test_a_pair_of_files_imports_nothing_that_it_does_not_need(tmp_path: Path):
    """Each of these takes a quarter of a second or more, beside two for torch."""
    for name in "xy":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).standard_normal((30, 4)))
    code = (
        "import sys; from repalign.cli import main\n"
        "sys.argv = ['repalign', 'pair', 'x.npy', 'y.npy']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('scipy.stats', 'matplotlib', 'sklearn', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
