"""Bits per byte of a causal language model on a text corpus, with every choice of the protocol said and stored.

The paper's yardstick of language models is 1 - bits per byte on 4M tokens of OpenWebText; context length, stride, document
borders and the first token are not stated there. Each is a field of `BitsProtocol` here.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch

from repalign.competence.corpus import Corpus, as_corpus
from repalign.dataset import Dataset
from repalign.errors import RepalignError, Unavailable, choose
from repalign.files import SEAL, DamagedError, Url, parse_json, place_of, read_bytes, seal_json, write_file
from repalign.models import ModelRecord
from repalign.sources import Context, ModelEntry, choose_device, parse_spec
from repalign.sources.hf import quiet
from repalign.sources.hf_text import HFText
from repalign.sources.model import SPREAD, library_errors, versions
from repalign.sources.pooling import costs
from repalign.sources.tokenizer import PROBE
from repalign.text import Progress, silent

# --- windows over a stream of tokens ----------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Token ids that go through the model together, and the places of those that are scored."""

    ids: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass
class Windows:
    """Cuts a stream into windows of at most `context` tokens that move on by `stride`.

    A window scores what the one before has not scored, so that a scored token sees all of the stream before it, or at
    least `context - stride` tokens. `lead` is put in front of every window but does not belong to the stream.
    """

    context: int
    stride: int
    lead: tuple[int, ...] = ()
    held: list[int] = field(default_factory=list)  # from the first token of the next window on
    due: list[bool] = field(default_factory=list)  # which of them are still to be scored

    def add(self, ids: Sequence[int] = (), scored: Sequence[bool] = (), *, last: bool = False) -> list[Window]:
        """The windows that are full with these tokens; one that is only just full waits for more, or is the `last`."""
        self.held += ids
        self.due += scored
        out, lead = [], len(self.lead)
        size = self.context - lead
        while len(self.held) > size or (last and self.held):
            due = self.due[:size]
            if any(due):
                out.append(Window((*self.lead, *self.held[:size]), tuple(lead + i for i, d in enumerate(due) if d)))
            self.due[:size] = [False] * len(due)
            step = self.stride if len(self.held) > size else size
            del self.held[:step], self.due[:step]
        return out


