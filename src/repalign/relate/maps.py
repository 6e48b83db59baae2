"""A map of models: points in a plane whose distances follow those between the models.

After Figure 2 (right) of M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis (2024): UMAP of
-log(alignment). Which of the two distances is a metric, and how much a plane can hold of it, is reported with the map.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, choose, require
from repalign.measures import facts_of
from repalign.relate.findings import DISTANCES, Finding
from repalign.relate.jackknife import spearman
from repalign.relate.permutations import TIE
from repalign.relate.scores import PARAMETERS, Crossed, Models, Records, all_met, names_of, searched, stimuli

# Three points with a metric fit the plane always.
MIN_MODELS_MAP = 4
STARTS = 8
NEIGHBOURS = 15
DRAWS = 99
# Of the largest distance: what rounding may add to a triangle or take from a zero.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelMap(Finding):
    """Models in a plane, and how far the plane is to be believed.

    table : one row per model: model, modality, family, objective, n_parameters, x, y (the plane), and every score that
        a model has, else nan. Axes have no meaning, nor has the plane's orientation: distances have.
    distances : models by models, what the plane stands for. `distance` is its kind, a key of `DISTANCES`.
    stress : Kruskal's stress-1 of metric MDS, sqrt(sum (d - delta)^2 / sum d^2) over the pairs, d in the plane and delta
        given: 0 is perfect, .2 poor; nan for UMAP, whose distances have no scale.
    violations : share of the triangles of models in which one distance exceeds the sum of the other two.
    faithfulness : Spearman's correlation over pairs of the plane's distances with the given ones. `chance` is its mean
        and `pvalue` its p, (C + 1)/(draws + 1), when the same distances are dealt out to the pairs at random and mapped,
        from one start each (p compares them with one start of the map): what a plane can hold of distances without any
        structure. nan without draws.
    left_out : models without a defined score with every other. n_stimuli : n of every score.
    """

    kind = "map"
    measure: str
    method: str
    distance: str
    distances: pd.DataFrame
    stress: float
    violations: float
    faithfulness: float
    chance: float
    pvalue: float
    n_stimuli: int

    @property
    def n(self) -> int:
        """The number of models on the map."""
        return len(self.table)

    @property
    def n_triangles(self) -> int:
        """The number of triangles of models."""
        return math.comb(self.n, 3)


def model_map(
    table: pd.DataFrame, models: Models, *, measure: str | None = None, method: str = "mds",
    distance: str | None = None, draws: int = DRAWS, seed: int = 0,
) -> ModelMap:  # fmt: skip
    """Place models in a plane by how well they align with one another.

    Parameters
    ----------
    table : the table of an alignment in which models were compared among themselves; its "max" rows of `measure`. The
        two directions of an asymmetric measure are averaged.
    models : records of the models, as in the run's description: what points can be coloured by.
    measure : the first of the table by default.
    method : "mds", metric multidimensional scaling by SMACOF (scikit-learn), the best of eight starts; or "umap" from
        there (umap-learn, McInnes, Healy, Melville 2018), which keeps neighbourhoods rather than distances.
    distance : "-log", -log(alignment), the paper's, for scores above 0 (default if higher is closer); "one-minus",
        1 - alignment, which for mutual k-NN of one layer each is a pseudo-metric; "score", for measures that are
        distances (their default). After the search over layers no distance need keep the triangle inequality, and
        -log(alignment) does not in any case: `violations` says how often it fails.
    draws : maps of dealt-out distances, for `chance` and `pvalue`; 0 for none. seed : of starts, UMAP and draws.

    Raises
    ------
    RepalignError : two sides that met only one another; fewer than four models; a score at which the distance is
        undefined or negative; UMAP is not installed.
    """
    pairs, measure = searched(table, measure)
    embed = METHOD[choose("method", method, METHOD, f"no map by {method!r}")]
    distance = _checked(pairs, measure, distance)
    everyone = names_of(pairs, "both")
    scores = Crossed.of(pairs, "both", everyone, everyone).scores()
    kept = _complete(scores)
    if len(kept) < MIN_MODELS_MAP:
        raise RepalignError(
            "too few models for a map", got=f"{len(kept)} of {len(everyone)}",
            expected=f"{MIN_MODELS_MAP} models that all have a defined score with one another",
            remedy="compare more models among themselves",
        )  # fmt: skip
    names = [everyone[i] for i in kept]
    given = _distances(scores[np.ix_(kept, kept)], distance, names)
    plane = _upright(embed(given, seed, STARTS))
    spread = _between(plane)
    chance = _dealt(given, embed, draws, seed)
    alike = _faithfulness(_between(embed(given, seed, 1)), given) if draws else math.nan
    p = (int((~(chance < alike - TIE)).sum()) + 1) / (draws + 1)
    stress = float(np.sqrt(((spread - given) ** 2).sum() / (spread**2).sum())) if method == "mds" else math.nan
    return ModelMap(
        measure=measure, table=_points(names, plane, Records.of(models)), draws=draws, seed=seed,
        left_out=tuple(name for name in everyone if name not in names), method=method, distance=distance,
        distances=pd.DataFrame(given, names, names), stress=stress, violations=_violations(given),
        faithfulness=_faithfulness(spread, given), chance=float(np.mean(chance)) if draws else math.nan,
        pvalue=math.nan if math.isnan(alike) else p, n_stimuli=stimuli(pairs),
    )  # fmt: skip


# --- distances ---------------------------------------------------------------------------------


def _checked(pairs: pd.DataFrame, measure: str, distance: str | None) -> str:
    """The kind of distance, after refusing what cannot be mapped."""
    if not all_met(pairs):
        raise RepalignError(
            "a map needs the distances among all models, and these are of two sides that met only one another",
            expected="models compared among themselves",
            got=f"{pairs['model_x'].nunique()} models against {pairs['model_y'].nunique()} others",
            remedy="compare them as one set of models, without a second side",
        )  # fmt: skip
    closeness = facts_of(measure).closer_is_higher
    if distance is None:
        return "-log" if closeness else "score"
    choose("distance", distance, DISTANCES)
    if closeness == (distance == "score"):
        raise RepalignError(
            f"{measure} is {'no distance: higher is closer' if closeness else 'a distance: lower is closer'}",
            expected='"-log" or "one-minus"' if closeness else '"score"', got=repr(distance),
            remedy="leave `distance` out for the default",
        )  # fmt: skip
    return distance


def _complete(scores: np.ndarray) -> list[int]:
    """The models that are left when the one with the most undefined scores goes, until all scores are defined."""
    kept = list(range(len(scores)))
    while True:
        part = np.isnan(scores[np.ix_(kept, kept)]).sum(1) - 1
        if len(kept) < 2 or part.max() <= 0:
            return kept
        del kept[len(kept) - 1 - int(np.argmax(part[::-1]))]


def _distances(scores: np.ndarray, kind: str, names: Sequence[str]) -> np.ndarray:
    """Zero on the diagonal; refused if a score has no distance."""

    def refuse(bad: np.ndarray, problem: str, expected: str, instead: str) -> None:
        if bad.any():
            i, j = np.argwhere(bad)[0]
            count = int(np.triu(bad, 1).sum())
            raise RepalignError(
                f"{problem} for {count} pair{'s' * (count != 1)} of models", expected=expected,
                got=f"{scores[i, j]:.3g} for {names[i]} and {names[j]}", remedy=f"use {instead}, or leave the models out",
            )  # fmt: skip

    np.fill_diagonal(scores, 0.0 if kind == "score" else 1.0)
    if kind == "-log":
        refuse(scores <= 0, "-log(alignment) is undefined", "scores above 0", 'distance="one-minus"')
        given = -np.log(scores)
    else:
        given = 1 - scores if kind == "one-minus" else scores
    possible = "scores of at least 0" if kind == "score" else "scores of at most 1"
    refuse(given < -ROUNDING * np.abs(given).max(), "a distance would be negative", possible, "a measure that is bounded")
    if given.max() <= 0:
        raise RepalignError("all models are at the same place", expected="distances above 0", got=f"all scores {scores[0, 1]:g}")
    return np.maximum(given, 0.0)


def _violations(given: np.ndarray) -> float:
    """The share of triangles of three models that violate the triangle inequality."""
    n, count, slack = len(given), 0, ROUNDING * given.max()
    for i in range(n):
        a, b, c = given[i, i + 1 :, None], given[i, None, i + 1 :], given[i + 1 :, i + 1 :]
        bad = (a > b + c + slack) | (b > a + c + slack) | (c > a + b + slack)
        count += int(np.triu(bad, 1).sum())
    return count / math.comb(n, 3)


# --- the plane ---------------------------------------------------------------------------------


def _mds(given: np.ndarray, seed: int, starts: int) -> np.ndarray:
    from sklearn import config_context
    from sklearn.manifold import smacof

    # Of every step scikit-learn asks whether its numbers are finite, which takes a quarter of the time; ours were looked at.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        # The measure of fit is computed here, once for all releases: it was not returned for metric MDS before 1.7.
        return np.asarray(smacof(given, n_components=2, n_init=starts, n_jobs=1, max_iter=300, eps=1e-6, random_state=seed)[0])


def _umap(given: np.ndarray, seed: int, starts: int) -> np.ndarray:
    import torch

    with warnings.catch_warnings():
        # On import: that a neural variant lacks its library. On fitting: that new points cannot be added.
        warnings.filterwarnings("ignore", category=ImportWarning)
        warnings.filterwarnings("ignore", message="using precomputed metric|precomputed_knn", category=UserWarning)
        require('method "umap"', "map", "umap", otherwise=', or use method="mds"')
        from umap import UMAP

        # UMAP's own start needs more points than some maps have.
        start: Any = _mds(given, seed, starts).astype(np.float32)
        neighbors = min(NEIGHBOURS, len(given) - 1)
        # UMAP would find the same ones, with a function that numba compiles first, for six seconds.
        order = given.argsort(axis=1, kind="stable")[:, :neighbors]
        nearest = order, np.take_along_axis(given, order, axis=1)
        fit = UMAP(neighbors, metric="precomputed", precomputed_knn=nearest, init=start, random_state=seed, n_jobs=1)
        # numba, which UMAP runs on, gives the whole process another number of OpenMP threads, torch's among them.
        threads = torch.get_num_threads()
        try:
            return np.asarray(fit.fit_transform(given), float)
        finally:
            torch.set_num_threads(threads)


Embed = Callable[[np.ndarray, int, int], np.ndarray]
METHOD: dict[str, Embed] = {"mds": _mds, "umap": _umap}


def _upright(plane: np.ndarray) -> np.ndarray:
    """Centred, the longest direction along x, the point farthest along each axis on its positive side."""
    centred = plane - plane.mean(0)
    _, _, turn = np.linalg.svd(centred, full_matrices=False)
    turned = centred @ turn.T
    farthest = turned[np.abs(turned).argmax(0), [0, 1]]
    return turned * np.where(farthest < 0, -1.0, 1.0)


def _between(plane: np.ndarray) -> np.ndarray:
    return np.linalg.norm(plane[:, None] - plane[None], axis=-1)


def _faithfulness(spread: np.ndarray, given: np.ndarray) -> float:
    """Spearman's correlation of two distances over the pairs of models."""
    upper = np.triu_indices(len(given), 1)
    return spearman(spread[upper], given[upper])


