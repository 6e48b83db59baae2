"""Do two models agree component by component, once each is turned by ICA? And does that help with few labels?

Source: Liu et al. 2024 (arXiv 2402.06223), "Beyond DAGs": contrastive features equal the latents up to a linear map, so PCA and
then FastICA should give the latents themselves, in an order and with signs of their own. No code of the authors is known.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.experiments.base import Found, Input, half_width, made_up
from repalign.text import Progress, counted, interval, number, p_sentence, silent, telling

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[np.float64]]

DRAWS = 199  # relabellings
PER_CLASS = (1, 2, 4, 8, 16)
FEW_SHOT_DRAWS = 20
MOST_STEPS = 2000  # of FastICA


# --- components ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Components:
    """Directions of one layer: mean (d,), principal (d, k) by falling variance, independent (d, k) of variance 1 on its rows."""

    mean: Array
    principal: Array
    independent: Array
    converged: bool

    def pca(self, x: Array) -> Array:
        return (x - self.mean) @ self.principal

    def ica(self, x: Array) -> Array:
        return (x - self.mean) @ self.independent


def components(x: Array, k: int, seed: int = 0) -> Components:
    """Centre, k principal components by a full SVD, and FastICA of these (symmetric, logcosh, tolerance 1e-6, 2,000 steps).

    FastICA begins at a random rotation, drawn by the seed, and where few components are far from normal it ends at several
    places: `converged` says whether it came to rest at all.

    >>> rng = np.random.default_rng(0)
    >>> latent = rng.laplace(size=(2000, 3))
    >>> found = components(latent @ np.linalg.qr(rng.standard_normal((3, 3)))[0], 3)
    >>> bool(found.converged), found.independent.shape
    (True, (3, 3))

    Raises RepalignError unless k is at most the number of columns, and below that of rows.
    """
    from sklearn.decomposition import PCA, FastICA
    from sklearn.exceptions import ConvergenceWarning

    n, d = x.shape
    if not 1 < k <= min(d, n - 1):
        raise RepalignError("components", expected=f"2 <= k <= {min(d, n - 1)} for {n} rows of width {d}", got=f"k = {k}")
    pca = PCA(k, svd_solver="full").fit(x)
    if pca.explained_variance_[-1] <= 1e-12 * pca.explained_variance_[0]:
        rank = int((pca.explained_variance_ > 1e-12 * pca.explained_variance_[0]).sum())
        raise RepalignError("the features have fewer directions than are asked for", expected=f"k <= {rank}", got=f"k = {k}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # which `converged` tells
        ica = FastICA(k, whiten="unit-variance", fun="logcosh", tol=1e-6, max_iter=MOST_STEPS, random_state=seed)
        ica.fit(pca.transform(x))
    principal = pca.components_.T
    return Components(pca.mean_, principal, principal @ ica.components_.T, ica.n_iter_ < MOST_STEPS)


def mcc(x: Array, y: Array) -> float:
    from repalign.measures import MeanCorrelationCoefficient

    return MeanCorrelationCoefficient()(x, y)


def relabelled(x: Array, y: Array, seed: int, draws: int = DRAWS) -> Array:
    """MCC with the rows of y in a random order, (draws,)."""
    rng = np.random.default_rng([seed, 1])
    return np.array([mcc(x, y[rng.permutation(len(y))]) for _ in range(draws)])


def _excess(x: Array) -> Array:
    """Excess kurtosis of columns: 0 of a normal one, 3 of a Laplace one."""
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    return (z**4).mean(axis=0) - 3


# --- the experiment --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Disentangled(Found):
    """`table` has a row for each k, `tables["few_shot"]` one for each file, k, number of labels and kind of test stimuli."""

    names: tuple[str, ...]
    n: int
    starts: int
    shown: ClassVar[tuple[str, ...]] = ("k", "pca", "ica", "ica_low", "ica_high", "relabelled", "split_half_pca", "split_half_ica")

    @property
    def few_shot(self) -> pd.DataFrame | None:
        return self.tables.get("few_shot")

    @property
    def text(self) -> str:
        two = len(self.names) == 2
        what = f"{self.names[0]} and {self.names[1]}" if two else f"{self.names[0]}, fitted on either half of its rows"
        lines = [f"Mean absolute correlation of matched components (MCC) of {what}; n = {self.n}."]
        for row in self.table.to_dict("records"):
            several = two and self.starts > 1
            ica = interval(row["ica"], row["ica_low"], row["ica_high"]) if several else number(row["ica"])
            moving = f" FastICA did not come to rest in {1 - row['converged']:.0%} of its runs."
            lines.append(
                f"k = {row['k']}: PCA {number(row['pca'])}, ICA {ica}{f' over {self.starts} starts' * several}; relabelled rows "
                f"{number(row['relabelled'])}, {p_sentence(row['p'], DRAWS)}; two starts on the same rows "
                f"{number(row['restart'])}; excess kurtosis {number(row['kurtosis'])}.{moving * bool(row['converged'] < 1)}"
            )
        lines.append(
            "Chance is the relabelled row, not 0; the ceiling is two starts on the same rows. ICA that beats PCA by no more than "
            "the spread over starts would speak against components that the two share."
        )
        return "\n".join(lines if self.few_shot is None else [*lines, self._helped()])

    def _helped(self) -> str:
        few = self.few_shot
        assert few is not None
        said = []
        for other, column in (("raw features", "over_raw"), ("PCA of the same k", "over_pca")):
            better, worse = int((few[f"{column}_low"] > 0).sum()), int((few[f"{column}_high"] < 0).sum())
            first = interval(*few[[column, f"{column}_low", f"{column}_high"]].iloc[0])
            cases = counted(len(few), "case")
            said.append(f"over {other} above 0 in {better} of {cases} and below in {worse} (the first: {first})")
        return (
            f"Does ICA help with few labels? Its gain in accuracy is {', '.join(said)}. Intervals (95 %) are over "
            f"{FEW_SHOT_DRAWS} draws of training stimuli, with fixed test stimuli, and not corrected for their number. The "
            f"commonest class gives {number(few['chance'].iloc[0])}."
        )

    def draw(self, **look: Any) -> Axes:
        from repalign.figures import canvas
        from repalign.figures.palette import MUTED, family

        lines = {"ica": "ICA", "pca": "PCA"} if len(self.names) == 2 else {}
        lines |= {"split_half_ica": "ICA, halves of the rows", "split_half_pca": "PCA, halves of the rows"}
        called = canvas.called(lines.values(), look=look, what="words")
        few = self.few_shot
        title, width = f"Components of {' and '.join(self.names)}", 1 if few is None else 2
        above = ("MCC of matched components, n = " + str(self.n), "accuracy with few labels, ICA minus raw")[:width]
        _, grid = canvas.sheet(1.2 + 4.6 * width, 4, title, 1, [1] * width, above=above, room=4.6, rules="both", **look)
        axes, table = grid.flat[0], self.table
        at = np.arange(len(table))
        for i, (column, line) in enumerate(lines.items()):
            color, marker = family(i)
            style = "--" if column.startswith("split") and len(self.names) == 2 else "-"
            axes.plot(at, table[column], color=color, marker=marker, linestyle=style, label=canvas.plain(called[line]))
            if column == "ica":
                axes.vlines(at, table["ica_low"], table["ica_high"], color=color)
        axes.plot(at, table["relabelled"], color=MUTED, linestyle=canvas.DASHED, label="relabelled rows (chance)")
        axes.set_xticks(at, [str(k) for k in table["k"]])
        axes.set_ylim(0, 1)
        axes.legend(fontsize=7, frameon=False, loc="upper right")
        canvas.labels(axes, "components k", "MCC")
        if few is not None:
            _draw_few(grid.flat[1], few)
        return axes


def _draw_few(axes: Axes, few: pd.DataFrame) -> None:
    from repalign.figures import canvas
    from repalign.figures.palette import MUTED, family

    kinds = ["file", "k", "test"]
    groups = list(few.groupby(kinds, sort=False))
    for i, (names, rows) in enumerate(groups):
        color, marker = family(i)
        said = [str(v) for c, v in zip(kinds, names, strict=True) if few[c].nunique() > 1 and c != "k"]
        label = ", ".join([*said, f"k = {names[1]}"])
        places = np.arange(len(rows)) + 0.5 * (i - (len(groups) - 1) / 2) / len(groups)
        axes.vlines(places, rows["over_raw_low"], rows["over_raw_high"], color=color, alpha=0.6)
        axes.plot(places, rows["over_raw"], color=color, marker=marker, markersize=4, linestyle="none", label=canvas.plain(label))
    axes.axhline(0, color=MUTED, linestyle=canvas.DASHED)
    sizes = few["per_class"].unique()
    axes.set_xticks(np.arange(len(sizes)), [str(m) for m in sizes])
    axes.legend(fontsize=6, frameon=False)
    canvas.labels(axes, "labelled stimuli of each class", "accuracy, ICA minus raw")


def disentangle(
    inputs: list[Input], *, k: list[int] = [8, 16, 32],  # noqa: B006  (read only; both readers of it want a list)
    layers: list[str] | None = None, labels: Path | None = None, label: str = "label", shift: str | None = None,
    starts: int = 5, seed: int = 0, progress: Progress = silent,
) -> Disentangled:  # fmt: skip
    """Do two models share components, once ICA has turned each? Beside PCA, relabelled rows, halves of the rows and new starts.

    With labels also: do ICA components do better than raw features with 1 to 16 labelled stimuli of each class?

    Parameters
    ----------
    inputs : One or two: files of features, or STORE#MODEL. In Python also arrays by name.
    k : How many components; may be repeated.
    layers : The layer of each; last is the last one. By default the only one.
    labels : A table with the columns id and label; for files without ids, ids are 0, 1, 2, ... In Python also a label per row.
    label : The column of labels.
    shift : A test set of its own that is never trained on, COLUMN=VALUE of the labels, such as domain=sketch.
    starts : Random starts of FastICA, 1 or more.
    seed : Of the starts, of halves and of relabellings.
    """
    import pandas as pd

    from repalign.experiments.inputs import read_inputs

    if starts < 1 or not k:
        raise RepalignError("starts and components", expected="starts >= 1 and at least one k", got=f"{starts} and {k}")
    if shift is not None and labels is None:
        raise RepalignError("--shift is about labels", remedy="name them: --labels labels.csv")
    if not 1 <= len(inputs) <= 2:
        raise RepalignError("components are of one model or two", expected="one or two inputs", got=len(inputs))
    given = read_inputs(inputs, layers)
    task = None if labels is None else _Labels.read(labels, label, shift, given.ids or tuple(map(str, range(given.n))))
    rows = [_row(given.arrays, size, starts, seed) for size in telling(k, "disentangle", progress)]
    tables = {}
    if task is not None:
        few = [r for name, x in zip(given.names, given.arrays, strict=True) for r in task.scores(name, x, k, seed, progress)]
        tables["few_shot"] = pd.DataFrame(few)
    return Disentangled(table=pd.DataFrame(rows), tables=tables, names=given.names, n=given.n, starts=starts)


def _row(arrays: Sequence[Array], k: int, starts: int, seed: int) -> dict[str, Any]:
    """All numbers of one k."""
    from repalign.null import pvalue

    fits = [[components(x, k, seed + s) for s in range(starts)] for x in arrays]
    n = len(arrays[0])
    halves = np.array_split(np.random.default_rng([seed, 2]).permutation(n), 2)
    split = [[components(x[half], k, seed) for half in halves] for x in arrays]
    turned = [[fit.ica(x) for fit in some] for x, some in zip(arrays, fits, strict=True)]
    split_pca, split_ica = ([mcc(*(f(c, x) for c in pair)) for x, pair in zip(arrays, split, strict=True)]
                            for f in (Components.pca, Components.ica))  # fmt: skip
    if len(arrays) == 2:
        pca = mcc(*(fit[0].pca(x) for x, fit in zip(arrays, fits, strict=True)))
        ica = [mcc(a, b) for a, b in zip(*turned, strict=True)]
        first = (turned[0][0], turned[1][0])
    else:
        pca, ica = split_pca[0], [split_ica[0]]
        first = (split[0][0].ica(arrays[0]), split[0][1].ica(arrays[0]))
    chance = relabelled(*first, seed)
    again = [mcc(some[0], other) for some in turned for other in some[1:]]
    every = [fit for some in (*fits, *split) for fit in some]
    return {
        "k": k, "n": n, "pca": pca, "ica": float(np.mean(ica)), "ica_low": min(ica), "ica_high": max(ica),
        "relabelled": float(chance.mean()), "p": float(pvalue(ica[0], chance)),
        "split_half_pca": float(np.mean(split_pca)), "split_half_ica": float(np.mean(split_ica)),
        "restart": float(np.mean(again)) if again else float("nan"),
        "kurtosis": float(np.median(np.concatenate([_excess(some[0]) for some in turned]))),
        "converged": float(np.mean([fit.converged for fit in every])),
    }  # fmt: skip


# --- few labels ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Labels:
    """Labels of all stimuli, and which of them are the shifted test set."""

    y: np.ndarray
    shifted: np.ndarray

    @classmethod
    def read(cls, given: Any, label: str, shift: str | None, ids: Sequence[str]) -> _Labels:
        from repalign.experiments.inputs import read_columns

        column, sign, value = (None, "", "") if shift is None else shift.partition("=")
        if shift is not None and not sign:
            raise RepalignError("--shift names a column and a value", expected="COLUMN=VALUE, such as domain=sketch", got=shift)
        found = read_columns(given, ids, label, {"shift": column})
        if column is None:
            return cls(found[label], np.zeros(len(ids), bool))
        choose("value", value, set(found[column].tolist()), f"{given}: column {column!r} nowhere says {value!r}")
        return cls(found[label], found[column] == value)

    def scores(self, name: str, x: Array, k: Sequence[int], seed: int, progress: Progress) -> list[dict[str, Any]]:
        """Accuracies of raw, PCA and ICA features for each k and number of labels.

        A fifth of the stimuli that are not shifted is held out. Components are fitted on the others, without their labels.
        """
        from repalign.competence import FewShotProbe, Split
        from repalign.competence.probes import split_rows

        usual = np.flatnonzero(~self.shifted)
        train, held = (usual[rows] for rows in split_rows(self.y[usual], Split(seed=seed)))
        classes, counts = np.unique(self.y[train], return_counts=True)
        tests = {"held out": held} | ({"shifted": np.flatnonzero(self.shifted)} if self.shifted.any() else {})
        sizes = [m for m in PER_CLASS if m <= counts.min()]
        rows, total = [], len(k) * len(sizes)
        features = {size: components(x[train], size, seed) for size in k}
        for test, at in tests.items():
            chance = float(np.mean(self.y[at] == classes[counts.argmax()]))
            for i, m in enumerate(sizes):
                probe, y = FewShotProbe(m=m, draws=FEW_SHOT_DRAWS), self.y

                def accuracies(z: Array, probe: FewShotProbe = probe, y: np.ndarray = y, at: np.ndarray = at) -> Array:
                    return np.array(probe.fit(z[train], y[train], z[at], y[at], seed)["details"]["draws"])

                raw = accuracies(x)
                for j, size in enumerate(k):
                    progress(f"few labels, {name}", i * len(k) + j, total)
                    ica, pca = accuracies(features[size].ica(x)), accuracies(features[size].pca(x))
                    row: dict[str, Any] = {"file": name, "test": test, "k": size, "per_class": m}
                    several = {"raw": raw, "pca": pca, "ica": ica, "over_raw": ica - raw, "over_pca": ica - pca}
                    for what, some in several.items():
                        mean, half = float(some.mean()), half_width(some)
                        row |= {what: mean, f"{what}_low": mean - half, f"{what}_high": mean + half}
                    rows.append(row | {"chance": chance, "n_test": len(at), "n_classes": len(classes)})
        progress(f"few labels, {name}", total, total)
        return sorted(rows, key=lambda row: (row["test"], row["k"], row["per_class"]))


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Made-up mixtures of the same components, and labels."""
    from repalign.files import write_file

    rng, n = np.random.default_rng(0), 160
    latent, files = rng.laplace(size=(n, 6)), [folder / f"model{i + 1}.npy" for i in range(len(given["inputs"]))]
    paths = [made_up(file, latent @ rng.standard_normal((6, 8)) + 0.1 * rng.standard_normal((n, 8))) for file in files]
    column, _, value = (given["shift"] or "shift=yes").partition("=")
    labels = (f"{i},{int(z > 0)},{value if i % 4 == 0 else 'no'}" for i, z in enumerate(latent[:, 0]))
    lines = [f"id,{given['label']},{column}", *labels]
    write_file(folder / "labels.csv", "\n".join(lines) + "\n")
    return {"inputs": paths, "layers": None, "k": [3, 6], "starts": 2, "labels": given["labels"] and folder / "labels.csv"}
