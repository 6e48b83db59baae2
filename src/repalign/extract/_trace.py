"""Which modules of a model run, in which order, and what they give: how layers are proven to be what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repalign.errors import RepalignError


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


Mark = tuple[tuple[int, ...], str, float, float]


def _mark(x: Tensor) -> Mark:
    """Shape, dtype, sum and sum of squares: equal for equal tensors, and by chance for no others.

    In place of the tensor, which later modules may overwrite, and which would fill the memory.
    """
    wide = x.detach().to(torch.float64)
    return tuple(x.shape), str(x.dtype), float(wide.sum()), float(wide.square().sum())


@dataclass
class Trace:
    """One forward pass: what each module was given and what it made, in the order of its doing."""

    model: nn.Module
    started: dict[str, int] = field(default_factory=dict)  # module -> number of outputs made before it started
    given: list[tuple[str, Mark]] = field(default_factory=list)
    made: list[tuple[str, Mark]] = field(default_factory=list)

    def when(self, x: Tensor) -> int | None:
        """The place in `made` of the first output that equals x; None if no module makes it."""
        mark = _mark(x)
        return next((i for i, (_, out) in enumerate(self.made) if out == mark), None)

    def takes(self, x: Tensor) -> bool:
        """Whether any module was given x as its first argument."""
        mark = _mark(x)
        return any(given == mark for _, given in self.given)

    def makers(self, x: Tensor) -> list[str]:
        """The modules whose output is x, in the order in which they end: a block after what is in it."""
        mark = _mark(x)
        return list(dict.fromkeys(name for name, out in self.made if out == mark))

    def block(self, x: Tensor, number: int) -> str | None:
        """The module of that number in a list of modules whose output is x; None if there is none."""
        return next((n for n in reversed(self.makers(x)) if n.rpartition(".")[2] == str(number)), None)

    def what(self, x: Tensor, number: int | None = None) -> str:
        """In words, what makes x: the block of that number, else every module whose output it is."""
        block = None if number is None else self.block(x, number)
        makers = [block] if block is not None else [n for n in self.makers(x) if n]
        if makers:
            return "output of " + " = ".join(map(self._named, makers))
        mark = _mark(x)
        takers = [name for name, given in self.given if given == mark and name]
        return f"input of {self._named(takers[0])}" if takers else "as the model returns it; no module's output"

    def _named(self, name: str) -> str:
        return f"{name} ({type(self.model.get_submodule(name)).__name__})"


@contextmanager
def traced(model: nn.Module) -> Iterator[Trace]:
    """Record what the model's modules do in the forward passes inside the block."""
    trace = Trace(model)

    def before(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any) -> None:
            trace.started.setdefault(name, len(trace.made))
            if args and isinstance(args[0], Tensor):
                trace.given.append((name, _mark(args[0])))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            x = first_tensor(out)
            if x is not None:
                trace.made.append((name, _mark(x)))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before(name)).remove)
            stack.callback(module.register_forward_hook(after(name)).remove)
        yield trace


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
