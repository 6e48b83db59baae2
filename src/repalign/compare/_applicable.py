"""Which measures of "all", or of a family, apply to these models, and why the others do not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from repalign import null as nulls
from repalign.errors import RepalignError
from repalign.measures import is_group, parse_measure, parse_measures
from repalign.measures._base import Bilinear, Measure, as_features
from repalign.progress import Progress
from repalign.representation import Representation

# Seconds that a measure of a group may take; a measure that is named alone takes what it takes.
LIMIT = 30.0
ONE_IS_ENOUGH = 5.0  # seconds of a trial
FEW_DRAWS = 19  # of a measure that would take longer with all: p >= 0.05


@dataclass(frozen=True)
class Chosen:
    """The measures to compute with their nulls; those of groups that get few draws, with the seconds that all would take;
    and those that are left out, with the reason.
    """

    limit: float
    nulls: dict[Measure, nulls.Null]
    few: dict[Measure, float]
    left_out: list[dict[str, str]]

    @property
    def warnings(self) -> list[str]:
        if not self.few:
            return []
        named = ", ".join(f"{type(m).__name__} ({_told(seconds)})" for m, seconds in self.few.items())
        return [
            f"{FEW_DRAWS} random permutations, so that p >= {1 / (FEW_DRAWS + 1):g}, for measures that would take longer than "
            f"{_told(self.limit)} with all: {named}; name one alone, or raise the limit, for all draws"
        ]


def choose(
    wanted: Sequence[Measure | str],
    x: Sequence[Representation],
    y: Sequence[Representation] | None,
    null: nulls.Null | nulls.Auto,
    limit: float,
    progress: Progress,
) -> Chosen:
    """Every measure that is named, and those of the groups that apply.

    Raises RepalignError where a measure that is named alone does not apply.
    """
    n, where = x[0].n, f"dataset {x[0].dataset_name!r}"
    named = [m if isinstance(m, Measure) else parse_measure(m) for m in wanted if not is_group(m)]
    for measure in named:
        measure.check_n(n, where)
    chosen = Chosen(limit, {m: nulls.resolve(null, m, n) for m in named}, {}, [])
    others = x if y is None else y
    cells = sum(len(r.layers) for r in x) * sum(len(r.layers) for r in others) // (1 if y is not None else 2)
    groups = [m for m in parse_measures([m for m in wanted if is_group(m)]) if m not in named]
    for done, measure in enumerate(groups):
        progress("try measures", done, len(groups))
        try:
            measure.check_n(n)
            once = cells * _seconds(measure, *_first_pair(measure, x, others))
        except RepalignError as error:
            chosen.left_out.append({"measure": repr(measure), "reason": " ".join(str(error).split())})
            continue
        _admit(chosen, measure, once, null, n)
    if groups:
        progress("try measures", len(groups), len(groups))
    if not chosen.nulls:
        reasons = "; ".join(f"{e['measure']}: {e['reason']}" for e in chosen.left_out)
        raise RepalignError("no measure applies", expected="at least one that applies to these models", got=reasons)
    return chosen


def _admit(chosen: Chosen, measure: Measure, once: float, null: nulls.Null | nulls.Auto, n: int) -> None:
    """With all draws if the time allows, with few if a null may be chosen, or not at all; `once` is without draws."""

    def seconds(of: nulls.Null) -> float:
        return once * (1 if isinstance(measure, Bilinear) else 1 + of.count(n))

    full = nulls.resolve(null, measure, n)
    if seconds(full) <= chosen.limit:
        chosen.nulls[measure] = full
        return
    few = nulls.Permutations(FEW_DRAWS, null.seed, null.groups)
    if isinstance(null, nulls.Auto) and seconds(few) <= chosen.limit:
        chosen.nulls[measure], chosen.few[measure] = few, seconds(full)
        return
    reason = f"would take about {_told(seconds(full))} (limit {_told(chosen.limit)}); name it alone to compute it"
    chosen.left_out.append({"measure": repr(measure), "reason": reason})


def _told(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _first_pair(
    measure: Measure, x: Sequence[Representation], y: Sequence[Representation]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last layers of the first models; of equal width where the measure needs that."""
    ends = [as_features(r.load(r.layers[-1]), f"{r.name}, layer {r.layers[-1]}") for r in (x[0], y[-1])]
    if not measure.equal_widths or ends[0].shape[1] == ends[1].shape[1]:
        return ends[0], ends[1]
    for a in x:
        of_width = {a.load(layer).shape[1]: layer for layer in a.layers}
        for b in y:
            for layer in b.layers:
                features = b.load(layer)
                if b is not a and features.shape[1] in of_width:
                    return as_features(a.load(of_width[features.shape[1]])), as_features(features)
    measure.check_widths(ends[0].shape[1], ends[1].shape[1])
    raise AssertionError("unreachable: widths differ")


def _seconds(measure: Measure, x: torch.Tensor, y: torch.Tensor) -> float:
    """Seconds of one prepared pair of layers; a first call may have to load a library, so a second one is timed too."""
    a, b = measure.prepare(x), measure.prepare(y)
    took = []
    while len(took) < 2 and sum(took) < ONE_IS_ENOUGH:
        start = time.perf_counter()
        measure.closeness_all([a], [b])
        took.append(time.perf_counter() - start)
    return min(took)
