"""Scores of models against their partners, read off the table, and facts about models read off their records."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd

from repalign.comparison.alignment import rows_of
from repalign.errors import RepalignError, choose
from repalign.models import COMPETENCES, RELEASED, ModelRecord, year_of

SIDES = ("x", "y", "both")
PAIR = ["model_x", "model_y"]
PARAMETERS = "n_parameters"
WORDS = ("family", "objective", "modality")  # of a record
Models = Iterable[Mapping[str, Any] | ModelRecord]
# Numbers that span orders of magnitude; on log10 unless said otherwise.
LOGGED = (PARAMETERS, "width", "training_steps")
LABELS = {RELEASED: "Year of release"}  # of factors that words do not say plainly


# --- records -------------------------------------------------------------------------------------


class Records(dict[str, dict[str, Any]]):
    """Records of models as mappings, by name, and what alignment can be related to: numbers and words."""

    @classmethod
    def of(cls, models: Models) -> Records:
        """Records of a run, or of one's own."""
        plain = (m.to_dict() if isinstance(m, ModelRecord) else dict(m) for m in models)
        return cls((str(m["name"]), m) for m in plain)

    def number(self, name: str, key: str) -> float | None:
        """The number of parameters, a score, or a factor that is a number; None unless it is finite."""
        record = self.get(name, {})
        known = {**(record.get("factors") or {}), **(record.get("scores") or {}), PARAMETERS: record.get(PARAMETERS)}
        number = known.get(key)
        if key == RELEASED and isinstance(number, str):
            number = year_of(number)
        if number is None or isinstance(number, str) or not math.isfinite(float(number)) or (key == PARAMETERS and number <= 0):
            return None
        return float(number)

    def word(self, name: str, key: str) -> str | None:
        """What a model is in a word: a factor, or its family, objective or modality; None if it has none."""
        record = self.get(name, {})
        found = (record.get("factors") or {}).get(key, record.get(key) if key in WORDS else None)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        return None if found in (None, "") else str(found)

    def known(self, names: Iterable[str], *parts: str) -> list[str]:
        """What some of the models may have: parameters, and all that stands in these parts ("scores", "factors")."""
        chosen = [self[name] for name in names if name in self]
        return list(dict.fromkeys([PARAMETERS, *(key for part in parts for m in chosen for key in m.get(part) or {})]))

    @cached_property
    def families(self) -> dict[str, str]:
        """The family of every model, "" if it has none."""
        return {name: str(record.get("family") or "") for name, record in self.items()}


def yardsticks(models: Models, names: Sequence[str] | None = None, at_least: int = 2, factors: bool = False) -> list[str]:
    """What the named models can be related to: parameters and scores that enough of them have, and numbers of `factors`."""
    records = Records.of(models)
    chosen = [name for name in records if names is None or name in names]
    known = records.known(chosen, "scores", *["factors"] * factors)
    return [key for key in known if sum(records.number(name, key) is not None for name in chosen) >= at_least]


def yardstick_label(name: str) -> str:
    """A score for people: by its label if it is a known competence, else as words: "my_score" is "My score"."""
    if name in COMPETENCES or name in LABELS:
        return COMPETENCES[name].label if name in COMPETENCES else LABELS[name]
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def described(against: str, label: str | None, lower_is_better: bool | None) -> tuple[str, bool]:
    """The label of a score, and whether its lower end is the better one, as asked for or else as it is known."""
    known = COMPETENCES.get(against)
    lower = bool(known and known.lower_is_better) if lower_is_better is None else lower_is_better
    return label or yardstick_label(against), lower


# --- the table -----------------------------------------------------------------------------------


def sides_of(run: Mapping[str, Any]) -> tuple[str, ...]:
    """The sides that have trends: ("both",) if all models met all others, else ("x", "y")."""
    sides = run.get("sides") or {}
    return ("both",) if sides.get("x") == sides.get("y") else ("x", "y")


def pairs_of(table: pd.DataFrame) -> pd.DataFrame:
    """The pairs of models: rows of scope "max", which are layer searches."""
    pairs = table.loc[table["scope"] == "max"].reset_index(drop=True)
    if pairs.empty:
        raise RepalignError("the table has no pairs of models", expected="rows of scope 'max'", got="none")
    return pairs


def searched(table: pd.DataFrame, measure: str | None, side: str = "both") -> tuple[pd.DataFrame, str]:
    """The pairs of models under one measure, by default the first of the table, and this measure; `side` must be one."""
    choose("side", side, SIDES)
    pairs = rows_of(table, "max", measure)
    return pairs, str(pairs["measure"].iloc[0])


def all_met(pairs: pd.DataFrame) -> bool:
    """Whether models were compared among themselves, so that a model stands on both sides."""
    return bool(set(pairs["model_x"]) & set(pairs["model_y"]))


