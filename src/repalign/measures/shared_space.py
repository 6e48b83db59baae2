"""Measures of two sets of vectors in one space, such as images and captions of a contrastive model.

Does a row find its partner, how far apart do the two lie, how narrow is each, and what do shifts along the gap do?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.layers import as_features, check_paired
from repalign.measures.measure import Batched, Features, Local, Measure, Summary, as_count, as_folds, as_seed, parameter
from repalign.measures.numerics.precision import full_precision, sum_of_unit_rows
from repalign.measures.numerics.rows import blocks, unit_resolution, unit_rows, widen
from repalign.measures.numerics.search import Embedded


class _SharedSpace(Measure):
    """A measure of vectors by their directions."""

    family: ClassVar[str] = "shared_space"
    equal_widths: ClassVar[bool] = True
    unchanged_by: ClassVar[frozenset[str]] = frozenset({"isotropic_scale", "row_scale"})
    smallest_n: ClassVar[int] = 1


class _Separation(_SharedSpace):
    """A distance between two sets, whichever row belongs to which."""

    closer_is_higher: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 2.0)


@dataclass(frozen=True, eq=False)
class Relabelled(Features):
    """Unit rows that stay where they are, and the order in which they are read; `norm` is 0 where all are alike."""

    order: Tensor = None  # type: ignore[assignment]  # (n,): row i is values[order[i]]

    def permute(self, p: Tensor) -> Self:
        return replace(self, order=self.order[p])


@dataclass(frozen=True)
class RetrievalRecall(_SharedSpace, Local, Batched):
    """Recall at k: the share of queries whose partner is among the k nearest of the other side, by cosine.

    s = share of i for which y_i is among the k rows of Y with the largest cosine to x_i. Where the partner ties with others
    for the last places it counts with the chance that it gets one.

    Parameters
    ----------
    k : how many are retrieved.
    direction : "x to y" (queries x, gallery y), "y to x", or "both", the mean of the two (symmetric).

    Shapes (n, d) twice. Range [0, 1]; chance k / n. Invariant to the scale of every row. nan if all rows of one side are
    alike. Raises RepalignError unless n >= k.

    Source: R@k as in Radford et al. 2021 (CLIP, arXiv 2103.00020). Cosines in float64; those that rounding cannot tell apart
    are tied, where common code gives ties to whichever sorts last.

    >>> RetrievalRecall()([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [1.0, 3.0]])
    1.0
    """

    k: int = parameter(1, as_count)
    direction: str = parameter("x to y", choose, ("x to y", "y to x", "both"))

    cost: ClassVar[str] = "n d per layer, n^2 d per pair, n per relabelling of it"
    aliases: ClassVar[tuple[str, ...]] = ("retrieval_recall", "recall_at_k")
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def min_n(self) -> int:
        return max(2, self.k)


    def prepare(self, x: Tensor) -> Relabelled:
        embedded = Embedded(x, "cosine")
        norm = 0.0 if embedded.is_constant else 1.0
        return Relabelled(embedded.rows, norm, torch.arange(len(x), device=embedded.rows.device))

    def compare_all(self, a: Sequence[Relabelled], b: Sequence[Relabelled]) -> Tensor:
        scores = torch.empty(len(a), len(b), dtype=torch.float64)
        # Relabellings of one layer share its rows, and so all chances of a hit: one product for all of them.
        for i, s in enumerate(a):
            by_rows: dict[int, list[int]] = {}
            for j, t in enumerate(b):
                by_rows.setdefault(id(t.values), []).append(j)
            for together in by_rows.values():
                orders = torch.stack([b[j].order for j in together])
                scores[i, together] = self._recall(s, b[together[0]].values, orders).cpu()
        return self.scale(scores, a, b)

    def _recall(self, s: Relabelled, gallery: Tensor, orders: Tensor) -> Tensor:
        """Scores of one layer with relabellings (m, n) of another."""
        partner = torch.empty_like(orders)  # of the stored row r of s: the stored row of the other
        partner[:, s.order] = orders
        if self.direction == "x to y":
            return _hits(s.values, gallery, partner, self.k)
        back = partner.argsort(dim=1)
        if self.direction == "y to x":
            return _hits(gallery, s.values, back, self.k)
        return (_hits(s.values, gallery, partner, self.k) + _hits(gallery, s.values, back, self.k)) / 2


def _hits(queries: Tensor, gallery: Tensor, partner: Tensor, k: int) -> Tensor:
    """Mean over queries of the chance that row partner[m, i] of the gallery is among the k nearest of query i, (m,)."""
    n = len(queries)
    slack = unit_resolution(queries.shape[1], torch.float64)
    total = torch.zeros(len(partner), dtype=torch.float64, device=queries.device)
    for block in blocks(n, 4 * 8 * n):
        with full_precision():
            cosines = queries[block] @ gallery.T
        last = cosines.topk(k, dim=1).values[:, -1:]  # (r, 1) the k-th largest
        above = (cosines > last + slack).sum(dim=1, keepdim=True)
        tied = (cosines >= last - slack).sum(dim=1, keepdim=True) - above
        own = cosines.gather(1, partner[:, block].T)  # (r, m)
        share = ((k - above) / tied).expand_as(own)
        chance = torch.where(own > last + slack, 1.0, torch.where(own >= last - slack, share, 0.0))
        total += chance.sum(dim=0)
    return total / n


@dataclass(frozen=True)
class ModalityGap(_Separation):
    """Modality gap: the distance between the centres of two sets of unit vectors in one space.

    s = |mean_i x_i / |x_i| - mean_i y_i / |y_i||, a distance.

    Shapes (n, d) and (m, d): which row belongs to which does not matter. Range [0, 2]. Invariant to the scale of every row.
    A zero row counts as the zero vector. A gap says little alone: few dimensions may carry it, and retrieval may not suffer
    (see `ModalitySeparability`, `RetrievalRecall`).

    Source: Liang et al. 2022, "Mind the gap" (arXiv 2203.02053), section 4.

    >>> ModalityGap()([[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [0.0, 1.0]]) == 2**0.5
    True
    """

    cost: ClassVar[str] = "n d per layer, d per pair"
    aliases: ClassVar[tuple[str, ...]] = ("modality_gap",)


    def prepare(self, x: Tensor) -> Summary:
        return Summary(len(x), sum_of_unit_rows(x)[0] / len(x))

    def compare(self, a: Summary, b: Summary) -> float:
        return float(torch.linalg.vector_norm(a.values - b.values))


@dataclass(frozen=True)
class ConeEffect(_Separation):
    """Cone effect: the difference between the mean cosines within two spaces.

    s = |c(X) - c(Y)|, a distance, with c the mean cosine of two different rows (see `cone_effect`): near 1 all vectors lie
    in one narrow cone.

    Shapes (n, d1) and (m, d2): which row belongs to which does not matter. Range [0, 2]. Invariant to orthogonal maps,
    column order and the scale of every row.

    Source: Liang et al. 2022, "Mind the gap" (arXiv 2203.02053), section 2; the difference of two sides is ours.

    >>> ConeEffect()([[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [1.0, 0.0]])
    1.0
    """

    cost: ClassVar[str] = "n d per layer, 1 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("cone_effect", "cone_effect_difference")
    equal_widths: ClassVar[bool] = False
    smallest_n: ClassVar[int] = 2
    unchanged_by: ClassVar[frozenset[str]] = frozenset({"orthogonal", "permutation", "isotropic_scale", "row_scale"})

    def prepare(self, x: Tensor) -> Summary:
        return Summary(len(x), _mean_cosine(x).cpu())

    def compare(self, a: Summary, b: Summary) -> float:
        return float((a.values - b.values).abs())


def cone_effect(x: Any) -> float:
    """The mean cosine of two different rows of x (n, d): (|sum of unit rows|^2 - n) / (n (n - 1)).

    Near 1 all vectors lie in one narrow cone; 0 for directions that cancel. A zero row has cosine 0 with all others.
    Raises RepalignError unless n >= 2. Source: Liang et al. 2022 (arXiv 2203.02053), section 2.

    >>> cone_effect([[1.0, 0.0], [0.0, 5.0]])
    0.0
    """
    x = as_features(x)
    ConeEffect().check(len(x))
    return float(_mean_cosine(x))


def _mean_cosine(x: Tensor) -> Tensor:
    total, own = sum_of_unit_rows(x)  # the diagonal: 1 for every row that is not zero
    return (total.square().sum() - own) / (len(x) * (len(x) - 1))


@dataclass(frozen=True)
class PairedCosine(_SharedSpace):
    """Mean cosine between paired rows of one space.

    s = (1 / n) sum_i cos(x_i, y_i).

    Shapes (n, d) twice. Range [-1, 1]. Invariant to the scale of every row. A zero row has cosine 0. A common direction of
    both sides raises it, paired or not: compare it with its chance level.

    Source: Liang et al. 2022 (arXiv 2203.02053); the alignment term of Wang & Isola 2020 (arXiv 2005.10242) on unit rows is
    2 - 2 s.

    >>> PairedCosine()([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0]])
    0.5
    """

    cost: ClassVar[str] = "n d per layer, n d per pair"
    aliases: ClassVar[tuple[str, ...]] = ("paired_cosine", "mean_cosine")
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)


    def prepare(self, x: Tensor) -> Features:
        return Features(unit_rows(x).to(x.dtype))

    def compare(self, a: Features, b: Features) -> float:
        return float((a.values * b.values).sum(dtype=torch.float64)) / a.n


@dataclass(frozen=True)
class ModalitySeparability(_Separation):
    """Linear separability of two sets of unit vectors: the held-out accuracy of telling which set a row is from.

    s = mean over the two sets of the share of held-out unit rows that a classifier trained on the others assigns rightly,
    over folds of the rows of each set. A distance: at .5 the two cannot be told apart.

    Parameters
    ----------
    method : "logistic", regression with scikit-learn's default penalty, the sets weighted alike; or "gap", along the
        difference of the two means, at the middle between them.
    folds : parts that the rows of each set are dealt into, at random but in an order made from their values, so that the
        order in which rows come does not matter.
    seed : of the deal.

    Shapes (n, d) and (m, d): which row belongs to which does not matter. Range [0, 1]; about .5 for two samples of one
    distribution, and below for a set against itself, where the held-out row stands in the other set. Invariant to the
    scale of every row. Raises RepalignError if either has fewer rows than folds.

    Source: the separability of Liang et al. 2022 (arXiv 2203.02053) and of later work on the gap, with rows held out.

    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).standard_normal((2, 50, 8))
    >>> ModalitySeparability()(x + 3, y - 3)
    1.0
    """

    method: str = parameter("logistic", choose, ("logistic", "gap"))
    folds: int = parameter(5, as_folds)
    seed: int = parameter(0, as_seed)

    cost: ClassVar[str] = "n d per layer, some 30 n d per fold and pair"
    aliases: ClassVar[tuple[str, ...]] = ("modality_separability",)
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def min_n(self) -> int:
        return self.folds


    def prepare(self, x: Tensor) -> Summary:
        """Unit rows in the order of their values, so that folds do not depend on the order of the stimuli."""
        rows = widen(unit_rows(x)).cpu()
        order = np.lexsort(rows.numpy().T[::-1])
        return Summary(len(x), rows[torch.from_numpy(order.copy())])

    def compare(self, a: Summary, b: Summary) -> float:
        of_a, of_b = (self._folds(s.n) for s in (a, b))
        right = [0.0, 0.0]
        for fold in range(self.folds):
            train = a.values[of_a != fold], b.values[of_b != fold]
            test = a.values[of_a == fold], b.values[of_b == fold]
            decide = _logistic(*train) if self.method == "logistic" else _along_gap(*train)
            right[0] += float((decide(test[0]) > 0).sum())
            right[1] += float((decide(test[1]) < 0).sum())
        return (right[0] / a.n + right[1] / b.n) / 2

    def _folds(self, n: int) -> Tensor:
        """Which fold each row is in, (n,); the same for both sides where they have the same n."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(n, generator=generator) % self.folds


