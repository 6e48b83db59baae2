"""From tokens, patches or maps to one vector per stimulus: in float32, whatever the model's dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from repalign.errors import RepalignError

SINK = 2.0  # times as long as the other tokens: from there on a first token is a sink (the doctor remarks on such a one)
# How far equal hidden states may be apart, relative to their norm: rounding in the dtype.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens where mask is not zero: (b, t, d), (b, t) -> (b, d).

    What stands at the other tokens does not enter, not even as NaN.
    """
    keep = mask.to(torch.bool)
    wide = hidden.to(torch.float32).masked_fill(~keep[:, :, None], 0.0)
    return wide.sum(dim=1) / keep.sum(dim=1, keepdim=True)


def without_first(mask: Tensor) -> Tensor:
    """The mask without the first valid token of each text; a text of one token keeps it: (b, t) -> (b, t)."""
    rows = torch.arange(len(mask), device=mask.device)
    rest = mask.clone()
    rest[rows, mask.to(torch.int64).argmax(dim=1)] = 0
    return torch.where(rest.any(dim=1, keepdim=True), rest, mask)


def norm_ratios(hidden: Tensor, mask: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """How long one token is beside the others of its text: (b, t, d), (b, t), (b, t) -> (b,), (b,).

    The first is |h_0| / mean |h_j| over the other valid tokens, the second the same of the longest of those that count,
    beside the others that count. NaN where there is no other, or none that is longer than 0.
    """
    norms = torch.linalg.vector_norm(hidden, dim=2, dtype=torch.float32).cpu()
    mask, counted = mask.cpu(), counted.cpu()
    norms = norms.masked_fill(~mask.to(torch.bool), 0.0).to(torch.float64)  # not every device has float64

    def beside(one: Tensor, among: Tensor) -> Tensor:
        rest = (norms * among).sum(dim=1) - one
        return torch.where(rest > 0, one * (among.sum(dim=1) - 1) / rest, torch.nan)

    rows = torch.arange(len(norms))
    first = norms[rows, mask.to(torch.int64).argmax(dim=1)]
    return beside(first, mask.to(torch.float64)), beside((norms * counted).amax(dim=1), counted.to(torch.float64))



def has_sink(texts: Iterable[Sequence[Tensor]]) -> bool:
    """Whether the first token is a sink: in some layer it is on average more than `SINK` times as long as the others.

    `texts` are the hidden states (1, t, d) of every layer of texts that ran alone. Texts of one token do not count.
    """
    ratios = []
    for states in texts:
        one = torch.ones(states[0].shape[:2], dtype=torch.int64)
        ratios.append([float(norm_ratios(hidden, one, one)[0]) for hidden in states])
    known = [r for r in ratios if not any(map(math.isnan, r))]
    return bool(known) and float(torch.tensor(known).mean(dim=0).max()) > SINK


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first valid token, under either padding side: (b, t, d), (b, t) -> (b, d)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, mask.to(torch.int64).argmax(dim=1)].to(torch.float32)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last valid token, under either padding side: (b, t, d), (b, t) -> (b, d)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    last = mask.shape[1] - 1 - mask.to(torch.int64).flip(dims=(1,)).argmax(dim=1)
    return hidden[rows, last].to(torch.float32)


def same_states(some: Sequence[Tensor], others: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether hidden states of the same tokens are equal in all layers, up to the rounding of a run in `dtype`."""
    return all(_apart(x, y) <= ROUNDING[dtype] for x, y in zip(some, others, strict=True))


def sees_only_back(run: Callable[[Tensor], Sequence[Tensor]], ids: Tensor, at: int, dtype: torch.dtype) -> bool:
    """Whether tokens do not see those behind them; that is tried out.

    `run` takes token ids (1, t) to the hidden states (1, t, d) of all layers. The token at place `at` is replaced: where
    tokens see only back, those before it stay, up to the rounding of a run in `dtype`, and at any rate move by less than
    a tenth of what those behind it do. In half precision rounding alone could not be told from a little attention.
    """
    replaced, others = ids.clone(), ids[ids != ids[0, at]]
    if len(others):
        replaced[0, at] = others[len(others) // 2]
    moved = [_moved(x[0], y[0]) for x, y in zip(run(ids), run(replaced), strict=True)]
    before, behind = (max((float(m[part].mean()) for m in moved if len(m[part])), default=0.0) for part in _around(at))
    return before <= min(ROUNDING[dtype], behind / 10)


def _around(at: int) -> tuple[slice, slice]:
    return slice(0, at), slice(at + 1, None)


def _moved(x: Tensor, y: Tensor) -> Tensor:
    """|x_t - y_t| / |y_t| of each token, so that one long token does not hide the others: (t, d), (t, d) -> (t,)."""
    x, y = x.float(), y.float()
    return (x - y).norm(dim=1) / y.norm(dim=1).clamp_min(1e-12)


def _apart(x: Tensor, y: Tensor) -> float:
    """|x - y| / |y|, in float32."""
    x, y = x.float(), y.float()
    return float((x - y).norm() / y.norm().clamp_min(1e-12))


def map_mean(x: Tensor) -> Tensor:
    """Mean over positions: (b, d, h, w) -> (b, d)."""
    return x.to(torch.float32).mean(dim=(2, 3))


def token_mean(x: Tensor, prefix: int = 0) -> Tensor:
    """Mean over the tokens behind the first `prefix` ones: (b, t, d) -> (b, d)."""
    return x[:, prefix:].to(torch.float32).mean(dim=1)


def any_pool(x: Tensor, pooling: str | None, where: str) -> Tensor:
    """A module's output of any usual form: vectors as they are, maps by their mean, tokens as `pooling` says.

    (b, d), (b, d, h, w) or (b, t, d) -> (b, d). All tokens count: none is known to be padding.
    """
    if x.ndim == 2:
        return x.to(torch.float32)
    if x.ndim == 4 and pooling in (None, "spatial_mean", "mean"):
        return map_mean(x)
    if x.ndim == 3 and pooling in ("cls", "mean", "last"):
        if pooling == "mean":
            return token_mean(x)
        return x[:, 0 if pooling == "cls" else -1].to(torch.float32)
    if x.ndim in (3, 4):
        form, known = (
            ("a map (b, d, height, width)", "spatial_mean")
            if x.ndim == 4
            else ("tokens (b, t, d)", "mean, cls or last")
        )
        raise RepalignError(
            f"{where}: a layer that is {form} needs another pooling",
            expected=known,
            got=pooling or "none",
            remedy="set `pooling:` in the model's entry",
        )
    raise RepalignError(
        f"{where}: a layer's output is of no known form",
        expected="(b, d), (b, tokens, d) or (b, d, height, width)",
        got=f"shape {tuple(x.shape)}",
        remedy="name other modules in `layers:`",
    )