def stimuli(pairs: pd.DataFrame) -> int:
    """The number of stimuli, which must be one for all pairs: scores depend on it."""
    found = sorted(set(pairs["n"].tolist()))
    if len(found) != 1:
        raise RepalignError(
            "the pairs of models were not compared on equally many stimuli",
            expected="one n for all", got=", ".join(f"n = {n}" for n in found),
            remedy="take the rows of one n; scores at different n cannot be related",
        )  # fmt: skip
    return int(found[0])


def names_of(pairs: pd.DataFrame, side: str) -> list[str]:
    """The models of a side, "x", "y" or "both", in the table's order."""
    columns = PAIR if side == "both" else [f"model_{side}"]
    return [str(name) for name in dict.fromkeys(name for column in columns for name in pairs[column])]


def partners_of(pairs: pd.DataFrame, side: str, numbers: Sequence[str]) -> dict[str, pd.DataFrame]:
    """These numbers of all pairs of every model of a side, in the table's order."""
    columns = PAIR if side == "both" else [f"model_{side}"]
    rows: dict[str, list[int]] = {name: [] for name in names_of(pairs, side)}
    for i, names in enumerate(zip(*(pairs[column] for column in columns), strict=True)):
        for name in {str(one) for one in names}:
            rows[name].append(i)
    needed = pairs[[*numbers]]  # to take rows of all columns costs most of this
    return {name: needed.iloc[some] for name, some in rows.items()}


def other_side(side: str) -> str:
    """The side of the partners."""
    return {"x": "y", "y": "x"}.get(side, side)


@dataclass(frozen=True, eq=False)
class Crossed:
    """Models by partners: the sum of the defined scores of every pair and their number, 0 if there is none.

    `rows` are the models that have a covariate, `columns` all their partners; arrays are (rows, columns). If all
    models met all others, a model is a row and a column, and a pair stands in both places.
    """

    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    total: np.ndarray
    count: np.ndarray

    @classmethod
    def of(
        cls, pairs: pd.DataFrame, side: str, rows: Sequence[Hashable] | None = None,
        columns: Sequence[Hashable] | None = None, value: str = "statistic",
    ) -> Crossed:  # fmt: skip
        """The pairs table (columns model_x, model_y, and the value's) seen from one side, "x", "y" or "both".

        `rows` and `columns` keep these models only, in this order; by default all of the side, and all their partners.
        """
        first, second = (pairs[c].tolist() for c in (PAIR[::-1] if side == "y" else PAIR))
        scores = pairs[value].to_numpy(float)
        if side == "both":
            apart = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
            first, second = first + [second[i] for i in apart], second + [first[i] for i in apart]
            scores = np.append(scores, scores[apart])
        names = tuple(dict.fromkeys(first) if rows is None else rows)
        at_row = {name: i for i, name in enumerate(names)}
        met = dict.fromkeys(b for a, b in zip(first, second, strict=True) if a in at_row) if columns is None else columns
        at_column = {name: j for j, name in enumerate(met)}
        i, j = (np.array([at.get(n, -1) for n in seen], int) for at, seen in ((at_row, first), (at_column, second)))
        there = (i >= 0) & (j >= 0) & np.isfinite(scores)
        total, count = np.zeros((2, len(names), len(at_column)))
        # Both directions of an asymmetric measure, and repetitions, add up at one place.
        np.add.at(total, (i[there], j[there]), scores[there])
        np.add.at(count, (i[there], j[there]), 1)
        return cls(names, tuple(at_column), total, count)

    def defined(self) -> Crossed:
        """The rows and columns that have a score."""
        row, column = self.count.sum(1) > 0, self.count.sum(0) > 0
        rows, columns = tuple(compress(self.rows, row)), tuple(compress(self.columns, column))
        return Crossed(rows, columns, self.total[np.ix_(row, column)], self.count[np.ix_(row, column)])

    def means(self, without: AbstractSet[str] = frozenset()) -> np.ndarray:
        """Each row's mean over the partners that are left; nan for a row that is left out or has no score left."""
        row, column = self._left(without)
        return _ratio(self.total[:, column].sum(1), np.where(row, self.count[:, column].sum(1), 0))

    def mean(self, without: AbstractSet[str] = frozenset()) -> float | None:
        """The mean over the pairs that are left; None if there are none."""
        left = np.ix_(*self._left(without))
        count = self.count[left].sum()
        return float(self.total[left].sum() / count) if count else None

    def scores(self) -> np.ndarray:
        """The mean score of every pair of models, (rows, columns); nan if there is none, and of a model with itself."""
        itself = np.array([[a == b for b in self.columns] for a in self.rows], bool).reshape(self.total.shape)
        return np.where(itself, math.nan, _ratio(self.total, self.count))

    def _left(self, without: AbstractSet[str]) -> tuple[np.ndarray, np.ndarray]:
        row, column = (np.array([name not in without for name in names], bool) for names in (self.rows, self.columns))
        return row, column


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, math.nan), where=count > 0)