def _along_gap(x: Tensor, y: Tensor) -> Any:
    """Which side of the middle between the two means rows are on."""
    centre_x, centre_y = x.mean(dim=0), y.mean(dim=0)
    return lambda rows: (rows - (centre_x + centre_y) / 2) @ (centre_x - centre_y)


def _logistic(x: Tensor, y: Tensor) -> Any:
    from sklearn.linear_model import LogisticRegression

    side = torch.cat([torch.ones(len(x)), torch.zeros(len(y))]).numpy()
    model = LogisticRegression(class_weight="balanced", max_iter=10_000, tol=1e-8)
    model.fit(torch.cat([x, y]).numpy(), side)
    return lambda rows: torch.from_numpy(model.decision_function(rows.numpy()))


class ShiftCurve(NamedTuple):
    """One entry per shift: how far, the gap that is left (negative once the two have passed each other), the loss."""

    deltas: np.ndarray
    gaps: np.ndarray
    losses: np.ndarray


def shift_curve(x: Any, y: Any, deltas: Sequence[float], temperature: float = 0.01) -> ShiftCurve:
    """Shift two sets of unit vectors along their gap and see what becomes of the gap and of the contrastive loss.

    With u the unit vector from the mean of the unit rows of y to that of x, the rows are moved to x_i - (delta / 2) u and
    y_i + (delta / 2) u, and made unit vectors again. The gap is the distance of the new means, with the sign of their
    difference along u. The loss is that of CLIP: the mean of both cross-entropies, rows to columns and columns to rows, of
    cosines divided by `temperature`, the partner being right.

    Parameters
    ----------
    x, y : paired arrays (n, d).
    deltas : how far; 0 leaves the gap as it is, -1 to 1 is usual.
    temperature : above 0; trained models have 0.01, and there the loss is least near the gap that they have.

    Raises RepalignError for unpaired or different widths, and if there is no gap to move along.
    Source: Liang et al. 2022, "Mind the gap" (arXiv 2203.02053), section 4.2.

    >>> x, y = np.random.default_rng(0).standard_normal((2, 50, 8)) + 1.0
    >>> y[:, 0] -= 3
    >>> shift_curve(x, y, [0.0, 0.5]).gaps.round(3)
    array([0.744, 0.291])
    """
    x, y = as_features(x, "x"), as_features(y, "y")
    check_paired(len(x), len(y))
    ModalityGap().check_widths(x.shape[1], y.shape[1])
    if not temperature > 0:
        raise RepalignError("temperature is not above 0", expected="temperature > 0", got=repr(temperature))
    x, y = unit_rows(x), unit_rows(y)
    gap = x.mean(dim=0) - y.mean(dim=0)
    if not float(torch.linalg.vector_norm(gap)) > 0:
        expected = "two sets of unit vectors with different means"
        raise RepalignError("there is no gap to move along", expected=expected, got="equal means")
    along = gap / torch.linalg.vector_norm(gap)
    gaps, losses = [], []
    for delta in deltas:
        moved_x, moved_y = unit_rows(x - delta / 2 * along), unit_rows(y + delta / 2 * along)
        left = moved_x.mean(dim=0) - moved_y.mean(dim=0)
        gaps.append(math.copysign(float(torch.linalg.vector_norm(left)), float(left @ along)))
        losses.append(_clip_loss(moved_x, moved_y, temperature))
    return ShiftCurve(np.array(deltas, dtype=float), np.array(gaps), np.array(losses))


def _clip_loss(x: Tensor, y: Tensor, temperature: float) -> float:
    with full_precision():
        logits = x @ y.T / temperature
    own = logits.diagonal()
    return float(((logits.logsumexp(dim=1) + logits.logsumexp(dim=0)) / 2 - own).mean())
