"""Does one space tell more of the other? Both directions of an asymmetric measure, each held against its own chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np

from repalign.errors import RepalignError
from repalign.experiments.base import Found, Input, made_up
from repalign.text import Progress, alike, number, p_sentence, silent, telling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from repalign.experiments.inputs import Inputs
    from repalign.figures.canvas import Look
    from repalign.measures import Measure

DEFAULT = ("CycleKNN(k=10)", "InformationImbalance(k=1)")
HUBS = 10  # neighbours of the counts that hubs are told by


@dataclass(frozen=True, eq=False, kw_only=True)
class Direction(Found):
    """Both directions of asymmetric measures, from `direction`.

    table : a row per measure. tables : "hubs", how often rows are neighbours of others, on both sides.
    """

    names: tuple[str, str]
    n: int
    draws: int
    shown: ClassVar[tuple[str, ...]] = ("label", "there", "chance_there", "back", "chance_back", "difference", "low", "high", "p")

    @property
    def text(self) -> str:
        x, y = self.names
        parts = [f"{x} and {y}, n = {self.n:,}: there is {x} to {y}, back is {y} to {x}, each with the mean of {self.draws} "
                 "relabellings of the stimuli."]  # fmt: skip
        for row in self.table.to_dict("records"):
            lead = row["difference"] if np.isfinite(row["difference"]) else 0.0
            more = f"{x} tells more of {y}" if lead > 0 else f"{y} tells more of {x}"
            difference, low, high = alike(row["difference"], row["low"], row["high"])
            is_told = row["p"] <= 0.05 and (row["low"] > 0 or row["high"] < 0)
            parts.append(
                f"{row['label']}: beyond chance the two differ by {difference} ({low} to {high} "
                f"over stimuli), {p_sentence(row['p'], self.draws)}: {more if is_told else 'no direction is shown'}."
            )
        raw = max((abs(row["raw"] - row["difference"]) for row in self.table.to_dict("records")), default=0.0)
        parts.append(
            f"Of the raw difference up to {number(raw)} is chance: hubs, rows that are neighbours of many, make it differ between "
            "the directions. p asks whether unrelated spaces with these hubs would differ so much."
        )
        return " ".join(parts)

    def draw(self, **look: Unpack[Look]) -> Axes:
        """The score and the chance of both directions, a pair of lines per measure."""
        from repalign.figures import canvas
        from repalign.figures.palette import ACCENT, MUTED, PAPER, SCORE

        rows = self.table.to_dict("records")
        names = canvas.called([row["label"] for row in rows], look=look, what="words")
        x, y = self.names
        _, ((axes,),) = canvas.sheet(
            7.2, 1.5 + 0.75 * len(rows), "Both directions, and what chance gives to each",
            above=f"{x} and {y}, n = {self.n:,}; chance: {self.draws} relabellings",
            below="Filled: the score. Hollow: chance. Bars: two standard deviations of chance.", rules="x", **look,
        )  # fmt: skip
        told = {"there": f"{x} to {y}", "back": f"{y} to {x}"}
        for k, row in enumerate(rows):
            for j, (way, color) in enumerate((("there", SCORE), ("back", ACCENT))):
                at, chance, sd = k + 0.3 * j - 0.15, row[f"chance_{way}"], row[f"sd_{way}"]
                axes.plot([chance, row[way]], [at, at], color=color, linewidth=1.5, alpha=0.6)
                axes.plot([chance - 2 * sd, chance + 2 * sd], [at, at], color=MUTED, linewidth=4, alpha=0.35)
                axes.scatter([chance], [at], s=34, facecolors=PAPER, edgecolors=color, zorder=3)
                axes.scatter([row[way]], [at], s=38, color=color, zorder=3, label=None if k else canvas.plain(told[way]))
            canvas.at_end(axes, f"difference {number(row['difference'])}, {p_sentence(row['p'], self.draws)}", k)
        axes.set_yticks(range(len(rows)), [canvas.plain(names[row["label"]]) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.8)
        axes.legend(loc="upper left", fontsize=7, frameon=False, ncols=2)
        canvas.labels(axes, "Score")
        return axes


def direction(
    x: Input, y: Input, *, measure: list[str] | None = None, layers: list[str] | None = None, draws: int = 999, seed: int = 0,
    progress: Progress = silent,
) -> Direction:  # fmt: skip
    """Does one space tell more of the other than the other of it? Both directions, each against its own chance.

    The difference is taken beyond chance, which is not the same in both directions where one space has hubs.

    Parameters
    ----------
    x : Features of one model: a file, or STORE#MODEL. In Python also an array.
    y : Features of the other.
    measure : An asymmetric measure; may be repeated. By default CycleKNN(k=10) and InformationImbalance(k=1).
    layers : The layer of each; last is the last one. By default the only one.
    draws : Relabellings of the stimuli.
    seed : Of the relabellings.
    """
    from repalign.experiments.inputs import read_inputs
    from repalign.measures import parse_measure

    chosen = [parse_measure(one) for one in measure or DEFAULT]
    if symmetric := [repr(one) for one in chosen if one.symmetric]:
        raise RepalignError("a symmetric measure has no direction", expected="such as CycleKNN or InformationImbalance",
                            got=symmetric[0])  # fmt: skip
    if draws < 19:
        raise RepalignError("too few relabellings", expected="19 or more", got=draws)
    arrays = all(isinstance(one, str) or hasattr(one, "__fspath__") for one in (x, y))
    found = read_inputs([x, y] if arrays else {"x": x, "y": y}, layers)
    return directions(found, chosen, draws, seed, progress)


def directions(found: Inputs, measures: list[Measure], draws: int, seed: int, progress: Progress = silent) -> Direction:
    """The experiment on layers in memory."""
    import pandas as pd
    import torch

    from repalign.measures import MutualKNN

    x, y = (torch.from_numpy(one) for one in found.arrays)
    rows = [_both(measure, x, y, draws, seed) for measure in telling(measures, "directions", progress)]
    hubs = []
    for name, one in zip(found.names, (x, y), strict=True):
        k = min(HUBS, found.n - 1)
        counts = np.bincount(MutualKNN(k=k).prepare(one).indices.flatten().numpy(), minlength=found.n).astype(float)
        spread = counts.std()
        skewness = ((counts - counts.mean()) ** 3).mean() / spread**3 if spread > 0 else 0.0
        hubs.append({"model": name, "k": k, "skewness": skewness, "never_neighbours": float((counts == 0).mean()),
                     "most": int(counts.max())})  # fmt: skip
    table = pd.DataFrame(rows)
    names = (found.names[0], found.names[1])
    return Direction(table=table, tables={"hubs": pd.DataFrame(hubs)}, names=names, n=found.n, draws=draws)


def _both(measure: Measure, x: Any, y: Any, draws: int, seed: int) -> dict[str, Any]:
    """Both directions of a measure, with joint relabellings: of each of them both directions are looked at."""
    from repalign.comparison.intervals import score_interval
    from repalign.null import Permutations
    from repalign.null.permutation import permuted_scores

    both = one_way(measure)
    state = [measure.prepare(measure.checked(a, b)[0]) for a, b in ((x, y), (y, x))]
    orders = Permutations(draws, seed).permutations(len(x))
    # back(x', y) of y relabelled by p is that of x relabelled by its inverse
    ways = [(*state, orders), (*state[::-1], np.argsort(orders, axis=1))]
    observed = [float(measure.closeness_all([a], [b])[0, 0]) for a, b, _ in ways]
    drawn = [permuted_scores(measure, [a], [b], some)[:, 0, 0] for a, b, some in ways]
    difference, p = excess(observed, drawn)
    interval = score_interval(x, y, both, method="jackknife", seed=seed)
    shift = difference - interval.statistic  # the chance of the raw difference, taken as known
    scores = {}
    for way, one, some in zip(("there", "back"), observed, drawn, strict=True):
        scores |= {way: float(measure.closeness(one)), f"chance_{way}": float(measure.closeness(some.mean()))}
        scores[f"sd_{way}"] = float(some.std(ddof=1))
    return {
        "measure": repr(measure), "label": measure.facts.label, **scores, "raw": observed[0] - observed[1],
        "difference": difference, "low": interval.low + shift, "high": interval.high + shift, "p": p, "n": len(x), "draws": draws,
    }  # fmt: skip


def excess(observed: list[float], drawn: list[np.ndarray]) -> tuple[float, float]:
    """How much closer one direction is than the other, beyond chance; and its p, two-sided, from joint relabellings.

    d = (there - mean there) - (back - mean back), means over the draws. p: the share of relabellings, the observed one among
    them, whose difference is as far from the mean of all of them: exact, because the observed one is treated as each of them is.
    """
    values = np.concatenate([[observed[0] - observed[1]], drawn[0] - drawn[1]])
    far = np.abs(values - values.mean())
    return float(values[0] - values[1:].mean()), float(np.mean(far >= far[0] * (1 - 1e-9)))


def one_way(measure: Measure) -> Measure:
    """The measure x to y less y to x, as a measure: so it has intervals as others have."""
    from repalign.measures.measure import Measure as Base

    class OneWay(Base):
        symmetric = False
        min_n = measure.min_n

        def prepare(self, x: Any) -> Any:
            return measure.prepare(x)

        def compare(self, a: Any, b: Any) -> float:
            return float(measure.closeness(measure.compare(a, b) - measure.compare(b, a)))

    return OneWay()


def mock(given: dict[str, Any], folder: Any) -> dict[str, Any]:
    """Made-up features of two models."""
    rng = np.random.default_rng(0)
    world = rng.standard_normal((60, 4))
    made = {name: world @ rng.standard_normal((4, 8)) + rng.standard_normal((60, 8)) for name in ("x", "y")}
    paths = {name: made_up(folder / f"{name}.npy", x) for name, x in made.items()}
    return {**paths, "layers": None, "draws": min(99, given["draws"])}
