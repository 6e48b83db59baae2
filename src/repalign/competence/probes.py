"""Probes: how well labels are read off a frozen representation, on held-out stimuli. The learning is scikit-learn's."""

from __future__ import annotations

import csv
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.layers import Pairwise
from repalign.measures.measure import as_features
from repalign.models import ModelRecord
from repalign.representation import Representation
from repalign.tables import Table, column_of, is_missing, read_table
from repalign.text import Progress, silent

# --- labels, and which of them are held out ---------------------------------------------------------


def read_labels(path: str | Path, ids: Sequence[str], label: str = "label", id: str = "id") -> list[str]:
    """One label per id, in the order of `ids`, from a table (.csv, .tsv, .jsonl, .parquet); rows are found by id.

    No word means "no label": None, NA and null are labels like others; only an empty cell is none.

    Raises RepalignError for a missing column, an id twice, and an id without a label.
    """
    path = Path(path)
    table = read_table(path, (id, label), "labels")
    for column in (id, label):
        choose("column", column, table.columns, f"{path}: no column {column!r}")
    rows = Table(table.columns, [row for row in table.rows if not is_missing(row.get(label))])
    named = column_of(rows, id, str(path), "id")
    found = dict(zip(named, (str(row[label]) for row in rows.rows), strict=True))
    without = [i for i in ids if i not in found]
    if without or len(found) != len(named):
        got = f"{len(without)} ids without one, the first is {without[0]!r}" if without else "an id twice"
        raise RepalignError(f"{path}: labels do not fit the stimuli", expected="one row for every id", got=got)
    return [found[i] for i in ids]


