"""A map of models: points in a plane whose distances follow those between the models.

After Figure 2 (right) of M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis (2024): UMAP of
-log(alignment). Which of the two distances is a metric, and how much a plane can hold of it, is reported with the map.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.measures import parse_measure
from repalign.models import ModelRecord
from repalign.relate._fit import pearson, ranks
from repalign.relate._pairs import PARAMETERS, all_met, facts, names_of, scores_of, searched, stimuli
from repalign.relate._permute import TIE
from repalign.relate._words import p_words, signed

DISTANCES = {
    "-log": "−log(alignment)",
    "one-minus": "1 − alignment",
    "score": "the measure itself, a distance",
}
# Three points with a metric fit the plane always.
MIN_MODELS_MAP = 4
STARTS = 8
NEIGHBOURS = 15
DRAWS = 99
# Of the largest distance: what rounding may add to a triangle or take from a zero.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class ModelMap:
    """Models in a plane, and how far the plane is to be believed.

    table : one row per model: model, modality, family, objective, n_parameters, x, y (the plane), and every score that
        a model has, nan where it has none. Axes have no meaning, nor has the plane's orientation: distances have.
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

    measure: str
    method: str
    distance: str
    table: pd.DataFrame
    distances: pd.DataFrame
    stress: float
    violations: float
    n_triangles: int
    faithfulness: float
    chance: float
    pvalue: float
    draws: int
    seed: int
    n_stimuli: int
    left_out: tuple[str, ...]
    text: str

    @property
    def n(self) -> int:
        """The number of models on the map."""
        return len(self.table)


