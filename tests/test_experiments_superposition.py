"""Superposition in a toy: the laws of the linear control, the claim for sparse features, chance, the command."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from repalign.cli import app
from repalign.errors import RepalignError
from repalign.experiments import superposition
from repalign.experiments.superposition import Toys, _measured, random_cosine, train


def test_chance_is_the_mean_cosine_of_random_directions():
    rng = np.random.default_rng(0)
    for d in (2, 5, 40):
        x = rng.standard_normal((2, 100_000, d))
        x /= np.linalg.norm(x, axis=2, keepdims=True)
        assert random_cosine(d) == pytest.approx(np.abs((x[0] * x[1]).sum(axis=1)).mean(), abs=0.003)
    assert random_cosine(400) == pytest.approx(math.sqrt(2 / (math.pi * 400)), rel=1e-3)


def test_what_is_measured_of_toys_made_by_hand():
    """Orthogonal directions keep a feature for each dimension; a pair of opposite ones in each keeps two, as a relu can read."""
    x = torch.rand((2, 4000, 4), generator=torch.Generator().manual_seed(0))
    x[1] *= torch.eye(4)[torch.randint(4, (4000,), generator=torch.Generator().manual_seed(1))]  # one feature at a time
    plain = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    opposite = torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1]])
    dense, sparse = _measured(Toys(torch.stack([plain, opposite]), torch.zeros(2, 1, 4), linear=False), x)
    assert (dense["per_dimension"], dense["kept"], dense["interference"]) == (1, 2, 0)
    assert dense["read"] == pytest.approx(1) and dense["read_linearly"] == pytest.approx(1, abs=0.01)
    assert (sparse["per_dimension"], sparse["kept"]) == (2, 4) and sparse["interference"] == pytest.approx(1 / 3)
    faint = torch.tensor([[[1.0, 0, 0.4, 0], [0, 1, 0, 0.4]]])
    (found,) = _measured(Toys(faint, torch.zeros(1, 1, 4), linear=False), x[:1])
    assert (found["kept"], found["interference"]) == (2, 0) and found["per_dimension"] == pytest.approx(1.16)
    assert sparse["read"] == pytest.approx(2) and sparse["read_linearly"] < 1.4  # the relu reads both of a pair, a line cannot


@pytest.fixture(scope="module")
def found():
    return superposition(widths=[5], sparsity=[0.9, 0.0], steps=400)


def test_sparse_features_share_dimensions_and_dense_ones_do_not(found):
    """At 1,000 steps 1.01 and 2.90 features for each dimension; no other outside numbers, Elhage et al. show curves."""
    dense, sparse = found.table.to_dict("records")
    assert (dense["sparsity"], sparse["sparsity"]) == (0.0, 0.9)
    assert dense["per_dimension"] == pytest.approx(1, abs=0.1) and sparse["per_dimension"] > 2
    assert dense["read"] == pytest.approx(1, abs=0.05) and sparse["read"] > 1.6 > 1.3 > sparse["untrained"]
    assert sparse["kept"] > 10 and 0 < sparse["interference"] < sparse["chance"] == random_cosine(5)


def test_without_a_relu_there_is_one_feature_for_each_dimension_at_any_sparsity(found):
    np.testing.assert_allclose(found.table["linear"], 1, atol=0.06)
    np.testing.assert_allclose(found.tables["toys"]["read_linearly"], 1, atol=0.04)  # a law of independent features
    assert set(found.tables["toys"]["toy"]) == {"relu", "linear", "untrained"}


def test_the_finding_in_words_and_in_a_figure(found):
    assert "20 independent features in 5 dimensions" in found.text and "would refute" in found.text
    left, right = found.draw().figure.axes
    assert left.get_xscale() == "log" and "mean |cos|" in right.get_title("left")
    assert left.lines[0].get_ydata() == pytest.approx(found.table["per_dimension"])


def test_seeds_are_kept_and_nothing_random_is_left_behind():
    state = torch.random.get_rng_state()
    one, same, other = (train(2, 4, [0.5], steps=5, seed=s)[0].weights for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_command_and_a_study(tmp_path):
    from repalign.study import load_study

    asked = ["superposition", "--features", "6", "--widths", "2", "--sparsity", "0", "--sparsity", "0.9", "--steps", "20", "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert [row["sparsity"] for row in json.loads(done.stdout)] == [0, 0.9]
    (tmp_path / "study.yaml").write_text("name: s\nexperiment: superposition\nwidths: [2]\nfeatures: 6\nsparsity: [0.5]\n")
    load_study(tmp_path / "study.yaml").mock().run()
    assert (tmp_path / "runs/s-mock/results/toys.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": [20]}, r"2 to 19, with 20 features(.|\n)*20"),
        ({"widths": [1]}, "2 to 19"),
        ({"sparsity": [1.0]}, "from 0 to below 1"),
        ({"widths": []}, "one of each or more"),
        ({"steps": 0}, "one of each or more"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(RepalignError, match=message):
        superposition(**change)
