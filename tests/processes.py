"""New processes, and two that talk to each other, for tests of what is gathered."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Processes without a thread or lock of this one. They come from a server that has imported what takes seconds to import, once.
FRESH = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
FRESH.set_forkserver_preload([
    "pytest", "torch.distributed.fsdp", "transformers.modeling_utils", "repalign.losses", "repalign.track",
    "repalign.study.alignment",
])  # fmt: skip


def started(code: str, *arguments: str, said: Path) -> Any:
    """A new process that runs `code` as `python -c code *arguments` would; what it prints goes to the file `said`."""
    process = FRESH.Process(target=_run, args=(code, arguments, said))
    process.start()
    return process


def _run(code: str, arguments: tuple[str, ...], said: Path) -> None:
    sys.argv = ["-c", *arguments]
    for stream in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    exec(code, {"__name__": "__main__"})


def join(rank: int, port: int) -> None:
    """Make this process one of two."""
    import torch.distributed as distributed

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    distributed.init_process_group("gloo")


def of_two(target: Callable[..., None], *given: Any) -> dict[int, Any]:
    """What two processes put into the results, by rank; each runs `target(rank, port, *given, results)`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with FRESH.Manager() as manager:
        results = manager.dict()
        processes = [FRESH.Process(target=target, args=(rank, port, *given, results)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        return dict(results)
