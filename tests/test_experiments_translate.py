"""Translation by few pairs: closed forms, an independent fit, chance, the bed, the command, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from repalign.cli import app
from repalign.errors import RepalignError
from repalign.experiments.translate import PENALTIES, orthogonal, recall, ridge, translate

CLIP = Path(__file__).resolve().parents[2] / "shared/bed/clip_coco500"


def seen(n: int = 160, noise: float = 0.05, seed: int = 0, width: tuple[int, int] = (10, 14)) -> dict[str, np.ndarray]:
    """Two models that see the same five numbers."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 5))
    return {f"m{d}": z @ rng.standard_normal((5, d)) + noise * rng.standard_normal((n, d)) for d in width}


@pytest.mark.parametrize(("m", "d"), [(30, 4), (12, 20)])
def test_ridge_is_that_of_sklearn_with_the_penalty_of_least_error_on_pairs_left_out(m, d):
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import LeaveOneOut, cross_val_predict

    rng = np.random.default_rng(1)
    x, new = rng.standard_normal((m, d)), rng.standard_normal((5, d))
    y = x @ rng.standard_normal((d, 3)) + rng.standard_normal((m, 3))
    scale = np.linalg.eigvalsh((x - x.mean(0)) @ (x - x.mean(0)).T).clip(0).mean()
    errors = [((cross_val_predict(Ridge(p * scale), x, y, cv=LeaveOneOut()) - y) ** 2).sum() for p in PENALTIES]
    best = Ridge(PENALTIES[int(np.argmin(errors))] * scale).fit(x, y)
    np.testing.assert_allclose(ridge(x, y)(new), best.predict(new), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("m", [6, 40])  # fewer pairs than dimensions, and more
def test_orthogonal_is_the_nearest_of_scipy_and_leaves_what_pairs_do_not_say(m):
    from scipy.linalg import orthogonal_procrustes

    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((m, 9)), rng.standard_normal((m, 9))
    xc, yc = x - x.mean(0), y - y.mean(0)
    turn, total = orthogonal_procrustes(xc, yc)
    moved = orthogonal(x, y)(x) - y.mean(0)
    np.testing.assert_allclose(moved, total / (xc**2).sum() * xc @ turn, atol=1e-9)  # on the pairs themselves
    unseen = np.linalg.svd(xc)[2][min(m - 1, 9) :]  # directions in which the pairs do not differ
    np.testing.assert_allclose(orthogonal(x, y)(x.mean(0) + unseen) - y.mean(0), 0, atol=1e-9)


def test_recall_counts_rows_that_are_nearest_to_their_own_and_no_ties():
    y = np.eye(4)
    assert recall(y, y, np.zeros(4)) == 1 and recall(y[[1, 0, 2, 3]], y, np.zeros(4)) == 0.5
    assert recall(np.ones((4, 4)), y, np.zeros(4)) == 0  # all are as near


def test_few_pairs_join_models_that_see_the_same_and_shuffled_pairs_do_not():
    found = translate(seen(), draws=4)
    table = found.table.set_index(["map", "pairs"])
    assert sorted(set(found.table["pairs"])) == [4, 8, 16, 32, 96] and found.n_test == 64
    assert table.loc[("ridge", 16), "r1"] > 0.9 > 0.4 > table.loc[("ridge", 4), "r1"]
    assert table.loc[("ridge", 96), "r2"] > 0.98
    assert (found.table["shuffled_r1"] < 0.1).all() and (found.table["shuffled_r2"] < 0.1).all()
    assert found.direct is None and 4 < found.pairs_for(0.5, "ridge") < 16
    assert "A guess finds its counterpart with 0.0156" in found.text


def test_unrelated_models_are_not_joined_by_any_number_of_pairs():
    rng = np.random.default_rng(3)
    found = translate({"x": rng.standard_normal((160, 8)), "y": rng.standard_normal((160, 8))}, draws=5)
    assert (found.table["r1"] < 0.06).all() and (found.table["r2"] < 0.05).all()
    assert found.text.count("at no number of pairs are all draws above") == 2 and "half of that" not in found.text


def test_there_and_back_change_places_with_the_inputs():
    x, y = seen(noise=0.5).values()
    one, other = (translate(pair, draws=2, pairs=[10, 40]).table for pair in ({"x": x, "y": y}, {"y": y, "x": x}))
    assert one["r1_there"].tolist() == pytest.approx(other["r1_back"].tolist())
    assert one["r2_back"].tolist() == pytest.approx(other["r2_there"].tolist())


@pytest.mark.skipif(not CLIP.exists(), reason="without the bed")
def test_clip_needs_no_map_and_untrained_towers_are_not_joined():
    clip = translate([CLIP / "image.npy", CLIP / "text.npy"], draws=3, pairs=[8, 100], maps=["orthogonal"])
    assert clip.direct == pytest.approx(0.639, abs=0.03)  # .552 and .506 of 500 in the bed's notes; here of 200
    few, many = clip.table["r1"]
    assert 0.015 < few < 0.06 < 0.14 < many < 0.24 and clip.table["shuffled_r1"].max() < 0.02
    blind = translate([CLIP / "image_untrained.npy", CLIP / "text_untrained.npy"], draws=3, pairs=[100], maps=["orthogonal"])
    assert blind.table["r1"].iloc[0] < 0.03 and blind.direct < 0.02


def test_the_command_and_its_files(tmp_path):
    for name, array in seen().items():
        np.save(tmp_path / f"{name}.npy", array)
    files = [str(tmp_path / "m10.npy"), str(tmp_path / "m14.npy")]
    given = ["translate", *files, "--draws", "2", "--pairs", "8", "--pairs", "20"]
    run = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert "A guess finds" in " ".join(run.output.split()) and (tmp_path / "out" / "translate.csv").is_file()
    assert list((tmp_path / "out" / "figures").glob("*.png"))
    rows = json.loads(CliRunner().invoke(app, [*given, "--json"]).output)
    assert [(r["map"], r["pairs"]) for r in rows] == [(m, k) for m in ("ridge", "orthogonal") for k in (8, 20)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": [2]}, "from 3 to 96"), ({"pairs": [97]}, "from 3 to 96"), ({"maps": ["rigde"]}, "did you mean 'ridge'"),
        ({"draws": 1}, "two draws or more"), ({"test": 0.99}, "too few stimuli"), ({"test": 1.0}, "0 < test < 1"),
    ],
)  # fmt: skip
def test_what_is_refused(options, message):
    with pytest.raises(RepalignError, match=message):
        translate(seen(), **options)


def test_one_model_is_refused():
    with pytest.raises(RepalignError, match="between two models"):
        translate({"x": np.eye(9)})
