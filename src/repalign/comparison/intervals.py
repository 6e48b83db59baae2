"""Confidence intervals over stimuli, for a score and for the difference of two scores that share data.

Stimuli are the sampled units, and the estimand is E[s_n]: the mean of the measure over fresh samples of the same n.
Rows are never drawn with replacement: a duplicated row is its own nearest neighbour and a block in every Gram matrix.
Both methods compute the measure afresh on subsets of rows, prepare and compare, and read a variance off the spread.

What each variance estimates. Let J units (stimuli, or groups of them) be drawn independently, and let v_r be the part
of Var(s_n) of Hoeffding order r (r = 1: a mean over units; r = 2: over pairs; neighbour counts have all orders).

* Jackknife: two replicates of G - 1 of G blocks share all but one, so Var - Cov = sum v_r r / (G - 1) at large G, and
  the variance times its factor gives sum r v_r >= Var: not too short on average (Efron & Stein 1981; up to the step from
  n (G - 1) / G rows to n), and exact for r = 1.
* Halves, split at random into (S, S'): s(S) and s(S') share nothing, so E (s(S) - s(S'))^2 / 4 = Var(s_{n/2}) / 2 for
  every order. That is Var(s_n) where the variance falls as 1/n, as for r = 1; where it falls faster the interval is too
  wide: v_2 ~ 1/n^2 counts twice, and neighbour counts vary less as they shrink with n. For r = 1 it is the rule of
  Wu (1990) for subsets of m of n rows, whose factor m / (n - m) is 1 at m = n/2; taking halves in pairs removes what
  even orders add to the spread of single subsets.

Gallery size. With k fixed, mutual k-NN on fewer rows is higher (its chance level alone is k / (n - 1)). Replicates are
compared with each other and never with the full sample, so a shift that is common to them drops out, and subtracting a
chance level or scaling k would change nothing at equal sizes but the noise. Where groups make sizes differ, weights by
size remove the linear part of the shift (jackknife). The estimand is E[s_n] at this n and k, so intervals are centred
at the full-sample score and not moved by `bias`, which has no meaning for such a measure and is nan.

Sources: Efron & Stein 1981, Ann. Stat. 9:586; Busing, Meijer, van der Leeden 1999, Stat. Comput. 9:3 (unequal groups);
Wu 1990, Ann. Stat. 18:1438; Politis, Romano, Wolf 1999, Subsampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repalign.comparison.alignment import ENDS, Alignment, with_ends
from repalign.comparison.preprocess import Preprocess
from repalign.comparison.streaming import paired_layers
from repalign.comparison.ways import check_memory
from repalign.errors import RepalignError, choose
from repalign.layers import Given
from repalign.measures import Measure, parse_measure
from repalign.null import Null, Search
from repalign.representation import DEFAULT_MEMORY, Representation
from repalign.text import Progress, silent, telling

N_GROUPS = 20
N_SPLITS = 20


@dataclass(frozen=True)
class Interval:
    """A confidence interval over stimuli: statistic -+ t std_error, not cut to the range of the measure.

    statistic : the score, or the difference of two, on all rows.
    low, high : the ends; std_error : estimated standard deviation of `statistic` over samples of n stimuli.
    level : nominal coverage of E[s_n]; df : degrees of freedom of the t quantile.
    method : "jackknife" or "subsample"; n : stimuli; n_units : what left together, n without groups.
    n_replicates : how many subsets the measure was computed on.
    bias : estimate of E[s_n] - s_infinity, supposing it falls as 1/n; nan for a measure with a fixed number k of
        neighbours, whose score falls with n by construction. The interval is not moved by it.
    scores : of a difference, the two scores. pvalue : of a difference, two-sided, from t = statistic / std_error; None for a score.

    All but the counts are nan where the measure is undefined on the data or on a replicate (a constant layer).
    """

    statistic: float
    low: float
    high: float
    std_error: float
    level: float
    method: str
    n: int
    n_units: int
    n_replicates: int
    df: int
    bias: float
    pvalue: float | None = None
    scores: tuple[float, float] | None = None

    @property
    def corrected(self) -> float:
        """statistic - bias: the estimate of the score at unlimited n."""
        return self.statistic - self.bias


def score_interval(
    x: Any, y: Any, measure: Measure | str, *, method: str = "jackknife", n_groups: int | None = None,
    n_splits: int | None = None, groups: Iterable[Hashable] | None = None, level: float = 0.95, seed: int = 0,
    progress: Progress = silent,
) -> Interval:  # fmt: skip
    """The score of two paired layers with a confidence interval over stimuli.

    Parameters
    ----------
    x, y : arrays (n, d1) and (n, d2), numpy or torch, an `RDM` or a `Kernel`, or pairs (representation, layer name).
    measure : a `Measure`, or its text such as "mutual_knn(k=10)".
    method : "jackknife": rows (or whole groups) are dealt at random into n_groups blocks of nearly equal size, each left
        out once; t with G - 1 df. "subsample": n_splits random splits into two halves; t with n_splits df, or one
        less than the number of units if that is smaller: shorter for neighbour measures, for which the jackknife's
        standard error is 1.3 to 1.75 times the true one. "auto": the right one for the measure, its `interval`; the jackknife
        where half of the rows are too few, or units fewer than splits. See the module, and docs/intervals.md for coverage.
    n_groups : blocks of the jackknife, 20 if not given; every unit is a block if there are fewer units.
    n_splits : splits of "subsample", 20 if not given.
    groups : one label per row; rows of a label leave together. For stimuli that are not independent, such as
        captions of one image: without it the interval is too short.
    level : nominal coverage. seed : of the blocks or splits.

    Layers are taken as fixed: after a search for the best pair the interval does not cover the search, and is centred
    too high. Near independence scores such as debiased CKA are not normal and the interval is too wide by about
    sqrt(2); ask the null (`repalign.null`) whether there is alignment at all, and the interval how much.

    Raises RepalignError for arrays that do not pair, unknown methods, parameters of the other method, fewer than two
    units, and subsets that are too small for the measure.

    >>> x = np.random.default_rng(0).standard_normal((200, 4))
    >>> found = score_interval(x, x[:, :3], "cka")
    >>> found.low < found.statistic < found.high, found.n_replicates
    (True, 20)
    """
    measure = parse_measure(measure) if isinstance(measure, str) else measure
    arrays = paired_layers((x, y), "xy", measure)
    return _interval(arrays, measure, _plan(measure, len(arrays[0]), method, n_groups, n_splits, groups, level, seed), progress)


def difference_interval(
    reference: Any, first: Any, second: Any, measure: Measure | str, *, method: str = "jackknife",
    n_groups: int | None = None, n_splits: int | None = None, groups: Iterable[Hashable] | None = None,
    level: float = 0.95, seed: int = 0, names: tuple[str, str, str] = ("reference", "first", "second"),
    progress: Progress = silent,
) -> Interval:  # fmt: skip
    """s(reference, first) - s(reference, second) with an interval and a p-value: is the reference closer to first?

    Both scores are computed on the same subsets, so what they share (the reference, the stimuli) cancels as it does in
    the difference itself; two separate intervals that overlap say nothing about it. Parameters, what is left out of
    account and errors as in `score_interval`, which call the three by their `names`; `pvalue` is two-sided, for
    E[difference] = 0 at this n. Of a distance a negative difference says that the reference is closer to first.

    A measure may favour one side for its width or its noise alone (biased CKA does; mutual k-NN and debiased CKA have
    the same chance level for both).

    >>> x = np.random.default_rng(0).standard_normal((200, 8))
    >>> difference_interval(x, x[:, :6], x[:, :2], "cka").pvalue < 0.001
    True
    """
    measure = parse_measure(measure) if isinstance(measure, str) else measure
    arrays = paired_layers((reference, first, second), names, measure)
    return _interval(arrays, measure, _plan(measure, len(arrays[0]), method, n_groups, n_splits, groups, level, seed), progress)


def with_intervals(
    alignment: Alignment, x: Representation, y: Representation, method: str, null: Null, *,
    preprocess: Preprocess | None = None, progress: Progress = silent,
) -> Alignment:  # fmt: skip
    """A result of two models, with the interval at the best pair of layers of every measure whose score is defined.

    Whole groups change places in the null because their stimuli are not independent: they leave the sample together, too. The ends
    stand in the columns low and high of the rows of pairs of models; the run's `intervals` says how they were found.

    Raises RepalignError for a search whose score is of more than one pair of layers.
    """
    units = null.groups.labels if null.groups is not None and null.groups.shuffle == "whole" else None
    layers = [(preprocess or dict)({name: r.load(name) for name in r.layers}) for r in (x, y)]
    found = []
    for row in alignment.best().to_dict("records"):
        if Search.parse(row["search"]).aggregate != "max":
            raise RepalignError(
                "an interval is of one pair of layers", expected="the search 'studentised' or 'raw'", got=row["search"],
                remedy="leave the interval out, or search for the best pair of layers",
            )  # fmt: skip
        if row["statistic"] == row["statistic"]:
            best = [side[row[f"layer_{name}"]] for name, side in zip("xy", layers, strict=True)]
            one = score_interval(*best, row["measure"], method=method, groups=units, seed=null.seed, progress=progress)
            about = {k: getattr(one, k) for k in ("statistic", "low", "high", "level", "method", "n_replicates")}
            about = {k: None if v != v else v for k, v in about.items()}
            found.append({k: row[k] for k in (*ENDS, "layer_x", "layer_y")} | about)
    run = {**alignment.run, "intervals": found}
    return Alignment(with_ends(alignment.table, run), run, alignment.draws)


# --- which rows stay, and what the replicates say ------------------------------------------------


def units_of(n: int, groups: Iterable[Hashable] | None) -> np.ndarray:
    """The unit of every row, (n,) integers from 0: the row itself, or its group."""
    if groups is None:
        return np.arange(n)
    labels: list[Hashable] = groups.tolist() if isinstance(groups, np.ndarray | Tensor) else list(groups)
    if len(labels) != n:
        raise RepalignError("groups do not fit the stimuli", expected=f"{n} labels, one per stimulus", got=len(labels))
    missing = next((i for i, label in enumerate(labels) if label is None or label != label), None)
    if missing is not None:
        raise RepalignError("a row has no group", expected="a label for every row", got=f"nothing in row {missing}")
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(label, len(codes)) for label in labels])


def halves_of(units: np.ndarray, n_splits: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of random halves of the units, in order within each half."""
    generator, count = np.random.default_rng(seed), int(units.max()) + 1
    for _ in range(n_splits):
        first = np.isin(units, generator.permutation(count)[: count // 2])
        yield np.flatnonzero(first), np.flatnonzero(~first)


def _count(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise RepalignError(f"{name} is not a count", expected=f"a whole number, {least} or more", got=repr(value))
    return int(value)


@dataclass(frozen=True)
class _Plan:
    """Subsets of rows, and how the scores on them become a variance and a bias."""

    method: str
    level: float
    n_units: int
    df: int
    subsets: list[np.ndarray]
    estimate: Callable[[float, np.ndarray, np.ndarray, int], tuple[float, float]]


def _plan(
    measure: Measure, n: int, method: str, n_groups: int | None, n_splits: int | None, groups: Iterable[Hashable] | None,
    level: float, seed: int,
) -> _Plan:  # fmt: skip
    units = units_of(n, groups)
    n_units = int(units.max()) + 1
    if choose("method", method, CHOICES) == "auto":
        method = measure.interval if n // 2 >= measure.min_n and n_units >= N_SPLITS else "jackknife"
    if not 0 < level < 1:
        raise RepalignError("level is not a probability", expected="0 < level < 1, such as 0.95", got=repr(level))
    unused, value = ("n_splits", n_splits) if method == "jackknife" else ("n_groups", n_groups)
    if value is not None:
        expected = "n_groups with 'jackknife', n_splits with 'subsample'"
        raise RepalignError(f"method {method!r} has no {unused}", expected=expected, got=f"{unused}={value}")
    if n_units < 2:
        raise RepalignError("one unit has no spread", expected="two or more stimuli or groups", got=f"{n} rows in one")
    if method == "jackknife":
        blocks = min(_count("n_groups", N_GROUPS if n_groups is None else n_groups, 2), n_units)
        # The rows that stay when each block of units is left out; blocks differ by one unit at most.
        block = np.empty(n_units, dtype=np.int64)
        block[np.random.default_rng(seed).permutation(n_units)] = np.arange(n_units) % blocks
        stay = [np.flatnonzero(block[units] != b) for b in range(blocks)]
        return _Plan(method, level, n_units, blocks - 1, stay, jackknife)
    splits = _count("n_splits", N_SPLITS if n_splits is None else n_splits, 1)
    subsets = [rows for both in halves_of(units, splits, seed) for rows in both]
    return _Plan(method, level, n_units, min(splits, n_units - 1), subsets, halves)


def jackknife(statistic: float, replicates: np.ndarray, sizes: np.ndarray, n: int) -> tuple[float, float]:
    """Variance and bias from replicates on `sizes` of n rows, each row left out once (Busing et al. 1999).

    With h = n / (n - size): variance = mean (h s - (h - 1) s_g - s_J)^2 / (h - 1), bias = sum s_g size / n - (G - 1) s =
    s - s_J. For blocks of one size these are (G - 1)/G sum (s_g - mean)^2 and (G - 1) (mean - s).
    """
    h = n / (n - sizes)
    bias = float((sizes / n * replicates).sum() - (len(replicates) - 1) * statistic)
    pseudo = h * statistic - (h - 1) * replicates
    return float(np.mean((pseudo - (statistic - bias)) ** 2 / (h - 1))), bias


def halves(statistic: float, replicates: np.ndarray, sizes: np.ndarray, n: int) -> tuple[float, float]:
    """Variance and bias from pairs of replicates on two halves of the n rows each.

    variance = mean over splits of (s - s')^2 m m' / n^2; bias = mean of (s_m - s) m / (n - m), with 1/n behaviour.
    """
    pairs, m = replicates.reshape(-1, 2), sizes.reshape(-1, 2)
    variance = np.mean((pairs[:, 0] - pairs[:, 1]) ** 2 * m.prod(axis=1) / n**2)
    return float(variance), float(np.mean((replicates - statistic) * sizes / (n - sizes)))


METHODS = ("jackknife", "subsample")
CHOICES = ("auto", *METHODS)


def _interval(arrays: list[Given], measure: Measure, plan: _Plan, progress: Progress) -> Interval:
    """The score of two layers, or the first of three with the second less that with the third, on all rows and on every subset."""
    from scipy.special import stdtr, stdtrit

    n, sizes = len(arrays[0]), np.array([len(rows) for rows in plan.subsets])
    check_memory(measure, n, 4 * DEFAULT_MEMORY, "use MutualKNN, or fewer stimuli")
    if sizes.min() < measure.min_n:
        raise RepalignError(
            f"a subset is too small for {measure!r}",
            expected=f"{measure.min_n} rows or more in each of {len(plan.subsets)} subsets",
            got=f"{sizes.min()} rows with method {plan.method!r}",
            remedy="use more stimuli, more groups with 'jackknife', or a smaller k where the measure has one",
        )

    def scores(rows: Tensor | None) -> list[float]:
        first, *others = (measure.prepare(x if rows is None else x[rows.to(x.device)]) for x in arrays)
        return [measure.compare(first, other) for other in others]

    on_all = scores(None)
    statistic = on_all[0] - sum(on_all[1:])
    replicates = np.empty(len(sizes))
    for i, rows in enumerate(telling(plan.subsets, "interval", progress)):
        one, *other = scores(torch.from_numpy(rows))
        replicates[i] = one - sum(other)
    variance, bias = plan.estimate(statistic, replicates, sizes, n)
    error = math.sqrt(variance)
    reach = float(stdtrit(plan.df, (1 + plan.level) / 2)) * error
    p = float(2 * stdtr(plan.df, -abs(statistic) / error)) if error else 1.0 if statistic == 0 else math.nan
    return Interval(
        statistic, statistic - reach, statistic + reach, error, plan.level, plan.method, n, plan.n_units, len(sizes), plan.df,
        bias=math.nan if measure.n_neighbors else bias,
        **({"pvalue": p, "scores": (on_all[0], on_all[1])} if len(on_all) == 2 else {}),
    )  # fmt: skip
