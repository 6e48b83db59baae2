"""What was compared: dataset, models with the doctor's findings, measures, chance, versions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from repalign import text as words
from repalign.comparison.doctor import SEVERITIES
from repalign.figures.conventions import RULES, Reading
from repalign.figures.quantities import adjustment, draws_of, measures_of, rows_of, tests_of
from repalign.null import Unpaired
from repalign.relate import yardstick_label
from repalign.report import texts
from repalign.report.html import Html, el, join

OPEN_MODELS = 12  # a longer list of models starts folded, so that the result is not far down


def facts(table: pd.DataFrame, run: Mapping[str, Any], reading: Reading) -> Html:
    """Dataset, chance, settings and versions as a list of terms."""
    rows = [
        ("Dataset", _dataset(run, table)),
        ("Left out", _left_out(run)),
        ("Measures", _measures(table)),
        ("Chance", _chance(table, run, reading)),
        ("Ceilings", _ceilings(table, reading)),
        ("Preparation", _preparation(run)),
        ("Versions", _versions(run)),
    ]
    return el("dl", *(el("div", el("dt", k), el("dd", v)) for k, v in rows if v is not None), class_="terms")


def _dataset(run: Mapping[str, Any], table: pd.DataFrame) -> Html:
    described = run.get("dataset") or {}
    first = table.iloc[0].to_dict()
    n = words.count(int(described.get("n") or first["n"]))
    told = [el("strong", described.get("name") or first["dataset"]), f", n = {n} stimuli"]
    for key, before in (("modalities", "; "), ("source", "; from "), ("revision", "; revision ")):
        value = described.get(key)
        if value:
            told.append(f"{before}{', '.join(value) if isinstance(value, (list, tuple)) else value}")
    captions = described.get("captions_per_image")
    if captions:
        low, high = captions["min"], captions["max"]
        told.append(f"; {low if low == high else f'{low} to {high}'} captions per image")
    fingerprint = str(described.get("fingerprint") or first["dataset_fingerprint"] or "")
    if fingerprint:
        told += ["; fingerprint ", el("code", fingerprint[:12], title=fingerprint)]
    return join(told)


def _left_out(run: Mapping[str, Any]) -> Html | None:
    left = list((run.get("dataset") or {}).get("left_out") or [])
    if not left:
        return None
    reasons: dict[str, list[Mapping[str, Any]]] = {}
    for item in left:
        reasons.setdefault(str(item.get("reason")), []).append(item)
    told = []
    for reason, items in reasons.items():
        ids = ", ".join(f"{i.get('id')} (row {i.get('row')})" for i in items[:5])
        more = f" and {len(items) - 5} more" if len(items) > 5 else ""
        told.append(el("li", f"{words.count(len(items))}: {reason}, in every modality: {ids}{more}"))
    return el("ul", *told)


def _measures(table: pd.DataFrame) -> Html:
    items = [
        el("li", el("strong", words.measure_label(m)), f". {texts.measure_meaning(m)} ", el("code", m))
        for m in measures_of(table)
    ]
    return el("ul", *items)


def _chance(table: pd.DataFrame, run: Mapping[str, Any], reading: Reading) -> Html:
    """How broken pairings were drawn, for pairs of models and for single pairs of layers; how pairs were adjusted."""
    told = [*_by_measure(table, lambda m: _null_of(table, m))]
    if reading.restricted:
        told.append(f"restricted: {reading.restricted}")
    told.append(f"search over layers: {texts.search_meaning(run.get('search'))}")
    told += _by_measure(table, lambda m: _rule_of(table, m, reading))
    return el("ul", *(el("li", t) for t in told if t))


def _by_measure(table: pd.DataFrame, tell: Callable[[str], str]) -> list[str]:
    """A sentence for each measure, the measures named where sentences differ."""
    groups: dict[str, list[str]] = {}
    for measure in measures_of(table):
        groups.setdefault(tell(measure), []).append(words.measure_label(measure))
    return [told if len(groups) == 1 else f"{', '.join(labels)}: {told}" for told, labels in groups.items()]


def _rule_of(table: pd.DataFrame, measure: str, reading: Reading) -> str:
    pairs = rows_of(table, "max", measure)
    key = adjustment(pairs, reading.alpha)
    many = f"; over pairs of models {RULES[key][0]} decides ({reading.rule(key)})" if tests_of(pairs) > 1 else ""
    return f"α = {reading.alpha:g}{many}"


def _null_of(table: pd.DataFrame, measure: str) -> str:
    pairs, cells = rows_of(table, "max", measure), rows_of(table, "cell", measure)
    draws, seed = draws_of(pairs), int(pairs["seed"].tolist()[0])
    method = str(pairs["null"].tolist()[0])
    if method == Unpaired.name:
        return "no chance level, because no relabelling changes them: they do not know which stimulus is which"
    floor = f", so that p ≥ {words.pvalue(1 / (draws + 1))}" if draws else ""
    told = f"{words.count(draws)} draws ({texts.null_meaning(method)}), seed {seed}{floor}"
    kinds = cells["null"].value_counts(sort=False).to_dict()
    if set(kinds) <= {method}:
        return told
    law = max((kind for kind in kinds if kind != method), key=lambda kind: kinds[kind])
    rest = sum(kinds.values()) - kinds[law]
    drawn = f" ({words.count(rest)} of {words.count(len(cells))} by draws, where that law is poor)" if rest else ""
    return f"pairs of models by {told}; single pairs of layers by {texts.null_meaning(law)}{drawn}"


def _ceilings(table: pd.DataFrame, reading: Reading) -> Html | None:
    """Two trainings of one model, and what is left of scores whose layers were chosen on other stimuli."""
    n = max(table["n"].tolist())
    told = [f"{words.measure_label(m)}: {c.text(n)}" for m in measures_of(table) for c in reading.seeds(m)]
    for measure in measures_of(table):
        halves = reading.halves(measure)
        if halves:
            share = f"{words.number(_mean(c.statistic for c in halves))} on the other half of the stimuli"
            own = f"{words.number(_mean(c.selected for c in halves))} on their own"
            repeats = words.number(_mean(c.reliability for c in halves))
            maps = f"; layer maps repeat with a reliability of {repeats}" if repeats != words.UNDEFINED else ""
            over = f"mean over {len(halves)} pair{'s' * (len(halves) != 1)} of models, n = {words.count(halves[0].n)}"
            told.append(
                f"{words.measure_label(measure)}: layers chosen on one half score {share}, {own}{maps} ({over})"
            )
    return el("ul", *(el("li", t) for t in told)) if told else None


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def _preparation(run: Mapping[str, Any]) -> Html | None:
    steps = run.get("preprocess")
    if not steps:
        return join(["Layers as extracted: no clipping, no scaling."])
    return join([", ".join(f"{key} = {value}" for key, value in steps.items() if value not in (None, False))])


def _versions(run: Mapping[str, Any]) -> Html | None:
    versions = {"repalign": run.get("repalign"), **(run.get("versions") or {})}
    known = [f"{name} {version}" for name, version in versions.items() if version]
    return join([", ".join(known)]) if known else None


# --- models ------------------------------------------------------------------------------------

MODEL_COLUMNS = (
    "Model",
    "Side",
    "Family",
    "Objective",
    "Parameters",
    "Layers",
    "Width",
    "Vectors",
    "Scores",
    "Revision",
)


def models(run: Mapping[str, Any]) -> Html | None:
    """Every model with what is known about it, and below it what the doctor found."""
    records = list(run.get("models") or [])
    if not records:
        return None
    sides = run.get("sides") or {}
    labels = {key: f.get("label", key) for key, f in (run.get("competences") or {}).items()}
    findings: dict[str, list[Mapping[str, Any]]] = {}
    for finding in run.get("findings") or []:
        findings.setdefault(str(finding.get("model")), []).append(finding)
    body = []
    for record in records:
        body.append(_model(record, sides, labels))
        mine = findings.get(str(record.get("name")), [])
        if mine:
            body.append(el("tr", el("td", _findings(mine), colspan=len(MODEL_COLUMNS)), class_="finding"))
    numeric = {"Parameters", "Layers", "Width"}
    heads = [el("th", name, scope="col", class_="num" if name in numeric else None) for name in MODEL_COLUMNS]
    table = el("table", el("thead", el("tr", *heads)), el("tbody", *body), class_="plain models")
    about = sum(len(v) for v in findings.values())
    noted = f", {len(findings)} with findings ({about})" if findings else ""
    summary = el("summary", f"{len(records)} models{noted}")
    return el("details", summary, el("div", table, class_="scroll"), open=len(records) <= OPEN_MODELS)


def _model(record: Mapping[str, Any], sides: Mapping[str, Any], labels: Mapping[str, str]) -> Html:
    name = record.get("name", "")
    on = [side for side in ("x", "y") if name in (sides.get(side) or [])]
    side = "both" if len(on) == 2 else (f"{on[0]}, " if on else "") + str(record.get("modality") or "")
    widths = sorted({int(w) for w in record.get("widths") or []})
    width = "–" if not widths else str(widths[0]) if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    revision = str(record.get("revision") or "")
    scores = [
        el("div", f"{labels.get(key) or yardstick_label(key)} ", el("b", words.number(float(value))))
        for key, value in (record.get("scores") or {}).items()
        if value is not None and math.isfinite(float(value))
    ]
    return el(
        "tr",
        el("th", name, el("span", record.get("spec", ""), class_="sub"), scope="row"),
        el("td", side),
        el("td", record.get("family") or "–"),
        el("td", record.get("objective") or "–"),
        el("td", words.parameters(record.get("n_parameters")), class_="num"),
        el("td", len(record.get("layers") or []) or "–", class_="num"),
        el("td", width, class_="num"),
        el("td", *_vectors(record.get("facts") or {})),
        el("td", *(scores or ["–"])),
        el("td", el("code", revision[:10], title=revision) if revision else "–"),
    )


def _vectors(facts: Mapping[str, Any]) -> list[object]:
    """How a layer became one vector per stimulus: pooling and number format, and what was pooled."""
    first = [str(facts[key]) for key in ("pooling", "dtype") if facts.get(key)]
    tokens = facts.get("tokens")
    return [", ".join(first) or "–", el("span", tokens, class_="sub") if isinstance(tokens, str) else None]


def _findings(found: Iterable[Mapping[str, Any]]) -> Html:
    """Findings of one model, gravest first, those of one kind together, told by the gravest of them."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for finding in found:
        kinds.setdefault(str(finding.get("code")), []).append(finding)
    items = []
    for code, group in sorted(kinds.items(), key=lambda kind: -max(map(_gravity, kind[1]))):
        worst = max(group, key=_gravity)
        layers = list(dict.fromkeys(str(f.get("layer")) for f in group))
        where = layers[0]
        if len(layers) > 1:
            where = f"{len(layers)} layers, {layers[0]} to {layers[-1]}, for instance {worst.get('layer')}"
        severity = str(worst.get("severity"))
        tag = el("span", f"{severity}: {code}", class_=f"tag level-{_gravity(worst)}")
        items.append(el("li", tag, " ", el("b", where), f": {worst.get('message')}", title=", ".join(layers)))
    return el("ul", *items)


def _gravity(finding: Mapping[str, Any]) -> int:
    severity = finding.get("severity")
    return SEVERITIES.index(severity) if severity in SEVERITIES else 1
