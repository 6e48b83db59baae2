"""Stages of inference: what a model's blocks do, told by taking one out, exchanging two, or answering early.

Source: Lad, Lee, Gurnee, Tegmark 2024 (arXiv 2406.19384 v3). Known departure from their code (vdlad/Remarkable-Robustness-of-LLMs):
KL, agreement and loss are of the same positions; there the loss is of one position less, beside KL of the positions after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from repalign import text as words
from repalign.errors import RepalignError, Unavailable
from repalign.experiments.base import Found, Input
from repalign.experiments.models import Answers, answering, doing, read_stimuli, toy_images, wide
from repalign.text import Progress, silent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from torch import Tensor, nn

    from repalign.figures.canvas import Look

POSITIONS = 256  # float64 softmax of so many positions at once: a vocabulary may have 250,000 entries
# What tells a block's attention from another's, as attributes of the block or of what is in it.
ATTENTION = ("attention_type", "layer_type", "sliding_window", "is_sliding", "is_local", "window_size", "use_rope")
# The paper's words for its four stages, each with the number here that speaks of it.
WORDS = (
    ("detokenization", "top-1 kept without the first block"),
    ("feature engineering", "median top-1 kept without an inner block"),
    ("prediction ensembling", "share of the lens' KL that the second half of the blocks takes away"),
    ("residual sharpening", "top-1 kept without the last block"),
)


# --- the residual stream -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stream:
    """A model's residual stream: L blocks in their order, and what may be done to them inside a `with` block.

    Blocks are never moved: only what they do is exchanged, and put back at the end, after an error too. So models that are
    spread over devices can be asked as well.
    """

    blocks: tuple[nn.Module, ...]
    head: nn.Module | None = None  # what reads the last state, behind the final norm
    kinds: tuple[str, ...] = ()  # of attention, as the configuration names them
    several: set[int] = field(default_factory=set)  # blocks that return more than the hidden state

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Filled by the pass inside: L + 1 states (b, t, d), the input of every block and the last one's output; then what
        the head reads."""
        states: list[Tensor] = []
        read: list[Tensor] = []

        def seen(i: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                states.append(hidden(args, kwargs).clone())  # a block may write into its input
                out = forward(*args, **kwargs)
                if isinstance(out, (tuple, list)):
                    self.several.add(i)
                if i == len(self.blocks) - 1:
                    states.append((out[0] if i in self.several else out).clone())
                return out

            return run

        handle = self.head and self.head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
        try:
            with doing({block: seen(i, block.forward) for i, block in enumerate(self.blocks)}):
                yield states
        finally:
            if handle:
                handle.remove()
        states += read[:1]

    def without(self, block: int) -> Any:
        """The block gives its input."""
        return doing({self.blocks[block]: self._giving(block, lambda h: h)})

    def swapped(self, block: int) -> Any:
        """This block and the one behind it do each other's work."""
        first, second = self.blocks[block], self.blocks[block + 1]
        return doing({first: second.forward, second: first.forward})

    def entered(self, block: int, state: Tensor) -> Any:
        """The pass goes on from this state, which goes into this block: those before it do nothing. Of L it goes into the head."""
        before = enumerate(self.blocks[:block])
        return doing({b: self._giving(i, (lambda h: h) if i else lambda _: state) for i, b in before})

    def _giving(self, i: int, what: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        forward = self.blocks[i].forward

        def run(*args: Any, **kwargs: Any) -> Any:
            given = what(hidden(args, kwargs))
            return (given, *forward(*args, **kwargs)[1:]) if i in self.several else given

        return run

    def unlike(self, block: int) -> str | None:
        """Why a block cannot do the work of the one behind it; None where it can."""
        first, second = self.blocks[block : block + 2]
        if type(first) is not type(second):
            return f"{type(first).__name__} and {type(second).__name__}"
        if self.kinds and self.kinds[block] != self.kinds[block + 1]:
            return f"{self.kinds[block]} and {self.kinds[block + 1]}"
        return next((f"{a} and {b}" for a, b in zip(_attention(first), _attention(second), strict=False) if a != b), None)


def hidden(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden state among what a block is given."""
    return args[0] if args else kwargs["hidden_states"]


def _attention(block: nn.Module) -> list[str]:
    """What a block says of its attention."""
    said = ((name, getattr(m, name, None)) for m in block.modules() for name in ATTENTION)
    return [f"{name} {value}" for name, value in said if isinstance(value, (str, int, float))]


def stream_of(model: Answers, prepared: Sequence[Any]) -> Stream:
    """The blocks of a model: the list of modules, as long as its configuration says, that hand one state on to the next.

    Whether they do is seen in a pass over the prepared stimuli. Raises RepalignError where there is no such list, or more than one.
    """
    from torch import nn

    module: Any = model.module
    config = getattr(module, "config", None)
    config = config.get_text_config() if model.kind == "text" and hasattr(config, "get_text_config") else config
    own = getattr(module, "blocks", None)  # as timm calls them
    count = getattr(config, "num_hidden_layers", None) or (len(own) if isinstance(own, (nn.ModuleList, nn.Sequential)) else 0)
    forms: tuple[type, ...] = (nn.ModuleList,) if config is not None else (nn.ModuleList, nn.Sequential)
    lists = {name: m for name, m in module.named_modules() if isinstance(m, forms) and len(m) == count > 1}
    lists = {name: m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    output = getattr(module, "get_output_embeddings", lambda: None)()
    kinds = getattr(config, "layer_types", None) or ()
    kinds = tuple(kinds) if len(kinds) == count else ()
    streams = {name: Stream(tuple(m), output, kinds) for name, m in lists.items()}
    found = {name: stream for name, stream in streams.items() if _hands_on(model, stream, prepared)}
    if len(found) != 1:
        unlike = ", ".join(f"{name}, which does not" for name in lists)
        raise Unavailable(
            f"model {model.label}: its blocks cannot be told",
            expected=f"one list of {count or 'all'} modules that hand one state (b, t, d) on to the next",
            got=", ".join(found) or unlike or f"no such list in {type(module).__name__}",
        )  # fmt: skip
    return next(iter(found.values()))


def _hands_on(model: Answers, stream: Stream, prepared: Sequence[Any]) -> bool:
    """Whether every block runs once, in order, on what the one before it gave, in one shape."""
    import torch

    passed: list[tuple[int, Any, Any]] = []

    def seen(i: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs.get("hidden_states")
            given = given.clone() if isinstance(given, torch.Tensor) else None
            out = forward(*args, **kwargs)
            first = out[0] if isinstance(out, (tuple, list)) else out
            passed.append((i, given, first.clone() if isinstance(first, torch.Tensor) else None))
            return out

        return run

    with torch.inference_mode(), doing({b: seen(i, b.forward) for i, b in enumerate(stream.blocks)}):
        model.run(prepared)
    states = [given for _, given, _ in passed] + [out for _, _, out in passed[-1:]]
    outs = [out for _, _, out in passed]
    if [i for i, *_ in passed] != list(range(len(stream.blocks))) or any(s is None or s.ndim != 3 for s in [*states, *outs]):
        return False
    same = all(torch.equal(a, b.to(a.device)) for a, b in zip(states[1:], outs, strict=True))
    return same and len({s.shape for s in states}) == 1


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
    shown: ClassVar[tuple[str, ...]] = (
        "depth", "delete_kl", "delete_top1", "swap_kl", "swap_top1", "lens_top1", "lens_entropy",
    )  # fmt: skip

    @property
    def text(self) -> str:
        return " ".join(_sentences(self))

    def draw(self, **look: Unpack[Look]) -> Axes:
        """Four panels over relative depth: what stays, KL, the entropy of early answers, and the shape of the stream."""
        from repalign.figures import canvas
        from repalign.figures.palette import MUTED, PAPER, RULE, family

        table, facts = self.table, self.facts
        names = {"delete": "one block deleted", "swap": "two neighbours swapped", "lens": "answered early (lens)"}
        look.pop("labels", None)
        what = "text" if facts["kind"] == "text" else "image"
        about = f"{words.counted(facts['n'], what)}, {facts['positions']:,} positions, {facts['blocks']} blocks"
        heads = ["answers that stay (top-1)", "KL to the answers, nats", "entropy of early answers, nats", "shape of the stream"]
        heads[0] = f"{about}\n{heads[0]}"
        _, grid = canvas.sheet(8.2, 6.2, f"Stages of {facts['model']}", 2, (1, 1), above=heads, **look)
        panels = list(grid.flat)
        depth, half = table["relative_depth"].to_numpy(float), 0.5 / facts["blocks"]
        for axes in panels:
            axes.grid(color=RULE, linewidth=0.6)
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
