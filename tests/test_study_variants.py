"""Variants, sweeps and files that extend others: what is run, what is written, and what is wrong with its line."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pandas as pd
import pytest

from repalign.comparison.alignment import Alignment
from repalign.comparison.check import check
from repalign.errors import RepalignError
from repalign.measures import CKA
from repalign.representation import break_pairs, sample_rows
from repalign.study import load_study
from repalign.study.alignment import folder_name

BASE = """\
name: base
dataset: {arrays: {thing: thing.npy}, row_ids: ids.txt}
models:
  x: [{spec: "array:x.npy", name: mine, modality: thing, ids: rows}]
  y: [{spec: "array:y.npy", name: theirs, modality: thing, ids: rows}]
measures: ["MutualKNN(k=5)", "CKA()"]
null: {method: permutation, draws: 19}
"""
N = 80


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 6))
    np.save(tmp_path / "thing.npy", np.arange(float(N))[:, None])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x @ rng.standard_normal((6, 9)) + 0.3 * rng.standard_normal((N, 9)))
    (tmp_path / "ids.txt").write_text("\n".join(f"s{i}" for i in range(N)))
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def write(folder, text: str, name: str = "study.yaml"):
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


def test_named_variants_change_fields_and_nothing_else(folder):
    study = load_study(
        write(folder, BASE + "variants:\n  as it is: {}\n  raw: {search: raw}\n  few: {null.draws: 9, measures: [CKA()]}\n")
    )
    plain, raw, few = study.variants
    assert [v.name for v in study.variants] == ["as it is", "raw", "few"]
    assert plain.search is None and raw.search.startswith("raw") and len(few.measures) == 1
    assert few.config.null.draws == 9 and few.config.null.method == "permutation" and plain.config.null.draws == 19


def test_a_sweep_runs_every_combination_and_labels_it(folder):
    swept = "sweep:\n  rows.n: [30, 60]\n  measures: {near: [MutualKNN(k=2)], all: [CKA()]}\n"
    text = BASE + "variants: {a: {}, b: {search: raw}}\n" + swept
    study = load_study(write(folder, text))
    assert [v.name for v in study.variants[:3]] == ["a, n 30, measures near", "a, n 30, measures all", "a, n 60, measures near"]
    assert len(study.variants) == 8 and study.variants[0].factors == {"n": 30, "measures": "near"}
    assert study.variants[7].config.rows.n == 60 and repr(study.variants[7].measures[0]).startswith("CKA")


def test_a_run_with_variants_writes_one_table_of_all(folder):
    told = []
    outcome = load_study(write(folder, BASE + "sweep: {broken_pairs.share: [0, 0.5, 1]}\n")).run(on_plan=told.append)
    assert list(outcome.alignments) == ["share 0", "share 0.5", "share 1"]
    runs = folder / "runs/base"
    table = pd.read_parquet(runs / "results/variants.parquet")
    assert len(table) == 6 and set(table["share"]) == {0, 0.5, 1} and list(table["variant"].unique()) == list(outcome.alignments)
    knn = table.loc[table["measure"].str.startswith("MutualKNN")].set_index("share")["statistic"]
    assert knn[0] > knn[0.5] > knn[1]
    half = folder_name("share 0.5")
    assert (runs / f"results/{half}/results.parquet").is_file() and (runs / f"results/{half}/report.html").is_file()
    page = (runs / "report.html").read_text("utf-8")
    assert f"results/{half}/report.html" in page
    warned = outcome.alignments["share 0.5"].run["warnings"]
    assert any("0.5 of the pairs are broken on purpose" in w for w in warned)
    assert any("variant share 0.5" in line for line in told[0].lines)
    parts = list((folder / "runs/store").rglob("part-*.safetensors"))
    assert len(parts) == 2  # each model was extracted once for the three of them

    assert check(folder / "runs") == []
    shutil.copy(runs / f"results/{half}/results.parquet", runs / "results/variants.parquet")
    (problem,) = check(folder / "runs")
    assert problem.path == str(runs / "results/variants.parquet") and "is not the table of all variants" in problem.problem


def test_a_sample_is_of_the_rows_that_were_extracted(folder):
    outcome = load_study(write(folder, BASE + "sweep: {rows.n: [40, 80]}\n")).run()
    small, whole = outcome.alignments.values()
    assert set(small.table["n"]) == {40} and set(whole.table["n"]) == {80}
    assert small.run["dataset"]["n"] == 40 and "sample of 40" in small.table["dataset"].iloc[0]
    assert len(list((folder / "runs/store").rglob("part-*.safetensors"))) == 2


def test_a_plan_names_eight_variants_and_counts_the_others(folder):
    lines = load_study(write(folder, f"{BASE}sweep: {{alpha: {[0.01 * i for i in range(1, 11)]}}}\n")).plan().lines
    named = [f"variant alpha {0.01 * i}: n = 80, 2 models, 1 pair of models, 2 measures" for i in range(1, 9)]
    assert list(lines[1:10]) == [*named, "and 2 more variants"]


def test_a_model_that_reads_what_no_variant_changes_is_run_once_and_planned_once(tmp_path):
    study = load_study(write(tmp_path, """\
