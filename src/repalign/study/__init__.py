"""The study file: what is compared, how, and what is drawn of it. The unit of reproducibility.

A study is a YAML file. It is validated before anything runs; what is wrong is told with the field and its line. Its kinds
are `config.EXPERIMENTS`: alignment of models (the default), the theory, and colour.
"""

from __future__ import annotations

from repalign.study.base import Drawn, Outcome, Plan, Study
from repalign.study.load import load_study

__all__ = ["Drawn", "Outcome", "Plan", "Study", "load_study"]
