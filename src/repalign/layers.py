"""The forms of a layer: features (n, d), or pairs of stimuli, as dissimilarities (`RDM`) or kernels (`Kernel`).

    pair(RDM(brain), RDM(model), "RSA()")                    # (n, n): one layer each
    pair({"it": features, "judged": RDM(d)}, RDM(stack, names=subjects), "RSA()")      # (m, n, n): m layers

A stimulus is a row and a column: whatever selects or relabels stimuli does so with both, `x[rows]` as anything else.
A measure says which it takes (`Measure.accepts`); all others refuse them by name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, first_line

_REAL = ("real numbers", "put the parts side by side, np.concatenate([x.real, x.imag], axis=-1), or take abs(x)")
_DENSE = "make it dense, x{}, where (n, d) fits in memory; else reduce it first, for instance by sklearn's TruncatedSVD"


def as_tensor(x: Any, name: str = "x") -> Tensor:
    """Real numbers of any origin as a dense tensor of any shape, in their own dtype and on their own device.

    Big-endian numbers are put in the machine's order, numbers wider than float64 become float64. Raises RepalignError,
    naming `name`, for what holds no real number in every place: sparse, masked, complex, quantised or ragged arrays, texts.
    """
    if isinstance(x, Tensor):
        if x.is_nested or x.layout is not torch.strided or x.is_complex() or x.is_quantized or x.is_meta:
            problem, got, remedy = _tensor_fault(x)
            raise RepalignError(f"{name}: {problem}", expected="a dense array of real numbers", got=got, remedy=remedy)
        return x.detach()
    if hasattr(x, "tocsr") and hasattr(x, "nnz"):
        problem, remedy = f"{name}: a sparse matrix {tuple(x.shape)}", _DENSE.format(".toarray()")
        raise RepalignError(problem, expected="a dense array (n, d)", got="scipy.sparse", remedy=remedy)
    if np.ma.isMaskedArray(x):
        if np.ma.is_masked(x):
            raise RepalignError(
                f"{name}: {int(np.ma.count_masked(x))} entries are masked", expected="a number in every place",
                got=f"a masked array of shape {x.shape}", remedy="leave these stimuli out, or fill the places: x.filled(value)",
            )  # fmt: skip
        x = x.data
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise RepalignError(
            f"{name}: not an array", expected="rows of equal length", got=first_line(error),
            remedy="give every stimulus a vector of the same length",
        ) from error  # fmt: skip
    if array.dtype.kind == "c":
        raise RepalignError(f"{name}: complex numbers", expected=_REAL[0], got=f"dtype {array.dtype}", remedy=_REAL[1])
    if array.dtype.kind not in "fiub":
        raise RepalignError(
            f"{name}: not an array of numbers", expected="a real numeric array of shape (n, d)", got=f"dtype {array.dtype}",
            remedy="convert it to float32 or float64 first",
        )  # fmt: skip
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _tensor_fault(x: Tensor) -> tuple[str, str, str]:
    """The fault of a tensor that is not dense real numbers: what is wrong, what it is, what to do."""
    shape = f"a tensor of dtype {x.dtype}"
    if x.is_nested:
        return "a nested tensor", shape, "give every stimulus a vector of the same length"
    if x.layout is not torch.strided:
        return f"a sparse matrix {tuple(x.shape)}", str(x.layout), _DENSE.format(".to_dense()")
    if x.is_complex():
        return "complex numbers", shape, _REAL[1].replace("np.concatenate", "torch.cat")
    if x.is_quantized:
        return "quantised numbers", shape, "convert them with .dequantize()"
    return "a tensor without data", "device meta", "load the numbers first"


# --- layers given by pairs ----

FEATURES = "features"

# What numbers are computed in; those that are not named here, such as whole ones, in float64.
COMPUTED_IN = dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float32)

# The forms that a measure may say it takes, in addition to features alone.
FEATURES_OR_RDM = frozenset({FEATURES, "rdm"})
FEATURES_OR_KERNEL = frozenset({FEATURES, "kernel"})
ANY_FORM = FEATURES_OR_RDM | FEATURES_OR_KERNEL

# What rounding may do, as a share of the largest entry. Distances are roots, so that those of equal rows, 0 up to 1e-7 of
# the squares in float32, come out as up to 3e-4.
ASYMMETRY = 1e-5
ON_THE_DIAGONAL = 1e-3
BELOW_ZERO = 1e-5


class Pairwise(ABC):
    """Symmetric numbers for all pairs of stimuli: one layer (n, n), or a stack (m, n, n) of m layers of one model."""

    kind: ClassVar[str]
    word: ClassVar[str]

    def __init__(self, array: Any, names: Iterable[str] | None = None, *, where: str | None = None) -> None:
        """Check an array at the border; `where` is what errors call it."""
        where = where or type(self).__name__
        if isinstance(array, Pairwise):
            expected = "an array (n, n) or (m, n, n)"
            raise RepalignError(f"{where}: given twice", expected=expected, got=repr(array), remedy="give it as it is")
        x = as_tensor(array, where)
        x = x.to(COMPUTED_IN.get(x.dtype, torch.float64))
        if x.ndim not in (2, 3) or x.shape[-1] != x.shape[-2] or 0 in x.shape:
            raise _not_square(tuple(x.shape), where, type(self).__name__)
        given = None if names is None else tuple(map(str, np.atleast_1d(np.asarray(names)).tolist()))
        count = len(x) if x.ndim == 3 else 1
        if given is not None and (len(given) != count or len(set(given)) != count):
            raise RepalignError(
                f"{where}: the names do not fit", expected=f"{count} different names, one per matrix",
                got=f"{len(given)} names, {len(set(given))} different",
            )  # fmt: skip
        self.names = given
        if x.ndim == 3:
            called = given or [f"matrix {i}" for i in range(count)]
            self.matrix = torch.stack([self._checked(m, f"{where}, {c}") for m, c in zip(x, called, strict=True)])
        else:
            self.matrix = self._checked(x, where)

    def _checked(self, matrix: Tensor, where: str) -> Tensor:
        """A symmetric copy of one matrix (n, n)."""
        finite = torch.isfinite(matrix)
        if not bool(finite.all()):
            i, j = torch.nonzero(~finite)[0].tolist()
            leave = "leave these stimuli out: their row and their column"
            fill = "fill the diagonal, which is said nowhere: of dissimilarities np.fill_diagonal(array, 0)"
            raise RepalignError(
                f"{where}: NaN or infinite values", expected="every entry finite",
                got=f"{int((~finite).sum())} entries, the first in row {i}, column {j}",
                remedy=leave if bool((~finite).fill_diagonal_(False).any()) else fill,
            )  # fmt: skip
        largest = float(matrix.abs().max())
        apart = (matrix - matrix.T).abs()
        if float(apart.max()) > ASYMMETRY * largest:
            i, j = divmod(int(apart.argmax()), len(matrix))
            raise RepalignError(
                f"{where}: not symmetric",
                expected=f"entry (i, j) equal to entry (j, i), up to {ASYMMETRY:g} of the largest entry",
                got=f"{float(matrix[i, j]):.6g} in row {i}, column {j}, and {float(matrix[j, i]):.6g} on the other side",
                remedy="give the mean of both sides, (a + a.T) / 2, if that is what you mean",
            )  # fmt: skip
        return self._of_its_kind((matrix + matrix.T) / 2, largest, where)

    @abstractmethod
    def _of_its_kind(self, matrix: Tensor, largest: float, where: str) -> Tensor:
        """The entries of one checked matrix, what rounding has done to them mended."""

    @property
    @abstractmethod
    def is_constant(self) -> bool:
        """All stimuli alike."""

    # --- as a layer --------------------------------------------------------------------------------

    @property
    def is_stack(self) -> bool:
        return self.matrix.ndim == 3

    def __len__(self) -> int:
        """The number of stimuli."""
        return self.matrix.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.matrix.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape})"

    def __getitem__(self, rows: Any) -> Self:
        """The stimuli `rows` (a slice, indices or flags): rows and columns together."""
        if not isinstance(rows, slice | Tensor | np.ndarray | list):
            raise TypeError(f"{type(self).__name__}[rows] takes stimuli: a slice, indices or flags")
        if isinstance(rows, slice):
            return self._with(self.matrix[..., rows, rows])
        at = torch.as_tensor(rows, device=self.device)
        at = torch.nonzero(at).flatten() if at.dtype == torch.bool else at
        return self._with(self.matrix.index_select(-2, at).index_select(-1, at))

    def to(self, device: Any) -> Self:
        return self._with(self.matrix.to(device))

    def layers(self, default: str | None = None) -> dict[str, Self]:
        """One layer for each matrix, by name; `default` is what a matrix without names is called, `kind` if not given."""
        called = default or self.kind
        if not self.is_stack:
            return {self.names[0] if self.names else called: self}
        names = self.names or tuple(f"{called}.{i}" for i in range(len(self.matrix)))
        return {name: self._with(m) for name, m in zip(names, self.matrix, strict=True)}

    def _with(self, matrix: Tensor) -> Self:
        """Other entries that need no check."""
        new = object.__new__(type(self))
        new.matrix, new.names = matrix, self.names if matrix.ndim == self.matrix.ndim else None
        return new


class RDM(Pairwise):
    """Representational dissimilarity matrices given as such: (n, n), or a stack (m, n, n) with optional `names`.

    Symmetric, zero diagonal, no entry below zero. What rounding does is mended: entry (i, j) becomes the mean of both
    sides (which may differ by 1e-5 of the largest entry), the diagonal (up to 1e-3 of it) and what is below zero (down to
    -1e-5 of it) become 0. Zeros off the diagonal are stimuli that are alike. float16 is computed in float32, whole numbers
    in float64.

    Raises RepalignError otherwise, and for the condensed form of scipy's `pdist`: give its `squareform`.

    >>> import numpy as np
    >>> from scipy.spatial.distance import pdist, squareform
    >>> from repalign.measures import RSA
    >>> x = np.random.default_rng(0).standard_normal((20, 8))
    >>> round(RSA(dissimilarity="euclidean")(RDM(squareform(pdist(x))), x), 12)
    1.0
    """

    kind = "rdm"
    word = "dissimilarities"

    @property
    def is_constant(self) -> bool:
        """All stimuli alike: no dissimilarity at all."""
        return not bool(self.matrix.any())

    def _of_its_kind(self, matrix: Tensor, largest: float, where: str) -> Tensor:
        diagonal = matrix.diagonal()
        at = int(diagonal.abs().argmax())
        if float(diagonal.abs()[at]) > ON_THE_DIAGONAL * largest:
            raise RepalignError(
                f"{where}: a stimulus has a dissimilarity from itself",
                expected=f"a zero diagonal, up to {ON_THE_DIAGONAL:g} of the largest entry",
                got=f"{float(diagonal[at]):.6g} in row {at}, column {at}",
                remedy="similarities are given as repalign.Kernel(array); for a correlation matrix r the dissimilarities are 1 - r",
            )  # fmt: skip
        smallest = float(matrix.min())
        if smallest < -BELOW_ZERO * largest:
            i, j = divmod(int(matrix.argmin()), len(matrix))
            raise RepalignError(
                f"{where}: a dissimilarity is below zero",
                expected="entries of 0 or more", got=f"{smallest:.6g} in row {i}, column {j}",
                remedy="give similarities as repalign.Kernel(array); set estimates of squared distances that are below zero "
                "(crossvalidated ones) to 0 yourself, or add a constant to all pairs",
            )  # fmt: skip
        return matrix.clamp_(min=0).fill_diagonal_(0)


class Kernel(Pairwise):
    """Kernels (Gram matrices) given as such: products of all pairs of stimuli (n, n), or a stack (m, n, n) with `names`.

    Symmetric (up to 1e-5 of the largest entry; the mean of both sides counts), no entry of the diagonal below zero.
    Positive semi-definiteness is not demanded; `doctor.examine` says where it fails. float16 is computed in float32,
    whole numbers in float64.

    Raises RepalignError otherwise, and for what looks like dissimilarities (a zero diagonal, nothing below zero).

    >>> import numpy as np
    >>> from repalign.measures import CKA
    >>> x = np.random.default_rng(0).standard_normal((20, 8))
    >>> round(CKA()(Kernel(x @ x.T), x), 12)
    1.0
    """

    kind = "kernel"
    word = "a kernel"

    @property
    def is_constant(self) -> bool:
        """All stimuli alike: one product for all pairs."""
        return bool((self.matrix == self.matrix[..., :1, :1]).all())

    def _of_its_kind(self, matrix: Tensor, largest: float, where: str) -> Tensor:
        diagonal = matrix.diagonal()
        at = int(diagonal.argmin())
        if float(diagonal[at]) < -BELOW_ZERO * largest:
            raise RepalignError(
                f"{where}: the product of a stimulus with itself is below zero", expected="a diagonal of 0 or more",
                got=f"{float(diagonal[at]):.6g} in row {at}, column {at}",
            )  # fmt: skip
        if largest > 0 and not bool(diagonal.any()) and bool((matrix >= 0).all()):
            raise RepalignError(
                f"{where}: dissimilarities, not a kernel",
                expected="products of stimuli, with those of each with itself on the diagonal",
                got="a zero diagonal and nothing below zero", remedy="give it as repalign.RDM(array)",
            )  # fmt: skip
        matrix.diagonal().clamp_(min=0)
        return matrix


SINK = 2.0  # a token that is so many times as long as the others of its text rules a mean over them: a sink, if it is the first
Given = Tensor | Pairwise  # a layer: features (n, d), or what is given by pairs

KINDS: Mapping[str, type[Pairwise]] = {cls.kind: cls for cls in (RDM, Kernel)}


def kind_of(layer: Any) -> str:
    """"features", "rdm" or "kernel"."""
    return layer.kind if isinstance(layer, Pairwise) else FEATURES


def as_features(x: Any, name: str = "x") -> Tensor:
    """Check an array at the border and return it as a floating (n, d) tensor: `as_layer`, but pairs of stimuli are refused."""
    if isinstance(x, Pairwise):
        raise RepalignError(
            f"{name}: {x.word} where features are needed",
            expected="an array (n, d): one row per stimulus, one column per feature", got=repr(x),
            remedy="give the features themselves; an RDM or a Kernel goes where a layer is compared by a measure that takes it",
        )  # fmt: skip
    return as_layer(x, name)  # type: ignore[return-value]


def as_layer(x: Any, name: str = "x") -> Given:
    """A layer as a measure prepares it: features as a floating (n, d) tensor, or one `RDM` or `Kernel` as it is.

    float64 (and integers) stay or become float64; everything else is computed in float32, because
    half precision may be stored but is never multiplied. The tensor keeps its device.

    Raises RepalignError, naming `name`, unless features are two-dimensional, have a row and a column,
    and every entry is finite; and for a stack of RDMs or kernels.
    """
    if isinstance(x, Pairwise):
        if x.is_stack:
            raise RepalignError(
                f"{name}: several layers where one is needed", expected=f"one matrix (n, n): {type(x).__name__}(array[i])",
                got=repr(x), remedy="repalign.pair takes a stack as the layers of a model",
            )  # fmt: skip
        return x
    x = as_tensor(x, name)
    if x.ndim != 2 or 0 in x.shape:
        raise RepalignError(
            f"{name}: wrong shape",
            expected="two dimensions (n, d): one row per stimulus, one column per feature", got=f"shape {tuple(x.shape)}",
            remedy="pool or flatten each stimulus to one vector (repalign.aggregate); for one feature use shape (n, 1)",
        )  # fmt: skip
    x = x.to(COMPUTED_IN.get(x.dtype, torch.float64))
    # NaN and infinity survive a sum; a sum that is not finite is looked at entry by entry.
    finite = torch.isfinite(x.sum(dim=1))
    if not bool(finite.all()) and not bool((finite := torch.isfinite(x).all(dim=1)).all()):
        bad = torch.nonzero(~finite).flatten()
        raise RepalignError(
            f"{name}: NaN or infinite values", expected="every entry finite",
            got=f"{len(bad)} of {len(x)} rows with non-finite entries, the first is row {int(bad[0])}",
            remedy="look for overflow in half precision, or leave these stimuli out of the dataset",
        )  # fmt: skip
    return x.contiguous()


def check_paired(n_x: int, n_y: int, name_x: str = "x", name_y: str = "y") -> None:
    """Refuse two arrays of different row counts: row i of both must be the same stimulus."""
    if n_x != n_y:
        raise RepalignError(
            f"{name_x} and {name_y} have different numbers of rows",
            expected="row i of both describing the same stimulus", got=f"n = {n_x} and n = {n_y}",
            remedy="join both on stimulus ids first; repalign never pairs by cutting to the shorter one",
        )  # fmt: skip


def refuse_unmarked_rdm(x: Tensor, name: str) -> None:
    """Refuse features (n, d) that are plainly dissimilarities: square, symmetric, zero on the diagonal, nothing below zero."""
    if x.shape[0] != x.shape[1] or len(x) < 3 or bool(x.diagonal().any()) or not bool(x.any()) or bool((x < 0).any()):
        return
    if float((x - x.T).abs().max()) <= ASYMMETRY * float(x.max()):
        raise RepalignError(
            f"{name}: dissimilarities where features are meant",
            expected="an array (n, d): one row per stimulus, one column per feature",
            got=f"shape {tuple(x.shape)}, symmetric, 0 on the diagonal",
            remedy="give repalign.RDM(array), to a measure that takes one; of features that look so, "
            "compare what the measure prepares: measure.compare(measure.prepare(x), measure.prepare(y))",
        )


def said(kind: str) -> str:
    """A kind of layer in words."""
    return {"rdm": "an RDM", "kernel": "a Kernel"}.get(kind, kind)


def _not_square(shape: tuple[int, ...], where: str, name: str) -> RepalignError:
    expected = "(n, n), one row and one column per stimulus, or a stack (m, n, n)"
    n = (1 + math.isqrt(1 + 8 * shape[-1])) // 2 if shape else 0
    condensed = n > 1 and n * (n - 1) // 2 == shape[-1]  # as long as all pairs i < j of n stimuli
    if len(shape) == 1 and condensed:
        return RepalignError(
            f"{where}: the condensed form, the pairs (i < j) of {n} stimuli alone", expected=expected, got=f"shape {shape}",
            remedy=f"give {name}(scipy.spatial.distance.squareform(array))",
        )  # fmt: skip
    remedy = "features (n, d) are given as they are, without a wrapper"
    if len(shape) == 2 and condensed:
        remedy += "; of rows in condensed form give scipy.spatial.distance.squareform(row) of each, stacked"
    return RepalignError(f"{where}: not square", expected=expected, got=f"shape {shape}", remedy=remedy)
