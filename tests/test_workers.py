"""Out of one process: shares of the work, processes, claims of several runs, and what is said when a worker is lost."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import study_files
from processes import started
from repalign import workers
from repalign.cli import app
from repalign.comparison import compare, compare_share
from repalign.errors import RepalignError, Unavailable
from repalign.files import open_files
from repalign.files.claims import LEASE, Claims
from repalign.null import Permutations
from repalign.study import load_study
from repalign.workers import Share, Task, work
from study_files import bytes_of

STUDY = """
dataset: {toy: {n: 60, seed: 0}}
models: ["toy:vision-pixels", "toy:language-bag", "toy:vision-cnn3-untrained"]
measures: ["CKA()", "MutualKNN(k=5)"]
extract: {rows_per_part: 20}
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, bytes]:
    """What one process gives, part by part and table by table."""
    folder = tmp_path_factory.mktemp("alone")
    load_study(made(folder)).run()
    return bytes_of(folder)


def made(folder: Path) -> Path:
    return study_files.made(folder, STUDY)


def told(*arguments: str) -> str:
    found = CliRunner().invoke(app, list(arguments))
    if isinstance(found.exception, RepalignError):
        return f"error: {found.exception}"
    assert found.exit_code == 0, found.output
    return found.output


# --- shares ---


@pytest.mark.parametrize("total", [0, 1, 7, 64])
@pytest.mark.parametrize("count", [1, 2, 5, 100])
def test_shares_are_all_of_it_and_nothing_twice(total, count):
    shares = [list(Share(i, count).of(total)) for i in range(1, count + 1)]
    assert sorted(k for some in shares for k in some) == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert Share(1, count).owners(range(total), total) == tuple(i for i, some in enumerate(shares, 1) if some)
    assert not Share(0, count).of(total) and Share(0, count).owners(range(total), total) == ()


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "-1/2", "1/0", ""])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(RepalignError, match=r"is no part\n  expected: I/N with I from 1 to N.*; or join"):
        Share.parse(text)
    assert (Share.parse("3/8"), Share.parse("join").index) == (Share(3, 8), 0)


def test_four_parts_are_the_same_table_and_say_what_is_missing(tmp_path, alone):
    """As an array job does it: the parts of the extraction, those of the comparison, and what puts them together."""
    study = str(made(tmp_path))
    first = told("extract", study, "--part", "1/4")
    assert "part 1/4 is done; parts of extraction are missing: 1 of 3 of model toy:vision-pixels" in first
    assert f"made by: repalign extract {study} --part 2/4; repalign extract {study} --part 3/4;" in first
    refused = told("run", study, "--part", "join")
    assert refused.startswith("error: parts of extraction are missing") and f"repalign run {study}, which makes" in refused
    early = told("run", study, "--part", "2/4")
    assert f"then, to compare: repalign run {study} --part 2/4" in early and not (tmp_path / "runs/s/results").exists()
    for i in (4, 3):  # in any order
        last = told("extract", study, "--part", f"{i}/4")
    assert "part 3/4 is done; nothing is missing" in last and f"next: repalign run {study}" in last
    for i in (3, 1, 4):
        some = told("run", study, "--part", f"{i}/4")
    assert "part 4/4 is done; 2 of 6 groups of comparisons are missing" in some and "--part 2/4" in some
    assert told("run", study, "--part", "join").startswith("error: 2 of 6 groups of comparisons are missing")
    assert not (tmp_path / "runs/s/results/results.parquet").exists()
    assert "nothing is missing" in told("run", study, "--part", "2/4")
    tiles = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/s/results/tiles").iterdir()}
    told("run", study, "--part", "join")
    assert {path: path.stat().st_mtime_ns for path in tiles} == tiles  # it computes none of them
    assert bytes_of(tmp_path) == alone


