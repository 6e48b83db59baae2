"""What several measures want of one layer, computed once: its centred rows, Gram matrix, cosines, singular vectors.

Every measure asks `layer_of(x)`. Within `sharing(x)` all of them get the same object, and so the same products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from repalign.measures.numerics.precision import Centred, centred, gram, unit_resolution
from repalign.measures.numerics.spectrum import Spectrum, spectrum

# Cosines come from centred products as long as no row is shorter than this share of its parts, mean and deviation.
# Below it the two cancel, and digits with them.
_CANCELLATION = 0.25


class Cosines(NamedTuple):
    """All cosines (n, n), and per row (n,) the differences that rounding can make."""

    values: Tensor
    resolution: Tensor


class Layer:
    """A layer x (n, d) and its products, in the precision of x, made when first asked for."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @cached_property
    def centred(self) -> Centred:
        return centred(self.x, self.x.dtype)

    @cached_property
    def gram(self) -> Tensor:
        """Products of the centred rows (n, n), in the square of their unit; to be copied before it is changed."""
        return gram(self.centred.rows)

    @cached_property
    def spectrum(self) -> Spectrum:
        """The singular vectors and values of the centred rows, in float64 whatever the precision of x."""
        return spectrum(self.x)

    def cosines(self, center: bool) -> Cosines | None:
        """Cosines of the rows, or of the centred rows, from `gram`; None where that would cost digits.

        With x_i = c_i + m, x_i . x_j = c_i . c_j + c_i . m + c_j . m + |m|^2. Rounding is that of the centred products,
        which are small where a common direction dominates, so that few digits are lost to it.
        """
        kernel, dtype = self.gram, self.x.dtype
        deviation = kernel.diagonal().to(torch.float64).sqrt()
        along = torch.zeros_like(deviation) if center else self.centred.along_mean
        square = 0.0 if center else self.centred.mean_square
        squared = deviation**2 + 2 * along + square
        parts = deviation + square**0.5
        smallest = torch.finfo(dtype).tiny ** 0.5
        in_range = (squared > smallest) & (squared < 1 / smallest)
        if not bool((in_range & (squared >= (_CANCELLATION * parts) ** 2)).all()):
            return None
        inverse = squared.rsqrt()
        values = kernel * inverse[:, None].to(dtype) if center else kernel + (along + square)[:, None].to(dtype)
        if not center:
            values.add_(along.to(dtype)).mul_(inverse[:, None].to(dtype))
        values.mul_(inverse.to(dtype))
        of_products, of_sums = deviation * inverse, parts * inverse
        resolution = unit_resolution(self.x.shape[1], dtype) * of_products * of_products.max()
        return Cosines(values, resolution + 8 * torch.finfo(dtype).eps * of_sums * of_sums.max())


_shared: ContextVar[Layer | None] = ContextVar("_shared", default=None)


@contextmanager
def sharing(x: Tensor) -> Iterator[None]:
    """Let all measures that prepare this very tensor share one `Layer`; x must not change meanwhile."""
    token = _shared.set(Layer(x))
    try:
        yield
    finally:
        _shared.reset(token)


def layer_of(x: Tensor) -> Layer:
    """The shared layer of this very tensor, or one of its own."""
    shared = _shared.get()
    return shared if shared is not None and shared.x is x else Layer(x)
