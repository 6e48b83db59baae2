"""Which modules of a model run, in which order, and what they give: how layers are proven to be what they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from repalign.errors import RepalignError, Unavailable


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


def _mark(x: Tensor) -> Mark:
    """Equal for equal tensors, and by chance for no others. Sums of integers are the same in any order, and on overflow."""
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x)
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

    def when(self, x: Tensor) -> int | None:
        """The place in `made` of the first output that is x or a view of it; None if no module makes it."""
        mark = _mark(x)
        return next((i for i, (_, out) in enumerate(self.made) if out.content == mark.content), None)

    def takes(self, x: Tensor) -> bool:
        """Whether any module was given x as its first argument."""
        mark = _mark(x)
        return any(given == mark for _, given in self.given)

    def makers(self, x: Tensor) -> list[str]:
        """The modules whose output is x, in the order in which they end: a block after what is in it.

        Where none makes x itself, those that make it in another form: a map as tokens, or its channels last.
        """
        mark = _mark(x)
        same = [name for name, out in self.made if out == mark]
        return list(dict.fromkeys(same or self._makers_in_any_form(mark)))

    def _makers_in_any_form(self, mark: Mark) -> list[str]:
        return list(dict.fromkeys(name for name, out in self.made if out.content == mark.content))

    def takers(self, x: Tensor) -> list[str]:
        """The modules that are given x, in the order in which they start."""
        mark = _mark(x)
        return list(dict.fromkeys(name for name, given in self.given if given == mark))

    def block(self, x: Tensor, number: int) -> str | None:
        """The module of that number in a list of modules whose output is x, in any form; None if there is none."""
        made = self._makers_in_any_form(_mark(x))
        return next((n for n in reversed(made) if n.rpartition(".")[2] == str(number)), None)

    def precedes(self, x: Tensor, y: Tensor) -> bool | None:
        """Whether x and y are outputs of an earlier and a later member of one list of modules, as two blocks are.

        False where x is made elsewhere, or goes into the first member, as embeddings are; None if x cannot be told.
        """
        made = self._makers_in_any_form(_mark(x))
        earlier, later = _memberships(made), _memberships(self._makers_in_any_form(_mark(y)))
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
        block = None if number is None else self.block(x, number)
        makers = [block] if block is not None else [n for n in self.makers(x) if n]
        if makers:
            return "output of " + " = ".join(map(self._named, makers))
        takers = [name for name in self.takers(x) if name]
        return f"input of {self._named(takers[0])}" if takers else "as the model returns it; no module's output"

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

    def _named(self, name: str) -> str:
        return f"{name} ({type(self.model.get_submodule(name)).__name__})"


_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
_CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)


def _memberships(names: Sequence[str]) -> dict[str, int]:
    """The lists of modules that any of the names is in, each with the number there: a.2.b.0 -> a: 2, a.2.b: 0."""
    out: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                out[".".join(parts[:i])] = int(part)
    return out


@contextmanager
def traced(model: nn.Module, marks: bool = True) -> Iterator[Trace]:
    """Record what the model's modules do in the forward passes inside the block; without `marks` only its tokens."""
    trace = Trace(model)

    def see(x: Tensor) -> None:
        shape = tuple(x.shape)
        if x.ndim == 3 and shape[0] > 1 and shape not in trace.tokens and bool((x[0] != x[1]).any()):
            trace.tokens[shape] = x.detach().clone()

    def before(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            trace.started.setdefault(name, len(trace.made))
            for x in (*args, *kwargs.values()):
                if isinstance(x, Tensor) and x.is_floating_point():
                    see(x)
                    if marks:
                        trace.given.append((name, _mark(x)))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            x = first_tensor(out)
            if x is not None:
                see(x)
                if marks:
                    trace.made.append((name, _mark(x)))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after(name)).remove)
        yield trace


# --- the tokens of images ------------------------------------------------------------------------


CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls_embedding", "cls_emb")


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
        """Of a layer's tokens those of the patches: (b, t, d) -> (b, t - before - after, d)."""
        return x[:, self.before : x.shape[1] - self.after]


