"""What the sections of a report say: the answer of every measure, how chance was drawn, the models and their findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from repalign import text as words
from repalign.comparison.doctor import SEVERITIES
from repalign.figures.conventions import (
    ADJUSTED,
    HALVES,
    RULES,
    SEEDS,
    Ceiling,
    Conventions,
    adjustment,
    best_pair,
    draws_of,
    found,
    tests_of,
)
from repalign.measures import MeasureFacts
from repalign.null import Unpaired

NULLS = {
    "permutation": "random permutations of the pairing, one for all layers of a pair of models",
    "cyclic": "all cyclic shifts of the pairing after one random relabelling, an exact group",
    "bound": "the exact mean and spread over all permutations, and Cantelli's bound, which holds for every law",
    "aristotelian": "the published calibration: random permutations, compared in float32 without a tolerance",
    "moments": "exact mean, spread and skewness over all permutations, and the Pearson type III law",
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
        counts = {c: int((pairs[c] <= alpha).sum()) for c in ADJUSTED if pairs[c].notna().any()}
        return cls(
            conventions.about(measure), best, best_found, max(pairs["n"].tolist()), len(pairs), tests_of(pairs),
            draws_of(pairs), n_cells, adjustment(pairs, alpha), counts, seeds, halves,
        )  # fmt: skip

    @property
    def score(self) -> str:
        """The best score, with its interval if there is one."""
        best = self.best or {}
        return words.interval(best["statistic"], best.get("low"), best.get("high"))

    @property
    def p(self) -> str:
        """Its p in a sentence, and whether draws could give a smaller one."""
        p = (self.best or {})["pvalue"]
        told = words.p_sentence(p, self.n_draws).removesuffix(" (floor)").replace(" ", "\u00a0")
        least = f", the smallest that {words.count(self.n_draws)} draws can give"
        return told + least * words.at_floor(p, self.n_draws)

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


def aggregate_meaning(search: object) -> str | None:
    """What the score of a pair of models is the mean of; None if it is that of the best pair of layers."""
    aggregate = str(search).partition(" ")[2]
    return None if aggregate in ("", "max") else search_meaning(search).split(", ")[0]


def chance(table: pd.DataFrame, run: Mapping[str, Any], conventions: Conventions) -> list[str]:
    """How broken pairings were drawn, for pairs of models and for single pairs of layers; how pairs were adjusted."""

    def by_measure(tell: Callable[[pd.DataFrame], str]) -> list[str]:
        """A sentence for each measure, the measures named where sentences differ."""
        groups: dict[str, list[str]] = {}
        for measure, rows in table.groupby("measure", sort=False):
            groups.setdefault(tell(rows), []).append(conventions.about(str(measure)).label)
        return [told if len(groups) == 1 else f"{', '.join(names)}: {told}" for told, names in groups.items()]

    def rule(rows: pd.DataFrame) -> str:
        pairs = rows.loc[rows["scope"] == "max"]
        key = adjustment(pairs, conventions.alpha)
        many = f"; over pairs of models {RULES[key][0]} decides ({conventions.rule(key)})" if tests_of(pairs) > 1 else ""
        return f"α = {conventions.alpha:g}{many}"

    restricted = [f"restricted: {conventions.restricted}"] if conventions.restricted else []
    search = f"search over layers: {search_meaning(run.get('search'))}"
    return [*by_measure(null_of), *restricted, search, *by_measure(rule)]


def null_of(rows: pd.DataFrame) -> str:
    """The null of one measure's rows: of pairs of models, and of pairs of layers if theirs is another one."""
    pairs, cells = rows.loc[rows["scope"] == "max"], rows.loc[rows["scope"] == "cell"]
    draws, seed, method = draws_of(pairs), int(pairs["seed"].iloc[0]), str(pairs["null"].iloc[0])
    if method == Unpaired.name:
        return "no chance level, because no relabelling changes them: they do not know which stimulus is which"
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

    def gravity(finding: Mapping[str, Any]) -> int:
        severity = finding.get("severity")
        return SEVERITIES.index(severity) if severity in SEVERITIES else 1

    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for finding in of_model:
        kinds.setdefault(str(finding.get("code")), []).append(finding)
    for code, group in sorted(kinds.items(), key=lambda kind: -max(map(gravity, kind[1]))):
        worst = max(group, key=gravity)
        layers = list(dict.fromkeys(str(f.get("layer")) for f in group))
        where = layers[0]
        if len(layers) > 1:
            where = f"{len(layers)} layers, {layers[0]} to {layers[-1]}, for instance {worst.get('layer')}"
        yield {"tag": f"{worst.get('severity')}: {code}", "level": gravity(worst), "where": where,
               "message": worst.get("message"), "layers": ", ".join(layers)}  # fmt: skip