def model_map(
    table: pd.DataFrame,
    models: Sequence[Mapping[str, Any] | ModelRecord],
    *,
    measure: str | None = None,
    method: str = "mds",
    distance: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> ModelMap:
    """Place models in a plane by how well they align with one another.

    Parameters
    ----------
    table : the table of an alignment in which models were compared among themselves; its "max" rows of `measure`. The
        two directions of an asymmetric measure are averaged.
    models : records of the models, as in the run's description: what points can be coloured by.
    measure : the first of the table by default.
    method : "mds", metric multidimensional scaling by SMACOF (scikit-learn), the best of eight starts; or "umap" from
        there (umap-learn, McInnes, Healy, Melville 2018), which keeps neighbourhoods rather than distances.
    distance : "-log", -log(alignment), the paper's, for scores above 0 (default where higher is closer); "one-minus",
        1 - alignment, which for mutual k-NN of one layer each is a pseudo-metric; "score", for measures that are
        distances (their default). After the search over layers no distance need keep the triangle inequality, and
        -log(alignment) does not in any case: `violations` says how often it fails.
    draws : maps of dealt-out distances, for `chance` and `pvalue`; 0 for none. seed : of starts, UMAP and draws.

    Raises
    ------
    RepalignError : two sides that met only one another; fewer than four models; a score at which the distance is
        undefined or negative; UMAP is not installed.
    """
    pairs = searched(table, measure)
    name = str(pairs["measure"].iloc[0])
    kind = _checked(pairs, name, method, distance)
    names = names_of(pairs, "both")
    scores = scores_of(pairs, "both", names, names)
    kept = _complete(scores)
    left_out = tuple(n for i, n in enumerate(names) if i not in set(kept))
    if len(kept) < MIN_MODELS_MAP:
        raise RepalignError(
            "too few models for a map",
            expected=f"{MIN_MODELS_MAP} models that all have a defined score with one another",
            got=f"{len(kept)} of {len(names)}",
            remedy="compare more models among themselves",
        )
    names = [names[i] for i in kept]
    given = _distances(scores[np.ix_(kept, kept)], kind, names)
    embed = METHOD[method]
    plane = _upright(embed(given, seed, STARTS))
    upper = np.triu_indices(len(names), 1)
    spread = _between(plane)
    faithful = _spearman(spread[upper], given[upper])
    chance = _dealt(given, embed, draws, seed)
    alike = _spearman(_between(embed(given, seed, 1))[upper], given[upper]) if draws else math.nan
    as_good = int((~(chance < alike - TIE)).sum())
    violated, triangles = _triangles(given)
    stress = float(np.sqrt(((spread - given) ** 2).sum() / (spread**2).sum())) if method == "mds" else math.nan
    found = {
        "measure": name,
        "method": method,
        "distance": kind,
        "stress": stress,
        "violations": violated / triangles,
        "n_triangles": triangles,
        "faithfulness": faithful,
        "chance": float(np.mean(chance)) if draws else math.nan,
        "pvalue": (as_good + 1) / (draws + 1) if draws and not math.isnan(alike) else math.nan,
        "draws": draws,
        "seed": seed,
        "n_stimuli": stimuli(pairs),
        "left_out": left_out,
    }
    records = {m["name"]: m for m in map(facts, models)}
    points = _points(names, plane, records)
    return ModelMap(
        **found, table=points, distances=pd.DataFrame(given, names, names), text=_text(found, len(names), len(upper[0]))
    )


def _checked(pairs: pd.DataFrame, measure: str, method: str, distance: str | None) -> str:
    """The kind of distance, after refusing what cannot be mapped."""
    if method not in METHOD:
        raise RepalignError(f"no map by {method!r}", got=method, remedy=did_you_mean(method, METHOD))
    if not all_met(pairs):
        raise RepalignError(
            "a map needs the distances among all models, and these are of two sides that met only one another",
            expected="models compared among themselves",
            got=f"{pairs['model_x'].nunique()} models against {pairs['model_y'].nunique()} others",
            remedy="compare them as one set of models, without a second side",
        )
    closeness = parse_measure(measure).closer_is_higher
    if distance is None:
        return "-log" if closeness else "score"
    if distance not in DISTANCES:
        raise RepalignError(f"no distance {distance!r}", got=distance, remedy=did_you_mean(distance, DISTANCES))
    if closeness == (distance == "score"):
        raise RepalignError(
            f"{measure} is {'no distance: higher is closer' if closeness else 'a distance: lower is closer'}",
            expected='"-log" or "one-minus"' if closeness else '"score"',
            got=repr(distance),
            remedy="leave `distance` out for the default",
        )
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
    """Zero on the diagonal; refused where a score has no distance."""
    np.fill_diagonal(scores, 0.0 if kind == "score" else 1.0)
    if kind == "-log":
        _refuse(scores <= 0, scores, names, "-log(alignment) is undefined", "scores above 0", 'distance="one-minus"')
        given = -np.log(scores)
    else:
        given = 1 - scores if kind == "one-minus" else scores
    _refuse(
        given < -ROUNDING * np.abs(given).max(),
        scores,
        names,
        "a distance would be negative",
        "scores of at least 0" if kind == "score" else "scores of at most 1",
        "a measure that is bounded",
    )
    if given.max() <= 0:
        raise RepalignError("all models are at the same place", expected="distances above 0", got=f"all scores {scores[0, 1]:g}")
    return np.maximum(given, 0.0)


def _refuse(
    bad: np.ndarray, scores: np.ndarray, names: Sequence[str], problem: str, expected: str, instead: str
) -> None:
    if bad.any():
        i, j = np.argwhere(bad)[0]
        count = int(np.triu(bad, 1).sum())
        raise RepalignError(
            f"{problem} for {count} pair{'s' * (count != 1)} of models",
            expected=expected,
            got=f"{scores[i, j]:.3g} for {names[i]} and {names[j]}",
            remedy=f"use {instead}, or leave the models out",
        )


# --- the plane ---------------------------------------------------------------------------------


def _mds(given: np.ndarray, seed: int, starts: int) -> np.ndarray:
    from sklearn.manifold import smacof

    # The measure of fit is computed here, once for all releases: it was not returned for metric MDS before 1.7.
    plane, _ = smacof(given, n_components=2, n_init=starts, n_jobs=1, max_iter=300, eps=1e-6, random_state=seed)
    return plane


def _umap(given: np.ndarray, seed: int, starts: int) -> np.ndarray:
    with warnings.catch_warnings():
        # On import: that a neural variant lacks its library. On fitting: that new points cannot be added.
        warnings.filterwarnings("ignore", category=ImportWarning)
        warnings.filterwarnings("ignore", message="using precomputed metric", category=UserWarning)
        try:
            from umap import UMAP
        except ImportError as error:
            raise RepalignError(
                'method "umap" needs the package umap-learn',
                expected="umap-learn",
                got="not installed",
                remedy="pip install 'repalign[map]', or use method=\"mds\"",
            ) from error
        fit = UMAP(
            metric="precomputed",
            n_neighbors=min(NEIGHBOURS, len(given) - 1),
            init=_mds(given, seed, starts).astype(np.float32),  # its own start needs more points than some maps have
            random_state=seed,
            n_jobs=1,
        )
        with _same_threads():
            return np.asarray(fit.fit_transform(given), float)


@contextmanager
def _same_threads() -> Iterator[None]:
    """numba, which UMAP runs on, gives the whole process another number of OpenMP threads, torch's among them."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
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


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return pearson(ranks(a), ranks(b))


def _triangles(given: np.ndarray) -> tuple[int, int]:
    """How many triangles of three models violate the triangle inequality, and how many there are."""
    n, count = len(given), 0
    slack = ROUNDING * given.max()
    for i in range(n):
        a, b = given[i, i + 1 :, None], given[i, None, i + 1 :]
        c = given[i + 1 :, i + 1 :]
        bad = (a > b + c + slack) | (b > a + c + slack) | (c > a + b + slack)
        count += int(np.triu(bad, 1).sum())
    return count, math.comb(n, 3)


def _dealt(given: np.ndarray, embed: Embed, draws: int, seed: int) -> np.ndarray:
    """The faithfulness of maps of the same distances dealt out to the pairs at random, (draws,)."""
    rng = np.random.default_rng(seed)
    upper = np.triu_indices(len(given), 1)
    out = np.empty(draws)
    for k in range(draws):
        dealt = np.zeros_like(given)
        dealt[upper] = rng.permutation(given[upper])
        dealt += dealt.T
        out[k] = _spearman(_between(embed(dealt, seed, 1))[upper], dealt[upper])
    return out


# --- points and words --------------------------------------------------------------------------


def _points(names: Sequence[str], plane: np.ndarray, records: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    rows = []
    for name, (x, y) in zip(names, plane, strict=True):
        record = records.get(name, {})
        told = {key: str(record.get(key) or "") for key in ("modality", "family", "objective")}
        size = record.get(PARAMETERS)
        rows.append({"model": name, **told, PARAMETERS: math.nan if size is None else float(size), "x": x, "y": y})
    out = pd.DataFrame(rows)
    for key in dict.fromkeys(k for name in names for k in (records.get(name, {}).get("scores") or {})):
        column = f"score {key}" if key in out else key
        own = [(records.get(name, {}).get("scores") or {}).get(key) for name in names]
        out[column] = [math.nan if v is None else float(v) for v in own]
    return out


def _text(found: Mapping[str, Any], n: int, n_pairs: int) -> str:
    method = "Metric MDS" if found["method"] == "mds" else "UMAP"
    stress = "" if math.isnan(found["stress"]) else f"stress-1 {found['stress']:.2g}, "
    compared = ""
    if found["draws"]:
        compared = (
            f"; the same distances dealt out at random reach {signed(found['chance'])}, {p_words(found['pvalue'])} from "
            f"{found['draws']} draws"
        )
    out = [
        f"{method} of {n} models by {DISTANCES[found['distance']]} ({found['measure']}, n = {found['n_stimuli']:,}): "
        f"{stress}Spearman of distances in the plane with the given ones {signed(found['faithfulness'])} over {n_pairs} "
        f"pairs{compared}."
    ]
    share = found["violations"]
    told = "none" if share == 0 else f"{100 * share:.2g} %"
    out.append(f"Of {found['n_triangles']:,} triangles of models, {told} violate the triangle inequality.")
    if found["left_out"]:
        out.append(f"Left out, for undefined scores: {', '.join(found['left_out'])}.")
    return " ".join(out)