name: noise
dataset: {toy: {n: 24}, distort: {image: {kind: noise, amount: 0}}}
models: {x: ["toy:language-bag"], y: ["toy:vision-pixels"]}
measures: ["CKA()"]
sweep: {dataset.distort.image.amount: [0, 0.5, 1]}
"""))  # fmt: skip
    planned = study.plan().table["model"].value_counts()
    assert planned.to_dict() == {"vision-pixels": 3, "language-bag": 1}
    heard = []
    study.run(progress=lambda task, done, n, note=None: heard.append((task, note)))
    taken = [task for task, note in heard if note and note.startswith("taken from the store")]
    assert taken == ["extract toy:language-bag"] * 2
    assert study.plan().table["complete"].all()


def test_what_a_variant_says_reaches_its_run(folder):
    """Seeds that are not the default, the level of its own, and what changes places among groups."""
    (folder / "groups.csv").write_text("id,group\n" + "".join(f"s{i},{i // 4}\n" for i in range(N)))
    few = "{rows: {n: 40, seed: 3}, alpha: 0.2}"
    torn = "{broken_pairs: {share: 0.5, seed: 3}, null.groups: groups.csv, null.shuffle: whole}"
    few, torn = load_study(write(folder, f"{BASE}variants:\n  few: {few}\n  torn: {torn}\n")).run().alignments.values()
    x, y = load_study(folder / "base.yaml").extract()
    for found, (a, b) in ((few, sample_rows([x, y], 40, 3)), (torn, [*break_pairs([x], 0.5, 3), y])):
        (score,) = found.best(found.measures[1])["statistic"]
        assert score == pytest.approx(CKA()(a.load(x.layers[0]), b.load(y.layers[0])), abs=1e-6)
    assert (few.run["alpha"], torn.run["alpha"]) == (0.2, 0.05) and torn.run["null"]["groups"]["shuffle"] == "whole"


def test_a_finished_run_is_read_back(folder):
    path = write(folder, BASE + "sweep: {rows.n: [40, 80]}\n")
    load_study(path).run()
    tiles = {p: p.stat().st_ino for p in folder.rglob("tiles/*.parquet")}
    first = (folder / "runs/base/results/variants.parquet").read_bytes()
    load_study(path).run()
    assert tiles and {p: p.stat().st_ino for p in folder.rglob("tiles/*.parquet")} == tiles
    assert (folder / "runs/base/results/variants.parquet").read_bytes() == first


def test_extending_replaces_fields_and_keeps_the_paths_of_the_other(folder):
    write(folder, "extends: ../base.yaml\nname: other\nmeasures: [CKA()]\n", "deep/study.yaml")
    study = load_study(folder / "deep/study.yaml")
    assert study.name == "other" and len(study.variants[0].measures) == 1
    assert study.x[0].spec == f"array:{folder / 'x.npy'}" and study.folder == folder / "deep/runs/other"
    assert study.open_dataset().n == N
    write(folder, "alpha: 0.01\nname: strict\n", "strict.yaml")
    both = load_study(write(folder, "extends: [base.yaml, strict.yaml]\n", "both.yaml"))
    assert both.config.alpha == 0.01 and both.name == "both"  # where things go is each file's own


def test_extending_keeps_the_paths_in_variants_sweeps_and_experiments(folder):
    other = '{models.x: [{spec: "array:y.npy", name: mine, modality: thing, ids: rows}], dataset.arrays: {thing: x.npy}}'
    write(folder, f"{BASE}variants: {{other: {other}}}\nsweep: {{dataset.row_ids: [ids.txt]}}\n", "several.yaml")
    (here,) = load_study(folder / "several.yaml").variants
    (there,) = load_study(write(folder, "extends: ../several.yaml\n", "deep/study.yaml")).variants
    assert there.name == here.name == "other, row_ids ids.txt" and there.x[0].spec == f"array:{folder / 'y.npy'}"
    data = there.config.dataset
    assert (data.arrays, data.row_ids) == ({"thing": str(folder / "x.npy")}, str(folder / "ids.txt"))
    write(folder, "experiment: perceive\nlabels: labels.csv\ninputs: [x.npy, y.npy]\n", "asked.yaml")
    given = load_study(write(folder, "extends: ../asked.yaml\n", "deep/other.yaml")).given
    assert given["labels"] == folder / "labels.csv" and given["inputs"] == [str(folder / "x.npy"), str(folder / "y.npy")]


@pytest.mark.parametrize(
    "more, message",
    [
        ("variants: {a: {serach: raw}}\n", r"line \d+, serach \(variant a\): there is no field 'serach'(.|\n)*'search'"),
        ("variants: {a: {search: rwa}}\n", r"search \(variant a\): (.|\n)*'rwa'"),
        ("variants: {a: {name: b}}\n", r"line 8, variants.a \(variant a\): a variant cannot change 'name'"),
        ("variants: {a: {null.method.x: 1}}\n", r"null.method.x: method is no block of fields"),
        ("variants: {a: {}, A: {}}\n", "two variants have one name"),
        ("sweep: {rows.n: [0]}\n", r"rows.n \(variant n 0\): out of range(.|\n)*greater than or equal to 1"),
        ("broken_pairs: {share: 2}\n", r"line 8, broken_pairs.share: out of range(.|\n)*less than or equal to 1"),
        ("figures: [{curv: {x: k}}]\n", r"line 8, figures\[0\]: no figure is called 'curv'(.|\n)*'curve'"),
        ("figures: [{matrix: {vlue: pvalue}}]\n", r"figure matrix has no option 'vlue'(.|\n)*'value'"),
        ("figures: [{trend: {}}]\n", r"figure trend needs the option 'against'"),
        ("figures: [{matrix: {}, 'null': {}}]\n", r"a figure is one kind with its options"),
        ("extends: base.yaml\n", None),
        ("extends: gone.yaml\n", r"line 8, extends: (.|\n)*the study cannot be read"),
        ("extends: study.yaml\n", "a study extends itself"),
        ("experiment: theroy\n", r"line 8, experiment: unknown experiment 'theroy'(.|\n)*'theory'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_field_and_line(folder, more, message):
    path = write(folder, BASE + more)
    if message is None:
        load_study(path)
        return
    with pytest.raises(RepalignError, match=message):
        load_study(path)


def test_pairs_are_broken_between_two_sides_only(folder):
    one_list = BASE.replace("  x: [", "  - ").replace("  y: [", "  - ").replace("rows}]", "rows}")
    with pytest.raises(RepalignError, match=r"broken_pairs: pairs are broken between two sides"):
        load_study(write(folder, one_list + "broken_pairs: {share: 0.5}\n"))


@pytest.mark.parametrize(
    "more, message",
    [
        ("rows: {n: 500}\n", r"cannot draw 500 rows(.|\n)*1 to 80"),
        ("sweep: {rows.n: [5, 80]}\n", r"n 5: dataset 'arrays': too few stimuli for MutualKNN\(k=5"),
    ],
)
def test_a_size_that_cannot_be_is_refused_before_any_model_runs(folder, more, message):
    study = load_study(write(folder, BASE + more))
    with pytest.raises(RepalignError, match=message):
        study.run()
    assert not list(folder.rglob("part-*"))


def test_options_of_a_side_are_those_of_its_models_unless_they_say_otherwise(folder):
    text = BASE.replace("measures:", "  options: {x: {layers: [0], caption: 1}}\nmeasures:").replace(
        "name: mine,", "name: mine, caption: 0,"
    )
    study = load_study(write(folder, text))
    assert study.x[0].layers == (0,) and study.x[0].caption == 0 and study.y[0].layers is None


def test_figures_and_their_tables_are_written(folder):
    more = 'figures:\n  - matrix: {}\n  - layer_map: {}\n  - "null": {measure: all}\n  - trend: {against: n_parameters}\n'
    outcome = load_study(write(folder, BASE + more)).run()
    names = [d.name for d in outcome.drawn]
    assert names == ["matrix", "layer_map", "null", "null", "trend"]
    assert outcome.drawn[4].text.startswith("Not drawn: no model") and outcome.drawn[4].figure is None
    figures = folder / "runs/base/figures"
    assert sorted(p.name for p in figures.glob("03*")) == ["03-null.csv", "03-null.png", "03-null.svg"]
    shown = pd.read_csv(figures / "03-null.csv")
    assert check(folder / "runs") == []
    pages = (folder / "runs/base/figures.html", folder / "runs/base/report.html")
    for drawn in (figures / "03-null.csv", figures / "01-matrix.png", *pages):
        data = drawn.read_bytes()
        at = len(data) // 2
        drawn.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        (problem,) = check(folder / "runs")
        assert problem.path == str(drawn), problem
        assert ("is not what was written" if drawn in pages else "files.json speaks") in problem.problem
        drawn.write_bytes(data)
    best = outcome.alignment.best(outcome.alignment.measures[0]).iloc[0]
    assert shown["statistic"].iloc[0] == pytest.approx(best.statistic, abs=0) and "p_maxt" in shown
    page = (folder / "runs/base/figures.html").read_text("utf-8")
    assert page.count("<img") == 4 and "http" not in page.replace("http-equiv", "")
    assert dict(outcome.wrote)["report"] == folder / "runs/base/figures.html"


def test_scores_of_files_join_the_records(folder):
    write(folder, "model,hellaswag\nmine,0.4\nsomebody,0.9\n", "scores.csv")
    outcome = load_study(write(folder, BASE + "competence: {csv: scores.csv}\n")).run()
    models = {m["name"]: m for m in outcome.alignment.run["models"]}
    assert models["mine"]["scores"]["hellaswag"] == 0.4 and "hellaswag" not in models["theirs"]["scores"]
    assert any("say nothing of theirs" in w for w in outcome.alignment.run["warnings"])
    gone = load_study(write(folder, BASE + "competence: {csv: gone.csv}\n"))
    with pytest.raises(RepalignError, match="gone.csv"):
        gone.run()


PLAIN = ["a", "few-draws", "n=40", "k+1", "x_y.z", "CKA", "0.5"]
ODD = [
    "k 10", "k/10", "k\\10", "k\u00a010", "k  10", " k-10", "k-10.", "-k-10", "α", "β", "層1", "文1", "é", "e\u0301", "??", "!!",
    ".", "..", "../a b/c", "a-b-c/", "x" * 81, "x" * 82, "CON", "nul", "com1.txt", "tiles", "run.json", "results.parquet",
    "report.html", "share 0.5", "share-0.5-e0f73578", "\n", "\0", "😀", "\ud83d",
]  # fmt: skip


def test_folders_of_variants_are_unique_and_any_file_system_takes_them(tmp_path):
    """Plain names are folders as they are; all others have a digest, and none of them is another's."""
    assert [folder_name(name) for name in PLAIN] == PLAIN and folder_name("k-10") == "k-10"
    folders = [folder_name(name) for name in [*PLAIN, "k-10", *ODD]]
    assert len({f.lower() for f in folders}) == len(folders)
    for name in folders:
        assert re.fullmatch(r"[A-Za-z0-9_=+][A-Za-z0-9._=+-]*[A-Za-z0-9_=+]|[A-Za-z0-9_=+]", name) and len(name) < 100
        (tmp_path / name).mkdir()


