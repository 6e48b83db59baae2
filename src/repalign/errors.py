"""The one error that repalign raises on bad input: what was expected, what was got, what to do."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class RepalignError(Exception):
    """Bad input, told in full.

    `problem` names the thing (model, layer, file, row); `expected`, `got` and `remedy` each
    become a line of the message. The command line prints the message and exits with status 1.
    """

    def __init__(self, problem: str, *, expected: object = None, got: object = None, remedy: str | None = None) -> None:
        details = (("expected", expected), ("got", got), ("do", remedy))
        super().__init__("\n".join([problem, *(f"  {what}: {told}" for what, told in details if told is not None)]))
        self.field: str | None = None  # of a request, which it is about: see `about`

    @property
    def errors(self) -> tuple[RepalignError, ...]:
        """Each mistake that is told: this one, or several."""
        return (self,)


class Problems(RepalignError):  # noqa: N818  (several errors)
    """Several mistakes `of` one thing, told at once as a numbered list."""

    def __init__(self, errors: Sequence[RepalignError], of: str) -> None:
        told = [f"{i}. {error}".replace("\n", "\n   ") for i, error in enumerate(errors, start=1)]
        super().__init__("\n".join([f"{len(errors)} problems in {of}:", *told]))
        self._errors = tuple(errors)

    @property
    def errors(self) -> tuple[RepalignError, ...]:
        return self._errors


@dataclass
class Mistakes:
    """Errors that are kept until all is looked at.

    >>> mistakes = Mistakes()
    >>> for colour in ("rde", "blue", "gren"):
    ...     with mistakes.kept():
    ...         _ = choose("colour", colour, ("red", "green", "blue"))
    >>> [str(error).splitlines()[0] for error in mistakes.errors]
    ["unknown colour 'rde'", "unknown colour 'gren'"]
    """

    errors: list[RepalignError] = field(default_factory=list)

    @contextmanager
    def kept(self, field: str | None = None) -> Iterator[None]:
        """Keep an error, which is about this field of a request."""
        try:
            with about(field):
                yield
        except RepalignError as error:
            self.errors += error.errors

    def refuse(self, of: str) -> None:
        """Raise what was kept: one error as it is, several in a list."""
        errors, self.errors = self.errors, []
        if errors:
            raise errors[0] if len(errors) == 1 else Problems(errors, of)


@contextmanager
def about(field: str | None) -> Iterator[None]:
    """Say of errors which field of a request they are about, where none has been said."""
    try:
        yield
    except RepalignError as error:
        for one in error.errors:
            one.field = one.field or field
        raise


class NotHere(RepalignError):  # noqa: N818  (a state, as below)
    """Data that is not on this machine yet: a plan goes on without, a run cannot."""


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


def version_of(package: str) -> str | None:
    """The installed version; None for what is not installed."""
    from importlib.metadata import PackageNotFoundError  # slow, for a command that only tells its help

    try:
        return _version(package)
    except (PackageNotFoundError, ValueError):  # it is there under another name, or this is no name
        return None


@cache
def _version(package: str) -> str:
    """Of a package that is there, read once: every result, store and model that is loaded asks for some."""
    from importlib.metadata import version

    return version(package)


def blas() -> Any:
    """The libraries for products of numpy and scipy that this process has loaded, as `threadpoolctl` has them."""
    return _blas(len(sys.modules))


@lru_cache(1)
def _blas(imported: int) -> Any:  # noqa: ARG001  (looked for again once more was imported: that takes 1 ms)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def is_of(thing: object, package: str, *names: str) -> bool:
    """Whether an object is of a class of a package, or of an heir; of these names, if any. Nothing is imported for that."""
    classes = [c for c in type(thing).__mro__ if c.__module__.partition(".")[0] == package]
    return any(not names or c.__name__ in names for c in classes)


def first_line(error: object) -> str:
    """The first line of an error's text, short enough for a message; its kind where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the closest known ones, or all of them if none is close."""
    known = sorted(known)
    if close := closest(name, known):
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"choose one of: {', '.join(known)}" if known else "nothing by that kind of name is known"


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that are written much alike."""
    by_lower = {k.lower(): k for k in known}
    return [by_lower[c] for c in difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)]


def nearby(path: Path) -> str:
    """A remedy for a path where nothing is: what is called much alike in its folder, if anything is."""
    close = closest(path.name, [p.name for p in path.parent.iterdir() if p != path]) if path.parent.is_dir() else []
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return "check the path; in a study file it starts from the study file's folder"


def choose(what: str, asked: str, known: Iterable[str], problem: str | None = None) -> str:
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
    expected = ", ".join(map(str, known)) if 0 < len(known) <= 12 else None  # a long list is what the remedy chooses from
    raise RepalignError(
        problem or f"unknown {what} {asked!r}", expected=expected, got=repr(asked), remedy=did_you_mean(str(asked), map(str, known))
    )
