"""Representational alignment: do two models put the same things close together, and is that more than chance?

The public names, in the order of the flow; each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from repalign import text as _text

try:
    __version__ = version("repalign")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

_PUBLIC = {
    "RepalignError": "errors",
    "RDM": "layers",
    "Kernel": "layers",
    "Dataset": "dataset",
    "ModelRecord": "models",
    "ModelEntry": "sources",
    "extract": "sources",
    "FeatureStore": "store",
    "MEASURES": "measures",
    "parse_measure": "measures",
    "MutualKNN": "measures",
    "CKA": "measures",
    "CKNNA": "measures",
    "SVCCA": "measures",
    "Preprocess": "comparison",
    "preset": "comparison",
    "Permutations": "null",
    "Cyclic": "null",
    "read_features": "features",
    "compare": "comparison",
    "pair": "comparison",
    "Alignment": "comparison",
    "trend": "relate",
    "load_study": "study",
    "write_report": "report",
}

_ROOMS = ("aggregate", "comparison", "competence", "features", "figures", "null", "prh", "relate", "study", "testing", "toyworld")
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in (*_ROOMS, "plot"):  # `plot` is what many look for
        return import_module(f"repalign.{'figures' if name == 'plot' else name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'repalign' has no attribute {name!r}")
    return getattr(import_module(f"repalign.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _html_of(alignment: Any) -> str:
    return import_module("repalign.report").notebook_html(alignment.table, alignment.run)


_text.html_of = _html_of
