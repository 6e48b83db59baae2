"""The stand-ins of each source, tiny models of random weights: of transformers, sentence-transformers, timm, torch and files.

`Source.stand_in` takes them from here; how large each is, and its folder, follows from the name (`standins`).
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repalign.dataset.given import SCENE
from repalign.dataset.texts import MORE
from repalign.errors import RepalignError
from repalign.features import read_file
from repalign.layers import RDM, Kernel
from repalign.sources.array import reading_of
from repalign.sources.model import no_modality
from repalign.sources.source import Asked, StandIn
from repalign.sources.standins import Shape, model_folder, shape_of
from repalign.toyworld import world

HEADS = 4
ONE_VECTOR = {"spatial_mean": "mean"}  # poolings that a vision transformer lacks, and what it does instead


# --- random weights ------------------------------------------------------------------------------


def randomise(model: nn.Module, seed: int) -> Any:
    """The model with every weight drawn anew; biases and norms too, so that nothing is by chance the identity.

    Matrices and kernels have standard deviation 1 / sqrt(inputs), so that no block drowns what the others say: features are
    finite, not constant, and grow from layer to layer.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, module in sorted(model.named_modules()):
            for name, weight in sorted(module.named_parameters(recurse=False)):
                noise = torch.randn(weight.shape, generator=generator)
                if isinstance(module, nn.Embedding):
                    noise = 0.5 * noise
                elif noise.ndim == 1 or name != "weight":  # biases, norms around 1, positions and class tokens
                    noise = 0.1 * noise + (name == "weight")
                else:
                    noise = noise / noise[0].numel() ** 0.5
                weight.copy_(noise)
    return model.eval()


# --- models of text and images -------------------------------------------------------------------

CONTEXT = 512  # tokens
MARKS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
SIDE, PATCH = 32, 8  # pixels
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
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


def of_side(asked: Asked, family: str | None = None) -> StandIn:
    """A model of transformers for the modality: a vision transformer, or a text model of the family that the name tells."""
    if asked.modality not in ("image", "text"):
        raise RepalignError(
            f"model {asked.name}: {asked.spec.scheme} models read images or texts", expected="modality: image, or modality: text",
            got=asked.modality,
        )  # fmt: skip
    if asked.modality == "image":
        folder, shape = model_folder(asked, "hf image", _write_vision)
        return StandIn(f"hf:{folder}", shape.blocks, ONE_VECTOR)
    if family is None:
        try:
            config = asked.spec.file / "config.json" if asked.spec.file else None
            kind = "" if config is None else json.loads(config.read_text("utf-8"))["model_type"]
        except (OSError, ValueError, KeyError, TypeError):
            kind = ""
        family = family_of(f"{asked.spec.path} {kind}", asked.entry.pooling)
    folder, shape = model_folder(asked, family, lambda to, shape: _write_text(to, family, shape))
    return StandIn(f"hf:{folder}", ("embeddings", *shape.blocks))


def sentence_model(asked: Asked) -> StandIn:
    """A BERT with mean pooling and normalisation, in the files that sentence-transformers reads."""
    folder, shape = model_folder(asked, "st", _write_sentence)
    return StandIn(f"st:{folder}", ("embeddings", *shape.blocks, "sentence_embedding"))


def timm_model(asked: Asked, notes: tuple[str, ...]) -> StandIn:
    """A vision transformer as timm itself saves it for the hub."""
    folder, shape = model_folder(asked, "timm", _write_timm)
    # Modules that are named by path may be pooled by their last token, which no block of timm's is.
    more = {"last": "mean"} if any(isinstance(w, str) for w in asked.entry.layers or ()) else {}
    return StandIn(f"timm:{folder}", shape.blocks, {**ONE_VECTOR, **more}, notes)


def _write_text(folder: Path, family: str, shape: Shape) -> None:
    """A transformer of a family as transformers saves it, with its tokenizer."""
    import transformers as tr

    from repalign.sources.hf import quiet

    encodes = family in ("bert", "sentence")
    auto = {"sentence": tr.AutoModel, "bert": tr.AutoModelForMaskedLM}.get(family, tr.AutoModelForCausalLM)
    marks = {"pad_token_id": 0} if encodes else {"bos_token_id": 0, "eos_token_id": 1}
    more = {"n_inner": shape.inner} if family == "gpt2" else {}
    with quiet(), torch.random.fork_rng(devices=[]):
        tokenizer = _tokenizer(family)
        tokenizer.save_pretrained(folder)
        config = tr.AutoConfig.for_model(
            "bert" if encodes else family, vocab_size=len(tokenizer), hidden_size=shape.width, num_hidden_layers=shape.depth,
            num_attention_heads=HEADS, intermediate_size=shape.inner, max_position_embeddings=CONTEXT, **marks, **more,
        )  # fmt: skip
        randomise(auto.from_config(config), shape.seed).save_pretrained(folder)


