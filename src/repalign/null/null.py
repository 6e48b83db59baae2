"""A null breaks the pairing of stimuli; its draws judge all pairs of layers of two models, and the search over them.

Layers differ in their chance level, so the largest raw score is mostly that of the pair of layers with the highest
chance level, in the data and in every draw. Studentised, all cells speak in units of their own null.

Sources: Groeger, Wen, Brbic 2026 (arXiv 2602.14486), algorithm 2 (the raw maximum); Westfall & Young 1993 for the
step-down p-values.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from repalign.errors import RepalignError, did_you_mean
from repalign.measures.measure import Bilinear, Measure, State, TwoRoles, in_roles
from repalign.null.calibration import BLOCK, TIE_TOLERANCE, Calibration, calibrate, step_down
from repalign.null.groups import Groups
from repalign.workers import in_parts

__all__ = [
    "AGGREGATES", "ONE_SIDE", "SCALES", "Found", "Judgement", "Null", "Prepared", "Search", "Streams", "Unpaired", "search_layers",
]  # fmt: skip

SCALES = ("studentised", "raw")
AGGREGATES = ("max", "mean", "top-k", "rows", "columns", "matching")

Cells = tuple[np.ndarray, np.ndarray]  # row and column indices


@dataclass(frozen=True)
class Search:
    """How the layers of two models are searched.

    scale : "studentised", (T - mean) / sd of each cell over its draws and the observed score, or "raw".
    aggregate : "max", the best cell; "mean" of all cells; "top-k", the mean of the `k` best; "rows", the mean over the
        layers of x of their best partner; "columns", the same for the layers of y; "matching", the mean over the best
        one-to-one matching of layers (Hungarian algorithm).

    >>> str(Search.parse("studentised")), str(Search.parse("raw top-5"))
    ('studentised max', 'raw top-5')
    """

    scale: str = "studentised"
    aggregate: str = "max"
    k: int = 1

    @classmethod
    def parse(cls, text: str | Search) -> Search:
        """From words: "studentised", "raw", "studentised top-5", "raw rows", "matching"."""
        if isinstance(text, Search):
            return text
        words = text.split()
        scale = words.pop(0) if words and words[0] in SCALES else SCALES[0]
        name = " ".join(words) or "max"
        top = re.fullmatch(r"top-([1-9]\d*)", name)
        if top:
            return cls(scale, "top-k", int(top[1]))
        if name not in AGGREGATES or name == "top-k":
            known = (*SCALES, *(a for a in AGGREGATES if a != "top-k"), "top-5")
            wanted = "'studentised' or 'raw', and one of max, mean, top-5 (any number), rows, columns, matching"
            raise RepalignError(
                f"unknown layer search {text!r}", expected=wanted, got=text, remedy=did_you_mean(text, known)
            )
        return cls(scale, name)

    def __str__(self) -> str:
        return f"{self.scale} {f'top-{self.k}' if self.aggregate == 'top-k' else self.aggregate}"

    def chosen(self, scores: np.ndarray) -> Cells:
        """The cells of one (la, lb) matrix over which the aggregate is the mean; first in row order among equals."""
        la, lb = scores.shape
        if self.aggregate == "mean":
            return tuple(np.indices(scores.shape).reshape(2, -1))  # type: ignore[return-value]
        if self.aggregate == "rows":
            return np.arange(la), scores.argmax(axis=1)
        if self.aggregate == "columns":
            return scores.argmax(axis=0), np.arange(lb)
        if self.aggregate == "matching":
            from scipy.optimize import linear_sum_assignment

            return linear_sum_assignment(scores, maximize=True)
        count = min(self.k if self.aggregate == "top-k" else 1, scores.size)
        best = np.argsort(-scores, axis=None, kind="stable")[:count]
        return np.unravel_index(best, scores.shape)  # type: ignore[return-value]

    def aggregated(self, scores: np.ndarray) -> np.ndarray:
        """The aggregate of every matrix of a stack (K, la, lb): (K,)."""
        if self.aggregate == "matching":
            found = np.array([self.chosen(s) for s in scores], dtype=np.intp)
            x, y = np.moveaxis(found.reshape(len(scores), 2, min(scores.shape[1:])), 1, 0)
            return scores[np.arange(len(scores))[:, None], x, y].mean(axis=1)
        if self.aggregate == "top-k":
            flat = scores.reshape(len(scores), -1)
            count = min(self.k, flat.shape[1])
            return np.partition(flat, flat.shape[1] - count, axis=1)[:, -count:].mean(axis=1)
        simple: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "max": lambda s: s.max(axis=(1, 2)),
            "mean": lambda s: s.mean(axis=(1, 2)),
            "rows": lambda s: s.max(axis=2).mean(axis=1),
            "columns": lambda s: s.max(axis=1).mean(axis=1),
        }
        return simple[self.aggregate](scores)


@dataclass(frozen=True, eq=False)
class Found:
    """The result of a search, and what chance gives to the same search.

    `layer_x`, `layer_y` index the best of the chosen cells (-1 where no score is defined). `calibration` is of the
    search as a whole: its statistic is the mean raw score over the chosen cells (for "max" the score at the best cell),
    and its null is told in the same unit. `draws` (K,) are that null. `stepdown` (la, lb) is the step-down family-wise
    p-value of every cell.
    """

    layer_x: int
    layer_y: int
    calibration: Calibration
    draws: np.ndarray
    stepdown: np.ndarray


def search_layers(
    observed: np.ndarray,
    draws: np.ndarray,
    *,
    how: Search | str = "studentised",
    alpha: float = 0.05,
    s_max: float = 1.0,
) -> Found:
    """Search the layer pairs and hold the result against the same search in every draw.

    observed (la, lb), draws (K, la, lb), one relabelling of the stimuli per draw for all cells. Studentised, mean and sd
    of a cell are taken over the draws *and* the observed score, so that the observed score is treated as every draw is
    and the test stays exact. Layers whose scores are all undefined are left out.
    """
    search = Search.parse(how)
    defined = ~np.isnan(observed)
    rows, columns = np.flatnonzero(defined.any(axis=1)), np.flatnonzero(defined.any(axis=0))
    stepdown = np.full(observed.shape, np.nan)
    if not len(rows):
        nothing = np.full(len(draws), np.nan)
        return Found(-1, -1, calibrate(math.nan, nothing, alpha=alpha, s_max=s_max), nothing, stepdown)
    within = np.ix_(rows, columns)
    some = draws if defined.all() else draws[:, rows][:, :, columns]
    scores, values, unit = _on_one_scale(observed[within], some, search.scale)
    stepdown[within] = np.where(
        defined[within], step_down(scores.ravel(), values.reshape(len(values), -1)).reshape(scores.shape), np.nan
    )
    chosen = search.chosen(scores)
    best = int(np.argmax(scores[chosen]))
    i, j = int(rows[chosen[0][best]]), int(columns[chosen[1][best]])
    # An affine map with a positive slope: the p-value is that of the aggregate, the unit that of the raw scores.
    raw, aggregate = float(observed[within][chosen].mean()), search.aggregated(scores[None])[0]
    in_units = raw + float(unit[chosen].mean()) * (search.aggregated(values) - aggregate)
    return Found(i, j, calibrate(raw, in_units, alpha=alpha, s_max=s_max), in_units, stepdown)


def _on_one_scale(observed: np.ndarray, draws: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observed scores and draws as the search sees them, and the raw size of one unit of each cell; in new arrays.

    An undefined score is below all others, an undefined draw of a defined score above all others.
    """
    flat, scores = draws.reshape(len(draws), -1).T, observed.flatten()
    values, unit = np.empty(flat.shape), np.empty(scores.shape)  # the draws of a cell side by side

    def work(some: slice) -> None:
        values[some] = flat[some]
        scores[some], unit[some] = _in_units(scores[some], values[some], scale)

    in_parts(work, observed.size, max(1, BLOCK // len(draws)))  # cells whose draws stay in the processor's cache
    return scores.reshape(observed.shape), values.T.reshape(draws.shape), unit.reshape(observed.shape)


def _in_units(observed: np.ndarray, values: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """Observed scores (m,) and units of some cells; their draws (m, K) are changed in place."""
    undefined, raw, unit = np.isnan(observed), observed[:, None], np.ones_like(observed)
    values -= raw  # the observed score is 0, and a tie with it exactly so
    top, low = values.max(axis=1, initial=0.0), values.min(axis=1, initial=0.0)
    lost = None if np.isfinite(top - low).all() else ~np.isfinite(values)
    if lost is not None:
        values[lost] = 0.0
        top, low = values.max(axis=1, initial=0.0), values.min(axis=1, initial=0.0)
    size = np.maximum(np.abs(observed), np.maximum(np.abs(observed + top), np.abs(observed + low)))
    near = np.abs(values) <= (TIE_TOLERANCE * size)[:, None]
    if near.any():
        values[near] = 0.0
    if scale == "studentised":
        pool = values.shape[1] + 1 - (0 if lost is None else lost.sum(axis=1))
        mean = values.sum(axis=1) / pool
        values -= mean[:, None]
        if lost is not None:
            values[lost] = 0.0
        sd = np.sqrt((np.einsum("ij,ij->i", values, values) + mean**2) / pool)
        varies = sd > TIE_TOLERANCE * (np.abs(observed + mean) + np.maximum(top - mean, mean - low))
        unit = np.where(varies, sd, 0.0)
        # A score that no relabelling changes says nothing: it stands at its mean.
        scores = np.where(varies, -mean / np.where(varies, sd, 1.0), 0.0)
        values *= np.where(varies, 1 / np.where(varies, sd, 1.0), 0.0)[:, None]
    else:
        scores = observed
        values += raw
    if lost is not None:
        values[lost] = np.inf
    if undefined.any():
        values[undefined] = -np.inf
    return np.where(undefined, -np.inf, scores), unit


# --- the null ------------------------------------------------------------------------------------

# Which relabelling each model of a pair gets: 0 keeps its stimuli in place. Models of one side share a stream, so that
# their dependence is kept; where all models meet all others, each has its own, and a draw is one relabelling of them all.
Streams = tuple[int, int]
ONE_SIDE: Streams = (0, 1)
Joint = Callable[[np.ndarray, np.ndarray, Sequence[Streams], slice], np.ndarray]
Scored = tuple[np.ndarray, np.ndarray]  # closeness of all cells (la, lb), and its draws (K, la, lb)


class Prepared:
    """The states of all layers of one model, or the facts about them that a score needs, and what a null keeps.

    extra : of the null whose draws judge; `of_law` : of one that knows the law of the scores.
    """

    of_law: Any = None

    def __init__(self, states: Iterable[State], extra: Any = None, extra_bytes: int = 0) -> None:
        self.states, self.extra = tuple(states), extra
        self.n, self.nbytes = self.states[0].n, sum(s.nbytes for s in self.states) + extra_bytes


@dataclass(frozen=True, eq=False)
class Judgement:
    """A pair of models held against chance: every pair of layers, and the search over them.

    Scores are in the measure's own direction; in the draws of the search larger is closer.
    """

    cells: Calibration
    cells_by: np.ndarray  # (la, lb) the method that judged each cell
    found: Found
    search: Search
    search_by: str
    n_draws: int


class Null(ABC):
    """A way to break the pairing. A value: its repr is stored with every result."""

    name: ClassVar[str]
    help: ClassVar[str] = ""  # for those who choose it by name
    meaning: ClassVar[str]  # what the report says of its draws
    searches: ClassVar[tuple[str, ...] | None] = None  # the only layer searches it allows; None for all
    sampler: Null | None = None  # whose draws judge the search over layers, where not its own
    groups: Groups | None = None
    seed: int

    def __post_init__(self) -> None:
        """Refuse a null that could not draw. The one place for it: classes say in `check_groups` what they honour."""
        for name in ("n_draws", "relabellings"):
            if getattr(self, name, 1) < 1:
                raise RepalignError("a null without draws", expected=f"{name} >= 1", got=getattr(self, name))
        groups = (self.sampler or self).groups
        if groups is not None:
            self.check_groups(groups)

    def check_groups(self, groups: Groups) -> None:  # noqa: B027  (most honour all)
        """Refuse groups that these draws cannot keep together."""

    def resolve(self, measure: Measure, n: int, spectra: bool = True) -> Null:  # noqa: ARG002
        """The null that is really used for this measure at this n; it is what the result names.

        `spectra` : whether spectra of n x n numbers may be held for each layer.
        """
        return self if measure.paired else Unpaired()

    @abstractmethod
    def count(self, n: int) -> int:
        """How many draws there are at this n."""

    def at_hand(self, measure: Measure, state: State) -> None:  # noqa: B027
        """Make what `prepare` will ask of a layer that was just prepared and is near the processor; it may be left out."""

    def prepare(self, measure: Measure, states: Sequence[State]) -> Prepared:  # noqa: ARG002
        """Once per model: whatever makes drawing cheap."""
        return Prepared(states)

    @abstractmethod
    def draws(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> np.ndarray:
        """Scores under the null, (K, la, lb) float64; draw k is one relabelling for all layers."""

    def scored(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> Scored:
        """The observed scores (la, lb) and the draws (K, la, lb), larger always closer."""
        return measure.closeness_all(a.states, b.states).numpy(), self.draws(measure, a, b, streams)

    def judge(
        self, measure: Measure, a: Prepared, b: Prepared, *, how: Search | str = "studentised", alpha: float = 0.05,
        streams: Streams = ONE_SIDE,
    ) -> Judgement:  # fmt: skip
        """Hold all cells (la, lb) of two models and the search over them against chance."""
        return self.judge_each(measure, a, b, [slice(None)], how=how, alpha=alpha, streams=streams)[0]

    def judge_each(
        self, measure: Measure, a: Prepared, b: Prepared, columns: Sequence[slice], *, how: Search | str = "studentised",
        alpha: float = 0.05, streams: Streams = ONE_SIDE, asked: Collection[int] | None = None,  # noqa: ARG002
    ) -> list[Judgement]:  # fmt: skip
        """As `judge`, where `b` has the layers of several models, one after another: of each its own search, over its columns.

        asked : the layers of `a` whose cells must have p and threshold, beside those that a search finds; None for all.
        """
        search, by = Search.parse(how), self.sampler or self
        observed, draws = by.scored(measure, a, b, streams)
        cells, cells_by = self.judge_cells(measure, a, b, observed, draws, alpha)
        out = []
        for some in columns:
            found = self.judge_search(measure, observed[:, some], draws[:, :, some], search, alpha)
            whole = replace(found, calibration=found.calibration.in_direction_of(measure))
            within = cells.at((slice(None), some)).in_direction_of(measure)
            out.append(Judgement(within, cells_by[:, some], whole, search, by.name, len(draws)))
        return out

    def judge_cells(
        self, measure: Measure, a: Prepared, b: Prepared, observed: np.ndarray, draws: np.ndarray, alpha: float  # noqa: ARG002
    ) -> tuple[Calibration, np.ndarray]:
        """Hold the closeness of every cell against the draws; also the name of the null that judges each cell."""
        by = np.full(observed.shape, self.name, dtype=object)
        return calibrate(observed, draws, alpha=alpha, s_max=measure.s_max), by

    def judge_search(
        self, measure: Measure, observed: np.ndarray, draws: np.ndarray, search: Search, alpha: float
    ) -> Found:
        """Hold the search over the closeness of all cells against the same search in every draw."""
        return search_layers(observed, draws, how=search, alpha=alpha, s_max=measure.s_max)

    def joint(self, streams: Sequence[Streams], n: int) -> Joint:  # noqa: ARG002
        """What aligns the draws of pairs of models, of all these streams: column k is one relabelling of all models then.

        It takes the scores (P,), the draws (P, K) and the streams of any P of the pairs, and which of the K are wanted. It is asked
        where every model is relabelled; where one side alone is, draw k is one relabelling of all its models as it is.
        """
        return lambda observed, draws, streams, at: draws[:, at]  # noqa: ARG005


@dataclass(frozen=True)
class Unpaired(Null):
    """Scores without a chance level: mean, z, p-value, threshold and calibrated score are nan.

    A measure of two unpaired summaries gives the same number for every relabelling; a p-value of 1 would be read as
    "not aligned", which nothing says.
    """

    name: ClassVar[str] = "none"
    meaning: ClassVar[str] = "no chance level, because no relabelling changes them: they do not know which stimulus is which"
    seed: int = 0
    groups: Groups | None = None

    def count(self, n: int) -> int:  # noqa: ARG002
        return 0

    def draws(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> np.ndarray:  # noqa: ARG002
        return np.empty((0, len(a.states), len(b.states)))

    def judge_cells(
        self, measure: Measure, a: Prepared, b: Prepared, observed: np.ndarray, draws: np.ndarray, alpha: float  # noqa: ARG002
    ) -> tuple[Calibration, np.ndarray]:
        return Calibration.of(observed), np.full(observed.shape, self.name, dtype=object)

    def judge_search(
        self, measure: Measure, observed: np.ndarray, draws: np.ndarray, search: Search, alpha: float  # noqa: ARG002
    ) -> Found:
        i, j, top = -1, -1, np.nan
        if not np.isnan(observed).all():
            i, j = (int(v) for v in np.unravel_index(np.nanargmax(observed), observed.shape))
            top = observed[i, j]
        return Found(i, j, Calibration.of(top), draws.reshape(0), np.full_like(observed, np.nan))


def by_role(states: Sequence[Any]) -> list[Sequence[Any]]:
    """The states in each role that a layer has: in one, or as the first and as the second of two layers."""
    return [in_roles(states, place) for place in range(1 + isinstance(states[0], TwoRoles))]


def must_be_bilinear(measure: Measure, what: str) -> Bilinear:
    """The measure, known to be bilinear; an error that names the way out if it is not."""
    if isinstance(measure, Bilinear):
        return measure
    raise RepalignError(
        f"{what} to {measure!r}", expected="a bilinear measure (its states are relations)", got=type(measure).__name__,
        remedy="use null='permutation' for this measure, or null='auto' to choose per measure",
    )  # fmt: skip
