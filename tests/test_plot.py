"""Figures: the frames against plain loops over the table, and what each backend draws against the frame."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from alignment_table import BLIND, CKA, CONSTANT, KNN, LANGUAGE, VISION, make_run, make_table
from repalign import plot
from repalign.alignment import Alignment
from repalign.errors import RepalignError
from repalign.plot import frames, palette, views, words
from repalign.relate import trend


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


@pytest.fixture(scope="module")
def alignment(table) -> Alignment:
    return Alignment(table, make_run())


def pair(table, measure, x, y, scope="max"):
    rows = table[(table["scope"] == scope) & (table["measure"] == measure)]
    return rows[(rows["model_x"] == x) & (rows["model_y"] == y)]


# --- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.163, "0.163"), (0.0097752, "0.00978"), (0.9999, "1.00"), (0.99951, "1.00"), (1.0, "1.00"),
        (12.34, "12.3"), (999.6, "1,000"), (1234567, "1,234,567"), (-0.0123, "−0.0123"), (0, "0"), (1.5e-20, "0"),
        (3.2e-9, "3.20e−9"), (float("nan"), "–"), (float("inf"), "–"), (None, "–"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, expected):
    assert words.number(value) == expected


@pytest.mark.parametrize(
    ("p", "draws", "expected"),
    [
        (1 / 200, 199, "≤ .005"), (2 / 200, 199, ".01"), (1 / 1024, 1023, "≤ .00098"), (0.0312, None, ".031"),
        (0.25, 199, ".25"), (0.1, None, ".1"), (0.0999, None, ".1"), (1.0, 199, "1"), (math.nan, 199, "–"),
        (3e-7, None, "3.0e−7"), (2.5e-60, 0, "< 1e−10"), (0.0, 0, "< 1e−10"), (0.00012, None, ".00012"),
        (1 / 20000, 19999, "≤ 5.0e−5"),
    ],
)  # fmt: skip
def test_pvalues_say_when_they_are_at_the_floor(p, draws, expected):
    assert words.pvalue(p, draws) == expected


def test_labels_tell_measures_apart():
    assert (
        words.measure_label("MutualKNN(k=10, similarity='cosine', center=True)")
        == "Mutual k-NN (k = 10, cosine, center)"
    )
    assert words.measure_label("EditDistanceKNN(k=5)") == "Edit distance k-NN (k = 5)"
    assert (
        words.measure_label("CKA(kernel='linear', estimator='debiased', bandwidth=None, epsilon=0.0)")
        == "CKA (linear, debiased)"
    )
    assert words.measure_label("CKNNAPaper()") == "CKNNA paper"
    assert words.measure_label("My(thing") == "My(thing"


# --- colours -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ramp", "way"), [(palette.LIGHT, -1), (palette.DARK, 1)])
def test_ramps_are_monotone_in_lightness_and_readable(ramp, way):
    light = np.array([palette.luminance(c) for c in ramp])
    assert (way * np.diff(light) > 0).all()
    for color, y in zip(ramp, light, strict=True):
        a, b = sorted((y, palette.luminance(palette.ink_on(color))))
        assert (b + 0.05) / (a + 0.05) >= 4.5  # WCAG AA


def test_interpolation_keeps_the_ends():
    assert palette.LIGHT[0] == palette._LIGHT[0] and palette.DARK[-1] == palette._DARK[-1]


# --- scales and marks --------------------------------------------------------------------------


def test_a_score_scale_starts_at_chance():
    scale = views.scale_of("statistic", np.array([0.01, 0.2, np.nan]), np.array([0.02, 0.04]), 199, 0.05)
    assert (scale.low, scale.high) == (pytest.approx(0.03), 0.2)
    np.testing.assert_allclose(scale.position([0.01, 0.03, 0.115, 0.2, np.nan]), [0, 0, 0.5, 1, np.nan])
    assert scale.steps([np.nan, 0.0, 0.2]).tolist() == [-1, 0, palette.STEPS - 1]


def test_a_p_scale_is_logarithmic_from_alpha_to_the_floor():
    scale = views.scale_of("pvalue", np.array([0.5]), np.array([0.1]), 499, 0.05)
    np.testing.assert_allclose(scale.position([1, 0.05, math.sqrt(0.05 * 0.002), 0.002]), [0, 0, 0.5, 1], atol=1e-12)


def test_closed_form_pvalues_have_no_floor():
    scale = views.scale_of("pvalue", np.array([0.0, 1e-90, 0.2]), np.array([0.1]), 0, 0.05)
    assert (scale.low, scale.high) == (0.05, views.SMALL_P)
    assert scale.position([0.0, 1e-90, 1e-6, 0.05]).tolist() == [1, 1, 1, 0]
    mild = views.scale_of("pvalue", np.array([0.004, 0.2]), np.array([0.1]), 0, 0.05)
    assert mild.high == 0.004 and not words.at_floor(1e-90, 0) and words.p_sentence(0.0) == "p < 1e−10"


def test_too_few_draws_for_alpha_still_give_a_scale():
    scale = views.scale_of("pvalue", np.array([0.5]), np.array([0.1]), 9, 0.05)
    assert scale.position([1.0, 0.1]).tolist() == [0, 1]


def test_scores_below_chance_only_leave_a_blank_scale():
    scale = views.scale_of("statistic", np.array([0.1]), np.array([0.2]), 199, 0.05)
    assert scale.position([0.1, 0.3]).tolist() == [0, 0]


def test_holm_decides_unless_it_can_reject_nothing(table):
    pairs = views.rows_of(table, "max", KNN)
    assert views.adjustment(pairs, 0.05) == "p_holm"  # 30 / 1024 < .05
    few = pairs.assign(n_draws=199)
    assert views.adjustment(few, 0.05) == "p_bh"
    assert "after Benjamini-Hochberg over 30 pairs" in views.found_note(few, 0.05)


def test_the_best_pair_goes_by_calibrated_score(table):
    best = views.best_pair(views.rows_of(table, "max", KNN))
    rows = [r for r in table.to_dict("records") if r["scope"] == "max" and r["measure"] == KNN]
    assert best is not None and best["calibrated"] == max(r["calibrated"] for r in rows)
    raw = pd.DataFrame({"calibrated": [0.0, 0.1], "z": [1.0, 5.0], "statistic": [0.9, 0.3]})
    assert views.best_pair(raw)["statistic"] == 0.3  # a high score at a high chance level does not win
    assert views.best_pair(raw.assign(statistic=np.nan)) is None


# --- matrix ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", list(views.VIEWS))
def test_the_matrix_holds_the_numbers_of_the_table(table, value):
    frame = frames.matrix_frame(table, CKA, value)
    assert frame.rows == [m[0] for m in LANGUAGE] and frame.columns == [m[0] for m in VISION]
    for i, x in enumerate(frame.rows):
        for j, y in enumerate(frame.columns):
            (row,) = pair(table, CKA, x, y).to_dict("records")
            expected = row["statistic"] - row["null_mean"] if value == "gain" else row[value]
            assert frame.values[i, j] == expected or (math.isnan(expected) and math.isnan(frame.values[i, j]))
            if (x, y) == CONSTANT:
                assert frame.texts[i, j] == "–" and not frame.found[i, j]
    assert not frame.found[:, frame.columns.index(BLIND)].any() and frame.found.any()


def test_matplotlib_draws_the_matrix_of_the_frame(alignment):
    frame = frames.matrix_frame(alignment.table, KNN)
    figure = plot.matrix(alignment)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), frame.scale.position(frame.values))
    drawn = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert drawn == {at: text for at, text in np.ndenumerate(frame.labels)}  # noqa: C416
    assert drawn[0, frame.columns.index(BLIND)].startswith("○ ")
    title = figure.get_suptitle() + axes.get_title(loc="left")
    assert "Mutual k-NN (k = 10, cosine): score" in title and "n = 1,024" in title
    assert figure.axes[1].get_yticklabels()[0].get_text() == f"chance {words.number(frame.scale.low)}"


def test_text_is_readable_on_its_cell(alignment):
    axes = plot.matrix(alignment).axes[0]
    frame = frames.matrix_frame(alignment.table, KNN)
    steps = frame.scale.steps(frame.values)
    for text in axes.texts:
        j, i = (round(v) for v in text.get_position())
        assert to_hex(text.get_color()) == palette.ink_on(palette.LIGHT[steps[i, j]])


def test_all_against_all_is_mirrored(table):
    pairs = views.rows_of(table, "max", KNN).head(3).copy()
    pairs["model_x"], pairs["model_y"] = ["a", "a", "b"], ["b", "c", "c"]
    frame = frames.matrix_frame(pairs)
    assert frame.rows == frame.columns == ["a", "b", "c"]
    np.testing.assert_array_equal(frame.values, frame.values.T)
    assert np.isnan(np.diag(frame.values)).all() and frame.texts[0, 0] == ""
    assert frames.grid_of(pairs).mirrored.tolist() == [[False] * 3, [True, False, False], [True, True, False]]


# --- layer map ---------------------------------------------------------------------------------


def test_the_layer_map_holds_the_cells_and_marks_the_chosen_one(table):
    frame = frames.layer_map_frame(table, "bloom-7b1", "clip-large", KNN)
    for row in pair(table, KNN, "bloom-7b1", "clip-large", "cell").to_dict("records"):
        found = frame.values[row["index_x"], row["index_y"]]
        assert found == row["statistic"] or (math.isnan(found) and math.isnan(row["statistic"]))
    (top,) = pair(table, KNN, "bloom-7b1", "clip-large").to_dict("records")
    assert (
        frame.best
        == (top["index_x"], top["index_y"])
        == np.unravel_index(np.nanargmax(frame.values), frame.values.shape)
    )
    assert frame.chance == pytest.approx(10 / 1023) and frame.threshold == top["threshold"]
    assert frame.layers_x == [f"layer.{i}" for i in range(7)] and frame.layers_y == [f"layer.{i}" for i in range(5)]


def test_rows_in_any_order_give_the_same_map(table):
    shuffled = table.sample(frac=1, random_state=3)
    a, b = (frames.layer_map_frame(t, "llama-13b", "mae-base", CKA) for t in (table, shuffled))
    np.testing.assert_array_equal(a.values, b.values)


def test_selected_layers_keep_their_order(table):
    """Of layers 1, 4 and 6 of a model the map has three rows, and the mark is in the right one."""
    kept = table[(table["scope"] == "max") | table["index_x"].isin([1, 4, 6])]
    frame = frames.layer_map_frame(kept, "llama-13b", "clip-large", KNN)
    assert frame.layers_x == ["layer.1", "layer.4", "layer.6"] and frame.best is not None and frame.best[0] == 2


def test_matplotlib_draws_the_map_from_the_lower_left_with_its_mark(alignment):
    frame = frames.layer_map_frame(alignment.table, "bloom-7b1", "clip-large", KNN)
    axes = plot.layer_map(alignment, "bloom-7b1", "clip-large").axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), frame.scale.position(frame.values))
    bottom, top = axes.get_ylim()
    assert bottom < top
    assert {tuple(float(v[0]) for v in line.get_data()) for line in axes.lines} == {(frame.best[1], frame.best[0])}
    bar = " ".join(t.get_text() for t in axes.figure.axes[1].get_yticklabels())
    assert "chance 0.00978" in bar and "threshold 0.0137" in bar


def test_an_undefined_pair_has_a_map_without_a_mark(table):
    frame = frames.layer_map_frame(table, *CONSTANT, CKA)
    assert frame.best is None and np.isnan(frame.values).all() and "no pair of layers" in frame.best_text
    assert plot.layer_map(table, *CONSTANT, measure=CKA).axes[0].lines[:] == []


def test_without_names_the_best_pair_is_drawn(table):
    best = views.best_pair(views.rows_of(table, "max", KNN))
    frame = frames.layer_map_frame(table)
    assert (frame.model_x, frame.model_y) == (best["model_x"], best["model_y"])


# --- null and trend ----------------------------------------------------------------------------


def test_the_null_figure_shows_every_defined_pair_highest_first(alignment):
    frame = frames.null_frame(alignment.table, CKA)
    assert len(frame.observed) == 29 and frame.n_undefined == 1 and (np.diff(frame.observed) <= 0).all()
    for k, (x, y) in enumerate(frame.pairs):
        (row,) = pair(alignment.table, CKA, x, y).to_dict("records")
        shown = (frame.observed[k], frame.null_mean[k], frame.null_std[k], frame.threshold[k])
        assert shown == (row["statistic"], row["null_mean"], row["null_std"], row["threshold"])
    axes = plot.null(alignment, measure=CKA).axes[0]
    dots = {line.get_label(): line.get_xdata() for line in axes.lines}
    np.testing.assert_array_equal(dots["score, above chance"], frame.observed[frame.found])
    np.testing.assert_array_equal(dots["score, not above chance"], frame.observed[~frame.found])
    np.testing.assert_array_equal(dots["threshold"], frame.threshold)
    assert [t.get_text() for t in axes.get_yticklabels()] == frame.labels


def test_the_trend_figure_shows_points_line_and_band(alignment):
    found = trend(alignment.table, alignment.run["models"], "n_parameters", "x", KNN)
    frame = frames.trend_frame(found, 1024)
    axes = plot.trend(alignment).axes[0]
    by_label = {line.get_label(): line for line in axes.lines}
    for family in frame.families:
        rows = found.points[found.points["family"] == family]
        np.testing.assert_array_equal(by_label[family].get_xdata(), rows["x"])
        np.testing.assert_array_equal(by_label[family].get_ydata(), rows["alignment"])
    (line,) = [v for k, v in by_label.items() if k.startswith("_")]
    np.testing.assert_allclose(line.get_ydata(), found.predict(line.get_xdata()))
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(frame.low.min()) and corners.max() == pytest.approx(frame.high.max())
    assert {t.get_text() for t in axes.texts} == {m[0] for m in LANGUAGE}
    assert axes.get_xscale() == "log" and "5 models, each the mean over 6 partners; n = 1,024" in frame.subtitle
    assert f"chance {words.number(found.points['chance'].mean())}" in axes.get_ylabel()


def test_lower_is_better_reverses_the_axis_and_says_so(alignment):
    axes = plot.trend(alignment, "bits_per_byte").axes[0]
    left, right = axes.get_xlim()
    assert left > right and "axis reversed" in axes.get_xlabel()


def test_three_models_have_a_line_and_no_band():
    few = Alignment(make_table(LANGUAGE[:3], layers=(2, 2)), make_run(LANGUAGE[:3]))
    axes = plot.trend(few).axes[0]
    assert len(axes.collections) == 0 and any(line.get_label().startswith("_") for line in axes.lines)


# --- plotly and errors -------------------------------------------------------------------------


def test_plotly_draws_the_same_frames(alignment):
    matrix = plot.matrix(alignment, backend="plotly")
    frame = frames.matrix_frame(alignment.table)
    np.testing.assert_allclose(np.array(matrix.data[0].z, float), frame.scale.position(frame.values))
    assert [a.text for a in matrix.layout.annotations] == frame.labels.ravel().tolist()
    layer = frames.layer_map_frame(alignment.table)
    drawn = plot.layer_map(alignment, backend="plotly")
    np.testing.assert_allclose(np.array(drawn.data[0].z, float), layer.scale.position(layer.values))
    (shape,) = drawn.layout.shapes
    assert (shape.y0 + 0.5, shape.x0 + 0.5) == layer.best
    null = plot.null(alignment, backend="plotly")
    np.testing.assert_array_equal(null.data[2].x, frames.null_frame(alignment.table).observed)
    scatter = plot.trend(alignment, "bits_per_byte", backend="plotly")
    names = [t for trace in scatter.data for t in (trace.text if trace.text is not None else [])]
    assert sorted(names) == sorted(m[0] for m in LANGUAGE) and scatter.layout.xaxis.autorange == "reversed"


def test_names_are_neither_mathematics_nor_markup():
    hostile = [("$x^$<b>", "F$", 1e6, 0.9), ("b", "F$", 1e7, 0.8)]
    both = Alignment(make_table(hostile, VISION[:2], (2, 2)), make_run(hostile, VISION[:2]))
    for draw, names in ((plot.matrix, ()), (plot.layer_map, ("$x^$<b>",)), (plot.null, ()), (plot.trend, ())):
        draw(both, *names).savefig(io.BytesIO(), format="svg")  # a lone $ would not parse
        assert "$x^$&lt;b&gt;" in str(draw(both, *names, backend="plotly").to_dict())
    drawn = io.BytesIO()
    plot.matrix(both).savefig(drawn, format="svg", metadata={"Date": None})
    assert "$x^$&lt;b&gt;" in drawn.getvalue().decode()  # in the comment beside the glyphs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: plot.matrix(t, value="scores"), r"nothing to show is called 'scores'"),
        (lambda t: plot.matrix(t, backend="ploty"), r"no backend 'ploty'(.|\n)*did you mean 'plotly'"),
        (lambda t: plot.matrix(t, measure="X"), r"no measure 'X' in the result"),
        (lambda t: plot.matrix(t[t["scope"] == "cell"]), r"no pairs of models"),
        (lambda t: plot.matrix(t.head(0)), r"nothing to show"),
        (lambda t: plot.layer_map(t, "bloom-7b2"), r"no model_x 'bloom-7b2'(.|\n)*did you mean 'bloom-7b1'"),
        (lambda t: plot.layer_map(t, value="p_holm"), r"adjusted over pairs of models(.|\n)*use pvalue"),
    ],
)  # fmt: skip
def test_errors(table, call, message):
    with pytest.raises(RepalignError, match=message):
        call(table)
