"""Elements that escape whatever they hold: a model's name is text, never markup."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Html(str):
    """Markup that has been escaped where it had to be."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as escaped text; markup stays."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts one after the other, each escaped unless it is markup; None is left out."""
    return Html(between.join(text(p) for p in parts if p is not None))


def el(name: str, *children: object, **attributes: Any) -> Html:
    """An element. `class_` is written class, `data_x` data-x; None is left out, True stands bare.

    >>> el("td", "<b>", class_="num", data_x=1)
    '<td class="num" data-x="1">&lt;b&gt;</td>'
    """
    out = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            out.append(key)
        elif value is not None and value is not False:
            out.append(f'{key}="{text(value)}"')
    head = f"<{' '.join(out)}>"
    return Html(head) if name in VOID else Html(f"{head}{join(children)}</{name}>")


def data_script(identifier: str, value: object) -> Html:
    """Data for the page's script, which nothing in the data can leave: `<` never stands in it."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    safe = body.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Html(f'<script type="application/json" id="{text(identifier)}">{safe}</script>')
