"""The toy networks: images or word numbers in, every layer out.

A network's `forward` gives its layers by name, in depth order: (b, c, h, w) maps or (b, d) vectors of
images, (b, t, d) of words, before any pooling. `widths` is not declared: a layer is as wide as it comes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from repalign.toyworld.captions import LENGTH, PAD, START, VOCABULARY
from repalign.toyworld.render import SIDE

if TYPE_CHECKING:
    from repalign.toyworld.recipes import Recipe

N_WORDS = len(VOCABULARY)
CONTEXT = LENGTH + 1  # a full caption behind its start


def pixels(images: Tensor) -> Tensor:
    """Images (b, 32, 32, 3) uint8 as the networks take them: (b, 3, 32, 32) float32 in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


# --- vision ------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """No network: the pixels of an image as one vector."""

    layers = ("pixels",)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"pixels": x.flatten(1)}


class ConvNet(nn.Module):
    """Three convolutions of stride 2 and a dense layer; `width` channels in the first, then 2 and 4 times as many."""

    layers = ("conv1", "conv2", "conv3", "dense")

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 4 * width)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels))
        self.width, self.d = width, 8 * width
        self.dense = nn.Linear(channels[-1] * (SIDE // 8) ** 2, self.d)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = {}
        for i, conv in enumerate(self.convs, 1):
            x = out[f"conv{i}"] = F.relu(conv(x))
        out["dense"] = F.relu(self.dense(x.flatten(1)))
        return out


# --- language ----------------------------------------------------------------------------------


class Words(nn.Module):
    """A network of words: word numbers (b, t) in, layers (b, t, d) out."""

    layers: tuple[str, ...]
    starts = False  # whether it reads a caption from a start that stands before the first word


class Language(Words):
    """What trained word networks share: an embedding, blocks, and a prediction of a word at every position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_WORDS, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, N_WORDS)

    def predict(self, tokens: Tensor) -> Tensor:
        """Logits (b, t, words) of the next word, or of the masked one."""
        return self.head(self.norm(self.forward(tokens)[self.layers[-1]]))


class CausalConv(Language):
    """Three residual causal convolutions of kernel 3, dilated by 1, 2 and 4: they see the 15 words up to their own."""

    layers = ("embedding", "block1", "block2", "block3")
    starts = True

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**i) for i in range(3))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.embedding(tokens)
        out = {"embedding": x}
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            before = F.pad(norm(x).transpose(1, 2), (2 * 2**i, 0))
            x = out[f"block{i + 1}"] = x + F.gelu(conv(before)).transpose(1, 2)
        return out


class Transformer(Language):
    """Two pre-norm transformer blocks with learned positions; causal, or seeing the whole caption."""

    layers = ("embedding", "block1", "block2")

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__(width)
        self.starts = causal
        self.position = nn.Embedding(CONTEXT, width)
        nn.init.normal_(self.position.weight, std=0.02)
        self.blocks = nn.ModuleList(_Block(width, heads=max(2, width // 16)) for _ in range(2))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        # A causal model needs no mask of the padding: it lies behind every word.
        seen = None if self.starts else (tokens != PAD)[:, None, None, :]  # (b, 1, 1, t)
        out = {"embedding": x}
        for i, block in enumerate(self.blocks, 1):
            x = out[f"block{i}"] = block(x, seen)
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        b, t, d = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, heads, t, d / heads) each
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Recurrent(Language):
    """One layer of gated recurrent units."""

    layers = ("embedding", "gru")
    starts = True

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.embedding(tokens)
        return {"embedding": x, "gru": self.gru(x)[0]}


class WordVectors(Language):
    """A word predicted from the mean of the vectors of its neighbours (continuous bag of words)."""

    layers = ("embedding",)
    reach = 3  # words to either side

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.embedding(tokens)}

    def predict(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        there = (tokens != PAD).to(x.dtype)[..., None]
        near = _near(x * there, self.reach) / _near(there, self.reach).clamp_min(1)
        return self.head(self.norm(near))


def _near(x: Tensor, reach: int) -> Tensor:
    """Sums over the neighbours of each position, itself left out: (b, t, d) -> (b, t, d)."""
    b, t, d = x.shape
    padded = F.pad(x, (0, 0, reach, reach))
    return sum((padded[:, i : i + t] for i in range(2 * reach + 1) if i != reach), x.new_zeros(b, t, d))


class WordTable(Words):
    """A fixed vector for each word: one-hot for the bag of words, or from the co-occurrence of words."""

    layers = ("words",)

    table: Tensor

    def __init__(self, table: Tensor, counted: bool) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=counted)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"words": self.table[tokens]}


# --- by recipe, and pooled ---------------------------------------------------------------------


def build(recipe: Recipe) -> nn.Module:
    """The network of a recipe with random weights, or with an empty table where it is to be computed."""
    if recipe.family == "pixels":
        return Pixels()
    if recipe.family == "transformer":
        return Transformer(recipe.width, causal=recipe.objective != "masked")
    if recipe.family == "bag":
        return WordTable(torch.eye(N_WORDS), counted=False)
    if recipe.family == "svd":
        return WordTable(torch.zeros(N_WORDS, recipe.width), counted=True)
    return {"cnn": ConvNet, "conv": CausalConv, "gru": Recurrent, "cbow": WordVectors}[recipe.family](recipe.width)


@torch.inference_mode()
def image_vectors(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Layers of images (b, 32, 32, 3) uint8, maps as their spatial mean: (b, d) float32 each."""
    layers = network(pixels(images))
    return {name: x.mean((2, 3)) if x.ndim == 4 else x for name, x in layers.items()}


@torch.inference_mode()
def caption_vectors(network: Words, tokens: Tensor) -> dict[str, Tensor]:
    """Layers of captions (b, t) as the mean over their words, the start left out: (b, d) float32 each."""
    there = (tokens != PAD).to(torch.float32)
    layers = network(after_start(tokens) if network.starts else tokens)
    if network.starts:
        layers = {name: x[:, 1:] for name, x in layers.items()}
    share = there / there.sum(1, keepdim=True)
    return {name: torch.einsum("btd,bt->bd", x, share) for name, x in layers.items()}


def after_start(tokens: Tensor) -> Tensor:
    """Captions behind their start: (b, t) -> (b, t + 1)."""
    return F.pad(tokens, (1, 0), value=START)
