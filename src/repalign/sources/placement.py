"""Where a model's weights go: on one device, or spread over all GPUs. Decided before a weight is loaded.

Nothing is ever moved to the CPU or the disk in between: a model that does not fit is refused, with what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch

from repalign.errors import RepalignError, Unavailable
from repalign.sources.source import Context

SHARE = 0.8  # of the first GPU's free memory: more than this is spread over several where there are several
USABLE = 0.9  # of the free memory of GPUs that share a model: the rest is for what a pass needs
SPREAD = {"auto": "if needed", "sharded": "always"}  # what a device that is asked for says; others: "never"


def free_memory() -> dict[str, int]:
    """Bytes that are free on every GPU; what torch holds without using it counts as free."""
    out = {}
    for i in range(torch.cuda.device_count()):
        unused = torch.cuda.memory_reserved(i) - torch.cuda.memory_allocated(i)
        out[f"cuda:{i}"] = torch.cuda.mem_get_info(i)[0] + unused
    return out


def is_spread(needed: int, free: Mapping[str, int], first: str, spread: str, label: str) -> bool:
    """Whether weights of `needed` bytes are spread over all of the GPUs in `free`, or stay whole on `first`.

    | spread | whole where | spread where |
    | --- | --- | --- |
    | "never" | needed <= free of the first | |
    | "if needed", one GPU | needed <= free of it | |
    | "if needed", several | needed <= 0.8 of the free memory of the first | else needed <= 0.9 of all free memory |
    | "always" | there is one GPU, needed <= free of it | needed <= 0.9 of all free memory |

    RepalignError, with what is needed and what is free, where neither holds.
    """
    several = len(free) > 1 and spread != "never"
    if several and (spread == "always" or needed > SHARE * free[first]):
        if needed > USABLE * sum(free.values()):
            raise too_large(needed, free, label)
        return True
    if needed > free[first]:
        raise too_large(needed, {first: free[first]}, label)
    return False


def too_large(needed: int, free: Mapping[str, int], label: str) -> Unavailable:
    several = len(free) > 1
    return Unavailable(
        f"model {label} does not fit the memory of {f'{len(free)} GPUs' if several else 'one GPU'}",
        expected=f"{_gib(needed)} for its weights" + (f" in {USABLE:.0%} of what is free" if several else ""),
        got=", ".join(f"{_gib(n)} free on {device}" for device, n in free.items()),
        remedy="use more or larger GPUs (`device: sharded` spreads a text model of transformers over all of them), "
        "`dtype: stored` or bfloat16, or `device: cpu`; weights are not moved to the CPU or the disk in between",
    )


def _gib(n: int) -> str:
    return f"{n / 2**30:.1f} GiB"


def device_map(
    auto: Any, config: Any, context: Context, dtype: torch.dtype, needed: int, label: str, spread: str
) -> dict[str, Any] | None:
    """The device of every part of a model, by module path; {"": device} for one GPU, None for the CPU."""
    if not context.device.startswith("cuda"):
        return None
    free = free_memory()
    index = torch.device(context.device).index
    first = f"cuda:{torch.cuda.current_device() if index is None else index}"
    if not is_spread(needed, free, first, spread, label):
        return {"": first}
    return spread_map(auto, config, context, dtype, free, label)


def spread_map(
    auto: Any, config: Any, context: Context, dtype: torch.dtype, free: Mapping[str, int], label: str
) -> dict[str, Any]:
    """Blocks of a model over GPUs, in order and in like shares, as accelerate places them.

    The model is built without weights. Blocks stay whole, and weights that are tied stay together.
    """
    from accelerate import infer_auto_device_map, init_empty_weights
    from accelerate.utils import get_balanced_memory

    with init_empty_weights(include_buffers=True):
        model = auto.from_config(config, dtype=dtype, trust_remote_code=context.trust_remote_code)
    model.tie_weights()
    whole = getattr(model, "_no_split_modules", None)
    if not whole:
        raise RepalignError(
            f"model {label} cannot be spread over GPUs",
            expected="an architecture that says which of its modules have to stay whole",
            got=type(model).__name__,
            remedy="run it on one GPU that is large enough, with `device: cuda:0`",
        )
    most: dict[int | str, int | str] = {i: int(USABLE * n) for i, n in enumerate(free.values())}
    options: dict[str, Any] = {"no_split_module_classes": list(whole), "dtype": dtype}
    balanced = get_balanced_memory(model, max_memory=most, **options)
    found: dict[str, Any] = infer_auto_device_map(model, max_memory=balanced, **options)
    if not all(isinstance(place, int) for place in found.values()):  # "cpu" or "disk"
        raise too_large(sum(p.numel() for p in model.parameters()) * dtype.itemsize, free, label)
    return {name: list(free)[place] for name, place in found.items()}


def keep_in_place(model: Any) -> None:
    """Let what a spread model returns stay on the devices where it is made.

    accelerate's hook moves it all to the first one, which has no room for every hidden state of a large model.
    """
    hook: Any = getattr(model, "_hf_hook", None)
    for each in (hook, *getattr(hook, "hooks", ())):
        if hasattr(each, "io_same_device"):
            each.io_same_device = False


def placed(places: Mapping[str, Any] | None) -> dict[str, str]:
    """Where the parts of a spread model are, in words; empty for one that is on one device."""
    devices = list(dict.fromkeys(str(d) for d in (places or {}).values()))
    if len(places or ()) < 2:
        return {}
    runs = [(d, [name for name, _ in group]) for d, group in groupby((places or {}).items(), key=lambda p: str(p[1]))]
    told = [f"{names[0]} to {names[-1]} on {d}" if len(names) > 1 else f"{names[0]} on {d}" for d, names in runs]
    return {"device": ", ".join(devices), "device_map": "; ".join(told)}
