"""Linear CKA at any n, in one pass over the rows and without an n x n matrix.

With centred rows x_i, y_i, a_i = |x_i|^2, b_i = |y_i|^2 and K = X X', L = Y Y', all that linear CKA and the first two
moments of its permutation null need are sums over rows:

    <K, L>   = |X'Y|^2                                                   (biased)
    <K~, L~> = |X'Y|^2 - n/(n-2) sum a_i b_i + (sum a_i)(sum b_i) / ((n-1)(n-2))    (U-centred, debiased)

The second is n (n-3) times the unbiased HSIC of Song et al. (2012, JMLR 13:1393, equation 5): the row sums of K without
its diagonal are -a_i, and U-centring projects. Rows are summed about a provisional origin, the mean of the first block,
and every sum is moved to the true mean at the end, which is exact algebra: a common offset costs no digits. Products of
a block are formed in the dtype of the features (halves in float32), and added up in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from repalign.comparison.cost import BLOCK, memory_limit, sums_bytes
from repalign.comparison.feature_sums import About, Sums, moved, short
from repalign.comparison.streams import Rows, as_rows
from repalign.errors import RepalignError, choose
from repalign.measures.kernel import ESTIMATORS
from repalign.measures.measure import check_paired
from repalign.representation import Representation, check_same_dataset
from repalign.text import Progress, silent

# A difference that is below this many roundings of what was subtracted has vanished.
_RESIDUE = 16


@dataclass(frozen=True)
class StreamedCKA:
    """Linear CKA of two layers, and where it lies in its permutation null.

    statistic : the score; nan if a layer is constant, or its U-centred kernel vanishes within rounding.
    null_mean, null_std : exact mean and standard deviation over all n! pairings of the rows.
    z : (statistic - null_mean) / null_std.
    pvalue_bound : 1 / (1 + z^2), and 1 for z <= 0: no permutation p-value of this score can be larger (Cantelli's
        inequality, which assumes nothing of the null's shape).
    n, widths : rows, and features of x and y.
    method : what was computed, in a sentence.
    """

    statistic: float
    null_mean: float
    null_std: float
    z: float
    pvalue_bound: float
    n: int
    widths: tuple[int, int]
    method: str


@dataclass(frozen=True, eq=False)
class StreamedCKAs:
    """All layers of x against all layers of y: the fields of `StreamedCKA` as (l, m) float64 arrays.

    names_x, names_y and widths_x, widths_y label the rows and columns.
    """

    statistic: np.ndarray
    null_mean: np.ndarray
    null_std: np.ndarray
    z: np.ndarray
    pvalue_bound: np.ndarray
    n: int
    names_x: tuple[str, ...]
    names_y: tuple[str, ...]
    widths_x: tuple[int, ...]
    widths_y: tuple[int, ...]
    method: str

    def cell(self, row: int, column: int) -> StreamedCKA:
        """One pair of layers."""
        return StreamedCKA(
            statistic=float(self.statistic[row, column]),
            null_mean=float(self.null_mean[row, column]),
            null_std=float(self.null_std[row, column]),
            z=float(self.z[row, column]),
            pvalue_bound=float(self.pvalue_bound[row, column]),
            n=self.n,
            widths=(self.widths_x[row], self.widths_y[column]),
            method=self.method,
        )


def stream_cka(
    x: Any,
    y: Any,
    *,
    estimator: str = "debiased",
    block: int = BLOCK,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> StreamedCKA:
    """Linear CKA of two layers in one pass over their rows, with the exact mean and spread of its null.

    x, y : `Rows`, arrays (n, d1) and (n, d2) (numpy, memory maps, tensors), or pairs (representation, layer).
    Equals `CKA(estimator=estimator)` to rounding, about 1e-7 |K|^2 / |K~|^2 for float32 features; range and invariances
    are the same. Holds d1^2 + d2^2 + d1 d2 float64 sums and three blocks of each layer, whatever n is.

    Raises RepalignError if n < 4, if row counts, datasets or ids differ, or at a row that is not finite.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 8))
    >>> round(stream_cka(x, 5 - 2 * x, block=64).statistic, 12)
    1.0
    """
    return stream_cka_all([x], [y], estimator=estimator, block=block, device=device, progress=progress).cell(0, 0)


def stream_cka_all(
    xs: Representation | Sequence[Any],
    ys: Representation | Sequence[Any],
    *,
    estimator: str = "debiased",
    block: int = BLOCK,
    device: str | torch.device = "cpu",
    memory: int | None = None,
    progress: Progress = silent,
) -> StreamedCKAs:
    """Linear CKA of all layers of x against all layers of y, every block of every layer read once.

    xs, ys : lists of what `stream_cka` takes, or representations, which stand for all their layers.
    The sums over l and m layers of width d take 8 (l + m + l m) d^2 bytes, beside three blocks of each layer. If the
    sums take more than `memory` bytes, by default a quarter of the machine's, the layers of x are taken in groups, and
    y is read once per group; the method says so.

    Raises RepalignError as `stream_cka` does, and if the sums of one layer of x do not fit.
    """
    choose("estimator", estimator, ESTIMATORS)
    left, right = _layers(xs, "x"), _layers(ys, "y")
    n = _common_n(left, right, xs, ys, block)
    groups = _groups(left, right, memory_limit() if memory is None else memory)
    tables, done, dtype = [], 0, torch.float32
    progress("linear CKA", 0, n * len(groups))
    for group in groups:
        sums = Sums(group, right, n, torch.device(device))
        sums.run(block, lambda rows, past=done: progress("linear CKA", past + rows, n * len(groups)))
        tables.append(_scores(sums, estimator))
        done, dtype = done + n, sums.dtype
    statistic, null_mean, null_std, z, bound = np.concatenate(tables, axis=1)
    passes = "one streaming pass" if len(groups) == 1 else f"{len(groups)} streaming passes"
    return StreamedCKAs(
        statistic=statistic,
        null_mean=null_mean,
        null_std=null_std,
        z=z,
        pvalue_bound=bound,
        n=n,
        names_x=tuple(r.name for r in left),
        names_y=tuple(r.name for r in right),
        widths_x=tuple(r.width for r in left),
        widths_y=tuple(r.width for r in right),
        method=f"{estimator} linear CKA of n = {n:,} rows in feature space, {passes}, {short(dtype)} products and "
        "float64 sums; exact permutation mean and standard deviation, p-value bounded by Cantelli's inequality",
    )


# --- the border ----------------------------------------------------------------------------------


def _layers(side: Representation | Sequence[Any], name: str) -> list[Rows]:
    sources = [(side, layer) for layer in side.layers] if isinstance(side, Representation) else list(side)
    rows = [
        as_rows(*s) if isinstance(s, tuple) else as_rows(s, name=name if len(sources) == 1 else f"{name}[{i}]")
        for i, s in enumerate(sources)
    ]
    if not rows:
        raise RepalignError(f"{name}: there is no layer", expected="at least one layer", got="none")
    return rows


def _common_n(left: list[Rows], right: list[Rows], xs: Any, ys: Any, block: int) -> int:
    """The number of rows, once all sides are known to describe the same stimuli."""
    sources = [s for side in (xs, ys) for s in ([side] if isinstance(side, Representation) else side)]
    check_same_dataset([r for s in sources if isinstance(r := s[0] if isinstance(s, tuple) else s, Representation)])
    first = left[0]
    for other in (*left[1:], *right):
        check_paired(first.n, other.n, first.name, other.name)
    if first.n < 4:
        raise RepalignError(
            f"{first.name}: too few stimuli for CKA and its null", expected="n >= 4", got=f"n = {first.n}"
        )
    if block < 1:
        raise RepalignError("a block has at least one row", expected="block >= 1", got=block)
    return first.n


def _groups(left: list[Rows], right: list[Rows], memory: int) -> list[list[Rows]]:
    """The layers of x in as few runs as the sums leave room for."""
    ys = [r.width for r in right]
    groups: list[list[Rows]] = [[]]
    for rows in left:
        if groups[-1] and sums_bytes([r.width for r in (*groups[-1], rows)], ys) > memory:
            groups.append([])
        groups[-1].append(rows)
        needed = sums_bytes([r.width for r in groups[-1]], ys)
        if needed > memory:
            raise RepalignError(
                f"{rows.name}: its sums with {len(right)} layers of the other side do not fit",
                expected=f"at most {memory / 1e9:.3g} GB",
                got=f"{needed / 1e9:.3g} GB",
                remedy="raise `memory`, or compare fewer layers of y at a time",
            )
    return groups


# --- the scores ----------------------------------------------------------------------------------


def _scores(sums: Sums, estimator: str) -> np.ndarray:
    """statistic, null_mean, null_std, z and pvalue_bound: (5, l, m)."""
    n, split, p = sums.n, len(sums.xs), sums.products.cpu().numpy()
    about = [About(w[0] / n, float(p[0, 1 + i]), w) for i, w in enumerate(sums.weighted)]
    eps = torch.finfo(sums.dtype).eps
    selves = []
    for i, (layer, a) in enumerate(zip(sums.layers, about, strict=True)):
        whole = layer.square.tril() + layer.square.tril(-1).T
        own = moved(whole, a, a, p[1 + i, 1 + i], a.weighted[1], a.weighted[1], n)
        trace = max(a.trace - n * float(a.mean @ a.mean), 0.0)
        selves.append(_Self(trace, *own, n, estimator, eps))
    out = np.empty((5, split, len(about) - split))
    for i, row in enumerate(sums.cross):
        for j, cross in enumerate(row):
            a, b, s, t = about[i], about[split + j], selves[i], selves[split + j]
            squared, diagonal = moved(cross, a, b, p[1 + i, 1 + split + j], a.weighted[2 + j], b.weighted[2 + i], n)
            out[:, i, j] = _cell(_product(squared, diagonal, s.trace * t.trace, n, estimator), s, t, n)
    return out


def _product(squared: float, diagonal: float, traces: float, n: int, estimator: str) -> float:
    """<K, L>, or <K~, L~> of the U-centred kernels, see the head of the module."""
    if estimator == "biased":
        return squared
    return squared - n / (n - 2) * diagonal + traces / ((n - 1) * (n - 2))


class _Self:
    """T = tr A, T2 = |A|^2 and S2 = sum a_ii^2 of one centred kernel A; T2 = 0 if it vanishes within rounding."""

    def __init__(self, trace: float, squared: float, diagonal: float, n: int, estimator: str, eps: float) -> None:
        self.trace = trace
        norm2 = _product(squared, diagonal, trace * trace, n, estimator)
        size = squared if estimator == "biased" else squared + 2 * diagonal + trace * trace / n**2
        self.norm2 = norm2 if norm2 > _RESIDUE * eps * size else 0.0
        # A U-centred kernel has an empty diagonal.
        self.t, self.s2 = (trace, diagonal) if estimator == "biased" else (0.0, 0.0)
        self.eps = eps

    def spread(self, n: int) -> tuple[float, float]:
        """Both factors of the variance for |A| = 1, (n-1) - T^2/T2 and n(n+1) S2/T2 - (n-1)(T^2/T2 + 2)."""
        ratio, s2 = self.t**2 / self.norm2, self.s2 / self.norm2
        first, second = (n - 1) - ratio, n * (n + 1) * s2 - (n - 1) * (ratio + 2)
        rounding = _RESIDUE * self.eps * (n - 1)
        return (first if first > rounding else 0.0), (second if abs(second) > rounding * (ratio + 2) else 0.0)


def _cell(inner: float, x: _Self, y: _Self, n: int) -> tuple[float, float, float, float, float]:
    """Score, null mean and deviation, z and bound. Mean and variance over all permutations of centred A and B:

    E = T T* / (n-1),  V = 2 f f* / ((n-1)^2 (n+1) (n-2)) + g g* / ((n+1) n (n-1) (n-2) (n-3)),

    with f = (n-1) T2 - T^2, g = n (n+1) S2 - (n-1) (T^2 + 2 T2) (Kazi-Aoual et al. 1995, CSDA 20:643). For U-centred
    kernels, whose diagonal is empty, E = 0 and V = 2 T2 T2* / (n (n-3)), whatever the data.
    """
    if x.norm2 == 0 or y.norm2 == 0:
        return math.nan, math.nan, math.nan, math.nan, math.nan
    norms = math.sqrt(x.norm2) * math.sqrt(y.norm2)
    score, mean = inner / norms, x.t / math.sqrt(x.norm2) * (y.t / math.sqrt(y.norm2)) / (n - 1)
    (f, g), (f_, g_) = x.spread(n), y.spread(n)
    variance = 2 * f * f_ / ((n - 1) ** 2 * (n + 1) * (n - 2)) + g * g_ / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    if not variance > 0:  # every pairing has the same score
        return score, mean, 0.0, math.nan, 1.0
    std = math.sqrt(variance)
    z = (score - mean) / std
    return score, mean, std, z, 1 / (1 + z * z) if z > 0 else 1.0