def test_the_commands_for_other_parts_name_every_folder_of_models(capsys):
    from repalign.cli._studies import _say_left
    from repalign.study.base import Left

    _say_left(Left((), 1, 4, (2,)), Share(1, 2), "run", "s.yaml", [Path("a"), Path("b")])
    assert "made by: repalign run s.yaml --local a --local b --part 2/2" in capsys.readouterr().out


def test_files_are_compared_in_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in "abc":
        np.save(f"{name}.npy", rng.standard_normal((60, 4)))
    files = ["a.npy", "b.npy", "c.npy"]
    asked = ("compare", *files, "--measure", "CKA()")
    assert "part 1/2 is done; 2 of 3 groups of comparisons are missing" in told(*asked, "--part", "1/2")
    assert "part 2/2 is done; nothing is missing" in told(*asked, "--part", "2/2")
    notes = []
    kept = compare(files, measures="CKA()", results="repalign-results", progress=lambda *told: notes.append(told[-1]))
    assert "3 of 3 parts were done in an earlier run, and are taken" in notes
    assert kept.table.equals(compare(files, measures="CKA()").table)


def test_a_share_takes_the_options_of_a_comparison(tmp_path):
    x = {name: np.random.default_rng(i).standard_normal((50, 3)) for i, name in enumerate("abcd")}
    null = Permutations(9)
    for i in (1, 2, 3):
        left, of, owners = compare_share(Share(i, 3), x, None, ["CKA()"], null, results=tmp_path, search="raw", split_half=2)
        assert (left, of, owners) == (6 - 2 * i, 6, tuple(range(i + 1, 4)))
    notes = []
    compare(x, None, ["CKA()"], null, results=tmp_path, search="raw", progress=lambda *a: notes.append(a[-1]))
    assert "6 of 6 parts were done in an earlier run, and are taken" in notes


def test_a_study_without_work_to_share_says_so(tmp_path):
    (tmp_path / "s.yaml").write_text("experiment: superposition\nwidths: [5]\nsparsity: [0.5]\n")
    study = str(tmp_path / "s.yaml")
    assert "this kind of study has no work to share out\n  do: leave out --part" in told("run", study, "--part", "1/2")
    assert "has no work for several workers\n  do: leave out --jobs and --dask" in told("run", study, "--jobs", "2")
    assert "no Dask scheduler" not in told("run", str(made(tmp_path)), "--dask", "slurm")
    assert "does not say what its jobs ask for" in told("run", str(made(tmp_path)), "--dask", "slurm") or not _has_dask()


def _has_dask() -> bool:
    from repalign.errors import is_installed

    return is_installed("distributed") and is_installed("dask_jobqueue")


def test_the_plan_says_what_workers_share(tmp_path):
    study = str(made(tmp_path))
    said = told("run", study, "--plan", "--jobs", "3")
    assert "3 workers share" in said and "as 9 parts and 6 groups of comparisons" in said
    assert "files: 12 in the store, 6 beside the results; sent to workers: about" in said
    assert "sent to workers" not in told("run", study, "--plan", "--part", "1/4")


