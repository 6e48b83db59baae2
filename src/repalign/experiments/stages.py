"""Stages of inference: what a model's blocks do, told by taking one out, exchanging two, or answering early.

Source: Lad, Lee, Gurnee, Tegmark 2024 (arXiv 2406.19384 v3). Known departure from their code (vdlad/Remarkable-Robustness-of-LLMs):
KL, agreement and loss are of the same positions; there the loss is of one position less, beside KL of the positions after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from repalign import text as words
from repalign.errors import RepalignError
from repalign.experiments.base import Found, Input
from repalign.experiments.models import Answers, answering, read_stimuli, toy_images, wide
from repalign.experiments.residual_stream import Stream, stream_of
from repalign.text import Progress, silent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from torch import Tensor

    from repalign.figures.canvas import Look

POSITIONS = 256  # float64 softmax of so many positions at once: a vocabulary may have 250,000 entries
# The paper's words for its four stages, each with the number here that speaks of it.
WORDS = (
    ("detokenization", "top-1 kept without the first block"),
    ("feature engineering", "median top-1 kept without an inner block"),
    ("prediction ensembling", "share of the lens' KL that the second half of the blocks takes away"),
    ("residual sharpening", "top-1 kept without the last block"),
)


# --- what is measured ----------------------------------------------------------------------------


@dataclass(eq=False)
class Changes:
    """What an intervention does to a model's answers, over all positions that have been added.

    kl : KL(p || p_changed) in nats, >= 0. same : whether the likeliest answer is the same. entropy : of p_changed, in nats.
    cost : -ln p_changed of the next token, where there is one, in nats.
    """

    kl: list[Tensor] = field(default_factory=list)
    same: list[Tensor] = field(default_factory=list)
    entropy: list[Tensor] = field(default_factory=list)
    cost: list[Tensor] = field(default_factory=list)

    def add(self, before: Tensor, after: Tensor, following: Tensor) -> None:
        """Logits (n, v) before and after, and the token (n,) that follows each, -1 where none does; in float64."""
        import torch

        for i in range(0, len(before), POSITIONS):
            p, q = (wide(x[i : i + POSITIONS]).log_softmax(-1) for x in (before, after.to(before.device)))
            token = following[i : i + POSITIONS].to(p.device)
            mass = p.exp()
            self.kl.append(torch.where(mass > 0, mass * (p - q), 0.0).sum(-1).clamp(min=0).cpu())
            self.same.append((p.argmax(-1) == q.argmax(-1)).cpu().double())
            self.entropy.append(-torch.where(q.isfinite(), q.exp() * q, 0.0).sum(-1).cpu())
            scored = token >= 0
            self.cost.append(-q[scored].gather(1, token[scored, None])[:, 0].cpu())

    def told(self, nats: float) -> dict[str, float]:
        """Means over positions and the median of KL; the change of nats per token against `nats`."""
        import torch

        kl, same, entropy, cost = (torch.cat(x) if x else torch.empty(0) for x in (self.kl, self.same, self.entropy, self.cost))
        middle = float(kl.quantile(0.5)) if len(kl) < 2**24 else float(kl.median())
        return {
            "kl": float(kl.mean()), "kl_median": middle, "top1": float(same.mean()),
            "nats": float(cost.mean()) - nats, "entropy": float(entropy.mean()),
        }  # fmt: skip


def curvature(state: Tensor) -> Tensor:
    """Angles between successive differences of tokens, in radians from 0 to pi: a state (t, d) gives t - 2 of them.

    >>> import torch
    >>> curvature(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])).numpy().round(4)
    array([1.5708])
    """
    import torch

    steps = wide(state).diff(dim=0)
    return torch.nn.functional.cosine_similarity(steps[1:], steps[:-1], dim=-1).clamp(-1, 1).arccos()


def update(before: Tensor, after: Tensor) -> Tensor:
    """The norm of what a block adds, over that of what it is added to: |h' - h| / |h| of states (..., d)."""
    before, after = wide(before), wide(after.to(before.device))
    return (after - before).norm(dim=-1) / before.norm(dim=-1)


