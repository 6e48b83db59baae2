"""The perceptual score: exact means and spreads, published-like values of outside code, the command, and what it refuses."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

import repalign
from repalign.cli import app
from repalign.errors import RepalignError
from repalign.experiments.perceive import _Sums, perceptual_score, shapley

BED = Path(__file__).resolve().parents[2] / "shared/bed"


def score_of(c: np.ndarray, seed: int = 0):
    """The score of a whole matrix C."""
    sums = _Sums(len(c), np.arange(len(c)), seed)
    sums.add(np.arange(len(c)), c, np.diag(c))
    return sums.score()


def test_mean_and_spread_are_those_of_all_relabellings():
    c = np.random.default_rng(0).random((6, 6)) < 0.5
    found = score_of(c)
    every = [c[np.arange(6), list(p)].mean() for p in itertools.permutations(range(6))]
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.permuted == pytest.approx(np.mean(every), abs=1e-12) == pytest.approx(0.3888888889)
    assert found.sd == pytest.approx(np.std(every), abs=1e-12) == pytest.approx(0.1629208698)
    place = np.random.default_rng(0).permutation(6)
    shifts = [np.mean([c[i, j] for i in range(6) for j in range(6) if (place[j] - place[i]) % 6 == s]) for s in range(6)]
    assert found.p == np.mean(np.array(shifts) >= shifts[0] - 1e-12)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (lambda a, b: a, [(0.5, 0.5, 1), (0, 0, 0)]),
        (lambda a, b: a ^ b, [(0.5, 0.5, 1)] * 2),
        (lambda a, b: a & b, [(0.25, 0.25, 1)] * 2),
    ],
)  # fmt: skip
def test_predictors_of_two_bits(rule, wanted):
    x = [np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])]
    y = rule(*x)
    for k, (raw, model, task) in enumerate(wanted):
        found = perceptual_score(rule, x, y, [k])
        assert found.raw == pytest.approx(raw)
        assert found.raw / found.accuracy == pytest.approx(model)
        assert found.raw / (1 - np.bincount(y).max() / 4) == pytest.approx(task)


def made():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 400)
    vision, text = np.eye(3)[y] + 0.8 * rng.standard_normal((400, 3)), 2 * np.eye(3)[y] + 0.8 * rng.standard_normal((400, 3))
    model = LogisticRegression(C=1, tol=1e-10, max_iter=1000).fit(np.c_[vision, text][:200], y[:200])
    return model, vision[200:], text[200:], y[200:]


def test_values_of_outside_code():
    """A predictor by its parts gives what the same predictor as a function gives."""
    model, vision, text, y = made()
    parts = [vision @ model.coef_[:, :3].T + model.intercept_, text @ model.coef_[:, 3:].T]
    wanted = (
        (0.863225, 0.019223, 0.091775, 0.096099, 0.143398, (0.036625, 0.01825, 0.0369)),
        (0.40465, 0.033650, 0.55035, 0.576283, 0.859922, None),
    )
    for k, (permuted, sd, raw, of_model, of_task, parts_of) in enumerate(wanted):
        found = perceptual_score(parts, [vision, text], y, [k])
        called = perceptual_score(lambda a, b: model.predict(np.c_[a, b]), [vision, text], y, [k])
        assert (found.permuted, found.sd, found.p) == (called.permuted, pytest.approx(called.sd, abs=1e-12), called.p)
        assert [found.accuracy, found.permuted, found.sd, found.raw] == pytest.approx([0.955, permuted, sd, raw], abs=1e-6)
        assert found.raw / found.accuracy == pytest.approx(of_model, abs=1e-6)
        assert found.raw / (1 - np.bincount(y).max() / 200) == pytest.approx(of_task, abs=1e-6)
        contributions = [found.rows[y == c].sum() / 200 for c in range(3)]
        assert sum(contributions) == pytest.approx(found.raw, abs=1e-12)
        assert parts_of is None or contributions == pytest.approx(parts_of, abs=1e-9)


def test_a_loss_in_place_of_accuracy_and_a_sample_of_partners():
    model, vision, text, y = made()

    def minus_loss(scores, codes):
        return np.log(scores[np.arange(len(codes)), codes])

    def predict(a, b):
        return model.predict_proba(np.c_[a, b])

    whole = perceptual_score(predict, [vision, text], y, [1], loss=minus_loss)
    some = perceptual_score(predict, [vision, text], y, [1], loss=minus_loss, anchors=100)
    direct = minus_loss(predict(vision, text), y).mean()
    assert whole.accuracy == pytest.approx(direct) and whole.raw > 0
    assert some.accuracy == whole.accuracy and abs(some.permuted - whole.permuted) < 4 * whole.permuted**2 / 10
    assert np.isnan(some.p) and some.sd == pytest.approx(whole.sd, rel=0.15)
    accuracy = perceptual_score(predict, [vision, text], y, [1])
    difference, low, high = accuracy.minus(perceptual_score(predict, [vision, text], y, [0]))
    assert low < difference < high and difference == pytest.approx(0.55035 - 0.091775)


def test_the_size_is_that_of_the_level():
    """2,000 predictors that know nothing: p <= .05 in 5 % of them, within Wilson's 99 % interval."""
    rng, n = np.random.default_rng(0), 20
    hits = 0
    for k in range(2000):
        y, guess = rng.integers(0, 2, n), rng.standard_normal((n, 2))
        hits += score_of((guess.argmax(1)[None, :] == y[:, None]) + 1e-6 * rng.random((n, n)), k).p <= 0.05
    assert 76 <= hits <= 129  # 3.8 % and 6.4 %


