"""The command line: it does the job, and a failure is one message and a status, never a traceback."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import repalign
from alignment_table import KNN, LANGUAGE, VISION, make_run, make_table
from processes import started
from repalign import cli
from repalign import null as nulls
from repalign.cli import _console as console
from repalign.cli._options import size_in_bytes
from repalign.comparison import anchored_mutual_knn
from repalign.comparison.alignment import Alignment
from repalign.errors import RepalignError
from repalign.measures import CKA, MutualKNN, parse_measure
from repalign.text import alike, interval, number, pvalue

pytestmark = pytest.mark.usefixtures("plain_pictures")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `repalign ...` in this process; (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["repalign", *map(str, arguments)])
        monkeypatch.setattr(cli.out, "width", 160)
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        streams = capsys.readouterr()
        assert "Traceback" not in streams.out + streams.err
        return status, streams.out, streams.err

    return run


@pytest.fixture
def arrays(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((240, 10))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x @ rng.standard_normal((10, 6)) + 0.3 * rng.standard_normal((240, 6)))
    np.save(tmp_path / "short.npy", x[:-1])
    broken = x.copy()
    broken[17, 3] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    return tmp_path


def test_pair_prints_score_chance_p_and_n(call, arrays):
    status, out, err = call("pair", arrays / "x.npy", arrays / "y.npy", "--measure", "CKA()")
    assert status == 0
    assert "CKA, n = 240" in out and "≤ .0042" in out
    assert re.search(r"score +chance +calibrated +p\s*\n", out)  # one pair of models: nothing to correct for
    assert "row i of one is paired with row i of the other" in err


@pytest.mark.parametrize(
    ("options", "header", "why"),
    [
        (["-m", "CKA()", "--draws", 9], "score +chance", "9 shuffles give no p below 0.1"),
        (["-m", "CKA()", "--draws", 19], "score +chance +calibrated +p", None),
        (["-m", "ConeEffect()"], "score", "this measure has no chance level"),
        (["-m", "CKA()", "--groups", "thirds.csv", "--shuffle", "whole"], "score +chance", "these groups give no p below 0.17"),
    ],
)
def test_columns_that_could_find_nothing_are_not_printed(call, arrays, monkeypatch, options, header, why):
    """p, what is adjusted of it, and the distance from its threshold; what it would take is one sentence."""
    monkeypatch.chdir(arrays)
    (arrays / "thirds.csv").write_text("id,group\n" + "".join(f"{i},{i // 80}\n" for i in range(240)))
    status, out, _ = call("pair", "x.npy", "y.npy", *options)
    assert status == 0 and re.search(rf"y \[layer\] +{header}\s*\n", out), out
    assert (f"no p: {why}\n" in out) is (why is not None) is ("p of the best pair" not in out)
    enough = "so that nothing can be found at alpha = 0.05 (CKA); 19 are enough, for 2 times the work"
    assert (enough in out) is (options[-1] == 9)


def test_of_many_measures_a_p_that_could_find_nothing_is_left_blank(monkeypatch, capsys):
    monkeypatch.setattr(cli.out, "width", 160)
    table = make_table(LANGUAGE[:1], VISION[:1], (2, 2))
    names = ["CKA()", "RV()", "RSA()", "HSIC()", "CKNNA()"]
    table = pd.concat([table[table["measure"] == KNN].assign(measure=repr(parse_measure(name))) for name in names])
    table.loc[table["measure"].str.startswith("RV"), "n_draws"] = 9
    cli.show(Alignment(table, make_run()))
    rows = {line.split()[0]: line.rstrip() for line in capsys.readouterr().out.splitlines() if "  layer." in line}
    assert len(rows) == 5 and rows["CKA"].endswith("≤ .00098") and re.search(r"layer\.\d( +\S+){3}$", rows["RV"])


@pytest.mark.parametrize(
    ("change", "header", "shown"),
    [
        ({}, "p (maxT)", "p_maxt"),
        ({"p_maxt": np.nan}, "p (Holm)", "p_holm"),
        ({"p_maxt": np.nan, "n_draws": 199}, "p (BH)", "p_bh"),
    ],
)
def test_the_table_has_the_adjusted_p_that_decides(monkeypatch, capsys, change, header, shown):
    monkeypatch.setattr(cli.out, "width", 160)
    table = make_table(LANGUAGE, VISION, (2, 2)).assign(**change)
    table = table[table["measure"] == KNN]
    cli.show(Alignment(table, make_run()))
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "calibrated" in line)
    assert head.rstrip().endswith(header) and sum(head.count(name) for name in ("maxT", "Holm", "BH", "BY")) == 1
    rows = [line.replace("≤ ", "≤").split() for line in lines if "[layer." in line]
    best = Alignment(table, {}).best()
    draws = {c: int(best["n_draws"].iloc[0]) for c in ("pvalue", "p_maxt")}  # Holm's and BH's p have no floor
    expected = [[pvalue(p, draws.get(c)).replace("≤ ", "≤") for p in best[c]] for c in ("pvalue", shown)]
    assert [[r[-2] for r in rows], [r[-1] for r in rows]] == expected
    assert [r[-3] for r in rows] == [number(v) for v in best["calibrated"]]
    assert [r[-5] for r in rows] + [r[-4] for r in rows] == alike(*best["statistic"], *best["null_mean"])


def test_chance_has_the_decimals_of_the_scores(capsys):
    """Chance was −0.0000260 beside a score of 0.123."""
    table = make_table(LANGUAGE[:1], VISION[:2], (2, 2)).assign(statistic=0.1234, null_mean=-2.6e-5)
    cli.show(Alignment(table[table["measure"] == KNN], make_run()))
    assert re.search(r"0\.123 +0\.000 ", capsys.readouterr().out)


# A command in a folder, whose output nobody reads.
UNREAD = """
import os, sys
os.chdir(sys.argv.pop(1))
unread, out = os.pipe()
os.close(unread)
os.dup2(out, 1)
from repalign.cli import main
main()
"""


@pytest.mark.parametrize("command", [["measures"], ["compare", "features"]])
def test_a_reader_that_leaves_costs_no_file(arrays, command):
    """`repalign compare f | head -1` ended before report and figures were written."""
    (arrays / "features").mkdir()
    for name in ("x.npy", "y.npy"):
        (arrays / name).rename(arrays / "features" / name)
    if command == ["measures"]:
        run = [sys.executable, "-m", "repalign", *command]
        with subprocess.Popen(run, cwd=arrays, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            process.stdout.close()
            told, status = process.stderr.read(), process.wait()
    else:  # where what it imports need not be imported again
        process = started(UNREAD, str(arrays), *command, said=arrays / "said")
        process.join()
        told, status = (arrays / "said").read_text(), process.exitcode
        assert (arrays / "repalign-results/report.html").is_file()
    assert status == 0 and "Traceback" not in told and "Broken" not in told, told


def test_a_small_score_is_not_shown_as_nothing(capsys):
    """The terminal rounds as figures and report do: a score of 1e-7 was 0.0000, and 1234.5 was 1234.500."""
    table = make_table(LANGUAGE[:1], VISION[:2], (2, 2))
    table["statistic"] = np.where(table["model_y"] == VISION[0][0], 1e-7, 1234.5)
    cli.show(Alignment(table[table["measure"] == KNN], make_run()))
    shown = capsys.readouterr().out
    assert "1.00e−7" in shown and "1,234" in shown and "0.0000" not in shown


def test_pair_as_json(call, arrays):
    status, out, _ = call("pair", arrays / "x.npy", arrays / "y.npy", "-m", "CKA()", "--draws", 19, "--json")
    (row,) = json.loads(out)
    assert status == 0 and row["pvalue"] == 0.05 and row["n"] == 240 and row["null"] == "permutation"


def test_pair_joins_on_ids(call, arrays):
    ids = [f"s{i}" for i in range(240)]
    np.savez(arrays / "a.npz", features=np.load(arrays / "x.npy"), ids=np.array(ids))
    order = np.random.default_rng(1).permutation(240)[:200]
    np.savez(arrays / "b.npz", features=np.load(arrays / "y.npy")[order], ids=np.array(ids)[order])
    status, out, _ = call("pair", arrays / "a.npz", arrays / "b.npz", "-m", "CKA()", "--json")
    joined = json.loads(out)[0]
    assert status == 0 and joined["n"] == 200 and joined["pvalue"] < 0.01 and joined["statistic"] > 0.4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["x.npy", "short.npy"], "different numbers of rows\n  expected: row i of both describing the same stimulus"),
        (["x.npy", "nan.npy"], "NaN or infinite values"),
        (["x.npy", "gone.npy"], "there is no such file"),
        (["x.npy", "x.txt"], "x.txt: line 1 is no word with 1 numbers"),
        (["x.npy", "x.xlsx"], "x.xlsx: not a file of features that can be read"),
        (["x.npy", "y.npy", "-m", "MutualKNN(k=240)"], "too few stimuli for MutualKNN(k=240"),
        (["x.npy", "y.npy", "-m", "MutualKN(k=3)"], "did you mean 'MutualKNN'"),
        (["x.npy", "y.npy", "-m", "CKA(kernl='rbf')"], "did you mean 'kernel'"),
    ],
)
def test_bad_input_to_pair(call, arrays, arguments, message):
    (arrays / "x.txt").write_text("no array")
    files = [arrays / a if a.endswith((".npy", ".txt", ".xlsx")) else a for a in arguments]
    status, _, err = call("pair", *files)
    assert status == 1 and message in err, err


STUDY = """\
name: small
dataset: {arrays: {thing: x.npy}, row_ids: ids.txt}
models:
  x: [{spec: "array:x.npy", name: mine, modality: thing, ids: rows}]
  y: [{spec: "array:y.npy", name: theirs, modality: thing, ids: rows}]
