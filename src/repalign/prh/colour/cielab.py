"""Colours as perception has them: sRGB to CIELAB, and the names of colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repalign.errors import RepalignError, did_you_mean

# Linear sRGB to XYZ (IEC 61966-2-1, amendment 1); the white point is the image of (1, 1, 1), D65 for the 2 degree observer.
_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
WHITE = _TO_XYZ.sum(axis=1)

# The eleven basic colour terms (Berlin & Kay 1969), and nine more single words that English speakers name freely. The
# paper's twenty words, from naming data that are not public, are not stated.
BASIC = ("black", "white", "grey", "red", "green", "yellow", "blue", "brown", "orange", "pink", "purple")
WORDS = (*BASIC, "beige", "gold", "lavender", "lime", "maroon", "peach", "tan", "teal", "turquoise")


def cielab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB coordinates of sRGB colours.

    L = 116 f(Y/Yn) - 16, a = 500 (f(X/Xn) - f(Y/Yn)), b = 200 (f(Y/Yn) - f(Z/Zn)), with f(t) = t^(1/3) above (6/29)^3 and
    t / (3 (6/29)^2) + 4/29 below, of the XYZ values of the linearised colour, under D65 and the 2 degree observer.

    Shape (..., 3) of sRGB in [0, 1], to (..., 3): L in [0, 100], a and b about [-110, 110]. Euclidean distances of the
    result are the colour difference Delta E*ab of 1976. Raises RepalignError for values outside [0, 1].

    Source: IEC 61966-2-1 (sRGB), CIE 15:2004 (CIELAB).

    >>> [float(v) for v in cielab(np.array([1.0, 0.0, 0.0])).round(2)]
    [53.24, 80.09, 67.2]
    """
    rgb = np.asarray(rgb, float)
    if rgb.shape[-1:] != (3,) or not ((rgb >= 0) & (rgb <= 1)).all():
        raise RepalignError("not sRGB colours", expected="shape (..., 3) with values in [0, 1]", got=f"shape {rgb.shape}")
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _TO_XYZ.T / WHITE
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def named_colours(words: Sequence[str] = WORDS) -> np.ndarray:
    """sRGB in [0, 1] (n, 3) of colour words, as people set them in the xkcd colour survey (954 names, CC0).

    "all" single words of the survey: `single_words()`. Raises RepalignError for a word that is not in it, or twice.
    """
    known = _survey()
    for word in words:
        if word not in known:
            raise RepalignError(f"unknown colour word {word!r}", got=word, remedy=did_you_mean(word, known))
    if len(set(words)) != len(words):
        raise RepalignError("a colour word stands twice", expected="distinct words", got=sorted(words))
    return np.array([[int(known[w][i : i + 2], 16) / 255 for i in (1, 3, 5)] for w in words])


def single_words() -> tuple[str, ...]:
    """All names of the survey that are one word."""
    return tuple(sorted(w for w in _survey() if w.isalpha()))


def _survey() -> dict[str, str]:
    from matplotlib.colors import XKCD_COLORS

    return {name.removeprefix("xkcd:"): str(value) for name, value in XKCD_COLORS.items()}
