"""Networks of timm with random weights, the same on every machine, and pixels without a network: the weak end of a zoo."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import timm
import torch
from timm.data import create_transform
from torch import nn

STAGES = [f"blocks.{i}" for i in (0, 1, 2, 4, 6)]  # the ends of the five stages, which are the layers of the trained networks


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


def efficientnet_lite0() -> SimpleNamespace:
    return _random("tf_efficientnet_lite0", STAGES)


def mobilenetv2() -> SimpleNamespace:
    return _random("mobilenetv2_100", STAGES)


def pixels() -> SimpleNamespace:
    """The colours of a photo of 16 x 16 pixels, as 768 numbers."""
    module = nn.Sequential(OrderedDict(small=nn.AdaptiveAvgPool2d(16), pixels=nn.Flatten()))
    return SimpleNamespace(module=module, preprocess=create_transform(224), modality="image", layers=["pixels"])
