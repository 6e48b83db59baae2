"""What does compression of an index cost? How much of its exact answers smaller vectors keep, beside their bytes.

Recall@k: of the k nearest by the vectors as they are, the share that is among the k nearest by the smaller ones, the mean over
queries. Codes of 8 bits and of 1 bit are multiplied in two ways: as a database does that knows nothing of how they were made, and
after they are turned back into numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np

from repalign.errors import RepalignError
from repalign.experiments.base import Found, Input, made_up
from repalign.experiments.retrieval import Gallery, bounds, held_out, in_common, own_rows, read_vectors, remarks, unit
from repalign.text import Progress, counted, interval, number, silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from repalign.experiments.retrieval import Array
    from repalign.figures.canvas import Look

PARTS = (2, 4, 8)  # of the dimensions, that stay where others are cut off
RESCORED = (2, 4, 10)  # times k candidates by single bits, which are put in order by the vectors as they are
DRAWS = 9  # sets of random dimensions for each width
ONE_SIDED = 0.99  # of the entries of a dimension have one sign
RANDOM, AS_THEY_ARE = "random dimensions", "codes as they are"


@dataclass(frozen=True, eq=False)
class Smaller:
    """Index and queries in a smaller form: `family` is a line of the figure; `metric` is how they are searched."""

    method: str
    family: str
    size: float  # bytes of a vector
    index: Array
    queries: Array
    metric: str
    rescored: int = 0  # times k candidates are put in order by the whole vectors


def smaller(index: Array, queries: Array, metric: str, widths: list[int], seed: int) -> Iterator[Smaller]:
    """All forms, made of the index alone: ranges, means and components are never those of the queries."""
    d = index.shape[1]
    yield Smaller("float16", "numbers", 2 * d, *(x.astype(np.float16).astype(float) for x in (index, queries)), metric)
    low, high = index.min(0), index.max(0)
    step = np.where(high > low, high - low, 1.0) / 255

    def codes(x: Array) -> Array:
        return np.clip(np.round((x - low) / step), 0, 255)

    both = codes(index), codes(queries)
    yield Smaller("int8, de-quantised", "numbers", d, *(c * step + low for c in both), metric)
    yield Smaller("int8, codes as they are, dot", AS_THEY_ARE, d, *(c - 128 for c in both), "dot")
    yield Smaller("int8, codes as they are, cosine", AS_THEY_ARE, d, *(c - 128 for c in both), "cosine")
    mean = index.mean(0)
    yield Smaller("binary, sign", AS_THEY_ARE, d / 8, *(np.where(x > 0, 1.0, -1.0) for x in (index, queries)), "dot")
    signs = [np.where(x > mean, 1.0, -1.0) for x in (index, queries)]
    yield Smaller("binary about the mean", "binary about the mean", d / 8, *signs, "dot")
    for times in RESCORED:
        yield Smaller(f"binary about the mean, {times} k rescored", "binary about the mean", d / 8, *signs, "dot", times)
    components = np.linalg.eigh(index.T @ index)[1][:, ::-1]  # about 0: an inner product of vectors, which has no mean taken away
    centred = np.linalg.eigh(np.cov(index.T))[1][:, ::-1]
    for width in widths:
        yield Smaller(f"first {width}", "first dimensions", 4 * width, index[:, :width], queries[:, :width], metric)
        for draw in range(DRAWS if width < d else 1):
            some = np.random.default_rng([seed, width, draw]).choice(d, width, replace=False)
            yield Smaller(f"random {width}", RANDOM, 4 * width, index[:, some], queries[:, some], metric)
        yield Smaller(f"PCA {width}", "PCA", 4 * width, *(x @ components[:, :width] for x in (index, queries)), metric)
        about = [(x - mean) @ centred[:, :width] for x in (index, queries)]
        yield Smaller(f"PCA about the mean {width}", "PCA about the mean", 4 * width, *about, metric)


@dataclass(frozen=True, eq=False, kw_only=True)
class Compressed(Found):
    """What each smaller form keeps, from `compress`.

    table : a row for each form: recall with its interval (low, high) over queries, bytes of a vector, and how many times smaller
    that is than float32; for random dimensions the mean over sets. is_matryoshka : whether at every width the first dimensions keep
    more than each of `DRAWS` sets of random ones, and surely more than their mean.
    """

    n: int
    d: int
    q: int
    k: int
    metric: str
    is_matryoshka: bool | None
    one_sided: float
    notes: tuple[str, ...]
    shown: ClassVar[tuple[str, ...]] = ("method", "recall", "low", "high", "bytes", "times_smaller")

    @property
    def chance(self) -> float:
        """Recall of k rows that are picked at random."""
        return self.k / self.n

    def _said(self, method: str) -> str:
        row = self.table.set_index("method").loc[method]
        return interval(row["recall"], row["low"], row["high"])

    @property
    def text(self) -> str:
        codes, binary = "int8, codes as they are, dot", "binary about the mean"
        out = [
            f"{self.n:,} vectors of {self.d} dimensions, {counted(self.q, 'query')}, the {self.k} nearest by {self.metric}: recall "
            f"is the share of the exact answers that is kept; {self.k} at random keep {number(self.chance)}.",
            *self.notes,
            f"int8 keeps {self._said('int8, de-quantised')} de-quantised, and {self._said(codes)} where its codes are multiplied "
            f"as they are. One bit a dimension keeps {self._said(binary)} about the mean and {self._said('binary, sign')} by its "
            f"sign; with {RESCORED[-1]} k candidates in order by the whole vectors, which must be kept too, "
            f"{self._said(f'{binary}, {RESCORED[-1]} k rescored')}.",
        ]
        if self.one_sided:
            out.append(
                f"A share of {number(self.one_sided)} of the dimensions has one sign, as behind a ReLU: their sign says nothing, "
                "and each has a range of its own, so use neither codes as they are nor plain signs."
            )
        if self.is_matryoshka is not None:
            width = min(int(name.split()[1]) for name in self.table["method"] if name.startswith("first "))
            verdict = ("At every width the first keep more than any set of random ones, as those of a Matryoshka model do."
                       if self.is_matryoshka else "The first do not keep more than all sets of random ones at every width: this is "
                       "no Matryoshka model, so do not cut its vectors off.")  # fmt: skip
            out.append(
                f"The first {width} dimensions keep {self._said(f'first {width}')}, {width} random ones "
                f"{self._said(f'random {width}')}, {width} principal components {self._said(f'PCA {width}')}. {verdict}"
            )
        out.append("A recall of 1 would refute that a form costs anything. None of these says what the lost answers were worth.")
        return " ".join(out)

    def draw(self, **look: Unpack[Look]) -> Axes:
        """Recall over bytes of a vector, a line for each family of forms."""
        from repalign.figures import canvas
        from repalign.figures.palette import MUTED, family

        table, families = self.table, list(dict.fromkeys(self.table["family"]))
        called = canvas.called(families, look=look, what="words")
        above = f"{self.n:,} vectors of {self.d} dimensions, {counted(self.q, 'query')}, {self.metric}; upright: 95 % intervals"
        _, ((axes,),) = canvas.sheet(7.4, 4.4, "What compression costs", above=above, rules="both", **look)
        for j, name in enumerate(families):
            rows, (color, marker) = table.loc[table["family"] == name].sort_values(["bytes", "recall"]), family(j)
            style = {RANDOM: canvas.DASHED, AS_THEY_ARE: ""}.get(name, "-")
            axes.plot(rows["bytes"], rows["recall"], color=color, marker=marker, markersize=5, linewidth=1.1, linestyle=style,
                      label=canvas.plain(called[name]))  # fmt: skip
            axes.vlines(rows["bytes"], rows["low"], rows["high"], colors=color, linewidth=1.4)
        axes.axhline(self.chance, color=MUTED, linewidth=1, linestyle=":", label=f"chance {number(self.chance)}")
        canvas.sizes(axes, table["bytes"])
        axes.set_ylim(-0.02, 1.03)
        canvas.labels(axes, f"bytes of a vector, log scale (float32: {4 * self.d:,})", f"recall@{self.k}")
        canvas.legend_below(axes, 3)
        return axes


def compress(
    vectors: Input, *, queries: Input | None = None, layer: str | None = None, id: str | None = None, k: int = 10,
    metric: str = "cosine", widths: list[int] | None = None, seed: int = 0, progress: Progress = silent,
) -> Compressed:  # fmt: skip
    """What does compression cost? How many exact answers of an index float16, int8, single bits and fewer dimensions keep.

    Parameters
    ----------
    vectors : The vectors of the index: a file of features, or STORE#MODEL.
    queries : The vectors of real queries; without, some vectors are held out and serve as queries.
    layer : Which layer, where a file has several; last is the last one.
    id : The column that names the rows.
    k : How many answers a query has.
    metric : How the index is searched: cosine, dot or euclidean.
    widths : Numbers of dimensions that vectors are cut to; by default a half, a quarter and an eighth.
    seed : Of the queries that are held out, random dimensions, and the draws of intervals.
    """
    import pandas as pd

    read = read_vectors({"the vectors": vectors}, layer, id)
    (index,) = read.arrays
    notes, own = list(remarks("The vectors", index, metric)), None
    if queries is None:
        stay, out = held_out(len(index), seed)
        index, asked = index[stay], index[out]
        notes.append(f"No queries were given: {len(out):,} vectors are held out as queries. Real queries may be unlike them.")
    else:
        given = read_vectors({"the queries": queries}, layer, id)
        (asked,) = given.arrays
        own = own_rows(asked, given.ids, index, read.ids)
        if own is not None:
            notes.append(f"{int((own >= 0).sum()):,} queries are rows of the index: each is left out of its own answers.")
    if asked.shape[1] != index.shape[1]:
        raise RepalignError("vectors and queries are of different widths", expected=f"{index.shape[1]} dimensions",
                            got=asked.shape[1], remedy="give queries of the same model")  # fmt: skip
    if len(asked) < 2 or len(index) <= k or k < 1:
        raise RepalignError("too few vectors", expected=f"more than k = {k} in the index, k of 1 or more, and two queries",
                            got=f"{len(index):,} and {len(asked):,}")  # fmt: skip
    d = index.shape[1]
    sizes = sorted({w for w in (d // part for part in PARTS) if w > 0} if widths is None else set(widths), reverse=True)
    if sizes and not 1 <= sizes[-1] <= sizes[0] <= d:
        raise RepalignError("widths are numbers of dimensions", expected=f"1 to {d}", got=", ".join(map(str, sizes)))
    if metric == "cosine":
        index, asked = unit(index), unit(asked)
    whole = Gallery(index, metric)
    exact = whole.nearest(asked, k, own)
    forms: dict[str, Smaller] = {}  # without their vectors, of which one set at a time is in memory
    kept: dict[str, list[Array]] = {}
    total = 6 + len(RESCORED) + sum(3 + (DRAWS if w < d else 1) for w in sizes)
    for done, form in enumerate(smaller(index, asked, metric, sizes, seed)):
        progress("compress", done, total)
        depth = min(max(form.rescored, 1) * k, len(index) - 1)
        lists = Gallery(form.index, form.metric).nearest(form.queries, depth, own)
        kept.setdefault(form.method, []).append(in_common(exact, (whole.ordered(lists, asked) if form.rescored else lists)[:, :k]))
        forms.setdefault(form.method, replace(form, index=index[:0], queries=asked[:0]))
    progress("compress", total, total)
    methods, of = list(forms.values()), {name: np.stack(some) for name, some in kept.items()}
    values = np.stack([of[f.method].mean(0) for f in methods], axis=1)  # (queries, methods)
    low, high = bounds(values, seed)
    table = pd.DataFrame({
        "method": [f.method for f in methods], "family": [f.family for f in methods], "recall": values.mean(0), "low": low,
        "high": high, "bytes": [f.size for f in methods], "times_smaller": [4 * d / f.size for f in methods], "n": len(index),
        "queries": len(asked), "k": k,
    })  # fmt: skip
    pairs = [(of[f"first {w}"][0], of[f"random {w}"]) for w in sizes if w < d]
    surely = bounds(np.stack([a - b.mean(0) for a, b in pairs], axis=1), seed)[0] > 0 if pairs else None
    is_matryoshka = None if surely is None else bool(surely.all()) and all(a.mean() > b.mean(1).max() for a, b in pairs)
    one_sided = float(np.mean(np.maximum((index >= 0).mean(0), (index <= 0).mean(0)) >= ONE_SIDED))
    return Compressed(
        table=table, n=len(index), d=d, q=len(asked), k=k, metric=metric, is_matryoshka=is_matryoshka, one_sided=one_sided,
        notes=tuple(notes),
    )  # fmt: skip


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Made-up vectors, and queries if there are any."""
    rng, turn = np.random.default_rng(0), np.random.default_rng(1).standard_normal((6, 16))

    def made(name: str, n: int) -> str:
        return made_up(folder / f"{name}.npy", rng.standard_normal((n, 6)) @ turn + 0.1 * rng.standard_normal((n, 16)))

    out = {"vectors": made("vectors", 120), "layer": None, "id": None, "widths": None, "k": min(given["k"], 20)}
    return {**out, "queries": None if given["queries"] is None else made("queries", 60)}
