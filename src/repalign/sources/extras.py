"""Numbers per stimulus that are stored beside the layers, and what follows from them over all rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from repalign.sources.pool import norm_ratios

POSITIONS = 256  # float32 log-softmax of so many positions at once: a vocabulary may have 250,000 entries
BATCH_SIZE = "batch_size"  # how many rows at most were run together with this one
FIRST, LONGEST = "first_norm:", "longest_norm:"  # and the layer


def costs(logits: Tensor, tokens: Tensor, places: Tensor) -> float:
    """-sum ln p in nats of the tokens at `places` of one text, each given those before it: (t, v), (t,), (m,) -> number.

    ln p is a log-softmax in float32, of `POSITIONS` positions at once, on the device of the logits; the sum is in float64.
    """
    total = 0.0
    for some in places.to(logits.device).split(POSITIONS):
        wanted = tokens.to(logits.device)[some]
        each = functional.cross_entropy(logits[some - 1].float(), wanted, reduction="none")
        total += float(each.double().sum())
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
    return {name: x.to("cpu", torch.float64) for name, x in out.items()}


def per_row(**columns: Sequence[float]) -> dict[str, Tensor]:
    """One number for each row, in float64."""
    return {name: torch.tensor([float(v) for v in values], dtype=torch.float64) for name, values in columns.items()}


def summary(extras: Mapping[str, Tensor], caption: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The scores and facts that the extras of all rows give, whoever computed them."""
    facts: dict[str, Any] = {}
    if BATCH_SIZE in extras:
        sizes, counts = extras[BATCH_SIZE].unique(return_counts=True)
        facts["rows_by_batch_size"] = {str(int(s)): int(c) for s, c in zip(sizes, counts, strict=True)}
    if "cut" in extras:
        facts["texts_cut"] = int(extras["cut"].sum())
    if "tokens_counted" in extras:
        facts["texts_of_one_token"] = int((extras["tokens_valid"] == 1).sum())
        facts["token_norms"] = {
            name.removeprefix(FIRST): _norms(extras, name.removeprefix(FIRST)) for name in extras if name.startswith(FIRST)
        }
    if "nats" not in extras:
        return {}, facts
    scores, facts["bits_per_byte"] = _bits(extras, caption)
    return scores, facts


def _norms(extras: Mapping[str, Tensor], layer: str) -> dict[str, float]:
    """Means over the texts that have another token to compare with.

    One of c tokens that is r times as long as the mean of the others has the share r / (r + c - 1) of all their norms.
    """
    longest = extras[LONGEST + layer]
    share = longest / (longest + extras["tokens_counted"] - 1)
    told = {"first": extras[FIRST + layer], "longest": longest, "share": share}
    return {name: float(x.nanmean()) for name, x in told.items() if not bool(x.isnan().all())}


def _bits(extras: Mapping[str, Tensor], caption: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Bits per byte and per character and nats per token over all texts, and their definition."""
    total = {name: float(extras[name].sum()) for name in ("nats", "tokens", "bytes", "chars")}
    scored = int((extras["bytes"] > 0).sum())
    if not scored or not total["tokens"]:
        return {}, {"texts": 0}
    found = {
        "bits_per_byte": total["nats"] / math.log(2) / total["bytes"],
        "bits_per_char": total["nats"] / math.log(2) / total["chars"],
        "nats_per_token": total["nats"] / total["tokens"],
    }
    n_bos = int(extras["bos"].sum())
    definition = {
        "formula": "nats of all tokens after the first given one, over all texts / ln 2 / UTF-8 bytes (or characters)",
        "texts": scored,
        "text": f"caption {caption} of each row; texts that were cut are left out",
        "bos": "in all texts" if n_bos == scored else f"in {n_bos} of {scored} texts",
        "first_token": "scored after BOS" if n_bos == scored else "not scored",
        "first_token_bytes": "count",
        **total,
    }
    return found, definition
