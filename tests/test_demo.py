"""The demo: a study of the toy world that anyone can edit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest

from repalign.errors import RepalignError
from repalign.study import demo, load_study
from repalign.toyworld import models, recipes


def test_the_demo_is_a_study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(demo.STUDY.read_text("utf-8"))
    study = load_study(path)
    assert len(study.x) == len(study.y) == 10 and all(e.spec.startswith("toy:") for e in (*study.x, *study.y))
    assert study.results == tmp_path / "results" and study.report == tmp_path / "report.html"


@pytest.mark.slow
def test_a_small_demo_end_to_end_and_again(tmp_path, monkeypatch):
    """Two models a side, trained for fewer steps, in this process; the second run trains, extracts and compares nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "train_roster", partial(models.train_roster, workers=1))  # of more test_toyworld asks
    for name, steps in (("language-conv8-next", 300), ("vision-cnn3-supervised", 100)):
        recipe = replace(recipes.RECIPES[name], steps=steps, checkpoints=())
        for table in (recipes.RECIPES, recipes.NAMES):
            monkeypatch.setitem(table, name, recipe)
    kept = ("language-conv8-next", "language-bag", "vision-cnn3-supervised", "vision-pixels")
    lines = demo.STUDY.read_text("utf-8").splitlines()
    small = tmp_path / "small.yaml"
    small.write_text("\n".join(line for line in lines if '"toy:' not in line or line.split(":")[-1].strip('"') in kept))
    monkeypatch.setattr(demo, "STUDY", small)
    out = tmp_path / "out"
    first = demo.run_demo(out)
    best = first.best(first.measures[0]).set_index(["model_x", "model_y"])
    trained = best.loc[("language-conv8-next", "vision-cnn3-supervised")]
    assert trained.pvalue == pytest.approx(1 / 1024) and trained.statistic > 2 * trained.null_mean
    assert (out / "report.html").is_file()
    notes = []
    second = demo.run_demo(out, progress=lambda task, done, total, note=None: notes.append(f"{task}: {note}"))
    pd.testing.assert_frame_equal(first.table, second.table, check_exact=True)
    assert sum("complete in the store" in n for n in notes) == 4 and any("8 of 8 parts were done" in n for n in notes)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RepalignError, match="holds other things"):
        demo.run_demo(tmp_path)
