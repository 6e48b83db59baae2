"""CIFAR ResNets (He et al. 2016, section 4.2; shortcut option A) for `torch:cifar_resnet.py:resnet20`.

A factory gives the module and what turns a photo into its input: 32 x 32 by the mean of pixel blocks,
scaled to [0, 1] and normalised with the ImageNet constants.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).resolve().parents[3] / "shared/bed/models"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.pad = (planes - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return functional.relu(y + shortcut)


class ResNet(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        before = 16
        for stage, planes in enumerate((16, 32, 64), start=1):
            layer = [
                Block(before if i == 0 else planes, planes, 2 if i == 0 and stage > 1 else 1) for i in range(blocks)
            ]
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
            before = planes
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return self.linear(x.mean(dim=(2, 3)))


def preprocess(image: Image.Image) -> Tensor:
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    block = pixels.shape[0] // 32
    small = pixels.reshape(32, block, 32, block, 3).mean(axis=(1, 3)) / 255
    return torch.from_numpy((small - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1).float()


def _load(blocks: int, file: str) -> tuple[nn.Module, object]:
    model = ResNet(blocks)
    model.load_state_dict(load_file(WEIGHTS / file), strict=False)
    return model.eval(), preprocess


def resnet20() -> tuple[nn.Module, object]:
    return _load(3, "cifar_resnet20.safetensors")


def resnet56() -> tuple[nn.Module, object]:
    return _load(9, "cifar_resnet56.safetensors")
