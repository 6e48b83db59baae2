"""Colours: one sequential ramp for light paper and its twin for dark, and a set for families.

Lightness is monotone along a ramp, so that it reads without colour and in print; its start is near the
background, so that chance looks like nothing. Family colours are after Okabe & Ito, told apart by marker too.
"""

from __future__ import annotations

from collections.abc import Sequence

STEPS = 32

_LIGHT = ("#f6f3ea", "#dcead2", "#a9d5c0", "#66b5ad", "#2f8ea0", "#1f6790", "#1d4376", "#191f4a")
_DARK = ("#242a32", "#20384f", "#1d5570", "#20758a", "#3d9993", "#78bb93", "#bddb9c", "#f8f2b8")

# Okabe & Ito 2008, in an order that keeps neighbours apart; the second set is lightened for dark paper.
FAMILY_LIGHT = ("#0072b2", "#d55e00", "#007a5a", "#b0568c", "#a67c00", "#3d8fc4", "#4d4d4d", "#8a5a2b")
FAMILY_DARK = ("#56b4e9", "#ff8f45", "#2fc799", "#e39ac4", "#e6c229", "#9ecbee", "#c4c4c4", "#cf9b66")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "down", "plus", "star")

Color = tuple[float, float, float]


def _linear(u: float) -> float:
    return u / 12.92 if u <= 0.04045 else ((u + 0.055) / 1.055) ** 2.4


def _gamma(u: float) -> float:
    u = min(max(u, 0.0), 1.0)
    return 12.92 * u if u <= 0.0031308 else 1.055 * u ** (1 / 2.4) - 0.055


def _root(u: float) -> float:
    return u ** (1 / 3)


def _rgb(color: str) -> Color:
    r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return r, g, b


def _to_oklab(color: str) -> Color:
    """OKLab (Ottosson 2020), in which equal steps look equal."""
    r, g, b = (_linear(u) for u in _rgb(color))
    l = _root(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b)  # noqa: E741
    m = _root(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b)
    s = _root(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b)
    return (
        0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s,
        1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s,
        0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s,
    )


def _from_oklab(lab: Color) -> str:
    light, a, b = lab
    l = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3  # noqa: E741
    m = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    rgb = (
        4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
        -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
    )
    return "#" + "".join(f"{round(255 * _gamma(u)):02x}" for u in rgb)


def _ramp(stops: Sequence[str]) -> tuple[str, ...]:
    """STEPS colours, linear in OKLab between evenly spaced stops."""
    labs = [_to_oklab(c) for c in stops]
    out = []
    for step in range(STEPS):
        at = step / (STEPS - 1) * (len(labs) - 1)
        i = min(int(at), len(labs) - 2)
        share = at - i
        a, b = labs[i], labs[i + 1]
        out.append(
            _from_oklab((a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), a[2] + share * (b[2] - a[2])))
        )
    return tuple(out)


LIGHT = _ramp(_LIGHT)
DARK = _ramp(_DARK)


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.1), from 0 to 1."""
    r, g, b = (_linear(u) for u in _rgb(color))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def ink_on(color: str) -> str:
    """Black or white, whichever contrasts more with a background: at least 4.5 to 1."""
    y = luminance(color)
    dark, light = "#000000", "#ffffff"
    return dark if (y + 0.05) / (luminance(dark) + 0.05) >= 1.05 / (y + 0.05) else light
