"""The first screen: question, answer, sizes, one picture, what to read with care, and four ways on; and the words it explains."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from repalign import text as words
from repalign.comparison.conventions import Conventions
from repalign.relate import Verdict, story
from repalign.report import picture


def screen(found: Verdict, others: Sequence[Verdict], cells: pd.DataFrame, run: Mapping[str, Any]) -> dict[str, Any]:
    """All that stands on the first screen under one measure."""
    panels = picture.panels(found)
    sizes = ("wide" if len(panels) > 1 else "alone", "narrow")
    drawn = [{size: panel.drawing(size) for size in sizes} for panel in panels]
    return {
        "question": story.question(found), "headline": story.headline(found), "sizes": story.sizes(found),
        "care": story.care(found), "panels": drawn,
        "kinds": sorted({kind for panel in panels for kind in panel.side.points["training"]}),
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
    cells, told = cells.loc[cells["measure"] == found.measure], []
    if len(found.pairs.rows) == 1 and len(rows) and len(cells) > 1:
        best = rows.iloc[0]
        return f"{best['layer_x']} and {best['layer_y']}, the best of {words.counted(len(cells), 'pair')} of layers."
    each = []
    for side in "xy":
        last = cells.groupby(f"model_{side}")[f"index_{side}"].max()
        some = rows.loc[rows[f"model_{side}"].map(last).to_numpy(float) > 0]
        at_last = some[f"index_{side}"] == some[f"model_{side}"].map(last)
        each.append((side, int(at_last.sum()), len(some), set(some.loc[at_last, f"layer_{side}"])))
    if [side.side for side in found.sides] == ["both"]:
        each = [("both", sum(e[1] for e in each), sum(e[2] for e in each), each[0][3] | each[1][3])]
    for side, n, of, names in each:
        if of:
            kind = next((f"{s.kind} " for s in found.sides if s.side == side and s.kind), "" if side == "both" else f"side {side} ")
            named = f" ({next(iter(names))})" if len(names) == 1 else ""
            told.append(f"the last {kind}layer{named} is best in {n:,} of {words.counted(of, 'pair')}")
    return f"{story.capital('; '.join(told))}." if told else ""


# --- words that are explained --------------------------------------------------------------------


@cache
def glossary() -> tuple[dict[str, str], ...]:
    """Every word of `glossary.csv`: the term, its other forms, what it means in plain words, and where it stands on a page."""
    rows = csv.DictReader(resources.files("repalign.report").joinpath("glossary.csv").read_text("utf-8").splitlines())
    return tuple({**row, "slug": re.sub(r"\W+", "-", row["term"].lower()).strip("-")} for row in rows)


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