def test_every_variant_has_its_own_results(folder):
    """Names that were one folder: the later one overwrote the former."""
    few = BASE.replace('measures: ["MutualKNN(k=5)", "CKA()"]\n', "measures: [CKA()]\n")
    study = load_study(write(folder, few + "variants: {α: {}, β: {null.draws: 9}, a b: {alpha: 0.01}, a-b: {}}\n"))
    outcome = study.run()
    kept = {v.name: Alignment.load(study.results_of(v)).run["name"] for v in study.variants}
    assert kept == {name: f"base: {name}" for name in outcome.alignments} and len(kept) == 4
    page = study.report.read_text("utf-8")
    assert all(f"{study.results_of(v).name}/report.html" in page for v in study.variants)


def test_results_that_were_kept_under_the_readable_name_are_found(folder):
    study = load_study(write(folder, BASE + "variants: {a b: {}, c d: {}, α: {}, β: {}}\n"))
    for name in ("a-b", "variant"):
        (study.results / name).mkdir(parents=True)
    assert [study.results_of(v).name for v in study.variants] == ["a-b", *map(folder_name, ("c d", "α", "β"))]
    study.results_of(study.variants[1]).mkdir()
    (study.results / "c-d").mkdir()
    assert study.results_of(study.variants[1]).name == folder_name("c d")  # the new one is there already


