"""Measures as text: `parse_measure(repr(measure)) == measure`, and the facts of a measure for a listing."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

from repalign.errors import RepalignError, did_you_mean
from repalign.measures.measure import Bilinear, Measure

MeasureClass = type[Measure]


def parse(
    text: str, classes: Sequence[MeasureClass], shorthands: Mapping[str, tuple[MeasureClass, dict[str, Any]]]
) -> Measure:
    """The measure that a text names, parameters by keyword: ``CKA(kernel='rbf')``, ``mutual_knn``."""
    name, given = _call(text)
    cls, preset = _lookup(name, classes, shorthands)
    known = parameters(cls)
    for parameter in given:
        if parameter not in known:
            raise RepalignError(
                f"{cls.__name__} has no parameter {parameter!r}",
                expected=", ".join(known),
                got=text,
                remedy=did_you_mean(parameter, known),
            )
    return cls(**{**preset, **given})


def parameters(cls: MeasureClass) -> dict[str, Any]:
    """The parameters of a measure class with their default values."""
    return {f.name: f.default for f in dataclasses.fields(cls)}  # type: ignore[arg-type]


def describe(cls: MeasureClass) -> dict[str, Any]:
    """What a listing says of a measure class; all values are plain data."""
    measure = cls()
    return {
        "name": cls.__name__,
        "family": cls.family,
        "aliases": list(cls.aliases),
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "range": list(measure.range),
        "symmetric": cls.symmetric,
        "invariances": sorted(measure.invariances),
        "direction": "higher is closer" if cls.closer_is_higher else "lower is closer",
        "needs": _needs(cls),
        "takes": sorted(measure.accepts),
        "cost": cls.cost,
        "bilinear": issubclass(cls, Bilinear),
        "null": _null(cls),
        "parameters": parameters(cls),
        "doc": inspect.cleandoc(cls.__doc__ or ""),
    }


def _null(cls: MeasureClass) -> str:
    if not cls.paired:
        return "none (unpaired)"
    return "closed-form moments; cyclic group" if issubclass(cls, Bilinear) else "random permutations"


def _needs(cls: MeasureClass) -> str:
    """What two arrays must have in common."""
    rows = "the same stimuli, row by row" if cls.paired else "no common rows"
    return f"{rows}, in one space (equal widths)" if cls.equal_widths else rows


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and keyword literals of ``Name`` or ``Name(key=literal, ...)``; nothing is evaluated."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            given = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
            if None not in given:  # no **mapping
                return node.func.id, cast(dict[str, Any], given)
    except (SyntaxError, ValueError):
        pass
    raise RepalignError(
        f"not a measure: {text!r}",
        expected="a name, or a name with named parameters, such as MutualKNN(k=10)",
        got=repr(text),
        remedy="name every parameter and give it a number, a quoted word, True, False or None",
    )


def _lookup(
    name: str, classes: Sequence[MeasureClass], shorthands: Mapping[str, tuple[MeasureClass, dict[str, Any]]]
) -> tuple[MeasureClass, dict[str, Any]]:
    names: dict[str, tuple[MeasureClass, dict[str, Any]]] = {cls.__name__: (cls, {}) for cls in classes}
    names |= {alias: (cls, {}) for cls in classes for alias in cls.aliases}
    names |= shorthands
    if name not in names:
        alike = names if name.islower() else [cls.__name__ for cls in classes]
        raise RepalignError(f"unknown measure {name!r}", got=repr(name), remedy=did_you_mean(name, alike))
    return names[name]
