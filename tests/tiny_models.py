"""Tiny models with random weights, saved to disk the way real ones are: no network, no downloads.

Weights are large (std 0.5), so that a wrong position, a counted padding token or a lost norm shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

CAPTIONS = (
    "A dog runs.",
    "Two brown dogs run across the wide green field beside a river.",
    "A child in a red coat climbs the stairs.",
    "Café terrace, naïve façade: Ωmega!",
    "A man.",
    "The women play a game of cards at a small wooden table near the window of the old house.",
    "A bird sings on the roof.",
    "Snow.",
    "An old man reads a newspaper, and a cat sleeps on his knees.",
    "A boat on the lake at night",
    "Three boys jump into the water.",
)
IDS = tuple(f"s{i:02d}" for i in range(len(CAPTIONS)))


def images(n: int = len(CAPTIONS)) -> list[Image.Image]:
    """Pictures of unequal sizes and colours."""
    rng = np.random.default_rng(5)
    out = []
    for i in range(n):
        height, width = 40 + 3 * i, 64 - 2 * i
        small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        out.append(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return out


def dataset(folder: Path, n: int = len(CAPTIONS)) -> Any:
    """The captions and pictures as a dataset with the columns image and text."""
    from repalign.dataset import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for id_, caption, image in zip(IDS[:n], CAPTIONS, images(n), strict=False):
        image.save(folder / f"{id_}.png")
        lines.append(json.dumps({"id": id_, "image": f"{id_}.png", "text": [caption, f"Second: {caption}"]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Dataset.from_table(folder / "pairs.jsonl", id="id", image="image", text="text")


# --- tokenizers ----------------------------------------------------------------------------------


def bpe_tokenizer(folder: Path, *, bos: bool, pad: bool = False) -> Any:
    """A byte-level BPE, as causal models have; with `bos` it puts <s> first, like Llama's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CAPTIONS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", **({"pad_token": "<pad>"} if pad else {})}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    wrapped.save_pretrained(folder)
    return wrapped


def wordpiece_tokenizer(folder: Path) -> Any:
    """A WordPiece with [CLS] and [SEP], as BERT has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        CAPTIONS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    wrapped.save_pretrained(folder)
    return wrapped


# --- text models of transformers -----------------------------------------------------------------


def _save(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model.eval().to(dtype).save_pretrained(folder)
    return folder


def _randomise(model: torch.nn.Module, seed: int = 0, std: float = 0.5) -> Any:
    """Every weight, biases and norms too, so that nothing is by chance the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            norm = p.ndim == 1 and name.endswith("weight")
            fan_in = p[0].numel() if p.ndim > 1 else 1
            p.copy_(1 + 0.3 * noise if norm else noise * std / fan_in**0.5)
            if "emb" in name or "wte" in name or "wpe" in name or "position" in name:
                p.copy_(noise * std)
        for name, b in sorted(model.named_buffers()):
            if name.endswith("running_mean"):
                b.copy_(0.3 * torch.randn(b.shape, generator=generator))
            if name.endswith("running_var"):
                b.copy_(0.5 + torch.rand(b.shape, generator=generator))
    return model


def gpt2(folder: Path, *, bos: bool = False, dtype: torch.dtype = torch.float32, positions: int = 96) -> Path:
    """Learned absolute positions, tied head; without BOS, as the real one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = bpe_tokenizer(folder, bos=bos)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=positions, n_embd=24, n_layer=3, n_head=3, bos_token_id=0, eos_token_id=1
    )
    return _save(_randomise(GPT2LMHeadModel(config)), folder, dtype)


def opt(folder: Path) -> Path:
    """Learned positions that the model counts from the attention mask."""
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer = bpe_tokenizer(folder, bos=True, pad=True)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        ffn_dim=32,
        num_attention_heads=2,
        max_position_embeddings=96,
        word_embed_proj_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return _save(_randomise(OPTForCausalLM(config)), folder)


def llama(folder: Path, *, bos: bool = True, dtype: torch.dtype = torch.float32, head: bool = True) -> Path:
    """Rotary positions, a head of its own, no pad token; without `head` only the body is saved."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = bpe_tokenizer(folder, bos=bos)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = _randomise(LlamaForCausalLM(config))
    return _save(model if head else model.model, folder, dtype)


