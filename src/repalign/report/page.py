"""The pages: the report of a result, the page of a study, and a result as a notebook shows it.

Each is one self-contained HTML file without any outside reference, filled in from `templates/`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from repalign import text as words
from repalign.comparison.alignment import TABLE_FILE, Alignment, is_mock
from repalign.comparison.doctor import SEVERITIES
from repalign.errors import RepalignError
from repalign.figures import palette, trend_chart
from repalign.figures.conventions import (
    ADJUSTED,
    HALVES,
    RULES,
    SEEDS,
    VIEWS,
    Ceiling,
    Conventions,
    adjustment,
    best_pair,
    draws_of,
    found,
    tests_of,
    text_of,
)
from repalign.figures.kinds import Drawn, of_result, write_figures
from repalign.figures.matrix_chart import Matrix
from repalign.figures.null_chart import NullChart
from repalign.figures.trend_chart import TrendChart
from repalign.files import seal_html, write_file
from repalign.measures import MeasureFacts
from repalign.null import MEANINGS, Unpaired
from repalign.relate import MIN_MODELS_LINE, Trend, sides_of, trend, yardstick_label, yardsticks
from repalign.report import payload
from repalign.text import Progress, silent

# The page may run its own script and nothing else, and fetch nothing at all.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src '{digest}'"
STUDY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MOST_TRACKS = 250  # pairs beyond this are in the table only
MAX_SIDE, MAX_ROWS = 30, 5  # of a notebook's matrix and of its best pairs


def write_report(
    results: str | Path,
    out: str | Path,
    *,
    alignment: Alignment | None = None,
    static: str | Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Read a results folder and write the report, one self-contained HTML file, by rename.

    `alignment` is what was saved in the folder, if it is at hand: then the folder is not read. `out` is a file, or a
    folder in which `report.html` is written. With `static`, a folder, all figures are also written there as SVG and
    PNG, with what they show as CSV.

    Raises RepalignError if the folder holds no finished result, or the file cannot be written.
    """
    alignment, out = alignment or Alignment.load(results), Path(out)
    path = out / "report.html" if out.is_dir() else out
    progress("report", 0, 1)
    # As seen from the report's folder, so that both can be moved together.
    where = os.path.relpath((Path(results) / TABLE_FILE).resolve(), path.parent.resolve())
    run = json.loads(json.dumps(alignment.run, sort_keys=True))  # in the order of run.json, read or not
    write_file(path, seal_html(render(alignment.table, run, where)))
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
        chance=chance(table, run, conventions),
        ceilings=list(ceilings(table, conventions)),
        models=models(run),
        answers=[Answer.of(table, m, conventions) for m in texts],
        table=table,
        charts=[NullChart.of(pairs, m, conventions) for m in texts],
        trends=[list(_trends(pairs, run, m)) for m in texts],
        draws=draws_of(pairs),
        packed=(n_cells := int((table["scope"] == "cell").to_numpy().sum())) > payload.EXACT_CELLS,
        only_best=n_cells > payload.MOST_CELLS,
        undefined=int(table["statistic"].isna().to_numpy().sum()),
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
            known: dict[str, Any] = {key: facts.get(key) for key in ("label", "lower_is_better")}
            one = trend(rows, models, against, side, measure, **known)
            chart = TrendChart.of(one) if one.n >= MIN_MODELS_LINE else None
            yield one, "all models" if side == "both" else who, chart


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
    write_file(path, seal_html(page))
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
    """A template with its values, each escaped where it is no markup; `of`: a table, or whether the run was a mock."""
    env = jinja2.Environment(
        autoescape=True,
        # Those of figures stand beside them.
        loader=jinja2.FunctionLoader(lambda name: asset(f"templates/{name}") or asset(name, "repalign.figures")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    env.globals |= {
        "palette": palette, "outline": trend_chart.outline, "frame": vars(trend_chart), "views": VIEWS, "rules": RULES,
        "text_of": text_of, "yardstick_label": yardstick_label, "style": Markup(asset("style.css")),
        "search_meaning": search_meaning, "most_tracks": MOST_TRACKS, "fewest": MIN_MODELS_LINE,
    }  # fmt: skip
    told = (words.number, words.count, words.counted, words.interval, words.parameters)
    env.globals |= {f.__name__: f for f in (*told, words.pvalue, words.p_sentence, words.at_floor)}
    mock = of if isinstance(of, bool) else is_mock(of)
    return env.get_template(template).render(is_mock=mock, mock_text=words.MOCK, **values)


def asset(name: str, package: str = "repalign.report") -> str:
    """A file of a package as text; "" if it has none."""
    file = resources.files(package).joinpath(name)
    return file.read_text("utf-8") if file.is_file() else ""


# --- what the report says ----------------------------------------------------------------------------

NULLS = {
    **MEANINGS,
    "bound": "what is exact of the mean and spread over all permutations, and a bound that holds for every law",
}
SCALES = {
    "studentised": "height above its own chance level, in units of its spread",
    "raw": "raw score",
}
AGGREGATES = {
    "max": "the pair of layers that is best by its {scale}",
    "mean": "the mean over all pairs of layers, each by its {scale}",
    "rows": "the mean over the layers of the first model of their best partner, by its {scale}",
    "columns": "the mean over the layers of the second model of their best partner, by its {scale}",
    "matching": "the mean over the best one-to-one matching of layers, by their {scale}",
}


@dataclass(frozen=True)
class Answer:
    """What one measure says over all pairs of models."""

    about: MeasureFacts
    best: Mapping[str, Any] | None
    best_found: bool
    n: int
    n_pairs: int
    n_tests: int
    n_draws: int
    n_cells: int  # pairs of layers that were searched for the best pair of models
    rule: str  # the adjusted p that decides: "p_maxt", "p_holm" or "p_bh"
    counts: Mapping[str, int]  # how many pairs are above chance by each adjusted p that is there
    seeds: list[Ceiling]  # of the models of the best pair; the highest of any model if they have none
    halves: Ceiling | None
    mean: str  # over which pairs of layers the score is; "" for that of the best pair

    @classmethod
    def of(cls, table: pd.DataFrame, measure: str, conventions: Conventions) -> Answer:
        """The answer of one measure."""
        rows = table.loc[table["measure"] == measure]
        pairs = rows.loc[rows["scope"] == "max"].reset_index(drop=True)
        best, above, alpha = best_pair(pairs), found(pairs, conventions.alpha), conventions.alpha
        n_cells, best_found, seeds, halves = 0, False, [], None
        if best is not None:
            both = {side: best[side] for side in ("model_x", "model_y")}
            mine = (pairs[list(both)] == pd.Series(both)).all(axis=1)
            best_found = bool(above[mine.to_numpy()].any())
            n_cells = int((rows.loc[rows["scope"] == "cell", list(both)] == pd.Series(both)).all(axis=1).sum())
            known, ends = conventions.ceilings_of(measure, SEEDS), set(both.values())
            seeds = [c for c in known if c.names & ends][:2] or known[:1]
            halves = next((c for c in conventions.ceilings_of(measure, HALVES) if c.names == ends), None)
        search = str((best or {}).get("search"))
        mean = search_meaning(search).split(", ")[0] if search.partition(" ")[2] not in ("", "max") else ""
        counts = {c: int((pairs[c] <= alpha).sum()) for c in ADJUSTED if pairs[c].notna().any()}
        return cls(
            conventions.about(measure), best, best_found, max(pairs["n"].tolist()), len(pairs), tests_of(pairs),
            draws_of(pairs), n_cells, adjustment(pairs, alpha), counts, seeds, halves, mean,
        )  # fmt: skip

    @property
    def family(self) -> str:
        """The family of the measure as a heading; "Other" for one that is not known here."""
        family = self.about.family.replace("_", " ")
        return "RDM" if family == "rdm" else family.capitalize() or "Other"


def search_meaning(search: object) -> str:
    """What the search over layers looks for."""
    scale, _, aggregate = str(search).partition(" ")
    if scale not in SCALES:
        return "the best pair of layers"
    some = f"the mean over the {aggregate.removeprefix('top-')} best pairs of layers, by their {{scale}}"
    return AGGREGATES.get(aggregate or "max", some).format(scale=SCALES[scale])


def chance(table: pd.DataFrame, run: Mapping[str, Any], conventions: Conventions) -> list[str]:
    """How broken pairings were drawn, for pairs of models and for single pairs of layers; how pairs were adjusted."""
    nulls: dict[str, list[str]] = {}
    rules: dict[str, list[str]] = {}
    for measure, rows in table.groupby("measure", sort=False):
        pairs, label = rows.loc[rows["scope"] == "max"], conventions.about(str(measure)).label
        key = adjustment(pairs, conventions.alpha)
        many = f"; over pairs of models {RULES[key][0]} decides ({conventions.rule(key)})" if tests_of(pairs) > 1 else ""
        nulls.setdefault(null_of(rows), []).append(label)
        rules.setdefault(f"α = {conventions.alpha:g}{many}", []).append(label)
    # The measures are named where their sentences differ.
    told = [[t if len(some) == 1 else f"{', '.join(names)}: {t}" for t, names in some.items()] for some in (nulls, rules)]
    restricted = [f"restricted: {conventions.restricted}"] if conventions.restricted else []
    return [*told[0], *restricted, f"search over layers: {search_meaning(run.get('search'))}", *told[1]]


def null_of(rows: pd.DataFrame) -> str:
    """The null of one measure's rows: of pairs of models, and of pairs of layers if theirs is another one."""
    pairs, cells = rows.loc[rows["scope"] == "max"], rows.loc[rows["scope"] == "cell"]
    draws, seed, method = draws_of(pairs), int(pairs["seed"].iloc[0]), str(pairs["null"].iloc[0])
    if method == Unpaired.name:
        return Unpaired.meaning
    floor = f", so that p ≥ {words.pvalue(1 / (draws + 1))}" if draws else ""
    told = f"{words.count(draws)} draws ({NULLS.get(method, method)}), seed {seed}{floor}"
    kinds = cells["null"].value_counts(sort=False).to_dict()
    if set(kinds) <= {method}:
        return told
    law = max((kind for kind in kinds if kind != method), key=lambda kind: kinds[kind])
    rest = len(cells) - kinds[law]
    drawn = f" ({words.count(rest)} of {words.count(len(cells))} by draws, where that law is poor)" if rest else ""
    return f"pairs of models by {told}; single pairs of layers by {NULLS.get(law, law)}{drawn}"


def ceilings(table: pd.DataFrame, conventions: Conventions) -> Iterator[str]:
    """Two trainings of one model, and what is left of scores whose layers were chosen on other stimuli."""
    n, measures = max(table["n"].tolist()), dict.fromkeys(table["measure"])
    labels = {m: conventions.about(m).label for m in measures}
    for measure in measures:
        for c in conventions.ceilings_of(measure, SEEDS):
            yield f"{labels[measure]}: {words.number(c.statistic)} ({c.source(n)})"
    for measure in measures:
        halves = conventions.ceilings_of(measure, HALVES)
        if halves:
            share, own, repeats = (
                words.number(_mean(getattr(c, name) for c in halves)) for name in ("statistic", "selected", "reliability")
            )
            maps = f"; layer maps repeat with a reliability of {repeats}" if repeats != words.UNDEFINED else ""
            over = f"mean over {len(halves)} pair{'s' * (len(halves) != 1)} of models, n = {words.count(halves[0].n)}"
            score = f"layers chosen on one half score {share} on the other half of the stimuli, {own} on their own"
            yield f"{labels[measure]}: {score}{maps} ({over})"


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def models(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every model's record with the side on which it stands, its widths, and what the doctor found of it."""
    findings: dict[str, list[Mapping[str, Any]]] = {}
    for finding in run.get("findings") or []:
        findings.setdefault(str(finding.get("model")), []).append(finding)
    out = []
    for record in run.get("models") or []:
        name, facts = record.get("name", ""), record.get("facts") or {}
        on = [side for side in ("x", "y") if name in ((run.get("sides") or {}).get(side) or [])]
        widths = sorted({int(w) for w in record.get("widths") or []})
        out.append({
            "record": record,
            "side": "both" if len(on) == 2 else (f"{on[0]}, " if on else "") + str(record.get("modality") or ""),
            "width": " to ".join(str(w) for w in dict.fromkeys((widths[0], widths[-1]))) if widths else words.UNDEFINED,
            "vectors": ", ".join(str(facts[key]) for key in ("pooling", "dtype") if facts.get(key)) or words.UNDEFINED,
            "tokens": facts.get("tokens") if isinstance(facts.get("tokens"), str) else "",
            "scores": {k: float(v) for k, v in (record.get("scores") or {}).items() if v is not None and math.isfinite(v)},
            "n_findings": len(findings.get(str(name), [])),
            "findings": list(_findings(findings.get(str(name), []))),
        })  # fmt: skip
    return out


def _findings(of_model: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Findings of one model, gravest first, those of one kind together, told by the gravest of them."""

    levels = {severity: k for k, severity in enumerate(SEVERITIES)}
    kinds: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for finding in of_model:
        kinds.setdefault(str(finding.get("code")), []).append((levels.get(str(finding.get("severity")), 1), finding))
    for code, ranked in sorted(kinds.items(), key=lambda kind: -max(level for level, _ in kind[1])):
        level, worst = max(ranked, key=lambda both: both[0])
        group = [finding for _, finding in ranked]
        layers = list(dict.fromkeys(str(f.get("layer")) for f in group))
        where = layers[0]
        if len(layers) > 1:
            where = f"{len(layers)} layers, {layers[0]} to {layers[-1]}, for instance {worst.get('layer')}"
        yield {"tag": f"{worst.get('severity')}: {code}", "level": level, "where": where,
               "message": worst.get("message"), "layers": ", ".join(layers)}  # fmt: skip
