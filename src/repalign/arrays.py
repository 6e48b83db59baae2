"""Arrays of any origin in, dense tensors of real numbers out."""

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
