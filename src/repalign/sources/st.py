"""sentence-transformers models: the hidden states of the transformer, and the finished sentence embedding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from repalign.errors import RepalignError, Unavailable, is_of
from repalign.sources import passes
from repalign.sources.hf import config_facts, quiet
from repalign.sources.hub import HubSource, at, hub_errors
from repalign.sources.memory import Model
from repalign.sources.model import Batch, Context, Layer, Loaded, LoadedModel, ModelEntry, ready
from repalign.sources.pooling import TextModel, has_sink, per_row, same_states, sees_only_back
from repalign.sources.source import Answer, Asked, Facts, Repository, Spec, StandIn
from repalign.sources.tokenizer import PROBE, PROBES, load_tokenizer

EMBEDDING = "sentence_embedding"
NO_LIMIT = 10**5  # tokens: more than that is how libraries say that there is none
POOLINGS = ("mean", "cls", "last")


@dataclass(frozen=True)
class Text:
    """A text, how many tokens it has, and whether the model cuts it."""

    text: str
    n_tokens: int
    cut: bool


class Sentence(TextModel):
    """Sentences in; hidden states pooled here, and the embedding as the model's own modules make it, out."""

    def __init__(self, spec: Spec, entry: ModelEntry, loaded: Loaded, reading: Mapping[str, str]) -> None:
        self.entry, self.device, dtype = entry, loaded.device, loaded.dtype
        self.model: Any = loaded.model
        self.prompt: str = self.model.prompts.get(self.model.default_prompt_name) or ""
        for module in self.model.modules():  # of a Router there may be one on each route
            transformer = getattr(module, "auto_model", None)
            if transformer is not None:
                transformer.config.output_hidden_states = True
        stated = getattr(self.model, "max_seq_length", None)  # a StaticEmbedding says infinity
        self.limit = int(stated) if stated is not None and 0 < stated < NO_LIMIT else None
        every = self._probe(dtype)
        self._refuse_another()
        self._refuse_padding(dtype)
        self.pooling = self.choose_pooling(POOLINGS)
        self.layers = self.choose_layers(every)
        self.places = {layer.name: i for i, layer in enumerate(every)}
        facts = {
            "architecture": self._modules(),
            "pooling": f"{self.pooling}; {EMBEDDING}: the model's own, as encode gives it",
            "truncate_dim": self.model.truncate_dim,
            **reading,
            "tokens": self._which_tokens(),
            **self.token_facts,  # `settle` finds out whether the first is a sink
            "prompt": self.prompt,
            "context": self.limit,
            **self.text_facts(),
        }
        libraries = ("sentence-transformers", "transformers", "tokenizers")
        self.describe(spec, "text", self.model, (dtype, loaded.stored), libraries, facts, objective="sentence embedding")

    def _modules(self) -> str:
        return " > ".join(type(m).__name__ for m in self.model)

    def _which_tokens(self) -> str:
        return f"all valid ones{' but the first' * self.skips_first}, with those that the tokenizer and the prompt add"

    @torch.inference_mode()
    def settle(self, prepared: Sequence[Text]) -> None:
        """Leave the first token of a causal model out of the mean where it is BOS, or a word that is a sink."""
        if self.may_skip:
            alone = [self._features([p.text]) for p in prepared]
            bos = getattr(self.model.tokenizer, "bos_token_id", None)
            leads = bos is not None and all(int(features["input_ids"][0, 0]) == bos for features in alone)
            self.skips_first = leads or has_sink(self.model(features)["all_layer_embeddings"] for features in alone)
            self.facts |= {**self.token_facts, "tokens": self._which_tokens()}

    def prepare(self, stimuli: Sequence[str], where: Sequence[str]) -> list[Text]:
        if self.limit is None:
            return [Text(text, len(text), False) for text in stimuli]
        counts = self._counts([self.prompt + t for t in stimuli])
        for n, row in zip(counts, where, strict=True):
            if n > self.limit and not self.entry.truncate:
                raise self.too_long(row, self.limit, n)
        return [Text(t, min(n, self.limit), n > self.limit) for t, n in zip(stimuli, counts, strict=True)]

    def _counts(self, texts: list[str]) -> list[int]:
        """How many tokens each text has."""
        tokenizer = self.model.tokenizer
        if not callable(tokenizer):  # one of words, of sentence-transformers' own
            return [len(tokenizer.tokenize(text)) for text in texts]
        with quiet():  # it warns of long texts, which are refused or cut
            encoded: Any = tokenizer(texts, truncation=False, padding=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def length(self, prepared: Text) -> int:
        return prepared.n_tokens

    def forward(self, prepared: Sequence[Text]) -> Batch:
        if self.entry.padding != "none":
            return self._pass(prepared)
        lengths = self._counts([self.prompt + p.text for p in prepared])
        return self.in_passes(prepared, lengths, self._pass)

    def _pass(self, prepared: Sequence[Text]) -> Batch:
        out = self._run([p.text for p in prepared])
        hidden = out.get("all_layer_embeddings", ())
        states = {layer.name: hidden[self.places[layer.name]] for layer in self.layers if layer.name != EMBEDDING}
        batch = self.pooled(states, out["attention_mask"]) if states else Batch({})
        batch.layers[EMBEDDING] = out[EMBEDDING].to("cpu", torch.float32)
        extras = {**per_row(cut=[p.cut for p in prepared]), **batch.extras}
        return Batch({layer.name: batch.layers[layer.name] for layer in self.layers}, extras)

    def _run(self, texts: list[str]) -> dict[str, Any]:
        out = self.model(self._features(texts))
        if out.get(EMBEDDING) is None:
            raise Unavailable(
                f"model {self.entry.label}: its modules make no sentence embedding", got=self._modules(),
                expected="modules of which one pools the tokens", remedy="run its transformer as an hf: model",
            )  # fmt: skip
        out[EMBEDDING] = out[EMBEDDING][:, : self.model.truncate_dim]  # none: all
        return out

    def _features(self, texts: list[str]) -> dict[str, Any]:
        """What goes through all modules, as `encode` makes it: with the model's default prompt."""
        features = self.model.preprocess(texts, prompt=self.prompt or None)
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in features.items()}

    @torch.inference_mode()
    def _refuse_another(self) -> None:
        """Refuse a model whose `encode` does more than its modules: the embedding would be another one."""
        texts: list[str] = list(PROBES[:2])
        want = self.model.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        got = self._run(texts)[EMBEDDING]
        if got.shape != want.shape or not torch.allclose(got.float(), want.float().to(got.device), rtol=1e-3, atol=1e-4):
            raise Unavailable(
                f"model {self.entry.label}: its modules give another embedding than its `encode`",
                expected=f"shape {tuple(want.shape)}, and the same numbers", got=f"shape {tuple(got.shape)}",
                remedy="encode the texts with sentence-transformers, and name the file with an array: spec",
            )  # fmt: skip

    @torch.inference_mode()
    def _refuse_padding(self, dtype: torch.dtype) -> None:
        """Refuse a model that gives a text another embedding beside a longer one, unless texts of one length share a pass."""
        beside, alone = self._run([PROBE, f"{PROBE} {PROBE}"]), self._run([PROBE])
        if self.entry.padding != "none" and not same_states([beside[EMBEDDING][:1]], [alone[EMBEDDING]], dtype):
            raise RepalignError(
                f"model {self.entry.label}: a text has another embedding beside longer ones, which it is padded for",
                expected="modules that leave padding out", got=self._modules(),
                remedy="set `padding: none` on the model, so that only texts of one length share a batch",
            )  # fmt: skip

    @torch.inference_mode()
    def _probe(self, dtype: torch.dtype) -> list[Layer]:
        with passes.traced(self.model) as trace:
            hidden = self._run([PROBE]).get("all_layer_embeddings", ())
        self.causal = bool(hidden) and self._check_causal(dtype)
        names = ["embeddings", *(f"block.{i}" for i in range(len(hidden) - 1))] if hidden else []
        numbers = [None, *range(len(hidden) - 1)]
        layers = [Layer(n, trace.what(h, i)) for n, h, i in zip(names, hidden, numbers, strict=False)]
        return [*layers, Layer(EMBEDDING, "the embedding that the model's own modules make")]

    def _check_causal(self, dtype: torch.dtype) -> bool:
        """Whether tokens do not see those behind them."""
        features = self._features([PROBE])
        ids = features.get("input_ids")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            return False
        run = lambda i: self.model[0]({**features, "input_ids": i})["all_layer_embeddings"]  # noqa: E731
        return sees_only_back(run, ids, ids.shape[1] // 2, dtype)


def _own_tokenizer(model: Any, spec: Spec, context: Context) -> dict[str, str]:
    """Give the transformer the tokenizer that its own file says, where the library makes another of it; what was found."""
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerBase

    first = model[0]
    current = getattr(first, "tokenizer", None)
    if getattr(first, "auto_model", None) is None or not isinstance(current, PreTrainedTokenizerBase):
        return {}  # it reads its file itself, as StaticEmbedding does, or is one of several (Router)
    reading = load_tokenizer(spec, context, _folder(spec, context))
    if not reading.own:
        return reading.facts
    if not isinstance(reading.tokenizer, PreTrainedTokenizerBase):
        raise Unavailable(
            f"model {spec}: sentence-transformers reads text otherwise than its sentencepiece file",
            expected="the ids of sentencepiece, or a tokenizer.json", got=reading.said,
            remedy="name a revision or a folder with a tokenizer.json, or run its transformer as an hf: model",
        )  # fmt: skip
    reading.tokenizer.model_max_length = current.model_max_length
    reading.tokenizer.padding_side = current.padding_side
    if getattr(first, "do_lower_case", False):  # sentence-transformers' own option, over that of the tokenizer
        backend = reading.tokenizer.backend_tokenizer
        parts = [normalizers.Lowercase(), *([] if backend.normalizer is None else [backend.normalizer])]
        backend.normalizer = normalizers.Sequence(parts)
    if first.processor is current:
        first.processor = reading.tokenizer
    else:
        first.processor.tokenizer = reading.tokenizer
    return {**reading.facts, "tokenizer_probe": reading.digest}


def _folder(spec: Spec, context: Context) -> str:
    """The subfolder of the first module, as modules.json names it."""
    from transformers.utils.hub import cached_file

    with hub_errors(spec):
        named = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        file = cached_file(spec.path, "modules.json", **named, **at(spec, context.revision))
        return "" if file is None else str(json.loads(Path(file).read_text("utf-8"))[0].get("path") or "")


def _load(spec: Spec, context: Context) -> Any:
    from sentence_transformers import SentenceTransformer

    with hub_errors(spec), quiet():
        return SentenceTransformer(
            spec.path, device=context.device, trust_remote_code=context.trust_remote_code,
            model_kwargs={"use_safetensors": True, "dtype": "auto"}, **at(spec, context.revision),
        )  # fmt: skip


class SentenceTransformers(HubSource):
    """`st:` models."""

    packages = ("sentence_transformers",)
    scheme, form = "st", "st:name[@revision], or st:./folder"
    example = "st:sentence-transformers/all-MiniLM-L6-v2"
    takes_prompts = True
    nested = True
    weights = "**/*.safetensors"
    poolings: ClassVar = {"text": POOLINGS}

    def modality(self, spec: Spec, entry: ModelEntry) -> str | None:
        return super().modality(spec, entry) or "text"

    def repository(self, spec: Spec) -> Repository | None:
        name = spec.path if "/" in spec.path else f"sentence-transformers/{spec.path}"
        return None if spec.is_local else (name, spec.revision)

    def facts(self, spec: Spec, entry: ModelEntry, answer: Answer | None = None) -> Facts:
        return replace(config_facts(spec, entry, answer, (EMBEDDING,)), **self.weight_facts(spec, answer), poolings=None)

    def load(self, spec: Spec, entry: ModelEntry, context: Context) -> LoadedModel:
        model = _load(spec, context)
        reading = _own_tokenizer(model, spec, context)
        stored = next((p.dtype for p in model.parameters()), None)  # of the transformer, which is loaded as it is stored
        return Sentence(spec, entry, ready(model, stored, context, entry.label), reading)

    def takes(self, entry: Model) -> bool:
        return is_of(entry.model, "sentence_transformers", "SentenceTransformer")

    def wrap(self, spec: Spec, entry: Model, loaded: Loaded) -> LoadedModel:
        return Sentence(spec, entry, loaded, {"tokenizer": "as it was given"})

    def stand_in(self, asked: Asked) -> StandIn:
        from repalign.sources import standin_models

        self.require(asked.entry)
        return standin_models.sentence_model(asked)
