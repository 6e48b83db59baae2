"""Text models against a plain forward pass: one text at a time, no padding, no batch."""

from __future__ import annotations

import math

import pytest
import torch

import tiny_models as tiny
from repalign.errors import RepalignError
from repalign.sources import ModelEntry, extract

FACTORIES = {
    "gpt2": tiny.gpt2,
    "opt": tiny.opt,
    "llama": tiny.llama,
    "bert": tiny.bert,
    "roberta": tiny.roberta,
    "t5": tiny.t5,
    "clip": tiny.clip,
}
CAUSAL = ("gpt2", "opt", "llama")
SEES_BACK = (*CAUSAL, "clip")  # CLIP's text side is causal too, without a head


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: factory(root / name) for name, factory in FACTORIES.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


def run(folder, data, store, **options):
    batch = {"batch_size": options.pop("batch_size", 4)}
    if "dtype" in options:
        batch["dtype"] = options.pop("dtype")
    return extract(data, [ModelEntry(f"hf:{folder}", **options)], store, **batch)[0]


def plain(name: str, folder) -> tuple[list[list[torch.Tensor]], list[list[int]], list[torch.Tensor | None]]:
    """Hidden states (t, d), token ids and logits of each caption, run alone."""
    import transformers as tr

    auto = tr.AutoModelForCausalLM if name in CAUSAL else tr.AutoModel
    model = auto.from_pretrained(folder).eval()
    side = {"t5": lambda: model.get_encoder(), "clip": lambda: model.text_model}.get(name, lambda: model)()
    tokenizer = tr.AutoTokenizer.from_pretrained(folder)
    hidden, ids, logits = [], [], []
    with torch.no_grad():
        for caption in tiny.CAPTIONS:
            tokens = tokenizer(caption, return_tensors="pt")["input_ids"]
            out = side(input_ids=tokens, output_hidden_states=True)
            hidden.append([h[0] for h in out.hidden_states])
            ids.append(tokens[0].tolist())
            logits.append(out.logits[0] if name in CAUSAL else None)
    return hidden, ids, logits


def pooled(hidden: list[torch.Tensor], ids: list[int], pooling: str, skip_first: bool) -> list[torch.Tensor]:
    start = 1 if skip_first and len(ids) > 1 else 0
    how = {"mean": lambda h: h[start:].mean(0), "last": lambda h: h[-1], "cls": lambda h: h[0]}[pooling]
    return [how(h) for h in hidden]


@pytest.mark.parametrize("padding", ["right", "left", "none"])
@pytest.mark.parametrize("name", list(FACTORIES))
def test_every_layer_is_that_of_the_text_alone(name, padding, folders, data, tmp_path):
    """11 texts of unequal length in batches of 4, under either padding side and without padding."""
    hidden, ids, _ = plain(name, folders[name])
    modality = {"modality": "text"} if name == "clip" else {}
    for pooling in ("mean", "last") if name in SEES_BACK else ("mean", "last", "cls"):
        got = run(folders[name], data, tmp_path, padding=padding, pooling=pooling, **modality)
        skips = name in SEES_BACK and name != "gpt2"  # which has no BOS, and whose first word is no sink
        expected = [pooled(h, i, pooling, skips) for h, i in zip(hidden, ids, strict=True)]
        assert got.layers == ("embeddings", *(f"block.{i}" for i in range(len(expected[0]) - 1)))
        for k, layer in enumerate(got.layers):
            want = torch.stack([row[k] for row in expected])
            torch.testing.assert_close(got.load(layer), want, rtol=1e-4, atol=1e-5, msg=f"{pooling} {layer}")


def test_positions_matter_in_these_models(folders):
    """The test above can fail: with the padding counted, learned positions give other states."""
    import transformers as tr

    model = tr.AutoModelForCausalLM.from_pretrained(folders["gpt2"]).eval()
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        right = model(tokens, output_hidden_states=True).hidden_states
        moved = model(tokens, position_ids=torch.tensor([[3, 4, 5]]), output_hidden_states=True).hidden_states
    assert all((a - b).abs().max() > 0.1 for a, b in zip(right, moved, strict=True))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("padding", ["right", "left"])
