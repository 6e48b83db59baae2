"""Steps that all layers of one representation take before they are measured, and presets of steps and measures.

Clipping, concatenation and unit rows are the reference code's preparation, in this order; here they are off by default. A preset
makes numbers that compare with numbers of others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.layers import FEATURES, kind_of, said
from repalign.measures.measure import SCRATCH_BYTES, Measure, check_flag
from repalign.measures.numerics.rows import unit_rows

CLIPS = ("exact", "mean")
SCOPES = ("representation", "layer")
CONCATENATED = "concatenated"


@dataclass(frozen=True)
class Preprocess:
    """A pure function of all layers {name: (n, d_l)} of one representation to layers of the same n.

    Parameters
    ----------
    clip : None, or which threshold t outlying values are clipped at, x -> min(max(x, -t), t).
        "exact": |x| sorted over all entries, the one at index int(quantile * count).
        "mean": the quantile of |x| over all entries of one stimulus (linear interpolation), averaged over
        stimuli.
    quantile : in (0, 1]; 1 clips nothing.
    clip_scope : "representation" has one threshold for all layers, so layers of small norm are not touched
        and layers of large norm are clipped hard; "layer" has one for each. The reference code does the first
        for one tensor of all layers and the second for a list of layers.
    normalize_rows : divide every row by its Euclidean norm; a zero row stays zero.
    concatenate : add a last layer, "concatenated", of all layers side by side (the paper's layer -1).

    Source: Huh et al. 2024 (arXiv 2405.07987), appendix C.2, and its code.

    >>> import torch
    >>> Preprocess(normalize_rows=True)({"a": torch.tensor([[3.0, 4.0]])})["a"]
    tensor([[0.6000, 0.8000]])
    """

    clip: str | None = None
    quantile: float = 0.95
    clip_scope: str = "representation"
    normalize_rows: bool = False
    concatenate: bool = False

    def __post_init__(self) -> None:
        if self.clip is not None:
            choose("clip", self.clip, CLIPS)
        choose("clip_scope", self.clip_scope, SCOPES)
        check_flag("normalize_rows", self.normalize_rows)
        check_flag("concatenate", self.concatenate)
        if not isinstance(self.quantile, (int, float)) or not 0 < self.quantile <= 1:
            raise RepalignError("quantile is out of range", expected="0 < quantile <= 1", got=repr(self.quantile))

    @property
    def is_identity(self) -> bool:
        """Nothing is done to any layer."""
        return not (self.clip or self.normalize_rows or self.concatenate)

    def layer_names(self, names: Sequence[str]) -> list[str]:
        """The names of the layers that come out, in order."""
        if not self.concatenate:
            return list(names)
        if CONCATENATED in names:
            problem = f"a layer is already called {CONCATENATED!r}"
            raise RepalignError(problem, got=", ".join(names), remedy="rename it, or use concatenate=False")
        return [*names, CONCATENATED]

    def check(self, kinds: Mapping[str, str]) -> None:
        """Refuse to change what is given as an RDM or a kernel and has no rows of features; `kinds` by what errors call it."""
        name = next((name for name, kind in kinds.items() if kind != FEATURES), None)
        if name is None or self.is_identity:
            return
        steps = {"clip": self.clip is not None, "normalize_rows": self.normalize_rows, "concatenate": self.concatenate}
        raise RepalignError(
            f"{name}: features alone can be prepared", expected="no preprocessing of what is given by pairs",
            got=f"{' and '.join(s for s, asked in steps.items() if asked)} of what is given as {said(kinds[name])}",
            remedy="leave the preprocessing out, or apply it to the features before their RDM or kernel is made",
        )  # fmt: skip

    def __call__(self, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Apply to all layers of one representation; the input is left as it is."""
        self.check({f"layer {name}": kind_of(x) for name, x in layers.items()})
        out = dict(layers)
        names = self.layer_names(list(layers))
        if self.clip is not None and self.quantile < 1:
            out = self._clipped(out)
        if self.concatenate:
            out[CONCATENATED] = torch.cat(list(out.values()), dim=1)
        if self.normalize_rows:
            out = {name: unit_rows(x).to(x.device, x.dtype) for name, x in out.items()}
        return {name: out[name] for name in names}

    def _clipped(self, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        find = exact_threshold if self.clip == "exact" else mean_threshold
        if self.clip_scope == "layer":
            thresholds = {name: find([x], self.quantile) for name, x in layers.items()}
        else:
            thresholds = dict.fromkeys(layers, find(list(layers.values()), self.quantile))
        return {name: x.clamp(-thresholds[name], thresholds[name]) for name, x in layers.items()}


def exact_threshold(layers: Sequence[Tensor], quantile: float) -> float:
    """The entry at index int(quantile * count) of all |x| in ascending order, found by selection, not
    sorting.
    """
    values = np.concatenate([np.abs(_array(x)).ravel() for x in layers])
    at = min(int(quantile * values.size), values.size - 1)
    values.partition(at)
    return float(values[at])


def mean_threshold(layers: Sequence[Tensor], quantile: float) -> float:
    """The `quantile` of |x| over all entries of one stimulus, linearly interpolated, averaged over
    stimuli.
    """
    n, width = len(layers[0]), sum(x.shape[1] for x in layers)
    rows = max(1, min(n, SCRATCH_BYTES // (8 * width)))
    total = 0.0
    for start in range(0, n, rows):
        block = np.concatenate([np.abs(_array(x[start : start + rows])) for x in layers], axis=1)
        total += float(np.quantile(block.astype(np.float64), quantile, axis=1).sum())
    return total / n


def _array(x: Tensor) -> np.ndarray:
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return x.detach().cpu().numpy()


# --- presets --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """Measures, what is done to the layers before, and how the best pair of layers is found."""

    name: str
    measures: tuple[Measure, ...]
    preprocess: Preprocess
    search: str
    summary: str

    @staticmethod
    def best(scores: ArrayLike) -> tuple[float, tuple[int, int] | None]:
        """The answer of the reference code for the scores of all pairs of layers, (layers of x, layers of y).

        Its maximum starts at 0 without a place and moves to what is strictly larger: where no score is positive, or all
        are undefined, the answer is (0.0, None). Results of `compare` have the true maximum and its layers instead.

        >>> Preset.best([[-0.2, -0.1]]), Preset.best([[0.1, 0.3]])
        ((0.0, None), (0.3, (0, 1)))
        """
        found = np.asarray(scores, float)
        kept = np.where(found > 0, found, -math.inf)
        at = int(kept.argmax()) if kept.size else 0
        if not kept.size or not math.isfinite(kept.flat[at]):
            return 0.0, None
        i, j = divmod(at, found.shape[1])
        return float(found[i, j]), (i, j)


PRESETS: dict[str, tuple[str, dict[str, Any]]] = {  # summary, and how the layers are prepared
    "platonic-rep": (
        "the paper's numbers: clipped at the .95 quantile, unit rows, concatenated layers, raw maximum",
        {"clip": "mean", "concatenate": True},
    ),
    "platonic-rep-2024": (
        "the library as released until July 2024: exact clipping, concatenated layers, raw maximum",
        {"clip": "exact", "concatenate": True},
    ),
    "platonic-rep-head": ("the released code as it is now: exact clipping, no concatenation, raw maximum", {"clip": "exact"}),
    "platonic-rep-head-list": (
        "the same, given a list of layers (of several widths) and not one tensor: a threshold for every layer",
        {"clip": "exact", "clip_scope": "layer"},
    ),
}


def preset(name: str) -> Preset:
    """A preset by name.

    "platonic-rep" gives the paper's own numbers: clipping by the mean of the per-stimulus .95 quantiles over
    all layers, rows of unit norm, all layers concatenated as one more candidate, and the maximum over layer
    pairs of the score itself. SVCCA is the exact form of what the reference draws at random.

    "platonic-rep-2024" is the library's entry point until commit 4dd084e (2024-07-29): one exact threshold. Its command
    line has "platonic-rep" as its default. "platonic-rep-head" is the library's entry point after April 2025, where
    concatenation was removed, and "platonic-rep-head-list" the same for a list of layers.

    Not followed: the entry point casts features to bfloat16 before products and sorting, here everything is computed in
    float32 or wider; and its maximum starts at 0 (`Preset.best`).

    Raises RepalignError for an unknown name.
    """
    from repalign.measures import CKA, LCSKNN, SVCCA, CKNNAReference, CycleKNN, EditDistanceKNN, MutualKNN

    summary, steps = PRESETS[choose("preset", name, PRESETS)]
    measures = (
        MutualKNN(k=10), CycleKNN(k=10), LCSKNN(k=10, normalized=False), EditDistanceKNN(k=10),
        CKA(estimator="biased", epsilon=1e-6), CKA(estimator="debiased", epsilon=1e-6), CKNNAReference(k=10),
        SVCCA(components=10, standardize=True),
    )  # fmt: skip
    return Preset(name, measures, Preprocess(**steps, normalize_rows=True), "raw", summary)
