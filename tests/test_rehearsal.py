"""The main job from a fresh install: the paper's study over every known model, from a cache laid out as the hub's repositories are.

Real names, pinned revisions, each family's own tokenizer files, configurations, precisions and shards; the weights are tiny.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

import tiny_models as tiny
from repalign.models import KnownModel, known_models
from repalign.sources import ModelEntry, extract, parse_spec
from repalign.study import load_study

STUDIES = Path(__file__).parents[1] / "studies"
TEXT = [k for k in known_models() if k.modality == "text"]
IMAGE = [k for k in known_models() if k.modality == "image"]
N = 33  # captions
PAIRS = [f"{c} Number {i}." for i, c in enumerate(tiny.CAPTIONS * 3)]
VARIANTS = {"ours", "paper", "reference", "prompt"}


def repository(hub: Path, name: str, revision: str | None) -> Path:
    """The folder of a snapshot in the cache: at a pinned commit, or at the one that a branch points to."""
    root = hub / f"models--{name.replace('/', '--')}"
    pinned = revision is not None and len(revision) == 40
    commit = revision if pinned else hashlib.sha1(name.encode()).hexdigest()
    if not pinned:
        ref = root / "refs" / (revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(str(commit))
    at = root / "snapshots" / str(commit)
    at.mkdir(parents=True)
    return at


# --- the tokenizers of the families ---------------------------------------------------------------


def byte_level(special: list[str], split: str | None = None, bos: str | None = None, form: Any = None) -> Tokenizer:
    made = Tokenizer(models.BPE())
    own = [pre.Split(Regex(split), "isolated")] if split else []
    made.pre_tokenizer = pre.Sequence([*own, pre.ByteLevel(add_prefix_space=False, use_regex=not split)])  # pyright: ignore
    made.decoder = decoders.ByteLevel()  # pyright: ignore
    if form is not None:
        made.normalizer = form
    alphabet = pre.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(PAIRS, trainer)
    if bos is not None:
        ids = [(bos, special.index(bos))]
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=ids)  # pyright: ignore
    return made


def sentence_pieces(**options: Any) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore
        sentence_iterator=iter(PAIRS), model_writer=out, vocab_size=400, model_type="bpe", byte_fallback=True, minloglevel=2,
        **options,
    )  # fmt: skip
    return out.getvalue()


def metaspace(file: bytes, bos: str, prefix: bool) -> Tokenizer:
    """tokenizer.json as it was converted from a sentencepiece file."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=file)  # pyright: ignore
    names = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    known, merges = {p: i for i, p in enumerate(names)}, []
    for whole in names:
        pairs = [(whole[:i], whole[i:]) for i in range(1, len(whole)) if whole[:i] in known and whole[i:] in known]
        merges += [(known[whole], pair) for pair in pairs]
    ordered = [pair for _, pair in sorted(merges, key=lambda m: m[0])]
    made = Tokenizer(models.BPE(known, ordered, unk_token="<unk>", fuse_unk=True, byte_fallback=True))  # pyright: ignore
    front = [normalizers.Prepend("\u2581")] if prefix else []
    made.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", "\u2581")])  # pyright: ignore
    made.add_special_tokens([t for t in ("<unk>", "<s>", "</s>", "<bos>", "<eos>", "<pad>") if t in known])
    made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, known[bos])])  # pyright: ignore
    return made


