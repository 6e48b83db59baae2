"""Every colour, for light paper and for dark: figures, page and script take theirs from here.

Lightness is monotone along a ramp, so that it reads without colour and in print; its start is near the background, so
that chance looks like nothing. Family colours are after Okabe & Ito 2008, told apart by marker too.
"""

from __future__ import annotations

from repalign.comparison.conventions import STEPS as STEPS

# Each ramp is linear in OKLab (Ottosson 2020), in which equal steps look equal, between eight stops.
LIGHT = (
    "#f6f3ea", "#f0f1e5", "#eaefdf", "#e4edda", "#dfebd4", "#d6e7d0", "#cae3cc", "#bfdec8",
    "#b3d9c3", "#a7d4bf", "#98cdbb", "#8ac6b7", "#7abeb3", "#6bb7ae", "#5eafab", "#52a6a8",
    "#469da5", "#3994a2", "#2e8b9f", "#2a839c", "#267a98", "#237194", "#1f6891", "#1f608b",
    "#1e5885", "#1e507f", "#1d4879", "#1d3f72", "#1d3767", "#1c2f5d", "#1b2754", "#191f4a",
)  # fmt: skip
DARK = (
    "#242a32", "#232d38", "#23303f", "#223446", "#21374c", "#203c53", "#20425a", "#1f4962",
    "#1e4f69", "#1d5671", "#1e5d77", "#1f647c", "#1f6c82", "#207388", "#257b8c", "#2b838e",
    "#328b90", "#389392", "#419b93", "#50a393", "#5dab94", "#6ab293", "#76ba93", "#86c195",
    "#96c897", "#a5d099", "#b4d79b", "#c3dd9f", "#d0e2a5", "#dee8ab", "#ebedb2", "#f8f2b8",
)  # fmt: skip
# Text on each step: black or white, whichever contrasts more (at least 4.5 to 1).
LIGHT_INK = ("#000000",) * 20 + ("#ffffff",) * 12
DARK_INK = ("#ffffff",) * 15 + ("#000000",) * 17

# In an order that keeps neighbours apart; the second set is lightened for dark paper.
FAMILY_LIGHT = ("#0072b2", "#d55e00", "#007a5a", "#b0568c", "#a67c00", "#3d8fc4", "#4d4d4d", "#8a5a2b")
FAMILY_DARK = ("#56b4e9", "#ff8f45", "#2fc799", "#e39ac4", "#e6c229", "#9ecbee", "#c4c4c4", "#cf9b66")
MARKERS = ("o", "s", "^", "D", "X", "v", "P", "*")  # as matplotlib calls them

PAGE_LIGHT = {
    "paper": "#fbfaf6", "card": "#ffffff", "ink": "#1c2127", "soft": "#5b626b", "faint": "#8a9099", "rule": "#e3dfd4",
    "accent": "#0f5c7a", "wash": "#eef3f2", "best": "#c8324a", "warn": "#8a5200", "warn-wash": "#fbf1de", "void": "#e9e7e1",
    "shadow": "0 1px 2px rgb(40 36 24 / 6%), 0 6px 24px rgb(40 36 24 / 5%)",
}  # fmt: skip
PAGE_DARK = {
    "paper": "#14171b", "card": "#1b1f24", "ink": "#e8e5de", "soft": "#a7adb5", "faint": "#7d848d", "rule": "#30363d",
    "accent": "#79c3d6", "wash": "#20272c", "best": "#ff7b8e", "warn": "#f0bd6b", "warn-wash": "#2c2618", "void": "#2b2f35",
    "shadow": "none",
}  # fmt: skip

# Of figures on white paper: the page's own.
PAPER, INK, MUTED, FAINT, RULE, VOID = (PAGE_LIGHT[k] for k in ("card", "ink", "soft", "faint", "rule", "void"))
SCORE, ACCENT = PAGE_LIGHT["accent"], PAGE_LIGHT["best"]


def family(k: int) -> tuple[str, str]:
    """Colour and marker of the k-th family: after eight, colours come round with other markers."""
    return FAMILY_LIGHT[k % len(FAMILY_LIGHT)], MARKERS[(k + k // len(MARKERS)) % len(MARKERS)]
