"""Chance: the distribution of a score when the pairing of stimuli is broken, and what follows from it.

There is one place where draws are made (a `Null`) and one where they become a p-value, a threshold and
a calibrated score (`calibrate`). Draws hold x fixed and relabel the stimuli of y; one relabelling serves
every layer, so that any aggregate over layers has its own valid null.

Sources: Groeger, Wen, Brbic 2026 (arXiv 2602.14486), algorithms 1 and 2; Hemerik & Goeman 2018 for
groups of permutations; Westfall & Young 1993 for the maximum.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, did_you_mean
from repalign.measures._base import Bilinear, GraphRelation, Measure, Relation, State
from repalign.moments import central_moments, moment_sums

# Draws closer to the observed score than this share of the scale count as equal to it. Float rounding is
# below 1e-6 of the largest score in float32; a null's standard deviation is some hundred times larger.
TIE_TOLERANCE = 1e-6

# Below this n a cyclic group has too few members for a useful p-value (the floor is 1/n).
CYCLIC_MIN_N = 200
# Where the Pearson type III law is not trusted (see `Moments`).
MOMENTS_MIN_N = 20
MOMENTS_MAX_SKEWNESS = 1.0
# Above this n the spectra (2 n^2 bytes per layer or more) would fill the memory of a usual machine.
CYCLIC_MAX_N = 8192


# --- what follows from draws -------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """What chance says about scores of any shape; every field has the shape of the scores.

    `statistic` observed score; `null_mean`, `null_std` of the draws; `z` = (statistic - mean) / std;
    `pvalue` = (1 + #{draw >= observed}) / (K + 1); `threshold` = the ceil((1 - alpha)(K + 1))-th smallest of
    the K draws and the observed score; `calibrated` = max((s - threshold) / (s_max - threshold), 0), so that
    calibrated > 0 exactly where pvalue <= alpha. Undefined scores (nan) are nan throughout.
    """

    statistic: np.ndarray
    null_mean: np.ndarray
    null_std: np.ndarray
    z: np.ndarray
    pvalue: np.ndarray
    threshold: np.ndarray
    calibrated: np.ndarray


def snap_ties(observed: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Set draws that equal the observed score up to rounding to it exactly.

    Where relabelling leaves a score mathematically unchanged, rounding must not decide the p-value.
    """
    scale = np.maximum(np.abs(observed), np.nanmax(np.abs(draws), axis=0, initial=0.0))
    return np.where(np.abs(draws - observed) <= TIE_TOLERANCE * scale, observed, draws)


def pvalue(observed: np.ndarray | float, draws: np.ndarray) -> np.ndarray:
    """Right-tailed add-one p-value, (1 + #{draw >= observed}) / (K + 1), draws along axis 0.

    Ties are decided with a scale-aware tolerance and count as exceedances; so do undefined draws.
    """
    observed, draws = np.asarray(observed, float), np.asarray(draws, float)
    exceed = ~(snap_ties(observed, draws) < observed)
    p = (1 + exceed.sum(axis=0)) / (len(draws) + 1)
    return np.where(np.isnan(observed), np.nan, p)


def threshold(observed: np.ndarray | float, draws: np.ndarray, alpha: float) -> np.ndarray:
    """The order statistic of rank ceil((1 - alpha)(K + 1)) among the draws and the observed score."""
    observed, draws = np.asarray(observed, float), np.asarray(draws, float)
    pool = np.concatenate([snap_ties(observed, draws), observed[None]])
    pool = np.where(np.isnan(pool), np.inf, pool)  # undefined draws count as exceedances here too
    rank = math.ceil((1 - alpha) * len(pool))
    tau = np.partition(pool, rank - 1, axis=0)[rank - 1]
    return np.where(np.isnan(observed), np.nan, tau)


def calibrate(
    observed: np.ndarray | float, draws: np.ndarray, *, alpha: float = 0.05, s_max: float = 1.0
) -> Calibration:
    """Everything that draws say about observed scores; draws has one more, leading, axis."""
    observed, draws = np.asarray(observed, float), np.asarray(draws, float)
    if not 0 < alpha < 1:
        raise RepalignError("alpha is out of range", expected="0 < alpha < 1", got=alpha)
    if draws.shape[1:] != observed.shape or len(draws) < 1:
        raise RepalignError(
            "draws do not fit the observed scores",
            expected=f"shape (K, {', '.join(map(str, observed.shape))}) with K >= 1",
            got=f"shape {draws.shape}",
        )
    mean, std = _nan_moment(draws, np.nanmean), _nan_moment(draws, np.nanstd)
    tau = threshold(observed, draws, alpha)
    return _assemble(observed, mean, std, pvalue(observed, draws), tau, s_max)


def calibrate_by_moments(
    observed: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    skewness: np.ndarray,
    *,
    alpha: float = 0.05,
    s_max: float = 1.0,
) -> Calibration:
    """The same from three moments of the null, by the Pearson type III law (a shifted gamma).

    pvalue = P(G >= z) and threshold = mean + std * G^-1(1 - alpha), G of mean 0, variance 1 and this skewness. A null
    without spread gives p = 1: the pairing does not matter to the score.
    """
    from scipy.stats import pearson3

    spread = std > 0
    z = np.where(spread, (observed - mean) / np.where(spread, std, 1.0), 0.0)
    # No relabelling test gives p = 0: far beyond its support the law underflows.
    tail = np.where(spread, np.maximum(pearson3.sf(np.nan_to_num(z), skewness), np.finfo(float).tiny), 1.0)
    tau = mean + std * pearson3.ppf(1 - alpha, skewness)
    # At the threshold itself rounding must not part the p-value from the gate.
    p = np.where(observed > tau, np.minimum(tail, alpha), np.maximum(tail, np.nextafter(alpha, 1)))
    p = np.where(np.isnan(observed), np.nan, np.where(spread, p, 1.0))
    return _assemble(observed, mean, std, p, np.where(spread, tau, np.maximum(tau, observed)), s_max)


def _assemble(
    observed: np.ndarray, mean: np.ndarray, std: np.ndarray, p: np.ndarray, tau: np.ndarray, s_max: float
) -> Calibration:
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(std > 0, (observed - mean) / std, np.nan)
        room = s_max - tau
        gain = np.clip((observed - tau) / room, 0.0, 1.0)
    # Nothing above the threshold is attainable when the threshold is the maximum itself.
    calibrated = np.where(observed > tau, np.where(room > 0, gain, 1.0), 0.0)
    defined = ~np.isnan(observed)
    fields = (observed, mean, std, z, p, tau, calibrated)
    return Calibration(*(np.where(defined, f, np.nan) for f in fields))


def _nan_moment(draws: np.ndarray, moment: Any) -> np.ndarray:
    """A moment over axis 0 that is nan, without a warning, where every draw is undefined."""
    empty = np.isnan(draws).all(axis=0)
    return np.where(empty, np.nan, moment(np.where(empty, 0.0, draws), axis=0))


def maximum(scores: np.ndarray) -> tuple[float, int, int]:
    """The largest defined score of a layer-by-layer matrix and where it is (first in row order).

    Starts from nothing, so that a matrix of negative scores has a negative maximum and an index.
    (nan, -1, -1) if no score is defined.
    """
    if np.isnan(scores).all():
        return math.nan, -1, -1
    i, j = np.unravel_index(np.nanargmax(scores), scores.shape)
    return float(scores[i, j]), int(i), int(j)


@dataclass(frozen=True)
class Search:
    """The best of all layer pairs, and what chance gives to the best of as many.

    `layer_x`, `layer_y` index the chosen cell (-1 where no score is defined); `calibration` is of the search as a
    whole, in the units of the score at that cell.
    """

    layer_x: int
    layer_y: int
    calibration: Calibration


SEARCHES = ("studentised", "raw")


def search_layers(
    observed: np.ndarray, draws: np.ndarray, *, how: str = "studentised", alpha: float = 0.05, s_max: float = 1.0
) -> Search:
    """Calibrate the maximum over layer pairs with the maximum of every draw.

    observed (la, lb), draws (K, la, lb). `how="raw"` maximises the score itself (Groeger et al. 2026, algorithm 2,
    and Huh et al. 2024): it favours the pair of layers with the highest chance level. `how="studentised"`
    maximises (T - mean) / sd of each cell, both taken over the draws *and* the observed score, which keeps the test
    exact; the null of the maximum is told in the units of the chosen cell, mean + sd * max z.
    """
    if how not in SEARCHES:
        raise RepalignError(f"unknown layer search {how!r}", got=how, remedy=did_you_mean(how, SEARCHES))
    if how == "raw":
        best, i, j = maximum(observed)
        return Search(i, j, calibrate(best, _maximum_draws(draws), alpha=alpha, s_max=s_max))
    pool = np.concatenate([draws, observed[None]])
    mean, sd = _nan_moment(pool, np.nanmean), _nan_moment(pool, np.nanstd)
    scale = _nan_moment(np.abs(pool), np.nanmax)
    varies = sd > TIE_TOLERANCE * scale
    z_pool = np.where(varies, (pool - mean) / np.where(varies, sd, 1.0), np.where(np.isnan(pool), np.nan, 0.0))
    z_pool[:, np.isnan(observed)] = np.nan
    _, i, j = maximum(z_pool[-1])
    if i < 0:
        return Search(i, j, calibrate(math.nan, _maximum_draws(draws), alpha=alpha, s_max=s_max))
    spread = sd[i, j] if varies[i, j] else 0.0
    in_units = mean[i, j] + spread * _maximum_draws(z_pool[:-1])
    return Search(i, j, calibrate(observed[i, j], in_units, alpha=alpha, s_max=s_max))


def _maximum_draws(draws: np.ndarray) -> np.ndarray:
    """The maximum over layers of every draw: (K, la, lb) -> (K,)."""
    flat = draws.reshape(len(draws), -1)
    return np.where(np.isnan(flat).all(axis=1), np.nan, np.max(np.where(np.isnan(flat), -np.inf, flat), axis=1))


# --- many tests at once ------------------------------------------------------------------------


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (family-wise error, any dependence); nan stays nan and is not counted."""

    def adjust(q: np.ndarray) -> np.ndarray:
        order = np.argsort(q, kind="stable")
        stepped = np.maximum.accumulate(q[order] * np.arange(len(q), 0, -1))
        out = np.empty_like(q)
        out[order] = np.minimum(stepped, 1.0)
        return out

    return _over_defined(p, adjust)


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values (false discovery rate); nan stays nan and is not counted."""
    from scipy.stats import false_discovery_control

    return _over_defined(p, false_discovery_control)


def _over_defined(p: Sequence[float] | np.ndarray, adjust: Any) -> np.ndarray:
    p = np.asarray(p, float)
    out = np.full(p.shape, np.nan)
    defined = ~np.isnan(p)
    if defined.any():
        out[defined] = adjust(p[defined])
    return out


def multiplicity_warning(n_draws: int, n_tests: int, alpha: float) -> str | None:
    """A sentence where this many draws can never satisfy Holm over this many tests; else None."""
    needed = math.ceil(n_tests / alpha - 1e-9) - 1
    if n_draws >= needed:
        return None
    return (
        f"{n_draws} draws give p >= {1 / (n_draws + 1):.2g}: Holm over {n_tests} pairs at alpha = {alpha:g} can reject "
        f"nothing with fewer than {needed} draws. Use more draws, or read the Benjamini-Hochberg column."
    )


# --- where draws come from ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prepared:
    """The states of all layers of one model, and what a null keeps beside them."""

    states: tuple[State, ...]
    extra: Any = None
    extra_bytes: int = 0

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for s in self.states) + self.extra_bytes


