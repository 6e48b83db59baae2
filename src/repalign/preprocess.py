"""What may be done to all layers of a model before measuring; nothing by default.

The reference code (minyoungg/platonic-rep) clips outliers with one threshold over the whole tensor of layers, and the
paper adds all layers concatenated as one more candidate. Both are options here, and are stored with the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from repalign.errors import RepalignError, did_you_mean

CLIPS = ("exact", "mean")
SCOPES = ("representation", "layer")

CONCATENATED = "concatenated"


@dataclass(frozen=True)
class Preprocess:
    """A pure function of all layers of one representation.

    `clip`: None; "exact" clamps to the entry of rank int(quantile * size) of all magnitudes; "mean" clamps to the mean over
    stimuli of each stimulus's own quantile of magnitudes (linear interpolation), which the published numbers most
    likely used. `clip_scope`: one threshold for all layers ("representation", as the reference with one tensor) or one
    each ("layer", as the reference with a list of layers). `normalize_rows`: every row to unit norm, after clipping.
    `concatenate`: add a last layer with the features of all layers side by side, normalised again if rows are.
    """

    clip: str | None = None
    quantile: float = 0.95
    clip_scope: str = "representation"
    normalize_rows: bool = False
    concatenate: bool = False

    def __post_init__(self) -> None:
        if self.clip is not None and self.clip not in CLIPS:
            raise RepalignError(f"unknown clip {self.clip!r}", got=self.clip, remedy=did_you_mean(self.clip, CLIPS))
        if self.clip_scope not in SCOPES:
            remedy = did_you_mean(self.clip_scope, SCOPES)
            raise RepalignError(f"unknown clip_scope {self.clip_scope!r}", got=self.clip_scope, remedy=remedy)
        if not 0 < self.quantile <= 1:
            raise RepalignError("quantile is out of range", expected="0 < quantile <= 1", got=self.quantile)

    @property
    def is_identity(self) -> bool:
        return self.clip is None and not self.normalize_rows and not self.concatenate

    def layer_names(self, names: tuple[str, ...]) -> list[str]:
        """The names of the layers that come out."""
        return [*names, CONCATENATED] if self.concatenate else list(names)

    def __call__(self, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.clip is not None and self.quantile < 1:
            together = [list(layers)] if self.clip_scope == "representation" else [[name] for name in layers]
            limits = {name: self.threshold([layers[m] for m in group]) for group in together for name in group}
            layers = {name: x.clamp(-limits[name], limits[name]) for name, x in layers.items()}
        out = {name: _unit_rows(x) if self.normalize_rows else x for name, x in layers.items()}
        if self.concatenate:
            whole = torch.cat(list(layers.values()), dim=1)
            out[CONCATENATED] = _unit_rows(whole) if self.normalize_rows else whole
        return out

    def threshold(self, layers: list[Tensor]) -> float:
        """The magnitude that entries of these layers, taken together, are clamped to."""
        magnitudes = torch.cat([x.abs() for x in layers], dim=1)  # (n, sum of d)
        if self.clip == "mean":
            return float(_row_quantile(magnitudes, self.quantile).mean())
        flat = magnitudes.flatten()
        rank = min(int(self.quantile * flat.numel()), flat.numel() - 1)
        return float(flat.kthvalue(rank + 1).values)


def _row_quantile(x: Tensor, q: float) -> Tensor:
    """Each row's quantile by linear interpolation; by selection, since torch.quantile limits its input's size."""
    position = q * (x.shape[1] - 1)
    low = int(position)
    below = x.kthvalue(low + 1, dim=1).values
    above = x.kthvalue(min(low + 2, x.shape[1]), dim=1).values
    return below + (above - below) * (position - low)


def _unit_rows(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)
