"""Every kind of figure of a study file, from the registry: drawn, with a table and a text; written once for all."""

from __future__ import annotations

import inspect
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from alignment_table import KNN, LANGUAGE, VISION, make_run, make_table
from repalign import figures
from repalign.comparison.alignment import Alignment, csv_text
from repalign.errors import RepalignError
from repalign.figures import FIGURES, kinds, palette
from repalign.figures.kinds import Results, of_result, write_figures
from repalign.measures import labels_of
from repalign.models import ModelRecord
from repalign.report import write_report
from repalign.representation import MemoryRepresentation

NAMES = [m[0] for m in LANGUAGE]


def among() -> Alignment:
    """Models of one kind compared among themselves."""
    rows = [make_table([a], [(b[0], *b[1:])], (2, 2), seed=i) for i, a in enumerate(LANGUAGE) for b in LANGUAGE[i + 1 :]]
    table = pd.concat(rows, ignore_index=True)
    return Alignment(table, make_run(LANGUAGE, (), (2, 2)) | {"sides": {"x": NAMES, "y": NAMES}})


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """Two variants of two sides, one of models among themselves; features of the best pair; a published file."""
    path = tmp_path_factory.mktemp("published") / "values.csv"
    path.write_text("model_x,model_y,statistic\n" + "".join(f"{a},{b[0]},0.1\n" for a in NAMES for b in VISION))
    both = {name: Alignment(make_table(layers=(2, 2), seed=i), make_run(layers=(2, 2))) for i, name in enumerate(("a", "ab"))}
    both["among"] = among()
    table = pd.concat([a.table[a.table["scope"] == "max"].assign(variant=name) for name, a in both.items()], ignore_index=True)
    table["share"] = table["variant"].map({"a": 0.0, "ab": 0.5, "among": 1.0})
    rng = np.random.default_rng(0)
    features = {}
    for name in (m[0] for m in (*LANGUAGE, *VISION)):
        layers = {f"layer.{i}": torch.tensor(rng.standard_normal((64, 4))) for i in range(2)}
        features[name] = MemoryRepresentation(ModelRecord(f"array:{name}", name, "array"), tuple(map(str, range(64))), layers)
    return Results(both, table, {"a": features}, path)


# A kind without a row here fails the test below: options of a study file, and the names of the figures.
CASES = {
    "matrix": ({"value": "calibrated", "measure": "all"}, ["matrix", "matrix"]),
    "layer_map": ({"model_x": "llama-13b", "variant": "ab", "depth": "relative"}, ["layer_map"]),
    "null": ({"variant": "all"}, ["null"] * 3),
    "trend": ({"against": ["n_parameters", "bits_per_byte"], "published": True}, ["trend_n_parameters", "trend_bits_per_byte"]),
    "bins": ({"against": "bits_per_byte", "bins": 2, "variant": "among", "draws": 19}, ["bins"]),
    "map": ({"colour": "family", "variant": "among", "draws": 0}, ["map_family"]),
    "agreement": ({"draws": 19}, ["agreement"]),
    "effects": ({"factors": ["n_parameters"], "draws": 19}, ["effects_x"]),
    "gallery": ({"k": 3, "sizes": [16, 64], "repeats": 1}, ["gallery"]),
    "curve": ({"x": "share", "variant": "a*", "measure": KNN}, ["curve_share"]),
    "trend_curve": ({"x": "share", "against": "n_parameters", "measure": KNN, "draws": 19, "log": True}, ["trend_over_share"]),
    "contrast": ({"measure": KNN, "variant": "a*"}, ["contrast"]),
    "matched": ({"pairs": {"size": [["llama-13b", "bloom-560m"]]}, "side": "x"}, ["matched_x"]),
    "beside": ({}, ["beside"]),
}


def test_every_kind_has_a_case_and_is_told_of():
    assert set(CASES) == set(FIGURES)
    example = (Path(__file__).parents[1] / "studies/example.yaml").read_text("utf-8")
    assert [kind for kind in FIGURES if not re.search(rf"\b{kind}\b", example)] == []


@pytest.mark.parametrize("kind", FIGURES)
def test_a_kind_is_drawn_with_a_table_and_a_text(results, kind):
    options, names = CASES[kind]
    kinds.check({kind: options})
    drawn = results.draw([{kind: options}])
    assert [one.name for one in drawn] == names, [one.text for one in drawn]
    for one in drawn:
        assert one.figure.axes and not one.table.empty and one.title
        assert "MutualKNN(" not in one.text + one.title and "CKA(k" not in one.text + one.title  # measures have their labels
        assert (one.text == "") == (kind == "layer_map")


