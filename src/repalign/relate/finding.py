"""What an analysis over models finds: a table, a few numbers, and the same in sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from repalign.relate import sentences
from repalign.relate.jackknife import LEVEL, Fit


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

    @property
    def text(self) -> str:
        """The finding in sentences, with n, intervals, p and caveats."""
        return " ".join(sentences.OF[self.kind](self))


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
