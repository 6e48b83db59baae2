"""Networks of timm with random weights, the same on every machine: the weak end of a zoo."""

from __future__ import annotations

from types import SimpleNamespace

import timm
import torch
from timm.data import create_transform


def _random(name: str, layers: list[str]) -> SimpleNamespace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model(name, pretrained=False)
    return SimpleNamespace(module=module, preprocess=create_transform(224), modality="image", layers=layers)


def resnet18() -> SimpleNamespace:
    return _random("resnet18", ["layer1", "layer2", "layer3", "layer4", "global_pool"])


def convnext_tiny() -> SimpleNamespace:
    return _random("convnext_tiny", [f"stages.{i}" for i in range(4)])


def vit_small() -> SimpleNamespace:
    return _random("vit_small_patch16_224", [f"blocks.{i}" for i in range(0, 12, 3)] + ["norm"])


def efficientnet_b0() -> SimpleNamespace:
    return _random("efficientnet_b0", [f"blocks.{i}" for i in range(1, 7, 2)] + ["global_pool"])


def vgg11() -> SimpleNamespace:
    return _random("vgg11", ["features.5", "features.10", "features.15", "features.20"])
