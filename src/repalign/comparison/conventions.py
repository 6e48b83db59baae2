"""How a result is read: at which level and by which rule, what of it can be shown, and on which colour scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from repalign import text as words
from repalign.comparison.alignment import about_of, rows_of
from repalign.errors import RepalignError, choose
from repalign.measures import MeasureFacts

ALPHA = 0.05
STEPS = 32  # of a colour scale
SEEDS, HALVES = "seed to seed", "split half"

# What each adjustment over pairs of models is called, what it holds, and why it may be used.
RULES = {
    "p_maxt": ("step-down maxT", "family-wise", "{joint}, which keeps the dependence between pairs"),
    "p_holm": ("Holm’s rule", "family-wise", "valid under any dependence"),
    "p_bh": ("Benjamini and Hochberg’s rule", "false discovery rate", "for independent or positively dependent pairs"),
    "p_by": ("Benjamini and Yekutieli’s rule", "false discovery rate", "valid under any dependence"),
}
JOINT = {"one side": "all models of one side relabelled alike", "every model": "all models relabelled jointly"}
ANY_JOINT = "all pairs relabelled jointly"


@dataclass(frozen=True)
class Ceiling:
    """What a score could reach at best.

    kind : "seed to seed", the score of two trainings of one model, `model_x` and `model_y`; "split half", the score of
        a pair of models on one half of the stimuli, its layers chosen on the other.
    selected, reliability : of a split half: the score on the half that chose the layers, and how well the whole layer
        map repeats; nan where unknown.
    """

    measure: str
    kind: str
    model_x: str
    model_y: str
    n: int
    statistic: float
    selected: float
    reliability: float

    def source(self, n: int) -> str:
        """Which two trainings, and their own number of stimuli if that is not n."""
        both = self.model_x if self.model_x == self.model_y else f"one model, {self.model_x} and {self.model_y}"
        return f"two trainings of {both}" + (f"; n = {self.n:,}" if self.n != n else "")


@dataclass(frozen=True)
class Conventions:
    """How the numbers of one run are read; of a bare table, the defaults."""

    alpha: float = ALPHA
    joint: str = ANY_JOINT  # how all pairs of models were relabelled together
    restricted: str = ""  # what may change places, where not every stimulus may
    least_p: float = 0.0  # that these restrictions allow
    ceilings: tuple[Ceiling, ...] = ()  # the highest first
    run: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> Conventions:
        """From the description of a run, whatever of it is there."""
        null, ceilings, restricted, least = run.get("null") or {}, [], "", 0.0
        if groups := null.get("groups"):
            count = f"{int(groups['n_groups']):,}"
            within, whole = f"only within their {count} groups", f"{count} groups of stimuli change places as wholes"
            restricted = f"stimuli change places {within}" if groups["shuffle"] == "within" else whole
            least = float(groups.get("least_p") or 0.0)
        for entry in run.get("ceilings") or ():
            facts: dict[str, Any] = {k: entry[k] for k in ("measure", "kind", "model_x", "model_y", "n")}
            numbers = {k: entry.get(k) for k in ("statistic", "selected", "reliability")}
            facts |= {k: math.nan if v is None else float(v) for k, v in numbers.items()}
            ceilings.append(Ceiling(**facts))
        known = sorted((c for c in ceilings if math.isfinite(c.statistic)), key=lambda c: -c.statistic)
        joint = JOINT.get(str(null.get("relabelled")), ANY_JOINT)
        return cls(float(run.get("alpha") or ALPHA), joint, restricted, least, tuple(known), run)


PLAIN = Conventions()


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a defined score, the best aligned first: by calibrated score, then z, then score."""
    keys, defined = ["calibrated", "z", "statistic"], rows.loc[rows["statistic"].notna()]
    return defined.loc[defined[keys].fillna(-math.inf).sort_values(keys, kind="stable").index[::-1]]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of models under one measure, and what is said of all of them together.

    rows : of scope "max", with the view "gain". best : the row of the best aligned pair (`ranked`); None if no score is
        defined. `text` names it in a sentence.
    draws : the smallest number behind a p-value; 0 if the null of any is a closed form. tests : how many have a p-value.
    rule : the p that decides what counts as found over all pairs. "p_maxt" where every pair that has a p-value has it, for it
        uses how pairs depend on each other; else "p_holm", or "p_bh" where Holm can reject nothing with so few draws.
        `holds` says what it holds and why it is valid, in half a sentence, `level` the same in plain words. found : which
        pairs are above chance by it. blind : why none could be, whatever the scores; "" if some could.
    heading : what must stand beside every score: the dataset, n, the number of draws and what they were restricted to.
    note : what marks a pair that is not above chance, and which rule says so.
    seeds, halves : the ceilings of this measure by kind, the highest first.
    """

    rows: pd.DataFrame
    about: MeasureFacts
    alpha: float
    n: int
    draws: int
    tests: int
    rule: str
    holds: str
    level: str
    found: np.ndarray
    blind: str
    best: dict[str, Any] | None
    text: str
    heading: str
    note: str
    seeds: list[Ceiling]
    halves: list[Ceiling]

    @classmethod
    def of(cls, table: pd.DataFrame, measure: str | None = None, conventions: Conventions = PLAIN) -> Pairs:
        """The pairs of one measure of a table, by default the first."""
        rows, alpha = rows_of(table, "max", measure), conventions.alpha
        rows = rows.assign(gain=rows["statistic"] - rows["null_mean"])
        first, draws = rows.iloc[0].to_dict(), int(rows["n_draws"].min())
        tests = int(np.isfinite(rows["pvalue"].to_numpy(float)).sum())
        rule = "p_holm" if not draws or tests <= alpha * (draws + 1) * (1 + 1e-9) else "p_bh"
        if tests and (rows["p_maxt"].notna() | rows["pvalue"].isna()).to_numpy().all():
            rule = "p_maxt"
        _, holds, why = RULES[rule]
        holds = f"{holds}; {why.format(joint=conventions.joint)}"
        best, text = None, "No pair of models has a defined score."
        if len(order := ranked(rows)):
            best = order.iloc[0].to_dict()
            score, chance, p = words.number(best["statistic"]), words.number(best["null_mean"]), best["pvalue"]
            ends = " and ".join(f"{best[f'model_{side}']} [{best[f'layer_{side}']}]" for side in "xy")
            text = f"Best: {ends}, {score} (chance {chance}, n = {int(best['n']):,}, {words.p_sentence(p, draws)})."
        restricted = f" ({conventions.restricted})" if conventions.restricted else ""
        heading = f"{first['dataset']}, n = {int(first['n']):,}, {int(first['n_draws']):,} shuffles{restricted}"
        level = f"{100 * alpha:g} % level"
        if tests > 1:
            false = f"at most {100 * alpha:g} % of those found are false alarms"
            level = false if holds.startswith("false") else f"{level}, corrected for {tests:,} tests"
        least, blind = max(conventions.least_p, 1 / (draws + 1) if draws else 0.0), ""
        if least > alpha * (1 + 1e-9):
            blind = f"{f'{draws:,} shuffles' if least > conventions.least_p else 'these groups'} give no p below {least:.2g}"
        elif not tests:
            blind = "this measure has no chance level"
        elif (rows[["null_std", "gain"]].abs().max(axis=1, skipna=False) <= words.NOTHING).all():  # k = n - 1, or CCA at n <= d
            blind = "every shuffle scores the same as the true pairing, as with too few stimuli for this measure"
        seeds, halves = ([c for c in conventions.ceilings if (c.measure, c.kind) == (first["measure"], kind)]
                         for kind in (SEEDS, HALVES))  # fmt: skip
        return cls(
            rows, about_of(conventions.run, [first["measure"]])[first["measure"]], alpha, int(first["n"]), draws, tests, rule,
            holds, level, (rows[rule] <= alpha).to_numpy(bool), blind, best, text, heading, f"○ not above chance ({level})",
            seeds, halves,
        )  # fmt: skip


# --- quantities and their scales -------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """One quantity of the table: its column, its name and what it means in a sentence."""

    key: str
    label: str
    meaning: str
    only: str | None = None  # the scope of the rows that have it: "max", pairs of models, or "cell", pairs of layers


VIEWS: dict[str, View] = {
    v.key: v
    for v in (
        View("statistic", "Score", "The raw score. Colour starts at the chance level."),
        View("gain", "Above chance", "Score minus its own chance level."),
        View("null_mean", "Chance level", "The mean score when the pairing is broken."),
        View("calibrated", "Calibrated",
             "How far the score goes from the significance threshold (0) to the highest attainable score (1)."),
        View("pvalue", "p", "How often broken pairings score as high, for one pair on its own."),
        View("p_stepdown", "p (step-down)",
             "Adjusted over all pairs of layers of these two models: the risk of any false finding among them.", "cell"),
        View("p_maxt", "p (maxT)",
             "Adjusted over all pairs of models by relabelling them jointly: the risk of any false finding.", "max"),
        View("p_holm", "p (Holm)", "Adjusted over all pairs of models: the risk of any false finding.", "max"),
        View("p_bh", "p (BH)", "Adjusted over all pairs of models: the expected share of false findings.", "max"),
        View("p_by", "p (BY)",
             "Adjusted over all pairs of models: the expected share of false findings, whatever their dependence.", "max"),
    )
}  # fmt: skip
P_VIEWS = tuple(key for key in VIEWS if key.startswith("p"))
FLOORED = ("pvalue", "p_stepdown", "p_maxt")  # shares of the draws: none is below 1 / (draws + 1)
ADJUSTED = tuple(key for key in P_VIEWS if VIEWS[key].only == "max")
VIEWS_OF = {scope: tuple(k for k, view in VIEWS.items() if view.only in (None, scope)) for scope in ("max", "cell")}

# Closed-form p-values have no floor; below this they all have the strongest colour.
SMALL_P = 1e-6
# An interval may make a picture this much taller, in ranges of its points: they always fill half of it.
ROOM = 0.5
MARGIN = 0.12  # above and below, in the same unit


def view_for(scope: str, key: str) -> View:
    """A view that rows of this scope have."""
    view = VIEWS[choose("view", key, VIEWS)]
    if view.only not in (None, scope):
        over, wanted = ("pairs of models", "pairs of layers")[:: 1 if scope == "cell" else -1]
        problem = f"{key!r} is adjusted over {over}"
        raise RepalignError(problem, expected=f"a number of {wanted}", got=key, remedy="use pvalue")
    return view


def text_of(view: str, value: float, n_draws: int) -> str:
    """A number of a view as it stands in a cell."""
    if view in P_VIEWS:
        return words.pvalue(value, n_draws if view in FLOORED else None)
    return words.number(value)


@dataclass(frozen=True)
class Scale:
    """Values to [0, 1]: `low` (chance, nothing) to `high`; by logarithm for p-values, where low > high."""

    low: float
    high: float
    log: bool = False
    marks: Sequence[tuple[float, str]] = ()  # beside a colour bar: places in [0, 1], each with its words

    def position(self, values: Any) -> np.ndarray:
        """Clipped to [0, 1]; nan stays nan."""
        v = np.asarray(values, float)
        if self.high == self.low:
            return np.where(np.isnan(v), np.nan, 0.0)
        if self.log:
            ratio = np.maximum(v, 1e-300) / self.low  # a closed form may underflow to 0
            return np.clip(np.log(ratio) / math.log(self.high / self.low), 0, 1)
        return np.clip((v - self.low) / (self.high - self.low), 0, 1)

    def steps(self, values: Any) -> np.ndarray:
        """The step of the palette for every value, -1 where undefined."""
        place = self.position(values)
        return np.where(np.isnan(place), -1, np.rint(np.nan_to_num(place) * (STEPS - 1))).astype(int)


def scale_of(view: str, values: np.ndarray, chance: np.ndarray, n_draws: int, alpha: float) -> Scale:
    """The chance-anchored colour scale of a view.

    A score starts at the mean chance level, what is measured from chance or threshold at 0, p at alpha:
    what is no more than chance has the colour of the paper. The chance level itself spans its own range.
    """
    values, chance = np.asarray(values, float), np.asarray(chance, float)
    defined, level = values[np.isfinite(values)], chance[np.isfinite(chance)]
    top = float(defined.max()) if defined.size else 0.0
    if view in P_VIEWS:
        floor = 1 / (n_draws + 1) if n_draws else max(float(defined.min(initial=1.0)), SMALL_P)
        low = alpha if floor < alpha else 1.0
        return Scale(low, floor, True, [(0.0, f"p = {words.pvalue(low)}"), (1.0, f"p = {words.pvalue(floor)}")])
    if view == "null_mean":
        low, high = (float(defined.min()), top) if defined.size else (0.0, 0.0)
    else:
        low = float(level.mean()) if view == "statistic" and level.size else 0.0
        high = max(top, low)
    start = f"chance {words.number(low)}" if view == "statistic" else words.number(low)
    return Scale(low, high, marks=[(0.0, start), (1.0, words.number(high))][: 1 + (high > low)])


def vertical_range(values: np.ndarray, intervals: np.ndarray) -> tuple[float, float]:
    """The range of an axis that shows some values: theirs with a margin, and of their intervals as much as leaves
    the values half of the picture. Few models have intervals many times as wide as all their scores."""
    values, ends = values[np.isfinite(values)], intervals[np.isfinite(intervals)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    spread, room = high - low, ROOM
    if not spread:  # one value: its interval is all there is to see
        spread, room = float(np.ptp(ends) if len(ends) else 0.0) or abs(low) or 1.0, 1.0
    bottom, top = low - MARGIN * spread, high + MARGIN * spread
    if len(ends):
        bottom = min(bottom, max(float(ends.min()), low - room * spread))
        top = max(top, min(float(ends.max()), high + room * spread))
    return bottom, top
