"""Can two embedding models be joined without a single pair? Experimental: for vectors whose texts are gone.

The linear method of mini-vec2vec (Dar 2025, arXiv 2510.02348). Rows are centred and made unit. Both sides are clustered, and the
clusters are matched by the table of their cosines, which needs no pairs. Each row is described by its similarity to all matched
clusters. The mean of its 50 nearest in the other space, by that description, stands for its partner. A rotation is fitted to these,
and refined.

Nothing in it fails loudly, so it answers found or not found, by a check of ours: two maps, made of halves of the rows that share
none, must agree. They must do so within clusters too: clusters alone may be matched in one wrong way by both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from repalign.errors import RepalignError
from repalign.experiments.adapters import Adapter
from repalign.experiments.base import Found, Input, made_up
from repalign.experiments.retrieval import Array, read_vectors, unit
from repalign.experiments.translate import Affine, rotation
from repalign.text import Progress, number, silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from repalign.figures.canvas import Look

FOUND, NOT_FOUND = "found", "not found"
CLUSTERS, STARTS = 20, 30  # of each side; of each matching
NEAREST, SHARE = 50, 20  # rows that stand for a partner: so many, of few rows one in so many
ROWS, STEPS = 1000, 100  # rows of a step of refinement; steps
MOST, FEWEST = 10_000, 400  # rows of a side
AGREE = 0.8  # the mean cosine between the two maps of a row, and of its place in its cluster


# --- the matching ----------------------------------------------------------------------------------


def match(a: Array, b: Array, restarts: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """The order p (k,) of the rows and columns of b that fits a best, sum a_ij b_p(i)p(j), and that sum over |a| |b|.

    a, b : symmetric (k, k). From random orders, the best exchange of two places at a time until none helps (2-opt).

    >>> rng = np.random.default_rng(0)
    >>> a = rng.standard_normal((8, 8))
    >>> order = rng.permutation(8)
    >>> p, fit = match(a + a.T, (a + a.T)[np.ix_(order, order)], 30, rng)
    >>> order[p].tolist(), round(fit, 6)
    ([0, 1, 2, 3, 4, 5, 6, 7], 1.0)
    """
    k = len(a)
    p = np.stack([rng.permutation(k) for _ in range(restarts)])
    own, every = np.diag(a), np.arange(restarts)
    while True:
        moved = b[p[:, :, None], p[:, None, :]]  # (restarts, k, k)
        products = a @ moved
        at = np.diagonal(products, axis1=1, axis2=2)
        inner = np.diagonal(moved, axis1=1, axis2=2)
        # What an exchange of places i and j gains: sums over all others, which leave i and j out.
        gain = products + products.transpose(0, 2, 1) - at[:, :, None] - at[:, None, :]
        gain -= (own[:, None] - a) * (moved - inner[:, :, None]) + (a - own[None, :]) * (inner[:, None, :] - moved)
        gain = 2 * gain + (own[:, None] - own[None, :]) * (inner[:, None, :] - inner[:, :, None])
        best = gain.reshape(restarts, -1).argmax(1)
        i, j = np.divmod(best, k)
        better = gain[every, i, j] > 1e-9 * np.abs(a).max() * np.abs(b).max()
        if not better.any():
            break
        rows, i, j = every[better], i[better], j[better]
        p[rows, i], p[rows, j] = p[rows, j], p[rows, i]
    fits = (a * moved).sum((1, 2)) / (np.linalg.norm(a) * np.linalg.norm(b))
    return p[fits.argmax()], float(fits.max())


def _table(centres: Array) -> Array:
    """Cosines of centres about their mean, less their mean over pairs; nothing on the diagonal, which would fit any order."""
    about = unit(centres - centres.mean(0))
    table, apart = about @ about.T, ~np.eye(len(centres), dtype=bool)
    return np.where(apart, table - table[apart].mean(), 0.0)


# --- a map -----------------------------------------------------------------------------------------


def _partners(x: Array, y: Array, rows: Array) -> Array:
    """For each row of x the mean of those `rows` whose y is nearest to it by cosine, (n, d)."""
    count = min(NEAREST, len(y) // SHARE)
    near = np.argpartition(-(unit(x) @ unit(y).T), count, axis=1)[:, :count]
    return rows[near].mean(1)


def closeness(x: Array, y: Array, weights: Array) -> float:
    """The objective: the mean cosine of a mapped row with the mean of its 50 nearest in the other space."""
    mapped = x @ weights
    return float((unit(mapped) * unit(_partners(mapped, y, y))).sum(1).mean())


def _clusters(z: Array, rng: np.random.Generator) -> Any:
    from sklearn.cluster import KMeans

    return KMeans(CLUSTERS, n_init=1, random_state=int(rng.integers(2**31))).fit(z)


def join(x: Array, y: Array, restarts: int, rng: np.random.Generator) -> tuple[Array, float]:
    """A rotation of x (n, d1) into the space of y (m, d2), unpaired unit rows; the median fit of the matchings."""
    seen, fits = [], []
    for _ in range(restarts):
        centres = []
        for z in (x, y):
            some = z[rng.permutation(len(z))[: max(len(z) // 2, 20 * CLUSTERS)]]
            centres.append(_clusters(some, rng).cluster_centers_)
        order, fit = match(*map(_table, centres), STARTS, rng)
        fits.append(fit)
        seen.append((centres[0], centres[1][order]))
    good = [pair for pair, fit in zip(seen, fits, strict=True) if fit >= np.median(fits)]
    profiles = [z @ unit(np.concatenate(side)).T for z, side in zip((x, y), zip(*good, strict=True), strict=True)]
    some = rng.permutation(len(x))[: 2 * ROWS]
    partners = _partners(profiles[0][some] - profiles[0].mean(0), profiles[1] - profiles[1].mean(0), y)
    weights = rotation(x[some], partners)[0]
    for _ in range(STEPS):
        some = rng.permutation(len(x))[:ROWS]
        mapped = x[some] @ weights
        weights = rotation(np.eye(len(weights)), 0.5 * weights + 0.5 * rotation(x[some], _partners(mapped, y, y))[0])[0]
    return weights, float(np.median(fits))


def agreements(x: Array, maps: tuple[Array, Array], rng: np.random.Generator) -> tuple[float, float]:
    """The mean cosine between what two maps make of a row, and of its difference from the centre of its cluster."""
    found = _clusters(x, rng)
    inside = x - found.cluster_centers_[found.labels_]
    return tuple(float((unit(z @ maps[0]) * unit(z @ maps[1])).sum(1).mean()) for z in (x, inside))


# --- the experiment --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Unpaired(Found):
    """What was found without pairs, from `unpaired`.

    table : a row for each of the two maps, with its objective (`closeness`) and the median fit of its matchings; and a row for a
    map of the pairs, where some ids are on both sides. agreement, inside : `agreements`. shared, right : rows whose id is on both
    sides, and the share of them that the map puts nearest to their own. adapter : None where nothing was found.
    """

    verdict: str
    agreement: float
    inside: float
    n: tuple[int, int]
    restarts: int
    shared: int
    right: float | None
    adapter: Adapter | None

    @property
    def text(self) -> str:
        rows = self.table.to_dict("records")
        out = [
            f"{self.verdict.capitalize()}. Experimental, without pairs: {self.n[1]:,} new and {self.n[0]:,} old vectors, "
            f"{self.restarts} clusterings into {CLUSTERS} clusters, {STARTS} starts of each matching.",
            f"Two maps, of halves that share no row, agree with a cosine of {number(self.agreement)}, and of {number(self.inside)} "
            f"within clusters; {AGREE} is asked for. Maps of unlike models are near 0.",
            f"Objective: {number(rows[0]['objective'])} and {number(rows[1]['objective'])}.",
        ]
        if self.right is not None:
            out.append(
                f"{self.shared:,} ids are on both sides. A map of these pairs has the objective {number(rows[2]['objective'])}: if "
                f"that is more, the search has missed it. The map without pairs puts {number(self.right)} of them nearest to "
                f"their own, a guess {number(1 / self.shared)}."
            )
        out.append({
            FOUND: "Check it on pairs before you use it.",
            NOT_FOUND: "That does not say that the models differ: the search may have failed, or there are no clusters to go by.",
        }[self.verdict])  # fmt: skip
        return " ".join(out)

    def draw(self, **look: Unpack[Look]) -> Axes:
        """How far the two maps agree, beside what is asked for."""
        from repalign.figures import canvas
        from repalign.figures.palette import INK, MUTED, SCORE

        names = ["rows", "rows within their clusters"]
        called = canvas.called(names, look=look, what="words")
        _, ((axes,),) = canvas.sheet(6.4, 2.2, f"Joined without pairs: {self.verdict}", room=3, **look)
        for i, value in enumerate((self.agreement, self.inside)):
            axes.barh(i, value, height=0.5, color=SCORE)
            axes.annotate(number(value), (max(value, 0), i), xytext=(4, 0), textcoords="offset points", va="center", color=INK)
        axes.axvline(AGREE, color=MUTED, linewidth=1, linestyle=":", label=f"asked for: {AGREE}")
        axes.set_yticks([0, 1], [canvas.plain(called[name]) for name in names])
        axes.set_ylim(1.6, -0.6)
        axes.set_xlim(min(0.0, self.agreement, self.inside) - 0.02, 1.1)
        canvas.labels(axes, "mean cosine between two maps, of halves that share no row")
        canvas.legend_below(axes, 1)
        return axes


def unpaired(
    old: Input, new: Input, *, layer: str | None = None, id: str | None = None, restarts: int = 30, adapter: Path | None = None,
    model: str = "", seed: int = 0, progress: Progress = silent,
) -> Unpaired:  # fmt: skip
    """Can two embedding models be joined without pairs? Found, or not found. Experimental.

    Parameters
    ----------
    old : Vectors of the old model: a file of features, or STORE#MODEL.
    new : Vectors of the new model, of other texts of the same kind; ids that both have are used for a check alone.
    layer : Which layer, where files have several; last is the last one.
    id : The column that names the rows.
    restarts : Clusterings of each half.
    adapter : Write the map here if it is found, for instance adapter.safetensors; `repalign adapt` applies it.
    model : What the new model is called: an adapter with a name refuses vectors under another name.
    seed : Of everything that is drawn.
    """
    import pandas as pd

    read = [read_vectors({name: given}, layer, id) for name, given in (("the old vectors", old), ("the new vectors", new))]
    sizes = [len(one.arrays[0]) for one in read]
    if restarts < 2 or min(sizes) < FEWEST:
        got = f"{sizes[0]:,} old and {sizes[1]:,} new vectors, {restarts} restarts"
        raise RepalignError("too little to go by without pairs", expected=f"{FEWEST} vectors of each, and two restarts", got=got)
    rng = np.random.default_rng(seed)
    rows = [np.sort(rng.permutation(len(one.arrays[0]))[:MOST]) for one in read]
    means = [unit(one.arrays[0]).mean(0) for one in read]
    y, x = (unit(unit(one.arrays[0][at]) - mean) for one, at, mean in zip(read, rows, means, strict=True))
    halves = [[z[rng.permutation(len(z))[part::2]] for part in (0, 1)] for z in (x, y)]
    maps, table = [], []
    for part in (0, 1):
        progress("unpaired", part, 3)
        a, b = halves[0][part], halves[1][part]
        weights, fit = join(a, b, restarts, rng)
        maps.append(weights)
        table.append({"map": f"half {part + 1}", "objective": closeness(a[:ROWS], b, weights), "fit": fit})
    progress("unpaired", 2, 3)
    agreement, inside = agreements(x, (maps[0], maps[1]), rng)
    is_found = min(agreement, inside) >= AGREE
    weights = rotation(np.eye(x.shape[1]), maps[0] + maps[1])[0] if is_found else maps[0]
    right, pairs = None, _shared(read, rows)
    if len(pairs) >= 2:
        one, other = x[pairs[:, 1]], y[pairs[:, 0]]
        table.append({"map": "of the pairs", "objective": closeness(x[:ROWS], y, rotation(one, other)[0])})
        right = float(((one @ weights @ other.T).argmax(1) == np.arange(len(one))).mean())
    made = Adapter("unpaired", Affine(weights, means[1], means[0]), True, 0, model) if is_found else None
    if adapter is not None and made is not None:
        made.save(adapter)
    progress("unpaired", 3, 3)
    return Unpaired(
        table=pd.DataFrame(table), verdict=FOUND if is_found else NOT_FOUND, agreement=agreement, inside=inside,
        n=(len(y), len(x)), restarts=restarts, shared=len(pairs), right=right, adapter=made,
    )  # fmt: skip


def _shared(read: list[Any], rows: list[np.ndarray]) -> np.ndarray:
    """Places (p, 2) among the rows that are looked at, old and new, of ids that both have."""
    if any(one.ids is None for one in read):
        return np.empty((0, 2), dtype=int)
    place = [{one.ids[row]: i for i, row in enumerate(at)} for one, at in zip(read, rows, strict=True)]
    return np.array([(i, place[1][name]) for name, i in place[0].items() if name in place[1]], dtype=int).reshape(-1, 2)


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Made-up vectors of some clusters, and of the same clusters turned."""
    rng = np.random.default_rng(0)
    centres, turn = rng.standard_normal((12, 8)), np.linalg.qr(rng.standard_normal((8, 8)))[0]
    paths = {}
    for name, z in (("old", np.eye(8)), ("new", turn)):
        rows = centres[rng.integers(12, size=500)] + 0.3 * rng.standard_normal((500, 8))
        paths[name] = made_up(folder / f"{name}.npy", rows @ z)
    saved = None if given["adapter"] is None else folder / "adapter.safetensors"
    return {**paths, "layer": None, "id": None, "restarts": 3, "adapter": saved}
