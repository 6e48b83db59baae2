"""The data that the page's script draws from: pairs of models, and layer maps packed small.

Up to `EXACT_CELLS` cells are embedded as float64 and stand in the page's table; more of them are 16-bit
steps of each quantity's range (half a step is under 1e-5 of it). p-values from draws are whole ranks, so exact;
those of a closed form are steps of their logarithm (4e-4 of the value).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repalign import text as words
from repalign.figures.conventions import Reading
from repalign.figures.frames import grid_of, matrix_frame
from repalign.figures.layers import Cells, marks_note, median_threshold
from repalign.figures.quantities import (
    ADJUSTED,
    FLOORED,
    P_VIEWS,
    VIEWS,
    adjustment,
    best_pair,
    draws_of,
    found,
    found_note,
    measures_of,
    rows_of,
    scale_of,
    values_of,
    views_of,
)  # fmt: skip
from repalign.report.html import Html, data_script

EXACT_CELLS = 20_000
MOST_CELLS = 400_000  # beyond this only the best aligned pairs have their layer maps in the page
PAIR_COLUMNS = (
    "statistic", "null_mean", "null_std", "z", "pvalue", "threshold", "calibrated", *ADJUSTED,
)  # fmt: skip
INTERVAL = ("low", "high")  # of the score, where the result has it
CELL_COLUMNS = ("statistic", "null_mean", "null_std", "pvalue", "p_stepdown", "threshold", "calibrated")
PACKED_COLUMNS = tuple(c for c in CELL_COLUMNS if c != "null_std")
STEPS, UNDEFINED = 65_534, 65_535
LOG_RANGE = 20  # a closed-form p below 1e-20 is written as 1e-20: no page tells them apart


def finite(value: Any) -> Any:
    """A number for JSON, exact, so that the page rounds it as everything else does; None where undefined."""
    return None if value is None or not math.isfinite(value) else float(value)


def scripts(table: pd.DataFrame, run: Mapping[str, Any], reading: Reading) -> list[Html]:
    """The page's data, and the cells of each measure in a script of their own, read when looked at."""
    models = list(dict.fromkeys([*table["model_x"], *table["model_y"]]))
    count = int((table["scope"] == "cell").to_numpy().sum())
    shown = Shown.of(table, count <= EXACT_CELLS)
    packs = [Pack.of(table, measure, models, shown, reading) for measure in measures_of(table)]
    layers: dict[str, list[str]] = {}
    for pack in packs:
        layers.update(pack.layers)
    views = [{"key": v.key, "label": v.label, "meaning": v.meaning} for v in VIEWS.values()]
    data = {
        "alpha": reading.alpha,
        "n": max(table["n"].tolist()),
        "dataset": str(table["dataset"].tolist()[0]),
        "name": run.get("name") or "repalign",
        "models": models,
        "layers": [layers.get(name, []) for name in models],
        "views": views,
        "pairViews": shown.pair_views,
        "cellViews": shown.cell_views,
        "pViews": list(P_VIEWS),
        "floored": list(FLOORED),
        "adjusted": list(ADJUSTED),
        "pairColumns": shown.pair_columns,
        "exact": shown.exact,
        "cellCount": count,
        "measures": [pack.summary for pack in packs],
    }
    return [data_script("data", data), *(data_script(f"cells-{i}", p.cells) for i, p in enumerate(packs))]


@dataclass(frozen=True)
class Shown:
    """What of the table is in the page: adjustments and intervals only where there are any."""

    exact: bool
    pair_columns: list[str]
    pair_views: list[str]
    cell_columns: list[str]
    cell_views: list[str]

    @classmethod
    def of(cls, table: pd.DataFrame, exact: bool) -> Shown:
        """Leave out what is undefined everywhere, as in the results of older versions."""
        there = {c for c in (*ADJUSTED, "p_stepdown", *INTERVAL) if c in table and table[c].notna().to_numpy().any()}
        optional = {*ADJUSTED, "p_stepdown"} - there
        return cls(
            exact=exact,
            pair_columns=[*PAIR_COLUMNS, *(c for c in INTERVAL if c in there)],
            pair_views=[v for v in views_of("max") if v not in optional],
            cell_columns=[c for c in (CELL_COLUMNS if exact else PACKED_COLUMNS) if c not in optional],
            cell_views=[v for v in views_of("cell") if v not in optional],
        )


