"""Which measures are computed, and how: those that are named, those of groups that apply, and what takes too long.

What a measure takes is found out by trial, on ever more stimuli of one pair of layers.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import repalign.null as nulls
from repalign.comparison.ways import Way, check_memory, way_of
from repalign.errors import RepalignError
from repalign.layers import Given
from repalign.measures import Group, parse_wanted
from repalign.measures.measure import Bilinear, Measure, as_layer
from repalign.representation import Representation
from repalign.text import Progress, duration, silent, telling

log = logging.getLogger(__name__)

LIMIT = 30.0  # seconds that a measure of a group may take where no limit is given; one that is named then takes what it takes
SMALLEST_TRIAL = 64  # stimuli
FEW_DRAWS = 19  # of a measure that would take longer with all: p >= 0.05
MARGIN = 1.5  # of the limit that is proposed, over what a trial says


@dataclass(frozen=True)
class Taken:
    """What a measure takes by trial, in seconds: with all of its `n_draws`, and with few, None where few cannot be taken."""

    measure: Measure
    seconds: float
    with_few: float | None
    n_draws: int

    def within(self, limit: float) -> float | None:
        """Seconds under a limit: with all draws, else with few; None if it is left out."""
        return next((s for s in (self.seconds, self.with_few) if s is not None and s <= limit), None)

    def sentence(self, total: float) -> str:
        """What it costs of the `total` of all measures, and what to do about it."""
        share = f" of {duration(total)}" if total > 1.1 * self.seconds else ""
        remedy = "shuffle less"
        if self.with_few is not None and MARGIN * self.with_few < self.seconds:
            unit = 10 if MARGIN * self.with_few < 60 else 60
            limit = unit * math.ceil(MARGIN * self.with_few / unit)
            remedy = (
                f"limit it (--limit {limit}, in a study `limit: {limit}`), for {FEW_DRAWS} shuffles in the place of "
                f"{self.n_draws:,} and about {duration(self.with_few)}"
            )
        return f"{type(self.measure).__name__} takes about {duration(self.seconds)}{share}: leave it out, or {remedy}"


@dataclass(frozen=True)
class Chosen:
    """The search over layers, the measures to compute, each with its way and null, what is left out and why, and warnings.

    seconds : of the measures that were tried.
    """

    search: str  # in full words
    how: dict[Measure, tuple[Way, nulls.Null]] = field(default_factory=dict)
    seconds: dict[Measure, float] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def leave_out(self, measure: Measure, reason: str | RepalignError) -> None:
        """Leave a measure out, for a reason or because of an error, without what that says to do."""
        lines = [line.strip() for line in str(reason).splitlines() if not line.startswith("  do:")]
        self.left_out.append({"measure": repr(measure), "reason": "; ".join(lines)})
        self.how.pop(measure, None)


def search_of(null: nulls.Null, search: str | None) -> str:
    """The layer search that is asked for, in full words, or else the null's first. RepalignError where the null has it not."""
    how = str(nulls.Search.parse((null.searches or ("studentised",))[0] if search is None else search))
    if null.searches and how not in null.searches:
        expected = " or ".join(null.searches)
        raise RepalignError(f"null {null.name!r} has no layer search {how!r}", expected=expected, got=search)
    return how


def possible_way(
    measure: Measure, null: nulls.Null, n: int, *, plain: bool, search: str, memory: int
) -> tuple[Way, nulls.Null]:  # fmt: skip
    """`way_of`, refused where what it keeps does not fit into `memory` bytes."""
    way, used = way_of(measure, null, n, plain=plain, search=search)
    if way.states:
        check_memory(measure, n, memory)
    return way, used


