"""One small study in every way that leaves one process: the same bytes, whoever does the work and whatever breaks meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import study_files
from processes import FRESH, started
from repalign import workers
from repalign.errors import RepalignError
from repalign.study import load_study
from study_files import TABLES, bytes_of

STUDY = """
dataset: {toy: {n: 300, seed: 0}}
models: ["toy:vision-pixels", "toy:language-bag", "toy:vision-cnn3-untrained", "toy:language-gru32-untrained"]
measures: ["CKA()", "MutualKNN(k=5)", "RSA()"]
extract: {rows_per_part: 20}
"""
ROOT = Path(__file__).resolve().parents[1]
# The command in a folder, with so many threads, in a process that has imported what takes seconds to import. That it is there as
# `python -m repalign` is asked once, by two processes.
RUN = """
import os, sys, torch
os.chdir(sys.argv.pop(1))
torch.set_num_threads(int(sys.argv.pop(1)))
from repalign.cli import main
from repalign.study import needs
needs.TRIAL_SECONDS = 0.01
main()
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    load_study(made(folder)).run()
    return bytes_of(folder)


def made(folder: Path) -> Path:
    return study_files.made(folder, STUDY)


def command(*arguments: str, **more: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "repalign", *arguments]
    return subprocess.run(program, env={**os.environ, **more}, capture_output=True, text=True, timeout=300)


