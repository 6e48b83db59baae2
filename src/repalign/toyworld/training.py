"""Training and scoring: a recipe in, weights and competence of each of its models out.

Everything runs in one thread from seeds that follow from the recipe's name, so a name gives the same
weights, to the last bit, on one machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from repalign.text import Progress, silent
from repalign.toyworld import captions, recipes, render, world
from repalign.toyworld.networks import N_WORDS, ConvNet, Language, Words, after_start, build, image_vectors, pixels
from repalign.toyworld.recipes import LANGUAGE, VISION, WEIGHT_DECAY, Recipe

# --- objectives -------------------------------------------------------------------------------------


BATCH = 128
TEMPERATURE = 0.2  # of the contrastive objectives
MASKED_SHARE = 0.3


class Objective(nn.Module):
    """A network and what is trained with it. `batches` gives tuples that `loss` takes."""

    block = 16 * BATCH  # scenes that are made at a time

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def batches(self, run: str, steps: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of a run, in order; the seed of each block follows from the run's name."""
        for start in range(0, steps * BATCH, self.block):
            n = min(self.block, steps * BATCH - start)
            arrays = [torch.from_numpy(a) for a in self.make(n, recipes.seed(run, "training", start))]
            yield from zip(*(a.split(BATCH) for a in arrays), strict=True)

    def make(self, n: int, seed: int) -> tuple[np.ndarray, ...]:
        raise NotImplementedError

    def loss(self, *batch: Tensor) -> Tensor:
        raise NotImplementedError


# --- vision ------------------------------------------------------------------------------------

VALUES = {"hue": (0, 1, 2, 3), "side": (4, 5), "height": (6, 7), "size": (8, 9)}  # columns of what is regressed on


class Supervised(Objective):
    """Attributes of both objects: squared error of hue (as cosine and sine), position and size; entropy of shape.

    Of the attributes only those of `tasks` are asked for, each with the weight that it has among all five.
    """

    def __init__(self, network: ConvNet, tasks: Sequence[str] = captions.KINDS) -> None:
        super().__init__(network)
        self.asked = [c for kind, columns in VALUES.items() if kind in tasks for c in columns]
        self.asks_shape = "shape" in tasks
        self.values = nn.Linear(network.d, 2 * 5)
        self.shapes = nn.Linear(network.d, 2 * len(render.SHAPES))

    def make(self, n: int, seed: int) -> tuple[np.ndarray, ...]:
        _, a = world.content(n, seed)
        values = [np.cos(a.hue), np.sin(a.hue), *(3.4 * (v - 0.5) for v in (a.x, a.y, a.size))]  # unit variance, about
        return _picture(a, seed), np.concatenate(values, axis=1).astype(np.float32), a.shape

    def loss(self, images: Tensor, values: Tensor, shapes: Tensor) -> Tensor:
        top = self.network(pixels(images))["dense"]
        loss = top.new_zeros(())
        if self.asked:
            share = len(self.asked) / values.shape[1]
            loss = share * F.mse_loss(self.values(top)[:, self.asked], values[:, self.asked])
        if self.asks_shape:
            entropy = F.cross_entropy(self.shapes(top).view(len(top) * 2, -1), shapes.flatten())
            loss = loss + 0.5 * entropy
        return loss


