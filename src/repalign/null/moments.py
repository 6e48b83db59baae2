"""Closed-form moments for every cell, a sampler for the search over layers; and `Auto`, which takes them where it can."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from repalign.errors import RepalignError
from repalign.measures.measure import Bilinear, GraphRelation, Measure, State, in_roles
from repalign.null.calibration import TIE_TOLERANCE, Calibration, calibrate, calibrate_by_moments
from repalign.null.cyclic import Cyclic
from repalign.null.graph_sums import InPlace, first_sums, four_moments, in_place, sums_and_leverage, two_moments
from repalign.null.groups import Groups
from repalign.null.null import (
    ONE_SIDE,
    Found,
    Joint,
    Judgement,
    Null,
    Prepared,
    Scored,
    Search,
    Streams,
    Unpaired,
    by_role,
    must_be_bilinear,
)
from repalign.null.permutation import Permutations
from repalign.workers import at_once, each

# Where the closed form is not trusted: what relabellings are for few stimuli, where it is far from normal, and where the
# fourth moment is not that of its law. Of clean data the rest is within -0.1 and 0.01 (n from 60); one outlier in both
# spaces gives 0.05 to 100.
MOMENTS_MIN_N = 20
MOMENTS_MAX_SKEWNESS = 1.0
MOMENTS_REST = (-0.15, 0.02)


class Law(NamedTuple):
    """The law of the closeness of all pairs of layers over all relabellings, (la, lb) each; all but the last are what
    `calibrate_by_moments` takes."""

    mean: np.ndarray
    sd: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray
    rest: np.ndarray  # what the kurtosis has beyond, or lacks of, both that of the gamma law and that of the spectra
    kept: InPlace | None  # the laws where one stimulus stays in its place
    step: np.ndarray  # between two scores that are counts, else 0
    trusted: np.ndarray  # which cells the closed form may judge


@dataclass(frozen=True)
class Moments(Null):
    """Closed-form moments for every cell of a bilinear measure; `sampler` draws for the search over layers.

    Mean, standard deviation, skewness and kurtosis over all n! relabellings are exact (`null.graph_sums`); p-value and
    threshold follow from a gamma law (Pearson type III). A cell is judged by the sampler's draws instead, and the result
    says so, where that law is not known to be right: n < 20, |skewness| > 1, or a kurtosis that neither the skewness nor the
    spectra of the two relations explain. So it is where an outlier may meet an outlier: one relabelling in n leaves a
    stimulus in its place, the score is then many times as wide, and the law is a mixture of the two.
    """

    name: ClassVar[str] = "moments"
    meaning: ClassVar[str] = "exact mean, spread and skewness over all permutations, and the Pearson type III law"
    sampler: Null = field(default_factory=Permutations)  # type: ignore[assignment]

    def check_groups(self, groups: Groups) -> None:
        raise RepalignError(
            "closed-form moments are over all relabellings", expected="a null without groups", got=repr(groups),
            remedy="use null='permutation' with these groups",
        )  # fmt: skip

    @property
    def seed(self) -> int:  # type: ignore[override]
        return self.sampler.seed

    def count(self, n: int) -> int:
        return self.sampler.count(n)

    def at_hand(self, measure: Measure, state: State) -> None:
        for role in by_role([state]) if isinstance(measure, Bilinear) else ():
            _sums_of(*role)

    def prepare(self, measure: Measure, states: Sequence[State]) -> Prepared:
        must_be_bilinear(measure, "closed-form moments do not apply")  # the door: without its sums there is no law
        return self._with_law(self.sampler.prepare(measure, states), states)

    @staticmethod
    def _with_law(prepared: Prepared, states: Sequence[State] | None = None) -> Prepared:
        """The sums of every layer that the law of its scores is made of."""
        states = prepared.states if states is None else states
        most = at_once(len(states), 8 * states[0].n ** 2, states[0].device.type)
        of_layers = [zip(*each(_sums_of, role, most), strict=True) for role in by_role(states)]
        prepared.of_law = [tuple(np.stack(v) for v in of_role) for of_role in of_layers]
        prepared.nbytes += sum(v.nbytes for of_role in prepared.of_law for v in of_role)
        return prepared

    def draws(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> np.ndarray:
        return self.sampler.draws(measure, a, b, streams)

    def scored(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> Scored:
        return self.sampler.scored(measure, a, b, streams)

    def joint(self, streams: Sequence[Streams], n: int) -> Joint:
        return self.sampler.joint(streams, n)

    def law(self, measure: Any, a: Prepared, b: Prepared) -> Law:
        """The law of the closeness of all pairs of layers."""
        (sums_a, out_a), (sums_b, out_b), n = a.of_law[0], b.of_law[-1], a.n
        inner = four_moments(sums_a, sums_b, n, all(s.symmetric for s in (*a.states, *b.states)))  # type: ignore[attr-defined]
        counts = all(isinstance(s, GraphRelation) and s.values is None for s in (*a.states, *b.states))
        none = np.zeros_like(inner.mean)
        ends = (inner.mean, inner.mean + inner.sd, none, none + counts)
        mean, above, none, one = _as_scores(measure, ends, a, b)
        gamma, of_spectra = 1.5 * inner.skewness**2, inner.of_spectra * (1 + 5 / n)  # to leading order; clean data stay below
        more = inner.kurtosis - np.maximum(gamma, of_spectra)
        less = inner.kurtosis - np.minimum(gamma, of_spectra)
        rest = np.maximum(more, 0.0) + np.minimum(less, 0.0)
        kept = in_place(out_a, out_b, inner.sd, n) if n > 2 else None
        trusted = (np.abs(inner.skewness) <= MOMENTS_MAX_SKEWNESS) & (n >= MOMENTS_MIN_N)
        trusted &= (rest >= MOMENTS_REST[0]) & (rest <= MOMENTS_REST[1])
        # Where no relabelling moves the score, its higher moments are those of rounding, and there is nothing to mistrust.
        trusted |= (inner.sd <= TIE_TOLERANCE * np.abs(inner.mean)) & (n >= MOMENTS_MIN_N)
        return Law(mean, above - mean, inner.skewness, inner.kurtosis, rest, kept, one - none, trusted)

    def moments(self, measure: Measure, a: Prepared, b: Prepared) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, standard deviation and skewness of the closeness, each (la, lb)."""
        return self.law(measure, a, b)[:3]

    def judge_cells(
        self, measure: Measure, a: Prepared, b: Prepared, observed: np.ndarray, draws: np.ndarray, alpha: float
    ) -> tuple[Calibration, np.ndarray]:
        law = self.law(measure, a, b)
        cells = calibrate_by_moments(observed, *law[:-1], alpha=alpha, s_max=measure.s_max)
        poor = ~law.trusted
        if poor.any():
            drawn = calibrate(observed[poor], draws[:, poor], alpha=alpha, s_max=measure.s_max)
            for name, values in vars(drawn).items():
                getattr(cells, name)[poor] = values
        return cells, np.where(poor, self.sampler.name, self.name)


