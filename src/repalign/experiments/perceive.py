"""How much a predictor uses each modality: what its accuracy loses when the rows of one change places."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.experiments.base import Found, Input, half_width, made_up
from repalign.text import Progress, number, pvalue, silent, telling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from repalign.experiments.inputs import Inputs
    from repalign.figures.canvas import Look

MOST_CALLS = 10_000_000  # predictions of a callable predictor, above which partners are a sample
TILE = 4_000_000  # scores computed at once
MOST_SUBSETS = 4  # modalities up to which all subsets are permuted
LEVEL = 0.95

Predictor = Callable[..., Any]


# --- the score -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Score:
    """The perceptual score of a set of modalities.

    With C_ij = 1 if the prediction for row i, its modalities in the set taken from row j, is right:

    accuracy = trace(C) / n, permuted = mean of C over all n^2 entries, which is the mean accuracy over all n! orders of the rows;
    raw = accuracy - permuted. `sd` is the standard deviation of the accuracy over all n! orders: sqrt(sum D_ij^2 / (n - 1)) / n,
    where D is C without its row and column means (Hoeffding 1951). z = raw / sd. p : the share of the n cyclic shifts of the rows,
    the identity among them, with an accuracy of at least this one. `rows` : for each row C_ii minus its row's mean, whose sums
    over the parts of a partition, divided by n, sum to raw. low, high : 95 % interval over test rows, of raw as a U-statistic.

    With a sample of partners (`anchors`) the means are estimates; there is no p, and none is made up.
    """

    accuracy: float
    permuted: float
    sd: float
    p: float
    low: float
    high: float
    rows: np.ndarray
    influence: np.ndarray
    n: int

    @property
    def raw(self) -> float:
        return self.accuracy - self.permuted

    @property
    def z(self) -> float:
        return self.raw / self.sd if self.sd > 0 else math.nan

    def minus(self, other: Score) -> tuple[float, float, float]:
        """How much more `raw` is than that of another predictor, or set of modalities, on the same rows; with its 95 % interval."""
        if self.n != other.n:
            raise RepalignError("the scores are not of the same rows", expected=f"n = {self.n}", got=f"n = {other.n}")
        half = half_width(self.influence - other.influence)
        return self.raw - other.raw, self.raw - other.raw - half, self.raw - other.raw + half


class _Sums:
    """Sums over C that the score needs, a block of rows at a time: C itself, n^2 entries, is never whole.

    Rows are shifted in a random order: in that of a file, where labels may come in turns, a shift could change nothing.
    """

    def __init__(self, n: int, columns: np.ndarray, seed: int = 0):
        self.n, self.columns, self.place = n, columns, np.random.default_rng(seed).permutation(n)
        self.rows, self.own, self.squares = np.zeros(n), np.zeros(n), 0.0
        self.columns_sum, self.shifts = np.zeros(len(columns)), np.zeros(n)

    def add(self, at: np.ndarray, block: np.ndarray, own: np.ndarray) -> None:
        """Rows `at` of C: block[a, b] of row at[a] and column columns[b]; own[a] of row and column at[a]."""
        block = block.astype(float)
        self.rows[at], self.own[at] = block.mean(1), own
        self.squares += float((block**2).sum())
        self.columns_sum += block.sum(0)
        if len(self.columns) == self.n:
            shift = (self.place[self.columns][None, :] - self.place[at][:, None]) % self.n
            self.shifts += np.bincount(shift.ravel(), block.ravel(), self.n)

    def score(self) -> Score:
        n, m = self.n, len(self.columns)
        columns, mean, accuracy = self.columns_sum / n, float(self.rows.mean()), float(self.own.mean())
        # sum D^2 over n x m entries, scaled to n columns where these are a sample
        left = self.squares - m * float((self.rows**2).sum()) - n * float((columns**2).sum()) + n * m * mean**2
        sd = math.sqrt(max(left, 0) * (n / m) / (n - 1)) / n
        full = np.full(n, mean)
        full[self.columns] = columns
        influence = (self.own - accuracy) - (self.rows - mean) - (full - mean)
        raw, half = accuracy - mean, half_width(influence)
        p = float(np.mean(self.shifts >= self.shifts[0] - 1e-9 * max(1.0, abs(self.shifts[0])))) if m == n else math.nan
        return Score(accuracy, mean, sd, p, raw - half, raw + half, self.own - self.rows, influence, n)


def perceptual_score(
    predict: Predictor | Sequence[np.ndarray], modalities: Sequence[Any], labels: Sequence[Any], permuted: Sequence[int], *,
    classes: Sequence[Any] | None = None, loss: Callable[[Any, np.ndarray], np.ndarray] | None = None, anchors: int | None = None,
    seed: int = 0, progress: Progress = silent,
) -> Score:  # fmt: skip
    """The perceptual score of the modalities `permuted` (their places), over all relabellings at once.

    Gat, Schwartz and Schwing 2021 draw a few random orders; here the mean and the spread over all n! are exact, at n^2 predictions.

    Parameters
    ----------
    predict : a function of the modalities' rows that gives labels (n,) or scores (n, classes); or the scores of an additive
        predictor, one array (n, classes) for each modality, which are summed.
    modalities : an array (n, d) for each; of an additive predictor they are not read.
    labels : one per row.
    classes : of the columns of scores; by default the labels, sorted.
    permuted : which modalities take the rows of another stimulus, together.
    loss : in place of being right or wrong: a function of what the predictor gives and of labels as class numbers, which gives a
        number per row, higher for better (such as minus a loss).
    anchors : partners per row, a sample; by default all, above 10^7 calls of a function as many as 10^7 calls allow.

    >>> x = [np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])]
    >>> perceptual_score(lambda a, b: a & b, x, x[0] & x[1], [0]).raw
    0.25
    """
    y, n = np.asarray(labels), len(labels)
    known = np.unique(y) if classes is None else np.asarray(classes)
    codes = np.searchsorted(known, y)
    if n < 2 or len(known) < 2:
        raise RepalignError("a score needs stimuli of two classes", expected="two labels or more", got=f"{len(known)} of {n} rows")
    others = [k for k in range(len(modalities)) if k not in set(permuted)]
    if not permuted or not set(permuted) <= set(range(len(modalities))):
        raise RepalignError("no such modality", expected=f"places from 0 to {len(modalities) - 1}", got=str(list(permuted)))
    additive = not callable(predict)
    if anchors is None and not additive and n * n > MOST_CALLS:
        anchors = max(1, MOST_CALLS // n)
    columns = np.arange(n)
    if anchors is not None and anchors < n:
        columns = np.sort(np.random.default_rng(seed).choice(n, anchors, replace=False))

    def right(given: Any, rows: np.ndarray) -> np.ndarray:
        """Whether predictions for these rows are right; or what `loss` says of them."""
        if loss is not None:
            return np.asarray(loss(given, codes[rows]), float)
        given = np.asarray(given)
        if given.ndim == 2 and given.shape[1] != len(known):
            raise RepalignError("the predictor's scores do not fit the labels", expected=f"{len(known)} columns, for {known}",
                                got=given.shape)  # fmt: skip
        return codes[rows] == given.argmax(1) if given.ndim == 2 else y[rows] == given

    parts: list[Any] = []
    if additive:
        parts = [sum((np.asarray(predict[k], float) for k in some), np.zeros((n, len(known)))) for some in (others, permuted)]

    def block(at: np.ndarray, partners: np.ndarray) -> np.ndarray:
        rows, columns = np.repeat(at, len(partners)), np.tile(partners, len(at))
        if additive:
            summed = parts[0][at][:, None] + parts[1][partners]
            return right(summed.reshape(len(rows), -1), rows).reshape(len(at), len(partners))
        given = predict(*(np.asarray(x)[rows if k in others else columns] for k, x in enumerate(modalities)))  # type: ignore[operator]
        return right(given, rows).reshape(len(at), len(partners))

    sums, step = _Sums(n, columns, seed), max(1, TILE // (len(columns) * len(known)))
    for start in range(0, n, step):
        progress("perceive", start, n)
        at = np.arange(start, min(n, start + step))
        own = right(parts[0][at] + parts[1][at], at) if additive else right(predict(*(np.asarray(x)[at] for x in modalities)), at)  # type: ignore[operator]
        sums.add(at, block(at, columns), own)
    progress("perceive", n, n)
    return sums.score()


def shapley(accuracy: Mapping[frozenset[int], float], k: int) -> np.ndarray:
    """Shares of k modalities in the accuracy: Shapley values of the game v(S) = accuracy with S intact, all others permuted.

    They sum to v(all) - v(none), exactly.

    >>> shapley({frozenset(): 0.5, frozenset({0}): 0.5, frozenset({1}): 0.5, frozenset({0, 1}): 1.0}, 2).tolist()
    [0.25, 0.25]
    """
    out = np.zeros(k)
    for i in range(k):
        rest = [j for j in range(k) if j != i]
        for size in range(k):
            weight = math.factorial(size) * math.factorial(k - size - 1) / math.factorial(k)
            for some in combinations(rest, size):
                out[i] += weight * (accuracy[frozenset((*some, i))] - accuracy[frozenset(some)])
    return out


# --- the default predictor -------------------------------------------------------------------------


def fitted(
    modalities: Sequence[np.ndarray], codes: np.ndarray, train: np.ndarray, C: float | None
) -> tuple[list[np.ndarray], float]:
    """Scores (n, classes) of each modality, which sum to those of a logistic regression on all of them; and its C.

    Every column is standardised on the training rows. C is chosen by 5-fold cross-validation there, if it is not given.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    from repalign.competence.probes import GRID

    x = [StandardScaler().fit(one[train]).transform(one) for one in modalities]
    joined, model = np.concatenate(x, axis=1), LogisticRegression(C=C or 1.0, max_iter=2000)
    if C is None:
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        search = GridSearchCV(model, {"C": [c for c in GRID if c <= 100]}, cv=folds).fit(joined[train], codes[train])
        model, C = search.best_estimator_, float(search.best_params_["C"])
    else:
        model.fit(joined[train], codes[train])
    weights, intercept = model.coef_, model.intercept_
    if len(weights) == 1:  # two classes: one decision, for the second
        weights, intercept = np.concatenate([-weights, weights]) / 2, np.concatenate([-intercept, intercept]) / 2
    ends = np.cumsum([0, *(one.shape[1] for one in x)])
    scores = [one @ weights[:, a:b].T for one, a, b in zip(x, ends[:-1], ends[1:], strict=True)]
    scores[0] = scores[0] + intercept
    return scores, float(C)


