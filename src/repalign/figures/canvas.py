"""What drawings have in common: a sheet with a heading, cells in colour, axes, names beside points, the mock stamp.

Only matplotlib's object interface is used: no window, no global state.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from repalign import text as words
from repalign.comparison.conventions import Scale
from repalign.errors import RepalignError, choose
from repalign.figures.palette import ACCENT, FAINT, INK, LIGHT, LIGHT_INK, MUTED, PAPER, RULE, VOID
from repalign.measures import labels_of, measure_among

# How places on a scale, from 0 to 1, are coloured.
COLOURED: dict[str, Any] = {"cmap": ListedColormap(list(LIGHT)).with_extremes(bad=VOID), "vmin": 0, "vmax": 1}
CLOSE = 0.05  # of a colour bar: marks nearer than this share a place
DASHED = (0, (4, 2.5))
TURNED = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
NOTE: dict[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 7, "color": MUTED}
PIXELS = 1000  # of a figure in a notebook, at most
NAME_SIZE, NUMBER_SIZE, LEAST = 7, 7.5, 4  # points: of a name beside its point, of a number in a cell, and its least
CHARACTER = 0.64  # mean width of a digit, of its size
# Where a name may stand, (x, y): -1 it ends before its point, 0 it is centred, 1 it begins after it. The best places first.
PLACES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
LEADER = 2.5  # names farther away than this many radii have a line to their point


Labels = Mapping[str, str] | Sequence[str] | Callable[[str], str]


class Look(TypedDict, total=False):
    """How a figure is wanted: what every function that draws takes beside what it draws.

    ax : axes of yours to draw into; of a figure with several panels a sequence of them. Without, a figure is made.
    figsize : width and height in inches of a figure that is made.
    title : in place of the title that the figure would have; "" for none.
    caption : whether it says what was compared, n, chance and what marks mean; by default only in a figure that is made.
    labels : what models, measures or lines are called: by their names, in their order, or by a function of the name.
    """

    ax: Axes | Sequence[Axes] | None
    figsize: tuple[float, float] | None
    title: str | None
    caption: bool | None
    labels: Labels | None


class Sheet(Figure):
    """A figure that is saved with its text as text, whatever matplotlib is set to, and that a notebook shows."""

    def savefig(self, *given: Any, **options: Any) -> None:
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            super().savefig(*given, **options)

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=min(100, PIXELS / self.get_figwidth()), bbox_inches="tight")
        return data.getvalue()


class Panel(Axes):
    """Axes of a sheet; in a notebook they show it."""

    def _repr_png_(self) -> bytes:
        return sheet_of(self)._repr_png_()


def sheet(
    width: float, height: float, heading: str, rows: int = 1, widths: Sequence[float] = (1,), *,
    above: str | Sequence[str] = (), room: float = 0, below: str = "", panels: int = 0, rules: str = "",
    ax: Axes | Sequence[Axes] | None = None, figsize: tuple[float, float] | None = None, title: str | None = None,
    caption: bool | None = None,
) -> tuple[Any, np.ndarray]:  # fmt: skip
    """A figure with a title above a grid of bare axes, which is returned as an array (rows, columns); or the axes that are given.

    above : what stands above the first axes, or above several, `room` inches wide, by default as wide as the figure.
    below : what the marks mean. panels : how many of the grid there are, by default all. rules : lines behind what is drawn, at
    the ticks of "x", "y" or "both". The others are as in `Look`, whose labels `called` takes.
    """
    panels, heading = panels or rows * len(widths), heading if title is None else title
    told = [above] if isinstance(above, str) else list(above)
    if ax is not None:
        grid = _given(ax, panels, figsize)
        figure = grid.flat[0].figure
    else:
        width, height = figsize or (width, height)
        figure = Sheet(figsize=(width, height), facecolor=PAPER, layout="constrained")
        figure.suptitle(plain(heading), x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
        grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths, subplot_kw={"axes_class": Panel})
        for axes in grid.flat[panels:]:
            axes.remove()
    for axes in grid.flat[:panels]:
        axes.tick_params(which="both", length=0, labelsize=8, colors=INK)
        axes.set_axisbelow(True)
        if rules:
            rule(axes, rules)
        for spine in axes.spines.values():
            spine.set_visible(False)
    if ax is not None:
        _head(grid.flat[0], heading, "\n".join([*told[:1], below]) if caption else "")
        told = ["", *told[1:]] if caption else []
    for axes, text in zip(grid.flat, [] if caption is False else told, strict=False):
        if text:
            axes.set_title(plain(text, 14 * (room or width)), loc="left", fontsize=8, color=MUTED, pad=10)
    if below and ax is None and caption is not False:
        figure.supxlabel(plain(below, 17 * width), **NOTE)
    return figure, grid


@contextmanager
def laid_out(figure: Figure, dpi: float) -> Iterator[Bbox]:
    """Lay a figure out at so many dots an inch, once for all files of it, and give the box around all that it shows, in inches.

    Matplotlib lays a figure out for every file, which takes longer than to draw it.
    """
    engine, before = figure.get_layout_engine(), figure.dpi
    figure.dpi = dpi
    figure.draw_without_rendering()
    box = figure.get_tightbbox().padded(matplotlib.rcParams["savefig.pad_inches"])
    with matplotlib.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # "none" would leave one that asks for a draw before each file
        try:
            yield box
        finally:
            figure.dpi = before
            figure.set_layout_engine(engine)


def settle(figure: Figure) -> None:
    """Put every part of a figure in its place, without drawing it, which takes as long again."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    for axes in figure.axes:
        axes.apply_aspect()


