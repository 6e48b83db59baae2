"""Figures of one result: what they show against plain loops over the table, and what is drawn against that."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from alignment_table import BLIND, CKA, CONSTANT, KNN, LANGUAGE, VISION, make_run, make_table
from repalign import figures
from repalign import text as words
from repalign.comparison import conventions as views
from repalign.comparison.alignment import Alignment, rows_of
from repalign.comparison.conventions import Conventions, Pairs
from repalign.errors import RepalignError
from repalign.figures import canvas, matrix_chart, palette, trend_chart
from repalign.figures.layer_map_chart import LayerMap, shown
from repalign.figures.matrix_chart import Matrix
from repalign.figures.null_chart import NullChart
from repalign.figures.trend_chart import TrendChart
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
        (0.25, 199, ".25"), (0.1, None, ".1"), (0.0999, None, ".1"), (0.9984, None, ".998"), (1.0, 199, "1"), (math.nan, 199, "–"),
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


# --- colours -----------------------------------------------------------------------------------


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.1), from 0 to 1."""
    u = np.array(to_rgb(color))
    return float(np.where(u <= 0.04045, u / 12.92, ((u + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(
    ("ramp", "inks", "way"), [(palette.LIGHT, palette.LIGHT_INK, -1), (palette.DARK, palette.DARK_INK, 1)]
)
def test_ramps_are_monotone_in_lightness_and_readable(ramp, inks, way):
    light = np.array([luminance(c) for c in ramp])
    assert len(ramp) == len(inks) == palette.STEPS == 32 and (way * np.diff(light) > 0).all()
    for y, ink in zip(light, inks, strict=True):
        contrast = {name: (max(y, luminance(name)) + 0.05) / (min(y, luminance(name)) + 0.05) for name in ("#000000", "#ffffff")}
        assert contrast[ink] == max(contrast.values()) >= 4.5  # WCAG AA


def oklab(color: str) -> np.ndarray:
    """Ottosson 2020."""
    u = np.array(to_rgb(color))
    rgb = np.where(u <= 0.04045, u / 12.92, ((u + 0.055) / 1.055) ** 2.4)
    lms = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                    [0.0883024619, 0.2817188376, 0.6299787005]]) @ rgb  # fmt: skip
    return np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                     [0.0259040371, 0.7827717662, -0.8086757660]]) @ np.cbrt(lms)  # fmt: skip


@pytest.mark.parametrize(
    ("ramp", "stops"),
    [
        (palette.LIGHT, ("#f6f3ea", "#dcead2", "#a9d5c0", "#66b5ad", "#2f8ea0", "#1f6790", "#1d4376", "#191f4a")),
        (palette.DARK, ("#242a32", "#20384f", "#1d5570", "#20758a", "#3d9993", "#78bb93", "#bddb9c", "#f8f2b8")),
    ],
)
def test_steps_of_a_ramp_look_equal_between_its_stops(ramp, stops):
    """The ramps are written down; they are linear in OKLab between eight evenly spaced stops."""
    at = np.linspace(0, len(stops) - 1, palette.STEPS)
    known = np.array([oklab(c) for c in stops])
    expected = np.stack([np.interp(at, range(len(stops)), known[:, k]) for k in range(3)], axis=1)
    np.testing.assert_allclose([oklab(c) for c in ramp], expected, atol=0.003)
    assert ramp[0] == stops[0] and ramp[-1] == stops[-1]


def test_eight_families_differ_in_both_and_more_in_one():
    looks = [palette.family(k) for k in range(64)]
    assert len({c for c, _ in looks[:8]}) == len({m for _, m in looks[:8]}) == 8 and len(set(looks)) == 64


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
    assert mild.high == 0.004 and words.pvalue(1e-90, 0) == "< 1e−10" and words.p_sentence(0.0) == "p < 1e−10"


