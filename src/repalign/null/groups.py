"""Stimuli that belong together: several captions of one image, one class, one subject.

Where the design or the data tie stimuli together, not every relabelling is exchangeable. Two restrictions are: stimuli
change places within their group only, or whole groups change places, each with its stimuli in order.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.tables import column_of, is_missing, read_table

SHUFFLES = ("within", "whole")


@dataclass(frozen=True)
class Groups:
    """A label for every stimulus, and what changes places.

    shuffle : "within", stimuli of one group among themselves: the null keeps whatever the groups explain, and asks for
        alignment beyond it. "whole": groups as they are, among groups of equal size: for stimuli that are not
        independent within a group, such as captions of one image; a group without another of its size stays.

    Raises RepalignError if nothing could change places.

    >>> Groups.of(["a", "a", "b", "b"], "within").n_relabellings
    4.0
    """

    labels: tuple[int, ...] = field(repr=False)
    shuffle: str = "within"
    digest: str = ""  # of the labels: a null's repr is its identity

    @classmethod
    def of(cls, labels: Sequence[Hashable] | np.ndarray, shuffle: str = "within") -> Groups:
        """From any labels, one per stimulus in order."""
        choose("shuffle", shuffle, SHUFFLES)
        labels = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
        missing = next((i for i, v in enumerate(labels) if v is None or v != v), None)
        if missing is not None:
            got = f"nothing in row {missing}"
            raise RepalignError("a stimulus has no group", expected="a label for every stimulus", got=got)
        first: dict[Hashable, int] = {}
        codes = tuple(first.setdefault(label, len(first)) for label in labels)
        groups = cls(codes, shuffle, hashlib.sha256(repr(codes).encode()).hexdigest()[:16])
        if groups.n_relabellings <= 1:
            sizes = f"{len(groups.members)} groups of sizes {sorted(Counter(map(len, groups.members)).items())}"
            wanted = "a group of two stimuli or more" if shuffle == "within" else "two groups of one size"
            raise RepalignError(
                f"shuffle={shuffle!r} leaves everything in place", expected=wanted,
                got=f"{len(codes)} stimuli in {sizes} as (size, count)",
                remedy="use the other kind of shuffle, other labels, or no groups",
            )  # fmt: skip
        return groups

    @classmethod
    def from_file(cls, path: str | Path, ids: Sequence[str], shuffle: str = "within") -> Groups:
        """From a table (.csv, .tsv, .jsonl or .parquet) with the columns id and group; rows are found by id.

        No word means "no group": None, NA and null are labels like others; only an empty cell is missing.
        """
        path = Path(path)
        table = read_table(path, ("id", "group"), "groups")
        if not {"id", "group"} <= set(table.columns):
            got = ", ".join(map(str, table.columns))
            raise RepalignError(f"{path}: not a table of groups", expected="the columns id and group", got=got)
        named = column_of(table, "id", str(path), "id")
        labels = dict(zip(named, (None if is_missing(row.get("group")) else row["group"] for row in table.rows), strict=True))
        without = [i for i in ids if i not in labels]
        if without or len(labels) != len(named):
            got = f"{len(without)} ids without one, the first is {without[0]!r}" if without else "an id twice"
            raise RepalignError(f"{path}: groups do not fit the stimuli", expected="one row for every id", got=got)
        empty = next((i for i in ids if labels[i] is None), None)
        if empty is not None:
            raise RepalignError(f"{path}: {empty!r} has no group", expected="a group for every stimulus", got="an empty cell")
        odd = next((g for g in labels.values() if not isinstance(g, Hashable)), None)
        if odd is not None:
            raise RepalignError(f"{path}: a group is a text or a number", got=f"{odd!r} ({type(odd).__name__})")
        return cls.of([labels[i] for i in ids], shuffle)

    @property
    def n(self) -> int:
        return len(self.labels)

    @cached_property
    def members(self) -> tuple[np.ndarray, ...]:
        """The rows of each group, in order."""
        codes = np.asarray(self.labels, dtype=np.intp)
        ends = np.cumsum(np.bincount(codes))  # one sort for all groups: a look through all rows for each is quadratic
        return tuple(np.split(np.argsort(codes, kind="stable"), ends[:-1])) if len(codes) else ()

    @cached_property
    def alike(self) -> tuple[tuple[int, ...], ...]:
        """Groups that may change places: those of one size, by size."""
        by_size: dict[int, list[int]] = {}
        for g, rows in enumerate(self.members):
            by_size.setdefault(len(rows), []).append(g)
        return tuple(tuple(by_size[size]) for size in sorted(by_size))

    @property
    def equal_size(self) -> int | None:
        """The size of all groups, if they have one."""
        return len(self.members[0]) if len(self.alike) == 1 else None

    @property
    def n_relabellings(self) -> float:
        """How many different relabellings there are, the one that changes nothing included; inf beyond floats."""
        counts = [len(m) for m in (self.members if self.shuffle == "within" else self.alike)]
        log = sum(math.lgamma(c + 1) for c in counts)
        return float(round(math.exp(log))) if log < 30 else (math.exp(log) if log < 700 else math.inf)

    def permutation(self, generator: np.random.Generator) -> np.ndarray:
        """One uniform draw: p such that y[p] is y relabelled."""
        p = np.arange(self.n)
        if self.shuffle == "within":
            for rows in self.members:
                p[rows] = generator.permutation(rows)
            return p
        for groups in self.alike:
            for target, source in zip(groups, generator.permutation(groups), strict=True):
                p[self.members[target]] = self.members[source]
        return p

    def check_n(self, n: int) -> None:
        """Refuse labels of another number of stimuli."""
        if n != self.n:
            raise RepalignError("groups do not fit the stimuli", expected=f"{n} labels, one per stimulus", got=self.n)
