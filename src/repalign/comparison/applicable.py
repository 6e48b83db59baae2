"""Which measures of "all", or of a family, apply to these models, and why the others do not."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repalign import null as nulls
from repalign.errors import RepalignError
from repalign.layers import Given
from repalign.measures import Group, parse_wanted
from repalign.measures.measure import Bilinear, Measure, as_layer
from repalign.representation import Representation
from repalign.text import Progress

# Seconds that a measure of a group may take; a measure that is named alone takes what it takes.
LIMIT = 30.0
SMALLEST_TRIAL = 64  # stimuli
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
    wanted: Sequence[Measure | Group | str],
    x: Sequence[Representation],
    y: Sequence[Representation] | None,
    null: nulls.Null,
    limit: float,
    progress: Progress,
) -> Chosen:
    """Every measure that is named, and those of the groups that apply.

    Raises RepalignError where a measure that is named alone does not apply.
    """
    n, where = x[0].n, f"dataset {x[0].dataset_name!r}"
    wanted = [parse_wanted(w) if isinstance(w, str) else w for w in wanted]
    named = [m for m in wanted if isinstance(m, Measure)]
    for measure in named:
        measure.check_n(n, where)
        _check_takes(measure, (*x, *(y or ())))
    chosen = Chosen(limit, {m: null.resolve(m, n) for m in named}, {}, [])
    others = x if y is None else y
    cells = sum(len(r.layers) for r in x) * sum(len(r.layers) for r in others) // (1 if y is not None else 2)
    layers = sum(len(r.layers) for r in (*x, *(y or ())))
    first_pair = functools.cache(functools.partial(_first_pair, x, others))  # read once for all measures
    groups = list(dict.fromkeys(m for w in wanted if isinstance(w, Group) for m in w.members if m not in named))
    for done, measure in enumerate(groups):
        progress("try measures", done, len(groups))
        try:
            measure.check_n(n)
            _check_takes(measure, (*x, *others))
            # A trial may take what one pair of layers may take at all, with few draws.
            cost = _cost(measure, *_trial_layers(measure, first_pair), max(0.1, limit / (1 + FEW_DRAWS)))
        except RepalignError as error:
            said = [line.strip() for line in str(error).splitlines() if not line.startswith("  do:")]
            chosen.left_out.append({"measure": repr(measure), "reason": "; ".join(said)})
            continue
        _admit(chosen, measure, layers * cost.layer, cells * cost.pair, null, n)
    if groups:
        progress("try measures", len(groups), len(groups))
    if not chosen.nulls:
        reasons = "; ".join(f"{e['measure']}: {e['reason']}" for e in chosen.left_out)
        raise RepalignError("no measure applies", expected="at least one that applies to these models", got=reasons)
    return chosen


def _admit(
    chosen: Chosen, measure: Measure, states: float, scores: float, null: nulls.Null, n: int
) -> None:
    """With all draws if the time allows, with few if a null may be chosen, or not at all.

    `states`, `scores`: seconds of all states, and of all scores without draws.
    """

    def seconds(of: nulls.Null) -> float:
        return states + scores * (1 if isinstance(measure, Bilinear) else 1 + of.count(n))

    full = null.resolve(measure, n)
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


def _check_takes(measure: Measure, representations: Sequence[Representation]) -> None:
    """Refuse a layer that is given as the measure does not take it, naming the model and the layer."""
    for r in representations:
        for layer in r.layers:
            measure.check_takes(r.kind(layer), f"{r.name}, layer {layer}")


Layers = tuple[Given, Given]


def _trial_layers(measure: Measure, first_pair: Callable[[bool], Layers]) -> Layers:
    """The layers that a measure is tried on; an error if it needs one width and there is no such pair."""
    a, b = first_pair(measure.equal_widths)
    measure.check_widths(a.shape[1], b.shape[1])
    return a, b


def _first_pair(x: Sequence[Representation], y: Sequence[Representation], equal_widths: bool) -> Layers:
    """The last layers of the first and the last model, or a pair of one width where that is asked for and there is one."""
    ends = [as_layer(r.load(r.layers[-1]), f"{r.name}, layer {r.layers[-1]}") for r in (x[0], y[-1])]
    if equal_widths and ends[0].shape[1] != ends[1].shape[1]:
        for a in x:
            of_width = {a.load(layer).shape[1]: layer for layer in a.layers}
            for b in y:
                for layer in b.layers:
                    features = b.load(layer)
                    if b is not a and features.shape[1] in of_width:
                        return as_layer(a.load(of_width[features.shape[1]])), as_layer(features)
    return ends[0], ends[1]


@dataclass(frozen=True)
class _Cost:
    """Seconds of preparing one layer and of comparing one prepared pair."""

    layer: float
    pair: float

    @property
    def both(self) -> float:
        return 2 * self.layer + self.pair

    def grown(self, factor: float) -> _Cost:
        return _Cost(self.layer * factor, self.pair * factor)


def _cost(measure: Measure, x: Given, y: Given, most: float) -> _Cost:
    """What a measure costs on these layers: tried on ever more of the stimuli, until the next trial would take longer than
    `most` seconds; then what is known goes on growing as it grew.
    """
    n, size, before = len(x), max(SMALLEST_TRIAL, measure.min_n), None
    while True:
        size = min(size, n)
        try:
            # A first call may have to load a library.
            cost = min((_timed(measure, x[:size], y[:size]) for _ in range(2 if before is None else 1)), key=_by_both)
        except RepalignError:
            if size == n:
                raise
            size = n  # defined with all stimuli, perhaps
            continue
        growth = 4.0 if before is None else min(max(cost.both / before.both, 2.0), 8.0)
        if size == n:
            return cost
        if cost.both * growth > most:
            return cost.grown(growth ** math.log2(n / size))
        size, before = 2 * size, cost


def _by_both(cost: _Cost) -> float:
    return cost.both


def _timed(measure: Measure, x: Given, y: Given) -> _Cost:
    start = time.perf_counter()
    a, b = measure.prepare(x), measure.prepare(y)
    prepared = time.perf_counter()
    measure.closeness_all([a], [b])
    return _Cost((prepared - start) / 2, time.perf_counter() - prepared)
