"""A traced pass of a model: which modules make its hidden states, so that a layer is proven to be what it is called."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repalign.errors import RepalignError
from repalign.sources.model import Layer


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
