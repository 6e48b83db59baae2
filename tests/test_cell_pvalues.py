"""p-values of cells, held against the law over relabellings itself: mixtures, clusters, hubs, counts, one-hot features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from repalign import null as nulls
from repalign.measures import CKA, MEASURES, parse_measure
from repalign.measures.measure import Bilinear, as_features, in_roles
from repalign.null.calibration import snap_ties
from repalign.null.moments import Law, bound

Design = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def shared(rows: dict[int, float], elsewhere: dict[int, float] | None = None) -> Design:
    """Independent Gaussian data, some rows multiplied; in y the same rows, or those of `elsewhere`."""

    def make(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        x, y = rng.standard_normal((2, n, 16))
        for side, scaled in ((x, rows), (y, rows if elsewhere is None else elsewhere)):
            for row, times in scaled.items():
                side[row] *= times
        return x, y

    return make


def both(one: Callable[[int, np.random.Generator], np.ndarray]) -> Design:
    return lambda n, rng: (one(n, rng), one(n, rng))


def cluster(n: int, rng: np.random.Generator, size: int) -> np.ndarray:
    return 0.3 * rng.standard_normal((n, 8)) + 8.0 * (np.arange(n) < size)[:, None]


def labels(n: int, rng: np.random.Generator, kinds: int) -> np.ndarray:
    return np.eye(kinds)[rng.integers(kinds, size=n)]


def decaying(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((n, 32)) / np.arange(1, 33) ** 0.5


# Laws that are mixtures, or far from any gamma: {name: design}.
MIXTURES: dict[str, Design] = {
    "one shared outlier": shared({7: 30.0}),
    "a mild one": shared({7: 8.0}),
    "outliers at two stimuli": shared({3: 10.0}, {8: 10.0}),
    "two shared": shared({3: 12.0, 4: 8.0}),
    "two exchanged": shared({3: 12.0, 4: 8.0}, {3: 8.0, 4: 12.0}),
    "heavy tails": both(lambda n, rng: rng.standard_cauchy((n, 16))),
    "a small cluster in both": both(lambda n, rng: cluster(n, rng, 4)),
    "two halves": both(lambda n, rng: cluster(n, rng, n // 2)),
}
# Laws that a gamma describes.
PLAIN: dict[str, Design] = {
    "gaussian": shared({}),
    "decaying spectra": both(decaying),
    "wide": both(lambda n, rng: rng.standard_normal((n, 200))),
    "one-hot against gaussian": lambda n, rng: (labels(n, rng, 3), rng.standard_normal((n, 16))),
}
OTHERS: dict[str, Design] = {
    "outlier in one": shared({3: 50.0}, {}),
    "graded": both(lambda n, rng: rng.standard_normal((n, 16)) * np.exp(0.4 * rng.standard_normal((n, 1)))),
    "one-hot": both(lambda n, rng: labels(n, rng, 8)),
    "duplicates": both(lambda n, rng: np.repeat(rng.standard_normal((n // 3 + 1, 16)), 3, axis=0)[:n]),
    "rare events": both(lambda n, rng: 1.0 * (rng.random((n, 30)) < 0.1)),
    "one column": both(lambda n, rng: np.exp(rng.standard_normal((n, 1)))),
}
SOME = ("CKA()", "CKA(estimator='biased')", "MutualKNN(k=3)", "RSA()", "SquaredCCA()", "SquaredDistanceCorrelation()")


class Case:
    """A measure on one design: what the closed form says, and the law over relabellings by brute force."""

    def __init__(self, measure: Bilinear, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> None:
        self.measure, self.rng, self.n = measure, rng, len(x)
        self.null = nulls.Moments(nulls.Permutations(99))
        self.a, self.b = (self.null.prepare(measure, [measure.prepare(as_features(v))]) for v in (x, y))
        self.law: Law = self.null.law(measure, self.a, self.b)
        self.trusted = bool(self.law.trusted[0, 0])

    def by_law(self, observed: np.ndarray, alpha: float = 0.05) -> nulls.Calibration:
        """The closed form, trusted or not."""
        return nulls.calibrate_by_moments(observed, *self.law[:-1], alpha=alpha, s_max=self.measure.s_max)

    def draws(self, count: int, fixed: int | None = None) -> np.ndarray:
        """Scores of random relabellings, those that keep one stimulus in its place on request."""
        p = self.rng.permuted(np.tile(np.arange(self.n), (count, 1)), axis=1)
        if fixed is not None:  # what went to it and what it went to change places
            rows = np.arange(count)
            at = (p == fixed).argmax(axis=1)
            p[rows, at], p[:, fixed] = p[:, fixed].copy(), fixed
        one, other = (in_roles(s.states, i)[0].matrix.double() for i, s in enumerate((self.a, self.b)))
        places = (p[:, :, None] * self.n + p[:, None]).reshape(count, -1)  # of other[q][:, q] in other
        inner = torch.cat([other.reshape(-1)[q] @ one.reshape(-1) for q in torch.from_numpy(places).split(100)])
        scores = self.measure.scale(inner[:, None, None], self.a.states, self.b.states)  # type: ignore[arg-type]
        return self.measure.closeness(scores).numpy()[:, 0, 0]

    def threshold(self, alpha: float) -> float:
        observed = self.measure.closeness_all(self.a.states, self.b.states).numpy()
        return float(self.by_law(observed, alpha).threshold[0, 0])

    def cell(self) -> tuple[float, str]:
        judged = self.null.judge(self.measure, self.a, self.b)
        return float(judged.cells.pvalue[0, 0]), str(judged.cells_by[0, 0])


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("n", [40, 200])
def test_a_mixture_is_judged_by_draws(name, n):
    rng = np.random.default_rng(n)
    for measure in ("CKA()", "CKA(estimator='biased')"):
        case = Case(parse_measure(measure), *MIXTURES[name](n, rng), rng)  # type: ignore[arg-type]
        assert not case.trusted, measure
        p, by = case.cell()
        assert by == "permutation" and p >= 1 / 100


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_law_is_judged_in_closed_form(name):
    rng = np.random.default_rng(5)
    for n in (60, 200):
        for measure in SOME[:2] + SOME[3:4]:
            case = Case(parse_measure(measure), *PLAIN[name](n, rng), rng)  # type: ignore[arg-type]
            assert case.trusted and case.cell()[1] == "moments", (measure, n)


@pytest.mark.parametrize("name", [*MIXTURES, *PLAIN, *OTHERS])
def test_the_closed_form_keeps_its_level_wherever_it_is_trusted(name):
    """Over 2,000 relabellings of one data set: the share above the threshold at .05, .01, .002, and what chance adds to it."""
    rng = np.random.default_rng(11)
    x, y = ({**MIXTURES, **PLAIN, **OTHERS})[name](32, rng)
    for measure in SOME:
        case = Case(parse_measure(measure), x, y, rng)  # type: ignore[arg-type]
        if not case.trusted:
            continue
        draws = case.draws(2000)
        for alpha in (0.05, 0.01, 0.002):
            threshold = case.threshold(alpha)  # which rounding alone does not pass: some scores no relabelling changes
            share = float((snap_ties(np.array(threshold), draws) > threshold).mean())
            assert share <= 1.1 * alpha + 4 * (alpha / 2000) ** 0.5, (measure, alpha)


@pytest.mark.parametrize("measure", [m for m in MEASURES if issubclass(m, Bilinear)], ids=lambda m: m.__name__)
def test_no_cell_is_far_below_the_relabellings_that_keep_an_outlier_in_its_place(measure):
    """One relabelling in n does: a cell cannot have less than the share of those that reach its score, divided by n."""
    for times in (5.0, 30.0):
        rng = np.random.default_rng([3, int(times)])
        highest: tuple[float, Case] | None = None
        for _ in range(6):  # the data set that looks most aligned
            case = Case(measure(), *shared({7: times})(60, rng), rng)
            z = float(((case.measure.closeness_all(case.a.states, case.b.states).numpy() - case.law.mean) / case.law.sd)[0, 0])
            if np.isfinite(z) and (highest is None or z > highest[0]):
                highest = z, case
        assert highest is not None
        case = highest[1]
        observed = float(case.measure.closeness_all(case.a.states, case.b.states)[0, 0])
        share = float((case.draws(300, fixed=7) >= observed * (1 - 1e-9)).mean())
        assert case.cell()[0] >= share / 60 / 3


def test_counts_are_met_half_an_edge_lower():
    """Mutual 3-NN has 9 shared edges by chance: without it 3.9 % are thought to be 4.9 %."""
    rng = np.random.default_rng(1)
    case = Case(parse_measure("MutualKNN(k=3)"), *rng.standard_normal((2, 60, 8)), rng)  # type: ignore[arg-type]
    draws, edge = case.draws(6000), 1 / 180
    least = np.quantile(draws, 0.95) + edge  # an attainable score near the 5 % level
    assert case.trusted
    found = case.by_law(np.array([[least]]))
    true = float((draws >= least - edge / 4).mean())
    assert found.pvalue[0, 0] == pytest.approx(true, rel=0.12)
    plain = nulls.calibrate_by_moments(np.array([[least]]), *case.law[:3])
    assert plain.pvalue[0, 0] < 0.88 * true


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_score_that_no_relabelling_changes_has_p_one(dtype):
    """n < d: the projection onto the columns is that onto everything."""
    x, y = np.random.default_rng(0).standard_normal((2, 40, 90)).astype(dtype)
    case = Case(parse_measure("SquaredCCA()"), x, y, np.random.default_rng(0))  # type: ignore[arg-type]
    assert case.cell()[0] == 1.0


def test_p_and_threshold_agree_whatever_the_kurtosis():
    rng = np.random.default_rng(4)
    shape = (40, 50)
    skewness = rng.uniform(-1, 1, shape)
    for alpha in (0.05, 1e-3, 1e-6):
        found = nulls.calibrate_by_moments(
            rng.standard_normal(shape) * 8,
            np.zeros(shape),
            np.ones(shape),
            skewness,
            kurtosis=rng.uniform(-0.5, 3, shape),
            rest=rng.uniform(-0.1, 0.05, shape),
            step=0.2,
            alpha=alpha,
            s_max=1e9,
        )
        assert np.array_equal(found.calibrated > 0, found.pvalue <= alpha)


def test_the_tail_is_that_of_the_kurtosis_and_never_below_what_is_unexplained():
    from scipy import stats

    z, kurtosis, rest = np.array([3.0, 9.0, 30.0]), np.full(3, 1.5), np.full(3, 0.01)
    zero, one, skewness = np.zeros(3), np.ones(3), np.full(3, 0.5)
    found = nulls.calibrate_by_moments(z, zero, one, skewness, kurtosis=kurtosis, s_max=99.0)
    assert found.pvalue == pytest.approx(stats.pearson3(1.0).sf(z), rel=1e-9)
    found = nulls.calibrate_by_moments(z, zero, one, skewness, rest=rest, s_max=99.0)
    assert found.pvalue == pytest.approx(np.maximum(stats.pearson3(0.5).sf(z), 0.01 / z**4), rel=1e-9)


def test_the_bound_holds_for_a_law_that_attains_it():
    """Mass 1 / 100 at one far value: nothing that knows four moments can say less."""
    values = np.r_[np.zeros(99), 1.0]
    z = (values - values.mean()) / values.std()
    law = Law(*(np.array([v]) for v in (0.0, 1.0, (z**3).mean(), (z**4).mean() - 3, 0.0)), None, np.zeros(1), np.zeros(1, bool))
    assert 0.01 <= bound(law.kurtosis, np.array([z[-1]]))[0] <= 0.0105
    assert bound(law.kurtosis, np.array([-1.0]))[0] == 1.0


def test_a_law_of_one_point_and_a_rare_value_is_drawn():
    """Biased CKA of rows that are all alike but one: its law is a point and a rare value, of mass 1 / n."""
    x = np.zeros((30, 3))
    x[4] = 1.0
    case = Case(CKA(estimator="biased"), x, x[::-1].copy(), np.random.default_rng(0))
    p, by = case.cell()
    assert by == "permutation" and p > 0.01


def heavy(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x, y = rng.standard_t(3, (2, n, 16))
    x[7], y[7] = 5 * x[7], 5 * y[7]
    return x, y


@pytest.mark.parametrize("measure", [m for m in MEASURES if issubclass(m, Bilinear)], ids=lambda m: m.__name__)
def test_no_single_stimulus_makes_a_p_small(measure):
    """A stimulus that is out in both spaces is an agreement of one: p is that of the relabellings that leave it there."""
    for seed, design in enumerate((heavy, shared({7: 5.0}), shared({7: 20.0}), MIXTURES["two shared"])):
        rng = np.random.default_rng([seed, 60])
        case = Case(measure(), *design(60, rng), rng)
        if not case.trusted or not case.law.sd[0, 0] > 0:
            continue  # judged by draws, or undefined
        at = 3 if design is MIXTURES["two shared"] else 7
        level = 0.004
        observed = np.quantile(case.draws(2000, fixed=at), 1 - level)[None, None]
        found = case.by_law(observed)
        assert found.pvalue[0, 0] >= 0.5 * level, seed


def test_a_small_p_of_clean_data_hardly_moves_and_others_not_at_all():
    rng = np.random.default_rng(2)
    for n, most in ((60, 1.5), (400, 1.15)):
        for measure in SOME:
            case = Case(parse_measure(measure), *rng.standard_normal((2, n, 8)), rng)  # type: ignore[arg-type]
            observed = case.law.mean + np.array([[3.0], [1.8]]) * case.law.sd
            found = case.by_law(observed)
            plain = nulls.calibrate_by_moments(observed, *case.law[:3], kurtosis=case.law.kurtosis, s_max=9.0)
            if "KNN" not in measure:  # half an edge
                assert 1.0 <= found.pvalue[0, 0] / plain.pvalue[0, 0] <= most, (measure, n)
                assert found.pvalue[1, 0] == plain.pvalue[1, 0] > 0.01


def test_p_and_threshold_agree_where_a_stimulus_is_in_its_place():
    rng = np.random.default_rng(4)
    shape = (30, 20)
    kept = rng.uniform(-1, 2, (5, *shape)), rng.uniform(0.8, 1.5, (5, *shape))
    zero, one = np.zeros(shape), np.ones(shape)
    for alpha in (0.05, 1e-3):
        found = nulls.calibrate_by_moments(
            rng.standard_normal(shape) * 5, zero, one, rng.uniform(-0.9, 0.9, shape), kept=kept, alpha=alpha, s_max=1e9
        )
        assert np.array_equal(found.calibrated > 0, found.pvalue <= alpha)
