"""Measures by name: "MutualKNN(k=10)", "mutual_knn", and what there is to say about each."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from repalign.errors import RepalignError, did_you_mean
from repalign.measures._base import Bilinear, Measure


def parse_measure(text: str, known: Mapping[str, type[Measure]], named: Mapping[str, Measure]) -> Measure:
    """The measure that a text names: a class name or alias, with literal keyword parameters or none.

    The repr of a measure parses to an equal measure. Nothing is evaluated but literals.
    """
    name, parameters = _split(text)
    if name in named and not parameters:
        return named[name]
    if name not in known:
        classes = {c.__name__ for c in known.values()}
        raise RepalignError(
            f"unknown measure {name!r}",
            got=text,
            remedy=did_you_mean(name, {*known, *named} if name.islower() else classes),
        )
    cls = known[name]
    allowed = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for parameter in parameters:
        if parameter not in allowed:
            raise RepalignError(
                f"{cls.__name__} has no parameter {parameter!r}", got=text, remedy=did_you_mean(parameter, allowed)
            )
    try:
        return cls(**parameters)
    except TypeError as error:
        raise RepalignError(f"{cls.__name__}: a parameter is of the wrong type", got=text) from error


def _split(text: str) -> tuple[str, dict[str, Any]]:
    problem = RepalignError(
        f"not a measure: {text!r}",
        expected="a name, or a name with keyword parameters that are literals",
        got=text,
        remedy="write for instance MutualKNN(k=10) or CKA(kernel='rbf', estimator='biased')",
    )
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise problem from None
    if isinstance(node, ast.Name):
        return node.id, {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args:
        raise problem
    try:
        return node.func.id, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg is not None}
    except ValueError:
        raise problem from None


def describe(cls: type[Measure]) -> dict[str, Any]:
    """What the list of measures shows of one class, all of it declared facts."""
    default = cls()
    parameters = {f.name: (None if f.default is MISSING else f.default) for f in fields(cls)}  # type: ignore[arg-type]
    return {
        "name": cls.__name__,
        "family": cls.family,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "range": default.range,
        "symmetric": cls.symmetric,
        "invariances": sorted(default.invariances),
        "bilinear": issubclass(cls, Bilinear),
        "null": "closed-form moments; cyclic group" if issubclass(cls, Bilinear) else "random permutations",
        "aliases": list(cls.aliases),
        "parameters": parameters,
        "doc": cls.__doc__ or "",
    }
