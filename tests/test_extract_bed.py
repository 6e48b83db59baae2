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

# bits per character; raw mutual 10-NN of each hidden state with the last layer of mobilenet_v1_075
LANGUAGE = {
    "stories260k": (2.831485, [0.0295, 0.0273, 0.0287, 0.0310, 0.0256, 0.0251]),
    "babyllama105": (2.810072, [0.0217, 0.0252, 0.0243, 0.0284, 0.0308, 0.0244]),
}
CENTRED = {
    "stories260k": [0.0377, 0.0321, 0.0347, 0.0359, 0.0288, 0.0286],
    "babyllama105": [0.0241, 0.0275, 0.0270, 0.0307, 0.0367, 0.0294],
}
# raw and centred mutual 10-NN of the pooled maps with glove50 L1; logits of the first photo
VISION = {
    "resnet20": (0.0228, 0.0283, [-1.226895, -1.473847, 0.919966, 4.736629, -2.281231]),
    "resnet56": (0.0235, 0.0282, [0.359444, -0.928344, 0.760334, -2.78891, -2.893988]),
}


def neighbours(x: torch.Tensor, centred: bool) -> np.ndarray:
    rows = x.double().numpy()
    rows = rows - rows.mean(0) if centred else rows
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :10]


def mutual(x: torch.Tensor, y: torch.Tensor, centred: bool = False) -> float:
    a, b = neighbours(x, centred), neighbours(y, centred)
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


@pytest.mark.parametrize("name", list(LANGUAGE))
def test_language_models(name, bed, data, tmp_path):
    """Left padding for one of them: positions are relative, so that the values are the same."""
    entry = ModelEntry(f"hf:{bed / 'models' / name}", padding="left" if name == "babyllama105" else "right")
    got = extract(data, [entry], tmp_path, batch_size=64)[0]
    bits, raw = LANGUAGE[name]
    assert got.record.scores["bits_per_char"] == pytest.approx(bits, abs=1e-5)
    assert got.facts["bits_per_byte"]["chars"] == 56914
    photo = reference(bed, "mobilenet_v1_075.safetensors", "L5_AvgPool_1a", data)
    assert [mutual(got.load(n), photo) for n in got.layers] == pytest.approx(raw, abs=3e-4)
    assert [mutual(got.load(n), photo, True) for n in got.layers] == pytest.approx(CENTRED[name], abs=3e-4)


@pytest.mark.parametrize("name", list(VISION))
def test_cifar_networks(name, bed, data, tmp_path):
    entry = ModelEntry(f"torch:{FACTORIES}:{name}", modality="image", layers=("layer3", "linear"))
    got = extract(data, [entry], tmp_path, batch_size=64)[0]
    raw, centred, logits = VISION[name]
    words = reference(bed, "glove50_captions.safetensors", "L1_captions5_mean", data)
    assert mutual(got.load("layer3"), words) == pytest.approx(raw, abs=3e-4)
    assert mutual(got.load("layer3"), words, True) == pytest.approx(centred, abs=3e-4)
    assert got.load("linear")[0, :5].tolist() == pytest.approx(logits, abs=1e-2)  # JPEG decoders differ


def test_files_of_features(bed, data, tmp_path):
    entry = ModelEntry(f"array:{bed / 'features' / 'mobilenet_v1_075.safetensors'}")
    got = extract(data, [entry], tmp_path)[0]
    assert [layer[:3] for layer in got.layers] == ["L0_", "L1_", "L2_", "L3_", "L4_", "L5_"]
    assert got.widths == (48, 96, 192, 384, 384, 768)
    assert got.record.scores == {"imagenet_top1": 66.1}
    words = reference(bed, "glove50_captions.safetensors", "L1_captions5_mean", data)
    assert mutual(got.load(got.layers[-1]), words) == pytest.approx(0.0731, abs=1e-9)