def test_by_two_processes(tmp_path, alone):
    done = command("run", str(made(tmp_path)), "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path) == alone


def test_a_lost_process_is_told_and_the_same_command_goes_on(tmp_path, alone, monkeypatch):
    monkeypatch.setattr("multiprocessing.get_context", lambda method: FRESH)
    study = load_study(made(tmp_path))
    lost = pytest.raises(RepalignError, match="a worker was lost.*\n(.|\n)*do: run the same command again")
    with lost, workers.processes(2) as pool:
        killer = threading.Thread(target=lambda: when(tmp_path, "part-*", lambda: _kill(list(pool._processes))))
        killer.start()
        study.run(executor=pool)
    killer.join()
    assert 0 < len(list(tmp_path.rglob("part-*"))) < 60
    with workers.processes(2) as pool:
        study.run(executor=pool)
    assert bytes_of(tmp_path) == alone


def test_by_an_array_job(tmp_path, alone):
    """As examples/slurm_array.sh has it: the script itself, for each task as the batch system calls it."""
    made(tmp_path)
    shutil.copy(ROOT / "examples/slurm_array.sh", tmp_path)
    # What the script calls is written down here, and done below, in a process that need not import everything again.
    (tmp_path / "repalign").write_text('#!/bin/sh\nprintf "%s\\n" "$OMP_NUM_THREADS" "$@" > called\n')
    (tmp_path / "repalign").chmod(0o755)
    at = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "STUDY": "s.yaml", "SLURM_ARRAY_TASK_COUNT": "2"}
    for stage in ("extract", "compare", "join"):
        for task in (1, 2) if stage != "join" else (1,):
            env = {**at, "STAGE": stage, "SLURM_ARRAY_TASK_ID": str(task)}
            done = subprocess.run(["bash", "slurm_array.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            process = started(RUN, str(tmp_path), *(tmp_path / "called").read_text().splitlines(), said=tmp_path / "said")
            process.join(300)
            assert process.exitcode == 0, (tmp_path / "said").read_text()
    assert bytes_of(tmp_path) == alone


def test_the_script_of_the_array_job_is_sound():
    """By shellcheck where there is one, else by the parser of bash."""
    checker = shutil.which("shellcheck")
    program = [checker] if checker else ["bash", "-n"]
    done = subprocess.run([*program, ROOT / "examples/slurm_array.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_by_two_runs_at_once(tmp_path, alone):
    """They claim, so that both do a part of it."""
    made(tmp_path)
    words = (str(tmp_path), str(torch.get_num_threads()), "run", "s.yaml")
    both = [started(RUN, *words, said=tmp_path / f"said {i}") for i in range(2)]
    for i, run in enumerate(both):
        run.join(300)
        assert run.exitcode == 0, (tmp_path / f"said {i}").read_text()
    assert bytes_of(tmp_path) == alone and not [*tmp_path.rglob("claims/*")]


# --- a bucket ---


@pytest.mark.integrations
def test_by_a_bucket_that_refuses_every_seventh_request(tmp_path, alone):
    """Store and results in S3; two processes, and a second run at the same time."""
    pytest.importorskip("moto", reason="moto is not installed (the extra `integrations`)")
    import fsspec

    from s3 import bucket

    study = made(tmp_path)
    study.write_text(f"{STUDY}out: s3://bucket/runs\n")
    with bucket() as there:
        there.refuse = 7
        other = subprocess.Popen([sys.executable, "-m", "repalign", "run", str(study)], stdout=-3, stderr=subprocess.PIPE)
        done = command("run", str(study), "--jobs", "2")
        assert done.returncode == 0, done.stderr
        said = other.communicate(timeout=300)[1]
        assert other.returncode == 0, said.decode()
        there.refuse = 0
        files = fsspec.filesystem("s3").find("bucket/runs")
        wanted = {name: name.removeprefix("bucket/") for name in files if name.endswith((".safetensors", *TABLES))}
        found = {own: fsspec.filesystem("s3").cat_file(name) for name, own in wanted.items()}
        assert {name: data for name, data in found.items() if "/tiles/" not in name} == alone
        assert there.refused > 5 and not [name for name in files if "/claims/" in name or ".tmp-" in name]


# --- Dask ---


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    pytest.importorskip("distributed", reason="distributed is not installed (the extra `dask`)")
    with workers.dask("local", jobs=2) as executor:
        yield executor


def _kill(pids: list[int]) -> None:
    os.kill(pids[0], signal.SIGKILL)


def when(folder: Path, pattern: str, then) -> None:
    """Do something as soon as there are such files."""
    until = time.monotonic() + 120
    while time.monotonic() < until and not any(folder.rglob(pattern)):
        time.sleep(0.002)
    then()


@pytest.mark.integrations
@pytest.mark.filterwarnings("ignore")
def test_by_dask(tmp_path, alone, cluster):
    load_study(made(tmp_path)).run(executor=cluster)
    assert bytes_of(tmp_path) == alone
    machine = json.loads((tmp_path / "runs/s/results/run.json").read_text())["machine"]
    assert (machine["workers"], machine["threads"]) == (2, 1)


@pytest.mark.integrations
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pattern", ["part-*.safetensors", "tiles/*.parquet"])
def test_dask_does_again_what_a_lost_worker_had(tmp_path, alone, cluster, pattern):
    """One is killed in the middle of extraction, or of comparing."""
    there: list[int] = []

    def strike() -> None:
        pids = list(cluster._client.run(os.getpid).values())
        there.append(len(list(tmp_path.rglob(pattern))))
        _kill(pids)

    killer = threading.Thread(target=when, args=(tmp_path, pattern, strike))
    killer.start()
    load_study(made(tmp_path)).run(executor=cluster)
    killer.join()
    assert bytes_of(tmp_path) == alone
    assert 0 < there[0] < (60 if pattern.startswith("part") else 18)


@pytest.mark.integrations
def test_a_scheduler_that_is_not_there_is_told():
    pytest.importorskip("distributed", reason="distributed is not installed (the extra `dask`)")
    told = pytest.raises(RepalignError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9(.|\n)*do: start one with")
    with told, workers.dask("tcp://127.0.0.1:9"):
        pass


@pytest.mark.integrations
@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("slurm", ["#SBATCH -p batch", "#SBATCH -A lab", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=15G", "#SBATCH -t 02:00:00",
                   "#SBATCH --gres=gpu:1"]),
        ("pbs", ["#PBS -q batch", "#PBS -A lab", "#PBS -l select=1:ncpus=4:mem=16GB", "#PBS -l walltime=02:00:00"]),
        ("lsf", ["#BSUB -q batch", '#BSUB -P "lab"', "#BSUB -n 4", "#BSUB -W 02:00"]),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_jobs_ask_for_what_the_study_says(kind, lines, tmp_path):
    """The script that would be submitted; no batch system is needed to write it."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed (the extra `cluster`)")
    said = "cluster: {workers: 2, cores: 4, memory: 16GB, walltime: '02:00:00', queue: batch, account: lab, setup: [source it]"
    said += ", options: ['--gres=gpu:1']}" if kind == "slurm" else "}"
    study = made(tmp_path)
    study.write_text(STUDY + said)
    with workers.queue(kind, **load_study(study).cluster.model_dump()) as found:
        script = found.job_script()
    assert not [line for line in [*lines, "export OMP_NUM_THREADS=4", "source it", "--nthreads 1"] if line not in script], script
