"""Alignment of models against their size or competence: a point per model, the line and its interval.

`trend_chart.html` draws it in the report, in the page's colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import NullLocator

from repalign import text as words
from repalign.comparison.alignment import Alignment
from repalign.comparison.conventions import SEEDS, Ceiling, Conventions, vertical_range
from repalign.figures import canvas
from repalign.figures.palette import FAINT, FAMILY_LIGHT, INK, MUTED, PAPER, family
from repalign.measures import facts_of
from repalign.models import RELEASED
from repalign.relate import PARAMETERS, Published, Trend, published_points
from repalign.relate.scores import names_of, other_side

GRID = 60  # places at which the line and its interval are drawn
BESIDE = 0.12  # room left and right of the points, in ranges of the points
# Of the report's drawing, in its own units: one is a pixel at full width.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 360, 68, 16, 14, 48
CHARACTER, LINE, BELOW = 6.1, 13, 3  # mean width of a character at 11 px, height of a name, and of it below the line
LONGEST = 20  # characters of a name beside a point


@dataclass(frozen=True, eq=False)
class TrendChart:
    """What the scatter of a trend shows; a family's place is its colour and its marker."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    trend: Trend
    families: list[str]  # in order of appearance
    curve_x: np.ndarray
    curve: np.ndarray
    low: np.ndarray  # of the interval, cut at the ends of y_range
    high: np.ndarray
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: list[tuple[float, str]]
    is_cut: bool  # whether the interval goes on beyond the picture
    published: pd.DataFrame | None  # published points: point, x, alignment
    ending: np.ndarray  # of the curve that ends: x and alignment, (k, 2), up to where it may be read

    @classmethod
    def of(cls, trend: Trend, published: pd.DataFrame | None = None) -> TrendChart:
        """What the scatter of a trend shows; `published` are published points."""
        points, log = trend.points, trend.log
        x, y = points["x"].to_numpy(float), points["alignment"].to_numpy(float)
        grid = np.geomspace(x.min(), x.max(), GRID) if log else np.linspace(x.min(), x.max(), GRID)
        low, high = trend.band(grid)
        laid = np.empty((0, 2)) if published is None else published[["x", "alignment"]].to_numpy(float)
        ending = _ending(trend, x)
        shown = np.concatenate([y, laid[:, 1], trend.predict(grid), ending[:, 1]])
        bottom, top = vertical_range(shown, np.concatenate([low, high]))
        u = np.concatenate([x, laid[:, 0], ending[:, 0]])
        u = np.log10(u) if log else u
        margin = BESIDE * float(np.ptp(u)) or 0.1 * abs(float(u[0])) or 1.0
        left, right = (float(10**v if log else v) for v in (u.min() - margin, u.max() + margin))
        marks = canvas.ticks(left, right, log=log)
        if trend.against == PARAMETERS:
            marks = [(t, words.parameters(t).replace(".00", "").replace(".0", "")) for t, _ in marks]
        elif trend.against == RELEASED:
            marks = [(t, text.replace(",", "")) for t, text in marks]
        better = " (lower is better; axis reversed)" if trend.lower_is_better else ""
        partners = max(points["n_partners"].tolist())
        over = f"each the mean over {words.counted(partners, 'partner')}; n = {trend.n_stimuli:,}"
        return cls(
            title=f"{trend.label} and alignment",
            subtitle=f"{facts_of(trend.measure).label}; {words.counted(trend.n, 'model')}, {over}",
            x_label=f"{trend.label}{', log scale' if log else ''}{better}",
            y_label=f"Alignment (chance {words.number(float(points['chance'].to_numpy().mean()))})", trend=trend,
            families=list(dict.fromkeys(points["family"])), curve_x=grid, curve=trend.predict(grid),
            low=np.clip(low, bottom, top), high=np.clip(high, bottom, top), x_range=(left, right),
            y_range=(bottom, top), x_ticks=marks, is_cut=bool((low < bottom).any() or (high > top).any()),
            published=published, ending=ending,
        )  # fmt: skip

    def drawing(self) -> dict[str, Any]:
        """The report's chart: everything in the drawing's own units, y downwards."""
        low, high = np.log10(self.x_range) if self.trend.log else self.x_range
        bottom, top = self.y_range

        def place(x: Any, y: Any) -> np.ndarray:
            u = np.log10(x) if self.trend.log else np.asarray(x, float)
            share = (u - low) / (high - low)
            share = 1 - share if self.trend.lower_is_better else share
            across, down = LEFT + share * (WIDTH - LEFT - RIGHT), (np.asarray(y, float) - bottom) / (top - bottom)
            return np.stack(np.broadcast_arrays(across, HEIGHT - BOTTOM - down * (HEIGHT - TOP - BOTTOM)), -1)

        points = self.trend.points
        at, names = place(points["x"].to_numpy(float), points["alignment"].to_numpy(float)), points["model"].tolist()
        short = list(words.readable(names, length=LONGEST).values())
        sizes = np.array([[CHARACTER * len(name), LINE] for name in short])
        area = (LEFT, BOTTOM - HEIGHT, WIDTH, 10 - TOP)
        along = place(self.curve_x, self.curve) * (1, -1) if self.trend.fit is not None else []  # y upwards for the names
        taken = [(x - 1, y - 1, x + 1, y + 1) for x, y in along]
        spots = canvas.place_labels(at * (1, -1), sizes, 7, area, reach=3, taken=taken)
        rows = zip(names, at, points["family"], points["alignment"], short, spots, sizes[:, 0], strict=True)
        marks = canvas.ticks(bottom, top)
        line = np.linspace(0, GRID - 1, 2).astype(int)
        return {
            "x_ticks": [(place(t, bottom)[0], text) for t, text in self.x_ticks],
            "y_ticks": [(place(self.x_range[0], t)[1], text) for t, text in marks],
            "band": [*place(self.curve_x, self.high), *place(self.curve_x, self.low)[::-1]] if self.trend.has_band else [],
            "line": place(self.curve_x[line], self.curve[line]) if self.trend.fit is not None else None,
            "points": [
                {"model": name, "family": self.families.index(f), "at": xy, "score": words.number(y), "name": label,
                 "spot": None if spot is None else _anchored(spot, wide, xy[0])}
                for name, xy, f, y, label, spot, wide in rows
            ],
        }  # fmt: skip