# --- the experiment ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Stages(Found):
    """What the blocks of a model do; `table` has a row for each depth, 0 (before the first block) to L (the output).

    * `depth`: the row's place, `relative_depth` its share of L.
    * `delete_*`: without the block of this row; `swap_*`: this block and the next exchanged; `lens_*`: the head's answer to the
      state that goes into this block. Of each `kl` (mean) and `kl_median`, KL(p || p_changed) in nats; `top1`, the share of
      positions whose likeliest answer stays; `nats`, what a next token costs more. `lens_entropy` is in nats.
    * `curvature`: mean angle between successive steps of tokens, in radians, without a beginning-of-sequence token; at the last
      depth behind the final norm. `update`: mean of |h' - h| / |h| of the block, over all tokens.

    `facts` : of the run. `tables` : the paper's words for stages beside a number each, and swaps that were refused.
    """

    facts: Mapping[str, Any]
    shown: ClassVar[tuple[str, ...]] = ("depth", "delete_kl", "delete_top1", "swap_kl", "swap_top1", "lens_top1", "lens_entropy")

    @property
    def text(self) -> str:
        return " ".join(_sentences(self))

    def draw(self, **look: Unpack[Look]) -> Axes:
        """Four panels over relative depth: what stays, KL, the entropy of early answers, and the shape of the stream."""
        from repalign.figures import canvas
        from repalign.figures.palette import MUTED, PAPER, family

        table, facts = self.table, self.facts
        names = {"delete": "one block deleted", "swap": "two neighbours swapped", "lens": "answered early (lens)"}
        look.pop("labels", None)
        what = "text" if facts["kind"] == "text" else "image"
        about = f"{words.counted(facts['n'], what)}, {facts['positions']:,} positions, {facts['blocks']} blocks"
        heads = ["answers that stay (top-1)", "KL to the answers, nats", "entropy of early answers, nats", "shape of the stream"]
        heads[0] = f"{about}\n{heads[0]}"
        _, grid = canvas.sheet(8.2, 6.2, f"Stages of {facts['model']}", 2, (1, 1), above=heads, rules="both", **look)
        panels = list(grid.flat)
        depth, half = table["relative_depth"].to_numpy(float), 0.5 / facts["blocks"]
        for axes in panels:
            axes.set_xlim(-0.03, 1.03)

        def line(axes: Axes, column: str, k: int, label: str, aside: float = 0.0) -> None:
            color, marker = family(k)
            axes.plot(
                depth + aside, table[column], color=color, marker=marker, markersize=4.5, linewidth=1.5, markeredgecolor=PAPER,
                label=label,
            )  # fmt: skip

        for k, (name, label) in enumerate(names.items()):
            aside = {"delete": half, "swap": 2 * half, "lens": 0.0}[name]  # a block lies between two depths
            line(panels[0], f"{name}_top1", k, label, aside)
            line(panels[1], f"{name}_kl", k, "_", aside)
        panels[0].axhline(facts["commonest_answer"], color=MUTED, linewidth=1.2, linestyle=canvas.DASHED, label="commonest answer")
        panels[0].set_ylim(-0.03, 1.03)
        panels[1].set_yscale("symlog", linthresh=0.1, linscale=0.4)
        panels[1].set_ylim(bottom=0)
        ticks = [t for t in (0, 0.1, 0.3, 1, 3, 10, 30, 100) if t <= 1.1 * panels[1].get_ylim()[1]]
        panels[1].set_yticks(ticks, [f"{t:g}" for t in ticks])
        panels[1].minorticks_off()
        line(panels[2], "lens_entropy", 2, "_")
        panels[2].set_ylim(bottom=0)
        line(panels[3], "update", 4, "update |h' − h| / |h|", half)
        if table["curvature"].notna().any():
            line(panels[3], "curvature", 3, "curvature, radians")
        panels[3].set_ylim(bottom=0)
        for axes in panels:
            canvas.labels(axes, "relative depth")
        canvas.legend_below(panels[0], 3)
        return panels[0]


def stages(
    model: Input, stimuli: Path, *, column: str | None = None, n: int = 100, batch_size: int = 8, device: str = "auto",
    progress: Progress = silent,
) -> Stages:  # fmt: skip
    """What each block of a language model or a vision transformer does: delete it, swap it with the next, answer before it.

    Parameters
    ----------
    model : A causal language model (hf:org/name, hf:./folder) or a vision transformer with its head (hf:, timm:).
    stimuli : Texts: a table (.csv, .jsonl, ...) or a text file with one text in each line. Of a vision transformer images: a
        folder, or a table of paths.
    column : The column of the table, by default text or image; of several captions the first is read.
    n : How many of them, from the first; 0 for all.
    batch_size : Stimuli that go through the model together.
    device : Where to run: auto (a GPU where there is one), cpu, cuda, mps or sharded.
    """
    if batch_size < 1:
        raise RepalignError("batch_size is out of range", expected="at least 1", got=batch_size)
    answers = answering(model, device, progress)
    found, _ = read_stimuli(stimuli, answers.kind, column, n)
    return measure(answers, found, batch_size, progress)


