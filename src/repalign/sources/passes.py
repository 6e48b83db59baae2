"""Hidden states: which modules make them, which tokens they are of, and how they become one vector per stimulus.

A layer is proven to be what it is called by tracing a pass (`traced`). Pooling is in float32, whatever the model's dtype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from repalign.errors import RepalignError, Unavailable
from repalign.layers import SINK
from repalign.sources.model import Batch, Layer, LoadedModel

# How far equal hidden states may be apart, relative to their norm: rounding in the dtype.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
POSITIONS = 256  # float32 log-softmax of so many positions at once: a vocabulary may have 250,000 entries
FIRST, LONGEST = "first_norm:", "longest_norm:"  # and the layer
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls_embedding", "cls_emb")


# --- a traced pass -------------------------------------------------------------------------------


def first_tensor(out: Any) -> Tensor | None:
    """A module's main output: itself, or the first of what it returns; None if there is none."""
    while not isinstance(out, Tensor):
        if isinstance(out, Mapping) and out:
            out = next(iter(out.values()))
        elif isinstance(out, (tuple, list)) and out:
            out = out[0]
        else:
            return None
    return out


class Mark(NamedTuple):
    """What a tensor is known by, in place of itself: modules may overwrite it, and all of them would fill the memory."""

    exact: tuple[Any, ...]  # shape, dtype, and a sum over its bits, each with its place
    content: tuple[Any, ...]  # dtype, how many numbers, and sums over their bits that no view or permutation changes


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
_CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)


def _mark(x: Tensor) -> Mark:
    """Equal for equal tensors, and by chance for no others. Sums of integers are the same in any order, and on overflow."""
    x = torch.view_as_real(x.detach()) if x.is_complex() else x.detach()
    bits = x.contiguous().view(_BITS[x.itemsize]).flatten()
    bits = bits if x.itemsize >= 4 else bits.to(torch.int32)
    places = torch.arange(1, len(bits) + 1, dtype=bits.dtype, device=bits.device)
    sums = int(bits.sum()), int((bits * bits).sum())
    return Mark((tuple(x.shape), str(x.dtype), *sums, int((bits * places).sum())), (str(x.dtype), len(bits), *sums))


@dataclass
class Trace:
    """One forward pass: what each module was given and what it made, in the order of its doing."""

    model: nn.Module
    started: dict[str, int] = field(default_factory=dict)  # module -> number of outputs made before it started
    given: list[tuple[str, Mark]] = field(default_factory=list)
    made: list[tuple[str, Mark]] = field(default_factory=list)
    tokens: dict[tuple[int, ...], Tensor] = field(default_factory=dict)  # (b, t, d) -> the first one, if b > 1

    def takers(self, x: Tensor) -> list[str]:
        """The modules that are given x, in the order in which they start."""
        mark = _mark(x)
        return list(dict.fromkeys(name for name, given in self.given if given == mark))

    def makers(self, x: Tensor, any_form: bool = False) -> list[str]:
        """The modules whose output is x, in the order in which they end: a block after what is in it.

        Where none makes x itself, those that make it in another form: a map as tokens, or its channels last.
        """
        mark = _mark(x)
        same = [] if any_form else [name for name, out in self.made if out == mark]
        return list(dict.fromkeys(same or (name for name, out in self.made if out.content == mark.content)))

    def block(self, x: Tensor, number: int) -> str | None:
        """The module of that number in a list of modules whose output is x, in any form; None if there is none."""
        made = self.makers(x, any_form=True)
        return next((n for n in reversed(made) if n.rpartition(".")[2] == str(number)), None)

    def precedes(self, x: Tensor, y: Tensor) -> bool | None:
        """Whether x and y are outputs of an earlier and a later member of one list of modules, as two blocks are.

        False where x is made elsewhere, or goes into the first member, as embeddings are; None if x cannot be told.
        """
        made = self.makers(x, any_form=True)
        earlier, later = _memberships(made), _memberships(self.makers(y, any_form=True))
        if any(group in later and number < later[group] for group, number in earlier.items()):
            return True
        return False if made or 0 in _memberships(self.takers(x)).values() else None

    def normalises(self, states: Sequence[Tensor]) -> bool:
        """Whether the last of two states is the other behind a norm: the final one, that is no block's."""
        makers = self.makers(states[-1]) if len(states) == 2 else []
        norms = [n for n in self.takers(states[0]) if n in makers and not n.rpartition(".")[2].isdigit()]
        return any(type(self.model.get_submodule(n)).__name__.endswith("Norm") for n in norms)

    def what(self, x: Tensor, number: int | None = None) -> str:
        """In words, what makes x: the block of that number, else every module whose output it is."""

        def named(name: str) -> str:
            return f"{name} ({type(self.model.get_submodule(name)).__name__})"

        block = None if number is None else self.block(x, number)
        makers = [block] if block is not None else [n for n in self.makers(x) if n]
        if makers:
            return "output of " + " = ".join(map(named, makers))
        taker = next((name for name in self.takers(x) if name), None)
        return f"input of {named(taker)}" if taker else "as the model returns it; no module's output"

    def channels_last(self, x: Tensor) -> bool | None:
        """Whether a map is (b, h, w, d), as modules that take or make one like it have it; None if none tells."""
        mark = _mark(x)
        for alike in (lambda m: m == mark, lambda m: m.exact[0] == mark.exact[0]):
            seen = [self.model.get_submodule(n) for n, m in (*self.given, *self.made) if alike(m)]
            first = any(isinstance(module, _CHANNELS_FIRST) for module in seen)
            last = any(type(module) in _CHANNELS_LAST for module in seen)  # heirs of LayerNorm may have them first
            if last != first:
                return last
        return None

    def needed(self, missing: Sequence[str], last: Tensor) -> list[str]:
        """The weights among those that a model's file lacks that `last` may depend on.

        A weight that belongs to a module that starts after `last` is made (a pooler, a head), or that does not run at all,
        cannot change it.
        """
        mark = _mark(last)
        end = next((i for i, (_, out) in enumerate(self.made) if out.content == mark.content), len(self.made))
        return sorted(key for key in missing if self.started.get(key.rpartition(".")[0], math.inf) <= end)