@dataclass(frozen=True, eq=False)
class Pack:
    """One measure, ready for the page: what is read at once, its layer maps, the layers of its models."""

    summary: dict[str, Any]
    cells: dict[str, Any]
    layers: dict[str, list[str]]

    @classmethod
    def of(cls, table: pd.DataFrame, measure: str, models: list[str], shown: Shown, reading: Reading) -> Pack:
        """Gather everything of one measure."""
        pairs, cells = rows_of(table, "max", measure), rows_of(table, "cell", measure)
        draws, cell_draws = draws_of(pairs), draws_of(cells)
        at = {name: i for i, name in enumerate(models)}
        columns = shown.cell_columns
        drawn = dict.fromkeys(shown.cell_views, cell_draws) | {"p_stepdown": draws}
        codes = {c: Code.of(c, cells[c].to_numpy(float), drawn.get(c, 0), shown.exact) for c in columns}
        groups = {key: rows for key, rows in cells.groupby(["model_x", "model_y"], sort=False)}  # noqa: C416
        layers: dict[str, list[str]] = {}
        blocks, maps = [], []
        rows = pairs.to_dict("records")
        embedded = _embedded(pairs, groups, MOST_CELLS // len(measures_of(table)))
        for k, row in enumerate(rows):
            of_pair = groups[row["model_x"], row["model_y"]] if k in embedded else cells.iloc[:0]
            laid = Cells.of(of_pair, columns)
            if k in embedded:
                layers[row["model_x"]], layers[row["model_y"]] = laid.layers_x, laid.layers_y
            blocks.append(base64.b64encode(b"".join(codes[c].encode(laid.arrays[c]) for c in columns)).decode())
            maps.append(
                {
                    "shape": [len(laid.layers_x), len(laid.layers_y)],
                    "best": laid.place(row),
                    "scales": _scales(of_pair, shown, drawn, reading.alpha),
                    "threshold": finite(median_threshold(of_pair["threshold"].to_numpy(float))),
                    "note": marks_note(of_pair["p_stepdown"].to_numpy(float), reading.alpha),
                }
            )
        best = best_pair(pairs)
        summary = {
            "repr": measure,
            "label": words.measure_label(measure),
            "draws": draws,
            "cellDraws": cell_draws,
            "best": next((k for k, row in enumerate(rows) if best and _same(row, best)), 0),
            "rule": adjustment(pairs, reading.alpha),
            "note": found_note(pairs, reading),
            "ceilings": [c.text(int(pairs["n"].iloc[0])) for c in reading.seeds(measure)],
            "grid": _grid(pairs, at),
            "matrix": {view: _matrix(pairs, measure, view, reading) for view in shown.pair_views},
            "pairs": [
                _pair(row, at, above, shown) for row, above in zip(rows, found(pairs, reading.alpha), strict=True)
            ],
            "maps": maps,
            "common": _scales(cells, shown, drawn, reading.alpha),
        }
        packed = {
            "fields": [{"name": c, **codes[c].header()} for c in columns],
            "exact": shown.exact,
            "blocks": blocks,
        }
        return cls(summary, packed, layers)


def _embedded(pairs: pd.DataFrame, groups: Mapping[Any, pd.DataFrame], most: int) -> set[int]:
    """The pairs whose layer maps are in the page: those that have cells, the best aligned first, up to `most` cells."""
    order = pairs.sort_values(by=["calibrated", "z"], ascending=False, kind="stable").index.tolist()
    kept, total = set(), 0
    for k in order:
        group = groups.get((pairs["model_x"][k], pairs["model_y"][k]))
        total += 0 if group is None else len(group)
        if group is not None and total <= most:
            kept.add(k)
    return kept


def _same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return row["model_x"] == other["model_x"] and row["model_y"] == other["model_y"]


def _pair(row: Mapping[str, Any], at: Mapping[str, int], above: bool, shown: Shown) -> list[Any]:
    """Models, layers of the best cell, whether above chance, and the numbers of `shown.pair_columns`."""
    names = [row[f"layer_{side}"] if row[f"index_{side}"] >= 0 else None for side in "xy"]
    return [
        at[row["model_x"]],
        at[row["model_y"]],
        *names,
        bool(above),
        *(finite(row[c]) for c in shown.pair_columns),
    ]


def _grid(pairs: pd.DataFrame, at: Mapping[str, int]) -> dict[str, Any]:
    grid = grid_of(pairs)
    rows, columns = ([at[name] for name in names] for names in (grid.rows, grid.columns))
    return {
        "rows": rows,
        "columns": columns,
        "index": grid.index.tolist(),
        "mirrored": grid.mirrored.tolist(),
    }


def _matrix(pairs: pd.DataFrame, measure: str, view: str, reading: Reading) -> dict[str, Any]:
    frame = matrix_frame(pairs, measure, view, reading)
    return {
        "texts": frame.texts.tolist(),
        "steps": frame.scale.steps(frame.values).tolist(),
        "scale": [finite(frame.scale.low), finite(frame.scale.high)],
        "chance": [finite(level) for level in frame.chance],
    }


def _scales(cells: pd.DataFrame, shown: Shown, drawn: Mapping[str, int], alpha: float) -> list[list[float | None]]:
    """Low and high end of the colours of every view of some cells; `drawn` has the number of draws behind each."""
    if cells.empty:
        return [[None, None] for _ in shown.cell_views]
    chance = cells["null_mean"].to_numpy(float)
    scales = [scale_of(view, values_of(cells, view), chance, drawn[view], alpha) for view in shown.cell_views]
    return [[finite(s.low), finite(s.high)] for s in scales]


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

    def header(self) -> dict[str, Any]:
        """What a reader needs to decode it."""
        return {"low": self.low, "step": self.step, "log": self.log}

    def encode(self, values: np.ndarray) -> bytes:
        """Little-endian bytes, row by row."""
        if self.exact:
            return values.astype("<f8").tobytes()
        scaled = np.log10(np.maximum(values, 10.0**-LOG_RANGE)) if self.log else values
        steps = np.rint((scaled - self.low) / self.step)
        return np.where(np.isfinite(steps), steps, UNDEFINED).astype("<u2").tobytes()


def decode(block: str, fields: list[dict[str, Any]], shape: tuple[int, int], exact: bool) -> dict[str, np.ndarray]:
    """What a block holds, as the page's script reads it."""
    raw = np.frombuffer(base64.b64decode(block), "<f8" if exact else "<u2").reshape(len(fields), *shape)
    if exact:
        return {f["name"]: raw[k].astype(float) for k, f in enumerate(fields)}
    steps = np.where(raw == UNDEFINED, np.nan, raw.astype(float))
    values = {f["name"]: f["low"] + steps[k] * f["step"] for k, f in enumerate(fields)}
    return {f["name"]: 10 ** values[f["name"]] if f["log"] else values[f["name"]] for f in fields}
