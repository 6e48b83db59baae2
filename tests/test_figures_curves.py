"""Figures over several runs: what is drawn against the findings."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from repalign import figures
from repalign.errors import RepalignError
from repalign.relate import beside, contrast, curve, read_published, trend_curve
from test_relate_curves import MODELS, N, knn, rows


@pytest.fixture(scope="module")
def swept() -> pd.DataFrame:
    parts = [rows(knn(k), k, chance=k / (N - 1)) for k in (5, 10, 100)]
    return pd.concat([*parts, *(rows(f"CKNNA(k={k}, similarity='cosine')", k, chance=0.002) for k in (10, 100))])


@pytest.fixture(scope="module")
def prompts() -> pd.DataFrame:
    return pd.concat([rows(knn(10), i, variant=v) for i, v in enumerate(("none", "a prompt", "another $prompt$"))])


def drawn(figure) -> str:
    """Everything that a matplotlib figure says, after it was drawn."""
    target = io.BytesIO()
    figure.savefig(target, format="png")
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    texts += [axes.get_title(loc="left") for axes in figure.axes]
    texts += [label.get_text() for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    texts += [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel())]
    texts += [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    return "\n".join([*texts, figure.get_suptitle(), figure.get_supxlabel()])


def by_label(axes) -> dict:
    """The lines of a curve by their label."""
    return {line.get_label(): line for line in axes.lines}


def ticks(axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def test_a_curve_has_the_points_of_the_finding(swept):
    found = curve(swept, "k")
    axes = figures.curve(found)
    assert axes.get_xscale() == "log" and ticks(axes) == ["5", "10", "100"]
    labels = ["mutual k-NN", "CKNNA"]
    for label, name, band in zip(labels, found.lines, axes.collections, strict=True):
        own, line = found.line(name), by_label(axes)[label]
        np.testing.assert_array_equal(line.get_xydata(), own[["x", "value"]])
        corners = band.get_paths()[0].vertices
        for x, low, high in own[["x", "low", "high"]].to_numpy():
            assert {low, high} <= set(corners[corners[:, 0] == x, 1])
        (level,) = [other for other in axes.lines if np.array_equal(other.get_ydata(), own["chance"])]
        assert level.get_color() == line.get_color() and level.is_dashed()
    assert axes.get_title(loc="left") == "20 pairs of models at each point; n = 500"
    assert "chance of each line" in by_label(axes)
    assert figures.curve(found, log=False).get_xscale() == "linear"
    with pytest.raises(RepalignError, match="a logarithmic axis has positive numbers only"):
        figures.curve(curve(swept.assign(share=np.repeat([0.0, 1.0], len(swept) // 2)), "share", over=["measure"]), log=True)


def test_one_chance_level_of_all_lines_is_one_line(swept):
    axes = figures.curve(curve(swept, "k", by="model_y"))
    lines = by_label(axes)
    assert "chance of each line" not in lines
    np.testing.assert_allclose(lines["chance"].get_ydata(), [5 / (N - 1), 10 / (N - 1), 100 / (N - 1)])
    assert all(isinstance(c, LineCollection) for c in axes.collections)  # four lines have bars, aside of each other
    first, last = (lines[name].get_xdata() for name in ("p", "s"))
    assert (first < [5, 10, 100]).all() and (last > [5, 10, 100]).all() and (last / first < 1.2).all()
    relative = by_label(figures.curve(curve(swept, "k", by=None, relative="first")))
    assert not [label for label in relative if "chance" in label]


def test_categories_stand_side_by_side_in_their_order(prompts):
    axes = figures.curve(curve(prompts, "variant", by="model_y"))
    assert ticks(axes) == ["none", "a prompt", r"another \$prompt\$"]
    assert by_label(axes)["p"].get_xdata().tolist() == [-0.25, 0.75, 1.75]
    assert by_label(axes)["s"].get_xdata().tolist() == [0.25, 1.25, 2.25]
    bars = [c for c in axes.collections if isinstance(c, LineCollection)]
    own = curve(prompts, "variant", by="model_y").line("p")
    ends = [[path.vertices[:, 1] for path in c.get_paths()] for c in bars]
    assert any(np.array_equal(e, own[["low", "high"]].to_numpy()) for e in ends)


def test_ticks_that_have_no_room_are_left_out(swept):
    many = pd.concat([rows(f"CKNNA(k={k}, similarity='cosine')", k) for k in (10, 100, 800, 1000)])
    assert ticks(figures.curve(curve(many, "k"))) == ["10", "100", "1,000"]


def test_a_competence_is_drawn_towards_the_better_end(swept):
    figure = figures.curve(curve(swept[swept["measure"] == knn(5)], "bits_per_byte", models=MODELS)).figure
    left, right = figure.axes[0].get_xlim()
    assert left > right and figure.get_suptitle() == "Bits per byte and score"
    assert "lower is better; axis reversed" in figure.axes[0].get_xlabel()


def test_too_few_models_are_said():
    few = pd.concat([rows(knn(k), k, x=["a", "b"], y=["p"]) for k in (5, 10)])
    assert figures.curve(curve(few, "k")).get_xlabel().endswith("(too few models for intervals)")


def test_curves_are_drawn(swept, prompts):
    text = drawn(figures.curve(curve(swept, "k")).figure)
    for said in ("Score by k", "n = 500", "mutual k-NN", "chance of each line", "bands: 95 % intervals", "log scale"):
        assert said in text
    figure = figures.curve(curve(prompts, "variant")).figure
    assert "chance" in drawn(figure) and r"another \$prompt\$" in drawn(figure)
    assert len(figure.axes[0].collections) == 2  # chance in pieces, intervals as bars
    assert "no trend" in drawn(figures.curve(trend_curve(swept, "k", MODELS, "bits_per_byte")).figure)
    one = figures.curve(curve(swept[swept["measure"] == knn(5)], "k")).figure
    assert "chance" in drawn(one)  # one point


def test_a_contrast_has_a_panel_for_every_variant(prompts):
    found = contrast(prompts)
    figure = figures.contrast(found)[0].figure
    first, second = figure.axes
    assert [a.get_ylabel() for a in figure.axes] == ["a prompt, score", r"another \$prompt\$, score"]
    points = [line for line in first.lines if line.get_linestyle() == "None"]
    assert len(points) == 4  # the side with fewer models
    expected = found.beside("a prompt")[["value_first", "value_second"]].to_numpy()
    shown = np.concatenate([line.get_xydata() for line in points])
    np.testing.assert_array_equal(shown[np.lexsort(shown.T)], expected[np.lexsort(expected.T)])
    dashed = [line for line in first.lines if line.is_dashed()]
    np.testing.assert_allclose([line.get_xydata().ravel() for line in dashed], [[0.01, 0, 0.01, 1], [0, 0.01, 1, 0.01]])
    low, high = first.get_xlim()
    assert low < 0.01 and high > found.table["value"].max() and first.get_ylim() == second.get_xlim() == (low, high)
    assert len(first.lines) == 4 + 2 + 1  # groups, chance of both, the diagonal
    heading = first.get_title(loc="left")
    assert "Spearman" in heading and "20 pairs" in heading
    text = drawn(figure)
    assert "n = 500" in text and "Dashed: mean chance level" in text and "line: equal" in text


def test_a_contrast_of_two_values_has_no_diagonal(prompts):
    raw = prompts[prompts["variant"] == "none"]
    figure = figures.contrast(contrast(raw, value=("statistic", "calibrated"))).figure
    (axes,) = figure.axes
    assert len([line for line in axes.lines if line.get_linestyle() != "None"]) == 2 and axes.get_xlim() != axes.get_ylim()
    (up,) = [line for line in axes.lines if line.is_dashed() and line.get_xdata()[0] == 0]
    assert list(up.get_ydata()) == [0, 0]  # what is no more than chance has a calibrated score of 0
    assert "Calibrated score" in drawn(figure) and "line: equal" not in drawn(figure)


def test_many_models_have_one_colour():
    names = [f"m{i}" for i in range(9)]
    both = pd.concat([rows(knn(10), i, x=names, y=[f"w{n}" for n in names], variant=v) for i, v in enumerate("ab")])
    figure = figures.contrast(contrast(both)).figure
    assert [line.get_label() for line in figure.axes[0].lines if line.get_linestyle() == "None"] == ["pairs of models"]
    assert figure.legends == []


def test_ours_beside_published_values(tmp_path):
    path = tmp_path / "figure.csv"
    path.write_text("m,clip_h,dinov2_s\na,0.1,0.2\nb,0.2,0.3\nc,0.25,0.4\n")
    table = rows(knn(10), 1, y=["vit_huge_patch14_clip_224.laion2b", "vit_small_patch14_dinov2.lvd142m"])
    found = beside(table, read_published(path))
    figure = figures.beside(found).figure
    (axes,) = figure.axes
    groups = {line.get_label(): line.get_xydata() for line in axes.lines if line.get_linestyle() == "None"}
    assert list(groups) == ["CLIP", "DINOv2"]
    for family, points in groups.items():
        own = found.table.loc[(found.table["family"] == family) & found.table["ours"].notna()]
        np.testing.assert_array_equal(points, own[["published", "ours"]])
    assert "6 pairs of models, ours at n = 500" in axes.get_title(loc="left")
    assert len([line for line in axes.lines if line.is_dashed()]) == 1  # our chance level
    text = drawn(figure)
    assert "Pearson" in text and "Published: figure.csv" in text and "CLIP" in text