def applicable(
    wanted: Sequence[Measure | Group | str], x: Sequence[Representation], y: Sequence[Representation] | None, null: nulls.Null,
    kinds: Mapping[str, str], *, plain: bool, search: str | None, memory: int, limit: float | None, progress: Progress,
    device: str = "cpu",
) -> Chosen:  # fmt: skip
    """Choose every measure that is named, and those measures of groups that apply, for layers of these `kinds`.

    Without a `search`, the studentised maximum or the first that the null allows. RepalignError where a named one does not apply.

    A `limit` that is given holds for every measure, since whoever gives one wants an end: above it few draws are taken, or the
    measure is left out. Without one, measures of groups have `LIMIT`, and one that is named is computed in full, for nobody took
    back what was asked for; that it takes longer is told before it starts. 0 is no limit, for any.
    """
    if limit is not None and not limit >= 0:
        raise RepalignError("a limit is a time", expected="seconds, or 0 for no limit", got=limit)
    how = search_of(null, search)
    n, chosen = x[0].n, Chosen(how)
    asked = [parse_wanted(w) if isinstance(w, str) else w for w in wanted]
    alone = [m for m in asked if isinstance(m, Measure)]
    of_groups = list(dict.fromkeys(m for w in asked if isinstance(w, Group) for m in w.members if m not in alone))
    for measure in (*alone, *of_groups):
        try:
            measure.check(n, f"dataset {x[0].dataset_name!r}", kinds)
            same = [m for m in chosen.how if repr(m) == repr(measure) and m != measure]
            if same:
                got = " and ".join(f"{type(m).__module__}.{type(m).__qualname__}" for m in (same[0], measure))
                expected, remedy = "one name per measure: it is what the table says", "rename one of the classes"
                raise RepalignError(f"two measures are called {measure!r}", expected=expected, got=got, remedy=remedy)
            chosen.how[measure] = possible_way(measure, null, n, plain=plain, search=how, memory=memory)
        except RepalignError as error:
            if measure in alone:
                raise
            chosen.leave_out(measure, error)
    # Of what is named, inner products and what streams are not worth a trial, unless a limit is given.
    free = [m for m in alone if limit is None and (isinstance(m, Bilinear) or chosen.how[m][0].name)]
    tried = [m for m in dict.fromkeys((*alone, *of_groups)) if m in chosen.how and m not in free and limit != 0]
    if tried:
        _try(tried, alone, chosen, x, x if y is None else y, null, limit, progress, device)
    if not chosen.how:
        reasons = "; ".join(f"{e['measure']}: {e['reason']}" for e in chosen.left_out)
        raise RepalignError("no measure applies", expected="at least one that applies to these models", got=reasons)
    return chosen


def _try(
    measures: Sequence[Measure], named: Sequence[Measure], chosen: Chosen, x: Sequence[Representation],
    y: Sequence[Representation], null: nulls.Null, given: float | None, progress: Progress,
    device: str,
) -> None:  # fmt: skip
    """Leave out what takes longer than the limit, by trial; with few draws if all would take longer."""
    limit = LIMIT if given is None else given
    layers = sum(len(r.layers) for r in (*x, *y)) // (2 if y is x else 1)
    cells = sum(len(r.layers) for r in x) * sum(len(r.layers) for r in y) // (2 if y is x else 1)
    first_pair = functools.cache(functools.partial(_first_pair, x, y))  # read once for all measures
    few, slow, long = nulls.Permutations(FEW_DRAWS, null.seed, null.groups), [], []
    for measure in telling(measures, "try measures", progress):
        try:
            a, b = (one.to(device) for one in first_pair(measure.equal_widths))
            measure.check_widths(a.shape[1], b.shape[1])
            # A trial may take what one pair of layers may take at all, with few draws.
            cost = trial(measure, a, b, max(0.1, limit / (1 + FEW_DRAWS)))
        except RepalignError as error:
            if measure not in named:  # of one that is, the comparison itself says what is wrong
                chosen.leave_out(measure, error)
            continue
        way, full = chosen.how[measure]
        taken = cost.taken(measure, layers, cells, full.count(x[0].n), isinstance(null, nulls.Auto) and not way.name)
        within = taken.within(limit)
        if given is None and measure in named:
            within = taken.seconds
            if taken.seconds > limit:
                long.append(taken)
        elif within is None:
            otherwise = "name it to compute it" if given is None else "raise the limit to compute it"
            chosen.leave_out(measure, f"would take about {duration(taken.seconds)} (limit {duration(limit)}); {otherwise}")
            continue
        elif within < taken.seconds:
            chosen.how[measure] = way, few
            slow.append(f"{type(measure).__name__} ({duration(taken.seconds)})")
        chosen.seconds[measure] = within
    for taken in long:
        sentence = taken.sentence(sum(chosen.seconds.values()))
        log.log(logging.WARNING if progress is silent else logging.INFO, "%s", sentence)
        progress("compare", 0, 0, sentence)
    if slow:
        chosen.warnings.append(
            f"{FEW_DRAWS} shuffles each, to stay within {duration(limit)}, for {', '.join(slow)}: their smallest p is "
            f"{1 / (FEW_DRAWS + 1):g}; {'name one' if given is None else 'raise the limit'} for all"
        )