def bert(folder: Path, *, pooler: bool = False) -> Path:
    """Learned positions, both directions; saved with its masked-token head and without a pooler."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    tokenizer = wordpiece_tokenizer(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=48,
    )
    return _save(_randomise((BertModel if pooler else BertForMaskedLM)(config)), folder)


def roberta(folder: Path) -> Path:
    """Learned positions that the model counts from the token ids, padding left out."""
    from transformers import RobertaConfig, RobertaModel

    tokenizer = wordpiece_tokenizer(folder)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return _save(_randomise(RobertaModel(config)), folder)


def t5(folder: Path) -> Path:
    """An encoder and a decoder, relative positions."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = wordpiece_tokenizer(folder)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return _save(_randomise(T5ForConditionalGeneration(config), std=0.3), folder)


# --- vision models of transformers ---------------------------------------------------------------


def _processor(folder: Path, kind: str = "vit", size: int = 32) -> None:
    from transformers import CLIPImageProcessor, ConvNextImageProcessor, ViTImageProcessor

    square = {"height": size, "width": size}
    made = {
        "vit": lambda: ViTImageProcessor(size=square, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]),
        "clip": lambda: CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square),
        "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": size}, crop_pct=0.875),
    }[kind]()
    made.save_pretrained(folder)


_SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 32,
}


def vit(folder: Path) -> Path:
    """A class token, a final norm; saved as a classifier, so that the pooler has no weights."""
    from transformers import ViTConfig, ViTForImageClassification

    _processor(folder)
    return _save(_randomise(ViTForImageClassification(ViTConfig(**_SMALL, patch_size=8, num_labels=5))), folder)


def dinov2(folder: Path, registers: int = 0) -> Path:
    """Layer scale, a class token; with registers the tokens behind it are no patches."""
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    _processor(folder)
    options = {k: v for k, v in _SMALL.items() if k != "intermediate_size"} | {"patch_size": 8, "mlp_ratio": 2}
    if registers:
        config = Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
        return _save(_randomise(Dinov2WithRegistersModel(config)), folder)
    return _save(_randomise(Dinov2Model(Dinov2Config(**options))), folder)


def clip(folder: Path) -> Path:
    """Both towers."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = bpe_tokenizer(folder, bos=True, pad=True)
    _processor(folder, "clip")
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    config = CLIPConfig(text_config=text, vision_config={**_SMALL, "patch_size": 8}, projection_dim=12)
    return _save(_randomise(CLIPModel(config)), folder)


def clip_vision(folder: Path) -> Path:
    """The vision tower alone."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    _processor(folder, "clip")
    return _save(_randomise(CLIPVisionModel(CLIPVisionConfig(**_SMALL, patch_size=8))), folder)


def resnet(folder: Path) -> Path:
    """A convolutional network: maps of unequal widths."""
    from transformers import ResNetConfig, ResNetModel

    _processor(folder, "convnext")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 20], depths=[1, 2, 1], layer_type="basic")
    return _save(_randomise(ResNetModel(config)), folder)


# --- timm ----------------------------------------------------------------------------------------


def timm_folder(folder: Path, architecture: str, **arguments: Any) -> Path:
    """A timm model as timm itself saves it for the hub."""
    import timm
    from timm.models import save_for_hf

    model = _randomise(timm.create_model(architecture, pretrained=False, num_classes=4, **arguments))
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    save_for_hf(model.eval(), folder, model_args=arguments, safe_serialization=True)
    return folder


def timm_vit(folder: Path) -> Path:
    return timm_folder(folder, "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3)


def timm_cnn(folder: Path) -> Path:
    return timm_folder(folder, "resnet10t", channels=(8, 12, 16, 20))


# --- sentence-transformers -----------------------------------------------------------------------


def sentence_transformer(folder: Path, base: Path) -> Path:
    """Transformer, CLS pooling, a dense layer and normalisation over the model of `base`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    transformer = modules.Transformer(str(base))
    pooling = modules.Pooling(transformer.get_embedding_dimension(), pooling_mode="cls")
    dense = _randomise(modules.Dense(in_features=24, out_features=10))
    SentenceTransformer(modules=[transformer, pooling, dense, modules.Normalize()], device="cpu").save(str(folder))
    return folder


# --- for pages of the docs -----------------------------------------------------------------------


def of_the_page(folder: Path = Path()) -> None:
    """What docs/models.md loads: `clip`, with its processor, and `sentences`."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPProcessor

    made = clip(folder / "clip")
    eyes, reader = CLIPImageProcessor.from_pretrained(made), AutoTokenizer.from_pretrained(made)
    CLIPProcessor(image_processor=eyes, tokenizer=reader).save_pretrained(made)
    sentence_transformer(folder / "sentences", bert(folder / "base", pooler=True))