def test_options_are_those_of_the_analysis_and_of_the_drawing():
    from repalign import relate

    for kind, figure in FIGURES.items():
        known = inspect.signature(figure.relate).parameters
        assert {"variant", "title"} <= set(figure.options)
        own = {k for k, p in known.items() if k not in kinds.GIVEN and p.kind is not p.VAR_KEYWORD}
        assert own <= set(figure.options), kind
    assert inspect.signature(relate.model_map).parameters.keys() - {"table", "models", "measure"} < FIGURES["map"].options.keys()
    assert "colour" in FIGURES["map"].options and "published" in FIGURES["trend"].options


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"curv": {}}, r"no figure is called 'curv'(.|\n)*did you mean 'curve'"),
        ({"bins": {"against": "x", "bin": 3}}, r"figure bins has no option 'bin'(.|\n)*did you mean 'bins'"),
        ({"gallery": {"k": True}}, "figure gallery: k is no number(.|\n)*got: true"),
        ({"map": {"color": "family"}}, r"figure map has no option 'color'(.|\n)*'colour'"),
        ({"effects": None}, "figure effects needs the option 'factors'"),
        ({"trend_curve": {"x": "k"}}, "figure trend_curve needs the option 'against'"),
        ({"agreement": {"measure": "CKA()"}}, "figure agreement has no option 'measure'"),
        ({"agreement": {"acros": "variant"}}, "figure agreement has no option 'acros'(.|\\n)*did you mean 'across'"),
        ({"matrix": {}, "null": {}}, "a figure is one kind with its options"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(item, message):
    with pytest.raises(RepalignError, match=message):
        kinds.check(item)


def test_agreement_of_runs_is_one_figure_of_a_study(results):
    item = {"agreement": {"across": "variant", "variant": "a*", "measure": KNN, "draws": 19}}
    kinds.check(item, ["a", "ab", "among"], [KNN])
    (drawn,) = results.draw([item])
    axes = drawn.figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "ab", "among"]
    assert drawn.figure.get_suptitle() == "Do variants agree?"
    assert drawn.title == "Agreement of variants, mutual k-NN (k=10)" and drawn.text.startswith("3 variants over 30 pairs")
    assert drawn.table["variant_b"].tolist() == ["ab", "among", "among"]


def test_what_cannot_be_drawn_says_so_and_published_values_may_be_absent(results):
    without = Results(results.alignments, results.table)
    drawn = without.draw([{"beside": {}}, {"trend": {"against": "width"}}, {"matrix": {"variant": "b"}}, {"trend": {
        "against": "n_parameters", "published": True}}])  # fmt: skip
    assert [one.name for one in drawn] == ["trend", "matrix", "trend_n_parameters"]
    assert drawn[0].figure is None and drawn[0].text.startswith("Not drawn: no model of side x has a positive 'width'")
    assert drawn[1].figure is None and "unknown variant 'b'" in drawn[1].text
    assert not [line for line in drawn[2].figure.axes[0].lines if "published" in str(line.get_label())]


def test_titles_name_what_is_shown(results):
    titles = [one.title for one in results.draw([
        {"matrix": {}}, {"trend": {"against": "bits_per_byte", "variant": "ab"}}, {"curve": {"x": "share", "measure": KNN}},
        {"contrast": {"measure": KNN, "title": "My own"}}, {"agreement": {"draws": 19}},
    ])]  # fmt: skip
    assert titles == [
        "Every pair of models, mutual k-NN (k=10), a",
        "Alignment against Bits per byte, mutual k-NN (k=10), ab",
        "Alignment over share, mutual k-NN (k=10)", "My own", "Agreement of measures, a",
    ]  # fmt: skip


def test_the_gallery_figure_shows_its_table(results):
    (one,) = results.draw([{"gallery": {"k": 3, "sizes": [16, 64], "repeats": 1}}])
    (axes,) = one.figure.axes
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [
        "chance", "3 neighbours", "a share of the stimuli as neighbours"
    ]  # fmt: skip
    assert [t.get_text() for t in axes.get_xticklabels()] == ["16", "64"]
    lines = [line for line in axes.lines if len(line.get_xdata())]
    for at, (_, rows) in enumerate(one.table.groupby("mode", sort=False)):
        for line, column in zip(lines[2 * at :], ("statistic", "chance"), strict=False):
            np.testing.assert_array_equal(line.get_xydata(), rows[["n", column]])


