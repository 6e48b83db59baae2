"""Measures of two models' predictions: rows are stimuli, columns labels, entries logits or log-probabilities.

Logits matter up to a constant per row, so every measure here is free of it. Both arrays have the same labels in the same
order. A layer of equal logits is a distribution like any other, the uniform one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from repalign.measures.measure import Features, Measure, State
from repalign.measures.numerics.checks import check_flag
from repalign.measures.numerics.precision import widen


@dataclass(frozen=True)
class _Distributions(Measure):
    """What measures of distributions over shared labels have in common."""

    family: ClassVar[str] = "distribution"
    cost: ClassVar[str] = "n d per layer, n d per pair"
    symmetric: ClassVar[bool] = True
    closer_is_higher: ClassVar[bool] = False
    equal_widths: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    @property
    def min_n(self) -> int:
        return 1

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"row_shift"})

    def prepare(self, x: Tensor) -> State:
        """Log-probabilities (n, d) in float64."""
        return Features(torch.log_softmax(widen(x), dim=1))


@dataclass(frozen=True)
class KLDivergence(_Distributions):
    """Kullback-Leibler divergence of Y's predictions from X's, in nats, mean over stimuli. Not symmetric.

    s = (1 / n) sum_i sum_c p_i(c) log(p_i(c) / q_i(c)), a distance, with p_i the softmax of x_i and q_i that of y_i.

    Shapes (n, d) twice: logits or log-probabilities of the same d labels. Range [0, inf). Invariant to a constant added to
    any row.

    Source: Kullback & Leibler 1951; as a distance of models in Nielsen et al. 2025 (arXiv 2506.03784).

    >>> round(KLDivergence()([[0.0, 0.0]], [[0.0, 1.0]]), 6)
    0.120115
    """

    aliases: ClassVar[tuple[str, ...]] = ("kl_divergence", "kl")
    symmetric: ClassVar[bool] = False

    def compare(self, a: State, b: State) -> float:
        p, q = cast(Features, a).values, cast(Features, b).values
        return max(0.0, float(_divergence(p, q).mean()))  # rounding alone takes it below 0


@dataclass(frozen=True)
class JensenShannon(_Distributions):
    """Jensen-Shannon divergence of two models' predictions, in bits, mean over stimuli.

    s = (1 / n) sum_i [KL(p_i, m_i) + KL(q_i, m_i)] / (2 log 2), m_i = (p_i + q_i) / 2, a distance, with p_i the softmax of
    x_i and q_i that of y_i. Its root, which scipy calls the distance, is not taken.

    Shapes (n, d) twice: logits or log-probabilities of the same d labels. Range [0, 1]. Invariant to a constant added to
    any row.

    Source: Lin 1991; as a measure of functional similarity in Klabunde et al. 2025 (arXiv 2305.06329).

    >>> round(JensenShannon()([[0.0, 99.0]], [[99.0, 0.0]]), 12)
    1.0
    """

    aliases: ClassVar[tuple[str, ...]] = ("jensen_shannon", "jsd")
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def compare(self, a: State, b: State) -> float:
        p, q = cast(Features, a).values, cast(Features, b).values
        middle = torch.logaddexp(p, q) - math.log(2)
        both = (_divergence(p, middle) + _divergence(q, middle)) / 2
        return min(1.0, max(0.0, float(both.mean()) / math.log(2)))  # rounding alone takes it outside


@dataclass(frozen=True, eq=False)
class Predictions(State):
    """The label that each stimulus is given, (n,), of `labels`."""

    values: Tensor
    labels: int

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    @property
    def width(self) -> int:
        return self.labels

    def permute(self, p: Tensor) -> Self:
        return replace(self, values=self.values[p])


@dataclass(frozen=True)
class Disagreement(_Distributions):
    """Disagreement: the share of stimuli for which two models predict different labels.

    s = share of i with argmax_c x_i(c) != argmax_c y_i(c), a distance; ties go to the lower label.

    Shapes (n, d) twice: logits, log-probabilities or any scores of the same d labels. Range [0, 1]. Invariant to a constant
    added to any row, and to the scale of every row.

    Source: the churn of Milani Fard et al. 2016; Klabunde et al. 2025 (arXiv 2305.06329), performance-based and hard
    prediction measures.

    >>> Disagreement()([[0.1, 0.9], [0.8, 0.2]], [[-1.0, 2.0], [0.0, 3.0]])
    0.5
    """

    aliases: ClassVar[tuple[str, ...]] = ("disagreement", "churn")
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"row_shift", "row_scale", "isotropic_scale"})

    def prepare(self, x: Tensor) -> State:
        if x.device.type != "cpu":
            return Predictions(x.argmax(dim=1), x.shape[1])
        return Predictions(torch.from_numpy(x.numpy().argmax(axis=1)), x.shape[1])  # ten times faster than torch's

    def compare(self, a: State, b: State) -> float:
        different = cast(Predictions, a).values != cast(Predictions, b).values
        return int(different.sum()) / len(different)


@dataclass(frozen=True)
class LogitDistance(_Distributions):
    """Logit distance: the mean squared distance between the centred logits of two models.

    s = (1 / n) sum_i sum_c (x_i(c) - mean x_i - y_i(c) + mean y_i)^2, a distance; with squared=False the root of it.

    Parameters
    ----------
    squared : True (default), as it is bounded in theory; False gives the distance.

    Shapes (n, d) twice: logits or log-probabilities of the same d labels, which give the same number. Range [0, inf).
    Invariant to a constant added to any row. It looks at improbable labels as much as at probable ones, and bounds how
    far apart the embeddings behind the logits can be.

    Source: Nielsen et al. 2026 (arXiv 2602.15438), d_logit^2.

    >>> LogitDistance()([[0.0, 2.0]], [[5.0, 5.0]])
    2.0
    """

    squared: bool = True

    aliases: ClassVar[tuple[str, ...]] = ("logit_distance",)

    def __post_init__(self) -> None:
        check_flag("squared", self.squared)

    def prepare(self, x: Tensor) -> Features:
        logits = widen(x)
        logits = logits - logits[:, :1]  # a large constant per row would cost the digits of the mean
        return Features(logits - logits.mean(dim=1, keepdim=True))

    def compare(self, a: State, b: State) -> float:
        difference = cast(Features, a).values - cast(Features, b).values
        squared = float(difference.square().sum(dim=1).mean())
        return squared if self.squared else math.sqrt(squared)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """sum_c exp(p) (p - q) of log-probabilities (n, d), (n,); labels of probability 0 add nothing."""
    weight = p.exp()
    return torch.where(weight > 0, weight * (p - q), 0.0).sum(dim=1)


MEASURES = (KLDivergence, JensenShannon, Disagreement, LogitDistance)
