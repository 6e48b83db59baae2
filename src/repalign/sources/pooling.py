"""Hidden states as one vector per stimulus, in float32 whatever the model's dtype, and what the tokens of texts show of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from repalign.errors import RepalignError
from repalign.layers import SINK
from repalign.sources.model import Batch, LoadedModel

# How far equal hidden states may be apart, relative to their norm: rounding in the dtype.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
POSITIONS = 256  # float32 log-softmax of so many positions at once: a vocabulary may have 250,000 entries
FIRST, LONGEST = "first_norm:", "longest_norm:"  # and the layer

# --- pooling -------------------------------------------------------------------------------------


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


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first valid token, under either padding side: (b, t, d), (b, t) -> (b, d)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, mask.to(torch.int64).argmax(dim=1)].to(torch.float32)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last valid token, under either padding side: (b, t, d), (b, t) -> (b, d)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    last = mask.shape[1] - 1 - mask.to(torch.int64).flip(dims=(1,)).argmax(dim=1)
    return hidden[rows, last].to(torch.float32)


TOKEN_POOLINGS = {"mean": masked_mean, "last": last_token, "cls": first_token}


def greedy(
    run: Callable[[Tensor, Any], tuple[Tensor, Any, Sequence[Tensor]]], tokens: Tensor, n: int, ends: Sequence[int]
) -> list[Tensor]:
    """The mean over n steps of the states that choose the next token, (b, d) of every layer, in float32.

    `tokens` (b, t) are texts of one length, without padding; in each step the likeliest next token is put behind them. `run`
    takes token ids and what it kept of those before, to the logits (b, v) of the last place, what it keeps, and the hidden states
    (b, d) there. A text ends with a token of `ends`: its mean is over the steps up to the one that chose it.
    """
    kept, total, going = None, [], torch.ones(len(tokens), 1, device=tokens.device)
    steps, ended = torch.zeros_like(going), torch.tensor(list(ends), device=tokens.device)
    for step in range(n):
        logits, kept, states = run(tokens, kept)
        each = [torch.where(going.to(h.device) > 0, h.to(torch.float32), 0) for h in states]
        total = each if step == 0 else [a + b for a, b in zip(total, each, strict=True)]
        steps = steps + going
        chosen = logits.argmax(dim=1, keepdim=True).to(tokens.device)
        going = going * ~torch.isin(chosen, ended)
        if not bool(going.any()):
            break
        tokens = torch.cat([tokens, chosen], dim=1)
    return [x / steps.to(x.device) for x in total]


class TextModel(LoadedModel):
    """A text model: the hidden states of its tokens become vectors, with or without the first one, which may be a sink."""

    kind: str | None = "text"
    sorts = True
    shown_first = 16  # enough to tell a sink, which is there in every text
    pooling: str
    causal: bool  # whether tokens see only those before them
    skips_first: bool = False  # whether the first token of each text is left out of the mean

    @property
    def may_skip(self) -> bool:
        """Whether a first token that is a sink is to be left out."""
        return self.pooling == "mean" and self.causal and self.entry.sink == "skip"

    @property
    def token_facts(self) -> dict[str, Any]:
        first = {"first_token": "left out" if self.skips_first else "counts"} if self.pooling == "mean" else {}
        return {"causal": self.causal, **first}

    def pooled(self, states: Mapping[str, Tensor], mask: Tensor, pooling: str | None = None) -> Batch:
        """Hidden states (b, t, d) by layer as vectors, and how long their tokens are; the mask (b, t) may lie on another device."""
        counted = without_first(mask) if self.skips_first else mask
        pool = TOKEN_POOLINGS[pooling or self.pooling]
        layers = {name: pool(h, counted.to(h.device)).to("cpu", torch.float32) for name, h in states.items()}
        return Batch(layers, norms(states, mask, counted) if states and self.pooling == "mean" else {})


def plain_mean(x: Tensor) -> Tensor:
    """Mean over the positions of a map (b, d, h, w), or over all tokens (b, t, d) -> (b, d)."""
    return x.to(torch.float32).mean(dim=(2, 3) if x.ndim == 4 else 1)


def any_pool(x: Tensor, pooling: str | None, where: str) -> Tensor:
    """A module's output of any usual form: vectors as they are, maps by their mean, tokens as `pooling` says.

    (b, d), (b, d, h, w) or (b, t, d) -> (b, d). All tokens count: none is known to be padding.
    """
    if x.ndim == 2:
        return x.to(torch.float32)
    if x.ndim == 4 and pooling in (None, "spatial_mean", "mean"):
        return plain_mean(x)
    if x.ndim == 3 and pooling in ("cls", "mean", "last"):
        return plain_mean(x) if pooling == "mean" else x[:, 0 if pooling == "cls" else -1].to(torch.float32)
    if x.ndim not in (3, 4):
        raise RepalignError(
            f"{where}: a layer's output is of no known form", expected="(b, d), (b, tokens, d) or (b, d, height, width)",
            got=f"shape {tuple(x.shape)}", remedy="name other modules in `layers:`",
        )  # fmt: skip
    form, known = ("a map (b, d, height, width)", "spatial_mean") if x.ndim == 4 else ("tokens (b, t, d)", "mean, cls or last")
    raise RepalignError(
        f"{where}: a layer that is {form} needs another pooling", expected=known, got=pooling or "none",
        remedy="set `pooling:` in the model's entry",
    )  # fmt: skip


# --- what texts show of a model ------------------------------------------------------------------


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

    first = norms[torch.arange(len(norms)), mask.to(torch.int64).argmax(dim=1)]
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


def same_states(some: Sequence[Tensor], others: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether hidden states of the same tokens are equal in all layers, up to the rounding of a run in `dtype`."""
    pairs = [(x.float(), y.float()) for x, y in zip(some, others, strict=True)]
    return all(float((x - y).norm() / y.norm().clamp_min(1e-12)) <= ROUNDING[dtype] for x, y in pairs)