def test_too_few_draws_for_alpha_still_give_a_scale():
    scale = views.scale_of("pvalue", np.array([0.5]), np.array([0.1]), 9, 0.05)
    assert scale.position([1.0, 0.1]).tolist() == [0, 1]


def test_scores_below_chance_only_leave_a_blank_scale():
    scale = views.scale_of("statistic", np.array([0.1]), np.array([0.2]), 199, 0.05)
    assert scale.position([0.1, 0.3]).tolist() == [0, 0]


def with_pairs(table: pd.DataFrame, measure: str, run: dict | None = None, **changed) -> Pairs:
    """The pairs of a measure with changed columns."""
    return Pairs.of(rows_of(table, "max", measure).assign(**changed), conventions=Conventions.of(run or {}))


def test_joint_draws_decide_then_holm_then_benjamini_hochberg(table):
    """30 pairs, 1,023 draws: 30 / 1024 < .05, so Holm can reject; with 199 draws it cannot."""
    pairs = rows_of(table, "max", KNN)
    assert with_pairs(table, KNN).rule == "p_maxt" and with_pairs(table, KNN, p_maxt=np.nan).rule == "p_holm"
    assert with_pairs(table, KNN, p_maxt=np.nan, n_draws=199).rule == "p_bh"
    # One pair has a p-value and no maxT.
    assert with_pairs(table, KNN, p_maxt=pairs["p_maxt"].where(pairs.index != 3)).rule == "p_holm"
    constant = with_pairs(table, CKA)  # an undefined pair
    assert constant.rows["p_maxt"].isna().sum() == 1 and constant.rule == "p_maxt" and constant.tests == 29


def test_nothing_is_found_where_every_shuffle_scores_the_same(table):
    """Mutual k-NN at k = n - 1 is 1 whatever is paired: "none of the pairs agrees" is not said of it."""
    same = {"statistic": 1.0, "null_mean": 1.0, "null_std": 0.0}
    assert with_pairs(table, KNN, **same).blind.startswith("every shuffle scores the same")
    for other in ({"statistic": 0.9}, {"null_std": 0.1}, {"null_std": np.nan}):
        assert not with_pairs(table, KNN, **same | other).blind


def test_what_is_found_follows_the_rule_that_decides(table):
    pairs = rows_of(table, "max", KNN)
    torn = {"p_maxt": np.where(pairs.index % 2, 0.01, 0.9), "p_holm": 0.9, "p_bh": 0.9}
    np.testing.assert_array_equal(with_pairs(table, KNN, **torn).found, pairs.index % 2 == 1)
    holm = with_pairs(table, KNN, **torn | {"p_maxt": np.nan, "p_holm": pairs["p_maxt"]})
    np.testing.assert_array_equal(holm.found, pairs["p_maxt"] <= 0.05)


@pytest.mark.parametrize(("draws", "rule"), [(19, "p_maxt"), (19, "p_bh"), (0, "p_holm")])
def test_a_p_that_equals_alpha_is_found(table, draws, rule):
    """Slow measures of a group get 19 draws: their least p is 1/20, which is alpha itself."""
    odd = rows_of(table, "max", KNN).index % 2 == 1
    changed = {"n_draws": draws, "p_maxt": np.nan, "p_holm": 0.9, "p_bh": 0.9}
    pairs = with_pairs(table, KNN, **changed | {rule: np.where(odd, 1 / 20, np.nextafter(0.05, 1))})
    assert pairs.rule == rule
    np.testing.assert_array_equal(pairs.found, odd)


@pytest.mark.parametrize(
    ("run", "change", "expected"),
    [
        ({}, {}, "○ not above chance (5 % level, corrected for 30 tests)"),
        ({}, {"p_maxt": np.nan}, "○ not above chance (5 % level, corrected for 30 tests)"),
        ({"alpha": 0.01}, {"p_maxt": np.nan, "n_draws": 199}, "○ not above chance (at most 1 % of those found are false alarms)"),
    ],
)
def test_the_note_says_what_above_chance_means(table, run, change, expected):
    assert with_pairs(table, KNN, run, **change).note == expected
    drawn = figures.matrix(Alignment(rows_of(table, "max", KNN).assign(**change), run)).figure
    assert expected in " ".join(drawn.get_supxlabel().split())
    one = Pairs.of(rows_of(table, "max", KNN).head(1), conventions=Conventions.of(run))
    assert "tests" not in one.note and "false" not in one.note  # one pair needs no correction


