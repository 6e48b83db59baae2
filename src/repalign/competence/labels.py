"""What stimuli are labelled with, joined by id, and which of them are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repalign.errors import RepalignError, did_you_mean
from repalign.tables import Table, column_of, is_missing, read_table


def read_labels(path: str | Path, ids: Sequence[str], label: str = "label", id: str = "id") -> list[str]:
    """One label per id, in the order of `ids`, from a table (.csv, .tsv, .jsonl, .parquet); rows are found by id.

    No word means "no label": None, NA and null are labels like others; only an empty cell is none.

    Raises RepalignError for a missing column, an id twice, and an id without a label.
    """
    path = Path(path)
    table = read_table(path, (id, label), "labels")
    for column in (id, label):
        if column not in table.columns:
            raise RepalignError(
                f"{path}: no column {column!r}", got=", ".join(table.columns), remedy=did_you_mean(column, table.columns)
            )
    rows = Table(table.columns, [row for row in table.rows if not is_missing(row.get(label))])
    named = column_of(rows, id, str(path), "id")
    found = dict(zip(named, (str(row[label]) for row in rows.rows), strict=True))
    without = [i for i in ids if i not in found]
    if without or len(found) != len(named):
        got = f"{len(without)} ids without one, the first is {without[0]!r}" if without else "an id twice"
        raise RepalignError(f"{path}: labels do not fit the stimuli", expected="one row for every id", got=got)
    return [found[i] for i in ids]


@dataclass(frozen=True)
class Split:
    """Which rows are trained on and which are held out: by classes, drawn with a seed.

    scikit-learn's `train_test_split(rows, test_size=test, stratify=labels, random_state=seed)`; where one side is larger
    than `max_train` or `max_test`, as many are drawn from it in the same way (the paper: 10,000 each).
    """

    test: float = 0.2
    seed: int = 0
    max_train: int | None = None
    max_test: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.test < 1:
            raise RepalignError("the share of held-out rows is out of range", expected="0 < test < 1", got=self.test)

    def rows(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Training and held-out rows, each in ascending order."""
        from sklearn.model_selection import train_test_split

        sides = train_test_split(np.arange(len(labels)), test_size=self.test, stratify=labels, random_state=self.seed)
        out = []
        for rows, most in zip(sides, (self.max_train, self.max_test), strict=True):
            if most is not None and len(rows) > most:
                rows = train_test_split(rows, train_size=most, stratify=labels[rows], random_state=self.seed)[0]
            out.append(np.sort(rows))
        return out[0], out[1]


Rows = tuple[Sequence[int], Sequence[int]]


def split_rows(labels: Sequence[object], split: Split | Rows) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out rows of a split, or those that are given, checked."""
    y = np.asarray([str(v) for v in labels])
    if isinstance(split, Split):
        counts = Counter(y.tolist())
        rare = min(counts, key=lambda c: counts[c])
        if len(counts) < 2 or counts[rare] < 2:
            raise RepalignError(
                "these labels cannot be split by class",
                expected="two classes or more, each of two stimuli or more",
                got=f"{len(counts)} classes, {rare!r} with {counts[rare]} stimuli",
                remedy="leave rare classes out",
            )
        try:
            return split.rows(y)
        except ValueError as error:
            raise RepalignError(
                "these labels cannot be split by class", expected="a place for every class on both sides", got=error
            ) from error
    train, test = (np.asarray(rows, dtype=int) for rows in split)
    every = np.concatenate([train, test])
    if (
        not len(train)
        or not len(test)
        or len(set(every.tolist())) < len(every)
        or every.min() < 0
        or every.max() >= len(y)
    ):
        raise RepalignError(
            "these rows are no split",
            expected=f"training and held-out rows from 0 to {len(y) - 1}, each row once",
            got=f"{len(train)} and {len(test)} rows",
        )
    return train, test
