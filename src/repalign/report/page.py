"""The pages: the report of a result, the page of a study, and a result as a notebook shows it.

Each is one self-contained HTML file without any outside reference, filled in from `templates/`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from repalign import figures
from repalign import text as words
from repalign.comparison.alignment import TABLE_FILE, Alignment, about_of, is_mock
from repalign.comparison.conventions import RULES, VIEWS, Conventions, Pairs, text_of
from repalign.comparison.doctor import Finding, grouped
from repalign.errors import RepalignError
from repalign.figures import canvas, palette, trend_chart
from repalign.figures.kinds import Drawn, of_result, write_figures
from repalign.figures.matrix_chart import MOST_PAIRS, Matrix
from repalign.figures.null_chart import NullChart
from repalign.figures.trend_chart import TrendChart
from repalign.files import Url, place_of, seal_html, seen_from, write_file
from repalign.null import MEANINGS, Unpaired
from repalign.relate import MIN_MODELS_LINE, Trend, Verdict, story, trend, verdict, yardstick_label, yardsticks
from repalign.report import payload
from repalign.report.screen import explainer, glossary, screen
from repalign.text import Progress, silent

# The page may run its own script and nothing else, and fetch nothing at all.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src '{digest}'"
STUDY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
FIRST_TRACKS = 10  # pairs beside chance that are not folded
MOST_TRACKS = 250  # pairs beyond this are in the table only
IN_MEMORY = "result.table"  # where the numbers of a result are that is in no file
MAX_SIDE, MAX_ROWS, MAX_CELLS = 30, 5, 400  # of a notebook: its matrix, its best pairs, a matrix that is a picture
FILES = resources.files("repalign.report")


def write_report(
    results: Alignment | str | Path | Url, out: str | Path | Url, *, alignment: Alignment | None = None,
    static: str | Path | Url | None = None, progress: Progress = silent,
) -> Path | Url:  # fmt: skip
    """Write the report of a result in memory, or of a results folder: one self-contained HTML file.

    `alignment` is what was saved in the folder, if it is at hand: then the folder is not read. `out` is a file, or a
    folder in which `report.html` is written. With `static`, a folder, its figures (`figures.kinds.of_result`) are also
    written there as SVG and PNG, with what they show as CSV. Each may be a path or an fsspec URL.

    Raises RepalignError if the folder holds no finished result, or the file cannot be written.
    """
    out, where = place_of(out), IN_MEMORY
    path = out / "report.html" if out.is_dir() else out
    if not isinstance(results, Alignment):  # as seen from the report's folder, so that both can be moved together
        where = seen_from((place_of(results) / TABLE_FILE).resolve(), path.parent.resolve())
    alignment = results if isinstance(results, Alignment) else alignment or Alignment.load(results)
    progress("report", 0, 1)
    run = json.loads(json.dumps(alignment.run, sort_keys=True))  # in the order of run.json, read or not
    write_file(path, seal_html(render(alignment.table, run, where)))
    progress("report", 1, 1)
    if static is not None:
        write_figures(of_result(alignment, progress), place_of(static), is_mock(alignment.table), numbered=False)
    return path


def render(table: pd.DataFrame, run: Mapping[str, Any], where: str = TABLE_FILE) -> str:
    """The report as a string; `where` names the file that holds the full table."""
    if not (table["scope"] == "max").any():
        raise RepalignError("the result has no pairs of models", expected="rows of scope 'max'", got="none")
    conventions, script = Conventions.of(run), FILES.joinpath("app.js").read_text("utf-8")
    measures = list(dict.fromkeys(table["measure"]))
    found = [verdict(table, run, measure) for measure in measures]
    pairs, cells = [one.pairs for one in found], table.loc[table["scope"] == "cell"].reset_index(drop=True)
    trends = [list(_trends(one, run)) for one in found]
    return _filled(
        "report.html", is_mock(table),
        policy=POLICY.format(digest="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        name=run.get("name") or (run.get("dataset") or {}).get("name") or "Alignment", run=run,
        conventions=conventions, measures=[some.about for some in pairs], pairs=pairs, compared_what=story.compared(found[0]),
        screens=[screen(one, [*found[k + 1 :], *found[:k]], cells, run) for k, one in enumerate(found)],
        left_out=about_of(run, [one["measure"] for one in run.get("left_out") or []]),
        chance=chance(pairs, cells, run, conventions), ceilings=list(ceilings(pairs)), models=models(run),
        table=table, charts=[NullChart.of(some) for some in pairs],
        trends=trends, has_trends=any(trends), layered=bool((cells[["index_x", "index_y"]] > 0).to_numpy().any()),
        draws=min(some.draws for some in pairs),
        excerpt=max(n if (n := len(some.rows)) > MOST_PAIRS else 0 for some in pairs), ends=payload.ENDS,
        packed=len(cells) > payload.EXACT_CELLS, only_best=len(cells) > payload.MOST_CELLS,
        undefined=int(table["statistic"].isna().to_numpy().sum()), where=where,
        data=payload.data(table, pairs, cells, run), script=Markup(script),
    )  # fmt: skip


def _trends(found: Verdict, run: Mapping[str, Any]) -> Iterator[tuple[Trend, str, TrendChart | None]]:
    """Every trend over the pairs of one measure, whose models it is of, and its chart; none for too few models."""
    models, rows = list(run.get("models") or []), found.pairs.rows
    for side in found.sides:
        for against in yardsticks(models, side.points["model"].tolist()):
            facts = (run.get("competences") or {}).get(against) or {}
            known: dict[str, Any] = {key: facts.get(key) for key in ("label", "lower_is_better")}
            one = side.trend  # there already, if it is of this yardstick
            if one is None or one.against != against:
                one = trend(rows, models, against, side.side, **known)
            yield one, story.models([side]), TrendChart.of(one) if one.n >= MIN_MODELS_LINE else None


def write_study_page(
    path: Path | Url, name: str, description: str | None, drawn: Sequence[Drawn], pictures: Sequence[Path | Url | None],
    reports: Mapping[str, Path | Url], skipped: Sequence[tuple[str, str]] = (), *, question: str | None = None,
    is_mock: bool = False, answer: tuple[str, str] | None = None, parts: Sequence[tuple[str, str, pd.DataFrame | None]] = (),
) -> Path | Url:  # fmt: skip
    """Write the page of a study: its figures in the file's order, each with what it says, and the way to the full reports.

    `pictures` are the SVG files of the figures, None for one that could not be drawn; `reports` the reports of the
    variants by name; `skipped` the models that are left out, with the reason. The page of a mock run says so.
    `answer` heads it in place of the name, with what it rests on; `parts` are headings, sentences and tables below the figures.
    """
    embedded = [None if file is None else base64.b64encode(file.read_bytes()).decode() for file in pictures]
    page = _filled(
        "study.html", is_mock, policy=STUDY_POLICY, name=name, question=question, description=description,
        figures=list(zip(drawn, embedded, strict=True)),
        reports={label: seen_from(file, path.parent) for label, file in reports.items()},
        skipped=skipped, answer=answer,
        parts=[(title, said, None if table is None else _cells(table)) for title, said, table in parts],
    )  # fmt: skip
    write_file(path, seal_html(page))
    return path


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    """A table as a page shows it: its columns, which of them are numbers, and the cells in words."""
    numbers = [pd.api.types.is_numeric_dtype(table[name]) for name in table]

    def cell(value: Any) -> str:
        return str(value) if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else words.number(value)

    rows = [[*map(cell, row.values())] for row in table.to_dict("records")]
    return {"columns": list(zip(table, numbers, strict=True)), "rows": rows}


def notebook_html(table: pd.DataFrame, run: Mapping[str, Any]) -> str:
    """Every measure's best pairs and matrix (up to 30 models a side), as HTML without script, on any background.

    The first matrix is a picture; so is the layer map of a single pair of models.
    """
    conventions, parts = Conventions.of(run), []
    for measure in dict.fromkeys(table.loc[table["scope"] == "max", "measure"]):
        made = Matrix.of(Pairs.of(table, measure, conventions))
        by = made.pairs.rows.sort_values(["calibrated", "z"], ascending=False, kind="stable", na_position="last")
        parts.append({"matrix": made, "best": by.head(MAX_ROWS).to_dict("records"), "more": len(by) - MAX_ROWS})
    picture = base64.b64encode(_picture(table, run, parts[0]["matrix"]) if parts else b"").decode()
    return _filled("notebook.html", is_mock(table), parts=parts, most=MAX_SIDE, picture=picture)


def _picture(table: pd.DataFrame, run: Mapping[str, Any], made: Matrix) -> bytes:
    """A PNG of the matrix of a measure, or of the layer map of its only pair of models; none where there is nothing to see."""
    measure, result = made.pairs.rows["measure"].iloc[0], Alignment(table, run)
    if 1 < made.values.size <= MAX_CELLS:
        return canvas.sheet_of(figures.matrix(result, measure=measure))._repr_png_()
    cells = table.loc[(table["scope"] == "cell") & (table["measure"] == measure)]
    one = made.values.size == 1 and len(cells) > 1
    return canvas.sheet_of(figures.layer_map(result, measure=measure))._repr_png_() if one else b""


def _filled(template: str, is_mock: bool, **values: Any) -> str:
    """A template with its values, each escaped where it is no markup."""
    return _environment().get_template(template).render(is_mock=is_mock, mock_text=words.MOCK, **values)


@functools.cache  # compiling a template takes longer than filling it
def _environment() -> jinja2.Environment:
    """All templates, those of figures beside the figures, and what they may call."""
    templates = [*FILES.joinpath("templates").iterdir(), *resources.files("repalign.figures").iterdir()]
    env = jinja2.Environment(
        autoescape=True,
        loader=jinja2.DictLoader({f.name: f.read_text("utf-8") for f in templates if f.name.endswith((".html", ".css"))}),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    env.globals |= {
        "palette": palette, "outline": trend_chart.outline, "frame": vars(trend_chart), "views": VIEWS,
        "text_of": text_of, "yardstick_label": yardstick_label, "style": Markup(FILES.joinpath("style.css").read_text("utf-8")),
        "search_meaning": search_meaning, "most_tracks": MOST_TRACKS, "first_tracks": FIRST_TRACKS, "fewest": MIN_MODELS_LINE,
        "explainer": explainer, "glossary": glossary, "dict": dict, "count": "{:,}".format,
    }  # fmt: skip
    told = (words.alike, words.number, words.counted, words.interval, words.parameters, words.pvalue)
    env.globals |= {f.__name__: f for f in told}
    return env


# --- what the report says ----------------------------------------------------------------------------

NULLS = {**MEANINGS, "bound": "what is exact of the mean and spread over all permutations, and a bound that holds for every law"}
SCALES = {"studentised": "height above its own chance level, in units of its spread", "raw": "raw score"}
AGGREGATES = {
    "max": "the pair of layers that is best by its {scale}",
    "mean": "the mean over all pairs of layers, each by its {scale}",
    "rows": "the mean over the layers of the first model of their best partner, by its {scale}",
    "columns": "the mean over the layers of the second model of their best partner, by its {scale}",
    "matching": "the mean over the best one-to-one matching of layers, by their {scale}",
}


def search_meaning(search: object) -> str:
    """What the search over layers looks for."""
    scale, _, aggregate = str(search).partition(" ")
    if scale not in SCALES:
        return "the best pair of layers"
    some = f"the mean over the {aggregate.removeprefix('top-')} best pairs of layers, by their {{scale}}"
    return AGGREGATES.get(aggregate or "max", some).format(scale=SCALES[scale])


def chance(pairs: Sequence[Pairs], cells: pd.DataFrame, run: Mapping[str, Any], conventions: Conventions) -> list[str]:
    """How broken pairings were drawn, for pairs of models and for single pairs of layers; how pairs were adjusted."""
    nulls: dict[str, list[str]] = {}
    rules: dict[str, list[str]] = {}
    for some in pairs:
        first, draws = some.rows.iloc[0], some.draws
        method = str(first["null"])
        floor = f", so that p ≥ {words.pvalue(1 / (draws + 1))}" if draws else ""
        null = f"{draws:,} draws ({NULLS.get(method, method)}), seed {int(first['seed'])}{floor}"
        kinds = cells.loc[cells["measure"] == first["measure"], "null"].value_counts(sort=False).to_dict()
        if method == Unpaired.name:
            null = Unpaired.meaning
        elif not set(kinds) <= {method}:  # pairs of layers have another one
            law = max((kind for kind in kinds if kind != method), key=lambda kind: kinds[kind])
            n = sum(kinds.values())
            rest = n - kinds[law]
            drawn = f" ({rest:,} of {n:,} by draws, where that law is poor)" if rest else ""
            null = f"pairs of models by {null}; single pairs of layers by {NULLS.get(law, law)}{drawn}"
        many = f"; over pairs of models {RULES[some.rule][0]} decides ({some.holds})" if some.tests > 1 else ""
        nulls.setdefault(null, []).append(some.about.label)
        rules.setdefault(f"α = {some.alpha:g}{many}", []).append(some.about.label)
    # The measures are named where their sentences differ.
    told = [[t if len(some) == 1 else f"{', '.join(names)}: {t}" for t, names in some.items()] for some in (nulls, rules)]
    restricted = [f"restricted: {conventions.restricted}"] if conventions.restricted else []
    return [*told[0], *restricted, f"search over layers: {search_meaning(run.get('search'))}", *told[1]]


def ceilings(pairs: Sequence[Pairs]) -> Iterator[str]:
    """Two trainings of one model, and what is left of scores whose layers were chosen on other stimuli."""
    n = max(some.n for some in pairs)
    for some in pairs:
        for c in some.seeds:
            yield f"{some.about.label}: {words.number(c.statistic)} ({c.source(n)})"
    for some in pairs:
        if halves := some.halves:
            means = (pd.Series([getattr(c, name) for c in halves]).mean() for name in ("statistic", "selected", "reliability"))
            share, own, repeats = map(words.number, means)
            maps = f"; layer maps repeat with a reliability of {repeats}" if repeats != words.UNDEFINED else ""
            over = f"mean over {words.counted(len(halves), 'pair')} of models, n = {halves[0].n:,}"
            score = f"layers chosen on one half score {share} on the other half of the stimuli, {own} on their own"
            yield f"{some.about.label}: {score}{maps} ({over})"


def models(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every model's record with the side on which it stands, its widths, and what the doctor found of it.

    Findings of one kind stand together, told by the gravest of them; the gravest kind first.
    """
    findings: dict[str, list[dict[str, Any]]] = {}
    found = [{part: str(one.get(part)) for part in Finding.__dataclass_fields__} for one in run.get("findings") or []]
    for worst, layers, n in grouped(Finding(**one) for one in found):
        several = f"{len(layers)} layers, {layers[0]} to {layers[-1]}, for instance {worst.layer}"
        findings.setdefault(worst.model, []).append({
            "tag": f"{worst.severity}: {worst.code}", "level": worst.level, "message": worst.message,
            "where": several if len(layers) > 1 else layers[0], "layers": ", ".join(layers), "n": n,
        })  # fmt: skip
    out = []
    for record in run.get("models") or []:
        name, facts = record.get("name", ""), record.get("facts") or {}
        on = [side for side in ("x", "y") if name in ((run.get("sides") or {}).get(side) or [])]
        widths = sorted({int(w) for w in record.get("widths") or []})
        own = findings.get(str(name), [])
        out.append({
            "record": record,
            "side": "both" if len(on) == 2 else (f"{on[0]}, " if on else "") + str(record.get("modality") or ""),
            "width": " to ".join(str(w) for w in dict.fromkeys((widths[0], widths[-1]))) if widths else words.UNDEFINED,
            "vectors": ", ".join(str(facts[key]) for key in ("pooling", "dtype") if facts.get(key)) or words.UNDEFINED,
            "tokens": facts.get("tokens") if isinstance(facts.get("tokens"), str) else "",
            "scores": {k: float(v) for k, v in (record.get("scores") or {}).items() if v is not None and math.isfinite(v)},
            "n_findings": sum(one["n"] for one in own),
            "findings": own,
        })  # fmt: skip
    return out