def _ending(trend: Trend, x: np.ndarray) -> np.ndarray:
    """Points along the curve that ends, from the worst model to as far as it may be read; none without one that bends."""
    bent = trend.saturation
    if bent is None or isinstance(bent, str) or not bent.bends:
        return np.empty((0, 2))
    ends = (bent.limit, x.max()) if bent.lower_is_better else (x.min(), bent.limit)
    along = np.clip(np.geomspace(*ends, GRID) if trend.log else np.linspace(*ends, GRID), *ends)
    return np.column_stack([along, bent.predict(along)])


def _draw_ending(axes: Axes, made: TrendChart, ceilings: Sequence[Ceiling]) -> None:
    """The curve, dotted beyond the best model; where it ends, with its interval; the best two trainings of one model."""
    bent, points = made.trend.saturation, made.trend.points["x"].to_numpy(float)
    if not len(made.ending) or bent is None or isinstance(bent, str):
        return
    x, y = made.ending.T
    seen = (x >= points.min()) & (x <= points.max())
    does = ", no better than the line" * bent.line_does
    axes.plot(x[seen], y[seen], color=FAMILY_LIGHT[5], linewidth=1.3, label=f"a curve that ends{does}")
    axes.plot(x, y, color=FAMILY_LIGHT[5], linewidth=1.3, linestyle=":")
    bottom, top = made.y_range
    label = f"its end: {words.number(bent.end)}"
    if bent.end <= top:
        axes.axhline(bent.end, color=FAMILY_LIGHT[5], linewidth=0.9, linestyle=canvas.DASHED, label=label)
    else:
        axes.plot([], [], color=FAMILY_LIGHT[5], linewidth=0.9, linestyle=canvas.DASHED, label=f"{label}, above the picture")
    low, high = (float(np.clip(v, bottom, top)) for v in (bent.low, bent.high))
    if high > low:
        ends = "no upper end" if np.isinf(bent.high) else words.number(bent.high)
        told = f"95 % interval of its end: {words.number(bent.low)} to {ends}"
        axes.axhspan(low, high, color=FAMILY_LIGHT[5], alpha=0.07, linewidth=0, label=told)
    own = [c for c in ceilings if (c.measure, c.kind, c.n) == (made.trend.measure, SEEDS, made.trend.n_stimuli)]
    if own:
        told = f"{own[0].source(own[0].n)}: {words.number(own[0].statistic)}"
        if own[0].statistic <= top:
            axes.axhline(own[0].statistic, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), label=told)
        else:
            axes.plot([], [], color=INK, linewidth=0.9, linestyle=(0, (1, 2)), label=f"{told}, above the picture")