class Null(ABC):
    """A way to break the pairing. A value: its repr is stored with every result."""

    method: ClassVar[str]
    seed: int

    @abstractmethod
    def count(self, n: int) -> int:
        """How many draws there are at this n."""

    def prepare(self, measure: Measure, states: Sequence[State]) -> Prepared:  # noqa: ARG002
        """Once per model: whatever makes drawing cheap."""
        return Prepared(tuple(states))

    @abstractmethod
    def draws(self, measure: Measure, a: Prepared, b: Prepared) -> np.ndarray:
        """Scores under the null, (K, la, lb) float64; draw k is one relabelling for all layers."""

    def judge(
        self, measure: Measure, a: Prepared, b: Prepared, observed: np.ndarray, *, how: str, alpha: float
    ) -> Judgement:
        """Hold all cells (la, lb) of two models and the search over them against chance."""
        draws = self.draws(measure, a, b)
        return Judgement(
            cells=calibrate(observed, draws, alpha=alpha, s_max=measure.s_max),
            cells_by=np.full(observed.shape, self.method, dtype=object),
            search=search_layers(observed, draws, how=how, alpha=alpha, s_max=measure.s_max),
            search_by=self.method,
            n_draws=len(draws),
        )


@dataclass(frozen=True)
class Judgement:
    """What chance says of a pair of models: of every pair of layers, and of the best of them."""

    cells: Calibration
    cells_by: np.ndarray  # (la, lb) the method that judged each cell
    search: Search
    search_by: str
    n_draws: int