# --- how text is cut, scored and counted ------------------------------------------------------------


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
            choose(option, value, known, f"bits per byte: unknown {option} {value!r}")
        for option, least in (("context", 2), ("stride", 1), ("max_tokens", 1)):
            value = getattr(self, option)
            if value is not None and value < least:
                raise RepalignError(f"bits per byte: {option} is out of range", expected=f">= {least}", got=value)
        if self.documents == "joined" and self.bos_in == "every":
            raise RepalignError(
                "bits per byte: BOS in every window does not go with joined documents",
                expected='bos_in="first", or documents="separate"', got='bos_in="every", documents="joined"'
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


def utf8(text: str, number: int) -> bytes:
    try:
        return text.encode("utf-8")
    except (UnicodeEncodeError, AttributeError) as error:
        raise RepalignError(
            f"document {number} is no text that has a UTF-8", expected="a string", got=str(error),
            remedy="mend or drop it"
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
            **asdict(protocol), "context": context, "stride": stride, "first_tokens": list(self.lead),
            "first_token": "scored after them" if self.lead else "not scored", "log_softmax": "float32",
        }  # fmt: skip

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
                expected="the tokens of the text in one piece", got=whole[:6], remedy='say bos="never"',
            )  # fmt: skip
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
                f"model {label}: a context of {context} is more than it has", expected=f"at most {limit} tokens",
                got=context, remedy=f"say context={limit}, for all models that are compared"
            )
        stride = self.protocol.stride or max(1, context // 2)
        if stride > context - max(1, lead):
            raise RepalignError(
                f"model {label}: with this stride tokens would be without context, or left out",
                expected=f"1 to {context - max(1, lead)}", got=stride
            )
        return context, stride

    def encode(self, texts: Sequence[str], left_out: bool) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids and, where bytes of first tokens are left out, the characters that they stand for."""
        tokenizer = self.source.tokenizer
        if left_out and not tokenizer.is_fast:
            raise RepalignError(
                f"model {self.source.entry.label}: its tokenizer does not tell the characters of a token",
                expected="a fast tokenizer (tokenizer.json)", got=type(tokenizer).__name__,
                remedy='say first_token_bytes="count"'
            )
        with quiet():  # it warns of texts beyond the context, which are cut into windows here
            found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=left_out)
        spans = found["offset_mapping"] if left_out else [[] for _ in texts]
        return [(list(ids), list(span)) for ids, span in zip(found["input_ids"], spans, strict=True)]

    def document(
        self, text: str, data: bytes, ids: list[int], spans: list[tuple[int, int]], totals: Totals
    ) -> list[Window]:
        """The windows that a document completes; totals get its tokens, bytes and characters."""
        totals.n_bytes += len(data)
        totals.n_chars += len(text)
        totals.n_documents += 1
        totals.digest = chained(totals.digest, data)
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
        return self.windows.add([*front, *ids], [*(False for _ in front), *due], last=not joined)

    def nats(self, documents: Sequence[Sequence[Window]]) -> float:
        """The costs of all scored tokens, batches made of windows of like length."""
        windows = sorted((w for found in documents for w in found), key=lambda w: len(w.ids))
        apart = self.source.entry.padding == "none"  # then no batch has windows of two lengths
        alike = [list(some) for _, some in groupby(windows, key=lambda w: len(w.ids) if apart else 0)]
        batches = (some[i : i + self.batch_size] for some in alike for i in range(0, len(some), self.batch_size))
        return sum((math.fsum(_nats(self.source, batch)) for batch in batches), 0.0)


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


# --- the measurement --------------------------------------------------------------------------------


KIND = "bits per byte"  # of a corpus, as the file calls itself


@dataclass(frozen=True)
class Bits:
    """What a corpus costs a model.

    bits_per_byte = nats / ln 2 / n_bytes, with `nats` the sum of -ln p(token | tokens before it) over `n_tokens` scored
    tokens, log-softmax in float32, sums in float64. `protocol` has what the options came to for this model, `facts` the
    dtype, device, versions and digests. `record` is the model with these scores.
    """

    record: ModelRecord
    nats: float
    n_tokens: int
    n_bytes: int
    n_chars: int
    n_documents: int
    protocol: dict[str, Any]
    facts: dict[str, Any]

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8, >= 0; lower is better."""
        return self.nats / math.log(2) / self.n_bytes

    @property
    def bits_per_char(self) -> float:
        """Bits per character (code point), >= 0."""
        return self.nats / math.log(2) / self.n_chars

    @property
    def nats_per_token(self) -> float:
        """Nats per scored token; tokens differ between tokenizers, so this compares models of one tokenizer only."""
        return self.nats / self.n_tokens

    @property
    def scores(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("bits_per_byte", "bits_per_char", "nats_per_token")}


def bits_per_byte(
    model: ModelEntry | str, corpus: Corpus | Dataset | Iterable[str], protocol: BitsProtocol | None = None, *,
    state: str | Path | None = None, every: int = 64, batch_size: int = 8, device: str = "auto", dtype: str = "auto",
    trust_remote_code: bool = False, progress: Progress = silent,
) -> Bits:  # fmt: skip
    """Bits per byte of a causal language model on a corpus.

    Parameters
    ----------
    model : a spec string (`hf:org/name[@revision]`, `hf:./folder`) or an entry.
    corpus : documents; strings at hand, the text column of a dataset, or a `Corpus` (a text file, a table, the hub).
    protocol : every choice; see `BitsProtocol`, whose defaults hold without one.
    state : a JSON file written (by renaming) after `every` documents and at the end. With it a run that was killed goes on
        where it stopped and ends with the same number, and one that is finished is read back without running the model.
        Joined documents carry over at most one context of tokens; a single long document is done as a whole.
    batch_size : windows that go through the model together, of like length.
    device, dtype : as in `extract`: "auto" is float32 on the CPU, and on a GPU the dtype that the weights are stored in,
        over several GPUs where one is too small; "sharded" is over all of them.

    Raises
    ------
    Unavailable : a model that is not to be had here and now, as in `extract`.
    RepalignError : no causal language model; a context that it does not have; no byte to count; a state file of another
        run; a corpus that has changed under a run that is resumed.
    """
    entry = ModelEntry(model) if isinstance(model, str) else replace(model, prompt=None)  # a prompt is for captions
    texts, protocol = as_corpus(corpus), protocol or BitsProtocol()
    if every < 1 or batch_size < 1:
        raise RepalignError("every and batch_size are out of range", expected="at least 1", got=(every, batch_size))
    spec = parse_spec(entry.spec)
    if not spec.source.measures_bits:
        raise _no_causal(entry, f"a {spec.scheme}: model")
    spec.source.require(entry)
    spread = SPREAD.get(device, "never")
    device, revision = choose_device(device), spec.source.revision(spec, entry)
    run = {
        "model": str(spec), "revision": revision, "corpus": texts.source, "corpus_sha256": texts.sha256(),
        "asked": asdict(protocol), "batch_size": batch_size, "every": every, "padding": entry.padding, "dtype": dtype,
        "device": device, "versions": versions("transformers", "tokenizers"),
    }  # fmt: skip
    path = None if state is None else place_of(state)
    held = None if path is None else read_state(path, KIND)
    if path is not None and held is not None:
        is_told = held["complete"] and None not in (run["corpus_sha256"], held.get("corpus_sha256"))
        # A run that goes on checks the documents that it skips; of a finished one the digest tells, where there is one.
        refuse_other(path, {k: v for k, v in run.items() if is_told or k != "corpus_sha256"}, held)
        if held["complete"]:
            return _told(held, entry)
    context = Context(device, dtype, trust_remote_code, (), revision, progress, spread)
    with library_errors(entry.label, "loading it, or its first pass,", Unavailable, alone=True):
        source = spec.source.load(spec, entry, context)
    if not isinstance(source, HFText) or not source.scored:
        raise _no_causal(entry, source.facts.get("bits_per_byte", "a model that reads no text"))
    reader = Reader(source, protocol, batch_size)
    totals = Totals() if held is None else Totals(**held["totals"])
    windows = reader.windows
    if held is not None:
        windows.held, windows.due = list(held["windows"]["held"]), [bool(d) for d in held["windows"]["due"]]
    found: dict[str, Any] = {
        "kind": KIND,
        **run,
        "record": replace(entry.complete(source.record), revision=revision).to_dict(),
        "protocol": reader.told,
        "facts": {k: source.facts[k] for k in ("architecture", "dtype", "stored_dtype", "versions")}
        | {"weights": source.weights, **source.placed},
    }
    documents = _skipped(iter(texts), totals, path)
    _report(progress, totals, texts, protocol)
    while block := _block(documents, reader, totals, every):
        totals.nats += reader.nats(block)
        state_now = {"held": windows.held, "due": [int(d) for d in windows.due]}
        found |= {"complete": False, "totals": asdict(totals), "windows": state_now}
        if path is not None:
            write_file(path, seal_json(found, allow_nan=False))
        _report(progress, totals, texts, protocol)
    totals.nats += reader.nats([windows.add(last=True)])
    found |= {"complete": True, "totals": asdict(totals), "windows": {"held": [], "due": []}}
    if not totals.n_tokens or not totals.n_bytes:
        raise RepalignError(f"{texts.source}: there is no token to score", expected="text", got=f"{totals.n_documents} documents")
    if not math.isfinite(totals.nats):
        raise RepalignError(
            f"model {entry.label}: the costs of {texts.source} are not finite", expected="finite logits",
            got=totals.nats, remedy='run it with dtype="bfloat16" or "float32"'
        )
    if path is not None:
        write_file(path, seal_json(found, allow_nan=False))
    progress("bits per byte", totals.n_documents, totals.n_documents)
    return _told(found, entry)


def _block(documents: Iterator[str], reader: Reader, totals: Totals, every: int) -> list[list[Window]]:
    """The windows of the next documents; none at the end of the corpus, or of the tokens that were asked for."""
    most = reader.protocol.max_tokens
    left_out = reader.protocol.first_token_bytes == "leave_out" and not reader.lead
    out: list[list[Window]] = []
    if most is not None and totals.n_tokens >= most:
        return out
    texts = list(islice(documents, every))
    bytes_ = [utf8(text, totals.n_documents + i) for i, text in enumerate(texts)]
    encoded = reader.encode(texts, left_out) if texts else []
    for text, data, (ids, spans) in zip(texts, bytes_, encoded, strict=True):
        out.append(reader.document(text, data, ids, spans, totals))
        if most is not None and totals.n_tokens >= most:
            break
    return out


def _skipped(documents: Iterator[str], totals: Totals, path: Path | Url | None) -> Iterator[str]:
    """The documents behind those that are done, which are checked to be the same as they were."""
    digest = ""
    for text in islice(documents, totals.n_documents):
        digest = chained(digest, text.encode("utf-8"))
    if digest != totals.digest:
        raise RepalignError(
            f"{path}: the corpus has changed since this run was stopped",
            expected=f"the same first {totals.n_documents} documents", got="others",
            remedy="delete the file to start again"
        )
    return documents


def _report(progress: Progress, totals: Totals, corpus: Corpus, protocol: BitsProtocol) -> None:
    if protocol.max_tokens is not None:
        progress("bits per byte", min(totals.n_tokens, protocol.max_tokens), protocol.max_tokens)
    else:
        progress("bits per byte", totals.n_documents, corpus.n or 0)  # 0: how many there are is not known


def _told(found: dict[str, Any], entry: ModelEntry) -> Bits:
    """The result of a finished run, as its file has it."""
    totals = found["totals"]
    facts = {**found["facts"], "corpus": found["corpus"], "corpus_digest": totals["digest"]}
    facts.setdefault("device", found["device"])  # that which was asked for, where the model was on one
    counts = {k: totals[k] for k in ("nats", "n_tokens", "n_bytes", "n_chars", "n_documents")}
    bits = Bits(entry.complete(ModelRecord(**found["record"])), **counts, protocol=found["protocol"], facts=facts)
    return replace(bits, record=replace(bits.record, scores={**bits.record.scores, **bits.scores}))


def _no_causal(entry: ModelEntry, got: str) -> RepalignError:
    return RepalignError(
        f"model {entry.label}: bits per byte are of causal language models",
        expected="hf:org/name or hf:./folder with a model that predicts the next token", got=got
    )


# --- what a run has got so far ----------------------------------------------------------------------


log = logging.getLogger(__name__)


def read_state(path: Path | Url, kind: str) -> dict[str, Any] | None:
    """The file's value, or None where there is none, or one that was damaged: the log says so, and it is made again.

    Raises RepalignError for a file that is something else, which is not written over.
    """
    if not path.exists():
        return None
    data = read_bytes(path)
    try:
        value, has_seal = parse_json(data, path)
    except DamagedError as error:
        if SEAL.encode() in data or not data.strip(b"\0 \n"):  # ours, or what a crash leaves of a file
            log.warning("%s %s; it is measured again", path, error.problem)
            return None
        raise
    if value.get("kind") != kind:
        raise RepalignError(f"{path} is not a {kind}", remedy="name another file")
    if not has_seal:
        log.warning("%s was written before such files had seals: nothing shows whether it is whole", path)
    return value


def refuse_other(path: Path | Url, mine: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse to go on with a file of another run, naming the first thing that differs."""
    for name in mine:
        if found.get(name) != mine[name]:
            raise RepalignError(
                f"{path} is of another run: {name} differs", expected=mine[name], got=found.get(name),
                remedy="name another file, or delete this one to start again"
            )
