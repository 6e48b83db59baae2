"""Checkpoints against references: the numbers, duplicates, what is left out, resuming, the command."""

from __future__ import annotations

import ast
import csv
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import repalign
from repalign.cli import app
from repalign.comparison.check import check
from repalign.errors import RepalignError
from repalign.experiments import EXPERIMENTS
from repalign.experiments.track import _twins, checkpoints_of, step_of, track
from repalign.files import DamagedError

BED = Path(__file__).resolve().parents[2] / "shared/bed"


@pytest.fixture(scope="module")
def run(shared, tmp_path_factory) -> Path:
    """Three checkpoints: a language model, and as it is after two and four steps; one copied under another name; a table."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("run")
    model = AutoModelForCausalLM.from_pretrained(BED / "models/stories260k")
    generator = torch.Generator().manual_seed(0)
    for step in (0, 2, 4):
        there = folder / f"checkpoint-{step}"
        shutil.copytree(BED / "models/stories260k", there)
        model.save_pretrained(there)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.5 * p.std() * torch.randn(p.shape, generator=generator)
    shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-1")
    (folder / "checkpoint-3").mkdir()
    with (BED / "flickr8k_dev/pairs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pd.DataFrame(rows)[["id", "caption"]].to_csv(folder / "texts.csv", index=False)
    return folder


@pytest.mark.slow
def test_checkpoints_of_the_bed(run, tmp_path, monkeypatch):
    """Step 0 is the bed's figure, .0310 at the third block; copies are named; what is broken is left out; then nothing runs."""
    photos = str(BED / "features/mobilenet_v1_075.safetensors")
    models = [str(run / f"checkpoint-{k}") for k in (4, 0, 1, 2, 3)]
    given = {"references": [photos], "data": run / "texts.csv", "text": "caption", "store": tmp_path / "store", "device": "cpu"}
    told = []
    found = track(models, measures=["MutualKNN(k=10)"], **given, progress=lambda *said: told.append(said))
    table = found.table
    assert table["checkpoint"].tolist() == ["checkpoint-0", "checkpoint-1", "checkpoint-2", "checkpoint-4"]
    cells = found.tables["cells"].query("checkpoint == 'checkpoint-0'").set_index("layer")["statistic"]
    assert cells.to_numpy() == pytest.approx([0.0295, 0.0273, 0.0287, 0.0310, 0.0256, 0.0251], abs=3e-4)
    first = table.iloc[0]
    assert (first["layer"], first["fixed_layer"]) == ("block.2", "block.2") and first["fixed"] == first["statistic"]
    assert first["low"] < first["statistic"] < first["high"] and first["p"] < 0.01 and first["bits_per_byte"] > 1
    assert table["same_as"].tolist() == ["", "checkpoint-4", "", ""]
    assert found.course["checkpoint"].tolist() == ["checkpoint-0", "checkpoint-2", "checkpoint-4"]
    assert [name for name, _ in found.left_out] == ["checkpoint-3"]
    assert "checkpoint-1 and checkpoint-4 hold the same weights" in found.text and "checkpoint-3 is left out" in found.text
    assert any(note == "complete in the store" for *_, note in told) is False
    told.clear()  # finished rows are read: what is left out alone is tried again, and nothing is run or compared
    monkeypatch.setattr("repalign.track.Tracker._scored", None)
    again = track(models, measures=["MutualKNN(k=10)"], **given, progress=lambda *said: told.append(said))
    assert {said[0] for said in told} <= {"extract checkpoint-3", "score"}
    pd.testing.assert_frame_equal(again.table, table)
    pd.testing.assert_frame_equal(again.tables["cells"], found.tables["cells"])
    monkeypatch.setattr("repalign.sources.extract", None)
    whole = track(models[:4], measures=["MutualKNN(k=10)"], **given)
    pd.testing.assert_frame_equal(whole.table, table)
    of_run, *of_rows = sorted((tmp_path / "store/tracked").iterdir(), key=lambda path: not path.name.startswith("run-"))
    for kept, old, new in ((of_rows[0], b'"statistic": 0', b'"statistic": 1'), (of_run, b'"n": 1000', b'"n": 1001')):
        whole = kept.read_bytes()
        kept.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(DamagedError, match="is not what was written"):
            track(models[:4], measures=["MutualKNN(k=10)"], **given)
        kept.write_bytes(whole)
    axes = found.draw()
    assert axes.get_lines()[0].get_xdata().tolist() == [0, 2, 4]


