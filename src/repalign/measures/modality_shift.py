"""What moving two modalities towards or away from each other does to the gap between them and to the contrastive loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures.measure import as_features, check_paired
from repalign.measures.numerics.precision import full_precision, unit_rows
from repalign.measures.shared_space import ModalityGap


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

    Raises RepalignError for unpaired or different widths, and where there is no gap to move along.
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
        raise RepalignError(
            "there is no gap to move along",
            expected="two sets of unit vectors with different means",
            got="equal means",
        )
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
