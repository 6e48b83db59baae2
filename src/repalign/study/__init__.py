"""The study file: what is compared, how, and what is drawn of it. The unit of reproducibility.

A study is a YAML file. It is validated before anything runs; what is wrong is told with the field and its line. An
experiment of another kind than alignment is a subclass of `Study`, announced in the entry-point group
`repalign.experiments`; what it needs for that is exported here.
"""

from __future__ import annotations

from repalign.study.base import Block, Drawn, OnPlan, Outcome, Plan, Study, StudyBlock
from repalign.study.config import ExtractConfig, ModelConfig, schema
from repalign.study.load import entries, load_study
from repalign.study.yaml_lines import Where

__all__ = [
    "Block", "Drawn", "ExtractConfig", "ModelConfig", "OnPlan", "Outcome", "Plan", "Study", "StudyBlock", "Where", "entries",
    "load_study", "schema",
]  # fmt: skip
