"""One figure per experiment, drawn from its points alone; no input or output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repalign.errors import choose
from repalign.figures.canvas import plain, sheet
from repalign.figures.palette import ACCENT, INK, MUTED, PAPER, SCORE, family
from repalign.prh.theory.experiments import Experiment

FLOOR = 1e-17  # where a gap of zero, or below it by rounding, is drawn on a logarithmic axis


def draw(experiment: Experiment) -> Figure:
    """The figure of an experiment of `repalign.prh.theory.experiments`."""
    return FIGURES[choose("experiment", experiment.name, FIGURES, f"no figure of {experiment.name!r}")](experiment.points)


def recovery(points: pd.DataFrame) -> Figure:
    """What was learned against the optimum over all tables, entry by entry, for four critics at p_pos = 1/3."""
    at = points.loc[np.isclose(points["p_pos"], 1 / 3)]
    shown = [("circle, <f, f>", 2), ("circle, <f, f> + b", 2), ("ring, <f, f> + b", 12), ("ring, <f, h> + b", 12)]
    figure, panels = _panels(4, "Binary NCE: what is learned, and K_PMI + log-odds", width=10.5, height=3.3)
    for axes, (case, d) in zip(panels, shown, strict=True):
        rows = at.loc[(at["case"] == case) & (at["d"] == d)]
        both = rows[["optimum", "learned"]].to_numpy()
        low, high = both.min() - 0.3, both.max() + 0.3
        axes.plot([low, high], [low, high], color=ACCENT, linewidth=1)
        axes.plot(both[:, 0], both[:, 1], "o", color=SCORE, markersize=4, markeredgecolor=PAPER, markeredgewidth=0.4)
        _words(axes, f"{case}, d = {d}", "optimum: K_PMI + log-odds (nats)", "learned (nats)")
    return figure


def infonce(points: pd.DataFrame) -> Figure:
    """What is learned minus temperature K_PMI, every pair of events, row by row."""
    at = points.loc[points["negatives"].isin(["1", "infinite"])]
    cases = list(dict.fromkeys(zip(at["negatives"], at["temperature"], strict=True)))
    figure, panels = _panels(len(cases), "InfoNCE: g minus temperature K_PMI, twelve points over every event", width=9, height=3.2)
    for axes, (negatives, temperature) in zip(panels, cases, strict=True):
        rows = at.loc[(at["negatives"] == negatives) & (at["temperature"] == temperature)]
        for k, (critic, own) in enumerate(rows.groupby("critic", sort=False)):
            axes.plot(own["event"], own["difference"], label=plain(str(critic)), **_dots(k))
        _words(axes, f"{negatives} negatives, temperature {temperature:g}", "event a", "difference (nats)")
    panels[0].legend(fontsize=7, frameon=False, loc="best")
    return figure


def existence(points: pd.DataFrame) -> Figure:
    """The smallest eigenvalue of the centred K_PMI against the gap that is left."""
    figure, (axes,) = _panels(1, "No f where an eigenvalue is negative", width=6.4, height=4.4)
    for k, (kind, rows) in enumerate(points.groupby("kind", sort=False)):
        axes.plot(rows["lambda_min"], np.maximum(rows["gap"], FLOOR), label=plain(str(kind)), **_dots(k))
    axes.axvline(0, color=ACCENT, linewidth=1)
    axes.set_yscale("log")
    axes.set_xscale("symlog", linthresh=0.1)
    axes.legend(fontsize=7, frameon=False, loc="center left")
    gap = "loss above the optimum (nats); 1e-17 stands for 0"
    _words(axes, "binary NCE, <f, f> + b, d = N", "smallest eigenvalue of the centred K_PMI", gap)
    return figure


def bijections(points: pd.DataFrame) -> Figure:
    """The centred kernels of two learners of one-to-one views, entry by entry."""
    pairs = list(dict.fromkeys(points["pair"]))
    figure, panels = _panels(len(pairs), "Two modalities, one to one: centred kernels of 64 x 64 pairs", width=10.5, height=3.3)
    for axes, pair in zip(panels, pairs, strict=True):
        rows = points.loc[points["pair"] == pair]
        axes.plot(rows["kernel_x"], rows["kernel_y"], **_dots(0))
        first, second = (t.replace(", n_negatives=None", "") for t in pair.split(" and "))
        _words(axes, "", first, second)
    return figure


def lossy(points: pd.DataFrame) -> Figure:
    """CKA with the learner of the whole world, against the entropy and against the information that a view keeps."""
    figure, panels = _panels(2, "Lossy views: alignment with the whole world's learner", width=8.6, height=4)
    for axes, (field, label) in zip(
        panels, (("entropy_kept", "entropy kept, H(X) / H(Z)"), ("information_kept", "information kept, I(X) / I(Z)")),
        strict=True,
    ):  # fmt: skip
        for k, (kind, rows) in enumerate(points.groupby("kind", sort=False)):
            axes.plot(rows[field], rows["cka"], label=plain(str(kind)), **_dots(k))
        axes.set_xlim(-0.04, 1.04)
        axes.set_ylim(-0.04, 1.04)
        _words(axes, "", label, "CKA (biased) over 64 events")
    panels[1].legend(fontsize=7, frameon=False, loc="lower right")
    return figure


def samples(points: pd.DataFrame) -> Figure:
    """Alignment of two learners, and the error of one, against the pairs that each of them saw."""
    figure, panels = _panels(2, "Two modalities that share no sample", width=8.6, height=3.6)
    for k, (field, label) in enumerate((("cka", "CKA (biased)"), ("rsa", "RSA"), ("mutual_knn", "mutual 10-NN"))):
        panels[0].plot(points["n_pairs"], points[field], label=label, **_dots(k))
    panels[0].legend(fontsize=7, frameon=False, loc="lower right")
    _words(panels[0], "", "pairs that each modality saw", "alignment over 64 events")
    panels[1].plot(points["n_pairs"], points["error_x"], **_dots(0))
    panels[1].set_yscale("log")
    _words(panels[1], "", "pairs seen", "largest error of the kernel (nats)")
    for axes in panels:
        axes.set_xscale("log")
    return figure


def hypersphere(points: pd.DataFrame) -> Figure:
    """How well latents on the sphere come back: all together, and one by one."""
    return _scores(points, "Latents on the sphere come back up to a rotation")


def box(points: pd.DataFrame) -> Figure:
    """How well latents in a box come back, beside normal ones."""
    return _scores(points, "Latents in a box come back one by one, normal ones do not")


def _scores(points: pd.DataFrame, title: str) -> Figure:
    worlds = list(points.groupby("latents", sort=False))
    figure, panels = _panels(len(worlds), title, width=1.8 + 3.4 * len(worlds), height=3)
    shown = (("r2", "R² of linear regression"), ("mcc", "MCC"), ("mcc_ica", "MCC after ICA"))
    for axes, (world, rows) in zip(panels, worlds, strict=True):
        at = np.arange(len(rows))[::-1]
        for k, (field, label) in enumerate(shown):
            axes.plot(rows[field], at, label=label, **_dots(k))
        level = {"color": MUTED, "linewidth": 1, "linestyle": (0, (4, 2.5))}
        axes.axvline(rows["rotation"].iloc[0], label="MCC of a random rotation", **level)
        axes.set_yticks(at, [plain(name) for name in rows["features"]])
        axes.set_xlim(0, 1.03)
        _words(axes, str(world), "score over 4,000 held-out stimuli", "")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize=7, frameon=False, ncols=4)
    return figure


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    f.__name__: f for f in (recovery, infonce, existence, bijections, lossy, samples, hypersphere, box)
}


def _panels(n: int, title: str, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure, grid = sheet(width, height, title, 1, [1] * n, rules="both")
    for axes in grid.flat:
        axes.tick_params(labelsize=7)
    return figure, list(grid.flat)


def _dots(k: int) -> dict[str, object]:
    color, marker = family(k)
    look = {"markersize": 5, "markeredgecolor": PAPER, "markeredgewidth": 0.5}
    return {"linestyle": "none", "marker": marker, "color": color, **look}


def _words(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(plain(title), loc="left", fontsize=8, color=MUTED)
    axes.set_xlabel(plain(x), fontsize=7, color=INK)
    axes.set_ylabel(plain(y), fontsize=7, color=INK)
