"""Several processes: rows are joined by id and scored once. A mean over scores of shares is another number, never taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from repalign.errors import RepalignError

T = TypeVar("T")
Rows = tuple[Sequence[str], dict[str, Tensor]]


def count() -> int:
    """How many processes train together; 1 where torch.distributed has not begun."""
    import torch.distributed as distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that scores and writes."""
    import torch.distributed as distributed

    return count() == 1 or distributed.get_rank() == 0


def together(features: Callable[[], Rows], score: Callable[[Sequence[str], dict[str, Tensor]], T]) -> T:
    """score(ids, layers) of the rows of all processes, in the order of their ranks: computed by the first, given to all.

    Every process must call it. What goes wrong in any of them is an error in all: none waits for another for ever.
    """
    if count() == 1:
        return score(*features())
    import torch.distributed as distributed

    first, mine = is_first(), ([], {}, "")
    try:
        ids, layers = features()
        mine = ids, {name: x.detach().cpu() for name, x in layers.items()}, ""
    except Exception as error:
        mine = [], {}, f"{type(error).__name__}: {error}"
    every: list[Any] = [None] * count()
    distributed.gather_object(mine, every if first else None)
    answer: list[Any] = [None, ""]
    if first:
        try:
            answer[0] = score(*_joined(every))
        except Exception as error:
            answer[1] = str(error)
    distributed.broadcast_object_list(answer)
    if answer[1]:
        raise RepalignError(answer[1])
    return answer[0]


def in_step(batches: Iterable[Any], sharded: bool) -> Iterator[tuple[Any, bool]]:
    """The batches of this process, and whether their rows count.

    Of a model whose weights are spread over processes all run as many: who has no more runs its last one again, for nothing.
    """
    if not sharded or count() == 1:
        yield from ((one, True) for one in batches)
        return
    import torch.distributed as distributed

    own, last, first = iter(batches), None, True
    while True:
        one = next(own, None)
        more: list[Any] = [None] * count()
        distributed.all_gather_object(more, one is not None)
        if not any(more):
            return
        if first and not all(more):  # told to all, so that none waits for another
            raise RepalignError("a process has no batch", expected="at least one batch in each, as the weights are spread over all",
                                got=f"none in process {more.index(False)}", remedy="let a sampler repeat ids")  # fmt: skip
        first, last = False, last if one is None else one
        yield last, one is not None


def _joined(every: Sequence[tuple[Sequence[str], dict[str, Tensor], str]]) -> Rows:
    """One after another; a process may have no rows."""
    for rank, (_, _, problem) in enumerate(every):
        if problem:
            raise RepalignError(f"process {rank}: {problem}")
    fed = [(ids, layers) for ids, layers, _ in every if ids]
    names = list(fed[0][1]) if fed else []
    if any(list(layers) != names for _, layers in fed):
        raise RepalignError("processes have different layers", expected=", ".join(names), got="others")
    return [one for ids, _ in fed for one in ids], {name: torch.cat([layers[name] for _, layers in fed]) for name in names}