def _first_pair(x: Sequence[Representation], y: Sequence[Representation], equal_widths: bool) -> tuple[Given, Given]:
    """The last layers of the first and the last model, or a pair of one width where that is asked for and there is one."""
    ends = [as_layer(r.load(r.layers[-1]), f"{r.name}, layer {r.layers[-1]}") for r in (x[0], y[-1])]
    if equal_widths and ends[0].shape[1] != ends[1].shape[1]:
        for a in x:
            of_width = dict(zip(a.widths, a.layers, strict=True))
            for b in y:
                for layer, width in zip(b.layers, b.widths, strict=True):
                    if b is not a and width in of_width:
                        return as_layer(a.load(of_width[width])), as_layer(b.load(layer))
    return ends[0], ends[1]


@dataclass(frozen=True)
class Cost:
    """Seconds of preparing one layer and of comparing one prepared pair."""

    layer: float
    pair: float

    @property
    def both(self) -> float:
        return 2 * self.layer + self.pair

    def taken(self, measure: Measure, layers: int, cells: int, n_draws: int, may_be_few: bool) -> Taken:
        """Of all layers and pairs of layers, with all draws and with few."""
        draws = 0 if isinstance(measure, Bilinear) else 1  # of an inner product they cost next to nothing
        full, few = (layers * self.layer + cells * self.pair * (1 + draws * count) for count in (n_draws, FEW_DRAWS))
        return Taken(measure, full, few if may_be_few else None, n_draws)


def trial(measure: Measure, x: Given, y: Given, most: float) -> Cost:
    """Cost of a measure on these layers: tried on ever more of the stimuli, until the next trial would take longer than
    `most` seconds; then what is known goes on growing as it grew.
    """
    n, size, before = len(x), max(SMALLEST_TRIAL, measure.min_n), None
    while True:
        size = min(size, n)
        try:
            tries = 2 if before is None else 1  # a first call may have to load a library
            cost = min((_timed(measure, x[:size], y[:size]) for _ in range(tries)), key=lambda c: c.both)
        except RepalignError:
            if size == n:
                raise
            size = n  # defined with all stimuli, perhaps
            continue
        growth = 4.0 if before is None else min(max(cost.both / before.both, 2.0), 8.0)
        if size == n:
            return cost
        if cost.both * growth > most:
            factor = growth ** math.log2(n / size)
            return Cost(cost.layer * factor, cost.pair * factor)
        size, before = 2 * size, cost


def _timed(measure: Measure, x: Given, y: Given) -> Cost:
    start = time.perf_counter()
    a, b = measure.prepare(x), measure.prepare(y)
    prepared = time.perf_counter()
    measure.closeness_all([a], [b])
    return Cost((prepared - start) / 2, time.perf_counter() - prepared)
