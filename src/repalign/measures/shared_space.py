"""Measures of two sets of vectors in one space, such as images and captions of a contrastive model: how far apart the two
lie, and how narrow each is. (How well a row finds its partner: `retrieval`.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures.measure import Features, Measure, State, as_features
from repalign.measures.numerics.checks import as_count, check_choice
from repalign.measures.numerics.precision import unit_rows, widen
from repalign.measures.numerics.summary import Summary, sum_of_unit_rows


@dataclass(frozen=True)
class ModalityGap(Measure):
    """Modality gap: the distance between the centres of two sets of unit vectors in one space.

    s = |mean_i x_i / |x_i| - mean_i y_i / |y_i||, a distance.

    Shapes (n, d) and (m, d): which row belongs to which does not matter. Range [0, 2]. Invariant to the scale of every row.
    A zero row counts as the zero vector. A gap says little alone: few dimensions may carry it, and retrieval may not suffer
    (see `ModalitySeparability`, `RetrievalRecall`).

    Source: Liang et al. 2022, "Mind the gap" (arXiv 2203.02053), section 4.

    >>> ModalityGap()([[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [0.0, 1.0]]) == 2**0.5
    True
    """

    family: ClassVar[str] = "shared_space"
    cost: ClassVar[str] = "n d per layer, d per pair"
    aliases: ClassVar[tuple[str, ...]] = ("modality_gap",)
    symmetric: ClassVar[bool] = True
    closer_is_higher: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    equal_widths: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 2.0)

    @property
    def min_n(self) -> int:
        return 1

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"isotropic_scale", "row_scale"})

    def prepare(self, x: Tensor) -> Summary:
        return Summary(len(x), sum_of_unit_rows(x)[0] / len(x))

    def compare(self, a: State, b: State) -> float:
        return float(torch.linalg.vector_norm(cast(Summary, a).values - cast(Summary, b).values))


@dataclass(frozen=True)
class ConeEffect(Measure):
    """Cone effect: the difference between the mean cosines within two spaces.

    s = |c(X) - c(Y)|, a distance, with c the mean cosine of two different rows (see `cone_effect`): near 1 all vectors lie
    in one narrow cone.

    Shapes (n, d1) and (m, d2): which row belongs to which does not matter. Range [0, 2]. Invariant to orthogonal maps,
    column order and the scale of every row.

    Source: Liang et al. 2022, "Mind the gap" (arXiv 2203.02053), section 2; the difference of two sides is ours.

    >>> ConeEffect()([[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [1.0, 0.0]])
    1.0
    """

    family: ClassVar[str] = "shared_space"
    cost: ClassVar[str] = "n d per layer, 1 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("cone_effect", "cone_effect_difference")
    symmetric: ClassVar[bool] = True
    closer_is_higher: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 2.0)

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"orthogonal", "permutation", "isotropic_scale", "row_scale"})

    def prepare(self, x: Tensor) -> Summary:
        self.check_n(len(x))
        return Summary(len(x), _mean_cosine(x).cpu())

    def compare(self, a: State, b: State) -> float:
        return float((cast(Summary, a).values - cast(Summary, b).values).abs())


def cone_effect(x: Any) -> float:
    """The mean cosine of two different rows of x (n, d): (|sum of unit rows|^2 - n) / (n (n - 1)).

    Near 1 all vectors lie in one narrow cone; 0 for directions that cancel. A zero row has cosine 0 with all others.
    Raises RepalignError unless n >= 2. Source: Liang et al. 2022 (arXiv 2203.02053), section 2.

    >>> cone_effect([[1.0, 0.0], [0.0, 5.0]])
    0.0
    """
    x = as_features(x)
    ConeEffect().check_n(len(x))
    return float(_mean_cosine(x))


def _mean_cosine(x: Tensor) -> Tensor:
    total, own = sum_of_unit_rows(x)  # the diagonal: 1 for every row that is not zero
    return (total.square().sum() - own) / (len(x) * (len(x) - 1))


@dataclass(frozen=True)
class PairedCosine(Measure):
    """Mean cosine between paired rows of one space.

    s = (1 / n) sum_i cos(x_i, y_i).

    Shapes (n, d) twice. Range [-1, 1]. Invariant to the scale of every row. A zero row has cosine 0. A common direction of
    both sides raises it, paired or not: compare it with its chance level.

    Source: Liang et al. 2022 (arXiv 2203.02053); the alignment term of Wang & Isola 2020 (arXiv 2005.10242) on unit rows is
    2 - 2 s.

    >>> PairedCosine()([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0]])
    0.5
    """

    family: ClassVar[str] = "shared_space"
    cost: ClassVar[str] = "n d per layer, n d per pair"
    aliases: ClassVar[tuple[str, ...]] = ("paired_cosine", "mean_cosine")
    symmetric: ClassVar[bool] = True
    equal_widths: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def min_n(self) -> int:
        return 1

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"isotropic_scale", "row_scale"})

    def prepare(self, x: Tensor) -> Features:
        return Features(unit_rows(x).to(x.dtype))

    def compare(self, a: State, b: State) -> float:
        a, b = cast(Features, a), cast(Features, b)
        return float((a.values * b.values).sum(dtype=torch.float64)) / a.n


METHODS = ("logistic", "gap")


@dataclass(frozen=True)
class ModalitySeparability(Measure):
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

    method: str = "logistic"
    folds: int = 5
    seed: int = 0

    family: ClassVar[str] = "shared_space"
    cost: ClassVar[str] = "n d per layer, some 30 n d per fold and pair"
    aliases: ClassVar[tuple[str, ...]] = ("modality_separability",)
    symmetric: ClassVar[bool] = True
    closer_is_higher: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    equal_widths: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        object.__setattr__(self, "folds", as_count("folds", self.folds))
        if self.folds < 2:
            raise RepalignError("one fold leaves nothing to train on", expected="folds >= 2", got=self.folds)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise RepalignError("seed is not a whole number >= 0", expected="seed >= 0", got=repr(self.seed))

    @property
    def min_n(self) -> int:
        return self.folds

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"isotropic_scale", "row_scale"})

    def prepare(self, x: Tensor) -> Summary:
        """Unit rows in the order of their values, so that folds do not depend on the order of the stimuli."""
        import numpy as np

        self.check_n(len(x))
        rows = widen(unit_rows(x)).cpu()
        order = np.lexsort(rows.numpy().T[::-1])
        return Summary(len(x), rows[torch.from_numpy(order.copy())])

    def compare(self, a: State, b: State) -> float:
        a, b = cast(Summary, a), cast(Summary, b)
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


MEASURES = (PairedCosine, ModalityGap, ModalitySeparability, ConeEffect)
