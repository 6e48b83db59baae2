"""Stitching by task loss: the first half of one vision model, an affine map, and the second half of another.

Sources: Lenc and Vedaldi 2015; Bansal, Nakkiran, Barak 2021 (arXiv 2106.07682); Csiszarik et al. 2021 (arXiv 2110.14633). The
warning is that of Balogh and Jelasity 2025 (arXiv 2412.11299): a map that is trained can learn the task anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from repalign import text as words
from repalign.errors import RepalignError, choose
from repalign.experiments.base import Found, Input
from repalign.experiments.models import Answers, answering, frozen, read_labels, read_stimuli
from repalign.experiments.stitching import (
    USUAL,
    Rows,
    Training,
    at_cut,
    channel_axis,
    half_of,
    shared_cuts,
    states_of,
    untrained,
)
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from repalign.figures.canvas import Look

SHORT = "A trained map can learn the task anew"
WARNING = (
    f"{SHORT}: that B's second half works on A's states does not show that A and B hold the same. "
    "Read it beside the direct map and beside the untrained A."
)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Stitch(Found):
    """What becomes of B's answers when A makes the states; `table` has a row for each cut. All numbers are of held-out images.

    * `direct_*`: through the least-squares map, whose `residual` is what it leaves of B's states. `trained_*`: through the map
      that is trained on KL(p_B || p_stitched) from there, after `epoch` epochs; 0 is the start.
    * `untrained_*`: the same with A at random weights, trained; `untrained_direct_*` before that. `self_*`: A = B, direct.
    * `*_agreement` is the share of images whose likeliest class is B's, `*_kl` is KL(p_B || p_stitched) in nats. `majority` is the
      agreement of always saying B's commonest class. With labels: `accuracy_b`, `accuracy` of the stitched, and their
      difference, the `penalty`.
    """

    facts: Mapping[str, Any]
    shown: ClassVar[tuple[str, ...]] = ("cut_a", "residual", "direct_agreement", "trained_agreement", "untrained_agreement")

    @property
    def text(self) -> str:
        return " ".join(_sentences(self))

    def draw(self, **look: Unpack[Look]) -> Axes:
        """Agreement with B over the cuts: trained, direct, and the controls; beside it KL and the residual."""
        from repalign.figures import canvas
        from repalign.figures.palette import MUTED, PAPER, family

        table, facts = self.table, self.facts
        look.pop("labels", None)
        about = f"fitted on {facts['fit']:,} images, judged on {facts['judge']:,} others; {facts['classes']} classes"
        heads = [f"{about}\nagreement with B (top-1)", f"{SHORT}\nKL(B ‖ stitched), nats; residual of the direct map"]
        title = f"{facts['a']} into {facts['b']}"
        _, grid = canvas.sheet(8.2, 4.2, title, 1, (1, 1), above=heads, room=4.6, rules="both", **look)
        panels, places = list(grid.flat), range(len(table))
        names = [_cut(row) for row in table.to_dict("records")]
        lines = {"trained": "trained map", "direct": "direct map", "untrained": "untrained A, trained map", "self": "A = B, direct"}
        for axes in panels:
            axes.set_xticks(list(places), [canvas.plain(name) for name in names])
            axes.set_xlim(-0.4, len(table) - 0.6)
            canvas.labels(axes, "cut after")
        for k, (what, called) in enumerate(lines.items()):
            color, marker = family(k)
            style: Any = {"color": color, "marker": marker, "markersize": 5.5, "linewidth": 1.5, "markeredgecolor": PAPER}
            panels[0].plot(places, table[f"{what}_agreement"], label=called, **style)
            panels[1].plot(places, table[f"{what}_kl"], label="_", **style)
        color, marker = family(4)
        panels[0].plot([], [], color=color, marker=marker, linestyle=canvas.DASHED, label="residual (right panel)")
        panels[1].plot(places, table["residual"], color=color, marker=marker, linestyle=canvas.DASHED, label="_")
        panels[0].plot(places, table["majority"], color=MUTED, linewidth=1.2, linestyle=canvas.DASHED, label="B's commonest class")
        panels[0].set_ylim(-0.03, 1.05)
        panels[1].set_ylim(bottom=0)
        canvas.legend_below(panels[0], 3)
        return panels[0]


def stitch(
    a: Input, b: Input, images: Path, *, cuts: list[str] | None = None, cuts_b: list[str] | None = None, column: str | None = None,
    label: str | None = None, n: int = 600, judge: float = 1 / 3, epochs: int = 8, lr: float = 1e-2, batch_size: int = 100,
    validation: float = 0.2, seed: int = 0, device: str = "auto", progress: Progress = silent,
) -> Stitch:  # fmt: skip
    """The first half of A, an affine map, the second half of B: does B's head still say what B says?

    Parameters
    ----------
    a : The vision model whose first half is taken (torch:, timm:, hf:), with its head.
    b : The one whose second half is taken.
    images : A folder of images, or a table of paths.
    cuts : Modules of A whose output goes on into B, for instance --cuts layer1 --cuts layer2; by default the parts that both
        have under one name.
    cuts_b : Modules of B in whose place it goes on, in the same order; by default those of the same names.
    column : The column of the table with the paths, by default image.
    label : A column of the table with the right class, as the number that B's head has for it.
    n : How many images are read, from the first; 0 for all.
    judge : The share of them that is held out to judge by.
    epochs : How often the training rows are gone through.
    lr : Step size of Adam; take 0.001 for wide models.
    batch_size : Images that go through the models together, and make one step.
    validation : The share of the training rows by which the best epoch is chosen; with 0 the last is kept.
    seed : Of the split, of the order of training, and of the untrained A.
    device : Where to run: auto (a GPU where there is one), cpu, cuda or mps.
    """
    import torch

    for name, value, right in (("epochs", epochs, epochs >= 0), ("batch_size", batch_size, batch_size > 0), ("lr", lr, lr > 0)):
        if not right:
            raise RepalignError(f"{name} is out of range", expected="above 0", got=value)
    for name, value, right in (("judge", judge, 0 < judge < 1), ("validation", validation, 0 <= validation < 1)):
        if not right:
            raise RepalignError(f"{name} is out of range", expected="a share below 1", got=value)
    models = [answering(one, device, progress) for one in (a, b)]
    for one in models:
        if one.kind != "image":
            raise RepalignError(f"model {one.label} reads text", expected="vision models with a head", got="a language model")
    pictures, data = read_stimuli(images, "image", column, n)
    labels = None if label is None else read_labels(images, label, len(data.ids))[: len(pictures)]
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed)).tolist()
    held = round(judge * len(pictures))
    split = order[held:], order[:held]
    if min(map(len, split)) < 10:
        raise RepalignError("too few images", expected="10 to fit and 10 to judge by, better hundreds", got=len(pictures))
    training = Training(epochs, lr, batch_size, validation, seed)
    known = None if labels is None else [labels[i] for i in split[1]]
    fit, judging = ([pictures[i] for i in rows] for rows in split)
    return stitched(*models, fit, judging, cuts, cuts_b, training, known, progress)


def stitched(
    a: Answers, b: Answers, fit: Sequence[Any], judge: Sequence[Any], cuts: Sequence[str] | None = None,
    cuts_b: Sequence[str] | None = None, training: Training = USUAL, labels: Sequence[int] | None = None,
    progress: Progress = silent,
) -> Stitch:  # fmt: skip
    """`stitch` of models that are loaded, on images at hand; those to fit by are in a random order."""
    import pandas as pd
    import torch

    cuts = list(cuts or shared_cuts(a.module, b.module))
    into = list(cuts_b or cuts)
    if not cuts:
        names = ", ".join(n for n, _ in a.module.named_children())
        raise RepalignError("where are the models cut?", expected="names of modules in `cuts` and `cuts_b`", got=f"A has {names}")
    if len(into) != len(cuts):
        raise RepalignError("cuts_b does not fit cuts", expected=f"{len(cuts)} modules", got=f"{len(into)}")
    for model, names in ((a, cuts), (b, into)):
        known = [name for name, _ in model.module.named_modules() if name]
        for name in names:
            choose("cut", name, known, f"model {model.label}: no module {name!r}")
    training_rows = len(fit)
    pictures = [*fit, *judge]
    with frozen(a.module), frozen(b.module):
        batches = [_batches(m, pictures, training.batch_size) for m in (a, b)]
        of_a, _ = states_of(a.module, dict.fromkeys(cuts), batches[0], a.label)
        of_random, _ = states_of(untrained(a.module, training.seed), dict.fromkeys(cuts), batches[0], a.label)
        of_b, logits = states_of(b.module, dict.fromkeys(into), batches[1], b.label)
        ones = _batches(b, pictures[:2], 1)
        rows: list[dict[str, Any]] = []
        counts = logits[training_rows:].argmax(-1).unique(return_counts=True)[1]
        majority = float(counts.max() / counts.sum())
        steps = max(1, 2 * training.epochs)
        for k, (cut, place) in enumerate(zip(cuts, into, strict=True)):
            x, r, y = of_a[cut], of_random[cut], of_b[place]
            axis = channel_axis(a.module, b.module, x, y)
            half = half_of(b, place, ones, y[:8], logits[:8])
            parts = [Rows(x[s], r[s], y[s], logits[s]) for s in (slice(0, training_rows), slice(training_rows, None))]
            progress("stitch", k * steps, len(cuts) * steps)
            found = at_cut(*parts, half, axis, training, lambda e, k=k: progress("stitch", k * steps + e, len(cuts) * steps))
            given = found.pop("_trained")
            of_labels = scored(logits[training_rows:], given, labels)
            rows.append({"cut_a": cut, "cut_b": place, **found, "majority": majority, **of_labels})
    facts = {
        "a": a.source.record.name, "b": b.source.record.name, "fit": training_rows, "judge": len(judge), "classes": logits.shape[1],
        "validation": round(training.validation * training_rows), "epochs": training.epochs, "lr": training.lr,
        "seed": training.seed, "torch": torch.__version__,
    }  # fmt: skip
    return Stitch(table=pd.DataFrame(rows), facts=facts)


def _batches(model: Answers, pictures: Sequence[Any], size: int) -> list[Any]:
    prepared = model.prepare(pictures)
    return [model.inputs(prepared[i : i + size]) for i in range(0, len(prepared), size)]


def scored(of_b: Tensor, stitched: Tensor, labels: Sequence[int] | None) -> dict[str, float]:
    """Accuracy of B and of the stitched model, and what stitching costs."""
    import torch

    if labels is None:
        return {}
    right = torch.tensor(labels, device=of_b.device)
    if not bool(((right >= 0) & (right < of_b.shape[1])).all()):
        expected, got = f"0 to {of_b.shape[1] - 1}", f"{min(labels)} to {max(labels)}"
        raise RepalignError("labels are no classes of B", expected=expected, got=got)
    own, theirs = (float((x.argmax(-1) == right).float().mean()) for x in (of_b, stitched))
    return {"accuracy_b": own, "accuracy": theirs, "penalty": own - theirs}


def _cut(row: Mapping[str, Any]) -> str:
    return row["cut_a"] if row["cut_a"] == row["cut_b"] else f"{row['cut_a']} → {row['cut_b']}"


def _sentences(found: Stitch) -> Iterator[str]:
    table, facts = found.table, found.facts
    yield (
        f"{facts['a']} into {facts['b']}: {words.counted(len(table), 'cut')}, map fitted on n = {facts['fit']:,} images"
        f"{' (' + format(facts['validation'], ',') + ' of them choose the epoch)' if facts['validation'] else ''}, judged on "
        f"{facts['judge']:,} others."
    )
    for row in table.to_dict("records"):
        direct, trained, random = words.alike(row["direct_agreement"], row["trained_agreement"], row["untrained_agreement"])
        left, most, own = (words.number(row[name]) for name in ("residual", "majority", "self_agreement"))
        yield (
            f"After {_cut(row)}: agreement with B {direct} direct (residual {left}), {trained} trained, {random} with an "
            f"untrained A; commonest class {most}, A = B {own}."
        )
        if "penalty" in row:
            yield f"The stitched model has {words.number(row['penalty'])} less accuracy than B's {words.number(row['accuracy_b'])}."
    yield (
        "An untrained A that agrees as often as A does speaks against any likeness of A and B at that cut. Trained agreement far "
        "above the direct one is what training added. An A = B below 1 means that the cut or the map is wrong."
    )
    yield WARNING


NETS = """import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        torch.manual_seed(width)
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x):
        return 4 * self.head(self.layer2(self.layer1(x)).mean((2, 3)))


def small():
    return Net(4)


def large():
    return Net(8)
"""


def mock(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:  # noqa: ARG001
    """Two tiny untrained nets, and pictures of the toy world."""
    from repalign.experiments.models import toy_images
    from repalign.files import write_file

    write_file(folder / "nets.py", NETS)
    nets = {"a": f"torch:{(folder / 'nets.py').absolute()}:small", "b": f"torch:{(folder / 'nets.py').absolute()}:large"}
    nothing = dict.fromkeys(("cuts", "cuts_b", "column", "label"))
    return {**nets, **nothing, "images": toy_images(folder / "images", 60), "n": 60, "epochs": 2, "device": "cpu"}