def test_bits_are_those_of_a_loop_over_tokens(name, padding, folders, data, tmp_path):
    _, ids, logits = plain(name, folders[name])
    got = run(folders[name], data, tmp_path, padding=padding)
    total = tokens = 0.0
    for i, (row, scores) in enumerate(zip(ids, logits, strict=True)):
        cost = 0.0
        for t in range(1, len(row)):
            cost -= float(scores[t - 1].double().log_softmax(-1)[row[t]])
        assert float(got.extra("nats")[i]) == pytest.approx(cost, rel=1e-5)
        assert float(got.extra("tokens")[i]) == len(row) - 1
        total, tokens = total + cost, tokens + len(row) - 1
    n_bytes = sum(len(c.encode()) for c in tiny.CAPTIONS)
    n_chars = sum(map(len, tiny.CAPTIONS))
    assert n_bytes > n_chars  # or the test could not tell them apart
    assert got.record.scores == pytest.approx(
        {
            "bits_per_byte": total / math.log(2) / n_bytes,
            "bits_per_char": total / math.log(2) / n_chars,
            "nats_per_token": total / tokens,
        },
        rel=1e-5,
    )


def test_the_first_token_is_free_without_bos_and_that_is_recorded(folders, data, tmp_path):
    without = run(folders["gpt2"], data, tmp_path).facts["bits_per_byte"]
    assert (without["bos"], without["first_token"], without["first_token_bytes"]) == (
        "in 0 of 11 texts",
        "not scored",
        "count",
    )
    with_bos = run(folders["llama"], data, tmp_path).facts["bits_per_byte"]
    assert (with_bos["bos"], with_bos["first_token"]) == ("in all texts", "scored after BOS")


def test_bos_is_counted_only_if_asked_for(folders, data, tmp_path):
    hidden, ids, _ = plain("llama", folders["llama"])
    kept = run(folders["llama"], data, tmp_path, sink="keep")
    skipped = run(folders["llama"], data, tmp_path)
    want = torch.stack([h[2].mean(0) for h in hidden])
    torch.testing.assert_close(kept.load("block.1"), want, rtol=1e-4, atol=1e-5)
    assert (kept.load("block.1") - skipped.load("block.1")).abs().max() > 0.05
    assert kept.facts["tokens"] == "all with the beginning-of-sequence token"
    assert skipped.facts["tokens"] == "all without the beginning-of-sequence token"
    assert all(row[0] == 0 for row in ids)


def test_what_the_last_layer_is_was_found_out(folders, data, tmp_path):
    """The hidden state behind the last block has gone through the norm in Llama, and there is none in BERT."""
    import transformers as tr

    facts = run(folders["llama"], data, tmp_path, padding="left").facts
    assert facts["last_layer"] == "output of model.norm (LlamaRMSNorm) = model (LlamaModel), behind block 2"
    assert facts["layers"]["block.1"] == "output of model.layers.1 (LlamaDecoderLayer)"
    assert facts["layers"]["embeddings"] == "output of model.embed_tokens (Embedding)"
    assert run(folders["bert"], data, tmp_path).facts["last_layer"] == "output of encoder.layer.1 (BertLayer)"
    assert "input of model.decoder.layers.0" in run(folders["opt"], data, tmp_path).facts["layers"]["embeddings"]

    model = tr.AutoModelForCausalLM.from_pretrained(folders["llama"]).eval()
    seen = []
    model.model.layers[-1].register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.no_grad():
        out = model(torch.tensor([[0, 9, 8]]), output_hidden_states=True)
        block = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
        torch.testing.assert_close(model.model.norm(block), out.hidden_states[-1])


def test_bfloat16_models_are_pooled_in_float32(data, tmp_path):
    import transformers as tr

    folder = tiny.gpt2(tmp_path / "model", dtype=torch.bfloat16)
    got = run(folder, data, tmp_path / "store", dtype="bfloat16")
    assert got.facts["dtype"] == "bfloat16"
    model = tr.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = tr.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        tokens = tokenizer(tiny.CAPTIONS[1], return_tensors="pt")["input_ids"]
        state = model(tokens, output_hidden_states=True).hidden_states[0][0]
    exact = state.float().mean(0)
    assert not torch.equal(exact, state.mean(0).float())  # pooled in bfloat16 it would be another value
    torch.testing.assert_close(got.load("embeddings")[1], exact, rtol=1e-6, atol=1e-6)
    assert got.load("embeddings").dtype == torch.float32


