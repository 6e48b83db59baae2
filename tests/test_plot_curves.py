"""Figures over several runs: the frames against the results, and what each backend draws against the frame."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from repalign import figures
from repalign.errors import RepalignError
from repalign.figures import curves
from repalign.relate import beside, contrast, curve, read_published, trend_curve
from test_relate_curves import MODELS, N, knn, rows

BACKENDS = ("matplotlib", "plotly")


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


def test_the_frame_of_a_curve_has_the_points_of_the_curve(swept):
    found = curve(swept, "k")
    frame = curves.curve_frame(found)
    assert frame.log and frame.bands and frame.each_chance and frame.chance is None
    assert [text for _, text in frame.ticks] == ["5", "10", "100"]
    for line, name in zip(frame.lines, found.lines, strict=True):
        own = found.line(name)
        for column, values in (("x", line.x), ("value", line.value), ("low", line.low), ("chance", line.chance)):
            np.testing.assert_array_equal(values, own[column])
    assert [line.label for line in frame.lines] == ["Mutual k-NN (cosine)", "CKNNA (cosine)"]
    assert frame.subtitle == "20 pairs of models at each point; n = 500"
    assert "chance 0.0100, n = 500" in frame.lines[0].hover[0]
    assert not curves.curve_frame(found, log=False).log


def test_one_chance_level_of_all_lines_is_one_line(swept):
    frame = curves.curve_frame(curve(swept, "k", by="model_y"))
    assert not frame.each_chance and frame.chance is not None
    np.testing.assert_allclose(frame.chance[1], [5 / (N - 1), 10 / (N - 1), 100 / (N - 1)])
    assert not frame.bands  # four lines have bars, aside of each other
    first, last = frame.lines[0].x, frame.lines[-1].x
    assert (first < [5, 10, 100]).all() and (last > [5, 10, 100]).all() and (last / first < 1.2).all()
    relative = curves.curve_frame(curve(swept, "k", by=None, relative="first"))
    assert relative.chance is None and not relative.each_chance


def test_categories_stand_side_by_side_in_their_order(prompts):
    frame = curves.curve_frame(curve(prompts, "variant", by="model_y"))
    assert [text for _, text in frame.ticks] == ["none", "a prompt", "another $prompt$"] and not frame.bands
    assert frame.lines[0].x.tolist() == [-0.25, 0.75, 1.75] and frame.lines[-1].x.tolist() == [0.25, 1.25, 2.25]


def test_ticks_that_have_no_room_are_left_out(swept):
    many = pd.concat([rows(f"CKNNA(k={k}, similarity='cosine')", k) for k in (10, 100, 800, 1000)])
    frame = curves.curve_frame(curve(many, "k"))
    assert [text for _, text in frame.ticks] == ["10", "100", "1,000"]


def test_a_competence_is_drawn_towards_the_better_end(swept):
    frame = curves.curve_frame(curve(swept[swept["measure"] == knn(5)], "bits_per_byte", models=MODELS))
    assert frame.reverse and frame.title == "Bits per byte and score" and frame.ticks == []
    assert "lower is better; axis reversed" in frame.x_label


def test_too_few_models_are_said():
    few = pd.concat([rows(knn(k), k, x=["a", "b"], y=["p"]) for k in (5, 10)])
    assert curves.curve_frame(curve(few, "k")).note == "too few models for intervals"


def test_curves_are_drawn(swept, prompts):
    text = drawn(figures.curve(curve(swept, "k")))
    for said in ("Score by k", "n = 500", "Mutual k-NN (cosine)", "chance of each line", "bands: 95 % intervals", "log scale"):
        assert said in text
    figure = figures.curve(curve(prompts, "variant"))
    assert "chance" in drawn(figure) and r"another \$prompt\$" in drawn(figure)
    assert len(figure.axes[0].collections) == 2  # chance in pieces, intervals as bars
    assert "no trend" in drawn(figures.curve(trend_curve(swept, "k", MODELS, "bits_per_byte")))
    one = figures.curve(curve(swept[swept["measure"] == knn(5)], "k"))
    assert "chance" in drawn(one)  # one point


def test_interactive_curves_have_the_same_numbers(swept, prompts):
    found = curve(swept, "k")
    figure = figures.curve(found, backend="plotly")
    lines = {trace.name: trace for trace in figure.data if trace.hovertemplate}
    np.testing.assert_array_equal(lines["CKNNA (cosine)"].y, found.line(found.lines[1])["value"])
    assert figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.ticktext) == ["5", "10", "100"]
    assert "n = 500" in figure.layout.title.text
    bars = figures.curve(curve(prompts, "variant"), backend="plotly")
    (trace,) = [trace for trace in bars.data if trace.error_y.array is not None]
    own = curve(prompts, "variant").table
    np.testing.assert_allclose(trace.error_y.array, own["high"] - own["value"])
    assert any(trace.name == "chance" for trace in bars.data)


def test_a_contrast_has_a_panel_for_every_variant(prompts):
    found = contrast(prompts)
    frame = curves.contrast_frame(found)
    assert [p.y_label for p in frame.panels] == ["a prompt, score", "another $prompt$, score"]
    points = sum(len(g.x) for g in frame.panels[0].groups)
    assert points == 20 and frame.panels[0].chance_x == pytest.approx(0.01) and frame.panels[0].diagonal
    low, high = frame.panels[0].limits
    assert low < 0.01 and high > found.table["value"].max()
    assert "Spearman" in frame.panels[0].heading and "20 pairs" in frame.panels[0].heading
    assert len(frame.panels[0].groups) == 4  # the side with fewer models
    figure = figures.contrast(found)
    text = drawn(figure)
    assert "n = 500" in text and "Dashed: mean chance level" in text and len(figure.axes) == 2
    interactive = figures.contrast(found, backend="plotly")
    assert sum(len(t.x) for t in interactive.data) == 40 and "Dashed" in interactive.layout.annotations[-1].text


def test_a_contrast_of_two_values_has_no_diagonal(prompts):
    raw = prompts[prompts["variant"] == "none"]
    panel = curves.contrast_frame(contrast(raw, value=("statistic", "calibrated"))).panels[0]
    assert not panel.diagonal and panel.limits is None and panel.chance_y == 0
    assert "Calibrated score" in drawn(figures.contrast(contrast(raw, value=("statistic", "calibrated"))))


def test_many_models_have_one_colour():
    names = [f"m{i}" for i in range(9)]
    both = pd.concat([rows(knn(10), i, x=names, y=[f"w{n}" for n in names], variant=v) for i, v in enumerate("ab")])
    frame = curves.contrast_frame(contrast(both))
    assert [g.label for g in frame.panels[0].groups] == ["pairs of models"]
    assert figures.contrast(contrast(both)).legends == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_ours_beside_published_values(tmp_path, backend):
    path = tmp_path / "figure.csv"
    path.write_text("m,clip_h,dinov2_s\na,0.1,0.2\nb,0.2,0.3\nc,0.25,0.4\n")
    table = rows(knn(10), 1, y=["vit_huge_patch14_clip_224.laion2b", "vit_small_patch14_dinov2.lvd142m"])
    found = beside(table, read_published(path))
    frame = curves.beside_frame(found)
    assert [g.label for g in frame.panels[0].groups] == ["CLIP", "DINOv2"]
    assert "6 pairs of models, ours at n = 500" in frame.subtitle and np.isnan(frame.panels[0].chance_x)
    figure = figures.beside(found, backend=backend)
    if backend == "plotly":
        assert sum(len(t.x) for t in figure.data) == 6 and len(figure.layout.shapes) == 2
    else:
        text = drawn(figure)
        assert "Pearson" in text and "Published: figure.csv" in text and "CLIP" in text


def test_unknown_backends_are_refused(swept):
    with pytest.raises(RepalignError, match=r"no backend 'matplot'(.|\n)*did you mean 'matplotlib'"):
        figures.curve(curve(swept, "k"), backend="matplot")
