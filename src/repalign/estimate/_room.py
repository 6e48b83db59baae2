"""What this machine has: disk, memory, memory of its GPUs; and what of it a study would be short of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from repalign.comparison import default_memory
from repalign.sources.hub import hub_cache
from repalign.text import named, size


@dataclass(frozen=True)
class Disk:
    """A file system and what is free on it; `device` tells file systems apart."""

    path: Path
    free: int
    device: int


@dataclass(frozen=True)
class Room:
    """What there is: memory of the machine, free memory of the GPUs that models run on (None without), free disk.

    `store` is None for a store behind a URL.
    """

    memory: int
    gpu: int | None
    store: Disk | None
    cache: Disk


@dataclass(frozen=True)
class Need:
    """What one model needs, in bytes; what is not known is 0."""

    name: str
    memory: int
    features: int
    download: int


def room(store: str | None, device: str) -> Room:
    """Look at this machine."""
    gpu = None
    if device.startswith("cuda"):
        chosen = range(torch.cuda.device_count()) if device == "cuda" else [torch.device(device).index or 0]
        gpu = sum(torch.cuda.mem_get_info(i)[0] for i in chosen)
    local = None if store is None or "://" in store else _disk(Path(store))
    return Room(4 * default_memory(), gpu, local, _disk(hub_cache()))


def _disk(path: Path) -> Disk:
    """The file system of a folder, which need not be there yet."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return Disk(path, shutil.disk_usage(there).free, there.stat().st_dev)


def shortages(needs: Sequence[Need], comparing: int, there: Room) -> Iterator[str]:
    """What is short, with the model that needs most of it, the others that need too much, and what to do."""
    if there.gpu is not None and (large := _largest(needs, there.gpu)):
        yield (
            f"{large[0].name} needs about {size(large[0].memory)} of GPU memory and {size(there.gpu)} are free{_others(large)}: "
            "use a smaller dtype or a smaller batch_size, or more GPUs (device: sharded)"
        )
    if large := _largest(needs, there.memory):
        yield (
            f"{large[0].name} needs about {size(large[0].memory)} of memory and the machine has {size(there.memory)}"
            f"{_others(large)}: use a smaller dtype (bfloat16), or leave such models out"
        )
    if comparing > there.memory:
        yield (
            f"comparing needs about {size(comparing)} of memory and the machine has {size(there.memory)}: "
            "use fewer stimuli, or measures that are streamed (CKA() and MutualKNN at large n)"
        )
    yield from _disks(needs, there)


def _largest(needs: Sequence[Need], there: int) -> list[Need]:
    """The models that need more than is there, the largest first."""
    return sorted((n for n in needs if n.memory > there), key=lambda n: -n.memory)


def _others(large: Sequence[Need]) -> str:
    return f" (too much for {named([n.name for n in large[1:]])} as well)" if len(large) > 1 else ""


def _disks(needs: Sequence[Need], there: Room) -> Iterator[str]:
    """Downloads and features may lie on one file system, and then have to fit it together."""
    wanted = [("features", n.name, n.features, there.store) for n in needs if there.store is not None]
    wanted += [("downloads", n.name, n.download, there.cache) for n in needs]
    for disk in {d.device: d for *_, d in wanted if d is not None}.values():
        here = [(what, name, count) for what, name, count, d in wanted if d is not None and d.device == disk.device]
        total = sum(count for *_, count in here)
        if total <= disk.free:
            continue
        what = " and ".join(dict.fromkeys(w for w, _, count in here if count))
        largest = [f"{name} ({size(count)})" for _, name, count in sorted(here, key=lambda h: -h[2])[:3] if count]
        yield (
            f"{what} need about {size(total)} and {size(disk.free)} are free at {disk.path}; "
            f"the largest: {named(largest)}"
        )
