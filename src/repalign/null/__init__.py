"""Chance: the distribution of a score when the pairing of stimuli is broken, and what follows from it.

There is one place where draws are made (a `Null`) and one where they become a p-value, a threshold and
a calibrated score (`calibrate`). Draws hold x fixed and relabel the stimuli of y; one relabelling serves
every layer, so that any aggregate over layers has its own valid null.

Sources: Groeger, Wen, Brbic 2026 (arXiv 2602.14486), algorithms 1 and 2; Hemerik & Goeman 2018 for
groups of permutations; Westfall & Young 1993 for the maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from repalign.errors import RepalignError, did_you_mean
from repalign.measures.measure import Bilinear, Measure
from repalign.null.aristotelian import Aristotelian, published
from repalign.null.base import ONE_SIDE, Judgement, Null, Prepared, Streams
from repalign.null.calibration import (
    TIE_TOLERANCE,
    Calibration,
    calibrate,
    calibrate_by_moments,
    pvalue,
    snap_ties,
    threshold,
)
from repalign.null.cyclic import Cyclic
from repalign.null.groups import SHUFFLES, Groups
from repalign.null.moments import MOMENTS_MAX_SKEWNESS, MOMENTS_MIN_N, Moments
from repalign.null.multiplicity import benjamini_hochberg, benjamini_yekutieli, holm, max_t, multiplicity_warning
from repalign.null.permutation import Permutations, permuted_scores
from repalign.null.search import AGGREGATES, SCALES, Found, Search, search_layers, step_down
from repalign.null.unpaired import Unpaired

__all__ = [
    "AGGREGATES",
    "CYCLIC_MAX_N",
    "CYCLIC_MIN_N",
    "MOMENTS_MAX_SKEWNESS",
    "MOMENTS_MIN_N",
    "NULLS",
    "ONE_SIDE",
    "SCALES",
    "SHUFFLES",
    "TIE_TOLERANCE",
    "Aristotelian",
    "Auto",
    "Calibration",
    "Cyclic",
    "Found",
    "Groups",
    "Judgement",
    "Moments",
    "Null",
    "Permutations",
    "Prepared",
    "Search",
    "Streams",
    "Unpaired",
    "benjamini_hochberg",
    "benjamini_yekutieli",
    "calibrate",
    "calibrate_by_moments",
    "holm",
    "make_null",
    "max_t",
    "multiplicity_warning",
    "permuted_scores",
    "published",
    "pvalue",
    "resolve",
    "search_layers",
    "snap_ties",
    "step_down",
    "threshold",
]

# Below this n a cyclic group has too few members for a useful p-value (the floor is 1/n).
CYCLIC_MIN_N = 200
# Above this n the spectra (2 n^2 bytes per layer or more) would fill the memory of a usual machine.
CYCLIC_MAX_N = 8192


@dataclass(frozen=True)
class Auto:
    """The best null for each measure at this n; not a null itself but the choice of one (`resolve`).

    Bilinear: closed-form moments for every cell, and for the search over layers the cyclic group (200 <= n <= 8192) or
    random permutations; above that n only graphs of few edges have moments. Other measures: `n_draws` random permutations
    for both. Unpaired summaries: none. With `groups`: the cyclic group over 200 whole groups of one size or more, else
    random permutations.
    """

    method: ClassVar[str] = "auto"
    n_draws: int = 199
    seed: int = 0
    relabellings: int = 1
    groups: Groups | None = None


def resolve(null: Null | Auto, measure: Measure, n: int) -> Null:
    """The null that is really used for this measure at this n; it is what the result names."""
    if not measure.paired:
        return Unpaired()
    if isinstance(null, Null):
        return null
    random = Permutations(null.n_draws, null.seed, null.groups)
    bilinear = isinstance(measure, Bilinear) and (n <= CYCLIC_MAX_N or not measure.dense)
    if null.groups is not None:
        null.groups.check_n(n)
        size = null.groups.equal_size if null.groups.shuffle == "whole" else None
        many = size is not None and n // size >= CYCLIC_MIN_N and n <= CYCLIC_MAX_N
        return Cyclic(null.seed, groups=null.groups) if bilinear and many else random
    if not bilinear:
        return random
    return Moments(Cyclic(null.seed, null.relabellings) if CYCLIC_MIN_N <= n <= CYCLIC_MAX_N else random)


NULLS: dict[str, type[Null] | type[Auto]] = {cls.method: cls for cls in (Auto, Permutations, Cyclic, Aristotelian)}


def make_null(method: str = "auto", **parameters: Any) -> Null | Auto:
    """A null from its name, with its parameters (`n_draws`, `seed`, `relabellings`, `groups`)."""
    if method not in NULLS:
        raise RepalignError(f"unknown null {method!r}", got=method, remedy=did_you_mean(method, NULLS))
    try:
        return NULLS[method](**parameters)
    except TypeError as error:
        known = [f for f in NULLS[method].__dataclass_fields__ if f != "method"]  # type: ignore[attr-defined]
        wrong = next((p for p in parameters if p not in known), None)
        if wrong is None:
            raise
        raise RepalignError(
            f"null {method!r} takes no parameter {wrong!r}", got=wrong, remedy=did_you_mean(wrong, known)
        ) from error
