"""The experiments on the theory: their tables hold what the page says, their figures show their points."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from repalign import RepalignError
from repalign.prh.theory import experiments, figures

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/studies/theory.md").read_text("utf-8")
found = cache(lambda name: getattr(experiments, name)())


def page_table(first: str) -> list[list[str]]:
    """The cells of the page's table whose first column is called so."""
    lines = PAGE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.parametrize("name", ["infonce", "existence", "bijections", "lossy"])
def test_figures_are_drawn(name, tmp_path):
    experiment = found(name)
    assert len(experiment.points) >= len(experiment.table) > 3
    path = tmp_path / "figure.png"
    figures.draw(experiment).savefig(path, format="png", dpi=110)
    assert 5_000 < path.stat().st_size < 120_000


def test_axes_are_named_after_the_learner_whose_kernel_they_show():
    points = found("bijections").points
    panels = figures.draw(found("bijections")).axes
    for axes, (pair, rows) in zip(panels, points.groupby("pair", sort=False), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), rows[["kernel_x", "kernel_y"]])
        assert f"{axes.get_xlabel()} and {axes.get_ylabel()}" == pair.replace(", n_negatives=None", "")
    assert panels[2].get_xlabel().startswith("BinaryNCE") and panels[2].get_ylabel().startswith("InfoNCE")


def test_every_experiment_has_a_figure():
    assert list(figures.FIGURES) == [f.__name__ for f in experiments.EXPERIMENTS]
    with pytest.raises(RepalignError, match="no figure of 'x'"):
        figures.draw(experiments.Experiment("x", "", None, None))


def test_infonce_rows():
    table = found("infonce").table
    assert (table["error_per_row"] < 1e-6).all()
    tied = table["critic"] == "<f, f>"
    assert (table.loc[tied, "spread_of_constants"] < 1e-6).all() and (
        table.loc[~tied, "spread_of_constants"] > 0.1
    ).all()


def test_one_to_one_views_agree():
    table = found("bijections").table
    assert (table["difference"] < 1e-6).all()
    np.testing.assert_allclose(table[["cka", "rsa", "mutual_knn"]], 1, atol=1e-9)


def test_existence_as_on_the_page():
    table = found("existence").table.set_index("world")
    assert (table.loc[table["exists"], "gap"] < 1e-9).all() and (table.loc[~table["exists"], "gap"] > 1e-9).all()
    rows = page_table("world")
    assert len(rows) == len(table)
    for world, eigenvalue, exists, proposition, gap, error in rows:
        row = table.loc[world]
        assert (exists, proposition) == tuple("yes" if row[f] else "no" for f in ("exists", "proposition"))
        assert float(eigenvalue) == pytest.approx(row["lambda_min"], abs=6e-4 * max(1, abs(row["lambda_min"]) * 10))
        assert (gap == "0") == row["exists"]
        for stated, value in ((gap, row["gap"]), (error, row["error"])):
            bound = stated.startswith("<")
            assert (
                value < float(stated.strip("< "))
                if bound
                else float(stated) == pytest.approx(value, rel=0.02, abs=1e-9)
            )


def test_lossy_views_as_on_the_page():
    table = found("lossy").table
    kept = {f: spearmanr(table[f], table["cka"]).statistic for f in ("entropy_kept", "information_kept")}
    stated = re.search(
        r"Spearman (0\.\d+) with the information kept and (0\.\d+) with the entropy kept", " ".join(PAGE.split())
    )
    assert [float(s) for s in stated.groups()] == pytest.approx(
        [kept["information_kept"], kept["entropy_kept"]], abs=0.01
    )
    by_view = table.set_index("view")
    rows = page_table("view")
    assert len(rows) >= 8
    for view, symbols, *numbers in rows:
        row = by_view.loc[view]
        assert int(symbols) == row["symbols"]
        fields = ["entropy_kept", "information_kept", "cka", "rsa", "mutual_knn"]
        assert [float(v) for v in numbers] == pytest.approx(list(row[fields]), abs=0.006)


def test_samples_bring_two_modalities_together():
    experiment = experiments.samples((1_000, 100_000), repeats=2)
    few, many = experiment.table.to_dict("records")
    assert few["cka"] < 0.9 < 0.99 < many["cka"] and few["error_x"] > 5 * many["error_x"]
    assert figures.draw(experiment).axes[0].get_xscale() == "log"


def test_the_study_writes_tables_figures_and_a_page(tmp_path, monkeypatch):
    from repalign.prh import theory_study
    from repalign.study import load_study

    known = {name: lambda name=name, **_: found(name) for name in theory_study._experiments()}  # each is run once in this file
    monkeypatch.setattr(theory_study, "_experiments", lambda: known)
    text = (ROOT / "studies/theory.yaml").read_text("utf-8")
    path = tmp_path / "study.yaml"
    path.write_text(text + "only: [bijections]\n")
    study = load_study(path)
    assert any("1 experiments" in line for line in study.plan().lines)
    outcome = study.run()
    written = sorted(p.name for p in (tmp_path / "runs/theory/results").iterdir())
    assert written == ["01-bijections.csv", "01-bijections.png", "01-bijections.svg", "files.json"]
    assert "K_PMI" in outcome.drawn[0].title and "<img" in (tmp_path / "runs/theory/report.html").read_text("utf-8")
    path.write_text(text + "only: [recovry]\n")
    with pytest.raises(RepalignError, match=r"only\[0\]: (.|\n)*did you mean 'recovery'"):
        load_study(path)


def test_the_seed_of_a_study_is_that_of_its_experiments(tmp_path, monkeypatch):
    from repalign.prh import theory_study
    from repalign.study import load_study

    seeds = []
    known = {"bijections": lambda seed=0, **_: seeds.append(seed) or found("bijections")}
    monkeypatch.setattr(theory_study, "_experiments", lambda: known)
    (tmp_path / "study.yaml").write_text("experiment: theory\nname: theory\nseed: 7\n")
    load_study(tmp_path / "study.yaml").run()
    assert seeds == [7]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", PAGE))))
def test_links_of_the_page_exist(target):
    path = ROOT / "docs/studies" / target
    assert path.exists() and path.stat().st_size < 120_000
