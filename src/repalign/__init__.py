"""Representational alignment: do two models put the same things close together, and is that more than chance?

The public names, in the order of the flow; each is imported when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import inspect

try:
    __version__ = version("repalign")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

_PUBLIC = {
    "RepalignError": "errors",
    "RDM": "pairwise",
    "Kernel": "pairwise",
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
    "read_features": "features",
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
    module = import_module(f"repalign.{_PUBLIC[name]}")
    return module if name == _PUBLIC[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Function(ModuleType):
    """A subpackage that is called as the function of its name: `repalign.compare(...)` is `repalign.compare.compare(...)`.

    The import system binds the name of a subpackage here as soon as it is loaded, and a function of that name would be gone.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        import inspect

        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _PUBLIC.get(name) == name:
            value.__class__ = _Function
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
