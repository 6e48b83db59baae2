"""Measuring systems beside the comparison of models, a file each: what a model or two hold, asked in another way.

Each has a row of `EXPERIMENTS`, which makes it a command, a kind of study and a name of this room. Nothing else knows it.
"""

from __future__ import annotations

from repalign.experiments.base import Experiment, Found, Input

EXPERIMENTS: dict[str, Experiment] = {}

__all__ = ["EXPERIMENTS", "Experiment", "Found", "Input", *EXPERIMENTS]
