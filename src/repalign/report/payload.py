"""The data that the page's script draws from: pairs of models, and layer maps packed small.

Up to `EXACT_CELLS` cells are embedded as float64 and stand in the page's table; more of them are 16-bit
steps of each quantity's range (half a step is under 1e-5 of it). p-values from draws are whole ranks, so exact;
those of a closed form are steps of their logarithm (4e-4 of the value).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repalign import text as words
from repalign.figures.conventions import (
    ADJUSTED,
    FLOORED,
    P_VIEWS,
    SEEDS,
    VIEWS,
    VIEWS_OF,
    Conventions,
    adjustment,
    best_pair,
    draws_of,
    found,
    scale_of,
    values_of,
)
from repalign.figures.layer_map_chart import Layers, marks_note, median_threshold
from repalign.figures.matrix_chart import Matrix

EXACT_CELLS = 20_000
MOST_CELLS = 400_000  # beyond this only the best aligned pairs have their layer maps in the page
PAIR_COLUMNS = ("statistic", "null_mean", "null_std", "z", "pvalue", "threshold", "calibrated", *ADJUSTED)
MODELS = ("model_x", "model_y")
INTERVAL = ("low", "high")  # of the score, where the result has it
CELL_COLUMNS = ("statistic", "null_mean", "null_std", "pvalue", "p_stepdown", "threshold", "calibrated")
PACKED_COLUMNS = tuple(c for c in CELL_COLUMNS if c != "null_std")
STEPS, UNDEFINED = 65_534, 65_535
LOG_RANGE = 20  # a closed-form p below 1e-20 is written as 1e-20: no page tells them apart


def data(table: pd.DataFrame, run: Mapping[str, Any], conventions: Conventions) -> dict[str, Any]:
    """By the name of its script: what is read at once, and the cells of each measure, read when looked at."""
    names = list(dict.fromkeys([*table["model_x"], *table["model_y"]]))
    count = int((table["scope"] == "cell").to_numpy().sum())
    # Adjustments and intervals that are undefined everywhere, as in the results of older versions, are left out.
    there = {c for c in (*ADJUSTED, "p_stepdown", *INTERVAL) if c in table and table[c].notna().to_numpy().any()}
    absent = {*ADJUSTED, "p_stepdown"} - there
    shown = {
        "exact": count <= EXACT_CELLS,
        "pairColumns": [*PAIR_COLUMNS, *(c for c in INTERVAL if c in there)],
        "pairViews": [v for v in VIEWS_OF["max"] if v not in absent],
        "cellViews": [v for v in VIEWS_OF["cell"] if v not in absent],
    }
    columns = [c for c in (CELL_COLUMNS if shown["exact"] else PACKED_COLUMNS) if c not in absent]
    layers: dict[str, list[str]] = {}
    measures = list(dict.fromkeys(table["measure"]))
    packs = [_Pack(table, m, names, columns, shown, conventions, MOST_CELLS // len(measures)).of(layers) for m in measures]
    page = {
        "alpha": conventions.alpha,
        "n": max(table["n"].tolist()),
        "dataset": str(table["dataset"].iloc[0]),
        "name": run.get("name") or "repalign",
        "models": names,
        "layers": [layers.get(name, []) for name in names],
        "views": [{"key": v.key, "label": v.label, "meaning": v.meaning} for v in VIEWS.values()],
        "pViews": P_VIEWS,
        "floored": FLOORED,
        "adjusted": ADJUSTED,
        "cellCount": count,
        "measures": [summary for summary, _ in packs],
        **shown,
    }
    return {"data": page} | {f"cells-{i}": cells for i, (_, cells) in enumerate(packs)}


@dataclass(frozen=True, eq=False)
class _Pack:
    """One measure of a table, to be packed for the page, with the layer maps of at most `most` cells."""

    table: pd.DataFrame
    measure: str
    names: list[str]
    columns: list[str]
    shown: Mapping[str, Any]
    conventions: Conventions
    most: int

    def of(self, layers: dict[str, list[str]]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is read at once, and the cells; the layers of the models are added to `layers`."""
        own, alpha = self.table.loc[self.table["measure"] == self.measure], self.conventions.alpha
        pairs, cells = (own.loc[own["scope"] == scope].reset_index(drop=True) for scope in ("max", "cell"))
        draws, cell_draws, exact = draws_of(pairs), draws_of(cells), self.shown["exact"]
        drawn = dict.fromkeys(VIEWS, cell_draws) | {"p_stepdown": draws}
        codes = {c: Code.of(c, cells[c].to_numpy(float), drawn.get(c, 0), exact) for c in self.columns}
        groups = dict(iter(cells.groupby(["model_x", "model_y"], sort=False)))
        rows, best, place = pairs.to_dict("records"), best_pair(pairs), self.names.index
        kept, left = set(), self.most  # the best aligned pairs first
        for k in pairs.sort_values(by=["calibrated", "z"], ascending=False, kind="stable").index:
            size = len(groups.get((rows[k]["model_x"], rows[k]["model_y"]), ()))
            left -= size
            if size and left >= 0:
                kept.add(k)
        blocks, maps = [], []
        for k, row in enumerate(rows):
            of_pair = groups[row["model_x"], row["model_y"]] if k in kept else cells.iloc[:0]
            laid = Layers.of(of_pair, self.columns)
            if k in kept:
                layers[row["model_x"]], layers[row["model_y"]] = laid.layers_x, laid.layers_y
            blocks.append(base64.b64encode(b"".join(codes[c].encode(laid.arrays[c]) for c in self.columns)).decode())
            maps.append({
                "shape": [len(laid.layers_x), len(laid.layers_y)],
                "best": laid.place(row),
                "scales": self._scales(of_pair, drawn),
                "threshold": _finite([median_threshold(of_pair["threshold"].to_numpy(float))])[0],
                "note": marks_note(of_pair["p_stepdown"].to_numpy(float), alpha),
            })  # fmt: skip
        matrices = {v: Matrix.of(pairs, self.measure, v, self.conventions) for v in self.shown["pairViews"]}
        grid = next(iter(matrices.values()))
        above, n = found(pairs, alpha).tolist(), int(pairs["n"].iloc[0])
        seeds = self.conventions.ceilings_of(self.measure, SEEDS)
        summary = {
            "repr": self.measure,
            "label": self.conventions.about(self.measure).label,
            "draws": draws,
            "cellDraws": cell_draws,
            "best": next((k for k, row in enumerate(rows) if best and all(row[m] == best[m] for m in MODELS)), 0),
            "rule": adjustment(pairs, alpha),
            "note": grid.note,
            "ceilings": [f"{words.number(c.statistic)} ({c.source(n)})" for c in seeds],
            "grid": {"rows": [place(r) for r in grid.rows], "columns": [place(c) for c in grid.columns],
                     "index": grid.index.tolist(), "mirrored": grid.mirrored.tolist()},
            "matrix": {
                v: {"texts": m.texts.tolist(), "steps": m.scale.steps(m.values).tolist(),
                    "scale": _finite([m.scale.low, m.scale.high]), "chance": _finite(m.chance)}
                for v, m in matrices.items()
            },
            # Models, layers of the best cell, whether above chance, and the numbers.
            "pairs": [
                [*(place(row[m]) for m in MODELS), *(row[f"layer_{s}"] if row[f"index_{s}"] >= 0 else None for s in "xy"), is_above,
                 *_finite(row[c] for c in self.shown["pairColumns"])]
                for row, is_above in zip(rows, above, strict=True)
            ],
            "maps": maps,
            "common": self._scales(cells, drawn),
        }  # fmt: skip
        fields = [{"name": c, "low": codes[c].low, "step": codes[c].step, "log": codes[c].log} for c in self.columns]
        return summary, {"fields": fields, "exact": exact, "blocks": blocks}

    def _scales(self, cells: pd.DataFrame, drawn: Mapping[str, int]) -> list[list[float | None]]:
        """Low and high end of the colours of every view of some cells; `drawn` has the number of draws behind each."""
        if cells.empty:
            return [[None, None] for _ in self.shown["cellViews"]]
        level, alpha = cells["null_mean"].to_numpy(float), self.conventions.alpha
        scales = (scale_of(v, values_of(cells, v), level, drawn[v], alpha) for v in self.shown["cellViews"])
        return [_finite([s.low, s.high]) for s in scales]