def test_auto_dtype_on_the_cpu_is_float32_whatever_is_stored(data, tmp_path):
    folder = tiny.gpt2(tmp_path / "model", dtype=torch.float16)
    notes = []
    got = extract(
        data, [f"hf:{folder}"], tmp_path / "store", device="cpu", progress=lambda *a: notes.append(a[3:] and a[3])
    )[0]
    assert got.facts["dtype"] == "float32"
    assert "4 layers, float32, on cpu" in notes


@pytest.mark.parametrize(
    ("wanted", "names"),
    [([0, -1], ("embeddings", "block.2")), (["block.1"], ("block.1",)), ([2, "block.0"], ("block.0", "block.1"))],
)
def test_layers_by_name_and_index(wanted, names, folders, data, tmp_path):
    every = run(folders["llama"], data, tmp_path)
    some = run(folders["llama"], data, tmp_path, layers=wanted)
    assert some.layers == names
    assert all(torch.equal(some.load(n), every.load(n)) for n in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": ["blok.1"]},
            r"no layer 'blok\.1'\n.*expected: one of 4 layers.*\n.*\n  do: did you mean 'block\.1'",
        ),
        ({"layers": [4]}, r"no layer 4\n  expected: an index from -4 to 3"),
        ({"pooling": "spatial_mean"}, r"pooling 'spatial_mean' does not apply\n  expected: mean, last, generated\n"),
        ({"pooling": "cls"}, r"pooling 'cls' does not apply\n  expected: mean, last, generated\n"),
        ({"sink": "skipp"}, r"unknown sink 'skipp'\n  expected: skip, keep\n.*\n  do: did you mean 'skip'"),
        ({"padding": "center"}, "unknown padding 'center'"),
        ({"store_dtype": "int8"}, "unknown store_dtype 'int8'"),
        ({"layers": []}, "an empty list of layers"),
        ({"caption": 2}, r"row 0 \(id 's00'\) has no caption 2\n.*\n  got: 2 captions, counted from 0"),
        ({"dtype": "float31"}, r"unknown dtype 'float31'\n.*\n.*\n  do: did you mean 'float32'"),
    ],
)
def test_bad_options_are_told(options, message, folders, data, tmp_path):
    with pytest.raises(RepalignError, match=message):
        run(folders["llama"], data, tmp_path, **options)


def test_another_caption(folders, data, tmp_path):
    first, second = (run(folders["llama"], data, tmp_path, caption=i) for i in (0, 1))
    assert (first.load("block.0") - second.load("block.0")).abs().max() > 0.01
    assert second.facts["bits_per_byte"]["chars"] == sum(len(f"Second: {c}") for c in tiny.CAPTIONS)


