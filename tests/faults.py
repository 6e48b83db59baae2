"""A file system that fails at its k-th step, and what comes of it, for every kind of file that repalign writes.

    python tests/faults.py [most] [kind ...]

A case is one job (a store, a comparison, a report ...), one operation (open, write, fsync, rename, mkdir, list, read, remove;
behind a URL put, get, list, info, remove, rename) and one k: the k-th such call of the job fails. Then
1. the job ends in a RepalignError, or does without: never in another exception;
2. the same job again ends with the bytes of one that nothing disturbed, and leaves no temporary file.
Each is tried from nothing, and once more where all is there already (`again`). k goes on until the job has no k-th call.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from repalign import null as nulls
from repalign.comparison import compare
from repalign.comparison.alignment import Alignment
from repalign.comparison.check import check
from repalign.errors import RepalignError
from repalign.files import Url, open_files, place_of, remote, seen_from, walk
from repalign.models import ModelRecord
from repalign.report import write_report
from repalign.store import FeatureStore
from repalign.study.alignment import write_combined

Place = Path | Url
N = 24
LOCAL = ("open", "write", "fsync", "rename", "mkdir", "list", "read", "remove")
BEHIND = ("put", "get", "list", "info", "remove", "rename")


# --- the fault -----------------------------------------------------------------------------------


class Fault:
    """Counts the calls of every operation; the `k`-th of `op` raises `error`, or all from it on if it `lasts`."""

    def __init__(self, op: str = "", k: int = 0, error: Callable[[], Exception] | None = None, *, lasts: bool = False) -> None:
        self.op, self.k, self.error, self.lasts, self.calls = op, k, error, lasts, Counter[str]()

    def step(self, op: str) -> None:
        self.calls[op] += 1
        if self.is_met and op == self.op and (self.lasts or self.calls[op] == self.k):
            assert self.error is not None
            raise self.error()

    @property
    def is_met(self) -> bool:
        return self.op != "" and self.calls[self.op] >= self.k


now = Fault()  # the one that is in force


@contextmanager
def failing(fault: Fault) -> Iterator[None]:
    global now
    now = fault
    try:
        yield
    finally:
        now = Fault()


class _Handle:
    """An open file whose writing fails half-way, as on a disk that is full."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __enter__(self) -> _Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def write(self, data: Any) -> int:
        try:
            now.step("write")
        except OSError:
            self._handle.write(data[: len(data) // 2])
            self._handle.flush()
            raise
        return self._handle.write(data)


@contextmanager
def patched(root: Path) -> Iterator[None]:
    """The functions of the system that repalign calls for files below `root`, and those of a file that is open, can fail."""
    opened, inside = Path.open, f"{root}{os.sep}"

    def open_(path: Path, mode: str = "r", *how: Any, **more: Any) -> Any:
        if not str(path).startswith(inside):
            return opened(path, mode, *how, **more)
        now.step("open" if set(mode) & set("wxa+") else "read")
        return _Handle(opened(path, mode, *how, **more)) if set(mode) & set("wxa+") else opened(path, mode, *how, **more)

    def failing_at(op: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *others: Any, **more: Any) -> Any:
            if isinstance(first, int) or os.fspath(first).startswith(str(root)):
                now.step(op)
            return real(first, *others, **more)

        return call

    steps = {"fsync": "fsync", "replace": "rename", "rename": "rename", "mkdir": "mkdir", "listdir": "list", "unlink": "remove"}
    before = {name: getattr(os, name) for name in steps}
    Path.open = open_  # type: ignore[method-assign, assignment]
    for name, op in steps.items():
        setattr(os, name, failing_at(op, before[name]))
    try:
        yield
    finally:
        Path.open = opened  # type: ignore[method-assign]
        for name, real in before.items():
            setattr(os, name, real)


class _Failing:
    """What a file system of fsspec is asked for, each a step that can fail."""

    cachable = False

    def pipe_file(self, path: str, value: bytes, **how: Any) -> Any:
        now.step("put")
        return super().pipe_file(path, value, **how)  # type: ignore[misc]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **how: Any) -> Any:
        now.step("get")
        return super().cat_file(path, start=start, end=end, **how)  # type: ignore[misc]

    def ls(self, path: str, detail: bool = True, **how: Any) -> Any:
        now.step("list")
        return super().ls(path, detail=detail, **how)  # type: ignore[misc]

    def info(self, path: str, **how: Any) -> Any:
        now.step("info")
        return super().info(path, **how)  # type: ignore[misc]

    def rm_file(self, path: str) -> Any:
        now.step("remove")
        return super().rm_file(path)  # type: ignore[misc]


class Objects(_Failing, MemoryFileSystem):
    """An object store: nothing is renamed."""

    protocol = "objects"
    store: dict[str, Any] = {}  # noqa: RUF012  (as in fsspec)
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("objects://", "memory://"))


class Elsewhere(_Failing, LocalFileSystem):
    """A disk behind a URL, with folders and renaming."""

    protocol = "elsewhere"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.replace("elsewhere://", "") if isinstance(path, str) else path)

    def mv(self, path1: str, path2: str, **how: Any) -> Any:
        now.step("rename")
        return super().mv(path1, path2, **how)


