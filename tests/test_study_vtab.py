"""`repalign competence vtab`: tasks from tables and from a stub of the hub, what is missing, and the counts that a study reads."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from repalign.cli import app
from repalign.competence import vtab_tasks
from repalign.errors import RepalignError
from repalign.study import load_study
from repalign.study.vtab import vtab

NETS = """
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn


class Colours(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels, self.out = channels, nn.Identity()

    def forward(self, x):
        return self.out(x.mean((2, 3))[:, self.channels] + 0)


def _made(channels):
    def preprocess(image):
        return torch.tensor(np.asarray(image, float) / 255).permute(2, 0, 1).float()

    return SimpleNamespace(module=Colours(channels), preprocess=preprocess, modality="image", layers=["out"])


def all_colours():
    return _made([0, 1, 2])


def blue():
    return _made([2, 2])
"""
STUDY = """
name: zoo
dataset: {folder: photos}
models:
  - {spec: "torch:nets.py:all_colours", name: colours, modality: image}
  - {spec: "torch:nets.py:blue", name: blue, modality: image}
competence: {csv: data/vtab.csv}
measures: ["CKA()"]
"""


def pictures(n: int, channel: int, seed: int = 0) -> tuple[list[Image.Image], list[str]]:
    """Plain pictures, dark or bright in one channel, which is their class; the other channels are random."""
    rng, out, labels = np.random.default_rng(seed), [], []
    for i in range(n):
        colour = rng.integers(0, 256, 3)
        colour[channel] = rng.integers(0, 100) + 155 * (i % 2)
        out.append(Image.fromarray(np.broadcast_to(colour.astype(np.uint8), (8, 8, 3)).copy()))
        labels.append(f"class {i % 2}")
    return out, labels


@pytest.fixture
def folder(tmp_path):
    """A study, a table for one task of its own (red decides), and no hub."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "zoo.yaml").write_text(STUDY)
    tables = tmp_path / "tables"
    tables.mkdir()
    rows = []
    for i, (picture, label) in enumerate(zip(*pictures(120, 0), strict=True)):
        picture.save(tables / f"{i}.png")
        rows.append({"id": f"p{i}", "image": f"{i}.png", "label": label})
    pd.DataFrame(rows).to_csv(tables / "kitti_distance.csv", index=False)
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """The hub has two of the tasks (in one blue decides; the other lacks its column), and no others."""
    import datasets

    asked = []

    def load_dataset(path, name=None, *, split):
        asked.append((path, name, split))
        if path == "ufldl-stanford/svhn":
            found, labels = pictures(150, 2, seed=1)
            return datasets.Dataset.from_dict({"image": found, "label": labels}).cast_column("image", datasets.Image())
        if path == "tanganke/dtd":
            return datasets.Dataset.from_dict({"picture": ["a"], "label": [1]})
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_tasks_of_the_hub_and_of_tables_are_probed_and_the_rest_is_named(folder, hub):
    names = ["svhn", "dtd", "pets", "kitti_distance", "dsprites_location"]
    found = vtab(load_study(folder / "zoo.yaml"), names, tables=folder / "tables", n=140)
    assert hub == [("ufldl-stanford/svhn", "cropped_digits", "train"), ("tanganke/dtd", None, "train"),
                   ("timm/oxford-iiit-pet", None, "train")]  # fmt: skip
    accuracy = found.table.pivot(index="model", columns="task", values="accuracy")
    assert found.tasks == ["svhn", "kitti_distance"]
    assert accuracy.loc["colours"].min() > 0.9 and accuracy.loc["blue", "svhn"] > 0.9
    assert accuracy.loc["blue", "kitti_distance"] < 0.75
    assert found.counts == {"colours": 2, "blue": 1}
    assert found.table.set_index(["task", "model"])["n"].to_dict()[("svhn", "blue")] == 140
    assert list(found.missing) == ["dtd", "pets", "dsprites_location"]
    assert "no column 'image'" in found.missing["dtd"] and "ConnectionError: no network" in found.missing["pets"]
    assert "no copy on the hub is known" in found.missing["dsprites_location"]
    assert "2 of the 19 tasks" in found.text and "Not run: pets: hub timm/oxford-iiit-pet cannot be loaded" in found.text


def test_the_command_writes_what_the_study_reads(folder, hub):
    given = ["competence", "vtab", str(folder / "zoo.yaml"), "--tables", str(folder / "tables"), "--task", "svhn"]
    run = CliRunner().invoke(app, [*given, "--task", "kitti_distance", "--n", "100"])
    assert run.exit_code == 0, run.output
    assert "2 of 2" in run.output and "1 of 2" in run.output
    assert (folder / "data/vtab.csv").read_text() == "model,vtab_solved\ncolours,2\nblue,1\n"
    assert set(pd.read_csv(folder / "data/vtab_tasks.csv")["task"]) == {"svhn", "kitti_distance"}
    (folder / "photos").mkdir()
    for i, picture in enumerate(pictures(60, 1)[0]):
        picture.save(folder / "photos" / f"{i}.png")
    models = load_study(folder / "zoo.yaml").run().alignment.run["models"]
    assert {m["name"]: m["scores"] for m in models} == {"colours": {"vtab_solved": 2.0}, "blue": {"vtab_solved": 1.0}}
    rows = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    assert [r["task"] for r in rows] == ["svhn", "svhn"]


def test_without_any_task_nothing_is_written(folder, hub):
    with pytest.raises(RepalignError, match="no task of VTAB could be run(.|\n)*ConnectionError(.|\n)*--tables"):
        vtab(load_study(folder / "zoo.yaml"), ["pets"])
    with pytest.raises(RepalignError, match="VTAB has no task 'pet'(.|\n)*did you mean 'pets'"):
        vtab(load_study(folder / "zoo.yaml"), ["pet"])
    assert not (folder / "data").exists()


def test_a_sample_with_rare_classes_alone_is_told(folder, hub):
    with pytest.raises(RepalignError, match="too few images of each class"):
        vtab(load_study(folder / "zoo.yaml"), ["svhn"], n=15)


def test_every_copy_of_the_hub_is_told_whole():
    tasks = vtab_tasks()
    known = [t for t in tasks if t.hub]
    assert len(tasks) == 19 and len(known) == 15 and len({t.hub for t in known}) == 15
    assert all(t.split and t.image and t.answer and t.hub.count("/") == 1 for t in known)
