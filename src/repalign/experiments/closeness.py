"""Closeness in distribution: how far apart the predictions of two models are, beside how far apart their representations are.

Source: Nielsen et al. 2025 (arXiv 2506.03784): models that are close in KL may have unlike representations; those that are close
in d_LLV have not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from repalign import text as words
from repalign.errors import RepalignError
from repalign.experiments.base import Found, Input, made_up
from repalign.text import Progress, silent, telling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from repalign.figures.canvas import Look

MOST_WORK = 2e9  # numbers that a search for the labels may look at: some ten seconds
TERMS = ("labels", "inputs", "label_scale", "input_scale")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Closeness(Found):
    """`table` has one row: d_LLV and its four terms, its mean over shuffled inputs of B and their p, and other distances of the
    same predictions: KL both ways, Jensen-Shannon, the share of other likeliest labels; then CKA of the embeddings.

    `facts` : of the run; the labels and inputs that d_LLV was found at.
    """

    facts: Mapping[str, Any]
    shown: ClassVar[tuple[str, ...]] = ("d_llv", "shuffled", "p", "kl_ab", "kl_ba", "disagreement", "cka")

    @property
    def text(self) -> str:
        (row,), f = self.table.to_dict("records"), self.facts
        apart, shuffled = words.number(row["d_llv"]), words.number(row["shuffled"])
        kl, back, cka, other = (words.number(row[name]) for name in ("kl_ab", "kl_ba", "cka", "disagreement"))
        return (
            f"{f['a']} and {f['b']}, n = {f['n']:,} inputs, {f['labels']:,} labels: d_LLV {apart}; with the inputs of B shuffled "
            f"{shuffled}, {words.p_sentence(row['p'], f['draws'])}. KL {kl} and {back} nats; a share of {other} has another "
            f"likeliest label; CKA of the embeddings {cka}. 0 means one distribution, and then embeddings that are the same up to "
            "an invertible linear map, which CKA may not see. A d_LLV as large as over shuffled inputs speaks against closeness. "
            f"It is the least over {words.counted(f['samples'], 'set')} of {f['width'] + 1} inputs: more sets give less."
        )

    def draw(self, **look: Unpack[Look]) -> Axes:
        """The terms of d_LLV as bars, its value, and its mean over shuffled inputs."""
        from repalign.figures import canvas
        from repalign.figures.palette import ACCENT, INK, MUTED, SCORE

        (row,), f = self.table.to_dict("records"), self.facts
        look.pop("labels", None)
        about = f"{f['n']:,} inputs, {f['labels']:,} labels; the distance is the largest term"
        _, ((axes,),) = canvas.sheet(6.2, 2.8, f"Terms of d_LLV: {f['a']} and {f['b']}", above=about, **look)
        names = ["over labels", "over inputs", f"scale of labels × {f['weight']:g}", f"scale of inputs × {f['weight']:g}"]
        values = [row[t] * (f["weight"] if t.endswith("scale") else 1) for t in TERMS]
        axes.barh(names[::-1], values[::-1], color=SCORE, height=0.6)
        axes.axvline(row["d_llv"], color=ACCENT, linewidth=1.4, label=f"d_LLV {words.number(row['d_llv'])}")
        label = f"inputs of B shuffled {words.number(row['shuffled'])}"
        axes.axvline(row["shuffled"], color=MUTED, linewidth=1.2, linestyle=canvas.DASHED, label=label)
        axes.tick_params(axis="y", colors=INK)
        canvas.legend_below(axes, 2)
        return axes


def closeness(
    embeddings_a: Input, unembeddings_a: Input, embeddings_b: Input, unembeddings_b: Input, *, samples: int = 200,
    pivot: int = -1, left_out: int = -1, weight: float = 1e-5, draws: int = 19, seed: int = 0, progress: Progress = silent,
) -> Closeness:  # fmt: skip
    """How far apart the predictions of two models are: the log-likelihood variance distance d_LLV, beside KL and CKA.

    Each model is given by two files, with p(label | input) the softmax of f g': add a column of ones to f and the bias to g.

    Parameters
    ----------
    embeddings_a : A file of A's embeddings of n inputs, (n, d), such as the last hidden states.
    unembeddings_a : A file of A's unembeddings of c labels, (c, d), such as the weights of its head; at least d + 2 labels.
    embeddings_b : B's embeddings of the same inputs; their width may differ.
    unembeddings_b : B's unembeddings of the same labels.
    samples : How many disjoint sets of d + 1 inputs are tried; fewer where there are too few inputs.
    pivot : The label that others are compared with, by its number from 0; -1 looks for the best.
    left_out : The label that is left out; -1 looks for the best.
    weight : Of the terms of scale.
    draws : How often the inputs of B are shuffled.
    seed : Of the sets of inputs and of the shuffles.
    """
    import numpy as np
    import pandas as pd

    from repalign.experiments.inputs import read_inputs
    from repalign.measures import CKA, Disagreement, JensenShannon, KLDivergence, log_likelihood_variance_distance
    from repalign.null import pvalue

    if draws < 1 or samples < 1:
        raise RepalignError("draws and samples are out of range", expected="at least 1", got=(draws, samples))
    inputs = read_inputs({"A's embeddings": embeddings_a, "B's embeddings": embeddings_b})
    labels = read_inputs({"A's unembeddings": unembeddings_a, "B's unembeddings": unembeddings_b})
    (f, f2), (g, g2) = inputs.arrays, labels.arrays
    n, c, width = len(f), len(g), f.shape[1]
    _refuse_misfits((f, g, f2, g2))
    sets = min(samples, n // (width + 1))
    if sets < 1:
        raise RepalignError("too few inputs", expected=f"at least d + 1 = {width + 1}", got=n)
    work = n * c * (c if pivot < 0 else 1) * (c if left_out < 0 else 1)
    if work > MOST_WORK:
        raise RepalignError(
            f"{c:,} labels are too many to look for the two that are set apart", expected="both named",
            got=f"pivot {pivot}, left_out {left_out}", remedy="say --pivot 0 --left-out 1, or other numbers of labels",
        )  # fmt: skip
    chosen = {"pivot": None if pivot < 0 else pivot, "left_out": None if left_out < 0 else left_out}
    how = {**chosen, "weight": weight, "samples": sets, "seed": seed}
    found = log_likelihood_variance_distance(f, g, f2, g2, **how)
    generator, shuffled = np.random.default_rng(seed), []
    for _ in telling(range(draws), "closeness", progress):
        order = generator.permutation(n)
        shuffled.append(log_likelihood_variance_distance(f, g, f2[order], g2, **how).distance)
    p, q = f @ g.T, f2 @ g2.T
    row = {
        "d_llv": found.distance, **{term: getattr(found, term) for term in TERMS}, "shuffled": float(np.mean(shuffled)),
        "p": float(pvalue(-found.distance, -np.array(shuffled))), "kl_ab": KLDivergence()(p, q),
        "kl_ba": KLDivergence()(q, p), "jensen_shannon": JensenShannon()(p, q), "disagreement": Disagreement()(p, q),
        "cka": CKA()(f, f2),
    }  # fmt: skip
    facts = {
        "a": _name(embeddings_a, "A"), "b": _name(embeddings_b, "B"), "n": n, "labels": c, "width": width, "samples": sets,
        "draws": draws, "weight": weight, "seed": seed, "pivot": found.pivot, "left_out": found.left_out, "rows": list(found.rows),
        "how": [*inputs.how, *labels.how],
    }  # fmt: skip
    return Closeness(table=pd.DataFrame([row]), facts=facts)


def _refuse_misfits(arrays: Any) -> None:
    f, g, f2, g2 = arrays
    for side, x, y in (("A", f, g), ("B", f2, g2)):
        if x.shape[1] != y.shape[1]:
            raise RepalignError(
                f"the embeddings and unembeddings of {side} do not fit", expected="one width, d",
                got=f"{x.shape[1]} and {y.shape[1]}", remedy="give f of A, g of A, f of B, g of B, in this order",
            )  # fmt: skip
    if len(g) < f.shape[1] + 2:
        raise RepalignError(
            "too few labels: the distance is not defined", got=f"{len(g)} labels",
            expected=f"at least d + 2 = {f.shape[1] + 2}, as language models have; a head of few classes has too few",
            remedy="compare logits instead: repalign pair a.npy b.npy -m 'LogitDistance()'",
        )  # fmt: skip


def _name(given: Any, otherwise: str) -> str:
    return Path(given).stem if isinstance(given, (str, Path)) else otherwise


def mock(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:  # noqa: ARG001
    """Made-up models of width 3 over 8 labels, the second near the first."""
    import numpy as np

    rng = np.random.default_rng(0)
    f, g, noise = rng.normal(size=(200, 3)), rng.normal(size=(8, 3)), 0.1 * rng.normal(size=(200, 3))
    made = {"embeddings_a": f, "unembeddings_a": g, "embeddings_b": f + noise, "unembeddings_b": g}
    return {**{name: made_up(folder.absolute() / f"{name}.npy", x) for name, x in made.items()}, "pivot": -1, "left_out": -1}
