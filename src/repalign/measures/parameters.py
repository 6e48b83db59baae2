"""Parameters of measures: a field that checks its value, and the checks."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

from repalign.errors import RepalignError


def parameter(default: Any, check: Callable[..., Any], *known: Any) -> Any:
    """A field of a measure: `check(name, value, *known)` gives its value in the one form it has, or refuses it.

    One form, because the repr is the identity of a measure: 1 and 1.0 must not make two measures of one.
    """
    return dataclasses.field(default=default, metadata={"check": lambda name, value: check(name, value, *known)})


def optional(name: str, value: Any, check: Callable[..., Any], *known: Any) -> Any:
    """None, or what `check` makes of the value."""
    return None if value is None else check(name, value, *known)


def _whole(value: Any) -> int:
    """A whole number of any integer type as an int; -1 for everything else."""
    try:
        return -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return -1


def as_count(name: str, value: Any) -> int:
    """A whole number >= 1, of any integer type, as an int."""
    if (count := _whole(value)) < 1:
        raise RepalignError(f"{name} is not a positive whole number", expected=f"{name} >= 1", got=repr(value))
    return count


def as_number(name: str, value: Any, holds: Callable[[float], bool], problem: str, expected: str) -> float:
    """A number for which `holds` is true, as a float; never True or False."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not holds(value):
        raise RepalignError(f"{name} {problem}", expected=expected, got=repr(value))
    return float(value)


def as_epsilon(name: str, value: Any) -> float:
    """A finite number >= 0 as a float."""
    return as_number(name, value, lambda v: 0 <= v < math.inf, "is not a number >= 0", "0 (none) or a small number")


def as_share(name: str, value: Any) -> float:
    """A number from 0 to 1 as a float."""
    return as_number(name, value, lambda v: 0 <= v <= 1, "is not a share", f"0 <= {name} <= 1")


def as_folds(name: str, value: Any) -> int:
    """A whole number >= 2."""
    if (count := as_count(name, value)) < 2:
        raise RepalignError("one fold leaves nothing to train on", expected=f"{name} >= 2", got=repr(value), remedy="use 5 folds")
    return count


def as_seed(name: str, value: Any) -> int:
    """A whole number in [0, 2^32), of any integer type, as an int."""
    if not 0 <= (seed := _whole(value)) < 2**32:
        raise RepalignError(f"{name} is not a whole number", expected=f"0 <= {name} < 2**32", got=repr(value))
    return seed


def check_flag(name: str, value: Any) -> bool:
    """True or False and nothing that merely counts as such: 'false' is not False."""
    if not isinstance(value, bool):
        raise RepalignError(f"{name} is neither True nor False", expected="True or False", got=repr(value))
    return value
