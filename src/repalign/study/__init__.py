"""The study file: what is compared, how, and what is drawn of it. The unit of reproducibility.

A study is a YAML file. It is validated before anything runs; what is wrong is told with the field and its line. An
experiment of another kind than alignment is a subclass of `Study`, announced in the entry-point group
`repalign.experiments`; what it needs for that is exported here.
"""

from __future__ import annotations

from repalign.study.base import Drawn, Outcome, Plan, Study
from repalign.study.config import Block, ExtractConfig, ModelConfig, Name, Place
from repalign.study.lines import Where
from repalign.study.load import entries, load_study

__all__ = [
    "Block",
    "Drawn",
    "ExtractConfig",
    "ModelConfig",
    "Name",
    "Outcome",
    "Place",
    "Plan",
    "Study",
    "Where",
    "entries",
    "load_study",
]