def _memberships(names: Sequence[str]) -> dict[str, int]:
    """The lists of modules that any of the names is in, each with the number there: a.2.b.0 -> a: 2, a.2.b: 0."""
    parts = [name.split(".") for name in names]
    return {".".join(p[:i]): int(part) for p in parts for i, part in enumerate(p) if part.isdigit()}


@contextmanager
def traced(model: nn.Module, marks: bool = True) -> Iterator[Trace]:
    """Record what the model's modules do in the forward passes inside the block; without `marks` only its tokens."""
    trace = Trace(model)

    def see(name: str, x: Tensor, among: list[tuple[str, Mark]]) -> None:
        shape = tuple(x.shape)
        if x.ndim == 3 and shape[0] > 1 and shape not in trace.tokens and bool((x[0] != x[1]).any()):
            trace.tokens[shape] = x.detach().clone()
        if marks:
            among.append((name, _mark(x)))

    def before(name: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        trace.started.setdefault(name, len(trace.made))
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor) and x.is_floating_point():
                see(name, x, trace.given)

    def after(name: str, _module: nn.Module, _args: Any, out: Any) -> None:
        x = first_tensor(out)
        if x is not None:
            see(name, x, trace.made)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(before, name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(partial(after, name)).remove)
        yield trace


@contextmanager
def outputs_of(model: nn.Module, names: Sequence[str], label: str) -> Iterator[dict[str, Tensor]]:
    """The main output of each named module, filled in by the forward pass inside the block.

    Raises RepalignError, at the end of the block, for a module that was not called, that was called more
    than once, or that gives no tensor.
    """
    outputs: dict[str, list[Tensor | None]] = {name: [] for name in names}

    def keep(name: str, _module: nn.Module, _args: Any, out: Any) -> None:
        outputs[name].append(first_tensor(out))

    given: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_hook(partial(keep, name)).remove)
        yield given
    for name, found in outputs.items():
        x = found[0] if len(found) == 1 else None
        if x is None:
            what = "gives no tensor" if len(found) == 1 else f"is called {len(found)} times in a forward pass"
            raise RepalignError(
                f"model {label}: module {name!r} {what}", expected="modules that are called once and give a tensor",
                got=f"{len(found)} calls", remedy="name other modules in `layers:`",
            )  # fmt: skip
        given[name] = x


def module_layer(model: nn.Module, name: str) -> Layer:
    """A module of a model as a layer."""
    return Layer(name, f"output of {name or 'the model'} ({type(model.get_submodule(name)).__name__})")


# --- the tokens of images ------------------------------------------------------------------------


