"""The tokenizer of a text model of the transformers library: loaded, checked, and what it leaves open."""

from __future__ import annotations

from typing import Any

from repalign.errors import Unavailable
from repalign.extract._base import Context
from repalign.extract._files import at, first_line, hub_errors
from repalign.models import Spec

PROBE = "A brown dog runs across the wide green field."


def load_tokenizer(spec: Spec, context: Context) -> Any:
    """The tokenizer beside a model; Unavailable if there is none, or one that knows no token."""
    from transformers import AutoTokenizer

    with hub_errors(spec):
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                spec.path, trust_remote_code=context.trust_remote_code, **at(spec, context.revision)
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # where files are lacking
            raise _no_tokenizer(spec, first_line(error)) from error
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    if set(ids) <= {tokenizer.unk_token_id}:  # without files some classes make a tokenizer that knows nothing
        raise _no_tokenizer(spec, f"a tokenizer that makes {ids[:4]} of {PROBE!r}")
    tokenizer.truncation_side = "right"
    return tokenizer


def _no_tokenizer(spec: Spec, got: str) -> Unavailable:
    return Unavailable(
        f"model {spec}: its tokenizer cannot be loaded: {got}",
        expected="tokenizer.json and tokenizer_config.json beside the model",
        got=got,
        remedy="save it there with tokenizer.save_pretrained(folder)",
    )


def context_length(config: Any, tokenizer: Any) -> int | None:
    """The most tokens that the model takes; None if there is no limit, as with relative positions."""
    config = getattr(config, "text_config", None) or config
    stated = [getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    limits = [int(s) for s in stated if s is not None and 0 < s < 10**9]  # tokenizers say 1e30 for no limit
    return min(limits, default=None)


def pad_id(config: Any, tokenizer: Any) -> int:
    """A token to pad with that the model has; the mask leaves it out, so any will do."""
    config = getattr(config, "text_config", None) or config
    size = getattr(config, "vocab_size", 0)
    known = (
        tokenizer.pad_token_id,
        getattr(config, "pad_token_id", None),
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    )
    return next((int(i) for i in known if isinstance(i, int) and 0 <= i < size), 0)
