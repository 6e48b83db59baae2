"""Linear CKA where an n x n matrix does not fit: one pass over both models in feature space.

The exact mean and standard deviation over all relabellings come with it, draws do not. p is Cantelli's bound
1 / (1 + z^2), which holds for every law; for the search over layers it is multiplied by the number of cells.
"""

from __future__ import annotations

import math

import numpy as np

from repalign import null as nulls
from repalign.comparison.cache import Settings
from repalign.errors import RepalignError
from repalign.measures import CKA
from repalign.measures.measure import Bilinear, Measure
from repalign.representation import Representation

METHOD = "bound"


def is_streamed(measure: Measure, null: nulls.Null, settings_are_plain: bool, n: int) -> bool:
    """Whether this measure goes through feature space at this n: linear CKA with nothing asked of the null.

    `settings_are_plain`: the layers are features, as they are.
    """
    linear = isinstance(measure, CKA) and measure.kernel == "linear" and measure.epsilon == 0
    plain = isinstance(null, nulls.Auto) and null.groups is None and settings_are_plain
    return linear and plain and n > nulls.CYCLIC_MAX_N


def check_memory(measure: Measure, n: int, limit: int) -> None:
    """Refuse n x n states of which two do not fit the machine, before anything is read."""
    needed = 2 * 4 * n * n
    if isinstance(measure, Bilinear) and measure.dense and needed > limit:
        raise RepalignError(
            f"{measure!r} at n = {n:,} does not fit the memory",
            expected=f"two n x n matrices within {limit / 2**30:.1f} GiB",
            got=f"{needed / 2**30:.1f} GiB",
            remedy="use CKA() with null='auto' and no preprocessing, which is streamed, MutualKNN, or fewer stimuli",
        )


def judge(x: Representation, y: Representation, measure: CKA, settings: Settings) -> nulls.Judgement:
    """Every cell and the search over them from one streaming pass."""
    from repalign.comparison import stream_cka_all

    found = stream_cka_all(x, y, estimator=measure.estimator, device=settings.device)
    alpha, shape = settings.alpha, found.statistic.shape
    cells = _bounded(found.statistic, found.null_mean, found.null_std, found.z, alpha, 1, measure.s_max)
    search = nulls.Search.parse(settings.search)
    if search.aggregate != "max":
        raise RepalignError(
            f"the layer search {search} needs draws", expected="a maximum for streamed measures", got=str(search)
        )
    height = found.z if search.scale == "studentised" else found.statistic
    none = np.empty(0)
    if np.isnan(height).all():
        nothing = _bounded(*(np.full((), math.nan) for _ in range(4)), alpha, 1, measure.s_max)
        best = nulls.Found(-1, -1, nothing, none, np.full(shape, np.nan))
    else:
        i, j = (int(v) for v in np.unravel_index(np.nanargmax(height), shape))
        one = (f[i, j] for f in (found.statistic, found.null_mean, found.null_std, found.z))
        whole = _bounded(*one, alpha, height.size, measure.s_max)
        stepdown = np.minimum(1.0, cells.pvalue * height.size)
        best = nulls.Found(i, j, whole, none, stepdown)
    return nulls.Judgement(cells, np.full(shape, METHOD, dtype=object), best, search, METHOD, 0)


def _bounded(
    statistic: np.ndarray, mean: np.ndarray, std: np.ndarray, z: np.ndarray, alpha: float, tests: int, s_max: float
) -> nulls.Calibration:
    """Cantelli: P(T - mean >= z std) <= 1 / (1 + z^2) for z > 0, times the number of tests."""
    p = np.where(np.isnan(z), np.nan, np.minimum(1.0, np.where(z > 0, tests / (1 + np.square(z)), 1.0)))
    tau = mean + std * math.sqrt(tests / alpha - 1)
    gain = np.where(statistic >= tau, (statistic - tau) / np.where(tau < s_max, s_max - tau, 1.0), 0.0)
    calibrated = np.where(np.isnan(statistic), np.nan, np.clip(gain, 0.0, 1.0))
    return nulls.Calibration(
        statistic=statistic, null_mean=mean, null_std=std, z=z, pvalue=p, threshold=tau, calibrated=calibrated
    )