def changed(path: Path) -> None:
    """A file of features with other numbers."""
    there = dict(np.load(path))
    np.savez(path, **{**there, "features": there["features"][::-1]})


def test_a_finished_run_is_read_without_torch_and_a_change_is_noticed(tmp_path, monkeypatch, capsys):
    """Where nothing is run it is asked in a new process what was imported; the others run in this one."""
    from repalign.cli import main

    monkeypatch.chdir(tmp_path)
    made = EXPERIMENTS["track"].mock({"measures": ["CKA()"]}, tmp_path)
    words = ["track", *made["models"], "--references", made["references"][0], "--data", str(made["data"]), "--measures", "CKA()"]
    words += ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    code = (
        "import sys; from repalign.cli import main\n"
        f"sys.argv = ['repalign', *{words!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'transformers', 'scipy', 'matplotlib', 'huggingface_hub') if m in sys.modules])"
    )

    def finished() -> tuple[str, str]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told, _, modules = done.stdout.rstrip().rpartition("\n")
        assert ast.literal_eval(modules) == []
        return told, done.stderr

    def run() -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["repalign", *words])
        with suppress(SystemExit):
            main()
        said = capsys.readouterr()
        return said.out.rstrip(), said.err

    first, told = run()
    assert "nothing is run" not in told
    written = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("*"))}
    again, told = finished()
    assert again == first and "nothing is run" in told
    assert written == {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("*"))}
    (tmp_path / "out/figures/01-track.svg").unlink()  # what is missing is drawn again
    assert run()[0] == first and set(written) == set((tmp_path / "out").rglob("*"))
    changed(tmp_path / "step10.npz")
    other, told = run()
    assert other != first and "nothing is run" not in told
    again, told = finished()
    assert again == other and "nothing is run" in told


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: changed(folder / "step100.npz"), lambda folder: changed(folder / "reference.npz"),
        lambda folder: (folder / "step0.npz.ids.txt").write_text("\n".join(f"s{i}" for i in range(120))),
        lambda folder: (folder / "texts.csv").write_text((folder / "texts.csv").read_text().replace("s7,a text", "s7,another")),
        lambda folder: (folder / "step0.npz").unlink(),
    ],
    ids=["a checkpoint", "a reference", "ids beside it", "a stimulus", "a checkpoint that is gone"],
)  # fmt: skip
def test_what_a_finished_run_depends_on(tmp_path, change, monkeypatch):
    made = EXPERIMENTS["track"].mock({"measures": ["CKA()"]}, tmp_path) | {"store": tmp_path / "store", "device": "cpu"}
    found, options = track(**made), EXPERIMENTS["track"].finished
    asked = {name: made.get(name, p.default) for name, p in EXPERIMENTS["track"].options.items()}
    again = options(**asked)
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.identity == found.identity != "" and again.text == found.text
    assert options(**{**asked, "seed": 1}) is None and options(**{**asked, "store": None}) is None
    with monkeypatch.context() as patch:
        patch.setattr("repalign.experiments.track_record._code", lambda: "another version")
        assert options(**asked) is None
    change(tmp_path)
    assert options(**asked) is None


def test_a_finished_run_depends_on_its_pictures(tmp_path):
    """Which the table only names."""
    from PIL import Image

    made = EXPERIMENTS["track"].mock({"measures": ["CKA()"]}, tmp_path) | {"store": tmp_path / "store", "image": "photo"}
    for i in range(20):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "texts.csv").write_text("id,photo\n" + "".join(f"s{i},{i}.png\n" for i in range(20)))
    assert track(**made).n == 20
    asked = {name: made.get(name, p.default) for name, p in EXPERIMENTS["track"].options.items()}
    assert EXPERIMENTS["track"].finished(**asked).n == 20
    Image.new("RGB", (4, 4), (0, 9, 0)).save(tmp_path / "7.png")
    assert EXPERIMENTS["track"].finished(**asked) is None


