"""Brain alignment: how close models come to the brains of several people, beside how close these come to each other.

Everything is an RDM, a table of how unlike every two stimuli are: d_s that of recording s, above its diagonal, m that of a model.

    score    mean over people of sim(m, d_s), recordings of one person averaged first
    lower    mean over people of sim(mean of the other people, d_s)      what a perfect model can be expected to reach at least
    upper    mean over people of sim(mean of all people, d_s)            what no model can pass

Before a mean is taken RDMs are brought to one scale: Pearson mean 0 and sd 1, cosine a root mean square of 1, all that look at
ranks (Spearman, rho_a, Kendall) ranks; other measures take RDMs as they are.

Sources: Nili et al. 2014 (PLoS Computational Biology 10, e1003553) for the noise ceiling; Schuett et al. 2023 (eLife 12, e82566)
for means, for stimuli drawn with replacement and for the variance over people and stimuli at once; rsatoolbox, whose scores and
ceilings these are, with one departure in `_Errors`. Lin & Kriegeskorte 2023 (arXiv 2309.11028) for regions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.experiments.base import Found, Input
from repalign.text import Progress, counted, interval, named, number, p_sentence, pvalue, silent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from repalign.features import Found as Read
    from repalign.layers import RDM
    from repalign.measures import Measure

# Measures by the words of the field. rho_a and tau_a do not favour models that predict ties, such as categories.
WORDS = {
    "rho_a": "RSA(comparison='rho_a')",
    "spearman": "RSA(comparison='spearman')",
    "pearson": "RSA(comparison='pearson')",
    "cosine": "RSA(comparison='cosine')",
    "tau_a": "RSAKendall(tau='a')",
}
OVER = ("both", "subjects", "stimuli")
KINDS = ("rdm", "features")
RANKED = frozenset({"spearman", "rho_a", "tau_a", "tau_b"})
RESAMPLED = frozenset({"pearson", "cosine", *RANKED})  # comparisons that are defined with stimuli drawn twice
DRAWS, DRAWS_OF_TAU = 999, 199  # Kendall's tau is sorted anew in every draw
ALPHA = 0.05  # of the sentences
TIES = 0.1  # the share of tied dissimilarities of a model from which on a sentence warns
REGION = "region"


# --- what is found -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Brain(Found):
    """What `brain` found.

    `table` has a row per model, the closest first: `score`, `low`, `high` and `se` over what `over` says; `chance`, the mean of the
    score with relabelled stimuli, `threshold`, its 95th percentile, `p_chance` and `p_chance_holm`; the ceilings `lower` and
    `upper`; `gap`, the lower ceiling minus the score, with `gap_low`, `gap_high` and `p_gap`; `with_mean`, the similarity with the
    mean RDM of all people.

    `tables` has pairs (`difference` of the scores of two models, interval, `p`, `p_holm` and `p_bh` over all pairs), scores (model
    by recording), errors (standard errors over subjects, stimuli and both, and those that recordings as people would give), and,
    where labels name regions, regions (each recording, and what it was taken for).
    """

    table: pd.DataFrame
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    measure: Measure
    over: str
    n: int
    n_people: int
    n_recordings: int
    level: float
    draws: int
    how: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    identified: Identified | None = None
    shown: ClassVar[tuple[str, ...]] = ("model", "score", "low", "high", "chance", "p_chance_holm", "gap", "p_gap")

    @property
    def text(self) -> str:
        return " ".join(_sentences(self))

    def draw(self, **look: Any) -> Axes:
        """A point and an interval per model, the noise ceiling as a band, chance as a mark, people as faint points."""
        return _draw(self, look)


@dataclass(frozen=True, eq=False)
class Identified:
    """Whether recordings are known by their region: `accuracy`, `chance` with shuffled regions, p, and a row per recording."""

    accuracy: float
    chance: float
    p: float
    draws: int
    rows: pd.DataFrame


def brain(
    brain: Input, models: list[Input], *, measure: str = "rho_a", subjects: Path | None = None, region: str | None = None,
    over: str = "both", kind: str = "rdm", vector: str | None = None, level: float = 0.95, draws: int | None = None, seed: int = 0,
    progress: Progress = silent,
) -> Brain:  # fmt: skip
    """Which model is closest to the brains of several people, and how close could one be? With ceilings and chance.

    Stimuli are joined on ids; without any, row i is row i everywhere.

    Parameters
    ----------
    brain : The recordings: a file with a stack of RDMs (s, n, n) or of features (s, n, d) or with an array for each, a folder with
        a file for each, or a pattern such as 'sub-*.npy'. In Python also arrays, or a list or mapping of them.
    models : Files of the models, RDMs or features; each layer or matrix of a file is a model.
    measure : How RDMs are compared: rho_a, spearman, pearson, cosine, tau_a, or any measure that takes RDMs. Features become RDMs
        by its dissimilarity, for instance "RSA(dissimilarity='euclidean', comparison='pearson')"; by default 1 - correlation.
    subjects : A table (.csv .tsv .jsonl .parquet) with the columns id and subject: which recording is of whom. Without it each
        is taken for a person. With a column region too, recordings are also told by their region.
    region : Of recordings of several regions, the one that models are compared with.
    over : What the intervals are over: both (people and stimuli as new samples), subjects, or stimuli.
    kind : What square arrays are: rdm or features.
    vector : Of a file of recordings with several arrays, the name of the one that holds the stack.
    level : Of the intervals.
    draws : Relabellings for chance, and samples of stimuli; 999, for Kendall's tau 199.
    seed : Seed of the draws.
    progress : Called as it goes on.

    Raises
    ------
    RepalignError : one person alone; stimuli that do not pair; an RDM that is none or is constant; an unknown measure; labels that
        name no recording.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> seen = rng.standard_normal((30, 5))
    >>> people = np.stack([seen + rng.standard_normal(seen.shape) for _ in range(6)])
    >>> found = brain(people, {"sees": seen, "blind": rng.standard_normal((30, 5))}, measure="pearson", draws=99)
    >>> found.table["model"].tolist(), bool(found.tables["pairs"]["p_holm"][0] < 0.01)
    (['sees', 'blind'], True)
    """
    _check(over, kind, level, draws)
    chosen = _measure(measure)
    compared = _comparison(chosen)
    if compared not in RESAMPLED and over != "subjects":
        raise RepalignError(
            f"{chosen!r} is not defined with stimuli drawn twice", expected=f"over='subjects', or one of {', '.join(WORDS)}",
            got=f"over={over!r}", remedy="say over subjects: intervals then hold for these stimuli",
        )  # fmt: skip
    recordings, candidates, how = _read_all(brain, models, kind, vector, chosen)
    labels = _labels(subjects, list(recordings))
    identified = _identify(labels, recordings, chosen, draws or DRAWS, seed)
    labels = _of_region(labels, region)
    recordings = {name: recordings[name] for name in labels["id"]}
    data = _Data.of(recordings, candidates, labels["subject"].tolist(), chosen, compared)
    number_of_draws = draws or (DRAWS_OF_TAU if compared.startswith("tau") else DRAWS)
    return data.judged(over, level, number_of_draws, seed, progress, how=how, identified=identified)


def _check(over: str, kind: str, level: float, draws: int | None) -> None:
    choose("over", over, OVER)
    choose("kind", kind, KINDS)
    if not 0 < level < 1:
        raise RepalignError("level is not a probability", expected="0 < level < 1, such as 0.95", got=repr(level))
    if draws is not None and draws < 2:
        raise RepalignError("draws is out of range", expected="at least 2", got=draws)


def _measure(text: Any) -> Measure:
    """A measure that takes RDMs, by a word of the field or as measures are named elsewhere."""
    from repalign.measures import Measure, parse_measure
    from repalign.measures.registry import known_measures

    if isinstance(text, Measure):
        found = text
    else:
        named_so = {name: cls for cls in known_measures() for name in (cls.__name__, *cls.aliases, *cls.shorthands)}
        if text not in WORDS and text.partition("(")[0] not in named_so:
            choose("measure", text, (*WORDS, *(name for name, cls in named_so.items() if "rdm" in cls.takes)))
        found = parse_measure(WORDS.get(text) or text)
    found.check(max(3, found.min_n), "brain", {"brain": "rdm"})
    if not found.closer_is_higher or not found.paired:
        raise RepalignError(
            f"{found!r} gives no score of brain alignment", expected="a similarity of paired stimuli, larger where closer",
            got="a distance" if found.paired else "a measure that does not know which stimulus is which",
            remedy=f"use one of {', '.join(WORDS)}",
        )  # fmt: skip
    return found


def _comparison(measure: Measure) -> str:
    """The word for how a measure compares RDMs; "other" for what is no RSA."""
    from repalign.measures.rdm import RSA, RSAKendall

    if isinstance(measure, RSA):
        return measure.comparison
    return f"tau_{measure.tau}" if isinstance(measure, RSAKendall) else "other"


# --- reading -------------------------------------------------------------------------------------


def _read_all(
    brain: Any, models: Any, kind: str, vector: str | None, measure: Measure
) -> tuple[dict[str, RDM], dict[str, RDM], tuple[str, ...]]:
    """All recordings and all models as RDMs of the same stimuli, and how these were paired."""
    from repalign.features import join

    of_brain, of_models = _sources(brain, "brain", kind, vector), _sources(models, "model", kind, None)
    if not of_models:
        raise RepalignError("no model to compare", expected="at least one file of a model", got="none")
    joined = join([*of_brain.values(), *of_models.values()])
    layers = dict(zip((*of_brain, *(f"m:{k}" for k in of_models)), joined.layers, strict=True))
    recordings = _named({k: layers[k] for k in of_brain})
    candidates = _named({k: layers[f"m:{k}"] for k in of_models})
    measure.check(joined.n, "brain")
    return _rdms(recordings, measure), _rdms(candidates, measure), joined.how


def _sources(given: Any, what: str, kind: str, vector: str | None) -> dict[str, Read]:
    """What is given, read: a file or an object each, by name."""
    from repalign.features import read_features
    from repalign.features.rule import Found as Read

    if isinstance(given, (str, Path)):
        return {_stem(path): _read_file(path, kind, vector) for path in _files(given, what)}
    if isinstance(given, (list, tuple)):
        out: dict[str, Read] = {}
        for i, one in enumerate(given):
            found = _sources(one, f"{what} {i}", kind, vector)
            out |= {name if name not in out else f"{name} {i}": read for name, read in found.items()}
        return out
    if isinstance(given, Read):
        return {what: given}
    marked = {str(k): _marked(v, kind) for k, v in given.items()} if isinstance(given, Mapping) else _marked(given, kind)
    return {what: read_features(marked, name=what, axes=None if isinstance(given, Mapping) else "lnd")}


def _marked(x: Any, kind: str) -> Any:
    """A square array in memory as the RDM that it is taken for."""
    from repalign.layers import RDM

    shape = tuple(getattr(x, "shape", ()))
    is_square = kind == "rdm" and len(shape) in (2, 3) and len(set(shape[-2:])) == 1 and not hasattr(x, "columns")
    return RDM(x) if is_square and not isinstance(x, RDM) and type(x).__module__.partition(".")[0] in ("numpy", "torch") else x


def _files(given: str | Path, what: str) -> list[Path]:
    """A file, those of a folder, or those that a pattern names."""
    from repalign.features import feature_files, is_features
    from repalign.tables import refuse_missing

    path = Path(given).expanduser()
    if not path.exists() and any(c in path.name for c in "*?["):
        found = sorted(path.parent.glob(path.name))
        if not found:
            raise RepalignError(f"no file {given}", expected=f"files of {what}", got=f"none in {path.parent}")
        return found
    refuse_missing(path)
    if is_features(path):
        return [path]
    found = feature_files(path)
    if not found:
        raise RepalignError(f"{path}: no file of features or RDMs in this folder", expected="a file for each", got="none")
    return found


def _stem(path: Path) -> str:
    return path.name.partition(".")[0] or path.name


def _read_file(path: Path, kind: str, vector: str | None) -> Read:
    """Square arrays as RDMs, unless they are said to be features; everything else by the rule of features."""
    from repalign.features import Reading, file_widths, read_file

    plain = Reading(axes="lnd", vector=vector, kind="features" if kind == "features" else None)
    if kind == "features":
        return read_file(path, plain)
    squares = Reading(kind="rdm", vector=vector)
    try:
        file_widths(path, squares)
    except RepalignError:  # nothing in it is square
        return read_file(path, plain)
    try:
        found = read_file(path, plain)
    except RepalignError:  # a symmetric array, or a stack
        return read_file(path, squares)
    is_square = any(tuple(x.shape) == (found.n, found.n) for x in found.layers.values())
    return read_file(path, squares) if is_square else found  # which says why it is no RDM


def _named(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One name for each layer of all sources: that of the layer, that of its source where it is the only one, or both."""
    every = [layer for found in layers.values() for layer in found]
    out: dict[str, Any] = {}
    for source, found in layers.items():
        for layer, x in found.items():
            counted_only = re.fullmatch(r"(?:rdm|features|layer)(?:\.(\d+))?", layer)  # the reader's own names
            name = layer if every.count(layer) == 1 else f"{source} {layer}"
            if counted_only:
                name = source if counted_only[1] is None else f"{source} {counted_only[1]}"
            elif len(found) == 1 and len(layers) > 1:
                name = source
            out[name] = x
    return out