def test_an_empty_caption_names_its_row(folders, tmp_path):
    import json

    from repalign.dataset import Dataset

    rows = [{"id": "a", "text": ["one", "two"]}, {"id": "b", "text": ["one", "", "three"]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Dataset.from_table(tmp_path / "t.jsonl", id="id", text="text")
    with pytest.raises(RepalignError, match=r"row 1 \(id 'b'\) has an empty caption 1"):
        run(folders["llama"], data, tmp_path / "store", caption=1)


def test_too_long_texts_are_refused_or_cut_and_counted(data, tmp_path):
    import transformers as tr

    folder = tiny.gpt2(tmp_path / "model", positions=20)
    with pytest.raises(
        RepalignError, match=r"row 1 \(id 's01'\) is longer than the model's context\n  expected: at most 20"
    ):
        run(folder, data, tmp_path / "store")
    got = run(folder, data, tmp_path / "store", truncate=True)
    tokenizer = tr.AutoTokenizer.from_pretrained(folder)
    long = [len(tokenizer(c)["input_ids"]) > 20 for c in tiny.CAPTIONS]
    assert 0 < sum(long) < len(long)
    assert got.facts["texts_cut"] == sum(long)
    assert got.extra("cut").tolist() == [float(x) for x in long]
    # a text that was cut costs the nats of a part, and has the bytes of the whole: it is left out
    definition = got.facts["bits_per_byte"]
    assert definition["texts"] == len(long) - sum(long)
    assert definition["bytes"] == sum(len(c.encode()) for c, cut in zip(tiny.CAPTIONS, long, strict=True) if not cut)


def test_an_encoder_keeps_its_last_token_when_a_text_is_cut(data, tmp_path):
    import transformers as tr

    folder = tiny.bert(tmp_path / "model")
    config = tr.AutoConfig.from_pretrained(folder)
    tokenizer = tr.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 12
    tokenizer.save_pretrained(folder)
    got = run(folder, data, tmp_path / "store", truncate=True, pooling="last")
    model = tr.AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(tiny.CAPTIONS[1], truncation=True, max_length=12)["input_ids"]
    assert (len(ids), ids[-1], config.max_position_embeddings) == (12, tokenizer.sep_token_id, 48)
    with torch.no_grad():
        want = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, -1]
    torch.testing.assert_close(got.load("block.0")[1], want, rtol=1e-4, atol=1e-5)
    assert got.facts["texts_cut"] > 0


def test_a_head_that_is_not_in_the_file_gives_no_bits(data, tmp_path):
    """The body of a causal model alone: its hidden states are good, a random head's bits would not be."""
    whole = run(tiny.llama(tmp_path / "whole"), data, tmp_path / "store")
    body = run(tiny.llama(tmp_path / "body", head=False), data, tmp_path / "store")
    assert all(torch.equal(whole.load(n), body.load(n)) for n in whole.layers)
    assert body.record.scores == {}
    assert body.facts["bits_per_byte"] == "not computed: the model's files lack lm_head.weight"
    again = run(tmp_path / "body", data, tmp_path / "other")  # the random head is no part of the fingerprint
    assert again.facts["weights_fingerprint"] == body.facts["weights_fingerprint"]


def test_weights_that_are_not_in_the_file_are_refused(data, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny.bert(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RepalignError, match=r"lack weights that the layers depend on\n.*\n  got: no encoder\.layer\.1\.att"
    ):
        run(folder, data, tmp_path / "store")


def test_pickled_weights_are_not_loaded(data, tmp_path):
    folder = tiny.llama(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RepalignError, match=r"there are no safetensors weights\n(.|\n)*do: convert them once"):
        run(folder, data, tmp_path / "store")


def test_a_model_that_minds_padding_is_refused_and_runs_without(data, tmp_path):
    """FNet mixes tokens by a Fourier transform without a mask: padding would change every text."""
    from transformers import AutoModel, AutoTokenizer, FNetConfig, FNetModel

    folder = tmp_path / "model"
    tokenizer = tiny.wordpiece_tokenizer(folder)
    config = FNetConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    FNetModel(config).eval().save_pretrained(folder)
    with pytest.raises(
        RepalignError, match=r"other hidden states when it is padded on the right\n(.|\n)*`padding: none`"
    ):
        run(folder, data, tmp_path / "store")
    got = run(folder, data, tmp_path / "store", padding="none")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        want = [
            model(**tokenizer(c, return_tensors="pt"), output_hidden_states=True).hidden_states[-1][0].mean(0)
            for c in tiny.CAPTIONS
        ]
    torch.testing.assert_close(got.load("block.1"), torch.stack(want), rtol=1e-4, atol=1e-5)


def test_missing_folders_and_networks_are_told(data, tmp_path):
    with pytest.raises(RepalignError, match=r"there is no folder .*nowhere"):
        run(tmp_path / "nowhere", data, tmp_path / "store")
    with pytest.raises(RepalignError, match=r"the hub cannot be reached(.|\n)*HF_HOME.*local folder"):
        extract(data, ["hf:repalign-tests/no-such-model"], tmp_path / "store")
    folder = tiny.gpt2(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(RepalignError, match=r"its tokenizer cannot be loaded: .*\n  expected: tokenizer\.json"):
        run(folder, data, tmp_path / "store")


def test_what_the_hub_refuses_is_told(data, tmp_path, monkeypatch):
    from types import SimpleNamespace
    from typing import Any

    from huggingface_hub import HfApi, errors

    answer: Any = SimpleNamespace(headers={}, request=None)
    for error, message in (
        (errors.GatedRepoError("you need access", response=answer), r"access is gated(.|\n)*hf auth login"),
        (errors.RevisionNotFoundError("no v9", response=answer), r"no such model or revision(.|\n)*the spelling"),
        (errors.RepositoryNotFoundError("nothing", response=answer), r"no such model or revision"),
    ):

        def refuse(*_args, error=error, **_options):
            raise error

        monkeypatch.setattr(HfApi, "model_info", refuse)
        with pytest.raises(RepalignError, match=message):
            extract(data, ["hf:repalign-tests/model@v9"], tmp_path / "store")


def test_a_refused_connection_is_told(data, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RepalignError, match=r"the hub cannot be reached(.|\n)*connect to the network once"):
        extract(data, ["hf:repalign-tests/model"], tmp_path / "store")


def test_a_model_in_the_cache_is_found_without_a_network(data, tmp_path, monkeypatch):
    """A branch is resolved to the commit that the cache holds, and that commit is loaded and recorded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--org--tiny"
    tiny.gpt2(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (found,) = extract(data, ["hf:org/tiny"], tmp_path / "store")
    assert (found.record.revision, found.name, len(found.layers)) == (commit, "tiny", 4)


def test_code_that_comes_with_a_model_is_not_run(data, tmp_path):
    import json

    folder = tiny.gpt2(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "of-its-own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(
        RepalignError, match=r"comes with code of its own(.|\n)*`trust_remote_code: true` under `extract:`"
    ):
        run(folder, data, tmp_path / "store")
    assert not (tmp_path / "ran").exists()


def test_folders_that_do_not_fit_together_are_told(data, tmp_path):
    import json

    folder = tiny.gpt2(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"n_embd": 48}, r"model cannot be loaded: .*\n(.|\n)*mismatch"),
        ({"model_type": "gtp2"}, r"does not have its architecture\n(.|\n)*gtp2(.|\n)*mend `model_type`"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(RepalignError, match=message):
            run(folder, data, tmp_path / "store")


def test_the_revision_of_a_folder_is_that_of_its_content(data, tmp_path):
    folder = tiny.gpt2(tmp_path / "model")
    first = run(folder, data, tmp_path / "store").record.revision
    assert first.startswith("local-")
    (folder / "README.md").write_text("not a part of the model")
    assert run(folder, data, tmp_path / "store").record.revision == first
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"attn_pdrop": 0.1', '"attn_pdrop": 0.2'))
    assert run(folder, data, tmp_path / "store").record.revision != first


def test_sentence_transformers(data, tmp_path):
    from sentence_transformers import SentenceTransformer

    base = tiny.bert(tmp_path / "base", pooler=True)
    folder = tiny.sentence_transformer(tmp_path / "st", base)
    got = extract(data, [f"st:{folder}"], tmp_path / "store", batch_size=4)[0]
    hidden, _, _ = plain("bert", base)
    assert got.layers == ("embeddings", "block.0", "block.1", "sentence_embedding")
    assert got.widths == (24, 24, 24, 10)
    for k, layer in enumerate(got.layers[:-1]):
        want = torch.stack([h[k].mean(0) for h in hidden])
        torch.testing.assert_close(got.load(layer), want, rtol=1e-4, atol=1e-5)
    model = SentenceTransformer(str(folder), device="cpu")
    want = torch.stack([model.encode(c, convert_to_tensor=True, show_progress_bar=False) for c in tiny.CAPTIONS])
    torch.testing.assert_close(got.load("sentence_embedding"), want, rtol=1e-4, atol=1e-5)
    assert torch.allclose(want.norm(dim=1), torch.ones(len(want)))
    assert got.facts["layers"]["block.1"] == "output of 0.model.encoder.layer.1 (BertLayer)"


def test_the_default_prompt_of_a_sentence_transformer_is_used(data, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny.sentence_transformer(tmp_path / "st", tiny.bert(tmp_path / "base", pooler=True))
    model = SentenceTransformer(str(folder), device="cpu", prompts={"query": "A bird: "}, default_prompt_name="query")
    model.save(str(folder))
    got = extract(data, [f"st:{folder}"], tmp_path / "store", batch_size=4)[0]
    want = torch.stack([model.encode(c, convert_to_tensor=True, show_progress_bar=False) for c in tiny.CAPTIONS])
    bare = model.encode(tiny.CAPTIONS[0], prompt="", convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(got.load("sentence_embedding"), want, rtol=1e-4, atol=1e-5)
    assert (bare - want[0]).abs().max() > 1e-3
    assert got.facts["prompt"] == "A bird: "
