"""Stores and results in a bucket of S3, as moto's server has it: the same numbers, few requests, and a server that is busy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import s3
from processes import FRESH
from repalign.cli import app
from repalign.comparison import compare
from repalign.comparison.alignment import Alignment
from repalign.comparison.check import check
from repalign.errors import RepalignError
from repalign.files import Url, open_files, remote, seen_from, walk
from repalign.null import Permutations
from repalign.study import load_study

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
N, NAMES = 60, "vwxyz"
STUDY = """\
name: s
dataset: {{arrays: {{thing: thing.npy}}, row_ids: ids.txt}}
models: [{models}]
measures: [CKA(), MutualKNN(k=5)]
null: {{method: permutation, draws: 9}}
figures: [{{matrix: {{}}}}]
"""


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("moto.server", reason="moto's server is not installed (the extra `integrations`)")
    pytest.importorskip("s3fs", reason="s3fs is not installed (the extra `s3`)")
    with s3.bucket() as made:
        yield made


@pytest.fixture
def bucket(server, request):
    """A place in the bucket for one test, with no request counted yet and none refused."""
    server.refuse = server.refused = 0
    server.url = f"s3://{s3.BUCKET}/{request.node.name}"
    server.spent()
    yield server
    server.refuse = 0


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((N, 6)))
    np.save(tmp_path / "thing.npy", np.arange(float(N))[:, None])
    (tmp_path / "ids.txt").write_text("\n".join(f"s{i}" for i in range(N)))
    models = ", ".join(f'{{spec: "array:{name}.npy", modality: thing, ids: rows}}' for name in NAMES)
    (tmp_path / "s.yaml").write_text(STUDY.format(models=models))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "s.yaml"


def contents(place: Path | Url) -> dict[str, bytes]:
    return {seen_from(at / name, place): (at / name).read_bytes() for at, _, names in walk(place) for name in names}


def in_bucket(study: Path, url: str) -> Path:
    study.write_text(study.read_text() + f"out: {url}\n")
    return study


def test_a_study_in_a_bucket_is_that_of_a_folder_and_asks_for_little(bucket, study):
    local = load_study(study).run()
    before = {p for p in study.parent.rglob("*") if p.is_file()}
    run = load_study(in_bucket(study, bucket.url))
    assert run.run().alignment.table.equals(local.alignment.table)
    asked = bucket.spent()
    assert {p for p in study.parent.rglob("*") if p.is_file()} == before and not list(Path().iterdir())
    got, want = contents(Url(bucket.url)), contents(study.parent / "runs")
    assert got.keys() == want.keys()
    assert {name for name in got if got[name] != want[name]} <= {"s/results/run.json", "s/report.html"}  # which state the study
    assert not any(s3.SECRET.encode() in data for data in got.values())
    assert sum(asked.values()) < 250 and asked["LIST"] < 60, asked  # of five models and twenty pairs

    bucket.spent()
    assert load_study(study).run().alignment.table.equals(local.alignment.table)  # complete: nothing is extracted or compared
    again = bucket.spent()
    assert sum(again.values()) < 120 and again["PUT"] < 20, again
    assert contents(Url(bucket.url)) == got and check(bucket.url) == []

    part = next(name for name in got if "part-" in name)
    for name in (part, "s/results/results.parquet"):
        changed = bytearray(got[name])
        changed[-9] ^= 1
        open_files(bucket.url).write(name, changed)
        assert name in str(check(bucket.url)[0])
        open_files(bucket.url).write(name, got[name])
    assert check(bucket.url) == []


def test_every_seventh_request_is_refused_once(bucket, study, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01, 0.01))
    local = load_study(study).run()
    bucket.refuse = 7
    assert load_study(in_bucket(study, bucket.url)).run().alignment.table.equals(local.alignment.table)
    assert bucket.refused > 20
    bucket.refuse = 0
    assert check(bucket.url) == []


def test_a_server_that_refuses_for_good_is_told_and_the_next_run_goes_on(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.01,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    models = {name: np.random.default_rng(i).standard_normal((N, 4)) for i, name in enumerate("abc")}

    def go() -> Alignment:
        return compare(models, measures=["CKA()"], null=Permutations(9), results=bucket.url)

    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    bucket.refuse = 1
    with pytest.raises(RepalignError, match=rf"{bucket.url}\S* cannot be (listed|read)(.|\n)*same command again later") as told:
        go()
    assert s3.SECRET not in str(told.value)
    bucket.refuse = 0
    assert go().table.equals(compare(models, measures=["CKA()"], null=Permutations(9)).table) and check(bucket.url) == []
    with pytest.raises(RepalignError, match=r"s3://nobucket/a/\S+ cannot be written: (.|\n)*does not exist(.|\n)*credentials"):
        compare(models, measures=["CKA()"], null=Permutations(9), results="s3://nobucket/a")


def _one_of_two(url: str, folder: str, environment: dict[str, str], start, out) -> None:
    os.environ.update(environment)  # of the bucket, which the server of processes does not know
    torch.set_num_threads(1)
    models = {name: np.load(Path(folder) / f"{name}.npy") for name in NAMES}
    start.wait()
    out.put(compare(models, measures=["CKA()"], null=Permutations(9), results=url, split_half=1).table)


def test_two_processes_write_one_result(bucket, study):
    start, out = FRESH.Barrier(2), FRESH.Queue()
    both = [FRESH.Process(target=_one_of_two, args=(bucket.url, str(study.parent), {**os.environ}, start, out)) for _ in range(2)]
    for one in both:
        one.start()
    tables = [out.get(timeout=240) for _ in both]
    for one in both:
        one.join(60)
    assert [one.exitcode for one in both] == [0, 0] and tables[0].equals(tables[1])
    assert check(bucket.url) == [] and Alignment.load(bucket.url).table.equals(tables[0])


def test_commands_take_a_bucket(bucket, study):
    run = CliRunner()

    def told(*words: str) -> str:
        result = run.invoke(app, list(words), env={"COLUMNS": "200", "TERM": "dumb"})
        assert result.exit_code == 0, result.output
        return result.output

    told("extract", str(in_bucket(study, bucket.url)))
    store, results = f"{bucket.url}/store", f"{bucket.url}/by-hand"
    assert f"report: {results}/report.html" in told("compare", store, "--results", results, "-m", "cka")
    assert f"report: {results}/report.html" in told("report", results)
    assert "whole: 5 models" in told("check", bucket.url) and "5 extractions" in told("store", bucket.url)
    assert not list(Path().iterdir())
