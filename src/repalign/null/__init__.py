"""Chance: the distribution of a score when the pairing of stimuli is broken, and what follows from it.

There is one place where draws are made (a `Null`) and one where they become a p-value, a threshold and
a calibrated score (`calibrate`). Draws hold x fixed and relabel the stimuli of y; one relabelling serves
every layer, so that any aggregate over layers has its own valid null.

Sources: Groeger, Wen, Brbic 2026 (arXiv 2602.14486), algorithms 1 and 2; Hemerik & Goeman 2018 for
groups of permutations; Westfall & Young 1993 for the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from repalign.errors import choose
from repalign.measures.measure import Bilinear, Measure, State
from repalign.null.calibration import (
    TIE_TOLERANCE,
    Calibration,
    adjusted,
    benjamini_hochberg,
    benjamini_yekutieli,
    calibrate,
    calibrate_by_moments,
    holm,
    max_t,
    multiplicity_warning,
    pvalue,
    snap_ties,
    step_down,
    threshold,
)
from repalign.null.cyclic import Cyclic
from repalign.null.groups import SHUFFLES, Groups
from repalign.null.moments import MOMENTS_MAX_SKEWNESS, MOMENTS_MIN_N, Law, Moments, bound, trusted
from repalign.null.null import (
    AGGREGATES,
    ONE_SIDE,
    SCALES,
    Found,
    Judgement,
    Null,
    Prepared,
    Scored,
    Search,
    Streams,
    Unpaired,
    search_layers,
)
from repalign.null.permutation import Aristotelian, Permutations, permuted_scores, published

__all__ = [
    "AGGREGATES", "CYCLIC_MIN_N", "MEANINGS", "MOMENTS_MAX_SKEWNESS", "MOMENTS_MIN_N", "NULLS", "ONE_SIDE",
    "SCALES", "SHUFFLES", "TIE_TOLERANCE", "Calibration", "Found", "Groups", "Judgement", "Law",
    "Moments", "Null", "Prepared", "Search", "Streams", "Unpaired", "adjusted", "benjamini_hochberg",
    "benjamini_yekutieli", "bound", "calibrate", "calibrate_by_moments", "holm", "make_null", "max_t", "multiplicity_warning",
    "permuted_scores", "published", "pvalue", "search_layers", "snap_ties", "step_down", "threshold", "trusted",
]  # fmt: skip

# Below this n a cyclic group has too few members for a useful p-value (the floor is 1/n).
CYCLIC_MIN_N = 200


@dataclass(frozen=True)
class Auto(Null):
    """The best null for each measure at this n.

    Bilinear: closed-form moments for every cell, and for the search over layers the cyclic group (n >= 200) or random
    permutations. Where n is so large that no n x n spectrum is held (`comparison.ways`), the draws are random, and only graphs of
    few edges have moments. Other measures: `n_draws` random permutations for both. Unpaired summaries: none. With `groups`: the
    cyclic group over 200 whole groups of one size or more, else random permutations.
    """

    name: ClassVar[str] = "auto"
    help: ClassVar[str] = "the best of the others for each measure and number of stimuli"
    meaning: ClassVar[str] = help
    n_draws: int = 199
    seed: int = 0
    relabellings: int = 1
    groups: Groups | None = None

    def resolve(self, measure: Measure, n: int, spectra: bool = True) -> Null:
        if not measure.paired:
            return Unpaired()
        bilinear = isinstance(measure, Bilinear) and (spectra or not measure.dense)
        units = n  # how many things of one size change places
        if self.groups is not None:
            self.groups.check_n(n)
            size = self.groups.equal_size if self.groups.shuffle == "whole" else None
            units = n // size if size else 0
        if bilinear and spectra and units >= CYCLIC_MIN_N:
            draws: Null = Cyclic(self.seed, 1 if self.groups else self.relabellings, self.groups)
        else:
            draws = Permutations(self.n_draws, self.seed, self.groups)
        return Moments(draws) if bilinear and self.groups is None else draws

    def count(self, n: int) -> int:
        raise TypeError(f"how many draws there are at n = {n} depends on the measure: ask the null that `resolve` gives")

    def prepare(self, measure: Measure, states: Sequence[State]) -> Prepared:
        return self.resolve(measure, states[0].n).prepare(measure, states)

    def scored(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> Scored:
        return self.resolve(measure, a.n).scored(measure, a, b, streams)

    def draws(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> np.ndarray:
        return self.scored(measure, a, b, streams)[1]

    def judge(self, measure: Measure, a: Prepared, b: Prepared, **how: Any) -> Judgement:
        return self.resolve(measure, a.n).judge(measure, a, b, **how)


# The nulls that are chosen by name. A new one is a class and its place here; help, report and tests follow.
NULLS: dict[str, type[Null]] = {cls.name: cls for cls in (Auto, Permutations, Cyclic, Aristotelian)}
# What the report says of each, and of those that are chosen by `Auto` alone.
MEANINGS = {cls.name: cls.meaning for cls in (*NULLS.values(), Moments, Unpaired)}


__all__ += sorted(cls.__name__ for cls in NULLS.values())


def make_null(name: str = "auto", **parameters: Any) -> Null:
    """A null from its name, with its parameters (`n_draws`, `seed`, `relabellings`, `groups`)."""
    cls = NULLS[choose("null", name, NULLS)]
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for parameter in parameters:
        choose("parameter", parameter, known, f"null {name!r} takes no parameter {parameter!r}")
    return cls(**parameters)
