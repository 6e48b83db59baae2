"""Published values: both forms of file, the numbers that the figures give, and ours laid beside them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from repalign import figures
from repalign.errors import RepalignError
from repalign.models import known_models
from repalign.relate import Published, beside, published_points, read_published, trend

KNN = "MutualKNN(k=10, similarity='cosine', center=False)"
WIDE = """# read off a figure
# by eye
llm,one_minus_bpb,dinov2_s,clip_h,gsm8k
bloom-0.56b,0.03,0.09,0.12,0.02
bloom-1.1b,0.14,,0.13,
ol13b|ll7b,0.41,0.14,0.20,0.1
my-own,0.5,0.15,0.21,0.2
"""
TIDY = """model_x,model_y,statistic,hellaswag
a,p,0.1,0.5
a,q,0.2,0.5
b,p,0.3,
"""
OURS = {
    "bloom-0.56b": "bloomz-560m", "bloom-1.1b": "bloomz-1b1", "ol13b": "open_llama_13b", "ll7b": "llama-7b",
    "my-own": "my-own", "dinov2_s": "vit_small_patch14_dinov2.lvd142m", "clip_h": "vit_huge_patch14_clip_224.laion2b",
}  # fmt: skip


def written(folder: Path, text: str) -> Published:
    path = folder / "figure.csv"
    path.write_text(text, "utf-8")
    return read_published(path)


@pytest.fixture
def wide(tmp_path) -> Published:
    return written(tmp_path, WIDE)


def ours(published: Published, shift: float = 0.01, factor: float = 1.0) -> pd.DataFrame:
    """A result with our names and scores that are a line of the published ones."""
    rows = published.table
    return pd.DataFrame(
        {
            "scope": "max", "measure": KNN, "n": 1024, "statistic": shift + factor * rows["statistic"], "null_mean": 0.01,
            **{f"model_{side}": [OURS[m] for m in rows[f"model_{side}"]] for side in "xy"},
        }
    )  # fmt: skip


# --- reading ---------------------------------------------------------------------------------------


def test_wide_form(wide):
    assert wide.notes == ("read off a figure", "by eye")
    assert wide.competences == ["one_minus_bpb", "gsm8k"]
    assert len(wide.table) == 4 + 4 + 1  # four and three printed cells, the row of two models twice
    pair = wide.table[(wide.table["model_x"] == "ll7b") & (wide.table["model_y"] == "clip_h")].iloc[0]
    assert (pair["point"], pair["statistic"]) == ("ol13b|ll7b", 0.20)
    assert wide.text == (
        "figure.csv: 9 published scores of 5 models with dinov2_s, clip_h. Taken as competences: one_minus_bpb, gsm8k. "
        "1 blank. One printed row stands for ol13b and ll7b."
    )


def test_points_are_the_printed_rows(wide):
    found = wide.points("one_minus_bpb", "dinov2_s")
    assert found["point"].tolist() == ["bloom-0.56b", "ol13b|ll7b", "my-own"]
    assert found["x"].tolist() == [0.03, 0.41, 0.5] and found["alignment"].tolist() == [0.09, 0.14, 0.15]
    assert wide.points("bits_per_byte", "dinov2_s")["x"].tolist() == pytest.approx([0.97, 0.59, 0.5])
    assert wide.points("gsm8k")["alignment"].tolist() == pytest.approx([0.105, 0.17, 0.18])
    assert wide.points("gsm8k", "vit_small_patch14_dinov2.lvd142m")["point"].tolist() == found["point"].tolist()


def test_tidy_form(tmp_path):
    found = written(tmp_path, TIDY)
    assert found.table.to_dict("list") == {
        "point": ["a", "a", "b"], "model_x": ["a", "a", "b"], "model_y": ["p", "q", "p"], "statistic": [0.1, 0.2, 0.3],
    }  # fmt: skip
    assert found.scores["hellaswag"].tolist() == pytest.approx([0.5, math.nan], nan_ok=True)


def test_a_column_is_a_model_by_name_by_prefix_or_by_word(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("m,alignment_mine,dino_x,clip_h\na,0.1,0.2,0.3\n")
    assert list(read_published(path).table["model_y"]) == ["mine", "clip_h"]
    assert list(read_published(path, models=["dino_x"]).table["model_y"]) == ["mine", "dino_x", "clip_h"]
    path.write_text("m,dinov2_ss,clip_h\na,0.1,0.3\n")
    assert "dinov2_ss (is it the model 'dinov2_s'?)" in read_published(path).text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m,clip_h\na,x1\n", r"statistic of a is not a number(.|\n)*got: x1"),
        ("m,clip_h\na,inf\n", r"statistic of a is not a number"),
        ("m,clip_h,gsm8k\na,0.1,high\n", r"gsm8k of a is not a number(.|\n)*got: high"),
        ("m,clip_h\na,0.1\na,0.2\n", r"a and clip_h are given twice"),
        ("m,gsm8k\na,0.1\n", r"no column is a model(.|\n)*got: gsm8k"),
        ("m\na\n", r"no column is a model(.|\n)*one column only"),
        ("m,clip_h\na,\n", r"no score(.|\n)*1 blanks"),
        ("m,clip_h\n", r"no rows"),
        ("", r"not a table"),
        ('m,clip_h\n"a,0.1\n', r"not a table"),
        ("model_x,statistic\na,0.1\n", r"no column 'model_y'"),
        ("model_x,model_y,statistic,gsm8k\na,p,0.1,0.5\na,q,0.1,0.6\n", r"a has several values of gsm8k(.|\n)*0.5 and 0.6"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    with pytest.raises(RepalignError, match=message):
        written(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RepalignError, match=r"nothing.csv: cannot be read"):
        read_published(tmp_path / "nothing.csv")


def test_unknown_names_of_published_values(wide):
    with pytest.raises(RepalignError, match=r"no published score with 'clip_b'(.|\n)*did you mean 'clip_h'"):
        wide.fit("gsm8k", "clip_b")
    with pytest.raises(RepalignError, match=r"no published 'gsm8'(.|\n)*did you mean 'gsm8k'"):
        wide.fit("gsm8")


# --- the published figures -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figure_3(shared) -> Published:
    return read_published(shared / "published/prh_fig3_digitised.csv")


@pytest.fixture(scope="module")
def figure_4(shared) -> Published:
    return read_published(shared / "published/prh_fig4_digitised.csv")


def test_every_label_of_the_figures_is_a_known_model(figure_3, figure_4):
    names = [k.name for k in known_models()]
    for figure, models_x in ((figure_3, 12), (figure_4, 20)):
        assert figure.table["model_x"].nunique() == models_x
        own = pd.DataFrame(columns=["scope", "measure", "n", "statistic", "null_mean", "model_x", "model_y"])
        own.loc[0] = ["max", KNN, 1024, 0.1, 0.01, "bloomz-560m", "vit_giant_patch14_dinov2.lvd142m"]
        own = pd.concat([own, *(own.assign(model_x=name) for name in names)], ignore_index=True).drop_duplicates()
        unknown = [u for u in beside(own, figure).unmatched_published if not u.startswith(("clip", "mae", "i21k", "dino"))]
        assert unknown == []
    assert figure_3.table["model_y"].nunique() == 17 and set(figure_4.table["model_y"]) == {"dinov2"}


@pytest.mark.parametrize(
    ("model", "slope", "r"),
    [("dinov2_s", 0.129, 0.986), ("dinov2_b", 0.136, 0.988), ("dinov2_l", 0.151, 0.980), ("dinov2_g", 0.156, 0.982)],
)
def test_fits_of_figure_3(figure_3, model, slope, r):
    fit = figure_3.fit("one_minus_bpb", model)
    assert fit.n == 11
    assert fit.slope == pytest.approx(slope, abs=5e-4) and fit.r == pytest.approx(r, abs=5e-4)
    if model == "dinov2_g":
        assert fit.intercept == pytest.approx(0.094, abs=5e-4)
    mirrored = figure_3.fit("bits_per_byte", model)
    assert (mirrored.slope, mirrored.r) == (pytest.approx(-fit.slope), pytest.approx(-fit.r))


@pytest.mark.parametrize(("against", "pearson", "spearman"), [("hellaswag", 0.93, 0.89), ("gsm8k_5shot", 0.69, 0.83)])
def test_correlations_of_figure_4(figure_4, against, pearson, spearman):
    fit = figure_4.fit(against, "dinov2")
    assert fit.n == 20 and fit.r == pytest.approx(pearson, abs=0.005)
    assert fit.spearman == pytest.approx(spearman, abs=0.01)  # several GSM8K scores are read as .02: ties


# --- ours beside them ------------------------------------------------------------------------------


def test_beside_joins_by_label_and_by_known_name(wide):
    table = ours(wide, 0.01, 1.5)
    found = beside(table, wide)
    x, y = found.table["published"], found.table["ours"]
    assert len(found.table) == 9 and (y - x).tolist() == pytest.approx(found.table["difference"].tolist())
    assert found.slope == pytest.approx(1.5) and found.fit.intercept == pytest.approx(0.01)
    assert found.pearson == pytest.approx(1) and found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.rmse == pytest.approx(math.sqrt(np.mean((0.01 + 0.5 * x) ** 2)))
    assert found.mean_difference == pytest.approx((y - x).mean())
    assert found.unmatched_published == found.unmatched_ours == ()
    assert "ol13b and ll7b share one published value." in found.text and "n = 1,024 stimuli" in found.text
    assert "(chance 0.01)" in found.text and "leaves out one at a time of 5 models of side x" in found.text
    assert set(found.table["family"]) == {"DINOv2", "CLIP"}


def test_the_sides_may_be_exchanged(wide):
    table = ours(wide).rename(columns={"model_x": "model_y", "model_y": "model_x"})
    found = beside(table, wide)
    assert len(found.table) == 9 and found.rmse == pytest.approx(0.01)
    assert found.table["model_y"].iloc[0] == OURS[found.table["published_x"].iloc[0]]


def test_names_without_counterpart_are_listed(wide):
    table = ours(wide).replace({"model_x": {"my-own": "my-own-2"}})
    table = table[(table["model_x"] != "llama-7b") | (table["model_y"] != OURS["clip_h"])]
    table.loc[table.index[0], "statistic"] = np.nan
    found = beside(table, wide)
    assert found.unmatched_published == ("my-own (did you mean 'my-own-2'?)",) and found.unmatched_ours == ("my-own-2",)
    assert found.missing == (("llama-7b", OURS["clip_h"]),)
    assert "Pairs with one of the two scores only: llama-7b and vit_huge" in found.text
    assert "1 of our scores undefined." in found.text and found.fit.n == 5


def test_two_pairs_have_no_slope_and_no_interval(tmp_path):
    published = written(tmp_path, "m,clip_h\nbloom-0.56b,0.1\nbloom-1.1b,0.2\n")
    found = beside(ours(published), published)
    assert found.fit is None and math.isnan(found.slope) and math.isnan(found.interval[0])
    assert "Fewer than 3 pairs" in found.text


def test_errors_of_beside(wide):
    table = ours(wide)
    told = r"no published pair of models is in the table(.|\n)*'bloom-0.56b': did you mean 'blomz-6'"
    with pytest.raises(RepalignError, match=told):
        beside(table.assign(model_x=[f"blomz-{i}" for i in range(len(table))]), wide)
    with pytest.raises(RepalignError, match=r"stand more than once in the table(.|\n)*one variant"):
        beside(pd.concat([table, table]), wide)
    with pytest.raises(RepalignError, match=r"no measure 'CKA\(\)'"):
        beside(table, wide, "CKA()")


# --- laid over a trend -----------------------------------------------------------------------------


def records(published: Published) -> list[dict]:
    bits = published.competence("bits_per_byte")
    out = []
    for point, value in bits.items():
        for label in str(point).split("|"):
            out.append({"name": OURS[label], "family": "", "scores": {"bits_per_byte": value - 0.1, "other": value}})
    return out


def test_published_points_have_their_own_competence_or_ours(wide):
    table, models = ours(wide), records(wide)
    partners = [OURS["dinov2_s"], OURS["clip_h"]]
    found = published_points(trend(table, models, "bits_per_byte"), wide, partners)
    assert found["point"].tolist() == ["bloom-0.56b", "ol13b|ll7b", "my-own", "bloom-1.1b"]
    assert found["x"].tolist() == pytest.approx([0.97, 0.59, 0.5, 0.86])  # as published
    assert found["alignment"].tolist() == pytest.approx([0.105, 0.17, 0.18, 0.13])
    assert found["n_partners"].tolist() == [2, 2, 2, 1]
    one = published_points(trend(table, models, "bits_per_byte"), wide, partners[:1])
    assert one["alignment"].tolist() == [0.09, 0.14, 0.15]  # with the partners that are ours alone
    own = published_points(trend(table, models, "other"), wide, partners)
    assert own.set_index("point").loc["my-own", "x"] == pytest.approx(0.5)  # a score that was not published: ours
    assert published_points(trend(table, models, "other"), wide, ["resnet"]).empty


def test_a_trend_with_published_points(wide):
    figure = figures.trend(ours(wide), "bits_per_byte", models=records(wide), published=wide).figure
    (drawn,) = [line for line in figure.axes[0].lines if line.get_label() == "published"]
    assert len(drawn.get_xdata()) == 4 and drawn.get_markerfacecolor() == "none"
    other = ours(wide).assign(model_y="resnet").drop_duplicates(["model_x", "model_y"])
    empty = figures.trend(other, "bits_per_byte", models=records(wide), published=wide).figure
    assert "published (none of these pairs)" in [t.get_text() for t in empty.axes[0].get_legend().get_texts()]
    alone = figures.trend(other, "bits_per_byte", models=records(wide)).figure
    assert not any("published" in t.get_text() for t in alone.axes[0].get_legend().get_texts())


def test_names_of_close_points_do_not_hide_each_other():
    """Twelve models within a hair's breadth: every name is readable, and no name is on a point."""
    rng = np.random.default_rng(0)
    names = [f"a model with a name {i}" for i in range(12)]
    models = [{"name": m, "family": "", "n_parameters": 1e9 * (1 + 0.02 * i)} for i, m in enumerate(names)]
    table = pd.DataFrame({"scope": "max", "measure": KNN, "n": 1024, "null_mean": 0.01, "model_x": names, "model_y": "p"})
    figure = figures.trend(table.assign(statistic=0.2 + 0.001 * rng.standard_normal(12)), models=models).figure
    figure.draw_without_rendering()
    boxes = [note.get_window_extent() for note in figure.axes[0].texts]
    assert len(boxes) == 12
    apart = [not boxes[i].shrunk(0.95, 0.9).overlaps(boxes[j].shrunk(0.95, 0.9)) for i in range(12) for j in range(i)]
    assert np.mean(apart) == 1