measures: ["CKA()"]
"""


@pytest.fixture
def study(arrays):
    (arrays / "ids.txt").write_text("\n".join(map(str, range(240))))
    (arrays / "study.yaml").write_text(STUDY)
    return arrays / "study.yaml"


def test_the_flow_from_study_to_check(call, study):
    folder, store = study.parent / "runs/small", study.parent / "runs/store"
    status, out, _ = call("run", study, "--plan")
    assert status == 0 and "1 pair of models" in out and not folder.exists()
    status, out, _ = call("extract", study)
    assert status == 0 and "next: repalign run" in out
    status, out, err = call("run", study)
    assert status == 0 and "report.html" in out and "complete in the store" in err
    status, out, _ = call("report", folder / "results", "--out", folder / "again.html", "--static", folder / "figures")
    assert status == 0 and (folder / "again.html").is_file() and list((folder / "figures").glob("*.svg"))
    status, out, _ = call("compare", store, "--results", folder / "other", "-m", "CKA()")
    assert status == 0 and (folder / "other/results.parquet").is_file()
    status, out, _ = call("check", store)
    assert status == 0 and "whole: 2 models" in out
    part = next((store).rglob("part-*.safetensors"))
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # which only who reads every byte can tell
    status, out, _ = call("check", store)
    assert status == 1 and "broken:" in out and part.name in out and "is not what was written" in out
    status, out, _ = call("check", store, "--shallow")
    assert status == 0 and "whole: 2 models" in out
    part.write_bytes(data[:-40])
    status, out, _ = call("check", store, "--shallow")
    assert status == 1 and part.name in out
    status, out, err = call("check", store)
    assert status == 1 and part.name in out and "do:" in out
    status, out, err = call("check", study.parent / "runs")
    assert status == 1 and part.name in out and "1 problem\n" in err
    part.unlink()
    assert call("run", study)[0] == 0
    status, out, _ = call("check", study.parent / "runs")
    assert status == 0 and "whole: 2 models, 2 layers; 5 folders of results" in out  # those of figures too


def test_what_is_made_again_or_has_no_seal_is_told(call, study):
    assert call("run", study)[0] == 0
    results = study.parent / "runs/small/results"
    tile = next((results / "tiles").iterdir())
    tile.write_bytes(tile.read_bytes()[:-1])
    status, out, err = call("check", results)
    assert status == 1 and tile.name in out and "delete it" in out
    assert call("run", study)[0] == 0 and call("check", results)[0] == 1  # a finished result asks for no tile
    (results / "results.parquet").unlink()
    status, _, err = call("run", study)
    assert status == 0 and f"note: {tile}" in err and "what it held is computed again" in err
    run = json.loads((results / "run.json").read_text())
    assert run["machine"]["threads"] > 0 and run["machine"]["device"] == "cpu"
    (results / "run.json").write_text(json.dumps({k: v for k, v in run.items() if "seal" not in k and k != "files"}))
    status, _, err = call("report", results)
    assert status == 1 and "results.parquet is newer than run.json" in err


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("measures:", "mesures:", "line 6, mesures: there is no field 'mesures'"),
        ('"array:y.npy"', '"llama-7c"', "did you mean 'llama-7b'"),
        ('"CKA()"', '"MutualKNN(k=240)"', "too few stimuli for MutualKNN(k=240"),
    ],
)
def test_bad_studies(call, study, old, new, message):
    study.write_text(STUDY.replace(old, new))
    status, _, err = call("run", study)
    assert status == 1 and message in err, err


def test_no_network_is_told(call, study, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    study.write_text(
        STUDY.replace('{spec: "array:y.npy", name: theirs, modality: thing, ids: rows}', '"hf:nobody/nothing"')
    )
    status, _, err = call("run", study)
    assert status == 1 and "hf:nobody/nothing" in err and "do:" in err


def test_a_store_of_two_datasets_asks_which(call, study):
    call("extract", study)
    study.write_text(STUDY.replace("row_ids: ids.txt", "row_ids: ids.txt, sample: {n: 200}").replace(", ids: rows", ""))
    for name in ("x", "y"):
        (study.parent / f"{name}.npy.ids.txt").write_text("\n".join(map(str, range(240))))
    assert call("extract", study)[0] == 0
    status, _, err = call("compare", study.parent / "runs/store")
    assert status == 1 and "which dataset?" in err


def test_a_store_is_listed_and_emptied_by_model_and_by_age(call, study, monkeypatch):
    call("extract", study)
    runs = study.parent / "runs"
    store, every = runs / "store", lambda: sorted(p.parent.parent.name for p in (runs / "store").glob("*/*/*/manifest.json"))
    monkeypatch.chdir(study.parent)
    status, out, _ = call("store")  # runs, by default
    assert status == 0 and f"{store.relative_to(study.parent)}: 2 extractions, " in out
    rows = [line.split() for line in out.splitlines() if "F64" in line or "F32" in line]
    assert [row[0] for row in rows] == ["mine", "theirs"] and all(row[-1] == "ago" and row[2] == "1" for row in rows)
    (old,) = (path for path in store.rglob("manifest.json") if '"theirs"' in path.read_text())
    os.utime(old, (0, time.time() - 40 * 86_400))
    status, out, _ = call("store", store, "--older-than", "30d", "--dry-run")
    assert status == 0 and "theirs" in out and "mine" not in out and "40 days ago" in out
    assert re.search(r"^would delete 1 extraction, \S+ kB$", out, flags=re.M) and len(every()) == 2
    status, _, err = call("store", store, "--older-than", "30d")
    assert status == 1 and "nothing is deleted without a word\n  expected: --yes, where there is no terminal" in err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda asked: asked.startswith("delete 2 extractions, ") and False)
    status, out, _ = call("store", store, "--delete", "mine", "--delete", "theirs")
    assert status == 0 and out.endswith("nothing was deleted\n") and len(every()) == 2
    status, out, _ = call("store", store, "--older-than", "30d", "--yes")
    assert status == 0 and re.search(r"^deleted 1 extraction, \S+ kB: so much is free again$", out, flags=re.M)
    assert len(every()) == 1 and call("check", store)[0] == 0
    status, out, err = call("run", study)  # what is deleted is extracted anew, and nothing else
    assert status == 0 and "extract mine: complete in the store" in err and "extract theirs: complete" not in err
    assert call("store", store, "--delete", "mine", "--older-than", "1w", "--yes")[1].endswith("nothing to delete\n")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--delete", "thiers", "--yes"], "no model 'thiers' is kept(.|\n)*did you mean 'theirs'"),
        (["--older-than", "30"], "'30' is not an age\n  expected: a number and h, d or w(.|\n)*--older-than 30d"),
        (["--dry-run"], "--dry-run says how to delete, and nothing is to be deleted"),
        (["--yes"], "--yes says how to delete"),
    ],
)
def test_what_a_store_is_not_asked(call, study, options, told):
    call("extract", study)
    status, _, err = call("store", study.parent / "runs", *options)
    assert status == 1 and re.search(told, err), err


def test_a_folder_without_a_store(call, tmp_path):
    status, _, err = call("store", tmp_path)
    assert status == 1 and "there is no feature store" in err and "name the folder" in err


def test_lists(call):
    status, out, _ = call("measures")
    assert status == 0 and all(name in out for name in ("MutualKNN", "CKNNA", "SVCCA"))
    status, out, _ = call("measures", "mutual_knn")
    assert status == 0 and "MutualKNN" in out and "k / (n - 1)" in out.replace("k/(n-1)", "k / (n - 1)")
    status, out, _ = call("models", "prh-val")
    assert status == 0 and "bloomz-560m" in out
    status, _, err = call("models", "prh-vall")
    assert status == 1 and "did you mean" in err
    status, _, err = call("measures", "CKAA")
    assert status == 1 and "did you mean 'CKA'" in err


@pytest.mark.parametrize(
    "command",
    ["run", "extract", "compare", "report", "pair", "difference", "curve", "measures", "models", "check", "demo"],
)
def test_every_command_has_help_with_an_example(call, command):
    status, out, _ = call(command, "--help")
    assert status == 0 and f"repalign {command}" in out.split("Example")[-1]


def test_version_unknown_commands_and_missing_folders(call, tmp_path):
    assert call("--version")[1].strip()
    assert call("rum")[0] == 2
    status, _, err = call("report", tmp_path / "nothing")
    assert status == 1 and "not a finished result" in err
    status, _, err = call("check", tmp_path / "nothing")
    assert status == 1 and "no feature store and no result" in err


def test_what_nobody_expected_is_one_line_and_a_log(call, monkeypatch, arrays):
    from importlib import import_module

    module = import_module("repalign.comparison")

    monkeypatch.setattr(module, "compare", lambda *a, **k: 1 / 0)
    status, _, err = call("pair", arrays / "x.npy", arrays / "y.npy")
    assert status == 70 and "unexpected error: ZeroDivisionError: division by zero" in err and "details:" in err


def test_stopping_says_that_it_resumes(call, monkeypatch, study):
    from repalign.study.alignment import AlignmentStudy

    def stop(*_a, **_k):
        raise KeyboardInterrupt

    monkeypatch.setattr(AlignmentStudy, "run", stop)
    status, _, err = call("run", study)
    assert status == 130 and "goes on from here" in err


# --- the null, the search, and how much memory -------------------------------------------------------


def json_of(found: tuple[int, str, str]) -> list[dict]:
    status, out, err = found
    assert status == 0, err
    return json.loads(out)


@pytest.fixture
def xy(call, arrays):
    """`repalign pair x.npy y.npy -m CKA() --json ...`; the only row."""

    def run(*options: object) -> dict:
        (row,) = json_of(call("pair", arrays / "x.npy", arrays / "y.npy", "-m", "CKA()", "--json", *options))
        return row

    return run


def test_pair_takes_every_null_by_name(xy):
    assert xy("--null", "auto") == xy()
    random = xy("--null", "permutation", "--draws", 39)
    assert (random["null"], random["n_draws"], random["pvalue"]) == ("permutation", 39, 1 / 40)
    exact = xy("--null", "cyclic", "--relabellings", 2)
    assert (exact["null"], exact["n_draws"], exact["pvalue"]) == ("cyclic", 479, 1 / 480)
    published = xy("--null", "aristotelian")
    assert (published["null"], published["n_draws"], published["search"]) == ("aristotelian", 200, "raw max")
    assert published["seed"] == 67280421310721 and xy("--null", "aristotelian", "--seed", 3)["seed"] == 3


def test_more_relabellings_of_the_automatic_null_are_more_draws(xy):
    assert xy()["n_draws"] == 239 and xy("--relabellings", 3)["n_draws"] >= 3 * 240 - 1


def test_groups_restrict_the_null(xy, arrays):
    # y follows x within no group: every group is a block of one class mean, which shuffling within keeps.
    rng = np.random.default_rng(5)
    mean = np.repeat(np.eye(6), 40, axis=0) * 4
    for name in ("x", "y"):
        np.save(arrays / f"{name}.npy", mean + rng.standard_normal((240, 6)))
    table = arrays / "groups.csv"
    table.write_text("id,group\n" + "\n".join(f"{i},{i // 40}" for i in reversed(range(240))))
    free, within = xy("--draws", 99), xy("--draws", 99, "--groups", table)
    assert free["pvalue"] == 0.01 and within["pvalue"] > 0.05 and free["statistic"] == within["statistic"]
    whole = xy("--null", "cyclic", "--groups", table, "--shuffle", "whole")
    assert whole["n_draws"] == 5


def test_search_in_words(call, arrays):
    rng = np.random.default_rng(2)
    x = np.load(arrays / "x.npy")
    np.savez(arrays / "layers.npz", a=x, b=x + rng.standard_normal(x.shape), c=rng.standard_normal(x.shape))

    def searched(*options):
        return json_of(call("pair", arrays / "layers.npz", arrays / "y.npy", "-m", "CKA()", "--json", *options))[0]

    scores = {how: searched("--search", how) for how in ("raw", "raw top-2", "studentised rows")}
    assert {how: row["search"] for how, row in scores.items()} == {
        "raw": "raw max", "raw top-2": "raw top-2", "studentised rows": "studentised rows"
    }  # fmt: skip
    y = np.load(arrays / "y.npy")
    expected = sorted((CKA()(layer, y) for layer in np.load(arrays / "layers.npz").values()), reverse=True)
    assert scores["raw"]["statistic"] == pytest.approx(expected[0], abs=1e-6)
    assert scores["raw top-2"]["statistic"] == pytest.approx(np.mean(expected[:2]), abs=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--null", "cyclik"], "unknown --null 'cyclik'\n  expected: auto, permutation, cyclic, aristotelian\n  got: 'cyclik'"),
        (["--null", "cyclik"], "\n  do: did you mean 'cyclic'?"),
        (["--null", "cyclic", "--draws", 9], "--null cyclic has no --draws\n  got: 9\n  do: say --null auto or"),
        (["--null", "permutation", "--relabellings", 2], "--null permutation has no --relabellings"),
        (["--draws", 9, "--relabellings", 2], "--null permutation has no --relabellings"),
        (["--draws", 0], "a null without draws"),
        (["--shuffle", "whole"], "--shuffle says what changes places among groups\n  expected: --groups FILE"),
        (["--groups", "groups.csv", "--shuffle", "wole"], "unknown shuffle 'wole'"),
        (["--groups", "groups.csv", "--relabellings", 2], "--relabellings and --groups do not go together"),
        (["--groups", "groups.csv", "--null", "aristotelian"], "the published null is over all permutations"),
        (["--groups", "columns.csv"], "not a table of groups\n  expected: the columns id and group\n  got: id, class"),
        (["--groups", "few.csv"], "got: 239 ids without one, the first is '1'"),
        (["--groups", "gone.csv"], "groups cannot be read"),
        (["--search", "studentized"], "unknown layer search 'studentized'"),
        (["--search", "studentised", "--null", "aristotelian"], "null 'aristotelian' has no layer search"),
        (["--memory", "4 gigs"], "--memory '4 gigs' is not a size"),
        (["--memory", "0GiB"], "--memory '0GiB' is not a size"),
    ],
)
def test_bad_options_of_pair(call, arrays, options, message):
    (arrays / "groups.csv").write_text("id,group\n" + "\n".join(f"{i},{i // 40}" for i in range(240)))
    (arrays / "columns.csv").write_text("id,class\n0,a\n")
    (arrays / "few.csv").write_text("id,group\n0,a\n")
    options = [arrays / o if str(o).endswith(".csv") else o for o in options]
    status, _, err = call("pair", arrays / "x.npy", arrays / "y.npy", "-m", "CKA()", *options)
    assert status == 1 and err.count("error: ") == 1 and message in err, err


@pytest.mark.parametrize(
    "text, count", [("4GiB", 4 * 2**30), ("500MB", 500_000_000), ("1.5 kib", 1536), ("4096", 4096), ("2TB", 2 * 10**12)]
)
def test_sizes_as_people_write_them(text, count):
    assert size_in_bytes(text) == count


@pytest.mark.parametrize("text", ["4G", "GiB", "-1GB", "4 GiB more", "", "1e9"])
def test_sizes_that_say_nothing(text):
    with pytest.raises(RepalignError, match="is not a size\n  expected: a number above 0 and a unit: kB"):
        size_in_bytes(text)


def test_compare_takes_the_same_options(call, study, monkeypatch):
    from importlib import import_module

    module = import_module("repalign.comparison")

    assert call("extract", study)[0] == 0
    store, results = study.parent / "runs/store", study.parent / "other"
    (study.parent / "groups.csv").write_text("id,group\n" + "\n".join(f"{i},{i // 40}" for i in range(240)))
    budgets, computed = [], module.compare
    monkeypatch.setattr(module, "compare", lambda *a, **k: budgets.append(k["memory"]) or computed(*a, **k))
    options = ["--groups", study.parent / "groups.csv", "--draws", 19, "--search", "raw", "--memory", "1GiB"]
    status, _, err = call("compare", store, "--results", results, "-m", "CKA()", *options)
    assert status == 0 and budgets == [2**30], err
    run = json.loads((results / "run.json").read_text())
    assert run["null"]["method"] == "permutation" and run["null"]["groups"]["n_groups"] == 6
    assert run["search"] == "raw max"
    assert call("compare", store, "--null", "nul")[2].startswith("error: unknown --null 'nul'")
    (study.parent / "groups.csv").write_text("id,group\n0,a\n")
    assert "groups do not fit the stimuli" in call("compare", store, "--groups", study.parent / "groups.csv")[2]


# --- intervals and differences ---------------------------------------------------------------------


def test_pair_with_intervals(call, arrays):
    from repalign.comparison.intervals import score_interval

    rows = json_of(call("pair", arrays / "x.npy", arrays / "y.npy", "--interval", "jackknife", "--json"))
    x, y = (np.load(arrays / f"{name}.npy") for name in "xy")
    for row in rows:
        expected = score_interval(x, y, row["measure"])
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert row["interval_statistic"] == pytest.approx(row["statistic"], abs=1e-6)
        assert row["low"] < row["interval_statistic"] < row["high"]
    status, out, _ = call("pair", arrays / "x.npy", arrays / "y.npy", "-m", "CKA()", "--interval", "jackknife")
    ends = re.search(r"95 % interval over stimuli: ([\d.]+) to ([\d.]+) \(jackknife, 20 blocks\)", out)
    assert status == 0 and "layers are taken as fixed" in out and ends
    assert [float(e) for e in ends.groups()] == pytest.approx([rows[1]["low"], rows[1]["high"]], abs=6e-4)
    assert "low" not in json_of(call("pair", arrays / "x.npy", arrays / "y.npy", "-m", "CKA()", "--json"))[0]


def test_the_right_interval_for_each_measure(call, arrays):
    """Halves for neighbour measures, the jackknife for all others; on the terminal, in Python and in `difference` alike."""
    from repalign.comparison.intervals import score_interval

    x, y = (np.load(arrays / f"{name}.npy") for name in "xy")
    asked = [arrays / "x.npy", arrays / "y.npy", *("-m", "MutualKNN(k=10)", "-m", "CKA()", "-m", "CycleKNN(k=10)")]
    rows = json_of(call("pair", *asked, "--interval", "auto", "--draws", 9, "--json"))
    assert [row["interval"] for row in rows] == ["subsample", "jackknife", "jackknife"]
    measures, null = ["MutualKNN(k=10)", "CKA()", "CycleKNN(k=10)"], nulls.Permutations(9)
    found = repalign.pair(x, y, measures, null, interval="auto")
    for row, best in zip(rows, found.best().to_dict("records"), strict=True):
        one = score_interval(x, y, row["measure"], method=row["interval"])
        assert (best["low"], best["high"]) == (row["low"], row["high"]) == (one.low, one.high)
    status, out, _ = call("difference", *asked[:2], arrays / "x.npy", *asked[2:6])
    assert status == 0 and "interval over stimuli (subsample and jackknife), p two-sided" in out
    for n, k in ((19, 5), (25, 14)):  # too few units, and too few rows in a half
        assert score_interval(x[:n], y[:n], f"mutual_knn(k={k})", method="auto").method == "jackknife"
    for options, said in (
        (["--interval", "bootstrap"], "unknown --interval 'bootstrap'"),
        (["--interval", "auto", "--search", "mean"], "an interval is of one pair of layers\n  expected: the search 'studentised'"),
    ):
        status, _, err = call("pair", *asked[:4], *options)
        assert status == 1 and said in err, err


def test_pair_leaves_its_result(call, arrays):
    """A folder with the table in both forms, the report and the figures; the table alone; with --json nothing else is printed."""
    out = arrays / "out"
    asked = ["pair", arrays / "x.npy", arrays / "y.npy", "-m", "CKA()", "--interval", "auto", "--out", out]
    asked += ["--csv", arrays / "t.csv"]
    status, told, _ = call(*asked)
    assert status == 0 and [line for line in told.splitlines() if line.startswith(("table:", "figures:", "report:"))] == [
        f"table: {arrays / 't.csv'}", f"table: {out / 'results.parquet'}", f"table: {out / 'results.csv'}",
        f"figures: {out / 'figures'}", f"report: {out / 'report.html'}",
    ]  # fmt: skip
    assert (arrays / "t.csv").read_bytes() == (out / "results.csv").read_bytes()
    assert {p.suffix for p in (out / "figures").iterdir()} == {".png", ".svg", ".csv", ".json"}
    loaded, (row,) = Alignment.load(out), json_of(call(*asked, "--json"))
    (best,) = loaded.best().to_dict("records")
    assert (best["low"], best["high"]) == (row["low"], row["high"])
    assert (loaded.table["low"].notna() == (loaded.table["scope"] == "max")).all()
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv")[["statistic", "low"]], loaded.table[["statistic", "low"]])
    page = (out / "report.html").read_text("utf-8")
    assert interval(best["statistic"], best["low"], best["high"]) in page and "results.parquet" in page


def test_whole_groups_leave_the_interval_together(call, arrays):
    # Every stimulus four times: the four are one unit, and the honest interval is the wider one.
    for name in "xy":
        np.save(arrays / f"{name}.npy", np.repeat(np.load(arrays / f"{name}.npy")[:60], 4, axis=0))
    (arrays / "groups.csv").write_text("id,group\n" + "\n".join(f"{i},{i // 4}" for i in range(240)))
    files = [arrays / "x.npy", arrays / "y.npy", "-m", "CKA()", "--interval", "jackknife", "--json", "--draws", 19]
    grouped = json_of(call("pair", *files, "--groups", arrays / "groups.csv", "--shuffle", "whole"))[0]
    plain = json_of(call("pair", *files))[0]
    assert grouped["high"] - grouped["low"] > 1.3 * (plain["high"] - plain["low"])


def test_an_undefined_score_has_no_interval(call, arrays):
    np.save(arrays / "y.npy", np.ones((240, 3)))
    status, out, _ = call("pair", arrays / "x.npy", arrays / "y.npy", "-m", "CKA()", "--draws", 9, "--interval", "jackknife")
    assert status == 0 and "no interval, the score is undefined" in out


@pytest.fixture
def three(arrays):
    rng = np.random.default_rng(4)
    np.save(arrays / "far.npy", np.load(arrays / "x.npy") + 3 * rng.standard_normal((240, 10)))
    return [arrays / f"{name}.npy" for name in ("x", "y", "far")]


def test_which_is_closer(call, three):
    rows = json_of(call("difference", *three, "--json"))
    x, y, far = map(np.load, three)
    for row, measure in zip(rows, (MutualKNN(k=10), CKA()), strict=True):
        assert row["measure"] == repr(measure) and row["n"] == 240
        assert row["score_a"] == pytest.approx(measure(x, y)) and row["score_b"] == pytest.approx(measure(x, far))
        assert row["difference"] == pytest.approx(row["score_a"] - row["score_b"])
        assert 0 < row["low"] < row["difference"] < row["high"] and row["pvalue"] < 1e-3
    (other,) = json_of(call("difference", three[0], three[2], three[1], "-m", "CKA()", "--json"))
    assert other["difference"] == pytest.approx(-rows[1]["difference"]) and other["high"] < 0
    status, out, err = call("difference", *three, "-m", "CKA()")
    assert status == 0 and "x.npy with A = y.npy and with B = far.npy, n = 240" in out and "row i of one is paired" in err
    assert re.search(r"with A +with B +difference +95 % interval +p\s*\n", out)


def save_with_ids(path, array, ids):
    np.savez(path, features=array, ids=np.array(ids))
    return path


def test_three_files_are_joined_on_ids(call, three, arrays):
    arrays_of = [np.load(p) for p in three]
    ids, orders = [f"s{i}" for i in range(240)], [np.random.default_rng(i).permutation(240) for i in range(3)]
    orders = [orders[0][:230], orders[1], orders[2][:235]]
    files = [
        save_with_ids(arrays / f"{i}.npz", x[order], np.array(ids)[order])
        for i, (x, order) in enumerate(zip(arrays_of, orders, strict=True))
    ]
    (row,) = json_of(call("difference", *files, "-m", "CKA()", "--json"))
    kept = sorted(set(orders[0]) & set(orders[2]))
    x, y, far = (a[kept] for a in arrays_of)
    assert row["n"] == len(kept) < 230
    assert row["score_a"] == pytest.approx(CKA()(x, y)) and row["score_b"] == pytest.approx(CKA()(x, far))


def test_three_files_that_do_not_join(call, three, arrays):
    x = np.load(three[0])
    a = save_with_ids(arrays / "a.npz", x, [f"a{i}" for i in range(240)])
    b = save_with_ids(arrays / "b.npz", x, [f"b{i}" for i in range(240)])
    for files, message in (
        ((a, a, b), "have no id in common\n  expected: ids such as 'a0'\n  got: 'a0' and 'b0'"),
        ((three[0], a, b), "which row belongs to which?\n  expected: ids in all of them, or in none"),
        ((three[0], three[1], arrays / "short.npy"), "got: n = 240, n = 240, n = 239"),
        ((three[0], three[1], arrays / "nan.npy"), "NaN or infinite values"),
    ):
        status, _, err = call("difference", *files, "-m", "CKA()")
        assert status == 1 and message in err, err


def test_layers_are_named_where_a_file_has_several(call, three, arrays):
    x = np.load(three[0])
    np.savez(arrays / "layers.npz", early=np.random.default_rng(9).standard_normal(x.shape), late=x)
    files = [arrays / "layers.npz", *three[1:]]
    status, _, err = call("difference", *files, "-m", "CKA()")
    assert status == 1 and "layers.npz: which layer?" in err and "got: 2 layers: early, late" in err
    named = ["--layers", "late", "features", "features", "-m", "CKA()", "--json"]
    (found,), (plain,) = (json_of(call("difference", *f)) for f in ([*files, *named], [*three, "-m", "CKA()", "--json"]))
    assert "layers: early, late" in found.pop("how")[1] and "features: float64 (240, 10)" in plain.pop("how")[1]
    assert found == plain
    status, _, err = call("difference", *files, "--layers", "lat", "features", "features")
    assert status == 1 and "no layer 'lat'" in err and "did you mean 'late'" in err


# --- gallery size, and any n -----------------------------------------------------------------------


def test_the_curve_over_gallery_sizes(call, arrays):
    import pandas as pd

    files = [arrays / "x.npy", arrays / "y.npy"]
    status, out, err = call("curve", *files, "--k", 3, "--share", 0.1, "--repeats", 2, "--csv", arrays / "curve.csv")
    assert status == 0 and "k fixed" in out and "k a share of n" in out and "curve.csv" in out, err
    found = pd.read_csv(arrays / "curve.csv")
    assert found["n"].tolist() == [32, 64, 128] * 2 and found["k"].tolist() == [3, 3, 3, 3, 6, 13]
    assert found["chance"].tolist() == pytest.approx([k / (n - 1) for n, k in zip(found["n"], found["k"], strict=True)])
    fixed = found[found["mode"] == "fixed"]["statistic"]
    assert fixed.is_monotonic_decreasing and f"{number(fixed.iloc[0])}" in out
    corrected = (found["statistic"] - found["chance"]) / (1 - found["chance"])
    assert found["corrected"].tolist() == pytest.approx(corrected.tolist())


@pytest.mark.parametrize(
    "options, message",
    [
        (["--k", 240], "gallery sizes out of range"),
        (["--k", 0], "k"),
        (["--share", 1.5], "a share of the stimuli is a number between 0 and 1"),
        (["--csv", "x.npy/all.csv", "--repeats", 1], "x.npy/all.csv cannot be written"),
    ],
)
def test_bad_curves(call, arrays, options, message):
    options = [arrays / o if str(o).endswith(".csv") else o for o in options]
    status, _, err = call("curve", arrays / "x.npy", arrays / "y.npy", *options)
    assert status == 1 and message in err, err


# --- progress -------------------------------------------------------------------------------------


@pytest.fixture
def lines(capsys):
    """Progress without a terminal, by a clock of the test's own: (tell, clock, lines so far)."""
    clock = [0.0]
    return console.Lines(lambda: clock[0]), clock, lambda: capsys.readouterr().err.splitlines()


