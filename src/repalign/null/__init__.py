"""Chance: the distribution of a score when the pairing of stimuli is broken, and what follows from it.

There is one place where draws are made (a `Null`) and one where they become a p-value, a threshold and
a calibrated score (`calibrate`). Draws hold x fixed and relabel the stimuli of y; one relabelling serves
every layer, so that any aggregate over layers has its own valid null.

Sources: Groeger, Wen, Brbic 2026 (arXiv 2602.14486), algorithms 1 and 2; Hemerik & Goeman 2018 for
groups of permutations; Westfall & Young 1993 for the maximum.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from repalign.errors import choose
from repalign.null.calibration import *  # noqa: F403  (p-values, thresholds, many scores at once)
from repalign.null.calibration import __all__ as _calibration
from repalign.null.cyclic import Cyclic
from repalign.null.groups import SHUFFLES, Groups
from repalign.null.moments import (
    BOUND,
    CYCLIC_MIN_N,
    MOMENTS_MAX_SKEWNESS,
    MOMENTS_MIN_N,
    Auto,
    Closed,
    Law,
    Moments,
    by_bounds,
)
from repalign.null.null import *  # noqa: F403  (a null, and the search over layers)
from repalign.null.null import Null, Unpaired
from repalign.null.null import __all__ as _null
from repalign.null.permutation import Aristotelian, Permutations, permuted_scores, published

__all__ = [
    "BOUND", "CYCLIC_MIN_N", "MEANINGS", "MOMENTS_MAX_SKEWNESS", "MOMENTS_MIN_N", "NULLS", "SHUFFLES", "Closed", "Groups", "Law",
    "Moments", "by_bounds", "make_null", "permuted_scores", "published", *_calibration, *_null,
]  # fmt: skip

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
