"""Two encoders that see two mixtures of joined latents: is what they learn the latents, and up to what?

A pair (z_x, z_t) is drawn, z_t near z_x. Either modality sees g(z) through a mixture g of its own: invertible, two layers.
Two encoders are trained by symmetric InfoNCE (as in CLIP) on fresh pairs in every step, and never see a latent.

Sources: Liu et al. 2024 (arXiv 2402.06223), the latent partial causal model; Zimmermann et al. 2021 (arXiv 2102.08850), whose
proofs it rests on: on the hypersphere the latents come back up to a rotation or reflection, in a convex body up to order,
sign and scale. Known differences: no noise of its own in a modality, and as many inputs as latents.

>>> from repalign.prh.theory import Sphere, contrast
>>> found = contrast(Sphere(d=3), steps=60, batch=64)
>>> found.loss < found.collapsed, found.learned.shape
(True, (4000, 3))
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from repalign.errors import RepalignError
from repalign.prh.theory.worlds import Array
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Box", "Contrast", "Gaussian", "Latents", "Sphere", "contrast", "linear_r2", "mixture"]

HELD_OUT = 4000  # pairs that scores are taken on
SLOPE = 0.2  # of the leaky ReLU below 0, in mixtures and encoders
LEFT = 0.05  # nats below log(batch): encoders whose loss is not lower have put all stimuli into one place


@dataclass(frozen=True)
class Latents(ABC):
    """How latents are drawn, what their partners are, and the encoder's last step and similarity that belong to these."""

    d: int = 3

    def __post_init__(self) -> None:
        if self.d < 2:
            raise RepalignError("too few latents to be mixed", expected="d >= 2", got=self.d)

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Latents z_x of n stimuli, (n, d)."""

    @abstractmethod
    def partners(self, z: Array, rng: np.random.Generator) -> Array:
        """z_t given z_x, (n, d)."""

    @abstractmethod
    def head(self) -> nn.Module:
        """What brings the last layer of an encoder into the space of the latents."""

    @abstractmethod
    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Of every a with every b, (n, n), before the scale that is learned."""