for one in (Objects, Elsewhere):
    fsspec.register_implementation(one.protocol, one, clobber=True)


# --- the jobs ------------------------------------------------------------------------------------


def _array(seed: int, d: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N, d)).astype("float32")


def store(place: Place) -> None:
    """Marker, parts and manifest of one model."""
    import torch

    x, ids = torch.from_numpy(_array(0)), [f"s{i}" for i in range(N)]
    record = ModelRecord("toy:x", "x", "thing", "r")
    writer = FeatureStore(place / "store").writer(
        dataset={"fingerprint": "0" * 64, "name": "d"}, record=record, settings={}, ids=ids, rows_per_part=N // 2
    )
    for part in writer.missing():
        writer.write(part, {"a": x[part.start : part.stop]}, header={"weights_fingerprint": "w", "versions": {}})
    writer.finish(record, {})
    assert FeatureStore(place / "store").representations()[0].load("a").shape == x.shape


def results(place: Place) -> None:
    """Tiles or groups of them, findings, ceilings, table, draws, run.json, and the table of all variants."""
    models = {"x": _array(1), "y": _array(2), "z": _array(3)}
    here = place / "results"
    compare(models, measures=["CKA()"], null=nulls.Permutations(9), results=here, split_half=2)
    write_combined(Alignment.load(here).table, here / "variants.parquet", [here])


def report(place: Place) -> None:
    write_report(_made(), place / "report.html")


def figures(place: Place) -> None:
    import matplotlib.pyplot as plt

    from repalign.figures import Drawn, write_figures

    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot([0, 1])
    write_figures([Drawn("line", "Line", figure, _made().best()[["measure", "statistic"]], "")], place / "figures")
    plt.close(figure)


def tracked(suffix: str) -> Callable[[Place], None]:
    def job(place: Place) -> None:
        """Three steps of a model in training; what was written before is gone on from."""
        from repalign.track import Panel, Tracker

        assert isinstance(place, Path)
        tracker = Tracker(Panel.of({"t": _array(1)}), ["CKA()"], file=place / f"track{suffix}", strict=True)
        done = {row["step"] for row in tracker.rows}
        for step in range(3):
            if step not in done:
                tracker.score_features({"a": _array(10 + step)}, step=step)

    return job


def panel(place: Place) -> None:
    from repalign.track import Panel

    assert isinstance(place, Path)
    Panel.of({"t": _array(1)}).save(place / "panel.safetensors")


def adapter(place: Place) -> None:
    from repalign.experiments.adapters import Adapter, turned

    assert isinstance(place, Path)
    Adapter("orthogonal", turned(_array(1), _array(2)), True, N).save(place / "adapter.safetensors")


_kept: list[Alignment] = []


def _made() -> Alignment:
    if not _kept:
        _kept.append(compare({"x": _array(1), "y": _array(2)}, measures=["CKA()"], null=nulls.Permutations(9)))
    return _kept[0]


ANYWHERE = {"store": store, "results": results, "report": report, "figures": figures}
HERE = {"tracker.csv": tracked(".csv"), "tracker.parquet": tracked(".parquet"), "panel": panel, "adapter": adapter}


# --- what comes of it ----------------------------------------------------------------------------


@dataclass
class Found:
    """Outcomes by kind and operation: `told` a RepalignError, `without` a job that ended well; and what must not be."""

    cases: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    raw: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)  # the next run did not end with the same bytes
    litter: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)  # `check` has something to say after the next run

    @property
    def is_bad(self) -> bool:
        return bool(self.raw or self.other or self.litter or self.unclean)

    def __iadd__(self, other: Found) -> Found:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    def table(self) -> str:
        kinds = dict.fromkeys((kind, op) for kind, op, _ in self.cases)
        rows = [(kind, op, *(self.cases[kind, op, how] for how in ("told", "without"))) for kind, op in kinds]
        lines = [f"{kind:28} {op:8} {told:6} told {without:6} did without" for kind, op, told, without in rows]
        bad = {"raw": self.raw, "other bytes": self.other, "litter": self.litter, "check": self.unclean}
        lines += [f"{self.cases.total()} faults", *(f"{what}: {len(some)} {some[:9]}" for what, some in bad.items())]
        return "\n".join(lines)


def contents(place: Place) -> dict[str, bytes]:
    """Every file by its name; of panels and adapters, whose text is in no order, the numbers; of tracks all but the seconds."""
    out = {}
    for folder, _, names in walk(place):
        for name in names:
            data = (folder / name).read_bytes()
            if name.endswith(".safetensors") and not name.startswith("part-"):
                from safetensors.numpy import load

                data = b"".join(k.encode() + v.tobytes() for k, v in sorted(load(data).items()))
            elif name.startswith("track."):
                table = pd.read_csv(io.BytesIO(data)) if name.endswith("csv") else pd.read_parquet(io.BytesIO(data))
                data = table.drop(columns="seconds").to_csv().encode()
            out[seen_from(folder / name, place)] = data
    return out