def test_without_a_terminal_a_line_every_30_s_has_the_rate_and_the_time_left(lines):
    """40 of 400 in 30 s: 80 a minute, and 360 / (40 / 30) = 270 s for the rest."""
    tell, clock, shown = lines
    tell("compare", 0, 400)
    for second in range(1, 66):
        clock[0] = second
        tell("compare", second * 4 / 3, 400)
    assert shown() == [
        "compare: 40 of 400, 1.3 a second, about 4.5 min left", "compare: 80 of 400, 1.3 a second, about 4 min left",
    ]  # fmt: skip
    clock[0] = 300.0
    tell("compare", 400, 400)
    assert shown() == ["compare: 400 of 400, 1.3 a second, in 5 min"]


def test_a_stage_that_was_short_says_nothing_and_one_that_is_silent_is_told_of(lines):
    tell, clock, shown = lines
    tell("prepare layers", 0, 6)
    clock[0] = 4.9
    tell("prepare layers", 6, 6)
    tell("compare", 0, 3)
    clock[0] = 34.0
    tell.tell()
    assert shown() == []
    clock[0] = 35.0
    tell.tell()  # as the thread does while a tile takes its time
    assert shown() == ["compare: 0 of 3 in 30 s"]
    tell("compare", 1.25, 3)
    clock[0] = 65.0
    tell.tell()
    assert shown() == ["compare: 1.2 of 3, 1.2 a minute, about 84 s left"]  # 1.75 / (1.25 / 60)


