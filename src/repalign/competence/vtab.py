"""The 19 tasks of the Visual Task Adaptation Benchmark, and the rule by which a model has solved a task.

Tasks and groups: Zhai et al. 2019, arXiv:1910.04867. The rule: Huh et al. 2024, Figure 2: linear probes, training and
validation stimuli cut to at most 10,000 each (`Split(max_train=10_000, max_test=10_000)`), and a task counts as solved at
80 % or more of the best accuracy among the models.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from repalign.errors import RepalignError

SOLVED = 0.8  # share of the best accuracy


@dataclass(frozen=True)
class Task:
    """One task: its name in tables, its group ("natural", "specialized" or "structured") and its label."""

    name: str
    group: str
    label: str


@cache
def vtab_tasks() -> tuple[Task, ...]:
    """The 19 tasks, in the order natural (7), specialized (4), structured (8)."""
    text = resources.files("repalign.competence").joinpath("vtab.csv").read_text(encoding="utf-8")
    return tuple(Task(row["task"], row["group"], row["label"]) for row in csv.DictReader(text.splitlines()))


def solved(accuracies: Mapping[str, Mapping[str, float]], share: float = SOLVED) -> dict[str, tuple[str, ...]]:
    """Which tasks each model has solved: those where its accuracy >= share * the best accuracy of all these models.

    `accuracies` are by model and task. The rule is relative: another set of models gives another answer, so all models of
    a study go in together. RepalignError where a model lacks a task, or an accuracy is outside of [0, 1].
    """
    if not 0 < share <= 1:
        raise RepalignError("the share of the best accuracy is out of range", expected="0 < share <= 1", got=share)
    tasks = list(dict.fromkeys(task for found in accuracies.values() for task in found))
    for model, found in accuracies.items():
        for task in tasks:
            value: Any = found.get(task)
            if value is None or not 0 <= value <= 1:
                raise RepalignError(
                    f"model {model}: accuracy of task {task}",
                    expected="a share in [0, 1]",
                    got="none" if value is None else value,
                    remedy="probe every model on every task, or leave the task out for all",
                )
    # In floats 0.8 * 0.8 is above 0.64: an accuracy that is exactly the share counts as solved.
    least = {task: share * (1 - 1e-12) * max(found[task] for found in accuracies.values()) for task in tasks}
    return {m: tuple(t for t in tasks if found[t] >= least[t]) for m, found in accuracies.items()}