def test_the_best_pair_goes_by_calibrated_score(table):
    best = Pairs.of(table, KNN).best
    rows = [r for r in table.to_dict("records") if r["scope"] == "max" and r["measure"] == KNN]
    assert best is not None and best["calibrated"] == max(r["calibrated"] for r in rows)
    assert Pairs.of(table, KNN).text.startswith(f"Best: {best['model_x']} [{best['layer_x']}] and {best['model_y']} [")
    raw = rows_of(table, "max", KNN).head(2).assign(calibrated=[0.0, 0.1], z=[1.0, 5.0], statistic=[0.9, 0.3])
    assert Pairs.of(raw).best["statistic"] == 0.3  # a high score at a high chance level does not win
    assert Pairs.of(raw.assign(statistic=np.nan)).best is None


# --- matrix ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", views.VIEWS_OF["max"])
def test_the_matrix_holds_the_numbers_of_the_table(table, value):
    frame = Matrix.of(Pairs.of(table, CKA), value)
    assert frame.rows == [m[0] for m in LANGUAGE] and frame.columns == [m[0] for m in VISION]
    for i, x in enumerate(frame.rows):
        for j, y in enumerate(frame.columns):
            (row,) = pair(table, CKA, x, y).to_dict("records")
            expected = row["statistic"] - row["null_mean"] if value == "gain" else row[value]
            assert frame.values[i, j] == expected or (math.isnan(expected) and math.isnan(frame.values[i, j]))
            if (x, y) == CONSTANT:
                assert frame.texts[i, j] == "–" and not frame.found[i, j]
    assert not frame.found[:, frame.columns.index(BLIND)].any() and frame.found.any()


@pytest.mark.parametrize("value", views.VIEWS)
def test_what_is_drawn_is_what_the_file_beside_it_holds(alignment, value):
    """The CSV of a view: its own numbers and names, not those of the score."""
    drawn = [matrix_chart.shown(alignment, CKA, value=value)] if value in views.VIEWS_OF["max"] else []
    if value in views.VIEWS_OF["cell"]:
        drawn.append(shown(alignment, CKA, model_x="bloom-7b1", model_y="clip-large", value=value))
    for frame in drawn:
        names, *columns = frame.table
        assert (frame.table[names].tolist(), columns) == (frame.rows, frame.columns)
        np.testing.assert_array_equal(frame.table[columns].to_numpy(float), frame.values)


def test_matplotlib_draws_the_matrix_of_the_frame(alignment):
    frame = Matrix.of(Pairs.of(alignment.table, KNN))
    figure = figures.matrix(alignment).figure
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), frame.scale.position(frame.values))
    drawn = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert drawn == {at: text for at, text in np.ndenumerate(frame.labels)}  # noqa: C416
    assert drawn[0, frame.columns.index(BLIND)].startswith("○ ")
    title = figure.get_suptitle() + axes.get_title(loc="left")
    assert "Score: mutual k-NN (k=10)" in title and "n = 1,024" in title
    assert figure.axes[1].get_yticklabels()[0].get_text() == f"chance {words.number(frame.scale.low)}"


def test_text_is_readable_on_its_cell(alignment):
    axes = figures.matrix(alignment)
    frame = Matrix.of(Pairs.of(alignment.table, KNN))
    steps = frame.scale.steps(frame.values)
    for text in axes.texts:
        j, i = (round(v) for v in text.get_position())
        assert to_hex(text.get_color()) == palette.LIGHT_INK[steps[i, j]]