def _finite(values: Iterable[Any]) -> list[float | None]:
    """Numbers for JSON, exact, so that the page rounds them as everything else does; None where undefined."""
    return [None if v is None or not math.isfinite(v) else float(v) for v in values]


@dataclass(frozen=True)
class Code:
    """How one quantity is written: float64, or 16-bit steps from `low`, of its logarithm if `log`."""

    low: float
    step: float
    exact: bool
    log: bool = False

    @classmethod
    def of(cls, column: str, values: np.ndarray, draws: int, exact: bool) -> Code:
        """The finest code for these values: whole ranks for p-values from draws, powers of ten for closed forms."""
        if column in FLOORED:
            by_rank = 0 < draws < STEPS
            return cls(0.0, 1 / (draws + 1), exact) if by_rank else cls(0.0, -LOG_RANGE / STEPS, exact, log=True)
        defined = values[np.isfinite(values)]
        if not defined.size:
            return cls(0.0, 1.0, exact)
        low, high = float(defined.min()), float(defined.max())
        return cls(low, (high - low) / STEPS or 1.0, exact)

    def encode(self, values: np.ndarray) -> bytes:
        """Little-endian bytes, row by row."""
        if self.exact:
            return values.astype("<f8").tobytes()
        scaled = np.log10(np.maximum(values, 10.0**-LOG_RANGE)) if self.log else values
        steps = np.rint((scaled - self.low) / self.step)
        return np.where(np.isfinite(steps), steps, UNDEFINED).astype("<u2").tobytes()
