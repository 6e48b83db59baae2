"""Captions in a prompt: the text that the model reads, the settings, bits per byte, and a run that is killed."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import tiny_models as tiny
from processes import started
from repalign.competence import bits_per_byte
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.sources import ModelEntry, extract
from repalign.store import extraction_hash

# The form of the paper's Appendix: the last token is read.
PROMPT = "An image with the caption '{caption}'. This is an image of a <fill>"


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("llama"))


def texts(path: Path, captions: list[str]) -> Dataset:
    lines = [json.dumps({"id": f"t{i}", "text": c}) for i, c in enumerate(captions)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return Dataset.from_table(path, id="id", text="text")


def last_states(folder: Path, texts: list[str]) -> list[torch.Tensor]:
    """Hidden states of the last token of each text, run alone: (layers, d)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    out = []
    with torch.no_grad():
        for text in texts:
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
            out.append(torch.stack([h[0, -1] for h in states]))
    return out


@pytest.mark.parametrize("padding", ["right", "left"])
def test_the_model_reads_the_caption_in_its_prompt(padding, llama, data, tmp_path):
    entry = ModelEntry(f"hf:{llama}", prompt=PROMPT, pooling="last", padding=padding)
    got = extract(data, [entry], tmp_path / "store", batch_size=4)[0]
    read = [f"An image with the caption '{c}'. This is an image of a <fill>" for c in tiny.CAPTIONS]
    want = torch.stack(last_states(llama, read))
    for k, layer in enumerate(got.layers):
        torch.testing.assert_close(got.load(layer), want[:, k], rtol=1e-4, atol=1e-4)
    bare = torch.stack(last_states(llama, list(tiny.CAPTIONS)))
    assert (want - bare).abs().max() > 0.1  # the prompt matters in this model


def test_it_is_stated_and_bits_per_byte_are_not_computed(llama, data, tmp_path):
    plain, prompted = extract(
        data, [f"hf:{llama}", ModelEntry(f"hf:{llama}", prompt=PROMPT, pooling="last")], tmp_path / "store"
    )
    assert prompted.manifest["settings"]["prompt"] == prompted.facts["captions_stand_in"] == PROMPT
    assert "prompt" not in plain.manifest["settings"] and "captions_stand_in" not in plain.facts
    assert prompted.facts["bits_per_byte"] == "not computed: texts stand in a prompt"
    assert "bits_per_byte" in plain.record.scores and "bits_per_byte" not in prompted.record.scores


def test_bits_of_a_corpus_do_not_mind_a_prompt(llama):
    """It is for captions: a corpus is read as it is."""
    entry = ModelEntry(f"hf:{llama}")
    alone, beside = (bits_per_byte(e, list(tiny.CAPTIONS)) for e in (entry, ModelEntry(entry.spec, prompt=PROMPT)))
    assert alone.nats == beside.nats


def test_an_entry_without_a_prompt_keeps_its_key(llama, data, tmp_path):
    """The hash of the settings that stores have had all along, spelled out."""
    before = {
        "modality": None, "pooling": None, "layers": None, "caption": 0, "bos": "skip", "padding": "right",
        "truncate": False, "store_dtype": "float32", "ids": None, "dtype": "auto",
    }  # fmt: skip
    got = extract(data, [f"hf:{llama}"], tmp_path / "store")[0]
    assert ModelEntry("toy:cnn").settings("auto") == before
    texts = {k: v for k, v in before.items() if k != "bos"} | {"sink": "skip"}
    assert Path(got.path).name == extraction_hash(data.fingerprint, f"hf:{llama}", got.record.revision, texts)
    said = {"dataset_fingerprint": "f" * 64, "revision": "r", "settings": before, "spec": "x"}  # as docs/store.md has it
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert extraction_hash("f" * 64, "x", "r", ModelEntry("x").settings("auto")) == digest[:16]
    others = {extraction_hash("f" * 64, "x", "r", ModelEntry("x", prompt=p).settings("auto")) for p in (PROMPT, "{caption}")}
    assert len(others | {extraction_hash("f" * 64, "x", "r", before)}) == 3


def test_braces_are_texts_like_any_other(llama, tmp_path):
    captions = ["a {caption} of {0}", "{", "}} {name!r} {", "plain"]
    data = texts(tmp_path / "braces.jsonl", captions)
    prompt = "{x} {{ {caption} }} {0}:"
    got = extract(data, [ModelEntry(f"hf:{llama}", prompt=prompt, pooling="last")], tmp_path / "store")[0]
    read = ["{x} {{ " + c + " }} {0}:" for c in captions]
    torch.testing.assert_close(
        got.load("block.2"), torch.stack(last_states(llama, read))[:, -1], rtol=1e-4, atol=1e-4
    )