# --- processes ---


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(tmp_path, alone):
    """And are recorded; each has its share of threads and of memory."""
    study = load_study(made(tmp_path))
    with workers.processes(2) as pool:
        told_by = [pool.submit(_about_a_worker).result() for _ in range(2)]
        study.run(executor=pool)
    run = json.loads((tmp_path / "runs/s/results/run.json").read_text())
    assert bytes_of(tmp_path) == alone
    assert (run["machine"]["workers"], run["machine"]["threads"]) == (2, max(1, torch.get_num_threads() // 2))
    assert run["warnings"] == [] or not any("mix" in w for w in run["warnings"])
    here = workers.machine_memory()
    for pid, threads, memory in told_by:
        assert pid != os.getpid() and threads == run["machine"]["threads"]
        assert abs(memory - here // 2) <= here // 100
    assert workers.MEMORY not in os.environ


def _about_a_worker() -> tuple[int, int, int]:
    return os.getpid(), torch.get_num_threads(), workers.machine_memory()


class Sent(Executor):
    """Another process as far as it matters: what comes back is pickled."""

    count, threads = 3, 2

    def submit(self, fn, /, *args, **kwargs):
        import pickle

        done: Future = Future()
        try:
            done.set_result(pickle.loads(pickle.dumps(fn(*args, **kwargs))))
        except BaseException as error:
            done.set_exception(pickle.loads(pickle.dumps(error)))
        return done


def _fails(error: Exception) -> None:
    raise error


def test_an_error_says_model_part_and_worker():
    """Whatever is raised there; one of many arguments would not come back as it is."""
    from repalign.files import DamagedError

    ((_, future),) = work([Task("model a, part 2 of 3", _fails, (DamagedError("a.npy", "is cut short"),))], Sent())
    with pytest.raises(RepalignError, match=r"a.npy is cut short(.|\n)*in: model a, part 2 of 3, worker \d+ on \S+"):
        future.result()
    ((_, future),) = work([Task("model b, part 1 of 3", _fails, (Unavailable("gone", remedy="ask"),))], Sent())
    with pytest.raises(Unavailable) as found:
        future.result()
    assert found.value.reason == "gone; ask"
    ((_, future),) = work([Task("model c, part 1 of 3", _fails, (KeyError("x"),))], Sent())
    with pytest.raises(RuntimeError, match=r"KeyError: 'x'; in model c, part 1 of 3, worker \d+"):
        future.result()


def test_what_has_not_begun_is_cancelled():
    begun, open_ = [], threading.Event()

    def slow(i: int) -> int:
        begun.append(i)
        open_.wait(10)
        return i

    with ThreadPoolExecutor(1) as pool:
        done = work([Task(str(i), slow, (i,)) for i in range(50)], pool)
        threading.Timer(0.2, open_.set).start()
        assert next(done)[1].result() in (0, 1)
        done.close()
    assert len(begun) <= 1 + workers.SIMULTANEOUS


class Broken(Sent):
    def submit(self, fn, /, *args, **kwargs):  # noqa: ARG002
        done: Future = Future()
        done.set_exception(BrokenExecutor("a child process terminated abruptly"))
        return done


def test_a_lost_worker_is_told_in_words():
    with pytest.raises(RepalignError, match=r"a worker was lost(.|\n)*model a, part 1 of 3(.|\n)*do: run the same command again"):
        list(work([Task("model a, part 1 of 3", _fails)], Broken()))


# --- claims ---


def test_a_run_that_is_alone_writes_no_claim_for_short_work(tmp_path):
    with Claims(open_files(tmp_path)) as claims:
        assert claims.take(["a"]) and claims.take(["b"])
        claims.give(["a"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two runs on one folder that have seen each other."""
    monkeypatch.setattr(Claims, "beat", 60.0)  # they look when they are made to
    a, b = (Claims(open_files(tmp_path), run=run) for run in ("1-a", "2-b"))
    with a, b:
        for one in (a, b):
            one._tell()
        for one in (a, b):
            one.look()
        yield a, b
        for one in (a, b):
            one._stop.set()
            one._thread = None


def test_runs_that_know_each_other_share(two):
    a, b = two
    assert a.take(["x"]) and not b.take(["x"]) and b.take(["y"]) and not a.take(["y"])
    a.give(["x"])
    a._tell()
    assert b.take(["x"])


def test_of_two_that_claim_at_once_the_lesser_name_goes_on(two):
    a, b = two
    a.mine.add("x")
    a._tell()  # between the look of the other and its own claim
    look, looks = b.look, []
    b.look = lambda: looks.append(1) if not looks else look()
    assert not b.take(["x"]) and "x" not in b.mine
    b.mine.add("z")
    b._tell()
    look_a, looks_a = a.look, []
    a.look = lambda: looks_a.append(1) if not looks_a else look_a()
    assert a.take(["z"])


def test_a_claim_is_void_when_its_run_is_silent(two, monkeypatch):
    """By the clock of the one who waits, which never jumps: whatever the other's clock says."""
    a, b = two
    a.mine.add("x")
    a._tell()
    path = Path(b.files.root) / "claims/1-a.json"
    for far in (-1000.0, 1e9):  # seconds by which the other's clock is wrong
        about = json.loads(path.read_text())
        path.write_text(json.dumps({**about, "host": "elsewhere", "until": time.time() + far, "count": far}))
        assert not b.take(["x"])
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + LEASE + 1)
    assert b.take(["x"]) and not path.exists()


def test_a_claim_of_a_process_that_has_ended_is_void(two):
    a, b = two
    a.mine.add("x")
    a._tell()
    path = Path(b.files.root) / "claims/1-a.json"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": ended.pid}))
    assert b.take(["x"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": 3}', '{"keys": ["x"], "host": "h", "pid": "no"}'])
def test_what_is_no_claim_claims_nothing(two, text):
    _, b = two
    (Path(b.files.root) / "claims/1-a.json").write_text(text)
    assert b.take(["x"])


def test_two_runs_on_one_folder_do_everything_and_little_twice(tmp_path, monkeypatch):
    """Each leaves to the other what that one has begun, and waits for it at the end."""
    monkeypatch.setattr(Claims, "beat", 0.05)
    made_by: dict[str, list[int]] = {}

    def make(run: int, name: str) -> None:
        time.sleep(0.03)
        made_by.setdefault(name, []).append(run)
        (tmp_path / name).write_text("")

    def run(number: int) -> None:
        with Claims(open_files(tmp_path)) as claims:
            tasks = [Task(name, make, (number, name), (name,)) for name in map(str, range(40))]
            there = [task.what for task, _ in work(tasks, None, claims, lambda task: (tmp_path / task.what).exists())]
            assert len(there) == 40

    both = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    twice = [name for name, runs in made_by.items() if len(runs) > 1]
    assert len(made_by) == 40 and len(twice) <= 8
    assert {i for runs in made_by.values() for i in runs} == {0, 1}  # both of them worked
    assert not (tmp_path / "claims").exists()


# --- how it ends ---


def test_a_job_whose_time_is_over_says_how_to_go_on(tmp_path, alone):
    """SIGTERM: one line, status 143; the same command goes on."""
    (tmp_path / "s.yaml").write_text(STUDY.replace("n: 60", "n: 6000"))
    said = tmp_path / "said"
    run = started("from repalign.cli import main; main()", "run", str(tmp_path / "s.yaml"), said=said)
    while not any(tmp_path.rglob("part-*")) and run.is_alive():
        time.sleep(0.05)
    run.terminate()
    run.join(60)
    told = said.read_text()
    assert run.exitcode == 143 and told.rstrip().endswith("what is finished is kept: the same command goes on from here")
    assert "Traceback" not in told and any(tmp_path.rglob("part-*")) and not [*tmp_path.rglob("claims/*")]


# --- what moves the last digits ---


def test_a_mix_of_settings_is_told(tmp_path, monkeypatch):
    """Features and scores that were made with other threads than the rest."""
    study = load_study(made(tmp_path))
    study.share(Share(1, 2))
    monkeypatch.setattr("repalign.sources.parts.computing", lambda device: {"threads": 7, "instructions": "OTHER"})
    study.share(Share(2, 2))
    module = importlib.import_module("repalign.comparison.work")
    monkeypatch.setattr(module, "computing", lambda device: {"threads": 7, "instructions": "OTHER"})
    study.share(Share(1, 2))
    warnings = study.run().alignment.run["warnings"]
    threads = torch.get_num_threads()
    assert [w for w in warnings if w.startswith("features of language-bag were extracted under several settings (instructions ")]
    assert [w for w in warnings if f"threads {threads}, 7" in w and w.endswith("their last digits are a mix")]
    assert [w for w in warnings if w.startswith("scores were computed under several settings") and "threads 7, " in w]