@dataclass(frozen=True)
class Split:
    """Which rows are trained on and which are held out: by classes, drawn with a seed.

    scikit-learn's `train_test_split(rows, test_size=test, stratify=labels, random_state=seed)`; where one side is larger
    than `max_train` or `max_test`, as many are drawn from it in the same way (the paper: 10,000 each).
    """

    test: float = 0.2
    seed: int = 0
    max_train: int | None = None
    max_test: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.test < 1:
            raise RepalignError("the share of held-out rows is out of range", expected="0 < test < 1", got=self.test)

    def rows(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Training and held-out rows, each in ascending order."""
        from sklearn.model_selection import train_test_split

        sides = train_test_split(np.arange(len(labels)), test_size=self.test, stratify=labels, random_state=self.seed)
        out = []
        for rows, most in zip(sides, (self.max_train, self.max_test), strict=True):
            if most is not None and len(rows) > most:
                rows = train_test_split(rows, train_size=most, stratify=labels[rows], random_state=self.seed)[0]
            out.append(np.sort(rows))
        return out[0], out[1]


Rows = tuple[Sequence[int], Sequence[int]]


def split_rows(y: np.ndarray, split: Split | Rows) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out rows of a split, or those that are given, checked."""
    if isinstance(split, Split):
        counts = Counter(y.tolist())
        rare = min(counts, key=lambda c: counts[c])
        if len(counts) < 2 or counts[rare] < 2:
            raise RepalignError(
                "these labels cannot be split by class", expected="two classes or more, each of two stimuli or more",
                got=f"{len(counts)} classes, {rare!r} with {counts[rare]} stimuli", remedy="leave rare classes out"
            )
        try:
            return split.rows(y)
        except ValueError as error:
            raise RepalignError(
                "these labels cannot be split by class", expected="a place for every class on both sides", got=error
            ) from error
    train, test = (np.asarray(rows, dtype=int) for rows in split)
    every = np.concatenate([train, test])
    in_range = len(train) and len(test) and every.min() >= 0 and every.max() < len(y)
    if not in_range or len(set(every.tolist())) < len(every):
        raise RepalignError(
            "these rows are no split", expected=f"training and held-out rows from 0 to {len(y) - 1}, each row once",
            got=f"{len(train)} and {len(test)} rows"
        )
    return train, test


# --- probes -----------------------------------------------------------------------------------------


GRID = tuple(float(10.0**e) for e in range(-4, 5))  # inverse strengths of the penalty
SELECTIONS = ("cv", "validation")
NAN = float("nan")


@dataclass(frozen=True)
class ProbeRecord:
    """One probe on one layer.

    `accuracy`: share of held-out stimuli labelled rightly, in [0, 1] (few-shot: mean over draws, `spread` their standard
    deviation). `chance`: accuracy of always saying the commonest class of the training stimuli. `validation`: accuracy
    within the training stimuli, by which C and the best layer are chosen; nan where a probe has none. `details`: C,
    whether the fit converged, the accuracy of each draw.
    """

    model: str
    layer: str
    probe: str
    accuracy: float
    chance: float
    validation: float
    spread: float
    n_train: int
    n_test: int
    n_classes: int
    seed: int | None
    details: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Probe(ABC):
    """A probe is a value: its fields are all that determines it, and its repr names it in results."""

    score: ClassVar[str]  # what the accuracy is called among the scores of a model

    @abstractmethod
    def fit(self, x: np.ndarray, y: np.ndarray, xt: np.ndarray, yt: np.ndarray, seed: int) -> dict[str, Any]:
        """Train on (n, d) and (n,), test on the held-out rows: accuracy, and optionally validation, spread, details."""

    @abstractmethod
    def check(self, y: np.ndarray) -> None:
        """Refuse training labels that are too few."""


@dataclass(frozen=True)
class LinearProbe(Probe):
    """Multinomial logistic regression with an L2 penalty, its strength chosen within the training stimuli.

    minimise sum_i -ln p(y_i | x_i) + |W|^2 / (2 C); x standardised by the training mean and deviation if `standardize`.
    C comes from `grid`: `selection` "cv" takes the highest mean accuracy over `folds` stratified, shuffled folds,
    "validation" the highest accuracy on a stratified share `validation` of the training stimuli. Of equal ones the smallest
    C. It is then fitted on all training stimuli. One C in the grid needs no choice. `max_iter` steps of L-BFGS at most;
    a fit that has not converged says so in `details`.

    scikit-learn's StandardScaler, LogisticRegression and GridSearchCV; the paper probes linearly and states neither the
    penalty nor how it is chosen.
    """

    grid: tuple[float, ...] = GRID
    selection: str = "cv"
    folds: int = 5
    validation: float = 0.2
    standardize: bool = True
    max_iter: int = 1000
    score: ClassVar[str] = "probe_accuracy"

    def __post_init__(self) -> None:
        grid = (self.grid,) if isinstance(self.grid, int | float) else self.grid
        object.__setattr__(self, "grid", tuple(sorted(float(c) for c in grid)))
        if not self.grid or self.grid[0] <= 0:
            raise RepalignError("the grid of C is out of range", expected="numbers above 0", got=self.grid)
        choose("selection", self.selection, SELECTIONS)
        if self.folds < 2 or not 0 < self.validation < 1:
            raise RepalignError(
                "folds or validation out of range", expected="folds >= 2, 0 < validation < 1",
                got=f"folds {self.folds}, validation {self.validation}",
            )  # fmt: skip

    def check(self, y: np.ndarray) -> None:
        least = np.unique(y, return_counts=True)[1].min()
        needed = self.folds if self.selection == "cv" else 2
        if len(self.grid) > 1 and least < needed:
            raise RepalignError(
                "a class has too few training stimuli to choose C", expected=f"at least {needed} of every class",
                got=f"{least} of one class", remedy="use fewer folds, a single C, or leave rare classes out"
            )

    def fit(self, x: np.ndarray, y: np.ndarray, xt: np.ndarray, yt: np.ndarray, seed: int) -> dict[str, Any]:
        from sklearn.model_selection import GridSearchCV

        estimator = _logistic(self.standardize, self.max_iter)
        name = "logisticregression__C"
        if len(self.grid) == 1:
            fitted, converged = _fit(estimator.set_params(**{name: self.grid[0]}), x, y)
            return {"accuracy": fitted.score(xt, yt), "details": {"C": self.grid[0], "converged": converged}}
        search = GridSearchCV(estimator, {name: list(self.grid)}, cv=self._folds(y, seed), error_score="raise")
        fitted, every = _fit(search, x, y)
        best = float(fitted.best_params_[name])
        steps = int(max(fitted.best_estimator_[-1].n_iter_))
        details = {
            "C": best,
            "C_at_the_edge_of_the_grid": best in (self.grid[0], self.grid[-1]),
            "converged": every or steps < self.max_iter,  # the final fit
            "all_fits_converged": every,
        }
        return {"accuracy": fitted.score(xt, yt), "validation": float(fitted.best_score_), "details": details}

    def _folds(self, y: np.ndarray, seed: int) -> Any:
        from sklearn.model_selection import PredefinedSplit, StratifiedKFold, train_test_split

        if self.selection == "cv":
            return StratifiedKFold(self.folds, shuffle=True, random_state=seed)
        rows = np.arange(len(y))
        out = train_test_split(rows, test_size=self.validation, stratify=y, random_state=seed)[1]
        return PredefinedSplit(np.where(np.isin(rows, out), 0, -1))


@dataclass(frozen=True)
class FewShotProbe(Probe):
    """A linear probe on `m` training stimuli of every class, drawn `draws` times; all held-out stimuli are labelled.

    Draw i takes, class by class in the order of their names, numpy's default_rng([seed, i]).choice(rows, m, replace=False).
    C is fixed: m stimuli leave nothing to choose it by.
    """

    m: int = 5
    draws: int = 10
    C: float = 1.0
    standardize: bool = True
    max_iter: int = 1000
    score: ClassVar[str] = "few_shot_accuracy"

    def __post_init__(self) -> None:
        if self.m < 1 or self.draws < 1 or self.C <= 0:
            raise RepalignError("m, draws or C out of range", expected="m >= 1, draws >= 1, C > 0", got=repr(self))

    def check(self, y: np.ndarray) -> None:
        classes, counts = np.unique(y, return_counts=True)
        if counts.min() < self.m:
            rare = classes[counts.argmin()]
            raise RepalignError(
                f"class {str(rare)!r} has too few training stimuli", expected=f"at least m = {self.m}",
                got=int(counts.min()), remedy="use a smaller m, or leave rare classes out"
            )

    def fit(self, x: np.ndarray, y: np.ndarray, xt: np.ndarray, yt: np.ndarray, seed: int) -> dict[str, Any]:
        found, converged = [], True
        for draw in range(self.draws):
            rng = np.random.default_rng([seed, draw])
            rows = np.concatenate([rng.choice(np.flatnonzero(y == c), self.m, replace=False) for c in np.unique(y)])
            estimator = _logistic(self.standardize, self.max_iter).set_params(logisticregression__C=self.C)
            fitted, ended = _fit(estimator, x[rows], y[rows])
            converged &= ended
            found.append(float(fitted.score(xt, yt)))
        spread = float(np.std(found, ddof=1)) if len(found) > 1 else NAN
        details = {"draws": found, "converged": converged}
        return {"accuracy": float(np.mean(found)), "spread": spread, "details": details}


@dataclass(frozen=True)
class KNNProbe(Probe):
    """The vote of the `k` training stimuli with the highest cosine similarity s.

    Each votes with weight 1, or exp(s / temperature) (0.07 in the literature on self-supervision). Of equal votes the class
    that comes first by name. `validation` is the accuracy over 5 stratified, shuffled folds of the training stimuli, nan
    where a class has fewer than 5. scikit-learn's KNeighborsClassifier(k, metric="cosine", algorithm="brute").
    """

    k: int = 20
    temperature: float | None = None
    score: ClassVar[str] = "knn_accuracy"

    def __post_init__(self) -> None:
        if self.k < 1 or (self.temperature is not None and self.temperature <= 0):
            raise RepalignError("k or temperature out of range", expected="k >= 1, temperature > 0", got=repr(self))

    def check(self, y: np.ndarray) -> None:
        if self.k > len(y):
            raise RepalignError("k is more than there are training stimuli", expected=f"<= {len(y)}", got=self.k)

    def fit(self, x: np.ndarray, y: np.ndarray, xt: np.ndarray, yt: np.ndarray, seed: int) -> dict[str, Any]:
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.neighbors import KNeighborsClassifier

        weights = "uniform" if self.temperature is None else self._weights
        neighbours = KNeighborsClassifier(self.k, metric="cosine", algorithm="brute", weights=weights)
        validation = NAN
        if np.unique(y, return_counts=True)[1].min() >= 5 and self.k <= len(y) * 3 // 5:
            folds = StratifiedKFold(5, shuffle=True, random_state=seed)
            validation = float(cross_val_score(neighbours, x, y, cv=folds, error_score="raise").mean())
        return {"accuracy": float(neighbours.fit(x, y).score(xt, yt)), "validation": validation}

    def _weights(self, distances: np.ndarray) -> np.ndarray:
        assert self.temperature is not None
        return np.exp(-distances / self.temperature)  # exp(s / temperature) but for a factor that all share


PROBES: tuple[type[Probe], ...] = (LinearProbe, FewShotProbe, KNNProbe)


def probe(
    representation: Representation | Mapping[str, Any], labels: Sequence[object], kind: Probe | None = None, *,
    split: Split | Rows | None = None, layers: Sequence[str] | None = None, seed: int = 0, name: str = "arrays",
    progress: Progress = silent,
) -> list[ProbeRecord]:  # fmt: skip
    """Train and test a probe on every layer of a model.

    Parameters
    ----------
    representation : of a store, or arrays (n, d) by layer.
    labels : one per stimulus, in the order of the representation's ids (`read_labels` joins a table by id); as text.
    kind : `LinearProbe()` (default), `FewShotProbe(m=5)`, `KNNProbe(k=20)`.
    split : a `Split`, or training and held-out rows; without, 20 % are held out. The same rows for every layer.
    layers : their names; all without.
    seed : of folds and draws.

    Returns
    -------
    One record per layer. A best layer picked by held-out accuracy flatters; `best_layer` goes by `validation`.

    Raises
    ------
    RepalignError : labels that do not fit; classes with too few stimuli; non-finite features.
    """
    kind = LinearProbe() if kind is None else kind
    stored = isinstance(representation, Representation)
    names, model = (representation.layers, representation.name) if stored else (tuple(representation), name)
    load = representation.load if stored else representation.__getitem__
    for layer in layers or ():
        choose("layer", layer, names, f"{model}: no layer {layer!r}")
    chosen = [layer for layer in names if layers is None or layer in layers]
    y = np.asarray([str(v) for v in labels])
    split = Split() if split is None else split
    train, test = split_rows(y, split)
    if len(np.unique(y[train])) < 2:
        raise RepalignError("one class leaves nothing to tell apart", expected="two classes or more", got=str(y[train][0]))
    kind.check(y[train])
    classes, counts = np.unique(y[train], return_counts=True)
    chance = float(np.mean(y[test] == classes[counts.argmax()]))
    sizes = (len(train), len(test), len(classes), split.seed if isinstance(split, Split) else None)
    out = []
    progress("probe", 0, len(chosen))
    for layer in chosen:
        x = _features(load(layer), len(y), model, layer)
        found = kind.fit(x[train], y[train], x[test], y[test], seed)
        details = {"seed": seed, **found.get("details", {})}
        validation, spread = found.get("validation", NAN), found.get("spread", NAN)
        accuracy = float(found["accuracy"])
        out.append(ProbeRecord(model, layer, repr(kind), accuracy, chance, validation, spread, *sizes, details=details))
        note = None if details.get("converged", True) else f"{layer}: a fit has not converged in max_iter steps"
        progress("probe", len(out), len(chosen), note)
    return out


def best_layer(records: Sequence[ProbeRecord]) -> ProbeRecord:
    """The record with the highest `validation`; of equal ones the earlier layer. Held-out stimuli have no say in it."""
    known = [r for r in records if r.validation == r.validation]
    if not records or len(known) < len(records):
        raise RepalignError(
            "the best layer cannot be chosen: a probe has no accuracy on validation stimuli",
            expected="records of LinearProbe with several C, or of KNNProbe",
            got=records[0].probe if records else "no record", remedy="name the layer"
        )
    return max(known, key=lambda r: r.validation)


def with_score(record: ModelRecord, found: ProbeRecord, name: str | None = None) -> ModelRecord:
    """The model's record with the accuracy among its scores, by default under the name of the kind of probe."""
    kinds = {kind.__name__: kind.score for kind in PROBES}
    name = name or kinds.get(found.probe.partition("(")[0], "probe_accuracy")
    return replace(record, scores={**record.scores, name: found.accuracy})


def _features(x: Any, n: int, model: str, layer: str) -> np.ndarray:
    """(n, d) in float64: half precision is stored, never fitted on."""
    if isinstance(x, Pairwise):
        x = as_features(x, f"{model}, layer {layer}")  # refused: a probe reads vectors
    x = np.asarray(x.detach().cpu().double() if hasattr(x, "detach") else x, dtype=np.float64)
    if x.ndim != 2 or len(x) != n:
        raise RepalignError(f"{model} {layer}: labels do not fit", expected=f"an array ({n}, d)", got=x.shape)
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise RepalignError(f"{model} {layer}: row {row} is not finite", expected="finite features")
    return x


def _logistic(standardize: bool, max_iter: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    steps = [StandardScaler()] if standardize else []
    return make_pipeline(*steps, LogisticRegression(max_iter=max_iter))


def _fit(estimator: Any, x: np.ndarray, y: np.ndarray) -> tuple[Any, bool]:
    """The fitted estimator, and whether every fit converged (which is told in the record, not by a warning)."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = estimator.fit(x, y)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return fitted, not any(issubclass(w.category, ConvergenceWarning) for w in caught)


# --- the 19 tasks of VTAB ---------------------------------------------------------------------------


SOLVED = 0.8  # share of the best accuracy


@dataclass(frozen=True)
class Task:
    """One task: its name in tables, its group ("natural", "specialized" or "structured") and its label.

    `hub` is a copy on the hub, with its `config` and `split`, and the columns of images and answers; "" where none is known. They
    were found in code that loads them, and not tried: this was written without the hub.
    """

    name: str
    group: str
    label: str
    hub: str = ""
    config: str = ""
    split: str = ""
    image: str = ""
    answer: str = ""


@cache
def vtab_tasks() -> tuple[Task, ...]:
    """The 19 tasks, in the order natural (7), specialized (4), structured (8)."""
    text = resources.files("repalign.competence").joinpath("vtab.csv").read_text(encoding="utf-8")
    return tuple(Task(row.pop("task"), **row) for row in csv.DictReader(text.splitlines()))


def solved(accuracies: Mapping[str, Mapping[str, float]], share: float = SOLVED) -> dict[str, tuple[str, ...]]:
    """Which tasks each model has solved: those where its accuracy >= share * the best accuracy of all these models.

    `accuracies` are by model and task. The rule is relative: another set of models gives another answer, so all models of
    a study go in together. RepalignError where a model lacks a task, or an accuracy is outside of [0, 1].
    """
    if not 0 < share <= 1:
        raise RepalignError("the share of the best accuracy is out of range", expected="0 < share <= 1", got=share)
    tasks = list(dict.fromkeys(task for found in accuracies.values() for task in found))
    for model, found in accuracies.items():
        for task in tasks:
            value: Any = found.get(task)
            if value is None or not 0 <= value <= 1:
                raise RepalignError(
                    f"model {model}: accuracy of task {task}", expected="a share in [0, 1]",
                    got="none" if value is None else value,
                    remedy="probe every model on every task, or leave the task out for all"
                )
    # In floats 0.8 * 0.8 is above 0.64: an accuracy that is exactly the share counts as solved.
    least = {task: share * (1 - 1e-12) * max(found[task] for found in accuracies.values()) for task in tasks}
    return {m: tuple(t for t in tasks if found[t] >= least[t]) for m, found in accuracies.items()}
