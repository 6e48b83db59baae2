"""The demo: a study of the toy world that anyone can edit, and words that follow from the result."""

from __future__ import annotations

import pandas as pd
import pytest

from repalign.comparison.alignment import Alignment
from repalign.errors import RepalignError
from repalign.study import demo, load_study


def test_the_demo_is_a_study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(demo.STUDY.read_text("utf-8"))
    study = load_study(path)
    assert len(study.x) == len(study.y) == 10 and all(e.spec.startswith("toy:") for e in (*study.x, *study.y))
    assert study.results == tmp_path / "results" and study.report == tmp_path / "report.html"


@pytest.mark.slow
def test_a_small_demo_end_to_end_and_again(tmp_path, monkeypatch):
    """Two models a side, really trained; the second run trains, extracts and compares nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = ("language-conv8-next", "language-bag", "vision-cnn3-supervised", "vision-pixels")
    lines = demo.STUDY.read_text("utf-8").splitlines()
    small = tmp_path / "small.yaml"
    small.write_text("\n".join(line for line in lines if '"toy:' not in line or line.split(":")[-1].strip('"') in kept))
    monkeypatch.setattr(demo, "STUDY", small)
    out = tmp_path / "out"
    first, told = demo.run_demo(out)
    best = first.best(first.measures[0]).set_index(["model_x", "model_y"])
    trained = best.loc[("language-conv8-next", "vision-cnn3-supervised")]
    assert trained.pvalue == pytest.approx(1 / 1024) and trained.statistic > 2 * trained.null_mean
    assert (out / "report.html").is_file() and any("best pair" in line for line in told)
    notes = []
    second, _ = demo.run_demo(out, progress=lambda task, done, total, note=None: notes.append(f"{task}: {note}"))
    pd.testing.assert_frame_equal(first.table, second.table, check_exact=True)
    assert sum("complete in the store" in n for n in notes) == 4 and any("8 of 8 tiles were there" in n for n in notes)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RepalignError, match="holds other things"):
        demo.run_demo(tmp_path)


def result(language: list[float], vision: dict[str, float]) -> Alignment:
    """A made result: alignment of language models of rising competence, and of vision objectives."""
    rows, models = [], []
    for i, x in enumerate(language):
        models.append({"name": f"l{i}", "objective": "next", "scores": {"bits_per_word": 3.0 - i / 10}})
        for objective, y in vision.items():
            row = dict.fromkeys(("index_x", "index_y"), 0) | {"layer_x": "a", "layer_y": "b", "scope": "max"}
            row |= {"model_x": f"l{i}", "model_y": objective, "measure": "M", "n": 9, "statistic": x + y}
            rows.append(row | {"null_mean": 0.01, "pvalue": 0.001, "calibrated": x + y, "z": 100 * (x + y)})
    models += [{"name": o, "objective": "untrained" if "untrained" in o else o, "scores": {}} for o in vision]
    return Alignment(pd.DataFrame(rows), {"models": models})


def words(language: list[float], supervised: float, untrained: float) -> str:
    return "\n".join(demo.findings(result(language, {"supervised": supervised, "net-untrained": untrained, "other": 0.2})))


def test_the_words_follow_from_the_numbers():
    rising = words([0.1, 0.21, 0.3, 0.41, 0.5], 0.3, 0.1)
    assert "alignment rises with competence." in rising and "all are above it here" in rising
    falling = words([0.5, 0.41, 0.3, 0.21, 0.1], 0.1, 0.3)
    assert "alignment falls with competence." in falling and "not above it here: other and supervised" in falling
    assert "shows no clear trend" in words([0.3, 0.1, 0.4, 0.1, 0.3], 0.1, 0.3)


def test_a_high_correlation_whose_interval_holds_0_is_no_trend():
    """Spearman .7 over five models, its interval from -.89 to 1: the words were "rises", by the correlation alone."""
    from repalign.relate import trend

    made = result([0.1, 0.11, 0.3, 0.12, 0.13], {"supervised": 0.3, "net-untrained": 0.1, "other": 0.2})
    found = trend(made.table, made.run["models"], "bits_per_word", "x", "M")
    assert -found.spearman > 0.69 and found.inference.spearman_interval[1] > 0
    told = "\n".join(demo.findings(made))
    assert "shows no clear trend" in told and "rises" not in told and found.text.partition(". ")[0] in told
