"""A result as a notebook shows it: the matrix and the best pairs, no script, on any background."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from repalign import text as words
from repalign.comparison.alignment import is_mock
from repalign.figures import palette
from repalign.figures.conventions import Reading
from repalign.figures.frames import matrix_frame
from repalign.figures.quantities import VIEWS, adjustment, draws_of, measures_of, rows_of, text_of
from repalign.report.html import Html, el

CELL = "padding:3px 8px;text-align:right;white-space:nowrap"
LEFT = "padding:3px 8px;text-align:left;white-space:nowrap"
TABLE = "border-collapse:collapse;margin:4px 0;font-size:13px;font-variant-numeric:tabular-nums"
QUIET = "opacity:.7;font-size:12px"
MAX_SIDE, MAX_ROWS = 30, 5


def notebook_html(table: pd.DataFrame, run: Mapping[str, Any]) -> str:
    """Matrix of every measure (up to 30 models a side) and its best pairs, as HTML without script."""
    if table.empty or not (table["scope"] == "max").to_numpy().any():
        return el("div", "an alignment without pairs of models")
    reading = Reading.of(run)
    pairs = table.loc[table["scope"] == "max"]
    parts = [part for measure in measures_of(pairs) for part in _measure(pairs, measure, reading)]
    if is_mock(table):
        parts.insert(0, el("div", el("b", words.MOCK), style="color:#d1495b"))
    return el("div", *parts, style="font-family:system-ui,sans-serif;font-size:13px;line-height:1.4")


def _measure(pairs: pd.DataFrame, measure: str, reading: Reading) -> list[Html]:
    frame = matrix_frame(pairs, measure, "statistic", reading)
    parts = [
        el("div", el("b", words.measure_label(measure)), f" · {frame.subtitle}", style="margin:10px 0 4px"),
    ]
    if max(frame.values.shape) <= MAX_SIDE and frame.values.size > 1:
        parts.append(_matrix(frame))
        low, high = (words.number(v) for v in frame.chance)
        level = low if low == high else f"{low} to {high}"
        parts.append(el("div", f"{frame.note}. Chance level {level}.", style=QUIET))
    parts.append(_best(rows_of(pairs, "max", measure), reading))
    return parts


def _matrix(frame: Any) -> Html:
    steps, inks = frame.scale.steps(frame.values), frame.inks(undefined="#6b7078")
    head = el("tr", el("th"), *(el("th", c, style=CELL) for c in frame.columns))
    rows = []
    for i, name in enumerate(frame.rows):
        cells = []
        for j in range(len(frame.columns)):
            back = palette.LIGHT[steps[i, j]] if steps[i, j] >= 0 else "transparent"
            cells.append(el("td", frame.labels[i, j], style=f"{CELL};background:{back};color:{inks[i, j]}"))
        rows.append(el("tr", el("th", name, style=LEFT), *cells))
    return el("table", el("thead", head), el("tbody", *rows), style=TABLE)


def _best(pairs: pd.DataFrame, reading: Reading) -> Html:
    order = pairs.sort_values(["calibrated", "z"], ascending=False, kind="stable", na_position="last")
    draws, rule = draws_of(pairs), adjustment(pairs, reading.alpha)
    heads = ("pair", "layers", "score", "chance", "calibrated", "p", VIEWS[rule].label)
    head = el("tr", *(el("th", h, style=LEFT if k < 2 else CELL) for k, h in enumerate(heads)))
    rows = []
    for row in order.head(MAX_ROWS).to_dict("records"):
        layers = f"{row['layer_x']} {words.TIMES} {row['layer_y']}" if row["index_x"] >= 0 else words.UNDEFINED
        numbers = [words.interval(row["statistic"], row.get("low"), row.get("high"))]
        numbers += [text_of(c, row[c], draws) for c in ("null_mean", "calibrated", "pvalue", rule)]
        names = [f"{row['model_x']} {words.TIMES} {row['model_y']}", layers]
        rows.append(el("tr", *(el("td", t, style=LEFT) for t in names), *(el("td", t, style=CELL) for t in numbers)))
    more = len(pairs) - MAX_ROWS
    note = el("div", f"and {more} more pairs: .best()", style=QUIET) if more > 0 else None
    body = el("table", el("thead", head), el("tbody", *rows), style=TABLE)
    return el("div", body, note, style="overflow-x:auto;margin-bottom:14px")
