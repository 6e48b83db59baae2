"""Pairs of models of one side that differ in one thing, such as their training at equal size, before the same partners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError
from repalign.relate.findings import Finding
from repalign.relate.jackknife import LEVEL, over_partners
from repalign.relate.scores import Crossed, Models, Records, names_of, searched, stimuli

OVERALL = "all"
Pairs = Mapping[str, Sequence[Sequence[str]]] | Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Matched(Finding):
    """Differences within pairs of models of one side, each the mean over the same partners.

    `table`: one row per question ("all" of its pairs) and per pair: question, first, second, score_first, score_second, difference
    (first minus second), low, high, n_partners, n_pairs, unit (of the partners, which the interval leaves out one at a time),
    n_units. Intervals are nan for fewer than three units.
    """

    kind = "matched"
    measure: str
    side: str
    n_stimuli: int

    @property
    def questions(self) -> list[str]:
        """The questions, in the order in which they were asked."""
        return list(dict.fromkeys(self.table["question"]))

    def overall(self, question: str) -> dict[str, Any]:
        """The row of all pairs of a question."""
        return self.table.loc[(self.table["question"] == question) & (self.table["first"] == OVERALL)].iloc[0].to_dict()


def matched(
    table: pd.DataFrame, models: Models, pairs: Pairs, side: str = "y", measure: str | None = None, *, level: float = LEVEL
) -> Matched:
    """How much more the first model of each pair agrees with its partners than the second one.

    d_jk = score of partner j with the first of pair k minus that with the second; the difference of a pair is the mean of d_jk over
    the partners that both met, that of a question the mean over its pairs and then over partners. Intervals leave out one family of
    partners at a time, or one partner where there are fewer than three families (the jackknife of docs/trends.md): they hold for
    partners like these and for these very pairs.

    Parameters
    ----------
    table : the table of an alignment; its "max" rows (layer search) of `measure` are used.
    models : records, for the families of the partners.
    pairs : pairs of models, [[first, second], ...]; or several such lists by their question.
    side : "x" or "y", whose models are paired; "both" if all models were compared with all others.
    measure : the first of the table by default.
    level : of the intervals.

    A pair that the table lacks is left out, and named. RepalignError: an unknown side or measure, what is no pair, no pair left.
    """
    rows, measure = searched(table, measure, side)
    asked = dict(pairs) if isinstance(pairs, Mapping) else {"first minus second": pairs}
    for question, some in asked.items():
        for pair in some:
            if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
                raise RepalignError(f"{question}: no pair of models", expected="[first, second], two names", got=pair)
    families, there, out, left_out = Records.of(models).families, set(names_of(rows, side)), [], []
    for question, some in asked.items():
        left_out += [f"{a} and {b} ({question})" for a, b in some if not {a, b} <= there]
        kept = [(str(a), str(b)) for a, b in some if {a, b} <= there]
        if kept:
            own = list(dict.fromkeys(name for pair in kept for name in pair))
            out += _rows(Crossed.of(rows, side, own), question, kept, families, level)
    if not out:
        raise RepalignError("no pair of models has scores", expected=f"names of models of side {side}", got="; ".join(left_out),
                            remedy=f"the side has {', '.join(sorted(there)[:6])}")  # fmt: skip
    return Matched(
        measure=measure, table=pd.DataFrame(out), left_out=tuple(left_out), level=level, side=side, n_stimuli=stimuli(rows)
    )


def _rows(
    scores: Crossed, question: str, pairs: Sequence[tuple[str, str]], families: Mapping[str, str], level: float
) -> list[dict[str, Any]]:
    at, values = {name: i for i, name in enumerate(scores.rows)}, scores.scores()
    first, second = (values[[at[pair[k]] for pair in pairs]] for k in (0, 1))  # (pairs, partners)
    gaps = first - second
    rows = [_row(scores.columns, gaps[[k]], first[[k]], second[[k]], families, level) for k in range(len(pairs))]
    named = [{"question": question, "first": a, "second": b, **row} for (a, b), row in zip(pairs, rows, strict=True)]
    every = _row(scores.columns, gaps, first, second, families, level)
    return [{"question": question, "first": OVERALL, "second": OVERALL, **every}, *named]


def _row(
    partners: Sequence[str], gaps: np.ndarray, first: np.ndarray, second: np.ndarray, families: Mapping[str, str], level: float
) -> dict[str, Any]:
    met = np.isfinite(gaps)
    kept = met.any(0)
    names = [name for name, there in zip(partners, kept, strict=True) if there]
    if not names:
        nothing = dict.fromkeys(("score_first", "score_second", "difference", "low", "high"), np.nan)
        return {**nothing, "n_partners": 0, "n_pairs": 0, "unit": "", "n_units": 0}
    of_partner = np.nanmean(gaps[:, kept], 0)
    low, high, unit, n_units = over_partners(names, of_partner, families, level)
    means = [float(np.nanmean(np.where(met, x, np.nan)[:, kept], 0).mean()) for x in (first, second)]
    return {
        "score_first": means[0], "score_second": means[1], "difference": float(of_partner.mean()), "low": low, "high": high,
        "n_partners": len(names), "n_pairs": int(met.any(1).sum()), "unit": unit, "n_units": n_units,
    }  # fmt: skip