def _anchored(spot: tuple[float, float], wide: float, x: float) -> tuple[float, float, str]:
    """Where a name stands, held at the side of its point at x: no browser's letters are as wide as was reckoned."""
    left, low = spot
    if left > x:
        return left, -low - BELOW, "start"
    return (left + wide, -low - BELOW, "end") if left + wide < x else (left + wide / 2, -low - BELOW, "middle")


def outline(k: int, size: float) -> tuple[str, list[tuple[float, float]]]:
    """The class of a family's colour, and the corners of its marker around 0, y downwards; none for a circle."""
    code = family(k)[1]
    style = MarkerStyle(code)
    corners = np.asarray(style.get_path().transformed(style.get_transform()).to_polygons()[0])
    return f"f{k % len(FAMILY_LIGHT)}", [] if code == "o" else [(2 * size * x, -2 * size * y) for x, y in corners]


def draw(
    found: Trend, *, table: pd.DataFrame, published: Published | None = None, alignment: Alignment | None = None,
    **look: Unpack[canvas.Look],
) -> Axes:  # fmt: skip
    """The trend of a result's `table`; published scores with the same partners lie over ours, hollow and grey.

    A curve that ends stands beside the ceilings of the run of `alignment`: what two trainings of one model reach.
    """
    laid = None
    if published is not None:
        pairs = table.loc[(table["scope"] == "max") & (table["measure"] == found.measure)]
        laid = published_points(found, published, names_of(pairs, other_side(found.side)))
    made = TrendChart.of(found, laid)
    names = canvas.called(found.points["model"], filter(None, made.families), look=look)
    _, ((axes,),) = canvas.sheet(6.4, 4.6, made.title, above=made.subtitle, **look)
    canvas.rule(axes)
    if found.log:
        axes.set_xscale("log")
    if found.has_band:
        label = "95 % interval of the line" + ", cut at the edge" * made.is_cut
        axes.fill_between(made.curve_x, made.low, made.high, color=FAINT, alpha=0.25, linewidth=0, label=label)
    if found.fit is not None:
        axes.plot(made.curve_x, made.curve, color=MUTED, linewidth=1.3)
    _draw_ending(axes, made, [] if alignment is None else list(Conventions.of(alignment.run).ceilings))
    dots: Mapping[str, Any] = {"linestyle": "none", "markersize": 7}
    for k, name in enumerate(made.families):
        rows, (color, marker) = found.points.loc[found.points["family"] == name], family(k)
        at = rows["x"].to_numpy(), rows["alignment"].to_numpy()
        label = canvas.plain(names.get(name, "no family"))
        axes.plot(*at, **dots, marker=marker, color=color, markeredgecolor=PAPER, label=label)
    if made.published is not None:
        at = (made.published[c].to_numpy(float) for c in ("x", "alignment"))
        label = "published" + " (none of these pairs)" * made.published.empty
        axes.plot(*at, **dots, marker="o", markerfacecolor="none", markeredgecolor=FAINT, label=label)
    axes.set_xlim(made.x_range[:: -1 if found.lower_is_better else 1])
    axes.set_ylim(made.y_range)
    axes.set_xticks([t for t, _ in made.x_ticks], [text for _, text in made.x_ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    canvas.labels(axes, made.x_label, made.y_label)
    axes.legend(fontsize=7, frameon=False, loc="best")
    points = found.points[["x", "alignment"]].to_numpy(float)
    drawn = [] if made.published is None else made.published[["x", "alignment"]].to_numpy(float).tolist()
    lines = [*drawn, *np.column_stack([made.curve_x, made.curve]).tolist()] if found.fit is not None else drawn
    shown = [names[model] for model in found.points["model"]]
    canvas.name_points(axes, shown, points, 7, reach=14, lines=lines, caption=look.get("caption"))
    return axes