def test_a_model_that_is_not_to_be_had_is_left_out_and_the_report_says_so(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    more = BASE.replace("  x: [", '  x: ["hf:nobody/gated", ')
    text = more + "extract: {on_unavailable: skip}\nvariants: {a: {}, b: {search: raw}}\n"
    told = []
    outcome = load_study(write(folder, text)).run(progress=lambda task, done, total, note=None: told.append(note))
    assert [name for name, _ in outcome.skipped] == ["hf:nobody/gated"]
    assert len([note for note in told if note and "hf:nobody/gated" in note]) <= 2  # a line for each variant
    for alignment in outcome.alignments.values():
        assert set(alignment.table["model_x"]) == {"mine"}
        assert any(w.startswith("model hf:nobody/gated was left out: ") for w in alignment.run["warnings"])
    runs = folder / "runs/base"
    for page in (runs / "report.html", runs / "results/a/report.html"):
        assert "hf:nobody/gated" in page.read_text("utf-8")
    with pytest.raises(RepalignError, match="nobody/gated"):
        load_study(write(folder, more)).run()
    alone = BASE.replace('{spec: "array:x.npy", name: mine, modality: thing, ids: rows}', '"hf:nobody/gated"')
    with pytest.raises(RepalignError, match=r"nothing left to compare(.|\n)*hf:nobody/gated: "):
        load_study(write(folder, alone + "extract: {on_unavailable: skip}\n")).run()


def test_replicates_are_named_by_name_or_by_spec(folder):
    more = BASE.replace("name: mine, ", "") + "ceilings: {replicates: [[array:x.npy, theirs]]}\n"
    path = folder / "x.npy"
    found = load_study(write(folder, more.replace("array:x.npy, theirs", f"'array:{path}', theirs"))).run()
    assert {c["model_x"] for c in found.alignment.run["ceilings"]} == {"x"}


def test_factors_of_a_model_join_its_record(folder):
    text = BASE.replace("name: mine,", "name: mine, factors: {width: 6, how: fast},")
    models = {m["name"]: m for m in load_study(write(folder, text)).run().alignment.run["models"]}
    assert models["mine"]["factors"] == {"width": 6, "how": "fast"} and not models["theirs"]["factors"]


def test_two_swept_fields_of_one_name_are_called_by_two_parts(folder):
    text = BASE + "sweep: {dataset.sample.n: [20, 30], rows.n: [10, 15], null.seed: [0, 1]}\n"
    factors = [v.factors for v in load_study(write(folder, text)).variants]
    assert len(factors) == 8 and factors[0] == {"sample_n": 20, "rows_n": 10, "seed": 0}


def test_published_scores_join_the_records_where_nothing_else_says_them(folder):
    text = BASE.replace("name: mine,", "name: llama-7b, scores: {gsm8k: 0.5},") + "competence: {published: true, csv: scores.csv}\n"
    write(folder, "model,truthfulqa_mc2\nllama-7b,0.9\n", "scores.csv")
    models = {m["name"]: m for m in load_study(write(folder, text)).run().alignment.run["models"]}
    scores = models["llama-7b"]["scores"]
    assert (scores["gsm8k"], scores["truthfulqa_mc2"]) == (0.5, 0.9)  # the study's own, and that of the file
    assert scores["hellaswag"] == pytest.approx(0.5639, abs=1e-4) and not models["theirs"]["scores"]
