"""What a run has got so far, in a small JSON file that is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repalign.errors import RepalignError
from repalign.sealed import write_text


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Written under a temporary name and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def read_json(path: Path, kind: str) -> dict[str, Any] | None:
    """The file's value, or None where there is none. RepalignError for a file that is something else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RepalignError(f"{path} cannot be read", expected=f"a {kind}", got=str(error).splitlines()[0]) from error
    if not isinstance(value, dict) or value.get("kind") != kind:
        raise RepalignError(f"{path} is not a {kind}", remedy="name another file")
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
