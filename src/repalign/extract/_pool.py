"""Tokens or maps of an image to one vector, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from repalign.errors import RepalignError


def map_mean(x: Tensor) -> Tensor:
    """Mean over positions: (b, d, h, w) -> (b, d)."""
    return x.to(torch.float32).mean(dim=(2, 3))


def token_pool(x: Tensor, pooling: str, prefix: int) -> Tensor:
    """The class token (the first), or the mean over patches behind `prefix` tokens: (b, t, d) -> (b, d)."""
    return (x[:, 0] if pooling == "cls" else x[:, prefix:].to(torch.float32).mean(dim=1)).to(torch.float32)


def any_pool(x: Tensor, pooling: str | None, where: str) -> Tensor:
    """A module's output of any usual form: vectors as they are, maps by their mean, tokens as `pooling` says."""
    if x.ndim == 2:
        return x.to(torch.float32)
    if x.ndim == 4:
        return map_mean(x)
    if x.ndim == 3:
        if pooling not in ("cls", "mean", "last"):
            raise RepalignError(
                f"{where}: a layer of tokens needs a pooling",
                expected="pooling: mean, cls or last",
                got=pooling or "none",
                remedy="add `pooling:` to the model's entry",
            )
        return x[:, -1].to(torch.float32) if pooling == "last" else token_pool(x, pooling, 0)
    raise RepalignError(
        f"{where}: a layer's output is of no known form",
        expected="(b, d), (b, tokens, d) or (b, d, height, width)",
        got=f"shape {tuple(x.shape)}",
        remedy="name other modules in `layers:`",
    )