# --- the experiment --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Perception(Found):
    """How much a predictor uses each modality, from `perceive`.

    table : a row per set of permuted modalities. tables : "parts", the contribution of every part of the test rows to `raw`.
    """

    names: tuple[str, ...]
    n: int
    n_train: int
    majority: float
    C: float
    how: tuple[str, ...]
    shown: ClassVar[tuple[str, ...]] = ("permuted", "permuted_accuracy", "raw", "low", "high", "sd", "p", "alone", "shapley")

    @property
    def text(self) -> str:
        first = self.table.iloc[0]
        singles = self.table[self.table["alone"].notna()]
        parts = [
            f"A logistic regression on {' and '.join(self.names)} is right for {number(first['accuracy'])} of {self.n:,} held-out "
            f"rows; the commonest label gives {number(self.majority)}. It was trained on {self.n_train:,} others."
        ]
        for row in singles.to_dict("records"):
            parts.append(
                f"When {row['permuted']} changes places between rows, it loses {number(row['raw'])} "
                f"({number(row['low'])} to {number(row['high'])}); chance moves it by {number(row['sd'])}; p = {pvalue(row['p'])}. "
                f"{row['permuted']} alone is right for {number(row['alone'])}."
            )
        parts.append(
            "A loss of 0 would mean that this predictor does not use a modality. It does not mean that the modality has no "
            "information: of two that say the same, each can be missed. Rows with exchanged modalities are unlike any that it saw."
        )
        return " ".join(parts)

    def draw(self, **look: Unpack[Look]) -> Axes:
        """What each part of the test rows contributes to the loss of every modality, with the interval of the whole."""
        from repalign.figures import canvas
        from repalign.figures.palette import INK, MUTED, RULE, family

        names = canvas.called(self.names, look=look)
        rows = self.table[self.table["alone"].notna()].to_dict("records")
        parts = self.tables["parts"]
        _, ((axes,),) = canvas.sheet(
            7, 1.6 + 0.55 * len(rows), "What accuracy loses without each modality",
            above=f"accuracy {number(rows[0]['accuracy'])}, commonest label {number(self.majority)}, n = {self.n:,} held out",
            below=f"Bars: what each part of the rows contributes. Line: {LEVEL:.0%} interval of the sum. Dashes: two standard "
            "deviations of chance.", **look,
        )  # fmt: skip
        axes.axvline(0, color=RULE, linewidth=1)
        labels = list(dict.fromkeys(parts["part"]))
        for k, row in enumerate(rows):
            own, left = parts[parts["permuted"] == row["permuted"]].set_index("part")["contribution"], 0.0
            for j, part in enumerate(labels):
                axes.barh(k, own[part], left=left, height=0.5, color=family(j)[0], label=part if k == 0 else None, alpha=0.85)
                left += own[part]
            axes.plot([row["low"], row["high"]], [k, k], color=INK, linewidth=2)
            axes.vlines([-2 * row["sd"], 2 * row["sd"]], k - 0.35, k + 0.35, colors=MUTED, linestyles="dashed", linewidth=1)
            canvas.after(axes, number(row["raw"]), (max(row["high"], left), k), gap=5)
        canvas.rows(axes, [names[row["permuted"]] for row in rows])
        canvas.labels(axes, "Accuracy lost when it changes places between rows")
        axes.legend(loc="lower right", fontsize=7, frameon=False)
        return axes