def _sums_of(relation: Any) -> tuple[np.ndarray, np.ndarray]:
    """Its `sums_and_leverage`, kept with it."""
    if "sums" not in vars(relation):
        vars(relation)["sums"] = sums_and_leverage(relation)
    return vars(relation)["sums"]


BOUND = "bound"  # in the place of a null's name: a p-value that holds for every law


@dataclass(frozen=True)
class Closed(Moments):
    """Closed-form moments for every cell, and a bound for the search over layers: nothing is drawn where the law is known.

    p of the search is that of its best cell times the number of cells, which holds whatever their dependence, and knows no
    smallest value as that of n draws does.

    bounded : where the law of a cell is not known, it is judged by a bound that holds for every law, and not by draws.
    """

    bounded: bool = False

    def at_hand(self, measure: Measure, state: State) -> None:
        if self.bounded:
            super().at_hand(measure, state)

    def prepare(self, measure: Measure, states: Sequence[State]) -> Prepared:
        """What draws need, and what p-values need beside z, is not there before they are asked for."""
        must_be_bilinear(measure, "closed-form moments do not apply")
        return self._with_law(Prepared(states)) if self.bounded else Prepared(states)

    def scored(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> Scored:
        by = self.sampler
        return by.scored(measure, by.prepare(measure, a.states), by.prepare(measure, b.states), streams)

    def judge_each(
        self, measure: Measure, a: Prepared, b: Prepared, columns: Sequence[slice], *, how: Search | str = "studentised",
        alpha: float = 0.05, streams: Streams = ONE_SIDE, asked: Collection[int] | None = None,
    ) -> list[Judgement]:  # fmt: skip
        """As of every null. Mean and spread of all cells follow from sums over rows; p costs a product of n^3 for each layer."""
        search, observed = Search.parse(how), measure.closeness_all(a.states, b.states).numpy()
        for one in (a, b) if asked is None else (b,):
            if one.of_law is None:
                self._with_law(one)
        whole, which = Calibration.of(observed), range(len(observed))
        if asked is not None:
            whole = Calibration.of(observed, *self._mean_and_sd(measure, a, b))
            found = (_best(whole.at((slice(None), some)), search)[0] for some in columns)
            which = sorted({*asked, *(i for i in found if i >= 0)})
        if not which:  # no score is defined
            return by_bounds(measure, lambda _: whole, lambda *_: math.nan, search, alpha, None, columns)
        some = a if asked is None else self._with_law(Prepared([a.states[i] for i in which]))
        of_some = _Judged(self, measure, some, b, observed[which], columns, streams)

        def at(level: float) -> Calibration:
            cells = of_some.at(level)
            return Calibration(**{name: _put(values, which, getattr(cells, name)) for name, values in vars(whole).items()})

        def most(m: int, i: int, j: int) -> float:
            return of_some.most(m, which.index(i), j)

        by = _put(np.full(observed.shape, self.name, dtype=object), which, of_some.by)
        return by_bounds(measure, at, most, search, alpha, by, columns)

    @staticmethod
    def _mean_and_sd(measure: Any, a: Prepared, b: Prepared) -> tuple[np.ndarray, np.ndarray]:
        sums = np.stack([first_sums(s) for s in in_roles(a.states, 0)])
        symmetric = all(s.symmetric for s in (*a.states, *b.states))  # type: ignore[attr-defined]
        mean, sd = two_moments(sums, b.of_law[-1][0], a.n, symmetric)
        mean, above = _as_scores(measure, (mean, mean + sd), a, b)
        return mean, above - mean


def _put(whole: np.ndarray, rows: Sequence[int], some: np.ndarray) -> np.ndarray:
    out = whole.copy()
    out[list(rows)] = some
    return out


class _Judged:
    """All cells of some layers (la, lb) by closed forms, or by draws or a bound where their law is not known."""

    def __init__(
        self, null: Closed, measure: Measure, a: Prepared, b: Prepared, observed: np.ndarray, columns: Sequence[slice],
        streams: Streams,
    ) -> None:  # fmt: skip
        self.measure, self.observed, self.law = measure, observed, null.law(measure, a, b)
        self.poor = ~self.law.trusted & ~np.isnan(observed)
        self.drawn: np.ndarray | None = None
        if self.poor.any() and not null.bounded:
            self.drawn = np.full((null.sampler.count(a.n), *observed.shape), np.nan)
            for some in columns:  # of few layers, where few need it
                rows, others = (np.flatnonzero(self.poor[:, some].any(axis=k)) for k in (1, 0))
                if len(rows):
                    others = np.arange(observed.shape[1])[some][others]
                    mine = Prepared([a.states[i] for i in rows]), Prepared([b.states[j] for j in others])
                    self.drawn[:, rows[:, None], others] = null.scored(measure, *mine, streams)[1]
        self.by = np.where(self.poor, BOUND if self.drawn is None else null.sampler.name, null.name)

    def at(self, level: Any, i: slice = slice(None), j: slice = slice(None)) -> Calibration:
        """What chance says of cells; several levels stand in the place of one cell."""
        law, observed, s_max = self.law, self.observed[i, j], self.measure.s_max
        kept = None if law.kept is None else InPlace(*(v[:, i, j] for v in law.kept))
        cells = calibrate_by_moments(observed, *(v[i, j] for v in law[:5]), kept, law.step[i, j], alpha=level, s_max=s_max)
        lost = self.poor[i, j]
        if not lost.any():
            return cells
        if self.drawn is None:
            reach = np.minimum(np.sqrt(1 / level - 1), ((law.kurtosis[i, j] + 3) / level) ** 0.25)  # where `bound` is the level
            p = np.where(lost, bound(law.kurtosis[i, j], cells.z), cells.pvalue)
            tau = np.where(lost, law.mean[i, j] + law.sd[i, j] * reach, cells.threshold)
            return Calibration.of(observed, cells.null_mean, cells.null_std, p, tau, s_max)
        found = calibrate(observed[lost], self.drawn[:, i, j][:, lost], alpha=level, s_max=s_max)
        for name in ("pvalue", "threshold", "calibrated"):  # mean and spread are exact as they are
            getattr(cells, name)[lost] = getattr(found, name)
        return cells

    def most(self, m: int, i: int, j: int) -> float:
        """Of scores of one law: the mean of its upper 1/m (Lai and Robbins 1976); where it is not known, of any law."""
        if m == 1:
            return float(self.law.mean[i, j])
        if not self.poor[i, j]:
            levels = (np.arange(32) + 0.5) / 32 / m
            return float(np.mean(self.at(levels, slice(i, i + 1), slice(j, j + 1)).threshold))
        if self.drawn is None:
            return float(self.law.mean[i, j] + self.law.sd[i, j] * math.sqrt(m - 1))
        return float(np.sort(self.drawn[:, i, j])[-math.ceil(len(self.drawn) / m) :].mean())


def _as_scores(measure: Any, inner: Sequence[np.ndarray], a: Prepared, b: Prepared) -> np.ndarray:
    """Inner products (la, lb) as closeness, of which the score is an affine function."""
    return measure.closeness(measure.scale(torch.from_numpy(np.stack(inner)), a.states, b.states)).numpy()


def _best(cells: Calibration, search: Search) -> tuple[int, int]:
    """The layers with the highest score, in units of its own chance level if the search is studentised; -1 if none is defined."""
    height = cells.statistic if search.scale == "raw" or np.isnan(cells.z).all() else cells.z
    if np.isnan(height).all():
        return -1, -1
    i, j = np.unravel_index(np.nanargmax(height), height.shape)
    return int(i), int(j)


def by_bounds(
    measure: Measure, at: Callable[[float], Calibration], most: Callable[[int, int, int], float], search: Search, alpha: float,
    by: np.ndarray | None = None, columns: Sequence[slice] = (slice(None),),
) -> list[Judgement]:  # fmt: skip
    """The cells of two models and the search over them, by bounds and not by draws; of each of several models, as `judge_each`.

    at(level) : what chance says of the closeness of every cell, with its threshold at this level.
    most(m, i, j) : the most that the largest of m scores such as that of cell (i, j) can be on average by chance.
    by : what judged each cell, a bound if not given.

    p and threshold of the search over m cells come from its best cell at level alpha / m, which holds whatever the dependence.
    Its chance level is `most`, the chance level of the search as with draws, and not the lower one of the cell. z counts from
    there in the spread of the cell.
    """
    if search.aggregate != "max":
        raise RepalignError(f"the layer search {search} needs draws", expected="a maximum for streamed measures", got=str(search))
    cells = at(alpha)
    by = np.full(cells.statistic.shape, BOUND, dtype=object) if by is None else by
    strict: dict[int, Calibration] = {}
    out = []
    for some in columns:
        mine, first = cells.at((slice(None), some)), np.arange(cells.statistic.shape[1])[some][0]
        m = mine.statistic.size
        (i, j), whole = _best(mine, search), Calibration.of(np.nan)
        if i >= 0:
            strict.setdefault(m, at(alpha / m))
            score, std, best = mine.statistic[i, j], mine.null_std[i, j], strict[m].at((i, first + j))
            mean = np.float64(most(m, i, first + j))
            whole = Calibration(
                statistic=score, null_mean=mean, null_std=std, z=(score - mean) / std if std > 0 else np.float64(np.nan),
                pvalue=np.minimum(1.0, m * mine.pvalue[i, j]), threshold=best.threshold, calibrated=best.calibrated,
            )  # fmt: skip
        found = Found(i, j, whole.in_direction_of(measure), np.empty(0), np.minimum(1.0, m * mine.pvalue))
        out.append(Judgement(mine.in_direction_of(measure), by[:, some], found, search, str(by[:, some][i, j]), 0))
    return out


def bound(kurtosis: np.ndarray, z: np.ndarray) -> np.ndarray:
    """An upper bound of p that holds for every law with these moments: Cantelli's, or Markov's of the fourth."""
    above = np.where(z > 0, z, np.nan)
    least = np.minimum(1 / (1 + above**2), np.minimum(1.0, (kurtosis + 3) / above**4))
    return np.where(z > 0, least, np.where(np.isnan(z), np.nan, 1.0))


# --- the choice for each measure -------------------------------------------------------------------

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
