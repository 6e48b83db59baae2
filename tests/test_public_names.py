"""Public names are what they say, however often and in whatever order they are asked for."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import repalign
from types import ModuleType

first = {name: getattr(repalign, name) for name in repalign.__all__}
from repalign.compare import pair          # loading a subpackage binds its name in the package
from repalign.extract import ModelEntry
import repalign.compare, repalign.extract
for name, value in first.items():
    assert getattr(repalign, name) is value, name
    assert not isinstance(value, ModuleType), name
assert callable(repalign.compare) and callable(repalign.extract)
"""


def test_functions_stay_functions_when_their_modules_are_imported():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_imported_first_does_not_take_the_name():
    program = "from repalign.compare import pair; import repalign; repalign.compare.__code__"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
