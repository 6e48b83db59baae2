"""What a curve runs over: a column of the table, a parameter of the measures, or a number of the models of a side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.measures import Measure, parse_measure
from repalign.models import COMPETENCES
from repalign.relate._pairs import value as number_of

# What a curve adds to the rows that it takes from the table.
X, LINE, GROUP = "_x", "_line", "_group"
NOT_AN_AXIS = ("model_x", "model_y", "scope")


@dataclass(frozen=True, eq=False)
class Axis:
    """The rows that have a place on the axis (column `X`), and the measure without the axis' parameter (`GROUP`).

    `kind` is "column", "parameter" or "model"; `values` are the places in order: numbers ascending, else as given.
    """

    name: str
    kind: str
    numbers: bool
    values: tuple[Any, ...]
    rows: pd.DataFrame
    left_out: tuple[str, ...]

    def narrowed(self, rows: pd.DataFrame) -> Axis:
        """The same axis for some of its rows; places without a row are dropped."""
        there = set(rows[X])
        return replace(self, rows=rows, values=tuple(v for v in self.values if v in there))


def axis_of(pairs: pd.DataFrame, x: str, records: Mapping[str, Mapping[str, Any]], side: str) -> Axis:
    """Place the pairs of models on the axis `x`.

    Raises RepalignError for a name that is neither a column, nor a parameter of a measure, nor a number of a model.
    """
    if x in pairs.columns and x not in NOT_AN_AXIS:
        given, groups, kind = pairs[x].tolist(), pairs["measure"].tolist(), "column"
        missing = sum(_missing(v) for v in given)
        left_out = (f"{missing} pair{'s' * (missing != 1)} without {x}",) if missing else ()
        return _axis(pairs, x, kind, given, groups, left_out)
    known = {text: _parsed(text) for text in dict.fromkeys(pairs["measure"])}
    if any(_parameter(m, x) is not None for m in known.values()):
        found = {text: _parameter(m, x) for text, m in known.items()}
        without = {text: _without(m, x) if m is not None else text for text, m in known.items()}
        given, groups = ([by[text] for text in pairs["measure"]] for by in (found, without))
        return _axis(pairs, x, "parameter", given, groups, tuple(f"{t} (no {x})" for t, v in found.items() if v is None))
    places = {name: number_of(record, x) for name, record in records.items()}
    names = list(dict.fromkeys(pairs[f"model_{side}"]))
    if any(places.get(name) is not None for name in names):
        given = [places.get(name) for name in pairs[f"model_{side}"]]
        left_out = tuple(f"{name} (no {x})" for name in names if places.get(name) is None)
        return _axis(pairs, x, "model", given, pairs["measure"].tolist(), left_out)
    parameters = {key for m in known.values() if m is not None for key in vars(m)}
    scores = {key for record in records.values() for key in (record.get("scores") or {})}
    names = [*(c for c in pairs.columns if c not in NOT_AN_AXIS), *parameters, *scores]
    raise RepalignError(
        f"nothing to draw a curve over is called {x!r}",
        expected="a column of the table, a parameter of its measures, or a number of its models",
        got=x,
        remedy=did_you_mean(x, names),
    )


def _axis(
    pairs: pd.DataFrame, x: str, kind: str, given: Sequence[Any], groups: Sequence[str], left_out: tuple[str, ...]
) -> Axis:
    there = np.array([not _missing(v) for v in given], bool)
    kept = [v for v in given if not _missing(v)]
    if not kept:
        raise RepalignError(f"no pair of models has a value of {x!r}", expected="numbers or texts", got="none")
    numbers = all(isinstance(v, Real) and not isinstance(v, (bool, np.bool_)) for v in kept)
    places = [float(v) if numbers else str(v) for v in kept]
    values = tuple(sorted(set(places)) if numbers else dict.fromkeys(places))
    rows = pairs.loc[there].assign(**{X: places, GROUP: [g for g, t in zip(groups, there, strict=True) if t]})
    return Axis(x, kind, numbers, values, rows, left_out)


def axis_label(name: str) -> str:
    """An axis for people: a competence by its label, anything else as words."""
    known = COMPETENCES.get(name)
    return known.label if known else name.replace("_", " ")


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, Real) and math.isnan(value))


def _parsed(text: str) -> Measure | None:
    """The measure of a repr; None for one that is not known here."""
    try:
        return parse_measure(text)
    except RepalignError:
        return None


def _parameter(measure: Measure | None, name: str) -> Any:
    return None if measure is None else vars(measure).get(name)


def _without(measure: Measure, name: str) -> str:
    """The repr of a measure without one parameter; the whole repr if it has no such parameter."""
    given = ", ".join(f"{key}={value!r}" for key, value in vars(measure).items() if key != name)
    return f"{type(measure).__name__}({given})"