def measure(model: Answers, stimuli: Sequence[Any], batch_size: int = 8, progress: Progress = silent) -> Stages:
    """`stages` of a model that is loaded, on texts or images at hand."""
    import torch

    prepared = sorted(model.prepare(stimuli), key=model.source.length)
    stream = stream_of(model, prepared[:1])
    counts = Counts(model, stream)
    batches = [prepared[i : i + batch_size] for i in range(0, len(prepared), batch_size)]
    for done, batch in enumerate(batches):
        progress("stages", done * batch_size, len(prepared))
        with torch.inference_mode():
            counts.add(batch)
    progress("stages", len(prepared), len(prepared))
    return counts.told(len(prepared))


class Counts:
    """What is summed up while a model reads."""

    def __init__(self, model: Answers, stream: Stream) -> None:
        self.model, self.stream, depth = model, stream, len(stream.blocks)
        self.refused = {i: why for i in range(depth - 1) if (why := stream.unlike(i))}
        self.deleted = {i: Changes() for i in range(depth)}
        self.swapped = {i: Changes() for i in range(depth - 1) if i not in self.refused}
        self.lens = {i: Changes() for i in range(depth + 1)}
        self.unchanged = Changes()
        self.angles: list[list[Tensor]] = [[] for _ in range(depth + 1)]
        self.updates: list[list[Tensor]] = [[] for _ in range(depth)]
        self.answers: list[Tensor] = []  # the likeliest ones

    def add(self, batch: Sequence[Any]) -> None:
        import torch

        with self.stream.watched() as states:
            logits, mask, tokens = self.model.run(batch)
        at = mask.nonzero(as_tuple=True)
        following = torch.full(mask.shape, -1)
        if tokens is not None:
            both = mask[:, :-1] & mask[:, 1:]
            following[:, :-1] = torch.where(both, tokens[:, 1:].to(both.device), -1).cpu()
        before, following = logits[at], following[tuple(x.cpu() for x in at)]
        self.answers.append(before.argmax(-1).cpu())

        def compare(changes: Changes) -> None:
            changes.add(before, self.model.run(batch)[0][at], following)

        for changed, how in ((self.deleted, self.stream.without), (self.swapped, self.stream.swapped)):
            for i, changes in changed.items():
                with self.stream.entered(i, states[i]), how(i):
                    compare(changes)
        for i, changes in self.lens.items():
            with self.stream.entered(len(self.deleted), states[i]):  # the logit lens
                compare(changes)
        compare(self.unchanged)
        self._shape(states, mask if tokens is not None else None, batch)

    def _shape(self, states: Sequence[Tensor], mask: Tensor | None, batch: Sequence[Any]) -> None:
        """Curvature and updates; of images there is no order of tokens to bend."""
        depth = len(self.stream.blocks)
        for i in range(depth):
            found = update(states[i], states[i + 1])
            self.updates[i].append((found if mask is None else found[mask.to(found.device)]).flatten().cpu())
        for row, one in enumerate(batch if mask is not None else ()):
            first = int(self.has_bos(one))
            for i, state in enumerate([*states[:depth], states[-1]]):
                assert mask is not None
                own = state[row][mask[row].to(state.device)][first:]
                if len(own) > 2:
                    self.angles[i].append(curvature(own).cpu())

    def has_bos(self, one: Any) -> bool:
        bos = getattr(getattr(self.model.source, "tokenizer", None), "bos_token_id", None)
        return bos is not None and one.ids[:1] == [bos]

    def told(self, n: int) -> Stages:
        import pandas as pd
        import torch

        depth = len(self.stream.blocks)
        nats = self.unchanged.told(0.0)["nats"]
        rows: list[dict[str, float]] = []
        for i in range(depth + 1):
            row: dict[str, float] = {"depth": i, "relative_depth": i / depth}
            for name, changed in (("delete", self.deleted), ("swap", self.swapped), ("lens", self.lens)):
                said = changed[i].told(nats) if i in changed else {}
                row |= {f"{name}_{k}": said.get(k, float("nan")) for k in ("kl", "kl_median", "top1", "nats")}
                row |= {"lens_entropy": said["entropy"]} if name == "lens" else {}
            row["curvature"] = float(torch.cat(self.angles[i]).mean()) if self.angles[i] else float("nan")
            row["update"] = float(torch.cat(self.updates[i]).mean()) if i < depth else float("nan")
            rows.append(row)
        table = pd.DataFrame(rows)
        counts = torch.cat(self.answers).unique(return_counts=True)[1]
        again, about = self.unchanged.told(nats), self.model.source.facts
        facts = {
            "model": self.model.source.record.name, "kind": self.model.kind, "blocks": depth, "n": n,
            "positions": int(counts.sum()), "nats_per_token": nats, "entropy": again["entropy"],
            "commonest_answer": float(counts.max() / counts.sum()), "unchanged_kl": again["kl"], "unchanged_top1": again["top1"],
            "tokens": self._tokens(), "revision": self.model.source.record.revision,
            **{k: about[k] for k in ("architecture", "dtype", "versions") if k in about},
        }  # fmt: skip
        refused = [{"block": i, "next": i + 1, "reason": why} for i, why in self.refused.items()]
        tables = {"words": words_beside(table), "refused": pd.DataFrame(refused, columns=["block", "next", "reason"])}
        return Stages(table=table, tables=tables, facts=facts)

    def _tokens(self) -> str:
        from repalign.sources.tokenizer import PROBE

        if self.model.kind == "image":
            return "one answer for each image"
        ids = list(self.model.source.tokenizer(PROBE)["input_ids"])  # type: ignore[attr-defined]
        bos = self.model.source.tokenizer.bos_token_id  # type: ignore[attr-defined]
        adds = bos is not None and ids[:1] == [bos]
        return f"all tokens of each text; the tokenizer adds {'a' if adds else 'no'} beginning-of-sequence token"


