"""Directions of asymmetric measures: chance that differs by hubs, its size, the command, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import repalign
from repalign.cli import app
from repalign.errors import RepalignError
from repalign.experiments.direction import excess, one_way
from repalign.measures import CycleKNN
from repalign.measures.measure import as_features
from repalign.null.permutation import permuted_scores

BED = Path(__file__).resolve().parents[2] / "shared/bed"


def both_ways(measure, x, y, orders):
    """Scores of both directions for each relabelling of y."""
    a, b = (measure.prepare(as_features(z)) for z in (x, y))
    back = np.argsort(orders, axis=1)
    return permuted_scores(measure, [a], [b], orders)[:, 0, 0], permuted_scores(measure, [b], [a], back)[:, 0, 0]


def test_the_size_of_unrelated_spaces_of_different_hubness():
    """2,000 relabellings as pairings of 20 pairs of unrelated spaces, each against 19 others: the difference beyond chance is
    found in 5 % (Wilson, 99 %), where the raw one has one sign four times of five."""
    measure, n, hits, raw = CycleKNN(k=5), 100, 0, []
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.standard_normal((n, 3)), rng.standard_normal((n, 200)) + 2  # a common direction: few rows are near to many
        there, back = both_ways(measure, x, y, np.stack([rng.permutation(n) for _ in range(2000)]))
        raw += (there - back).tolist()
        for some, others in zip(there.reshape(100, 20), back.reshape(100, 20), strict=True):
            hits += excess([some[0], others[0]], [some[1:], others[1:]])[1] <= 0.05
    assert 76 <= hits <= 129
    assert (np.array(raw) > 0).mean() > 0.8


def test_the_difference_is_one_of_joint_relabellings():
    """Both directions see one relabelling of the stimuli: their difference is that of the rows themselves."""
    rng = np.random.default_rng(1)
    x, y, measure = rng.standard_normal((30, 4)), rng.standard_normal((30, 4)), CycleKNN(k=3)
    orders = np.stack([rng.permutation(30) for _ in range(7)])
    there, back = both_ways(measure, x, y, orders)
    assert there == pytest.approx([measure(x, y[p]) for p in orders])
    assert back == pytest.approx([measure(y[p], x) for p in orders])
    way = one_way(measure)
    a, b = (way.prepare(as_features(z)) for z in (x, y))
    assert way.compare(a, b) == pytest.approx(measure(x, y) - measure(y, x)) == pytest.approx(-way.compare(b, a))


def test_one_space_that_holds_the_other():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((150, 6))
    found = repalign.experiments.direction(x, x[:, :2], measure=["InformationImbalance()"], draws=99)
    (row,) = found.table.to_dict("records")
    assert row["there"] < row["back"] and row["low"] > 0 and row["p"] == 0.01 and "x tells more of y" in found.text
    turned = repalign.experiments.direction(x[:, :2], x, measure=["InformationImbalance()"], draws=99)
    assert turned.table["difference"][0] == pytest.approx(-row["difference"], abs=0.05) and "y tells more of x" in turned.text
    assert found.tables["hubs"]["model"].tolist() == ["x", "y"]


@pytest.mark.skipif(not BED.is_dir(), reason="the test bed is not beside the project")
def test_photos_and_captions(tmp_path):
    photos, words = (str(BED / f"features/{name}.safetensors") for name in ("mobilenet_v1_075", "glove50_captions"))
    given = ["direction", photos, words, "--layers", "L5_AvgPool_1a", "--layers", "L1_captions5_mean", "--draws", "49"]
    done = CliRunner().invoke(app, [*given, "--measure", "CycleKNN(k=10)", "--json", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert [row["there"], row["back"]] == pytest.approx([0.418, 0.408], abs=5e-4)
    assert [row["chance_there"], row["chance_back"]] == pytest.approx([0.0907, 0.0918], abs=0.004)
    assert row["difference"] == pytest.approx(0.011, abs=0.004)
    assert (tmp_path / "out/hubs.csv").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"measure": ["CKA()"]}, "no direction"), ({"measure": ["CycleKN"]}, "CycleKNN"), ({"draws": 3}, "19 or more"),
     ({"y": np.zeros((7, 2))}, "different numbers of rows"), ({"layers": ["a", "b", "c"]}, "layers do not fit")],
)  # fmt: skip
def test_what_is_refused(change, said):
    x = np.random.default_rng(0).standard_normal((30, 3))
    with pytest.raises(RepalignError, match=said):
        repalign.experiments.direction(**{"x": x, "y": x, "draws": 19, **change})


def test_a_study_and_its_mock(tmp_path):
    for name in ("x", "y"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(len(name)).standard_normal((40, 3)))
    study = tmp_path / "s.yaml"
    study.write_text("name: s\nexperiment: direction\nx: x.npy\ny: y.npy\ndraws: 19\n")
    mock = repalign.load_study(study).mock()
    assert mock.run().drawn[0].table["n"].iloc[0] == 60
