"""Stand-ins of text models: tiny transformers of the family that the name tells, with tokenizers made from captions."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from repalign.standins.captions import MORE
from repalign.standins.shapes import HEADS, Shape
from repalign.standins.weights import randomise
from repalign.toyworld import world

CONTEXT = 512  # tokens
VOCABULARY = 500  # pieces of bytes
MARKS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
CORPUS = 400  # captions that a tokenizer is trained on
# Which family a name tells, the first that fits; of a name that tells nothing "gpt2", or a pooling that only encoders have.
FAMILIES = (
    ("bert", re.compile(r"bert|electra|mpnet|minilm|nomic-embed|(?<![a-z])(e5|bge|gte|t5)(?![a-z])|flan", re.I)),
    ("bloom", re.compile(r"bloom", re.I)),
    ("llama", re.compile(r"llama|mistral|mixtral|gemma|vicuna|alpaca|(?<![a-z])opt(?![a-z])", re.I)),
)


def family_of(name: str, pooling: str | None = None) -> str:
    """ "bert", "bloom", "llama" or "gpt2".

    >>> family_of("huggyllama/llama-7b"), family_of("FacebookAI/roberta-large"), family_of("org/mine")
    ('llama', 'bert', 'gpt2')
    """
    told = next((family for family, pattern in FAMILIES if pattern.search(name)), None)
    return told or ("bert" if pooling == "cls" else "gpt2")


def write_text_model(folder: Path, family: str, shape: Shape) -> None:
    """A model of a family as transformers saves it, with its tokenizer."""
    from repalign.sources.hf import quiet

    with quiet(), torch.random.fork_rng(devices=[]):
        tokenizer = _tokenizer(family)
        tokenizer.save_pretrained(folder)
        randomise(_model(family, shape, len(tokenizer)), shape.seed).save_pretrained(folder)


def write_sentence_model(folder: Path, shape: Shape) -> None:
    """A BERT with mean pooling and normalisation, in the files that sentence-transformers reads."""
    from repalign.sources.hf import quiet

    with quiet(), torch.random.fork_rng(devices=[]):
        tokenizer = _tokenizer("bert")
        tokenizer.save_pretrained(folder)
        randomise(_model("sentence", shape, len(tokenizer)), shape.seed).save_pretrained(folder)
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listed)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": CONTEXT, "do_lower_case": False})
    pooling = {"word_embedding_dimension": shape.width, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    for name, settings in (("1_Pooling", pooling), ("2_Normalize", None)):
        (folder / name).mkdir()
        if settings is not None:
            _write_json(folder / name / "config.json", settings)


def text_layers(shape: Shape) -> tuple[str, ...]:
    """The layers that extraction finds in a model of transformers."""
    return ("embeddings", *(f"block.{i}" for i in range(shape.depth)))


def _model(family: str, shape: Shape, vocabulary: int) -> Any:
    import transformers as tr

    if family == "gpt2":
        config = tr.GPT2Config(
            vocab_size=vocabulary, n_positions=CONTEXT, n_embd=shape.width, n_layer=shape.depth, n_head=HEADS,
            n_inner=shape.inner, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        return tr.GPT2LMHeadModel(config)
    if family == "bloom":
        config = tr.BloomConfig(
            vocab_size=vocabulary, hidden_size=shape.width, n_layer=shape.depth, n_head=HEADS, bos_token_id=0,
            eos_token_id=1, pad_token_id=2,
        )  # fmt: skip
        return tr.BloomForCausalLM(config)
    inside: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": shape.width, "intermediate_size": shape.inner,
        "num_hidden_layers": shape.depth, "num_attention_heads": HEADS, "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    if family == "llama":
        return tr.LlamaForCausalLM(tr.LlamaConfig(**inside, num_key_value_heads=HEADS // 2, bos_token_id=0, eos_token_id=1))
    config = tr.BertConfig(**inside, pad_token_id=0)
    return tr.BertModel(config) if family == "sentence" else tr.BertForMaskedLM(config)


# --- tokenizers ----------------------------------------------------------------------------------


def _tokenizer(family: str) -> Any:
    """Bytes in pairs for models that go on with a text, with <s> in front for Llama's; words in pieces for BERT's."""
    from transformers import PreTrainedTokenizerFast

    marks = {"bos_token": "<s>", "eos_token": "</s>", **({"pad_token": "<pad>"} if family == "bloom" else {})}
    marks = MARKS if family == "bert" else marks
    made = _trained(family == "bert", family == "llama")
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=CONTEXT, **marks)


@cache
def _trained(words: bool, starts: bool) -> Any:
    return _pieces() if words else _byte_pairs(starts)


def _byte_pairs(starts: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if starts:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    with _one_thread():
        made.train_from_iterator(_corpus(), trainer)
    return made


def _pieces() -> Any:
    """The words of the corpus and all its characters. The library's own trainer gives another vocabulary every time."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    found = {word for text in _corpus() for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    characters = sorted({c for word in found for c in word})
    known = [*MARKS.values(), *characters, *(f"##{c}" for c in characters), *sorted(w for w in found if len(w) > 1)]
    vocabulary = {piece: i for i, piece in enumerate(known)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=MARKS["unk_token"]))
    made.normalizer, made.pre_tokenizer, made.decoder = normalizer, splitter, decoders.WordPiece()
    ends = [(mark, vocabulary[mark]) for mark in (MARKS["cls_token"], MARKS["sep_token"])]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return made


def _corpus() -> list[str]:
    """Captions of scenes that no stand-in dataset of a usual size has, and every printable character of ASCII."""
    captions = world.sample(CORPUS, 2**31).captions
    characters = " ".join(chr(c) for c in range(33, 127))
    return [*captions, MORE, characters]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Without threads of tokenizers: once they were used, it warns in every process that is forked later."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8", newline="\n")
