"""Sizes, times and counts in words, each "about"."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes in the unit that reads best, of three digits."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, of two digits."""
    if seconds < 1:
        return "under a second"
    for unit, scale in (("days", 172_800.0), ("hours", 7_200.0), ("min", 120.0)):
        if seconds >= scale:
            return f"{seconds / {'days': 86_400, 'hours': 3_600, 'min': 60}[unit]:.2g} {unit}"
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"


def named(names: list[str], most: int = 5) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
