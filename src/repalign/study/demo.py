"""The demo: a study of the toy world (demo.yaml), with models that are trained on the spot, and words on what came out."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from repalign.comparison.alignment import Alignment
from repalign.errors import RepalignError
from repalign.study.base import Plan
from repalign.study.load import load_study
from repalign.text import Progress, silent

STUDY = Path(__file__).with_name("demo.yaml")


def run_demo(
    folder: str | Path, *, progress: Progress = silent, on_plan: Callable[[Plan], None] | None = None
) -> tuple[Alignment, list[str]]:
    """Train the models, run the study that is written into `folder`, and say in words what came out.

    The folder then holds study.yaml (to be edited and run again), the store, the results and report.html. What is there
    already is kept and used again.
    """
    from repalign.sources import parse_spec
    from repalign.toyworld.models import train_roster

    folder = Path(folder)
    path = folder / "study.yaml"
    if folder.exists() and not path.exists() and any(folder.iterdir()):
        raise RepalignError(
            f"{folder} holds other things", expected="a new or empty folder, or one of an earlier demo",
            remedy="name another one with --out",
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        shutil.copyfile(STUDY, path)
    study: Any = load_study(path)
    specs = [parse_spec(entry.spec) for entry in (*study.x, *(study.y or ()))]
    train_roster([spec.path for spec in specs if spec.scheme == "toy"], progress=progress)
    alignment = study.run(progress=progress, on_plan=on_plan).alignment
    return alignment, findings(alignment)


# --- what came out -------------------------------------------------------------------------------


def findings(alignment: Alignment) -> list[str]:
    """Sentences about this very result, whatever it says."""
    measure, models = alignment.measures[0], {m["name"]: m for m in alignment.run["models"]}
    table, best = alignment.matrix(measure), alignment.best(measure).iloc[0]
    trained_x, trained_y = ([m for m in names if _trained(models[m])] for names in (table.index, table.columns))
    plain = table.drop(index=trained_x, columns=trained_y)
    return [
        "",
        f"What came out ({measure}, n = {best.n}; the best pair of layers of two models; whatever it says):",
        f"* trained with trained models, checkpoints among them: mean {_mean(table.loc[trained_x, trained_y]):.3f}; "
        f"untrained twins and controls with each other: {_mean(plain):.3f}; "
        f"chance, search over layers counted in: {best.null_mean:.3f}.",
        f"* the best pair is {best.model_x} and {best.model_y}: {best.statistic:.3f}, p = {best.pvalue:.2g}.",
        *_language(alignment, measure),
        *_vision(table, models, trained_x),
    ]


def _trained(record: dict[str, Any]) -> bool:
    return record["objective"] not in (None, "none", "untrained")


def _mean(scores: pd.DataFrame) -> float:
    return float(scores.to_numpy().mean()) if scores.size else math.nan


def _language(alignment: Alignment, measure: str) -> list[str]:
    """Does alignment rise with competence, for language? What the report's own trend says, and no more."""
    from repalign.relate import trend

    models = alignment.run["models"]
    if sum("bits_per_word" in m["scores"] for m in models) < 4:
        return []
    found = trend(alignment.table, models, "bits_per_word", "x", measure)
    if found.inference is None:
        return []
    return [
        f"* language: {_verdict(found.inference.slope_interval, found.inference.spearman_interval)} "
        f"{found.text.partition('. ')[0].removesuffix('.')}. Fewer bits per word are more competence."
    ]


def _verdict(slope: tuple[float, float], spearman: tuple[float, float]) -> str:
    """A trend is one where neither interval, of the slope and of the rank correlation with bits per word, holds 0."""
    if max(slope[1], spearman[1]) < 0:
        return "alignment rises with competence."
    if min(slope[0], spearman[0]) > 0:
        return "alignment falls with competence."
    return "this run shows no clear trend of alignment with competence."


def _vision(table: Any, models: dict[str, Any], trained_x: list[str]) -> list[str]:
    """What training did to each vision model against its untrained twin or earlier checkpoint, objective by objective."""
    by_objective: dict[str, list[float]] = {}
    for m in table.columns:
        if _trained(models[m]) and "-step" not in m:
            by_objective.setdefault(models[m]["objective"], []).append(float(table.loc[trained_x, m].mean()))
    twins = [m for m in table.columns if "untrained" in m]
    if not by_objective or not twins:
        return []
    level = _mean(table.loc[trained_x, twins])
    means = {k: sum(v) / len(v) for k, v in by_objective.items()}
    said = ", ".join(f"{k} {mean:.3f}" for k, mean in sorted(means.items(), key=lambda i: -i[1]))
    below = sorted(k for k, mean in means.items() if mean <= level)
    verdict = f"not above it here: {' and '.join(below)}" if below else "all are above it here"
    return [
        f"* vision: mean alignment with the trained language models by objective: {said}; the untrained network {level:.3f}; "
        f"{verdict} (means of one run, without an interval)."
    ]
