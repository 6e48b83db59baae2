"""What a run has got so far, in a small JSON file that is there whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repalign.errors import RepalignError
from repalign.files import SEAL, DamagedError, parse_json, read_bytes, seal_json, write_text

log = logging.getLogger(__name__)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Written with its seal, under a temporary name, and renamed."""
    write_text(path, seal_json(value, allow_nan=False))


def read_state(path: Path, kind: str) -> dict[str, Any] | None:
    """The file's value, or None where there is none, or one that was damaged: the log says so, and it is made again.

    Raises RepalignError for a file that is something else, which is not written over.
    """
    if not path.exists():
        return None
    data = read_bytes(path)
    try:
        value, has_seal = parse_json(data, path)
    except DamagedError as error:
        if SEAL.encode() in data or not data.strip(b"\0 \n"):  # ours, or what a crash leaves of a file
            log.warning("%s %s; it is measured again", path, error.problem)
            return None
        raise
    if value.get("kind") != kind:
        raise RepalignError(f"{path} is not a {kind}", remedy="name another file")
    if not has_seal:
        log.warning("%s was written before such files had seals: nothing shows whether it is whole", path)
    return value


def refuse_other(path: Path, mine: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse to go on with a file of another run, naming the first thing that differs."""
    for name in mine:
        if found.get(name) != mine[name]:
            raise RepalignError(
                f"{path} is of another run: {name} differs",
                expected=mine[name],
                got=found.get(name),
                remedy="name another file, or delete this one to start again",
            )
