"""Do two spaces of colours agree, and is that more than chance? repalign's measures and nulls, on given distances.

Distances take the place of features: the states that the measures compare are made of the distances themselves, so that
PMI, which need not be Euclidean, is judged as it is. Chance relabels the colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from repalign.errors import RepalignError
from repalign.measures import RSA, Measure, MutualKNN, Procrustes
from repalign.measures.measure import DenseRelation, GraphRelation, State, as_features
from repalign.measures.rdm import COMPARISONS
from repalign.null import Permutations
from repalign.prh.colour.options import ColourOptions
from repalign.prh.colour.spaces import ColourSpace

COLUMNS = (
    "space_x", "layer_x", "space_y", "layer_y", "n", "measure", "statistic", "null_mean", "null_std", "z", "pvalue",
    "pvalue_layers", "threshold", "null", "n_draws", "seed",
)  # fmt: skip

_NUMBERS = ("statistic", "null_mean", "null_std", "z", "pvalue", "threshold")


def rsa_state(distances: np.ndarray) -> DenseRelation:
    """The state of `RSA(comparison="spearman")` whose dissimilarities (n, n) are given."""
    return COMPARISONS["spearman"](torch.from_numpy(np.array(distances, float)))


def neighbor_state(distances: np.ndarray, k: int) -> GraphRelation:
    """The state of `MutualKNN(k)` whose distances (n, n) are given; ties go to the lower index, as everywhere."""
    d = np.array(distances, float)
    np.fill_diagonal(d, np.inf)
    return GraphRelation(torch.from_numpy(np.argsort(d, axis=1, kind="stable")[:, :k].copy()))


def score(x: ColourSpace, y: ColourSpace, options: ColourOptions, k: int) -> list[dict[str, Any]]:
    """Every layer of one space against every layer of another, on the colours that both have.

    Two measures: "RSA", Spearman's correlation of the two spaces' distances over all pairs of colours, and "MutualKNN",
    the share of k nearest neighbours in common (chance k / (n - 1)). Each against `n_draws` permutations of the colours:
    one row per pair of layers, with its p-value, and in `pvalue_layers` the family-wise p-value over all of these pairs.
    """
    common = [i for i in x.ids if i in set(y.ids)]
    if len(common) <= max(3, k):
        raise RepalignError(
            f"{x.name} and {y.name} share too few colours", expected=f"more than {max(3, k)}", got=len(common),
            remedy="use a smaller min_count or k, or the palette 'words' on both sides",
        )  # fmt: skip
    x, y = x.subset(common), y.subset(common)
    rsa, knn = RSA(dissimilarity="euclidean"), MutualKNN(k=k, similarity="euclidean")
    rows = []
    for label, measure, state in (("RSA", rsa, rsa_state), (f"MutualKNN(k={k})", knn, lambda d: neighbor_state(d, k))):
        a, b = ([state(d) for d in s.distances.values()] for s in (x, y))
        rows += _judged(label, measure, a, b, x, y, (tuple(x.distances), tuple(y.distances)), options)
    return rows


def score_layout(points: np.ndarray, x: ColourSpace, y: ColourSpace, options: ColourOptions) -> list[dict[str, Any]]:
    """`Procrustes` distance, in [0, sqrt 2] and 0 at best, of a layout of x from CIELAB, against permutations."""
    measure = Procrustes()
    a, b = ([measure.prepare(as_features(p))] for p in (points, x.lab))
    return _judged("Procrustes", measure, a, b, x, y, ((f"layout of {x.layout_layer}",), ("cielab",)), options)


def _judged(
    label: str, measure: Measure, a: Sequence[State], b: Sequence[State], x: ColourSpace, y: ColourSpace,
    layers: tuple[tuple[str, ...], tuple[str, ...]], options: ColourOptions,
) -> list[dict[str, Any]]:  # fmt: skip
    null = Permutations(n_draws=options.n_draws, seed=options.seed)
    judged = null.judge(measure, null.prepare(measure, a), null.prepare(measure, b))
    cells, rows = judged.cells, []
    for i, layer_x in enumerate(layers[0]):
        for j, layer_y in enumerate(layers[1]):
            numbers = {name: float(getattr(cells, name)[i, j]) for name in _NUMBERS}
            row = {
                "space_x": x.name, "layer_x": layer_x, "space_y": y.name, "layer_y": layer_y, "n": x.n, "measure": label,
                **numbers, "pvalue_layers": float(judged.found.stepdown[i, j]), "null": null.name,
                "n_draws": judged.n_draws, "seed": options.seed,
            }  # fmt: skip
            rows.append({c: row[c] for c in COLUMNS})
    return rows
