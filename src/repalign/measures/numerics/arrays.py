"""The border of the measures: features in, tensors of checked numbers out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import Pairwise, as_tensor


def as_features(x: Any, name: str = "x") -> Tensor:
    """Check an array at the border and return it as a floating (n, d) tensor.

    float64 (and integers) stay or become float64; everything else is computed in float32, because
    half precision may be stored but is never multiplied. The tensor keeps its device.

    Raises RepalignError, naming `name`, unless x is two-dimensional, has a row and a column,
    and every entry is finite.
    """
    if isinstance(x, Pairwise):
        raise RepalignError(
            f"{name}: {x.word} where features are needed",
            expected="an array (n, d): one row per stimulus, one column per feature",
            got=repr(x),
            remedy="give the features themselves; an RDM or a Kernel goes where a layer is compared by a measure that takes it",
        )
    x = as_tensor(x, name)
    if x.ndim != 2 or 0 in x.shape:
        raise RepalignError(
            f"{name}: wrong shape",
            expected="two dimensions (n, d): one row per stimulus, one column per feature",
            got=f"shape {tuple(x.shape)}",
            remedy="pool or flatten each stimulus to one vector (repalign.aggregate); for one feature use shape (n, 1)",
        )
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.to(torch.float32)
    elif x.dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float64)
    x = x.detach()
    # NaN and infinity survive a sum; a sum that is not finite is looked at entry by entry.
    finite = torch.isfinite(x.sum(dim=1))
    if not bool(finite.all()) and not bool((finite := torch.isfinite(x).all(dim=1)).all()):
        bad = torch.nonzero(~finite).flatten()
        raise RepalignError(
            f"{name}: NaN or infinite values",
            expected="every entry finite",
            got=f"{len(bad)} of {len(x)} rows with non-finite entries, the first is row {int(bad[0])}",
            remedy="look for overflow in half precision, or leave these stimuli out of the dataset",
        )
    return x.contiguous()


def check_paired(n_x: int, n_y: int, name_x: str = "x", name_y: str = "y") -> None:
    """Refuse two arrays of different row counts: row i of both must be the same stimulus."""
    if n_x != n_y:
        raise RepalignError(
            f"{name_x} and {name_y} have different numbers of rows",
            expected="row i of both describing the same stimulus",
            got=f"n = {n_x} and n = {n_y}",
            remedy="join both on stimulus ids first; repalign never pairs by cutting to the shorter one",
        )
