"""Representational alignment: do two models put the same things close together, and is that more than chance?

The public names, in the order of the flow; each is imported when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

try:
    __version__ = version("repalign")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

_PUBLIC = {
    "RepalignError": "errors",
    "Dataset": "dataset",
    "ModelRecord": "models",
    "ModelEntry": "extract",
    "extract": "extract",
    "FeatureStore": "store",
    "MEASURES": "measures",
    "parse_measure": "measures",
    "MutualKNN": "measures",
    "CKA": "measures",
    "CKNNA": "measures",
    "SVCCA": "measures",
    "Preprocess": "preprocess",
    "preset": "presets",
    "Permutations": "null",
    "Cyclic": "null",
    "compare": "compare",
    "pair": "compare",
    "Alignment": "alignment",
    "trend": "relate",
    "load_study": "study",
    "write_report": "report",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'repalign' has no attribute {name!r}")
    return getattr(import_module(f"repalign.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps public names what they are.

    The import system binds the name of a subpackage here when that is first loaded; `compare` and `extract` are functions of
    this package too, and would be modules from then on.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _PUBLIC or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