def test_all_against_all_is_mirrored(table):
    pairs = rows_of(table, "max", KNN).head(3).copy()
    pairs["model_x"], pairs["model_y"] = ["a", "a", "b"], ["b", "c", "c"]
    frame = Matrix.of(Pairs.of(pairs))
    assert frame.rows == frame.columns == ["a", "b", "c"]
    np.testing.assert_array_equal(frame.values, frame.values.T)
    assert np.isnan(np.diag(frame.values)).all() and frame.texts[0, 0] == ""
    assert frame.mirrored.tolist() == [[False] * 3, [True, False, False], [True, True, False]]


# --- layer map ---------------------------------------------------------------------------------


def mapped(table: pd.DataFrame, x: str | None = None, y: str | None = None, measure: str | None = None,
           value: str = "statistic", **run) -> LayerMap:  # fmt: skip
    """The layer map of one pair of models."""
    return shown(Alignment(table, run), measure, model_x=x, model_y=y, value=value)


def test_the_layer_map_holds_the_cells_and_marks_the_chosen_one(table):
    frame = mapped(table, "bloom-7b1", "clip-large", KNN)
    for row in pair(table, KNN, "bloom-7b1", "clip-large", "cell").to_dict("records"):
        found = frame.values[row["index_x"], row["index_y"]]
        assert found == row["statistic"] or (math.isnan(found) and math.isnan(row["statistic"]))
    (top,) = pair(table, KNN, "bloom-7b1", "clip-large").to_dict("records")
    assert (
        frame.best
        == (top["index_x"], top["index_y"])
        == np.unravel_index(np.nanargmax(frame.values), frame.values.shape)
    )
    assert frame.scale.low == pytest.approx(10 / 1023)
    assert frame.rows == [f"layer.{i}" for i in range(7)] and frame.columns == [f"layer.{i}" for i in range(5)]


def test_rows_in_any_order_give_the_same_map(table):
    shuffled = table.sample(frac=1, random_state=3)
    a, b = (mapped(t, "llama-13b", "mae-base", CKA) for t in (table, shuffled))
    np.testing.assert_array_equal(a.values, b.values)


def test_selected_layers_keep_their_order(table):
    """Of layers 1, 4 and 6 of a model the map has three rows, and the mark is in the right one."""
    kept = table[(table["scope"] == "max") | table["index_x"].isin([1, 4, 6])]
    frame = mapped(kept, "llama-13b", "clip-large", KNN)
    assert frame.rows == ["layer.1", "layer.4", "layer.6"] and frame.best is not None and frame.best[0] == 2


def test_layers_at_relative_depth(alignment):
    axes = figures.layer_map(alignment, "bloom-7b1", "clip-large", depth="relative")
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "0.25", "0.5", "0.75", "1"]
    assert axes.get_xticks().tolist() == [0, 1, 2, 3, 4] and axes.get_yticks().tolist() == [0, 1.5, 3, 4.5, 6]
    assert axes.get_xlabel() == "relative depth in clip-large"
    with pytest.raises(RepalignError, match=r"(?s)unknown depth 'relativ'.*relative"):
        figures.layer_map(alignment, depth="relativ")


def test_matplotlib_draws_the_map_from_the_lower_left_with_its_mark(alignment):
    frame = mapped(alignment.table, "bloom-7b1", "clip-large", KNN)
    axes = figures.layer_map(alignment, "bloom-7b1", "clip-large")
    np.testing.assert_array_equal(axes.images[0].get_array(), frame.scale.position(frame.values))
    bottom, top = axes.get_ylim()
    assert bottom < top
    corners = {(r.get_x() + 0.5, r.get_y() + 0.5, r.get_width(), r.get_height()) for r in axes.patches}
    assert corners == {(frame.best[1], frame.best[0], 1, 1)}


