"""How text is cut into windows, scored and counted: the protocol, and the model's side of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from repalign.competence._windows import Window, Windows
from repalign.errors import RepalignError, did_you_mean
from repalign.sources.hf import quiet
from repalign.sources.hf_text import HFText
from repalign.sources.model import library_errors
from repalign.sources.passes import costs
from repalign.sources.tokenizer import PROBE

LONGEST = 2048  # tokens of context where none is asked for
CHOICES = {
    "bos": ("tokenizer", "always", "never"),
    "bos_in": ("first", "every"),
    "documents": ("separate", "joined"),
    "first_token_bytes": ("count", "leave_out"),
}


@dataclass(frozen=True)
class BitsProtocol:
    """How text is cut, what is scored and what is counted.

    * `context`: tokens that the model sees at once, BOS included; None: its limit, at most 2,048. Models of different
      limits are compared at one context that all of them have.
    * `stride`: by how many tokens the window moves on, from 1 to context - 1; None: half the context. Every token is
      scored once, with all of its document before it or at least context - stride tokens.
    * `bos`: "tokenizer": a document begins as the tokenizer begins a text, with BOS or without; "always": with BOS even
      where the tokenizer adds none; "never": without.
    * `bos_in`: "first": BOS stands in the first window of a document; "every": in all (models that were never trained
      without it lose much in windows that lack it).
    * `documents`: "separate": no context across documents; "joined": one stream, BOS between documents where it is used.
    * `first_token_bytes`: a document's first token has nothing to be predicted from without BOS and is not scored.
      "count": its bytes count all the same, which makes bits per byte too low; "leave_out": they do not. A character
      that the first token shares with the next counts. With BOS all tokens are scored and the option changes nothing.
    * `max_tokens`: the corpus ends with the document in which so many tokens have been scored; None: with its last.

    Special tokens that a tokenizer puts behind a text are left out. Bytes are those of the text in UTF-8.
    """

    context: int | None = None
    stride: int | None = None
    bos: str = "tokenizer"
    bos_in: str = "first"
    documents: str = "separate"
    first_token_bytes: str = "count"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for option, known in CHOICES.items():
            value = getattr(self, option)
            if value not in known:
                raise RepalignError(
                    f"bits per byte: unknown {option} {value!r}",
                    expected=" or ".join(map(repr, known)),
                    got=value,
                    remedy=did_you_mean(str(value), known),
                )
        for option, least in (("context", 2), ("stride", 1), ("max_tokens", 1)):
            value = getattr(self, option)
            if value is not None and value < least:
                raise RepalignError(f"bits per byte: {option} is out of range", expected=f">= {least}", got=value)
        if self.documents == "joined" and self.bos_in == "every":
            raise RepalignError(
                "bits per byte: BOS in every window does not go with joined documents",
                expected='bos_in="first", or documents="separate"',
                got='bos_in="every", documents="joined"',
            )


@dataclass
class Totals:
    """All that a run has to remember to go on: it stands in the state file."""

    nats: float = 0.0
    n_tokens: int = 0
    n_bytes: int = 0
    n_chars: int = 0
    n_documents: int = 0
    digest: str = ""  # of the documents so far, chained

    def take(self, text: str, data: bytes) -> None:
        self.n_bytes += len(data)
        self.n_chars += len(text)
        self.n_documents += 1
        self.digest = chained(self.digest, data)


def utf8(text: str, number: int) -> bytes:
    try:
        return text.encode("utf-8")
    except (UnicodeEncodeError, AttributeError) as error:
        raise RepalignError(
            f"document {number} is no text that has a UTF-8",
            expected="a string",
            got=str(error),
            remedy="mend or drop it",
        ) from error


def chained(digest: str, data: bytes) -> str:
    """The digest of a series of texts with one more: SHA-256 over the digest so far and that of the text."""
    return hashlib.sha256(digest.encode() + hashlib.sha256(data).digest()).hexdigest()


class Reader:
    """The model's side: text to windows, windows to nats."""

    def __init__(self, source: HFText, protocol: BitsProtocol, batch_size: int) -> None:
        self.source, self.protocol, self.batch_size = source, protocol, batch_size
        self.lead = self._lead()
        every = self.lead if protocol.bos_in == "every" else ()
        context, stride = self._sizes(len(every))
        self.windows = Windows(context, stride, every)
        self.told = {
            **asdict(protocol),
            "context": context,
            "stride": stride,
            "first_tokens": list(self.lead),
            "first_token": "scored after them" if self.lead else "not scored",
            "log_softmax": "float32",
        }

    def _lead(self) -> tuple[int, ...]:
        """The token ids that a document begins with."""
        tokenizer, label = self.source.tokenizer, self.source.entry.label
        if self.protocol.bos == "never":
            return ()
        plain, whole = (list(tokenizer(PROBE, add_special_tokens=s)["input_ids"]) for s in (False, True))
        starts = [i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain]
        if not starts:
            raise RepalignError(
                f"model {label}: its tokenizer does not put special tokens in front of a text, but into it",
                expected="the tokens of the text in one piece",
                got=whole[:6],
                remedy='say bos="never"',
            )
        if starts[0] or self.protocol.bos == "tokenizer":
            return tuple(whole[: starts[0]])
        if tokenizer.bos_token_id is None:
            raise RepalignError(
                f"model {label}: its tokenizer has no BOS", expected='bos="tokenizer" or "never"', got='bos="always"'
            )
        return (int(tokenizer.bos_token_id),)

    def _sizes(self, lead: int) -> tuple[int, int]:
        """Context and stride, checked against what the model has."""
        label, limit = self.source.entry.label, self.source.context
        context = self.protocol.context or min(limit or LONGEST, LONGEST)
        if limit is not None and context > limit:
            raise RepalignError(
                f"model {label}: a context of {context} is more than it has",
                expected=f"at most {limit} tokens",
                got=context,
                remedy=f"say context={limit}, for all models that are compared",
            )
        stride = self.protocol.stride or max(1, context // 2)
        if stride > context - max(1, lead):
            raise RepalignError(
                f"model {label}: with this stride tokens would be without context, or left out",
                expected=f"1 to {context - max(1, lead)}",
                got=stride,
            )
        return context, stride

    def encode(self, texts: Sequence[str], left_out: bool) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids and, where bytes of first tokens are left out, the characters that they stand for."""
        tokenizer = self.source.tokenizer
        if left_out and not tokenizer.is_fast:
            raise RepalignError(
                f"model {self.source.entry.label}: its tokenizer does not tell the characters of a token",
                expected="a fast tokenizer (tokenizer.json)",
                got=type(tokenizer).__name__,
                remedy='say first_token_bytes="count"',
            )
        with quiet():  # it warns of texts beyond the context, which are cut into windows here
            found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=left_out)
        spans = found["offset_mapping"] if left_out else [[] for _ in texts]
        return [(list(ids), list(span)) for ids, span in zip(found["input_ids"], spans, strict=True)]

    def document(
        self, text: str, data: bytes, ids: list[int], spans: list[tuple[int, int]], totals: Totals
    ) -> list[Window]:
        """The windows that a document completes; totals get its tokens, bytes and characters."""
        totals.take(text, data)
        joined = self.protocol.documents == "joined"
        starts = not joined or totals.n_tokens + len(self.windows.held) == 0  # nothing stands before it
        front = self.lead if self.windows.lead == () else ()
        due = [True] * len(ids)
        if ids and starts and not self.lead:
            due[0] = False
            if spans:
                unscored = text[: min(spans[0][1], spans[1][0] if len(spans) > 1 else len(text))]
                totals.n_bytes -= len(unscored.encode("utf-8"))
                totals.n_chars -= len(unscored)
        totals.n_tokens += sum(due)
        windows = self.windows.add([*front, *ids], [*(False for _ in front), *due])
        return windows if joined else windows + self.windows.end()

    def nats(self, documents: Sequence[Sequence[Window]]) -> float:
        """The costs of all scored tokens, batches made of windows of like length."""
        windows = sorted((w for found in documents for w in found), key=lambda w: len(w.ids))
        total = 0.0
        for batch in self._batches(windows):
            total += math.fsum(_nats(self.source, batch))
        return total

    def _batches(self, windows: list[Window]) -> Iterator[list[Window]]:
        batch: list[Window] = []
        for window in windows:
            other_length = self.source.entry.padding == "none" and batch and len(batch[0].ids) != len(window.ids)
            if len(batch) == self.batch_size or other_length:
                yield batch
                batch = []
            batch.append(window)
        if batch:
            yield batch


@torch.inference_mode()
def _nats(source: HFText, windows: Sequence[Window]) -> list[float]:
    """-sum ln p of the scored tokens of each window."""
    with library_errors(source.entry.label, "a forward pass"):
        logits, tokens, mask = source.logits([w.ids for w in windows])
    out = []
    for i, window in enumerate(windows):
        places = mask[i].nonzero().flatten()  # of the window's tokens, among padding
        out.append(costs(logits[i], tokens[i], places[torch.tensor(window.scored, device=places.device)]))
    return out
