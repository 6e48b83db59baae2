"""Figures: the frames against plain loops over the table, and what each backend draws against the frame."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from alignment_table import BLIND, CKA, CONSTANT, KNN, LANGUAGE, VISION, make_run, make_table
from repalign import figures
from repalign import text as words
from repalign.comparison.alignment import Alignment
from repalign.errors import RepalignError
from repalign.figures import frames, layers, palette
from repalign.figures import quantities as views
from repalign.figures.conventions import Reading
from repalign.relate import trend
from repalign.report import svg
from repalign.report.svg import trend_svg


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


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0.2312, 0.1987, 0.2641), "0.231 [0.199, 0.264]"), ((0.0123, -0.0012, 0.1), "0.0123 [−0.0012, 0.1000]"),
        ((1234.0, 1100.2, 1300.4), "1,234 [1,100, 1,300]"), ((0.2, math.nan, 0.3), "0.200"), ((0.2, None, None), "0.200"),
        ((math.nan, 0.1, 0.2), "–"),
    ],
)  # fmt: skip
def test_an_interval_has_the_decimals_of_its_number(numbers, expected):
    assert words.interval(*numbers) == expected


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


def test_joint_draws_decide_then_holm_then_benjamini_hochberg(table):
    """30 pairs, 1,023 draws: 30 / 1024 < .05, so Holm can reject; with 199 draws it cannot."""
    pairs = views.rows_of(table, "max", KNN)
    assert views.adjustment(pairs, 0.05) == "p_maxt"
    without = pairs.assign(p_maxt=np.nan)
    assert views.adjustment(without, 0.05) == "p_holm" and views.adjustment(without.assign(n_draws=199), 0.05) == "p_bh"
    part = pairs.assign(p_maxt=pairs["p_maxt"].where(pairs.index != 3))
    assert views.adjustment(part, 0.05) == "p_holm"  # one pair has a p-value and no maxT
    constant = views.rows_of(table, "max", CKA)
    assert constant["p_maxt"].isna().sum() == 1 and views.adjustment(constant, 0.05) == "p_maxt"  # an undefined pair


def test_what_is_found_follows_the_rule_that_decides(table):
    pairs = views.rows_of(table, "max", KNN)
    torn = pairs.assign(p_maxt=np.where(pairs.index % 2, 0.01, 0.9), p_holm=0.9, p_bh=0.9)
    np.testing.assert_array_equal(views.found(torn, 0.05), pairs.index % 2 == 1)
    np.testing.assert_array_equal(
        views.found(torn.assign(p_maxt=np.nan, p_holm=pairs["p_maxt"]), 0.05), pairs["p_maxt"] <= 0.05
    )



@pytest.mark.parametrize(("draws", "rule"), [(19, "p_maxt"), (19, "p_bh"), (0, "p_holm")])
def test_a_p_that_equals_alpha_is_found(table, draws, rule):
    """Slow measures of a group get 19 draws: their least p is 1/20, which is alpha itself."""
    pairs = views.rows_of(table, "max", KNN).assign(n_draws=draws, p_maxt=np.nan, p_holm=0.9, p_bh=0.9)
    pairs[rule] = np.where(pairs.index % 2, 1 / 20, np.nextafter(0.05, 1))
    assert views.adjustment(pairs, 0.05) == rule
    np.testing.assert_array_equal(views.found(pairs, 0.05), pairs.index % 2 == 1)


@pytest.mark.parametrize(
    ("run", "change", "expected"),
    [
        (
            {"null": {"relabelled": "one side"}},
            {},
            "by step-down maxT over 30 pairs (family-wise; all models of one side relabelled alike, which keeps",
        ),
        (
            {"null": {"relabelled": "every model"}},
            {},
            "step-down maxT over 30 pairs (family-wise; all models relabelled jointly,",
        ),
        ({}, {}, "step-down maxT over 30 pairs (family-wise; all pairs relabelled jointly,"),
        ({}, {"p_maxt": np.nan}, "by Holm’s rule over 30 pairs (family-wise; valid under any dependence)"),
        (
            {"alpha": 0.01},
            {"p_maxt": np.nan, "n_draws": 199},
            "at α = 0.01 by Benjamini and Hochberg’s rule over 30 pairs (false discovery rate; for independent or",
        ),
    ],
)
def test_the_note_names_the_rule_and_why_it_is_valid(table, run, change, expected):
    pairs = views.rows_of(table, "max", KNN).assign(**change)
    assert expected in views.found_note(pairs, Reading.of(run))
    assert expected in frames.matrix_frame(table.assign(**change), KNN, reading=Reading.of(run)).note
    assert views.found_note(pairs.head(1), Reading.of(run)).count("over") == 0  # one pair needs no rule


def test_the_best_pair_goes_by_calibrated_score(table):
    best = views.best_pair(views.rows_of(table, "max", KNN))
    rows = [r for r in table.to_dict("records") if r["scope"] == "max" and r["measure"] == KNN]
    assert best is not None and best["calibrated"] == max(r["calibrated"] for r in rows)
    raw = pd.DataFrame({"calibrated": [0.0, 0.1], "z": [1.0, 5.0], "statistic": [0.9, 0.3]})
    assert views.best_pair(raw)["statistic"] == 0.3  # a high score at a high chance level does not win
    assert views.best_pair(raw.assign(statistic=np.nan)) is None


# --- matrix ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", views.views_of("max"))
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
    figure = figures.matrix(alignment)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), frame.scale.position(frame.values))
    drawn = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert drawn == {at: text for at, text in np.ndenumerate(frame.labels)}  # noqa: C416
    assert drawn[0, frame.columns.index(BLIND)].startswith("○ ")
    title = figure.get_suptitle() + axes.get_title(loc="left")
    assert "Mutual k-NN (k = 10, cosine): score" in title and "n = 1,024" in title
    assert figure.axes[1].get_yticklabels()[0].get_text() == f"chance {words.number(frame.scale.low)}"


def test_text_is_readable_on_its_cell(alignment):
    axes = figures.matrix(alignment).axes[0]
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
    frame = layers.layer_map_frame(table, "bloom-7b1", "clip-large", KNN)
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
    a, b = (layers.layer_map_frame(t, "llama-13b", "mae-base", CKA) for t in (table, shuffled))
    np.testing.assert_array_equal(a.values, b.values)


def test_selected_layers_keep_their_order(table):
    """Of layers 1, 4 and 6 of a model the map has three rows, and the mark is in the right one."""
    kept = table[(table["scope"] == "max") | table["index_x"].isin([1, 4, 6])]
    frame = layers.layer_map_frame(kept, "llama-13b", "clip-large", KNN)
    assert frame.layers_x == ["layer.1", "layer.4", "layer.6"] and frame.best is not None and frame.best[0] == 2


def test_matplotlib_draws_the_map_from_the_lower_left_with_its_mark(alignment):
    frame = layers.layer_map_frame(alignment.table, "bloom-7b1", "clip-large", KNN)
    axes = figures.layer_map(alignment, "bloom-7b1", "clip-large").axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), frame.scale.position(frame.values))
    bottom, top = axes.get_ylim()
    assert bottom < top
    corners = {(r.get_x() + 0.5, r.get_y() + 0.5, r.get_width(), r.get_height()) for r in axes.patches}
    assert corners == {(frame.best[1], frame.best[0], 1, 1)}


def test_the_colour_bar_shows_chance_and_both_thresholds(alignment):
    frame = layers.layer_map_frame(alignment.table, "bloom-560m", "vit-tiny-in21k", KNN)
    cells = pair(alignment.table, KNN, "bloom-560m", "vit-tiny-in21k", "cell")
    single = float(cells["threshold"].median())
    assert frame.cell_threshold == single < frame.threshold < frame.scale.high
    bar = figures.layer_map(alignment, "bloom-560m", "vit-tiny-in21k").axes[1]
    told = " ".join(t.get_text() for t in bar.get_yticklabels())
    for words_ in ("chance 0.00978", f"threshold {words.number(single)} (median)", "threshold 0.0137 (search)"):
        assert words_ in told
    drawn = [float(line.get_ydata()[0]) for line in bar.lines if len(line.get_ydata()) == 2]
    expected = [(t - frame.chance) / (frame.scale.high - frame.chance) for t in (single, frame.threshold)]
    np.testing.assert_allclose(sorted(drawn)[-2:], expected)


def test_marks_that_are_close_share_a_place_and_others_do_not():
    scale = views.Scale(0.0, 1.0)
    assert views.bar_marks(scale, "gain", [(0.02, "a"), (0.5, "b"), (0.53, "c")]) == [
        (0.0, "a\n0"), (0.5, "c\nb"), (1.0, "1.00"),
    ]  # fmt: skip


# --- marks of the layer map --------------------------------------------------------------------

FEW = ("bloom-560m", "vit-tiny-in21k")


def significant(table, measure, x, y) -> set[tuple[int, int]]:
    """Cells above chance, by a plain loop over the table."""
    rows = pair(table, measure, x, y, "cell").to_dict("records")
    return {(r["index_x"], r["index_y"]) for r in rows if r["p_stepdown"] <= 0.05}


def test_cells_above_chance_are_dotted_in_both_backends(alignment):
    expected = significant(alignment.table, KNN, *FEW)
    assert 3 < len(expected) < 30  # a map in which some are and some are not
    frame = layers.layer_map_frame(alignment.table, *FEW, KNN)
    assert {(int(i), int(j)) for i, j in np.argwhere(frame.marked)} == expected
    (dots,) = figures.layer_map(alignment, *FEW).axes[0].collections
    assert {(int(i), int(j)) for j, i in dots.get_offsets()} == expected
    drawn = figures.layer_map(alignment, *FEW, backend="plotly")
    (scatter,) = [t for t in drawn.data if t.type == "scatter"]
    assert set(zip(map(int, scatter.y), map(int, scatter.x), strict=True)) == expected
    told = f"family-wise over the pairs of layers, step-down ({len(expected)} of 34 at α = 0.05)."
    note = f"● marked: above chance, {told}"
    assert frame.note == note and note in drawn.layout.xaxis.title.text
    assert note in figures.layer_map(alignment, *FEW).get_supxlabel()


def test_dots_stand_out_from_their_cells(alignment):
    frame = layers.layer_map_frame(alignment.table, *FEW, KNN)
    (dots,) = figures.layer_map(alignment, *FEW).axes[0].collections
    steps = frame.scale.steps(frame.values)
    for (j, i), color in zip(dots.get_offsets(), dots.get_facecolors(), strict=True):
        assert to_hex(color) == palette.ink_on(palette.LIGHT[steps[int(i), int(j)]])


def test_the_level_of_the_run_decides_what_is_marked(alignment):
    strict = layers.layer_map_frame(alignment.table, *FEW, KNN, reading=Reading(alpha=1 / 1024))
    assert 0 < strict.marked.sum() < layers.layer_map_frame(alignment.table, *FEW, KNN).marked.sum()


def test_without_stepdown_nothing_is_marked_and_the_legend_says_so(table):
    old = Alignment(table.assign(p_stepdown=np.nan), make_run())
    assert not figures.layer_map(old, *FEW).axes[0].collections
    assert figures.layer_map(old, *FEW).get_supxlabel().startswith("Nothing is marked")
    assert len(figures.layer_map(old, *FEW, backend="plotly").data) == 1
    blind = layers.layer_map_frame(table, FEW[0], BLIND, CKA)
    assert not blind.marked.any() and "(none of 35 at α = 0.05)" in blind.note


def test_hover_tells_score_chance_and_both_pvalues(alignment):
    frame = layers.layer_map_frame(alignment.table, *FEW, KNN)
    (row,) = [
        r for r in pair(alignment.table, KNN, *FEW, "cell").to_dict("records") if (r["index_x"], r["index_y"]) == (4, 2)
    ]
    shown = figures.layer_map(alignment, *FEW, backend="plotly").data[0].customdata[4][2]
    assert shown == f"layer.4 × layer.2: {frame.hover[4, 2]}"
    assert f"{words.number(row['statistic'])}, chance 0.00978, {words.p_sentence(row['pvalue'], 1023)}" in shown
    assert f"step-down {words.p_sentence(row['p_stepdown'], 1023)}" in shown


def test_a_map_of_stepdown_pvalues_runs_to_the_floor_of_the_draws(table):
    closed = table.assign(n_draws=np.where(table["scope"] == "cell", 0, table["n_draws"]))  # cells in closed form
    frame = layers.layer_map_frame(closed, FEW[0], BLIND, KNN, "p_stepdown")
    assert (
        pair(table, KNN, FEW[0], BLIND, "cell")["p_stepdown"].min() > 0.01
    )  # the floor is of the draws, not of the map
    assert (frame.scale.low, frame.scale.high) == (0.05, 1 / 1024)


def test_an_undefined_pair_has_a_map_without_a_mark(table):
    frame = layers.layer_map_frame(table, *CONSTANT, CKA)
    assert frame.best is None and np.isnan(frame.values).all() and "no pair of layers" in frame.best_text
    axes = figures.layer_map(table, *CONSTANT, measure=CKA).axes[0]
    assert not axes.patches and not axes.collections and frame.note.startswith("Nothing is marked")


def test_without_names_the_best_pair_is_drawn(table):
    best = views.best_pair(views.rows_of(table, "max", KNN))
    frame = layers.layer_map_frame(table)
    assert (frame.model_x, frame.model_y) == (best["model_x"], best["model_y"])


# --- null and trend ----------------------------------------------------------------------------


def test_the_null_figure_shows_every_defined_pair_highest_first(alignment):
    frame = frames.null_frame(alignment.table, CKA)
    assert len(frame.observed) == 29 and frame.n_undefined == 1 and (np.diff(frame.observed) <= 0).all()
    for k, (x, y) in enumerate(frame.pairs):
        (row,) = pair(alignment.table, CKA, x, y).to_dict("records")
        shown = (frame.observed[k], frame.null_mean[k], frame.null_std[k], frame.threshold[k])
        assert shown == (row["statistic"], row["null_mean"], row["null_std"], row["threshold"])
    axes = figures.null(alignment, measure=CKA).axes[0]
    dots = {line.get_label(): line.get_xdata() for line in axes.lines}
    np.testing.assert_array_equal(dots["score, above chance"], frame.observed[frame.found])
    np.testing.assert_array_equal(dots["score, not above chance"], frame.observed[~frame.found])
    np.testing.assert_array_equal(dots["threshold"], frame.threshold)
    assert [t.get_text() for t in axes.get_yticklabels()] == frame.labels


def test_ceilings_at_the_same_n_are_lines(alignment):
    entry = {"measure": KNN, "kind": "seed to seed", "model_x": "a", "model_y": "a", "statistic": 0.61, "n": 1024}
    others = [
        entry | {"statistic": 0.4, "n": 512}, entry | {"statistic": 0.5, "measure": CKA},
        entry | {"statistic": 0.9, "kind": "split half"}, entry | {"statistic": float("nan")}, entry | {"statistic": None},
    ]  # fmt: skip
    both = Alignment(alignment.table, make_run() | {"ceilings": [entry, *others]})
    assert frames.null_frame(both.table, KNN, Reading.of(both.run)).ceilings == [(0.61, "two trainings of a")]

    def lines(of: Alignment) -> list[float]:
        return [float(v.get_xdata()[0]) for v in figures.null(of).axes[0].lines if "ceiling" in str(v.get_label())]

    assert lines(both) == [0.61] and lines(alignment) == []
    shapes = [figures.null(of, backend="plotly").layout.shapes for of in (both, alignment)]
    assert [[s.x0 for s in some] for some in shapes] == [[0.61], []]


def test_a_ceiling_of_the_pair_comes_before_any_other():
    entry = {"measure": KNN, "kind": "seed to seed", "model_y": "b2", "n": 64}
    run = {"ceilings": [entry | {"model_x": x, "statistic": v} for x, v in (("a", 0.4), ("b", 0.7), ("c", 0.5))]}
    reading = Reading.of(run)
    assert [c.statistic for c in reading.seeds_of(KNN, "a", "c")] == [0.5, 0.4]
    assert [c.statistic for c in reading.seeds_of(KNN, "x", "y")] == [0.7] and reading.seeds_of(CKA, "a", "c") == []
    assert reading.seeds(KNN)[0].text(128) == "0.700 (two trainings of one model, b and b2; n = 64)"


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"shuffle": "within", "n_groups": 12, "digest": "ab"}, "stimuli change places only within their 12 groups"),
        ({"shuffle": "whole", "n_groups": 1200, "digest": "ab"}, "1,200 groups of stimuli change places as wholes"),
    ],
)
def test_a_restricted_null_is_told_on_the_figures(table, groups, expected):
    run = make_run()
    both = Alignment(table, run | {"null": run["null"] | {"groups": groups}})
    assert expected in " ".join(figures.matrix(both).axes[0].get_title(loc="left").split())
    assert "change places" not in figures.matrix(Alignment(table, run)).axes[0].get_title(loc="left")


def test_the_trend_figure_shows_points_line_and_band(alignment):
    found = trend(alignment.table, alignment.run["models"], "n_parameters", "x", KNN)
    frame = frames.trend_frame(found, 1024)
    axes = figures.trend(alignment).axes[0]
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
    axes = figures.trend(alignment, "bits_per_byte").axes[0]
    left, right = axes.get_xlim()
    assert left > right and "axis reversed" in axes.get_xlabel()



@pytest.mark.parametrize(
    ("values", "intervals", "expected"),
    [
        ([0.02, 0.12], [-2.0, 2.0], (-0.03, 0.17)),  # far wider than the points: they keep half of the picture
        ([0.02, 0.12], [0.0, 0.13], (0.0, 0.132)),  # a little wider: all of it, beside the usual margin
        ([0.02, 0.12], [np.nan, np.nan], (0.008, 0.132)),
        ([0.02, 0.12], [], (0.008, 0.132)),
        ([0.5, 0.5], [0.3, 0.8], (0.3, 0.8)),  # one value: its interval is what there is
        ([0.0], [], (-0.12, 0.12)),
        ([np.nan], [], (0.0, 1.0)),
    ],
)
def test_an_axis_scales_to_its_points(values, intervals, expected):
    np.testing.assert_allclose(views.vertical_range(np.array(values), np.array(intervals)), expected, atol=1e-12)


def test_a_trend_of_few_models_is_not_flattened_by_its_interval():
    """Four models with alignments of .02 to .12 and an interval of the line of -2 to 2: the picture was one flat line."""
    table, run = make_table(LANGUAGE[:4], layers=(2, 2)), make_run(LANGUAGE[:4])
    rng = np.random.default_rng(1)
    table["statistic"] = table["model_x"].map(dict(zip([m[0] for m in LANGUAGE], (0.02, 0.12, 0.03, 0.1, 0.0), strict=True)))
    table["statistic"] += 1e-3 * rng.standard_normal(len(table))
    found = trend(table, run["models"], "n_parameters", "x", KNN)
    frame = frames.trend_frame(found, 1024)
    low, high = found.band(frame.curve_x)
    y = found.points["alignment"]
    assert high.max() - low.min() > 5 * np.ptp(y) and frame.is_cut
    bottom, top = frame.y_range
    assert np.ptp(y) >= 0.49 * (top - bottom) and frame.low.min() == bottom and frame.high.max() == top
    few = Alignment(table, run)
    static, interactive = figures.trend(few), figures.trend(few, backend="plotly")
    assert static.axes[0].get_ylim() == frame.y_range == tuple(interactive.layout.yaxis.range)
    assert any("cut at the edge" in text.get_text() for text in static.axes[0].get_legend().get_texts())
    drawn = str(trend_svg(frame))
    heights = [float(p.split(",")[1]) for p in drawn.split('class="band"')[0].rpartition('points="')[2].split('"')[0].split()]
    assert min(heights) >= svg.TOP - 0.1 and max(heights) <= svg.HEIGHT - svg.BOTTOM + 0.1


def test_three_models_have_a_line_and_no_band():
    few = Alignment(make_table(LANGUAGE[:3], layers=(2, 2)), make_run(LANGUAGE[:3]))
    axes = figures.trend(few).axes[0]
    assert len(axes.collections) == 0 and any(line.get_label().startswith("_") for line in axes.lines)


# --- plotly and errors -------------------------------------------------------------------------


def test_plotly_draws_the_same_frames(alignment):
    matrix = figures.matrix(alignment, backend="plotly")
    frame = frames.matrix_frame(alignment.table)
    np.testing.assert_allclose(np.array(matrix.data[0].z, float), frame.scale.position(frame.values))
    assert [a.text for a in matrix.layout.annotations] == frame.labels.ravel().tolist()
    layer = layers.layer_map_frame(alignment.table)
    drawn = figures.layer_map(alignment, backend="plotly")
    np.testing.assert_allclose(np.array(drawn.data[0].z, float), layer.scale.position(layer.values))
    assert list(drawn.data[0].colorbar.tickvals) == [place for place, _ in layer.bar]
    (shape,) = drawn.layout.shapes
    assert (shape.y0 + 0.5, shape.x0 + 0.5) == layer.best
    null = figures.null(alignment, backend="plotly")
    np.testing.assert_array_equal(null.data[2].x, frames.null_frame(alignment.table).observed)
    scatter = figures.trend(alignment, "bits_per_byte", backend="plotly")
    names = [t for trace in scatter.data for t in (trace.text if trace.text is not None else [])]
    assert sorted(names) == sorted(m[0] for m in LANGUAGE) and scatter.layout.xaxis.autorange == "reversed"


def test_names_are_neither_mathematics_nor_markup():
    hostile = [("$x^$<b>", "F$", 1e6, 0.9), ("b", "F$", 1e7, 0.8)]
    both = Alignment(make_table(hostile, VISION[:2], (2, 2)), make_run(hostile, VISION[:2]))
    for draw, names in ((figures.matrix, ()), (figures.layer_map, ("$x^$<b>",)), (figures.null, ()), (figures.trend, ())):
        draw(both, *names).savefig(io.BytesIO(), format="svg")  # a lone $ would not parse
        assert "$x^$&lt;b&gt;" in str(draw(both, *names, backend="plotly").to_dict())
    drawn = io.BytesIO()
    figures.matrix(both).savefig(drawn, format="svg", metadata={"Date": None})
    assert "$x^$&lt;b&gt;" in drawn.getvalue().decode()  # in the comment beside the glyphs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: figures.matrix(t, value="scores"), r"nothing to show is called 'scores'"),
        (lambda t: figures.matrix(t, backend="ploty"), r"no backend 'ploty'(.|\n)*did you mean 'plotly'"),
        (lambda t: figures.matrix(t, measure="X"), r"no measure 'X' in the result"),
        (lambda t: figures.matrix(t[t["scope"] == "cell"]), r"no pairs of models"),
        (lambda t: figures.matrix(t.head(0)), r"nothing to show"),
        (lambda t: figures.layer_map(t, "bloom-7b2"), r"no model_x 'bloom-7b2'(.|\n)*did you mean 'bloom-7b1'"),
        (lambda t: figures.layer_map(t, value="p_holm"), r"'p_holm' is adjusted over pairs of models(.|\n)*use pvalue"),
        (lambda t: figures.layer_map(t, value="p_maxt"), r"'p_maxt' is adjusted over pairs of models"),
        (lambda t: figures.matrix(t, value="p_stepdown"), r"'p_stepdown' is adjusted over pairs of layers(.|\n)*use pvalue"),
    ],
)  # fmt: skip
def test_errors(table, call, message):
    with pytest.raises(RepalignError, match=message):
        call(table)
