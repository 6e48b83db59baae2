"""Bits per byte of a corpus: against a plain loop over windows, the bed's measured values, and a killed run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from repalign.competence import BitsProtocol, Corpus, bits_per_byte
from repalign.competence.bits import Windows
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.sources import ModelEntry

TEXTS = [
    " ".join(tiny_models.CAPTIONS),
    "Snow.",
    "",
    "Café terrace, naïve façade: Ωmega! " * 4,
    *tiny_models.CAPTIONS[:5],
    "é",
]
BITS_PER_CHAR = {"stories260k": 2.831485, "babyllama105": 2.810072}  # measured outside, on the bed's captions


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"bos": tiny_models.llama(folder / "bos"), "none": tiny_models.gpt2(folder / "none")}


def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def plain(model: Any, sequences: list[list[int]], context: int, stride: int, skip: frozenset[int] = frozenset()) -> float:
    """Nats: one window after another, one at a time, as the transformers documentation has it."""
    total = 0.0
    for ids in sequences:
        before = 0
        for begin in range(0, len(ids), stride):
            end = min(begin + context, len(ids))
            logp = model(torch.tensor([ids[begin:end]])).logits[0].double().log_softmax(-1)
            for place in range(max(before, begin + 1), end):
                if place not in skip:
                    total -= float(logp[place - 1 - begin, ids[place]])
            before = end
            if end == len(ids):
                break
    return total


@pytest.mark.parametrize("context, stride", [(16, 5), (16, 15), (64, 32), (96, None)])
@pytest.mark.parametrize("kind", ["bos", "none"])
def test_agrees_with_a_plain_loop(kind, context, stride, models):
    model, tokenizer = loaded(models[kind])
    sequences = [tokenizer(t)["input_ids"] for t in TEXTS]
    found = bits_per_byte(f"hf:{models[kind]}", TEXTS, BitsProtocol(context=context, stride=stride), every=3, batch_size=4)
    nats = plain(model, sequences, context, stride or context // 2)
    assert found.nats == pytest.approx(nats, rel=1e-6)
    assert found.n_bytes == len("".join(TEXTS).encode()) and found.n_chars == len("".join(TEXTS))
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.n_bytes, rel=1e-6)
    assert found.n_tokens == sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in TEXTS) - (
        sum(bool(t) for t in TEXTS) if kind == "none" else 0
    )
    assert found.protocol["first_tokens"] == ([0] if kind == "bos" else [])
    assert found.record.scores == found.scores and found.record.revision.startswith("local-")


def test_bos_where_the_tokenizer_adds_none_and_none_where_it_does(models):
    model, tokenizer = loaded(models["none"])
    ids = [tokenizer(t)["input_ids"] for t in TEXTS]
    found = bits_per_byte(f"hf:{models['none']}", TEXTS, BitsProtocol(context=32, bos="always"))
    assert found.nats == pytest.approx(plain(model, [[0, *i] for i in ids], 32, 16), rel=1e-6)
    assert found.n_tokens == sum(map(len, ids))

    model, tokenizer = loaded(models["bos"])
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in TEXTS]
    found = bits_per_byte(f"hf:{models['bos']}", TEXTS, BitsProtocol(context=32, bos="never"))
    assert found.nats == pytest.approx(plain(model, ids, 32, 16), rel=1e-6)


def test_bos_in_every_window(models):
    """A window is BOS and context - 1 tokens."""
    model, tokenizer = loaded(models["bos"])
    total = 0.0
    for text in TEXTS:
        ids, before = tokenizer(text, add_special_tokens=False)["input_ids"], 0
        for begin in range(0, len(ids), 7):
            end = min(begin + 15, len(ids))
            with torch.no_grad():
                logp = model(torch.tensor([[0, *ids[begin:end]]])).logits[0].double().log_softmax(-1)
            total -= sum(float(logp[i - begin, ids[i]]) for i in range(before, end))
            before = end
            if end == len(ids):
                break
    found = bits_per_byte(f"hf:{models['bos']}", TEXTS, BitsProtocol(context=16, stride=7, bos_in="every"))
    assert found.nats == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("kind", ["bos", "none"])
def test_joined_documents(kind, models):
    """One stream; BOS stands between documents and is not scored."""
    model, tokenizer = loaded(models[kind])
    stream, unscored = [], set()
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        if kind == "bos":
            unscored.add(len(stream))
        stream += ids
    found = bits_per_byte(f"hf:{models[kind]}", TEXTS, BitsProtocol(context=24, stride=9, documents="joined"), every=2)
    assert found.nats == pytest.approx(plain(model, [stream], 24, 9, frozenset(unscored)), rel=1e-6)
    assert found.n_tokens == len(stream) - (len(unscored) if kind == "bos" else 1)


def test_bytes_of_the_first_token(models):
    """A byte-level tokenizer: the first token of each text is left out, and a character it shares stays."""
    _, tokenizer = loaded(models["none"])
    expected = 0
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        rest = tokenizer.decode(ids[1:])
        whole = rest.replace("�", "")  # of a character that is shared only its end is in the rest
        lost = len(text.encode()) - len(whole.encode())
        shared = rest.startswith("�")
        expected += 0 if shared else lost
    for option, bytes_out in (("count", 0), ("leave_out", expected)):
        found = bits_per_byte(f"hf:{models['none']}", TEXTS, BitsProtocol(context=64, first_token_bytes=option))
        assert found.n_bytes == len("".join(TEXTS).encode()) - bytes_out
    assert expected > 5
    with_bos = BitsProtocol(context=64, first_token_bytes="leave_out")
    assert bits_per_byte(f"hf:{models['bos']}", TEXTS, with_bos).n_bytes == len("".join(TEXTS).encode())


@pytest.mark.parametrize("padding", ["left", "none"])
def test_padding_changes_nothing(padding, models):
    protocol = BitsProtocol(context=32)
    first = bits_per_byte(f"hf:{models['none']}", TEXTS, protocol, batch_size=1)
    other = bits_per_byte(ModelEntry(f"hf:{models['none']}", padding=padding), TEXTS, protocol, batch_size=5)
    assert other.nats == pytest.approx(first.nats, rel=1e-6)


@pytest.mark.parametrize("documents", ["separate", "joined"])
def test_a_killed_run_ends_with_the_same_number(documents, models, tmp_path, monkeypatch):
    spec, protocol = f"hf:{models['bos']}", BitsProtocol(context=24, documents=documents)
    whole = bits_per_byte(spec, TEXTS, protocol, every=2)

    def killed(task, done, total, note=None):
        if done >= 4:
            raise KeyboardInterrupt

    state = tmp_path / "bits.json"
    with pytest.raises(KeyboardInterrupt):
        bits_per_byte(spec, TEXTS, protocol, every=2, state=state, progress=killed)
    held = json.loads(state.read_text())
    assert held["totals"]["n_documents"] == 4 and not held["complete"]
    seen = []
    corpus = Corpus("documents", lambda: iter(TEXTS))  # of unknown length
    found = bits_per_byte(spec, corpus, protocol, every=2, state=state, progress=lambda *a: seen.append(a[1:3]))
    assert found.nats == whole.nats and found == whole
    assert seen[0] == (4, 0) and seen[-1] == (len(TEXTS), len(TEXTS))
    assert [p.name for p in tmp_path.iterdir()] == ["bits.json"]

    with monkeypatch.context() as without:  # a finished run is read back without the model
        without.setattr("repalign.sources.hf.Transformers.load", None)
        assert bits_per_byte(spec, TEXTS, protocol, every=2, state=state) == whole
    with pytest.raises(RepalignError, match=r"is of another run: asked differs"):
        bits_per_byte(spec, TEXTS, BitsProtocol(context=25), every=2, state=state)


def test_a_corpus_that_changed_under_a_run(models, tmp_path):
    state = tmp_path / "bits.json"

    def killed(task, done, total, note=None):
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bits_per_byte(f"hf:{models['none']}", TEXTS, every=2, state=state, progress=killed)
    with pytest.raises(RepalignError, match="corpus has changed"):
        bits_per_byte(f"hf:{models['none']}", ["another", *TEXTS], every=2, state=state)


def test_a_number_of_tokens(models):
    _, tokenizer = loaded(models["bos"])
    lengths = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in TEXTS]
    found = bits_per_byte(f"hf:{models['bos']}", TEXTS, BitsProtocol(context=64, max_tokens=lengths[0] + 2), every=5)
    assert (found.n_documents, found.n_tokens) == (2, lengths[0] + lengths[1])


@pytest.mark.parametrize("name", list(BITS_PER_CHAR))
def test_the_bed(name, shared):
    """The value that outside code measured on the same captions, and long documents in windows against a plain loop."""
    bed = shared / "bed"
    data = Dataset.from_table(bed / "flickr8k_dev" / "pairs.jsonl", id="id", image="image", text="captions")
    spec = f"hf:{bed / 'models' / name}"
    found = bits_per_byte(spec, data, batch_size=64, every=500)
    assert found.bits_per_char == pytest.approx(BITS_PER_CHAR[name], abs=1e-5)
    assert (found.n_chars, found.n_documents) == (56914, 1000)

    model, tokenizer = loaded(bed / "models" / name)
    long = [" ".join(Corpus.from_dataset(data))[s : s + 900] for s in (0, 3000)]
    for bos in ("tokenizer", "never"):
        ids = [tokenizer(t, add_special_tokens=bos == "tokenizer")["input_ids"] for t in long]
        for context, stride in ((48, 16), (200, 150)):
            found = bits_per_byte(spec, long, BitsProtocol(context=context, stride=stride, bos=bos))
            assert found.nats == pytest.approx(plain(model, ids, context, stride), rel=1e-5)


def test_every_token_is_scored_once_with_context():
    for total in (1, 7, 8, 9, 30):
        for stride in range(1, 8):
            windows = Windows(8, stride)
            made = windows.add(list(range(total)), [False] + [True] * (total - 1)) + windows.add(last=True)
            scored = [w.ids[i] for w in made for i in w.scored]
            assert scored == list(range(1, total))
            assert all(i >= min(8 - stride, w.ids[i]) and len(w.ids) <= 8 for w in made for i in w.scored)


def test_an_iterator_is_streamed(models):
    """No document is read before its turn."""
    read = []

    def made():
        for text in TEXTS:
            read.append(text)
            yield text

    protocol, seen = BitsProtocol(context=32), []
    corpus = Corpus.of(made())
    found = bits_per_byte(f"hf:{models['bos']}", corpus, protocol, every=2, progress=lambda *a: seen.append(len(read)))
    assert seen[:3] == [0, 2, 4] and found.nats == bits_per_byte(f"hf:{models['bos']}", TEXTS, protocol, every=2).nats
    with pytest.raises(RepalignError, match="an iterator is read once"):
        list(corpus)


def test_corpora(tmp_path):
    text = tmp_path / "c.txt"
    text.write_bytes("one\r\ntwo é\n\nthree<|end|>four".encode())
    assert list(Corpus.from_text(text)) == ["one\r\ntwo é\n\nthree<|end|>four"]
    assert list(Corpus.from_text(text, "lines")) == ["one", "two é", "three<|end|>four"]
    corpus = Corpus.from_text(text, "<|end|>")
    assert list(corpus) == list(corpus) == ["one\r\ntwo é\n\nthree", "four"]
    rows = ["a, b", 'say "é"\nnext', "x" * 200_000]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": r, "n": 1}) for r in rows))
    import pandas as pd

    pd.DataFrame({"n": range(3), "text": rows}).to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"n": range(3), "text": rows}).to_parquet(tmp_path / "t.parquet")
    for suffix in ("jsonl", "csv", "parquet"):
        assert list(Corpus.from_table(tmp_path / f"t.{suffix}")) == rows
        with pytest.raises(RepalignError, match="did you mean 'text'"):
            list(Corpus.from_table(tmp_path / f"t.{suffix}", "txt"))
    assert list(Corpus.from_hub("json", data_files=str(tmp_path / "t.jsonl"))) == rows
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(RepalignError, match="expected: text in UTF-8"):
        list(Corpus.from_text(tmp_path / "bad.txt"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"bos": "allways"}, "unknown bos 'allways'(.|\n)*did you mean 'always'"),
        ({"context": 1}, "context is out of range"),
        ({"documents": "joined", "bos_in": "every"}, "does not go with joined documents"),
        ({"context": 200}, "a context of 200 is more than it has\n  expected: at most 128 tokens"),
        ({"context": 16, "stride": 16}, "without context, or left out\n  expected: 1 to 15"),
    ],
)
def test_refused_protocols(arguments, message, models):
    with pytest.raises(RepalignError, match=message):
        bits_per_byte(f"hf:{models['bos']}", TEXTS, BitsProtocol(**arguments))


def test_refused_models_and_corpora(models, tmp_path):
    with pytest.raises(RepalignError, match="of causal language models(.|\n)*got: a timm: model"):
        bits_per_byte("timm:resnet18", TEXTS)
    with pytest.raises(RepalignError, match="of causal language models(.|\n)*not a causal language model"):
        bits_per_byte(f"hf:{tiny_models.bert(tmp_path / 'bert')}", TEXTS)
    with pytest.raises(RepalignError, match="there is no token to score"):
        bits_per_byte(f"hf:{models['bos']}", ["", ""])
    with pytest.raises(RepalignError, match="document 0 is no text that has a UTF-8"):
        bits_per_byte(f"hf:{models['bos']}", ["a\ud800b"])
    with pytest.raises(RepalignError, match="series of documents"):
        bits_per_byte(f"hf:{models['bos']}", "one string")


# --- what is kept of a run -----------------------------------------------------------------------


def test_a_finished_run_is_of_its_corpus(models, tmp_path):
    """A file that changes under its name gives no old number."""
    spec, state, path = f"hf:{models['none']}", tmp_path / "bits.json", tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS[3:5]), "utf-8")
    first = bits_per_byte(spec, Corpus.from_text(path, "lines"), state=state)
    assert bits_per_byte(spec, Corpus.from_text(path, "lines"), state=state).nats == first.nats
    path.write_text("\n".join(TEXTS[4:6]), "utf-8")
    with pytest.raises(RepalignError, match=r"bits\.json is of another run: corpus_sha256 differs"):
        bits_per_byte(spec, Corpus.from_text(path, "lines"), state=state)
    with pytest.raises(RepalignError, match="corpus_sha256 differs|corpus differs"):
        bits_per_byte(spec, TEXTS[4:6], state=state)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "zeros", "no seal"])
def test_a_damaged_state_is_measured_again(damage, models, tmp_path, caplog):
    spec, state = f"hf:{models['none']}", tmp_path / "bits.json"
    first = bits_per_byte(spec, TEXTS[4:6], state=state)
    data = state.read_bytes()
    at = data.index(b'"nats": ') + 8
    changed = {
        "flip": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(99),
    }  # fmt: skip
    if damage == "no seal":  # as it was written before there were seals: believed, and told
        held = {k: v for k, v in json.loads(data).items() if "seal" not in k and k != "corpus_sha256"}
        changed[damage] = json.dumps(held).encode()
    state.write_bytes(changed[damage])
    assert bits_per_byte(spec, TEXTS[4:6], state=state).nats == first.nats
    assert ("before such files had seals" if damage == "no seal" else "it is measured again") in caplog.text
    assert (state.read_bytes() == data) == (damage != "no seal")


def test_a_file_of_somebody_else_is_not_written_over(models, tmp_path):
    state = tmp_path / "mine.json"
    for text in ("my notes", '{"a": 1}', "[1, 2]"):
        state.write_text(text)
        with pytest.raises(RepalignError, match="is not a bits per byte|is no JSON"):
            bits_per_byte(f"hf:{models['none']}", TEXTS[4:6], state=state)
        assert state.read_text() == text