@dataclass(frozen=True)
class Permutations(Null):
    """Random permutations, drawn once from a seed and shared by all layers, models and measures.

    K = `n_draws` independent uniform permutations. Valid for every measure; the p-value's floor is 1/(K + 1).
    """

    method: ClassVar[str] = "permutation"
    n_draws: int = 199
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_draws < 1:
            raise RepalignError("a null without draws", expected="n_draws >= 1", got=self.n_draws)

    def count(self, n: int) -> int:  # noqa: ARG002
        return self.n_draws

    def permutations(self, n: int) -> np.ndarray:
        """The permutations themselves, (K, n)."""
        generator = np.random.Generator(np.random.PCG64(self.seed))
        return np.stack([generator.permutation(n) for _ in range(self.n_draws)])

    def draws(self, measure: Measure, a: Prepared, b: Prepared) -> np.ndarray:
        return permuted_scores(measure, a.states, b.states, self.permutations(a.states[0].n))


def permuted_scores(measure: Measure, a: Sequence[State], b: Sequence[State], permutations: np.ndarray) -> np.ndarray:
    """Scores of a with b relabelled by each of K given permutations (K, n): (K, la, lb) float64."""
    out = np.empty((len(permutations), len(a), len(b)))
    for k, p in enumerate(permutations):
        index = torch.from_numpy(np.ascontiguousarray(p, dtype=np.int64)).to(_device(b[0]))
        out[k] = measure.compare_all(a, [s.permute(index) for s in b]).numpy()
    return out


