"""The state of measures that keep a number or a vector of a layer, and not its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from repalign.measures._base import State


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
