"""Models that learn from their own samples: how far does the distribution move from the real one, and what stops it?

Source: Gillman et al. 2024, "Self-Correcting Self-Consuming Loops for Generative Model Training", and others on "model collapse"
(Shumailov et al. 2024), in the smallest case: the generative model is a Gaussian, whose loop is known in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np

from repalign.errors import RepalignError
from repalign.experiments.base import Found
from repalign.text import Progress, counted, number, silent, telling

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from repalign.figures.canvas import Look


SHOWN = 5  # generations in the main table, beside the first


def generations(real: np.ndarray, share: float, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """What each generation is trained on, (n, d) of each, the first is the real data.

    A Gaussian is fitted to the last set (mean, covariance divided by n - 1), and the next is n samples of it, of which the share is
    replaced by as many rows of the real data.

    >>> real = np.random.default_rng(0).standard_normal((50, 2))
    >>> [len(one) for one in generations(real, 0.5, 2, np.random.default_rng(1))]
    [50, 50, 50]
    """
    n, kept, out = len(real), round(share * len(real)), [real]
    for _ in range(count):
        own = rng.multivariate_normal(out[-1].mean(axis=0), np.cov(out[-1].T), n, method="eigh")
        out.append(np.concatenate([real[:kept], own[kept:]]))
    return out


def volume_lost(n: int, d: int) -> float:
    """What the log determinant of the covariance loses in each generation without real data, on average.

    The covariance of n samples is Wishart: -sum_i digamma((n - i) / 2) - d log(2 / (n - 1)), i = 1 to d; about d (d + 1) / 2n.

    >>> round(volume_lost(200, 8), 4)
    0.1835
    """
    from scipy.special import digamma

    return float(-digamma((n - np.arange(1, d + 1)) / 2).sum() - d * math.log(2 / (n - 1)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Consumed(Found):
    """`table` has a row for each share and some generations, tables["generations"] for all of them.

    frechet : squared Bures-Wasserstein distance of the training set from the real data, the mean over runs, with the least and
    the most. energy : the energy distance. log_volume : log det of its covariance minus that of the real data. floor,
    floor_energy : both distances of new data from the real source.
    """

    n: int
    d: int
    runs: int
    floor: float
    floor_energy: float
    shown: ClassVar[tuple[str, ...]] = ("share", "generation", "frechet", "low", "high", "energy", "log_volume")

    @property
    def last(self) -> pd.DataFrame:
        """The rows of the last generation."""
        return self.table[self.table["generation"] == self.table["generation"].max()]

    @property
    def text(self) -> str:
        count = int(self.table["generation"].max())
        told = "; ".join(
            f"{row['share']:.0%} real data {number(row['frechet'])} ({number(row['low'])} to {number(row['high'])})"
            for row in self.last.to_dict("records")
        )
        lost, wanted = self.last["log_volume"].iloc[0], -count * volume_lost(self.n, self.d)
        law = (
            f" Without real data the log volume of the distribution has changed by {number(lost)}; theory: {number(wanted)}."
            if self.last["share"].iloc[0] == 0 else ""
        )  # fmt: skip
        return (
            f"Gaussians that are refitted to their own samples, n = {self.n:,}, d = {self.d}, {counted(self.runs, 'run')}. Squared "
            f"Bures-Wasserstein distance from the real data after {counted(count, 'generation')}, mean, least and most: {told}. "
            f"New data from the real source is {number(self.floor)} away: the chance level.{law} A share of real data whose "
            "distance goes on growing would refute that it stops the drift; real data alone must give exactly 0."
        )

    def draw(self, **look: Unpack[Look]) -> Axes:
        from matplotlib.ticker import MaxNLocator

        from repalign.figures import canvas
        from repalign.figures.palette import MUTED, family

        shares = [f"{share:.0%} real data" for share in self.table["share"].unique()]
        called = canvas.called(shares, look=look, what="words")
        above = f"n = {self.n:,}, d = {self.d}; lines: mean of {counted(self.runs, 'run')}, bands: least and most"
        _, ((axes,),) = canvas.sheet(6.4, 4, "Gaussians that learn from their own samples", above=above, rules="both", **look)
        for k, (share, rows) in enumerate(self.tables["generations"].groupby("share", sort=False)):
            color, marker = family(k)
            axes.fill_between(rows["generation"], rows["low"], rows["high"], color=color, alpha=0.15, linewidth=0)
            look_of: Any = {"color": color, "marker": marker, "markersize": 3.5}
            axes.plot(rows["generation"], rows["frechet"], label=canvas.plain(called[f"{share:.0%} real data"]), **look_of)
        axes.axhline(self.floor, color=MUTED, linestyle=canvas.DASHED, label="new data from the real source")
        axes.legend(fontsize=7, frameon=False, loc="upper left")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        canvas.labels(axes, "generation", "squared Bures-Wasserstein distance from the real data")
        return axes


def self_consuming(
    *, n: int = 200, d: int = 8, shares: list[float] = [0.0, 0.5, 1.0], count: int = 20, runs: int = 20, seed: int = 0,  # noqa: B006
    progress: Progress = silent,
) -> Consumed:  # fmt: skip
    """How far does a model drift that learns from its own samples, and how much real data stops it? Gaussians, refitted.

    Parameters
    ----------
    n : Samples that each generation is trained on.
    d : Dimensions of the standard normal data.
    shares : Shares of real data in every generation, from 0 to 1; may be repeated.
    count : Generations.
    runs : Runs of every share. Each has its own real data, the same for all shares.
    seed : Of all that is drawn.
    """
    import pandas as pd

    from repalign.measures import BuresWasserstein, EnergyDistance

    if d < 1 or n < d + 2:
        raise RepalignError("a covariance needs more samples than dimensions", expected="d >= 1 and n >= d + 2", got=f"{n} and {d}")
    if count < 1 or runs < 1 or not shares:
        got = f"{count}, {runs} and {shares}"
        raise RepalignError("generations, runs and shares", expected="one of each or more", got=got)
    if wrong := [share for share in shares if not 0 <= share <= 1]:
        raise RepalignError("a share of real data", expected="0 to 1", got=wrong[0])
    frechet, energy, rows, floors = BuresWasserstein(), EnergyDistance(), [], []
    for run in telling(range(runs), "self-consuming", progress):
        rng = np.random.default_rng([seed, run])
        real, new = rng.standard_normal((2, n, d))
        floors.append((frechet(new, real) ** 2, energy(new, real)))
        size = np.linalg.slogdet(np.atleast_2d(np.cov(real.T)))[1]
        for share in dict.fromkeys(shares):
            sets = generations(real, share, count, np.random.default_rng([seed, run, round(1e6 * share)]))
            for generation, one in enumerate(sets):
                volume = np.linalg.slogdet(np.atleast_2d(np.cov(one.T)))[1] - size
                same = {"frechet": frechet(one, real) ** 2, "energy": energy(one, real), "log_volume": float(volume)}
                rows.append({"share": float(share), "generation": generation, **same})
    grouped = pd.DataFrame(rows).groupby(["share", "generation"], sort=False)
    every = grouped.mean().assign(low=grouped["frechet"].min(), high=grouped["frechet"].max()).reset_index()
    shown = np.unique(np.linspace(0, count, min(count, SHOWN) + 1).round())
    table = every[every["generation"].isin(shown)].reset_index(drop=True)
    floor, floor_energy = map(float, np.mean(floors, axis=0))
    return Consumed(table=table, tables={"generations": every}, n=n, d=d, runs=runs, floor=floor, floor_energy=floor_energy)


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:  # noqa: ARG001
    """Fewer of everything: no data is needed."""
    return {"n": 50, "d": 3, "count": 4, "runs": 2}
