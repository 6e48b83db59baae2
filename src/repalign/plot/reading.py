"""What a run says about how its numbers are read: the level, the rule over pairs of models, restrictions, ceilings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from repalign.plot import words

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
    """How high a score can be expected to go.

    kind : "seed to seed", the score of two trainings of one model, `model_x` and `model_y`; "split half", how well the
        score of a pair of models repeats over disjoint halves of the stimuli.
    """

    measure: str
    kind: str
    model_x: str
    model_y: str
    statistic: float
    n: int

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.model_x, self.model_y))

    def source(self, n: int) -> str:
        """Where it comes from, with its own number of stimuli if that is not n."""
        number = f"n = {words.count(self.n)}"
        if self.kind == HALVES:
            return "disjoint halves of the stimuli" + (f" ({number})" if self.n != n else "")
        both = self.model_x if self.model_x == self.model_y else f"one model, {self.model_x} and {self.model_y}"
        return f"two trainings of {both}" + (f"; {number}" if self.n != n else "")

    def text(self, n: int) -> str:
        """Number and source: "0.61 (two trainings of dinov2-small)"."""
        return f"{words.number(self.statistic)} ({self.source(n)})"


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

    def halves_of(self, measure: str, model_x: str, model_y: str) -> Ceiling | None:
        """How well the score of a pair of models repeats."""
        names = {model_x, model_y}
        mine = (c for c in self.ceilings if c.kind == HALVES and c.measure == measure and c.names == names)
        return next(mine, None)


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
        Ceiling(str(e["measure"]), str(e["kind"]), str(e["model_x"]), str(e["model_y"]), float(e["statistic"]), int(e["n"]))
        for e in entries
        if e.get("statistic") is not None
    ]  # fmt: skip
    return sorted((c for c in known if math.isfinite(c.statistic)), key=lambda c: -c.statistic)
