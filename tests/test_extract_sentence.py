"""sentence-transformers models of many kinds of modules: what is extracted is what `encode` gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import tiny_models as tiny
from repalign.errors import RepalignError, Unavailable
from repalign.sources import ModelEntry, extract

PROMPTS = {"query": "Look for this: ", "passage": "This is: "}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("base"), pooler=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tiny.llama(tmp_path_factory.mktemp("llama"), head=False)
    tiny.bpe_tokenizer(folder, bos=True, pad=True)
    return folder


def words() -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))  # pyright: ignore
    made.normalizer = normalizers.Lowercase()  # pyright: ignore
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    made.train_from_iterator(tiny.CAPTIONS, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    return made


def static(seed: int = 0) -> st.StaticEmbedding:
    vectors = torch.randn(words().get_vocab_size(), 16, generator=torch.Generator().manual_seed(seed))
    return st.StaticEmbedding(words(), embedding_weights=vectors.numpy())


def bag() -> st.BoW:
    vocabulary = sorted({w for c in tiny.CAPTIONS for w in c.lower().split()})
    return st.BoW(vocab=vocabulary, word_weights={w: 0.5 + i % 7 for i, w in enumerate(vocabulary)}, unknown_word_weight=1)


def body(base, **options) -> st.Transformer:
    return st.Transformer(str(base), **options)


def dense(n: int, m: int) -> st.Dense:
    return tiny._randomise(st.Dense(in_features=n, out_features=m))


STACKS = {  # what the modules are -> the modules over a BERT and a Llama, options of the model
    "mean": (lambda b, _: [body(b), st.Pooling(24)], {}),
    "class token, dense, unit length": (
        lambda b, _: [body(b), st.Pooling(24, pooling_mode="cls"), dense(24, 10), st.Normalize()],
        {},
    ),
    "largest of the tokens": (lambda b, _: [body(b), st.Pooling(24, pooling_mode="max")], {}),
    "two poolings, a norm": (
        lambda b, _: [body(b), st.Pooling(24, pooling_mode=("mean", "max")), tiny._randomise(st.LayerNorm(48)), st.Dropout()],
        {},
    ),
    "last token of a causal model": (lambda _, x: [body(x), st.Pooling(32, pooling_mode="lasttoken")], {}),
    "weights over layers": (
        lambda b, _: [
            body(b, config_kwargs={"output_hidden_states": True}),
            st.WeightedLayerPooling(24, num_hidden_layers=2, layer_start=1),
            st.Pooling(24),
        ],
        {},
    ),
    "small letters": (lambda b, _: [body(b, do_lower_case=True), st.Pooling(24)], {}),
    "cut to 8 dimensions": (lambda b, _: [body(b), st.Pooling(24), st.Normalize()], {"truncate_dim": 8}),
    "a prompt": (lambda b, _: [body(b), st.Pooling(24)], {"prompts": PROMPTS, "default_prompt_name": "query"}),
    "a prompt outside the mean": (
        lambda b, _: [body(b), st.Pooling(24, include_prompt=False)],
        {"prompts": PROMPTS, "default_prompt_name": "passage"},
    ),
    "prompts without a default": (lambda b, _: [body(b), st.Pooling(24)], {"prompts": PROMPTS}),
    "static": (lambda *_: [static()], {}),
    "static, cut, unit length": (lambda *_: [static(), st.Normalize()], {"truncate_dim": 5}),
    "static with a prompt": (lambda *_: [static()], {"prompts": {"q": "A man: "}, "default_prompt_name": "q"}),
    "a bag of words": (lambda *_: [bag(), st.Normalize()], {}),
    "two static routes": (
        lambda *_: [st.Router.for_query_document([static(1)], [static(2), st.Normalize()], default_route="document")],
        {},
    ),
    "a static and a deep route": (
        lambda b, _: [
            st.Router({"query": [static()], "document": [body(b), st.Pooling(24), dense(24, 16)]}, default_route="document")
        ],
        {},
    ),
}


@pytest.fixture
def made(request, bert, llama, tmp_path):
    stack, options = STACKS[request.param]
    SentenceTransformer(modules=stack(bert, llama), device="cpu", **options).save(str(tmp_path / "st"))
    return tmp_path / "st"


@pytest.mark.parametrize("made", list(STACKS), indirect=True)
def test_the_embedding_is_that_of_encode(made, data, tmp_path):
    got = extract(data, [f"st:{made}"], tmp_path / "store", batch_size=4)[0]
    want = SentenceTransformer(str(made), device="cpu").encode(list(tiny.CAPTIONS), batch_size=3)
    found = got.load("sentence_embedding").numpy()
    assert found.shape == want.shape and np.abs(found).max() > 0
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made", ["cut to 8 dimensions", "a prompt", "static", "two static routes"], indirect=True)
def test_what_is_recorded(made, data, tmp_path, request):
    facts = extract(data, [f"st:{made}"], tmp_path / "store")[0].facts
    kind = request.node.callspec.params["made"]
    assert facts["truncate_dim"] == (8 if "cut" in kind else None)
    assert facts["prompt"] == ("Look for this: " if kind == "a prompt" else "")
    assert facts["context"] == (None if "static" in kind else 48)  # a StaticEmbedding says infinity
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("made", ["a static and a deep route"], indirect=True)
def test_hidden_states_are_those_of_the_default_route(made, data, tmp_path):
    got = extract(data, [f"st:{made}"], tmp_path / "store")[0]
    assert got.layers == ("embeddings", "block.0", "block.1", "sentence_embedding")


def test_modules_that_see_the_padding(bert, data, tmp_path):
    """A convolution reaches into it: the embedding of a text depends on the texts beside it, in `encode` too."""
    cnn = tiny._randomise(st.CNN(24, out_channels=6, kernel_sizes=[1, 3]))
    SentenceTransformer(modules=[body(bert), cnn, st.Pooling(12)], device="cpu").save(str(tmp_path / "st"))
    with pytest.raises(RepalignError, match=r"another embedding beside longer ones(.|\n)*set `padding: none`"):
        extract(data, [f"st:{tmp_path / 'st'}"], tmp_path / "store")
    got = extract(data, [ModelEntry(f"st:{tmp_path / 'st'}", padding="none")], tmp_path / "store", batch_size=4)[0]
    model = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    want = np.stack([model.encode(text) for text in tiny.CAPTIONS])
    np.testing.assert_allclose(got.load("sentence_embedding").numpy(), want, rtol=1e-4, atol=1e-5)


def test_a_route_has_to_be_known(data, tmp_path):
    router = st.Router({"query": [static(1)], "document": [static(2)]}, allow_empty_key=False)
    SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path / "st"))
    with pytest.raises(Unavailable, match=r"failed in its library: ValueError: (.|\n)*do: "):
        extract(data, [f"st:{tmp_path / 'st'}"], tmp_path / "store")


def test_modules_that_pool_nothing_are_told(bert, data, tmp_path):
    SentenceTransformer(modules=[body(bert)], device="cpu").save(str(tmp_path / "st"))
    with pytest.raises(RepalignError, match=r"make no sentence embedding(.|\n)*got: Transformer\n(.|\n)*hf: model"):
        extract(data, [f"st:{tmp_path / 'st'}"], tmp_path / "store")


def test_an_encode_that_does_more_is_refused(bert, data, tmp_path, monkeypatch):
    SentenceTransformer(modules=[body(bert), st.Pooling(24)], device="cpu").save(str(tmp_path / "st"))
    plain = SentenceTransformer.encode
    monkeypatch.setattr(SentenceTransformer, "encode", lambda *a, **k: 2 * plain(*a, **k))
    with pytest.raises(Unavailable, match=r"another embedding than its `encode`"):
        extract(data, [f"st:{tmp_path / 'st'}"], tmp_path / "store")


def test_words_are_those_of_tokenizer_json(data, tmp_path):
    """A Qwen2 with a tokenizer of words: transformers would split them its own way."""
    from transformers import Qwen2Config, Qwen2Model

    file = words()
    config = Qwen2Config(
        vocab_size=file.get_vocab_size(), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    model = tiny._randomise(Qwen2Model(config)).eval()
    tiny.bpe_tokenizer(tmp_path / "base", bos=False, pad=True)
    model.save_pretrained(tmp_path / "base")
    SentenceTransformer(modules=[body(tmp_path / "base"), st.Pooling(16)], device="cpu").save(str(tmp_path / "st"))
    (tmp_path / "st/tokenizer.json").write_text(file.to_str())
    (tmp_path / "st/tokenizer_config.json").write_text(json.dumps({"unk_token": "[UNK]", "pad_token": "[UNK]"}))
    got = extract(data, [ModelEntry(f"st:{tmp_path / 'st'}")], tmp_path / "store")[0]
    with torch.no_grad():
        want = [model(torch.tensor([file.encode(t).ids])).last_hidden_state[0].mean(0) for t in tiny.CAPTIONS]
    torch.testing.assert_close(got.load("sentence_embedding"), torch.stack(want), rtol=1e-4, atol=1e-5)
    assert got.facts["tokenizer"].endswith("transformers' Qwen2Tokenizer gives other ids for the probe")
