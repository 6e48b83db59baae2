"""Scores of models with the recordings of people, noise ceilings, chance, errors over people and stimuli, and regions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from repalign.experiments.brain_inputs import REGION, rdm_of
from repalign.text import Progress

if TYPE_CHECKING:
    import pandas as pd

    from repalign.layers import RDM
    from repalign.measures import Measure

OVER = ("both", "subjects", "stimuli")
RANKED = frozenset({"spearman", "rho_a", "tau_a", "tau_b"})
RESAMPLED = frozenset({"pearson", "cosine", *RANKED})  # comparisons that are defined with stimuli drawn twice
ALPHA = 0.05  # of the sentences
TIES = 0.1  # the share of tied dissimilarities of a model from which on a sentence warns


# --- means and scores ----------------------------------------------------------------------------


def _on_one_scale(vectors: np.ndarray, compared: str) -> np.ndarray:
    """RDMs (s, N) as they are before their mean is taken: as rsatoolbox's `pool_rdm`."""
    from repalign.measures.numerics.distances import average_ranks

    if compared in RANKED:
        return np.stack([average_ranks(v) for v in vectors])
    if compared.endswith("cosine"):
        return vectors / np.sqrt((vectors**2).mean(1, keepdims=True))
    if compared.endswith("pearson"):
        centred = vectors - vectors.mean(1, keepdims=True)
        return centred / centred.std(1, keepdims=True)
    return vectors


