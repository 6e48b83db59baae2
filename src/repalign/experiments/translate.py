"""How many pairs join two models? What a map learned from few pairs says of stimuli that it has not seen.

The paper's claim about training efficiency (Huh et al. 2024, section 6): if two models already agree, little should be needed to
join them. The map is fitted on m pairs and judged on held-out ones: does the translation of a stimulus lie nearest to its own
counterpart (R@1), and how much of the other model's variance does it say (R2)?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.experiments.base import Found, Input, made_up
from repalign.text import Progress, counted, named, number, silent, telling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[np.float64]]
Map = Callable[[Array], Array]

FEWEST = 4  # pairs that a map is fitted on, by default
PENALTIES = np.geomspace(1e-4, 1e4, 17)  # of ridge, times the mean eigenvalue of the Gram matrix of the training rows


# --- maps ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Affine:
    """z -> (z - centre) weights + shift, of rows z (n, d1); weights are (d1, d2)."""

    weights: Array
    centre: Array
    shift: Array

    def __call__(self, z: Array) -> Array:
        return (z - self.centre) @ self.weights + self.shift


def ridge(x: Array, y: Array) -> Affine:
    """Ridge regression of y (m, d2) on x (m, d1) with a free intercept; its penalty by leaving out one pair at a time, exactly.

    With H = 1/m + Xc (Xc'Xc + p I)^-1 Xc', the residual of a pair that is left out is that of the fit over 1 - H_ii.

    >>> x = np.random.default_rng(0).standard_normal((40, 3))
    >>> bool(np.allclose(ridge(x, x @ np.ones((3, 2)))(x), x @ np.ones((3, 2)), atol=1e-3))
    True
    """
    mean_x, mean_y, m = x.mean(0), y.mean(0), len(x)
    xc, yc = x - mean_x, y - mean_y
    u, s, vt = np.linalg.svd(xc, full_matrices=False)
    values, turned, best = s**2, u.T @ yc, (np.inf, 0.0)
    for penalty in PENALTIES * max(float(values.sum()) / m, np.finfo(float).tiny):
        share = values / (values + penalty)
        left = yc - u @ (share[:, None] * turned)
        out = 1 - 1 / m - (u**2 @ share)
        error = float((left**2 / np.maximum(out, 1e-9)[:, None] ** 2).sum())
        best = min(best, (error, float(penalty)))
    return Affine(vt.T @ (turned * (s / (values + best[1]))[:, None]), mean_x, mean_y)


def rotation(x: Array, y: Array) -> tuple[Array, float]:
    """The W (d1, d2) with orthonormal rows or columns that takes x (m, d1) nearest to y (m, d2) (Schonemann 1966), and tr(W'X'Y).

    U V' of the singular vectors of X'Y that the pairs determine. What they do not determine goes to 0.
    """
    if len(x) < min(x.shape[1], y.shape[1]):  # the same singular vectors, of an m x m matrix
        (qx, rx), (qy, ry) = np.linalg.qr(x.T), np.linalg.qr(y.T)
        u, s, vt = np.linalg.svd(rx @ ry.T)
        u, vt = qx @ u, vt @ qy.T
    else:
        u, s, vt = np.linalg.svd(x.T @ y, full_matrices=False)
    known = s > 1e-10 * s[0] if s[0] > 0 else np.zeros(len(s), bool)
    return u[:, known] @ vt[known], float(s[known].sum())


def orthogonal(x: Array, y: Array) -> Affine:
    """The rotation and one scale that take x (m, d1) nearest to y (m, d2), both centred (Procrustes).

    `rotation` of the centred rows, times tr(W'X'Y) / |Xc|^2.

    >>> x = np.random.default_rng(0).standard_normal((9, 3))
    >>> bool(np.allclose(orthogonal(x, 2 * x[:, ::-1] + 1)(x), 2 * x[:, ::-1] + 1))
    True
    """
    mean_x, mean_y = x.mean(0), y.mean(0)
    weights, total = rotation(x - mean_x, y - mean_y)
    size = float(((x - mean_x) ** 2).sum())
    return Affine(weights * (total / size if size > 0 else 0.0), mean_x, mean_y)


MAPS: dict[str, Callable[[Array, Array], Map]] = {"ridge": ridge, "orthogonal": orthogonal}


def recall(translated: Array, y: Array, centre: Array) -> float:
    """The share of rows whose nearest row of y is their own, by cosine after `centre` is taken away; ties count as misses.

    >>> recall(np.eye(3), np.eye(3), np.zeros(3))
    1.0
    """
    from repalign.experiments.retrieval import unit

    a, b = (z - centre for z in (translated, y))
    a, b = map(unit, (a, b))
    cosine = a @ b.T
    own = np.diag(cosine).copy()
    np.fill_diagonal(cosine, -np.inf)
    return float(np.mean(own > cosine.max(1)))


def _explained(translated: Array, y: Array, centre: Array) -> float:
    """1 - |y - translated|^2 / |y - centre|^2, over all units; below 0 where the mean of the training rows says more."""
    return float(1 - ((y - translated) ** 2).sum() / ((y - centre) ** 2).sum())


# --- the experiment --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Translated(Found):
    """Held-out translation by the number of pairs, from `translate`.

    table : a row for each map and number of pairs: r1_there and r1_back, the share of held-out stimuli whose translation is nearest
    to its own counterpart; r1, their mean, with its lowest and highest draw; r2_there, r2_back; shuffled_r1 and shuffled_r2, the
    same after the partners of the training pairs changed places. `direct` : R@1 without a map, None for unequal widths.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    n_test: int
    draws: int
    direct: float | None
    shown: ClassVar[tuple[str, ...]] = ("map", "pairs", "r1_there", "r1_back", "low", "high", "shuffled_r1", "r2_there", "r2_back",
                                        "shuffled_r2")  # fmt: skip

    @property
    def chance(self) -> float:
        """R@1 of a guess."""
        return 1 / self.n_test

    def pairs_for(self, share: float, which: str) -> float | None:
        """The number of pairs at which a map reaches this share of its highest R@1 above chance; between two sizes on log."""
        rows = self.table.loc[self.table["map"] == which]
        m, r = np.log(rows["pairs"].to_numpy(float)), rows["r1"].to_numpy(float) - self.chance
        wanted = share * r.max()
        above = np.flatnonzero(r >= wanted)
        if r.max() <= 0 or not len(above):
            return None
        k = above[0]
        at = m[k] if k == 0 else m[k - 1] + (wanted - r[k - 1]) / (r[k] - r[k - 1]) * (m[k] - m[k - 1])
        return float(np.exp(at))

    @property
    def text(self) -> str:
        x, y = self.names
        out = [
            f"A map from {x} to {y} and back is fitted on some pairs and judged on {self.n_test:,} others, in "
            f"{counted(self.draws, 'random division')}. A guess finds its counterpart with {number(self.chance)}."
        ]
        for which, rows in self.table.groupby("map", sort=False):
            last, half = rows.iloc[-1], self.pairs_for(0.5, str(which))
            sure = rows.loc[rows["low"] > rows["shuffled_high"]]
            first = f"{int(sure['pairs'].iloc[0]):,} pairs are the fewest whose lowest draw is above all with shuffled partners" \
                if len(sure) else "at no number of pairs are all draws above those with shuffled partners"  # fmt: skip
            reached = "" if half is None or not len(sure) else f"; half of that above chance is reached at about {half:.0f} pairs"
            out.append(
                f"{str(which).capitalize()}: with {int(last['pairs']):,} pairs R@1 is {number(last['r1_there'])} there and "
                f"{number(last['r1_back'])} back, R2 {number(last['r2_there'])} and {number(last['r2_back'])} "
                f"(shuffled partners: {number(last['shuffled_r1'])}, {number(last['shuffled_r2'])}); {first}{reached}."
            )
        if self.direct is not None:
            out.append(f"Without any map, by the cosine of the features as they are, R@1 is {number(self.direct)}.")
        out.append(
            "A curve that rises only with as many pairs as there are dimensions would refute that the models are nearly joined "
            "already. A low curve does not say that they share nothing: a linear map may not find it."
        )
        return " ".join(out)

    def draw(self, **look: Any) -> Axes:
        """R@1 and R2 on held-out stimuli over the number of pairs; the band is from the lowest to the highest draw."""
        from repalign.figures import canvas
        from repalign.figures.palette import MUTED, family

        maps = list(dict.fromkeys(self.table["map"]))
        called = canvas.called(maps, look=look, what="words")
        above = (f"R@1, mean of both ways; {self.n_test} held-out stimuli", "R2, mean of both ways")
        _, grid = canvas.sheet(
            9.6, 3.9, f"Pairs that join {' and '.join(self.names)}", 1, [1, 1], above=above, room=4.6,
            below="Bands: lowest and highest draw. Dashed: the partners of the training pairs shuffled.", rules="both", **look,
        )  # fmt: skip
        for axes, (value, low, high, shuffled) in zip(grid.flat, (
            ("r1", "low", "high", "shuffled_r1"), ("r2", "r2_low", "r2_high", "shuffled_r2"),
        ), strict=True):  # fmt: skip
            for k, one in enumerate(maps):
                rows, (color, marker) = self.table.loc[self.table["map"] == one], family(k)
                axes.plot(rows["pairs"], rows[value], color=color, marker=marker, markersize=5, label=canvas.plain(called[one]))
                axes.fill_between(rows["pairs"], rows[low], rows[high], color=color, alpha=0.15, linewidth=0)
                axes.plot(rows["pairs"], rows[shuffled], color=color, linestyle=canvas.DASHED, linewidth=1)
            canvas.sizes(axes, self.table["pairs"], 45 if self.table["pairs"].nunique() > 7 else 0)
        first, second = grid.flat
        first.axhline(self.chance, color=MUTED, linewidth=1, label=f"a guess ({number(self.chance)})")
        if self.direct is not None:
            first.axhline(self.direct, color=MUTED, linewidth=1, linestyle=":", label=f"no map ({number(self.direct)})")
        first.set_ylim(0, None)
        bottom = float(self.table[["r2_low", "shuffled_r2"]].to_numpy().min())
        second.set_ylim(max(-1.0, bottom - 0.05), None)
        first.legend(fontsize=7, frameon=False, loc="upper left")
        canvas.labels(first, "pairs to fit the map, log scale", "held-out R@1")
        canvas.labels(second, "pairs to fit the map, log scale", "held-out R2")
        return first


def translate(
    inputs: list[Input], *, layers: list[str] | None = None, pairs: list[int] | None = None, maps: list[str] | None = None,
    test: float = 0.4, draws: int = 10, seed: int = 0, progress: Progress = silent,
) -> Translated:  # fmt: skip
    """How many pairs join two models? Held-out translation by a map that is fitted on few pairs.

    Beside every number stand a guess, and the same after the partners of the training pairs changed places.

    Parameters
    ----------
    inputs : Two models: files of features, or STORE#MODEL. In Python also arrays by name.
    layers : The layer of each; last is the last one. By default the only one.
    pairs : Numbers of pairs to fit on; by default 4, 8, 16, ... up to all that are not held out.
    maps : ridge (a linear map, its penalty chosen on the training pairs), orthogonal (a rotation and a scale); both by default.
    test : The share of held-out stimuli.
    draws : Random divisions into pairs to fit on and held-out ones.
    seed : Of the divisions.
    """
    import pandas as pd

    from repalign.experiments.inputs import read_inputs

    if len(inputs) != 2:
        raise RepalignError("a translation is between two models", expected="two inputs", got=len(inputs))
    chosen = list(dict.fromkeys(maps or MAPS))
    for one in chosen:
        choose("map", one, MAPS, f"there is no map {one!r}")
    if draws < 2 or not 0 < test < 1:
        raise RepalignError("options of translate", expected="two draws or more, and 0 < test < 1", got=f"{draws}, {test}")
    found = read_inputs(inputs, layers)
    n, n_test = found.n, round(test * found.n)
    if n_test < 2 or n - n_test < FEWEST:
        raise RepalignError("too few stimuli", expected=f"2 to hold out and {FEWEST} to fit on", got=f"{n_test} and {n - n_test}")
    sizes = _sizes(pairs, n - n_test)
    orders = [np.random.default_rng([seed, k]).permutation(n) for k in range(draws)]
    rows = []
    for which, m in telling([(which, m) for which in chosen for m in sizes], "translate", progress):
        judged = np.array([_judged(found.arrays, MAPS[which], order, m, n_test, seed) for order in orders])
        rows.append({"map": which, "pairs": m, **_row(judged), "n_test": n_test, "draws": draws})
    x, y = found.arrays
    direct = None
    if x.shape[1] == y.shape[1]:
        held = [(x[order[:n_test]], y[order[:n_test]]) for order in orders]
        both = [recall(a, b, np.zeros(a.shape[1])) for one in held for a, b in (one, one[::-1])]
        direct = float(np.mean(both))
    return Translated(table=pd.DataFrame(rows), names=found.names, layers=found.layers, n_test=n_test, draws=draws, direct=direct)


def _sizes(pairs: Sequence[int] | None, most: int) -> list[int]:
    if pairs is None:
        return [*(m for m in (FEWEST * 2**k for k in range(30)) if 1.5 * m < most), most]
    if not pairs or min(pairs) < 3 or max(pairs) > most:
        raise RepalignError(
            "numbers of pairs", expected=f"from 3 to {most}, those that are not held out", got=named([str(m) for m in pairs]),
            remedy="hold out fewer (test), or take fewer pairs",
        )  # fmt: skip
    return sorted(set(pairs))


def _judged(
    arrays: Sequence[Array], fit: Callable[[Array, Array], Map], order: np.ndarray, m: int, n_test: int, seed: int
) -> list[float]:
    """R@1 and R2 there and back, and the same with shuffled partners, of one division."""
    test, train = order[:n_test], order[n_test : n_test + m]
    turned = train[np.random.default_rng([seed, m, int(order[0])]).permutation(m)]
    out = []
    for partners in (train, turned):
        for (a, rows_a), (b, rows_b) in (((arrays[0], train), (arrays[1], partners)), ((arrays[1], partners), (arrays[0], train))):
            centre = b[rows_b].mean(0)
            translated = fit(a[rows_a], b[rows_b])(a[test])
            out += [recall(translated, b[test], centre), _explained(translated, b[test], centre)]
    return out


def _row(judged: Array) -> dict[str, float]:
    """One row of the table from the draws: (draws, R@1 there, R2 there, R@1 back, R2 back, and all four with shuffled partners)."""
    r1, r2 = judged[:, [0, 2]].mean(1), judged[:, [1, 3]].mean(1)
    wrong1, wrong2 = judged[:, [4, 6]].mean(1), judged[:, [5, 7]].mean(1)
    mean = judged.mean(0)
    return {
        "r1": float(r1.mean()), "r1_there": mean[0], "r1_back": mean[2], "low": r1.min(), "high": r1.max(),
        "shuffled_r1": float(wrong1.mean()), "shuffled_high": wrong1.max(), "r2": float(r2.mean()), "r2_there": mean[1],
        "r2_back": mean[3], "r2_low": r2.min(), "r2_high": r2.max(), "shuffled_r2": float(wrong2.mean()),
    }  # fmt: skip


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:  # noqa: ARG001
    """Made-up features of two models that see the same six numbers."""
    rng, n = np.random.default_rng(0), 120
    latent = rng.standard_normal((n, 6))
    seen = [latent @ rng.standard_normal((6, width)) + 0.1 * rng.standard_normal((n, width)) for width in (12, 16)]
    paths = [made_up(folder / f"model{i}.npy", x) for i, x in enumerate(seen, start=1)]
    return {"inputs": paths, "layers": None, "pairs": None, "draws": 3}