def campaign(
    kinds: list[str], places: Callable[[], Place], ops: tuple[str, ...], most: int = 200, every: int = 1, *, passing: bool = False,
    lasts: bool = False,
) -> Found:  # fmt: skip
    """Let every `every`-th step of some jobs fail, up to the k of `most`; `passing`: as a busy server does."""
    found = Found()
    for kind in kinds:
        job = {**ANYWHERE, **HERE}[kind]
        clean = places()
        job(clean)
        want = contents(clean)
        for again in (False, True):
            for op in ops:
                for k in range(1, most + 1, every):
                    place = places()
                    if again:
                        _copy(clean, place)
                    what = f"{kind}{' again' if again else ''}, {op} {k} of {place}"
                    fault = Fault(op, k, _busy if passing else _error(op, k), lasts=lasts)
                    how = "without"
                    with failing(fault):
                        try:
                            job(place)
                        except RepalignError as error:
                            how = "told"
                            if "  do: " not in str(error):
                                found.raw.append(f"{what}: no remedy: {error}")
                        except Exception as error:
                            found.raw.append(f"{what}: {type(error).__name__}: {error}")
                            how = "raw"
                    if not fault.is_met:
                        _forget(place)
                        break
                    found.cases[f"{kind}{' again' if again else ''}", op, how] += 1
                    left = [name for name in contents(place) if re.search(r"\.tmp-", name)] if op != "remove" else []
                    try:
                        job(place)
                        got = contents(place)
                        left += [name for name in got if ".tmp-" in name]
                        if {k: v for k, v in got.items() if k not in left} != want:
                            found.other.append(what)
                        if kind in ("store", "results", "figures") and (said := check(place)):
                            found.unclean.append(f"{what}: {said[0]}")
                    except Exception as error:
                        found.other.append(f"{what}, then {type(error).__name__}: {error}")
                    if left:
                        found.litter.append(f"{what}: {left}")
                    _forget(place)
        _forget(clean)
    return found


def _error(op: str, k: int) -> Callable[[], Exception]:
    """A disk that is full or broken, or a bucket that may not be used."""
    number = errno.ENOSPC if op in ("write", "open", "mkdir") and k % 2 else errno.EACCES if op in BEHIND else errno.EIO
    return lambda: OSError(number, os.strerror(number))


def _busy() -> Exception:
    return OSError("An error occurred (SlowDown) when calling an operation: Please reduce your request rate.")


def _copy(source: Place, target: Place) -> None:
    if isinstance(source, Path):
        shutil.copytree(source, target, dirs_exist_ok=True)
        return
    for name in (from_ := open_files(source)).tree():
        open_files(target).write(name, from_.read(name))


def _forget(place: Place) -> None:
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
    else:
        fs, path = fsspec.core.url_to_fs(str(place))
        if fs.exists(path):
            fs.rm(path, recursive=True)


def numbered(root: str | Path) -> Callable[[], Place]:
    """Fresh places below a folder or URL."""
    count = iter(range(10**9))

    def place() -> Place:
        made = place_of(root) / f"{next(count)}"
        if isinstance(made, Path):
            made.mkdir(parents=True)
        return made

    return place


def everything(folder: Path, most: int, kinds: list[str], out: io.TextIOBase | Any = sys.stdout) -> list[Found]:
    """The whole loop: here, in an object store, and on a disk behind a URL; steps that fail once, for good, and for a moment."""
    remote.WAITS = (0.0, 0.0)
    runs: dict[str, Callable[[], Found]] = {}
    anywhere = [kind for kind in kinds if kind in ANYWHERE]

    def here(lasts: bool) -> Found:
        with patched(folder):
            return campaign(kinds, numbered(folder / "here"), LOCAL, most, lasts=lasts)

    runs["this disk, a step fails"] = lambda: here(False)
    runs["this disk, all steps from one on fail"] = lambda: here(True)
    for where, root in (("an object store", "objects://bucket"), ("a disk behind a URL", f"elsewhere://{folder}/url")):
        for said, how in (("a request is refused", {}), ("refused from one on", {"lasts": True}), ("busy once", {"passing": True}),
                          ("busy for good", {"passing": True, "lasts": True})):  # fmt: skip
            runs[f"{where}, {said}"] = lambda root=root, how=how: campaign(anywhere, numbered(root), BEHIND, most, **how)
    found = []
    for name, run in runs.items():
        found.append(run())
        print(f"== {name}\n{found[-1].table()}\n", file=out, flush=True)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    most, *kinds = [*sys.argv[1:], *(["200"] if len(sys.argv) < 2 else [])]
    with tempfile.TemporaryDirectory() as root:
        campaigns = everything(Path(root).resolve(), int(most), kinds or [*ANYWHERE, *HERE])
    print(f"{sum(one.cases.total() for one in campaigns)} faults, {sum(one.is_bad for one in campaigns)} campaigns with a failure")
    sys.exit(any(one.is_bad for one in campaigns))
