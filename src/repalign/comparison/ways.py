"""The ways of computing a measure: which is taken at how many stimuli, what it costs, and what it knows of chance.

| way | of | above n | chance |
| --- | --- | --- | --- |
| dense | every measure | 0 | what the null says: its draws, or closed forms |
| streamed | linear CKA without epsilon | 8,192 | exact mean and spread over all relabellings; p by Cantelli's inequality |
| closed | `MutualKNN` | 20,000 | exact moments over all relabellings; p by their law, or by a bound where it is not known |
| anchored | `MutualKNN` without center | 200,000 | exact mean over all relabellings; p by Markov's inequality |

All but the first draw nothing, and are taken under `null="auto"` without groups. Streamed and anchored read features as they are,
in blocks of rows. Closed and anchored need a layer search for a maximum, which a bound can judge; for others the null draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

import repalign.null as nulls
from repalign.comparison.alignment import SCHEMA
from repalign.comparison.anchors import anchored_all
from repalign.comparison.streaming import BLOCK, BLOCKS, stream_cka_all, strips, sums_bytes
from repalign.comparison.tiles import Cache, Scored, Tile
from repalign.errors import RepalignError
from repalign.measures.measure import Bilinear, Measure
from repalign.measures.numerics.precision import full_precision
from repalign.null import BOUND
from repalign.representation import DEFAULT_MEMORY
from repalign.text import Progress, duration, silent, size

# Above 8,192 stimuli the spectra of the cyclic null (2 n^2 bytes a layer or more) fill the memory of a usual machine. Above
# 20,000 draws take longer than the neighbours, above 200,000 the neighbours of all rows take days.
ABOVE = {"streamed": 8_192, "closed": 20_000, "anchored": 200_000}
ANCHORS = 2_000
KERNELS, FEATURE_SPACE = "dense", "feature space"  # the two methods of linear CKA


class Way:
    """Dense: prepared states, which the null judges."""

    name: ClassVar[str] = ""  # as tiles call it
    by: ClassVar[str] = ""  # what judges, if not the null
    states: ClassVar[bool] = True  # whether it prepares states
    closed: ClassVar[bool] = False  # whether closed forms alone judge, whatever null is asked for

    def suits(self, measure: Measure, plain: bool, search: nulls.Search) -> bool:  # noqa: ARG002
        """Whether it computes this measure; `plain`: all layers are features, taken as they are."""
        return True

    def plan(self, tiles: Sequence[Tile], rate: float) -> str:  # noqa: ARG002
        """The cost of these tiles in a sentence; empty if it is usual."""
        return ""

    def judge(self, tile: Tile, cache: Cache, progress: Progress) -> tuple[nulls.Judgement, dict[str, Any]]:  # noqa: ARG002
        """Judge a pair of models; with it, entries for the run about how that was done."""
        measure, how = tile.measure, tile.settings
        a, b = (cache.get(r, measure, how) for r in (tile.x, tile.y))
        return how.null.judge(measure, a, b, how=how.search, alpha=how.alpha, streams=tile.streams), {}


class Streamed(Way):
    """Linear CKA in feature space: one pass over the rows of both models."""

    name, by, states = "streamed", BOUND, False

    def suits(self, measure: Measure, plain: bool, search: nulls.Search) -> bool:  # noqa: ARG002
        from repalign.measures.kernel import CKA  # no family is imported before one of its measures is asked for

        return type(measure) is CKA and measure.kernel == "linear" and measure.epsilon == 0 and plain

    def plan(self, tiles: Sequence[Tile], rate: float) -> str:
        plans = [plan(t.x.n, t.x.widths, t.y.widths, memory=0) for t in tiles]
        return Plan(FEATURE_SPACE, sum(p.flops for p in plans), max(p.memory_bytes for p in plans), rate).sentence

    def judge(self, tile: Tile, cache: Cache, progress: Progress) -> tuple[nulls.Judgement, dict[str, Any]]:
        measure: Any = tile.measure
        found = stream_cka_all(
            tile.x, tile.y, estimator=measure.estimator, device=tile.settings.device, memory=cache.budget, progress=progress
        )
        score, mean, std, z = found.statistic, found.null_mean, found.null_std, found.z
        p = np.where(np.isnan(z), np.nan, found.pvalue_bound)

        def at(level: float) -> nulls.Calibration:
            return nulls.Calibration.of(score, mean, std, p, mean + std * math.sqrt(1 / level - 1), measure.s_max)

        # The largest of m scores of mean 0 and variance 1 has a mean of at most sqrt(m - 1), whatever their joint law.
        return _by_bounds(tile, at, lambda m, i, j: mean[i, j] + std[i, j] * math.sqrt(m - 1)), {"method": found.method}


class Closed(Way):
    """Mutual k-NN from the exact neighbours of all rows, searched for tile by tile, with moments in the place of draws."""

    name, by, closed = "closed", nulls.Moments.name, True

    def suits(self, measure: Measure, plain: bool, search: nulls.Search) -> bool:  # noqa: ARG002
        from repalign.measures.neighbors import MutualKNN

        return type(measure) is MutualKNN and search.aggregate == "max"

    def plan(self, tiles: Sequence[Tile], rate: float) -> str:
        models = {r.name: r for t in tiles for r in (t.x, t.y)}.values()
        return f"exact tiles: {_products(float(tiles[0].x.n) ** 2 * sum(sum(r.widths) for r in models), rate)}"

    def judge(self, tile: Tile, cache: Cache, progress: Progress) -> tuple[nulls.Judgement, dict[str, Any]]:
        measure: Any = tile.measure
        judged = super().judge(tile, cache, progress)[0]
        bounded = ", a bound where their law is a mixture" if (judged.cells_by == BOUND).any() else ""
        method = f"mutual k-NN, all n = {tile.x.n:,} rows, exact {measure.similarity} neighbours by tiles"
        return judged, {"method": f"{method}; p from exact moments{bounded}"}


class Anchored(Way):
    """Mutual k-NN estimated from a sample of rows, whose neighbours are searched for among all."""

    name, by, states = "anchored", BOUND, False

    def suits(self, measure: Measure, plain: bool, search: nulls.Search) -> bool:
        from repalign.measures.neighbors import MutualKNN

        return type(measure) is MutualKNN and not measure.center and plain and search.aggregate == "max"

    def plan(self, tiles: Sequence[Tile], rate: float) -> str:
        count = float(ANCHORS) * tiles[0].x.n * sum(sum(r.widths) for t in tiles for r in (t.x, t.y))
        return f"{ANCHORS:,} anchors against all rows: {_products(count, rate)}"

    def judge(self, tile: Tile, cache: Cache, progress: Progress) -> tuple[nulls.Judgement, dict[str, Any]]:  # noqa: ARG002
        measure: Any = tile.measure
        seed, device = tile.settings.null.seed, tile.settings.device
        found = anchored_all(tile.x, tile.y, measure.k, measure.similarity, ANCHORS, seed, device=device, progress=progress)
        score = np.array([[f.statistic for f in row] for row in found])
        chance, unknown = np.full(score.shape, found[0][0].chance), np.full(score.shape, np.nan)
        p = np.minimum(1.0, chance / np.where(score > 0, score, chance))

        def at(level: float) -> nulls.Calibration:
            return nulls.Calibration.of(score, chance, unknown, p, chance / level, measure.s_max)

        ends = [
            {"layer_x": a, "layer_y": b, "low": f.low, "high": f.high, "level": f.level}
            for a, row in zip(tile.x.layers, found, strict=True)
            for b, f in zip(tile.y.layers, row, strict=True)
            if f.low == f.low
        ]
        # No score is negative: the largest of m is at most their sum.
        return _by_bounds(tile, at, lambda m, i, j: min(1.0, m * chance[i, j])), {"method": found[0][0].method, "intervals": ends}


DENSE = Way()
WAYS: dict[str, Way] = {way.name: way for way in (Anchored(), Closed(), Streamed(), DENSE)}


def way_of(
    measure: Measure, null: nulls.Null, n: int, *, plain: bool = True, search: nulls.Search | str = "studentised"
) -> tuple[Way, nulls.Null]:
    """How a measure is computed at n stimuli, the first of `WAYS` that begins below n and suits it; and by which null.

    null : the one that is asked for; `plain` : whether all layers are features that nothing is done to before.

    >>> from repalign.measures import CKA
    >>> way_of(CKA(), nulls.Auto(), 10_000)[0].name, way_of(CKA(), nulls.Permutations(), 10_000)[0].name
    ('streamed', '')
    """
    free = isinstance(null, nulls.Auto) and null.groups is None
    open_ = [name for name, above in reversed(ABOVE.items()) if n > above] if free else []
    way = next((WAYS[name] for name in open_ if WAYS[name].suits(measure, plain, nulls.Search.parse(search))), DENSE)
    if way.closed:
        return way, nulls.Closed(nulls.Permutations(1, null.seed), bounded=True)  # its sampler is not asked
    return way, null.resolve(measure, n, spectra=n <= ABOVE["streamed"])


def check_memory(
    measure: Measure, n: int, memory: int,
    remedy: str = "use CKA() with null='auto' and no preprocessing, which is streamed, MutualKNN, or fewer stimuli",
) -> None:  # fmt: skip
    """Refuse n x n states if two of them do not fit into `memory` bytes."""
    needed = 2 * 4 * n * n
    if isinstance(measure, Bilinear) and measure.dense and needed > memory:
        raise RepalignError(
            f"{measure!r} at n = {n:,} does not fit the memory",
            expected=f"two n x n matrices within {memory / 2**30:.1f} GiB", got=f"{needed / 2**30:.1f} GiB", remedy=remedy,
        )  # fmt: skip


def _by_bounds(
    tile: Tile, at: Callable[[float], nulls.Calibration], most: Callable[[int, int, int], float]
) -> nulls.Judgement:  # fmt: skip
    return nulls.by_bounds(tile.measure, at, most, nulls.Search.parse(tile.settings.search), tile.settings.alpha)[0]


@dataclass(frozen=True, eq=False)
class Judged:
    """A tile that was judged: the columns of its rows, each a value for all or one for each, and what `Scored` has besides."""

    rows: int
    columns: dict[str, Any]
    draws: np.ndarray
    about: dict[str, Any]


def judged_tile(tile: Tile, cache: Cache, progress: Progress = silent) -> Judged:
    """One tile, a pure function of the two representations: the row of the layer search, then one per cell."""
    judged, about = WAYS[tile.settings.way].judge(tile, cache, progress)
    found, preprocess = judged.found, tile.settings.preprocess
    layers = [r.layers if preprocess is None else preprocess.layer_names(r.layers) for r in (tile.x, tile.y)]
    names_x, names_y = (np.array([*names, None], dtype=object) for names in layers)
    at = zip((found.layer_x, found.layer_y), np.indices(judged.cells.statistic.shape), strict=True)
    i, j = (np.concatenate([[best], cells.ravel()]) for best, cells in at)
    by = np.concatenate([[judged.search_by], judged.cells_by.ravel()])
    is_max = np.arange(len(i)) == 0
    columns: dict[str, Any] = {
        "dataset": tile.x.dataset_name, "dataset_fingerprint": tile.x.dataset_fingerprint, "n": tile.x.n,
        "model_x": tile.x.name, "layer_x": names_x[i],  # -1, no layer, is the None at the end
        "index_x": i, "model_y": tile.y.name, "layer_y": names_y[j], "index_y": j,
        "measure": repr(tile.measure), "scope": np.where(is_max, "max", "cell"),
        "p_stepdown": np.concatenate([[np.nan], found.stepdown.ravel()]),
        "null": by, "n_draws": np.where(np.isin(by, [nulls.Moments.name, BOUND]), 0, judged.n_draws),
        "seed": tile.settings.null.seed, "search": np.where(is_max, np.array(str(judged.search), dtype=object), None),
    }  # fmt: skip
    for name in nulls.Calibration.__dataclass_fields__:
        columns[name] = np.concatenate([np.ravel(getattr(found.calibration, name)), getattr(judged.cells, name).ravel()])
    return Judged(len(i), columns, found.draws, about)


def scored_of(judged: Sequence[Judged], made: str = "") -> list[Scored]:
    """Tiles that were judged, with one table for the rows of all: the columns of the schema, null where none is given."""
    lengths = np.array([one.rows for one in judged])
    own = pa.array(np.repeat(np.arange(len(judged)), lengths))  # the tile of each row
    arrays = []
    for column in SCHEMA:  # a column is one value for each tile, or one for each row
        values = [one.columns.get(column.name) for one in judged]
        by_row = isinstance(values[0], np.ndarray)
        arrays.append(pa.array(np.concatenate(values) if by_row else values, type=column.type))
        arrays[-1] = arrays[-1] if by_row else arrays[-1].take(own)
    table, stops = pa.Table.from_arrays(arrays, schema=SCHEMA), np.cumsum(lengths).tolist()
    places = zip(judged, [0, *stops], stops, strict=False)
    return [Scored(table, start, stop, one.draws, one.about, made) for one, start, stop in places]


def compute_tile(tile: Tile, cache: Cache | None = None, progress: Progress = silent) -> Scored:
    """Scores, draws and what follows for one tile, a pure function of the two representations."""
    return scored_of([judged_tile(tile, Cache(DEFAULT_MEMORY) if cache is None else cache, progress)])[0]


# --- the cost of linear CKA, dense and streamed --------------------------------------------------

@dataclass(frozen=True)
class Plan:
    """How linear CKA of layers x layers is best computed, and its cost.

    method : "dense" (n x n kernels; `repalign.measures.CKA`) or "feature space" (`stream_cka_all`).
    flops, rate : multiply-adds of that method, and of a second.
    memory_bytes : what it holds in addition to the features: the kernels, or the sums and three blocks of every layer.
    """

    method: str
    flops: float
    memory_bytes: int
    rate: float | None = None

    @property
    def sentence(self) -> str:
        """All of this for a person."""
        held = "of n x n kernels" if self.method == KERNELS else "beside the features, whatever n"
        return f"{self.method}: {_products(self.flops, self.rate, f'{size(self.memory_bytes)} {held}')}"


def plan(
    n: int, widths_x: int | Sequence[int], widths_y: int | Sequence[int], itemsize: int = 4, *, block: int = BLOCK,
    rate: float | None = None, memory: int | None = None,
) -> Plan:  # fmt: skip
    """Choose between n x n kernels and feature space by the number of multiply-adds.

    Dense: n^2 (sum d / 2 + l m), for l and m layers, kernels by triangle. Feature space: n (about sum d^2 / 2 + sum
    of d_x d_y over pairs). Dense is chosen if it is cheaper and its kernels fit into `memory` bytes, by default a
    quarter of the machine's. `rate` in multiply-adds per second, as `matmul_rate` measures it, adds the time.
    """
    xs, ys = ([w] if isinstance(w, int) else list(w) for w in (widths_x, widths_y))
    dense = float(n) ** 2 * (sum(xs + ys) / 2 + len(xs) * len(ys))
    dense_bytes = n * n * itemsize * len(xs + ys)
    stream = n * (sum((b - a) * b for d in xs + ys for a, b in strips(d)) + float(sum(xs)) * sum(ys))
    stream_bytes = sums_bytes(xs, ys, itemsize) + BLOCKS * min(block, n) * sum(xs + ys) * itemsize
    if dense < stream and dense_bytes <= (DEFAULT_MEMORY if memory is None else memory):
        return Plan(KERNELS, dense, dense_bytes, rate)
    return Plan(FEATURE_SPACE, stream, stream_bytes, rate)


def _products(count: float, rate: float | None, held: str = "") -> str:
    """A number of multiply-adds, what is held in memory for them, and how long they take."""
    parts = [f"{count:.2g} multiply-adds", *filter(None, [held])]
    if rate is not None:
        parts.append(f"{'about ' * (count >= rate)}{duration(count / rate)} at {rate:.2g} multiply-adds a second")
    return ", ".join(parts)


def matmul_rate(
    device: str | torch.device = "cpu", *, rows: int = BLOCK, width: int = 768, seconds: float = 0.3, dtype: Any = torch.float32
) -> float:
    """Multiply-adds per second of products (width, rows) @ (rows, width), the best of `seconds` of trying."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    best, stop = float("inf"), time.perf_counter() + seconds
    with full_precision():
        while time.perf_counter() < stop or best == float("inf"):
            start = time.perf_counter()
            float((x.T @ x)[0, 0])  # reading an entry waits for the device
            best = min(best, time.perf_counter() - start)
    return rows * width * width / best
