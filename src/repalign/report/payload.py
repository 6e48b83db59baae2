"""The data that the page's script draws from: pairs of models, and layer maps packed small.

Up to `EXACT_CELLS` cells are embedded as float64 and stand in the page's table; more of them are 16-bit
steps of each quantity's range (half a step is under 1e-5 of it). p-values from draws are whole ranks, so exact;
those of a closed form are steps of their logarithm (4e-4 of the value).
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from repalign import text as words
from repalign.comparison.conventions import ADJUSTED, FLOORED, P_VIEWS, VIEWS, VIEWS_OF, Pairs, ranked, scale_of
from repalign.figures.layer_map_chart import Layers
from repalign.figures.matrix_chart import MEANS, Grouped, Matrix

EXACT_CELLS = 20_000
MOST_CELLS = 400_000  # beyond this only the best aligned pairs have their layer maps in the page
PAIR_COLUMNS = ("statistic", "null_mean", "null_std", "z", "pvalue", "threshold", "calibrated", *ADJUSTED)
ENDS = 100  # pairs at either end, of those that are too many
MODELS = ("model_x", "model_y")
INTERVAL = ("low", "high")  # of the score, where the result has it
CELL_COLUMNS = ("statistic", "null_mean", "null_std", "pvalue", "p_stepdown", "threshold", "calibrated")
PACKED_COLUMNS = tuple(c for c in CELL_COLUMNS if c != "null_std")
STEPS, UNDEFINED = 65_534, 65_535
LOG_RANGE = 20  # a closed-form p below 1e-20 is written as 1e-20: no page tells them apart


def data(table: pd.DataFrame, pairs: Sequence[Pairs], cells: pd.DataFrame, run: Mapping[str, Any]) -> dict[str, Any]:
    """By the name of its script: what is read at once, and the cells of each measure, read when looked at."""
    names = list(dict.fromkeys([*table["model_x"], *table["model_y"]]))
    # Adjustments and intervals that are undefined everywhere, as in the results of older versions, are left out.
    there = {c for c in (*ADJUSTED, "p_stepdown", *INTERVAL) if c in table and table[c].notna().to_numpy().any()}
    absent = {*ADJUSTED, "p_stepdown"} - there
    shown = {
        "exact": len(cells) <= EXACT_CELLS,
        "pairColumns": [*PAIR_COLUMNS, *(c for c in INTERVAL if c in there)],
        "pairViews": [v for v in VIEWS_OF["max"] if v not in absent],
        "cellViews": [v for v in VIEWS_OF["cell"] if v not in absent],
    }
    columns = [c for c in (CELL_COLUMNS if shown["exact"] else PACKED_COLUMNS) if c not in absent]
    cells, most = cells.assign(gain=cells["statistic"] - cells["null_mean"]), MOST_CELLS // len(pairs)
    layers: dict[str, list[str]] = {}
    records = list(run.get("models") or [])
    packs = [_packed(some, cells, names, columns, shown, most, layers, Grouped.of(some, records)) for some in pairs]
    kinds = [some.about.name for some in pairs]
    for (summary, _), some in zip(packs, pairs, strict=True):  # what the measure is called in the page's address
        called = some.about.name if kinds.count(some.about.name) == 1 else some.about.label
        summary["slug"] = re.sub(r"[^a-z0-9]+", "-", called.lower()).strip("-")
    page = {
        "alpha": pairs[0].alpha, "n": max(some.n for some in pairs), "dataset": str(table["dataset"].iloc[0]),
        "name": run.get("name") or "repalign", "models": names, "layers": [layers.get(name, []) for name in names],
        "views": [{"key": v.key, "label": v.label, "meaning": v.meaning} for v in VIEWS.values()], "pViews": P_VIEWS,
        "floored": FLOORED, "adjusted": ADJUSTED, "cellCount": len(cells),
        "measures": [summary for summary, _ in packs], **shown,
    }  # fmt: skip
    return {"data": page} | {f"cells-{i}": cells for i, (_, cells) in enumerate(packs)}


def _packed(
    pairs: Pairs, cells: pd.DataFrame, names: list[str], columns: list[str], shown: Mapping[str, Any], most: int,
    layers: dict[str, list[str]], groups: Grouped | None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """One measure for the page: what is read at once, and the layer maps of at most `most` cells.

    The layers of the models are added to `layers`. Where models are in groups, there are the best and the worst pairs alone, and
    the best of every two groups.
    """
    exact, place, measure = shown["exact"], {name: i for i, name in enumerate(names)}.__getitem__, pairs.rows["measure"].iloc[0]
    views = [v for v in shown["pairViews"] if groups is None or v in MEANS]
    matrices = {v: Matrix.of(pairs, v, groups) for v in views}
    grid, cells = next(iter(matrices.values())), cells.loc[cells["measure"] == measure]
    index, n_pairs = grid.index, len(pairs.rows)
    if groups is not None:
        order = ranked(pairs.rows).index.to_numpy()
        chosen = np.unique(np.concatenate([order[:ENDS], order[-ENDS:], index[index >= 0]]))
        index = np.where(index < 0, -1, np.searchsorted(chosen, index))
        few = pairs.rows.loc[chosen, list(MODELS)]
        pairs = replace(pairs, rows=pairs.rows.loc[chosen].reset_index(drop=True), found=pairs.found[chosen])
        cells = cells.loc[pd.MultiIndex.from_frame(cells[list(MODELS)]).isin(pd.MultiIndex.from_frame(few))]
    rows, best = pairs.rows.to_dict("records"), pairs.best
    cells = cells.reset_index(drop=True)
    cell_draws = min(cells["n_draws"].tolist(), default=0)
    drawn = dict.fromkeys(VIEWS, cell_draws) | {"p_stepdown": pairs.draws}
    fields, codes = [], {}
    for column in columns:
        field, codes[column] = coded(column, cells[column].to_numpy(float), drawn.get(column, 0), exact)
        fields.append(field)
    numbers = {v: cells[v].to_numpy(float) for v in {*shown["cellViews"], "null_mean"}}
    by_pair = dict(iter(cells.groupby(["model_x", "model_y"], sort=False)))
    kept, left = set(), most  # the best aligned pairs first
    for k in pairs.rows.sort_values(by=["calibrated", "z"], ascending=False, kind="stable").index:
        size = len(by_pair.get((rows[k]["model_x"], rows[k]["model_y"]), ()))
        left -= size
        if size and left >= 0:
            kept.add(k)
    blocks, maps = [], []
    for k, row in enumerate(rows):
        of_pair = by_pair[row["model_x"], row["model_y"]] if k in kept else cells.iloc[:0]
        laid = Layers.of(of_pair, row, {c: code[of_pair.index] for c, code in codes.items()}, pairs.alpha)
        if k in kept:
            layers[row["model_x"]], layers[row["model_y"]] = laid.layers_x, laid.layers_y
        bare = (a if exact else np.nan_to_num(a, nan=UNDEFINED) for a in laid.arrays.values())
        blocks.append(base64.b64encode(b"".join(a.astype("<f8" if exact else "<u2").tobytes() for a in bare)).decode())
        maps.append({
            "shape": [len(laid.layers_x), len(laid.layers_y)],
            "best": laid.best,
            "scales": _scales({v: some[of_pair.index] for v, some in numbers.items()}, drawn, pairs.alpha, shown["cellViews"]),
            "threshold": _finite([laid.threshold])[0],
            "note": laid.note,
        })  # fmt: skip
    summary = {
        "repr": measure,
        "label": pairs.about.label,
        "draws": pairs.draws,
        "cellDraws": cell_draws,
        "best": next((k for k, row in enumerate(rows) if best and all(row[m] == best[m] for m in MODELS)), 0),
        "rule": pairs.rule,
        "note": pairs.note,
        "ceilings": [f"{words.number(c.statistic)} ({c.source(pairs.n)})" for c in pairs.seeds],
        "grid": {"rows": grid.rows, "columns": grid.columns, "index": index.tolist(), "mirrored": grid.mirrored.tolist(),
                 "found": grid.found.tolist(), "counts": None if grid.counts is None else grid.counts.tolist()},
        "groups": "" if groups is None else groups.why, "pairCount": n_pairs,
        "matrix": {
            v: {"texts": m.texts.tolist(), "steps": m.scale.steps(m.values).tolist(),
                "scale": _finite([m.scale.low, m.scale.high]), "chance": _finite(m.chance)}
            for v, m in matrices.items()
        },
        # Models, layers of the best cell, whether above chance, and the numbers.
        "pairs": [
            [*(place(row[m]) for m in MODELS), *(row[f"layer_{s}"] if row[f"index_{s}"] >= 0 else None for s in "xy"), is_above,
             *_finite(row[c] for c in shown["pairColumns"])]
            for row, is_above in zip(rows, pairs.found.tolist(), strict=True)
        ],
        "maps": maps,
        "common": _scales(numbers, drawn, pairs.alpha, shown["cellViews"]),
    }  # fmt: skip
    return summary, {"fields": fields, "exact": exact, "blocks": blocks}


def _scales(
    numbers: Mapping[str, np.ndarray], drawn: Mapping[str, int], alpha: float, views: Sequence[str]
) -> list[list[float | None]]:  # fmt: skip
    """Low and high end of the colours of some views of some cells, whose numbers these are; `drawn` has the draws behind each."""
    level = numbers["null_mean"]
    if not len(level):
        return [[None, None] for _ in views]
    return [_finite([s.low, s.high]) for s in (scale_of(v, numbers[v], level, drawn[v], alpha) for v in views)]


def _finite(values: Iterable[Any]) -> list[float | None]:
    """Numbers for JSON, exact, so that the page rounds them as everything else does; None where undefined."""
    return [None if v is None or not math.isfinite(v) else float(v) for v in values]


def coded(column: str, values: np.ndarray, draws: int, exact: bool) -> tuple[dict[str, Any], np.ndarray]:
    """How a quantity is written, for the page, and its values so: as they are, or in steps from `low`, of logarithms if `log`.

    The finest steps for these values: whole ranks for p-values from draws, powers of ten for closed forms.
    """
    low, step, log, defined = 0.0, 1.0, False, values[np.isfinite(values)]
    if column in FLOORED:
        log = not 0 < draws < STEPS
        step = -LOG_RANGE / STEPS if log else 1 / (draws + 1)
    elif defined.size:
        low = float(defined.min())
        step = (float(defined.max()) - low) / STEPS or 1.0
    scaled = np.log10(np.maximum(values, 10.0**-LOG_RANGE)) if log else values
    return {"name": column, "low": low, "step": step, "log": log}, values if exact else np.rint((scaled - low) / step)
