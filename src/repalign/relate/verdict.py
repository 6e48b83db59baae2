"""What a result answers: do training and competence raise agreement, by intervals over models and families.

Being above chance is no answer: of models that saw the same stimuli nearly every pair is. The untrained model is the yardstick.
`story.py` puts a verdict into words, for the report and the terminal alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from repalign.comparison.alignment import is_mock
from repalign.comparison.conventions import Conventions, Pairs
from repalign.models import COMPETENCES, training_of
from repalign.relate.findings import Finding
from repalign.relate.jackknife import MIN_MODELS_LINE, ModelDifference, difference_of_models, said_by
from repalign.relate.scores import PARAMETERS, Records, names_of, partners_of, sides_of, yardsticks
from repalign.relate.trends import Trend, scaled, trend

SENSES = {"image": "vision", "text": "language"}  # what models of a modality are called
NOTHING = (math.nan, math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class SideVerdict:
    """The models of one side, and what training and competence do to their agreement with the other side.

    side : "x", "y", or "both" if all models met all others. kind : "vision", "language" or another modality that tells the
        sides apart, else "".
    points : a row for each model with a score: model, family, training (`models.training_of`), x (competence, nan if unknown),
        alignment (mean over its partners), low and high (of these), chance and threshold (means over its pairs), n_partners.
    trend : against the competence that most models have, or else their size; None if fewer than three have any.
    training : the trained twins minus the untrained models, or all trained models if there are no twins; None without untrained.
    turn : -1 for a distance, whose lower scores are closer.

    What follows from these has its signs turned, so that above 0 better models agree more. `better` : what models are at the
    right end of the axis. `rank` : rank correlation of agreement with competence, and its interval. `rise` : how much more the
    most competent model agrees than the least by the line, and its interval. `says` and `training_says` : whether better models,
    or trained ones, agree "more", "less", or it is "open"; "" without an interval (`TrendInference.says`).
    """

    side: str
    kind: str
    points: pd.DataFrame
    trend: Trend | None
    training: ModelDifference | None
    turn: int
    better: str = field(init=False)
    rank: tuple[float, float, float] = field(init=False)
    rise: tuple[float, float, float] = field(init=False)
    says: str = field(init=False)
    training_says: str = field(init=False)

    def __post_init__(self) -> None:
        trend, trained, rank, rise, says = self.trend, self.training, NOTHING, NOTHING, ""
        if trend is not None and (found := trend.inference) is not None:
            sign, wide = -self.turn if trend.lower_is_better else self.turn, float(np.ptp(scaled(trend.points["x"], trend.log)))
            rank = _turned(sign, found.spearman, *found.spearman_interval)
            rise = _turned(sign, *(wide * value for value in (found.slope, *found.slope_interval)))
            says = said_by(*(rise if found.by_line else rank)[1:])
        better = "larger" if trend and trend.against == PARAMETERS else "better"
        of_training = said_by(*_turned(self.turn, trained.difference, trained.low, trained.high)[1:]) if trained else ""
        vars(self).update(better=better, rank=rank, rise=rise, says=says, training_says=of_training)

    @property
    def has_line(self) -> bool:
        """Whether a line may be drawn: its interval does not hold 0."""
        return self.says in ("more", "less") and said_by(*self.rise[1:]) == self.says

    def of(self, training: str) -> list[str]:
        """The models of one kind of training."""
        return self.points.loc[self.points["training"] == training, "model"].tolist()

    def beat(self, names: Sequence[str]) -> int:
        """How many trained models agree more than each of these."""
        scores = (self.turn * self.points.set_index("model")["alignment"]).to_dict()
        return sum(scores[name] > max(scores[other] for other in names) for name in self.of("trained"))


def _turned(sign: int, value: float, low: float, high: float) -> tuple[float, float, float]:
    return (value, low, high) if sign > 0 else (-value, -high, -low)


@dataclass(frozen=True, eq=False, kw_only=True)
class Verdict(Finding):
    """The answer of one result under one measure. `table` has the points of all sides; `question` is the study's, if it has one."""

    kind = "verdict"
    measure: str
    sides: tuple[SideVerdict, ...]
    pairs: Pairs
    is_mock: bool
    question: str | None

    @cached_property
    def states(self) -> tuple[str, ...]:
        """What two measures must share to say the same."""
        found = tuple(one for side in self.sides for one in (side.training_says, side.says))
        n = int(self.pairs.found.sum())
        return found if any(found) and n else ("all" if n == self.pairs.tests else "some" if n else "none",)


