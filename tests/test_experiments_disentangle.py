"""Components by ICA: closed forms, the outside numbers on CLIP, few labels, the command, and what is refused."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kurtosis
from typer.testing import CliRunner

from repalign.cli import app
from repalign.errors import RepalignError
from repalign.experiments import EXPERIMENTS, disentangle
from repalign.experiments.disentangle import Components, components, mcc
from repalign.experiments.disentangle import mock as made_up

CLIP = Path(__file__).resolve().parents[2] / "shared/bed/clip_coco500"


def rotated(latents: np.ndarray, seed: int = 1) -> np.ndarray:
    d = latents.shape[1]
    return latents @ np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def two_views(n: int = 400, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Laplace latents, and two noisy mixtures of them."""
    rng = np.random.default_rng(seed)
    z = rng.laplace(size=(n, d))
    x, y = (z @ rng.standard_normal((d, d + 2)) + 0.05 * rng.standard_normal((n, d + 2)) for _ in "xy")
    return z, x, y


def test_a_rotation_of_laplace_latents_is_undone_and_one_of_gaussians_is_not():
    """Spec: Laplace .9998 after ICA; Gaussian .618. Before, and of Gaussians, the rotation decides: .55 to .8 at d = 6."""
    rng = np.random.default_rng(0)
    after = {}
    for name, z in (("laplace", rng.laplace(size=(20_000, 6))), ("gaussian", rng.standard_normal((20_000, 6)))):
        x = rotated(z)
        assert 0.55 < mcc(z, x) < 0.8
        found = components(x, 6)
        after[name] = mcc(z, found.ica(x))
        np.testing.assert_allclose(np.cov(found.ica(x).T, bias=True), np.eye(6), atol=1e-9)
        np.testing.assert_allclose(found.pca(x).mean(0), 0, atol=1e-9)
    assert after["laplace"] == pytest.approx(0.9998, abs=1e-4)
    assert 0.5 < after["gaussian"] < 0.8


@pytest.mark.skipif(not CLIP.exists(), reason="without the bed")
def test_the_outside_numbers_on_clip():
    """PCA to the digits of the spec. ICA within what starts differ by: FastICA does not come to rest here in 2,000 steps.

    The spec's .4291 (k = 16) is one run. Ten starts, and other orders of the same steps, give .398 to .442.
    """
    x, y = (np.load(CLIP / f"{name}.npy").astype(float) for name in ("image", "text"))
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    for k, wanted in ((8, 0.4564), (16, 0.3290), (32, 0.2541)):
        pair = [np.linalg.svd(a - a.mean(0), full_matrices=False)[0][:, :k] for a in (x, y)]  # by hand
        assert mcc(*pair) == pytest.approx(wanted, abs=5e-5)
    found = disentangle({"image": x, "text": y}, k=[16], starts=2)
    row = found.table.iloc[0]
    assert row["pca"] == pytest.approx(0.3290, abs=5e-5)
    assert row["ica_low"] <= row["ica"] <= row["ica_high"] and row["ica"] == pytest.approx(0.4291, abs=0.03)
    assert row["relabelled"] == pytest.approx(0.0890, abs=0.01)  # of one relabelling there, of 199 here
    assert row["p"] == 0.005 and row["converged"] < 1
    assert row["split_half_pca"] == pytest.approx(0.5679, abs=0.05)  # halves there are unknown: rows in other halves .5575 to .6176
    assert "FastICA did not come to rest" in found.text and "over 2 starts" in found.text


def test_two_views_of_the_same_latents_share_components_and_others_do_not():
    z, x, y = two_views()
    found = disentangle({"x": x, "y": y}, k=[6], starts=2)
    row = found.table.iloc[0]
    assert row["ica"] > 0.95 > 0.8 > row["pca"] and row["relabelled"] < 0.2 and row["p"] == 0.005
    assert row["restart"] > 0.999 and row["split_half_ica"] > 0.9
    assert row["kurtosis"] == pytest.approx(3, abs=1.5)
    own = components(x, 6)
    np.testing.assert_allclose(np.median(kurtosis(np.hstack([own.ica(x), components(y, 6).ica(y)]))), row["kurtosis"])
    assert mcc(z, own.ica(x)) > 0.95
    other = disentangle({"x": x, "y": two_views(seed=5)[2]}, k=[6], starts=1).table.iloc[0]
    assert other["p"] > 0.01 and other["ica"] < 0.3


def test_one_model_is_asked_about_its_halves():
    _, x, _ = two_views()
    found = disentangle([x], k=[6], starts=1)
    row = found.table.iloc[0]
    assert row["ica"] == row["split_half_ica"] > 0.9 and row["pca"] == row["split_half_pca"]
    assert "either half" in found.text and np.isnan(row["restart"])
    assert found.draw().get_legend().get_texts()[0].get_text().startswith("ICA, halves")


@pytest.fixture
def quick(monkeypatch):
    """Few fits of the probe."""
    module = import_module("repalign.experiments.disentangle")
    monkeypatch.setattr(module, "PER_CLASS", (1, 16, 1000))
    monkeypatch.setattr(module, "FEW_SHOT_DRAWS", 4)
    monkeypatch.setattr(module, "DRAWS", 19)


