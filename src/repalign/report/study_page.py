"""The page of a study: its figures in the file's order, each with what it says, and the way to the full reports."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repalign.files import seal_html, write_text
from repalign.report import texts, theme
from repalign.report.html import Html, el, join

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_study_page(
    path: Path,
    name: str,
    description: str | None,
    drawn: Sequence[Any],
    pictures: Sequence[Path | None],
    reports: Mapping[str, Path],
    skipped: Sequence[tuple[str, str]] = (),
    *,
    is_mock: bool = False,
) -> Path:
    """Write one self-contained HTML file, by rename, and return its path.

    `drawn` are figures with a title and a text, `pictures` their SVG files, None for one that could not be drawn; `reports` the
    reports of the variants by name; `skipped` the models that are left out, with the reason. The page of a mock run says so.
    """
    values = {
        "policy": POLICY,
        **texts.mock_marks(is_mock),
        "title": f"{'MOCK: ' * is_mock}{name} · study",
        "style": Html(theme.css() + texts.asset("style.css")),
        "name": name,
        "description": el("p", description, class_="lede") if description else "",
        "skipped": _skipped(skipped),
        "figures": join(_figure(*both) for both in zip(drawn, pictures, strict=True)),
        "reports": el("ul", *(el("li", el("a", label, href=_seen(file, path.parent))) for label, file in reports.items())),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, seal_html(texts.fill("study.html", values)))
    return path


def _seen(file: Path, folder: Path) -> str:
    """A file as seen from the page's folder, so that both can be moved together."""
    return Path(os.path.relpath(file, folder)).as_posix()


def _figure(one: Any, picture: Path | None) -> Html:
    image = None
    if picture is not None:
        drawing = base64.b64encode(picture.read_bytes()).decode()
        image = el("img", src=f"data:image/svg+xml;base64,{drawing}", alt=one.title)
    said = el("pre", one.text) if "\n" in one.text else el("figcaption", one.text)  # a small table keeps its columns
    return el("figure", el("h2", one.title), image, said, class_="study")


def _skipped(skipped: Sequence[tuple[str, str]]) -> Html | str:
    if not skipped:
        return ""
    each = [el("li", el("b", model), f": {reason}") for model, reason in skipped]
    return el("div", el("p", "Models that were left out:"), el("ul", *each), class_="callout")