def sees_only_back(run: Callable[[Tensor], Sequence[Tensor]], ids: Tensor, at: int, dtype: torch.dtype) -> bool:
    """Whether tokens do not see those behind them; that is tried out.

    `run` takes token ids (1, t) to the hidden states (1, t, d) of all layers. The token at place `at` is replaced: where
    tokens see only back, those before it stay, up to the rounding of a run in `dtype`, and at any rate move by less than
    a tenth of what those behind it do. In half precision rounding alone could not be told from a little attention.
    """
    replaced, others = ids.clone(), ids[ids != ids[0, at]]
    if len(others):
        replaced[0, at] = others[len(others) // 2]
    # |x_t - y_t| / |y_t| of each token (t,), so that one long token does not hide the others
    pairs = [(x[0].float(), y[0].float()) for x, y in zip(run(ids), run(replaced), strict=True)]
    moved = [(x - y).norm(dim=1) / y.norm(dim=1).clamp_min(1e-12) for x, y in pairs]
    parts = slice(0, at), slice(at + 1, None)
    before, behind = (max((float(m[part].mean()) for m in moved if len(m[part])), default=0.0) for part in parts)
    return before <= min(ROUNDING[dtype], behind / 10)


# --- numbers per stimulus that are stored beside the layers --------------------------------------


def costs(logits: Tensor, tokens: Tensor, places: Tensor) -> float:
    """-sum ln p in nats of the tokens at `places` of one text, each given those before it: (t, v), (t,), (m,) -> number.

    ln p is a log-softmax in float32, of `POSITIONS` positions at once, on the device of the logits; the sum is in float64.
    """
    total = 0.0
    for some in places.to(logits.device).split(POSITIONS):
        wanted = tokens.to(logits.device)[some]
        each = functional.cross_entropy(logits[some - 1].float(), wanted, reduction="none")
        total += float(each.cpu().double().sum())  # not every device has float64
    return total


def nats(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """What all tokens of each text but the first given one cost: (b, t, v), (b, t), (b, t) -> (b,) in float64."""
    out = torch.zeros(len(tokens), dtype=torch.float64)
    for i, valid in enumerate(mask):
        places = valid.nonzero().flatten()  # one piece, whichever side is padded
        out[i] = costs(logits[i], tokens[i], places[1:])
    return out


def norms(states: Mapping[str, Tensor], mask: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """How long the first and the longest token of each text are in each layer (see `norm_ratios`), and how many count.

    `states` are the hidden states (b, t, d) by layer, `counted` the tokens that enter the mean.
    """
    out = {"tokens_valid": mask.sum(dim=1), "tokens_counted": counted.sum(dim=1)}
    for layer, hidden in states.items():
        out[FIRST + layer], out[LONGEST + layer] = norm_ratios(hidden, mask, counted)
    return {name: x.cpu().to(torch.float64) for name, x in out.items()}


def per_row(**columns: Sequence[float]) -> dict[str, Tensor]:
    """One number for each row, in float64."""
    return {name: torch.tensor([float(v) for v in values], dtype=torch.float64) for name, values in columns.items()}