def test_a_parameter_of_some_measures_leaves_the_others_out():
    measures = ["MutualKNN(k=5)", "MutualKNN(k=10)", "CKA()"]
    one = make_table(LANGUAGE[:3], VISION[:3], (1, 1))
    parts = [one[(one["measure"] == KNN) & (one["scope"] == "max")].assign(measure=m) for m in measures]
    table = pd.concat(parts, ignore_index=True).assign(variant="")
    results = Results({"": Alignment(table, make_run(LANGUAGE[:3], VISION[:3], (1, 1)))}, table)
    (drawn,) = results.draw([{"curve": {"x": "k"}}])
    assert set(drawn.table["x"]) == {5, 10} and "Left out" not in drawn.text


# --- the writer ----------------------------------------------------------------------------------


def test_a_study_and_the_report_write_the_same_picture(tmp_path):
    """Study figures were of 110 dots an inch with letters as outlines, those of `report --static` of 200 with text."""
    language, vision = LANGUAGE[:3], VISION[:2]
    table = make_table(language, vision, (2, 2))
    alignment = Alignment(table[table["measure"] == KNN], make_run(language, vision, (2, 2)))
    results = Results({"": alignment}, table.assign(variant=""))
    write_report(alignment.save(tmp_path / "r"), tmp_path / "r.html", static=tmp_path / "static")
    write_figures(results.draw([{"matrix": {}}]), tmp_path / "study")
    study, static = tmp_path / "study/01-matrix.svg", tmp_path / "static/matrix-statistic-mutual-k-NN-k-10.svg"
    assert study.read_text("utf-8").count("<text") == static.read_text("utf-8").count("<text") > 15
    with Image.open(study.with_suffix(".png")) as one, Image.open(static.with_suffix(".png")) as other:
        assert one.size == other.size and min(one.size) > 400
    assert study.with_suffix(".csv").read_bytes() == static.with_suffix(".csv").read_bytes()
    assert csv_text(alignment.matrix().reset_index()) == study.with_suffix(".csv").read_text("utf-8")
    for folder in (study.parent, static.parent):
        listed = json.loads((folder / "files.json").read_text("utf-8"))["files"]
        assert set(listed) == {p.name for p in folder.iterdir()} - {"files.json"}
    first = study.read_bytes(), study.with_suffix(".png").read_bytes()
    write_figures(results.draw([{"matrix": {}}]), tmp_path / "study")
    assert (study.read_bytes(), study.with_suffix(".png").read_bytes()) == first


def test_names_of_files_are_plain_and_apart(results, tmp_path):
    (one,) = results.draw([{"null": {}}])
    twins = [kinds.replace(one, name=name) for name in ("a b/c", "a b c", "../x")]
    written = write_figures(twins, tmp_path, numbered=False)
    assert [p.name for p in written if p] == ["a-b-c.svg", "a-b-c-2.svg", "x.svg"]


def test_all_figures_of_a_result_have_names_of_their_own(results):
    names = [one.name for one in of_result(results.alignments["among"])]
    assert len(set(names)) == len(names) and {"chance-mutual k-NN (k=10)"} < set(names)
    assert [n for n in names if n.startswith("trend-both-n_parameters")] and not [n for n in names if n.startswith("trend-x")]


def test_a_result_is_written_with_the_layer_maps_of_its_three_best_pairs(results):
    """By calibrated score, then z, then score; a pair without a score has no map."""
    one = results.alignments["among"]
    measure = one.measures[0]
    table = one.table.copy()
    pairs = table.index[(table["scope"] == "max") & (table["measure"] == measure)]
    assert len(pairs) > 4
    table.loc[pairs, "calibrated"] = np.linspace(0.1, 0.9, len(pairs))
    table.loc[pairs[-1], "statistic"] = np.nan
    table.loc[pairs[0], "calibrated"] = 0.95
    drawn = of_result(Alignment(table, one.run))
    maps = [d.name for d in drawn if d.name.startswith("layers-") and labels_of(one.measures)[measure] in d.name]
    best = table.loc[[pairs[0], pairs[-2], pairs[-3]], ["model_x", "model_y"]].to_numpy()
    assert maps == [f"layers-{x}-{y}-{labels_of(one.measures)[measure]}" for x, y in best]


# --- axes, titles and names of one's own ------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(results) -> dict:
    """Of every kind the function that draws, what it was asked to draw, and its options."""
    out = {}
    for kind, (options, _) in CASES.items():
        figure = FIGURES[kind]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(figure, "draw", lambda found, kind=kind, draw=figure.draw, **more: out.update(
                {kind: (draw, found, more)}) or draw(found, **more))  # fmt: skip
            results.draw([{kind: options}])
    return out


