"""`pooling: generated`: what a causal language model goes on with, against generation by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models as tiny
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.measures import CKA, MutualKNN
from repalign.sources import Model, ModelEntry, extract
from repalign.sources.hf_text import HFText
from repalign.sources.pooling import greedy

CAPTIONS = ["a dog", "a red boat on the sea", "two cats", "a small grey cat sleeps on a chair", "a man", "a tall man in the rain"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("llama"))


def generated(folder: Path, text: str, n: int, ends: list[int]) -> tuple[torch.Tensor, int]:
    """The mean over steps of the last states of all layers (layers, d), by `generate` of transformers, and the steps."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    out = model.generate(
        **tokenizer(text, return_tensors="pt"), max_new_tokens=n, do_sample=False, output_hidden_states=True, eos_token_id=ends,
        return_dict_in_generate=True, pad_token_id=0,
    )  # fmt: skip
    steps = [torch.stack([h[0, -1] for h in layers]) for layers in out.hidden_states]
    return torch.stack(steps).mean(0), len(steps)


def entry(folder: Path, tokens: int, **more) -> ModelEntry:
    return ModelEntry(f"hf:{folder}", pooling="generated", tokens=tokens, **more)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("prompt", [None, "Imagine seeing {caption} ."])
def test_the_mean_of_states_is_that_of_transformers(llama, monkeypatch, keeps, prompt):
    if not keeps:
        monkeypatch.setattr(HFText, "_check_kept", lambda self, dtype: False)
    made = extract(Dataset.of(text=CAPTIONS), [entry(llama, 5, prompt=prompt)], device="cpu", batch_size=4)[0]
    for i, caption in enumerate(CAPTIONS):
        text = caption if prompt is None else prompt.replace("{caption}", caption)
        expected, _ = generated(llama, text, 5, [1])  # its end of texts
        got = torch.stack([torch.as_tensor(made.load(layer))[i] for layer in made.layers])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert made.facts["pooling"] == "generated" and made.facts["padding"] == "none: batches of one length"


def test_earlier_tokens_are_not_run_again(llama, monkeypatch, tmp_path):
    """A step that gives the wrong states is not used, which costs time and says nothing: here it has to be the one in use."""
    again, steps = HFText._again, []
    monkeypatch.setattr(HFText, "_again", lambda self, tokens, kept: (steps.append(tokens.shape), again(self, tokens, kept))[1])
    extract(Dataset.of(text=CAPTIONS), [entry(llama, 5)], str(tmp_path), device="cpu", batch_size=4)
    assert len(steps) == 2 and all(shape[0] == 1 for shape in steps)  # of the trial alone