def class_tokens(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are a class token by their names, in the trunk or in a head."""
    named = model.named_parameters()
    return [p for name, p in named if any(part in CLASS_TOKENS for part in name.split(".")[-2:])]


@dataclass(frozen=True)
class Places:
    """Where an image's tokens stand in a layer: how many are before and after the patches, and which is the class token."""

    before: int = 0
    after: int = 0
    cls: int | None = None

    def patches(self, x: Tensor) -> Tensor:
        """A layer's tokens without those that are no patches: (b, t, d) -> (b, t - before - after, d)."""
        return x[:, self.before : x.shape[1] - self.after]


def token_places(trace: Trace, again: Callable[[], Any], states: Mapping[str, Tensor], label: str) -> dict[str, Places]:
    """Where the tokens stand in each of the states (b, t, d) by layer that a traced pass over unlike images gave.

    What stands at a position when the tokens first come together, before any of them has seen another, shows what it is:
    the class token and registers are the same for all images, patches are not; and the class token is the one that moves
    when the model's parameter of that name does, for which `again` makes the pass once more. Where several move, none of
    them is the class token. Raises RepalignError where this tells no patches from other tokens.
    """
    moved = []
    for parameter in class_tokens(trace.model):
        with _changed(parameter), traced(trace.model, marks=False) as other:
            again()
        moved.append(other)
    shapes = {tuple(x.shape) for x in states.values()}
    known = {shape: _places(_first(trace, shape), [_first(t, shape) for t in moved], label) for shape in shapes}
    return {layer: known[tuple(x.shape)] for layer, x in states.items()}


# A layer of an image model: its patches (b, t, d), or a map (b, d, h, w), and the tokens before the patches.
State = tuple[Tensor, Tensor | None]


def image_layers(
    trace: Trace, again: Callable[[], Any], states: Sequence[State], label: str, library: str
) -> tuple[list[Layer], dict[str, Places], tuple[str, ...]]:
    """The layers that a library gives for images, where the tokens stand in them, and the poolings that all of them have.

    What the library calls tokens before the patches has to be what the pass shows to be none of the image.
    """
    whole = [patches if before is None else torch.cat([before, patches], dim=1) for patches, before in states]
    maps = all(x.ndim == 4 for x in whole)
    layers = [Layer(f"{'stage' if maps else 'block'}.{i}", trace.what(x, i)) for i, x in enumerate(whole)]
    tokens = {layer.name: x for layer, x in zip(layers, whole, strict=True) if x.ndim == 3}
    places = token_places(trace, again, tokens, label)
    for layer, (_, before) in zip(layers, states, strict=True):
        given, shown = 0 if before is None else before.shape[1], places.get(layer.name)
        if shown is not None and (shown.before != given or shown.after):
            raise Unavailable(
                f"model {label}, layer {layer.name}: the patches cannot be told from other tokens",
                expected=f"{given} tokens before them, as {library} says",
                got=f"{shown.before} before and {shown.after} behind that are the same for all images",
                remedy="name its modules in `layers:` if it is one of timm, or with a torch: spec",
            )  # fmt: skip
    has_class = all(layer.name in places and places[layer.name].cls is not None for layer in layers)
    return layers, places, ("cls", "mean") if has_class else ("spatial_mean", "mean") if maps else ("mean",)


def pool_image(state: State, places: Places | None, pooling: str | None) -> Tensor:
    """The vector of each image: its class token, or the mean over its patches or positions."""
    patches, before = state
    if pooling == "cls":
        assert before is not None and places is not None and places.cls is not None
        return before[:, places.cls].to(torch.float32)
    return plain_mean(patches)


def _first(trace: Trace, shape: tuple[int, ...]) -> Tensor | None:
    """The first tensor of as many tokens, of any width: layers inside a block may be wider."""
    return next((x for s, x in trace.tokens.items() if s[:2] == shape[:2]), None)


def _places(first: Tensor | None, moved: Sequence[Tensor | None], label: str) -> Places:
    def untold(got: str) -> Unavailable:
        return Unavailable(
            f"model {label}: the class token cannot be told from the patches", got=got,
            expected="tokens that are the same for every image, if any, before those of the patches",
            remedy="name its modules with a torch: spec",
        )  # fmt: skip

    if first is None:
        raise untold("no module is given tokens like those of its layers")
    differ = _differ(first[0], first[1])
    if not bool(differ.any()):  # hardly anything of the image is left, as in models of random weights
        differ = (first[0] != first[1]).any(dim=-1)
    patches = differ.nonzero().flatten().tolist()
    before, end = min(patches, default=0), max(patches, default=0) + 1
    if len(patches) != end - before:
        raise untold(f"{len(patches)} of {len(first[0])} tokens are of the image, but not one after another")
    found = {i for x in moved if x is not None for i in _differ(first[0], x[0]).nonzero().flatten().tolist()}
    if found & set(patches):
        raise untold("its class token enters after the patches have seen one another")
    return Places(before, len(first[0]) - end, found.pop() if len(found) == 1 else None)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Which tokens differ by more than rounding: (t, d), (t, d) -> (t,)."""
    rounding = min(8 * torch.finfo(a.dtype).eps, 0.01)
    a, b = a.to(torch.float32), b.to(torch.float32)
    return (a - b).norm(dim=-1) > rounding * torch.maximum(a.norm(dim=-1), b.norm(dim=-1))


@contextmanager
def _changed(parameter: nn.Parameter) -> Iterator[None]:
    """A parameter with other values, and afterwards with its own to the last bit."""
    own = parameter.data.clone()
    step = torch.linspace(-1, 1, own.numel(), device=own.device).reshape(own.shape).to(own.dtype)
    try:
        parameter.data.add_(step * (1 + own.abs().max()))
        yield
    finally:
        parameter.data.copy_(own)


def unlike_images() -> list[Any]:
    """Two pictures that differ in every patch, of the fields of colour that models see best."""
    from PIL import Image

    rng = np.random.default_rng(0)
    fields = [rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(2)]
    return [Image.fromarray(x).resize((320, 240), Image.Resampling.NEAREST) for x in fields]


def images_shown(facts: Mapping[str, Any]) -> bool:
    """Whether the facts of an extraction of images by transformers show its layers and tokens to be right; True of texts.

    Former versions could leave out the first stage, take the last axis of a map for its positions, a register for the
    class token, and the number of tokens from a size: what they took is right where the first layer is the first block,
    and at most the class token is before the patches.
    """
    if "class_token" in facts or "preprocessing" not in facts:
        return True
    first = str(next(iter(facts["layers"].values()))) if facts.get("layers") else ""
    alone = str(facts.get("tokens")).startswith(("0 before", "1 before"))
    return alone and re.match(r"output of ([^\W\d]\w*\.)+0 \(", first) is not None


# --- pooling -------------------------------------------------------------------------------------


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens where mask is not zero: (b, t, d), (b, t) -> (b, d).

    What stands at the other tokens does not enter, not even as NaN.
    """
    keep = mask.to(torch.bool)
    wide = hidden.to(torch.float32).masked_fill(~keep[:, :, None], 0.0)
    return wide.sum(dim=1) / keep.sum(dim=1, keepdim=True)


def without_first(mask: Tensor) -> Tensor:
    """The mask without the first valid token of each text; a text of one token keeps it: (b, t) -> (b, t)."""
    rows = torch.arange(len(mask), device=mask.device)
    rest = mask.clone()
    rest[rows, mask.to(torch.int64).argmax(dim=1)] = 0
    return torch.where(rest.any(dim=1, keepdim=True), rest, mask)


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first valid token, under either padding side: (b, t, d), (b, t) -> (b, d)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, mask.to(torch.int64).argmax(dim=1)].to(torch.float32)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last valid token, under either padding side: (b, t, d), (b, t) -> (b, d)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    last = mask.shape[1] - 1 - mask.to(torch.int64).flip(dims=(1,)).argmax(dim=1)
    return hidden[rows, last].to(torch.float32)