def _rdms(layers: Mapping[str, Any], measure: Measure) -> dict[str, RDM]:
    """Every layer as an RDM in float64. Raises RepalignError for one in which all dissimilarities are alike."""
    import torch

    from repalign.layers import RDM, kind_of
    from repalign.measures.measure import as_layer
    from repalign.measures.numerics.distances import dissimilarities, upper

    out = {}
    for name, layer in layers.items():
        x = as_layer(layer, name)
        measure.check(len(x), name, {name: kind_of(x)})
        if isinstance(x, RDM):
            values = upper(x.matrix.to(torch.float64))
        else:
            found = dissimilarities(x, getattr(measure, "dissimilarity", "euclidean"))
            values = np.zeros(1) if found is None else upper(found.matrix.to(torch.float64)) * found.unit
        if not np.ptp(values) > 1e-9 * np.abs(values).max():
            raise RepalignError(
                f"{name}: a constant RDM", expected="pairs of stimuli that are more and less unlike",
                got=f"{number(float(values[0]))} for every pair", remedy="leave it out: nothing correlates with it",
            )  # fmt: skip
        out[name] = _rdm(values)
    return out


def _rdm(values: np.ndarray) -> RDM:
    import torch
    from scipy.spatial.distance import squareform

    from repalign.layers import RDM

    return RDM(torch.from_numpy(squareform(values, checks=False)))


