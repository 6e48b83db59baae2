"""What a run says about how its numbers are read: the level, the rule over pairs of models, restrictions, ceilings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from repalign import text as words

ALPHA = 0.05
SEEDS, HALVES = "seed to seed", "split half"

# What each adjustment over pairs of models is called, what it holds, and why it may be used.
RULES = {
    "p_maxt": ("step-down maxT", "family-wise", "{joint}, which keeps the dependence between pairs"),
    "p_holm": ("Holm’s rule", "family-wise", "valid under any dependence"),
    "p_bh": ("Benjamini and Hochberg’s rule", "false discovery rate", "for independent or positively dependent pairs"),
    "p_by": ("Benjamini and Yekutieli’s rule", "false discovery rate", "valid under any dependence"),
}
JOINT = {
    "one side": "all models of one side relabelled alike",
    "every model": "all models relabelled jointly",
}
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
    statistic: float
    n: int
    selected: float = math.nan
    reliability: float = math.nan

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.model_x, self.model_y))

    def source(self, n: int) -> str:
        """Which two trainings, and their own number of stimuli if that is not n."""
        both = self.model_x if self.model_x == self.model_y else f"one model, {self.model_x} and {self.model_y}"
        return f"two trainings of {both}" + (f"; n = {words.count(self.n)}" if self.n != n else "")

    def text(self, n: int) -> str:
        """Number and source: "0.61 (two trainings of dinov2-small)"."""
        return f"{words.number(self.statistic)} ({self.source(n)})"

    def held_out(self) -> str:
        """A split half as a sentence."""
        own = f", {words.number(self.selected)} on their own" if math.isfinite(self.selected) else ""
        score = words.number(self.statistic)
        return f"Layers chosen on one half of the stimuli score {score} on the other{own} (n = {words.count(self.n)})."


@dataclass(frozen=True)
class Reading:
    """How the numbers of one run are read; `Reading.of(run)`."""

    alpha: float = ALPHA
    joint: str = ANY_JOINT  # how all pairs of models were relabelled together
    restricted: str = ""  # what may change places, where not every stimulus may
    ceilings: tuple[Ceiling, ...] = ()

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> Reading:
        """From the description of a run, whatever of it is there."""
        null = run.get("null") or {}
        return cls(
            alpha=float(run.get("alpha") or ALPHA),
            joint=JOINT.get(str(null.get("relabelled")), ANY_JOINT),
            restricted=restriction(null.get("groups") or {}),
            ceilings=tuple(_ceilings(run.get("ceilings") or ())),
        )

    def rule(self, key: str) -> str:
        """What an adjustment holds and why it is valid, in half a sentence."""
        _, holds, why = RULES[key]
        return f"{holds}; {why.format(joint=self.joint)}"

    def seeds(self, measure: str) -> list[Ceiling]:
        """The scores of two trainings of one model under a measure, highest first."""
        return [c for c in self.ceilings if c.measure == measure and c.kind == SEEDS]

    def seeds_of(self, measure: str, model_x: str, model_y: str) -> list[Ceiling]:
        """Those of the two models of a pair; the highest of any model if they have none."""
        known = self.seeds(measure)
        return [c for c in known if c.names & {model_x, model_y}][:2] or known[:1]

    def halves(self, measure: str) -> list[Ceiling]:
        """The split halves of all pairs of models under a measure."""
        return [c for c in self.ceilings if c.measure == measure and c.kind == HALVES]

    def halves_of(self, measure: str, model_x: str, model_y: str) -> Ceiling | None:
        """The split half of one pair of models."""
        return next((c for c in self.halves(measure) if c.names == {model_x, model_y}), None)


PLAIN = Reading()  # of a bare table


def restriction(groups: Mapping[str, Any]) -> str:
    """What may change places, from the groups of a null: "stimuli change places only within their 12 groups"."""
    if not groups:
        return ""
    count = words.count(int(groups["n_groups"]))
    if groups["shuffle"] == "within":
        return f"stimuli change places only within their {count} groups"
    return f"{count} groups of stimuli change places as wholes"


def _ceilings(entries: Iterable[Mapping[str, Any]]) -> list[Ceiling]:
    known = [
        Ceiling(
            measure=str(e["measure"]),
            kind=str(e["kind"]),
            model_x=str(e["model_x"]),
            model_y=str(e["model_y"]),
            statistic=_float(e.get("statistic")),
            n=int(e["n"]),
            selected=_float(e.get("selected")),
            reliability=_float(e.get("reliability")),
        )
        for e in entries
    ]
    return sorted((c for c in known if math.isfinite(c.statistic)), key=lambda c: -c.statistic)


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
