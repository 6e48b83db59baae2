"""The page's colours, for light, dark and print, as CSS custom properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repalign.figures import palette

_LIGHT = {
    "paper": "#fbfaf6",
    "card": "#ffffff",
    "ink": "#1c2127",
    "soft": "#5b626b",
    "faint": "#8a9099",
    "rule": "#e3dfd4",
    "accent": "#0f5c7a",
    "wash": "#eef3f2",
    "best": "#c8324a",
    "warn": "#8a5200",
    "warn-wash": "#fbf1de",
    "void": "#e9e7e1",
    "shadow": "0 1px 2px rgb(40 36 24 / 6%), 0 6px 24px rgb(40 36 24 / 5%)",
}
_DARK = {
    "paper": "#14171b",
    "card": "#1b1f24",
    "ink": "#e8e5de",
    "soft": "#a7adb5",
    "faint": "#7d848d",
    "rule": "#30363d",
    "accent": "#79c3d6",
    "wash": "#20272c",
    "best": "#ff7b8e",
    "warn": "#f0bd6b",
    "warn-wash": "#2c2618",
    "void": "#2b2f35",
    "shadow": "none",
}


def _properties(base: Mapping[str, str], ramp: Sequence[str], families: Sequence[str], scheme: str) -> str:
    pairs = [(key, value) for key, value in base.items()]
    pairs += [(f"q{i}", c) for i, c in enumerate(ramp)]
    pairs += [(f"i{i}", palette.ink_on(c)) for i, c in enumerate(ramp)]
    pairs += [(f"f{i}", c) for i, c in enumerate(families)]
    return f"color-scheme:{scheme};" + "".join(f"--{key}:{value};" for key, value in pairs)


def css() -> str:
    """Custom properties per theme, and a class for every step of the palette and every family."""
    light = _properties(_LIGHT, palette.LIGHT, palette.FAMILY_LIGHT, "light")
    dark = _properties(_DARK, palette.DARK, palette.FAMILY_DARK, "dark")
    steps = "".join(f".q{i}{{--q:var(--q{i});--qi:var(--i{i})}}" for i in range(palette.STEPS))
    families = "".join(f".f{i}{{--f:var(--f{i})}}" for i in range(len(palette.FAMILY_LIGHT)))
    ramp = ",".join(f"var(--q{i})" for i in range(palette.STEPS))
    return (
        f":root{{{light}}}"
        f'@media (prefers-color-scheme:dark){{:root:not([data-theme="light"]){{{dark}}}}}'
        f':root[data-theme="dark"]{{{dark}}}'
        f"@media print{{:root:root:root{{{light}}}}}"
        f"{steps}.qx{{--q:var(--void);--qi:var(--faint)}}{families}.ramp{{background:linear-gradient(90deg,{ramp})}}"
    )