@dataclass(frozen=True)
class Sphere(Latents):
    """z_x uniform on the unit sphere, z_t von Mises-Fisher around it: density proportional to exp(kappa <z_t, z_x>).

    Drawn by rejection (Wood 1994). Similarity: five times the inner product.
    """

    d: int = 5
    kappa: float = 10.0

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return _unit(rng.standard_normal((n, self.d)))

    def partners(self, z: Array, rng: np.random.Generator) -> Array:
        n, m = len(z), self.d - 1
        b = (math.sqrt(4 * self.kappa**2 + m**2) - 2 * self.kappa) / m
        x = (1 - b) / (1 + b)
        most = self.kappa * x + m * math.log(1 - x**2)
        along, left = np.empty(n), np.arange(n)  # <z_t, z_x>
        while len(left):
            beta = rng.beta(m / 2, m / 2, len(left))
            tried = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
            kept = self.kappa * tried + m * np.log(1 - x * tried) - most >= np.log(rng.uniform(size=len(left)))
            along[left[kept]], left = tried[kept], left[~kept]
        aside = rng.standard_normal((n, self.d))
        aside = _unit(aside - (aside * z).sum(axis=1, keepdims=True) * z)
        return along[:, None] * z + np.sqrt(1 - along[:, None] ** 2) * aside

    def head(self) -> nn.Module:
        from torch import nn

        class Unit(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return nn.functional.normalize(x, dim=1)

        return Unit()

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        return 5 * a @ b.T  # the learned scale begins at 1


@dataclass(frozen=True)
class Box(Latents):
    """z_x uniform in the box [-1, 1]^d, z_t near it: density proportional to exp(-|z_t - z_x|_1 / scale), cut off at the box.

    The encoder ends in a box too, by a sigmoid after batch normalisation. Similarity: minus the distance |a - b|_1.
    """

    scale: float = 0.1

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return rng.uniform(-1, 1, (n, self.d))

    def partners(self, z: Array, rng: np.random.Generator) -> Array:
        below, above = np.exp(-(z + 1) / self.scale), np.exp(-(1 - z) / self.scale)  # what the box cuts off, of 1 on either side
        u = rng.uniform(size=z.shape) * (2 - below - above)
        left = u < 1 - below
        return z + self.scale * np.where(left, np.log1p(-np.where(left, u, 0)), -np.log(np.where(left, 1, 2 - below - u)))

    def head(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(nn.BatchNorm1d(self.d), nn.Sigmoid())

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        return -10 * sum((a[:, j, None] - b[None, :, j]).abs() for j in range(self.d))


@dataclass(frozen=True)
class Gaussian(Latents):
    """z_x standard normal, z_t = r z_x + sqrt(1 - r^2) e. The control: a rotation of z is distributed as z, so nothing tells it.

    Similarity: minus the squared distance, after batch normalisation.
    """

    r: float = 0.9

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return rng.standard_normal((n, self.d))

    def partners(self, z: Array, rng: np.random.Generator) -> Array:
        return self.r * z + math.sqrt(1 - self.r**2) * rng.standard_normal(z.shape)

    def head(self) -> nn.Module:
        from torch import nn

        return nn.BatchNorm1d(self.d)

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        return 2 * a @ b.T - a.square().sum(dim=1)[:, None] - b.square().sum(dim=1)


# --- what is learned -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Contrast:
    """What two encoders make of held-out pairs: all (n, d), row by row.

    latents: z_x. inputs: what the first modality sees of it, g_x(z_x). untrained, learned: its encoder before and after.
    other: the second encoder of the *same* latents, g_t(z_x). loss: nats, the mean of the last tenth of the steps.
    collapsed: log(batch), the loss of an encoder that tells no stimulus from another.
    """

    latents: Array
    inputs: Array
    untrained: Array
    learned: Array
    other: Array
    loss: float
    collapsed: float


def contrast(
    latents: Latents, *, steps: int = 400, batch: int = 256, rate: float = 1e-2, seed: int = 0, progress: Progress = silent,
) -> Contrast:  # fmt: skip
    """Train two encoders (three hidden layers of 64) on `steps` batches of fresh pairs, by Adam with a cosine schedule.

    Deterministic for a seed, a machine and a version of torch; in float32. Raises RepalignError where the loss has not left
    log(batch): the encoders have collapsed, and their scores would say nothing of the theory.
    """
    import torch
    from torch.nn.functional import cross_entropy

    if steps < 1 or batch < 2:
        raise RepalignError("nothing to learn from", expected="steps >= 1 and batch >= 2", got=f"{steps} and {batch}")
    rng = np.random.default_rng(seed)
    sees = [mixture(latents.d, rng), mixture(latents.d, rng)]
    held_out = latents.draw(HELD_OUT, rng)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        towers = [_tower(latents), _tower(latents)]
        scale, partner, losses = torch.zeros((), requires_grad=True), torch.arange(batch), []
        untrained = _read(towers[0], sees[0](held_out))
        adam = torch.optim.Adam([*towers[0].parameters(), *towers[1].parameters(), scale], rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for step in range(steps):
            if step % 50 == 0:
                progress("contrast", step, steps)
            z = latents.draw(batch, rng)
            pair = zip(towers, sees, (z, latents.partners(z, rng)), strict=True)
            a, b = (tower(torch.from_numpy(see(one)).float()) for tower, see, one in pair)
            logits = latents.similarity(a, b) * scale.exp()
            loss = (cross_entropy(logits, partner) + cross_entropy(logits.T, partner)) / 2
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
            losses.append(loss.item())
    progress("contrast", steps, steps)
    last, most = float(np.mean(losses[-max(1, steps // 10) :])), math.log(batch)
    if not last < most - LEFT:
        raise RepalignError(
            "the encoders have collapsed: they tell no stimulus from another",
            expected=f"a loss well below log(batch) = {most:.3f}", got=f"{last:.3f} nats after {steps} steps",
            remedy="train longer, or with another rate",
        )
    learned, other = (_read(tower, see(held_out)) for tower, see in zip(towers, sees, strict=True))
    return Contrast(held_out, sees[0](held_out), untrained, learned, other, last, most)


def mixture(d: int, rng: np.random.Generator, layers: int = 2, draws: int = 200) -> Callable[[Array], Array]:
    """An invertible mixture: square matrices, each the best conditioned of many with unit columns, leaky ReLU between them."""
    matrices = []
    for _ in range(layers):
        tried = rng.uniform(-1, 1, (draws, d, d))
        tried /= np.linalg.norm(tried, axis=1, keepdims=True)
        matrices.append(tried[np.linalg.cond(tried).argmin()])

    def mixed(z: Array) -> Array:
        for i, matrix in enumerate(matrices):
            z = (z if i == 0 else np.where(z > 0, z, SLOPE * z)) @ matrix
        return z

    return mixed


def linear_r2(x: Array, z: Array) -> float:
    """R^2 of least squares from x (n, d) to z, fitted on the first half of the rows, on the other; the mean over latents."""
    half = len(x) // 2
    x = np.column_stack([x, np.ones(len(x))])
    weights = np.linalg.lstsq(x[:half], z[:half], rcond=None)[0]
    left = ((z[half:] - x[half:] @ weights) ** 2).sum(axis=0)
    return float(np.mean(1 - left / ((z[half:] - z[half:].mean(axis=0)) ** 2).sum(axis=0)))


def _tower(latents: Latents) -> nn.Module:
    from torch import nn

    widths = (latents.d, 64, 64, 64)
    hidden = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.LeakyReLU(SLOPE))]
    return nn.Sequential(*hidden, nn.Linear(64, latents.d), latents.head())


def _read(tower: nn.Module, x: Array) -> Array:
    import torch

    tower.eval()
    with torch.no_grad():
        out = tower(torch.from_numpy(x).float()).double().numpy()
    tower.train()
    return out


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
