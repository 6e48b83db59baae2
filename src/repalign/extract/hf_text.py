"""Text models of the transformers library: causal, masked and encoder models.

Layers are the hidden states: the embeddings, then each block; whether the last is taken before or after the final
norm is found out by running the model, since it differs between models, and is recorded. For causal models the bits
per byte of the very same texts come from the same pass.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repalign.errors import RepalignError
from repalign.extract._base import (
    Batch,
    Context,
    Layer,
    ModelEntry,
    Source,
    choose,
    choose_pooling,
    count_parameters,
    masked_mean,
    torch_dtype,
    versions,
    weights_digest,
)
from repalign.extract._files import hub_errors
from repalign.extract.hf import load_model
from repalign.models import ModelRecord, Spec

POOLINGS = ("mean", "last", "cls")


class HFText(Source):
    """Tokens in, pooled hidden states out."""

    kind = "text"

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context, config: Any) -> None:
        from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

        self.entry = entry
        self.device = context.device
        architectures = getattr(config, "architectures", None) or []
        self.causal = any(a.endswith(("ForCausalLM", "LMHeadModel")) for a in architectures)
        dtype = torch_dtype(context.dtype, getattr(config, "dtype", None), context.device, entry.label)
        self.model = load_model(AutoModelForCausalLM if self.causal else AutoModel, spec, context, dtype)
        self.body = _text_body(self.model, config)
        self.runs = self.model if self.causal else self.body
        with hub_errors(spec):
            self.tokenizer = AutoTokenizer.from_pretrained(
                spec.path, revision=spec.revision, trust_remote_code=context.trust_remote_code
            )
        self.pad = _first_not_none(
            self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, self.tokenizer.unk_token_id, 0
        )
        text_config = getattr(config, "text_config", None) or config
        self.context = getattr(text_config, "max_position_embeddings", None)
        self.takes_positions = "position_ids" in inspect.signature(self.runs.forward).parameters
        self.positions_from_ids = any(hasattr(m, "create_position_ids_from_input_ids") for m in self.body.modules())
        self.pooling = choose_pooling(entry.pooling, "mean", POOLINGS, entry.label)
        names = self._probe()
        chosen = choose([n for n, _ in names], entry.layers, entry.label)
        self.layers = tuple(Layer(n, what) for n, what in names if n in chosen)
        self.positions = {n: i for i, (n, _) in enumerate(names)}
        self.weights = weights_digest(self.model)
        self.record = ModelRecord(
            spec=str(spec),
            name=entry.name or spec.path.rstrip("/").rpartition("/")[2],
            modality="text",
            objective="next token" if self.causal else None,
            n_parameters=count_parameters(self.model),
        )
        self.facts = {
            "source": "hf",
            "architecture": type(self.model).__name__,
            "pooling": self.pooling,
            "tokens": self._which_tokens(),
            "padding": entry.padding,
            "dtype": str(dtype).removeprefix("torch."),
            "device": context.device,
            "pooled_in": "float32",
            "caption": entry.caption,
            "truncate": entry.truncate,
            "versions": versions("transformers", "tokenizers"),
        }

    # --- tokens ----------------------------------------------------------------------------------

    def prepare(self, stimuli: Sequence[str], where: Sequence[str]) -> list[tuple[list[int], int, int]]:
        """Token ids, bytes and characters of every text; an empty or overlong text is an error that names its row."""
        encoded = self.tokenizer(list(stimuli), add_special_tokens=True, padding=False, truncation=False)["input_ids"]
        out = []
        for text, ids, row in zip(stimuli, encoded, where, strict=True):
            if len(ids) <= self._has_bos(ids):
                raise RepalignError(
                    f"model {self.entry.label}: {row} has no token",
                    expected="a text that is not empty",
                    got=repr(text[:60]),
                    remedy="leave such rows out of the dataset with on_missing: drop",
                )
            if self.context is not None and len(ids) > self.context:
                if not self.entry.truncate:
                    raise RepalignError(
                        f"model {self.entry.label}: {row} is longer than the model's context",
                        expected=f"at most {self.context} tokens",
                        got=f"{len(ids)} tokens",
                        remedy="set `truncate: true` on the model, or leave the row out of the dataset",
                    )
                ids = ids[: self.context]  # noqa: PLW2901
            out.append((ids, len(text.encode("utf-8")), len(text)))
        return out

    def lengths(self, stimuli: Sequence[Any]) -> list[int]:
        return [len(ids) for ids, _, _ in stimuli]

    def _has_bos(self, ids: Sequence[int]) -> bool:
        bos = self.tokenizer.bos_token_id
        return self.causal and bos is not None and len(ids) > 0 and ids[0] == bos

    def _which_tokens(self) -> str:
        if self.pooling != "mean":
            return {"last": "the last token", "cls": "the first token"}[self.pooling]
        skipped = self.causal and self.entry.bos == "skip" and self.tokenizer.bos_token_id is not None
        return "all valid tokens" + (" but a leading beginning-of-sequence token" if skipped else "")

    # --- the pass --------------------------------------------------------------------------------

    def forward(self, prepared: Sequence[Any]) -> Batch:
        ids = [p[0] for p in prepared]
        tokens, mask = self._pad(ids)
        hidden, logits = self._hidden(tokens, mask)
        counted = self._counted(ids, mask)
        layers = {}
        for layer in self.layers:
            h = hidden[self.positions[layer.name]]
            layers[layer.name] = self._pool(h, mask, counted).to("cpu", torch.float32)
        extras = {} if logits is None else self._bits(logits, tokens, mask, prepared)
        return Batch(layers, extras)

    def _pad(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, ids))
        tokens = torch.full((len(ids), longest), self.pad, dtype=torch.int64)
        mask = torch.zeros(len(ids), longest, dtype=torch.int64)
        for i, row in enumerate(ids):
            at = slice(longest - len(row), longest) if self.entry.padding == "left" else slice(0, len(row))
            tokens[i, at] = torch.tensor(row)
            mask[i, at] = 1
        return tokens.to(self.device), mask.to(self.device)

    def _hidden(self, tokens: Tensor, mask: Tensor) -> tuple[Sequence[Tensor], Tensor | None]:
        arguments: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask, "output_hidden_states": True}
        if self.takes_positions and not self.positions_from_ids and self.entry.padding == "left":
            # Under left padding a model with learned positions would count the padding.
            arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
        if "use_cache" in inspect.signature(self.runs.forward).parameters:
            arguments["use_cache"] = False
        out = self.runs(**arguments)
        return out.hidden_states, out.logits if self.causal else None

    def _counted(self, ids: Sequence[Sequence[int]], mask: Tensor) -> Tensor:
        """The tokens that the mean is over."""
        counted = mask.clone()
        if self.entry.bos == "skip":
            first = mask.argmax(dim=1)
            for i, row in enumerate(ids):
                if self._has_bos(row):
                    counted[i, first[i]] = 0
        return counted

    def _pool(self, hidden: Tensor, mask: Tensor, counted: Tensor) -> Tensor:
        if self.pooling == "mean":
            return masked_mean(hidden, counted)
        rows = torch.arange(len(hidden), device=hidden.device)
        first = mask.argmax(dim=1)
        at = first if self.pooling == "cls" else first + mask.sum(dim=1) - 1
        return hidden[rows, at].to(torch.float32)

    def _bits(self, logits: Tensor, tokens: Tensor, mask: Tensor, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """Nats of all tokens after the first, and what they are shared out over."""
        nats = torch.zeros(len(tokens), dtype=torch.float64)
        for i in range(len(tokens)):  # row by row: float32 logits of a whole batch may not fit
            valid = mask[i].bool()
            row, wide = tokens[i][valid], logits[i][valid][:-1].float()
            nats[i] = float(nn.functional.cross_entropy(wide, row[1:], reduction="sum")) if len(row) > 1 else 0.0
        count = torch.tensor([float(len(ids) - 1) for ids, _, _ in prepared], dtype=torch.float64)
        bos = torch.tensor([float(self._has_bos(ids)) for ids, _, _ in prepared], dtype=torch.float64)
        sizes = [torch.tensor([float(p[k]) for p in prepared], dtype=torch.float64) for k in (1, 2)]
        cut = torch.tensor([float(len(ids) == self.context) for ids, _, _ in prepared], dtype=torch.float64)
        return {"nats": nats, "tokens": count, "bos": bos, "bytes": sizes[0], "chars": sizes[1], "at_context": cut}

    def summary(self, extras: Mapping[str, Tensor]) -> tuple[dict[str, float], dict[str, Any]]:
        if not extras:
            return {}, {}
        nats = float(extras["nats"].sum())
        scores = {
            "bits_per_byte": nats / math.log(2) / float(extras["bytes"].sum()),
            "bits_per_char": nats / math.log(2) / float(extras["chars"].sum()),
            "nats_per_token": nats / float(extras["tokens"].sum()),
        }
        with_bos = float(extras["bos"].mean())
        first = "scored, after a beginning-of-sequence token" if with_bos == 1 else "not scored, though its bytes count"
        definition = {
            "text": f"caption {self.entry.caption} of every stimulus",
            "formula": "sum of nats of all tokens after the first given one, / ln 2, / sum of UTF-8 bytes",
            "first_text_token": first,
            "texts_at_context_length": int(extras["at_context"].sum()),
        }
        return scores, {"bits_per_byte": definition}

    # --- what counts as a layer ------------------------------------------------------------------

    def _probe(self) -> list[tuple[str, str]]:
        """Run two tokens once: how many hidden states there are, and what the last one is."""
        blocks = longest_block_list(self.body)
        seen: list[Tensor] = []
        hook = blocks[-1].register_forward_hook(lambda _m, _i, out: seen.append(first_tensor(out))) if blocks else None
        tokens = torch.tensor([[self.pad, self.pad]], device=self.device)
        try:
            with torch.inference_mode():
                hidden, _ = self._hidden(tokens, torch.ones_like(tokens))
        finally:
            if hook is not None:
                hook.remove()
        count = len(hidden) - 1
        names = [("embeddings", "embeddings, before the first block")]
        names += [(f"block.{i}", f"output of block {i + 1} of {count}") for i in range(count)]
        if seen:
            same = seen[-1].shape == hidden[-1].shape and torch.equal(seen[-1], hidden[-1])
            norm = "before any final norm" if same else "after the final norm"
            names[-1] = (names[-1][0], f"{names[-1][1]}, {norm}")
        return names


def _text_body(model: nn.Module, config: Any) -> nn.Module:
    """The part that makes hidden states of text: the encoder of an encoder-decoder, the text side of a pair."""
    if getattr(config, "is_encoder_decoder", False):
        return model.get_encoder()  # type: ignore[operator]
    if getattr(config, "vision_config", None) is not None and hasattr(model, "text_model"):
        return model.text_model  # type: ignore[return-value]
    return model


def longest_block_list(model: nn.Module) -> nn.ModuleList | None:
    """The longest list of modules of one class: a transformer's blocks."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(b) for b in m}) == 1]
    return max(lists, key=len, default=None)


def first_tensor(out: Any) -> Tensor:
    """A module's main output: itself, or the first of what it returns."""
    while not isinstance(out, Tensor):
        out = next(iter(out.values())) if isinstance(out, Mapping) else out[0]
    return out


def _first_not_none(*values: int | None) -> int:
    return next(v for v in values if v is not None)