def test_the_colour_bar_shows_chance_and_both_thresholds(alignment):
    frame = mapped(alignment.table, "bloom-560m", "vit-tiny-in21k", KNN)
    cells = pair(alignment.table, KNN, "bloom-560m", "vit-tiny-in21k", "cell")
    single = float(cells["threshold"].median())
    search = pair(alignment.table, KNN, "bloom-560m", "vit-tiny-in21k")["threshold"].iloc[0]
    assert single < search < frame.scale.high
    bar = figures.layer_map(alignment, "bloom-560m", "vit-tiny-in21k").figure.axes[1]
    told = " ".join(t.get_text() for t in bar.get_yticklabels())
    for words_ in ("chance 0.00978", f"threshold {words.number(single)} (median)", "threshold 0.0137 (search)"):
        assert words_ in told
    drawn = [float(line.get_ydata()[0]) for line in bar.lines if len(line.get_ydata()) == 2]
    expected = [(t - 10 / 1023) / (frame.scale.high - 10 / 1023) for t in (single, search)]
    np.testing.assert_allclose(sorted(drawn)[-2:], expected)


def test_marks_that_are_close_share_a_place_and_others_do_not():
    figure, ((axes,),) = canvas.sheet(4, 3, "marks")
    marks = [(0.0, "0"), (1.0, "1.00"), (0.02, "a"), (0.5, "b"), (0.53, "c")]
    bar = canvas.color_bar(figure, axes, axes.imshow([[0.0, 1.0]]), marks)
    shown = [(float(place), t.get_text()) for place, t in zip(bar.get_yticks(), bar.get_yticklabels(), strict=True)]
    assert shown == [(0.0, "a\n0"), (0.5, "c\nb"), (1.0, "1.00")]


# --- marks of the layer map --------------------------------------------------------------------

FEW = ("bloom-560m", "vit-tiny-in21k")


def significant(table, measure, x, y) -> set[tuple[int, int]]:
    """Cells above chance, by a plain loop over the table."""
    rows = pair(table, measure, x, y, "cell").to_dict("records")
    return {(r["index_x"], r["index_y"]) for r in rows if r["p_stepdown"] <= 0.05}


def test_cells_above_chance_are_dotted(alignment):
    expected = significant(alignment.table, KNN, *FEW)
    assert 3 < len(expected) < 30  # a map in which some are and some are not
    frame = mapped(alignment.table, *FEW, KNN)
    assert {(int(i), int(j)) for i, j in np.argwhere(frame.marked)} == expected
    (dots,) = figures.layer_map(alignment, *FEW).collections
    assert {(int(i), int(j)) for j, i in dots.get_offsets()} == expected
    note = f"● above chance: {len(expected)} of 34 pairs of layers (5 % level, corrected for 34 tests)."
    assert frame.note == note and note in " ".join(figures.layer_map(alignment, *FEW).figure.get_supxlabel().split())


def test_dots_stand_out_from_their_cells(alignment):
    frame = mapped(alignment.table, *FEW, KNN)
    (dots,) = figures.layer_map(alignment, *FEW).collections
    steps = frame.scale.steps(frame.values)
    for (j, i), color in zip(dots.get_offsets(), dots.get_facecolors(), strict=True):
        assert to_hex(color) == palette.LIGHT_INK[steps[int(i), int(j)]]


def test_the_level_of_the_run_decides_what_is_marked(alignment):
    strict = mapped(alignment.table, *FEW, KNN, alpha=1 / 1024)
    assert 0 < strict.marked.sum() < mapped(alignment.table, *FEW, KNN).marked.sum()


def test_without_stepdown_nothing_is_marked_and_the_legend_says_so(table):
    old = Alignment(table.assign(p_stepdown=np.nan), make_run())
    assert not figures.layer_map(old, *FEW).collections
    assert figures.layer_map(old, *FEW).figure.get_supxlabel().startswith("Nothing is marked")
    blind = mapped(table, FEW[0], BLIND, CKA)
    assert not blind.marked.any() and "none of 35 pairs of layers" in blind.note


