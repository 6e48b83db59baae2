"""The page: sections in the order in which a reader asks, one file with no outside reference."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from repalign import text as words
from repalign.comparison.alignment import TABLE_FILE, Alignment, is_mock
from repalign.errors import RepalignError
from repalign.figures.conventions import Reading
from repalign.figures.frames import null_frame, trend_frame
from repalign.figures.quantities import draws_of, measures_of
from repalign.files import seal_html, write_text
from repalign.relate import MIN_MODELS_LINE, Trend, sides_of, trend, yardsticks
from repalign.report import answer, compared, payload, svg, texts, theme
from repalign.report.html import Html, el, join
from repalign.report.rows import MOST, null_rows
from repalign.text import Progress, silent

log = logging.getLogger(__name__)

# The page may run its own script and nothing else, and fetch nothing at all.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src '{digest}'"


def write_report(
    results: str | Path, out: str | Path, *, static: str | Path | None = None, progress: Progress = silent
) -> Path:
    """Read a results folder and write the report, one self-contained HTML file, by rename.

    `out` is a file, or a folder in which `report.html` is written. With `static`, a folder, all figures are
    also written there as SVG and PNG.

    Raises RepalignError if the folder holds no finished result, or the file cannot be written.
    """
    alignment = Alignment.load(results)
    out = Path(out)
    path = out / "report.html" if out.is_dir() else out
    progress("report", 0, 1)
    page = render(alignment.table, alignment.run, _beside(Path(results) / TABLE_FILE, path.parent))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, seal_html(page))
    progress("report", 1, 1)
    if static is not None:
        from repalign.report.figures import write_figures

        write_figures(alignment, Path(static), progress)
    return path


def _beside(file: Path, folder: Path) -> str:
    """A file as seen from the report's folder, so that both can be moved together."""
    return os.path.relpath(file.resolve(), folder.resolve())


def render(table: pd.DataFrame, run: Mapping[str, Any], where: str = TABLE_FILE) -> str:
    """The whole page as a string; `where` names the file that holds the full table."""
    if not (table["scope"] == "max").to_numpy().any():
        raise RepalignError("the result has no pairs of models", expected="rows of scope 'max'", got="none")
    reading = Reading.of(run)
    script = Html(texts.asset("app.js"))
    digest = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    name = run.get("name") or (run.get("dataset") or {}).get("name") or "Alignment"
    pairs = table.loc[table["scope"] == "max"].reset_index(drop=True)
    values = {
        "policy": POLICY.format(digest=digest),
        **texts.mock_marks(is_mock(table)),
        "title": f"{'MOCK: ' * is_mock(table)}{name} · alignment",
        "style": Html(theme.css() + texts.asset("style.css")),
        "name": name,
        "measure": _measure_choice(table),
        "answer": _answer(table, run, reading),
        "compared": join([compared.facts(table, run, reading), compared.models(run)]),
        "chance": _by_measure(table, lambda m: _null(pairs, m, reading)),
        "trends": _by_measure(table, lambda m: _trends(pairs, run, m)),
        "notes": texts.how_to_read(run, reading, draws_of(pairs)),
        "limits": _limits(run, table, where),
        "where": where,
        "version": f"repalign {run.get('repalign') or ''}".strip(),
        "data": join(payload.scripts(table, run, reading)),
        "script": script,
    }
    return texts.fill("template.html", values)


def _measure_choice(table: pd.DataFrame) -> Html:
    options = [el("option", words.measure_label(m), value=i) for i, m in enumerate(measures_of(table))]
    return el(
        "label",
        el("span", "Measure"),
        el("select", *options, id="measure"),
        class_="choose",
        hidden=len(options) < 2,
    )


def _answer(table: pd.DataFrame, run: Mapping[str, Any], reading: Reading) -> Html:
    found = answer.answers(table, reading)
    described = run.get("dataset") or {}
    dataset = str(described.get("name") or table["dataset"].tolist()[0])
    warnings = list(run.get("warnings") or [])
    plural = "s" * (len(warnings) != 1)
    note = el("p", el("a", f"{len(warnings)} warning{plural}", href="#limits"), " to read first.", class_="callout")
    return join(
        [
            el("h1", answer.headline(found[0])),
            el("p", answer.lede(found[0], dataset, reading), class_="lede"),
            note if warnings else None,
            answer.cards(found),
        ]
    )


def _by_measure(table: pd.DataFrame, draw: Any) -> Html:
    """One block per measure, of which the script shows the chosen one."""
    return join(el("div", draw(m), class_="by-measure", data_measure=i) for i, m in enumerate(measures_of(table)))