def test_stages_that_take_turns_have_their_own_time(lines):
    """Layers are prepared for 2 s and compared for 40 s, four times."""
    tell, clock, shown = lines
    tell("compare", 0, 4)
    for turn in range(4):
        for layers in (0, 1, 2):
            clock[0] += layers and 1
            tell("prepare layers", 2 * turn + layers, 8)
        clock[0] += 40
        tell("compare", turn + 1, 4)
    assert shown() == [
        "compare: 1 of 4, 1.5 a minute, about 2 min left", "prepare layers: 2 of 8, 1.0 a second, about 6 s left",
        "compare: 2 of 4, 1.5 a minute, about 80 s left", "prepare layers: 4 of 8, 1.0 a second, about 4 s left",
        "compare: 3 of 4, 1.5 a minute, about 40 s left", "prepare layers: 6 of 8, 1.0 a second, about 2 s left",
        "prepare layers: 8 of 8, 1.0 a second, in 8 s", "compare: 4 of 4, 1.5 a minute, in 2.7 min",
    ]  # fmt: skip


def test_a_stage_that_begins_again_has_a_rate_of_its_own(lines):
    """What was done before it began, by an earlier run, was not done in its time."""
    tell, clock, shown = lines
    for start in (0.0, 1000.0):
        clock[0] = start
        tell("compare", 50, 100)
        clock[0] = start + 50
        tell("compare", 75, 100)
        assert shown() == ["compare: 75 of 100, 30 a minute, about 50 s left"]
        clock[0] = start + 60
        tell("compare", 100, 100)
        assert shown() == ["compare: 100 of 100, 50 a minute, in 60 s"]


