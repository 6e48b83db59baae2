"""Which tokens a mean over tokens is made of: no attention sink in it, and the facts and remarks that tell of one.

Expected values are plain numpy over the hidden states of each text, run alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models as tiny
from repalign.comparison.doctor import RULING_SHARE, RULING_TOKEN, examine
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.sources import ModelEntry, extract
from repalign.sources.model import NO_BOS
from repalign.sources.pooling import norm_ratios, sees_only_back, without_first
from repalign.store import FeatureStore
from repalign.study import load_study
from repalign.study.alignment import AlignmentStudy

TEXTS = ("A dog runs.", "Snow", "A", "Two brown dogs run across the wide green field.", "The women play a game of cards.")
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}

# Architecture -> model class, its tokenizer (a BPE with or without BOS, or [CLS] ... [SEP]), whether it is causal.
ARCHITECTURES = {
    "gpt2": ("GPT2LMHeadModel", "bpe", True),
    "gpt2 with bos": ("GPT2LMHeadModel", "bos", True),
    "gpt_neox": ("GPTNeoXForCausalLM", "bpe", True),  # Pythia
    "bloom": ("BloomForCausalLM", "bpe", True),
    "olmo": ("OlmoForCausalLM", "bpe", True),
    "qwen2": ("Qwen2ForCausalLM", "bpe", True),
    "llama": ("LlamaForCausalLM", "bpe", True),  # SmolLM2
    "llama with bos": ("LlamaForCausalLM", "bos", True),
    "mistral": ("MistralForCausalLM", "bos", True),
    "opt": ("OPTForCausalLM", "bos", True),
    "mamba": ("MambaForCausalLM", "bpe", True),
    "bert": ("BertModel", "cls", False),
    "electra": ("ElectraModel", "cls", False),
    "modernbert": ("ModernBertModel", "cls", False),
    "t5": ("T5ForConditionalGeneration", "bpe", False),
    "clip text": ("CLIPModel", "bos", True),
}
SPECIAL: dict[str, dict[str, Any]] = {
    "opt": {"word_embed_proj_dim": 24, "ffn_dim": 32},
    "mamba": {"state_size": 4},
    "electra": {"embedding_size": 24},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3},
    "t5": {"d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"t{i}", "text": t}) for i, t in enumerate(TEXTS)))
    return Dataset.from_table(path, id="id", text="text")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny random model of each architecture, made when it is asked for."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str, planted: bool = False) -> Path:
        path = root / f"{name.replace(' ', '-')}{'-planted' * planted}"
        if not path.exists():
            if planted:
                shutil.copytree(folder(name), path)
                plant(path, ARCHITECTURES[name][0])
            else:
                made(name, path)
        return path

    return folder


def plant(folder: Path, kind: str) -> None:
    """Make the first word of every text a sink: its embedding is long, and that of no other word."""
    import transformers as tr

    tokenizer, model = tr.AutoTokenizer.from_pretrained(folder), getattr(tr, kind).from_pretrained(folder)
    ids = [tokenizer(t)["input_ids"] for t in TEXTS]
    first, others = {x[0] for x in ids}, {i for x in ids for i in x[1:]}
    with torch.no_grad():
        for token in first - others or first:
            model.get_input_embeddings().weight[token] *= 300
    tiny._save(model, folder)


def made(name: str, folder: Path) -> Path:
    import transformers as tr

    kind, words, _ = ARCHITECTURES[name]
    if name == "clip text":
        return tiny.clip(folder)
    bpe = words in ("bpe", "bos")
    tokenizer = tiny.bpe_tokenizer(folder, bos=words == "bos", pad=True) if bpe else tiny.wordpiece_tokenizer(folder)
    cls = getattr(tr, kind)
    config = cls.config_class(
        vocab_size=len(tokenizer), max_position_embeddings=96, **{**SMALL, **SPECIAL.get(name, {})},
        **({"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2} if bpe else {}),
    )  # fmt: skip
    torch.manual_seed(0)
    tiny._save(tiny._randomise(cls(config), std=0.3), folder)
    return folder


def alone(folder: Path, kind: str, texts: tuple[str, ...] = TEXTS) -> list[list[np.ndarray]]:
    """Hidden states (t, d) in float64 of each layer of each text, run alone and without padding."""
    import transformers as tr

    tokenizer, model = tr.AutoTokenizer.from_pretrained(folder), getattr(tr, kind).from_pretrained(folder).eval()
    side = model.get_encoder() if kind.startswith("T5") else model.text_model if kind == "CLIPModel" else model
    with torch.no_grad():
        tokens = [tokenizer(t, return_tensors="pt")["input_ids"] for t in texts]
        return [[h[0].double().numpy() for h in side(input_ids=x, output_hidden_states=True).hidden_states] for x in tokens]


def behind_first(h: np.ndarray) -> np.ndarray:
    return h[1:] if len(h) > 1 else h


def is_sink(states: list[list[np.ndarray]]) -> bool:
    """Whether in some layer the first token is on average more than twice as long as the others."""
    several = [h for h in states if len(h[0]) > 1]
    return max(np.mean([length_beside_others(h[k], 0) for h in several]) for k in range(len(states[0]))) > 2


def length_beside_others(h: np.ndarray, which: int) -> float:
    norms = np.linalg.norm(h, axis=1)
    return norms[which] / np.delete(norms, which).mean()


def both(folder: Path, data: Dataset, store: Path, **options: Any) -> Any:
    """The extractions with and without `sink: keep`."""
    entries = [ModelEntry(f"hf:{folder}", sink=s, modality="text", **options) for s in ("skip", "keep")]
    return extract(data, entries, str(store), batch_size=3)


# --- every architecture ----------------------------------------------------------------------------


SINKS = [name for name, (_, words, causal) in ARCHITECTURES.items() if words == "bpe" and causal and name != "bloom"]


@pytest.mark.parametrize(("name", "planted"), [*((name, False) for name in ARCHITECTURES), *((name, True) for name in SINKS)])
def test_a_sink_is_left_out_of_the_mean_of_a_causal_model_and_nothing_else(name, planted, folders, data, tmp_path):
    """BOS, wherever there is one; the first word where it is a sink; a first word like any other stays."""
    kind, words, causal = ARCHITECTURES[name]
    folder = folders(name, planted)
    states = alone(folder, kind)
    skips = causal and (words == "bos" or is_sink(states))
    assert skips == (causal and (words == "bos" or planted))
    side = "left" if name in ("llama", "bert") else "right"
    if name == "mamba":  # its scan knows no mask
        side = "none"
    skipped, kept = both(folder, data, tmp_path, padding=side)
    for k, layer in enumerate(kept.layers):
        every = np.stack([h[k].mean(0) for h in states])
        fewer = np.stack([behind_first(h[k]).mean(0) for h in states]) if skips else every
        size = np.abs(every).max()
        np.testing.assert_allclose(kept.load(layer), every, rtol=1e-3, atol=2e-5 * max(1, size))
        np.testing.assert_allclose(skipped.load(layer), fewer, rtol=1e-3, atol=2e-5 * max(1, size))
        ratio = np.mean([length_beside_others(h[k], 0) for h in states if len(h[k]) > 1])
        for r in (skipped, kept):
            assert r.facts["token_norms"][layer]["first"] == pytest.approx(ratio, rel=1e-3)
    assert (skipped.facts["causal"], skipped.facts["first_token"]) == (causal, "left out" if skips else "counts")
    assert kept.facts["first_token"] == "counts"
    lengths = [len(h[0]) for h in states]
    assert kept.extra("tokens_valid").tolist() == lengths
    assert skipped.extra("tokens_counted").tolist() == [max(n - skips, 1) for n in lengths]
    assert skipped.facts["texts_of_one_token"] == sum(n == 1 for n in lengths)
    if "nats" in kept.extras:  # what texts cost is that of the same tokens
        assert torch.equal(kept.extra("nats"), skipped.extra("nats")) and kept.record.scores == skipped.record.scores


def test_other_poolings_do_not_mind(folders, data, tmp_path):
    for name, pooling in (("bloom", "last"), ("bert", "cls"), ("bert", "last")):
        skipped, kept = both(folders(name), data, tmp_path, pooling=pooling)
        assert all(torch.equal(skipped.load(n), kept.load(n)) for n in kept.layers)
        assert "token_norms" not in kept.facts and "first_token" not in kept.facts


def test_a_word_that_all_prompts_begin_with_is_left_out_where_it_is_a_sink(folders, data, tmp_path):
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = tmp_path / "model"
    shutil.copytree(folders("llama"), folder)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer("Say")["input_ids"][0]] *= 300
    tiny._save(model, folder)
    got = extract(data, [ModelEntry(f"hf:{folder}", prompt="Say {caption}")], str(tmp_path / "store"))[0]
    states = alone(folder, "LlamaForCausalLM", tuple(f"Say {t}" for t in TEXTS))
    assert is_sink(states)
    np.testing.assert_allclose(got.load("block.1"), [h[2][1:].mean(0) for h in states], rtol=1e-3, atol=2e-5)


def test_a_text_that_is_cut_loses_its_first_token_too(folders, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(folders("gpt2 with bos"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(folder)
    long = (TEXTS[3] * 2, "A dog")
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps({"id": str(i), "text": t}) for i, t in enumerate(long)))
    data = Dataset.from_table(tmp_path / "long.jsonl", id="id", text="text")
    got = extract(data, [ModelEntry(f"hf:{folder}", truncate=True)], str(tmp_path / "store"))[0]
    states = alone(folder, "GPT2LMHeadModel", long)[0]  # of all tokens: causal, so that the first 8 are the same
    np.testing.assert_allclose(got.load("block.0")[0], states[1][1:8].mean(0), rtol=1e-3, atol=2e-5)
    assert got.extra("tokens_counted")[0] == 7 and got.facts["texts_cut"] == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["bert", "t5", "llama", "gpt2 with bos"])
def test_what_is_causal_shows_in_half_precision_too(name, dtype, folders, data, tmp_path):
    got = extract(data, [f"hf:{folders(name)}"], str(tmp_path), dtype=dtype)[0]
    assert got.facts["causal"] == ARCHITECTURES[name][2]


@pytest.mark.parametrize(
    ("back", "dtype", "first", "causal"),
    [
        (0.0, torch.float32, 1, True),
        (0.3, torch.float32, 1, False),
        (0.05, torch.bfloat16, 1, False),  # little, and as much as it looks forward: no rounding
        (0.001, torch.bfloat16, 1, True),  # rounding
        (0.3, torch.float32, 1e4, False),  # one long token does not hide that the others moved
    ],
)
def test_who_sees_whom(back, dtype, first, causal):
    """Tokens that take a share of those before them, .05, and of those behind them, `back`."""
    table = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))

    def run(ids: torch.Tensor) -> list[torch.Tensor]:
        t = ids.shape[1]
        weights = torch.eye(t) + 0.05 * torch.ones(t, t).tril(-1) + back * torch.ones(t, t).triu(1)
        states = weights @ table[ids[0]]
        states[0] *= first
        return [states[None]]

    assert sees_only_back(run, torch.arange(10, 18)[None], 4, dtype) == causal


# --- a sink that is there ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(folders, tmp_path_factory):
    """A GPT-2 whose first position is a hundred times as long as others, at the embeddings and thereafter."""
    from transformers import GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("planted") / "model"
    shutil.copytree(folders("gpt2"), folder)
    model = GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        others = (model.transformer.wte.weight + model.transformer.wpe.weight[1]).norm(dim=1).mean()
        model.transformer.wpe.weight[0] *= 100 * others / model.transformer.wpe.weight[0].norm()
    return tiny._save(model, folder)


@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_a_planted_sink(side, planted, data, tmp_path):
    states = alone(planted, "GPT2LMHeadModel")
    skipped, kept = both(planted, data, tmp_path, padding=side)
    for k, layer in enumerate(kept.layers):
        np.testing.assert_allclose(kept.load(layer), [h[k].mean(0) for h in states], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(skipped.load(layer), [behind_first(h[k]).mean(0) for h in states], rtol=1e-3, atol=1e-4)
    norms = kept.facts["token_norms"]["block.0"]
    assert 50 < norms["first"] == pytest.approx(norms["longest"]) and norms["share"] > 0.8
    without = skipped.facts["token_norms"]["block.0"]
    assert without["first"] == norms["first"] and without["longest"] < 2

    def told(r: Any) -> dict[str, str]:
        found = examine(r.load("block.0"), model="m", layer="block.0", facts=r.facts)
        return {f.code: f.message for f in found if f.code in ("sink", "sink-alone", "ruling-token")}

    assert told(kept).keys() == {"sink"} and "times as long" in told(kept)["sink"] and "`sink: skip`" in told(kept)["sink"]
    assert told(skipped).keys() == {"sink-alone"}  # TEXTS[2] is a token alone
    assert told(skipped)["sink-alone"].startswith("1 texts are one token") and "prompt" in told(skipped)["sink-alone"]


def test_a_token_that_rules_the_mean_behind_the_first(folders, data, tmp_path):
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = tmp_path / "model"
    shutil.copytree(folders("llama with bos"), folder)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    stop = tokenizer(".", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[stop] *= 100
    tiny._save(model, folder)
    got = extract(data, [f"hf:{folder}"], str(tmp_path / "store"))[0]
    longest, share = [], []
    for h in alone(folder, "LlamaForCausalLM"):
        norms = np.linalg.norm(h[0][1:], axis=1)
        if len(norms) > 1:
            longest.append(length_beside_others(h[0][1:], int(norms.argmax())))
            share.append(norms.max() / norms.sum())
    norms = got.facts["token_norms"]["embeddings"]
    assert norms["longest"] == pytest.approx(np.mean(longest), rel=1e-4) and norms["longest"] > 10
    assert norms["share"] == pytest.approx(np.mean(share), rel=1e-4)
    found = {f.code: f.message for f in examine(got.load("embeddings"), model="m", layer="embeddings", facts=got.facts)}
    assert f"{norms['share']:.0%} of their norms" in found["ruling-token"] and "sink" not in found


FACTS = {"first_token": "counts", "causal": True, "texts_of_one_token": 0}


@pytest.mark.parametrize(
    ("facts", "norms", "told"),
    [
        ({}, {"first": 148.0, "longest": 148.0, "share": 0.9}, {"sink": "`sink: skip`"}),
        ({}, {"first": RULING_TOKEN, "longest": RULING_TOKEN, "share": 0.3}, {}),  # above it, not at it
        ({}, {"first": 3.0, "longest": 3.0, "share": RULING_SHARE}, {}),  # of a long text, in which it weighs little
        ({"causal": False}, {"first": 9.0, "longest": 9.0, "share": 0.5}, {"sink": "`pooling: cls`"}),
        ({"first_token": "left out"}, {"first": 148.0, "longest": 1.2, "share": 0.1}, {}),
        ({"first_token": "left out", "texts_of_one_token": 3}, {"first": 148.0, "longest": 1.2}, {"sink-alone": "3 texts"}),
        ({"first_token": "left out", "texts_of_one_token": 3}, {"first": 1.1, "longest": 1.2, "share": 0.1}, {}),
        ({"first_token": "left out"}, {"first": 148.0, "longest": 3.2, "share": 0.25}, {"ruling-token": "25% of their norms"}),
        ({}, {"first": 1.0, "longest": 3.2, "share": 0.25}, {"ruling-token": "3.2 times"}),
        ({}, {}, {}),  # texts of one token only
    ],
)
def test_what_the_doctor_says_of_tokens(facts, norms, told):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((300, 20)))
    found = examine(x, model="m", layer="l", facts={**FACTS, **facts, "token_norms": {"l": norms}})
    assert {f.code for f in found} == set(told)
    assert all(told[f.code] in f.message for f in found)
    assert not examine(x, model="m", layer="l")


def test_the_length_of_one_token_beside_the_others():
    """Rows: three tokens; padding on the left, with NaN in it; one token; nothing beside the first."""
    hidden = torch.zeros(4, 3, 2)
    hidden[0, :, 0], hidden[1, :, 0] = torch.tensor([6.0, 1, 3]), torch.tensor([torch.nan, 2, -4])
    hidden[2, 0, 0], hidden[3, 0, 1] = 5, 5
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 1]])
    counted = without_first(mask)
    assert counted.tolist() == [[0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 1]]
    assert without_first(mask.bool()).tolist() == counted.bool().tolist()
    first, longest = norm_ratios(hidden, mask, counted)
    np.testing.assert_array_equal(first, [3, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(longest, [3, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(norm_ratios(hidden, mask, mask)[1], [3, 2, np.nan, np.nan])


# --- sentence-transformers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "planted", "skips"),
    [("llama", False, False), ("llama", True, True), ("llama with bos", False, True), ("bert", False, False)],
)
def test_sentence_transformers_follow_the_rule(name, planted, skips, folders, data, tmp_path):
    kind = ARCHITECTURES[name][0]
    states = alone(folders(name, planted), kind)
    folder = tiny.sentence_transformer(tmp_path / "st", folders(name, planted))
    skipped, kept = extract(data, [ModelEntry(f"st:{folder}", sink=s) for s in ("skip", "keep")], str(tmp_path / "store"))
    every, fewer = (np.stack([cut(h[1]).mean(0) for h in states]) for cut in (lambda h: h, behind_first))
    np.testing.assert_allclose(kept.load("block.0"), every, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(skipped.load("block.0"), fewer if skips else every, rtol=1e-3, atol=2e-5)
    assert torch.equal(kept.load("sentence_embedding"), skipped.load("sentence_embedding"))
    assert skipped.facts["first_token"] == ("left out" if skips else "counts")
    assert skipped.facts["token_norms"]["block.1"]["first"] > 0 and "sentence_embedding" not in skipped.facts["token_norms"]


# --- the store of former versions, study files ---------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "asked", "reused"),
    [
        (NO_BOS, {}, False),  # the sink is in its numbers
        (NO_BOS, {"sink": "keep"}, False),  # `bos: skip` was asked for: not what `keep` is called
        ("all without the beginning-of-sequence token", {}, True),
        ("all with the beginning-of-sequence token", {}, True),  # an encoder's, under `bos: skip`
        ("the last token", {"pooling": "last"}, True),
    ],
)
def test_what_former_versions_stored(tokens, asked, reused, folders, data, tmp_path):
    """They left BOS out and called it so; what has the same numbers today is found, and nothing else."""
    entry = ModelEntry(f"hf:{folders('llama')}", **asked)
    today = extract(data, [entry], str(tmp_path / "today"))[0]
    former = {"modality": None, "pooling": entry.pooling, "layers": None, "caption": 0, "bos": "skip", "padding": "right",
              "truncate": False, "store_dtype": "float32", "ids": None, "dtype": "auto"}  # fmt: skip
    store = FeatureStore(str(tmp_path / "store"))
    writer = store.writer(dataset=data.describe(), record=today.record, settings=former, ids=data.ids)
    layers = {n: today.load(n) + 1 for n in today.layers}
    writer.write(writer.parts[0], layers, {}, {"weights_fingerprint": "w"})
    before = writer.finish(today.record, {"tokens": tokens})
    got = extract(data, [entry], store)[0]
    assert (got.path == before.path) == reused
    assert torch.equal(got.load("block.0"), before.load("block.0") if reused else today.load("block.0"))
    assert torch.equal(before.load("block.0"), layers["block.0"])  # still there


def test_settings_where_no_texts_are_pooled_are_those_of_former_versions():
    for spec in ("toy:cnn", "timm:resnet18", "array:x.npy", "torch:a.b:c"):
        assert ModelEntry(spec).settings("auto")["bos"] == "skip" and "sink" not in ModelEntry(spec).settings("auto")
    assert "sink" not in ModelEntry("openclip:a/b", modality="image").settings("auto")
    for spec in ("hf:a/b", "st:a/b"):
        assert ModelEntry(spec).settings("auto")["sink"] == "skip" and "bos" not in ModelEntry(spec).settings("auto")
        kept = ModelEntry(spec, sink="keep").settings("auto")
        assert kept["bos"] == "keep" and "sink" not in kept  # counting all tokens is what it was


def test_the_modes_of_the_paper_and_of_its_code_count_every_token():
    study = load_study(Path(__file__).parents[1] / "studies/cross_modal.yaml")
    assert isinstance(study, AlignmentStudy)
    said = {v.name: {e.sink for e in v.x} for v in study.variants}
    assert said == {"ours": {"skip"}, "paper": {"keep"}, "reference": {"keep"}, "prompt": {"skip"}}


def test_study_files_say_sink(tmp_path):
    text = """
name: s
dataset: {toy: {n: 12}}
models: {x: ["toy:language-bag"], y: ["toy:vision-pixels"], options: {x: {OPTION}}}
variants: {ours: {}, paper: {preset: platonic-rep, models.options.x.FIELD: keep}}
"""
    (tmp_path / "s.yaml").write_text(text.replace("OPTION", "padding: left").replace("FIELD", "sink"))
    study = load_study(tmp_path / "s.yaml")
    assert isinstance(study, AlignmentStudy)
    ours, paper = study.variants
    assert (ours.x[0].sink, paper.x[0].sink, paper.x[0].padding) == ("skip", "keep", "left")
    former = r"models\.options\.x\.bos.*: there is no field 'bos'\n  got: bos\n  do: write `sink` in its place"
    for option, field in (("bos: skip", "sink"), ("padding: left", "bos")):
        (tmp_path / "s.yaml").write_text(text.replace("OPTION", option).replace("FIELD", field))
        with pytest.raises(RepalignError, match=former):
            load_study(tmp_path / "s.yaml")
