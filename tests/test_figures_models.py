"""Figures over models: what is drawn against the findings."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from alignment_table import CKA, KNN, make_run, make_table
from model_tables import ANGLE, against, among, records, symmetric, three
from repalign import figures
from repalign import text as words
from repalign.errors import RepalignError
from repalign.figures import map_chart
from repalign.figures.canvas import place_labels
from repalign.relate import agreement, bins, model_map


@pytest.fixture(scope="module")
def by_competence():
    s = 0.3 + 0.03 * symmetric(np.random.default_rng(0), 12)
    return bins(among(s, KNN, chance=0.02), records([1, 5, 9, 30, 33, 36, 37, 61, 85, 86, 90, 99]), "vtab_solved",
                bins=[0, 20, 40, 60, 80, 100])  # fmt: skip


@pytest.fixture(scope="module")
def placed():
    z = np.random.default_rng(1).standard_normal((14, 2))
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1)
    models = records(range(14), families=["A", "B", "C", ""] * 3 + ["A", "B"])
    for i, m in enumerate(models):
        m |= {"objective": ["contrast", "classification"][i % 2], "n_parameters": 10 ** (6 + i / 5)}
        m["scores"]["bits_per_byte"] = 1 - i / 50
    del models[3]["scores"]["vtab_solved"]
    return model_map(among(np.exp(-apart), KNN), models, draws=9)


@pytest.fixture(scope="module")
def agreed():
    return agreement(three(np.random.default_rng(0), 8)[1])


def saved(figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


# --- bins --------------------------------------------------------------------------------------


def heading(figure) -> str:
    return figure.axes[0].get_title(loc="left")


def note(figure) -> str:
    """What stands below a figure, in one line."""
    return " ".join(figure.get_supxlabel().split())


def bar(figure) -> list[tuple[float, str]]:
    """The marks of a colour bar, the last axes of a figure."""
    axes = figure.axes[-1]
    return list(zip(axes.get_yticks().tolist(), [t.get_text() for t in axes.get_yticklabels()], strict=True))


def test_the_bins_figure_shows_the_table(by_competence):
    figure = figures.bins(by_competence)[0].figure
    assert len(saved(figure)) > 10_000
    left, right, _ = figure.axes
    ticks = [t.get_text() for t in left.get_xticklabels()]
    assert ticks[0] == "0 to 20\n3 models\n3 pairs" and ticks[3] == "60 to 80\n1 model\n0 pairs"
    assert "mutual k-NN (k=10); 12 models; n = 500" in heading(figure)
    assert words.number(by_competence.difference) in heading(figure) and "p = " in heading(figure)
    rows = by_competence.within
    (means,) = [line for line in left.lines if line.get_label() == "mean over pairs"]
    np.testing.assert_array_equal(means.get_ydata(), rows["alignment"])
    (interval,) = [c for c in left.collections if c.get_label() == "95 % interval over models"]
    drawn = np.array([path.vertices[:, 1] for path in interval.get_paths()])
    np.testing.assert_array_equal(drawn, rows[["low", "high"]].to_numpy())
    (thick,) = [c for c in left.collections if "standard error" in c.get_label()]
    np.testing.assert_allclose(np.diff([p.vertices[:, 1] for p in thick.get_paths()])[:, 0], 2 * rows["se"])
    (chance,) = [c for c in left.collections if c.get_label() == "chance"]
    assert chance.get_paths()[0].vertices[0, 1] == pytest.approx(0.02)
    cells = np.array([t.get_text() for t in right.texts]).reshape(5, 5)
    expected = by_competence.matrix().map(words.number).to_numpy()
    np.testing.assert_array_equal(cells, expected)
    assert cells[3, 3] == words.UNDEFINED
    shown = np.ma.filled(right.images[0].get_array(), np.nan)
    matrix = by_competence.matrix().to_numpy(float)
    np.testing.assert_allclose(shown, (matrix - 0.02) / (np.nanmax(matrix) - 0.02), atol=1e-12)


def test_one_side_has_no_matrix_of_bins():
    s = np.random.default_rng(2).random((6, 4))
    found = bins(against(s, KNN), records(range(6), "bits_per_byte"), "bits_per_byte", side="x", bins=2)
    figure = figures.bins(found).figure
    assert "with the other side" in figure.get_suptitle() and "lower is better" in figure.axes[0].get_xlabel()
    assert len(figure.axes) == 1


def test_bins_of_a_distance_turn_the_scale():
    s = 0.5 + 0.03 * symmetric(np.random.default_rng(3), 8)
    found = bins(among(s, ANGLE, chance=1.5), records(range(8)), "vtab_solved", bins=2)
    figure = figures.bins(found)[0].figure
    assert "lower is closer" in figure.axes[0].get_ylabel()
    closest = np.nanmin(found.matrix().to_numpy(float))
    assert bar(figure) == [(0.0, "chance 1.50"), (1.0, words.number(closest))]
    shown = figure.axes[1].images[0].get_array()
    np.testing.assert_allclose(shown, (found.matrix().to_numpy(float) - 1.5) / (closest - 1.5))


def test_bins_of_sizes_are_written_as_sizes():
    found = bins(make_table(layers=(1, 1)), make_run()["models"], "n_parameters", side="x", bins=[1e8, 1e9, 1e11])
    ticks = [t.get_text().split("\n")[0] for t in figures.bins(found).get_xticklabels()]
    assert ticks == ["100 M to 1.00 B", "1.00 B to 100 B"]


# --- map ---------------------------------------------------------------------------------------


def groups(figure) -> dict[str, PathCollection]:
    """The points of a map by their label."""
    return {c.get_label(): c for c in figure.axes[0].collections if isinstance(c, PathCollection)}


def test_points_by_group(placed):
    figure = figures.model_map(placed, colour="family").figure
    drawn = groups(figure)
    assert list(drawn) == ["A", "B", "C", "no family"] and sum(len(c.get_offsets()) for c in drawn.values()) == 14
    assert "stress-1" in heading(figure) and "n = 500" in heading(figure) and "mutual k-NN" in figure.get_suptitle()
    for label, points in drawn.items():
        own = placed.table.loc[placed.table["family"] == ("" if label == "no family" else label), ["x", "y"]]
        np.testing.assert_array_equal(points.get_offsets(), own)
    assert len({(tuple(c.get_facecolor()[0]), str(c.get_paths()[0].vertices)) for c in drawn.values()}) == 4


def test_many_groups_differ_in_colour_or_marker():
    made = list(map_chart._by_kind(pd.Series([f"F{i}" for i in range(40)]), "family"))
    assert len({(g.color, g.marker) for g in made}) == 40


def test_points_by_number(placed):
    figure = figures.model_map(placed, colour="vtab_solved").figure
    assert bar(figure) == [(0.0, "0"), (1.0, "13.0")]
    assert sorted(len(c.get_offsets()) for c in groups(figure).values()) == [1, 13]
    (dots,) = [c for c in groups(figure).values() if c.get_array() is not None]
    known = placed.table["vtab_solved"].dropna().to_numpy()
    np.testing.assert_allclose(dots.get_array(), known / 13)
    assert figure.axes[1].get_ylabel() == "VTAB tasks solved" and len(saved(figure)) > 10_000
    turned = figures.model_map(placed, colour="bits_per_byte").figure
    assert [text for _, text in bar(turned)] == ["1.00", "0.740"] and "lower is better" in turned.axes[1].get_ylabel()
    sizes = figures.model_map(placed, colour="n_parameters").figure
    assert [text for _, text in bar(sizes)] == ["1.00 M", "398 M"]
    (dots,) = [c for c in groups(sizes).values() if c.get_array() is not None]
    np.testing.assert_allclose(dots.get_array(), np.arange(14) / 13, atol=1e-6)  # on a logarithmic scale


def boxes(figure) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Names and points of a map in pixels."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = {t.get_text(): np.array(t.get_window_extent().extents) for t in axes.texts}
    dots = [c for c in axes.collections if isinstance(c, PathCollection)]
    return texts, np.concatenate([axes.transData.transform(c.get_offsets()) for c in dots]), figure.dpi / 72


@pytest.mark.parametrize("n", [6, 14, 60])
def test_names_cover_no_point_and_no_name(n):
    z = np.random.default_rng(n).standard_normal((n, 2))
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1)
    table = among(np.exp(-apart), KNN).replace(r"^(m\d\d)$", r"a_rather_long_name_\1", regex=True)
    figure = figures.model_map(model_map(table, [], draws=0)).figure
    saved(figure)
    names, points, scale = boxes(figure)
    radius = 3.0 * scale
    for box in names.values():
        near = np.clip(points, box[:2], box[2:]) - points
        assert (np.linalg.norm(near, axis=1) > radius).all()
    for a, b in itertools.combinations(names.values(), 2):
        assert not ((a[:2] < b[2:]).all() and (a[2:] > b[:2]).all())
    said = f"{n - len(names)} name" in figure._supxlabel.get_text()
    assert len(names) >= n / 3 and said == (len(names) < n)


def test_a_name_without_room_has_no_place():
    points = np.array([[50.0, 50.0], [50.0, 61.0], [50.0, 39.0]])
    sizes = np.tile([60.0, 8.0], (3, 1))
    assert place_labels(points, sizes, 4, (0, 0, 120, 100)).count(None) == 0
    assert place_labels(points, sizes, 4, (45, 35, 55, 65)) == [None] * 3
    one = np.array([[40.0, 8.0]])
    (right,) = place_labels(np.array([[10.0, 50.0]]), one, 4, (0, 0, 100, 100))
    (left,) = place_labels(np.array([[90.0, 50.0]]), one, 4, (0, 0, 100, 100))
    assert 14 < right[0] < 16 and 44 < left[0] + 40 < 86 and right[1] == left[1] == 46
    # With a longer reach it moves on, and it stays clear of what is taken.
    wall = [(20.0, 46.0, 21.0, 54.0), (0.0, 54.0, 100.0, 55.0), (0.0, 45.0, 100.0, 46.0)]
    assert place_labels(np.array([[10.0, 50.0]]), one, 4, (0, 0, 100, 100), taken=wall) == [None]
    (far,) = place_labels(np.array([[10.0, 50.0]]), one, 4, (0, 0, 100, 100), taken=wall, reach=6)
    box = (*far, far[0] + 40, far[1] + 8)
    assert not [w for w in wall if box[0] < w[2] and w[0] < box[2] and box[1] < w[3] and w[1] < box[3]]


def test_an_unknown_colour_is_refused(placed):
    with pytest.raises(RepalignError, match="did you mean 'objective'"):
        figures.model_map(placed, colour="objectives")


# --- agreement ---------------------------------------------------------------------------------


def cells(figure, n: int) -> np.ndarray:
    return np.array([t.get_text() for t in figure.axes[0].texts]).reshape(n, n)


def test_the_agreement_figure_shows_the_matrix(agreed):
    figure = figures.agreement(agreed).figure
    labels = ["mutual k-NN (k=10)", "CKA", "angular CKA"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == labels
    assert "28 pairs of models of 8 models; n = 500" in " ".join(heading(figure).split())
    assert "Sign turned, so that higher is closer: angular CKA" in note(figure)
    texts = cells(figure, 3)
    for (a, b), row in zip(itertools.combinations(range(3), 2), agreed.table.to_dict("records"), strict=True):
        text = f"{row['spearman']:.2f}".replace("-", "−")
        expected = f"○ {text}" if row["p_bh"] > 0.05 else text
        assert texts[a, b] == texts[b, a] == expected
    assert {"○" in c for c in texts.ravel()} == {True, False} and (np.diag(texts) == "1").all()
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), np.clip(agreed.matrix().to_numpy(), 0, 1))
    assert len(saved(figure)) > 10_000


def test_adjusted_p_of_agreement_is_scipys(agreed):
    from scipy.stats import false_discovery_control

    np.testing.assert_allclose(agreed.table["p_bh"], false_discovery_control(agreed.table["pvalue"]))


def test_labels_that_would_be_the_same_are_written_in_full():
    s = symmetric(np.random.default_rng(5), 5)
    table = pd.concat([among(s, m) for m in ("MutualKNN(k=10)", "MutualKNN(k=10, center=False)")])
    shown = [t.get_text() for t in figures.agreement(agreement(table)).get_yticklabels()]
    assert shown == ["MutualKNN(k=10)", "MutualKNN(k=10, center=False)"]


def test_undefined_agreement_is_a_dash_and_few_models_have_no_p():
    s = symmetric(np.random.default_rng(6), 3)
    figure = figures.agreement(agreement(pd.concat([among(s, KNN), among(np.ones((3, 3)), CKA)]))).figure
    assert cells(figure, 2)[0, 1] == words.UNDEFINED and note(figure).startswith("no p")
    assert np.ma.getmaskarray(np.ma.masked_invalid(figure.axes[0].images[0].get_array()))[0, 1]