def test_the_interval_covers():
    """Over fresh samples of one world the interval of `raw` holds the value of a large sample in 95 % of 400, within 99 %."""
    world = np.random.default_rng(5)

    def score(n, rng):
        y = rng.integers(0, 2, n)
        x = [np.c_[-z, z] for z in (y + rng.standard_normal(n), 1.5 * y + rng.standard_normal(n))]
        return perceptual_score([x[0] + [0.5, -0.5], x[1] + [0.75, -0.75]], x, y, [0], classes=[0, 1])

    truth = np.mean([score(2000, world).raw for _ in range(4)])
    covered = sum(found.low <= truth <= found.high for found in (score(80, world) for _ in range(400)))
    assert 366 <= covered <= 392  # 92 % and 98 %


def test_shapley_sums_to_all():
    rng = np.random.default_rng(0)
    value = {frozenset(s): float(rng.random()) for k in range(4) for s in itertools.combinations(range(3), k)}
    shares = shapley(value, 3)
    assert shares.sum() == pytest.approx(value[frozenset({0, 1, 2})] - value[frozenset()])
    orders = list(itertools.permutations(range(3)))  # the definition
    by_orders = [
        np.mean([value[frozenset((*order[: order.index(i)], i))] - value[frozenset(order[: order.index(i)])] for order in orders])
        for i in range(3)
    ]
    assert shares == pytest.approx(by_orders)