TOKEN_POOLINGS = {"mean": masked_mean, "last": last_token, "cls": first_token}


def greedy(
    run: Callable[[Tensor, Any], tuple[Tensor, Any, Sequence[Tensor]]], tokens: Tensor, n: int, ends: Sequence[int]
) -> list[Tensor]:
    """The mean over n steps of the states that choose the next token, (b, d) of every layer, in float32.

    `tokens` (b, t) are texts of one length, without padding; in each step the likeliest next token is put behind them. `run`
    takes token ids and what it kept of those before, to the logits (b, v) of the last place, what it keeps, and the hidden states
    (b, d) there. A text ends with a token of `ends`: its mean is over the steps up to the one that chose it.
    """
    kept, total, going = None, [], torch.ones(len(tokens), 1, device=tokens.device)
    steps, ended = torch.zeros_like(going), torch.tensor(list(ends), device=tokens.device)
    for step in range(n):
        logits, kept, states = run(tokens, kept)
        each = [torch.where(going.to(h.device) > 0, h.to(torch.float32), 0) for h in states]
        total = each if step == 0 else [a + b for a, b in zip(total, each, strict=True)]
        steps = steps + going
        chosen = logits.argmax(dim=1, keepdim=True).to(tokens.device)
        going = going * ~torch.isin(chosen, ended)
        if not bool(going.any()):
            break
        tokens = torch.cat([tokens, chosen], dim=1)
    return [x / steps.to(x.device) for x in total]