def _write_sentence(folder: Path, shape: Shape) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from repalign.sources.hf import quiet

    _write_text(folder / "plain", "sentence", shape)
    with quiet():
        transformer, pooling = Transformer(str(folder / "plain"), max_seq_length=CONTEXT), Pooling(shape.width, pooling_mode="mean")
        SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(folder / "plain")


def _write_vision(folder: Path, shape: Shape) -> None:
    """A vision transformer of transformers, with its image processor."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    from repalign.sources.hf import quiet

    config = ViTConfig(
        hidden_size=shape.width, num_hidden_layers=shape.depth, num_attention_heads=HEADS, intermediate_size=shape.inner,
        image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    with quiet(), torch.random.fork_rng(devices=[]):
        processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=list(MEAN), image_std=list(STD))
        processor.save_pretrained(folder)
        randomise(ViTModel(config), shape.seed).save_pretrained(folder)


def _write_timm(folder: Path, shape: Shape) -> None:
    import timm
    from timm.models import save_for_hf

    arguments: dict[str, Any] = {
        "img_size": SIDE, "patch_size": PATCH, "embed_dim": shape.width, "depth": shape.depth, "num_heads": HEADS,
        "mlp_ratio": shape.inner / shape.width, "num_classes": 0,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = randomise(timm.create_model("vit_tiny_patch16_224", pretrained=False, **arguments), shape.seed)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": MEAN, "std": STD, "crop_pct": 1.0}
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)


@cache
def _vocabulary() -> list[str]:
    """Marks, the words of captions that no stand-in dataset of a usual size has, and all characters of ASCII and of these."""
    from tokenizers import normalizers, pre_tokenizers

    characters = " ".join(chr(c) for c in range(33, 127))
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    texts = [*world.sample(400, 2**31).captions, MORE, characters]
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = sorted({c for word in words for c in word})
    return [*letters, *(f"##{c}" for c in letters), *sorted(w for w in words if len(w) > 1)]


def _tokenizer(family: str) -> Any:
    """Words in pieces: between [CLS] and [SEP] for BERT, behind <s> for Llama, alone for others that go on with a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    encodes = family in ("bert", "sentence")
    marks = MARKS if encodes else {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]"}
    marks = {**marks, "pad_token": "<pad>"} if family == "bloom" else marks
    vocabulary = {piece: i for i, piece in enumerate([*marks.values(), *_vocabulary()])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    around = ("[CLS]", "[SEP]") if encodes else ("<s>",) if family == "llama" else ()
    if around:
        template = " ".join([around[0], "$A", *around[1:]])
        ends = [(mark, vocabulary[mark]) for mark in around]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=CONTEXT, **marks)


# --- modules of torch ----------------------------------------------------------------------------

INPUTS = 192  # 8 x 8 pixels of three colours; words and numbers as many
_FACTORY = '''"""A stand-in: {inputs} numbers of a stimulus through {depth} layers."""

from repalign.sources.standin_models import tiny


def build():
    return tiny({modality!r}, depth={depth}, width={width}, seed={seed})
'''


