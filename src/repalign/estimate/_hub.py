"""What the hub's cache holds, and what the hub says of files, within a few seconds or not at all."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repalign.sources.weights import INDEX, ONE

log = logging.getLogger(__name__)

Repository = tuple[str, str | None]  # name and revision


@dataclass(frozen=True)
class Answer:
    """What the hub says of a repository."""

    weights_bytes: int | None  # of the safetensors files that are loaded
    parameters: int | None
    config: Mapping[str, Any] | None


def cached_file(repository: Repository, name: str) -> Path | None:
    """A file in the hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository[0], name, revision=repository[1])
    return Path(found) if isinstance(found, str) else None


def cached_weights(repository: Repository) -> list[Path] | None:
    """The safetensors files of a model in the hub's cache, or None unless all of them are there."""
    one = cached_file(repository, ONE)
    if one is not None:
        return [one]
    index = cached_file(repository, INDEX)
    if index is None:
        return None
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, OSError, AttributeError):
        return None
    found = [cached_file(repository, shard) for shard in shards]
    return [f for f in found if f is not None] if all(found) else None


def ask_hub(repositories: Sequence[Repository], patience: float) -> dict[Repository, Answer]:
    """What the hub says of each repository; those that have not been answered within `patience` seconds are not there.

    All are asked at once, in threads that nobody waits for: a network that hangs cannot hang the caller.
    """
    from huggingface_hub import is_offline_mode

    if not repositories or is_offline_mode():
        return {}
    return within(patience, {r: (lambda r=r: _answer(r, patience)) for r in dict.fromkeys(repositories)})


def within(seconds: float, calls: Mapping[Repository, Callable[[], Answer]]) -> dict[Repository, Answer]:
    """The results of those calls that end in time and do not fail."""
    done: dict[Repository, Answer] = {}

    def work(key: Repository, call: Callable[[], Answer]) -> None:
        try:
            done[key] = call()
        except Exception as error:  # no network, no such model, no access: the plan says "unknown"
            log.info("%s: the hub does not say: %s", key[0], error)

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in calls.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(done)


def _answer(repository: Repository, patience: float) -> Answer:
    from huggingface_hub import HfApi, hf_hub_download

    name, revision = repository
    info = HfApi().model_info(name, revision=revision, timeout=patience, files_metadata=True)
    sizes = {f.rfilename: f.size for f in info.siblings or ()}
    loaded = [ONE] if ONE in sizes else [f for f in sizes if f.startswith("model-") and f.endswith(".safetensors")]
    known = [sizes[f] for f in loaded]
    total = getattr(info.safetensors, "total", None)
    config = None
    if "config.json" in sizes:
        with tempfile.TemporaryDirectory() as folder:  # not into the cache: a plan leaves nothing behind
            path = hf_hub_download(name, "config.json", revision=revision, local_dir=folder, etag_timeout=patience)
            config = json.loads(Path(path).read_text("utf-8"))
    whole = bool(known) and all(s is not None for s in known)
    return Answer(sum(s or 0 for s in known) if whole else None, total, config)
