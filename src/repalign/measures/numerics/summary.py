"""What measures share that keep a number or a vector of a layer, and not its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from repalign.measures.measure import State
from repalign.measures.numerics.precision import unit_rows, widen

# Entries that are widened at a time.
_BLOCK = 2**18


@dataclass(frozen=True, eq=False)
class Summary(State):
    """Numbers that say nothing of single rows, so that no relabelling changes them."""

    size: int
    values: Tensor  # float64; where widths matter, the last dimension has that of the layer

    @property
    def n(self) -> int:
        return self.size

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    @property
    def width(self) -> int:
        return self.values.shape[-1]

    def permute(self, p: Tensor) -> Self:  # noqa: ARG002
        return self


def sum_of_unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The sum (d,) of the unit rows, in float64, and how many are not zero."""
    if x.dtype == torch.float64:  # whose squares may leave its range
        rows = unit_rows(x)
        return rows.sum(dim=0), (rows != 0).any(dim=1).sum()
    total = own = torch.zeros(1, dtype=torch.float64)
    for some in x.split(max(1, _BLOCK // x.shape[1])):
        rows = widen(some)
        norm = torch.linalg.vector_norm(rows, dim=1)
        total = total.to(rows.device) + torch.where(norm > 0, 1 / norm, 0.0) @ rows
        own = own.to(rows.device) + (norm > 0).sum()
    return total, own