@pytest.fixture
def files(tmp_path):
    rng, y = np.random.default_rng(0), np.arange(120) % 3
    for name in ("sight", "sound", "touch"):
        np.save(tmp_path / f"{name}.npy", np.eye(3)[y] + rng.standard_normal((120, 3)))
    rows = [f"{i},{y[i]},{i // 4},{('train', 'test')[i // 3 % 2]}" for i in range(120)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,label,group,side", *rows]) + "\n")
    return tmp_path


def test_three_modalities_by_the_command(files):
    given = ["perceive", "labels.csv", "sight.npy", "sound.npy", "touch.npy"]
    given = [given[0], *(str(files / name) for name in given[1:]), "--penalty", "1"]
    done = CliRunner().invoke(app, [*given, "--out", str(files / "out"), "--groups", "group"])
    assert done.exit_code == 0, done.output
    found = list(csv.DictReader((files / "out/perceive.csv").read_text().splitlines()))
    assert len(found) == 7  # all subsets but none
    shares = sum(float(row["shapley"]) for row in found if row["shapley"])
    assert shares == pytest.approx(float(found[-1]["raw"]), abs=1e-9)
    assert {p.name for p in (files / "out").iterdir()} == {"perceive.csv", "parts.csv", "experiment.json", "report.html", "figures"}
    assert json.loads((files / "out/experiment.json").read_text())["options"]["penalty"] == 1
    rows = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    assert [row["permuted"] for row in rows[:3]] == ["sight", "sound", "touch"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": ["sight.npy"]}, "one modality"),
        ({"inputs": ["sight.npy", "sight.npy"]}, "twice"),
        ({"inputs": ["sight.npy", "store#model"]}, "model"),
        ({"label": "lable"}, "did you mean 'label'"),
        ({"layers": ["a", "b", "c"]}, "layers do not fit"),
        ({"layers": ["last", "tenth"]}, "no layer 'tenth'"),
        ({"split": "group"}, "no side"),
        ({"split": "side", "groups": "side"}, None),
        ({"labels": "few.csv"}, "a row for every id|one row for every id"),
        ({"test": 1.5}, "share of held-out rows"),
    ],
)  # fmt: skip
def test_what_is_refused(files, change, said):
    (files / "few.csv").write_text("id,label\n0,a\n1,b\n")
    given = {"labels": "labels.csv", "inputs": ["sight.npy", "sound.npy"], "penalty": 1.0} | change
    given["labels"] = files / given["labels"]
    given["inputs"] = [str(files / name) for name in given["inputs"]]
    if said is None:
        assert repalign.experiments.perceive(**given).n == 60
        return
    with pytest.raises(RepalignError, match=said):
        repalign.experiments.perceive(**given)


def test_as_a_study_and_a_mock(files):
    study = files / "seen.yaml"
    study.write_text("name: seen\nexperiment: perceive\nlabels: labels.csv\ninputs: [sight.npy, sound.npy]\npenalty: 1\n")
    loaded = repalign.load_study(study)
    assert "sight.npy" in loaded.plan().lines[0]
    outcome = loaded.run()
    assert (files / "runs/seen/results/perceive.csv").is_file() and "loses" in outcome.drawn[0].text
    assert loaded.mock().run().drawn[0].table["n"].iloc[0] == 60


@pytest.mark.skipif(not BED.is_dir(), reason="the test bed is not beside the project")
def test_photos_and_captions(tmp_path):
    rows = [json.loads(line) for line in (BED / "flickr8k_dev/pairs.jsonl").read_text("utf-8").splitlines()]
    train = set(np.random.default_rng(0).permutation(1000)[:500].tolist())
    lines = ["id,label,side"]
    for i, row in enumerate(rows):
        told = " ".join(row["captions"][1:]).lower()
        child = re.search(r"\b(child|children|boys?|girls?|kids?|baby|toddlers?)\b", told)
        label = "dog" if re.search(r"\bdogs?\b", told) else "child" if child else "other"
        lines.append(f"{row['id']},{label},{'train' if i in train else 'test'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    photos, words = (str(BED / f"features/{name}.safetensors") for name in ("mobilenet_v1_075", "glove50_captions"))
    found = repalign.experiments.perceive(
        tmp_path / "labels.csv", [photos, words], layers=["L5_AvgPool_1a", "L0_caption1_mean"], split="side", penalty=0.01
    )
    photo, caption = found.table.to_dict("records")[:2]
    assert [photo["accuracy"], photo["alone"], caption["alone"], found.majority] == pytest.approx([0.768, 0.716, 0.784, 0.384])
    assert [photo["raw"], photo["sd"], photo["p"]] == pytest.approx([0.353932, 0.020559, 0.002], abs=1e-6)
    assert [caption["raw"], caption["sd"], caption["p"]] == pytest.approx([0.070368, 0.012137, 0.002], abs=1e-6)
