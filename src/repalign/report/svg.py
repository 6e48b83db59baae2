"""Trends as SVG that takes its colours from the page."""

from __future__ import annotations

import math

import numpy as np

from repalign.figures import palette
from repalign.figures.frames import TrendFrame
from repalign.relate import PARAMETERS
from repalign.report.html import Html, el, join
from repalign.text import number, parameters, shorten

CHARACTER = 6.1  # mean width of a character at 11 px, for placing labels
LONGEST = 20  # characters of a name beside a point
CROWDED = 0.6  # overlap, in px per px of width, above which a name is left to the pointer


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """A straight line."""
    return el("line", x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2), class_=class_)


def label(x: float, y: float, content: str, class_: str = "tick", anchor: str = "middle") -> Html:
    """A line of text."""
    return el("text", content, x=_n(x), y=_n(y), class_=class_, text_anchor=anchor)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]; powers only over more than three decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if high / low > 1000 else (1, 2, 5)
    return [s * 10.0**d for d in decades for s in steps if low * 0.999 <= s * 10.0**d <= high * 1.001]


def tick_texts(values: list[float]) -> list[str]:
    """Round numbers with as many decimals as they need, the same for all."""
    shortest = [f"{v:.10g}" for v in values]
    decimals = max((len(t.partition(".")[2]) for t in shortest if "e" not in t), default=0)
    return [
        (f"{v:,.{decimals}f}" if "e" not in t else t).replace("-", "−") for v, t in zip(values, shortest, strict=True)
    ]


def marker(family: int, x: float, y: float, size: float = 5.5) -> Html:
    """A family's mark: colour and shape."""
    class_ = f"mark f{family % len(palette.FAMILY_LIGHT)}"
    shape = palette.MARKERS[family % len(palette.MARKERS)]
    if shape == "circle":
        return el("circle", cx=_n(x), cy=_n(y), r=size, class_=class_)
    corners = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
        "down": [(0, 1.2), (1.15, -0.9), (-1.15, -0.9)],
        "diamond": [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)],
        "plus": _cross(0), "cross": _cross(math.pi / 4), "star": _star(),
    }[shape]  # fmt: skip
    points = " ".join(f"{x + 0.92 * size * a:.1f},{y + 0.92 * size * b:.1f}" for a, b in corners)
    return el("polygon", points=points, class_=class_)


def _cross(turn: float) -> list[tuple[float, float]]:
    arm = [(-0.4, -1.25), (0.4, -1.25), (0.4, -0.4)]
    corners = []
    for quarter in range(4):
        c, s = math.cos(quarter * math.pi / 2 + turn), math.sin(quarter * math.pi / 2 + turn)
        corners += [(c * a - s * b, s * a + c * b) for a, b in arm]
    return corners