@pytest.mark.usefixtures("quick")
def test_few_labels_are_told_as_a_difference(tmp_path):
    z, x, y = two_views(n=240)
    labels = (z[:, 0] > 0).astype(int) + 2 * (z[:, 1] > 0)
    rows = [f"{i},c{v},{'odd' if i % 3 == 0 else 'usual'}" for i, v in enumerate(labels)]
    (tmp_path / "labels.csv").write_text("id,label,domain\n" + "\n".join(rows) + "\n")
    found = disentangle({"x": x, "y": y}, k=[6], starts=1, labels=tmp_path / "labels.csv", shift="domain=odd")
    few = found.few_shot
    assert list(few["per_class"].unique()) == [1, 16] and set(few["test"]) == {"held out", "shifted"}
    assert set(few.loc[few["test"] == "shifted", "n_test"]) == {80} and set(few.loc[few["test"] == "held out", "n_test"]) == {32}
    np.testing.assert_allclose(few["ica"] - few["raw"], few["over_raw"], atol=1e-12)
    np.testing.assert_allclose(few["ica"] - few["pca"], few["over_pca"], atol=1e-12)
    # Two latents say the labels: where each is a component of its own, few labels do.
    most = few[few["per_class"] == 16]
    assert (most["ica"] > 0.65).all() and (most["ica"] > few.loc[few["per_class"] == 1, "ica"].max()).all()
    assert (few["over_raw_low"] < few["over_raw"]).all() and (few["chance"] < 0.5).all()
    assert "Does ICA help with few labels?" in found.text
    axes = found.draw().figure.axes
    assert len(axes) == 2 and axes[1].get_ylabel() == "accuracy, ICA minus raw"
    plain = disentangle([x], k=[6], starts=1, labels=labels).few_shot
    assert set(plain["test"]) == {"held out"} and plain["n_test"].unique().tolist() == [48]


@pytest.mark.usefixtures("quick")
def test_held_out_stimuli_have_no_say_in_the_components(monkeypatch):
    z, x, _ = two_views(n=200)
    seen = []
    real = Components.ica
    monkeypatch.setattr(Components, "ica", lambda self, rows: seen.append(self.mean) or real(self, rows))
    disentangle([x], k=[6], starts=1, labels=(z[:, 0] > 0).astype(int))
    whole = x.mean(axis=0)
    assert not np.allclose(seen[-1], whole, atol=1e-6)


@pytest.mark.usefixtures("quick")
def test_the_command_and_a_study_write_what_they_found(tmp_path):
    from repalign.study import load_study

    _, x, y = two_views()
    for name, a in (("x", x), ("y", y)):
        np.save(tmp_path / f"{name}.npy", a)
    asked = [str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "--k", "3", "--k", "6", "--starts", "1"]
    done = CliRunner().invoke(app, ["disentangle", *asked, "--json"])
    assert done.exit_code == 0, done.output
    assert [row["k"] for row in json.loads(done.stdout)] == [3, 6]
    (tmp_path / "study.yaml").write_text("name: parts\nexperiment: disentangle\ninputs: [x.npy, y.npy]\nk: [6]\nstarts: 1\n")
    study = load_study(tmp_path / "study.yaml")
    study.run()
    assert (tmp_path / "runs/parts/results/disentangle.csv").exists()
    assert study.mock().run().drawn[0].table["k"].tolist() == [3, 6]


@pytest.mark.usefixtures("quick")
def test_made_up_data_has_what_is_asked_for(tmp_path):
    given = {"inputs": ["a", "b"], "label": "class", "labels": Path("l.csv"), "shift": "domain=sketch"}
    made = made_up(given, tmp_path)
    found = EXPERIMENTS["disentangle"].run(**{**given, **made})
    assert set(found.few_shot["test"]) == {"held out", "shifted"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": [1]}, r"2 <= k <= 8(.|\n)*k = 1"),
        ({"k": [9]}, r"2 <= k <= 8 for 400 rows of width 8"),
        ({"starts": 0}, "starts >= 1"),
        ({"k": []}, "at least one k"),
        ({"shift": "domain=odd"}, "--labels labels.csv"),
        ({"labels": ["a", "b"]}, r"labels do not fit the rows(.|\n)*400"),
        ({"inputs": [np.eye(3)] * 3}, "one or two inputs"),
        ({"inputs": [np.ones((50, 4)) * np.arange(50)[:, None]], "k": [2]}, r"fewer directions(.|\n)*k <= 1"),
    ],
)
def test_what_is_refused(change, message):
    _, x, y = two_views()
    with pytest.raises(RepalignError, match=message):
        disentangle(**({"inputs": {"x": x, "y": y}, "k": [6], "starts": 1} | change))


def test_a_shift_that_no_stimulus_has_is_refused(tmp_path):
    _, x, _ = two_views(n=60)
    (tmp_path / "labels.csv").write_text("id,label,domain\n" + "".join(f"{i},{i % 2},photo\n" for i in range(60)))
    ask = {"inputs": [x], "k": [6], "starts": 1, "labels": tmp_path / "labels.csv"}
    with pytest.raises(RepalignError, match=re.escape("column 'domain' nowhere says 'sketch'")):
        disentangle(**ask, shift="domain=sketch")
    with pytest.raises(RepalignError, match="COLUMN=VALUE"):
        disentangle(**ask, shift="domain")


def test_a_probe_with_an_l2_penalty_does_not_see_the_rotation_of_ica():
    """Why ICA cannot help such a probe over whitened components: the accuracies are the same draw by draw."""
    from repalign.competence import FewShotProbe

    z, x, _ = two_views(n=200)
    found, y = components(x, 6), (z[:, 0] > 0).astype(int)
    white = found.pca(x) / found.pca(x).std(axis=0)
    probe = FewShotProbe(m=4, draws=5, standardize=False)
    of_ica, of_white = (probe.fit(a[:100], y[:100], a[100:], y[100:], 0)["details"]["draws"] for a in (found.ica(x), white))
    assert of_ica == pytest.approx(of_white, abs=0.011)  # a row of 100 where the fit's tolerance decides
