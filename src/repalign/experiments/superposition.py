"""Superposition: does a small network keep more features than it has dimensions? In a toy whose features are known.

Source: Elhage et al. 2022, "Toy Models of Superposition": features are sparse and independent, and a layer of few dimensions must
give them all back, x' = relu(W^T W x + b). Of a real model the number of features is not known, so there is nothing to divide by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np

from repalign.errors import RepalignError
from repalign.experiments.base import Found
from repalign.experiments.concept_numbers import random_cosine
from repalign.text import Progress, number, silent, telling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from repalign.figures.canvas import Look

IMPORTANCE = 0.9  # of each feature, of that of the one before
KEPT = 0.5  # norm of its direction from which on a feature counts as kept
HELD_OUT = 5000
TRAINED, LINEAR, UNTRAINED = "relu", "linear", "untrained"


@dataclass(frozen=True, eq=False)
class Toys:
    """Toy models of one width, one for each sparsity: weights (toys, width, features), offsets (toys, 1, features)."""

    weights: Tensor
    offsets: Tensor
    linear: bool

    def hidden(self, x: Tensor) -> Tensor:
        return x @ self.weights.mT

    def given_back(self, x: Tensor) -> Tensor:
        out = self.hidden(x) @ self.weights + self.offsets
        return out if self.linear else out.relu()


def train(
    width: int, features: int, sparsity: list[float], *, linear: bool = False, steps: int = 1000, batch: int = 256, seed: int = 0
) -> tuple[Toys, Tensor]:
    """Toy models by Adam (rate .01, cosine), and held-out stimuli (toys, 5,000, features).

    A feature is 0 with the probability `sparsity`, else uniform from 0 to 1. The loss is the mean squared error, weighted by .9^i
    for feature i = 0, 1, 2, ... Without steps the models are untrained. In float32, deterministic for a seed.
    """
    import torch

    draws = torch.Generator().manual_seed(seed)
    present = 1 - torch.tensor(sparsity)[:, None, None]

    def stimuli(n: int) -> Tensor:
        shape = (len(sparsity), n, features)
        return torch.rand(shape, generator=draws) * (torch.rand(shape, generator=draws) < present)

    with torch.inference_mode(False), torch.enable_grad():
        weights = torch.randn((len(sparsity), width, features), generator=draws) / math.sqrt(features)
        toys = Toys(weights.requires_grad_(), torch.zeros((len(sparsity), 1, features), requires_grad=True), linear)
        importance = IMPORTANCE ** torch.arange(features)
        adam = torch.optim.Adam([toys.weights, toys.offsets], 1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, steps))
        for _ in range(steps):
            x = stimuli(batch)
            loss = ((toys.given_back(x) - x).square() * importance).mean((1, 2)) / x.var((1, 2))  # each toy on its own scale
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
            schedule.step()
    return Toys(toys.weights.detach(), toys.offsets.detach(), linear), stimuli(HELD_OUT)


def _measured(toys: Toys, x: Tensor) -> list[dict[str, float]]:
    """What each toy holds."""
    out = []
    width, parts = toys.weights.shape[1], (toys.weights, toys.hidden(x), toys.given_back(x), x)
    for weights, hidden, given, own in zip(*(part.double().numpy() for part in parts), strict=True):
        norms = np.linalg.norm(weights, axis=0)
        kept = norms > KEPT
        unit = weights[:, kept] / norms[kept]
        cosines = np.abs(unit.T @ unit)[~np.eye(kept.sum(), dtype=bool)]
        spread = own.var(axis=0)
        probe = np.column_stack([hidden, np.ones(len(hidden))])
        read = probe @ np.linalg.lstsq(probe, own, rcond=None)[0]
        by_own, by_line = (1 - ((guess - own) ** 2).mean(axis=0) / spread for guess in (given, read))
        out.append({
            "per_dimension": float((norms**2).sum() / width), "kept": int(kept.sum()),
            "interference": float(cosines.mean()) if len(cosines) else float("nan"), "chance": random_cosine(width),
            "read": float(np.maximum(by_own, 0).sum() / width), "read_linearly": float(by_line.sum() / width),
        })  # fmt: skip
    return out


@dataclass(frozen=True, eq=False, kw_only=True)
class Superposed(Found):
    """`table` has a row for each width and sparsity, of toys with a relu; tables["toys"] has the controls too, row by row.

    per_dimension : |W|_F^2 / width, features for each dimension; `linear` the same of a toy without relu. kept : how many have a
    direction of norm above .5. interference : mean |cos| of the directions of these; chance : of random directions. read : variance
    of the features that the toy gives back, summed over features, for each dimension; `untrained` the same before training.
    read_linearly : what the best linear read-out gives back, which is 1 at most but for the fit.
    """

    features: int
    shown: ClassVar[tuple[str, ...]] = (
        "width", "sparsity", "per_dimension", "linear", "kept", "interference", "chance", "read", "untrained", "read_linearly",
    )  # fmt: skip

    @property
    def text(self) -> str:
        widths = self.table["width"].unique()
        rows = self.table[self.table["width"] == widths[len(widths) // 2]]
        first, last = rows.iloc[0], rows.iloc[-1]
        linear = " to ".join(dict.fromkeys(number(v) for v in (self.table["linear"].min(), self.table["linear"].max())))
        return (
            f"{self.features} independent features in {int(first['width'])} dimensions. At sparsity {first['sparsity']:g} the toy "
            f"keeps {number(first['per_dimension'])} features for each dimension and gives back {number(first['read'])} of their "
            f"variance; at {last['sparsity']:g} {number(last['per_dimension'])} and {number(last['read'])}, with directions at a "
            f"mean |cos| of {number(last['interference'])} (random directions: {number(last['chance'])}). Controls: without its "
            f"relu a toy keeps {linear}, whatever its width and sparsity; an untrained one gives back "
            f"{number(self.table['untrained'].max())} at most. A relu that keeps no more than one for each dimension, however "
            "sparse the features, would refute superposition. Of a real model the features are not known, so none is asked."
        )

    def draw(self, **look: Unpack[Look]) -> Axes:
        from repalign.figures import canvas
        from repalign.figures.palette import MUTED, family

        widths = [f"{width} dimensions" for width in self.table["width"].unique()]
        called = canvas.called(widths, look=look, what="words")
        above = (f"features for each dimension, of {self.features} in all", "interference: mean |cos| of directions")
        title = "More features than dimensions, where features are sparse"
        _, grid = canvas.sheet(9.6, 4, title, 1, [1, 1], above=above, room=4.6, rules="both", **look)
        left, right = grid.flat
        for k, (width, rows) in enumerate(self.table.groupby("width", sort=False)):
            color, marker = family(k)
            line: Any = {"color": color, "marker": marker, "markersize": 4}
            at = 1 / (1 - rows["sparsity"])
            left.plot(at, rows["per_dimension"], label=canvas.plain(called[f"{width} dimensions"]), **line)
            left.plot(at, rows["linear"], color=MUTED, linewidth=1, label="without relu" if k == 0 else None)
            right.plot(at, rows["interference"], **line)
            right.axhline(rows["chance"].iloc[0], color=color, linestyle=canvas.DASHED, linewidth=1)
        right.plot([], [], color=MUTED, linestyle=canvas.DASHED, label="random directions of that width")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=7, frameon=False, loc="best")
            canvas.labels(axes, "1 / (1 − sparsity)")
        return left


def superposition(
    *, features: int = 20, widths: list[int] = [2, 5, 10], sparsity: list[float] = [0.0, 0.7, 0.9, 0.97, 0.99],  # noqa: B006
    steps: int = 1000, seed: int = 0, progress: Progress = silent,
) -> Superposed:  # fmt: skip
    """Does a small network keep more features than dimensions, once its features are sparse? In a toy that knows its features.

    Parameters
    ----------
    features : Of every stimulus, independent, with values from 0 to 1.
    widths : Dimensions that they must go through; may be repeated. The text tells of the middle one.
    sparsity : Probability of a feature to be 0, from 0 to below 1; may be repeated.
    steps : Of training.
    seed : Of weights and stimuli.
    """
    import pandas as pd

    if wrong := [w for w in widths if not 2 <= w < features]:
        raise RepalignError("a width", expected=f"2 to {features - 1}, with {features} features", got=wrong[0])
    if wrong_sparsity := [s for s in sparsity if not 0 <= s < 1]:
        raise RepalignError("a sparsity", expected="from 0 to below 1", got=wrong_sparsity[0])
    if not widths or not sparsity or steps < 1:
        raise RepalignError("widths, sparsity and steps", expected="one of each or more", got=f"{widths}, {sparsity}, {steps}")
    kinds = [(toy, width) for width in sorted(set(widths)) for toy in (TRAINED, LINEAR, UNTRAINED)]
    rows, levels = [], sorted(set(sparsity))
    for toy, width in telling(kinds, "superposition", progress):
        asked = steps if toy != UNTRAINED else 0
        found = _measured(*train(width, features, levels, linear=toy == LINEAR, steps=asked, seed=seed))
        rows += [{"toy": toy, "width": width, "sparsity": level, **own} for level, own in zip(levels, found, strict=True)]
    toys = pd.DataFrame(rows)
    of = {toy: own.reset_index(drop=True) for toy, own in toys.groupby("toy")}
    table = of[TRAINED].drop(columns="toy").assign(linear=of[LINEAR]["per_dimension"], untrained=of[UNTRAINED]["read"])
    return Superposed(table=table, tables={"toys": toys}, features=features)


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:  # noqa: ARG001
    """Fewer steps: no data is needed."""
    return {"steps": 20}