def test_a_long_run_without_a_terminal_talks(call, arrays, monkeypatch):
    """Each look at the clock is half a minute later."""
    clock = iter(range(0, 10**6, 31))
    monkeypatch.setattr(console.Lines, "keep_telling", lambda *_: None)
    monkeypatch.setattr(console, "Lines", functools.partial(console.Lines, lambda: next(clock)))
    monkeypatch.setattr(importlib.import_module("repalign.comparison.work"), "TELL_EVERY", -1.0)
    _, _, err = call("pair", arrays / "x.npy", arrays / "y.npy", "-m", "Procrustes", "--draws", 4)
    within = re.findall(r"^compare: 0\.(\d) of 1, \S+ (?:a minute|an hour), about .+ left$", err, flags=re.M)
    assert within == ["2", "4", "6", "8"]  # of one tile: the score and four draws
    assert re.search(r"^compare: 1 of 1, .+, in \S+ \w+$", err, flags=re.M)


@pytest.fixture
def large(monkeypatch):
    """Streams, closed forms or anchors from 240 rows on."""
    from repalign.comparison import ways

    def begin(*names):
        for name in names:
            monkeypatch.setitem(ways.ABOVE, name, 239)
        monkeypatch.setattr(ways, "ANCHORS", 100)

    return begin


