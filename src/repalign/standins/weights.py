"""Random weights by which a stand-in sees something: features that are finite, not constant, and grow from layer to layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

EMBEDDING = 0.5  # standard deviation of embeddings of tokens
SMALL = 0.1  # of biases, of positions and class tokens, and of norms' weights around 1


def randomise(model: nn.Module, seed: int) -> Any:
    """The model with every weight drawn anew; biases and norms too, so that nothing is by chance the identity.

    Matrices and kernels have standard deviation 1 / sqrt(inputs), so that no block drowns what the others say.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, module in sorted(model.named_modules()):
            for name, weight in sorted(module.named_parameters(recurse=False)):
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(_scaled(module, name, noise))
    return model.eval()


def _scaled(module: nn.Module, name: str, noise: torch.Tensor) -> torch.Tensor:
    if isinstance(module, nn.Embedding):
        return EMBEDDING * noise
    if noise.ndim == 1:
        return 1 + SMALL * noise if name == "weight" else SMALL * noise
    if name != "weight":  # positions and class tokens
        return SMALL * noise
    return noise / noise[0].numel() ** 0.5
