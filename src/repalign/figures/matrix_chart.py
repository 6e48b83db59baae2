"""Models by models: score, chance level, calibrated score or p of every pair."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from repalign import text as words
from repalign.comparison.alignment import Alignment
from repalign.comparison.conventions import Conventions, Pairs, ranked, scale_of, text_of, view_for
from repalign.figures import canvas

MOST_PAIRS = 2_000  # that are shown one by one; of more, models stand together in groups
MOST_GROUPS = 30
MEANS = ("statistic", "gain", "null_mean", "calibrated")  # of the views, those of which a mean says something


@dataclass(frozen=True, eq=False)
class Grouped:
    """The models of both sides in groups, where there are too many to show one by one: families, or models of like scores.

    names : of the groups, with how many models each has. x, y : the group of each pair's models. why : what a group is.
    """

    names: tuple[list[str], list[str]]
    x: np.ndarray
    y: np.ndarray
    why: str

    @classmethod
    def of(cls, pairs: Pairs, models: Sequence[Mapping[str, Any]] = ()) -> Grouped | None:
        """By the families of the models where most have one, else by their scores; None for few pairs."""
        rows = pairs.rows
        if len(rows) <= MOST_PAIRS:
            return None
        sides = [list(dict.fromkeys(rows[f"model_{side}"])) for side in "xy"]
        if set(sides[0]) & set(sides[1]):
            sides = [list(dict.fromkeys([*sides[0], *sides[1]]))] * 2
        family = {str(one.get("name")): one.get("family") for one in models}
        known = {family[name] for side in sides for name in side if family.get(name)}
        has_family = sum(bool(family.get(name)) for name in {*sides[0], *sides[1]}) >= 0.5 * len({*sides[0], *sides[1]})
        by_family = has_family and 2 <= len(known) <= MOST_GROUPS
        of = [
            {name: family.get(name) or "no family" for name in side} if by_family and len(side) > MOST_GROUPS
            else _alike(rows, side) if len(side) > MOST_GROUPS else {name: name for name in side}
            for side in sides
        ]  # fmt: skip
        labels, at = [], []
        for groups, side in zip(of, "xy", strict=True):
            count = Counter(groups.values())
            labels.append([f"{name} ({n:,})" if n > 1 or by_family else str(name) for name, n in count.items()])
            place = {name: i for i, name in enumerate(count)}
            at.append(np.array([place[groups[name]] for name in rows[f"model_{side}"]]))
        why = "families of models" if by_family else "models whose scores with the others are alike, named after the first of them"
        return cls((labels[0], labels[1]), at[0], at[1], why)


def _alike(rows: pd.DataFrame, side: list[str]) -> dict[str, str]:
    """Models in groups of like scores with all others (average linkage), each group named after its first model."""
    from scipy.cluster.hierarchy import fcluster, linkage

    place = {name: i for i, name in enumerate(dict.fromkeys([*side, *rows["model_x"], *rows["model_y"]]))}
    x, y = (np.array([place[name] for name in rows[f"model_{s}"]]) for s in "xy")
    score, whole = rows["statistic"].to_numpy(float), np.full((len(place), len(place)), np.nan)
    whole[x, y] = whole[y, x] = score
    profile = whole[: len(side)]
    profile = np.where(np.isnan(profile), np.nan_to_num(np.nanmean(score) if np.isfinite(score).any() else 0.0), profile)
    found = fcluster(linkage(profile, "average"), MOST_GROUPS, "maxclust")
    first: dict[int, str] = {}
    return {name: first.setdefault(int(group), f"like {name}") for name, group in zip(side, found, strict=True)}


@dataclass(frozen=True, eq=False)
class Matrix(canvas.Cells):
    """Models by models, one number per pair; if all met all, half a matrix is mirrored into a whole one.

    Of models in groups each cell is the mean over the pairs of two groups, and `index` the best of these pairs.
    """

    title: str
    index: np.ndarray  # which row of the pairs each cell shows, -1 for none
    mirrored: np.ndarray
    texts: np.ndarray  # the values; "" where not compared
    labels: np.ndarray  # the same with a circle at pairs that are not above chance
    found: np.ndarray  # above chance after adjustment
    chance: tuple[float, float]  # lowest and highest chance level
    pairs: Pairs
    text: str  # the best pair
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    counts: np.ndarray | None = None  # of models in groups: how many pairs each cell has, and of them above chance
    why: str = ""  # and what the groups are

    @classmethod
    def of(cls, pairs: Pairs, value: str = "statistic", groups: Grouped | None = None) -> Matrix:
        """The matrix of some pairs in one view, by `groups` of models where there are too many."""
        if groups is not None:
            return cls._of_groups(pairs, value, groups)
        view, given = view_for("max", value), pairs.rows
        rows, columns = list(dict.fromkeys(given["model_x"])), list(dict.fromkeys(given["model_y"]))
        square = bool(set(rows) & set(columns))
        if square:
            rows = columns = list(dict.fromkeys([*rows, *columns]))
        index = np.full((len(rows), len(columns)), -1)
        for k, (a, b) in enumerate(zip(given["model_x"], given["model_y"], strict=True)):
            index[rows.index(a), columns.index(b)] = k
        mirrored = (index < 0) & (index.T >= 0) if square else np.zeros(index.shape, bool)
        index = np.where(mirrored, index.T, index) if square else index
        there, flat, chance = index >= 0, given[value].to_numpy(float), given["null_mean"].to_numpy(float)
        texts = np.where(there, np.array([text_of(value, v, pairs.draws) for v in flat], dtype=object)[index], "")
        above, level = there & pairs.found[index], chance[np.isfinite(chance)]
        return cls(
            rows, columns, np.where(there, flat[index], np.nan),
            scale_of(value, flat, chance, pairs.draws, pairs.alpha),
            title=f"{view.label}: {pairs.about.label}", index=index,
            mirrored=mirrored, texts=texts,
            labels=np.where(above | np.isin(texts, ["", words.UNDEFINED]), texts, "○ " + texts), found=above,
            chance=(float(level.min()), float(level.max())) if level.size else (math.nan, math.nan), pairs=pairs,
            text=pairs.text,
        )  # fmt: skip


    @classmethod
    def _of_groups(cls, pairs: Pairs, value: str, groups: Grouped) -> Matrix:
        view, (rows, columns) = view_for("max", value), groups.names
        square = groups.names[0] is groups.names[1] or rows == columns
        x, y, flat = groups.x, groups.y, pairs.rows[value].to_numpy(float)
        directed = square and not set(zip(pairs.rows["model_x"], pairs.rows["model_y"], strict=True)).isdisjoint(
            zip(pairs.rows["model_y"], pairs.rows["model_x"], strict=True)
        )
        if square and not directed:
            x, y = np.minimum(x, y), np.maximum(x, y)
        shape, cell = (len(rows), len(columns)), x * len(columns) + y

        def summed(values: np.ndarray) -> np.ndarray:
            return np.bincount(cell, values, shape[0] * shape[1]).reshape(shape)

        defined = np.isfinite(flat)
        n, above = summed(defined * 1.0), summed(pairs.found * 1.0)
        mean = np.where(n > 0, summed(np.where(defined, flat, 0.0)) / np.maximum(n, 1), np.nan)
        level = pairs.rows["null_mean"].to_numpy(float)
        chance = np.where(np.isfinite(level), level, 0.0)
        chance = np.where(n > 0, summed(chance) / np.maximum(summed(np.isfinite(level) * 1.0), 1), np.nan)
        index, order = np.full(shape[0] * shape[1], -1), ranked(pairs.rows).index.to_numpy()[::-1]
        index[cell] = np.arange(len(cell))  # any pair, where no score is defined
        index[cell[order]] = order  # the best is written last
        index, counts = index.reshape(shape), np.stack([n, above]).astype(int)
        mirrored = (index < 0) & (index.T >= 0) if square and not directed else np.zeros(shape, bool)
        if square and not directed:
            index, mean, chance = (np.where(mirrored, v.T, v) for v in (index, mean, chance))
            counts = np.where(mirrored, counts.transpose(0, 2, 1), counts)
        known, found = level[np.isfinite(level)], counts[1] > 0
        texts = np.array([[text_of(value, v, 0) if k >= 0 else "" for v, k in zip(*both, strict=True)]
                          for both in zip(mean, index, strict=True)], dtype=object)  # fmt: skip
        return cls(
            rows, columns, mean, scale_of(value, mean.ravel(), chance.ravel(), pairs.draws, pairs.alpha),
            title=f"{view.label}, means of groups: {pairs.about.label}", index=index, mirrored=mirrored, texts=texts,
            labels=np.where(found | np.isin(texts, ["", words.UNDEFINED]), texts, "○ " + texts), found=found,
            chance=(float(known.min()), float(known.max())) if known.size else (math.nan, math.nan), pairs=pairs,
            text=pairs.text, counts=counts, why=groups.why,
        )  # fmt: skip


def shown(alignment: Alignment, measure: str | None = None, *, value: str = "statistic") -> Matrix:
    """The matrix of a result, with what it shows as a table; of many models, means of their groups."""
    pairs = Pairs.of(alignment.table, measure, Conventions.of(alignment.run))
    groups = Grouped.of(pairs, alignment.run.get("models") or [])
    if groups is not None:
        made = Matrix.of(pairs, value if value in MEANS else "statistic", groups)
        table = pd.DataFrame(made.values, pd.Index(made.rows, name="group_x"), made.columns).reset_index()
        note = f"{len(pairs.rows):,} pairs are too many to show one by one: rows and columns are {groups.why}."
        return replace(made, table=table, text=f"{made.text} {note}")
    made = Matrix.of(pairs, value)
    return replace(made, table=alignment.matrix(measure, value).reset_index())


def draw(made: Matrix, **look: Unpack[canvas.Look]) -> Axes:
    """Models by models with the number in every cell."""
    about = {"above": made.pairs.heading, "below": made.pairs.note}
    names = canvas.called(made.rows, made.columns, look=look)
    shown = replace(made, rows=[names[r] for r in made.rows], columns=[names[c] for c in made.columns])
    width, height = 2.6 + 0.55 * len(made.columns), 2.3 + 0.36 * len(made.rows)
    width, height = width + canvas.beyond(shown.rows), height + 0.7 * canvas.beyond(shown.columns)
    figure, ((axes,),) = canvas.sheet(width, height, made.title, **about, **look)
    canvas.draw_cells(figure, axes, shown, made.labels)
    return axes