def test_pair_at_scale_streams_and_tiles(call, arrays, large):
    large("streamed", "closed")
    x, y = (np.load(arrays / f"{name}.npy") for name in "xy")
    np.savez(arrays / "layers.npz", noise=np.random.default_rng(9).standard_normal(x.shape), x=x)
    files = [arrays / "layers.npz", arrays / "y.npy"]
    status, out, err = call("pair", *files, "--memory", "1GiB")
    assert status == 0 and "one streaming pass" in out and "all n = 240 rows, exact cosine neighbours by tiles" in out
    assert err.index("plan for MutualKNN(k=10") < err.index("plan for CKA(") and "prepare layers" not in err  # it took no 5 s
    # 240^2 (10 + 10 + 6)
    assert re.search(r"exact tiles: 1.5e\+06 multiply-adds, under a second at \S+ multiply-adds a second", err)
    assert re.search(r"feature space: \S+ multiply-adds, \S+ kB beside the features, whatever n, under a second at", err)
    rows = json_of(call("pair", *files, "--json"))
    assert [r["layer_x"] for r in rows] == ["x", "x"] and "tiles; p from exact moments" in rows[0]["how"][-2]
    assert [r["statistic"] for r in rows] == pytest.approx([MutualKNN(k=10)(x, y), CKA()(x, y)])
    sd = math.sqrt(2 / (240 * 237))  # of the debiased score, whatever the data
    assert rows[1]["null_mean"] == pytest.approx(sd) and rows[1]["null_std"] == pytest.approx(sd)  # the best of two
    assert rows[0]["null_mean"] > 10 / 239 and rows[0]["pvalue"] < 1e-9
    assert rows[1]["pvalue"] == pytest.approx(2 / (1 + (rows[1]["z"] + 1) ** 2))