def _dealt(given: np.ndarray, embed: Embed, draws: int, seed: int) -> np.ndarray:
    """The faithfulness of maps of the same distances dealt out to the pairs at random, (draws,)."""
    rng, upper = np.random.default_rng(seed), np.triu_indices(len(given), 1)
    out = np.empty(draws)
    for k in range(draws):
        dealt = np.zeros_like(given)
        dealt[upper] = rng.permutation(given[upper])
        dealt += dealt.T
        out[k] = _faithfulness(_between(embed(dealt, seed, 1)), dealt)
    return out


def _points(names: Sequence[str], plane: np.ndarray, records: Records) -> pd.DataFrame:
    """The models with their place, what they are, and their scores."""
    known = [records.get(name, {}) for name in names]
    out = pd.DataFrame({"model": names})
    for key in ("modality", "family", "objective"):
        out[key] = [str(record.get(key) or "") for record in known]
    out[PARAMETERS] = [math.nan if (n := record.get(PARAMETERS)) is None else float(n) for record in known]
    out["x"], out["y"] = plane.T
    scores = [record.get("scores") or {} for record in known]
    for key in dict.fromkeys(key for own in scores for key in own):
        values = [math.nan if (v := own.get(key)) is None else float(v) for own in scores]
        out[f"score {key}" if key in out else key] = values
    return out