def test_a_map_of_stepdown_pvalues_runs_to_the_floor_of_the_draws(table):
    closed = table.assign(n_draws=np.where(table["scope"] == "cell", 0, table["n_draws"]))  # cells in closed form
    frame = mapped(closed, FEW[0], BLIND, KNN, "p_stepdown")
    assert (
        pair(table, KNN, FEW[0], BLIND, "cell")["p_stepdown"].min() > 0.01
    )  # the floor is of the draws, not of the map
    assert (frame.scale.low, frame.scale.high) == (0.05, 1 / 1024)


def test_an_undefined_pair_has_a_map_without_a_mark(table):
    frame = mapped(table, *CONSTANT, CKA)
    assert frame.best is None and np.isnan(frame.values).all() and "no pair of layers" in frame.best_text
    axes = figures.layer_map(table, *CONSTANT, measure=CKA)
    assert not axes.patches and not axes.collections and frame.note.startswith("Nothing is marked")


def test_without_names_the_best_pair_is_drawn(table):
    best = Pairs.of(table, KNN).best
    frame = mapped(table)
    assert (frame.model_x, frame.model_y) == (best["model_x"], best["model_y"])


# --- null and trend ----------------------------------------------------------------------------


def test_the_null_figure_shows_every_defined_pair_highest_first(alignment):
    frame = NullChart.of(Pairs.of(alignment.table, CKA))
    assert len(frame.observed) == 29 and frame.n_undefined == 1 and (np.diff(frame.observed) <= 0).all()
    for k, (x, y) in enumerate(frame.pairs):
        (row,) = pair(alignment.table, CKA, x, y).to_dict("records")
        shown = (frame.observed[k], frame.null_mean[k], frame.null_std[k], frame.threshold[k])
        assert shown == (row["statistic"], row["null_mean"], row["null_std"], row["threshold"])
    axes = figures.null(alignment, measure=CKA)
    dots = {line.get_label(): line.get_xdata() for line in axes.lines}
    np.testing.assert_array_equal(dots["score, above chance"], frame.observed[frame.found])
    np.testing.assert_array_equal(dots["score, not above chance"], frame.observed[~frame.found])
    np.testing.assert_array_equal(dots["threshold"], frame.threshold)
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"{x} × {y}" for x, y in frame.pairs]


def test_ceilings_at_the_same_n_are_lines(alignment):
    entry = {"measure": KNN, "kind": "seed to seed", "model_x": "a", "model_y": "a", "statistic": 0.61, "n": 1024}
    others = [
        entry | {"statistic": 0.4, "n": 512}, entry | {"statistic": 0.5, "measure": CKA},
        entry | {"statistic": 0.9, "kind": "split half"}, entry | {"statistic": float("nan")}, entry | {"statistic": None},
    ]  # fmt: skip
    both = Alignment(alignment.table, make_run() | {"ceilings": [entry, *others]})
    assert NullChart.of(Pairs.of(both.table, KNN, Conventions.of(both.run))).ceilings == [(0.61, "two trainings of a")]

    def lines(of: Alignment) -> list[float]:
        return [float(v.get_xdata()[0]) for v in figures.null(of).lines if "ceiling" in str(v.get_label())]

    assert lines(both) == [0.61] and lines(alignment) == []
    tracks = [NullChart.of(Pairs.of(of.table, KNN, Conventions.of(of.run))).tracks(9) for of in (both, alignment)]
    assert [len(some["ceilings"]) for some in tracks] == [1, 0]


