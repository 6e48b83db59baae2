"""Text models are run as they were trained: padded to one length, with the class token where it is, and whole."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

import tiny_models as tiny
from repalign.errors import RepalignError, Unavailable
from repalign.sources import ModelEntry, extract

SIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


def words(folder, template: str, **options):
    """Words as tokens, in a template of special ones."""
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(unk_token="<unk>"))  # pyright: ignore
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    special = ["<pad>", "<unk>", "</s>", "<cls>", "<sep>"]
    made.train_from_iterator([*tiny.CAPTIONS], trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    around = [(t, special.index(t)) for t in special if t in template]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)  # pyright: ignore
    named = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", **options}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, **{k: v for k, v in named.items() if v is not None})
    wrapped.save_pretrained(folder)
    return wrapped


# --- a text that is padded to one length ----------------------------------------------------------


def siglip(folder, tokenizer, kind: str = "siglip"):
    import transformers as tf

    ids = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}
    text = {**SIDE, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    vision = {**SIDE, "patch_size": 8, **({"image_size": 32} if kind == "siglip" else {"num_patches": 16})}
    config, model = (tf.SiglipConfig, tf.SiglipModel) if kind == "siglip" else (tf.Siglip2Config, tf.Siglip2Model)
    made = tiny._randomise(model(config(text_config=text, vision_config=vision))).eval()
    made.save_pretrained(folder)
    return made.text_model


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_is_padded_to_its_context(kind, side, masked, pooling, data, tmp_path):
    """As the model's own tokenizer pads, with a mask only where it gives one; against a loop over single texts."""
    inputs = ["input_ids", "attention_mask"] if masked else ["input_ids"]
    tokenizer = words(tmp_path / "m", "$A </s>", model_input_names=inputs, padding_side=side, model_max_length=32)
    model = siglip(tmp_path / "m", tokenizer, kind)
    got = extract(data, [ModelEntry(f"hf:{tmp_path / 'm'}", modality="text", pooling=pooling)], tmp_path / "store", batch_size=3)[0]
    want = []
    with torch.no_grad():
        for text in tiny.CAPTIONS:
            given = tokenizer(text, padding="max_length", max_length=32, return_tensors="pt", return_attention_mask=masked)
            states = model(**{k: given[k] for k in inputs}, output_hidden_states=True).hidden_states
            n = len(tokenizer(text)["input_ids"])
            own = slice(0, n) if side == "right" else slice(32 - n, 32)
            how = {"last": lambda h: h[0, -1], "mean": lambda h, s=own: h[0, s].mean(0), "cls": lambda h, s=own: h[0, s][0]}
            want.append([how[pooling](h) for h in states])
    for i, layer in enumerate(got.layers):
        torch.testing.assert_close(got.load(layer), torch.stack([w[i] for w in want]), rtol=1e-4, atol=1e-5)
    mask = "with a mask" if masked else "without a mask"
    assert got.facts["padding"].startswith(f"to 32 places on the {side}, {mask}")
    assert ("last of 32 places" in got.facts["tokens"]) == (pooling == "last")


def test_padding_is_part_of_such_a_model(data, tmp_path):
    """The test above can fail: run short, the states are others."""
    tokenizer = words(tmp_path / "m", "$A </s>", model_input_names=["input_ids"])
    model = siglip(tmp_path / "m", tokenizer)
    with torch.no_grad():
        short = torch.tensor([tokenizer("A dog runs.")["input_ids"]])
        full = torch.nn.functional.pad(short, (0, 32 - short.shape[1]))
        apart = [
            (a[:, -1] - b[:, -1]).norm() / b[:, -1].norm()
            for a, b in zip(*(model(x, output_hidden_states=True).hidden_states for x in (short, full)), strict=True)
        ]
    assert min(apart) > 0.1
    with pytest.raises(RepalignError, match=r"padding 'none' does not apply\n  expected: texts padded to 32 places on the right"):
        extract(data, [ModelEntry(f"hf:{tmp_path / 'm'}", modality="text", padding="none")], tmp_path / "store")


def test_a_model_of_this_kind_without_a_token_to_pad_with(data, tmp_path):
    siglip(tmp_path / "m", words(tmp_path / "m", "$A </s>", pad_token=None))
    with pytest.raises(Unavailable, match=r"does not say how to pad it(.|\n)*pad_token in tokenizer_config"):
        extract(data, [ModelEntry(f"hf:{tmp_path / 'm'}", modality="text")], tmp_path / "store")


@pytest.mark.parametrize("factory", [tiny.clip, tiny.bert, tiny.llama])
def test_other_models_are_not_padded_so(factory, data, tmp_path):
    """CLIP pools the end of the text, BERT the first token, Llama none: with any length of padding."""
    entry = ModelEntry(f"hf:{factory(tmp_path / 'm')}", modality="text")
    assert "places" not in extract(data, [entry], tmp_path / "store")[0].facts["padding"]


# --- where the class token is ---------------------------------------------------------------------


@pytest.mark.parametrize(("template", "at"), [("$A <sep> <cls>", -1), ("<cls> $A <sep>", 0), ("$A <sep>", 0)])
def test_the_class_token_is_where_the_tokenizer_puts_it(template, at, data, tmp_path):
    from transformers import XLNetConfig, XLNetModel

    tokenizer = words(tmp_path / "m", template, cls_token="<cls>", sep_token="<sep>", padding_side="left")
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=16, n_layer=2, n_head=2, d_inner=24, pad_token_id=0)
    model = tiny._randomise(XLNetModel(config)).eval()
    model.save_pretrained(tmp_path / "m")
    got = extract(data, [ModelEntry(f"hf:{tmp_path / 'm'}", pooling="cls", padding="left")], tmp_path / "store", batch_size=4)[0]
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(t)["input_ids"]]) for t in tiny.CAPTIONS]
        want = torch.stack([model(i, output_hidden_states=True).hidden_states[-1][0, at] for i in ids])
    torch.testing.assert_close(got.load(got.layers[-1]), want, rtol=1e-4, atol=1e-5)
    assert got.facts["tokens"] == ("the last token, which is the class token" if at else "the first token")


# --- a configuration of fewer blocks than the weights ---------------------------------------------

CUT = {  # how many blocks the configuration says
    "llama": (tiny.llama, "num_hidden_layers", "text"),
    "llama without its head": (lambda f: tiny.llama(f, head=False), "num_hidden_layers", "text"),
    "gpt2": (tiny.gpt2, "n_layer", "text"),
    "bert, saved with its head": (tiny.bert, "num_hidden_layers", "text"),
    "t5": (tiny.t5, "num_layers", "text"),
    "vit, saved as a classifier": (tiny.vit, "num_hidden_layers", "image"),
    "clip vision": (tiny.clip_vision, "num_hidden_layers", "image"),
}


@pytest.mark.parametrize("what", list(CUT))
def test_fewer_blocks_than_weights_are_refused(what, data, tmp_path):
    factory, field, modality = CUT[what]
    folder = factory(tmp_path / "m")
    entry = ModelEntry(f"hf:{folder}", modality=modality)
    whole = extract(data, [entry], tmp_path / "store")[0]  # heads, poolers and buffers in the file are no blocks
    config = json.loads((folder / "config.json").read_text("utf-8"))
    n = config[field]
    (folder / "config.json").write_text(json.dumps({**config, field: n - 1, "layer_types": None}), "utf-8")
    with pytest.raises(Unavailable, match=rf"hold more blocks than its config\.json\n  expected: {n - 1} in (.|\n)*block {n - 1}"):
        extract(data, [entry], tmp_path / "store")
    assert whole.layers
