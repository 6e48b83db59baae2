"""The answer in words: which pair aligns best, how far from chance, and how many pairs do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from repalign import text as words
from repalign.errors import RepalignError
from repalign.figures.conventions import RULES, Ceiling, Reading
from repalign.figures.quantities import (
    ADJUSTED,
    VIEWS,
    adjustment,
    best_pair,
    draws_of,
    found,
    measures_of,
    rows_of,
    tests_of,
    text_of,
)  # fmt: skip
from repalign.measures import parse_measure
from repalign.report.html import Html, el, join
from repalign.report.texts import aggregate_meaning


@dataclass(frozen=True)
class Answer:
    """What one measure says over all pairs of models."""

    measure: str
    label: str
    best: Mapping[str, Any] | None
    best_found: bool
    n: int
    n_pairs: int
    n_tests: int
    n_draws: int
    n_cells: int  # pairs of layers that were searched for the best pair of models
    rule: str  # the adjusted p that decides: "p_maxt", "p_holm" or "p_bh"
    counts: Mapping[str, int]  # how many pairs are above chance by each adjusted p that is there
    seeds: list[Ceiling]
    halves: Ceiling | None

    @property
    def score(self) -> str:
        """The best score, with its interval where there is one."""
        best = self.best or {}
        return words.interval(best["statistic"], best.get("low"), best.get("high"))


def answers(table: pd.DataFrame, reading: Reading) -> list[Answer]:
    """One answer per measure, in the table's order."""
    return [_answer(table, measure, reading) for measure in measures_of(table)]


def _answer(table: pd.DataFrame, measure: str, reading: Reading) -> Answer:
    pairs, cells = rows_of(table, "max", measure), rows_of(table, "cell", measure)
    best, above = best_pair(pairs), found(pairs, reading.alpha)
    n_cells, best_found, seeds, halves = 0, False, [], None
    if best is not None:
        x, y = best["model_x"], best["model_y"]
        mine = (pairs["model_x"] == x) & (pairs["model_y"] == y)
        best_found = bool(above[mine.to_numpy()].any())
        n_cells = int(((cells["model_x"] == x) & (cells["model_y"] == y)).to_numpy().sum())
        seeds, halves = reading.seeds_of(measure, x, y), reading.halves_of(measure, x, y)
    return Answer(
        measure=measure,
        label=words.measure_label(measure),
        best=best,
        best_found=best_found,
        n=max(pairs["n"].tolist()),
        n_pairs=len(pairs),
        n_tests=tests_of(pairs),
        n_draws=draws_of(pairs),
        n_cells=n_cells,
        rule=adjustment(pairs, reading.alpha),
        counts={
            c: int((pairs[c] <= reading.alpha).to_numpy().sum()) for c in ADJUSTED if pairs[c].notna().to_numpy().any()
        },
        seeds=seeds,
        halves=halves,
    )


def headline(answer: Answer) -> Html:
    """One line that answers the question."""
    best = answer.best
    if best is None:
        return Html("No pair of models has a defined score")
    x, y = el("em", best["model_x"]), el("em", best["model_y"])
    if answer.n_pairs == 1:
        return join(
            [
                x,
                " and ",
                y,
                " are aligned beyond chance" if answer.best_found else " are not aligned beyond chance",
            ]
        )
    if not answer.best_found:
        return Html("No pair of models is aligned beyond chance")
    return join([x, " and ", y, " align best"])


def lede(answer: Answer, dataset: str, reading: Reading) -> Html:
    """The numbers behind the headline, in sentences: score, chance, ceiling where one is known, p."""
    best = answer.best
    if best is None:
        why = "The findings beside the models say why."
        return join([f"{answer.label} is undefined for all {answer.n_pairs} pairs. {why}"])
    who = (
        "They score"
        if answer.best_found or answer.n_pairs == 1
        else f"The nearest, {best['model_x']} and {best['model_y']}, score"
    )
    return join(
        [
            f"{who} ",
            el("strong", answer.score),
            f" on {answer.label}, where chance",
            f", for which {reading.restricted}," if reading.restricted else None,
            " gives ",
            el("strong", words.number(best["null_mean"])),
            f" ({_p(answer)})",
            *_ceiling(answer),
            f"{_where(answer)}; n = {words.count(answer.n)} stimuli of {dataset}.",
            _search(answer),
            f" {answer.halves.held_out()}" if answer.halves else None,
            f" {count_sentence(answer, reading)}" if answer.n_pairs > 1 else None,
        ]
    )


def _p(answer: Answer) -> str:
    p = (answer.best or {})["pvalue"]
    told = words.p_sentence(p, answer.n_draws).removesuffix(" (floor)").replace(" ", "\u00a0")
    at_floor = words.at_floor(p, answer.n_draws)
    return f"{told}, the smallest that {words.count(answer.n_draws)} draws can give" if at_floor else told


def _ceiling(answer: Answer) -> list[object]:
    """What two trainings of one model reach."""
    out: list[object] = [" and the ceiling is "] * bool(answer.seeds)
    for k, ceiling in enumerate(answer.seeds):
        out += [" or " * (k > 0), el("strong", words.number(ceiling.statistic)), f" ({ceiling.source(answer.n)})"]
    return out


