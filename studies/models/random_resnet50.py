"""A ResNet-50 with random weights, the same on every machine; images at 224 x 224, normalised as ImageNet's."""

from __future__ import annotations

from types import SimpleNamespace

import timm
import torch
from timm.data import create_transform

LAYERS = ("layer1", "layer2", "layer3", "layer4", "global_pool")


def build() -> SimpleNamespace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model("resnet50", pretrained=False)
    return SimpleNamespace(module=module, preprocess=create_transform(224), modality="image", layers=list(LAYERS))
