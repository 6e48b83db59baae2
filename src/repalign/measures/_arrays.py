"""The border of the measures: arrays of any origin in, tensors of checked numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError

_REAL = ("real numbers", "put the parts side by side, np.concatenate([x.real, x.imag], axis=-1), or take abs(x)")
_DENSE = "make it dense, x{}, where (n, d) fits in memory; else reduce it first, for instance by sklearn's TruncatedSVD"


def as_tensor(x: Any, name: str = "x") -> Tensor:
    """Real numbers of any origin as a dense tensor of any shape, in their own dtype and on their own device.

    Big-endian numbers are put in the machine's order, numbers wider than float64 become float64. Raises RepalignError,
    naming `name`, for what holds no real number in every place: sparse, masked, complex, quantised or ragged arrays, texts.
    """
    if isinstance(x, Tensor):
        fault = _tensor_fault(x)
        if fault is not None:
            raise RepalignError(f"{name}: {fault[0]}", expected="a dense array of real numbers", got=fault[1], remedy=fault[2])
        return x.detach()
    if hasattr(x, "tocsr") and hasattr(x, "nnz"):
        raise _sparse(name, tuple(x.shape), ".toarray()")
    if np.ma.isMaskedArray(x):
        if np.ma.is_masked(x):
            raise RepalignError(
                f"{name}: {int(np.ma.count_masked(x))} entries are masked",
                expected="a number in every place",
                got=f"a masked array of shape {x.shape}",
                remedy="leave these stimuli out, or fill the places: x.filled(value)",
            )
        x = x.data
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise RepalignError(
            f"{name}: not an array", expected="rows of equal length", got=str(error).splitlines()[0][:200],
            remedy="give every stimulus a vector of the same length",
        ) from error  # fmt: skip
    if array.dtype.kind == "c":
        raise RepalignError(f"{name}: complex numbers", expected=_REAL[0], got=f"dtype {array.dtype}", remedy=_REAL[1])
    if array.dtype.kind not in "fiub":
        raise RepalignError(
            f"{name}: not an array of numbers",
            expected="a real numeric array of shape (n, d)",
            got=f"dtype {array.dtype}",
            remedy="convert it to float32 or float64 first",
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _tensor_fault(x: Tensor) -> tuple[str, str, str] | None:
    """What keeps a tensor from being dense real numbers: the fault, what there is, what to do."""
    shape = f"a tensor of dtype {x.dtype}"
    if x.is_nested:
        return "a nested tensor", shape, "give every stimulus a vector of the same length"
    if x.layout is not torch.strided:
        return f"a sparse matrix {tuple(x.shape)}", str(x.layout), _DENSE.format(".to_dense()")
    if x.is_complex():
        return "complex numbers", shape, _REAL[1].replace("np.concatenate", "torch.cat")
    if x.is_quantized:
        return "quantised numbers", shape, "convert them with .dequantize()"
    if x.is_meta:
        return "a tensor without data", "device meta", "load the numbers first"
    return None


def _sparse(name: str, shape: tuple[int, ...], call: str) -> RepalignError:
    return RepalignError(
        f"{name}: a sparse matrix {shape}", expected="a dense array (n, d)", got="scipy.sparse", remedy=_DENSE.format(call)
    )


def as_features(x: Any, name: str = "x") -> Tensor:
    """Check an array at the border and return it as a floating (n, d) tensor.

    float64 (and integers) stay or become float64; everything else is computed in float32, because
    half precision may be stored but is never multiplied. The tensor keeps its device.

    Raises RepalignError, naming `name`, unless x is two-dimensional, has a row and a column,
    and every entry is finite.
    """
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
