"""The highest scores to be expected: the upper end of the scale whose lower end is chance.

Two ceilings. Seed to seed: the alignment of two trainings of one model; what two models that differ in nothing but
chance reach. Split half: the layers are chosen on one half of the stimuli and scored on the other; what is left of a
score when its layers were not chosen on the data that score them, and how well the whole map of layers repeats.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repalign.comparison.alignment import keep, kept_in
from repalign.comparison.doctor import Examination
from repalign.comparison.intervals import halves_of, units_of
from repalign.comparison.preprocess import Preprocess
from repalign.comparison.tiles import Cache, Scored, Settings, Tile, groups_of
from repalign.errors import RepalignError
from repalign.files import Url
from repalign.measures import Bilinear, Measure, parse_measure
from repalign.null import Moments, Null, Permutations
from repalign.representation import DEFAULT_MEMORY, Representation, check_same_dataset
from repalign.text import Progress, silent, telling

# Pairs of models that are split together, so that a model is prepared once for all of them; a run that is killed does one such
# group again. There are `GROUPS` groups at most, each a file.
TOGETHER, GROUPS = 16, 16


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
    if n_splits < 1:
        raise RepalignError("a ceiling without a split", expected="n_splits >= 1", got=n_splits)
    tile = Tile(x, y, measure, Settings(Permutations(1), "studentised", 0.05, preprocess))
    if preprocess is not None:
        preprocess.check({f"{r.name}, layer {layer}": kind for r in (x, y) for layer, kind in r.kinds.items()})
    check_halves([tile], groups)
    (found,) = _split([tile], list(halves_of(units_of(x.n, groups), n_splits, seed)), DEFAULT_MEMORY, progress)
    return found


def group_labels(null: Null) -> Sequence[Hashable] | None:
    """The groups of stimuli that a null keeps together, by label."""
    groups = (null.sampler or null).groups
    return None if groups is None else groups.labels


def check_halves(tiles: Sequence[Tile], groups: Sequence[Hashable] | None) -> None:
    """Refuse measures for which half of the stimuli are too few, and groups that do not fit."""
    units_of(tiles[0].x.n, groups)
    kinds = {f"{r.name}, layer {layer}": kind for t in tiles for r in (t.x, t.y) for layer, kind in r.kinds.items()}
    for tile in {t.measure: t for t in tiles}.values():
        tile.measure.check(tile.x.n // 2, f"half of dataset {tile.x.dataset_name!r}", kinds)


def _split(
    tiles: Sequence[Tile], splits: Sequence[tuple[np.ndarray, np.ndarray]], memory: int, progress: Progress
) -> list[SplitHalf]:
    """Every tile on both halves of every split. A model is prepared once for a half, however many partners it has."""
    chosen, held_out, correlations = ([[] for _ in tiles] for _ in range(3))
    for halves in telling(splits, "split halves", progress):
        for i, maps in enumerate(zip(*(_maps(tiles, rows, memory) for rows in halves), strict=True)):
            for (scores, height), (other, _) in (maps, maps[::-1]):
                if not np.isnan(height).all():
                    best = np.unravel_index(np.nanargmax(height), height.shape)
                    chosen[i].append(scores[best])
                    held_out[i].append(other[best])
            correlations[i].append(_correlation(maps[0][0], maps[1][0]))
    out = []
    for tile, repeated, *found in zip(tiles, correlations, held_out, chosen, strict=True):
        r = float(np.mean(repeated))
        stepped_up = 2 * r / (1 + r) if r > -1 else math.nan
        means = (float(np.mean(v)) if v else math.nan for v in found)
        out.append(SplitHalf(*means, stepped_up, tile.x.n // 2, len(splits)))
    return out


def _maps(tiles: Sequence[Tile], rows: np.ndarray, memory: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every tile the scores of all layers by all layers on some stimuli, and their height above chance."""
    law = Moments(Permutations(1))
    # One object for all tiles of the same settings, as those given have: by these a cache knows what it holds.
    jobs = {(id(t.settings), isinstance(t.measure, Bilinear)): t.settings for t in tiles}
    new = {job: replace(how, null=law if job[1] else law.sampler, way="") for job, how in jobs.items()}
    some = [replace(t, settings=new[id(t.settings), isinstance(t.measure, Bilinear)]) for t in tiles]
    cache = Cache(memory, some, Examination(looks=False), rows=torch.from_numpy(rows))
    out: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for i in cache.order(some):
        measure = some[i].measure
        a, b = (cache.get(r, measure, some[i].settings) for r in (some[i].x, some[i].y))
        scores = measure.compare_all(a.states, b.states).numpy()
        height = measure.closeness(scores)
        if isinstance(measure, Bilinear):
            mean, sd, _ = law.moments(measure, a, b)
            height = np.where(sd > 0, (height - mean) / np.where(sd > 0, sd, 1.0), 0.0)
        out[i] = scores, np.where(np.isnan(scores), np.nan, height)
    return [out[i] for i in range(len(tiles))]


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


def split_halves(
    tiles: Sequence[Tile], n_splits: int, null: Null, folder: Path | Url | None, memory: int, progress: Progress
) -> list[dict[str, Any]]:
    """Choose layers on one half of the stimuli and score them on the other; kept in the folder of the tiles, by groups."""
    if not tiles:
        return []
    kept = {} if folder is None else {k: v for group in kept_in(folder / "ceilings").values() for k, v in group.items()}
    name_of = {id(t): f"{t.key if folder is not None else i}-{n_splits}" for i, t in enumerate(tiles)}
    waiting = [t for t in tiles if name_of[id(t)] not in kept]
    splits = list(halves_of(units_of(tiles[0].x.n, group_labels(null)), n_splits, null.seed))
    for places in groups_of(waiting, max(1, min(GROUPS, len(waiting) // TOGETHER))) if waiting else ():
        group = [waiting[i] for i in places]
        made = {}
        for tile, found in zip(group, _split(group, splits, memory, progress), strict=True):
            numbers = {name: getattr(found, name) for name in ("statistic", "selected", "reliability")}
            numbers = {name: None if np.isnan(value) else value for name, value in numbers.items()}
            made[name_of[id(tile)]] = _ceiling("split half", tile, n=found.n_half, n_splits=n_splits, **numbers)
        if folder is not None:
            key = hashlib.sha256("\n".join(made).encode()).hexdigest()[:24]
            keep(folder / "ceilings" / f"{key}.json", key, made)
        kept |= made
    return [kept[name_of[id(t)]] for t in tiles]


def _ceiling(kind: str, tile: Tile, **numbers: Any) -> dict[str, Any]:
    return {"kind": kind, "measure": repr(tile.measure), "model_x": tile.x.name, "model_y": tile.y.name, **numbers}