def test_a_finished_run_depends_on_its_reference_in_a_store(tmp_path):
    made = EXPERIMENTS["track"].mock({"measures": ["CKA()"]}, tmp_path) | {"store": tmp_path / "store"}
    stimuli = repalign.Dataset.from_table(made["data"], text="text")
    reference = repalign.ModelEntry(f"array:{made['references'][0]}", name="photos", modality="text")
    repalign.extract(stimuli, [reference], tmp_path / "others")
    made["references"] = [f"{tmp_path / 'others'}#photos"]
    found = track(**made)
    asked = {name: made.get(name, p.default) for name, p in EXPERIMENTS["track"].options.items()}
    pd.testing.assert_frame_equal(EXPERIMENTS["track"].finished(**asked).table, found.table)
    (manifest,) = (tmp_path / "others").rglob("manifest.json")
    manifest.write_bytes(manifest.read_bytes() + b" ")
    assert EXPERIMENTS["track"].finished(**asked) is None


def test_a_folder_of_a_model_and_a_commit_are_told_by_what_they_hold(tmp_path):
    """Of a folder by the files that a model is loaded from, as its revision is; a branch may move, and is asked for each time."""
    from repalign.experiments.track_record import all_read, digest_of
    from repalign.sources import ModelEntry

    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    ((path, endings, digest),) = all_read([], [ModelEntry(f"hf:{folder}")])
    assert path == str(folder) and digest == digest_of(folder, endings) == all_read([], [ModelEntry(f"hf:{folder}")])[0][2]
    (folder / "optimizer.pt").write_bytes(b"state")
    assert digest_of(folder, endings) == digest
    for file, data in (("model.safetensors", b"Weights"), ("tokenizer.json", b"{}")):
        (folder / file).write_bytes(data)
        assert digest_of(folder, endings) not in (digest, None)
        digest = digest_of(folder, endings)
    assert all_read([], [ModelEntry(f"hf:org/name@{'0' * 40}")]) == []
    assert all_read([str(tmp_path / "none.npz")], []) is None and all_read([], [ModelEntry("toy:vision-pixels")]) is None


def test_a_panel_and_files_give_the_same(tmp_path):
    made = EXPERIMENTS["track"].mock({"measures": ["CKA()"]}, tmp_path)
    one = track(**made)
    panel = repalign.Panel.of({"reference": tmp_path / "reference.npz"}).save(tmp_path / "panel.safetensors")
    other = track(**{**made, "references": [str(panel)]})
    assert np.allclose(one.table["statistic"], other.table["statistic"], atol=1e-5) and one.n == 120
    scores = one.table["statistic"].tolist()
    assert scores == sorted(scores) and one.table["step"].tolist() == [0, 10, 100] and scores[0] < 0.1 < 0.3 < scores[-1]
    assert one.draw().get_xscale() == "symlog"  # a logarithm that keeps 0
    part = repalign.Panel.load(panel).subset([f"s{i}" for i in range(50, 100)]).save(tmp_path / "part.safetensors")
    assert track(**{**made, "references": [str(part)]}).n == 50


def test_a_constant_reference_has_no_score(tmp_path):
    made = EXPERIMENTS["track"].mock({"measures": ["CKA()"]}, tmp_path)
    np.savez(tmp_path / "flat.npz", features=np.ones((120, 3)), ids=[f"s{i}" for i in range(120)])
    found = track(**{**made, "references": [str(tmp_path / "flat.npz")]})
    assert found.table["statistic"].isna().all() and "CKA with flat is undefined" in found.text
    found.draw()