def verdict(table: pd.DataFrame, run: Mapping[str, Any], measure: str | None = None) -> Verdict:
    """What a result answers under one measure, by default its first; `table` and `run` are of an `Alignment`."""
    pairs = Pairs.of(table, measure, Conventions.of(run))
    rows, turn = pairs.rows.loc[pairs.rows["statistic"].notna()], 1 if pairs.about.closer_is_higher else -1
    sides: tuple[SideVerdict, ...] = ()
    if len(rows) > 1:
        given = sides_of(run)
        kinds = [_kind(run, names_of(rows, side)) for side in given]
        kinds = kinds if len(set(kinds)) == len(kinds) else [""] * len(kinds)
        sides = tuple(_side(rows, run, side, kind, turn) for side, kind in zip(given, kinds, strict=True))
    points = pd.concat([s.points.assign(side=s.side) for s in sides], ignore_index=True) if sides else pairs.rows
    return Verdict(
        measure=str(pairs.rows["measure"].iloc[0]), table=points, sides=sides, pairs=pairs,
        is_mock=is_mock(pairs.rows), question=(run.get("study") or {}).get("question"),
    )  # fmt: skip


def _kind(run: Mapping[str, Any], names: Iterable[str]) -> str:
    """The one modality of some models, as models of it are called; "" if there are several, or none that says anything."""
    records = Records.of(run.get("models") or [])
    kinds = {str(records.get(name, {}).get("modality") or "") for name in names}
    kind = kinds.pop() if len(kinds) == 1 else ""
    return "" if kind == "array" else SENSES.get(kind, kind)


def _side(rows: pd.DataFrame, run: Mapping[str, Any], side: str, kind: str, turn: int) -> SideVerdict:
    models = list(run.get("models") or [])
    records, names = Records.of(models), names_of(rows, side)
    known = [*(key for key in COMPETENCES if key != PARAMETERS), *yardsticks(models, names)]
    counts = {key: sum(records.number(name, key) is not None for name in names) for key in dict.fromkeys(known)}
    size = counts.pop(PARAMETERS, 0)
    against = max(counts, key=lambda key: counts[key])
    if counts[against] < MIN_MODELS_LINE:
        against = PARAMETERS if size >= MIN_MODELS_LINE else ""
    facts = (run.get("competences") or {}).get(against) or {}
    told = {key: facts.get(key) for key in ("label", "lower_is_better")}
    points = []
    for name, found in partners_of(rows, side, ("statistic", "null_mean", "threshold")).items():
        scores, x = found["statistic"], records.number(name, against)
        points.append({
            "model": name, "family": records.families.get(name, ""), "training": training_of(records.get(name, {})),
            "x": math.nan if x is None else x, "alignment": float(scores.mean()), "low": float(scores.min()),
            "high": float(scores.max()), "chance": float(found["null_mean"].mean()),
            "threshold": float(found["threshold"].mean()), "n_partners": len(found),
        })  # fmt: skip
    table = pd.DataFrame(points)
    first, second = _contrasted(table, records, against, facts)
    return SideVerdict(
        side, kind, table, trend(rows, models, against, side, **told) if against else None,
        difference_of_models(rows, side, first, second, records.families) if first and second else None, turn,
    )  # fmt: skip


def _contrasted(points: pd.DataFrame, records: Records, against: str, facts: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Trained models, and the untrained ones that they are compared with.

    An untrained model's twin has its family and size and the most steps of its training; of several the most competent, so that
    the scores that are compared have no say in it. Without any twin, all trained models are compared with all untrained ones.
    """
    trained, untrained = (points.loc[points["training"] == kind, "model"].tolist() for kind in ("trained", "untrained"))
    lower = bool(facts.get("lower_is_better", COMPETENCES[against].lower_is_better if against in COMPETENCES else False))

    def rank(name: str) -> tuple[float, float]:
        steps, x = records.number(name, "training_steps"), records.number(name, against)
        return math.inf if steps is None else steps, -math.inf if x is None else -x if lower else x

    def alike(a: str, b: str) -> bool:
        return all(records[a].get(key) is not None and records[a].get(key) == records[b].get(key) for key in ("family", PARAMETERS))

    twins = {b: max(those, key=rank) for b in untrained if (those := [a for a in trained if alike(a, b)])}
    return (list(twins.values()), list(twins)) if twins else (trained, untrained)
