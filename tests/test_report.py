"""The report: its words, its data against the table, hostile names, and the page as a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import html
import inspect
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from alignment_table import BLIND, CKA, CONSTANT, KNN, LANGUAGE, VISION, make_run, make_table
from many_models import made
from repalign import text as words
from repalign.comparison import compare
from repalign.comparison import conventions as views
from repalign.comparison.alignment import Alignment, rows_of
from repalign.comparison.conventions import Pairs
from repalign.errors import RepalignError
from repalign.figures import kinds as figures_kinds
from repalign.figures.canvas import ticks
from repalign.figures.matrix_chart import MOST_GROUPS, Grouped
from repalign.measures.measure import as_features
from repalign.models import ModelRecord
from repalign.relate import story, verdict
from repalign.report import notebook_html, payload, render, write_report
from repalign.report.screen import explainer, glossary, screen
from repalign.representation import MemoryRepresentation

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">@@data@@\u2028'


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


@pytest.fixture(scope="module")
def page(table) -> str:
    return render(table, make_run())


class Elements(HTMLParser):
    """Start tags with their attributes, text outside scripts and styles, and what scripts hold."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self.inside = "", [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):  # noqa: ARG002
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data


def embedded(page: str, identifier: str = "data") -> dict:
    (body,) = re.findall(rf'<script type="application/json" id="{identifier}">(.*?)</script>', page, flags=re.S)
    return json.loads(body)


# --- words -------------------------------------------------------------------------------------


def text_of(page: str) -> str:
    """What a page says, in one line, with plain spaces."""
    return " ".join(Elements(page).text.replace("\u00a0", " ").split())


def test_the_first_screen_asks_answers_and_goes_on(page, table):
    """Question, answer, sizes and what to read with care, in the words of the terminal; then four ways on; for every measure."""
    text = text_of(page)
    for measure in (KNN, CKA):
        found = verdict(table, make_run(), measure)
        best = found.pairs.best
        for told in (story.headline(found), *story.sizes(found), *story.care(found)):
            assert told in text
        score = words.alike(best["statistic"], best["null_mean"])[0]
        assert f"{best['model_x']} and {best['model_y']}: {score}, where chance gives" in text
    assert "Do better models agree more?" in text and "Better language and vision models agree more." in text
    ways = [way["title"] for way in screen(found, [found], table, make_run())["ways"]]
    assert ways == ["Which pair agrees most?", "Which layers?", "Does another measure agree?", "How sure is this?"]
    assert "The last language layer (layer.6) is best in" in text
    assert "1,023 shuffles a pair, the search for the best layers included." in text
    assert "What do they share?" in text_of(render(table, make_run() | {"study": {"question": "What do they share?"}}))


def test_sections_come_in_the_order_of_the_questions(page):
    order = [i for tag, a in Elements(page).tags if tag == "section" and (i := a["id"])]
    assert order == ["answer", "models", "layers", "chance", "trends", "table", "method"]
    folded = [a["id"] for tag, a in Elements(page).tags if tag == "details" and "id" in a]
    assert folded == ["compared", "notes", "words", "limits"]


def test_words_are_explained_where_they_first_stand(page):
    links = [(a["href"], a["title"]) for tag, a in Elements(page).tags if a.get("class") == "term"]
    ids = {a["id"] for _, a in Elements(page).tags if "id" in a}
    assert links and all(href[1:] in ids and title for href, title in links)
    explain = explainer()
    twice = explain("Chance, by the chance of chance-like <b>, and BH")
    assert twice.count("<a ") == 2 and "&lt;b&gt;" in twice and "term-false-discovery-rate" in twice  # once each; not "by"
    assert len({row["term"].lower() for row in glossary()}) == len(glossary()) >= 40
    assert not {"stitching", "logit lens"} & {row["term"] for row in glossary()}  # words of the pages, which no report uses


@pytest.mark.parametrize(
    "expected",
    [
        "wit_1024, n = 1,024 stimuli", "revision wit_1024", "1: empty caption, in every modality: r17 (row 17)",
        "the share of neighbours that two spaces have in common", "all cyclic shifts of the pairing", "seed 0",
        "repalign 0.1.0, torch 2.15.0, transformers 5.23.0", "hf:example/llama-13b", "560 M", "next word",
        "Bits per byte 0.970", "3 layers, layer.0 to layer.2, for instance layer.0: n = 1,024 rows for 5,120",
        "1 to 5 captions per image", "mean, float32all valid tokens", "12 rows are exact",
        "undefined for 1 of 30 pairs",
        "Alignment changes by +", "With 5 models, one model more or less can change this picture.", "here .00098",
        "66 of 2,160 rows of the table have no defined score", "0123456789",
    ],
)  # fmt: skip
def test_the_page_says(page, expected):
    assert expected in " ".join(Elements(page).text.split())


def test_own_measures_have_a_line_of_meaning_too(table):
    """A measure that is registered, or that was when the result was made: its run says what it is."""
    about = {"name": "Mine", "parameters": {}, "label": "My CKA", "family": "kernel", "meaning": "What I mean by it."}
    about |= {"closer_is_higher": True}
    text = " ".join(Elements(render(table.replace({CKA: "Mine()"}), make_run() | {"about": {"Mine()": about}})).text.split())
    assert "My CKA. What I mean by it. Mine()" in text and "the share of neighbours that two spaces have in common" in text


def test_a_finding_stands_directly_below_its_model(page):
    rows = re.findall(r"<tr[ >].*?</tr>", page[page.index('class="plain models"') :], flags=re.S)
    at = next(k for k, row in enumerate(rows) if "hf:example/llama-13b" in row)
    assert "5,120 features" in rows[at + 1] and "5,120 features" not in rows[at]


def test_nothing_above_chance_is_the_answer(table):
    text = text_of(render(table.assign(p_maxt=1.0, pvalue=0.5, calibrated=0.0), make_run()))
    assert "None of 30 pairs agrees more than chance." in text and "better language models agree" not in text.lower()


