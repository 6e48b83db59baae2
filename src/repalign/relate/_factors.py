"""Factors of models as columns of a design: numbers in standard deviations, words as deviations from their mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repalign.errors import RepalignError, did_you_mean
from repalign.models import COMPETENCES
from repalign.relate._pairs import PARAMETERS, WORDS, value, word

# Shares take a regression for every set of factors.
MOST_FACTORS = 12


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of n models.

    A number x has one column, (x - mean) / sd over the models, x on log10 if `log`. Words of L levels have L - 1 columns:
    1 at the level, -1 at the last one, so that the effects of the L levels sum to 0. `contrasts` (effects, columns) turn
    the coefficients of the columns into the effects that are told: of one sd, or of every level.
    """

    name: str
    label: str
    log: bool
    values: tuple[Any, ...]  # of the models
    levels: tuple[str, ...]  # () for a number
    sd: float  # of a number, on log10 if `log`; nan for words
    columns: np.ndarray
    contrasts: np.ndarray

    @property
    def kind(self) -> str:
        return "category" if self.levels else "number"

    @property
    def n_columns(self) -> int:
        return self.columns.shape[1]


def values_of(
    records: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    factors: Sequence[str],
    categories: Collection[str],
    log: Collection[str],
) -> tuple[dict[str, list[Any]], list[str], tuple[str, ...]]:
    """The values of every factor for the models that have all of them, these models, and why others are left out.

    Raises RepalignError for a factor that is asked for twice, too many of them, or one that no model has.
    """
    factors = list(factors)
    if not 1 <= len(factors) <= MOST_FACTORS or len(set(factors)) < len(factors):
        raise RepalignError(
            "these factors make no regression",
            expected=f"1 to {MOST_FACTORS} different names",
            got=", ".join(factors) or "none",
        )
    found = {f: {name: _value(records.get(name, {}), f, f in categories) for name in names} for f in factors}
    for f, given in found.items():
        if all(v is None for v in given.values()):
            raise RepalignError(
                f"no model of this side has a factor {f!r}",
                expected="a number or a word of at least two models",
                got=f,
                remedy=did_you_mean(f, known_factors(records, names)),
            )
        if f in log:
            for name, v in given.items():
                if isinstance(v, float) and v <= 0:
                    given[name] = None
    left_out = []
    for name in names:
        lacking = [f for f in factors if found[f][name] is None]
        if lacking:
            left_out.append(f"{name} (no {'positive ' * (lacking[0] in log)}{lacking[0]})")
    there = [name for name in names if all(found[f][name] is not None for f in factors)]
    return {f: [found[f][name] for name in there] for f in factors}, there, tuple(left_out)


def known_factors(records: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """All that some of the models can be told apart by."""
    chosen = [records[name] for name in names if name in records]
    keys = dict.fromkeys(
        [PARAMETERS, *WORDS, *(k for r in chosen for part in ("factors", "scores") for k in (r.get(part) or {}))]
    )
    return [k for k in keys if any(_value(r, k, False) is not None for r in chosen)]


def make(name: str, values: Sequence[Any], log: bool) -> Factor:
    """A factor from the values of the models. Raises RepalignError where all models have the same."""
    known = COMPETENCES.get(name)
    label = known.label if known else name.replace("_", " ").strip().capitalize()
    levels = () if all(isinstance(v, float) for v in values) else _in_order(values)
    if len(set(values)) < 2:
        raise RepalignError(
            f"all models have the same {name!r}",
            expected="two values or more among the models that have all factors",
            got=values[0] if values else "no model",
            remedy="leave this factor out, or another one that few models have",
        )
    if levels:
        if len(levels) > len(values) // 2 + 1:
            raise RepalignError(
                f"{name!r} tells almost every model from every other",
                expected="a word that models share, or a number",
                got=f"{len(levels)} words for {len(values)} models",
            )
        sums = np.vstack([np.eye(len(levels) - 1), -np.ones(len(levels) - 1)])
        at = [levels.index(str(v)) for v in values]
        return Factor(name, label, False, tuple(values), levels, math.nan, sums[at], sums)
    x = np.log10(values) if log else np.array(values, float)
    sd = float(x.std())
    return Factor(name, label, log, tuple(values), (), sd, ((x - x.mean()) / sd)[:, None], np.ones((1, 1)))


def refuse_confounded(factors: Sequence[Factor]) -> None:
    """Refuse factors of which one follows from the others, and name those that are in it."""
    ones = np.ones((len(factors[0].columns), 1))

    def rank(some: Sequence[Factor]) -> int:
        return int(np.linalg.matrix_rank(np.hstack([ones, *(f.columns for f in some)])))

    full = rank(factors)
    wanted = 1 + sum(f.n_columns for f in factors)
    if len(ones) <= wanted:
        raise RepalignError(
            "too few models for these factors",
            expected=f"more than {wanted} models, one coefficient each for the mean and {wanted - 1} columns",
            got=f"{len(ones)} models that have all of them",
            remedy="take fewer factors",
        )
    if full < wanted:
        tied = [f.name for f in factors if rank([g for g in factors if g is not f]) + f.n_columns > full]
        raise RepalignError(
            "factors cannot be told apart: one follows from the others",
            expected="models that differ in one while the others stay",
            got=f"{' and '.join(tied)} say the same of these models",
            remedy="leave one of them out",
        )


def inflation(factors: Sequence[Factor]) -> list[float]:
    """How much less sure each effect is because factors go together: det(R_f) det(R_rest) / det(R), to the power 1/columns.

    R are correlation matrices of columns. For a number it is the variance inflation factor; 1 where nothing goes together.

    Source: J. Fox and G. Monette, Journal of the American Statistical Association 87 (1992), 178-183.
    """

    def logdet(some: Sequence[Factor]) -> float:
        if not some:
            return 0.0
        together = np.atleast_2d(np.corrcoef(np.hstack([f.columns for f in some]), rowvar=False))
        return float(np.linalg.slogdet(together)[1])

    whole = logdet(factors)
    rest = [logdet([g for g in factors if g is not f]) for f in factors]
    return [math.exp((logdet([f]) + r - whole) / f.n_columns) for f, r in zip(factors, rest, strict=True)]


def _in_order(values: Sequence[Any]) -> tuple[str, ...]:
    """Words as they come, numbers among themselves from the smallest."""
    words = tuple(dict.fromkeys(map(str, values)))
    try:
        return tuple(sorted(words, key=float))
    except ValueError:
        return words


def _value(record: Mapping[str, Any], name: str, category: bool) -> float | str | None:
    number = None if category else value(record, name)
    if number is not None:
        return number
    found = word(record, name)
    if found is None and category:
        number = value(record, name)
        return None if number is None else f"{number:g}"
    return found