def _given(ax: Any, panels: int, figsize: object) -> np.ndarray:
    """Axes that are given, in one row. Raises RepalignError where they are not as many as there are panels."""
    given = list(np.ravel(np.asarray(ax, dtype=object)))
    if wrong := [type(one).__name__ for one in given if not isinstance(one, Axes)]:
        raise RepalignError("ax has no axes to draw into", expected="matplotlib axes, such as plt.subplots() gives", got=wrong[0])
    if len(given) != panels:
        wanted = "one of axes" if panels == 1 else f"a sequence of {panels} axes"
        raise RepalignError(f"this figure has {words.counted(panels, 'panel')}", expected=f"ax={wanted}", got=f"{len(given)} axes")
    if figsize is not None:
        raise RepalignError("axes that are given have a size", expected="figsize or ax", got=f"both, figsize={figsize}")
    out = np.empty((1, panels), object)
    out[0, :] = given
    return out


def _head(axes: Axes, title: str, caption: str) -> None:
    """The title of axes that are given, with a caption between it and them."""
    caption = plain(caption.strip(), 17 * inches(axes)[0])
    look = {"xycoords": "axes fraction", "xytext": (0, 4), "textcoords": "offset points", "va": "bottom", "annotation_clip": False}
    axes.annotate(caption, (0, 1), fontsize=7, color=MUTED, **look)
    lines = caption.count("\n") + 1 if caption else 0
    axes.set_title(plain(title), loc="left", fontsize=9, fontweight="bold", color=INK, pad=6 + 10 * lines)


def sheet_of(axes: Axes) -> Any:
    """The whole figure that axes are in, also where it has figures in it."""
    return axes.figure.canvas.figure  # type: ignore[union-attr]


def inches(axes: Axes) -> tuple[float, float]:
    """The room of a figure that was made here, or of axes that were given: width and height."""
    whole = sheet_of(axes).get_size_inches()
    box = axes.get_position()
    return tuple(whole) if isinstance(axes.figure, Sheet) else (whole[0] * box.width, whole[1] * box.height)


def has_caption(look: Look) -> bool:
    """Whether a figure says what was compared: as it is asked to, else where it is made here."""
    caption = look.get("caption")
    return look.get("ax") is None if caption is None else caption


def beyond(names: Iterable[str]) -> float:
    """Inches that the longest name needs beyond those that a figure has for names."""
    return 0.075 * max(0, max(map(len, names), default=0) - words.WIDE)


def one_or_all(panels: Sequence[Axes]) -> Axes | list[Axes]:
    """The axes of a figure as its function returns them."""
    return panels[0] if len(panels) == 1 else list(panels)


