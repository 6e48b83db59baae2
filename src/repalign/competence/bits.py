"""Bits per byte of a causal language model on a text corpus, with every choice of the protocol said and stored.

The paper's yardstick of language models is 1 - bits per byte on 4M tokens of OpenWebText; context length, stride, document
borders and the first token are not stated there. Each is a field of `BitsProtocol` here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from repalign.competence._scoring import BitsProtocol, Reader, Totals, chained, utf8
from repalign.competence._state import read_state, refuse_other, write_json
from repalign.competence._windows import Window
from repalign.competence.corpus import Corpus, as_corpus
from repalign.dataset import Dataset
from repalign.errors import RepalignError, Unavailable
from repalign.models import ModelRecord
from repalign.sources import Context, ModelEntry, choose_device, parse_spec
from repalign.sources.hf_text import HFText
from repalign.sources.model import SPREAD, loading, versions
from repalign.text import Progress, silent

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
    model: ModelEntry | str,
    corpus: Corpus | Dataset | Iterable[str],
    protocol: BitsProtocol | None = None,
    *,
    state: str | Path | None = None,
    every: int = 64,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Bits:
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
    spread = SPREAD.get(device, "never")
    device, revision = choose_device(device), spec.source.revision(spec, entry)
    run = {
        "model": str(spec),
        "revision": revision,
        "corpus": texts.source,
        "corpus_sha256": texts.sha256(),
        "asked": asdict(protocol),
        "batch_size": batch_size,
        "every": every,
        "padding": entry.padding,
        "dtype": dtype,
        "device": device,
        "versions": versions("transformers", "tokenizers"),
    }
    path = None if state is None else Path(state)
    held = None if path is None else read_state(path, KIND)
    if path is not None and held is not None:
        is_told = held["complete"] and None not in (run["corpus_sha256"], held.get("corpus_sha256"))
        # A run that goes on checks the documents that it skips; of a finished one the digest tells, where there is one.
        refuse_other(path, {k: v for k, v in run.items() if is_told or k != "corpus_sha256"}, held)
        if held["complete"]:
            return _told(held, entry)
    context = Context(device, dtype, trust_remote_code, (), revision, progress, spread)
    with loading(entry.label, Unavailable):
        source = spec.source.load(spec, entry, context)
    if not isinstance(source, HFText) or not source.scored:
        raise _no_causal(entry, source.facts.get("bits_per_byte", "a model that reads no text"))
    reader = Reader(source, protocol, batch_size)
    totals = Totals() if held is None else Totals(**held["totals"])
    if held is not None:
        reader.windows.restore(held["windows"])
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
        found |= {"complete": False, "totals": asdict(totals), "windows": reader.windows.state()}
        if path is not None:
            write_json(path, found)
        _report(progress, totals, texts, protocol)
    totals.nats += reader.nats([reader.windows.end()])
    found |= {"complete": True, "totals": asdict(totals), "windows": reader.windows.state()}
    if not totals.n_tokens or not totals.n_bytes:
        raise RepalignError(
            f"{texts.source}: there is no token to score", expected="text", got=f"{totals.n_documents} documents"
        )
    if not math.isfinite(totals.nats):
        raise RepalignError(
            f"model {entry.label}: the costs of {texts.source} are not finite",
            expected="finite logits",
            got=totals.nats,
            remedy='run it with dtype="bfloat16" or "float32"',
        )
    if path is not None:
        write_json(path, found)
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


def _skipped(documents: Iterator[str], totals: Totals, path: Path | None) -> Iterator[str]:
    """The documents behind those that are done, which are checked to be the same as they were."""
    digest = ""
    for text in islice(documents, totals.n_documents):
        digest = chained(digest, text.encode("utf-8"))
    if digest != totals.digest:
        raise RepalignError(
            f"{path}: the corpus has changed since this run was stopped",
            expected=f"the same first {totals.n_documents} documents",
            got="others",
            remedy="delete the file to start again",
        )
    return documents


def _report(progress: Progress, totals: Totals, corpus: Corpus, protocol: BitsProtocol) -> None:
    if protocol.max_tokens is not None:
        progress("bits per byte", min(totals.n_tokens, protocol.max_tokens), protocol.max_tokens)
    elif corpus.n is not None:
        progress("bits per byte", totals.n_documents, corpus.n)
    else:
        progress("bits per byte", totals.n_documents, 0)  # how many there are is not known


def _told(found: dict[str, Any], entry: ModelEntry) -> Bits:
    """The result of a finished run, as its file has it."""
    totals = found["totals"]
    facts = {**found["facts"], "corpus": found["corpus"], "corpus_digest": totals["digest"]}
    facts.setdefault("device", found["device"])  # that which was asked for, where the model was on one
    counts = {k: totals[k] for k in ("nats", "n_tokens", "n_bytes", "n_chars", "n_documents")}
    bits = Bits(
        entry.complete(ModelRecord.from_dict(found["record"])), **counts, protocol=found["protocol"], facts=facts
    )
    return replace(bits, record=replace(bits.record, scores={**bits.record.scores, **bits.scores}))


def _no_causal(entry: ModelEntry, got: str) -> RepalignError:
    return RepalignError(
        f"model {entry.label}: bits per byte are of causal language models",
        expected="hf:org/name or hf:./folder with a model that predicts the next token",
        got=got,
    )
