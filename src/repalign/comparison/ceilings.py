"""The highest scores to be expected: the upper end of the scale whose lower end is chance.

Two ceilings. Seed to seed: the alignment of two trainings of one model; what two models that differ in nothing but
chance reach. Split half: the layers are chosen on one half of the stimuli and scored on the other; what is left of a
score when its layers were not chosen on the data that score them, and how well the whole map of layers repeats.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repalign.comparison.alignment import keep, kept
from repalign.comparison.intervals import halves_of, units_of
from repalign.comparison.preprocess import Preprocess
from repalign.comparison.tiles import Scored, Tile
from repalign.errors import RepalignError
from repalign.files import Url
from repalign.layers import Given
from repalign.measures import Bilinear, Measure, parse_measure
from repalign.measures.measure import as_layer
from repalign.null import Moments, Permutations
from repalign.representation import Representation, check_same_dataset
from repalign.text import Progress, silent, telling


@dataclass(frozen=True)
class SplitHalf:
    """How an alignment repeats over halves of the stimuli, means over both directions of `n_splits` random splits.

    statistic : score on one half of the pair of layers that is best on the other, at n / 2 stimuli.
    selected : score of that pair on the half that chose it: what the choice adds is selected - statistic.
    reliability : Pearson's correlation of the two halves' maps of layers, stepped up to the whole by Spearman and Brown,
        2 r / (1 + r): the highest that any other map can be expected to correlate with this one is its square root. nan
        for one pair of layers, or without spread.
    """

    statistic: float
    selected: float
    reliability: float
    n_half: int
    n_splits: int


def split_half(
    x: Representation, y: Representation, measure: Measure | str, *, n_splits: int = 10, seed: int = 0,
    groups: Sequence[Hashable] | None = None, preprocess: Preprocess | None = None, progress: Progress = silent,
) -> SplitHalf:  # fmt: skip
    """Choose the layers on one half of the stimuli, score them on the other.

    The best pair is by z, score above chance in units of its spread, for a bilinear measure, else by the score itself.
    With `groups`, one label per stimulus, all stimuli of a label are in one half.

    Raises RepalignError where the datasets differ or half of the stimuli are too few for the measure.
    """
    check_same_dataset([x, y])
    measure = parse_measure(measure) if isinstance(measure, str) else measure
    preprocess = preprocess or Preprocess()
    if n_splits < 1:
        raise RepalignError("a ceiling without a split", expected="n_splits >= 1", got=n_splits)
    kinds = {f"{r.name}, layer {layer}": kind for r in (x, y) for layer, kind in r.kinds.items()}
    measure.check(x.n // 2, f"half of dataset {x.dataset_name!r}", kinds)
    preprocess.check(kinds)
    loaded = [{name: as_layer(r.load(name), f"{r.name}, layer {name}") for name in r.layers} for r in (x, y)]
    layers = [list(preprocess(side).values()) for side in loaded]
    chosen, held_out, correlations = [], [], []
    for halves in telling(list(halves_of(units_of(x.n, groups), n_splits, seed)), "split halves", progress):
        maps = [_maps(measure, *([f[torch.from_numpy(rows)] for f in side] for side in layers)) for rows in halves]
        for (scores, height), (other, _) in (maps, maps[::-1]):
            if np.isnan(height).all():
                continue
            best = np.unravel_index(np.nanargmax(height), height.shape)
            chosen.append(scores[best])
            held_out.append(other[best])
        correlations.append(_correlation(maps[0][0], maps[1][0]))
    r = float(np.mean(correlations))
    stepped_up = 2 * r / (1 + r) if r > -1 else math.nan
    means = (float(np.mean(v)) if v else math.nan for v in (held_out, chosen))
    return SplitHalf(*means, stepped_up, x.n // 2, n_splits)


def _maps(measure: Measure, x: Sequence[Given], y: Sequence[Given]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all layers by all layers, and their height above chance."""
    a, b = ([measure.prepare(f) for f in side] for side in (x, y))
    scores = measure.compare_all(a, b).numpy()
    closeness = measure.closeness(scores)
    if not isinstance(measure, Bilinear):
        return scores, closeness
    null = Moments(Permutations(1))
    mean, sd, _ = null.moments(measure, null.prepare(measure, a), null.prepare(measure, b))
    height = np.where(sd > 0, (closeness - mean) / np.where(sd > 0, sd, 1.0), 0.0)
    return scores, np.where(np.isnan(scores), np.nan, height)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, over the cells that both halves define; nan without spread."""
    both = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 2 or not a[both].std() * b[both].std() > 0:
        return math.nan
    return float(np.corrcoef(a[both], b[both])[0, 1])


# --- ceilings of a comparison --------------------------------------------------------------------


def seed_to_seed(tiles: Sequence[Tile], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """The layer search between two trainings of one model: what two models that differ by chance alone reach."""
    return [
        _ceiling("seed to seed", tile, statistic=float(s.rows["statistic"].iloc[0]), n=tile.x.n)
        for tile, s in zip(tiles, scored, strict=True)
    ]


def split_halves(tiles: Sequence[Tile], n_splits: int, folder: Path | Url | None, progress: Progress) -> list[dict[str, Any]]:
    """Choose layers on one half of the stimuli and score them on the other; kept in the folder of the tiles."""
    out = []
    for tile in telling(tiles, "ceilings", progress):
        key = "" if folder is None else f"{tile.key}-{n_splits}"
        path = None if folder is None else folder / "ceilings" / f"{key}.json"
        ceiling = None if path is None else kept(path, key)
        if ceiling is None:
            null, how = tile.settings.null, tile.settings.preprocess
            groups = None if null.groups is None else null.groups.labels
            found = split_half(tile.x, tile.y, tile.measure, n_splits=n_splits, seed=null.seed, groups=groups, preprocess=how)
            numbers = {name: getattr(found, name) for name in ("statistic", "selected", "reliability")}
            numbers = {name: None if np.isnan(value) else value for name, value in numbers.items()}
            ceiling = _ceiling("split half", tile, n=found.n_half, n_splits=n_splits, **numbers)
            if path is not None:
                keep(path, key, ceiling)
        out.append(ceiling)
    return out


def _ceiling(kind: str, tile: Tile, **numbers: Any) -> dict[str, Any]:
    return {"kind": kind, "measure": repr(tile.measure), "model_x": tile.x.name, "model_y": tile.y.name, **numbers}
