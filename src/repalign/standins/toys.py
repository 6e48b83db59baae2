"""Stand-ins of toy models: the same network without training, or one that is only counted."""

from __future__ import annotations

import torch

from repalign.toyworld import names

COUNTED = "language-svd12-200"


def twin_of(name: str) -> tuple[str, tuple[str, ...]]:
    """The toy model that stands in, and its layers: itself if it needs no training, else the untrained one of its kind
    and nearest width. RepalignError for an unknown name, with those that are like it."""
    from repalign.toyworld.networks import build

    recipe, _ = names.find(name)
    if recipe.family == "svd":
        chosen = names.RECIPES[COUNTED]
    elif not recipe.steps:
        chosen = recipe
    else:
        like = [r for r in names.RECIPES.values() if r.family == recipe.family and r.objective == names.UNTRAINED]
        chosen = min(like, key=lambda r: (abs(r.width - recipe.width), r.width))
    with torch.random.fork_rng(devices=[]):
        return chosen.name, build(chosen).layers  # type: ignore[return-value]