def _star() -> list[tuple[float, float]]:
    radii = (1.45, 0.6) * 5
    return [(r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k, r in enumerate(radii)]


# --- trend -------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 360, 68, 16, 14, 48


def trend_svg(frame: TrendFrame) -> Html:
    """The scatter of a trend with its line, its interval and every model's name."""
    points = frame.trend.points
    x, y = points["x"].to_numpy(float), points["alignment"].to_numpy(float)
    u = np.log10(x) if frame.trend.log else x
    low_u, high_u = _padded(u, 0.1)
    low_y, high_y = frame.y_range

    def px(value: np.ndarray | float) -> np.ndarray:
        v = np.log10(value) if frame.trend.log else np.asarray(value, float)
        share = (v - low_u) / (high_u - low_u)
        share = 1 - share if frame.trend.lower_is_better else share
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def py(value: np.ndarray | float) -> np.ndarray:
        return HEIGHT - BOTTOM - (np.asarray(value, float) - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts: list[Html] = []
    up = ticks(low_y, high_y)
    for t, shown in zip(up, tick_texts(up), strict=True):
        at = float(py(t))
        parts += [line(LEFT, at, WIDTH - RIGHT, at, "grid"), label(LEFT - 8, at + 4, shown, anchor="end")]
    along = log_ticks(10**low_u, 10**high_u) if frame.trend.log else ticks(low_u, high_u)
    size = frame.trend.against == PARAMETERS
    for t, text in zip(along, tick_texts(along), strict=True):
        shown = parameters(t).replace(".00", "").replace(".0", "") if size else text
        parts.append(label(float(px(t)), HEIGHT - BOTTOM + 18, shown))
        parts.append(line(float(px(t)), HEIGHT - BOTTOM, float(px(t)), HEIGHT - BOTTOM + 4, "axis"))
    parts.append(line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"))
    parts.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, frame.x_label, "axis-title"))
    parts.append(
        el("text", frame.y_label, class_="axis-title", text_anchor="middle",
           transform=f"translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)")
    )  # fmt: skip
    if frame.trend.has_band:
        outline = [*zip(px(frame.curve_x), py(frame.high), strict=True)]
        outline += reversed([*zip(px(frame.curve_x), py(frame.low), strict=True)])
        parts.append(el("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in outline), class_="band"))
    if frame.trend.fit is not None:
        (x1, x2), (y1, y2) = px(frame.curve_x[[0, -1]]), py(frame.curve[[0, -1]])
        parts.append(line(float(x1), float(y1), float(x2), float(y2), "fit"))
    places = [*zip(px(x).tolist(), py(y).tolist(), strict=True)]
    names = points["model"].tolist()
    scores = [f"{name}: {number(v)}" for name, v in zip(names, y, strict=True)]
    for (a, b), family, score in zip(places, points["family"].tolist(), scores, strict=True):
        parts.append(el("g", el("title", score), marker(frame.families.index(family), a, b)))
    parts += [label(a, b, name, "name", anchor) for name, a, b, anchor in _place(names, places)]
    about = f"{frame.title}. {frame.subtitle}. {frame.trend.text}"
    return el("svg", el("title", about), *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", class_="chart trend")


def _padded(values: np.ndarray, share: float) -> tuple[float, float]:
    """The range of values with a margin; a single value gets a range around it."""
    low, high = float(values.min()), float(values.max())
    margin = share * (high - low) or 0.1 * abs(low) or 1.0
    return low - margin, high + margin


def _place(names: list[str], points: list[tuple[float, float]]) -> list[tuple[str, float, float, str]]:
    """The names that find room and where: the place around its point with the least overlap."""
    taken = [(a - 6, b - 6, a + 6, b + 6) for a, b in points]
    out = []
    for whole, (a, b) in zip(names, points, strict=True):
        name = shorten(whole, LONGEST)
        width = CHARACTER * len(name)
        options = [
            (a + 9, b + 4, "start"), (a - 9, b + 4, "end"), (a, b - 10, "middle"), (a, b + 18, "middle"),
            (a + 8, b - 8, "start"), (a + 8, b + 15, "start"), (a - 8, b - 8, "end"), (a - 8, b + 15, "end"),
        ]  # fmt: skip
        boxes = [_box(x, y, width, anchor) for x, y, anchor in options]
        costs = [sum(_overlap(box, other) for other in taken) + _outside(box) for box in boxes]
        best = min(range(len(options)), key=lambda k: costs[k])
        if costs[best] <= CROWDED * width:
            taken.append(boxes[best])
            out.append((name, *options[best]))
    return out


def _box(x: float, y: float, width: float, anchor: str) -> tuple[float, float, float, float]:
    left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * width
    return left, y - 10, left + width, y + 3


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: tuple[float, ...]) -> float:
    return 50 * (max(0.0, LEFT - box[0]) + max(0.0, box[2] - WIDTH) + max(0.0, TOP - 10 - box[1]))


def legend(frame: TrendFrame) -> Html | None:
    """The families with their marks; none for a single family."""
    if len(frame.families) < 2:
        return None
    keys = [
        el("span", el("svg", marker(k, 8, 8), viewBox="0 0 16 16", class_="key"), family or "no family")
        for k, family in enumerate(frame.families)
    ]
    return el("p", join(keys), class_="legend")