def perceive(
    labels: Path, inputs: list[Input], *, layers: list[str] | None = None, label: str = "label", split: str | None = None,
    groups: str | None = None, part: str | None = None, test: float = 0.5, penalty: float | None = None, seed: int = 0,
    progress: Progress = silent,
) -> Perception:  # fmt: skip
    """How much does a predictor of labels use each modality? What it loses when one changes places between rows.

    The predictor is a logistic regression on all modalities. Its loss is exact over all orders of the rows.

    Parameters
    ----------
    labels : A table with the columns id and label; for files without ids, ids are 0, 1, 2, ... In Python also a label per row.
    inputs : Two modalities or more: files of features, or STORE#MODEL. In Python also arrays by name.
    layers : The layer of each; last is the last one. By default the only one.
    label : The column of labels.
    split : A column that says train or test of every row; by default rows are drawn, class by class.
    groups : A column of groups, none of which is on both sides of the split.
    part : A column of parts, whose contributions are told; by default the labels.
    test : The share of held-out rows.
    penalty : C of the logistic regression, the inverse of its penalty; by default by 5-fold cross-validation.
    seed : Of the split.
    """
    from repalign.experiments.inputs import read_columns, read_inputs

    if len(inputs) < 2:
        raise RepalignError("one modality has nothing to change places with", expected="two inputs or more", got=len(inputs))
    found = read_inputs(inputs, layers)
    ids = found.ids or tuple(map(str, range(found.n)))
    columns = read_columns(labels, ids, label, {"split": split, "groups": groups, "part": part})
    train, test_rows = _sides(columns[label], columns.get(split), columns.get(groups), test, seed)
    return perception(found, columns[label], train, test_rows, parts=columns[part or label], C=penalty, progress=progress)