def called(*sides: Iterable[str], look: Look, what: str = "names") -> dict[str, str]:
    """What the names of a figure are shown as: as its labels say, which are taken out of `look`, else in short.

    sides : names that stand together, such as those of rows and those of columns. what : "names"; "measures", which have labels
    of their own and go by any of their names; "words", which stay as they are.

    Raises RepalignError for labels of names that the figure does not show, and for too few or too many.
    """
    each = [list(dict.fromkeys(side)) for side in sides]
    labels, names = look.pop("labels", None), list(dict.fromkeys(name for side in each for name in side))
    shown = {"names": words.readable, "measures": labels_of, "words": lambda some: {one: one for one in some}}[what](*each)
    if labels is None or callable(labels):
        return shown if labels is None else {name: labels(name) for name in names}
    if isinstance(labels, Mapping):
        given = {(measure_among(name, names) if what == "measures" else name): label for name, label in labels.items()}
        return shown | {choose("name", name, names, f"the figure shows no {name!r}"): label for name, label in given.items()}
    if isinstance(labels, str) or len(labels) != len(names):
        raise RepalignError(
            "labels do not fit the figure", expected=f"{len(names)}, for {words.named(names)}", got=repr(labels),
            remedy="or name those to be changed: labels={'name': 'label'}",
        )  # fmt: skip
    return dict(zip(names, labels, strict=True))


def plain(text: str, characters: float | None = None) -> str:
    """Text that matplotlib does not take for mathematics, broken into lines of so many characters if they are given."""
    lines = text.splitlines() if characters else []
    text = "\n".join(textwrap.fill(line, max(30, int(characters or 0))) for line in lines) or text
    return text.replace("$", r"\$")


def labels(axes: Axes, x: str = "", y: str = "") -> None:
    """What the axes show."""
    axes.set_xlabel(plain(x), fontsize=8, color=INK)
    axes.set_ylabel(plain(y), fontsize=8, color=INK)


def rule(axes: Axes, which: str = "both") -> None:
    """Lines behind what is drawn, at the ticks of "x", "y" or "both"."""
    axes.grid(axis=which, color=RULE, linewidth=0.6)  # type: ignore[arg-type]


def rows(axes: Axes, names: Sequence[str], **look: Any) -> None:
    """A row for each name, the first at the top."""
    axes.set_yticks(range(len(names)), [plain(name) for name in names], **look)
    axes.set_ylim(len(names) - 0.4, -0.6)


def sizes(axes: Axes, values: Iterable[float], rotation: float = 0) -> None:
    """A horizontal axis that grows by factors, with a tick at each of these sizes and no other."""
    ticks = sorted(set(values))
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{v:,.0f}" for v in ticks], rotation=rotation)
    axes.xaxis.set_minor_locator(NullLocator())


def at_end(axes: Axes, text: str, row: float) -> None:
    """A remark beside a row, behind the end of the axes."""
    where: Any = {"xycoords": axes.get_yaxis_transform(), "va": "center", "annotation_clip": False}
    axes.annotate(plain(text), (1.01, row), fontsize=7.5, color=INK, **where)


def after(axes: Axes, text: str, point: tuple[float, float], gap: float = 4) -> None:
    """A number behind its mark, so many points away."""
    axes.annotate(text, point, xytext=(gap, 0), textcoords="offset points", va="center", fontsize=8, color=INK)


def legend_below(axes: Axes, columns: int) -> None:
    """The legend below everything, in fewer columns where these would be wider than the figure; in axes that are given, in them."""
    _, texts = axes.get_legend_handles_labels()
    room = max(1, int(16 * inches(axes)[0] / (6 + max(map(len, texts), default=0))))
    if isinstance(axes.figure, Sheet):
        axes.figure.legend(loc="outside lower left", fontsize=7, frameon=False, ncols=min(columns, room))
    else:
        axes.legend(loc="best", fontsize=7, facecolor=PAPER, edgecolor="none", ncols=min(columns, room, 2))


def stamp(place: Figure | Axes) -> None:
    """Write across a figure, or axes that were given, that it is of a mock run; once, however often it is asked."""
    if isinstance(place, Axes) and isinstance(place.figure, Sheet):
        place = place.figure
    if not any(text.get_gid() == "mock" for text in place.texts):
        look = {"ha": "center", "va": "center", "rotation": 25, "fontweight": "bold", "color": ACCENT, "alpha": 0.4}
        width, height = inches(place) if isinstance(place, Axes) else place.get_size_inches()
        look |= {"transform": place.transAxes if isinstance(place, Axes) else place.transFigure}
        size = float(min(26, 3.0 * width, 6.0 * height))
        place.text(0.5, 0.5, words.MOCK_STAMP, gid="mock", fontsize=size, zorder=10, **look)


# --- cells in colour -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cells:
    """A number for every row and column, and its colours."""

    rows: list[str]
    columns: list[str]
    values: np.ndarray  # nan where undefined
    scale: Scale


