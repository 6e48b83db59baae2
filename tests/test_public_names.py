"""Public names are what they say, however often and in whatever order they are asked for."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
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


def test_functions_can_be_called_when_their_modules_are_imported():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_imported_first_does_not_take_the_name():
    program = "from repalign.comparison import pair; import repalign; assert callable(repalign.compare)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_result_shows_itself_without_anyone_asking_for_the_report():
    program = (
        "import sys; from repalign.comparison.alignment import COLUMNS, Alignment; import pandas as pd\n"
        "assert 'repalign.report' not in sys.modules\n"
        "assert 'without pairs' in Alignment(pd.DataFrame(columns=list(COLUMNS)))._repr_html_()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