class TextModel(LoadedModel):
    """A text model: the hidden states of its tokens become vectors, with or without the first one, which may be a sink."""

    kind: str | None = "text"
    sorts = True
    shown_first = 16  # enough to tell a sink, which is there in every text
    pooling: str
    causal: bool  # whether tokens see only those before them
    skips_first: bool = False  # whether the first token of each text is left out of the mean

    @property
    def may_skip(self) -> bool:
        """Whether a first token that is a sink is to be left out."""
        return self.pooling == "mean" and self.causal and self.entry.sink == "skip"

    @property
    def token_facts(self) -> dict[str, Any]:
        first = {"first_token": "left out" if self.skips_first else "counts"} if self.pooling == "mean" else {}
        return {"causal": self.causal, **first}

    def pooled(self, states: Mapping[str, Tensor], mask: Tensor, pooling: str | None = None) -> Batch:
        """Hidden states (b, t, d) by layer as vectors, and how long their tokens are; the mask (b, t) may lie on another device."""
        counted = without_first(mask) if self.skips_first else mask
        pool = TOKEN_POOLINGS[pooling or self.pooling]
        layers = {name: pool(h, counted.to(h.device)).to("cpu", torch.float32) for name, h in states.items()}
        return Batch(layers, norms(states, mask, counted) if states and self.pooling == "mean" else {})


def plain_mean(x: Tensor) -> Tensor:
    """Mean over the positions of a map (b, d, h, w), or over all tokens (b, t, d) -> (b, d)."""
    return x.to(torch.float32).mean(dim=(2, 3) if x.ndim == 4 else 1)


def any_pool(x: Tensor, pooling: str | None, where: str) -> Tensor:
    """A module's output of any usual form: vectors as they are, maps by their mean, tokens as `pooling` says.

    (b, d), (b, d, h, w) or (b, t, d) -> (b, d). All tokens count: none is known to be padding.
    """
    if x.ndim == 2:
        return x.to(torch.float32)
    if x.ndim == 4 and pooling in (None, "spatial_mean", "mean"):
        return plain_mean(x)
    if x.ndim == 3 and pooling in ("cls", "mean", "last"):
        return plain_mean(x) if pooling == "mean" else x[:, 0 if pooling == "cls" else -1].to(torch.float32)
    if x.ndim not in (3, 4):
        raise RepalignError(
            f"{where}: a layer's output is of no known form", expected="(b, d), (b, tokens, d) or (b, d, height, width)",
            got=f"shape {tuple(x.shape)}", remedy="name other modules in `layers:`",
        )  # fmt: skip
    form, known = ("a map (b, d, height, width)", "spatial_mean") if x.ndim == 4 else ("tokens (b, t, d)", "mean, cls or last")
    raise RepalignError(
        f"{where}: a layer that is {form} needs another pooling", expected=known, got=pooling or "none",
        remedy="set `pooling:` in the model's entry",
    )  # fmt: skip


# --- what texts show of a model ------------------------------------------------------------------


