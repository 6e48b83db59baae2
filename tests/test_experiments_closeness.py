"""Closeness in distribution from files: the same predictions from other embeddings, near ones, and unlike ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from repalign.errors import RepalignError
from repalign.experiments import closeness
from repalign.measures import KLDivergence, log_likelihood_variance_distance

WIDTH, LABELS, N = 3, 7, 120


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    f, g, a = rng.normal(size=(N, WIDTH)), rng.normal(size=(LABELS, WIDTH)), rng.normal(size=(WIDTH, WIDTH))
    return {
        "f": f, "g": g, "turned_f": f @ np.linalg.inv(a).T, "turned_g": g @ a, "near_f": f + 0.01 * rng.normal(size=f.shape),
        "other_f": rng.normal(size=f.shape), "other_g": rng.normal(size=g.shape), "few_g": g[:4], "wide_f": rng.normal(size=(N, 5)),
        "short_f": f[:50],
    }  # fmt: skip


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    for name, x in arrays.items():
        np.save(folder / f"{name}.npy", x)
    return {name: str(folder / f"{name}.npy") for name in arrays}


def told(files: dict[str, str], *names: str, **options: object):
    return closeness(*(files[name] for name in names), **options)  # type: ignore[arg-type]


def test_other_embeddings_of_the_same_predictions(files):
    """d_LLV and KL are 0 though CKA is not 1: predictions fix embeddings up to an invertible map."""
    found = told(files, "f", "g", "turned_f", "turned_g")
    (row,) = found.table.to_dict("records")
    assert row["d_llv"] < 1e-12 and row["kl_ab"] < 1e-12 and row["disagreement"] == 0 and row["cka"] < 0.95
    assert row["shuffled"] > 0.1 and row["p"] == 1 / 20
    assert "d_LLV" in found.text and "p \u2264 .05 (floor)" in found.text
    assert found.draw().figure is not None


def test_near_and_unlike_models_are_told_apart(files, arrays):
    near, unlike = told(files, "f", "g", "near_f", "g"), told(files, "f", "g", "other_f", "other_g")
    assert near.table["d_llv"][0] < 0.2 * unlike.table["d_llv"][0] and unlike.table["p"][0] > 0.1
    found = log_likelihood_variance_distance(arrays["f"], arrays["g"], arrays["near_f"], arrays["g"], samples=N // 4)
    assert near.table["d_llv"][0] == pytest.approx(found.distance, rel=1e-9) and near.facts["samples"] == N // 4
    assert (near.facts["pivot"], near.facts["left_out"]) == (found.pivot, found.left_out)
    p, q = arrays["f"] @ arrays["g"].T, arrays["near_f"] @ arrays["g"].T
    assert near.table["kl_ab"][0] == pytest.approx(KLDivergence()(p, q)) != near.table["kl_ba"][0]


def test_named_labels(files):
    found = told(files, "f", "g", "near_f", "g", pivot=2, left_out=5, draws=3)
    assert (found.facts["pivot"], found.facts["left_out"], found.facts["draws"]) == (2, 5, 3)


@pytest.mark.parametrize(
    "names, options, match",
    [
        (("f", "g", "wide_f", "g"), {}, "unembeddings of B do not fit"),
        (("g", "f", "f", "g"), {}, "rows|rows differ|n ="),
        (("f", "few_g", "f", "few_g"), {}, r"(?s)too few labels.*at least d \+ 2 = 5.*LogitDistance"),
        (("f", "g", "short_f", "g"), {}, "120"),
        (("f", "g", "f", "g"), {"pivot": 7}, "7"),
        (("f", "g", "f", "g"), {"draws": 0}, "out of range"),
        (("f", "g", "f", "g"), {"samples": 0}, "out of range"),
    ],
)
def test_wrong_inputs(files, names, options, match):
    with pytest.raises(RepalignError, match=match):
        told(files, *names, **options)


def test_many_labels_are_not_searched(tmp_path):
    for name, shape in {"f": (50, 2), "g": (4000, 2)}.items():
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(1).normal(size=shape))
    paths = [str(tmp_path / f"{name}.npy") for name in "fgfg"]
    with pytest.raises(RepalignError, match=r"(?s)4,000 labels are too many.*--pivot 0 --left-out 1"):
        closeness(*paths)
    assert closeness(*paths, pivot=0, left_out=1, draws=1).table["d_llv"][0] == 0


def test_a_study_and_its_mock(tmp_path):
    from repalign.study import load_study

    four = "".join(f"{name}: {name}.npy\n" for name in ("embeddings_a", "unembeddings_a", "embeddings_b", "unembeddings_b"))
    (tmp_path / "s.yaml").write_text(f"name: s\nexperiment: closeness\n{four}")
    assert "200 inputs, 8 labels" in load_study(tmp_path / "s.yaml").mock().run().drawn[0].text


def test_the_list_of_measures_names_it():
    from typer.testing import CliRunner

    from repalign.cli import app

    for words in (["measures", "distribution"], ["measures", "d_LLV"], ["measures", "log_likelihood_variance_distance"]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0
    assert Path(__file__).parents[1].joinpath("docs/choosing.md").read_text().count("repalign closeness") == 1