def _where(answer: Answer) -> str:
    best, told = answer.best or {}, aggregate_meaning((answer.best or {}).get("search"))
    if answer.n_cells <= 1:
        return ""
    at = f"{best['layer_x']} of {best['model_x']} and {best['layer_y']} of {best['model_y']}"
    return f", at {at}" if told is None else f", {told}, of which {at} are the best"


def _search(answer: Answer) -> str | None:
    if answer.n_cells <= 1:
        return None
    return f" The search over {words.count(answer.n_cells)} pairs of layers is part of that chance level."


def count_sentence(answer: Answer, reading: Reading) -> str:
    """How many pairs of models are above chance, by which rule, and why that rule is valid."""
    undefined = answer.n_pairs - answer.n_tests
    tail = f"; {undefined} undefined" if undefined else ""
    few = "; Holm’s rule cannot reject anything with so few draws" if answer.rule == "p_bh" else ""
    count = answer.counts.get(answer.rule, 0)
    above = f"{count} {'is' if count == 1 else 'are'} above chance at α = {reading.alpha:g}"
    rule = f"{RULES[answer.rule][0]} ({reading.rule(answer.rule)}{few})"
    return f"Of {answer.n_pairs} pairs of models, {above} by {rule}{tail}."


MANY = 6  # measures that have a card each; more stand in one table


def cards(found_answers: list[Answer]) -> Html:
    """One card per measure with its best pair and counts, or one table of many measures by family."""
    if len(found_answers) > MANY:
        return _measures_table(found_answers)
    return el("div", *map(_card, found_answers), class_="cards")


def _measures_table(found_answers: list[Answer]) -> Html:
    heads = ("Measure", "Best pair", "Layers", "Score", "Chance", "z", "p")
    several = max(a.n_pairs for a in found_answers) > 1
    shown = [i for i in range(len(heads)) if several or i != 1]
    by_family: dict[str, list[Html]] = {}
    for answer in found_answers:
        family, is_distance = _kind(answer.measure)
        best = answer.best or {}
        label = join([answer.label, el("span", " distance", class_="sub") if is_distance else None])
        pair = f"{best['model_x']} {words.TIMES} {best['model_y']}" if best else "undefined"
        layers = f"{best['layer_x']} {words.TIMES} {best['layer_y']}" if best else ""
        numbers = [words.number(best[c]) if best else "" for c in ("statistic", "null_mean", "z")]
        cells = [label, pair, layers, *numbers, words.pvalue(best["pvalue"], answer.n_draws) if best else ""]
        row = el("tr", *(el("td", cells[i], class_="num" if i > 2 else None) for i in shown))
        by_family.setdefault(family, []).append(row)
    bodies = (
        el("tbody", el("tr", el("th", family, colspan=len(shown), scope="colgroup")), *rows)
        for family, rows in by_family.items()
    )
    head = el("thead", el("tr", *(el("th", heads[i], class_="num" if i > 2 else None) for i in shown)))
    told = "Each at its best pair of layers, the search counted in p. z above 0 is closer than chance, for distances too."
    return join([el("div", el("table", head, *bodies, class_="measures"), class_="scroll"), el("p", told, class_="caption")])


def _kind(measure: str) -> tuple[str, bool]:
    """Family of a measure and whether smaller is closer; of another's measure that is not installed, nothing is known."""
    try:
        known = parse_measure(measure)
    except RepalignError:
        return "Other", False
    family = known.family.replace("_", " ")
    return "RDM" if family == "rdm" else family.capitalize(), not known.closer_is_higher


def _card(answer: Answer) -> Html:
    best = answer.best
    if best is None:
        return el("article", el("h3", answer.label), el("p", "Undefined for every pair of models."), class_="card")
    adjusted = VIEWS[answer.rule]
    score, _, interval = answer.score.partition(" ")
    facts: list[tuple[str, object]] = [
        ("Score", join([score, el("span", interval, class_="sub") if interval else None]))
    ]
    facts.append(("Chance", words.number(best["null_mean"])))
    facts += [("Ceiling", words.number(c.statistic)) for c in answer.seeds[:1]]
    facts.append(("p", words.pvalue(best["pvalue"], answer.n_draws)))
    if answer.n_tests > 1:
        facts.append((adjusted.label, text_of(answer.rule, best[answer.rule], answer.n_draws)))
    pair = join([best["model_x"], f" {words.TIMES} ", best["model_y"]])
    layers = f"{best['layer_x']} {words.TIMES} {best['layer_y']}"
    return el(
        "article",
        el("h3", answer.label),
        el("p", pair, el("span", layers, class_="sub"), class_="pair"),
        el("dl", *(el("div", el("dt", k), el("dd", v)) for k, v in facts), class_="facts"),
        el("p", *_share(answer), class_="share") if answer.n_tests > 1 else None,
        class_="card",
    )


def _share(answer: Answer) -> list[object]:
    """How many pairs are above chance, by the rule that decides and by the others."""
    counts = {VIEWS[key].label.removeprefix("p ").strip("()"): count for key, count in answer.counts.items()}
    name = VIEWS[answer.rule].label.removeprefix("p ").strip("()")
    main = f"{counts.pop(name, 0)} of {answer.n_tests} pairs above chance ({name})"
    others = ", ".join(f"{other} {count}" for other, count in counts.items())
    return [main, el("span", f"by other rules: {others}", class_="sub") if others else None]