def _null(pairs: pd.DataFrame, measure: str, reading: Reading) -> Html:
    frame = null_frame(pairs, measure, reading)
    undefined = f" {frame.n_undefined} undefined pairs are not shown." if frame.n_undefined else ""
    hollow = frame.note.removeprefix("○ ")
    rest = len(frame.observed) - MOST
    more = f" The {words.count(rest)} pairs below are in the table." if rest > 0 else ""
    high = "; ".join(f"{words.number(value)} ({source})" for value, source in frame.ceilings)
    ceiling = f" Dashed: ceiling {high}." if high else ""
    about = f"{words.measure_label(measure)}; {frame.subtitle}. Hollow: {hollow}.{ceiling}{undefined}{more}"
    if not len(frame.observed):
        return el("p", about)
    return join([null_rows(frame), el("p", about, class_="caption")])


def _trends(pairs: pd.DataFrame, run: Mapping[str, Any], measure: str) -> Html:
    n, drawn, small = max(pairs["n"].tolist()), [], []
    for found, who in _all_trends(pairs, run, measure):
        if found.n >= MIN_MODELS_LINE:
            drawn.append(_trend_figure(found, n, who))
        else:
            small.append(f"{found.label} of {who} (known for {found.n})")
    few = f"Not drawn, for fewer than {MIN_MODELS_LINE} models: {'; '.join(small)}." if small else None
    if not drawn and not small:
        few = "No parameter counts or scores are known for two models or more of a side."
    figures = el("div", *drawn, class_="figures") if drawn else None
    return join([figures, el("p", few, class_="caption") if few else None])


def _all_trends(pairs: pd.DataFrame, run: Mapping[str, Any], measure: str) -> list[tuple[Trend, str]]:
    models, out = list(run.get("models") or []), []
    rows = pairs.loc[pairs["measure"] == measure]
    defined = rows.loc[rows["statistic"].notna()]
    for side in sides_of(run):
        columns = ("model_x", "model_y") if side == "both" else (f"model_{side}",)
        names = list(dict.fromkeys(name for column in columns for name in defined[column]))
        for against in yardsticks(models, names):
            facts = (run.get("competences") or {}).get(against) or {}
            found = trend(
                rows, models, against, side, measure,
                label=facts.get("label"), lower_is_better=facts.get("lower_is_better"),
            )  # fmt: skip
            out.append((found, _side_name(side, names, models)))
    return out


def _side_name(side: str, names: list[str], models: list[Mapping[str, Any]]) -> str:
    """What the models of a side are called: by their modality if they share one."""
    kinds = {m.get("modality") for m in models if m.get("name") in names}
    if side == "both" or len(kinds) != 1:
        return "all models" if side == "both" else f"models of side {side}"
    return f"{kinds.pop()} models"


def _trend_figure(found: Trend, n: int, who: str) -> Html:
    frame = trend_frame(found, n)
    few = el("span", f"{found.n} models only", class_="tag") if found.n < 10 else None
    return el(
        "figure",
        el("h3", f"{found.label}, {who} ", few),
        svg.legend(frame),
        el("div", svg.trend_svg(frame), class_="scroll"),
        el("figcaption", found.text),
    )


def _limits(run: Mapping[str, Any], table: pd.DataFrame, where: str) -> Html:
    items = [el("li", warning, class_="warning") for warning in run.get("warnings") or []]
    if left_out := run.get("left_out"):
        each = [el("li", f"{words.measure_label(e['measure'])}: {e['reason']}") for e in left_out]
        items.append(el("li", "Measures that were left out:", el("ul", *each)))
    undefined, rows = int(table["statistic"].isna().to_numpy().sum()), len(table)
    if undefined:
        share = f"{words.count(undefined)} of {words.count(rows)} rows of the table"
        items.append(el("li", f"{share} have no defined score; they are shown as “–”."))
    items.append(texts.fill("limits.html", {}))
    if int((table["scope"] == "cell").to_numpy().sum()) > payload.EXACT_CELLS:
        if (table["scope"] == "cell").to_numpy().sum() > payload.MOST_CELLS:
            items.append(el("li", "Only the layer maps of the best aligned pairs are embedded here."))
        exact = f"The exact table of all pairs of layers is {where}."
        items.append(el("li", f"Layer maps are embedded in 16 bits, to 1e-5 of each range. {exact}"))
    return el("ul", *items, class_="limits")