class Tiny(nn.Module):
    """Linear layers with a tanh behind each."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        widths = [INPUTS, *[width] * depth]
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(widths[i], width), nn.Tanh()) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def tiny(modality: str, *, depth: int, width: int, seed: int) -> SimpleNamespace:
    """What a factory of `torch:` returns: the module, how it reads a stimulus, and which column."""
    with torch.random.fork_rng(devices=[]):
        return SimpleNamespace(module=randomise(Tiny(depth, width), seed), preprocess=as_vector, modality=modality)


def as_vector(stimulus: Any) -> Tensor:
    """A picture as 8 x 8 pixels, a text as counts of words by their digest, anything else by its first numbers: (192,)."""
    if isinstance(stimulus, str) and stimulus.endswith(SCENE):
        stimulus = json.loads(Path(stimulus).read_text("utf-8"))
    if isinstance(stimulus, str):
        words = torch.tensor([zlib.crc32(word.encode()) % INPUTS for word in stimulus.lower().split()], dtype=torch.int64)
        return torch.bincount(words, minlength=INPUTS).to(torch.float32)
    if not hasattr(stimulus, "convert"):  # no picture
        return torch.from_numpy(np.resize(np.asarray(stimulus, np.float32).ravel(), INPUTS))
    side = round((INPUTS / 3) ** 0.5)
    pixels = np.asarray(stimulus.convert("RGB").resize((side, side)), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).flatten()


def module(asked: Asked) -> StandIn:
    """A file `model.py` with a function `build`."""

    def write(to: Path, shape: Shape) -> None:
        said = {"modality": asked.modality, "depth": shape.depth, "width": shape.width, "seed": shape.seed}
        (to / "model.py").write_text(_FACTORY.format(inputs=INPUTS, **said), "utf-8")

    folder, shape = model_folder(asked, "torch", write, reads=asked.modality)
    return StandIn(f"torch:{folder / 'model.py'}:build", tuple(f"layers.{i}" for i in range(shape.depth)))


# --- files of features ---------------------------------------------------------------------------

WIDEST = 32  # features
NOISE = (1.5, 0.5)  # standard deviation beside that of the projections, of the first and the last layer


def array_file(asked: Asked) -> StandIn:
    """What made the scenes, projected at random, with noise; in the layers of the real file, or in three if it cannot be read."""
    reading, notes = reading_of(asked.entry, len(asked.ids)), ()
    try:
        found = read_file(Path(asked.spec.path), reading)
    except RepalignError as error:
        found, notes = None, (f"{str(error).splitlines()[0]}; the stand-in has 3 layers",)
    if found is None:
        width, told = shape_of(asked.name, asked.seed).width, {"modality": asked.modality}
        widths = dict.fromkeys(("layer.0", "layer.1", "layer.2"), width)
    else:
        widths = {name: min(x.shape[1], WIDEST) for name, x in found.layers.items()}
        told = {fact: found.facts[fact] for fact in ("modality", "objective") if found.facts.get(fact) is not None}
        if asked.entry.modality is None and "modality" not in told:
            raise no_modality(asked.entry, "array")
    arguments = {"layers": list(widths.items()), "told": told, "by_pairs": reading.kind, "ids": asked.ids, "scenes": asked.seed}

    def write(to: Path, shape: Shape) -> None:
        _write_features(to, widths, told, reading.kind, asked, shape)

    folder, _ = model_folder(asked, "array", write, **arguments)
    said = {} if found is None else {"n_parameters": found.n_parameters, "scores": dict(found.scores)}
    return StandIn(f"array:{folder / 'features.safetensors'}", tuple(widths), notes=notes, **said)


def _write_features(
    folder: Path, widths: Mapping[str, int], told: Mapping[str, str], kind: str | None, asked: Asked, shape: Shape
) -> None:
    """A file `features.safetensors` with a row for every id; of dissimilarities or kernels (n, n) where `kind` says so."""
    seen = _seen(asked.ids, asked.seed)
    rng = np.random.Generator(np.random.PCG64(shape.seed))
    layers = {}
    for share, (name, width) in zip(np.linspace(0, 1, len(widths)), widths.items(), strict=True):
        x = seen @ rng.standard_normal((seen.shape[1], width)) / seen.shape[1] ** 0.5
        x = x + (NOISE[0] + share * (NOISE[1] - NOISE[0])) * rng.standard_normal(x.shape)
        by_pairs = np.linalg.norm(x[:, None] - x, axis=2) if kind == RDM.kind else x @ x.T if kind == Kernel.kind else x
        layers[name] = np.ascontiguousarray(by_pairs, "<f4")
    # The library's own writer puts its metadata in another order every time.
    header: dict[str, object] = {"__metadata__": {**told, "layers": json.dumps(list(layers)), "ids": json.dumps(list(asked.ids))}}
    start = 0
    for name, x in layers.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [start, start + x.nbytes]}
        start += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(x.tobytes() for x in layers.values())
    (folder / "features.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def _seen(ids: Sequence[str], seed: int) -> np.ndarray:
    """What made the scene of every id, (n, 6): angles by cosine and sine, all of mean 0 and variance 1.

    The scene is that of the number that the id ends in, as stand-in datasets and the toy world number them.
    """
    numbers = [re.search(r"\d{1,7}$", id_) for id_ in ids]
    rows = [int(found[0]) for found in numbers if found]
    rows = list(range(len(ids))) if len(rows) < len(ids) else rows
    latents = world.content(max(rows) + 1, seed)[0][rows]
    angles, others = latents[:, :2], latents[:, 2:]
    return np.hstack([2**0.5 * np.cos(angles), 2**0.5 * np.sin(angles), 12**0.5 * (others - 0.5)])