BLOOM = r" ?[^(\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, dict[str, bytes]]:
    """The tokenizer files of each family."""
    llama = sentence_pieces()
    gemma = sentence_pieces(
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
    )  # fmt: skip

    def files(config: dict[str, Any], **others: Any) -> dict[str, bytes]:
        told = {"tokenizer_config.json": json.dumps(config).encode()}
        return told | {n.replace("_", ".", 1): x if isinstance(x, bytes) else x.to_str().encode() for n, x in others.items()}

    bloom = byte_level(["<unk>", "<s>", "</s>", "<pad>"], BLOOM)
    olmo = byte_level(["<|endoftext|>", "<|padding|>"], form=normalizers.NFC())
    both = {**LLAMA, "add_bos_token": True, "add_eos_token": False, "model_max_length": 2048}
    return {
        "BLOOMZ": files(
            {"tokenizer_class": "BloomTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
             "unk_token": "<unk>", "padding_side": "left", "add_prefix_space": False},
            tokenizer_json=bloom,
        ),
        "OpenLLaMA": files(both, tokenizer_model=llama),
        "LLaMA": files(both, tokenizer_model=llama, tokenizer_json=metaspace(llama, "<s>", prefix=True)),
        "Mistral": files(both, tokenizer_model=llama, tokenizer_json=metaspace(llama, "<s>", prefix=True)),
        "Mixtral": files(both, tokenizer_model=llama, tokenizer_json=metaspace(llama, "<s>", prefix=True)),
        "Gemma": files(
            {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
             "unk_token": "<unk>", "add_bos_token": True},
            tokenizer_model=gemma, tokenizer_json=metaspace(gemma, "<bos>", prefix=False),
        ),
        "OLMo": files({"tokenizer_class": "GPTNeoXTokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|padding|>"},
                      tokenizer_json=olmo),
        "Llama 3": files(
            {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
            tokenizer_json=byte_level(["<|begin_of_text|>", "<|end_of_text|>"], LLAMA3, "<|begin_of_text|>"),
        ),
    }  # fmt: skip


# --- the models -----------------------------------------------------------------------------------

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
PRECISION = {"BLOOMZ": torch.float16, "OpenLLaMA": torch.float16, "LLaMA": torch.float16, "OLMo": torch.float32}
# How many numbers its tokens have: the first of the file's tokens that stand before a text, or none.
BOS = {"BLOOMZ": None, "OLMo": None, "OpenLLaMA": 1, "LLaMA": 1, "Mistral": 1, "Mixtral": 1, "Gemma": 2, "Llama 3": 0}


def text_model(known: KnownModel) -> Any:
    import transformers as tf

    shared = {**SIZES, "vocab_size": 448, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = {
        "BLOOMZ": lambda: tf.BloomConfig(vocab_size=448, hidden_size=16, n_layer=2, n_head=2),
        "OLMo": lambda: tf.OlmoConfig(**shared),
        "Gemma": lambda: tf.GemmaConfig(**shared, head_dim=8),
        "Mistral": lambda: tf.MistralConfig(**shared),
        "Mixtral": lambda: tf.MixtralConfig(**shared, num_local_experts=2, num_experts_per_tok=1),
    }.get(str(known.family), lambda: tf.LlamaConfig(**shared))()
    model = tiny._randomise(tf.AutoModelForCausalLM.from_config(config), seed=known.nominal_parameters % 997)
    return model.to(PRECISION.get(str(known.family), torch.bfloat16))


@pytest.fixture(scope="module")
def hub(tokenizers, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hf") / "hub"
    for known in TEXT:
        spec = parse_spec(known.spec)
        at = repository(root, spec.path, spec.revision)
        sharded = known.nominal_parameters > 5e9  # as files of such models are
        text_model(known).save_pretrained(at, max_shard_size="20KB" if sharded else "5GB")
        assert (at / "model.safetensors.index.json").is_file() == sharded
        for name, data in tokenizers[str(known.family)].items():
            (at / name).write_bytes(data)
    return root


@pytest.fixture
def offline(hub, monkeypatch):
    """What is in the cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))


def pairs(folder: Path) -> Path:
    images = tiny.images()
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    rows = [json.dumps({"id": f"s{i:02d}", "image": f"{i % len(images)}.png", "text": PAIRS[i]}) for i in range(N)]
    (folder / "pairs.jsonl").write_text("\n".join(rows), "utf-8")
    (folder / "corpus.txt").write_text("\n\n".join(PAIRS[:8]), "utf-8")
    return folder / "pairs.jsonl"


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pictures")
def test_the_study_of_the_paper_runs_over_all_language_models(offline, tmp_path, tokenizers):
    """Both sets, all four variants; a model that is not in the cache is left out, and the report says so."""
    vision = f"timm:{tiny.timm_vit(tmp_path / 'vit')}"
    (tmp_path / "study.yaml").write_text(
        f"""extends: {STUDIES / "cross_modal.yaml"}
name: rehearsal
dataset: {{table: {pairs(tmp_path)}, id: id, image: image, text: text}}
models: {{x: [{{set: prh-val, modality: text}}, {{set: prh-test, modality: text}}, "hf:org/absent"], y: ["{vision}"]}}
competence: {{bits_per_byte: {{corpus: corpus.txt, context: 64, stride: 32}}}}
null: {{draws: 19}}
figures: [{{trend: {{against: bits_per_byte, side: x}}}}]
""",
        "utf-8",
    )
    outcome = load_study(tmp_path / "study.yaml").run()
    assert [name for name, _ in outcome.skipped] == ["hf:org/absent"]
    assert "hf:org/absent" in dict(outcome.wrote)["report"].read_text("utf-8")
    table = pd.read_parquet(next(tmp_path.rglob("variants.parquet")))
    names = {known.name for known in TEXT}
    assert {v: set(g.model_x) for v, g in table.groupby("variant")} == dict.fromkeys(VARIANTS, names)
    assert table.statistic.notna().all()


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({str(k.family) for k in TEXT}))
def test_ids_are_those_of_the_files_of_the_family(family, hub, offline, tokenizers):
    """sentencepiece's own where there is a sentencepiece file alone, else those of tokenizer.json, behind its BOS."""
    from repalign.sources import Context
    from repalign.sources.tokenizer import PROBES, load_tokenizer

    known = next(k for k in TEXT if k.family == family)
    found = load_tokenizer(parse_spec(known.spec), Context("cpu", "auto", revision=parse_spec(known.spec).revision or "main"))
    texts, files = [*PROBES, *PAIRS], tokenizers[family]
    if "tokenizer.json" in files:
        plain = Tokenizer.from_str(files["tokenizer.json"].decode())
        own = [e.ids for e in plain.encode_batch(texts, add_special_tokens=False)]
    else:
        own = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"]).encode(texts)  # pyright: ignore
    front = [] if BOS[family] is None else [BOS[family]]
    assert found.tokenizer(texts)["input_ids"] == [[*front, *ids] for ids in own]


# --- vision ---------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Every vision transformer of timm with two narrow blocks, under its own name and configuration."""
    from timm.models import vision_transformer

    make = vision_transformer._create_vision_transformer

    def narrow(variant: str, pretrained: bool = False, **options: Any) -> Any:
        return make(variant, pretrained, **{**options, "embed_dim": 12, "depth": 2, "num_heads": 2})

    monkeypatch.setattr(vision_transformer, "_create_vision_transformer", narrow)


@pytest.mark.slow
def test_every_vision_model_is_extracted(small, hub, offline, tmp_path):
    import timm
    from timm.models import save_for_hf

    for known in IMAGE:
        name = parse_spec(known.spec).path
        config = timm.get_pretrained_cfg(name)
        at = repository(hub, str(config.hf_hub_id), None)
        save_for_hf(timm.create_model(name), at, safe_serialization=True)
        if config.hf_hub_filename and (at / "model.safetensors").is_file():
            (at / "model.safetensors").rename(at / "open_clip_model.safetensors")
    data = tiny.dataset(tmp_path / "data", n=4)
    entries = [ModelEntry(known.spec, name=known.name) for known in IMAGE]
    found = extract(data, entries, tmp_path / "store")
    assert [r.name for r in found] == [known.name for known in IMAGE]
    assert all(r.layers == ("block.0", "block.1") and r.facts["pooling"] == "cls" for r in found)