WAYS_ASKED = {
    "dense": [], "streamed and closed": ["streamed", "closed"], "anchored": ["streamed", "closed", "anchored"],
}  # fmt: skip


@pytest.mark.parametrize("names", WAYS_ASKED.values(), ids=WAYS_ASKED)
@pytest.mark.parametrize("options, asked", [
    ([], {}), (["--draws", 19], {"null": nulls.Permutations(19)}), (["--search", "raw"], {"search": "raw"}),
    (["--seed", 4], {"null": nulls.Auto(seed=4)}),
])  # fmt: skip
def test_pair_says_what_the_library_says_at_every_n(call, arrays, large, names, options, asked):
    """The same columns, the same numbers, the same options honoured."""
    large(*names)
    x, y = (np.load(arrays / f"{name}.npy") for name in "xy")
    files = [arrays / f"{name}.npz" for name in ("several", "other")]
    np.savez(files[0], noise=np.random.default_rng(9).standard_normal(x.shape), x=x)
    np.savez(files[1], y=y, half=y[:, :3])
    rows = json_of(call("pair", *files, *options, "--json"))
    found = repalign.pair(*files, names=("several", "other"), **asked)
    best = found.best()
    assert set(rows[0]) - {"how", "low", "high"} == set(best.columns)
    for row, expected in zip(rows, best.to_dict("records"), strict=True):
        told = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in expected.items()}
        assert {k: row[k] for k in told} == told
        assert row["how"][: len(found.run["how"])] == found.run["how"]


