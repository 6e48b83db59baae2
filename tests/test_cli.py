"""The command line: it does the job, and a failure is one message and a status, never a traceback."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from alignment_table import KNN, LANGUAGE, VISION, make_run, make_table
from repalign import cli
from repalign.alignment import Alignment


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
    assert "n = 240" in out and "0.0042" in out
    assert re.search(r"score +chance +calibrated +p +p \(maxT\)\s*\n", out) and "Holm" not in out
    assert "row i of one is paired with row i of the other" in err


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
    rows = [line.split() for line in lines if "[layer." in line]
    best = Alignment(table, {}).best()
    assert [r[-1] for r in rows] == [f"{p:.2g}" for p in best[shown]]


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
        (["x.npy", "x.txt"], "not a file of features that can be read"),
        (["x.npy", "y.npy", "-m", "MutualKNN(k=240)"], "too few stimuli for MutualKNN(k=240"),
        (["x.npy", "y.npy", "-m", "MutualKN(k=3)"], "did you mean 'MutualKNN'"),
        (["x.npy", "y.npy", "-m", "CKA(kernl='rbf')"], "did you mean 'kernel'"),
    ],
)
def test_bad_input_to_pair(call, arrays, arguments, message):
    (arrays / "x.txt").write_text("no array")
    files = [arrays / a if a.endswith((".npy", ".txt")) else a for a in arguments]
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
    folder = study.parent / "runs/small"
    status, out, _ = call("run", study, "--plan")
    assert status == 0 and "1 pairs of models" in out and not folder.exists()
    status, out, _ = call("extract", study)
    assert status == 0 and "next: repalign run" in out
    status, out, err = call("run", study)
    assert status == 0 and "report.html" in out and "complete in the store" in err
    status, out, _ = call("report", folder / "results", "--out", folder / "again.html", "--static", folder / "figures")
    assert status == 0 and (folder / "again.html").is_file() and list((folder / "figures").glob("*.svg"))
    status, out, _ = call("compare", folder / "store", "--results", folder / "other", "-m", "CKA()")
    assert status == 0 and (folder / "other/results.parquet").is_file()
    status, out, _ = call("check", folder / "store")
    assert status == 0 and "whole: 2 models" in out
    part = next((folder / "store").rglob("part-*.safetensors"))
    part.write_bytes(part.read_bytes()[:-40])
    status, out, err = call("check", folder / "store")
    assert status == 1 and part.name in out and "do:" in out


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
    status, _, err = call("compare", study.parent / "runs/small/store")
    assert status == 1 and "which dataset?" in err


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
    "command", ["run", "extract", "compare", "report", "pair", "measures", "models", "check", "demo"]
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
    assert status == 1 and "there is no store" in err


def test_what_nobody_expected_is_one_line_and_a_log(call, monkeypatch, arrays):
    import repalign.compare

    monkeypatch.setattr(repalign.compare, "pair", lambda *a, **k: 1 / 0)
    status, _, err = call("pair", arrays / "x.npy", arrays / "y.npy")
    assert status == 70 and "unexpected error: ZeroDivisionError: division by zero" in err and "details:" in err


def test_stopping_says_that_it_resumes(call, monkeypatch, study):
    import repalign.study

    def stop(*_a, **_k):
        raise KeyboardInterrupt

    monkeypatch.setattr(repalign.study, "run", stop)
    status, _, err = call("run", study)
    assert status == 130 and "goes on from here" in err