@dataclass(frozen=True)
class Cyclic(Null):
    """All n - 1 cyclic shifts after one seeded random relabelling, for bilinear measures, by FFT.

    With A, B relabelled by the same random sigma, T(s) = sum_ij A_ij B_{i+s,j+s} for all shifts s at once is a sum
    over wrapped diagonals of circular cross-correlations: one FFT per layer, kept, and one small complex matrix
    product per frequency and pair of models. The shifts form a group, so that p = #{s: T(s) >= T(0)} / n is exact
    (Hemerik & Goeman 2018). Other measures need `Permutations`.
    """

    method: ClassVar[str] = "cyclic"
    seed: int = 0

    def count(self, n: int) -> int:
        return n - 1

    def prepare(self, measure: Measure, states: Sequence[State]) -> Prepared:
        if not isinstance(measure, Bilinear):
            raise RepalignError(
                f"the cyclic null does not apply to {measure!r}",
                expected="a bilinear measure (its states are relations)",
                got=type(measure).__name__,
                remedy="use null='permutation' for this measure, or null='auto' to choose per measure",
            )
        n = states[0].n
        sigma = torch.from_numpy(np.random.Generator(np.random.PCG64(self.seed)).permutation(n))
        spectra = torch.stack([_spectrum(s, sigma.to(_device(s))) for s in states], dim=1)  # type: ignore[arg-type]
        return Prepared(tuple(states), spectra, spectra.nbytes)

    def draws(self, measure: Measure, a: Prepared, b: Prepared) -> np.ndarray:
        assert isinstance(measure, Bilinear)
        n = a.states[0].n
        g = torch.bmm(a.extra.conj(), b.extra.transpose(1, 2))  # (f, la, lb)
        inner = torch.fft.irfft(g, n=n, dim=0)[1:].to("cpu", torch.float64)  # (n - 1, la, lb); shift 0 is the observed
        if all(isinstance(s, GraphRelation) and s.values is None for s in (*a.states, *b.states)):
            inner = inner.round()  # counts of shared edges
        return measure.scale(inner, a.states, b.states).numpy()  # type: ignore[arg-type]


def _spectrum(relation: Relation, sigma: Tensor) -> Tensor:
    """FFT along the wrapped diagonals of a relabelled relation, (n // 2 + 1 frequencies, diagonals).

    A symmetric relation needs only diagonals 0 to n / 2; those in between count twice, which goes into the
    spectrum as sqrt(2) on either side.
    """
    n = relation.n
    matrix = relation.dense()
    matrix = matrix[sigma][:, sigma]
    doubled = torch.cat([matrix, matrix], dim=1).contiguous()  # (n, 2n)
    last = n // 2 if relation.symmetric else n - 1
    diagonals = doubled.as_strided((last + 1, n), (1, 2 * n + 1))  # [d, i] = A[i, (i + d) % n]
    spectrum = torch.fft.rfft(diagonals, dim=1)  # (d, f)
    if relation.symmetric:
        weight = torch.full((last + 1,), math.sqrt(2.0), dtype=matrix.dtype, device=matrix.device)
        weight[0] = 1.0
        if n % 2 == 0:
            weight[-1] = 1.0
        spectrum = spectrum * weight[:, None]
    return spectrum.T.contiguous()


