"""The store under SIGKILL and under several writers at once."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from repalign.models import ModelRecord
from repalign.store import FeatureStore, Part, Writer, check

N, ROWS_PER_PART, WIDTH = 60, 3, 400  # 20 parts of some 20 kB
RECORD = ModelRecord("toy:slow", "slow", "text", "r1")
DATASET = {"name": "d", "fingerprint": "0123456789abcdef" * 4}
SETTINGS = {"pooling": "mean"}

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")


def open_writer(folder: str) -> Writer:
    ids = [f"row {i}" for i in range(N)]
    return FeatureStore(folder).writer(
        dataset=DATASET, record=RECORD, settings=SETTINGS, ids=ids, rows_per_part=ROWS_PER_PART
    )


def features(part: Part) -> dict[str, torch.Tensor]:
    """Each row from a seed of its own, so that a part does not depend on the parts before it."""
    generators = [torch.Generator().manual_seed(row) for row in range(part.start, part.stop)]
    x = torch.stack([torch.randn(WIDTH, generator=g) for g in generators])
    return {f"block.{i}": (x * (i + 1)).to(torch.float32 if i else torch.bfloat16) for i in range(4)}


def write_part(writer: Writer, part: Part) -> None:
    rows = torch.arange(part.start, part.stop)
    writer.write(part, features(part), {"row": rows}, {"weights_fingerprint": "w", "versions": {"x": "1"}})


def run(folder: str, started: Any = None) -> None:
    """What an extraction does: the missing parts, then the manifest."""
    writer = open_writer(folder)
    if started is not None:
        started.set()
    for part in writer.missing():
        write_part(writer, part)
    writer.finish(RECORD, {"pooling": "mean"})


def run_in_order(folder: str, seed: int) -> None:
    """An extraction that writes every part, in an order of its own, whatever is there already."""
    writer = open_writer(folder)
    for part in random.Random(seed).sample(writer.parts, len(writer.parts)):
        write_part(writer, part)
    writer.finish(RECORD, {"pooling": "mean"})


@pytest.fixture(scope="module")
def processes():
    """Processes that start from a server which has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "fsspec", "repalign.store", __name__])
    return context


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """A store that was written in one go, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("whole")
    start = time.perf_counter()
    run(str(folder))
    return tree(folder), time.perf_counter() - start


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def finished_parts(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the parts that are there whole."""
    writer = open_writer(str(folder))
    missing = {part.index for part in writer.missing()}
    paths = {
        part.file: folder / writer.folder / part.file for part in writer.parts if part.index not in missing
    }
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in paths.items()}


def run_and_kill(processes, folder: Path, seconds: float) -> None:
    """A run of its own process that is killed so long after it has begun to look at the store.

    However busy the machine is, it is waited for as long as it lives.
    """
    started = processes.Event()
    child = processes.Process(target=run, args=(str(folder), started))
    child.start()
    while not started.wait(1):
        assert child.is_alive() or started.is_set()
    time.sleep(seconds)
    child.kill()
    child.join()


def test_killed_at_random_moments(tmp_path: Path, whole, processes) -> None:
    expected, seconds = whole
    moments = random.Random(0)
    counts: list[int] = []
    # On a machine whose speed changes the moments may miss the run: more of them, until some have hit it half way.
    while len(counts) < 12 or (len(counts) < 60 and not any(0 < count < N // ROWS_PER_PART for count in counts)):
        folder = tmp_path / str(len(counts))
        run_and_kill(processes, folder, moments.uniform(0, seconds))
        names = set(tree(folder))
        assert all(name in expected or ".tmp-" in name for name in names)  # no half file under a real name
        for name in names & set(expected):
            assert (folder / name).read_bytes() == expected[name]

        kept = finished_parts(folder)
        counts.append(len(kept))
        run(str(folder))
        assert tree(folder) == expected
        after = finished_parts(folder)
        assert {name: after[name] for name in kept} == kept  # not rewritten
        assert check(folder) == []
    assert any(0 < count < N // ROWS_PER_PART for count in counts), counts  # some were killed half way


def test_killed_again_and_again(tmp_path: Path, whole, processes) -> None:
    """One store, every run of which is killed until the last: progress is kept each time."""
    expected, seconds = whole
    moments = random.Random(1)
    kept: dict[str, tuple[int, int]] = {}
    for _ in range(6):
        run_and_kill(processes, tmp_path, moments.uniform(0, seconds / 4))
        now = finished_parts(tmp_path)
        assert {name: now.get(name) for name in kept} == kept
        kept = now
    run(str(tmp_path))
    assert tree(tmp_path) == expected and check(tmp_path) == []


def die_at(folder: str, point: str) -> None:
    """An extraction that kills itself while it writes the sixth part, or the manifest."""
    target = "manifest.json" if "manifest" in point else "part-00005"

    class Half(io.FileIO):
        """Half of the first chunk comes to the disk."""

        def write(self, chunk: bytes) -> int:
            super().write(chunk[: len(chunk) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

    opened = Path.open

    def open_(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "r+b" and point.startswith("half") and target in self.name:
            return Half(self, "r+")
        return opened(self, mode, *args, **kwargs)

    def replace(self: Path, to: Path) -> Path:
        if point.startswith("before") and target in to.name:
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace(self, to)  # noqa: PTH105 (Path.replace is what is replaced here)
        if point.startswith("after") and target in to.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return to

    Path.open, Path.replace = open_, replace
    run(folder)


POINTS = {  # (parts that are whole, temporary files left, whether the manifest is there)
    "half the part": (5, 1, False),
    "before the rename of the part": (5, 1, False),
    "after the rename of the part": (6, 0, False),
    "half the manifest": (20, 1, False),
    "before the rename of the manifest": (20, 1, False),
    "after the rename of the manifest": (20, 0, True),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_chosen_point(tmp_path: Path, whole, processes, point: str) -> None:
    expected, _ = whole
    child = processes.Process(target=die_at, args=(str(tmp_path), point))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    names = list(tree(tmp_path))
    left = sum(".tmp-" in name for name in names)
    manifest = any(name.endswith("/manifest.json") for name in names)
    kept = finished_parts(tmp_path)
    assert (len(kept), left, manifest) == POINTS[point]
    assert len(FeatureStore(tmp_path).representations()) == manifest
    run(str(tmp_path))
    assert tree(tmp_path) == expected and check(tmp_path) == []
    after = finished_parts(tmp_path)
    assert {name: after[name] for name in kept} == kept


def test_two_processes_write_the_same_parts(tmp_path: Path, whole, processes) -> None:
    expected, _ = whole
    children = [processes.Process(target=run_in_order, args=(str(tmp_path), seed)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert tree(tmp_path) == expected and check(tmp_path) == []
