"""Scores of models against their partners, and the units that such data have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import pandas as pd

from repalign.relate._fit import MIN_MODELS_LINE

# Two units have one difference, and so say nothing about how much units differ.
MIN_UNITS = 3


@dataclass(frozen=True, eq=False)
class Crossed:
    """Models by partners: the sum of the defined scores of every pair and their number, 0 where there is none.

    `rows` are the models that have a covariate, `columns` all their partners; arrays are (rows, columns). Where all
    models met all others, a model is a row and a column, and a pair stands in both places.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    total: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, pairs: pd.DataFrame, side: str, rows: Sequence[str] | None = None) -> Crossed:
        """The pairs table (columns model_x, model_y, statistic) seen from one side, "x", "y" or "both".

        `rows` keeps these models only, in this order; by default all of the side.
        """
        a, b = (pairs[c].astype(str).tolist() for c in ("model_x", "model_y"))
        scores = pairs["statistic"].to_numpy(float)
        seen = list(zip(a, b, scores, strict=True)) if side != "y" else list(zip(b, a, scores, strict=True))
        if side == "both":
            seen += [(y, x, score) for x, y, score in seen if x != y]
        names = tuple(dict.fromkeys(x for x, _, _ in seen)) if rows is None else tuple(rows)
        columns = tuple(dict.fromkeys(y for x, y, _ in seen if x in set(names)))
        at_row, at_column = ({name: i for i, name in enumerate(n)} for n in (names, columns))
        total, count = np.zeros((2, len(names), len(columns)))
        for x, y, score in seen:
            if x in at_row and np.isfinite(score):
                total[at_row[x], at_column[y]] += score
                count[at_row[x], at_column[y]] += 1
        return cls(names, columns, total, count)

    def defined(self) -> Crossed:
        """The rows and columns that have a score."""
        row, column = self.count.sum(1) > 0, self.count.sum(0) > 0
        rows = tuple(name for name, kept in zip(self.rows, row, strict=True) if kept)
        columns = tuple(name for name, kept in zip(self.columns, column, strict=True) if kept)
        return Crossed(rows, columns, self.total[np.ix_(row, column)], self.count[np.ix_(row, column)])

    def means(self, without: AbstractSet[str] = frozenset()) -> np.ndarray:
        """Each row's mean over the partners that are left; nan for a row that is left out or has no score left."""
        kept = np.array([name not in without for name in self.columns])
        total, count = self.total[:, kept].sum(1), self.count[:, kept].sum(1)
        count[[name in without for name in self.rows]] = 0
        return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


@dataclass(frozen=True)
class Units:
    """What is taken as drawn independently: single models, or families of them."""

    kind: str  # "model" or "family"
    members: tuple[frozenset[str], ...]

    def __len__(self) -> int:
        return len(self.members)


def units_of(
    names: Iterable[str], families: Mapping[str, str], *needed: AbstractSet[str], least: int = MIN_MODELS_LINE
) -> Units | None:
    """The largest units that can be left out one at a time: families, else models, else None.

    There must be at least three, and `least` models of each `needed` set must be left without any one of them. A model
    without a family is a unit of its own.
    """
    names = list(dict.fromkeys(names))
    by_family: dict[tuple[str, str], list[str]] = {}
    for name in names:
        family = families.get(name) or ""
        by_family.setdefault((family, "" if family else name), []).append(name)
    together = tuple(frozenset(members) for members in by_family.values())
    single = tuple(frozenset([name]) for name in names)
    for kind, members in (("family", together), ("model", single)):
        if kind == "family" and len(members) == len(names):
            continue
        if len(members) >= MIN_UNITS and all(len(some - unit) >= least for unit in members for some in needed):
            return Units(kind, members)
    return None


def sides_of_units(crossed: Crossed, families: Mapping[str, str]) -> tuple[Units | None, Units | None]:
    """The units of the rows and those of the columns; the second is None where partners are taken as they are.

    Where a model, or a family, stands on both sides, its rows and columns are one unit and the second is None too.
    """
    rows = frozenset(crossed.rows)
    if shared(crossed, families):
        return units_of((*crossed.columns, *crossed.rows), families, rows), None
    return units_of(crossed.rows, families, rows), units_of(crossed.columns, families, rows)


def shared(crossed: Crossed, families: Mapping[str, str]) -> bool:
    """Whether a model or a family stands on both sides."""
    kin = [{families[n] for n in names if families.get(n)} for names in (crossed.rows, crossed.columns)]
    return bool(set(crossed.rows) & set(crossed.columns) or kin[0] & kin[1])
