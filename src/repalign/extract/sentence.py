"""sentence-transformers models: the hidden states of the transformer, and the finished sentence embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.extract._base import (
    LEFT_OUT,
    Batch,
    Context,
    Layer,
    ModelEntry,
    Source,
    choose,
    choose_pooling,
    count_parameters,
    prompt_facts,
    run_dtype,
    run_facts,
    short_name,
    token_facts,
    weights_digest,
)
from repalign.extract._extras import norms, per_row
from repalign.extract._files import at, hub_errors, hub_revision, no_safetensors
from repalign.extract._pool import first_token, last_token, masked_mean, same_states, without_first
from repalign.extract._tokenizer import PROBE
from repalign.extract._trace import traced
from repalign.extract.hf import quiet
from repalign.models import ModelRecord, Spec

EMBEDDING = "sentence_embedding"
POOLINGS = ("mean", "cls", "last")


def revision(spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG001
    return hub_revision(spec, deep=True)


def load(spec: Spec, entry: ModelEntry, context: Context) -> Source:
    return Sentence(spec, entry, context)


@dataclass(frozen=True)
class Text:
    """A text, how many tokens it has, and whether the model cuts it."""

    text: str
    n_tokens: int
    cut: bool


class Sentence(Source):
    """Sentences in; hidden states pooled here, and the embedding as the model's own modules make it, out."""

    kind = "text"
    sorts = True

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context) -> None:
        self.entry, self.device = entry, context.device
        model = _load(spec, context)
        stored = next(model.parameters()).dtype  # of the transformer, which is loaded as it is stored
        dtype = run_dtype(context.dtype, stored, context.device, entry.label)
        self.model: Any = model.eval().to(dtype)
        self.prompt: str = self.model.prompts.get(self.model.default_prompt_name) or ""
        transformer = getattr(self.model[0], "auto_model", None)
        if transformer is not None:
            transformer.config.output_hidden_states = True
        self.limit = getattr(self.model, "max_seq_length", None)
        every = self._probe(dtype)
        self.pooling = choose_pooling(entry.pooling, POOLINGS, entry.label)
        about = token_facts(entry, self.pooling, self.causal)
        self.skips_first = about.get("first_token") == LEFT_OUT
        self.layers = choose(every, entry.layers, entry.label)
        self.places = {layer.name: i for i, layer in enumerate(every)}
        self.weights = weights_digest(self.model)
        self.record = ModelRecord(
            spec=str(spec),
            name=entry.name or short_name(spec),
            modality="text",
            objective="sentence embedding",
            n_parameters=count_parameters(self.model),
        )
        self.facts = {
            "source": "st",
            "architecture": " > ".join(type(m).__name__ for m in self.model),
            "pooling": f"{self.pooling}; {EMBEDDING}: the model's own",
            "tokens": f"all valid ones{' but the first' * self.skips_first}, with those that the tokenizer and the prompt add",
            **about,
            "prompt": self.prompt,
            "context": self.limit,
            "too_long": "cut" if entry.truncate else "refused",
            "caption": entry.caption,
            **prompt_facts(entry),
            **run_facts(dtype, stored, "sentence-transformers", "transformers", "tokenizers"),
        }

    def prepare(self, stimuli: Sequence[str], where: Sequence[str]) -> list[Text]:
        tokenizer = getattr(self.model, "tokenizer", None)
        if self.limit is None or not callable(tokenizer):
            return [Text(text, len(text), False) for text in stimuli]
        with quiet():  # it warns of long texts, which are refused or cut
            encoded: Any = tokenizer([self.prompt + t for t in stimuli], truncation=False, padding=False)
        counts = [len(ids) for ids in encoded["input_ids"]]
        for n, row in zip(counts, where, strict=True):
            if n > self.limit and not self.entry.truncate:
                raise RepalignError(
                    f"model {self.entry.label}: {row} is longer than the model's context",
                    expected=f"at most {self.limit} tokens",
                    got=f"{n} tokens",
                    remedy="set `truncate: true` on the model, or leave the row out of the dataset",
                )
        return [Text(t, min(n, self.limit), n > self.limit) for t, n in zip(stimuli, counts, strict=True)]

    def length(self, prepared: Text) -> int:
        return prepared.n_tokens

    def forward(self, prepared: Sequence[Text]) -> Batch:
        out = self._run([p.text for p in prepared])
        hidden = out.get("all_layer_embeddings", ())
        states = {layer.name: hidden[self.places[layer.name]] for layer in self.layers if layer.name != EMBEDDING}
        extras = per_row(cut=[p.cut for p in prepared])
        pooled = {}
        if states:
            mask = out["attention_mask"]
            counted = without_first(mask) if self.skips_first else mask
            pooled = {name: self._pool(h, counted) for name, h in states.items()}
            if self.pooling == "mean":
                extras |= norms(states, mask, counted)
        pooled[EMBEDDING] = out[EMBEDDING]
        return Batch({layer.name: pooled[layer.name].to("cpu", torch.float32) for layer in self.layers}, extras)

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return {"mean": masked_mean, "cls": first_token, "last": last_token}[self.pooling](hidden, mask)

    def _run(self, texts: list[str]) -> dict[str, Any]:
        return self.model(self._features(texts))

    def _features(self, texts: list[str]) -> dict[str, Any]:
        """What goes through all modules, as `encode` makes it: with the model's default prompt."""
        tokenize = getattr(self.model, "preprocess", self.model.tokenize)
        if self.prompt and hasattr(self.model, "preprocess"):
            features = tokenize(texts, prompt=self.prompt)
        else:
            features = tokenize([self.prompt + t for t in texts])
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in features.items()}

    @torch.inference_mode()
    def _probe(self, dtype: torch.dtype) -> list[Layer]:
        with traced(self.model) as trace:
            hidden = self._run([PROBE]).get("all_layer_embeddings", ())
        self.causal = bool(hidden) and self._check_causal(hidden, dtype)
        names = ["embeddings", *(f"block.{i}" for i in range(len(hidden) - 1))] if hidden else []
        numbers = [None, *range(len(hidden) - 1)]
        layers = [Layer(n, trace.what(h, i)) for n, h, i in zip(names, hidden, numbers, strict=False)]
        return [*layers, Layer(EMBEDDING, "the embedding that the model's own modules make")]

    def _check_causal(self, hidden: Sequence[Tensor], dtype: torch.dtype) -> bool:
        """Whether tokens do not see those behind them: none changes where the last one is not there."""
        features = {k: v[:, :-1] if isinstance(v, Tensor) and v.ndim > 1 else v for k, v in self._features([PROBE]).items()}
        return same_states([h[:, :-1] for h in hidden], self.model[0](features)["all_layer_embeddings"], dtype)


def _load(spec: Spec, context: Context) -> Any:
    from sentence_transformers import SentenceTransformer

    folder = Path(spec.path)
    if spec.is_local and not list(folder.rglob("*.safetensors")):
        raise no_safetensors(spec)
    with hub_errors(spec), quiet():
        return SentenceTransformer(
            spec.path,
            device=context.device,
            trust_remote_code=context.trust_remote_code,
            model_kwargs={"use_safetensors": True, "dtype": "auto"},
            **at(spec, context.revision),
        )
