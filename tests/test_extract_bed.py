"""Real photos, captions and weights: the values that outside code measured on the same files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from repalign.dataset import Dataset
from repalign.sources import ModelEntry, extract

pytestmark = pytest.mark.slow

FACTORIES = Path(__file__).parent / "studies" / "cifar_resnet.py"

# logits of the first photo; what is in the states of all photos test_bed.py asks
LOGITS = {
    "resnet20": [-1.226895, -1.473847, 0.919966, 4.736629, -2.281231],
    "resnet56": [0.359444, -0.928344, 0.760334, -2.78891, -2.893988],
}


def neighbours(x: torch.Tensor) -> np.ndarray:
    rows = x.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :10]


def mutual(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = neighbours(x), neighbours(y)
    return float(np.mean([len(set(p) & set(q)) / 10 for p, q in zip(a, b, strict=True)]))


@pytest.fixture(scope="module")
def bed(shared) -> Path:
    return shared / "bed"


@pytest.fixture(scope="module")
def data(bed) -> Dataset:
    return Dataset.from_table(bed / "flickr8k_dev" / "pairs.jsonl", id="id", image="image", text="captions")


def reference(bed: Path, file: str, layer: str, data: Dataset) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(bed / "features" / file, framework="pt") as held:
        assert json.loads(held.metadata()["ids"]) == list(data.ids)
        return held.get_tensor(layer).float()


def test_a_language_model_padded_on_the_left(bed, data, tmp_path):
    """Positions are relative, so that all is as with padding on the right, whose numbers test_bed.py has."""
    some = data.subset(data.ids[:100])
    entries = [ModelEntry(f"hf:{bed / 'models/babyllama105'}", padding=side) for side in ("left", "right")]
    left, right = (extract(some, [entry], tmp_path, batch_size=64)[0] for entry in entries)
    assert left.facts["padding"].startswith("left") and right.facts["padding"].startswith("right") and len(left.layers) == 6
    for layer in left.layers:
        assert float((left.load(layer) - right.load(layer)).abs().max()) < 1e-4 * float(right.load(layer).abs().max())
    assert left.record.scores["bits_per_char"] == pytest.approx(right.record.scores["bits_per_char"], abs=1e-5)


@pytest.mark.parametrize("name", list(LOGITS))
def test_cifar_networks(name, bed, data, tmp_path):
    entry = ModelEntry(f"torch:{FACTORIES}:{name}", modality="image", layers=("layer3", "linear"))
    got = extract(data.subset(data.ids[:4]), [entry], tmp_path)[0]
    assert got.widths == (64, 10)
    assert got.load("linear")[0, :5].tolist() == pytest.approx(LOGITS[name], abs=1e-2)  # JPEG decoders differ


def test_files_of_features(bed, data, tmp_path):
    entry = ModelEntry(f"array:{bed / 'features' / 'mobilenet_v1_075.safetensors'}")
    got = extract(data, [entry], tmp_path)[0]
    assert [layer[:3] for layer in got.layers] == ["L0_", "L1_", "L2_", "L3_", "L4_", "L5_"]
    assert got.widths == (48, 96, 192, 384, 384, 768)
    assert got.record.scores == {"imagenet_top1": 66.1}
    words = reference(bed, "glove50_captions.safetensors", "L1_captions5_mean", data)
    assert mutual(got.load(got.layers[-1]), words) == pytest.approx(0.0731, abs=1e-9)