def _labels(given: Any, names: list[str]) -> pd.DataFrame:
    """The columns id, subject, and region if there is one, in the order of the recordings."""
    import pandas as pd

    from repalign.tables import column_of, is_missing, read_table, table_of

    if given is None:
        return pd.DataFrame({"id": names, "subject": names})
    if isinstance(given, Mapping):
        given = [{"id": name, "subject": subject} for name, subject in given.items()]
    table = read_table(Path(given), what="the table of subjects") if isinstance(given, (str, Path)) else table_of(given)
    where = str(given) if isinstance(given, (str, Path)) else "subjects"
    if table is None or not {"id", "subject"} <= set(table.columns):
        got = type(given).__name__ if table is None else ", ".join(table.columns)
        raise RepalignError(f"{where}: not a table of subjects", expected="the columns id and subject", got=got)
    ids = column_of(table, "id", where, "id")
    known = set(names)
    if not known & set(ids):
        raise RepalignError(
            f"{where}: it names no recording", expected=f"ids such as {names[0]!r}", got=named([repr(i) for i in ids], 3),
            remedy="write the names of the recordings as their file has them: names of matrices, or of files",
        )  # fmt: skip
    row_of = {i: row for i, row in zip(ids, table.rows, strict=True) if i in known}
    without = [name for name in names if name not in row_of or is_missing(row_of[name].get("subject"))]
    if without or len(set(ids)) < len(ids):
        got = f"{len(without)} without one, the first is {without[0]!r}" if without else "an id twice"
        raise RepalignError(f"{where}: labels do not fit the recordings", expected="a subject for every recording", got=got)
    columns = ["subject", *([REGION] if REGION in table.columns else [])]
    empty = next((name for name in names if REGION in columns and is_missing(row_of[name][REGION])), None)
    if empty is not None:
        raise RepalignError(f"{where}: {empty!r} has no region", expected="a region for every recording", got="an empty cell")
    return pd.DataFrame({"id": names} | {c: [str(row_of[name][c]) for name in names] for c in columns})


