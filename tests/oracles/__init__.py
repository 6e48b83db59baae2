"""Plain float64 numpy forms of every measure, written from the published definitions; slow and independent.

One module per family, each with its `CASES`, the instances that the laws of `repalign.testing` are tried on. A measure of
the list without a case here fails the tests.
"""

from importlib import import_module
from pkgutil import iter_modules

from repalign.testing import Case

CASES: tuple[Case, ...] = tuple(
    case for module in iter_modules(__path__) if module.name != "_tools" for case in import_module(f"oracles.{module.name}").CASES
)
