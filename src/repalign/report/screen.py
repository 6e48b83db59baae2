"""The first screen: question, answer, sizes, one picture, what to read with care, and four ways on; and the words it explains."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from repalign import text as words
from repalign.comparison.conventions import Conventions
from repalign.figures import canvas
from repalign.relate import PARAMETERS, SideVerdict, Verdict, story

# In units of the drawing: one is a pixel at full width. A phone has a drawing of its own, for scaled text cannot be read.
SIZES = {"wide": (440, 344), "alone": (820, 360), "narrow": (356, 316)}
LEFT, RIGHT, TOP, BOTTOM, SLOT, MARK = 42, 8, 50, 44, 54, 5
CHARACTER, LINE = 6.5, 13  # mean width of a character at 11 px, and the height of a line
GRID, BESIDE = 40, 0.06  # places of the line's interval; room beside the points, in ranges of the points
MOST_NAMES = 80  # models that have their names beside them; of more, half as many
REACH = 8  # how many times farther than beside its mark a name may stand


def screen(found: Verdict, others: Sequence[Verdict], cells: pd.DataFrame, run: Mapping[str, Any]) -> dict[str, Any]:
    """All that stands on the first screen under one measure."""
    drawing = panels(found)
    sizes = ("wide" if len(drawing) > 1 else "alone", "narrow")
    drawn = [{size: panel.drawing(size) for size in sizes} for panel in drawing]
    return {
        "question": story.question(found), "headline": story.headline(found), "sizes": story.sizes(found),
        "care": story.care(found), "panels": drawn,
        "kinds": sorted({kind for panel in drawing for kind in panel.side.points["training"]}),
        "some_named": any(len(panel.u) > MOST_NAMES for panel in drawing),
        "has_line": any(one["line"] for panel in drawn for one in panel.values()),
        "has_chance": any(any(one["bands"]) for panel in drawn for one in panel.values()),
        "ways": [way | {"text": ""} if found.is_mock else way for way in _ways(found, others, cells, run)],
    }  # fmt: skip


Way = dict[str, str]  # title, text, link, where it leads `to`, and the `measure` that it chooses


def _ways(found: Verdict, others: Sequence[Verdict], cells: pd.DataFrame, run: Mapping[str, Any]) -> Iterator[Way]:
    """Where to go on from the answer, each with an answer of its own."""
    pairs, n = found.pairs, len(found.pairs.rows)
    if n > 1 and pairs.best is not None:
        text = story.best(found).replace(" agree most:", ":")
        text += next((f" Two trainings of one model reach {words.number(c.statistic)}." for c in pairs.seeds), "")
        yield {"title": "Which pair agrees most?", "text": text, "to": "#models", "link": f"All {words.counted(n, 'pair')}"}
    if text := best_layers(found, cells):
        yield {"title": "Which layers?", "text": text, "to": "#layers", "link": "Layer maps"}
    if others:
        label, measure = others[0].pairs.about.label, others[0].measure
        text = f"{label}: {story.brief(others[0])}." if len(others) == 1 else f"{story.capital(story.another(found, others))}."
        text = story.best(others[0]) if n == len(others) == 1 else text
        yield {"title": "Does another measure agree?", "text": text, "to": "#answer", "link": f"Show {label}", "measure": measure}
    how = f"{pairs.draws:,} shuffles a pair" if pairs.draws else "Chance by formula"
    how += ", the search for the best layers included." if run.get("search") and pairs.draws else "."
    restricted = Conventions.of(run).restricted
    how += f" {story.capital(restricted)}." if restricted else ""
    how += " Intervals leave out models or families, never pairs." if any(side.says for side in found.sides) else ""
    yield {"title": "How sure is this?", "text": how, "to": "#method", "link": "Method and data"}


def best_layers(found: Verdict, cells: pd.DataFrame) -> str:
    """How often the best layer is the last one, of models that have several; of one pair, which layers are best."""
    rows = found.pairs.rows.loc[found.pairs.rows["index_x"] >= 0]
    needed, told = [f"{of}_{side}" for of in ("model", "index") for side in "xy"], []
    cells = cells.loc[cells["measure"] == found.measure, needed]
    if len(found.pairs.rows) == 1 and len(rows) and len(cells) > 1:
        best = rows.iloc[0]
        return f"{best['layer_x']} and {best['layer_y']}, the best of {words.counted(len(cells), 'pair')} of layers."
    each = []
    for side in "xy":
        last = rows[f"model_{side}"].map(cells.groupby(f"model_{side}")[f"index_{side}"].max()).to_numpy(float)
        at_last = (last > 0) & (rows[f"index_{side}"].to_numpy() == last)
        each.append((side, int(at_last.sum()), int((last > 0).sum()), set(rows.loc[at_last, f"layer_{side}"])))
    if [side.side for side in found.sides] == ["both"]:
        each = [("both", sum(e[1] for e in each), sum(e[2] for e in each), each[0][3] | each[1][3])]
    for side, n, of, names in each:
        if of:
            kind = next((f"{s.kind} " for s in found.sides if s.side == side and s.kind), "")
            whose = "" if kind or side == "both" else f" of side {side}"
            named = f" ({next(iter(names))})" if len(names) == 1 else ""
            told.append(f"the last {kind}layer{whose}{named} is best in {n:,} of {words.counted(of, 'pair')}")
    return f"{story.capital('; '.join(told))}." if told else ""


# --- the picture ---------------------------------------------------------------------------------

# Alignment against competence, a panel for each side, all on one axis of scores. Right and up are better. Models whose competence
# is far off or unknown stand in slots of their own, or all others would share one spot. Chance follows each model: one level for
# all would swallow points that are above theirs. `picture.html` draws it.


@dataclass(frozen=True, eq=False)
class Panel:
    """One side's models in oriented units: `u`, larger is better, nan without a place on the axis; `v`, larger is closer."""

    side: SideVerdict
    label: str  # of the measure
    names: dict[str, str]
    u: np.ndarray
    v: np.ndarray
    threshold: np.ndarray
    slots: list[tuple[str, np.ndarray]]  # what is written below, and which models stand there
    range_v: tuple[float, float]

    def drawing(self, size: str) -> dict[str, Any]:
        """Everything in the drawing's own units, y downwards."""
        (width, height), side, trend = SIZES[size], self.side, self.side.trend
        assert trend is not None
        start, end, floor = LEFT + SLOT * len(self.slots), width - RIGHT, height - BOTTOM
        there = np.isfinite(self.u)
        low, high = self.u[there].min(), self.u[there].max()
        margin = BESIDE * (high - low) or 1.0
        low, high = low - 2 * margin, high + margin

        def across(u: Any) -> Any:
            return start + (np.asarray(u, float) - low) / (high - low) * (end - start)

        def down(v: Any) -> Any:
            bottom, top = self.range_v
            return floor - (np.asarray(v, float) - bottom) / (top - bottom) * (floor - TOP)

        x, y = across(self.u), np.clip(down(self.v), TOP, floor)
        areas = [(start, end, np.flatnonzero(there))]
        for k, (_, which) in enumerate(self.slots):
            areas.append((LEFT + SLOT * k, LEFT + SLOT * (k + 1), which))
            x[which] = LEFT + SLOT * (k + (np.arange(len(which)) + 0.5) / len(which))
        sign = -1 if trend.lower_is_better else 1
        ticks = [(float(across(sign * (math.log10(t) if trend.log else t))), text) for t, text in self._ticks(low, high, sign)]
        marks = canvas.ticks(*sorted(side.turn * v for v in self.range_v), 7)
        made = {
            "width": width, "height": height, "left": LEFT, "top": TOP, "start": start, "end": end, "floor": floor,
            "title": story.capital(story.models([side])), "stat": f"rank correlation {story.ranked(side)}",
            "x_label": f"{trend.label} ({side.better} to the right)", "y_label": f"↑ {self.label}",
            "y_ticks": [(float(down(side.turn * t)), text) for t, text in marks],
            "x_ticks": [*ticks, *((LEFT + SLOT * (k + 0.5), text) for k, (text, _) in enumerate(self.slots))],
            "bands": [self._band(x, down, *area) for area in areas], "line": [], "interval": [],
        }  # fmt: skip
        if side.has_line and trend.fit:
            grid = np.linspace(self.u[there].min(), self.u[there].max(), GRID)
            ends = trend.inference.band(sign * grid) if trend.inference else ()
            edge = [list(zip(across(grid), np.clip(down(side.turn * v), TOP, floor), strict=True)) for v in ends]
            made |= {"line": [(float(across(u)), float(down(side.turn * trend.fit.predict(sign * u)))) for u in grid[[0, -1]]]}
            made |= {"interval": [*edge[0], *edge[1][::-1]] if np.isfinite(ends).all() else []}
        return made | self._named(x, y, width, floor)

    def _ticks(self, low: float, high: float, sign: int) -> Iterator[tuple[float, str]]:
        trend = self.side.trend
        assert trend is not None
        ends = sorted((sign * low, sign * high))
        found = canvas.ticks(*(10**v if trend.log else v for v in ends), 4, log=trend.log)
        for value, text in found:
            yield value, words.parameters(value).replace(".00", "").replace(".0", "") if trend.against == PARAMETERS else text

    def _band(self, x: np.ndarray, down: Any, left: float, right: float, which: np.ndarray) -> list[tuple[float, float]]:
        """The outline of chance over some models: up to the threshold of each at its place."""
        known = sorted((x[i], float(down(self.threshold[i]))) for i in which if np.isfinite(self.threshold[i]))
        if not known:
            return []
        floor = float(down(self.range_v[0]))
        return [(left, floor), (left, known[0][1]), *known, (right, known[-1][1]), (right, floor)]

    def _named(self, x: np.ndarray, y: np.ndarray, width: float, floor: float) -> dict[str, Any]:
        """Marks with their names; a name without room is a number, explained in `key`."""
        points = self.side.points
        at, names = np.column_stack([x, -y]), [self.names[name] for name in points["model"]]
        area, corner = (LEFT, -floor, width, 4 - TOP), (LEFT, -TOP - LINE, LEFT + CHARACTER * (len(self.label) + 3), 4 - TOP)

        def spots(texts: Sequence[str], which: np.ndarray, taken: Sequence[Sequence[float]]) -> list[Any]:
            sizes = np.array([[CHARACTER * len(text), LINE] for text in texts])
            others = np.delete(at, which, axis=0)
            marks = np.column_stack([others - MARK, others + MARK])
            found = canvas.place_labels(at[which], sizes, MARK + 1, area, reach=REACH, taken=[*taken, *marks], apart=True)
            return [None if spot is None else (*spot, *(np.array(spot) + size)) for spot, size in zip(found, sizes, strict=True)]

        named = np.arange(len(names))
        if len(names) > MOST_NAMES:  # the highest and the lowest; the others tell theirs where the pointer is
            order = np.argsort(y, kind="stable")
            named = np.sort(np.concatenate([order[: MOST_NAMES // 4], order[-MOST_NAMES // 4 :]]))
        boxes: list[Any] = [None] * len(names)
        for i, box in zip(named, spots([names[i] for i in named], named, [corner]), strict=True):
            boxes[i] = box
        lost = np.array([i for i in named if boxes[i] is None], int)
        for number, i in enumerate(lost, 1):
            names[i] = str(number)
        if len(lost):
            there = [corner, *(box for box in boxes if box is not None)]
            for i, box in zip(lost, spots([names[i] for i in lost], lost, there), strict=True):
                boxes[i] = box
        rows = zip(points.to_dict("records"), x, y, names, boxes, strict=True)
        return {
            "marks": [self._mark(row, float(a), float(b), name, box) for row, a, b, name, box in rows],
            "key": [(names[i], self.names[points["model"].iloc[i]]) for i in lost],
        }

    def _mark(self, row: dict[str, Any], x: float, y: float, name: str, box: Any) -> dict[str, Any]:
        score, low, high, chance = words.alike(row["alignment"], row["low"], row["high"], row["chance"])
        over = words.counted(row["n_partners"], "partner")
        about = f"{row['model']}: {score} (from {low} to {high} over {over}; chance {chance})"
        spot, lead = None, None
        if box is not None:
            left, bottom, right, top = box
            near = min(max(x, left), right), min(max(y, -top), -bottom)
            lead = near if math.dist(near, (x, y)) > canvas.LEADER * MARK else None
            spot = (left, "start") if left > x else (right, "end") if right < x else ((left + right) / 2, "middle")
            spot = (spot[0], -bottom - 3, spot[1])
        return {"x": x, "y": y, "kind": row["training"], "about": about, "name": name, "spot": spot, "lead": lead}


def panels(found: Verdict) -> list[Panel]:
    """A panel for each side whose models have a competence or a size."""
    sides = [side for side in found.sides if side.trend and np.isfinite(side.points["x"]).any()]
    if not sides:
        return []
    turn = sides[0].turn
    shown = np.concatenate([turn * side.points[["alignment", "threshold", "chance"]].to_numpy(float) for side in sides])
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown[:, 0]))
    wide = (high - low) or 1.0
    range_v = (0.0 if -0.02 * wide < low < 0.5 * high else low - BESIDE * wide, high + 1.5 * BESIDE * wide)
    out = []
    for side in sides:
        points, trend = side.points, side.trend
        assert trend is not None
        u = points["x"].to_numpy(float)
        u = (-1 if trend.lower_is_better else 1) * (np.log10(u) if trend.log else u)
        names, slots = points["model"].tolist(), []
        if len(far := _far(u)):
            ends = dict.fromkeys(words.number(v) for v in np.sort(points["x"].to_numpy(float)[far])[[0, -1]])
            slots.append(("–".join(ends), far))
        if len(unknown := np.flatnonzero(np.isnan(u))):
            slots.append(("unknown", unknown))
        u[far] = np.nan
        short = dict(zip(names, words.without_common_start(names), strict=True))
        scores = (side.turn * points[c].to_numpy(float) for c in ("alignment", "threshold"))
        out.append(Panel(side, found.pairs.about.label, short, u, *scores, slots, range_v))
    return out


def _far(u: np.ndarray) -> np.ndarray:
    """The models, a third at most, that lie below all others by more than the range of these."""
    order = np.argsort(u)[: np.isfinite(u).sum()]
    there = u[order]
    gaps = [k for k in range(1, len(there) // 3 + 1) if there[k] - there[k - 1] > there[-1] - there[k]]
    return order[: max(gaps, default=0)]


# --- words that are explained --------------------------------------------------------------------


@cache
def glossary() -> tuple[dict[str, str], ...]:
    """Every word of `glossary.csv` that a report may use: the term, its other forms, its meaning, and where it stands on a page.

    Words "of" the pages of the documentation alone are left out.
    """
    rows = csv.DictReader(resources.files("repalign.report").joinpath("glossary.csv").read_text("utf-8").splitlines())
    return tuple({**row, "slug": re.sub(r"\W+", "-", row["term"].lower()).strip("-")} for row in rows if not row["of"])


@cache
def _forms() -> tuple[re.Pattern[str], dict[str, dict[str, str]]]:
    """What finds the words in a text, terms and their other forms, and the row of each in small letters."""
    rows = {form: row for row in glossary() for form in (row["term"], *filter(None, row["forms"].split("|")))}
    each = sorted((str(escape(form)) for form in rows), key=len, reverse=True)
    # Abbreviations keep their capitals: "by" is not BY.
    every = "|".join(re.escape(form) if form.isupper() else f"(?i:{re.escape(form)})" for form in each)
    return re.compile(rf"(?<![\w-])(?:{every})(?![\w-])"), {form.lower(): row for form, row in rows.items()}


def explainer() -> Any:
    """A function that marks the words of a text that the glossary has, each where it first stands."""
    pattern, forms = _forms()
    seen: set[str] = set()

    def mark(match: re.Match[str]) -> str:
        row = forms[match[0].lower()]
        if row["term"] in seen:
            return match[0]
        seen.add(row["term"])
        return f'<a class="term" href="#term-{row["slug"]}" title="{escape(row["meaning"])}">{match[0]}</a>'

    # A p stays with its number.
    return lambda text: Markup(pattern.sub(mark, re.sub(r"\bp (=|≤|&lt;) ", "p\u00a0\\1\u00a0", str(escape(text)))))
