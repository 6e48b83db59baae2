"""The one error that repalign raises on bad input: what was expected, what was got, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class RepalignError(Exception):
    """Bad input, told in full.

    `problem` names the thing (model, layer, file, row); `expected`, `got` and `remedy` each
    become a line of the message. The command line prints the message and exits with status 1.
    """

    def __init__(self, problem: str, *, expected: object = None, got: object = None, remedy: str | None = None) -> None:
        details = (("expected", expected), ("got", got), ("do", remedy))
        super().__init__("\n".join([problem, *(f"  {what}: {told}" for what, told in details if told is not None)]))


class Unavailable(RepalignError):  # noqa: N818  (a state of a model, not a fault of the user's)
    """A model that cannot be had here and now, for a reason of its own.

    Gated, gone, unreachable, without a tokenizer, too large, broken, or of an architecture or form that is not run here.
    Raised for what no other option of the request would mend, so that work over many models may leave this one out.
    """

    @property
    def reason(self) -> str:
        """What stands in the way and what to do about it, in one line."""
        problem, *details = str(self).splitlines()
        remedy = next((d.removeprefix("  do: ") for d in details if d.startswith("  do: ")), None)
        return problem if remedy is None else f"{problem}; {remedy}"


def require(what: str, extra: str, *packages: str, otherwise: str = "") -> None:
    """Refuse to begin where packages of an extra are not installed. Raises Unavailable, with the command that installs them.

    `otherwise` is a second way out, which begins with a comma.
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise Unavailable(
            f"{what}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            expected=f"the packages of repalign[{extra}]", got=f"no {', no '.join(missing)}",
            remedy=f"python -m pip install 'repalign[{extra}]'{otherwise}",
        )


def is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a parent that is missing, or a package that is half loaded
        return False


def is_of(thing: object, package: str, *names: str) -> bool:
    """Whether an object is of a class of a package, or of an heir; of these names, if any. Nothing is imported for that."""
    classes = [c for c in type(thing).__mro__ if c.__module__.partition(".")[0] == package]
    return any(not names or c.__name__ in names for c in classes)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the closest known ones, or all of them if none is close."""
    known = sorted(known)
    by_lower = {k.lower(): k for k in known}
    close = [by_lower[c] for c in difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)]
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"choose one of: {', '.join(known)}" if known else "nothing by that kind of name is known"


def choose(
    what: str, asked: str, known: Iterable[str], problem: str | None = None, error: type[RepalignError] = RepalignError
) -> str:
    """`asked`, which must be one of the known names. Raises RepalignError with the closest ones.

    `problem` replaces the first line of the message, "unknown <what> <asked>".

    >>> choose("scale", "raw", ("raw", "studentised"))
    'raw'
    >>> choose("scale", "rw", ("raw", "studentised"))
    Traceback (most recent call last):
        ...
    repalign.errors.RepalignError: unknown scale 'rw'
      expected: raw, studentised
      got: 'rw'
      do: did you mean 'raw'?
    """
    known = list(known)
    if asked in known:
        return asked
    expected = ", ".join(map(str, known)) if len(known) <= 12 else None  # a long list is what the remedy chooses from
    raise error(
        problem or f"unknown {what} {asked!r}", expected=expected, got=repr(asked), remedy=did_you_mean(str(asked), map(str, known))
    )