def token_places(trace: Trace, again: Callable[[], Any], states: Sequence[Tensor], label: str) -> list[Places]:
    """Where the tokens stand in each of the states (b, t, d) that a traced pass over unlike images gave.

    What stands at a position when the tokens first come together, before any of them has seen another, shows what it is:
    the class token and registers are the same for all images, patches are not; and the class token is the one that moves
    when the model's parameter of that name does, for which `again` makes the pass once more. Where several move, none of
    them is the class token. Raises RepalignError where this tells no patches from other tokens.
    """
    moved = []
    for name, parameter in trace.model.named_parameters():
        if any(part in CLASS_TOKENS for part in name.split(".")[-2:]):
            with _changed(parameter), traced(trace.model, marks=False) as other:
                again()
            moved.append(other)
    known: dict[tuple[int, ...], Places] = {}
    for x in states:
        shape = tuple(x.shape)
        if shape not in known:
            known[shape] = _places(_first(trace, shape), [_first(t, shape) for t in moved], label)
    return [known[tuple(x.shape)] for x in states]


def _first(trace: Trace, shape: tuple[int, ...]) -> Tensor | None:
    """The first tensor of as many tokens, of any width: layers inside a block may be wider."""
    return next((x for s, x in trace.tokens.items() if s[:2] == shape[:2]), None)


def _places(first: Tensor | None, moved: Sequence[Tensor | None], label: str) -> Places:
    if first is None:
        raise _untold(label, "no module is given tokens like those of its layers")
    differ = _differ(first[0], first[1])
    if not bool(differ.any()):  # hardly anything of the image is left, as in models of random weights
        differ = (first[0] != first[1]).any(dim=-1)
    patches = differ.nonzero().flatten().tolist()
    before, end = min(patches, default=0), max(patches, default=0) + 1
    if len(patches) != end - before:
        raise _untold(label, f"{len(patches)} of {len(first[0])} tokens are of the image, but not one after another")
    found = {i for x in moved if x is not None for i in _differ(first[0], x[0]).nonzero().flatten().tolist()}
    if found & set(patches):
        raise _untold(label, "its class token enters after the patches have seen one another")
    return Places(before, len(first[0]) - end, found.pop() if len(found) == 1 else None)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Which tokens differ by more than rounding: (t, d), (t, d) -> (t,)."""
    rounding = min(8 * torch.finfo(a.dtype).eps, 0.01)
    a, b = a.to(torch.float32), b.to(torch.float32)
    return (a - b).norm(dim=-1) > rounding * torch.maximum(a.norm(dim=-1), b.norm(dim=-1))


def _untold(label: str, got: str) -> Unavailable:
    return Unavailable(
        f"model {label}: the class token cannot be told from the patches",
        expected="tokens that are the same for every image, if any, before those of the patches",
        got=got,
        remedy="name its modules with a torch: spec",
    )


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


def needed_but_missing(trace: Trace, missing: Sequence[str], last: Tensor) -> list[str]:
    """Of the weights that a model's file lacks, those that `last` may depend on.

    A weight that belongs to a module that starts after `last` is made (a pooler, a head), or that does not
    run at all, cannot change it.
    """
    end = trace.when(last)
    needed = []
    for key in missing:
        start = trace.started.get(key.rpartition(".")[0])
        if start is not None and (end is None or start <= end):
            needed.append(key)
    return sorted(needed)


@contextmanager
def outputs_of(model: nn.Module, names: Sequence[str], label: str) -> Iterator[dict[str, Tensor]]:
    """The main output of each named module, filled in by the forward pass inside the block.

    Raises RepalignError, at the end of the block, for a module that was not called, that was called more
    than once, or that gives no tensor.
    """
    found: dict[str, Tensor | None] = {}
    calls = dict.fromkeys(names, 0)

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            found[name] = first_tensor(out)
            calls[name] += 1

        return hook

    given: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_hook(keep(name)).remove)
        yield given
    for name in names:
        x = found.get(name)
        if calls[name] != 1 or x is None:
            what = "gives no tensor" if calls[name] == 1 else f"is called {calls[name]} times in a forward pass"
            raise RepalignError(
                f"model {label}: module {name!r} {what}",
                expected="modules that are called once and give a tensor",
                got=f"{calls[name]} calls",
                remedy="name other modules in `layers:`",
            )
        given[name] = x


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
