"""Text models of the transformers library: causal, masked and encoder models.

Layers are the hidden states as the model returns them: the embeddings, then one for each block. What makes
each of them, and whether the last one has gone through the final norm (it differs between models), is found
out by running the model once, and recorded. Bits per byte of the very same texts come from the same pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repalign.errors import RepalignError, Unavailable
from repalign.sources import passes
from repalign.sources.hf import load_model, placed, quiet, refuse_missing, within
from repalign.sources.model import GENERATED, NO_BOS, Batch, Context, Layer, Loaded, ModelEntry, refuse_infinite
from repalign.sources.pooling import TextModel, greedy, has_sink, nats, per_row, same_states, sees_only_back
from repalign.sources.source import Spec, no_generation
from repalign.sources.tokenizer import PROBE, Reading, context_length, load_tokenizer, pad_id

POOLINGS = ("mean", "last", "cls")
KEPT = ("cache", "past_key_values")  # what newer and older versions of transformers call the keys and values of earlier tokens


@dataclass(frozen=True)
class Tokens:
    """One text as token ids."""

    ids: list[int]
    n_bytes: int
    n_chars: int
    cut: bool  # whether the text is longer than this


def load(spec: Spec, entry: ModelEntry, context: Context, config: Any) -> HFText:
    from transformers import AutoModel, AutoModelForCausalLM

    reading = load_tokenizer(spec, context)  # before the weights, which may take minutes
    causal = is_causal(config)
    loaded = load_model(AutoModelForCausalLM if causal else AutoModel, spec, context, config, entry.label, context.spread)
    return HFText(spec, entry, loaded, config, reading, causal)


class HFText(TextModel):
    """Tokens in, pooled hidden states out; `causal` says that the model has a head that predicts the next token."""

    def __init__(self, spec: Spec, entry: ModelEntry, loaded: Loaded, config: Any, reading: Reading, causal: bool) -> None:
        self.entry, self.tokenizer = entry, reading.tokenizer
        self.device, self.placed, dtype = loaded.device, placed(loaded.places), loaded.dtype
        self.model: nn.Module = loaded.model if causal else _text_side(loaded.model, config, entry.label)
        missing = within(loaded.model, self.model, loaded.missing)
        self.context = context_length(config, self.tokenizer)
        self.pad = pad_id(config, self.tokenizer)
        self.accepts = set(inspect.signature(self.model.forward).parameters)
        self.vocabulary = _vocabulary(self.model)
        self._refuse_beyond(self._probe(), "the probe")
        self.full: int | None = None  # the length that every text is padded to, where padding is part of the model
        self.full = self._full_length()
        self.masked = self.full is None or "attention_mask" in self.tokenizer.model_input_names
        self.side = self.tokenizer.padding_side if self.full else entry.padding
        trace, hidden = self._traced(dtype)
        refuse_missing(entry.label, trace.needed(missing, hidden[-1]))
        self.own_positions = self._check_padding(dtype)
        self.causal = self._check_causal(dtype)
        self.scored = causal and self.causal and not missing and entry.prompt is None and entry.pooling != GENERATED
        # The first token of a causal model sees itself alone: it says nothing of the text.
        if entry.pooling == GENERATED and not (causal and self.causal and not missing):
            raise no_generation(entry, "models that do not predict the next token")
        self.pooling = self.choose_pooling((*POOLINGS[:2], GENERATED) if self.causal else POOLINGS)
        self.ends = ends_of(loaded.model, self.tokenizer) if self.pooling == GENERATED else ()
        self.keeps = self.pooling == GENERATED and self._check_kept(dtype)
        ids, token = list(self.tokenizer(PROBE)["input_ids"]), self.tokenizer.cls_token_id
        self.class_is_last = token is not None and ids[0] != token == ids[-1]  # as the tokenizer of XLNet puts it
        # A BOS is the sink wherever there is one; of a first word `settle` finds out.
        self.skips_first = self.may_skip and self._has_bos(ids)
        every = [Layer(n, w) for n, w in self._describe(trace, hidden)]
        self.places = {layer.name: i for i, layer in enumerate(every)}
        self.layers = self.choose_layers(every)
        facts = {
            "pooling": self.pooling, **reading.facts, "tokens": self._which_tokens(), **self.token_facts,
            "padding": self._how_padded(), "pad_token_id": self.pad, "last_layer": every[-1].what,
            "context": self.context, **self.text_facts(),
            "bits_per_byte": "computed" if self.scored else _why_not_scored(causal, self.causal, missing, entry),
        }  # fmt: skip
        objective = _objective(causal and self.causal, config)
        libraries, dtypes = ("transformers", "tokenizers"), (dtype, loaded.stored)
        self.describe(spec, "text", self.model, dtypes, libraries, facts, missing=missing, objective=objective)

    @torch.inference_mode()
    def settle(self, prepared: Sequence[Tokens]) -> None:
        """Leave the first word out of the mean where it is a sink."""
        if self.may_skip and not self.skips_first:
            alone = (self._run(*self._padded([p.ids]), self.own_positions).hidden_states for p in prepared)
            self.skips_first = has_sink(alone)
            self.facts |= {**self.token_facts, "tokens": self._which_tokens()}

    # --- tokens ----------------------------------------------------------------------------------

    def prepare(self, stimuli: Sequence[str], where: Sequence[str]) -> list[Tokens]:
        """Token ids of every text; one without a token, or longer than the context, is an error that names its row."""
        with quiet():  # it warns of long texts, which are refused or cut below
            encoded = self.tokenizer(list(stimuli), padding=False, truncation=False)["input_ids"]
        return [self._checked(text, ids, row) for text, ids, row in zip(stimuli, encoded, where, strict=True)]

    def _checked(self, text: str, ids: list[int], row: str) -> Tokens:
        size = (len(text.encode("utf-8")), len(text))
        if len(ids) <= self._has_bos(ids):
            raise RepalignError(
                f"model {self.entry.label}: {row} has no token", got=repr(text[:60]),
                expected="a text of which the tokenizer makes at least one token", remedy="leave such rows out of the dataset",
            )  # fmt: skip
        self._refuse_beyond(ids, row)
        most = None if self.context is None else max(1, self.context + 1 - (self.entry.tokens or 1))  # and what is generated
        if most is None or len(ids) <= most:
            return Tokens(list(ids), *size, cut=False)
        if not self.entry.truncate:
            raise self.too_long(row, most, len(ids))
        # The tokenizer cuts, not we: it keeps the tokens that belong at the end.
        short = self.tokenizer(text, truncation=True, max_length=most)["input_ids"]
        return Tokens(list(short), *size, cut=True)

    def _refuse_beyond(self, ids: Sequence[int], what: str) -> None:
        """Refuse ids that the model has no embedding for: its tokenizer is another one's."""
        if self.vocabulary is not None and max(ids, default=0) >= self.vocabulary:
            raise Unavailable(
                f"model {self.entry.label}: its tokenizer gives a token for {what} that the model has no embedding for",
                expected=f"ids below {self.vocabulary}", got=max(ids),
                remedy="put the tokenizer beside it that the model was trained with",
            )  # fmt: skip

    @property
    def apart(self) -> bool:
        """Whether only texts of one length share a pass."""
        return self.entry.padding == "none" or self.pooling == GENERATED

    def length(self, prepared: Tokens) -> int:
        return len(prepared.ids)

    def _has_bos(self, ids: Sequence[int]) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and len(ids) > 0 and ids[0] == bos

    def _which_tokens(self) -> str:
        if self.pooling == GENERATED:
            return f"the last place, mean over at most {self.entry.tokens} steps of the likeliest next token"
        if self.pooling == "cls":
            return "the last token, which is the class token" if self.class_is_last else "the first token"
        if self.pooling == "last":
            return "the last token" if self.full is None else f"the last of {self.full} places, as the model's own pooling takes it"
        if self.full is not None:
            return f"all of the text; the padding to {self.full} places, which they see, is left out"
        if not self._has_bos(self.tokenizer(PROBE)["input_ids"]):
            return NO_BOS.replace("all;", "all but the first;") if self.skips_first else NO_BOS
        kept = "without" if self.skips_first else "with"
        return f"all {kept} the beginning-of-sequence token"

    def _how_padded(self) -> str:
        if self.full is not None:
            seen = "with a mask" if self.masked else "without a mask, as its tokenizer says"
            return f"to {self.full} places on the {self.side}, {seen}: its own pooling takes the last place, padding or not"
        positions = "the model's own positions" if self.own_positions else "positions given"
        return "none: batches of one length" if self.apart else f"{self.entry.padding}, {positions}"

    # --- the pass --------------------------------------------------------------------------------

    def forward(self, prepared: Sequence[Tokens]) -> Batch:
        """All rows in one pass, or without padding, as where texts are generated, those of one length in each."""
        return self.in_passes(prepared, [len(p.ids) if self.apart else 0 for p in prepared], self._pass)

    def _pass(self, prepared: Sequence[Tokens]) -> Batch:
        tokens, mask = self._padded([p.ids for p in prepared])
        if self.pooling == GENERATED:
            states = greedy(self._step if self.keeps else self._again, tokens, int(self.entry.tokens or 1), self.ends)
            layers = {layer.name: states[self.places[layer.name]].to("cpu") for layer in self.layers}
            return Batch(layers, per_row(cut=[p.cut for p in prepared]))
        out = self._run(tokens, mask, self.own_positions)
        layers = {layer.name: out.hidden_states[self.places[layer.name]] for layer in self.layers}
        # Of a model that pools the last place, padding or not, every place counts.
        places = torch.ones_like(mask) if self.pooling == "last" and self.full is not None else mask
        batch = self.pooled(layers, places, "last" if self.pooling == "cls" and self.class_is_last else None)
        bits = self._bits(out.logits, tokens, mask, prepared) if self.scored else {}
        return Batch(batch.layers, {**per_row(cut=[p.cut for p in prepared]), **batch.extras, **bits})

    def _step(self, tokens: Tensor, kept: Any) -> tuple[Tensor, Any, list[Tensor]]:
        """One step of a greedy continuation: the tokens that are new, beside the keys and values that are kept of the others."""
        new = tokens if kept is None else tokens[:, -1:]
        out = self.model(input_ids=new, output_hidden_states=True, use_cache=True, **{self.kept_in: kept})
        return out.logits[:, -1], out[self.kept_in], [h[:, -1] for h in out.hidden_states]

    def _again(self, tokens: Tensor, kept: Any) -> tuple[Tensor, Any, list[Tensor]]:
        """The same, all tokens run again."""
        out = self._run(tokens, torch.ones_like(tokens), own_positions=True)
        return out.logits[:, -1], kept, [h[:, -1] for h in out.hidden_states]

    @torch.inference_mode()
    def _check_kept(self, dtype: torch.dtype) -> bool:
        """Whether a step beside what is kept gives the states that all tokens give, run again; that is tried out."""
        names = [name for name in KEPT if {"use_cache", name} <= self.accepts]
        if not names:
            return False
        self.kept_in = names[0]
        tokens, _ = self._padded([self._probe()[:4]])
        made = [greedy(step, tokens, 2, ()) for step in (self._step, self._again)]
        return same_states(made[0], made[1], dtype)

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and the mask of valid ones, each (b, t)."""
        longest = self.full or max(map(len, ids))
        tokens = torch.full((len(ids), longest), self.pad, dtype=torch.int64)
        mask = torch.zeros(len(ids), longest, dtype=torch.int64)
        for i, row in enumerate(ids):
            place = slice(longest - len(row), longest) if self.side == "left" else slice(0, len(row))
            tokens[i, place] = torch.tensor(row)
            mask[i, place] = 1
        return tokens.to(self.device), mask.to(self.device)

    def _run(self, tokens: Tensor, mask: Tensor, own_positions: bool, hidden: bool = True) -> Any:
        arguments: dict[str, Any] = {"input_ids": tokens, "output_hidden_states": hidden}
        if self.masked and self.accepts & {"attention_mask", "kwargs"}:
            arguments["attention_mask"] = mask
        if not own_positions:
            # Under left padding a model with learned positions would count the padding.
            arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
        if "use_cache" in self.accepts:
            arguments["use_cache"] = False
        out = self.model(**arguments)
        if hidden:
            self._refuse_other_forms(getattr(out, "hidden_states", None), tokens.shape)
        return out

    def _refuse_other_forms(self, hidden: Sequence[Tensor] | None, given: torch.Size) -> None:
        """Refuse hidden states that are not one vector for each token that went in: pooling would take others' places."""
        if not hidden or any(h.ndim != 3 or h.shape[:2] != given for h in hidden):
            raise Unavailable(
                f"model {self.entry.label}: {type(self.model).__name__} returns no hidden state for each token",
                expected=f"hidden states (b, t, d) with (b, t) = {tuple(given)}, one vector for each token that goes in",
                got=", ".join(str(tuple(h.shape)) for h in list(hidden or ())[:3]) or "none",
                remedy="read modules of it with a torch: spec, whose function builds the model and pools what they give",
            )

    # --- bits per byte ---------------------------------------------------------------------------

    @torch.inference_mode()
    def logits(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Next-token logits (b, t, v) of sequences of token ids, and these with their mask as they were padded (b, t)."""
        tokens, mask = self._padded(ids)
        return self._run(tokens, mask, self.own_positions, hidden=False).logits, tokens, mask

    def _bits(self, logits: Tensor, tokens: Tensor, mask: Tensor, prepared: Sequence[Tokens]) -> dict[str, Tensor]:
        """What the texts cost; one that was cut is left out, since its bytes are not those of its tokens."""
        extras = per_row(
            tokens=[len(p.ids) - 1 for p in prepared], bytes=[p.n_bytes for p in prepared],
            chars=[p.n_chars for p in prepared], bos=[self._has_bos(p.ids) for p in prepared],
        )  # fmt: skip
        extras["nats"] = nats(logits, tokens, mask)
        whole = torch.tensor([not p.cut for p in prepared])
        return {name: x * whole for name, x in extras.items()}

    # --- what is found out at loading ------------------------------------------------------------

    def _probe(self) -> list[int]:
        ids = list(self.tokenizer(PROBE)["input_ids"]) or [self.pad]
        while len(ids) < 4:
            ids = ids * 2
        return ids[: self.context]

    @torch.inference_mode()
    def _full_length(self) -> int | None:
        """The model's context where its own pooling takes the last place even of a padded text, as SigLIP's does.

        Such a model was trained on texts that are all padded to one length: in shorter ones it takes another token. That
        is tried out: in a padded text the last place alone goes into the pooled output, or into a module behind it.
        """
        self.masked, self.side = True, "right"
        ids = self._probe()
        tokens, mask = self._padded([ids[: max(1, len(ids) - 2)], ids])
        with passes.traced(self.model) as trace:
            out = self._run(tokens, mask, own_positions=True)
        states, pooled = (getattr(out, name, None) for name in ("last_hidden_state", "pooler_output"))
        if states is None or pooled is None or not (trace.takers(states[:, -1]) or torch.equal(pooled, states[:, -1])):
            return None
        if self.context is None or not isinstance(self.tokenizer.pad_token_id, int):
            raise Unavailable(
                f"model {self.entry.label}: it pools the last place of a text that is padded, and does not say how to pad it",
                expected="a context length, and a token to pad with",
                got=f"context {self.context}, pad token {self.tokenizer.pad_token}",
                remedy="state max_position_embeddings in config.json and pad_token in tokenizer_config.json",
            )
        if self.entry.padding not in ("right", self.tokenizer.padding_side):
            raise RepalignError(
                f"model {self.entry.label}: padding {self.entry.padding!r} does not apply", got=self.entry.padding,
                expected=f"texts padded to {self.context} places on the {self.tokenizer.padding_side}, as it was trained",
                remedy="leave `padding` out of the model's entry",
            )  # fmt: skip
        return self.context

    @torch.inference_mode()
    def _traced(self, dtype: torch.dtype) -> tuple[passes.Trace, Sequence[Tensor]]:
        tokens, mask = self._padded([self._probe()])
        with passes.traced(self.model) as trace:
            hidden = self._run(tokens, mask, own_positions=True).hidden_states
        for i, h in enumerate(hidden):
            refuse_infinite(h, f"model {self.entry.label}, layer {_name(i)}: {PROBE!r}", dtype)
        return trace, hidden

    def _describe(self, trace: passes.Trace, hidden: Sequence[Tensor]) -> Iterator[tuple[str, str]]:
        yield _name(0), trace.what(hidden[0], None)
        for i, h in enumerate(hidden[1:]):
            behind = "" if trace.block(h, i) else f", behind block {i}"
            yield _name(i + 1), trace.what(h, i) + behind

    @torch.inference_mode()
    def _check_padding(self, dtype: torch.dtype) -> bool:
        """Whether the model's own positions are right beside padding, or have to be given; that is tried out."""
        if self.entry.padding == "none" or self.full is not None:
            return True
        ids = self._probe()
        tokens, mask = self._padded([[*ids, *ids][: self.context], ids[: max(1, len(ids) - 2)]])
        short = mask[1].bool()
        single, one = self._padded([ids[: int(short.sum())]])
        alone = self._run(single, one, own_positions=True).hidden_states
        ways = [True] if "position_ids" not in self.accepts else [self.entry.padding == "right", True, False]
        for own in dict.fromkeys(ways):
            beside = self._run(tokens, mask, own_positions=own).hidden_states
            if same_states([b[1][short.to(b.device)] for b in beside], [a[0] for a in alone], dtype):
                return own
        raise RepalignError(
            f"model {self.entry.label}: a text has other hidden states when it is padded on the {self.entry.padding}",
            expected="a model that leaves padding out", got=type(self.model).__name__,
            remedy="set `padding: none` on the model, so that only texts of one length share a batch",
        )  # fmt: skip

    @torch.inference_mode()
    def _check_causal(self, dtype: torch.dtype) -> bool:
        """Whether tokens do not see those behind them: only then do bits per byte mean anything, and the first is a sink."""
        if self.full is not None:
            return False  # its last place sees the text, and padding is part of it
        tokens, mask = self._padded([self._probe()])
        return sees_only_back(
            lambda ids: self._run(ids, mask, own_positions=True).hidden_states, tokens, tokens.shape[1] // 2, dtype
        )


def _vocabulary(model: Any) -> int | None:
    """How many tokens a model has embeddings for; None where it has no table of them."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def ends_of(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a text: those that the model's files say generation stops at, else the tokenizer's."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    return () if found is None else tuple(found) if isinstance(found, (list, tuple)) else (int(found),)


def _name(hidden_state: int) -> str:
    return f"block.{hidden_state - 1}" if hidden_state else "embeddings"


def is_causal(config: Any) -> bool:
    """Whether the architecture predicts the next token: it has such a head, and none for masked tokens."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        return False
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return bool(getattr(config, "is_decoder", False))
    remote = getattr(config, "auto_map", None) or {}
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in remote


def _text_side(model: Any, config: Any, label: str) -> nn.Module:
    """The module that makes hidden states of text: an encoder, or the text side of a model that also sees."""
    if getattr(config, "is_encoder_decoder", False):
        side = model.get_encoder()
    elif getattr(config, "vision_config", None) is None:
        side = model
    else:
        side = getattr(model, "text_model", None) or getattr(model, "language_model", None)
    if side is None:
        raise Unavailable(
            f"model {label}: {type(model).__name__} has no text side that is known",
            expected="a module text_model or language_model", got=", ".join(n for n, _ in model.named_children()),
            remedy="name its modules with a torch: spec",
        )  # fmt: skip
    return side


def _objective(causal: bool, config: Any) -> str | None:
    if causal:
        return "next token"
    masked = any("MaskedLM" in a for a in getattr(config, "architectures", None) or ())
    return "masked token" if masked else None


def _why_not_scored(architecture: bool, causal: bool, missing: Sequence[str], entry: ModelEntry) -> str:
    if not architecture:
        return "not computed: not a causal language model"
    if not causal:
        return "not computed: tokens see those behind them"
    if missing:
        return f"not computed: the model's files lack {missing[0]}"
    return "not computed: texts stand in a prompt" if entry.prompt is not None else "not computed: the model goes on with the texts"
