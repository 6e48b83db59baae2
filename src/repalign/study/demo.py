"""The demo: a study of the toy world (demo.yaml), with models that are trained on the spot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repalign.comparison.alignment import Alignment
from repalign.errors import RepalignError
from repalign.files import refuse_unwritable
from repalign.study.base import Plan
from repalign.study.load import load_study
from repalign.text import Progress, silent

STUDY = Path(__file__).with_name("demo.yaml")


def run_demo(
    folder: str | Path, *, progress: Progress = silent, on_plan: Callable[[Plan], None] | None = None
) -> Alignment:
    """Train the models, and run the study that is written into `folder`.

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
    refuse_unwritable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        shutil.copyfile(STUDY, path)
    study: Any = load_study(path)
    specs = [parse_spec(entry.spec) for entry in (*study.x, *(study.y or ()))]
    train_roster([spec.path for spec in specs if spec.scheme == "toy"], progress=progress)
    return study.run(progress=progress, on_plan=on_plan).alignment