def norm_ratios(hidden: Tensor, mask: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """How long one token is beside the others of its text: (b, t, d), (b, t), (b, t) -> (b,), (b,).

    The first is |h_0| / mean |h_j| over the other valid tokens, the second the same of the longest of those that count,
    beside the others that count. NaN where there is no other, or none that is longer than 0.
    """
    norms = torch.linalg.vector_norm(hidden, dim=2, dtype=torch.float32).cpu()
    mask, counted = mask.cpu(), counted.cpu()
    norms = norms.masked_fill(~mask.to(torch.bool), 0.0).to(torch.float64)  # not every device has float64

    def beside(one: Tensor, among: Tensor) -> Tensor:
        rest = (norms * among).sum(dim=1) - one
        return torch.where(rest > 0, one * (among.sum(dim=1) - 1) / rest, torch.nan)

    first = norms[torch.arange(len(norms)), mask.to(torch.int64).argmax(dim=1)]
    return beside(first, mask.to(torch.float64)), beside((norms * counted).amax(dim=1), counted.to(torch.float64))


def has_sink(texts: Iterable[Sequence[Tensor]]) -> bool:
    """Whether the first token is a sink: in some layer it is on average more than `SINK` times as long as the others.

    `texts` are the hidden states (1, t, d) of every layer of texts that ran alone. Texts of one token do not count.
    """
    ratios = []
    for states in texts:
        one = torch.ones(states[0].shape[:2], dtype=torch.int64)
        ratios.append([float(norm_ratios(hidden, one, one)[0]) for hidden in states])
    known = [r for r in ratios if not any(map(math.isnan, r))]
    return bool(known) and float(torch.tensor(known).mean(dim=0).max()) > SINK


def same_states(some: Sequence[Tensor], others: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether hidden states of the same tokens are equal in all layers, up to the rounding of a run in `dtype`."""
    pairs = [(x.float(), y.float()) for x, y in zip(some, others, strict=True)]
    return all(float((x - y).norm() / y.norm().clamp_min(1e-12)) <= ROUNDING[dtype] for x, y in pairs)


def sees_only_back(run: Callable[[Tensor], Sequence[Tensor]], ids: Tensor, at: int, dtype: torch.dtype) -> bool:
    """Whether tokens do not see those behind them; that is tried out.

    `run` takes token ids (1, t) to the hidden states (1, t, d) of all layers. The token at place `at` is replaced: where
    tokens see only back, those before it stay, up to the rounding of a run in `dtype`, and at any rate move by less than
    a tenth of what those behind it do. In half precision rounding alone could not be told from a little attention.
    """
    replaced, others = ids.clone(), ids[ids != ids[0, at]]
    if len(others):
        replaced[0, at] = others[len(others) // 2]
    # |x_t - y_t| / |y_t| of each token (t,), so that one long token does not hide the others
    pairs = [(x[0].float(), y[0].float()) for x, y in zip(run(ids), run(replaced), strict=True)]
    moved = [(x - y).norm(dim=1) / y.norm(dim=1).clamp_min(1e-12) for x, y in pairs]
    parts = slice(0, at), slice(at + 1, None)
    before, behind = (max((float(m[part].mean()) for m in moved if len(m[part])), default=0.0) for part in parts)
    return before <= min(ROUNDING[dtype], behind / 10)


# --- numbers per stimulus that are stored beside the layers --------------------------------------


def costs(logits: Tensor, tokens: Tensor, places: Tensor) -> float:
    """-sum ln p in nats of the tokens at `places` of one text, each given those before it: (t, v), (t,), (m,) -> number.

    ln p is a log-softmax in float32, of `POSITIONS` positions at once, on the device of the logits; the sum is in float64.
    """
    total = 0.0
    for some in places.to(logits.device).split(POSITIONS):
        wanted = tokens.to(logits.device)[some]
        each = functional.cross_entropy(logits[some - 1].float(), wanted, reduction="none")
        total += float(each.cpu().double().sum())  # not every device has float64
    return total


def nats(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """What all tokens of each text but the first given one cost: (b, t, v), (b, t), (b, t) -> (b,) in float64."""
    out = torch.zeros(len(tokens), dtype=torch.float64)
    for i, valid in enumerate(mask):
        places = valid.nonzero().flatten()  # one piece, whichever side is padded
        out[i] = costs(logits[i], tokens[i], places[1:])
    return out


def norms(states: Mapping[str, Tensor], mask: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """How long the first and the longest token of each text are in each layer (see `norm_ratios`), and how many count.

    `states` are the hidden states (b, t, d) by layer, `counted` the tokens that enter the mean.
    """
    out = {"tokens_valid": mask.sum(dim=1), "tokens_counted": counted.sum(dim=1)}
    for layer, hidden in states.items():
        out[FIRST + layer], out[LONGEST + layer] = norm_ratios(hidden, mask, counted)
    return {name: x.cpu().to(torch.float64) for name, x in out.items()}


def per_row(**columns: Sequence[float]) -> dict[str, Tensor]:
    """One number for each row, in float64."""
    return {name: torch.tensor([float(v) for v in values], dtype=torch.float64) for name, values in columns.items()}
