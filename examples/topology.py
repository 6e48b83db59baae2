"""Persistence by depth: how unlike the shapes of two CNNs' spatial activations are. The picture of docs/choosing.md.

    python examples/topology.py BED docs/images/topology.png

Needs the test bed (two CIFAR ResNets and photos), and `pip install 'repalign[topology]'`.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from repalign.aggregate import feature_maps
from repalign.figures import canvas
from repalign.figures.palette import RULE, family
from repalign.measures import PersistenceDistance

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/studies"))
import cifar_resnet

POINTS, DRAWS, IMAGES, DEPTHS = 300, 8, 200, 9
MEASURE = PersistenceDistance(homology=1)


def clouds(network: nn.Module, photos: Tensor) -> list[Tensor]:
    """The activations of nine blocks at equal steps of depth, every position of every photo as a row, (n h w, c)."""
    blocks = [block for stage in (network.layer1, network.layer2, network.layer3) for block in stage]  # type: ignore[union-attr]
    chosen = [blocks[len(blocks) * (i + 1) // DEPTHS - 1] for i in range(DEPTHS)]
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in chosen]
    with torch.inference_mode():
        network(photos)
    for hook in hooks:
        hook.remove()
    return [feature_maps(maps, "samples").features for maps in seen]


def states(rows: Tensor, rng: np.random.Generator) -> list[object]:
    """The persistence diagrams of some rows, drawn anew each time."""
    return [MEASURE.prepare(rows[torch.from_numpy(rng.permutation(len(rows))[:POINTS])]) for _ in range(DRAWS + 1)]


def table(bed: Path) -> pd.DataFrame:
    """A row per depth and draw: the distance of two networks, of one with itself, and of one with an untrained one."""
    files = sorted((bed / "flickr8k_dev/images").iterdir())[:IMAGES]
    photos = torch.stack([cifar_resnet.preprocess(Image.open(file)) for file in files])
    torch.manual_seed(0)
    networks = {"20": cifar_resnet.resnet20()[0], "56": cifar_resnet.resnet56()[0], "untrained": cifar_resnet.ResNet(3).eval()}
    rng, out = np.random.default_rng(0), []
    found = {name: [states(rows, rng) for rows in clouds(network, photos)] for name, network in networks.items()}
    for depth in range(DEPTHS):
        a, b, other = (found[name][depth] for name in networks)
        for k, (first, again) in enumerate(pairwise(a)):
            pairs = {"ResNet-56": (first, b[k]), "itself, other positions": (first, again), "untrained": (first, other[k])}
            out += [(depth + 1, f"ResNet-20, {name}", MEASURE.compare(*pair)) for name, pair in pairs.items()]
    return pd.DataFrame(out, columns=["depth", "pair", "distance"])


def draw(rows: pd.DataFrame) -> object:
    _, ((axes,),) = canvas.sheet(
        6.4, 3.8, "How unlike the loops of two clouds of activations are",
        above=f"{POINTS} positions of {IMAGES} photos a cloud; means and range of {DRAWS} draws of positions",
    )  # fmt: skip
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    for k, (name, some) in enumerate(rows.groupby("pair", sort=False)):
        by = some.groupby("depth")["distance"].agg(["mean", "min", "max"])
        color, marker = family(k)
        axes.plot(by.index, by["mean"], marker=marker, color=color, linewidth=1.4, markersize=5, label=name)
        axes.vlines(by.index, by["min"], by["max"], color=color, linewidth=1)
    axes.set_ylim(bottom=0)
    canvas.labels(axes, "Block, of nine at equal steps of depth", "Sliced Wasserstein distance")
    canvas.legend_below(axes, 3)
    return axes.figure


if __name__ == "__main__":
    rows = table(Path(sys.argv[1]))
    print(rows.groupby(["depth", "pair"])["distance"].mean().unstack().round(3))
    draw(rows).savefig(sys.argv[2], dpi=130)  # type: ignore[attr-defined]
