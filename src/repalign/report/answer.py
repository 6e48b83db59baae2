"""The answer in words: which pair aligns best, how far from chance, and how many pairs do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from repalign.plot import words
from repalign.plot.views import adjustment, best_pair, draws_of, found, measures_of, rows_of, tests_of
from repalign.report.html import Html, el, join


@dataclass(frozen=True)
class Answer:
    """What one measure says over all pairs of models."""

    measure: str
    label: str
    best: Mapping[str, Any] | None
    best_found: bool
    n_pairs: int
    n_tests: int
    n_holm: int
    n_bh: int
    n_draws: int
    n_cells: int  # pairs of layers that were searched for the best pair of models
    adjusted: str  # "p_holm" or "p_bh": which decides


def answers(table: pd.DataFrame, alpha: float) -> list[Answer]:
    """One answer per measure, in the table's order."""
    return [_answer(table, measure, alpha) for measure in measures_of(table)]


def _answer(table: pd.DataFrame, measure: str, alpha: float) -> Answer:
    pairs, cells = rows_of(table, "max", measure), rows_of(table, "cell", measure)
    best, above = best_pair(pairs), found(pairs, alpha)
    n_cells, best_found = 0, False
    if best is not None:
        mine = (pairs["model_x"] == best["model_x"]) & (pairs["model_y"] == best["model_y"])
        best_found = bool(above[mine.to_numpy()].any())
        n_cells = int(((cells["model_x"] == best["model_x"]) & (cells["model_y"] == best["model_y"])).to_numpy().sum())
    return Answer(
        measure=measure,
        label=words.measure_label(measure),
        best=best,
        best_found=best_found,
        n_pairs=len(pairs),
        n_tests=tests_of(pairs),
        n_holm=int((pairs["p_holm"] <= alpha).to_numpy().sum()),
        n_bh=int((pairs["p_bh"] <= alpha).to_numpy().sum()),
        n_draws=draws_of(pairs),
        n_cells=n_cells,
        adjusted=adjustment(pairs, alpha),
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


def lede(answer: Answer, n: int, dataset: str, alpha: float) -> Html:
    """The numbers behind the headline, in sentences."""
    best = answer.best
    if best is None:
        why = "The findings beside the models say why."
        return join([f"{answer.label} is undefined for all {answer.n_pairs} pairs. {why}"])
    where = (
        ""
        if answer.n_cells <= 1
        else f", at {best['layer_x']} of {best['model_x']} and {best['layer_y']} of {best['model_y']}"
    )
    floor = (
        f", the smallest that {words.count(answer.n_draws)} draws can give"
        if words.at_floor(best["pvalue"], answer.n_draws)
        else ""
    )
    p = words.p_sentence(best["pvalue"], answer.n_draws).removesuffix(" (floor)").replace(" ", "\u00a0")
    who = (
        "They score"
        if answer.best_found or answer.n_pairs == 1
        else f"The nearest, {best['model_x']} and {best['model_y']}, score"
    )
    search = (
        f" The search over {words.count(answer.n_cells)} pairs of layers is part of that chance level."
        if answer.n_cells > 1
        else ""
    )
    return join(
        [
            f"{who} ",
            el("strong", words.number(best["statistic"])),
            f" on {answer.label}, where chance gives ",
            el("strong", words.number(best["null_mean"])),
            f" ({p}{floor}){where}; n = {words.count(n)} stimuli of {dataset}.{search}",
            f" {count_sentence(answer, alpha)}" if answer.n_pairs > 1 else None,
        ]
    )


def count_sentence(answer: Answer, alpha: float) -> str:
    """How many pairs of models are above chance, after which adjustment."""
    undefined = answer.n_pairs - answer.n_tests
    tail = f"; {undefined} undefined" if undefined else ""
    cannot = " (which cannot reject anything with so few draws)" if answer.adjusted == "p_bh" else ""
    holm = f"{answer.n_holm} are above chance after Holm's correction{cannot}"
    bh = f"{answer.n_bh} after Benjamini and Hochberg's (α = {alpha:g})"
    return f"Of {answer.n_pairs} pairs of models, {holm} and {bh}{tail}."


def cards(found_answers: list[Answer], alpha: float) -> Html:
    """One card per measure with its best pair and counts."""
    return el("div", *(_card(a, alpha) for a in found_answers), class_="cards")


def _card(answer: Answer, alpha: float) -> Html:
    best = answer.best
    if best is None:
        return el("article", el("h3", answer.label), el("p", "Undefined for every pair of models."), class_="card")
    facts = [
        ("Score", words.number(best["statistic"])),
        ("Chance", words.number(best["null_mean"])),
        ("Calibrated", words.number(best["calibrated"])),
        ("p", words.pvalue(best["pvalue"], answer.n_draws)),
    ]
    pair = join([best["model_x"], f" {words.TIMES} ", best["model_y"]])
    layers = f"{best['layer_x']} {words.TIMES} {best['layer_y']}"
    numbers = el("dl", *(el("div", el("dt", k), el("dd", v)) for k, v in facts), class_="facts")
    holm = f"{answer.n_holm} (Holm), " if answer.adjusted == "p_holm" else ""
    share = f"Above chance at α = {alpha:g}: {holm}{answer.n_bh} (Benjamini and Hochberg) of {answer.n_tests}"
    return el(
        "article",
        el("h3", answer.label),
        el("p", pair, el("span", layers, class_="sub"), class_="pair"),
        numbers,
        el("p", share, class_="share"),
        class_="card",
    )
