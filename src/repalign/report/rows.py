"""Observed scores against chance, one row per pair, as a list that fits any width."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from repalign import text as words
from repalign.figures.frames import NullFrame
from repalign.report.html import Html, el
from repalign.report.svg import tick_texts, ticks

MANY = 40  # more rows than this scroll in a box of their own, on a screen
MOST = 250  # rows beyond this are in the table only


def null_rows(frame: NullFrame) -> Html:
    """Name, then a track with the score, and the mean, standard deviation and threshold of chance."""
    low, high = _range(frame)

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    marks = ticks(low, high, 6)
    lines = [
        f"repeating-linear-gradient(var(--ink) 0 4px,#0000 4px 7px) {at(v)} 0/1.5px 100% no-repeat"
        for v, _ in frame.ceilings
    ]
    lines += (f"linear-gradient(90deg,#0000 {at(t)},var(--rule) 0 calc({at(t)} + 1px),#0000 0)" for t in marks)
    named = [el("span", text, style=f"left:{at(t)}") for t, text in zip(marks, tick_texts(marks), strict=True)]
    axis = el("div", el("span", "", class_="name"), el("div", *named, class_="track axis"), class_="row")
    rows = [_row(frame, k, at) for k in range(min(MOST, len(frame.observed)))]
    many = " tall" if len(rows) > MANY else ""
    return el("div", axis, *rows, class_=f"against{many}", role="list", style=f"--grid:{','.join(lines)}")


def _range(frame: NullFrame) -> tuple[float, float]:
    ends = [
        frame.observed,
        frame.null_mean - frame.null_std,
        frame.null_mean + frame.null_std,
        frame.threshold,
        [value for value, _ in frame.ceilings],
    ]
    values = np.concatenate(ends)
    low, high = float(values.min()), float(values.max())
    margin = (high - low) or abs(low) or 1.0
    return low - 0.02 * margin, high + 0.12 * margin  # room for the number beside the last dot


def _row(frame: NullFrame, k: int, at: Callable[[float], str]) -> Html:
    score, mean, sd, threshold = (
        float(v[k]) for v in (frame.observed, frame.null_mean, frame.null_std, frame.threshold)
    )
    chance = f"chance {words.number(mean)} ± {words.number(sd)}, threshold {words.number(threshold)}"
    about = f"{frame.labels[k]}: {words.number(score)}; {chance}"
    x, y = frame.pairs[k]
    end = max(score, threshold, mean + sd)
    return el(
        "div",
        el("span", x, f" {words.TIMES} ", y, class_="name"),
        el(
            "div",
            el("i", class_="spread", style=f"left:{at(mean - sd)};right:calc(100% - {at(mean + sd)})"),
            el("i", class_="mean", style=f"left:{at(mean)}"),
            el("i", class_="reach", style=f"left:{at(min(threshold, score))};right:calc(100% - {at(score)})"),
            el("i", class_="threshold", style=f"left:{at(threshold)}"),
            el("i", class_="score" if frame.found[k] else "score hollow", style=f"left:{at(score)}"),
            el("span", words.number(score), style=f"left:{at(end)}"),
            class_="track",
        ),
        class_="row",
        role="listitem",
        title=about,
        aria_label=about,
    )
