"""What is square and symmetric is hardly a table of features: it relates stimuli to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.features._table import option

ROUNDING = 1e-5  # of the largest entry: matrices that were computed in float32, and once rounded to print


def is_symmetric(x: Tensor) -> bool:
    """Whether x (n, d) is square with n >= 3, and equal to its transpose but for rounding."""
    if x.shape[0] != x.shape[1] or len(x) < 3:
        return False
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    rounding = max(ROUNDING, 4 * torch.finfo(x.dtype).eps)
    scale = float(wide.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return torch.allclose(wide, wide.T, rtol=0.0, atol=rounding * scale, equal_nan=True)


def refuse_unmarked_matrix(x: Tensor, where: str, name: str) -> None:
    """Refuse an array (n, n) that is symmetric: dissimilarities or a kernel, of which nobody said what they are."""
    if not is_symmetric(x):
        return
    diagonal = x.diagonal().to(torch.float64)
    constant = bool((diagonal == diagonal[0]).all())
    raise RepalignError(
        f"{where}: square and symmetric, which dissimilarities (RDM) and kernels are and features are not",
        expected="features, one vector per stimulus; or a matrix that is said to be one",
        got=f"shape {tuple(x.shape)}" + (f", {float(diagonal[0]):g} on the diagonal" if constant else ""),
        remedy="say --rdm or --kernel (in Python repalign.RDM(array) or repalign.Kernel(array), in a study `kind: rdm`); "
        f"if its rows are features, {option('vector', name)}",
    )