def words_beside(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's words for its four stages, each beside a number of the table that speaks of it. Nothing is detected."""
    import pandas as pd

    kept, kl = table["delete_top1"].to_numpy()[:-1], table["lens_kl"].to_numpy()
    inner = pd.Series(kept[1:-1]).median() if len(kept) > 2 else float("nan")
    half = (len(kl) - 1) // 2
    share = (kl[half] - kl[-1]) / (kl[0] - kl[-1]) if kl[0] > kl[-1] else float("nan")
    rows = zip(WORDS, (kept[0], inner, share, kept[-1]), strict=True)
    return pd.DataFrame([{"stage": stage, "number": number, "value": float(v)} for (stage, number), v in rows])


def _sentences(found: Stages) -> Iterator[str]:
    table, facts = found.table, found.facts
    kept = table["delete_top1"].dropna()
    low, high = words.alike(float(kept.min()), float(kept.max()))
    what = "texts" if facts["kind"] == "text" else "images"
    yield (
        f"{facts['model']}, {facts['blocks']} blocks, n = {facts['n']:,} {what}, {facts['positions']:,} positions "
        f"({facts['tokens']}). Without one block {low} to {high} of the likeliest answers stay; least without block "
        f"{int(kept.idxmin())}, most without block {int(kept.idxmax())}."
    )
    swapped = table["swap_top1"].dropna()
    if len(swapped):
        ends = words.alike(float(swapped.min()), float(swapped.max()))
        yield f"With two neighbours swapped {ends[0]} to {ends[1]} stay."
    if len(found.tables["refused"]):
        many = words.counted(len(found.tables["refused"]), "swap")
        yield f"{many} of neighbours of unlike kinds left out: {found.tables['refused']['reason'].iloc[0]}."
    kl, same = words.number(facts["unchanged_kl"]), facts["unchanged_top1"]
    yield (
        f"Control: with nothing changed KL is {kl} and {'all' if same == 1 else words.number(same)} stay; a model that always "
        f"gave its commonest answer would keep {words.number(facts['commonest_answer'])}."
    )
    beside = zip(found.tables["words"]["stage"], found.tables["words"]["number"], found.tables["words"]["value"], strict=True)
    said = "; ".join(f"{stage}, {number}: {words.number(value)}" for stage, number, value in beside)
    yield f"In the paper's words for stages, each beside a number that speaks of it (nothing here detects a stage): {said}."
    yield (
        "The paper reports 72 to 95 % kept, with the first and last blocks hurting most: a least block in the middle, or none that "
        "stands out, speaks against that here."
    )


def mock(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A tiny language model and captions of the toy world; for a model of timm a tiny vision transformer and images."""
    from repalign.dataset import Dataset
    from repalign.files import write_file
    from repalign.sources import ModelEntry
    from repalign.sources.standins import stand_in

    folder.mkdir(parents=True, exist_ok=True)
    same = {"column": None, "device": "cpu"}
    if not given["model"].startswith("timm:"):
        model, _ = stand_in(ModelEntry(given["model"]), "text", folder / "models")
        captions = [some[0] for some in Dataset.toy(12).stimuli("text", range(12))]
        write_file(folder / "texts.txt", "\n".join(captions) + "\n")
        return {"model": model.spec, "stimuli": (folder / "texts.txt").absolute(), **same}
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_vit", pretrained=False), str(folder / "model"), safe_serialization=True)
    return {"model": f"timm:{(folder / 'model').absolute()}", "stimuli": toy_images(folder / "images", 12), **same}
