"""The paths of a study file that another extends: they start from the folder of the file in which they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from repalign.errors import RepalignError
from repalign.sources import parse_spec

# Fields that hold a path, or a list or mapping of paths.
PATHS = (
    ("dataset", "table"), ("dataset", "folder"), ("dataset", "root"), ("dataset", "arrays"), ("dataset", "ids"),
    ("dataset", "row_ids"), ("null", "groups"), ("competence", "lm_eval"), ("competence", "timm"), ("competence", "csv"),
    ("competence", "bits_per_byte", "corpus"), ("published",),
)  # fmt: skip
LISTS = (("dataset", "ids"), ("dataset", "row_ids"))  # a path as a text; as a list these are ids


def rooted(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """The data of a file with its relative paths, and those of its models' specs, made absolute."""
    out = dict(data)
    for location in PATHS:
        _change(out, location, lambda value, at=location: _path(value, base, at in LISTS))
    if "models" in out:
        out["models"] = _specs(out["models"], base)
    return out


def _change(block: dict[str, Any], location: tuple[str, ...], change: Callable[[Any], Any]) -> None:
    first, *rest = location
    if not isinstance(block.get(first), (dict, list, str)):
        return
    if not rest:
        block[first] = change(block[first])
    elif isinstance(block[first], dict):
        block[first] = dict(block[first])
        _change(block[first], tuple(rest), change)


def _path(value: Any, base: Path, list_of_ids: bool) -> Any:
    if isinstance(value, dict):
        return {k: _path(v, base, False) for k, v in value.items()}
    if isinstance(value, list):
        return value if list_of_ids else [_path(v, base, False) for v in value]
    if not isinstance(value, str) or value.startswith("hub:"):
        return value
    return str(base / Path(value).expanduser())


def _specs(value: Any, base: Path) -> Any:
    """Model lists with the local specs in them absolute; what is no spec is left for the validation to tell."""
    if isinstance(value, dict):
        return {k: _spec(v, base) if k == "spec" else _specs(v, base) for k, v in value.items()}
    if isinstance(value, list):
        return [_spec(v, base) if isinstance(v, str) else _specs(v, base) for v in value]
    return value


def _spec(value: Any, base: Path) -> Any:
    try:
        return str(parse_spec(value).resolve(base)) if isinstance(value, str) and ":" in value else value
    except RepalignError:
        return value
