"""Figures over models: the frames against the results, and what each backend draws against the frame."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from alignment_table import CKA, KNN, make_run, make_table
from model_tables import ANGLE, against, among, records, symmetric, three
from repalign import figures
from repalign import text as words
from repalign.errors import RepalignError
from repalign.figures import models as frames
from repalign.figures.labels import PLACES, place_labels, steps_of
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


def test_the_bins_figure_shows_the_table(by_competence):
    frame = frames.bins_frame(by_competence)
    assert frame.ticks[0] == "0 to 20\n3 models\n3 pairs" and frame.ticks[3] == "60 to 80\n1 model\n0 pairs"
    assert "Mutual k-NN (k = 10, cosine); 12 models; n = 500" in frame.subtitle
    assert words.number(by_competence.difference) in frame.subtitle and "p = " in frame.subtitle
    figure = figures.bins(by_competence)
    assert len(saved(figure)) > 10_000
    left, right, _ = figure.axes
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


def test_one_side_has_no_matrix_of_bins():
    s = np.random.default_rng(2).random((6, 4))
    found = bins(against(s, KNN), records(range(6), "bits_per_byte"), "bits_per_byte", side="x", bins=2)
    frame = frames.bins_frame(found)
    assert frame.between is None and "with the other side" in frame.title and "lower is better" in frame.x_label
    assert len(figures.bins(found).axes) == 1
    assert {trace.type for trace in figures.bins(found, backend="plotly").data} == {"scatter"}


def test_bins_of_a_distance_turn_the_scale():
    s = 0.5 + 0.03 * symmetric(np.random.default_rng(3), 8)
    frame = frames.bins_frame(bins(among(s, ANGLE, chance=1.5), records(range(8)), "vtab_solved", bins=2))
    assert "lower is closer" in frame.y_label and frame.between is not None
    scale = frame.between.scale
    assert scale.low == 1.5 and scale.high == np.nanmin(frame.between.values) and scale.position(1.5) == 0


def test_bins_of_sizes_are_written_as_sizes():
    found = bins(make_table(layers=(1, 1)), make_run()["models"], "n_parameters", side="x", bins=[1e8, 1e9, 1e11])
    assert [t.split("\n")[0] for t in frames.bins_frame(found).ticks] == ["100 M to 1.00 B", "1.00 B to 100 B"]


def test_plotly_bins(by_competence):
    figure = figures.bins(by_competence, backend="plotly")
    by_name = {trace.name: trace for trace in figure.data if trace.name}
    mean = by_name["mean over pairs, 95 % interval over models"]
    np.testing.assert_array_equal(mean.y, by_competence.within["alignment"])
    np.testing.assert_allclose(
        np.array(mean.y) + np.array(mean.error_y.array), by_competence.within["high"], equal_nan=True
    )
    np.testing.assert_array_equal(by_name["chance"].y, by_competence.within["chance"])
    (heat,) = [trace for trace in figure.data if trace.type == "heatmap"]
    assert heat.xaxis == "x2" and "0 to 20 × 20 to 40: " in heat.customdata[0][1]


# --- map ---------------------------------------------------------------------------------------


def test_points_by_group(placed):
    frame = frames.map_frame(placed, "family")
    assert [g.label for g in frame.groups] == ["A", "B", "C", "no family"]
    assert sorted(np.concatenate([g.rows for g in frame.groups])) == list(range(14))
    assert len({(g.color, g.marker) for g in frame.groups}) == 4
    assert "stress-1" in frame.subtitle and "n = 500" in frame.subtitle and "Mutual k-NN" in frame.title
    axes = figures.model_map(placed, colour="family").axes[0]
    drawn = {c.get_label(): c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)}
    for group in frame.groups:
        np.testing.assert_array_equal(drawn[group.label], placed.table[["x", "y"]].to_numpy()[group.rows])


def test_many_groups_differ_in_colour_or_marker(placed):
    table = pd.DataFrame({"family": [f"F{i}" for i in range(40)]})
    groups = frames._by_group(table, "family")[0]
    assert len({(g.color, g.marker) for g in groups}) == 40


def test_points_by_number(placed):
    frame = frames.map_frame(placed, "vtab_solved")
    assert frame.bar == [(0.0, "0"), (1.0, "13.0")] and [len(g.rows) for g in frame.groups] == [13, 1]
    turned = frames.map_frame(placed, "bits_per_byte")
    assert turned.scale.low > turned.scale.high and "lower is better" in turned.color_label
    sizes = frames.map_frame(placed, "n_parameters")
    assert sizes.scale.log and sizes.scale.position(10**7.3) == pytest.approx(0.5, abs=1e-6)
    figure = figures.model_map(placed, colour="vtab_solved")
    (dots,) = [c for c in figure.axes[0].collections if c.get_array() is not None]
    np.testing.assert_allclose(dots.get_array(), frame.scale.position(frame.values[frame.groups[0].rows]))
    assert figure.axes[1].get_ylabel() == "VTAB tasks solved" and len(saved(figure)) > 10_000


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
    figure = figures.model_map(model_map(table, [], draws=0))
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
    assert len(steps_of(4.0)) == len(PLACES)
    assert place_labels(np.array([[10.0, 50.0]]), np.array([[40.0, 8.0]]), 4, (0, 0, 100, 100)) == ["middle right"]
    assert place_labels(np.array([[90.0, 50.0]]), np.array([[40.0, 8.0]]), 4, (0, 0, 100, 100)) == ["middle left"]


def test_plotly_map(placed):
    figure = figures.model_map(placed, backend="plotly")
    points = {name: xy for trace in figure.data for name, *xy in zip(trace.text, trace.x, trace.y, strict=True) if name}
    table = placed.table.set_index("model")
    assert len(points) >= 7
    for name, xy in points.items():
        assert xy == table.loc[name, ["x", "y"]].tolist()
    assert figure.layout.yaxis.scaleanchor == "x" and {t.name for t in figure.data} == {"contrast", "classification"}
    assert "m00; modality: image; family: A; objective: contrast; n_parameters: 1,000,000" in figure.data[0].customdata[0]
    by_size = figures.model_map(placed, colour="n_parameters", backend="plotly")
    assert by_size.data[0].marker.colorbar.ticktext == ("1.00 M", "398 M")


def test_an_unknown_colour_is_refused(placed):
    with pytest.raises(RepalignError, match="did you mean 'objective'"):
        figures.model_map(placed, colour="objectives")


# --- agreement ---------------------------------------------------------------------------------


def test_the_agreement_figure_shows_the_matrix(agreed):
    frame = frames.agreement_frame(agreed)
    assert frame.names == ["Mutual k-NN (k = 10, cosine)", "CKA (linear, debiased)", "Angular CKA"]
    assert "28 pairs of models of 8 models; n = 500" in frame.subtitle
    assert "Sign turned, so that higher is closer: Angular CKA" in frame.note
    figure = figures.agreement(agreed)
    cells = np.array([t.get_text() for t in figure.axes[0].texts]).reshape(3, 3)
    for (a, b), row in zip(itertools.combinations(range(3), 2), agreed.table.to_dict("records"), strict=True):
        text = f"{row['spearman']:.2f}".replace("-", "−")
        expected = f"○ {text}" if row["p_bh"] > 0.05 else text
        assert cells[a, b] == cells[b, a] == expected
    assert {"○" in c for c in cells.ravel()} == {True, False} and (np.diag(cells) == "1").all()
    assert len(saved(figure)) > 10_000


def test_adjusted_p_of_agreement_is_scipys(agreed):
    from scipy.stats import false_discovery_control

    np.testing.assert_allclose(agreed.table["p_bh"], false_discovery_control(agreed.table["pvalue"]))


def test_labels_that_would_be_the_same_are_written_in_full():
    s = symmetric(np.random.default_rng(5), 5)
    table = pd.concat([among(s, m) for m in ("MutualKNN(k=10)", "MutualKNN(k=10, center=False)")])
    assert frames.agreement_frame(agreement(table)).names == ["MutualKNN(k=10)", "MutualKNN(k=10, center=False)"]


def test_undefined_agreement_is_a_dash_and_few_models_have_no_p():
    s = symmetric(np.random.default_rng(6), 3)
    frame = frames.agreement_frame(agreement(pd.concat([among(s, KNN), among(np.ones((3, 3)), CKA)])))
    assert frame.texts[0, 1] == words.UNDEFINED and math.isnan(frame.values[0, 1]) and frame.note.startswith("no p")


def test_plotly_agreement(agreed):
    figure = figures.agreement(agreed, backend="plotly")
    (heat,) = figure.data
    place = np.clip(agreed.matrix().to_numpy(), 0, 1)
    np.testing.assert_allclose(heat.z, place)
    row = agreed.table.iloc[0]
    assert words.interval(row["spearman"], row["low"], row["high"]) in heat.customdata[0][1]
    assert len(figure.layout.annotations) == 9


@pytest.mark.parametrize("draw", [figures.bins, figures.model_map, figures.agreement])
def test_an_unknown_backend_is_refused(draw):
    with pytest.raises(RepalignError, match="no backend 'bokeh'"):
        draw(None, backend="bokeh")