def test_the_tracks_of_the_page_have_the_numbers_at_their_places(alignment):
    """The report's chart: per cent of one scale, the order of the picture, and texts of the same numbers."""
    frame = NullChart.of(Pairs.of(alignment.table, CKA))
    tracks = frame.tracks(10)
    assert len(tracks["rows"]) == 10

    def at(name: str) -> np.ndarray:
        return np.array([float(row["at"][name].rstrip("%")) for row in tracks["rows"]])

    mean, sd = frame.null_mean[:10], frame.null_std[:10]
    given = {"score": frame.observed[:10], "mean": mean, "left": mean - sd, "right": mean + sd, "threshold": frame.threshold[:10]}
    ticks = [(float(place.rstrip("%")), float(text)) for place, text in tracks["ticks"]]
    (a, low), (b, high) = ticks[0], ticks[-1]
    for name, values in given.items():
        np.testing.assert_allclose(at(name), a + (values - low) / (high - low) * (b - a), atol=0.011)
    np.testing.assert_allclose(at("reach"), np.minimum(at("threshold"), at("score")))
    assert (at("end") >= np.maximum(at("score"), at("right"))).all() and (at("left") >= 0).all() and (at("score") < 100).all()
    for k, row in enumerate(tracks["rows"]):
        assert (row["x"], row["y"]) == frame.pairs[k] and row["score"] == words.number(frame.observed[k])
        assert row["chance"] == f"{words.number(mean[k])} ± {words.number(sd[k])}" and row["found"] == frame.found[k]


def test_ceilings_come_highest_first_with_their_source():
    entry = {"measure": KNN, "kind": "seed to seed", "model_y": "b2", "n": 64}
    run = {"ceilings": [entry | {"model_x": x, "statistic": v} for x, v in (("a", 0.4), ("b", 0.7), ("c", 0.5))]}
    table, conventions = make_table(LANGUAGE[:1], VISION[:1], (1, 1)), Conventions.of(run)
    seeds = Pairs.of(table, KNN, conventions).seeds
    assert [c.statistic for c in seeds] == [0.7, 0.5, 0.4]
    assert Pairs.of(table, CKA, conventions).seeds == []
    assert seeds[0].source(128) == "two trainings of one model, b and b2; n = 64"


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
    assert expected in " ".join(figures.matrix(both).get_title(loc="left").split())
    assert "change places" not in figures.matrix(Alignment(table, run)).get_title(loc="left")


def test_the_trend_figure_shows_points_line_and_band(alignment):
    found = trend(alignment.table, alignment.run["models"], "n_parameters", "x", KNN)
    frame = TrendChart.of(found)
    axes = figures.trend(alignment)
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
    axes = figures.trend(alignment, "bits_per_byte")
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
    frame = TrendChart.of(found)
    low, high = found.band(frame.curve_x)
    y = found.points["alignment"]
    assert high.max() - low.min() > 5 * np.ptp(y) and frame.is_cut
    bottom, top = frame.y_range
    assert np.ptp(y) >= 0.49 * (top - bottom) and frame.low.min() == bottom and frame.high.max() == top
    few = Alignment(table, run)
    static = figures.trend(few).figure
    assert static.axes[0].get_ylim() == frame.y_range
    assert any("cut at the edge" in text.get_text() for text in static.axes[0].get_legend().get_texts())
    heights = [y for _, y in frame.drawing()["band"]]
    assert min(heights) >= trend_chart.TOP - 0.1 and max(heights) <= trend_chart.HEIGHT - trend_chart.BOTTOM + 0.1


def test_three_models_have_a_line_and_no_band():
    few = Alignment(make_table(LANGUAGE[:3], layers=(2, 2)), make_run(LANGUAGE[:3]))
    axes = figures.trend(few)
    assert len(axes.collections) == 0 and any(line.get_label().startswith("_") for line in axes.lines)


