"""Every kind of distorted image at four amounts, beside the clean one: the picture of docs/distort.md.

    python examples/distortions.py docs/images/distortions.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from repalign.dataset import DISTORTIONS, Dataset
from repalign.figures.palette import INK, PAPER

AMOUNTS = (0, 0.25, 0.5, 0.75, 1)


def strip(dataset: Dataset, row: int) -> Figure:
    """One line per kind, one column per amount, of the image in one row of a dataset."""
    kinds = DISTORTIONS["image"]
    figure = Figure(figsize=(1.1 * len(AMOUNTS) + 0.9, 1.1 * len(kinds) + 0.3), facecolor=PAPER, layout="constrained")
    axes = figure.subplots(len(kinds), len(AMOUNTS))
    for line, kind in zip(axes, kinds, strict=True):
        for ax, amount in zip(line, AMOUNTS, strict=True):
            (image,) = dataset.distort("image", kind, amount).stimuli("image", [row])
            ax.imshow(np.asarray(image), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(kind, color=INK, rotation=0, ha="right", va="center")
    for ax, amount in zip(axes[0], AMOUNTS, strict=True):
        ax.set_title(f"{amount:g}", color=INK, fontsize=10)
    return figure


if __name__ == "__main__":
    path = Path(sys.argv[1])
    strip(Dataset.toy(n=12), row=3).savefig(path, dpi=130)
