"""From tokens, patches or maps to one vector per stimulus: in float32, whatever the model's dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from repalign.errors import RepalignError


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens where mask is not zero: (b, t, d), (b, t) -> (b, d).

    What stands at the other tokens does not enter, not even as NaN.
    """
    keep = mask.to(torch.bool)
    wide = hidden.to(torch.float32).masked_fill(~keep[:, :, None], 0.0)
    return wide.sum(dim=1) / keep.sum(dim=1, keepdim=True)


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first valid token, under either padding side: (b, t, d), (b, t) -> (b, d)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, mask.to(torch.int64).argmax(dim=1)].to(torch.float32)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last valid token, under either padding side: (b, t, d), (b, t) -> (b, d)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    last = mask.shape[1] - 1 - mask.to(torch.int64).flip(dims=(1,)).argmax(dim=1)
    return hidden[rows, last].to(torch.float32)


def map_mean(x: Tensor) -> Tensor:
    """Mean over positions: (b, d, h, w) -> (b, d)."""
    return x.to(torch.float32).mean(dim=(2, 3))


def token_mean(x: Tensor, prefix: int = 0) -> Tensor:
    """Mean over the tokens behind the first `prefix` ones: (b, t, d) -> (b, d)."""
    return x[:, prefix:].to(torch.float32).mean(dim=1)


def any_pool(x: Tensor, pooling: str | None, where: str) -> Tensor:
    """A module's output of any usual form: vectors as they are, maps by their mean, tokens as `pooling` says.

    (b, d), (b, d, h, w) or (b, t, d) -> (b, d). All tokens count: none is known to be padding.
    """
    if x.ndim == 2:
        return x.to(torch.float32)
    if x.ndim == 4 and pooling in (None, "spatial_mean", "mean"):
        return map_mean(x)
    if x.ndim == 3 and pooling in ("cls", "mean", "last"):
        if pooling == "mean":
            return token_mean(x)
        return x[:, 0 if pooling == "cls" else -1].to(torch.float32)
    if x.ndim in (3, 4):
        form, known = (
            ("a map (b, d, height, width)", "spatial_mean")
            if x.ndim == 4
            else ("tokens (b, t, d)", "mean, cls or last")
        )
        raise RepalignError(
            f"{where}: a layer that is {form} needs another pooling",
            expected=known,
            got=pooling or "none",
            remedy="set `pooling:` in the model's entry",
        )
    raise RepalignError(
        f"{where}: a layer's output is of no known form",
        expected="(b, d), (b, tokens, d) or (b, d, height, width)",
        got=f"shape {tuple(x.shape)}",
        remedy="name other modules in `layers:`",
    )