def test_a_long_prompt_counts_as_text(llama, data, tmp_path):
    entry = ModelEntry(f"hf:{llama}", prompt="word " * 200 + "{caption}")
    with pytest.raises(RepalignError, match=r"row \d+ \(id 's\d+'\) is longer than the model's context"):
        extract(data, [entry], tmp_path / "store")


def test_sentence_transformers(data, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny.sentence_transformer(tmp_path / "st", tiny.bert(tmp_path / "base", pooler=True))
    model = SentenceTransformer(str(folder), device="cpu", prompts={"query": "A bird: "}, default_prompt_name="query")
    model.save(str(folder))
    got = extract(data, [ModelEntry(f"st:{folder}", prompt="So: {caption}!")], tmp_path / "store", batch_size=4)[0]
    read = [f"So: {c}!" for c in tiny.CAPTIONS]  # behind the model's own prompt
    want = torch.stack([model.encode(t, convert_to_tensor=True, show_progress_bar=False) for t in read])
    torch.testing.assert_close(got.load("sentence_embedding"), want, rtol=1e-4, atol=1e-5)
    assert got.facts["prompt"] == "A bird: " and got.facts["captions_stand_in"] == "So: {caption}!"


@pytest.mark.parametrize("prompt", ["", "An image", "{caption} {caption}", "{Caption}"])
def test_a_prompt_takes_the_caption_in_once(prompt):
    with pytest.raises(RepalignError, match=r"does not say where the caption goes\n  expected: a text with \{caption\}"):
        ModelEntry("hf:org/name", prompt=prompt)


@pytest.mark.parametrize(
    "spec", ["timm:resnet18", "openclip:ViT-B-32/openai", "torch:a:b", "array:x.npy", "toy:cnn", "hf"]
)
def test_other_sources_refuse_it(spec, data, tmp_path):
    spec = f"hf:{tiny.vit(tmp_path / 'vit')}" if spec == "hf" else spec
    what = "images" if spec.startswith("hf") else f"{spec.partition(':')[0]}: models"
    with pytest.raises(RepalignError, match=rf"a prompt does not go with {what}\n  expected: a text model of trans"):
        extract(data, [ModelEntry(spec, prompt=PROMPT)], tmp_path / "store")


# --- a run that is killed ------------------------------------------------------------------------

RUN = """
import sys, time
from repalign.dataset import Dataset
from repalign.sources import ModelEntry, Skipped, extract
data, model, store, slow, prompt = sys.argv[1:]
data = Dataset.from_table(data, id="id", image="image", text="text")
entries = [
    "hf:repalign-tests/none",
    ModelEntry(f"hf:{model}", name="it", prompt=prompt, pooling="last", padding="left"),
    ModelEntry(f"hf:{model}", name="bare"),
]
def progress(task, done, total, note=None):
    print(task, done, total, flush=True)
    time.sleep(float(slow) if done else 0)
found = extract(data, entries, store, batch_size=2, rows_per_part=2, on_unavailable="skip", progress=progress)
print("ended", [isinstance(f, Skipped) for f in found], flush=True)
"""


def bytes_of(store: Path) -> dict[str, str]:
    files = sorted(p for p in store.rglob("*") if p.is_file())
    return {p.relative_to(store).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.slow
def test_killed_with_prompt_and_skip_and_resumed_gives_the_same_bytes(llama, tmp_path, monkeypatch, capsys):
    """The run that is killed is a process; this one makes the whole store and takes the killed one up."""
    tiny.dataset(tmp_path / "data")

    def arguments(store: str, slow: float) -> list[str]:
        return [str(tmp_path / "data" / "pairs.jsonl"), str(llama), str(tmp_path / store), str(slow), PROMPT]

    def told(store: str) -> str:
        monkeypatch.setattr(sys, "argv", ["", *arguments(store, 0)])
        exec(RUN, {})
        return capsys.readouterr().out

    assert "ended [True, False, False]" in told("whole")
    offline = "from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True"
    running = started(offline + RUN, *arguments("killed", 0.3), said=tmp_path / "said")
    deadline = time.monotonic() + 200
    while len(list((tmp_path / "killed").rglob("part-*.safetensors"))) < 3 and time.monotonic() < deadline:
        assert running.is_alive(), (tmp_path / "said").read_text()
        time.sleep(0.02)
    running.kill()
    running.join(60)
    assert running.exitcode == -signal.SIGKILL
    there = bytes_of(tmp_path / "killed")
    assert 0 < len(there) < len(bytes_of(tmp_path / "whole")) and not any("manifest" in f for f in there)
    assert "ended [True, False, False]" in told("killed")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
