"""Two files with so many rows that no n x n matrix fits: the method and its cost are told first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from repalign.cli._console import err, out, shown_number, shown_p
from repalign.errors import RepalignError

if TYPE_CHECKING:
    import pandas as pd

    from repalign.measures import Measure
    from repalign.text import Progress

LARGE = 20_000  # rows above which states of n x n numbers are not formed
ANCHORED = 200_000  # rows above which mutual k-NN is estimated from anchors
ANCHORS = 2_000

Layers = Mapping[str, Any]  # (n, d) tensors


def is_large(n: int) -> bool:
    """Whether n x n states are out of the question."""
    return n > LARGE


def refuse_large(measure: Measure, n: int) -> None:
    """Refuse a measure whose states have n x n entries where that is too many; neighbour lists fit."""
    from repalign.measures import MutualKNN

    if is_large(n) and not isinstance(measure, MutualKNN):
        raise RepalignError(
            f"{measure!r} keeps n x n numbers per layer",
            expected=f"n <= {LARGE:,}, or mutual k-NN",
            got=f"n = {n:,}: {4 * n * n / 1e9:.3g} GB for one layer",
            remedy="use a sample of the stimuli",
        )


@dataclass(frozen=True, eq=False)
class _Work:
    """Both sides, and what a method may need beside them."""

    left: Layers
    right: Layers
    n: int
    seed: int
    memory: int | None
    progress: Progress


@dataclass(frozen=True)
class _Method:
    """A way to compute a measure: `plan(measure, work, rate)` says what it costs, `run(measure, work)` does it."""

    plan: Callable[[Any, _Work, float], str]
    run: Callable[[Any, _Work], dict[str, Any]]


def pair_at_scale(
    left: Layers,
    right: Layers,
    names: tuple[str, str],
    measures: Sequence[str],
    *,
    refused: Sequence[str],
    seed: int,
    memory: int | None,
    progress: Progress,
) -> pd.DataFrame:
    """Tell the plan, then one row per measure: the best pair of layers, its chance level and how it was computed.

    Linear CKA streams over the rows; mutual k-NN is exact by tiles, above 200,000 rows from 2,000 anchors. No null is
    drawn: mean and spread over all pairings are closed forms, and p is that of the best cell times the number of cells.
    Raises RepalignError for any of the options in `refused`, and for measures that keep n x n numbers.
    """
    import pandas as pd

    from repalign.comparison import matmul_rate
    from repalign.measures import parse_measure

    n = len(next(iter(left.values())))
    if refused:
        raise RepalignError(
            f"{', '.join(refused)}: not above {LARGE:,} rows",
            expected="no option that draws a null or sub-samples: chance is a closed form there",
            got=f"n = {n:,}",
            remedy="leave it out, or use a sample of the stimuli",
        )
    parsed = [parse_measure(m) for m in measures]
    methods = [_method(m, n) for m in parsed]
    work, rate = _Work(left, right, n, seed, memory, progress), matmul_rate()
    for measure, method in zip(parsed, methods, strict=True):
        err.print(f"[dim]{escape(f'plan for {measure!r}: {method.plan(measure, work, rate)}')}[/]")
    rows = [
        {"measure": repr(measure), "n": n, "model_x": names[0], "model_y": names[1], **method.run(measure, work)}
        for measure, method in zip(parsed, methods, strict=True)
    ]
    return pd.DataFrame(rows)


def _method(measure: Measure, n: int) -> _Method:
    """How a measure is computed at this n."""
    from repalign.measures import CKA, MutualKNN

    measure.check_n(n)
    if isinstance(measure, CKA) and measure.kernel == "linear" and not measure.epsilon:
        return _Method(_plan_streamed, _streamed)
    if isinstance(measure, MutualKNN) and n <= ANCHORED:
        return _Method(_plan_tiled, _tiled)
    if isinstance(measure, MutualKNN) and not measure.center:
        return _Method(_plan_anchored, _anchored)
    raise RepalignError(
        f"{measure!r} cannot be computed at this n",
        expected=f"linear CKA without epsilon, or MutualKNN (above {ANCHORED:,} rows without center)",
        got=f"n = {n:,}",
        remedy="use one of these measures, or a sample of the stimuli",
    )


def _widths(layers: Layers) -> list[int]:
    return [x.shape[1] for x in layers.values()]


def _products(count: float, rate: float) -> str:
    return f"{count:.2g} multiply-adds, at least {count / rate:.2g} s at {rate:.2g} a second"


# --- linear CKA of all pairs of layers in one pass -------------------------------------------------


def _plan_streamed(measure: Any, work: _Work, rate: float) -> str:  # noqa: ARG001
    from repalign.comparison import plan

    wide = max(4, *(x.element_size() for side in (work.left, work.right) for x in side.values()))
    return plan(work.n, _widths(work.left), _widths(work.right), wide, rate=rate, memory=0).sentence


def _streamed(measure: Any, work: _Work) -> dict[str, Any]:
    from repalign.comparison import stream_cka_all

    found = stream_cka_all(
        list(work.left.values()),
        list(work.right.values()),
        estimator=measure.estimator,
        memory=work.memory,
        progress=work.progress,
    )
    return {**_best(found, found.pvalue_bound, work), "method": found.method}


# --- mutual k-NN of all rows, a tile of similarities at a time -------------------------------------


def _plan_tiled(measure: Any, work: _Work, rate: float) -> str:  # noqa: ARG001
    return f"exact tiles: {_products(float(work.n) ** 2 * sum(_widths(work.left) + _widths(work.right)), rate)}"


def _tiled(measure: Any, work: _Work) -> dict[str, Any]:
    import numpy as np

    from repalign.measures.measure import as_features
    from repalign.null import Moments, Permutations
    from repalign.null.moments import bound, trusted

    done, total, prepared = 0, len(work.left) + len(work.right), []
    chance = Moments(Permutations(1))  # its sampler is not asked
    work.progress("neighbours", done, total)
    for side in (work.left, work.right):
        states = []
        for name, x in side.items():
            states.append(measure.prepare(as_features(x, f"layer {name}")))
            done += 1
            work.progress("neighbours", done, total)
        prepared.append(chance.prepare(measure, states))
    a, b = prepared
    law = chance.law(measure, a, b)
    cells = chance.cells(measure, a, b, measure.compare_all(a.states, b.states).numpy(), law)
    closed = trusted(law, work.n)
    p = np.where(closed, cells.pvalue, bound(law, cells.z))
    how = "" if closed.all() else ", a bound where their law is a mixture"
    said = f"mutual k-NN, all n = {work.n:,} rows, exact {measure.similarity} neighbours by tiles; p from exact moments{how}"
    return {**_best(cells, p, work), "method": said}


# --- mutual k-NN from a sample of rows, each searched against all ----------------------------------


def _plan_anchored(measure: Any, work: _Work, rate: float) -> str:  # noqa: ARG001
    xs, ys = _widths(work.left), _widths(work.right)
    count = float(ANCHORS) * work.n * (sum(xs) * len(ys) + sum(ys) * len(xs))
    return f"{ANCHORS:,} anchors against all rows: {_products(count, rate)}"


def _anchored(measure: Any, work: _Work) -> dict[str, Any]:
    import numpy as np

    from repalign.comparison import anchored_mutual_knn

    layers = [(a, b) for a in work.left for b in work.right]
    found = [
        anchored_mutual_knn(
            work.left[a], work.right[b], measure.k, measure.similarity, ANCHORS, work.seed, progress=work.progress
        )
        for a, b in layers
    ]
    i = int(np.argmax(np.nan_to_num([f.statistic for f in found], nan=-1.0)))
    best, (layer_x, layer_y) = found[i], layers[i]
    return {
        "layer_x": layer_x,
        "layer_y": layer_y,
        "n_cells": len(found),
        "statistic": best.statistic,
        "null_mean": best.chance,
        "low": best.low,
        "high": best.high,
        "method": best.method,
    }


# --- what is told ----------------------------------------------------------------------------------


def _best(cells: Any, p: Any, work: _Work) -> dict[str, Any]:
    """The pair of layers that is farthest above its own chance level, its p multiplied by the number of pairs."""
    import numpy as np

    z = np.where(np.isnan(cells.z), -np.inf, cells.z)
    i, j = (int(v) for v in np.unravel_index(np.argmax(z), z.shape))
    return {
        "layer_x": list(work.left)[i],
        "layer_y": list(work.right)[j],
        "n_cells": z.size,
        **{f: float(getattr(cells, f)[i, j]) for f in ("statistic", "null_mean", "null_std", "z")},
        "pvalue": float(np.minimum(1.0, p[i, j] * z.size)),
    }


def show_at_scale(found: pd.DataFrame) -> None:
    """Score, chance level and p (or interval) of every measure, and how each was computed."""
    for row in found.to_dict("records"):
        number = {f: float(row.get(f, math.nan)) for f in ("statistic", "null_mean", "z", "pvalue", "low", "high")}
        title = escape(f"{row['measure']}, n = {row['n']:,}")
        table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
        ends = (escape(f"{row[f'model_{side}']} [{row[f'layer_{side}']}]") for side in "xy")
        for column in ("x [layer]", "y [layer]"):
            table.add_column(column, overflow="fold")
        for column in ("score", "chance", "z", "p", "95 % interval"):
            table.add_column(column, justify="right", no_wrap=True)
        between = "-" if math.isnan(number["low"]) else " to ".join(shown_number(number[f]) for f in ("low", "high"))
        scores = (shown_number(number[f]) for f in ("statistic", "null_mean", "z"))
        table.add_row(*ends, *scores, shown_p(number["pvalue"]), between)
        out.print(table)
        searched = f"; the best of {row['n_cells']} pairs of layers, p times their number" if row["n_cells"] > 1 else ""
        out.print(f"[dim]{escape(str(row['method']))}{searched}[/]")