def _pooled(scaled: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means (k, N) of RDMs (s, N) by weights (k, s), moved so that none is below zero, which no centred comparison sees."""
    mean = weights @ scaled
    return mean - np.minimum(mean.min(1, keepdims=True), 0)


def _mean_weights(owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a recording counts in the mean of all people (1, s), and in the mean of all but the person of each (s, s)."""
    sizes = np.bincount(owner)
    each = 1 / sizes[owner]
    others = np.where(owner[:, None] == owner, 0.0, each)
    return each[None] / len(sizes), others / (len(sizes) - 1)


@dataclass(frozen=True, eq=False)
class Data:
    """RDMs of s recordings of P people and of M models, as vectors and as matrices, and what they are compared by."""

    names: list[str]
    models: list[str]
    people: list[str]  # of every recording
    owner: np.ndarray  # (s,) which person, from 0 on
    recorded: np.ndarray  # (s, N)
    predicted: np.ndarray  # (M, N)
    bounds: np.ndarray  # (s + 1, N): the mean of the others for each recording, and the mean of all
    measure: Measure
    compared: str
    n: int

    @classmethod
    def of(
        cls, recordings: Mapping[str, RDM], candidates: Mapping[str, RDM], people: list[str], measure: Measure, compared: str
    ) -> Data:
        from repalign.measures.numerics.distances import upper

        codes: dict[str, int] = {}
        owner = np.array([codes.setdefault(p, len(codes)) for p in people])
        recorded, predicted = (np.stack([upper(r.matrix) for r in some.values()]) for some in (recordings, candidates))
        everyone, others = _mean_weights(owner)
        bounds = _pooled(_on_one_scale(recorded, compared), np.concatenate([others, everyone]))
        n = len(next(iter(recordings.values())))
        return cls(list(recordings), list(candidates), people, owner, recorded, predicted, bounds, measure, compared, n)

    @property
    def to_people(self) -> np.ndarray:
        """(s, P): the mean over the recordings of each person."""
        own = self.owner[:, None] == np.arange(self.owner.max() + 1)
        return own / own.sum(0)

    def states(self, vectors: np.ndarray) -> list[Any]:
        return [self.measure.prepare(rdm_of(v)) for v in vectors]

    def scores(self) -> np.ndarray:
        """(M + 2, s): models, then both ends of the ceiling, with every recording."""
        recorded, bounds = self.states(self.recorded), self.states(self.bounds)
        of_models = self.measure.compare_all(self.states(self.predicted), recorded).numpy()
        lower = [self.measure.compare(bound, one) for bound, one in zip(bounds, recorded, strict=False)]
        return np.vstack([of_models, lower, self.measure.compare_all(bounds[-1:], recorded).numpy()])

    def with_mean(self) -> np.ndarray:
        """(M,): models with the mean RDM of all people, not brought to one scale."""
        mean = self.states(_pooled(self.recorded, _mean_weights(self.owner)[0]))
        return self.measure.compare_all(self.states(self.predicted), mean).numpy()[:, 0]

    def chance(self, draws: int, seed: int) -> np.ndarray:
        """(draws, M): scores with the stimuli of the brains relabelled, all recordings alike."""
        from repalign.measures.measure import DenseRelation
        from repalign.null import Permutations
        from repalign.null.null import Prepared

        a, b = (self.states(v) for v in (self.predicted, self.recorded))
        weights = self.to_people.mean(1)
        if self.compared in RESAMPLED and all(isinstance(s, DenseRelation) for s in b):
            # Scores are inner products with relations of unit norm, so that their mean is that with the mean relation.
            mean: Any = sum(float(w) * s.matrix for w, s in zip(weights, b, strict=True))
            b, weights = [DenseRelation(mean, 1.0)], np.ones(1)
        return Permutations(draws, seed).draws(self.measure, Prepared(a), Prepared(b)) @ weights

    def judged(
        self, over: str, level: float, draws: int, seed: int, progress: Progress, identified: Identified | None
    ) -> dict[str, Any]:
        """Scores, ceilings, chance, errors and differences as tables, and remarks, by the names of `Brain`."""
        import pandas as pd

        from repalign.null.calibration import calibrate, holm

        scores, count = self.scores(), len(self.models)
        people = scores @ self.to_people  # (M + 2, P)
        samples = None if over == "subjects" else self.resampled(draws, seed, progress)
        errors = Errors(people, samples, self.n, self.to_people)
        found = calibrate(people[:count].mean(1), self.chance(draws, seed + 1), alpha=ALPHA)
        own = np.eye(count + 2)
        each = errors.of(own[:count], over, level)
        gap = errors.of(own[count] - own[:count], over, level)
        table = pd.DataFrame(
            {
                "model": self.models, "score": each["value"], "low": each["low"], "high": each["high"], "se": each["se"],
                "chance": found.null_mean, "threshold": found.threshold, "p_chance": found.pvalue,
                "p_chance_holm": holm(found.pvalue), "lower": people[count].mean(), "upper": people[count + 1].mean(),
                "gap": gap["value"], "gap_low": gap["low"], "gap_high": gap["high"], "p_gap": gap["p"],
                "with_mean": self.with_mean(),
            }
        )  # fmt: skip
        order = np.argsort(-table["score"].to_numpy(), kind="stable")
        tables = {
            "pairs": self.pairs(errors, order, over, level),
            "scores": pd.DataFrame(scores[:count][order].T, columns=[self.models[i] for i in order]).assign(
                recording=self.names, subject=self.people, lower=scores[count], upper=scores[count + 1]
            ),
            "errors": self.errors(errors, scores, order),
        }
        if identified is not None:
            tables["regions"] = identified.rows
        first = table.iloc[order].reset_index(drop=True)
        return {"table": first, "tables": tables, "n_people": people.shape[1], "remarks": tuple(self.remarks())}

    def pairs(self, errors: Errors, order: np.ndarray, over: str, level: float) -> pd.DataFrame:
        """A row for every two models, the closer one first."""
        import pandas as pd

        from repalign.null.calibration import benjamini_hochberg, holm

        a, b = (order[k] for k in np.triu_indices(len(order), 1))
        own = np.eye(len(self.models) + 2)
        found = errors.of(own[a] - own[b], over, level)
        rows = pd.DataFrame({"model_a": [self.models[i] for i in a], "model_b": [self.models[i] for i in b]})
        rows = rows.assign(difference=found["value"], **{k: found[k] for k in ("low", "high", "se", "df", "p")})
        return rows.assign(p_holm=holm(found["p"]), p_bh=benjamini_hochberg(found["p"]))

    def errors(self, errors: Errors, scores: np.ndarray, order: np.ndarray) -> pd.DataFrame:
        """Standard errors of each score by what is sampled, and those that recordings as people would give."""
        import pandas as pd

        own = np.eye(len(self.models) + 2)[order]
        rows = {"model": [self.models[i] for i in order]}
        known = [o for o in OVER if o == "subjects" or errors.samples is not None]
        rows |= {f"se_{o}": errors.of(own, o, 0.95)["se"] for o in known}
        return pd.DataFrame(rows).assign(se_recordings=scores[order].std(1, ddof=1) / math.sqrt(scores.shape[1]))

    def remarks(self) -> Iterator[str]:
        """What favours a model for a reason of the measure."""
        if self.compared not in ("spearman", "tau_b"):
            return
        for name, values in zip(self.models, self.predicted, strict=True):
            share = 1 - len(np.unique(values)) / len(values)
            if share > TIES:
                other = "rho_a" if self.compared == "spearman" else "tau_a"
                yield f"{name} predicts ties ({100 * share:.0f} % of its RDM), which this measure favours; {other} does not."

    # --- stimuli drawn with replacement ----------------------------------------------------------

    def resampled(self, draws: int, seed: int, progress: Progress) -> np.ndarray:
        """(draws, M + 2, s): the scores in samples of n stimuli with replacement, pairs of a stimulus with itself left out.

        A pair of stimuli that are drawn a and b times counts a b times.
        """
        from repalign.measures.numerics.distances import dense_ranks

        generator, count, s = np.random.default_rng(seed), len(self.models), len(self.names)
        i, j = np.triu_indices(self.n, 1)
        x, y = np.concatenate([self.predicted, self.bounds]), self.recorded
        if self.compared in RANKED:
            x, y = (np.stack([dense_ranks(v) for v in some]) for some in (x, y))
        needed = np.vstack([np.ones((count, s), bool), np.eye(s, dtype=bool), np.ones((1, s), bool)])
        out = np.empty((draws, count + 2, s))
        for k in range(draws):
            if k % 50 == 0:
                progress("samples of stimuli", k, draws)
            times = np.bincount(generator.integers(self.n, size=self.n), minlength=self.n)
            weights = times[i] * times[j]
            there = np.flatnonzero(weights)
            found = weighted(self.compared, x[:, there], y[:, there], weights[there], needed)
            out[k] = np.vstack([found[:count], found[count:-1].diagonal(), found[-1]])
        progress("samples of stimuli", draws, draws)
        return out


def weighted(compared: str, x: np.ndarray, y: np.ndarray, weights: np.ndarray, needed: np.ndarray | None = None) -> np.ndarray:
    """Similarities (q, s) of RDMs x (q, N) and y (s, N) of which every entry stands there `weights` (N,) times.

    Of ranked comparisons x and y are ranks without gaps, integers from 0 on. nan where one is constant.
    """
    if compared.startswith("tau"):
        return _weighted_tau(compared, x, y, weights, np.ones((len(x), len(y)), bool) if needed is None else needed)
    total = weights.sum()
    if compared in RANKED:
        x, y = (np.stack([_midranks(v, weights) for v in some]) - (total + 1) / 2 for some in (x, y))
    elif compared == "pearson":
        x, y = (v - (v @ weights / total)[:, None] for v in (x, y))
    wx = x * weights
    products = wx @ y.T
    if compared == "rho_a":
        return products * 12 / (total**3 - total)
    norms = np.sqrt(np.outer((wx * x).sum(1), (y * y) @ weights))
    floor = 1e-12 * norms.max(initial=0.0)
    return np.divide(products, norms, out=np.full_like(products, np.nan), where=norms > floor)


def _midranks(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks 1..sum of weights of values with multiplicities, tied ones at their average."""
    sizes = np.bincount(codes, weights)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[codes]


def _weighted_tau(compared: str, x: np.ndarray, y: np.ndarray, weights: np.ndarray, needed: np.ndarray) -> np.ndarray:
    from scipy.stats import kendalltau

    at = np.repeat(np.arange(len(weights)), weights)
    x, y = x[:, at], y[:, at]
    total = len(at)

    def untied(codes: np.ndarray) -> float:
        sizes = np.bincount(codes).astype(float)
        return 1 - float((sizes * (sizes - 1)).sum()) / (total * (total - 1))

    shares = [np.array([untied(v) for v in some]) for some in (x, y)]
    out = np.full(needed.shape, np.nan)
    for q, s in zip(*np.nonzero(needed & (np.outer(*shares) > 0)), strict=True):
        found: Any = kendalltau(x[q], y[s], method="asymptotic")
        out[q, s] = found.statistic * (math.sqrt(shares[0][q] * shares[1][s]) if compared == "tau_a" else 1)
    return out


# --- errors --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Errors:
    """Scores of models and ceilings by person (M + 2, P), and those of samples of stimuli (draws, M + 2, s), if there are any."""

    people: np.ndarray
    samples: np.ndarray | None
    n: int
    to_people: np.ndarray

    def of(self, contrasts: np.ndarray, over: str, level: float) -> dict[str, np.ndarray]:
        """Contrasts (c, M + 2) of mean scores: value, standard error, degrees of freedom, interval, and p of a value of 0.

        t of P - 1 degrees of freedom over people, n - 1 over stimuli, and the fewer of both over both. Those of Satterthwaite would
        give shorter intervals, but p that are too small far out: with four people .016 at a nominal .002 (1,000 simulations).
        """
        from scipy.special import stdtr, stdtrit

        value = contrasts @ self.people.mean(1)
        variance, df = self._variances(contrasts, over)
        se = np.sqrt(variance)
        reach = stdtrit(df, (1 + level) / 2) * se
        with np.errstate(divide="ignore", invalid="ignore"):
            p = np.where(se > 0, 2 * stdtr(df, -np.abs(value / se)), np.where(value == 0, 1.0, np.nan))
        return {"value": value, "se": se, "df": df, "low": value - reach, "high": value + reach, "p": p}

    def _variances(self, contrasts: np.ndarray, over: str) -> tuple[np.ndarray, np.ndarray]:
        """The variance of each contrast (c,), and its degrees of freedom.

        Over people V_p = sd^2 / P: what the bootstrap over people gives in all its draws, times P / (P - 1). Over stimuli V_n is
        the variance over samples of stimuli, times n / (n - 1). Over both, drawn together, the interaction of people and stimuli
        counts three times in the bootstrap, so it is taken off (Schuett et al. 2023, in the form for small samples of rsatoolbox):

            V = V_p + V_n - I,  I = n P / ((n - 1) (P - 1)) (B_pn - B_p - B_n) >= 0,  V >= V_p, V_n

        with B the variances of the bootstraps as drawn. rsatoolbox also holds V below B_pn, which few people make less than V_p.
        """
        own = contrasts @ self.people  # (c, P)
        count = own.shape[1]
        of_people = own.var(1, ddof=1) / count
        if over == "subjects" or self.samples is None:
            return of_people, np.full(len(own), count - 1.0)
        samples = np.einsum("cm,kmp->kcp", contrasts, self.samples @ self.to_people)
        scale_n = self.n / (self.n - 1)
        drawn_n = np.nanvar(samples.mean(2), axis=0)
        of_stimuli = drawn_n * scale_n
        if over == "stimuli":
            return of_stimuli, np.full(len(own), self.n - 1.0)
        # Over all draws of people: the mean over them of the variance given a sample of stimuli, and the variance of the means.
        drawn_p = own.var(1) / count
        drawn_both = np.nanmean(samples.var(2), axis=0) / count + drawn_n
        interaction = scale_n * count / (count - 1) * np.maximum(drawn_both - drawn_p - drawn_n, 0)
        variance = np.maximum(of_people + of_stimuli - interaction, np.maximum(of_people, of_stimuli))
        return variance, np.full(len(own), min(count, self.n) - 1.0)


# --- regions -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Identified:
    """Whether recordings are known by their region: `accuracy`, `chance` with shuffled regions, p, and a row per recording."""

    accuracy: float
    chance: float
    p: float
    draws: int
    rows: pd.DataFrame


def identify(labels: Any, recordings: Mapping[str, RDM], measure: Measure, draws: int, seed: int) -> Identified | None:
    """Is a person's region known by the RDMs of other people? None where no person has two, or there is one."""
    from repalign.null import pvalue

    if REGION not in labels or labels["subject"].nunique() < 2 or labels.groupby("subject")[REGION].nunique().max() < 2:
        return None
    states = [measure.prepare(r) for r in recordings.values()]
    similar = measure.compare_all(states, states).numpy()
    owner, region = (labels[c].astype("category") for c in ("subject", REGION))
    people, true = owner.cat.codes.to_numpy(), region.cat.codes.to_numpy()
    taken = identified(similar, people, true)
    generator, right = np.random.default_rng(seed), np.empty(draws)
    for k in range(draws):
        shuffled = true.copy()
        for person in range(people.max() + 1):
            rows = np.flatnonzero(people == person)
            shuffled[rows] = generator.permutation(true[rows])
        right[k] = (identified(similar, people, shuffled) == shuffled).mean()
    accuracy = float((taken == true).mean())
    rows = labels.assign(identified=[region.cat.categories[t] for t in taken], correct=taken == true)
    return Identified(accuracy, float(right.mean()), float(pvalue(accuracy, right)), draws, rows)


def identified(similar: np.ndarray, people: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The region that each recording is taken for: that of the nearest mean over the recordings of other people.

    similar (s, s) are inner products of recordings: |x - mean|^2 = |x|^2 - 2 mean_b similar(x, b) + mean_ab similar(a, b).
    Source: Lin & Kriegeskorte 2023, whose code takes the nearest centroid, a person left out.
    """
    out, of = np.zeros(len(people), int), region[:, None] == np.arange(region.max() + 1)
    for person in np.unique(people):
        others, own = people != person, people == person
        members = of[others].astype(float)
        sizes = members.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            members /= sizes
        inside = np.einsum("ar,ab,br->r", members, similar[np.ix_(others, others)], members)
        near = 2 * similar[np.ix_(own, others)] @ members - inside
        out[own] = np.where(sizes > 0, near, -np.inf).argmax(1)
    return out
