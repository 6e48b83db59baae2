"""Stages of inference: laws that any model obeys, plain oracles, and values measured outside on the bed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tiny_models
from repalign.errors import RepalignError, Unavailable
from repalign.experiments import stages
from repalign.experiments.models import Answers, answering, read_stimuli
from repalign.experiments.residual_stream import Stream, stream_of
from repalign.experiments.stages import curvature, measure, update

TEXTS = list(tiny_models.CAPTIONS)
MODELS = {"llama": tiny_models.llama, "gpt2": tiny_models.gpt2, "opt": tiny_models.opt}
SEEING = {"vit": ("hf", tiny_models.vit), "timm": ("timm", tiny_models.timm_vit)}
OF = ("kl", "kl_median", "top1", "nats")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=[*MODELS, *SEEING])
def loaded(request, folder) -> tuple[Answers, list[Any]]:
    if request.param in MODELS:
        return answering(f"hf:{MODELS[request.param](folder / request.param)}"), TEXTS
    scheme, make = SEEING[request.param]
    return answering(f"{scheme}:{make(folder / request.param)}"), tiny_models.images()


@pytest.fixture
def llama(tmp_path) -> Answers:
    return answering(f"hf:{tiny_models.llama(tmp_path)}")


def row(table: pd.DataFrame, depth: int, what: str) -> list[float]:
    return [float(table[f"{what}_{name}"][depth]) for name in OF]


# --- laws ------------------------------------------------------------------------------------------


def test_laws_of_any_model(loaded):
    """Nothing changed is KL 0; without the last block is the lens before it; blocks come back as they were."""
    model, stimuli = loaded
    before = {name: id(m.forward.__func__) for name, m in model.module.named_modules()}
    found = measure(model, stimuli, batch_size=4)
    last = found.facts["blocks"]
    assert (found.facts["unchanged_kl"], found.facts["unchanged_top1"]) == (0, 1)
    assert row(found.table, last, "lens")[:3] == [0, 0, 1]
    np.testing.assert_array_equal(row(found.table, last - 1, "delete"), row(found.table, last - 1, "lens"))
    assert found.table["delete_kl"][:last].min() > 0 and found.table["swap_kl"][: last - 1].min() > 0
    assert found.table["depth"].tolist() == list(range(last + 1)) and found.table["relative_depth"].iloc[-1] == 1
    assert {name: id(m.forward.__func__) for name, m in model.module.named_modules()} == before
    assert not [name for name, m in model.module.named_modules() if "forward" in vars(m)]
    if model.kind == "image":
        assert found.table["curvature"].isna().all() and found.table["delete_nats"].isna().all()
    assert found.draw().figure is not None


def test_two_blocks_that_are_the_same_and_one_that_adds_nothing(llama):
    blocks = llama.module.model.layers
    blocks[2].load_state_dict(blocks[1].state_dict())
    found = measure(llama, TEXTS).table
    assert row(found, 1, "swap") == [0, 0, 1, 0] and min(row(found, 0, "swap")[0], row(found, 1, "delete")[0]) > 1e-3
    with torch.no_grad():
        for weight in blocks[1].parameters():
            weight.zero_()
    found = measure(llama, TEXTS).table
    assert row(found, 1, "delete") == row(found, 0, "swap") == row(found, 1, "swap") == [0, 0, 1, 0]
    assert row(found, 0, "delete")[0] > 1e-3 and found["update"][1] == 0


def test_swapped_twice_is_nothing(llama):
    prepared = llama.prepare(TEXTS)
    stream = stream_of(llama, prepared)
    logits = llama.run(prepared)[0]
    with stream.swapped(1):
        assert not torch.equal(llama.run(prepared)[0], logits)
        with stream.swapped(1):
            assert torch.equal(llama.run(prepared)[0], logits)
    assert torch.equal(llama.run(prepared)[0], logits)


@pytest.mark.parametrize("what", ["without", "swapped", "entered", "watched"])
def test_given_back_after_an_error(llama, what):
    prepared = llama.prepare(TEXTS)
    stream = stream_of(llama, prepared)
    logits = llama.run(prepared)[0]
    given = {"entered": (2, torch.zeros(1)), "watched": ()}.get(what, (1,))
    with pytest.raises(RuntimeError, match="stop"), getattr(stream, what)(*given):
        raise RuntimeError("stop")
    assert torch.equal(llama.run(prepared)[0], logits)
    assert not [m for m in llama.module.modules() if "forward" in vars(m) or m._forward_pre_hooks]


def test_a_forward_that_another_library_put_there_stays(llama):
    block = llama.module.model.layers[0]
    own = block.forward
    block.forward = lambda *args, **kwargs: own(*args, **kwargs)
    placed = block.forward
    measure(llama, TEXTS[:2])
    assert vars(block)["forward"] is placed


def test_padding_is_never_counted(folder):
    model = answering(f"hf:{MODELS['gpt2'](folder / 'padded')}")
    alone, together = (measure(model, TEXTS, batch_size=size) for size in (1, len(TEXTS)))
    assert alone.facts["positions"] == together.facts["positions"] == sum(len(p.ids) for p in model.prepare(TEXTS))
    pd.testing.assert_frame_equal(alone.table, together.table, atol=1e-4, rtol=1e-4)


# --- oracles ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_agrees_with_plain_loops(llama):
    """One text at a time, blocks taken out of the list, the lens as head(norm(h))."""
    net, found = llama.module, measure(llama, TEXTS, batch_size=3)
    every = [torch.tensor([p.ids]) for p in llama.prepare(TEXTS)]
    whole = list(net.model.layers)

    def answers(blocks: list[Any]) -> list[torch.Tensor]:
        net.model.layers = torch.nn.ModuleList(blocks)
        net.config.num_hidden_layers = len(blocks)
        out = [net(ids, use_cache=False).logits[0].double().log_softmax(-1) for ids in every]
        net.model.layers = torch.nn.ModuleList(whole)
        net.config.num_hidden_layers = len(whole)
        return out

    def told(changed: list[torch.Tensor]) -> list[float]:
        kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(plain, changed, strict=True)])
        same = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in zip(plain, changed, strict=True)])
        nats = [
            torch.cat([-lp[torch.arange(x.shape[1] - 1), x[0, 1:]] for lp, x in zip(some, every, strict=True)]).mean()
            for some in (changed, plain)
        ]
        return [float(kl.mean()), float(kl.quantile(0.5)), float(same.double().mean()), float(nats[0] - nats[1])]

    plain = answers(whole)
    states = [net(ids, output_hidden_states=True).hidden_states for ids in every]
    for i in range(3):
        early = [net.lm_head(net.model.norm(h[i][0])).double().log_softmax(-1) for h in states]
        swapped = [*whole[:i], *whole[i : i + 2][::-1], *whole[i + 2 :]]
        for what, changed in (("delete", answers(whole[:i] + whole[i + 1 :])), ("lens", early), ("swap", answers(swapped))):
            if what != "swap" or i < 2:
                np.testing.assert_allclose(row(found.table, i, what), told(changed), atol=2e-5)
        entropy = torch.cat([-(lp.exp() * lp).sum(-1) for lp in early]).mean()
        assert found.table["lens_entropy"][i] == pytest.approx(float(entropy), abs=1e-5)


def test_shape_of_the_stream():
    turn = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 3.0], [1.0, 1.0]])
    np.testing.assert_allclose(curvature(turn), [np.pi / 2, 0, np.pi], atol=1e-7)
    np.testing.assert_allclose(curvature(5 * turn + 3), [np.pi / 2, 0, np.pi], atol=1e-7)
    assert update(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 1.0]])).tolist() == [0.6]


# --- what cannot be done ---------------------------------------------------------------------------


def test_blocks_with_other_attention_are_not_swapped(tmp_path):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = tiny_models.bpe_tokenizer(tmp_path, bos=True)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, sliding_window=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    tiny_models._save(tiny_models._randomise(Gemma3ForCausalLM(config), std=0.2), tmp_path)
    found = measure(answering(f"hf:{tmp_path}"), TEXTS)
    assert found.table["swap_kl"].notna().tolist() == [True, False, False, False]
    (refused,) = found.tables["refused"].to_dict("records")
    assert (refused["block"], refused["reason"]) == (1, "sliding_attention and full_attention")
    assert "1 swap of neighbours of unlike kinds left out" in found.text


def test_blocks_of_other_classes_are_not_swapped(llama):
    class Other(type(llama.module.model.layers[0])):  # type: ignore[misc]
        pass

    llama.module.model.layers[2].__class__ = Other
    found = measure(llama, TEXTS[:3])
    assert found.tables["refused"]["reason"].tolist() == ["LlamaDecoderLayer and Other"]


def test_no_list_of_blocks(llama):
    llama.module.config.num_hidden_layers = 7
    with pytest.raises(Unavailable, match=r"(?s)cannot be told.*one list of 7 modules.*no such list in LlamaForCausalLM"):
        measure(llama, TEXTS)
    llama.module.config.num_hidden_layers = 2
    llama.module.extra = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)])
    with pytest.raises(Unavailable, match="extra, which does not"):
        stream_of(llama, llama.prepare(TEXTS[:1]))


def headless(folder: Path) -> Path:
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_vit", pretrained=False, num_classes=0), str(folder), safe_serialization=True)
    return folder


def test_wrong_inputs(folder, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    llm, seeing = f"hf:{tiny_models.llama(folder / 'wrong')}", f"hf:{tiny_models.vit(folder / 'seeing')}"
    for model, path, options, match in (
        (seeing, texts, {}, "no column 'image'|no image"),
        (seeing, texts, {"column": "text"}, "A|image"),
        (llm, texts, {"column": "txt"}, r"(?s)'txt'.*text"),
        (llm, tmp_path / "none.csv", {}, "there is no"),
        (llm, tmp_path, {}, "is a folder"),
        (llm, texts, {"n": -1}, "n is out of range"),
        (llm, texts, {"batch_size": 0}, "batch_size is out of range"),
        (f"hf:{tiny_models.bert(folder / 'bert')}", texts, {}, "it predicts no token"),
        ("toy:language-bag", texts, {}, "a toy: model"),
        (f"hf:{tiny_models.dinov2(folder / 'dino')}", texts, {}, "files lack weights"),
        (f"timm:{headless(folder / 'headless')}", texts, {}, "a model without a head"),
        (f"hf:{tiny_models.clip_vision(folder / 'clip')}", texts, {}, "no head that names the class"),
        (f"timm:{tiny_models.timm_cnn(folder / 'cnn')}", tmp_path / "photos", {}, "its blocks cannot be told"),
    ):
        if path.name == "photos" and not path.exists():
            path.mkdir()
            for i, image in enumerate(tiny_models.images()):
                image.save(path / f"{i}.png")
        with pytest.raises(RepalignError, match=match):
            stages(model, path, **options)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(RepalignError, match="has no text"):
        stages(llm, empty)
    (tmp_path / "empty.csv").write_text("text\n")
    with pytest.raises(RepalignError, match="empty|no rows|nothing"):
        stages(llm, tmp_path / "empty.csv")


def test_what_is_read(tmp_path):
    lines = tmp_path / "texts.txt"
    lines.write_text("one\n\ntwo\nthree\n")
    assert read_stimuli(lines, "text", n=2)[0] == ["one", "two"] and len(read_stimuli(lines, "text")[0]) == 3
    table = tmp_path / "texts.jsonl"
    table.write_text('{"captions": ["a", "b"]}\n{"captions": ["c"]}\n')
    assert read_stimuli(table, "text", "captions")[0] == ["a", "c"]
    with pytest.raises(RepalignError, match="has no columns"):
        read_stimuli(lines, "text", "caption")


def test_the_tokenizer_decides_on_the_first_token(folder):
    told = {bos: measure(answering(f"hf:{tiny_models.gpt2(folder / str(bos), bos=bos)}"), TEXTS[:3]) for bos in (True, False)}
    assert "adds a beginning" in told[True].text and "adds no beginning" in told[False].text
    assert told[True].facts["positions"] == told[False].facts["positions"] + 3


def test_words_stand_beside_numbers(llama):
    found = measure(llama, TEXTS)
    beside = found.tables["words"]
    assert beside["stage"].tolist() == ["detokenization", "feature engineering", "prediction ensembling", "residual sharpening"]
    kept, kl = found.table["delete_top1"], found.table["lens_kl"]
    expected = [kept[0], kept[1], (kl[1] - kl[3]) / (kl[0] - kl[3]), kept[2]]
    np.testing.assert_allclose(beside["value"], expected)
    assert "nothing here detects a stage" in found.text


# --- measured outside, on the bed ------------------------------------------------------------------

GOLDEN: dict[str, tuple[int, int, float, dict[str, list[float]]]] = {
    "stories260k": (100, 3385, 3.178595, {
        "delete_kl": [2.690816, 1.647568, 1.070043, 1.097092, 0.981103],
        "delete_kl_median": [2.001579, 0.948131, 0.596503, 0.698555, 0.624909],
        "delete_top1": [0.223338, 0.386115, 0.469424, 0.433383, 0.470310],
        "swap_kl": [2.469512, 1.502150, 0.917732, 1.031506],
        "swap_top1": [0.186115, 0.410044, 0.523781, 0.463811],
        "lens_kl": [22.196901, 12.503337, 5.596675, 2.544593, 0.981103, 0],
        "lens_top1": [0.005318, 0.035155, 0.066174, 0.207976, 0.470310, 1],
        "lens_entropy": [0.004091, 0.226488, 1.133388, 1.909462, 1.938408, 1.528730],
        "curvature": [2.080823, 2.046679, 2.016799, 2.027801, 2.022870, 2.031451],
    }),
    "babyllama105": (50, 3182, 1.804472, {
        "delete_kl": [3.635328, 2.431399, 2.043934, 1.600434, 1.104441],
        "delete_top1": [0.148963, 0.255185, 0.331552, 0.353237, 0.477058],
        "swap_kl": [1.953822, 1.792121, 1.711045, 1.387201],
        "lens_kl": [11.496132, 7.833467, 3.895268, 2.089019, 1.104441, 0],
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_bed(name, shared):
    """Float32 model, float64 softmax: values of another program on the same files, to 1e-4."""
    n, positions, nats, columns = GOLDEN[name]
    captions = shared / "bed/flickr8k_dev/pairs.jsonl"
    found = stages(f"hf:{shared}/bed/models/{name}", captions, column="captions", n=n)
    assert (found.facts["n"], found.facts["positions"]) == (n, positions)
    assert found.facts["nats_per_token"] == pytest.approx(nats, abs=1e-5)
    for column, values in columns.items():
        np.testing.assert_allclose(found.table[column].to_numpy()[: len(values)], values, atol=1e-4, err_msg=column)
        assert found.table[column][len(values) :].isna().all()


@pytest.mark.parametrize("model", ["hf:bigscience/bloomz-560m", "timm:vit_base_patch16_224.augreg_in21k"])
def test_a_study_and_its_mock(model, tmp_path):
    from repalign.study import load_study

    (tmp_path / "s.yaml").write_text(f"name: s\nexperiment: stages\nmodel: {model}\nstimuli: texts.jsonl\nn: 8\n")
    mocked = load_study(tmp_path / "s.yaml").mock().run().drawn[0]
    assert "n = 8" in mocked.text and mocked.table["lens_top1"].iloc[-1] == 1


def test_a_stream_keeps_what_a_block_returns_besides():
    """Blocks that return more than the state: taken out, the rest stays."""

    class Block(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, str]:
            return 2 * hidden_states, "more"

    blocks = (Block(), Block())
    stream = Stream(blocks)
    x = torch.ones(1, 2, 3)
    with stream.watched() as states:
        x1 = blocks[0](hidden_states=x)[0]
        blocks[1](hidden_states=x1)
    assert [float(s.mean()) for s in states] == [1, 2, 4]
    with stream.without(1):
        out, more = blocks[1](hidden_states=x1)
    assert torch.equal(out, x1) and more == "more"
    with stream.entered(2, states[1]):
        assert float(blocks[1](blocks[0](x)[0])[0].mean()) == 2