class CellText(Text):
    """The number of a cell, as large as the cell allows in the end; none where it could not be read."""

    def __init__(self, x: float, y: float, text: str, most: int, **look: Any):
        super().__init__(x, y, text, fontsize=NUMBER_SIZE, **look)
        self.most = most  # characters of the longest number, so that all are of one size

    def draw(self, renderer: Any) -> None:
        if self.axes is not None:
            corners = self.axes.transData.transform([(0, 0), (1, 1)])
            room = np.abs(corners[1] - corners[0]) * 72 / sheet_of(self.axes).dpi  # of a cell, in points
            size = min(NUMBER_SIZE, room[0] / (CHARACTER * max(self.most, 1)), room[1] / 1.3)
            self.set_fontsize(max(size, 1))
            if size < LEAST:
                return
        super().draw(renderer)


def draw_cells(figure: Any, axes: Axes, cells: Cells, texts: np.ndarray) -> None:
    """Cells with a text each, as far as they have room for one, names at the left and below, and the colour bar."""
    image = axes.imshow(cells.scale.position(cells.values), **COLOURED, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(cells.columns)), [plain(c) for c in cells.columns], **TURNED)
    axes.set_yticks(range(len(cells.rows)), [plain(r) for r in cells.rows])
    axes.set_xticks(np.arange(len(cells.columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(cells.rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=1.5)
    inks = np.array([*LIGHT_INK, MUTED])[cells.scale.steps(cells.values)]  # -1, undefined, takes the last
    most = max(map(len, texts.flat), default=0)
    for (i, j), text in np.ndenumerate(texts):
        axes.add_artist(CellText(j, i, text, most, ha="center", va="center", color=inks[i, j], clip_on=True))
    color_bar(figure, axes, image, cells.scale.marks)


def color_bar(
    figure: Any, axes: Axes, image: Any, marks: Sequence[tuple[float, str]], lines: Sequence[float] = ()
) -> Axes:
    """A colour bar whose ticks are the marks, each a place in [0, 1] and its words, and lines across it.

    Marks too close to be told apart share a place, the higher above.
    """
    kept: list[tuple[float, str]] = []
    for place, text in sorted(marks, key=lambda mark: mark[0]):
        if kept and place - kept[-1][0] < CLOSE:
            kept[-1] = (kept[-1][0], f"{text}\n{kept[-1][1]}")
        else:
            kept.append((place, text))
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=28, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_ticks([p for p, _ in kept], labels=[plain(t) for _, t in kept])
    bar.ax.tick_params(labelsize=7, length=2, colors=INK)
    for place in lines:
        bar.ax.axhline(place, color=ACCENT, linewidth=1.2)
    return bar.ax


# --- ticks -----------------------------------------------------------------------------------------


def ticks(low: float, high: float, count: int = 5, log: bool = False) -> list[tuple[float, str]]:
    """Round numbers within [low, high], about `count` of them, with texts of as many decimals as they need.

    On a logarithmic axis 1, 2 and 5 times powers of ten; powers alone over more than three decades, and plain round
    numbers over less than one.
    """
    locator: Any = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    if log and high / low > 5:
        locator = LogLocator(subs=(1.0,) if high / low > 1000 else (1.0, 2.0, 5.0), numticks=99)
    room = 1e-9 * (high - low)
    found = [t for t in locator.tick_values(low, high) if low - room <= t <= high + room] if high > low else [low]
    values = [float(f"{t:.12g}") for t in found]
    shortest = [f"{v:.10g}" for v in values]
    decimals = max((len(t.partition(".")[2]) for t in shortest if "e" not in t), default=0)
    texts = [f"{v:,.{decimals}f}" if "e" not in t else t for v, t in zip(values, shortest, strict=True)]
    return [(v, text.replace("-", "−")) for v, text in zip(values, texts, strict=True)]


# --- names beside points ---------------------------------------------------------------------------


def place_labels(
    points: np.ndarray, sizes: np.ndarray, radius: float, area: Sequence[float], *, reach: int = 1,
    taken: Iterable[Sequence[float]] = (), apart: bool = False,
) -> list[tuple[float, float] | None]:  # fmt: skip
    """Where each name goes, its lower left corner: the nearest place where it covers no point and no other name.

    None where all places are taken; the name with the fewest places left chooses next.

    points : (n, 2) in pixels, y upwards. sizes : (n, 2) width and height of the names. radius : of the points.
    area : left, low, right and high, within which names must lie. reach : how many times farther than beside its point
    a name may be. taken : boxes (left, low, right, high) that no name may cover. apart : rather a place that is nearer to no
    other point than to its own.
    """
    away = np.array(PLACES, float)
    # Beside the point by its radius; in a corner, by what reaches the circle.
    near = np.where((away != 0).all(1)[:, None], 0.75, 1.15) * radius * away  # (8, 2)
    steps = np.concatenate([near * (1 + k) for k in range(reach)])  # (8 * reach, 2), the nearest first
    shift = np.tile((away - 1) / 2, (reach, 1))
    low = points[:, None] + steps + shift * sizes[:, None]
    boxes = np.concatenate([low, low + sizes[:, None]], axis=2)  # (n, 8 * reach, 4)
    marks = np.concatenate([points - radius, points + radius], axis=1)
    free = np.asarray((low >= area[:2]).all(-1) & (boxes[..., 2:] <= area[2:]).all(-1))
    for box in (*marks, *map(np.asarray, taken)):
        free &= ~_overlap(box, boxes)
    clear = np.ones(free.shape, bool)
    if apart and len(points) > 1:
        beside = np.maximum(boxes[:, :, None, :2] - points, points - boxes[:, :, None, 2:]).clip(0)  # (n, 8 * reach, n, 2)
        gaps = np.hypot(*np.moveaxis(beside, -1, 0)).swapaxes(1, 2)
        own = np.eye(len(points), dtype=bool)
        clear = gaps[own] < gaps[~own].reshape(len(points), len(points) - 1, -1).min(1)
    out: list[tuple[float, float] | None] = [None] * len(points)
    left = set(range(len(points)))
    while left:
        i = min(left, key=lambda k: (free[k].sum(), k))
        left.remove(i)
        at = np.flatnonzero(free[i] & clear[i] if (free[i] & clear[i]).any() else free[i])
        if len(at):
            x, y = low[i, at[0]]
            out[i] = float(x), float(y)
            free &= ~_overlap(boxes[i, at[0]], boxes)
    return out


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the others (..., 4) share an area with the box."""
    return np.asarray(((others[..., :2] < box[2:]) & (others[..., 2:] > box[:2])).all(-1))


def name_points(
    axes: Axes, names: Sequence[str], points: np.ndarray, marker: float, *, reach: int = 1, lines: Any = (), note: str = "",
    caption: bool | None = None,
) -> None:  # fmt: skip
    """Put names beside their points, and say below everything, after the `note`, how many have no room.

    The layout must stand, for room is measured in pixels. marker : diameter of the points. lines : points (n, 2) of the
    data that no name may cover. Names that are farther from their point than others have a line to it.
    """
    look = {"textcoords": "offset points", "fontsize": NAME_SIZE, "color": INK, "zorder": 5}
    texts = [axes.annotate(plain(n), xy, xytext=(0, 0), **look) for n, xy in zip(names, points, strict=True)]
    figure = sheet_of(axes)
    for text in texts:
        text.set_in_layout(False)
    settle(figure)
    pixel = 72 / figure.dpi
    radius = 0.62 * marker / pixel
    at = axes.transData.transform(points)
    # Hinting makes letters a little wider or narrower at another resolution.
    sizes = 1.04 * np.array([text.get_window_extent().size for text in texts])
    taken = [(x - 1, y - 1, x + 1, y + 1) for x, y in axes.transData.transform(lines)] if len(lines) else []
    legend = axes.get_legend()
    taken += [] if legend is None else [legend.get_window_extent().extents]
    places = place_labels(at, sizes, radius, axes.get_window_extent().extents, reach=reach, taken=taken)
    for text, place, size, (x, y) in zip(texts, places, sizes, at, strict=True):
        if place is None:
            text.remove()
            continue
        text.set_position(((place[0] - x) * pixel, (place[1] - y) * pixel))
        gap = np.clip((x, y), place, place + size) - (x, y)
        if math.hypot(*gap) > LEADER * radius:
            ends = axes.transData.inverted().transform([(x, y), place + size / 2])
            axes.plot(*ends.T, color=FAINT, linewidth=0.6, zorder=0.5, label="_")
    unnamed = places.count(None)
    if unnamed and isinstance(figure, Sheet) and caption is not False:
        note = f"{note} {unnamed} name{'s have' if unnamed > 1 else ' has'} no room here.".lstrip()
        figure.supxlabel(plain(note, 17 * figure.get_figwidth()), **NOTE)