def _device(state: State) -> torch.device:
    for field in ("matrix", "indices", "values"):
        tensor = getattr(state, field, None)
        if isinstance(tensor, Tensor):
            return tensor.device
    return torch.device("cpu")


@dataclass(frozen=True)
class Moments(Null):
    """Closed-form moments for every cell of a bilinear measure; `sampler` draws for the search over layers.

    Mean, standard deviation and skewness over all n! relabellings are exact (`moments`); p-value and threshold follow
    from the Pearson type III law. Where that law is known to be poor (n < 20, or |skewness| > 1: at skewness 2 its .99
    quantile is some 6 % off) a cell is judged by the sampler's draws instead, and the result says so.
    """

    method: ClassVar[str] = "moments"
    sampler: Null

    @property
    def seed(self) -> int:  # type: ignore[override]
        return self.sampler.seed

    def count(self, n: int) -> int:
        return self.sampler.count(n)

    def prepare(self, measure: Measure, states: Sequence[State]) -> Prepared:
        if not isinstance(measure, Bilinear):
            raise RepalignError(
                f"closed-form moments do not apply to {measure!r}",
                expected="a bilinear measure (its states are relations)",
                got=type(measure).__name__,
                remedy="use null='permutation' for this measure, or null='auto' to choose per measure",
            )
        inner = self.sampler.prepare(measure, states)
        symmetric = all(s.symmetric for s in states)  # type: ignore[attr-defined]
        sums = np.stack([moment_sums(s.dense(), symmetric) for s in states])  # type: ignore[attr-defined]
        return Prepared(tuple(states), (inner, sums), inner.nbytes + sums.nbytes)

    def draws(self, measure: Measure, a: Prepared, b: Prepared) -> np.ndarray:
        return self.sampler.draws(measure, a.extra[0], b.extra[0])

    def moments(self, measure: Measure, a: Prepared, b: Prepared) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, standard deviation and skewness of the score, each (la, lb)."""
        assert isinstance(measure, Bilinear)
        symmetric = all(s.symmetric for s in (*a.states, *b.states))  # type: ignore[attr-defined]
        mean, sd, skewness = central_moments(a.extra[1], b.extra[1], a.states[0].n, symmetric)

        def score(inner: np.ndarray) -> np.ndarray:
            return measure.scale(torch.from_numpy(inner), a.states, b.states).numpy()  # type: ignore[arg-type]

        return score(mean), score(mean + sd) - score(mean), skewness

    def judge(
        self, measure: Measure, a: Prepared, b: Prepared, observed: np.ndarray, *, how: str, alpha: float
    ) -> Judgement:
        drawn = super().judge(measure, a, b, observed, how=how, alpha=alpha)
        mean, sd, skewness = self.moments(measure, a, b)
        closed = calibrate_by_moments(observed, mean, sd, skewness, alpha=alpha, s_max=measure.s_max)
        poor = (np.abs(skewness) > MOMENTS_MAX_SKEWNESS) | (a.states[0].n < MOMENTS_MIN_N)
        fields = Calibration.__dataclass_fields__
        cells = Calibration(*(np.where(poor, getattr(drawn.cells, f), getattr(closed, f)) for f in fields))
        by = np.where(poor, self.sampler.method, self.method)
        return replace(drawn, cells=cells, cells_by=by, search_by=self.sampler.method)


@dataclass(frozen=True)
class Auto:
    """The best null for each measure at this n; not a null itself but the choice of one (`resolve`).

    Bilinear: closed-form moments for every cell, and for the search over layers the cyclic group (200 <= n <= 8192)
    or random permutations. Other measures: `n_draws` random permutations for both.
    """

    method: ClassVar[str] = "auto"
    n_draws: int = 199
    seed: int = 0


def resolve(null: Null | Auto, measure: Measure, n: int) -> Null:
    """The null that is really used for this measure at this n; it is what the result names."""
    if isinstance(null, Null):
        return null
    random = Permutations(null.n_draws, null.seed)
    if not isinstance(measure, Bilinear) or n > CYCLIC_MAX_N:
        return random
    return Moments(Cyclic(seed=null.seed) if n >= CYCLIC_MIN_N else random)


NULLS: dict[str, type[Null] | type[Auto]] = {cls.method: cls for cls in (Auto, Permutations, Cyclic)}


def make_null(method: str = "auto", **parameters: Any) -> Null | Auto:
    """A null from its name, with its parameters (`n_draws`, `seed`)."""
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
