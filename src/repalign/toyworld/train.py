"""Training and scoring: a recipe in, weights and competence of each of its models out.

Everything runs in one thread from seeds that follow from the recipe's name, so a name gives the same
weights, to the last bit, on one machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from repalign.text import Progress, silent
from repalign.toyworld import captions, names, world
from repalign.toyworld.names import Recipe
from repalign.toyworld.networks import (
    N_WORDS,
    Language,
    Words,
    after_start,
    build,
    image_vectors,
)
from repalign.toyworld.objectives import Objective, objective_of, training_captions
from repalign.toyworld.recipe import WEIGHT_DECAY

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
    with _alone(names.seed(recipe.name, "weights")):
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


def _steps(
    recipe: Recipe, network: nn.Module, progress: Progress, task: str
) -> Iterator[tuple[int, float | None]]:
    progress(task, 0, max(recipe.steps, 1))
    if recipe.steps == 0:
        yield 0, None
        return
    objective = objective_of(recipe, network)
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
    tokens = torch.from_numpy(training_captions(recipe.captions, names.seed(recipe.name, "training", 0)))
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
    if recipe.modality == names.VISION:
        return {"probe_accuracy": probe_accuracy(network)}
    if isinstance(network, Language) and network.starts:
        return caption_bits(network)
    return {}


@cache
def _held_out(part: str) -> world.Scenes:
    return world.sample(HELD_OUT[part], names.seed("held out", part))


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
    fitted, scored = (
        torch.from_numpy(captions.classes(_held_out(p).attributes)).flatten(1) for p in HELD_OUT
    )
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
