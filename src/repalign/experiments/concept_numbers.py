"""Numbers of linear representations: is a concept, such as plural, one direction between the words of its pairs?

Vectors are those of words, X (V, d). Pair i of a concept is a base and a target: D_i = g(target_i) - g(base_i), u_i = D_i / |D_i|.

Sources: Park, Choe, Veitch 2024 (arXiv 2311.03658 v2), sections 2 to 4, for the causal inner product and its experiments;
Fournier, Dupoux, Dunbar 2020 (arXiv 2010.03446) for the two questions, direction and pairing, that the two nulls answer. The
nulls and chance levels as they stand here are ours. Two departures: Park's figure of "cosines" shows projections, and its control
is random pairs, which any two classes of words beat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from repalign.errors import RepalignError, choose

METRICS = ("causal", "euclid")
LEAST = 1e-10  # of the largest eigenvalue of the covariance: below this its inverse is made of rounding
BLOCK = 8192  # rows of a vocabulary that are in float64 at a time
EXACT_FLIPS, EXACT_PAIRS, EXACT_CONCEPTS = 16, 7, 7  # so many and fewer are gone through in all their orders
ROUNDING = 1e-12  # of the words' own spread: what is no longer is no difference


# --- the metric ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Metric:
    """An inner product of differences of words, a' M b: `root` has root root' = M, so that g(x) = x root is plain again.

    causal: M = Cov(X)^-1, root = Cov^-1/2. euclid: M = I. Means do not enter: differences do not see them.
    condition : largest over smallest eigenvalue of the covariance (nan for euclid).
    """

    name: str
    root: np.ndarray  # (d, d)
    condition: float = math.nan

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.root

    def dual(self, direction: np.ndarray) -> np.ndarray:
        """The vector lam with x . lam = <x, c> / |c| for every x: M c / |c|, to be added to a hidden state."""
        inner = direction @ self.root
        return self.root @ inner / np.linalg.norm(inner)


def covariance(x: np.ndarray) -> np.ndarray:
    """Cov of all rows of x (V, d) with the divisor V, in float64, as (d, d)."""
    n, d = x.shape
    blocks = [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]
    mean = sum((x[b].sum(0, dtype=np.float64) for b in blocks), np.zeros(d)) / n
    total = np.zeros((d, d))
    for b in blocks:
        centred = x[b].astype(np.float64) - mean
        total += centred.T @ centred
    return total / n


def metric(x: np.ndarray, name: str = "causal", *, ridge: float | None = None, what: str = "x") -> Metric:
    """The inner product of a vocabulary x (V, d).

    "causal" is Park's Cov^-1. Theorem 3.3 there leaves a diagonal free, which the experiments take as 1: it is one choice. With a
    ridge, Cov + ridge * (trace / d) * I takes the place of Cov, and values change under linear maps of x.

    >>> x = np.random.default_rng(0).normal(size=(50, 3)) * [1, 2, 3]
    >>> bool(np.allclose(covariance(metric(x)(x)), np.eye(3)))
    True

    Raises RepalignError: another name; V <= d; a smallest eigenvalue below 1e-10 of the largest; a ridge that is not above 0.
    """
    choose("metric", name, METRICS)
    refuse_ridge(ridge)
    d = x.shape[1]
    if name == "euclid":
        return Metric(name, np.eye(d))
    remedy = "give more words, metric euclid, or a ridge, such as ridge 0.01 (of the mean eigenvalue), which is another metric"
    if ridge is None and len(x) <= d:
        raise RepalignError(
            f"{what}: the covariance of its words has no inverse, so there is no causal inner product",
            expected=f"more words than dimensions: above {d:,}", got=f"{len(x):,} words", remedy=remedy,
        )  # fmt: skip
    cov = covariance(x)
    values, vectors = np.linalg.eigh(cov + (0.0 if ridge is None else ridge * np.trace(cov) / d) * np.eye(d))
    if values[0] < LEAST * values[-1] or values[-1] <= 0:
        raise RepalignError(
            f"{what}: the covariance of its words has no inverse, so there is no causal inner product",
            expected=f"a smallest eigenvalue of at least {LEAST:g} of the largest",
            got=f"{values[0]:.3g} of {values[-1]:.3g}", remedy=remedy,
        )  # fmt: skip
    return Metric(name, vectors / np.sqrt(values) @ vectors.T, float(values[-1] / values[0]))


def refuse_ridge(ridge: float | None) -> None:
    """Refuse what is no number above 0."""
    if ridge is not None and not (ridge > 0 and math.isfinite(ridge)):
        raise RepalignError("ridge is out of range", expected="a number above 0, or none", got=ridge)


# --- one concept ---------------------------------------------------------------------------------


def units(differences: np.ndarray) -> np.ndarray:
    """Rows (m, d) of length 1."""
    return differences / np.linalg.norm(differences, axis=-1, keepdims=True)


def offset(differences: np.ndarray) -> float:
    """How much the pairs (m, d) of a concept move in one direction: mean over i != j of u_i . u_j, in [-1/(m-1), 1].

    (|sum u|^2 - m) / (m (m - 1)), a U-statistic: 0 on average for pairs of random directions, whatever m. Needs m >= 2.

    >>> offset(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
    0.3333333333333333
    """
    m = len(differences)
    return float((np.square(units(differences).sum(0)).sum() - m) / (m * (m - 1)))


def leave_one_out(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair against the mean of the others: its cosine (m,), and its projection (m,), in units of the metric.

    The cosine is cos(D_i, mean of D_j, j != i), in [-1, 1]. Park's figure shows the projection, D_i . that mean / its length, where
    long differences count more.
    """
    others = units(differences.sum(0) - differences)
    along = (differences * others).sum(1)
    return along / np.linalg.norm(differences, axis=1), along


@dataclass(frozen=True)
class Chance:
    """A number under a null: its mean and standard deviation, and the right-tailed p of the observed one.

    `draws` is the number of random draws behind p; 0 where all orders were gone through. `least` is the smallest p there can be.
    """

    mean: float
    sd: float
    p: float
    draws: int
    least: float


def _chance(observed: float, drawn: np.ndarray, exact: bool, mean: float | None = None, sd: float | None = None) -> Chance:
    """`drawn` are all orders with the observed one first, or random ones beside it."""
    from repalign.null import pvalue

    others = drawn[1:] if exact else drawn
    mean, sd = float(drawn.mean()) if mean is None else mean, float(drawn.std()) if sd is None else sd
    return Chance(mean, sd, float(pvalue(observed, others)), 0 if exact else len(drawn), 1 / (len(others) + 1))


def sign_flips(differences: np.ndarray, draws: int = 999, seed: int | Sequence[int] = 0) -> Chance:
    """`offset` where base and target of each pair change places at random: do the pairs move in one direction at all?

    Mean 0 and sd = sqrt(2 sum over i != j of (u_i . u_j)^2) / (m (m - 1)), exactly, over all 2^m flips. p is exact for m <= 16, by
    the 2^(m-1) flips that differ, and (1 + count) / (draws + 1) above.
    """
    m, u = len(differences), units(differences)
    products = u @ u.T
    np.fill_diagonal(products, 0.0)
    exact = m <= EXACT_FLIPS
    if exact:  # the first pair stays: turning all of them round changes nothing
        signs = 1.0 - 2.0 * (np.arange(2 ** (m - 1))[:, None] >> np.arange(m - 1) & 1)
        signs = np.concatenate([np.ones((len(signs), 1)), signs], axis=1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (draws, m))
    drawn = ((signs @ products) * signs).sum(1) / (m * (m - 1))
    sd = math.sqrt(2 * np.square(products).sum()) / (m * (m - 1))
    return _chance(float(products.sum() / (m * (m - 1))), drawn, exact, 0.0, sd)


def shuffled_partners(
    base: np.ndarray, target: np.ndarray, draws: int = 999, seed: int | Sequence[int] = 0, exact: int = EXACT_PAIRS
) -> Chance:
    """`offset` where the targets (m, d) change places among the bases (m, d): is it the pairing, or do two classes lie apart?

    The mean is that over all m! orders, in closed form. sd and p are over all of them for m <= `exact`, else over random draws. A
    target that is dealt to an equal base has no direction, and counts as 0.
    """
    m = len(base)
    centre = np.concatenate([target, base]).mean(0)
    words = np.concatenate([target, base]) - centre  # (2m, d)
    lengths = np.stack([np.linalg.norm(target - one, axis=1) for one in base])  # base by target
    spread = np.linalg.norm(words, axis=1).max()
    inverse = np.where(lengths > ROUNDING * spread, 1 / np.maximum(lengths, np.finfo(float).tiny), 0.0)
    if is_exact := m <= exact:
        orders = np.array(list(permutations(range(m))))
    else:
        rng = np.random.default_rng(seed)
        orders = rng.permuted(np.tile(np.arange(m), (draws, 1)), axis=1)
    drawn = _offsets(np.concatenate([np.arange(m)[None], orders]), inverse, words @ words.T)
    return _chance(float(drawn[0]), drawn[1:], is_exact, _mean_shuffled(words[m:], words[:m], inverse))


def _offsets(orders: np.ndarray, inverse: np.ndarray, products: np.ndarray) -> np.ndarray:
    """The offset of each order (k, m): base i is dealt target orders[:, i].

    The sum of unit differences is a weighted sum of words, and its square one of their products (2m, 2m): d has dropped out.
    """
    m = orders.shape[1]
    lengths = inverse[np.arange(m), orders]  # (k, m): one over the length of each difference
    weights = np.zeros((len(orders), 2 * m))
    np.put_along_axis(weights, orders, lengths, 1)
    weights[:, m:] = -lengths
    whole = ((weights @ products) * weights).sum(1)
    return (whole - (lengths > 0).sum(1)) / (m * (m - 1))


def _mean_shuffled(base: np.ndarray, target: np.ndarray, inverse: np.ndarray) -> float:
    """The mean over all m! orders: two bases get each two targets equally often.

    Of the unit U_ik from base i to target k, sum over i != j, k != l of U_ik . U_jl = |all|^2 - sum |rows|^2 - sum |columns|^2
    + the number of U_ik; divided by the m (m - 1) orders of two targets, and by the m (m - 1) pairs of the offset.
    """
    m = len(base)
    rows = inverse @ target - inverse.sum(1)[:, None] * base  # (m, d): sums over targets
    columns = inverse.sum(0)[:, None] * target - inverse.T @ base
    total = np.square(rows.sum(0)).sum() - np.square(rows).sum() - np.square(columns).sum() + (inverse > 0).sum()
    return float(total / (m * (m - 1)) ** 2)


# --- several concepts ----------------------------------------------------------------------------


def cosines(directions: np.ndarray) -> np.ndarray:
    """Cosines between directions (C, d), as (C, C)."""
    unit = units(directions)
    return np.clip(unit @ unit.T, -1, 1)


def off_diagonal(square: np.ndarray) -> np.ndarray:
    """The entries above the diagonal of a (C, C), row by row."""
    return square[np.triu_indices(len(square), 1)]


def random_cosine(d: int) -> float:
    """E|cos| of two random directions in d dimensions: Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)), near sqrt(2 / (pi d)).

    >>> round(random_cosine(2), 6), round(random_cosine(576), 4), round(random_cosine(500) / math.sqrt(2 / (math.pi * 500)), 3)
    (0.63662, 0.0333, 1.001)
    """
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


def random_metric_cosines(directions: np.ndarray, draws: int = 199, seed: int = 0) -> np.ndarray:
    """E|cos| of directions (C, d) under a random positive M = A A', A of d x d standard normal numbers, as (C, C).

    A'c of all c together has the law of L G with L L' the plain products of the directions and G of C x d numbers, so that
    nothing of d x d is made.
    """
    c, d = directions.shape
    orthonormal, upper = np.linalg.qr(directions.T)  # directions = upper.T @ orthonormal.T
    rng, total = np.random.default_rng(seed), np.zeros((c, c))
    for _ in range(draws):
        total += np.abs(cosines(upper.T @ rng.standard_normal((orthonormal.shape[1], d))))
    return total / draws


def overlap(concepts: Sequence[Sequence[tuple[str, str]]]) -> np.ndarray:
    """The cosine that two concepts have for the words that they share alone, as (C, C): were all words independent of each other.

    Each direction is a sum of words with weights +1 / m of targets and -1 / m of bases; it is the cosine of these weights. 0 where
    no word is shared, and where shared ones cancel, as in a crossed design.

    >>> overlap([[("big", "bigger"), ("low", "lower")], [("big", "biggest"), ("low", "lowest")]]).round(2).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    place = {word: i for i, word in enumerate(dict.fromkeys(word for pairs in concepts for pair in pairs for word in pair))}
    weights = np.zeros((len(concepts), len(place)))
    for row, pairs in zip(weights, concepts, strict=True):
        for base, target in pairs:
            row[place[target]] += 1
            row[place[base]] -= 1
    sizes = np.linalg.norm(weights, axis=1, keepdims=True)  # 0 where all cancels
    unit = weights / np.where(sizes > 0, sizes, 1)
    return unit @ unit.T


def apart(shared: np.ndarray) -> list[int]:
    """Concepts none of which overlaps with another, in order: the first of those that do stays."""
    kept: list[int] = []
    for i in range(len(shared)):
        if all(abs(shared[i, k]) < ROUNDING for k in kept):
            kept.append(i)
    return kept


def steering(differences: Sequence[np.ndarray], root: Metric) -> np.ndarray:
    """How one unit of steering along concept k moves the log odds of concept j's pairs, on average, as (C, C): j down, k across.

    differences : (m, d) of each concept, of the unembedding itself. A hidden state h has the log odds h . (x_target - x_base) of
    a pair, so h + t lam has exactly t (x_target - x_base) . lam more, in every context, and no pass is needed. lam = M c / |c|:
    with the causal metric the matrix is the causal Gram matrix of the concepts, over their lengths.
    """
    means = np.stack([some.mean(0) for some in differences])
    return means @ np.stack([root.dual(mean) for mean in means], axis=1)


def align(x: np.ndarray, y: np.ndarray, draws: int = 999, seed: int = 0) -> tuple[float, Chance]:
    """Whether two models keep the same concepts close: Pearson's r of the off-diagonals of two (C, C), in [-1, 1].

    Null: the concepts of one of them change places, in all C! ways for C <= 7, else at random. Needs C >= 3.
    """
    c = len(x)
    exact = c <= EXACT_CONCEPTS
    rng = np.random.default_rng(seed)
    orders = map(np.array, permutations(range(c))) if exact else (rng.permutation(c) for _ in range(draws))
    i, j = np.triu_indices(c, 1)
    fixed, moved = _standard(x[i, j]), np.zeros((c, c))
    moved[i, j] = moved[j, i] = _standard(y[i, j])  # once: in another order the same numbers stand in other places
    drawn = np.array([fixed @ moved[order[i], order[j]] for order in orders])
    r = float(fixed @ moved[i, j])
    return r, _chance(r, drawn, exact)


def _standard(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    size = np.linalg.norm(centred)
    if size <= ROUNDING * np.abs(values).max(initial=1.0):
        raise RepalignError(
            "all pairs of concepts are equally close: there is nothing to correlate", expected="cosines that differ"
        )
    return centred / size


# --- contexts ------------------------------------------------------------------------------------


def auc(base: np.ndarray, target: np.ndarray) -> float:
    """How often a number of `target` (n,) is larger than one of `base` (m,), ties for half; 0.5 is chance.

    >>> auc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    low, high = (np.searchsorted(np.sort(base), target, side=side) for side in ("left", "right"))
    return float((low + high).mean() / (2 * len(base)))


def unified_cosine(states: np.ndarray, word: np.ndarray, root: Metric) -> np.ndarray:
    """Cosines (n,) of differences of hidden states l (n, d) with a direction c of words (d,): l.c / (sqrt(l' M^-1 l) sqrt(c' M c)).

    Hidden states live in the dual space, where M^-1 measures length: Cov under the causal metric, and for euclid the plain cosine.
    """
    lengths = np.linalg.norm(np.linalg.solve(root.root, states.T), axis=0)
    return states @ word / (lengths * np.linalg.norm(root(word)))
