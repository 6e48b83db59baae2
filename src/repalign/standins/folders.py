"""Folders that are made once: written under another name and renamed, so that one that is there is whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from repalign import files
from repalign.toyworld.names import revision


def made_once(parent: Path, name: str, arguments: Mapping[str, Any], write: Callable[[Path], object]) -> Path:
    """The folder of these arguments in `parent`, absolute; `write` fills it if it is not there.

    Its name ends in a digest of the arguments and of the code that makes it, so that folders of other arguments stay
    beside it. Of two processes that write at once the first to finish wins; both have the same content.
    """
    folder = Path(parent).expanduser().absolute() / f"{_readable(name)}-{_digest(name, arguments)}"
    return files.made_once(folder, write)


def seed_of(*parts: str | int) -> int:
    """A seed that follows from the parts alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:6], "little")


def _readable(name: str) -> str:
    """The name with nothing but what every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip("-.") or "model"


def _digest(name: str, arguments: Mapping[str, Any]) -> str:
    told = json.dumps([name, dict(arguments), _code(), revision()], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:10]


@cache
def _code() -> str:
    """A digest of this package: what other code made does not pass for what today's would."""
    sha = hashlib.sha256()
    for file in sorted(resources.files("repalign.standins").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".py"):
            sha.update(f"{file.name}:{file.read_text(encoding='utf-8')}".encode())
    return sha.hexdigest()