def test_pair_at_scale_by_anchors(call, arrays, large):
    large("anchored")
    files, knn = [arrays / "x.npy", arrays / "y.npy"], ["-m", "MutualKNN(k=5)", "--seed", 3]
    (row,) = json_of(call("pair", *files, *knn, "--json"))
    x, y = map(np.load, files)
    expected = anchored_mutual_knn(x, y, 5, n_anchors=100, seed=3)
    assert (row["statistic"], row["low"], row["high"]) == pytest.approx(
        (expected.statistic, expected.low, expected.high)
    )
    assert row["null_mean"] == pytest.approx(5 / 239)
    status, out, err = call("pair", *files, *knn)
    assert status == 0 and "100 anchors among n = 240 rows" in out and "100 anchors against all rows" in err
    assert f"95% interval of the estimate {number(expected.low)} to {number(expected.high)}" in out


def test_what_a_large_pair_refuses(call, arrays, large, monkeypatch):
    large("streamed")
    files = [arrays / "x.npy", arrays / "y.npy"]
    status, out, err = call("pair", *files, "-m", "CKA()", "--search", "rows")
    assert status == 1 and "the layer search studentised rows needs draws" in err and not out
    for name in ("comparison.compare", "comparison.intervals"):
        monkeypatch.setattr(importlib.import_module(f"repalign.{name}"), "DEFAULT_MEMORY", 1000)
    status, out, err = call("pair", *files, "-m", "CKA(kernel='rbf')", "--memory", "4kB")
    assert status == 1 and "at n = 240 does not fit the memory\n  expected: two n x n matrices within 0.0 GiB" in err and not out
    status, _, err = call("pair", *files, "-m", "CKA()", "--memory", "1MB", "--interval", "jackknife")
    assert status == 1 and "CKA(kernel='linear'" in err and "does not fit the memory" in err, err


def test_intervals_at_scale_are_those_of_any_n(call, arrays, large):
    asked = ["pair", arrays / "x.npy", arrays / "y.npy", "-m", "MutualKNN(k=5)", "--interval", "jackknife", "--json"]
    (before,) = json_of(call(*asked))
    large("closed")
    (row,) = json_of(call(*asked))
    assert row["n_draws"] == 0 and [row[c] for c in ("low", "high")] == [before[c] for c in ("low", "high")]


def test_a_large_difference_needs_neighbour_lists(call, three, monkeypatch):
    monkeypatch.setattr(importlib.import_module("repalign.comparison.intervals"), "DEFAULT_MEMORY", 1000)
    status, _, err = call("difference", *three)
    assert status == 1 and "at n = 240 does not fit the memory" in err and "do: use MutualKNN, or fewer stimuli" in err
    assert json_of(call("difference", *three, "-m", "MutualKNN(k=5)", "--json"))[0]["pvalue"] < 0.01


# --- what is read, and what a user says of it --------------------------------------------------------


@pytest.fixture
def frames(tmp_path):
    """a: columns with an id that is called pk, and a label; b: the same rows in another order, a list column and its own id."""
    import pandas as pd

    rng = np.random.default_rng(0)
    x, order = rng.standard_normal((60, 4)), rng.permutation(60)
    columns = {f"f{i}": x[:, i] for i in range(4)}
    pd.DataFrame({**columns, "pk": 100 + np.arange(60), "label": 1}).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"v": list(x[order]), "stimulus": 100 + order, "w": list(x[order][:, :2])}).to_parquet(tmp_path / "b.parquet")
    np.save(tmp_path / "c.npy", np.stack([x, 2 * x]))
    return [tmp_path / "a.parquet", tmp_path / "b.parquet"]


def test_pair_is_told_what_is_what(call, frames):
    status, _, err = call("pair", *frames, "-m", "CKA()")
    assert status == 1 and "which row belongs to which?" in err and "do: say --id pk (in Python ids='pk'" in err
    said = ["--id", "pk", "--id", "stimulus", "-m", "CKA()"]
    (row,) = json_of(call("pair", *frames, *said, "--vector", "", "--vector", "v", "--json"))
    assert row["statistic"] == pytest.approx(1) and row["n"] == 60
    joined, a, b = row["how"]
    assert joined == "joined on 60 ids; 0 and 0 rows have no partner and are left out"
    assert a.endswith("a.parquet: features: 4 columns f0, f1, f2, f3; ids: pk (int64); left out: label (int64)")
    assert b.endswith("b.parquet: features: v (float64 (60, 4)); ids: stimulus (int64); left out: w (float64 (60, 2))")
    narrow = ["--features", "f[01]", "--features", "", "--vector", "", "--vector", "w"]
    assert json_of(call("pair", *frames, *said, *narrow, "--json"))[0]["statistic"] == pytest.approx(1)
    status, _, err = call("pair", *frames, *said)
    assert status == 0 and all(sentence in err for sentence in (joined, "left out: label (int64)"))
    by_rows = json_of(call("pair", *frames, "--rows", "-m", "CKA()", "--json"))[0]
    assert by_rows["statistic"] < 0.9 and by_rows["how"][0].endswith("as asked")


def test_every_command_that_reads_two_files_takes_the_same_words(call, frames, tmp_path):
    c = tmp_path / "c.npy"
    said = ["--id", "pk", "--id", "stimulus"]
    (row,) = json_of(call("difference", *frames, frames[0], *said, "--id", "pk", "--layers", "features", "v", "features",
                          "-m", "CKA()", "--json"))  # fmt: skip
    assert row["score_a"] == pytest.approx(1) and len(row["how"]) == 4
    status, _, err = call("curve", *frames, *said, "--layers", "features", "v", "--k", 3, "--repeats", 1)
    assert status == 0 and "joined on 60 ids" in err
    status, _, err = call("pair", frames[0], c, "--rows", "-m", "CKA()")
    assert status == 1 and "c.npy: features (float64 (2, 60, 4)) can be read in two ways" in err
    (row,) = json_of(call("pair", frames[0], c, "--rows", "--axes", "lnd", "-m", "CKA()", "--json"))
    assert row["layer_y"] in ("layer.0", "layer.1") and row["statistic"] == pytest.approx(1)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--id", "a", "--id", "b", "--id", "c"], "--id is said 3 times\n  expected: once for all files, or 2 times"),
        (["--id", "pk"], "b.parquet: nothing in it is called 'pk'"),
        (["--id", "pk", "--rows"], "ids and rows are two ways to pair"),
        (["--vector", "v", "--features", "f*"], "features and vector both say what the features are"),
        (["--axes", "nl"], "unknown axes 'nl'"),
    ],
)
def test_words_that_do_not_fit_are_told(call, frames, options, message):
    status, out, err = call("pair", *frames, *options)
    assert status == 1 and message in err and not out, err
