"""sentence-transformers models: the hidden states of the transformer and the finished sentence embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
from repalign.extract._files import hub_errors, hub_revision
from repalign.models import ModelRecord, Spec

EMBEDDING = "sentence_embedding"


def revision(spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG001
    return hub_revision(spec)


def load(spec: Spec, entry: ModelEntry, context: Context) -> Source:
    return Sentence(spec, entry, context)


class Sentence(Source):
    """Sentences in; hidden states pooled here, and the embedding as the model itself pools it, out."""

    kind = "text"

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context) -> None:
        from sentence_transformers import SentenceTransformer

        self.entry = entry
        self.device = context.device
        with hub_errors(spec):
            model = SentenceTransformer(
                spec.path,
                device=context.device,
                revision=spec.revision,
                trust_remote_code=context.trust_remote_code,
                model_kwargs={"use_safetensors": True},
            )
        dtype = torch_dtype(context.dtype, next(model.parameters()).dtype, context.device, entry.label)
        self.model: Any = model.eval().to(dtype)
        self.transformer: Any = getattr(self.model[0], "auto_model", None) or getattr(self.model[0], "model", None)
        self.pooling = choose_pooling(entry.pooling, "mean", ("mean", "cls", "last"), entry.label)
        names = self._names()
        chosen = choose([n for n, _ in names], entry.layers, entry.label)
        self.layers = tuple(Layer(n, what) for n, what in names if n in chosen)
        self.weights = weights_digest(self.model)
        self.record = ModelRecord(
            spec=str(spec),
            name=entry.name or spec.path.rstrip("/").rpartition("/")[2],
            modality="text",
            objective="sentence embedding",
            n_parameters=count_parameters(self.model),
        )
        self.facts = {
            "source": "st",
            "architecture": " > ".join(type(m).__name__ for m in self.model),
            "pooling": self.pooling,
            "tokens": "all valid tokens, those that the tokenizer adds among them",
            "max_tokens": self.model.max_seq_length,
            "dtype": str(dtype).removeprefix("torch."),
            "device": context.device,
            "pooled_in": "float32",
            "versions": versions("sentence-transformers", "transformers", "tokenizers"),
        }

    def prepare(self, stimuli: Sequence[str], where: Sequence[str]) -> list[str]:
        limit = self.model.max_seq_length
        for text, row in zip(stimuli, where, strict=True):
            if limit is not None and not self.entry.truncate and self._length(text) > limit:
                raise RepalignError(
                    f"model {self.entry.label}: {row} is longer than the model takes",
                    expected=f"at most {limit} tokens",
                    got=f"{self._length(text)} tokens",
                    remedy="set `truncate: true` on the model, or leave the row out of the dataset",
                )
        return list(stimuli)

    def _length(self, text: str) -> int:
        return len(self.model.tokenizer(text, add_special_tokens=True, truncation=False)["input_ids"])

    def lengths(self, stimuli: Sequence[str]) -> list[int]:
        return [len(s) for s in stimuli]

    def forward(self, prepared: Sequence[str]) -> Batch:
        hidden, mask, embedding = self._run(list(prepared))
        layers = {}
        for layer in self.layers:
            if layer.name == EMBEDDING:
                pooled = embedding
            else:
                pooled = self._pool(hidden[0 if layer.name == "embeddings" else int(layer.name[6:]) + 1], mask)
            layers[layer.name] = pooled.to("cpu", torch.float32)
        return Batch(layers)

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "mean":
            return masked_mean(hidden, mask)
        rows = torch.arange(len(hidden), device=hidden.device)
        first = mask.argmax(dim=1)
        return hidden[rows, first if self.pooling == "cls" else first + mask.sum(dim=1) - 1].to(torch.float32)

    def _run(self, texts: list[str]) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        """Hidden states, the mask and the embedding from one pass through the transformer and what follows it."""
        features = {k: v.to(self.device) for k, v in self.model.tokenize(texts).items() if isinstance(v, Tensor)}
        if self.transformer is None:
            return (), features.get("attention_mask", torch.empty(0)), self.model(features)[EMBEDDING]
        inputs = {k: features[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in features}
        out = self.transformer(**inputs, output_hidden_states=True)
        features["token_embeddings"] = out.last_hidden_state
        for module in list(self.model)[1:]:
            features = module(features)
        return out.hidden_states, inputs["attention_mask"], features[EMBEDDING]

    def _names(self) -> list[tuple[str, str]]:
        with torch.inference_mode():
            hidden, _, _ = self._run(["a"])
        names = [("embeddings", "embeddings, before the first block")] if hidden else []
        count = len(hidden) - 1
        names += [(f"block.{i}", f"output of block {i + 1} of {count}") for i in range(count)]
        return [*names, (EMBEDDING, "the embedding as the model's own modules make it")]