class Contrast(Objective):
    """Two views of each scene must find each other in the batch (InfoNCE, both ways)."""

    def __init__(self, network: ConvNet) -> None:
        super().__init__(network)
        self.project = nn.Sequential(nn.Linear(network.d, 64), nn.ReLU(), nn.Linear(64, 32))

    def views(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def loss(self, *batch: Tensor) -> Tensor:
        both = torch.cat(self.views(*batch))
        found = F.normalize(self.project(self.network(both)["dense"]), dim=1)
        one, two = found.chunk(2)
        logits = one @ two.T / TEMPERATURE
        same = torch.arange(len(one))
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


class Temporal(Contrast):
    """The views are two frames of a scene: the objects moved a little, the background is another."""

    block = 8 * BATCH

    def make(self, n: int, seed: int) -> tuple[np.ndarray, ...]:
        first, second, _ = world.frames(n, seed)
        return first, second

    def views(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return pixels(first), pixels(second)


class Augmentation(Contrast):
    """The views are one image, twice cropped, mirrored and recoloured at random."""

    def make(self, n: int, seed: int) -> tuple[np.ndarray, ...]:
        return (_picture(world.content(n, seed)[1], seed),)

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels(images)
        return augment(x), augment(x)


class Autoencoder(Objective):
    """The image from the dense layer by a linear map, in squared error."""

    def __init__(self, network: ConvNet) -> None:
        super().__init__(network)
        self.decode = nn.Linear(network.d, 3 * render.SIDE**2)

    make = Augmentation.make

    def loss(self, images: Tensor) -> Tensor:
        x = pixels(images)
        return F.mse_loss(self.decode(self.network(x)["dense"]), x.flatten(1))


def augment(x: Tensor) -> Tensor:
    """Random crops of 60 to 100 % of the side, mirroring, and a random turn of hue: (b, 3, h, w) as it comes."""
    b = len(x)
    scale = 0.6 + 0.4 * torch.rand(b)
    mirror = torch.where(torch.rand(b) < 0.5, -1.0, 1.0)
    shift = (1 - scale)[:, None] * (2 * torch.rand(b, 2) - 1)
    zero = torch.zeros(b)
    theta = torch.stack([scale * mirror, zero, shift[:, 0], zero, scale, shift[:, 1]], dim=1).view(b, 2, 3)
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), padding_mode="reflection",
                      align_corners=False)  # fmt: skip
    turn = 2 * math.pi * torch.rand(b)
    return torch.einsum("bij,bjhw->bihw", _about_grey(turn), x) * (0.7 + 0.6 * torch.rand(b, 1, 1, 1))


def _about_grey(angle: Tensor) -> Tensor:
    """Rotations (b, 3, 3) of colour space about its grey axis."""
    k = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * torch.eye(3) + sin * cross + (1 - cos) * k


def _picture(attributes: world.Attributes, seed: int) -> np.ndarray:
    return render.draw(attributes, world.stream(seed, "picture"), world.stream(seed, "pixels"))


# --- language ----------------------------------------------------------------------------------


class OfCaptions(Objective):
    """An objective on captions that name `detail` attributes each, or the usual mixture."""

    block = 64 * BATCH
    network: Language

    def __init__(self, network: Language, detail: int | None = None) -> None:
        super().__init__(network)
        self.detail = detail

    def make(self, n: int, seed: int) -> tuple[np.ndarray, ...]:
        return (training_captions(n, seed, self.detail),)


class NextWord(OfCaptions):
    """Each word from those before it."""

    def loss(self, tokens: Tensor) -> Tensor:
        before = after_start(tokens)[:, :-1]
        return _entropy(self.network.predict(before), tokens, tokens != captions.PAD)


class MaskedWord(OfCaptions):
    """Words that are masked, from all others."""

    def loss(self, tokens: Tensor) -> Tensor:
        hidden = (torch.rand(tokens.shape) < MASKED_SHARE) & (tokens != captions.PAD)
        shown = tokens.masked_fill(hidden, captions.MASK)
        return _entropy(self.network.predict(shown), tokens, hidden)


class ContextWord(OfCaptions):
    """Each word from its neighbours."""

    def loss(self, tokens: Tensor) -> Tensor:
        return _entropy(self.network.predict(tokens), tokens, tokens != captions.PAD)


def training_captions(n: int, seed: int, detail: int | None = None) -> np.ndarray:
    """Captions to learn from, as word numbers (n, 14)."""
    _, attributes = world.content(n, seed)
    named = captions.some_named(n, world.stream(seed, "named"), detail)
    return captions.write(attributes, named, world.stream(seed, "words"))


def _entropy(logits: Tensor, tokens: Tensor, where: Tensor) -> Tensor:
    return F.cross_entropy(logits[where], tokens[where])


OBJECTIVES: dict[str, type[Objective]] = {
    "supervised": Supervised, "temporal": Temporal, "autoencoder": Autoencoder, "augmentation": Augmentation,
    "next": NextWord, "masked": MaskedWord, "context": ContextWord,
}  # fmt: skip


