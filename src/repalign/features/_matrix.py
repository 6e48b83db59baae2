"""What is square and symmetric is hardly a table of features: it relates stimuli to each other.

Marked as an RDM or a kernel it is one, (n, n), or a stack of them (m, n, n), of which an array `names` (m,) may name the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.features._table import Block, Table, listed, option
from repalign.layers import KINDS, Pairwise, said

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


# --- what is said to be one ------------------------------------------------------------------------

NAMES = "names"


def square_blocks(table: Table, kind: str) -> dict[str, list[Block]]:
    """The blocks of a table that are square, each with the block that names its matrices, if there is one."""
    if table.form == "columns":
        raise RepalignError(
            f"{table.what}: a table of columns where {said(kind)} is meant",
            expected="an array (n, n) or (m, n, n)",
            got=listed([b.name for b in table.blocks]),
            remedy="give the numbers as an array, with the ids of its rows beside it: .npz with the arrays "
            f"{kind} and ids; in Python repalign.{KINDS[kind].__name__}(frame.to_numpy())",
        )
    blocks = [b for b in table.blocks if b.place == "array"]
    if table.form == "array":
        return {b.name: [b] for b in blocks[:1]}
    if table.layers is not None:
        blocks = [table.find(name) for name in table.layers]
    found = [b for b in blocks if _is_square(b)]
    if not found:
        raise RepalignError(
            f"{table.what}: no square array",
            expected=f"{said(kind)} (n, n), one row and one column per stimulus, or a stack (m, n, n)",
            got=listed([b.told for b in table.blocks]) or "nothing",
            remedy="give scipy.spatial.distance.squareform of a condensed form",
        )
    names = next((b for b in table.blocks if b.name == NAMES and b.kind == "text" and len(b.shape) == 1), None)
    stacks = [b for b in found if len(b.shape) == 3]
    named = names is not None and len(stacks) == 1 and names.shape[0] == stacks[0].shape[0]
    return {b.name: [b, names] if named and names is not None and b is stacks[0] else [b] for b in found}


def _is_square(block: Block) -> bool:
    numbers = block.kind in ("float", "integer", "boolean", "complex", "pairs")
    return numbers and len(block.shape) in (2, 3) and block.shape[-1] == block.shape[-2] and -1 not in block.shape


def as_pairs(x: Any, part: Sequence[Block], kind: str | None, what: str) -> Pairwise:
    """A block that was loaded, as what it is said to be."""
    if not isinstance(x, Pairwise):
        return KINDS[str(kind)](x, part[1].values() if len(part) > 1 else None, where=what)
    if kind not in (None, x.kind):
        raise RepalignError(f"{what}: {said(x.kind)}, and said to be {said(str(kind))}", remedy="say one of them")
    return x


def layers_of(x: Pairwise, name: str, alone: bool, called: str) -> dict[str, Any]:
    """The layers of one block: by its name where it has one, and by those of its matrices.

    `alone`: no other block is a layer, so that names of matrices need no more; `called` is what a nameless array is called.
    """
    name = x.kind if name == called else name
    inner = x.layers(name)
    return inner if alone or not x.names else {f"{name}.{n}": layer for n, layer in inner.items()}


def layer_names(part: Sequence[Block], kind: str, alone: bool, called: str) -> list[str]:
    """What `layers_of` calls the layers of a block, from shapes alone."""
    name = kind if part[0].name == called else part[0].name
    if len(part[0].shape) == 2:
        return [name]
    inner = map(str, part[1].values()) if len(part) > 1 else None
    return [f"{name}.{i}" for i in range(part[0].shape[0])] if inner is None else [n if alone else f"{name}.{n}" for n in inner]
