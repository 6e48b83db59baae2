"""Outputs of named modules during one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from repalign.errors import RepalignError, did_you_mean
from repalign.extract.hf_text import first_tensor


@contextmanager
def outputs_of(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The main output of each named module, filled in by the next forward pass (the last call counts)."""
    found: dict[str, Tensor] = {}
    known = dict(module.named_modules())

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, out: Any) -> None:
            found[name] = first_tensor(out)

        return hook

    hooks = [known[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def module_names(module: nn.Module, wanted: Sequence[int | str] | None, label: str) -> list[str]:
    """The modules to read: those named by path, or the direct children (indices are into these)."""
    children = [name for name, _ in module.named_children()]
    if wanted is None:
        return children
    known = {name for name, _ in module.named_modules() if name}
    out = []
    for w in wanted:
        if isinstance(w, int) and -len(children) <= w < len(children):
            out.append(children[w])
        elif w in known:
            out.append(str(w))
        else:
            raise RepalignError(
                f"model {label}: no module {w!r}",
                expected=f"a module's path, or an index into {len(children)} children",
                got=w,
                remedy=did_you_mean(str(w), known),
            )
    return out