def test_the_drawing_of_the_page_has_the_points_of_the_trend(alignment):
    """Places in the SVG's own units: the same line through the ticks, downwards; reversed where lower is better."""
    for against in ("n_parameters", "bits_per_byte"):
        frame = TrendChart.of(trend(alignment.table, alignment.run["models"], against, "x", KNN))
        made, points = frame.drawing(), frame.trend.points
        scaled = np.log10 if frame.trend.log else np.asarray
        (x1, x2), (t1, t2) = [made["x_ticks"][k][0] for k in (0, -1)], scaled([frame.x_ticks[k][0] for k in (0, -1)])
        ticks = [(y, float(text)) for y, text in made["y_ticks"]]
        (y1, s1), (y2, s2) = ticks[0], ticks[-1]
        for row, found in zip(points.to_dict("records"), made["points"], strict=True):
            expected = x1 + (scaled(row["x"]) - t1) / (t2 - t1) * (x2 - x1), y1 + (row["alignment"] - s1) / (s2 - s1) * (y2 - y1)
            np.testing.assert_allclose(found["at"], expected, atol=0.01)
            assert found["model"] == row["model"] and frame.families[found["family"]] == row["family"]
        assert (x1 > x2) == (against == "bits_per_byte") and y1 > y2
        assert [p["spot"] is not None for p in made["points"]] == [True] * 5


def test_markers_of_the_page_are_those_of_the_figures():
    from matplotlib.path import Path

    for k in range(8):
        colour, corners = trend_chart.outline(k, 5.5)
        assert colour == f"f{k}" and bool(corners) == (palette.MARKERS[k] != "o")
        if corners:
            assert Path([*corners, corners[0]], closed=True).contains_point((0, 0)) and 4.5 < np.abs(corners).max() < 8.5


# --- hostile names and errors ------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
def test_names_get_the_room_that_axes_have_in_the_end(alignment, monkeypatch, own):
    """In a sheet that is laid out, and in axes of a fixed aspect."""
    place, rooms = canvas.place_labels, []
    monkeypatch.setattr(canvas, "place_labels", lambda *given, **more: rooms.append(np.array(given[3])) or place(*given, **more))
    given = {} if own else {"ax": Figure(figsize=(9, 3)).add_subplot(box_aspect=1)}
    axes = figures.trend(alignment, **given)
    axes.figure.draw_without_rendering()
    assert np.allclose(rooms[0], axes.get_window_extent().extents)


def test_names_are_neither_mathematics_nor_markup():
    hostile = [("$x^$<b>", "F$", 1e6, 0.9), ("b", "F$", 1e7, 0.8)]
    both = Alignment(make_table(hostile, VISION[:2], (2, 2)), make_run(hostile, VISION[:2]))
    for draw, names in ((figures.matrix, ()), (figures.layer_map, ("$x^$<b>",)), (figures.null, ()), (figures.trend, ())):
        draw(both, *names).figure.savefig(io.BytesIO(), format="svg")  # a lone $ would not parse
    drawn = io.BytesIO()
    figures.matrix(both).figure.savefig(drawn, format="svg", metadata={"Date": None})
    assert "$x^$&lt;b&gt;" in drawn.getvalue().decode()  # in the comment beside the glyphs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: figures.matrix(t, value="scores"), r"unknown view 'scores'(.|\n)*statistic"),
        (lambda t: figures.matrix(t, measure="X"), r"no measure 'X' in the result"),
        (lambda t: figures.matrix(t[t["scope"] == "cell"]), r"nothing to show(.|\n)*rows of scope 'max'"),
        (lambda t: figures.matrix(t.head(0)), r"nothing to show"),
        (lambda t: figures.layer_map(t, "bloom-7b2"), r"unknown model_x 'bloom-7b2'(.|\n)*did you mean 'bloom-7b1'"),
        (lambda t: figures.layer_map(t, value="p_holm"), r"'p_holm' is adjusted over pairs of models(.|\n)*use pvalue"),
        (lambda t: figures.layer_map(t, value="p_maxt"), r"'p_maxt' is adjusted over pairs of models"),
        (lambda t: figures.matrix(t, value="p_stepdown"), r"'p_stepdown' is adjusted over pairs of layers(.|\n)*use pvalue"),
    ],
)  # fmt: skip
def test_errors(table, call, message):
    with pytest.raises(RepalignError, match=message):
        call(table)
