"""What an analysis over models finds: a table, a few numbers, and the same in sentences (`sentences`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pandas as pd

from repalign.models import RELEASED
from repalign.relate.jackknife import LEVEL, Fit

# The interval leaves out one model, and what is left must still have a line.
MIN_MODELS_BAND = 4
# Below this many models a trend hangs on one or two of them, and the text says so.
FEW_MODELS = 10
# What a curve or a contrast shows: its name on the axis, and what it is if there is nothing but chance.
QUANTITIES = {
    "statistic": ("Score", "chance"),
    "gain": ("Score above chance", "chance"),
    "calibrated": ("Calibrated score", "threshold"),
}
OVER = {"max": "pairs of models", "cell": "pairs of layers"}
DISTANCES = {"-log": "−log(alignment)", "one-minus": "1 − alignment", "score": "the measure itself, a distance"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Finding:
    """What an analysis found. Each kind is a subclass that adds its own numbers.

    kind : names the analysis. measure : of all scores; None if the table holds several.
    table : all that a figure of it shows. left_out : what was left out, each with its reason.
    level : of the intervals. draws, seed : random reorderings of the p-values.
    """

    kind: ClassVar[str]
    measure: str | None
    table: pd.DataFrame
    left_out: tuple[str, ...] = ()
    level: float = LEVEL
    draws: int = 0
    seed: int = 0

    @cached_property
    def text(self) -> str:
        """The finding in sentences, with n, intervals, p and caveats."""
        from repalign.relate.sentences import OF  # which reads what findings hold

        return " ".join(OF[self.kind](self))


@dataclass(frozen=True, eq=False, kw_only=True)
class Against(Finding):
    """A finding about the models of one `side` ("x", "y", "both") against a number that they have.

    `against` is "n_parameters" or the name of a score, `label` its name for people.
    """

    measure: str
    against: str
    label: str
    side: str
    lower_is_better: bool
    n_stimuli: int

    @property
    def unit(self) -> str:
        """What the covariate rises by, without a logarithm, in a sentence."""
        return "year" if self.against == RELEASED else f"unit of {noun(self.label)}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted(Finding):
    """A finding with a line; its numbers are nan without one."""

    fit: Fit | None

    @property
    def slope(self) -> float:
        """The slope of the line."""
        return self.fit.slope if self.fit else math.nan

    @property
    def intercept(self) -> float:
        """The line at 0."""
        return self.fit.intercept if self.fit else math.nan

    @property
    def r(self) -> float:
        """Pearson's correlation."""
        return self.fit.r if self.fit else math.nan

    @property
    def spearman(self) -> float:
        """Spearman's correlation."""
        return self.fit.spearman if self.fit else math.nan


def noun(label: str) -> str:
    """A label within a sentence: ordinary words in lower case, names as they are."""
    return label[:1].lower() + label[1:] if label.split(" ")[0].istitle() else label
