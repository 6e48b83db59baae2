"""What is imported: nothing large for `import repalign` and for help, which take under a second; and `pair` leaves much out."""

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
    spent: list[float] = []
    while len(spent) < 3 and min(spent, default=1.0) >= 1.0:
        before = processor_seconds()
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        spent.append(processor_seconds() - before)
        assert done.returncode == 0, done.stderr
    assert min(spent) < 1.0


def imported(*arguments: str, folder: Path) -> set[str]:
    """The modules that a command has imported when it ends."""
    code = (
        "import sys; from repalign.cli import main\n"
        f"sys.argv = ['repalign', *{arguments}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def experiments(modules: set[str]) -> set[str]:
    return {m for m in modules if m.startswith("repalign.experiments.")} - {"repalign.experiments.base"}


@pytest.mark.parametrize("command", [(), ("pair",), ("competence",)], ids=" ".join)
def test_help_imports_no_numbers_and_no_experiment(command: tuple[str, ...], tmp_path: Path):
    modules = imported(*command, "--help", folder=tmp_path)
    assert not modules & {"torch", "numpy", "pandas", "scipy", "repalign.comparison", "repalign.files"}
    assert not experiments(modules)


def test_the_help_of_an_experiment_imports_no_other(tmp_path: Path):
    modules = imported("stitch", "--help", folder=tmp_path)
    assert "repalign.experiments.stitch" in modules and "torch" not in modules
    assert not experiments(modules) & {f"repalign.experiments.{name}" for name in ("brain", "track", "migrate", "unpaired")}


def test_the_front_door_imports_no_numbers():
    code = "import sys, repalign; print(len([m for m in sys.modules if m.startswith('repalign')]), 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 False\n", done.stdout + done.stderr


def test_a_pair_of_files_imports_nothing_that_it_does_not_need(tmp_path: Path):
    """Each of these takes a quarter of a second or more, beside two for torch; the experiments a tenth."""
    for name in "xy":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).standard_normal((30, 4)))
    modules = imported("pair", "x.npy", "y.npy", folder=tmp_path)
    assert "torch" in modules
    assert not modules & {"scipy.stats", "matplotlib", "sklearn", "transformers"} and not experiments(modules)


def test_what_torch_brings_is_left_to_stay():
    """The collector works again afterwards, and has nothing of it to go through; once torch is there nothing is set aside."""
    code = (
        "import gc, weakref; from repalign.cli._commands import importing\n"
        "class Thing: pass\n"
        "with importing():\n"
        "    import torch\n"
        "there, kept = len(gc.get_objects()), gc.get_freeze_count()\n"
        "thing = Thing(); thing.itself = thing; gone = weakref.ref(thing)\n"
        "with importing(): del thing\n"
        "assert gc.isenabled() and gc.get_freeze_count() == kept\n"
        "gc.collect()\n"
        "print(gone() is None, kept > 100_000 > there)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stdout + done.stderr


def test_a_name_of_an_experiment_is_its_function_whatever_was_imported_first():
    code = (
        "import repalign.experiments.brain, repalign.experiments.track as t\n"
        "from repalign import experiments\n"
        "from repalign.experiments import brain, concept_numbers, track, universality\n"
        "assert t is track is experiments.track and 'stitch' in dir(experiments)\n"
        "from repalign.experiments import *\n"
        "print(*(callable(globals()[name]) and globals()[name].__name__ == name for name in EXPERIMENTS))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert set(done.stdout.split()) == {"True"}, done.stderr


def test_a_row_says_what_the_docstring_says():
    from repalign.experiments import EXPERIMENTS

    assert {name: row.asks for name, row in EXPERIMENTS.items()} == {
        name: (row.run.__doc__ or "").partition("\n")[0] for name, row in EXPERIMENTS.items()
    }
    assert all(row.run.__name__ == name for name, row in EXPERIMENTS.items())
