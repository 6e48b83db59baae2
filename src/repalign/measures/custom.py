"""Kernels and neighbours of your own: write one function, and get a measure with its null.

    from repalign.measures import KernelAlignment, register

    @register
    @dataclass(frozen=True)
    class TanimotoCKA(KernelAlignment):
        \"\"\"CKA with the Tanimoto kernel.\"\"\"
        aliases = ("tanimoto_cka",)

        def kernel(self, x):                       # (n, d) -> (n, n), symmetric
            ...

Both classes are bilinear: closed-form moments and the cyclic null come with them. `repalign.testing.check_measure` holds
the result to the laws of every measure.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.layers import ASYMMETRY
from repalign.measures.kernel import ESTIMATORS, UNBIASED, Estimated
from repalign.measures.measure import Bilinear, DenseRelation, GraphRelation, Local, Relation, parameter
from repalign.measures.numerics.precision import RESIDUE, double_centre, u_centre
from repalign.measures.numerics.rows import is_constant


@dataclass(frozen=True)
class KernelAlignment(Estimated):
    """CKA over a kernel of your own: subclasses give `kernel(x) -> (n, n)`.

    s = <K', L'> / (|K'| |L'|), K' the centred kernel: estimator="debiased" U-centred with an empty diagonal, "biased"
    H K H. nan where a centred kernel vanishes. Declare in your class what does not change the kernel (`invariances`).

    Raises RepalignError unless the kernel is (n, n), finite and symmetric.
    """

    estimator: str = parameter("debiased", choose, ESTIMATORS)

    cost: ClassVar[str] = "your kernel per layer, n^2 per pair"

    @abstractmethod
    def kernel(self, x: Tensor) -> Tensor:
        """The kernel matrix (n, n) of a checked float array (n, d)."""

    def prepare(self, x: Tensor) -> DenseRelation:
        kernel = _square(self, self.kernel(x), len(x)).to(torch.float64, copy=True)
        floor = RESIDUE * torch.finfo(x.dtype).eps * float(torch.linalg.vector_norm(kernel))
        (u_centre if self.estimator in UNBIASED else double_centre)(kernel)
        return DenseRelation.of(kernel.to(x.dtype), floor=floor)


@dataclass(frozen=True)
class NeighborOverlap(Local, Bilinear):
    """Mutual k-NN over neighbours of your own: subclasses give `neighbors(x) -> (n, k)` indices, without the row itself.

    s = (1 / n) sum_i |N_X(i) & N_Y(i)| / k. Range [0, 1], chance k / (n - 1).

    Raises RepalignError unless every row lists k different other rows.
    """

    family: ClassVar[str] = "neighbors"
    cost: ClassVar[str] = "your search per layer, n k per pair"
    dense: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @abstractmethod
    def neighbors(self, x: Tensor) -> Tensor:
        """Indices (n, k) of the neighbours of every row of a checked float array (n, d)."""

    def prepare(self, x: Tensor) -> GraphRelation:
        n, found = len(x), self.neighbors(x).to(torch.int64)
        ordered = found.sort(dim=1).values
        wrong = (
            found.shape != (n, self.k)
            or bool(((found < 0) | (found >= n)).any())
            or bool((found == torch.arange(n, device=found.device)[:, None]).any())
            or bool((ordered[:, 1:] == ordered[:, :-1]).any())
        )
        if wrong:
            raise RepalignError(
                f"{type(self).__name__}.neighbors: no lists of neighbours",
                expected=f"(n, k) = ({n}, {self.k}) indices, in every row {self.k} different other rows",
                got=f"shape {tuple(found.shape)}, {int(found.min())} to {int(found.max())}, or a row that repeats or lists itself",
            )
        return GraphRelation(found, norm=0.0 if is_constant(x) else 1.0)

    def scale(self, inner: Tensor, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        return super().scale(inner, a, b) / (a[0].n * self.k)


def _square(measure: KernelAlignment, kernel: Tensor, n: int) -> Tensor:
    if kernel.shape != (n, n):
        got = f"shape {tuple(kernel.shape)}"
    elif not bool(torch.isfinite(kernel).all()):
        got = "NaN or infinite values"
    elif (apart := float((kernel - kernel.T).abs().max())) > ASYMMETRY * float(kernel.abs().max()):
        got = f"K_ij and K_ji that differ by {apart:.1e}"
    else:
        return (kernel + kernel.T) / 2
    expected = f"a symmetric, finite ({n}, {n}) matrix"
    raise RepalignError(f"{type(measure).__name__}.kernel: no kernel", expected=expected, got=got)