def perception(
    found: Inputs, labels: np.ndarray, train: np.ndarray, test: np.ndarray, *, parts: np.ndarray, C: float | None = None,
    progress: Progress = silent,
) -> Perception:  # fmt: skip
    """The experiment on modalities in memory, with rows to train on and rows to judge by."""
    import pandas as pd

    names, k = found.names, len(found.names)
    classes, codes = np.unique(labels, return_inverse=True)
    if unseen := sorted(set(labels[test]) - set(labels[train])):
        raise RepalignError("a label is not among the training rows", expected="every label among them", got=", ".join(unseen[:5]))
    scores, chosen = fitted(found.arrays, codes, train, C)
    scores, y = [one[test] for one in scores], codes[test]
    majority = float(np.bincount(y).max() / len(y))
    alone = [float(np.mean(fitted([x], codes, train, C)[0][0][test].argmax(1) == y)) for x in found.arrays]
    sizes = range(1, k + 1) if k <= MOST_SUBSETS else (1, k)
    sets = [some for size in sizes for some in combinations(range(k), size)]
    judged: dict[frozenset[int], Score] = {}
    for some in telling(sets, "modalities", progress):
        judged[frozenset(some)] = perceptual_score(scores, found.arrays, y, some, classes=range(len(classes)))
    everything = frozenset(range(k))
    shares = [math.nan] * k
    if k <= MOST_SUBSETS:
        kept = {everything - some: score.permuted for some, score in judged.items()}
        shares = shapley(kept | {everything: judged[everything].accuracy}, k).tolist()
    rows, told = [], []
    for some, score in judged.items():
        name, single = ", ".join(names[i] for i in sorted(some)), len(some) == 1
        rows.append({
            "permuted": name, "accuracy": score.accuracy, "permuted_accuracy": score.permuted, "raw": score.raw, "low": score.low,
            "high": score.high, "sd": score.sd, "z": score.z, "p": score.p,
            "model_normalised": score.raw / score.accuracy if score.accuracy else math.nan,
            "task_normalised": score.raw / (1 - majority) if majority < 1 else math.nan,
            "alone": alone[min(some)] if single else math.nan, "shapley": shares[min(some)] if single else math.nan, "n": len(y),
        })  # fmt: skip
        of_rows = np.asarray(parts)[test]
        for one in np.unique(of_rows):
            inside = of_rows == one
            told.append({"permuted": name, "part": str(one), "n": int(inside.sum()),
                         "contribution": float(score.rows[inside].sum() / len(y))})  # fmt: skip
    return Perception(
        table=pd.DataFrame(rows), tables={"parts": pd.DataFrame(told)}, names=names, n=len(y), n_train=len(train),
        majority=majority, C=chosen, how=found.how,
    )  # fmt: skip


