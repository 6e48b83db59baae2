"""Toy models through the same loop as every other."""

from __future__ import annotations

import pytest
import torch

from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.sources import ModelEntry, extract
from repalign.toyworld import models


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("name", "modality"), [("vision-pixels", "image"), ("language-bag", "text")])
def test_every_layer_is_that_of_the_stimulus_alone(name, modality, tmp_path):
    data = Dataset.toy(n=11, seed=3)
    got = extract(data, [f"toy:{name}"], tmp_path / "store", batch_size=4)[0]
    model = models.load(name)
    assert got.layers == tuple(model.layers)
    stimuli = data.stimuli(modality, range(data.n))
    alone = [model.forward([s[0] if modality == "text" else s]) for s in stimuli]
    for layer in got.layers:
        torch.testing.assert_close(got.load(layer), torch.cat([x[layer] for x in alone]).float(), rtol=1e-4, atol=1e-6)
    record = got.record
    assert (record.name, record.modality, record.revision) == (name, modality, models.revision(name))
    assert (record.n_parameters, record.scores) == (model.n_parameters, model.scores)


def test_layers_are_chosen_and_unknown_models_told(tmp_path):
    data = Dataset.toy(n=5, seed=3)
    got = extract(data, [ModelEntry("toy:vision-cnn3-untrained", layers=[-1])], tmp_path / "store")[0]
    assert got.layers == tuple(models.load("vision-cnn3-untrained").layers)[-1:]
    with pytest.raises(RepalignError, match="did you mean"):
        extract(data, ["toy:vision-pixel"], tmp_path / "store")
