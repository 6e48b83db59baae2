"""Which measures of "all", or of a family, apply to these models, and why the others do not."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from repalign import null as nulls
from repalign.errors import RepalignError
from repalign.measures import is_group, parse_measure, parse_measures
from repalign.measures._base import Bilinear, Measure, as_features
from repalign.progress import Progress
from repalign.representation import Representation

# Seconds that a measure of a group may take before it is left out; a measure that is named alone takes what it takes.
LIMIT = 300.0


def choose(
    wanted: Sequence[Measure | str],
    x: Sequence[Representation],
    y: Sequence[Representation] | None,
    null: nulls.Null | nulls.Auto,
    limit: float,
    progress: Progress,
) -> tuple[list[Measure], list[dict[str, str]]]:
    """The measures to compute, and those of groups that are left out, each with its reason.

    Raises RepalignError where a measure that is named alone does not apply.
    """
    n, where = x[0].n, f"dataset {x[0].dataset_name!r}"
    named = [m if isinstance(m, Measure) else parse_measure(m) for m in wanted if not is_group(m)]
    for measure in named:
        measure.check_n(n, where)
    chosen, left_out = list(dict.fromkeys(named)), []
    groups = [m for m in parse_measures([m for m in wanted if is_group(m)]) if m not in named]
    for done, measure in enumerate(groups):
        progress("try measures", done, len(groups), repr(measure))
        reason = _against(measure, x, y, null, limit)
        if reason is None:
            chosen.append(measure)
        else:
            left_out.append({"measure": repr(measure), "reason": reason})
    if groups:
        progress("try measures", len(groups), len(groups))
    if not chosen:
        reasons = "; ".join(f"{e['measure']}: {e['reason']}" for e in left_out)
        raise RepalignError("no measure applies", expected="at least one that applies to these models", got=reasons)
    return chosen, left_out


def _against(
    measure: Measure,
    x: Sequence[Representation],
    y: Sequence[Representation] | None,
    null: nulls.Null | nulls.Auto,
    limit: float,
) -> str | None:
    """Why a measure does not apply, or None; it is tried on the first layers that suit it."""
    others = x if y is None else y
    try:
        measure.check_n(x[0].n)
        ends = _first_pair(measure, x, others)
        seconds = _seconds(measure, *ends, nulls.resolve(null, measure, x[0].n))
    except RepalignError as error:
        return str(error).replace("\n", "; ").replace("  ", " ")
    cells = sum(len(r.layers) for r in x) * sum(len(r.layers) for r in others) // (1 if y is not None else 2)
    total = seconds * max(1, cells)
    return f"would take about {total / 60:.0f} min (limit {limit / 60:.0f} min)" if total > limit else None


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


def _seconds(measure: Measure, x: torch.Tensor, y: torch.Tensor, null: nulls.Null) -> float:
    """Seconds of one pair of layers with its draws; draws of a bilinear measure cost next to nothing."""
    a, b = measure.prepare(x), measure.prepare(y)
    start = time.perf_counter()
    measure.closeness_all([a], [b])
    once = time.perf_counter() - start
    return once * (1 if isinstance(measure, Bilinear) else 1 + null.count(a.n))
