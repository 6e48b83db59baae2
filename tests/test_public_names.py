"""Public names are what they say, however often and in whatever order they are asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAMS = {}
PROGRAMS["functions"] = """
import inspect
import repalign

first = {name: getattr(repalign, name) for name in repalign.__all__}
from repalign.comparison import compare, pair          # loading a subpackage binds its name in the package
from repalign.sources import ModelEntry
import repalign.comparison.tiles
for name, value in first.items():
    assert getattr(repalign, name) is value, name
assert inspect.signature(repalign.compare) == inspect.signature(compare)
for used in range(2):
    try:
        repalign.compare([])
    except repalign.RepalignError as error:
        assert "nothing to compare" in str(error)
import repalign.report                                  # the library does so as it draws
from repalign.report.page import render
for used in range(2):
    assert repalign.report is first["report"] and repalign.report.write_report is repalign.write_report
    try:
        repalign.report("nowhere", "report.html")
    except repalign.RepalignError as error:
        assert "nowhere: not a finished result" in str(error)
"""
PROGRAMS["another first"] = "from repalign.comparison import pair; import repalign; assert callable(repalign.compare)"
PROGRAMS["a result"] = """
import sys; from repalign.comparison.alignment import COLUMNS, Alignment; import pandas as pd
assert 'repalign.report' not in sys.modules
assert 'without pairs' in Alignment(pd.DataFrame(columns=list(COLUMNS)))._repr_html_()
"""
PROGRAMS["rooms"] = """
import repalign
for name, room in {"relate": "relate", "plot": "figures", "aggregate": "aggregate", "competence": "competence"}.items():
    assert getattr(repalign, name).__name__ == f"repalign.{room}"
"""
# Runs each program in a child that has imported nothing of repalign, but the libraries, which take seconds.
LAUNCHER = """
import json, os, sys, traceback
import matplotlib.pyplot, pandas, scipy.stats, torch
assert not any(name.partition(".")[0] == "repalign" for name in sys.modules)
told = {}
for name, program in json.load(sys.stdin).items():
    read, write = os.pipe()
    child = os.fork()
    if not child:
        said = ""
        try:
            exec(program, {"__name__": "__main__"})
        except BaseException:
            said = traceback.format_exc()
        os.write(write, said.encode()[-30_000:])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    told[name] = said if os.waitpid(child, 0)[1] == 0 else f"died: {said}"
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """The traceback of each program, or nothing."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are copied, which needs fork")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process that had several threads cannot go on in a child
    command = [sys.executable, "-c", LAUNCHER]
    done = subprocess.run(command, input=json.dumps(PROGRAMS), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_functions_can_be_called_when_their_modules_are_imported(told):
    assert told["functions"] == ""


def test_a_module_that_is_imported_first_does_not_take_the_name(told):
    assert told["another first"] == ""


def test_a_result_shows_itself_without_anyone_asking_for_the_report(told):
    assert told["a result"] == ""


def test_rooms_are_there_in_a_fresh_session(told):
    assert told["rooms"] == ""
