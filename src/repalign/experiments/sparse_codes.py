"""Universality: do two models have the same sparse features? Dictionaries are learned apart, and their codes are matched.

The claim: models of one domain learn features in common (Olah et al. 2020, "Zoom in"; Bricken et al. 2023 for dictionaries). What
is matched here is codes of stimuli, so no weights and no common width are needed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np

from repalign.errors import RepalignError
from repalign.experiments.base import Found, Input, made_up
from repalign.experiments.disentangle import DRAWS, Array, mcc, relabelled
from repalign.text import Progress, interval, number, p_sentence, silent, telling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from repalign.figures.canvas import Look


def sparse_codes(x: Array, fit: np.ndarray, k: int = 24, atoms: int = 48, alpha: float = 1.0, seed: int = 0) -> Array:
    """Codes (n, atoms), none below 0, of all rows of x (n, d); everything is learned from the rows `fit`.

    x is centred, brought to k principal components and divided by one number, so that their entries have standard deviation 1
    over `fit`. Then min |x - C D|^2 / 2 + alpha |C|_1 with C >= 0 and atoms D of norm 1 at most, by scikit-learn's
    MiniBatchDictionaryLearning (Mairal et al. 2009) with coordinate descent; it begins at a place that the seed draws.

    >>> x = np.random.default_rng(0).laplace(size=(200, 6))
    >>> codes = sparse_codes(x, np.arange(100), k=4, atoms=8)
    >>> codes.shape, bool(codes.min() >= 0)
    ((200, 8), True)

    Raises RepalignError where the rows do not suffice, and where no atom is ever active.
    """
    from sklearn.decomposition import PCA, MiniBatchDictionaryLearning
    from sklearn.exceptions import ConvergenceWarning

    most = min(x.shape[1], len(fit) - 1)
    if not 1 < k <= most:
        expected = f"2 <= k <= {most} for {len(fit)} rows of width {x.shape[1]}"
        raise RepalignError("principal components", expected=expected, got=f"k = {k}")
    if atoms < 2 or not alpha > 0:
        raise RepalignError("a dictionary", expected="atoms >= 2 and alpha > 0", got=f"{atoms} and {alpha}")
    pca = PCA(k, svd_solver="full").fit(x[fit])
    z = pca.transform(x)
    z /= z[fit].std()
    made = MiniBatchDictionaryLearning(
        atoms, alpha=alpha, fit_algorithm="cd", transform_algorithm="lasso_cd", positive_code=True, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        codes = made.fit(z[fit]).transform(z)
    if not codes.any():
        raise RepalignError("no atom is active in any row", got=f"alpha = {alpha}", remedy="take a smaller alpha")
    return codes


@dataclass(frozen=True, eq=False, kw_only=True)
class Universality(Found):
    """`table` has a row for what was compared: the two models, relabelled rows (chance), and two starts of one model (ceiling)."""

    names: tuple[str, str]
    n: int
    atoms: int
    p: float
    shown: ClassVar[tuple[str, ...]] = ("compared", "mcc", "low", "high", "n", "active")

    @property
    def place(self) -> float:
        """Where the two models stand between chance, 0, and the ceiling, 1."""
        across, chance, *ceilings = self.table["mcc"]
        return float((across - chance) / (np.mean(ceilings) - chance))

    @property
    def text(self) -> str:
        across, chance, *ceilings = self.table.to_dict("records")
        active, ceiling = (" and ".join(number(row[column]) for row in ceilings) for column in ("active", "mcc"))
        return (
            f"Sparse codes of {self.names[0]} and {self.names[1]} on {self.n:,} rows that no dictionary was fitted on: mean "
            f"|correlation| of matched atoms (MCC) {interval(across['mcc'], across['low'], across['high'])} over starts; "
            f"relabelled rows {number(chance['mcc'])}, {p_sentence(self.p, DRAWS)}. Two starts of one model reach {ceiling}. "
            f"The two models are {self.place:.0%} of the way from chance to there. {active} of {self.atoms} atoms are active in a "
            "row. "
            "No more than relabelled rows would refute common sparse features; the ceiling is what the method itself can repeat."
        )

    def draw(self, **look: Unpack[Look]) -> Axes:
        from repalign.figures import canvas
        from repalign.figures.palette import ACCENT, MUTED, SCORE

        names = canvas.called(self.table["compared"], look=look, what="words")
        above, at = f"{self.atoms} atoms, n = {self.n:,} rows that no dictionary was fitted on", np.arange(len(self.table))[::-1]
        below = "Lines: the least and the most over starts; of relabelled rows 95 %. Dashed: mean of relabelled rows (chance)."
        _, ((axes,),) = canvas.sheet(6.4, 2.8, "Sparse codes in common", above=above, below=below, **look)
        for place, row in zip(at, self.table.to_dict("records"), strict=True):
            color = {at[0]: SCORE, at[1]: MUTED}.get(place, ACCENT)
            axes.plot([row["low"], row["high"]], [place, place], color=color, linewidth=2)
            axes.plot(row["mcc"], place, "o", color=color)
            canvas.after(axes, number(row["mcc"]), (row["high"], place), gap=6)
        axes.axvline(self.table["mcc"].iloc[1], color=MUTED, linestyle=canvas.DASHED, linewidth=1)
        axes.set_yticks(at, [canvas.plain(name) for name in names.values()])
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.5, len(at) - 0.5)
        canvas.labels(axes, "MCC of matched atoms")
        return axes


def universality(
    inputs: list[Input], *, layers: list[str] | None = None, k: int = 24, atoms: int = 48, alpha: float = 1.0, starts: int = 5,
    seed: int = 0, progress: Progress = silent,
) -> Universality:  # fmt: skip
    """Do two models have the same sparse features? Their codes matched, beside relabelled rows and two starts of one model.

    Dictionaries are learned on one half of the rows, each model by itself, and codes are compared on the other half.

    Parameters
    ----------
    inputs : Two: files of features, or STORE#MODEL. In Python also arrays by name.
    layers : The layer of each; last is the last one. By default the only one.
    k : Principal components that are coded.
    atoms : Atoms of each dictionary; at most twice the components is usual.
    alpha : The price of a code; the larger, the fewer atoms are active.
    starts : Random starts of every dictionary, 2 or more: the ceiling is how far they agree.
    seed : Of the halves, the starts and the relabellings.
    """
    import pandas as pd

    from repalign.experiments.inputs import read_inputs
    from repalign.null import pvalue

    if len(inputs) != 2:
        raise RepalignError("sparse codes are compared between two models", expected="two inputs", got=len(inputs))
    if starts < 2:
        raise RepalignError("one start has no ceiling", expected="starts >= 2", got=starts)
    given = read_inputs(inputs, layers)
    fit, rest = np.array_split(np.random.default_rng(seed).permutation(given.n), 2)
    codes: list[list[Array]] = [[], []]
    for side, start in telling([*product(range(2), range(starts))], "dictionaries", progress):
        codes[side].append(sparse_codes(given.arrays[side], fit, k, atoms, alpha, seed + start)[rest])
    across = np.array([mcc(x, y) for x, y in zip(*codes, strict=True)])
    chance = relabelled(codes[0][0], codes[1][0], seed)
    rows = [_row(" and ".join(given.names), across), _row("relabelled rows", chance, np.quantile(chance, [0.025, 0.975]))]
    for name, some in zip(given.names, codes, strict=True):
        again = np.array([mcc(some[i], some[j]) for i in range(starts) for j in range(i)])
        rows.append(_row(f"two starts of {name}", again) | {"active": float((np.stack(some) > 0).sum(axis=2).mean())})
    p = float(pvalue(across[0], chance))
    return Universality(table=pd.DataFrame(rows).assign(n=len(rest)), names=given.names, n=len(rest), atoms=atoms, p=p)  # type: ignore[arg-type]


def _row(compared: str, values: Array, ends: Any = None) -> dict[str, Any]:
    low, high = (values.min(), values.max()) if ends is None else ends
    return {"compared": compared, "mcc": float(values.mean()), "low": float(low), "high": float(high), "active": float("nan")}


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:  # noqa: ARG001
    """Two made-up mixtures of the same sparse features."""
    rng = np.random.default_rng(0)
    latent = rng.exponential(size=(120, 8)) * (rng.uniform(size=(120, 8)) < 0.2)
    mixed = [latent @ rng.standard_normal((8, 10)) + 0.01 * rng.standard_normal((120, 10)) for _ in range(2)]
    paths = [made_up(folder / f"model{i}.npy", x) for i, x in enumerate(mixed, start=1)]
    return {"inputs": paths, "layers": None, "k": 6, "atoms": 8, "starts": 2}