def _sides(
    labels: np.ndarray, split: np.ndarray | None, groups: np.ndarray | None, test: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to judge by."""
    from repalign.competence import Split

    if split is not None:
        for word in np.unique(split):
            choose("side", str(word), ("train", "test"), f"the split has no side {word!r}")
        sides = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
        if groups is not None and (both := set(groups[sides[0]]) & set(groups[sides[1]])):
            raise RepalignError("groups are on both sides of the split", expected="each on one side", got=sorted(both)[0])
    elif groups is not None:
        from sklearn.model_selection import GroupShuffleSplit

        sides = next(GroupShuffleSplit(1, test_size=test, random_state=seed).split(labels, groups=groups))
    else:
        from repalign.competence.probes import split_rows

        sides = split_rows(labels, Split(test, seed))
    if not all(map(len, sides)):
        got = f"{len(sides[0])} and {len(sides[1])}"
        raise RepalignError("one side of the split is empty", expected="rows to train on and rows to judge by", got=got)
    return sides


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Made-up modalities, with labels."""
    from repalign.files import write_file

    rng, n = np.random.default_rng(0), 120
    y, paths = np.arange(n) % 3, [folder / f"modality{k + 1}.npy" for k in range(len(given["inputs"]))]
    inputs = [made_up(path, np.eye(3)[y] + rng.standard_normal((n, 3))) for path in paths]
    head = dict.fromkeys(filter(None, (given["label"], given["groups"], given["part"], given["split"])))
    lines = [",".join(["id", *head])]
    for i in range(n):
        cells = {given["groups"]: i, given["part"]: y[i], given["label"]: y[i], given["split"]: ("train", "test")[i // 3 % 2]}
        lines.append(",".join(map(str, [i, *(cells[name] for name in head)])))
    write_file(folder / "labels.csv", "\n".join(lines) + "\n")
    return {"labels": folder / "labels.csv", "inputs": inputs, "layers": None}
