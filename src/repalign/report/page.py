"""The pages: the report of a result, the page of a study, and a result as a notebook shows it.

Each is one self-contained HTML file without any outside reference, filled in from `templates/`.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from repalign import text as words
from repalign.comparison.alignment import TABLE_FILE, Alignment, is_mock
from repalign.errors import RepalignError
from repalign.figures import palette, trend_chart
from repalign.figures.conventions import RULES, VIEWS, Conventions, adjustment, draws_of, text_of
from repalign.figures.kinds import Drawn, of_result, write_figures
from repalign.figures.matrix_chart import Matrix
from repalign.figures.null_chart import NullChart
from repalign.figures.trend_chart import TrendChart
from repalign.files import seal_html, write_text
from repalign.relate import MIN_MODELS_LINE, Trend, sides_of, trend, yardstick_label, yardsticks
from repalign.report import payload, sections
from repalign.text import Progress, silent

# The page may run its own script and nothing else, and fetch nothing at all.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src '{digest}'"
STUDY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MOST_TRACKS = 250  # pairs beyond this are in the table only
MAX_SIDE, MAX_ROWS = 30, 5  # of a notebook's matrix and of its best pairs


def write_report(
    results: str | Path, out: str | Path, *, static: str | Path | None = None, progress: Progress = silent
) -> Path:
    """Read a results folder and write the report, one self-contained HTML file, by rename.

    `out` is a file, or a folder in which `report.html` is written. With `static`, a folder, all figures are
    also written there as SVG and PNG, with what they show as CSV.

    Raises RepalignError if the folder holds no finished result, or the file cannot be written.
    """
    alignment, out = Alignment.load(results), Path(out)
    path = out / "report.html" if out.is_dir() else out
    progress("report", 0, 1)
    # As seen from the report's folder, so that both can be moved together.
    where = os.path.relpath((Path(results) / TABLE_FILE).resolve(), path.parent.resolve())
    write_text(path, seal_html(render(alignment.table, alignment.run, where)))
    progress("report", 1, 1)
    if static is not None:
        write_figures(of_result(alignment, progress), Path(static), is_mock(alignment.table), numbered=False)
    return path


def render(table: pd.DataFrame, run: Mapping[str, Any], where: str = TABLE_FILE) -> str:
    """The report as a string; `where` names the file that holds the full table."""
    pairs = table.loc[table["scope"] == "max"].reset_index(drop=True)
    if pairs.empty:
        raise RepalignError("the result has no pairs of models", expected="rows of scope 'max'", got="none")
    conventions, script = Conventions.of(run), asset("app.js")
    measures = [conventions.about(m) for m in dict.fromkeys(table["measure"])]
    texts = list(dict.fromkeys(table["measure"]))
    return _filled(
        "report.html",
        table,
        policy=POLICY.format(digest="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        name=run.get("name") or (run.get("dataset") or {}).get("name") or "Alignment",
        run=run,
        conventions=conventions,
        measures=measures,
        answers=[sections.Answer.of(table, m, conventions) for m in texts],
        table=table,
        charts=[NullChart.of(pairs, m, conventions) for m in texts],
        trends=[list(_trends(pairs, run, m)) for m in texts],
        draws=draws_of(pairs),
        packed=(n_cells := int((table["scope"] == "cell").sum())) > payload.EXACT_CELLS,
        only_best=n_cells > payload.MOST_CELLS,
        undefined=int(table["statistic"].isna().sum()),
        where=where,
        data=payload.data(table, run, conventions),
        script=Markup(script),
    )


def _trends(pairs: pd.DataFrame, run: Mapping[str, Any], measure: str) -> Iterator[tuple[Trend, str, TrendChart | None]]:
    """Every trend, whose models it is of, and its chart; none for too few models."""
    models = list(run.get("models") or [])
    rows = pairs.loc[pairs["measure"] == measure]
    defined = rows.loc[rows["statistic"].notna()]
    for side in sides_of(run):
        columns = ("model_x", "model_y") if side == "both" else (f"model_{side}",)
        names = list(dict.fromkeys(name for column in columns for name in defined[column]))
        kinds = {m.get("modality") for m in models if m.get("name") in names}
        who = f"{kinds.pop()} models" if len(kinds) == 1 else f"models of side {side}"
        for against in yardsticks(models, names):
            facts = (run.get("competences") or {}).get(against) or {}
            known = {key: facts.get(key) for key in ("label", "lower_is_better")}
            found = trend(rows, models, against, side, measure, **known)
            chart = TrendChart.of(found) if found.n >= MIN_MODELS_LINE else None
            yield found, "all models" if side == "both" else who, chart


def write_study_page(
    path: Path,
    name: str,
    description: str | None,
    drawn: Sequence[Drawn],
    pictures: Sequence[Path | None],
    reports: Mapping[str, Path],
    skipped: Sequence[tuple[str, str]] = (),
    *,
    is_mock: bool = False,
) -> Path:
    """Write the page of a study: its figures in the file's order, each with what it says, and the way to the full reports.

    `pictures` are the SVG files of the figures, None for one that could not be drawn; `reports` the reports of the
    variants by name; `skipped` the models that are left out, with the reason. The page of a mock run says so.
    """
    embedded = [None if file is None else base64.b64encode(file.read_bytes()).decode() for file in pictures]
    page = _filled(
        "study.html",
        is_mock,
        policy=STUDY_POLICY,
        name=name,
        description=description,
        figures=list(zip(drawn, embedded, strict=True)),
        reports={label: Path(os.path.relpath(file, path.parent)).as_posix() for label, file in reports.items()},
        skipped=skipped,
    )
    write_text(path, seal_html(page))
    return path


def notebook_html(table: pd.DataFrame, run: Mapping[str, Any]) -> str:
    """Matrix of every measure (up to 30 models a side) and its best pairs, as HTML without script, on any background."""
    conventions, parts = Conventions.of(run), []
    pairs = table.loc[table["scope"] == "max"]
    for measure in dict.fromkeys(pairs["measure"]):
        rows = pairs.loc[pairs["measure"] == measure]
        rule, draws = adjustment(rows, conventions.alpha), draws_of(rows)
        best = rows.sort_values(["calibrated", "z"], ascending=False, kind="stable", na_position="last").head(MAX_ROWS)
        parts.append(
            {"matrix": Matrix.of(pairs, measure, "statistic", conventions), "best": best.to_dict("records"),
             "label": conventions.about(measure).label, "rule": rule, "draws": draws, "more": len(rows) - MAX_ROWS}
        )  # fmt: skip
    return _filled("notebook.html", table, parts=parts, most=MAX_SIDE)


def _filled(template: str, of: pd.DataFrame | bool, **values: Any) -> str:
    """A template with its values, each escaped where it is no markup."""
    mock = of if isinstance(of, bool) else is_mock(of)
    return _environment().get_template(template).render(is_mock=mock, mock_text=words.MOCK, **values)


def _environment() -> jinja2.Environment:
    """The templates of this package, and of figures those that stand beside them; what they may call."""
    env = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(lambda name: asset(f"templates/{name}") or asset(name, "repalign.figures")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    env.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    env.globals |= {
        "palette": palette, "outline": trend_chart.outline, "frame": vars(trend_chart), "views": VIEWS, "rules": RULES,
        "text_of": text_of, "yardstick_label": yardstick_label, "style": Markup(palette.css() + asset("style.css")),
        "sections": sections, "most_tracks": MOST_TRACKS, "fewest": MIN_MODELS_LINE,
    }  # fmt: skip
    for function in (words.number, words.count, words.counted, words.interval, words.pvalue, words.parameters):
        env.globals[function.__name__] = function
    return env


def asset(name: str, package: str = "repalign.report") -> str:
    """A file of a package as text; "" if it has none."""
    file = resources.files(package).joinpath(name)
    return file.read_text("utf-8") if file.is_file() else ""
