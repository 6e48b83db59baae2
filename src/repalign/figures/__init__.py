"""Figures: one function each, from a result or a finding of `repalign.relate` to a `matplotlib.figure.Figure`.

`FIGURES` has every kind that a study file may ask for (`repalign.figures.kinds`); `write_figures` writes their files. How a result
is read (`repalign.figures.conventions`) is asked by pages that draw nothing: what draws is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "FIGURES", "Drawn", "Figure", "agreement", "beside", "bins", "contrast", "curve", "effects", "layer_map", "matrix",
    "model_map", "null", "trend", "write_figures",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'repalign.figures' has no attribute {name!r}")
    return getattr(import_module("repalign.figures.drawings"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