@pytest.mark.parametrize("kind", FIGURES)
def test_a_kind_is_drawn_into_axes_that_are_given(asked, kind):
    """Into these axes and no others, with the title that is asked for; the user's figure stays as it is."""
    draw, found, options = asked[kind]
    first = np.ravel(draw(found, **options))[0]
    says = bool(first.get_title(loc="left") or first.figure.get_supxlabel())
    own = np.ravel(draw(found, **options, title="Mine", figsize=(7, 5), caption=False))
    assert own[0].figure.get_suptitle() == "Mine" and own[0].figure.get_size_inches().tolist() == [7, 5]
    assert own[0].figure.get_supxlabel() == "" and not own[0].get_title(loc="left")
    whole = Figure(figsize=(12, 9), layout="constrained")
    grid = list(whole.subplots(2, 2).flat)
    for caption in (None, True):
        drawn = draw(found, **options, ax=grid[: len(own)] if len(own) > 1 else grid[0], title="Mine", caption=caption)
        assert [a is b for a, b in zip(np.ravel(drawn), grid, strict=False)] == [True] * len(own)
        told = [t.get_text() for t in grid[0].texts if t.get_color() == palette.MUTED and t.get_fontsize() == 7 and t.get_text()]
        assert grid[0].get_title(loc="left") == "Mine" and (told == []) == (caption is None or not says)
        assert not whole.get_suptitle() and not whole.get_supxlabel() and not whole.legends
        assert not grid[3].has_data() and grid[0].has_data()
        for axes in grid[: len(own)]:
            axes.clear()
    whole.draw_without_rendering()
    for wrong, problem in (
        ({"ax": grid[: len(own) + 1]}, rf"this figure has {len(own)} panels?\n  expected: ax=(.|\n)*got: {len(own) + 1} axes"),
        ({"ax": whole}, "ax has no axes to draw into(.|\n)*got: Figure"),
        ({"ax": grid[: len(own)], "figsize": (3, 3)}, "axes that are given have a size"),
        ({"labels": {"nobody": "x"}}, "the figure shows no 'nobody'|no measure 'nobody'"),
        ({"labels": [""] * 999}, "labels do not fit the figure\n  expected: [0-9]+, for(.|\n)*labels={'name': 'label'}"),
    ):
        with pytest.raises(RepalignError, match=problem):
            draw(found, **options, **wrong)


def test_names_are_those_that_are_given(results, asked):
    """By name, in order, or by a function; a measure goes by any of its names."""
    alignment = results.alignments["a"]
    axes = figures.matrix(alignment, labels={"llama-13b": "LLaMA 13B"})
    assert [t.get_text() for t in axes.get_yticklabels()] == [*NAMES[:4], "LLaMA 13B"]
    for labels in (list("abcdefghijk"), lambda name: "abcdefghijk"[[*NAMES, *(m[0] for m in VISION)].index(name)]):
        axes = figures.matrix(alignment, labels=labels)
        shown = [t.get_text() for t in (*axes.get_yticklabels(), *axes.get_xticklabels())]
        assert "".join(shown) == "abcdefghijk"
    with pytest.raises(RepalignError, match=r"the figure shows no 'llama-13'(.|\n)*did you mean 'llama-13b'"):
        figures.null(alignment, labels={"llama-13": "x"})
    draw, found, _ = asked["agreement"]
    shown = draw(found, labels={"cka": "linear CKA"}).get_yticklabels()
    assert [t.get_text() for t in shown] == ["mutual k-NN (k=10)", "linear CKA"]
    draw, found, options = asked["contrast"]
    first, *_ = np.ravel(draw(found, **options, labels={"ab": "with a prompt", "llama-13b": "LLaMA"}))
    assert first.get_ylabel() == "with a prompt, score"
    assert figures.layer_map(alignment, "llama-13b", labels={"llama-13b": "L"}).figure.get_suptitle().startswith("L ×")


def test_figures_show_themselves_and_keep_their_text(results, tmp_path):
    """A notebook shows the axes; an SVG has text as text, whatever matplotlib is set to, and the setting stays."""
    import matplotlib

    axes = figures.null(results.alignments["a"])
    axes.figure.savefig(tmp_path / "own.svg")
    assert matplotlib.rcParams["svg.fonttype"] == "path" and ">llama-13b × clip-large</text>" in (tmp_path / "own.svg").read_text()
    with Image.open(io.BytesIO(axes._repr_png_())) as picture:
        assert min(picture.size) > 300
    assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()