def test_one_pair_speaks_of_that_pair(table):
    one = table[(table["model_x"] == "llama-13b") & (table["model_y"] == "clip-large")]
    text = text_of(render(one, {}))
    assert "Do llama-13b and clip-large put the same things close together?" in text
    row = rows_of(one, "max", KNN).iloc[0]
    score, chance = words.alike(row["statistic"], row["null_mean"])
    size = f"Mutual k-NN (k=10) {score}, chance {chance}, p ≤ .00098; n = 1,024."
    assert f"llama-13b and clip-large agree more than chance. {size}" in text and "the best of 35 pairs of layers." in text
    assert 'id="models"' not in render(one, {})
    blind = table[(table["model_x"] == "llama-13b") & (table["model_y"] == BLIND)]
    assert f"llama-13b and {BLIND} agree no more than chance." in text_of(render(blind, {}))


def test_everything_undefined_is_said(table):
    one = table[(table["model_x"] == CONSTANT[0]) & (table["model_y"] == CONSTANT[1]) & (table["measure"] == CKA)]
    assert "CKA is undefined for every pair of models." in text_of(render(one, {}))


def test_a_measure_that_is_undefined_everywhere_breaks_no_section(table):
    nothing = table.copy()
    numbers = ["statistic", "null_mean", "null_std", "z", "pvalue", "threshold", "calibrated", *views.ADJUSTED]
    nothing.loc[nothing["measure"] == KNN, numbers] = np.nan
    nothing.loc[nothing["measure"] == KNN, ["index_x", "index_y"]] = -1
    text = Elements(render(nothing, make_run())).text
    assert "Mutual k-NN (k=10) is undefined for every pair of models." in text and "CKA" in text


def test_two_models_make_no_trend():
    two = (LANGUAGE[:2], VISION[:2], (2, 2))
    page = render(make_table(*two), make_run(*two))
    assert "Not drawn, for fewer than 3 models: Parameters of language models (known for 2)" in Elements(page).text
    assert not [a for tag, a in Elements(page).tags if tag == "svg" and "trend" in str(a.get("class"))]


@pytest.mark.parametrize(
    ("n_draws", "rule", "level"),
    [
        (1023, "Holm’s rule decides (family-wise; valid under any dependence)", "5 % level, corrected for 30 tests"),
        (199, "Benjamini and Hochberg’s rule decides (false discovery rate; for independent or positively dependent pairs)",
         "at most 5 % of those found are false alarms"),
    ],
)  # fmt: skip
def test_without_joint_draws_another_rule_decides_and_is_named(n_draws, rule, level):
    table = make_table(n_draws=n_draws).assign(p_maxt=np.nan)
    text = text_of(render(table, {}))
    assert f"over pairs of models {rule}" in text and f"not above chance ({level})" in text
    assert f"are above chance ({level})." in text  # without records of models, pairs are counted


# --- ceilings, intervals, restrictions ---------------------------------------------------------


def test_ceilings_stand_beside_the_chance_level(table):
    best = Pairs.of(table, KNN).best
    seeds = {"measure": KNN, "kind": "seed to seed", "model_x": best["model_y"], "model_y": "again"}
    halves = {"measure": KNN, "kind": "split half", "model_x": best["model_x"], "model_y": best["model_y"], "n": 512}
    other = {"measure": KNN, "kind": "split half", "model_x": "bloom-1b7", "model_y": "clip-large", "n": 512}
    run = make_run() | {
        "ceilings": [
            seeds | {"statistic": 0.61, "n": 1024},
            halves | {"statistic": 0.15, "selected": 0.17, "reliability": 0.9},
            other | {"statistic": 0.25, "selected": 0.27, "reliability": None},  # the higher, and yet not of the best pair
        ]
    }
    page = render(table, run)
    text = " ".join(Elements(page).text.split())
    source = f"two trainings of one model, {best['model_y']} and again"
    assert "Two trainings of one model reach 0.610." in text and f"0.610 ({source})" in text
    assert (
        "half score 0.200 on the other half of the stimuli, 0.220 on their own; layer maps repeat with a reliability of 0.900"
        in text
    )
    assert "(mean over 2 pairs of models, n = 512)" in text and f"Dashed: ceiling 0.610 ({source})." in text
    assert page.count("Two trainings of one model reach") == 1  # of this measure, not of the other
    tracks = re.findall(r'style="--grid:(.*?)"', page)
    assert [t.count("repeating-linear-gradient(var(--ink)") for t in tracks] == [1, 1, 0, 0]  # the first pairs, and the folded rest
    assert [m["ceilings"] for m in embedded(page)["measures"]] == [[f"0.610 ({source})"], []]


def test_the_ceilings_of_a_comparison_are_those_that_are_told():
    """The names and numbers of a real run, with its own keys."""
    rng = np.random.default_rng(0)
    shared_part = rng.standard_normal((120, 4))
    names = ("a", "b", "b2")
    arrays = {k: shared_part @ rng.standard_normal((4, 9)) + rng.standard_normal((120, 9)) for k in names}
    models = [
        MemoryRepresentation(
            ModelRecord(spec=f"array:{name}", name=name, modality="array"), tuple(map(str, range(120))),
            {"l0": as_features(x, name), "l1": as_features(x[:, :5], name)}, dataset_fingerprint="f",
        )
        for name, x in arrays.items()
    ]  # fmt: skip
    found = compare(
        models[:1], models[1:2], ["CKA()"], "permutation", replicates=[(models[1], models[2])], split_half=2
    )
    text = " ".join(Elements(render(found.table, found.run)).text.split())
    seeds, halves = found.run["ceilings"]
    assert f"{words.number(seeds['statistic'])} (two trainings of one model, b and b2)" in text
    score, own = words.number(halves["statistic"]), words.number(halves["selected"])
    assert f"score {score} on the other half of the stimuli, {own} on their own" in text


def test_without_ceilings_nothing_is_said_of_them(page):
    body = page[: page.index('id="words"')]
    assert "eiling" not in body and "chosen on one half" not in body and "Dashed" not in body


def test_an_interval_stands_beside_its_score(table):
    is_max = table["scope"] == "max"
    known = table.assign(low=table["statistic"].where(is_max) - 0.02, high=table["statistic"].where(is_max) + 0.03)
    best = Pairs.of(known, KNN).best
    shown = words.interval(best["statistic"], best["low"], best["high"])
    assert "[" in shown and f"{best['model_y']}: {shown}, where chance gives" in text_of(render(known, make_run()))
    assert shown in Elements(notebook_html(known, make_run())).text
    assert embedded(render(known, make_run()))["pairColumns"][-2:] == ["low", "high"]
    assert "low" not in embedded(render(table, make_run()))["pairColumns"]


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ({"shuffle": "within", "n_groups": 12, "digest": "x"}, "stimuli change places only within their 12 groups"),
        ({"shuffle": "whole", "n_groups": 48, "digest": "x"}, "48 groups of stimuli change places as wholes"),
    ],
)
def test_a_restricted_null_is_told_in_words(table, groups, told):
    run = make_run()
    text = Elements(render(table, run | {"null": run["null"] | {"groups": groups}})).text
    assert f"{told[:1].upper()}{told[1:]}." in text and f"restricted: {told}" in text
    assert "restricted: " not in Elements(render(table, run)).text


