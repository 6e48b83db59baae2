"""The ceilings that a comparison puts beside its scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repalign.comparison import ceilings
from repalign.comparison.tiles import Scored, Tile, keep, kept
from repalign.text import Progress


def seed_to_seed(tiles: Sequence[Tile], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """The layer search between two trainings of one model: what two models that differ by chance alone reach."""
    return [
        _ceiling("seed to seed", tile, statistic=float(s.rows["statistic"].iloc[0]), n=tile.x.n)
        for tile, s in zip(tiles, scored, strict=True)
    ]


def split_halves(tiles: Sequence[Tile], n_splits: int, folder: Path | None, progress: Progress) -> list[dict[str, Any]]:
    """Layers chosen on one half of the stimuli and scored on the other, kept beside the tiles."""
    out = []
    for done, tile in enumerate(tiles):
        progress("ceilings", done, len(tiles))
        key = f"{tile.key}-{n_splits}"
        path = None if folder is None else folder / "ceilings" / f"{key}.json"
        told = None if path is None else kept(path, key)
        if told is not None:
            out.append(told)
            continue
        null = tile.settings.null
        groups = None if null.groups is None else null.groups.labels
        found = ceilings.split_half(
            tile.x,
            tile.y,
            tile.measure,
            n_splits=n_splits,
            seed=null.seed,
            groups=groups,
            preprocess=tile.settings.preprocess,
        )
        told = {"statistic": found.statistic, "selected": found.selected, "reliability": found.reliability}
        told = {k: None if np.isnan(v) else v for k, v in told.items()}
        out.append(_ceiling("split half", tile, n=found.n_half, n_splits=n_splits, **told))
        if path is not None:
            keep(path, key, out[-1])
    if tiles:
        progress("ceilings", len(tiles), len(tiles))
    return out


def _ceiling(kind: str, tile: Tile, **numbers: Any) -> dict[str, Any]:
    return {"kind": kind, "measure": repr(tile.measure), "model_x": tile.x.name, "model_y": tile.y.name, **numbers}
