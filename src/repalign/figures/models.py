"""What the figures over models show: bins of competence, the map of models, the agreement of measures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from repalign import text as words
from repalign.errors import RepalignError, did_you_mean
from repalign.figures import palette
from repalign.figures.quantities import Scale, vertical_range
from repalign.measures import parse_measure
from repalign.models import COMPETENCES
from repalign.relate import PARAMETERS, Agreement, Bins, ModelMap, yardstick_label

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class HeatFrame:
    """Names by names with a number in every cell."""

    title: str
    subtitle: str
    names: list[str]
    values: np.ndarray  # nan where undefined
    texts: np.ndarray  # "" in cells that show nothing
    hover: np.ndarray
    scale: Scale
    bar: list[tuple[float, str]]  # marks of the colour bar: place in [0, 1], words
    x_label: str
    note: str

    def inks(self, undefined: str) -> np.ndarray:
        """The colour of the text of every cell on light paper."""
        inks = np.array([*(palette.ink_on(c) for c in palette.LIGHT), undefined])
        return inks[self.scale.steps(self.values)]  # -1 takes the last


def _counted(n: int, noun: str) -> str:
    return f"{words.count(n)} {noun}{'s' * (n != 1)}"


# --- bins --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BinsFrame:
    """Alignment within bins, from the least competent to the most; for models among themselves also between bins."""

    title: str
    subtitle: str
    ticks: list[str]  # the bin, its models and its pairs
    rows: pd.DataFrame  # alignment, chance, se, low, high by bin
    x_label: str
    y_label: str
    interval: str
    y_range: tuple[float, float]
    between: HeatFrame | None


def bins_frame(found: Bins) -> BinsFrame:
    """What the figure of bins shows."""
    rows = found.within
    of_all = found.side == "both"
    names = [_span(found, label, b) for b, label in enumerate(found.labels)]
    ticks = [
        f"{name}\n{_counted(int(r['n_models_x']), 'model')}\n{_counted(int(r['n_pairs']), 'pair')}"
        for name, r in zip(names, rows.to_dict("records"), strict=True)
    ]
    closer = parse_measure(found.measure).closer_is_higher
    measure = words.measure_label(found.measure)
    low, high = found.difference_interval
    subtitle = f"{measure}; {_counted(found.n, 'model')}; n = {words.count(found.n_stimuli)}"
    if found.ends is not None:
        gap = words.interval(found.difference, low, high)
        subtitle += f"\nmost minus least competent: {gap}, {words.p_sentence(found.pvalue, found.draws)}"
    percent = f"{100 * found.level:g} % interval over models"
    unit = next((u for u in rows["unit"] if u), "")
    units = "families" if unit == "family" else "models"
    few = "; fewer than three models have no interval" if rows["low"].isna().any() else ""
    ends = rows[["low", "high"]].to_numpy(float).ravel()
    bottom, top = vertical_range(rows[["alignment", "chance"]].to_numpy(float).ravel(), ends)
    cut = ", cut at the edge" * bool((ends < bottom).any() or (ends > top).any())
    better = ", lower is better" if found.lower_is_better else ""
    return BinsFrame(
        title=f"{found.label} and alignment {'within bins' if of_all else 'with the other side'}",
        subtitle=subtitle,
        ticks=ticks,
        rows=rows,
        x_label=f"{found.label}{better}: bins from the least to the most competent{few}",
        y_label=f"Mean score{'' if closer else ' (lower is closer)'}",
        interval=percent.replace("models", units) + cut,
        y_range=(bottom, top),
        between=_between(found, names, closer) if of_all and len(names) > 1 else None,
    )


def _span(found: Bins, label: str, b: int) -> str:
    if found.against != PARAMETERS:
        return label
    low, high = found.edges[b], found.edges[b + 1]
    return f"{words.parameters(low)} to {words.parameters(high)}"


def _between(found: Bins, names: list[str], closer: bool) -> HeatFrame:
    values = found.matrix().to_numpy(float)
    chance = found.table["chance"].to_numpy(float)
    level = float(np.nanmean(chance)) if np.isfinite(chance).any() else math.nan
    defined = values[np.isfinite(values)]
    top = float((defined.max() if closer else defined.min()) if defined.size else level)
    start = level if math.isfinite(level) else top
    scale = Scale(start, max(top, start) if closer else min(top, start))
    pairs = found.matrix("n_pairs").to_numpy(float)
    cells = [[f"{words.number(v)}, {_counted(int(k), 'pair')}" for v, k in zip(*both, strict=True)]
             for both in zip(values, pairs, strict=True)]  # fmt: skip
    texts = np.array([[words.number(v) for v in row] for row in values], dtype=object)
    return HeatFrame(
        title="",
        subtitle="",
        names=names,
        values=values,
        texts=texts,
        hover=np.array(cells, dtype=object),
        scale=scale,
        bar=[(0.0, f"chance {words.number(scale.low)}"), (1.0, words.number(scale.high))],
        x_label="within a bin on the diagonal, between bins off it",
        note="",
    )


# --- map of models -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Group:
    """Models of one colour and marker."""

    label: str
    rows: np.ndarray  # places in the table
    color: str
    marker: str


@dataclass(frozen=True, eq=False)
class MapFrame:
    """Models in a plane, coloured by group, or by a number where `scale` is given."""

    title: str
    subtitle: str
    names: list[str]
    points: np.ndarray  # (models, 2)
    hover: list[str]
    groups: list[Group]  # of a number: those that have it, then those that have not
    values: np.ndarray | None
    scale: Scale | None
    bar: list[tuple[float, str]]
    color_label: str
    note: str


NO_VALUE = "#9aa0a8"


def map_frame(found: ModelMap, colour: str = "objective") -> MapFrame:
    """What the map shows; `colour` is a column of its table."""
    table = found.table
    known = [c for c in table.columns if c not in ("model", "x", "y")]
    if colour not in known:
        raise RepalignError(f"the models have no {colour!r}", got=colour, remedy=did_you_mean(colour, known))
    is_number = pd.api.types.is_numeric_dtype(table[colour])
    groups, values, scale, bar, label = (_by_number if is_number else _by_group)(table, colour)
    method = "Metric MDS" if found.method == "mds" else "UMAP"
    kind = {"-log": "−log(alignment)", "one-minus": "1 − alignment", "score": "the measure"}[found.distance]
    stress = "" if math.isnan(found.stress) else f"stress-1 {words.number(found.stress)}, "
    chance = ""
    if found.draws:
        chance = f" (without structure {words.number(found.chance)}, {words.p_sentence(found.pvalue)})"
    hover = [
        "; ".join([str(row["model"]), *(f"{key}: {_shown(row[key])}" for key in known if _shown(row[key]))])
        for row in table.to_dict("records")
    ]
    left = f" Left out, for undefined scores: {', '.join(found.left_out)}." if found.left_out else ""
    failed = "none" if found.violations == 0 else f"{words.number(100 * found.violations)} %"
    return MapFrame(
        title=f"Map of {_counted(found.n, 'model')} by {words.measure_label(found.measure)}",
        subtitle=f"{method} of {kind}; n = {words.count(found.n_stimuli)}; {stress}"
        f"rank correlation of distances {words.number(found.faithfulness)}{chance}",
        names=table["model"].tolist(),
        points=table[["x", "y"]].to_numpy(float),
        hover=hover,
        groups=groups,
        values=values,
        scale=scale,
        bar=bar,
        color_label=label,
        note=f"Only distances have a meaning, not the axes. Of {words.count(found.n_triangles)} triangles of models, "
        f"{failed} violate the triangle inequality.{left}",
    )


def _shown(value: object) -> str:
    if isinstance(value, float):
        return words.number(value) if math.isfinite(value) else ""
    return str(value)


def _label(column: str) -> str:
    known = COMPETENCES.get(column)
    return known.label if known else yardstick_label(column)


def _by_group(
    table: pd.DataFrame, column: str
) -> tuple[list[Group], None, None, list[tuple[float, str]], str]:
    kinds = table[column].tolist()
    groups = []
    for k, kind in enumerate(dict.fromkeys(sorted(kinds, key=lambda v: v == ""))):
        colors, markers = palette.FAMILY_LIGHT, palette.MARKERS
        # Colours come round after eight, then with other markers.
        color = colors[k % len(colors)] if kind else NO_VALUE
        marker = markers[(k + k // len(colors)) % len(markers)] if kind else "circle"
        rows = np.flatnonzero([v == kind for v in kinds])
        groups.append(Group(kind or f"no {column}", rows, color, marker))
    return groups, None, None, [], _label(column)


def _by_number(
    table: pd.DataFrame, column: str
) -> tuple[list[Group], np.ndarray, Scale, list[tuple[float, str]], str]:
    values = table[column].to_numpy(float)
    known = COMPETENCES.get(column)
    defined = values[np.isfinite(values)]
    low, high = (float(defined.min()), float(defined.max())) if defined.size else (0.0, 0.0)
    written = words.parameters if column == PARAMETERS else words.number
    worse, better = (high, low) if known and known.lower_is_better else (low, high)
    scale = Scale(worse, better, log=column == PARAMETERS and low > 0)
    bar = [(0.0, written(worse)), (1.0, written(better))] if low < high else [(0.0, written(low))]
    there, label = np.isfinite(values), _label(column)
    groups = [Group(label, np.flatnonzero(there), "", "circle")]
    if not there.all():
        groups.append(Group(f"no {label}", np.flatnonzero(~there), NO_VALUE, "square"))
    turned = " (lower is better)" if known and known.lower_is_better else ""
    return groups, values, scale, bar, f"{label}{turned}"


# --- agreement ---------------------------------------------------------------------------------


def agreement_frame(found: Agreement) -> HeatFrame:
    """Measures by measures: Spearman's correlation, and a circle where it is no more than chance."""
    names = [words.measure_label(m) for m in found.measures]
    if len(set(names)) < len(names):
        names = list(found.measures)
    rho, p = found.matrix().to_numpy(float), found.matrix("p_bh").to_numpy(float)
    single, pairs = found.matrix("pvalue").to_numpy(float), found.matrix("n_pairs").to_numpy(float)
    low, high = found.matrix("low").to_numpy(float), found.matrix("high").to_numpy(float)
    texts, hover = np.full(rho.shape, "", object), np.full(rho.shape, "", object)
    for i, j in np.ndindex(rho.shape):
        if i == j:
            texts[i, j], hover[i, j] = "1", "the same measure"
            continue
        bare = words.UNDEFINED if math.isnan(rho[i, j]) else f"{rho[i, j]:.2f}".replace("-", "−")
        texts[i, j] = f"○ {bare}" if p[i, j] > ALPHA else bare
        hover[i, j] = (
            f"{words.interval(rho[i, j], low[i, j], high[i, j])}, {words.p_sentence(single[i, j])}, "
            f"{_counted(int(pairs[i, j]), 'pair')}"
        )
    over = "pairs of models" if found.over == "max" else "pairs of layers"
    most = words.count(int(np.nanmax(pairs)))
    mark = "no p: too few reorderings of the models"
    if np.isfinite(p).any():
        mark = f"○ not above chance at α = {ALPHA:g}: models change places (Mantel), false discovery rate over all cells"
    turned = f" Sign turned, so that higher is closer: {', '.join(map(words.measure_label, found.distances))}."
    return HeatFrame(
        title="Do measures agree?",
        subtitle=f"Spearman’s correlation over {most} {over} of {_counted(found.n_models, 'model')}; "
        f"n = {words.count(found.n_stimuli)}",
        names=names,
        values=rho,
        texts=texts,
        hover=hover,
        scale=Scale(0.0, 1.0),
        bar=[(0.0, "≤ 0"), (0.5, "0.5"), (1.0, "1")],
        x_label="",
        note=f"{mark}.{turned if found.distances else ''}",
    )