# --- training and scoring ---------------------------------------------------------------------------


WARM_UP = 20  # steps in which the learning rate rises
LAST_RATE = 0.05  # share of the learning rate that is left at the end, after a cosine
HELD_OUT = {"fit": 2048, "score": 1024}  # scenes that a probe is fitted to and scored on
PROBE_COLUMNS = 256
PROBE_SHRINKAGE = 0.01


@dataclass(frozen=True)
class Trained:
    """A network as it was after some step, and how good it is then."""

    step: int
    weights: dict[str, Tensor]
    scores: dict[str, float]
    loss: float | None  # of the last batch; None without training


def run(recipe: Recipe, progress: Progress = silent) -> list[Trained]:
    """Train one recipe; its checkpoints and its end, each with its competence."""
    task = f"training {recipe.name}"
    out = []
    with _alone(recipes.seed(recipe.name, "weights")):
        network = build(recipe)
        if recipe.family == "svd":
            network.load_state_dict({"table": cooccurrence_vectors(recipe)})
        for step, loss in _steps(recipe, network, progress, task):
            if step in (*recipe.checkpoints, recipe.steps):
                weights = {name: w.detach().clone() for name, w in network.state_dict().items()}
                with torch.random.fork_rng(devices=[]):  # so that scoring a checkpoint changes nothing after it
                    scores = competence(recipe, network)
                out.append(Trained(step, weights, scores, loss))
    progress(task, max(recipe.steps, 1), max(recipe.steps, 1))
    return out


def fit(
    objective: Objective, run: str, steps: int, rate: float, decay: float = WEIGHT_DECAY, noise: float = 0.0
) -> Iterator[tuple[int, float]]:
    """Train with AdamW, a short warm-up and a cosine; yields step and loss after each step.

    `decay` is AdamW's; with `noise` gradients are taken at weights that are shaken anew in each step.
    """
    optimiser = torch.optim.AdamW(objective.parameters(), lr=rate, weight_decay=decay)
    for i, batch in enumerate(objective.batches(run, steps)):
        cosine = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * i / steps)) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate * cosine * min(1, (i + 1) / WARM_UP)
        optimiser.zero_grad()
        with _shaken(objective, noise):
            loss = objective.loss(*batch)
            loss.backward()
        optimiser.step()
        yield i + 1, loss.item()


@contextmanager
def _shaken(network: nn.Module, noise: float) -> Iterator[None]:
    """Weights w + noise * rms(w) * standard normal draws for the time being, rms over each tensor."""
    if not noise:
        yield
        return
    weights = list(network.parameters())
    with torch.no_grad():
        kept = [w.clone() for w in weights]
        for w in weights:
            w.add_(noise * w.square().mean().sqrt() * torch.randn_like(w))
    try:
        yield
    finally:
        with torch.no_grad():
            for w, before in zip(weights, kept, strict=True):
                w.copy_(before)


