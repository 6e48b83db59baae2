"""A stand-in of a torch module: any stimulus as a vector of fixed length, through a few layers with random weights."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repalign.standins.shapes import Shape
from repalign.standins.weights import randomise

INPUTS = 192  # 8 x 8 pixels of three colours; words and numbers as many

_FACTORY = '''"""A stand-in: {inputs} numbers of a stimulus through {depth} layers."""

from repalign.standins.torch_module import tiny


def build():
    return tiny({modality!r}, depth={depth}, width={width}, seed={seed})
'''


class Tiny(nn.Module):
    """Linear layers with a tanh behind each."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(INPUTS if i == 0 else width, width), nn.Tanh()) for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def tiny(modality: str, *, depth: int, width: int, seed: int) -> SimpleNamespace:
    """What a factory of `torch:` returns: the module, how it reads a stimulus, and which column."""
    with torch.random.fork_rng(devices=[]):
        module = randomise(Tiny(depth, width), seed)
    return SimpleNamespace(module=module, preprocess=as_vector, modality=modality)


def as_vector(stimulus: Any) -> Tensor:
    """A picture as 8 x 8 pixels, a text as counts of words by their digest, an array by its first numbers: (192,)."""
    if isinstance(stimulus, str):
        out = np.zeros(INPUTS, np.float32)
        for word in stimulus.lower().split():
            out[zlib.crc32(word.encode()) % INPUTS] += 1
        return torch.from_numpy(out)
    if isinstance(stimulus, np.ndarray):
        flat = np.asarray(stimulus, np.float32).ravel()
        return torch.from_numpy(np.resize(flat, INPUTS))
    side = round((INPUTS / 3) ** 0.5)
    pixels = np.asarray(stimulus.convert("RGB").resize((side, side)), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).flatten()


def write_factory(folder: Path, modality: str, shape: Shape) -> None:
    """A file `model.py` with a function `build`."""
    text = _FACTORY.format(inputs=INPUTS, modality=modality, depth=shape.depth, width=shape.width, seed=shape.seed)
    (folder / "model.py").write_text(text, encoding="utf-8", newline="\n")


def torch_layers(shape: Shape) -> tuple[str, ...]:
    """The layers that extraction finds in it."""
    return tuple(f"layers.{i}" for i in range(shape.depth))