def _of_region(labels: Any, region: str | None) -> pd.DataFrame:
    """The recordings of one region, of at least two people."""
    if region is not None and REGION not in labels:
        raise RepalignError("no recording has a region", expected="a column region in the table of subjects", got=repr(region))
    if REGION in labels:
        there = list(dict.fromkeys(labels[REGION]))
        if region is None and len(there) > 1:
            raise RepalignError(
                f"recordings of {len(there)} regions", expected="the region that models are compared with", got=named(there),
                remedy=f"say region={there[0]!r} (--region)",
            )  # fmt: skip
        labels = labels[labels[REGION] == choose("region", region or there[0], there)]
    if labels["subject"].nunique() < 2:
        raise RepalignError(
            "one subject alone", expected="recordings of two people or more: a noise ceiling is what they share",
            got=f"{counted(len(labels), 'recording')} of {labels['subject'].iloc[0]!r}",
            remedy="give a stack (s, n, n) or several files; one RDM against models is `repalign pair`",
        )  # fmt: skip
    return labels


# --- means and scores ----------------------------------------------------------------------------


def _on_one_scale(vectors: np.ndarray, compared: str) -> np.ndarray:
    """RDMs (s, N) as they are before their mean is taken: as rsatoolbox's `pool_rdm`."""
    from repalign.measures.numerics.distances import average_ranks

    if compared in RANKED:
        return np.stack([average_ranks(v) for v in vectors])
    if compared.endswith("cosine"):
        return vectors / np.sqrt((vectors**2).mean(1, keepdims=True))
    if compared.endswith("pearson"):
        centred = vectors - vectors.mean(1, keepdims=True)
        return centred / centred.std(1, keepdims=True)
    return vectors


