"""Checks of parameters, each with one message; what they return is the value in its one form."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from repalign.errors import RepalignError, did_you_mean


def as_count(name: str, value: Any) -> int:
    """A whole number >= 1, of any integer type, as an int."""
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise RepalignError(
            f"{name} is not a positive whole number", expected=f"{name} >= 1", got=repr(value)
        )
    return count


def as_epsilon(value: Any, name: str = "epsilon") -> float:
    """A finite number >= 0 as a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise RepalignError(
            f"{name} is not a number >= 0", expected="0 (none) or a small number", got=repr(value)
        )
    return float(value)


def as_share(name: str, value: Any) -> float:
    """A number from 0 to 1 as a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise RepalignError(f"{name} is not a share", expected=f"0 <= {name} <= 1", got=repr(value))
    return float(value)


def check_choice(name: str, value: Any, known: Sequence[str]) -> str:
    """One of the known words."""
    if value not in known:
        raise RepalignError(
            f"unknown {name} {value!r}",
            expected=" or ".join(map(repr, known)),
            got=repr(value),
            remedy=did_you_mean(str(value), known),
        )
    return value


def check_flag(name: str, value: Any) -> bool:
    """True or False and nothing that merely counts as such: 'false' is not False."""
    if not isinstance(value, bool):
        raise RepalignError(f"{name} is neither True nor False", expected="True or False", got=repr(value))
    return value