def test_steps_and_names():
    assert [step_of(n) for n in ("m@step0", "m@main", "out/checkpoint-12", "run3", "512", "a@stage1-step1000-tokens5B")] == [
        0, None, 12, None, 512, 1000,
    ]  # fmt: skip
    assert checkpoints_of(["hf:org/m-70m"], ["step0,step1", "main"]) == [
        ("m-70m@step0", "hf:org/m-70m@step0"), ("m-70m@step1", "hf:org/m-70m@step1"), ("m-70m@main", "hf:org/m-70m@main"),
    ]  # fmt: skip
    names = [("s1", "a"), ("step2", "b"), ("step9", "a"), ("main", "a"), ("x", "none"), ("y", "none")]
    assert _twins(names) == {"s1": "step9", "main": "step9"}


def test_revisions_by_a_pattern(tmp_path, monkeypatch):
    """Of a folder its folders; on the hub branches and tags, of which a stub of its client tells."""
    from types import SimpleNamespace

    for name in ("stage1-step1000-tokens5B", "stage1-step0", "stage1-step500", "stage2-step1", "main"):
        (tmp_path / "olmo" / name).mkdir(parents=True)
    (tmp_path / "olmo" / "stage1-step7.txt").touch()
    folder = str(tmp_path / "olmo")
    wanted = ["stage1-step0", "stage1-step500", "stage1-step1000-tokens5B"]
    found = checkpoints_of([folder], ["stage1-step*,main"])
    assert [name for name, _ in found] == [f"olmo@{one}" for one in (*wanted, "main")]
    assert found[1][1] == f"hf:{tmp_path}/olmo/stage1-step500"
    with pytest.raises(RepalignError, match="no revision fits 'step-\\*'"):
        checkpoints_of([folder], ["step-*"])
    asked = []

    def refs(self, repository):
        asked.append(repository)
        return SimpleNamespace(branches=[SimpleNamespace(name=n) for n in ("main", "step512", "step8")],
                               tags=[SimpleNamespace(name="step64")])  # fmt: skip

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_refs", refs)
    assert [spec for _, spec in checkpoints_of(["hf:org/name"], ["step*", "main,m*"])] == [
        "hf:org/name@step8", "hf:org/name@step64", "hf:org/name@step512", "hf:org/name@main",
    ]  # fmt: skip
    assert asked == ["org/name"]


def test_what_is_refused(tmp_path):
    made = EXPERIMENTS["track"].mock({}, tmp_path)
    with pytest.raises(RepalignError, match="revisions are of one model"):
        track(**{**made, "revisions": ["step0"]})
    with pytest.raises(RepalignError, match="checkpoints have names of their own"):
        track(**{**made, "models": made["models"][:1] * 2})
    for none in ({"references": []}, {"data": None}):
        with pytest.raises(RepalignError, match="nothing to score against"):
            track(**{**made, **none})
    np.savez(tmp_path / "others.npz", features=np.random.default_rng(0).standard_normal((20, 3)), ids=[f"t{i}" for i in range(20)])
    with pytest.raises(RepalignError, match="no id in common"):
        track(**{**made, "references": [str(tmp_path / "others.npz")]})
    np.save(tmp_path / "plain.npy", np.random.default_rng(0).standard_normal((20, 3)))
    with pytest.raises(RepalignError, match="references without ids do not fit"):
        track(**{**made, "references": [str(tmp_path / "plain.npy")]})


def test_the_command(tmp_path):
    made = EXPERIMENTS["track"].mock({}, tmp_path)
    words = ["track", *made["models"], "--references", made["references"][0], "--data", str(made["data"]), "--measures", "CKA()"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "features on disk: about" in done.stderr and "running models:" in done.stderr  # told before
    assert {"track.csv", "cells.csv", "experiment.json", "report.html", "figures"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert check(str(tmp_path / "out")) == []
    (tmp_path / "out/cells.csv").write_text("checkpoint\n")
    (problem,) = check(str(tmp_path / "out"))
    assert problem.path.endswith("cells.csv") and "is not the file of which experiment.json speaks" in problem.problem
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [row["checkpoint"] for row in told] == ["step0.npz", "step10.npz", "step100.npz"]
