"""`repalign competence`: it does the job, and a failure is one message."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import alignment_table as made
import tiny_models
from repalign import cli
from repalign.comparison.alignment import Alignment
from repalign.competence import BitsProtocol, LinearProbe, Split, best_layer, bits_per_byte, probe
from repalign.dataset import Dataset
from repalign.sources import ModelEntry, extract
from repalign.text import number


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `repalign competence ...` in this process; (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["repalign", "competence", *map(str, arguments)])
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


@pytest.mark.parametrize("command", ["bits", "probe", "import"])
def test_help_with_an_example(call, command):
    status, out, _ = call(command, "--help")
    assert status == 0 and f"repalign competence {command}" in out.split("Example")[-1]


def test_bits(call, tmp_path):
    model, corpus = tiny_models.gpt2(tmp_path / "m"), tmp_path / "c.txt"
    corpus.write_text("\n".join(tiny_models.CAPTIONS))
    expected = bits_per_byte(f"hf:{model}", tiny_models.CAPTIONS, BitsProtocol(context=32))
    options = ("--documents", "lines", "--context", 32, "--out", tmp_path / "bits.json")
    status, out, _ = call("bits", f"hf:{model}", corpus, *options)
    assert status == 0 and f"{expected.bits_per_byte:.6f} bits per byte" in out
    assert "context 32, stride 16, documents separate, first token not scored, float32" in out
    assert json.loads((tmp_path / "bits.json").read_text())["complete"]
    row = json.loads(call("bits", f"hf:{model}", corpus, *options, "--json")[1])[0]
    assert row["bits_per_byte"] == expected.bits_per_byte and row["protocol"]["stride"] == 16
    status, _, err = call("bits", f"hf:{model}", corpus, "--column", "text")
    assert status == 1 and "--column says nothing of" in err
    status, _, err = call("bits", f"hf:{model}", corpus, "--bos", "alway")
    assert status == 1 and "did you mean 'always'" in err
    status, _, err = call("bits", f"hf:{model}", tmp_path / "d.txt")
    assert status == 1 and "there is no corpus" in err


def test_probe(call, tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"s{i}" for i in range(120)]
    y = rng.integers(0, 3, 120)
    x = {
        f"l{i}": (s * np.eye(3)[y] @ rng.standard_normal((3, 6)) + rng.standard_normal((120, 6)))
        for i, s in enumerate((1, 3))
    }
    np.savez(tmp_path / "x.npz", ids=np.array(ids), **x)
    data = Dataset.from_arrays({"z": np.zeros((120, 1))}, ids)
    extract(data, [ModelEntry(f"array:{tmp_path / 'x.npz'}", name="mine", modality="z")], str(tmp_path / "store"))
    pd.DataFrame({"id": ids, "kind": [f"k{c}" for c in y]}).to_csv(tmp_path / "labels.csv", index=False)
    expected = probe(
        {n: torch.tensor(v).float() for n, v in x.items()},
        [f"k{c}" for c in y],
        LinearProbe(),
        split=Split(0.25, 1),
        seed=1,
    )
    arguments = ("probe", tmp_path / "store", tmp_path / "labels.csv", "--label", "kind", "--seed", 1, "--test", 0.25)
    status, out, _ = call(*arguments, "--csv", tmp_path / "probes.csv")
    best = best_layer(expected)
    assert status == 0 and "mine" in out and number(best.accuracy) in out and "within the training stimuli" in out
    rows = pd.read_csv(tmp_path / "probes.csv")
    assert rows["accuracy"].tolist() == [r.accuracy for r in expected] and rows["layer"].tolist() == ["l0", "l1"]
    rows = json.loads(call(*arguments, "--probe", "few-shot", "-m", 2, "--json")[1])
    assert [r["validation"] for r in rows] == [None, None] and "m=2" in rows[0]["probe"]
    assert call(*arguments, "--probe", "knn", "--k", 3)[0] == 0
    status, _, err = call(*arguments, "--probe", "linnear")
    assert status == 1 and "did you mean 'linear'" in err
    status, _, err = call(*arguments, "--model", "mime")
    assert status == 1 and "did you mean 'mine'" in err


def test_import(call, tmp_path):
    results, table = tmp_path / "results", tmp_path / "hellaswag.csv"
    Alignment(made.make_table(), made.make_run()).save(results)
    names = [name for name, *_ in made.LANGUAGE]
    table.write_text("model,acc,n\n" + "".join(f"{n},{0.3 + i / 10},x\n" for i, n in enumerate(names)))
    status, out, _ = call("import", results, table, "--column", "acc=hellaswag")
    assert status == 0 and f"{len(names)} of {len(names) + len(made.VISION)} models: hellaswag" in out
    assert "next: repalign report" in out
    after = Alignment.load(results)
    scores = {m["name"]: m["scores"] for m in after.run["models"]}
    before = {m["name"]: m["scores"] for m in made.make_run()["models"]}
    assert scores == {
        n: {**s, **({"hellaswag": 0.3 + names.index(n) / 10} if n in names else {})} for n, s in before.items()
    }
    status, _, err = call("import", results, table)
    assert status == 1 and "n is no number" in err
    table.write_text(f"model,hellaswag\n{names[0]},0.9\n")
    status, _, err = call("import", results, table)
    assert status == 1 and f"model {names[0]} has hellaswag already" in err and "(--overwrite)" in err
    assert call("import", results, table, "--overwrite")[0] == 0
    scores = {m["name"]: m["scores"]["hellaswag"] for m in Alignment.load(results).run["models"] if m["name"] in names}
    assert scores == {n: 0.9 if n == names[0] else 0.3 + i / 10 for i, n in enumerate(names)}
    table.write_text("model,acc\nllama-13,1\n")
    status, _, err = call("import", results, table)
    assert status == 1 and "did you mean 'llama-13" in err
