"""Measures on neighbourhoods by degrees: distances to the neighbours of both spaces, and neighbours with weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from repalign.errors import choose
from repalign.layers import Given
from repalign.measures.measure import Bilinear, DenseRelation, Local, Neighbors, State, as_number, check_flag, parameter
from repalign.measures.numerics.rows import blocks
from repalign.measures.numerics.search import SIMILARITIES, Searching, embed, nearest


@dataclass(frozen=True, eq=False)
class DistantNeighbors(State):
    """Neighbour lists, and all cosine distances: the lists of one space ask for distances in the other."""

    matrix: Tensor  # (n, n)
    lists: Neighbors
    order: Tensor | None = None  # row i here is row order[i] of `matrix`

    def permute(self, p: Tensor) -> Self:
        order = p if self.order is None else self.order[p]
        return replace(self, lists=self.lists.permute(p), order=order)

    def to(self, indices: Tensor) -> Tensor:
        """Distances (n, m) in float64 from every stimulus to those of its list in `indices` (n, m)."""
        row = torch.arange(self.n, device=indices.device) if self.order is None else self.order
        column = indices if self.order is None else self.order[indices]
        return self.matrix[row[:, None], column].to(torch.float64)


@dataclass(frozen=True)
class SecondOrderCosine(Searching, Local):
    """Second-order cosine similarity: of the distances to the neighbours of a stimulus in both spaces.

    s = (1 / n) sum_i cos(d_X(i), d_Y(i)), with d_X(i) the vector of cosine distances 1 - cos(x_i, x_j) from stimulus i to
    every j among its k nearest in X or in Y.

    Parameters
    ----------
    k : neighbours per stimulus in each space.
    center : subtract the column means first.

    Shapes (n, d1) and (n, d2). Range [0, 1], and near 1 by chance: vectors of positive numbers have large cosines. A row
    whose distances all vanish (it repeats at least k times) counts 1 if they do so in both spaces, else 0. Invariant to
    orthogonal maps, isotropic scale and column order; to the scale of every row, or with center to translations. nan if
    all rows of one side are alike. Raises RepalignError unless n > k.

    Source: Hamilton et al. 2016 (arXiv 1606.02821), in the form of Klabunde et al. 2025 (arXiv 2305.06329) and the code of
    their benchmark, which takes cosine distances where the original takes similarities.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(SecondOrderCosine(k=5)(x, 3 * x), 12)
    1.0
    """

    center: bool = parameter(False, check_flag)

    similarity: ClassVar[str] = "cosine"
    cost: ClassVar[str] = "n^2 d and n^2 memory per layer, n k log k per pair"
    aliases: ClassVar[tuple[str, ...]] = ("second_order_cosine",)

    def prepare(self, x: Given) -> DistantNeighbors:
        embedded = embed(x, "cosine", self.center)
        lists = Neighbors(nearest(embedded, self.k), norm=0.0 if embedded.is_constant else 1.0)
        return DistantNeighbors(embedded.cosine_distances(), lists)

    def compare(self, a: DistantNeighbors, b: DistantNeighbors) -> float:
        if a.lists.norm == 0 or b.lists.norm == 0:
            return math.nan
        union = torch.cat([a.lists.indices, b.lists.indices], dim=1).sort(dim=1).values
        again = torch.zeros_like(union, dtype=torch.bool)
        again[:, 1:] = union[:, 1:] == union[:, :-1]  # a neighbour in both lists counts once
        p, q = (s.to(union).masked_fill_(again, 0.0) for s in (a, b))
        sizes = torch.linalg.vector_norm(p, dim=1), torch.linalg.vector_norm(q, dim=1)
        product = sizes[0] * sizes[1]
        cosine = (p * q).sum(dim=1) / torch.where(product > 0, product, 1.0)
        return float(torch.where((sizes[0] == 0) & (sizes[1] == 0), 1.0, cosine).mean())


@dataclass(frozen=True)
class SoftKNN(Searching, Bilinear):
    """Mutual k-NN by degrees: the mean cosine between the neighbour distributions of a stimulus in two spaces.

    s = (1 / n) sum_i <p_i, q_i> / (|p_i| |q_i|), where p_i(j), j != i, is proportional to exp(b_i sim(x_i, x_j)), and the
    inverse temperature b_i makes the perplexity of p_i (the exponential of its entropy) the one asked for: so many
    neighbours count, the near ones more, and no edge between the k-th and the next decides. Bilinear, as mutual k-NN is:
    that is the same with p_i equal over the k nearest.

    Parameters
    ----------
    perplexity : the effective number of neighbours, above 1.
    similarity : "cosine" (rows are normalised here), "dot" or "euclidean" (minus half the squared distance: Gaussian
        affinities). Dissimilarities D of an `RDM` count as -D with cosine and as -D^2 / 2 with euclidean.
    center : subtract the column means first.

    Shapes (n, d1) and (n, d2). Range [0, 1]. Invariant to orthogonal maps, isotropic scale and column order; with cosine
    also to the scale of every row, with center or euclidean also to translations. Where more rows tie for the nearest
    place than the perplexity, p_i is equal over them. nan if all rows of one side are alike.
    Raises RepalignError unless n > perplexity + 1.

    Source: entropic affinities as in Hinton & Roweis 2002 and t-SNE (van der Maaten & Hinton 2008); their cosine as an
    alignment is a definition of this library. Affinities are found in float64 to twelve digits of the entropy;
    implementations of t-SNE stop at 1e-5.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((50, 8))
    >>> round(SoftKNN(perplexity=5)(x, 3 * x), 12)
    1.0
    """

    perplexity: float = parameter(10.0, as_number, lambda v: 1 < v < math.inf, "is not a number above 1", "perplexity > 1")
    similarity: str = parameter("cosine", choose, SIMILARITIES)
    center: bool = parameter(False, check_flag)

    cost: ClassVar[str] = "n^2 (d + 20 or so exponentials) per layer, n^2 per pair"
    aliases: ClassVar[tuple[str, ...]] = ("soft_knn", "soft_mutual_knn")

    @property
    def min_n(self) -> int:
        return math.floor(self.perplexity) + 2

    def prepare(self, x: Given) -> DenseRelation:
        embedded = embed(x, self.similarity, self.center)
        n = embedded.n
        slack = embedded.resolution(torch.float64)
        out = torch.zeros(n, n, dtype=x.dtype, device=slack.device)
        if embedded.is_constant:
            return DenseRelation(out, 0.0, symmetric=False)
        for block in blocks(n, 8 * 8 * n):  # some eight blocks are held at once
            similarity = embedded.similarity_of(torch.arange(block.start, block.stop, device=out.device), False)
            affinity = entropic_affinities(similarity, self.perplexity, slack[block])
            affinity /= torch.linalg.vector_norm(affinity, dim=1, keepdim=True)
            out[block] = affinity.to(x.dtype)
        return DenseRelation.of(out, symmetric=False)


_TOLERANCE = 1e-12
_STEPS = 100


def entropic_affinities(similarity: Tensor, perplexity: float, slack: Tensor) -> Tensor:
    """Rows p (r, n) proportional to exp(b similarity) with the entropy log(perplexity); -inf gives 0.

    A safeguarded Newton iteration in log b, whose derivative of the entropy is -b^2 times the variance of the similarity.
    Entries within `slack` (r,) of the largest are tied with it; where they are as many as the perplexity or more, b is
    infinite, and p equal over them.
    """
    gap = similarity.amax(dim=1, keepdim=True) - similarity  # 0 for the nearest, inf for what is left out
    tied = gap <= slack[:, None]
    gap = gap.masked_fill_(tied, 0.0)
    count = tied.sum(dim=1)
    out = tied.to(gap.dtype) / count[:, None]
    target = math.log(perplexity)
    which = torch.nonzero(count < perplexity).flatten()
    if not len(which):
        return out
    gap = gap[which]
    finite = torch.where(gap < math.inf, gap, 0.0)
    # Half the mean gap is the right order for most rows; the bracket takes care of the others.
    log_b = -(finite.sum(dim=1) / (gap < math.inf).sum(dim=1)).log() + 1
    low, high = torch.full_like(log_b, -math.inf), torch.full_like(log_b, math.inf)
    for _ in range(_STEPS):
        b = log_b.exp()
        p = torch.exp(-b[:, None] * gap)
        total = p.sum(dim=1)
        p /= total[:, None]
        mean = (p * finite).sum(dim=1)
        excess = b * mean + total.log() - target  # of the entropy
        done = excess.abs() <= _TOLERANCE * max(1.0, target)
        out[which[done]] = p[done]
        if bool(done.all()):
            break
        slope = -(b**2) * ((p * finite.square()).sum(dim=1) - mean**2)
        low, high = torch.where(excess > 0, log_b, low), torch.where(excess > 0, high, log_b)
        step = (-excess / slope).clamp(-2.0, 2.0).nan_to_num(0.0)
        following = log_b + step
        between = torch.where(low.isinf(), high - 2, torch.where(high.isinf(), low + 2, (low + high) / 2))
        log_b = torch.where((following > low) & (following < high), following, between)
        left = ~done
        if not bool(left.all()):
            which, gap, finite, log_b, low, high = (t[left] for t in (which, gap, finite, log_b, low, high))
            p = p[left]
    else:
        out[which] = p  # as near as float64 comes
    return out