def test_a_mean_over_layers_is_told_as_such(table):
    matched = table.assign(search=np.where(table["scope"] == "max", "studentised matching", None))
    text = Elements(render(matched, make_run() | {"search": "studentised matching"})).text
    assert "search over layers: the mean over the best one-to-one matching of layers, by their height above" in text


# --- self-contained and safe -------------------------------------------------------------------


def test_nothing_is_fetched(page):
    for tag, attributes in Elements(page).tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, name, target)
    style = "".join(re.findall(r"<style>(.*?)</style>", page, flags=re.S))
    assert "@import" not in style and set(re.findall(r"url\((.*?)\)", style)) == {"#hatch"}
    script = Elements(page).scripts[-1]
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(|\.src\s*=", script)
    assert set(re.findall(r"https?://[^\s\"'<)]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_the_policy_allows_this_script_alone(page):
    (policy,) = [a["content"] for tag, a in Elements(page).tags if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(Elements(page).scripts[-1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1] and "connect-src" not in policy


def test_hostile_names_stay_text():
    """Names of models, layers, families, datasets and messages: no element or script comes of them."""
    language = [(HOSTILE, HOSTILE, 1e8, 0.9), ("b", "F", 1e9, 0.8), ("c", "F", 1e10, 0.7)]
    table = make_table(language, VISION[:2], (2, 2)).assign(dataset=HOSTILE, layer_x=HOSTILE)
    run = make_run(language, VISION[:2], (2, 2))
    run |= {
        "name": HOSTILE,
        "warnings": [HOSTILE],
        "versions": {HOSTILE: HOSTILE},
        "dataset": {"name": HOSTILE, "source": HOSTILE},
    }
    run["findings"] = [{"model": HOSTILE, "layer": HOSTILE, "code": HOSTILE, "severity": HOSTILE, "message": HOSTILE}]
    run["models"][0] |= {"spec": HOSTILE, "revision": HOSTILE, "objective": HOSTILE, "scores": {HOSTILE: 0.5}}
    run["models"][1]["scores"] = {HOSTILE: 0.6}
    plain = Elements(render(make_table(LANGUAGE[:3], VISION[:2], (2, 2)), make_run(LANGUAGE[:3], VISION[:2], (2, 2))))
    found = Elements(render(table, run))
    assert not [a for tag, a in found.tags if tag == "img" or any(name.startswith("on") for name in a)]
    assert len(found.scripts) == len(plain.scripts)
    assert HOSTILE in found.text and embedded(render(table, run))["models"][0] == HOSTILE
    shown = notebook_html(table, run)
    assert "<script" not in shown and shown.count("<img") == shown.count('<img style="max-width:100%" src="data:image/png;') == 1


def test_data_cannot_leave_their_script():
    """In the scripts of data `<` never stands, so nothing in them ends a script; they are read back as they were."""
    language = [(HOSTILE, "F", 1e8, 0.9), ("b", "F", 1e9, 0.8)]
    shown = render(make_table(language, VISION[:2], (2, 2)), make_run(language, VISION[:2], (2, 2)) | {"name": HOSTILE})
    bodies = re.findall(r'<script type="application/json" id="[^"]+">(.*?)</script>', shown, flags=re.S)
    assert len(bodies) == 3 and not any("<" in body for body in bodies)
    assert embedded(shown)["name"] == HOSTILE and embedded(shown)["models"][0] == HOSTILE


def test_data_without_a_json_number_are_refused(table, monkeypatch):
    monkeypatch.setattr(payload, "data", lambda *_: {"data": {"x": math.nan}})
    with pytest.raises(ValueError, match="not JSON compliant"):
        render(table, make_run())


def decode(block: str, fields: list[dict], shape: tuple[int, int], exact: bool) -> dict[str, np.ndarray]:
    """What a block holds, as the page's script reads it."""
    raw = np.frombuffer(base64.b64decode(block), "<f8" if exact else "<u2").reshape(len(fields), *shape)
    if exact:
        return {f["name"]: raw[k].astype(float) for k, f in enumerate(fields)}
    steps = np.where(raw == 65_535, np.nan, raw.astype(float))
    values = {f["name"]: f["low"] + steps[k] * f["step"] for k, f in enumerate(fields)}
    return {f["name"]: 10 ** values[f["name"]] if f["log"] else values[f["name"]] for f in fields}


# --- the data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_embedded_cells_are_those_of_the_table(table, monkeypatch, exact):
    monkeypatch.setattr(payload, "EXACT_CELLS", 10**6 if exact else 0)
    page = render(table, make_run())
    data = embedded(page)
    assert data["exact"] is exact and data["cellCount"] == 2100
    for m, measure in enumerate((KNN, CKA)):
        cells = embedded(page, f"cells-{m}")
        entry = data["measures"][m]
        for k, pair in enumerate(entry["pairs"]):
            x, y = data["models"][pair[0]], data["models"][pair[1]]
            rows = table[
                (table["scope"] == "cell")
                & (table["measure"] == measure)
                & (table["model_x"] == x)
                & (table["model_y"] == y)
            ]
            lx, ly = shape = tuple(entry["maps"][k]["shape"])
            assert shape == (7, 5)
            decoded = decode(cells["blocks"][k], cells["fields"], shape, exact)
            for name, values in decoded.items():
                expected = rows[name].to_numpy().reshape(lx, ly)
                span = np.nanmax(table.loc[(table["scope"] == "cell") & (table["measure"] == measure), name]) or 1.0
                np.testing.assert_allclose(values, expected, rtol=0, atol=(0.0 if exact else 1e-5) * abs(span))
            for name in ("pvalue", "p_stepdown"):  # ranks over the draws, so that a p at its floor stays there
                np.testing.assert_allclose(
                    decoded[name] * 1024, rows[name].to_numpy().reshape(lx, ly) * 1024, atol=1e-3
                )


def test_embedded_pairs_are_those_of_the_table(page, table):
    data = embedded(page)
    for m, measure in enumerate((KNN, CKA)):
        rows = rows_of(table, "max", measure).to_dict("records")
        for row, pair in zip(rows, data["measures"][m]["pairs"], strict=True):
            assert [data["models"][pair[0]], data["models"][pair[1]]] == [row["model_x"], row["model_y"]]
            for name, value in zip(data["pairColumns"], pair[5:], strict=True):
                assert (value is None and math.isnan(row[name])) or value == pytest.approx(row[name], rel=1e-6)
        best = data["measures"][m]["best"]
        top = Pairs.of(table, measure).best
        assert rows[best]["model_x"] == top["model_x"] and rows[best]["model_y"] == top["model_y"]
        assert data["measures"][m]["maps"][best]["best"] == [top["index_x"], top["index_y"]]


def test_beyond_a_limit_only_the_best_pairs_have_their_maps(table, monkeypatch):
    monkeypatch.setattr(payload, "EXACT_CELLS", 0)
    monkeypatch.setattr(payload, "MOST_CELLS", 2 * 3 * 35)
    page = render(table, make_run())
    entry = embedded(page)["measures"][0]
    shapes = [tuple(m["shape"]) for m in entry["maps"]]
    pairs = rows_of(table, "max", KNN)
    best = pairs.sort_values("calibrated", ascending=False).index[:3]
    assert [k for k, shape in enumerate(shapes) if shape == (7, 5)] == sorted(best)
    assert shapes.count((0, 0)) == 27 and "Only the layer maps of the best aligned pairs" in Elements(page).text


@pytest.fixture(scope="module")
def many() -> tuple[pd.DataFrame, dict]:
    return made(120)


def test_of_many_models_the_page_has_groups_and_both_ends(many):
    """7,140 pairs under two measures: means over families, whose best pairs are there, and the best and the worst 100."""
    table, run = many
    page = render(table, run, "results/results.parquet")
    assert len(page) < 1.2e6
    data, family = embedded(page), {one["name"]: one["family"] for one in run["models"]}
    for m, measure in enumerate((KNN, CKA)):
        entry, rows = data["measures"][m], rows_of(table, "max", measure)
        grid, names = entry["grid"], [name.rpartition(" (")[0] for name in entry["grid"]["rows"]]
        assert sorted(names) == sorted(set(family.values()))
        assert list(entry["matrix"]) == ["statistic", "gain", "null_mean", "calibrated"]
        of = rows.assign(a=rows["model_x"].map(family), b=rows["model_y"].map(family))
        pairs = [(data["models"][p[0]], data["models"][p[1]]) for p in entry["pairs"]]
        for i, a in enumerate(names):
            for j, b in enumerate(names):
                some = of.loc[((of["a"] == a) & (of["b"] == b)) | ((of["a"] == b) & (of["b"] == a))]
                assert entry["matrix"]["statistic"]["texts"][i][j] == words.number(some["statistic"].mean())
                assert [grid["counts"][c][i][j] for c in (0, 1)] == [len(some), (some["p_maxt"] <= 0.05).sum()]
                best = some.sort_values(["calibrated", "z"]).iloc[-1]
                assert pairs[grid["index"][i][j]] == (best["model_x"], best["model_y"])
        order = rows.sort_values(["calibrated", "z", "statistic"], ascending=False, kind="stable")
        ends = order[["model_x", "model_y"]].to_numpy().tolist()
        assert {tuple(pair) for pair in [*ends[:90], *ends[-90:]]} <= set(pairs) and len(pairs) < 300
        assert pairs[entry["best"]] == tuple(ends[0]) and entry["pairCount"] == 7140
    assert "7,140 pairs of models are too many for one page" in text_of(page) and "results/results.parquet" in text_of(page)


def test_many_models_without_families_are_grouped_by_their_scores(many):
    """The families that made the scores are found again without their names."""
    table, run = many
    family = {one["name"]: one["family"] for one in run["models"]}
    pairs = Pairs.of(table, KNN)
    groups = Grouped.of(pairs, [])
    assert groups is not None and len(groups.names[0]) <= MOST_GROUPS and "alike" in groups.why
    of = dict(zip(pairs.rows["model_x"], groups.x, strict=True)) | dict(zip(pairs.rows["model_y"], groups.y, strict=True))
    mixed = [len({family[name] for name in of if of[name] == g}) for g in set(of.values())]
    assert max(mixed) == 1
    assert Grouped.of(Pairs.of(make_table()), []) is None


def test_figures_of_many_models_keep_their_size(many):
    table, run = many
    matrix, chance = (figures_kinds.FIGURES[kind].relate(Alignment(table, run), KNN) for kind in ("matrix", "null"))
    assert len(matrix.rows) == 12 and "7,140 pairs are too many" in matrix.text and len(matrix.table) == 12
    assert len(chance.observed) == len(chance.pairs) == 200 and len(chance.table) == 7140
    assert (np.diff(chance.observed) <= 0).all() and chance.observed[0] == rows_of(table, "max", KNN)["statistic"].max()


def test_closed_form_pvalues_keep_their_size_when_packed(table, monkeypatch):
    """Cells without draws: p down to 1e-18 within 0.05 %, and no floor is claimed for them."""
    monkeypatch.setattr(payload, "EXACT_CELLS", 0)
    cells = table["scope"] == "cell"
    closed = table.copy()
    closed.loc[cells, ["null", "n_draws"]] = ["moments", 0]
    closed.loc[cells, "pvalue"] = np.geomspace(1e-18, 1, int(cells.sum()))
    page = render(closed, make_run())
    entry, pack = embedded(page)["measures"][0], embedded(page, "cells-0")
    assert (entry["draws"], entry["cellDraws"]) == (1023, 0)
    found = decode(pack["blocks"][0], pack["fields"], (7, 5), exact=False)["pvalue"]
    np.testing.assert_allclose(found.ravel(), closed.loc[cells, "pvalue"].to_numpy()[:35], rtol=5e-4)
    stepdown = decode(pack["blocks"][0], pack["fields"], (7, 5), exact=False)["p_stepdown"] * 1024
    np.testing.assert_allclose(stepdown, np.rint(stepdown), atol=1e-9)  # still from draws: whole ranks
    at = embedded(page)["cellViews"].index("p_stepdown")
    assert entry["common"][at] == [0.05, 1 / 1024]
    text = Elements(page).text
    assert (
        "pairs of models by 1,023 draws" in text and "single pairs of layers by exact mean, spread and skewness" in text
    )


def test_a_quantity_that_is_constant_survives_packing():
    field, steps = payload.coded("statistic", np.array([0.25, 0.25, np.nan]), 199, exact=False)
    block = base64.b64encode(np.nan_to_num(steps[1:], nan=payload.UNDEFINED).astype("<u2").tobytes()).decode()
    values = decode(block, [field], (1, 2), exact=False)["statistic"]
    np.testing.assert_array_equal(values, [[0.25, np.nan]])


@pytest.mark.slow
def test_a_study_of_the_papers_size_stays_small():
    """12 x 17 models of 33 and 24 layers under two measures: 323,136 cells in less than 6 MB."""
    language = [(f"language-{i}", "F", 10 ** (8 + i / 6), 1.0) for i in range(12)]
    vision = [(f"vision-{i}", "F", 10 ** (7 + i / 6), 80.0) for i in range(17)]
    page = render(make_table(language, vision, (33, 24)), make_run(language, vision, (33, 24)))
    assert len(page.encode()) < 6_000_000
    assert embedded(page)["cellCount"] == 323_136 and "The exact table of all pairs of layers" in page


# --- files -------------------------------------------------------------------------------------


def test_the_report_reads_a_folder_and_writes_one_file(tmp_path, table):
    folder = Alignment(table, make_run()).save(tmp_path / "results")
    path = write_report(folder, tmp_path / "deep" / "r.html")
    assert path == tmp_path / "deep" / "r.html" and [p.name for p in path.parent.iterdir()] == ["r.html"]
    assert "<code>../results/results.parquet</code>" in path.read_text("utf-8")
    first = path.read_bytes()
    assert write_report(folder, path).read_bytes() == first
    assert write_report(folder, tmp_path).name == "report.html"


def test_the_report_of_a_result_in_memory(tmp_path):
    """The same page, but for the place of the table; the room is the function, imported or not."""
    import repalign.report

    table = make_table(LANGUAGE[:1], VISION[:1], (2, 2)).query("measure == @KNN")
    result = Alignment(table, make_run(LANGUAGE[:1], VISION[:1], (2, 2)))
    path = repalign.report(result, tmp_path / "deep" / "r.html", static=tmp_path / "figures")
    assert path.is_file() and (tmp_path / "figures" / "files.json").is_file()
    page, saved = path.read_text("utf-8"), write_report(result.save(tmp_path / "results"), tmp_path / "s.html").read_text("utf-8")
    assert "all numbers: <code>result.table</code>" in page
    bare = [re.sub(r"repalign-sha256:\w+", "", text) for text in (page.replace("result.table", "results/results.parquet"), saved)]
    assert len(bare[0]) == len(bare[1]) and inspect.signature(repalign.report) == inspect.signature(write_report)


def test_a_folder_without_a_result_is_an_error(tmp_path):
    with pytest.raises(RepalignError, match=r"not a finished result(.|\n)*results.parquet"):
        write_report(tmp_path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_table_of_cells_only_is_an_error(table):
    with pytest.raises(RepalignError, match="no pairs of models"):
        render(table[table["scope"] == "cell"], {})


def test_static_figures_on_request(tmp_path):
    language, vision = LANGUAGE[:3], VISION[:1]
    table = make_table(language, vision, (2, 2))
    both = Alignment(table[table["measure"] == KNN], make_run(language, vision, (2, 2)))
    names = [("figures", 0), ("report", 0)]
    seen = []

    def progress(task: str, done: int, total: int, note: str | None = None) -> None:
        seen.append((task, done))

    write_report(both.save(tmp_path / "r"), tmp_path / "r.html", static=tmp_path / "f", progress=progress)
    stems = {p.stem for p in (tmp_path / "f").iterdir()}
    assert {p.suffix for p in (tmp_path / "f").iterdir()} == {".svg", ".png", ".csv", ".json"}
    assert {s.split("-mutual")[0] for s in stems - {"files"}} == {
        "matrix-statistic", "matrix-calibrated", "matrix-pvalue", "chance", "trend-x-n_parameters",
        "trend-x-bits_per_byte", "layers-bloom-560m-vit-tiny-in21k", "layers-bloom-1b7-vit-tiny-in21k",
        "layers-bloom-7b1-vit-tiny-in21k",
    }  # fmt: skip
    svg = (tmp_path / "f" / "chance-mutual-k-NN-k-10.svg").read_text("utf-8")
    assert "bloom-560m × vit-tiny-in21k" in svg  # text stays text
    assert set(names) <= set(seen)


# --- a notebook --------------------------------------------------------------------------------


def test_a_notebook_shows_matrix_and_best_pairs(table):
    shown = notebook_html(table, make_run())
    text = Elements(shown).text
    assert "mutual k-NN (k=10)" in text and "n = 1,024" in text and "and 25 more pairs: .best()" in text
    assert f"○ {words.number(rows_of(table, 'max', CKA).query('model_y == @BLIND')['statistic'].iloc[0])}" in text
    assert "<script" not in shown and "class=" not in shown
    best = Pairs.of(table, KNN).best
    rows = re.findall(r"<tr>(.*?)</tr>", shown, flags=re.S)
    first = next(r for r in rows if " × " in r)
    assert f"{best['model_x']} × {best['model_y']}" in html.unescape(first) and words.number(best["statistic"]) in first
    assert notebook_html(table, {}) and "without pairs" in notebook_html(table.head(0), {})


def test_one_pair_has_no_matrix(table):
    one = table[(table["model_x"] == "llama-13b") & (table["model_y"] == "clip-large")]
    shown = notebook_html(one, {})
    assert shown.count("<table") == 2  # the best pairs of both measures
    assert embedded_picture(shown).size[1] > 300  # their layers
    assert "<img" not in notebook_html(one[one["scope"] == "max"], {})


def embedded_picture(shown: str) -> Image.Image:
    """The one picture of a result in a notebook, which is small."""
    (data,) = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', shown)
    assert len(data) < 200_000
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_first_matrix_of_a_notebook_is_a_picture(table, monkeypatch):
    shown = notebook_html(table, make_run())
    width, height = embedded_picture(shown).size
    assert 400 < width <= 1000 and height > 200 and "Best: " in re.findall('alt="([^"]+)"', shown)[0]
    assert shown.count("<table") == 3  # the best pairs of both measures, and the matrix of the second
    monkeypatch.setattr("repalign.report.page.MAX_CELLS", 29)
    assert "<img" not in notebook_html(table, {})  # of many models it would take long


# --- axes --------------------------------------------------------------------------------------


def test_ticks_are_round_and_inside():
    assert ticks(0.011, 0.2, 5) == [(0.05, "0.05"), (0.1, "0.10"), (0.15, "0.15"), (0.2, "0.20")]

    def values(low: float, high: float) -> list[float]:
        return [t for t, _ in ticks(low, high, log=True)]

    assert values(3e8, 2e10) == [5e8, 1e9, 2e9, 5e9, 1e10, 2e10] and values(1e6, 1e10) == [1e6, 1e7, 1e8, 1e9, 1e10]
    assert values(1e9, 1.25e9) == [1e9, 1.05e9, 1.1e9, 1.15e9, 1.2e9, 1.25e9]  # less than a decade: plain steps
    assert ticks(1.0, 1.0) == [(1.0, "1")] and ticks(-0.5, 0.1, 1) == [(-0.5, "−0.5"), (0.0, "0.0")]


# --- in a browser ------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

# What a person would do; runs in a copy of the page without its policy.
PROBE = """
const seen = { errors: [] };
const get = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const text = (selector) => get(selector).textContent;
const cells = (selector) => all(selector).map((row) => [...row.children].map((cell) => cell.textContent));
const press = (selector, words) => all(selector).find((b) => b.textContent.startsWith(words)).click();
const enter = (selector, value, event) => {
  get(selector).value = value;
  get(selector).dispatchEvent(new Event(event));
};
const dots = () => all("#layer-map circle").map((c) => [Number(c.getAttribute("cx")), Number(c.getAttribute("cy"))]);
const report = () => {
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
};
const hashed = () => decodeURIComponent(location.hash);
const act = async () => {
  seen.words = document.body.innerText.split(/\\s+/).length;
  seen.matrix = cells(".matrix tbody tr");
  seen.views = all("#matrix-view button").map((b) => b.textContent);
  seen.layerViews = all("#layer-view button").map((b) => b.textContent);
  seen.note = text("#layer-note");
  seen.ticks = all("#layer-legend .ticks span").map((t) => t.textContent);
  seen.chosen0 = dots();
  seen.few = cells("#rows thead tr")[0];
  get("#all-columns").click();
  seen.readout = text("#readout");
  seen.table = cells("#rows tbody tr");
  press("#rows thead button", "Model x");
  seen.sorted = cells("#rows tbody tr").map((row) => row[0]);
  press("#rows thead button", "Score");
  seen.down = cells("#rows tbody tr").map((row) => row[4]);
  press("#matrix-view button", "p (maxT)");
  seen.maxt = cells(".matrix tbody tr");
  enter("#matrix-view select", "p_holm", "change");
  seen.holm = cells(".matrix tbody tr");
  press("#matrix-view button", "Above");
  seen.gain = cells(".matrix tbody tr");
  all(".matrix td button")[8].click();
  seen.chosen = text("#readout h4");
  seen.dots = dots();
  seen.side = Number(get("#layer-map rect.cell").getAttribute("width"));
  press("#layer-view button", "p");
  get("#layer-map svg").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
  seen.cell = text("#readout");
  seen.rects = all("#layer-map rect.cell").length;
  seen.hatched = all("#layer-map rect.qx").length;
  seen.maps = all("#atlas canvas").length;
  enter("#scope", "cell", "change");
  seen.cellHeads = cells("#rows thead tr")[0];
  seen.cellRows = text("#table-count");
  enter("#find", "llama-13b clip layer.6", "input");
  seen.foundRows = text("#table-count");
  let blob;
  const make = URL.createObjectURL;
  URL.createObjectURL = (given) => { blob = given; return make(given); };
  get("#csv").click();
  seen.csv = await blob.text();
  seen.file = hashed();
  press("#measure button", "CKA");
  seen.hash = hashed();
  seen.headlines = all("#answer h1").map((h) => Boolean(h.closest(".by-measure").offsetParent));
  get("a.term[href='#term-rank-correlation']").click();
  seen.told = text("#told");
  all("[data-figure=answer] [data-save=svg]").find((b) => b.offsetParent).click();
  seen.svg = await blob.text();
  seen.second = text("#matrix-meaning");
  seen.undefined = cells(".matrix tbody tr");
  seen.trendShown = all("#trends .by-measure").map((block) => !block.hidden);
  get("#theme").click();
  seen.theme = document.documentElement.dataset.theme;
  seen.wide = document.documentElement.scrollWidth - innerWidth;
};
act().catch((error) => { seen.errors.push(String(error.stack)); }).finally(report);
"""


def browse(page: str, folder: Path, size: str = "1280,1000", *options: str, hash: str = "") -> tuple[str, str]:
    """The page's elements after its script ran, and what the browser's console said."""
    file = folder / "page.html"
    file.write_text(page, "utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        "--v=0", f"--user-data-dir={folder / 'profile'}", f"--window-size={size}", "--virtual-time-budget=5000",
        *options, "--dump-dom", file.as_uri() + hash,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, console


@pytest.fixture(scope="module")
def probed(page, tmp_path_factory) -> dict:
    open_page = re.sub(r"<meta http-equiv=.*?>", "", page).replace("</body>", f"<script>{PROBE}</script></body>")
    dom, console = browse(open_page, tmp_path_factory.mktemp("probe"))
    assert console == ""
    seen = json.loads(html.unescape(re.findall(r'<pre id="probe">(.*?)</pre>', dom, flags=re.S)[0]))
    assert seen["errors"] == []
    return seen


@needs_chromium
@pytest.mark.parametrize("size", ["1280,1000", "500,900"])
def test_the_page_draws_itself_under_its_policy(page, tmp_path, size):
    dom, console = browse(page, tmp_path, size)
    assert 'data-ready="yes"' in dom and console == ""


@needs_chromium
def test_the_browser_reports_errors_at_all(page, tmp_path):
    """The test above can fail: a broken script shows in the console, a foreign one is stopped by the policy."""
    foreign = page.replace("</body>", "<script>document.documentElement.dataset.foreign = 1</script></body>")
    dom, console = browse(foreign, tmp_path)
    assert "data-foreign" not in dom and "Content Security Policy" in console
    (tmp_path / "broken").mkdir()
    dom, console = browse(page.replace('id="layer-map"', ""), tmp_path / "broken")
    assert 'data-ready="yes"' not in dom and console != ""


@needs_chromium
def test_matrix_readout_and_table_show_the_numbers_of_the_table(probed, table):
    pairs = rows_of(table, "max", KNN)
    best = Pairs.of(table, KNN).best
    for shown, (x, *_) in zip(probed["matrix"], LANGUAGE, strict=True):
        rows = [r for r in pairs.to_dict("records") if r["model_x"] == x]
        marks = ["" if r["p_maxt"] <= 0.05 else "○ " for r in rows]
        assert shown == [x, *(m + words.number(r["statistic"]) for m, r in zip(marks, rows, strict=True))]
    assert f"{best['model_x']} × {best['model_y']}" in probed["readout"]
    expected = pairs.sort_values("calibrated", ascending=False, kind="stable").to_dict("records")
    names = ["statistic", "null_mean", "null_std", "z"]
    for shown, row in zip(probed["table"], expected, strict=True):
        numbers = [words.number(row[c]) for c in names]
        ps = [words.pvalue(row[c], 1023) for c in ("pvalue", "p_maxt")]
        ps += [words.pvalue(row[c]) for c in ("p_holm", "p_bh", "p_by")]
        ends = [words.number(row["threshold"]), words.number(row["calibrated"])]
        assert shown == [row["model_x"], row["layer_x"], row["model_y"], row["layer_y"], *numbers, *ps, *ends]


@needs_chromium
def test_views_selection_and_keyboard(probed, table):
    pairs = rows_of(table, "max", KNN)
    row = pairs[(pairs["model_x"] == LANGUAGE[1][0]) & (pairs["model_y"] == VISION[2][0])].to_dict("records")[0]
    assert probed["chosen"] == f"{row['model_x']} × {row['model_y']}"
    assert probed["maxt"][1][3] == "○ " + words.pvalue(row["p_maxt"], 1023)
    assert probed["holm"][1][3] == "○ " + words.pvalue(row["p_holm"])
    assert probed["gain"][1][3] == "○ " + words.number(row["statistic"] - row["null_mean"])
    cell = frame_cell(table, row, -1)
    assert f"layer.{cell['index_x']} × layer.{cell['index_y']}" in probed["cell"].split("Cell")[1]
    assert words.number(cell["statistic"]) in probed["cell"].split("Cell")[1]
    assert (probed["rects"], probed["hatched"], probed["maps"]) == (35, 1, 30)


@needs_chromium
def test_the_page_shows_one_adjusted_p_and_the_rest_on_request(probed):
    assert probed["views"] == ["Score", "Above chance", "Chance level", "Calibrated", "p", "p (maxT)"]
    assert probed["layerViews"] == ["Score", "Above chance", "Chance level", "Calibrated", "p", "p (step-down)"]
    assert probed["few"][4:] == ["Score", "Chance", "p", "p (maxT)", "Threshold", "Calibrated ↓"]
    assert "p (step-down)" in probed["cellHeads"] and "p (maxT)" not in probed["cellHeads"]


def dotted(table, x, y) -> set[tuple[int, int]]:
    """Cells above chance, family-wise, by a plain loop over the table."""
    rows = table[
        (table["scope"] == "cell") & (table["measure"] == KNN) & (table["model_x"] == x) & (table["model_y"] == y)
    ]
    return {(r["index_x"], r["index_y"]) for r in rows.to_dict("records") if r["p_stepdown"] <= 0.05}


@needs_chromium
def test_cells_above_chance_have_a_dot(probed, table):
    best = Pairs.of(table, KNN).best
    expected = dotted(table, best["model_x"], best["model_y"])
    assert len(probed["chosen0"]) == len(expected)
    assert probed["note"] == f"● above chance: {len(expected)} of 34 pairs of layers (5 % level, corrected for 34 tests)."
    side = probed["side"]
    drawn = {(6 - int(cy // side), int(cx // side)) for cx, cy in probed["dots"]}  # first layers at the lower left
    assert drawn == dotted(table, LANGUAGE[1][0], VISION[2][0])


@needs_chromium
def test_the_legend_has_chance_and_both_thresholds(probed, table):
    best = Pairs.of(table, KNN).best
    assert probed["ticks"][-2] == "chance 0.00978 and below"
    single = table[(table["scope"] == "cell") & (table["measure"] == KNN)]["threshold"].median()
    told = {
        f"threshold {words.number(single)}, one pair of layers (median)",
        f"threshold {words.number(best['threshold'])}, the search",
    }
    assert set(probed["ticks"][:2]) == told


@needs_chromium
def test_results_without_stepdown_have_no_dots_and_say_so(table, tmp_path):
    old = table.assign(p_stepdown=np.nan, p_maxt=np.nan, p_by=np.nan)
    dom, console = browse(render(old, make_run()), tmp_path)
    assert (
        'data-ready="yes"' in dom
        and console == ""
        and "<circle" not in dom[dom.index('id="layer-map"') : dom.index('id="trends"')]
    )
    assert "Nothing is marked: this result has no p-values over the pairs of layers." in dom
    assert "p (step-down)</button>" not in dom and "p (Holm)</button>" in dom and 'value="p_by"' not in dom


@needs_chromium
def test_dots_survive_packing(table, tmp_path, monkeypatch):
    """A p at alpha in 16 bits is still at alpha: 10 of 200 ranks."""
    few = make_table(LANGUAGE[:1], VISION[:1], (3, 3), n_draws=199)
    few.loc[few["scope"] == "cell", "p_stepdown"] = np.array([10, 11, 1, 9, 200, 10, 12, 10, 30] * 2) / 200
    monkeypatch.setattr(payload, "EXACT_CELLS", 0)
    dom, console = browse(render(few, make_run(LANGUAGE[:1], VISION[:1], (3, 3))), tmp_path)
    assert (
        console == ""
        and len(re.findall(r"<circle [^>]*r=", dom[dom.index('id="layer-map"') : dom.index('id="layer-note"')])) == 5
    )


@needs_chromium
def test_an_interval_stands_in_the_table_and_the_readout(table, tmp_path):
    is_max = table["scope"] == "max"
    known = table.assign(low=table["statistic"].where(is_max) - 0.02, high=table["statistic"].where(is_max) + 0.03)
    best = Pairs.of(known, KNN).best
    dom, console = browse(render(known, make_run()), tmp_path)
    shown = words.interval(best["statistic"], best["low"], best["high"])
    readout, rows = dom[dom.index('id="readout"') : dom.index('id="atlas-title"')], dom[dom.index('id="rows"') :]
    assert console == "" and shown in readout and shown in rows


def frame_cell(table, row, down):
    """The cell below the best one, as the arrow key moves; the lowest row stays."""
    i = max(0, row["index_x"] + down)
    cells = table[(table["scope"] == "cell") & (table["measure"] == KNN)]
    chosen = cells[(cells["model_x"] == row["model_x"]) & (cells["model_y"] == row["model_y"])]
    return chosen[(chosen["index_x"] == i) & (chosen["index_y"] == row["index_y"])].to_dict("records")[0]


@needs_chromium
def test_sorting_filtering_and_csv(probed, table):
    natural = ["bloom-1b7", "bloom-7b1", "bloom-560m", "llama-13b", "openllama-3b"]  # numbers in names count as numbers
    assert list(dict.fromkeys(probed["sorted"])) == natural and len(probed["sorted"]) == 30
    scores = [float(v) for v in probed["down"]]
    assert scores == sorted(scores, reverse=True)
    assert probed["cellRows"].startswith("50 of 1,050 rows shown")
    lines = probed["csv"].split("\r\n")
    assert probed["foundRows"].startswith("5 of 5 rows shown") and len(lines) == 5 + 2 and lines[-1] == ""
    frame = pd.read_csv(io.StringIO(probed["csv"]))
    cells = table[(table["scope"] == "cell") & (table["measure"] == KNN) & (table["index_x"] == 6)]
    cells = cells[(cells["model_x"] == "llama-13b") & (cells["model_y"] == "clip-large")]
    frame = frame.sort_values("layer_y")
    assert list(frame["measure"].unique()) == [KNN] and list(frame["layer_y"]) == list(cells["layer_y"])
    for column in ("statistic", "null_mean", "threshold", "calibrated", "pvalue", "z"):
        np.testing.assert_allclose(frame[column], cells[column], rtol=1e-12)


@needs_chromium
def test_measure_theme_and_width(probed):
    assert probed["second"].startswith("CKA, n = 1,024")
    i, j = ([m[0] for m in side].index(name) for side, name in zip((LANGUAGE, VISION), CONSTANT, strict=True))
    assert probed["undefined"][i][j + 1] == "–"
    assert probed["trendShown"] == [False, True] and probed["headlines"] == [False, True] and probed["theme"] == "dark"
    assert probed["wide"] <= 0  # the page itself never scrolls sideways
    assert probed["words"] < 1000  # as opened: what is folded is not read


@needs_chromium
def test_the_address_words_and_pictures(probed):
    """The chosen pair and measure are in the address, a word shows its meaning, the picture is saved as it is seen."""
    assert probed["file"] == f"#x={LANGUAGE[1][0]}&y={VISION[2][0]}"
    assert probed["hash"] == f"#m=cka&x={LANGUAGE[1][0]}&y={VISION[2][0]}"
    assert probed["told"].startswith("rank correlationFrom −1 to +1")
    root = ElementTree.fromstring(probed["svg"])
    said = " ".join(node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text"))
    assert root.tag.endswith("svg") and "Vision models" in said and "clip-large" in said
    assert "CKA; n = 1,024" in said


@needs_chromium
def test_a_link_opens_the_measure_and_the_pair_that_it_names(page, tmp_path):
    link = f"#m=cka&x={LANGUAGE[0][0]}&y={VISION[1][0]}"
    dom, console = browse(page, tmp_path, "390,844", hash=link)
    readout = dom[dom.index('id="readout"') :]
    assert console == "" and f"<h4>{LANGUAGE[0][0]} × {VISION[1][0]}</h4>" in readout and "; CKA</p>" in readout


@needs_chromium
def test_hostile_names_do_nothing_in_a_browser(tmp_path):
    language = [(HOSTILE, HOSTILE, 1e8, 0.9), ("b", "F", 1e9, 0.8)]
    table = make_table(language, VISION[:2], (2, 2)).assign(layer_y=HOSTILE)
    page = render(table, make_run(language, VISION[:2], (2, 2)))
    unguarded = re.sub(r"<meta http-equiv=.*?>", "", page)
    dom, console = browse(unguarded, tmp_path)
    assert 'data-ready="yes"' in dom and "<img" not in dom and console == ""


@needs_chromium
def test_pairs_without_a_map_draw_themselves(table, tmp_path, monkeypatch):
    monkeypatch.setattr(payload, "EXACT_CELLS", 0)
    monkeypatch.setattr(payload, "MOST_CELLS", 0)
    dom, console = browse(render(table, make_run()), tmp_path)
    assert 'data-ready="yes"' in dom and console == "" and "No layer map is stored for this pair." in dom


@needs_chromium
def test_many_models_draw_themselves(many, tmp_path):
    dom, console = browse(render(*many), tmp_path)
    assert 'data-ready="yes"' in dom and console == ""
    matrix = re.search(r'<table class="matrix".*?</table>', dom, flags=re.S)
    assert matrix is not None and matrix[0].count("<button") == 12 * 12 and "are too many to show one by one" in dom


@needs_chromium
def test_all_against_all_draws_itself(tmp_path):
    table = make_table(LANGUAGE[:3], VISION[:3], (3, 3))
    names = [m[0] for m in LANGUAGE[:3]]
    keep = {(VISION[0][0], 0): (0, 1), (VISION[1][0], 0): (0, 2), (VISION[2][0], 1): (1, 2)}
    parts = []
    for (vision, i), (a, b) in keep.items():
        rows = table[(table["model_y"] == vision) & (table["model_x"] == names[i])]
        parts.append(rows.assign(model_x=names[a], model_y=names[b]))
    run = make_run(LANGUAGE[:3], (), (3, 3)) | {"sides": {"x": names, "y": names}}
    dom, console = browse(render(pd.concat(parts, ignore_index=True), run), tmp_path)
    assert 'data-ready="yes"' in dom and console == ""
    matrix = re.search(r'<table class="matrix".*?</table>', dom, flags=re.S)
    assert matrix is not None and matrix[0].count("<button") == 2 * 3 and "all models" in dom
