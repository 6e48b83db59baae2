"""A model's residual stream: its blocks found, and what may be done to them, taken out, exchanged or entered at any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from repalign.errors import Unavailable
from repalign.experiments.models import Answers, doing

if TYPE_CHECKING:
    from torch import Tensor, nn

# What tells a block's attention from another's, as attributes of the block or of what is in it.
ATTENTION = ("attention_type", "layer_type", "sliding_window", "is_sliding", "is_local", "window_size", "use_rope")


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