def _steps(recipe: Recipe, network: nn.Module, progress: Progress, task: str) -> Iterator[tuple[int, float | None]]:
    progress(task, 0, max(recipe.steps, 1))
    if recipe.steps == 0:
        yield 0, None
        return
    asked = (recipe.detail,) if recipe.modality == LANGUAGE else (recipe.tasks,) if recipe.tasks else ()
    objective = OBJECTIVES[recipe.objective](network, *asked)
    for step, loss in fit(objective, recipe.name, recipe.steps, recipe.rate, recipe.decay, recipe.noise):
        if step % 10 == 0:
            progress(task, step, recipe.steps + 1)
        yield step, loss


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """One thread, a seed and gradients, whatever the caller has set; all of it is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def cooccurrence_vectors(recipe: Recipe) -> Tensor:
    """Word vectors (words, width) that count instead of learn, from `recipe.captions` captions.

    C_uv is one more than the number of captions in which words u and v both stand, P its pointwise mutual
    information log(C_uv / sum C) - log p_u - log p_v; the vectors are U sqrt(S) of the truncated singular
    value decomposition of P.
    """
    tokens = torch.from_numpy(training_captions(recipe.captions, recipes.seed(recipe.name, "training", 0)))
    there = torch.zeros(len(tokens), N_WORDS, dtype=torch.float64).scatter_(1, tokens, 1.0)
    there = there[:, captions.MASK + 1 :]
    counts = there.T @ there
    counts = counts.fill_diagonal_(0) + 1
    share = counts.sum(0) / counts.sum()
    u, s, _ = torch.linalg.svd((counts / counts.sum() / torch.outer(share, share)).log())
    table = torch.zeros(N_WORDS, recipe.width)
    table[captions.MASK + 1 :] = (u * s.sqrt())[:, : recipe.width].to(torch.float32)
    return table


# --- competence --------------------------------------------------------------------------------


def competence(recipe: Recipe, network: nn.Module) -> dict[str, float]:
    """How good a model is on held-out scenes: `probe_accuracy` of images, `bits_per_word` of captions.

    Language models that do not predict the next word have no such score.
    """
    if recipe.modality == VISION:
        return {"probe_accuracy": probe_accuracy(network)}
    if isinstance(network, Language) and network.starts:
        return caption_bits(network)
    return {}


@cache
def _held_out(part: str) -> world.Scenes:
    return world.sample(HELD_OUT[part], recipes.seed("held out", part))


def probe_accuracy(network: nn.Module) -> float:
    """How well the caption's words can be read off a vision model's last layer by a linear map.

    Mean over the ten attributes that a full caption names (size, hue, shape, height and side of A and of B)
    of the share of 1,024 scenes whose class a linear discriminant tells. The discriminant is fitted to 2,048
    other scenes: one covariance within classes, shrunk by .01 towards the mean variance times the identity,
    and the shares of the classes as prior. Layers of more than 256 columns are first taken to 256 principal components.
    """
    parts = []
    for part in HELD_OUT:
        images = torch.from_numpy(_held_out(part).images)
        last = [list(image_vectors(network, x).values())[-1] for x in images.split(256)]
        parts.append(torch.cat(last).to(torch.float64))
    (fit, score), mean = parts, parts[0].mean(0)
    fit, score = fit - mean, score - mean
    if fit.shape[1] > PROBE_COLUMNS:
        axes = torch.pca_lowrank(fit, q=PROBE_COLUMNS, center=False)[2]
        fit, score = fit @ axes, score @ axes
    fitted, scored = (torch.from_numpy(captions.classes(_held_out(p).attributes)).flatten(1) for p in HELD_OUT)
    right = [discriminate(fit, y, score) == z for y, z in zip(fitted.T, scored.T, strict=True)]
    return torch.stack(right).to(torch.float64).mean().item()


def discriminate(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Classes (m,) of new rows by the linear discriminant of rows x (n, d) with classes y (n,)."""
    member = F.one_hot(y).to(x.dtype)  # (n, classes)
    count = member.sum(0)
    means = (member.T @ x) / count.clamp_min(1)[:, None]
    within = x - means[y]
    covariance = within.T @ within / len(x)
    spread = covariance.diagonal().mean().clamp_min(1e-12)
    covariance = torch.lerp(covariance, spread * torch.eye(len(covariance), dtype=x.dtype), PROBE_SHRINKAGE)
    weights = torch.linalg.solve(covariance, means.T)  # (d, classes)
    prior = (count / len(x)).log()
    return (new @ weights - (means.T * weights).sum(0) / 2 + prior).argmax(1)


@torch.inference_mode()
def caption_bits(network: Words) -> dict[str, float]:
    """Bits that a causal model spends on 1,024 held-out full captions, per word and per byte.

    All words count, the full stop among them, the first one from the start alone. Bytes are those of the
    captions in UTF-8, with the blanks between words.
    """
    texts = _held_out("score").captions
    tokens = torch.from_numpy(captions.encode(texts))
    assert isinstance(network, Language)
    logits = network.predict(after_start(tokens)[:, :-1])
    nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=captions.PAD, reduction="sum")
    bits = nats.item() / math.log(2)
    words = int((tokens != captions.PAD).sum())
    return {"bits_per_word": bits / words, "bits_per_byte": bits / sum(len(t.encode()) for t in texts)}