def test_a_text_ends_where_the_model_ends_it(llama, tmp_path):
    """The token that the model chooses second for some text is declared the end of texts."""
    import shutil

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    read = tokenizer(CAPTIONS[1], return_tensors="pt")
    ids = model.generate(**read, max_new_tokens=2, do_sample=False, pad_token_id=0)
    end = int(ids[0, -1])
    folder = tmp_path / "ends"
    shutil.copytree(llama, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    made = extract(Dataset.of(text=CAPTIONS), [entry(folder, 6)], device="cpu")[0]
    counts = set()
    for i, caption in enumerate(CAPTIONS):
        expected, steps = generated(llama, caption, 6, [end])
        counts.add(steps)
        got = torch.stack([torch.as_tensor(made.load(layer))[i] for layer in made.layers])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert min(counts) <= 2


def test_one_step_is_the_last_token(llama):
    data = Dataset.of(text=CAPTIONS)
    one, last = extract(data, [entry(llama, 1, name="one"), ModelEntry(f"hf:{llama}", pooling="last")], device="cpu")
    for layer in one.layers:
        torch.testing.assert_close(torch.as_tensor(one.load(layer)), torch.as_tensor(last.load(layer)), rtol=1e-4, atol=1e-5)


def test_the_number_of_tokens_is_in_the_key(llama):
    assert entry(llama, 3).settings("auto")["tokens"] == 3 and "tokens" not in ModelEntry(f"hf:{llama}").settings("auto")
    assert entry(llama, 3).settings("auto") != entry(llama, 4).settings("auto")


def test_a_model_in_memory_gives_the_same(llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = Dataset.of(text=CAPTIONS)
    pair = [AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)]
    one = extract(data, [Model(pair, pooling="generated", tokens=4)])[0]
    other = extract(data, [entry(llama, 4)], device="cpu")[0]
    np.testing.assert_array_equal(one.load(one.layers[-1]), other.load(other.layers[-1]))


def test_the_mean_is_over_the_steps_of_each_text():
    """States count steps: text 0 ends in the first, text 1 in the third of four."""
    chosen = torch.tensor([[9, 0, 0, 0], [1, 1, 9, 0]])
    step = iter(range(4))

    def run(tokens, kept):
        at = next(step)
        return torch.nn.functional.one_hot(chosen[:, at], 10).float(), None, [torch.full((2, 1), at + 1.0)]

    (mean,) = greedy(run, torch.zeros(2, 3, dtype=torch.int64), 4, [9])
    assert mean.flatten().tolist() == [1.0, 2.0] and next(step) == 3  # the fourth step is not run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooling": "generated"}, "goes with nothing else"),
        ({"pooling": "generated", "tokens": 0}, "at least 1"),
        ({"pooling": "mean", "tokens": 4}, "got: pooling mean, tokens 4"),
        ({"tokens": 4}, "got: pooling None, tokens 4"),
    ],
)
def test_options_that_do_not_go_together(options, said):
    with pytest.raises(RepalignError, match=said):
        ModelEntry("hf:org/model", **options)


def test_what_cannot_generate_is_refused(llama, tmp_path):
    data = Dataset.of(text=CAPTIONS)
    for spec, said in (("toy:language-bag", "toy: models go on with no text"), ("st:org/name", "st: models go on with no text")):
        with pytest.raises(RepalignError, match=said):
            extract(data, [ModelEntry(spec, pooling="generated", tokens=2)])
    with pytest.raises(RepalignError, match="functions go on with no text"):
        extract(data, [Model(lambda texts: [[len(t)] for t in texts], modality="text", pooling="generated", tokens=2)])
    encoder = tiny.bert(tmp_path)
    with pytest.raises(RepalignError, match="models that do not predict the next token go on with no text"):
        extract(data, [entry(encoder, 2)], device="cpu")


def test_what_is_generated_has_to_fit_the_context(llama):
    from transformers import AutoConfig

    context = AutoConfig.from_pretrained(llama).max_position_embeddings
    with pytest.raises(RepalignError, match=r"row 0 .* is longer than the model's context"):
        extract(Dataset.of(text=["a dog"]), [entry(llama, context + 1)], device="cpu")


GOLDEN = {1: (0.036333, 0.003473), 8: (0.045667, 0.022657), 32: (0.041333, 0.017427)}  # by `generate` of transformers


@pytest.mark.parametrize("tokens", [1, 8, pytest.param(32, marks=pytest.mark.slow)])
def test_the_bed(shared, tokens):
    from safetensors.torch import load_file

    rows = [json.loads(line) for line in (shared / "bed/flickr8k_dev/pairs.jsonl").read_text("utf-8").splitlines()[:300]]
    data = Dataset.of(text=[row["captions"][0] for row in rows], ids=[row["id"] for row in rows])
    images = load_file(shared / "bed/features/mobilenet_v1_075.safetensors")["L5_AvgPool_1a"][:300]
    model = entry(shared / "bed/models/stories260k", tokens, layers=("block.2",))
    made = extract(data, [model], device="cpu", dtype="float32", batch_size=64)[0].load("block.2")
    assert (MutualKNN(k=10)(made, images), CKA()(made, images)) == pytest.approx(GOLDEN[tokens], abs=6e-7)