def _pooled(scaled: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means (k, N) of RDMs (s, N) by weights (k, s), moved so that none is below zero, which no centred comparison sees."""
    mean = weights @ scaled
    return mean - np.minimum(mean.min(1, keepdims=True), 0)


def _mean_weights(owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a recording counts in the mean of all people (1, s), and in the mean of all but the person of each (s, s)."""
    sizes = np.bincount(owner)
    each = 1 / sizes[owner]
    others = np.where(owner[:, None] == owner, 0.0, each)
    return each[None] / len(sizes), others / (len(sizes) - 1)


@dataclass(frozen=True, eq=False)
class _Data:
    """RDMs of s recordings of P people and of M models, as vectors and as matrices, and what they are compared by."""

    names: list[str]
    models: list[str]
    people: list[str]  # of every recording
    owner: np.ndarray  # (s,) which person, from 0 on
    recorded: np.ndarray  # (s, N)
    predicted: np.ndarray  # (M, N)
    bounds: np.ndarray  # (s + 1, N): the mean of the others for each recording, and the mean of all
    measure: Measure
    compared: str
    n: int

    @classmethod
    def of(
        cls, recordings: Mapping[str, RDM], candidates: Mapping[str, RDM], people: list[str], measure: Measure, compared: str
    ) -> _Data:
        from repalign.measures.numerics.distances import upper

        codes: dict[str, int] = {}
        owner = np.array([codes.setdefault(p, len(codes)) for p in people])
        recorded, predicted = (np.stack([upper(r.matrix) for r in some.values()]) for some in (recordings, candidates))
        everyone, others = _mean_weights(owner)
        bounds = _pooled(_on_one_scale(recorded, compared), np.concatenate([others, everyone]))
        n = len(next(iter(recordings.values())))
        return cls(list(recordings), list(candidates), people, owner, recorded, predicted, bounds, measure, compared, n)

    @property
    def to_people(self) -> np.ndarray:
        """(s, P): the mean over the recordings of each person."""
        own = self.owner[:, None] == np.arange(self.owner.max() + 1)
        return own / own.sum(0)

    def states(self, vectors: np.ndarray) -> list[Any]:
        return [self.measure.prepare(_rdm(v)) for v in vectors]

    def scores(self) -> np.ndarray:
        """(M + 2, s): models, then both ends of the ceiling, with every recording."""
        recorded, bounds = self.states(self.recorded), self.states(self.bounds)
        of_models = self.measure.compare_all(self.states(self.predicted), recorded).numpy()
        lower = [self.measure.compare(bound, one) for bound, one in zip(bounds, recorded, strict=False)]
        return np.vstack([of_models, lower, self.measure.compare_all(bounds[-1:], recorded).numpy()])

    def with_mean(self) -> np.ndarray:
        """(M,): models with the mean RDM of all people, not brought to one scale."""
        mean = self.states(_pooled(self.recorded, _mean_weights(self.owner)[0]))
        return self.measure.compare_all(self.states(self.predicted), mean).numpy()[:, 0]

    def chance(self, draws: int, seed: int) -> np.ndarray:
        """(draws, M): scores with the stimuli of the brains relabelled, all recordings alike."""
        from repalign.measures.measure import DenseRelation
        from repalign.null import Permutations
        from repalign.null.null import Prepared

        a, b = (self.states(v) for v in (self.predicted, self.recorded))
        weights = self.to_people.mean(1)
        if self.compared in RESAMPLED and all(isinstance(s, DenseRelation) for s in b):
            # Scores are inner products with relations of unit norm, so that their mean is that with the mean relation.
            mean: Any = sum(float(w) * s.matrix for w, s in zip(weights, b, strict=True))
            b, weights = [DenseRelation(mean, 1.0)], np.ones(1)
        return Permutations(draws, seed).draws(self.measure, Prepared(a), Prepared(b)) @ weights

    def judged(
        self, over: str, level: float, draws: int, seed: int, progress: Progress, *, how: tuple[str, ...],
        identified: Identified | None,
    ) -> Brain:  # fmt: skip
        """Scores, ceilings, chance, errors and differences as tables."""
        import pandas as pd

        from repalign.null.calibration import calibrate, holm

        scores, count = self.scores(), len(self.models)
        people = scores @ self.to_people  # (M + 2, P)
        samples = None if over == "subjects" else self.resampled(draws, seed, progress)
        errors = _Errors(people, samples, self.n, self.to_people)
        found = calibrate(people[:count].mean(1), self.chance(draws, seed + 1), alpha=ALPHA)
        own = np.eye(count + 2)
        each = errors.of(own[:count], over, level)
        gap = errors.of(own[count] - own[:count], over, level)
        table = pd.DataFrame(
            {
                "model": self.models, "score": each["value"], "low": each["low"], "high": each["high"], "se": each["se"],
                "chance": found.null_mean, "threshold": found.threshold, "p_chance": found.pvalue,
                "p_chance_holm": holm(found.pvalue), "lower": people[count].mean(), "upper": people[count + 1].mean(),
                "gap": gap["value"], "gap_low": gap["low"], "gap_high": gap["high"], "p_gap": gap["p"],
                "with_mean": self.with_mean(),
            }
        )  # fmt: skip
        order = np.argsort(-table["score"].to_numpy(), kind="stable")
        tables = {
            "pairs": self.pairs(errors, order, over, level),
            "scores": pd.DataFrame(scores[:count][order].T, columns=[self.models[i] for i in order]).assign(
                recording=self.names, subject=self.people, lower=scores[count], upper=scores[count + 1]
            ),
            "errors": self.errors(errors, scores, order),
        }
        if identified is not None:
            tables["regions"] = identified.rows
        return Brain(
            table=table.iloc[order].reset_index(drop=True), tables=tables, measure=self.measure, over=over, n=self.n,
            n_people=people.shape[1], n_recordings=len(self.names), level=level, draws=draws, how=how,
            remarks=tuple(self.remarks()), identified=identified,
        )  # fmt: skip

    def pairs(self, errors: _Errors, order: np.ndarray, over: str, level: float) -> pd.DataFrame:
        """A row for every two models, the closer one first."""
        import pandas as pd

        from repalign.null.calibration import benjamini_hochberg, holm

        a, b = (order[k] for k in np.triu_indices(len(order), 1))
        own = np.eye(len(self.models) + 2)
        found = errors.of(own[a] - own[b], over, level)
        rows = pd.DataFrame({"model_a": [self.models[i] for i in a], "model_b": [self.models[i] for i in b]})
        rows = rows.assign(difference=found["value"], **{k: found[k] for k in ("low", "high", "se", "df", "p")})
        return rows.assign(p_holm=holm(found["p"]), p_bh=benjamini_hochberg(found["p"]))

    def errors(self, errors: _Errors, scores: np.ndarray, order: np.ndarray) -> pd.DataFrame:
        """Standard errors of each score by what is sampled, and those that recordings as people would give."""
        import pandas as pd

        own = np.eye(len(self.models) + 2)[order]
        rows = {"model": [self.models[i] for i in order]}
        known = [o for o in OVER if o == "subjects" or errors.samples is not None]
        rows |= {f"se_{o}": errors.of(own, o, 0.95)["se"] for o in known}
        return pd.DataFrame(rows).assign(se_recordings=scores[order].std(1, ddof=1) / math.sqrt(scores.shape[1]))

    def remarks(self) -> Iterator[str]:
        """What favours a model for a reason of the measure."""
        if self.compared not in ("spearman", "tau_b"):
            return
        for name, values in zip(self.models, self.predicted, strict=True):
            share = 1 - len(np.unique(values)) / len(values)
            if share > TIES:
                other = "rho_a" if self.compared == "spearman" else "tau_a"
                yield f"{name} predicts ties ({100 * share:.0f} % of its RDM), which this measure favours; {other} does not."

    # --- stimuli drawn with replacement ----------------------------------------------------------

    def resampled(self, draws: int, seed: int, progress: Progress) -> np.ndarray:
        """(draws, M + 2, s): the scores in samples of n stimuli with replacement, pairs of a stimulus with itself left out.

        A pair of stimuli that are drawn a and b times counts a b times.
        """
        from repalign.measures.numerics.distances import dense_ranks

        generator, count, s = np.random.default_rng(seed), len(self.models), len(self.names)
        i, j = np.triu_indices(self.n, 1)
        x, y = np.concatenate([self.predicted, self.bounds]), self.recorded
        if self.compared in RANKED:
            x, y = (np.stack([dense_ranks(v) for v in some]) for some in (x, y))
        needed = np.vstack([np.ones((count, s), bool), np.eye(s, dtype=bool), np.ones((1, s), bool)])
        out = np.empty((draws, count + 2, s))
        for k in range(draws):
            if k % 50 == 0:
                progress("samples of stimuli", k, draws)
            times = np.bincount(generator.integers(self.n, size=self.n), minlength=self.n)
            weights = times[i] * times[j]
            there = np.flatnonzero(weights)
            found = weighted(self.compared, x[:, there], y[:, there], weights[there], needed)
            out[k] = np.vstack([found[:count], found[count:-1].diagonal(), found[-1]])
        progress("samples of stimuli", draws, draws)
        return out


def weighted(compared: str, x: np.ndarray, y: np.ndarray, weights: np.ndarray, needed: np.ndarray | None = None) -> np.ndarray:
    """Similarities (q, s) of RDMs x (q, N) and y (s, N) of which every entry stands there `weights` (N,) times.

    Of ranked comparisons x and y are ranks without gaps, integers from 0 on. nan where one is constant.
    """
    if compared.startswith("tau"):
        return _weighted_tau(compared, x, y, weights, np.ones((len(x), len(y)), bool) if needed is None else needed)
    total = weights.sum()
    if compared in RANKED:
        x, y = (np.stack([_midranks(v, weights) for v in some]) - (total + 1) / 2 for some in (x, y))
    elif compared == "pearson":
        x, y = (v - (v @ weights / total)[:, None] for v in (x, y))
    wx = x * weights
    products = wx @ y.T
    if compared == "rho_a":
        return products * 12 / (total**3 - total)
    norms = np.sqrt(np.outer((wx * x).sum(1), (y * y) @ weights))
    floor = 1e-12 * norms.max(initial=0.0)
    return np.divide(products, norms, out=np.full_like(products, np.nan), where=norms > floor)


def _midranks(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks 1..sum of weights of values with multiplicities, tied ones at their average."""
    sizes = np.bincount(codes, weights)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[codes]


def _weighted_tau(compared: str, x: np.ndarray, y: np.ndarray, weights: np.ndarray, needed: np.ndarray) -> np.ndarray:
    from scipy.stats import kendalltau

    at = np.repeat(np.arange(len(weights)), weights)
    x, y = x[:, at], y[:, at]
    total = len(at)

    def untied(codes: np.ndarray) -> float:
        sizes = np.bincount(codes).astype(float)
        return 1 - float((sizes * (sizes - 1)).sum()) / (total * (total - 1))

    shares = [np.array([untied(v) for v in some]) for some in (x, y)]
    out = np.full(needed.shape, np.nan)
    for q, s in zip(*np.nonzero(needed & (np.outer(*shares) > 0)), strict=True):
        found: Any = kendalltau(x[q], y[s], method="asymptotic")
        out[q, s] = found.statistic * (math.sqrt(shares[0][q] * shares[1][s]) if compared == "tau_a" else 1)
    return out


# --- errors --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Errors:
    """Scores of models and ceilings by person (M + 2, P), and those of samples of stimuli (draws, M + 2, s), if there are any."""

    people: np.ndarray
    samples: np.ndarray | None
    n: int
    to_people: np.ndarray

    def of(self, contrasts: np.ndarray, over: str, level: float) -> dict[str, np.ndarray]:
        """Contrasts (c, M + 2) of mean scores: value, standard error, degrees of freedom, interval, and p of a value of 0.

        t of P - 1 degrees of freedom over people, n - 1 over stimuli, and the fewer of both over both. Those of Satterthwaite would
        give shorter intervals, but p that are too small far out: with four people .016 at a nominal .002 (1,000 simulations).
        """
        from scipy.special import stdtr, stdtrit

        value = contrasts @ self.people.mean(1)
        variance, df = self._variances(contrasts, over)
        se = np.sqrt(variance)
        reach = stdtrit(df, (1 + level) / 2) * se
        with np.errstate(divide="ignore", invalid="ignore"):
            p = np.where(se > 0, 2 * stdtr(df, -np.abs(value / se)), np.where(value == 0, 1.0, np.nan))
        return {"value": value, "se": se, "df": df, "low": value - reach, "high": value + reach, "p": p}

    def _variances(self, contrasts: np.ndarray, over: str) -> tuple[np.ndarray, np.ndarray]:
        """The variance of each contrast (c,), and its degrees of freedom.

        Over people V_p = sd^2 / P: what the bootstrap over people gives in all its draws, times P / (P - 1). Over stimuli V_n is
        the variance over samples of stimuli, times n / (n - 1). Over both, drawn together, the interaction of people and stimuli
        counts three times in the bootstrap, so it is taken off (Schuett et al. 2023, in the form for small samples of rsatoolbox):

            V = V_p + V_n - I,  I = n P / ((n - 1) (P - 1)) (B_pn - B_p - B_n) >= 0,  V >= V_p, V_n

        with B the variances of the bootstraps as drawn. rsatoolbox also holds V below B_pn, which few people make less than V_p.
        """
        own = contrasts @ self.people  # (c, P)
        count = own.shape[1]
        of_people = own.var(1, ddof=1) / count
        if over == "subjects" or self.samples is None:
            return of_people, np.full(len(own), count - 1.0)
        samples = np.einsum("cm,kmp->kcp", contrasts, self.samples @ self.to_people)
        scale_n = self.n / (self.n - 1)
        drawn_n = np.nanvar(samples.mean(2), axis=0)
        of_stimuli = drawn_n * scale_n
        if over == "stimuli":
            return of_stimuli, np.full(len(own), self.n - 1.0)
        # Over all draws of people: the mean over them of the variance given a sample of stimuli, and the variance of the means.
        drawn_p = own.var(1) / count
        drawn_both = np.nanmean(samples.var(2), axis=0) / count + drawn_n
        interaction = scale_n * count / (count - 1) * np.maximum(drawn_both - drawn_p - drawn_n, 0)
        variance = np.maximum(of_people + of_stimuli - interaction, np.maximum(of_people, of_stimuli))
        return variance, np.full(len(own), min(count, self.n) - 1.0)


# --- regions -------------------------------------------------------------------------------------


def _identify(labels: Any, recordings: Mapping[str, RDM], measure: Measure, draws: int, seed: int) -> Identified | None:
    """Is a person's region known by the RDMs of other people? None where no person has two, or there is one."""
    from repalign.null import pvalue

    if REGION not in labels or labels["subject"].nunique() < 2 or labels.groupby("subject")[REGION].nunique().max() < 2:
        return None
    states = [measure.prepare(r) for r in recordings.values()]
    similar = measure.compare_all(states, states).numpy()
    owner, region = (labels[c].astype("category") for c in ("subject", REGION))
    people, true = owner.cat.codes.to_numpy(), region.cat.codes.to_numpy()
    taken = identified(similar, people, true)
    generator, right = np.random.default_rng(seed), np.empty(draws)
    for k in range(draws):
        shuffled = true.copy()
        for person in range(people.max() + 1):
            rows = np.flatnonzero(people == person)
            shuffled[rows] = generator.permutation(true[rows])
        right[k] = (identified(similar, people, shuffled) == shuffled).mean()
    accuracy = float((taken == true).mean())
    rows = labels.assign(identified=[region.cat.categories[t] for t in taken], correct=taken == true)
    return Identified(accuracy, float(right.mean()), float(pvalue(accuracy, right)), draws, rows)


def identified(similar: np.ndarray, people: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The region that each recording is taken for: that of the nearest mean over the recordings of other people.

    similar (s, s) are inner products of recordings: |x - mean|^2 = |x|^2 - 2 mean_b similar(x, b) + mean_ab similar(a, b).
    Source: Lin & Kriegeskorte 2023, whose code takes the nearest centroid, a person left out.
    """
    out, of = np.zeros(len(people), int), region[:, None] == np.arange(region.max() + 1)
    for person in np.unique(people):
        others, own = people != person, people == person
        members = of[others].astype(float)
        sizes = members.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            members /= sizes
        inside = np.einsum("ar,ab,br->r", members, similar[np.ix_(others, others)], members)
        near = 2 * similar[np.ix_(own, others)] @ members - inside
        out[own] = np.where(sizes > 0, near, -np.inf).argmax(1)
    return out


# --- told and drawn ------------------------------------------------------------------------------

_FOR: dict[str, str] = {"both": "people and stimuli", "subjects": "people", "stimuli": "stimuli"}


def _sentences(found: Brain) -> Iterator[str]:
    table: Any = found.table
    pairs: Any = found.tables["pairs"]
    best = table.iloc[0]
    people = counted(found.n_people, "person").replace("persons", "people")
    whom = people if found.n_people == found.n_recordings else f"{people} ({found.n_recordings} recordings)"
    yield (
        f"{best['model']} is closest to the brains of {whom}: {interval(best['score'], best['low'], best['high'])}, "
        f"of {counted(len(table), 'model')}, by {found.measure.facts.label}, n = {found.n} stimuli."
    )
    lower, upper = best["lower"], best["upper"]
    p = p_sentence(best["p_gap"])
    place = f"not told from its lower end ({p})" if best["p_gap"] > ALPHA else f"below it ({p})"
    place = place if best["score"] < lower else "within it" if best["score"] <= upper else "above it"
    yield f"The noise ceiling is {number(lower)} to {number(upper)}; {best['model']} is {place}."
    above = table["p_chance_holm"] <= ALPHA
    below = named(table["model"][~above].tolist())
    yield (
        f"Above chance are {int(above.sum())} of {counted(len(table), 'model')} ({found.draws} relabellings of the stimuli, Holm "
        f"over models){f', not {below}' if below else ''}."
    )
    if len(pairs):
        differ = pairs["p_holm"] <= ALPHA
        near = pairs[(pairs["model_a"] == best["model"]) & ~differ]["model_b"].tolist()
        yield (
            f"{int(differ.sum())} of {counted(len(pairs), 'pair')} of models differ (Holm over pairs, over {_FOR[found.over]}); "
            f"{best['model']} is {f'not told from {named(near)}' if near else 'told from all others'}."
        )
    if found.n_people < found.n_recordings:
        row = found.tables["errors"].iloc[0]
        yield (
            f"Over people the standard error of {row['model']} is {number(row['se_subjects'])}; recordings taken for people would "
            f"give {number(row['se_recordings'])}."
        )
    else:
        yield "Each recording counts as a person; if some are sessions of one, say so (subjects)."
    yield from found.remarks
    if found.identified is not None:
        known = found.identified
        yield (
            f"Regions are known in {100 * known.accuracy:.0f} % of recordings from those of other people, with shuffled regions in "
            f"{100 * known.chance:.0f} % ({p_sentence(known.p, known.draws)})."
        )
    yield f"New people and stimuli in which another model leads would refute the order. Stimuli: {found.how[0]}."


def _draw(found: Brain, look: Any) -> Axes:
    from repalign.figures import canvas
    from repalign.figures.palette import ACCENT, FAINT, INK, LIGHT, MUTED, PAPER, RULE, SCORE

    table, rows = found.table, np.arange(len(found.table))
    names = canvas.called(table["model"], look=look)
    lower, upper = table["lower"].iloc[0], table["upper"].iloc[0]
    people = f"{found.n_people} people" + f", {found.n_recordings} recordings" * (found.n_recordings > found.n_people)
    _, ((axes,),) = canvas.sheet(
        7.2 + canvas.beyond(names.values()), 1.9 + 0.28 * len(rows), "Closeness of models to the brain",
        above=f"{found.measure.facts.label}; {people}; n = {found.n:,} stimuli",
        below=f"Bars: {100 * found.level:g} % intervals over {_FOR[found.over]}. Faint points: people. Red: mean and 95th "
        f"percentile of {found.draws} relabellings of the stimuli. p: of chance, Holm over models.",
        **look,
    )  # fmt: skip
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.axvspan(lower, upper, color=LIGHT[4], linewidth=0, label="noise ceiling", zorder=0.5)
    scores: Any = found.tables["scores"].groupby("subject", sort=False)[table["model"].tolist()].mean()  # (P, M)
    for values in scores.to_numpy():
        axes.plot(values, rows + 0.22, "o", color=FAINT, markersize=3, alpha=0.8, markeredgewidth=0)
    axes.hlines(rows, table["low"], table["high"], color=SCORE, linewidth=1.8)
    axes.plot(table["score"], rows, "o", color=SCORE, markersize=6, markeredgecolor=PAPER, markeredgewidth=0.8)
    axes.vlines(table["chance"], rows - 0.3, rows + 0.3, color=ACCENT, linewidth=1.3, label="chance")
    axes.vlines(table["threshold"], rows - 0.3, rows + 0.3, color=ACCENT, linewidth=1.1, linestyle=canvas.DASHED)
    beside = {"xycoords": axes.get_yaxis_transform(), "va": "center", "annotation_clip": False}
    for row, p in zip(rows, table["p_chance_holm"], strict=True):
        said = pvalue(p)
        axes.annotate(f"p {said}" if said[:1] in "<–" else f"p = {said}", (1.01, row), fontsize=7.5, color=INK, **beside)
    axes.annotate(
        "noise\nceiling", ((lower + upper) / 2, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, 3), textcoords="offset points",
        ha="center", va="bottom", fontsize=7, color=MUTED, annotation_clip=False,
    )  # fmt: skip
    axes.set_yticks(rows, [canvas.plain(names[m]) for m in table["model"]])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    canvas.labels(axes, "Score, mean over people")
    return axes


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Three made-up people, two recordings each, who see what the models see."""
    from repalign.files import write_file

    rng, n, names = np.random.default_rng(0), 24, [f"recording{k}" for k in range(6)]
    seen = rng.standard_normal((n, 4))
    folder.mkdir(parents=True, exist_ok=True)
    rows = seen + rng.standard_normal((6, n, 4))
    np.savez(folder / "brain.npz", rdm=np.linalg.norm(rows[:, :, None] - rows[:, None], axis=-1), names=np.array(names))
    models = [folder / f"model{k}.npy" for k in range(len(given["models"]))]
    for k, path in enumerate(models):
        np.save(path, seen + k * rng.standard_normal((n, 4)))
    head = ["id", "subject", *([REGION] if given["region"] else [])]
    lines = [",".join([name, f"person{k // 2}", given["region"] or ""][: len(head)]) for k, name in enumerate(names)]
    write_file(folder / "subjects.csv", "\n".join([",".join(head), *lines]) + "\n")
    made = {"brain": str(folder / "brain.npz"), "models": [str(path) for path in models], "subjects": folder / "subjects.csv"}
    return {**made, "kind": "rdm", "vector": None, "draws": 49}
